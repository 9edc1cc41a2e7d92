/*
 * test_pool_lives.c - random lives of arenas over a pool agree with a model of them, and every call
 * of the driver may fail: mappings are all or nothing.
 */
#include "made_pool.h"

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
    const struct CMUnitTest tests[] = {
        FRESH(random_lives_agree_with_a_model),
        FRESH(every_call_may_fail),
        FRESH(a_failed_mapping_restores_the_state),
    };
    return cmocka_run_group_tests_name("lives over a pool", tests, NULL, NULL);
}
