/*
 * parity_pipeline.c - whole pictures against the reference pipelines, and what the engine promises
 * about memory, groups and numbers that are none.
 */
#include "parity.h"

#include <errno.h>

/* -------------------------------------------------------------------------------- pictures */

struct run {
    int32_t         w_px, h_px;
    int64_t         latent_count, rgb_count;
    struct schedule schedule;
    struct prompt  *prompt;
    float          *latent, *velocity, *rgb;
};

static float *numbers(int64_t count)
{
    float *values = calloc((size_t)count, sizeof *values);

    assert_non_null(values);
    return values;
}

static void run_open(struct run *run, struct parity *p, const char *name)
{
    struct err              err = {0};
    const json_t           *spec = spec_object(p, name, 0);
    int32_t                 w = spec_int(spec, "w_tokens"), h = spec_int(spec, "h_tokens");
    const json_t           *strength = json_object_get(spec, "strength");
    struct schedule_request schedule = {.steps = (uint32_t)spec_int(spec, "steps"),
                                        .tokens = (int64_t)w * h,
                                        .sigma_start = 1,
                                        .strength = json_number_value(strength)};
    struct prompt_request   prompt = {.text = json_string_value(json_object_get(spec, "prompt")),
                                      .guidance = spec_number(p->spec, "guidance"),
                                      .schedule = &run->schedule};
    struct engine_size      size = {.tiles = 1, .steps = schedule.steps};

    size.w_px = run->w_px = w * p->engine->facts.px_per_token;
    size.h_px = run->h_px = h * p->engine->facts.px_per_token;
    run->rgb_count = 3 * (int64_t)run->w_px * run->h_px;
    run->latent_count = 4 * (int64_t)w * h * p->engine->facts.latent_channels;
    run->latent = numbers(run->latent_count);
    run->velocity = numbers(run->latent_count);
    run->rgb = numbers(run->rgb_count);
    ASSERT_OK(engine_reserve(p->engine, &size, 1, &err));
    ASSERT_OK(schedule_make(&run->schedule, p->engine, &schedule, &err));
    ASSERT_OK(prompt_open(&run->prompt, p->engine, &prompt, &err));
}

static void run_close(struct run *run)
{
    prompt_close(run->prompt);
    free(run->latent);
    free(run->velocity);
    free(run->rgb);
}

static void denoise(struct run *run, struct parity *p)
{
    struct err         err = {0};
    struct engine_tile tile = {.prompt = run->prompt,
                               .w_px = run->w_px,
                               .h_px = run->h_px,
                               .latent = run->latent,
                               .velocity = run->velocity};

    for (uint32_t step = 0; step < run->schedule.steps; step++) {
        ASSERT_OK(engine_predict(p->engine, &tile, 1, step, &err));
        scheduler_step(&run->schedule, step, run->latent, run->velocity, run->latent_count);
    }
    ASSERT_OK(engine_decode(p->engine, run->latent, run->w_px, run->h_px, run->rgb, &err));
}

/* Pictures hold 0..1.  50 dB is a mean error of a third of a percent; bf16 rounds every activation
 * to 8 bits, and each step adds its own. */
static void assert_picture(const struct parity *p, const struct run *run, const char *stem)
{
    int64_t      count;
    const float *wanted = golden(p, &count, stem, 0);
    double       squares = 0, psnr;

    assert_int_equal(count, run->rgb_count);
    for (int64_t i = 0; i < count; i++) {
        double d = (double)run->rgb[i] - (double)wanted[i];
        squares += d * d;
    }
    psnr = -10 * log10(squares / (double)count);
    print_message("# %s %s %s: PSNR %.1f dB\n", p->variant->model,
                  p->variant->precision == PRECISION_F32 ? "f32" : "bf16", stem, psnr);
    if (!(psnr >= (p->variant->precision == PRECISION_F32 ? 50 : 30)))
        fail_msg("%s has a PSNR of %.1f dB", stem, psnr);
}

static void text_to_image_agrees(void **state)
{
    struct parity *p = parity_begin(state);
    struct run     run = {0};
    int64_t        count;

    run_open(&run, p, "txt2img");
    memcpy(run.latent, golden(p, &count, "txt2img.noise", 0),
           (size_t)run.latent_count * sizeof(float));
    assert_int_equal(count, run.latent_count);
    denoise(&run, p);
    assert_picture(p, &run, "txt2img.image");
    run_close(&run);
}

static void image_to_image_agrees(void **state)
{
    struct err     err = {0};
    struct parity *p = parity_begin(state);
    struct run     run = {0};
    int64_t        count;
    const float   *noise;

    run_open(&run, p, "img2img");
    ASSERT_OK(engine_encode(p->engine, golden(p, &count, "img2img.rgb", 0), run.w_px, run.h_px,
                            run.latent, &err));
    noise = golden(p, &count, "img2img.noise", 0);
    assert_int_equal(count, run.latent_count);
    engine_mix_noise(run.latent, noise, run.schedule.sigma[0], count);
    denoise(&run, p);
    assert_picture(p, &run, "img2img.image");
    run_close(&run);
}

/* -------------------------------------------------------------------------------- promises */

enum { GROUP = 3 };

/* Tiles of different sizes, prompts of different words. */
struct group {
    struct schedule    schedule;
    struct prompt     *prompts[2];
    struct engine_tile tiles[GROUP];
    struct engine_cost cost;
    int64_t            counts[GROUP];
    float             *alone[GROUP];
};

static void group_open(struct group *g, struct parity *p)
{
    static const int32_t  tokens[GROUP][2] = {{3, 5}, {5, 3}, {2, 2}};
    struct err            err = {0};
    int32_t               px = p->engine->facts.px_per_token;
    struct engine_size    size = {.w_px = 5 * px, .h_px = 5 * px, .tiles = GROUP, .steps = 2};
    struct prompt_request request = {.text = "north", .guidance = 2, .schedule = &g->schedule};
    uint64_t              random = 1;

    ASSERT_OK(engine_reserve(p->engine, &size, 1, &err));
    g->schedule = (struct schedule){.steps = 2, .sigma = {1, 0.4f, 0}};
    ASSERT_OK(prompt_open(&g->prompts[0], p->engine, &request, &err));
    request.text = "south and a little west";
    ASSERT_OK(prompt_open(&g->prompts[1], p->engine, &request, &err));
    for (int t = 0; t < GROUP; t++) {
        float *latent;
        g->counts[t] = 4 * tokens[t][0] * tokens[t][1] * p->engine->facts.latent_channels;
        latent = numbers(g->counts[t]);
        for (int64_t i = 0; i < g->counts[t]; i++)
            latent[i] = (float)random_between(&random, -2000, 2000) / 1000;
        g->alone[t] = numbers(g->counts[t]);
        g->tiles[t] = (struct engine_tile){.prompt = g->prompts[t % 2],
                                           .h_px = tokens[t][0] * px,
                                           .w_px = tokens[t][1] * px,
                                           .latent = latent,
                                           .velocity = numbers(g->counts[t])};
    }
}

static void group_close(struct group *g)
{
    for (int t = 0; t < GROUP; t++) {
        free((void *)(uintptr_t)g->tiles[t].latent);
        free(g->tiles[t].velocity);
        free(g->alone[t]);
    }
    prompt_close(g->prompts[0]);
    prompt_close(g->prompts[1]);
}

static void a_group_gives_what_each_tile_gives_alone(void **state)
{
    struct err     err = {0};
    struct parity *p = parity_begin(state);
    struct group   g = {0};

    group_open(&g, p);
    for (uint32_t step = 0; step < 2; step++) {
        for (int t = 0; t < GROUP; t++) {
            struct engine_tile tile = g.tiles[t];
            tile.velocity = g.alone[t];
            ASSERT_OK(engine_predict(p->engine, &tile, 1, step, &err));
        }
        ASSERT_OK(engine_predict(p->engine, g.tiles, GROUP, step, &err));
        for (int t = 0; t < GROUP; t++)
            assert_memory_equal(g.tiles[t].velocity, g.alone[t],
                                (size_t)g.counts[t] * sizeof(float));
    }
    group_close(&g);
}

/* Work is each size's own, and memory the most of all. */
static void several_sizes_are_measured_as_each_alone(void **state)
{
    struct err            err = {0};
    struct parity        *p = parity_begin(state);
    int32_t               px = p->engine->facts.px_per_token;
    char                  folder[160];
    struct engine_options options = {.model_folder = folder,
                                     .precision = p->variant->precision,
                                     .machine = machine_under_test(),
                                     .text_tokens = p->engine->facts.text_tokens};
    struct engine_size    sizes[] = {{6 * px, 5 * px, .tiles = 2, .steps = 2},
                                     {3 * px, 4 * px, .tiles = 1, .steps = 4, .steps_next = 3}};
    struct engine_cost    both, alone[2];
    struct engine_facts   facts;

    (void)snprintf(folder, sizeof folder, "%s/model", p->folder);
    ASSERT_OK(engine_estimate(&both, &facts, &options, sizes, 2, &err));
    for (int i = 0; i < 2; i++) {
        ASSERT_OK(engine_estimate(&alone[i], &facts, &options, &sizes[i], 1, &err));
        assert_memory_equal(&both.flop[i], &alone[i].flop[0], sizeof both.flop[i]);
    }
    assert_true(both.flop[0].predict > both.flop[1].predict);
    assert_true(both.flop[1].prompt > both.flop[0].prompt);
    assert_true(both.scratch_bytes >= max_u64(alone[0].scratch_bytes, alone[1].scratch_bytes));
    assert_true(both.fixed_bytes >= max_u64(alone[0].fixed_bytes, alone[1].fixed_bytes));
    assert_true(both.host_bytes == max_u64(alone[0].host_bytes, alone[1].host_bytes));
}

static void what_was_measured_is_what_is_taken(void **state)
{
    struct err            err = {0};
    struct parity        *p = parity_begin(state);
    int32_t               px = p->engine->facts.px_per_token;
    struct engine_size    size = {.w_px = 4 * px, .h_px = 6 * px, .tiles = GROUP, .steps = 2};
    char                  folder[160];
    struct engine_options options = {.model_folder = folder,
                                     .precision = p->variant->precision,
                                     .machine = machine_under_test(),
                                     .threads = 2,
                                     .text_tokens = p->engine->facts.text_tokens};
    struct engine_cost    cost;
    struct engine_facts   facts;
    struct schedule       schedule = {.steps = 2, .sigma = {1, 0.4f, 0}};
    struct prompt_request request = {.text = "x", .guidance = 2, .schedule = &schedule};
    struct prompt        *prompt = NULL;
    struct engine_tile    tiles[GROUP];
    int64_t               count = 4 * 4 * 6 * p->engine->facts.latent_channels;
    float                *latent = numbers(count), *velocity = numbers(count);
    float                *rgb = numbers(3 * (int64_t)size.w_px * size.h_px);

    (void)snprintf(folder, sizeof folder, "%s/model", p->folder);
    ASSERT_OK(engine_estimate(&cost, &facts, &options, &size, 1, &err));
    assert_int_equal(facts.hidden, p->engine->facts.hidden);
    assert_int_equal(facts.text_tokens, p->engine->facts.text_tokens);
    ASSERT_OK(engine_reserve(p->engine, &size, 1, &err));
    ASSERT_OK(prompt_open(&prompt, p->engine, &request, &err));
    for (int t = 0; t < GROUP; t++)
        tiles[t] = (struct engine_tile){.prompt = prompt,
                                        .w_px = size.w_px,
                                        .h_px = size.h_px,
                                        .latent = latent,
                                        .velocity = velocity};
    ASSERT_OK(engine_encode(p->engine, rgb, size.w_px, size.h_px, latent, &err));
    ASSERT_OK(engine_predict(p->engine, tiles, GROUP, 1, &err));
    ASSERT_OK(engine_decode(p->engine, latent, size.w_px, size.h_px, rgb, &err));
    assert_int_equal(arena_bytes_peak(backend_arena(p->engine->backend)),
                     p->engine->machine.arena_limit_bytes);
    assert_int_equal(cost.scratch_bytes, p->engine->machine.arena_limit_bytes +
                                             p->engine->text_machine.arena_limit_bytes);
    assert_true(cost.flop[0].prompt > 0 && cost.flop[0].encode > 0);
    assert_true(cost.flop[0].predict > 0 && cost.flop[0].decode > 0);
    prompt_close(prompt);
    free(latent);
    free(velocity);
    free(rgb);
}

static void *no_calloc(size_t count, size_t bytes)
{
    (void)count;
    (void)bytes;
    return NULL;
}

static int no_mprotect(void *address, size_t bytes, int protection)
{
    (void)address;
    (void)bytes;
    (void)protection;
    errno = ENOMEM;
    return -1;
}

static void nothing_is_taken_while_tiles_are_painted(void **state)
{
    struct err      err = {0};
    struct parity  *p = parity_begin(state);
    struct group    g = {0};
    struct os_calls whole = os;

    group_open(&g, p);
    os.calloc = no_calloc;
    os.mprotect = no_mprotect;
    ASSERT_OK(engine_predict(p->engine, g.tiles, GROUP, 0, &err));
    os = whole;
    group_close(&g);
}

static void numbers_that_are_none_are_reported(void **state)
{
    struct err     err = {0};
    struct parity *p = parity_begin(state);
    struct group   g = {0};
    float         *latent, *rgb;

    group_open(&g, p);
    latent = (float *)(uintptr_t)g.tiles[1].latent;
    latent[5] = NAN;
    ASSERT_REFUSED(ERR_NUMERIC, "step 2, rectangle 2 of 3",
                   engine_predict(p->engine, g.tiles, GROUP, 1, &err));
    rgb = numbers(3 * (int64_t)g.tiles[1].w_px * g.tiles[1].h_px);
    ASSERT_REFUSED(ERR_NUMERIC, "after decoding",
                   engine_decode(p->engine, latent, g.tiles[1].w_px, g.tiles[1].h_px, rgb, &err));
    rgb[7] = INFINITY;
    ASSERT_REFUSED(ERR_NUMERIC, "after encoding",
                   engine_encode(p->engine, rgb, g.tiles[1].w_px, g.tiles[1].h_px, latent, &err));
    free(rgb);
    group_close(&g);
}

static void impossible_sizes_are_refused(void **state)
{
    struct err         err;
    struct parity     *p = parity_begin(state);
    int32_t            px = p->engine->facts.px_per_token;
    struct engine_size size = {.w_px = 4 * px + 1, .h_px = 4 * px, .tiles = 1, .steps = 1};

    ASSERT_REFUSED(ERR_USAGE, "multiples of", engine_reserve(p->engine, &size, 1, &err));
    size.w_px = 0;
    ASSERT_REFUSED(ERR_USAGE, "multiples of", engine_reserve(p->engine, &size, 1, &err));
    size.w_px = px * (TRANSFORMER_SIDE_TOKENS_MAX + 1);
    ASSERT_REFUSED(ERR_USAGE, "multiples of", engine_reserve(p->engine, &size, 1, &err));
    size.w_px = px;
    size.steps = 0;
    ASSERT_REFUSED(ERR_USAGE, "0 steps", engine_reserve(p->engine, &size, 1, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_to_image_agrees),
        cmocka_unit_test(image_to_image_agrees),
        cmocka_unit_test(a_group_gives_what_each_tile_gives_alone),
        cmocka_unit_test(several_sizes_are_measured_as_each_alone),
        cmocka_unit_test(what_was_measured_is_what_is_taken),
        cmocka_unit_test(nothing_is_taken_while_tiles_are_painted),
        cmocka_unit_test(numbers_that_are_none_are_reported),
        cmocka_unit_test(impossible_sizes_are_refused),
    };
    return PARITY_RUN(tests, VARIANTS_ALL);
}
