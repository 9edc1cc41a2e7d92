/*
 * test_pointwise.c - sums, gates, activations, sampling and packing against double precision.
 *
 * Bound of one result: a rounding per operation (half a spacing each) and one for storing; the
 * activations add 4e-7 relative for their exponential and division.
 */
#include "kernels/kernels_int.h"
#include "tests/kernels/kernel_cases.h"

static const int64_t shapes[][2] = {{1, 1}, {2, 3}, {3, 17}, {17, 65}, {65, 300}};
enum { SHAPES = (int)(sizeof shapes / sizeof shapes[0]) };

struct operands {
    struct grid x, y, out;
    double     *x_before, *y_before;
    float      *gate;
    int64_t     rows, cols;
};

/* turn: bit 0 the type of x, bit 1 of y, bit 2 of out. */
static struct operands operands_open(int shape, int turn)
{
    const int64_t rows = shapes[shape][0], cols = shapes[shape][1];
    struct operands o = {.rows = rows, .cols = cols};
    o.x = grid_drawn(turn & 1 ? DTYPE_BF16 : DTYPE_F32, rows, cols, cols + 1, 0, 1);
    o.y = grid_drawn(turn & 2 ? DTYPE_BF16 : DTYPE_F32, rows, cols, cols + 4, 0, 2);
    o.out = grid_empty(turn & 4 ? DTYPE_BF16 : DTYPE_F32, rows, cols, cols + 2, 0);
    o.x_before = grid_values(&o.x);
    o.y_before = grid_values(&o.y);
    o.gate = vector_drawn(cols, 3);
    return o;
}

static void operands_close(struct operands *o)
{
    grid_check_gaps(&o->x);
    grid_check_gaps(&o->y);
    grid_check_gaps(&o->out);
    free(o->x_before);
    free(o->y_before);
    free(o->gate);
    grid_free(&o->x);
    grid_free(&o->y);
    grid_free(&o->out);
}

typedef double (*expectation)(const struct operands *o, int64_t row, int64_t col);

static double x_of(const struct operands *o, int64_t row, int64_t col)
{
    return o->x_before[row * o->cols + col];
}
static double y_of(const struct operands *o, int64_t row, int64_t col)
{
    return o->y_before[row * o->cols + col];
}

static void check_all(const struct operands *o, struct matrix got, expectation want, double bound)
{
    for (int64_t row = 0; row < o->rows; row++)
        for (int64_t col = 0; col < o->cols; col++) {
            double value = want(o, row, col);
            CHECK_NEAR(get(got, row, col), value, bound + store_error(value, got.dtype) * 1.01);
        }
}

static double want_sum(const struct operands *o, int64_t row, int64_t col)
{
    return x_of(o, row, col) + y_of(o, row, col);
}
static double want_gated(const struct operands *o, int64_t row, int64_t col)
{
    return x_of(o, row, col) + (double)o->gate[col] * y_of(o, row, col);
}
static double want_gelu_mul(const struct operands *o, int64_t row, int64_t col)
{
    return gelu_tanh(x_of(o, row, col)) * y_of(o, row, col);
}
static double want_silu(const struct operands *o, int64_t row, int64_t col)
{
    return x_of(o, row, col) * sigmoid(x_of(o, row, col));
}
static double want_affine(const struct operands *o, int64_t row, int64_t col)
{
    return x_of(o, row, col) * 0.75 - 3.0;
}

static void test_rows(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        for (int turn = 0; turn < 8; turn++) {
            struct operands o = operands_open(shape, turn);
            k_silu_cpu(o.out.m, o.x.m);
            check_all(&o, o.out.m, want_silu, 1e-6);
            k_affine_cpu(o.out.m, o.x.m, 0.75f, -3.0f);
            check_all(&o, o.out.m, want_affine, 4 * F32_EPS);
            if (o.x.m.dtype == o.y.m.dtype) {
                k_gelu_mul_cpu(o.out.m, o.x.m, o.y.m);
                check_all(&o, o.out.m, want_gelu_mul, 1e-6);
            }
            k_add_cpu(o.x.m, o.y.m);
            check_all(&o, o.x.m, want_sum, F32_EPS);
            operands_close(&o);

            o = operands_open(shape, turn);
            k_gate_add_cpu(o.x.m, o.y.m, o.gate);
            check_all(&o, o.x.m, want_gated, 2 * F32_EPS);
            operands_close(&o);
        }
    }
}

/* The exponential under softmax, SiLU and GELU: every binade and everything between. */
static void test_fast_exp2(void **state)
{
    (void)state;
    for (int i = -126 * 4099; i <= 127 * 4099; i++) {
        float x = (float)i / 4099.0f;
        CHECK_NEAR((double)fast_exp2(x) / exp2((double)x), 1.0, 1.1e-7);
    }
    assert_true(fast_exp2(0.0f) == 1.0f);
    assert_true(fast_exp2(-3e38f) == 0x1p-126f && fast_exp2(3e38f) == 0x1p127f);
    assert_true(isnan(fast_exp2(NAN)) && isnan(fast_exp2(-NAN)));
    assert_true(isnan(fast_exp2(float_from_bits(0x7fc00001u))));
}

/* Far from zero, where an exponential would overflow or vanish; and a NaN stays one. */
static void test_activations_at_the_ends(void **state)
{
    (void)state;
    const float inputs[] = {-3e38f, -1000.0f, -100.0f, -88.5f, -20.0f, -5.0f, -1e-20f, 0.0f,
                            1e-20f, 5.0f,     20.0f,   88.5f,  100.0f, 3e38f, NAN};
    enum { COUNT = (int)(sizeof inputs / sizeof inputs[0]) };
    float x[COUNT], one[COUNT], silu[COUNT], gelu[COUNT];
    for (int i = 0; i < COUNT; i++) {
        x[i] = inputs[i];
        one[i] = 1.0f;
    }
    struct matrix mx = {x, DTYPE_F32, 1, COUNT, COUNT}, mone = mx, msilu = mx, mgelu = mx;
    mone.data = one;
    msilu.data = silu;
    mgelu.data = gelu;
    k_silu_cpu(msilu, mx);
    k_gelu_mul_cpu(mgelu, mx, mone);
    for (int i = 0; i + 1 < COUNT; i++) {
        double value = (double)inputs[i], want = value < 0 ? value * exp(value) / (1 + exp(value))
                                                           : value * sigmoid(value);
        /* 1.1e-38 is where the exponential stops shrinking. */
        CHECK_NEAR((double)silu[i], want, fabs(want) * 1e-6 + fabs(value) * 1.7e-38);
        if (fabs(value) < 1e12)
            CHECK_NEAR((double)gelu[i], gelu_tanh(value), fabs(value) * 2e-7);
    }
    assert_true(isnan(silu[COUNT - 1]) && isnan(gelu[COUNT - 1]));
}

static void test_gather_rows(void **state)
{
    (void)state;
    static const int32_t ids[5] = {6, 0, 3, 3, 2};
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_F8_E5M2; dtype++) {
        struct grid table = grid_drawn(dtype, 7, 19, 19, 1, 1);
        struct grid y = grid_empty(DTYPE_F32, 5, 19, 21, 0);
        k_gather_rows_cpu(y.m, table.m, ids);
        for (int64_t row = 0; row < 5; row++)
            for (int64_t col = 0; col < 19; col++)
                assert_true(get(y.m, row, col) == get(table.m, ids[row], col));
        grid_check_gaps(&y);
        grid_free(&table);
        grid_free(&y);
    }
}

static void test_sampling_steps(void **state)
{
    (void)state;
    static const int64_t counts[] = {1, 17, 65536, 200001, 1200001}; /* one piece, several */
    for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
        float *x = vector_drawn(counts[c], 1), *v = vector_drawn(counts[c], 2);
        float *before = vector_drawn(counts[c], 1);
        k_euler_step_cpu(x, v, -0.125f, counts[c]);
        for (int64_t i = 0; i < counts[c]; i++)
            CHECK_NEAR((double)x[i], (double)before[i] - 0.125 * (double)v[i], F32_EPS);
        memcpy(x, before, (size_t)counts[c] * sizeof *x);
        k_mix_noise_cpu(x, v, 0.3f, counts[c]);
        for (int64_t i = 0; i < counts[c]; i++)
            CHECK_NEAR((double)x[i],
                       (1 - (double)0.3f) * (double)before[i] + (double)0.3f * (double)v[i],
                       2 * F32_EPS);
        free(x);
        free(v);
        free(before);
    }
}

static void test_count_bad(void **state)
{
    (void)state;
    enum { COUNT = 1200001 };
    float *x = vector_drawn(COUNT, 1);
    assert_int_equal(k_count_bad_cpu(x, COUNT), 0);
    x[0] = NAN;
    x[70000] = INFINITY;
    x[COUNT - 1] = -INFINITY;
    x[5] = 3.4e38f; /* large, but a number */
    assert_int_equal(k_count_bad_cpu(x, COUNT), 3);
    assert_int_equal(k_count_bad_cpu(x, COUNT - 1), 2);
    free(x);
}

/* At every length around the pieces, and nothing beyond it. */
static void test_copy_and_clamp_count_as_they_go(void **state)
{
    static const int64_t counts[] = {0, 1, 31, 65535, 65536, 65537, 150001, 1200001};
    enum { MOST = 1200001 };

    (void)state;
    for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
        const int64_t count = counts[c];
        float        *x = vector_drawn(MOST + 1, 1), *y = vector_drawn(MOST + 1, 2);
        int64_t       bad = 0;

        for (int64_t i = 0; i < MOST; i += 4999) {
            x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
            bad += i < count;
        }
        y[count] = 7;
        assert_int_equal(k_copy_count_bad_cpu(y, x, count), bad);
        assert_memory_equal(y, x, (size_t)count * sizeof *x);
        assert_true(y[count] == 7);
        assert_int_equal(k_clamp_count_bad_cpu(y, count), bad);
        for (int64_t i = 0; i < count; i++)
            assert_true(isnan(x[i]) || y[i] == (x[i] < 0 ? 0 : x[i] > 1 ? 1 : x[i]));
        assert_true(y[count] == 7);
        free(x);
        free(y);
    }
}

/* The definition word for word: element (c, dy, dx) of a token at c * 4 + dy * 2 + dx. */
static void test_packing(void **state)
{
    (void)state;
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        const int32_t h = 6, w = 10, channels = 3;
        float *latent = vector_drawn((int64_t)h * w * channels, 1);
        float *back = vector_drawn((int64_t)h * w * channels, 2);
        struct grid tokens = grid_empty(dtype, 15, 12, 13, 0);

        k_pack_latent_cpu(tokens.m, latent, h, w, channels);
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++)
                for (int64_t c = 0; c < channels; c++) {
                    double value = (double)latent[(y * w + x) * channels + c];
                    CHECK_NEAR(get(tokens.m, y / 2 * (w / 2) + x / 2, c * 4 + y % 2 * 2 + x % 2),
                               value, dtype == DTYPE_F32 ? 0.0 : store_error(value, dtype));
                }
        grid_check_gaps(&tokens);
        k_unpack_latent_cpu(back, tokens.m, h, w, channels);
        for (int64_t i = 0; i < h * w * channels; i++)
            CHECK_NEAR((double)back[i], (double)latent[i],
                       dtype == DTYPE_F32 ? 0.0 : store_error(1.0, dtype));
        free(latent);
        free(back);
        grid_free(&tokens);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_fast_exp2),
        cmocka_unit_test(test_activations_at_the_ends),
        cmocka_unit_test(test_gather_rows),
        cmocka_unit_test(test_sampling_steps),
        cmocka_unit_test(test_count_bad),
        cmocka_unit_test(test_copy_and_clamp_count_as_they_go),
        cmocka_unit_test(test_packing),
    };
    return cmocka_run_group_tests_name("pointwise", tests, NULL, NULL);
}
