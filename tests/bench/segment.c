/*
 * segment.c - memory that is given back in any order.
 *
 * Owns one range of addresses, in chunks, and a list of blocks that covers it: taken, free (mapped,
 * nobody's) and holes (addresses alone).  Growing fills the place that needs the fewest new chunks.
 * When free memory is there but in too many places, chunks that are wholly free are unmapped and
 * their pieces shown where they are needed: addresses change, contents never move.
 *
 * Invariants: blocks are in the order of addresses, without gaps; neighbours of one kind are one
 * block unless taken; a chunk that meets a taken or free block is mapped, and holes are whole
 * chunks.
 *
 * Read next: pool.c.
 */
#include "tests/bench/segment.h"

#include "memory/memory_int.h"

#include <string.h>

enum { ALIGNMENT = 64 };

enum kind { KIND_HOLE, KIND_FREE, KIND_TAKEN };
struct block {
    uint64_t  offset, bytes;
    uint64_t  live; /* of a taken one: what was asked for */
    enum kind kind;
};

struct segment {
    struct pool           *pool;
    struct segment_options options;
    char                  *base;
    uint64_t               bytes;
    uint32_t               chunk_count, block_count, takes;
    uint32_t              *chunks; /* pieces of each */
    struct block          *blocks;
    uint64_t               moved_bytes, end_bytes;
};

/* ------------------------------------------------------------------------------------ blocks */

static uint64_t end_of(const struct block *block)
{
    return block->offset + block->bytes;
}

/* The block that holds the byte at `offset`. */
static uint32_t find(const struct segment *segment, uint64_t offset)
{
    uint32_t least = 0, most = segment->block_count - 1;

    while (least < most) {
        uint32_t middle = (least + most + 1) / 2;
        if (segment->blocks[middle].offset <= offset)
            least = middle;
        else
            most = middle - 1;
    }
    return least;
}

/* Makes a block begin at `offset`; returns its index. */
static uint32_t cut(struct segment *segment, uint64_t offset)
{
    uint32_t i = offset == segment->bytes ? segment->block_count : find(segment, offset);

    if (i == segment->block_count || segment->blocks[i].offset == offset) return i;
    memmove(&segment->blocks[i + 1], &segment->blocks[i],
            (segment->block_count - i) * sizeof *segment->blocks);
    segment->block_count++;
    segment->blocks[i].bytes = offset - segment->blocks[i].offset;
    segment->blocks[i + 1].bytes -= segment->blocks[i].bytes;
    segment->blocks[i + 1].offset = offset;
    return i + 1;
}

/* Joins block i with the next one, if they are of one kind. */
static void join(struct segment *segment, uint32_t i)
{
    struct block *block = &segment->blocks[i];

    if (i + 1 >= segment->block_count || block->kind == KIND_TAKEN || block[1].kind != block->kind)
        return;
    block->bytes += block[1].bytes;
    segment->block_count--;
    memmove(block + 1, block + 2, (segment->block_count - i - 1) * sizeof *block);
}

/* [begin, end) lies in one block. */
static struct block *mark(struct segment *segment, uint64_t begin, uint64_t end, enum kind kind)
{
    uint32_t i = cut(segment, begin);

    (void)cut(segment, end);
    must(end_of(&segment->blocks[i]) == end);
    segment->blocks[i].kind = kind;
    segment->blocks[i].live = 0;
    join(segment, i);
    if (i > 0) join(segment, i - 1);
    return &segment->blocks[find(segment, begin)];
}

/* ------------------------------------------------------------------------------------ chunks */

static void mark_chunk(struct segment *segment, uint32_t chunk, enum kind kind)
{
    uint64_t begin = chunk * segment->options.chunk_bytes;

    (void)mark(segment, begin, begin + segment->options.chunk_bytes, kind);
}

static bool is_wholly_free(const struct segment *segment, uint32_t chunk)
{
    uint64_t            begin = chunk * segment->options.chunk_bytes;
    const struct block *block = &segment->blocks[find(segment, begin)];

    return block->kind == KIND_FREE && end_of(block) >= begin + segment->options.chunk_bytes;
}

/* Unmaps up to `count` free chunks, the highest first, none of them in [begin, end). */
static int give_chunks(struct segment *segment, uint64_t begin, uint64_t end, uint64_t count,
                       uint64_t *given_out, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t bytes = segment->options.chunk_bytes;

    *given_out = 0;
    if (count == 0) goto out;
    TRY(pool_settle(segment->pool, err));
    for (uint32_t chunk = segment->chunk_count; chunk-- > 0 && count > 0;) {
        if (chunk * bytes < end && (chunk + 1) * bytes > begin) continue;
        if (!is_wholly_free(segment, chunk)) continue;
        pool_drop(segment->pool, &segment->chunks[chunk]);
        mark_chunk(segment, chunk, KIND_HOLE);
        *given_out += bytes;
        count--;
    }
out:
    return rc;
}

/* All of [begin, end) mapped, or nothing that was not before.  Until all is done, what is new is
 * still called a hole. */
static int map_range(struct segment *segment, uint64_t begin, uint64_t end, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t bytes = segment->options.chunk_bytes;
    uint32_t first = (uint32_t)(begin / bytes), limit = (uint32_t)((end + bytes - 1) / bytes);

    for (uint32_t chunk = first; chunk < limit; chunk++)
        if (segment->chunks[chunk] == NO_PIECE)
            TRY(pool_map(segment->pool, &segment->chunks[chunk], segment->base + chunk * bytes,
                         bytes, NULL, err));
out:
    for (uint32_t chunk = first; chunk < limit; chunk++) {
        if (segment->blocks[find(segment, chunk * bytes)].kind != KIND_HOLE) continue;
        if (rc == ERR_OK)
            mark_chunk(segment, chunk, KIND_FREE);
        else
            pool_drop(segment->pool, &segment->chunks[chunk]);
    }
    if (rc == ERR_OK) segment->end_bytes = max_u64(segment->end_bytes, limit * bytes);
    return rc;
}

/* -------------------------------------------------------------------------------------- place */

static uint32_t best_fit(const struct segment *segment, uint64_t bytes)
{
    uint32_t best = NO_PIECE;

    for (uint32_t i = 0; i < segment->block_count; i++) {
        const struct block *block = &segment->blocks[i];
        if (block->kind != KIND_FREE || block->bytes < bytes) continue;
        if (best == NO_PIECE || block->bytes < segment->blocks[best].bytes) best = i;
    }
    return best;
}

/* Chunks to be mapped for `bytes` from the start of block i; UINT64_MAX: something is in the way.
 */
static uint64_t chunks_needed(const struct segment *segment, uint32_t i, uint64_t bytes)
{
    uint64_t chunk = segment->options.chunk_bytes, needed = 0;

    for (; i < segment->block_count && segment->blocks[i].kind != KIND_TAKEN; i++) {
        const struct block *block = &segment->blocks[i];
        uint64_t            part = block->bytes < bytes ? block->bytes : bytes;
        if (block->kind == KIND_HOLE) needed += (part + chunk - 1) / chunk;
        bytes -= part;
        if (bytes == 0) return needed;
    }
    return UINT64_MAX;
}

/* Maps what is missing at the place where that is least. */
static int make_place(struct segment *segment, uint64_t bytes, uint64_t *offset_out,
                      struct err *err)
{
    int                   rc = ERR_OK;
    uint64_t              least = UINT64_MAX, begin = 0, given = 0, wanted = 0, at_hand;
    struct segment_counts counts;
    char                  words[2][32];

    for (uint32_t i = 0; i < segment->block_count; i++) {
        uint64_t needed = chunks_needed(segment, i, bytes);
        if (needed >= least) continue;
        least = needed;
        begin = segment->blocks[i].offset;
    }
    if (least == UINT64_MAX)
        RAISE(err, segment->pool->vmem.ops->shortage, 0,
              "memory: a segment of %s of addresses has no place for %s; give it more",
              text_bytes(words[0], sizeof words[0], segment->bytes),
              text_bytes(words[1], sizeof words[1], bytes));
    segment_counts(segment, &counts);
    at_hand = pieces_at_hand(segment->pool) / segment->options.chunk_bytes;
    if (counts.free_bytes >= bytes &&
        segment_fragmentation(segment) > segment->options.fragmentation_max)
        wanted = least;
    else if (at_hand < least)
        wanted = least - at_hand;
    TRY(give_chunks(segment, begin, begin + bytes, wanted, &given, err));
    TRY(map_range(segment, begin, begin + bytes, err));
    segment->moved_bytes += given;
    *offset_out = begin;
out:
    return rc;
}

int segment_take(struct segment *segment, uint64_t bytes, void **out, struct err *err)
{
    int           rc = ERR_OK;
    uint64_t      placed, offset = 0;
    uint32_t      fit;
    struct block *block;

    must(bytes > 0 && bytes < INT64_MAX / 2 && segment->takes < segment->options.takes_max);
    placed = (uint64_t)round_up_i64((int64_t)bytes, ALIGNMENT);
    fit = best_fit(segment, placed);
    if (fit != NO_PIECE)
        offset = segment->blocks[fit].offset;
    else
        TRY(make_place(segment, placed, &offset, err));
    block = mark(segment, offset, offset + placed, KIND_TAKEN);
    block->live = bytes;
    segment->takes++;
    pool_note_take(segment->pool, bytes, placed);
    *out = segment->base + offset;
out:
    return rc;
}

void segment_give(struct segment *segment, void *data)
{
    uint64_t      offset = (uint64_t)((char *)data - segment->base);
    struct block *block = &segment->blocks[find(segment, offset)];

    must(offset < segment->bytes && block->offset == offset && block->kind == KIND_TAKEN);
    pool_note_give(segment->pool, block->live, block->bytes);
    segment->takes--;
    (void)mark(segment, offset, end_of(block), KIND_FREE);
}

void segment_trim(struct segment *segment)
{
    struct err err = {0};
    uint64_t   given;

    if (give_chunks(segment, 0, 0, segment->chunk_count, &given, &err) != ERR_OK)
        log_line(LOG_WARN, "%s", err.text);
}

/* ------------------------------------------------------------------------------------- counts */

void segment_counts(const struct segment *segment, struct segment_counts *out)
{
    *out = (struct segment_counts){.moved_bytes = segment->moved_bytes,
                                   .end_bytes = segment->end_bytes};
    for (uint32_t i = 0; i < segment->block_count; i++) {
        if (segment->blocks[i].kind != KIND_FREE) continue;
        out->free_bytes += segment->blocks[i].bytes;
        out->largest_free_bytes = max_u64(out->largest_free_bytes, segment->blocks[i].bytes);
    }
}

double segment_fragmentation(const struct segment *segment)
{
    struct segment_counts counts;

    segment_counts(segment, &counts);
    return counts.free_bytes == 0
               ? 0
               : 1 - (double)counts.largest_free_bytes / (double)counts.free_bytes;
}

/* ------------------------------------------------------------------------------ open and close */

int segment_open(struct segment **out, struct pool *pool, const struct segment_options *options,
                 struct err *err)
{
    int             rc = ERR_OK;
    struct segment *segment = NULL;
    uint64_t        chunk = options->chunk_bytes, blocks;

    must(chunk > 0 && chunk % pieces_step(pool) == 0 && options->takes_max < INT32_MAX / 2);
    must(options->limit_bytes > 0 && options->limit_bytes / chunk < INT32_MAX / 4);
    TRY(os_alloc((void **)&segment, 1, sizeof *segment, "a segment", err));
    segment->pool = pool;
    segment->options = *options;
    segment->bytes = (uint64_t)round_up_i64((int64_t)options->limit_bytes, (int64_t)chunk);
    segment->chunk_count = (uint32_t)(segment->bytes / chunk);
    TRY(os_alloc((void **)&segment->chunks, segment->chunk_count, sizeof *segment->chunks,
                 "a segment", err));
    for (uint32_t i = 0; i < segment->chunk_count; i++)
        segment->chunks[i] = NO_PIECE;
    /* Between two that are taken, and around each chunk, kinds change at most once; and two cuts
     * are there for a moment. */
    blocks = 2 * (uint64_t)options->takes_max + segment->chunk_count + 4;
    TRY(os_alloc((void **)&segment->blocks, blocks, sizeof *segment->blocks, "a segment", err));
    TRY(pool_reserve(pool, &segment->base, segment->bytes, err));
    segment->blocks[0] = (struct block){.bytes = segment->bytes, .kind = KIND_HOLE};
    segment->block_count = 1;
    *out = segment;
    segment = NULL;
out:
    segment_close(segment);
    return rc;
}

void segment_close(struct segment *segment)
{
    struct err err = {0};

    if (segment == NULL) return;
    for (uint32_t i = 0; i < segment->block_count; i++)
        if (segment->blocks[i].kind == KIND_TAKEN)
            pool_note_give(segment->pool, segment->blocks[i].live, segment->blocks[i].bytes);
    if (segment->base != NULL && pool_settle(segment->pool, &err) != ERR_OK)
        log_line(LOG_WARN, "%s", err.text);
    for (uint32_t i = 0; segment->chunks != NULL && i < segment->chunk_count; i++)
        pool_drop(segment->pool, &segment->chunks[i]);
    if (segment->base != NULL) pool_close_range(segment->pool, segment->base, segment->bytes);
    os_free(segment->chunks);
    os_free(segment->blocks);
    os_free(segment);
}
