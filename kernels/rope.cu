/*
 * rope.cu - the twin of rope.c: one thread writes one angle's value.
 */
#include <cuda_runtime_api.h>

#include "kernels/kernels_cuda.h"

struct rope_axes {
    struct matrix axis[3];
};

static __global__ void rope_grid_kernel(struct matrix y, struct rope_axes axes, int32_t w)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < y.rows * y.cols;
         i += step) {
        const int64_t token = i / y.cols;
        int64_t col = i % y.cols;
        int axis = 0;
        while (col >= axes.axis[axis].cols)
            col -= axes.axis[axis++].cols;
        const int64_t row = axis == 1 ? token / w : token % w;
        ((float *)y.data)[token * y.ld + i % y.cols] =
            ((const float *)axes.axis[axis].data)[row * axes.axis[axis].ld + col];
    }
}

extern "C" int k_rope_grid_cuda(struct matrix y, const struct matrix axes[3], int32_t h, int32_t w,
                                struct CUstream_st *stream)
{
    const struct rope_axes all = {{axes[0], axes[1], axes[2]}};
    const int64_t count = (int64_t)h * w * y.cols, blocks = (count + 255) / 256;

    if (count == 0) return 0;
    rope_grid_kernel<<<(unsigned)(blocks < 8192 ? blocks : 8192), 256, 0, stream>>>(y, all, w);
    return (int)cudaGetLastError();
}
