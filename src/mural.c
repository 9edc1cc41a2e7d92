/*
 * mural.c - the library behind mural.h: settings, plan, engine and render wired together.
 *
 * Owns the job.  The only file that sees both the engine and render: it hands render a painter made
 * of the engine's primitives, and the plan numbers made of the engine's dry runs.
 *
 * Read next: render/render.c.
 */
#include "mural.h"

#include "config/config.h"
#include "engine/engine.h"
#include "render/render.h"
#include "weights/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION "0.1.0"

enum { GROUP_MAX = 64 }; /* tiles predicted together */

/* What stands between the painter's calls. */
struct studio {
    struct engine  *engine;
    struct prompt  *prompt;
    struct schedule schedule;
};

struct mural_job {
    enum mural_task        task;
    struct config          config;
    bool                   sample_model; /* nobody chose another */
    struct engine_options  options;
    struct render_plan     plan;
    struct engine_facts    facts;
    struct render_costs    costs;
    struct mural_plan_info info;
    struct engine_cost     cost;
    uint64_t               scratch_bytes, host_bytes; /* of the host's memory */
    struct studio          studio;
    double                 begin_seconds;
    mural_progress_fn      on_progress;
    void                  *user;
    /* For the rate: what was seen of the phase so far. */
    const char *phase;
    double      phase_seconds;
    uint32_t    phase_steps, last_step;
};

const char *mural_version(void)
{
    return VERSION;
}

const char *mural_error_name(int code)
{
    return err_name((enum err_code)code);
}

static int tell(struct mural_error *error, const struct err *err, int rc)
{
    error->code = rc;
    (void)snprintf(error->text, sizeof error->text, "%s", rc == ERR_OK ? "" : err->text);
    return rc;
}

/* --------------------------------------------------------------------------------- painter */

static int studio_begin(void *self, const struct painter_stage *stage, uint32_t *steps_out,
                        struct err *err)
{
    int                     rc = ERR_OK;
    struct studio          *studio = self;
    struct schedule_request schedule = {.steps = stage->steps,
                                        .tokens = stage->tokens,
                                        .sigma_start = stage->sigma_start,
                                        .strength = stage->strength,
                                        .mu = stage->mu,
                                        .mu_max = stage->mu_max};
    struct prompt_request   prompt = {
          .text = stage->prompt, .guidance = stage->guidance, .schedule = &studio->schedule};

    must(studio->prompt == NULL);
    TRY(schedule_make(&studio->schedule, studio->engine, &schedule, err));
    TRY(prompt_open(&studio->prompt, studio->engine, &prompt, err));
    *steps_out = studio->schedule.steps;
out:
    return rc;
}

static void studio_end(void *self)
{
    struct studio *studio = self;
    prompt_close(studio->prompt);
    studio->prompt = NULL;
}

static void studio_noise(void *self, const struct painter_noise *request, float *noise_out)
{
    const struct studio        *studio = self;
    struct engine_noise_request noise = {.seed = request->seed,
                                         .purpose = request->purpose,
                                         .x_lat = request->rect.x,
                                         .y_lat = request->rect.y,
                                         .w_lat = request->rect.w,
                                         .h_lat = request->rect.h};
    engine_noise(studio->engine, &noise, noise_out);
}

static int studio_encode(void *self, const float *rgb, int32_t w_px, int32_t h_px,
                         float *latent_out, struct err *err)
{
    const struct studio *studio = self;
    return engine_encode(studio->engine, rgb, w_px, h_px, latent_out, err);
}

static void studio_start(void *self, float *latent, const float *noise, int64_t count)
{
    const struct studio *studio = self;
    engine_mix_noise(latent, noise, studio->schedule.sigma[0], count);
}

static int studio_predict(void *self, const struct painter_tile *tiles, uint32_t count,
                          uint32_t step, struct err *err)
{
    const struct studio *studio = self;
    struct engine_tile   group[GROUP_MAX];

    must(count > 0 && count <= GROUP_MAX);
    for (uint32_t i = 0; i < count; i++)
        group[i] = (struct engine_tile){.prompt = studio->prompt,
                                        .w_px = tiles[i].w_px,
                                        .h_px = tiles[i].h_px,
                                        .latent = tiles[i].latent,
                                        .velocity = tiles[i].velocity};
    return engine_predict(studio->engine, group, count, step, err);
}

static void studio_advance(void *self, uint32_t step, float *latent, const float *velocity,
                           int64_t count)
{
    const struct studio *studio = self;
    scheduler_step(&studio->schedule, step, latent, velocity, count);
}

static int studio_decode(void *self, const float *latent, int32_t w_px, int32_t h_px,
                         float *rgb_out, struct err *err)
{
    const struct studio *studio = self;
    return engine_decode(studio->engine, latent, w_px, h_px, rgb_out, err);
}

static struct painter studio_painter(struct studio *studio, int32_t channels)
{
    return (struct painter){.self = studio,
                            .channels = channels,
                            .begin = studio_begin,
                            .end = studio_end,
                            .noise = studio_noise,
                            .encode = studio_encode,
                            .start = studio_start,
                            .predict = studio_predict,
                            .advance = studio_advance,
                            .decode = studio_decode};
}

/* -------------------------------------------------------------------------------- settings */

static const char SAMPLE_MODEL[] = "samples/model"; /* the default of the setting "model" */

/* The model that comes with the program, wherever the program was started from: beside the build
 * folder of a source tree, installed, or carried with it. */
static bool find_sample_model(char *out, size_t capacity)
{
    static const char *const places[] = {"../../samples/model", "../share/mural/model", "model"};
    char                     program[2048], beside[2100];
    ssize_t                  length = readlink("/proc/self/exe", program, sizeof program - 1);

    if (length <= 0) return false;
    program[length] = '\0';
    *strrchr(program, '/') = '\0';
    for (size_t i = 0; i < ARRAY_COUNT(places); i++) {
        if (!os_join(beside, sizeof beside, program, places[i]) || !os_is_dir(beside)) continue;
        char *whole = realpath(beside, NULL);
        bool  fits = whole != NULL && strlen(whole) < capacity;
        if (fits) memcpy(out, whole, strlen(whole) + 1);
        free(whole);
        if (fits) return true;
    }
    return false;
}

static enum config_command command_of(enum mural_task task)
{
    static const enum config_command commands[] = {[MURAL_RENDER] = COMMAND_RENDER,
                                                   [MURAL_DRAFT] = COMMAND_DRAFT,
                                                   [MURAL_UPSCALE] = COMMAND_UPSCALE,
                                                   [MURAL_PLAN] = COMMAND_PLAN};
    must((size_t)task < ARRAY_COUNT(commands));
    return commands[task];
}

/* The settings; where no model was chosen, the sample model and its own mural.yaml. */
static int load_settings(struct mural_job *job, const char *const *words, size_t count,
                         struct err *err)
{
    int          rc = ERR_OK;
    const char **all = NULL;
    char         sample[1024], word[1100];

    TRY(config_load(&job->config, command_of(job->task), words, count, err));
    if (strcmp(job->config.model, SAMPLE_MODEL) == 0 && find_sample_model(sample, sizeof sample)) {
        TRY(os_alloc((void **)&all, count + 1, sizeof *all, "settings", err));
        (void)snprintf(word, sizeof word, "model=%s", sample);
        all[0] = word;
        if (count > 0) memcpy(all + 1, words, count * sizeof *all);
        TRY(config_load(&job->config, command_of(job->task), all, count + 1, err));
        job->sample_model = true;
    }
    TRY(config_check(&job->config, command_of(job->task), err));
out:
    os_free(all);
    return rc;
}

static enum precision precision_of(const struct config *config)
{
    if (strcmp(config->precision, "f32") == 0) return PRECISION_F32;
    if (strcmp(config->precision, "bf16") == 0) return PRECISION_BF16;
    return PRECISION_AUTO;
}

/* "cuda:2" -> 2 */
static int32_t gpu_of(const struct config *config)
{
    const char *colon = strchr(config->device, ':');

    return colon == NULL ? 0 : (int32_t)strtol(colon + 1, NULL, 10);
}

static struct engine_options options_of(const struct config *config)
{
    return (struct engine_options){
        .model_folder = config->model,
        .machine = strncmp(config->device, "cuda", 4) == 0 ? ENGINE_CUDA : ENGINE_CPU,
        .gpu = gpu_of(config),
        .transformer = config->transformer[0] != '\0' ? config->transformer : NULL,
        .vae = config->vae[0] != '\0' ? config->vae : NULL,
        .precision = precision_of(config),
        .threads = (uint32_t)config->threads,
        .text_tokens = (uint32_t)config->text_tokens};
}

/* ------------------------------------------------------------------------------------ plan */

static struct engine_size draft_size(const struct mural_job *job)
{
    return (struct engine_size){.w_px = job->plan.draft_w_px,
                                .h_px = job->plan.draft_h_px,
                                .tiles = 1,
                                .steps = (uint32_t)job->config.draft_steps};
}

static struct engine_size tile_size(const struct mural_job *job)
{
    return (struct engine_size){.w_px = job->plan.grid.tile_w_px,
                                .h_px = job->plan.grid.tile_h_px,
                                .tiles = 1,
                                .steps = (uint32_t)job->config.steps};
}

static bool paints_draft(const struct mural_job *job)
{
    return job->config.input[0] == '\0';
}

static bool paints_tiles(const struct mural_job *job)
{
    return job->task != MURAL_DRAFT;
}

static size_t sizes_of(const struct mural_job *job, struct engine_size *sizes_out)
{
    size_t count = 0;

    if (paints_draft(job)) sizes_out[count++] = draft_size(job);
    if (paints_tiles(job)) sizes_out[count++] = tile_size(job);
    return count;
}

/* The grid, the noise and the store of tiles count in cells of 8 px. */
static int check_cells(const struct mural_job *job, struct err *err)
{
    int rc = ERR_OK;

    if (job->facts.px_per_lat != TILING_PX_PER_LAT ||
        job->facts.px_per_token != TILING_PX_PER_TOKEN)
        RAISE(err, ERR_FORMAT, 0,
              "model: a latent cell of its VAE is %d px wide; FLUX.1's is %d px (4 levels)",
              job->facts.px_per_lat, TILING_PX_PER_LAT);
out:
    return rc;
}

static bool on_gpu(const struct mural_job *job)
{
    return job->options.machine == ENGINE_CUDA;
}

/* "auto" becomes what is there.  Whoever names a GPU gets it or a sentence, never the CPU. */
static int choose_device(struct mural_job *job, struct err *err)
{
    int        rc = ERR_OK;
    struct err why = {.code = ERR_OK};

    if (strcmp(job->config.device, "auto") == 0) {
        job->options.machine = ENGINE_CUDA;
        if (engine_check_device(&job->options, NULL, &why) == ERR_OK) goto out;
        log_line(LOG_INFO, "painting on the CPU (%s)", why.text);
        job->options.machine = ENGINE_CPU;
    }
    TRY(engine_check_device(&job->options, NULL, err));
out:
    return rc;
}

static int measure(struct mural_job *job, struct err *err)
{
    int                rc = ERR_OK;
    struct engine_size sizes[2], draft = draft_size(job), tile = tile_size(job);
    size_t             count = sizes_of(job, sizes);
    struct engine_cost draft_cost = {0}, tile_cost = {0}, both;

    TRY(engine_estimate(&both, &job->facts, &job->options, sizes, count, err));
    TRY(check_cells(job, err));
    if (paints_draft(job))
        TRY(engine_estimate(&draft_cost, &job->facts, &job->options, &draft, 1, err));
    if (paints_tiles(job))
        TRY(engine_estimate(&tile_cost, &job->facts, &job->options, &tile, 1, err));
    job->cost = both;
    job->scratch_bytes = on_gpu(job) ? both.host_bytes : both.scratch_bytes + both.fixed_bytes;
    job->host_bytes =
        render_host_bytes(&job->config, &job->plan, job->facts.latent_channels, !paints_tiles(job));
    job->costs = (struct render_costs){.draft_predict = draft_cost.flop_predict,
                                       .draft_decode = draft_cost.flop_decode,
                                       .encode = tile_cost.flop_encode,
                                       .predict = tile_cost.flop_predict,
                                       .decode = tile_cost.flop_decode,
                                       .prompt = both.flop_prompt};
out:
    return rc;
}

static double flop_total(const struct mural_job *job)
{
    const struct render_costs *costs = &job->costs;
    double drafts = paints_draft(job) ? (paints_tiles(job) ? 1 : job->config.count) : 0;
    double tiles = paints_tiles(job) ? (double)grid_count(&job->plan.grid) : 0;
    double draft = costs->draft_predict * job->config.draft_steps + costs->draft_decode;
    double tile = costs->encode + costs->predict * render_tile_steps(&job->config) + costs->decode;

    return costs->prompt + drafts * draft + tiles * tile;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL || slash[1] == '\0' ? path : slash + 1;
}

static void fill_info(struct mural_job *job, double flops_per_second, uint64_t disk_free)
{
    const struct grid      *grid = &job->plan.grid;
    struct mural_plan_info *info = &job->info;

    *info = (struct mural_plan_info){.width_px = grid->canvas_w_px,
                                     .height_px = grid->canvas_h_px,
                                     .tile_cols = grid->cols,
                                     .tile_rows = grid->rows,
                                     .tile_w_px = grid->tile_w_px,
                                     .tile_h_px = grid->tile_h_px,
                                     .draft_w_px = job->plan.draft_w_px,
                                     .draft_h_px = job->plan.draft_h_px,
                                     .weight_bytes = job->facts.weight_bytes,
                                     .scratch_bytes = job->scratch_bytes,
                                     .gpu_bytes_peak = on_gpu(job) ? job->cost.kept_bytes +
                                                                         job->cost.scratch_bytes +
                                                                         job->cost.fixed_bytes
                                                                   : 0,
                                     .host_bytes_peak = job->scratch_bytes + job->host_bytes,
                                     .host_bytes_free = os_host_bytes_free(),
                                     .spool_bytes = job->plan.spool_bytes,
                                     .output_bytes_worst = job->plan.output_bytes_worst,
                                     .disk_bytes_free = disk_free,
                                     .flop_total = flop_total(job),
                                     .text_tokens = job->facts.text_tokens};
    if (grid->cols > 1) info->overlap_x_px = grid->tile_w_px - grid_col_x(grid, 1);
    if (grid->rows > 1) info->overlap_y_px = grid->tile_h_px - grid_row_y(grid, 1);
    if (flops_per_second > 0) info->seconds_estimate = info->flop_total / flops_per_second;
    (void)snprintf(info->precision, sizeof info->precision, "%s", job->facts.bf16 ? "bf16" : "f32");
    (void)snprintf(info->model, sizeof info->model, "%.255s", last_part(job->config.model));
}

/* Scratch must fit what is free now; weights are mapped files, which the system drops and reads
 * again as it must, so they slow a short machine down but never stop it. */
static int check_memory(const struct mural_job *job, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t need = job->scratch_bytes + job->host_bytes, have = os_host_bytes_free();
    char     need_words[32], have_words[32];

    TRY(engine_check_device(&job->options, &job->cost, err));
    if (need > have)
        RAISE(err, ERR_HOST_MEM, 0,
              "plan: tiles of %d x %d px need %s of memory besides the weights and %s is free; "
              "close other programs or give a smaller --tile",
              job->plan.grid.tile_w_px, job->plan.grid.tile_h_px,
              text_bytes(need_words, sizeof need_words, need),
              text_bytes(have_words, sizeof have_words, have));
out:
    return rc;
}

static int make_plan(struct mural_job *job, struct err *err)
{
    int      rc = ERR_OK;
    double   speed = 0;
    uint64_t disk_free = 0;

    TRY(render_plan_make(&job->plan, &job->config, err));
    job->options = options_of(&job->config);
    TRY(choose_device(job, err));
    TRY(measure(job, err));
    if (job->task == MURAL_PLAN) TRY(engine_speed(&speed, &job->options, err));
    TRY(render_disk_free(&disk_free, job->config.output, err));
    fill_info(job, speed, disk_free);
out:
    return rc;
}

int mural_job_open(mural_job **out, enum mural_task task, const char *const *settings,
                   size_t setting_count, struct mural_error *error)
{
    int               rc = ERR_OK;
    struct err        err = {0};
    struct mural_job *job = NULL;

    *out = NULL;
    TRY(os_alloc((void **)&job, 1, sizeof *job, "a job", &err));
    job->task = task;
    TRY(load_settings(job, settings, setting_count, &err));
    TRY(make_plan(job, &err));
    if (job->sample_model)
        log_line(LOG_WARN, "no --model given: painting with the small sample model of mural");
    *out = job;
    job = NULL;
out:
    mural_job_close(job);
    return tell(error, &err, rc);
}

void mural_job_plan(const mural_job *job, struct mural_plan_info *info_out)
{
    *info_out = job->info;
}

const char *mural_job_output(const mural_job *job)
{
    return job->config.output;
}

void mural_job_close(mural_job *job)
{
    os_free(job);
}

/* ------------------------------------------------------------------------------------- run */

/* Render counts arithmetic; people want seconds.  Nothing is promised before some of it is done. */
static int on_render_progress(const struct render_progress *now, void *user)
{
    struct mural_job     *job = user;
    double                elapsed = os_seconds() - job->begin_seconds;
    struct mural_progress progress = {.phase = now->phase,
                                      .tiles_done = now->tiles_done,
                                      .tiles_total = now->tiles_total,
                                      .step = now->step,
                                      .steps = now->steps,
                                      .seconds_elapsed = elapsed,
                                      .seconds_left = -1};

    if (now->fraction > 0.02 && elapsed > 2)
        progress.seconds_left = elapsed * (1 - now->fraction) / now->fraction;
    if (job->phase != now->phase) { /* rates of one phase say nothing of the next */
        job->phase = now->phase;
        job->phase_seconds = os_seconds();
        job->phase_steps = 0;
    }
    if (now->step > 0 && now->step != job->last_step) job->phase_steps++;
    job->last_step = now->step;
    if (job->phase_steps > 0)
        progress.steps_per_second = job->phase_steps / (os_seconds() - job->phase_seconds);
    return job->on_progress(&progress, job->user);
}

/* What goes into files: what was asked for, with "auto" replaced by what was used. */
static int used_settings(struct config **out, const struct mural_job *job, struct err *err)
{
    int            rc = ERR_OK;
    struct config *used = NULL;

    TRY(os_alloc((void **)&used, 1, sizeof *used, "settings", err));
    *used = job->config;
    used->text_tokens = (int32_t)job->facts.text_tokens;
    (void)snprintf(used->precision, sizeof used->precision, "%s", job->info.precision);
    *out = used;
out:
    return rc;
}

static int run(struct mural_job *job, struct err *err)
{
    int                   rc = ERR_OK;
    struct engine_size    sizes[2];
    size_t                count = sizes_of(job, sizes);
    struct painter        painter = studio_painter(&job->studio, job->facts.latent_channels);
    struct config        *used = NULL;
    struct render_request request = {.config = &job->config,
                                     .plan = &job->plan,
                                     .painter = &painter,
                                     .costs = job->costs,
                                     .software = "mural " VERSION,
                                     .progress =
                                         job->on_progress == NULL ? NULL : on_render_progress,
                                     .user = job};

    TRY(check_memory(job, err));
    TRY(used_settings(&used, job, err));
    request.used = used;
    TRY(engine_open(&job->studio.engine, &job->options, err));
    log_line(LOG_INFO, "weights %016llx",
             (unsigned long long)engine_model_identity(job->studio.engine));
    TRY(engine_reserve(job->studio.engine, sizes, count, err));
    if (job->task == MURAL_DRAFT)
        TRY(render_drafts(&request, err));
    else
        TRY(render_poster(&request, err));
out:
    engine_close(job->studio.engine);
    job->studio.engine = NULL;
    os_free(used);
    return rc;
}

int mural_job_run(mural_job *job, mural_progress_fn on_progress, void *user,
                  struct mural_error *error)
{
    int        rc = ERR_OK;
    struct err err = {0};

    job->on_progress = on_progress;
    job->user = user;
    job->begin_seconds = os_seconds();
    if (job->task == MURAL_PLAN)
        RAISE(&err, ERR_USAGE, 0, "a plan is only looked at; open a job of another task to run it");
    TRY(run(job, &err));
out:
    return tell(error, &err, rc);
}

/* ----------------------------------------------------------------------------------- synth */

int mural_synth_model(const char *folder, const char *const *settings, size_t setting_count,
                      struct mural_error *error)
{
    int                  rc = ERR_OK;
    struct err           err = {0};
    struct config       *config = NULL;
    struct synth_request request = {.folder = folder, .dtype = DTYPE_BF16};

    TRY(os_alloc((void **)&config, 1, sizeof *config, "settings", &err));
    TRY(config_load(config, COMMAND_SYNTH, settings, setting_count, &err));
    (void)snprintf(config->input, sizeof config->input, "%s", folder);
    TRY(config_check(config, COMMAND_SYNTH, &err));
    request.spec = config->spec;
    request.seed = config->seed;
    request.bfl = config->bfl;
    request.shard_bytes = config->shard_bytes;
    if (strcmp(config->dtype, "f32") == 0) request.dtype = DTYPE_F32;
    if (strcmp(config->dtype, "f16") == 0) request.dtype = DTYPE_F16;
    TRY(synth_write(&request, &err));
out:
    os_free(config);
    return tell(error, &err, rc);
}
