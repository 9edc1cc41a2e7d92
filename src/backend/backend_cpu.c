/*
 * backend_cpu.c - the operations on this machine's processor: each one calls its kernel.
 *
 * Owns the workspace that the kernels use during a call.  Everything has happened when a call
 * returns, so waiting is free.
 */
#include "backend/backend_int.h"

#include <omp.h>

static int cpu_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                      const float *bias, enum activation act)
{
    return k_linear_cpu(y, x, w, bias, act, backend->compute, backend->workspace);
}

static int cpu_attention(struct backend *backend, const struct attention_request *request)
{
    return k_attention_cpu(request, backend->compute, backend->workspace);
}

static int cpu_qk_norm_rope(struct backend *backend, const struct qk_rope_request *request)
{
    (void)backend;
    k_qk_norm_rope_cpu(request);
    return 0;
}

static int cpu_layer_norm(struct backend *backend, struct matrix y, struct matrix x,
                          const float *scale, const float *shift, bool scale_plus_one, float eps)
{
    (void)backend;
    k_layer_norm_cpu(y, x, scale, shift, scale_plus_one, eps);
    return 0;
}

static int cpu_rms_norm(struct backend *backend, struct matrix y, struct matrix x,
                        const float *weight, float eps)
{
    (void)backend;
    k_rms_norm_cpu(y, x, weight, eps);
    return 0;
}

static int cpu_group_stats(struct backend *backend, struct matrix stats, struct matrix x)
{
    (void)backend;
    k_group_stats_cpu(stats, x);
    return 0;
}

static int cpu_group_merge(struct backend *backend, struct matrix table, struct matrix stats,
                           const float *weight, int64_t run_rows, int32_t groups, float eps)
{
    (void)backend;
    k_group_merge_cpu(table, stats, weight, run_rows, groups, eps);
    return 0;
}

static int cpu_group_apply(struct backend *backend, struct matrix y, struct matrix x,
                           struct matrix table, const float *bias, bool silu)
{
    (void)backend;
    k_group_apply_cpu(y, x, table, bias, silu);
    return 0;
}

static int cpu_add(struct backend *backend, struct matrix x, struct matrix y)
{
    (void)backend;
    k_add_cpu(x, y);
    return 0;
}

static int cpu_gate_add(struct backend *backend, struct matrix x, struct matrix y,
                        const float *gate)
{
    (void)backend;
    k_gate_add_cpu(x, y, gate);
    return 0;
}

static int cpu_gate_add_layer_norm(struct backend *backend, const struct gate_norm_request *request)
{
    (void)backend;
    k_gate_add_layer_norm_cpu(request);
    return 0;
}

static int cpu_gelu_mul(struct backend *backend, struct matrix y, struct matrix a, struct matrix b)
{
    (void)backend;
    k_gelu_mul_cpu(y, a, b);
    return 0;
}

static int cpu_silu(struct backend *backend, struct matrix y, struct matrix x)
{
    (void)backend;
    k_silu_cpu(y, x);
    return 0;
}

static int cpu_gather_rows(struct backend *backend, struct matrix y, struct matrix table,
                           const int32_t *ids)
{
    (void)backend;
    k_gather_rows_cpu(y, table, ids);
    return 0;
}

static int cpu_affine(struct backend *backend, struct matrix y, struct matrix x, float mul,
                      float add)
{
    (void)backend;
    k_affine_cpu(y, x, mul, add);
    return 0;
}

static int cpu_copy(struct backend *backend, struct matrix y, struct matrix x)
{
    (void)backend;
    k_cast_cpu(y, x);
    return 0;
}

static int cpu_rope_grid(struct backend *backend, struct matrix y, const struct matrix axes[3],
                         int32_t h, int32_t w)
{
    (void)backend;
    k_rope_grid_cpu(y, axes, h, w);
    return 0;
}

static int cpu_fill(struct backend *backend, struct matrix y, uint64_t seed)
{
    (void)backend;
    k_fill_cpu(y, seed);
    return 0;
}

static int cpu_conv2d(struct backend *backend, const struct conv_request *request)
{
    return k_conv2d_cpu(request, backend->compute, backend->workspace);
}

static int cpu_pack_latent(struct backend *backend, struct matrix tokens, const float *latent,
                           int32_t h, int32_t w, int32_t channels)
{
    (void)backend;
    k_pack_latent_cpu(tokens, latent, h, w, channels);
    return 0;
}

static int cpu_unpack_latent(struct backend *backend, float *latent, struct matrix tokens,
                             int32_t h, int32_t w, int32_t channels)
{
    (void)backend;
    k_unpack_latent_cpu(latent, tokens, h, w, channels);
    return 0;
}

static void cpu_close(struct backend *backend)
{
    os_free(backend->workspace.data);
}

static const struct backend_ops cpu_ops = {
    .linear = cpu_linear,
    .attention = cpu_attention,
    .qk_norm_rope = cpu_qk_norm_rope,
    .layer_norm = cpu_layer_norm,
    .rms_norm = cpu_rms_norm,
    .group_stats = cpu_group_stats,
    .group_merge = cpu_group_merge,
    .group_apply = cpu_group_apply,
    .add = cpu_add,
    .gate_add = cpu_gate_add,
    .gate_add_layer_norm = cpu_gate_add_layer_norm,
    .gelu_mul = cpu_gelu_mul,
    .silu = cpu_silu,
    .gather_rows = cpu_gather_rows,
    .affine = cpu_affine,
    .copy = cpu_copy,
    .rope_grid = cpu_rope_grid,
    .fill = cpu_fill,
    .upload = cpu_copy,
    .download = cpu_copy,
    .conv2d = cpu_conv2d,
    .pack_latent = cpu_pack_latent,
    .unpack_latent = cpu_unpack_latent,
    .close = cpu_close,
};

static uint64_t cpu_fixed(const struct backend_options *options)
{
    uint32_t threads = options->threads == 0 ? os_cpu_count() : options->threads;

    return kernels_workspace_bytes(threads, options->conv_weight_elements_max);
}

const struct backend_needs cpu_needs = {.fixed = cpu_fixed};

int cpu_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    int             rc = ERR_OK;
    struct backend *backend = NULL;
    uint32_t        threads = options->threads == 0 ? os_cpu_count() : options->threads;
    uint64_t        bytes = cpu_fixed(options);

    TRY(os_alloc((void **)&backend, 1, sizeof *backend, "a backend", err));
    backend->ops = &cpu_ops;
    backend->needs = &cpu_needs;
    backend->compute = options->compute;
    backend->fixed_bytes = bytes;
    backend->pulse = options->pulse;
    TRY(arena_open(&backend->arena, options->arena_limit_bytes, err));
    backend->workspace.bytes = bytes;
    backend->workspace.data = os.aligned_alloc(64, (size_t)round_up_i64((int64_t)bytes, 64));
    if (backend->workspace.data == NULL)
        RAISE(err, ERR_HOST_MEM, 0, "memory: no %llu bytes for the CPU's workspace",
              (unsigned long long)bytes);
    omp_set_num_threads((int)threads);
    *out = backend;
    backend = NULL;
out:
    backend_close(backend);
    return rc;
}
