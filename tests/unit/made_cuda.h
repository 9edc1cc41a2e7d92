/*
 * made_cuda.h - a CUDA runtime made of threads, for sources that a test compiles against it.
 *
 * Streams are threads with queues, events count their records, copies and uses take random times.
 * A copy reads its source when it is carried out, as a GPU does from pinned memory: what is
 * overwritten too early shows.  Any call may be made to fail, and memory that is pinned to be
 * short; what failed is remembered until it is asked for, as by the runtime.  Memory is registered
 * once at a time, and what is not registered cannot be given back: the process stops.
 */
#ifndef MADE_CUDA_H
#define MADE_CUDA_H

#include <limits.h>
#include <pthread.h>

#include <cuda_runtime_api.h>

struct CUevent_st {
    pthread_mutex_t lock;
    pthread_cond_t  came;
    uint64_t        recorded, done; /* asked for; come to */
    double          seconds;
};

enum kind { KIND_COPY, KIND_RECORD, KIND_WAIT, KIND_USE };
struct use {
    const float *values;
    int64_t      count;
    float        first;
    int         *bad;
};
struct job {
    enum kind   kind;
    cudaEvent_t event;
    uint64_t    record;
    char       *target;
    const char *source;
    size_t      bytes, rows, target_step, source_step; /* bytes of each row */
    struct use  use;
    struct job *next;
};
struct CUstream_st {
    pthread_t       thread;
    pthread_mutex_t lock;
    pthread_cond_t  changed;
    struct job     *head, *tail;
    bool            works, stops;
    uint64_t        random;
};

static int copy_us, use_us, pins_left;

/* Calls until one fails, once; bytes that may be pinned in all; what failed last in this thread. */
static int                       calls_left = INT_MAX;
static int64_t                   pin_bytes_left = INT64_MAX;
static _Thread_local cudaError_t last_error;

static inline cudaError_t told(cudaError_t status)
{
    if (status != cudaSuccess) last_error = status;
    return status;
}

static inline bool fails(void)
{
    bool now = __atomic_sub_fetch(&calls_left, 1, __ATOMIC_RELAXED) == 0;

    if (now) (void)told(cudaErrorLaunchFailure);
    return now;
}
#define MAY_FAIL                                                                                   \
    do {                                                                                           \
        if (fails()) return cudaErrorLaunchFailure;                                                \
    } while (0)

/* What was asked for so far, and where the last copy came from. */
static struct {
    int         copies, waits, registers, unregisters;
    const void *source;
} asked;
#define COUNT(what) ((void)__atomic_add_fetch(&asked.what, 1, __ATOMIC_RELAXED))

/* Whose bytes are pinned, and how many. */
enum { PINNED_MAX = 64 };
static struct {
    void  *memory;
    size_t bytes;
} pinned[PINNED_MAX];

static inline cudaError_t pin(void *memory, size_t bytes)
{
    int at = 0;

    if (pin_bytes_left < (int64_t)bytes) return told(cudaErrorMemoryAllocation);
    while (at < PINNED_MAX && pinned[at].memory != NULL)
        at++;
    must(at < PINNED_MAX);
    pinned[at].memory = memory;
    pinned[at].bytes = bytes;
    pin_bytes_left -= (int64_t)bytes;
    return cudaSuccess;
}

static inline void unpin_memory(const void *memory)
{
    int at = 0;

    while (at < PINNED_MAX && pinned[at].memory != memory)
        at++;
    must(at < PINNED_MAX);
    pin_bytes_left += (int64_t)pinned[at].bytes;
    pinned[at].memory = NULL;
}

static inline void nap(struct CUstream_st *stream, int most_us)
{
    if (most_us > 0) usleep((useconds_t)random_between(&stream->random, 0, most_us));
}

static inline void look(const struct use *use)
{
    for (int64_t i = 0; i < use->count; i++)
        if (use->values[i] != use->first + (float)(i % 4096)) {
            (void)__atomic_fetch_add(use->bad, 1, __ATOMIC_RELAXED);
            return;
        }
}

static inline void work(struct CUstream_st *stream, const struct job *job)
{
    switch (job->kind) {
    case KIND_COPY:
        nap(stream, copy_us);
        for (size_t row = 0; row < job->rows; row++)
            memcpy(job->target + row * job->target_step, job->source + row * job->source_step,
                   job->bytes);
        break;
    case KIND_RECORD:
        (void)pthread_mutex_lock(&job->event->lock);
        job->event->done = job->record;
        job->event->seconds = os_seconds();
        (void)pthread_cond_broadcast(&job->event->came);
        (void)pthread_mutex_unlock(&job->event->lock);
        break;
    case KIND_WAIT:
        (void)pthread_mutex_lock(&job->event->lock);
        while (job->event->done < job->record)
            (void)pthread_cond_wait(&job->event->came, &job->event->lock);
        (void)pthread_mutex_unlock(&job->event->lock);
        break;
    case KIND_USE:
        look(&job->use);
        nap(stream, use_us);
        look(&job->use);
        break;
    }
}

static inline void *run_stream(void *argument)
{
    struct CUstream_st *stream = argument;

    (void)pthread_mutex_lock(&stream->lock);
    while (stream->head != NULL || !stream->stops) {
        struct job *job = stream->head;
        if (job == NULL) {
            (void)pthread_cond_wait(&stream->changed, &stream->lock);
            continue;
        }
        stream->head = job->next;
        if (stream->head == NULL) stream->tail = NULL;
        stream->works = true;
        (void)pthread_mutex_unlock(&stream->lock);
        work(stream, job);
        free(job);
        (void)pthread_mutex_lock(&stream->lock);
        stream->works = false;
        (void)pthread_cond_broadcast(&stream->changed);
    }
    (void)pthread_mutex_unlock(&stream->lock);
    return NULL;
}

static inline cudaError_t push(cudaStream_t stream, struct job job)
{
    struct job *copy = malloc(sizeof *copy);

    must(copy != NULL);
    *copy = job;
    (void)pthread_mutex_lock(&stream->lock);
    if (stream->tail != NULL)
        stream->tail->next = copy;
    else
        stream->head = copy;
    stream->tail = copy;
    (void)pthread_cond_broadcast(&stream->changed);
    (void)pthread_mutex_unlock(&stream->lock);
    return cudaSuccess;
}

static inline cudaError_t made_StreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    cudaStream_t stream;

    (void)flags;
    MAY_FAIL;
    stream = calloc(1, sizeof *stream);
    must(stream != NULL);
    stream->random = (uint64_t)(uintptr_t)stream;
    (void)pthread_mutex_init(&stream->lock, NULL);
    (void)pthread_cond_init(&stream->changed, NULL);
    must(pthread_create(&stream->thread, NULL, run_stream, stream) == 0);
    *out = stream;
    return cudaSuccess;
}

static inline cudaError_t made_StreamDestroy(cudaStream_t stream)
{
    (void)pthread_mutex_lock(&stream->lock);
    stream->stops = true;
    (void)pthread_cond_broadcast(&stream->changed);
    (void)pthread_mutex_unlock(&stream->lock);
    (void)pthread_join(stream->thread, NULL);
    free(stream);
    return cudaSuccess;
}

static inline cudaError_t made_StreamSynchronize(cudaStream_t stream)
{
    COUNT(waits);
    (void)pthread_mutex_lock(&stream->lock);
    while (stream->head != NULL || stream->works)
        (void)pthread_cond_wait(&stream->changed, &stream->lock);
    (void)pthread_mutex_unlock(&stream->lock);
    return cudaSuccess;
}

static inline cudaError_t made_StreamQuery(cudaStream_t stream)
{
    bool busy;

    MAY_FAIL;
    (void)pthread_mutex_lock(&stream->lock);
    busy = stream->head != NULL || stream->works;
    (void)pthread_mutex_unlock(&stream->lock);
    return told(busy ? cudaErrorNotReady : cudaSuccess);
}

static inline cudaError_t made_EventCreate(cudaEvent_t *out)
{
    MAY_FAIL;
    *out = calloc(1, sizeof **out);
    must(*out != NULL);
    (void)pthread_mutex_init(&(*out)->lock, NULL);
    (void)pthread_cond_init(&(*out)->came, NULL);
    return cudaSuccess;
}

static inline cudaError_t made_EventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    (void)flags;
    return made_EventCreate(out);
}

static inline cudaError_t made_EventDestroy(cudaEvent_t event)
{
    free(event);
    return cudaSuccess;
}

static inline cudaError_t made_EventRecord(cudaEvent_t event, cudaStream_t stream)
{
    uint64_t record;

    MAY_FAIL;
    (void)pthread_mutex_lock(&event->lock);
    record = ++event->recorded;
    (void)pthread_mutex_unlock(&event->lock);
    return push(stream, (struct job){.kind = KIND_RECORD, .event = event, .record = record});
}

/* For what was recorded before this call, as CUDA has it. */
static inline cudaError_t made_StreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                               unsigned flags)
{
    uint64_t record;

    (void)flags;
    MAY_FAIL;
    (void)pthread_mutex_lock(&event->lock);
    record = event->recorded;
    (void)pthread_mutex_unlock(&event->lock);
    return push(stream, (struct job){.kind = KIND_WAIT, .event = event, .record = record});
}

static inline cudaError_t made_EventSynchronize(cudaEvent_t event)
{
    COUNT(waits);
    MAY_FAIL;
    (void)pthread_mutex_lock(&event->lock);
    for (uint64_t record = event->recorded; event->done < record;)
        (void)pthread_cond_wait(&event->came, &event->lock);
    (void)pthread_mutex_unlock(&event->lock);
    return cudaSuccess;
}

static inline cudaError_t made_EventElapsedTime(float *milliseconds, cudaEvent_t begin,
                                                cudaEvent_t end)
{
    MAY_FAIL;
    if (begin->recorded == 0 || end->recorded == 0) return told(cudaErrorInvalidResourceHandle);
    *milliseconds = (float)(1e3 * (end->seconds - begin->seconds));
    return cudaSuccess;
}

static inline cudaError_t made_Memcpy2DAsync(void *target, size_t target_step, const void *source,
                                             size_t source_step, size_t bytes, size_t rows,
                                             enum cudaMemcpyKind kind, cudaStream_t stream)
{
    must(kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToHost);
    MAY_FAIL;
    COUNT(copies);
    __atomic_store_n(&asked.source, source, __ATOMIC_RELAXED);
    return push(stream, (struct job){.kind = KIND_COPY,
                                     .target = target,
                                     .source = source,
                                     .bytes = bytes,
                                     .rows = rows,
                                     .target_step = target_step,
                                     .source_step = source_step});
}

static inline cudaError_t made_MemcpyAsync(void *target, const void *source, size_t bytes,
                                           enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return made_Memcpy2DAsync(target, bytes, source, bytes, bytes, 1, kind, stream);
}

static inline cudaError_t made_HostRegister(void *memory, size_t bytes, unsigned flags)
{
    cudaError_t status;

    (void)flags;
    MAY_FAIL;
    for (int i = 0; i < PINNED_MAX; i++)
        if (pinned[i].memory != NULL &&
            (char *)memory < (char *)pinned[i].memory + pinned[i].bytes &&
            (char *)pinned[i].memory < (char *)memory + bytes)
            return told(cudaErrorHostMemoryAlreadyRegistered);
    status = pins_left-- > 0 ? pin(memory, bytes) : told(cudaErrorMemoryAllocation);
    if (status == cudaSuccess) COUNT(registers);
    return status;
}

static inline cudaError_t made_HostUnregister(void *memory)
{
    COUNT(unregisters);
    unpin_memory(memory);
    return cudaSuccess;
}

static inline cudaError_t made_HostAlloc(void **out, size_t bytes, unsigned flags)
{
    void       *memory;
    cudaError_t status;

    (void)flags;
    MAY_FAIL;
    memory = malloc(bytes);
    must(memory != NULL);
    status = pin(memory, bytes);
    if (status == cudaSuccess)
        *out = memory;
    else
        free(memory);
    return status;
}

static inline cudaError_t made_FreeHost(void *memory)
{
    unpin_memory(memory);
    free(memory);
    return cudaSuccess;
}

static inline cudaError_t made_GetLastError(void)
{
    cudaError_t status = last_error;

    last_error = cudaSuccess;
    return status;
}

static inline cudaError_t made_SetDevice(int device)
{
    (void)device;
    MAY_FAIL;
    return cudaSuccess;
}

static inline const char *made_GetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : "an error";
}

#define cudaStreamCreateWithFlags made_StreamCreateWithFlags
#define cudaStreamDestroy         made_StreamDestroy
#define cudaStreamSynchronize     made_StreamSynchronize
#define cudaStreamQuery           made_StreamQuery
#define cudaStreamWaitEvent       made_StreamWaitEvent
#define cudaEventCreate           made_EventCreate
#define cudaEventCreateWithFlags  made_EventCreateWithFlags
#define cudaEventDestroy          made_EventDestroy
#define cudaEventRecord           made_EventRecord
#define cudaEventSynchronize      made_EventSynchronize
#define cudaEventElapsedTime      made_EventElapsedTime
#define cudaMemcpyAsync           made_MemcpyAsync
#define cudaMemcpy2DAsync         made_Memcpy2DAsync
#define cudaHostRegister          made_HostRegister
#define cudaHostUnregister        made_HostUnregister
#define cudaHostAlloc             made_HostAlloc
#define cudaFreeHost              made_FreeHost
#define cudaGetLastError          made_GetLastError
#define cudaSetDevice             made_SetDevice
#define cudaGetErrorString        made_GetErrorString

#endif
