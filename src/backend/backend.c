/*
 * backend.c - the one place where an operation is counted, performed and its failure kept.
 *
 * Owns nothing but the bookkeeping of struct backend; the arithmetic is behind its ops table.  The
 * dry backend lives here too: it is the absence of an ops table.  Scratch that a machine needs
 * beside the operands is taken here, so that a dry run takes the same.
 *
 * Read next: backend_cpu.c.
 */
#include "backend/backend_int.h"

#include <string.h>

static const struct backend_needs *needs_of(enum machine machine)
{
    switch (machine) {
    case MACHINE_CUDA: return &cuda_needs;
    case MACHINE_WALLED: return &walled_needs;
    case MACHINE_CPU: break;
    }
    return &cpu_needs;
}

const struct vmem_ops *backend_vmem(enum machine machine)
{
    return needs_of(machine)->vmem;
}

/* Addresses that arithmetic may start from, and no end. */
static void place_dry_slots(struct backend *backend)
{
    for (int slot = 0; slot < PARCEL_SLOTS; slot++) {
        backend->parcels->slot_bytes[slot] = UINT64_MAX / 4;
        backend->parcels->slots[slot] = arena_take(backend->kept_matrices, 0, "a slot");
    }
}

bool backend_is_dry(const struct backend *backend)
{
    return backend->ops == NULL;
}

int backend_open_dry(struct backend **out, const struct backend_options *options, struct err *err)
{
    int             rc = ERR_OK;
    struct backend *backend = NULL;

    TRY(os_alloc((void **)&backend, 1, sizeof *backend, "a backend", err));
    backend->needs = needs_of(options->machine);
    backend->compute = options->compute;
    backend->fixed_bytes = backend->needs->fixed(options);
    TRY(arena_open_dry(&backend->arena, err));
    if (backend->needs->distant) TRY(arena_open_dry(&backend->kept_matrices, err));
    if (backend->needs->distant) TRY(arena_open_dry(&backend->kept_vectors, err));
    if (backend->needs->distant) TRY(parcels_open(&backend->parcels, err));
    if (backend->needs->distant) place_dry_slots(backend);
    *out = backend;
    backend = NULL;
out:
    backend_close(backend);
    return rc;
}

int backend_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    switch (options->machine) {
    case MACHINE_CUDA: return cuda_open(out, options, err);
    case MACHINE_WALLED: return walled_open(out, options, err);
    case MACHINE_CPU: break;
    }
    return cpu_open(out, options, err);
}

void backend_close(struct backend *backend)
{
    if (backend == NULL) return;
    if (backend->ops != NULL) backend->ops->close(backend);
    arena_close(backend->arena);
    arena_close(backend->kept_matrices);
    arena_close(backend->kept_vectors);
    parcels_close(backend->parcels);
    os_free(backend);
}

struct arena *backend_arena(struct backend *backend)
{
    return backend->arena;
}

enum dtype backend_act(const struct backend *backend)
{
    return backend->compute;
}

double backend_flops(const struct backend *backend)
{
    return backend->flops;
}

uint64_t backend_fixed_bytes(const struct backend *backend)
{
    return backend->fixed_bytes;
}

int backend_wait(struct backend *backend, struct err *err)
{
    int         rc = ERR_OK, status = backend->status, late = 0;
    const char *op = backend->failed_op;
    char        words[160] = "";
    bool        lacks;

    backend->status = 0;
    /* After a failure too: what was begun before it still uses the caller's memory. */
    if (backend->ops != NULL && backend->ops->wait != NULL) late = backend->ops->wait(backend);
    if (status == 0) {
        status = late;
        op = "an operation";
    }
    if (status == 0) goto out;
    if (status >= STATUS_READ)
        RAISE(err, ERR_IO, status - STATUS_READ,
              "weights: a part of the model cannot be read any more (%s); was its file cut or its "
              "disk removed?",
              strerror(status - STATUS_READ));
    if (status == STATUS_HOST)
        RAISE(err, ERR_HOST_MEM, 0,
              "memory: the host has none left to pin for weights on their way to the GPU; end "
              "another program, or raise --vram");
    if (backend->ops->describe != NULL)
        backend->ops->describe(backend, status, words, sizeof words);
    lacks = backend->ops->lacks_memory != NULL && backend->ops->lacks_memory(status);
    RAISE(err, lacks ? ERR_DEVICE_MEM : ERR_DEVICE, status, "device: %s failed with status %d%s%s",
          op, status, words[0] != '\0' ? ": " : "", words);
out:
    return rc;
}

/* One writer, so the order against other memory does not matter. */
static void beat(struct backend *backend)
{
    if (backend->pulse != NULL) (void)__atomic_fetch_add(backend->pulse, 1, __ATOMIC_RELAXED);
}

static void note(struct backend *backend, const char *op, int status)
{
    beat(backend);
    if (backend->status != 0 || status == 0) return;
    backend->status = status;
    backend->failed_op = op;
}

/* Runs one operation unless this backend is dry or an earlier operation failed. */
#define PREPARE_OR_PERFORM(op, ...)                                                                \
    do {                                                                                           \
        if (backend->ops != NULL && backend->status == 0)                                          \
            note(backend, #op, backend->ops->op(backend, __VA_ARGS__));                            \
    } while (0)
#define PERFORM(op, ...)                                                                           \
    do {                                                                                           \
        if (!backend->rehearsing) PREPARE_OR_PERFORM(op, __VA_ARGS__);                             \
    } while (0)
/* The same with scratch on top of the arena. */
#define PERFORM_WITH(needed, macro, ...)                                                           \
    do {                                                                                           \
        struct arena_mark mark_ = arena_mark(backend->arena);                                      \
        backend->scratch.bytes = (needed);                                                         \
        backend->scratch.data =                                                                    \
            arena_take(backend->arena, backend->scratch.bytes, "scratch of an operation");         \
        macro(__VA_ARGS__);                                                                        \
        arena_rewind(backend->arena, mark_);                                                       \
    } while (0)
#define BYTES_OF(op, ...)                                                                          \
    (backend->needs->op == NULL ? 0 : backend->needs->op(backend, __VA_ARGS__))

static bool same_shape(struct matrix a, struct matrix b)
{
    return a.rows == b.rows && a.cols == b.cols;
}

void backend_rehearse(struct backend *backend, bool on)
{
    backend->rehearsing = on;
}

/* ------------------------------------------------------------------------- memory of its own */

bool backend_is_distant(const struct backend *backend)
{
    return backend->needs->distant;
}

uint64_t backend_kept_matrix_bytes(const struct backend *backend)
{
    return backend->needs->distant ? arena_bytes_peak(backend->kept_matrices) : 0;
}

uint64_t backend_kept_vector_bytes(const struct backend *backend)
{
    return backend->needs->distant ? arena_bytes_peak(backend->kept_vectors) : 0;
}

static struct matrix take_from(struct arena *arena, enum dtype dtype, int64_t rows, int64_t cols,
                               const char *label)
{
    uint64_t bytes = 0;

    must(rows >= 0 && cols >= 0);
    must(mul_u64((uint64_t)rows, (uint64_t)cols, &bytes) &&
         mul_u64(bytes, dtype_bytes(dtype), &bytes));
    return (struct matrix){.data = arena_take(arena, bytes, label),
                           .dtype = dtype,
                           .rows = rows,
                           .cols = cols,
                           .ld = cols};
}

/* bf16 is exact in fp32 and half as long; other types become what products are formed in. */
static enum dtype kept_dtype(const struct backend *backend, enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? DTYPE_BF16 : backend->compute;
}

static struct matrix copy_into(struct backend *backend, struct arena *arena, struct matrix source,
                               enum dtype dtype)
{
    struct matrix target = take_from(arena, dtype, source.rows, source.cols, "weights");

    PERFORM(upload, target, source);
    return target;
}

struct matrix backend_keep(struct backend *backend, struct matrix weight)
{
    if (!backend->needs->distant) return weight;
    if (backend->parcels->open)
        return parcels_add(backend->parcels, weight, kept_dtype(backend, weight.dtype));
    return copy_into(backend, backend->kept_matrices, weight, kept_dtype(backend, weight.dtype));
}

void backend_parcel_begin(struct backend *backend, uint32_t index)
{
    struct parcels *parcels = backend->parcels;

    if (parcels == NULL) return;
    must(!parcels->open && index == parcels->sizes.count && index < PARCELS_MAX);
    parcels->open = true;
}

void backend_parcel_end(struct backend *backend)
{
    struct parcels *parcels = backend->parcels;

    if (parcels == NULL) return;
    must(parcels->open);
    parcels->open = false;
    parcels->sizes.count++;
    PREPARE_OR_PERFORM(settle, parcels->sizes.count - 1);
}

/* In a rehearsal too: choices that are made by trial are made with the weights. */
void backend_arrive(struct backend *backend, uint32_t index)
{
    if (backend->parcels == NULL) return;
    must(index < backend->parcels->sizes.count && !backend->parcels->open);
    backend->link.arrivals++;
    PREPARE_OR_PERFORM(arrive, index);
}

void backend_depart(struct backend *backend, uint32_t index)
{
    if (backend->parcels == NULL) return;
    must(index < backend->parcels->sizes.count);
    PREPARE_OR_PERFORM(depart, index);
}

const struct parcel_sizes *backend_parcels(const struct backend *backend)
{
    static const struct parcel_sizes none = {.count = 0};

    return backend->parcels == NULL ? &none : &backend->parcels->sizes;
}

struct backend_link backend_link(const struct backend *backend)
{
    return backend->link;
}

struct backend_uploads backend_uploads(const struct backend *backend)
{
    return backend->uploads;
}

const float *backend_keep_vector(struct backend *backend, struct matrix values)
{
    must(backend->needs->distant && values.rows == 1);
    return copy_into(backend, backend->kept_vectors, values, DTYPE_F32).data;
}

struct matrix backend_fetch(struct backend *backend, struct matrix weight)
{
    if (!backend->needs->distant) return weight;
    return copy_into(backend, backend->arena, weight, kept_dtype(backend, weight.dtype));
}

const float *backend_fetch_vector(struct backend *backend, const float *values, int64_t count)
{
    struct matrix source = {(void *)(uintptr_t)values, DTYPE_F32, 1, count, count};

    if (!backend->needs->distant || values == NULL) return values;
    return copy_into(backend, backend->arena, source, DTYPE_F32).data;
}

struct matrix backend_take(struct backend *backend, enum dtype dtype, int64_t rows, int64_t cols,
                           const char *label)
{
    return take_from(backend->arena, dtype, rows, cols, label);
}

void backend_upload(struct backend *backend, struct matrix target, const float *source)
{
    struct matrix from = {.data = (void *)(uintptr_t)source,
                          .dtype = DTYPE_F32,
                          .rows = target.rows,
                          .cols = target.cols,
                          .ld = target.cols};
    PERFORM(upload, target, from);
}

void backend_download(struct backend *backend, float *target, struct matrix source)
{
    struct matrix to = {.data = target,
                        .dtype = DTYPE_F32,
                        .rows = source.rows,
                        .cols = source.cols,
                        .ld = source.cols};
    PERFORM(download, to, source);
}

void backend_pin(struct backend *backend, const void *data, uint64_t bytes)
{
    if (backend->ops != NULL && backend->ops->pin != NULL) backend->ops->pin(backend, data, bytes);
}

void backend_unpin(struct backend *backend, const void *data)
{
    if (backend->ops != NULL && backend->ops->pin != NULL) backend->ops->unpin(backend, data);
}

/* -------------------------------------------------------------------------------- operations */

void backend_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                    const float *bias, enum activation act)
{
    must(y.rows == x.rows && y.cols == w.rows && x.cols == w.cols);
    backend->flops += 2.0 * (double)y.rows * (double)y.cols * (double)x.cols;
    PERFORM_WITH(BYTES_OF(linear, y, x, w, bias, act), PREPARE_OR_PERFORM, linear, y, x, w, bias,
                 act);
}

void backend_attention(struct backend *backend, const struct attention_request *request)
{
    must(request->q.cols == (int64_t)request->heads * request->dim);
    must(same_shape(request->q, request->out) && same_shape(request->k, request->v));
    must(request->k.cols == request->q.cols);
    backend->flops +=
        4.0 * (double)request->q.rows * (double)request->k.rows * (double)request->q.cols;
    PERFORM_WITH(BYTES_OF(attention, request), PREPARE_OR_PERFORM, attention, request);
}

void backend_qk_norm_rope(struct backend *backend, const struct qk_rope_request *request)
{
    must(same_shape(request->q, request->k) && request->first_rotated <= request->q.rows);
    PERFORM(qk_norm_rope, request);
}

void backend_layer_norm(struct backend *backend, struct matrix y, struct matrix x,
                        const float *scale, const float *shift, bool scale_plus_one, float eps)
{
    must(same_shape(y, x));
    PERFORM(layer_norm, y, x, scale, shift, scale_plus_one, eps);
}

void backend_rms_norm(struct backend *backend, struct matrix y, struct matrix x,
                      const float *weight, float eps)
{
    must(same_shape(y, x));
    PERFORM(rms_norm, y, x, weight, eps);
}

void backend_group_stats(struct backend *backend, struct matrix stats, struct matrix x)
{
    must(stats.rows > 0 && x.rows % stats.rows == 0 && stats.cols == 2 * x.cols);
    PERFORM(group_stats, stats, x);
}

void backend_group_merge(struct backend *backend, struct matrix table, struct matrix stats,
                         const float *weight, int64_t run_rows, int32_t groups, float eps)
{
    must(table.rows == 2 && stats.cols == 2 * table.cols);
    must(groups > 0 && table.cols % groups == 0);
    PERFORM(group_merge, table, stats, weight, run_rows, groups, eps);
}

void backend_group_apply(struct backend *backend, struct matrix y, struct matrix x,
                         struct matrix table, const float *bias, bool silu)
{
    must(same_shape(y, x) && table.rows == 2 && table.cols == x.cols);
    PERFORM(group_apply, y, x, table, bias, silu);
}

void backend_add(struct backend *backend, struct matrix x, struct matrix y)
{
    must(same_shape(y, x));
    PERFORM(add, x, y);
}

void backend_gate_add(struct backend *backend, struct matrix x, struct matrix y, const float *gate)
{
    must(same_shape(y, x));
    PERFORM(gate_add, x, y, gate);
}

void backend_gate_add_layer_norm(struct backend *backend, const struct gate_norm_request *request)
{
    must(same_shape(request->x, request->y) && same_shape(request->out, request->x));
    PERFORM(gate_add_layer_norm, request);
}

void backend_gelu_mul(struct backend *backend, struct matrix y, struct matrix a, struct matrix b)
{
    must(same_shape(y, a) && same_shape(a, b));
    PERFORM(gelu_mul, y, a, b);
}

void backend_silu(struct backend *backend, struct matrix y, struct matrix x)
{
    must(same_shape(y, x));
    PERFORM(silu, y, x);
}

void backend_gather_rows(struct backend *backend, struct matrix y, struct matrix table,
                         const int32_t *ids)
{
    must(y.cols == table.cols);
    PERFORM(gather_rows, y, table, ids);
}

void backend_rope_grid(struct backend *backend, struct matrix y, const struct matrix axes[3],
                       int32_t h, int32_t w)
{
    must(h > 0 && w > 0 && y.rows == (int64_t)h * w && y.dtype == DTYPE_F32);
    must(axes[0].rows >= w && axes[1].rows >= h && axes[2].rows >= w);
    must(y.cols == axes[0].cols + axes[1].cols + axes[2].cols);
    PERFORM(rope_grid, y, axes, h, w);
}

void backend_fill(struct backend *backend, struct matrix y, uint64_t seed)
{
    PERFORM(fill, y, seed);
}

void backend_affine(struct backend *backend, struct matrix y, struct matrix x, float mul, float add)
{
    must(same_shape(y, x));
    PERFORM(affine, y, x, mul, add);
}

void backend_copy(struct backend *backend, struct matrix y, struct matrix x)
{
    must(same_shape(y, x));
    PERFORM(copy, y, x);
}

void backend_conv2d(struct backend *backend, const struct conv_request *request)
{
    must(request->x.rows == (int64_t)request->in_h * request->in_w);
    must(request->w.rows == request->y.cols);
    must(request->w.cols == request->x.cols * request->size * request->size);
    double taps = request->enlarge ? 4 : request->size * request->size;
    backend->flops +=
        2.0 * (double)request->y.rows * (double)request->y.cols * (double)request->x.cols * taps;
    PERFORM_WITH(BYTES_OF(conv2d, request), PREPARE_OR_PERFORM, conv2d, request);
}

void backend_pack_latent(struct backend *backend, struct matrix tokens, const float *latent,
                         int32_t h, int32_t w, int32_t channels)
{
    must(tokens.rows == (int64_t)(h / 2) * (w / 2) && tokens.cols == 4 * (int64_t)channels);
    PERFORM(pack_latent, tokens, latent, h, w, channels);
}

void backend_unpack_latent(struct backend *backend, float *latent, struct matrix tokens, int32_t h,
                           int32_t w, int32_t channels)
{
    must(tokens.rows == (int64_t)(h / 2) * (w / 2) && tokens.cols == 4 * (int64_t)channels);
    PERFORM(unpack_latent, latent, tokens, h, w, channels);
}
