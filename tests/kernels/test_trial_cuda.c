/*
 * test_trial_cuda.c - the GPU's made-up numbers and grids of rotations are the CPU's, bit for bit;
 * sums of bits; bias with activation; softmax of rows.  Needs a device; says so.
 */
#include "tests/kernels/cuda_cases.h"

static void test_numbers_are_the_cpu_s(void **state)
{
    (void)state;
    skip_without_device();
    for (int turn = 0; turn < 4; turn++) {
        const enum dtype dtype = turn & 1 ? DTYPE_BF16 : DTYPE_F32;
        struct grid want = grid_empty(dtype, 65, 37, turn & 2 ? 40 : 37, 0);
        struct device_grid d = device_copy(&want);
        CUDA_OK(k_fill_cuda(d.m, 7, NULL));
        k_fill_cpu(want.m, 7);
        struct grid got = device_take(&d);
        check_same_bytes(&got, &want);
        grid_free(&got);
        grid_free(&want);
    }
}

static void test_rope_grid_is_the_cpu_s(void **state)
{
    (void)state;
    skip_without_device();
    static const int32_t sides[][2] = {{1, 1}, {3, 5}, {64, 33}, {1, 200}};
    for (size_t i = 0; i < sizeof sides / sizeof sides[0]; i++) {
        const int32_t h = sides[i][0], w = sides[i][1];
        struct grid axes[3] = {grid_drawn(DTYPE_F32, 256, 2, 2, 0, 1),
                               grid_drawn(DTYPE_F32, 256, 4, 6, 0, 2),
                               grid_drawn(DTYPE_F32, 256, 3, 3, 0, 3)};
        const struct matrix tables[3] = {axes[0].m, axes[1].m, axes[2].m};
        struct device_grid d[3];
        struct grid want = grid_empty(DTYPE_F32, (int64_t)h * w, 9, 9, 0);
        struct device_grid dy = device_copy(&want);
        for (int a = 0; a < 3; a++)
            d[a] = device_copy(&axes[a]);
        const struct matrix dtables[3] = {d[0].m, d[1].m, d[2].m};
        k_rope_grid_cpu(want.m, tables, h, w);
        CUDA_OK(k_rope_grid_cuda(dy.m, dtables, h, w, NULL));
        struct grid got = device_take(&dy);
        check_same_bytes(&got, &want);
        for (int a = 0; a < 3; a++) {
            CUDA_OK(cudaFree(d[a].block));
            grid_free(&axes[a]);
        }
        grid_free(&got);
        grid_free(&want);
    }
}

static uint64_t sum_of(struct matrix m)
{
    uint64_t zero = 0, sum = 0, *device = device_bytes(&zero, sizeof zero);

    CUDA_OK(k_checksum_cuda(device, m, NULL));
    CUDA_OK(cudaMemcpy(&sum, device, sizeof sum, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaFree(device));
    return sum;
}

static void test_sums_tell_results_apart(void **state)
{
    (void)state;
    skip_without_device();
    struct grid a = grid_drawn(DTYPE_BF16, 300, 70, 72, 0, 1), b = grid_copy(&a);
    struct device_grid da, db;

    memset((char *)b.m.data + 70 * 2, 0, 2); /* a gap: does not count */
    da = device_copy(&a);
    db = device_copy(&b);
    assert_true(sum_of(da.m) == sum_of(db.m));
    CUDA_OK(cudaFree(db.block));
    ((uint16_t *)b.m.data)[72 * 299 + 3] ^= 1; /* one bit */
    db = device_copy(&b);
    assert_true(sum_of(da.m) != sum_of(db.m));
    CUDA_OK(cudaFree(da.block));
    CUDA_OK(cudaFree(db.block));
    grid_free(&a);
    grid_free(&b);
}

static double activated(double x, enum activation act)
{
    if (act == ACT_GELU_TANH) return gelu_tanh(x);
    if (act == ACT_QUICK_GELU) return x * sigmoid(1.702 * x);
    return act == ACT_SILU ? x * sigmoid(x) : x;
}

static void test_bias_and_activation(void **state)
{
    (void)state;
    skip_without_device();
    for (enum activation act = ACT_NONE; act <= ACT_SILU; act++)
        for (int turn = 0; turn < 4; turn++) {
            struct grid x = grid_drawn(turn & 1 ? DTYPE_BF16 : DTYPE_F32, 33, 19, 21, 0, 1);
            float *bias = vector_drawn(19, 2), *dbias = device_floats(bias, 19);
            struct device_grid d = device_copy(&x);
            CUDA_OK(k_bias_act_cuda(d.m, turn & 2 ? dbias : NULL, act, NULL));
            struct grid got = device_take(&d);
            grid_check_gaps(&got);
            for (int64_t row = 0; row < 33; row++)
                for (int64_t col = 0; col < 19; col++) {
                    double sum = get(x.m, row, col) + (turn & 2 ? (double)bias[col] : 0);
                    double want = activated(sum, act);
                    CHECK_NEAR(get(got.m, row, col), want, 1e-6 + store_error(want, x.m.dtype));
                }
            CUDA_OK(cudaFree(dbias));
            free(bias);
            grid_free(&x);
            grid_free(&got);
        }
}

static void test_softmax_of_rows(void **state)
{
    (void)state;
    skip_without_device();
    static const int64_t lengths[] = {1, 5, 511, 512, 513, 4097};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        for (int turn = 0; turn < 2; turn++) {
            const int64_t cols = lengths[i];
            struct grid x = grid_drawn(DTYPE_F32, 7, cols, cols + 3, 0, 1);
            struct grid y = grid_empty(turn ? DTYPE_BF16 : DTYPE_F32, 7, cols, cols + 8, 0);
            struct device_grid dx = device_copy(&x), dy = device_copy(&y);
            CUDA_OK(k_softmax_rows_cuda(dy.m, dx.m, 4.0f, NULL));
            struct grid got = device_take(&dy);
            grid_check_gaps(&got);
            for (int64_t row = 0; row < 7; row++) {
                double sum = 0.0;
                for (int64_t col = 0; col < cols; col++)
                    sum += exp(4.0 * get(x.m, row, col));
                for (int64_t col = 0; col < cols; col++) {
                    double want = exp(4.0 * get(x.m, row, col)) / sum;
                    CHECK_NEAR(get(got.m, row, col), want,
                               1e-5 * want + store_error(want, y.m.dtype));
                }
            }
            CUDA_OK(cudaFree(dx.block));
            grid_free(&x);
            grid_free(&y);
            grid_free(&got);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_numbers_are_the_cpu_s),
                                       cmocka_unit_test(test_rope_grid_is_the_cpu_s),
                                       cmocka_unit_test(test_sums_tell_results_apart),
                                       cmocka_unit_test(test_bias_and_activation),
                                       cmocka_unit_test(test_softmax_of_rows)};
    return cmocka_run_group_tests_name("trial_cuda", tests, NULL, NULL);
}
