/*
 * feather.c - how much each tile counts where tiles overlap.
 *
 * Owns the weights along one axis; a pixel's weight is the product of its column's and its row's.
 * Must not know of samples or bands.
 *
 *      tile i      ________________
 *                                  \            weight FEATHER_TOTAL .. 0
 *      tile i + 1                ___\________
 *                                |  |  |    |
 *                     its origin +  |  |    + where tile i ends
 *                                   +--+ the ramp, centred in the real overlap
 *
 * Between each two neighbours stands one seam: a ramp of whole numbers that rises from 0 to
 * FEATHER_TOTAL.  The right tile takes the ramp, the left one its complement, so the pair sums to
 * FEATHER_TOTAL whatever rounding did to the ramp.
 *
 * Invariants: ramps of one axis never share a pixel, hence at most two tiles count at any pixel,
 * also where three or more cover it; a ramp lies inside the real overlap of its two tiles, hence a
 * tile counts only at pixels that it has.  The second follows from the first rule of a grid: real
 * overlaps are at least the requested one, and ramps at most.
 *
 * Read next: blend.c, which applies the weights.
 */
#include "tiling/tiling.h"

/* 128 bits hold the fifth power of twice any ramp length exactly. */
__extension__ typedef unsigned __int128 wide_uint;

/* Grids place columns and rows by one rule, so one text serves both. */
struct axis {
    const struct grid *grid;
    int64_t            tile_px, count;
    int32_t (*origin)(const struct grid *grid, uint32_t index);
};

struct ramp {
    int64_t first, width; /* picture pixels along the axis; weights change only inside */
};

/* Where the real overlap of tiles `seam` and `seam + 1` has its middle.  Origins and lengths are
 * multiples of 16, so the half is whole. */
static int64_t centre(struct axis axis, int64_t seam)
{
    int64_t left = axis.origin(axis.grid, (uint32_t)seam);
    int64_t right = axis.origin(axis.grid, (uint32_t)seam + 1);

    return (left + axis.tile_px + right) / 2;
}

/* Both ramps beside a gap between centres are at most as wide as the gap, so they meet in its
 * middle at the latest. */
static struct ramp seam_ramp(struct axis axis, int64_t seam)
{
    int64_t middle = centre(axis, seam);
    int64_t width = axis.grid->overlap_px;

    if (seam > 0) width = min_i64(width, middle - centre(axis, seam - 1));
    if (seam + 2 < axis.count) width = min_i64(width, centre(axis, seam + 1) - middle);
    return (struct ramp){middle - width / 2, width};
}

/* Weight number `i` of a rising ramp: smootherstep 6 t^5 - 15 t^4 + 10 t^3 at t = (i + 1/2) /
 * width, in whole numbers, to the nearest.  With t = m / d the division by d^5 comes last and loses
 * nothing, so every machine gets the same weights. */
static uint16_t rise(int64_t i, int64_t width)
{
    wide_uint m = (wide_uint)(2 * i + 1), d = (wide_uint)(2 * width);
    wide_uint step = m * m * m * (10 * d * d + 6 * m * m - 15 * m * d);
    wide_uint one = d * d * d * d * d;

    return (uint16_t)((2 * FEATHER_TOTAL * step + one) / (2 * one));
}

static void fill(uint16_t *window_out, struct axis axis, uint32_t index)
{
    int64_t origin = axis.origin(axis.grid, index);
    int64_t at = 0;

    must(index < axis.count);
    if (index > 0) {
        struct ramp left = seam_ramp(axis, (int64_t)index - 1);
        must(left.first >= origin);
        for (; at < left.first - origin; at++)
            window_out[at] = 0;
        for (int64_t i = 0; i < left.width; i++)
            window_out[at++] = rise(i, left.width);
    }
    if (index + 1 < axis.count) {
        struct ramp right = seam_ramp(axis, index);
        must(right.first >= origin + at);
        must(right.first + right.width <= origin + axis.tile_px);
        for (; at < right.first - origin; at++)
            window_out[at] = FEATHER_TOTAL;
        for (int64_t i = 0; i < right.width; i++)
            window_out[at++] = (uint16_t)(FEATHER_TOTAL - rise(i, right.width));
        for (; at < axis.tile_px; at++)
            window_out[at] = 0;
    }
    for (; at < axis.tile_px; at++)
        window_out[at] = FEATHER_TOTAL;
}

void feather_cols(uint16_t *window_out, const struct grid *grid, uint32_t col)
{
    fill(window_out, (struct axis){grid, grid->tile_w_px, grid->cols, grid_col_x}, col);
}

void feather_rows(uint16_t *window_out, const struct grid *grid, uint32_t row)
{
    fill(window_out, (struct axis){grid, grid->tile_h_px, grid->rows, grid_row_y}, row);
}
