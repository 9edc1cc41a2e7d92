/*
 * budget.h - what a device's memory is spent on, decided before anything is loaded.
 *
 * Private to engine/.
 */
#ifndef MURAL_BUDGET_H
#define MURAL_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

enum { BLOCKS_MAX = 128 };

struct budget {                    /* what was decided; all bytes of one device */
    bool     streamed[BLOCKS_MAX]; /* by block, doubles first, then singles; false: stays */
    uint32_t block_count, streamed_count;
    uint64_t resident_bytes; /* of blocks that stay */
    uint64_t ring_bytes;     /* two slots of the largest streamed block; 0: nothing streams */
    uint64_t pinned_bytes;   /* host memory for streamed blocks; less than theirs: the rest comes
                                through windows */
    uint32_t tiles_per_pass;
    /* arena; libraries; VAE, vectors, first and last layers */
    uint64_t scratch_bytes, fixed_bytes, ends_bytes;
};

#endif
