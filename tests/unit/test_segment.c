/*
 * test_segment.c - memory given back in any order: extents that coalesce, chunks that are shown
 * elsewhere without moving contents, a cap that holds.
 */
#include "shadow_vmem.h"

#include "tests/bench/segment.h"

#define MIB ((uint64_t)1 << 20)

/* Every so many bytes one is written and looked at, and the last. */
enum { STRIDE = 65536 };
static uint64_t next(uint64_t at, uint64_t bytes)
{
    return at + STRIDE < bytes || at + 1 == bytes ? at + STRIDE : bytes - 1;
}

enum { TAKES = 64 };

struct world {
    struct pool    *pool;
    struct segment *segment;
};

static bool open_world(struct world *world, uint64_t cap, double fragmentation_max)
{
    struct err             err = {0};
    struct pool_options    pool = {.ops = &shadow_ops,
                                   .cap_bytes = cap,
                                   .segment_bytes = 4 * MIB,
                                   .idle_share_max = 1,
                                   .expandable = true};
    struct segment_options options = {.limit_bytes = 8 * cap,
                                      .chunk_bytes = 4 * MIB,
                                      .fragmentation_max = fragmentation_max,
                                      .takes_max = TAKES};

    *world = (struct world){NULL, NULL};
    if (pool_open(&world->pool, &pool, &err) != ERR_OK) return false;
    return segment_open(&world->segment, world->pool, &options, &err) == ERR_OK;
}

static void close_world(struct world *world)
{
    segment_close(world->segment);
    pool_close(world->pool);
    shadow_is_clean();
}

static char *take(struct world *world, uint64_t bytes)
{
    struct err err = {0};
    void      *data = NULL;

    ASSERT_OK(segment_take(world->segment, bytes, &data, &err));
    return data;
}

static struct segment_counts segment_now(const struct world *world)
{
    struct segment_counts counts;

    segment_counts(world->segment, &counts);
    return counts;
}

static struct pool_counts pool_now(const struct world *world)
{
    struct pool_counts counts;

    pool_counts(world->pool, &counts);
    return counts;
}

static void neighbours_become_one_extent(void **state)
{
    struct world world;

    (void)state;
    assert_true(open_world(&world, 16 * MIB, 1));
    char *a = take(&world, MIB), *b = take(&world, MIB), *c = take(&world, MIB),
         *d = take(&world, MIB);
    assert_ptr_equal(d - 3 * MIB, a);
    segment_give(world.segment, a);
    segment_give(world.segment, c);
    assert_int_equal(segment_now(&world).largest_free_bytes, MIB);
    assert_true(segment_fragmentation(world.segment) == 0.5);
    segment_give(world.segment, b);
    assert_int_equal(segment_now(&world).largest_free_bytes, 3 * MIB);
    assert_ptr_equal(take(&world, 3 * MIB), a);
    (void)d;
    close_world(&world);
}

/* The smallest that fits, not the first. */
static void a_request_goes_into_the_tightest_extent(void **state)
{
    struct world world;

    (void)state;
    assert_true(open_world(&world, 16 * MIB, 1));
    char *wide = take(&world, 3 * MIB);
    (void)take(&world, MIB);
    char *tight = take(&world, MIB);
    (void)take(&world, MIB);
    segment_give(world.segment, wide);
    segment_give(world.segment, tight);
    assert_ptr_equal(take(&world, MIB - 64), tight);
    close_world(&world);
}

/* Every second chunk is free; a request for two of them needs no new memory, and nobody's bytes
 * move. */
static void scattered_chunks_are_shown_together(void **state)
{
    struct world world;
    char        *data[6];

    (void)state;
    assert_true(open_world(&world, 24 * MIB, 0.15));
    for (int i = 0; i < 6; i++)
        memset(data[i] = take(&world, 4 * MIB), i + 1, 4 * MIB);
    for (int i = 0; i < 6; i += 2)
        segment_give(world.segment, data[i]);
    uint64_t created = pool_now(&world).created;
    memset(take(&world, 12 * MIB), 9, 12 * MIB);
    assert_int_equal(pool_now(&world).created, created);
    assert_true(shadow.peak_bytes <= 24 * MIB);
    for (int i = 1; i < 6; i += 2)
        for (uint64_t at = 0; at < 4 * MIB; at++)
            if (data[i][at] != i + 1) fail_msg("contents changed");
    assert_true(segment_now(&world).moved_bytes >= 8 * MIB);
    close_world(&world);
}

/* With room under the cap, free chunks move only when fragmentation is above what is allowed. */
static void the_limit_decides_between_new_and_moved(void **state)
{
    (void)state;
    for (int strict = 0; strict < 2; strict++) {
        struct world world;
        char        *data[6];
        shadow_begin(NULL);
        assert_true(open_world(&world, 64 * MIB, strict ? 0.15 : 0.9));
        for (int i = 0; i < 6; i++)
            data[i] = take(&world, 4 * MIB);
        for (int i = 0; i < 6; i += 2)
            segment_give(world.segment, data[i]);
        (void)take(&world, 8 * MIB);
        assert_int_equal(segment_now(&world).moved_bytes > 0, strict);
        assert_int_equal(pool_now(&world).device, strict ? 24 * MIB : 32 * MIB);
        close_world(&world);
    }
}

static void free_chunks_go_back(void **state)
{
    struct world world;

    (void)state;
    assert_true(open_world(&world, 24 * MIB, 1));
    char *a = take(&world, 10 * MIB), *b = take(&world, MIB);
    segment_give(world.segment, a);
    segment_trim(world.segment);
    assert_int_equal(pool_now(&world).mapped, 4 * MIB);
    assert_true(touching_traps(a));
    *b = 1;
    assert_ptr_equal(take(&world, 10 * MIB), a); /* the hole is filled first */
    memset(a, 1, 10 * MIB);
    close_world(&world);
}

/* ---------------------------------------------------------------------------------- properties */

struct taken {
    char    *data;
    uint64_t bytes;
    char     mark;
};

static void check(const struct world *world, const struct taken *taken, uint32_t count)
{
    uint64_t live = 0, placed = 0;

    for (uint32_t i = 0; i < count; i++) {
        live += taken[i].bytes;
        placed += (taken[i].bytes + 63) / 64 * 64;
        assert_int_equal((uintptr_t)taken[i].data % 64, 0);
        for (uint64_t at = 0; at < taken[i].bytes; at = next(at, taken[i].bytes))
            if (taken[i].data[at] != taken[i].mark) fail_msg("contents changed");
    }
    struct pool_counts    pool = pool_now(world);
    struct segment_counts segment = segment_now(world);
    assert_int_equal(pool.live, live);
    assert_int_equal(pool.placed, placed);
    assert_int_equal(pool.mapped, placed + segment.free_bytes);
    if (!shadow.failed) assert_int_equal(shadow_seen(), pool.mapped);
    assert_int_equal(pool.device, shadow.bytes);
}

/* Takes and gives at random; only the cap and planted failures refuse. */
static void live_randomly(struct world *world, uint64_t seed, uint64_t cap, int steps)
{
    struct taken taken[TAKES];
    uint32_t     count = 0;

    for (int i = 0; i < steps; i++) {
        struct err err = {0};
        uint64_t   bytes = 1 + random_u64(&seed) % (random_u64(&seed) % 3 == 0 ? 9 * MIB : 90000);
        void      *data = NULL;
        if (count < TAKES && random_u64(&seed) % 5 < 3) {
            uint64_t mapped = pool_now(world).mapped;
            if (segment_take(world->segment, bytes, &data, &err) == ERR_OK) {
                taken[count] = (struct taken){data, bytes, (char)(random_u64(&seed) % 100)};
                for (uint64_t at = 0; at < bytes; at = next(at, bytes))
                    taken[count].data[at] = taken[count].mark;
                count++;
            } else {
                assert_true(shadow.failed || err.code == ERR_DEVICE_MEM);
                assert_true(pool_now(world).mapped <= mapped);
            }
        } else if (count > 0) {
            uint32_t k = (uint32_t)(random_u64(&seed) % count);
            segment_give(world->segment, taken[k].data);
            taken[k] = taken[--count];
        }
        if (random_u64(&seed) % 40 == 0) segment_trim(world->segment);
        if (random_u64(&seed) % 40 == 0) (void)pool_trim(world->pool, 8 * MIB);
        check(world, taken, count);
        assert_true(shadow.peak_bytes <= cap);
    }
}

static void random_lives_agree_with_a_model(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (MURAL_SANITIZED ? 2 : 6); seed++) {
        struct world world;
        shadow_begin(NULL);
        assert_true(open_world(&world, 64 * MIB, (double)(seed % 4) / 4));
        live_randomly(&world, seed, 64 * MIB, 300);
        close_world(&world);
    }
}

/* A request fails only when taken and wanted are really more than the cap, chunks apart. */
static void what_fits_is_found(void **state)
{
    struct world world;
    struct err   err = {0};
    void        *data[TAKES], *all = NULL;

    (void)state;
    assert_true(open_world(&world, 64 * MIB, 0.15));
    for (int i = 0; i < 16; i++)
        data[i] = take(&world, 4 * MIB);
    for (int i = 0; i < 16; i++)
        if (i % 4 != 0) segment_give(world.segment, data[i]);
    ASSERT_OK(segment_take(world.segment, 47 * MIB, &all, &err));
    ASSERT_REFUSED(ERR_DEVICE_MEM, "the cap is 67.1 MB",
                   segment_take(world.segment, 2 * MIB, &data[1], &err));
    segment_give(world.segment, all);
    close_world(&world);
}

static void every_call_may_fail(void **state)
{
    (void)state;
    for (int more = 0; more < 3; more++) {
        int64_t n = 0;
        bool    undisturbed = false;
        while (!undisturbed) {
            struct world world;
            shadow_begin(NULL);
            shadow.fail_at = ++n;
            shadow.fail_more = more; /* then also what should have set it right */
            if (open_world(&world, 40 * MIB, 0.1)) live_randomly(&world, 3, 40 * MIB, 100);
            segment_close(world.segment);
            pool_close(world.pool);
            shadow_is_clean();
            undisturbed = !shadow.failed;
        }
        print_message("# %d calls failed in turn\n", (int)n - 1);
        assert_in_range(n, 20, 1000);
    }
}

int main(void)
{
#define FRESH(test) cmocka_unit_test_setup(test, shadow_begin)
    const struct CMUnitTest tests[] = {
        FRESH(neighbours_become_one_extent),
        FRESH(a_request_goes_into_the_tightest_extent),
        FRESH(scattered_chunks_are_shown_together),
        FRESH(the_limit_decides_between_new_and_moved),
        FRESH(free_chunks_go_back),
        FRESH(random_lives_agree_with_a_model),
        FRESH(what_fits_is_found),
        FRESH(every_call_may_fail),
    };
    return cmocka_run_group_tests_name("segment", tests, NULL, NULL);
}
