/*
 * backend.h - one interface, several machines.
 *
 * Rank 2.  The engine is written once against these operations.  The CPU runs them through the CPU
 * files of kernels; a GPU runs them asynchronously on a stream; a dry backend runs nothing and only
 * measures what a machine would take: bytes through its dry arenas, FLOPs through its counters.
 *
 * A machine is distant when it cannot read the host's memory.  Then every operand of an operation
 * must be its own: taken from its arena, kept (for as long as the backend) or fetched (scratch). On
 * the CPU keeping and fetching cost nothing and give back what they were given.
 *
 * Weights that a distant machine has no room for are kept in parcels: their bytes stay on the host
 * and visit one of two slots there, each for the operations between its arrival and its departure,
 * while another travels.
 *
 * An operation never reports on its own.  The first failure is kept, later operations do nothing,
 * and backend_wait tells it: so the engine reads like the model's equations.
 */
#ifndef MURAL_BACKEND_H
#define MURAL_BACKEND_H

#include "base/base.h"
#include "kernels/kernels.h"
#include "memory/memory.h"

struct backend;

/* WALLED is the CPU behind a wall, for tests: distant, and it checks whose each operand is. */
enum machine { MACHINE_CPU = 0, MACHINE_CUDA, MACHINE_WALLED };

/* How many bytes each parcel takes in its slot. */
enum { PARCELS_MAX = 128 };
struct parcel_sizes {
    uint32_t count;
    uint64_t bytes[PARCELS_MAX];
};

struct backend_options {
    enum machine machine;
    int32_t      device;  /* number of the GPU                                            */
    enum dtype   compute; /* DTYPE_F32 or DTYPE_BF16: products and activations            */
    uint32_t     threads; /* 0: all CPUs this process may use                             */
    uint64_t     conv_weight_elements_max; /* largest convolution weight of the model     */
    uint64_t     arena_limit_bytes;        /* scratch may never exceed this               */
    uint64_t     kept_matrix_bytes, kept_vector_bytes; /* of a distant machine; 0: none   */
    struct pool *pool;           /* of a distant machine: what all its memory comes from; outlives
                                    the backend; NULL: a pool for each arena              */
    struct parcel_sizes parcels; /* of a distant machine: as a dry run found them         */
    uint64_t pinned_bytes; /* most of the host's memory for parcels; those beyond it are read from
                              where the weights are whenever they travel                    */
    /* A file for parcels' bytes that other processes have too, as in shared_pins.h; 0: none. */
    int shared_fd;
    /* Memory on pages of its own that callers' floats lie in, of a distant machine: it may copy
     * from and to there itself; outlives the backend.  0 bytes: none. */
    void     *exchange;
    uint64_t  exchange_bytes;
    uint64_t *pulse; /* counted up, atomically, with every operation; another process may watch it
                        to see that this one lives; NULL: nobody does                          */
};

/* ERR_DEVICE or ERR_DEVICE_MEM when there is no such GPU, or it cannot be used. */
int backend_open(struct backend **out, const struct backend_options *options, struct err *err);
/* Measures for options->machine; needs no such machine. */
int  backend_open_dry(struct backend **out, const struct backend_options *options, struct err *err);
void backend_close(struct backend *backend);
bool backend_is_dry(const struct backend *backend);

/* Whose memory a pool for this machine is made of; NULL where it has none of its own. */
const struct vmem_ops *backend_vmem(enum machine machine);

/* The GPU `device`, in words and numbers.  ERR_DEVICE when this build has no CUDA, there is no
 * driver, it is too old, there is no such device, or it is too old for us. */
struct backend_device {
    char     name[128];
    uint64_t bytes_total, bytes_free;
    int32_t  major, minor; /* compute capability */
    char     numeric[96];  /* card and versions: what decides the bits of its results */
    char     absent[128]; /* when it failed: why there is no GPU that could be used, in a few words;
                            empty: there is one, and it fails */
};
int backend_find_cuda(struct backend_device *out, int32_t device, struct err *err);
/* Bytes a second from the host's pinned memory to the GPU `device`, in the best of three short
 * copies.  ERR_DEVICE when it cannot be tried, for want of memory too. */
int backend_time_link(double *bytes_per_second_out, int32_t device, struct err *err);

/* Scratch memory of this machine; data pointers of activations come from here. */
struct arena *backend_arena(struct backend *backend);
/* What activations are stored in: f32 or bf16.  Residual streams are always f32. */
enum dtype backend_act(const struct backend *backend);
/* FLOPs asked for since open (2 per multiply-add); counted by every backend. */
double backend_flops(const struct backend *backend);
/* Bytes that the backend holds outside its arenas (workspace, libraries). */
uint64_t backend_fixed_bytes(const struct backend *backend);

/* Finish everything asked for; the first failure since the last wait as one sentence. */
int backend_wait(struct backend *backend, struct err *err);

/* While on, operations only prepare what they will need (plans and choices of the libraries of a
 * GPU), and perform nothing: what is in the arena afterwards is undefined.  Nothing is prepared
 * later that was rehearsed with the same shapes and strides. */
void backend_rehearse(struct backend *backend, bool on);

/* ------------------------------------------------------------------------- memory of its own */

bool backend_is_distant(const struct backend *backend);
/* What was kept, dry or not; of vectors a GPU takes half as much again. */
uint64_t backend_kept_matrix_bytes(const struct backend *backend);
uint64_t backend_kept_vector_bytes(const struct backend *backend);
/* Weights of the host, of any type and alignment, as this machine can read them.  Kept matrices of
 * one size lie one after the other in the order in which they were kept; so do kept vectors, which
 * are f32.  Types of kept matrices: what products are formed in, or bf16. */
struct matrix backend_keep(struct backend *backend, struct matrix weight);
const float  *backend_keep_vector(struct backend *backend, struct matrix values); /* [1, count] */
/* The same until the arena is rewound. */
struct matrix backend_fetch(struct backend *backend, struct matrix weight);
const float  *backend_fetch_vector(struct backend *backend, const float *values, int64_t count);

/* Weights that visit.  Between begin and end backend_keep puts matrices into parcel `index` instead
 * of the arena of kept matrices; indices count up from 0.  The sources must stay mapped as long as
 * the backend is open.  Where a machine is not distant nothing is different. */
void backend_parcel_begin(struct backend *backend, uint32_t index);
void backend_parcel_end(struct backend *backend);
/* Around each use of a parcel.  Called for all of them in the order of their indices, again and
 * again, a copy is ahead of its use; any other order is as right, and slower.  A parcel that cannot
 * be read fails the operation. */
void backend_arrive(struct backend *backend, uint32_t index);
void backend_depart(struct backend *backend, uint32_t index);
/* The parcels so far, dry or not; and the bytes of all slots that they need. */
const struct parcel_sizes *backend_parcels(const struct backend *backend);
uint64_t                   backend_ring_bytes(const struct parcel_sizes *sizes);
/* What parcels did since the backend was opened, up to its last wait. */
struct backend_link {
    uint64_t bytes; /* that crossed to the machine                              */
    uint64_t arrivals;
    double   stall_seconds; /* that a GPU stood still because a parcel was not there yet */
};
struct backend_link backend_link(const struct backend *backend);

/* What was kept, fetched and uploaded since the backend was opened, parcels not counted; and what
 * took the host's time: reading, and waiting for what was on its way. */
struct backend_uploads {
    uint64_t bytes; /* in the types of the machine */
    double   fill_seconds, wait_seconds;
};
struct backend_uploads backend_uploads(const struct backend *backend);

/* A matrix of rows x cols in the arena, contiguous. */
struct matrix backend_take(struct backend *backend, enum dtype dtype, int64_t rows, int64_t cols,
                           const char *label);

/* Views: no copies. */
static inline struct matrix matrix_rows(struct matrix m, int64_t first, int64_t count)
{
    m.data = (char *)m.data + (size_t)first * (size_t)m.ld * dtype_bytes(m.dtype);
    m.rows = count;
    return m;
}
static inline struct matrix matrix_cols(struct matrix m, int64_t first, int64_t count)
{
    m.data = (char *)m.data + (size_t)first * dtype_bytes(m.dtype);
    m.cols = count;
    return m;
}

/* Host <-> machine; contiguous f32 on the host side, any dtype on the other.  The source of an
 * upload may be reused when it returns, if it is not pinned; the target of a download may be read
 * then. */
void backend_upload(struct backend *backend, struct matrix target, const float *source);
void backend_download(struct backend *backend, float *target, struct matrix source);
/* Memory of the host, on pages of its own, that uploads come from again and again: where a machine
 * can, it copies from there itself, and may do so still when an upload has returned.  Nobody writes
 * there before the next wait or download, and it is freed after it was unpinned, which waits, or
 * the backend closed.  Where it cannot be pinned, or need not be, nothing is different. */
void backend_pin(struct backend *backend, const void *data, uint64_t bytes);
void backend_unpin(struct backend *backend, const void *data);

/* ---------------------------------------------------------------- operations, as in kernels.h */

/* Of more rows than these, each has the same bits in a product however many others there are, if
 * the first is at a multiple of 256 of them.  Of fewer a GPU's library may add up in another order
 * for each number, and then a step of many rows in parts would not be what it is at once. */
enum { BACKEND_ROWS_FEW = 512 };

void backend_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                    const float *bias, enum activation act);
void backend_attention(struct backend *backend, const struct attention_request *request);
void backend_qk_norm_rope(struct backend *backend, const struct qk_rope_request *request);
void backend_layer_norm(struct backend *backend, struct matrix y, struct matrix x,
                        const float *scale, const float *shift, bool scale_plus_one, float eps);
void backend_rms_norm(struct backend *backend, struct matrix y, struct matrix x,
                      const float *weight, float eps);
/* stats and table lie in the arena: nothing of them is needed on the host. */
void backend_group_stats(struct backend *backend, struct matrix stats, struct matrix x);
void backend_group_merge(struct backend *backend, struct matrix table, struct matrix stats,
                         const float *weight, int64_t run_rows, int32_t groups, float eps);
void backend_group_apply(struct backend *backend, struct matrix y, struct matrix x,
                         struct matrix table, const float *bias, bool silu);
void backend_add(struct backend *backend, struct matrix x, struct matrix y);
void backend_gate_add(struct backend *backend, struct matrix x, struct matrix y, const float *gate);
void backend_gelu_mul(struct backend *backend, struct matrix y, struct matrix a, struct matrix b);
void backend_silu(struct backend *backend, struct matrix y, struct matrix x);
void backend_gate_add_layer_norm(struct backend *backend, const struct gate_norm_request *request);
/* `table` and `ids` are the host's. */
void backend_gather_rows(struct backend *backend, struct matrix y, struct matrix table,
                         const int32_t *ids);
/* The rotations of a grid of tokens, from those of its axes. */
void backend_rope_grid(struct backend *backend, struct matrix y, const struct matrix axes[3],
                       int32_t h, int32_t w);
/* Made-up numbers in (-1/4, 1/4), a function of (seed, row, col): for trials of speed. */
void backend_fill(struct backend *backend, struct matrix y, uint64_t seed);
void backend_affine(struct backend *backend, struct matrix y, struct matrix x, float mul,
                    float add);
void backend_copy(struct backend *backend, struct matrix y, struct matrix x); /* casts */
/* One that enlarges is counted as what it needs: 4 taps for each of its results, not 9. */
void backend_conv2d(struct backend *backend, const struct conv_request *request);
void backend_pack_latent(struct backend *backend, struct matrix tokens, const float *latent,
                         int32_t h, int32_t w, int32_t channels);
void backend_unpack_latent(struct backend *backend, float *latent, struct matrix tokens, int32_t h,
                           int32_t w, int32_t channels);

#endif
