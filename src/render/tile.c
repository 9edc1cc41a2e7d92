/*
 * tile.c - one tile's life: gather the guide, encode, mix in noise, paint, decode, quantise; and
 * once more when something failed that may pass.
 *
 * Owns the buffers of the tile in work, taken once, and the painter's stage: the prompt that it has
 * begun.  Knows the order of the primitives and nothing of how they work.  Decides nothing from
 * pixels: what depends on the picture is settled before.
 *
 * The only file here that asks whether a failure may pass.  Values are looked at between the
 * primitives, whoever painted them: NaN must not reach the store, where it would be black.
 *
 * Read next: crew.c, which asks for tiles.
 */
#include "render/render_int.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct tile_desk {
    const struct render_request *request;
    const struct painter        *painter;
    const char                  *prompt; /* of the stage that has begun; NULL: none has */
    uint32_t                     steps;  /* of that stage */
    double                       spent;  /* work counted for the attempt in progress */
    float                       *rgb;    /* [tile_h, tile_w, 3] */
    float                       *latent; /* [tile_h / 8, tile_w / 8, channels] */
    float                       *velocity, *noise;
    uint16_t                    *samples; /* [tile_h, tile_w, 3] */
    int64_t                      cells, pixels;
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

uint64_t tile_desk_bytes(const struct grid *grid, int32_t channels)
{
    uint64_t pixels = (uint64_t)grid->tile_w_px * (uint64_t)grid->tile_h_px * 3;
    return pixels * (sizeof(float) + sizeof(uint16_t)) +
           3 * (uint64_t)latent_count(grid, channels) * sizeof(float);
}

int tile_desk_open(struct tile_desk **out, const struct render_request *request,
                   const struct painter *painter, struct err *err)
{
    int                rc = ERR_OK;
    const struct grid *grid = &request->plan->grid;
    struct tile_desk  *desk = NULL;

    TRY(os_alloc((void **)&desk, 1, sizeof *desk, "the tile in work", err));
    desk->request = request;
    desk->painter = painter;
    desk->pixels = (int64_t)grid->tile_w_px * grid->tile_h_px * 3;
    desk->cells = latent_count(grid, painter->channels);
    TRY(os_alloc((void **)&desk->rgb, (uint64_t)desk->pixels, sizeof(float), "a tile's pixels",
                 err));
    TRY(os_alloc((void **)&desk->samples, (uint64_t)desk->pixels, sizeof(uint16_t), "a tile", err));
    TRY(os_alloc((void **)&desk->latent, (uint64_t)desk->cells, sizeof(float), "a latent", err));
    TRY(os_alloc((void **)&desk->velocity, (uint64_t)desk->cells, sizeof(float), "a latent", err));
    TRY(os_alloc((void **)&desk->noise, (uint64_t)desk->cells, sizeof(float), "a latent", err));
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
    os_free(desk->latent);
    os_free(desk->velocity);
    os_free(desk->noise);
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

bool tile_may_retry(struct meter *meter, uint32_t attempts, const char *what, struct err *err)
{
    enum { DOUBLINGS = 4, LONGEST = 30 };
    const struct render_request *request = meter->request;
    uint32_t                     most = (uint32_t)request->config->tile_retries + 1;
    double                       wait = request->retry_wait_seconds;
    struct err                   stopped = {0};

    if (!err_is_retryable(err) || attempts >= most) return false;
    wait *= attempts > DOUBLINGS + 1 ? LONGEST : 1 << (attempts - 1);
    log_line(LOG_WARN, "%s: %s; attempt %u of %u %s", what, err->text, attempts + 1, most,
             wait >= 1 ? "follows after a pause" : "follows");
    if (meter_wait(meter, wait, &stopped) != ERR_OK) {
        *err = stopped;
        return false;
    }
    *err = (struct err){.code = ERR_OK};
    return true;
}

static int count_work(struct tile_desk *desk, struct meter *meter, double work, struct err *err)
{
    desk->spent += work;
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
    TRY(count_work(desk, meter, desk->request->costs.prompt, err));
out:
    return rc;
}

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

static int run_steps(struct tile_desk *desk, struct meter *meter, struct px_rect px,
                     struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = desk->painter;
    double                cost = desk->request->costs.predict;
    struct painter_tile   tile = {
          .w_px = px.w, .h_px = px.h, .latent = desk->latent, .velocity = desk->velocity};

    painter->start(painter->self, desk->latent, desk->noise, desk->cells);
    for (uint32_t step = 0; step < desk->steps; step++) {
        TRY(painter->predict(painter->self, &tile, 1, step, err));
        TRY(tile_check_finite(desk->velocity, desk->cells, "velocity", err));
        painter->advance(painter->self, step, desk->latent, desk->velocity, desk->cells);
        desk->spent += cost;
        TRY(meter_step(meter, step + 1, cost, err));
    }
out:
    return rc;
}

static int paint_once(struct tile_desk *desk, struct meter *meter, const struct tile_job *job,
                      struct tile_result *result, struct err *err)
{
    int                        rc = ERR_OK;
    const struct painter      *painter = desk->painter;
    const struct render_costs *costs = &desk->request->costs;
    const struct grid         *grid = &desk->request->plan->grid;
    struct px_rect             px =
        grid_tile(grid, (job->number - 1) % grid->cols, (job->number - 1) / grid->cols);
    double begun, encoded, stepped;

    TRY(begin(desk, meter, job->prompt, err));
    begun = os_seconds();
    upscale_rect(job->guide, px.x, px.y, px.w, px.h, desk->rgb);
    TRY(painter->encode(painter->self, desk->rgb, px.w, px.h, desk->latent, err));
    TRY(tile_check_finite(desk->latent, desk->cells, "latent", err));
    TRY(count_work(desk, meter, costs->encode, err));
    fill_noise(desk, job, lat_rect_from_px(px));
    encoded = os_seconds();
    TRY(run_steps(desk, meter, px, err));
    stepped = os_seconds();
    TRY(painter->decode(painter->self, desk->latent, px.w, px.h, desk->rgb, err));
    TRY(tile_check_finite(desk->rgb, desk->pixels, "pixel", err));
    render_quantise(desk->samples, desk->rgb, desk->pixels);
    TRY(count_work(desk, meter, costs->decode, err));
    result->samples = desk->samples;
    result->encode_seconds = encoded - begun;
    result->step_seconds = stepped - encoded;
    result->decode_seconds = os_seconds() - stepped;
out:
    return rc;
}

int tile_paint(struct tile_desk *desk, struct meter *meter, const struct tile_job *job,
               struct tile_result *result, struct err *err)
{
    int        rc;
    char       name[TILE_NAME_BYTES];
    struct err ignored = {0};

    *result = (struct tile_result){.attempts = 0};
    (void)tile_name(name, &desk->request->plan->grid, job->number);
    do {
        desk->spent = 0;
        result->attempts++;
        rc = paint_once(desk, meter, job, result, err);
        if (rc == ERR_OK) return rc;
        (void)meter_advance(meter, -desk->spent, &ignored);
        result->may_pass = err_is_retryable(err);
    } while (tile_may_retry(meter, result->attempts, name, err));
    result->may_pass = result->may_pass && err->code != ERR_CANCELLED;
    return (int)err->code;
}

const uint16_t *tile_copy_guide(struct tile_desk *desk, const struct tile_job *job)
{
    const struct grid *grid = &desk->request->plan->grid;
    struct px_rect     px =
        grid_tile(grid, (job->number - 1) % grid->cols, (job->number - 1) / grid->cols);

    upscale_rect(job->guide, px.x, px.y, px.w, px.h, desk->rgb);
    render_quantise(desk->samples, desk->rgb, desk->pixels);
    return desk->samples;
}
