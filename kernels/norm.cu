/*
 * norm.cu - the twin of norm.c: layer, RMS and group norm, and the step between two layers of a
 * transformer in one pass.
 *
 * A row of a row norm belongs to one warp or one block and stays in registers between its sums and
 * its result, up to KEEP vectors a thread; longer rows are read again.  Group norm reads the map
 * twice, as the CPU does: runs of rows leave a mean and a sum of squared deviations per channel, a
 * small kernel merges them in double precision, and the last pass writes.  How rows are cut depends
 * on the shape alone, so the result is the same on every machine.
 *
 * Read next: attention.cu.
 */
#include "kernels/device.cuh"

/* -------------------------------------------------------------------------------- row norms */

enum row_kind { LAYER, RMS, GATED };
enum { KEEP = 4, ACROSS_MAX = 512, WARPS_OF_SHORT_ROWS = 4 };

struct row_norm {
    struct matrix out, x;
    struct matrix branch;               /* GATED: x is f32 and becomes x + gate * branch first */
    const float  *gate, *scale, *shift; /* [cols]; shift not for RMS, gate for GATED */
    float         one;                  /* added to scale */
    float         eps;
};

/* Sum over the threads of a row: a warp, or the whole block. */
DEVICE float sum_row(float value, float *of_warps)
{
    value = sum_lanes(value, 32);
    if (blockDim.x == 32) return value;
    __syncthreads(); /* the sum before has been read */
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    return sum_lanes(threadIdx.x % 32 < blockDim.x / 32 ? of_warps[threadIdx.x % 32] : 0.0f, 32);
}

/* What the norm is taken of, V values at `col`; GATED makes it, and stores it. */
template <int V>
DEVICE void add_gated(float (&value)[V], const float (&branch)[V], const struct row_norm &n,
                      int64_t row, int col)
{
    float gate[V];

    load_some<V>(gate, n.gate + col, V);
#pragma unroll
    for (int i = 0; i < V; i++)
        value[i] += gate[i] * branch[i];
    store_some<V>(row_at<float>(n.x, row) + col, value, V);
}

/* The pieces of a row that this thread has: `piece` counts them, `col` is where one starts. */
#define EACH_PIECE(piece, col)                                                                     \
    for (int piece = 0, col = V * (int)threadIdx.x; KEPT ? piece < KEEP : col < cols;              \
         piece++, col += V * (int)blockDim.x)                                                      \
        if (col < cols)

/* cols is a multiple of V. */
template <int KIND, typename Y, typename X, typename B, int V, bool KEPT>
static __global__ void __launch_bounds__(ACROSS_MAX) row_norm_kernel(const struct row_norm n)
{
    __shared__ float of_warps[32];
    const int cols = (int)n.x.cols;
    constexpr int UNROLL = KEPT ? KEEP : 1;

    wait_for_last();
    for (int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; row < n.x.rows;
         row += (int64_t)gridDim.x * blockDim.y) {
        float kept[UNROLL][V], branch[UNROLL][V], sum = 0.0f, squares = 0.0f, mean = 0.0f;

        /* All loads before the first store, which they may not pass. */
        if (KEPT) {
#pragma unroll UNROLL
            EACH_PIECE (piece, col) {
                load_some<V>(kept[piece], row_at<X>(n.x, row) + col, V);
                if (KIND == GATED) load_some<V>(branch[piece], row_at<B>(n.branch, row) + col, V);
            }
        }
#pragma unroll UNROLL
        EACH_PIECE (piece, col) {
            float(&value)[V] = kept[KEPT ? piece : 0], (&added)[V] = branch[KEPT ? piece : 0];
            if (!KEPT) load_some<V>(value, row_at<X>(n.x, row) + col, V);
            if (!KEPT && KIND == GATED) load_some<V>(added, row_at<B>(n.branch, row) + col, V);
            if (KIND == GATED) add_gated<V>(value, added, n, row, col);
#pragma unroll
            for (int i = 0; i < V; i++)
                sum += KIND == RMS ? value[i] * value[i] : value[i];
        }
        squares = sum = sum_row(sum, of_warps);
        if (KIND != RMS) {
            mean = sum / (float)cols;
            squares = 0.0f;
#pragma unroll UNROLL
            EACH_PIECE (piece, col) {
                float(&value)[V] = kept[KEPT ? piece : 0];
                if (!KEPT) load_some<V>(value, row_at<X>(n.x, row) + col, V);
#pragma unroll
                for (int i = 0; i < V; i++)
                    squares += (value[i] - mean) * (value[i] - mean);
            }
            squares = sum_row(squares, of_warps);
        }
        const float inverse = 1.0f / sqrtf(squares / (float)cols + n.eps);
#pragma unroll UNROLL
        EACH_PIECE (piece, col) {
            float(&value)[V] = kept[KEPT ? piece : 0];
            float scale[V], shift[V];
            if (!KEPT) load_some<V>(value, row_at<X>(n.x, row) + col, V);
            load_some<V>(scale, n.scale + col, V);
            if (KIND != RMS) load_some<V>(shift, n.shift + col, V);
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (KIND == RMS)
                    value[i] = value[i] * inverse * scale[i];
                else
                    value[i] = (value[i] - mean) * inverse * (n.one + scale[i]) + shift[i];
            }
            store_some<V>(row_at<Y>(n.out, row) + col, value, V);
        }
    }
}

template <int KIND, typename Y, typename X, typename B, int V>
static int row_norm_launch(const struct row_norm *n, cudaStream_t stream)
{
    const int64_t pieces = n->x.cols / V;
    int across = 32;

    while (across < ACROSS_MAX && across * KEEP < pieces)
        across *= 2;
    const dim3 block((unsigned)across, across == 32 ? WARPS_OF_SHORT_ROWS : 1);
    const int64_t blocks = ceil_div(n->x.rows, block.y);
    const unsigned grid = (unsigned)(blocks < 1 << 30 ? blocks : 1 << 30);

    return launch_early(across * KEEP >= pieces ? row_norm_kernel<KIND, Y, X, B, V, true>
                                                : row_norm_kernel<KIND, Y, X, B, V, false>,
                        grid, block, 0, stream, *n);
}

template <int KIND, typename Y, typename X, typename B>
static int row_norm(const struct row_norm *n, cudaStream_t stream)
{
    const bool vectors = n->x.cols % 8 == 0 && rows_at_16(n->out) && rows_at_16(n->x) &&
                         rows_at_16(n->branch) && at_16(n->gate) && at_16(n->scale) &&
                         at_16(n->shift);

    if (vectors) return row_norm_launch<KIND, Y, X, B, 8>(n, stream);
    return row_norm_launch<KIND, Y, X, B, 1>(n, stream);
}

static bool row_norm_legal(const struct row_norm *n)
{
    return same_shape(n->out, n->x) && same_shape(n->branch, n->x) && is_act(n->out) &&
           is_act(n->x) && is_act(n->branch) && n->x.cols > 0 && n->x.cols < INT32_MAX / 2;
}

extern "C" int k_layer_norm_cuda(struct matrix y, struct matrix x, const float *scale,
                                 const float *shift, bool scale_plus_one, float eps,
                                 struct CUstream_st *stream)
{
    const struct row_norm n = {y, x, x, NULL, scale, shift, scale_plus_one ? 1.0f : 0.0f, eps};

    if (!row_norm_legal(&n)) return (int)cudaErrorInvalidValue;
    if (x.rows == 0) return 0;
#define LAUNCH(Y, X) return row_norm<LAYER, Y, X, X>(&n, stream)
    BY_ELEMENTS(y.dtype, x.dtype, LAUNCH);
#undef LAUNCH
}

extern "C" int k_rms_norm_cuda(struct matrix y, struct matrix x, const float *weight, float eps,
                               struct CUstream_st *stream)
{
    const struct row_norm n = {y, x, x, NULL, weight, NULL, 0.0f, eps};

    if (!row_norm_legal(&n)) return (int)cudaErrorInvalidValue;
    if (x.rows == 0) return 0;
#define LAUNCH(Y, X) return row_norm<RMS, Y, X, X>(&n, stream)
    BY_ELEMENTS(y.dtype, x.dtype, LAUNCH);
#undef LAUNCH
}

extern "C" int k_gate_add_layer_norm_cuda(const struct gate_norm_request *request,
                                          struct CUstream_st *stream)
{
    const struct gate_norm_request *r = request;
    const struct row_norm n = {r->out, r->x, r->y, r->gate, r->scale, r->shift, 1.0f, r->eps};

    if (!row_norm_legal(&n) || r->x.dtype != DTYPE_F32) return (int)cudaErrorInvalidValue;
    if (r->x.rows == 0) return 0;
#define LAUNCH(Y, B) return row_norm<GATED, Y, float, B>(&n, stream)
    BY_ELEMENTS(r->out.dtype, r->y.dtype, LAUNCH);
#undef LAUNCH
}

/* ------------------------------------------------------------------------------- group norm */

enum { THREADS = 256, ROWS_AT_ONCE = 4 };

/* Mean and squared deviations of what two threads saw, into the first. */
DEVICE void merge(float *mean, float *squares, float seen, float other_mean, float other_squares,
                  float other_seen)
{
    const float share = other_seen / (seen + other_seen), d = other_mean - *mean;

    *mean += d * share;
    *squares += other_squares + d * d * seen * share;
}

/* Row `run` of stats: means, then sums of squared deviations from them.  A thread follows V
 * channels down its rows with a running mean: a sum of squares would lose the variance of a channel
 * that lies far from zero.  cols is a multiple of V. */
template <typename X, int V>
static __global__ void __launch_bounds__(THREADS)
    group_stats_kernel(struct matrix stats, struct matrix x, int64_t run_rows)
{
    __shared__ float means[V][THREADS], squares_of[V][THREADS], seen_by[THREADS];
    const int64_t col = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    const int64_t first = blockIdx.y * run_rows;
    const int64_t end = first + run_rows < x.rows ? first + run_rows : x.rows;
    const int self = (int)(threadIdx.y * blockDim.x + threadIdx.x), down = (int)blockDim.y;
    float mean[V] = {0.0f}, squares[V] = {0.0f}, seen = 0.0f;

    for (int64_t row = first + threadIdx.y; row < end && col < x.cols; row += ROWS_AT_ONCE * down) {
        float value[ROWS_AT_ONCE][V];
#pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; r++)
            if (row + r * down < end) load_some<V>(value[r], row_at<X>(x, row + r * down) + col, V);
#pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            if (row + r * down >= end) continue;
            seen += 1.0f;
            const float share = 1.0f / seen;
#pragma unroll
            for (int i = 0; i < V; i++) {
                const float d = value[r][i] - mean[i];
                mean[i] += d * share;
                squares[i] += d * (value[r][i] - mean[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < V; i++) {
        means[i][self] = mean[i];
        squares_of[i][self] = squares[i];
    }
    seen_by[self] = seen;
    for (int step = down / 2; step > 0; step /= 2) {
        __syncthreads();
        const int other = self + step * (int)blockDim.x;
        if ((int)threadIdx.y >= step || seen_by[other] == 0.0f) continue;
#pragma unroll
        for (int i = 0; i < V; i++)
            merge(&means[i][self], &squares_of[i][self], seen_by[self], means[i][other],
                  squares_of[i][other], seen_by[other]);
        seen_by[self] += seen_by[other];
    }
    if (threadIdx.y > 0 || col >= x.cols) return;
    float *const run = (float *)stats.data + blockIdx.y * stats.ld;
#pragma unroll
    for (int i = 0; i < V; i++) {
        run[col + i] = means[i][self];
        run[x.cols + col + i] = squares_of[i][self];
    }
}

/* Sum over the block, in one order; the same in every thread. */
DEVICE double sum_block(double value, double *shared)
{
    __syncthreads();
    shared[threadIdx.x] = value;
    for (int step = THREADS / 2; step > 0; step /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < step) shared[threadIdx.x] += shared[threadIdx.x + step];
    }
    __syncthreads();
    return shared[0];
}

/* One block per group.  First the mean of the means, then the deviations about it, so that nothing
 * divides.  All runs are of one length, so their means weigh the same. */
static __global__ void __launch_bounds__(THREADS)
    group_merge_kernel(struct matrix table, struct matrix stats, const float *weight,
                       int64_t run_rows, int64_t channels, float eps)
{
    __shared__ double shared[THREADS];
    const int64_t items = stats.rows * channels, first = blockIdx.x * channels;
    double sum = 0.0, squares = 0.0;

    for (int64_t item = threadIdx.x; item < items; item += THREADS) {
        const float *const run = (const float *)stats.data + item / channels * stats.ld;
        sum += (double)run[first + item % channels];
    }
    const double mean = sum_block(sum, shared) / (double)items;
    for (int64_t item = threadIdx.x; item < items; item += THREADS) {
        const float *const run = (const float *)stats.data + item / channels * stats.ld;
        const int64_t col = first + item % channels;
        const double d = (double)run[col] - mean;
        squares += (double)run[table.cols + col] + d * d * (double)run_rows;
    }
    squares = sum_block(squares, shared) / ((double)items * (double)run_rows);
    const double inverse = 1.0 / sqrt(squares + (double)eps);
    float *const center = (float *)table.data, *const factor = center + table.cols;
    for (int64_t col = first + threadIdx.x; col < first + channels; col += THREADS) {
        center[col] = (float)mean;
        factor[col] = (float)((double)weight[col] * inverse);
    }
}

struct normalize {
    struct matrix y, x;
    const float  *center, *factor, *bias; /* [cols] */
    bool          silu;
};

/* The mean is not folded into the bias: far from zero the two would cancel badly. */
template <typename Y, typename X, int V>
static __global__ void __launch_bounds__(THREADS) normalize_kernel(const struct normalize n)
{
    const int64_t down = (int64_t)gridDim.y * blockDim.y;

    EACH_COL (col, n.x.cols, V) {
        float center[V], factor[V], bias[V];
        load_some<V>(center, n.center + col, V);
        load_some<V>(factor, n.factor + col, V);
        load_some<V>(bias, n.bias + col, V);
        for (int64_t row = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; row < n.x.rows;
             row += ROWS_AT_ONCE * down) {
            float value[ROWS_AT_ONCE][V];
#pragma unroll
            for (int r = 0; r < ROWS_AT_ONCE; r++)
                if (row + r * down < n.x.rows)
                    load_some<V>(value[r], row_at<X>(n.x, row + r * down) + col, V);
#pragma unroll
            for (int r = 0; r < ROWS_AT_ONCE; r++) {
                if (row + r * down >= n.x.rows) continue;
#pragma unroll
                for (int i = 0; i < V; i++) {
                    const float unit = (value[r][i] - center[i]) * factor[i] + bias[i];
                    value[r][i] = n.silu ? silu_f32(unit) : unit;
                }
                store_some<V>(row_at<Y>(n.y, row + r * down) + col, value[r], V);
            }
        }
    }
}

template <typename X, int V>
static int group_stats_launch(struct matrix stats, struct matrix x, cudaStream_t stream)
{
    const struct spread s = spread_over(x.rows, x.cols, V);

    group_stats_kernel<X, V><<<dim3(s.grid.x, (unsigned)stats.rows), s.block, 0, stream>>>(
        stats, x, x.rows / stats.rows);
    return (int)cudaGetLastError();
}

extern "C" int k_group_stats_cuda(struct matrix stats, struct matrix x, struct CUstream_st *stream)
{
    const bool legal = is_act(x) && stats.dtype == DTYPE_F32 && stats.cols == 2 * x.cols &&
                       stats.rows > 0 && stats.rows < 65536 && x.rows >= stats.rows &&
                       x.rows % stats.rows == 0 && x.cols > 0;
    if (!legal) return (int)cudaErrorInvalidValue;
    const bool vectors = x.cols % 8 == 0 && rows_at_16(x);

    if (x.dtype == DTYPE_F32)
        return vectors ? group_stats_launch<float, 8>(stats, x, stream)
                       : group_stats_launch<float, 1>(stats, x, stream);
    return vectors ? group_stats_launch<struct bf16, 8>(stats, x, stream)
                   : group_stats_launch<struct bf16, 1>(stats, x, stream);
}

extern "C" int k_group_merge_cuda(struct matrix table, struct matrix stats, const float *weight,
                                  int64_t run_rows, int32_t groups, float eps,
                                  struct CUstream_st *stream)
{
    const bool legal = table.dtype == DTYPE_F32 && table.rows == 2 && table.ld == table.cols &&
                       stats.cols == 2 * table.cols && stats.rows > 0 && run_rows > 0 &&
                       groups > 0 && table.cols % groups == 0;
    if (!legal) return (int)cudaErrorInvalidValue;
    group_merge_kernel<<<(unsigned)groups, THREADS, 0, stream>>>(table, stats, weight, run_rows,
                                                                 table.cols / groups, eps);
    return (int)cudaGetLastError();
}

template <typename Y, typename X, int V>
static int normalize_launch(const struct normalize n, cudaStream_t stream)
{
    struct spread s = spread_over(n.x.rows, n.x.cols, V);

    /* A column of blocks has work for a few turns each: what it loads once is used often. */
    const int64_t turns = ceil_div(n.x.rows, 4 * ROWS_AT_ONCE * s.block.y);
    s.grid.y = (unsigned)(turns < 8192 ? turns : 8192);
    normalize_kernel<Y, X, V><<<s.grid, s.block, 0, stream>>>(n);
    return (int)cudaGetLastError();
}

extern "C" int k_group_apply_cuda(struct matrix y, struct matrix x, struct matrix table,
                                  const float *bias, bool silu, struct CUstream_st *stream)
{
    const bool legal = same_shape(y, x) && is_act(y) && is_act(x) && table.dtype == DTYPE_F32 &&
                       table.rows == 2 && table.cols == x.cols && table.ld == x.cols;
    if (!legal) return (int)cudaErrorInvalidValue;
    if (x.rows == 0) return 0;

    const float *const center = (const float *)table.data, *const factor = center + table.cols;
    const struct normalize n = {y, x, center, factor, bias, silu};
    const bool vectors = x.cols % 8 == 0 && rows_at_16(y) && rows_at_16(x) && at_16(center) &&
                         at_16(factor) && at_16(bias);
#define LAUNCH(Y, X)                                                                               \
    return vectors ? normalize_launch<Y, X, 8>(n, stream) : normalize_launch<Y, X, 1>(n, stream)
    BY_ELEMENTS(y.dtype, x.dtype, LAUNCH);
#undef LAUNCH
}
