/*
 * test_norm.c - layer, RMS and group norm against double precision; properties; --bench for speed.
 *
 * Bound of one output y = (x - mean) * inverse * a + b, all of magnitude about 1: a mean or
 * variance of n values in f32 is off by at most n half-spacings (far less in practice, since sums
 * run in lanes), the rest adds a few roundings.
 */
#include <omp.h>

#include "tests/kernels/kernel_cases.h"

static const int64_t shapes[][2] = {{1, 1}, {2, 3}, {3, 17}, {17, 64}, {65, 130}, {2, 3072}};
enum { SHAPES = (int)(sizeof shapes / sizeof shapes[0]) };

static double moment(const double *x, int64_t count, double about, int power)
{
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++)
        sum += pow(x[i] - about, power);
    return sum / (double)count;
}

/* ---------------------------------------------------------------------------------- row norms */

static void check_row_norm(enum dtype y_dtype, enum dtype x_dtype, int64_t rows, int64_t cols,
                           bool layer, bool one)
{
    struct grid x = grid_drawn(x_dtype, rows, cols, cols + 3, 0, 1);
    struct grid y = grid_empty(y_dtype, rows, cols, cols + 1, 0);
    double     *values = grid_values(&x);
    float      *scale = vector_drawn(cols, 2), *shift = vector_drawn(cols, 3);
    const double eps = 1e-6;

    if (layer)
        k_layer_norm_cpu(y.m, x.m, scale, shift, one, (float)eps);
    else
        k_rms_norm_cpu(y.m, x.m, scale, (float)eps);
    for (int64_t row = 0; row < rows; row++) {
        const double *line = values + row * cols;
        double mean = layer ? moment(line, cols, 0.0, 1) : 0.0;
        double inverse = 1.0 / sqrt(moment(line, cols, mean, 2) + eps);
        /* The mean's error is magnified where the variance is small. */
        double bound = (16 + (double)cols / 16) * F32_EPS * (1 + inverse);
        for (int64_t col = 0; col < cols; col++) {
            double factor = (double)scale[col] + (one ? 1.0 : 0.0);
            double unit = (line[col] - mean) * inverse;
            double want = unit * factor + (layer ? (double)shift[col] : 0.0);
            CHECK_NEAR(get(y.m, row, col), want,
                       bound * (fabs(unit * factor) + 1) + store_error(want, y_dtype) * 1.01);
        }
    }
    grid_check_gaps(&y);
    free(values);
    free(scale);
    free(shift);
    grid_free(&x);
    grid_free(&y);
}

static void test_row_norms(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        for (int turn = 0; turn < 8; turn++) {
            enum dtype y = turn & 1 ? DTYPE_BF16 : DTYPE_F32, x = turn & 2 ? DTYPE_BF16 : DTYPE_F32;
            check_row_norm(y, x, shapes[s][0], shapes[s][1], true, turn & 4);
            check_row_norm(y, x, shapes[s][0], shapes[s][1], false, false);
        }
    }
}

/* One pass or two calls: the same bits in the stream and in the normalised rows. */
static void test_gate_add_layer_norm_is_two_calls(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        for (int turn = 0; turn < 8; turn++) {
            const int64_t rows = shapes[s][0], cols = shapes[s][1];
            const enum dtype y_type = turn & 1 ? DTYPE_BF16 : DTYPE_F32;
            const enum dtype out_type = turn & 2 ? DTYPE_BF16 : DTYPE_F32;
            const bool in_place = turn & 4 && y_type == out_type;
            struct grid x[2], y[2], out[2];
            float *gate = vector_drawn(cols, 3), *scale = vector_drawn(cols, 4);
            float *shift = vector_drawn(cols, 5);
            for (int i = 0; i < 2; i++) {
                x[i] = grid_drawn(DTYPE_F32, rows, cols, cols + 3, 0, 1);
                y[i] = grid_drawn(y_type, rows, cols, cols + 1, 0, 2);
                out[i] = grid_empty(out_type, rows, cols, cols + 2, 0);
            }
            struct gate_norm_request request = {in_place ? y[0].m : out[0].m, x[0].m, y[0].m, gate,
                                                scale, shift, 1e-6f};
            k_gate_add_layer_norm_cpu(&request);
            k_gate_add_cpu(x[1].m, y[1].m, gate);
            k_layer_norm_cpu(in_place ? y[1].m : out[1].m, x[1].m, scale, shift, true, 1e-6f);
            assert_memory_equal(x[0].block, x[1].block, x[0].bytes);
            assert_memory_equal(y[0].block, y[1].block, y[0].bytes);
            assert_memory_equal(out[0].block, out[1].block, out[0].bytes);
            free(gate);
            free(scale);
            free(shift);
            for (int i = 0; i < 2; i++) {
                grid_free(&x[i]);
                grid_free(&y[i]);
                grid_free(&out[i]);
            }
        }
    }
}

/* A row far from zero keeps its variance: the mean is taken away before squaring. */
static void test_layer_norm_of_row_far_from_zero(void **state)
{
    (void)state;
    struct grid x = grid_drawn(DTYPE_F32, 1, 64, 64, 0, 1);
    float scale[64], shift[64] = {0};
    for (int64_t i = 0; i < 64; i++) {
        set(x.m, 0, i, 8192 + (i % 2 ? 1 : -1)); /* deviation 1 */
        scale[i] = 1.0f;
    }
    k_layer_norm_cpu(x.m, x.m, scale, shift, false, 0.0f);
    for (int64_t i = 0; i < 64; i++)
        CHECK_NEAR(get(x.m, 0, i), i % 2 ? 1 : -1, 1e-6);
    grid_free(&x);
}

/* --------------------------------------------------------------------------------- group norm */

struct group_norm {
    const float *weight, *bias;
    int32_t      groups;
    float        eps;
    bool         silu;
};

/* The three steps over a map of `runs` runs, `strip` of them at a time. */
static void group_norm_strips(struct matrix y, struct matrix x, const struct group_norm *norm,
                              int64_t runs, int64_t strip)
{
    const int64_t run_rows = x.rows / runs;
    struct grid   stats = grid_empty(DTYPE_F32, runs, 2 * x.cols, 2 * x.cols + 1, 0);
    struct grid   table = grid_empty(DTYPE_F32, 2, x.cols, x.cols, 0);

    for (int64_t first = 0; first < runs; first += strip) {
        const int64_t count = first + strip < runs ? strip : runs - first;
        struct matrix rows = x, part = stats.m;
        rows.data = (char *)x.data + (size_t)(first * run_rows * x.ld) * dtype_bytes(x.dtype);
        rows.rows = count * run_rows;
        part.data = (float *)stats.m.data + first * stats.m.ld;
        part.rows = count;
        k_group_stats_cpu(part, rows);
    }
    k_group_merge_cpu(table.m, stats.m, norm->weight, run_rows, norm->groups, norm->eps);
    k_group_apply_cpu(y, x, table.m, norm->bias, norm->silu);
    grid_check_gaps(&stats);
    grid_free(&stats);
    grid_free(&table);
}

static void group_norm(struct matrix y, struct matrix x, const struct group_norm *norm,
                       int64_t runs)
{
    group_norm_strips(y, x, norm, runs, runs);
}

struct group_case {
    enum dtype y, x;
    int64_t    rows, cols, runs;
    int32_t    groups;
    bool       silu, in_place;
};

static void check_group_norm(const struct group_case *c)
{
    const int64_t channels = c->cols / c->groups, count = channels * c->rows;
    struct grid x = grid_drawn(c->x, c->rows, c->cols, c->cols + 3, 0, 1);
    struct grid y = grid_empty(c->y, c->rows, c->cols, c->cols + 1, 0);
    double     *values = grid_values(&x);
    double     *group = malloc((size_t)count * sizeof *group);
    float      *weight = vector_drawn(c->cols, 2), *bias = vector_drawn(c->cols, 3);
    const double eps = 1e-6;
    const struct group_norm norm = {weight, bias, c->groups, (float)eps, c->silu};

    assert_non_null(group);
    struct matrix got = c->in_place ? x.m : y.m;
    group_norm(got, x.m, &norm, c->runs);
    for (int64_t g = 0; g < c->groups; g++) {
        for (int64_t i = 0; i < count; i++)
            group[i] = values[i / channels * c->cols + g * channels + i % channels];
        double mean = moment(group, count, 0.0, 1);
        double inverse = 1.0 / sqrt(moment(group, count, mean, 2) + eps);
        for (int64_t i = 0; i < count; i++) {
            int64_t row = i / channels, col = g * channels + i % channels;
            double  unit = (group[i] - mean) * inverse;
            double  want = unit * (double)weight[col] + (double)bias[col];
            if (c->silu) want *= sigmoid(want);
            /* partial sums are short and merged in double: tens of roundings at most */
            double bound = 64 * F32_EPS * (1 + inverse) * (1 + fabs(unit));
            CHECK_NEAR(get(got, row, col), want, bound + store_error(want, got.dtype) * 1.01);
        }
    }
    if (!c->in_place) grid_check_gaps(&y);
    free(values);
    free(group);
    free(weight);
    free(bias);
    grid_free(&x);
    grid_free(&y);
}

static void test_group_norm(void **state)
{
    (void)state;
    /* rows, channels, groups, runs */
    static const int64_t maps[][4] = {{1, 2, 1, 1},       {2, 6, 3, 2},        {17, 17, 1, 17},
                                      {65, 32, 32, 5},    {300, 64, 8, 20},    {1030, 32, 4, 1},
                                      {20000, 4, 2, 100}, {1024, 300, 150, 32}};
    for (size_t m = 0; m < sizeof maps / sizeof maps[0]; m++) {
        for (int turn = 0; turn < 8; turn++) {
            struct group_case c = {turn & 1 ? DTYPE_BF16 : DTYPE_F32,
                                   turn & 2 ? DTYPE_BF16 : DTYPE_F32,
                                   maps[m][0], maps[m][1], maps[m][3], (int32_t)maps[m][2],
                                   turn & 4,   turn == 0 || turn == 7};
            check_group_norm(&c);
        }
    }
}

static void test_group_norm_of_constant_map_is_bias(void **state)
{
    (void)state;
    struct grid x = grid_drawn(DTYPE_F32, 500, 32, 32, 0, 1);
    float *weight = vector_drawn(32, 2), *bias = vector_drawn(32, 3);
    for (int64_t i = 0; i < 500 * 32; i++)
        set(x.m, i / 32, i % 32, 1000.25);
    group_norm(x.m, x.m, &(struct group_norm){weight, bias, 8, 1e-6f, false}, 25);
    for (int64_t i = 0; i < 500 * 32; i++)
        assert_true(get(x.m, i / 32, i % 32) == (double)bias[i % 32]);
    free(weight);
    free(bias);
    grid_free(&x);
}

/* A mean a thousand deviations away: a sum of squares in f32 would lose the variance. */
static void test_group_norm_far_from_zero(void **state)
{
    (void)state;
    enum { ROWS = 40000 };
    struct grid x = grid_empty(DTYPE_F32, ROWS, 4, 4, 0);
    const float weight[4] = {1, 1, 1, 1}, bias[4] = {0};
    for (int64_t i = 0; i < ROWS * 4; i++)
        set(x.m, i / 4, i % 4, 1024 + (i % 3 == 0 ? 1.0 : -0.5));
    group_norm(x.m, x.m, &(struct group_norm){weight, bias, 1, 0.0f, false}, ROWS / 200);
    const double deviation = sqrt(0.5); /* of 1, -1/2, -1/2 */
    for (int64_t i = 0; i < ROWS * 4; i++)
        CHECK_NEAR(get(x.m, i / 4, i % 4), (i % 3 == 0 ? 1.0 : -0.5) / deviation,
                   1024 * F32_EPS * 2); /* the mean rounds at 1024 */
    grid_free(&x);
}

static void test_threads_and_strips_do_not_change_bits(void **state)
{
    (void)state;
    struct grid x = grid_drawn(DTYPE_F32, 5000, 32, 32, 0, 1);
    struct grid y = grid_empty(DTYPE_F32, 5000, 32, 32, 0);
    float *weight = vector_drawn(32, 2), *bias = vector_drawn(32, 3);
    const struct group_norm norm = {weight, bias, 8, 1e-6f, true};
    const int usual = omp_get_max_threads();
    char *first = malloc(y.bytes);

    assert_non_null(first);
    group_norm(y.m, x.m, &norm, 50);
    memcpy(first, y.block, y.bytes);
    for (int threads = 1; threads <= 5; threads++) {
        omp_set_num_threads(threads);
        for (int64_t strip = 1; strip <= 50; strip += 1 + strip / 2) {
            memset(y.block, GAP_BYTE, y.bytes);
            group_norm_strips(y.m, x.m, &norm, 50, strip);
            assert_memory_equal(first, y.block, y.bytes);
        }
    }
    omp_set_num_threads(usual);
    free(first);
    free(weight);
    free(bias);
    grid_free(&x);
    grid_free(&y);
}

/* ------------------------------------------------------------------------------------- bench */

struct bench {
    struct matrix y, x;
    float        *scale, *shift;
};

static void run_layer_norm(void *user)
{
    const struct bench *b = user;
    k_layer_norm_cpu(b->y, b->x, b->scale, b->shift, true, 1e-6f);
}

static void run_group_norm(void *user)
{
    const struct bench *b = user;
    group_norm(b->y, b->x, &(struct group_norm){b->scale, b->shift, 32, 1e-6f, true}, 1024);
}

static void bench_norm(const char *name, void (*run)(void *), int64_t rows, int64_t cols)
{
    struct grid  x = grid_drawn(DTYPE_F32, rows, cols, cols, 0, 1);
    struct grid  y = grid_empty(DTYPE_F32, rows, cols, cols, 0);
    struct bench b = {y.m, x.m, vector_drawn(cols, 2), vector_drawn(cols, 3)};
    double best = best_seconds(run, &b, 8);

    printf("%-10s %7lld x %-5lld f32: %8.3f ms %6.1f GB/s of x and y\n", name, (long long)rows,
           (long long)cols, best * 1e3, 8e-9 * (double)(rows * cols) / best);
    free(b.scale);
    free(b.shift);
    grid_free(&x);
    grid_free(&y);
}

static int bench(void)
{
    bench_norm("layer norm", run_layer_norm, 4160, 256);
    bench_norm("layer norm", run_layer_norm, 4608, 3072);
    bench_norm("group norm", run_group_norm, 2048 * 1024, 32);
    bench_norm("group norm", run_group_norm, 512 * 512, 256);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_norms),
        cmocka_unit_test(test_gate_add_layer_norm_is_two_calls),
        cmocka_unit_test(test_layer_norm_of_row_far_from_zero),
        cmocka_unit_test(test_group_norm),
        cmocka_unit_test(test_group_norm_of_constant_map_is_bias),
        cmocka_unit_test(test_group_norm_far_from_zero),
        cmocka_unit_test(test_threads_and_strips_do_not_change_bits),
    };
    if (wants_bench(argc, argv)) return bench();
    return cmocka_run_group_tests_name("norm", tests, NULL, NULL);
}
