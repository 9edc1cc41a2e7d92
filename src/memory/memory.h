/*
 * memory.h - who may take how much memory, and from where.
 *
 * Rank 1.  Knows nothing of tensors, tiles or models.
 */
#ifndef MURAL_MEMORY_H
#define MURAL_MEMORY_H

#include "base/base.h"

/* A range of addresses whose memory comes later, piece by piece from its start.  The host's is made
 * by mmap (vmem_host.c), a GPU's by the driver (vmem_cuda.c, in builds that have CUDA).  Reserving
 * costs addresses only; what is committed stays until the range is released. */
struct vmem {
    const struct vmem_ops *ops;
    char                  *base;
    uint64_t               bytes;     /* reserved, a multiple of `step`   */
    uint64_t               committed; /* memory behind the first of these */
    uint64_t               step;      /* commit counts in these           */
    int32_t                device;    /* number of the GPU                */
    uint32_t               piece_count;
    uint64_t               pieces[256]; /* end of each piece that was committed on a GPU */
};
struct vmem_ops {
    /* Sets base, bytes and step; `device` and `ops` are set by the caller. */
    int (*reserve)(struct vmem *vmem, uint64_t bytes, struct err *err);
    /* Memory behind [0, bytes), bytes <= vmem->bytes, rounded up to `step`.  ERR_HOST_MEM or
     * ERR_DEVICE_MEM; what was there before stays. */
    int (*commit)(struct vmem *vmem, uint64_t bytes, struct err *err);
    void (*release)(struct vmem *vmem);
};
extern const struct vmem_ops vmem_host, vmem_cuda;

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

int arena_open(struct arena **out, uint64_t limit_bytes, struct err *err);
/* The same over addresses of a GPU: may be computed with, but not read or written, on the host. */
int  arena_open_on(struct arena **out, const struct vmem_ops *ops, int32_t device,
                   uint64_t limit_bytes, struct err *err);
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
/* Does [data, data + bytes) lie in what is taken now? */
bool arena_holds(const struct arena *arena, const void *data, uint64_t bytes);
/* Bytes from the arena's first to `data`, which it holds. */
uint64_t arena_offset(const struct arena *arena, const void *data);
bool     arena_is_dry(const struct arena *arena);

#endif
