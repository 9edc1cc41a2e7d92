/*
 * weights.h - bytes of the model: where they are, what they are called, what shape they must have.
 *
 * Rank 3.  Knows file formats and names of FLUX.1 in both layouts (a diffusers folder, and the
 * single files of Black Forest Labs); knows nothing of the arithmetic.
 */
#ifndef MURAL_WEIGHTS_H
#define MURAL_WEIGHTS_H

#include "base/base.h"
#include "kernels/kernels.h" /* struct matrix, enum dtype */

/* ---------------------------------------------------------------------------- safetensors */

/* One safetensors file, or the shards of an index, mapped read-only. */
struct safetensors;

struct safetensors_entry {
    const char *name;
    const char *file;       /* path of the file, or shard, that holds it                      */
    const char *dtype_name; /* as the file spells it: "BF16", "I64", ...                      */
    enum dtype  dtype;      /* only the types of enum dtype can be used as weights            */
    bool        usable;     /* false: another type (integers...), kept so that checks see it  */
    uint32_t    rank;       /* 0..8 */
    uint64_t    shape[8];
    const void *data;       /* no alignment is promised */
    uint64_t    bytes;
};

/* `path`: a .safetensors file, or a .safetensors.index.json whose shards lie beside it.  Every
 * header is checked completely before this returns: length, UTF-8, JSON, depth, dtype, shape
 * product, offsets without overlap or hole, file length; and the index against the shards. */
int  safetensors_open(struct safetensors **out, const char *path, struct err *err);
void safetensors_close(struct safetensors *file);
const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name);
uint32_t safetensors_count(const struct safetensors *file);
const struct safetensors_entry *safetensors_at(const struct safetensors *file, uint32_t index);
const char *safetensors_path(const struct safetensors *file);

/* ------------------------------------------------------------------------------- the model */

struct transformer_config {
    int64_t hidden, heads, head_dim, mlp;  /* mlp = 4 * hidden in FLUX.1                       */
    int64_t doubles, singles;              /* number of blocks                                 */
    int64_t in_channels, out_channels;     /* of packed tokens: 64                             */
    int64_t text_width, pooled_width;      /* joint_attention_dim, pooled_projection_dim       */
    int64_t rope_axes[3];                  /* sum = head_dim, each even                        */
    bool    guidance;
};
struct vae_config {
    int64_t block_count, widths[8];        /* block_out_channels                               */
    int64_t layers_per_block, latent_channels, image_channels, norm_groups;
    double  scaling, shift;
    bool    mid_attention;
};
struct clip_config {
    int64_t hidden, mlp, layers, heads, positions, vocab;
    double  eps;
};
struct t5_config {
    int64_t hidden, mlp, head_dim, heads, layers, vocab, buckets, max_distance;
    double  eps;
};
struct scheduler_config {
    bool    dynamic_shift;
    double  shift, base_shift, max_shift;
    int64_t base_tokens, max_tokens;
};

enum model_part { PART_TRANSFORMER = 0, PART_VAE, PART_CLIP, PART_T5, PART_COUNT };
const char *model_part_name(enum model_part part); /* "transformer", "vae", "text_encoder", ... */

struct model_paths {
    const char *folder;      /* diffusers folder, or one that holds flux1-*.safetensors      */
    const char *transformer; /* overrides: a file or folder; NULL: found in `folder`          */
    const char *vae;
};

/* Configurations and the places of files; no weights are touched by opening.  Sizes and the
 * relations between them are checked (heads * head_dim = hidden, axes, widths against groups). */
struct model {
    char                      folder[1024];
    struct transformer_config transformer;
    struct vae_config         vae;
    struct clip_config        clip;
    struct t5_config          t5;
    struct scheduler_config   scheduler;
    char                      file[PART_COUNT][1024]; /* what safetensors_open gets            */
    bool                      bfl[PART_COUNT];        /* names of that layout                  */
    const char               *prefix[PART_COUNT];     /* before every name; set by model_map   */
    struct safetensors       *tensors[PART_COUNT];    /* NULL until model_map                  */
    uint64_t                  bytes[PART_COUNT];      /* of the files, for the plan            */
};
int  model_open(struct model **out, const struct model_paths *paths, struct err *err);
int  model_map(struct model *model, struct err *err); /* map every part's files */
void model_close(struct model *model);

/* A weight by its diffusers name, whatever the layout on disk: rows [first_row, first_row + rows)
 * of a tensor that is `rows_all` x `cols` in diffusers' naming (convolutions count as
 * [out, in * kh * kw], vectors as rows x 1).  Fused and half-swapped tensors of the other layout
 * come out as views, never copies; hence `norm_out.linear` must be asked for by halves (rows
 * [0, hidden) are the scale, [hidden, 2 * hidden) the shift), in either layout.  A missing tensor,
 * or one of another shape or type, is one sentence: file, name as it stands in the file, got,
 * needed. */
struct weight_request {
    enum model_part part;
    const char     *name;
    int64_t         rows_all, cols, first_row, rows;
};
int model_weight(struct matrix *out, const struct model *model,
                 const struct weight_request *request, struct err *err);

/* 64-bit identity of the weights: every tensor's name, type, shape and a sample of its bytes. */
uint64_t model_identity(const struct model *model);

/* ----------------------------------------------------------------------------------- synth */

/* Write a model folder with random weights that depend only on (seed, tensor name, index).
 * `spec`: "tiny", "flux1-dev", "flux1-schnell", or a JSON file with the objects transformer, vae,
 * text_encoder, text_encoder_2, scheduler as they stand in the folders' config.json, and
 * optionally tokenizer_2 with model_max_length (512 when absent).  The folder must be absent or
 * empty; after an error it is as it was. */
struct synth_request {
    const char *folder;
    const char *spec;
    enum dtype  dtype;  /* F32, BF16 or F16 */
    uint64_t    seed;
    bool        bfl;    /* transformer and VAE as single files of the other layout */
    uint64_t    shard_bytes; /* 0: never split; else start a new shard above this  */
    bool        hollow;      /* headers alone: weights are holes of the files, read as zeros */
};
int synth_write(const struct synth_request *request, struct err *err);

#endif
