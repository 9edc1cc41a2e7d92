/*
 * softmax.cu - rows of attention scores into rows of weights, fp32 inside.
 *
 * For heads that are too wide for a fused attention: the VAE's one head of 512.  A block takes a
 * row and reads it twice.  It has its multiprocessor to itself, so that the rows of all blocks at
 * work, 256 KB each where a picture is large, are still in the cache at the second time.
 *
 * Sums are taken in a fixed order, so the same scores give the same bits.
 */
#include "kernels/device.cuh"

enum { THREADS = 1024, WARPS = THREADS / 32 };

/* Of some scores, as powers of two: the highest, and the sum of all beside it.  Of none: -inf, 0. */
struct seen {
    float top, sum;
};

DEVICE struct seen both(struct seen a, struct seen b)
{
    const float top = fmaxf(a.top, b.top);

    if (a.sum == 0.0f) return b;
    if (b.sum == 0.0f) return a;
    return {top, a.sum * exp2_quick(a.top - top) + b.sum * exp2_quick(b.top - top)};
}

template <int V> DEVICE struct seen see(const float *x, int64_t left, float scale)
{
    struct seen s = {-INFINITY, 0.0f};
    float       value[V];

    load_some<V>(value, x, left);
#pragma unroll
    for (int i = 0; i < V; i++) {
        value[i] = i < left ? value[i] * scale : -INFINITY;
        s.top = fmaxf(s.top, value[i]);
    }
#pragma unroll
    for (int i = 0; i < V; i++)
        s.sum += exp2_quick(value[i] - s.top);
    return s;
}

/* Of all threads, the same in each. */
DEVICE struct seen all_of(struct seen s)
{
    __shared__ struct seen parts[WARPS];

    for (int lane = 16; lane > 0; lane /= 2)
        s = both(s, {__shfl_xor_sync(0xffffffffu, s.top, lane),
                     __shfl_xor_sync(0xffffffffu, s.sum, lane)});
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = s;
    __syncthreads();
    s = parts[0];
    for (int warp = 1; warp < WARPS; warp++)
        s = both(s, parts[warp]);
    return s;
}

template <int V, typename T>
static __global__ void __launch_bounds__(THREADS, 1)
    softmax_kernel(struct matrix y, struct matrix x, float scale)
{
    const float *in = row_at<float>(x, blockIdx.x);
    T           *out = row_at<T>(y, blockIdx.x);
    struct seen  s = {-INFINITY, 0.0f};

    for (int64_t i = threadIdx.x * V; i < x.cols; i += THREADS * V)
        s = both(s, see<V>(in + i, x.cols - i, scale));
    s = all_of(s);
    const float inverse = 1.0f / s.sum;
    for (int64_t i = threadIdx.x * V; i < x.cols; i += THREADS * V) {
        float value[V];
        load_some<V>(value, in + i, x.cols - i);
#pragma unroll
        for (int n = 0; n < V; n++)
            value[n] = exp2_quick(value[n] * scale - s.top) * inverse;
        store_some<V>(out + i, value, x.cols - i);
    }
}

template <int V, typename T>
static int run(struct matrix y, struct matrix x, float scale, struct CUstream_st *stream)
{
    auto *kernel = softmax_kernel<V, T>;
    int   device = 0, most = 0, rc = (int)cudaGetDevice(&device);

    if (!rc)
        rc = (int)cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const int alone = most / 2 + 1024; /* of shared memory: no second block fits beside this one */
    if (!rc)
        rc = (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, alone);
    if (rc) return rc;
    kernel<<<(unsigned)x.rows, THREADS, (size_t)alone, stream>>>(y, x, scale * LOG2_E);
    return (int)cudaGetLastError();
}

extern "C" int k_softmax_rows_cuda(struct matrix y, struct matrix x, float scale,
                                   struct CUstream_st *stream)
{
    const bool whole = rows_at_16(x) && rows_at_16(y);

    if (x.rows == 0 || x.cols == 0) return 0;
    if (y.dtype == DTYPE_F32)
        return whole ? run<8, float>(y, x, scale, stream) : run<1, float>(y, x, scale, stream);
    return whole ? run<8, struct bf16>(y, x, scale, stream)
                 : run<1, struct bf16>(y, x, scale, stream);
}
