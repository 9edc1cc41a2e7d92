/*
 * arena.c - a stack of bytes in one reserved range of addresses.
 *
 * Owns the range: reserved once, committed in pieces as the stack grows, given back at close. Knows
 * nothing of what is stored, nor of whose memory it is.  Invariants: taken <= peak; in a real arena
 * taken <= committed <= limit; after the seal, committed never changes again.
 *
 * A dry arena is the same arithmetic over addresses that belong to nobody: its base lies outside
 * what a process can map, so that a read or write by mistake stops at once.
 */
#include "memory/memory.h"

enum { ALIGNMENT = 64 };

/* No canonical address on any 64-bit CPU of today. */
static const uintptr_t DRY_BASE = (uintptr_t)1 << 60;

struct arena {
    struct vmem vmem; /* of a dry arena: base alone */
    uint64_t    limit, taken, peak;
    bool        dry, sealed;
};

int arena_open_on(struct arena **out, const struct vmem_ops *ops, int32_t device,
                  uint64_t limit_bytes, struct err *err)
{
    int           rc = ERR_OK;
    struct arena *arena = NULL;

    must(limit_bytes > 0 && limit_bytes < UINT64_MAX / 4);
    TRY(os_alloc((void **)&arena, 1, sizeof *arena, "an arena", err));
    arena->vmem.ops = ops;
    arena->vmem.device = device;
    TRY(ops->reserve(&arena->vmem, limit_bytes, err));
    arena->limit = arena->vmem.bytes;
    *out = arena;
    arena = NULL;
out:
    os_free(arena);
    return rc;
}

int arena_open(struct arena **out, uint64_t limit_bytes, struct err *err)
{
    return arena_open_on(out, &vmem_host, 0, limit_bytes, err);
}

int arena_open_dry(struct arena **out, struct err *err)
{
    int           rc = ERR_OK;
    struct arena *arena = NULL;

    TRY(os_alloc((void **)&arena, 1, sizeof *arena, "an arena", err));
    arena->vmem.base = (char *)DRY_BASE;
    arena->limit = UINT64_MAX / 4;
    arena->dry = true;
    *out = arena;
out:
    return rc;
}

void arena_close(struct arena *arena)
{
    if (arena == NULL) return;
    if (!arena->dry) arena->vmem.ops->release(&arena->vmem);
    os_free(arena);
}

static int commit(struct arena *arena, uint64_t bytes, struct err *err)
{
    int  rc = ERR_OK;
    char words[32], limit[32];

    if (bytes <= arena->vmem.committed) goto out;
    if (bytes > arena->limit)
        RAISE(err, arena->vmem.ops == &vmem_host ? ERR_HOST_MEM : ERR_DEVICE_MEM, 0,
              "memory: %s are needed, but the limit is %s", text_bytes(words, sizeof words, bytes),
              text_bytes(limit, sizeof limit, arena->limit));
    TRY(arena->vmem.ops->commit(&arena->vmem, bytes, err));
out:
    return rc;
}

void *arena_take(struct arena *arena, uint64_t bytes, const char *label)
{
    uint64_t   start = arena->taken, end = 0;
    struct err err = {0};

    must(bytes <= UINT64_MAX / 8);
    must(add_u64(start, (uint64_t)round_up_i64((int64_t)bytes, ALIGNMENT), &end));
    if (!arena->dry && end > arena->vmem.committed) {
        if (arena->sealed) must_fail("the arena is sealed and holds what was planned", label);
        if (commit(arena, end, &err) != ERR_OK) must_fail(err.text, label);
    }
    arena->taken = end;
    if (end > arena->peak) arena->peak = end;
    return arena->vmem.base + start;
}

struct arena_mark arena_mark(const struct arena *arena)
{
    return (struct arena_mark){.offset = arena->taken};
}

void arena_rewind(struct arena *arena, struct arena_mark mark)
{
    must(mark.offset <= arena->taken);
    arena->taken = mark.offset;
}

int arena_seal(struct arena *arena, uint64_t bytes, struct err *err)
{
    int rc = ERR_OK;

    must(!arena->dry);
    TRY(commit(arena, bytes, err));
    arena->sealed = true;
out:
    return rc;
}

uint64_t arena_bytes_peak(const struct arena *arena)
{
    return arena->peak;
}

bool arena_is_dry(const struct arena *arena)
{
    return arena->dry;
}

bool arena_holds(const struct arena *arena, const void *data, uint64_t bytes)
{
    uintptr_t start = (uintptr_t)data, base = (uintptr_t)arena->vmem.base;

    return start >= base && start - base <= arena->taken && bytes <= arena->taken - (start - base);
}

uint64_t arena_offset(const struct arena *arena, const void *data)
{
    return (uint64_t)((uintptr_t)data - (uintptr_t)arena->vmem.base);
}
