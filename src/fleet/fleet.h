/*
 * fleet.h - painters for render: made of an engine in this process, or of worker processes.
 *
 * Rank 6.  Knows render's struct painter and the engine; render knows neither this folder nor the
 * engine.
 */
#ifndef MURAL_FLEET_H
#define MURAL_FLEET_H

#include "engine/engine.h"
#include "render/render.h"

/* -------------------------------------------------------------------------- in this process */

struct studio;
/* An engine with scratch for the largest of `sizes`, ready to paint. */
int  studio_open(struct studio **out, const struct engine_options *options,
                 const struct engine_size *sizes, size_t size_count, struct err *err);
void studio_close(struct studio *studio); /* NULL is fine */
/* A painter that lives as long as the studio. */
struct painter studio_painter(struct studio *studio);

/* ------------------------------------------------------------------ a GPU, asked from outside */

struct probe_request {
    const char                *program; /* run as `program probe ...` */
    int32_t                    gpu;
    const struct engine_facts *trial; /* also how fast it is at this model; NULL: not asked */
    double                     timeout_seconds;
};
/* A process that has answered and is about to end, which takes a driver a while: for so long it
 * holds some of the GPU's memory. */
struct probe;
/* As engine_find_device, but another process asks: this one never touches the GPU, and a driver
 * that crashes or hangs is one sentence (ERR_DEVICE; ERR_PEER when no process can be started).
 * *flops_out: as engine_speed; 0 when it was not asked.  *left_out: NULL after an error. */
int fleet_probe(struct engine_device *out, double *flops_out, struct probe **left_out,
                const struct probe_request *request, struct err *err);
/* Once it is gone, of itself or killed after a second; NULL is fine. */
void fleet_probe_end(struct probe *probe);
/* What `program probe WORDS` does: asks, and answers whoever started it.  ERR_USAGE when nobody
 * started it so. */
int fleet_probe_run(const char *const *words, size_t word_count, struct err *err);

/* ----------------------------------------------------------------------- in worker processes */

/* Each worker is a process with an engine of its own that stays loaded from tile to tile.  Weights
 * are mapped files, and those that visit a GPU lie in memory that workers share, so however many
 * workers there are, the host holds them once; scratch each has its own.  This process needs no
 * engine and touches no device, so nothing that befalls one ends the job. */
struct fleet;

enum { FLEET_WORKERS_MAX = 64 };

struct fleet_request {
    const char               *program; /* run as `program worker`; lives as long as the fleet */
    uint32_t                  worker_count; /* 1..FLEET_WORKERS_MAX */
    struct engine_options     options;      /* of every worker; no pulse, no exchange */
    const struct engine_size *sizes;        /* at most ENGINE_SIZES_MAX, of at most 64 tiles each */
    size_t                    size_count;
    int32_t                   channels; /* of a latent cell, as in engine_facts          */
    uint64_t model_identity;  /* workers must find this model; 0: what the first one finds */
    double   timeout_seconds; /* a worker silent for so long is taken as hung  */
    double   backoff_seconds; /* before a worker is started again; then twice
                                 that, and so on up to 30                      */
    /* Asked about ten times a second while a worker is waited for, from any painter's thread. */
    bool (*stop_wanted)(void *user); /* may be NULL */
    void *user;
};

/* Starts the workers and waits until their engines are open.  What may pass is tried three times.
 * After this nothing is allocated but what starting a process takes. */
int  fleet_open(struct fleet **out, const struct fleet_request *request, struct err *err);
void fleet_close(struct fleet *fleet); /* ends and reaps every worker; NULL is fine */

/* One painter per worker, each for one thread at a time; they live as long as the fleet.
 *
 * Each takes up to as many tiles at once as the largest of `sizes` says.  A worker answers
 * yield_memory for its engine.
 *
 * A primitive may fail with ERR_PEER (the worker died, hung or lied), ERR_NUMERIC, or what its
 * engine told.  The painter may be used again after any error: it starts another worker when it is
 * needed next, after the back-off, and begins the stage anew in it.  ERR_CANCELLED: stop_wanted
 * said so; the worker was killed. */
const struct painter *fleet_painters(const struct fleet *fleet, uint32_t *count_out);
/* Hash of the model that all workers have open. */
uint64_t fleet_model_identity(const struct fleet *fleet);
/* Memory that this process and all workers of a fleet hold besides their engines. */
uint64_t fleet_host_bytes(const struct engine_size *sizes, size_t size_count, int32_t channels,
                          uint32_t worker_count);

/* What `program worker` does: serves the supervisor that started this process until that hangs up.
 * Takes over the log.  ERR_USAGE when nobody started it so. */
int fleet_worker_run(struct err *err);

#endif
