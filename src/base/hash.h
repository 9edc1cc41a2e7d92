/*
 * hash.h - content hashes; part of the door base.h, which is what other folders include.
 */
#ifndef MURAL_HASH_H
#define MURAL_HASH_H

#include "base/base.h"

/* 64-bit content hash (XXH3). */
uint64_t hash64(const void *bytes, size_t count, uint64_t seed);

/* Hash of a long content in pieces of 1 MiB, each seeded with the hash of those before it, so that
 * a file gives through a small buffer what its content gives in memory. */
uint64_t hash64_pieces(const void *bytes, uint64_t count);
int      hash64_file(uint64_t *hash_out, uint64_t *bytes_out, const char *path, struct err *err);

#endif
