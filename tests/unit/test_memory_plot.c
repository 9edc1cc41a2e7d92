/* test_memory_plot.c - the plot's pixels: curves where their numbers are, and words beside them. */
#include "../test.h"

#include "image/image.h"

/* The plot's inside, as memory_plot.c lays it out. */
enum { LEFT = 110, RIGHT = 1170, TOP = 60, BOTTOM = 540 };

static char folder[128], path[160];

static int begin(void **state)
{
    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/memory.png", folder);
    return 0;
}

static int end(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

static bool is(const struct image *image, int32_t x, int32_t y, uint32_t colour)
{
    const uint16_t *at = image->rgb + 3 * ((size_t)y * (size_t)image->w + (size_t)x);
    return (uint32_t)(at[0] >> 8) << 16 == (colour & 0xFF0000) &&
           (uint32_t)(at[1] & 0xFF00) == (colour & 0xFF00) && (at[2] >> 8) == (colour & 0xFF);
}

static struct image drawn(const struct memory_plot_request *request)
{
    struct err   err = {0};
    struct image image;

    ASSERT_OK(memory_plot(request, &err));
    ASSERT_OK(image_read(&image, path, &err));
    assert_int_equal(image.w, MEMORY_PLOT_W);
    assert_int_equal(image.h, MEMORY_PLOT_H);
    return image;
}

static int count_of(const struct image *image, int32_t x0, int32_t y0, int32_t x1, int32_t y1,
                    uint32_t colour)
{
    int count = 0;

    for (int32_t y = y0; y < y1; y++)
        for (int32_t x = x0; x < x1; x++)
            count += is(image, x, y, colour);
    return count;
}

enum { LIVE = 0x0072B2, PLACED = 0xE69F00, MAPPED = 0x009E73, INK = 0x282828, WHITE = 0xFFFFFF };

/* Half of the time at a quarter of the height, half at the top: mapped all the time at the top. */
static void curves_are_where_their_numbers_are(void **state)
{
    const double               seconds[] = {5, 7, 9};
    const uint64_t             live[] = {1000000000, 4000000000, 4000000000};
    const uint64_t             mapped[] = {4200000000, 4200000000, 4200000000};
    struct memory_plot_request request = {
        .path = path,
        .title = "tile 3",
        .count = 3,
        .seconds = seconds,
        .bytes = {[MEMORY_PLOT_LIVE] = live, [MEMORY_PLOT_MAPPED] = mapped}};
    struct image image = drawn(&request);
    double       whole = 1.05 * 4.2e9;
    int32_t      middle = (LEFT + RIGHT) / 2, quarter = LEFT + (middle - LEFT) / 2;
    int32_t      low = BOTTOM - (int32_t)(480 * 1e9 / whole + 0.5);
    int32_t      high = BOTTOM - (int32_t)(480 * 4e9 / whole + 0.5);
    int32_t      top = BOTTOM - (int32_t)(480 * 4.2e9 / whole + 0.5);

    (void)state;
    assert_true(is(&image, quarter, low, LIVE));
    assert_false(is(&image, quarter, high, LIVE));
    assert_true(is(&image, middle, (low + high) / 2, LIVE)); /* the step itself */
    assert_true(is(&image, (middle + RIGHT) / 2, high, LIVE));
    assert_false(is(&image, (middle + RIGHT) / 2, low, LIVE));
    for (int32_t x = LEFT + 2; x < RIGHT; x++)
        assert_true(is(&image, x, top, MAPPED));
    assert_int_equal(count_of(&image, 0, 0, MEMORY_PLOT_W, MEMORY_PLOT_H, PLACED), 0);
    image_close(&image);
}

static void axes_have_words(void **state)
{
    const double               seconds[] = {0, 10};
    const uint64_t             live[] = {1000000000, 3000000000};
    struct memory_plot_request request = {.path = path,
                                          .title = "memory",
                                          .count = 2,
                                          .seconds = seconds,
                                          .bytes = {[MEMORY_PLOT_LIVE] = live}};
    struct image               image = drawn(&request), other;

    (void)state;
    assert_true(is(&image, LEFT, (TOP + BOTTOM) / 2, INK));
    assert_true(is(&image, (LEFT + RIGHT) / 2, BOTTOM, INK));
    assert_true(count_of(&image, 0, TOP, LEFT - 4, BOTTOM + 8, INK) > 200);
    assert_true(count_of(&image, 0, BOTTOM + 8, MEMORY_PLOT_W, MEMORY_PLOT_H, INK) > 200);
    assert_true(count_of(&image, LEFT, 10, 500, 50, INK) > 100);
    assert_true(count_of(&image, RIGHT - 100, 10, RIGHT, 50, LIVE) >= 100); /* its name's mark */
    assert_true(is(&image, 2, 2, WHITE));

    /* Other words, other dots. */
    request.title = "nemory";
    other = drawn(&request);
    assert_true(memcmp(image.rgb, other.rgb, (size_t)6 * MEMORY_PLOT_W * MEMORY_PLOT_H) != 0);
    image_close(&image);
    image_close(&other);
}

/* One moment, no time, no bytes: still a picture. */
static void the_least_is_drawn(void **state)
{
    const double               seconds[] = {3};
    const uint64_t             none[] = {0};
    struct memory_plot_request request = {.path = path,
                                          .title = "",
                                          .count = 1,
                                          .seconds = seconds,
                                          .bytes = {[MEMORY_PLOT_LIVE] = none}};
    struct image               image = drawn(&request);
    struct err                 err = {0};

    (void)state;
    image_close(&image);
    request.path = "/nowhere/at/all.png";
    ASSERT_REFUSED(ERR_IO, "/nowhere/at/all.png", memory_plot(&request, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(curves_are_where_their_numbers_are),
                                       cmocka_unit_test(axes_have_words),
                                       cmocka_unit_test(the_least_is_drawn)};
    return cmocka_run_group_tests_name("memory_plot", tests, begin, end);
}
