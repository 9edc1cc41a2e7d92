/*
 * kernels_cuda.h - the CUDA entry points beside kernels.h: the same contracts on device pointers.
 *
 * Calls put work on `stream` and return at once; nothing allocates, waits or keeps state.  Every
 * pointer inside an argument is device memory.  Matrices may have any `ld` and start at any
 * element; rows that start at 16-byte boundaries are faster.  The order of all sums follows from
 * the shapes and, in attention, from how much shared memory the GPU has: the same call on the same
 * kind of GPU gives the same bits.
 *
 * Return value: 0, cudaErrorInvalidValue where the contract in kernels.h is broken, or the
 * cudaError_t of the launch.
 */
#ifndef MURAL_KERNELS_CUDA_H
#define MURAL_KERNELS_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st; /* what a cudaStream_t points to */

/* ------------------------------------------------------------------------------------ noise.cu */
/* The bits of k_noise_cpu. */
int k_noise_cuda(float *out, const struct noise_request *request, struct CUstream_st *stream);

/* ------------------------------------------------------------------------------------- cast.cu */
/* The bits of k_cast_cpu.  The source may start at any byte. */
int k_cast_cuda(struct matrix target, struct matrix source, struct CUstream_st *stream);

/* ------------------------------------------------------------------------------------- norm.cu */
int k_layer_norm_cuda(struct matrix y, struct matrix x, const float *scale, const float *shift,
                      bool scale_plus_one, float eps, struct CUstream_st *stream);
int k_rms_norm_cuda(struct matrix y, struct matrix x, const float *weight, float eps,
                    struct CUstream_st *stream);
int k_gate_add_layer_norm_cuda(const struct gate_norm_request *request, struct CUstream_st *stream);
int k_group_stats_cuda(struct matrix stats, struct matrix x, struct CUstream_st *stream);
int k_group_merge_cuda(struct matrix table, struct matrix stats, const float *weight,
                       int64_t run_rows, int32_t groups, float eps, struct CUstream_st *stream);
int k_group_apply_cuda(struct matrix y, struct matrix x, struct matrix table, const float *bias,
                       bool silu, struct CUstream_st *stream);

/* -------------------------------------------------------------------------------- pointwise.cu */
int k_add_cuda(struct matrix x, struct matrix y, struct CUstream_st *stream);
int k_gate_add_cuda(struct matrix x, struct matrix y, const float *gate,
                    struct CUstream_st *stream);
int k_gelu_mul_cuda(struct matrix y, struct matrix a, struct matrix b, struct CUstream_st *stream);
int k_silu_cuda(struct matrix y, struct matrix x, struct CUstream_st *stream);
int k_affine_cuda(struct matrix y, struct matrix x, float mul, float add,
                  struct CUstream_st *stream);
int k_pack_latent_cuda(struct matrix tokens, const float *latent, int32_t h, int32_t w,
                       int32_t channels, struct CUstream_st *stream);
int k_unpack_latent_cuda(float *latent, struct matrix tokens, int32_t h, int32_t w,
                         int32_t channels, struct CUstream_st *stream);
int k_upsample2_cuda(struct matrix y, struct matrix x, int32_t h, int32_t w,
                     struct CUstream_st *stream);

/* -------------------------------------------------------------------------------- attention.cu */
/* bf16 operands with `compute` bf16, rows at 16-byte boundaries, dim a multiple of 8 up to 512 and
 * a positive scale go through the tensor cores; everything else, any dim up to 512, is multiplied
 * in f32.  Scores and sums stay on the chip. */
int k_attention_cuda(const struct attention_request *request, enum dtype compute,
                     struct CUstream_st *stream);
/* attention_hopper.cu: what k_attention_cuda does with heads of 128 columns, all operands bf16 and
 * rows at 16-byte boundaries, where the current device is of sm_90. */
bool k_attention_hopper_fits(const struct attention_request *request, enum dtype compute);
int  k_attention_hopper_cuda(const struct attention_request *request, struct CUstream_st *stream);
/* qk_norm_rope.cu: q and k of one type. */
int k_qk_norm_rope_cuda(const struct qk_rope_request *request, struct CUstream_st *stream);

/* ---------------------------------------------------------------------------- rope.cu, trial.cu */
int k_rope_grid_cuda(struct matrix y, const struct matrix axes[3], int32_t h, int32_t w,
                     struct CUstream_st *stream);
int k_fill_cuda(struct matrix y, uint64_t seed, struct CUstream_st *stream);
/* *sum_out (device memory) += a sum over all elements' bits that every difference changes, but for
 * one in 2^64; the order of adding does not matter. */
int k_checksum_cuda(uint64_t *sum_out, struct matrix y, struct CUstream_st *stream);

/* -------------------------------------------------------------------------- gemm.cu, softmax.cu */
/* y = act(y + bias) in place; bias f32 [y.cols] or NULL. */
int k_bias_act_cuda(struct matrix y, const float *bias, enum activation act,
                    struct CUstream_st *stream);
/* y[r, :] = softmax(scale * x[r, :]); x f32, y f32 or bf16, not in place. */
int k_softmax_rows_cuda(struct matrix y, struct matrix x, float scale, struct CUstream_st *stream);

/* ------------------------------------------------------------------------------------- conv.cu */
/* Patches of the output positions [first, first + y.rows): y[p, tap * in_channels + channel], zero
 * outside the picture and in columns from size * size * in_channels on. */
int k_im2col_cuda(struct matrix y, const struct conv_request *request, int64_t first, int32_t out_w,
                  struct CUstream_st *stream);
/* y[out, tap * in_channels + channel] = w[out, channel * taps + tap]; zero in columns beyond. */
int k_conv_weights_cuda(struct matrix y, struct matrix w, int32_t taps, struct CUstream_st *stream);
/* Weights [out, in * 9] of a map that is enlarged first, for the four 2x2 convolutions that its
 * phases are: y[phase * out + o, tap * in + channel], phase 2 * (odd row) + (odd column); taps that
 * meet the same pixel are added in f32. */
int k_conv_phases_cuda(struct matrix y, struct matrix w, struct CUstream_st *stream);
/* A whole convolution with at most CONV_FEW_MAX output channels, w as in the request: one pass over
 * the picture, no patches. */
enum { CONV_FEW_MAX = 4 };
int k_conv_few_cuda(const struct conv_request *request, int32_t out_w, struct CUstream_st *stream);

/* ------------------------------------------------------------------------------ conv_hopper.cu */
/* Whether k_conv_hopper_cuda() can do it: on sm_90, 3x3, of an enlarged map too, maps in bf16 whose
 * rows and channels come in 16 bytes. */
bool k_conv_hopper_fits(const struct conv_request *request, enum dtype compute);
/* A whole convolution.  `ordered`, at a multiple of 16 bytes, has the weights in bf16, as
 * k_conv_weights_cuda() orders them, or k_conv_phases_cuda() those of an enlarged map; the
 * request's w is not read.  A row's bits do not depend on the rows that are computed with it. */
int k_conv_hopper_cuda(const struct conv_request *request, void *ordered,
                       struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif

#endif
