/*
 * assemble.c - from finished tiles to the poster's file, one band of rows at a time.
 *
 * Owns the order of bands, and the poster's file until it is finished.  A band is as high as a row
 * of the file's own tiles.  Bands go into the file from top to bottom; the next one is made as soon
 * as all tiles that touch it are stored, while others are still being painted, so that after the
 * last tile only the bands that it touches are left.  What is early is only the work: until all
 * tiles are there the file has no directory and no name of its own.
 *
 * A failure while tiles are painted ends no painting: the file is given up, so that the tiles get
 * its room on the disk, and begun again after the last one; what fails then is the job's failure.
 *
 * The journal hears of the finished file after it was checked and before it gets its name: whoever
 * finds that record and no such file has only to assemble again.
 *
 * Threads: `turn` guards what is said of tiles; the file, the mosaic and the samples belong to the
 * early thread from assemble_early until it is joined, and to the render thread before and after.
 * Read next: mosaic.c, for the pixels of a band.
 */
#include "render/render_int.h"

#include <omp.h>
#include <string.h>

struct assembly {
    const struct render_request *request;
    struct journal_facts        *facts;
    struct bigtiff              *file;     /* NULL: given up */
    char                        *settings; /* as the file has them; NULL: no metadata */
    struct mosaic               *mosaic;
    char                        *samples; /* [band_rows, canvas_w, 3] of 8 or 16 bits */
    int32_t                      next_px; /* the first canvas row that is not in the file */

    pthread_t       early;
    bool            early_runs;
    struct spool   *spool; /* that the early thread reads, borrowed until it is joined */
    struct err      fault; /* that ended it */
    pthread_mutex_t turn;  /* over what follows */
    pthread_cond_t  changed;
    bool           *stored;  /* [tiles] by number - 1 */
    uint32_t        left;    /* tiles that are not stored */
    bool            painted; /* no more tiles will come */
};

static int32_t band_rows(const struct grid *grid)
{
    return (int32_t)min_i64(BIGTIFF_TILE_PX, grid->canvas_h_px);
}

static uint64_t band_samples(const struct grid *grid)
{
    return (uint64_t)band_rows(grid) * (uint64_t)grid->canvas_w_px * 3;
}

uint64_t assemble_bytes(const struct grid *grid, int bits)
{
    return mosaic_bytes(grid) + band_samples(grid) * (uint64_t)(bits / 8) +
           grid_count(grid) * sizeof(bool);
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
    assembly->next_px = 0;
out:
    return rc;
}

static void give_up_file(struct assembly *assembly)
{
    bigtiff_close(assembly->file);
    assembly->file = NULL;
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
    must(pthread_mutex_init(&assembly->turn, NULL) == 0);
    must(pthread_cond_init(&assembly->changed, NULL) == 0);
    if (request->config->metadata)
        TRY(provenance_json(&assembly->settings, request->used, facts, err));
    TRY(open_file(assembly, err));
    TRY(mosaic_open(&assembly->mosaic, grid, bits, err));
    TRY(os_alloc((void **)&assembly->stored, grid_count(grid), sizeof *assembly->stored,
                 "a list of tiles", err));
    TRY(os_alloc((void **)&assembly->samples, band_samples(grid), (uint64_t)(bits / 8),
                 "a band of the poster", err));
    *out = assembly;
    assembly = NULL;
out:
    assemble_close(assembly);
    return rc;
}

static void end_early(struct assembly *assembly)
{
    if (!assembly->early_runs) return;
    (void)pthread_mutex_lock(&assembly->turn);
    assembly->painted = true;
    (void)pthread_cond_signal(&assembly->changed);
    (void)pthread_mutex_unlock(&assembly->turn);
    (void)pthread_join(assembly->early, NULL);
    assembly->early_runs = false;
}

void assemble_close(struct assembly *assembly)
{
    if (assembly == NULL) return;
    end_early(assembly);
    bigtiff_close(assembly->file);
    mosaic_close(assembly->mosaic);
    (void)pthread_cond_destroy(&assembly->changed);
    (void)pthread_mutex_destroy(&assembly->turn);
    os_free(assembly->stored);
    os_free(assembly->samples);
    os_free(assembly->settings);
    os_free(assembly);
}

/* The words of the file stand before its pixels.  When tiles had to be filled since they were
 * written, or the file was given up, it is begun again, with the truth. */
static int renew_file(struct assembly *assembly, struct err *err)
{
    int   rc = ERR_OK;
    char *settings = NULL;

    if (assembly->settings != NULL) {
        TRY(provenance_json(&settings, assembly->request->used, assembly->facts, err));
        if (strcmp(settings, assembly->settings) != 0) {
            os_free(assembly->settings);
            assembly->settings = settings;
            settings = NULL;
            give_up_file(assembly);
        }
    }
    if (assembly->file == NULL) TRY(open_file(assembly, err));
out:
    os_free(settings);
    return rc;
}

/* Of the next band; 0: there is none. */
static int32_t next_rows(const struct assembly *assembly)
{
    return (int32_t)min_i64(BIGTIFF_TILE_PX,
                            assembly->request->plan->grid.canvas_h_px - assembly->next_px);
}

static int write_band(struct assembly *assembly, struct spool *spool, struct err *err)
{
    int           rc = ERR_OK;
    const int32_t top = assembly->next_px, rows = next_rows(assembly);

    TRY(mosaic_rows(assembly->mosaic, spool, top, rows, assembly->samples, err));
    TRY(bigtiff_write_band(assembly->file, assembly->samples, rows, err));
    assembly->next_px += rows;
out:
    return rc;
}

/* ----------------------------------------------------------------------------------- early */

/* Is there a band that can be made while others are painted?  Under turn. */
static bool has_ready_band(const struct assembly *assembly)
{
    const struct grid *grid = &assembly->request->plan->grid;
    const int32_t      top = assembly->next_px, rows = next_rows(assembly);
    uint32_t           first, count;

    if (assembly->left == 0 || rows == 0) return false; /* the render thread does the rest */
    count = grid_rows_touching(grid, top, rows, &first);
    for (uint32_t i = first * grid->cols; i < (first + count) * grid->cols; i++)
        if (!assembly->stored[i]) return false;
    return true;
}

static void *early_main(void *argument)
{
    struct assembly *assembly = argument;

    /* Of this thread's teams: painting needs processors too. */
    omp_set_num_threads((int)max_i64(1, omp_get_max_threads() / 2));
    (void)pthread_mutex_lock(&assembly->turn);
    while (!assembly->painted && assembly->fault.code == ERR_OK) {
        if (!has_ready_band(assembly)) {
            (void)pthread_cond_wait(&assembly->changed, &assembly->turn);
            continue;
        }
        (void)pthread_mutex_unlock(&assembly->turn);
        if (write_band(assembly, assembly->spool, &assembly->fault) != ERR_OK)
            give_up_file(assembly);
        (void)pthread_mutex_lock(&assembly->turn);
    }
    (void)pthread_mutex_unlock(&assembly->turn);
    return NULL;
}

int assemble_early(struct assembly *assembly, const struct store *store, struct err *err)
{
    int                rc = ERR_OK, failed;
    const struct grid *grid = &assembly->request->plan->grid;
    uint32_t           first;

    must(!assembly->early_runs && assembly->next_px == 0);
    assembly->spool = store->spool;
    assembly->left = assembly->facts->tile_count;
    for (uint32_t i = 0; i < assembly->facts->tile_count; i++) {
        assembly->stored[i] = assembly->facts->tiles[i].status == TILE_DONE;
        if (assembly->stored[i]) assembly->left--;
    }
    if (assembly->left == 0 || grid_rows_touching(grid, 0, band_rows(grid), &first) == grid->rows)
        goto out; /* no band is ready before all are */
    failed = os.thread_create(&assembly->early, early_main, assembly);
    if (failed != 0)
        RAISE(err, ERR_HOST_MEM, failed, "cannot start a thread: %s", strerror(failed));
    assembly->early_runs = true;
out:
    return rc;
}

void assemble_tile(struct assembly *assembly, uint32_t number)
{
    (void)pthread_mutex_lock(&assembly->turn);
    must(!assembly->stored[number - 1]);
    assembly->stored[number - 1] = true;
    assembly->left--;
    (void)pthread_cond_signal(&assembly->changed);
    (void)pthread_mutex_unlock(&assembly->turn);
}

/* ------------------------------------------------------------------------------------- end */

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
    int rc = ERR_OK;

    end_early(assembly);
    if (assembly->fault.code != ERR_OK)
        log_line(LOG_WARN, "the poster's file is begun again: %s", assembly->fault.text);
    TRY(renew_file(assembly, err));
    meter->now.phase = "file";
    while (next_rows(assembly) > 0) {
        TRY(write_band(assembly, store->spool, err));
        TRY(meter_advance(meter, 0, err));
    }
    TRY(finish(assembly, store, err));
out:
    return rc;
}
