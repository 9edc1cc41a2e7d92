/*
 * pool.c - the physical memory of one device: created once, shown where it is needed.
 *
 * Owns what is shown at which address, and the counting.  Which pieces are taken is pieces.c's to
 * know, which arenas lose some rob.c's.
 *
 * Invariants: device = mapped + spare + stuck <= cap; mapping is all or nothing.  A piece is stuck
 * when the driver neither shows nor hides it; closing its range tries again.
 *
 * Read next: pieces.c, rob.c, then arena.c.
 */
#include "memory/memory_int.h"

/* ------------------------------------------------------------------------------------- counts */

void pool_note(struct pool *pool)
{
    struct pool_counts *counts = &pool->counts;

    counts->peak_live = max_u64(counts->peak_live, counts->live);
    counts->peak_placed = max_u64(counts->peak_placed, counts->placed);
    counts->peak_mapped = max_u64(counts->peak_mapped, counts->mapped);
    counts->peak_device = max_u64(counts->peak_device, counts->device);
    history_note(&pool->history, os_seconds(), counts);
}

void pool_note_take(struct pool *pool, uint64_t live, uint64_t placed)
{
    pool->counts.live += live;
    pool->counts.placed += placed;
    pool_note(pool);
}

void pool_note_give(struct pool *pool, uint64_t live, uint64_t placed)
{
    must(live <= pool->counts.live && placed <= pool->counts.placed);
    pool->counts.live -= live;
    pool->counts.placed -= placed;
    pool_note(pool);
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
    pool_note(pool);
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

/* ---------------------------------------------------------------------------- map and unmap */

static int unmap_piece(struct pool *pool, uint32_t id, struct err *err)
{
    int           rc = ERR_OK;
    struct piece *piece = &pool->pieces[id];

    TRY(pool->vmem.ops->unmap(&pool->vmem, piece->at, piece->bytes, err));
    pool->counts.unmapped++;
    pool->counts.mapped -= piece->bytes;
    pool_note(pool);
out:
    return rc;
}

/* Of a mapping that nobody has seen yet: nothing to wait for. */
static void take_back(struct pool *pool, uint32_t id)
{
    struct err ignored = {0};

    if (unmap_piece(pool, id, &ignored) == ERR_OK) {
        pieces_put_back(pool, id);
        return;
    }
    pool->counts.mapped -= pool->pieces[id].bytes;
    pieces_push(pool, &pool->stuck, id);
}

/* Tries again what the driver refused to unmap. */
static void unstick(struct pool *pool)
{
    struct err ignored = {0};
    uint32_t   stuck = pool->stuck;

    pool->stuck = NO_PIECE;
    while (stuck != NO_PIECE) {
        uint32_t      id = pieces_pop(pool, &stuck);
        struct piece *piece = &pool->pieces[id];
        if (pool->vmem.ops->unmap(&pool->vmem, piece->at, piece->bytes, &ignored) == ERR_OK) {
            pool->counts.unmapped++;
            pieces_put_back(pool, id);
        } else {
            pieces_push(pool, &pool->stuck, id);
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
        pieces_push(pool, &mapped, pieces_pop(pool, &gathered));
    }
    TRY(pool->vmem.ops->access(&pool->vmem, at, (uint64_t)(end - at), err));
    pool->counts.access++;
    pool_note(pool);
    *list = mapped;
out:
    while (rc != ERR_OK && mapped != *list)
        take_back(pool, pieces_pop(pool, &mapped));
    while (gathered != NO_PIECE)
        pieces_put_back(pool, pieces_pop(pool, &gathered));
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
        pieces_put_back(pool, pieces_pop(pool, list));
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
        take_back(pool, pieces_pop(pool, list));
}

int pool_map(struct pool *pool, uint32_t *list, char *at, uint64_t bytes, const struct arena *taker,
             struct err *err)
{
    int      rc = ERR_OK;
    uint32_t gathered = NO_PIECE;

    must(bytes > 0 && bytes % pieces_step(pool) == 0);
    unstick(pool);
    TRY(rob_make_room(pool, taker, bytes, err));
    TRY(rob_gather(pool, &gathered, bytes, taker, err));
    TRY(map_all(pool, list, gathered, at, err));
out:
    return rc;
}

int pool_map_odd(struct pool *pool, uint32_t *list, char *at, uint64_t bytes, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t id = NO_PIECE;

    while (bytes > pieces_cap_left(pool) && pieces_give_up_larger(pool, SIZE_COUNT)) {
    }
    if (bytes > pieces_cap_left(pool)) TRY(pieces_raise_cap(pool, bytes, err));
    TRY(pieces_create(pool, &id, bytes, SIZE_ODD, err));
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
        uint32_t    id = pieces_pop(pool, &stuck);
        const char *at = pool->pieces[id].at;
        if (at >= base && at < base + bytes)
            pieces_destroy(pool,
                           id); /* nobody will look there again; its memory goes with the mapping */
        else
            pieces_push(pool, &pool->stuck, id);
    }
    pool->vmem.ops->close_range(&pool->vmem, base, bytes);
}

/* ------------------------------------------------------------------------------ open and close */

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
    TRY(pieces_gather(pool, &list, pool->options.start_bytes, err));
    while (list != NO_PIECE)
        pieces_put_back(pool, pieces_pop(pool, &list));
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
    history_restart(&pool->history);
    rc = options->ops->open(&pool->vmem, err);
    if (rc != ERR_OK) {
        os_free(pool);
        return rc;
    }
    rc = pieces_open(pool, err);
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
        while (given < bytes &&
               pool->counts.device >= pool->options.start_bytes + pool->size_bytes[size] &&
               pieces_give_up(pool, size))
            given += pool->size_bytes[size];
    return given;
}

void pool_close(struct pool *pool)
{
    if (pool == NULL) return;
    must(pool->arenas == NULL && pool->counts.mapped == 0 && pool->stuck == NO_PIECE);
    pieces_close(pool);
    pool->vmem.ops->close(&pool->vmem);
    os_free(pool);
}
