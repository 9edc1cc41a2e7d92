/*
 * backend_walled.c - the CPU behind a wall: a distant machine that every test machine has.
 *
 * Owns copies of what is kept and fetched, as a GPU would, and a CPU backend that computes.  Every
 * operand of an operation must lie in this backend's own memory; one that does not is a mistake of
 * the caller, and stops the process with the operation's name.  A GPU would read garbage there, or
 * die, and the tests that run without one would never know.
 *
 * Parcels visit two slots of real memory, from copies of their own as far as pinned_bytes go and
 * then from where the weights are.  A slot is poisoned with NaN when its parcel departs.
 *
 * Read next: backend_cuda.c, which asks the same of its callers and cannot check it.
 */
#include "backend/backend_int.h"
#include "backend/host_read.h"

#include <string.h>

struct walled {
    struct backend  base;
    struct backend *cpu;  /* computes; its arena is not used */
    struct arena   *ring; /* NULL: there are no parcels */
    uint64_t        pinned_left;
};

static struct backend *cpu_of(struct backend *backend)
{
    return ((struct walled *)backend)->cpu;
}

static bool is_ours(const struct backend *backend, const void *data, uint64_t bytes)
{
    const struct arena *ring = ((const struct walled *)backend)->ring;

    return (ring != NULL && arena_holds(ring, data, bytes)) ||
           arena_holds(backend->arena, data, bytes) ||
           arena_holds(backend->kept_matrices, data, bytes) ||
           arena_holds(backend->kept_vectors, data, bytes);
}

static void own(const struct backend *backend, const char *op, struct matrix m)
{
    uint64_t last = m.rows == 0 ? 0 : (uint64_t)((m.rows - 1) * m.ld + m.cols);

    if (!is_ours(backend, m.data, last * dtype_bytes(m.dtype)))
        must_fail("an operand lies outside this machine's memory", op);
}

static void own_vector(const struct backend *backend, const char *op, const float *values,
                       int64_t count)
{
    if (values == NULL) return;
    own(backend, op, (struct matrix){(void *)(uintptr_t)values, DTYPE_F32, 1, count, count});
}

static int walled_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                         const float *bias, enum activation act)
{
    own(backend, "linear", y);
    own(backend, "linear", x);
    own(backend, "linear", w);
    own_vector(backend, "linear", bias, y.cols);
    if (backend->rehearsing) return 0;
    return cpu_of(backend)->ops->linear(cpu_of(backend), y, x, w, bias, act);
}

static int walled_attention(struct backend *backend, const struct attention_request *request)
{
    own(backend, "attention", request->out);
    own(backend, "attention", request->q);
    own(backend, "attention", request->k);
    own(backend, "attention", request->v);
    own_vector(backend, "attention", request->bias, request->heads * (2 * request->k.rows - 1));
    if (backend->rehearsing) return 0;
    return cpu_of(backend)->ops->attention(cpu_of(backend), request);
}

static int walled_conv2d(struct backend *backend, const struct conv_request *request)
{
    own(backend, "conv2d", request->y);
    own(backend, "conv2d", request->x);
    own(backend, "conv2d", request->w);
    own_vector(backend, "conv2d", request->bias, request->y.cols);
    if (backend->rehearsing) return 0;
    return cpu_of(backend)->ops->conv2d(cpu_of(backend), request);
}

static int walled_qk_norm_rope(struct backend *backend, const struct qk_rope_request *request)
{
    int64_t angles = (request->q.rows - request->first_rotated) * (request->dim / 2);

    own(backend, "qk_norm_rope", request->q);
    own(backend, "qk_norm_rope", request->k);
    own_vector(backend, "qk_norm_rope", request->q_weight, request->dim);
    own_vector(backend, "qk_norm_rope", request->k_weight, request->dim);
    own_vector(backend, "qk_norm_rope", request->cos, angles);
    own_vector(backend, "qk_norm_rope", request->sin, angles);
    return cpu_of(backend)->ops->qk_norm_rope(cpu_of(backend), request);
}

static int walled_layer_norm(struct backend *backend, struct matrix y, struct matrix x,
                             const float *scale, const float *shift, bool scale_plus_one, float eps)
{
    own(backend, "layer_norm", y);
    own(backend, "layer_norm", x);
    own_vector(backend, "layer_norm", scale, x.cols);
    own_vector(backend, "layer_norm", shift, x.cols);
    return cpu_of(backend)->ops->layer_norm(cpu_of(backend), y, x, scale, shift, scale_plus_one,
                                            eps);
}

static int walled_rms_norm(struct backend *backend, struct matrix y, struct matrix x,
                           const float *weight, float eps)
{
    own(backend, "rms_norm", y);
    own(backend, "rms_norm", x);
    own_vector(backend, "rms_norm", weight, x.cols);
    return cpu_of(backend)->ops->rms_norm(cpu_of(backend), y, x, weight, eps);
}

static int walled_group_stats(struct backend *backend, struct matrix stats, struct matrix x)
{
    own(backend, "group_stats", stats);
    own(backend, "group_stats", x);
    return cpu_of(backend)->ops->group_stats(cpu_of(backend), stats, x);
}

static int walled_group_merge(struct backend *backend, struct matrix table, struct matrix stats,
                              const float *weight, int64_t run_rows, int32_t groups, float eps)
{
    own(backend, "group_merge", table);
    own(backend, "group_merge", stats);
    own_vector(backend, "group_merge", weight, table.cols);
    return cpu_of(backend)->ops->group_merge(cpu_of(backend), table, stats, weight, run_rows,
                                             groups, eps);
}

static int walled_group_apply(struct backend *backend, struct matrix y, struct matrix x,
                              struct matrix table, const float *bias, bool silu)
{
    own(backend, "group_apply", y);
    own(backend, "group_apply", x);
    own(backend, "group_apply", table);
    own_vector(backend, "group_apply", bias, x.cols);
    return cpu_of(backend)->ops->group_apply(cpu_of(backend), y, x, table, bias, silu);
}

static int walled_add(struct backend *backend, struct matrix x, struct matrix y)
{
    own(backend, "add", x);
    own(backend, "add", y);
    return cpu_of(backend)->ops->add(cpu_of(backend), x, y);
}

static int walled_gate_add(struct backend *backend, struct matrix x, struct matrix y,
                           const float *gate)
{
    own(backend, "gate_add", x);
    own(backend, "gate_add", y);
    own_vector(backend, "gate_add", gate, x.cols);
    return cpu_of(backend)->ops->gate_add(cpu_of(backend), x, y, gate);
}

static int walled_gate_add_layer_norm(struct backend                 *backend,
                                      const struct gate_norm_request *request)
{
    own(backend, "gate_add_layer_norm", request->out);
    own(backend, "gate_add_layer_norm", request->x);
    own(backend, "gate_add_layer_norm", request->y);
    own_vector(backend, "gate_add_layer_norm", request->gate, request->x.cols);
    own_vector(backend, "gate_add_layer_norm", request->scale, request->x.cols);
    own_vector(backend, "gate_add_layer_norm", request->shift, request->x.cols);
    return cpu_of(backend)->ops->gate_add_layer_norm(cpu_of(backend), request);
}

static int walled_gelu_mul(struct backend *backend, struct matrix y, struct matrix a,
                           struct matrix b)
{
    own(backend, "gelu_mul", y);
    own(backend, "gelu_mul", a);
    own(backend, "gelu_mul", b);
    return cpu_of(backend)->ops->gelu_mul(cpu_of(backend), y, a, b);
}

static int walled_silu(struct backend *backend, struct matrix y, struct matrix x)
{
    own(backend, "silu", y);
    own(backend, "silu", x);
    return cpu_of(backend)->ops->silu(cpu_of(backend), y, x);
}

/* The table and the ids are the host's. */
static int walled_gather_rows(struct backend *backend, struct matrix y, struct matrix table,
                              const int32_t *ids)
{
    own(backend, "gather_rows", y);
    return cpu_of(backend)->ops->gather_rows(cpu_of(backend), y, table, ids);
}

static int walled_affine(struct backend *backend, struct matrix y, struct matrix x, float mul,
                         float add)
{
    own(backend, "affine", y);
    own(backend, "affine", x);
    return cpu_of(backend)->ops->affine(cpu_of(backend), y, x, mul, add);
}

static int walled_copy(struct backend *backend, struct matrix y, struct matrix x)
{
    own(backend, "copy", y);
    own(backend, "copy", x);
    return cpu_of(backend)->ops->copy(cpu_of(backend), y, x);
}

static int walled_rope_grid(struct backend *backend, struct matrix y, const struct matrix axes[3],
                            int32_t h, int32_t w)
{
    own(backend, "rope_grid", y);
    for (int axis = 0; axis < 3; axis++)
        own(backend, "rope_grid", axes[axis]);
    return cpu_of(backend)->ops->rope_grid(cpu_of(backend), y, axes, h, w);
}

static int walled_fill(struct backend *backend, struct matrix y, uint64_t seed)
{
    own(backend, "fill", y);
    return cpu_of(backend)->ops->fill(cpu_of(backend), y, seed);
}

static int walled_pack_latent(struct backend *backend, struct matrix tokens, const float *latent,
                              int32_t h, int32_t w, int32_t channels)
{
    own(backend, "pack_latent", tokens);
    own_vector(backend, "pack_latent", latent, (int64_t)h * w * channels);
    return cpu_of(backend)->ops->pack_latent(cpu_of(backend), tokens, latent, h, w, channels);
}

static int walled_unpack_latent(struct backend *backend, float *latent, struct matrix tokens,
                                int32_t h, int32_t w, int32_t channels)
{
    own(backend, "unpack_latent", tokens);
    own_vector(backend, "unpack_latent", latent, (int64_t)h * w * channels);
    return cpu_of(backend)->ops->unpack_latent(cpu_of(backend), latent, tokens, h, w, channels);
}

static int walled_upload(struct backend *backend, struct matrix target, struct matrix source)
{
    int status;

    own(backend, "upload", target);
    if (target.ld != target.cols || !os_map_holds(source.data))
        return cpu_of(backend)->ops->upload(cpu_of(backend), target, source);
    status = host_read(source, target.dtype, target.data, 0);
    return status == 0 ? 0 : STATUS_READ + status;
}

static int walled_download(struct backend *backend, struct matrix target, struct matrix source)
{
    own(backend, "download", source);
    return cpu_of(backend)->ops->download(cpu_of(backend), target, source);
}

/* ----------------------------------------------------------------------------------- parcels */

static int walled_settle(struct backend *backend, uint32_t index)
{
    struct walled *walled = (struct walled *)backend;
    struct parcel *parcel = &backend->parcels->parcel[index];
    uint64_t       bytes = backend->parcels->sizes.bytes[index];
    bool           fits = bytes <= walled->pinned_left, made;
    int            status = parcels_take_shared(backend->parcels, index, fits, &made);

    if (made && fits) walled->pinned_left -= bytes;
    if (status != 0) return STATUS_READ + status;
    if (parcel->host != NULL || !fits) return 0;
    parcel->host = os.aligned_alloc(64, (size_t)bytes);
    if (parcel->host == NULL) return 0;
    walled->pinned_left -= bytes;
    status = parcels_read(parcel, 0, bytes, parcel->host, 0);
    return status == 0 ? 0 : STATUS_READ + status;
}

static int walled_arrive(struct backend *backend, uint32_t index)
{
    struct parcels      *parcels = backend->parcels;
    const struct parcel *parcel = &parcels->parcel[index];
    uint64_t             bytes = parcels->sizes.bytes[index];
    char                *slot = parcels->slots[index % PARCEL_SLOTS];
    int                  status = 0;

    backend->link.bytes += bytes;
    if (parcel->host != NULL)
        memcpy(slot, parcel->host, (size_t)bytes);
    else
        status = parcels_read(parcel, 0, bytes, slot, 0);
    return status == 0 ? 0 : STATUS_READ + status;
}

/* All ones are a NaN in every type. */
static int walled_depart(struct backend *backend, uint32_t index)
{
    struct parcels *parcels = backend->parcels;

    memset(parcels->slots[index % PARCEL_SLOTS], 0xff,
           (size_t)parcels->slot_bytes[index % PARCEL_SLOTS]);
    return 0;
}

static int open_arena(struct arena **out, const struct backend_options *options, uint64_t bytes,
                      struct err *err)
{
    bytes = max_u64(bytes, 64);
    return options->pool != NULL ? arena_open_in(out, options->pool, bytes, err)
                                 : arena_open(out, bytes, err);
}

static int open_ring(struct walled *walled, const struct backend_options *options, struct err *err)
{
    int             rc = ERR_OK;
    uint64_t        bytes = backend_ring_bytes(&options->parcels);
    struct parcels *parcels;

    TRY(parcels_open(&walled->base.parcels, err));
    if (bytes == 0) goto out;
    parcels = walled->base.parcels;
    walled->pinned_left = options->pinned_bytes;
    parcels_share(parcels, options->shared_fd);
    TRY(open_arena(&walled->ring, options, bytes, err));
    TRY(arena_seal(walled->ring, bytes, err));
    for (uint32_t slot = 0; slot < PARCEL_SLOTS; slot++) {
        parcels->slot_bytes[slot] = parcels_slot_bytes(&options->parcels, slot);
        parcels->slots[slot] = arena_take(walled->ring, parcels->slot_bytes[slot], "a slot");
        (void)memset(parcels->slots[slot], 0xff, (size_t)parcels->slot_bytes[slot]);
    }
out:
    return rc;
}

static void walled_close(struct backend *backend)
{
    struct parcels *parcels = backend->parcels;

    for (uint32_t i = 0; parcels != NULL && i < parcels->sizes.count; i++) {
        parcels_give_shared(parcels, i);
        os_free(parcels->parcel[i].host);
    }
    arena_close(((struct walled *)backend)->ring);
    backend_close(cpu_of(backend));
}

static const struct backend_ops walled_ops = {
    .linear = walled_linear,
    .attention = walled_attention,
    .conv2d = walled_conv2d,
    .qk_norm_rope = walled_qk_norm_rope,
    .layer_norm = walled_layer_norm,
    .rms_norm = walled_rms_norm,
    .group_stats = walled_group_stats,
    .group_merge = walled_group_merge,
    .group_apply = walled_group_apply,
    .add = walled_add,
    .gate_add = walled_gate_add,
    .gate_add_layer_norm = walled_gate_add_layer_norm,
    .gelu_mul = walled_gelu_mul,
    .silu = walled_silu,
    .gather_rows = walled_gather_rows,
    .affine = walled_affine,
    .copy = walled_copy,
    .rope_grid = walled_rope_grid,
    .fill = walled_fill,
    .pack_latent = walled_pack_latent,
    .unpack_latent = walled_unpack_latent,
    .upload = walled_upload,
    .download = walled_download,
    .settle = walled_settle,
    .arrive = walled_arrive,
    .depart = walled_depart,
    .close = walled_close,
};

static uint64_t walled_fixed(const struct backend_options *options)
{
    return cpu_needs.fixed(options);
}

const struct backend_needs walled_needs = {
    .distant = true, .vmem = &vmem_host, .fixed = walled_fixed};

int walled_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    int                    rc = ERR_OK;
    struct walled         *walled = NULL;
    struct backend_options inner = *options;

    inner.arena_limit_bytes = 64;
    TRY(os_alloc((void **)&walled, 1, sizeof *walled, "a backend", err));
    walled->base.ops = &walled_ops;
    walled->base.needs = &walled_needs;
    walled->base.compute = options->compute;
    walled->base.fixed_bytes = walled_fixed(options);
    walled->base.pulse = options->pulse;
    TRY(cpu_open(&walled->cpu, &inner, err));
    TRY(open_arena(&walled->base.arena, options, options->arena_limit_bytes, err));
    TRY(open_arena(&walled->base.kept_matrices, options, options->kept_matrix_bytes, err));
    TRY(open_arena(&walled->base.kept_vectors, options, options->kept_vector_bytes, err));
    if (options->kept_matrix_bytes > 0)
        TRY(arena_seal(walled->base.kept_matrices, options->kept_matrix_bytes, err));
    if (options->kept_vector_bytes > 0)
        TRY(arena_seal(walled->base.kept_vectors, options->kept_vector_bytes, err));
    TRY(open_ring(walled, options, err));
    *out = &walled->base;
    walled = NULL;
out:
    if (walled != NULL) backend_close(&walled->base);
    return rc;
}
