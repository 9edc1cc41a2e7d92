/*
 * transformer_int.h - the weights of the transformer, for the few files that read them.
 *
 * Included by transformer_load.c, modulation.c, transformer.c and blocks.c only.  H = hidden,
 * M = mlp, D = head_dim; every linear layer has a bias.  Layers marked "prompt" are read once a
 * prompt, and are zero in a transformer that a distant machine keeps.
 */
#ifndef MURAL_TRANSFORMER_INT_H
#define MURAL_TRANSFORMER_INT_H

#include "engine/engine_int.h"

/* Sinusoids of one number: half cosines, then half sines. */
enum { MODULATION_WAVES = 256 };

struct embedder {
    struct linear first, second; /* [H, in], [H, H] */
};

/* q, k and v, which lie side by side in the result: three layers [H, H], or one [3 H, H] where
 * their weights lie one after the other. */
struct projection {
    struct linear parts[3];
    int           part_count;
    const float  *q_norm, *k_norm; /* [D] */
};

/* One modality of a double block. */
struct stream {
    struct linear     modulation; /* [6 H, H] prompt */
    struct projection in;
    struct linear     out;             /* [H, H]         */
    struct linear     mlp_in, mlp_out; /* [M, H], [H, M] */
};

struct double_block {
    struct stream image, text;
};

struct single_block {
    struct linear     modulation; /* [3 H, H] prompt */
    struct projection in;
    struct linear     mlp_in; /* [M, H]     */
    struct linear     out;    /* [H, H + M] */
};

struct transformer {
    struct transformer_config config;
    struct linear             image_in, image_out;
    struct linear             text_in, final_scale, final_shift; /* prompt */
    struct embedder           time, guidance, pooled;            /* prompt */
    struct double_block      *doubles;
    struct single_block      *singles;
    int32_t parcels[BLOCKS_MAX]; /* by block, doubles first: the parcel it visits in; -1: stays */
    int64_t mlp_rows;            /* see transformer_set_mlp_rows                                */
    /* Rotation of every position of an axis: [TRANSFORMER_SIDE_TOKENS_MAX, axis / 2] f32. */
    struct matrix cos[3], sin[3];
};

#endif
