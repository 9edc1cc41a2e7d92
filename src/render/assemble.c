/*
 * assemble.c - from finished tiles to the poster's file, one band of rows at a time.
 *
 * Owns the order of reading, and the poster's file until it is finished.  The file takes bands as
 * high as a row of its own tiles; sums of 24 bytes a pixel are kept for a few of those rows at a
 * time only, so memory is small and the same for every height of the canvas.
 *
 * The journal hears of the finished file after it was checked and before it gets its name: whoever
 * finds that record and no such file has only to assemble again.
 */
#include "render/render_int.h"

#include <string.h>

enum { SUM_ROWS_MAX = 64 };

static int32_t sum_rows(const struct grid *grid)
{
    return (int32_t)min_i64(SUM_ROWS_MAX, grid->canvas_h_px);
}

static int32_t band_rows(const struct grid *grid)
{
    return (int32_t)min_i64(BIGTIFF_TILE_PX, grid->canvas_h_px);
}

struct assembly {
    const struct render_request *request;
    struct journal_facts        *facts;
    struct bigtiff              *file;
    char                        *settings;  /* as the file has them; NULL: no metadata */
    struct blend_band           *band;      /* sum_rows rows of sums */
    uint16_t                    *tile_rows; /* [sum_rows, tile_w, 3] */
    char                        *samples;   /* [band_rows, canvas_w, 3] of 8 or 16 bits */
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

/* Add what the tiles of one grid row hold of canvas rows [top, top + rows). */
static int add_tile_row(struct assembly *assembly, struct spool *spool, const struct grid *grid,
                        uint32_t row, int32_t top, int32_t rows, struct err *err)
{
    int     rc = ERR_OK;
    int32_t y = grid_row_y(grid, row);
    int32_t first = (int32_t)max_i64(top, y) - y;
    int32_t end = (int32_t)min_i64((int64_t)top + rows, (int64_t)y + grid->tile_h_px) - y;

    for (uint32_t col = 0; col < grid->cols && end > first; col++) {
        TRY(spool_get(spool, row * grid->cols + col + 1, first, end - first, assembly->tile_rows,
                      err));
        blend_add(assembly->band, col, row, assembly->tile_rows, first, end - first);
    }
out:
    return rc;
}

/* Blend canvas rows [top, top + rows) into samples_out, at most sum_rows of them. */
static int blend_rows(struct assembly *assembly, struct spool *spool, int32_t top, int32_t rows,
                      char *samples_out, struct err *err)
{
    int                rc = ERR_OK;
    const struct grid *grid = &assembly->request->plan->grid;
    uint32_t           first_row, row_count = grid_rows_touching(grid, top, rows, &first_row);

    blend_begin(assembly->band, top, rows);
    for (uint32_t row = first_row; row < first_row + row_count; row++)
        TRY(add_tile_row(assembly, spool, grid, row, top, rows, err));
    if (assembly->request->config->bits == 16)
        blend_read_u16(assembly->band, (uint16_t *)(void *)samples_out);
    else
        blend_read_u8(assembly->band, (uint8_t *)samples_out);
out:
    return rc;
}

/* ------------------------------------------------------------------------------------ file */

static int open_file(struct assembly *assembly, struct err *err)
{
    int                          rc = ERR_OK;
    const struct render_request *request = assembly->request;
    struct bigtiff_request       file;

    TRY(render_file_request(&file, request->config, err));
    if (assembly->settings != NULL) {
        file.prompt = request->config->prompt;
        file.settings_json = assembly->settings;
    }
    file.software = request->software;
    TRY(bigtiff_open(&assembly->file, &file, err));
out:
    return rc;
}

int assemble_open(struct assembly **out, const struct render_request *request,
                  struct journal_facts *facts, struct err *err)
{
    int                rc = ERR_OK;
    int                bits = request->config->bits;
    const struct grid *grid = &request->plan->grid;
    struct assembly   *assembly = NULL;

    TRY(os_alloc((void **)&assembly, 1, sizeof *assembly, "the poster", err));
    assembly->request = request;
    assembly->facts = facts;
    if (request->config->metadata)
        TRY(provenance_json(&assembly->settings, request->used, facts, err));
    TRY(open_file(assembly, err));
    TRY(blend_open(&assembly->band, grid, sum_rows(grid), err));
    TRY(os_alloc((void **)&assembly->tile_rows, tile_row_samples(grid), sizeof(uint16_t),
                 "tile rows", err));
    TRY(os_alloc((void **)&assembly->samples, band_samples(grid), (uint64_t)(bits / 8),
                 "a band of the poster", err));
    *out = assembly;
    assembly = NULL;
out:
    assemble_close(assembly);
    return rc;
}

void assemble_close(struct assembly *assembly)
{
    if (assembly == NULL) return;
    bigtiff_close(assembly->file);
    blend_close(assembly->band);
    os_free(assembly->tile_rows);
    os_free(assembly->samples);
    os_free(assembly->settings);
    os_free(assembly);
}

/* The words of the file stand before its pixels.  When tiles had to be filled since they were
 * written, the file is begun again with the truth. */
static int update_words(struct assembly *assembly, struct err *err)
{
    int   rc = ERR_OK;
    char *settings = NULL;

    if (assembly->settings == NULL) goto out;
    TRY(provenance_json(&settings, assembly->request->used, assembly->facts, err));
    if (strcmp(settings, assembly->settings) == 0) goto out;
    os_free(assembly->settings);
    assembly->settings = settings;
    settings = NULL;
    bigtiff_close(assembly->file);
    assembly->file = NULL;
    TRY(open_file(assembly, err));
out:
    os_free(settings);
    return rc;
}

static int finish(struct assembly *assembly, struct store *store, struct err *err)
{
    int         rc = ERR_OK;
    uint64_t    bytes = 0, hash = 0;
    const char *output = assembly->request->config->output;

    TRY(bigtiff_complete(assembly->file, &bytes, &hash, err));
    if (!store->replaces && os_is_file(output))
        RAISE(
            err, ERR_USAGE, 0,
            "'%s' came to be while its poster was painted, and is not replaced; move it away, and "
            "'mural resume' finishes the poster",
            output);
    TRY(journal_add_finished(store->journal, bytes, hash, err));
    TRY(bigtiff_publish(assembly->file, err));
out:
    return rc;
}

int assemble_poster(struct assembly *assembly, struct store *store, struct meter *meter,
                    struct err *err)
{
    int                rc = ERR_OK;
    const struct grid *grid = &assembly->request->plan->grid;
    size_t             row_bytes =
        (size_t)grid->canvas_w_px * 3 * (size_t)(assembly->request->config->bits / 8);

    TRY(update_words(assembly, err));
    meter->now.phase = "file";
    for (int32_t top = 0; top < grid->canvas_h_px; top += BIGTIFF_TILE_PX) {
        int32_t band = (int32_t)min_i64(BIGTIFF_TILE_PX, grid->canvas_h_px - top);

        for (int32_t done = 0; done < band; done += SUM_ROWS_MAX) {
            int32_t rows = (int32_t)min_i64(SUM_ROWS_MAX, band - done);
            TRY(blend_rows(assembly, store->spool, top + done, rows,
                           assembly->samples + (size_t)done * row_bytes, err));
        }
        TRY(bigtiff_write_band(assembly->file, assembly->samples, band, err));
        TRY(meter_advance(meter, 0, err));
    }
    TRY(finish(assembly, store, err));
out:
    return rc;
}
