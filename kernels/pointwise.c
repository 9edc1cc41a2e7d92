/*
 * pointwise.c - sums, gates, activations, the Euler step, packing.
 *
 * Every element depends on elements at its own place only, so in-place calls are fine wherever two
 * operands may be one.  The `omp simd` lines say so to the compiler.
 *
 * Read next: gemm.c.
 */
#include <math.h>

#include "kernels/kernels_int.h"

/* Fewer elements than this are done by the calling thread alone: waking the others costs more. */
enum { PARALLEL_MIN = 16384 };
/* Flat arrays are cut into pieces of this many elements. */
enum { PIECE = 65536 };
/* A latent of a large tile, which is passed on between processes in every step, is not worth it
 * yet: threads that wait for more work are in the way of those of the other process. */
enum { FLAT_PARALLEL_MIN = 1 << 20 };

/* ------------------------------------------------------------------------- sums and products */

KERNEL_INLINE void add_body(enum dtype x_dtype, enum dtype y_dtype, void *x, const void *y,
                            int64_t cols)
{
#pragma omp simd
    for (int64_t i = 0; i < cols; i++)
        act_store(x, x_dtype, i, act_load(x, x_dtype, i) + act_load(y, y_dtype, i));
}

KERNEL_CLONES static void add_row(enum dtype x_dtype, enum dtype y_dtype, void *x, const void *y,
                                  int64_t cols)
{
    BY_ACT_DTYPES(add_body, x_dtype, y_dtype, x, y, cols);
}

void k_add_cpu(struct matrix x, struct matrix y)
{
    must(same_shape(x, y) && is_act(x) && is_act(y));
#pragma omp parallel for schedule(static) if (x.rows * x.cols > PARALLEL_MIN)
    for (int64_t row = 0; row < x.rows; row++)
        add_row(x.dtype, y.dtype, row_of(x, row), row_of(y, row), x.cols);
}

KERNEL_INLINE void gate_add_body(enum dtype x_dtype, enum dtype y_dtype, void *x, const void *y,
                                 const float *gate, int64_t cols)
{
#pragma omp simd
    for (int64_t i = 0; i < cols; i++)
        act_store(x, x_dtype, i, act_load(x, x_dtype, i) + gate[i] * act_load(y, y_dtype, i));
}

KERNEL_CLONES void pointwise_gate_add(enum dtype x_dtype, enum dtype y_dtype, void *x,
                                      const void *y, const float *gate, int64_t cols)
{
    BY_ACT_DTYPES(gate_add_body, x_dtype, y_dtype, x, y, gate, cols);
}

void k_gate_add_cpu(struct matrix x, struct matrix y, const float *gate)
{
    must(same_shape(x, y) && is_act(x) && is_act(y));
#pragma omp parallel for schedule(static) if (x.rows * x.cols > PARALLEL_MIN)
    for (int64_t row = 0; row < x.rows; row++)
        pointwise_gate_add(x.dtype, y.dtype, row_of(x, row), row_of(y, row), gate, x.cols);
}

KERNEL_INLINE void affine_body(enum dtype y_dtype, enum dtype x_dtype, void *y, const void *x,
                               float mul, float add, int64_t cols)
{
#pragma omp simd
    for (int64_t i = 0; i < cols; i++)
        act_store(y, y_dtype, i, act_load(x, x_dtype, i) * mul + add);
}

KERNEL_CLONES static void affine_row(enum dtype y_dtype, enum dtype x_dtype, void *y,
                                     const void *x, float mul, float add, int64_t cols)
{
    BY_ACT_DTYPES(affine_body, y_dtype, x_dtype, y, x, mul, add, cols);
}

void k_affine_cpu(struct matrix y, struct matrix x, float mul, float add)
{
    must(same_shape(y, x) && is_act(y) && is_act(x));
#pragma omp parallel for schedule(static) if (x.rows * x.cols > PARALLEL_MIN)
    for (int64_t row = 0; row < x.rows; row++)
        affine_row(y.dtype, x.dtype, row_of(y, row), row_of(x, row), mul, add, x.cols);
}

/* ------------------------------------------------------------------------------- activations */

KERNEL_INLINE void silu_body(enum dtype y_dtype, enum dtype x_dtype, void *y, const void *x,
                             int64_t cols)
{
#pragma omp simd
    for (int64_t i = 0; i < cols; i++) {
        float value = act_load(x, x_dtype, i);
        act_store(y, y_dtype, i, value * fast_sigmoid(value));
    }
}

KERNEL_CLONES static void silu_row(enum dtype y_dtype, enum dtype x_dtype, void *y, const void *x,
                                   int64_t cols)
{
    BY_ACT_DTYPES(silu_body, y_dtype, x_dtype, y, x, cols);
}

void k_silu_cpu(struct matrix y, struct matrix x)
{
    must(same_shape(y, x) && is_act(y) && is_act(x));
#pragma omp parallel for schedule(static) if (x.rows * x.cols > PARALLEL_MIN)
    for (int64_t row = 0; row < x.rows; row++)
        silu_row(y.dtype, x.dtype, row_of(y, row), row_of(x, row), x.cols);
}

KERNEL_INLINE void gelu_mul_body(enum dtype y_dtype, enum dtype x_dtype, void *y, const void *a,
                                 const void *b, int64_t cols)
{
#pragma omp simd
    for (int64_t i = 0; i < cols; i++)
        act_store(y, y_dtype, i,
                  fast_gelu_tanh(act_load(a, x_dtype, i)) * act_load(b, x_dtype, i));
}

KERNEL_CLONES static void gelu_mul_row(enum dtype y_dtype, enum dtype x_dtype, void *y,
                                       const void *a, const void *b, int64_t cols)
{
    BY_ACT_DTYPES(gelu_mul_body, y_dtype, x_dtype, y, a, b, cols);
}

void k_gelu_mul_cpu(struct matrix y, struct matrix a, struct matrix b)
{
    must(same_shape(y, a) && same_shape(y, b) && is_act(y) && is_act(a) && a.dtype == b.dtype);
#pragma omp parallel for schedule(static) if (y.rows * y.cols > PARALLEL_MIN)
    for (int64_t row = 0; row < y.rows; row++)
        gelu_mul_row(y.dtype, a.dtype, row_of(y, row), row_of(a, row), row_of(b, row), y.cols);
}

/* ------------------------------------------------------------------------- rows and sampling */

void k_gather_rows_cpu(struct matrix y, struct matrix table, const int32_t *ids)
{
    must(y.cols == table.cols && is_act(y));
#pragma omp parallel for schedule(static) if (y.rows * y.cols > PARALLEL_MIN)
    for (int64_t row = 0; row < y.rows; row++) {
        must(ids[row] >= 0 && ids[row] < table.rows);
        cast_elements(row_of(y, row), y.dtype, row_of(table, ids[row]), table.dtype, y.cols);
    }
}

KERNEL_CLONES static void euler_piece(float *x, const float *v, float dt, int64_t count)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        x[i] += dt * v[i];
}

void k_euler_step_cpu(float *x, const float *v, float dt, int64_t count)
{
#pragma omp parallel for schedule(static) if (count > FLAT_PARALLEL_MIN)
    for (int64_t first = 0; first < count; first += PIECE)
        euler_piece(x + first, v + first, dt, min_i64(PIECE, count - first));
}

KERNEL_CLONES static void mix_piece(float *x, const float *noise, float sigma, int64_t count)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        x[i] = (1.0f - sigma) * x[i] + sigma * noise[i];
}

void k_mix_noise_cpu(float *x, const float *noise, float sigma, int64_t count)
{
#pragma omp parallel for schedule(static) if (count > FLAT_PARALLEL_MIN)
    for (int64_t first = 0; first < count; first += PIECE)
        mix_piece(x + first, noise + first, sigma, min_i64(PIECE, count - first));
}

/* NaN and infinity are the values with all exponent bits. */
KERNEL_INLINE int32_t is_bad(float value)
{
    return (float_bits(value) & 0x7f800000u) == 0x7f800000u;
}

KERNEL_CLONES static int32_t count_bad_piece(const float *x, int64_t count)
{
    int32_t bad = 0;
#pragma omp simd reduction(+ : bad)
    for (int64_t i = 0; i < count; i++)
        bad += is_bad(x[i]);
    return bad;
}

int64_t k_count_bad_cpu(const float *x, int64_t count)
{
    int64_t bad = 0;
#pragma omp parallel for schedule(static) reduction(+ : bad) if (count > FLAT_PARALLEL_MIN)
    for (int64_t first = 0; first < count; first += PIECE)
        bad += count_bad_piece(x + first, min_i64(PIECE, count - first));
    return bad;
}

KERNEL_CLONES static int32_t copy_piece(float *y, const float *x, int64_t count)
{
    int32_t bad = 0;
#pragma omp simd reduction(+ : bad)
    for (int64_t i = 0; i < count; i++) {
        float value = x[i];
        y[i] = value;
        bad += is_bad(value);
    }
    return bad;
}

int64_t k_copy_count_bad_cpu(float *y, const float *x, int64_t count)
{
    int64_t bad = 0;
#pragma omp parallel for schedule(static) reduction(+ : bad) if (count > FLAT_PARALLEL_MIN)
    for (int64_t first = 0; first < count; first += PIECE)
        bad += copy_piece(y + first, x + first, min_i64(PIECE, count - first));
    return bad;
}

KERNEL_CLONES static int32_t clamp_piece(float *x, int64_t count)
{
    int32_t bad = 0;
#pragma omp simd reduction(+ : bad)
    for (int64_t i = 0; i < count; i++) {
        bad += is_bad(x[i]);
        x[i] = x[i] < 0.0f ? 0.0f : x[i] > 1.0f ? 1.0f : x[i];
    }
    return bad;
}

int64_t k_clamp_count_bad_cpu(float *x, int64_t count)
{
    int64_t bad = 0;
#pragma omp parallel for schedule(static) reduction(+ : bad) if (count > FLAT_PARALLEL_MIN)
    for (int64_t first = 0; first < count; first += PIECE)
        bad += clamp_piece(x + first, min_i64(PIECE, count - first));
    return bad;
}

/* ---------------------------------------------------------------------------------- packing */

void k_pack_latent_cpu(struct matrix tokens, const float *latent, int32_t h, int32_t w,
                       int32_t channels)
{
    must(h % 2 == 0 && w % 2 == 0 && is_act(tokens));
    must(tokens.rows == (int64_t)(h / 2) * (w / 2) && tokens.cols == (int64_t)channels * 4);
    const int64_t across = w / 2;
#pragma omp parallel for schedule(static) if (tokens.rows * tokens.cols > PARALLEL_MIN)
    for (int64_t token = 0; token < tokens.rows; token++) {
        void *line = row_of(tokens, token);
        for (int64_t corner = 0; corner < 4; corner++) {
            int64_t y = token / across * 2 + corner / 2, x = token % across * 2 + corner % 2;
            const float *cell = latent + (y * w + x) * channels;
            for (int64_t c = 0; c < channels; c++)
                act_store(line, tokens.dtype, c * 4 + corner, cell[c]);
        }
    }
}

void k_unpack_latent_cpu(float *latent, struct matrix tokens, int32_t h, int32_t w,
                         int32_t channels)
{
    must(h % 2 == 0 && w % 2 == 0 && is_act(tokens));
    must(tokens.rows == (int64_t)(h / 2) * (w / 2) && tokens.cols == (int64_t)channels * 4);
    const int64_t across = w / 2;
#pragma omp parallel for schedule(static) if (tokens.rows * tokens.cols > PARALLEL_MIN)
    for (int64_t token = 0; token < tokens.rows; token++) {
        const void *line = row_of(tokens, token);
        for (int64_t corner = 0; corner < 4; corner++) {
            int64_t y = token / across * 2 + corner / 2, x = token % across * 2 + corner % 2;
            float *cell = latent + (y * w + x) * channels;
            for (int64_t c = 0; c < channels; c++)
                cell[c] = act_load(line, tokens.dtype, c * 4 + corner);
        }
    }
}
