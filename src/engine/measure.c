/*
 * measure.c - what a picture will take, found by doing it on the dry backend.
 *
 * Owns nothing and guesses nothing: the numbers are those of the very code that paints.
 *
 * Read next: compute.c, prompt.c.
 */
#include "engine/compute_int.h"

#include "engine/budget.h"

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
    if (size->tiles < 1 || size->steps < 1 || size->steps > SCHEDULE_STEPS_MAX ||
        size->steps_next > SCHEDULE_STEPS_MAX)
        RAISE(err, ERR_USAGE, 0,
              "%u rectangles at once, %u steps and then %u: needed are at least 1, 1..%d and 0..%d",
              size->tiles, size->steps, size->steps_next, SCHEDULE_STEPS_MAX, SCHEDULE_STEPS_MAX);
out:
    return rc;
}

static void raise_bytes(uint64_t *most, uint64_t bytes)
{
    if (bytes > *most) *most = bytes;
}

/* FLOPs asked for since `*before`, which moves on. */
static double lap_of(const struct backend *backend, double *before)
{
    double all = backend_flops(backend), lap = all - *before;

    *before = all;
    return lap;
}

/* An address that arithmetic may start from; nothing reads it. */
static float *nowhere(struct backend *backend)
{
    return arena_take(backend_arena(backend), 0, "nowhere");
}

/* Of size number `index`, as all that follows. */
static int measure_prompt(struct measured *out, const struct engine *engine, size_t index,
                          const struct engine_size *size, struct err *err)
{
    int                 rc = ERR_OK;
    struct backend     *backend = NULL;
    struct schedule     any = {.sigma = {0}};
    struct prompt_input input = {.clip_count = clip_tokenizer_max(engine->clip_tokenizer),
                                 .stage_count = size->steps_next > 0 ? 2 : 1};
    double              before = 0;

    TRY(backend_open_dry(&backend, &engine->text_machine, err));
    for (uint32_t i = 0; i < input.stage_count; i++)
        input.stages[i] = (struct modulation_stage){any.sigma, nowhere(backend),
                                                    i == 0 ? size->steps : size->steps_next};
    prompt_compute(engine, backend, &input, nowhere(backend));
    out->cost.flop[index].prompt = lap_of(backend, &before);
    raise_bytes(&out->text_bytes, arena_bytes_peak(backend_arena(backend)));
    raise_bytes(&out->text_workspace_bytes, backend_fixed_bytes(backend));
    raise_bytes(&out->table_bytes, prompt_bytes(engine, size->steps, size->steps_next));
out:
    backend_close(backend);
    return rc;
}

/* Encode, predict and decode.  `tiles` and `work` have room for size->tiles. */
static void rehearse(struct measured *out, const struct compute *compute, size_t index,
                     const struct engine_size *size, struct engine_tile *tiles,
                     struct transformer_tile *work)
{
    struct backend *backend = compute->backend;
    struct prompt   prompt = {.conditioning = {.text = nowhere(backend),
                                               .modulation = nowhere(backend),
                                               .text_tokens = compute->engine->facts.text_tokens,
                                               .steps = size->steps}};
    double          before = backend_flops(backend);

    compute_encode(compute, NULL, size->w_px, size->h_px, NULL);
    out->cost.flop[index].encode = lap_of(backend, &before);
    for (uint32_t t = 0; t < size->tiles; t++)
        tiles[t] = (struct engine_tile){.prompt = &prompt, .w_px = size->w_px, .h_px = size->h_px};
    compute_predict(compute, work, tiles, size->tiles, 0);
    out->cost.flop[index].predict = lap_of(backend, &before) / size->tiles;
    compute_decode(compute, NULL, size->w_px, size->h_px, NULL);
    out->cost.flop[index].decode = lap_of(backend, &before);
    raise_bytes(&out->tile_bytes, arena_bytes_peak(backend_arena(backend)));
    raise_bytes(&out->tile_workspace_bytes, backend_fixed_bytes(backend));
}

static int rehearse_size(struct measured *out, const struct compute *compute, size_t index,
                         const struct engine_size *size, struct err *err)
{
    int                      rc = ERR_OK;
    struct engine_tile      *tiles = NULL;
    struct transformer_tile *work = NULL;

    TRY(os_alloc((void **)&tiles, size->tiles, sizeof *tiles, "a list of tiles", err));
    TRY(os_alloc((void **)&work, size->tiles, sizeof *work, "a list of tiles", err));
    rehearse(out, compute, index, size, tiles, work);
out:
    os_free(work);
    os_free(tiles);
    return rc;
}

static int measure_size(struct measured *out, const struct engine *engine, size_t index,
                        const struct engine_size *size, struct err *err)
{
    int                    rc = ERR_OK;
    struct backend        *backend = NULL;
    struct networks        painters = {.clip = NULL};
    struct backend_options machine = engine->machine;
    struct compute         compute = {.engine = engine, .painters = &painters};

    TRY(check_size(engine, size, err));
    TRY(measure_prompt(out, engine, index, size, err));
    TRY(backend_open_dry(&backend, &machine, err));
    compute.backend = backend;
    TRY(engine_keep(&painters, engine, backend, err));
    raise_bytes(&out->kept_matrix_bytes, backend_kept_matrix_bytes(backend));
    raise_bytes(&out->kept_vector_bytes, backend_kept_vector_bytes(backend));
    out->parcels = *backend_parcels(backend);
    TRY(rehearse_size(out, &compute, index, size, err));
out:
    engine_release(&painters, engine);
    backend_close(backend);
    return rc;
}

/* What the host gives to a distant machine's copies. */
static const uint64_t STAGING_BYTES = 128u << 20, WINDOWS_BYTES = 256u << 20;

/* Of the host, for weights that visit: their own copies, as far as the budget goes, or windows. */
static uint64_t pinned_bytes(const struct engine *engine, const struct parcel_sizes *parcels)
{
    uint64_t all = 0;

    for (uint32_t i = 0; i < parcels->count; i++)
        all += parcels->bytes[i];
    if (all <= engine->budget.pinned_bytes) return all;
    return engine->budget.pinned_bytes + WINDOWS_BYTES;
}

int measure_sizes(struct measured *out, const struct engine *engine,
                  const struct engine_size *sizes, size_t size_count, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t host_bytes;

    must(size_count <= ENGINE_SIZES_MAX);
    *out = (struct measured){.tile_bytes = 0};
    for (size_t i = 0; i < size_count; i++)
        TRY(measure_size(out, engine, i, &sizes[i], err));
    host_bytes = out->table_bytes + arena_bytes_peak(engine->vectors);
    out->cost.scratch_bytes = out->tile_bytes;
    out->cost.fixed_bytes = out->tile_workspace_bytes;
    if (engine->text_machine.machine != engine->machine.machine) {
        host_bytes += out->text_bytes + out->text_workspace_bytes;
    } else {
        out->cost.scratch_bytes += out->text_bytes;
        /* A workspace is each backend's own; a GPU's libraries are there once. */
        if (engine->machine.machine == MACHINE_CPU)
            out->cost.fixed_bytes += out->text_workspace_bytes;
    }
    if (engine->machine.machine == MACHINE_CPU) {
        out->cost.fixed_bytes += host_bytes;
        goto out;
    }
    /* Half as much again: biases are kept in two types. */
    out->cost.kept_bytes =
        out->kept_matrix_bytes + out->kept_vector_bytes * 3 / 2 + backend_ring_bytes(&out->parcels);
    out->cost.host_bytes = host_bytes + STAGING_BYTES + pinned_bytes(engine, &out->parcels);
out:
    return rc;
}

int measure_rehearse(const struct engine *engine, const struct engine_size *sizes,
                     size_t size_count, struct err *err)
{
    int             rc = ERR_OK;
    struct measured ignored = {.tile_bytes = 0};
    struct compute  compute = {
         .engine = engine, .painters = &engine->painters, .backend = engine->backend};

    backend_rehearse(engine->backend, true);
    for (size_t i = 0; i < size_count; i++)
        TRY(rehearse_size(&ignored, &compute, i, &sizes[i], err));
    TRY(backend_wait(engine->backend, err));
out:
    backend_rehearse(engine->backend, false);
    return rc;
}

/* ------------------------------------------------------------------------------ for a budget */

/* A question's own arena: what `compute` takes from now on is the answer. */
static void begin_question(const struct compute *compute)
{
    must(arena_mark(backend_arena(compute->backend)).offset == 0);
    arena_restart_peak(backend_arena(compute->backend));
}

static void answer(uint64_t *most, const struct compute *compute)
{
    raise_bytes(most, arena_bytes_peak(backend_arena(compute->backend)));
}

/* Scratch of encode and decode with strips of this level. */
static uint64_t measure_coders(const struct compute *compute, const struct engine_size *size,
                               uint32_t level)
{
    uint64_t bytes = 0;

    begin_question(compute);
    vae_limit(compute->painters->vae, level);
    compute_encode(compute, NULL, size->w_px, size->h_px, NULL);
    compute_decode(compute, NULL, size->w_px, size->h_px, NULL);
    answer(&bytes, compute);
    return bytes;
}

/* Scratch of `count` tiles that advance together. */
static uint64_t measure_predict(const struct compute *compute, const struct engine_size *size,
                                uint32_t count, int64_t mlp_rows)
{
    struct conditioning     nothing = {.text = nowhere(compute->backend),
                                       .modulation = nowhere(compute->backend),
                                       .text_tokens = compute->engine->facts.text_tokens,
                                       .steps = size->steps};
    struct prompt           prompt = {.conditioning = nothing};
    struct engine_tile      tiles[BUDGET_TILES_MAX];
    struct transformer_tile work[BUDGET_TILES_MAX];
    uint64_t                bytes = 0;

    must(count <= BUDGET_TILES_MAX);
    for (uint32_t t = 0; t < count; t++)
        tiles[t] = (struct engine_tile){.prompt = &prompt, .w_px = size->w_px, .h_px = size->h_px};
    begin_question(compute);
    transformer_set_mlp_rows(compute->painters->transformer, mlp_rows);
    compute_predict(compute, work, tiles, count, 0);
    answer(&bytes, compute);
    return bytes;
}

/* Of both backends, beside the five that a budget rounds up itself. */
enum { ARENAS_MORE = 4 };

/* What stays whatever is decided, and the blocks. */
static int measure_weights(struct budget_facts *out, const struct compute *compute, struct err *err)
{
    int                       rc = ERR_OK;
    const struct transformer *transformer = compute->painters->transformer;

    if (blocks_count(transformer) > BLOCKS_MAX)
        RAISE(err, ERR_FORMAT, 0, "model: its transformer has %u blocks and at most %d are planned",
              blocks_count(transformer), BLOCKS_MAX);
    out->block_count = blocks_count(transformer);
    /* Half as much again: biases are kept in two types. */
    out->ends_bytes = backend_kept_matrix_bytes(compute->backend) +
                      backend_kept_vector_bytes(compute->backend) * 3 / 2 +
                      ARENAS_MORE * BUDGET_GRANULE_BYTES;
    for (uint32_t i = 0; i < out->block_count; i++) {
        out->block_bytes[i] = blocks_bytes(transformer, i);
        out->ends_bytes -= out->block_bytes[i];
    }
    out->fixed_bytes = backend_fixed_bytes(compute->backend);
out:
    return rc;
}

/* Arithmetic of the blocks for the largest tile. */
static void measure_flop(struct budget_facts *out, const struct compute *compute,
                         const struct engine_size *size)
{
    double flop[BLOCKS_MAX];

    blocks_flop(compute->painters->transformer, compute->backend, size, &compute->engine->facts,
                flop);
    for (uint32_t i = 0; i < out->block_count; i++)
        out->block_flop[i] = fmax(out->block_flop[i], flop[i]);
}

/* Every number of tiles; more of them than are ever ready take no more. */
static void measure_predicts(struct budget_facts *out, const struct compute *compute,
                             const struct engine_size *size, int64_t mlp_rows, uint32_t level)
{
    uint32_t most = size->tiles < BUDGET_TILES_MAX ? size->tiles : BUDGET_TILES_MAX;
    uint64_t bytes = 0;

    for (uint32_t count = 1; count <= BUDGET_TILES_MAX; count++) {
        if (count <= most) bytes = measure_predict(compute, size, count, mlp_rows);
        raise_bytes(&out->predict_bytes[level][count], bytes);
    }
    if (most > out->tiles_most) out->tiles_most = most;
}

/* All that depends on sizes, of one machine that has every weight of a tile. */
static void measure_budget_sizes(struct budget_facts *out, const struct compute *compute,
                                 const struct engine_size *sizes, size_t size_count)
{
    for (size_t i = 0; i < size_count; i++) {
        measure_flop(out, compute, &sizes[i]);
        for (uint32_t level = 0; level < VAE_LEVELS; level++)
            raise_bytes(&out->coder_bytes[level], measure_coders(compute, &sizes[i], level));
        for (uint32_t level = 0; level < BUDGET_CHUNKS_MAX; level++)
            measure_predicts(out, compute, &sizes[i],
                             engine_mlp_rows(compute->engine, sizes, size_count, level), level);
    }
}

int measure_budget(struct budget_facts *out, const struct engine *engine,
                   const struct engine_size *sizes, size_t size_count, struct err *err)
{
    int             rc = ERR_OK;
    struct networks painters = {.clip = NULL};
    struct compute  compute = {.engine = engine, .painters = &painters};
    struct measured measured = {.tile_bytes = 0};

    must(size_count > 0 && size_count <= ENGINE_SIZES_MAX);
    must(engine->machine.machine != MACHINE_CPU);
    *out = (struct budget_facts){.mlp_levels = BUDGET_CHUNKS_MAX, .strip_levels = VAE_LEVELS};
    for (size_t i = 0; i < size_count; i++) {
        TRY(check_size(engine, &sizes[i], err));
        TRY(measure_prompt(&measured, engine, i, &sizes[i], err));
    }
    out->text_bytes = engine->text_machine.machine == MACHINE_CPU ? 0 : measured.text_bytes;
    TRY(backend_open_dry(&compute.backend, &engine->machine, err));
    TRY(engine_keep(&painters, engine, compute.backend, err));
    TRY(measure_weights(out, &compute, err));
    measure_budget_sizes(out, &compute, sizes, size_count);
out:
    engine_release(&painters, engine);
    backend_close(compute.backend);
    return rc;
}
