/*
 * job_device.c - which machine paints a job, and what an engine is to be opened with for it.
 *
 * Owns the choice between GPU and CPU, and the question to the GPU: asked once for all jobs that
 * ask the same.  Knows nothing of sizes and of how memory is shared out.
 *
 * Read next: job_plan.c.
 */
#include "job.h"

#include <stdlib.h>
#include <string.h>

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

struct engine_options job_device_options(const struct config *config)
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

/* ----------------------------------------------------------------------------------- the GPU */

bool job_device_is_gpu(const struct mural_job *job)
{
    return job->options.machine == ENGINE_CUDA;
}

bool job_device_is_free(const struct mural_job *job)
{
    return strcmp(job->config.device, "auto") == 0;
}

/* More than any driver takes to start, with many cards and nobody to keep them awake; and then the
 * first use of a new card may have to wait until its code is translated. */
static const double PROBE_SECONDS = 180;

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

/* Where other processes paint, another one asks; it goes to *left_out then. */
static void ask(struct workshop_answer *answer, struct probe **left_out,
                const struct mural_job *job)
{
    struct probe_request probe = {.program = job->worker_program,
                                  .gpu = job->options.gpu,
                                  .trial = answer->tried ? &answer->trial : NULL,
                                  .timeout_seconds = PROBE_SECONDS};
    int                  rc;

    if (job->worker_program != NULL) {
        (void)fleet_probe(&answer->device, &answer->flops, left_out, &probe, &answer->why);
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
        fleet_probe_end(job->workshop->left);
        job->workshop->left = NULL;
        ask(&wanted, &job->workshop->left, job);
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

int job_device_choose(struct mural_job *job, struct err *err)
{
    int        rc = ERR_OK;
    bool       sized = job->task == MURAL_PLAN && job->config.vram_bytes > 0;
    struct err why = {.code = ERR_OK};

    if (job_device_is_free(job) || sized) job->options.machine = ENGINE_CUDA;
    if (!job_device_is_gpu(job)) goto out;
    rc = ask_gpu(job, &why);
    if (rc == ERR_OK) {
        job->options.device = &job->device;
    } else if (sized) {
        job->elsewhere = true;
        rc = ERR_OK;
    } else if (job_device_is_free(job) && job->device.absent[0] != '\0') {
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
