/*
 * cast.cu - the twin of cast.c's casts: element types into one another, bit for bit.
 *
 * The conversions are whole-number arithmetic on bit patterns, the same as the CPU's: the
 * instructions of the hardware make every NaN the same one.
 *
 * Read next: cast.c for why each step is right.
 */
#include "kernels/device.cuh"

struct f16 {
    uint16_t bits;
};
struct e4m3 {
    uint8_t bits;
};
struct e5m2 {
    uint8_t bits;
};

/* ------------------------------------------------------------------------------ bit patterns */

DEVICE float f16_value(uint32_t bits)
{
    const uint32_t magnitude = (bits & 0x7fffu) << 13;
    const float value = __uint_as_float(magnitude) * 0x1p112f;
    const uint32_t result =
        (bits & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : __float_as_uint(value);
    return __uint_as_float(result | (bits & 0x8000u) << 16);
}

DEVICE float value_of(uint32_t bits, float)
{
    return __uint_as_float(bits);
}
DEVICE float value_of(uint32_t bits, struct bf16)
{
    return __uint_as_float(bits << 16);
}
DEVICE float value_of(uint32_t bits, struct f16)
{
    return f16_value(bits);
}
DEVICE float value_of(uint32_t bits, struct e5m2)
{
    return f16_value(bits << 8); /* the upper byte of an f16 */
}
DEVICE float value_of(uint32_t bits, struct e4m3)
{
    const float value = __uint_as_float((bits & 0x7fu) << 20) * 0x1p120f;
    const uint32_t result = (bits & 0x7fu) == 0x7fu ? 0x7fc00000u : __float_as_uint(value);
    return __uint_as_float(result | (bits & 0x80u) << 24);
}

DEVICE uint32_t bits_of(float value, float)
{
    return __float_as_uint(value);
}
DEVICE uint32_t bits_of(float value, struct bf16)
{
    const uint32_t bits = __float_as_uint(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
}
DEVICE uint32_t bits_of(float value, struct f16)
{
    const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    const uint32_t subnormal = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
    result = magnitude >= 0x477ff000u ? 0x7c00u : result;
    result = magnitude > 0x7f800000u ? 0x7e00u : result;
    return result | ((bits >> 16) & 0x8000u);
}

/* ------------------------------------------------------------------------------------ access */

/* Eight elements in words of four bytes; sources of one byte need an 8-byte boundary, others 16. */
template <typename T> DEVICE void load_eight_as(float (&out)[8], const T *p)
{
    constexpr int WORDS = 2 * (int)sizeof(T), PER_WORD = 4 / (int)sizeof(T);
    constexpr uint32_t MASK = 0xffffffffu >> (32 - 8 * (int)sizeof(T));
    uint32_t word[WORDS];

    if (WORDS == 2) {
        const uint2 a = *(const uint2 *)p;
        word[0] = a.x, word[1] = a.y;
    } else {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++) {
            const uint4 a = ((const uint4 *)p)[i];
            word[4 * i] = a.x, word[4 * i + 1] = a.y, word[4 * i + 2] = a.z, word[4 * i + 3] = a.w;
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        out[i] = value_of(word[i / PER_WORD] >> (i % PER_WORD * 8 * (int)sizeof(T)) & MASK, T());
}

/* Files align nothing: an element is put together from its bytes. */
template <typename T> DEVICE float load_one_as(const T *p)
{
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < (int)sizeof(T); i++)
        bits |= (uint32_t)((const uint8_t *)p)[i] << 8 * i;
    return value_of(bits, T());
}

template <typename T> DEVICE void store_eight_as(T *p, const float (&value)[8])
{
    constexpr int PER_WORD = 4 / (int)sizeof(T);
    uint32_t word[8 / PER_WORD];
#pragma unroll
    for (int i = 0; i < 8 / PER_WORD; i++) {
        word[i] = bits_of(value[i * PER_WORD], T());
        if (PER_WORD == 2) word[i] |= bits_of(value[i * PER_WORD + 1], T()) << 16;
    }
#pragma unroll
    for (int i = 0; i < 8 / PER_WORD; i += 4)
        ((uint4 *)p)[i / 4] = make_uint4(word[i], word[i + 1], word[i + 2], word[i + 3]);
}
DEVICE void store_one_as(float *p, float value)
{
    *p = value;
}
template <typename T> DEVICE void store_one_as(T *p, float value)
{
    p->bits = (uint16_t)bits_of(value, T());
}

/* ----------------------------------------------------------------------------------- kernels */

template <typename Y, typename X, int V>
static __global__ void __launch_bounds__(256)
    cast_kernel(struct matrix target, struct matrix source)
{
    EACH_ROW (row, target.rows) {
        EACH_COL (col, target.cols, V) {
            Y *const y = row_at<Y>(target, row) + col;
            const X *const x = row_at<X>(source, row) + col;
            const int64_t left = target.cols - col;
            if (V == 8 && left >= 8) {
                float value[8];
                load_eight_as(value, x);
                store_eight_as(y, value);
            } else {
                for (int i = 0; i < V && i < left; i++)
                    store_one_as(y + i, load_one_as(x + i));
            }
        }
    }
}

template <typename Y, typename X>
static int cast_launch(struct matrix target, struct matrix source, cudaStream_t stream)
{
    const uintptr_t step = sizeof(X) == 1 ? 8 : 16;
    const bool source_fits = (uintptr_t)source.data % step == 0 &&
                             (source.rows <= 1 || source.ld * sizeof(X) % step == 0);
    const bool vectors = source_fits && rows_at_16(target);
    const struct spread s = spread_over(target.rows, target.cols, vectors ? 8 : 1);

    if (vectors)
        cast_kernel<Y, X, 8><<<s.grid, s.block, 0, stream>>>(target, source);
    else
        cast_kernel<Y, X, 1><<<s.grid, s.block, 0, stream>>>(target, source);
    return (int)cudaGetLastError();
}

template <typename Y>
static int cast_from(struct matrix target, struct matrix source, cudaStream_t stream)
{
    switch (source.dtype) {
    case DTYPE_F32:
        return cast_launch<Y, float>(target, source, stream);
    case DTYPE_BF16:
        return cast_launch<Y, struct bf16>(target, source, stream);
    case DTYPE_F16:
        return cast_launch<Y, struct f16>(target, source, stream);
    case DTYPE_F8_E4M3:
        return cast_launch<Y, struct e4m3>(target, source, stream);
    case DTYPE_F8_E5M2:
        return cast_launch<Y, struct e5m2>(target, source, stream);
    }
    return (int)cudaErrorInvalidValue;
}

/* A copy keeps every bit, those of a NaN included. */
static int copy(struct matrix target, struct matrix source, cudaStream_t stream)
{
    const size_t size = dtype_bytes(source.dtype);

    if (is_flat(target) && is_flat(source))
        return (int)cudaMemcpyAsync(target.data, source.data,
                                    size * (size_t)source.rows * (size_t)source.cols,
                                    cudaMemcpyDeviceToDevice, stream);
    return (int)cudaMemcpy2DAsync(target.data, size * (size_t)target.ld, source.data,
                                  size * (size_t)source.ld, size * (size_t)source.cols,
                                  (size_t)source.rows, cudaMemcpyDeviceToDevice, stream);
}

extern "C" int k_cast_cuda(struct matrix target, struct matrix source, struct CUstream_st *stream)
{
    if (!same_shape(target, source) || target.dtype > DTYPE_F16) return (int)cudaErrorInvalidValue;
    if (target.rows == 0 || target.cols == 0) return 0;
    if (target.dtype == source.dtype) return copy(target, source, stream);
    if (is_flat(target) && is_flat(source)) {
        target = as_row(target);
        source = as_row(source);
    }
    if (target.dtype == DTYPE_F32) return cast_from<float>(target, source, stream);
    if (target.dtype == DTYPE_BF16) return cast_from<struct bf16>(target, source, stream);
    return cast_from<struct f16>(target, source, stream);
}
