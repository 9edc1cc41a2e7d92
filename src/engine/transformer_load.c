/*
 * transformer_load.c - the transformer's weights under their names, and its RoPE tables.
 *
 * Names are those of a diffusers folder; layers.c and weights/ know the other layout.
 *
 * Read next: transformer.c.
 */
#include "engine/transformer_int.h"

#include <math.h>

/* Names of one modality; the two differ in nothing else. */
struct stream_names {
    const char *modulation, *q, *k, *v, *q_norm, *k_norm, *out, *mlp_in, *mlp_out;
};
static const struct stream_names image_names = {.modulation = "norm1.linear",
                                                .q = "attn.to_q",
                                                .k = "attn.to_k",
                                                .v = "attn.to_v",
                                                .q_norm = "attn.norm_q.weight",
                                                .k_norm = "attn.norm_k.weight",
                                                .out = "attn.to_out.0",
                                                .mlp_in = "ff.net.0.proj",
                                                .mlp_out = "ff.net.2"};
static const struct stream_names text_names = {.modulation = "norm1_context.linear",
                                               .q = "attn.add_q_proj",
                                               .k = "attn.add_k_proj",
                                               .v = "attn.add_v_proj",
                                               .q_norm = "attn.norm_added_q.weight",
                                               .k_norm = "attn.norm_added_k.weight",
                                               .out = "attn.to_add_out",
                                               .mlp_in = "ff_context.net.0.proj",
                                               .mlp_out = "ff_context.net.2"};

/* A layer that only a prompt reads: no keeper keeps it. */
static int load_for_prompt(struct linear *out, struct layer_loader *loader, const char *name,
                           int64_t rows, int64_t cols, struct err *err)
{
    *out = (struct linear){.bias = NULL};
    return loader->keeper != NULL ? ERR_OK : layer_linear(out, loader, name, rows, cols, true, err);
}

static int load_projection(struct projection *in, const struct stream_names *names,
                           const struct transformer_config *config, struct layer_loader *loader,
                           struct err *err)
{
    int     rc = ERR_OK;
    int64_t h = config->hidden;

    TRY(layer_linear(&in->parts[0], loader, names->q, h, h, true, err));
    TRY(layer_linear(&in->parts[1], loader, names->k, h, h, true, err));
    TRY(layer_linear(&in->parts[2], loader, names->v, h, h, true, err));
    in->part_count = layer_merge(&in->parts[0], in->parts, 3) ? 1 : 3;
    TRY(layer_vector(&in->q_norm, loader, names->q_norm, config->head_dim, err));
    TRY(layer_vector(&in->k_norm, loader, names->k_norm, config->head_dim, err));
out:
    return rc;
}

static int load_stream(struct stream *stream, const struct stream_names *names,
                       const struct transformer_config *config, struct layer_loader *loader,
                       struct err *err)
{
    int     rc = ERR_OK;
    int64_t h = config->hidden;

    TRY(load_for_prompt(&stream->modulation, loader, names->modulation, 6 * h, h, err));
    TRY(load_projection(&stream->in, names, config, loader, err));
    TRY(layer_linear(&stream->out, loader, names->out, h, h, true, err));
    TRY(layer_linear(&stream->mlp_in, loader, names->mlp_in, config->mlp, h, true, err));
    TRY(layer_linear(&stream->mlp_out, loader, names->mlp_out, h, config->mlp, true, err));
out:
    return rc;
}

static int load_single(struct single_block *block, const struct transformer_config *config,
                       struct layer_loader *loader, struct err *err)
{
    int     rc = ERR_OK;
    int64_t h = config->hidden, mlp = config->mlp;

    TRY(load_for_prompt(&block->modulation, loader, "norm.linear", 3 * h, h, err));
    TRY(load_projection(&block->in, &image_names, config, loader, err));
    TRY(layer_linear(&block->mlp_in, loader, "proj_mlp", mlp, h, true, err));
    TRY(layer_linear(&block->out, loader, "proj_out", h, h + mlp, true, err));
out:
    return rc;
}

static int load_embedder(struct embedder *embedder, const char *name, int64_t width, int64_t hidden,
                         struct layer_loader *loader, struct err *err)
{
    int rc = ERR_OK;

    layer_scope(loader, "time_text_embed.%s.", name);
    TRY(layer_linear(&embedder->first, loader, "linear_1", hidden, width, true, err));
    TRY(layer_linear(&embedder->second, loader, "linear_2", hidden, hidden, true, err));
out:
    layer_scope(loader, "%s", "");
    return rc;
}

/* What a prompt reads outside the blocks. */
static int load_prompt_ends(struct transformer *out, struct layer_loader *loader, struct err *err)
{
    int                              rc = ERR_OK;
    const struct transformer_config *config = &out->config;
    int64_t                          h = config->hidden;
    struct layer_slice scale = {.rows_all = 2 * h, .rows = h, .cols = h}, shift = scale;

    TRY(load_embedder(&out->time, "timestep_embedder", MODULATION_WAVES, h, loader, err));
    TRY(load_embedder(&out->pooled, "text_embedder", config->pooled_width, h, loader, err));
    if (config->guidance)
        TRY(load_embedder(&out->guidance, "guidance_embedder", MODULATION_WAVES, h, loader, err));
    TRY(layer_linear(&out->text_in, loader, "context_embedder", h, config->text_width, true, err));
    /* In halves, because the other layout of files has them the other way round. */
    shift.first = h;
    TRY(layer_linear_slice(&out->final_scale, loader, "norm_out.linear", &scale, err));
    TRY(layer_linear_slice(&out->final_shift, loader, "norm_out.linear", &shift, err));
out:
    return rc;
}

static int load_ends(struct transformer *out, struct layer_loader *loader, struct err *err)
{
    int                              rc = ERR_OK;
    const struct transformer_config *config = &out->config;
    int64_t                          h = config->hidden;

    if (loader->keeper == NULL) TRY(load_prompt_ends(out, loader, err));
    TRY(layer_linear(&out->image_in, loader, "x_embedder", h, config->in_channels, true, err));
    TRY(layer_linear(&out->image_out, loader, "proj_out", config->out_channels, h, true, err));
out:
    return rc;
}

/* Frequencies and angles in double, as the reference: a float angle of a few thousand radians has
 * an error of 1e-4. */
static void fill_rope(float *cosines, float *sines, int64_t pairs, bool still)
{
    for (int64_t k = 0; k < pairs; k++) {
        double frequency = still ? 0 : pow(10000.0, -(double)k / (double)pairs);
        for (int64_t row = 0; row < TRANSFORMER_SIDE_TOKENS_MAX; row++) {
            double angle = (double)row * frequency;
            cosines[row * pairs + k] = (float)cos(angle);
            sines[row * pairs + k] = (float)sin(angle);
        }
    }
}

/* Will anybody read what is loaded? */
static bool is_read(const struct layer_loader *loader)
{
    return loader->keeper != NULL ? !backend_is_dry(loader->keeper) : !loader->dry;
}

static int make_rope(struct transformer *transformer, struct layer_loader *loader, struct err *err)
{
    int    rc = ERR_OK;
    float *cosines = NULL, *sines = NULL;

    for (int axis = 0; axis < 3; axis++) {
        int64_t       pairs = transformer->config.rope_axes[axis] / 2;
        uint64_t      count = (uint64_t)(TRANSFORMER_SIDE_TOKENS_MAX * pairs);
        struct matrix table = {.dtype = DTYPE_F32, .cols = pairs, .ld = pairs};

        os_free(cosines);
        os_free(sines);
        cosines = sines = NULL;
        TRY(os_alloc((void **)&cosines, count, sizeof *cosines, "RoPE cosines", err));
        TRY(os_alloc((void **)&sines, count, sizeof *sines, "RoPE sines", err));
        /* Axis 0 is for sequences of pictures: here every token is at its position 0. */
        if (is_read(loader)) fill_rope(cosines, sines, pairs, axis == 0);
        table.rows = TRANSFORMER_SIDE_TOKENS_MAX;
        table.data = cosines;
        TRY(layer_table(&transformer->cos[axis], loader, table, err));
        table.data = sines;
        TRY(layer_table(&transformer->sin[axis], loader, table, err));
    }
out:
    os_free(cosines);
    os_free(sines);
    return rc;
}

/* Matrices of a block that visits go into a parcel; vectors stay, for they are few. */
static void begin_block(struct transformer *transformer, struct layer_loader *loader, int64_t index,
                        uint32_t *parcel_count)
{
    if (loader->keeper == NULL || loader->streamed == NULL || index >= BLOCKS_MAX ||
        !loader->streamed[index])
        return;
    transformer->parcels[index] = (int32_t)*parcel_count;
    backend_parcel_begin(loader->keeper, (*parcel_count)++);
}

static void end_block(const struct transformer *transformer, struct layer_loader *loader,
                      int64_t index)
{
    if (index < BLOCKS_MAX && transformer->parcels[index] >= 0) backend_parcel_end(loader->keeper);
}

static int load_blocks(struct transformer *made, struct layer_loader *loader, struct err *err)
{
    int                              rc = ERR_OK;
    const struct transformer_config *config = &made->config;
    uint32_t                         parcel_count = 0;

    for (int64_t i = 0; i < BLOCKS_MAX; i++)
        made->parcels[i] = -1;
    for (int64_t i = 0; i < config->doubles; i++) {
        layer_scope(loader, "transformer_blocks.%lld.", (long long)i);
        begin_block(made, loader, i, &parcel_count);
        TRY(load_stream(&made->doubles[i].image, &image_names, config, loader, err));
        TRY(load_stream(&made->doubles[i].text, &text_names, config, loader, err));
        end_block(made, loader, i);
    }
    for (int64_t i = 0; i < config->singles; i++) {
        layer_scope(loader, "single_transformer_blocks.%lld.", (long long)i);
        begin_block(made, loader, config->doubles + i, &parcel_count);
        TRY(load_single(&made->singles[i], config, loader, err));
        end_block(made, loader, config->doubles + i);
    }
out:
    return rc;
}

void transformer_set_mlp_rows(struct transformer *transformer, int64_t rows)
{
    must(rows >= 0 && rows % TRANSFORMER_MLP_STEP == 0);
    transformer->mlp_rows = rows;
}

int64_t transformer_part_rows(int64_t left, int64_t most)
{
    must(left > 0 && most > 0 && most % TRANSFORMER_MLP_STEP == 0);
    if (left <= most) return left;
    return round_up_i64(ceil_div_i64(left, ceil_div_i64(left, most)), TRANSFORMER_MLP_STEP);
}

int transformer_load(struct transformer **out, struct layer_loader *loader, struct err *err)
{
    int                              rc = ERR_OK;
    const struct transformer_config *config = &loader->model->transformer;
    struct transformer              *made = NULL;

    must(config->rope_axes[0] + config->rope_axes[1] + config->rope_axes[2] == config->head_dim);
    loader->part = PART_TRANSFORMER;
    TRY(os_alloc((void **)&made, 1, sizeof *made, "the transformer", err));
    made->config = *config;
    TRY(os_alloc((void **)&made->doubles, (uint64_t)config->doubles, sizeof *made->doubles,
                 "double blocks", err));
    TRY(os_alloc((void **)&made->singles, (uint64_t)config->singles, sizeof *made->singles,
                 "single blocks", err));
    TRY(load_ends(made, loader, err));
    TRY(load_blocks(made, loader, err));
    TRY(make_rope(made, loader, err));
    *out = made;
    made = NULL;
out:
    layer_scope(loader, "%s", "");
    transformer_free(made);
    return rc;
}

void transformer_free(struct transformer *transformer)
{
    if (transformer == NULL) return;
    os_free(transformer->doubles);
    os_free(transformer->singles);
    os_free(transformer);
}
