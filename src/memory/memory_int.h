/*
 * memory_int.h - what pieces, pool and arenas know of each other.
 *
 * Private to memory/.
 */
#ifndef MURAL_MEMORY_INT_H
#define MURAL_MEMORY_INT_H

#include "memory/memory.h"

/* Of bytes below 2^62. */
static inline uint64_t memory_round_up(uint64_t bytes, uint64_t multiple)
{
    return (uint64_t)round_up_i64((int64_t)bytes, (int64_t)multiple);
}

/* A physical piece.  It is in exactly one list: an arena's stack, the spare ones of its size, or
 * those that could not be unmapped; or in that of a program that measures. */
enum { SIZE_COUNT = 3, SIZE_ODD = SIZE_COUNT }; /* an odd piece is one arena's, and never spare */
enum { NO_PIECE = UINT32_MAX };
struct piece {
    uint64_t handle, bytes;
    char    *at;   /* where it is mapped; NULL: nowhere */
    uint32_t next; /* in its list                       */
    uint32_t size; /* index into size_bytes             */
};

struct history {
    struct pool_sample samples[POOL_SAMPLES_MAX];
    struct pool_sample peak; /* of all since the restart */
    uint32_t           count;
    double             lap;
};
void history_restart(struct history *history);
void history_note(struct history *history, double seconds, const struct pool_counts *now);

struct pool {
    struct vmem         vmem;
    struct pool_options options;
    uint64_t            size_bytes[SIZE_COUNT]; /* descending; multiples of the last */
    struct piece       *pieces;
    uint32_t            vacant; /* pieces that do not exist, as a list */
    uint32_t            spare[SIZE_COUNT], stuck;
    uint64_t            spare_bytes;
    struct arena       *arenas; /* all of them, newest first */
    struct pool_counts  counts;
    struct history      history;
};

/* -------------------------------------------------------------------------------- pieces.c */

/* Chooses the sizes, rounds the options to them, and makes the table; nothing is created.  Closing
 * gives all spare pieces back; it must come after all others are spare, and may come after an
 * opening that failed. */
int  pieces_open(struct pool *pool, struct err *err);
void pieces_close(struct pool *pool);

void     pieces_push(struct pool *pool, uint32_t *list, uint32_t id);
uint32_t pieces_pop(struct pool *pool, uint32_t *list); /* of a list with something in it */

/* A new piece, in no list.  What the cap allows is the caller's to look after. */
int  pieces_create(struct pool *pool, uint32_t *id_out, uint64_t bytes, uint32_t size,
                   struct err *err);
void pieces_destroy(struct pool *pool, uint32_t id);
/* One that is in no list and mapped nowhere becomes spare; an odd one is destroyed. */
void pieces_put_back(struct pool *pool, uint32_t id);
/* Pieces of `bytes` in all, the largest first, mapped nowhere; on failure all are spare. */
int pieces_gather(struct pool *pool, uint32_t *list_out, uint64_t bytes, struct err *err);
/* Gives back a spare piece of this size, or the smallest of the larger ones.  False: none is. */
bool pieces_give_up(struct pool *pool, uint32_t size);
bool pieces_give_up_larger(struct pool *pool, uint32_t size);

/* The smallest size; ranges of the pool are multiples of it. */
uint64_t pieces_step(const struct pool *pool);
/* Bytes that may be created; that may be mapped without robbing anybody. */
uint64_t pieces_cap_left(const struct pool *pool);
uint64_t pieces_at_hand(const struct pool *pool);
/* The error of `bytes` being more than the cap allows. */
int pieces_raise_cap(const struct pool *pool, uint64_t bytes, struct err *err);

/* ----------------------------------------------------------------------------------- rob.c */

/* Makes `bytes` come to hand under the cap, if others than `taker` have them idle; otherwise nobody
 * loses anything. */
int rob_make_room(struct pool *pool, const struct arena *taker, uint64_t bytes, struct err *err);
/* As pieces_gather; what the driver does not have, under the cap or not, others may have idle. */
int rob_gather(struct pool *pool, uint32_t *list_out, uint64_t bytes, const struct arena *taker,
               struct err *err);

/* ---------------------------------------------------------------------------------- pool.c */

int  pool_reserve(struct pool *pool, char **base_out, uint64_t bytes, struct err *err);
void pool_close_range(struct pool *pool, char *base, uint64_t bytes);

/* `bytes` (a multiple of pieces_step) mapped at `at`: all or nothing.  The pieces, the last one
 * first, become *list.  `taker` is not robbed; NULL is fine. */
int pool_map(struct pool *pool, uint32_t *list, char *at, uint64_t bytes, const struct arena *taker,
             struct err *err);
/* One piece of any size, instead of several. */
int pool_map_odd(struct pool *pool, uint32_t *list, char *at, uint64_t bytes, struct err *err);
/* Waits for the machine and unmaps pieces from the front of *list, until the next one begins below
 * `least`.  ERR_DEVICE; what was unmapped by then stays so. */
int pool_unmap(struct pool *pool, uint32_t *list, const char *least, struct err *err);
/* Waits for all work on the machine. */
int pool_settle(struct pool *pool, struct err *err);
/* Unmaps all of *list, after pool_settle or when nobody has seen it.  What the driver does not let
 * go of is out of use until its range is closed. */
void pool_drop(struct pool *pool, uint32_t *list);
/* Bytes that pool_unmap would unmap. */
uint64_t pool_unmappable(const struct pool *pool, uint32_t list, const char *least);

/* The counts have changed: keeps their peaks and their history. */
void pool_note(struct pool *pool);
/* `live` and `placed` bytes come (or go) somewhere over this pool. */
void pool_note_take(struct pool *pool, uint64_t live, uint64_t placed);
void pool_note_give(struct pool *pool, uint64_t live, uint64_t placed);

/* --------------------------------------------------------------------------------- arena.c */

/* Highest points of this many cycles (from one rewind to nothing to the next) are remembered. */
enum { CYCLES_KEPT = 4 };
struct trace;
struct arena {
    struct pool  *pool; /* NULL: dry */
    struct arena *next;
    char         *base;
    uint64_t      limit, mapped, taken, live, peak;
    uint64_t      cycles[CYCLES_KEPT]; /* [0]: the present one */
    uint32_t      pieces;              /* a stack */
    bool          owns_pool, sealed;
    struct trace *trace; /* of a dry arena, when somebody asked */
};
/* Most that the stack held lately, or holds. */
uint64_t arena_in_use(const struct arena *arena);

#endif
