/*
 * mural.c - the library behind mural.h: settings, plan, engine and render wired together.
 *
 * Owns the job.  Hands render the painters of its workshop.
 *
 * Read next: job_plan.c, workshop.c, render/render.c.
 */
#include "job.h"

#include "weights/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION "0.1.0"

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
    if (prompt_given && job->config.prompt[0] == '\0')
        RAISE(err, ERR_USAGE, 0,
              "the prompt for these tiles is empty; write what to paint, or leave it out to keep "
              "the poster's");
    job->again_seed = job->config.seed;
    if (prompt_given) TRY(text_copy(&job->again_prompt, job->config.prompt, "a prompt", err));
    TRY(load_settings(job, (const char *const *)all.word, all.count, err));
out:
    config_words_close(&all);
    return rc;
}

static int open_job(mural_job **out, mural_workshop *workshop, enum mural_task task,
                    const char *const *settings, size_t setting_count, struct err *err)
{
    int               rc = ERR_OK;
    struct mural_job *job = NULL;

    TRY(os_alloc((void **)&job, 1, sizeof *job, "a job", err));
    job->task = task;
    job->workshop = workshop;
    workshop_join(workshop, job);
    if (task == MURAL_RESUME || task == MURAL_RETRY)
        TRY(recall_settings(job, settings, setting_count, err));
    else
        TRY(load_settings(job, settings, setting_count, err));
    if (job->config.persistent_workers) job->worker_program = workshop->program;
    TRY(job_plan_make(job, err));
    if (job->sample_model && workshop_tells(workshop, NOTE_SAMPLE))
        log_line(LOG_NOTE, "no --model given: painting with the small sample model of mural");
    *out = job;
    job = NULL;
out:
    mural_job_close(job);
    return rc;
}

int mural_workshop_open(mural_workshop **out, const char *program, struct mural_error *error)
{
    struct err err = {0};
    return tell(error, &err, workshop_open(out, program, &err));
}

void mural_workshop_close(mural_workshop *workshop)
{
    if (workshop == NULL) return;
    must(workshop->jobs == NULL);
    workshop_rest(workshop);
    os_free(workshop);
}

int mural_workshop_job(mural_job **out, mural_workshop *workshop, enum mural_task task,
                       const char *const *settings, size_t setting_count, struct mural_error *error)
{
    struct err err = {0};

    *out = NULL;
    return tell(error, &err, open_job(out, workshop, task, settings, setting_count, &err));
}

int mural_job_open(mural_job **out, enum mural_task task, const char *const *settings,
                   size_t setting_count, const char *program, struct mural_error *error)
{
    int                    rc = ERR_OK;
    struct err             err = {0};
    struct mural_workshop *workshop = NULL;

    *out = NULL;
    TRY(workshop_open(&workshop, program, &err));
    TRY(open_job(out, workshop, task, settings, setting_count, &err));
    (*out)->alone = true;
    workshop = NULL;
out:
    mural_workshop_close(workshop);
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
    workshop_leave(job->workshop, job);
    if (job->alone) mural_workshop_close(job->workshop);
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

    job->steps_run = now->steps_run;
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

static enum render_mode mode_of(const struct mural_job *job)
{
    return job->task == MURAL_RESUME  ? RENDER_RESUME
           : job->task == MURAL_RETRY ? RENDER_RETRY
                                      : RENDER_BEGIN;
}

/* What render is asked for, and what that points at. */
struct errand {
    struct render_request  request; /* without painters */
    struct config         *used;
    struct engine_identity identity;
    bool                   finished; /* the poster is there already */
};

static void errand_fini(struct errand *errand)
{
    os_free(errand->used);
}

/* Is it a picture at all?  Its pixels are read when they are needed. */
static int check_picture(const struct mural_job *job, struct err *err)
{
    struct picture_info info = {.w = 0};
    int                 rc = picture_info_read(&info, job->config.input, err);

    picture_info_close(&info);
    return rc;
}

/* Everything that can be known to fail before a model is loaded. */
static int errand_init(struct errand *errand, struct mural_job *job, struct err *err)
{
    int rc = ERR_OK;

    *errand = (struct errand){
        .request = {.mode = mode_of(job),
                    .again = {.tiles = job->config.tiles,
                              .seed = job->again_seed_given ? &job->again_seed : NULL,
                              .prompt = job->again_prompt},
                    .config = &job->config,
                    .plan = &job->plan,
                    .costs = job->costs,
                    .tiles_per_pass = job_plan_tiles_per_pass(job),
                    .software = "mural " VERSION,
                    .retry_wait_seconds = 1,
                    .progress = on_render_progress,
                    .user = job}};
    TRY(used_settings(&errand->used, job, err));
    errand->request.used = errand->used;
    TRY(engine_identify(&errand->identity, &job->options, err));
    errand->request.model_identity = errand->identity.model;
    errand->request.numeric = errand->identity.numeric;
    if (job->task == MURAL_UPSCALE) TRY(check_picture(job, err));
    if (job->task != MURAL_DRAFT) TRY(render_check(&errand->request, &errand->finished, err));
out:
    return rc;
}

/* Nothing is left to do, but perhaps to remove what a finished poster does not need. */
static bool is_over(const struct errand *errand, const struct mural_job *job)
{
    return errand->finished && (job->config.keep_tiles || !config_is_begun(job->config.output));
}

static int run(struct mural_job *job, struct err *err)
{
    int                    rc = ERR_OK;
    struct errand          errand;
    struct mural_workshop *workshop = job->workshop;
    uint64_t               warmup = (uint64_t)job->config.warmup_batches;

    TRY(errand_init(&errand, job, err));
    if (is_over(&errand, job)) {
        log_line(LOG_NOTE, "'%s' is finished already", job->config.output);
        goto out;
    }
    if (job->task == MURAL_UPSCALE && job->config.prompt[0] == '\0' &&
        workshop_tells(workshop, NOTE_NO_PROMPT))
        log_line(LOG_NOTE, "no --prompt given: tiles follow the picture alone");
    TRY(workshop_ready(workshop, job, errand.identity.model, err));
    errand.request.painters = workshop->painters;
    errand.request.painter_count = workshop->painter_count;
    job->pace.warmup_steps = /* painters that have painted are warm */
        (uint32_t)(warmup > workshop->steps_run ? warmup - workshop->steps_run : 0);
    if (job->task == MURAL_DRAFT)
        TRY(render_drafts(&errand.request, err));
    else
        TRY(render_poster(&errand.request, err));
out:
    workshop->steps_run += job->steps_run;
    if (job->alone) workshop_rest(workshop);
    errand_fini(&errand);
    return rc;
}

int mural_job_check(mural_job *job, int *finished_out, struct mural_error *error)
{
    int           rc = ERR_OK;
    struct err    err = {0};
    struct errand errand = {.used = NULL};

    *finished_out = 0;
    if (job->task != MURAL_PLAN) TRY(errand_init(&errand, job, &err));
    *finished_out = errand.finished;
    job->over = is_over(&errand, job);
out:
    errand_fini(&errand);
    return tell(error, &err, rc);
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
    job->over = true;
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
