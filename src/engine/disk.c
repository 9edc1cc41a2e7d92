/*
 * disk.c - how fast the transformer's weights come from where they are.
 *
 * Weights that visit a GPU and find no room in the host's memory are read again in every step, so
 * that a plan must know this rate.  It is measured before anything is loaded, with few reads at
 * places all over the files.
 *
 * The page cache must not answer: what it holds today another program may have tomorrow, and a plan
 * is made for weights that do not fit.  Hence direct reads, and no rate where the file system knows
 * none.  A file system that lives in memory answers them from there, which is true of it.
 *
 * Read next: budget.c.
 */
#include "engine/compute_int.h"

#include <fcntl.h>

/* One piece keeps a disk busy and the whole takes a moment; a slow disk is not read for longer than
 * the time limit.  Files smaller than all pieces would be read in a burst of their disk's cache. */
enum { PIECES = 16, ALIGNMENT = 4096 };
static const uint64_t PIECE_BYTES = 4 << 20;
static const double   SECONDS_MOST = 0.5;

/* Seconds that `bytes` at `offset` took; negative: they did not come. */
static double time_piece(const char *path, uint64_t offset, void *buffer)
{
    int    fd = os.open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    double begin = os_seconds(), seconds = -1;

    if (fd < 0) return -1;
    if (os.pread(fd, buffer, PIECE_BYTES, (int64_t)offset) == (int64_t)PIECE_BYTES)
        seconds = os_seconds() - begin;
    (void)os.close(fd);
    return seconds;
}

/* The i-th of all pieces, somewhere in the file of the i-th of as many entries. */
static double time_place(const struct safetensors *file, uint32_t i, void *buffer)
{
    const struct safetensors_entry *entry =
        safetensors_at(file, (uint32_t)((uint64_t)i * safetensors_count(file) / PIECES));
    struct err ignored = {.code = ERR_OK};
    uint64_t   bytes = 0, place;
    int        fd;

    if (os_open_read(&fd, entry->file, &ignored) != ERR_OK) return -1;
    if (os_size(&bytes, fd, entry->file, &ignored) != ERR_OK) bytes = 0;
    (void)os.close(fd);
    if (bytes < PIECE_BYTES) return -1;
    place = (bytes - PIECE_BYTES) / PIECES * i;
    return time_piece(entry->file, place - place % ALIGNMENT, buffer);
}

static double rate_of(const struct safetensors *file, void *buffer)
{
    double   seconds = 0;
    uint32_t count = 0;

    for (uint32_t i = 0; i < PIECES && seconds < SECONDS_MOST; i++) {
        double lap = time_place(file, i, buffer);
        if (lap < 0) return 0;
        seconds += lap;
        count++;
    }
    return seconds > 0 ? (double)count * (double)PIECE_BYTES / seconds : 0;
}

double engine_disk_speed(const struct engine_options *options)
{
    struct err          err = {.code = ERR_OK};
    struct model       *model = NULL;
    struct safetensors *file = NULL;
    void               *buffer = NULL;
    double              rate = 0;
    struct model_paths  paths = {
         .folder = options->model_folder, .transformer = options->transformer, .vae = options->vae};

    if (model_open(&model, &paths, &err) != ERR_OK) goto out;
    if (model->bytes[PART_TRANSFORMER] < PIECES * PIECE_BYTES) goto out;
    if (safetensors_open(&file, model->file[PART_TRANSFORMER], &err) != ERR_OK) goto out;
    buffer = os.aligned_alloc(ALIGNMENT, PIECE_BYTES);
    if (buffer != NULL && safetensors_count(file) > 0) rate = rate_of(file, buffer);
out:
    os_free(buffer);
    safetensors_close(file);
    model_close(model);
    return rate;
}
