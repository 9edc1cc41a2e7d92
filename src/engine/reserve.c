/*
 * reserve.c - what sizes of pictures cost, and the machine made ready for them.
 *
 * Owns the order of a distant machine's preparation: decide who gets how much, measure, open, copy
 * the weights that every step reads, rehearse; and the way down when there is less than was
 * planned.  The text encoders and the layers that make modulation are never there: a prompt fetches
 * each of their matrices when its turn comes, once.
 *
 * Read next: measure.c.
 */
#include "engine/compute_int.h"

#include <stdio.h>
#include <string.h>

static bool is_distant(const struct engine_options *options)
{
    return options->machine != ENGINE_CPU;
}

/* ----------------------------------------------------------------------------------- painters */

static void tell_upload(const struct backend *backend, double seconds)
{
    struct backend_uploads uploads = backend_uploads(backend);
    char                   words[32];

    if (uploads.bytes == 0) return;
    log_line(LOG_INFO,
             "weights: %s kept after %.2f s (%.1f GB/s): read in %.2f s, waited for %.2f s",
             text_bytes(words, sizeof words, uploads.bytes), seconds,
             1e-9 * (double)uploads.bytes / seconds, uploads.fill_seconds, uploads.wait_seconds);
}

int engine_keep(struct networks *out, const struct engine *engine, struct backend *backend,
                struct err *err)
{
    int                 rc = ERR_OK;
    struct layer_loader loader = {
        .model = engine->model, .keeper = backend, .streamed = engine->budget.streamed};
    struct networks kept = {.clip = NULL};
    const double    began = os_seconds();

    if (!backend_is_distant(backend)) {
        *out = engine->networks;
        transformer_set_mlp_rows(out->transformer, engine->mlp_rows);
        goto out;
    }
    TRY(transformer_load(&kept.transformer, &loader, err));
    transformer_set_mlp_rows(kept.transformer, engine->mlp_rows);
    TRY(vae_load(&kept.vae, &loader, err));
    vae_limit(kept.vae, engine->budget.strip_level);
    TRY(backend_wait(backend, err));
    tell_upload(backend, os_seconds() - began);
    *out = kept;
    kept = (struct networks){.clip = NULL};
out:
    transformer_free(kept.transformer);
    vae_free(kept.vae);
    return rc;
}

void engine_release(struct networks *networks, const struct engine *engine)
{
    if (networks->transformer != engine->networks.transformer)
        transformer_free(networks->transformer);
    if (networks->vae != engine->networks.vae) vae_free(networks->vae);
    *networks = (struct networks){.clip = NULL};
}

/* ------------------------------------------------------------------------------------ measure */

int engine_estimate(struct engine_cost *cost_out, struct engine_facts *facts_out,
                    const struct engine_options *options, const struct engine_size *sizes,
                    size_t size_count, struct err *err)
{
    int             rc = ERR_OK;
    struct engine  *engine = NULL;
    struct measured measured;

    /* What a distant machine keeps depends on the types of the weights. */
    TRY(is_distant(options) ? engine_open(&engine, options, err)
                            : engine_open_dry(&engine, options, err));
    TRY(measure_sizes(&measured, engine, sizes, size_count, err));
    *cost_out = measured.cost;
    *facts_out = engine->facts;
out:
    engine_close(engine);
    return rc;
}

/* ------------------------------------------------------------------------------------ prepare */

/* One pool under the arenas of both backends: a prompt's memory is a tile's afterwards. */
static int open_pool(struct engine *engine, struct err *err)
{
    const struct engine_memory *memory = &engine->memory;
    struct pool_options         options = {.ops = backend_vmem(engine->machine.machine),
                                           .device = engine->machine.device,
                                           .cap_bytes = engine->needs.allowed.vram_bytes -
                                                        engine->budget.fixed_bytes,
                                           .segment_bytes = memory->segment_bytes,
                                           .start_bytes = memory->pool_bytes,
                                           .idle_share_max = memory->fragmentation_max,
                                           .expandable = memory->expandable};
    int                         rc = pool_open(&engine->pool, &options, err);

    engine->machine.pool = engine->pool;
    if (engine->text_machine.machine == engine->machine.machine)
        engine->text_machine.pool = engine->pool;
    return rc;
}

static int open_backend(struct engine *engine, const struct measured *measured, struct err *err)
{
    int          rc = ERR_OK;
    const double began = os_seconds();

    engine->machine.arena_limit_bytes = measured->tile_bytes;
    engine->machine.kept_matrix_bytes = measured->kept_matrix_bytes;
    engine->machine.kept_vector_bytes = measured->kept_vector_bytes;
    engine->machine.parcels = measured->parcels;
    engine->machine.pinned_bytes = engine->budget.pinned_bytes;
    engine->text_machine.arena_limit_bytes = measured->text_bytes;
    TRY(backend_open(&engine->backend, &engine->machine, err));
    TRY(arena_seal(backend_arena(engine->backend), measured->tile_bytes, err));
    if (backend_is_distant(engine->backend))
        log_line(LOG_INFO, "GPU opened in %.2f s", os_seconds() - began);
    TRY(engine_keep(&engine->painters, engine, engine->backend, err));
out:
    return rc;
}

static void close_backend(struct engine *engine)
{
    engine_release(&engine->painters, engine);
    backend_close(engine->backend);
    engine->backend = NULL;
}

/* Everything that tiles take, as the budget says. */
static int prepare(struct engine *engine, struct err *err)
{
    int                rc = ERR_OK;
    struct engine_size sizes[ENGINE_SIZES_MAX];
    size_t             count = engine->size_count;
    struct measured    measured;
    bool               capped = engine->budget.tiles_per_pass > 0;
    double             began;

    engine->tiles_max = 1;
    for (size_t i = 0; i < count; i++) {
        sizes[i] = engine->sizes[i];
        if (capped && sizes[i].tiles > engine->budget.tiles_per_pass)
            sizes[i].tiles = engine->budget.tiles_per_pass;
        if (sizes[i].tiles > engine->tiles_max) engine->tiles_max = sizes[i].tiles;
    }
    if (capped) engine->mlp_rows = engine_mlp_rows(engine, sizes, count, engine->budget.mlp_level);
    TRY(measure_sizes(&measured, engine, sizes, count, err));
    if (capped && engine->pool == NULL) TRY(open_pool(engine, err));
    TRY(open_backend(engine, &measured, err));
    if (!backend_is_distant(engine->backend)) goto out;
    began = os_seconds();
    TRY(measure_rehearse(engine, sizes, count, err));
    log_line(LOG_INFO, "sizes rehearsed in %.2f s", os_seconds() - began);
    prompt_pin_all(engine); /* after what cannot be done without */
out:
    if (rc != ERR_OK) close_backend(engine);
    return rc;
}

int64_t engine_mlp_rows(const struct engine *engine, const struct engine_size *sizes,
                        size_t size_count, uint32_t level)
{
    int64_t side = engine->facts.px_per_token, most = 0;

    for (size_t i = 0; i < size_count; i++)
        most = max_i64(most, engine->facts.text_tokens +
                                 (int64_t)(sizes[i].w_px / side) * (sizes[i].h_px / side));
    if (level == 0) return 0;
    most = round_up_i64(ceil_div_i64(most, (int64_t)1 << level), TRANSFORMER_MLP_STEP);
    return max_i64(most, TRANSFORMER_MLP_LEAST);
}

/* ------------------------------------------------------------------------------------- ladder */

static void tell_gain(char *words_out, size_t capacity, enum budget_rung rung, uint64_t gained)
{
    char words[32];

    (void)snprintf(words_out, capacity, "%s: %s", budget_rung_name(rung),
                   text_bytes(words, sizeof words, gained));
}

/* As far down the budget as `bytes` ask for, or as it goes; what is open does not know yet. */
static bool step_down(struct engine *engine, uint64_t bytes, char *words_out, size_t capacity)
{
    uint64_t gained[RUNG_COUNT];
    size_t   at = 0;

    if (budget_relieve(&engine->budget, &engine->needs, bytes, gained) == 0) return false;
    for (int rung = 0; rung < RUNG_COUNT; rung++) {
        if (gained[rung] == 0) continue;
        if (at > 0) at += (size_t)snprintf(words_out + at, capacity - at, ", ");
        if (at >= capacity) break;
        tell_gain(words_out + at, capacity - at, (enum budget_rung)rung, gained[rung]);
        at += strlen(words_out + at);
    }
    return true;
}

/* What a GPU is short of beside what the pool kept, now that nothing is open; 1: it does not say.
 * A step of that size spares the weights from being copied once for every block that goes. */
static uint64_t shortage(const struct engine *engine)
{
    struct engine_options here = {.machine = ENGINE_CUDA, .gpu = engine->machine.device};
    struct engine_device  device;
    struct pool_counts    counts;
    struct err            ignored = {.code = ERR_OK};
    uint64_t              need, have;

    if (engine->machine.machine != MACHINE_CUDA) return 1;
    if (engine_find_device(&device, &here, &ignored) != ERR_OK) return 1;
    pool_counts(engine->pool, &counts);
    need = budget_device_bytes(&engine->budget, &engine->needs) - engine->budget.fixed_bytes;
    have = counts.device + device.bytes_free;
    return need > have ? need - have : 1;
}

/* Prepares, and goes down the ladder for as long as the GPU has less than was planned. */
static int prepare_somehow(struct engine *engine, struct err *err)
{
    char words[256];
    int  rc;

    while ((rc = prepare(engine, err)) == ERR_DEVICE_MEM && engine->pool != NULL &&
           step_down(engine, shortage(engine), words, sizeof words)) {
        log_line(LOG_WARN, "%s; %s", err->text, words);
        *err = (struct err){.code = ERR_OK};
    }
    return rc;
}

bool engine_yield_memory(struct engine *engine, char *words_out, size_t capacity)
{
    struct err err = {.code = ERR_OK};
    uint64_t   idle;

    if (engine->pool == NULL) return false;
    idle = pool_trim(engine->pool, UINT64_MAX);
    if (idle > 0) tell_gain(words_out, capacity, RUNG_REUSE, idle);
    if (idle > 0) return true;
    if (!step_down(engine, max_u64(engine->memory.segment_bytes, 1), words_out, capacity))
        return false;
    close_backend(engine);
    if (prepare_somehow(engine, &err) == ERR_OK) return true;
    log_line(LOG_WARN, "%s", err.text);
    return false;
}

void engine_lend_memory(struct engine *engine)
{
    if (engine->text_machine.pool != NULL) arena_trim(backend_arena(engine->backend), 0);
}

int engine_reclaim_memory(struct engine *engine, struct err *err)
{
    int rc = ERR_OK;

    if (engine->text_machine.pool == NULL) goto out;
    TRY(arena_seal(backend_arena(engine->backend), engine->machine.arena_limit_bytes, err));
out:
    if (rc != ERR_OK) close_backend(engine);
    return rc;
}

/* ------------------------------------------------------------------------------------ reserve */

int engine_reserve(struct engine *engine, const struct engine_size *sizes, size_t size_count,
                   struct err *err)
{
    int      rc = ERR_OK;
    uint32_t most = 1;

    must(engine->backend == NULL && size_count > 0 && size_count <= ENGINE_SIZES_MAX);
    engine->size_count = size_count;
    for (size_t i = 0; i < size_count; i++) {
        engine->sizes[i] = sizes[i];
        if (sizes[i].tiles > most) most = sizes[i].tiles;
        if (sizes[i].steps > engine->steps_max) engine->steps_max = sizes[i].steps;
        if (sizes[i].steps_next > engine->steps_next_max)
            engine->steps_next_max = sizes[i].steps_next;
    }
    TRY(os_alloc((void **)&engine->tiles, most, sizeof *engine->tiles, "a list of tiles", err));
    /* What a cap leaves is shared out; without one all that the sizes take is taken. */
    if (engine->machine.machine != MACHINE_CPU && engine->memory.vram_bytes > 0)
        TRY(engine_decide(&engine->budget, &engine->needs, engine, &engine->memory, engine->sizes,
                          size_count, err));
    TRY(prepare_somehow(engine, err));
out:
    if (rc != ERR_OK) { /* it may be tried again with other sizes */
        os_free(engine->tiles);
        engine->tiles = NULL;
        engine->size_count = 0;
    }
    return rc;
}
