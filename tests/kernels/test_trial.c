/*
 * test_trial.c - made-up numbers and grids of rotations on the CPU.
 */
#include "tests/kernels/kernel_cases.h"

static void test_numbers_depend_on_seed_row_and_column_only(void **state)
{
    (void)state;
    struct grid a = grid_empty(DTYPE_F32, 9, 33, 40, 0), b = grid_empty(DTYPE_F32, 9, 33, 33, 0);
    struct grid c = grid_empty(DTYPE_BF16, 9, 33, 33, 0), d = grid_empty(DTYPE_F32, 9, 33, 33, 0);
    double sum = 0.0, squares = 0.0;
    int same = 0;

    k_fill_cpu(a.m, 5);
    k_fill_cpu(b.m, 5);
    k_fill_cpu(c.m, 5);
    k_fill_cpu(d.m, 6);
    grid_check_gaps(&a);
    for (int64_t row = 0; row < 9; row++)
        for (int64_t col = 0; col < 33; col++) {
            const double value = get(a.m, row, col);
            assert_true(fabs(value) < 0.25 && value != 0);
            assert_true(value == get(b.m, row, col));
            assert_true(value == get(c.m, row, col)); /* exact in bf16 */
            same += value == get(d.m, row, col);
            sum += value;
            squares += value * value;
        }
    assert_true(same < 10);
    CHECK_NEAR(sum / 297, 0.0, 0.02);
    CHECK_NEAR(sqrt(squares / 297), 0.0635, 0.01);
    grid_free(&a);
    grid_free(&b);
    grid_free(&c);
    grid_free(&d);
}

/* Or trials of products could not tell which of them round alike. */
static void test_sums_of_products_show_their_order(void **state)
{
    (void)state;
    struct grid x = grid_empty(DTYPE_F32, 64, 512, 512, 0);
    struct grid w = grid_empty(DTYPE_F32, 64, 512, 512, 0);
    int apart = 0;

    k_fill_cpu(x.m, 1);
    k_fill_cpu(w.m, 2);
    for (int64_t row = 0; row < 64; row++) {
        volatile float up = 0, down = 0;
        for (int64_t i = 0; i < 512; i++) {
            up += (float)(get(x.m, row, i) * get(w.m, row, i));
            down += (float)(get(x.m, row, 511 - i) * get(w.m, row, 511 - i));
        }
        apart += up != down;
    }
    assert_true(apart > 32);
    grid_free(&x);
    grid_free(&w);
}

static void test_grid_takes_rows_of_its_axes(void **state)
{
    (void)state;
    const int32_t h = 3, w = 5;
    struct grid axes[3] = {grid_drawn(DTYPE_F32, 7, 2, 3, 0, 1),
                           grid_drawn(DTYPE_F32, 7, 4, 4, 0, 2),
                           grid_drawn(DTYPE_F32, 7, 3, 3, 0, 3)};
    const struct matrix tables[3] = {axes[0].m, axes[1].m, axes[2].m};
    struct grid y = grid_empty(DTYPE_F32, h * w, 9, 11, 0);

    k_rope_grid_cpu(y.m, tables, h, w);
    grid_check_gaps(&y);
    for (int64_t token = 0; token < h * w; token++)
        for (int64_t col = 0; col < 9; col++) {
            const int axis = col < 2 ? 0 : col < 6 ? 1 : 2;
            const int64_t at = axis == 0 ? col : axis == 1 ? col - 2 : col - 6;
            assert_true(get(y.m, token, col) ==
                        get(tables[axis], axis == 1 ? token / w : token % w, at));
        }
    for (int i = 0; i < 3; i++)
        grid_free(&axes[i]);
    grid_free(&y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers_depend_on_seed_row_and_column_only),
        cmocka_unit_test(test_sums_of_products_show_their_order),
        cmocka_unit_test(test_grid_takes_rows_of_its_axes)};
    return cmocka_run_group_tests_name("trial", tests, NULL, NULL);
}
