/*
 * test_blend.c - any order and any split give the same bits, and what agrees stays as it is.
 *
 * Canvases here are a few tiles of 64 px and bands are a few rows, so that every edge is common.
 *
 * Read next: blend.c.
 */
#include "tiling/tiling.h"

#include "../scarce.h"

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

/* A grid, what its tiles hold, and the two pictures that blending made of them. */
struct story {
    struct grid grid;
    uint16_t   *tiles; /* [rows, cols, tile_h_px, tile_w_px, 3] */
    uint16_t   *deep;  /* [canvas_h_px, canvas_w_px, 3] */
    uint8_t    *flat;  /* the same in 8 bits */
};

static size_t tile_samples(const struct grid *grid)
{
    return (size_t)grid->tile_w_px * (size_t)grid->tile_h_px * 3;
}

static size_t canvas_samples(const struct grid *grid)
{
    return (size_t)grid->canvas_w_px * (size_t)grid->canvas_h_px * 3;
}

static struct story story_open(struct grid_request request)
{
    struct story story = {0};
    struct err   err = {0};

    assert_int_equal(grid_make(&story.grid, &request, &err), ERR_OK);
    story.tiles = calloc(grid_count(&story.grid) * tile_samples(&story.grid), sizeof *story.tiles);
    story.deep = calloc(canvas_samples(&story.grid), sizeof *story.deep);
    story.flat = calloc(canvas_samples(&story.grid), sizeof *story.flat);
    assert_true(story.tiles != NULL && story.deep != NULL && story.flat != NULL);
    return story;
}

static void story_close(struct story *story)
{
    free(story->tiles);
    free(story->deep);
    free(story->flat);
}

static uint16_t *tile_at(const struct story *story, uint32_t col, uint32_t row)
{
    return story->tiles + ((size_t)row * story->grid.cols + col) * tile_samples(&story->grid);
}

static struct story pick_story(void)
{
    int32_t             tile = 16 * pick(4, 8);
    struct grid_request request = {pick(64, 300), pick(64, 300), tile, pick(0, tile - 16),
                                   pick(0, 1) ? GRID_EVEN : GRID_EXACT};
    struct story        story = story_open(request);

    for (size_t i = 0; i < grid_count(&story.grid) * tile_samples(&story.grid); i++)
        story.tiles[i] = (uint16_t)pick(0, 65535);
    return story;
}

/* Replace all tiles by cut-outs of one picture; what lies beyond the canvas stays as it was. */
static void cut_out(struct story *story, const uint16_t *picture)
{
    const struct grid *grid = &story->grid;

    for (uint32_t i = 0; i < grid_count(grid); i++) {
        struct px_rect rect = grid_tile(grid, i % grid->cols, i / grid->cols);
        for (int32_t y = 0; y < rect.h && rect.y + y < grid->canvas_h_px; y++)
            memcpy(tile_at(story, i % grid->cols, i / grid->cols) + (size_t)(y * rect.w) * 3,
                   picture + (size_t)((rect.y + y) * grid->canvas_w_px + rect.x) * 3,
                   (size_t)min_i64(rect.w, grid->canvas_w_px - rect.x) * 3 * sizeof *picture);
    }
}

/* ---------------------------------------------------------------------------------- painting */

/* How to paint: bands of at most `band_rows`; tiles in a random order, each in random strips. */
struct manner {
    int32_t band_rows;
    bool    shuffled;
};

static void add_tile(struct blend_band *band, const struct story *story, uint32_t index, bool split)
{
    const struct grid *grid = &story->grid;
    uint32_t           col = index % grid->cols, row = index / grid->cols;
    int32_t            cut = split ? pick(0, grid->tile_h_px) : 0, rest = grid->tile_h_px - cut;
    const uint16_t    *samples = tile_at(story, col, row);

    blend_add(band, col, row, samples + (size_t)(cut * grid->tile_w_px) * 3, cut, rest);
    if (cut > 0) blend_add(band, col, row, samples, 0, cut);
}

static void paint_band(struct blend_band *band, const struct story *story, bool shuffled)
{
    uint32_t  count = (uint32_t)grid_count(&story->grid);
    uint32_t *order = calloc(count, sizeof *order);

    assert_non_null(order);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t other = shuffled ? (uint32_t)pick(0, (int32_t)i) : i;
        order[i] = order[other];
        order[other] = i;
    }
    for (uint32_t i = 0; i < count; i++)
        add_tile(band, story, order[i], shuffled);
    free(order);
}

static void paint(struct story *story, struct manner manner)
{
    struct blend_band *band = NULL;
    struct err         err = {0};
    size_t             row = (size_t)story->grid.canvas_w_px * 3;

    assert_int_equal(blend_open(&band, &story->grid, manner.band_rows, &err), ERR_OK);
    for (int32_t top = 0, rows; top < story->grid.canvas_h_px; top += rows) {
        rows = manner.shuffled ? pick(1, manner.band_rows) : manner.band_rows;
        rows = (int32_t)min_i64(rows, story->grid.canvas_h_px - top);
        blend_begin(band, top, rows);
        paint_band(band, story, manner.shuffled);
        blend_read_u16(band, story->deep + (size_t)top * row);
        blend_read_u8(band, story->flat + (size_t)top * row);
    }
    blend_close(band);
}

static void paint_plainly(struct story *story)
{
    paint(story, (struct manner){story->grid.canvas_h_px, false});
}

/* ------------------------------------------------------------------------------------- tests */

static void test_order_bands_and_strips_leave_no_trace(void **state)
{
    (void)state;
    random_state = 6;
    for (int n = 0; n < 40; n++) {
        struct story story = pick_story();
        size_t       count = canvas_samples(&story.grid);
        uint16_t    *deep = calloc(count, sizeof *deep);
        uint8_t     *flat = calloc(count, sizeof *flat);

        assert_true(deep != NULL && flat != NULL);
        paint_plainly(&story);
        memcpy(deep, story.deep, count * sizeof *deep);
        memcpy(flat, story.flat, count * sizeof *flat);
        memset(story.deep, 0, count * sizeof *deep);
        memset(story.flat, 0, count * sizeof *flat);
        paint(&story, (struct manner){pick(1, 80), true});
        assert_memory_equal(deep, story.deep, count * sizeof *deep);
        assert_memory_equal(flat, story.flat, count * sizeof *flat);
        free(deep);
        free(flat);
        story_close(&story);
    }
}

/* The weighted mean of all tiles at one sample, from the definition. */
static uint16_t mean_at(const struct story *story, uint16_t *window, int32_t x, int32_t y, int c)
{
    const struct grid *grid = &story->grid;
    uint64_t           sum = 0;

    for (uint32_t i = 0; i < grid_count(grid); i++) {
        uint32_t       col = i % grid->cols, row = i / grid->cols;
        struct px_rect rect = grid_tile(grid, col, row);
        uint64_t       weight;

        if (!px_rect_contains(rect, (struct px_rect){x, y, 1, 1})) continue;
        feather_cols(window, grid, col);
        weight = window[x - rect.x];
        feather_rows(window, grid, row);
        weight *= window[y - rect.y];
        sum += weight * tile_at(story, col, row)[((y - rect.y) * rect.w + x - rect.x) * 3 + c];
    }
    return (uint16_t)((sum + (1u << 23)) >> 24);
}

static void test_the_sum_is_the_weighted_mean(void **state)
{
    uint16_t window[128];

    (void)state;
    random_state = 7;
    for (int n = 0; n < 20; n++) {
        struct story story = pick_story();

        paint_plainly(&story);
        for (int i = 0; i < 50; i++) {
            int32_t x = pick(0, story.grid.canvas_w_px - 1);
            int32_t y = pick(0, story.grid.canvas_h_px - 1);
            int     c = pick(0, 2);

            assert_int_equal(story.deep[(y * story.grid.canvas_w_px + x) * 3 + c],
                             mean_at(&story, window, x, y, c));
        }
        story_close(&story);
    }
}

static void test_agreeing_tiles_come_out_unchanged(void **state)
{
    (void)state;
    random_state = 8;
    for (int n = 0; n < 30; n++) {
        struct story story = pick_story();
        size_t       count = canvas_samples(&story.grid);
        uint16_t    *picture = calloc(count, sizeof *picture);
        bool         good = true;

        assert_non_null(picture);
        for (size_t i = 0; i < count; i++)
            picture[i] = (uint16_t)pick(0, 65535);
        cut_out(&story, picture);
        paint_plainly(&story);
        assert_memory_equal(story.deep, picture, count * sizeof *picture);

        /* A picture of 8-bit levels also comes out of the 8-bit reader as it was. */
        for (size_t i = 0; i < count; i++)
            picture[i] = (uint16_t)(257 * pick(0, 255));
        cut_out(&story, picture);
        paint_plainly(&story);
        for (size_t i = 0; i < count; i++)
            good &= picture[i] == 257 * story.flat[i];
        assert_true(good);
        free(picture);
        story_close(&story);
    }
}

static void fill(struct story *story, uint16_t value)
{
    size_t count = grid_count(&story->grid) * tile_samples(&story->grid);

    for (size_t i = 0; i < count; i++)
        story->tiles[i] = value;
}

static void test_every_level_stays_constant(void **state)
{
    struct story story = story_open((struct grid_request){100, 70, 64, 30, GRID_EVEN});

    (void)state;
    for (int level = 0; level < 256; level++) {
        bool good = true;
        fill(&story, (uint16_t)(257 * level));
        paint_plainly(&story);
        for (size_t i = 0; i < canvas_samples(&story.grid); i++)
            good &= story.flat[i] == level && story.deep[i] == 257 * level;
        assert_true(good);
    }
    story_close(&story);
}

/* Between levels: the mean is the value, and no pixel is more than one and a half levels off. */
static void test_dither_keeps_the_mean(void **state)
{
    static const uint16_t values[] = {1, 60, 128, 129, 256, 300, 1000, 32768, 40001, 65300, 65534};
    struct story          story = story_open((struct grid_request){256, 128, 64, 16, GRID_EVEN});
    size_t                count = canvas_samples(&story.grid);

    (void)state;
    for (size_t v = 0; v < ARRAY_COUNT(values); v++) {
        double value = values[v] / 257.0, mean = 0;
        bool   good = true;

        fill(&story, values[v]);
        paint_plainly(&story);
        for (size_t i = 0; i < count; i++) {
            mean += story.flat[i] / (double)count;
            good &= story.flat[i] > value - 1.5 && story.flat[i] < value + 1.5;
        }
        assert_true(good);
        /* Noise of at most 1/2 level rms over 98,304 samples: 0.01 is six standard errors. */
        assert_true(mean - value < 0.01 && mean - value > -0.01);
    }
    story_close(&story);
}

static void test_dither_has_no_pattern(void **state)
{
    struct story story = story_open((struct grid_request){256, 256, 64, 0, GRID_EVEN});
    int32_t      width = story.grid.canvas_w_px * 3;
    /* The next channel, pixel, row, the same place two rows on. */
    const int32_t steps[] = {1, 3, width, width + 3, 2 * width};

    (void)state;
    fill(&story, 128 * 257 + 128); /* half way between two levels */
    paint_plainly(&story);
    for (size_t s = 0; s < ARRAY_COUNT(steps); s++) {
        int32_t count = (int32_t)canvas_samples(&story.grid) - steps[s];
        double  both = 0, one = 0, mean = 128 + 128 / 257.0;
        for (int32_t i = 0; i < count; i++) {
            both += (story.flat[i] - mean) * (story.flat[i + steps[s]] - mean);
            one += (story.flat[i] - mean) * (story.flat[i] - mean);
        }
        assert_true(both / one < 0.015 && both / one > -0.015);
    }
    story_close(&story);
}

static void test_short_memory_is_one_sentence(void **state)
{
    struct os_calls     kept = os;
    struct grid_request request = {300, 300, 64, 16, GRID_EVEN};
    struct grid         grid;
    struct err          err = {0};
    int                 rc = ERR_HOST_MEM, tries = 0;

    (void)state;
    assert_int_equal(grid_make(&grid, &request, &err), ERR_OK);
    assert_true(blend_bytes(&grid, 10) >= 10 * 300 * 3 * sizeof(uint64_t));
    os.calloc = scarce_calloc;
    for (; rc != ERR_OK && tries < 20; tries++) {
        struct blend_band *band = NULL;
        scarce_calls = tries;
        err = (struct err){0};
        rc = blend_open(&band, &grid, 10, &err);
        if (rc != ERR_OK) {
            assert_int_equal(rc, ERR_HOST_MEM);
            assert_null(band);
            assert_true(strlen(err.text) > 0);
        }
        blend_close(band);
    }
    os = kept;
    assert_int_equal(rc, ERR_OK);
    assert_true(tries > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_bands_and_strips_leave_no_trace),
        cmocka_unit_test(test_the_sum_is_the_weighted_mean),
        cmocka_unit_test(test_agreeing_tiles_come_out_unchanged),
        cmocka_unit_test(test_every_level_stays_constant),
        cmocka_unit_test(test_dither_keeps_the_mean),
        cmocka_unit_test(test_dither_has_no_pattern),
        cmocka_unit_test(test_short_memory_is_one_sentence),
    };
    return cmocka_run_group_tests_name("blend", tests, NULL, NULL);
}
