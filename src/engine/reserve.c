/*
 * reserve.c - what sizes of pictures cost, and the machine made ready for them.
 *
 * Owns the order of a distant machine's preparation: measure, compare with what is free, open, copy
 * the weights that every step reads, rehearse.  The text encoders and the layers that make
 * modulation are never there: a prompt fetches each of their matrices when its turn comes, once.
 *
 * Read next: measure.c.
 */
#include "engine/compute_int.h"

static bool is_distant(const struct engine_options *options)
{
    return options->machine != ENGINE_CPU;
}

/* ----------------------------------------------------------------------------------- painters */

int engine_keep(struct networks *out, const struct engine *engine, struct backend *backend,
                struct err *err)
{
    int                 rc = ERR_OK;
    struct layer_loader loader = {
        .model = engine->model, .keeper = backend, .streamed = engine->budget.streamed};
    struct networks kept = {.clip = NULL};

    if (!backend_is_distant(backend)) {
        *out = engine->networks;
        transformer_set_mlp_rows(out->transformer, engine->mlp_rows);
        goto out;
    }
    TRY(transformer_load(&kept.transformer, &loader, err));
    transformer_set_mlp_rows(kept.transformer, engine->mlp_rows);
    TRY(vae_load(&kept.vae, &loader, err));
    TRY(backend_wait(backend, err));
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

int engine_check_device(const struct engine_options *options, const struct engine_cost *cost,
                        struct err *err)
{
    int                  rc = ERR_OK;
    struct engine_device device;
    uint64_t             need;
    char                 words[5][32];

    if (options->machine != ENGINE_CUDA) goto out;
    TRY(engine_find_device(&device, options, err));
    if (cost == NULL) goto out;
    need = cost->kept_bytes + cost->scratch_bytes + cost->fixed_bytes;
    if (need > device.bytes_free)
        RAISE(err, ERR_DEVICE_MEM, 0,
              "plan: GPU %d (%.60s) has %s free of %s, and %s are needed (%s of weights, %s of "
              "scratch); close other programs on it, give a smaller --tile, or use --device cpu",
              options->gpu, device.name, text_bytes(words[0], sizeof words[0], device.bytes_free),
              text_bytes(words[1], sizeof words[1], device.bytes_total),
              text_bytes(words[2], sizeof words[2], need),
              text_bytes(words[3], sizeof words[3], cost->kept_bytes),
              text_bytes(words[4], sizeof words[4], cost->scratch_bytes));
out:
    return rc;
}

/* ------------------------------------------------------------------------------------ reserve */

static int open_backend(struct engine *engine, const struct measured *measured, struct err *err)
{
    int rc = ERR_OK;

    engine->machine.arena_limit_bytes = measured->tile_bytes;
    engine->machine.kept_matrix_bytes = measured->kept_matrix_bytes;
    engine->machine.kept_vector_bytes = measured->kept_vector_bytes;
    engine->machine.parcels = measured->parcels;
    engine->machine.pinned_bytes = engine->budget.pinned_bytes;
    engine->text_machine.arena_limit_bytes = measured->text_bytes;
    TRY(backend_open(&engine->backend, &engine->machine, err));
    TRY(arena_seal(backend_arena(engine->backend), measured->tile_bytes, err));
    TRY(engine_keep(&engine->painters, engine, engine->backend, err));
out:
    return rc;
}

int engine_reserve(struct engine *engine, const struct engine_size *sizes, size_t size_count,
                   struct err *err)
{
    int             rc = ERR_OK;
    struct measured measured;

    must(engine->backend == NULL && size_count > 0);
    TRY(measure_sizes(&measured, engine, sizes, size_count, err));
    for (size_t i = 0; i < size_count; i++) {
        if (sizes[i].tiles > engine->tiles_max) engine->tiles_max = sizes[i].tiles;
        if (sizes[i].steps > engine->steps_max) engine->steps_max = sizes[i].steps;
    }
    TRY(os_alloc((void **)&engine->tiles, engine->tiles_max, sizeof *engine->tiles,
                 "a list of tiles", err));
    TRY(open_backend(engine, &measured, err));
    if (backend_is_distant(engine->backend)) TRY(measure_rehearse(engine, sizes, size_count, err));
out:
    return rc;
}
