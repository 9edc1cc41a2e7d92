/*
 * memory.h - who may take how much memory, and from where.
 *
 * Rank 1.  Knows nothing of tensors, tiles or models.
 */
#ifndef MURAL_MEMORY_H
#define MURAL_MEMORY_H

#include "base/base.h"

/* A stack of bytes in one reserved range of address space.
 *
 * Two kinds share one interface.  A real arena commits pages as the stack grows, up to its limit.
 * A dry arena commits nothing: its addresses may be computed and compared, but never read or
 * written.  Running the same code over a dry arena measures exactly what the real run will take;
 * this is how a plan knows its memory before anything is loaded. */
struct arena;

struct arena_mark {
    uint64_t offset;
};

int  arena_open(struct arena **out, uint64_t limit_bytes, struct err *err);
int  arena_open_dry(struct arena **out, struct err *err);
void arena_close(struct arena *arena);

/* `bytes` at a 64-byte boundary, contents undefined.  Never NULL: sizes are planned beforehand, so
 * running out is a mistake of ours and stops the process. `label` names the bytes in that message.
 */
void *arena_take(struct arena *arena, uint64_t bytes, const char *label);

struct arena_mark arena_mark(const struct arena *arena);
/* Give back everything taken since the mark. */
void arena_rewind(struct arena *arena, struct arena_mark mark);

/* Commit `bytes` now and forbid any growth beyond.  After this no tile can run out of memory. */
int arena_seal(struct arena *arena, uint64_t bytes, struct err *err);

uint64_t arena_bytes_peak(const struct arena *arena);
bool     arena_is_dry(const struct arena *arena);

#endif
