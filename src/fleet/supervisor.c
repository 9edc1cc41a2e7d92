/*
 * supervisor.c - keeps one worker process for each seat of a fleet, whatever befalls the processes.
 *
 * Owns who sits there: starts workers, asks them, watches for signs of life, buries those that
 * died, hung or lied, and starts others in their place.  It never computes with a model and never
 * touches a device, so a failure of either cannot reach it.  What a failed tile costs is decided in
 * render.
 *
 * Threads: a seat belongs to the thread that uses its painter; seats share nothing but what was
 * fixed at open.  Everything that would wait, waits in wait_for or back_off, which see a wish to
 * stop within a tenth of a second.
 *
 * Read next: child.c, wire.c, then worker.c for the other side.
 */
#include "fleet/fleet_int.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

enum {
    OPEN_TRIES = 3,
    LINES_MAX = 10000, /* of log for one answer: whoever talks more never answers */
    LOOK_MS = 100,
};
/* A process that closed its channel is about to end by itself. */
static const double DYING_SECONDS = 1, BACKOFF_MAX_SECONDS = 30;

/* --------------------------------------------------------------------------------- waiting */

static bool must_stop(const struct seat *seat)
{
    const struct fleet_request *request = &seat->fleet->request;
    return request->stop_wanted != NULL && request->stop_wanted(request->user);
}

static int cancelled(struct err *err)
{
    return err_set(err, ERR_CANCELLED, 0, ERR_WHERE, "stopped on request");
}

static double backoff_seconds(const struct seat *seat)
{
    double seconds = seat->fleet->request.backoff_seconds;

    for (uint32_t i = 1; i < seat->failures && seconds < BACKOFF_MAX_SECONDS; i++)
        seconds *= 2;
    return seconds < BACKOFF_MAX_SECONDS ? seconds : BACKOFF_MAX_SECONDS;
}

static int back_off(const struct seat *seat, struct err *err)
{
    double due = seat->ended_at + backoff_seconds(seat);

    while (seat->failures > 0) {
        double rest = due - os_seconds();
        if (must_stop(seat)) return cancelled(err);
        if (rest <= 0) break;
        (void)os.poll(-1, 0, rest < 0.001 * LOOK_MS ? 1 + (int)(1000 * rest) : LOOK_MS);
    }
    return ERR_OK;
}

/* ------------------------------------------------------------------------------- reading */

const char *supervisor_plain(char *out, size_t capacity, const char *words)
{
    (void)text_fit(out, capacity, words);
    for (char *at = out; *at != '\0'; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7F) *at = '?';
    return out;
}

/* Whatever is wrong with a worker is told of it by number. */
static void name_worker(const struct seat *seat, struct err *err)
{
    err_context(err, "worker %u (process %d)", seat->number, seat->child.pid);
}

/* The channel closed: the sentence says how the process ended. */
static int report_end(struct seat *seat, struct err *err)
{
    int  pid = seat->child.pid;
    char fate[96];

    if (!child_end(&seat->child, DYING_SECONDS, fate, sizeof fate))
        (void)snprintf(fate, sizeof fate, "closed its channel, and does not die");
    return err_set(err, ERR_PEER, 0, ERR_WHERE, "worker %u (process %d) %s", seat->number, pid,
                   fate);
}

/* One message, if there is one: *got_out.  Log lines are passed on, and are no message. */
static int take(struct seat *seat, struct wire_message *out, bool *got_out, struct err *err)
{
    int    rc = ERR_OK;
    size_t count = 0;
    char   words[WIRE_WORDS_MAX + 1];

    *got_out = false;
    rc = wire_receive(seat->child.channel, false, seat->in, &count, err);
    if (rc == ERR_OK && count == 0) return report_end(seat, err);
    if (rc == ERR_OK && count == SIZE_MAX) return ERR_OK;
    if (rc == ERR_OK) rc = wire_unpack(out, seat->in, count, WIRE_WORKER, err);
    if (rc != ERR_OK) {
        name_worker(seat, err);
        return rc;
    }
    if (out->kind == WIRE_LOG)
        log_line(out->as.log.level, "worker %u: %s", seat->number,
                 supervisor_plain(words, sizeof words, out->as.log.words));
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

static bool is_silent(struct patience *patience, const struct seat *seat)
{
    uint64_t pulse = shared_pulse(&seat->shared);
    double   now = os_seconds(), passed = now - patience->looked_at;

    patience->looked_at = now;
    patience->silent = pulse != patience->pulse ? 0 : patience->silent + (passed < 1 ? passed : 1);
    patience->pulse = pulse;
    return patience->silent > seat->fleet->request.timeout_seconds;
}

/* The answer to the question last sent: of kind `kind`, or FAILED. */
static int wait_for(struct seat *seat, enum wire_kind kind, struct wire_message *out,
                    struct err *err)
{
    int             rc = ERR_OK;
    bool            got = false;
    struct patience patience = {.pulse = shared_pulse(&seat->shared), .looked_at = os_seconds()};

    for (uint32_t lines = 0; !got;) {
        int seen = os.poll(seat->child.channel, POLLIN, LOOK_MS);
        if (must_stop(seat)) return cancelled(err);
        if (seen < 0 && errno != EINTR)
            RAISE(err, ERR_PEER, errno, "worker %u (process %d): cannot be waited for: %s",
                  seat->number, seat->child.pid, strerror(errno));
        if (is_silent(&patience, seat))
            RAISE(err, ERR_PEER, 0,
                  "worker %u (process %d) gave no sign of life for %g s and was stopped",
                  seat->number, seat->child.pid, seat->fleet->request.timeout_seconds);
        if (seen <= 0) continue;
        TRY(take(seat, out, &got, err));
        if (!got && ++lines > LINES_MAX)
            RAISE(err, ERR_PEER, 0, "worker %u (process %d): sends log lines without end",
                  seat->number, seat->child.pid);
    }
    if (out->sequence != seat->sequence || (out->kind != kind && out->kind != WIRE_FAILED))
        RAISE(err, ERR_PEER, 0,
              "worker %u (process %d): answered question %u with kind %d of question %u",
              seat->number, seat->child.pid, seat->sequence, (int)out->kind, out->sequence);
out:
    return rc;
}

/* -------------------------------------------------------------------------------- asking */

void supervisor_bury(struct seat *seat)
{
    char fate[96];
    int  pid = seat->child.pid;

    if (!child_end(&seat->child, 0, fate, sizeof fate))
        log_line(LOG_WARN, "worker %u (process %d) does not die", seat->number, pid);
    seat->ready = false;
    seat->begun = false;
    seat->failures++;
    seat->ended_at = os_seconds();
}

static int put(struct seat *seat, uint8_t *question, size_t count, struct err *err)
{
    int rc;

    wire_number(question, ++seat->sequence);
    rc = wire_send(seat->child.channel, question, count, err);
    if (rc == ERR_OK) return rc;
    if (err->sys == EPIPE)
        rc = report_end(seat, err);
    else
        name_worker(seat, err);
    supervisor_bury(seat);
    return rc;
}

static int hear(struct seat *seat, enum wire_kind kind, struct wire_message *answer,
                struct err *err)
{
    int  rc = wait_for(seat, kind, answer, err);
    bool lives = rc == ERR_OK;
    char words[sizeof err->text];

    if (lives && answer->kind == WIRE_FAILED) {
        rc = err_set(err, answer->as.failed.code, answer->as.failed.sys, ERR_WHERE, "%s",
                     supervisor_plain(words, sizeof words, answer->as.failed.words));
        lives = rc != ERR_DEVICE && kind != WIRE_READY;
    }
    if (!lives) supervisor_bury(seat);
    return rc;
}

int supervisor_ask(struct seat *seat, uint8_t *question, size_t count, enum wire_kind kind,
                   struct wire_message *answer, struct err *err)
{
    int rc = put(seat, question, count, err);
    return rc == ERR_OK ? hear(seat, kind, answer, err) : rc;
}

static int check_identity(struct seat *seat, uint64_t identity, struct err *err)
{
    int           rc = ERR_OK;
    struct fleet *fleet = seat->fleet;

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

int supervisor_launch(struct seat *seat, struct err *err)
{
    int           rc = ERR_OK;
    struct fleet *fleet = seat->fleet;
    char          fate[96];

    TRY(back_off(seat, err));
    if (!child_end(&seat->child, 0, fate, sizeof fate))
        RAISE(err, ERR_PEER, 0,
              "worker %u cannot be replaced: its process %d was killed and does not die; a disk or "
              "a driver holds it",
              seat->number, seat->child.pid);
    rc = child_start(&seat->child, fleet->request.program, seat->shared.fd, fleet->weights_fd, err);
    if (rc != ERR_OK) {
        supervisor_bury(seat);
        goto out;
    }
    log_line(LOG_INFO, "worker %u is process %d", seat->number, seat->child.pid);
    memcpy(seat->out, fleet->open, fleet->open_count);
    TRY(put(seat, seat->out, fleet->open_count, err));
out:
    return rc;
}

static int start(struct seat *seat, struct err *err)
{
    int                 rc = ERR_OK;
    struct wire_message answer;

    if (seat->child.channel < 0) TRY(supervisor_launch(seat, err));
    TRY(hear(seat, WIRE_READY, &answer, err));
    rc = check_identity(seat, answer.as.model_identity, err);
    if (rc != ERR_OK) supervisor_bury(seat);
    seat->ready = rc == ERR_OK;
out:
    return rc;
}

/* A worker that died or lied while nobody asked it anything costs nobody an attempt. */
static void look_after(struct seat *seat)
{
    struct wire_message message;
    struct err          err;
    bool                got = false;
    int                 rc = ERR_OK;

    for (uint32_t lines = 0; rc == ERR_OK && !got && lines <= LINES_MAX; lines++) {
        if (os.poll(seat->child.channel, POLLIN, 0) <= 0) return;
        rc = take(seat, &message, &got, &err);
    }
    if (rc == ERR_OK) {
        (void)err_set(&err, ERR_PEER, 0, ERR_WHERE, "speaks without being asked");
        name_worker(seat, &err);
    }
    log_line(LOG_WARN, "%s; another is started", err.text);
    supervisor_bury(seat);
}

static int begin_again(struct seat *seat, struct err *err)
{
    int                 rc = ERR_OK;
    struct wire_message answer;
    struct schedule    *known = &seat->schedule;

    TRY(supervisor_ask(seat, seat->stage, seat->stage_count, WIRE_BEGUN, &answer, err));
    if (known->steps != 0 && (known->steps != answer.as.begun.steps ||
                              memcmp(known->sigma, answer.as.begun.sigma,
                                     (known->steps + 1) * sizeof known->sigma[0]) != 0)) {
        supervisor_bury(seat);
        RAISE(err, ERR_PEER, 0, "worker %u: its noise levels are not those of the one before it",
              seat->number);
    }
    *known = answer.as.begun;
    seat->begun = true;
out:
    return rc;
}

int supervisor_ready(struct seat *seat, struct err *err)
{
    int rc = ERR_OK;

    if (seat->ready) look_after(seat);
    if (!seat->ready) TRY(start(seat, err));
    if (seat->stage_count > 0 && !seat->begun) TRY(begin_again(seat, err));
out:
    return rc;
}

int supervisor_start(struct seat *seat, struct err *err)
{
    int rc = ERR_OK;

    for (int attempt = 1; attempt <= OPEN_TRIES; attempt++) {
        rc = start(seat, err);
        if (rc == ERR_OK || !err_is_retryable(err)) break;
        if (attempt < OPEN_TRIES) log_line(LOG_WARN, "%s; it is tried again", err->text);
    }
    if (rc == ERR_OK) {
        seat->failures = 0;
        *err = (struct err){.code = ERR_OK}; /* what failed before it was tried again is over */
    }
    return rc;
}
