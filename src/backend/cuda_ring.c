/*
 * cuda_ring.c - weights that visit a GPU, copied ahead of their use.
 *
 * Owns two slots of device memory, the stream of copies and the pinned memory that they come from.
 * Parcel p always visits slot p % 2:
 *
 *     operations   wait ready[s] .. use p .. record freed[s]
 *     copies                                 wait freed[s] .. copy p + 2 .. record ready[s]
 *
 * So while one parcel is used the next is on its way or there, and the host waits for neither.
 * After the last parcels come the first of the next round; a parcel that has its slot to itself
 * stays. Parcels used in another order, as after an operation that failed, are copied when they
 * arrive.
 *
 * Pinned memory is taken in the order of the parcels, as far as pinned_bytes go and the host gives
 * it: memory that workers share where there is such (parcels.h), else memory of our own, with huge
 * pages; shared memory seldom gets those, and the driver then has more pages to pin.  The rest
 * passes through windows, and then every copy is the reader's to begin, so that copies
 * keep their order.  The events freed[] and ready[] may be used by it because an order is placed
 * after its slot's record and awaited before the next.
 *
 * Read next: cuda_windows.c.
 */
#include "backend/cuda_ring.h"

#include "backend/parcels.h"

#include <stdio.h>
#include <sys/mman.h>

/* Long enough that a copy's start costs nothing beside it; four of them are a quarter of a
 * gigabyte, whatever the model. */
#define WINDOW_BYTES ((uint64_t)64 << 20)

/* A third of a millisecond on the fastest bus of today. */
#define COPY_BYTES ((uint64_t)16 << 20)

/* When the stream of operations came to a wait, and when it went on. */
struct lap {
    cudaEvent_t begin, end;
};

struct ring {
    struct ring_track track;
    struct arena     *arena;
    struct windows   *windows; /* NULL: every parcel is pinned */
    uint64_t          pinned_left, parcel_count, copied_bytes;
    uint64_t          found_bytes;  /* of the pinned ones: another process has read them */
    uint64_t          pinned_bytes; /* and what that took: reading, and the driver */
    double            read_seconds, pin_seconds;
    uint64_t          tickets[PARCEL_SLOTS]; /* of the last order, with windows */
    bool              started;
    struct lap        laps[PARCELS_MAX];
    uint32_t          lap_count; /* since the last wait; more than there are: not timed */
};

/* ------------------------------------------------------------------------------------- pinned */

static bool is_pinned(struct ring *ring, void *memory, uint64_t bytes)
{
    const double began = os_seconds();
    cudaError_t  status = cudaHostRegister(memory, (size_t)bytes, cudaHostRegisterDefault);

    ring->pin_seconds += os_seconds() - began;
    if (status != cudaSuccess) (void)cudaGetLastError();
    return status == cudaSuccess;
}

/* What is there already is taken whatever is left: it costs the host nothing more. */
static int pin_shared(struct ring *ring, uint32_t index)
{
    struct parcels *parcels = ring->track.parcels;
    struct parcel  *parcel = &parcels->parcel[index];
    const uint64_t  bytes = parcels->sizes.bytes[index];
    const double    began = os_seconds();
    bool            fits = bytes <= ring->pinned_left, made;
    int             status = parcels_take_shared(parcels, index, fits, &made);

    ring->read_seconds += os_seconds() - began;
    if (made && fits) ring->pinned_left -= bytes;
    if (status != 0) return STATUS_READ + status;
    if (parcel->host == NULL) return 0;
    if (is_pinned(ring, parcel->host, bytes)) {
        ring->found_bytes += made ? 0 : bytes;
        return 0;
    }
    log_line(LOG_WARN, "the driver pins no memory that is shared with other workers");
    parcels_give_shared(parcels, index);
    parcels_share_no_more(parcels);
    return 0;
}

/* Pages that are there already are pinned much faster than those that the driver has to ask for one
 * by one: so all threads fill them first. */
static int pin_own(struct ring *ring, uint32_t index)
{
    struct parcel *parcel = &ring->track.parcels->parcel[index];
    const uint64_t bytes = ring->track.parcels->sizes.bytes[index];
    const double   began = os_seconds();
    int            status;
    void          *memory = os.mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED) return 0;
    (void)madvise(memory, (size_t)bytes, MADV_HUGEPAGE);
    status = parcels_read(parcel, 0, bytes, memory, 0);
    ring->read_seconds += os_seconds() - began;
    if (status == 0 && is_pinned(ring, memory, bytes)) {
        parcel->host = memory;
        ring->pinned_left -= bytes;
        return 0;
    }
    (void)os.munmap(memory, (size_t)bytes);
    return status == 0 ? 0 : STATUS_READ + status;
}

static void unpin(struct parcels *parcels, uint32_t index)
{
    struct parcel *parcel = &parcels->parcel[index];

    if (parcel->host == NULL) return;
    (void)cudaHostUnregister(parcel->host);
    if (parcel->shared)
        parcels_give_shared(parcels, index);
    else
        (void)os.munmap(parcel->host, (size_t)parcels->sizes.bytes[index]);
    parcel->host = NULL;
}

/* A host that pins little may have given all to the blocks before: the last ones make room. */
static int open_windows(struct ring *ring)
{
    struct parcels *parcels = ring->track.parcels;
    int             status = windows_open(&ring->windows, &ring->track);

    for (uint32_t i = parcels->sizes.count; i-- > 0 && status == STATUS_HOST;) {
        if (parcels->parcel[i].host == NULL) continue;
        unpin(parcels, i);
        ring->pinned_bytes -= parcels->sizes.bytes[i];
        status = windows_open(&ring->windows, &ring->track);
    }
    return status;
}

int ring_settle(struct ring *ring, uint32_t index)
{
    struct parcel *parcel = &ring->track.parcels->parcel[index];
    uint64_t       bytes = ring->track.parcels->sizes.bytes[index];
    int            status;
    char           words[32];

    if (bytes == 0) return 0;
    status = pin_shared(ring, index);
    if (status == 0 && parcel->host == NULL && bytes <= ring->pinned_left) {
        status = pin_own(ring, index);
        if (parcel->host == NULL && status == 0) {
            log_line(LOG_WARN,
                     "the host pins no more memory after block %u that visits the GPU; "
                     "the rest is read through windows, and slower",
                     index);
            ring->pinned_left = 0;
        }
    }
    if (status != 0) return status;
    if (parcel->host != NULL) {
        ring->pinned_bytes += bytes;
        return 0;
    }
    if (ring->windows == NULL) {
        log_line(LOG_DEBUG, "windows: %s are read from where the weights are whenever they travel",
                 text_bytes(words, sizeof words, bytes));
        status = open_windows(ring);
    }
    return status;
}

/* ------------------------------------------------------------------------------------- copies */

/* In pieces: the engine that copies takes turns between streams only where one copy ends, and the
 * next step's latents and tables are not to wait for a whole block. */
int ring_copy(const struct ring_track *track, uint32_t index)
{
    const uint32_t slot = index % PARCEL_SLOTS;
    const uint64_t bytes = track->parcels->sizes.bytes[index];
    const char    *source = track->parcels->parcel[index].host;
    int            status = (int)cudaStreamWaitEvent(track->copies, track->freed[slot], 0);

    for (uint64_t at = 0; at < bytes && !status; at += COPY_BYTES) {
        size_t count = (size_t)(bytes - at < COPY_BYTES ? bytes - at : COPY_BYTES);
        status = (int)cudaMemcpyAsync(track->parcels->slots[slot] + at, source + at, count,
                                      cudaMemcpyHostToDevice, track->copies);
    }
    return status ? status : (int)cudaEventRecord(track->ready[slot], track->copies);
}

/* The slot is the parcel's as soon as freed[slot] has come, which was recorded before. */
static int order(struct ring *ring, uint32_t index)
{
    const uint32_t slot = index % PARCEL_SLOTS;

    ring->track.parcels->holds[slot] = (int32_t)index;
    ring->copied_bytes += ring->track.parcels->sizes.bytes[index];
    if (ring->windows == NULL) return ring_copy(&ring->track, index);
    ring->tickets[slot] = windows_order(ring->windows, index);
    return 0;
}

static void forget(struct ring *ring)
{
    for (int slot = 0; slot < PARCEL_SLOTS; slot++)
        ring->track.parcels->holds[slot] = -1;
}

/* Between two records, so that a wait which ended at once shows as next to nothing. */
static int wait_ready(struct ring *ring, uint32_t slot, cudaStream_t stream)
{
    struct lap *lap = ring->lap_count < PARCELS_MAX ? &ring->laps[ring->lap_count] : NULL;
    int         status = lap == NULL ? 0 : (int)cudaEventRecord(lap->begin, stream);

    if (!status) status = (int)cudaStreamWaitEvent(stream, ring->track.ready[slot], 0);
    if (!status && lap != NULL) status = (int)cudaEventRecord(lap->end, stream);
    if (!status && lap != NULL) ring->lap_count++;
    return status;
}

int ring_arrive(struct ring *ring, uint32_t index, cudaStream_t stream)
{
    const uint32_t slot = index % PARCEL_SLOTS;
    int            status = 0;

    if (ring->track.parcels->holds[slot] != (int32_t)index) {
        status = (int)cudaEventRecord(ring->track.freed[slot], stream);
        if (!status) status = order(ring, index);
    }
    if (!status && ring->windows != NULL)
        status = windows_await(ring->windows, ring->tickets[slot]);
    if (!status) status = wait_ready(ring, slot, stream);
    if (status) forget(ring);
    return status;
}

int ring_depart(struct ring *ring, uint32_t index, cudaStream_t stream)
{
    const uint32_t slot = index % PARCEL_SLOTS, next = parcels_after(ring->track.parcels, index);
    int            status;

    if (next == index) return 0;
    status = (int)cudaEventRecord(ring->track.freed[slot], stream);
    if (!status) status = order(ring, next);
    if (status) forget(ring);
    return status;
}

static int start(struct ring *ring)
{
    int  status = 0;
    char words[32], found[32];

    if (ring->pinned_bytes > 0)
        log_line(LOG_INFO,
                 "weights: %s that visit were pinned, %s of them found in memory that workers "
                 "share: read in %.2f s, pinned in %.2f s",
                 text_bytes(words, sizeof words, ring->pinned_bytes),
                 text_bytes(found, sizeof found, ring->found_bytes), ring->read_seconds,
                 ring->pin_seconds);
    ring->started = true;
    for (uint32_t i = 0; i < PARCEL_SLOTS && i < ring->parcel_count && !status; i++)
        status = order(ring, i);
    if (status) forget(ring);
    return status;
}

int ring_wait(struct ring *ring, struct backend_link *link)
{
    float milliseconds = 0;
    int   status = (int)cudaStreamQuery(ring->track.copies);

    if (status == (int)cudaErrorNotReady) { /* no failure, but some runtimes remember it as one */
        (void)cudaGetLastError();
        status = 0;
    }
    for (uint32_t i = 0; i < ring->lap_count && !status; i++) {
        status = (int)cudaEventElapsedTime(&milliseconds, ring->laps[i].begin, ring->laps[i].end);
        link->stall_seconds += 1e-3 * (double)milliseconds;
    }
    ring->lap_count = 0;
    link->bytes += ring->copied_bytes;
    ring->copied_bytes = 0;
    if (!status && !ring->started && ring->track.parcels->sizes.count == ring->parcel_count)
        status = start(ring);
    if (status) forget(ring);
    return status;
}

/* --------------------------------------------------------------------------------------- open */

bool ring_holds(const struct ring *ring, const void *data)
{
    return ring != NULL && arena_holds(ring->arena, data, 1);
}

static int open_events(struct ring *ring)
{
    struct ring_track *track = &ring->track;
    int status = (int)cudaStreamCreateWithFlags(&track->copies, cudaStreamNonBlocking);

    for (int slot = 0; slot < PARCEL_SLOTS && !status; slot++) {
        status = (int)cudaEventCreateWithFlags(&track->ready[slot], cudaEventDisableTiming);
        if (!status)
            status = (int)cudaEventCreateWithFlags(&track->freed[slot], cudaEventDisableTiming);
    }
    for (int i = 0; i < PARCELS_MAX && !status; i++) {
        status = (int)cudaEventCreate(&ring->laps[i].begin);
        if (!status) status = (int)cudaEventCreate(&ring->laps[i].end);
    }
    return status;
}

int ring_open(struct ring **out, struct parcels *parcels, const struct backend_options *options,
              struct err *err)
{
    int            rc = ERR_OK, status;
    const uint64_t bytes = backend_ring_bytes(&options->parcels);
    struct ring   *ring = NULL;

    *out = NULL;
    if (bytes == 0) goto out;
    TRY(os_alloc((void **)&ring, 1, sizeof *ring, "a ring of weights", err));
    ring->track.parcels = parcels;
    ring->track.device = options->device;
    ring->track.window_bytes = WINDOW_BYTES;
    ring->pinned_left = options->pinned_bytes;
    ring->parcel_count = options->parcels.count;
    parcels_share(parcels, options->shared_fd);
    status = open_events(ring);
    if (status != 0)
        RAISE(err, status == (int)cudaErrorMemoryAllocation ? ERR_DEVICE_MEM : ERR_DEVICE, status,
              "device: no stream or events for weights on GPU %d: %s", options->device,
              cudaGetErrorString((cudaError_t)status));
    TRY(options->pool != NULL
            ? arena_open_in(&ring->arena, options->pool, bytes, err)
            : arena_open_on(&ring->arena, &vmem_cuda, options->device, bytes, err));
    TRY(arena_seal(ring->arena, bytes, err));
    for (uint32_t slot = 0; slot < PARCEL_SLOTS; slot++) {
        parcels->slot_bytes[slot] = parcels_slot_bytes(&options->parcels, slot);
        parcels->slots[slot] = arena_take(ring->arena, parcels->slot_bytes[slot], "a slot");
    }
    *out = ring;
    ring = NULL;
out:
    ring_close(ring);
    return rc;
}

/* Copies may be under way: their source is freed when they have ended. */
void ring_close(struct ring *ring)
{
    if (ring == NULL) return;
    struct ring_track *track = &ring->track;

    windows_close(ring->windows);
    if (track->copies != NULL) (void)cudaStreamSynchronize(track->copies);
    for (uint32_t i = 0; i < track->parcels->sizes.count; i++)
        unpin(track->parcels, i);
    for (int i = 0; i < PARCELS_MAX; i++) {
        if (ring->laps[i].begin != NULL) (void)cudaEventDestroy(ring->laps[i].begin);
        if (ring->laps[i].end != NULL) (void)cudaEventDestroy(ring->laps[i].end);
    }
    for (int slot = 0; slot < PARCEL_SLOTS; slot++) {
        if (track->ready[slot] != NULL) (void)cudaEventDestroy(track->ready[slot]);
        if (track->freed[slot] != NULL) (void)cudaEventDestroy(track->freed[slot]);
    }
    if (track->copies != NULL) (void)cudaStreamDestroy(track->copies);
    arena_close(ring->arena);
    os_free(ring);
}
