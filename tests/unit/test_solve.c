/*
 * test_solve.c - placements of traces: nothing that lives overlaps, never below what lives at one
 * time, and equal to it where that is known to be possible.
 */
#include "../test.h"

#include "memory/trace.h"
#include "tests/bench/solve.h"

enum { ITEMS_MAX = 400 };

static uint64_t most_alive(const struct solve_item *items, uint32_t count)
{
    uint64_t most = 0;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t bytes = 0;
        for (uint32_t k = 0; k < count; k++)
            if (items[k].birth <= items[i].birth && items[i].birth < items[k].death)
                bytes += items[k].bytes;
        most = max_u64(most, bytes);
    }
    return most;
}

static void check(const struct solve_item *items, uint32_t count, const uint64_t *offsets,
                  const struct solve_result *result)
{
    uint64_t top = 0;

    for (uint32_t i = 0; i < count; i++) {
        top = max_u64(top, offsets[i] + items[i].bytes);
        for (uint32_t k = 0; k < i; k++) {
            bool alive = items[i].birth < items[k].death && items[k].birth < items[i].death;
            bool apart = offsets[i] + items[i].bytes <= offsets[k] ||
                         offsets[k] + items[k].bytes <= offsets[i];
            if (alive && !apart) fail_msg("items %u and %u overlap", i, k);
        }
    }
    assert_int_equal(result->placed_bytes, top);
    assert_int_equal(result->live_bytes, most_alive(items, count));
    assert_true(result->placed_bytes >= result->live_bytes);
    assert_true(result->placed_bytes <= result->greedy_bytes);
}

static uint32_t random_items(struct solve_item *items, uint64_t seed)
{
    uint32_t count = 1 + (uint32_t)(random_u64(&seed) % 120);

    for (uint32_t i = 0; i < count; i++) {
        items[i].bytes = 64 * (1 + random_u64(&seed) % (random_u64(&seed) % 8 == 0 ? 1000 : 20));
        items[i].birth = (uint32_t)(random_u64(&seed) % 200);
        items[i].death = items[i].birth + 1 + (uint32_t)(random_u64(&seed) % 60);
    }
    return count;
}

static void nothing_that_lives_overlaps(void **state)
{
    struct solve_item   items[ITEMS_MAX];
    uint64_t            offsets[ITEMS_MAX], again[ITEMS_MAX];
    struct solve_result result, repeated;
    struct err          err = {0};
    double              greedy = 0, searched = 0;
    int                 runs = MURAL_SANITIZED ? 40 : 200;

    (void)state;
    for (int seed = 1; seed <= runs; seed++) {
        uint32_t count = random_items(items, (uint64_t)seed);
        ASSERT_OK(solve_offsets(offsets, &result, items, count, 100, &err));
        check(items, count, offsets, &result);
        ASSERT_OK(solve_offsets(again, &repeated, items, count, 100, &err));
        assert_memory_equal(offsets, again, count * sizeof *offsets);
        greedy += (double)result.greedy_bytes / (double)result.live_bytes - 1;
        searched += solve_gap(&result);
    }
    print_message("# mean gap of %d: greedy %.2f %%, searched %.2f %%\n", runs, 100 * greedy / runs,
                  100 * searched / runs);
    assert_true(searched < greedy);
}

/* A dry arena walks at random; by its rewinds it is a stack, which leaves no gap. */
static void stacks_are_placed_without_a_gap(void **state)
{
    struct err err = {0};

    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct solve_item        items[ITEMS_MAX];
        uint64_t                 offsets[ITEMS_MAX], random = seed;
        struct solve_result      result;
        struct arena            *arena = NULL;
        struct trace            *trace = NULL;
        const struct trace_item *taken;
        struct arena_mark        marks[16];
        uint32_t                 count, depth = 0;
        ASSERT_OK(arena_open_dry(&arena, &err));
        ASSERT_OK(trace_open(&trace, &err));
        arena_record(arena, trace);
        for (int i = 0; i < 300; i++) {
            uint64_t choice = random_u64(&random) % 5;
            if (choice == 0 && depth < 16)
                marks[depth++] = arena_mark(arena);
            else if (choice == 1 && depth > 0)
                arena_rewind(arena, marks[--depth]);
            else
                (void)arena_take(arena, 1 + random_u64(&random) % 5000, "walk");
        }
        ASSERT_OK(trace_end(trace, &taken, &count, &err));
        assert_in_range(count, 1, ITEMS_MAX);
        for (uint32_t i = 0; i < count; i++)
            items[i] = (struct solve_item){taken[i].bytes, taken[i].birth, taken[i].death};
        ASSERT_OK(solve_offsets(offsets, &result, items, count, 2000, &err));
        check(items, count, offsets, &result);
        assert_int_equal(result.live_bytes, arena_bytes_peak(arena));
        assert_int_equal(result.placed_bytes, result.live_bytes);
        arena_record(arena, NULL);
        trace_close(trace);
        arena_close(arena);
    }
}

static void a_trace_knows_births_uses_and_deaths(void **state)
{
    struct err               err = {0};
    struct arena            *arena = NULL;
    struct trace            *trace = NULL;
    const struct trace_item *items;
    uint32_t                 count;

    (void)state;
    ASSERT_OK(arena_open_dry(&arena, &err));
    ASSERT_OK(trace_open(&trace, &err));
    arena_record(arena, trace);
    struct arena_mark start = arena_mark(arena);
    char             *a = arena_take(arena, 100, "a"); /* 0 */
    struct arena_mark mark = arena_mark(arena);
    char             *b = arena_take(arena, 64, "b"); /* 1 */
    arena_touch(arena, b + 63);                       /* 2 */
    arena_touch(arena, a + 100);                      /* 3: alignment is a's */
    arena_touch(arena, b + 64);                       /* nobody's */
    arena_rewind(arena, mark);                        /* 4 */
    arena_touch(arena, b);                            /* nobody's any more */
    (void)arena_take(arena, 0, "nothing");            /* 5 */
    arena_rewind(arena, start);                       /* 6 */
    ASSERT_OK(trace_end(trace, &items, &count, &err));
    assert_int_equal(count, 2);
    assert_string_equal(items[0].label, "a");
    assert_int_equal(items[0].bytes, 128);
    assert_int_equal(items[0].last_use, 3);
    assert_int_equal(items[0].death, 6);
    assert_int_equal(items[1].offset, 128);
    assert_int_equal(items[1].birth, 1);
    assert_int_equal(items[1].last_use, 2);
    assert_int_equal(items[1].death, 4);
    trace_close(trace);
    arena_record(arena, NULL);
    arena_close(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_that_lives_overlaps),
        cmocka_unit_test(stacks_are_placed_without_a_gap),
        cmocka_unit_test(a_trace_knows_births_uses_and_deaths),
    };
    return cmocka_run_group_tests_name("solve", tests, NULL, NULL);
}
