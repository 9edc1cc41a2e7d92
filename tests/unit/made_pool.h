/*
 * made_pool.h - pools and arenas over the watched stand-in for a GPU (shadow_vmem.h), in steps of
 * 2 MiB.
 */
#ifndef MURAL_MADE_POOL_H
#define MURAL_MADE_POOL_H

#include "shadow_vmem.h"

#include "memory/memory_int.h"

#define MIB ((uint64_t)1 << 20)

/* Every so many bytes one is written and looked at, and the last. */
enum { STRIDE = 65536 };
static inline uint64_t next(uint64_t at, uint64_t bytes)
{
    return at + STRIDE < bytes || at + 1 == bytes ? at + STRIDE : bytes - 1;
}

static inline struct pool *open_pool(uint64_t cap, uint64_t segment)
{
    struct err          err = {0};
    struct pool        *pool = NULL;
    struct pool_options options = {.ops = &shadow_ops,
                                   .cap_bytes = cap,
                                   .segment_bytes = segment,
                                   .idle_share_max = 1,
                                   .expandable = true};

    ASSERT_OK(pool_open(&pool, &options, &err));
    return pool;
}

static inline struct arena *open_arena(struct pool *pool, uint64_t limit)
{
    struct err    err = {0};
    struct arena *arena = NULL;

    ASSERT_OK(arena_open_in(&arena, pool, limit, &err));
    return arena;
}

static inline struct pool_counts counts_of(const struct pool *pool)
{
    struct pool_counts counts;

    pool_counts(pool, &counts);
    return counts;
}

#define FRESH(test) cmocka_unit_test_setup(test, shadow_begin)

#endif
