/*
 * kernels_cuda.h - the CUDA entry points beside kernels.h: the same contracts on device pointers.
 *
 * Calls put work on `stream` and return at once.  Return value: 0, or the cudaError_t of the
 * launch.
 */
#ifndef MURAL_KERNELS_CUDA_H
#define MURAL_KERNELS_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st; /* what a cudaStream_t points to */

/* noise.cu: the bits of k_noise_cpu.  out is device memory. */
int k_noise_cuda(float *out, const struct noise_request *request, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif

#endif
