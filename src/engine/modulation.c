/*
 * modulation.c - how noise level, guidance and the pooled text steer every block.
 *
 * A block's scales, shifts and gates depend on (sigma, guidance, pooled vector) only, never on the
 * picture.  So those of all steps are made once a prompt, while a step's weights pass once; the
 * quarter of the model that makes them is not read again while tiles are painted.
 *
 *     vec = MLP_time(waves(1000 sigma)) + MLP_guidance(waves(1000 guidance)) + MLP_text(pooled)
 *     modulation = linear(SiLU(vec)), one linear for each place that is modulated
 *
 * One step is a row of modulation_count floats, H = hidden:
 *
 *     12 H each double block   image: shift, scale, gate, shift, scale, gate; then text: the same
 *      3 H each single block   shift, scale, gate
 *      2 H                     final layer: scale, shift (this one the other way round)
 *
 * Scratch for N steps, bytes: 4 N (8 H + 256) at most.  All of it is fp32 at both ends.
 */
#include "engine/transformer_int.h"

#include <math.h>

int64_t modulation_count(const struct transformer *transformer)
{
    const struct transformer_config *config = &transformer->config;

    return config->hidden * (12 * config->doubles + 3 * config->singles + 2);
}

/* Cosines first.  Exponent, frequency and angle are rounded to fp32 one by one, as the model was
 * trained and as the reference does: at thousands of radians that rounding is larger than anything
 * else in which two fp32 implementations differ. */
static void put_waves(struct backend *backend, struct matrix row, double value)
{
    enum { HALF = MODULATION_WAVES / 2 };
    const float step = (float)-log(10000.0);
    float       waves[MODULATION_WAVES];

    for (int i = 0; i < HALF; i++) {
        float exponent = step * (float)i / HALF;
        float frequency = (float)exp((double)exponent);
        float angle = (float)value * frequency;
        waves[i] = (float)cos((double)angle);
        waves[HALF + i] = (float)sin((double)angle);
    }
    backend_upload(backend, row, waves);
}

static void embed(struct backend *backend, const struct embedder *embedder, struct matrix y,
                  struct matrix x)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    struct matrix     inner = backend_take(backend, DTYPE_F32, y.rows, y.cols, "embedder");

    layer_run(backend, inner, x, &embedder->first, ACT_SILU);
    layer_run(backend, y, inner, &embedder->second, ACT_NONE);
    arena_rewind(backend_arena(backend), mark);
}

/* vec_out [steps, H] */
static void make_vec(const struct transformer *transformer, struct backend *backend,
                     const struct modulation_request *request, struct matrix vec_out)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    int64_t           h = transformer->config.hidden;
    struct matrix     waves =
        backend_take(backend, DTYPE_F32, request->steps, MODULATION_WAVES, "sinusoids");
    struct matrix constant = backend_take(backend, DTYPE_F32, 1, h, "constant part of vec");
    struct matrix part = backend_take(backend, DTYPE_F32, 1, h, "guidance part of vec");

    for (uint32_t step = 0; step < request->steps; step++)
        put_waves(backend, matrix_rows(waves, step, 1), 1000.0 * (double)request->sigmas[step]);
    embed(backend, &transformer->time, vec_out, waves);
    embed(backend, &transformer->pooled, constant, request->pooled);
    if (transformer->config.guidance) {
        struct matrix wave = matrix_rows(waves, 0, 1);
        put_waves(backend, wave, 1000.0 * request->guidance);
        embed(backend, &transformer->guidance, part, wave);
        backend_add(backend, constant, part);
    }
    for (uint32_t step = 0; step < request->steps; step++)
        backend_add(backend, matrix_rows(vec_out, step, 1), constant);
    arena_rewind(backend_arena(backend), mark);
}

/* One layer's part for all steps, each to its place in the step's row. */
static void put_part(struct backend *backend, const struct linear *linear, struct matrix vec,
                     float *target, int64_t stride)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    struct matrix     y = backend_take(backend, DTYPE_F32, vec.rows, linear->w.rows, "modulation");

    layer_run(backend, y, vec, linear, ACT_NONE);
    for (int64_t step = 0; step < vec.rows; step++)
        backend_download(backend, target + step * stride, matrix_rows(y, step, 1));
    arena_rewind(backend_arena(backend), mark);
}

void modulation_make(const struct transformer *transformer, struct backend *backend,
                     const struct modulation_request *request, float *modulation_out)
{
    const struct transformer_config *config = &transformer->config;
    struct arena_mark                mark = arena_mark(backend_arena(backend));
    int64_t                          h = config->hidden, stride = modulation_count(transformer);
    float                           *target = modulation_out;
    struct matrix vec = backend_take(backend, DTYPE_F32, request->steps, h, "vec of all steps");

    must(request->steps > 0 && request->pooled.cols == config->pooled_width);
    make_vec(transformer, backend, request, vec);
    backend_silu(backend, vec, vec);
    for (int64_t i = 0; i < config->doubles; i++, target += 12 * h) {
        put_part(backend, &transformer->doubles[i].image.modulation, vec, target, stride);
        put_part(backend, &transformer->doubles[i].text.modulation, vec, target + 6 * h, stride);
    }
    for (int64_t i = 0; i < config->singles; i++, target += 3 * h)
        put_part(backend, &transformer->singles[i].modulation, vec, target, stride);
    put_part(backend, &transformer->final_scale, vec, target, stride);
    put_part(backend, &transformer->final_shift, vec, target + h, stride);
    must(target + 2 * h == modulation_out + stride);
    arena_rewind(backend_arena(backend), mark);
}
