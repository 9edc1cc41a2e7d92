/*
 * spool.c - raw samples on disk: the guide, and finished tiles until the poster is assembled.
 *
 * Owns the files `guide.rgb16` and `tile-<n>.rgb16` in the folder `<output>.mural`: samples
 * [h, w, 3] of native 16-bit words, nothing else; n counts from 1 in reading order.  A file is on
 * the disk, with its name, when a put returns.  Whether it may be trusted is not known here: the
 * journal says so.
 *
 * Tiles rest here rather than in memory because a canvas may be larger than any memory, because the
 * file format wants bands of rows while tiles may finish in any order, and because a run that was
 * killed goes on from them.
 *
 * Read next: store.c, which trusts or removes them; assemble.c, which reads them back.
 */
#include "render/render_int.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

struct spool {
    struct grid grid;
    char        folder[1100];
};

static const char GUIDE[] = "guide.rgb16";

static void tile_path(const struct spool *spool, uint32_t number, char *out, size_t capacity)
{
    int wrote = snprintf(out, capacity, "%s/tile-%u.rgb16", spool->folder, number);
    must(wrote > 0 && (size_t)wrote < capacity);
}

static uint64_t row_bytes(const struct spool *spool)
{
    return (uint64_t)spool->grid.tile_w_px * 3 * sizeof(uint16_t);
}

uint64_t spool_tile_bytes(const struct grid *grid)
{
    return (uint64_t)grid->tile_w_px * (uint64_t)grid->tile_h_px * 3 * sizeof(uint16_t);
}

static bool is_ours(const char *name)
{
    return strcmp(name, GUIDE) == 0 ||
           (strncmp(name, "tile-", 5) == 0 && strstr(name, ".rgb16") != NULL);
}

void spool_clear(const struct spool *spool)
{
    DIR           *listing = opendir(spool->folder);
    struct dirent *entry;
    char           path[1500];

    while (listing != NULL && (entry = readdir(listing)) != NULL) {
        if (!is_ours(entry->d_name)) continue;
        if (os_join(path, sizeof path, spool->folder, entry->d_name)) (void)os.unlink(path);
    }
    if (listing != NULL) (void)closedir(listing);
}

int spool_open(struct spool **out, const char *folder, const struct grid *grid, struct err *err)
{
    int           rc = ERR_OK, wrote;
    struct spool *spool = NULL;

    TRY(os_alloc((void **)&spool, 1, sizeof *spool, "the tile store", err));
    spool->grid = *grid;
    wrote = snprintf(spool->folder, sizeof spool->folder, "%s", folder);
    must(wrote > 0 && (size_t)wrote < sizeof spool->folder);
    *out = spool;
out:
    return rc;
}

void spool_close(struct spool *spool)
{
    os_free(spool);
}

/* A file that could not be written whole is removed: what it took may be what others lack. */
static int put(const char *path, const uint16_t *samples, uint64_t bytes, struct err *err)
{
    int        rc = ERR_OK, fd = -1;
    struct err ignored = {0};

    TRY(os_open_write(&fd, path, err));
    TRY(os_write_at(fd, 0, samples, bytes, path, err));
    TRY(os_sync(fd, path, err));
out:
    if (fd >= 0) rc = rc == ERR_OK ? os_close(fd, path, err) : (os.close(fd), rc);
    if (rc == ERR_OK) return os_sync_folder(path, err);
    if (fd >= 0) (void)os_remove(path, &ignored);
    return rc;
}

int spool_put(struct spool *spool, uint32_t number, const uint16_t *samples, struct err *err)
{
    char path[1200];

    tile_path(spool, number, path, sizeof path);
    return put(path, samples, spool_tile_bytes(&spool->grid), err);
}

int spool_get(struct spool *spool, uint32_t number, int32_t first, int32_t count,
              uint16_t *samples_out, struct err *err)
{
    int  rc = ERR_OK, fd = -1;
    char path[1200];

    must(first >= 0 && count > 0 && first + count <= spool->grid.tile_h_px);
    tile_path(spool, number, path, sizeof path);
    TRY(os_open_read(&fd, path, err));
    TRY(os_read_at(fd, (uint64_t)first * row_bytes(spool), samples_out,
                   (uint64_t)count * row_bytes(spool), path, err));
out:
    if (fd >= 0) (void)os.close(fd);
    return rc;
}

bool spool_holds(struct spool *spool, uint32_t number, uint64_t hash)
{
    struct err ignored = {0};
    uint64_t   found = 0, bytes = 0;
    char       path[1200];

    tile_path(spool, number, path, sizeof path);
    return os_is_file(path) && hash64_file(&found, &bytes, path, &ignored) == ERR_OK &&
           bytes == spool_tile_bytes(&spool->grid) && found == hash;
}

static uint64_t guide_bytes(int32_t w, int32_t h)
{
    return (uint64_t)w * (uint64_t)h * 3 * sizeof(uint16_t);
}

int spool_put_guide(struct spool *spool, const struct image *guide, struct err *err)
{
    char path[1200];

    must(os_join(path, sizeof path, spool->folder, GUIDE));
    return put(path, guide->rgb, guide_bytes(guide->w, guide->h), err);
}

int spool_get_guide(struct image *out, struct spool *spool, const struct journal_guide *guide,
                    struct err *err)
{
    int          rc = ERR_OK, fd = -1;
    char         path[1200];
    struct image image = {.w = guide->w, .h = guide->h};
    uint64_t     bytes = guide_bytes(guide->w, guide->h);

    must(os_join(path, sizeof path, spool->folder, GUIDE));
    TRY(os_open_read(&fd, path, err));
    TRY(os_alloc((void **)&image.rgb, bytes, 1, "the draft", err));
    TRY(os_read_at(fd, 0, image.rgb, bytes, path, err));
    if (hash64_pieces(image.rgb, bytes) != guide->hash)
        RAISE(err, ERR_FORMAT, 0, "'%s' is damaged", path);
    *out = image;
    image.rgb = NULL;
out:
    if (fd >= 0) (void)os.close(fd);
    image_close(&image);
    return rc;
}
