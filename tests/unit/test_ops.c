/*
 * test_ops.c - operations of a distant backend against the CPU's in f32: products of every type and
 * epilogue, convolutions by every way, attention by every way; rehearsals; the same bits twice;
 * weights that visit.
 *
 * MURAL_TEST_DEVICE=cuda runs it on the GPU; without, the machine under test is the CPU behind its
 * wall, which shows at least that the test itself is right.
 */
#include "../test.h"

#include "backend/backend.h"

#include <math.h>

/* The machine under test, and the one that knows. */
struct pair {
    struct backend *machine, *oracle;
    uint64_t        random;
};

static enum machine machine_under_test(void)
{
    const char *name = getenv("MURAL_TEST_DEVICE");

    return name != NULL && strcmp(name, "cuda") == 0 ? MACHINE_CUDA : MACHINE_WALLED;
}

static struct pair pair_open(enum dtype compute)
{
    struct err             err = {0};
    struct pair            pair = {.random = 1};
    struct backend_options options = {.compute = DTYPE_F32,
                                      .threads = 2,
                                      .conv_weight_elements_max = 9 * 128 * 128,
                                      .arena_limit_bytes = (uint64_t)2 << 30};
    struct backend_device  device;

    if (machine_under_test() == MACHINE_CUDA && backend_find_cuda(&device, 0, &err) != ERR_OK) {
        print_message("# skipped: %s\n", err.text);
        skip();
    }
    ASSERT_OK(backend_open(&pair.oracle, &options, &err));
    options.machine = machine_under_test();
    options.kept_matrix_bytes = options.kept_vector_bytes = 64 << 20;
    if (options.machine == MACHINE_CUDA) options.compute = compute; /* a CPU may have no bf16 */
    ASSERT_OK(backend_open(&pair.machine, &options, &err));
    return pair;
}

static void pair_close(struct pair *pair)
{
    backend_close(pair->machine);
    backend_close(pair->oracle);
}

static float *numbers(struct pair *pair, int64_t count)
{
    float *values = calloc((size_t)count, sizeof *values);

    assert_non_null(values);
    for (int64_t i = 0; i < count; i++) /* exact in bf16 */
        values[i] = (float)random_between(&pair->random, -64, 64) / 64.0f;
    return values;
}

/* `values` in the backend's arena, rows `ld` apart. */
static struct matrix sent(struct backend *backend, const float *values, enum dtype dtype,
                          int64_t rows, int64_t cols, int64_t ld)
{
    struct matrix m = backend_take(backend, dtype, rows, ld, "operand");

    m.cols = cols;
    backend_upload(backend, m, values);
    return m;
}

static float *received(struct backend *backend, struct matrix m)
{
    struct err err = {0};
    float     *values = calloc((size_t)(m.rows * m.cols), sizeof *values);

    assert_non_null(values);
    backend_download(backend, values, m);
    ASSERT_OK(backend_wait(backend, &err));
    return values;
}

/* Frees both. */
static void assert_near(float *got, float *wanted, int64_t count, double limit, const char *what)
{
    double difference = 0, size = 0;

    for (int64_t i = 0; i < count; i++) {
        double d = (double)got[i] - (double)wanted[i];
        difference += d * d;
        size += (double)wanted[i] * (double)wanted[i];
    }
    free(got);
    free(wanted);
    if (!(difference <= limit * limit * size))
        fail_msg("%s: relative error %.2e, at most %.0e", what, sqrt(difference / size), limit);
}

static double limit_of(enum dtype compute)
{
    return compute == DTYPE_BF16 ? 1e-2 : 1e-5;
}

/* ------------------------------------------------------------------------------------ linear */

struct linear_case {
    int64_t         m, n, k, gap;
    enum dtype      x, y;
    enum activation act;
    bool            bias, keep;
};

static void check_linear(const struct linear_case *c, enum dtype compute)
{
    struct pair     pair = pair_open(compute);
    struct backend *both[2] = {pair.machine, pair.oracle};
    float          *x = numbers(&pair, c->m * c->k), *w = numbers(&pair, c->n * c->k);
    float          *bias = numbers(&pair, c->n), *result[2];
    struct matrix   host_w = {w, DTYPE_F32, c->n, c->k, c->k};
    struct matrix   host_bias = {bias, DTYPE_F32, 1, c->n, c->n};
    char            what[96];

    for (int i = 0; i < 2; i++) {
        bool          keep = c->keep && i == 0;
        struct matrix mx = sent(both[i], x, c->x, c->m, c->k, c->k + c->gap);
        struct matrix my = backend_take(both[i], c->y, c->m, c->n + c->gap, "y");
        struct matrix mw = keep ? backend_keep(both[i], host_w) : backend_fetch(both[i], host_w);
        const float  *b = keep ? backend_keep_vector(both[i], host_bias)
                               : backend_fetch_vector(both[i], bias, c->n);
        my.cols = c->n;
        backend_linear(both[i], my, mx, mw, c->bias ? b : NULL, c->act);
        result[i] = received(both[i], my);
    }
    (void)snprintf(what, sizeof what, "linear %lld x %lld x %lld, act %d", (long long)c->m,
                   (long long)c->n, (long long)c->k, (int)c->act);
    assert_near(result[0], result[1], c->m * c->n, limit_of(compute), what);
    free(x);
    free(w);
    free(bias);
    pair_close(&pair);
}

static void products_agree(void **state)
{
    static const struct linear_case cases[] = {
        /* m, n, k, gap, x, y, act, bias, keep */
        {1, 64, 32, 0, DTYPE_F32, DTYPE_F32, ACT_SILU, true, false},
        {3, 17, 5, 3, DTYPE_F32, DTYPE_F32, ACT_NONE, true, true},
        {128, 256, 64, 8, DTYPE_BF16, DTYPE_BF16, ACT_GELU_TANH, true, true},
        {130, 48, 72, 8, DTYPE_BF16, DTYPE_BF16, ACT_NONE, true, false},
        {130, 48, 72, 8, DTYPE_BF16, DTYPE_BF16, ACT_GELU_TANH, false, false},
        {65, 192, 64, 0, DTYPE_F32, DTYPE_BF16, ACT_QUICK_GELU, true, true},
        {65, 64, 200, 16, DTYPE_BF16, DTYPE_F32, ACT_NONE, true, true},
        {7, 3, 9, 0, DTYPE_BF16, DTYPE_F32, ACT_NONE, false, true},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        check_linear(&cases[i], DTYPE_F32);
        check_linear(&cases[i], DTYPE_BF16);
    }
}

/* ------------------------------------------------------------------------------- convolution */

struct conv_case {
    int32_t    h, w, size, stride;
    int64_t    in, out;
    enum dtype x, y;
    bool       enlarge; /* and both the first and the final row of x only lend themselves */
};

static void check_conv(const struct conv_case *c, enum dtype compute)
{
    struct pair     pair = pair_open(compute);
    struct backend *both[2] = {pair.machine, pair.oracle};
    int64_t         in_rows = (int64_t)c->h * c->w, taps = (int64_t)c->size * c->size;
    int64_t         out_rows = in_rows / (c->stride * c->stride);
    if (c->enlarge) out_rows = 4 * (in_rows - 2 * c->w);
    float              *x = numbers(&pair, in_rows * c->in), *result[2];
    float              *w = numbers(&pair, c->out * c->in * taps), *bias = numbers(&pair, c->out);
    struct matrix       host_w = {w, DTYPE_F32, c->out, c->in * taps, c->in * taps};
    int32_t             around = c->size == 3 && c->stride == 1, after = c->size == 3;
    struct conv_request request = {.in_h = c->h,
                                   .in_w = c->w,
                                   .size = c->size,
                                   .stride = c->stride,
                                   .pad_top = around,
                                   .pad_left = around,
                                   .pad_bottom = after,
                                   .pad_right = after,
                                   .enlarge = c->enlarge};
    char                what[96];

    if (c->enlarge) request.pad_top = request.pad_bottom = -1;

    for (int i = 0; i < 2; i++) {
        request.x = sent(both[i], x, c->x, in_rows, c->in, c->in);
        request.y = backend_take(both[i], c->y, out_rows, c->out, "y");
        request.w = backend_fetch(both[i], host_w);
        request.bias = backend_fetch_vector(both[i], bias, c->out);
        backend_conv2d(both[i], &request);
        result[i] = received(both[i], request.y);
    }
    (void)snprintf(what, sizeof what, "convolution %lld -> %lld at %d x %d, stride %d",
                   (long long)c->in, (long long)c->out, c->w, c->h, c->stride);
    assert_near(result[0], result[1], out_rows * c->out, limit_of(compute), what);
    free(x);
    free(w);
    free(bias);
    pair_close(&pair);
}

static void convolutions_agree(void **state)
{
    static const struct conv_case cases[] = {
        /* h, w, size, stride, in, out, x, y, enlarge */
        {6, 8, 3, 1, 3, 32, DTYPE_F32, DTYPE_BF16, false},
        {16, 16, 3, 1, 32, 64, DTYPE_BF16, DTYPE_BF16, false},
        {8, 12, 3, 2, 32, 32, DTYPE_BF16, DTYPE_BF16, false},
        {9, 5, 1, 1, 64, 32, DTYPE_BF16, DTYPE_BF16, false},
        {32, 40, 3, 1, 32, 3, DTYPE_BF16, DTYPE_F32, false},
        {4, 4, 3, 1, 32, 16, DTYPE_BF16, DTYPE_F32, false},
        {5, 7, 3, 1, 5, 9, DTYPE_F32, DTYPE_F32, false},
        {6, 8, 3, 1, 32, 16, DTYPE_BF16, DTYPE_BF16, true},
        {4, 5, 3, 1, 8, 24, DTYPE_F32, DTYPE_F32, true},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        check_conv(&cases[i], DTYPE_F32);
        check_conv(&cases[i], DTYPE_BF16);
    }
}

/* The rows of a map, of which one at each end lends itself only; `rows` of what is enlarged. */
static struct matrix convolved_rows(struct backend *machine, const struct conv_request *whole,
                                    int32_t first, int32_t rows)
{
    const int64_t       in_w = whole->in_w, step = whole->stride, times = whole->enlarge ? 4 : 1;
    const int32_t       above = whole->pad_top;
    const int32_t       height = (int32_t)step * (rows - 1) + whole->size;
    struct conv_request part = *whole;

    part.x = matrix_rows(whole->x, (first * step - above) * in_w, height * in_w);
    part.in_h = height;
    part.pad_top = part.pad_bottom = whole->enlarge ? -1 : 0;
    part.y =
        backend_take(machine, whole->y.dtype, times * rows * in_w / step, whole->y.cols, "rows");
    backend_conv2d(machine, &part);
    return part.y;
}

static int64_t rows_that_differ(struct backend *machine, struct matrix a, struct matrix b)
{
    float  *x = received(machine, a), *y = received(machine, b);
    int64_t apart = 0;

    for (int64_t i = 0; i < a.rows; i++)
        apart += memcmp(x + i * a.cols, y + i * a.cols, (size_t)a.cols * sizeof *x) != 0;
    free(x);
    free(y);
    return apart;
}

struct layer_case {
    int32_t w, size, stride, times; /* times 2: of the enlarged map */
    int64_t in, out;
};

/* Strips of the layer that do not have the bits of the rows of a higher one. */
static int strips_apart(const struct layer_case *c)
{
    static const int32_t heights[] = {1, 2, 31, 61, 64, 65, 125, 128, 129, 255, 256, 257};
    const bool           real = machine_under_test() == MACHINE_CUDA; /* others are too slow */
    const enum dtype     dtype = real ? DTYPE_BF16 : DTYPE_F32;
    const int32_t        w = real ? c->w : c->w / 64, h = real ? (w < 514 ? w : 514) : 16;
    const int64_t        in = real ? c->in : c->in / 16, out = real ? c->out : c->out / 16;
    struct pair          pair = pair_open(DTYPE_BF16);
    struct backend      *machine = pair.machine;
    struct arena        *arena = backend_arena(machine);
    struct conv_request  whole = {.in_h = h,
                                  .in_w = w,
                                  .size = c->size,
                                  .stride = c->stride,
                                  .pad_top = c->size == 3 && c->stride == 1,
                                  .pad_left = c->size == 3 && c->stride == 1,
                                  .pad_bottom = c->size == 3,
                                  .pad_right = c->size == 3,
                                  .enlarge = c->times == 2};
    const int32_t        times = c->times, out_w = times * w / c->stride;
    int                  bad = 0;

    whole.x = backend_take(machine, dtype, (int64_t)h * w, in, "x");
    whole.w = backend_take(machine, dtype, out, c->size * c->size * in, "w");
    whole.y = backend_take(machine, dtype, (int64_t)times * h / c->stride * out_w, out, "y");
    backend_fill(machine, whole.x, 1);
    backend_fill(machine, whole.w, 2);
    backend_conv2d(machine, &whole);
    for (size_t i = 0; i < ARRAY_COUNT(heights); i++) {
        const int32_t     first = 2, rows = heights[i];
        struct arena_mark mark = arena_mark(arena);

        if (c->stride * (first + rows) >= h) continue;
        struct matrix part = convolved_rows(machine, &whole, first, rows);
        struct matrix same =
            matrix_rows(whole.y, (int64_t)times * first * out_w, (int64_t)times * rows * out_w);
        int64_t apart = rows_that_differ(machine, part, same);
        if (apart > 0)
            print_message("# %lld -> %lld, size %d, stride %d%s, width %d, %d rows: %lld of %lld "
                          "pixels differ\n",
                          (long long)in, (long long)out, c->size, c->stride,
                          times == 2 ? ", enlarged" : "", w, rows, (long long)apart,
                          (long long)part.rows);
        bad += apart > 0;
        arena_rewind(arena, mark);
    }
    pair_close(&pair);
    return bad;
}

/* The VAE of FLUX.1 goes through its maps in strips, as high as memory allows. */
static void a_row_does_not_depend_on_those_computed_with_it(void **state)
{
    static const struct layer_case layers[] = {
        {2048, 3, 1, 1, 128, 128}, {2048, 3, 1, 1, 256, 128}, {2048, 3, 1, 1, 256, 256},
        {2048, 3, 2, 1, 128, 128}, {2048, 1, 1, 1, 256, 128}, {1024, 3, 1, 1, 128, 256},
        {1024, 3, 1, 1, 256, 256}, {1024, 3, 1, 1, 512, 256}, {1024, 3, 1, 1, 512, 512},
        {1024, 3, 2, 1, 256, 256}, {1024, 1, 1, 1, 128, 256}, {1024, 1, 1, 1, 512, 256},
        {512, 3, 1, 1, 256, 512},  {512, 3, 1, 1, 512, 512},  {512, 3, 2, 1, 512, 512},
        {512, 1, 1, 1, 256, 512},  {256, 3, 1, 1, 512, 512},  {256, 3, 1, 1, 16, 512},
        {512, 3, 1, 2, 256, 256},  {256, 3, 1, 2, 512, 512},
    };
    int bad = 0;

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(layers); i++)
        bad += strips_apart(&layers[i]);
    assert_int_equal(bad, 0);
}

/* --------------------------------------------------------------------------------- attention */

struct attention_case {
    int64_t rows;
    int32_t heads, dim;
    bool    causal, bias;
};

/* q, k and v packed; the result beside something else. */
static float *attend(struct backend *backend, const struct attention_case *c, const float *values,
                     const float *bias, enum dtype dtype)
{
    int64_t                  width = (int64_t)c->heads * c->dim;
    struct matrix            packed = sent(backend, values, dtype, c->rows, 3 * width, 3 * width);
    struct matrix            wide = backend_take(backend, dtype, c->rows, 2 * width, "wide");
    struct attention_request request = {.out = matrix_cols(wide, 0, width),
                                        .q = matrix_cols(packed, 0, width),
                                        .k = matrix_cols(packed, width, width),
                                        .v = matrix_cols(packed, 2 * width, width),
                                        .heads = c->heads,
                                        .dim = c->dim,
                                        .scale = (float)(1 / sqrt((double)c->dim)),
                                        .causal = c->causal};

    if (c->bias) request.bias = backend_fetch_vector(backend, bias, c->heads * (2 * c->rows - 1));
    backend_attention(backend, &request);
    return received(backend, request.out);
}

static void check_attention(const struct attention_case *c, enum dtype compute)
{
    struct pair pair = pair_open(compute);
    int64_t     width = (int64_t)c->heads * c->dim;
    float      *values = numbers(&pair, c->rows * 3 * width);
    float      *bias = numbers(&pair, c->heads * (2 * c->rows - 1));
    float      *got = attend(pair.machine, c, values, bias, backend_act(pair.machine));
    float      *wanted = attend(pair.oracle, c, values, bias, DTYPE_F32);
    char        what[96];

    (void)snprintf(what, sizeof what, "attention of %d heads of %d over %lld rows%s%s", c->heads,
                   c->dim, (long long)c->rows, c->causal ? ", causal" : "",
                   c->bias ? ", with biases" : "");
    assert_near(got, wanted, c->rows * width, limit_of(compute), what);
    free(values);
    free(bias);
    pair_close(&pair);
}

static void attentions_agree(void **state)
{
    static const struct attention_case cases[] = {
        {1, 1, 32, false, false},    {77, 2, 64, true, false},  {96, 2, 32, false, true},
        {513, 2, 128, false, false}, {40, 1, 16, false, false}, {200, 1, 512, false, false},
        {129, 3, 320, false, false},
    };
    /* More queries than one band of scores holds; too slow for a small processor. */
    static const struct attention_case large = {8200, 1, 288, false, false};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        check_attention(&cases[i], DTYPE_F32);
        check_attention(&cases[i], DTYPE_BF16);
    }
    if (machine_under_test() == MACHINE_CUDA) check_attention(&large, DTYPE_BF16);
}

/* --------------------------------------------------------------------------------- rehearsals */

/* Products of this size are worth trials. */
enum { ROWS = 1664, WIDTH = 1024 };

/* By weights that are kept and by some that a rehearsal does not see; then attention. */
static float *run_all(struct backend *backend, const float *values, const float *weights,
                      int rounds)
{
    struct matrix wide = backend_take(backend, backend_act(backend), ROWS, 4 * WIDTH, "wide");
    struct matrix x = backend_take(backend, backend_act(backend), ROWS, WIDTH, "x");
    struct matrix out = backend_take(backend, backend_act(backend), ROWS, WIDTH, "out");
    struct matrix kept = {(void *)(uintptr_t)weights, DTYPE_F32, 4 * WIDTH, WIDTH, WIDTH};
    struct matrix fetched = matrix_rows(kept, 0, 3 * WIDTH);
    struct attention_request attention = {.out = out,
                                          .q = matrix_cols(wide, 0, WIDTH),
                                          .k = matrix_cols(wide, WIDTH, WIDTH),
                                          .v = matrix_cols(wide, 2 * WIDTH, WIDTH),
                                          .heads = 8,
                                          .dim = 128,
                                          .scale = 0.1f};
    struct err               err = {0};

    kept = backend_keep(backend, kept);
    for (int round = 0; round < rounds; round++) {
        struct arena_mark mark = arena_mark(backend_arena(backend));
        backend_rehearse(backend, round + 1 < rounds);
        backend_upload(backend, x, values);
        backend_linear(backend, wide, x, kept, NULL, ACT_NONE);
        backend_linear(backend, matrix_cols(wide, 0, 3 * WIDTH), x, backend_fetch(backend, fetched),
                       NULL, ACT_NONE);
        backend_attention(backend, &attention);
        ASSERT_OK(backend_wait(backend, &err));
        arena_rewind(backend_arena(backend), mark);
    }
    return received(backend, out);
}

/* Whatever was tried, and in whichever run, the bits are the same. */
static void a_rehearsal_changes_no_bit(void **state)
{
    float *results[3], *values, *weights;

    (void)state;
    for (int run = 0; run < 3; run++) {
        struct pair pair = pair_open(DTYPE_BF16);
        values = numbers(&pair, ROWS * WIDTH);
        weights = numbers(&pair, 4 * WIDTH * WIDTH);
        results[run] = run_all(pair.machine, values, weights, run == 0 ? 1 : 2);
        free(values);
        free(weights);
        pair_close(&pair);
    }
    assert_memory_equal(results[0], results[1], ROWS * WIDTH * sizeof(float));
    assert_memory_equal(results[1], results[2], ROWS * WIDTH * sizeof(float));
    for (int run = 0; run < 3; run++)
        free(results[run]);
}

/* Larger than the buffers on the way, of odd sizes, and with rows apart. */
static void copies_arrive_whole(void **state)
{
    static const int64_t sizes[][3] = {{1, 20000001, 0}, {4097, 4099, 5}, {3, 1, 7}, {1, 1, 0}};
    struct err           err = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        struct pair   pair = pair_open(DTYPE_F32);
        int64_t       rows = sizes[i][0], cols = sizes[i][1];
        float        *values = numbers(&pair, rows * cols);
        struct matrix m = sent(pair.machine, values, DTYPE_F32, rows, cols, cols + sizes[i][2]);
        struct matrix b = sent(pair.machine, values, DTYPE_BF16, rows, cols, cols + sizes[i][2]);
        float        *back = received(pair.machine, m), *narrow = received(pair.machine, b);

        assert_memory_equal(values, back, (size_t)(rows * cols) * sizeof *values);
        assert_memory_equal(values, narrow, (size_t)(rows * cols) * sizeof *values);
        ASSERT_OK(backend_wait(pair.machine, &err));
        free(values);
        free(back);
        free(narrow);
        pair_close(&pair);
    }
}

/* What is unpinned may be overwritten at once, and pinned again; what is pinned when the backend is
 * closed is free after that. */
static void pinned_memory_arrives(void **state)
{
    enum { PARTS = 16, FLOATS = 1 << 18, TURNS = 4 };
    const size_t bytes = (size_t)PARTS * FLOATS * sizeof(float);
    struct pair  pair = pair_open(DTYPE_F32);
    float       *values = numbers(&pair, PARTS * FLOATS), *pages = aligned_alloc(1 << 16, bytes);

    (void)state;
    assert_non_null(pages);
    for (int turn = 0; turn < TURNS; turn++) {
        struct matrix m = backend_take(pair.machine, DTYPE_F32, PARTS, FLOATS, "m");

        memcpy(pages, values, bytes);
        backend_pin(pair.machine, pages, bytes);
        if (turn % 2 == 1) backend_pin(pair.machine, pages, bytes);
        for (int64_t row = PARTS; row-- > 0;)
            backend_upload(pair.machine, matrix_rows(m, row, 1), pages + row * FLOATS);
        if (turn + 1 < TURNS) {
            backend_unpin(pair.machine, pages);
            memset(pages, 0xff, bytes);
        }
        float *back = received(pair.machine, m);
        assert_memory_equal(values, back, bytes);
        free(back);
    }
    pair_close(&pair);
    memset(pages, 0xff, bytes);
    free(pages);
    free(values);
}

/* ----------------------------------------------------------------------------------- parcels */

enum { PARCELS = 5, PIECES = 3 };

/* Three weights a parcel, of several types, at any address, with rows apart; two parcels are longer
 * than a window of the reader's. */
struct visitors {
    struct matrix source[PARCELS][PIECES], slot[PARCELS][PIECES];
    float        *values[PARCELS][PIECES]; /* what they are */
};

static void visitors_make(struct visitors *v, struct pair *pair)
{
    static const enum dtype dtypes[PIECES] = {DTYPE_BF16, DTYPE_F32, DTYPE_F16};

    for (int p = 0; p < PARCELS; p++)
        for (int i = 0; i < PIECES; i++) {
            int64_t rows = 3 + p, cols = 17 + 2 * i, gap = i == 1 ? 3 : 0;
            if (i == 0 && (p == 1 || p == 2)) rows = 3000, cols = 12001;
            size_t         each = dtype_bytes(dtypes[i]);
            char          *bytes = calloc((size_t)(rows * (cols + gap)) * each + 2, 1);
            struct matrix *source = &v->source[p][i];
            assert_non_null(bytes);
            *source = (struct matrix){bytes + 2, dtypes[i], rows, cols, cols + gap};
            v->values[p][i] = numbers(pair, rows * cols);
            k_cast_cpu(*source, (struct matrix){v->values[p][i], DTYPE_F32, rows, cols, cols});
        }
}

static void visitors_free(struct visitors *v)
{
    for (int p = 0; p < PARCELS; p++)
        for (int i = 0; i < PIECES; i++) {
            free((char *)v->source[p][i].data - 2);
            free(v->values[p][i]);
        }
}

static void keep_visitors(struct backend *backend, struct visitors *v)
{
    struct err err = {0};

    for (uint32_t p = 0; p < PARCELS; p++) {
        backend_parcel_begin(backend, p);
        for (int i = 0; i < PIECES; i++)
            v->slot[p][i] = backend_keep(backend, v->source[p][i]);
        backend_parcel_end(backend);
    }
    ASSERT_OK(backend_wait(backend, &err));
}

static void assert_arrives(struct backend *backend, struct visitors *v, uint32_t p)
{
    backend_arrive(backend, p);
    for (int i = 0; i < PIECES; i++) {
        struct matrix m = v->slot[p][i];
        float        *got = received(backend, m);
        if (memcmp(got, v->values[p][i], (size_t)(m.rows * m.cols) * sizeof *got) != 0)
            fail_msg("piece %d of parcel %u is not what was kept", i, p);
        free(got);
    }
    backend_depart(backend, p);
}

static struct backend *backend_for(struct visitors *v, enum dtype compute, uint64_t pinned_bytes)
{
    struct err             err = {0};
    struct backend_options options = {.machine = machine_under_test(),
                                      .compute = compute,
                                      .conv_weight_elements_max = 1000,
                                      .arena_limit_bytes = 64 << 20,
                                      .pinned_bytes = pinned_bytes};
    struct backend        *backend = NULL;

    ASSERT_OK(backend_open_dry(&backend, &options, &err));
    keep_visitors(backend, v);
    options.parcels = *backend_parcels(backend);
    backend_close(backend);
    ASSERT_OK(backend_open(&backend, &options, &err));
    keep_visitors(backend, v);
    assert_memory_equal(backend_parcels(backend), &options.parcels, sizeof options.parcels);
    return backend;
}

/* In turn, and in any order; from pinned memory, through windows, and by both. */
static void parcels_arrive_as_they_were_kept(void **state)
{
    static const uint32_t order[] = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 2, 2, 4, 0, 3};
    static const uint64_t pinned[] = {UINT64_MAX, 0, 80 << 20};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(pinned); i++) {
        struct pair     pair = pair_open(DTYPE_BF16);
        struct visitors v;
        visitors_make(&v, &pair);
        struct backend *backend = backend_for(
            &v, machine_under_test() == MACHINE_CUDA ? DTYPE_BF16 : DTYPE_F32, pinned[i]);

        for (size_t k = 0; k < ARRAY_COUNT(order); k++)
            assert_arrives(backend, &v, order[k]);
        backend_close(backend);
        visitors_free(&v);
        pair_close(&pair);
    }
}

/* What departed is there no more: a forgotten arrival shows behind the wall. */
static void a_slot_is_poison_between_visits(void **state)
{
    struct pair     pair = pair_open(DTYPE_F32);
    struct visitors v;

    (void)state;
    if (machine_under_test() == MACHINE_CUDA) {
        pair_close(&pair);
        skip();
    }
    visitors_make(&v, &pair);
    struct backend *backend = backend_for(&v, DTYPE_F32, 0);
    assert_arrives(backend, &v, 3);
    float *got = received(backend, v.slot[3][1]);
    assert_true(isnan(got[0]) && isnan(got[1]));
    free(got);
    backend_close(backend);
    visitors_free(&v);
    pair_close(&pair);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_agree),
        cmocka_unit_test(convolutions_agree),
        cmocka_unit_test(a_row_does_not_depend_on_those_computed_with_it),
        cmocka_unit_test(attentions_agree),
        cmocka_unit_test(a_rehearsal_changes_no_bit),
        cmocka_unit_test(copies_arrive_whole),
        cmocka_unit_test(pinned_memory_arrives),
        cmocka_unit_test(parcels_arrive_as_they_were_kept),
        cmocka_unit_test(a_slot_is_poison_between_visits)};
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
