/*
 * pool.c - the physical memory of one device: created once, shown where it is needed.
 *
 * Owns every physical piece and the counting of them.  Knows of arenas only where their stacks end,
 * so that a growing one may have what another has mapped and does not use.  What is asked for is
 * put together in the order of cost: spare pieces (a mapping each), new ones (a hundred times
 * that), spare ones of the wrong size given back for new ones, idle tails of other arenas (a wait
 * for the device).
 *
 * Invariants: a piece is in one list; device = mapped + spare + stuck <= cap; mapping is all or
 * nothing.  A piece is stuck when the driver neither shows nor hides it; closing its range tries
 * again.
 *
 * Read next: arena.c.
 */
#include "memory/memory_int.h"

static const uint64_t SMALL = 2u << 20, MIDDLE = 32u << 20, LARGE = 256u << 20;

/* ------------------------------------------------------------------------------------ lists */

static void push(struct pool *pool, uint32_t *list, uint32_t id)
{
    pool->pieces[id].next = *list;
    *list = id;
}

static uint32_t pop(struct pool *pool, uint32_t *list)
{
    uint32_t id = *list;

    must(id != NO_PIECE);
    *list = pool->pieces[id].next;
    return id;
}

static void reverse(struct pool *pool, uint32_t *list)
{
    uint32_t reversed = NO_PIECE;

    while (*list != NO_PIECE)
        push(pool, &reversed, pop(pool, list));
    *list = reversed;
}

/* ----------------------------------------------------------------------------------- pieces */

static void note(struct pool *pool)
{
    history_note(&pool->history, os_seconds(), &pool->counts);
}

static void count_peaks(struct pool *pool)
{
    struct pool_counts *counts = &pool->counts;

    counts->peak_live = max_u64(counts->peak_live, counts->live);
    counts->peak_placed = max_u64(counts->peak_placed, counts->placed);
    counts->peak_mapped = max_u64(counts->peak_mapped, counts->mapped);
    counts->peak_device = max_u64(counts->peak_device, counts->device);
    note(pool);
}

static int create(struct pool *pool, uint32_t *id_out, uint64_t bytes, uint32_t size,
                  struct err *err)
{
    int      rc = ERR_OK;
    uint64_t handle = 0;

    TRY(pool->vmem.ops->create(&pool->vmem, &handle, bytes, err));
    *id_out = pop(pool, &pool->vacant);
    pool->pieces[*id_out] =
        (struct piece){.handle = handle, .bytes = bytes, .size = size, .next = NO_PIECE};
    pool->counts.created++;
    pool->counts.device += bytes;
    count_peaks(pool);
out:
    return rc;
}

static void destroy(struct pool *pool, uint32_t id)
{
    struct piece *piece = &pool->pieces[id];

    pool->vmem.ops->release(&pool->vmem, piece->handle, piece->bytes);
    pool->counts.released++;
    pool->counts.device -= piece->bytes;
    push(pool, &pool->vacant, id);
}

static uint32_t take_spare(struct pool *pool, uint32_t size)
{
    uint32_t id = pop(pool, &pool->spare[size]);

    pool->spare_bytes -= pool->pieces[id].bytes;
    return id;
}

/* A piece that is mapped nowhere. */
static void put_back(struct pool *pool, uint32_t id)
{
    struct piece *piece = &pool->pieces[id];

    piece->at = NULL;
    if (piece->size == SIZE_ODD) {
        destroy(pool, id);
        return;
    }
    pool->spare_bytes += piece->bytes;
    push(pool, &pool->spare[piece->size], id);
}

static uint64_t cap_left(const struct pool *pool)
{
    return pool->options.cap_bytes - pool->counts.device;
}

uint64_t pool_at_hand(const struct pool *pool)
{
    return cap_left(pool) + pool->spare_bytes;
}

uint64_t pool_step(const struct pool *pool)
{
    return pool->size_bytes[SIZE_COUNT - 1];
}

/* ------------------------------------------------------------------------------------- gather */

static int raise_cap(const struct pool *pool, uint64_t bytes, struct err *err)
{
    int  rc = ERR_OK;
    char words[3][32];

    RAISE(err, pool->vmem.ops->shortage, 0,
          "memory: %s more are asked for, %s are mapped already, and the cap is %s; raise the cap "
          "or ask for less at once",
          text_bytes(words[0], sizeof words[0], bytes),
          text_bytes(words[1], sizeof words[1], pool->counts.mapped),
          text_bytes(words[2], sizeof words[2], pool->options.cap_bytes));
out:
    return rc;
}

/* Of the largest size up to `size` that the cap and the driver have. */
static int create_within(struct pool *pool, uint32_t *id_out, uint32_t size, struct err *err)
{
    int rc = ERR_OK;

    if (cap_left(pool) < pool_step(pool)) TRY(raise_cap(pool, pool->size_bytes[size], err));
    for (; size < SIZE_COUNT; size++) {
        if (pool->size_bytes[size] > cap_left(pool)) continue;
        *err = (struct err){0};
        rc = create(pool, id_out, pool->size_bytes[size], size, err);
        if (rc != (int)pool->vmem.ops->shortage) break;
    }
out:
    return rc;
}

static uint32_t largest_spare(const struct pool *pool, uint32_t size)
{
    while (size < SIZE_COUNT && pool->spare[size] == NO_PIECE)
        size++;
    return size;
}

/* Are the spare pieces below this size enough to stand for one of it? */
static bool smaller_ones_do(const struct pool *pool, uint32_t size)
{
    uint64_t bytes = pool->spare_bytes;

    for (uint32_t s = 0; s <= size; s++)
        for (uint32_t id = pool->spare[s]; id != NO_PIECE; id = pool->pieces[id].next)
            bytes -= pool->pieces[id].bytes;
    return bytes >= pool->size_bytes[size];
}

static bool give_up_larger(struct pool *pool, uint32_t size)
{
    for (uint32_t s = size; s-- > 0;) {
        if (pool->spare[s] == NO_PIECE) continue;
        destroy(pool, take_spare(pool, s));
        return true;
    }
    return false;
}

/* A piece of at most `bytes`. */
static int next_piece(struct pool *pool, uint32_t *id_out, uint64_t bytes, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t size = 0, spare;

    while (pool->size_bytes[size] > bytes)
        size++;
    spare = largest_spare(pool, size);
    if (spare > size && !smaller_ones_do(pool, size)) {
        do {
            rc = create_within(pool, id_out, size, err);
        } while (rc != ERR_OK && spare == SIZE_COUNT && give_up_larger(pool, size));
        if (rc == ERR_OK || spare == SIZE_COUNT) goto out;
        *err = (struct err){0};
        rc = ERR_OK;
    }
    *id_out = take_spare(pool, spare);
out:
    if (rc == ERR_OK) *err = (struct err){0};
    return rc;
}

/* Pieces of `bytes` in all, the largest first, mapped nowhere; on failure all are spare. */
static int gather(struct pool *pool, uint32_t *list_out, uint64_t bytes, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t list = NO_PIECE, id = NO_PIECE;

    while (bytes > 0) {
        TRY(next_piece(pool, &id, bytes, err));
        push(pool, &list, id);
        bytes -= pool->pieces[id].bytes;
    }
    reverse(pool, &list);
    *list_out = list;
    list = NO_PIECE;
out:
    while (list != NO_PIECE)
        put_back(pool, pop(pool, &list));
    return rc;
}

/* ---------------------------------------------------------------------------- map and unmap */

static int unmap_piece(struct pool *pool, uint32_t id, struct err *err)
{
    int           rc = ERR_OK;
    struct piece *piece = &pool->pieces[id];

    TRY(pool->vmem.ops->unmap(&pool->vmem, piece->at, piece->bytes, err));
    pool->counts.unmapped++;
    pool->counts.mapped -= piece->bytes;
    note(pool);
out:
    return rc;
}

/* Of a mapping that nobody has seen yet: nothing to wait for. */
static void take_back(struct pool *pool, uint32_t id)
{
    struct err ignored = {0};

    if (unmap_piece(pool, id, &ignored) == ERR_OK) {
        put_back(pool, id);
        return;
    }
    pool->counts.mapped -= pool->pieces[id].bytes;
    push(pool, &pool->stuck, id);
}

/* Tries again what the driver refused to unmap. */
static void unstick(struct pool *pool)
{
    struct err ignored = {0};
    uint32_t   stuck = pool->stuck;

    pool->stuck = NO_PIECE;
    while (stuck != NO_PIECE) {
        uint32_t      id = pop(pool, &stuck);
        struct piece *piece = &pool->pieces[id];
        if (pool->vmem.ops->unmap(&pool->vmem, piece->at, piece->bytes, &ignored) == ERR_OK) {
            pool->counts.unmapped++;
            put_back(pool, id);
        } else {
            push(pool, &pool->stuck, id);
        }
    }
}

static int map_all(struct pool *pool, uint32_t *list, uint32_t gathered, char *at, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t mapped = *list;
    char    *end = at;

    while (gathered != NO_PIECE) {
        struct piece *piece = &pool->pieces[gathered];
        TRY(pool->vmem.ops->map(&pool->vmem, end, piece->handle, piece->bytes, err));
        pool->counts.mapped_calls++;
        pool->counts.mapped += piece->bytes;
        piece->at = end;
        end += piece->bytes;
        push(pool, &mapped, pop(pool, &gathered));
    }
    TRY(pool->vmem.ops->access(&pool->vmem, at, (uint64_t)(end - at), err));
    pool->counts.access++;
    count_peaks(pool);
    *list = mapped;
out:
    while (rc != ERR_OK && mapped != *list)
        take_back(pool, pop(pool, &mapped));
    while (gathered != NO_PIECE)
        put_back(pool, pop(pool, &gathered));
    return rc;
}

int pool_settle(struct pool *pool, struct err *err)
{
    int rc = ERR_OK;

    TRY(pool->vmem.ops->settle(&pool->vmem, err));
    pool->counts.settled++;
out:
    return rc;
}

int pool_unmap(struct pool *pool, uint32_t *list, const char *least, struct err *err)
{
    int rc = ERR_OK;

    if (*list == NO_PIECE || pool->pieces[*list].at < least) goto out;
    TRY(pool_settle(pool, err));
    while (*list != NO_PIECE && pool->pieces[*list].at >= least) {
        TRY(unmap_piece(pool, *list, err));
        put_back(pool, pop(pool, list));
    }
out:
    return rc;
}

uint64_t pool_unmappable(const struct pool *pool, uint32_t list, const char *least)
{
    uint64_t bytes = 0;

    for (; list != NO_PIECE && pool->pieces[list].at >= least; list = pool->pieces[list].next)
        bytes += pool->pieces[list].bytes;
    return bytes;
}

void pool_drop(struct pool *pool, uint32_t *list)
{
    while (*list != NO_PIECE)
        take_back(pool, pop(pool, list));
}

/* -------------------------------------------------------------------------------------- rob */

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

/* Makes `bytes` come to hand under the cap, if others have them idle; otherwise nobody loses
 * anything. */
static int rob(struct pool *pool, const struct arena *taker, uint64_t bytes, struct err *err)
{
    int rc = ERR_OK;

    if (bytes > pool->spare_bytes && is_fragmented(pool, taker))
        TRY(rob_until(pool, taker, true, bytes, err));
    if (bytes <= pool_at_hand(pool)) goto out;
    if (bytes > pool_at_hand(pool) + idle_of_others(pool, taker, false))
        TRY(raise_cap(pool, bytes, err));
    TRY(rob_until(pool, taker, false, bytes - cap_left(pool), err));
out:
    return rc;
}

/* As gather; what the driver does not have, under the cap or not, others may have idle. */
static int gather_or_rob(struct pool *pool, uint32_t *list_out, uint64_t bytes,
                         const struct arena *taker, struct err *err)
{
    int rc = gather(pool, list_out, bytes, err);

    if (rc != (int)pool->vmem.ops->shortage) goto out;
    if (bytes > pool->spare_bytes + idle_of_others(pool, taker, false)) goto out;
    *err = (struct err){0};
    TRY(rob_until(pool, taker, false, bytes, err));
    TRY(gather(pool, list_out, bytes, err));
out:
    return rc;
}

int pool_map(struct pool *pool, uint32_t *list, char *at, uint64_t bytes, const struct arena *taker,
             struct err *err)
{
    int      rc = ERR_OK;
    uint32_t gathered = NO_PIECE;

    must(bytes > 0 && bytes % pool_step(pool) == 0);
    unstick(pool);
    TRY(rob(pool, taker, bytes, err));
    TRY(gather_or_rob(pool, &gathered, bytes, taker, err));
    TRY(map_all(pool, list, gathered, at, err));
out:
    return rc;
}

int pool_map_odd(struct pool *pool, uint32_t *list, char *at, uint64_t bytes, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t id = NO_PIECE;

    while (bytes > cap_left(pool) && give_up_larger(pool, SIZE_COUNT)) {
    }
    if (bytes > cap_left(pool)) TRY(raise_cap(pool, bytes, err));
    TRY(create(pool, &id, bytes, SIZE_ODD, err));
    TRY(map_all(pool, list, id, at, err));
out:
    return rc;
}

/* ------------------------------------------------------------------------------------ ranges */

int pool_reserve(struct pool *pool, char **base_out, uint64_t bytes, struct err *err)
{
    return pool->vmem.ops->reserve(&pool->vmem, base_out, bytes, err);
}

void pool_close_range(struct pool *pool, char *base, uint64_t bytes)
{
    uint32_t stuck;

    unstick(pool);
    stuck = pool->stuck;
    pool->stuck = NO_PIECE;
    while (stuck != NO_PIECE) {
        uint32_t    id = pop(pool, &stuck);
        const char *at = pool->pieces[id].at;
        if (at >= base && at < base + bytes)
            destroy(pool, id); /* nobody will look there again; its memory goes with the mapping */
        else
            push(pool, &pool->stuck, id);
    }
    pool->vmem.ops->close_range(&pool->vmem, base, bytes);
}

/* ------------------------------------------------------------------------------------- counts */

void pool_note_take(struct pool *pool, uint64_t live, uint64_t placed)
{
    pool->counts.live += live;
    pool->counts.placed += placed;
    count_peaks(pool);
}

void pool_note_give(struct pool *pool, uint64_t live, uint64_t placed)
{
    must(live <= pool->counts.live && placed <= pool->counts.placed);
    pool->counts.live -= live;
    pool->counts.placed -= placed;
    note(pool);
}

void pool_counts(const struct pool *pool, struct pool_counts *out)
{
    *out = pool->counts;
    if (out->mapped > 0)
        out->idle_share = (double)(out->mapped - out->placed) / (double)out->mapped;
}

void pool_history_restart(struct pool *pool)
{
    history_restart(&pool->history);
    note(pool);
}

uint32_t pool_history(const struct pool *pool, struct pool_sample out[POOL_SAMPLES_MAX])
{
    for (uint32_t i = 0; i < pool->history.count; i++)
        out[i] = pool->history.samples[i];
    return pool->history.count;
}

void pool_use(const struct pool *pool, struct memory_use *out)
{
    const struct pool_sample *peak = &pool->history.peak;
    struct pool_counts        counts;

    pool_counts(pool, &counts);
    *out = (struct memory_use){.peak_live = peak->live,
                               .peak_placed = peak->placed,
                               .peak_mapped = peak->mapped,
                               .peak_device = peak->device,
                               .idle_share = counts.idle_share,
                               .calls = {[MEMORY_CREATE] = counts.created,
                                         [MEMORY_MAP] = counts.mapped_calls,
                                         [MEMORY_ACCESS] = counts.access,
                                         [MEMORY_UNMAP] = counts.unmapped,
                                         [MEMORY_RELEASE] = counts.released,
                                         [MEMORY_SETTLE] = counts.settled}};
}

double memory_utilisation(const struct memory_use *use)
{
    return use->peak_mapped == 0 ? 0 : (double)use->peak_live / (double)use->peak_mapped;
}

double memory_internal_fragmentation(const struct memory_use *use)
{
    return use->peak_placed == 0 ? 0 : 1 - (double)use->peak_live / (double)use->peak_placed;
}

/* ------------------------------------------------------------------------------ open and close */

static uint64_t round_up(uint64_t bytes, uint64_t multiple)
{
    return (uint64_t)round_up_i64((int64_t)bytes, (int64_t)multiple);
}

static void choose_sizes(struct pool *pool)
{
    uint64_t wanted = pool->options.segment_bytes == 0 ? LARGE : pool->options.segment_bytes;
    uint64_t small = round_up(SMALL, pool->vmem.granularity), middle = round_up(MIDDLE, small);

    pool->size_bytes[2] = small;
    pool->size_bytes[0] = round_up(wanted, small);
    pool->size_bytes[1] = middle < pool->size_bytes[0] ? middle : pool->size_bytes[0];
    pool->options.cap_bytes -= pool->options.cap_bytes % small;
    pool->options.start_bytes = round_up(pool->options.start_bytes, small);
}

static int make_pieces(struct pool *pool, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t count = pool->options.cap_bytes / pool_step(pool) + 1;

    must(count < NO_PIECE);
    TRY(os_alloc((void **)&pool->pieces, count, sizeof *pool->pieces, "a table of memory", err));
    pool->piece_count = (uint32_t)count;
    for (uint32_t i = pool->piece_count; i-- > 0;)
        push(pool, &pool->vacant, i);
out:
    return rc;
}

static int create_start(struct pool *pool, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t list = NO_PIECE;
    char     start[32], cap[32];

    if (pool->options.start_bytes > pool->options.cap_bytes)
        RAISE(err, pool->vmem.ops->shortage, 0,
              "memory: %s are to be taken at the start, but the cap is %s; lower the former or "
              "raise the latter",
              text_bytes(start, sizeof start, pool->options.start_bytes),
              text_bytes(cap, sizeof cap, pool->options.cap_bytes));
    TRY(gather(pool, &list, pool->options.start_bytes, err));
    while (list != NO_PIECE)
        put_back(pool, pop(pool, &list));
out:
    return rc;
}

int pool_open(struct pool **out, const struct pool_options *options, struct err *err)
{
    int          rc = ERR_OK;
    struct pool *pool = NULL;

    must(options->cap_bytes < INT64_MAX / 4 && options->segment_bytes < INT64_MAX / 4 &&
         options->start_bytes < INT64_MAX / 4);
    TRY(os_alloc((void **)&pool, 1, sizeof *pool, "a pool of memory", err));
    pool->options = *options;
    pool->vmem = (struct vmem){.ops = options->ops, .device = options->device, .fd = -1};
    pool->vacant = pool->stuck = NO_PIECE;
    for (uint32_t size = 0; size < SIZE_COUNT; size++)
        pool->spare[size] = NO_PIECE;
    history_restart(&pool->history);
    rc = options->ops->open(&pool->vmem, err);
    if (rc != ERR_OK) {
        os_free(pool);
        return rc;
    }
    choose_sizes(pool);
    rc = make_pieces(pool, err);
    if (rc == ERR_OK) rc = create_start(pool, err);
    if (rc == ERR_OK)
        *out = pool;
    else
        pool_close(pool);
out:
    return rc;
}

uint64_t pool_trim(struct pool *pool, uint64_t bytes)
{
    uint64_t given = 0;

    for (uint32_t size = 0; size < SIZE_COUNT; size++)
        while (given < bytes && pool->spare[size] != NO_PIECE &&
               pool->counts.device >= pool->options.start_bytes + pool->size_bytes[size]) {
            destroy(pool, take_spare(pool, size));
            given += pool->size_bytes[size];
        }
    return given;
}

void pool_close(struct pool *pool)
{
    if (pool == NULL) return;
    must(pool->arenas == NULL && pool->counts.mapped == 0 && pool->stuck == NO_PIECE);
    while (give_up_larger(pool, SIZE_COUNT)) {
    }
    must(pool->counts.device == 0 && pool->counts.created == pool->counts.released);
    pool->vmem.ops->close(&pool->vmem);
    os_free(pool->pieces);
    os_free(pool);
}
