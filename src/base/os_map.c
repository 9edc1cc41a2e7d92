/*
 * os_map.c - files as memory, and reads of them that end in a status where a plain read is a
 * signal.
 *
 * Owns the list of this process's maps of files: like the addresses that it speaks of, there is one
 * for all.  With it a read from a map is a read of its file: the kernel copies from its cache, or
 * from the disk with its read-ahead, straight to the target, and no page of the map has to be
 * brought in first.  Many threads may read at once.  Knows nothing of what files hold.
 */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* Weights come in a dozen files; a process may have a thousand open, and wants some for itself. */
enum { DESCRIPTORS_MAX = 64 };

struct known_map {
    const uint8_t    *data;
    uint64_t          bytes;
    int               fd;       /* -1: the file was closed */
    uint64_t          identity; /* of the file when it was mapped; 0: not known */
    struct known_map *next;
};
static struct known_map *known;
static int               descriptors; /* of known maps */
static pthread_rwlock_t  lock = PTHREAD_RWLOCK_INITIALIZER;

/* The map that `address` lies in, or NULL; the lock is held. */
static struct known_map *find(const void *address)
{
    struct known_map *map = known;

    while (map != NULL && (uintptr_t)address - (uintptr_t)map->data >= map->bytes)
        map = map->next;
    return map;
}

static uint64_t identify(int fd)
{
    struct stat now;

    if (fstat(fd, &now) != 0) return 0;
    uint64_t what[] = {(uint64_t)now.st_dev, (uint64_t)now.st_ino, (uint64_t)now.st_size,
                       (uint64_t)now.st_mtim.tv_sec, (uint64_t)now.st_mtim.tv_nsec};
    return hash64(what, sizeof what, 0);
}

/* Takes the descriptor, which may be closed here: the mapping stays. */
static int add(const void *data, uint64_t bytes, int fd, struct err *err)
{
    int               rc = ERR_OK;
    struct known_map *map = NULL;

    TRY(os_alloc((void **)&map, 1, sizeof *map, "a list of mapped files", err));
    *map = (struct known_map){.data = data, .bytes = bytes, .fd = -1, .identity = identify(fd)};
    (void)pthread_rwlock_wrlock(&lock);
    if (descriptors < DESCRIPTORS_MAX) {
        map->fd = fd;
        descriptors++;
    }
    map->next = known;
    known = map;
    (void)pthread_rwlock_unlock(&lock);
    if (map->fd < 0) (void)os.close(fd);
out:
    return rc;
}

static void take_out(const void *data)
{
    struct known_map **at = &known, *map;

    (void)pthread_rwlock_wrlock(&lock);
    while (*at != NULL && (*at)->data != data)
        at = &(*at)->next;
    map = *at;
    must(map != NULL);
    *at = map->next;
    if (map->fd >= 0) descriptors--;
    (void)pthread_rwlock_unlock(&lock);
    if (map->fd >= 0) (void)os.close(map->fd);
    os_free(map);
}

int os_map_open(struct os_map *out, const char *path, struct err *err)
{
    int      rc = ERR_OK, fd = -1;
    uint64_t bytes = 0;
    void    *data = NULL;

    TRY(os_open_read(&fd, path, err));
    TRY(os_size(&bytes, fd, path, err));
    if (bytes > 0) {
        data = os.mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            data = NULL;
            RAISE(err, ERR_IO, errno, "cannot map '%s': %s", path, strerror(errno));
        }
        TRY(add(data, bytes, fd, err));
        fd = -1;
    }
    out->data = data;
    out->bytes = bytes;
    data = NULL;
out:
    if (data != NULL) (void)os.munmap(data, (size_t)bytes);
    if (fd >= 0) (void)os.close(fd);
    return rc;
}

void os_map_close(struct os_map *map)
{
    if (map->data != NULL) {
        take_out(map->data);
        (void)os.munmap((void *)(uintptr_t)map->data, (size_t)map->bytes);
    }
    map->data = NULL;
    map->bytes = 0;
}

bool os_map_holds(const void *address)
{
    bool holds;

    (void)pthread_rwlock_rdlock(&lock);
    holds = find(address) != NULL;
    (void)pthread_rwlock_unlock(&lock);
    return holds;
}

bool os_map_name(uint64_t *name_out, const void *address)
{
    const struct known_map *map;
    bool                    known_file;

    (void)pthread_rwlock_rdlock(&lock);
    map = find(address);
    known_file = map != NULL && map->identity != 0;
    if (known_file) {
        uint64_t what[] = {map->identity, (uint64_t)((const uint8_t *)address - map->data)};
        *name_out = hash64(what, sizeof what, 0);
    }
    (void)pthread_rwlock_unlock(&lock);
    return known_file;
}

static int read_file(int fd, uint64_t offset, char *target, size_t bytes)
{
    while (bytes > 0) {
        ssize_t got = pread(fd, target, bytes, (off_t)offset);

        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0 ? errno : EFAULT; /* nothing more: it was cut */
        target += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return 0;
}

/* Through the kernel, which answers where a read of our own would be a signal.  Where it is not
 * allowed to (some sandboxes), the plain copy is what is left. */
static int read_map(const char *source, char *target, size_t bytes)
{
    size_t done = 0;

    while (done < bytes) {
        struct iovec to = {target + done, bytes - done};
        struct iovec from = {(char *)(uintptr_t)source + done, bytes - done};
        ssize_t      got = process_vm_readv(getpid(), &to, 1, &from, 1, 0);

        if (got < 0 && (errno == ENOSYS || errno == EPERM)) {
            memcpy(to.iov_base, from.iov_base, to.iov_len);
            return 0;
        }
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0 ? errno : EFAULT;
        done += (size_t)got;
    }
    return 0;
}

int os_map_read(void *target, const void *source, size_t bytes)
{
    const struct known_map *map;
    uint64_t                offset = 0;
    int                     fd = -1;
    bool                    plain;

    (void)pthread_rwlock_rdlock(&lock);
    map = find(source);
    plain = map == NULL;
    if (map != NULL) {
        fd = map->fd;
        offset = (uint64_t)((const uint8_t *)source - map->data);
        must(bytes <= map->bytes - offset);
    }
    (void)pthread_rwlock_unlock(&lock);
    if (fd >= 0) return read_file(fd, offset, target, bytes);
    if (!plain) return read_map(source, target, bytes);
    memcpy(target, source, bytes);
    return 0;
}
