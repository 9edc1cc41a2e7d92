/*
 * test_attention_cuda.c - the GPU's attention and q/k norm against the CPU's; properties; --bench
 * for speed.  Needs a device; says so.
 *
 * The CPU multiplies in f32 here, on the values that the GPU gets.  In f32 the twins differ by the
 * order of sums.  On tensor cores the weights are rounded to bf16 (half a spacing each, 2^-8), and
 * a mean of values below 1 moves by no more than its weights do.
 */
#include "tests/kernels/cuda_cases.h"

struct attention_case {
    int64_t    queries, keys;
    int32_t    heads, dim;
    enum dtype in, out, compute;
    bool       causal, bias, packed; /* packed: q, k, v are column slices of one matrix */
    int64_t    gap;                  /* between rows of q, k, v and out */
};

struct attention_data {
    struct grid              q, k, v, out; /* packed: all three are in q */
    struct device_grid       dq, dk, dv, dout;
    float                   *bias, *dbias;
    struct attention_request request, device;
};

static struct matrix slice(struct matrix m, int64_t rows, int64_t first, int64_t cols)
{
    m.data = (char *)m.data + first * dtype_bytes(m.dtype);
    m.rows = rows;
    m.cols = cols;
    return m;
}

static struct attention_data attention_open(const struct attention_case *c)
{
    const int64_t         width = (int64_t)c->heads * c->dim, biases = c->heads * (2 * c->keys - 1);
    const int64_t         across = c->packed ? 3 * width : width, ld = across + c->gap;
    struct attention_data d = {0};
    struct attention_request r = {.heads = c->heads, .dim = c->dim, .causal = c->causal};

    r.scale = (float)(2.0 / sqrt((double)c->dim));
    d.q = grid_drawn(c->in, c->packed ? c->keys : c->queries, across, ld, 0, 1);
    d.k = grid_drawn(c->in, c->keys, width, ld, 0, 2);
    d.v = grid_drawn(c->in, c->keys, width, ld, 0, 3);
    d.out = grid_empty(c->out, c->queries, width, width + c->gap, 0);
    d.dq = device_copy(&d.q);
    d.dk = device_copy(&d.k);
    d.dv = device_copy(&d.v);
    d.dout = device_copy(&d.out);
    if (c->bias) {
        d.bias = vector_drawn(biases, 4);
        d.dbias = device_floats(d.bias, biases);
    }
    d.device = r;
    r.q = slice(d.q.m, c->queries, 0, width);
    r.k = c->packed ? slice(d.q.m, c->keys, width, width) : d.k.m;
    r.v = c->packed ? slice(d.q.m, c->keys, 2 * width, width) : d.v.m;
    r.out = d.out.m;
    r.bias = d.bias;
    d.device.q = slice(d.dq.m, c->queries, 0, width);
    d.device.k = c->packed ? slice(d.dq.m, c->keys, width, width) : d.dk.m;
    d.device.v = c->packed ? slice(d.dq.m, c->keys, 2 * width, width) : d.dv.m;
    d.device.out = d.dout.m;
    d.device.bias = d.dbias;
    d.request = r;
    return d;
}

/* The output as the device left it; everything else is freed. */
static struct grid attention_close(struct attention_data *d)
{
    struct device_grid *inputs[3] = {&d->dq, &d->dk, &d->dv};
    struct grid        *hosts[3] = {&d->q, &d->k, &d->v};

    for (int i = 0; i < 3; i++) {
        struct grid back = device_take(inputs[i]);
        check_same_bytes(&back, hosts[i]);
        grid_free(&back);
        grid_free(hosts[i]);
    }
    if (d->bias) CUDA_OK(cudaFree(d->dbias));
    free(d->bias);
    return device_take(&d->dout);
}

static void check_attention(const struct attention_case *c)
{
    struct attention_data d = attention_open(c);
    struct workspace      workspace = workspace_open(64 << 20);
    const bool            rounded = c->compute == DTYPE_BF16;

    CUDA_OK(k_attention_cpu(&d.request, DTYPE_F32, workspace));
    CUDA_OK(k_attention_cuda(&d.device, c->compute, NULL));
    struct grid got = attention_close(&d);
    check_twins(&got, &d.out, rounded ? 1.5 * BF16_EPS : 4e-6);
    assert_true(distance(&got, &d.out) < (rounded || c->out == DTYPE_BF16 ? 1e-2 : 1e-5));
    free(workspace.data);
    grid_free(&got);
    grid_free(&d.out);
}

/* Causal cases need as many keys as queries, or more. */
static void all_turns(struct attention_case c)
{
    for (int turn = 0; turn < 8; turn++) {
        c.causal = turn & 1;
        c.bias = turn & 2;
        c.packed = turn & 4;
        c.out = turn % 3 ? DTYPE_BF16 : DTYPE_F32;
        if ((c.causal || c.bias || c.packed) && c.queries > c.keys) continue;
        check_attention(&c);
    }
}

/* Tiles are 128 or 64 queries by 64 or 32 keys; widths in shared memory 64, 128, 256 and 512. */
static void test_tensor_cores(void **state)
{
    (void)state;
    skip_without_device();
    static const int64_t sizes[][5] = {
        /* queries, keys, heads, dim, gap */
        {1, 1, 1, 8, 0},     {15, 17, 3, 40, 8},  {64, 64, 1, 64, 0},    {130, 130, 2, 32, 16},
        {129, 65, 1, 64, 0}, {9, 300, 2, 80, 8},  {128, 129, 1, 128, 0}, {200, 200, 2, 128, 8},
        {63, 33, 1, 136, 0}, {70, 95, 2, 256, 8}, {65, 65, 1, 264, 0},   {66, 130, 1, 512, 8}};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        struct attention_case c = {.queries = sizes[s][0],
                                   .keys = sizes[s][1],
                                   .heads = (int32_t)sizes[s][2],
                                   .dim = (int32_t)sizes[s][3],
                                   .gap = sizes[s][4],
                                   .in = DTYPE_BF16,
                                   .compute = DTYPE_BF16};
        all_turns(c);
    }
}

/* The shape that has a kernel of its own on sm_90: 128 queries by 192 keys a time, as many tiles at
 * once as there are multiprocessors; the last case has more. */
static void test_heads_of_128(void **state)
{
    (void)state;
    skip_without_device();
    static const int64_t sizes[][4] = {/* queries, keys, heads, gap */
                                       {1, 1, 1, 0},     {7, 7, 2, 8},      {64, 191, 1, 0},
                                       {65, 192, 2, 16}, {127, 193, 1, 8},  {128, 384, 1, 0},
                                       {129, 385, 3, 0}, {200, 200, 5, 64}, {3, 600, 2, 0},
                                       {300, 33, 1, 0},  {257, 529, 24, 8}, {900, 900, 24, 0}};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int packed = 0; packed < 2; packed++) {
            struct attention_case c = {.queries = sizes[s][0],
                                       .keys = sizes[s][1],
                                       .heads = (int32_t)sizes[s][2],
                                       .dim = 128,
                                       .gap = sizes[s][3],
                                       .in = DTYPE_BF16,
                                       .out = DTYPE_BF16,
                                       .compute = DTYPE_BF16,
                                       .packed = packed};
            if (!packed || c.queries <= c.keys) check_attention(&c);
        }
}

static void test_plain(void **state)
{
    (void)state;
    skip_without_device();
    static const int64_t sizes[][5] = {
        /* queries, keys, heads, dim, gap */
        {1, 1, 1, 1, 0},     {2, 2, 2, 3, 0},      {17, 17, 3, 17, 1},
        {65, 65, 2, 5, 3},   {131, 131, 1, 64, 0}, {9, 300, 2, 65, 0},
        {40, 33, 1, 128, 2}, {33, 50, 1, 130, 0},  {18, 70, 1, 512, 4}};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int in = 0; in < 2; in++) {
            struct attention_case c = {.queries = sizes[s][0],
                                       .keys = sizes[s][1],
                                       .heads = (int32_t)sizes[s][2],
                                       .dim = (int32_t)sizes[s][3],
                                       .gap = sizes[s][4],
                                       .in = in ? DTYPE_BF16 : DTYPE_F32,
                                       .compute = DTYPE_F32};
            all_turns(c);
        }
}

/* bf16 operands that tensor cores cannot take: odd heads, rows that start off the boundary, a scale
 * that turns the order of scores round. */
static void test_what_tensor_cores_cannot_take(void **state)
{
    (void)state;
    skip_without_device();
    struct attention_case c = {40,         40,   2,     12,   DTYPE_BF16, DTYPE_BF16,
                               DTYPE_BF16, true, false, true, 0};
    check_attention(&c);
    c.dim = 16;
    c.gap = 3;
    check_attention(&c);
    c.gap = 0;
    struct attention_data d = attention_open(&c);
    struct workspace      workspace = workspace_open(8 << 20);
    d.request.scale = d.device.scale = -0.5f;
    CUDA_OK(k_attention_cpu(&d.request, DTYPE_F32, workspace));
    CUDA_OK(k_attention_cuda(&d.device, DTYPE_BF16, NULL));
    struct grid got = attention_close(&d);
    check_twins(&got, &d.out, 1e-5);
    free(workspace.data);
    grid_free(&got);
    grid_free(&d.out);
}

static void test_broken_contracts(void **state)
{
    (void)state;
    skip_without_device();
    struct matrix m = {NULL, DTYPE_BF16, 4, 16, 16}, none = {NULL, DTYPE_BF16, 0, 16, 16};
    struct attention_request r = {m, m, m, m, 2, 8, 1.0f, false, NULL};
    r.dim = 7;
    assert_int_equal(k_attention_cuda(&r, DTYPE_BF16, NULL), cudaErrorInvalidValue);
    r.dim = 8;
    r.k = r.v = none;
    assert_int_equal(k_attention_cuda(&r, DTYPE_BF16, NULL), cudaErrorInvalidValue);
    r = (struct attention_request){none, none, m, m, 2, 8, 1.0f, false, NULL};
    assert_int_equal(k_attention_cuda(&r, DTYPE_BF16, NULL), 0);
}

/* ------------------------------------------------------------------------------- properties */

/* Every third query's score with key 0 is so far above all others that a kernel which does not look
 * for maxima must notice that it should have. */
static void raise_a_score(struct attention_data *d)
{
    for (int64_t i = 0; i < 128; i++) {
        for (int64_t row = 0; row < 400; row += 3)
            set(d->q.m, row, i, 8.0);
        set(d->q.m, 0, 384 + i, 8.0); /* packed: key 0 of the first head */
    }
    CUDA_OK(cudaMemcpy(d->dq.block, d->q.block, d->q.bytes, cudaMemcpyHostToDevice));
}

/* A query's output does not depend on which queries the call is for. */
static void test_rows_apart(void **state)
{
    (void)state;
    skip_without_device();
    for (int raised = 0; raised < 2; raised++) {
        const struct attention_case c = {400,        400,   3,     128,  DTYPE_BF16, DTYPE_BF16,
                                         DTYPE_BF16, false, false, true, 8};
        struct attention_data       d = attention_open(&c);
        struct attention_request    part = d.device;
        struct grid                 apart = grid_empty(DTYPE_BF16, 400, 384, 392, 0);
        struct device_grid          dapart = device_copy(&apart);

        if (raised) raise_a_score(&d);
        CUDA_OK(k_attention_cuda(&d.device, DTYPE_BF16, NULL));
        for (int64_t row = 0, rows = 1; row < 400; row += rows, rows = rows * 3 + 1) {
            const int64_t count = rows < 400 - row ? rows : 400 - row;
            part.q = slice(d.device.q, count, row * d.device.q.ld, 384);
            part.out = slice(dapart.m, count, row * dapart.m.ld, 384);
            CUDA_OK(k_attention_cuda(&part, DTYPE_BF16, NULL));
        }
        struct grid whole = attention_close(&d), parts = device_take(&dapart);
        check_same_bytes(&parts, &whole);
        grid_free(&whole);
        grid_free(&parts);
        grid_free(&apart);
        grid_free(&d.out);
    }
}

/* The others keep their bits when care is taken of some, and those are what they should be. */
static void test_care_is_taken_of_single_rows(void **state)
{
    (void)state;
    skip_without_device();
    const struct attention_case c = {400,        400,   3,     128,  DTYPE_BF16, DTYPE_BF16,
                                     DTYPE_BF16, false, false, true, 8};
    struct attention_data       plain = attention_open(&c), raised = attention_open(&c);
    struct workspace            workspace = workspace_open(64 << 20);

    raise_a_score(&raised);
    raise_a_score(&plain);
    for (int64_t i = 0; i < 128; i++)
        for (int64_t row = 0; row < 400; row += 3)
            set(plain.q.m, row, i, 0.125);
    CUDA_OK(cudaMemcpy(plain.dq.block, plain.q.block, plain.q.bytes, cudaMemcpyHostToDevice));
    CUDA_OK(k_attention_cuda(&plain.device, DTYPE_BF16, NULL));
    CUDA_OK(k_attention_cuda(&raised.device, DTYPE_BF16, NULL));
    CUDA_OK(k_attention_cpu(&raised.request, DTYPE_F32, workspace));
    struct grid before = attention_close(&plain), after = attention_close(&raised);
    check_twins(&after, &raised.out, 1.5 * BF16_EPS);
    for (int64_t row = 0; row < 400; row++)
        for (int64_t col = row % 3 ? 0 : 128; col < 384; col++)
            assert_true(get(after.m, row, col) == get(before.m, row, col));
    free(workspace.data);
    grid_free(&before);
    grid_free(&after);
    grid_free(&plain.out);
    grid_free(&raised.out);
}

/* Scores in the thousands, largest last or first: nothing overflows, and that key wins alone.  In
 * bf16 its weight may be rounded where the sum that divides it is not. */
static void test_large_scores(void **state)
{
    (void)state;
    skip_without_device();
    for (int turn = 0; turn < 6; turn++) {
        const enum dtype      dtype = turn / 2 ? DTYPE_BF16 : DTYPE_F32;
        const int32_t         dim = turn / 2 == 2 ? 128 : 64;
        const enum dtype      out = turn / 2 == 2 ? DTYPE_BF16 : DTYPE_F32;
        const int64_t         best = turn % 2 ? 0 : 599;
        struct attention_case c = {3, 600, 1, dim, dtype, out, dtype, false, false, false, 0};
        struct attention_data d = attention_open(&c);
        for (int64_t key = 0; key < 600; key++)
            for (int64_t i = 0; i < dim; i++)
                set(d.k.m, key, i,
                    i == 0 ? (double)(best ? key - 300 : 299 - key) * 256 : 0.0);
        for (int64_t row = 0; row < 3; row++)
            set(d.q.m, row, 0, 1.0);
        CUDA_OK(cudaMemcpy(d.dk.block, d.k.block, d.k.bytes, cudaMemcpyHostToDevice));
        CUDA_OK(cudaMemcpy(d.dq.block, d.q.block, d.q.bytes, cudaMemcpyHostToDevice));
        double won[128];
        for (int64_t i = 0; i < dim; i++)
            won[i] = get(d.v.m, best, i);
        d.device.scale = 1.0f;
        CUDA_OK(k_attention_cuda(&d.device, dtype, NULL));
        struct grid got = attention_close(&d);
        for (int64_t i = 0; i < dim; i++)
            CHECK_NEAR(get(got.m, 1, i), won[i],
                       dtype == DTYPE_F32 ? 1e-6 : 0x1p-8 * fabs(won[i]));
        grid_free(&got);
        grid_free(&d.out);
    }
}

/* A NaN anywhere in a head's values or keys reaches every query that sees it, and no other. */
static void test_nan_stays(void **state)
{
    (void)state;
    skip_without_device();
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        struct attention_case c = {100, 100, 2, 64, dtype, DTYPE_F32, dtype, true, false, false, 0};
        struct attention_data d = attention_open(&c);
        const uint32_t        bits = dtype == DTYPE_F32 ? 0x7fc00000u : 0x7fc0u;
        const size_t          at = (size_t)(70 * d.k.m.ld + 64 + 5) * dtype_bytes(dtype);
        memcpy(d.k.block + at, &bits, dtype_bytes(dtype));
        CUDA_OK(cudaMemcpy(d.dk.block, d.k.block, d.k.bytes, cudaMemcpyHostToDevice));
        CUDA_OK(k_attention_cuda(&d.device, dtype, NULL));
        struct grid got = attention_close(&d);
        for (int64_t row = 0; row < 100; row++)
            for (int64_t col = 0; col < 128; col++)
                assert_int_equal(isnan(get(got.m, row, col)) != 0, row >= 70 && col >= 64);
        grid_free(&got);
        grid_free(&d.out);
    }
}

/* A NaN in one column of a head's values reaches that column for every query, and nothing else. */
static void test_nan_stays_in_its_head(void **state)
{
    (void)state;
    skip_without_device();
    struct attention_case c = {140,        400,   2,     128,   DTYPE_BF16, DTYPE_BF16,
                               DTYPE_BF16, false, false, false, 0};
    struct attention_data d = attention_open(&c);
    const uint16_t        bits = 0x7fc0u;

    memcpy(d.v.block + (size_t)(390 * d.v.m.ld + 128 + 5) * sizeof bits, &bits, sizeof bits);
    CUDA_OK(cudaMemcpy(d.dv.block, d.v.block, d.v.bytes, cudaMemcpyHostToDevice));
    CUDA_OK(k_attention_cuda(&d.device, DTYPE_BF16, NULL));
    struct grid got = attention_close(&d);
    for (int64_t row = 0; row < 140; row++)
        for (int64_t col = 0; col < 256; col++)
            assert_int_equal(isnan(get(got.m, row, col)) != 0, col == 128 + 5);
    grid_free(&got);
    grid_free(&d.out);
}

static void test_same_bits_every_time(void **state)
{
    (void)state;
    skip_without_device();
    const struct attention_case c = {200,        200,   2,     128,  DTYPE_BF16, DTYPE_BF16,
                                     DTYPE_BF16, false, false, true, 0};
    struct grid                 got[2];
    for (int turn = 0; turn < 2; turn++) {
        struct attention_data d = attention_open(&c);
        CUDA_OK(k_attention_cuda(&d.device, DTYPE_BF16, NULL));
        got[turn] = attention_close(&d);
        grid_free(&d.out);
    }
    check_same_bytes(&got[1], &got[0]);
    grid_free(&got[0]);
    grid_free(&got[1]);
}

/* -------------------------------------------------------------------------- q/k norm and RoPE */

/* q and k are slices of one packed matrix; what lies between them stays. */
static void check_rope(enum dtype dtype, int64_t rows, int32_t heads, int32_t dim,
                       int64_t first_rotated, int64_t gap)
{
    const int64_t      width = (int64_t)heads * dim, table = (rows - first_rotated) * (dim / 2) + 1;
    struct grid        packed = grid_drawn(dtype, rows, 3 * width, 3 * width + gap, 0, 1);
    struct device_grid device = device_copy(&packed);
    float             *vectors[4], *dvectors[4];

    for (int i = 0; i < 4; i++) {
        const int64_t count = i < 2 ? dim : table;
        vectors[i] = vector_drawn(count, 2 + (uint64_t)i);
        dvectors[i] = device_floats(vectors[i], count);
    }
    struct qk_rope_request request = {slice(packed.m, rows, 0, width),
                                      slice(packed.m, rows, width, width),
                                      heads,
                                      dim,
                                      vectors[0],
                                      vectors[1],
                                      1e-6f,
                                      vectors[2],
                                      vectors[3],
                                      first_rotated};
    k_qk_norm_rope_cpu(&request);
    request.q = slice(device.m, rows, 0, width);
    request.k = slice(device.m, rows, width, width);
    request.q_weight = dvectors[0];
    request.k_weight = dvectors[1];
    request.cos = dvectors[2];
    request.sin = dvectors[3];
    CUDA_OK(k_qk_norm_rope_cuda(&request, NULL));
    struct grid got = device_take(&device);
    check_twins(&got, &packed, 2e-6);
    for (int i = 0; i < 4; i++) {
        free(vectors[i]);
        CUDA_OK(cudaFree(dvectors[i]));
    }
    grid_free(&got);
    grid_free(&packed);
}

static void test_qk_norm_rope(void **state)
{
    (void)state;
    skip_without_device();
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        check_rope(dtype, 1, 1, 2, 0, 0);
        check_rope(dtype, 3, 2, 6, 1, 3);
        check_rope(dtype, 17, 3, 34, 5, 0);
        check_rope(dtype, 9, 5, 64, 4, 8);
        check_rope(dtype, 30, 3, 128, 30, 0); /* nothing is rotated */
        check_rope(dtype, 30, 24, 128, 7, 8);
        check_rope(dtype, 30, 3, 128, 7, 1);
        check_rope(dtype, 3, 2, 256, 0, 0);
    }
}

/* ------------------------------------------------------------------------------------- bench */

struct bench {
    struct attention_request request;
    struct qk_rope_request   rope;
    enum dtype               compute;
};

static int run_attention(void *user)
{
    const struct bench *b = user;
    return k_attention_cuda(&b->request, b->compute, NULL);
}
static int run_rope(void *user)
{
    const struct bench *b = user;
    return k_qk_norm_rope_cuda(&b->rope, NULL);
}

/* Random data: equal operands draw less power and run faster than real ones. */
static struct matrix drawn_on_device(enum dtype dtype, int64_t rows, int64_t cols)
{
    struct grid        g = grid_drawn(dtype, rows, cols, cols, 0, 1);
    struct device_grid d = device_copy(&g);
    grid_free(&g);
    return d.m;
}

static void bench_attention(int64_t tokens, int32_t heads, int32_t dim, enum dtype dtype)
{
    const int64_t width = (int64_t)heads * dim;
    struct matrix packed = drawn_on_device(dtype, tokens, 3 * width);
    struct bench  b = {
         .request = {device_matrix(dtype, tokens, width), slice(packed, tokens, 0, width),
                     slice(packed, tokens, width, width), slice(packed, tokens, 2 * width, width),
                     heads, dim, 1.0f / sqrtf((float)dim), false, NULL},
         .compute = dtype};
    const double best = device_seconds(run_attention, &b, dtype == DTYPE_F32 ? 1 : 5);

    printf("attention %s S=%-6lld H=%-3d D=%-4d %9.3f ms %8.1f TFLOP/s\n",
           dtype == DTYPE_F32 ? "f32 " : "bf16", (long long)tokens, (int)heads, (int)dim,
           best * 1e3, 4e-12 * (double)tokens * (double)tokens * (double)width / best);
    CUDA_OK(cudaFree(b.request.out.data));
    CUDA_OK(cudaFree(packed.data));
}

static void bench_rope(void)
{
    const int64_t tokens = 16896, width = 3072;
    struct matrix packed = device_matrix(DTYPE_BF16, tokens, 3 * width);
    struct matrix table = device_matrix(DTYPE_F32, tokens, 64);
    const float  *t = table.data;
    struct bench b = {.rope = {slice(packed, tokens, 0, width), slice(packed, tokens, width, width),
                               24, 128, t, t, 1e-6f, t, t, 512}};

    print_bandwidth("q/k norm and rotation bf16, 16896 x 2 x 3072",
                    8.0 * (double)tokens * (double)width, device_seconds(run_rope, &b, 20));
    CUDA_OK(cudaFree(packed.data));
    CUDA_OK(cudaFree(table.data));
}

static int bench(void)
{
    if (bench_without_device()) return 0;
    bench_rope();
    bench_attention(16896, 24, 128, DTYPE_BF16);
    bench_attention(4608, 24, 128, DTYPE_BF16);
    bench_attention(512, 64, 64, DTYPE_BF16);
    bench_attention(16896, 24, 64, DTYPE_BF16);
    bench_attention(65536, 1, 512, DTYPE_BF16);
    bench_attention(4608, 24, 128, DTYPE_F32);
    bench_attention(4096, 1, 512, DTYPE_F32);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensor_cores),
        cmocka_unit_test(test_heads_of_128),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_what_tensor_cores_cannot_take),
        cmocka_unit_test(test_broken_contracts),
        cmocka_unit_test(test_rows_apart),
        cmocka_unit_test(test_care_is_taken_of_single_rows),
        cmocka_unit_test(test_large_scores),
        cmocka_unit_test(test_nan_stays),
        cmocka_unit_test(test_nan_stays_in_its_head),
        cmocka_unit_test(test_same_bits_every_time),
        cmocka_unit_test(test_qk_norm_rope),
    };
    if (wants_bench(argc, argv)) return bench();
    return cmocka_run_group_tests_name("attention_cuda", tests, NULL, NULL);
}
