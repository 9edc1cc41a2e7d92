/*
 * clip.c - the CLIP-L text encoder, of which FLUX.1 uses one pooled vector.
 *
 * Owns views of its weights.  Easy to get wrong:
 *   - the mask is causal, so nothing after the first end token can influence the result: the
 * sequence is cut there, and the pooled row is simply the last one;
 *   - the activation is x * sigmoid(1.702 x), not GELU;
 *   - no text_projection is applied, and no padding mask.
 *
 * Scratch for S ids, bytes: 4 S H (residual) + a S (5 H + M), a = bytes of an activation.
 */
#include "engine/engine_int.h"

#include <math.h>

struct clip_layer {
    const float  *norm1_w, *norm1_b, *norm2_w, *norm2_b; /* [hidden] */
    struct linear q, k, v, out, fc1, fc2;
};

struct clip {
    struct clip_config config;
    struct matrix      tokens, positions; /* [vocab, hidden], [positions, hidden] */
    const float       *final_w, *final_b; /* [hidden] */
    struct clip_layer *layers;
};

static int load_layer(struct clip_layer *layer, const struct clip_config *config,
                      struct layer_loader *loader, struct err *err)
{
    int     rc = ERR_OK;
    int64_t h = config->hidden;

    TRY(layer_vector(&layer->norm1_w, loader, "layer_norm1.weight", h, err));
    TRY(layer_vector(&layer->norm1_b, loader, "layer_norm1.bias", h, err));
    TRY(layer_vector(&layer->norm2_w, loader, "layer_norm2.weight", h, err));
    TRY(layer_vector(&layer->norm2_b, loader, "layer_norm2.bias", h, err));
    TRY(layer_linear(&layer->q, loader, "self_attn.q_proj", h, h, true, err));
    TRY(layer_linear(&layer->k, loader, "self_attn.k_proj", h, h, true, err));
    TRY(layer_linear(&layer->v, loader, "self_attn.v_proj", h, h, true, err));
    TRY(layer_linear(&layer->out, loader, "self_attn.out_proj", h, h, true, err));
    TRY(layer_linear(&layer->fc1, loader, "mlp.fc1", config->mlp, h, true, err));
    TRY(layer_linear(&layer->fc2, loader, "mlp.fc2", h, config->mlp, true, err));
out:
    return rc;
}

int clip_load(struct clip **out, struct layer_loader *loader, struct err *err)
{
    int                       rc = ERR_OK;
    const struct clip_config *config = &loader->model->clip;
    struct clip              *clip = NULL;

    loader->part = PART_CLIP;
    TRY(os_alloc((void **)&clip, 1, sizeof *clip, "the CLIP text encoder", err));
    clip->config = *config;
    TRY(os_alloc((void **)&clip->layers, (uint64_t)config->layers, sizeof *clip->layers,
                 "CLIP layers", err));
    layer_scope(loader, "text_model.");
    TRY(layer_matrix(&clip->tokens, loader, "embeddings.token_embedding.weight", config->vocab,
                     config->hidden, err));
    TRY(layer_matrix(&clip->positions, loader, "embeddings.position_embedding.weight",
                     config->positions, config->hidden, err));
    TRY(layer_vector(&clip->final_w, loader, "final_layer_norm.weight", config->hidden, err));
    TRY(layer_vector(&clip->final_b, loader, "final_layer_norm.bias", config->hidden, err));
    for (int64_t i = 0; i < config->layers; i++) {
        layer_scope(loader, "text_model.encoder.layers.%lld.", (long long)i);
        TRY(load_layer(&clip->layers[i], config, loader, err));
    }
    *out = clip;
    clip = NULL;
out:
    layer_scope(loader, "%s", "");
    clip_free(clip);
    return rc;
}

void clip_free(struct clip *clip)
{
    if (clip == NULL) return;
    os_free(clip->layers);
    os_free(clip);
}

struct clip_scratch {
    struct matrix stream;            /* [S, hidden] f32 */
    struct matrix normed, qkv, wide; /* [S, hidden], [S, 3 * hidden], [S, hidden + mlp] */
};

static void normalise(struct backend *backend, struct matrix y, struct matrix x, const float *w,
                      const float *b, float eps)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    const float      *scale = backend_fetch_vector(backend, w, x.cols);
    const float      *shift = backend_fetch_vector(backend, b, x.cols);

    backend_layer_norm(backend, y, x, scale, shift, false, eps);
    arena_rewind(backend_arena(backend), mark);
}

static void run_layer(const struct clip *clip, const struct clip_layer *layer,
                      struct backend *backend, const struct clip_scratch *s)
{
    const struct clip_config *config = &clip->config;
    int64_t                   h = config->hidden;
    float                     eps = (float)config->eps;
    struct matrix             q = matrix_cols(s->qkv, 0, h);
    struct matrix             k = matrix_cols(s->qkv, h, h);
    struct matrix             v = matrix_cols(s->qkv, 2 * h, h);
    struct matrix             attended = matrix_cols(s->wide, 0, h);
    struct matrix             inner = matrix_cols(s->wide, h, config->mlp);
    int64_t                   dim = h / config->heads;
    struct attention_request  attention = {.out = attended,
                                           .q = q,
                                           .k = k,
                                           .v = v,
                                           .heads = (int32_t)config->heads,
                                           .dim = (int32_t)dim,
                                           .scale = (float)(1.0 / sqrt((double)dim)),
                                           .causal = true};

    normalise(backend, s->normed, s->stream, layer->norm1_w, layer->norm1_b, eps);
    layer_run(backend, q, s->normed, &layer->q, ACT_NONE);
    layer_run(backend, k, s->normed, &layer->k, ACT_NONE);
    layer_run(backend, v, s->normed, &layer->v, ACT_NONE);
    backend_attention(backend, &attention);
    layer_run(backend, s->normed, attended, &layer->out, ACT_NONE);
    backend_add(backend, s->stream, s->normed);

    normalise(backend, s->normed, s->stream, layer->norm2_w, layer->norm2_b, eps);
    layer_run(backend, inner, s->normed, &layer->fc1, ACT_QUICK_GELU);
    layer_run(backend, s->normed, inner, &layer->fc2, ACT_NONE);
    backend_add(backend, s->stream, s->normed);
}

void clip_forward(const struct clip *clip, struct backend *backend, const int32_t *ids,
                  uint32_t count, struct matrix pooled_out)
{
    const struct clip_config *config = &clip->config;
    struct arena_mark         mark = arena_mark(backend_arena(backend));
    enum dtype                act = backend_act(backend);
    int64_t                   h = config->hidden;
    struct clip_scratch       s;
    struct matrix             positions, table;

    must(count > 0 && (int64_t)count <= config->positions);
    must(pooled_out.rows == 1 && pooled_out.cols == h);
    s.stream = backend_take(backend, DTYPE_F32, count, h, "CLIP residual");
    s.normed = backend_take(backend, act, count, h, "CLIP normed");
    s.qkv = backend_take(backend, act, count, 3 * h, "CLIP q, k, v");
    s.wide = backend_take(backend, act, count, h + config->mlp, "CLIP attended and inner");

    positions = s.normed; /* free until the first layer */
    table = backend_fetch(backend, matrix_rows(clip->positions, 0, count));
    backend_gather_rows(backend, s.stream, clip->tokens, ids);
    backend_copy(backend, positions, table);
    backend_add(backend, s.stream, positions);
    for (int64_t i = 0; i < config->layers; i++)
        run_layer(clip, &clip->layers[i], backend, &s);
    normalise(backend, pooled_out, matrix_rows(s.stream, (int64_t)count - 1, 1), clip->final_w,
              clip->final_b, (float)config->eps);
    arena_rewind(backend_arena(backend), mark);
}
