/*
 * transformer.c - the FLUX.1 transformer: velocity of some tiles at one noise level.
 *
 * Owns the order of operations.  Knows nothing of prompts, schedules or canvases: what depends on
 * them comes in as struct conditioning.
 *
 * Easy to get wrong, and wrong in ways that may still look like pictures:
 *   - text rows stand before image rows: what is rotated and what leaves at the end depend on it;
 *   - modulation is LN(x) * (1 + scale) + shift; the LN has no weights and eps 1e-6;
 *   - it comes as shift, scale, gate everywhere but in the final layer: there as scale, shift
 *     (modulation.c);
 *   - the RMS norm of q and k comes before the rotation, per head, with weights of its own for text
 *     and for image in a double block; v has neither;
 *   - the rotation turns ADJACENT elements (2p, 2p + 1); axis 0 is always at position 0, axis 1 is
 *     the token row, axis 2 the token column; text is not rotated;
 *   - proj_out of a single block reads the attention first, then the MLP;
 *   - GELU is the tanh approximation in every block;
 *   - a token's channels are (channel, dy, dx), dx fastest; the result is noise - picture.
 *
 * Layer-major: every tile of the group passes a block before the next block is read, so that
 * weights travel once a group.  Tiles share the scratch of a block; each has its own residual
 * stream, and its normed rows, which a block leaves for the next.  Bytes for tiles of n_t image
 * tokens and T text tokens, S_t = T + n_t, H = hidden, M = mlp, D = head_dim, m = modulation_count,
 * a = bytes of an activation:
 *
 *     sum over t of  4 (S_t H + n_t D + m) + a S_t H   +   a max(S_t) (4 H + M)
 *
 * or, with the MLP in parts of R rows, a (max(S_t) 4 H + R (H + M)) for the last term.
 *
 * A group never needs more than as many tiles of its largest size would: nothing is shared between
 * tiles because they happen to be alike.
 *
 * Around each block whose weights only visit the machine, they arrive and depart, once a group.
 *
 * Read next: modulation.c, then engine.c, which calls this.
 */
#include "engine/transformer_int.h"

#include <math.h>

static const float EPS = 1e-6f;

/* What one forward works with, or the rows of it that belong to one tile or one modality. */
struct pass {
    const struct transformer *transformer;
    struct backend           *backend;
    struct matrix             normed;   /* [S, H]: of the tile                    */
    struct matrix             qkv;      /* [S, 3 H]: q, k, v side by side         */
    struct matrix             attended; /* [S, H]: the left of `wide`, or by itself in parts */
    struct matrix             wide;     /* [S, H + M]: attended, inner of the MLP; or of one part */
    bool                      in_parts; /* the MLP sees a part of the rows at a time */
};

static struct pass pass_rows(const struct pass *pass, int64_t first, int64_t count)
{
    struct pass part = *pass;

    part.normed = matrix_rows(pass->normed, first, count);
    part.qkv = matrix_rows(pass->qkv, first, count);
    part.attended = matrix_rows(pass->attended, first, count);
    if (!pass->in_parts) part.wide = matrix_rows(pass->wide, first, count);
    return part;
}

/* How many rows the MLP takes next, of the `left` ones. */
static int64_t part_rows(const struct pass *pass, int64_t left)
{
    return pass->in_parts ? transformer_part_rows(left, pass->transformer->mlp_rows) : left;
}

/* Rows [first, first + count) for the MLP, which has `wide` for itself in parts. */
static struct pass mlp_part(const struct pass *pass, int64_t first, int64_t count)
{
    struct pass part = pass_rows(pass, first, count);

    part.wide = matrix_rows(part.wide, 0, count);
    return part;
}

static struct matrix inner(const struct pass *pass)
{
    const struct transformer_config *config = &pass->transformer->config;

    return matrix_cols(pass->wide, config->hidden, config->mlp);
}

static void run_linear(const struct pass *pass, struct matrix y, struct matrix x,
                       const struct linear *linear, enum activation act)
{
    backend_linear(pass->backend, y, x, linear->w, linear->bias, act);
}

/* normed = LN(x) * (1 + scale) + shift */
static void modulate(const struct pass *pass, struct matrix x, const float *scale,
                     const float *shift)
{
    backend_layer_norm(pass->backend, pass->normed, x, scale, shift, true, EPS);
}

/* ------------------------------------------------------------------------------------ blocks */

/* q, k, v of the normed rows; rows from `first_rotated` on are turned. */
static void project(const struct pass *pass, const struct projection *in,
                    const struct transformer_tile *tile, int64_t first_rotated)
{
    const struct transformer_config *config = &pass->transformer->config;
    int64_t                          h = config->hidden;
    struct qk_rope_request           request = {.q = matrix_cols(pass->qkv, 0, h),
                                                .k = matrix_cols(pass->qkv, h, h),
                                                .heads = (int32_t)config->heads,
                                                .dim = (int32_t)config->head_dim,
                                                .q_weight = in->q_norm,
                                                .k_weight = in->k_norm,
                                                .eps = EPS,
                                                .cos = tile->cos.data,
                                                .sin = tile->sin.data,
                                                .first_rotated = first_rotated};

    for (int part = 0, col = 0; part < in->part_count; part++) {
        int64_t width = in->parts[part].w.rows;
        run_linear(pass, matrix_cols(pass->qkv, col, width), pass->normed, &in->parts[part],
                   ACT_NONE);
        col += (int)width;
    }
    backend_qk_norm_rope(pass->backend, &request);
}

/* Rows from `first` on look at all rows. */
static void attend(const struct pass *pass, int64_t first)
{
    const struct transformer_config *config = &pass->transformer->config;
    int64_t                          h = config->hidden, count = pass->qkv.rows - first;
    struct pass                      part = pass_rows(pass, first, count);
    struct attention_request         request = {.out = part.attended,
                                                .q = matrix_cols(part.qkv, 0, h),
                                                .k = matrix_cols(pass->qkv, h, h),
                                                .v = matrix_cols(pass->qkv, 2 * h, h),
                                                .heads = (int32_t)config->heads,
                                                .dim = (int32_t)config->head_dim};

    request.scale = (float)(1.0 / sqrt((double)config->head_dim));
    backend_attention(pass->backend, &request);
}

/* How the norm that follows a branch is modulated; shift NULL: no norm follows. */
struct follow {
    const float *shift, *scale;
};

/* x += gate * branch, and at once the norm of the layer that reads x next: what would otherwise be
 * two more passes over memory. */
static void add_branch(const struct pass *pass, struct matrix x, const float *gate,
                       struct follow follow)
{
    struct gate_norm_request request = {.out = pass->normed,
                                        .x = x,
                                        .y = pass->normed,
                                        .gate = gate,
                                        .scale = follow.scale,
                                        .shift = follow.shift,
                                        .eps = EPS};

    if (follow.shift == NULL)
        backend_gate_add(pass->backend, x, pass->normed, gate);
    else
        backend_gate_add_layer_norm(pass->backend, &request);
}

/* After the attention of a double block, for one modality: x [S, H]. */
static void finish_stream(const struct pass *pass, const struct stream *stream, struct matrix x,
                          const float *modulation, struct follow follow)
{
    int64_t       h = pass->transformer->config.hidden;
    struct follow mlp = {.shift = modulation + 3 * h, .scale = modulation + 4 * h};

    run_linear(pass, pass->normed, pass->attended, &stream->out, ACT_NONE);
    add_branch(pass, x, modulation + 2 * h, mlp);
    for (int64_t first = 0, count; first < x.rows; first += count) {
        count = part_rows(pass, x.rows - first);
        struct pass part = mlp_part(pass, first, count);
        run_linear(&part, inner(&part), part.normed, &stream->mlp_in, ACT_GELU_TANH);
        run_linear(&part, part.normed, inner(&part), &stream->mlp_out, ACT_NONE);
    }
    add_branch(pass, x, modulation + 5 * h, follow);
}

/* Both streams of a tile come in normed, and leave so for the block that follows. */
static void run_double(const struct pass *pass, const struct double_block *block,
                       const struct transformer_tile *tile, const float *modulation,
                       const struct follow follow[2])
{
    int64_t       h = pass->transformer->config.hidden;
    int64_t       text_rows = tile->conditioning->text_tokens;
    int64_t       image_rows = tile->stream.rows - text_rows;
    struct pass   all = pass_rows(pass, 0, tile->stream.rows);
    struct pass   text = pass_rows(pass, 0, text_rows);
    struct pass   image = pass_rows(pass, text_rows, image_rows);
    struct matrix c = matrix_rows(tile->stream, 0, text_rows);
    struct matrix x = matrix_rows(tile->stream, text_rows, image_rows);

    project(&text, &block->text.in, tile, text_rows);
    project(&image, &block->image.in, tile, 0);
    attend(&all, 0);
    finish_stream(&text, &block->text, c, modulation + 6 * h, follow[0]);
    finish_stream(&image, &block->image, x, modulation, follow[1]);
}

/* Rows of text end in the last block, where image rows look at them: nothing reads them after. */
static void run_single(const struct pass *pass, const struct single_block *block,
                       const struct transformer_tile *tile, const float *modulation,
                       struct follow follow)
{
    int64_t     h = pass->transformer->config.hidden, rows = tile->stream.rows;
    int64_t     text_rows = tile->conditioning->text_tokens;
    int64_t     begin = follow.shift == NULL ? text_rows : 0;
    struct pass all = pass_rows(pass, 0, rows), rest = pass_rows(pass, begin, rows - begin);

    project(&all, &block->in, tile, text_rows);
    attend(&all, begin);
    for (int64_t first = begin, count; first < rows; first += count) {
        count = part_rows(&all, rows - first);
        struct pass part = mlp_part(&all, first, count);
        if (part.in_parts) backend_copy(part.backend, matrix_cols(part.wide, 0, h), part.attended);
        run_linear(&part, inner(&part), part.normed, &block->mlp_in, ACT_GELU_TANH);
        run_linear(&part, part.normed, part.wide, &block->out, ACT_NONE);
    }
    add_branch(&rest, matrix_rows(tile->stream, begin, rows - begin), modulation + 2 * h, follow);
}

/* -------------------------------------------------------------------------------------- tile */

/* Takes and fills what a tile keeps over all blocks. */
static void begin_tile(const struct transformer *transformer, struct backend *backend,
                       struct transformer_tile *tile, uint32_t step)
{
    const struct transformer_config *config = &transformer->config;
    const struct conditioning       *conditioning = tile->conditioning;
    int64_t text_rows = conditioning->text_tokens, h = tile->h_tokens, w = tile->w_tokens;
    int64_t rows = h * w, pairs = config->head_dim / 2, count = modulation_count(transformer);

    must(h > 0 && h <= TRANSFORMER_SIDE_TOKENS_MAX && w > 0 && w <= TRANSFORMER_SIDE_TOKENS_MAX);
    must(tile->tokens.rows == rows && tile->velocity.rows == rows && step < conditioning->steps);
    tile->stream = backend_take(backend, DTYPE_F32, text_rows + rows, config->hidden, "residual");
    tile->normed =
        backend_take(backend, backend_act(backend), text_rows + rows, config->hidden, "normed");
    tile->cos = backend_take(backend, DTYPE_F32, rows, pairs, "RoPE cosines");
    tile->sin = backend_take(backend, DTYPE_F32, rows, pairs, "RoPE sines");
    tile->modulation = backend_take(backend, DTYPE_F32, 1, count, "modulation");

    backend_rope_grid(backend, tile->cos, transformer->cos, (int32_t)h, (int32_t)w);
    backend_rope_grid(backend, tile->sin, transformer->sin, (int32_t)h, (int32_t)w);
    backend_upload(backend, tile->modulation, conditioning->modulation + step * count);
    backend_upload(backend, matrix_rows(tile->stream, 0, text_rows), conditioning->text);
    backend_linear(backend, matrix_rows(tile->stream, text_rows, rows), tile->tokens,
                   transformer->image_in.w, transformer->image_in.bias, ACT_NONE);
}

static const float *modulation_at(const struct transformer_tile *tile, int64_t offset)
{
    return (const float *)tile->modulation.data + offset;
}

/* The first norms of the blocks, for text and for image: of double block `index`, then of the
 * single blocks, then none, for the last norm is of image rows alone. */
static void follow_of(struct follow out[2], const struct transformer *transformer,
                      const struct transformer_tile *tile, int64_t index)
{
    const struct transformer_config *config = &transformer->config;
    int64_t                          h = config->hidden, single = index - config->doubles;
    int64_t                          single_at = h * (12 * config->doubles + 3 * single);
    const float *at = modulation_at(tile, single < 0 ? 12 * h * index : single_at);

    out[0] = out[1] = (struct follow){.shift = at, .scale = at + h};
    if (index < config->doubles) out[0] = (struct follow){.shift = at + 6 * h, .scale = at + 7 * h};
    if (single == config->singles) out[0] = out[1] = (struct follow){.shift = NULL};
}

/* The norms that the first block reads. */
static void norm_first(const struct pass *pass, const struct transformer_tile *tile)
{
    int64_t       text_rows = tile->conditioning->text_tokens;
    int64_t       image_rows = tile->stream.rows - text_rows;
    struct pass   text = pass_rows(pass, 0, text_rows);
    struct pass   image = pass_rows(pass, text_rows, image_rows);
    struct follow first[2];

    follow_of(first, pass->transformer, tile, 0);
    if (first[0].shift == NULL) return;
    modulate(&text, matrix_rows(tile->stream, 0, text_rows), first[0].scale, first[0].shift);
    modulate(&image, matrix_rows(tile->stream, text_rows, image_rows), first[1].scale,
             first[1].shift);
}

static void finish_tile(const struct pass *pass, const struct transformer_tile *tile)
{
    const struct transformer_config *config = &pass->transformer->config;
    int64_t      h = config->hidden, text_rows = tile->conditioning->text_tokens;
    int64_t      rows = tile->tokens.rows;
    struct pass  image = pass_rows(pass, text_rows, rows);
    const float *scale = modulation_at(tile, h * (12 * config->doubles + 3 * config->singles));

    modulate(&image, matrix_rows(tile->stream, text_rows, rows), scale, scale + h);
    run_linear(&image, tile->velocity, image.normed, &pass->transformer->image_out, ACT_NONE);
}

/* Block `index`, counted over both kinds. */
static void run_block(const struct pass *pass, const struct transformer_tile *tile, int64_t index)
{
    const struct transformer *transformer = pass->transformer;
    int64_t                   h = transformer->config.hidden, doubles = transformer->config.doubles;
    struct pass               own = *pass;
    struct follow             follow[2];

    own.normed = tile->normed;
    follow_of(follow, transformer, tile, index + 1);
    if (index < doubles)
        run_double(&own, &transformer->doubles[index], tile, modulation_at(tile, 12 * h * index),
                   follow);
    else
        run_single(&own, &transformer->singles[index - doubles], tile,
                   modulation_at(tile, h * (12 * doubles + 3 * (index - doubles))), follow[0]);
}

/* What the blocks share, for the tile with the most rows. */
static void take_scratch(struct pass *pass, int64_t rows)
{
    const struct transformer_config *config = &pass->transformer->config;
    enum dtype                       act = backend_act(pass->backend);
    int64_t                          h = config->hidden, most = pass->transformer->mlp_rows;

    pass->in_parts = most > 0 && most < rows;
    pass->qkv = backend_take(pass->backend, act, rows, 3 * h, "q, k, v");
    pass->wide = backend_take(pass->backend, act, pass->in_parts ? most : rows, h + config->mlp,
                              "attended and inner");
    pass->attended = pass->in_parts ? backend_take(pass->backend, act, rows, h, "attended")
                                    : matrix_cols(pass->wide, 0, h);
}

void transformer_forward(const struct transformer *transformer, struct backend *backend,
                         struct transformer_tile *tiles, uint32_t count, uint32_t step)
{
    const struct transformer_config *config = &transformer->config;
    struct arena_mark                mark = arena_mark(backend_arena(backend));
    int64_t                          rows_max = 0;
    struct pass                      pass = {.transformer = transformer, .backend = backend};

    must(count > 0);
    for (uint32_t t = 0; t < count; t++) {
        begin_tile(transformer, backend, &tiles[t], step);
        rows_max = max_i64(rows_max, tiles[t].stream.rows);
    }
    take_scratch(&pass, rows_max);

    for (uint32_t t = 0; t < count; t++) {
        pass.normed = tiles[t].normed;
        norm_first(&pass, &tiles[t]);
    }
    for (int64_t i = 0; i < config->doubles + config->singles; i++) {
        int32_t parcel = i < BLOCKS_MAX ? transformer->parcels[i] : -1;
        if (parcel >= 0) backend_arrive(backend, (uint32_t)parcel);
        for (uint32_t t = 0; t < count; t++)
            run_block(&pass, &tiles[t], i);
        if (parcel >= 0) backend_depart(backend, (uint32_t)parcel);
    }
    for (uint32_t t = 0; t < count; t++) {
        pass.normed = tiles[t].normed;
        finish_tile(&pass, &tiles[t]);
    }
    arena_rewind(backend_arena(backend), mark);
}

void transformer_embed_text(const struct transformer *transformer, struct backend *backend,
                            struct matrix states, struct matrix text_out)
{
    layer_run(backend, text_out, states, &transformer->text_in, ACT_NONE);
}
