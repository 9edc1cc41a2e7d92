/*
 * spool.c - finished tiles on disk until the poster is assembled.
 *
 * Owns the folder `<output>.mural` and the files `tile-<row>-<col>.rgb16` in it: raw samples,
 * [tile_h, tile_w, 3] of native 16-bit words, nothing else.  Invariant: the folder is locked while
 * it is used, so two runs never mix their tiles, and a file that spool_get reads was written whole
 * by spool_put of the same run.
 *
 * Tiles rest here rather than in memory because a canvas may be larger than any memory, and because
 * the file format wants bands of rows while tiles may finish in any order.
 *
 * Read next: assemble.c, which reads them back.
 */
#include "render/render_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

struct spool {
    struct grid grid;
    int         lock; /* the open folder, locked for this process */
    char        folder[1100];
};

static void tile_path(const struct spool *spool, uint32_t col, uint32_t row, char *out,
                      size_t capacity)
{
    int wrote = snprintf(out, capacity, "%s/tile-%u-%u.rgb16", spool->folder, row, col);
    must(wrote > 0 && (size_t)wrote < capacity);
}

static uint64_t row_bytes(const struct spool *spool)
{
    return (uint64_t)spool->grid.tile_w_px * 3 * sizeof(uint16_t);
}

static bool is_tile(const char *name)
{
    return strncmp(name, "tile-", 5) == 0 && strstr(name, ".rgb16") != NULL;
}

/* What a killed run left behind would otherwise stay for ever. */
static void remove_tiles(const char *folder)
{
    DIR           *listing = opendir(folder);
    struct dirent *entry;
    char           path[1500];

    while (listing != NULL && (entry = readdir(listing)) != NULL) {
        if (!is_tile(entry->d_name)) continue;
        if (os_join(path, sizeof path, folder, entry->d_name)) (void)os.unlink(path);
    }
    if (listing != NULL) (void)closedir(listing);
}

/* Takes the folder for this process alone; the lock goes with the process, however it ends. */
static int lock_folder(struct spool *spool, const char *output, struct err *err)
{
    int rc = ERR_OK;

    TRY(os_make_dir(spool->folder, err));
    spool->lock = os.open(spool->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (spool->lock < 0)
        RAISE(err, ERR_IO, errno, "cannot open the folder '%s': %s", spool->folder,
              strerror(errno));
    if (flock(spool->lock, LOCK_EX | LOCK_NB) != 0)
        RAISE(err, ERR_USAGE, errno,
              "output: another mural is writing '%s'; wait for it or give another name", output);
out:
    return rc;
}

int spool_open(struct spool **out, const char *output, const struct grid *grid, struct err *err)
{
    int           rc = ERR_OK;
    struct spool *spool = NULL;
    int           wrote;

    TRY(os_alloc((void **)&spool, 1, sizeof *spool, "the tile store", err));
    spool->grid = *grid;
    spool->lock = -1;
    wrote = snprintf(spool->folder, sizeof spool->folder, "%s.mural", output);
    must(wrote > 0 && (size_t)wrote < sizeof spool->folder);
    TRY(lock_folder(spool, output, err));
    remove_tiles(spool->folder);
    *out = spool;
    spool = NULL;
out:
    if (spool != NULL && spool->lock >= 0) (void)os.close(spool->lock);
    os_free(spool);
    return rc;
}

int spool_put(struct spool *spool, uint32_t col, uint32_t row, const uint16_t *samples,
              struct err *err)
{
    int  rc = ERR_OK, fd = -1;
    char path[1200];

    tile_path(spool, col, row, path, sizeof path);
    TRY(os_open_write(&fd, path, err));
    TRY(os_write_at(fd, 0, samples, row_bytes(spool) * (uint64_t)spool->grid.tile_h_px, path, err));
out:
    if (fd >= 0) rc = rc == ERR_OK ? os_close(fd, path, err) : (os.close(fd), rc);
    return rc;
}

int spool_get(struct spool *spool, uint32_t col, uint32_t row, int32_t first, int32_t count,
              uint16_t *samples_out, struct err *err)
{
    int  rc = ERR_OK, fd = -1;
    char path[1200];

    must(first >= 0 && count > 0 && first + count <= spool->grid.tile_h_px);
    tile_path(spool, col, row, path, sizeof path);
    TRY(os_open_read(&fd, path, err));
    TRY(os_read_at(fd, (uint64_t)first * row_bytes(spool), samples_out,
                   (uint64_t)count * row_bytes(spool), path, err));
out:
    if (fd >= 0) (void)os.close(fd);
    return rc;
}

void spool_close(struct spool *spool)
{
    if (spool == NULL) return;
    remove_tiles(spool->folder);
    if (rmdir(spool->folder) != 0)
        log_line(LOG_WARN, "the folder '%s' stays: %s", spool->folder, strerror(errno));
    (void)os.close(spool->lock);
    os_free(spool);
}
