/*
 * job.h - a job as mural.c and job_plan.c share it.
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
    double                 disk_speed; /* bytes/s of the model's files, measured; 0: not   */
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

/* Fills options, plan, facts, costs, gpu and info from task and config. */
int job_plan_make(struct mural_job *job, struct err *err);
/* Of drafts and tiles, those that this job paints; returns how many, at most 2. */
size_t   job_plan_sizes(const struct mural_job *job, struct engine_size *sizes_out);
uint32_t job_plan_tiles_per_pass(const struct mural_job *job);
/* ERR_HOST_MEM in one sentence when what is free now is not enough. */
int job_plan_check_memory(const struct mural_job *job, struct err *err);

#endif
