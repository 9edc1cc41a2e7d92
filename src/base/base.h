/*
 * base.h - what C forgot: errors, checked arithmetic, log lines, files, clocks, JSON, hashes.
 *
 * Rank 0: every other folder may include this door; it includes only libc and jansson.
 * Nothing here knows of pictures, models or devices.
 */
#ifndef MURAL_BASE_H
#define MURAL_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>
#include <pthread.h>

/* ---------------------------------------------------------------------------------- errors */

enum err_code {
    ERR_OK = 0,
    ERR_USAGE,      /* the command line or a size asked for makes no sense      */
    ERR_CONFIG,     /* a config.yaml or settings file is wrong                   */
    ERR_FORMAT,     /* a model, draft or poster file is not what it should be    */
    ERR_IO,         /* the operating system refused a file operation             */
    ERR_HOST_MEM,   /* host memory is or would be short                          */
    ERR_DEVICE_MEM, /* device memory is or would be short                        */
    ERR_DEVICE,     /* a device or a compute library failed                      */
    ERR_NUMERIC,    /* NaN or infinity where numbers are needed                  */
    ERR_PEER,       /* another process of ours died or lied                      */
    ERR_CANCELLED,  /* somebody asked us to stop                                 */
    ERR_PARTIAL     /* some tiles are missing; what is done is safe              */
};

struct err {
    enum err_code code;
    int           sys;       /* errno or a library's status; 0 when none         */
    const char   *where;     /* "file.c:123" of the first raise                  */
    char          text[512]; /* one sentence, no newline, no trailing period     */
};

/* Record an error and return its code.  The first raise wins: a caller adds where it was through
 * err_context, never a second sentence.  `err` may not be NULL. */
int err_set(struct err *err, enum err_code code, int sys, const char *where, const char *format,
            ...) __attribute__((format(printf, 5, 6)));

/* Put "<text>: " before the sentence of an error that is already set. */
void err_context(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* May the same call succeed when it is made again?  Devices, numbers and other processes: yes;
 * files: only when the call was interrupted; everything else: no. */
bool err_is_retryable(const struct err *err);

/* "usage", "config", ...; never NULL. */
const char *err_name(enum err_code code);

#define ERR_STRING_(x) #x
#define ERR_STRING(x)  ERR_STRING_(x)
#define ERR_WHERE      __FILE__ ":" ERR_STRING(__LINE__)

/* Functions that can fail hold `int rc = ERR_OK;` and one label `out:` which cleans up and returns
 * rc. */
#define RAISE(err, code, sys, ...)                                                                 \
    do {                                                                                           \
        rc = err_set((err), (code), (sys), ERR_WHERE, __VA_ARGS__);                                \
        goto out;                                                                                  \
    } while (0)
#define TRY(call)                                                                                  \
    do {                                                                                           \
        rc = (call);                                                                               \
        if (rc != ERR_OK) goto out;                                                                \
    } while (0)

/* A broken promise between our own functions: prints condition and place, then aborts, also in
 * release builds. */
#define must(cond)                                                                                 \
    do {                                                                                           \
        if (__builtin_expect(!(cond), 0)) must_fail(#cond, ERR_WHERE);                             \
    } while (0)
_Noreturn void must_fail(const char *condition, const char *where);

/* ------------------------------------------------------------------------ checked arithmetic */

/* True when the result fits; *out is then set, and untouched otherwise. */
static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t product;
    if (__builtin_mul_overflow(a, b, &product)) return false;
    *out = product;
    return true;
}
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t sum;
    if (__builtin_add_overflow(a, b, &sum)) return false;
    *out = sum;
    return true;
}
static inline int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t max_i64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}
static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}
static inline int64_t ceil_div_i64(int64_t a, int64_t b)
{
    return (a + b - 1) / b; /* a >= 0, b > 0 */
}
static inline int64_t round_up_i64(int64_t a, int64_t multiple)
{
    return ceil_div_i64(a, multiple) * multiple;
}

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ------------------------------------------------------------------------------------- log */

enum log_level { LOG_DEBUG = 0, LOG_INFO, LOG_NOTE /* worth a line */, LOG_WARN, LOG_ERROR };

/* Where lines go.  Only main.c, a worker process (and tests) install a sink; without one, lines are
 * dropped.  `line` has no newline.  Any thread may log; the sink is called from one at a time. */
typedef void (*log_sink)(enum log_level level, const char *line, void *user);
void log_install(log_sink sink, void *user, enum log_level least);
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ------------------------------------------------------------------------------------ text */

/* Index of the first byte that is not valid UTF-8 (no surrogates, no overlong forms, at most
 * U+10FFFF), or `bytes` when all of it is valid. */
size_t text_utf8_valid_prefix(const char *text, size_t bytes);

/* Number of single-character edits between two short words; for "did you mean". */
uint32_t text_distance(const char *a, const char *b);

/* A copy on the heap, freed by os_free; `what` it is, for the sentence when memory is short. */
int text_copy(char **out, const char *text, const char *what, struct err *err);

/* As much of `text` as fits and is valid UTF-8 from its start, into out; returns out. */
const char *text_fit(char *out, size_t capacity, const char *text);

/* "22.3 GB" style, decimal units, into out; returns out. */
const char *text_bytes(char *out, size_t capacity, uint64_t bytes);

/* -------------------------------------------------------------------------------------- os */

struct spawn_request;
/* Every call into the operating system that can fail goes through this table, so that tests can
 * make its n-th use fail.  Production code never writes to it. */
struct os_calls {
    int (*open)(const char *path, int flags, ...);
    int (*close)(int fd);
    int64_t (*pread)(int fd, void *buffer, size_t bytes, int64_t offset);
    int64_t (*pwrite)(int fd, const void *buffer, size_t bytes, int64_t offset);
    int (*fsync)(int fd);
    int (*rename)(const char *source, const char *target);
    int (*unlink)(const char *path);
    int (*mkdir)(const char *path, unsigned mode);
    int (*rmdir)(const char *path);
    int (*ftruncate)(int fd, int64_t bytes);
    int (*flock)(int fd, int operation);
    /* Locks byte `at` of a file for this process, which need not be there, or lets it go; never
     * waits: EAGAIN or EACCES while another process has it.  Ends with the process that has it. */
    int (*lock_byte)(int fd, int64_t at, bool on);
    int (*thread_create)(pthread_t *out, void *(*run)(void *), void *argument); /* 0 or errno */
    void *(*mmap)(void *address, size_t bytes, int protection, int flags, int fd, int64_t offset);
    int (*munmap)(void *address, size_t bytes);
    int (*mprotect)(void *address, size_t bytes, int protection);
    /* Brings pages of a mapping into memory: where there is none, an errno and no signal. */
    int (*populate)(void *address, size_t bytes);
    /* Copies out of a file's map; 0 or errno, EFAULT where a plain read would be a signal. */
    int (*map_read)(void *target, const void *source, size_t bytes);
    void *(*calloc)(size_t count, size_t bytes);
    void *(*aligned_alloc)(size_t alignment, size_t bytes);
    int (*socketpair)(int domain, int type, int protocol, int fds_out[2]);
    int64_t (*send)(int socket, const void *bytes, size_t count, int flags);
    int64_t (*recv)(int socket, void *bytes, size_t count, int flags);
    int (*shutdown)(int socket, int how);
    /* What of `events` came, and POLLHUP; 0: nothing within that time.  fd -1: only waits. */
    int (*poll)(int fd, int events, int milliseconds);
    int (*memfd_create)(const char *name, unsigned flags);
    int (*fallocate)(int fd, int mode, int64_t offset, int64_t bytes);
    int (*add_seals)(int fd, int seals);
    int64_t (*seek_end)(int fd); /* bytes of the file */
    int (*spawn)(int *pid_out, const struct spawn_request *request); /* 0 or errno */
    int (*waitpid)(int pid, int *status_out, int flags);
    int (*kill)(int pid, int signal);
    double (*seconds)(void); /* monotonic; cannot fail, but tests may hurry it */
};
extern struct os_calls os;

/* Heap, with one sentence when it is short; if aligned, not filled.  os_free frees it, and NULL. */
int  os_alloc(void **out, uint64_t count, uint64_t bytes_each, const char *what, struct err *err);
int  os_alloc_aligned(void **out, uint64_t alignment, uint64_t bytes, const char *what,
                      struct err *err);
void os_free(void *pointer);

int os_open_read(int *fd_out, const char *path, struct err *err);
int os_open_write(int *fd_out, const char *path, struct err *err); /* creates or empties it */
/* Creates `path`, or opens it as it is, to read and write. */
int os_open_update(int *fd_out, const char *path, struct err *err);
int os_close(int fd, const char *path, struct err *err);
int os_read_at(int fd, uint64_t offset, void *x_out, uint64_t bytes, const char *path,
               struct err *err);
int os_write_at(int fd, uint64_t offset, const void *x, uint64_t bytes, const char *path,
                struct err *err);
int os_sync(int fd, const char *path, struct err *err);
/* Ask the disk to begin with these bytes: waits for nothing; os_sync tells all failures still */
void os_start_sync(int fd, uint64_t offset, uint64_t bytes);
/* Bring a folder's list of names to the disk: of the folder that holds `path`. */
int os_sync_folder(const char *path, struct err *err);
int os_truncate(int fd, uint64_t bytes, const char *path, struct err *err);
/* Size of a regular file; ERR_IO when `fd` is another thing. */
int os_size(uint64_t *bytes_out, int fd, const char *path, struct err *err);
int  os_rename(const char *source, const char *target, struct err *err); /* syncs the folder */
int  os_remove(const char *path, struct err *err);   /* a missing file is fine */
int  os_make_dir(const char *path, struct err *err); /* an existing folder is fine */
bool os_is_dir(const char *path);
bool os_is_file(const char *path);
bool os_same_file(const char *a, const char *b); /* one existing file, by whatever links? */
int  os_free_bytes(uint64_t *bytes_out, const char *folder, struct err *err);

/* Whole small file into a NUL-terminated heap buffer; more than `limit_bytes` is an error. */
int os_read_text(char **text_out, size_t *bytes_out, const char *path, uint64_t limit_bytes,
                 struct err *err);

/* folder + "/" + name into out; false when it does not fit. */
bool os_join(char *out, size_t capacity, const char *folder, const char *name);
/* `path` from the root on, all links followed; as it stands when there is no such file. */
bool os_absolute(char *out, size_t capacity, const char *path);
/* The folder part of `path` into out, "." when there is none; false when it does not fit. */
bool os_folder(char *out, size_t capacity, const char *path);

double   os_seconds(void);   /* monotonic */
uint32_t os_cpu_count(void); /* CPUs this process may use */
uint64_t os_host_bytes_total(void); /* RAM, whoever uses it; 0: not known */
/* Memory this process may still take: MemAvailable, or less under the limit of a cgroup. */
uint64_t os_host_bytes_free(void);

#include "base/hash.h"
#include "base/json.h"
#include "base/os_map.h"
#include "base/spawn.h"

#endif
