/*
 * test_conv_cuda.c - patches, ordered weights, and the convolution for few output channels, against
 * the CPU's convolution.  Needs a device; says so.
 */
#include "tests/kernels/cuda_cases.h"

struct conv_case {
    int32_t    h, w, size, stride, pad; /* stride 1: pad all round; stride 2: at the end only */
    int64_t    in, out;
    enum dtype x, y;
};

static int32_t out_of(const struct conv_case *c, int32_t side)
{
    return (side + (c->stride == 1 ? 2 * c->pad : c->pad) - c->size) / c->stride + 1;
}

static struct conv_request request_of(const struct conv_case *c, struct matrix y, struct matrix x,
                                      struct matrix w, const float *bias)
{
    int32_t before = c->stride == 1 ? c->pad : 0;

    return (struct conv_request){.y = y,
                                 .x = x,
                                 .w = w,
                                 .bias = bias,
                                 .in_h = c->h,
                                 .in_w = c->w,
                                 .size = c->size,
                                 .stride = c->stride,
                                 .pad_top = before,
                                 .pad_left = before,
                                 .pad_bottom = c->pad,
                                 .pad_right = c->pad};
}

/* The CPU's result, f32 products. */
static struct grid expected(const struct conv_case *c, const struct grid *x, const struct grid *w,
                            const float *bias)
{
    struct grid y = grid_empty(c->y, (int64_t)out_of(c, c->h) * out_of(c, c->w), c->out, c->out, 0);
    struct workspace workspace = workspace_open(64 << 20);
    struct conv_request request = request_of(c, y.m, x->m, w->m, bias);

    assert_int_equal(k_conv2d_cpu(&request, DTYPE_F32, workspace), 0);
    free(workspace.data);
    return y;
}

/* Patches times ordered weights, multiplied here, is the convolution. */
static void check_patches(const struct conv_case *c)
{
    const int64_t taps = c->size * c->size, cols = (taps * c->in + 7) / 8 * 8;
    const int64_t rows = (int64_t)out_of(c, c->h) * out_of(c, c->w);
    struct grid x = grid_drawn(c->x, (int64_t)c->h * c->w, c->in, c->in, 0, 1);
    struct grid w = grid_drawn(DTYPE_BF16, c->out, c->in * taps, c->in * taps, 0, 2);
    float *bias = vector_drawn(c->out, 3);
    struct grid want = expected(c, &x, &w, bias);
    struct grid patches = grid_empty(c->x, rows, cols, cols, 0);
    struct grid ordered = grid_empty(DTYPE_F32, c->out, cols, cols, 0);
    struct device_grid dx = device_copy(&x), dw = device_copy(&w);
    struct device_grid dpatches = device_copy(&patches), dordered = device_copy(&ordered);
    struct conv_request request = request_of(c, want.m, dx.m, dw.m, NULL);
    /* In two bands, as the backend walks. */
    struct matrix first = dpatches.m, second = dpatches.m;
    first.rows = rows / 2;
    second.rows = rows - first.rows;
    second.data = (char *)second.data + (size_t)(first.rows * cols) * dtype_bytes(c->x);

    CUDA_OK(k_im2col_cuda(first, &request, 0, out_of(c, c->w), NULL));
    CUDA_OK(k_im2col_cuda(second, &request, first.rows, out_of(c, c->w), NULL));
    CUDA_OK(k_conv_weights_cuda(dordered.m, dw.m, (int32_t)taps, NULL));
    struct grid p = device_take(&dpatches), o = device_take(&dordered);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t out = 0; out < c->out; out++) {
            double sum = bias[out];
            for (int64_t k = 0; k < cols; k++)
                sum += get(p.m, row, k) * get(o.m, out, k);
            CHECK_NEAR(get(want.m, row, out), sum, 1e-4 + store_error(sum, c->y));
        }
    CUDA_OK(cudaFree(dx.block));
    CUDA_OK(cudaFree(dw.block));
    struct grid *grids[] = {&x, &w, &want, &patches, &ordered, &p, &o};
    for (size_t i = 0; i < sizeof grids / sizeof grids[0]; i++)
        grid_free(grids[i]);
    free(bias);
}

static void check_few(const struct conv_case *c)
{
    const int64_t taps = c->size * c->size;
    struct grid x = grid_drawn(c->x, (int64_t)c->h * c->w, c->in, c->in, 0, 4);
    struct grid w = grid_drawn(DTYPE_BF16, c->out, c->in * taps, c->in * taps, 0, 5);
    float *bias = vector_drawn(c->out, 6), *dbias = device_floats(bias, c->out);
    struct grid want = expected(c, &x, &w, bias);
    struct grid y = grid_empty(c->y, want.m.rows, c->out, c->out, 0);
    struct device_grid dx = device_copy(&x), dw = device_copy(&w), dy = device_copy(&y);
    struct conv_request request = request_of(c, dy.m, dx.m, dw.m, dbias);

    CUDA_OK(k_conv_few_cuda(&request, out_of(c, c->w), NULL));
    struct grid got = device_take(&dy);
    check_twins(&got, &want, 1e-5 * sqrt((double)(taps * c->in)));
    CUDA_OK(cudaFree(dx.block));
    CUDA_OK(cudaFree(dw.block));
    CUDA_OK(cudaFree(dbias));
    struct grid *grids[] = {&x, &w, &want, &y, &got};
    for (size_t i = 0; i < sizeof grids / sizeof grids[0]; i++)
        grid_free(grids[i]);
    free(bias);
}

static const struct conv_case cases[] = {
    /* h, w, size, stride, pad, in, out, x, y */
    {1, 1, 3, 1, 1, 8, 3, DTYPE_BF16, DTYPE_F32},  {5, 7, 3, 1, 1, 3, 4, DTYPE_F32, DTYPE_F32},
    {8, 6, 3, 2, 1, 16, 2, DTYPE_BF16, DTYPE_BF16}, {9, 4, 1, 1, 0, 5, 1, DTYPE_F32, DTYPE_BF16},
    {6, 130, 3, 1, 1, 32, 3, DTYPE_BF16, DTYPE_F32}, {4, 4, 3, 2, 1, 4, 4, DTYPE_F32, DTYPE_F32}};

static void test_patches_and_weights(void **state)
{
    (void)state;
    skip_without_device();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_patches(&cases[i]);
}

static void test_few_channels(void **state)
{
    (void)state;
    skip_without_device();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_few(&cases[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_patches_and_weights),
                                       cmocka_unit_test(test_few_channels)};
    return cmocka_run_group_tests_name("conv_cuda", tests, NULL, NULL);
}
