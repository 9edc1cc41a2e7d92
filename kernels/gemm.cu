/*
 * gemm.cu - what follows a product on a GPU when the library's own epilogue cannot do it.
 *
 * The products themselves are cuBLASLt's, whose handle and choices belong to the backend.
 *
 * Read next: src/backend/cuda_gemm.c.
 */
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "kernels/kernels_cuda.h"

static __device__ float activate(float x, enum activation act)
{
    switch (act) {
    case ACT_GELU_TANH: {
        const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
        return 0.5f * x * (1.0f + tanhf(u));
    }
    case ACT_QUICK_GELU: return x / (1.0f + expf(-1.702f * x));
    case ACT_SILU: return x / (1.0f + expf(-x));
    case ACT_NONE: break;
    }
    return x;
}

static __global__ void bias_act_kernel(struct matrix y, const float *bias, enum activation act)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < y.rows * y.cols;
         i += step) {
        const int64_t col = i % y.cols, at = i / y.cols * y.ld + col;
        const float add = bias == NULL ? 0.0f : bias[col];
        if (y.dtype == DTYPE_F32) {
            float *data = (float *)y.data;
            data[at] = activate(data[at] + add, act);
        } else {
            __nv_bfloat16 *data = (__nv_bfloat16 *)y.data;
            data[at] = __float2bfloat16_rn(activate(__bfloat162float(data[at]) + add, act));
        }
    }
}

extern "C" int k_bias_act_cuda(struct matrix y, const float *bias, enum activation act,
                               struct CUstream_st *stream)
{
    const int64_t blocks = (y.rows * y.cols + 255) / 256;

    if (blocks == 0) return 0;
    bias_act_kernel<<<(unsigned)(blocks < 16384 ? blocks : 16384), 256, 0, stream>>>(y, bias, act);
    return (int)cudaGetLastError();
}
