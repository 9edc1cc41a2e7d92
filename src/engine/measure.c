/*
 * measure.c - what a picture will take, found by doing it on the dry backend.
 *
 * Owns nothing and guesses nothing: the numbers are those of the very code that paints.
 *
 * Read next: compute.c, prompt.c.
 */
#include "engine/engine_int.h"

static int check_size(const struct engine *engine, const struct engine_size *size, struct err *err)
{
    int     rc = ERR_OK;
    int32_t step = engine->facts.px_per_token, most = step * TRANSFORMER_SIDE_TOKENS_MAX;

    if (size->w_px < step || size->h_px < step || size->w_px > most || size->h_px > most ||
        size->w_px % step != 0 || size->h_px % step != 0)
        RAISE(err, ERR_USAGE, 0,
              "a rectangle of %d x %d px cannot be painted: this model's sides are multiples of %d "
              "from %d to %d px",
              size->w_px, size->h_px, step, step, most);
    if (size->tiles < 1 || size->steps < 1 || size->steps > SCHEDULE_STEPS_MAX)
        RAISE(err, ERR_USAGE, 0,
              "%u rectangles at once and %u steps: needed are at least 1, and 1..%d", size->tiles,
              size->steps, SCHEDULE_STEPS_MAX);
out:
    return rc;
}

/* FLOPs asked for since the last call. */
static double flop_lap(const struct backend *backend, double *before)
{
    double all = backend_flops(backend), lap = all - *before;

    *before = all;
    return lap;
}

static int measure_prompt(struct measured *out, const struct engine *engine, uint32_t steps,
                          struct err *err)
{
    int                 rc = ERR_OK;
    struct backend     *backend = NULL;
    struct schedule     schedule = {.steps = steps};
    struct prompt_input input = {.clip_count = clip_tokenizer_max(engine->clip_tokenizer),
                                 .sigmas = schedule.sigma,
                                 .steps = steps};
    float              *nowhere;

    TRY(backend_open_dry(&backend, &engine->text_machine, err));
    /* An address that arithmetic may start from; nothing reads it. */
    nowhere = arena_take(backend_arena(backend), 0, "nowhere");
    prompt_compute(engine, backend, &input, nowhere, nowhere);
    out->cost.flop_prompt = backend_flops(backend);
    out->text_bytes = arena_bytes_peak(backend_arena(backend));
    out->cost.scratch_bytes += out->text_bytes + backend_fixed_bytes(backend);
    out->cost.fixed_bytes += prompt_bytes(engine, steps);
out:
    backend_close(backend);
    return rc;
}

/* Encode, predict and decode.  `tiles` and `work` have room for size->tiles. */
static void rehearse(struct measured *out, const struct engine *engine, struct backend *backend,
                     const struct engine_size *size, struct engine_tile *tiles,
                     struct transformer_tile *work)
{
    float        *nowhere = arena_take(backend_arena(backend), 0, "nowhere");
    struct prompt prompt = {.conditioning = {.text = nowhere,
                                             .modulation = nowhere,
                                             .text_tokens = engine->facts.text_tokens,
                                             .steps = size->steps}};
    double        before = 0;

    compute_encode(engine, backend, NULL, size->w_px, size->h_px, NULL);
    out->cost.flop_encode = flop_lap(backend, &before);
    for (uint32_t t = 0; t < size->tiles; t++)
        tiles[t] = (struct engine_tile){.prompt = &prompt, .w_px = size->w_px, .h_px = size->h_px};
    compute_predict(engine, backend, work, tiles, size->tiles, 0);
    out->cost.flop_predict = flop_lap(backend, &before) / size->tiles;
    compute_decode(engine, backend, NULL, size->w_px, size->h_px, NULL);
    out->cost.flop_decode = flop_lap(backend, &before);
    out->tile_bytes = arena_bytes_peak(backend_arena(backend));
    out->cost.scratch_bytes += out->tile_bytes;
    out->cost.fixed_bytes += backend_fixed_bytes(backend);
}

static int measure(struct measured *out, const struct engine *engine,
                   const struct engine_size *size, struct err *err)
{
    int                      rc = ERR_OK;
    struct backend          *backend = NULL;
    struct engine_tile      *tiles = NULL;
    struct transformer_tile *work = NULL;

    *out = (struct measured){.cost.fixed_bytes = arena_bytes_peak(engine->vectors)};
    TRY(check_size(engine, size, err));
    TRY(measure_prompt(out, engine, size->steps, err));
    TRY(backend_open_dry(&backend, &engine->machine, err));
    TRY(os_alloc((void **)&tiles, size->tiles, sizeof *tiles, "a list of tiles", err));
    TRY(os_alloc((void **)&work, size->tiles, sizeof *work, "a list of tiles", err));
    rehearse(out, engine, backend, size, tiles, work);
out:
    os_free(work);
    os_free(tiles);
    backend_close(backend);
    return rc;
}

static uint64_t larger_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static int measure_all(struct measured *out, const struct engine *engine,
                       const struct engine_size *sizes, size_t size_count, struct err *err)
{
    int             rc = ERR_OK;
    struct measured one;

    *out = (struct measured){.tile_bytes = 0};
    for (size_t i = 0; i < size_count; i++) {
        struct engine_cost *all = &out->cost;
        TRY(measure(&one, engine, &sizes[i], err));
        out->tile_bytes = larger_u64(out->tile_bytes, one.tile_bytes);
        out->text_bytes = larger_u64(out->text_bytes, one.text_bytes);
        all->scratch_bytes = larger_u64(all->scratch_bytes, one.cost.scratch_bytes);
        all->fixed_bytes = larger_u64(all->fixed_bytes, one.cost.fixed_bytes);
        all->flop_prompt = larger(all->flop_prompt, one.cost.flop_prompt);
        all->flop_encode = larger(all->flop_encode, one.cost.flop_encode);
        all->flop_predict = larger(all->flop_predict, one.cost.flop_predict);
        all->flop_decode = larger(all->flop_decode, one.cost.flop_decode);
    }
out:
    return rc;
}
