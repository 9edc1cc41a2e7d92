/*
 * arena.c - a stack of bytes in one reserved range of addresses.
 *
 * Owns the range: reserved once, mapped from its start as the stack grows, and unmapped from its
 * end when others need the memory more.  Knows nothing of what is stored.  Invariants: taken <=
 * peak; in a real arena taken <= mapped <= limit; while sealed, mapped never changes.
 *
 * Why a stack: at no size does a tile take half a percent more than in the best placement of lives
 * that are known beforehand (tests/unit/test_trace_cuda.c).  Offsets are those of the dry run, tile
 * after tile.
 *
 * A dry arena is the same arithmetic over addresses that belong to nobody: its base lies outside
 * what a process can map, so that a read or write by mistake stops at once.
 *
 * Read next: pool.c.
 */
#include "memory/memory_int.h"
#include "memory/trace.h"

enum { ALIGNMENT = 64 };

/* No canonical address on any 64-bit CPU of today. */
static const uintptr_t DRY_BASE = (uintptr_t)1 << 60;

/* What a pool of one arena may have beyond the arena's limit, because of rounding. */
static const uint64_t OWN_POOL_STEP = 64u << 20;

/* ------------------------------------------------------------------------------ open and close */

int arena_open_in(struct arena **out, struct pool *pool, uint64_t limit_bytes, struct err *err)
{
    int           rc = ERR_OK;
    struct arena *arena = NULL;

    must(limit_bytes > 0 && limit_bytes < UINT64_MAX / 4);
    TRY(os_alloc((void **)&arena, 1, sizeof *arena, "an arena", err));
    arena->pool = pool;
    arena->pieces = NO_PIECE;
    arena->limit = memory_round_up(limit_bytes, pieces_step(pool));
    TRY(pool_reserve(pool, &arena->base, arena->limit, err));
    if (!pool->options.expandable) {
        TRY(pool_map_odd(pool, &arena->pieces, arena->base, arena->limit, err));
        arena->mapped = arena->limit;
    }
    arena->next = pool->arenas;
    pool->arenas = arena;
    *out = arena;
    arena = NULL;
out:
    if (arena != NULL && arena->base != NULL) pool_close_range(pool, arena->base, arena->limit);
    os_free(arena);
    return rc;
}

int arena_open_on(struct arena **out, const struct vmem_ops *ops, int32_t device,
                  uint64_t limit_bytes, struct err *err)
{
    int                 rc = ERR_OK;
    struct pool        *pool = NULL;
    struct pool_options options = {
        .ops = ops, .device = device, .idle_share_max = 1, .expandable = true};

    must(limit_bytes > 0 && limit_bytes < INT64_MAX / 8);
    options.cap_bytes = memory_round_up(limit_bytes, OWN_POOL_STEP);
    TRY(pool_open(&pool, &options, err));
    TRY(arena_open_in(out, pool, limit_bytes, err));
    (*out)->owns_pool = true;
    pool = NULL;
out:
    pool_close(pool);
    return rc;
}

int arena_open(struct arena **out, uint64_t limit_bytes, struct err *err)
{
    return arena_open_on(out, &vmem_own, 0, limit_bytes, err);
}

int arena_open_dry(struct arena **out, struct err *err)
{
    int           rc = ERR_OK;
    struct arena *arena = NULL;

    TRY(os_alloc((void **)&arena, 1, sizeof *arena, "an arena", err));
    arena->base = (char *)DRY_BASE;
    arena->limit = UINT64_MAX / 4;
    *out = arena;
out:
    return rc;
}

static void unlink_arena(struct arena *arena)
{
    struct arena **link = &arena->pool->arenas;

    while (*link != arena)
        link = &(*link)->next;
    *link = arena->next;
}

void arena_close(struct arena *arena)
{
    struct pool *pool = arena == NULL ? NULL : arena->pool;
    struct err   err = {0};

    if (pool != NULL) {
        if (pool_settle(pool, &err) != ERR_OK) log_line(LOG_WARN, "%s", err.text);
        unlink_arena(arena);
        pool_note_give(pool, arena->live, arena->taken);
        pool_drop(pool, &arena->pieces);
        pool_close_range(pool, arena->base, arena->limit);
        if (arena->owns_pool) pool_close(pool);
    }
    os_free(arena);
}

/* --------------------------------------------------------------------------- grow and shrink */

static int grow(struct arena *arena, uint64_t target, struct err *err)
{
    int rc = ERR_OK;

    TRY(pool_map(arena->pool, &arena->pieces, arena->base + arena->mapped, target - arena->mapped,
                 arena, err));
    arena->mapped = target;
out:
    return rc;
}

/* At least `bytes` mapped; `ample`: up to a whole segment, if that is to be had without others'
 * loss. */
static int commit(struct arena *arena, uint64_t bytes, bool ample, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t target, segment;
    char     words[32], limit[32];

    if (bytes <= arena->mapped) goto out;
    if (bytes > arena->limit)
        RAISE(err, arena->pool->vmem.ops->shortage, 0, "memory: %s are needed, but the limit is %s",
              text_bytes(words, sizeof words, bytes),
              text_bytes(limit, sizeof limit, arena->limit));
    target = memory_round_up(bytes, pieces_step(arena->pool));
    segment = memory_round_up(bytes, arena->pool->size_bytes[0]);
    if (segment > arena->limit) segment = arena->limit;
    if (ample && segment > target && segment - arena->mapped <= pieces_at_hand(arena->pool)) {
        if (grow(arena, segment, err) == ERR_OK) goto out;
        *err = (struct err){0};
    }
    TRY(grow(arena, target, err));
out:
    return rc;
}

static void shrink(struct arena *arena, uint64_t target)
{
    struct err err = {0};
    uint64_t   least = max_u64(target, arena->taken), before;

    if (!arena->pool->options.expandable || least >= arena->mapped) return;
    before = arena->pool->counts.mapped;
    if (pool_unmap(arena->pool, &arena->pieces, arena->base + least, &err) != ERR_OK)
        log_line(LOG_WARN, "%s", err.text);
    arena->mapped -= before - arena->pool->counts.mapped;
}

int arena_seal(struct arena *arena, uint64_t bytes, struct err *err)
{
    int rc = ERR_OK;

    must(arena->pool != NULL);
    TRY(commit(arena, bytes, false, err));
    arena->sealed = true;
out:
    return rc;
}

void arena_trim(struct arena *arena, uint64_t bytes)
{
    if (arena->pool == NULL) return;
    arena->sealed = false;
    shrink(arena, bytes);
}

/* ------------------------------------------------------------------------------------- cycles */

uint64_t arena_in_use(const struct arena *arena)
{
    uint64_t bytes = arena->taken;

    for (size_t i = 0; i < CYCLES_KEPT; i++)
        bytes = max_u64(bytes, arena->cycles[i]);
    return bytes;
}

static uint64_t unused(const struct arena *arena)
{
    uint64_t in_use = arena_in_use(arena);

    return arena->sealed || in_use >= arena->mapped ? 0 : arena->mapped - in_use;
}

/* The stack is empty: what the last cycles left unused may be given to others. */
static void end_cycle(struct arena *arena)
{
    uint64_t idle = 0;

    if (arena->cycles[0] == 0) return;
    for (const struct arena *a = arena->pool->arenas; a != NULL; a = a->next)
        idle += unused(a);
    if (unused(arena) > 0 &&
        (double)idle > arena->pool->options.idle_share_max * (double)arena->pool->counts.mapped)
        shrink(arena, arena_in_use(arena));
    for (size_t i = CYCLES_KEPT - 1; i > 0; i--)
        arena->cycles[i] = arena->cycles[i - 1];
    arena->cycles[0] = 0;
}

/* ------------------------------------------------------------------------------------ the stack */

void *arena_take(struct arena *arena, uint64_t bytes, const char *label)
{
    uint64_t   start = arena->taken, end = 0;
    struct err err = {0};

    must(bytes <= UINT64_MAX / 8);
    must(add_u64(start, memory_round_up(bytes, ALIGNMENT), &end));
    if (arena->pool != NULL && end > arena->mapped) {
        if (arena->sealed) must_fail("the arena is sealed and holds what was planned", label);
        if (commit(arena, end, true, &err) != ERR_OK) must_fail(err.text, label);
    }
    arena->taken = end;
    arena->live += bytes;
    arena->peak = max_u64(arena->peak, end);
    arena->cycles[0] = max_u64(arena->cycles[0], end);
    if (arena->pool != NULL) pool_note_take(arena->pool, bytes, end - start);
    if (arena->trace != NULL) trace_take(arena->trace, start, end - start, label);
    return arena->base + start;
}

struct arena_mark arena_mark(const struct arena *arena)
{
    return (struct arena_mark){.offset = arena->taken, .live = arena->live};
}

void arena_rewind(struct arena *arena, struct arena_mark mark)
{
    must(mark.offset <= arena->taken && mark.live <= arena->live);
    if (arena->pool != NULL)
        pool_note_give(arena->pool, arena->live - mark.live, arena->taken - mark.offset);
    if (arena->trace != NULL) trace_rewind(arena->trace, mark.offset);
    arena->taken = mark.offset;
    arena->live = mark.live;
    if (arena->pool != NULL && mark.offset == 0 && !arena->sealed) end_cycle(arena);
}

void arena_record(struct arena *arena, struct trace *trace)
{
    must(arena->pool == NULL && (trace == NULL || arena->taken == 0));
    arena->trace = trace;
}

void arena_touch(struct arena *arena, const void *data)
{
    if (arena->trace != NULL && arena_holds(arena, data, 1))
        trace_touch(arena->trace, arena_offset(arena, data));
}

/* ---------------------------------------------------------------------------------- questions */

uint64_t arena_bytes_peak(const struct arena *arena)
{
    return arena->peak;
}

void arena_restart_peak(struct arena *arena)
{
    arena->peak = arena->taken;
}

uint64_t arena_bytes_mapped(const struct arena *arena)
{
    return arena->mapped;
}

bool arena_is_dry(const struct arena *arena)
{
    return arena->pool == NULL;
}

bool arena_holds(const struct arena *arena, const void *data, uint64_t bytes)
{
    uintptr_t start = (uintptr_t)data, base = (uintptr_t)arena->base;

    return start >= base && start - base <= arena->taken && bytes <= arena->taken - (start - base);
}

uint64_t arena_offset(const struct arena *arena, const void *data)
{
    return (uint64_t)((uintptr_t)data - (uintptr_t)arena->base);
}
