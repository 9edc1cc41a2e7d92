/*
 * test_gemm.c - linear layers against a double-precision loop, every pair of types; --bench for
 * speed.
 *
 * Bound of one result: forming a sum of K products in f32 costs at most (K + 2) half-spacings of
 * the sum of magnitudes, whatever the order; products formed in bf16 add one bf16 rounding of each
 * factor; the activation stretches an error by at most 1.13 and has its own 2e-6; storing rounds
 * once.
 */
#include <omp.h>

#include "tests/kernels/kernel_cases.h"

struct linear_case {
    int64_t         m, n, k;
    enum dtype      y, x, w, compute;
    enum activation act;
    bool            bias;
    size_t          shift;  /* bytes that unalign w */
    int64_t         gap;    /* ld - cols of all three */
    uint64_t        workspace_bytes;
};

static double activate(double x, enum activation act)
{
    switch (act) {
    case ACT_GELU_TANH:
        return gelu_tanh(x);
    case ACT_QUICK_GELU:
        return x * sigmoid(1.702 * x);
    case ACT_SILU:
        return x * sigmoid(x);
    case ACT_NONE:
        break;
    }
    return x;
}

static void check_linear(const struct linear_case *c)
{
    struct grid x = grid_drawn(c->x, c->m, c->k, c->k + c->gap, 0, 1);
    struct grid w = grid_drawn(c->w, c->n, c->k, c->k + c->gap, c->shift, 2);
    struct grid y = grid_empty(c->y, c->m, c->n, c->n + c->gap, 0);
    float      *bias = vector_drawn(c->n, 3);
    double     *x_values = grid_values(&x), *w_values = grid_values(&w);
    struct workspace workspace = workspace_open(c->workspace_bytes);

    int rc = k_linear_cpu(y.m, x.m, w.m, c->bias ? bias : NULL, c->act, c->compute, workspace);
    assert_int_equal(rc, 0);
    for (int64_t row = 0; row < c->m; row++) {
        for (int64_t col = 0; col < c->n; col++) {
            double sum = c->bias ? (double)bias[col] : 0.0, magnitude = fabs(sum);
            for (int64_t i = 0; i < c->k; i++) {
                double product = x_values[row * c->k + i] * w_values[col * c->k + i];
                sum += product;
                magnitude += fabs(product);
            }
            double want = activate(sum, c->act);
            double relative = (double)(c->k + 2) * F32_EPS / 2;
            if (c->compute == DTYPE_BF16) relative += BF16_EPS;
            double bound = 1.13 * relative * magnitude + store_error(want, c->y) * 1.01;
            if (c->act != ACT_NONE) bound += 2e-6;
            CHECK_NEAR(get(y.m, row, col), want, bound);
        }
    }
    grid_check_gaps(&y);
    free(workspace.data);
    free(x_values);
    free(w_values);
    free(bias);
    grid_free(&x);
    grid_free(&w);
    grid_free(&y);
}

static const int64_t shapes[][3] = {{1, 1, 1},   {2, 3, 5},    {3, 17, 65},  {8, 16, 33},
                                    {16, 65, 17}, {17, 3, 129}, {65, 67, 130}, {5, 4, 2050}};
enum { SHAPES = (int)(sizeof shapes / sizeof shapes[0]) };

static void all_types(enum dtype compute)
{
    int turn = 0;
    for (int s = 0; s < SHAPES; s++) {
        for (int types = 0; types < 20; types++, turn++) {
            struct linear_case c = {
                .m = shapes[s][0],
                .n = shapes[s][1],
                .k = shapes[s][2],
                .y = types & 1 ? DTYPE_BF16 : DTYPE_F32,
                .x = types & 2 ? DTYPE_BF16 : DTYPE_F32,
                .w = (enum dtype)(types / 4),
                .compute = compute,
                .act = (enum activation)(turn % 3 == 0 ? turn / 3 % 4 : 0),
                .bias = turn % 5 != 0,
                .shift = (size_t)(turn % 2),
                .gap = turn % 7,
                .workspace_bytes = 1 << 20,
            };
            check_linear(&c);
        }
    }
}

static void test_f32_products(void **state)
{
    (void)state;
    all_types(DTYPE_F32);
}

static void test_bf16_products(void **state)
{
    (void)state;
    skip_without_bf16();
    all_types(DTYPE_BF16);
}

static void test_activations(void **state)
{
    (void)state;
    for (int act = ACT_NONE; act <= ACT_SILU; act++) {
        for (int64_t m = 5; m <= 25; m += 20) { /* both paths: few rows and many */
            struct linear_case c = {m, 33, 40, DTYPE_F32, DTYPE_F32, DTYPE_F32, DTYPE_F32,
                                    (enum activation)act, true, 0, 0, 1 << 20};
            check_linear(&c);
        }
    }
}

/* A workspace so small that every loop over blocks turns several times. */
static void many_blocks(enum dtype compute)
{
    for (int types = 0; types < 4; types++) {
        struct linear_case c = {70, 150, 31, DTYPE_F32, DTYPE_F32, DTYPE_BF16, compute,
                                ACT_GELU_TANH, true, 1, 3, 2048};
        c.y = types & 1 ? DTYPE_BF16 : DTYPE_F32;
        c.x = types & 2 ? DTYPE_BF16 : DTYPE_F32;
        check_linear(&c);
    }
}

static void test_small_workspace_f32(void **state)
{
    (void)state;
    many_blocks(DTYPE_F32);
}

static void test_small_workspace_bf16(void **state)
{
    (void)state;
    skip_without_bf16();
    many_blocks(DTYPE_BF16);
}

/* x a row of the identity: y is a column of w, exactly. */
static void test_identity_reads_weights_exactly(void **state)
{
    (void)state;
    enum { SIZE = 24 };
    struct workspace workspace = workspace_open(1 << 16);
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_F8_E5M2; dtype++) {
        struct grid x = grid_drawn(DTYPE_F32, SIZE, SIZE, SIZE, 0, 1);
        struct grid w = grid_drawn(dtype, SIZE, SIZE, SIZE, 1, 2);
        struct grid y = grid_empty(DTYPE_F32, SIZE, SIZE, SIZE, 0);
        for (int64_t i = 0; i < SIZE * SIZE; i++)
            set(x.m, i / SIZE, i % SIZE, i / SIZE == i % SIZE ? 1.0 : 0.0);
        assert_int_equal(k_linear_cpu(y.m, x.m, w.m, NULL, ACT_NONE, DTYPE_F32, workspace), 0);
        for (int64_t i = 0; i < SIZE * SIZE; i++)
            assert_true(get(y.m, i / SIZE, i % SIZE) == get(w.m, i % SIZE, i / SIZE));
        grid_free(&x);
        grid_free(&w);
        grid_free(&y);
    }
    free(workspace.data);
}

/* Shapes in which a library is tempted to share the sum itself among threads: long, and of few
 * results. */
static void test_threads_do_not_change_bits(void **state)
{
    (void)state;
    static const int64_t long_sums[][3] = {
        {24, 48, 512},   {64, 64, 64},    {96, 16, 1024},
        {200, 768, 256}, {33, 130, 2049}, {640, 64, 96}};
    struct workspace workspace = workspace_open(8 << 20);
    const int        usual = omp_get_max_threads();

    for (size_t i = 0; i < sizeof long_sums / sizeof long_sums[0]; i++) {
        const int64_t rows = long_sums[i][0], outs = long_sums[i][1], ins = long_sums[i][2];
        struct grid   x = grid_drawn(DTYPE_F32, rows, ins, ins, 0, 1);
        struct grid   w = grid_drawn(i % 2 ? DTYPE_F32 : DTYPE_BF16, outs, ins, ins, 0, 2);
        struct grid   y = grid_empty(DTYPE_F32, rows, outs, outs, 0);
        char         *first = malloc(y.bytes);
        assert_non_null(first);
        for (int threads = 1; threads <= 5; threads++) {
            omp_set_num_threads(threads);
            assert_int_equal(
                k_linear_cpu(y.m, x.m, w.m, NULL, ACT_GELU_TANH, DTYPE_F32, workspace), 0);
            if (threads == 1)
                memcpy(first, y.block, y.bytes);
            else
                assert_memory_equal(first, y.block, y.bytes);
        }
        assert_int_equal(omp_get_max_threads(), 5);
        free(first);
        grid_free(&x);
        grid_free(&w);
        grid_free(&y);
    }
    omp_set_num_threads(usual);
    free(workspace.data);
}

/* ------------------------------------------------------------------------------------- bench */

struct bench {
    struct matrix    y, x, w;
    float           *bias;
    enum activation  act;
    enum dtype       compute;
    struct workspace workspace;
};

static void run_linear(void *user)
{
    const struct bench *b = user;
    (void)k_linear_cpu(b->y, b->x, b->w, b->bias, b->act, b->compute, b->workspace);
}

static void bench_linear(int64_t m, int64_t k, int64_t n, enum dtype w_dtype, enum dtype compute,
                         enum activation act)
{
    const enum dtype act_dtype = compute;
    struct grid  x = grid_drawn(act_dtype, m, k, k, 0, 1), w = grid_drawn(w_dtype, n, k, k, 0, 2);
    struct grid  y = grid_empty(act_dtype, m, n, n, 0);
    struct bench b = {y.m, x.m, w.m, vector_drawn(n, 3), act, compute,
                      workspace_open(kernels_workspace_bytes(2, 0))};
    double best = best_seconds(run_linear, &b, m <= 64 ? 200 : 12);

    printf("linear  M=%-5lld K=%-5lld N=%-5lld w=%s compute=%s act=%d: %8.3f ms %8.1f GFLOP/s "
           "%6.1f GB/s of w\n",
           (long long)m, (long long)k, (long long)n, w_dtype == DTYPE_F32 ? "f32 " : "bf16",
           compute == DTYPE_F32 ? "f32 " : "bf16", (int)act, best * 1e3,
           2e-9 * (double)(m * n * k) / best,
           1e-9 * (double)(n * k * dtype_bytes(w_dtype)) / best);
    free(b.workspace.data);
    free(b.bias);
    grid_free(&x);
    grid_free(&w);
    grid_free(&y);
}

static int bench(void)
{
    static const int64_t sizes[][3] = {
        {4160, 256, 768}, {4160, 256, 1024}, {4160, 1024, 256}, {4160, 1280, 256}, {512, 256, 1024},
        {64, 256, 256},   {64, 256, 1024},   {1, 256, 1536},    {1, 768, 256},     {1, 3072, 9216},
        {8, 3072, 3072},  {16, 3072, 3072},  {17, 3072, 3072},  {1024, 3072, 3072}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        bench_linear(sizes[i][0], sizes[i][1], sizes[i][2], DTYPE_F32, DTYPE_F32, ACT_NONE);
        bench_linear(sizes[i][0], sizes[i][1], sizes[i][2], DTYPE_BF16, DTYPE_F32, ACT_NONE);
        if (kernels_cpu_has_bf16())
            bench_linear(sizes[i][0], sizes[i][1], sizes[i][2], DTYPE_BF16, DTYPE_BF16, ACT_NONE);
    }
    bench_linear(4160, 256, 1024, DTYPE_BF16, DTYPE_F32, ACT_GELU_TANH);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32_products),
        cmocka_unit_test(test_bf16_products),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_small_workspace_f32),
        cmocka_unit_test(test_small_workspace_bf16),
        cmocka_unit_test(test_identity_reads_weights_exactly),
        cmocka_unit_test(test_threads_do_not_change_bits),
    };
    if (wants_bench(argc, argv)) return bench();
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
