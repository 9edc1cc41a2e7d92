/*
 * mosaic.c - rows of the canvas out of the stored tiles that touch them.
 *
 * Owns the sums of the rows in work: 24 bytes a pixel for at most 64 rows, in strips of eight, one
 * strip a thread, so memory is small and the same for every height of the canvas, and a strip of an
 * 8K poster stays in a core's cache.  Sums are whole numbers, so that neither the strips nor the
 * threads show in the bits.  Knows nothing of the poster's file, nor of which tiles are stored.
 *
 * Threads: the caller's and OpenMP's; each has a strip of its own.
 * Read next: assemble.c, which says which rows; blend.c, for the sums.
 */
#include "render/render_int.h"

#include <omp.h>

enum { STRIP_ROWS = 8, STRIPS_MAX = 8 };

struct strip {
    struct blend_band *sums;      /* STRIP_ROWS rows */
    uint16_t          *tile_rows; /* [STRIP_ROWS, tile_w, 3] */
};

struct mosaic {
    struct grid  grid;
    int          bits, strip_count;
    struct strip strips[STRIPS_MAX];
};

static uint64_t tile_row_samples(const struct grid *grid)
{
    return (uint64_t)STRIP_ROWS * (uint64_t)grid->tile_w_px * 3;
}

uint64_t mosaic_bytes(const struct grid *grid)
{
    return STRIPS_MAX * (blend_bytes(grid, STRIP_ROWS) + tile_row_samples(grid) * sizeof(uint16_t));
}

int mosaic_open(struct mosaic **out, const struct grid *grid, int bits, struct err *err)
{
    int            rc = ERR_OK;
    struct mosaic *mosaic = NULL;

    must(bits == 8 || bits == 16);
    TRY(os_alloc((void **)&mosaic, 1, sizeof *mosaic, "the rows of the poster", err));
    mosaic->grid = *grid;
    mosaic->bits = bits;
    mosaic->strip_count = (int)min_i64(omp_get_max_threads(), STRIPS_MAX);
    for (int i = 0; i < mosaic->strip_count; i++) {
        struct strip *strip = &mosaic->strips[i];
        TRY(blend_open(&strip->sums, grid, STRIP_ROWS, err));
        TRY(os_alloc((void **)&strip->tile_rows, tile_row_samples(grid), sizeof(uint16_t),
                     "tile rows", err));
    }
    *out = mosaic;
    mosaic = NULL;
out:
    mosaic_close(mosaic);
    return rc;
}

void mosaic_close(struct mosaic *mosaic)
{
    if (mosaic == NULL) return;
    for (int i = 0; i < STRIPS_MAX; i++) {
        blend_close(mosaic->strips[i].sums);
        os_free(mosaic->strips[i].tile_rows);
    }
    os_free(mosaic);
}

/* Add what the tiles of one grid row hold of canvas rows [top, top + rows). */
static int add_tile_row(const struct grid *grid, struct strip *strip, struct spool *spool,
                        uint32_t row, int32_t top, int32_t rows, struct err *err)
{
    int     rc = ERR_OK;
    int32_t y = grid_row_y(grid, row);
    int32_t first = (int32_t)max_i64(top, y) - y;
    int32_t end = (int32_t)min_i64((int64_t)top + rows, (int64_t)y + grid->tile_h_px) - y;

    for (uint32_t col = 0; col < grid->cols && end > first; col++) {
        TRY(spool_get(spool, row * grid->cols + col + 1, first, end - first, strip->tile_rows,
                      err));
        blend_add(strip->sums, col, row, strip->tile_rows, first, end - first);
    }
out:
    return rc;
}

/* Blend canvas rows [top, top + rows) into samples_out, at most STRIP_ROWS of them. */
static int fill_strip(const struct mosaic *mosaic, struct strip *strip, struct spool *spool,
                      int32_t top, int32_t rows, char *samples_out, struct err *err)
{
    int                rc = ERR_OK;
    const struct grid *grid = &mosaic->grid;
    uint32_t           first_row, row_count = grid_rows_touching(grid, top, rows, &first_row);

    blend_begin(strip->sums, top, rows);
    for (uint32_t row = first_row; row < first_row + row_count; row++)
        TRY(add_tile_row(grid, strip, spool, row, top, rows, err));
    if (mosaic->bits == 16)
        blend_read_u16(strip->sums, (uint16_t *)(void *)samples_out);
    else
        blend_read_u8(strip->sums, (uint8_t *)samples_out);
out:
    return rc;
}

int mosaic_rows(struct mosaic *mosaic, struct spool *spool, int32_t top, int32_t rows,
                char *samples_out, struct err *err)
{
    int            rc = ERR_OK;
    const int      threads = (int)min_i64(omp_get_max_threads(), mosaic->strip_count);
    const uint64_t row_bytes =
        (uint64_t)mosaic->grid.canvas_w_px * 3 * (uint64_t)(mosaic->bits / 8);

#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int32_t done = 0; done < rows; done += STRIP_ROWS) {
        struct strip *strip = &mosaic->strips[omp_get_thread_num()];
        struct err    mine = {0};
        int           code =
            fill_strip(mosaic, strip, spool, top + done, (int32_t)min_i64(STRIP_ROWS, rows - done),
                       samples_out + (uint64_t)done * row_bytes, &mine);
        if (code == ERR_OK) continue;
#pragma omp critical(mosaic_fault)
        if (rc == ERR_OK) {
            *err = mine;
            rc = code;
        }
    }
    return rc;
}
