/*
 * arena.c - a stack of bytes in one reserved range of addresses.
 *
 * Owns the range: reserved once, committed in pieces as the stack grows, given back at close. Knows
 * nothing of what is stored.  Invariants: taken <= peak; in a real arena taken <= committed <=
 * limit; after the seal, committed never changes again.
 *
 * A dry arena is the same arithmetic over addresses that belong to nobody: its base lies outside
 * what a process can map, so that a read or write by mistake stops at once.
 */
#include "memory/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64 };

static const uint64_t  COMMIT_STEP = 2u << 20; /* a huge page */
static const uintptr_t DRY_BASE = (uintptr_t)1
                                  << 60; /* no canonical address on any 64-bit CPU of today */

struct arena {
    char    *base;
    uint64_t limit, committed, taken, peak;
    bool     dry, sealed;
};

int arena_open(struct arena **out, uint64_t limit_bytes, struct err *err)
{
    int           rc = ERR_OK;
    struct arena *arena = NULL;
    void         *base;
    char          words[32];

    must(limit_bytes > 0 && limit_bytes < UINT64_MAX / 4);
    TRY(os_alloc((void **)&arena, 1, sizeof *arena, "an arena", err));
    arena->limit = (uint64_t)round_up_i64((int64_t)limit_bytes, (int64_t)COMMIT_STEP);
    base = os.mmap(NULL, (size_t)arena->limit, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        RAISE(err, ERR_HOST_MEM, errno, "memory: cannot reserve %s of addresses: %s",
              text_bytes(words, sizeof words, arena->limit), strerror(errno));
    arena->base = base;
    *out = arena;
    arena = NULL;
out:
    os_free(arena);
    return rc;
}

int arena_open_dry(struct arena **out, struct err *err)
{
    int           rc = ERR_OK;
    struct arena *arena = NULL;

    TRY(os_alloc((void **)&arena, 1, sizeof *arena, "an arena", err));
    arena->base = (char *)DRY_BASE;
    arena->limit = UINT64_MAX / 4;
    arena->dry = true;
    *out = arena;
out:
    return rc;
}

void arena_close(struct arena *arena)
{
    if (arena == NULL) return;
    if (!arena->dry) (void)os.munmap(arena->base, (size_t)arena->limit);
    os_free(arena);
}

static int commit(struct arena *arena, uint64_t bytes, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t target = (uint64_t)round_up_i64((int64_t)bytes, (int64_t)COMMIT_STEP);
    char     words[32], limit[32];

    if (target <= arena->committed) goto out;
    if (target > arena->limit)
        RAISE(err, ERR_HOST_MEM, 0, "memory: %s are needed, but the limit is %s",
              text_bytes(words, sizeof words, target),
              text_bytes(limit, sizeof limit, arena->limit));
    if (os.mprotect(arena->base + arena->committed, (size_t)(target - arena->committed),
                    PROT_READ | PROT_WRITE) != 0)
        RAISE(err, ERR_HOST_MEM, errno, "memory: cannot commit %s: %s",
              text_bytes(words, sizeof words, target), strerror(errno));
    arena->committed = target;
out:
    return rc;
}

void *arena_take(struct arena *arena, uint64_t bytes, const char *label)
{
    uint64_t   start = arena->taken, end = 0;
    struct err err = {0};

    must(bytes <= UINT64_MAX / 8);
    must(add_u64(start, (uint64_t)round_up_i64((int64_t)bytes, ALIGNMENT), &end));
    if (!arena->dry && end > arena->committed) {
        if (arena->sealed) must_fail("the arena is sealed and holds what was planned", label);
        if (commit(arena, end, &err) != ERR_OK) must_fail(err.text, label);
    }
    arena->taken = end;
    if (end > arena->peak) arena->peak = end;
    return arena->base + start;
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
