/*
 * job.h - jobs and workshops as the files of the library share them.
 *
 * Private to the library; callers know mural.h.
 */
#ifndef MURAL_JOB_H
#define MURAL_JOB_H

#include "mural.h"

#include "config/config.h"
#include "engine/engine.h"
#include "fleet/fleet.h"
#include "render/render.h"

#include <stdatomic.h>

/* Of a GPU: what a process answered, or this one found out, when it was last asked. */
struct workshop_answer {
    bool                 known, tried; /* tried: `flops` was asked for, of a model like `trial` */
    int32_t              gpu;
    struct engine_facts  trial;
    struct engine_device device;
    double               flops;
    struct err           why; /* code other than ERR_OK: it failed */
};

/* What is loaded, or would be. */
struct workshop_load {
    char                  model[1024], transformer[1024], vae[1024];
    struct engine_options options; /* its texts are those above */
    struct engine_device  device;
    uint32_t              worker_count; /* 0: this process paints */
    double                timeout_seconds;
    int32_t               channels;
    uint64_t              model_identity;
    size_t                size_count;
    struct engine_size    sizes[ENGINE_SIZES_MAX];
};

/* Said once, however many jobs it is true of. */
enum workshop_note { NOTE_SAMPLE = 1 << 0, NOTE_DEVICE = 1 << 1, NOTE_NO_PROMPT = 1 << 2 };

struct mural_workshop {
    const char            *program; /* NULL: this process paints */
    struct mural_job      *jobs;    /* all that are open, in their order */
    struct mural_job      *running; /* the last that ran, for painters that ask whether to stop */
    struct workshop_answer answer;
    struct probe          *left; /* who gave it, if not known to have ended */
    struct workshop_load   load; /* with painters: what they have */
    struct studio         *studio;
    struct fleet          *fleet;
    struct painter         own;
    const struct painter  *painters; /* [painter_count]; NULL: nothing is loaded */
    uint32_t               painter_count;
    uint64_t               steps_run; /* since it was loaded */
    unsigned               told;      /* enum workshop_note */
};

struct mural_job {
    enum mural_task        task;
    struct mural_workshop *workshop;
    struct mural_job      *next;    /* in it */
    bool                   alone;   /* the workshop is the job's own */
    bool                   planned; /* job_plan_make was through */
    bool                   over;    /* it ran, or need not */
    struct config          config;
    bool                   sample_model; /* nobody chose another */
    struct engine_options  options;
    struct engine_device   device; /* the GPU that paints, where one does */
    struct render_plan     plan;
    struct engine_facts    facts;
    struct render_costs    costs;
    struct mural_plan_info info;
    struct engine_outlook  gpu;        /* of one worker's share           */
    uint32_t               gpu_shares; /* 0: the CPU paints               */
    bool                   elsewhere;  /* a plan for a GPU that is not here */
    double                 speed;      /* FLOP/s; 0: not known            */
    double                 disk_speed; /* bytes/s of the model's files, measured; 0: not   */
    uint64_t               scratch_bytes, host_bytes; /* of the host's memory */
    const char            *worker_program;            /* NULL: this process paints */
    uint32_t               worker_count;
    double                 begin_seconds;
    mural_progress_fn      on_progress;
    void                  *user;
    atomic_int             stop; /* enum mural_stop; set from anywhere */
    uint64_t               steps_run;
    /* Tiles to paint again. */
    bool        again_seed_given;
    uint64_t    again_seed;
    char       *again_prompt; /* NULL: as it was */
    struct pace pace;
};

/* ----------------------------------------------------------------------------- workshop.c */

int workshop_open(struct mural_workshop **out, const char *program, struct err *err);
/* Painters with this model and room for this job, in workshop->painters: those of the job before
 * where they will do. */
int workshop_ready(struct mural_workshop *workshop, struct mural_job *job, uint64_t model_identity,
                   struct err *err);
/* Unload, and end all workers and whoever asked about a GPU: its memory is then free. */
void workshop_rest(struct mural_workshop *workshop);
void workshop_join(struct mural_workshop *workshop, struct mural_job *job);
void workshop_leave(struct mural_workshop *workshop, const struct mural_job *job);
/* Is the note new? */
bool workshop_tells(struct mural_workshop *workshop, enum workshop_note note);

/* --------------------------------------------------------------------------- job_device.c */

/* As the settings have it; its texts are theirs. */
struct engine_options job_device_options(const struct config *config);
/* "auto" becomes a GPU, or the CPU where there is no GPU at all.  One that is there and fails is an
 * error, and so is one that was named and is not there: nobody gets the CPU unawares.  A plan with
 * vram is for a GPU of that size, and it need not be here. */
int  job_device_choose(struct mural_job *job, struct err *err);
bool job_device_is_gpu(const struct mural_job *job);
bool job_device_is_free(const struct mural_job *job); /* nobody named one */

/* ----------------------------------------------------------------------------- job_info.c */

/* From all that the plan has found. */
void job_info_fill(struct mural_job *job, uint64_t disk_free);
/* Bytes a second: given, measured, or else assumed. */
double job_info_link_rate(const struct mural_job *job, enum mural_source *source_out);
double job_info_disk_rate(const struct mural_job *job, enum mural_source *source_out);

/* ----------------------------------------------------------------------------- job_plan.c */

bool job_plan_paints_draft(const struct mural_job *job);
bool job_plan_paints_tiles(const struct mural_job *job);

/* Fills options, plan, facts, costs, gpu and info from task and config. */
int job_plan_make(struct mural_job *job, struct err *err);
/* Of drafts and tiles, those that this job paints; returns how many, at most 2. */
size_t   job_plan_sizes(const struct mural_job *job, struct engine_size *sizes_out);
uint32_t job_plan_tiles_per_pass(const struct mural_job *job);
/* ERR_HOST_MEM in one sentence when what is free now is not enough. */
int job_plan_check_memory(const struct mural_job *job, struct err *err);

#endif
