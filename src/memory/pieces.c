/*
 * pieces.c - the physical pieces of a pool: which there are, which of them are spare, which to
 * make.
 *
 * Owns the table of pieces and the lists in it, and what stays under the cap.  Knows no addresses
 * and no arenas.  What is asked for is put together in the order of cost: spare pieces (a mapping
 * each), new ones (a hundred times that), spare ones of the wrong size given back for new ones.
 *
 * Invariant: a piece is in one list.
 *
 * Read next: pool.c, which shows them at addresses.
 */
#include "memory/memory_int.h"

static const uint64_t SMALL = 2u << 20, MIDDLE = 32u << 20, LARGE = 256u << 20;

/* ------------------------------------------------------------------------------------ lists */

void pieces_push(struct pool *pool, uint32_t *list, uint32_t id)
{
    pool->pieces[id].next = *list;
    *list = id;
}

uint32_t pieces_pop(struct pool *pool, uint32_t *list)
{
    uint32_t id = *list;

    must(id != NO_PIECE);
    *list = pool->pieces[id].next;
    return id;
}

/* ----------------------------------------------------------------------------------- pieces */

int pieces_create(struct pool *pool, uint32_t *id_out, uint64_t bytes, uint32_t size,
                  struct err *err)
{
    int      rc = ERR_OK;
    uint64_t handle = 0;

    TRY(pool->vmem.ops->create(&pool->vmem, &handle, bytes, err));
    *id_out = pieces_pop(pool, &pool->vacant);
    pool->pieces[*id_out] =
        (struct piece){.handle = handle, .bytes = bytes, .size = size, .next = NO_PIECE};
    pool->counts.created++;
    pool->counts.device += bytes;
    pool_note(pool);
out:
    return rc;
}

void pieces_destroy(struct pool *pool, uint32_t id)
{
    struct piece *piece = &pool->pieces[id];

    pool->vmem.ops->release(&pool->vmem, piece->handle, piece->bytes);
    pool->counts.released++;
    pool->counts.device -= piece->bytes;
    pieces_push(pool, &pool->vacant, id);
}

/* The uppermost of them, of which there are some. */
static uint32_t take_spare(struct pool *pool, uint32_t size)
{
    uint32_t id = pieces_pop(pool, &pool->spare[size]);

    pool->spare_bytes -= pool->pieces[id].bytes;
    return id;
}

void pieces_put_back(struct pool *pool, uint32_t id)
{
    struct piece *piece = &pool->pieces[id];

    piece->at = NULL;
    if (piece->size == SIZE_ODD) {
        pieces_destroy(pool, id);
        return;
    }
    pool->spare_bytes += piece->bytes;
    pieces_push(pool, &pool->spare[piece->size], id);
}

uint64_t pieces_cap_left(const struct pool *pool)
{
    return pool->options.cap_bytes - pool->counts.device;
}

uint64_t pieces_at_hand(const struct pool *pool)
{
    return pieces_cap_left(pool) + pool->spare_bytes;
}

uint64_t pieces_step(const struct pool *pool)
{
    return pool->size_bytes[SIZE_COUNT - 1];
}

/* ------------------------------------------------------------------------------------- gather */

int pieces_raise_cap(const struct pool *pool, uint64_t bytes, struct err *err)
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

    if (pieces_cap_left(pool) < pieces_step(pool))
        TRY(pieces_raise_cap(pool, pool->size_bytes[size], err));
    for (; size < SIZE_COUNT; size++) {
        if (pool->size_bytes[size] > pieces_cap_left(pool)) continue;
        *err = (struct err){0};
        rc = pieces_create(pool, id_out, pool->size_bytes[size], size, err);
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

bool pieces_give_up(struct pool *pool, uint32_t size)
{
    if (pool->spare[size] == NO_PIECE) return false;
    pieces_destroy(pool, take_spare(pool, size));
    return true;
}

bool pieces_give_up_larger(struct pool *pool, uint32_t size)
{
    while (size-- > 0)
        if (pieces_give_up(pool, size)) return true;
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
        } while (rc != ERR_OK && spare == SIZE_COUNT && pieces_give_up_larger(pool, size));
        if (rc == ERR_OK || spare == SIZE_COUNT) goto out;
        *err = (struct err){0};
        rc = ERR_OK;
    }
    *id_out = take_spare(pool, spare);
out:
    if (rc == ERR_OK) *err = (struct err){0};
    return rc;
}

int pieces_gather(struct pool *pool, uint32_t *list_out, uint64_t bytes, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t list = NO_PIECE, id = NO_PIECE, *end = &list;

    while (bytes > 0) {
        TRY(next_piece(pool, &id, bytes, err));
        *end = id;
        end = &pool->pieces[id].next;
        *end = NO_PIECE;
        bytes -= pool->pieces[id].bytes;
    }
    *list_out = list;
    list = NO_PIECE;
out:
    while (list != NO_PIECE)
        pieces_put_back(pool, pieces_pop(pool, &list));
    return rc;
}

/* ------------------------------------------------------------------------------ open and close */

static void choose_sizes(struct pool *pool)
{
    uint64_t wanted = pool->options.segment_bytes == 0 ? LARGE : pool->options.segment_bytes;
    uint64_t small = memory_round_up(SMALL, pool->vmem.granularity),
             middle = memory_round_up(MIDDLE, small);

    pool->size_bytes[2] = small;
    pool->size_bytes[0] = memory_round_up(wanted, small);
    pool->size_bytes[1] = middle < pool->size_bytes[0] ? middle : pool->size_bytes[0];
    pool->options.cap_bytes -= pool->options.cap_bytes % small;
    pool->options.start_bytes = memory_round_up(pool->options.start_bytes, small);
}

int pieces_open(struct pool *pool, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t count;

    choose_sizes(pool);
    pool->vacant = pool->stuck = NO_PIECE;
    for (uint32_t size = 0; size < SIZE_COUNT; size++)
        pool->spare[size] = NO_PIECE;
    count = pool->options.cap_bytes / pieces_step(pool) + 1;
    must(count < NO_PIECE);
    TRY(os_alloc((void **)&pool->pieces, count, sizeof *pool->pieces, "a table of memory", err));
    for (uint32_t i = (uint32_t)count; i-- > 0;)
        pieces_push(pool, &pool->vacant, i);
out:
    return rc;
}

void pieces_close(struct pool *pool)
{
    while (pieces_give_up_larger(pool, SIZE_COUNT)) {
    }
    must(pool->counts.device == 0 && pool->counts.created == pool->counts.released);
    os_free(pool->pieces);
}
