/*
 * tiling.h - what is drawn where: rectangles, grids of tiles, feather windows, the blend.
 *
 * Rank 1, pure: no files, clocks, threads, devices or models.  Same numbers in, same numbers out.
 *
 * Units: px counts picture pixels, lat counts latent cells (8 px), and a token is 16 px.  The two
 * rectangle types differ on purpose, so that the compiler refuses to mix them.
 */
#ifndef MURAL_TILING_H
#define MURAL_TILING_H

#include "base/base.h"

enum {
    TILING_PX_PER_LAT = 8,
    TILING_PX_PER_TOKEN = 16,  /* origins and sides of tiles are multiples of this */
    TILING_SIDE_MIN_PX = 64,
    TILING_SIDE_MAX_PX = 1 << 20
};

struct px_rect {
    int32_t x, y, w, h;
};
struct lat_rect {
    int32_t x, y, w, h;
};

bool            px_rect_contains(struct px_rect outer, struct px_rect inner);
struct lat_rect lat_rect_from_px(struct px_rect px); /* px must lie on whole latent cells */

/* ------------------------------------------------------------------------------------ grid */

enum grid_fit {
    GRID_EVEN, /* equal tiles of 64 px to the limit, as small as the overlap allows      */
    GRID_EXACT /* tiles of exactly the limit; stride = limit - overlap; last ones flush  */
};

struct grid_request {
    int32_t       canvas_w_px, canvas_h_px; /* TILING_SIDE_MIN_PX..TILING_SIDE_MAX_PX, any number */
    int32_t       tile_max_px;              /* multiple of 16, at least 64                        */
    int32_t       overlap_px;               /* least overlap of neighbours, >= 0, below the tile  */
    enum grid_fit fit;
};

/* All tiles of a grid have one size.  Origins and sizes are multiples of 16 px, and the grid covers
 * the worked canvas: the canvas with each side rounded up to 16 px.  What a tile holds beyond the
 * canvas itself (at most 15 px, only at the right and bottom edge) is painted and then dropped. */
struct grid {
    int32_t       canvas_w_px, canvas_h_px; /* as asked for            */
    int32_t       worked_w_px, worked_h_px; /* rounded up to 16 px     */
    int32_t       tile_w_px, tile_h_px;
    int32_t       overlap_px;               /* as asked for            */
    uint32_t      cols, rows;
    enum grid_fit fit;
};

int grid_make(struct grid *out, const struct grid_request *request, struct err *err);

static inline uint64_t grid_count(const struct grid *grid)
{
    return (uint64_t)grid->cols * grid->rows;
}
int32_t        grid_col_x(const struct grid *grid, uint32_t col); /* left edge of its tiles */
int32_t        grid_row_y(const struct grid *grid, uint32_t row);
struct px_rect grid_tile(const struct grid *grid, uint32_t col, uint32_t row);
/* Rows of tiles that touch picture rows [y, y + h): first in *first_out, returns how many. */
uint32_t grid_rows_touching(const struct grid *grid, int32_t y, int32_t h, uint32_t *first_out);

/* --------------------------------------------------------------------------------- feather */

enum { FEATHER_TOTAL = 4096 }; /* what the windows of one axis sum to at every pixel */

/* Fill window[0..length) with the weight of tile `index` along one axis at its own pixels.
 * Whole numbers in 0..FEATHER_TOTAL.  At every pixel of the axis the weights of all tiles that
 * cover it sum to exactly FEATHER_TOTAL, and at most two of them are not zero.  The ramp
 * (smootherstep) is as wide as the requested overlap, or narrower where it would meet the next one,
 * and stands in the middle of the real overlap, so that what lies close to a tile's edge does not
 * count. */
void feather_cols(uint16_t *window_out, const struct grid *grid, uint32_t col);
void feather_rows(uint16_t *window_out, const struct grid *grid, uint32_t row);

/* ----------------------------------------------------------------------------------- blend */

/* A band: some rows of the canvas, full width, as exact integer sums of sample * weight.  Integer
 * sums do not depend on order, so any schedule of tiles gives the same bits. */
struct blend_band;

/* `rows_max`: the most rows that a band will ever hold. */
int  blend_open(struct blend_band **out, const struct grid *grid, int32_t rows_max,
                struct err *err);
void blend_close(struct blend_band *band);

/* Empty the band and move it to canvas rows [top_px, top_px + rows). */
void blend_begin(struct blend_band *band, int32_t top_px, int32_t rows);

/* Add rows of tile (col, row).  `samples` holds rows [first, first + count) of that tile, counted
 * from the tile's own top: [count, tile_w_px, 3].  Rows outside the band are ignored. */
void blend_add(struct blend_band *band, uint32_t col, uint32_t row, const uint16_t *samples,
               int32_t first, int32_t count);

/* Read finished rows, once every tile that touches the band was added.
 * x_out is [rows, canvas_w_px, 3].  16-bit: rounded to nearest.  8-bit: from the full precision of
 * the sums with a fixed triangular dither keyed by the pixel's place on the canvas; a value that is
 * an 8-bit level exactly (a multiple of 257) comes out as that level everywhere. */
void blend_read_u16(const struct blend_band *band, uint16_t *x_out);
void blend_read_u8(const struct blend_band *band, uint8_t *x_out);

/* Bytes that blend_open will take. */
uint64_t blend_bytes(const struct grid *grid, int32_t rows_max);

#endif
