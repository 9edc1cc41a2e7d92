/*
 * test_norm_cuda.c - the GPU's norms against the CPU's; properties; --bench for speed.  Needs a
 * device; says so.
 *
 * Both twins take the same steps in f32 and differ in the order of sums only, which moves a mean or
 * a variance by a few spacings; where the variance is small, that is magnified.
 */
#include "tests/kernels/cuda_cases.h"

/* ---------------------------------------------------------------------------------- row norms */

enum norm { LAYER, LAYER_PLUS_ONE, RMS, GATED, NORMS };

struct row_case {
    enum norm  norm;
    enum dtype out, x, branch;
    int64_t    rows, cols, gap; /* of all three matrices */
    bool       in_place;        /* out is x or, for GATED, the branch */
};

static void run_cpu(const struct row_case *c, struct matrix out, struct matrix x,
                    struct matrix branch, float *const vectors[3])
{
    const struct gate_norm_request request = {out,        x,          branch, vectors[0],
                                              vectors[1], vectors[2], 1e-6f};
    if (c->norm == GATED)
        k_gate_add_layer_norm_cpu(&request);
    else if (c->norm == RMS)
        k_rms_norm_cpu(out, x, vectors[1], 1e-6f);
    else
        k_layer_norm_cpu(out, x, vectors[1], vectors[2], c->norm == LAYER_PLUS_ONE, 1e-6f);
}

static int run_cuda(const struct row_case *c, struct matrix out, struct matrix x,
                    struct matrix branch, float *const vectors[3])
{
    const struct gate_norm_request request = {out,        x,          branch, vectors[0],
                                              vectors[1], vectors[2], 1e-6f};
    if (c->norm == GATED) return k_gate_add_layer_norm_cuda(&request, NULL);
    if (c->norm == RMS) return k_rms_norm_cuda(out, x, vectors[1], 1e-6f, NULL);
    return k_layer_norm_cuda(out, x, vectors[1], vectors[2], c->norm == LAYER_PLUS_ONE, 1e-6f,
                             NULL);
}

static void check_rows(const struct row_case *c)
{
    const int64_t      ld = c->cols + c->gap;
    struct grid        x = grid_drawn(c->x, c->rows, c->cols, ld, 0, 1);
    struct grid        branch = grid_drawn(c->branch, c->rows, c->cols, ld, 0, 2);
    struct grid        out = grid_empty(c->out, c->rows, c->cols, ld, 0);
    struct device_grid dx = device_copy(&x), dbranch = device_copy(&branch),
                       dout = device_copy(&out);
    float *vectors[3], *dvectors[3];

    for (int i = 0; i < 3; i++) {
        vectors[i] = vector_drawn(c->cols, 3 + (uint64_t)i);
        dvectors[i] = device_floats(vectors[i], c->cols);
    }
    const bool    gated = c->norm == GATED;
    struct matrix target = !c->in_place ? out.m : gated ? branch.m : x.m;
    struct matrix dtarget = !c->in_place ? dout.m : gated ? dbranch.m : dx.m;
    run_cpu(c, target, x.m, branch.m, vectors);
    CUDA_OK(run_cuda(c, dtarget, dx.m, dbranch.m, dvectors));

    struct grid  got[3] = {device_take(&dout), device_take(&dx), device_take(&dbranch)};
    struct grid *want[3] = {&out, &x, &branch};
    for (int i = 0; i < 3; i++) {
        const bool is_target = i == (!c->in_place ? 0 : gated ? 2 : 1);
        if (is_target) {
            /* Three values may lie close together; many do not. */
            check_twins(&got[i], want[i], c->cols < 16 ? 1e-4 : 1e-5);
            assert_true(distance(&got[i], want[i]) < (c->out == DTYPE_BF16 ? 1e-2 : 1e-5));
        } else if (i == 1 && gated) {
            check_twins(&got[i], want[i], F32_EPS);
        } else if (i > 0) {
            check_same_bytes(&got[i], want[i]);
        }
        grid_free(&got[i]);
        grid_free(want[i]);
    }
    for (int i = 0; i < 3; i++) {
        free(vectors[i]);
        CUDA_OK(cudaFree(dvectors[i]));
    }
}

static void test_row_norms(void **state)
{
    (void)state;
    skip_without_device();
    static const int64_t shapes[][3] = {/* rows, cols, gap: few columns, ends, vectors, long rows */
                                        {1, 1, 0},    {2, 3, 3},    {3, 17, 0},    {9, 24, 0},
                                        {17, 64, 8},  {65, 130, 1}, {5, 264, 8},   {2, 3072, 0},
                                        {3, 2051, 5}, {2, 5001, 0}, {2, 16392, 8}, {1, 20000, 8}};
    for (enum norm norm = LAYER; norm < NORMS; norm++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            for (int turn = 0; turn < 8; turn++) {
                struct row_case c = {norm,
                                     turn & 1 ? DTYPE_BF16 : DTYPE_F32,
                                     turn & 2 && norm != GATED ? DTYPE_BF16 : DTYPE_F32,
                                     turn & 2 ? DTYPE_BF16 : DTYPE_F32,
                                     shapes[s][0],
                                     shapes[s][1],
                                     shapes[s][2],
                                     false};
                c.in_place = turn & 4 && c.out == (norm == GATED ? c.branch : c.x);
                check_rows(&c);
            }
}

/* A row far from zero keeps its variance: the mean is taken away before squaring. */
static void test_layer_norm_of_row_far_from_zero(void **state)
{
    (void)state;
    skip_without_device();
    struct grid x = grid_empty(DTYPE_F32, 1, 64, 64, 0);
    float       ones[64], zeros[64] = {0};

    for (int64_t i = 0; i < 64; i++) {
        set(x.m, 0, i, 8192 + (i % 2 ? 1 : -1)); /* deviation 1 */
        ones[i] = 1.0f;
    }
    struct device_grid d = device_copy(&x);
    float             *scale = device_floats(ones, 64), *shift = device_floats(zeros, 64);
    CUDA_OK(k_layer_norm_cuda(d.m, d.m, scale, shift, false, 0.0f, NULL));
    struct grid got = device_take(&d);
    for (int64_t i = 0; i < 64; i++)
        CHECK_NEAR(get(got.m, 0, i), i % 2 ? 1 : -1, 1e-6);
    CUDA_OK(cudaFree(scale));
    CUDA_OK(cudaFree(shift));
    grid_free(&got);
    grid_free(&x);
}

/* --------------------------------------------------------------------------------- group norm */

struct group_case {
    enum dtype y, x;
    int64_t    rows, cols, gap;
    int32_t    groups;
    bool       silu, in_place;
};

/* Statistics of a few runs of equal length. */
static int64_t runs_of(const struct group_case *c)
{
    return c->rows % 10 == 0 ? 10 : c->rows % 3 == 0 ? 3 : 1;
}

/* All three steps, twice: the second time must give the same bits. */
static struct grid group_norm_on_device(const struct group_case *c, const struct grid *x,
                                        const struct grid *y, const float *weight,
                                        const float *bias)
{
    const int64_t runs = runs_of(c);
    float *dweight = device_floats(weight, c->cols), *dbias = device_floats(bias, c->cols);
    struct matrix stats = device_matrix(DTYPE_F32, runs, 2 * c->cols);
    struct matrix table = device_matrix(DTYPE_F32, 2, c->cols);
    struct grid   got[2];

    for (int turn = 0; turn < 2; turn++) {
        struct device_grid dx = device_copy(x), dy = device_copy(y);
        CUDA_OK(k_group_stats_cuda(stats, dx.m, NULL));
        CUDA_OK(k_group_merge_cuda(table, stats, dweight, c->rows / runs, c->groups, 1e-6f, NULL));
        CUDA_OK(k_group_apply_cuda(c->in_place ? dx.m : dy.m, dx.m, table, dbias, c->silu, NULL));
        struct grid first = device_take(&dx), second = device_take(&dy);
        got[turn] = c->in_place ? first : second;
        grid_free(c->in_place ? &second : &first);
    }
    stats.rows = 0;
    assert_int_equal(k_group_stats_cuda(stats, x->m, NULL), cudaErrorInvalidValue);
    CUDA_OK(cudaFree(stats.data));
    CUDA_OK(cudaFree(table.data));
    CUDA_OK(cudaFree(dweight));
    CUDA_OK(cudaFree(dbias));
    check_same_bytes(&got[1], &got[0]);
    grid_free(&got[1]);
    return got[0];
}

static void check_group_norm(const struct group_case *c)
{
    struct grid  x = grid_drawn(c->x, c->rows, c->cols, c->cols + c->gap, 0, 1);
    struct grid  y = grid_empty(c->y, c->rows, c->cols, c->cols + c->gap, 0);
    struct grid  stats = grid_empty(DTYPE_F32, runs_of(c), 2 * c->cols, 2 * c->cols, 0);
    struct grid  table = grid_empty(DTYPE_F32, 2, c->cols, c->cols, 0);
    float       *weight = vector_drawn(c->cols, 2), *bias = vector_drawn(c->cols, 3);
    struct grid  got = group_norm_on_device(c, &x, &y, weight, bias);
    struct grid *want = c->in_place ? &x : &y;

    k_group_stats_cpu(stats.m, x.m);
    k_group_merge_cpu(table.m, stats.m, weight, c->rows / stats.m.rows, c->groups, 1e-6f);
    k_group_apply_cpu(want->m, x.m, table.m, bias, c->silu);
    check_twins(&got, want, c->rows * c->cols / c->groups < 16 ? 1e-4 : 1e-5);
    assert_true(distance(&got, want) < (want->m.dtype == DTYPE_BF16 ? 1e-2 : 1e-5));
    free(weight);
    free(bias);
    grid_free(&stats);
    grid_free(&table);
    grid_free(&got);
    grid_free(&x);
    grid_free(&y);
}

static void test_group_norm(void **state)
{
    (void)state;
    skip_without_device();
    static const int64_t maps[][4] = {
        /* rows, cols, groups, gap */
        {1, 2, 1, 0},     {2, 6, 3, 3},      {17, 17, 1, 0},   {65, 32, 32, 8},  {300, 64, 8, 0},
        {1030, 32, 4, 8}, {257, 512, 32, 0}, {20000, 4, 2, 0}, {20000, 8, 2, 8}, {33, 2080, 16, 0}};
    for (size_t m = 0; m < sizeof maps / sizeof maps[0]; m++)
        for (int turn = 0; turn < 8; turn++) {
            struct group_case c = {turn & 1 ? DTYPE_BF16 : DTYPE_F32,
                                   turn & 2 ? DTYPE_BF16 : DTYPE_F32,
                                   maps[m][0],
                                   maps[m][1],
                                   maps[m][3],
                                   (int32_t)maps[m][2],
                                   turn & 4,
                                   turn == 0 || turn == 7};
            check_group_norm(&c);
        }
}

/* A mean a thousand deviations away: a sum of squares in f32 would lose the variance. */
static void test_group_norm_far_from_zero(void **state)
{
    (void)state;
    skip_without_device();
    enum { ROWS = 40000 };
    const struct group_case c = {DTYPE_F32, DTYPE_F32, ROWS, 8, 0, 1, false, true};
    const float             weight[8] = {1, 1, 1, 1, 1, 1, 1, 1}, bias[8] = {0};
    const double            deviation = sqrt(0.5); /* of 1, -1/2, -1/2 */
    struct grid             x = grid_empty(DTYPE_F32, ROWS, 8, 8, 0);

    for (int64_t i = 0; i < ROWS * 8; i++)
        set(x.m, i / 8, i % 8, 1024 + (i % 3 == 0 ? 1.0 : -0.5));
    struct grid got = group_norm_on_device(&c, &x, &x, weight, bias);
    for (int64_t i = 0; i < ROWS * 8; i++)
        CHECK_NEAR(get(got.m, i / 8, i % 8), (i % 3 == 0 ? 1.0 : -0.5) / deviation,
                   1024 * F32_EPS * 2); /* the mean rounds at 1024 */
    grid_free(&got);
    grid_free(&x);
}

/* ------------------------------------------------------------------------------------- bench */

struct bench {
    struct matrix    out, x, y;
    float           *vector; /* serves as scale, shift, gate, weight and bias */
    struct matrix    stats, table;
};

static struct bench bench_open(int64_t rows, int64_t cols, enum dtype x, enum dtype out)
{
    struct bench b = {device_matrix(out, rows, cols),
                      device_matrix(x, rows, cols),
                      device_matrix(DTYPE_BF16, rows, cols),
                      NULL,
                      device_matrix(DTYPE_F32, 1024, 2 * cols),
                      device_matrix(DTYPE_F32, 2, cols)};
    b.vector = device_matrix(DTYPE_F32, 1, cols).data;
    return b;
}

static void bench_close(struct bench *b)
{
    CUDA_OK(cudaFree(b->out.data));
    CUDA_OK(cudaFree(b->x.data));
    CUDA_OK(cudaFree(b->y.data));
    CUDA_OK(cudaFree(b->vector));
    CUDA_OK(cudaFree(b->stats.data));
    CUDA_OK(cudaFree(b->table.data));
}

static int run_layer_norm(void *user)
{
    const struct bench *b = user;
    return k_layer_norm_cuda(b->out, b->x, b->vector, b->vector, true, 1e-6f, NULL);
}
static int run_rms_norm(void *user)
{
    const struct bench *b = user;
    return k_rms_norm_cuda(b->out, b->x, b->vector, 1e-6f, NULL);
}
static int run_gated(void *user)
{
    const struct bench            *b = user;
    const struct gate_norm_request request = {b->out,    b->x,      b->y, b->vector,
                                              b->vector, b->vector, 1e-6f};
    return k_gate_add_layer_norm_cuda(&request, NULL);
}
static int run_group_norm(void *user)
{
    const struct bench *b = user;
    int rc = k_group_stats_cuda(b->stats, b->x, NULL);
    if (!rc)
        rc = k_group_merge_cuda(b->table, b->stats, b->vector, b->x.rows / 1024, 32, 1e-6f, NULL);
    return rc ? rc : k_group_apply_cuda(b->out, b->x, b->table, b->vector, true, NULL);
}

static void bench_group_norm(const char *name, int64_t rows, int64_t cols)
{
    struct bench b = bench_open(rows, cols, DTYPE_BF16, DTYPE_BF16);
    print_bandwidth(name, 6.0 * (double)(rows * cols), device_seconds(run_group_norm, &b, 10));
    bench_close(&b);
}

static int bench(void)
{
    const double elements = 16896.0 * 3072.0;

    if (bench_without_device()) return 0;
    struct bench b = bench_open(16896, 3072, DTYPE_F32, DTYPE_BF16);
    print_bandwidth("layer norm f32 -> bf16, 16896 x 3072", 6 * elements,
                    device_seconds(run_layer_norm, &b, 20));
    print_bandwidth("gate, sum, layer norm, 16896 x 3072", 12 * elements,
                    device_seconds(run_gated, &b, 20));
    bench_close(&b);
    b = bench_open(512, 4096, DTYPE_F32, DTYPE_BF16);
    print_bandwidth("rms norm f32 -> bf16, 512 x 4096", 6.0 * 512 * 4096,
                    device_seconds(run_rms_norm, &b, 20));
    bench_close(&b);
    /* Two readings and a writing. */
    bench_group_norm("group norm + SiLU bf16, 2048 x 2048 x 128", 2048 * 2048, 128);
    bench_group_norm("group norm + SiLU bf16, 2048 x 2048 x 256", 2048 * 2048, 256);
    bench_group_norm("group norm + SiLU bf16, 1024 x 1024 x 512", 1024 * 1024, 512);
    bench_group_norm("group norm + SiLU bf16, 256 x 256 x 512", 256 * 256, 512);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_norms),
        cmocka_unit_test(test_layer_norm_of_row_far_from_zero),
        cmocka_unit_test(test_group_norm),
        cmocka_unit_test(test_group_norm_far_from_zero),
    };
    if (wants_bench(argc, argv)) return bench();
    return cmocka_run_group_tests_name("norm_cuda", tests, NULL, NULL);
}
