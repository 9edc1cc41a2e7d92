/*
 * trace.h - what a dry arena was asked for, and where it could all have been placed; private to
 * memory/ and to programs that measure.
 */
#ifndef MURAL_TRACE_H
#define MURAL_TRACE_H

#include "memory/memory.h"

/* ------------------------------------------------------------------------------------- record */

/* Times count takes, rewinds and uses, from 0.  What lives is there in [birth, death). */
struct trace_item {
    uint64_t    bytes, offset; /* with alignment; where the stack had it               */
    uint32_t    birth, death;  /* taken, rewound                                       */
    uint32_t    last_use;      /* of arena_touch; its birth when nobody ever touched it */
    const char *label;         /* the taker's */
};
struct trace;
int  trace_open(struct trace **out, struct err *err);
void trace_close(struct trace *trace);

/* From now on a dry, empty arena tells `trace` what is taken and rewound; NULL: nobody. */
void arena_record(struct arena *arena, struct trace *trace);
/* An operation reads or writes what lies around `data`.  Addresses of others are passed over. */
void arena_touch(struct arena *arena, const void *data);

/* What is still there dies now.  ERR_HOST_MEM when something could not be remembered.  The items,
 * in the order of their births, are the trace's. */
int trace_end(struct trace *trace, const struct trace_item **items_out, uint32_t *count_out,
              struct err *err);

/* For arena.c. */
void trace_take(struct trace *trace, uint64_t offset, uint64_t bytes, const char *label);
void trace_rewind(struct trace *trace, uint64_t offset);
void trace_touch(struct trace *trace, uint64_t offset);

/* -------------------------------------------------------------------------------------- solve */

struct solve_item {
    uint64_t bytes;        /* > 0 */
    uint32_t birth, death; /* birth < death */
};
struct solve_result {
    uint64_t live_bytes;   /* most that is alive at one time: no placement needs less */
    uint64_t greedy_bytes; /* of the greedy placement alone                           */
    uint64_t placed_bytes; /* end of the highest item                                 */
    uint32_t rounds;       /* of the search after it                                  */
};
/* placed / live - 1 */
double solve_gap(const struct solve_result *result);

/* What the items are, as one number: the same for the same bytes and lives in the same order. */
uint64_t solve_key(const struct solve_item *items, uint32_t count);

/* offsets_out [count]: items that are alive at one time do not overlap.  The same input gives the
 * same result; at most `rounds_max` placements are tried after the greedy one.  ERR_HOST_MEM. */
int solve_offsets(uint64_t *offsets_out, struct solve_result *result_out,
                  const struct solve_item *items, uint32_t count, uint32_t rounds_max,
                  struct err *err);

/* Solutions of the last few traces; the oldest makes room. */
struct solve_cache;
int  solve_cache_open(struct solve_cache **out, struct err *err);
void solve_cache_close(struct solve_cache *cache);
/* As solve_offsets, but what was asked before comes from the cache.  *offsets_out stays valid until
 * the next call. */
int solve_cached(struct solve_cache *cache, const uint64_t **offsets_out,
                 struct solve_result *result_out, const struct solve_item *items, uint32_t count,
                 uint32_t rounds_max, struct err *err);

#endif
