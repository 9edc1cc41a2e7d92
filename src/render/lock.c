/*
 * lock.c - one run at a time for the folder beside an output.
 *
 * Owns the file `<output>.mural/lock`.  While a run goes on, the file is locked (flock) and says in
 * JSON who it is:
 *
 *     {"host":"..","pid":1234,"boot":"..","started":1700000000}
 *
 * A run that ends empties the file; one that was killed leaves its words.  On one machine (the same
 * boot id) the flock alone decides, for the kernel drops it with the process.  Words of this host
 * with another boot id are from before a restart, and void.  Words of another host mean that the
 * folder is on a shared disk, where an flock need not be seen: that host is believed.
 *
 * Read next: store.c.
 */
#include "render/render_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct lock {
    int  fd;
    char path[1200];
};

struct owner {
    char    host[128], boot[64];
    int64_t pid;
};

static void find_self(struct owner *out)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

    *out = (struct owner){.pid = (int64_t)getpid()};
    if (gethostname(out->host, sizeof out->host) != 0) out->host[0] = '\0';
    out->host[sizeof out->host - 1] = '\0';
    if (file != NULL) {
        if (fgets(out->boot, sizeof out->boot, file) == NULL) out->boot[0] = '\0';
        (void)fclose(file);
    }
    out->boot[strcspn(out->boot, "\n")] = '\0';
}

static void take_word(char *out, size_t capacity, const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    (void)snprintf(out, capacity, "%s", text != NULL ? text : "");
}

/* Whose words stand there; false for none that can be read. */
static bool read_owner(struct owner *out, const struct lock *lock)
{
    char    text[1024];
    int64_t bytes = os.pread(lock->fd, text, sizeof text, 0);
    json_t *object = bytes > 0 ? json_loadb(text, (size_t)bytes, 0, NULL) : NULL;

    *out = (struct owner){.pid = json_integer_value(json_object_get(object, "pid"))};
    take_word(out->host, sizeof out->host, object, "host");
    take_word(out->boot, sizeof out->boot, object, "boot");
    json_decref(object);
    return out->host[0] != '\0' || out->boot[0] != '\0';
}

/* Another host's words are believed; those of this one, now or before a restart, are void. */
static int check_owner(const struct lock *lock, const struct owner *self, struct err *err)
{
    int          rc = ERR_OK;
    struct owner other;

    if (!read_owner(&other, lock)) goto out;
    if (strcmp(other.boot, self->boot) != 0 && strcmp(other.host, self->host) != 0)
        RAISE(
            err, ERR_USAGE, 0,
            "output: process %lld on host '%s' is painting it; when that run is dead, remove '%s'",
            (long long)other.pid, other.host, lock->path);
out:
    return rc;
}

static int write_owner(const struct lock *lock, const struct owner *self, struct err *err)
{
    int     rc = ERR_OK;
    json_t *object =
        json_pack("{s:s%, s:I, s:s, s:I}", "host", self->host,
                  text_utf8_valid_prefix(self->host, strlen(self->host)), "pid",
                  (json_int_t)self->pid, "boot", self->boot, "started", (json_int_t)time(NULL));
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;

    if (text == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory for '%s'", lock->path);
    TRY(os_truncate(lock->fd, 0, lock->path, err));
    TRY(os_write_at(lock->fd, 0, text, strlen(text), lock->path, err));
    TRY(os_sync(lock->fd, lock->path, err));
out:
    free(text);
    json_decref(object);
    return rc;
}

/* Does the name still lead to the file that we hold?  A run that ended may have removed it between
 * our open and our lock. */
static bool is_current(const struct lock *lock)
{
    struct stat held, named;

    return fstat(lock->fd, &held) == 0 && stat(lock->path, &named) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

static int hold(struct lock *lock, const char *folder, const char *output, struct err *err)
{
    enum { TRIES = 100 };
    int          rc = ERR_OK;
    struct owner other;

    for (int i = 0; i < TRIES; i++) {
        TRY(os_make_dir(folder, err));
        TRY(os_open_update(&lock->fd, lock->path, err));
        if (os.flock(lock->fd, LOCK_EX | LOCK_NB) != 0) {
            if (errno == EINTR) goto once_more;
            if (errno != EWOULDBLOCK)
                RAISE(err, ERR_IO, errno, "cannot lock '%s': %s", lock->path, strerror(errno));
            (void)read_owner(&other, lock);
            RAISE(err, ERR_USAGE, 0,
                  "output: another mural (process %lld) is writing '%s'; wait for it or give "
                  "another name",
                  (long long)other.pid, output);
        }
        if (is_current(lock)) goto out;
    once_more:
        (void)os.close(lock->fd);
        lock->fd = -1;
    }
    RAISE(err, ERR_IO, 0, "cannot lock '%s': it is removed each time; try again", lock->path);
out:
    return rc;
}

int lock_take(struct lock **out, const char *folder, const char *output, struct err *err)
{
    int          rc = ERR_OK;
    struct lock *lock = NULL;
    struct owner self;

    TRY(os_alloc((void **)&lock, 1, sizeof *lock, "a lock", err));
    lock->fd = -1;
    must(os_join(lock->path, sizeof lock->path, folder, "lock"));
    TRY(hold(lock, folder, output, err));
    find_self(&self);
    TRY(check_owner(lock, &self, err));
    TRY(write_owner(lock, &self, err));
    *out = lock;
    lock = NULL;
out:
    if (lock != NULL && lock->fd >= 0) (void)os.close(lock->fd);
    os_free(lock);
    return rc;
}

void lock_release(struct lock *lock, bool remove)
{
    struct err ignored = {0}; /* words that stay are void as soon as this process is gone */

    if (lock == NULL) return;
    if (remove)
        (void)os_remove(lock->path, &ignored);
    else
        (void)os_truncate(lock->fd, 0, lock->path, &ignored);
    (void)os.close(lock->fd);
    os_free(lock);
}
