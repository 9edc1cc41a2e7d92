/*
 * cast.c - element types into one another.
 *
 * Owns the bit patterns: bf16, f16, f8 e4m3 (no infinities, one NaN pattern per sign) and f8 e5m2.
 * Conversions towards fewer bits round to nearest even; overflow becomes infinity.
 *
 * Read next: gemm.c, which casts weights block by block.
 */
#include "kernels/kernels_int.h"

/* Shift the exponent and mantissa of a small format into place, then let one multiplication by a
 * power of two correct the exponent's bias: it treats subnormals as well as normals. */
KERNEL_INLINE float f16_value(uint16_t bits)
{
    uint32_t magnitude = (uint32_t)(bits & 0x7fffu) << 13;
    float    value = float_from_bits(magnitude) * 0x1p112f;
    uint32_t result = (bits & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : float_bits(value);
    return float_from_bits(result | (uint32_t)(bits & 0x8000u) << 16);
}

KERNEL_INLINE float e4m3_value(uint8_t bits)
{
    uint32_t magnitude = (uint32_t)(bits & 0x7fu) << 20;
    float    value = float_from_bits(magnitude) * 0x1p120f;
    uint32_t result = (bits & 0x7fu) == 0x7fu ? 0x7fc00000u : float_bits(value);
    return float_from_bits(result | (uint32_t)(bits & 0x80u) << 24);
}

KERNEL_INLINE uint16_t f32_to_f16(float value)
{
    uint32_t bits = float_bits(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    /* Below 2^-14 the result is subnormal: adding 0.5 lines its last bit (2^-24) up with the last
     * bit of the sum, and the addition rounds. */
    uint32_t subnormal = float_bits(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
    result = magnitude >= 0x477ff000u ? 0x7c00u : result;
    result = magnitude > 0x7f800000u ? 0x7e00u : result;
    return (uint16_t)(result | sign);
}

float cast_to_f32(uint16_t bits, enum dtype dtype)
{
    must(dtype == DTYPE_BF16 || dtype == DTYPE_F16);
    return dtype == DTYPE_BF16 ? bf16_to_f32(bits) : f16_value(bits);
}

uint16_t cast_from_f32(float value, enum dtype dtype)
{
    must(dtype == DTYPE_BF16 || dtype == DTYPE_F16);
    return dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
}

KERNEL_INLINE float load_any(const void *data, enum dtype dtype, int64_t i)
{
    switch (dtype) {
    case DTYPE_F32: return ((const any_f32 *)data)[i];
    case DTYPE_BF16: return bf16_to_f32(((const any_u16 *)data)[i]);
    case DTYPE_F16: return f16_value(((const any_u16 *)data)[i]);
    case DTYPE_F8_E4M3: return e4m3_value(((const uint8_t *)data)[i]);
    case DTYPE_F8_E5M2: /* the upper byte of an f16 */
        return f16_value((uint16_t)(((const uint8_t *)data)[i] << 8));
    }
    return 0.0f;
}

KERNEL_INLINE void store_any(void *data, enum dtype dtype, int64_t i, float value)
{
    if (dtype == DTYPE_F16)
        ((any_u16 *)data)[i] = f32_to_f16(value);
    else
        act_store(data, dtype, i, value);
}

KERNEL_INLINE void cast_body(enum dtype target_dtype, enum dtype source_dtype, void *target,
                             const void *source, int64_t count)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        store_any(target, target_dtype, i, load_any(source, source_dtype, i));
}

KERNEL_INLINE void cast_from(enum dtype target_dtype, enum dtype source_dtype, void *target,
                             const void *source, int64_t count)
{
    switch (source_dtype) {
    case DTYPE_F32: cast_body(target_dtype, DTYPE_F32, target, source, count); break;
    case DTYPE_BF16: cast_body(target_dtype, DTYPE_BF16, target, source, count); break;
    case DTYPE_F16: cast_body(target_dtype, DTYPE_F16, target, source, count); break;
    case DTYPE_F8_E4M3: cast_body(target_dtype, DTYPE_F8_E4M3, target, source, count); break;
    case DTYPE_F8_E5M2: cast_body(target_dtype, DTYPE_F8_E5M2, target, source, count); break;
    }
}

KERNEL_CLONES static void cast_row(enum dtype target_dtype, enum dtype source_dtype, void *target,
                                   const void *source, int64_t count)
{
    if (target_dtype == DTYPE_F32)
        cast_from(DTYPE_F32, source_dtype, target, source, count);
    else if (target_dtype == DTYPE_BF16)
        cast_from(DTYPE_BF16, source_dtype, target, source, count);
    else
        cast_from(DTYPE_F16, source_dtype, target, source, count);
}

void cast_elements(void *target, enum dtype target_dtype, const void *source,
                   enum dtype source_dtype, int64_t count)
{
    /* A copy keeps every bit, those of a NaN included. */
    if (target_dtype == source_dtype)
        memmove(target, source, (size_t)count * dtype_bytes(source_dtype));
    else
        cast_row(target_dtype, source_dtype, target, source, count);
}

/* Without gaps there are no rows: pixels are millions of three elements, a vector is one of all.
 * A bias is too short to be shared out: who wakes other threads for it waits longer for them. */
static void cast_flat(struct matrix target, struct matrix source)
{
    const int64_t all = source.rows * source.cols, each = 16384;
    const int64_t from = dtype_bytes(source.dtype), to = dtype_bytes(target.dtype);

#pragma omp parallel for schedule(static) if (all > 4 * each)
    for (int64_t first = 0; first < all; first += each)
        cast_elements((char *)target.data + first * to, target.dtype,
                      (const char *)source.data + first * from, source.dtype,
                      min_i64(each, all - first));
}

void k_cast_cpu(struct matrix target, struct matrix source)
{
    must(same_shape(target, source));
    must(target.dtype == DTYPE_F32 || target.dtype == DTYPE_BF16 || target.dtype == DTYPE_F16);
    if (target.ld == target.cols && source.ld == source.cols) {
        cast_flat(target, source);
        return;
    }
#pragma omp parallel for schedule(static) if (source.rows * source.cols > 16384)
    for (int64_t row = 0; row < source.rows; row++)
        cast_elements(row_of(target, row), target.dtype, row_of(source, row), source.dtype,
                      source.cols);
}
