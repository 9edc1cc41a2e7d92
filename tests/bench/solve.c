/*
 * solve.c - fixed offsets for items whose lives are known, as low as they will go.
 *
 * Owns nothing between calls.  First greedy: the largest first, each into the
 * smallest gap among the items that it meets; and in the order of births, each into the lowest gap,
 * which is what a stack does and best for what is one.  From the better of both a search: one of
 * the items that reach the top moves forward in the order, and what is not worse is kept, until the
 * top is what lives at one time or the rounds are used up.  Both are functions of the input alone:
 * no clock, no chance that is not seeded here.
 *
 * Read next: engine_trace.h.
 */
#include "tests/bench/solve.h"

#include <stdlib.h>
#include <string.h>

/* Of the search; those before it are the two starts. */
enum { FIRST_ROUND = 3 };

struct solver {
    const struct solve_item *items;
    uint32_t                 count;
    uint32_t *first, *meets; /* items that item i meets: meets[first[i]..first[i+1]) */
    uint32_t *order, *best_order;
    uint64_t *offsets;
    uint64_t (*gaps)[2]; /* begin and end of the placed ones that an item meets */
    uint32_t *rank;      /* when an item was placed in this round */
    uint64_t  random;
    bool      lowest; /* fit into the lowest gap instead of the smallest */
};

double solve_gap(const struct solve_result *result)
{
    return result->live_bytes == 0 ? 0
                                   : (double)result->placed_bytes / (double)result->live_bytes - 1;
}

static uint64_t next_random(struct solver *solver)
{
    uint64_t z = (solver->random += UINT64_C(0x9E3779B97F4A7C15));

    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* --------------------------------------------------------------------------------- who meets whom
 */

static int by_birth(const void *a, const void *b)
{
    const struct solve_item *x = *(const struct solve_item *const *)a;
    const struct solve_item *y = *(const struct solve_item *const *)b;

    if (x->birth != y->birth) return x->birth < y->birth ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* Calls `count_only ? count : store` for each pair that is alive at one time; returns the most
 * bytes alive. `living` [count] is scratch. */
static uint64_t sweep(struct solver *solver, const struct solve_item **sorted, uint32_t *living,
                      bool store)
{
    uint32_t living_count = 0;
    uint64_t bytes = 0, most = 0;

    for (uint32_t i = 0; i < solver->count; i++) {
        uint32_t id = (uint32_t)(sorted[i] - solver->items), kept = 0;
        for (uint32_t k = 0; k < living_count; k++) {
            uint32_t other = living[k];
            if (solver->items[other].death <= sorted[i]->birth) {
                bytes -= solver->items[other].bytes;
                continue;
            }
            living[kept++] = other;
            if (store) {
                solver->meets[solver->first[id]++] = other;
                solver->meets[solver->first[other]++] = id;
            } else {
                solver->first[id]++;
                solver->first[other]++;
            }
        }
        living_count = kept;
        living[living_count++] = id;
        bytes += sorted[i]->bytes;
        if (bytes > most) most = bytes;
    }
    return most;
}

static int find_meetings(struct solver *solver, uint64_t *live_out, struct err *err)
{
    int                       rc = ERR_OK;
    const struct solve_item **sorted = NULL;
    uint64_t                  pairs = 0;
    uint32_t                  n = solver->count;

    TRY(os_alloc((void **)&sorted, n, sizeof *sorted, "a trace", err));
    for (uint32_t i = 0; i < n; i++) {
        must(solver->items[i].bytes > 0 && solver->items[i].birth < solver->items[i].death);
        sorted[i] = &solver->items[i];
    }
    qsort(sorted, n, sizeof *sorted, by_birth);
    *live_out = sweep(solver, sorted, solver->rank, false);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t meets = solver->first[i];
        solver->first[i] = (uint32_t)pairs;
        pairs += meets;
    }
    if (pairs > INT32_MAX)
        RAISE(err, ERR_HOST_MEM, 0,
              "memory: a trace of %u items has too many that live at one time (%.0f million pairs)",
              n, (double)pairs / 1e6);
    TRY(os_alloc((void **)&solver->meets, pairs + 1, sizeof *solver->meets, "a trace", err));
    (void)sweep(solver, sorted, solver->rank, true);
    for (uint32_t i = n; i > 0; i--) /* each was moved to its end */
        solver->first[i] = solver->first[i - 1];
    solver->first[0] = 0;
out:
    os_free(sorted);
    return rc;
}

/* -------------------------------------------------------------------------------------- place */

static int by_offset(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return x[0] < y[0] ? -1 : x[0] > y[0];
}

/* The smallest gap that holds the item (or the lowest), or above all that it meets. */
static uint64_t fit(struct solver *solver, uint32_t id, uint32_t round)
{
    uint32_t count = 0;
    uint64_t bytes = solver->items[id].bytes, end = 0, best = UINT64_MAX, at = 0;

    for (uint32_t k = solver->first[id]; k < solver->first[id + 1]; k++) {
        uint32_t other = solver->meets[k];
        if (solver->rank[other] != round) continue;
        solver->gaps[count][0] = solver->offsets[other];
        solver->gaps[count++][1] = solver->offsets[other] + solver->items[other].bytes;
    }
    qsort(solver->gaps, count, sizeof *solver->gaps, by_offset);
    for (uint32_t k = 0; k < count; k++) {
        uint64_t gap = solver->gaps[k][0] > end ? solver->gaps[k][0] - end : 0;
        if (gap >= bytes && gap < best) {
            best = gap;
            at = end;
            if (solver->lowest) break;
        }
        end = max_u64(end, solver->gaps[k][1]);
    }
    return best == UINT64_MAX ? end : at;
}

/* The top of all when placed in solver->order; UINT64_MAX as soon as it is above `most`. */
static uint64_t place(struct solver *solver, uint32_t round, uint64_t most)
{
    uint64_t top = 0;

    for (uint32_t i = 0; i < solver->count; i++) {
        uint32_t id = solver->order[i];
        solver->offsets[id] = fit(solver, id, round);
        solver->rank[id] = round;
        top = max_u64(top, solver->offsets[id] + solver->items[id].bytes);
        if (top > most) return UINT64_MAX;
    }
    return top;
}

/* The n-th of those that reach `top`, where offsets_out is what was kept. */
static uint32_t one_at_the_top(struct solver *solver, const uint64_t *offsets, uint64_t top)
{
    uint32_t chosen = 0;
    uint64_t seen = 0;

    for (uint32_t i = 0; i < solver->count; i++) {
        uint32_t id = solver->order[i];
        if (offsets[id] + solver->items[id].bytes != top) continue;
        if (next_random(solver) % ++seen == 0) chosen = i;
    }
    return chosen;
}

static void move_forward(struct solver *solver, uint32_t from)
{
    uint32_t to = from == 0 ? 0 : (uint32_t)(next_random(solver) % from);
    uint32_t id = solver->order[from];

    memmove(&solver->order[to + 1], &solver->order[to], (from - to) * sizeof *solver->order);
    solver->order[to] = id;
}

static void search(struct solver *solver, uint64_t *offsets_out, struct solve_result *result,
                   uint32_t rounds_max)
{
    size_t order_bytes = solver->count * sizeof *solver->order;

    while (result->placed_bytes > result->live_bytes && result->rounds < rounds_max) {
        uint64_t top;
        uint32_t picked = one_at_the_top(solver, offsets_out, result->placed_bytes);
        memcpy(solver->best_order, solver->order, order_bytes);
        /* Now and then any item, so that the search leaves a dead end. */
        if (next_random(solver) % 4 == 0) picked = (uint32_t)(next_random(solver) % solver->count);
        move_forward(solver, picked);
        result->rounds++;
        top = place(solver, FIRST_ROUND + result->rounds, result->placed_bytes);
        if (top == UINT64_MAX) {
            memcpy(solver->order, solver->best_order, order_bytes);
            continue;
        }
        result->placed_bytes = top;
        memcpy(offsets_out, solver->offsets, solver->count * sizeof *offsets_out);
    }
}

/* -------------------------------------------------------------------------------------- solve */

/* qsort has no argument for it; an order by value needs none. */
struct ranked {
    uint64_t bytes;
    uint32_t life, id;
};

static int by_size(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    if (x->life != y->life) return x->life > y->life ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int order_by_size(struct solver *solver, struct err *err)
{
    int            rc = ERR_OK;
    struct ranked *ranked = NULL;

    TRY(os_alloc((void **)&ranked, solver->count, sizeof *ranked, "a trace", err));
    for (uint32_t i = 0; i < solver->count; i++)
        ranked[i] = (struct ranked){.bytes = solver->items[i].bytes,
                                    .life = solver->items[i].death - solver->items[i].birth,
                                    .id = i};
    qsort(ranked, solver->count, sizeof *ranked, by_size);
    for (uint32_t i = 0; i < solver->count; i++)
        solver->order[i] = ranked[i].id;
out:
    os_free(ranked);
    return rc;
}

/* Items are numbered by birth, or nearly: a trace has them so. */
static void try_births(struct solver *solver, uint64_t *offsets_out, struct solve_result *result)
{
    size_t   order_bytes = solver->count * sizeof *solver->order;
    uint64_t top;

    if (result->placed_bytes == result->live_bytes) return;
    memcpy(solver->best_order, solver->order, order_bytes);
    for (uint32_t i = 0; i < solver->count; i++)
        solver->order[i] = i;
    solver->lowest = true;
    top = place(solver, FIRST_ROUND - 1, result->placed_bytes);
    if (top < result->placed_bytes) {
        result->placed_bytes = top;
        memcpy(offsets_out, solver->offsets, solver->count * sizeof *offsets_out);
        return;
    }
    solver->lowest = false;
    memcpy(solver->order, solver->best_order, order_bytes);
}

static int open_solver(struct solver *solver, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t n = solver->count;

    TRY(os_alloc((void **)&solver->first, n + 1, sizeof *solver->first, "a trace", err));
    TRY(os_alloc((void **)&solver->order, n, sizeof *solver->order, "a trace", err));
    TRY(os_alloc((void **)&solver->best_order, n, sizeof *solver->best_order, "a trace", err));
    TRY(os_alloc((void **)&solver->offsets, n, sizeof *solver->offsets, "a trace", err));
    TRY(os_alloc((void **)&solver->gaps, n, sizeof *solver->gaps, "a trace", err));
    TRY(os_alloc((void **)&solver->rank, n, sizeof *solver->rank, "a trace", err));
out:
    return rc;
}

static void close_solver(struct solver *solver)
{
    os_free(solver->first);
    os_free(solver->meets);
    os_free(solver->order);
    os_free(solver->best_order);
    os_free(solver->offsets);
    os_free(solver->gaps);
    os_free(solver->rank);
}

int solve_offsets(uint64_t *offsets_out, struct solve_result *result_out,
                  const struct solve_item *items, uint32_t count, uint32_t rounds_max,
                  struct err *err)
{
    int                 rc = ERR_OK;
    struct solver       solver = {.items = items, .count = count, .random = count};
    struct solve_result result = {.live_bytes = 0};

    if (count == 0) goto out;
    TRY(open_solver(&solver, err));
    TRY(find_meetings(&solver, &result.live_bytes, err));
    TRY(order_by_size(&solver, err));
    memset(solver.rank, 0, count * sizeof *solver.rank);
    result.placed_bytes = result.greedy_bytes = place(&solver, 1, UINT64_MAX - 1);
    memcpy(offsets_out, solver.offsets, count * sizeof *offsets_out);
    try_births(&solver, offsets_out, &result);
    search(&solver, offsets_out, &result, rounds_max);
out:
    close_solver(&solver);
    *result_out = result;
    return rc;
}
