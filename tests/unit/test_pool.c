/*
 * test_pool.c - physical memory under arenas, by example: a cap that holds, and neighbours who lose
 * only what they do not use; and what a pool tells of itself.
 */
#include "made_pool.h"

static void pieces_are_kept_and_used_again(void **state)
{
    struct err    err = {0};
    struct pool  *pool = open_pool(400 * MIB, 64 * MIB);
    struct arena *arena = open_arena(pool, 400 * MIB);

    (void)state;
    ASSERT_OK(arena_seal(arena, 102 * MIB, &err)); /* 64 + 32 + 2 + 2 + 2 */
    assert_int_equal(counts_of(pool).created, 5);
    assert_int_equal(counts_of(pool).access, 1);
    arena_close(arena);
    assert_int_equal(counts_of(pool).mapped, 0);
    assert_int_equal(counts_of(pool).device, 102 * MIB);
    arena = open_arena(pool, 400 * MIB);
    ASSERT_OK(arena_seal(arena, 100 * MIB, &err));
    assert_int_equal(counts_of(pool).created, 5);
    arena_close(arena);
    assert_int_equal(pool_trim(pool, 1), 64 * MIB);
    assert_int_equal(pool_trim(pool, UINT64_MAX), 38 * MIB);
    assert_int_equal(counts_of(pool).device, 0);
    pool_close(pool);
    shadow_is_clean();
}

static void what_was_taken_at_the_start_stays(void **state)
{
    struct err          err = {0};
    struct pool        *pool = NULL;
    struct pool_options options = {
        .ops = &shadow_ops, .cap_bytes = 100 * MIB, .start_bytes = 39 * MIB, .expandable = true};

    (void)state;
    ASSERT_OK(pool_open(&pool, &options, &err));
    assert_int_equal(counts_of(pool).device, 40 * MIB);
    struct arena *arena = open_arena(pool, 100 * MIB);
    ASSERT_OK(arena_seal(arena, 60 * MIB, &err));
    arena_close(arena);
    assert_int_equal(pool_trim(pool, UINT64_MAX), 20 * MIB);
    assert_int_equal(counts_of(pool).device, 40 * MIB);
    pool_close(pool);
    options.start_bytes = 101 * MIB;
    ASSERT_REFUSED(ERR_DEVICE_MEM, "107 MB are to be taken at the start, but the cap is 105 MB",
                   pool_open(&pool, &options, &err));
    shadow_is_clean();
}

static void the_cap_is_one_sentence_with_numbers(void **state)
{
    struct err    err = {0};
    struct pool  *pool = open_pool(9 * MIB, 4 * MIB);
    struct arena *a = open_arena(pool, 100 * MIB), *b = open_arena(pool, 100 * MIB);

    (void)state;
    ASSERT_OK(arena_seal(a, 5 * MIB, &err));
    ASSERT_REFUSED(ERR_DEVICE_MEM,
                   "4.2 MB more are asked for, 6.3 MB are mapped already, and the cap is 8.4 MB",
                   arena_seal(b, 4 * MIB, &err));
    err = (struct err){0};
    ASSERT_OK(arena_seal(b, 2 * MIB, &err));
    assert_true(shadow.peak_bytes <= 8 * MIB);
    arena_close(a);
    arena_close(b);
    pool_close(pool);
    shadow_is_clean();
}

static void an_idle_tail_is_shown_elsewhere(void **state)
{
    struct pool  *pool = open_pool(16 * MIB, 4 * MIB);
    struct arena *a = open_arena(pool, 16 * MIB), *b = open_arena(pool, 16 * MIB);

    (void)state;
    struct arena_mark mark = arena_mark(a);
    char             *first = arena_take(a, 3 * MIB, "stays");
    memset(first, 7, 3 * MIB);
    mark = arena_mark(a);
    (void)arena_take(a, 12 * MIB, "goes");
    arena_rewind(a, mark);
    assert_int_equal(arena_bytes_mapped(a), 16 * MIB);
    uint64_t created = counts_of(pool).created;
    memset(arena_take(b, 12 * MIB, "wants"), 8, 12 * MIB);
    assert_int_equal(counts_of(pool).created, created);
    assert_int_equal(counts_of(pool).robbed, 12 * MIB);
    assert_int_equal(arena_bytes_mapped(a), 4 * MIB);
    for (uint64_t i = 0; i < 3 * MIB; i++)
        if (first[i] != 7) fail_msg("byte %zu of what was taken is gone", (size_t)i);
    assert_true(touching_traps(first + 4 * MIB));
    assert_false(touching_traps(first + 4 * MIB - 1));
    arena_close(a);
    arena_close(b);
    pool_close(pool);
    shadow_is_clean();
}

/* With room under the cap: what nobody used lately is shown elsewhere when it is more than the
 * share that may lie idle, and else the driver is asked. */
static void what_lies_idle_comes_before_new_memory(void **state)
{
    (void)state;
    for (int strict = 0; strict < 2; strict++) {
        struct err          err = {0};
        struct pool        *pool = NULL;
        struct pool_options options = {.ops = &shadow_ops,
                                       .cap_bytes = 64 * MIB,
                                       .segment_bytes = 4 * MIB,
                                       .idle_share_max = strict ? 0.15 : 0.8,
                                       .expandable = true};
        shadow_begin(NULL);
        ASSERT_OK(pool_open(&pool, &options, &err));
        struct arena *a = open_arena(pool, 64 * MIB), *b = open_arena(pool, 64 * MIB);
        ASSERT_OK(arena_seal(a, 16 * MIB, &err)); /* mapped, and then not used */
        char *kept = arena_take(a, 4 * MIB, "stays");
        memset(kept, 7, 4 * MIB);
        arena_trim(a, 16 * MIB);
        uint64_t created = counts_of(pool).created;
        memset(arena_take(b, 12 * MIB, "wants"), 8, 12 * MIB);
        assert_int_equal(counts_of(pool).created == created, strict);
        assert_int_equal(counts_of(pool).robbed, strict ? 12 * MIB : 0);
        assert_int_equal(arena_bytes_mapped(a), strict ? 4 * MIB : 16 * MIB);
        for (uint64_t at = 0; at < 4 * MIB; at += STRIDE)
            assert_int_equal(kept[at], 7);
        arena_close(a);
        arena_close(b);
        pool_close(pool);
        shadow_is_clean();
    }
}

/* Another program took what the cap would still allow. */
static void what_lies_idle_stands_in_for_a_driver_that_is_short(void **state)
{
    struct err    err = {0};
    struct pool  *pool = open_pool(64 * MIB, 4 * MIB); /* any share may lie idle */
    struct arena *a = open_arena(pool, 64 * MIB), *b = open_arena(pool, 64 * MIB);

    (void)state;
    ASSERT_OK(arena_seal(a, 16 * MIB, &err));
    arena_trim(a, 16 * MIB);
    shadow.most_bytes = 16 * MIB;
    ASSERT_REFUSED(ERR_DEVICE_MEM, "short of", arena_seal(b, 18 * MIB, &err));
    assert_int_equal(arena_bytes_mapped(a), 16 * MIB); /* in vain nobody loses anything */
    err = (struct err){0};
    ASSERT_OK(arena_seal(b, 14 * MIB, &err));
    assert_int_equal(arena_bytes_mapped(a), 0); /* whole pieces of 4 MiB */
    assert_int_equal(counts_of(pool).robbed, 16 * MIB);
    arena_close(a);
    arena_close(b);
    pool_close(pool);
    shadow_is_clean();
}

static void a_sealed_arena_is_never_robbed(void **state)
{
    struct err    err = {0};
    struct pool  *pool = open_pool(16 * MIB, 4 * MIB);
    struct arena *a = open_arena(pool, 16 * MIB), *b = open_arena(pool, 16 * MIB);

    (void)state;
    ASSERT_OK(arena_seal(a, 12 * MIB, &err));
    ASSERT_REFUSED(ERR_DEVICE_MEM, "the cap is", arena_seal(b, 6 * MIB, &err));
    assert_int_equal(arena_bytes_mapped(a), 12 * MIB);
    arena_trim(a, 8 * MIB); /* the owner may */
    err = (struct err){0};
    ASSERT_OK(arena_seal(b, 6 * MIB, &err));
    arena_close(a);
    arena_close(b);
    pool_close(pool);
    shadow_is_clean();
}

static void not_expandable_is_one_piece(void **state)
{
    struct err          err = {0};
    struct pool        *pool = NULL;
    struct arena       *a = NULL, *b = NULL;
    struct pool_options options = {.ops = &shadow_ops, .cap_bytes = 60 * MIB};

    (void)state;
    ASSERT_OK(pool_open(&pool, &options, &err));
    ASSERT_OK(arena_open_in(&a, pool, 39 * MIB, &err));
    assert_int_equal(counts_of(pool).created, 1);
    assert_int_equal(counts_of(pool).mapped, 40 * MIB);
    ASSERT_REFUSED(ERR_DEVICE_MEM, "the cap is", arena_open_in(&b, pool, 39 * MIB, &err));
    arena_trim(a, 0);
    memset(arena_take(a, 39 * MIB, "all"), 1, 39 * MIB);
    assert_int_equal(counts_of(pool).mapped, 40 * MIB);
    arena_close(a);
    err = (struct err){0};
    ASSERT_OK(arena_open_in(&b, pool, 59 * MIB, &err));
    arena_close(b);
    pool_close(pool);
    shadow_is_clean();
}

/* After some tiles of one size the tail that only an earlier, larger one used goes to the pool; a
 * steady cycle asks the driver for nothing. */
static void what_recent_cycles_left_unused_is_given_back(void **state)
{
    struct err          err = {0};
    struct pool        *pool = NULL;
    struct pool_options options = {.ops = &shadow_ops,
                                   .cap_bytes = 64 * MIB,
                                   .segment_bytes = 2 * MIB,
                                   .idle_share_max = 0.15,
                                   .expandable = true};

    (void)state;
    ASSERT_OK(pool_open(&pool, &options, &err));
    struct arena     *arena = open_arena(pool, 64 * MIB);
    struct arena_mark start = arena_mark(arena);
    (void)arena_take(arena, 40 * MIB, "large");
    arena_rewind(arena, start);
    for (int i = 0; i < 6; i++) {
        (void)arena_take(arena, 20 * MIB, "tile");
        arena_rewind(arena, start);
        assert_true(arena_bytes_mapped(arena) >= 20 * MIB);
    }
    assert_int_equal(arena_bytes_mapped(arena), 20 * MIB);
    uint64_t calls = shadow.driver_calls;
    for (int i = 0; i < 20; i++) {
        (void)arena_take(arena, (19 + (uint64_t)i % 2) * MIB, "tile");
        arena_rewind(arena, start);
    }
    assert_int_equal(shadow.driver_calls, calls);
    arena_close(arena);
    pool_close(pool);
    shadow_is_clean();
}

static void contents_go_with_their_handle(void **state)
{
    struct err  err = {0};
    struct vmem vmem = {.ops = &vmem_host};
    char       *a = NULL, *b = NULL;
    uint64_t    handle = 0;

    (void)state;
    ASSERT_OK(vmem_host.open(&vmem, &err));
    uint64_t bytes = 2 * vmem.granularity;
    ASSERT_OK(vmem_host.reserve(&vmem, &a, bytes, &err));
    ASSERT_OK(vmem_host.reserve(&vmem, &b, bytes, &err));
    assert_true(touching_traps(a));
    ASSERT_OK(vmem_host.create(&vmem, &handle, bytes, &err));
    ASSERT_OK(vmem_host.map(&vmem, a, handle, bytes, &err));
    assert_true(touching_traps(a));
    ASSERT_OK(vmem_host.access(&vmem, a, bytes, &err));
    for (uint64_t i = 0; i < bytes; i++)
        a[i] = (char)(i * 7 + (i >> 12));
    ASSERT_OK(vmem_host.unmap(&vmem, a, bytes, &err));
    assert_true(touching_traps(a));
    ASSERT_OK(vmem_host.map(&vmem, b, handle, bytes, &err));
    ASSERT_OK(vmem_host.access(&vmem, b, bytes, &err));
    for (uint64_t i = 0; i < bytes; i++)
        if (b[i] != (char)(i * 7 + (i >> 12))) fail_msg("byte %zu differs", (size_t)i);
    vmem_host.release(&vmem, handle, bytes);
    vmem_host.close_range(&vmem, a, bytes);
    vmem_host.close_range(&vmem, b, bytes);
    vmem_host.close(&vmem);
}

/* Peaks outlive any number of samples; time goes forward, from the first to the last. */
static void history_keeps_peaks_in_fixed_room(void **state)
{
    static struct history history;
    const uint32_t        notes = 300000, peak_at = 1234;
    const double          step = 0.0004; /* shorter than a lap, and then many in one */

    (void)state;
    history_restart(&history);
    for (uint32_t i = 0; i < notes; i++) {
        struct pool_counts now = {.live = i == peak_at ? 900 : 100, .placed = 1000, .mapped = i};
        history_note(&history, step * i, &now);
        assert_in_range(history.count, 1, POOL_SAMPLES_MAX);
    }
    assert_in_range(history.count, POOL_SAMPLES_MAX / 2, POOL_SAMPLES_MAX);
    assert_true(history.samples[0].seconds == 0);
    assert_int_equal(history.samples[history.count - 1].mapped, notes - 1);
    for (uint32_t i = 0; i < history.count; i++) {
        const struct pool_sample *sample = &history.samples[i];
        double                    next = i + 1 < history.count ? sample[1].seconds : step * notes;
        bool                      here = sample->seconds <= step * peak_at && step * peak_at < next;
        assert_true(next > sample->seconds);
        assert_int_equal(sample->live, here ? 900 : 100);
    }
}

static void a_pool_tells_its_history(void **state)
{
    static struct pool_sample samples[POOL_SAMPLES_MAX];
    struct pool              *pool = open_pool(64 * MIB, 2 * MIB);
    struct arena             *arena = open_arena(pool, 64 * MIB);
    struct arena_mark         start = arena_mark(arena);
    uint64_t                  live = 0, mapped = 0;

    (void)state;
    pool_history_restart(pool);
    (void)arena_take(arena, 30 * MIB, "something");
    arena_rewind(arena, start);
    for (uint32_t i = pool_history(pool, samples); i-- > 0;) {
        live = max_u64(live, samples[i].live);
        mapped = max_u64(mapped, samples[i].mapped);
    }
    assert_int_equal(live, 30 * MIB);
    assert_int_equal(mapped, 30 * MIB);
    arena_close(arena);
    pool_close(pool);
}

/* What came before the restart counts for its calls only. */
static void a_pool_gives_account_of_its_use(void **state)
{
    struct pool       *pool = open_pool(64 * MIB, 2 * MIB);
    struct arena      *arena = open_arena(pool, 64 * MIB);
    struct arena_mark  start = arena_mark(arena);
    struct pool_counts counts;
    struct memory_use  use;

    (void)state;
    pool_use(pool, &use);
    assert_true(memory_utilisation(&use) == 0 && memory_internal_fragmentation(&use) == 0);
    (void)arena_take(arena, 40 * MIB, "before");
    arena_rewind(arena, start);
    pool_history_restart(pool);
    (void)arena_take(arena, 4 * MIB - 63, "63 bytes of alignment");
    pool_use(pool, &use);
    pool_counts(pool, &counts);
    assert_int_equal(use.peak_live, 4 * MIB - 63);
    assert_int_equal(use.peak_placed, 4 * MIB);
    assert_int_equal(use.peak_mapped, counts.mapped);
    assert_int_equal(use.peak_device, 40 * MIB);
    assert_true(memory_utilisation(&use) == (double)(4 * MIB - 63) / (double)counts.mapped);
    assert_true(memory_internal_fragmentation(&use) > 0);
    assert_true(memory_internal_fragmentation(&use) < 1e-4);
    assert_true(use.idle_share == counts.idle_share);
    assert_int_equal(use.calls[MEMORY_CREATE], counts.created);
    assert_int_equal(use.calls[MEMORY_MAP], counts.mapped_calls);
    assert_int_equal(use.calls[MEMORY_ACCESS], counts.access);
    assert_int_equal(use.calls[MEMORY_UNMAP], counts.unmapped);
    assert_int_equal(use.calls[MEMORY_RELEASE], counts.released);
    assert_int_equal(use.calls[MEMORY_SETTLE], counts.settled);
    assert_true(counts.created > 0 && counts.mapped_calls > 0 && counts.access > 0);
    arena_close(arena);
    pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(pieces_are_kept_and_used_again),
        FRESH(what_was_taken_at_the_start_stays),
        FRESH(the_cap_is_one_sentence_with_numbers),
        FRESH(an_idle_tail_is_shown_elsewhere),
        FRESH(what_lies_idle_comes_before_new_memory),
        FRESH(what_lies_idle_stands_in_for_a_driver_that_is_short),
        FRESH(a_sealed_arena_is_never_robbed),
        FRESH(not_expandable_is_one_piece),
        FRESH(what_recent_cycles_left_unused_is_given_back),
        FRESH(contents_go_with_their_handle),
        FRESH(history_keeps_peaks_in_fixed_room),
        FRESH(a_pool_tells_its_history),
        FRESH(a_pool_gives_account_of_its_use),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
