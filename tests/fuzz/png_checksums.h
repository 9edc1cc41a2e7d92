/*
 * png_checksums.h - makes the checksums of a mutated PNG right again, or the first wrong one would
 * end every run.
 */
#ifndef MURAL_PNG_CHECKSUMS_H
#define MURAL_PNG_CHECKSUMS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <libdeflate.h>

static inline uint32_t chunk_bytes(const uint8_t *x)
{
    return (uint32_t)x[0] << 24 | (uint32_t)x[1] << 16 | (uint32_t)x[2] << 8 | x[3];
}

/* A heap copy of exactly `size` bytes with right checksums; NULL when memory is short. */
static inline uint8_t *copy_with_checksums(const uint8_t *data, size_t size)
{
    uint8_t *png = malloc(size == 0 ? 1 : size);
    size_t   at = 8;

    if (png == NULL) return NULL;
    if (size > 0) memcpy(png, data, size);
    if (size < 8 || memcmp(png, "\x89PNG", 4) != 0) return png;
    while (at + 12 <= size && chunk_bytes(png + at) <= size - at - 12) {
        const size_t   bytes = chunk_bytes(png + at);
        const uint32_t sum = libdeflate_crc32(0, png + at + 4, bytes + 4);
        for (unsigned i = 0; i < 4; i++)
            png[at + 8 + bytes + i] = (uint8_t)(sum >> (24 - 8 * i));
        at += 12 + bytes;
    }
    return png;
}

#endif
