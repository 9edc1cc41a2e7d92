/*
 * t5.c - the T5 v1.1 encoder: one vector for every token of the padded text.
 *
 * Owns views of its weights and the table of position biases.  Easy to get wrong:
 *   - attention scores are not divided by sqrt(dim);
 *   - position biases come from block 0 and are added in every block; the bucket is that of
 *     key - query, not query - key;
 *   - nothing is masked: padding attends and is attended to, and all rows go to the transformer;
 *   - the inner width heads * head_dim need not equal the model width.
 *
 * Scratch for S ids, bytes: 4 S H (residual) + a S (H + 4 I + 2 M), I = heads * head_dim,
 * a = bytes of an activation.
 */
#include "engine/engine_int.h"

#include <math.h>

struct t5_block {
    const float  *norm1, *norm2; /* [hidden] */
    struct matrix q, k, v;       /* [inner, hidden] */
    struct matrix o;             /* [hidden, inner] */
    struct matrix wi_0, wi_1;    /* [mlp, hidden]   */
    struct matrix wo;            /* [hidden, mlp]   */
};

struct t5 {
    struct t5_config config;
    uint32_t         tokens;
    struct matrix    shared;     /* [vocab, hidden]               */
    const float     *bias;       /* [heads, 2 * tokens - 1]       */
    const float     *final_norm; /* [hidden]                      */
    struct t5_block *blocks;
};

/* fp32 as in the reference: a distance that falls on a step must fall on the same side. */
int64_t t5_bucket(const struct t5_config *config, int64_t relative)
{
    int64_t half = config->buckets / 2, exact = half / 2;
    int64_t base = relative > 0 ? half : 0;
    int64_t distance = relative < 0 ? -relative : relative;
    float   octaves, span;

    if (distance < exact) return base + distance;
    octaves = logf((float)distance / (float)exact);
    span = (float)log((double)config->max_distance / (double)exact);
    return base + min_i64(half - 1, exact + (int64_t)(octaves / span * (float)(half - exact)));
}

static int make_bias(struct t5 *t5, struct layer_loader *loader, struct err *err)
{
    int                     rc = ERR_OK;
    const struct t5_config *config = &t5->config;
    int64_t                 heads = config->heads, span = 2 * (int64_t)t5->tokens - 1;
    struct matrix           source, values = {0};
    float                  *table;

    TRY(layer_matrix(&source, loader, "SelfAttention.relative_attention_bias.weight",
                     config->buckets, heads, err));
    table =
        arena_take(loader->vectors, (uint64_t)(heads * span) * sizeof *table, "T5 position biases");
    t5->bias = table;
    if (loader->dry) goto out;
    values = (struct matrix){.dtype = DTYPE_F32, .rows = source.rows, .cols = heads, .ld = heads};
    TRY(os_alloc(&values.data, (uint64_t)(source.rows * heads), sizeof(float), "T5 biases", err));
    k_cast_cpu(values, source);
    for (int64_t i = 0; i < span; i++) {
        const float *row =
            (const float *)values.data + t5_bucket(config, i - t5->tokens + 1) * heads;
        for (int64_t head = 0; head < heads; head++)
            table[head * span + i] = row[head];
    }
out:
    os_free(values.data);
    return rc;
}

static int load_block(struct t5_block *block, const struct t5_config *config,
                      struct layer_loader *loader, int64_t index, struct err *err)
{
    int     rc = ERR_OK;
    int64_t h = config->hidden, inner = config->heads * config->head_dim, mlp = config->mlp;

    layer_scope(loader, "encoder.block.%lld.layer.0.", (long long)index);
    TRY(layer_vector(&block->norm1, loader, "layer_norm.weight", h, err));
    TRY(layer_matrix(&block->q, loader, "SelfAttention.q.weight", inner, h, err));
    TRY(layer_matrix(&block->k, loader, "SelfAttention.k.weight", inner, h, err));
    TRY(layer_matrix(&block->v, loader, "SelfAttention.v.weight", inner, h, err));
    TRY(layer_matrix(&block->o, loader, "SelfAttention.o.weight", h, inner, err));
    layer_scope(loader, "encoder.block.%lld.layer.1.", (long long)index);
    TRY(layer_vector(&block->norm2, loader, "layer_norm.weight", h, err));
    TRY(layer_matrix(&block->wi_0, loader, "DenseReluDense.wi_0.weight", mlp, h, err));
    TRY(layer_matrix(&block->wi_1, loader, "DenseReluDense.wi_1.weight", mlp, h, err));
    TRY(layer_matrix(&block->wo, loader, "DenseReluDense.wo.weight", h, mlp, err));
out:
    return rc;
}

int t5_load(struct t5 **out, struct layer_loader *loader, uint32_t tokens, struct err *err)
{
    int                     rc = ERR_OK;
    const struct t5_config *config = &loader->model->t5;
    struct t5              *t5 = NULL;

    must(tokens > 0);
    loader->part = PART_T5;
    TRY(os_alloc((void **)&t5, 1, sizeof *t5, "the T5 encoder", err));
    t5->config = *config;
    t5->tokens = tokens;
    TRY(os_alloc((void **)&t5->blocks, (uint64_t)config->layers, sizeof *t5->blocks, "T5 blocks",
                 err));
    TRY(layer_matrix(&t5->shared, loader, "shared.weight", config->vocab, config->hidden, err));
    TRY(layer_vector(&t5->final_norm, loader, "encoder.final_layer_norm.weight", config->hidden,
                     err));
    layer_scope(loader, "encoder.block.0.layer.0.");
    TRY(make_bias(t5, loader, err));
    for (int64_t i = 0; i < config->layers; i++)
        TRY(load_block(&t5->blocks[i], config, loader, i, err));
    *out = t5;
    t5 = NULL;
out:
    layer_scope(loader, "%s", "");
    t5_free(t5);
    return rc;
}

void t5_free(struct t5 *t5)
{
    if (t5 == NULL) return;
    os_free(t5->blocks);
    os_free(t5);
}

struct t5_scratch {
    struct matrix stream;       /* [S, hidden] f32                     */
    struct matrix normed;       /* [S, hidden]                         */
    struct matrix qkv;          /* [S, 3 * inner]                      */
    struct matrix attended;     /* [S, inner]                          */
    struct matrix gate, linear; /* [S, mlp]: of the gated feed-forward */
    const float  *bias;         /* [heads, 2 S - 1]                    */
};

static void normalise(struct backend *backend, struct matrix y, struct matrix x,
                      const float *weight, float eps)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));

    backend_rms_norm(backend, y, x, backend_fetch_vector(backend, weight, x.cols), eps);
    arena_rewind(backend_arena(backend), mark);
}

static void run_block(const struct t5 *t5, const struct t5_block *block, struct backend *backend,
                      const struct t5_scratch *s)
{
    const struct t5_config  *config = &t5->config;
    int64_t                  inner = config->heads * config->head_dim;
    float                    eps = (float)config->eps;
    struct matrix            q = matrix_cols(s->qkv, 0, inner);
    struct matrix            k = matrix_cols(s->qkv, inner, inner);
    struct matrix            v = matrix_cols(s->qkv, 2 * inner, inner);
    struct attention_request attention = {.out = s->attended,
                                          .q = q,
                                          .k = k,
                                          .v = v,
                                          .heads = (int32_t)config->heads,
                                          .dim = (int32_t)config->head_dim,
                                          .scale = 1.0f,
                                          .bias = s->bias};

    normalise(backend, s->normed, s->stream, block->norm1, eps);
    layer_run(backend, q, s->normed, &(struct linear){block->q, NULL}, ACT_NONE);
    layer_run(backend, k, s->normed, &(struct linear){block->k, NULL}, ACT_NONE);
    layer_run(backend, v, s->normed, &(struct linear){block->v, NULL}, ACT_NONE);
    backend_attention(backend, &attention);
    layer_run(backend, s->normed, s->attended, &(struct linear){block->o, NULL}, ACT_NONE);
    backend_add(backend, s->stream, s->normed);

    normalise(backend, s->normed, s->stream, block->norm2, eps);
    layer_run(backend, s->gate, s->normed, &(struct linear){block->wi_0, NULL}, ACT_NONE);
    layer_run(backend, s->linear, s->normed, &(struct linear){block->wi_1, NULL}, ACT_NONE);
    backend_gelu_mul(backend, s->gate, s->gate, s->linear);
    layer_run(backend, s->normed, s->gate, &(struct linear){block->wo, NULL}, ACT_NONE);
    backend_add(backend, s->stream, s->normed);
}

void t5_forward(const struct t5 *t5, struct backend *backend, const int32_t *ids,
                struct matrix states_out)
{
    const struct t5_config *config = &t5->config;
    struct arena_mark       mark = arena_mark(backend_arena(backend));
    enum dtype              act = backend_act(backend);
    int64_t                 count = t5->tokens, inner = config->heads * config->head_dim;
    struct t5_scratch       s;

    must(states_out.rows == count && states_out.cols == config->hidden);
    s.stream = backend_take(backend, DTYPE_F32, count, config->hidden, "T5 residual");
    s.normed = backend_take(backend, act, count, config->hidden, "T5 normed");
    s.qkv = backend_take(backend, act, count, 3 * inner, "T5 q, k, v");
    s.attended = backend_take(backend, act, count, inner, "T5 attended");
    s.gate = backend_take(backend, act, count, config->mlp, "T5 gate");
    s.linear = backend_take(backend, act, count, config->mlp, "T5 linear");
    s.bias = backend_fetch_vector(backend, t5->bias, config->heads * (2 * count - 1));

    backend_gather_rows(backend, s.stream, t5->shared, ids);
    for (int64_t i = 0; i < config->layers; i++)
        run_block(t5, &t5->blocks[i], backend, &s);
    normalise(backend, states_out, s.stream, t5->final_norm, (float)config->eps);
    arena_rewind(backend_arena(backend), mark);
}
