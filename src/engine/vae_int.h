/*
 * vae_int.h - the VAE as its two files see it.
 *
 * Both coders are one shape: a convolution, a list of stages, a norm and a convolution.  The
 * encoder's stages are its blocks and then the middle; the decoder's, the middle and then its
 * blocks.
 *
 * Convolutions are struct linear too: w is [out, in * size * size].
 */
#ifndef MURAL_VAE_INT_H
#define MURAL_VAE_INT_H

#include "engine/engine_int.h"

enum { VAE_BLOCKS_MAX = ARRAY_COUNT(((struct vae_config *)0)->widths) };

struct vae_norm {
    const float *weight, *bias; /* [channels] */
};

struct vae_resnet {
    int64_t         from, to; /* channels */
    struct vae_norm norm1, norm2;
    struct linear   conv1, conv2;
    struct linear   shortcut; /* only when `from` and `to` differ */
};

struct vae_attention {
    struct vae_norm norm;
    struct linear   q, k, v, out;
};

enum vae_resize { VAE_KEEP = 0, VAE_HALVE, VAE_DOUBLE };

/* Resnets, attention after the first of them, then a change of size. */
struct vae_stage {
    struct vae_resnet   *resnets;
    int64_t              resnet_count;
    bool                 attends;
    struct vae_attention attention;
    enum vae_resize      resize;
    struct linear        resampler;
};

struct vae_coder {
    int64_t          in_channels;
    struct linear    conv_in, conv_out;
    struct vae_norm  norm_out;
    struct vae_stage stages[VAE_BLOCKS_MAX + 1];
    int64_t          stage_count;
};

struct vae {
    struct vae_config  config;
    struct vae_coder   encoder, decoder;
    struct vae_resnet *resnets; /* owned: of all stages */
};

#endif
