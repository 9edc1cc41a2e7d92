/*
 * engine.c - the four networks as one machine: opened, reserved, then used.
 *
 * Owns the model's files, the networks' views, and the backend with all scratch and, on a distant
 * machine, the weights it keeps.  What is computed is in compute.c; here sizes are decided, results
 * waited for and looked at.
 *
 * Read next: reserve.c, compute.c, measure.c, prompt.c.
 */
#include "engine/compute_int.h"

#include <stdio.h>

enum { TEXT_TOKENS_DEFAULT_MAX = 512, TEXT_TOKENS_MAX = 4096 };

/* --------------------------------------------------------------------------------------- open */

/* What weights accepts, but this engine cannot paint with. */
static int check_model(const struct model *model, struct err *err)
{
    int     rc = ERR_OK;
    int64_t latent = model->vae.latent_channels;

    if (model->transformer.out_channels != 4 * latent)
        RAISE(err, ERR_FORMAT, 0,
              "model '%s': the transformer's out_channels are %lld, but must be 4 x the VAE's %lld "
              "latent_channels",
              model->folder, (long long)model->transformer.out_channels, (long long)latent);
    if (latent % 4 != 0 || model->vae.image_channels != 3)
        RAISE(err, ERR_FORMAT, 0,
              "model '%s': the VAE has %lld latent_channels for pictures of %lld channels, but "
              "needed are a multiple of 4, and 3",
              model->folder, (long long)latent, (long long)model->vae.image_channels);
out:
    return rc;
}

static int open_tokenizers(struct engine *engine, const struct engine_options *options,
                           struct err *err)
{
    int                 rc = ERR_OK;
    const struct model *model = engine->model;
    struct tokenizers  *both = options->tokenizers;
    uint32_t            text_tokens = options->text_tokens;
    int32_t             clip_limit, t5_limit;

    if (both == NULL) {
        TRY(tokenizers_open(&engine->own_tokenizers, err));
        both = engine->own_tokenizers;
    }
    TRY(tokenizers_read(both, model->folder, err));
    engine->clip_tokenizer = both->clip;
    engine->t5_tokenizer = both->t5;
    clip_limit = clip_tokenizer_id_limit(engine->clip_tokenizer);
    t5_limit = t5_tokenizer_id_limit(engine->t5_tokenizer);
    if (clip_limit > model->clip.vocab || t5_limit > model->t5.vocab)
        RAISE(
            err, ERR_FORMAT, 0,
            "model '%s': a tokenizer and its encoder do not belong together: tokenizer has ids up "
            "to %d for %lld rows, tokenizer_2 up to %d for %lld rows",
            model->folder, clip_limit - 1, (long long)model->clip.vocab, t5_limit - 1,
            (long long)model->t5.vocab);
    if ((int64_t)clip_tokenizer_max(engine->clip_tokenizer) > model->clip.positions)
        RAISE(err, ERR_FORMAT, 0,
              "model '%s': tokenizer gives up to %u ids, but text_encoder has %lld positions",
              model->folder, clip_tokenizer_max(engine->clip_tokenizer),
              (long long)model->clip.positions);
    if (text_tokens > TEXT_TOKENS_MAX)
        RAISE(err, ERR_USAGE, 0, "text_tokens is %u, but at most %d are possible", text_tokens,
              TEXT_TOKENS_MAX);
    if (text_tokens == 0)
        text_tokens =
            (uint32_t)min_i64(t5_tokenizer_max(engine->t5_tokenizer), TEXT_TOKENS_DEFAULT_MAX);
    engine->facts.text_tokens = text_tokens;
out:
    return rc;
}

static enum machine machine_of(enum engine_machine machine)
{
    switch (machine) {
    case ENGINE_CUDA: return MACHINE_CUDA;
    case ENGINE_WALLED: return MACHINE_WALLED;
    case ENGINE_CPU: break;
    }
    return MACHINE_CPU;
}

static void gather_facts(struct engine *engine, const struct engine_options *options)
{
    const struct model      *model = engine->model;
    const struct vae_config *vae = &model->vae;
    struct engine_facts     *facts = &engine->facts;
    int64_t                  width = 0;

    for (int part = 0; part < PART_COUNT; part++)
        facts->weight_bytes += model->bytes[part];
    facts->hidden = model->transformer.hidden;
    facts->heads = model->transformer.heads;
    facts->doubles = model->transformer.doubles;
    facts->singles = model->transformer.singles;
    facts->latent_channels = (int32_t)vae->latent_channels;
    facts->px_per_lat = 1 << (vae->block_count - 1);
    facts->px_per_token = 2 * facts->px_per_lat;
    facts->guidance = model->transformer.guidance;

    for (int64_t i = 0; i < vae->block_count; i++)
        width = max_i64(width, vae->widths[i]);
    engine->machine.machine = machine_of(options->machine);
    engine->machine.device = options->gpu;
    engine->machine.compute = engine_compute(options->machine, options->precision);
    engine->machine.threads = options->threads;
    engine->machine.pulse = options->pulse;
    engine->machine.shared_fd = options->shared_fd;
    engine->machine.exchange = options->exchange;
    engine->machine.exchange_bytes = options->exchange_bytes;
    engine->machine.conv_weight_elements_max =
        (uint64_t)(9 * width * max_i64(width, 2 * vae->latent_channels));
    engine->text_machine = engine->machine;
    engine->text_machine.compute = DTYPE_F32;
    engine->text_machine.exchange_bytes = 0;
    if (options->text_on_cpu) engine->text_machine.machine = MACHINE_CPU;
    facts->bf16 = engine->machine.compute == DTYPE_BF16;
    engine->memory = options->memory;
    engine->budget.pinned_bytes = UINT64_MAX;
}

static void free_networks(struct networks *networks)
{
    clip_free(networks->clip);
    t5_free(networks->t5);
    vae_free(networks->vae);
    transformer_free(networks->transformer);
    *networks = (struct networks){.clip = NULL};
}

static int load_networks(struct engine *engine, struct arena *vectors, bool dry, struct err *err)
{
    int                 rc = ERR_OK;
    struct layer_loader loader = {.model = engine->model, .vectors = vectors, .dry = dry};
    struct networks    *networks = &engine->networks;

    TRY(clip_load(&networks->clip, &loader, err));
    TRY(t5_load(&networks->t5, &loader, engine->facts.text_tokens, err));
    TRY(vae_load(&networks->vae, &loader, err));
    TRY(transformer_load(&networks->transformer, &loader, err));
out:
    return rc;
}

/* Everything but weights. */
int engine_open_dry(struct engine **out, const struct engine_options *options, struct err *err)
{
    int                rc = ERR_OK;
    struct engine     *engine = NULL;
    struct model_paths paths = {
        .folder = options->model_folder, .transformer = options->transformer, .vae = options->vae};

    TRY(os_alloc((void **)&engine, 1, sizeof *engine, "an engine", err));
    TRY(model_open(&engine->model, &paths, err));
    TRY(check_model(engine->model, err));
    TRY(open_tokenizers(engine, options, err));
    gather_facts(engine, options);
    TRY(arena_open_dry(&engine->vectors, err));
    TRY(load_networks(engine, engine->vectors, true, err));
    *out = engine;
    engine = NULL;
out:
    engine_close(engine);
    return rc;
}

int engine_open(struct engine **out, const struct engine_options *options, struct err *err)
{
    int            rc = ERR_OK;
    struct engine *engine = NULL;
    uint64_t       vector_bytes;

    TRY(engine_open_dry(&engine, options, err));
    vector_bytes = arena_bytes_peak(engine->vectors);
    free_networks(&engine->networks);
    arena_close(engine->vectors);
    engine->vectors = NULL;

    TRY(model_map(engine->model, err));
    TRY(arena_open(&engine->vectors, vector_bytes, err));
    TRY(load_networks(engine, engine->vectors, false, err));
    must(arena_bytes_peak(engine->vectors) == vector_bytes);
    *out = engine;
    engine = NULL;
out:
    engine_close(engine);
    return rc;
}

void engine_close(struct engine *engine)
{
    if (engine == NULL) return;
    engine_release(&engine->painters, engine);
    backend_close(engine->backend);
    pool_close(engine->pool);
    os_free(engine->tiles);
    prompt_forget(engine);
    free_networks(&engine->networks);
    arena_close(engine->vectors);
    tokenizers_close(engine->own_tokenizers);
    model_close(engine->model);
    os_free(engine);
}

struct engine_facts engine_facts(const struct engine *engine)
{
    return engine->facts;
}

uint64_t engine_model_identity(const struct engine *engine)
{
    return model_identity(engine->model);
}

/* --------------------------------------------------------------------------------- primitives */

int engine_check_ready(const struct engine *engine, struct err *err)
{
    int rc = ERR_OK;

    must(engine->size_count > 0);
    if (engine->backend == NULL)
        RAISE(err, ERR_DEVICE_MEM, 0,
              "memory: GPU %d has no room left for the least that this model needs",
              engine->machine.device);
out:
    return rc;
}

static void must_fit(const struct engine *engine, int32_t w_px, int32_t h_px)
{
    must(w_px > 0 && w_px % engine->facts.px_per_token == 0);
    must(h_px > 0 && h_px % engine->facts.px_per_token == 0);
}

static struct compute own(const struct engine *engine)
{
    return (struct compute){
        .engine = engine, .painters = &engine->painters, .backend = engine->backend};
}

static int64_t latent_values(const struct engine *engine, int32_t w_px, int32_t h_px)
{
    int64_t factor = engine->facts.px_per_lat;

    return (w_px / factor) * (h_px / factor) * engine->facts.latent_channels;
}

int engine_encode(struct engine *engine, const float *rgb, int32_t w_px, int32_t h_px,
                  float *latent_out, struct err *err)
{
    int            rc = ERR_OK;
    int64_t        count = latent_values(engine, w_px, h_px), bad;
    struct compute compute = own(engine);

    must_fit(engine, w_px, h_px);
    TRY(engine_check_ready(engine, err));
    compute_encode(&compute, rgb, w_px, h_px, latent_out);
    TRY(backend_wait(engine->backend, err));
    bad = k_count_bad_cpu(latent_out, count);
    if (bad > 0)
        RAISE(err, ERR_NUMERIC, 0,
              "numeric: %lld of %lld latent values are NaN or infinite after encoding",
              (long long)bad, (long long)count);
out:
    return rc;
}

int engine_decode(struct engine *engine, const float *latent, int32_t w_px, int32_t h_px,
                  float *rgb_out, struct err *err)
{
    int            rc = ERR_OK;
    int64_t        count = 3 * (int64_t)w_px * h_px, bad;
    struct compute compute = own(engine);

    must_fit(engine, w_px, h_px);
    TRY(engine_check_ready(engine, err));
    compute_decode(&compute, latent, w_px, h_px, rgb_out);
    TRY(backend_wait(engine->backend, err));
    bad = k_clamp_count_bad_cpu(rgb_out, count);
    if (bad > 0)
        RAISE(err, ERR_NUMERIC, 0,
              "numeric: %lld of %lld pixel values are NaN or infinite after decoding",
              (long long)bad, (long long)count);
out:
    return rc;
}

int engine_predict(struct engine *engine, const struct engine_tile *tiles, uint32_t count,
                   uint32_t step, struct err *err)
{
    int            rc = ERR_OK;
    struct compute compute = own(engine);

    must(count > 0);
    for (uint32_t t = 0; t < count; t++)
        must_fit(engine, tiles[t].w_px, tiles[t].h_px);
    TRY(engine_check_ready(engine, err));
    /* In several passes where memory allows fewer than were asked for. */
    for (uint32_t t = 0; t < count; t += engine->tiles_max) {
        uint32_t some = count - t < engine->tiles_max ? count - t : engine->tiles_max;
        compute_predict(&compute, engine->tiles, tiles + t, some, step);
    }
    TRY(backend_wait(engine->backend, err));
    for (uint32_t t = 0; t < count; t++) {
        int64_t values = latent_values(engine, tiles[t].w_px, tiles[t].h_px);
        int64_t bad = k_count_bad_cpu(tiles[t].velocity, values);
        if (bad > 0)
            RAISE(err, ERR_NUMERIC, 0,
                  "numeric: %lld of %lld velocity values are NaN or infinite in step %u, rectangle "
                  "%u of %u",
                  (long long)bad, (long long)values, step + 1, t + 1, count);
    }
out:
    return rc;
}

int schedule_make(struct schedule *out, const struct engine *engine,
                  const struct schedule_request *request, struct err *err)
{
    return scheduler_make(out, &engine->model->scheduler, request, err);
}

void engine_noise(const struct engine *engine, const struct engine_noise_request *request,
                  float *noise_out)
{
    struct noise_request noise = {.seed = request->seed,
                                  .purpose = request->purpose,
                                  .x = request->x_lat,
                                  .y = request->y_lat,
                                  .w = request->w_lat,
                                  .h = request->h_lat,
                                  .channels = engine->facts.latent_channels};

    k_noise_cpu(noise_out, &noise);
}

void engine_mix_noise(float *latent, const float *noise, float sigma, int64_t count)
{
    k_mix_noise_cpu(latent, noise, sigma, count);
}
