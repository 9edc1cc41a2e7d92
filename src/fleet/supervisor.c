/*
 * supervisor.c - painters whose work is done by worker processes that may die at any moment.
 *
 * Owns the workers: starts them, asks them, watches for signs of life, buries those that died, hung
 * or lied, and starts others in their place.  It never computes with a model and never touches a
 * device, so a failure of either cannot reach it.  What a failed tile costs is decided in render.
 *
 * Threads: each worker belongs to the thread that uses its painter; workers share nothing but what
 * was fixed at open.  Everything that would wait, waits in wait_for, which sees a wish to stop
 * within a tenth of a second.
 *
 * The cheap primitives (noise, start, advance) are computed here: they cannot fail.
 *
 * Read next: child.c, wire.c, then worker.c for the other side.
 */
#include "fleet/fleet_int.h"

#include "kernels/kernels.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

enum {
    OPEN_TRIES = 3,
    LINES_MAX = 10000, /* of log for one answer: whoever talks more never answers */
    LOOK_MS = 100,
};
/* A process that closed its channel is about to end by itself; a worker that was hung up on has an
 * engine to close. */
static const double DYING_SECONDS = 1, CLOSING_SECONDS = 5, BACKOFF_MAX_SECONDS = 30;

struct worker {
    struct fleet   *fleet;
    uint32_t        number; /* 1.. */
    struct child    child;  /* channel -1: not running */
    struct shared   shared;
    bool            ready;    /* its engine is open */
    bool            begun;    /* the stage has begun in this very process */
    uint32_t        failures; /* since the last success */
    double          ended_at; /* os_seconds of the last failure */
    uint32_t        sequence;
    struct schedule schedule; /* of the stage; steps 0: none */
    size_t          stage_count;
    uint8_t         stage[WIRE_BYTES_MAX]; /* the message that begins the stage */
    uint8_t         in[WIRE_BYTES_MAX], out[WIRE_BYTES_MAX];
};

struct fleet {
    struct fleet_request request; /* without sizes and options, which are in `open` */
    bool                 has_identity;
    uint64_t             model_identity;
    size_t               open_count;
    uint8_t              open[WIRE_BYTES_MAX]; /* the message that opens an engine */
    uint32_t             painter_count;
    struct painter       painters[FLEET_WORKERS_MAX];
    struct worker        workers[]; /* [worker_count] */
};

/* --------------------------------------------------------------------------------- waiting */

static bool must_stop(const struct worker *worker)
{
    const struct fleet_request *request = &worker->fleet->request;
    return request->stop_wanted != NULL && request->stop_wanted(request->user);
}

static int cancelled(struct err *err)
{
    return err_set(err, ERR_CANCELLED, 0, ERR_WHERE, "stopped on request");
}

static double backoff_seconds(const struct worker *worker)
{
    double seconds = worker->fleet->request.backoff_seconds;

    for (uint32_t i = 1; i < worker->failures && seconds < BACKOFF_MAX_SECONDS; i++)
        seconds *= 2;
    return seconds < BACKOFF_MAX_SECONDS ? seconds : BACKOFF_MAX_SECONDS;
}

static int back_off(const struct worker *worker, struct err *err)
{
    double due = worker->ended_at + backoff_seconds(worker);

    while (worker->failures > 0) {
        double rest = due - os_seconds();
        if (must_stop(worker)) return cancelled(err);
        if (rest <= 0) break;
        (void)os.poll(-1, 0, rest < 0.001 * LOOK_MS ? 1 + (int)(1000 * rest) : LOOK_MS);
    }
    return ERR_OK;
}

/* ------------------------------------------------------------------------------- reading */

/* What a worker wrote is shown to people, and it may be out of its mind. */
static const char *plain(char *out, size_t capacity, const char *words)
{
    (void)snprintf(out, capacity, "%s", words);
    out[text_utf8_valid_prefix(out, strlen(out))] = '\0';
    for (char *at = out; *at != '\0'; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7F) *at = '?';
    return out;
}

/* Whatever is wrong with a worker is told of it by number. */
static void name_worker(const struct worker *worker, struct err *err)
{
    err_context(err, "worker %u (process %d)", worker->number, worker->child.pid);
}

/* The channel closed: the sentence says how the process ended. */
static int report_end(struct worker *worker, struct err *err)
{
    int  pid = worker->child.pid;
    char fate[96];

    if (!child_end(&worker->child, DYING_SECONDS, fate, sizeof fate))
        (void)snprintf(fate, sizeof fate, "closed its channel, and does not die");
    return err_set(err, ERR_PEER, 0, ERR_WHERE, "worker %u (process %d) %s", worker->number, pid,
                   fate);
}

/* One message, if there is one: *got_out.  Log lines are passed on, and are no message. */
static int take(struct worker *worker, struct wire_message *out, bool *got_out, struct err *err)
{
    int    rc = ERR_OK;
    size_t count = 0;
    char   words[WIRE_WORDS_MAX + 1];

    *got_out = false;
    rc = wire_receive(worker->child.channel, false, worker->in, &count, err);
    if (rc == ERR_OK && count == 0) return report_end(worker, err);
    if (rc == ERR_OK && count == SIZE_MAX) return ERR_OK;
    if (rc == ERR_OK) rc = wire_unpack(out, worker->in, count, WIRE_WORKER, err);
    if (rc != ERR_OK) {
        name_worker(worker, err);
        return rc;
    }
    if (out->kind == WIRE_LOG)
        log_line(out->as.log.level, "worker %u: %s", worker->number,
                 plain(words, sizeof words, out->as.log.words));
    else
        *got_out = true;
    return ERR_OK;
}

/* Time without a sign of life.  Each look counts at most one second: while this process is stopped,
 * as by Ctrl-Z, its workers are stopped too, and are not to be blamed for it. */
struct patience {
    uint64_t pulse;
    double   silent, looked_at;
};

static bool is_silent(struct patience *patience, const struct worker *worker)
{
    uint64_t pulse = shared_pulse(&worker->shared);
    double   now = os_seconds(), passed = now - patience->looked_at;

    patience->looked_at = now;
    patience->silent = pulse != patience->pulse ? 0 : patience->silent + (passed < 1 ? passed : 1);
    patience->pulse = pulse;
    return patience->silent > worker->fleet->request.timeout_seconds;
}

/* The answer to the question last sent: of kind `kind`, or FAILED. */
static int wait_for(struct worker *worker, enum wire_kind kind, struct wire_message *out,
                    struct err *err)
{
    int             rc = ERR_OK;
    bool            got = false;
    struct patience patience = {.pulse = shared_pulse(&worker->shared), .looked_at = os_seconds()};

    for (uint32_t lines = 0; !got;) {
        int seen = os.poll(worker->child.channel, POLLIN, LOOK_MS);
        if (must_stop(worker)) return cancelled(err);
        if (seen < 0 && errno != EINTR)
            RAISE(err, ERR_PEER, errno, "worker %u (process %d): cannot be waited for: %s",
                  worker->number, worker->child.pid, strerror(errno));
        if (is_silent(&patience, worker))
            RAISE(err, ERR_PEER, 0,
                  "worker %u (process %d) gave no sign of life for %g s and was stopped",
                  worker->number, worker->child.pid, worker->fleet->request.timeout_seconds);
        if (seen <= 0) continue;
        TRY(take(worker, out, &got, err));
        if (!got && ++lines > LINES_MAX)
            RAISE(err, ERR_PEER, 0, "worker %u (process %d): sends log lines without end",
                  worker->number, worker->child.pid);
    }
    if (out->sequence != worker->sequence || (out->kind != kind && out->kind != WIRE_FAILED))
        RAISE(err, ERR_PEER, 0,
              "worker %u (process %d): answered question %u with kind %d of question %u",
              worker->number, worker->child.pid, worker->sequence, (int)out->kind, out->sequence);
out:
    return rc;
}

/* -------------------------------------------------------------------------------- asking */

/* Nothing of it is left but its record, which says when another may be started. */
static void bury(struct worker *worker)
{
    char fate[96];
    int  pid = worker->child.pid;

    if (!child_end(&worker->child, 0, fate, sizeof fate))
        log_line(LOG_WARN, "worker %u (process %d) does not die", worker->number, pid);
    worker->ready = false;
    worker->begun = false;
    worker->failures++;
    worker->ended_at = os_seconds();
}

/* One question and its answer.  A worker that gave none, or not this one, is buried; one whose
 * device failed ends by itself. */
static int ask(struct worker *worker, uint8_t *question, size_t count, enum wire_kind kind,
               struct wire_message *answer, struct err *err)
{
    int  rc;
    bool lives = false;
    char words[sizeof err->text];

    wire_number(question, ++worker->sequence);
    rc = wire_send(worker->child.channel, question, count, err);
    if (rc != ERR_OK && err->sys == EPIPE)
        rc = report_end(worker, err);
    else if (rc != ERR_OK)
        name_worker(worker, err);
    if (rc == ERR_OK) {
        rc = wait_for(worker, kind, answer, err);
        lives = rc == ERR_OK;
    }
    if (lives && answer->kind == WIRE_FAILED) {
        rc = err_set(err, answer->as.failed.code, answer->as.failed.sys, ERR_WHERE, "%s",
                     plain(words, sizeof words, answer->as.failed.words));
        lives = rc != ERR_DEVICE && kind != WIRE_READY;
    }
    if (!lives) bury(worker);
    return rc;
}

static int check_identity(struct worker *worker, uint64_t identity, struct err *err)
{
    int           rc = ERR_OK;
    struct fleet *fleet = worker->fleet;

    if (!fleet->has_identity) { /* at open: other threads paint only after it */
        fleet->has_identity = true;
        fleet->model_identity = identity;
    }
    if (identity != fleet->model_identity)
        RAISE(err, ERR_FORMAT, 0,
              "the model changed while it was in use: its weights were %016llx and are %016llx",
              (unsigned long long)fleet->model_identity, (unsigned long long)identity);
out:
    return rc;
}

static int start(struct worker *worker, struct err *err)
{
    int                 rc = ERR_OK;
    struct fleet       *fleet = worker->fleet;
    struct wire_message answer;
    char                fate[96];

    TRY(back_off(worker, err));
    if (!child_end(&worker->child, 0, fate, sizeof fate))
        RAISE(err, ERR_PEER, 0,
              "worker %u cannot be replaced: its process %d was killed and does not die; a disk or "
              "a driver holds it",
              worker->number, worker->child.pid);
    rc = child_start(&worker->child, fleet->request.program, worker->shared.fd, err);
    if (rc != ERR_OK) {
        bury(worker);
        goto out;
    }
    log_line(LOG_INFO, "worker %u is process %d", worker->number, worker->child.pid);
    /* Each worker has a copy to number: they may start at the same time. */
    memcpy(worker->out, fleet->open, fleet->open_count);
    TRY(ask(worker, worker->out, fleet->open_count, WIRE_READY, &answer, err));
    rc = check_identity(worker, answer.as.model_identity, err);
    if (rc != ERR_OK) bury(worker);
    worker->ready = rc == ERR_OK;
out:
    return rc;
}

/* A worker that died or lied while nobody asked it anything costs nobody an attempt. */
static void look_after(struct worker *worker)
{
    struct wire_message message;
    struct err          err;
    bool                got = false;
    int                 rc = ERR_OK;

    for (uint32_t lines = 0; rc == ERR_OK && !got && lines <= LINES_MAX; lines++) {
        if (os.poll(worker->child.channel, POLLIN, 0) <= 0) return;
        rc = take(worker, &message, &got, &err);
    }
    if (rc == ERR_OK) {
        (void)err_set(&err, ERR_PEER, 0, ERR_WHERE, "speaks without being asked");
        name_worker(worker, &err);
    }
    log_line(LOG_WARN, "%s; another is started", err.text);
    bury(worker);
}

static int begin_again(struct worker *worker, struct err *err)
{
    int                 rc = ERR_OK;
    struct wire_message answer;
    struct schedule    *known = &worker->schedule;

    TRY(ask(worker, worker->stage, worker->stage_count, WIRE_BEGUN, &answer, err));
    if (known->steps != 0 && (known->steps != answer.as.begun.steps ||
                              memcmp(known->sigma, answer.as.begun.sigma,
                                     (known->steps + 1) * sizeof known->sigma[0]) != 0)) {
        bury(worker);
        RAISE(err, ERR_PEER, 0, "worker %u: its noise levels are not those of the one before it",
              worker->number);
    }
    *known = answer.as.begun;
    worker->begun = true;
out:
    return rc;
}

/* A running worker with an open engine and, where there is one, with the stage begun. */
static int get_ready(struct worker *worker, struct err *err)
{
    int rc = ERR_OK;

    if (worker->ready) look_after(worker);
    if (!worker->ready) TRY(start(worker, err));
    if (worker->stage_count > 0 && !worker->begun) TRY(begin_again(worker, err));
out:
    return rc;
}

/* ------------------------------------------------------------------------------ primitives */

static int supervisor_begin(void *self, const struct painter_stage *stage, uint32_t *steps_out,
                            struct err *err)
{
    int                 rc = ERR_OK;
    struct worker      *worker = self;
    struct wire_message message = {.kind = WIRE_BEGIN, .as.begin = *stage};

    if (strlen(stage->prompt) > WIRE_PROMPT_MAX)
        RAISE(err, ERR_USAGE, 0, "the prompt has %zu bytes, but at most %d are possible",
              strlen(stage->prompt), WIRE_PROMPT_MAX);
    worker->schedule.steps = 0;
    worker->begun = false;
    worker->stage_count = wire_pack(worker->stage, &message);
    TRY(get_ready(worker, err));
    worker->failures = 0;
    *steps_out = worker->schedule.steps;
out:
    return rc;
}

/* The worker keeps its prompt until the next stage begins; there is room for one. */
static void supervisor_end(void *self)
{
    struct worker *worker = self;

    worker->stage_count = 0;
    worker->schedule.steps = 0;
    worker->begun = false;
}

static void supervisor_noise(void *self, const struct painter_noise *request, float *noise_out)
{
    const struct worker *worker = self;
    struct noise_request noise = {.seed = request->seed,
                                  .purpose = request->purpose,
                                  .x = request->rect.x,
                                  .y = request->rect.y,
                                  .w = request->rect.w,
                                  .h = request->rect.h,
                                  .channels = worker->fleet->request.channels};

    k_noise_cpu(noise_out, &noise);
}

static void supervisor_start(void *self, float *latent, const float *noise, int64_t count)
{
    const struct worker *worker = self;
    engine_mix_noise(latent, noise, worker->schedule.sigma[0], count);
}

static void supervisor_advance(void *self, uint32_t step, float *latent, const float *velocity,
                               int64_t count)
{
    const struct worker *worker = self;
    scheduler_step(&worker->schedule, step, latent, velocity, count);
}

/* Out of shared memory first, and looked at then: what lies there may yet change. */
static int take_result(struct worker *worker, float *x_out, const float *x, int64_t count,
                       const char *what, struct err *err)
{
    int     rc = ERR_OK;
    int64_t bad;

    memcpy(x_out, x, (size_t)count * sizeof *x);
    bad = k_count_bad_cpu(x_out, count);
    if (bad == 0) goto out;
    /* A sound engine says so itself. */
    bury(worker);
    RAISE(err, ERR_NUMERIC, 0,
          "numeric: %lld of %lld values of the %s from worker %u are NaN or "
          "infinite; another worker is started",
          (long long)bad, (long long)count, what, worker->number);
out:
    return rc;
}

static int do_work(struct worker *worker, enum wire_kind kind, const struct wire_work *work,
                   struct err *err)
{
    int                 rc = ERR_OK;
    struct wire_message message = {.kind = kind, .as.work = *work}, answer;

    TRY(ask(worker, worker->out, wire_pack(worker->out, &message), WIRE_DONE, &answer, err));
    worker->failures = 0;
out:
    return rc;
}

static int supervisor_encode(void *self, const float *rgb, int32_t w_px, int32_t h_px,
                             float *latent_out, struct err *err)
{
    int              rc = ERR_OK;
    struct worker   *worker = self;
    struct wire_work work = {.count = 1, .rects = {{w_px, h_px}}};
    int64_t          pixels = 3 * (int64_t)w_px * h_px;
    int64_t          latents = shared_latent_values(work.rects[0], worker->fleet->request.channels);

    must(pixels <= worker->shared.pixel_values && latents <= worker->shared.latent_values);
    TRY(get_ready(worker, err));
    memcpy(worker->shared.pixels, rgb, (size_t)pixels * sizeof *rgb);
    TRY(do_work(worker, WIRE_ENCODE, &work, err));
    TRY(take_result(worker, latent_out, worker->shared.latents, latents, "latent", err));
out:
    return rc;
}

static int supervisor_decode(void *self, const float *latent, int32_t w_px, int32_t h_px,
                             float *rgb_out, struct err *err)
{
    int              rc = ERR_OK;
    struct worker   *worker = self;
    struct wire_work work = {.count = 1, .rects = {{w_px, h_px}}};
    int64_t          pixels = 3 * (int64_t)w_px * h_px;
    int64_t          latents = shared_latent_values(work.rects[0], worker->fleet->request.channels);

    must(pixels <= worker->shared.pixel_values && latents <= worker->shared.latent_values);
    TRY(get_ready(worker, err));
    memcpy(worker->shared.latents, latent, (size_t)latents * sizeof *latent);
    TRY(do_work(worker, WIRE_DECODE, &work, err));
    TRY(take_result(worker, rgb_out, worker->shared.pixels, pixels, "picture", err));
out:
    return rc;
}

static int supervisor_predict(void *self, const struct painter_tile *tiles, uint32_t count,
                              uint32_t step, struct err *err)
{
    int              rc = ERR_OK;
    struct worker   *worker = self;
    struct wire_work work = {.step = step, .count = count};
    int64_t          values[WIRE_TILES_MAX], at = 0;

    must(count > 0 && count <= WIRE_TILES_MAX && step < worker->schedule.steps);
    TRY(get_ready(worker, err));
    for (uint32_t i = 0; i < count; i++) {
        work.rects[i] = (struct wire_rect){tiles[i].w_px, tiles[i].h_px};
        values[i] = shared_latent_values(work.rects[i], worker->fleet->request.channels);
        must(values[i] <= worker->shared.latent_values - at);
        memcpy(worker->shared.latents + at, tiles[i].latent, (size_t)values[i] * sizeof(float));
        at += values[i];
    }
    TRY(do_work(worker, WIRE_PREDICT, &work, err));
    at = 0;
    for (uint32_t i = 0; i < count; i++) {
        TRY(take_result(worker, tiles[i].velocity, worker->shared.velocities + at, values[i],
                        "velocity", err));
        at += values[i];
    }
out:
    return rc;
}

static struct painter painter_of(struct worker *worker)
{
    return (struct painter){.self = worker,
                            .channels = worker->fleet->request.channels,
                            .begin = supervisor_begin,
                            .end = supervisor_end,
                            .noise = supervisor_noise,
                            .encode = supervisor_encode,
                            .start = supervisor_start,
                            .predict = supervisor_predict,
                            .advance = supervisor_advance,
                            .decode = supervisor_decode};
}

/* ------------------------------------------------------------------------------ open, close */

static int check_request(const struct fleet_request *request, struct err *err)
{
    int         rc = ERR_OK;
    const char *paths[] = {request->options.model_folder, request->options.transformer,
                           request->options.vae};

    must(request->size_count > 0 && request->size_count <= WIRE_SIZES_MAX);
    must(request->channels > 0 && request->timeout_seconds > 0 && request->backoff_seconds >= 0);
    if (request->worker_count < 1 || request->worker_count > FLEET_WORKERS_MAX)
        RAISE(err, ERR_USAGE, 0, "workers: %u were asked for; 1 to %d are possible",
              request->worker_count, FLEET_WORKERS_MAX);
    for (size_t i = 0; i < ARRAY_COUNT(paths); i++) {
        size_t length = paths[i] == NULL ? 0 : strlen(paths[i]);
        if (length > WIRE_PATH_MAX || text_utf8_valid_prefix(paths[i], length) != length)
            RAISE(err, ERR_USAGE, 0,
                  "the name '%.64s...' must be UTF-8 of at most %d bytes to be told to a worker",
                  paths[i], WIRE_PATH_MAX);
    }
out:
    return rc;
}

static void pack_open(struct fleet *fleet, const struct fleet_request *request)
{
    struct wire_message message = {
        .kind = WIRE_OPEN,
        .as.open = {.options = request->options,
                    .channels = request->channels,
                    .shared_bytes =
                        shared_bytes(request->sizes, request->size_count, request->channels),
                    .size_count = (uint32_t)request->size_count}};

    memcpy(message.as.open.sizes, request->sizes, request->size_count * sizeof request->sizes[0]);
    fleet->open_count = wire_pack(fleet->open, &message);
}

static int start_with_retries(struct worker *worker, struct err *err)
{
    int rc = ERR_OK;

    for (int attempt = 1; attempt <= OPEN_TRIES; attempt++) {
        rc = start(worker, err);
        if (rc == ERR_OK || !err_is_retryable(err)) break;
        if (attempt < OPEN_TRIES) log_line(LOG_WARN, "%s; it is tried again", err->text);
    }
    worker->failures = rc == ERR_OK ? 0 : worker->failures;
    return rc;
}

int fleet_open(struct fleet **out, const struct fleet_request *request, struct err *err)
{
    int           rc = ERR_OK;
    struct fleet *fleet = NULL;

    TRY(check_request(request, err));
    TRY(os_alloc((void **)&fleet, 1,
                 sizeof *fleet + request->worker_count * sizeof fleet->workers[0], "workers", err));
    fleet->request = *request;
    fleet->model_identity = request->model_identity;
    fleet->has_identity = request->model_identity != 0;
    fleet->request.sizes = NULL; /* and the texts of its options: packed, and then not ours */
    fleet->request.options = (struct engine_options){.model_folder = NULL};
    pack_open(fleet, request);
    for (uint32_t i = 0; i < request->worker_count; i++) {
        struct worker *worker = &fleet->workers[i];
        *worker = (struct worker){.fleet = fleet, .number = i + 1, .child.channel = -1};
        fleet->painters[i] = painter_of(worker);
        fleet->painter_count++;
        TRY(shared_open(&worker->shared, request->sizes, request->size_count, request->channels,
                        err));
        TRY(start_with_retries(worker, err));
    }
    *out = fleet;
    fleet = NULL;
out:
    fleet_close(fleet);
    return rc;
}

void fleet_close(struct fleet *fleet)
{
    char fate[96];

    if (fleet == NULL) return;
    for (uint32_t i = 0; i < fleet->painter_count; i++) /* all at once, so that they end together */
        child_hang_up(&fleet->workers[i].child);
    for (uint32_t i = 0; i < fleet->painter_count; i++) {
        struct worker *worker = &fleet->workers[i];
        if (!child_end(&worker->child, CLOSING_SECONDS, fate, sizeof fate))
            log_line(LOG_WARN, "worker %u (process %d) does not die and is left behind",
                     worker->number, worker->child.pid);
        shared_close(&worker->shared);
    }
    os_free(fleet);
}

const struct painter *fleet_painters(const struct fleet *fleet, uint32_t *count_out)
{
    *count_out = fleet->painter_count;
    return fleet->painters;
}

uint64_t fleet_model_identity(const struct fleet *fleet)
{
    return fleet->model_identity;
}

uint64_t fleet_host_bytes(const struct engine_size *sizes, size_t size_count, int32_t channels,
                          uint32_t worker_count)
{
    /* A worker's two buffers of messages are its side of ours. */
    uint64_t each = shared_bytes(sizes, size_count, channels) + sizeof(struct worker) +
                    2 * (uint64_t)WIRE_BYTES_MAX;

    return worker_count * each + sizeof(struct fleet);
}
