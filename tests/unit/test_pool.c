/*
 * test_pool.c - physical memory under arenas: a cap that holds, mappings that are all or nothing,
 * and neighbours who lose only what they do not use.
 *
 * Everything runs on the host's stand-in for a GPU, in steps of 2 MiB, under a driver that checks
 * each call (shadow_vmem.h).
 */
#include "shadow_vmem.h"

#include "memory/memory_int.h"

#define MIB ((uint64_t)1 << 20)

/* Every so many bytes one is written and looked at, and the last. */
enum { STRIDE = 65536 };
static uint64_t next(uint64_t at, uint64_t bytes)
{
    return at + STRIDE < bytes || at + 1 == bytes ? at + STRIDE : bytes - 1;
}

static struct pool *open_pool(uint64_t cap, uint64_t segment)
{
    struct err          err = {0};
    struct pool        *pool = NULL;
    struct pool_options options = {.ops = &shadow_ops,
                                   .cap_bytes = cap,
                                   .segment_bytes = segment,
                                   .idle_share_max = 1,
                                   .expandable = true};

    ASSERT_OK(pool_open(&pool, &options, &err));
    return pool;
}

static struct arena *open_arena(struct pool *pool, uint64_t limit)
{
    struct err    err = {0};
    struct arena *arena = NULL;

    ASSERT_OK(arena_open_in(&arena, pool, limit, &err));
    return arena;
}

static struct pool_counts counts_of(const struct pool *pool)
{
    struct pool_counts counts;

    pool_counts(pool, &counts);
    return counts;
}

/* ------------------------------------------------------------------------------------ examples */

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

/* ---------------------------------------------------------------------------------- properties */

enum { ARENAS = 4, DEPTH = 16 };
static const uint64_t UNIT = 2 << 20, CAP = 40 << 20, LIMIT = 30 << 20, SEGMENT_MAX = 10 << 20;

struct model {
    struct arena     *arena;
    struct arena_mark marks[DEPTH];
    char             *data[DEPTH];
    uint64_t          bytes[DEPTH], mapped, taken, live;
    uint32_t          depth;
    bool              sealed;
};

static uint64_t in_units(uint64_t bytes)
{
    return (bytes + UNIT - 1) / UNIT * UNIT;
}

/* Least and most that nobody may take away from an arena: the piece at its stack's end is whole. */
struct firm {
    uint64_t least, most;
};

static struct firm firm_of_others(const struct model *models, const struct model *me)
{
    struct firm firm = {0, 0};

    for (size_t i = 0; i < ARENAS; i++) {
        const struct model *m = &models[i];
        if (m == me || m->arena == NULL) continue;
        uint64_t mapped = arena_bytes_mapped(m->arena), most = in_units(m->taken) + SEGMENT_MAX;
        firm.least += m->sealed ? mapped : in_units(m->taken);
        firm.most += m->sealed || most > mapped ? mapped : most;
    }
    return firm;
}

static char mark_of(const struct model *m, uint32_t k)
{
    return (char)(m->bytes[k] % 113 + k);
}

static void check(const struct pool *pool, const struct model *models)
{
    static struct pool_sample samples[POOL_SAMPLES_MAX];
    struct pool_counts        counts = counts_of(pool);
    struct memory_use         use;
    uint64_t                  live = 0, placed = 0, mapped = 0;

    for (size_t i = 0; i < ARENAS; i++) {
        const struct model *m = &models[i];
        if (m->arena == NULL) continue;
        live += m->live;
        placed += m->taken;
        mapped += arena_bytes_mapped(m->arena);
        assert_true(arena_bytes_mapped(m->arena) >= m->taken);
        if (m->sealed) assert_int_equal(arena_bytes_mapped(m->arena), m->mapped);
        for (uint32_t k = 0; k < m->depth; k++)
            for (uint64_t at = 0; at < m->bytes[k]; at = next(at, m->bytes[k]))
                if (m->data[k][at] != mark_of(m, k)) fail_msg("contents changed");
    }
    assert_int_equal(counts.live, live);
    assert_int_equal(counts.placed, placed);
    assert_int_equal(counts.mapped, mapped);
    assert_int_equal(shadow_seen(), mapped);
    assert_int_equal(counts.device, shadow.bytes);
    assert_true(shadow.peak_bytes <= CAP);
    /* At no moment since the start was one kind above the next. */
    pool_use(pool, &use);
    assert_true(use.peak_live <= use.peak_placed && use.peak_placed <= use.peak_mapped);
    assert_true(use.peak_mapped <= use.peak_device && use.peak_device == counts.peak_device);
    for (uint32_t i = pool_history(pool, samples); i-- > 0;)
        if (samples[i].live > samples[i].placed || samples[i].placed > samples[i].mapped ||
            samples[i].mapped > samples[i].device)
            fail_msg("sample %u: a kind of bytes is above the next", i);
}

static void take_some(struct model *models, struct model *m, uint64_t *seed)
{
    uint64_t bytes = 1 + random_u64(seed) % (random_u64(seed) % 4 == 0 ? 12 * MIB : 60000);
    uint64_t end = m->taken + (bytes + 63) / 64 * 64;

    if (m->depth == DEPTH || end > LIMIT || (m->sealed && end > m->mapped)) return;
    if (in_units(end) + firm_of_others(models, m).most > CAP) return;
    m->marks[m->depth] = arena_mark(m->arena);
    m->data[m->depth] = arena_take(m->arena, bytes, "some");
    m->bytes[m->depth] = bytes;
    for (uint64_t at = 0; at < bytes; at = next(at, bytes))
        m->data[m->depth][at] = mark_of(m, m->depth);
    m->depth++;
    m->taken = end;
    m->live += bytes;
}

static void rewind_some(struct model *m, uint64_t *seed)
{
    if (m->depth == 0) return;
    m->depth = (uint32_t)(random_u64(seed) % m->depth);
    arena_rewind(m->arena, m->marks[m->depth]);
    m->taken = m->marks[m->depth].offset;
    m->live = m->marks[m->depth].live;
}

static void seal_some(struct model *models, struct model *m, uint64_t *seed)
{
    struct err  err = {0};
    uint64_t    bytes = random_u64(seed) % LIMIT, before = arena_bytes_mapped(m->arena);
    struct firm others = firm_of_others(models, m);
    int         rc = arena_seal(m->arena, bytes, &err);

    if (bytes <= before || in_units(bytes) + others.most <= CAP) assert_int_equal(rc, ERR_OK);
    if (bytes > before && in_units(bytes) + others.least > CAP)
        assert_int_equal(rc, ERR_DEVICE_MEM);
    if (rc != ERR_OK) assert_int_equal(arena_bytes_mapped(m->arena), before);
    if (rc == ERR_OK) m->sealed = true;
    m->mapped = arena_bytes_mapped(m->arena);
}

static void step(struct pool *pool, struct model *models, uint64_t *seed)
{
    struct model *m = &models[random_u64(seed) % ARENAS];
    uint64_t      choice = random_u64(seed) % 100;

    if (m->arena == NULL) {
        *m = (struct model){.arena = open_arena(pool, LIMIT)};
    } else if (choice < 50) {
        take_some(models, m, seed);
    } else if (choice < 75) {
        rewind_some(m, seed);
    } else if (choice < 80) {
        seal_some(models, m, seed);
    } else if (choice < 88) {
        arena_trim(m->arena, random_u64(seed) % LIMIT);
        m->sealed = false;
    } else if (choice < 92) {
        arena_close(m->arena);
        *m = (struct model){.arena = NULL};
    } else {
        (void)pool_trim(pool, random_u64(seed) % CAP);
    }
}

static void random_lives_agree_with_a_model(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (MURAL_SANITIZED ? 5 : 12); seed++) {
        struct err          err = {0};
        uint64_t            random = seed;
        struct model        models[ARENAS] = {{.arena = NULL}};
        struct pool        *pool = NULL;
        struct pool_options options = {.ops = &shadow_ops,
                                       .cap_bytes = CAP,
                                       .segment_bytes = (1 + seed % 5) * UNIT,
                                       .start_bytes = seed % 3 * UNIT,
                                       .idle_share_max = (double)(seed % 4) / 4,
                                       .expandable = true};
        shadow_begin(NULL);
        ASSERT_OK(pool_open(&pool, &options, &err));
        for (int i = 0; i < 600; i++) {
            step(pool, models, &random);
            check(pool, models);
        }
        for (size_t i = 0; i < ARENAS; i++)
            arena_close(models[i].arena);
        pool_close(pool);
        shadow_is_clean();
    }
}

/* ------------------------------------------------------------------------------------- failures */

/* Two arenas that grow, rob, shrink and close; whatever fails leaves mapped and contents alone. */
static bool a_life_with_failures(bool expandable)
{
    struct err          err = {0};
    struct pool        *pool = NULL;
    struct arena       *arenas[2] = {NULL, NULL};
    uint64_t            sizes[] = {7 * MIB, 3 * MIB, 15 * MIB, 11 * MIB, 19 * MIB};
    struct pool_options options = {.ops = &shadow_ops,
                                   .cap_bytes = 40 * MIB,
                                   .segment_bytes = 4 * MIB,
                                   .start_bytes = 4 * MIB,
                                   .expandable = expandable};

    if (pool_open(&pool, &options, &err) != ERR_OK) return false;
    for (int i = 0; i < 2; i++)
        (void)arena_open_in(&arenas[i], pool, 20 * MIB, &err);
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        struct arena *arena = arenas[i % 2], *other = arenas[1 - i % 2];
        if (arena == NULL || other == NULL) break;
        struct pool_counts before = counts_of(pool);
        uint64_t           mine = arena_bytes_mapped(arena);
        err = (struct err){0};
        if (arena_seal(arena, sizes[i], &err) != ERR_OK) {
            assert_true(shadow.failed || err.code == ERR_DEVICE_MEM);
            assert_int_equal(arena_bytes_mapped(arena), mine);
            assert_true(counts_of(pool).mapped <= before.mapped);
        } else {
            memset(arena_take(arena, 1, "one"), 5, 1);
        }
        assert_int_equal(counts_of(pool).mapped,
                         arena_bytes_mapped(arena) + arena_bytes_mapped(other));
        assert_int_equal(shadow.bytes, counts_of(pool).device);
        arena_trim(arena, sizes[i] - 2 * MIB); /* now the other may rob it */
        assert_true(counts_of(pool).device <= options.cap_bytes);
    }
    arena_close(arenas[0]);
    arena_close(arenas[1]);
    struct pool_counts end = counts_of(pool);
    assert_int_equal(end.mapped, 0);
    assert_int_equal(end.live, 0);
    pool_close(pool);
    return !shadow.failed;
}

static void every_call_may_fail(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        int64_t n = 0;
        bool    undisturbed = false;
        while (!undisturbed) {
            shadow_begin(NULL);
            shadow.fail_at = ++n;
            shadow.fail_more = i / 2; /* then also what should have set it right */
            undisturbed = a_life_with_failures(i % 2 == 0);
            shadow_is_clean();
        }
        print_message("# %d calls failed in turn\n", (int)n - 1);
        assert_in_range(n, 8, 1000);
    }
}

/* A seal that fails leaves everything to the byte, and then succeeds. */
static void a_failed_mapping_restores_the_state(void **state)
{
    (void)state;
    for (int64_t n = 1; n < 40; n++) {
        struct err    err = {0};
        struct pool  *pool;
        struct arena *arena;
        shadow_begin(NULL);
        pool = open_pool(64 * MIB, 8 * MIB);
        arena = open_arena(pool, 64 * MIB);
        char *data = arena_take(arena, 100, "first");
        memset(data, 3, 100);
        uint64_t maps = shadow.map_count, mapped = arena_bytes_mapped(arena);
        shadow.fail_at = shadow.calls + n;
        int rc = arena_seal(arena, 46 * MIB, &err);
        if (rc == ERR_OK && !shadow.failed) n = 40;
        if (rc != ERR_OK) {
            assert_int_equal(shadow.map_count, maps);
            assert_int_equal(arena_bytes_mapped(arena), mapped);
            assert_true(touching_traps(data + mapped));
            err = (struct err){0};
            ASSERT_OK(arena_seal(arena, 46 * MIB, &err));
        }
        assert_int_equal(data[99], 3);
        for (uint64_t at = 0; at < 46 * MIB; at += MIB)
            data[at] = 4;
        arena_close(arena);
        pool_close(pool);
        shadow_is_clean();
    }
}

int main(void)
{
#define FRESH(test) cmocka_unit_test_setup(test, shadow_begin)
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
        FRESH(random_lives_agree_with_a_model),
        FRESH(every_call_may_fail),
        FRESH(a_failed_mapping_restores_the_state),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
