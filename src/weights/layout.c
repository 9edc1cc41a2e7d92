/*
 * layout.c - every tensor of a part of FLUX.1, and where its rows lie in a file of either layout.
 *
 * Knows names and shapes as functions of the sizes; knows no file format and no values.
 *
 *     diffusers                          layout of Black Forest Labs
 *     attn.to_q, to_k, to_v              img_attn.qkv: rows below each other
 *     attn.to_q, to_k, to_v, proj_mlp    linear1: rows below each other (single blocks)
 *     norm_out.linear                    final_layer.adaLN_modulation.1: halves exchanged
 *     decoder.up_blocks.{i}              decoder.up.{last - i}
 *     attentions.0.to_q, ...             mid.attn_1.q, ...: a 1x1 convolution, same values
 *
 * Invariant after open: the pieces of one file tensor are neighbours, in order of rows, and cover
 * it without hole or overlap.
 *
 * Read next: synth_file.c, which fills the pieces.
 */
#include "weights/weights_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIME_WIDTH = 256 /* of the sinusoids of time and guidance */ };

enum kind {
    KIND_LINEAR, /* weight [out, in] and bias [out]                  */
    KIND_MATRIX, /* weight [out, in]                                 */
    KIND_CONV1,  /* weight [out, in, 1, 1] and bias                  */
    KIND_CONV3,  /* weight [out, in, 3, 3] and bias                  */
    KIND_TO_1X1, /* linear in diffusers, 1x1 convolution in the file */
    KIND_NORM,   /* weight [out] and bias [out]                      */
    KIND_GAIN,   /* weight [out]; ".scale" in the other layout       */
    KIND_SWAP    /* linear whose halves the file exchanges           */
};

/* One module below the builder's prefixes. */
struct module {
    enum kind   kind;
    const char *name, *file; /* diffusers; other layout                        */
    uint64_t    out, in;
    uint64_t    file_row;    /* where it begins in the tensor of the file      */
};

struct builder {
    struct layout *layout;
    uint32_t       piece_capacity;
    bool           bfl;
    char           prefix[96], file_prefix[96];
};

/* ------------------------------------------------------------------------------ one module */

static void add_piece(struct builder *b, const struct layout_piece *piece)
{
    must(b->layout->piece_count < b->piece_capacity);
    b->layout->pieces[b->layout->piece_count++] = *piece;
}

/* One tensor and its one or two pieces; `end` and `file_end` are ".weight" and the like. */
static void add_tensor(struct builder *b, const struct module *m, const uint64_t shape[4],
                       uint32_t rank, const char *end, const char *file_end)
{
    struct layout_tensor *tensor = &b->layout->tensors[b->layout->tensor_count];
    struct layout_piece   piece = {.source = b->layout->tensor_count, .rows = shape[0]};
    int                   wrote;

    must(b->layout->tensor_count < b->layout->capacity);
    b->layout->tensor_count++;
    tensor->rank = rank;
    memcpy(tensor->shape, shape, sizeof tensor->shape);
    wrote = snprintf(tensor->name, NAMES_MAX, "%s%s%s", b->prefix, m->name, end);
    must(wrote > 0 && wrote < NAMES_MAX);
    if (!b->bfl) {
        memcpy(piece.name, tensor->name, NAMES_MAX);
        add_piece(b, &piece);
        return;
    }
    wrote = snprintf(piece.name, NAMES_MAX, "%s%s%s", b->file_prefix, m->file, file_end);
    must(wrote > 0 && wrote < NAMES_MAX);
    piece.file_row = m->file_row;
    piece.conv_1x1 = m->kind == KIND_TO_1X1 && rank == 2;
    if (m->kind == KIND_SWAP) {
        piece.rows = shape[0] / 2;
        piece.file_row = piece.rows;
        add_piece(b, &piece);
        piece.source_row = piece.rows;
        piece.file_row = 0;
    }
    add_piece(b, &piece);
}

static void add(struct builder *b, const struct module *m)
{
    uint64_t vector[4] = {m->out, 0, 0, 0}, weight[4] = {m->out, m->in, 0, 0};
    uint32_t rank = 2;

    if (m->kind == KIND_GAIN) {
        add_tensor(b, m, vector, 1, ".weight", ".scale");
        return;
    }
    if (m->kind == KIND_CONV1 || m->kind == KIND_CONV3) {
        weight[2] = weight[3] = m->kind == KIND_CONV1 ? 1 : 3;
        rank = 4;
    }
    if (m->kind == KIND_NORM)
        add_tensor(b, m, vector, 1, ".weight", ".weight");
    else
        add_tensor(b, m, weight, rank, ".weight", ".weight");
    if (m->kind != KIND_MATRIX) add_tensor(b, m, vector, 1, ".bias", ".bias");
}

static void add_all(struct builder *b, const struct module *modules, size_t count)
{
    for (size_t i = 0; i < count; i++) add(b, &modules[i]);
}

/* -------------------------------------------------------------------------- the transformer */

static void set_prefix(struct builder *b, const char *name, const char *file, int64_t i)
{
    (void)snprintf(b->prefix, sizeof b->prefix, "%s.%lld.", name, (long long)i);
    (void)snprintf(b->file_prefix, sizeof b->file_prefix, "%s.%lld.", file, (long long)i);
}

static void double_block(struct builder *b, const struct transformer_config *c)
{
    const uint64_t      h = (uint64_t)c->hidden, m = (uint64_t)c->mlp, d = (uint64_t)c->head_dim;
    const struct module modules[] = {
        {KIND_LINEAR, "norm1.linear", "img_mod.lin", 6 * h, h, 0},
        {KIND_LINEAR, "norm1_context.linear", "txt_mod.lin", 6 * h, h, 0},
        {KIND_LINEAR, "attn.to_q", "img_attn.qkv", h, h, 0},
        {KIND_LINEAR, "attn.to_k", "img_attn.qkv", h, h, h},
        {KIND_LINEAR, "attn.to_v", "img_attn.qkv", h, h, 2 * h},
        {KIND_LINEAR, "attn.add_q_proj", "txt_attn.qkv", h, h, 0},
        {KIND_LINEAR, "attn.add_k_proj", "txt_attn.qkv", h, h, h},
        {KIND_LINEAR, "attn.add_v_proj", "txt_attn.qkv", h, h, 2 * h},
        {KIND_GAIN, "attn.norm_q", "img_attn.norm.query_norm", d, 0, 0},
        {KIND_GAIN, "attn.norm_k", "img_attn.norm.key_norm", d, 0, 0},
        {KIND_GAIN, "attn.norm_added_q", "txt_attn.norm.query_norm", d, 0, 0},
        {KIND_GAIN, "attn.norm_added_k", "txt_attn.norm.key_norm", d, 0, 0},
        {KIND_LINEAR, "attn.to_out.0", "img_attn.proj", h, h, 0},
        {KIND_LINEAR, "attn.to_add_out", "txt_attn.proj", h, h, 0},
        {KIND_LINEAR, "ff.net.0.proj", "img_mlp.0", m, h, 0},
        {KIND_LINEAR, "ff.net.2", "img_mlp.2", h, m, 0},
        {KIND_LINEAR, "ff_context.net.0.proj", "txt_mlp.0", m, h, 0},
        {KIND_LINEAR, "ff_context.net.2", "txt_mlp.2", h, m, 0},
    };
    add_all(b, modules, ARRAY_COUNT(modules));
}

static void single_block(struct builder *b, const struct transformer_config *c)
{
    const uint64_t      h = (uint64_t)c->hidden, m = (uint64_t)c->mlp, d = (uint64_t)c->head_dim;
    const struct module modules[] = {
        {KIND_LINEAR, "norm.linear", "modulation.lin", 3 * h, h, 0},
        {KIND_LINEAR, "attn.to_q", "linear1", h, h, 0},
        {KIND_LINEAR, "attn.to_k", "linear1", h, h, h},
        {KIND_LINEAR, "attn.to_v", "linear1", h, h, 2 * h},
        {KIND_LINEAR, "proj_mlp", "linear1", m, h, 3 * h},
        {KIND_GAIN, "attn.norm_q", "norm.query_norm", d, 0, 0},
        {KIND_GAIN, "attn.norm_k", "norm.key_norm", d, 0, 0},
        {KIND_LINEAR, "proj_out", "linear2", h, h + m, 0},
    };
    add_all(b, modules, ARRAY_COUNT(modules));
}

/* linear_1 and linear_2 of one of the embedders of time, guidance and pooled text */
static void embedder(struct builder *b, const char *name, const char *file, uint64_t in, uint64_t h)
{
    const struct module modules[] = {
        {KIND_LINEAR, "linear_1", "in_layer", h, in, 0},
        {KIND_LINEAR, "linear_2", "out_layer", h, h, 0},
    };
    (void)snprintf(b->prefix, sizeof b->prefix, "time_text_embed.%s.", name);
    (void)snprintf(b->file_prefix, sizeof b->file_prefix, "%s.", file);
    add_all(b, modules, ARRAY_COUNT(modules));
}

static void transformer(struct builder *b, const struct transformer_config *c)
{
    const uint64_t      h = (uint64_t)c->hidden;
    const struct module modules[] = {
        {KIND_LINEAR, "x_embedder", "img_in", h, (uint64_t)c->in_channels, 0},
        {KIND_LINEAR, "context_embedder", "txt_in", h, (uint64_t)c->text_width, 0},
        {KIND_SWAP, "norm_out.linear", "final_layer.adaLN_modulation.1", 2 * h, h, 0},
        {KIND_LINEAR, "proj_out", "final_layer.linear", (uint64_t)c->out_channels, h, 0},
    };

    add_all(b, modules, ARRAY_COUNT(modules));
    embedder(b, "timestep_embedder", "time_in", TIME_WIDTH, h);
    if (c->guidance) embedder(b, "guidance_embedder", "guidance_in", TIME_WIDTH, h);
    embedder(b, "text_embedder", "vector_in", (uint64_t)c->pooled_width, h);
    for (int64_t i = 0; i < c->doubles; i++) {
        set_prefix(b, "transformer_blocks", "double_blocks", i);
        double_block(b, c);
    }
    for (int64_t i = 0; i < c->singles; i++) {
        set_prefix(b, "single_transformer_blocks", "single_blocks", i);
        single_block(b, c);
    }
}

/* ---------------------------------------------------------------------------------- the VAE */

static void resnet(struct builder *b, int64_t in, int64_t out)
{
    const uint64_t      i = (uint64_t)in, o = (uint64_t)out;
    const struct module modules[] = {
        {KIND_NORM, "norm1", "norm1", i, 0, 0},
        {KIND_CONV3, "conv1", "conv1", o, i, 0},
        {KIND_NORM, "norm2", "norm2", o, 0, 0},
        {KIND_CONV3, "conv2", "conv2", o, o, 0},
        {KIND_CONV1, "conv_shortcut", "nin_shortcut", o, i, 0},
    };
    add_all(b, modules, in == out ? ARRAY_COUNT(modules) - 1 : ARRAY_COUNT(modules));
}

static void vae_middle(struct builder *b, const char *side, int64_t width, bool attention)
{
    const uint64_t      w = (uint64_t)width;
    const struct module modules[] = {
        {KIND_NORM, "group_norm", "norm", w, 0, 0},
        {KIND_TO_1X1, "to_q", "q", w, w, 0},
        {KIND_TO_1X1, "to_k", "k", w, w, 0},
        {KIND_TO_1X1, "to_v", "v", w, w, 0},
        {KIND_TO_1X1, "to_out.0", "proj_out", w, w, 0},
    };

    for (int i = 0; i < 2; i++) {
        (void)snprintf(b->prefix, sizeof b->prefix, "%s.mid_block.resnets.%d.", side, i);
        (void)snprintf(b->file_prefix, sizeof b->file_prefix, "%s.mid.block_%d.", side, i + 1);
        resnet(b, width, width);
    }
    if (!attention) return;
    (void)snprintf(b->prefix, sizeof b->prefix, "%s.mid_block.attentions.0.", side);
    (void)snprintf(b->file_prefix, sizeof b->file_prefix, "%s.mid.attn_1.", side);
    add_all(b, modules, ARRAY_COUNT(modules));
}

/* `place` is the block's number in the other layout. */
struct vae_block {
    bool    up;
    int64_t index, place, in, out, resnets;
    bool    resize; /* has a down- or upsampler */
};

static void vae_block(struct builder *b, const struct vae_block *v)
{
    const char         *name = v->up ? "decoder.up_blocks" : "encoder.down_blocks";
    const char         *file = v->up ? "decoder.up" : "encoder.down";
    const long long     index = v->index, place = v->place;
    const struct module sampler = {
        KIND_CONV3, v->up ? "upsamplers.0.conv" : "downsamplers.0.conv",
        v->up ? "upsample.conv" : "downsample.conv", (uint64_t)v->out, (uint64_t)v->out, 0};

    for (int64_t k = 0; k < v->resnets; k++) {
        (void)snprintf(b->prefix, sizeof b->prefix, "%s.%lld.resnets.%lld.", name, index,
                       (long long)k);
        (void)snprintf(b->file_prefix, sizeof b->file_prefix, "%s.%lld.block.%lld.", file, place,
                       (long long)k);
        resnet(b, k == 0 ? v->in : v->out, v->out);
    }
    if (!v->resize) return;
    (void)snprintf(b->prefix, sizeof b->prefix, "%s.%lld.", name, index);
    (void)snprintf(b->file_prefix, sizeof b->file_prefix, "%s.%lld.", file, place);
    add(b, &sampler);
}

/* What stands at both ends of an encoder or decoder. */
static void vae_ends(struct builder *b, const char *side, const int64_t sizes[4])
{
    const uint64_t      image_or_latent = (uint64_t)sizes[0], first = (uint64_t)sizes[1];
    const uint64_t      last = (uint64_t)sizes[2], result = (uint64_t)sizes[3];
    const struct module modules[] = {
        {KIND_CONV3, "conv_in", "conv_in", first, image_or_latent, 0},
        {KIND_NORM, "conv_norm_out", "norm_out", last, 0, 0},
        {KIND_CONV3, "conv_out", "conv_out", result, last, 0},
    };
    (void)snprintf(b->prefix, sizeof b->prefix, "%s.", side);
    (void)snprintf(b->file_prefix, sizeof b->file_prefix, "%s.", side);
    add_all(b, modules, ARRAY_COUNT(modules));
}

static void vae(struct builder *b, const struct vae_config *c)
{
    const int64_t n = c->block_count, deepest = c->widths[n - 1];
    const int64_t down[4] = {c->image_channels, c->widths[0], deepest, 2 * c->latent_channels};
    const int64_t up[4] = {c->latent_channels, deepest, c->widths[0], c->image_channels};

    vae_ends(b, "encoder", down);
    vae_middle(b, "encoder", deepest, c->mid_attention);
    vae_ends(b, "decoder", up);
    vae_middle(b, "decoder", deepest, c->mid_attention);
    for (int64_t i = 0; i < n; i++) {
        struct vae_block encoder = {.index = i, .place = i, .resnets = c->layers_per_block};
        struct vae_block decoder = {.up = true, .index = i, .place = n - 1 - i};
        encoder.in = c->widths[i == 0 ? 0 : i - 1];
        encoder.out = c->widths[i];
        decoder.in = c->widths[i == 0 ? n - 1 : n - i];
        decoder.out = c->widths[n - 1 - i];
        decoder.resnets = c->layers_per_block + 1;
        encoder.resize = decoder.resize = i + 1 < n;
        vae_block(b, &encoder);
        vae_block(b, &decoder);
    }
}

/* ------------------------------------------------------------------------- the text encoders */

static void clip(struct builder *b, const struct clip_config *c)
{
    const uint64_t      h = (uint64_t)c->hidden, m = (uint64_t)c->mlp;
    const struct module ends[] = {
        {KIND_MATRIX, "embeddings.token_embedding", NULL, (uint64_t)c->vocab, h, 0},
        {KIND_MATRIX, "embeddings.position_embedding", NULL, (uint64_t)c->positions, h, 0},
        {KIND_NORM, "final_layer_norm", NULL, h, 0, 0},
    };
    const struct module layer[] = {
        {KIND_NORM, "layer_norm1", NULL, h, 0, 0},
        {KIND_NORM, "layer_norm2", NULL, h, 0, 0},
        {KIND_LINEAR, "self_attn.q_proj", NULL, h, h, 0},
        {KIND_LINEAR, "self_attn.k_proj", NULL, h, h, 0},
        {KIND_LINEAR, "self_attn.v_proj", NULL, h, h, 0},
        {KIND_LINEAR, "self_attn.out_proj", NULL, h, h, 0},
        {KIND_LINEAR, "mlp.fc1", NULL, m, h, 0},
        {KIND_LINEAR, "mlp.fc2", NULL, h, m, 0},
    };

    (void)snprintf(b->prefix, sizeof b->prefix, "text_model.");
    add_all(b, ends, ARRAY_COUNT(ends));
    for (int64_t i = 0; i < c->layers; i++) {
        set_prefix(b, "text_model.encoder.layers", "", i);
        add_all(b, layer, ARRAY_COUNT(layer));
    }
}

static void t5(struct builder *b, const struct t5_config *c)
{
    const uint64_t      h = (uint64_t)c->hidden, m = (uint64_t)c->mlp;
    const uint64_t      heads = (uint64_t)c->heads, inner = heads * (uint64_t)c->head_dim;
    const struct module ends[] = {
        {KIND_MATRIX, "shared", NULL, (uint64_t)c->vocab, h, 0},
        {KIND_GAIN, "encoder.final_layer_norm", NULL, h, 0, 0},
        {KIND_MATRIX, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias", NULL,
         (uint64_t)c->buckets, heads, 0},
    };
    const struct module layer[] = {
        {KIND_GAIN, "layer.0.layer_norm", NULL, h, 0, 0},
        {KIND_MATRIX, "layer.0.SelfAttention.q", NULL, inner, h, 0},
        {KIND_MATRIX, "layer.0.SelfAttention.k", NULL, inner, h, 0},
        {KIND_MATRIX, "layer.0.SelfAttention.v", NULL, inner, h, 0},
        {KIND_MATRIX, "layer.0.SelfAttention.o", NULL, h, inner, 0},
        {KIND_GAIN, "layer.1.layer_norm", NULL, h, 0, 0},
        {KIND_MATRIX, "layer.1.DenseReluDense.wi_0", NULL, m, h, 0},
        {KIND_MATRIX, "layer.1.DenseReluDense.wi_1", NULL, m, h, 0},
        {KIND_MATRIX, "layer.1.DenseReluDense.wo", NULL, h, m, 0},
    };

    add_all(b, ends, ARRAY_COUNT(ends));
    for (int64_t i = 0; i < c->layers; i++) {
        set_prefix(b, "encoder.block", "", i);
        add_all(b, layer, ARRAY_COUNT(layer));
    }
}

/* -------------------------------------------------------------------------------- the whole */

/* At least as many tensors as the part has. */
static uint32_t tensors_at_most(const struct model *configs, enum model_part part)
{
    const int64_t resnets = configs->vae.block_count * (configs->vae.layers_per_block + 1) + 2;
    const int64_t most[PART_COUNT] = {
        [PART_TRANSFORMER] = 32 * configs->transformer.doubles + 14 * configs->transformer.singles,
        [PART_VAE] = 2 * (10 * resnets + 2 * configs->vae.block_count),
        [PART_CLIP] = 16 * configs->clip.layers,
        [PART_T5] = 9 * configs->t5.layers,
    };
    return (uint32_t)most[part] + 32;
}

static int compare_pieces(const void *left, const void *right)
{
    const struct layout_piece *a = left, *b = right;
    int                        order = strcmp(a->name, b->name);

    if (order != 0) return order;
    return (a->file_row > b->file_row) - (a->file_row < b->file_row);
}

int layout_open(struct layout *out, const struct model *configs, enum model_part part, bool bfl,
                struct err *err)
{
    int            rc = ERR_OK;
    struct layout  layout = {.capacity = tensors_at_most(configs, part)};
    struct builder b = {.layout = &layout, .bfl = bfl && (part == PART_TRANSFORMER ||
                                                          part == PART_VAE)};

    b.piece_capacity = layout.capacity + 2; /* norm_out's weight and bias come in halves */
    TRY(os_alloc((void **)&layout.tensors, layout.capacity, sizeof *layout.tensors,
                 "the list of tensors", err));
    TRY(os_alloc((void **)&layout.pieces, b.piece_capacity, sizeof *layout.pieces,
                 "the list of tensors", err));
    if (part == PART_TRANSFORMER) transformer(&b, &configs->transformer);
    if (part == PART_VAE) vae(&b, &configs->vae);
    if (part == PART_CLIP) clip(&b, &configs->clip);
    if (part == PART_T5) t5(&b, &configs->t5);
    qsort(layout.pieces, layout.piece_count, sizeof *layout.pieces, compare_pieces);
    *out = layout;
    layout = (struct layout){0};
out:
    layout_close(&layout);
    return rc;
}

void layout_close(struct layout *layout)
{
    os_free(layout->tensors);
    os_free(layout->pieces);
    *layout = (struct layout){0};
}

uint64_t layout_elements(const struct layout *layout)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < layout->tensor_count; i++) {
        uint64_t elements = 1;
        for (uint32_t k = 0; k < layout->tensors[i].rank; k++)
            elements *= layout->tensors[i].shape[k];
        sum += elements;
    }
    return sum;
}
