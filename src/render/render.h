/*
 * render.h - the life of one picture: draft, tiles, file.
 *
 * Rank 5.  Sees geometry, pixels and settings, and paints through struct painter: it knows neither
 * the engine nor devices.
 *
 * A poster is made beside its folder `<output>.mural`, which holds what is finished: a run that
 * ends early, however it ends, loses only the tiles in work, and the next one goes on to the same
 * bytes.
 */
#ifndef MURAL_RENDER_H
#define MURAL_RENDER_H

#include "base/base.h"
#include "config/config.h"
#include "image/image.h"
#include "memory/memory.h"
#include "tiling/tiling.h"

/* What the noise levels of a stage follow from. */
struct painter_levels {
    uint32_t steps;
    int64_t  tokens;      /* of one rectangle of this stage                                 */
    double   sigma_start; /* 1: from pure noise; below: from an encoded picture             */
    double   strength;    /* > 0: the reference image-to-image rule instead of sigma_start  */
    double   mu, mu_max;  /* shift exponent: fixed, or bounded; 0: the model's rule         */
};

/* What is the same for all rectangles of one stage (a draft, or the tiles of a poster). */
struct painter_stage {
    const char           *prompt;
    double                guidance;
    struct painter_levels levels;
    struct painter_levels next; /* of the stage that is to follow, of the same prompt and guidance:
                                   a painter may prepare for it in passing; steps 0: none      */
};

struct painter_tile {
    int32_t      w_px, h_px;
    const float *latent;   /* [h / 8, w / 8, channels] */
    float       *velocity; /* out, same shape */
};

struct painter_noise {
    uint64_t        seed;
    uint32_t        purpose; /* 0 draft, 1 tile */
    struct lat_rect rect;    /* on the canvas of this stage */
};

enum { PAINTER_TILES_MAX = 64 }; /* of one predict, whoever paints */

/* What a painter did with a GPU's memory: in all, and over time (seconds never fall). */
struct painter_memory {
    struct memory_use  use;
    uint32_t           sample_count;
    struct pool_sample samples[POOL_SAMPLES_MAX];
};

/* Who can paint?  The primitives that every way of rendering is made of: a loop over groups of
 * tiles now, all tiles of a canvas together per step later.  One stage is in use at a time, and a
 * painter is used by one thread at a time.
 *
 * A primitive that failed may be tried again when err_is_retryable: with ERR_PEER the painter has
 * arranged another worker for the next call by itself, which begins the stage anew.  ERR_CANCELLED
 * says that somebody asked to stop while the painter waited. */
struct painter {
    void    *self;
    int32_t  channels;  /* of a latent cell */
    uint32_t tiles_max; /* that one predict takes, at most PAINTER_TILES_MAX; 0 is 1 */

    /* Encode the prompt and fix the noise levels; how many steps will be run. */
    int (*begin)(void *self, const struct painter_stage *stage, uint32_t *steps_out,
                 struct err *err);
    void (*end)(void *self);

    void (*noise)(void *self, const struct painter_noise *request, float *noise_out);
    /* [h, w, 3] 0..1 -> latent */
    int (*encode)(void *self, const float *rgb, int32_t w_px, int32_t h_px, float *latent_out,
                  struct err *err);
    /* Latent at the first noise level of the stage; without a picture its content counts for
     * nothing. */
    void (*start)(void *self, float *latent, const float *noise, int64_t count);
    /* One step of `count` tiles, none of which sees another.  ERR_NUMERIC: all velocities are
     * written, and the tiles that failed are those with a NaN or an infinity in theirs; when there
     * is none, all did.  Any other error is of all tiles. */
    int (*predict)(void *self, const struct painter_tile *tiles, uint32_t count, uint32_t step,
                   struct err *err);
    /* latent moves from noise level `step` to the next along the velocity */
    void (*advance)(void *self, uint32_t step, float *latent, const float *velocity, int64_t count);
    /* latent -> [h, w, 3], about 0..1 */
    int (*decode)(void *self, const float *latent, int32_t w_px, int32_t h_px, float *rgb_out,
                  struct err *err);

    /* After ERR_DEVICE_MEM or ERR_HOST_MEM, before the next attempt: do with less memory from now
     * on, at the cost of time and of no bit.  What was given up and gained goes into words_out
     * [capacity], as in "block 7 stays on the host: 324 MB"; false: nothing is left to give up.
     * NULL: it never can. */
    bool (*yield_memory)(void *self, char *words_out, size_t capacity);

    /* Its memory since the last restart, in *out; `restart`: counting begins anew after that.
     * False: it uses no GPU, or cannot be asked now.  NULL: it never knows. */
    bool (*memory)(void *self, bool restart, struct painter_memory *out);
};

/* Sizes and settings of one job, fixed before anything is painted. */
struct render_plan {
    struct grid grid;
    int32_t     draft_w_px, draft_h_px;
    uint64_t    spool_bytes, output_bytes_worst;
    uint64_t    host_bytes; /* of render's own buffers, blend and file included */
};
int render_plan_make(struct render_plan *out, const struct config *config, struct err *err);
/* Memory that render itself takes at most: buffers, draft, blend and file.  `painters`: how many
 * will paint tiles, each up to `tiles_per_pass` at a time; 0: none, only drafts. */
uint64_t render_host_bytes(const struct config *config, const struct render_plan *plan,
                           int32_t channels, uint32_t painters, uint32_t tiles_per_pass);
/* Steps that every tile will run: the reference rule (`strength`) drops some. */
uint32_t render_tile_steps(const struct config *config);
/* Room on the disk that `output` goes to. */
int render_disk_free(uint64_t *bytes_out, const char *output, struct err *err);
/* The two stages, as the painter will get them; `tiles_follow`: the draft is that of a poster. */
struct painter_stage render_draft_stage(const struct config *config, const struct render_plan *plan,
                                        bool tiles_follow);
struct painter_stage render_tile_stage(const struct config *config, const struct render_plan *plan);

struct render_progress {
    const char *phase; /* "checking", "draft", "tiles", "file" */
    uint32_t    tiles_done, tiles_total;
    uint32_t    step, steps; /* of the rectangle in work; of several, the last that moved */
    uint64_t    steps_run;   /* of all rectangles in this run, each counted by itself */
    double      fraction;    /* of the job's arithmetic, 0..1 */
};
enum render_stop {
    RENDER_GO_ON = 0,
    RENDER_STOP_NOW,       /* at the next step, with ERR_CANCELLED */
    RENDER_STOP_AFTER_TILE /* after the draft or tiles in work, with ERR_CANCELLED */
};
/* Gives an enum render_stop; any other value means to stop now. */
typedef int (*render_progress_fn)(const struct render_progress *progress, void *user);

/* Progress over time as speed.  Begin with zeros and warmup_steps; all else is pace_note's. */
struct pace {
    uint32_t    warmup_steps;     /* first steps of the run that count for nothing */
    double      seconds_left;     /* negative: not known yet                       */
    double      steps_per_second; /* of this phase; 0: not known yet               */
    bool        warm;
    double      seconds, fraction; /* when counting began */
    const char *phase;
    double      phase_seconds;
    uint64_t    phase_steps;
};
/* `seconds` is any clock that only rises. */
void pace_note(struct pace *pace, const struct render_progress *now, double seconds);

/* Relative cost of the primitives, so that progress means time. */
struct render_costs {
    double draft_predict, draft_decode, encode, predict, decode, prompt;
};

enum render_mode {
    RENDER_BEGIN = 0, /* begin; or go on with a poster of the same settings, when there is one */
    RENDER_RESUME,    /* only go on */
    RENDER_RETRY      /* go on, after some tiles were forgotten */
};

/* Tiles to paint again, and how.  What is NULL is as in the settings. */
struct render_again {
    const char     *tiles; /* "3,7-9" */
    const uint64_t *seed;
    const char     *prompt;
};

struct render_request {
    enum render_mode          mode;
    struct render_again       again; /* RENDER_RETRY */
    const struct config      *config;
    const struct render_plan *plan;
    const struct painter *painters; /* [painter_count], all of the same model; drafts: the first */
    uint32_t              painter_count; /* at least 1 */
    uint32_t tiles_per_pass; /* that a painter paints in lockstep, where it can; 0 is 1 */
    struct render_costs  costs;
    const struct config *used; /* for metadata: config with "auto" replaced by facts */
    const char          *software;
    uint64_t             model_identity;
    const char          *numeric;            /* names the arithmetic: another gives other bits */
    double               retry_wait_seconds; /* before a second attempt; then doubled, up to 30 x */
    render_progress_fn   progress;           /* may be NULL */
    void                *user;
};

/* The settings that the poster of this name was begun with, as words; ERR_USAGE: there is none. */
int render_recall(struct config_words *out, const char *output, struct err *err);

/* Would render_poster refuse the request for what is there already, and is that the finished poster
 * itself?  The journal says it, or where none was kept, the file.  Needs no painters, so that the
 * answer comes before a model is loaded. */
int render_check(const struct render_request *request, bool *finished_out, struct err *err);

/* Prompt -> draft -> poster; or, when config.input names a picture, that picture -> poster.
 * Failures leave what is finished in `<output>.mural`.  ERR_PARTIAL: some tiles kept failing, the
 * others are finished.  ERR_USAGE: that folder belongs to another run, or to a poster that differs.
 * Nothing is allocated from the first tile to the last, but for prompts by the painters and for
 * plots of memory. */
int render_poster(const struct render_request *request, struct err *err);
/* config.count drafts as PNG, and a contact sheet of them when there are several. */
int render_drafts(const struct render_request *request, struct err *err);

#endif
