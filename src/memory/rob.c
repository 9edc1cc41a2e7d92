/*
 * rob.c - memory for an arena that grows, from others that have it mapped and do not use it.
 *
 * Owns who is robbed, of how much, and when.  Knows of arenas only where their stacks end and ended
 * lately; sealed ones are never touched.  A robbery waits for the device, so it comes last, unless
 * more lies idle than the options of the pool allow.
 *
 * Read next: arena.c.
 */
#include "memory/memory_int.h"

/* What `arena` can do without: above its stack, or (`gently`) above what it lately was. */
static const char *least_of(const struct arena *arena, bool gently)
{
    return arena->base + (gently ? arena_in_use(arena) : arena->taken);
}

static uint64_t idle_of(const struct pool *pool, const struct arena *arena, bool gently)
{
    return arena->sealed ? 0 : pool_unmappable(pool, arena->pieces, least_of(arena, gently));
}

static int rob_one(struct pool *pool, struct arena *victim, bool gently, uint64_t bytes,
                   struct err *err)
{
    int         rc = ERR_OK;
    uint64_t    gained = 0, before = pool->spare_bytes;
    const char *least = least_of(victim, gently);
    uint32_t    id = victim->pieces;

    while (gained < bytes && id != NO_PIECE && pool->pieces[id].at >= least) {
        gained += pool->pieces[id].bytes;
        if (gained >= bytes) least = pool->pieces[id].at;
        id = pool->pieces[id].next;
    }
    rc = pool_unmap(pool, &victim->pieces, least, err);
    victim->mapped -= pool->spare_bytes - before;
    pool->counts.robbed += pool->spare_bytes - before;
    return rc;
}

/* Of all arenas but the taker. */
static uint64_t idle_of_others(const struct pool *pool, const struct arena *taker, bool gently)
{
    uint64_t bytes = 0;

    for (const struct arena *a = pool->arenas; a != NULL && pool->options.expandable; a = a->next)
        if (a != taker) bytes += idle_of(pool, a, gently);
    return bytes;
}

/* Idle tails become spare until `bytes` are, first those that were idle lately too. */
static int rob_until(struct pool *pool, const struct arena *taker, bool gently, uint64_t bytes,
                     struct err *err)
{
    int rc = ERR_OK;

    for (int harsh = 0; harsh < (gently ? 1 : 2); harsh++)
        for (struct arena *a = pool->arenas; a != NULL; a = a->next) {
            if (bytes <= pool->spare_bytes) goto out;
            if (a != taker && idle_of(pool, a, harsh == 0) > 0)
                TRY(rob_one(pool, a, harsh == 0, bytes - pool->spare_bytes, err));
        }
out:
    return rc;
}

/* Too much of what is mapped lies idle to ask the driver for more. */
static bool is_fragmented(const struct pool *pool, const struct arena *taker)
{
    return (double)idle_of_others(pool, taker, true) >
           pool->options.idle_share_max * (double)pool->counts.mapped;
}

int rob_make_room(struct pool *pool, const struct arena *taker, uint64_t bytes, struct err *err)
{
    int rc = ERR_OK;

    if (bytes > pool->spare_bytes && is_fragmented(pool, taker))
        TRY(rob_until(pool, taker, true, bytes, err));
    if (bytes <= pieces_at_hand(pool)) goto out;
    if (bytes > pieces_at_hand(pool) + idle_of_others(pool, taker, false))
        TRY(pieces_raise_cap(pool, bytes, err));
    TRY(rob_until(pool, taker, false, bytes - pieces_cap_left(pool), err));
out:
    return rc;
}

int rob_gather(struct pool *pool, uint32_t *list_out, uint64_t bytes, const struct arena *taker,
               struct err *err)
{
    int rc = pieces_gather(pool, list_out, bytes, err);

    if (rc != (int)pool->vmem.ops->shortage) goto out;
    if (bytes > pool->spare_bytes + idle_of_others(pool, taker, false)) goto out;
    *err = (struct err){0};
    TRY(rob_until(pool, taker, false, bytes, err));
    TRY(pieces_gather(pool, list_out, bytes, err));
out:
    return rc;
}
