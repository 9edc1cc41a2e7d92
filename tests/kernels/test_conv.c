/*
 * test_conv.c - convolutions against seven nested loops in double precision; --bench for speed.
 *
 * Bound of one result: as in test_gemm.c, K = in_channels * size * size.
 */
#include <omp.h>

#include "tests/kernels/kernel_cases.h"

struct conv_case {
    int32_t    in_h, in_w, in_channels, out_channels, size, stride;
    int32_t    pad_top, pad_left, pad_bottom, pad_right;
    enum dtype y, x, w, compute;
    int64_t    gap;
    uint64_t   workspace_bytes;
    bool       enlarge;
};

struct conv_data {
    struct grid         x, w, y;
    float              *bias;
    struct workspace    workspace;
    struct conv_request request;
    int64_t             out_h, out_w;
};

static struct conv_data conv_open(const struct conv_case *c)
{
    struct conv_data d = {.workspace = workspace_open(c->workspace_bytes)};
    const int64_t k = (int64_t)c->in_channels * c->size * c->size;
    const int32_t scale = c->enlarge ? 2 : 1;

    d.out_h = (scale * c->in_h + c->pad_top + c->pad_bottom - c->size) / c->stride + 1;
    d.out_w = (scale * c->in_w + c->pad_left + c->pad_right - c->size) / c->stride + 1;
    d.x = grid_drawn(c->x, (int64_t)c->in_h * c->in_w, c->in_channels, c->in_channels + c->gap, 0,
                     1);
    d.w = grid_drawn(c->w, c->out_channels, k, k, (size_t)(c->gap % 2), 2);
    d.y = grid_empty(c->y, d.out_h * d.out_w, c->out_channels, c->out_channels + c->gap, 0);
    d.bias = vector_drawn(c->out_channels, 3);
    d.request = (struct conv_request){
        .y = d.y.m, .x = d.x.m, .w = d.w.m, .bias = d.bias, .in_h = c->in_h, .in_w = c->in_w,
        .size = c->size, .stride = c->stride, .pad_top = c->pad_top, .pad_left = c->pad_left,
        .pad_bottom = c->pad_bottom, .pad_right = c->pad_right, .enlarge = c->enlarge};
    return d;
}

static void conv_close(struct conv_data *d)
{
    free(d->workspace.data);
    free(d->bias);
    grid_free(&d->x);
    grid_free(&d->w);
    grid_free(&d->y);
}

struct exact {
    double sum, magnitude;
};

static struct exact exact_cell(const struct conv_case *c, const double *x, const double *w,
                               double bias, int64_t at_y, int64_t at_x)
{
    struct exact e = {bias, fabs(bias)};
    const int64_t area = (int64_t)c->size * c->size, zoom = c->enlarge ? 2 : 1;

    for (int64_t ky = 0; ky < c->size; ky++) {
        for (int64_t kx = 0; kx < c->size; kx++) {
            int64_t row = at_y * c->stride + ky - c->pad_top;
            int64_t col = at_x * c->stride + kx - c->pad_left;
            if (row < 0 || row >= zoom * c->in_h || col < 0 || col >= zoom * c->in_w) continue;
            for (int64_t i = 0; i < c->in_channels; i++) {
                double product = x[(row / zoom * c->in_w + col / zoom) * c->in_channels + i] *
                                 w[i * area + ky * c->size + kx];
                e.sum += product;
                e.magnitude += fabs(product);
            }
        }
    }
    return e;
}

static void check_conv(const struct conv_case *c)
{
    struct conv_data d = conv_open(c);
    double *x = grid_values(&d.x), *w = grid_values(&d.w);
    const int64_t k = (int64_t)c->in_channels * c->size * c->size;

    int rc = k_conv2d_cpu(&d.request, c->compute, d.workspace);
    assert_int_equal(rc, 0);
    for (int64_t row = 0; row < d.out_h * d.out_w; row++) {
        for (int64_t out = 0; out < c->out_channels; out++) {
            struct exact e = exact_cell(c, x, w + out * k, (double)d.bias[out], row / d.out_w,
                                        row % d.out_w);
            /* Where a map is enlarged, two more roundings: of added taps. */
            double relative = (double)(k + (c->enlarge ? 4 : 2)) * F32_EPS / 2;
            if (c->compute == DTYPE_BF16) relative += BF16_EPS;
            CHECK_NEAR(get(d.y.m, row, out), e.sum,
                       relative * e.magnitude + store_error(e.sum, c->y) * 1.01);
        }
    }
    grid_check_gaps(&d.y);
    free(x);
    free(w);
    conv_close(&d);
}

static const int32_t shapes[][10] = {
    /* h, w, in, out, size, stride, pads: top left bottom right */
    {1, 1, 1, 1, 1, 1, 0, 0, 0, 0},     {1, 1, 2, 3, 3, 1, 1, 1, 1, 1},
    {5, 7, 3, 17, 3, 1, 1, 1, 1, 1},    {4, 6, 17, 3, 3, 1, 1, 1, 1, 1},
    {8, 5, 16, 32, 3, 1, 1, 1, 1, 1},   {7, 9, 4, 16, 3, 2, 0, 0, 1, 1},
    {6, 8, 32, 16, 3, 2, 0, 0, 1, 1},   {9, 5, 5, 6, 1, 1, 0, 0, 0, 0},
    {5, 6, 3, 4, 1, 2, 0, 0, 0, 0},     {4, 5, 16, 16, 3, 1, 2, 0, 0, 1},
    {13, 11, 33, 18, 3, 1, 1, 1, 1, 1}, {3, 3, 16, 16, 3, 1, 0, 0, 0, 0}};
enum { SHAPES = (int)(sizeof shapes / sizeof shapes[0]) };

static struct conv_case case_of(int shape)
{
    const int32_t *s = shapes[shape];
    return (struct conv_case){.in_h = s[0], .in_w = s[1], .in_channels = s[2], .out_channels = s[3],
                              .size = s[4], .stride = s[5], .pad_top = s[6], .pad_left = s[7],
                              .pad_bottom = s[8], .pad_right = s[9], .workspace_bytes = 4 << 20};
}

static void all_types(enum dtype compute)
{
    for (int shape = 0; shape < SHAPES; shape++) {
        for (int turn = 0; turn < 6; turn++) {
            struct conv_case c = case_of(shape);
            c.y = turn & 1 ? DTYPE_BF16 : DTYPE_F32;
            c.x = turn & 2 ? DTYPE_BF16 : DTYPE_F32;
            c.w = (enum dtype)(turn % 5);
            c.gap = turn < 3 ? 0 : turn;
            c.compute = compute;
            check_conv(&c);
        }
    }
}

static void test_f32(void **state)
{
    (void)state;
    all_types(DTYPE_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    skip_without_bf16();
    all_types(DTYPE_BF16);
}

/* Room for the weights and little more: bands of rows, then parts of a row. */
static void test_small_workspace_makes_tiles(void **state)
{
    (void)state;
    for (int shape = 2; shape < 7; shape++) {
        struct conv_case c = case_of(shape);
        const uint64_t in = (uint64_t)(c.in_channels + 15) / 16 * 16;
        const uint64_t out = (uint64_t)(c.out_channels + 15) / 16 * 16;
        const uint64_t ordered = (in + 63) / 64 * 64 * ((out + 63) / 64 * 64);
        const uint64_t weights = (in * out + ordered) * 9 * 4 + out * 4;
        c.in_h = 23;
        c.in_w = 19;
        for (uint64_t room = 2048; room <= 32768; room *= 4) {
            c.workspace_bytes = weights + in * 4 * 12 + out * 4 * 2 + room;
            check_conv(&c);
        }
    }
}

/* A picture of one colour gives, away from the border, one value: bias plus colour times the sum of
 * the weights. */
static void test_constant_picture(void **state)
{
    (void)state;
    struct conv_case c = {.in_h = 9, .in_w = 11, .in_channels = 3, .out_channels = 16, .size = 3,
                          .stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1,
                          .workspace_bytes = 1 << 20};
    struct conv_data d = conv_open(&c);
    for (int64_t i = 0; i < 9 * 11 * 3; i++)
        set(d.x.m, i / 3, i % 3, 0.5);
    assert_int_equal(k_conv2d_cpu(&d.request, DTYPE_F32, d.workspace), 0);
    for (int64_t out = 0; out < 16; out++) {
        double want = (double)d.bias[out];
        for (int64_t i = 0; i < 27; i++)
            want += 0.5 * get(d.w.m, out, i);
        for (int64_t row = 1; row < 8; row++)
            for (int64_t col = 1; col < 10; col++)
                CHECK_NEAR(get(d.y.m, row * 11 + col, out), want, 29 * F32_EPS / 2 * 14);
    }
    conv_close(&d);
}

/* ------------------------------------------------------------------------------- enlargement */

/* Whole maps, and strips with a lending row above, below, or both. */
static void enlarge_all_types(enum dtype compute)
{
    static const int32_t maps[][4] = {
        {1, 1, 1, 1}, {1, 5, 3, 4}, {3, 1, 16, 16}, {5, 4, 17, 18}, {4, 7, 70, 5}, {7, 6, 32, 32}};

    for (size_t m = 0; m < sizeof maps / sizeof maps[0]; m++) {
        for (int turn = 0; turn < 12; turn++) {
            struct conv_case c = {.in_h = maps[m][0], .in_w = maps[m][1],
                                  .in_channels = maps[m][2], .out_channels = maps[m][3],
                                  .size = 3, .stride = 1, .pad_top = turn & 1 ? -1 : 1,
                                  .pad_left = 1, .pad_bottom = turn & 2 ? -1 : 1, .pad_right = 1,
                                  .enlarge = true, .workspace_bytes = 4 << 20,
                                  .compute = compute};
            if (c.in_h < 3 && turn & 3) continue; /* no row would be left */
            c.y = turn & 4 ? DTYPE_BF16 : DTYPE_F32;
            c.x = turn & 1 ? DTYPE_BF16 : DTYPE_F32;
            c.w = (enum dtype)(turn % 5);
            c.gap = turn % 3;
            check_conv(&c);
        }
    }
}

static void test_enlarging_f32(void **state)
{
    (void)state;
    enlarge_all_types(DTYPE_F32);
}

static void test_enlarging_bf16(void **state)
{
    (void)state;
    skip_without_bf16();
    enlarge_all_types(DTYPE_BF16);
}

/* -------------------------------------------------------------------------- strips and threads */

/* The part of `whole` for rows [first, end) of its results; of its sources, where it enlarges. */
static struct conv_request strip_of(const struct conv_request *whole, int32_t first, int32_t end)
{
    const int32_t       halo = whole->size / 2, lend = whole->enlarge ? -1 : 0;
    const int32_t       rows_up = whole->enlarge ? 2 : 1;
    const int64_t       y_w = (int64_t)whole->in_w * rows_up / whole->stride;
    int32_t             top = first - halo, bottom = end + halo;
    struct conv_request strip = *whole;

    if (whole->stride == 2) {
        top = 2 * first;
        bottom = 2 * end + 1;
    }
    strip.pad_top = top < 0 ? 1 : whole->stride == 2 || halo == 0 ? 0 : lend;
    strip.pad_bottom = bottom > whole->in_h ? 1 : whole->stride == 2 || halo == 0 ? 0 : lend;
    top = top < 0 ? 0 : top;
    bottom = bottom > whole->in_h ? whole->in_h : bottom;
    strip.in_h = bottom - top;
    strip.x.rows = (int64_t)strip.in_h * whole->in_w;
    strip.x.data = (float *)whole->x.data + top * whole->in_w * whole->x.ld;
    strip.y.rows = (int64_t)(end - first) * rows_up * y_w;
    strip.y.data = (float *)whole->y.data + first * rows_up * y_w * whole->y.ld;
    return strip;
}

/* `kind`: 0 a 3x3 convolution, 1 a 1x1, 2 one that halves, 3 one that enlarges. */
static struct conv_case kind_of_case(int kind, int32_t h, int32_t w, int32_t in, int32_t out)
{
    const int32_t    size = kind == 1 ? 1 : 3, pad = kind == 1 ? 0 : 1;
    struct conv_case c = {.in_h = h, .in_w = w, .in_channels = in, .out_channels = out,
                          .size = size, .stride = kind == 2 ? 2 : 1, .pad_top = kind == 2 ? 0 : pad,
                          .pad_left = kind == 2 ? 0 : pad, .pad_bottom = pad, .pad_right = pad,
                          .enlarge = kind == 3};
    c.workspace_bytes = kernels_workspace_bytes(5, (uint64_t)(in * out) * 9);
    return c;
}

static void test_threads_do_not_change_bits(void **state)
{
    (void)state;
    static const int32_t maps[][4] = {
        {6, 8, 512, 16}, {16, 16, 128, 128}, {12, 20, 3, 32}, {40, 40, 64, 3}, {9, 7, 256, 512}};
    const int usual = omp_get_max_threads();

    for (size_t i = 0; i < 4 * sizeof maps / sizeof maps[0]; i++) {
        const int32_t   *m = maps[i / 4];
        struct conv_case c = kind_of_case((int)(i % 4), m[0], m[1] / 2 * 2, m[2], m[3]);
        struct conv_data data = conv_open(&c);
        char            *first = malloc(data.y.bytes);
        assert_non_null(first);
        for (int threads = 1; threads <= 5; threads++) {
            omp_set_num_threads(threads);
            assert_int_equal(k_conv2d_cpu(&data.request, c.compute, data.workspace), 0);
            if (threads == 1)
                memcpy(first, data.y.block, data.y.bytes);
            else
                assert_memory_equal(first, data.y.block, data.y.bytes);
        }
        free(first);
        conv_close(&data);
    }
    omp_set_num_threads(usual);
}

static void test_strips_do_not_change_bits(void **state)
{
    (void)state;
    static const int32_t maps[][4] = {
        {8, 1, 3, 16}, {12, 8, 128, 3}, {10, 33, 17, 32}, {8, 64, 96, 64}, {6, 20, 256, 128}};

    for (int n = 0; n < 4 * (int)(sizeof maps / sizeof maps[0]); n++) {
        const int32_t   *m = maps[n / 4];
        const int        kind = n % 4;
        struct conv_case c = kind_of_case(kind, m[0], kind == 2 ? 2 * m[1] : m[1], m[2], m[3]);
        struct conv_data d = conv_open(&c);
        const int32_t    h = kind == 2 ? c.in_h / 2 : c.in_h;
        char            *whole = malloc(d.y.bytes);

        assert_non_null(whole);
        assert_int_equal(k_conv2d_cpu(&d.request, c.compute, d.workspace), 0);
        memcpy(whole, d.y.block, d.y.bytes);
        for (int32_t step = 1; step < h; step++) {
            memset(d.y.block, GAP_BYTE, d.y.bytes);
            for (int32_t first = 0; first < h; first += step) {
                const int32_t       end = first + step < h ? first + step : h;
                struct conv_request strip = strip_of(&d.request, first, end);
                assert_int_equal(k_conv2d_cpu(&strip, c.compute, d.workspace), 0);
            }
            assert_memory_equal(whole, d.y.block, d.y.bytes);
        }
        free(whole);
        conv_close(&d);
    }
}

/* ------------------------------------------------------------------------------------- bench */

struct bench {
    struct conv_data data;
    enum dtype       compute;
};

static void run_conv(void *user)
{
    struct bench *b = user;
    (void)k_conv2d_cpu(&b->data.request, b->compute, b->data.workspace);
}

static void bench_conv(int32_t h, int32_t w, int32_t in, int32_t out, int32_t stride,
                       enum dtype compute)
{
    struct conv_case c = {.in_h = h, .in_w = w, .in_channels = in, .out_channels = out, .size = 3,
                          .stride = stride, .pad_top = stride == 1, .pad_left = stride == 1,
                          .pad_bottom = 1, .pad_right = 1, .y = compute, .x = compute,
                          .w = DTYPE_BF16, .compute = compute};
    c.workspace_bytes = kernels_workspace_bytes(2, (uint64_t)in * (uint64_t)out * 9);
    struct bench b = {conv_open(&c), compute};
    double best = best_seconds(run_conv, &b, 4);
    double flops = 18.0 * in * out * (double)(b.data.out_h * b.data.out_w);

    printf("conv 3x3/%d  %4d x %-4d %3d -> %-3d compute=%s: %8.2f ms %8.1f GFLOP/s\n", (int)stride,
           (int)w, (int)h, (int)in, (int)out, compute == DTYPE_F32 ? "f32 " : "bf16", best * 1e3,
           1e-9 * flops / best);
    conv_close(&b.data);
}

static int bench(void)
{
    static const int32_t sizes[][5] = {{1024, 2048, 32, 32, 1},  {1024, 2048, 64, 32, 1},
                                       {256, 512, 128, 128, 1},  {2048, 2048, 32, 3, 1},
                                       {2048, 2048, 3, 32, 1},   {1024, 2048, 32, 32, 2},
                                       {64, 64, 16, 512, 1},     {256, 256, 512, 512, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const int32_t *s = sizes[i];
        bench_conv(s[0], s[1], s[2], s[3], s[4], DTYPE_F32);
        if (kernels_cpu_has_bf16()) bench_conv(s[0], s[1], s[2], s[3], s[4], DTYPE_BF16);
    }
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_small_workspace_makes_tiles),
        cmocka_unit_test(test_constant_picture),
        cmocka_unit_test(test_enlarging_f32),
        cmocka_unit_test(test_enlarging_bf16),
        cmocka_unit_test(test_strips_do_not_change_bits),
        cmocka_unit_test(test_threads_do_not_change_bits),
    };
    if (wants_bench(argc, argv)) return bench();
    return cmocka_run_group_tests_name("conv", tests, NULL, NULL);
}
