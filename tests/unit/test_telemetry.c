/*
 * test_telemetry.c - an engine's account of its pool: since the restart, and nothing without one.
 */
#include "../test.h"

#include "engine/compute_int.h"

static const uint64_t MIB = 1 << 20;

static struct pool_sample samples[POOL_SAMPLES_MAX];

static uint32_t all_calls(const struct memory_use *use)
{
    uint64_t sum = 0;

    for (int call = 0; call < MEMORY_CALLS; call++)
        sum += use->calls[call];
    return (uint32_t)sum;
}

static void without_a_pool_there_is_nothing_to_tell(void **state)
{
    static struct engine    engine;
    const struct memory_use none = {.peak_live = 0};
    struct memory_use       use = {.peak_live = 1, .idle_share = 1, .calls = {1}};

    (void)state;
    engine_memory_restart(&engine);
    engine_memory_use(&engine, &use);
    assert_memory_equal(&use, &none, sizeof use);
    assert_int_equal(engine_memory_history(&engine, samples), 0);
}

/* One tile's life, again and again: the first one maps, those after it find everything there. */
static void an_account_is_of_the_time_since_the_restart(void **state)
{
    struct pool_options  options = {.ops = &vmem_host,
                                    .cap_bytes = 64 * MIB,
                                    .segment_bytes = 2 * MIB,
                                    .idle_share_max = 1,
                                    .expandable = true};
    static struct engine engine;
    struct arena        *arena = NULL;
    struct memory_use    use;
    struct err           err = {0};

    (void)state;
    ASSERT_OK(pool_open(&engine.pool, &options, &err));
    ASSERT_OK(arena_open_in(&arena, engine.pool, 64 * MIB, &err));
    for (int tile = 0; tile < 3; tile++) {
        struct arena_mark mark = arena_mark(arena);
        uint64_t          highest = 0;
        uint32_t          count;

        engine_memory_restart(&engine);
        (void)arena_take(arena, (tile == 2 ? 10 : 20) * MIB, "a tile");
        engine_memory_use(&engine, &use);
        arena_rewind(arena, mark);
        assert_int_equal(use.peak_live, (tile == 2 ? 10 : 20) * MIB);
        assert_int_equal(use.peak_mapped, 20 * MIB);
        assert_int_equal(use.peak_device, 20 * MIB);
        assert_true(memory_utilisation(&use) == (tile == 2 ? 0.5 : 1));
        assert_true((all_calls(&use) > 0) == (tile == 0));
        assert_int_equal(use.link_bytes, 0);
        count = engine_memory_history(&engine, samples);
        assert_in_range(count, 1, POOL_SAMPLES_MAX);
        for (uint32_t i = 0; i < count; i++) {
            highest = max_u64(highest, samples[i].live);
            assert_true(samples[i].seconds >= (i == 0 ? 0 : samples[i - 1].seconds));
            assert_true(samples[i].live <= samples[i].placed);
            assert_true(samples[i].placed <= samples[i].mapped);
            assert_true(samples[i].mapped <= samples[i].device);
        }
        assert_int_equal(highest, use.peak_live);
    }
    arena_close(arena);
    pool_close(engine.pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_pool_there_is_nothing_to_tell),
        cmocka_unit_test(an_account_is_of_the_time_since_the_restart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
