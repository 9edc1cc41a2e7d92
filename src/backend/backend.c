/*
 * backend.c - the one place where an operation is counted, performed and its failure kept.
 *
 * Owns nothing but the bookkeeping of struct backend; the arithmetic is behind its ops table.  The
 * dry backend lives here too: it is the absence of an ops table.
 *
 * Read next: backend_cpu.c.
 */
#include "backend/backend_int.h"

int backend_open_dry(struct backend **out, const struct backend_options *options, struct err *err)
{
    int             rc = ERR_OK;
    struct backend *backend = NULL;
    uint32_t        threads = options->threads == 0 ? os_cpu_count() : options->threads;

    TRY(os_alloc((void **)&backend, 1, sizeof *backend, "a backend", err));
    TRY(arena_open_dry(&backend->arena, err));
    backend->compute = options->compute;
    backend->fixed_bytes = kernels_workspace_bytes(threads, options->conv_weight_elements_max);
    *out = backend;
    backend = NULL;
out:
    os_free(backend);
    return rc;
}

void backend_close(struct backend *backend)
{
    if (backend == NULL) return;
    if (backend->ops != NULL) backend->ops->close(backend);
    arena_close(backend->arena);
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
    int  rc = ERR_OK, status = backend->status;
    char words[128] = "";

    backend->status = 0;
    if (status == 0) goto out;
    if (backend->ops->describe != NULL) backend->ops->describe(status, words, sizeof words);
    RAISE(err, ERR_DEVICE, status, "%s failed with status %d%s%s", backend->failed_op, status,
          words[0] != '\0' ? ": " : "", words);
out:
    return rc;
}

struct matrix backend_take(struct backend *backend, enum dtype dtype, int64_t rows, int64_t cols,
                           const char *label)
{
    uint64_t bytes = 0;

    must(rows >= 0 && cols >= 0);
    must(mul_u64((uint64_t)rows, (uint64_t)cols, &bytes) &&
         mul_u64(bytes, dtype_bytes(dtype), &bytes));
    return (struct matrix){.data = arena_take(backend->arena, bytes, label),
                           .dtype = dtype,
                           .rows = rows,
                           .cols = cols,
                           .ld = cols};
}

/* One writer, so the order against other memory does not matter. */
static void beat(struct backend *backend)
{
    if (backend->pulse != NULL) (void)__atomic_fetch_add(backend->pulse, 1, __ATOMIC_RELAXED);
}

/* Runs one operation unless this backend is dry or an earlier operation failed. */
#define PERFORM(op, ...)                                                                           \
    do {                                                                                           \
        if (backend->ops == NULL || backend->status != 0) break;                                   \
        backend->status = backend->ops->op(backend, __VA_ARGS__);                                  \
        if (backend->status != 0) backend->failed_op = #op;                                        \
        beat(backend);                                                                             \
    } while (0)

static bool same_shape(struct matrix a, struct matrix b)
{
    return a.rows == b.rows && a.cols == b.cols;
}

void backend_upload(struct backend *backend, struct matrix target, const float *source)
{
    struct matrix from = {.data = (void *)(uintptr_t)source,
                          .dtype = DTYPE_F32,
                          .rows = target.rows,
                          .cols = target.cols,
                          .ld = target.cols};
    PERFORM(copy, target, from);
}

void backend_download(struct backend *backend, float *target, struct matrix source)
{
    struct matrix to = {.data = target,
                        .dtype = DTYPE_F32,
                        .rows = source.rows,
                        .cols = source.cols,
                        .ld = source.cols};
    PERFORM(copy, to, source);
}

void backend_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                    const float *bias, enum activation act)
{
    must(y.rows == x.rows && y.cols == w.rows && x.cols == w.cols);
    backend->flops += 2.0 * (double)y.rows * (double)y.cols * (double)x.cols;
    PERFORM(linear, y, x, w, bias, act);
}

void backend_attention(struct backend *backend, const struct attention_request *request)
{
    must(request->q.cols == (int64_t)request->heads * request->dim);
    must(same_shape(request->q, request->out) && same_shape(request->k, request->v));
    must(request->k.cols == request->q.cols);
    backend->flops +=
        4.0 * (double)request->q.rows * (double)request->k.rows * (double)request->q.cols;
    PERFORM(attention, request);
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
    PERFORM(conv2d, request);
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
