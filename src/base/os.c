/*
 * os.c - files, clocks and counts of the machine, each failure as one sentence.
 *
 * Owns the one table of system calls (`os`) that tests may break.  Knows nothing of formats.
 * Invariant: whatever is renamed into place was synced before, and its folder is synced after.
 */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int call_mkdir(const char *path, unsigned mode)
{
    return mkdir(path, (mode_t)mode);
}
static int call_ftruncate(int fd, int64_t bytes)
{
    return ftruncate(fd, (off_t)bytes);
}
static int call_lock_byte(int fd, int64_t at, bool on)
{
    struct flock one = {
        .l_type = on ? F_WRLCK : F_UNLCK, .l_whence = SEEK_SET, .l_start = (off_t)at, .l_len = 1};
    return fcntl(fd, F_SETLK, &one);
}
/* A kernel before 5.14 does not know the question: pages then come as they are touched. */
static int call_populate(void *address, size_t bytes)
{
    int rc = madvise(address, bytes, MADV_POPULATE_WRITE);
    return rc != 0 && errno == EINVAL ? 0 : rc;
}
static int call_thread_create(pthread_t *out, void *(*start)(void *), void *argument)
{
    return pthread_create(out, NULL, start, argument);
}
static int64_t call_pread(int fd, void *buffer, size_t bytes, int64_t offset)
{
    return pread(fd, buffer, bytes, (off_t)offset);
}
static int64_t call_pwrite(int fd, const void *buffer, size_t bytes, int64_t offset)
{
    return pwrite(fd, buffer, bytes, (off_t)offset);
}
static void *call_mmap(void *address, size_t bytes, int protection, int flags, int fd,
                       int64_t offset)
{
    return mmap(address, bytes, protection, flags, fd, (off_t)offset);
}

static int call_poll(int fd, int events, int milliseconds)
{
    struct pollfd one = {.fd = fd, .events = (short)events};
    int           ready = poll(&one, 1, milliseconds);
    return ready > 0 ? one.revents : ready;
}
static int call_fallocate(int fd, int mode, int64_t offset, int64_t bytes)
{
    return fallocate(fd, mode, (off_t)offset, (off_t)bytes);
}
static int call_add_seals(int fd, int seals)
{
    return fcntl(fd, F_ADD_SEALS, seals);
}
static int64_t call_seek_end(int fd)
{
    return lseek(fd, 0, SEEK_END);
}
static double call_seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

struct os_calls os = {
    .open = open,
    .close = close,
    .pread = call_pread,
    .pwrite = call_pwrite,
    .fsync = fsync,
    .rename = rename,
    .unlink = unlink,
    .mkdir = call_mkdir,
    .rmdir = rmdir,
    .ftruncate = call_ftruncate,
    .flock = flock,
    .lock_byte = call_lock_byte,
    .thread_create = call_thread_create,
    .mmap = call_mmap,
    .munmap = munmap,
    .mprotect = mprotect,
    .populate = call_populate,
    .map_read = os_map_read,
    .calloc = calloc,
    .aligned_alloc = aligned_alloc,
    .socketpair = socketpair,
    .send = send,
    .recv = recv,
    .shutdown = shutdown,
    .poll = call_poll,
    .memfd_create = memfd_create,
    .fallocate = call_fallocate,
    .add_seals = call_add_seals,
    .seek_end = call_seek_end,
    .spawn = spawn_process,
    .waitpid = waitpid,
    .kill = kill,
    .seconds = call_seconds,
};

/* ------------------------------------------------------------------------------------ heap */

static int lack_memory(uint64_t bytes, const char *what, struct err *err)
{
    int  rc;
    char words[32];

    RAISE(err, ERR_HOST_MEM, errno, "memory: no %s for %s; close other programs or ask for less",
          text_bytes(words, sizeof words, bytes), what);
out:
    return rc;
}

int os_alloc(void **out, uint64_t count, uint64_t bytes_each, const char *what, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t bytes;
    void    *memory;

    if (!mul_u64(count, bytes_each, &bytes) || bytes > SIZE_MAX / 2)
        RAISE(err, ERR_HOST_MEM, 0,
              "memory: %s needs %llu x %llu bytes, more than can be addressed", what,
              (unsigned long long)count, (unsigned long long)bytes_each);
    memory = os.calloc(1, bytes == 0 ? 1 : (size_t)bytes);
    if (memory == NULL) TRY(lack_memory(bytes, what, err));
    *out = memory;
out:
    return rc;
}

int os_alloc_aligned(void **out, uint64_t alignment, uint64_t bytes, const char *what,
                     struct err *err)
{
    *out = os.aligned_alloc((size_t)alignment, (size_t)bytes);
    return *out != NULL ? ERR_OK : lack_memory(bytes, what, err);
}

void os_free(void *pointer)
{
    free(pointer);
}

/* ----------------------------------------------------------------------------------- files */

int os_open_read(int *fd_out, const char *path, struct err *err)
{
    int rc = ERR_OK;
    int fd = os.open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) RAISE(err, ERR_IO, errno, "cannot open '%s': %s", path, strerror(errno));
    *fd_out = fd;
out:
    return rc;
}

int os_open_write(int *fd_out, const char *path, struct err *err)
{
    int rc = ERR_OK;
    int fd = os.open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    if (fd < 0) RAISE(err, ERR_IO, errno, "cannot create '%s': %s", path, strerror(errno));
    *fd_out = fd;
out:
    return rc;
}

int os_open_update(int *fd_out, const char *path, struct err *err)
{
    int rc = ERR_OK;
    int fd = os.open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);

    if (fd < 0) RAISE(err, ERR_IO, errno, "cannot open '%s': %s", path, strerror(errno));
    *fd_out = fd;
out:
    return rc;
}

int os_close(int fd, const char *path, struct err *err)
{
    int rc = ERR_OK;

    if (os.close(fd) != 0)
        RAISE(err, ERR_IO, errno, "cannot close '%s': %s", path, strerror(errno));
out:
    return rc;
}

int os_read_at(int fd, uint64_t offset, void *x_out, uint64_t bytes, const char *path,
               struct err *err)
{
    int      rc = ERR_OK;
    uint64_t done = 0;

    while (done < bytes) {
        int64_t got =
            os.pread(fd, (char *)x_out + done, (size_t)(bytes - done), (int64_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            RAISE(err, ERR_IO, errno, "cannot read '%s' at byte %llu: %s", path,
                  (unsigned long long)(offset + done), strerror(errno));
        if (got == 0)
            RAISE(err, ERR_FORMAT, 0, "'%s' ends at byte %llu, but bytes up to %llu are needed",
                  path, (unsigned long long)(offset + done), (unsigned long long)(offset + bytes));
        done += (uint64_t)got;
    }
out:
    return rc;
}

int os_write_at(int fd, uint64_t offset, const void *x, uint64_t bytes, const char *path,
                struct err *err)
{
    int      rc = ERR_OK;
    uint64_t done = 0;

    while (done < bytes) {
        int64_t put =
            os.pwrite(fd, (const char *)x + done, (size_t)(bytes - done), (int64_t)(offset + done));
        if (put < 0 && errno == EINTR) continue;
        if (put < 0)
            RAISE(err, ERR_IO, errno, "cannot write '%s' at byte %llu: %s", path,
                  (unsigned long long)(offset + done), strerror(errno));
        if (put == 0)
            RAISE(err, ERR_IO, ENOSPC, "cannot write '%s' at byte %llu: the disk takes no more",
                  path, (unsigned long long)(offset + done));
        done += (uint64_t)put;
    }
out:
    return rc;
}

int os_sync(int fd, const char *path, struct err *err)
{
    int rc = ERR_OK, done;

    do
        done = os.fsync(fd);
    while (done != 0 && errno == EINTR);
    if (done != 0)
        RAISE(err, ERR_IO, errno, "cannot bring '%s' to the disk: %s", path, strerror(errno));
out:
    return rc;
}

void os_start_sync(int fd, uint64_t offset, uint64_t bytes)
{
    (void)sync_file_range(fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
}

int os_sync_folder(const char *path, struct err *err)
{
    int  rc = ERR_OK, fd = -1;
    char folder[4096];

    if (!os_folder(folder, sizeof folder, path))
        RAISE(err, ERR_USAGE, 0, "the folder of '%.64s...' has more than %zu bytes", path,
              sizeof folder - 1);
    TRY(os_open_read(&fd, folder, err));
    rc = os_sync(fd, folder, err);
    if (rc != ERR_OK && err->sys == EINVAL) { /* shares and virtual machines may not know it */
        *err = (struct err){.code = ERR_OK};
        rc = ERR_OK;
    }
out:
    if (fd >= 0) (void)os.close(fd);
    return rc;
}

int os_truncate(int fd, uint64_t bytes, const char *path, struct err *err)
{
    int rc = ERR_OK;

    if (os.ftruncate(fd, (int64_t)bytes) != 0)
        RAISE(err, ERR_IO, errno, "cannot cut '%s' to %llu bytes: %s", path,
              (unsigned long long)bytes, strerror(errno));
out:
    return rc;
}

int os_rename(const char *source, const char *target, struct err *err)
{
    int rc = ERR_OK;

    if (os.rename(source, target) != 0)
        RAISE(err, ERR_IO, errno, "cannot rename '%s' to '%s': %s", source, target,
              strerror(errno));
    TRY(os_sync_folder(target, err));
out:
    return rc;
}

int os_remove(const char *path, struct err *err)
{
    int rc = ERR_OK;

    if (os.unlink(path) != 0 && errno != ENOENT)
        RAISE(err, ERR_IO, errno, "cannot remove '%s': %s", path, strerror(errno));
out:
    return rc;
}

int os_make_dir(const char *path, struct err *err)
{
    int rc = ERR_OK;

    if (os.mkdir(path, 0777) != 0 && !(errno == EEXIST && os_is_dir(path)))
        RAISE(err, ERR_IO, errno, "cannot make the folder '%s': %s", path, strerror(errno));
out:
    return rc;
}

bool os_is_dir(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0 && S_ISDIR(about.st_mode);
}

bool os_is_file(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0 && S_ISREG(about.st_mode);
}

bool os_same_file(const char *a, const char *b)
{
    struct stat one, other;
    return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev &&
           one.st_ino == other.st_ino;
}

int os_free_bytes(uint64_t *bytes_out, const char *folder, struct err *err)
{
    int            rc = ERR_OK;
    struct statvfs about;

    if (statvfs(folder, &about) != 0)
        RAISE(err, ERR_IO, errno, "cannot ask how much room '%s' has: %s", folder, strerror(errno));
    *bytes_out = (uint64_t)about.f_bavail * about.f_frsize;
out:
    return rc;
}

/* ------------------------------------------------------------------------------- whole files */

int os_size(uint64_t *bytes_out, int fd, const char *path, struct err *err)
{
    int         rc = ERR_OK;
    struct stat about;

    if (fstat(fd, &about) != 0)
        RAISE(err, ERR_IO, errno, "cannot look at '%s': %s", path, strerror(errno));
    if (!S_ISREG(about.st_mode)) RAISE(err, ERR_IO, 0, "'%s' is not a file", path);
    *bytes_out = (uint64_t)about.st_size;
out:
    return rc;
}

int os_read_text(char **text_out, size_t *bytes_out, const char *path, uint64_t limit_bytes,
                 struct err *err)
{
    int      rc = ERR_OK, fd = -1;
    uint64_t bytes = 0;
    void    *text = NULL;
    char     words[32];

    TRY(os_open_read(&fd, path, err));
    TRY(os_size(&bytes, fd, path, err));
    if (bytes > limit_bytes)
        RAISE(err, ERR_FORMAT, 0, "'%s' has %llu bytes; such a file has at most %s", path,
              (unsigned long long)bytes, text_bytes(words, sizeof words, limit_bytes));
    TRY(os_alloc(&text, bytes + 1, 1, path, err));
    TRY(os_read_at(fd, 0, text, bytes, path, err));
    *text_out = text;
    *bytes_out = (size_t)bytes;
    text = NULL;
out:
    os_free(text);
    if (fd >= 0) (void)os.close(fd);
    return rc;
}

bool os_join(char *out, size_t capacity, const char *folder, const char *name)
{
    int wrote = snprintf(out, capacity, "%s/%s", folder, name);
    return wrote >= 0 && (size_t)wrote < capacity;
}

bool os_absolute(char *out, size_t capacity, const char *path)
{
    char *whole = realpath(path, NULL);
    int   wrote = snprintf(out, capacity, "%s", whole != NULL ? whole : path);

    free(whole);
    return wrote >= 0 && (size_t)wrote < capacity;
}

bool os_folder(char *out, size_t capacity, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *folder = slash == NULL ? "." : path;
    size_t      length = slash == NULL || slash == path ? 1 : (size_t)(slash - path);

    if (length >= capacity) return false;
    memcpy(out, folder, length);
    out[length] = '\0';
    return true;
}

/* ------------------------------------------------------------------------------ the machine */

double os_seconds(void)
{
    return os.seconds();
}

uint32_t os_cpu_count(void)
{
    cpu_set_t mine;
    if (sched_getaffinity(0, sizeof mine, &mine) == 0) return (uint32_t)CPU_COUNT(&mine);
    return 1;
}

/* What follows `key` on its line in a small file of the kernel's; false when there is none. */
static bool kernel_text(char *out, size_t capacity, const char *path, const char *key)
{
    char   line[1024];
    size_t length = strlen(key);
    bool   found = false;
    FILE  *file = fopen(path, "re");

    if (file == NULL) return false;
    while (!found && fgets(line, sizeof line, file) != NULL)
        found = strncmp(line, key, length) == 0;
    (void)fclose(file);
    if (!found) return false;
    line[strcspn(line, "\n")] = '\0';
    (void)snprintf(out, capacity, "%s", line + length);
    return true;
}

/* The same as a number; UINT64_MAX when there is none, as in "max". */
static uint64_t kernel_number(const char *path, const char *key)
{
    char               text[64], *end;
    unsigned long long number;

    if (!kernel_text(text, sizeof text, path, key)) return UINT64_MAX;
    number = strtoull(text, &end, 10);
    return end == text ? UINT64_MAX : number;
}

/* Room under the limit of one cgroup.  Pages of files that were not read lately count as used, but
 * the kernel drops them before it refuses memory. */
static uint64_t group_bytes_free(const char *group)
{
    char     path[1152];
    uint64_t limit, used, dropped;

    must(os_join(path, sizeof path, group, "memory.max"));
    limit = kernel_number(path, "");
    must(os_join(path, sizeof path, group, "memory.current"));
    used = kernel_number(path, "");
    must(os_join(path, sizeof path, group, "memory.stat"));
    dropped = kernel_number(path, "inactive_file ");
    if (limit == UINT64_MAX || used == UINT64_MAX) return UINT64_MAX;
    if (dropped != UINT64_MAX) used -= dropped < used ? dropped : used;
    return used < limit ? limit - used : 0;
}

/* A limit of any group above the process's own binds as well, so the walk goes up to the root; in a
 * container the own group may not be visible, and the root is what is left. */
uint64_t os_host_bytes_total(void)
{
    uint64_t kib = kernel_number("/proc/meminfo", "MemTotal:");

    return kib > UINT64_MAX / 1024 ? 0 : kib * 1024;
}

uint64_t os_host_bytes_free(void)
{
    static const char root[] = "/sys/fs/cgroup";
    char              own[1024] = "", group[sizeof root + sizeof own];
    uint64_t          free_kib = kernel_number("/proc/meminfo", "MemAvailable:");
    uint64_t          bytes = free_kib > UINT64_MAX / 1024 ? UINT64_MAX : free_kib * 1024;

    (void)kernel_text(own, sizeof own, "/proc/self/cgroup", "0::");
    (void)snprintf(group, sizeof group, "%s%s", root, own);
    for (char *end = group + strlen(group); end != NULL;
         end = strrchr(group + sizeof root - 1, '/')) {
        uint64_t room;
        *end = '\0';
        room = group_bytes_free(group);
        if (room < bytes) bytes = room;
    }
    return bytes;
}
