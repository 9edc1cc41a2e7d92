/*
 * solve.h - where all that a trace asks for could have been placed at best: what the engine's stack
 * is measured against.
 */
#ifndef MURAL_SOLVE_H
#define MURAL_SOLVE_H

#include "base/base.h"

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

/* offsets_out [count]: items that are alive at one time do not overlap.  The same input gives the
 * same result; at most `rounds_max` placements are tried after the greedy one.  ERR_HOST_MEM. */
int solve_offsets(uint64_t *offsets_out, struct solve_result *result_out,
                  const struct solve_item *items, uint32_t count, uint32_t rounds_max,
                  struct err *err);

#endif
