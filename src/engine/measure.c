/*
 * measure.c - what a picture will take, found by doing it on the dry backend.
 *
 * Owns nothing and guesses nothing: the numbers are those of the very code that paints.
 *
 * Read next: compute.c, prompt.c.
 */
#include "engine/engine_int.h"

#include <math.h>

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

static void raise_bytes(uint64_t *most, uint64_t bytes)
{
    if (bytes > *most) *most = bytes;
}

/* FLOPs asked for since `*before`, which moves on. */
static void raise_flop(double *most, const struct backend *backend, double *before)
{
    double all = backend_flops(backend), lap = all - *before;

    *before = all;
    if (lap > *most) *most = lap;
}

/* An address that arithmetic may start from; nothing reads it. */
static float *nowhere(struct backend *backend)
{
    return arena_take(backend_arena(backend), 0, "nowhere");
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
    double              before = 0;

    TRY(backend_open_dry(&backend, &engine->text_machine, err));
    prompt_compute(engine, backend, &input, nowhere(backend), nowhere(backend));
    raise_flop(&out->cost.flop_prompt, backend, &before);
    raise_bytes(&out->text_bytes, arena_bytes_peak(backend_arena(backend)));
    raise_bytes(&out->text_workspace_bytes, backend_fixed_bytes(backend));
    raise_bytes(&out->table_bytes, prompt_bytes(engine, steps));
out:
    backend_close(backend);
    return rc;
}

/* Encode, predict and decode.  `tiles` and `work` have room for size->tiles. */
static void rehearse(struct measured *out, const struct engine *engine, struct backend *backend,
                     const struct engine_size *size, struct engine_tile *tiles,
                     struct transformer_tile *work)
{
    struct prompt prompt = {.conditioning = {.text = nowhere(backend),
                                             .modulation = nowhere(backend),
                                             .text_tokens = engine->facts.text_tokens,
                                             .steps = size->steps}};
    double        before = 0, predict = 0;

    compute_encode(engine, backend, NULL, size->w_px, size->h_px, NULL);
    raise_flop(&out->cost.flop_encode, backend, &before);
    for (uint32_t t = 0; t < size->tiles; t++)
        tiles[t] = (struct engine_tile){.prompt = &prompt, .w_px = size->w_px, .h_px = size->h_px};
    compute_predict(engine, backend, work, tiles, size->tiles, 0);
    raise_flop(&predict, backend, &before);
    out->cost.flop_predict = fmax(out->cost.flop_predict, predict / size->tiles);
    compute_decode(engine, backend, NULL, size->w_px, size->h_px, NULL);
    raise_flop(&out->cost.flop_decode, backend, &before);
    raise_bytes(&out->tile_bytes, arena_bytes_peak(backend_arena(backend)));
    raise_bytes(&out->tile_workspace_bytes, backend_fixed_bytes(backend));
}

static int measure_size(struct measured *out, const struct engine *engine,
                        const struct engine_size *size, struct err *err)
{
    int                      rc = ERR_OK;
    struct backend          *backend = NULL;
    struct engine_tile      *tiles = NULL;
    struct transformer_tile *work = NULL;

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

int measure_sizes(struct measured *out, const struct engine *engine,
                  const struct engine_size *sizes, size_t size_count, struct err *err)
{
    int rc = ERR_OK;

    *out = (struct measured){.tile_bytes = 0};
    for (size_t i = 0; i < size_count; i++)
        TRY(measure_size(out, engine, &sizes[i], err));
    out->cost.scratch_bytes = out->tile_bytes + out->text_bytes;
    out->cost.fixed_bytes = out->tile_workspace_bytes + out->text_workspace_bytes +
                            out->table_bytes + arena_bytes_peak(engine->vectors);
out:
    return rc;
}
