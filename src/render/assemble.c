/*
 * assemble.c - from finished tiles to the poster's file, one band of rows at a time.
 *
 * Owns the order of reading.  The file takes bands as high as a row of its own tiles; sums of 24
 * bytes a pixel are kept for a few of those rows at a time only, so memory is small and the same
 * for every height of the canvas.
 */
#include "render/render_int.h"

enum { SUM_ROWS_MAX = 64 };

static int32_t sum_rows(const struct grid *grid)
{
    return (int32_t)min_i64(SUM_ROWS_MAX, grid->canvas_h_px);
}

static int32_t band_rows(const struct grid *grid)
{
    return (int32_t)min_i64(BIGTIFF_TILE_PX, grid->canvas_h_px);
}

struct bench {
    struct blend_band *band;      /* sum_rows rows of sums */
    uint16_t          *tile_rows; /* [sum_rows, tile_w, 3] */
    char              *samples;   /* [band_rows, canvas_w, 3] of 8 or 16 bits */
};

static uint64_t tile_row_samples(const struct grid *grid)
{
    return (uint64_t)sum_rows(grid) * (uint64_t)grid->tile_w_px * 3;
}

static uint64_t band_samples(const struct grid *grid)
{
    return (uint64_t)band_rows(grid) * (uint64_t)grid->canvas_w_px * 3;
}

uint64_t assemble_bytes(const struct grid *grid, int bits)
{
    return blend_bytes(grid, sum_rows(grid)) + tile_row_samples(grid) * sizeof(uint16_t) +
           band_samples(grid) * (uint64_t)(bits / 8);
}

static int bench_init(struct bench *bench, const struct grid *grid, int bits, struct err *err)
{
    int rc = ERR_OK;

    TRY(blend_open(&bench->band, grid, sum_rows(grid), err));
    TRY(os_alloc((void **)&bench->tile_rows, tile_row_samples(grid), sizeof(uint16_t), "tile rows",
                 err));
    TRY(os_alloc((void **)&bench->samples, band_samples(grid), (uint64_t)(bits / 8),
                 "a band of the poster", err));
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

/* Blend canvas rows [top, top + rows) into samples_out, at most sum_rows of them. */
static int blend_rows(struct bench *bench, struct spool *spool,
                      const struct render_request *request, int32_t top, int32_t rows,
                      char *samples_out, struct err *err)
{
    int                rc = ERR_OK;
    const struct grid *grid = &request->plan->grid;
    uint32_t           first_row, row_count = grid_rows_touching(grid, top, rows, &first_row);

    blend_begin(bench->band, top, rows);
    for (uint32_t row = first_row; row < first_row + row_count; row++)
        TRY(add_tile_row(bench, spool, grid, row, top, rows, err));
    if (request->config->bits == 16)
        blend_read_u16(bench->band, (uint16_t *)(void *)samples_out);
    else
        blend_read_u8(bench->band, (uint8_t *)samples_out);
out:
    return rc;
}

int assemble_open_file(struct bigtiff **out, const struct render_request *request, struct err *err)
{
    int                    rc = ERR_OK;
    const struct config   *config = request->config;
    struct bigtiff_request file;
    char                  *settings = NULL;

    TRY(render_file_request(&file, config, err));
    if (config->metadata) {
        TRY(config_to_json(&settings, request->used, err));
        file.prompt = config->prompt;
        file.settings_json = settings;
    }
    file.software = request->software;
    TRY(bigtiff_open(out, &file, err));
out:
    os_free(settings);
    return rc;
}

int assemble_poster(const struct render_request *request, struct spool *spool, struct bigtiff *file,
                    struct meter *meter, struct err *err)
{
    int                rc = ERR_OK;
    int                bits = request->config->bits;
    const struct grid *grid = &request->plan->grid;
    size_t             row_bytes = (size_t)grid->canvas_w_px * 3 * (size_t)(bits / 8);
    struct bench       bench = {0};

    TRY(bench_init(&bench, grid, bits, err));
    meter->now.phase = "file";
    for (int32_t top = 0; top < grid->canvas_h_px; top += BIGTIFF_TILE_PX) {
        int32_t band = (int32_t)min_i64(BIGTIFF_TILE_PX, grid->canvas_h_px - top);

        for (int32_t done = 0; done < band; done += SUM_ROWS_MAX) {
            int32_t rows = (int32_t)min_i64(SUM_ROWS_MAX, band - done);
            TRY(blend_rows(&bench, spool, request, top + done, rows,
                           bench.samples + (size_t)done * row_bytes, err));
        }
        TRY(bigtiff_write_band(file, bench.samples, band, err));
        TRY(meter_advance(meter, 0, err));
    }
    TRY(bigtiff_finish(file, err));
out:
    bench_fini(&bench);
    return rc;
}
