/*
 * worker.c - a process that paints for another: reads a question, lets its engine work, answers.
 *
 * Owns the engine and everything else in its process, log lines included: they become messages.
 * Knows neither pictures nor tiles.  It asks nothing, decides nothing and writes no file.
 *
 * Threads: the main one works; a second one watches whether the supervisor is there yet, and kills
 * the process, busy as it may be, soon after it is gone.
 *
 * A device that failed has failed for the whole process, so ERR_DEVICE is told and then the process
 * ends; the supervisor starts another.
 *
 * Read next: wire.c for what is said, studio.c for what is done.
 */
#include "fleet/fleet_int.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

struct worker {
    int              channel;
    struct studio   *studio;
    struct painter   painter;
    struct shared    shared;
    struct wire_open open; /* its texts are not kept */
    bool             begun;
    char             yielded[WIRE_WORDS_MAX + 1];
    uint8_t          in[WIRE_BYTES_MAX], out[WIRE_BYTES_MAX];
};

/* ------------------------------------------------------------------------------- lifeline */

struct lifeline {
    int       channel, pid;
    bool      over; /* atomic */
    pthread_t thread;
};

static void *watch(void *argument)
{
    /* Time for the main thread to notice by itself and to clean up. */
    enum { GRACE_MS = 1000, LOOK_MS = 10 };
    struct lifeline *lifeline = argument;

    for (int seen = 0; seen <= 0;) { /* only a hang-up is told of */
        if (__atomic_load_n(&lifeline->over, __ATOMIC_ACQUIRE)) return NULL;
        seen = os.poll(lifeline->channel, 0, -1);
        if (seen < 0) (void)os.poll(-1, 0, LOOK_MS);
    }
    for (int waited = 0; waited < GRACE_MS; waited += LOOK_MS) {
        if (__atomic_load_n(&lifeline->over, __ATOMIC_ACQUIRE)) return NULL;
        (void)os.poll(-1, 0, LOOK_MS);
    }
    (void)os.kill(lifeline->pid, SIGKILL);
    return NULL;
}

static int lifeline_open(struct lifeline *out, int channel, struct err *err)
{
    int rc = ERR_OK, failed;

    *out = (struct lifeline){.channel = channel, .pid = (int)getpid()};
    failed = os.thread_create(&out->thread, watch, out);
    if (failed != 0)
        RAISE(err, ERR_HOST_MEM, failed, "a worker cannot start a thread: %s", strerror(failed));
out:
    return rc;
}

/* Our own hang-up wakes the watch. */
static void lifeline_close(struct lifeline *lifeline)
{
    __atomic_store_n(&lifeline->over, true, __ATOMIC_RELEASE);
    (void)os.shutdown(lifeline->channel, SHUT_RDWR);
    (void)pthread_join(lifeline->thread, NULL);
}

/* -------------------------------------------------------------------------------- talking */

static int say(struct worker *worker, const struct wire_message *message, struct err *err)
{
    int rc = wire_send(worker->channel, worker->out, wire_pack(worker->out, message), err);

    if (rc != ERR_OK) err_context(err, "the supervisor");
    return rc;
}

/* A line that cannot be sent is lost; work goes on. */
static void log_to_supervisor(enum log_level level, const char *line, void *user)
{
    const struct worker *worker = user;
    uint8_t              bytes[WIRE_WORDS_MAX + 64];
    char                 words[WIRE_WORDS_MAX];
    struct wire_message  message = {.kind = WIRE_LOG};
    struct err           err;

    message.as.log =
        (struct wire_log){.level = level, .words = text_fit(words, sizeof words, line)};
    (void)wire_send(worker->channel, bytes, wire_pack(bytes, &message), &err);
}

static int tell_failure(struct worker *worker, uint32_t sequence, const struct err *failure,
                        struct err *err)
{
    char                words[WIRE_WORDS_MAX];
    struct wire_message message = {
        .kind = WIRE_FAILED,
        .sequence = sequence,
        .as.failed = {.code = failure->code,
                      .sys = failure->sys,
                      .words = text_fit(words, sizeof words, failure->text)}};

    return say(worker, &message, err);
}

/* ------------------------------------------------------------------------------ questions */

static int open_studio(struct worker *worker, const struct wire_message *question,
                       struct wire_message *answer, struct err *err)
{
    int                   rc = ERR_OK;
    struct engine_options options = question->as.open.options;
    struct engine_facts   facts;

    must(worker->studio == NULL);
    worker->open = question->as.open;
    TRY(shared_attach(&worker->shared, WORKER_SHARED_FD, &worker->open, err));
    options.pulse = worker->shared.pulse;
    options.exchange = worker->shared.base;
    options.exchange_bytes = worker->shared.bytes;
    options.shared_fd = os.seek_end(WORKER_WEIGHTS_FD) > 0 ? WORKER_WEIGHTS_FD : 0;
    TRY(studio_open(&worker->studio, &options, worker->open.sizes, worker->open.size_count, err));
    facts = studio_facts(worker->studio);
    if (facts.latent_channels != worker->open.channels || facts.px_per_lat != TILING_PX_PER_LAT)
        RAISE(err, ERR_FORMAT, 0,
              "model '%s' has %d latent channels of %d px now; when it was planned it had %d of %d",
              options.model_folder, facts.latent_channels, facts.px_per_lat, worker->open.channels,
              TILING_PX_PER_LAT);
    worker->painter = studio_painter(worker->studio);
    answer->kind = WIRE_READY;
    answer->as.model_identity = studio_model_identity(worker->studio);
out:
    return rc;
}

static void end_stage(struct worker *worker)
{
    if (worker->begun) worker->painter.end(worker->painter.self);
    worker->begun = false;
}

static int begin_stage(struct worker *worker, const struct painter_stage *stage,
                       struct wire_message *answer, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t steps = 0, steps_max = 0, next_max = 0;

    for (uint32_t i = 0; i < worker->open.size_count; i++) {
        steps_max = (uint32_t)max_i64(steps_max, worker->open.sizes[i].steps);
        next_max = (uint32_t)max_i64(next_max, worker->open.sizes[i].steps_next);
    }
    if (stage->levels.steps > steps_max || stage->next.steps > next_max)
        RAISE(err, ERR_PEER, 0,
              "the supervisor asks for %u steps and then %u, and planned at most %u and %u",
              stage->levels.steps, stage->next.steps, steps_max, next_max);
    end_stage(worker); /* first: there is room for one prompt */
    TRY(worker->painter.begin(worker->painter.self, stage, &steps, err));
    worker->begun = true;
    answer->kind = WIRE_BEGUN;
    answer->as.begun = *studio_schedule(worker->studio);
out:
    return rc;
}

/* Only what was planned fits the engine's scratch and the shared areas. */
static int check_work(const struct worker *worker, const struct wire_message *question,
                      struct err *err)
{
    int                     rc = ERR_OK;
    const struct wire_work *work = &question->as.work;
    uint32_t                steps = studio_schedule(worker->studio)->steps;
    bool                    planned = false;

    for (uint32_t i = 0; i < worker->open.size_count && !planned; i++) {
        const struct engine_size *size = &worker->open.sizes[i];
        planned = work->count <= size->tiles;
        for (uint32_t t = 0; t < work->count; t++)
            planned &= work->rects[t].w_px == size->w_px && work->rects[t].h_px == size->h_px;
    }
    if (!planned)
        RAISE(err, ERR_PEER, 0, "the supervisor asks for %u rectangles of %d x %d px, unplanned",
              work->count, work->rects[0].w_px, work->rects[0].h_px);
    if (question->kind == WIRE_PREDICT && (!worker->begun || work->step >= steps))
        RAISE(err, ERR_PEER, 0, "the supervisor asks for step %u, but %u have begun", work->step,
              worker->begun ? steps : 0);
out:
    return rc;
}

static int predict(struct worker *worker, const struct wire_work *work, struct err *err)
{
    struct painter_tile tiles[WIRE_TILES_MAX];
    int64_t             at = 0;

    for (uint32_t i = 0; i < work->count; i++) {
        tiles[i] = (struct painter_tile){.w_px = work->rects[i].w_px,
                                         .h_px = work->rects[i].h_px,
                                         .latent = worker->shared.latents + at,
                                         .velocity = worker->shared.velocities + at};
        at += shared_latent_values(work->rects[i], worker->open.channels);
    }
    return worker->painter.predict(worker->painter.self, tiles, work->count, work->step, err);
}

static int do_work(struct worker *worker, const struct wire_message *question,
                   struct wire_message *answer, struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = &worker->painter;
    const struct shared  *shared = &worker->shared;
    struct wire_rect      rect = question->as.work.rects[0];

    TRY(check_work(worker, question, err));
    answer->kind = WIRE_DONE;
    if (question->kind == WIRE_PREDICT)
        rc = predict(worker, &question->as.work, err);
    else if (question->kind == WIRE_ENCODE)
        rc = painter->encode(painter->self, shared->pixels, rect.w_px, rect.h_px, shared->latents,
                             err);
    else
        rc = painter->decode(painter->self, shared->latents, rect.w_px, rect.h_px, shared->pixels,
                             err);
out:
    return rc;
}

/* What the engine gives up goes with it into the answer, in words. */
static void yield_memory(struct worker *worker, struct wire_message *answer)
{
    const struct painter *painter = &worker->painter;
    char                  words[WIRE_WORDS_MAX] = "";

    if (painter->yield_memory == NULL || !painter->yield_memory(painter->self, words, sizeof words))
        words[0] = '\0';
    (void)text_fit(worker->yielded, sizeof worker->yielded, words);
    answer->kind = WIRE_YIELDED;
    answer->as.yielded = worker->yielded;
}

static void tell_memory(struct worker *worker, bool restart, struct wire_message *answer)
{
    const struct painter *painter = &worker->painter;

    answer->kind = WIRE_USED;
    (void)painter->memory(painter->self, restart, &answer->as.used); /* zeros where it has none */
}

/* --------------------------------------------------------------------------------- process */

/* An answer, or the failure told.  A supervisor that broke the rules is not answered: its sentence
 * goes to standard error, and this process ends. */
static int answer(struct worker *worker, const struct wire_message *question, bool *goes_on_out,
                  struct err *err)
{
    int                 rc = ERR_OK;
    struct wire_message reply = {.sequence = question->sequence};
    struct err          failure = {.code = ERR_OK};

    if ((question->kind == WIRE_OPEN) != (worker->studio == NULL))
        RAISE(err, ERR_PEER, 0, "the supervisor asks for kind %d out of order",
              (int)question->kind);
    if (question->kind == WIRE_OPEN)
        rc = open_studio(worker, question, &reply, &failure);
    else if (question->kind == WIRE_BEGIN)
        rc = begin_stage(worker, &question->as.begin, &reply, &failure);
    else if (question->kind == WIRE_YIELD)
        yield_memory(worker, &reply);
    else if (question->kind == WIRE_MEMORY)
        tell_memory(worker, question->as.restart, &reply);
    else
        rc = do_work(worker, question, &reply, &failure);
    if (rc == ERR_PEER) {
        *err = failure;
        goto out;
    }
    *goes_on_out = rc == ERR_OK || (rc != ERR_DEVICE && question->kind != WIRE_OPEN);
    if (rc == ERR_OK)
        TRY(say(worker, &reply, err));
    else
        TRY(tell_failure(worker, question->sequence, &failure, err));
out:
    return rc;
}

/* *here_out false: the supervisor is done with us, or dead. */
static int hear(struct worker *worker, struct wire_message *question_out, bool *here_out,
                struct err *err)
{
    int    rc = ERR_OK;
    size_t count = 0;

    TRY(wire_receive(worker->channel, true, worker->in, &count, err));
    *here_out = count > 0;
    if (count > 0) TRY(wire_unpack(question_out, worker->in, count, WIRE_SUPERVISOR, err));
out:
    if (rc != ERR_OK) err_context(err, "the supervisor");
    return rc;
}

static int serve(struct worker *worker, struct err *err)
{
    int                 rc = ERR_OK;
    bool                goes_on = true, here = true;
    struct wire_message question;

    while (goes_on) {
        TRY(hear(worker, &question, &here, err));
        if (!here) break;
        TRY(answer(worker, &question, &goes_on, err));
    }
out:
    /* It is gone: nobody is left to be told. */
    return rc == ERR_PEER && err->sys == EPIPE ? ERR_OK : rc;
}

int fleet_worker_run(struct err *err)
{
    int             rc = ERR_OK;
    struct worker  *worker = NULL;
    struct lifeline lifeline;
    uint8_t         peeked;

    /* A look at whether the channel is one; a message in it stays there. */
    if (os.recv(WORKER_CHANNEL_FD, &peeked, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
        (errno == EBADF || errno == ENOTSOCK))
        RAISE(err, ERR_USAGE, 0, "a worker is started by mural itself, and not by hand");
    /* Else lists of processes show how it was started, which may be "exe". */
    (void)pthread_setname_np(pthread_self(), "mural-worker");
    TRY(os_alloc((void **)&worker, 1, sizeof *worker, "a worker", err));
    worker->channel = WORKER_CHANNEL_FD;
    TRY(lifeline_open(&lifeline, worker->channel, err));
    log_install(log_to_supervisor, worker, LOG_DEBUG);
    rc = serve(worker, err);
    log_install(NULL, NULL, LOG_DEBUG);
    if (worker->studio != NULL) end_stage(worker);
    studio_close(worker->studio);
    shared_close(&worker->shared);
    lifeline_close(&lifeline);
out:
    os_free(worker);
    return rc;
}
