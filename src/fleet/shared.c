/*
 * shared.c - memory that the supervisor and one worker both see: where numbers travel.
 *
 * Owns the layout, which both sides compute from the sizes and never tell each other, so that no
 * message can make either of them read or write outside:
 *
 *     0       u64 pulse, counted up by the worker whenever it finished an operation
 *     4096    latents [latent_values] f32, then velocities [latent_values], then pixels
 *             [pixel_values], each area at a multiple of 4096
 *
 * A worker with a GPU pins all of it, so that nothing is copied once more on the way there.
 *
 * and, for all workers of a machine with memory of its own together, a file for weights: made
 * here, laid out by the workers (backend/shared_pins.c), and never mapped by the supervisor.
 *
 * The supervisor fills inputs, asks, and reads results only after the answer; in between the
 * areas are the worker's.  Memory of both kinds has no name in any folder, and its length is
 * sealed; the areas are committed when they are made: neither side can be brought to fault by the
 * other.
 */
#include "fleet/fleet_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

enum { AREA_ALIGNMENT = 4096 };

int64_t shared_latent_values(struct wire_rect rect, int32_t channels)
{
    return (int64_t)(rect.w_px / TILING_PX_PER_LAT) * (rect.h_px / TILING_PX_PER_LAT) * channels;
}

static uint64_t area_bytes(int64_t values)
{
    return (uint64_t)round_up_i64(values * (int64_t)sizeof(float), AREA_ALIGNMENT);
}

/* Cannot overflow: sides are below 2^20 px, tiles and channels are checked where they come in. */
static void lay_out(struct shared *out, const struct engine_size *sizes, size_t size_count,
                    int32_t channels)
{
    *out = (struct shared){.fd = -1};
    for (size_t i = 0; i < size_count; i++) {
        struct wire_rect rect = {.w_px = sizes[i].w_px, .h_px = sizes[i].h_px};
        int64_t          latents = sizes[i].tiles * shared_latent_values(rect, channels);
        out->latent_values = max_i64(out->latent_values, latents);
        out->pixel_values = max_i64(out->pixel_values, 3 * (int64_t)rect.w_px * rect.h_px);
    }
    out->bytes =
        AREA_ALIGNMENT + 2 * area_bytes(out->latent_values) + area_bytes(out->pixel_values);
}

static void place(struct shared *shared)
{
    char    *base = shared->base;
    uint64_t latent_bytes = area_bytes(shared->latent_values);

    shared->pulse = shared->base;
    shared->latents = (float *)(void *)(base + AREA_ALIGNMENT);
    shared->velocities = (float *)(void *)(base + AREA_ALIGNMENT + latent_bytes);
    shared->pixels = (float *)(void *)(base + AREA_ALIGNMENT + 2 * latent_bytes);
}

uint64_t shared_bytes(const struct engine_size *sizes, size_t size_count, int32_t channels)
{
    struct shared shared;

    lay_out(&shared, sizes, size_count, channels);
    return shared.bytes;
}

static int map(struct shared *shared, int fd, struct err *err)
{
    int   rc = ERR_OK;
    void *base = os.mmap(NULL, (size_t)shared->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char  words[32];

    if (base == MAP_FAILED)
        RAISE(err, ERR_HOST_MEM, errno, "memory: cannot map %s that are shared with a worker: %s",
              text_bytes(words, sizeof words, shared->bytes), strerror(errno));
    shared->base = base;
    place(shared);
out:
    return rc;
}

int shared_open(struct shared *out, const struct engine_size *sizes, size_t size_count,
                int32_t channels, struct err *err)
{
    int           rc = ERR_OK, failed;
    struct shared shared;
    char          words[32];

    lay_out(&shared, sizes, size_count, channels);
    shared.fd = os.memfd_create("mural", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (shared.fd < 0)
        RAISE(err, ERR_HOST_MEM, errno, "memory: cannot make memory to share with a worker: %s",
              strerror(errno));
    do /* a signal ends it early, whatever the handler asked for */
        failed = os.fallocate(shared.fd, 0, 0, (int64_t)shared.bytes) != 0 ? errno : 0;
    while (failed == EINTR);
    if (failed == EFBIG)
        RAISE(err, ERR_IO, failed,
              "%s to share with a worker are above the limit on the size of files (ulimit -f), "
              "which counts for such memory too; raise it",
              text_bytes(words, sizeof words, shared.bytes));
    if (failed != 0)
        RAISE(err, ERR_HOST_MEM, failed, "memory: no %s to share with a worker: %s",
              text_bytes(words, sizeof words, shared.bytes), strerror(failed));
    if (os.add_seals(shared.fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        RAISE(err, ERR_HOST_MEM, errno,
              "memory: cannot fix the length of memory shared with a worker: %s", strerror(errno));
    TRY(map(&shared, shared.fd, err));
    *out = shared;
    shared = (struct shared){.fd = -1};
out:
    shared_close(&shared);
    return rc;
}

int shared_attach(struct shared *out, int fd, const struct wire_open *open, struct err *err)
{
    int           rc = ERR_OK;
    struct shared shared;
    int64_t       bytes;

    lay_out(&shared, open->sizes, open->size_count, open->channels);
    bytes = os.seek_end(fd);
    if (bytes < 0 || (uint64_t)bytes != shared.bytes || open->shared_bytes != shared.bytes)
        RAISE(err, ERR_PEER, 0,
              "the supervisor shares %lld bytes and speaks of %llu, but its sizes need %llu",
              (long long)bytes, (unsigned long long)open->shared_bytes,
              (unsigned long long)shared.bytes);
    TRY(map(&shared, fd, err));
    *out = shared;
out:
    return rc;
}

void shared_close(struct shared *shared)
{
    if (shared->base != NULL) (void)os.munmap(shared->base, (size_t)shared->bytes);
    if (shared->bytes > 0 && shared->fd >= 0) (void)os.close(shared->fd);
    *shared = (struct shared){.fd = -1};
}

uint64_t shared_pulse(const struct shared *shared)
{
    return __atomic_load_n(shared->pulse, __ATOMIC_RELAXED);
}

/* ------------------------------------------------------------------------------------ weights */

/* More than the weights of any model, several times; a length costs nothing. */
static const int64_t WEIGHTS_BYTES = (int64_t)1 << 40;

int shared_weights_open(void)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    int       fd = os.memfd_create("mural-weights", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd >= 0 && os.ftruncate(fd, WEIGHTS_BYTES) == 0 && os.add_seals(fd, seals) == 0) return fd;
    log_line(LOG_WARN, "workers share no memory for weights, each has its own: %s",
             strerror(errno));
    if (fd >= 0) (void)os.close(fd);
    return -1;
}
