/*
 * grid.c - which tiles cover a canvas.
 *
 * Owns rectangles and the split of a canvas into columns and rows of tiles.  Must not know what is
 * painted into a tile, nor how neighbours are mixed.
 *
 * The two axes never see each other: each is a length, a tile length and a number of tiles, all in
 * tokens of 16 px.  Lengths are multiples of a token, so that the token lattices of all tiles lie
 * on one lattice of the canvas, and noise and latents of neighbours agree cell by cell.
 *
 * Invariants of a grid that was made, on each axis with more than one tile:
 *   the first tile begins at 0 and the last one ends at the worked length;
 *   origins rise strictly; neighbours share at least the overlap asked for;
 *   tiles are never longer than the limit and never shorter than TILING_SIDE_MIN_PX.
 *
 * Nothing but the struct is stored: origins are computed, so a grid of a billion tiles costs as
 * much as a grid of one.
 *
 * Read next: feather.c, which decides who counts where tiles overlap.
 */
#include "tiling/tiling.h"

/* ------------------------------------------------------------------------------ rectangles */

bool px_rect_contains(struct px_rect outer, struct px_rect inner)
{
    return inner.x >= outer.x && inner.y >= outer.y &&
           (int64_t)inner.x + inner.w <= (int64_t)outer.x + outer.w &&
           (int64_t)inner.y + inner.h <= (int64_t)outer.y + outer.h;
}

struct lat_rect lat_rect_from_px(struct px_rect px)
{
    must(px.x % TILING_PX_PER_LAT == 0 && px.y % TILING_PX_PER_LAT == 0);
    must(px.w % TILING_PX_PER_LAT == 0 && px.h % TILING_PX_PER_LAT == 0);
    return (struct lat_rect){px.x / TILING_PX_PER_LAT, px.y / TILING_PX_PER_LAT,
                             px.w / TILING_PX_PER_LAT, px.h / TILING_PX_PER_LAT};
}

/* -------------------------------------------------------------------------------- one axis */

/* Lengths in tokens. */
struct axis {
    int64_t worked, tile, count;
};

/* Tokens from tile to tile, at most, if neighbours are to share `overlap_px`. */
static int64_t stride_most(int64_t tile, int64_t overlap_px)
{
    return tile - ceil_div_i64(overlap_px, TILING_PX_PER_TOKEN);
}

static struct axis split(const struct grid_request *request, int32_t canvas_px)
{
    int64_t     worked = ceil_div_i64(canvas_px, TILING_PX_PER_TOKEN);
    int64_t     limit = request->tile_max_px / TILING_PX_PER_TOKEN;
    int64_t     stride = stride_most(limit, request->overlap_px);
    struct axis axis = {worked, limit, 1};

    if (worked <= limit) {
        axis.tile = worked;
        return axis;
    }
    axis.count = 1 + ceil_div_i64(worked - limit, stride);
    if (request->fit == GRID_EVEN) {
        /* The longest tiles need the fewest, so `count` stands.  Of that many tiles, t long and
         * sharing s, the longest reach is count * t - (count - 1) * s; the least t that makes it
         * `worked` is: */
        int64_t shared = limit - stride;
        axis.tile = ceil_div_i64(worked + (axis.count - 1) * shared, axis.count);
        axis.tile = max_i64(axis.tile, TILING_SIDE_MIN_PX / TILING_PX_PER_TOKEN);
    }
    must(axis.tile <= limit);
    return axis;
}

static int32_t origin_px(const struct grid *grid, struct axis axis, int64_t index)
{
    int64_t room = axis.worked - axis.tile;

    must(index >= 0 && index < axis.count);
    if (axis.count == 1) return 0;
    if (grid->fit == GRID_EXACT)
        room = min_i64(room, index * stride_most(axis.tile, grid->overlap_px));
    else
        room = index * room / (axis.count - 1); /* steps differ by one token at most */
    return (int32_t)(room * TILING_PX_PER_TOKEN);
}

/* ------------------------------------------------------------------------------- the grid */

static int check_request(const struct grid_request *request, struct err *err)
{
    int32_t tile = request->tile_max_px;
    int     rc = ERR_OK;

    must(request->fit == GRID_EVEN || request->fit == GRID_EXACT);
    if (request->canvas_w_px < TILING_SIDE_MIN_PX || request->canvas_w_px > TILING_SIDE_MAX_PX ||
        request->canvas_h_px < TILING_SIDE_MIN_PX || request->canvas_h_px > TILING_SIDE_MAX_PX)
        RAISE(err, ERR_USAGE, 0,
              "picture size is %d x %d px but each side must be %d..%d px; choose another size",
              request->canvas_w_px, request->canvas_h_px, TILING_SIDE_MIN_PX, TILING_SIDE_MAX_PX);
    if (tile < TILING_SIDE_MIN_PX)
        RAISE(err, ERR_USAGE, 0, "tile limit is %d px but must be at least %d px; raise it", tile,
              TILING_SIDE_MIN_PX);
    if (tile % TILING_PX_PER_TOKEN != 0)
        RAISE(err, ERR_USAGE, 0, "tile limit is %d px but must be a multiple of %d px; try %d",
              tile, TILING_PX_PER_TOKEN, tile - tile % TILING_PX_PER_TOKEN);
    /* One token less than the tile: with more, the next tile could not advance. */
    if (request->overlap_px < 0 || request->overlap_px > tile - TILING_PX_PER_TOKEN)
        RAISE(err, ERR_USAGE, 0,
              "tile overlap is %d px but must be 0..%d px with tiles of up to %d px; "
              "change the overlap or the tile limit",
              request->overlap_px, tile - TILING_PX_PER_TOKEN, tile);
out:
    return rc;
}

int grid_make(struct grid *out, const struct grid_request *request, struct err *err)
{
    struct axis x, y;
    int         rc = ERR_OK;

    TRY(check_request(request, err));
    x = split(request, request->canvas_w_px);
    y = split(request, request->canvas_h_px);
    *out = (struct grid){
        .canvas_w_px = request->canvas_w_px,
        .canvas_h_px = request->canvas_h_px,
        .worked_w_px = (int32_t)(x.worked * TILING_PX_PER_TOKEN),
        .worked_h_px = (int32_t)(y.worked * TILING_PX_PER_TOKEN),
        .tile_w_px = (int32_t)(x.tile * TILING_PX_PER_TOKEN),
        .tile_h_px = (int32_t)(y.tile * TILING_PX_PER_TOKEN),
        .overlap_px = request->overlap_px,
        .cols = (uint32_t)x.count,
        .rows = (uint32_t)y.count,
        .fit = request->fit,
    };
out:
    return rc;
}

int32_t grid_col_x(const struct grid *grid, uint32_t col)
{
    return origin_px(grid,
                     (struct axis){grid->worked_w_px / TILING_PX_PER_TOKEN,
                                   grid->tile_w_px / TILING_PX_PER_TOKEN, grid->cols},
                     col);
}

int32_t grid_row_y(const struct grid *grid, uint32_t row)
{
    return origin_px(grid,
                     (struct axis){grid->worked_h_px / TILING_PX_PER_TOKEN,
                                   grid->tile_h_px / TILING_PX_PER_TOKEN, grid->rows},
                     row);
}

struct px_rect grid_tile(const struct grid *grid, uint32_t col, uint32_t row)
{
    return (struct px_rect){grid_col_x(grid, col), grid_row_y(grid, row), grid->tile_w_px,
                            grid->tile_h_px};
}

/* How many rows of tiles begin above picture row `y`. */
static uint32_t rows_above(const struct grid *grid, int64_t y)
{
    uint32_t low = 0, high = grid->rows;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (grid_row_y(grid, middle) < y)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t grid_rows_touching(const struct grid *grid, int32_t y, int32_t h, uint32_t *first_out)
{
    uint32_t ended, begun;

    *first_out = 0;
    if (h <= 0) return 0;
    /* A row of tiles has ended when it begins a whole tile above `y`. */
    ended = rows_above(grid, (int64_t)y - grid->tile_h_px + 1);
    begun = rows_above(grid, (int64_t)y + h);
    if (begun <= ended) return 0;
    *first_out = ended;
    return begun - ended;
}
