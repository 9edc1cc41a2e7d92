/*
 * test_pointwise_cuda.c - the GPU's element-wise operations against the CPU's; --bench for speed.
 * Needs a device; says so.
 *
 * Sums and products may be fused on one side and not on the other: one spacing.  The activations
 * have different exponentials: 1e-6, as against double precision in the CPU's test.
 */
#include "tests/kernels/cuda_cases.h"

/* --------------------------------------------------------------------------- whole matrices */

enum op { ADD, GATE_ADD, GELU_MUL, SILU, AFFINE, OPS };

struct op_case {
    enum op    op;
    enum dtype y, x;
    int64_t    rows, cols, gap;
    size_t     shift; /* bytes: y and x start off a 16-byte boundary */
    bool       in_place;
};

static void run_cpu(enum op op, struct matrix y, struct matrix a, struct matrix b,
                    const float *gate)
{
    if (op == ADD) k_add_cpu(y, a);
    if (op == GATE_ADD) k_gate_add_cpu(y, a, gate);
    if (op == GELU_MUL) k_gelu_mul_cpu(y, a, b);
    if (op == SILU) k_silu_cpu(y, a);
    if (op == AFFINE) k_affine_cpu(y, a, 0.75f, -3.0f);
}

static int run_cuda(enum op op, struct matrix y, struct matrix a, struct matrix b,
                    const float *gate)
{
    if (op == ADD) return k_add_cuda(y, a, NULL);
    if (op == GATE_ADD) return k_gate_add_cuda(y, a, gate, NULL);
    if (op == GELU_MUL) return k_gelu_mul_cuda(y, a, b, NULL);
    if (op == SILU) return k_silu_cuda(y, a, NULL);
    return k_affine_cuda(y, a, 0.75f, -3.0f, NULL);
}

static void check_op(const struct op_case *c)
{
    const int64_t      ld = c->cols + c->gap;
    struct grid        y = grid_drawn(c->y, c->rows, c->cols, ld, c->shift, 1);
    struct grid        a = grid_drawn(c->x, c->rows, c->cols, ld, c->shift, 2);
    struct grid        b = grid_drawn(c->x, c->rows, c->cols, ld, c->shift, 3);
    struct device_grid dy = device_copy(&y), da = device_copy(&a), db = device_copy(&b);
    float             *gate = vector_drawn(c->cols, 4), *dgate = device_floats(gate, c->cols);

    run_cpu(c->op, c->in_place ? a.m : y.m, a.m, b.m, gate);
    CUDA_OK(run_cuda(c->op, c->in_place ? da.m : dy.m, da.m, db.m, dgate));
    struct grid got[3] = {device_take(&dy), device_take(&da), device_take(&db)};
    check_twins(&got[0], &y, c->op == GELU_MUL || c->op == SILU ? 1e-6 : F32_EPS);
    check_twins(&got[1], &a, 1e-6);
    check_same_bytes(&got[2], &b);
    CUDA_OK(cudaFree(dgate));
    free(gate);
    for (int i = 0; i < 3; i++)
        grid_free(&got[i]);
    grid_free(&y);
    grid_free(&a);
    grid_free(&b);
}

static void test_matrices(void **state)
{
    (void)state;
    skip_without_device();
    static const int64_t shapes[][3] = {/* rows, cols, gap */
                                        {1, 1, 0},    {3, 17, 0},   {17, 24, 8},
                                        {5, 21, 11},  {5, 65, 3},   {300, 8, 0},
                                        {2, 5000, 8}, {1, 4099, 0}, {700, 3, 5}};
    for (enum op op = ADD; op < OPS; op++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            for (int turn = 0; turn < 8; turn++) {
                struct op_case c = {op,
                                    turn & 1 ? DTYPE_BF16 : DTYPE_F32,
                                    turn & 2 ? DTYPE_BF16 : DTYPE_F32,
                                    shapes[s][0],
                                    shapes[s][1],
                                    shapes[s][2],
                                    turn & 4 ? 4 : 0,
                                    false};
                check_op(&c);
                c.in_place = op >= GELU_MUL && c.y == c.x;
                if (c.in_place) check_op(&c);
            }
}

static void test_large(void **state)
{
    (void)state;
    skip_without_device();
    struct op_case c = {GATE_ADD, DTYPE_F32, DTYPE_BF16, 65536, 512, 0, 0, false};
    check_op(&c);
    c = (struct op_case){SILU, DTYPE_BF16, DTYPE_BF16, 70001, 8, 8, 0, false};
    check_op(&c);
}

/* More elements than 32 bits count: the last rows are right too. */
static void test_more_than_32_bits(void **state)
{
    (void)state;
    skip_without_device();
    const int64_t rows = ((int64_t)1 << 31) / 512 + 3, cols = 520, tail = 5;
    size_t        free_bytes = 0, all_bytes = 0;
    CUDA_OK(cudaMemGetInfo(&free_bytes, &all_bytes));
    if (free_bytes < (size_t)5 << 30) {
        print_message("skipped: less than 5 GiB of device memory are free\n");
        skip();
    }
    struct matrix m = device_matrix(DTYPE_BF16, rows, cols);
    for (int flat = 0; flat < 2; flat++) {
        m.cols = flat ? cols : cols - 8; /* with gaps, row by row; without, as one row */
        CUDA_OK(k_affine_cuda(m, m, 1.0f, 1.0f, NULL));
    }
    struct grid end = grid_empty(DTYPE_BF16, tail, cols, cols, 0);
    CUDA_OK(cudaMemcpy(end.block, (char *)m.data + (rows - tail) * cols * 2, end.bytes,
                       cudaMemcpyDeviceToHost));
    for (int64_t i = 0; i < tail * cols; i++)
        CHECK_NEAR(get(end.m, i / cols, i % cols), i % cols < cols - 8 ? 2.0117 : 1.0117,
                   2.1 * BF16_EPS);
    CUDA_OK(cudaFree(m.data));
    grid_free(&end);
}

/* Far from zero, where an exponential would overflow or vanish; and a NaN stays one. */
static void test_activations_at_the_ends(void **state)
{
    (void)state;
    skip_without_device();
    static const float inputs[] = {-3e38f,  -1000.0f, -100.0f, -88.5f, -20.0f, -5.0f,
                                   -1e-20f, 0.0f,     1e-20f,  5.0f,   20.0f,  88.5f,
                                   100.0f,  1000.0f,  3e38f,   NAN};
    enum { COUNT = (int)(sizeof inputs / sizeof inputs[0]) };
    float ones[COUNT];
    for (int i = 0; i < COUNT; i++)
        ones[i] = 1.0f;
    struct grid        empty = grid_empty(DTYPE_F32, 1, COUNT, COUNT, 0);
    struct device_grid dsilu = device_copy(&empty), dgelu = device_copy(&empty);
    struct matrix      x = dsilu.m, one = dsilu.m;
    x.data = device_floats(inputs, COUNT);
    one.data = device_floats(ones, COUNT);
    CUDA_OK(k_silu_cuda(dsilu.m, x, NULL));
    CUDA_OK(k_gelu_mul_cuda(dgelu.m, x, one, NULL));
    struct grid silu = device_take(&dsilu), gelu = device_take(&dgelu);
    for (int i = 0; i + 1 < COUNT; i++) {
        const double value = (double)inputs[i];
        const double want =
            value < 0 ? value * exp(value) / (1 + exp(value)) : value * sigmoid(value);
        CHECK_NEAR(get(silu.m, 0, i), want, fabs(want) * 1e-5 + 1e-36);
        if (fabs(value) < 1e12) CHECK_NEAR(get(gelu.m, 0, i), gelu_tanh(value), fabs(value) * 3e-7);
    }
    assert_true(isnan(get(silu.m, 0, COUNT - 1)) && isnan(get(gelu.m, 0, COUNT - 1)));
    CUDA_OK(cudaFree(x.data));
    CUDA_OK(cudaFree(one.data));
    grid_free(&silu);
    grid_free(&gelu);
    grid_free(&empty);
}

static void test_broken_contracts(void **state)
{
    (void)state;
    skip_without_device();
    struct matrix a = {NULL, DTYPE_F32, 2, 3, 3}, b = {NULL, DTYPE_F32, 3, 2, 2};
    assert_int_equal(k_add_cuda(a, b, NULL), cudaErrorInvalidValue);
    b = (struct matrix){NULL, DTYPE_F16, 2, 3, 3};
    assert_int_equal(k_silu_cuda(a, b, NULL), cudaErrorInvalidValue);
    assert_int_equal(k_upsample2_cuda(a, a, 1, 2, NULL), cudaErrorInvalidValue);
    assert_int_equal(k_pack_latent_cuda(a, NULL, 2, 2, 3, NULL), cudaErrorInvalidValue);
    a.rows = b.rows = 0;
    b.dtype = DTYPE_F32;
    assert_int_equal(k_add_cuda(a, b, NULL), 0);
}

/* ------------------------------------------------------------------------- packing, enlarging */

static void check_packing(enum dtype dtype, int32_t h, int32_t w, int32_t channels)
{
    const int64_t      tokens = (int64_t)(h / 2) * (w / 2), cells = (int64_t)h * w * channels;
    struct grid        want = grid_empty(dtype, tokens, channels * 4, channels * 4 + 1, 0);
    struct grid        back = grid_empty(DTYPE_F32, 1, cells, cells, 0);
    float             *latent = vector_drawn(cells, 1), *dlatent = device_floats(latent, cells);
    struct device_grid dtokens = device_copy(&want), dback = device_copy(&back);

    k_pack_latent_cpu(want.m, latent, h, w, channels);
    k_unpack_latent_cpu(back.m.data, want.m, h, w, channels);
    CUDA_OK(k_pack_latent_cuda(dtokens.m, dlatent, h, w, channels, NULL));
    CUDA_OK(k_unpack_latent_cuda(dback.m.data, dtokens.m, h, w, channels, NULL));
    struct grid got = device_take(&dtokens), got_back = device_take(&dback);
    check_same_bytes(&got, &want);
    check_same_bytes(&got_back, &back);
    CUDA_OK(cudaFree(dlatent));
    free(latent);
    grid_free(&got);
    grid_free(&got_back);
    grid_free(&want);
    grid_free(&back);
}

static void test_packing(void **state)
{
    (void)state;
    skip_without_device();
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        check_packing(dtype, 2, 2, 1);
        check_packing(dtype, 6, 10, 3);
        check_packing(dtype, 32, 18, 16);
    }
}

static void check_upsample2(enum dtype y_dtype, enum dtype x_dtype, int32_t h, int32_t w,
                            int64_t cols, int64_t gap)
{
    struct grid        x = grid_drawn(x_dtype, (int64_t)h * w, cols, cols + gap, 0, 1);
    struct grid        want = grid_empty(y_dtype, (int64_t)h * w * 4, cols, cols + gap, 0);
    struct device_grid dx = device_copy(&x), dy = device_copy(&want);

    for (int64_t pixel = 0; pixel < want.m.rows; pixel++)
        for (int64_t col = 0; col < cols; col++) {
            const int64_t row = pixel / (2 * w) / 2, column = pixel % (2 * w) / 2;
            set(want.m, pixel, col, get(x.m, row * w + column, col));
        }
    CUDA_OK(k_upsample2_cuda(dy.m, dx.m, h, w, NULL));
    struct grid got = device_take(&dy), back = device_take(&dx);
    check_same_bytes(&got, &want);
    check_same_bytes(&back, &x);
    grid_free(&got);
    grid_free(&back);
    grid_free(&x);
    grid_free(&want);
}

static void test_upsample2(void **state)
{
    (void)state;
    skip_without_device();
    for (int turn = 0; turn < 4; turn++) {
        enum dtype y = turn & 1 ? DTYPE_BF16 : DTYPE_F32, x = turn & 2 ? DTYPE_BF16 : DTYPE_F32;
        check_upsample2(y, x, 1, 1, 1, 0);
        check_upsample2(y, x, 5, 7, 3, 2);
        check_upsample2(y, x, 6, 3, 64, 8);
        check_upsample2(y, x, 3, 9, 20, 12);
    }
}

/* ------------------------------------------------------------------------------------- bench */

struct bench {
    enum op       op;
    struct matrix y, a, b;
    float        *gate;
};

static int run_op(void *user)
{
    const struct bench *b = user;
    return run_cuda(b->op, b->y, b->a, b->b, b->gate);
}

static int run_upsample2(void *user)
{
    const struct bench *b = user;
    return k_upsample2_cuda(b->y, b->a, 1024, 1024, NULL);
}

static void bench_op(const char *name, enum op op, enum dtype y, int64_t rows, int64_t cols,
                     double bytes_each)
{
    struct bench b = {op, device_matrix(y, rows, cols), device_matrix(DTYPE_BF16, rows, cols),
                      device_matrix(DTYPE_BF16, rows, cols), NULL};
    b.gate = device_matrix(DTYPE_F32, 1, cols).data;
    print_bandwidth(name, bytes_each * (double)(rows * cols), device_seconds(run_op, &b, 20));
    CUDA_OK(cudaFree(b.y.data));
    CUDA_OK(cudaFree(b.a.data));
    CUDA_OK(cudaFree(b.b.data));
    CUDA_OK(cudaFree(b.gate));
}

static int bench(void)
{
    if (bench_without_device()) return 0;
    bench_op("x += gate y, f32 and bf16, 16896 x 3072", GATE_ADD, DTYPE_F32, 16896, 3072, 10);
    bench_op("x += y, bf16, 2048 x 2048 x 128", ADD, DTYPE_BF16, 2048 * 2048, 128, 6);
    bench_op("gelu(a) b, bf16, 512 x 10240", GELU_MUL, DTYPE_BF16, 512, 10240, 6);
    bench_op("gelu(a) b, bf16, 16896 x 12288", GELU_MUL, DTYPE_BF16, 16896, 12288, 6);
    bench_op("silu, bf16, 2048 x 2048 x 128", SILU, DTYPE_BF16, 2048 * 2048, 128, 4);
    struct bench b = {SILU,
                      device_matrix(DTYPE_BF16, 2048 * 2048, 256),
                      device_matrix(DTYPE_BF16, 1024 * 1024, 256),
                      {0},
                      NULL};
    print_bandwidth("enlarge bf16, 1024 x 1024 x 256", 10.0 * 1024 * 1024 * 256,
                    device_seconds(run_upsample2, &b, 20));
    CUDA_OK(cudaFree(b.y.data));
    CUDA_OK(cudaFree(b.a.data));
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matrices),          cmocka_unit_test(test_large),
        cmocka_unit_test(test_more_than_32_bits), cmocka_unit_test(test_activations_at_the_ends),
        cmocka_unit_test(test_broken_contracts),  cmocka_unit_test(test_packing),
        cmocka_unit_test(test_upsample2),
    };
    if (wants_bench(argc, argv)) return bench();
    return cmocka_run_group_tests_name("pointwise_cuda", tests, NULL, NULL);
}
