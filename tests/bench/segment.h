/*
 * segment.h - bytes over a pool that are given back in any order, as other programs' allocators are
 * asked for them: what traces are replayed in.  The engine's own memory is stacks.
 */
#ifndef MURAL_SEGMENT_H
#define MURAL_SEGMENT_H

#include "memory/memory.h"

/* A range of addresses in chunks, each with memory behind it or none.  Extents that are free and
 * mapped are one with their neighbours; a request goes into the smallest that holds it.  Contents
 * never move. */
struct segment;
struct segment_options {
    uint64_t limit_bytes;       /* of addresses; several times what will be mapped                */
    uint64_t chunk_bytes;       /* by which memory comes and goes; a multiple of 2 MiB            */
    double   fragmentation_max; /* above this share, free chunks are shown elsewhere before new
                                   ones are asked for                                             */
    uint32_t takes_max;         /* most that are there at one time                                */
};
int  segment_open(struct segment **out, struct pool *pool, const struct segment_options *options,
                  struct err *err);
void segment_close(struct segment *segment);

/* `bytes` > 0 at a 64-byte boundary, contents undefined.  ERR_DEVICE_MEM (see struct vmem_ops) when
 * neither the pool nor the segment's own free chunks have enough; nothing was taken then. */
int segment_take(struct segment *segment, uint64_t bytes, void **out, struct err *err);
/* What segment_take gave. */
void segment_give(struct segment *segment, void *data);
/* Chunks that are free go back to the pool; what cannot be unmapped stays, and the log says so. */
void segment_trim(struct segment *segment);

/* Of what is mapped and not taken; external fragmentation is 1 - largest / free. */
struct segment_counts {
    uint64_t free_bytes, largest_free_bytes;
    uint64_t moved_bytes; /* shown elsewhere, since the segment was opened */
    uint64_t end_bytes;   /* highest address that ever had memory          */
};
void   segment_counts(const struct segment *segment, struct segment_counts *out);
double segment_fragmentation(const struct segment *segment);

#endif
