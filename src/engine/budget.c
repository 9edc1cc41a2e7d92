/*
 * budget.c - the decision who gets how much of a GPU, and the ladder for when that was too much.
 *
 * Pure: numbers in, numbers out.  Knows no model, no backend and no file.
 *
 * A block streams when its matrices are copied from the host each time that it is their turn, into
 * one of two slots.  As long as the arithmetic of all blocks takes longer than all copies, and
 * copies are spread evenly, streaming costs no time.  So the first question is how many tiles must
 * share a copy to hide the link, and the disk where the host has no room for all copies; all else
 * goes to blocks that stay, for these need neither.
 *
 * Streamed blocks are chosen by error diffusion, for each count in every phase: the gaps between
 * them differ by at most one.  Phases differ in how many doubles, which are twice as large, they
 * catch, and so fill the memory to a block instead of two.
 *
 * Two streamed blocks would fill the two slots that they spare, so four is the least.
 *
 * Read next: measure.c, where the facts come from.
 */
#include "engine/budget.h"

#include <stdio.h>
#include <string.h>

/* Beside half the RAM: what stays for the rest of this program and the system. */
static const uint64_t HOST_MARGIN_BYTES = (uint64_t)4 << 30;
enum { STREAMED_LEAST = 4 };

/* ----------------------------------------------------------------------------------- sums */

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t granules(uint64_t bytes)
{
    return (bytes + BUDGET_GRANULE_BYTES - 1) / BUDGET_GRANULE_BYTES * BUDGET_GRANULE_BYTES;
}

static uint64_t blocks_total(const struct budget_facts *facts)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < facts->block_count; i++)
        sum += facts->block_bytes[i];
    return sum;
}

uint64_t budget_device_bytes(const struct budget *budget, const struct budget_facts *facts)
{
    uint64_t mapped = granules(budget->resident_bytes) + granules(budget->ends_bytes) +
                      granules(budget->slot_bytes[0]) + granules(budget->slot_bytes[1]) +
                      granules(budget->scratch_bytes);

    return budget->fixed_bytes + max_u64(mapped, facts->allowed.pool_bytes);
}

double budget_compute_seconds(const struct budget *budget, const struct budget_facts *facts)
{
    double flop = 0;

    for (uint32_t i = 0; i < facts->block_count; i++)
        flop += facts->block_flop[i];
    return facts->flop_per_second > 0 ? flop * budget->tiles_per_pass / facts->flop_per_second : 0;
}

double budget_disk_seconds(const struct budget *budget, const struct budget_facts *facts)
{
    return facts->disk_bytes_per_second > 0
               ? (double)(budget->streamed_bytes - budget->pinned_bytes) /
                     facts->disk_bytes_per_second
               : 0;
}

/* What arithmetic must hide. */
static double visit_seconds(const struct budget *budget, const struct budget_facts *facts)
{
    double link = budget_link_seconds(budget, facts), disk = budget_disk_seconds(budget, facts);

    return link > disk ? link : disk;
}

double budget_link_seconds(const struct budget *budget, const struct budget_facts *facts)
{
    return facts->link_bytes_per_second > 0
               ? (double)budget->streamed_bytes / facts->link_bytes_per_second
               : 0;
}

/* The arena is rewound between a prompt, a tile's coders and its steps.  In one piece it cannot be
 * lent to a prompt, which then has another beside it. */
static uint64_t scratch_of(const struct budget *budget, const struct budget_facts *facts)
{
    uint64_t text = budget->text_on_cpu ? 0 : facts->text_bytes;
    uint64_t predict = facts->predict_bytes[budget->mlp_level][budget->tiles_per_pass];
    uint64_t tile = max_u64(predict, facts->coder_bytes[budget->strip_level]);

    return facts->allowed.expandable ? max_u64(text, tile) : granules(text) + tile;
}

/* With every choice of blocks: how long they take to come depends on it. */
static void set_pinned(struct budget *budget, const struct budget_facts *facts)
{
    uint64_t limit =
        facts->host_free_bytes > HOST_MARGIN_BYTES ? facts->host_free_bytes - HOST_MARGIN_BYTES : 0;

    limit = min_u64(limit, facts->host_bytes / 2);
    budget->pinned_bytes = min_u64(limit, budget->streamed_bytes);
}

/* -------------------------------------------------------------------------------- streaming */

static void stream_none(struct budget *budget, const struct budget_facts *facts)
{
    memset(budget->streamed, 0, sizeof budget->streamed);
    budget->streamed_count = 0;
    budget->streamed_bytes = 0;
    budget->resident_bytes = blocks_total(facts);
    budget->ring_bytes = budget->slot_bytes[0] = budget->slot_bytes[1] = 0;
}

/* Each as large as its own largest visitor. */
static void size_slots(struct budget *budget, const struct budget_facts *facts)
{
    uint32_t rank = 0;

    for (uint32_t i = 0; i < budget->block_count; i++) {
        uint64_t *slot = &budget->slot_bytes[rank % 2];
        if (!budget->streamed[i]) continue;
        *slot = max_u64(*slot, facts->block_bytes[i]);
        rank++;
    }
    budget->ring_bytes = budget->slot_bytes[0] + budget->slot_bytes[1];
}

/* `count` of all blocks, spread evenly from `phase` on. */
static void stream_some(struct budget *budget, const struct budget_facts *facts, uint32_t count,
                        uint32_t phase)
{
    uint32_t error = phase;

    stream_none(budget, facts);
    for (uint32_t i = 0; i < facts->block_count; i++) {
        error += count;
        if (error < facts->block_count) continue;
        error -= facts->block_count;
        budget->streamed[i] = true;
        budget->streamed_bytes += facts->block_bytes[i];
    }
    budget->streamed_count = count;
    budget->resident_bytes -= budget->streamed_bytes;
    size_slots(budget, facts);
}

/* What a choice of streamed blocks must keep to. */
struct bounds {
    uint64_t device_bytes; /* at most */
    uint64_t resident_least;
    uint64_t streamed_above; /* more than this many bytes must stream; 0: or none */
    bool     streaming;      /* some may                                          */
    bool     smallest;       /* wanted is what takes least, not what streams least */
};

/* Of all that keep to the bounds, the best.  False: none does, and *budget is as it was. */
static bool choose_blocks(struct budget *budget, const struct budget_facts *facts,
                          const struct bounds *bounds)
{
    struct budget trial = *budget, best = *budget;
    bool          found = false;
    uint64_t      best_score = UINT64_MAX;

    stream_none(&trial, facts);
    if (bounds->streamed_above == 0 && budget_device_bytes(&trial, facts) <= bounds->device_bytes) {
        best = trial;
        best_score = bounds->smallest ? budget_device_bytes(&trial, facts) : 0;
        found = true;
    }
    for (uint32_t count = STREAMED_LEAST; bounds->streaming && count <= facts->block_count;
         count += 2) {
        for (uint32_t phase = 0; phase < facts->block_count; phase++) {
            stream_some(&trial, facts, count, phase);
            uint64_t device = budget_device_bytes(&trial, facts);
            uint64_t score = bounds->smallest ? device : trial.streamed_bytes;
            if (trial.resident_bytes < bounds->resident_least || device > bounds->device_bytes ||
                trial.streamed_bytes <= bounds->streamed_above || score >= best_score)
                continue;
            best = trial;
            best_score = score;
            found = true;
        }
    }
    *budget = best;
    set_pinned(budget, facts);
    return found;
}

static uint64_t keep_bytes(const struct budget_facts *facts)
{
    return (uint64_t)(facts->allowed.keep_share * (double)blocks_total(facts));
}

/* ------------------------------------------------------------------------------------ making */

/* The highest strips of those that take the least scratch: where a picture is small, lower ones may
 * take more, for what products need beside them. */
static uint32_t least_strips(const struct budget_facts *facts)
{
    uint32_t least = 0;

    for (uint32_t level = 1; level < facts->strip_levels; level++)
        if (facts->coder_bytes[level] < facts->coder_bytes[least]) least = level;
    return least;
}

/* A budget of `tiles` together, with the VAE in the strips that take least. */
static bool make_for(struct budget *out, const struct budget_facts *facts, uint32_t tiles,
                     uint32_t mlp_level, uint64_t resident_least)
{
    struct bounds bounds = {.device_bytes = facts->allowed.vram_bytes,
                            .resident_least = resident_least,
                            .streaming = facts->allowed.offload};
    uint64_t      with_text;

    *out = (struct budget){.block_count = facts->block_count,
                           .tiles_per_pass = tiles,
                           .mlp_level = mlp_level,
                           .strip_level = least_strips(facts),
                           .fixed_bytes = facts->fixed_bytes,
                           .ends_bytes = facts->ends_bytes};
    out->scratch_bytes = scratch_of(out, facts);
    if (choose_blocks(out, facts, &bounds)) return true;
    with_text = out->scratch_bytes;
    out->text_on_cpu = facts->text_may_move;
    out->scratch_bytes = scratch_of(out, facts);
    return out->scratch_bytes < with_text && choose_blocks(out, facts, &bounds);
}

static double seconds_per_tile(const struct budget *budget, const struct budget_facts *facts)
{
    double compute = budget_compute_seconds(budget, facts);
    double visit = visit_seconds(budget, facts);

    return (compute > visit ? compute : visit) / budget->tiles_per_pass;
}

static bool is_hidden(const struct budget *budget, const struct budget_facts *facts)
{
    double visit = visit_seconds(budget, facts);

    /* Without both rates nothing can be compared. */
    return visit <= 0 || facts->flop_per_second <= 0 ||
           budget_compute_seconds(budget, facts) >= visit;
}

static uint32_t tiles_most(const struct budget_facts *facts)
{
    uint32_t most = facts->tiles_most, asked = facts->allowed.tiles_per_pass;

    return asked > 0 && asked < most ? asked : most;
}

/* The fewest tiles that hide the link; where none do, those that wait least.  More tiles than one
 * may cost residents down to keep_share; where less than that stays, they may cost no scratch. */
static bool choose_tiles(struct budget *out, const struct budget_facts *facts, uint32_t mlp_level)
{
    struct budget trial;
    uint32_t      most = tiles_most(facts);
    uint64_t      scratch;

    if (!make_for(out, facts, 1, mlp_level, 0)) return false;
    scratch = out->scratch_bytes;
    for (uint32_t tiles = 2; tiles <= most && !is_hidden(out, facts); tiles++) {
        if (!make_for(&trial, facts, tiles, mlp_level, keep_bytes(facts)) &&
            !(make_for(&trial, facts, tiles, mlp_level, 0) && trial.scratch_bytes == scratch))
            break;
        if (seconds_per_tile(&trial, facts) < seconds_per_tile(out, facts)) *out = trial;
    }
    return true;
}

/* What no block can use makes the VAE's strips higher. */
static void raise_strips(struct budget *budget, const struct budget_facts *facts)
{
    struct budget trial = *budget;

    for (uint32_t level = budget->strip_level; level-- > 0;) {
        trial.strip_level = level;
        trial.scratch_bytes = scratch_of(&trial, facts);
        if (budget_device_bytes(&trial, facts) <= facts->allowed.vram_bytes) *budget = trial;
    }
}

/* The least that these facts could do with. */
static void make_least(struct budget *out, const struct budget_facts *facts)
{
    struct bounds bounds = {
        .device_bytes = UINT64_MAX, .streaming = facts->allowed.offload, .smallest = true};

    *out = (struct budget){.block_count = facts->block_count,
                           .tiles_per_pass = 1,
                           .mlp_level = facts->mlp_levels - 1,
                           .strip_level = least_strips(facts),
                           .fixed_bytes = facts->fixed_bytes,
                           .ends_bytes = facts->ends_bytes,
                           .text_on_cpu = facts->text_may_move};
    out->scratch_bytes = scratch_of(out, facts);
    must(choose_blocks(out, facts, &bounds));
}

static int refuse(const struct budget_facts *facts, struct err *err)
{
    int           rc = ERR_OK;
    struct budget least;
    uint64_t      have = facts->allowed.vram_bytes, need;
    char          words[5][32];

    make_least(&least, facts);
    need = budget_device_bytes(&least, facts);
    (void)text_bytes(words[0], sizeof words[0], have);
    (void)text_bytes(words[1], sizeof words[1], need);
    (void)text_bytes(words[2], sizeof words[2], need > have ? need - have : 0);
    (void)text_bytes(words[3], sizeof words[3], least.scratch_bytes);
    (void)text_bytes(words[4], sizeof words[4], blocks_total(facts));
    if (facts->allowed.pool_bytes > have - min_u64(have, facts->fixed_bytes))
        RAISE(err, ERR_DEVICE_MEM, 0,
              "plan: memory_pool_size is %s and libraries take %s more, but %s may be used; give a "
              "smaller pool",
              text_bytes(words[1], sizeof words[1], facts->allowed.pool_bytes),
              text_bytes(words[2], sizeof words[2], facts->fixed_bytes), words[0]);
    if (!facts->allowed.offload)
        RAISE(err, ERR_DEVICE_MEM, 0,
              "plan: without offload all %s of blocks stay on the GPU, which needs %s and has %s: "
              "short by %s; allow offload, or give a smaller --tile",
              words[4], words[1], words[0], words[2]);
    RAISE(err, ERR_DEVICE_MEM, 0,
          "plan: the GPU has %s for this program and the least is %s (%s of scratch): short by %s; "
          "give a smaller --tile, or more --vram",
          words[0], words[1], words[3], words[2]);
out:
    return rc;
}

static void check_facts(const struct budget_facts *facts)
{
    must(facts->block_count <= BLOCKS_MAX && facts->allowed.vram_bytes > 0);
    must(facts->tiles_most >= 1 && facts->tiles_most <= BUDGET_TILES_MAX);
    must(facts->mlp_levels >= 1 && facts->mlp_levels <= BUDGET_CHUNKS_MAX);
    must(facts->strip_levels >= 1 && facts->strip_levels <= BUDGET_STRIPS_MAX);
    must(facts->allowed.keep_share >= 0 && facts->allowed.keep_share <= 1);
}

int budget_make(struct budget *out, const struct budget_facts *facts, struct err *err)
{
    int           rc = ERR_OK;
    struct budget trial;
    bool          found = false;

    check_facts(facts);
    for (uint32_t level = 0; level < facts->mlp_levels; level++) {
        if (found && is_hidden(out, facts)) break;
        if (!choose_tiles(&trial, facts, level)) continue;
        if (!found || seconds_per_tile(&trial, facts) < seconds_per_tile(out, facts)) *out = trial;
        found = true;
    }
    if (!found) TRY(refuse(facts, err));
    raise_strips(out, facts);
    must(budget_device_bytes(out, facts) <= facts->allowed.vram_bytes);
out:
    return rc;
}

/* ------------------------------------------------------------------------------------ ladder */

const char *budget_rung_name(enum budget_rung rung)
{
    static const char *const names[RUNG_COUNT] = {
        [RUNG_REUSE] = "reuse mapped memory",        [RUNG_DEMOTE] = "demote resident blocks",
        [RUNG_CHUNK] = "run the MLP in chunks",      [RUNG_TILES] = "fewer tiles per pass",
        [RUNG_STRIPS] = "lower strips of the VAE",   [RUNG_KEEP] = "keep less than keep_in_vram",
        [RUNG_ENCODERS] = "text encoders on the CPU"};

    must(rung < RUNG_COUNT);
    return names[rung];
}

/* Gives `wanted` bytes back, or where that is too much, all that can be. */
static void demote(struct budget *budget, const struct budget_facts *facts, bool keeping,
                   uint64_t wanted)
{
    uint64_t      now = budget_device_bytes(budget, facts);
    struct bounds bounds = {.device_bytes = now - min_u64(wanted, now),
                            .resident_least = keeping ? keep_bytes(facts) : 0,
                            .streamed_above = budget->streamed_bytes,
                            .streaming = facts->allowed.offload};

    if (!choose_blocks(budget, facts, &bounds)) {
        bounds.device_bytes = now - 1;
        bounds.smallest = true;
        (void)choose_blocks(budget, facts, &bounds);
    }
}

/* The next level towards `last` that takes less scratch. */
static void lower(struct budget *budget, uint32_t *level, uint32_t last,
                  const struct budget_facts *facts)
{
    uint64_t now = budget->scratch_bytes;
    uint32_t before = *level;

    while (*level != last && scratch_of(budget, facts) >= now)
        *level = *level < last ? *level + 1 : *level - 1;
    if (scratch_of(budget, facts) >= now) *level = before;
    budget->scratch_bytes = scratch_of(budget, facts);
}

/* One step down a rung, of about `wanted` bytes where it can be so fine. */
static uint64_t step_by(struct budget *next, const struct budget *now,
                        const struct budget_facts *facts, enum budget_rung rung, uint64_t wanted)
{
    struct budget changed = *now;
    uint64_t      before = budget_device_bytes(now, facts), after;

    *next = *now;
    switch (rung) {
    case RUNG_REUSE: break; /* the pool's, and not decided here */
    case RUNG_DEMOTE: demote(&changed, facts, true, wanted); break;
    case RUNG_CHUNK: lower(&changed, &changed.mlp_level, facts->mlp_levels - 1, facts); break;
    case RUNG_TILES: lower(&changed, &changed.tiles_per_pass, 1, facts); break;
    case RUNG_STRIPS: lower(&changed, &changed.strip_level, facts->strip_levels - 1, facts); break;
    case RUNG_KEEP: demote(&changed, facts, false, wanted); break;
    case RUNG_ENCODERS:
        changed.text_on_cpu = now->text_on_cpu || facts->text_may_move;
        changed.scratch_bytes = scratch_of(&changed, facts);
        break;
    case RUNG_COUNT: must_fail("a rung of the ladder", ERR_WHERE);
    }
    after = budget_device_bytes(&changed, facts);
    if (after >= before) return 0;
    *next = changed;
    return before - after;
}

uint64_t budget_step(struct budget *next, const struct budget *now,
                     const struct budget_facts *facts, enum budget_rung rung)
{
    return step_by(next, now, facts, rung, 1);
}

/* Scratch is the largest of several needs, so that a rung may open the next one only: the ladder is
 * gone down until a whole walk gains nothing. */
uint64_t budget_relieve(struct budget *budget, const struct budget_facts *facts, uint64_t bytes,
                        uint64_t gained_out[RUNG_COUNT])
{
    uint64_t sum = 0, walk = 1;

    memset(gained_out, 0, RUNG_COUNT * sizeof *gained_out);
    while (sum < bytes && walk > 0) {
        walk = 0;
        for (int rung = RUNG_DEMOTE; rung < RUNG_COUNT && sum < bytes; rung++) {
            struct budget next;
            uint64_t gained = step_by(&next, budget, facts, (enum budget_rung)rung, bytes - sum);
            *budget = next;
            gained_out[rung] += gained;
            walk += gained;
            sum += gained;
        }
    }
    return sum;
}
