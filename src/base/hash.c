/*
 * hash.c - content hashes.  Identity of weights and pixels, not a defence against forgers.
 */
#include "base/base.h"

#include <xxhash.h>

enum { PIECE_BYTES = 1 << 20 };

uint64_t hash64(const void *bytes, size_t count, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, count, seed);
}

uint64_t hash64_pieces(const void *bytes, uint64_t count)
{
    uint64_t hash = 0;

    for (uint64_t at = 0; at < count; at += PIECE_BYTES) {
        uint64_t left = count - at;
        hash =
            hash64((const char *)bytes + at, left < PIECE_BYTES ? (size_t)left : PIECE_BYTES, hash);
    }
    return hash;
}

int hash64_file(uint64_t *hash_out, uint64_t *bytes_out, const char *path, struct err *err)
{
    int      rc = ERR_OK, fd = -1;
    uint64_t bytes = 0, hash = 0;
    void    *piece = NULL;

    TRY(os_alloc(&piece, PIECE_BYTES, 1, "a piece of a file", err));
    TRY(os_open_read(&fd, path, err));
    TRY(os_size(&bytes, fd, path, err));
    for (uint64_t at = 0; at < bytes; at += PIECE_BYTES) {
        uint64_t count = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        TRY(os_read_at(fd, at, piece, count, path, err));
        hash = hash64(piece, (size_t)count, hash);
    }
    *hash_out = hash;
    *bytes_out = bytes;
out:
    if (fd >= 0) (void)os.close(fd);
    os_free(piece);
    return rc;
}
