/*
 * job_plan.c - what a job will take, and who gets it, decided before anything is painted.
 *
 * Owns the order of planning, and how memory of the host and of a GPU is shared out.  The numbers
 * come from the engine's dry runs; nothing here paints.
 *
 * Read next: job_device.c and job_info.c, then engine/engine.h.
 */
#include "job.h"

#include <string.h>

enum {
    GPU_TILES_MAX = 16, /* as many may share a visit of weights */
    TILE_LEAST_PX = 256 /* below, even consent makes no tile smaller */
};

/* ----------------------------------------------------------------------------------- sizes */

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

bool job_plan_paints_draft(const struct mural_job *job)
{
    return job->config.input[0] == '\0';
}

bool job_plan_paints_tiles(const struct mural_job *job)
{
    return job->task != MURAL_DRAFT;
}

static struct engine_size draft_size(const struct mural_job *job)
{
    return (struct engine_size){.w_px = job->plan.draft_w_px,
                                .h_px = job->plan.draft_h_px,
                                .tiles = 1,
                                .steps = (uint32_t)job->config.draft_steps,
                                .steps_next =
                                    job_plan_paints_tiles(job) ? (uint32_t)job->config.steps : 0};
}

size_t job_plan_sizes(const struct mural_job *job, struct engine_size *sizes_out)
{
    size_t count = 0;

    if (job_plan_paints_draft(job)) sizes_out[count++] = draft_size(job);
    if (job_plan_paints_tiles(job)) sizes_out[count++] = tile_size(job);
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

/* Drafts are painted one after the other, each by all that there is. */
static uint32_t workers_wanted(const struct mural_job *job)
{
    return job_plan_paints_tiles(job) ? (uint32_t)job->config.workers : 1;
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

    if (!job_plan_paints_tiles(job)) painters = 0;
    job->host_bytes = render_host_bytes(&job->config, &job->plan, channels, painters,
                                        job_plan_tiles_per_pass(job));
    if (job->worker_count > 0)
        job->host_bytes += fleet_host_bytes(sizes, size_count, channels, job->worker_count);
}

static int measure(struct mural_job *job, struct err *err)
{
    int                rc = ERR_OK;
    struct engine_size sizes[2];
    size_t             count = job_plan_sizes(job, sizes), tile = count - 1; /* the last */
    struct engine_cost cost;

    TRY(engine_estimate(&cost, &job->facts, &job->options, sizes, count, err));
    TRY(check_cells(job, err));
    job->scratch_bytes =
        job_device_is_gpu(job) ? cost.host_bytes : cost.scratch_bytes + cost.fixed_bytes;
    if (job->worker_count > 1) job->scratch_bytes *= job->worker_count;
    count_host_bytes(job);
    job->costs = (struct render_costs){.prompt = cost.flop[0].prompt};
    if (job_plan_paints_draft(job)) {
        job->costs.draft_predict = cost.flop[0].predict;
        job->costs.draft_decode = cost.flop[0].decode;
    }
    if (job_plan_paints_tiles(job)) {
        job->costs.encode = cost.flop[tile].encode;
        job->costs.predict = cost.flop[tile].predict;
        job->costs.decode = cost.flop[tile].decode;
    }
out:
    return rc;
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
    if (job_device_is_gpu(job))
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
    card.link_bytes_per_second = job_info_link_rate(job, &ignored);
    card.disk_bytes_per_second = job_info_disk_rate(job, &ignored);
    card.flop_per_second = job->speed;
    job->options.memory.vram_bytes = job->config.vram_bytes / shares;
    job->gpu_shares = 0; /* sizes are then those of one tile at a time */
    count = job_plan_sizes(job, sizes);
    if (job_plan_paints_tiles(job)) sizes[count - 1].tiles = tiles;
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

    if (job_device_is_free(job) && !job->elsewhere && workshop_tells(job->workshop, NOTE_DEVICE))
        log_line(LOG_NOTE, "painting on GPU %d: %s, %s", job->options.gpu, job->device.name,
                 text_bytes(words, sizeof words, job->device.bytes_total));
    if (job->config.offload && job->config.disk_bytes_per_second == 0)
        job->disk_speed = engine_disk_speed(&job->options);
    while ((rc = plan_gpu(job, shares, err)) == ERR_DEVICE_MEM && may_change &&
           job_plan_paints_tiles(job) && job->config.tile_px > TILE_LEAST_PX) {
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
    struct engine_options own = job_device_options(&job->config);

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
    int                rc = ERR_OK;
    struct tokenizers *tokenizers = NULL;

    TRY(tokenizers_open(&tokenizers, err));
    job->options = job_device_options(&job->config);
    job->options.tokenizers = tokenizers; /* for all the engines that are opened to measure */
    TRY(job_device_choose(job, err));
    count_workers(job);
    TRY(measure(job, err));
    TRY(find_speed(job, err));
    if (job_device_is_gpu(job)) TRY(fit_gpu(job, err));
out:
    job->options.tokenizers = NULL;
    tokenizers_close(tokenizers);
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
    job_info_fill(job, disk_free);
    job->planned = true;
out:
    return rc;
}
