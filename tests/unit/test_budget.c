/*
 * test_budget.c - properties of the decision who gets how much of a GPU, over random facts.
 */
#include "../test.h"

#include "engine/budget.h"

enum { CASES = 1500 };

#define MB ((uint64_t)1 << 20)

/* A model like none, but not unlike one: doubles twice as large as singles, a few odd ones. */
static struct budget_facts random_facts(uint64_t *state)
{
    struct budget_facts facts = {.mlp_levels = 1,
                                 .text_may_move = random_between(state, 0, 3) == 0};
    uint32_t            doubles = (uint32_t)random_between(state, 0, 12);
    uint32_t            singles = (uint32_t)random_between(state, 1, 24);
    uint64_t            unit = MB * (uint64_t)random_between(state, 1, 300), sum = 0, state_bytes;

    facts.block_count = doubles + singles;
    for (uint32_t i = 0; i < facts.block_count; i++) {
        uint64_t odd = random_between(state, 0, 9) == 0 ? unit / 3 : 0;
        facts.block_bytes[i] = (i < doubles ? 2 * unit : unit) + odd;
        facts.block_flop[i] =
            (double)facts.block_bytes[i] * (double)random_between(state, 50, 5000);
        sum += facts.block_bytes[i];
    }
    facts.fixed_bytes = MB * (uint64_t)random_between(state, 0, 600);
    facts.ends_bytes = MB * (uint64_t)random_between(state, 0, 400);
    facts.text_bytes = MB * (uint64_t)random_between(state, 0, 1400);
    facts.tiles_most = (uint32_t)random_between(state, 1, BUDGET_TILES_MAX);
    facts.mlp_levels = (uint32_t)random_between(state, 1, BUDGET_CHUNKS_MAX);
    state_bytes = MB * (uint64_t)random_between(state, 1, 300);
    for (uint32_t level = 0; level < facts.mlp_levels; level++)
        for (uint32_t t = 1; t <= BUDGET_TILES_MAX; t++)
            facts.predict_bytes[level][t] = t * state_bytes + (800 * MB >> level);
    facts.strip_levels = (uint32_t)random_between(state, 1, BUDGET_STRIPS_MAX);
    for (uint32_t level = 0; level < facts.strip_levels; level++)
        facts.coder_bytes[level] = 300 * MB + (2600 * MB >> level);
    facts.host_bytes = (uint64_t)random_between(state, 1, 40) << 30;
    facts.host_free_bytes = facts.host_bytes / (uint64_t)random_between(state, 1, 4);
    facts.link_bytes_per_second = (double)random_between(state, 0, 60) * 1e9;
    facts.disk_bytes_per_second = (double)random_between(state, 0, 8) * 1e9;
    facts.flop_per_second = (double)random_between(state, 0, 600) * 1e12;
    facts.allowed =
        (struct engine_memory){.vram_bytes = MB * (uint64_t)random_between(state, 1000, 3000) +
                                             sum * (uint64_t)random_between(state, 0, 110) / 100,
                               .offload = random_between(state, 0, 9) > 0,
                               .keep_share = (double)random_between(state, 0, 10) / 20,
                               .tiles_per_pass = (uint32_t)random_between(state, 0, 4),
                               .expandable = random_between(state, 0, 3) > 0};
    return facts;
}

static uint64_t sum_of(const struct budget_facts *facts)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < facts->block_count; i++)
        sum += facts->block_bytes[i];
    return sum;
}

static uint64_t up(uint64_t bytes)
{
    return (bytes + 2 * MB - 1) / (2 * MB) * (2 * MB);
}

/* ------------------------------------------------------------------------------ every budget */

static void check_spread(const struct budget *budget)
{
    int32_t first = -1, last = -1;
    int32_t least = INT32_MAX, most = 0;

    for (int32_t i = 0; i < (int32_t)budget->block_count; i++) {
        if (!budget->streamed[i]) continue;
        if (first < 0) first = i;
        if (last >= 0 && i - last < least) least = i - last;
        if (last >= 0 && i - last > most) most = i - last;
        last = i;
    }
    if (first < 0) return;
    /* the way round, from the last of a step to the first of the next */
    int32_t round = (int32_t)budget->block_count - last + first;
    if (round < least) least = round;
    if (round > most) most = round;
    assert_true(most - least <= 1);
}

static void check_sums(const struct budget *budget, const struct budget_facts *facts)
{
    uint64_t streamed = 0, largest[2] = {0, 0};
    uint32_t count = 0;

    for (uint32_t i = 0; i < budget->block_count; i++) {
        if (!budget->streamed[i]) continue;
        streamed += facts->block_bytes[i];
        largest[count % 2] = max_u64(largest[count % 2], facts->block_bytes[i]);
        count++;
    }
    assert_int_equal(count, budget->streamed_count);
    assert_true(count % 2 == 0 && count != 2);
    assert_int_equal(streamed, budget->streamed_bytes);
    assert_int_equal(streamed + budget->resident_bytes, sum_of(facts));
    assert_int_equal(budget->ring_bytes, largest[0] + largest[1]);
    assert_int_equal(budget_device_bytes(budget, facts),
                     facts->fixed_bytes + up(facts->ends_bytes) + up(budget->resident_bytes) +
                         up(largest[0]) + up(largest[1]) + up(budget->scratch_bytes));
}

static void check_budget(const struct budget *budget, const struct budget_facts *facts)
{
    uint64_t least_scratch = facts->predict_bytes[budget->mlp_level][budget->tiles_per_pass];

    check_sums(budget, facts);
    check_spread(budget);
    assert_true(budget_device_bytes(budget, facts) <= facts->allowed.vram_bytes);
    assert_true(budget->tiles_per_pass >= 1 && budget->tiles_per_pass <= facts->tiles_most);
    if (facts->allowed.tiles_per_pass > 0)
        assert_true(budget->tiles_per_pass <= facts->allowed.tiles_per_pass);
    assert_true(budget->scratch_bytes >= least_scratch);
    assert_true(budget->scratch_bytes >= facts->coder_bytes[budget->strip_level]);
    if (budget->text_on_cpu) assert_true(facts->text_may_move);
    /* In one piece a tile's arena cannot be lent to a prompt. */
    if (!budget->text_on_cpu)
        assert_true(budget->scratch_bytes >=
                    facts->text_bytes + (facts->allowed.expandable ? 0 : least_scratch));
    if (!facts->allowed.offload) assert_int_equal(budget->streamed_count, 0);
    assert_true(budget->pinned_bytes <= budget->streamed_bytes);
    assert_true(budget->pinned_bytes <= facts->host_bytes / 2);
    if (budget->pinned_bytes > 0)
        assert_true(budget->pinned_bytes + ((uint64_t)4 << 30) <= facts->host_free_bytes);
}

static void every_budget_keeps_to_the_facts(void **state)
{
    uint64_t   seed = 1;
    struct err err = {0};
    uint32_t   made = 0, streaming = 0, several = 0;

    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct budget_facts facts = random_facts(&seed);
        struct budget       budget;
        if (budget_make(&budget, &facts, &err) != ERR_OK) {
            assert_int_equal(err.code, ERR_DEVICE_MEM);
            assert_non_null(strstr(err.text, "short by"));
            continue;
        }
        check_budget(&budget, &facts);
        made++;
        streaming += budget.streamed_count > 0;
        several += budget.tiles_per_pass > 1;
    }
    /* All kinds were seen. */
    assert_true(made > CASES / 2 && made < CASES && streaming > CASES / 4 && several > 20);
}

/* Of link and disk, the slower. */
static double visit_seconds(const struct budget *budget, const struct budget_facts *facts)
{
    double link = budget_link_seconds(budget, facts), disk = budget_disk_seconds(budget, facts);

    return link > disk ? link : disk;
}

static double seconds_per_tile(const struct budget *budget, const struct budget_facts *facts)
{
    double compute = budget_compute_seconds(budget, facts);
    double visit = visit_seconds(budget, facts);

    return (compute > visit ? compute : visit) / budget->tiles_per_pass;
}

static void more_memory_is_never_worse(void **state)
{
    uint64_t   seed = 2;
    struct err err = {0};

    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct budget_facts facts = random_facts(&seed), more;
        struct budget       small, large;
        if (budget_make(&small, &facts, &err) != ERR_OK) continue;
        more = facts;
        more.allowed.vram_bytes += MB * (uint64_t)random_between(&seed, 1, 2000);
        assert_int_equal(budget_make(&large, &more, &err), ERR_OK);
        if (small.text_on_cpu && !large.text_on_cpu) continue; /* it was moved for want of room */
        assert_true(seconds_per_tile(&large, &more) <= seconds_per_tile(&small, &facts) * 1.0001);
        /* With as many tiles, chunks and encoders in place as before, no more bytes visit. */
        if (large.tiles_per_pass <= small.tiles_per_pass && large.mlp_level == small.mlp_level &&
            large.text_on_cpu == small.text_on_cpu)
            assert_true(large.streamed_bytes <= small.streamed_bytes);
    }
}

/* What a budget takes is enough for one as good.  Lower strips of a small picture may take more. */
static void a_budget_needs_no_more_than_it_takes(void **state)
{
    uint64_t random = 23, made = 0;

    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct budget_facts facts = random_facts(&random);
        struct budget       first, again;
        struct err          err = {.code = ERR_OK};
        for (uint32_t level = 0; level < facts.strip_levels; level++)
            facts.coder_bytes[level] = MB * (uint64_t)random_between(&random, 300, 2900);
        if (budget_make(&first, &facts, &err) != ERR_OK) continue;
        facts.allowed.vram_bytes = budget_device_bytes(&first, &facts);
        ASSERT_OK(budget_make(&again, &facts, &err));
        assert_int_equal(again.streamed_bytes, first.streamed_bytes);
        assert_int_equal(again.tiles_per_pass, first.tiles_per_pass);
        made++;
    }
    assert_true(made > CASES / 4);
}

/* Nothing streams when everything fits, and then spare bytes go to the VAE's strips. */
static void spare_bytes_go_to_blocks_then_to_strips(void **state)
{
    uint64_t   seed = 3;
    struct err err = {0};

    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct budget_facts facts = random_facts(&seed);
        struct budget       budget, fewer;
        uint64_t            left;
        facts.allowed.vram_bytes = (uint64_t)1 << 40;
        assert_int_equal(budget_make(&budget, &facts, &err), ERR_OK);
        assert_int_equal(budget.streamed_count, 0);
        assert_int_equal(budget.strip_level, 0);
        assert_int_equal(budget.tiles_per_pass, 1);

        /* One byte less than that: strips go first, and no block. */
        facts.allowed.vram_bytes = budget_device_bytes(&budget, &facts) - 1;
        if (facts.strip_levels == 1 || facts.coder_bytes[0] <= facts.text_bytes + 800 * MB)
            continue;
        if (budget_make(&fewer, &facts, &err) != ERR_OK) continue;
        if (facts.predict_bytes[0][1] + 2 * MB > facts.coder_bytes[0]) continue;
        left = facts.allowed.vram_bytes - budget_device_bytes(&fewer, &facts);
        assert_int_equal(fewer.streamed_count, 0);
        assert_true(fewer.strip_level > 0 && left < facts.allowed.vram_bytes);
    }
}

/* More tiles may cost residents, but not below keep_share. */
static void tiles_leave_keep_share_in_place(void **state)
{
    uint64_t   seed = 4;
    struct err err = {0};
    int        bound = 0;

    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct budget_facts facts = random_facts(&seed), one;
        struct budget       budget, single;
        double              all = (double)sum_of(&facts);
        if (budget_make(&budget, &facts, &err) != ERR_OK || budget.tiles_per_pass == 1) continue;
        one = facts;
        one.tiles_most = 1;
        assert_int_equal(budget_make(&single, &one, &err), ERR_OK);
        if ((double)single.resident_bytes >= facts.allowed.keep_share * all) {
            assert_true((double)budget.resident_bytes >= facts.allowed.keep_share * all - 1);
            bound++;
        } else if (single.mlp_level == budget.mlp_level) {
            assert_true(budget.resident_bytes >= single.resident_bytes);
        }
    }
    assert_true(bound > 10);
}

/* The fewest tiles that hide the link. */
static void no_tile_more_than_the_link_asks_for(void **state)
{
    uint64_t   seed = 5;
    struct err err = {0};
    int        seen = 0;

    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct budget_facts facts = random_facts(&seed), fewer;
        struct budget       budget, trial;
        if (budget_make(&budget, &facts, &err) != ERR_OK || budget.tiles_per_pass == 1) continue;
        fewer = facts;
        fewer.tiles_most = budget.tiles_per_pass - 1;
        assert_int_equal(budget_make(&trial, &fewer, &err), ERR_OK);
        if (trial.mlp_level != budget.mlp_level) continue; /* chunks save what tiles would take */
        assert_true(budget_compute_seconds(&trial, &fewer) < visit_seconds(&trial, &fewer));
        seen++;
    }
    assert_true(seen > 20);
}

/* ------------------------------------------------------------------------------------ ladder */

static void every_rung_gains_what_it_says(void **state)
{
    uint64_t   seed = 6;
    struct err err = {0};
    uint32_t   used[RUNG_COUNT] = {0};

    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct budget_facts facts = random_facts(&seed);
        struct budget       budget, next;
        if (budget_make(&budget, &facts, &err) != ERR_OK) continue;
        for (int rung = 0; rung < RUNG_COUNT; rung++) {
            uint64_t before = budget_device_bytes(&budget, &facts);
            uint64_t gained = budget_step(&next, &budget, &facts, (enum budget_rung)rung);
            assert_non_null(budget_rung_name((enum budget_rung)rung));
            used[rung] += gained > 0;
            assert_int_equal(gained, before - budget_device_bytes(&next, &facts));
            if (gained == 0) assert_memory_equal(&next, &budget, sizeof next);
            if (rung == RUNG_DEMOTE && gained > 0)
                assert_true((double)next.resident_bytes >=
                            facts.allowed.keep_share * (double)sum_of(&facts) - 1);
            if (rung == RUNG_ENCODERS && !facts.text_may_move) assert_int_equal(gained, 0);
            if (!facts.allowed.offload) assert_int_equal(next.streamed_count, 0);
            if (gained > 0) check_sums(&next, &facts);
            check_spread(&next);
            assert_true(next.streamed_bytes >= budget.streamed_bytes);
            assert_true(next.pinned_bytes <= next.streamed_bytes);
        }
    }
    assert_int_equal(used[RUNG_REUSE], 0);
    for (int rung = RUNG_DEMOTE; rung < RUNG_COUNT; rung++)
        if (used[rung] == 0) fail_msg("no case went down rung %d", rung);
}

static void the_ladder_gives_what_is_asked_or_ends(void **state)
{
    uint64_t   seed = 7;
    struct err err = {0};

    (void)state;
    for (int i = 0; i < CASES / 3; i++) {
        struct budget_facts facts = random_facts(&seed);
        struct budget       budget, before, next;
        uint64_t            gained[RUNG_COUNT], sum, told = 0,
                                          asked = MB * (uint64_t)random_between(&seed, 1, 6000);
        if (budget_make(&budget, &facts, &err) != ERR_OK) continue;
        before = budget;
        sum = budget_relieve(&budget, &facts, asked, gained);
        for (int rung = 0; rung < RUNG_COUNT; rung++)
            told += gained[rung];
        assert_int_equal(told, sum);
        assert_int_equal(sum, budget_device_bytes(&before, &facts) -
                                  budget_device_bytes(&budget, &facts));
        if (sum >= asked) continue;
        for (int rung = RUNG_DEMOTE; rung < RUNG_COUNT; rung++)
            assert_int_equal(budget_step(&next, &budget, &facts, (enum budget_rung)rung), 0);
        /* Where the ladder ends, a new budget finds nothing either. */
        facts.allowed.vram_bytes = budget_device_bytes(&before, &facts) - asked;
        if (facts.allowed.vram_bytes > 0 && facts.allowed.vram_bytes < (uint64_t)1 << 50)
            assert_int_equal(budget_make(&next, &facts, &err), ERR_DEVICE_MEM);
    }
}

/* ---------------------------------------------------------------------------------- sentences */

static struct budget_facts plain_facts(void)
{
    struct budget_facts facts = {
        .fixed_bytes = 500 * MB,
        .ends_bytes = 100 * MB,
        .block_count = 8,
        .tiles_most = 4,
        .mlp_levels = 1,
        .strip_levels = 1,
        .coder_bytes = {1000 * MB},
        .host_bytes = (uint64_t)64 << 30,
        .host_free_bytes = (uint64_t)60 << 30,
        .allowed = {.vram_bytes = 1500 * MB, .offload = true, .expandable = true}};

    for (int i = 0; i < 8; i++) {
        facts.block_bytes[i] = 100 * MB;
        facts.block_flop[i] = 1e12;
    }
    for (int t = 1; t <= BUDGET_TILES_MAX; t++)
        facts.predict_bytes[0][t] = (uint64_t)t * 100 * MB;
    return facts;
}

static void refusals_say_what_is_short(void **state)
{
    struct err          err = {0};
    struct budget       budget;
    struct budget_facts facts = plain_facts();

    (void)state;
    ASSERT_REFUSED(ERR_DEVICE_MEM,
                   "plan: the GPU has 1.6 GB for this program and the least is 1.9 GB (1.0 GB of "
                   "scratch): short by 315 MB; give a smaller --tile, or more --vram",
                   budget_make(&budget, &facts, &err));
    facts.allowed.vram_bytes = 2000 * MB;
    ASSERT_OK(budget_make(&budget, &facts, &err));
    facts.allowed.offload = false;
    ASSERT_REFUSED(ERR_DEVICE_MEM, "allow offload", budget_make(&budget, &facts, &err));
    facts.allowed =
        (struct engine_memory){.vram_bytes = 3000 * MB, .offload = true, .pool_bytes = 2800 * MB};
    ASSERT_REFUSED(ERR_DEVICE_MEM, "memory_pool_size is 2.9 GB",
                   budget_make(&budget, &facts, &err));
}

/* ------------------------------------------------------------------- what each setting changes */

static void each_setting_changes_the_decision(void **state)
{
    struct err          err = {0};
    struct budget_facts facts = plain_facts(), changed;
    struct budget       before, after;

    (void)state;
    facts.allowed.vram_bytes = 2150 * MB;
    facts.allowed.keep_share = 0.2;
    facts.link_bytes_per_second = 1e9;
    facts.flop_per_second = 40e12; /* 0.2 s a tile; 0.4 GB or more over the link take longer */
    ASSERT_OK(budget_make(&before, &facts, &err));
    assert_true(before.streamed_count > 0 && before.tiles_per_pass > 1);

    changed = facts; /* vram */
    changed.allowed.vram_bytes = 3000 * MB;
    ASSERT_OK(budget_make(&after, &changed, &err));
    assert_true(after.streamed_count < before.streamed_count);

    changed = facts; /* offload */
    changed.allowed.offload = false;
    assert_int_equal(budget_make(&after, &changed, &err), ERR_DEVICE_MEM);

    changed = facts; /* batch_size */
    changed.allowed.tiles_per_pass = 1;
    ASSERT_OK(budget_make(&after, &changed, &err));
    assert_int_equal(after.tiles_per_pass, 1);

    changed = facts; /* memory_pool_size */
    changed.allowed.pool_bytes = 1600 * MB;
    ASSERT_OK(budget_make(&after, &changed, &err));
    assert_int_equal(budget_device_bytes(&after, &changed), 2100 * MB);

    changed = facts; /* link_speed */
    changed.link_bytes_per_second = 50e9;
    ASSERT_OK(budget_make(&after, &changed, &err));
    assert_int_equal(after.tiles_per_pass, 1);

    changed.disk_bytes_per_second = 50e6; /* disk_speed, of which nobody asks with pinned copies */
    ASSERT_OK(budget_make(&after, &changed, &err));
    assert_int_equal(after.tiles_per_pass, 1);
    changed.host_free_bytes = changed.host_bytes = 0;
    ASSERT_OK(budget_make(&after, &changed, &err));
    assert_true(after.pinned_bytes == 0 && after.tiles_per_pass > 1);

    changed = facts; /* card_tflops */
    changed.flop_per_second = 1e12;
    ASSERT_OK(budget_make(&after, &changed, &err));
    assert_int_equal(after.tiles_per_pass, 1);
}

/* Two tiles would hide the link and want as much scratch as a block: keep_in_vram forbids it. */
static void keep_in_vram_stands_before_more_tiles(void **state)
{
    struct err          err = {0};
    struct budget_facts facts = plain_facts();
    struct budget       free_choice, kept;

    (void)state;
    for (int t = 1; t <= BUDGET_TILES_MAX; t++)
        facts.predict_bytes[0][t] = 1000 * MB + (uint64_t)(t - 1) * 150 * MB;
    facts.allowed.vram_bytes = 2200 * MB;
    facts.link_bytes_per_second = 1e9;
    facts.flop_per_second = 25e12;
    facts.allowed.keep_share = 0;
    ASSERT_OK(budget_make(&free_choice, &facts, &err));
    facts.allowed.keep_share = 0.5;
    ASSERT_OK(budget_make(&kept, &facts, &err));
    assert_true(free_choice.tiles_per_pass > kept.tiles_per_pass);
    assert_true(free_choice.resident_bytes < kept.resident_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_budget_keeps_to_the_facts),
                                       cmocka_unit_test(more_memory_is_never_worse),
                                       cmocka_unit_test(a_budget_needs_no_more_than_it_takes),
                                       cmocka_unit_test(spare_bytes_go_to_blocks_then_to_strips),
                                       cmocka_unit_test(tiles_leave_keep_share_in_place),
                                       cmocka_unit_test(no_tile_more_than_the_link_asks_for),
                                       cmocka_unit_test(every_rung_gains_what_it_says),
                                       cmocka_unit_test(the_ladder_gives_what_is_asked_or_ends),
                                       cmocka_unit_test(refusals_say_what_is_short),
                                       cmocka_unit_test(each_setting_changes_the_decision),
                                       cmocka_unit_test(keep_in_vram_stands_before_more_tiles)};
    return cmocka_run_group_tests_name("budget", tests, NULL, NULL);
}
