/*
 * engine_trace.h - what the engine asks of its scratch arena, with the time of each last use.
 *
 * The dry backend gets operations that perform nothing and say which operands they touch.  So the
 * trace knows when a stack keeps what nobody needs any more, which rewinds alone do not tell.
 */
#ifndef MURAL_ENGINE_TRACE_H
#define MURAL_ENGINE_TRACE_H

#include "backend/backend_int.h"
#include "engine/compute_int.h"
#include "memory/trace.h"
#include "tests/bench/solve.h"
#include "tests/test.h"
#include "weights/weights.h"

/* ------------------------------------------------------------------------------ touching */

static inline int touch(struct backend *backend, const void *data)
{
    arena_touch(backend->arena, data);
    return 0;
}
static inline int touch_2(struct backend *backend, struct matrix a, struct matrix b)
{
    return touch(backend, a.data) + touch(backend, b.data);
}
static inline int touch_3(struct backend *backend, struct matrix a, struct matrix b, const void *c)
{
    return touch_2(backend, a, b) + touch(backend, c);
}
static inline int touch_linear(struct backend *backend, struct matrix y, struct matrix x,
                               struct matrix w, const float *bias, enum activation act)
{
    (void)act;
    return touch_3(backend, y, x, bias) + touch(backend, w.data);
}
static inline int touch_attention(struct backend *backend, const struct attention_request *r)
{
    return touch_3(backend, r->q, r->k, r->v.data) + touch_3(backend, r->out, r->out, r->bias);
}
static inline int touch_conv2d(struct backend *backend, const struct conv_request *r)
{
    return touch_3(backend, r->y, r->x, r->bias) + touch(backend, r->w.data);
}
static inline int touch_qk_norm_rope(struct backend *backend, const struct qk_rope_request *r)
{
    return touch_3(backend, r->q, r->k, r->q_weight) + touch(backend, r->k_weight) +
           touch(backend, r->cos) + touch(backend, r->sin);
}
static inline int touch_layer_norm(struct backend *backend, struct matrix y, struct matrix x,
                                   const float *scale, const float *shift, bool plus, float eps)
{
    (void)plus, (void)eps;
    return touch_3(backend, y, x, scale) + touch(backend, shift);
}
static inline int touch_rms_norm(struct backend *backend, struct matrix y, struct matrix x,
                                 const float *weight, float eps)
{
    (void)eps;
    return touch_3(backend, y, x, weight);
}
static inline int touch_group_merge(struct backend *backend, struct matrix table,
                                    struct matrix stats, const float *weight, int64_t rows,
                                    int32_t groups, float eps)
{
    (void)rows, (void)groups, (void)eps;
    return touch_3(backend, table, stats, weight);
}
static inline int touch_group_apply(struct backend *backend, struct matrix y, struct matrix x,
                                    struct matrix table, const float *bias, bool silu)
{
    (void)silu;
    return touch_3(backend, y, x, bias) + touch(backend, table.data);
}
static inline int touch_gate_add(struct backend *backend, struct matrix x, struct matrix y,
                                 const float *gate)
{
    return touch_3(backend, x, y, gate);
}
static inline int touch_gate_norm(struct backend *backend, const struct gate_norm_request *r)
{
    return touch_3(backend, r->out, r->x, r->gate) + touch_3(backend, r->y, r->y, r->scale) +
           touch(backend, r->shift);
}
static inline int touch_gelu_mul(struct backend *backend, struct matrix y, struct matrix a,
                                 struct matrix b)
{
    return touch_3(backend, y, a, b.data);
}
static inline int touch_gather(struct backend *backend, struct matrix y, struct matrix table,
                               const int32_t *ids)
{
    return touch_3(backend, y, table, ids);
}
static inline int touch_affine(struct backend *backend, struct matrix y, struct matrix x, float mul,
                               float add)
{
    (void)mul, (void)add;
    return touch_2(backend, y, x);
}
static inline int touch_rope_grid(struct backend *backend, struct matrix y,
                                  const struct matrix axes[3], int32_t h, int32_t w)
{
    (void)h, (void)w;
    return touch_3(backend, y, axes[0], axes[1].data) + touch(backend, axes[2].data);
}
static inline int touch_fill(struct backend *backend, struct matrix y, uint64_t seed)
{
    (void)seed;
    return touch(backend, y.data);
}
static inline int touch_pack(struct backend *backend, struct matrix tokens, const float *latent,
                             int32_t h, int32_t w, int32_t channels)
{
    (void)h, (void)w, (void)channels;
    return touch_2(backend, tokens, tokens) + touch(backend, latent);
}
static inline int touch_unpack(struct backend *backend, float *latent, struct matrix tokens,
                               int32_t h, int32_t w, int32_t channels)
{
    return touch_pack(backend, tokens, latent, h, w, channels);
}
static inline void touch_close(struct backend *backend)
{
    (void)backend;
}

static const struct backend_ops touch_ops = {.linear = touch_linear,
                                             .attention = touch_attention,
                                             .conv2d = touch_conv2d,
                                             .qk_norm_rope = touch_qk_norm_rope,
                                             .layer_norm = touch_layer_norm,
                                             .rms_norm = touch_rms_norm,
                                             .group_stats = touch_2,
                                             .group_merge = touch_group_merge,
                                             .group_apply = touch_group_apply,
                                             .add = touch_2,
                                             .gate_add = touch_gate_add,
                                             .gate_add_layer_norm = touch_gate_norm,
                                             .gelu_mul = touch_gelu_mul,
                                             .silu = touch_2,
                                             .gather_rows = touch_gather,
                                             .affine = touch_affine,
                                             .copy = touch_2,
                                             .rope_grid = touch_rope_grid,
                                             .fill = touch_fill,
                                             .pack_latent = touch_pack,
                                             .unpack_latent = touch_unpack,
                                             .upload = touch_2,
                                             .download = touch_2,
                                             .close = touch_close};

/* ------------------------------------------------------------------------------- the engine */

/* A synthetic model's engine over a dry backend that tells `trace`. */
struct traced {
    char            folder[128], model[160];
    struct engine  *engine;
    struct backend *backend;
    struct networks painters;
    struct trace   *trace;
};

/* Dry arenas begin at one address: what is kept is moved out of the scratch's way. */
static inline void move_apart(struct arena *arena, uint64_t bytes)
{
    if (arena != NULL) (void)arena_take(arena, bytes, "nothing");
}

/* Forgets what was recorded. */
static inline int traced_restart(struct traced *t, struct err *err)
{
    int rc = ERR_OK;

    arena_record(t->backend->arena, NULL);
    trace_close(t->trace);
    t->trace = NULL;
    TRY(trace_open(&t->trace, err));
    arena_record(t->backend->arena, t->trace);
out:
    return rc;
}

static inline int traced_open(struct traced *t, const char *spec, enum engine_machine machine,
                              struct err *err)
{
    int                  rc = ERR_OK;
    struct synth_request hollow = {
        .folder = t->model, .spec = spec, .dtype = DTYPE_BF16, .hollow = true};
    struct engine_options options = {.model_folder = t->model, .machine = machine};

    scratch_make(t->folder, sizeof t->folder);
    (void)snprintf(t->model, sizeof t->model, "%s/model", t->folder);
    TRY(synth_write(&hollow, err));
    if (machine != ENGINE_CPU) options.precision = PRECISION_BF16;
    TRY(machine == ENGINE_CPU ? engine_open_dry(&t->engine, &options, err)
                              : engine_open(&t->engine, &options, err));
    TRY(backend_open_dry(&t->backend, &t->engine->machine, err));
    t->backend->ops = &touch_ops;
    move_apart(t->backend->kept_matrices, (uint64_t)1 << 50);
    move_apart(t->backend->kept_vectors, (uint64_t)1 << 52);
    TRY(engine_keep(&t->painters, t->engine, t->backend, err));
    TRY(traced_restart(t, err));
out:
    return rc;
}

static inline void traced_close(struct traced *t)
{
    if (t->engine != NULL) engine_release(&t->painters, t->engine);
    backend_close(t->backend);
    engine_close(t->engine);
    trace_close(t->trace);
    scratch_remove(t->folder);
}

enum { STAGE_ENCODE = 1, STAGE_PREDICT = 2, STAGE_DECODE = 4 };

/* Those stages of one square tile, in this order. */
static inline void traced_run(struct traced *t, int stages, int32_t side_px)
{
    struct compute          compute = {t->engine, &t->painters, t->backend};
    struct prompt           prompt = {.conditioning = {.text = (const float *)16,
                                                       .modulation = (const float *)16,
                                                       .text_tokens = t->engine->facts.text_tokens,
                                                       .steps = 1}};
    struct engine_tile      tile = {.prompt = &prompt, .w_px = side_px, .h_px = side_px};
    struct transformer_tile work;

    if (stages & STAGE_ENCODE) compute_encode(&compute, NULL, side_px, side_px, NULL);
    if (stages & STAGE_PREDICT) compute_predict(&compute, &work, &tile, 1, 0);
    if (stages & STAGE_DECODE) compute_decode(&compute, NULL, side_px, side_px, NULL);
}

/* The trace as items that die with their last use (what was never used: when it is rewound), or all
 * with their rewind.  *items_out is the caller's, freed by os_free. */
static inline int traced_items(struct solve_item **items_out, uint32_t *count_out, struct traced *t,
                               bool by_use, struct err *err)
{
    int                      rc = ERR_OK;
    const struct trace_item *taken;

    TRY(trace_end(t->trace, &taken, count_out, err));
    TRY(os_alloc((void **)items_out, *count_out + 1, sizeof **items_out, "a trace", err));
    for (uint32_t i = 0; i < *count_out; i++) {
        bool used = by_use && taken[i].last_use > taken[i].birth;
        (*items_out)[i] = (struct solve_item){taken[i].bytes, taken[i].birth,
                                              used ? taken[i].last_use + 1 : taken[i].death};
    }
out:
    return rc;
}

#endif
