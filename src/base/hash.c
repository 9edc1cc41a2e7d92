/*
 * hash.c - content hashes.  Identity of weights and pixels, not a defence against forgers.
 */
#include "base/base.h"

#include <xxhash.h>

uint64_t hash64(const void *bytes, size_t count, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, count, seed);
}
