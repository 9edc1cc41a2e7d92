/*
 * mural.h - the public door: a prompt in, a poster file out.
 *
 * A complete program:
 *
 *     #include "mural.h"
 *     #include <stdio.h>
 *
 *     static int show(const struct mural_progress *progress, void *user)
 *     {
 *         (void)user;
 *         fprintf(stderr, "%s: tile %u of %u\n", progress->phase, progress->tiles_done,
 *                 progress->tiles_total);
 *         return 0;
 *     }
 *
 *     int main(void)
 *     {
 *         const char *settings[] = {"model=FLUX.1-dev", "prompt=A harbour in fog at dawn",
 *                                   "width=7680", "height=4320", "output=harbour.tif"};
 *         struct mural_error error;
 *         mural_job *job = NULL;
 *         int code = mural_job_open(&job, MURAL_RENDER, settings, 5, NULL, &error);
 *
 *         if (code == 0) code = mural_job_run(job, show, NULL, &error);
 *         if (code != 0) fprintf(stderr, "%s error: %s\n", mural_error_name(code), error.text);
 *         mural_job_close(job);
 *         return code != 0;
 *     }
 *
 * Settings are words "key=value" with the keys of the YAML files: `mural sample-config` lists them
 * all, with their ranges and defaults.  "config=FILE" reads such a file; words win over it.
 *
 * A poster that some tiles are missing of, because they kept failing, ends with the error
 * "partial"; MURAL_RESUME tries these again.
 *
 * A job belongs to one thread, and jobs of one workshop to the same.  Nothing here prints, exits or
 * installs signal handlers.
 */
#ifndef MURAL_H
#define MURAL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mural_job      mural_job;
typedef struct mural_workshop mural_workshop;

/* `code` is 0 for success; mural_error_name names the others.  `text` is one sentence without a
 * newline or a final period. */
struct mural_error {
    int  code;
    char text[512];
};

enum mural_task {
    MURAL_RENDER = 0, /* prompt -> draft -> poster                                   */
    MURAL_DRAFT,      /* prompt -> small picture, or a sheet of `count` of them      */
    MURAL_UPSCALE,    /* a draft, given as "input=FILE" -> poster                    */
    MURAL_PLAN,       /* what MURAL_RENDER would need; needs no prompt, never runs   */
    MURAL_RESUME,     /* go on with the poster "output=FILE", with its own settings  */
    MURAL_RETRY       /* the same, after "tiles=LIST" of it were forgotten; "seed"   */
                      /* and "prompt" are then for these tiles                       */
};

/* Where a rate comes from. */
enum mural_source { MURAL_ASSUMED = 0, MURAL_MEASURED, MURAL_GIVEN };

/* How a GPU's memory is shared out, for one worker.  Blocks are layers of the transformer: those
 * that do not stay visit the GPU in every step, one after the other. */
struct mural_gpu_plan {
    uint64_t bytes_allowed, bytes_planned; /* the latter is the sum of the next five */
    uint64_t resident_bytes, ring_bytes, scratch_bytes, ends_bytes, library_bytes;
    uint64_t visiting_bytes; /* over the link in a step, once for all tiles of a pass */
    uint64_t pinned_bytes; /* of the host's memory; less than those: the rest is read from files */
    uint32_t blocks, blocks_resident, tiles_per_pass;
    uint32_t strip_level, strip_levels; /* 0: the VAE has all the room that it can use */
    /* Of a step of a pass; the longest counts.  0: not known, or there is nothing to read. */
    double            compute_seconds, link_seconds, disk_seconds;
    double            link_bytes_per_second, disk_bytes_per_second, flop_per_second;
    enum mural_source link_source, disk_source, flop_source;
    int               text_on_cpu, elsewhere; /* elsewhere: a GPU that is not in this machine */
    /* How its memory will be managed: as set. */
    int      expandable;
    uint64_t segment_bytes, pool_bytes;
    double   idle_share_max;
};

/* Sides in pixels, sizes in bytes, time in seconds.  `seconds_estimate` is 0 when the machine's
 * speed could not be judged. */
struct mural_plan_info {
    int32_t  width_px, height_px;
    uint32_t tile_cols, tile_rows;
    int32_t  tile_w_px, tile_h_px;
    int32_t  overlap_x_px, overlap_y_px; /* of neighbours as planned: at least what was asked */
    int32_t  draft_w_px, draft_h_px;
    uint64_t host_bytes_peak; /* scratch and bands; weights are mapped files     */
    uint64_t host_bytes_free;
    uint64_t weight_bytes, scratch_bytes;
    uint64_t gpu_bytes_peak;     /* of all workers; 0: the CPU paints               */
    uint64_t spool_bytes;        /* tiles that wait on disk for their neighbours    */
    uint64_t output_bytes_worst; /* the file, if nothing in it could be compressed  */
    uint64_t disk_bytes_free;    /* where the output goes                           */
    double   flop_total;
    double   seconds_estimate;
    uint32_t text_tokens;
    char     precision[8];     /* "f32" or "bf16" */
    char     model[256];       /* last part of the model folder's name */
    struct mural_gpu_plan gpu; /* bytes_allowed 0: the CPU paints */
};

struct mural_progress {
    const char *phase; /* a short word such as "draft" or "tiles"; a static string */
    uint32_t    tiles_done, tiles_total;
    uint32_t    step, steps; /* of the tiles that are painted now; 0 of 0: no steps here */
    double      seconds_elapsed;
    double      seconds_left;     /* negative: not known yet   */
    double      steps_per_second; /* 0: not known yet          */
};

/* Called between steps, from the thread that called mural_job_run.  Return 0 to go on, anything
 * else to stop cleanly: the job then ends with the "cancelled" error and leaves no half-written
 * file.  What is finished of a poster stays in the folder OUTPUT.mural, and another job of the same
 * settings, or MURAL_RESUME, goes on from there to the same bytes. */
typedef int (*mural_progress_fn)(const struct mural_progress *progress, void *user);

/* Read the settings and the model's configuration and make the plan.  No weights are read, nothing
 * large is allocated, no file is written.  On failure *out is NULL and *error says why.
 *
 * With `program` the job paints in processes of its own, as many as the setting "workers" says, and
 * asks about a GPU in one more: whatever befalls them, they are started again, the job goes on, and
 * this process touches no GPU.  They are run as `program worker` and `program probe WORDS`, and
 * those must call mural_worker_run and mural_probe_run: the command line's program does, and yours
 * may.  The string must live as long as the job.  NULL, or the setting "persistent_workers" false:
 * all of it happens in this process. */
int mural_job_open(mural_job **out, enum mural_task task, const char *const *settings,
                   size_t setting_count, const char *program, struct mural_error *error);

void mural_job_plan(const mural_job *job, struct mural_plan_info *info_out);

/* The file that mural_job_run makes; the string lives as long as the job. */
const char *mural_job_output(const mural_job *job);

/* A workshop keeps the model loaded, and the processes that paint, from one job to the next:
 *
 *     mural_workshop *workshop;
 *     mural_job      *jobs[2];
 *
 *     mural_workshop_open(&workshop, NULL, &error);
 *     mural_workshop_job(&jobs[0], workshop, MURAL_RENDER, fog, 4, &error);
 *     mural_workshop_job(&jobs[1], workshop, MURAL_RENDER, snow, 5, &error);
 *     mural_job_run(jobs[0], show, NULL, &error);        loads the model
 *     mural_job_run(jobs[1], show, NULL, &error);        uses it
 *
 * A job opened in it is as one of mural_job_open, paints the same bytes, and is closed before it.
 * What is loaded is made ready for all jobs that are open at that moment, so those of several sizes
 * are best opened first and run then.  A job that cannot use it, because its model, the machine's
 * settings or its sizes differ, has its own loaded in place of it.  `program` is as in
 * mural_job_open; no process is started before a job is run, but one that is asked about a GPU. */
int  mural_workshop_open(mural_workshop **out, const char *program, struct mural_error *error);
int  mural_workshop_job(mural_job **out, mural_workshop *workshop, enum mural_task task,
                        const char *const *settings, size_t setting_count,
                        struct mural_error *error);
void mural_workshop_close(mural_workshop *workshop); /* NULL is fine */

/* What mural_job_run would refuse before it loads anything, and whether its poster is finished,
 * with these very settings: it would then do nothing, with success. */
int mural_job_check(mural_job *job, int *finished_out, struct mural_error *error);

/* The whole of what such a process does: return from main after it.  `words` are what stands behind
 * "probe". */
int mural_worker_run(struct mural_error *error);
int mural_probe_run(const char *const *words, size_t word_count, struct mural_error *error);

/* Do the work.  `on_progress` may be NULL.  The output appears under its name only when it is
 * complete and was checked.  A poster that is finished already, with these settings, is a success
 * at once. */
int mural_job_run(mural_job *job, mural_progress_fn on_progress, void *user,
                  struct mural_error *error);

/* Ask a job to end early, from any thread or a signal handler: it then ends with the "cancelled"
 * error, as when a progress function asks.  A job that was asked to end after its tile may still be
 * asked to end now. */
enum mural_stop { MURAL_STOP_NOW = 1, MURAL_STOP_AFTER_TILE = 2 };
void mural_job_stop(mural_job *job, enum mural_stop how);

void mural_job_close(mural_job *job); /* NULL is fine */

/* Write a model with random weights into `folder`, which must be absent or empty.  Settings: spec,
 * dtype, bfl, shard_bytes, seed. */
int mural_synth_model(const char *folder, const char *const *settings, size_t setting_count,
                      struct mural_error *error);

const char *mural_error_name(int code); /* "usage", "io", ...; never NULL */
const char *mural_version(void);        /* "0.1.0" */

#ifdef __cplusplus
}
#endif

#endif
