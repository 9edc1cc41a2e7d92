/*
 * vae_int.h - the VAE as its files see it: weights (vae_load.c), the order of layers (vae.c), each
 * layer over strips of rows (vae_strips.c), and where whole maps lie (vae_maps.c).
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

/* How much a pass may take to go faster; what it cannot do without, it takes anyway. */
struct vae_budget {
    uint64_t keep_bytes;  /* maps; beyond it, maps that can be computed again are */
    uint64_t strip_bytes; /* rows of the widest map of a layer; at least one row  */
};

struct vae {
    struct vae_config  config;
    struct vae_budget  comfort, budget; /* with memory to spare; now */
    struct vae_coder   encoder, decoder;
    struct vae_resnet *resnets; /* owned: of all stages */
};

/* One picture on its way through a coder. */
struct vae_pass {
    const struct vae    *vae;
    struct backend      *backend;
    enum dtype           act;
    char                *main; /* main_bytes, where whole maps live */
    uint64_t             main_bytes;
    struct matrix        x;         /* [h * w, channels], at the end of main       */
    const struct linear *enlarging; /* not NULL: the map is x enlarged by this one */
    int32_t              h, w;      /* of x                                        */
};

/* ------------------------------------------------------------------------------- vae_maps.c */

/* The middle's: norm, q, k and v, in front of x. */
enum { VAE_MAPS_ATTENTION = 4 };

/* Bytes of `main` for a coder whose source has `rows` cells. */
uint64_t vae_maps_total(const struct vae *vae, enum dtype act, const struct vae_coder *coder,
                        int64_t rows);
/* Bytes of one whole map, rounded up to those of a cache line. */
uint64_t vae_maps_bytes(enum dtype act, int64_t rows, int64_t channels);
/* A map that ends where `main` ends; at 64 bytes if its size is a multiple of them. */
struct matrix vae_maps_at_end(const struct vae_pass *pass, int64_t rows, int64_t channels);
/* Where a map is built, from its first row on, while x is read, also from its first row on. */
struct matrix vae_maps_over_x(const struct vae_pass *pass, int64_t rows, int64_t channels);
/* Behind the last element of a dense matrix. */
const char *vae_maps_data_end(struct matrix m);
/* Rows of such a map that have been written must not reach x's rows from `next_row` on. */
void vae_maps_check_order(const struct vae_pass *pass, struct matrix written, int32_t next_row);
/* The built map y, [h * w, channels], becomes x.  `bounce`: scratch, dense rows of as many
 * channels.
 */
void vae_maps_settle(struct vae_pass *pass, struct matrix y, int32_t h, int32_t w,
                     struct matrix bounce);

/* ----------------------------------------------------------------------------- vae_strips.c */

/* What a coder does to what lies outside: mul * values + add. */
struct vae_strips_scale {
    float mul, add;
};

/* Each layer takes its strips from the arena and gives them back.  The first and the final one read
 * and write f32 matrices outside of `main`. */
void vae_strips_first(struct vae_pass *pass, struct matrix source, struct vae_strips_scale scale,
                      const struct linear *conv);
void vae_strips_resnet(struct vae_pass *pass, const struct vae_resnet *resnet);
void vae_strips_halve(struct vae_pass *pass, const struct linear *conv);
void vae_strips_enlarge(struct vae_pass *pass, const struct linear *conv);
/* y = norm(x), whole, no SiLU */
void vae_strips_normalise(struct vae_pass *pass, struct matrix y, const struct vae_norm *norm);
void vae_strips_final(struct vae_pass *pass, const struct vae_norm *norm, const struct linear *conv,
                      struct vae_strips_scale scale, struct matrix target);

#endif
