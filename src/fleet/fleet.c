/*
 * fleet.c - painters whose work is done by worker processes.
 *
 * Owns the fleet: its seats, and what was asked for at open.  Turns a painter's primitives into
 * questions to the worker in a seat; the numbers go through shared memory.  The cheap ones (noise,
 * start, advance) are computed here, because they cannot fail.
 *
 * Read next: supervisor.c, for how a question gets its answer.
 */
#include "fleet/fleet_int.h"

#include "kernels/kernels.h"

#include <stdio.h>
#include <string.h>

/* A worker that was hung up on has an engine to close. */
static const double CLOSING_SECONDS = 5;

/* ------------------------------------------------------------------------------ primitives */

static int fleet_begin(void *self, const struct painter_stage *stage, uint32_t *steps_out,
                       struct err *err)
{
    int                 rc = ERR_OK;
    struct seat        *seat = self;
    struct wire_message message = {.kind = WIRE_BEGIN, .as.begin = *stage};

    if (strlen(stage->prompt) > WIRE_PROMPT_MAX)
        RAISE(err, ERR_USAGE, 0, "the prompt has %zu bytes, but at most %d are possible",
              strlen(stage->prompt), WIRE_PROMPT_MAX);
    seat->schedule.steps = 0;
    seat->begun = false;
    seat->stage_count = wire_pack(seat->stage, &message);
    TRY(supervisor_ready(seat, err));
    seat->failures = 0;
    *steps_out = seat->schedule.steps;
out:
    return rc;
}

/* The worker keeps its prompt until the next stage begins; there is room for one. */
static void fleet_end(void *self)
{
    struct seat *seat = self;

    seat->stage_count = 0;
    seat->schedule.steps = 0;
    seat->begun = false;
}

static void fleet_noise(void *self, const struct painter_noise *request, float *noise_out)
{
    const struct seat   *seat = self;
    struct noise_request noise = {.seed = request->seed,
                                  .purpose = request->purpose,
                                  .x = request->rect.x,
                                  .y = request->rect.y,
                                  .w = request->rect.w,
                                  .h = request->rect.h,
                                  .channels = seat->fleet->request.channels};

    k_noise_cpu(noise_out, &noise);
}

static void fleet_start(void *self, float *latent, const float *noise, int64_t count)
{
    const struct seat *seat = self;
    engine_mix_noise(latent, noise, seat->schedule.sigma[0], count);
}

static void fleet_advance(void *self, uint32_t step, float *latent, const float *velocity,
                          int64_t count)
{
    const struct seat *seat = self;
    scheduler_step(&seat->schedule, step, latent, velocity, count);
}

/* By all threads; what is bad in it is the engine's to tell. */
static void fill(float *shared_out, const float *x, int64_t count)
{
    (void)k_copy_count_bad_cpu(shared_out, x, count);
}

/* A sound engine tells of bad values itself. */
static int check_result(struct seat *seat, int64_t bad, int64_t count, const char *what,
                        struct err *err)
{
    int rc = ERR_OK;

    if (bad == 0) goto out;
    supervisor_bury(seat);
    RAISE(err, ERR_NUMERIC, 0,
          "numeric: %lld of %lld values of the %s from worker %u are NaN or "
          "infinite; another worker is started",
          (long long)bad, (long long)count, what, seat->number);
out:
    return rc;
}

static int do_work(struct seat *seat, enum wire_kind kind, const struct wire_work *work,
                   struct err *err)
{
    int                 rc = ERR_OK;
    struct wire_message message = {.kind = kind, .as.work = *work}, answer;

    TRY(supervisor_ask(seat, seat->out, wire_pack(seat->out, &message), WIRE_DONE, &answer, err));
    seat->failures = 0;
out:
    return rc;
}

/* One rectangle between its pixels and its latent, by way of shared memory. */
static int convert(struct seat *seat, enum wire_kind kind, struct wire_rect rect, const float *x,
                   float *x_out, struct err *err)
{
    int              rc = ERR_OK;
    bool             encodes = kind == WIRE_ENCODE;
    struct wire_work work = {.count = 1, .rects = {rect}};
    struct shared   *shared = &seat->shared;
    int64_t          pixels = 3 * (int64_t)rect.w_px * rect.h_px;
    int64_t          latents = shared_latent_values(rect, seat->fleet->request.channels);

    must(pixels <= shared->pixel_values && latents <= shared->latent_values);
    TRY(supervisor_ready(seat, err));
    if (encodes)
        fill(shared->pixels, x, pixels);
    else
        fill(shared->latents, x, latents);
    TRY(do_work(seat, kind, &work, err));
    if (encodes)
        TRY(check_result(seat, k_copy_count_bad_cpu(x_out, shared->latents, latents), latents,
                         "latent", err));
    else
        TRY(check_result(seat, k_copy_count_bad_cpu(x_out, shared->pixels, pixels), pixels,
                         "picture", err));
out:
    return rc;
}

static int fleet_encode(void *self, const float *rgb, int32_t w_px, int32_t h_px, float *latent_out,
                        struct err *err)
{
    return convert(self, WIRE_ENCODE, (struct wire_rect){w_px, h_px}, rgb, latent_out, err);
}

static int fleet_decode(void *self, const float *latent, int32_t w_px, int32_t h_px, float *rgb_out,
                        struct err *err)
{
    return convert(self, WIRE_DECODE, (struct wire_rect){w_px, h_px}, latent, rgb_out, err);
}

static int fleet_predict(void *self, const struct painter_tile *tiles, uint32_t count,
                         uint32_t step, struct err *err)
{
    int              rc = ERR_OK;
    struct seat     *seat = self;
    struct wire_work work = {.step = step, .count = count};
    int64_t          values[WIRE_TILES_MAX], at = 0, bad = 0;

    must(count > 0 && count <= WIRE_TILES_MAX && step < seat->schedule.steps);
    TRY(supervisor_ready(seat, err));
    for (uint32_t i = 0; i < count; i++) {
        work.rects[i] = (struct wire_rect){tiles[i].w_px, tiles[i].h_px};
        values[i] = shared_latent_values(work.rects[i], seat->fleet->request.channels);
        must(values[i] <= seat->shared.latent_values - at);
        fill(seat->shared.latents + at, tiles[i].latent, values[i]);
        at += values[i];
    }
    rc = do_work(seat, WIRE_PREDICT, &work, err);
    if (rc != ERR_OK && rc != ERR_NUMERIC) goto out;
    at = 0;
    for (uint32_t i = 0; i < count; i++) { /* whatever some of them hold, the others count */
        bad += k_copy_count_bad_cpu(tiles[i].velocity, seat->shared.velocities + at, values[i]);
        at += values[i];
    }
    if (rc == ERR_OK) rc = check_result(seat, bad, at, "velocity", err);
out:
    return rc;
}

/* A process that is not there holds nothing, and one that dies of the question neither. */
static bool fleet_yield_memory(void *self, char *words_out, size_t capacity)
{
    struct seat        *seat = self;
    struct wire_message message = {.kind = WIRE_YIELD}, answer;
    struct err          err = {.code = ERR_OK};
    char                words[WIRE_WORDS_MAX + 1];

    if (!seat->ready) return false;
    if (supervisor_ask(seat, seat->out, wire_pack(seat->out, &message), WIRE_YIELDED, &answer,
                       &err) != ERR_OK) {
        log_line(LOG_WARN, "%s", err.text);
        return false;
    }
    if (answer.as.yielded[0] == '\0') return false;
    (void)snprintf(words_out, capacity, "worker %u: %s", seat->number,
                   supervisor_plain(words, sizeof words, answer.as.yielded));
    return true;
}

/* Nothing that is asked here is worth another worker; the next primitive arranges one if need be.
 */
static bool fleet_memory(void *self, bool restart, struct painter_memory *out)
{
    struct seat        *seat = self;
    struct wire_message message = {.kind = WIRE_MEMORY, .as.restart = restart}, answer;
    struct err          err = {.code = ERR_OK};

    if (!seat->ready) return false;
    if (supervisor_ask(seat, seat->out, wire_pack(seat->out, &message), WIRE_USED, &answer, &err) !=
        ERR_OK) {
        if (err.code != ERR_CANCELLED) log_line(LOG_WARN, "%s", err.text);
        return false;
    }
    *out = answer.as.used;
    return out->use.peak_device > 0;
}

static struct painter painter_of(struct seat *seat, uint32_t tiles_max)
{
    return (struct painter){.self = seat,
                            .channels = seat->fleet->request.channels,
                            .tiles_max = tiles_max,
                            .begin = fleet_begin,
                            .end = fleet_end,
                            .noise = fleet_noise,
                            .encode = fleet_encode,
                            .start = fleet_start,
                            .predict = fleet_predict,
                            .advance = fleet_advance,
                            .decode = fleet_decode,
                            .yield_memory = fleet_yield_memory,
                            .memory = fleet_memory};
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

int fleet_open(struct fleet **out, const struct fleet_request *request, struct err *err)
{
    int           rc = ERR_OK;
    struct fleet *fleet = NULL;

    TRY(check_request(request, err));
    TRY(os_alloc((void **)&fleet, 1, sizeof *fleet + request->worker_count * sizeof fleet->seats[0],
                 "workers", err));
    fleet->request = *request;
    fleet->weights_fd = -1;
    if (request->worker_count > 1 && request->options.machine != ENGINE_CPU)
        fleet->weights_fd = shared_weights_open();
    fleet->model_identity = request->model_identity;
    fleet->has_identity = request->model_identity != 0;
    fleet->request.sizes = NULL; /* and the texts of its options: packed, and then not ours */
    fleet->request.options = (struct engine_options){.model_folder = NULL};
    pack_open(fleet, request);
    for (uint32_t i = 0; i < request->worker_count; i++) {
        struct seat *seat = &fleet->seats[i];
        seat->fleet = fleet;
        seat->number = i + 1;
        seat->child.channel = -1;
        fleet->painters[i] =
            painter_of(seat, studio_tiles_max(request->sizes, request->size_count));
        fleet->painter_count++;
        TRY(shared_open(&seat->shared, request->sizes, request->size_count, request->channels,
                        err));
    }
    /* All at once; one that cannot be launched now is tried again in its turn. */
    for (uint32_t i = 0; i < request->worker_count; i++) {
        struct err later = {.code = ERR_OK};
        if (supervisor_launch(&fleet->seats[i], &later) == ERR_OK || err_is_retryable(&later))
            continue;
        *err = later;
        rc = (int)later.code;
        goto out;
    }
    for (uint32_t i = 0; i < request->worker_count; i++)
        TRY(supervisor_start(&fleet->seats[i], err));
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
        child_hang_up(&fleet->seats[i].child);
    for (uint32_t i = 0; i < fleet->painter_count; i++) {
        struct seat *seat = &fleet->seats[i];
        if (!child_end(&seat->child, CLOSING_SECONDS, fate, sizeof fate))
            log_line(LOG_WARN, "worker %u (process %d) does not die and is left behind",
                     seat->number, seat->child.pid);
        shared_close(&seat->shared);
    }
    if (fleet->weights_fd >= 0) (void)os.close(fleet->weights_fd);
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
    uint64_t each = shared_bytes(sizes, size_count, channels) + sizeof(struct seat) +
                    2 * (uint64_t)WIRE_BYTES_MAX;

    return worker_count * each + sizeof(struct fleet);
}
