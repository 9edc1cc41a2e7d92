/*
 * meter.c - progress measured in arithmetic, so that half of the bar is half of the time.
 *
 * Owns the running sum and the wish to stop, whoever has it; asks the caller at every step whether
 * to go on.
 *
 * Threads: everything is read and written under `turn`.  The caller is told by the render thread
 * alone: at each step when it paints itself, several times a second when a crew does.
 */
#include "render/render_int.h"

#include <time.h>

void meter_open(struct meter *meter, const struct render_request *request)
{
    *meter = (struct meter){.request = request, .now.phase = "checking"};
    must(pthread_mutex_init(&meter->turn, NULL) == 0);
}

void meter_close(struct meter *meter)
{
    (void)pthread_mutex_destroy(&meter->turn);
}

void meter_plan(struct meter *meter, const struct meter_work *work)
{
    const struct render_costs *costs = &meter->request->costs;
    double draft = costs->draft_predict * work->draft_steps + costs->draft_decode;
    double tile = costs->encode + costs->predict * work->tile_steps + costs->decode;

    meter->now.phase = work->drafts > 0 ? "draft" : "tiles";
    meter->work_total = costs->prompt * work->begins + draft * work->drafts + tile * work->tiles;
}

static void set_stop(struct meter *meter, int answer)
{
    if (answer == RENDER_STOP_AFTER_TILE && meter->stop == RENDER_GO_ON)
        meter->stop = RENDER_STOP_AFTER_TILE;
    else if (answer != RENDER_GO_ON && answer != RENDER_STOP_AFTER_TILE)
        meter->stop = RENDER_STOP_NOW;
}

static struct render_progress snapshot(const struct meter *meter)
{
    struct render_progress now = meter->now;

    now.fraction = meter->work_total > 0 ? meter->work_done / meter->work_total : 0;
    if (now.fraction > 1) now.fraction = 1;
    if (now.fraction < 0) now.fraction = 0;
    return now;
}

static void ask(struct meter *meter)
{
    const struct render_request *request = meter->request;
    struct render_progress       now = snapshot(meter);

    if (request->progress != NULL) set_stop(meter, request->progress(&now, request->user));
}

static int advance(struct meter *meter, double work, struct err *err)
{
    int rc = ERR_OK;

    meter->work_done += work;
    if (!meter->crowd) ask(meter);
    if (meter->stop == RENDER_STOP_NOW)
        RAISE(err, ERR_CANCELLED, 0, "stopped on request; '%s' was not written",
              meter->request->config->output);
out:
    return rc;
}

int meter_advance(struct meter *meter, double work, struct err *err)
{
    int rc;

    (void)pthread_mutex_lock(&meter->turn);
    rc = advance(meter, work, err);
    (void)pthread_mutex_unlock(&meter->turn);
    return rc;
}

int meter_step(struct meter *meter, uint32_t step, uint32_t tiles, double work, struct err *err)
{
    int rc;

    (void)pthread_mutex_lock(&meter->turn);
    meter->now.step = step;
    meter->now.steps_run += tiles;
    rc = advance(meter, work, err);
    (void)pthread_mutex_unlock(&meter->turn);
    return rc;
}

void meter_tile_done(struct meter *meter)
{
    (void)pthread_mutex_lock(&meter->turn);
    meter->now.tiles_done++;
    (void)pthread_mutex_unlock(&meter->turn);
}

void meter_halt(struct meter *meter)
{
    (void)pthread_mutex_lock(&meter->turn);
    meter->stop = RENDER_STOP_NOW;
    (void)pthread_mutex_unlock(&meter->turn);
}

void meter_tell(struct meter *meter)
{
    const struct render_request *request = meter->request;
    struct render_progress       now;
    int                          answer;

    (void)pthread_mutex_lock(&meter->turn);
    now = snapshot(meter);
    (void)pthread_mutex_unlock(&meter->turn);
    if (request->progress == NULL) return;
    answer = request->progress(&now, request->user);
    (void)pthread_mutex_lock(&meter->turn);
    set_stop(meter, answer);
    (void)pthread_mutex_unlock(&meter->turn);
}

bool meter_ends(struct meter *meter)
{
    bool ends;

    (void)pthread_mutex_lock(&meter->turn);
    if (!meter->crowd) ask(meter);
    ends = meter->stop != RENDER_GO_ON;
    (void)pthread_mutex_unlock(&meter->turn);
    return ends;
}

int meter_wait(struct meter *meter, double seconds, struct err *err)
{
    int                   rc = ERR_OK;
    const double          end = os_seconds() + seconds;
    const struct timespec slice = {.tv_nsec = 20 * 1000 * 1000};

    while (os_seconds() < end) {
        TRY(meter_advance(meter, 0, err));
        (void)nanosleep(&slice, NULL);
    }
out:
    return rc;
}
