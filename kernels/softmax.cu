/*
 * softmax.cu - rows of attention scores into rows of weights, fp32 inside.
 *
 * For heads that are too wide for a fused attention: the VAE's one head of 512.  One block takes
 * one row and reads it three times; the second and third come from the cache.  Sums are taken in a
 * fixed order, so the same scores give the same bits.
 */
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "kernels/kernels_cuda.h"

enum { THREADS = 512, WARPS = THREADS / 32 };

template <bool MAX> static __device__ float block_reduce(float value)
{
    __shared__ float parts[WARPS];

    for (int lane = 16; lane > 0; lane /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, value, lane);
        value = MAX ? fmaxf(value, other) : value + other;
    }
    __syncthreads(); /* the parts of the reduction before may still be read */
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    value = parts[0];
    for (int warp = 1; warp < WARPS; warp++)
        value = MAX ? fmaxf(value, parts[warp]) : value + parts[warp];
    return value;
}

template <typename T> static __device__ void put(T *target, float value);
template <> __device__ void put(float *target, float value)
{
    *target = value;
}
template <> __device__ void put(__nv_bfloat16 *target, float value)
{
    *target = __float2bfloat16_rn(value);
}

template <typename T> static __global__ void softmax_kernel(struct matrix y, struct matrix x,
                                                            float scale)
{
    const float *in = (const float *)x.data + (int64_t)blockIdx.x * x.ld;
    T *out = (T *)y.data + (int64_t)blockIdx.x * y.ld;
    float most = -INFINITY, sum = 0.0f;

    for (int64_t i = threadIdx.x; i < x.cols; i += THREADS)
        most = fmaxf(most, scale * in[i]);
    most = block_reduce<true>(most);
    for (int64_t i = threadIdx.x; i < x.cols; i += THREADS)
        sum += expf(scale * in[i] - most);
    const float inverse = 1.0f / block_reduce<false>(sum);
    for (int64_t i = threadIdx.x; i < x.cols; i += THREADS)
        put(out + i, expf(scale * in[i] - most) * inverse);
}

extern "C" int k_softmax_rows_cuda(struct matrix y, struct matrix x, float scale,
                                   struct CUstream_st *stream)
{
    if (x.rows == 0 || x.cols == 0) return 0;
    if (y.dtype == DTYPE_F32)
        softmax_kernel<float><<<(unsigned)x.rows, THREADS, 0, stream>>>(y, x, scale);
    else
        softmax_kernel<__nv_bfloat16><<<(unsigned)x.rows, THREADS, 0, stream>>>(y, x, scale);
    return (int)cudaGetLastError();
}
