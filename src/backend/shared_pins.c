/*
 * shared_pins.c - bytes in memory that several processes share, each filled by one of them.
 *
 * Owns the layout of the file, which belongs to no folder and ends with the last process that has
 * it open:
 *
 *     0        u32 count of entries, at most 256
 *     8        entries, each: u64 name, u64 bytes, u32 full, u32 zero
 *     2 MiB    the bytes of entry 0, then of entry 1 ..., each from a multiple of 2 MiB on
 *
 * Entries are added and never changed but for `full`.  Where an entry's bytes lie follows from the
 * lengths of those before it, so no two can overlap, and what lies beyond the file's end is not
 * mapped.  What nobody has touched of the file takes no memory.
 *
 * Locks are the kernel's, on single bytes of the file: byte 0 to add an entry, byte 1 + i to fill
 * entry i.  They end with their process, whatever it dies of.  `full` is set under the lock after
 * the last byte: so bytes of a process that was killed half-way are never taken for good, and who
 * gets the lock next fills them from the start.  Nobody waits longer than a minute, for a process
 * may be stopped, and not dead; bytes that take longer are had elsewhere.
 *
 * What is trusted: the processes that have the file run one program, started by one supervisor, and
 * each writes only what it fills.  A stray write of one would be in the pictures of all, as a stray
 * write to a model's file would.  The supervisor never maps the file, and nothing that stands in it
 * can lead a process outside.  A failure of the system is told once; then this process does
 * without.
 */
#include "backend/shared_pins.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { ENTRIES_MAX = 256, TABLE_LOCK = 0, ENTRY_LOCK = 1, LOOK_MS = 2 };

/* A huge page, where the system makes such of shared memory; most do not. */
static const uint64_t ALIGNMENT = (uint64_t)2 << 20;
/* What one thread brings in at a time. */
static const uint64_t CHUNK_BYTES = (uint64_t)8 << 20;
static const double   WAIT_SECONDS = 60;

struct entry {
    uint64_t name, bytes;
    uint32_t full, zero;
};
struct table {
    uint32_t     count, zero;
    struct entry entries[ENTRIES_MAX];
};

struct shared_pins {
    struct table *table;
    uint64_t      file_bytes;
    int           fd;
    bool          failed; /* told of; nothing is taken any more */
};

static void do_without(struct shared_pins *pins, const char *what, int code)
{
    if (!pins->failed)
        log_line(
            LOG_WARN,
            "memory for weights is not shared with other workers: %s%s%s; this one has its own",
            what, code != 0 ? ": " : "", code != 0 ? strerror(code) : "");
    pins->failed = true;
}

/* ------------------------------------------------------------------------------------- locks */

/* 0, or errno; ETIMEDOUT: somebody has it for too long. */
static int lock(const struct shared_pins *pins, int64_t at)
{
    const double until = os_seconds() + WAIT_SECONDS;

    while (os.lock_byte(pins->fd, at, true) != 0) {
        if (errno != EAGAIN && errno != EACCES && errno != EINTR) return errno;
        if (os_seconds() > until) return ETIMEDOUT;
        (void)os.poll(-1, 0, LOOK_MS);
    }
    return 0;
}

/* One that cannot be let go would hold everybody up until this process ends. */
static void unlock(struct shared_pins *pins, int64_t at)
{
    for (int attempt = 0; attempt < 3; attempt++)
        if (os.lock_byte(pins->fd, at, false) == 0) return;
    do_without(pins, "a lock is not let go", errno);
}

/* ------------------------------------------------------------------------------------- table */

/* Where an entry of `bytes` ends that begins at `at`; false: not within the file. */
static bool end_of(const struct shared_pins *pins, uint64_t at, uint64_t bytes, uint64_t *end_out)
{
    if (bytes == 0 || at > pins->file_bytes || bytes > pins->file_bytes - at) return false;
    *end_out = (at + bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return true;
}

/* An entry of this request, under the lock of the table. */
struct place {
    int32_t  index; /* -1: there is none, and none was made */
    uint64_t at;
};

static struct place add(struct shared_pins *pins, const struct shared_pins_request *request,
                        uint32_t count, uint64_t at)
{
    struct entry *entry = &pins->table->entries[count % ENTRIES_MAX];
    struct place  place = {.index = -1, .at = at};
    uint64_t      end;

    if (!request->may_make) return place;
    if (count == ENTRIES_MAX || !end_of(pins, at, request->bytes, &end)) {
        do_without(pins, "its file is full", 0);
        return place;
    }
    *entry = (struct entry){.name = request->name, .bytes = request->bytes};
    /* The entry first: who dies in between has added none. */
    __atomic_store_n(&pins->table->count, count + 1, __ATOMIC_RELEASE);
    place.index = (int32_t)count;
    return place;
}

static struct place find_or_add(struct shared_pins *pins, const struct shared_pins_request *request)
{
    const uint32_t count = __atomic_load_n(&pins->table->count, __ATOMIC_ACQUIRE);
    struct place   place = {.index = -1, .at = ALIGNMENT};
    uint64_t       end;

    if (count > ENTRIES_MAX) do_without(pins, "its table cannot be true", 0);
    for (uint32_t i = 0; i < count && !pins->failed; i++) {
        /* Once: what is checked is what is used. */
        uint64_t bytes = __atomic_load_n(&pins->table->entries[i].bytes, __ATOMIC_RELAXED);
        if (!end_of(pins, place.at, bytes, &end)) {
            do_without(pins, "its table cannot be true", 0);
        } else if (pins->table->entries[i].name == request->name && bytes == request->bytes) {
            place.index = (int32_t)i;
            return place;
        } else {
            place.at = end;
        }
    }
    return pins->failed ? place : add(pins, request, count, place.at);
}

/* ------------------------------------------------------------------------------------- bytes */

/* All pages, by all threads.  0 or errno: writing to a page for which there is no memory would be a
 * signal. */
static int populate(char *memory, uint64_t bytes)
{
    const int64_t chunks = ceil_div_i64((int64_t)bytes, (int64_t)CHUNK_BYTES);
    int           failed = 0;

#pragma omp parallel for schedule(dynamic) reduction(max : failed)
    for (int64_t i = 0; i < chunks; i++) {
        uint64_t at = (uint64_t)i * CHUNK_BYTES;
        uint64_t count = bytes - at < CHUNK_BYTES ? bytes - at : CHUNK_BYTES;

        if (os.populate(memory + at, (size_t)count) != 0) failed = errno;
    }
    return failed;
}

static bool is_full(const struct shared_pins *pins, struct place place)
{
    return __atomic_load_n(&pins->table->entries[place.index].full, __ATOMIC_ACQUIRE) == 1;
}

/* Under the entry's lock.  What was not filled to the end gives its memory back. */
static int make(struct shared_pins *pins, struct place place,
                const struct shared_pins_request *request, void *memory, bool *made_out)
{
    int failed = populate(memory, request->bytes), status = 0;

    if (failed != 0)
        do_without(pins, "the system has no such memory left", failed);
    else
        status = request->fill(request->user, memory);
    *made_out = failed == 0 && status == 0;
    if (*made_out)
        __atomic_store_n(&pins->table->entries[place.index].full, 1, __ATOMIC_RELEASE);
    else
        (void)os.fallocate(pins->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (int64_t)place.at,
                           (int64_t)request->bytes);
    return status;
}

/* Full when it returns true; *status_out: of `fill`. */
static bool await_full(struct shared_pins *pins, struct place place,
                       const struct shared_pins_request *request, void *memory, bool *made_out,
                       int *status_out)
{
    int failed;

    if (is_full(pins, place)) return true;
    failed = lock(pins, ENTRY_LOCK + place.index);
    if (failed != 0) {
        do_without(pins, "another one takes too long, or a lock is not to be had", failed);
        return false;
    }
    if (!is_full(pins, place)) *status_out = make(pins, place, request, memory, made_out);
    unlock(pins, ENTRY_LOCK + place.index);
    return is_full(pins, place);
}

int shared_pins_take(struct shared_pins *pins, const struct shared_pins_request *request,
                     void **memory_out, bool *made_out)
{
    struct place place;
    void        *memory;
    int          failed, status = 0;

    must(request->bytes > 0);
    *memory_out = NULL;
    *made_out = false;
    if (pins->failed) return 0;
    failed = lock(pins, TABLE_LOCK);
    if (failed != 0) do_without(pins, "a lock is not to be had", failed);
    if (failed != 0) return 0;
    place = find_or_add(pins, request);
    unlock(pins, TABLE_LOCK);
    if (place.index < 0 || pins->failed) return 0;
    memory = os.mmap(NULL, (size_t)request->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pins->fd,
                     (int64_t)place.at);
    if (memory == MAP_FAILED) {
        do_without(pins, "it cannot be mapped", errno);
        return 0;
    }
    (void)madvise(memory, (size_t)request->bytes, MADV_HUGEPAGE);
    if (await_full(pins, place, request, memory, made_out, &status))
        *memory_out = memory;
    else
        shared_pins_give(memory, request->bytes);
    return status;
}

void shared_pins_give(void *memory, uint64_t bytes)
{
    (void)os.munmap(memory, (size_t)bytes);
}

/* --------------------------------------------------------------------------------------- open */

struct shared_pins *shared_pins_open(int fd)
{
    struct err          ignored = {.code = ERR_OK};
    struct shared_pins *pins = NULL;
    int64_t             length;

    if (fd == 0) return NULL;
    if (os_alloc((void **)&pins, 1, sizeof *pins, "shared weights", &ignored) != ERR_OK)
        return NULL;
    pins->fd = fd;
    length = os.seek_end(fd);
    pins->file_bytes = length < 0 ? 0 : (uint64_t)length;
    if (length < (int64_t)ALIGNMENT) {
        do_without(pins, "descriptor is no file for it", length < 0 ? errno : 0);
        goto out;
    }
    pins->table = os.mmap(NULL, sizeof *pins->table, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (pins->table != MAP_FAILED) return pins;
    pins->table = NULL;
    do_without(pins, "it cannot be mapped", errno);
out:
    shared_pins_close(pins);
    return NULL;
}

void shared_pins_close(struct shared_pins *pins)
{
    if (pins == NULL) return;
    if (pins->table != NULL) (void)os.munmap(pins->table, sizeof *pins->table);
    os_free(pins);
}
