/*
 * test_prompt_pins.c - whose backend pins a prompt's tables, and until when.
 *
 * The engine's own sources against a ledger of what is pinned: no GPU is needed.  A range is pinned
 * once at a time, on an open backend, and whole pages of it; it is freed when nobody pins it.
 */
#include "../test.h"

#include "engine/compute_int.h"

#include <errno.h>
#include <limits.h>
#include <sys/mman.h>

enum { ENGINES = 2, PROMPTS = 4, LEDGER_MAX = 64, TURNS = 100, STORIES = 6, PAGE = 4096 };

static struct pinned {
    const struct backend *backend;
    const char           *data;
    uint64_t              bytes;
} ledger[LEDGER_MAX];
static int pinned_count, closed_count;

static void made_pin(struct backend *backend, const void *data, uint64_t bytes)
{
    const char *begin = data;

    assert_non_null(backend);
    assert_true(bytes > 0 && bytes % PAGE == 0 && (uintptr_t)data % PAGE == 0);
    for (int i = 0; i < pinned_count; i++)
        assert_true(begin + bytes <= ledger[i].data || ledger[i].data + ledger[i].bytes <= begin);
    assert_true(pinned_count < LEDGER_MAX);
    ledger[pinned_count++] = (struct pinned){backend, data, bytes};
    backend_pin(backend, data, bytes);
}

static void made_unpin(struct backend *backend, const void *data)
{
    assert_non_null(backend);
    for (int i = 0; i < pinned_count; i++)
        if (ledger[i].backend == backend && ledger[i].data == data) {
            ledger[i] = ledger[--pinned_count];
            break;
        }
    backend_unpin(backend, data);
}

static void made_close(struct backend *backend)
{
    for (int i = pinned_count; i-- > 0;)
        if (ledger[i].backend == backend) ledger[i] = ledger[--pinned_count];
    closed_count += backend != NULL;
    backend_close(backend);
}

static void made_free(void *pointer)
{
    for (int i = 0; i < pinned_count; i++)
        assert_ptr_not_equal(ledger[i].data, pointer);
    os_free(pointer);
}

#define backend_pin   made_pin
#define backend_unpin made_unpin
#define backend_close made_close
#define os_free       made_free
#include "../../src/engine/engine.c"
#include "../../src/engine/prompt.c"
#include "../../src/engine/reserve.c"
#undef backend_pin
#undef backend_unpin
#undef backend_close
#undef os_free

/* After those sources, whose own names they share. */
#include "../scratch_model.h"
#include "../wide_model.h"

static int make_model(void **state)
{
    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(model, sizeof model, "%s/model", folder);
    wide_model_make(&(struct wide_model){model, 1, 6, .dtype = DTYPE_BF16});
    return 0;
}

/* Engines and prompts as they come and go; of a prompt also whose it is. */
struct story {
    struct engine *engines[ENGINES];
    struct prompt *prompts[PROMPTS];
    int            owner[PROMPTS]; /* -1: its engine is closed */
    uint64_t       random;
    int lost, left, regained, reopened, orphans, foreseen; /* how often it came to that */
};

static int any(struct story *story, int count)
{
    return (int)random_between(&story->random, 0, count - 1);
}

static bool is_pinned(const struct backend *backend, const float *data, uint64_t values)
{
    for (int i = 0; i < pinned_count; i++)
        if (ledger[i].backend == backend && ledger[i].data == (const char *)data)
            return ledger[i].bytes >= values * sizeof *data;
    return false;
}

/* Both tables of every prompt of an engine that has a backend, and nothing else. */
static void check_ledger(const struct story *story)
{
    int wanted = 0;

    for (int p = 0; p < PROMPTS; p++) {
        const struct prompt *prompt = story->prompts[p];
        const struct engine *engine;

        if (prompt == NULL || story->owner[p] < 0) continue;
        engine = story->engines[story->owner[p]];
        if (engine->backend == NULL) continue;
        wanted += 2;
        assert_true(is_pinned(engine->backend, prompt->text, text_values(engine)));
        assert_true(is_pinned(engine->backend, prompt->modulation,
                              modulation_values(engine, prompt->conditioning.steps)));
    }
    assert_int_equal(pinned_count, wanted);
}

/* ------------------------------------------------------------------------------ what happens */

static void toggle_engine(struct story *story, int e)
{
    const struct engine_memory memory = {.vram_bytes = 1 << 30,
                                         .offload = true,
                                         .expandable = true,
                                         .segment_bytes = 2 << 20,
                                         .fragmentation_max = 0.15};
    struct engine_options      options = {
             .model_folder = model, .precision = PRECISION_F32, .threads = 1, .memory = memory};
    struct engine_size size = {.w_px = 64, .h_px = 64, .tiles = 2, .steps = 3, .steps_next = 3};
    struct err         err = {0};

    if (story->engines[e] != NULL) {
        engine_close(story->engines[e]);
        story->engines[e] = NULL;
        for (int p = 0; p < PROMPTS; p++)
            if (story->prompts[p] != NULL && story->owner[p] == e) {
                story->owner[p] = -1;
                story->orphans++;
            }
        return;
    }
    options.machine = any(story, 4) == 0 ? ENGINE_CPU : ENGINE_WALLED;
    ASSERT_OK(engine_open(&story->engines[e], &options, &err));
    size.h_px = 100; /* refused, and tried again */
    assert_int_equal(engine_reserve(story->engines[e], &size, 1, &err), ERR_USAGE);
    size.h_px = 64;
    ASSERT_OK(engine_reserve(story->engines[e], &size, 1, &err));
}

static void *(*real_mmap)(void *, size_t, int, int, int, int64_t);
static int maps_left;

static void *short_mmap(void *address, size_t bytes, int protection, int flags, int fd, int64_t at)
{
    if (--maps_left < 0) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real_mmap(address, bytes, protection, flags, fd, at);
}

/* Memory may run short on the way, even for what the tiles had. */
static void open_prompt(struct story *story, int p, int e)
{
    static const struct schedule schedules[] = {{2, {1, 0.4f, 0}}, {3, {1, 0.7f, 0.2f, 0}}};
    struct engine               *engine = story->engines[e];
    struct err                   err = {0};
    struct prompt_request        request = {.text = any(story, 3) == 0 ? "foxes" : "a fox",
                                            .guidance = 2,
                                            .schedule = &schedules[any(story, 2)],
                                            .next = any(story, 2) == 0 ? NULL : &schedules[1]};
    const float                 *ahead = engine->ahead.table;
    int                          rc;

    real_mmap = os.mmap;
    maps_left = any(story, 3) == 0 ? any(story, 12) : INT_MAX;
    os.mmap = short_mmap;
    rc = prompt_open(&story->prompts[p], engine, &request, &err);
    os.mmap = real_mmap;
    if (rc != ERR_OK) {
        assert_null(story->prompts[p]);
        story->lost += engine->backend == NULL;
        return;
    }
    story->owner[p] = e;
    story->foreseen += ahead != NULL && story->prompts[p]->modulation == ahead;
}

static void close_prompt(struct story *story, int p)
{
    if (story->prompts[p] == NULL) return;
    story->left += story->owner[p] >= 0 && story->engines[story->owner[p]]->backend == NULL;
    prompt_close(story->prompts[p]);
    story->prompts[p] = NULL;
}

static void yield(struct story *story, int e)
{
    const bool lost = story->engines[e]->backend == NULL;
    const int  closed = closed_count;
    char       words[256];

    if (!engine_yield_memory(story->engines[e], words, sizeof words)) return;
    story->reopened += closed_count > closed;
    story->regained += lost && story->engines[e]->backend != NULL;
}

static void predict(const struct story *story, int p)
{
    struct engine     *engine = story->engines[story->owner[p]];
    struct err         err = {0};
    float              latent[8 * 8 * 16] = {0}, velocity[8 * 8 * 16];
    struct engine_tile tile = {.prompt = story->prompts[p],
                               .w_px = 64,
                               .h_px = 64,
                               .latent = latent,
                               .velocity = velocity};

    assert_int_equal(latent_values(engine, 64, 64), ARRAY_COUNT(latent));
    if (engine->backend != NULL) ASSERT_OK(engine_predict(engine, &tile, 1, 1, &err));
}

static void turn(struct story *story)
{
    const int e = any(story, ENGINES), p = any(story, PROMPTS);

    switch (any(story, 12)) {
    case 0: toggle_engine(story, e); break;
    case 1:
    case 2: close_prompt(story, p); break;
    case 3:
    case 4:
        if (story->engines[e] != NULL) yield(story, e);
        break;
    case 5:
        if (story->prompts[p] != NULL && story->owner[p] >= 0) predict(story, p);
        break;
    default:
        if (story->prompts[p] == NULL && story->engines[e] != NULL &&
            story->engines[e]->backend != NULL)
            open_prompt(story, p, e);
    }
    check_ledger(story);
}

static void prompts_and_engines_end_in_any_order(void **state)
{
    struct story all = {.lost = 0};

    (void)state;
    for (uint64_t seed = 1; seed <= STORIES; seed++) {
        struct story story = {.random = seed};

        for (int i = 0; i < TURNS; i++)
            turn(&story);
        for (int e = 0; e < ENGINES; e++)
            if (any(&story, 2) == 0 && story.engines[e] != NULL) toggle_engine(&story, e);
        for (int p = 0; p < PROMPTS; p++)
            close_prompt(&story, p);
        for (int e = 0; e < ENGINES; e++)
            engine_close(story.engines[e]);
        assert_int_equal(pinned_count, 0);
        all.lost += story.lost;
        all.left += story.left;
        all.regained += story.regained;
        all.reopened += story.reopened;
        all.orphans += story.orphans;
        all.foreseen += story.foreseen;
    }
    print_message("# %d backends lost, %d of them regained, %d prompts left without, %d opened "
                  "again, %d orphans, %d tables "
                  "that were ahead\n",
                  all.lost, all.regained, all.left, all.reopened, all.orphans, all.foreseen);
    assert_true(all.lost > 0 && all.left > 0 && all.regained > 0 && all.reopened > 0);
    assert_true(all.orphans > 0 && all.foreseen > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(prompts_and_engines_end_in_any_order)};

    return cmocka_run_group_tests_name("prompt_pins", tests, make_model, scratch_model_remove);
}
