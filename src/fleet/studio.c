/*
 * studio.c - a painter made of one engine in this process.
 *
 * Owns the engine, and the prompt and noise levels of the stage that has begun.  Turns the
 * painter's primitives into the engine's; decides nothing.
 */
#include "fleet/fleet_int.h"

struct studio {
    struct engine  *engine;
    struct prompt  *prompt;
    struct schedule schedule, next; /* of the stage that has begun, and of one to follow */
    uint32_t        tiles_max;
};

uint32_t studio_tiles_max(const struct engine_size *sizes, size_t size_count)
{
    uint32_t most = 1;

    for (size_t i = 0; i < size_count; i++)
        if (sizes[i].tiles > most) most = sizes[i].tiles;
    return most;
}

/* The driver of a GPU takes a quarter of a second to start: as long as it takes to map the weights
 * and to read what they are, so both at once.  What fails here fails again when the GPU is asked
 * for, and is told then. */
struct waking {
    const struct engine_options *options;
    pthread_t                    thread;
    bool                         begun;
};

static void *wake(void *argument)
{
    const struct waking *waking = argument;
    struct engine_device ignored;
    struct err           err = {.code = ERR_OK};

    (void)engine_find_device(&ignored, waking->options, &err);
    return NULL;
}

static void wake_begin(struct waking *waking)
{
    if (waking->options->machine != ENGINE_CUDA) return;
    waking->begun = os.thread_create(&waking->thread, wake, waking) == 0;
}

static void wake_end(const struct waking *waking)
{
    if (waking->begun) (void)pthread_join(waking->thread, NULL);
}

int studio_open(struct studio **out, const struct engine_options *options,
                const struct engine_size *sizes, size_t size_count, struct err *err)
{
    int            rc = ERR_OK;
    struct studio *studio = NULL;
    struct waking  waking = {.options = options};

    TRY(os_alloc((void **)&studio, 1, sizeof *studio, "a studio", err));
    studio->tiles_max = studio_tiles_max(sizes, size_count);
    must(studio->tiles_max <= PAINTER_TILES_MAX);
    wake_begin(&waking);
    rc = engine_open(&studio->engine, options, err);
    wake_end(&waking);
    TRY(rc);
    log_line(LOG_INFO, "weights %016llx",
             (unsigned long long)engine_model_identity(studio->engine));
    TRY(engine_reserve(studio->engine, sizes, size_count, err));
    *out = studio;
    studio = NULL;
out:
    studio_close(studio);
    return rc;
}

void studio_close(struct studio *studio)
{
    if (studio == NULL) return;
    prompt_close(studio->prompt);
    engine_close(studio->engine);
    os_free(studio);
}

static int make_schedule(struct schedule *out, const struct studio *studio,
                         const struct painter_levels *levels, struct err *err)
{
    struct schedule_request request = {.steps = levels->steps,
                                       .tokens = levels->tokens,
                                       .sigma_start = levels->sigma_start,
                                       .strength = levels->strength,
                                       .mu = levels->mu,
                                       .mu_max = levels->mu_max};

    return schedule_make(out, studio->engine, &request, err);
}

static int studio_begin(void *self, const struct painter_stage *stage, uint32_t *steps_out,
                        struct err *err)
{
    int                   rc = ERR_OK;
    struct studio        *studio = self;
    struct prompt_request prompt = {
        .text = stage->prompt, .guidance = stage->guidance, .schedule = &studio->schedule};

    must(studio->prompt == NULL);
    TRY(make_schedule(&studio->schedule, studio, &stage->levels, err));
    if (stage->next.steps > 0) {
        TRY(make_schedule(&studio->next, studio, &stage->next, err));
        prompt.next = &studio->next;
    }
    TRY(prompt_open(&studio->prompt, studio->engine, &prompt, err));
    *steps_out = studio->schedule.steps;
out:
    return rc;
}

static void studio_end(void *self)
{
    struct studio *studio = self;
    prompt_close(studio->prompt);
    studio->prompt = NULL;
}

static void studio_noise(void *self, const struct painter_noise *request, float *noise_out)
{
    const struct studio        *studio = self;
    struct engine_noise_request noise = {.seed = request->seed,
                                         .purpose = request->purpose,
                                         .x_lat = request->rect.x,
                                         .y_lat = request->rect.y,
                                         .w_lat = request->rect.w,
                                         .h_lat = request->rect.h};
    engine_noise(studio->engine, &noise, noise_out);
}

static int studio_encode(void *self, const float *rgb, int32_t w_px, int32_t h_px,
                         float *latent_out, struct err *err)
{
    const struct studio *studio = self;
    return engine_encode(studio->engine, rgb, w_px, h_px, latent_out, err);
}

static void studio_start(void *self, float *latent, const float *noise, int64_t count)
{
    const struct studio *studio = self;
    engine_mix_noise(latent, noise, studio->schedule.sigma[0], count);
}

static int studio_predict(void *self, const struct painter_tile *tiles, uint32_t count,
                          uint32_t step, struct err *err)
{
    const struct studio *studio = self;
    struct engine_tile   group[PAINTER_TILES_MAX];

    must(count > 0 && count <= studio->tiles_max);
    for (uint32_t i = 0; i < count; i++)
        group[i] = (struct engine_tile){.prompt = studio->prompt,
                                        .w_px = tiles[i].w_px,
                                        .h_px = tiles[i].h_px,
                                        .latent = tiles[i].latent,
                                        .velocity = tiles[i].velocity};
    return engine_predict(studio->engine, group, count, step, err);
}

static void studio_advance(void *self, uint32_t step, float *latent, const float *velocity,
                           int64_t count)
{
    const struct studio *studio = self;
    scheduler_step(&studio->schedule, step, latent, velocity, count);
}

static int studio_decode(void *self, const float *latent, int32_t w_px, int32_t h_px,
                         float *rgb_out, struct err *err)
{
    const struct studio *studio = self;
    return engine_decode(studio->engine, latent, w_px, h_px, rgb_out, err);
}

static bool studio_memory(void *self, bool restart, struct painter_memory *out)
{
    const struct studio *studio = self;

    engine_memory_use(studio->engine, &out->use);
    out->sample_count = engine_memory_history(studio->engine, out->samples);
    if (restart) engine_memory_restart(studio->engine);
    return out->use.peak_device > 0;
}

static bool studio_yield_memory(void *self, char *words_out, size_t capacity)
{
    const struct studio *studio = self;
    return engine_yield_memory(studio->engine, words_out, capacity);
}

const struct schedule *studio_schedule(const struct studio *studio)
{
    return &studio->schedule;
}

uint64_t studio_model_identity(const struct studio *studio)
{
    return engine_model_identity(studio->engine);
}

struct engine_facts studio_facts(const struct studio *studio)
{
    return engine_facts(studio->engine);
}

struct painter studio_painter(struct studio *studio)
{
    return (struct painter){.self = studio,
                            .channels = engine_facts(studio->engine).latent_channels,
                            .tiles_max = studio->tiles_max,
                            .begin = studio_begin,
                            .end = studio_end,
                            .noise = studio_noise,
                            .encode = studio_encode,
                            .start = studio_start,
                            .predict = studio_predict,
                            .advance = studio_advance,
                            .decode = studio_decode,
                            .yield_memory = studio_yield_memory,
                            .memory = studio_memory};
}
