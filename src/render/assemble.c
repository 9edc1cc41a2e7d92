/*
 * assemble.c - from finished tiles to the poster's file, one band of rows at a time.
 *
 * Owns the order of reading; memory is one band, whatever the height of the canvas.  A band is as
 * high as a row of the file's own tiles, so every band is handed over once and never revisited.
 */
#include "render/render_int.h"

struct bench {
    struct blend_band *band;
    uint16_t          *tile_rows; /* [BIGTIFF_TILE_PX, tile_w, 3] */
    void              *samples;   /* [BIGTIFF_TILE_PX, canvas_w, 3] of 8 or 16 bits */
};

static uint64_t tile_row_samples(const struct grid *grid)
{
    return (uint64_t)BIGTIFF_TILE_PX * (uint64_t)grid->tile_w_px * 3;
}

static uint64_t band_samples(const struct grid *grid)
{
    return (uint64_t)BIGTIFF_TILE_PX * (uint64_t)grid->canvas_w_px * 3;
}

uint64_t assemble_bytes(const struct grid *grid, int bits)
{
    return blend_bytes(grid, BIGTIFF_TILE_PX) + tile_row_samples(grid) * sizeof(uint16_t) +
           band_samples(grid) * (uint64_t)(bits / 8);
}

static int bench_init(struct bench *bench, const struct grid *grid, int bits, struct err *err)
{
    int rc = ERR_OK;

    TRY(blend_open(&bench->band, grid, BIGTIFF_TILE_PX, err));
    TRY(os_alloc((void **)&bench->tile_rows, tile_row_samples(grid), sizeof(uint16_t), "tile rows",
                 err));
    TRY(os_alloc(&bench->samples, band_samples(grid), (uint64_t)(bits / 8), "a band of the poster",
                 err));
out:
    return rc;
}

static void bench_fini(struct bench *bench)
{
    blend_close(bench->band);
    os_free(bench->tile_rows);
    os_free(bench->samples);
}

/* Add what the tiles of one grid row hold of canvas rows [top, top + rows). */
static int add_tile_row(struct bench *bench, struct spool *spool, const struct grid *grid,
                        uint32_t row, int32_t top, int32_t rows, struct err *err)
{
    int     rc = ERR_OK;
    int32_t y = grid_row_y(grid, row);
    int32_t first = (int32_t)max_i64(top, y) - y;
    int32_t end = (int32_t)min_i64((int64_t)top + rows, (int64_t)y + grid->tile_h_px) - y;

    for (uint32_t col = 0; col < grid->cols && end > first; col++) {
        TRY(spool_get(spool, col, row, first, end - first, bench->tile_rows, err));
        blend_add(bench->band, col, row, bench->tile_rows, first, end - first);
    }
out:
    return rc;
}

int assemble_poster(const struct render_request *request, struct spool *spool, struct meter *meter,
                    struct err *err)
{
    int                    rc = ERR_OK;
    const struct config   *config = request->config;
    const struct grid     *grid = &request->plan->grid;
    struct bench           bench = {0};
    struct bigtiff        *file = NULL;
    struct bigtiff_request file_request;

    TRY(render_file_request(&file_request, config, err));
    file_request.prompt = config->metadata ? config->prompt : NULL;
    file_request.settings_json = config->metadata ? request->settings_json : NULL;
    file_request.software = request->software;
    TRY(bench_init(&bench, grid, config->bits, err));
    TRY(bigtiff_open(&file, &file_request, err));

    meter->now.phase = "file";
    for (int32_t top = 0; top < grid->canvas_h_px; top += BIGTIFF_TILE_PX) {
        int32_t  rows = (int32_t)min_i64(BIGTIFF_TILE_PX, grid->canvas_h_px - top);
        uint32_t first_row, row_count = grid_rows_touching(grid, top, rows, &first_row);

        blend_begin(bench.band, top, rows);
        for (uint32_t row = first_row; row < first_row + row_count; row++)
            TRY(add_tile_row(&bench, spool, grid, row, top, rows, err));
        if (config->bits == 16)
            blend_read_u16(bench.band, bench.samples);
        else
            blend_read_u8(bench.band, bench.samples);
        TRY(bigtiff_write_band(file, bench.samples, rows, err));
        TRY(meter_advance(meter, 0, err));
    }
    TRY(bigtiff_finish(file, err));
out:
    bigtiff_close(file);
    bench_fini(&bench);
    return rc;
}
