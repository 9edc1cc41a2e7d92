/*
 * engine_int.h - what the files of engine/ share: layer views, tokenizers, the four networks.
 *
 * Weights exist in two forms.  On the host, matrices are views of mapped files and vectors (biases,
 * norm weights) are fp32 copies made once at open.  A distant machine keeps copies of what is read
 * at every step, or is visited by them, and fetches what is read once a prompt.
 */
#ifndef MURAL_ENGINE_INT_H
#define MURAL_ENGINE_INT_H

#include "backend/backend.h"
#include "engine/budget.h"
#include "engine/engine.h"
#include "weights/weights.h"

/* ------------------------------------------------------------------------------- tokenizers */

struct clip_tokenizer;
/* `folder` holds merges.txt, and optionally vocab.json, special_tokens_map.json and
 * tokenizer_config.json (model_max_length; 77 when absent). */
int  clip_tokenizer_open(struct clip_tokenizer **out, const char *folder, struct err *err);
void clip_tokenizer_close(struct clip_tokenizer *tokenizer);
/* Ids of `text`: start, at most max - 2 tokens, end.  No padding is written: every id after the
 * first end is irrelevant to the pooled vector.  ids_out has room for clip_tokenizer_max ids. */
int      clip_tokenizer_encode(const struct clip_tokenizer *tokenizer, const char *text,
                               int32_t *ids_out, uint32_t *count_out, struct err *err);
uint32_t clip_tokenizer_max(const struct clip_tokenizer *tokenizer); /* 77 */
/* Every id is below this. */
int32_t clip_tokenizer_id_limit(const struct clip_tokenizer *tokenizer);

struct t5_tokenizer;
/* `folder` holds tokenizer.json or spiece.model, and optionally tokenizer_config.json
 * (model_max_length; 512 when absent). */
int  t5_tokenizer_open(struct t5_tokenizer **out, const char *folder, struct err *err);
void t5_tokenizer_close(struct t5_tokenizer *tokenizer);
/* Ids of `text` cut to `length` with the end token, padded to exactly `length`.
 * *used_out (may be NULL): ids before the padding. */
int t5_tokenizer_encode(const struct t5_tokenizer *tokenizer, const char *text, uint32_t length,
                        int32_t *ids_out, uint32_t *used_out, struct err *err);
uint32_t t5_tokenizer_max(const struct t5_tokenizer *tokenizer); /* model_max_length */
int32_t  t5_tokenizer_id_limit(const struct t5_tokenizer *tokenizer);

struct tokenizers {
    struct clip_tokenizer *clip; /* NULL until they are read */
    struct t5_tokenizer   *t5;
};
/* Those of a model's folder, unless they are there. */
int tokenizers_read(struct tokenizers *tokenizers, const char *folder, struct err *err);

/* ----------------------------------------------------------------------------------- layers */

/* y = x w^T + bias */
struct linear {
    struct matrix w;    /* [out, in] */
    const float  *bias; /* [out] or NULL */
};

/* Gathers weights into layer structs.  In a dry run (plans) no file is mapped: views have the right
 * shapes and an address that is never read. */
struct layer_loader {
    const struct model *model;
    enum model_part     part;
    struct arena       *vectors; /* where fp32 copies of vectors go                          */
    bool                dry;
    struct backend     *keeper; /* distant: views are of what it keeps; NULL: of the host   */
    const bool *streamed;   /* [BLOCKS_MAX] with a keeper: blocks that visit it; NULL: none       */
    char        scope[128]; /* put before every name asked for; empty at first          */
};
/* All names that follow are relative to this one, for example "encoder.block.%lld.". */
void layer_scope(struct layer_loader *loader, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
int layer_linear(struct linear *out, struct layer_loader *loader, const char *prefix, int64_t rows,
                 int64_t cols, bool bias, struct err *err);
/* Rows [first, first + rows) of a linear layer of rows_all rows. */
struct layer_slice {
    int64_t rows_all, first, rows, cols;
};
int layer_linear_slice(struct linear *out, struct layer_loader *loader, const char *prefix,
                       const struct layer_slice *slice, struct err *err);
/* A vector as fp32, in loader->vectors. */
int layer_vector(const float **out, struct layer_loader *loader, const char *name, int64_t count,
                 struct err *err);
int layer_matrix(struct matrix *out, struct layer_loader *loader, const char *name, int64_t rows,
                 int64_t cols, struct err *err);

/* A table [rows, cols] of the engine's own making, where the loader keeps vectors. */
int layer_table(struct matrix *out, struct layer_loader *loader, struct matrix source,
                struct err *err);
/* One layer of `count` neighbours of the same width, when they lie one after the other: they are
 * then one product.  False: `parts` stay as they are. */
bool layer_merge(struct linear *out, const struct linear *parts, size_t count);
/* y = act(x w^T + bias) with weights of the host, fetched for this once. */
void layer_run(struct backend *backend, struct matrix y, struct matrix x,
               const struct linear *linear, enum activation act);
/* The same for each of `count`, with weights fetched for all of them once. */
void layer_run_each(struct backend *backend, const struct matrix *y, const struct matrix *x,
                    size_t count, const struct linear *linear, enum activation act);

/* --------------------------------------------------------------------------------- networks */

/* Each network: *_load gathers views once; the forward functions run on a backend with scratch from
 * its arena, and rewind it before they return.  CLIP, T5, transformer_embed_text and
 * modulation_make read weights of the host; vae_* and transformer_forward read what their backend
 * can. */

struct clip;
int  clip_load(struct clip **out, struct layer_loader *loader, struct err *err);
void clip_free(struct clip *clip);
/* pooled_out [1, hidden] f32, from the row of the last id. */
void clip_forward(const struct clip *clip, struct backend *backend, const int32_t *ids,
                  uint32_t count, struct matrix pooled_out);

struct t5;
/* `tokens` is the one length that forward runs at: the table of position biases is made for it. */
int  t5_load(struct t5 **out, struct layer_loader *loader, uint32_t tokens, struct err *err);
void t5_free(struct t5 *t5);
/* ids [tokens], padding included and not masked; states_out [tokens, hidden] */
void t5_forward(const struct t5 *t5, struct backend *backend, const int32_t *ids,
                struct matrix states_out);
/* Bucket of a relative position key - query, as T5 was trained. */
int64_t t5_bucket(const struct t5_config *config, int64_t relative);

struct vae;
int  vae_load(struct vae **out, struct layer_loader *loader, struct err *err);
void vae_free(struct vae *vae);
/* From now on it takes less scratch and more time, to the same bits; level 0 is what it begins
 * with, and the last one takes the least.  Between them a small picture may take more at a further
 * level: maps that fit as they are take less than strips to make them again. */
enum { VAE_LEVELS = 5 };
void vae_limit(struct vae *vae, uint32_t level);
/* rgb [h * w, 3] f32 0..1 -> latent [h / f * w / f, latent_channels] f32 (posterior mean, shifted
 * and scaled), f = 2^(levels - 1) */
void vae_encode(const struct vae *vae, struct backend *backend, struct matrix rgb, int32_t w_px,
                int32_t h_px, struct matrix latent_out);
void vae_decode(const struct vae *vae, struct backend *backend, struct matrix latent, int32_t w_px,
                int32_t h_px, struct matrix rgb_out);

struct transformer;
/* With a keeper: without the layers that only a prompt reads. */
int  transformer_load(struct transformer **out, struct layer_loader *loader, struct err *err);
void transformer_free(struct transformer *transformer);
/* Most rows of tokens that the MLP of a block sees at a time, a multiple of the step; 0: all rows
 * at once.  Fewer take less scratch.  No bit changes as long as every part has more rows than
 * BACKEND_ROWS_FEW, which from TRANSFORMER_MLP_LEAST on they have; on the CPU, which multiplies by
 * pieces of the step's rows, as long as the last part has more than 16. */
enum { TRANSFORMER_MLP_STEP = 256, TRANSFORMER_MLP_LEAST = 3 * BACKEND_ROWS_FEW };
void transformer_set_mlp_rows(struct transformer *transformer, int64_t rows);
/* The rows of the next part, of `left` that are to come in parts of at most `most`: as few parts as
 * can be, of about the same size, whole steps but for the last. */
int64_t transformer_part_rows(int64_t left, int64_t most);

/* Everything that depends on prompt and schedule only, in host memory. */
struct conditioning {
    const float *text;       /* [text_tokens, hidden]: context_embedder applied */
    const float *modulation; /* [steps, modulation_count]                       */
    int64_t      text_tokens;
    uint32_t     steps;
};
/* text_out = context_embedder(states) */
void    transformer_embed_text(const struct transformer *transformer, struct backend *backend,
                               struct matrix states, struct matrix text_out);
int64_t modulation_count(const struct transformer *transformer);
/* Of these many stages of a picture while the weights pass once: a draft, and its tiles. */
enum { MODULATION_STAGES_MAX = 2 };
struct modulation_stage {
    const float *sigmas;    /* [steps]; read also in a dry run      */
    float       *table_out; /* [steps, modulation_count], host memory */
    uint32_t     steps;
};
struct modulation_request {
    double                  guidance;
    struct matrix           pooled;      /* [1, pooled_width] f32                    */
    uint32_t                stage_count; /* at least 1; none has a bit from another */
    struct modulation_stage stages[MODULATION_STAGES_MAX];
};
void modulation_make(const struct transformer *transformer, struct backend *backend,
                     const struct modulation_request *request);

/* Token grids have at most this many rows and columns: the length of the RoPE tables. */
enum { TRANSFORMER_SIDE_TOKENS_MAX = 4096 };

struct transformer_tile {
    const struct conditioning *conditioning;
    int32_t                    h_tokens, w_tokens;
    struct matrix              tokens;   /* [h * w, in_channels] f32  */
    struct matrix              velocity; /* [h * w, out_channels] f32; may lie where tokens do */
    /* set by transformer_forward, dead after it */
    struct matrix stream;     /* [text + h * w, hidden] f32 */
    struct matrix normed;     /* [text + h * w, hidden]     */
    struct matrix cos, sin;   /* [h * w, head_dim / 2] f32  */
    struct matrix modulation; /* [1, modulation_count] f32  */
};
void transformer_forward(const struct transformer *transformer, struct backend *backend,
                         struct transformer_tile *tiles, uint32_t count, uint32_t step);

/* -------------------------------------------------------------------------------- scheduler */

/* See scheduler.c. */
int scheduler_make(struct schedule *out, const struct scheduler_config *config,
                   const struct schedule_request *request, struct err *err);

#endif
