/*
 * weights_int.h - what the files of weights/ share, and what their tests look into.
 *
 * The only private header of this folder.
 */
#ifndef MURAL_WEIGHTS_INT_H
#define MURAL_WEIGHTS_INT_H

#include "weights/weights.h"

/* ------------------------------------------------------------------------- safetensors.c */

enum {
    SAFETENSORS_HEADER_MAX = 100000000, /* bytes; the limit of the format                        */
    SAFETENSORS_TENSORS_MAX = 100000,   /* per file; FLUX.1 has 1,160, and each costs memory     */
    SAFETENSORS_SHARDS_MAX = 1000
};

/* One file, and what was made of its header. */
struct shard {
    struct os_map  map;
    const uint8_t *data; /* the mapping, or memory of the caller */
    uint64_t       bytes;
    char          *path;
    char          *names; /* every tensor's name, each with its NUL */
};
struct safetensors {
    char                     *path;
    struct shard             *shards;
    uint32_t                  shard_count;
    struct safetensors_entry *entries; /* sorted by name after open */
    uint32_t                  count;
    uint64_t                  bytes; /* of all tensors */
};
/* A whole file in memory that outlives `out`; `path` is only what sentences call it. */
int safetensors_open_memory(struct safetensors **out, const uint8_t *data, uint64_t bytes,
                            const char *path, struct err *err);
/* Length of the file, or of all shards of an index, without opening any tensor. */
int safetensors_file_bytes(uint64_t *bytes_out, const char *path, struct err *err);

/* ------------------------------------------------------------------ safetensors_header.c */

/* Checks the header at shard->data completely and appends its tensors to file->entries.  After a
 * failure `file` can only be closed. */
int safetensors_header_read(struct safetensors *file, struct shard *shard, struct err *err);

/* ------------------------------------------------------------------------ model_config.c */

/* FLUX.1's, where a file does not say. */
#define VAE_SCALING 0.3611
#define VAE_SHIFT   0.1159

/* From a config.json object to numbers, everything checked that can be checked alone.  `file` is
 * what sentences call the object.  `out` is untouched on failure. */
int model_config_transformer(struct transformer_config *out, const json_t *object,
                             const char *file, struct err *err);
int model_config_vae(struct vae_config *out, const json_t *object, const char *file,
                     struct err *err);
int model_config_clip(struct clip_config *out, const json_t *object, const char *file,
                      struct err *err);
int model_config_t5(struct t5_config *out, const json_t *object, const char *file,
                    struct err *err);
int model_config_scheduler(struct scheduler_config *out, const json_t *object, const char *file,
                           struct err *err);
/* What FLUX.1-dev (guidance) or FLUX.1-schnell ship. */
struct scheduler_config model_config_scheduler_default(bool guidance);
/* Relations inside one part that hold whatever the layout on disk. */
int model_config_check_transformer(const struct transformer_config *config, const char *file,
                                    struct err *err);
int model_config_check_vae(const struct vae_config *config, const char *file, struct err *err);
/* Relations between parts. */
int model_config_check(const struct model *model, struct err *err);

/* --------------------------------------------------------------------------- model_bfl.c */

/* Sizes out of the shapes of a single file in the layout of Black Forest Labs. */
int model_bfl_transformer(struct transformer_config *out, const struct safetensors *file,
                          struct err *err);
int model_bfl_vae(struct vae_config *out, const struct safetensors *file, struct err *err);

/* ------------------------------------------------------------------------------- names.c */

enum { NAMES_MAX = 192 }; /* bytes of a tensor name with its NUL */

/* Where a diffusers tensor lies in a file of the other layout. */
struct names_place {
    char    name[NAMES_MAX];  /* in the file, without prefix                                 */
    int64_t rows_file;        /* rows of the tensor in the file                              */
    int64_t first_row;        /* of those, the one that is diffusers' row 0                  */
    bool    halves_swapped;   /* diffusers' second half comes first                          */
    bool    conv_1x1;         /* a matrix here, a 1x1 convolution there                      */
};
/* `rows_all` as in struct weight_request.  False: no tensor of that name in FLUX.1. */
bool names_to_bfl(struct names_place *out, const struct model *model, enum model_part part,
                  const char *name, int64_t rows_all);
/* What stands before every tensor name in this file ("" or "model.diffusion_model." ...), and which
 * layout it has; NULL when the file is no such part. */
const char *names_prefix(const struct safetensors *file, enum model_part part, bool *bfl_out);
/* A tensor by its diffusers name in diffusers layout, under any of the spellings in use. */
const struct safetensors_entry *names_find(const struct safetensors *file, enum model_part part,
                                           const char *name);
/* True for a tensor that only exists beside scaled fp8 or packed 4-bit weights. */
bool names_is_scale(const char *name);

/* ------------------------------------------------------------------------------ layout.c */

/* One tensor as diffusers knows it. */
struct layout_tensor {
    char     name[NAMES_MAX];
    uint32_t rank;
    uint64_t shape[4];
};
/* A run of rows of a tensor in a file, and the diffusers rows it holds. */
struct layout_piece {
    char     name[NAMES_MAX]; /* of the tensor in the file                                    */
    uint32_t source;          /* index into layout.tensors                                    */
    uint64_t source_row, rows;
    uint64_t file_row;        /* where the run begins in the file's tensor                    */
    bool     conv_1x1;
};
/* Every tensor of a part; pieces sorted by name, then file_row, so that runs of equal names are the
 * file's tensors in order. */
struct layout {
    struct layout_tensor *tensors;
    uint32_t              tensor_count;
    struct layout_piece  *pieces;
    uint32_t              piece_count;
    uint32_t              capacity; /* of tensors */
};
int  layout_open(struct layout *out, const struct model *configs, enum model_part part, bool bfl,
                 struct err *err);
void layout_close(struct layout *layout);
uint64_t layout_elements(const struct layout *layout);

/* ------------------------------------------------------------------------- synth_spec.c */

/* The five config objects (borrowed from `root`) and the sizes they mean. */
struct synth_spec {
    json_t      *root;
    struct model configs;
    int64_t      text_tokens;
};
int  synth_spec_open(struct synth_spec *out, const char *spec, struct err *err);
void synth_spec_close(struct synth_spec *spec);

/* ------------------------------------------------------------------------- synth_file.c */

/* Everything that a synth run made, so that a failed one can take it away again. */
struct synth_output {
    const char *folder;
    char      **made; /* paths below folder, in order */
    uint32_t    made_count, made_capacity;
};
int  synth_file_folder(struct synth_output *output, const char *name, struct err *err);
int  synth_file_text(struct synth_output *output, const char *name, const char *text,
                     struct err *err);
int  synth_file_json(struct synth_output *output, const char *name, const json_t *value,
                     struct err *err);
/* One part as safetensors: `name` like "vae/diffusion_pytorch_model" (".safetensors" is added). */
struct synth_part {
    const struct layout *layout;
    const char          *name;
    enum dtype           dtype;
    uint64_t             seed, shard_bytes;
    bool                 hollow;
};
int  synth_file_part(struct synth_output *output, const struct synth_part *part, struct err *err);
void synth_file_undo(struct synth_output *output);  /* removes everything made */
void synth_file_close(struct synth_output *output); /* keeps it */

/* -------------------------------------------------------------------- synth_tokenizer.c */

int synth_tokenizer_clip(struct synth_output *output, const struct clip_config *config,
                         struct err *err);
int synth_tokenizer_t5(struct synth_output *output, const struct t5_config *config,
                       int64_t text_tokens, struct err *err);

#endif
