/*
 * parity_memory.c - less memory, the same bits: an engine under caps, in one piece, and on its way
 * down the ladder.
 *
 * The machine has memory of its own: the walled one, or the GPU under test.  The model is larger
 * than those of the goldens, so that its blocks are worth more than what their slots are rounded up
 * to; there are no golden values: an engine without a cap is the reference.
 */
#include "parity.h"

#include "../scratch_model.h"
#include "../wide_model.h"

#include <errno.h>

enum { TILES = 3, STEPS = 2, SIDE_TOKENS = 8 };

static const uint64_t GRANULE = (uint64_t)2 << 20, PLENTY = (uint64_t)1 << 30;

/* With a T5 whose MLP is `text_mlp` wide, in `target`. */
static void make_wide(const char *target, int text_mlp)
{
    wide_model_make(&(struct wide_model){target, 2, 8, text_mlp, DTYPE_F32});
}

static int make_model(void **state)
{
    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(model, sizeof model, "%s/model", folder);
    make_wide(model, 96);
    return 0;
}

static enum engine_machine machine(void)
{
    return machine_under_test() == ENGINE_CUDA ? ENGINE_CUDA : ENGINE_WALLED;
}

/* NULL: refused, for there is too little memory. */
static struct engine *engine_of(const char *model_folder, int32_t side_tokens,
                                struct engine_memory memory)
{
    struct err            err = {0};
    struct engine        *engine = NULL;
    struct engine_options options = {.model_folder = model_folder,
                                     .precision = PRECISION_F32,
                                     .machine = machine(),
                                     .threads = 2,
                                     .text_tokens = 16,
                                     .memory = memory};

    ASSERT_OK(engine_open(&engine, &options, &err));
    int32_t            px = side_tokens * engine->facts.px_per_token;
    struct engine_size size = {.w_px = px, .h_px = px, .tiles = TILES, .steps = STEPS};
    if (engine_reserve(engine, &size, 1, &err) == ERR_OK) return engine;
    if (err.code != ERR_DEVICE_MEM) fail_msg("%s", err.text);
    engine_close(engine);
    return NULL;
}

static struct engine *engine_within(struct engine_memory memory)
{
    return engine_of(model, SIDE_TOKENS, memory);
}

static const struct schedule schedule = {.steps = STEPS, .sigma = {1, 0.4f, 0}};

static struct prompt *open_prompt(struct engine *engine)
{
    struct err            err = {0};
    struct prompt        *prompt = NULL;
    struct prompt_request request = {.text = "north", .guidance = 2, .schedule = &schedule};

    ASSERT_OK(prompt_open(&prompt, engine, &request, &err));
    return prompt;
}

/* velocities_out [count tiles of the engine's size] of one step. */
static void predict(struct engine *engine, const struct prompt *prompt, const float *latents,
                    uint32_t count, uint32_t step, float *velocities_out)
{
    struct err         err = {0};
    struct engine_tile tiles[TILES];
    int32_t            px = engine->sizes[0].w_px;
    size_t             values = (size_t)(px / 8) * (size_t)(px / 8) * 16;

    for (size_t t = 0; t < count; t++)
        tiles[t] = (struct engine_tile){.prompt = prompt,
                                        .w_px = px,
                                        .h_px = px,
                                        .latent = latents + t * values,
                                        .velocity = velocities_out + t * values};
    ASSERT_OK(engine_predict(engine, tiles, count, step, &err));
}

/* A hash of velocities of TILES tiles in every step, of a decoded and of an encoded picture. */
static uint64_t story(struct engine *engine)
{
    struct err     err = {0};
    struct prompt *prompt = open_prompt(engine);
    int32_t        px = engine->sizes[0].w_px;
    size_t         count = (size_t)(px / 8) * (size_t)(px / 8) * 16;
    size_t         pixels = (size_t)px * (size_t)px * 3;
    float         *latents = calloc(TILES * count, sizeof(float));
    float         *velocities = calloc(STEPS * TILES * count, sizeof(float));
    float         *rgb = calloc(pixels, sizeof(float));
    uint64_t       hash;

    for (size_t i = 0; i < TILES * count; i++)
        latents[i] = (float)((i * 2654435761u >> 8) % 2001) / 1000.0f - 1.0f;
    for (uint32_t step = 0; step < STEPS; step++)
        predict(engine, prompt, latents, TILES, step, velocities + step * TILES * count);
    ASSERT_OK(engine_decode(engine, latents, px, px, rgb, &err));
    ASSERT_OK(engine_encode(engine, rgb, px, px, latents, &err));
    hash = hash64(velocities, STEPS * TILES * count * sizeof(float), 0);
    hash = hash64(rgb, pixels * sizeof(float), hash);
    hash = hash64(latents, count * sizeof(float), hash);
    prompt_close(prompt);
    free(latents);
    free(velocities);
    free(rgb);
    return hash;
}

/* A hash of one tile's velocity in the first step: of a prompt, above all. */
static uint64_t glimpse(struct engine *engine)
{
    struct prompt *prompt = open_prompt(engine);
    int32_t        px = engine->sizes[0].w_px;
    size_t         count = (size_t)(px / 8) * (size_t)(px / 8) * 16;
    float         *latent = calloc(count, sizeof(float));
    float         *velocity = calloc(count, sizeof(float));
    uint64_t       hash;

    predict(engine, prompt, latent, 1, 0, velocity);
    hash = hash64(velocity, count * sizeof(float), 0);
    prompt_close(prompt);
    free(latent);
    free(velocity);
    return hash;
}

static uint64_t reference(void)
{
    struct engine *engine = engine_within((struct engine_memory){.vram_bytes = 0});
    uint64_t       hash;

    assert_non_null(engine);
    hash = story(engine);
    engine_close(engine);
    return hash;
}

static void assert_within(const struct engine *engine)
{
    struct pool_counts counts;

    pool_counts(engine->pool, &counts);
    assert_true(counts.peak_device + engine->budget.fixed_bytes <=
                engine->needs.allowed.vram_bytes);
    assert_true(counts.peak_mapped <= counts.peak_device);
}

static struct engine_memory capped(uint64_t bytes)
{
    return (struct engine_memory){.vram_bytes = bytes,
                                  .offload = true,
                                  .expandable = true,
                                  .segment_bytes = 4 * GRANULE,
                                  .fragmentation_max = 0.15};
}

/* ---------------------------------------------------------------------------------------- tests */

/* From a cap where all blocks stay down to the first that is refused, in about eight steps. */
static void a_smaller_cap_paints_the_same(void **state)
{
    uint64_t       wanted = reference(), cap = PLENTY, step = 0;
    struct engine *engine = engine_within(capped(cap));
    uint32_t       streaming = 0, staying = 0;

    (void)state;
    while (engine != NULL) {
        uint64_t taken = budget_device_bytes(&engine->budget, &engine->needs);
        assert_true(story(engine) == wanted);
        assert_within(engine);
        streaming += engine->budget.streamed_count > 0;
        staying += engine->budget.streamed_count == 0;
        if (step == 0)
            step = (taken - engine->budget.fixed_bytes) / 8 / GRANULE * GRANULE + GRANULE;
        engine_close(engine);
        cap = (taken < cap ? taken : cap) - step;
        engine = engine_within(capped(cap));
    }
    assert_true(staying > 0 && streaming > 0);
}

static void memory_in_one_piece_paints_the_same(void **state)
{
    struct engine_memory memory = capped(PLENTY);
    uint64_t             wanted = reference();
    struct engine       *engine;

    (void)state;
    memory.expandable = false;
    engine = engine_within(memory);
    assert_non_null(engine);
    assert_true(story(engine) == wanted);
    assert_within(engine);
    engine_close(engine);
}

/* The article's memory_pool_size: there from the start, and still there at the end. */
static void a_pool_is_there_from_the_start(void **state)
{
    struct engine_memory memory = capped(PLENTY);
    struct pool_counts   counts;
    struct engine       *engine;

    (void)state;
    memory.pool_bytes = PLENTY / 4;
    engine = engine_within(memory);
    assert_non_null(engine);
    (void)story(engine);
    pool_counts(engine->pool, &counts);
    assert_true(counts.device >= memory.pool_bytes);
    engine_close(engine);
}

/* Down the whole ladder; the picture is the same after any rung, and after the last. */
static void memory_given_up_changes_no_bit(void **state)
{
    uint64_t       wanted = reference();
    struct engine *engine = engine_within(capped(PLENTY));
    uint32_t       rungs = 0;
    char           words[128];

    (void)state;
    assert_non_null(engine);
    while (engine_yield_memory(engine, words, sizeof words)) {
        assert_non_null(strstr(words, ": "));
        assert_true(++rungs < 200);
        if (rungs % 5 != 1) continue;
        assert_true(story(engine) == wanted);
        assert_within(engine);
    }
    assert_true(rungs >= 4);
    assert_true(engine->budget.streamed_count > 0 && engine->tiles_max == 1);
    assert_true(story(engine) == wanted);
    engine_close(engine);
}

/* The walled machine's memory, in short supply: what its file grows by, less what is given back. */
static struct {
    struct os_calls real;
    int64_t         most, used, length;
} supply;

static int short_ftruncate(int fd, int64_t bytes)
{
    int64_t more = bytes - supply.length;

    if (supply.used + more > supply.most) {
        errno = ENOSPC;
        return -1;
    }
    supply.used += more;
    supply.length = bytes;
    return supply.real.ftruncate(fd, bytes);
}

static int counted_fallocate(int fd, int mode, int64_t offset, int64_t bytes)
{
    supply.used -= bytes;
    return supply.real.fallocate(fd, mode, offset, bytes);
}

static struct engine *engine_supplied(uint64_t bytes)
{
    struct engine *engine;

    supply.real = os;
    supply.most = (int64_t)bytes;
    supply.used = supply.length = 0;
    os.ftruncate = short_ftruncate;
    os.fallocate = counted_fallocate;
    engine = engine_within(capped(PLENTY));
    os = supply.real;
    return engine;
}

/* More was planned with than there is: down the ladder before the first tile. */
static void less_than_was_planned_paints_the_same(void **state)
{
    uint64_t       wanted = reference(), planned;
    struct engine *engine;

    (void)state;
    if (machine() != ENGINE_WALLED) skip(); /* a card's memory is another program's to take */
    engine = engine_within(capped(PLENTY));
    planned = budget_device_bytes(&engine->budget, &engine->needs) - engine->budget.fixed_bytes;
    assert_int_equal(engine->budget.streamed_count, 0);
    engine_close(engine);

    engine = engine_supplied(planned * 2 / 3);
    assert_non_null(engine);
    assert_true(engine->budget.streamed_count > 0);
    assert_true(story(engine) == wanted);
    engine_close(engine);
    assert_null(engine_supplied(GRANULE));
}

/* Of a model whose prompt takes as much as its tiles, under a cap that has room for one of them:
 * what is left beside the tiles' memory is not enough for a prompt, which borrows theirs. */
static void a_prompt_borrows_the_memory_of_tiles(void **state)
{
    enum { TEXT_MLP = 65536, LARGE_SIDE_TOKENS = 24 };
    struct engine_memory memory = capped(4 * PLENTY);
    struct pool_counts   counts;
    struct engine       *engine;
    char                 wordy[192];
    uint64_t             wanted;

    (void)state;
    (void)snprintf(wordy, sizeof wordy, "%s/wordy", folder);
    make_wide(wordy, TEXT_MLP);
    engine = engine_of(wordy, LARGE_SIDE_TOKENS, (struct engine_memory){.vram_bytes = 0});
    assert_non_null(engine);
    wanted = glimpse(engine);
    engine_close(engine);
    engine = engine_of(wordy, LARGE_SIDE_TOKENS, memory);
    assert_non_null(engine);
    memory.vram_bytes = budget_device_bytes(&engine->budget, &engine->needs);
    engine_close(engine);

    engine = engine_of(wordy, LARGE_SIDE_TOKENS, memory);
    assert_non_null(engine);
    assert_int_equal(engine->budget.streamed_count, 0);
    pool_counts(engine->pool, &counts);
    assert_true(engine->needs.text_bytes >
                memory.vram_bytes - engine->budget.fixed_bytes - counts.mapped);
    for (int twice = 0; twice < 2; twice++)
        assert_true(glimpse(engine) == wanted);
    assert_within(engine);
    engine_close(engine);
}

/* Once everything is reserved, tiles ask the machine for nothing. */
static void tiles_make_no_driver_call(void **state)
{
    struct engine_memory memory = capped(PLENTY);
    struct pool_counts   before, after;
    struct engine       *engine;

    (void)state;
    engine = engine_within(memory);
    assert_non_null(engine);
    (void)story(engine);
    pool_counts(engine->pool, &before);
    (void)story(engine); /* the prompt borrows and gives back; nothing is created or released */
    pool_counts(engine->pool, &after);
    assert_int_equal(after.created, before.created);
    assert_int_equal(after.released, before.released);
    engine_close(engine);
}

/* Why an engine has less than a test thinks: in the log, where a test that failed is looked into.
 */
static void show(enum log_level level, const char *line, void *user)
{
    (void)level;
    (void)user;
    print_message("# %s\n", line);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_smaller_cap_paints_the_same),
                                       cmocka_unit_test(memory_in_one_piece_paints_the_same),
                                       cmocka_unit_test(a_pool_is_there_from_the_start),
                                       cmocka_unit_test(memory_given_up_changes_no_bit),
                                       cmocka_unit_test(less_than_was_planned_paints_the_same),
                                       cmocka_unit_test(a_prompt_borrows_the_memory_of_tiles),
                                       cmocka_unit_test(tiles_make_no_driver_call)};

    log_install(show, NULL, LOG_WARN);
    return cmocka_run_group_tests_name("memory", tests, make_model, scratch_model_remove);
}
