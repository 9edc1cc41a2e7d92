/*
 * cuda_load.c - NVIDIA's libraries, found when they are needed.
 *
 * Linking to them would tie the program to their folder and keep it from starting without them.
 * What is loaded stays until the process ends: it has put code on the card, and nobody promises
 * that it can be taken away from under a context.  Knows no library by name.
 */
#include "backend/cuda_int.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* Tried in this order: beside the program and the loader's own path, then where CUDA's and Debian's
 * packages put them. */
static const char *const folders[] = {"", "/usr/local/cuda/lib64/",
                                      "/usr/local/cuda/targets/x86_64-linux/lib/",
                                      "/usr/lib/x86_64-linux-gnu/"};

static void *find_library(const char *soname)
{
    char path[512];

    for (size_t i = 0; i < ARRAY_COUNT(folders); i++) {
        (void)snprintf(path, sizeof path, "%s%s", folders[i], soname);
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library != NULL) return library;
    }
    return NULL;
}

int cuda_load(const char *soname, const struct cuda_symbol *symbols, size_t count, struct err *err)
{
    int   rc = ERR_OK;
    void *library = find_library(soname);

    if (library == NULL)
        RAISE(err, ERR_DEVICE, 0,
              "device: %s is not on this machine; install CUDA's libraries, put them beside the "
              "program, or use --device cpu",
              soname);
    for (size_t i = 0; i < count; i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (symbol == NULL)
            RAISE(err, ERR_DEVICE, 0, "device: %s has no %s; another version is needed", soname,
                  symbols[i].name);
        memcpy(symbols[i].slot, &symbol, sizeof symbol);
    }
out:
    return rc;
}

size_t cuda_library_version(const char *soname, const char *function)
{
    size_t (*version)(void) = NULL;
    const struct cuda_symbol symbol = {function, &version};
    struct err               ignored = {.code = ERR_OK};

    return cuda_load(soname, &symbol, 1, &ignored) == ERR_OK ? version() : 0;
}
