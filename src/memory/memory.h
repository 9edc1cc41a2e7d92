/*
 * memory.h - who may take how much memory, and from where.
 *
 * Rank 1.  Knows nothing of tensors, tiles or models.
 *
 * Three layers: vmem (one machine's physical memory and addresses), pool (what of it was created,
 * and a cap), arena (a stack of bytes in a range of addresses).  A pool and all that lies over it
 * belong to one thread.
 */
#ifndef MURAL_MEMORY_H
#define MURAL_MEMORY_H

#include "base/base.h"

/* ------------------------------------------------------------------------------------- vmem */

/* One machine's memory: physical pieces, ranges of addresses, and pieces shown at addresses. */
struct vmem {
    const struct vmem_ops *ops;         /* set by the caller, as is `device`                   */
    int32_t                device;      /* number of the GPU                                   */
    uint64_t               granularity; /* bytes and addresses are multiples of it; set by open */
    int                    fd;          /* vmem_host: the file that stands for the memory      */
    uint64_t               file_bytes;
    void                  *driver; /* vmem_cuda: calls that were found; owned             */
};
/* What can fail leaves things as they were.  Bytes are multiples of the granularity. */
struct vmem_ops {
    enum err_code shortage; /* the code of this memory being short */
    int (*open)(struct vmem *vmem, struct err *err);
    void (*close)(struct vmem *vmem);
    /* Addresses with nothing behind them; touching one is an error.  close_range takes back a
     * range of `reserve`, and all that is still mapped there. */
    int (*reserve)(struct vmem *vmem, char **base_out, uint64_t bytes, struct err *err);
    void (*close_range)(struct vmem *vmem, char *base, uint64_t bytes);
    /* A physical piece, its contents undefined. */
    int (*create)(struct vmem *vmem, uint64_t *handle_out, uint64_t bytes, struct err *err);
    /* Shows a whole piece at an address; it may be touched only after `access`, which is given for
     * several neighbours at once. */
    int (*map)(struct vmem *vmem, char *at, uint64_t handle, uint64_t bytes, struct err *err);
    int (*access)(struct vmem *vmem, char *at, uint64_t bytes, struct err *err);
    /* Waits for all work on the machine, which `unmap` does not. */
    int (*settle)(struct vmem *vmem, struct err *err);
    /* One whole piece; its contents stay with the handle. */
    int (*unmap)(struct vmem *vmem, char *at, uint64_t bytes, struct err *err);
    void (*release)(struct vmem *vmem, uint64_t handle, uint64_t bytes);
};
/* A file in memory, standing for a GPU's memory where there is none (vmem_host.c); a GPU's, in
 * builds that have CUDA (vmem_cuda.c); and the process's own, which has no physical side: what is
 * unmapped is gone (vmem_host.c). */
extern const struct vmem_ops vmem_host, vmem_cuda, vmem_own;

/* ------------------------------------------------------------------------------------- pool */

/* Physical memory of one device, shared by all arenas over it: pieces of three sizes, kept when an
 * arena gives them back, and a hard cap. */
struct pool;
struct pool_options {
    const struct vmem_ops *ops;
    int32_t                device;
    uint64_t cap_bytes;      /* most that is ever created; rounded down to 2 MiB             */
    uint64_t segment_bytes;  /* by which arenas grow, and the largest piece; 0: 256 MiB      */
    uint64_t start_bytes;    /* created at once and never given back to the driver           */
    double   idle_share_max; /* when more than this share of all that is mapped was left unused
                                by the last cycles of its arenas, one that grows is given theirs
                                before new memory is made, and one that is rewound to nothing
                                gives its own back                                           */
    bool expandable; /* false: an arena is one piece of its limit's size, from open to close */
};
/* ERR_DEVICE_MEM (or ERR_HOST_MEM, see struct vmem_ops) when start_bytes are not to be had. */
int pool_open(struct pool **out, const struct pool_options *options, struct err *err);
/* After all arenas over it. */
void pool_close(struct pool *pool);
/* Gives spare pieces back to the driver, until `bytes` have been or no more may be; returns how
 * many. */
uint64_t pool_trim(struct pool *pool, uint64_t bytes);

/* Bytes: requested (live), with what alignment adds (placed), seen at addresses (mapped), taken
 * from the device (device: mapped and spare); none is more than the next.  Calls of the driver that
 * succeeded. */
struct pool_counts {
    uint64_t live, placed, mapped, device, peak_live, peak_placed, peak_mapped, peak_device;
    uint64_t created, mapped_calls, access, unmapped, released, settled;
    uint64_t robbed;     /* bytes of idle tails that were taken for another arena */
    double   idle_share; /* of mapped: what is not placed now                              */
};
void pool_counts(const struct pool *pool, struct pool_counts *out);

/* Memory over time: of each lap of equal length the highest values.  When there is no more room,
 * laps become twice as long, so that the whole time since the restart is always there. */
struct pool_sample {
    double   seconds; /* of os_seconds, when the lap began; of a GPU: when the host asked */
    uint64_t live, placed, mapped, device;
};
enum { POOL_SAMPLES_MAX = 1024 };
void     pool_history_restart(struct pool *pool);
uint32_t pool_history(const struct pool *pool, struct pool_sample out[POOL_SAMPLES_MAX]);

/* How a machine's memory was used over some time.  What its numbers are put together to:
 *
 *     utilisation              peak live / peak mapped
 *     internal fragmentation   1 - peak live / peak placed: what alignment costs
 *     idle share               1 - placed / mapped, at the end: what lies above the stacks
 *
 * Free memory is never in the wrong place, because pieces are mapped where an arena grows: there is
 * no external fragmentation beside the idle share. */
enum memory_call {
    MEMORY_CREATE = 0,
    MEMORY_MAP,
    MEMORY_ACCESS,
    MEMORY_UNMAP,
    MEMORY_RELEASE,
    MEMORY_SETTLE,
    MEMORY_CALLS
};
struct memory_use {
    uint64_t peak_live, peak_placed, peak_mapped, peak_device; /* bytes, as in pool_counts     */
    double   idle_share;                                       /* at the end of that time      */
    uint64_t calls[MEMORY_CALLS];                              /* of the driver                */
    uint64_t link_bytes;    /* of weights that crossed to the machine                          */
    double   stall_seconds; /* that it stood still because such weights were not there yet     */
};
/* Peaks and the idle share since the restart of the history, calls since the pool was opened; of
 * the link it knows nothing. */
void   pool_use(const struct pool *pool, struct memory_use *out);
double memory_utilisation(const struct memory_use *use); /* 0: nothing was mapped */
double memory_internal_fragmentation(const struct memory_use *use);

/* ------------------------------------------------------------------------------------ arena */

/* A stack of bytes in one reserved range of address space.
 *
 * Two kinds share one interface.  A real arena maps memory as the stack grows, up to its limit.
 * A dry arena maps nothing: its addresses may be computed and compared, but never read or
 * written.  Running the same code over a dry arena measures exactly what the real run will take;
 * this is how a plan knows its memory before anything is loaded. */
struct arena;

struct arena_mark {
    uint64_t offset, live; /* bytes taken, with and without what alignment adds */
};

/* Of this process's own memory. */
int arena_open(struct arena **out, uint64_t limit_bytes, struct err *err);
/* With a pool of its own on a device.  A GPU's addresses may be computed with, but not read or
 * written, on the host. */
int arena_open_on(struct arena **out, const struct vmem_ops *ops, int32_t device,
                  uint64_t limit_bytes, struct err *err);
/* Over a pool, which stays the caller's.  Where cap or device leave nothing, an arena that grows
 * takes what others have mapped above their stacks; sealed ones are never touched. */
int  arena_open_in(struct arena **out, struct pool *pool, uint64_t limit_bytes, struct err *err);
int  arena_open_dry(struct arena **out, struct err *err);
void arena_close(struct arena *arena);

/* `bytes` at a 64-byte boundary, contents undefined.  Never NULL: sizes are planned beforehand, so
 * running out is a mistake of ours and stops the process. `label` names the bytes in that message.
 */
void *arena_take(struct arena *arena, uint64_t bytes, const char *label);

struct arena_mark arena_mark(const struct arena *arena);
/* Give back everything taken since the mark. */
void arena_rewind(struct arena *arena, struct arena_mark mark);

/* Map `bytes` now and forbid any growth beyond.  After this no tile can run out of memory. */
int arena_seal(struct arena *arena, uint64_t bytes, struct err *err);
/* Whole pieces mapped above `bytes` and above the stack go back to the pool; a seal ends with it.
 * What cannot be unmapped stays, and the log says so. */
void arena_trim(struct arena *arena, uint64_t bytes);

/* The most that was taken at one time since the arena was opened, or since the restart. */
uint64_t arena_bytes_peak(const struct arena *arena);
void     arena_restart_peak(struct arena *arena);
uint64_t arena_bytes_mapped(const struct arena *arena);
/* Does [data, data + bytes) lie in what is taken now? */
bool arena_holds(const struct arena *arena, const void *data, uint64_t bytes);
/* Bytes from the arena's first to `data`, which it holds. */
uint64_t arena_offset(const struct arena *arena, const void *data);
bool     arena_is_dry(const struct arena *arena);

#endif
