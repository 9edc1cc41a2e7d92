/*
 * vae_load.c - the VAE's weights under their names.
 *
 * Names are those of a diffusers folder; layers.c and weights/ know the other layout.
 *
 * Read next: vae.c.
 */
#include "engine/vae_int.h"

#include <stdio.h>

/* 1 GiB holds every map that is worth keeping for 1024 x 1024 pixels at FLUX.1's widths.  Strips
 * are large enough for a call to keep any machine busy, and small enough for a CPU's caches to pass
 * them from layer to layer: on two cores, strips of 32 MiB took a tenth longer. */
static const uint64_t KEEP_BYTES = (uint64_t)1 << 30, STRIP_BYTES = 8 << 20;
/* A GPU is not busy with a few rows, and has no caches to pass them in. */
static const uint64_t FAR_KEEP_BYTES = (uint64_t)2 << 30, FAR_STRIP_BYTES = 256 << 20;
/* What vae_limit leaves of these, level by level: first strips get lower, then what a resnet has
 * between its convolutions is computed twice, for a fifth more arithmetic. */
static const struct {
    bool     keeps;
    uint64_t strip_divisor;
} levels[VAE_LEVELS] = {{true, 1}, {true, 4}, {false, 2}, {false, 4}, {false, 16}};

/* What differs between the coders while they are gathered. */
struct gathering {
    const struct vae_config *config;
    struct layer_loader     *loader;
    struct vae_resnet       *unused; /* the next resnets to hand out */
    const char              *coder;  /* "encoder" */
    const char              *blocks; /* "down_blocks" */
    const char              *resampler;
    int64_t                  resnets_per_block;
    bool                     decodes;
};

static int load_norm(struct vae_norm *norm, struct layer_loader *loader, const char *name,
                     int64_t channels, struct err *err)
{
    int  rc = ERR_OK;
    char full[64];

    must((size_t)snprintf(full, sizeof full, "%s.weight", name) < sizeof full);
    TRY(layer_vector(&norm->weight, loader, full, channels, err));
    must((size_t)snprintf(full, sizeof full, "%s.bias", name) < sizeof full);
    TRY(layer_vector(&norm->bias, loader, full, channels, err));
out:
    return rc;
}

static int load_conv3(struct linear *conv, struct layer_loader *loader, const char *name,
                      int64_t to, int64_t from, struct err *err)
{
    return layer_linear(conv, loader, name, to, from * 3 * 3, true, err);
}

/* The scope is that of the resnet. */
static int load_resnet(struct vae_resnet *resnet, struct layer_loader *loader, int64_t from,
                       int64_t to, struct err *err)
{
    int rc = ERR_OK;

    *resnet = (struct vae_resnet){.from = from, .to = to};
    TRY(load_norm(&resnet->norm1, loader, "norm1", from, err));
    TRY(load_conv3(&resnet->conv1, loader, "conv1", to, from, err));
    TRY(load_norm(&resnet->norm2, loader, "norm2", to, err));
    TRY(load_conv3(&resnet->conv2, loader, "conv2", to, to, err));
    if (from != to)
        TRY(layer_linear(&resnet->shortcut, loader, "conv_shortcut", to, from, true, err));
out:
    return rc;
}

static int load_attention(struct vae_attention *attention, struct layer_loader *loader,
                          int64_t width, struct err *err)
{
    int rc = ERR_OK;

    TRY(load_norm(&attention->norm, loader, "group_norm", width, err));
    TRY(layer_linear(&attention->q, loader, "to_q", width, width, true, err));
    TRY(layer_linear(&attention->k, loader, "to_k", width, width, true, err));
    TRY(layer_linear(&attention->v, loader, "to_v", width, width, true, err));
    TRY(layer_linear(&attention->out, loader, "to_out.0", width, width, true, err));
out:
    return rc;
}

static void hand_out(struct vae_stage *stage, struct gathering *g, int64_t count)
{
    *stage = (struct vae_stage){.resnets = g->unused, .resnet_count = count};
    g->unused += count;
}

static int load_middle(struct vae_stage *stage, struct gathering *g, struct err *err)
{
    int     rc = ERR_OK;
    int64_t width = g->config->widths[g->config->block_count - 1];

    hand_out(stage, g, 2);
    for (int64_t i = 0; i < 2; i++) {
        layer_scope(g->loader, "%s.mid_block.resnets.%lld.", g->coder, (long long)i);
        TRY(load_resnet(&stage->resnets[i], g->loader, width, width, err));
    }
    stage->attends = g->config->mid_attention;
    if (!stage->attends) goto out;
    layer_scope(g->loader, "%s.mid_block.attentions.0.", g->coder);
    TRY(load_attention(&stage->attention, g->loader, width, err));
out:
    return rc;
}

/* Block `index` as the names count: from the picture in the encoder, from the deepest level in the
 * decoder. */
static int load_block(struct vae_stage *stage, struct gathering *g, int64_t index, struct err *err)
{
    int            rc = ERR_OK;
    const int64_t *widths = g->config->widths;
    int64_t        last = g->config->block_count - 1;
    int64_t        to = g->decodes ? widths[last - index] : widths[index];
    int64_t        from = to;

    if (index > 0) from = g->decodes ? widths[last - index + 1] : widths[index - 1];
    hand_out(stage, g, g->resnets_per_block);
    for (int64_t i = 0; i < stage->resnet_count; i++) {
        layer_scope(g->loader, "%s.%s.%lld.resnets.%lld.", g->coder, g->blocks, (long long)index,
                    (long long)i);
        TRY(load_resnet(&stage->resnets[i], g->loader, i == 0 ? from : to, to, err));
    }
    if (index == last) goto out;
    stage->resize = g->decodes ? VAE_DOUBLE : VAE_HALVE;
    layer_scope(g->loader, "%s.%s.%lld.", g->coder, g->blocks, (long long)index);
    TRY(load_conv3(&stage->resampler, g->loader, g->resampler, to, to, err));
out:
    return rc;
}

static int load_coder(struct vae_coder *coder, struct gathering *g, int64_t in_channels,
                      int64_t out_channels, struct err *err)
{
    int     rc = ERR_OK;
    int64_t last = g->config->block_count - 1;
    int64_t first_width = g->config->widths[g->decodes ? last : 0];
    int64_t final_width = g->config->widths[g->decodes ? 0 : last];

    coder->in_channels = in_channels;
    coder->stage_count = g->config->block_count + 1;
    if (g->decodes) TRY(load_middle(&coder->stages[0], g, err));
    for (int64_t i = 0; i <= last; i++)
        TRY(load_block(&coder->stages[g->decodes ? i + 1 : i], g, i, err));
    if (!g->decodes) TRY(load_middle(&coder->stages[last + 1], g, err));
    layer_scope(g->loader, "%s.", g->coder);
    TRY(load_conv3(&coder->conv_in, g->loader, "conv_in", first_width, in_channels, err));
    TRY(load_norm(&coder->norm_out, g->loader, "conv_norm_out", final_width, err));
    TRY(load_conv3(&coder->conv_out, g->loader, "conv_out", out_channels, final_width, err));
out:
    return rc;
}

int vae_load(struct vae **out, struct layer_loader *loader, struct err *err)
{
    int                      rc = ERR_OK;
    const struct vae_config *config = &loader->model->vae;
    int64_t                  layers = config->layers_per_block;
    struct vae              *vae = NULL;
    struct gathering         g = {.config = config, .loader = loader};

    must(config->block_count > 0 && config->block_count <= VAE_BLOCKS_MAX && layers > 0);
    loader->part = PART_VAE;
    TRY(os_alloc((void **)&vae, 1, sizeof *vae, "the VAE", err));
    vae->config = *config;
    vae->comfort = (struct vae_budget){KEEP_BYTES, STRIP_BYTES};
    if (loader->keeper != NULL) vae->comfort = (struct vae_budget){FAR_KEEP_BYTES, FAR_STRIP_BYTES};
    vae_limit(vae, 0);
    TRY(os_alloc((void **)&vae->resnets, (uint64_t)(config->block_count * (2 * layers + 1) + 4),
                 sizeof *vae->resnets, "resnets of the VAE", err));
    g.unused = vae->resnets;

    g.coder = "encoder";
    g.blocks = "down_blocks";
    g.resampler = "downsamplers.0.conv";
    g.resnets_per_block = layers;
    TRY(load_coder(&vae->encoder, &g, config->image_channels, 2 * config->latent_channels, err));
    /* Rows are mean, then log variance; nobody asks for the latter. */
    vae->encoder.conv_out.w = matrix_rows(vae->encoder.conv_out.w, 0, config->latent_channels);

    g.decodes = true;
    g.coder = "decoder";
    g.blocks = "up_blocks";
    g.resampler = "upsamplers.0.conv";
    g.resnets_per_block = layers + 1;
    TRY(load_coder(&vae->decoder, &g, config->latent_channels, config->image_channels, err));
    *out = vae;
    vae = NULL;
out:
    layer_scope(loader, "%s", "");
    vae_free(vae);
    return rc;
}

void vae_limit(struct vae *vae, uint32_t level)
{
    must(level < VAE_LEVELS);
    vae->budget =
        (struct vae_budget){.keep_bytes = levels[level].keeps ? vae->comfort.keep_bytes : 0,
                            .strip_bytes = vae->comfort.strip_bytes / levels[level].strip_divisor};
}

void vae_free(struct vae *vae)
{
    if (vae == NULL) return;
    os_free(vae->resnets);
    os_free(vae);
}
