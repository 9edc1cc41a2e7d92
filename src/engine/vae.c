/*
 * vae.c - pixels to latents and back.
 *
 * Owns the convolutional encoder and decoder, and the scale and shift between the decoder's latents
 * and the transformer's.  Must not know of tiles: a picture is whatever rectangle it is given.
 *
 * Easy to get wrong:
 *   - latents: decode(z / scaling + shift), (encode(x) - shift) * scaling, in this order;
 *   - pixels are 0..1 outside and -1..1 inside; decoded ones may lie outside, the caller clamps;
 *   - up_blocks count from the deepest; their widths are those of the encoder in reverse, and the
 *     width changes in the first resnet of a block, before the block's resampler;
 *   - the decoder has one resnet more per block than the encoder;
 *   - the last block of either has no resampler;
 *   - halving pads one zero row at the bottom and one zero column at the right, none at the other
 *     sides; every other 3x3 convolution pads one all round;
 *   - enlarging repeats pixels first and convolves at the larger size;
 *   - the middle attends with one head over all positions, scaled by 1 / sqrt(width), and its norm
 *     has no SiLU behind it; all other norms have one;
 *   - conv_out of the encoder makes mean and log variance; only the mean is used, so only its half
 *     is computed.
 *
 * Memory.  Two regions serve a whole pass: `main` holds the map that flows through, `side` what a
 * layer needs beside it.  The widest moment of FLUX.1's decoder is the first resnet of the last
 * block: x of 256 channels, and twice 128.  A resnet that changes its width takes the shortcut
 * first and may then overwrite x; one that keeps it adds to x in place.
 *
 * Read next: vae_load.c.
 */
#include "engine/vae_int.h"

#include <math.h>

static const float NORM_EPS = 1e-6f;

struct region {
    char    *data;
    uint64_t bytes;
};

/* One picture on its way through a coder. */
struct pass {
    const struct vae *vae;
    struct backend   *backend;
    enum dtype        act;
    struct region     main, side;
    struct matrix     x; /* [h * w, channels], in main */
    int32_t           h, w;
};

/* ----------------------------------------------------------------------------------- regions */

static uint64_t piece_bytes(enum dtype dtype, int64_t rows, int64_t cols)
{
    return (uint64_t)round_up_i64(rows * cols * dtype_bytes(dtype), 64);
}

/* Number `index` of the equal pieces of a region. */
static struct matrix piece(const struct region *region, uint64_t index, enum dtype dtype,
                           int64_t rows, int64_t cols)
{
    uint64_t bytes = piece_bytes(dtype, rows, cols);

    must((index + 1) * bytes <= region->bytes);
    return (struct matrix){region->data + index * bytes, dtype, rows, cols, cols};
}

static void grow(struct region *region, uint64_t pieces, enum dtype dtype, int64_t rows,
                 int64_t cols)
{
    uint64_t bytes = pieces * piece_bytes(dtype, rows, cols);

    if (region->bytes < bytes) region->bytes = bytes;
}

/* Every piece that the functions below ask for, without asking; `piece` checks that none was
 * forgotten. */
static void measure(struct pass *pass, const struct vae_coder *coder)
{
    int64_t rows = (int64_t)pass->h * pass->w;

    grow(&pass->side, 1, DTYPE_F32, rows, coder->in_channels);
    grow(&pass->main, 1, pass->act, rows, coder->conv_in.w.rows);
    for (int64_t i = 0; i < coder->stage_count; i++) {
        const struct vae_stage *stage = &coder->stages[i];
        int64_t                 to = 0;

        for (int64_t n = 0; n < stage->resnet_count; n++) {
            to = stage->resnets[n].to;
            grow(&pass->main, 1, pass->act, rows, max_i64(stage->resnets[n].from, to));
            grow(&pass->side, 2, pass->act, rows, to);
        }
        if (stage->attends) grow(&pass->side, 4, pass->act, rows, to);
        if (stage->resize == VAE_HALVE) rows /= 4;
        if (stage->resize == VAE_DOUBLE) rows *= 4;
        if (stage->resize != VAE_KEEP) grow(&pass->side, 1, pass->act, rows, to);
        grow(&pass->main, 1, pass->act, rows, to);
    }
    grow(&pass->side, 1, DTYPE_F32, rows, coder->conv_out.w.rows);
}

static struct pass pass_begin(const struct vae *vae, struct backend *backend,
                              const struct vae_coder *coder, int32_t h, int32_t w)
{
    struct pass pass = {
        .vae = vae, .backend = backend, .act = backend_act(backend), .h = h, .w = w};

    measure(&pass, coder);
    pass.main.data = arena_take(backend_arena(backend), pass.main.bytes, "VAE map");
    pass.side.data = arena_take(backend_arena(backend), pass.side.bytes, "VAE scratch");
    return pass;
}

/* ------------------------------------------------------------------------------------ layers */

static void normalise(struct pass *pass, struct matrix y, struct matrix x,
                      const struct vae_norm *norm, bool silu)
{
    backend_group_norm(pass->backend, y, x, norm->weight, norm->bias,
                       (int32_t)pass->vae->config.norm_groups, NORM_EPS, silu);
}

/* Size 1 or 3, same height and width. */
static void convolve(struct pass *pass, struct matrix y, struct matrix x, const struct linear *conv,
                     int32_t size)
{
    int32_t             pad = size / 2;
    struct conv_request request = {.y = y,
                                   .x = x,
                                   .w = conv->w,
                                   .bias = conv->bias,
                                   .in_h = pass->h,
                                   .in_w = pass->w,
                                   .size = size,
                                   .stride = 1,
                                   .pad_top = pad,
                                   .pad_left = pad,
                                   .pad_bottom = pad,
                                   .pad_right = pad};

    backend_conv2d(pass->backend, &request);
}

/* y = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))) */
static void run_resnet(struct pass *pass, const struct vae_resnet *resnet)
{
    bool          keeps = resnet->from == resnet->to;
    int64_t       rows = pass->x.rows;
    struct matrix x = pass->x;
    struct matrix y = piece(&pass->main, 0, pass->act, rows, resnet->to); /* over x */
    struct matrix a = piece(&pass->side, 0, pass->act, rows, resnet->to);
    struct matrix b = piece(&pass->side, 1, pass->act, rows, resnet->to);
    struct matrix normed = keeps ? b : x;

    must(x.cols == resnet->from);
    if (!keeps) convolve(pass, b, x, &resnet->shortcut, 1);
    normalise(pass, normed, x, &resnet->norm1, true);
    convolve(pass, a, normed, &resnet->conv1, 3);
    normalise(pass, a, a, &resnet->norm2, true);
    convolve(pass, keeps ? b : y, a, &resnet->conv2, 3);
    backend_add(pass->backend, y, b);
    pass->x = y;
}

static void run_attention(struct pass *pass, const struct vae_attention *attention)
{
    int64_t                  rows = pass->x.rows, width = pass->x.cols;
    struct matrix            normed = piece(&pass->side, 0, pass->act, rows, width);
    struct matrix            q = piece(&pass->side, 1, pass->act, rows, width);
    struct matrix            k = piece(&pass->side, 2, pass->act, rows, width);
    struct matrix            v = piece(&pass->side, 3, pass->act, rows, width);
    struct matrix            attended = normed, out = q; /* by then nobody reads the former */
    struct attention_request request = {.out = attended,
                                        .q = q,
                                        .k = k,
                                        .v = v,
                                        .heads = 1,
                                        .dim = (int32_t)width,
                                        .scale = (float)(1.0 / sqrt((double)width))};

    normalise(pass, normed, pass->x, &attention->norm, false);
    backend_linear(pass->backend, q, normed, attention->q.w, attention->q.bias, ACT_NONE);
    backend_linear(pass->backend, k, normed, attention->k.w, attention->k.bias, ACT_NONE);
    backend_linear(pass->backend, v, normed, attention->v.w, attention->v.bias, ACT_NONE);
    backend_attention(pass->backend, &request);
    backend_linear(pass->backend, out, attended, attention->out.w, attention->out.bias, ACT_NONE);
    backend_add(pass->backend, pass->x, out);
}

static void halve(struct pass *pass, const struct linear *conv)
{
    int64_t             rows = pass->x.rows / 4, width = pass->x.cols;
    struct matrix       half = piece(&pass->side, 0, pass->act, rows, width);
    struct conv_request request = {.y = half,
                                   .x = pass->x,
                                   .w = conv->w,
                                   .bias = conv->bias,
                                   .in_h = pass->h,
                                   .in_w = pass->w,
                                   .size = 3,
                                   .stride = 2,
                                   .pad_bottom = 1,
                                   .pad_right = 1};

    backend_conv2d(pass->backend, &request);
    pass->x = piece(&pass->main, 0, pass->act, rows, width);
    backend_copy(pass->backend, pass->x, half);
    pass->h /= 2;
    pass->w /= 2;
}

static void enlarge(struct pass *pass, const struct linear *conv)
{
    int64_t       rows = pass->x.rows * 4, width = pass->x.cols;
    struct matrix large = piece(&pass->side, 0, pass->act, rows, width);

    backend_upsample2(pass->backend, large, pass->x, pass->h, pass->w);
    pass->h *= 2;
    pass->w *= 2;
    pass->x = piece(&pass->main, 0, pass->act, rows, width);
    convolve(pass, pass->x, large, conv, 3);
}

/* `in` and the result are f32 and lie in `side`; the products are formed as everywhere. */
static struct matrix run_coder(struct pass *pass, const struct vae_coder *coder, struct matrix in)
{
    struct matrix out;

    pass->x = piece(&pass->main, 0, pass->act, in.rows, coder->conv_in.w.rows);
    convolve(pass, pass->x, in, &coder->conv_in, 3);
    for (int64_t i = 0; i < coder->stage_count; i++) {
        const struct vae_stage *stage = &coder->stages[i];

        for (int64_t n = 0; n < stage->resnet_count; n++) {
            run_resnet(pass, &stage->resnets[n]);
            if (n == 0 && stage->attends) run_attention(pass, &stage->attention);
        }
        if (stage->resize == VAE_HALVE) halve(pass, &stage->resampler);
        if (stage->resize == VAE_DOUBLE) enlarge(pass, &stage->resampler);
    }
    normalise(pass, pass->x, pass->x, &coder->norm_out, true);
    out = piece(&pass->side, 0, DTYPE_F32, pass->x.rows, coder->conv_out.w.rows);
    convolve(pass, out, pass->x, &coder->conv_out, 3);
    return out;
}

/* ------------------------------------------------------------------------------------- doors */

void vae_encode(const struct vae *vae, struct backend *backend, struct matrix rgb, int32_t w_px,
                int32_t h_px, struct matrix latent_out)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    float             scaling = (float)vae->config.scaling, shift = (float)vae->config.shift;
    int32_t           step = 1 << (vae->config.block_count - 1);
    struct pass       pass;
    struct matrix     pixels, mean;

    must(w_px > 0 && h_px > 0 && w_px % step == 0 && h_px % step == 0);
    must(rgb.rows == (int64_t)w_px * h_px && rgb.cols == vae->config.image_channels);
    must(rgb.dtype == DTYPE_F32 && latent_out.dtype == DTYPE_F32);
    pass = pass_begin(vae, backend, &vae->encoder, h_px, w_px);
    pixels = piece(&pass.side, 0, DTYPE_F32, rgb.rows, rgb.cols);
    backend_affine(backend, pixels, rgb, 2.0f, -1.0f);
    mean = run_coder(&pass, &vae->encoder, pixels);
    backend_affine(backend, latent_out, mean, scaling, -shift * scaling);
    arena_rewind(backend_arena(backend), mark);
}

void vae_decode(const struct vae *vae, struct backend *backend, struct matrix latent, int32_t w_px,
                int32_t h_px, struct matrix rgb_out)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    float             scaling = (float)vae->config.scaling, shift = (float)vae->config.shift;
    int32_t           step = 1 << (vae->config.block_count - 1);
    struct pass       pass;
    struct matrix     raw, image;

    must(w_px > 0 && h_px > 0 && w_px % step == 0 && h_px % step == 0);
    must(latent.rows == (int64_t)(w_px / step) * (h_px / step));
    must(latent.cols == vae->config.latent_channels);
    must(latent.dtype == DTYPE_F32 && rgb_out.dtype == DTYPE_F32);
    pass = pass_begin(vae, backend, &vae->decoder, h_px / step, w_px / step);
    raw = piece(&pass.side, 0, DTYPE_F32, latent.rows, latent.cols);
    backend_affine(backend, raw, latent, 1.0f / scaling, shift);
    image = run_coder(&pass, &vae->decoder, raw);
    backend_affine(backend, rgb_out, image, 0.5f, 0.5f);
    arena_rewind(backend_arena(backend), mark);
}
