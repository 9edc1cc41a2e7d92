/*
 * blend.c - tiles in any order into a band of rows, and finished rows out of it.
 *
 * Owns the sums of one band.  Must not know where tiles come from, who asked for them, or what file
 * the rows go to.  A band belongs to one thread.
 *
 * A sum is sample * column weight * row weight over all tiles, in whole numbers: 65535 * 2^24 at
 * most, 40 bits of 64.  Whole sums do not depend on order, so any schedule, retry or resume gives
 * the same bits, and since the weights at a pixel sum to exactly 2^24, samples on which all tiles
 * agree come back unchanged.
 *
 * 8 bits: one level is worth 257 of the 16-bit steps (65535 / 255).  Rounding a smooth sky to
 * levels would draw contours, so noise of triangular distribution, within one level to either side,
 * is added before rounding: on average a pixel then shows its true value, between levels too.  A
 * value that IS a level has nothing to hide, and gets no noise: black, white and whatever was an
 * 8-bit picture stay as they are.  The noise is a hash of the pixel's place on the canvas, so it
 * does not depend on bands, and a picture made twice is the same picture.
 *
 * Invariant: after blend_open nothing allocates.
 *
 * Read next: grid.c for who touches a band.
 */
#include "tiling/tiling.h"

#include <string.h>

enum {
    CHANNELS = 3,
    WEIGHT_BITS = 24,     /* FEATHER_TOTAL squared */
    STEPS_PER_LEVEL = 257 /* 65535 / 255 */
};

#define WEIGHT_ONE ((uint64_t)1 << WEIGHT_BITS)
#define LEVEL      (STEPS_PER_LEVEL * WEIGHT_ONE) /* one 8-bit level, as a sum */
#define NO_TILE    UINT32_MAX

_Static_assert(1 << WEIGHT_BITS == FEATHER_TOTAL * FEATHER_TOTAL, "weights of two axes");

/* A tile's weights along one axis, kept until another tile is asked for: rows of one tile arrive
 * together, and often one by one. */
struct window {
    uint16_t *weights;     /* [tile side] */
    uint32_t  index;       /* column or row of tiles that they belong to */
    int32_t   first, last; /* all weights outside [first, last) are 0 */
};

struct blend_band {
    struct grid   grid;
    uint64_t     *sums; /* [rows_max, canvas_w_px, CHANNELS] */
    int32_t       rows_max, top_px, rows;
    struct window cols, lines;
};

static uint64_t row_samples(const struct grid *grid)
{
    return (uint64_t)grid->canvas_w_px * CHANNELS;
}

/* ------------------------------------------------------------------------------ open, close */

uint64_t blend_bytes(const struct grid *grid, int32_t rows_max)
{
    must(rows_max > 0);
    return sizeof(struct blend_band) + (uint64_t)rows_max * row_samples(grid) * sizeof(uint64_t) +
           ((uint64_t)grid->tile_w_px + (uint64_t)grid->tile_h_px) * sizeof(uint16_t);
}

static int open_window(struct window *window, int32_t side_px, struct err *err)
{
    void *weights = NULL;
    int   rc = ERR_OK;

    TRY(os_alloc(&weights, (uint64_t)side_px, sizeof *window->weights, "a feather window", err));
    *window = (struct window){.weights = weights, .index = NO_TILE};
out:
    return rc;
}

int blend_open(struct blend_band **out, const struct grid *grid, int32_t rows_max, struct err *err)
{
    struct blend_band *band = NULL;
    void              *memory = NULL;
    int                rc = ERR_OK;

    must(rows_max > 0);
    TRY(os_alloc(&memory, 1, sizeof *band, "the blend band", err));
    band = memory;
    *band = (struct blend_band){.grid = *grid, .rows_max = rows_max};
    TRY(os_alloc(&memory, (uint64_t)rows_max, row_samples(grid) * sizeof *band->sums,
                 "the rows of the blend band", err));
    band->sums = memory;
    TRY(open_window(&band->cols, grid->tile_w_px, err));
    TRY(open_window(&band->lines, grid->tile_h_px, err));
    *out = band;
    band = NULL;
out:
    blend_close(band);
    return rc;
}

void blend_close(struct blend_band *band)
{
    if (band == NULL) return;
    os_free(band->cols.weights);
    os_free(band->lines.weights);
    os_free(band->sums);
    os_free(band);
}

/* ---------------------------------------------------------------------------------- adding */

void blend_begin(struct blend_band *band, int32_t top_px, int32_t rows)
{
    must(top_px >= 0 && rows > 0 && rows <= band->rows_max);
    must((int64_t)top_px + rows <= band->grid.canvas_h_px);
    band->top_px = top_px;
    band->rows = rows;
    memset(band->sums, 0, (size_t)rows * row_samples(&band->grid) * sizeof *band->sums);
}

static void trim(struct window *window, uint32_t index, int32_t side_px)
{
    window->index = index;
    window->first = 0;
    window->last = side_px;
    while (window->first < side_px && window->weights[window->first] == 0)
        window->first++;
    while (window->last > window->first && window->weights[window->last - 1] == 0)
        window->last--;
}

static void use_tile(struct blend_band *band, uint32_t col, uint32_t row)
{
    if (band->cols.index != col) {
        feather_cols(band->cols.weights, &band->grid, col);
        trim(&band->cols, col, band->grid.tile_w_px);
    }
    if (band->lines.index != row) {
        feather_rows(band->lines.weights, &band->grid, row);
        trim(&band->lines, row, band->grid.tile_h_px);
    }
}

static void add_row(uint64_t *restrict sums, const uint16_t *restrict samples,
                    const uint16_t *restrict weights, int64_t pixels, uint32_t row_weight)
{
    for (int64_t x = 0; x < pixels; x++) {
        uint64_t weight = weights[x] * row_weight;
        sums[CHANNELS * x + 0] += weight * samples[CHANNELS * x + 0];
        sums[CHANNELS * x + 1] += weight * samples[CHANNELS * x + 1];
        sums[CHANNELS * x + 2] += weight * samples[CHANNELS * x + 2];
    }
}

void blend_add(struct blend_band *band, uint32_t col, uint32_t row, const uint16_t *samples,
               int32_t first, int32_t count)
{
    const struct grid *grid = &band->grid;
    int32_t            left = grid_col_x(grid, col);
    int64_t            top = grid_row_y(grid, row);
    int64_t            begin, end, pixels;

    must(first >= 0 && count >= 0 && first <= grid->tile_h_px - count);
    use_tile(band, col, row);
    begin = max_i64(max_i64(first, band->lines.first), band->top_px - top);
    end = min_i64(min_i64((int64_t)first + count, band->lines.last),
                  (int64_t)band->top_px + band->rows - top);
    /* What a tile holds beyond the canvas is dropped here. */
    pixels = min_i64(band->cols.last, grid->canvas_w_px - left) - band->cols.first;
    for (int64_t y = begin; y < end; y++)
        add_row(band->sums + (size_t)(top + y - band->top_px) * row_samples(grid) +
                    (size_t)(left + band->cols.first) * CHANNELS,
                samples + (size_t)((y - first) * grid->tile_w_px + band->cols.first) * CHANNELS,
                band->cols.weights + band->cols.first, pixels, band->lines.weights[y]);
}

/* --------------------------------------------------------------------------------- reading */

void blend_read_u16(const struct blend_band *band, uint16_t *x_out)
{
    uint64_t count = (uint64_t)band->rows * row_samples(&band->grid);

    for (uint64_t i = 0; i < count; i++)
        x_out[i] = (uint16_t)((band->sums[i] + WEIGHT_ONE / 2) >> WEIGHT_BITS);
}

/* 64 well mixed bits of a key: two rounds of xor-shift and an odd multiplier.  A key is used once,
 * and neighbours differ in few bits, so every input bit must reach every output bit. */
static uint64_t mix(uint64_t key)
{
    key ^= key >> 33;
    key *= 0xff51afd7ed558ccdu; /* the multipliers of MurmurHash3's finaliser */
    key ^= key >> 33;
    key *= 0xc4ceb9fe1a85ec53u;
    return key ^ key >> 33;
}

/* Both kinds of noise have the mean 0, so the level that comes out is `sum` on average.  Triangular
 * noise, the sum of two even draws, is as strong at every value.  Within half a level of black or
 * white it would reach beyond them and be cut off on one side only; there one draw, within half a
 * level to either side, has to do. */
static int64_t dither(uint64_t sum, uint64_t bits)
{
    int64_t draw = (int64_t)(bits & 0xffff), other = (int64_t)(bits >> 16 & 0xffff);

    if (sum % LEVEL == 0) return 0;
    if (sum < LEVEL / 2 || sum > 255 * LEVEL - LEVEL / 2)
        return (2 * draw - 0xffff) * (int64_t)(LEVEL >> 17);
    return (draw + other - 0xffff) * (int64_t)(LEVEL >> 16);
}

static uint8_t level_of(uint64_t sum, uint64_t bits)
{
    return (uint8_t)(((int64_t)(sum + LEVEL / 2) + dither(sum, bits)) / (int64_t)LEVEL);
}

void blend_read_u8(const struct blend_band *band, uint8_t *x_out)
{
    const uint64_t *sums = band->sums;

    for (int32_t row = 0; row < band->rows; row++) {
        uint64_t y = (uint64_t)(band->top_px + row);
        for (uint64_t x = 0; x < (uint64_t)band->grid.canvas_w_px; x++)
            for (uint64_t channel = 0; channel < CHANNELS; channel++)
                *x_out++ = level_of(*sums++, mix(y << 32 | x << 2 | channel));
    }
}
