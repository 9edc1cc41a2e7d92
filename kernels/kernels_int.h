/*
 * kernels_int.h - what the CPU files of this folder share: function clones, element access, a fast
 * exp, pieces of the caller's workspace.
 *
 * Read next: cast.c, the smallest user.
 */
#ifndef MURAL_KERNELS_INT_H
#define MURAL_KERNELS_INT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/base.h"
#include "kernels/kernels.h"

/* KERNEL_CLONES compiles a function for AVX-512, for AVX2 and for the baseline; the loader picks.
 * Put it on the function called *from* an OpenMP loop: the body that OpenMP outlines is compiled
 * for the baseline whatever its parent says.  The names are feature levels on purpose: "haswell"
 * would be chosen on a Haswell and nowhere else.
 *
 * The resolvers run before a sanitizer is ready, so sanitized builds go without; so do C libraries
 * and machines that have no resolvers, and clang, whose version 14 resolves levels wrongly. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KERNEL_SANITIZED 1
#endif
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && !defined(KERNEL_SANITIZED)
#define KERNEL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define KERNEL_CLONES
#endif
/* clang reports each `omp simd` loop that it leaves scalar; gcc does not.  Such a loop is slow, not
 * wrong, and the bench modes of the tests show it. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed"
#endif
/* For bodies that must become part of each clone, their dtype arguments folded to constants. */
#define KERNEL_INLINE static inline __attribute__((always_inline))

/* Weights are mapped files: an element may start at any address. */
typedef uint16_t any_u16 __attribute__((aligned(1), may_alias));
typedef float    any_f32 __attribute__((aligned(1), may_alias));

KERNEL_INLINE float float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
KERNEL_INLINE uint32_t float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

KERNEL_INLINE float bf16_to_f32(uint16_t bits)
{
    return float_from_bits((uint32_t)bits << 16);
}
/* Nearest even; a NaN stays a NaN even when only low bits of its payload are set. */
KERNEL_INLINE uint16_t f32_to_bf16(float value)
{
    uint32_t bits = float_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

/* Activations: f32 or bf16 only. */
KERNEL_INLINE float act_load(const void *data, enum dtype dtype, int64_t i)
{
    return dtype == DTYPE_F32 ? ((const any_f32 *)data)[i]
                              : bf16_to_f32(((const any_u16 *)data)[i]);
}
KERNEL_INLINE void act_store(void *data, enum dtype dtype, int64_t i, float value)
{
    if (dtype == DTYPE_F32)
        ((any_f32 *)data)[i] = value;
    else
        ((any_u16 *)data)[i] = f32_to_bf16(value);
}

/* body(dtype of y, dtype of x, ...) with both dtypes as constants. */
#define BY_ACT_DTYPES(body, y_dtype, x_dtype, ...)                                                 \
    do {                                                                                           \
        if ((y_dtype) == DTYPE_F32 && (x_dtype) == DTYPE_F32)                                      \
            body(DTYPE_F32, DTYPE_F32, __VA_ARGS__);                                               \
        else if ((y_dtype) == DTYPE_F32)                                                           \
            body(DTYPE_F32, DTYPE_BF16, __VA_ARGS__);                                              \
        else if ((x_dtype) == DTYPE_F32)                                                           \
            body(DTYPE_BF16, DTYPE_F32, __VA_ARGS__);                                              \
        else                                                                                       \
            body(DTYPE_BF16, DTYPE_BF16, __VA_ARGS__);                                             \
    } while (0)

static inline bool is_act(struct matrix m)
{
    return m.dtype == DTYPE_F32 || m.dtype == DTYPE_BF16;
}
static inline bool same_shape(struct matrix a, struct matrix b)
{
    return a.rows == b.rows && a.cols == b.cols;
}
static inline void *row_of(struct matrix m, int64_t row)
{
    return (char *)m.data + (size_t)row * (size_t)m.ld * dtype_bytes(m.dtype);
}

/* `count` elements in a row (cast.c): k_cast_cpu for callers that are already in a parallel loop.
 * Target f32, bf16 or f16. */
void cast_elements(void *target, enum dtype target_dtype, const void *source,
                   enum dtype source_dtype, int64_t count);

/* x += gate * y in a row (pointwise.c): k_gate_add_cpu for callers that are already in a parallel
 * loop. */
void pointwise_gate_add(enum dtype x_dtype, enum dtype y_dtype, void *x, const void *y,
                        const float *gate, int64_t cols);

#define LOG2_E 1.44269504089f

/* 2^x, relative error below 1.1e-7, exactly 1 at 0; clamped to 2^-126 and 2^127, so that 0 and
 * infinity never appear; NaN stays.  Plain arithmetic, so that a loop over it becomes vector code;
 * libm's is called element by element. */
KERNEL_INLINE float fast_exp2(float x)
{
    /* 1.5 * 2^23 makes an addition round to a whole number; 127 more puts that number, as the
     * exponent of a float counts, into the low bits of the sum. */
    const float magic = 12582912.0f + 127.0f;
    x = x < -126.0f ? -126.0f : x;
    x = x > 127.0f ? 127.0f : x;
    const float shifted = x + magic;
    const float r = x - (shifted - magic);
    /* Least largest relative error (2e-9) on |r| <= 1/2 among those that are 1 at 0. */
    float p = 1.5353362e-4f;
    p = p * r + 1.3398875e-3f;
    p = p * r + 9.6184369e-3f;
    p = p * r + 5.5503324e-2f;
    p = p * r + 2.4022648e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.0f;
    return p * float_from_bits(float_bits(shifted) << 23);
}
/* The relative error grows by 6e-8 for each unit of |x|, which is what rounding x costs anyway. */
KERNEL_INLINE float fast_exp(float x)
{
    return fast_exp2(x * LOG2_E);
}
KERNEL_INLINE float fast_sigmoid(float x)
{
    return 1.0f / (1.0f + fast_exp(-x));
}
KERNEL_INLINE float fast_gelu_tanh(float x)
{
    /* 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
    return x * fast_sigmoid(1.59576912161f * (x + 0.044715f * x * x * x));
}

/* The next `bytes` of a workspace, at 64-byte alignment.  The sizes follow from
 * kernels_workspace_bytes, so running out is our bug. */
static inline void *workspace_take(struct workspace *workspace, uint64_t bytes)
{
    uint64_t rounded = (bytes + 63u) & ~(uint64_t)63u;
    must(rounded >= bytes && rounded <= workspace->bytes);
    void *piece = workspace->data;
    workspace->data = (char *)workspace->data + rounded;
    workspace->bytes -= rounded;
    return piece;
}

#endif
