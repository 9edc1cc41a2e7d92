/*
 * compute_int.h - the engine as its own files see it: networks on a backend, what they cost,
 * prompts.
 *
 * Private to engine/.  Read next: reserve.c, compute.c.
 */
#ifndef MURAL_COMPUTE_INT_H
#define MURAL_COMPUTE_INT_H

#include "engine/engine_int.h"

/* ----------------------------------------------------------------------------------- engine */

struct networks {
    struct clip        *clip;
    struct t5          *t5;
    struct vae         *vae;
    struct transformer *transformer;
};

/* What products are formed in on a machine. */
enum dtype engine_compute(enum engine_machine machine, enum precision precision);

/* The text of the last prompt, and what it became: the two stages of a poster have the same. */
struct embedded_text {
    int32_t *ids; /* as prompt.c lays them out */
    uint32_t clip_count;
    float   *text, *pooled; /* [text_tokens, hidden], [clip.hidden] */
    bool     known;
};

/* Modulation of that text that was made in passing, for the stage that is to follow. */
struct modulation_ahead {
    float          *table; /* [schedule.steps, modulation_count]; NULL: none */
    struct schedule schedule;
    double          guidance;
};

/* One engine belongs to one thread.  engine_estimate uses one whose weights were never mapped. */
struct engine {
    struct model            *model;
    struct networks          networks;       /* of the host                                       */
    struct networks          painters;       /* VAE and transformer as `backend` reads them       */
    struct arena            *vectors;        /* fp32 copies of biases and norm weights            */
    struct tokenizers       *own_tokenizers; /* NULL: they are the caller's                     */
    struct clip_tokenizer   *clip_tokenizer; /* of either                                       */
    struct t5_tokenizer     *t5_tokenizer;
    struct engine_facts      facts;
    struct backend_options   machine;      /* for tiles; its arena limit is what they take      */
    struct backend_options   text_machine; /* for prompts: always fp32                          */
    struct pool             *pool;         /* of a distant machine: all that both backends take */
    struct backend          *backend;      /* for tiles; NULL until engine_reserve              */
    struct transformer_tile *tiles;        /* [tiles_max]                                       */
    uint32_t                 tiles_max, steps_max, steps_next_max;
    struct engine_memory     memory; /* what is allowed of a distant machine              */
    struct engine_size       sizes[ENGINE_SIZES_MAX]; /* what was reserved for                  */
    size_t                   size_count;
    struct budget_facts      needs;    /* of these sizes; with a cap only                      */
    struct budget            budget;   /* of the GPU: which blocks visit it                    */
    int64_t                  mlp_rows; /* see transformer_set_mlp_rows                         */
    struct memory_use        told;     /* calls and link at the last engine_memory_restart     */
    struct embedded_text     embedded; /* allocated by the first prompt                        */
    struct modulation_ahead  ahead;    /* of a prompt to come, with the text of `embedded`     */
    struct prompt           *prompts;  /* that are open, and pinned by `backend`               */
};

/* An engine that measures only: no file of weights is mapped. */
int engine_open_dry(struct engine **out, const struct engine_options *options, struct err *err);

/* VAE and transformer as `backend` reads them: on a distant machine copies of what tiles need,
 * which it keeps as long as it is open; elsewhere the host's own.  Closed by engine_release. */
int  engine_keep(struct networks *out, const struct engine *engine, struct backend *backend,
                 struct err *err);
void engine_release(struct networks *networks, const struct engine *engine);

/* Most rows that an MLP sees at a time at a level of the budget, for the largest of these sizes; 0:
 * all of them. */
int64_t engine_mlp_rows(const struct engine *engine, const struct engine_size *sizes,
                        size_t size_count, uint32_t level);
/* ERR_DEVICE_MEM when memory was given up and not to be had again. */
int engine_check_ready(const struct engine *engine, struct err *err);
/* Gives the machine's memory of tiles to a prompt, and takes it back. */
void engine_lend_memory(struct engine *engine);
int  engine_reclaim_memory(struct engine *engine, struct err *err);

/* The primitives of engine.h without their checks, on any backend.  In a dry run the host pointers
 * are never read. */
struct compute {
    const struct engine   *engine;
    const struct networks *painters;
    struct backend        *backend;
};
void compute_encode(const struct compute *compute, const float *rgb, int32_t w_px, int32_t h_px,
                    float *latent_out);
void compute_decode(const struct compute *compute, const float *latent, int32_t w_px, int32_t h_px,
                    float *rgb_out);
/* work: [count], uninitialised. */
void compute_predict(const struct compute *compute, struct transformer_tile *work,
                     const struct engine_tile *tiles, uint32_t count, uint32_t step);

/* What some sizes take: of each number the largest. */
struct measured {
    uint64_t            tile_bytes, tile_workspace_bytes; /* arena and more of engine.machine  */
    uint64_t            text_bytes, text_workspace_bytes; /* the same of engine.text_machine   */
    uint64_t            kept_matrix_bytes, kept_vector_bytes; /* of a distant engine.machine   */
    struct parcel_sizes parcels;                              /* the same                      */
    uint64_t            table_bytes; /* of one prompt                     */
    struct engine_cost  cost;
};
int measure_sizes(struct measured *out, const struct engine *engine,
                  const struct engine_size *sizes, size_t size_count, struct err *err);
/* Goes through everything that these sizes ask of the engine's own backend, which rehearses. */
int measure_rehearse(const struct engine *engine, const struct engine_size *sizes,
                     size_t size_count, struct err *err);

struct prompt {
    float              *text, *modulation; /* owned; see struct conditioning */
    struct conditioning conditioning;
    struct engine      *engine; /* that has it in its list; NULL: none, or it was closed before */
    struct prompt      *next;   /* in that list */
};

/* Ids to conditioning, on any backend: what prompt_open does and engine_estimate measures. */
struct prompt_input {
    const int32_t *clip_ids, *t5_ids; /* [clip_count], [text_tokens] */
    uint32_t       clip_count;
    double         guidance;
    float         *pooled;   /* [clip.hidden], on the host: filled on the way            */
    bool           embedded; /* text_out and pooled are there already, and only read     */

    uint32_t                stage_count; /* of the prompt itself, and of one to come */
    struct modulation_stage stages[MODULATION_STAGES_MAX];
};
void prompt_compute(const struct engine *engine, struct backend *backend,
                    const struct prompt_input *input, float *text_out);
/* The backend that the engine has now pins what its prompts need in every step. */
void prompt_pin_all(const struct engine *engine);
/* Frees what engine.embedded and engine.ahead point to; prompts that are open do without the engine
 * from now on.  Its backend was closed before. */
void prompt_forget(struct engine *engine);
/* Bytes of a prompt's own tables, with those that are made in passing. */
uint64_t prompt_bytes(const struct engine *engine, uint32_t steps, uint32_t steps_next);

#endif
