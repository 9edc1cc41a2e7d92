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

/* rope.cu, trial.cu */
int k_rope_grid_cuda(struct matrix y, const struct matrix axes[3], int32_t h, int32_t w,
                     struct CUstream_st *stream);
int k_fill_cuda(struct matrix y, uint64_t seed, struct CUstream_st *stream);
/* *sum_out (device memory) += a sum over all elements' bits that every difference changes, but for
 * one in 2^64; the order of adding does not matter. */
int k_checksum_cuda(uint64_t *sum_out, struct matrix y, struct CUstream_st *stream);

/* gemm.cu: y = act(y + bias) in place; bias f32 [y.cols] or NULL. */
int k_bias_act_cuda(struct matrix y, const float *bias, enum activation act,
                    struct CUstream_st *stream);
/* softmax.cu: y[r, :] = softmax(scale * x[r, :]); x f32, y f32 or bf16, not in place. */
int k_softmax_rows_cuda(struct matrix y, struct matrix x, float scale, struct CUstream_st *stream);

/* conv.cu: pieces that a convolution is put together from. */
/* Patches of the output positions [first, first + y.rows): y[p, tap * in_channels + channel], zero
 * outside the picture and in columns from size * size * in_channels on. */
int k_im2col_cuda(struct matrix y, const struct conv_request *request, int64_t first, int32_t out_w,
                  struct CUstream_st *stream);
/* y[out, tap * in_channels + channel] = w[out, channel * taps + tap]; zero in columns further on. */
int k_conv_weights_cuda(struct matrix y, struct matrix w, int32_t taps, struct CUstream_st *stream);
/* A whole convolution with at most CONV_FEW_MAX output channels, w as in the request: one pass over
 * the picture, no patches. */
enum { CONV_FEW_MAX = 4 };
int k_conv_few_cuda(const struct conv_request *request, int32_t out_w, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif

#endif
