/*
 * choices.c - what trials on this machine chose, kept on disk for later starts.
 *
 * Owns the file `mural/choices` in $XDG_CACHE_HOME, or in $HOME/.cache where that names no folder
 * from the root on.  Knows nothing of what is chosen: keys and choices are hashes of others.
 *
 *     BUCKETS buckets of WAYS records; a key belongs in bucket key % BUCKETS.  A record, in the
 *     machine's order of bytes:
 *          0     8  key
 *          8     8  choice
 *         16     8  hash64 of the 16 bytes above, seeded with FORMAT
 *
 * Each record stands for itself, at a place that follows from its key.  So the file may be shorter,
 * cut, or something else altogether: what does not pass its hash is not there, and is written over.
 * Processes write without asking each other, one whole record at a time: the last one wins.  The
 * file has no head to damage, and never grows beyond its buckets, 98,304 bytes.
 *
 * A cache: whatever fails is told to those who debug, and costs no more than another trial.
 */
#include "backend/choices.h"

#include <stdio.h>
#include <stdlib.h>

enum { BUCKETS = 1024, WAYS = 4, PATH_BYTES = 4096 };

/* To be changed when what is kept, or how it is tried, means something else than before. */
#define FORMAT UINT64_C(0x6D7572616C303031)

struct record {
    uint64_t key, choice, hash;
};

static uint64_t hash_of(const struct record *record)
{
    return hash64(record, offsetof(struct record, hash), FORMAT);
}

/* ------------------------------------------------------------------------------- the place */

/* The folder of all programs' caches; false: there is none. */
static bool find_caches(char *out, size_t capacity)
{
    const char *caches = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int         wrote;

    if (caches != NULL && caches[0] == '/')
        wrote = snprintf(out, capacity, "%s", caches);
    else if (home != NULL && home[0] == '/')
        wrote = snprintf(out, capacity, "%s/.cache", home);
    else
        return false;
    return wrote >= 0 && (size_t)wrote < capacity;
}

/* Opens the file, to write after its folders were made; -1: there is none, or it is no file. */
static int open_file(char *path_out, bool writing, struct err *err)
{
    int  rc = ERR_OK, fd = -1;
    char caches[PATH_BYTES], folder[PATH_BYTES];

    if (!find_caches(caches, sizeof caches) || !os_join(folder, sizeof folder, caches, "mural") ||
        !os_join(path_out, PATH_BYTES, folder, "choices"))
        return -1;
    if (!writing) {
        if (os_is_file(path_out)) (void)os_open_read(&fd, path_out, err);
        return fd;
    }
    TRY(os_make_dir(caches, err));
    TRY(os_make_dir(folder, err));
    TRY(os_open_update(&fd, path_out, err));
out:
    return rc == ERR_OK ? fd : -1;
}

/* ----------------------------------------------------------------------------- the records */

static uint64_t offset_of(uint64_t key, uint32_t way)
{
    return (key % BUCKETS * WAYS + way) * sizeof(struct record);
}

/* What stands at one of the places of `key`, whoever's it is; false: nothing whole. */
static bool read_record(struct record *out, int fd, uint64_t key, uint32_t way, const char *path)
{
    struct err ignored = {.code = ERR_OK};

    return os_read_at(fd, offset_of(key, way), out, sizeof *out, path, &ignored) == ERR_OK &&
           out->hash == hash_of(out);
}

bool choices_find(uint64_t *choice_out, uint64_t key)
{
    char          path[PATH_BYTES];
    struct err    err = {.code = ERR_OK};
    struct record record;
    bool          found = false;
    int           fd = open_file(path, false, &err);

    for (uint32_t way = 0; way < WAYS && fd >= 0 && !found; way++)
        found = read_record(&record, fd, key, way, path) && record.key == key;
    if (found) *choice_out = record.choice;
    if (fd >= 0) (void)os.close(fd);
    if (err.code != ERR_OK) log_line(LOG_DEBUG, "choices that were kept: %s", err.text);
    return found;
}

/* Where this key is, or else where nobody is, or else whose turn it is. */
static uint32_t find_way(int fd, uint64_t key, const char *path)
{
    struct record record;
    uint32_t      chosen = (uint32_t)(key / BUCKETS % WAYS);

    for (uint32_t way = 0; way < WAYS; way++) {
        bool used = read_record(&record, fd, key, way, path);
        if (used && record.key == key) return way;
        if (!used) chosen = way;
    }
    return chosen;
}

void choices_keep(uint64_t key, uint64_t choice)
{
    char          path[PATH_BYTES];
    struct err    err = {.code = ERR_OK};
    struct record record = {.key = key, .choice = choice};
    int           fd = open_file(path, true, &err);

    record.hash = hash_of(&record);
    if (fd >= 0)
        (void)os_write_at(fd, offset_of(key, find_way(fd, key, path)), &record, sizeof record, path,
                          &err);
    if (fd >= 0) (void)os.close(fd);
    if (err.code != ERR_OK) log_line(LOG_DEBUG, "a choice is not kept: %s", err.text);
}
