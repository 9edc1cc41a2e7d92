/*
 * backend.h - one interface, several machines.
 *
 * Rank 2.  The engine is written once against these operations.  `cpu` runs them through
 * the CPU files of kernels; `dry` runs nothing and only measures: bytes through its dry arena,
 * FLOPs through its counters; a GPU backend runs them asynchronously on a stream.
 *
 * An operation never reports on its own.  The first failure is kept, later operations do nothing,
 * and backend_wait tells it: so the engine reads like the model's equations.
 */
#ifndef MURAL_BACKEND_H
#define MURAL_BACKEND_H

#include "base/base.h"
#include "kernels/kernels.h"
#include "memory/memory.h"

struct backend;

struct backend_options {
    enum dtype compute; /* DTYPE_F32 or DTYPE_BF16: products and activations      */
    uint32_t   threads; /* 0: all CPUs this process may use                       */
    uint64_t   conv_weight_elements_max; /* largest convolution weight of the model               */
    uint64_t   arena_limit_bytes; /* scratch may never exceed this                          */
    uint64_t  *pulse; /* counted up, atomically, with every operation; another process may watch it
                         to see that this one lives; NULL: nobody does                          */
};

int  backend_open_cpu(struct backend **out, const struct backend_options *options, struct err *err);
int  backend_open_dry(struct backend **out, const struct backend_options *options, struct err *err);
void backend_close(struct backend *backend);

/* Scratch memory of this machine; data pointers of activations come from here. */
struct arena *backend_arena(struct backend *backend);
/* What activations are stored in: f32 or bf16.  Residual streams are always f32. */
enum dtype backend_act(const struct backend *backend);
/* FLOPs asked for since open (2 per multiply-add); counted by every backend. */
double backend_flops(const struct backend *backend);
/* Bytes that the backend holds outside its arena (workspace). */
uint64_t backend_fixed_bytes(const struct backend *backend);

/* Finish everything asked for; the first failure since the last wait as one sentence. */
int backend_wait(struct backend *backend, struct err *err);

/* A matrix of rows x cols in the arena, contiguous. */
struct matrix backend_take(struct backend *backend, enum dtype dtype, int64_t rows, int64_t cols,
                           const char *label);

/* Views: no copies. */
static inline struct matrix matrix_rows(struct matrix m, int64_t first, int64_t count)
{
    m.data = (char *)m.data + (size_t)first * (size_t)m.ld * dtype_bytes(m.dtype);
    m.rows = count;
    return m;
}
static inline struct matrix matrix_cols(struct matrix m, int64_t first, int64_t count)
{
    m.data = (char *)m.data + (size_t)first * dtype_bytes(m.dtype);
    m.cols = count;
    return m;
}

/* Host <-> machine; contiguous f32 on the host side, any dtype on the other. */
void backend_upload(struct backend *backend, struct matrix target, const float *source);
void backend_download(struct backend *backend, float *target, struct matrix source);

/* ---------------------------------------------------------------- operations, as in kernels.h */
void backend_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                    const float *bias, enum activation act);
void backend_attention(struct backend *backend, const struct attention_request *request);
void backend_qk_norm_rope(struct backend *backend, const struct qk_rope_request *request);
void backend_layer_norm(struct backend *backend, struct matrix y, struct matrix x,
                        const float *scale, const float *shift, bool scale_plus_one, float eps);
void backend_rms_norm(struct backend *backend, struct matrix y, struct matrix x,
                      const float *weight, float eps);
/* stats and table lie in the arena: nothing of them is needed on the host. */
void backend_group_stats(struct backend *backend, struct matrix stats, struct matrix x);
void backend_group_merge(struct backend *backend, struct matrix table, struct matrix stats,
                         const float *weight, int64_t run_rows, int32_t groups, float eps);
void backend_group_apply(struct backend *backend, struct matrix y, struct matrix x,
                         struct matrix table, const float *bias, bool silu);
void backend_add(struct backend *backend, struct matrix x, struct matrix y);
void backend_gate_add(struct backend *backend, struct matrix x, struct matrix y, const float *gate);
void backend_gelu_mul(struct backend *backend, struct matrix y, struct matrix a, struct matrix b);
void backend_silu(struct backend *backend, struct matrix y, struct matrix x);
void backend_gather_rows(struct backend *backend, struct matrix y, struct matrix table,
                         const int32_t *ids);
void backend_affine(struct backend *backend, struct matrix y, struct matrix x, float mul,
                    float add);
void backend_copy(struct backend *backend, struct matrix y, struct matrix x); /* casts */
/* One that enlarges is counted as what it needs: 4 taps for each of its results, not 9. */
void backend_conv2d(struct backend *backend, const struct conv_request *request);
void backend_pack_latent(struct backend *backend, struct matrix tokens, const float *latent,
                         int32_t h, int32_t w, int32_t channels);
void backend_unpack_latent(struct backend *backend, float *latent, struct matrix tokens, int32_t h,
                           int32_t w, int32_t channels);

#endif
