/*
 * jobs_list.h - which jobs are painted to compare ways of using a GPU's memory, and what may be
 * said of how many succeed.
 *
 * Pure: a job depends on the plan and on its number alone, so that any part of a list is the same
 * jobs wherever it is painted.
 *
 * The cards that jobs are painted on stand for those of FLUX.1-dev.  A model with fewer blocks has
 * nothing else that is smaller, so a card is not smaller by some factor: it lies as far between the
 * least that the job can do with and all that it needs with every block in place as such a card
 * does for FLUX.1-dev, with a tile of that size; and what another program takes is measured by the
 * same yard.
 */
#ifndef MURAL_JOBS_LIST_H
#define MURAL_JOBS_LIST_H

#include "../test.h"

#include <math.h>

enum { JOBS_SIDES_MAX = 4, JOBS_CARDS = 5, JOBS_DRAWN = 6 };

/* When another program takes memory: never, while the engine takes its own, or before a call of the
 * painter. */
enum moment {
    MOMENT_NEVER = 0,
    MOMENT_RESERVE,
    MOMENT_PROMPT,
    MOMENT_ENCODE,
    MOMENT_STEP,
    MOMENT_DECODE,
    MOMENT_COUNT
};
static const char *const moment_names[MOMENT_COUNT] = {"never",  "reserve", "prompt",
                                                       "encode", "step",    "decode"};

struct job {
    uint32_t    number; /* from 1 */
    uint64_t    seed;
    int32_t     side_px;
    uint32_t    tiles, steps, card; /* card: index of jobs_cards */
    uint64_t    cap_bytes;          /* free when the job begins     */
    uint64_t    ballast_bytes;      /* that another program takes   */
    enum moment moment;
    uint32_t    at; /* that many calls of the moment's kind come before */
};

/* Bytes of a GPU that one tile of some size could do with, and takes with every block in place. */
struct jobs_needs {
    double least, placed;
};

struct jobs_plan {
    uint64_t          seed;
    int32_t           sides_px[JOBS_SIDES_MAX];
    struct jobs_needs needs[JOBS_SIDES_MAX]; /* of the model that is painted with */
    uint32_t          side_count, tiles_most, steps;
    uint64_t          cap_bytes; /* not 0: of every job, and nobody takes anything */
};

/* Of FLUX.1-dev, tiles of 512, 1024, 1536 and 2048 px, as `bench_jobs --needs flux1-dev` says. */
static const struct jobs_needs jobs_flux[JOBS_SIDES_MAX] = {
    {2.324e9, 18.405e9}, {2.447e9, 18.528e9}, {2.800e9, 18.881e9}, {3.301e9, 19.382e9}};
static const double jobs_cards_gb[JOBS_CARDS] = {24, 16, 12, 8, 6};
/* Of six jobs two are on the first, which is what others have published figures of. */
static const uint32_t jobs_drawn[JOBS_DRAWN] = {0, 0, 1, 2, 3, 4};

/* What `gigabytes` of memory are to this model where they are `gigabytes` to FLUX.1-dev. */
static inline double jobs_scaled(const struct jobs_plan *plan, uint32_t side, double gigabytes)
{
    const struct jobs_needs *here = &plan->needs[side], *there = &jobs_flux[side];

    return 1e9 * gigabytes * (here->placed - here->least) / (there->placed - there->least);
}

static inline uint64_t jobs_card_bytes(const struct jobs_plan *plan, uint32_t side, uint32_t card)
{
    double above = jobs_cards_gb[card] - jobs_flux[side].least / 1e9;

    return (uint64_t)(plan->needs[side].least + jobs_scaled(plan, side, above));
}

static inline struct job job_make(const struct jobs_plan *plan, uint32_t number)
{
    uint64_t   state = plan->seed * UINT64_C(1000003) + number;
    struct job job = {.number = number, .seed = random_u64(&state) >> 2, .steps = plan->steps};

    uint32_t side = (uint32_t)(random_u64(&state) % plan->side_count);
    job.side_px = plan->sides_px[side];
    job.tiles = (uint32_t)random_between(&state, 1, plan->tiles_most);
    job.card = jobs_drawn[random_u64(&state) % JOBS_DRAWN];
    job.cap_bytes = jobs_card_bytes(plan, side, job.card);
    job.moment = (enum moment)random_between(&state, 0, MOMENT_COUNT - 1);
    double part = (double)random_between(&state, 5, 25) / 100;
    job.ballast_bytes = (uint64_t)jobs_scaled(plan, side, part * jobs_cards_gb[job.card]);
    if (job.moment == MOMENT_RESERVE) job.at = (uint32_t)random_between(&state, 0, 7);
    if (job.moment == MOMENT_STEP)
        job.at = (uint32_t)random_between(&state, 0, (int64_t)plan->steps - 1);
    if (job.moment == MOMENT_ENCODE || job.moment == MOMENT_DECODE)
        job.at = (uint32_t)random_between(&state, 0, (int64_t)job.tiles - 1);
    if (plan->cap_bytes > 0) {
        job.cap_bytes = plan->cap_bytes;
        job.moment = MOMENT_NEVER;
    }
    if (job.moment == MOMENT_NEVER) job.ballast_bytes = 0;
    return job;
}

/* The interval of Wilson's score that holds a share of which `good` of `all` (at least 1) were
 * seen, in 95 of 100 cases. */
static inline void wilson(uint32_t good, uint32_t all, double *low_out, double *high_out)
{
    const double z = 1.959963984540054, n = all, p = good / n;
    double       middle = p + z * z / (2 * n);
    double       reach = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n));

    *low_out = fmax(0, (middle - reach) / (1 + z * z / n));
    *high_out = fmin(1, (middle + reach) / (1 + z * z / n));
}

static inline int jobs_by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* Sorts them; 0 of none. */
static inline double median(double *values, uint32_t count)
{
    if (count == 0) return 0;
    qsort(values, count, sizeof *values, jobs_by_value);
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

#endif
