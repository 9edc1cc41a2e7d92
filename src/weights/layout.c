/*
 * layout.c - every tensor of a part of FLUX.1, and where its rows lie in a file of either layout.
 *
 * Knows diffusers' names and shapes as functions of the sizes; what the other layout calls them is
 * names.c's.  Knows no file format and no values.
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
    KIND_LINEAR, /* weight [out, in] and bias [out]     */
    KIND_MATRIX, /* weight [out, in]                    */
    KIND_CONV1,  /* weight [out, in, 1, 1] and bias     */
    KIND_CONV3,  /* weight [out, in, 3, 3] and bias     */
    KIND_NORM,   /* weight [out] and bias [out]         */
    KIND_GAIN    /* weight [out]                        */
};

/* One module below the builder's prefix. */
struct module {
    enum kind   kind;
    const char *name; /* in diffusers */
    uint64_t    out, in;
};

struct builder {
    struct layout      *layout;
    const struct model *configs;
    enum model_part     part;
    uint32_t            piece_capacity;
    bool                bfl;
    char                prefix[96];
};

/* ------------------------------------------------------------------------------ one module */

static void add_piece(struct builder *b, const struct layout_piece *piece)
{
    must(b->layout->piece_count < b->piece_capacity);
    b->layout->pieces[b->layout->piece_count++] = *piece;
}

/* The one or two pieces of a tensor in the other layout. */
static void add_bfl(struct builder *b, const struct layout_tensor *tensor,
                    struct layout_piece piece)
{
    struct names_place place;

    must(names_to_bfl(&place, b->configs, b->part, tensor->name, (int64_t)tensor->shape[0]));
    memcpy(piece.name, place.name, NAMES_MAX);
    piece.file_row = (uint64_t)place.first_row;
    piece.conv_1x1 = place.conv_1x1 && tensor->rank == 2;
    if (place.halves_swapped) {
        piece.rows = tensor->shape[0] / 2;
        piece.file_row = piece.rows;
        add_piece(b, &piece);
        piece.source_row = piece.rows;
        piece.file_row = 0;
    }
    add_piece(b, &piece);
}

/* One tensor and its pieces; `end` is ".weight" or ".bias". */
static void add_tensor(struct builder *b, const struct module *m, const uint64_t shape[4],
                       uint32_t rank, const char *end)
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
    if (b->bfl) {
        add_bfl(b, tensor, piece);
        return;
    }
    memcpy(piece.name, tensor->name, NAMES_MAX);
    add_piece(b, &piece);
}

static void add(struct builder *b, const struct module *m)
{
    uint64_t vector[4] = {m->out, 0, 0, 0}, weight[4] = {m->out, m->in, 0, 0};
    bool     is_vector = m->kind == KIND_NORM || m->kind == KIND_GAIN;
    uint32_t rank = 2;

    if (m->kind == KIND_CONV1 || m->kind == KIND_CONV3) {
        weight[2] = weight[3] = m->kind == KIND_CONV1 ? 1 : 3;
        rank = 4;
    }
    add_tensor(b, m, is_vector ? vector : weight, is_vector ? 1 : rank, ".weight");
    if (m->kind != KIND_MATRIX && m->kind != KIND_GAIN) add_tensor(b, m, vector, 1, ".bias");
}

static void add_all(struct builder *b, const struct module *modules, size_t count)
{
    for (size_t i = 0; i < count; i++) add(b, &modules[i]);
}

/* -------------------------------------------------------------------------- the transformer */

static void set_prefix(struct builder *b, const char *name, int64_t i)
{
    (void)snprintf(b->prefix, sizeof b->prefix, "%s.%lld.", name, (long long)i);
}

static void double_block(struct builder *b, const struct transformer_config *c)
{
    const uint64_t      h = (uint64_t)c->hidden, m = (uint64_t)c->mlp, d = (uint64_t)c->head_dim;
    const struct module modules[] = {
        {KIND_LINEAR, "norm1.linear", 6 * h, h},
        {KIND_LINEAR, "norm1_context.linear", 6 * h, h},
        {KIND_LINEAR, "attn.to_q", h, h},
        {KIND_LINEAR, "attn.to_k", h, h},
        {KIND_LINEAR, "attn.to_v", h, h},
        {KIND_LINEAR, "attn.add_q_proj", h, h},
        {KIND_LINEAR, "attn.add_k_proj", h, h},
        {KIND_LINEAR, "attn.add_v_proj", h, h},
        {KIND_GAIN, "attn.norm_q", d, 0},
        {KIND_GAIN, "attn.norm_k", d, 0},
        {KIND_GAIN, "attn.norm_added_q", d, 0},
        {KIND_GAIN, "attn.norm_added_k", d, 0},
        {KIND_LINEAR, "attn.to_out.0", h, h},
        {KIND_LINEAR, "attn.to_add_out", h, h},
        {KIND_LINEAR, "ff.net.0.proj", m, h},
        {KIND_LINEAR, "ff.net.2", h, m},
        {KIND_LINEAR, "ff_context.net.0.proj", m, h},
        {KIND_LINEAR, "ff_context.net.2", h, m},
    };
    add_all(b, modules, ARRAY_COUNT(modules));
}

static void single_block(struct builder *b, const struct transformer_config *c)
{
    const uint64_t      h = (uint64_t)c->hidden, m = (uint64_t)c->mlp, d = (uint64_t)c->head_dim;
    const struct module modules[] = {
        {KIND_LINEAR, "norm.linear", 3 * h, h},
        {KIND_LINEAR, "attn.to_q", h, h},
        {KIND_LINEAR, "attn.to_k", h, h},
        {KIND_LINEAR, "attn.to_v", h, h},
        {KIND_LINEAR, "proj_mlp", m, h},
        {KIND_GAIN, "attn.norm_q", d, 0},
        {KIND_GAIN, "attn.norm_k", d, 0},
        {KIND_LINEAR, "proj_out", h, h + m},
    };
    add_all(b, modules, ARRAY_COUNT(modules));
}

/* linear_1 and linear_2 of one of the embedders of time, guidance and pooled text */
static void embedder(struct builder *b, const char *name, uint64_t in, uint64_t h)
{
    const struct module modules[] = {
        {KIND_LINEAR, "linear_1", h, in},
        {KIND_LINEAR, "linear_2", h, h},
    };
    (void)snprintf(b->prefix, sizeof b->prefix, "time_text_embed.%s.", name);
    add_all(b, modules, ARRAY_COUNT(modules));
}

static void transformer(struct builder *b, const struct transformer_config *c)
{
    const uint64_t      h = (uint64_t)c->hidden;
    const struct module modules[] = {
        {KIND_LINEAR, "x_embedder", h, (uint64_t)c->in_channels},
        {KIND_LINEAR, "context_embedder", h, (uint64_t)c->text_width},
        {KIND_LINEAR, "norm_out.linear", 2 * h, h},
        {KIND_LINEAR, "proj_out", (uint64_t)c->out_channels, h},
    };

    add_all(b, modules, ARRAY_COUNT(modules));
    embedder(b, "timestep_embedder", TIME_WIDTH, h);
    if (c->guidance) embedder(b, "guidance_embedder", TIME_WIDTH, h);
    embedder(b, "text_embedder", (uint64_t)c->pooled_width, h);
    for (int64_t i = 0; i < c->doubles; i++) {
        set_prefix(b, "transformer_blocks", i);
        double_block(b, c);
    }
    for (int64_t i = 0; i < c->singles; i++) {
        set_prefix(b, "single_transformer_blocks", i);
        single_block(b, c);
    }
}

/* ---------------------------------------------------------------------------------- the VAE */

static void resnet(struct builder *b, int64_t in, int64_t out)
{
    const uint64_t      i = (uint64_t)in, o = (uint64_t)out;
    const struct module modules[] = {
        {KIND_NORM, "norm1", i, 0},
        {KIND_CONV3, "conv1", o, i},
        {KIND_NORM, "norm2", o, 0},
        {KIND_CONV3, "conv2", o, o},
        {KIND_CONV1, "conv_shortcut", o, i},
    };
    add_all(b, modules, in == out ? ARRAY_COUNT(modules) - 1 : ARRAY_COUNT(modules));
}

static void vae_middle(struct builder *b, const char *side, int64_t width, bool attention)
{
    const uint64_t      w = (uint64_t)width;
    const struct module modules[] = {
        {KIND_NORM, "group_norm", w, 0},
        {KIND_LINEAR, "to_q", w, w},
        {KIND_LINEAR, "to_k", w, w},
        {KIND_LINEAR, "to_v", w, w},
        {KIND_LINEAR, "to_out.0", w, w},
    };

    for (int i = 0; i < 2; i++) {
        (void)snprintf(b->prefix, sizeof b->prefix, "%s.mid_block.resnets.%d.", side, i);
        resnet(b, width, width);
    }
    if (!attention) return;
    (void)snprintf(b->prefix, sizeof b->prefix, "%s.mid_block.attentions.0.", side);
    add_all(b, modules, ARRAY_COUNT(modules));
}

struct vae_block {
    bool    up;
    int64_t index, in, out, resnets;
    bool    resize; /* has a down- or upsampler */
};

static void vae_block(struct builder *b, const struct vae_block *v)
{
    const char         *name = v->up ? "decoder.up_blocks" : "encoder.down_blocks";
    const uint64_t      out = (uint64_t)v->out;
    const struct module sampler = {
        KIND_CONV3, v->up ? "upsamplers.0.conv" : "downsamplers.0.conv", out, out};

    for (int64_t k = 0; k < v->resnets; k++) {
        (void)snprintf(b->prefix, sizeof b->prefix, "%s.%lld.resnets.%lld.", name,
                       (long long)v->index, (long long)k);
        resnet(b, k == 0 ? v->in : v->out, v->out);
    }
    set_prefix(b, name, v->index);
    if (v->resize) add(b, &sampler);
}

/* What stands at both ends of an encoder or decoder. */
static void vae_ends(struct builder *b, const char *side, const int64_t sizes[4])
{
    const uint64_t      image_or_latent = (uint64_t)sizes[0], first = (uint64_t)sizes[1];
    const uint64_t      last = (uint64_t)sizes[2], result = (uint64_t)sizes[3];
    const struct module modules[] = {
        {KIND_CONV3, "conv_in", first, image_or_latent},
        {KIND_NORM, "conv_norm_out", last, 0},
        {KIND_CONV3, "conv_out", result, last},
    };
    (void)snprintf(b->prefix, sizeof b->prefix, "%s.", side);
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
        struct vae_block encoder = {.index = i, .resnets = c->layers_per_block};
        struct vae_block decoder = {.up = true, .index = i};
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
        {KIND_MATRIX, "embeddings.token_embedding", (uint64_t)c->vocab, h},
        {KIND_MATRIX, "embeddings.position_embedding", (uint64_t)c->positions, h},
        {KIND_NORM, "final_layer_norm", h, 0},
    };
    const struct module layer[] = {
        {KIND_NORM, "layer_norm1", h, 0},
        {KIND_NORM, "layer_norm2", h, 0},
        {KIND_LINEAR, "self_attn.q_proj", h, h},
        {KIND_LINEAR, "self_attn.k_proj", h, h},
        {KIND_LINEAR, "self_attn.v_proj", h, h},
        {KIND_LINEAR, "self_attn.out_proj", h, h},
        {KIND_LINEAR, "mlp.fc1", m, h},
        {KIND_LINEAR, "mlp.fc2", h, m},
    };

    (void)snprintf(b->prefix, sizeof b->prefix, "text_model.");
    add_all(b, ends, ARRAY_COUNT(ends));
    for (int64_t i = 0; i < c->layers; i++) {
        set_prefix(b, "text_model.encoder.layers", i);
        add_all(b, layer, ARRAY_COUNT(layer));
    }
}

static void t5(struct builder *b, const struct t5_config *c)
{
    const uint64_t      h = (uint64_t)c->hidden, m = (uint64_t)c->mlp;
    const uint64_t      heads = (uint64_t)c->heads, inner = heads * (uint64_t)c->head_dim;
    const struct module ends[] = {
        {KIND_MATRIX, "shared", (uint64_t)c->vocab, h},
        {KIND_GAIN, "encoder.final_layer_norm", h, 0},
        {KIND_MATRIX, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
         (uint64_t)c->buckets, heads},
    };
    const struct module layer[] = {
        {KIND_GAIN, "layer.0.layer_norm", h, 0},
        {KIND_MATRIX, "layer.0.SelfAttention.q", inner, h},
        {KIND_MATRIX, "layer.0.SelfAttention.k", inner, h},
        {KIND_MATRIX, "layer.0.SelfAttention.v", inner, h},
        {KIND_MATRIX, "layer.0.SelfAttention.o", h, inner},
        {KIND_GAIN, "layer.1.layer_norm", h, 0},
        {KIND_MATRIX, "layer.1.DenseReluDense.wi_0", m, h},
        {KIND_MATRIX, "layer.1.DenseReluDense.wi_1", m, h},
        {KIND_MATRIX, "layer.1.DenseReluDense.wo", h, m},
    };

    add_all(b, ends, ARRAY_COUNT(ends));
    for (int64_t i = 0; i < c->layers; i++) {
        set_prefix(b, "encoder.block", i);
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
    struct builder b = {.layout = &layout, .configs = configs, .part = part,
                        .bfl = bfl && (part == PART_TRANSFORMER || part == PART_VAE)};

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
