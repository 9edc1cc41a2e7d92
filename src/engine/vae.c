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
 * No map is normalised as a whole, and the widest are never whole at all: vae_strips.c.
 *
 * Read next: vae_strips.c, vae_maps.c, vae_load.c.
 */
#include "engine/vae_int.h"

#include <math.h>

static struct vae_pass pass_begin(const struct vae *vae, struct backend *backend,
                                  const struct vae_coder *coder, int32_t h, int32_t w)
{
    struct vae_pass pass = {
        .vae = vae, .backend = backend, .act = backend_act(backend), .h = h, .w = w};

    pass.main_bytes = vae_maps_total(vae, pass.act, coder, (int64_t)h * w);
    pass.main = arena_take(backend_arena(backend), pass.main_bytes, "VAE maps");
    return pass;
}

static void run_attention(struct vae_pass *pass, const struct vae_attention *attention)
{
    int64_t       rows = pass->x.rows, width = pass->x.cols;
    uint64_t      bytes = vae_maps_bytes(pass->act, rows, width);
    struct matrix maps[VAE_MAPS_ATTENTION];

    must((uint64_t)((char *)pass->x.data - pass->main) >= VAE_MAPS_ATTENTION * bytes);
    for (uint64_t i = 0; i < VAE_MAPS_ATTENTION; i++)
        maps[i] = (struct matrix){pass->main + i * bytes, pass->act, rows, width, width};

    struct matrix            normed = maps[0], q = maps[1], k = maps[2], v = maps[3];
    struct matrix            attended = normed, out = q; /* by then nobody reads the former */
    struct attention_request request = {.out = attended,
                                        .q = q,
                                        .k = k,
                                        .v = v,
                                        .heads = 1,
                                        .dim = (int32_t)width,
                                        .scale = (float)(1.0 / sqrt((double)width))};

    vae_strips_normalise(pass, normed, &attention->norm);
    backend_linear(pass->backend, q, normed, attention->q.w, attention->q.bias, ACT_NONE);
    backend_linear(pass->backend, k, normed, attention->k.w, attention->k.bias, ACT_NONE);
    backend_linear(pass->backend, v, normed, attention->v.w, attention->v.bias, ACT_NONE);
    backend_attention(pass->backend, &request);
    backend_linear(pass->backend, out, attended, attention->out.w, attention->out.bias, ACT_NONE);
    backend_add(pass->backend, pass->x, out);
}

/* What comes in and goes out of a coder: f32, scaled on the way. */
struct coding {
    const struct vae_coder *coder;
    struct matrix           source, target;
    struct vae_strips_scale before, after;
    int32_t                 h, w; /* of source */
};

static void run_coder(const struct vae *vae, struct backend *backend, const struct coding *coding)
{
    const struct vae_coder *coder = coding->coder;
    struct arena_mark       mark = arena_mark(backend_arena(backend));
    struct vae_pass         pass = pass_begin(vae, backend, coder, coding->h, coding->w);

    vae_strips_first(&pass, coding->source, coding->before, &coder->conv_in);
    for (int64_t i = 0; i < coder->stage_count; i++) {
        const struct vae_stage *stage = &coder->stages[i];

        for (int64_t n = 0; n < stage->resnet_count; n++) {
            vae_strips_resnet(&pass, &stage->resnets[n]);
            if (n == 0 && stage->attends) run_attention(&pass, &stage->attention);
        }
        if (stage->resize == VAE_HALVE) vae_strips_halve(&pass, &stage->resampler);
        if (stage->resize == VAE_DOUBLE) vae_strips_enlarge(&pass, &stage->resampler);
    }
    vae_strips_final(&pass, &coder->norm_out, &coder->conv_out, coding->after, coding->target);
    arena_rewind(backend_arena(backend), mark);
}

/* ------------------------------------------------------------------------------------- doors */

void vae_encode(const struct vae *vae, struct backend *backend, struct matrix rgb, int32_t w_px,
                int32_t h_px, struct matrix latent_out)
{
    float         scaling = (float)vae->config.scaling, shift = (float)vae->config.shift;
    int32_t       step = 1 << (vae->config.block_count - 1);
    struct coding coding = {.coder = &vae->encoder,
                            .source = rgb,
                            .target = latent_out,
                            .before = {2.0f, -1.0f},
                            .after = {scaling, -shift * scaling},
                            .h = h_px,
                            .w = w_px};

    must(w_px > 0 && h_px > 0 && w_px % step == 0 && h_px % step == 0);
    must(rgb.rows == (int64_t)w_px * h_px && rgb.cols == vae->config.image_channels);
    must(latent_out.rows == (int64_t)(w_px / step) * (h_px / step));
    must(rgb.dtype == DTYPE_F32 && latent_out.dtype == DTYPE_F32);
    run_coder(vae, backend, &coding);
}

void vae_decode(const struct vae *vae, struct backend *backend, struct matrix latent, int32_t w_px,
                int32_t h_px, struct matrix rgb_out)
{
    float         scaling = (float)vae->config.scaling, shift = (float)vae->config.shift;
    int32_t       step = 1 << (vae->config.block_count - 1);
    struct coding coding = {.coder = &vae->decoder,
                            .source = latent,
                            .target = rgb_out,
                            .before = {1.0f / scaling, shift},
                            .after = {0.5f, 0.5f},
                            .h = h_px / step,
                            .w = w_px / step};

    must(w_px > 0 && h_px > 0 && w_px % step == 0 && h_px % step == 0);
    must(latent.rows == (int64_t)(w_px / step) * (h_px / step));
    must(latent.cols == vae->config.latent_channels);
    must(rgb_out.rows == (int64_t)w_px * h_px);
    must(latent.dtype == DTYPE_F32 && rgb_out.dtype == DTYPE_F32);
    run_coder(vae, backend, &coding);
}
