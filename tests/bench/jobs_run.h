/*
 * jobs_run.h - one job painted in one way of using a GPU's memory, as `mural render` paints: an
 * engine of its own (studio.c), a group of tiles with its retries (tile.c).
 *
 * Owns what stands between the two: a painter that passes every call on and, before the call that
 * the job names, lets another program take memory.  Knows nothing of the ladder: in MODE_SEGMENTS
 * the painter may be asked to yield memory, in the others it may not.  What an engine does by
 * itself while it makes itself ready, it does in all of them.
 */
#ifndef MURAL_JOBS_RUN_H
#define MURAL_JOBS_RUN_H

#include "jobs_card.h"
#include "jobs_list.h"

#include "engine/compute_int.h"
#include "fleet/fleet_int.h"
#include "render/render_int.h"

enum mode { MODE_PLAIN = 0, MODE_OFFLOAD, MODE_SEGMENTS, MODE_COUNT };
static const char *const mode_names[MODE_COUNT] = {"plain", "offload", "offload+segments"};

enum cause {
    CAUSE_NONE = 0, /* it was painted, to the bytes of the reference */
    CAUSE_REFUSED,  /* the plan said beforehand that it does not fit */
    CAUSE_OPENING,  /* memory ran short while the engine took its own */
    CAUSE_PAINTING, /* and while tiles were painted */
    CAUSE_PIXELS,   /* other bytes than those of the reference */
    CAUSE_OTHER,
    CAUSE_COUNT
};
static const char *const cause_names[CAUSE_COUNT] = {
    "none", "refused", "short at start", "short while painting", "wrong pixels", "other"};

struct outcome {
    enum cause cause;
    struct err why;
    uint64_t   hash;                    /* of all samples, in the order of the tiles */
    uint64_t   free_bytes, taken_bytes; /* at the job's start; by the other program  */
    uint64_t   card_bytes;              /* most that was seen to be gone from the card
                                           beside what the bench holds               */
    struct memory_use use;
    uint32_t          rungs;                 /* of the ladder */
    double            step_seconds, seconds; /* of all steps; of the job */
};

/* All that jobs share. */
struct workshop {
    struct engine_options options; /* without memory */
    double                link_bytes_per_second, flop_per_second;
    int32_t               overlap_px;
    uint64_t              library_bytes; /* that a context and libraries would take of each card */
    struct card           card;
    struct studio        *reference; /* with all memory that there is */
};

/* ---------------------------------------------------------------------------- the workshop */

/* What a context and libraries were seen to take of an H100; a plan sets a little more aside. */
static const uint64_t LIBRARIES_SEEN_BYTES = 546000000;

/* The smallest cap, in whole granules, that a budget can be made for. */
static inline double least_cap(struct budget_facts *facts)
{
    struct budget budget;
    uint64_t      low = 1, high = (uint64_t)1 << 21;

    while (low < high) {
        uint64_t   middle = low + (high - low) / 2;
        struct err refused = {.code = ERR_OK};
        facts->allowed.vram_bytes = middle * BUDGET_GRANULE_BYTES;
        if (budget_make(&budget, facts, &refused) == ERR_OK)
            high = middle;
        else
            low = middle + 1;
    }
    return (double)(low * BUDGET_GRANULE_BYTES);
}

/* Also how much of every card libraries take: where there are none, as much as is planned. */
static inline int workshop_needs(struct jobs_needs *out, struct workshop *shop, int32_t side_px,
                                 uint32_t steps, struct err *err)
{
    int                  rc = ERR_OK;
    struct engine       *engine = NULL;
    struct engine_size   size = {.w_px = side_px, .h_px = side_px, .tiles = 1, .steps = steps};
    struct engine_card   card = {.vram_bytes = (uint64_t)1 << 42};
    struct engine_memory memory = {.expandable = true};
    struct budget_facts  facts;

    TRY(engine_open(&engine, &shop->options, err));
    TRY(measure_budget(&facts, engine, &size, 1, err));
    budget_allow(&facts, &memory, &card);
    shop->library_bytes = facts.fixed_bytes;
    if (shop->options.machine == ENGINE_CUDA) shop->library_bytes = LIBRARIES_SEEN_BYTES;
    out->placed = least_cap(&facts);
    facts.allowed.offload = true;
    out->least = least_cap(&facts);
out:
    engine_close(engine);
    return rc;
}

/* The engine that paints what others are compared with. */
static inline int workshop_reference(struct workshop *shop, const struct jobs_plan *plan,
                                     struct err *err)
{
    struct engine_size sizes[JOBS_SIDES_MAX];

    for (uint32_t i = 0; i < plan->side_count; i++)
        sizes[i] = (struct engine_size){.w_px = plan->sides_px[i],
                                        .h_px = plan->sides_px[i],
                                        .tiles = plan->tiles_most,
                                        .steps = plan->steps};
    return studio_open(&shop->reference, &shop->options, sizes, plan->side_count, err);
}

/* ------------------------------------------------------------------------ the other program */

/* Between the calls of a painter and in an engine that takes its memory. */
struct disturbance {
    struct card      *card;
    const struct job *job;
    struct outcome   *out;
    uint32_t          calls[MOMENT_COUNT];
    uint64_t          library_bytes;
    uint32_t          requests; /* of the host's memory by an engine that reserves */
    bool              armed;    /* there is an engine, which is about to reserve   */
    void *(*calloc)(size_t count, size_t bytes);
};
static struct disturbance disturbance; /* of the job in work: a log and a call table have no self */

static inline void note_card(void)
{
    const struct disturbance *now = &disturbance;
    uint64_t                  left = card_free(now->card) + now->card->held[HOLDER_BALLAST];

    if (left < now->out->free_bytes)
        now->out->card_bytes = max_u64(now->out->card_bytes, now->out->free_bytes - left);
}

static inline void disturb(enum moment moment)
{
    struct disturbance *now = &disturbance;

    if (now->job->moment != moment || now->calls[moment]++ != now->job->at) return;
    card_take(now->card, HOLDER_BALLAST, now->job->ballast_bytes);
    now->out->taken_bytes = now->card->held[HOLDER_BALLAST];
}

/* The engine's requests of the host's memory tell how far it is: with the first it has not asked
 * the driver yet how much is free, with the second it has.  Then libraries take theirs; and after
 * some more, before the engine takes any, another program may.  */
static inline void *disturbing_calloc(size_t count, size_t bytes)
{
    struct disturbance *now = &disturbance;

    if (now->armed && ++now->requests == 2)
        card_take(now->card, HOLDER_LIBRARIES, now->library_bytes);
    if (now->armed && now->requests > 2) disturb(MOMENT_RESERVE);
    return now->calloc(count, bytes);
}

static inline void hear(enum log_level level, const char *line, void *user)
{
    const char *verbose = getenv("BENCH_JOBS_VERBOSE");

    (void)user;
    if (verbose != NULL && level >= LOG_INFO) fprintf(stderr, "%s\n", line);
    if (disturbance.out == NULL) return;
    if (strncmp(line, "weights ", 8) == 0) disturbance.armed = true;
    for (int rung = 0; rung < RUNG_COUNT; rung++)
        if (level == LOG_WARN && strstr(line, budget_rung_name((enum budget_rung)rung)) != NULL)
            disturbance.out->rungs++;
}

/* ---------------------------------------------------------------------- a painter in between */

static inline int passed_begin(void *self, const struct painter_stage *stage, uint32_t *steps_out,
                               struct err *err)
{
    const struct painter *inner = self;

    disturb(MOMENT_PROMPT);
    int rc = inner->begin(inner->self, stage, steps_out, err);
    note_card();
    return rc;
}
static inline void passed_end(void *self)
{
    const struct painter *inner = self;
    inner->end(inner->self);
}
static inline void passed_noise(void *self, const struct painter_noise *request, float *noise_out)
{
    const struct painter *inner = self;
    inner->noise(inner->self, request, noise_out);
}
static inline int passed_encode(void *self, const float *rgb, int32_t w_px, int32_t h_px,
                                float *latent_out, struct err *err)
{
    const struct painter *inner = self;

    disturb(MOMENT_ENCODE);
    return inner->encode(inner->self, rgb, w_px, h_px, latent_out, err);
}
static inline void passed_start(void *self, float *latent, const float *noise, int64_t count)
{
    const struct painter *inner = self;
    inner->start(inner->self, latent, noise, count);
}
static inline int passed_predict(void *self, const struct painter_tile *tiles, uint32_t count,
                                 uint32_t step, struct err *err)
{
    const struct painter *inner = self;

    disturb(MOMENT_STEP);
    return inner->predict(inner->self, tiles, count, step, err);
}
static inline void passed_advance(void *self, uint32_t step, float *latent, const float *velocity,
                                  int64_t count)
{
    const struct painter *inner = self;
    inner->advance(inner->self, step, latent, velocity, count);
}
static inline int passed_decode(void *self, const float *latent, int32_t w_px, int32_t h_px,
                                float *rgb_out, struct err *err)
{
    const struct painter *inner = self;

    disturb(MOMENT_DECODE);
    return inner->decode(inner->self, latent, w_px, h_px, rgb_out, err);
}
static inline bool passed_yield(void *self, char *words_out, size_t capacity)
{
    const struct painter *inner = self;
    return inner->yield_memory(inner->self, words_out, capacity);
}

static inline struct painter between(struct painter *inner, bool may_yield)
{
    return (struct painter){.self = inner,
                            .channels = inner->channels,
                            .tiles_max = inner->tiles_max,
                            .begin = passed_begin,
                            .end = passed_end,
                            .noise = passed_noise,
                            .encode = passed_encode,
                            .start = passed_start,
                            .predict = passed_predict,
                            .advance = passed_advance,
                            .decode = passed_decode,
                            .yield_memory = may_yield ? passed_yield : NULL};
}

/* ----------------------------------------------------------------------------- a job's picture */

enum { GUIDE_SIDE_PX = 32, JOB_TILES_MAX = 8 };

/* What a poster's run would have at hand when it comes to its tiles. */
struct easel {
    struct config         config;
    struct render_plan    plan;
    struct render_request request;
    uint16_t              pixels[GUIDE_SIDE_PX * GUIDE_SIDE_PX * 3];
    struct image          draft;
    struct upscale       *guide;
};

/* The job's tiles in a row. */
static inline int easel_open(struct easel *easel, const struct workshop *shop,
                             const struct job *job, struct err *err)
{
    int            rc = ERR_OK;
    struct config *config = &easel->config;
    uint64_t       state = job->seed;

    config_defaults(config);
    (void)snprintf(config->prompt, sizeof config->prompt, "job %u", job->number);
    config->height_px = config->tile_px = job->side_px;
    config->overlap_px = shop->overlap_px;
    config->width_px =
        (int32_t)job->tiles * job->side_px - ((int32_t)job->tiles - 1) * shop->overlap_px;
    (void)snprintf(config->fit, sizeof config->fit, "exact");
    config->steps = (int32_t)job->steps;
    TRY(render_plan_make(&easel->plan, config, err));
    must(grid_count(&easel->plan.grid) == job->tiles && job->tiles <= JOB_TILES_MAX);
    for (size_t i = 0; i < ARRAY_COUNT(easel->pixels); i++)
        easel->pixels[i] = (uint16_t)random_u64(&state);
    easel->draft = (struct image){.w = GUIDE_SIDE_PX, .h = GUIDE_SIDE_PX, .rgb = easel->pixels};
    TRY(upscale_open(&easel->guide, &easel->draft, config->width_px, config->height_px, err));
    easel->request = (struct render_request){.config = config,
                                             .plan = &easel->plan,
                                             .painter_count = 1,
                                             .tiles_per_pass = job->tiles,
                                             .costs = {1, 1, 1, 1, 1, 1},
                                             .used = config};
out:
    return rc;
}

/* All tiles of the job.  A tile that fails as often as it may is the job's failure. */
static inline int paint_tiles(struct outcome *out, struct easel *easel, struct painter *painter,
                              const struct job *job, struct err *err)
{
    int                rc = ERR_OK;
    struct tile_desk  *desk = NULL;
    struct tile_job    jobs[JOB_TILES_MAX];
    struct tile_result result;
    uint64_t           hashes[JOB_TILES_MAX] = {0};
    uint64_t           bytes = (uint64_t)job->side_px * (uint64_t)job->side_px * 3 * 2;
    struct meter       meter;

    easel->request.painters = painter;
    meter_open(&meter, &easel->request);
    TRY(tile_desk_open(&desk, &easel->request, painter, job->tiles, err));
    for (uint32_t i = 0; i < job->tiles; i++)
        jobs[i] = (struct tile_job){.guide = easel->guide,
                                    .number = i + 1,
                                    .seed = job->seed,
                                    .prompt = easel->config.prompt};
    tile_take(desk, jobs, job->tiles);
    for (;;) {
        TRY(tile_next(desk, &meter, &result, err));
        if (result.number == 0) break;
        if (result.samples == NULL) {
            *err = result.why;
            rc = (int)err->code;
            goto out;
        }
        hashes[result.number - 1] = hash64(result.samples, bytes, 0);
        out->step_seconds += result.step_seconds;
    }
    out->hash = hash64(hashes, job->tiles * sizeof *hashes, 0);
out:
    tile_desk_close(desk);
    meter_close(&meter);
    return rc;
}

/* ------------------------------------------------------------------------------------- modes */

static inline struct engine_memory mode_memory(const struct workshop *shop, enum mode mode,
                                               uint64_t free_bytes)
{
    return (struct engine_memory){.vram_bytes = free_bytes,
                                  .offload = mode != MODE_PLAIN,
                                  .keep_share = 0.2,
                                  .expandable = mode == MODE_SEGMENTS,
                                  .fragmentation_max = 0.15,
                                  .link_bytes_per_second = shop->link_bytes_per_second,
                                  .flop_per_second = shop->flop_per_second};
}

static inline int open_studio(struct studio **out, const struct workshop *shop,
                              const struct engine_memory *memory, const struct job *job,
                              struct err *err)
{
    struct engine_options options = shop->options;
    struct engine_size    size = {
           .w_px = job->side_px, .h_px = job->side_px, .tiles = job->tiles, .steps = job->steps};

    options.memory = *memory;
    return studio_open(out, &options, &size, 1, err);
}

static inline enum cause cause_of(const struct err *err, bool opening)
{
    if (err->code != ERR_DEVICE_MEM) return CAUSE_OTHER;
    if (!opening) return CAUSE_PAINTING;
    return strncmp(err->text, "plan: ", 6) == 0 ? CAUSE_REFUSED : CAUSE_OPENING;
}

/* The reference for one job, of all memory that there is. */
static inline int run_reference(uint64_t *hash_out, const struct workshop *shop,
                                const struct job *job, struct err *err)
{
    static struct easel easel;
    int                 rc = ERR_OK;
    struct painter      painter = studio_painter(shop->reference);
    struct outcome      out = {.cause = CAUSE_NONE};

    memset(&easel, 0, sizeof easel);
    TRY(easel_open(&easel, shop, job, err));
    TRY(paint_tiles(&out, &easel, &painter, job, err));
    *hash_out = out.hash;
out:
    upscale_close(easel.guide);
    return rc;
}

static inline int paint_in(struct outcome *out, const struct workshop *shop, const struct job *job,
                           enum mode mode, bool *opening, struct err *err)
{
    static struct easel          easel;
    static struct painter_memory told;
    int                          rc = ERR_OK;
    struct studio               *studio = NULL;
    struct engine_memory         memory = mode_memory(shop, mode, out->free_bytes);
    struct painter               inner, painter;

    memset(&easel, 0, sizeof easel);
    TRY(easel_open(&easel, shop, job, err));
    disturbance.calloc = os.calloc;
    os.calloc = disturbing_calloc;
    rc = open_studio(&studio, shop, &memory, job, err);
    os.calloc = disturbance.calloc;
    if (rc != ERR_OK) goto out;
    *opening = false;
    note_card();
    inner = studio_painter(studio);
    painter = between(&inner, mode == MODE_SEGMENTS);
    rc = paint_tiles(out, &easel, &painter, job, err);
    note_card();
    (void)inner.memory(inner.self, false, &told);
    out->use = told.use;
out:
    studio_close(studio);
    upscale_close(easel.guide);
    return rc;
}

/* One job in one mode; `wanted` is the reference's hash.  What it fails of is its outcome.  The
 * card stays as small as it is for the same job in another mode; HOLDER_FILLER is to be dropped
 * then. */
static inline void run_job(struct outcome *out, struct workshop *shop, const struct job *job,
                           enum mode mode, uint64_t wanted)
{
    struct err err = {.code = ERR_OK};
    bool       opening = true;
    double     begun;

    *out = (struct outcome){.cause = CAUSE_NONE};
    card_leave(&shop->card, job->cap_bytes);
    out->free_bytes = card_free(&shop->card);
    disturbance = (struct disturbance){
        .card = &shop->card, .job = job, .out = out, .library_bytes = shop->library_bytes};
    begun = os_seconds();
    if (paint_in(out, shop, job, mode, &opening, &err) != ERR_OK)
        out->cause = cause_of(&err, opening);
    else if (out->hash != wanted)
        out->cause = CAUSE_PIXELS;
    out->seconds = os_seconds() - begun;
    out->why = err;
    disturbance = (struct disturbance){.card = NULL};
    card_drop(&shop->card, HOLDER_BALLAST);
    card_drop(&shop->card, HOLDER_LIBRARIES);
}

#endif
