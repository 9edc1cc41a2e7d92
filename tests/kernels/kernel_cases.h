/*
 * kernel_cases.h - what the kernel tests share: matrices with guarded gaps, values drawn from a
 * counter, element types decoded by arithmetic that shares nothing with cast.c, a stop-watch.
 */
#ifndef MURAL_KERNEL_CASES_H
#define MURAL_KERNEL_CASES_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "kernels/kernels.h"

/* Relative spacing of f32 and bf16: half of it is what one rounding can cost. */
#define F32_EPS  0x1p-23
#define BF16_EPS 0x1p-7

#define CASE_UNUSED __attribute__((unused))

/* ------------------------------------------------------------------------------------ types */

struct format {
    int  exponent_bits, mantissa_bits;
    bool infinities; /* the largest exponent holds infinity and NaN; else one NaN pattern */
};

CASE_UNUSED static struct format format_of(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32:
        return (struct format){8, 23, true};
    case DTYPE_BF16:
        return (struct format){8, 7, true};
    case DTYPE_F16:
        return (struct format){5, 10, true};
    case DTYPE_F8_E4M3:
        return (struct format){4, 3, false};
    case DTYPE_F8_E5M2:
        return (struct format){5, 2, true};
    }
    return (struct format){0};
}

CASE_UNUSED static double decode(uint32_t bits, enum dtype dtype)
{
    const struct format f = format_of(dtype);
    const int bias = (1 << (f.exponent_bits - 1)) - 1;
    const uint32_t mantissa = bits & ((1u << f.mantissa_bits) - 1);
    const int exponent = (int)(bits >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1);
    const double sign = bits >> (f.exponent_bits + f.mantissa_bits) & 1 ? -1.0 : 1.0;
    const int top = (1 << f.exponent_bits) - 1;

    if (exponent == top && f.infinities) return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (exponent == top && mantissa == (1u << f.mantissa_bits) - 1) return (double)NAN;
    if (exponent == 0) return sign * ldexp((double)mantissa, 1 - bias - f.mantissa_bits);
    return sign * ldexp((double)(mantissa | 1u << f.mantissa_bits),
                        exponent - bias - f.mantissa_bits);
}

/* Nearest, ties to even; finite values inside the type's range only. */
CASE_UNUSED static uint32_t encode(double value, enum dtype dtype)
{
    const struct format f = format_of(dtype);
    const int bias = (1 << (f.exponent_bits - 1)) - 1;
    const uint32_t sign = signbit(value) ? 1u << (f.exponent_bits + f.mantissa_bits) : 0;
    int exponent;

    frexp(fabs(value), &exponent);
    exponent -= 1; /* |value| = 1.m * 2^exponent */
    if (exponent < 1 - bias || value == 0.0) exponent = 1 - bias;
    double steps = nearbyint(ldexp(fabs(value), f.mantissa_bits - exponent));
    /* A carry into the next binade is right by itself: the fields are adjacent. */
    double bits = steps + ldexp((double)(exponent + bias - 1), f.mantissa_bits);
    return sign | (uint32_t)bits;
}

/* --------------------------------------------------------------------------------- matrices */

/* Uniform in [-1, 1); a function of (seed, index). */
CASE_UNUSED static double draw(uint64_t seed, uint64_t index)
{
    uint64_t z = (index + 1) * 0x9E3779B97F4A7C15u + seed * 0xD1342543DE82EF95u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-52 - 1.0;
}

enum { GAP_BYTE = 0x5a };

/* A matrix and the block it lies in: exactly as long as needed, so that a sanitizer sees a step
 * over the end, and with marked gaps between the rows. */
struct grid {
    struct matrix m;
    char         *block;
    size_t        bytes;
};

CASE_UNUSED static double get(struct matrix m, int64_t row, int64_t col)
{
    const uint32_t size = dtype_bytes(m.dtype);
    uint32_t       bits = 0;
    memcpy(&bits, (char *)m.data + (size_t)(row * m.ld + col) * size, size);
    return decode(bits, m.dtype);
}

CASE_UNUSED static void set(struct matrix m, int64_t row, int64_t col, double value)
{
    const uint32_t size = dtype_bytes(m.dtype);
    const uint32_t bits = encode(value, m.dtype);
    memcpy((char *)m.data + (size_t)(row * m.ld + col) * size, &bits, size);
}

/* All bytes are marked; `shift` bytes before the first element make it unaligned. */
CASE_UNUSED static struct grid grid_empty(enum dtype dtype, int64_t rows, int64_t cols, int64_t ld,
                                          size_t shift)
{
    struct grid g;
    g.bytes = shift + (size_t)((rows - 1) * ld + cols) * dtype_bytes(dtype);
    g.block = malloc(g.bytes);
    assert_non_null(g.block);
    memset(g.block, GAP_BYTE, g.bytes);
    g.m = (struct matrix){g.block + shift, dtype, rows, cols, ld};
    return g;
}

CASE_UNUSED static struct grid grid_drawn(enum dtype dtype, int64_t rows, int64_t cols, int64_t ld,
                                          size_t shift, uint64_t seed)
{
    struct grid g = grid_empty(dtype, rows, cols, ld, shift);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t col = 0; col < cols; col++)
            set(g.m, row, col, draw(seed, (uint64_t)(row * cols + col)));
    return g;
}

/* All values, row by row; freed by the caller. */
CASE_UNUSED static double *grid_values(const struct grid *g)
{
    double *values = malloc((size_t)(g->m.rows * g->m.cols) * sizeof *values);
    assert_non_null(values);
    for (int64_t row = 0; row < g->m.rows; row++)
        for (int64_t col = 0; col < g->m.cols; col++)
            values[row * g->m.cols + col] = get(g->m, row, col);
    return values;
}

/* The gaps between rows are as they were made. */
CASE_UNUSED static void grid_check_gaps(const struct grid *g)
{
    const size_t size = dtype_bytes(g->m.dtype);
    for (int64_t row = 0; row + 1 < g->m.rows; row++) {
        const char *gap = (char *)g->m.data + (size_t)(row * g->m.ld + g->m.cols) * size;
        for (size_t i = 0; i < (size_t)(g->m.ld - g->m.cols) * size; i++)
            assert_int_equal(gap[i], GAP_BYTE);
    }
}

CASE_UNUSED static void grid_free(struct grid *g)
{
    free(g->block);
    *g = (struct grid){0};
}

CASE_UNUSED static float *vector_drawn(int64_t count, uint64_t seed)
{
    float *v = malloc((size_t)count * sizeof *v);
    assert_non_null(v);
    for (int64_t i = 0; i < count; i++)
        v[i] = (float)draw(seed, (uint64_t)i);
    return v;
}

CASE_UNUSED static struct workspace workspace_open(uint64_t bytes)
{
    struct workspace w = {aligned_alloc(64, (bytes + 63) / 64 * 64), bytes};
    assert_non_null(w.data);
    return w;
}

/* ------------------------------------------------------------------------------------ checks */

#define CHECK_NEAR(got, want, bound) check_near((got), (want), (bound), __FILE__, __LINE__)

CASE_UNUSED static void check_near(double got, double want, double bound, const char *file,
                                   int line)
{
    if (fabs(got - want) <= bound) return; /* false for a NaN */
    print_error("got %.9g, expected %.9g within %.3g\n", got, want, bound);
    _fail(file, line);
}

/* What storing `value` as `dtype` can cost. */
CASE_UNUSED static double store_error(double value, enum dtype dtype)
{
    return fabs(value) * (dtype == DTYPE_BF16 ? BF16_EPS : F32_EPS) * 0.5 + 1e-37;
}

CASE_UNUSED static double gelu_tanh(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}
CASE_UNUSED static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

/* oneDNN multiplies bf16 on AVX-512 machines only, in hardware or by emulation. */
CASE_UNUSED static void skip_without_bf16(void)
{
    struct workspace workspace = workspace_open(1 << 20);
    struct grid      x = grid_drawn(DTYPE_BF16, 32, 32, 32, 0, 1);
    struct grid      y = grid_empty(DTYPE_F32, 32, 32, 32, 0);
    int rc = k_linear_cpu(y.m, x.m, x.m, NULL, ACT_NONE, DTYPE_BF16, workspace);

    free(workspace.data);
    grid_free(&x);
    grid_free(&y);
    if (rc == 0) return;
    print_message("skipped: oneDNN has no bf16 products on this processor (status %d)\n", rc);
    skip();
}

/* ------------------------------------------------------------------------------------- bench */

CASE_UNUSED static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Best time of several runs of `run(user)`. */
CASE_UNUSED static double best_seconds(void (*run)(void *user), void *user, int runs)
{
    double best = 1e30;
    for (int i = 0; i < runs; i++) {
        double start = seconds();
        run(user);
        best = fmin(best, seconds() - start);
    }
    return best;
}

CASE_UNUSED static bool wants_bench(int argc, char **argv)
{
    return argc == 2 && strcmp(argv[1], "--bench") == 0;
}

#endif
