/*
 * compute.c - the engine's primitives on any backend: host floats in, host floats out.
 *
 * Owns nothing.  On the dry backend these functions only measure, and what they measured is what
 * the arena of the real one is sealed at.  So none of them looks at data: both runs take the same
 * bytes.
 *
 * Read next: transformer.c, vae.c.
 */
#include "engine/compute_int.h"

void compute_encode(const struct compute *compute, const float *rgb, int32_t w_px, int32_t h_px,
                    float *latent_out)
{
    const struct engine *engine = compute->engine;
    struct backend      *backend = compute->backend;
    struct arena_mark    mark = arena_mark(backend_arena(backend));
    int64_t       factor = engine->facts.px_per_lat, cells = (h_px / factor) * (w_px / factor);
    struct matrix latent =
        backend_take(backend, DTYPE_F32, cells, engine->facts.latent_channels, "latent");
    struct matrix pixels = backend_take(backend, DTYPE_F32, (int64_t)h_px * w_px, 3, "pixels");

    backend_upload(backend, pixels, rgb);
    vae_encode(compute->painters->vae, backend, pixels, w_px, h_px, latent);
    backend_download(backend, latent_out, latent);
    arena_rewind(backend_arena(backend), mark);
}

void compute_decode(const struct compute *compute, const float *latent, int32_t w_px, int32_t h_px,
                    float *rgb_out)
{
    const struct engine *engine = compute->engine;
    struct backend      *backend = compute->backend;
    struct arena_mark    mark = arena_mark(backend_arena(backend));
    int64_t       factor = engine->facts.px_per_lat, cells = (h_px / factor) * (w_px / factor);
    struct matrix source =
        backend_take(backend, DTYPE_F32, cells, engine->facts.latent_channels, "latent");
    struct matrix pixels = backend_take(backend, DTYPE_F32, (int64_t)h_px * w_px, 3, "pixels");

    backend_upload(backend, source, latent);
    vae_decode(compute->painters->vae, backend, source, w_px, h_px, pixels);
    backend_download(backend, rgb_out, pixels);
    arena_rewind(backend_arena(backend), mark);
}

/* A tile's tokens, from its latent on the host. */
static void pack(const struct engine *engine, struct backend *backend,
                 const struct transformer_tile *work, const float *latent)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    int32_t           h = 2 * work->h_tokens, w = 2 * work->w_tokens;
    int32_t           channels = engine->facts.latent_channels;
    struct matrix     cells = backend_take(backend, DTYPE_F32, (int64_t)h * w, channels, "latent");

    backend_upload(backend, cells, latent);
    backend_pack_latent(backend, work->tokens, cells.data, h, w, channels);
    arena_rewind(backend_arena(backend), mark);
}

static void unpack(const struct engine *engine, struct backend *backend,
                   const struct transformer_tile *work, float *velocity_out)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    int32_t           h = 2 * work->h_tokens, w = 2 * work->w_tokens;
    int32_t           channels = engine->facts.latent_channels;
    struct matrix cells = backend_take(backend, DTYPE_F32, (int64_t)h * w, channels, "velocity");

    backend_unpack_latent(backend, cells.data, work->velocity, h, w, channels);
    backend_download(backend, velocity_out, cells);
    arena_rewind(backend_arena(backend), mark);
}

void compute_predict(const struct compute *compute, struct transformer_tile *work,
                     const struct engine_tile *tiles, uint32_t count, uint32_t step)
{
    const struct engine *engine = compute->engine;
    struct backend      *backend = compute->backend;
    struct arena_mark    mark = arena_mark(backend_arena(backend));
    int64_t              channels = 4 * (int64_t)engine->facts.latent_channels;

    for (uint32_t t = 0; t < count; t++) {
        int32_t h = tiles[t].h_px / engine->facts.px_per_token;
        int32_t w = tiles[t].w_px / engine->facts.px_per_token;
        int64_t rows = (int64_t)h * w;
        work[t] = (struct transformer_tile){
            .conditioning = &tiles[t].prompt->conditioning, .h_tokens = h, .w_tokens = w};
        work[t].tokens = backend_take(backend, DTYPE_F32, rows, channels, "tokens");
        work[t].velocity = work[t].tokens; /* nobody reads the one when the other is written */
        pack(engine, backend, &work[t], tiles[t].latent);
    }
    transformer_forward(compute->painters->transformer, backend, work, count, step);
    for (uint32_t t = 0; t < count; t++)
        unpack(engine, backend, &work[t], tiles[t].velocity);
    arena_rewind(backend_arena(backend), mark);
}
