/*
 * test_feather.c - the windows of all tiles of an axis sum to one, and no third tile has a say.
 *
 * Read next: feather.c.
 */
#include "tiling/tiling.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t random_state;

static int32_t pick(int32_t least, int32_t most)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return least + (int32_t)((random_state >> 33) % (uint64_t)((int64_t)most - least + 1));
}

static struct grid made(int32_t side, int32_t tile, int32_t overlap, enum grid_fit fit)
{
    struct grid_request request = {side, side, tile, overlap, fit};
    struct err          err = {0};
    struct grid         grid;

    assert_int_equal(grid_make(&grid, &request, &err), ERR_OK);
    return grid;
}

static struct grid pick_grid(void)
{
    int32_t tile = 16 * pick(4, 24), overlap = pick(0, tile - 16);

    if (pick(0, 3) == 0) overlap = tile - 16;
    return made(pick(64, 1500), tile, overlap, pick(0, 1) ? GRID_EVEN : GRID_EXACT);
}

/* Per pixel of the axis: the sum of all weights, and how many tiles weigh anything. */
struct tally {
    uint32_t *sum, *tiles;
    int32_t   length;
};

static struct tally tally_open(int32_t length)
{
    struct tally tally = {calloc((size_t)length, sizeof(uint32_t)),
                          calloc((size_t)length, sizeof(uint32_t)), length};

    assert_non_null(tally.sum);
    assert_non_null(tally.tiles);
    return tally;
}

static void tally_close(struct tally tally)
{
    free(tally.sum);
    free(tally.tiles);
}

static bool tally_holds(const struct tally *tally)
{
    bool good = true;

    for (int32_t i = 0; i < tally->length; i++)
        good &= tally->sum[i] == FEATHER_TOTAL && tally->tiles[i] >= 1 && tally->tiles[i] <= 2;
    return good;
}

static void tally_add(struct tally *tally, const uint16_t *window, int32_t origin, int32_t tile)
{
    assert_true(origin >= 0 && origin + tile <= tally->length);
    for (int32_t i = 0; i < tile; i++) {
        tally->sum[origin + i] += window[i];
        tally->tiles[origin + i] += window[i] != 0;
    }
}

/* True when every pixel of the worked canvas, beyond the canvas too, has its whole weight. */
static bool windows_sum_to_one(const struct grid *grid, int32_t defect)
{
    struct tally tally = tally_open(grid->worked_w_px);
    uint16_t    *window = calloc((size_t)grid->tile_w_px, sizeof *window);
    bool         good;

    assert_non_null(window);
    for (uint32_t col = 0; col < grid->cols; col++) {
        feather_cols(window, grid, col);
        if (col == 0)
            window[grid->tile_w_px / 2] = (uint16_t)(window[grid->tile_w_px / 2] + defect);
        tally_add(&tally, window, grid_col_x(grid, col), grid->tile_w_px);
    }
    good = tally_holds(&tally);
    tally_close(tally);
    free(window);
    return good;
}

static void test_random_windows_sum_to_one(void **state)
{
    (void)state;
    random_state = 3;
    for (int n = 0; n < 2500; n++) {
        struct grid grid = pick_grid();
        assert_true(windows_sum_to_one(&grid, 0));
    }
}

static void test_a_window_off_by_one_is_noticed(void **state)
{
    struct grid grid = made(1000, 256, 64, GRID_EVEN);

    (void)state;
    assert_true(windows_sum_to_one(&grid, 0));
    assert_false(windows_sum_to_one(&grid, 1));
    assert_false(windows_sum_to_one(&grid, -1));
}

static void test_a_million_pixels(void **state)
{
    struct grid even = made(1 << 20, 2048, 129, GRID_EVEN);
    struct grid exact = made((1 << 20) - 7, 2048, 1024, GRID_EXACT);

    (void)state;
    assert_true(windows_sum_to_one(&even, 0));
    assert_true(windows_sum_to_one(&exact, 0));
}

static void test_rows_are_weighted_as_columns(void **state)
{
    (void)state;
    random_state = 4;
    for (int n = 0; n < 200; n++) {
        struct grid grid = pick_grid();
        uint32_t    index = (uint32_t)pick(0, (int32_t)grid.cols - 1);
        size_t      bytes = (size_t)grid.tile_w_px * sizeof(uint16_t);
        uint16_t   *cols = malloc(bytes), *rows = malloc(bytes);

        assert_true(cols != NULL && rows != NULL);
        feather_cols(cols, &grid, index);
        feather_rows(rows, &grid, index);
        assert_memory_equal(cols, rows, bytes);
        free(cols);
        free(rows);
    }
}

/* Where the window of a left tile first falls below one, and where it reaches nothing. */
static void fall(const uint16_t *window, int32_t tile, int32_t *begin_out, int32_t *end_out)
{
    int32_t at = tile;

    while (at > 0 && window[at - 1] == 0)
        at--;
    *end_out = at;
    while (at > 0 && window[at - 1] != FEATHER_TOTAL)
        at--;
    *begin_out = at;
}

static void test_the_ramp_is_smooth_centred_and_as_wide_as_asked(void **state)
{
    struct grid grid = made(7680, 2048, 128, GRID_EVEN);
    uint16_t    window[2048];
    int32_t     begin, end, real_begin = grid_col_x(&grid, 1);

    (void)state;
    feather_cols(window, &grid, 0);
    fall(window, grid.tile_w_px, &begin, &end);
    assert_int_equal(begin + end, real_begin + grid.tile_w_px);
    /* The first and last few weights of a smootherstep round to one and to nothing. */
    assert_in_range(end - begin, 120, 128);
    begin = (begin + end) / 2 - 64;
    for (int i = 0; i < 128; i++) {
        double t = (i + 0.5) / 128, smooth = t * t * t * (t * (6 * t - 15) + 10);
        double weight = FEATHER_TOTAL - window[begin + i];
        assert_true(weight - FEATHER_TOTAL * smooth < 0.501);
        assert_true(weight - FEATHER_TOTAL * smooth > -0.501);
        assert_int_equal(window[begin + i] + window[begin + 127 - i], FEATHER_TOTAL);
    }
}

static void test_windows_rise_once_and_fall_once(void **state)
{
    (void)state;
    random_state = 5;
    for (int n = 0; n < 1000; n++) {
        struct grid grid = pick_grid();
        uint32_t    col = (uint32_t)pick(0, (int32_t)grid.cols - 1);
        uint16_t   *window = calloc((size_t)grid.tile_w_px, sizeof *window);
        bool        falling = false, good = true;

        assert_non_null(window);
        feather_cols(window, &grid, col);
        for (int32_t i = 1; i < grid.tile_w_px; i++) {
            falling |= window[i] < window[i - 1];
            good &= !falling || window[i] <= window[i - 1];
        }
        assert_true(good);
        free(window);
    }
}

static void test_no_overlap_is_a_hard_cut(void **state)
{
    (void)state;
    for (int fit = GRID_EVEN; fit <= GRID_EXACT; fit++) {
        struct grid grid = made(1000, 96, 0, (enum grid_fit)fit);
        uint16_t    window[96];

        assert_true(windows_sum_to_one(&grid, 0));
        for (uint32_t col = 0; col < grid.cols; col++) {
            feather_cols(window, &grid, col);
            for (int32_t i = 0; i < grid.tile_w_px; i++)
                assert_true(window[i] == 0 || window[i] == FEATHER_TOTAL);
        }
    }
}

static void test_a_single_tile_counts_whole(void **state)
{
    struct grid grid = made(100, 128, 64, GRID_EVEN);
    uint16_t    window[112];

    (void)state;
    feather_rows(window, &grid, 0);
    for (int32_t i = 0; i < 112; i++)
        assert_int_equal(window[i], FEATHER_TOTAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_windows_sum_to_one),
        cmocka_unit_test(test_a_window_off_by_one_is_noticed),
        cmocka_unit_test(test_a_million_pixels),
        cmocka_unit_test(test_rows_are_weighted_as_columns),
        cmocka_unit_test(test_the_ramp_is_smooth_centred_and_as_wide_as_asked),
        cmocka_unit_test(test_windows_rise_once_and_fall_once),
        cmocka_unit_test(test_no_overlap_is_a_hard_cut),
        cmocka_unit_test(test_a_single_tile_counts_whole),
    };
    return cmocka_run_group_tests_name("feather", tests, NULL, NULL);
}
