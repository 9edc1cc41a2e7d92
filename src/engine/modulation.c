/*
 * modulation.c - how noise level, guidance and the pooled text steer every block.
 *
 * A block's scales, shifts and gates depend on (sigma, guidance, pooled vector) only, never on the
 * picture.  So those of all steps, of several stages of a picture where there are any, are made at
 * once, while these weights pass once; the quarter of the model that makes them is not read again
 * while tiles are painted.  Each stage has products of its own: what becomes of a row may depend on
 * how many others a product has.
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
 * Scratch for N steps of all stages, bytes: 4 N (8 H + 256) at most.  All of it is fp32 at both
 * ends.
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

/* What is the same for all steps; constant_out [1, H] */
static void make_constant(const struct transformer *transformer, struct backend *backend,
                          const struct modulation_request *request, struct matrix constant_out)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    struct matrix     wave = backend_take(backend, DTYPE_F32, 1, MODULATION_WAVES, "sinusoids");
    struct matrix     part =
        backend_take(backend, DTYPE_F32, 1, transformer->config.hidden, "guidance part of vec");

    embed(backend, &transformer->pooled, constant_out, request->pooled);
    if (transformer->config.guidance) {
        put_waves(backend, wave, 1000.0 * request->guidance);
        embed(backend, &transformer->guidance, part, wave);
        backend_add(backend, constant_out, part);
    }
    arena_rewind(backend_arena(backend), mark);
}

/* vec_out [steps, H] */
static void make_vec(const struct transformer *transformer, struct backend *backend,
                     const struct modulation_stage *stage, struct matrix constant,
                     struct matrix vec_out)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    struct matrix     waves =
        backend_take(backend, DTYPE_F32, stage->steps, MODULATION_WAVES, "sinusoids");

    for (uint32_t step = 0; step < stage->steps; step++)
        put_waves(backend, matrix_rows(waves, step, 1), 1000.0 * (double)stage->sigmas[step]);
    embed(backend, &transformer->time, vec_out, waves);
    for (uint32_t step = 0; step < stage->steps; step++)
        backend_add(backend, matrix_rows(vec_out, step, 1), constant);
    backend_silu(backend, vec_out, vec_out);
    arena_rewind(backend_arena(backend), mark);
}

/* What the layers read and where their results go. */
struct writing {
    struct backend                  *backend;
    const struct modulation_request *request;
    struct matrix                    vecs[MODULATION_STAGES_MAX];
    int64_t                          at, stride; /* floats of a step that are written, and all */
};

/* The next layer's part for all steps, each to its place in the step's row. */
static void put_part(struct writing *writing, const struct linear *linear)
{
    struct backend   *backend = writing->backend;
    struct arena_mark mark = arena_mark(backend_arena(backend));
    uint32_t          count = writing->request->stage_count;
    struct matrix     y[MODULATION_STAGES_MAX];

    for (uint32_t s = 0; s < count; s++)
        y[s] =
            backend_take(backend, DTYPE_F32, writing->vecs[s].rows, linear->w.rows, "modulation");
    layer_run_each(backend, y, writing->vecs, count, linear, ACT_NONE);
    for (uint32_t s = 0; s < count; s++) {
        float *table = writing->request->stages[s].table_out + writing->at;
        for (int64_t step = 0; step < y[s].rows; step++)
            backend_download(backend, table + step * writing->stride, matrix_rows(y[s], step, 1));
    }
    writing->at += linear->w.rows;
    arena_rewind(backend_arena(backend), mark);
}

void modulation_make(const struct transformer *transformer, struct backend *backend,
                     const struct modulation_request *request)
{
    const struct transformer_config *config = &transformer->config;
    struct arena_mark                mark = arena_mark(backend_arena(backend));
    struct matrix                    constant =
        backend_take(backend, DTYPE_F32, 1, config->hidden, "constant part of vec");
    struct writing writing = {
        .backend = backend, .request = request, .stride = modulation_count(transformer)};

    must(request->stage_count > 0 && request->stage_count <= MODULATION_STAGES_MAX);
    must(request->pooled.cols == config->pooled_width);
    make_constant(transformer, backend, request, constant);
    for (uint32_t s = 0; s < request->stage_count; s++) {
        const struct modulation_stage *stage = &request->stages[s];
        must(stage->steps > 0);
        writing.vecs[s] =
            backend_take(backend, DTYPE_F32, stage->steps, config->hidden, "vec of all steps");
        make_vec(transformer, backend, stage, constant, writing.vecs[s]);
    }
    for (int64_t i = 0; i < config->doubles; i++) {
        put_part(&writing, &transformer->doubles[i].image.modulation);
        put_part(&writing, &transformer->doubles[i].text.modulation);
    }
    for (int64_t i = 0; i < config->singles; i++)
        put_part(&writing, &transformer->singles[i].modulation);
    put_part(&writing, &transformer->final_scale);
    put_part(&writing, &transformer->final_shift);
    must(writing.at == writing.stride);
    arena_rewind(backend_arena(backend), mark);
}
