/*
 * tile.c - a tile's life: gather the guide, encode, mix in noise, paint, decode, quantise; and once
 * more when something failed that may pass.
 *
 * Several tiles live it together, as a group: their steps are run in lockstep, so that whoever
 * paints them reads each weight once for all of them; all else is done tile by tile.  No tile sees
 * another, so what it becomes does not depend on its group.
 *
 * Owns the places of the tiles in work, taken once, and the painter's stage: the prompt that it has
 * begun.  Knows the order of the primitives and nothing of how they work.  Decides nothing from
 * pixels: what depends on the picture is settled before.
 *
 * The only file here that asks whether a failure may pass.  What fails for one tile costs that tile
 * an attempt, and the others go on; what fails for a whole pass costs each of its tiles one, and
 * when it was a step, their next passes are half as large.  Values are looked at between the
 * primitives, whoever painted them: NaN must not reach the store, where it would be black.
 *
 * Read next: crew.c, which asks for tiles.
 */
#include "render/render_int.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum place_state {
    PLACE_WAITS = 0, /* for its first attempt, or for another */
    PLACE_MOVES,     /* through the steps of the pass in work */
    PLACE_STEPPED,   /* has only to be decoded */
    PLACE_LOST,      /* all attempts failed */
    PLACE_EMPTY      /* its tile was handed out */
};

/* One tile of the group on the desk. */
struct place {
    enum place_state   state;
    struct tile_job    job;
    struct tile_result result;
    double             spent;  /* work counted for the attempt in progress */
    float             *latent; /* [tile_h / 8, tile_w / 8, channels] */
    float             *velocity;
};

struct tile_desk {
    const struct render_request *request;
    const struct painter        *painter;
    const char                  *prompt; /* of the stage that has begun; NULL: none has */
    uint32_t                     steps;  /* of that stage */
    uint32_t                     tiles;  /* of a group, at most */
    uint32_t                     count;  /* of the group on the desk */
    uint32_t                     width;  /* of its next pass, at most */
    double                       pause;  /* seconds to wait before that */
    float                       *rgb;    /* [tile_h, tile_w, 3], of one tile after the other */
    float                       *noise;  /* as a latent, of one tile after the other */
    float                       *latents, *velocities; /* [tiles] */
    uint16_t                    *samples;              /* [tile_h, tile_w, 3] */
    int64_t                      cells, pixels;
    struct place                 places[PAINTER_TILES_MAX];
    struct painter_tile          moving[PAINTER_TILES_MAX];
};

const char *tile_name(char out[TILE_NAME_BYTES], const struct grid *grid, uint32_t number)
{
    (void)snprintf(out, TILE_NAME_BYTES, "tile %u (column %u, row %u)", number,
                   (number - 1) % grid->cols + 1, (number - 1) / grid->cols + 1);
    return out;
}

static int64_t latent_count(const struct grid *grid, int32_t channels)
{
    return (int64_t)(grid->tile_w_px / TILING_PX_PER_LAT) * (grid->tile_h_px / TILING_PX_PER_LAT) *
           channels;
}

uint64_t tile_desk_bytes(const struct grid *grid, int32_t channels, uint32_t tiles)
{
    uint64_t pixels = (uint64_t)grid->tile_w_px * (uint64_t)grid->tile_h_px * 3;
    return sizeof(struct tile_desk) + pixels * (sizeof(float) + sizeof(uint16_t)) +
           (2 * (uint64_t)tiles + 1) * (uint64_t)latent_count(grid, channels) * sizeof(float);
}

uint32_t tile_desk_tiles(const struct tile_desk *desk)
{
    return desk->tiles;
}

int tile_desk_open(struct tile_desk **out, const struct render_request *request,
                   const struct painter *painter, uint32_t tiles, struct err *err)
{
    int                rc = ERR_OK;
    const struct grid *grid = &request->plan->grid;
    struct tile_desk  *desk = NULL;
    uint64_t           cells;

    must(tiles >= 1 && tiles <= PAINTER_TILES_MAX);
    TRY(os_alloc((void **)&desk, 1, sizeof *desk, "the tiles in work", err));
    desk->request = request;
    desk->painter = painter;
    desk->tiles = tiles;
    desk->pixels = (int64_t)grid->tile_w_px * grid->tile_h_px * 3;
    desk->cells = latent_count(grid, painter->channels);
    cells = tiles * (uint64_t)desk->cells;
    TRY(os_alloc((void **)&desk->rgb, (uint64_t)desk->pixels, sizeof(float), "a tile's pixels",
                 err));
    TRY(os_alloc((void **)&desk->samples, (uint64_t)desk->pixels, sizeof(uint16_t), "a tile", err));
    TRY(os_alloc((void **)&desk->noise, (uint64_t)desk->cells, sizeof(float), "a latent", err));
    TRY(os_alloc((void **)&desk->latents, cells, sizeof(float), "the latents", err));
    TRY(os_alloc((void **)&desk->velocities, cells, sizeof(float), "the latents", err));
    for (uint32_t i = 0; i < tiles; i++) {
        desk->places[i].latent = desk->latents + i * desk->cells;
        desk->places[i].velocity = desk->velocities + i * desk->cells;
    }
    *out = desk;
    desk = NULL;
out:
    tile_desk_close(desk);
    return rc;
}

void tile_desk_close(struct tile_desk *desk)
{
    if (desk == NULL) return;
    if (desk->prompt != NULL) desk->painter->end(desk->painter->self);
    os_free(desk->rgb);
    os_free(desk->samples);
    os_free(desk->noise);
    os_free(desk->latents);
    os_free(desk->velocities);
    os_free(desk);
}

/* Cells of `rect` out of a map of the whole canvas. */
static void cut_noise(float *out, const float *map, int32_t map_w, struct lat_rect rect,
                      int32_t channels)
{
    size_t row = (size_t)rect.w * (size_t)channels;

    for (int32_t y = 0; y < rect.h; y++)
        memcpy(out + (size_t)y * row,
               map + ((size_t)(rect.y + y) * (size_t)map_w + (size_t)rect.x) * (size_t)channels,
               row * sizeof *out);
}

static void fill_noise(struct tile_desk *desk, const struct tile_job *job, struct lat_rect rect)
{
    const struct painter *painter = desk->painter;
    const struct grid    *grid = &desk->request->plan->grid;

    if (job->noise_map != NULL) {
        cut_noise(desk->noise, job->noise_map, grid->worked_w_px / TILING_PX_PER_LAT, rect,
                  painter->channels);
    } else {
        struct painter_noise request = {.seed = job->seed, .purpose = 1, .rect = rect};
        painter->noise(painter->self, &request, desk->noise);
    }
}

void render_quantise(uint16_t *samples_out, const float *rgb, int64_t count)
{
#pragma omp parallel for simd
    for (int64_t i = 0; i < count; i++) {
        float value = !(rgb[i] > 0) ? 0 : rgb[i] > 1 ? 1 : rgb[i]; /* NaN is 0 */
        samples_out[i] = (uint16_t)(value * 65535.0f + 0.5f);
    }
}

/* ------------------------------------------------------------------------------- attempts */

static bool lacks_memory(const struct err *err)
{
    return err->code == ERR_DEVICE_MEM || err->code == ERR_HOST_MEM;
}

/* May it pass if this painter tries again?  Without memory of the host's it does only when the
 * painter does with less. */
static bool may_pass(const struct painter *painter, const struct err *err, bool *yielded_out)
{
    char words[160];

    *yielded_out = lacks_memory(err) && painter->yield_memory != NULL &&
                   painter->yield_memory(painter->self, words, sizeof words);
    if (*yielded_out) log_line(LOG_WARN, "memory ran short; %s", words);
    return err_is_retryable(err) || *yielded_out;
}

static uint32_t attempts_max(const struct render_request *request)
{
    return (uint32_t)request->config->tile_retries + 1;
}

/* Tells of another attempt after `attempts`; the seconds to wait before it. */
static double plan_attempt(const struct render_request *request, uint32_t attempts,
                           const char *what, const struct err *err)
{
    enum { DOUBLINGS = 4, LONGEST = 30 };
    double wait = request->retry_wait_seconds;

    wait *= attempts > DOUBLINGS + 1 ? LONGEST : 1 << (attempts - 1);
    log_line(LOG_WARN, "%s: %s; attempt %u of %u %s", what, err->text, attempts + 1,
             attempts_max(request), wait >= 1 ? "follows after a pause" : "follows");
    return wait;
}

bool tile_may_retry(struct meter *meter, const struct painter *painter, uint32_t attempts,
                    const char *what, struct err *err)
{
    const struct render_request *request = meter->request;
    bool                         yielded;
    struct err                   stopped = {0};

    if (attempts >= attempts_max(request) || !may_pass(painter, err, &yielded)) return false;
    if (meter_wait(meter, plan_attempt(request, attempts, what, err), &stopped) != ERR_OK) {
        *err = stopped;
        return false;
    }
    *err = (struct err){.code = ERR_OK};
    return true;
}

/* Its attempt is over.  True: another follows. */
static bool fail_place(struct tile_desk *desk, struct meter *meter, struct place *place,
                       const struct err *err)
{
    struct err ignored = {0};

    (void)meter_advance(meter, -place->spent, &ignored);
    place->result.why = *err;
    place->state = place->result.attempts < attempts_max(desk->request) ? PLACE_WAITS : PLACE_LOST;
    return place->state == PLACE_WAITS;
}

static void wait_for(struct tile_desk *desk, uint32_t attempts, const char *what,
                     const struct err *err)
{
    double wait = plan_attempt(desk->request, attempts, what, err);
    if (wait > desk->pause) desk->pause = wait;
}

/* What befell one tile: the others go on.  Gives back an error that cannot pass. */
static int fail_alone(struct tile_desk *desk, struct meter *meter, struct place *place,
                      struct err *err)
{
    char name[TILE_NAME_BYTES];
    bool yielded;

    if (!may_pass(desk->painter, err, &yielded)) return (int)err->code;
    if (fail_place(desk, meter, place, err))
        wait_for(desk, place->result.attempts,
                 tile_name(name, &desk->request->plan->grid, place->job.number), err);
    *err = (struct err){.code = ERR_OK};
    return ERR_OK;
}

/* What befell all tiles of the pass.  *yielded_out: the painter does with less memory now. */
static int fail_pass(struct tile_desk *desk, struct meter *meter, bool *yielded_out,
                     struct err *err)
{
    char     name[TILE_NAME_BYTES] = "", what[TILE_NAME_BYTES + 32];
    uint32_t count = 0, attempts = 0;

    if (!may_pass(desk->painter, err, yielded_out)) return (int)err->code;
    for (uint32_t i = 0; i < desk->count; i++) {
        struct place *place = &desk->places[i];
        if (place->state != PLACE_MOVES) continue;
        if (count++ == 0) (void)tile_name(name, &desk->request->plan->grid, place->job.number);
        if (fail_place(desk, meter, place, err) && place->result.attempts > attempts)
            attempts = place->result.attempts;
    }
    (void)snprintf(what, sizeof what, count > 1 ? "%s and %u more" : "%s", name, count - 1);
    if (attempts > 0) wait_for(desk, attempts, what, err);
    *err = (struct err){.code = ERR_OK};
    return ERR_OK;
}

/* `count` tiles at once were too much: half of them next.  Where memory ran short and the painter
 * has nothing left to give up, later groups are smaller as well. */
static int fail_together(struct tile_desk *desk, struct meter *meter, uint32_t count,
                         struct err *err)
{
    int        rc = ERR_OK;
    bool       yielded;
    struct err why = *err;

    TRY(fail_pass(desk, meter, &yielded, err));
    desk->width = (count + 1) / 2;
    if (count > 1 && lacks_memory(&why) && !yielded) {
        desk->tiles = desk->width;
        log_line(LOG_WARN, "memory is short: from now on %u instead of %u tiles at a time",
                 desk->tiles, count);
    }
out:
    return rc;
}

/* ------------------------------------------------------------------------------ primitives */

int tile_check_finite(const float *values, int64_t count, const char *what, struct err *err)
{
    int     rc = ERR_OK;
    int64_t bad = 0;

#pragma omp parallel for simd reduction(+ : bad)
    for (int64_t i = 0; i < count; i++)
        bad += !(fabsf(values[i]) <= 3.4e38f);
    if (bad > 0)
        RAISE(err, ERR_NUMERIC, 0, "numeric: %lld of %lld %s values are NaN or infinite",
              (long long)bad, (long long)count, what);
out:
    return rc;
}

static int count_work(struct place *place, struct meter *meter, double work, struct err *err)
{
    place->spent += work;
    return meter_advance(meter, work, err);
}

static int begin(struct tile_desk *desk, struct meter *meter, const char *prompt, struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = desk->painter;
    struct painter_stage  stage = render_tile_stage(desk->request->config, desk->request->plan);

    if (desk->prompt != NULL && strcmp(desk->prompt, prompt) == 0) goto out;
    if (desk->prompt != NULL) painter->end(painter->self);
    desk->prompt = NULL;
    stage.prompt = prompt;
    TRY(painter->begin(painter->self, &stage, &desk->steps, err));
    desk->prompt = prompt;
    TRY(meter_advance(meter, desk->request->costs.prompt, err));
out:
    return rc;
}

static struct px_rect rect_of(const struct tile_desk *desk, const struct tile_job *job)
{
    const struct grid *grid = &desk->request->plan->grid;
    return grid_tile(grid, (job->number - 1) % grid->cols, (job->number - 1) / grid->cols);
}

/* From the guide to the latent that the first step begins with. */
static int encode(struct tile_desk *desk, struct meter *meter, struct place *place, struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = desk->painter;
    struct px_rect        px = rect_of(desk, &place->job);
    double                begun = os_seconds();

    upscale_rect(place->job.guide, px.x, px.y, px.w, px.h, desk->rgb);
    TRY(painter->encode(painter->self, desk->rgb, px.w, px.h, place->latent, err));
    TRY(tile_check_finite(place->latent, desk->cells, "latent", err));
    TRY(count_work(place, meter, desk->request->costs.encode, err));
    fill_noise(desk, &place->job, lat_rect_from_px(px));
    painter->start(painter->self, place->latent, desk->noise, desk->cells);
    place->result.encode_seconds = os_seconds() - begun;
out:
    return rc;
}

static int decode(struct tile_desk *desk, struct meter *meter, struct place *place, struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = desk->painter;
    struct px_rect        px = rect_of(desk, &place->job);
    double                begun = os_seconds();

    TRY(painter->decode(painter->self, place->latent, px.w, px.h, desk->rgb, err));
    TRY(tile_check_finite(desk->rgb, desk->pixels, "pixel", err));
    render_quantise(desk->samples, desk->rgb, desk->pixels);
    TRY(count_work(place, meter, desk->request->costs.decode, err));
    place->result.samples = desk->samples;
    place->result.decode_seconds = os_seconds() - begun;
out:
    return rc;
}

/* ------------------------------------------------------------------------------------ steps */

/* The tiles that move, as the painter sees them; how many. */
static uint32_t list_moving(struct tile_desk *desk)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < desk->count; i++) {
        const struct place *place = &desk->places[i];
        struct px_rect      px = rect_of(desk, &place->job);
        if (place->state != PLACE_MOVES) continue;
        desk->moving[count++] = (struct painter_tile){
            .w_px = px.w, .h_px = px.h, .latent = place->latent, .velocity = place->velocity};
    }
    return count;
}

/* Tiles with NaN or infinity in their velocity leave the pass; *count_out: how many. */
static int drop_bad(struct tile_desk *desk, struct meter *meter, uint32_t *count_out,
                    struct err *err)
{
    int rc = ERR_OK;

    *count_out = 0;
    for (uint32_t i = 0; i < desk->count; i++) {
        struct place *place = &desk->places[i];
        struct err    why = {0};
        if (place->state != PLACE_MOVES ||
            tile_check_finite(place->velocity, desk->cells, "velocity", &why) == ERR_OK)
            continue;
        ++*count_out;
        *err = why;
        TRY(fail_alone(desk, meter, place, err));
    }
out:
    return rc;
}

/* One step of all tiles that move; each takes an equal part of the time. */
static int step_all(struct tile_desk *desk, struct meter *meter, uint32_t step, struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = desk->painter;
    double                begun = os_seconds(), cost = desk->request->costs.predict, each;
    uint32_t              count = list_moving(desk), bad = 0;
    struct err            why = {0};
    int                   told = painter->predict(painter->self, desk->moving, count, step, &why);

    if (told == ERR_OK || told == ERR_NUMERIC) TRY(drop_bad(desk, meter, &bad, err));
    if (told != ERR_OK && bad == 0) {
        *err = why;
        return fail_together(desk, meter, count, err);
    }
    if (bad == count) goto out;
    for (uint32_t i = 0; i < desk->count; i++) {
        struct place *place = &desk->places[i];
        if (place->state != PLACE_MOVES) continue;
        painter->advance(painter->self, step, place->latent, place->velocity, desk->cells);
        place->spent += cost;
    }
    each = (os_seconds() - begun) / count;
    for (uint32_t i = 0; i < desk->count; i++)
        if (desk->places[i].state == PLACE_MOVES) desk->places[i].result.step_seconds += each;
    TRY(meter_step(meter, step + 1, count - bad, cost * (count - bad), err));
out:
    return rc;
}

static uint32_t count_in(const struct tile_desk *desk, enum place_state state)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < desk->count; i++)
        count += desk->places[i].state == state;
    return count;
}

/* The next tiles that wait, through encoding and all steps. */
static int run_pass(struct tile_desk *desk, struct meter *meter, struct err *err)
{
    int  rc = ERR_OK;
    bool yielded;

    for (uint32_t i = 0, seated = 0; i < desk->count && seated < desk->width; i++) {
        struct place *place = &desk->places[i];
        if (place->state != PLACE_WAITS) continue;
        place->state = PLACE_MOVES;
        place->spent = 0;
        place->result.attempts++;
        place->result.step_seconds = 0;
        seated++;
    }
    if (begin(desk, meter, desk->places[0].job.prompt, err) != ERR_OK)
        return fail_pass(desk, meter, &yielded, err);
    for (uint32_t i = 0; i < desk->count; i++) {
        struct place *place = &desk->places[i];
        if (place->state == PLACE_MOVES && encode(desk, meter, place, err) != ERR_OK)
            TRY(fail_alone(desk, meter, place, err));
    }
    for (uint32_t step = 0; step < desk->steps && count_in(desk, PLACE_MOVES) > 0; step++)
        TRY(step_all(desk, meter, step, err));
    for (uint32_t i = 0; i < desk->count; i++)
        if (desk->places[i].state == PLACE_MOVES) desk->places[i].state = PLACE_STEPPED;
out:
    return rc;
}

/* ------------------------------------------------------------------------------------ group */

void tile_take(struct tile_desk *desk, const struct tile_job *jobs, uint32_t count)
{
    must(count >= 1 && count <= desk->tiles);
    desk->count = count;
    desk->width = count;
    desk->pause = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct place *place = &desk->places[i];
        must(strcmp(jobs[i].prompt, jobs[0].prompt) == 0);
        place->state = PLACE_WAITS;
        place->job = jobs[i];
        place->result = (struct tile_result){.number = jobs[i].number};
    }
}

static struct place *first_in(struct tile_desk *desk, enum place_state state)
{
    for (uint32_t i = 0; i < desk->count; i++)
        if (desk->places[i].state == state) return &desk->places[i];
    return NULL;
}

int tile_next(struct tile_desk *desk, struct meter *meter, struct tile_result *result,
              struct err *err)
{
    int           rc = ERR_OK;
    struct place *through = NULL, *place;

    *result = (struct tile_result){.number = 0};
    while ((through = first_in(desk, PLACE_LOST)) == NULL) {
        if ((place = first_in(desk, PLACE_STEPPED)) != NULL) {
            if (decode(desk, meter, place, err) == ERR_OK) {
                through = place;
                break;
            }
            TRY(fail_alone(desk, meter, place, err));
        } else if (first_in(desk, PLACE_WAITS) != NULL) {
            TRY(meter_wait(meter, desk->pause, err));
            desk->pause = 0;
            TRY(run_pass(desk, meter, err));
        } else {
            goto out;
        }
    }
    through->state = PLACE_EMPTY;
    *result = through->result;
out:
    return rc;
}

const uint16_t *tile_copy_guide(struct tile_desk *desk, const struct tile_job *job)
{
    struct px_rect px = rect_of(desk, job);

    upscale_rect(job->guide, px.x, px.y, px.w, px.h, desk->rgb);
    render_quantise(desk->samples, desk->rgb, desk->pixels);
    return desk->samples;
}
