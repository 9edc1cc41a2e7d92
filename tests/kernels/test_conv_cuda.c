/*
 * test_conv_cuda.c - patches, ordered weights, the convolution for few output channels and that of
 * Hopper, against the CPU's convolution; --bench for Hopper's speed.  Needs a device; says so.
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

/* ------------------------------------------------------------------------------------- Hopper */

struct hopper_case {
    int32_t h, w, stride, top, bottom; /* pads; enlarged: 1, or -1 where a row only lends itself */
    int64_t in, out;
    bool    enlarge;
};

static struct conv_request hopper_request(const struct hopper_case *c)
{
    return (struct conv_request){.in_h = c->h,
                                 .in_w = c->w,
                                 .size = 3,
                                 .stride = c->stride,
                                 .pad_top = c->top,
                                 .pad_left = c->stride == 1,
                                 .pad_bottom = c->bottom,
                                 .pad_right = 1,
                                 .enlarge = c->enlarge};
}

static int64_t hopper_rows(const struct hopper_case *c)
{
    const int32_t lent = (c->top < 0) + (c->bottom < 0);

    if (c->enlarge) return 4 * (int64_t)(c->h - lent) * c->w;
    return (int64_t)((c->h + c->top + c->bottom - 3) / c->stride + 1) * (c->w / c->stride);
}

/* The weights as the kernel wants them, on the device. */
static struct device_grid hopper_weights(const struct hopper_case *c, struct matrix w)
{
    const int64_t      cols = (c->enlarge ? 4 : 9) * c->in;
    struct grid        empty = grid_empty(DTYPE_BF16, (c->enlarge ? 4 : 1) * c->out, cols, cols, 0);
    struct device_grid ordered = device_copy(&empty);

    CUDA_OK(c->enlarge ? k_conv_phases_cuda(ordered.m, w, NULL)
                       : k_conv_weights_cuda(ordered.m, w, 9, NULL));
    grid_free(&empty);
    return ordered;
}

/* Sums in f32 differ by their order; an enlarged map's merged weights are rounded to bf16 besides,
 * by half a spacing each. */
static double hopper_limit(const struct hopper_case *c)
{
    return c->enlarge ? BF16_EPS * sqrt(4.0 * (double)c->in) : 1e-5 * sqrt(9.0 * (double)c->in);
}

static void check_hopper(const struct hopper_case *c)
{
    struct grid  x = grid_drawn(DTYPE_BF16, (int64_t)c->h * c->w, c->in, c->in, 0, 7);
    struct grid  w = grid_drawn(DTYPE_BF16, c->out, 9 * c->in, 9 * c->in, 0, 8);
    struct grid  want = grid_empty(DTYPE_BF16, hopper_rows(c), c->out, c->out + 8, 0);
    float       *bias = vector_drawn(c->out, 9), *dbias = device_floats(bias, c->out);
    struct device_grid  dx = device_copy(&x), dw = device_copy(&w), dy = device_copy(&want);
    struct device_grid  ordered = hopper_weights(c, dw.m);
    struct workspace    workspace = workspace_open(64 << 20);
    struct conv_request request = hopper_request(c), device = request;

    request.x = x.m, request.w = w.m, request.y = want.m, request.bias = bias;
    device.x = dx.m, device.w = dw.m, device.y = dy.m, device.bias = dbias;
    assert_int_equal(k_conv2d_cpu(&request, DTYPE_F32, workspace), 0);
    assert_true(k_conv_hopper_fits(&device, DTYPE_BF16));
    CUDA_OK(k_conv_hopper_cuda(&device, ordered.m.data, NULL));
    struct grid got = device_take(&dy);
    check_twins(&got, &want, hopper_limit(c));
    assert_true(distance(&got, &want) < 1e-2);
    CUDA_OK(cudaFree(dx.block));
    CUDA_OK(cudaFree(dw.block));
    CUDA_OK(cudaFree(ordered.block));
    CUDA_OK(cudaFree(dbias));
    struct grid *grids[] = {&x, &w, &want, &got};
    for (size_t i = 0; i < sizeof grids / sizeof grids[0]; i++)
        grid_free(grids[i]);
    free(workspace.data);
    free(bias);
}

static bool hopper_is_here(void)
{
    struct cudaDeviceProp card;

    return cudaGetDeviceProperties(&card, 0) == cudaSuccess && card.major == 9;
}

/* Tiles are 8 x 32 pixels by 128 channels, 64 channels are summed at a time. */
static void test_hopper(void **state)
{
    static const int64_t sizes[][4] = {{1, 2, 8, 8},      {8, 32, 64, 128}, {9, 34, 72, 136},
                                       {7, 30, 56, 120},  {3, 70, 200, 24}, {18, 6, 128, 264},
                                       {40, 66, 64, 40}};
    (void)state;
    skip_without_device();
    if (!hopper_is_here()) skip();
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int turn = 0; turn < 12; turn++) {
            struct hopper_case c = {.h = (int32_t)sizes[i][0],
                                    .w = (int32_t)sizes[i][1],
                                    .stride = turn / 4 == 1 ? 2 : 1,
                                    .top = turn / 2 % 2,
                                    .bottom = turn % 2,
                                    .in = sizes[i][2],
                                    .out = sizes[i][3],
                                    .enlarge = turn / 4 == 2};
            if (c.stride == 2) c.top = 0;
            if (c.enlarge) c.top = c.top ? 1 : -1, c.bottom = c.bottom ? 1 : -1;
            if (hopper_rows(&c) > 0 && (c.enlarge || c.h + c.top + c.bottom >= 3)) check_hopper(&c);
        }
}

/* NaN in x reaches the results whose kernels meet it, and no others. */
static void test_hopper_keeps_to_its_pixels(void **state)
{
    const struct hopper_case c = {20, 40, 1, 1, 1, 72, 136, false};

    (void)state;
    skip_without_device();
    if (!hopper_is_here()) skip();
    struct grid  x = grid_drawn(DTYPE_BF16, (int64_t)c.h * c.w, c.in, c.in, 0, 7);
    struct grid  w = grid_drawn(DTYPE_BF16, c.out, 9 * c.in, 9 * c.in, 0, 8);
    struct grid  y = grid_empty(DTYPE_BF16, hopper_rows(&c), c.out, c.out, 0);
    ((uint16_t *)x.m.data)[(9 * c.w + 31) * c.in + 71] = 0x7fc0;
    struct device_grid  dx = device_copy(&x), dw = device_copy(&w), dy = device_copy(&y);
    struct device_grid  ordered = hopper_weights(&c, dw.m);
    struct conv_request request = hopper_request(&c);

    request.x = dx.m, request.w = dw.m, request.y = dy.m;
    CUDA_OK(k_conv_hopper_cuda(&request, ordered.m.data, NULL));
    struct grid got = device_take(&dy);
    for (int64_t row = 0; row < c.h; row++)
        for (int64_t col = 0; col < c.w; col++) {
            const bool met = row >= 8 && row <= 10 && col >= 30 && col <= 32;
            for (int64_t out = 0; out < c.out; out++)
                assert_int_equal(isnan(get(got.m, row * c.w + col, out)) != 0, met);
        }
    CUDA_OK(cudaFree(dx.block));
    CUDA_OK(cudaFree(dw.block));
    CUDA_OK(cudaFree(ordered.block));
    struct grid *grids[] = {&x, &w, &y, &got};
    for (size_t i = 0; i < sizeof grids / sizeof grids[0]; i++)
        grid_free(grids[i]);
}

/* ------------------------------------------------------------------------------------- speed */

struct bench_layer {
    struct conv_request request;
    void               *ordered;
};

enum { TIMES = 200 }; /* long enough for the card to be as hot as it gets */

static int run_layer(void *user)
{
    const struct bench_layer *layer = user;
    int                       rc = 0;

    for (int i = 0; i < TIMES && !rc; i++)
        rc = k_conv_hopper_cuda(&layer->request, layer->ordered, NULL);
    return rc;
}

/* A strip of a layer of FLUX.1's VAE. */
static void bench_layer(const struct hopper_case *c)
{
    struct bench_layer layer = {hopper_request(c), NULL};
    const int64_t      rows = hopper_rows(c), taps = c->enlarge ? 4 : 9;
    const double       flop = 2.0 * (double)(rows * c->out * c->in * taps);
    struct matrix      w = {NULL, DTYPE_BF16, c->enlarge ? 4 * c->out : c->out, taps * c->in,
                            taps * c->in};

    layer.request.x = (struct matrix){NULL, DTYPE_BF16, (int64_t)c->h * c->w, c->in, c->in};
    layer.request.y = (struct matrix){NULL, DTYPE_BF16, rows, c->out, c->out};
    CUDA_OK(cudaMalloc(&layer.request.x.data, (size_t)(layer.request.x.rows * c->in * 2)));
    CUDA_OK(cudaMalloc(&layer.request.y.data, (size_t)(rows * c->out * 2)));
    CUDA_OK(cudaMalloc(&layer.ordered, (size_t)(w.rows * w.cols * 2)));
    w.data = layer.ordered;
    CUDA_OK(k_fill_cuda(layer.request.x, 1, NULL));
    CUDA_OK(k_fill_cuda(w, 2, NULL));
    const double seconds = device_seconds(run_layer, &layer, 2) / TIMES;
    printf("%d x %d%s, %lld to %lld%s: %.3f ms, %.0f TFLOP/s\n", c->w, c->h,
           c->enlarge ? " enlarged" : "", (long long)c->in, (long long)c->out,
           c->stride == 2 ? ", stride 2" : "", 1e3 * seconds, flop / seconds * 1e-12);
    CUDA_OK(cudaFree(layer.request.x.data));
    CUDA_OK(cudaFree(layer.request.y.data));
    CUDA_OK(cudaFree(layer.ordered));
}

static int bench(void)
{
    static const struct hopper_case layers[] = {
        {130, 2016, 1, 0, 0, 128, 128, false}, {130, 2016, 1, 0, 0, 256, 128, false},
        {130, 1008, 1, 0, 0, 256, 256, false}, {130, 504, 1, 0, 0, 512, 512, false},
        {130, 252, 1, 0, 0, 512, 512, false},  {66, 1008, 1, -1, -1, 256, 256, true},
        {66, 504, 1, -1, -1, 512, 512, true},  {129, 2016, 2, 0, 0, 128, 128, false}};

    if (bench_without_device() || !hopper_is_here()) return 0;
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++)
        bench_layer(&layers[i]);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_patches_and_weights),
                                       cmocka_unit_test(test_few_channels),
                                       cmocka_unit_test(test_hopper),
                                       cmocka_unit_test(test_hopper_keeps_to_its_pixels)};

    if (wants_bench(argc, argv)) return bench();
    return cmocka_run_group_tests_name("conv_cuda", tests, NULL, NULL);
}
