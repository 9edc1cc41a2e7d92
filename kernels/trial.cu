/*
 * trial.cu - the twin of trial.c, and a sum that tells whether two results have the same bits.
 *
 * The sum is over whole numbers, so that the order in which threads add does not matter.
 */
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "kernels/kernels_cuda.h"
#include "kernels/trial_value.h"

static __global__ void fill_kernel(struct matrix y, uint64_t seed)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < y.rows * y.cols;
         i += step) {
        const int64_t row = i / y.cols, col = i % y.cols, at = row * y.ld + col;
        const float value = trial_value(seed, row, col);
        if (y.dtype == DTYPE_F32)
            ((float *)y.data)[at] = value;
        else
            ((__nv_bfloat16 *)y.data)[at] = __float2bfloat16_rn(value);
    }
}

static __global__ void checksum_kernel(unsigned long long *sum_out, struct matrix y)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    unsigned long long sum = 0;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < y.rows * y.cols;
         i += step) {
        const int64_t at = i / y.cols * y.ld + i % y.cols;
        const uint64_t bits = y.dtype == DTYPE_F32 ? ((const uint32_t *)y.data)[at]
                                                   : ((const uint16_t *)y.data)[at];
        sum += trial_mix(bits + 0x9E3779B97F4A7C15u * (uint64_t)(i + 1));
    }
    for (int lane = 16; lane > 0; lane /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    if (threadIdx.x % 32 == 0) atomicAdd(sum_out, sum);
}

static unsigned blocks_for(int64_t count)
{
    const int64_t blocks = (count + 255) / 256;

    return (unsigned)(blocks < 8192 ? blocks : 8192);
}

extern "C" int k_fill_cuda(struct matrix y, uint64_t seed, struct CUstream_st *stream)
{
    if (y.rows * y.cols == 0) return 0;
    fill_kernel<<<blocks_for(y.rows * y.cols), 256, 0, stream>>>(y, seed);
    return (int)cudaGetLastError();
}

extern "C" int k_checksum_cuda(uint64_t *sum_out, struct matrix y, struct CUstream_st *stream)
{
    if (y.rows * y.cols == 0) return 0;
    checksum_kernel<<<blocks_for(y.rows * y.cols), 256, 0, stream>>>((unsigned long long *)sum_out,
                                                                     y);
    return (int)cudaGetLastError();
}
