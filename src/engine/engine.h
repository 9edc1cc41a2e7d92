/*
 * engine.h - FLUX.1: a prompt and a rectangle in, pixels out.
 *
 * Rank 4.  Never includes tiling, image or config: it paints one rectangle, or a group of them at
 * one noise level, and does not know which canvas they belong to.  Floats in, floats out.
 *
 * Life of a picture: engine_open, engine_reserve (all scratch is committed here, nothing allocates
 * after it but prompt_open), prompt_open, then per tile engine_encode, engine_noise,
 * engine_predict + scheduler_step for each sigma, engine_decode.  An engine belongs to one thread.
 */
#ifndef MURAL_ENGINE_H
#define MURAL_ENGINE_H

#include "base/base.h"
#include "engine/tokenizers.h"
#include "memory/memory.h"

struct engine;
struct prompt;
enum precision { PRECISION_AUTO = 0, PRECISION_F32, PRECISION_BF16 };

/* Who computes.  WALLED is the CPU behind a wall, for tests: it has memory of its own, as a GPU. */
enum engine_machine { ENGINE_CPU = 0, ENGINE_CUDA, ENGINE_WALLED };

/* A GPU as it was found at some moment. */
struct engine_device {
    char     name[128];
    uint64_t bytes_total, bytes_free;
    int32_t  major, minor;          /* compute capability */
    char     numeric[96];           /* card and versions: what decides the bits of its results */
    double   link_bytes_per_second; /* see engine_link_speed */
    char absent[128]; /* after ERR_DEVICE: why there is none at all; empty: there is, and fails */
};

/* How a GPU's memory may be used; zeros: everything stays there, grown by the default step. */
struct engine_memory {
    uint64_t vram_bytes;     /* hard cap on all that this engine takes there; 0: what is free */
    bool     offload;        /* blocks of the transformer may live in the host's memory       */
    double   keep_share;     /* least share of the blocks' bytes that stays, 0..1             */
    uint32_t tiles_per_pass; /* most tiles that advance together; 0: the planner's choice      */
    bool     expandable; /* arenas grow and shrink by segments; else one piece of the plan's size */
    uint64_t segment_bytes;     /* growth step                                                    */
    double   fragmentation_max; /* share of mapped memory that may lie idle, kept from others     */
    uint64_t pool_bytes;        /* mapped at start, never given back                              */
    /* What was counted with when tiles_per_pass was decided; 0: not known. */
    double link_bytes_per_second, disk_bytes_per_second, flop_per_second;
};

struct engine_options {
    const char         *model_folder;
    const char         *transformer; /* overriding file or folder, or NULL */
    const char         *vae;
    enum engine_machine machine;
    int32_t             gpu;       /* number of the GPU, with ENGINE_CUDA */
    enum precision      precision; /* AUTO: bf16 where the machine multiplies bf16 in hardware */
    uint32_t            threads;   /* 0: all */
    uint32_t  text_tokens;         /* T5 length; 0: model_max_length of tokenizer_2, at most 512 */
    uint64_t *pulse;               /* as in struct backend_options; NULL: nobody watches */
    int       shared_fd;           /* that workers share weights in, as there; 0: none */
    void     *exchange;            /* that callers' floats lie in, as there */
    uint64_t  exchange_bytes;      /* 0: none */
    const struct engine_device *device; /* that GPU, if found before; NULL: the driver is asked */
    struct engine_memory        memory; /* of a GPU */
    bool text_on_cpu; /* beside a GPU: it rounds otherwise: engine_numeric_version tells it */
    struct tokenizers *tokenizers; /* of that model; NULL: the engine reads its own */
};

/* Facts for plans and for callers' buffers; reading them touches no weights. */
struct engine_facts {
    uint64_t weight_bytes; /* on disk, all four parts */
    int64_t  hidden, heads, doubles, singles;
    int32_t  latent_channels; /* 16 */
    int32_t  px_per_lat;      /* 8: 2^(VAE levels - 1) */
    int32_t  px_per_token;    /* 16: sides must be multiples of it */
    uint32_t text_tokens;
    bool     bf16, guidance; /* guidance false: its value is ignored (schnell) */
};

enum { ENGINE_SIZES_MAX = 8 }; /* of one engine */
/* What a rectangle costs, measured by a dry run of the very code that paints it. */
struct engine_cost {
    uint64_t scratch_bytes; /* of encode, predict and decode, and of a prompt while it is made */
    uint64_t fixed_bytes;   /* workspace; on the CPU also vectors and tables of one prompt     */
    uint64_t kept_bytes;    /* of a GPU: weights that stay there                               */
    uint64_t host_bytes;    /* beside a GPU: vectors, tables of one prompt, buffers            */
    struct {
        double prompt, encode, predict, decode;
    } flop[ENGINE_SIZES_MAX]; /* of each size; predict: one step */
};

struct engine_size {
    int32_t  w_px, h_px;
    uint32_t tiles;             /* rectangles predicted together */
    uint32_t steps, steps_next; /* of the sigma list, and of a prompt's `next`; 0: it has none */
};

/* Reads configurations, and for a GPU headers of weights.  Bytes are the most of all sizes: what
 * engine_reserve takes, and prompt_open for one prompt and what it makes ahead. */
int engine_estimate(struct engine_cost *cost_out, struct engine_facts *facts_out,
                    const struct engine_options *options, const struct engine_size *sizes,
                    size_t size_count, struct err *err);

/* The GPU of the options, from them or from the driver, which opens a context in this process.
 * ERR_DEVICE, ERR_DEVICE_MEM: one sentence, and in *out whether there is one at all. */
int engine_find_device(struct engine_device *out, const struct engine_options *options,
                       struct err *err);

/* A GPU to plan for; it need not be there.  0 bytes or 0 per second: not known. */
struct engine_card {
    uint64_t vram_bytes; /* for this program; options.memory.vram_bytes may be less */
    uint64_t host_bytes, host_free_bytes;
    double   link_bytes_per_second, disk_bytes_per_second, flop_per_second; /* see below */
};

/* Who gets how much of it. */
struct engine_outlook {
    uint64_t cap_bytes, device_bytes; /* what may be taken, and what is: of that, */
    uint64_t resident_bytes, ring_bytes, scratch_bytes, ends_bytes, fixed_bytes;
    uint64_t streamed_bytes; /* over the link in a step, for all tiles of a pass */
    uint64_t pinned_bytes;   /* of the host's memory; the rest of them comes from files */
    uint32_t blocks, blocks_resident, tiles_per_pass;
    uint32_t strip_level, strip_levels; /* 0: the VAE has all the room it can use */
    double   compute_seconds, link_seconds, disk_seconds; /* of a step of a pass; 0: not known */
    bool     text_on_cpu;
};

/* Decides it, for a GPU, by dry runs alone; engine_reserve decides the same from the same numbers.
 * `tiles` of a size is how many can be ready together, at most 16; a pass may take fewer.
 * `text_may_move`: text encoders may go to the CPU.  ERR_DEVICE_MEM: what is short by how much. */
int engine_plan_memory(struct engine_outlook *out, const struct engine_options *options,
                       const struct engine_card *card, bool text_may_move,
                       const struct engine_size *sizes, size_t size_count, struct err *err);
/* The GPU of the options as it is now, and this host; rates stay as they are. */
int engine_card_here(struct engine_card *card, const struct engine_options *options,
                     struct err *err);

/* FLOPs per second in a short trial, in this process, at the widths of which the facts tell. */
int engine_speed(double *flops_per_second_out, const struct engine_options *options,
                 const struct engine_facts *facts, struct err *err);
/* Bytes a second from pinned memory to the GPU of the options, tried in this process; and from the
 * transformer's files, past the page cache.  0: cannot be told; files are too small, say. */
double engine_link_speed(const struct engine_options *options);
double engine_disk_speed(const struct engine_options *options);

/* Maps the weights and checks every tensor that will be used. */
int  engine_open(struct engine **out, const struct engine_options *options, struct err *err);
void engine_close(struct engine *engine);
struct engine_facts engine_facts(const struct engine *engine);
uint64_t            engine_model_identity(const struct engine *engine);

/* What decides the bits of a picture besides its settings: where two agree, they paint the same. */
struct engine_identity {
    uint64_t model;        /* engine_model_identity */
    char     numeric[128]; /* version and precision of the arithmetic, library, machine */
};
/* Maps the weights for a moment. */
int engine_identify(struct engine_identity *out, const struct engine_options *options,
                    struct err *err);
/* The `numeric` of it alone; reads no files, but asks a GPU for its name.  Returns out. */
const char *engine_numeric_version(char out[128], const struct engine_options *options);

/* Do with less of a GPU's memory from now on, at the cost of time and of no bit; between
 * primitives, after ERR_DEVICE_MEM.  What was given up, and what it gained, goes into words_out
 * [capacity].  False: nothing is left to give up, or there is no cap. */
bool engine_yield_memory(struct engine *engine, char *words_out, size_t capacity);

/* Commit scratch for the largest of these sizes; on a GPU also copy the weights there that stay,
 * and try the ways to multiply these shapes.  Afterwards nothing allocates. */
int engine_reserve(struct engine *engine, const struct engine_size *sizes, size_t size_count,
                   struct err *err);

/* --------------------------------------------------------------------------------- schedule */

enum { SCHEDULE_STEPS_MAX = 1000 };

/* sigma[0] is where sampling starts, sigma[steps] is 0. */
struct schedule {
    uint32_t steps;
    float    sigma[SCHEDULE_STEPS_MAX + 1];
};

struct schedule_request {
    uint32_t steps;       /* to run; with strength: of the whole schedule from pure noise      */
    int64_t  tokens;      /* image tokens of the picture that is denoised                      */
    double   sigma_start; /* in (0, 1]: first sigma; unused with strength                      */
    double   strength;    /* (0, 1]: image-to-image by the reference pipeline's rule instead:
                             the first int(max(steps - min(steps * strength, steps), 0)) of
                             the steps are dropped; 0: not used                                */
    double mu;            /* > 0: fixed shift exponent; 0: by the model's rule from `tokens`   */
    double mu_max;        /* > 0: upper bound on the rule's exponent                           */
};
int schedule_make(struct schedule *out, const struct engine *engine,
                  const struct schedule_request *request, struct err *err);
/* latent += (sigma[step + 1] - sigma[step]) * velocity */
void scheduler_step(const struct schedule *schedule, uint32_t step, float *latent,
                    const float *velocity, int64_t count);

/* ----------------------------------------------------------------------------------- prompt */

/* Text states, pooled vector, every modulation vector of every step: computed once.  The text is
 * UTF-8; invalid UTF-8 is ERR_USAGE.  `next`, or NULL: the schedule of a prompt of the same text
 * and guidance that follows: made ahead, for the very next prompt_open.  No bit depends on it. */
struct prompt_request {
    const char            *text;
    double                 guidance;
    const struct schedule *schedule, *next;
};
int  prompt_open(struct prompt **out, struct engine *engine, const struct prompt_request *request,
                 struct err *err);
void prompt_close(struct prompt *prompt); /* before its engine or after it, in its thread */

/* What this engine did with a GPU's memory since the last restart, or since it was opened; zeros
 * where it uses none.  The history has the highest values of each lap of time. */
void     engine_memory_restart(struct engine *engine);
void     engine_memory_use(const struct engine *engine, struct memory_use *out);
uint32_t engine_memory_history(const struct engine *engine,
                               struct pool_sample   out[POOL_SAMPLES_MAX]);

/* ------------------------------------------------------------------------------- primitives */

/* Latents are [h_px / 8, w_px / 8, latent_channels] f32, scaled and shifted as the transformer sees
 * them.  Pixels are [h_px, w_px, 3] f32, 0..1. */
int engine_encode(struct engine *engine, const float *rgb, int32_t w_px, int32_t h_px,
                  float *latent_out, struct err *err);
int engine_decode(struct engine *engine, const float *latent, int32_t w_px, int32_t h_px,
                  float *rgb_out, struct err *err);

struct engine_tile {
    const struct prompt *prompt;
    int32_t              w_px, h_px;
    const float         *latent;
    float               *velocity; /* out, same shape */
};
/* Velocity of several tiles at one noise level, layer by layer, so that weights pass once.  All
 * values are checked: NaN or infinity is ERR_NUMERIC. */
int engine_predict(struct engine *engine, const struct engine_tile *tiles, uint32_t count,
                   uint32_t step, struct err *err);

/* Noise of the cells [x, x + w) x [y, y + h) of the canvas, [h, w, channels]. */
struct engine_noise_request {
    uint64_t seed;
    uint32_t purpose; /* 0 draft, 1 tile */
    int32_t  x_lat, y_lat, w_lat, h_lat;
};
void engine_noise(const struct engine *engine, const struct engine_noise_request *request,
                  float *noise_out);
/* latent = (1 - sigma) * latent + sigma * noise */
void engine_mix_noise(float *latent, const float *noise, float sigma, int64_t count);

#endif
