/*
 * test_noise.c - the generator against its authors' vectors, the normals against libm, and what the
 * tiles rely on: a cell's noise depends on its place and the seed, on nothing else.
 */
#include <omp.h>

#include "kernels/noise_cell.h"
#include "tests/kernels/kernel_cases.h"

static float *noise_of(struct noise_request request)
{
    int64_t count = (int64_t)request.h * request.w * request.channels;
    float  *out = malloc((size_t)count * sizeof *out);
    assert_non_null(out);
    k_noise_cpu(out, &request);
    return out;
}

/* The known answers that Random123 publishes for philox4x32, 10 rounds: counter, key, result. */
static void test_philox_known_answers(void **state)
{
    (void)state;
    static const uint32_t known[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d,
         0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb, 0x5001e420, 0x24126ea1}};
    for (int i = 0; i < 3; i++) {
        uint32_t words[4];
        noise_philox(words, known[i], (uint64_t)known[i][5] << 32 | known[i][4]);
        assert_memory_equal(words, known[i] + 6, sizeof words);
    }
}

/* Words at the ends of every octant and binade, and many between.  4e-15: the rounding of the angle
 * that libm is given. */
static void test_arithmetic_matches_libm(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 200000; i++) {
        uint32_t word = i < 64 ? (i % 2 ? 1u << i / 2 : (1u << i / 2) - 1) : i * 2654435761u;
        if (i >= 64 && i < 96) word = (i % 8 << 29) - (i < 72 ? 1 : i < 80 ? 0 : 2);
        if (i == 96) word = UINT32_MAX;
        double u = ((double)word + 0.5) * 0x1p-32, cosine, sine;
        noise_cos_sin(&cosine, &sine, word);
        CHECK_NEAR(cosine, cos(2 * M_PI * u), 4e-15);
        CHECK_NEAR(sine, sin(2 * M_PI * u), 4e-15);
        CHECK_NEAR(noise_minus_two_ln(word), -2 * log(u), 1e-13 * (1 - 2 * log(u)));
        assert_true(noise_minus_two_ln(word) > 0);
    }
}

/* The same cell through different rectangles, and after a walk over the whole allowed range. */
static void test_overlapping_rectangles_agree(void **state)
{
    (void)state;
    const struct noise_request big = {42, NOISE_TILE, 100, 131000, 40, 30, 16};
    float *whole = noise_of(big);
    uint64_t turn = 0;
    for (int32_t x = 0; x < 40; x += 7) {
        for (int32_t y = 0; y < 30; y += 11) {
            struct noise_request part = big;
            part.x += x;
            part.y += y;
            part.w = 1 + (int32_t)(turn++ % (uint64_t)(40 - x));
            part.h = 1 + (int32_t)(turn % (uint64_t)(30 - y));
            float *piece = noise_of(part);
            for (int32_t row = 0; row < part.h; row++)
                assert_memory_equal(piece + (size_t)(row * part.w) * 16,
                                    whole + (size_t)((y + row) * 40 + x) * 16,
                                    (size_t)part.w * 16 * sizeof(float));
            free(piece);
        }
    }
    free(whole);
}

/* Fewer channels are the first ones of more. */
static void test_channels_are_independent_of_their_number(void **state)
{
    (void)state;
    float *few = noise_of((struct noise_request){1, NOISE_DRAFT, 0, 0, 9, 5, 4});
    float *many = noise_of((struct noise_request){1, NOISE_DRAFT, 0, 0, 9, 5, 32});
    for (int cell = 0; cell < 45; cell++)
        assert_memory_equal(few + cell * 4, many + cell * 32, 4 * sizeof(float));
    free(few);
    free(many);
}

static void test_threads_do_not_change_bits(void **state)
{
    (void)state;
    const struct noise_request request = {7, NOISE_TILE, 3, 4, 33, 57, 16};
    const int usual = omp_get_max_threads();
    omp_set_num_threads(1);
    float *one = noise_of(request);
    omp_set_num_threads(3);
    float *three = noise_of(request);
    omp_set_num_threads(usual);
    assert_memory_equal(one, three, 33 * 57 * 16 * sizeof(float));
    free(one);
    free(three);
}

static uint64_t fold_bytes(const void *data, size_t bytes)
{
    uint64_t fold = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++)
        fold = (fold ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
    return fold;
}

/* The bits of a fixed rectangle, folded.  Another compiler, flag or machine must give the same: a
 * poster begun on one is finished on another. */
static void test_bits_are_these(void **state)
{
    (void)state;
    const struct noise_request request = {0x123456789abcdef0u, NOISE_TILE, 70000, 3, 64, 64, 16};
    float *out = noise_of(request);
    assert_int_equal(fold_bytes(out, 64 * 64 * 16 * sizeof *out), 0x36e2913aef7ee8d1u);
    free(out);
}

/* The doubles behind them.  One fused multiplication in a thousand would change these, and hardly
 * ever a float. */
static void test_double_bits_are_these(void **state)
{
    (void)state;
    enum { WORDS = 4096 };
    double values[3 * WORDS];
    for (uint32_t i = 0; i < WORDS; i++) {
        values[3 * i] = noise_minus_two_ln(i * 2654435761u);
        noise_cos_sin(&values[3 * i + 1], &values[3 * i + 2], i * 2654435761u);
    }
    assert_int_equal(fold_bytes(values, sizeof values), 0x4da2a8ed627e6fbu);
}

enum { SIDE = 256, CHANNELS = 16, COUNT = SIDE * SIDE * CHANNELS };

static double correlation(const float *a, const float *b, size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++)
        sum += (double)a[i] * (double)b[i];
    return sum / (double)count;
}

/* Five standard errors: a right generator fails one run in a million, and ours never changes. */
static void test_moments(void **state)
{
    (void)state;
    float *out = noise_of((struct noise_request){5, NOISE_DRAFT, 0, 0, SIDE, SIDE, CHANNELS});
    double sum[4] = {0}, tails = 0.0;
    for (int i = 0; i < COUNT; i++) {
        double v = (double)out[i];
        sum[0] += v;
        sum[1] += v * v;
        sum[2] += v * v * v;
        sum[3] += v * v * v * v;
        tails += fabs(v) > 3.0;
    }
    CHECK_NEAR(sum[0] / COUNT, 0.0, 5 * sqrt(1.0 / COUNT));
    CHECK_NEAR(sum[1] / COUNT, 1.0, 5 * sqrt(2.0 / COUNT));
    CHECK_NEAR(sum[2] / COUNT, 0.0, 5 * sqrt(15.0 / COUNT));
    CHECK_NEAR(sum[3] / COUNT, 3.0, 5 * sqrt(96.0 / COUNT));
    CHECK_NEAR(tails / COUNT, 0.0026998, 5 * sqrt(0.0027 / COUNT));
    free(out);
}

static void test_neighbours_seeds_and_purposes_are_uncorrelated(void **state)
{
    (void)state;
    const struct noise_request request = {5, NOISE_DRAFT, 0, 0, SIDE, SIDE, CHANNELS};
    const double bound = 5 * sqrt(1.0 / COUNT);
    float *here = noise_of(request);
    for (size_t channel = 1; channel < CHANNELS; channel++)
        CHECK_NEAR(correlation(here, here + channel, COUNT - channel), 0.0, bound);
    for (int turn = 0; turn < 6; turn++) {
        struct noise_request other = request;
        other.x += turn == 0;
        other.y += turn == 1;
        other.seed += turn == 2;
        other.seed += turn == 3 ? 1ull << 32 : 0;
        other.purpose = turn == 4 ? NOISE_TILE : NOISE_DRAFT;
        other.x += turn == 5 ? 1 << 16 : 0;
        float *there = noise_of(other);
        CHECK_NEAR(correlation(here, there, COUNT), 0.0, bound);
        free(there);
    }
    free(here);
}

static void run_noise(void *user)
{
    k_noise_cpu(user, &(struct noise_request){5, NOISE_TILE, 0, 0, SIDE, SIDE, CHANNELS});
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_arithmetic_matches_libm),
        cmocka_unit_test(test_overlapping_rectangles_agree),
        cmocka_unit_test(test_channels_are_independent_of_their_number),
        cmocka_unit_test(test_threads_do_not_change_bits),
        cmocka_unit_test(test_bits_are_these),
        cmocka_unit_test(test_double_bits_are_these),
        cmocka_unit_test(test_moments),
        cmocka_unit_test(test_neighbours_seeds_and_purposes_are_uncorrelated),
    };
    if (wants_bench(argc, argv)) {
        float *out = malloc(COUNT * sizeof *out);
        if (out == NULL) return 1;
        printf("noise: %.1f ns a value\n", best_seconds(run_noise, out, 5) / COUNT * 1e9);
        free(out);
        return 0;
    }
    return cmocka_run_group_tests_name("noise", tests, NULL, NULL);
}
