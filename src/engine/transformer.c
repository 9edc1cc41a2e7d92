/*
 * transformer.c - the FLUX.1 transformer: velocity of some tiles at one noise level.
 *
 * Owns the order of operations.  Knows nothing of prompts, schedules or canvases: what depends on
 * them comes in as struct conditioning.
 *
 * Easy to get wrong, and wrong in ways that may still look like pictures:
 *   - text rows stand before image rows: what is rotated and what leaves at the end depend on it;
 *   - modulation is LN(x) * (1 + scale) + shift; the LN has no weights and eps 1e-6;
 *   - it comes as shift, scale, gate everywhere but in the final layer: scale, shift
 * (modulation.c);
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
 * stream.  Bytes for tiles of n_t image tokens and T text tokens, S_t = T + n_t, H = hidden, M =
 * mlp, D = head_dim, m = modulation_count, a = bytes of an activation:
 *
 *     sum over t of  4 (S_t H + n_t D + m)   +   a max(S_t) (5 H + M)
 *
 * A group never needs more than as many tiles of its largest size would: nothing is shared between
 * tiles because they happen to be alike.
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
    struct matrix             normed; /* [S, H]                                 */
    struct matrix             qkv;    /* [S, 3 H]: q, k, v side by side         */
    struct matrix             wide;   /* [S, H + M]: attended, inner of the MLP */
};

static struct pass pass_rows(const struct pass *pass, int64_t first, int64_t count)
{
    struct pass part = *pass;

    part.normed = matrix_rows(pass->normed, first, count);
    part.qkv = matrix_rows(pass->qkv, first, count);
    part.wide = matrix_rows(pass->wide, first, count);
    return part;
}

static struct matrix attended(const struct pass *pass)
{
    return matrix_cols(pass->wide, 0, pass->transformer->config.hidden);
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

    run_linear(pass, request.q, pass->normed, &in->q, ACT_NONE);
    run_linear(pass, request.k, pass->normed, &in->k, ACT_NONE);
    run_linear(pass, matrix_cols(pass->qkv, 2 * h, h), pass->normed, &in->v, ACT_NONE);
    backend_qk_norm_rope(pass->backend, &request);
}

static void attend(const struct pass *pass)
{
    const struct transformer_config *config = &pass->transformer->config;
    int64_t                          h = config->hidden;
    struct attention_request         request = {.out = attended(pass),
                                                .q = matrix_cols(pass->qkv, 0, h),
                                                .k = matrix_cols(pass->qkv, h, h),
                                                .v = matrix_cols(pass->qkv, 2 * h, h),
                                                .heads = (int32_t)config->heads,
                                                .dim = (int32_t)config->head_dim};

    request.scale = (float)(1.0 / sqrt((double)config->head_dim));
    backend_attention(pass->backend, &request);
}

/* After the attention of a double block, for one modality: x [S, H]. */
static void finish_stream(const struct pass *pass, const struct stream *stream, struct matrix x,
                          const float *modulation)
{
    int64_t      h = pass->transformer->config.hidden;
    const float *gate = modulation + 2 * h;
    const float *shift_mlp = modulation + 3 * h, *scale_mlp = modulation + 4 * h;
    const float *gate_mlp = modulation + 5 * h;

    run_linear(pass, pass->normed, attended(pass), &stream->out, ACT_NONE);
    backend_gate_add(pass->backend, x, pass->normed, gate);
    modulate(pass, x, scale_mlp, shift_mlp);
    run_linear(pass, inner(pass), pass->normed, &stream->mlp_in, ACT_GELU_TANH);
    run_linear(pass, pass->normed, inner(pass), &stream->mlp_out, ACT_NONE);
    backend_gate_add(pass->backend, x, pass->normed, gate_mlp);
}

static void run_double(const struct pass *pass, const struct double_block *block,
                       const struct transformer_tile *tile, const float *modulation)
{
    int64_t       h = pass->transformer->config.hidden;
    int64_t       text_rows = tile->conditioning->text_tokens;
    int64_t       image_rows = tile->stream.rows - text_rows;
    struct pass   all = pass_rows(pass, 0, tile->stream.rows);
    struct pass   text = pass_rows(pass, 0, text_rows);
    struct pass   image = pass_rows(pass, text_rows, image_rows);
    struct matrix c = matrix_rows(tile->stream, 0, text_rows);
    struct matrix x = matrix_rows(tile->stream, text_rows, image_rows);
    const float  *image_shift = modulation, *image_scale = modulation + h;
    const float  *text_shift = modulation + 6 * h, *text_scale = modulation + 7 * h;

    modulate(&text, c, text_scale, text_shift);
    project(&text, &block->text.in, tile, text_rows);
    modulate(&image, x, image_scale, image_shift);
    project(&image, &block->image.in, tile, 0);
    attend(&all);
    finish_stream(&text, &block->text, c, modulation + 6 * h);
    finish_stream(&image, &block->image, x, modulation);
}

static void run_single(const struct pass *pass, const struct single_block *block,
                       const struct transformer_tile *tile, const float *modulation)
{
    int64_t      h = pass->transformer->config.hidden;
    struct pass  all = pass_rows(pass, 0, tile->stream.rows);
    const float *shift = modulation, *scale = modulation + h, *gate = modulation + 2 * h;

    modulate(&all, tile->stream, scale, shift);
    project(&all, &block->in, tile, tile->conditioning->text_tokens);
    run_linear(&all, inner(&all), all.normed, &block->mlp_in, ACT_GELU_TANH);
    attend(&all);
    run_linear(&all, all.normed, all.wide, &block->out, ACT_NONE);
    backend_gate_add(all.backend, tile->stream, all.normed, gate);
}

/* -------------------------------------------------------------------------------------- tile */

/* The angles of a grid, put together from the tables of its axes.  Tokens are row-major: axes 0 and
 * 2 run along every token row, axis 1 down every token column. */
static void put_rope(struct backend *backend, struct matrix target, const struct matrix tables[3],
                     int64_t h_tokens, int64_t w_tokens)
{
    int64_t       first1 = tables[0].cols, first2 = first1 + tables[1].cols;
    struct matrix along0 = matrix_rows(tables[0], 0, w_tokens);
    struct matrix down1 = matrix_rows(tables[1], 0, h_tokens);
    struct matrix along2 = matrix_rows(tables[2], 0, w_tokens);

    for (int64_t row = 0; row < h_tokens; row++) {
        struct matrix rows = matrix_rows(target, row * w_tokens, w_tokens);
        backend_copy(backend, matrix_cols(rows, 0, along0.cols), along0);
        backend_copy(backend, matrix_cols(rows, first2, along2.cols), along2);
    }
    for (int64_t col = 0; col < w_tokens; col++) {
        struct matrix rows = matrix_cols(matrix_rows(target, col, h_tokens), first1, down1.cols);
        rows.ld *= w_tokens;
        backend_copy(backend, rows, down1);
    }
}

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
    tile->cos = backend_take(backend, DTYPE_F32, rows, pairs, "RoPE cosines");
    tile->sin = backend_take(backend, DTYPE_F32, rows, pairs, "RoPE sines");
    tile->modulation = backend_take(backend, DTYPE_F32, 1, count, "modulation");

    put_rope(backend, tile->cos, transformer->cos, h, w);
    put_rope(backend, tile->sin, transformer->sin, h, w);
    backend_upload(backend, tile->modulation, conditioning->modulation + step * count);
    backend_upload(backend, matrix_rows(tile->stream, 0, text_rows), conditioning->text);
    backend_linear(backend, matrix_rows(tile->stream, text_rows, rows), tile->tokens,
                   transformer->image_in.w, transformer->image_in.bias, ACT_NONE);
}

static void finish_tile(const struct pass *pass, const struct transformer_tile *tile,
                        const float *modulation)
{
    int64_t      text_rows = tile->conditioning->text_tokens, rows = tile->tokens.rows;
    struct pass  image = pass_rows(pass, 0, rows);
    const float *scale = modulation, *shift = modulation + pass->transformer->config.hidden;

    modulate(&image, matrix_rows(tile->stream, text_rows, rows), scale, shift);
    run_linear(&image, tile->velocity, image.normed, &pass->transformer->image_out, ACT_NONE);
}

static const float *modulation_at(const struct transformer_tile *tile, int64_t offset)
{
    return (const float *)tile->modulation.data + offset;
}

void transformer_forward(const struct transformer *transformer, struct backend *backend,
                         struct transformer_tile *tiles, uint32_t count, uint32_t step)
{
    const struct transformer_config *config = &transformer->config;
    struct arena_mark                mark = arena_mark(backend_arena(backend));
    enum dtype                       act = backend_act(backend);
    int64_t                          h = config->hidden, rows_max = 0, offset = 0;
    struct pass                      pass = {.transformer = transformer, .backend = backend};

    must(count > 0);
    for (uint32_t t = 0; t < count; t++) {
        begin_tile(transformer, backend, &tiles[t], step);
        rows_max = max_i64(rows_max, tiles[t].stream.rows);
    }
    pass.normed = backend_take(backend, act, rows_max, h, "normed");
    pass.qkv = backend_take(backend, act, rows_max, 3 * h, "q, k, v");
    pass.wide = backend_take(backend, act, rows_max, h + config->mlp, "attended and inner");

    for (int64_t i = 0; i < config->doubles; i++, offset += 12 * h)
        for (uint32_t t = 0; t < count; t++)
            run_double(&pass, &transformer->doubles[i], &tiles[t],
                       modulation_at(&tiles[t], offset));
    for (int64_t i = 0; i < config->singles; i++, offset += 3 * h)
        for (uint32_t t = 0; t < count; t++)
            run_single(&pass, &transformer->singles[i], &tiles[t],
                       modulation_at(&tiles[t], offset));
    for (uint32_t t = 0; t < count; t++)
        finish_tile(&pass, &tiles[t], modulation_at(&tiles[t], offset));
    must(offset + 2 * h == modulation_count(transformer));
    arena_rewind(backend_arena(backend), mark);
}

void transformer_embed_text(const struct transformer *transformer, struct backend *backend,
                            struct matrix states, struct matrix text_out)
{
    backend_linear(backend, text_out, states, transformer->text_in.w, transformer->text_in.bias,
                   ACT_NONE);
}
