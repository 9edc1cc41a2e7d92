/*
 * os_map.h - files as memory; part of the door base.h, which is what other folders include.
 */
#ifndef MURAL_OS_MAP_H
#define MURAL_OS_MAP_H

#include "base/base.h"

/* A file mapped read-only.  An empty file has data NULL. */
struct os_map {
    const uint8_t *data;
    uint64_t       bytes;
};
int  os_map_open(struct os_map *out, const char *path, struct err *err);
void os_map_close(struct os_map *map);
/* Does `address` lie in a file that is mapped? */
bool os_map_holds(const void *address);
/* Stands for the bytes from `address` on, in every process that maps the same file as it is now:
 * follows from which file it is, its length, when it was last written, and where in it `address`
 * lies.  False: in no file that is mapped. */
bool os_map_name(uint64_t *name_out, const void *address);
/* What os.map_read is: out of a mapped file by way of the file itself; a plain copy elsewhere. */
int os_map_read(void *target, const void *source, size_t bytes);

#endif
