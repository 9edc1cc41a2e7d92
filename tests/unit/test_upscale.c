/*
 * test_upscale.c - the enlarged draft as a function from rectangle to pixels.
 */
#include "../test.h"

#include <math.h>

#include "image/image.h"

static struct image make_image(int32_t w, int32_t h)
{
    struct image image = {.w = w, .h = h};
    image.rgb = calloc((size_t)w * (size_t)h * 3, sizeof *image.rgb);
    assert_non_null(image.rgb);
    return image;
}

static struct image make_noise(int32_t w, int32_t h, uint64_t seed)
{
    struct image image = make_image(w, h);
    for (size_t i = 0; i < (size_t)w * (size_t)h * 3; i++)
        image.rgb[i] = (uint16_t)random_u64(&seed);
    return image;
}

static float *resample(const struct image *image, int32_t canvas_w, int32_t canvas_h, int32_t x,
                       int32_t y, int32_t w, int32_t h)
{
    struct err      err = {0};
    struct upscale *upscale = NULL;
    float          *rgb = malloc((size_t)w * (size_t)h * 3 * sizeof *rgb);

    assert_non_null(rgb);
    ASSERT_OK(upscale_open(&upscale, image, canvas_w, canvas_h, &err));
    upscale_rect(upscale, x, y, w, h, rgb);
    upscale_close(upscale);
    return rgb;
}

static void check_near(double a, double b, double tolerance, const char *what, int32_t at)
{
    if (!(fabs(a - b) <= tolerance)) fail_msg("%s at %d: %.9g, expected %.9g", what, at, a, b);
}

static void test_same_size_is_identity(void **state)
{
    struct image image = make_noise(61, 43, 1);
    float       *rgb = resample(&image, 61, 43, 0, 0, 61, 43);

    (void)state;
    /* Two units in the last place of a float near 1: one for the scale, one for the sums. */
    for (int32_t i = 0; i < 61 * 43 * 3; i++)
        check_near((double)rgb[i], image.rgb[i] / 65535.0, 1.2e-7, "identity", i);
    free(rgb);
    image_close(&image);
}

static void test_constant_stays_constant(void **state)
{
    static const int32_t canvases[][2] = {{7, 5}, {90, 91}, {333, 17}, {2, 1000}};
    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(canvases); k++) {
        const int32_t w = canvases[k][0], h = canvases[k][1];
        struct image  image = make_image(40, 30);
        for (int i = 0; i < 40 * 30 * 3; i++)
            image.rgb[i] = 47802;
        float *rgb = resample(&image, w, h, -15, -15, w + 30, h + 30);
        for (int32_t i = 0; i < (w + 30) * (h + 30) * 3; i++)
            check_near((double)rgb[i], 47802 / 65535.0, 4e-7, "constant", i);
        free(rgb);
        image_close(&image);
    }
}

/* The same arithmetic written the slow and obvious way, in doubles. */
static double lanczos(double x)
{
    const double pi = acos(-1.0);
    if (fabs(x) >= 3) return 0;
    if (x == 0) return 1;
    return 3 * sin(pi * x) * sin(pi * x / 3) / (pi * pi * x * x);
}

static int32_t reflect(int32_t at, int32_t size)
{
    while (at < 0 || at >= size)
        at = at < 0 ? -1 - at : 2 * size - 1 - at;
    return at;
}

static int32_t tap_weights(double *weights, int32_t at, int32_t source, int32_t canvas)
{
    const double  centre = (reflect(at, canvas) + 0.5) * source / canvas - 0.5;
    const double  stretch = source > canvas ? (double)source / canvas : 1;
    const int32_t first = (int32_t)floor(centre - 3 * stretch), count = (int32_t)(6 * stretch) + 3;
    double        sum = 0;

    for (int32_t i = 0; i < count; i++)
        sum += weights[i] = lanczos((first + i - centre) / stretch);
    for (int32_t i = 0; i < count; i++)
        weights[i] /= sum;
    return first;
}

static double slow_pixel(const struct image *image, int32_t canvas_w, int32_t canvas_h, int32_t x,
                         int32_t y, int32_t c)
{
    double        wx[512] = {0}, wy[512] = {0}, sum = 0;
    const int32_t left = tap_weights(wx, x, image->w, canvas_w);
    const int32_t top = tap_weights(wy, y, image->h, canvas_h);

    for (int32_t j = 0; j < 512; j++)
        for (int32_t i = 0; i < 512 && wy[j] != 0; i++)
            if (wx[i] != 0)
                sum += wx[i] * wy[j] *
                       image->rgb[(reflect(top + j, image->h) * image->w +
                                   reflect(left + i, image->w)) *
                                      3 +
                                  c] /
                       65535.0;
    return sum < 0 ? 0 : sum > 1 ? 1 : sum;
}

static void test_against_the_slow_way(void **state)
{
    static const int32_t cases[][4] = {/* draft, canvas */
                                       {17, 13, 100, 61}, {64, 48, 64, 60}, {90, 70, 31, 13},
                                       {1, 1, 30, 20},    {3, 200, 50, 7},  {300, 2, 4, 9}};
    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(cases); k++) {
        const int32_t w = cases[k][2], h = cases[k][3];
        struct image  image = make_noise(cases[k][0], cases[k][1], 5 + k);
        float        *rgb = resample(&image, w, h, -15, -15, w + 30, h + 30);
        for (int32_t i = 0; i < (w + 30) * (h + 30) * 3; i += 61) {
            const int32_t x = i / 3 % (w + 30) - 15, y = i / 3 / (w + 30) - 15;
            check_near((double)rgb[i], slow_pixel(&image, w, h, x, y, i % 3), 2e-6, "slow way", i);
        }
        free(rgb);
        image_close(&image);
    }
}

static void test_rectangles_agree_to_the_bit(void **state)
{
    static const int32_t cases[][4] = {{37, 29, 701, 400}, {900, 500, 333, 210}, {50, 50, 50, 50}};
    uint64_t             seed = 11;

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(cases); k++) {
        const int32_t w = cases[k][2], h = cases[k][3], all_w = w + 40;
        struct image  image = make_noise(cases[k][0], cases[k][1], k);
        float        *all = resample(&image, w, h, -20, -20, w + 40, h + 40);
        for (int trial = 0; trial < 25; trial++) {
            const int32_t x = (int32_t)random_between(&seed, -20, w + 10);
            const int32_t y = (int32_t)random_between(&seed, -20, h + 10);
            const int32_t rw = (int32_t)random_between(&seed, 1, w + 20 - x);
            const int32_t rh = (int32_t)random_between(&seed, 1, min_i64(h + 20 - y, 40));
            float        *rect = resample(&image, w, h, x, y, rw, rh);
            for (int32_t row = 0; row < rh; row++)
                assert_memory_equal(
                    rect + (size_t)row * (size_t)rw * 3,
                    all + ((size_t)(y + 20 + row) * (size_t)all_w + (size_t)(x + 20)) * 3,
                    (size_t)rw * 3 * sizeof *rect);
            free(rect);
        }
        free(all);
        image_close(&image);
    }
}

static void test_outside_is_a_mirror(void **state)
{
    const int32_t w = 120, h = 75, all_w = w + 30;
    struct image  image = make_noise(16, 10, 3);
    float        *rgb = resample(&image, w, h, -15, -15, w + 30, h + 30);

    (void)state;
    for (int32_t y = -15; y < h + 15; y++)
        for (int32_t x = -15; x < w + 15; x++) {
            const int32_t inside = (reflect(y, h) + 15) * all_w + reflect(x, w) + 15;
            assert_memory_equal(rgb + 3 * ((y + 15) * all_w + x + 15), rgb + 3 * inside,
                                3 * sizeof *rgb);
        }
    free(rgb);
    image_close(&image);
}

static void test_ramp_stays_linear(void **state)
{
    const int32_t w = 40, scale = 15;
    const double  step = 1000 / 65535.0;
    struct image  image = make_image(w, 4);

    (void)state;
    for (int32_t i = 0; i < w * 4 * 3; i++)
        image.rgb[i] = (uint16_t)(20000 + 1000 * (i / 3 % w));
    float *rgb = resample(&image, w * scale, 40, 0, 0, w * scale, 40);
    /* Lanczos-3 bends a line by 2.0 % of one draft pixel's step at most; away from the edges. */
    for (int32_t x = 4 * scale; x < (w - 4) * scale; x++)
        check_near((double)rgb[3 * (20 * w * scale + x)],
                   20000 / 65535.0 + step * ((x + 0.5) / scale - 0.5), 0.0205 * step, "ramp", x);
    free(rgb);
    image_close(&image);
}

static double mean_of(const float *rgb, int32_t count)
{
    double sum = 0;
    for (int32_t i = 0; i < count; i++)
        sum += (double)rgb[i];
    return sum / count;
}

static void test_mean_is_kept(void **state)
{
    /* Values far from 0 and 1, so that no overshoot is clamped. */
    struct image image = make_noise(48, 36, 9);
    double       mean = 0;

    (void)state;
    for (int i = 0; i < 48 * 36 * 3; i++) {
        image.rgb[i] = (uint16_t)(25000 + image.rgb[i] / 5);
        mean += image.rgb[i] / 65535.0 / (48 * 36 * 3);
    }
    float *large = resample(&image, 48 * 8, 36 * 8, 0, 0, 48 * 8, 36 * 8);
    float *small = resample(&image, 24, 18, 0, 0, 24, 18);
    check_near(mean_of(large, 48 * 8 * 36 * 8 * 3), mean, 1e-4, "mean, enlarged", 0);
    check_near(mean_of(small, 24 * 18 * 3), mean, 1e-3, "mean, shrunk", 0);
    free(large);
    free(small);
    image_close(&image);
}

/* A checkerboard of single pixels shrunk to a quarter must average out, not alias. */
static void test_shrinking_averages(void **state)
{
    struct image image = make_image(256, 256);

    (void)state;
    for (int32_t i = 0; i < 256 * 256 * 3; i++)
        image.rgb[i] = (i / 3 % 256 + i / 3 / 256) % 2 == 0 ? 65535 : 0;
    float *rgb = resample(&image, 60, 60, 0, 0, 60, 60);
    for (int32_t i = 0; i < 60 * 60 * 3; i++) {
        const int32_t x = i / 3 % 60, y = i / 3 / 60;
        if (x < 3 || y < 3 || x > 56 || y > 56) continue; /* the mirror pairs equal pixels there */
        check_near((double)rgb[i], 0.5, 0.001, "average", i);
    }
    free(rgb);
    image_close(&image);
}

static void test_values_are_clamped(void **state)
{
    struct image image = make_image(8, 8);
    float        least = 1, most = 0;

    (void)state;
    for (int32_t i = 0; i < 8 * 8 * 3; i++)
        image.rgb[i] = i / 3 % 8 < 4 ? 0 : 65535;
    float *rgb = resample(&image, 80, 80, 0, 0, 80, 80);
    for (int32_t i = 0; i < 80 * 80 * 3; i++) {
        least = rgb[i] < least ? rgb[i] : least;
        most = rgb[i] > most ? rgb[i] : most;
    }
    assert_true(least == 0.0f && most == 1.0f);
    free(rgb);
    image_close(&image);
}

static void test_far_corner_of_the_largest_canvas(void **state)
{
    struct image  image = make_noise(512, 256, 4);
    const int32_t side = 1 << 20;
    float        *rgb = resample(&image, side, side, side - 4, side - 4, 8, 8);

    (void)state;
    for (int c = 0; c < 3; c++) {
        const double corner = image.rgb[(256 * 512 - 1) * 3 + c] / 65535.0;
        check_near((double)rgb[3 * (4 * 8 + 4) + c], (double)rgb[3 * (3 * 8 + 3) + c], 0, "mirror",
                   c);
        if (corner > 0.2 && corner < 0.8)
            check_near((double)rgb[3 * (3 * 8 + 3) + c], corner, 0.5, "corner", c);
    }
    free(rgb);
    image_close(&image);
}

static void test_refused_sizes(void **state)
{
    struct image    image = make_image(600, 2);
    struct upscale *upscale = NULL;
    struct err      err;

    (void)state;
    ASSERT_REFUSED(ERR_USAGE, "600 x 2 px", upscale_open(&upscale, &image, 2, 2, &err));
    ASSERT_REFUSED(ERR_USAGE, "0 x 2 px", upscale_open(&upscale, &image, 0, 2, &err));
    ASSERT_OK((err = (struct err){0}, upscale_open(&upscale, &image, 3, 2, &err)));
    upscale_close(upscale);
    upscale_close(NULL);
    image_close(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_size_is_identity),
        cmocka_unit_test(test_constant_stays_constant),
        cmocka_unit_test(test_against_the_slow_way),
        cmocka_unit_test(test_rectangles_agree_to_the_bit),
        cmocka_unit_test(test_outside_is_a_mirror),
        cmocka_unit_test(test_ramp_stays_linear),
        cmocka_unit_test(test_mean_is_kept),
        cmocka_unit_test(test_shrinking_averages),
        cmocka_unit_test(test_values_are_clamped),
        cmocka_unit_test(test_far_corner_of_the_largest_canvas),
        cmocka_unit_test(test_refused_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
