/*
 * workshop.c - who paints for a job: an engine in this process, or workers, kept from job to job.
 *
 * Owns what is loaded, and decides whether the next job can use it: it must ask for the same model
 * on the same machine, and for sizes that there is room for.  When something is loaded it is made
 * ready for all jobs that are open then and can share it, so that a list of posters of several
 * sizes loads once.
 *
 * Knows nothing of settings or pictures.  Belongs to one thread, with its jobs; painters ask it
 * from theirs only whether the running job is to stop.
 *
 * Read next: fleet/fleet.h.
 */
#include "job.h"

#include <stdio.h>
#include <string.h>

/* -------------------------------------------------------------------------------- what is loaded
 */

static void copy_path(char *out, size_t capacity, const char *path)
{
    (void)snprintf(out, capacity, "%s", path != NULL ? path : "");
}

/* What a job alone would have loaded. */
static void load_of(struct workshop_load *out, const struct mural_job *job, uint64_t model)
{
    *out = (struct workshop_load){.options = job->options,
                                  .worker_count = job->worker_count,
                                  .timeout_seconds = job->config.worker_timeout,
                                  .channels = job->facts.latent_channels,
                                  .model_identity = model};
    copy_path(out->model, sizeof out->model, job->options.model_folder);
    copy_path(out->transformer, sizeof out->transformer, job->options.transformer);
    copy_path(out->vae, sizeof out->vae, job->options.vae);
    out->size_count = job_plan_sizes(job, out->sizes);
}

/* Rates are measured, and how many tiles pass together is what follows from them and the sizes:
 * both make no picture another. */
static bool same_memory(const struct engine_memory *one, const struct engine_memory *other)
{
    return one->vram_bytes == other->vram_bytes && one->offload == other->offload &&
           one->keep_share == other->keep_share && one->expandable == other->expandable &&
           one->segment_bytes == other->segment_bytes &&
           one->fragmentation_max == other->fragmentation_max &&
           one->pool_bytes == other->pool_bytes;
}

/* Could one engine serve both, with room enough? */
static bool is_shared(const struct workshop_load *one, const struct workshop_load *other)
{
    const struct engine_options *a = &one->options, *b = &other->options;

    return one->model_identity == other->model_identity && strcmp(one->model, other->model) == 0 &&
           strcmp(one->transformer, other->transformer) == 0 && strcmp(one->vae, other->vae) == 0 &&
           one->worker_count == other->worker_count &&
           one->timeout_seconds == other->timeout_seconds && a->machine == b->machine &&
           a->gpu == b->gpu && a->precision == b->precision && a->threads == b->threads &&
           a->text_tokens == b->text_tokens && a->text_on_cpu == b->text_on_cpu &&
           same_memory(&a->memory, &b->memory);
}

static struct engine_size *find_size(struct workshop_load *load, const struct engine_size *size)
{
    for (size_t i = 0; i < load->size_count; i++)
        if (load->sizes[i].w_px == size->w_px && load->sizes[i].h_px == size->h_px)
            return &load->sizes[i];
    return NULL;
}

static bool has_room(struct workshop_load *load, const struct workshop_load *wanted)
{
    for (size_t i = 0; i < wanted->size_count; i++) {
        const struct engine_size *size = find_size(load, &wanted->sizes[i]);
        if (size == NULL || size->tiles < wanted->sizes[i].tiles ||
            size->steps < wanted->sizes[i].steps || size->steps_next < wanted->sizes[i].steps_next)
            return false;
    }
    return true;
}

/* Room for `other` too, unless its sizes are too many. */
static void make_room(struct workshop_load *load, const struct workshop_load *other)
{
    size_t added = 0;

    for (size_t i = 0; i < other->size_count; i++)
        if (find_size(load, &other->sizes[i]) == NULL) added++;
    if (load->size_count + added > ENGINE_SIZES_MAX) return;
    for (size_t i = 0; i < other->size_count; i++) {
        const struct engine_size *size = &other->sizes[i];
        struct engine_size       *mine = find_size(load, size);
        if (mine == NULL) {
            load->sizes[load->size_count++] = *size;
            continue;
        }
        if (mine->tiles < size->tiles) mine->tiles = size->tiles;
        if (mine->steps < size->steps) mine->steps = size->steps;
        if (mine->steps_next < size->steps_next) mine->steps_next = size->steps_next;
    }
    if (load->options.memory.tiles_per_pass < other->options.memory.tiles_per_pass)
        load->options.memory.tiles_per_pass = other->options.memory.tiles_per_pass;
}

/* Jobs that are still to come and that can share what `job` loads; one that memory is too short for
 * fails alone. */
static void make_room_for_all(struct workshop_load *load, const struct mural_job *job)
{
    struct workshop_load other;
    struct err           ignored = {.code = ERR_OK};

    for (const struct mural_job *next = job->workshop->jobs; next != NULL; next = next->next) {
        if (next == job || next->over || next->task == MURAL_PLAN) continue;
        load_of(&other, next, load->model_identity);
        if (is_shared(load, &other) && job_plan_check_memory(next, &ignored) == ERR_OK)
            make_room(load, &other);
    }
}

/* -------------------------------------------------------------------------------- open and close
 */

static bool stop_wanted(void *user)
{
    const struct mural_workshop *workshop = user;
    return workshop->running != NULL && workshop->running->stop == MURAL_STOP_NOW;
}

static int open_painters(struct mural_workshop *workshop, struct err *err)
{
    int                   rc = ERR_OK;
    struct workshop_load *load = &workshop->load;
    struct fleet_request  fleet = {.program = workshop->running->worker_program,
                                   .worker_count = load->worker_count,
                                   .options = load->options,
                                   .sizes = load->sizes,
                                   .size_count = load->size_count,
                                   .channels = load->channels,
                                   .model_identity = load->model_identity,
                                   .timeout_seconds = load->timeout_seconds,
                                   .backoff_seconds = 1,
                                   .stop_wanted = stop_wanted,
                                   .user = workshop};

    if (load->worker_count > 0) {
        TRY(fleet_open(&workshop->fleet, &fleet, err));
        workshop->painters = fleet_painters(workshop->fleet, &workshop->painter_count);
    } else {
        TRY(studio_open(&workshop->studio, &load->options, load->sizes, load->size_count, err));
        workshop->own = studio_painter(workshop->studio);
        workshop->painters = &workshop->own;
        workshop->painter_count = 1;
    }
out:
    return rc;
}

int workshop_ready(struct mural_workshop *workshop, struct mural_job *job, uint64_t model_identity,
                   struct err *err)
{
    int                  rc = ERR_OK;
    struct workshop_load wanted;

    workshop->running = job;
    load_of(&wanted, job, model_identity);
    if (workshop->painters != NULL && is_shared(&workshop->load, &wanted) &&
        has_room(&workshop->load, &wanted))
        goto out;
    workshop_rest(workshop); /* first: there is memory for one */
    TRY(job_plan_check_memory(job, err));
    make_room_for_all(&wanted, job);
    workshop->load = wanted;
    /* The paths of the job's settings may be gone before what is loaded is. */
    workshop->load.options.model_folder = workshop->load.model;
    if (job->options.transformer != NULL)
        workshop->load.options.transformer = workshop->load.transformer;
    if (job->options.vae != NULL) workshop->load.options.vae = workshop->load.vae;
    workshop->load.options.device = NULL;
    if (job->options.device != NULL) {
        workshop->load.device = *job->options.device;
        workshop->load.options.device = &workshop->load.device;
    }
    workshop->steps_run = 0;
    TRY(open_painters(workshop, err));
out:
    return rc;
}

void workshop_rest(struct mural_workshop *workshop)
{
    studio_close(workshop->studio);
    fleet_close(workshop->fleet);
    fleet_probe_end(workshop->left);
    workshop->studio = NULL;
    workshop->fleet = NULL;
    workshop->left = NULL;
    workshop->painters = NULL;
    workshop->painter_count = 0;
}

int workshop_open(struct mural_workshop **out, const char *program, struct err *err)
{
    struct mural_workshop *workshop = NULL;
    int rc = os_alloc((void **)&workshop, 1, sizeof *workshop, "a workshop", err);

    if (rc == ERR_OK) workshop->program = program;
    *out = workshop;
    return rc;
}

void workshop_join(struct mural_workshop *workshop, struct mural_job *job)
{
    struct mural_job **last = &workshop->jobs;

    while (*last != NULL)
        last = &(*last)->next;
    *last = job;
}

void workshop_leave(struct mural_workshop *workshop, const struct mural_job *job)
{
    for (struct mural_job **at = &workshop->jobs; *at != NULL; at = &(*at)->next) {
        if (*at != job) continue;
        *at = job->next;
        break;
    }
    if (workshop->running == job) workshop->running = NULL;
}

bool workshop_tells(struct mural_workshop *workshop, enum workshop_note note)
{
    bool told = (workshop->told & (unsigned)note) != 0;

    workshop->told |= (unsigned)note;
    return !told;
}
