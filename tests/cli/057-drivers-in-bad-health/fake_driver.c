/*
 * fake_driver.c - a library that says it is NVIDIA's driver, in bad health as DRIVER says: old,
 * none (no GPU), broken, busy, or one that crashes.  Each time it is started it adds a line to the
 * file ASKED, if that is set.
 *
 * The CUDA runtime finds it as libcuda.so.1 and asks it for every function by name.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NO_DEVICE = 100, UNKNOWN = 999, UNAVAILABLE = 46, INVALID = 1 };

static int is(const char *kind)
{
    const char *wanted = getenv("DRIVER");
    return wanted != NULL && strcmp(wanted, kind) == 0;
}

int cuDriverGetVersion(int *version)
{
    *version = is("old") ? 11040 : 99000;
    return 0;
}

int cuInit(unsigned flags)
{
    const char *path = getenv("ASKED");
    FILE       *asked = path != NULL ? fopen(path, "a") : NULL;

    (void)flags;
    if (asked != NULL) {
        (void)fputs("asked\n", asked);
        (void)fclose(asked);
    }
    if (is("crash")) abort();
    return is("none") ? NO_DEVICE : is("broken") ? UNKNOWN : 0;
}

static int unavailable(void)
{
    return UNAVAILABLE;
}

int cuGetProcAddress_v2(const char *name, void **call, int version, unsigned long flags, int *found)
{
    (void)version;
    (void)flags;
    *call = (void *)unavailable;
    if (strcmp(name, "cuDriverGetVersion") == 0) *call = (void *)cuDriverGetVersion;
    if (strcmp(name, "cuInit") == 0) *call = (void *)cuInit;
    if (strcmp(name, "cuGetProcAddress") == 0) *call = (void *)cuGetProcAddress_v2;
    if (found != NULL) *found = 0;
    return 0;
}

int cuGetProcAddress(const char *name, void **call, int version, unsigned long flags)
{
    return cuGetProcAddress_v2(name, call, version, flags, NULL);
}

int cuGetExportTable(const void **table, const void *id)
{
    (void)id;
    *table = NULL;
    return INVALID;
}
