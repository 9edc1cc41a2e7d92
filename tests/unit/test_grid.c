/*
 * test_grid.c - the promises of tiling.h about tiles, on thousands of random requests.
 *
 * Read next: grid.c.
 */
#include "tiling/tiling.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static uint64_t random_state;

/* A whole number in [least, most]; the sequence is the same in every run. */
static int32_t pick(int32_t least, int32_t most)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return least + (int32_t)((random_state >> 33) % (uint64_t)((int64_t)most - least + 1));
}

/* Small and huge sides equally often: the bit length is drawn first. */
static int32_t pick_side(void)
{
    int32_t bits = pick(6, 20);
    return pick(1 << bits, bits == 20 ? 1 << 20 : (2 << bits) - 1);
}

/* Few pixels of overlap, any overlap, and the most that is allowed. */
static int32_t pick_overlap(int32_t tile)
{
    switch (pick(0, 3)) {
    case 0: return 0;
    case 1: return tile - 16;
    case 2: return pick(0, 16);
    default: return pick(0, tile - 16);
    }
}

static struct grid_request pick_request(void)
{
    struct grid_request request = {.canvas_w_px = pick_side(), .canvas_h_px = pick_side()};

    request.tile_max_px = 16 * pick(4, pick(0, 1) ? 16 : 256);
    request.overlap_px = pick_overlap(request.tile_max_px);
    request.fit = pick(0, 1) ? GRID_EVEN : GRID_EXACT;
    return request;
}

/* What one axis of a grid says, so that both are held to the same promises. */
struct axis {
    int32_t  canvas, worked, tile;
    uint32_t count;
    int32_t (*origin)(const struct grid *grid, uint32_t index);
};

static int64_t down16(int64_t a)
{
    return a / 16 * 16;
}

/* The farthest pixel that `count` tiles of `tile` px can reach with whole-token strides. */
static int64_t reach(int64_t count, int64_t tile, int64_t overlap)
{
    return tile + (count - 1) * down16(tile - overlap);
}

static void check_size(const struct grid_request *request, struct axis axis)
{
    int64_t limit = request->tile_max_px;

    assert_true(axis.worked >= axis.canvas && axis.worked - axis.canvas < 16);
    assert_true(axis.worked % 16 == 0 && axis.tile % 16 == 0);
    assert_in_range(axis.tile, 64, limit);
    if (axis.worked <= limit) {
        assert_int_equal(axis.count, 1);
        assert_int_equal(axis.tile, axis.worked);
        return;
    }
    /* The least number: one tile fewer, as long as is allowed, would not reach the end. */
    assert_true(axis.count > 1);
    assert_true(reach(axis.count - 1, limit, request->overlap_px) < axis.worked);
    if (request->fit == GRID_EXACT) {
        assert_int_equal(axis.tile, limit);
    } else if (axis.tile > 64 && axis.tile - 16 > request->overlap_px) {
        assert_true(reach(axis.count, axis.tile - 16, request->overlap_px) < axis.worked);
    }
}

static void check_origins(const struct grid *grid, struct axis axis)
{
    bool    good = true;
    int64_t before = axis.origin(grid, 0), fullest = down16(axis.tile - grid->overlap_px);

    assert_int_equal(before, 0);
    assert_int_equal(axis.origin(grid, axis.count - 1), axis.worked - axis.tile);
    for (uint32_t i = 1; i < axis.count; i++) {
        int64_t origin = axis.origin(grid, i);
        good &= origin % 16 == 0 && origin > before;
        good &= axis.tile - (origin - before) >= grid->overlap_px;
        if (grid->fit == GRID_EXACT && i + 1 < axis.count) good &= origin - before == fullest;
        before = origin;
    }
    assert_true(good);
}

static void test_random_requests(void **state)
{
    (void)state;
    random_state = 1;
    for (int n = 0; n < 6000; n++) {
        struct grid_request request = pick_request();
        struct err          err = {0};
        struct grid         grid;

        assert_int_equal(grid_make(&grid, &request, &err), ERR_OK);
        assert_int_equal(grid.canvas_w_px, request.canvas_w_px);
        assert_int_equal(grid.canvas_h_px, request.canvas_h_px);
        assert_int_equal(grid.overlap_px, request.overlap_px);
        assert_int_equal(grid.fit, request.fit);
        assert_true(grid_count(&grid) == (uint64_t)grid.cols * grid.rows);
        struct axis x = {grid.canvas_w_px, grid.worked_w_px, grid.tile_w_px, grid.cols, grid_col_x};
        struct axis y = {grid.canvas_h_px, grid.worked_h_px, grid.tile_h_px, grid.rows, grid_row_y};
        check_size(&request, x);
        check_size(&request, y);
        check_origins(&grid, x);
        check_origins(&grid, y);
    }
}

static void test_rows_touching_agrees_with_looking_at_all(void **state)
{
    (void)state;
    random_state = 2;
    for (int n = 0; n < 3000; n++) {
        struct grid_request request = pick_request();
        struct err          err = {0};
        struct grid         grid;
        uint32_t            first = 0, count = 0, got_first, got;
        int32_t             y, h;

        request.canvas_h_px = pick(64, 4000);
        assert_int_equal(grid_make(&grid, &request, &err), ERR_OK);
        y = pick(-100, grid.worked_h_px + 100);
        h = pick(0, pick(0, 1) ? 20 : 3000);
        for (uint32_t row = 0; row < grid.rows; row++) {
            int32_t top = grid_row_y(&grid, row);
            if (h == 0 || top >= y + h || top + grid.tile_h_px <= y) continue;
            if (count++ == 0) first = row;
        }
        got = grid_rows_touching(&grid, y, h, &got_first);
        assert_int_equal(got, count);
        assert_int_equal(got_first, first);
    }
}

static struct grid made(int32_t w, int32_t h, int32_t tile, int32_t overlap, enum grid_fit fit)
{
    struct grid_request request = {w, h, tile, overlap, fit};
    struct err          err = {0};
    struct grid         grid;

    assert_int_equal(grid_make(&grid, &request, &err), ERR_OK);
    return grid;
}

static void test_8k_even(void **state)
{
    static const int32_t x[] = {0, 1888, 3776, 5664}, y[] = {0, 1392, 2784};
    struct grid          grid = made(7680, 4320, 2048, 128, GRID_EVEN);
    struct px_rect       last = grid_tile(&grid, 3, 2);

    (void)state;
    assert_int_equal(grid.cols, 4);
    assert_int_equal(grid.rows, 3);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(grid_col_x(&grid, i), x[i]);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(grid_row_y(&grid, i), y[i]);
    assert_int_equal(last.w, 2016);
    assert_int_equal(last.h, 1536);
    assert_int_equal(last.x + last.w, 7680);
    assert_int_equal(last.y + last.h, 4320);
}

static void test_8k_exact(void **state)
{
    static const int32_t x[] = {0, 1920, 3840, 5632}, y[] = {0, 1920, 2272};
    struct grid          grid = made(7680, 4320, 2048, 128, GRID_EXACT);

    (void)state;
    assert_int_equal(grid.cols, 4);
    assert_int_equal(grid.rows, 3);
    assert_int_equal(grid.tile_w_px, 2048);
    assert_int_equal(grid.tile_h_px, 2048);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(grid_col_x(&grid, i), x[i]);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(grid_row_y(&grid, i), y[i]);
}

static void test_one_tile_is_enough(void **state)
{
    struct grid grid = made(1001, 64, 1024, 512, GRID_EXACT);

    (void)state;
    assert_true(grid_count(&grid) == 1);
    assert_int_equal(grid.worked_w_px, 1008);
    assert_int_equal(grid.tile_w_px, 1008);
    assert_int_equal(grid.tile_h_px, 64);
}

static void test_tiles_stay_paintable(void **state)
{
    struct grid grid = made(80, 80, 64, 0, GRID_EVEN);

    (void)state;
    assert_int_equal(grid.cols, 2);
    assert_int_equal(grid.tile_w_px, 64);
}

static void test_largest_canvas(void **state)
{
    struct grid grid = made(1 << 20, 1 << 20, 64, 48, GRID_EXACT);

    (void)state;
    assert_int_equal(grid.cols, ((1 << 20) - 64) / 16 + 1);
    assert_true(grid_count(&grid) == (uint64_t)grid.cols * grid.cols);
    assert_int_equal(grid_col_x(&grid, grid.cols - 1), (1 << 20) - 64);
}

/* Each refusal names the value, keeps `out` as it was, and is a usage error. */
static void check_refused(struct grid_request request, const char *word)
{
    struct err  err = {0};
    struct grid grid, before;

    memset(&grid, 0x5a, sizeof grid);
    before = grid;
    assert_int_equal(grid_make(&grid, &request, &err), ERR_USAGE);
    assert_int_equal(err.code, ERR_USAGE);
    assert_non_null(strstr(err.text, word));
    assert_null(strchr(err.text, '\n'));
    assert_memory_equal(&grid, &before, sizeof grid);
}

static void test_refusals(void **state)
{
    (void)state;
    for (int fit = GRID_EVEN; fit <= GRID_EXACT; fit++) {
        enum grid_fit how = (enum grid_fit)fit;
        check_refused((struct grid_request){63, 4320, 2048, 128, how}, "63 x 4320");
        check_refused((struct grid_request){7680, 0, 2048, 128, how}, "7680 x 0");
        check_refused((struct grid_request){7680, -4320, 2048, 128, how}, "-4320");
        check_refused((struct grid_request){1048577, 64, 2048, 128, how}, "1048577");
        check_refused((struct grid_request){7680, 4320, 48, 0, how}, "48 px");
        check_refused((struct grid_request){7680, 4320, -2048, 0, how}, "-2048 px");
        check_refused((struct grid_request){7680, 4320, 2040, 128, how}, "try 2032");
        check_refused((struct grid_request){7680, 4320, 2048, -1, how}, "-1 px");
        check_refused((struct grid_request){7680, 4320, 2048, 2048, how}, "0..2032");
        check_refused((struct grid_request){7680, 4320, 2048, 2033, how}, "2033 px");
        check_refused((struct grid_request){64, 64, 2048, INT32_MAX, how}, "2147483647 px");
    }
}

static void test_rectangles(void **state)
{
    struct px_rect  a = {0, 0, 100, 50}, b = {90, -10, 100, 20}, corner = {90, 40, 10, 10};
    struct px_rect  far_out = {INT32_MAX - 5, INT32_MAX - 5, 100, 100};
    struct lat_rect cells = lat_rect_from_px((struct px_rect){16, 8, 64, 128});

    (void)state;
    assert_true(px_rect_contains(a, corner));
    assert_true(px_rect_contains(a, a));
    assert_false(px_rect_contains(a, b));
    assert_false(px_rect_contains(a, far_out));
    assert_int_equal(cells.x, 2);
    assert_int_equal(cells.y, 1);
    assert_int_equal(cells.w, 8);
    assert_int_equal(cells.h, 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_requests),
        cmocka_unit_test(test_rows_touching_agrees_with_looking_at_all),
        cmocka_unit_test(test_8k_even),
        cmocka_unit_test(test_8k_exact),
        cmocka_unit_test(test_one_tile_is_enough),
        cmocka_unit_test(test_tiles_stay_paintable),
        cmocka_unit_test(test_largest_canvas),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_rectangles),
    };
    return cmocka_run_group_tests_name("grid", tests, NULL, NULL);
}
