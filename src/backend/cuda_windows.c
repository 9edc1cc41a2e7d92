/*
 * cuda_windows.c - weights on their way to a GPU that the host has no pinned memory for.
 *
 * Owns a few pinned windows and one thread, the reader, which fills them in order from where the
 * weights are and puts their copies on the stream.  A window is filled again when its copy has
 * ended: that is all the back-pressure there is, and nothing is allocated.
 *
 * Threads: the ring's thread places orders and awaits tickets; the reader takes orders.  Both meet
 * in the fields below `lock`.  Windows, their events and the stream of copies are the reader's
 * alone from the first order on.  A read that fails ends all orders, and is told to the next that
 * awaits one.
 */
#include "backend/cuda_int.h"

enum { WINDOWS = 4, ORDERS_MAX = 8 };

/* One thread reads some 5 GB/s out of the kernel's cache; four of them fed 18 GB/s to a bus that
 * carries 55.  The host has little else to do in a step, but other workers may. */
enum { READ_THREADS_LEAST = 2, READ_THREADS_MOST = 12 };

struct windows {
    struct ring_track track;
    void             *memory[WINDOWS];
    cudaEvent_t       used[WINDOWS];
    uint32_t          next, read_threads;
    pthread_t         reader;
    bool              runs;

    pthread_mutex_t lock;
    pthread_cond_t  changed;
    uint32_t        orders[ORDERS_MAX];
    uint64_t        ordered, taken, issued; /* orders so far; each at most the one before */
    int             status;                 /* of the reader; nobody was told yet         */
    bool            stops;
};

static bool is_stopping(struct windows *windows)
{
    bool stops;

    (void)pthread_mutex_lock(&windows->lock);
    stops = windows->stops;
    (void)pthread_mutex_unlock(&windows->lock);
    return stops;
}

/* Bytes [first, first + count) of a parcel through the next window. */
static int pass(struct windows *windows, uint32_t index, uint64_t first, uint64_t count)
{
    const struct ring_track *track = &windows->track;
    const uint32_t           at = windows->next++ % WINDOWS;
    char                    *target = track->parcels->slots[index % PARCEL_SLOTS] + first;
    int                      status = (int)cudaEventSynchronize(windows->used[at]);

    if (status) return status;
    status = parcels_read(&track->parcels->parcel[index], first, count, windows->memory[at],
                          windows->read_threads);
    if (status) return STATUS_READ + status;
    status = (int)cudaMemcpyAsync(target, windows->memory[at], (size_t)count,
                                  cudaMemcpyHostToDevice, track->copies);
    return status ? status : (int)cudaEventRecord(windows->used[at], track->copies);
}

static int move(struct windows *windows, uint32_t index)
{
    const struct ring_track *track = &windows->track;
    const uint32_t           slot = index % PARCEL_SLOTS;
    const uint64_t           bytes = track->parcels->sizes.bytes[index];
    const uint64_t           most = track->window_bytes;
    int                      status;

    if (track->parcels->parcel[index].host != NULL) return ring_copy(track, index);
    status = (int)cudaStreamWaitEvent(track->copies, track->freed[slot], 0);
    for (uint64_t first = 0; first < bytes && !status && !is_stopping(windows); first += most)
        status = pass(windows, index, first, bytes - first < most ? bytes - first : most);
    return status ? status : (int)cudaEventRecord(track->ready[slot], track->copies);
}

static void *read_orders(void *argument)
{
    struct windows *windows = argument;
    int             status = (int)cudaSetDevice(windows->track.device);

    (void)pthread_mutex_lock(&windows->lock);
    while (!windows->stops) {
        if (windows->taken == windows->ordered) {
            (void)pthread_cond_wait(&windows->changed, &windows->lock);
            continue;
        }
        uint32_t index = windows->orders[windows->taken++ % ORDERS_MAX];
        (void)pthread_mutex_unlock(&windows->lock);
        if (!status) status = move(windows, index);
        (void)pthread_mutex_lock(&windows->lock);
        if (status) {
            windows->status = status;
            windows->taken = windows->ordered;
            status = 0;
        }
        windows->issued = windows->taken;
        (void)pthread_cond_broadcast(&windows->changed);
    }
    (void)pthread_mutex_unlock(&windows->lock);
    return NULL;
}

uint64_t windows_order(struct windows *windows, uint32_t index)
{
    uint64_t ticket;

    (void)pthread_mutex_lock(&windows->lock);
    must(windows->ordered - windows->taken < ORDERS_MAX);
    windows->orders[windows->ordered++ % ORDERS_MAX] = index;
    ticket = windows->ordered;
    (void)pthread_cond_broadcast(&windows->changed);
    (void)pthread_mutex_unlock(&windows->lock);
    return ticket;
}

int windows_await(struct windows *windows, uint64_t ticket)
{
    int status;

    (void)pthread_mutex_lock(&windows->lock);
    while (windows->issued < ticket && windows->status == 0)
        (void)pthread_cond_wait(&windows->changed, &windows->lock);
    status = windows->status;
    /* Orders placed since are looked through first: none may fail behind the caller's back. */
    while (status != 0 && windows->issued < windows->ordered)
        (void)pthread_cond_wait(&windows->changed, &windows->lock);
    windows->status = 0;
    (void)pthread_mutex_unlock(&windows->lock);
    return status;
}

/* Tables of what is pinned lie on the GPU: where it is full, that is what is short. */
static int take_window(struct windows *windows, int i)
{
    int status = (int)cudaHostAlloc(&windows->memory[i], (size_t)windows->track.window_bytes, 0);

    if (status != (int)cudaErrorMemoryAllocation) return status;
    (void)cudaGetLastError(); /* it is told here, and by nothing later */
    return cuda_is_full() ? status : STATUS_HOST;
}

int windows_open(struct windows **out, const struct ring_track *track)
{
    struct err      err = {.code = ERR_OK};
    struct windows *windows = NULL;
    int             status = 0;

    if (os_alloc((void **)&windows, 1, sizeof *windows, "windows of weights", &err) != ERR_OK)
        return STATUS_HOST;
    windows->track = *track;
    windows->read_threads =
        (uint32_t)min_i64(max_i64(os_cpu_count() / 2, READ_THREADS_LEAST), READ_THREADS_MOST);
    (void)pthread_mutex_init(&windows->lock, NULL);
    (void)pthread_cond_init(&windows->changed, NULL);
    for (int i = 0; i < WINDOWS && !status; i++) {
        status = take_window(windows, i);
        if (!status)
            status = (int)cudaEventCreateWithFlags(&windows->used[i], cudaEventDisableTiming);
    }
    if (!status && os.thread_create(&windows->reader, read_orders, windows) != 0)
        status = STATUS_HOST;
    windows->runs = status == 0;
    if (status)
        windows_close(windows);
    else
        *out = windows;
    return status;
}

void windows_close(struct windows *windows)
{
    if (windows == NULL) return;
    (void)pthread_mutex_lock(&windows->lock);
    windows->stops = true;
    (void)pthread_cond_broadcast(&windows->changed);
    (void)pthread_mutex_unlock(&windows->lock);
    if (windows->runs) (void)pthread_join(windows->reader, NULL);
    for (int i = 0; i < WINDOWS; i++) {
        if (windows->used[i] != NULL) {
            (void)cudaEventSynchronize(windows->used[i]);
            (void)cudaEventDestroy(windows->used[i]);
        }
        if (windows->memory[i] != NULL) (void)cudaFreeHost(windows->memory[i]);
    }
    (void)pthread_cond_destroy(&windows->changed);
    (void)pthread_mutex_destroy(&windows->lock);
    os_free(windows);
}
