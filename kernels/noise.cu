/*
 * noise.cu - the twin of noise.c: the same bits from a GPU.
 *
 * One thread makes the four values of one cell and channel group.  Nothing here may round: all
 * arithmetic is in noise_cell.h.
 *
 * Read next: noise_cell.h.
 */
#include <cuda_runtime_api.h>

#include "kernels/kernels_cuda.h"
#include "kernels/noise_cell.h"

static __global__ void noise_kernel(float *out, struct noise_request request, int64_t count)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    const int32_t groups = request.channels / 4;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const int64_t cell = i / groups;
        noise_cell(out + 4 * i, request.seed, request.purpose,
                   request.x + (int32_t)(cell % request.w), request.y + (int32_t)(cell / request.w),
                   (uint32_t)(i % groups));
    }
}

extern "C" int k_noise_cuda(float *out, const struct noise_request *request,
                            struct CUstream_st *stream)
{
    const int64_t count = (int64_t)request->h * request->w * (request->channels / 4);
    const int64_t blocks = (count + 255) / 256;

    if (count == 0) return 0;
    noise_kernel<<<(unsigned)(blocks < 65536 ? blocks : 65536), 256, 0, stream>>>(out, *request,
                                                                                  count);
    return (int)cudaGetLastError();
}
