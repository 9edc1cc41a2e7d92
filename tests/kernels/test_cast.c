/*
 * test_cast.c - every bit pattern of the small types against arithmetic on exponent and mantissa.
 */
#include "tests/kernels/kernel_cases.h"

static void same_value(double got, double want)
{
    if (isnan(want))
        assert_true(isnan(got));
    else
        assert_true(got == want && !signbit(got) == !signbit(want));
}

static void test_all_16_bit_patterns_decode(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        same_value((double)cast_to_f32((uint16_t)bits, DTYPE_BF16), decode(bits, DTYPE_BF16));
        same_value((double)cast_to_f32((uint16_t)bits, DTYPE_F16), decode(bits, DTYPE_F16));
    }
}

/* All patterns of every type through k_cast_cpu, from an odd address. */
static void test_all_patterns_through_matrices(void **state)
{
    (void)state;
    for (enum dtype dtype = DTYPE_BF16; dtype <= DTYPE_F8_E5M2; dtype++) {
        const int64_t count = dtype_bytes(dtype) == 2 ? 65536 : 256;
        struct grid   source = grid_empty(dtype, 1, count, count, 1);
        struct grid   target = grid_empty(DTYPE_F32, 1, count, count, 0);
        for (int64_t i = 0; i < count; i++)
            memcpy((char *)source.m.data + i * dtype_bytes(dtype), &i, dtype_bytes(dtype));
        k_cast_cpu(target.m, source.m);
        for (int64_t i = 0; i < count; i++)
            same_value(get(target.m, 0, i), decode((uint32_t)i, dtype));
        grid_free(&source);
        grid_free(&target);
    }
}

/* Every 16-bit value, the midpoints between neighbours, and points just beside the midpoints. */
static void test_rounding_is_to_nearest_even(void **state)
{
    (void)state;
    const enum dtype types[2] = {DTYPE_BF16, DTYPE_F16};
    for (int t = 0; t < 2; t++) {
        const uint32_t largest = types[t] == DTYPE_BF16 ? 0x7f7f : 0x7bff;
        for (uint32_t bits = 0; bits < largest; bits++) {
            double low = decode(bits, types[t]), high = decode(bits + 1, types[t]);
            float  middle = (float)(0.5 * (low + high));
            assert_int_equal(cast_from_f32((float)low, types[t]), bits);
            assert_int_equal(cast_from_f32((float)-low, types[t]), bits | 0x8000u);
            assert_int_equal(cast_from_f32(middle, types[t]), bits + (bits & 1));
            assert_int_equal(cast_from_f32(nextafterf(middle, 0.0f), types[t]), bits);
            assert_int_equal(cast_from_f32(nextafterf(middle, INFINITY), types[t]), bits + 1);
        }
    }
}

static void test_overflow_and_nan(void **state)
{
    (void)state;
    assert_int_equal(cast_from_f32(65519.0f, DTYPE_F16), 0x7bff);
    assert_int_equal(cast_from_f32(65520.0f, DTYPE_F16), 0x7c00);
    assert_int_equal(cast_from_f32(-1e30f, DTYPE_F16), 0xfc00);
    assert_int_equal(cast_from_f32(3.4e38f, DTYPE_BF16), 0x7f80);
    assert_int_equal(cast_from_f32(-INFINITY, DTYPE_BF16), 0xff80);
    assert_int_equal(cast_from_f32(INFINITY, DTYPE_F16), 0x7c00);
    uint32_t low_payload = 0x7f800001;
    float    nan_value;
    memcpy(&nan_value, &low_payload, sizeof nan_value);
    assert_true(isnan(decode(cast_from_f32(nan_value, DTYPE_BF16), DTYPE_BF16)));
    assert_true(isnan(decode(cast_from_f32(nan_value, DTYPE_F16), DTYPE_F16)));
}

/* Every pair of types, odd sizes, gaps between rows, unaligned sources. */
static void test_matrices(void **state)
{
    (void)state;
    for (enum dtype from = DTYPE_F32; from <= DTYPE_F8_E5M2; from++) {
        for (enum dtype to = DTYPE_F32; to <= DTYPE_F16; to++) {
            for (int64_t cols = 1; cols <= 65; cols += 16) {
                struct grid source = grid_drawn(from, 17, cols, cols + 3, 1, 7);
                struct grid target = grid_empty(to, 17, cols, cols + 5, 0);
                k_cast_cpu(target.m, source.m);
                for (int64_t row = 0; row < 17; row++)
                    for (int64_t col = 0; col < cols; col++)
                        assert_true(get(target.m, row, col) ==
                                    decode(encode(get(source.m, row, col), to), to));
                grid_check_gaps(&target);
                grid_free(&source);
                grid_free(&target);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_16_bit_patterns_decode),
        cmocka_unit_test(test_all_patterns_through_matrices),
        cmocka_unit_test(test_rounding_is_to_nearest_even),
        cmocka_unit_test(test_overflow_and_nan),
        cmocka_unit_test(test_matrices),
    };
    return cmocka_run_group_tests_name("cast", tests, NULL, NULL);
}
