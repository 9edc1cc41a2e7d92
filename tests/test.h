/*
 * test.h - thin helpers over cmocka: scratch folders, calls that fail on purpose, close numbers.
 */
#ifndef MURAL_TEST_H
#define MURAL_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MURAL_SANITIZED 1
#else
#define MURAL_SANITIZED 0
#endif

/* The folder `tests` of the sources, or its copy where the programs were carried to. */
static inline const char *test_data(void)
{
    const char *elsewhere = getenv("MURAL_TEST_DATA");
    return elsewhere != NULL ? elsewhere : MURAL_TEST_DATA;
}

/* Both expect a local `struct err err`.  The call must succeed; its sentence is shown otherwise. */
#define ASSERT_OK(call)                                                                            \
    do {                                                                                           \
        if ((call) != ERR_OK) fail_msg("%s: %s", #call, err.text);                                 \
    } while (0)

/* The call must fail with this code, and its sentence must contain these words. */
#define ASSERT_REFUSED(expected, words, call)                                                      \
    do {                                                                                           \
        err = (struct err){0};                                                                     \
        int rc_ = (call);                                                                          \
        if (rc_ != (int)(expected)) fail_msg("%s: code %d, text '%s'", #call, rc_, err.text);      \
        if (strstr(err.text, (words)) == NULL)                                                     \
            fail_msg("%s: '%s' does not speak of '%s'", #call, err.text, (words));                 \
    } while (0)

/* A new empty folder under the system's place for such. */
static inline void scratch_make(char *out, size_t capacity)
{
    const char *place = getenv("TMPDIR");
    (void)snprintf(out, capacity, "%s/mural-test-XXXXXX", place == NULL ? "/tmp" : place);
    if (mkdtemp(out) == NULL) fail_msg("cannot make a scratch folder like %s", out);
}

/* The whole of a file, new or not. */
static inline void scratch_write(const char *path, const void *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");

    if (file == NULL || fwrite(bytes, 1, count, file) != count || fclose(file) != 0)
        fail_msg("cannot write %s", path);
}

/* Entries of a folder, "." and ".." apart. */
static inline int scratch_count(const char *folder)
{
    int            count = 0;
    DIR           *listing = opendir(folder);
    struct dirent *entry;

    if (listing == NULL) return -1;
    while ((entry = readdir(listing)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) count++;
    (void)closedir(listing);
    return count;
}

/* Remove the folder and the files in it, one level of folders deep. */
static inline void scratch_remove(const char *folder)
{
    DIR           *listing = opendir(folder);
    struct dirent *entry;

    while (listing != NULL && (entry = readdir(listing)) != NULL) {
        char path[4096];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        (void)snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (unlink(path) != 0) scratch_remove(path);
    }
    if (listing != NULL) (void)closedir(listing);
    (void)rmdir(folder);
}

/* Deterministic 64-bit numbers for property tests. */
static inline uint64_t random_u64(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}
static inline int64_t random_between(uint64_t *state, int64_t least, int64_t most)
{
    return least + (int64_t)(random_u64(state) % (uint64_t)(most - least + 1));
}

#endif
