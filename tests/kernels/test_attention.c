/*
 * test_attention.c - streamed softmax against the textbook in double precision, every type, odd
 * sizes, slices of packed matrices; properties; the q/k norm with rotation; --bench for speed.
 *
 * Bound of one output: with scores of magnitude s, an f32 score is off by at most (dim + 2) 2^-24
 * s; the exponential turns that into a relative error of its weight, and adds its own 2e-7; a
 * weighted mean of values below 1 moves by twice the largest relative error of its weights.  In
 * bf16 each factor of a score and of the mean is rounded once more (2^-8).
 */
#include <omp.h>

#include "tests/kernels/kernel_cases.h"

struct attention_case {
    int64_t    queries, keys;
    int32_t    heads, dim;
    enum dtype in, out, compute;
    bool       causal, bias, packed; /* packed: q, k, v are column slices of one matrix */
    uint64_t   workspace_bytes;
};

struct attention_data {
    struct grid              q, k, v, out, packed;
    float                   *bias;
    struct workspace         workspace;
    struct attention_request request;
};

static struct attention_data attention_open(const struct attention_case *c)
{
    const int64_t width = (int64_t)c->heads * c->dim;
    struct attention_data d = {.workspace = workspace_open(c->workspace_bytes)};
    struct attention_request *r = &d.request;

    *r = (struct attention_request){.heads = c->heads, .dim = c->dim, .causal = c->causal};
    r->scale = (float)(1.0 / sqrt((double)c->dim));
    if (c->packed) {
        d.packed = grid_drawn(c->in, c->keys, 3 * width, 3 * width + 2, 0, 1);
        r->q = r->k = r->v = d.packed.m;
        r->q.cols = r->k.cols = r->v.cols = width;
        r->q.rows = c->queries;
        r->k.data = (char *)r->k.data + width * dtype_bytes(c->in);
        r->v.data = (char *)r->v.data + 2 * width * dtype_bytes(c->in);
    } else {
        d.q = grid_drawn(c->in, c->queries, width, width + 1, 0, 1);
        d.k = grid_drawn(c->in, c->keys, width, width, 0, 2);
        d.v = grid_drawn(c->in, c->keys, width, width + 3, 0, 3);
        r->q = d.q.m;
        r->k = d.k.m;
        r->v = d.v.m;
    }
    d.out = grid_empty(c->out, c->queries, width, width + 1, 0);
    r->out = d.out.m;
    if (c->bias) r->bias = d.bias = vector_drawn(c->heads * (2 * c->keys - 1), 4);
    return d;
}

static void attention_close(struct attention_data *d)
{
    free(d->workspace.data);
    free(d->bias);
    grid_free(&d->q);
    grid_free(&d->k);
    grid_free(&d->v);
    grid_free(&d->out);
    grid_free(&d->packed);
}

/* Exact attention of one query in one head; mean_out [dim]; returns the largest |score| seen. */
static double textbook(const struct attention_request *r, int64_t head, int64_t query,
                       double *mean_out)
{
    const int64_t first = head * r->dim, end = r->causal ? query + 1 : r->k.rows;
    double *weights = calloc((size_t)r->k.rows, sizeof *weights);
    double top = -1e300, sum = 0.0, largest = 0.0;

    assert_non_null(weights);
    for (int64_t key = 0; key < end; key++) {
        for (int64_t i = 0; i < r->dim; i++)
            weights[key] += get(r->q, query, first + i) * get(r->k, key, first + i);
        weights[key] *= (double)r->scale;
        if (r->bias)
            weights[key] +=
                (double)r->bias[head * (2 * r->k.rows - 1) + key - query + r->k.rows - 1];
        top = fmax(top, weights[key]);
        largest = fmax(largest, fabs(weights[key]));
    }
    memset(mean_out, 0, (size_t)r->dim * sizeof *mean_out);
    for (int64_t key = 0; key < end; key++) {
        double weight = exp(weights[key] - top);
        sum += weight;
        for (int64_t i = 0; i < r->dim; i++)
            mean_out[i] += weight * get(r->v, key, first + i);
    }
    for (int64_t i = 0; i < r->dim; i++)
        mean_out[i] /= sum;
    free(weights);
    return largest;
}

static void check_attention(const struct attention_case *c)
{
    struct attention_data d = attention_open(c);
    double *want = malloc((size_t)c->dim * sizeof *want);

    assert_non_null(want);
    assert_int_equal(k_attention_cpu(&d.request, c->compute, d.workspace), 0);
    for (int64_t head = 0; head < c->heads; head++) {
        for (int64_t query = 0; query < c->queries; query++) {
            double largest = textbook(&d.request, head, query, want);
            double score = (c->dim + 2) * F32_EPS / 2 * (largest + 1) * 2;
            double weight = 1e-6;
            if (c->compute == DTYPE_BF16) {
                score += BF16_EPS * sqrt((double)c->dim) * (double)d.request.scale;
                weight += 1.5 * BF16_EPS;
            }
            for (int64_t i = 0; i < c->dim; i++)
                CHECK_NEAR(get(d.out.m, query, head * c->dim + i), want[i],
                           2 * score + weight + store_error(want[i], c->out));
        }
    }
    grid_check_gaps(&d.out);
    free(want);
    attention_close(&d);
}

static const int64_t sizes[][4] = {/* queries, keys, heads, dim */
                                   {1, 1, 1, 1},   {2, 2, 2, 3},    {3, 3, 1, 17},  {17, 17, 3, 8},
                                   {65, 65, 2, 5}, {131, 131, 1, 6}, {9, 300, 2, 16}};
enum { SIZES = (int)(sizeof sizes / sizeof sizes[0]) };

static void all_cases(enum dtype compute)
{
    for (int s = 0; s < SIZES; s++) {
        for (int turn = 0; turn < 8; turn++) {
            struct attention_case c = {
                .queries = sizes[s][0],
                .keys = sizes[s][1],
                .heads = (int32_t)sizes[s][2],
                .dim = (int32_t)sizes[s][3],
                .in = turn & 1 ? DTYPE_BF16 : DTYPE_F32,
                .out = (turn >> 1 ^ turn) & 1 ? DTYPE_BF16 : DTYPE_F32,
                .compute = compute,
                .causal = turn & 2,
                .bias = turn & 4,
                .packed = (turn + s) % 3 == 0,
                .workspace_bytes = 8 << 20,
            };
            check_attention(&c);
        }
    }
}

static void test_f32(void **state)
{
    (void)state;
    all_cases(DTYPE_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    skip_without_bf16();
    all_cases(DTYPE_BF16);
}

/* The smallest workspaces make blocks of a few queries and keys: the maximum moves often. */
static void test_small_workspace_makes_small_blocks(void **state)
{
    (void)state;
    const uint64_t threads = (uint64_t)omp_get_max_threads();
    for (int turn = 0; turn < 4; turn++) {
        struct attention_case c = {40,        57,        2,        7,        DTYPE_F32, DTYPE_F32,
                                   DTYPE_F32, turn & 1,  turn & 2, false,
                                   threads * (turn < 2 ? 1536 : 4096)};
        if (turn & 1) c.queries = c.keys;
        check_attention(&c);
    }
}

/* The VAE's shape: one head as wide as the map has channels. */
static void test_one_wide_head(void **state)
{
    (void)state;
    struct attention_case c = {70, 150, 1, 512, DTYPE_F32, DTYPE_F32, DTYPE_F32, false, false, true,
                               8 << 20};
    check_attention(&c);
}

/* ------------------------------------------------------------------------------- properties */

/* q = 0 makes all scores equal: every output is the mean of the values. */
static void test_equal_scores_average_values(void **state)
{
    (void)state;
    struct attention_case c = {50, 301, 2, 8, DTYPE_F32, DTYPE_F32, DTYPE_F32, false, false, false,
                               8 << 20};
    struct attention_data d = attention_open(&c);
    for (int64_t i = 0; i < 50 * 16; i++)
        set(d.q.m, i / 16, i % 16, 0.0);
    assert_int_equal(k_attention_cpu(&d.request, DTYPE_F32, d.workspace), 0);
    for (int64_t col = 0; col < 16; col++) {
        double mean = 0.0;
        for (int64_t key = 0; key < 301; key++)
            mean += get(d.v.m, key, col) / 301;
        for (int64_t row = 0; row < 50; row++)
            CHECK_NEAR(get(d.out.m, row, col), mean, 301 * F32_EPS);
    }
    attention_close(&d);
}

static void test_causal_first_row_is_first_value(void **state)
{
    (void)state;
    struct attention_case c = {77, 77, 3, 8, DTYPE_F32, DTYPE_F32, DTYPE_F32, true, false, false,
                               8 << 20};
    struct attention_data d = attention_open(&c);
    assert_int_equal(k_attention_cpu(&d.request, DTYPE_F32, d.workspace), 0);
    for (int64_t col = 0; col < 24; col++)
        assert_true(get(d.out.m, 0, col) == get(d.v.m, 0, col));
    attention_close(&d);
}

/* Scores in the thousands, largest last: nothing overflows, and the last key wins alone. */
static void test_large_scores(void **state)
{
    (void)state;
    struct attention_case c = {3, 600, 1, 4, DTYPE_F32, DTYPE_F32, DTYPE_F32, false, false, false,
                               8 << 20};
    struct attention_data d = attention_open(&c);
    d.request.scale = 1.0f;
    for (int64_t key = 0; key < 600; key++)
        for (int64_t i = 0; i < 4; i++)
            set(d.k.m, key, i, i == 0 ? (double)(key - 300) * 200 : 0.0);
    for (int64_t row = 0; row < 3; row++)
        set(d.q.m, row, 0, 1.0);
    assert_int_equal(k_attention_cpu(&d.request, DTYPE_F32, d.workspace), 0);
    for (int64_t i = 0; i < 4; i++)
        CHECK_NEAR(get(d.out.m, 1, i), get(d.v.m, 599, i), 1e-6);
    attention_close(&d);
}

static void test_threads_do_not_change_bits(void **state)
{
    (void)state;
    struct attention_case c = {150, 150, 2, 16, DTYPE_F32, DTYPE_F32, DTYPE_F32, false, true, false,
                               8 << 20};
    struct attention_data d = attention_open(&c);
    const int usual = omp_get_max_threads();
    char *first = malloc(d.out.bytes);

    assert_non_null(first);
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        assert_int_equal(k_attention_cpu(&d.request, DTYPE_F32, d.workspace), 0);
        if (threads == 1)
            memcpy(first, d.out.block, d.out.bytes);
        else
            assert_memory_equal(first, d.out.block, d.out.bytes);
    }
    assert_int_equal(omp_get_max_threads(), 3); /* the call leaves the caller's team as it was */
    omp_set_num_threads(usual);
    free(first);
    attention_close(&d);
}

/* -------------------------------------------------------------------------- q/k norm and RoPE */

static void check_rope(enum dtype dtype, int64_t rows, int32_t heads, int32_t dim,
                       int64_t first_rotated)
{
    const int64_t width = (int64_t)heads * dim, half = dim / 2;
    struct grid q = grid_drawn(dtype, rows, width, width + 3, 0, 1);
    struct grid k = grid_drawn(dtype, rows, width, width, 0, 2);
    double *before[2] = {grid_values(&q), grid_values(&k)};
    const int64_t table = (rows - first_rotated) * half;
    float *weight[2] = {vector_drawn(dim, 3), vector_drawn(dim, 4)};
    float *angle = vector_drawn(table + 1, 5), *cosine = vector_drawn(table + 1, 6);
    float *sine = vector_drawn(table + 1, 7);

    for (int64_t i = 0; i < table; i++) {
        cosine[i] = cosf(3.0f * angle[i]);
        sine[i] = sinf(3.0f * angle[i]);
    }
    struct qk_rope_request request = {q.m,  k.m,    heads, dim,  weight[0],    weight[1],
                                      1e-6f, cosine, sine,  first_rotated};
    k_qk_norm_rope_cpu(&request);
    for (int which = 0; which < 2; which++) {
        const struct matrix got = which ? k.m : q.m;
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t pair = 0; pair < heads * half; pair++) {
                const int64_t head = pair / half, at = pair % half;
                const double *x = before[which] + row * width + head * dim;
                double squares = 0.0;
                for (int64_t i = 0; i < dim; i++)
                    squares += x[i] * x[i];
                double inverse = 1.0 / sqrt(squares / dim + 1e-6);
                double even = x[2 * at] * inverse * (double)weight[which][2 * at];
                double odd = x[2 * at + 1] * inverse * (double)weight[which][2 * at + 1];
                double c = 1.0, s = 0.0;
                if (row >= first_rotated) {
                    c = (double)cosine[(row - first_rotated) * half + at];
                    s = (double)sine[(row - first_rotated) * half + at];
                }
                double want[2] = {even * c - odd * s, odd * c + even * s};
                /* the mean of squares over dim terms, the root, three products, one sum */
                double bound = (dim / 2 + 8) * F32_EPS / 2 * (fabs(even) + fabs(odd));
                for (int64_t i = 0; i < 2; i++)
                    CHECK_NEAR(get(got, row, head * dim + 2 * at + i), want[i],
                               bound + store_error(want[i], dtype) * 1.01);
            }
        }
    }
    grid_check_gaps(&q);
    for (int i = 0; i < 2; i++) {
        free(before[i]);
        free(weight[i]);
    }
    free(angle);
    free(cosine);
    free(sine);
    grid_free(&q);
    grid_free(&k);
}

static void test_qk_norm_rope(void **state)
{
    (void)state;
    for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
        check_rope(dtype, 1, 1, 2, 0);
        check_rope(dtype, 3, 2, 6, 1);
        check_rope(dtype, 17, 3, 34, 5);
        check_rope(dtype, 65, 2, 128, 65); /* nothing is rotated */
        check_rope(dtype, 65, 2, 128, 7);
    }
}

/* ------------------------------------------------------------------------------------- bench */

struct bench {
    struct attention_data data;
    enum dtype            compute;
};

static void run_attention(void *user)
{
    struct bench *b = user;
    (void)k_attention_cpu(&b->data.request, b->compute, b->data.workspace);
}

static void bench_attention(int64_t tokens, int32_t heads, int32_t dim, enum dtype compute)
{
    struct attention_case c = {
        tokens, tokens, heads, dim, compute, compute, compute, false, false, true,
        kernels_workspace_bytes((uint32_t)omp_get_max_threads(), 0)};
    struct bench b = {attention_open(&c), compute};
    double best = best_seconds(run_attention, &b, tokens > 8000 ? 2 : 5);

    printf("attention  N=%-6lld H=%-3d D=%-4d compute=%s: %9.2f ms %8.1f GFLOP/s\n",
           (long long)tokens, (int)heads, (int)dim, compute == DTYPE_F32 ? "f32 " : "bf16",
           best * 1e3, 4e-9 * (double)(tokens * tokens * heads * dim) / best);
    attention_close(&b.data);
}

static int bench(void)
{
    bench_attention(4160, 4, 64, DTYPE_F32);
    bench_attention(4160, 2, 128, DTYPE_F32);
    bench_attention(12096, 1, 64, DTYPE_F32);
    bench_attention(12096, 1, 128, DTYPE_F32);
    bench_attention(4096, 1, 512, DTYPE_F32);
    if (kernels_cpu_has_bf16()) bench_attention(4160, 2, 128, DTYPE_BF16);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_small_workspace_makes_small_blocks),
        cmocka_unit_test(test_one_wide_head),
        cmocka_unit_test(test_equal_scores_average_values),
        cmocka_unit_test(test_causal_first_row_is_first_value),
        cmocka_unit_test(test_large_scores),
        cmocka_unit_test(test_threads_do_not_change_bits),
        cmocka_unit_test(test_qk_norm_rope),
    };
    if (wants_bench(argc, argv)) return bench();
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
