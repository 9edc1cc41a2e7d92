/*
 * cuda_linear.c - linear layers and wide attention on a GPU, as products.
 *
 * Owns the way from an operation's types to cuBLASLt's: operands are brought to the type that
 * products are formed in, the bias to the type of the result where the epilogue adds it, and what
 * no epilogue can do follows in a kernel.
 *
 * Scratch, in this order: x and w in the type of products where they have another, the bias in
 * bf16, an f32 result that is to be bf16, cuBLASLt's workspace.
 */
#include "backend/cuda_int.h"
#include "kernels/kernels_cuda.h"

/* ------------------------------------------------------------------------------------ linear */

static uint64_t cast_bytes(const struct backend *backend, struct matrix m)
{
    if (m.dtype == backend->compute) return 0;
    return (uint64_t)round_up_i64(m.rows * m.cols * dtype_bytes(backend->compute), 64);
}

/* cuBLASLt rounds no f32 product to bf16. */
static uint64_t result_bytes(const struct backend *backend, struct matrix y)
{
    return backend->compute == DTYPE_F32 ? cast_bytes(backend, y) : 0;
}

uint64_t cuda_linear_needs(const struct backend *backend, struct matrix y, struct matrix x,
                           struct matrix w, const float *bias, enum activation act)
{
    (void)bias;
    (void)act;
    return cast_bytes(backend, x) + cast_bytes(backend, w) +
           (uint64_t)round_up_i64(2 * y.cols, 64) + result_bytes(backend, y) + GEMM_SCRATCH_BYTES;
}

/* m, or a copy of it in the type of products. */
static int as_computed(struct cuda *cuda, struct matrix *m, struct workspace *scratch)
{
    struct matrix copy = *m;

    if (m->dtype == cuda->base.compute) return 0;
    copy.dtype = cuda->base.compute;
    copy.ld = m->cols;
    copy.data = scratch_take(scratch, cast_bytes(&cuda->base, *m));
    if (!cuda->base.rehearsing) {
        int status = k_cast_cuda(copy, *m, cuda->stream);
        if (status) return status;
    }
    *m = copy;
    return 0;
}

/* The bias in bf16: kept beside the vectors, or made now. */
static int bias_in_bf16(struct cuda *cuda, struct gemm_request *request, const float *bias,
                        struct workspace *scratch)
{
    int64_t       count = request->y.cols;
    struct matrix source = {(void *)(uintptr_t)bias, DTYPE_F32, 1, count, count}, copy = source;

    request->bias_kept = arena_holds(cuda->base.kept_vectors, bias, (uint64_t)count * sizeof *bias);
    if (request->bias_kept) {
        request->bias =
            (const char *)cuda->shadow_base + arena_offset(cuda->base.kept_vectors, bias) / 2;
        return 0;
    }
    copy.dtype = DTYPE_BF16;
    copy.data = scratch_take(scratch, (uint64_t)(2 * count));
    request->bias = copy.data;
    return cuda->base.rehearsing ? 0 : k_cast_cuda(copy, source, cuda->stream);
}

/* y, x, w and of_map are the request's; the rest is found here. */
static int run_linear(struct backend *backend, struct gemm_request request, const float *bias,
                      enum activation act)
{
    struct cuda        *cuda = cuda_of(backend);
    struct workspace    scratch = backend->scratch;
    const struct matrix y = request.y;
    bool in_epilogue = bias != NULL && y.dtype == DTYPE_BF16 && backend->compute == DTYPE_BF16 &&
                       (act == ACT_NONE || act == ACT_GELU_TANH);

    if (y.rows == 0) return 0;
    int status = as_computed(cuda, &request.x, &scratch);
    if (!status) status = as_computed(cuda, &request.w, &scratch);
    request.w_kept = arena_holds(backend->kept_matrices, request.w.data, 1) ||
                     ring_holds(cuda->ring, request.w.data);
    if (!status && in_epilogue) {
        status = bias_in_bf16(cuda, &request, bias, &scratch);
        request.act = act;
    }
    if (result_bytes(backend, y) > 0) {
        request.y.data = scratch_take(&scratch, result_bytes(backend, y));
        request.y.dtype = DTYPE_F32;
        request.y.ld = y.cols;
    }
    request.workspace = workspace_of(scratch);
    if (!status) status = gemm_run(&cuda->gemm, &request, backend->rehearsing, cuda->stream);
    if (status || backend->rehearsing) return status;
    if (!in_epilogue && (bias != NULL || act != ACT_NONE))
        status = k_bias_act_cuda(request.y, bias, act, cuda->stream);
    if (!status && request.y.data != y.data) status = k_cast_cuda(y, request.y, cuda->stream);
    return status;
}

int cuda_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                const float *bias, enum activation act)
{
    return run_linear(backend, (struct gemm_request){.y = y, .x = x, .w = w}, bias, act);
}

int cuda_map_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                    const float *bias)
{
    return run_linear(backend, (struct gemm_request){.y = y, .x = x, .w = w, .of_map = true}, bias,
                      ACT_NONE);
}

/* ---------------------------------------------------------------------------- wide attention */

/* Heads too wide for fused kernels: bands of queries, whose scores over all keys are held at once,
 * f32, and then as weights.  A band's scores are at most this long: the VAE's middle, over the
 * 65,536 cells of 2048 x 2048 px, then takes less than its convolutions do. */
#define SCORES_BYTES ((int64_t)128 << 20)

static bool is_wide(const struct attention_request *request)
{
    return request->dim > 256 && !request->causal && request->bias == NULL;
}

/* Whole tiles of the products, and the same for every band but the last. */
static int64_t band_rows(const struct attention_request *request)
{
    int64_t rows = SCORES_BYTES / (request->k.rows * (int64_t)sizeof(float)) / 128 * 128;

    return min_i64(max_i64(rows, 128), request->q.rows);
}

uint64_t cuda_attention_needs(const struct backend           *backend,
                              const struct attention_request *request)
{
    int64_t count = band_rows(request) * round_up_i64(request->k.rows, 8);

    if (!is_wide(request)) return GRAPH_SCRATCH_BYTES;
    return (uint64_t)(round_up_i64(count * (int64_t)sizeof(float), 64) +
                      round_up_i64(count * dtype_bytes(backend->compute), 64)) +
           GEMM_SCRATCH_BYTES;
}

static int wide_band(struct cuda *cuda, const struct gemm_request *scores,
                     const struct gemm_request *mix, float scale)
{
    bool rehearsing = cuda->base.rehearsing;
    int  status = gemm_run(&cuda->gemm, scores, rehearsing, cuda->stream);

    if (!status && !rehearsing)
        status = k_softmax_rows_cuda(mix->x, scores->y, scale, cuda->stream);
    return status ? status : gemm_run(&cuda->gemm, mix, rehearsing, cuda->stream);
}

static int wide_attention(struct cuda *cuda, const struct attention_request *request)
{
    struct workspace scratch = cuda->base.scratch;
    int64_t          keys = request->k.rows, rows = band_rows(request), ld = round_up_i64(keys, 8);
    enum dtype       compute = cuda->base.compute;
    struct matrix    scores = {.dtype = DTYPE_F32, .rows = rows, .cols = keys, .ld = ld};
    struct matrix    weights = {.dtype = compute, .rows = rows, .cols = keys, .ld = ld};
    int              status = 0;

    scores.data = scratch_take(&scratch, (uint64_t)(rows * ld) * sizeof(float));
    weights.data = scratch_take(&scratch, (uint64_t)(rows * ld) * dtype_bytes(compute));
    scratch = workspace_of(scratch);
    for (int32_t head = 0; head < request->heads && !status; head++)
        for (int64_t row = 0; row < request->q.rows && !status; row += rows) {
            int64_t count = min_i64(rows, request->q.rows - row), col = head * request->dim;
            struct gemm_request first = {
                .y = matrix_rows(scores, 0, count),
                .x = matrix_cols(matrix_rows(request->q, row, count), col, request->dim),
                .w = matrix_cols(request->k, col, request->dim),
                .fixed_rows = true,
                .workspace = scratch};
            struct gemm_request second = {
                .y = matrix_cols(matrix_rows(request->out, row, count), col, request->dim),
                .x = matrix_rows(weights, 0, count),
                .w = matrix_cols(request->v, col, request->dim),
                .plain = true,
                .fixed_rows = true,
                .workspace = scratch};
            status = wide_band(cuda, &first, &second, request->scale);
        }
    return status;
}

int cuda_attention(struct backend *backend, const struct attention_request *request)
{
    struct cuda *cuda = cuda_of(backend);
    bool typed = request->q.dtype == backend->compute && request->k.dtype == backend->compute &&
                 request->v.dtype == backend->compute && request->out.dtype == backend->compute;

    if (request->q.rows == 0 || request->k.rows == 0) return 0;
    if (typed && is_wide(request)) return wide_attention(cuda, request);
    if (!k_attention_hopper_fits(request, backend->compute) && cuda->graphs != NULL &&
        graphs_attention_fits(cuda->graphs, request))
        return graphs_attention(cuda->graphs, request, backend->scratch, backend->rehearsing,
                                cuda->stream);
    if (backend->rehearsing) return 0;
    return k_attention_cuda(request, backend->compute, cuda->stream);
}
