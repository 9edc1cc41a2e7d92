/*
 * kernels.h - arithmetic on raw pointers, CPU now and CUDA beside it.
 *
 * Rank 1.  No files, no globals, no printing, no allocation of ours: workspace comes from the
 * caller.  The CPU version of an operation (norm.c) is the oracle of its CUDA twin (norm.cu).
 *
 * A matrix is rows x cols with `ld` elements from row to row.  Feature maps are channels-last:
 * [h, w, c] is a matrix of h * w rows and c columns.  fp32 accumulation everywhere, whatever the
 * element type.  Return value: 0, or a library's status that the backend turns into a sentence.
 */
#ifndef MURAL_KERNELS_H
#define MURAL_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_F32 = 0, DTYPE_BF16, DTYPE_F16, DTYPE_F8_E4M3, DTYPE_F8_E5M2 };

static inline uint32_t dtype_bytes(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4u : dtype <= DTYPE_F16 ? 2u : 1u;
}

struct matrix {
    void      *data;
    enum dtype dtype;
    int64_t    rows, cols, ld;
};

/* Scratch of the caller: `bytes` at 64-byte alignment, used only during a call. */
struct workspace {
    void    *data;
    uint64_t bytes;
};

/* -------------------------------------------------------------------- conversions (cast.c) */
float    cast_to_f32(uint16_t bits, enum dtype dtype);   /* bf16 or f16 bits -> value */
uint16_t cast_from_f32(float value, enum dtype dtype);   /* round to nearest even     */
/* rows x cols elements of any dtype -> f32 or bf16 or f16; source may be unaligned.  With a team
 * of its own threads. */
void k_cast_cpu(struct matrix target, struct matrix source);

/* -------------------------------------------------------------------- linear layers (gemm.c) */
enum activation { ACT_NONE, ACT_GELU_TANH, ACT_QUICK_GELU, ACT_SILU };

/* y[M,N] = act(x[M,K] . w[N,K]^T + bias[N]).  x and y f32 or bf16; w any dtype, any alignment;
 * bias f32 or NULL.  `compute` is DTYPE_F32 or DTYPE_BF16: what the products are formed in. */
int k_linear_cpu(struct matrix y, struct matrix x, struct matrix w, const float *bias,
                 enum activation act, enum dtype compute, struct workspace workspace);

/* -------------------------------------------------------------------- attention (attention.c) */
struct attention_request {
    struct matrix out;      /* [Sq, heads * dim], apart from q, k and v                       */
    struct matrix q, k, v;  /* [S, heads * dim]; may be column slices of one packed matrix   */
    int32_t       heads, dim;
    float         scale;
    bool          causal;
    const float  *bias;     /* [heads, 2 * S - 1], added at (key - query) + S - 1, or NULL    */
};
/* Softmax streamed over blocks of keys: no S x S matrix.  fp32 softmax. */
int k_attention_cpu(const struct attention_request *request, enum dtype compute,
                    struct workspace workspace);

/* In place on q and k [S, heads * dim]: RMS norm per head (weights f32 [dim], eps), then rotation
 * of adjacent pairs by cos/sin [S - first_rotated, dim / 2] for rows >= first_rotated. */
struct qk_rope_request {
    struct matrix q, k;
    int32_t       heads, dim;
    const float  *q_weight, *k_weight; /* [dim] */
    float         eps;
    const float  *cos, *sin;           /* [S - first_rotated, dim / 2] */
    int64_t       first_rotated;
};
void k_qk_norm_rope_cpu(const struct qk_rope_request *request);

/* The rotations of a grid of tokens, row-major, put together from those of its axes: y [h * w, a0 +
 * a1 + a2] f32 gets row `token column` of axes[0] and axes[2], and row `token row` of axes[1]. */
void k_rope_grid_cpu(struct matrix y, const struct matrix axes[3], int32_t h, int32_t w);

/* -------------------------------------------------------------------- norms (norm.c) */
/* y = LN(x) * (scale_plus_one ? 1 + scale : scale) + shift; shift and scale f32 [cols]. */
void k_layer_norm_cpu(struct matrix y, struct matrix x, const float *scale, const float *shift,
                      bool scale_plus_one, float eps);
void k_rms_norm_cpu(struct matrix y, struct matrix x, const float *weight, float eps);
/* What lies between two branches of a transformer block, in one pass over memory:
 * x += gate[col] * y; out = LN(x) * (1 + scale) + shift.  The bits of k_gate_add_cpu followed by
 * k_layer_norm_cpu. */
struct gate_norm_request {
    struct matrix out;                  /* [S, cols] f32 or bf16, not x        */
    struct matrix x;                    /* [S, cols] f32, the residual stream */
    struct matrix y;                    /* [S, cols] f32 or bf16; may be out   */
    const float  *gate, *scale, *shift; /* [cols] */
    float         eps;
};
void k_gate_add_layer_norm_cpu(const struct gate_norm_request *request);
/* Group norm of a feature map [h * w, C] in three steps, so that the map may come in strips:
 *
 *   stats   x is stats.rows runs of equally many rows.  Of each run and channel: the mean and the
 *           sum of squared deviations from it, in two passes.  stats [runs, 2 * C] f32: means,
 *           then sums.
 *   merge   the runs' statistics (of `run_rows` rows each) to those of whole groups, in the order
 *           of the runs, by Chan's formula in fp64.  table [2, C] f32, dense: the mean of the
 *           channel's group, and weight / sqrt(variance + eps).
 *   apply   y = (x - table[0]) * table[1] + bias, then SiLU if asked for.  y may be x.
 *
 * A run's statistics depend on its rows alone, so with runs fixed by the map (one for each of its
 * rows) nothing depends on the strips. */
void k_group_stats_cpu(struct matrix stats, struct matrix x);
void k_group_merge_cpu(struct matrix table, struct matrix stats, const float *weight,
                       int64_t run_rows, int32_t groups, float eps);
void k_group_apply_cpu(struct matrix y, struct matrix x, struct matrix table, const float *bias,
                       bool silu);

/* -------------------------------------------------------------------- pointwise.c */
/* Operands are f32 or bf16; a and b of one type.  y may be x or a or b where it has their type. */
void k_add_cpu(struct matrix x, struct matrix y);                         /* x += y */
void k_gate_add_cpu(struct matrix x, struct matrix y, const float *gate); /* x += gate[col] * y */
void k_gelu_mul_cpu(struct matrix y, struct matrix a, struct matrix b);   /* y = gelu_tanh(a) * b */
void k_silu_cpu(struct matrix y, struct matrix x);
/* y[i] = table[ids[i]]; table of any type, y f32 or bf16 */
void k_gather_rows_cpu(struct matrix y, struct matrix table, const int32_t *ids);
/* x += (sigma_next - sigma) * v, fp32 */
void k_euler_step_cpu(float *x, const float *v, float dt, int64_t count);
/* x = (1 - sigma) * x + sigma * noise */
void k_mix_noise_cpu(float *x, const float *noise, float sigma, int64_t count);
/* latent [h, w, C] f32 <-> tokens [(h/2)*(w/2), C*4], element (c, dy, dx) at c*4 + dy*2 + dx */
void k_pack_latent_cpu(struct matrix tokens, const float *latent, int32_t h, int32_t w,
                       int32_t channels);
void k_unpack_latent_cpu(float *latent, struct matrix tokens, int32_t h, int32_t w,
                         int32_t channels);
/* count of values that are NaN or infinite */
int64_t k_count_bad_cpu(const float *x, int64_t count);
/* y = x, and the count of y's: what others may write to meanwhile is read once, and judged then */
int64_t k_copy_count_bad_cpu(float *y, const float *x, int64_t count);
/* the count, and then x = min(max(x, 0), 1) */
int64_t k_clamp_count_bad_cpu(float *x, int64_t count);
/* y = x * mul + add, element by element, any of f32/bf16 */
void k_affine_cpu(struct matrix y, struct matrix x, float mul, float add);

/* -------------------------------------------------------------------- conv.c */
struct conv_request {
    struct matrix y;        /* [out_h * out_w, out_channels]                              */
    struct matrix x;        /* [in_h * in_w, in_channels]                                 */
    struct matrix w;        /* [out_channels, in_channels * size * size], any dtype       */
    const float  *bias;     /* [out_channels] f32                                         */
    int32_t       in_h, in_w;
    int32_t       size;     /* 1 or 3                                                     */
    int32_t       stride;   /* 1 or 2                                                     */
    int32_t       pad_top, pad_left, pad_bottom, pad_right;
    /* x is first enlarged: every pixel becomes 2 x 2 equal ones.  Size 3 and stride 1; pads count
     * pixels of the enlarged map: 1 left and right; above and below 1, or -1 where x has one more
     * row, which only lends its pixels to its neighbour's kernels.  y has 2 * in_w pixels a row and
     * two rows for each row of x that does not lend. */
    bool          enlarge;
};
/* A row of y has the same bits however many rows the call is for. */
int k_conv2d_cpu(const struct conv_request *request, enum dtype compute,
                 struct workspace workspace);

/* -------------------------------------------------------------------- noise.c */
/* Standard normal noise as a function of (seed, purpose, x, y, channel) only: the same cell of the
 * canvas has the same noise whatever the tile grid, on the CPU and on a GPU, to the bit.
 * out: [h, w, channels]; (x, y) is the canvas position of out[0, 0]. */
enum noise_purpose { NOISE_DRAFT = 0, NOISE_TILE = 1 };
struct noise_request {
    uint64_t seed;
    uint32_t purpose;
    int32_t  x, y, w, h;   /* latent cells */
    int32_t  channels;     /* multiple of 4 */
};
void k_noise_cpu(float *out, const struct noise_request *request);

/* -------------------------------------------------------------------- trial.c */
/* Made-up numbers in (-1/4, 1/4), a function of (seed, row, col) only: for trials of speed and of
 * rounding.  y f32 or bf16; the same bits on the CPU and on a GPU. */
void k_fill_cpu(struct matrix y, uint64_t seed);

/* -------------------------------------------------------------------- the machine */
/* True when this CPU multiplies bf16 in hardware (AVX512_BF16 or AMX): bf16 compute pays. */
bool kernels_cpu_has_bf16(void);
/* Library of the products and the instructions that it chose, "oneDNN 2.6.3 isa 7f": what
 * decides their bits besides the shapes.  Returns out. */
const char *kernels_cpu_version(char *out, size_t capacity);
/* Workspace that makes every call above possible for `threads` threads, given the largest weight
 * of a convolution in elements. */
uint64_t kernels_workspace_bytes(uint32_t threads, uint64_t conv_weight_elements_max);

#endif
