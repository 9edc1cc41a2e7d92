/*
 * mural.c - the library behind mural.h: settings, plan, engine and render wired together.
 *
 * Owns the job.  Hands render a painter of the fleet's, and the plan numbers made of the engine's
 * dry runs.
 *
 * Read next: render/render.c.
 */
#include "mural.h"

#include "config/config.h"
#include "engine/engine.h"
#include "fleet/fleet.h"
#include "render/render.h"
#include "weights/weights.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION "0.1.0"

enum {
    GPU_TILES_MAX = 16, /* as many may share a visit of weights */
    TILE_LEAST_PX = 256 /* below, even consent makes no tile smaller */
};

struct mural_job {
    enum mural_task        task;
    struct config          config;
    bool                   sample_model; /* nobody chose another */
    struct engine_options  options;
    struct engine_device   device; /* the GPU that paints, where one does */
    struct render_plan     plan;
    struct engine_facts    facts;
    struct render_costs    costs;
    struct mural_plan_info info;
    struct engine_outlook  gpu;                       /* of one worker's share           */
    uint32_t               gpu_shares;                /* 0: the CPU paints               */
    bool                   elsewhere;                 /* a plan for a GPU that is not here */
    double                 speed;                     /* FLOP/s; 0: not known            */
    uint64_t               scratch_bytes, host_bytes; /* of the host's memory */
    const char            *worker_program;            /* NULL: this process paints */
    uint32_t               worker_count;
    double                 begin_seconds;
    mural_progress_fn      on_progress;
    void                  *user;
    atomic_int             stop; /* enum mural_stop; set from anywhere */
    /* Tiles to paint again. */
    bool        again_seed_given;
    uint64_t    again_seed;
    char       *again_prompt; /* NULL: as it was */
    struct pace pace;
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
    static const enum config_command commands[] = {
        [MURAL_RENDER] = COMMAND_RENDER,   [MURAL_DRAFT] = COMMAND_DRAFT,
        [MURAL_UPSCALE] = COMMAND_UPSCALE, [MURAL_PLAN] = COMMAND_PLAN,
        [MURAL_RESUME] = COMMAND_RESUME,   [MURAL_RETRY] = COMMAND_RETRY};
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
        /* Words come later and win: a folder of this name may have been asked for. */
        job->sample_model = strcmp(job->config.model, sample) == 0;
    }
    TRY(config_check(&job->config, command_of(job->task), err));
out:
    os_free(all);
    return rc;
}

/* What the poster was begun with, and over it the words of today; for a retry, a seed and a prompt
 * among them are for some tiles only. */
static int recall_settings(struct mural_job *job, const char *const *words, size_t count,
                           struct err *err)
{
    int                 rc = ERR_OK;
    bool                retry = job->task == MURAL_RETRY, prompt_given = false;
    struct config_words all = {.count = 0};

    TRY(config_load(&job->config, command_of(job->task), words, count, err));
    TRY(config_check_named(&job->config, command_of(job->task), err));
    TRY(render_recall(&all, job->config.output, err));
    for (size_t i = 0; i < count; i++) {
        bool seed = retry && strncmp(words[i], "seed=", 5) == 0;
        bool prompt = retry && strncmp(words[i], "prompt=", 7) == 0;
        job->again_seed_given |= seed;
        prompt_given |= prompt;
        if (!seed && !prompt) TRY(config_words_add(&all, words[i], err));
    }
    job->again_seed = job->config.seed;
    if (prompt_given) TRY(text_copy(&job->again_prompt, job->config.prompt, "a prompt", err));
    TRY(load_settings(job, (const char *const *)all.word, all.count, err));
out:
    config_words_close(&all);
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

static struct engine_memory memory_of(const struct config *config)
{
    const uint64_t granule = (uint64_t)2 << 20; /* of a GPU's memory */

    return (struct engine_memory){.vram_bytes = config->vram_bytes,
                                  .offload = config->offload,
                                  .keep_share = config->keep_share,
                                  .tiles_per_pass = (uint32_t)config->batch_size,
                                  .expandable = config->expandable_segments,
                                  .segment_bytes =
                                      (config->segment_bytes + granule - 1) / granule * granule,
                                  .fragmentation_max = config->fragmentation_max,
                                  .pool_bytes = config->pool_bytes};
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
        .text_tokens = (uint32_t)config->text_tokens,
        .memory = memory_of(config)};
}

/* ------------------------------------------------------------------------------------ plan */

static struct engine_size draft_size(const struct mural_job *job)
{
    return (struct engine_size){.w_px = job->plan.draft_w_px,
                                .h_px = job->plan.draft_h_px,
                                .tiles = 1,
                                .steps = (uint32_t)job->config.draft_steps};
}

static uint32_t tiles_per_pass(const struct mural_job *job)
{
    return job->gpu_shares > 0 ? job->gpu.tiles_per_pass : 1;
}

static struct engine_size tile_size(const struct mural_job *job)
{
    return (struct engine_size){.w_px = job->plan.grid.tile_w_px,
                                .h_px = job->plan.grid.tile_h_px,
                                .tiles = tiles_per_pass(job),
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

static bool is_own_choice(const struct mural_job *job)
{
    return strcmp(job->config.device, "auto") == 0;
}

/* More than any driver takes to start, with many cards and nobody to keep them awake. */
static const double PROBE_SECONDS = 60;

/* Where other processes paint, another one asks. */
static int ask_gpu(struct engine_device *out, double *flops_out, const struct mural_job *job,
                   const struct engine_facts *trial, struct err *err)
{
    int                  rc = ERR_OK;
    struct probe_request probe = {.program = job->worker_program,
                                  .gpu = job->options.gpu,
                                  .trial = trial,
                                  .timeout_seconds = PROBE_SECONDS};

    *flops_out = 0;
    if (job->worker_program != NULL) return fleet_probe(out, flops_out, &probe, err);
    TRY(engine_find_device(out, &job->options, err));
    if (trial != NULL) TRY(engine_speed(flops_out, &job->options, trial, err));
out:
    return rc;
}

/* "auto" becomes a GPU, or the CPU where there is no GPU at all.  One that is there and fails is an
 * error, and so is one that was named and is not there: nobody gets the CPU unawares.  A plan with
 * vram is for a GPU of that size, and it need not be here. */
static int choose_device(struct mural_job *job, struct err *err)
{
    int        rc = ERR_OK;
    bool       sized = job->task == MURAL_PLAN && job->config.vram_bytes > 0;
    struct err why = {.code = ERR_OK};
    double     untried;

    if (is_own_choice(job) || sized) job->options.machine = ENGINE_CUDA;
    if (!on_gpu(job)) goto out;
    rc = ask_gpu(&job->device, &untried, job, NULL, &why);
    if (rc == ERR_OK) {
        job->options.device = &job->device;
    } else if (sized) {
        job->elsewhere = true;
        rc = ERR_OK;
    } else if (is_own_choice(job) && job->device.absent[0] != '\0') {
        log_line(LOG_NOTE, "painting on the CPU: %s", job->device.absent);
        job->options.machine = ENGINE_CPU;
        rc = ERR_OK;
    } else {
        *err = why;
    }
out:
    return rc;
}

/* The CPU's threads are shared out among workers. */
static void count_workers(struct mural_job *job)
{
    uint32_t count = (uint32_t)job->config.workers;
    uint32_t threads = job->config.threads > 0 ? (uint32_t)job->config.threads : os_cpu_count();

    if (job->worker_program == NULL) return;
    must(count >= 1 && count <= FLEET_WORKERS_MAX);
    job->worker_count = count;
    if (count > 1) job->options.threads = threads > count ? threads / count : 1;
}

/* Of render, and of what it shares with workers. */
static void count_host_bytes(struct mural_job *job)
{
    struct engine_size sizes[2];
    size_t             size_count = sizes_of(job, sizes);
    int32_t            channels = job->facts.latent_channels;
    uint32_t           painters = job->worker_count > 1 ? job->worker_count : 1;

    job->host_bytes = render_host_bytes(&job->config, &job->plan, channels,
                                        paints_tiles(job) ? painters : 0, tiles_per_pass(job));
    if (job->worker_count > 0)
        job->host_bytes += fleet_host_bytes(sizes, size_count, channels, job->worker_count);
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
    job->scratch_bytes = on_gpu(job) ? both.host_bytes : both.scratch_bytes + both.fixed_bytes;
    if (job->worker_count > 1) job->scratch_bytes *= job->worker_count;
    count_host_bytes(job);
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

static uint64_t host_bytes_peak(const struct mural_job *job)
{
    return job->scratch_bytes + job->host_bytes + job->gpu_shares * job->gpu.pinned_bytes;
}

static struct mural_gpu_plan gpu_info(const struct mural_job *job)
{
    const struct engine_outlook *gpu = &job->gpu;

    if (job->gpu_shares == 0) return (struct mural_gpu_plan){.bytes_allowed = 0};
    return (struct mural_gpu_plan){.bytes_allowed = gpu->cap_bytes,
                                   .bytes_planned = gpu->device_bytes,
                                   .resident_bytes = gpu->resident_bytes,
                                   .ring_bytes = gpu->ring_bytes,
                                   .scratch_bytes = gpu->scratch_bytes,
                                   .ends_bytes = gpu->ends_bytes,
                                   .library_bytes = gpu->fixed_bytes,
                                   .visiting_bytes = gpu->streamed_bytes,
                                   .pinned_bytes = gpu->pinned_bytes,
                                   .blocks = gpu->blocks,
                                   .blocks_resident = gpu->blocks_resident,
                                   .tiles_per_pass = gpu->tiles_per_pass,
                                   .strip_level = gpu->strip_level,
                                   .strip_levels = gpu->strip_levels,
                                   .compute_seconds = gpu->compute_seconds,
                                   .link_seconds = gpu->link_seconds,
                                   .link_bytes_per_second =
                                       (double)job->config.link_bytes_per_second,
                                   .flop_per_second = job->speed,
                                   .text_on_cpu = gpu->text_on_cpu,
                                   .elsewhere = job->elsewhere,
                                   .expandable = job->options.memory.expandable,
                                   .segment_bytes = job->options.memory.segment_bytes,
                                   .pool_bytes = job->options.memory.pool_bytes,
                                   .idle_share_max = job->options.memory.fragmentation_max};
}

/* 0 when the speed is not known.  Steps that wait for the link take as long as it does. */
static double seconds_total(const struct mural_job *job)
{
    const struct engine_outlook *gpu = &job->gpu;
    double tiles = paints_tiles(job) ? (double)grid_count(&job->plan.grid) : 0;
    double steps = job->costs.predict * render_tile_steps(&job->config) * tiles;
    double waits =
        job->gpu_shares > 0 && gpu->link_seconds > gpu->compute_seconds && gpu->compute_seconds > 0
            ? gpu->link_seconds / gpu->compute_seconds - 1
            : 0;

    return job->speed > 0 ? (flop_total(job) + steps * waits) / job->speed : 0;
}

static void fill_info(struct mural_job *job, uint64_t disk_free)
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
                                     .gpu_bytes_peak = job->gpu_shares * job->gpu.device_bytes,
                                     .host_bytes_peak = host_bytes_peak(job),
                                     .host_bytes_free = os_host_bytes_free(),
                                     .spool_bytes = job->plan.spool_bytes,
                                     .output_bytes_worst = job->plan.output_bytes_worst,
                                     .disk_bytes_free = disk_free,
                                     .flop_total = flop_total(job),
                                     .text_tokens = job->facts.text_tokens,
                                     .seconds_estimate = seconds_total(job),
                                     .gpu = gpu_info(job)};
    if (grid->cols > 1) info->overlap_x_px = grid->tile_w_px - grid_col_x(grid, 1);
    if (grid->rows > 1) info->overlap_y_px = grid->tile_h_px - grid_row_y(grid, 1);
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

/* FLOP/s as stated or, of a machine that is here, tried. */
static int find_speed(struct mural_job *job, struct err *err)
{
    struct engine_device device;

    job->speed = on_gpu(job) ? 1e12 * job->config.card_tflops : 0;
    if (job->speed > 0 || job->elsewhere || (!on_gpu(job) && job->task != MURAL_PLAN))
        return ERR_OK;
    if (on_gpu(job)) return ask_gpu(&device, &job->speed, job, &job->facts, err);
    return engine_speed(&job->speed, &job->options, &job->facts, err);
}

/* Shares a GPU's memory out, in `shares` equal parts. */
static int plan_gpu(struct mural_job *job, uint32_t shares, struct err *err)
{
    int                rc = ERR_OK;
    struct engine_size sizes[2];
    struct engine_card card = {.vram_bytes = job->config.vram_bytes};
    bool               may_change = strcmp(job->config.on_short, "change") == 0;
    uint64_t           own = job->scratch_bytes + job->host_bytes;
    uint32_t           tiles = grid_count(&job->plan.grid) < GPU_TILES_MAX
                                   ? (uint32_t)grid_count(&job->plan.grid)
                                   : GPU_TILES_MAX;
    size_t             count;

    if (!job->elsewhere) TRY(engine_card_here(&card, &job->options, err));
    card.host_bytes = os_host_bytes_total();
    card.host_free_bytes = os_host_bytes_free();
    card.host_free_bytes -= own < card.host_free_bytes ? own : card.host_free_bytes;
    card.host_free_bytes /= shares;
    card.host_bytes /= shares;
    card.vram_bytes /= shares;
    card.link_bytes_per_second = (double)job->config.link_bytes_per_second;
    card.flop_per_second = job->speed;
    job->options.memory.vram_bytes = job->config.vram_bytes / shares;
    job->gpu_shares = 0; /* sizes are then those of one tile at a time */
    count = sizes_of(job, sizes);
    if (paints_tiles(job)) sizes[count - 1].tiles = tiles;
    TRY(engine_plan_memory(&job->gpu, &job->options, &card, may_change, sizes, count, err));
    job->gpu_shares = shares;
    /* An engine that decides from the same numbers decides the same; and workers that start
     * together must not each take what is free. */
    job->options.memory.vram_bytes = job->gpu.cap_bytes;
    job->options.memory.tiles_per_pass = job->gpu.tiles_per_pass;
    job->options.memory.link_bytes_per_second = card.link_bytes_per_second;
    job->options.memory.flop_per_second = card.flop_per_second;
    count_host_bytes(job);
    if (!job->gpu.text_on_cpu || job->options.text_on_cpu) goto out;
    log_line(LOG_WARN, "memory of the GPU is short: text is encoded on the CPU, as agreed");
    job->options.text_on_cpu = true;
    TRY(measure(job, err));
out:
    return rc;
}

/* Smaller tiles, with consent, until they fit. */
static int fit_gpu(struct mural_job *job, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t shares = job->config.persistent_workers ? (uint32_t)job->config.workers : 1;
    char     words[32];
    bool     may_change = strcmp(job->config.on_short, "change") == 0;

    if (is_own_choice(job) && !job->elsewhere)
        log_line(LOG_NOTE, "painting on GPU %d: %s, %s", job->options.gpu, job->device.name,
                 text_bytes(words, sizeof words, job->device.bytes_total));
    while ((rc = plan_gpu(job, shares, err)) == ERR_DEVICE_MEM && may_change && paints_tiles(job) &&
           job->config.tile_px > TILE_LEAST_PX) {
        int32_t smaller = job->config.tile_px * 3 / 4 / 16 * 16;
        job->config.tile_px = smaller < TILE_LEAST_PX ? TILE_LEAST_PX : smaller;
        if (job->config.overlap_px > job->config.tile_px / 2)
            job->config.overlap_px = job->config.tile_px / 2 / 16 * 16;
        log_line(LOG_WARN, "memory of the GPU is short: tiles of at most %d px, as agreed",
                 job->config.tile_px);
        *err = (struct err){.code = ERR_OK};
        job->gpu_shares = 0;
        TRY(render_plan_make(&job->plan, &job->config, err));
        TRY(measure(job, err));
    }
out:
    return rc;
}

static int make_plan(struct mural_job *job, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t disk_free = 0;

    TRY(render_plan_make(&job->plan, &job->config, err));
    job->options = options_of(&job->config);
    job->pace.warmup_steps = (uint32_t)job->config.warmup_batches;
    TRY(choose_device(job, err));
    count_workers(job);
    TRY(measure(job, err));
    TRY(find_speed(job, err));
    if (on_gpu(job)) TRY(fit_gpu(job, err));
    TRY(render_disk_free(&disk_free, job->config.output, err));
    fill_info(job, disk_free);
out:
    return rc;
}

int mural_job_open(mural_job **out, enum mural_task task, const char *const *settings,
                   size_t setting_count, const char *program, struct mural_error *error)
{
    int               rc = ERR_OK;
    struct err        err = {0};
    struct mural_job *job = NULL;

    *out = NULL;
    TRY(os_alloc((void **)&job, 1, sizeof *job, "a job", &err));
    job->task = task;
    if (task == MURAL_RESUME || task == MURAL_RETRY)
        TRY(recall_settings(job, settings, setting_count, &err));
    else
        TRY(load_settings(job, settings, setting_count, &err));
    if (job->config.persistent_workers) job->worker_program = program;
    TRY(make_plan(job, &err));
    if (job->sample_model)
        log_line(LOG_NOTE, "no --model given: painting with the small sample model of mural");
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

void mural_job_stop(mural_job *job, enum mural_stop how)
{
    int none = 0;

    if (how == MURAL_STOP_NOW)
        job->stop = MURAL_STOP_NOW;
    else /* in one piece: a signal handler may be interrupted by another */
        (void)atomic_compare_exchange_strong(&job->stop, &none, (int)how);
}

void mural_job_close(mural_job *job)
{
    if (job == NULL) return;
    os_free(job->again_prompt);
    os_free(job);
}

/* --------------------------------------------------------------------------------- workers */

int mural_probe_run(const char *const *words, size_t word_count, struct mural_error *error)
{
    struct err err = {0};
    return tell(error, &err, fleet_probe_run(words, word_count, &err));
}

int mural_worker_run(struct mural_error *error)
{
    struct err err = {0};
    return tell(error, &err, fleet_worker_run(&err));
}

/* ------------------------------------------------------------------------------------- run */

/* Render counts arithmetic; people want seconds.  Nothing is promised before some of it is done. */
static int on_render_progress(const struct render_progress *now, void *user)
{
    struct mural_job     *job = user;
    double                seconds = os_seconds();
    struct mural_progress progress = {.phase = now->phase,
                                      .tiles_done = now->tiles_done,
                                      .tiles_total = now->tiles_total,
                                      .step = now->step,
                                      .steps = now->steps,
                                      .seconds_elapsed = seconds - job->begin_seconds};

    pace_note(&job->pace, now, seconds);
    progress.seconds_left = job->pace.seconds_left;
    progress.steps_per_second = job->pace.steps_per_second;
    if (job->on_progress != NULL && job->on_progress(&progress, job->user) != 0)
        return RENDER_STOP_NOW;
    return job->stop == MURAL_STOP_AFTER_TILE ? RENDER_STOP_AFTER_TILE
           : job->stop != 0                   ? RENDER_STOP_NOW
                                              : RENDER_GO_ON;
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

/* Who paints: an engine in this process, or workers. */
struct painting {
    struct studio        *studio;
    struct fleet         *fleet;
    struct painter        own;
    const struct painter *painters;
    uint32_t              painter_count;
};

static bool stop_wanted(void *user)
{
    struct mural_job *job = user;
    return job->stop == MURAL_STOP_NOW;
}

static int painting_open(struct painting *out, struct mural_job *job, uint64_t model_identity,
                         struct err *err)
{
    int                  rc = ERR_OK;
    struct engine_size   sizes[2];
    size_t               count = sizes_of(job, sizes);
    struct fleet_request fleet = {.program = job->worker_program,
                                  .worker_count = job->worker_count,
                                  .options = job->options,
                                  .sizes = sizes,
                                  .size_count = count,
                                  .channels = job->facts.latent_channels,
                                  .model_identity = model_identity,
                                  .timeout_seconds = job->config.worker_timeout,
                                  .backoff_seconds = 1,
                                  .stop_wanted = stop_wanted,
                                  .user = job};

    if (job->worker_program != NULL) {
        TRY(fleet_open(&out->fleet, &fleet, err));
        out->painters = fleet_painters(out->fleet, &out->painter_count);
    } else {
        TRY(studio_open(&out->studio, &job->options, sizes, count, err));
        out->own = studio_painter(out->studio);
        out->painters = &out->own;
        out->painter_count = 1;
    }
out:
    return rc;
}

static void painting_close(struct painting *painting)
{
    studio_close(painting->studio);
    fleet_close(painting->fleet);
}

static enum render_mode mode_of(const struct mural_job *job)
{
    return job->task == MURAL_RESUME  ? RENDER_RESUME
           : job->task == MURAL_RETRY ? RENDER_RETRY
                                      : RENDER_BEGIN;
}

static int run(struct mural_job *job, struct err *err)
{
    int                    rc = ERR_OK;
    struct painting        painting = {.studio = NULL};
    struct config         *used = NULL;
    struct engine_identity identity;
    struct render_request  request = {
         .mode = mode_of(job),
         .again = {.tiles = job->config.tiles,
                   .seed = job->again_seed_given ? &job->again_seed : NULL,
                   .prompt = job->again_prompt},
         .config = &job->config,
         .plan = &job->plan,
         .costs = job->costs,
         .tiles_per_pass = tiles_per_pass(job),
         .software = "mural " VERSION,
         .retry_wait_seconds = 1,
         .progress = on_render_progress,
         .user = job};

    TRY(check_memory(job, err));
    TRY(used_settings(&used, job, err));
    request.used = used;
    TRY(engine_identify(&identity, &job->options, err));
    request.model_identity = identity.model;
    request.numeric = identity.numeric;
    if (job->task != MURAL_DRAFT) TRY(render_check(&request, err));
    TRY(painting_open(&painting, job, identity.model, err));
    request.painters = painting.painters;
    request.painter_count = painting.painter_count;
    if (job->task == MURAL_DRAFT)
        TRY(render_drafts(&request, err));
    else
        TRY(render_poster(&request, err));
out:
    painting_close(&painting);
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
