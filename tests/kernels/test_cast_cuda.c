/*
 * test_cast_cuda.c - the GPU's conversions are the CPU's, bit for bit; --bench for speed.  Needs a
 * device; says so.
 */
#include "tests/kernels/cuda_cases.h"

/* Any bit patterns: numbers of all sizes, infinities, NaNs. */
static struct grid grid_of_bits(enum dtype dtype, int64_t rows, int64_t cols, int64_t ld,
                                size_t shift, uint64_t seed)
{
    struct grid g = grid_empty(dtype, rows, cols, ld, shift);

    for (size_t i = 0; i < g.bytes; i++)
        g.block[i] = (char)(int)(127.99 * draw(seed, i));
    return g;
}

static void check_cast(const struct grid *source, enum dtype to, int64_t ld)
{
    struct grid        want = grid_empty(to, source->m.rows, source->m.cols, ld, 0);
    struct device_grid from = device_copy(source), target = device_copy(&want);

    k_cast_cpu(want.m, source->m);
    CUDA_OK(k_cast_cuda(target.m, from.m, NULL));
    struct grid got = device_take(&target), back = device_take(&from);
    check_same_bytes(&got, &want);
    check_same_bytes(&back, source);
    grid_free(&got);
    grid_free(&back);
    grid_free(&want);
}

/* Every pattern of the small types; of f32, every upper half with lower halves that round both
 * ways. */
static void test_all_patterns(void **state)
{
    (void)state;
    skip_without_device();
    static const uint32_t lower[6] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};

    for (enum dtype from = DTYPE_F32; from <= DTYPE_F8_E5M2; from++) {
        const int64_t count = dtype_bytes(from) == 1 ? 256 : from == DTYPE_F32 ? 6 * 65536 : 65536;
        struct grid   source = grid_empty(from, 1, count, count, 0);
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits =
                from == DTYPE_F32 ? (uint32_t)(i / 6) << 16 | lower[i % 6] : (uint32_t)i;
            memcpy((char *)source.m.data + i * dtype_bytes(from), &bits, dtype_bytes(from));
        }
        for (enum dtype to = DTYPE_F32; to <= DTYPE_F16; to++)
            check_cast(&source, to, count);
        grid_free(&source);
    }
}

/* Every pair of types with ends, gaps, and rows that start anywhere. */
static void test_matrices(void **state)
{
    (void)state;
    skip_without_device();
    static const int64_t shapes[][3] = {/* rows, cols, gap */
                                        {1, 1, 0},  {3, 17, 0},  {17, 24, 8}, {5, 21, 11},
                                        {5, 65, 3}, {300, 8, 0}, {2, 5000, 8}};
    for (enum dtype from = DTYPE_F32; from <= DTYPE_F8_E5M2; from++)
        for (enum dtype to = DTYPE_F32; to <= DTYPE_F16; to++)
            for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
                for (size_t shift = 0; shift < 2; shift++) {
                    const int64_t cols = shapes[s][1], ld = cols + shapes[s][2];
                    struct grid   source = grid_of_bits(from, shapes[s][0], cols, ld, shift, s);
                    check_cast(&source, to, ld);
                    grid_free(&source);
                }
}

static void test_large(void **state)
{
    (void)state;
    skip_without_device();
    struct grid source = grid_of_bits(DTYPE_F8_E4M3, 65536, 512, 512, 0, 1);
    check_cast(&source, DTYPE_BF16, 512);
    check_cast(&source, DTYPE_F32, 513);
    grid_free(&source);
}

static void test_broken_contracts(void **state)
{
    (void)state;
    skip_without_device();
    struct matrix a = {NULL, DTYPE_F32, 2, 3, 3}, b = {NULL, DTYPE_BF16, 3, 2, 2};
    assert_int_equal(k_cast_cuda(a, b, NULL), cudaErrorInvalidValue);
    b = (struct matrix){NULL, DTYPE_F8_E4M3, 2, 3, 3};
    assert_int_equal(k_cast_cuda(b, a, NULL), cudaErrorInvalidValue);
    a.rows = b.rows = 0;
    assert_int_equal(k_cast_cuda(a, b, NULL), 0);
}

/* ------------------------------------------------------------------------------------- bench */

struct bench {
    struct matrix target, source;
};

static int run_cast(void *user)
{
    const struct bench *b = user;
    return k_cast_cuda(b->target, b->source, NULL);
}

static void bench_cast(const char *name, enum dtype to, enum dtype from, int64_t rows, int64_t cols)
{
    struct bench b = {device_matrix(to, rows, cols), device_matrix(from, rows, cols)};
    const double bytes = (double)(rows * cols) * (dtype_bytes(to) + dtype_bytes(from));

    print_bandwidth(name, bytes, device_seconds(run_cast, &b, 10));
    CUDA_OK(cudaFree(b.target.data));
    CUDA_OK(cudaFree(b.source.data));
}

static int bench(void)
{
    if (bench_without_device()) return 0;
    bench_cast("cast f32 -> bf16, 16896 x 3072", DTYPE_BF16, DTYPE_F32, 16896, 3072);
    bench_cast("cast bf16 -> f32, 16896 x 3072", DTYPE_F32, DTYPE_BF16, 16896, 3072);
    bench_cast("cast e4m3 -> bf16, 12288 x 3072", DTYPE_BF16, DTYPE_F8_E4M3, 12288, 3072);
    bench_cast("cast f16 -> bf16, 12288 x 3072", DTYPE_BF16, DTYPE_F16, 12288, 3072);
    bench_cast("copy bf16, 16896 x 3072", DTYPE_BF16, DTYPE_BF16, 16896, 3072);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_patterns),
        cmocka_unit_test(test_matrices),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_broken_contracts),
    };
    if (wants_bench(argc, argv)) return bench();
    return cmocka_run_group_tests_name("cast_cuda", tests, NULL, NULL);
}
