/*
 * backend_cuda.c - the operations on an NVIDIA GPU: each one puts its kernel on the one stream.
 *
 * Owns the stream, the arenas of device memory and what the libraries need.  Everything is
 * asynchronous but downloads and waits; the first failure of a launch is kept by backend.c, a
 * failure on the device is met at the next wait.
 *
 * Memory: scratch, kept matrices and kept vectors are arenas over reserved addresses
 * (vmem_cuda.c); the vectors have a shadow, the same numbers in bf16 at half their offsets, because
 * the epilogue that adds a bias to bf16 wants it in bf16, and neighbours must stay neighbours.
 *
 * Read next: cuda_ring.c, cuda_linear.c, cuda_conv.c, cuda_gemm.c, cuda_graph.c.
 */
#include "backend/cuda_int.h"
#include "kernels/kernels_cuda.h"

#include <omp.h>
#include <stdio.h>
#include <string.h>

/* ------------------------------------------------------------------------------- operations */

static int cuda_qk_norm_rope(struct backend *backend, const struct qk_rope_request *request)
{
    return k_qk_norm_rope_cuda(request, cuda_of(backend)->stream);
}

static int cuda_layer_norm(struct backend *backend, struct matrix y, struct matrix x,
                           const float *scale, const float *shift, bool scale_plus_one, float eps)
{
    return k_layer_norm_cuda(y, x, scale, shift, scale_plus_one, eps, cuda_of(backend)->stream);
}

static int cuda_rms_norm(struct backend *backend, struct matrix y, struct matrix x,
                         const float *weight, float eps)
{
    return k_rms_norm_cuda(y, x, weight, eps, cuda_of(backend)->stream);
}

static int cuda_group_stats(struct backend *backend, struct matrix stats, struct matrix x)
{
    return k_group_stats_cuda(stats, x, cuda_of(backend)->stream);
}

static int cuda_group_merge(struct backend *backend, struct matrix table, struct matrix stats,
                            const float *weight, int64_t run_rows, int32_t groups, float eps)
{
    return k_group_merge_cuda(table, stats, weight, run_rows, groups, eps,
                              cuda_of(backend)->stream);
}

static int cuda_group_apply(struct backend *backend, struct matrix y, struct matrix x,
                            struct matrix table, const float *bias, bool silu)
{
    return k_group_apply_cuda(y, x, table, bias, silu, cuda_of(backend)->stream);
}

static int cuda_add(struct backend *backend, struct matrix x, struct matrix y)
{
    return k_add_cuda(x, y, cuda_of(backend)->stream);
}

static int cuda_gate_add(struct backend *backend, struct matrix x, struct matrix y,
                         const float *gate)
{
    return k_gate_add_cuda(x, y, gate, cuda_of(backend)->stream);
}

static int cuda_gate_add_layer_norm(struct backend                 *backend,
                                    const struct gate_norm_request *request)
{
    return k_gate_add_layer_norm_cuda(request, cuda_of(backend)->stream);
}

static int cuda_gelu_mul(struct backend *backend, struct matrix y, struct matrix a, struct matrix b)
{
    return k_gelu_mul_cuda(y, a, b, cuda_of(backend)->stream);
}

static int cuda_silu(struct backend *backend, struct matrix y, struct matrix x)
{
    return k_silu_cuda(y, x, cuda_of(backend)->stream);
}

static int cuda_affine(struct backend *backend, struct matrix y, struct matrix x, float mul,
                       float add)
{
    return k_affine_cuda(y, x, mul, add, cuda_of(backend)->stream);
}

static int cuda_copy(struct backend *backend, struct matrix y, struct matrix x)
{
    return k_cast_cuda(y, x, cuda_of(backend)->stream);
}

static int cuda_rope_grid(struct backend *backend, struct matrix y, const struct matrix axes[3],
                          int32_t h, int32_t w)
{
    return k_rope_grid_cuda(y, axes, h, w, cuda_of(backend)->stream);
}

static int cuda_fill(struct backend *backend, struct matrix y, uint64_t seed)
{
    return k_fill_cuda(y, seed, cuda_of(backend)->stream);
}

static int cuda_pack_latent(struct backend *backend, struct matrix tokens, const float *latent,
                            int32_t h, int32_t w, int32_t channels)
{
    return k_pack_latent_cuda(tokens, latent, h, w, channels, cuda_of(backend)->stream);
}

static int cuda_unpack_latent(struct backend *backend, float *latent, struct matrix tokens,
                              int32_t h, int32_t w, int32_t channels)
{
    return k_unpack_latent_cuda(latent, tokens, h, w, channels, cuda_of(backend)->stream);
}

/* ----------------------------------------------------------------------------------- copies */

static int put(struct backend *backend, struct matrix target, struct matrix source)
{
    struct cuda *cuda = cuda_of(backend);
    uint64_t     bytes = (uint64_t)target.cols * sizeof(float);
    int          status = cuda_upload(&cuda->staging, cuda->stream, target, source);

    backend->uploads = cuda->staging.uploads;
    if (status || target.rows != 1 || !arena_holds(backend->kept_vectors, target.data, bytes))
        return status;
    struct matrix shadow = target;
    shadow.dtype = DTYPE_BF16;
    shadow.data = cuda->shadow_base + arena_offset(backend->kept_vectors, target.data) / 2;
    return k_cast_cuda(shadow, target, cuda->stream);
}

static int get(struct backend *backend, struct matrix target, struct matrix source)
{
    struct cuda *cuda = cuda_of(backend);

    return cuda_download(&cuda->staging, cuda->stream, target, source);
}

static void pin(struct backend *backend, const void *data, uint64_t bytes)
{
    cuda_staging_pin(&cuda_of(backend)->staging,
                     (struct pinned_range){(void *)(uintptr_t)data, bytes, .quiet = true});
}

static void unpin(struct backend *backend, const void *data)
{
    cuda_staging_unpin(&cuda_of(backend)->staging, cuda_of(backend)->stream, data);
}

/* A table is read once a prompt and only a few rows of it: those are picked on this side. */
static int cuda_gather_rows(struct backend *backend, struct matrix y, struct matrix table,
                            const int32_t *ids)
{
    int status = 0;

    for (int64_t row = 0; row < y.rows && !status; row++) {
        must(ids[row] >= 0 && ids[row] < table.rows);
        status = put(backend, matrix_rows(y, row, 1), matrix_rows(table, ids[row], 1));
    }
    return status;
}

/* ----------------------------------------------------------------------------------- status */

/* The runtime is asked what failed last in any case: told here, it must not be told again by the
 * next launch. */
static int wait(struct backend *backend)
{
    struct cuda *cuda = cuda_of(backend);
    int          status = (int)cudaStreamSynchronize(cuda->stream), late;

    if (!status && cuda->ring != NULL) status = ring_wait(cuda->ring, &backend->link);
    late = (int)cudaGetLastError();
    return status ? status : late;
}

/* ---------------------------------------------------------------------------------- parcels */

static int cuda_settle(struct backend *backend, uint32_t parcel)
{
    return ring_settle(cuda_of(backend)->ring, parcel);
}

static int cuda_arrive(struct backend *backend, uint32_t parcel)
{
    return ring_arrive(cuda_of(backend)->ring, parcel, cuda_of(backend)->stream);
}

static int cuda_depart(struct backend *backend, uint32_t parcel)
{
    return ring_depart(cuda_of(backend)->ring, parcel, cuda_of(backend)->stream);
}

static bool lacks_memory(int status)
{
    if (status >= STATUS_CUDNN && status < STATUS_NO_PLAN)
        return graphs_lack_memory(status - STATUS_CUDNN);
    if (status >= STATUS_CUBLAS && status < STATUS_CUDNN)
        return gemm_lacks_memory(status - STATUS_CUBLAS);
    return status == (int)cudaErrorMemoryAllocation;
}

static const char *words_of(const struct cuda *cuda, int status)
{
    if (status == STATUS_NO_PLAN) return "no plan fits the workspace";
    if (status >= STATUS_CUDNN) return graphs_words(cuda->graphs, status - STATUS_CUDNN);
    if (status >= STATUS_CUBLAS)
        return cuda->gemm.calls.cublasLtGetStatusString((cublasStatus_t)(status - STATUS_CUBLAS));
    return cudaGetErrorString((cudaError_t)status);
}

static void describe_status(const struct backend *backend, int status, char *text_out,
                            size_t capacity)
{
    const struct cuda *cuda = (const struct cuda *)backend;
    char               total[32];

    (void)snprintf(text_out, capacity, "%.60s on GPU %d (%.40s, %s)", words_of(cuda, status),
                   cuda->device, cuda->facts.name,
                   text_bytes(total, sizeof total, cuda->facts.bytes_total));
}

/* ------------------------------------------------------------------------------------- open */

static void close_cuda(struct backend *backend)
{
    struct cuda *cuda = cuda_of(backend);

    if (cuda->stream != NULL) (void)cudaStreamSynchronize(cuda->stream);
    ring_close(cuda->ring);
    graphs_close(cuda->graphs);
    gemm_close(&cuda->gemm);
    cuda_staging_close(&cuda->staging);
    arena_close(cuda->shadow);
    if (cuda->stream != NULL) (void)cudaStreamDestroy(cuda->stream);
}

static const struct backend_ops cuda_ops = {
    .linear = cuda_linear,
    .attention = cuda_attention,
    .conv2d = cuda_conv2d,
    .qk_norm_rope = cuda_qk_norm_rope,
    .layer_norm = cuda_layer_norm,
    .rms_norm = cuda_rms_norm,
    .group_stats = cuda_group_stats,
    .group_merge = cuda_group_merge,
    .group_apply = cuda_group_apply,
    .add = cuda_add,
    .gate_add = cuda_gate_add,
    .gate_add_layer_norm = cuda_gate_add_layer_norm,
    .gelu_mul = cuda_gelu_mul,
    .silu = cuda_silu,
    .gather_rows = cuda_gather_rows,
    .affine = cuda_affine,
    .copy = cuda_copy,
    .rope_grid = cuda_rope_grid,
    .fill = cuda_fill,
    .pack_latent = cuda_pack_latent,
    .unpack_latent = cuda_unpack_latent,
    .upload = put,
    .download = get,
    .pin = pin,
    .unpin = unpin,
    .settle = cuda_settle,
    .arrive = cuda_arrive,
    .depart = cuda_depart,
    .wait = wait,
    .lacks_memory = lacks_memory,
    .describe = describe_status,
    .close = close_cuda,
};

/* What a context and the libraries load onto the card beside the arenas: an H100 with CUDA 13.0 and
 * cuDNN 9.19 showed 546 MB more than its arenas were allowed. */
#define LIBRARIES_BYTES ((uint64_t)576 << 20)

static uint64_t cuda_fixed(const struct backend_options *options)
{
    (void)options;
    return LIBRARIES_BYTES;
}

const struct backend_needs cuda_needs = {.distant = true,
                                         .vmem = &vmem_cuda,
                                         .fixed = cuda_fixed,
                                         .linear = cuda_linear_needs,
                                         .attention = cuda_attention_needs,
                                         .conv2d = cuda_conv2d_needs};

static int open_arena(struct arena **out, const struct backend_options *options, uint64_t bytes,
                      struct err *err)
{
    return options->pool != NULL ? arena_open_in(out, options->pool, bytes, err)
                                 : arena_open_on(out, &vmem_cuda, options->device, bytes, err);
}

static int open_arenas(struct cuda *cuda, const struct backend_options *options, struct err *err)
{
    int             rc = ERR_OK;
    struct backend *base = &cuda->base;
    uint64_t        matrices = max_u64(options->kept_matrix_bytes, 64);
    uint64_t        vectors = max_u64(options->kept_vector_bytes, 64);

    TRY(open_arena(&base->arena, options, options->arena_limit_bytes, err));
    TRY(open_arena(&base->kept_matrices, options, matrices, err));
    TRY(open_arena(&base->kept_vectors, options, vectors, err));
    TRY(open_arena(&cuda->shadow, options, vectors / 2 + 64, err));
    if (options->kept_matrix_bytes > 0) TRY(arena_seal(base->kept_matrices, matrices, err));
    if (options->kept_vector_bytes > 0) TRY(arena_seal(base->kept_vectors, vectors, err));
    TRY(arena_seal(cuda->shadow, vectors / 2 + 64, err));
    cuda->shadow_base = arena_take(cuda->shadow, vectors / 2 + 64, "bf16 vectors");
out:
    return rc;
}

/* To do without it where it is would be to paint other bits than the next process, or the next run,
 * with which it starts. */
static int open_graphs(struct cuda *cuda, struct err *err)
{
    int  rc = ERR_OK;
    char why[160];
    int  status = graphs_open(&cuda->graphs, why, sizeof why);

    if (status != 0)
        RAISE(err, graphs_lack_memory(status) ? ERR_DEVICE_MEM : ERR_DEVICE, status,
              "device: cuDNN cannot be used on GPU %d (%.40s): %s; where it is not memory that it "
              "lacks, repair or remove it",
              cuda->device, cuda->facts.name, why);
    if (cuda->graphs == NULL)
        log_line(LOG_WARN,
                 "cuDNN is not used (%s): attention and convolutions run on mural's own "
                 "kernels, which are slower",
                 why);
out:
    return rc;
}

int cuda_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    int           rc = ERR_OK, status;
    enum err_code code = ERR_DEVICE;
    struct cuda  *cuda = NULL;

    TRY(os_alloc((void **)&cuda, 1, sizeof *cuda, "a backend", err));
    cuda->base.ops = &cuda_ops;
    cuda->base.needs = &cuda_needs;
    cuda->base.compute = options->compute;
    cuda->base.fixed_bytes = cuda_fixed(options);
    cuda->base.pulse = options->pulse;
    cuda->device = options->device;
    (void)cudaGetLastError(); /* what failed before was told then: launches would say it again */
    TRY(backend_find_cuda(&cuda->facts, options->device, err));
    TRY(gemm_open(&cuda->gemm, cuda->facts.numeric, err));
    status = (int)cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
    if (status == 0) status = cuda_staging_open(&cuda->staging);
    if (status == (int)cudaErrorMemoryAllocation)
        code = cuda_is_full() ? ERR_DEVICE_MEM : ERR_HOST_MEM;
    if (status != 0)
        RAISE(err, code, status, "device: no stream or pinned memory for GPU %d (%s): %s",
              cuda->device, cuda->facts.name, cudaGetErrorString((cudaError_t)status));
    cuda_staging_pin(&cuda->staging,
                     (struct pinned_range){options->exchange, options->exchange_bytes, false});
    TRY(open_arenas(cuda, options, err));
    TRY(parcels_open(&cuda->base.parcels, err));
    TRY(ring_open(&cuda->ring, cuda->base.parcels, options, err));
    if (options->compute == DTYPE_BF16) TRY(open_graphs(cuda, err));
    if (options->threads > 0) omp_set_num_threads((int)options->threads);
    *out = &cuda->base;
    cuda = NULL;
out:
    if (cuda != NULL) backend_close(&cuda->base);
    return rc;
}
