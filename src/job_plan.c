/*
 * job_plan.c - what a job will take, and who gets it, decided before anything is painted.
 *
 * Owns the numbers of the plan: which machine, how much memory of the host and of a GPU, how much
 * arithmetic, how long.  They come from the engine's dry runs; nothing here paints.
 *
 * Read next: engine/engine.h.
 */
#include "job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    GPU_TILES_MAX = 16, /* as many may share a visit of weights */
    TILE_LEAST_PX = 256 /* below, even consent makes no tile smaller */
};

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

/* ----------------------------------------------------------------------------------- sizes */

static struct engine_size draft_size(const struct mural_job *job)
{
    return (struct engine_size){.w_px = job->plan.draft_w_px,
                                .h_px = job->plan.draft_h_px,
                                .tiles = 1,
                                .steps = (uint32_t)job->config.draft_steps};
}

uint32_t job_plan_tiles_per_pass(const struct mural_job *job)
{
    return job->gpu_shares > 0 ? job->gpu.tiles_per_pass : 1;
}

static struct engine_size tile_size(const struct mural_job *job)
{
    return (struct engine_size){.w_px = job->plan.grid.tile_w_px,
                                .h_px = job->plan.grid.tile_h_px,
                                .tiles = job_plan_tiles_per_pass(job),
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

size_t job_plan_sizes(const struct mural_job *job, struct engine_size *sizes_out)
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

/* What a trial of the GPU needs to know of the model; reads its configuration only. */
static int trial_facts(struct engine_facts *out, const struct mural_job *job, struct err *err)
{
    struct engine_options options = job->options;
    struct engine_size    least = {
           .w_px = TILING_SIDE_MIN_PX, .h_px = TILING_SIDE_MIN_PX, .tiles = 1, .steps = 1};
    struct engine_cost ignored;
    int                rc;

    options.machine = ENGINE_CPU;
    rc = engine_estimate(&ignored, out, &options, &least, 1, err);
    out->bf16 = job->options.precision != PRECISION_F32;
    return rc;
}

/* Where other processes paint, another one asks. */
static void ask(struct workshop_answer *answer, const struct mural_job *job)
{
    struct probe_request probe = {.program = job->worker_program,
                                  .gpu = job->options.gpu,
                                  .trial = answer->tried ? &answer->trial : NULL,
                                  .timeout_seconds = PROBE_SECONDS};
    int                  rc;

    if (job->worker_program != NULL) {
        (void)fleet_probe(&answer->device, &answer->flops, &probe, &answer->why);
        return;
    }
    rc = engine_find_device(&answer->device, &job->options, &answer->why);
    if (rc == ERR_OK && answer->tried)
        rc = engine_speed(&answer->flops, &job->options, &answer->trial, &answer->why);
    if (rc == ERR_OK) answer->device.link_bytes_per_second = engine_link_speed(&job->options);
}

static bool answers(const struct workshop_answer *known, const struct workshop_answer *wanted)
{
    return known->known && known->gpu == wanted->gpu &&
           (!wanted->tried ||
            (known->tried && known->trial.hidden == wanted->trial.hidden &&
             known->trial.heads == wanted->trial.heads && known->trial.bf16 == wanted->trial.bf16));
}

/* The device, and its speed unless that is stated, with one question; none for a job after another
 * that asked the same: by then the GPU's memory may be in use, by ourselves. */
static int ask_gpu(struct mural_job *job, struct err *err)
{
    int                     rc = ERR_OK;
    struct workshop_answer *known = &job->workshop->answer;
    struct workshop_answer  wanted = {.gpu = job->options.gpu,
                                      .tried = job->config.card_tflops <= 0};

    if (wanted.tried) TRY(trial_facts(&wanted.trial, job, err));
    if (!answers(known, &wanted)) {
        ask(&wanted, job);
        wanted.known = true;
        *known = wanted;
    }
    job->device = known->device;
    job->speed = known->flops;
    *err = known->why;
    rc = (int)known->why.code;
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

    if (is_own_choice(job) || sized) job->options.machine = ENGINE_CUDA;
    if (!on_gpu(job)) goto out;
    rc = ask_gpu(job, &why);
    if (rc == ERR_OK) {
        job->options.device = &job->device;
    } else if (sized) {
        job->elsewhere = true;
        rc = ERR_OK;
    } else if (is_own_choice(job) && job->device.absent[0] != '\0') {
        if (workshop_tells(job->workshop, NOTE_DEVICE))
            log_line(LOG_NOTE, "painting on the CPU: %s", job->device.absent);
        job->options.machine = ENGINE_CPU;
        rc = ERR_OK;
    } else {
        *err = why;
    }
out:
    return rc;
}

/* Drafts are painted one after the other, each by all that there is. */
static uint32_t workers_wanted(const struct mural_job *job)
{
    return paints_tiles(job) ? (uint32_t)job->config.workers : 1;
}

/* The CPU's threads are shared out among workers. */
static void count_workers(struct mural_job *job)
{
    uint32_t count = workers_wanted(job);
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
    size_t             size_count = job_plan_sizes(job, sizes);
    int32_t            channels = job->facts.latent_channels;
    uint32_t           painters = job->worker_count > 1 ? job->worker_count : 1;

    if (!paints_tiles(job)) painters = 0;
    job->host_bytes = render_host_bytes(&job->config, &job->plan, channels, painters,
                                        job_plan_tiles_per_pass(job));
    if (job->worker_count > 0)
        job->host_bytes += fleet_host_bytes(sizes, size_count, channels, job->worker_count);
}

static int measure(struct mural_job *job, struct err *err)
{
    int                rc = ERR_OK;
    struct engine_size sizes[2], draft = draft_size(job), tile = tile_size(job);
    size_t             count = job_plan_sizes(job, sizes);
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
    /* Workers share what they pin. */
    return job->scratch_bytes + job->host_bytes + (job->gpu_shares > 0 ? job->gpu.pinned_bytes : 0);
}

/* ----------------------------------------------------------------------------------- rates */

/* Where nothing could be measured: PCIe 3.0 x16, or 4.0 x8, and between a SATA and an NVMe disk. */
static const double LINK_ASSUMED = 12e9, DISK_ASSUMED = 1e9;

static double choose_rate(enum mural_source *source_out, double given, double measured,
                          double assumed)
{
    *source_out = given > 0 ? MURAL_GIVEN : measured > 0 ? MURAL_MEASURED : MURAL_ASSUMED;
    return given > 0 ? given : measured > 0 ? measured : assumed;
}

static double link_rate(const struct mural_job *job, enum mural_source *source_out)
{
    double measured = job->elsewhere ? 0 : job->device.link_bytes_per_second;

    return choose_rate(source_out, (double)job->config.link_bytes_per_second, measured,
                       LINK_ASSUMED);
}

static double disk_rate(const struct mural_job *job, enum mural_source *source_out)
{
    return choose_rate(source_out, (double)job->config.disk_bytes_per_second, job->disk_speed,
                       DISK_ASSUMED);
}

static struct mural_gpu_plan gpu_info(const struct mural_job *job)
{
    const struct engine_outlook *gpu = &job->gpu;

    enum mural_source link, disk;

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
                                   .disk_seconds = gpu->disk_seconds,
                                   .link_bytes_per_second = link_rate(job, &link),
                                   .disk_bytes_per_second = disk_rate(job, &disk),
                                   .flop_per_second = job->speed,
                                   .link_source = link,
                                   .disk_source = disk,
                                   .flop_source =
                                       job->config.card_tflops > 0 ? MURAL_GIVEN : MURAL_MEASURED,
                                   .text_on_cpu = gpu->text_on_cpu,
                                   .elsewhere = job->elsewhere,
                                   .expandable = job->options.memory.expandable,
                                   .segment_bytes = job->options.memory.segment_bytes,
                                   .pool_bytes = job->options.memory.pool_bytes,
                                   .idle_share_max = job->options.memory.fragmentation_max};
}

/* 0 when the speed is not known.  Steps that wait for link or disk take as long as that does. */
static double seconds_total(const struct mural_job *job)
{
    const struct engine_outlook *gpu = &job->gpu;
    double tiles = paints_tiles(job) ? (double)grid_count(&job->plan.grid) : 0;
    double steps = job->costs.predict * render_tile_steps(&job->config) * tiles;
    double visit = gpu->link_seconds > gpu->disk_seconds ? gpu->link_seconds : gpu->disk_seconds;
    double waits = job->gpu_shares > 0 && visit > gpu->compute_seconds && gpu->compute_seconds > 0
                       ? visit / gpu->compute_seconds - 1
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
int job_plan_check_memory(const struct mural_job *job, struct err *err)
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
    double tried = job->elsewhere ? 0 : job->speed; /* when the GPU was asked */

    job->speed = 0;
    if (on_gpu(job))
        job->speed = job->config.card_tflops > 0 ? 1e12 * job->config.card_tflops : tried;
    else if (job->task == MURAL_PLAN)
        return engine_speed(&job->speed, &job->options, &job->facts, err);
    return ERR_OK;
}

/* Shares a GPU's memory out, in `shares` equal parts; weights in the host's memory are there once.
 */
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
    enum mural_source  ignored;

    if (!job->elsewhere) TRY(engine_card_here(&card, &job->options, err));
    card.host_bytes = os_host_bytes_total();
    card.host_free_bytes = os_host_bytes_free();
    card.host_free_bytes -= own < card.host_free_bytes ? own : card.host_free_bytes;
    card.vram_bytes /= shares;
    card.link_bytes_per_second = link_rate(job, &ignored);
    card.disk_bytes_per_second = disk_rate(job, &ignored);
    card.flop_per_second = job->speed;
    job->options.memory.vram_bytes = job->config.vram_bytes / shares;
    job->gpu_shares = 0; /* sizes are then those of one tile at a time */
    count = job_plan_sizes(job, sizes);
    if (paints_tiles(job)) sizes[count - 1].tiles = tiles;
    TRY(engine_plan_memory(&job->gpu, &job->options, &card, may_change, sizes, count, err));
    job->gpu_shares = shares;
    /* An engine that decides from the same numbers decides the same; and workers that start
     * together must not each take what is free. */
    job->options.memory.vram_bytes = job->gpu.cap_bytes;
    job->options.memory.tiles_per_pass = job->gpu.tiles_per_pass;
    job->options.memory.link_bytes_per_second = card.link_bytes_per_second;
    job->options.memory.disk_bytes_per_second = card.disk_bytes_per_second;
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
    uint32_t shares = job->config.persistent_workers ? workers_wanted(job) : 1;
    char     words[32];
    bool     may_change = strcmp(job->config.on_short, "change") == 0;

    if (is_own_choice(job) && !job->elsewhere && workshop_tells(job->workshop, NOTE_DEVICE))
        log_line(LOG_NOTE, "painting on GPU %d: %s, %s", job->options.gpu, job->device.name,
                 text_bytes(words, sizeof words, job->device.bytes_total));
    if (job->config.offload && job->config.disk_bytes_per_second == 0)
        job->disk_speed = engine_disk_speed(&job->options);
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

/* Another job of the workshop whose plan is this one's too, or NULL. */
static const struct mural_job *find_alike(const struct mural_job *job)
{
    for (const struct mural_job *other = job->workshop->jobs; other != NULL; other = other->next)
        if (other != job && other->planned && other->task == job->task &&
            config_plans_alike(&other->config, &job->config))
            return other;
    return NULL;
}

static void plan_like(struct mural_job *job, const struct mural_job *other)
{
    struct engine_options own = options_of(&job->config);

    job->options = other->options;
    job->options.model_folder = own.model_folder;
    job->options.transformer = own.transformer;
    job->options.vae = own.vae;
    job->device = other->device;
    if (other->options.device != NULL) job->options.device = &job->device;
    job->facts = other->facts;
    job->costs = other->costs;
    job->gpu = other->gpu;
    job->gpu_shares = other->gpu_shares;
    job->elsewhere = other->elsewhere;
    job->speed = other->speed;
    job->disk_speed = other->disk_speed;
    job->scratch_bytes = other->scratch_bytes;
    job->host_bytes = other->host_bytes;
    job->worker_count = other->worker_count;
}

static int plan_anew(struct mural_job *job, struct err *err)
{
    int rc = ERR_OK;

    job->options = options_of(&job->config);
    TRY(choose_device(job, err));
    count_workers(job);
    TRY(measure(job, err));
    TRY(find_speed(job, err));
    if (on_gpu(job)) TRY(fit_gpu(job, err));
out:
    return rc;
}

int job_plan_make(struct mural_job *job, struct err *err)
{
    int                     rc = ERR_OK;
    uint64_t                disk_free = 0;
    const struct mural_job *alike = find_alike(job);

    TRY(render_plan_make(&job->plan, &job->config, err));
    if (alike != NULL)
        plan_like(job, alike);
    else
        TRY(plan_anew(job, err));
    TRY(render_disk_free(&disk_free, job->config.output, err));
    fill_info(job, disk_free);
    job->planned = true;
out:
    return rc;
}
