/*
 * tile_desk.c - the places of the tiles in work, and what is done to one tile alone.
 *
 * Owns their memory, taken once, and the way from the enlarged guide to a latent and from a latent
 * to samples.  Knows nothing of steps, groups and attempts.
 *
 * Read next: tile.c, for the order in which these are called.
 */
#include "render/tile_int.h"

#include <math.h>
#include <string.h>

static int64_t latent_count(const struct grid *grid, int32_t channels)
{
    return (int64_t)(grid->tile_w_px / TILING_PX_PER_LAT) * (grid->tile_h_px / TILING_PX_PER_LAT) *
           channels;
}

uint64_t tile_desk_bytes(const struct grid *grid, int32_t channels, uint32_t tiles)
{
    uint64_t pixels = (uint64_t)grid->tile_w_px * (uint64_t)grid->tile_h_px * 3;
    return sizeof(struct tile_desk) + pixels * (sizeof(float) + 2 * sizeof(uint16_t)) +
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
    for (int i = 0; i < 2; i++)
        TRY(os_alloc((void **)&desk->samples[i], (uint64_t)desk->pixels, sizeof(uint16_t), "a tile",
                     err));
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
    os_free(desk->samples[0]);
    os_free(desk->samples[1]);
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

struct px_rect tile_desk_rect(const struct tile_desk *desk, const struct tile_job *job)
{
    const struct grid *grid = &desk->request->plan->grid;
    return grid_tile(grid, (job->number - 1) % grid->cols, (job->number - 1) / grid->cols);
}

/* ----------------------------------------------------------------------------------- values */

static bool is_bad(float value)
{
    return !(fabsf(value) <= 3.4e38f);
}

static int check_bad(int64_t bad, int64_t count, const char *what, struct err *err)
{
    int rc = ERR_OK;

    if (bad > 0)
        RAISE(err, ERR_NUMERIC, 0, "numeric: %lld of %lld %s values are NaN or infinite",
              (long long)bad, (long long)count, what);
out:
    return rc;
}

int render_quantise(uint16_t *samples_out, const float *rgb, int64_t count, struct err *err)
{
    int64_t bad = 0;

#pragma omp parallel for simd reduction(+ : bad)
    for (int64_t i = 0; i < count; i++) {
        float value = !(rgb[i] > 0) ? 0 : rgb[i] > 1 ? 1 : rgb[i];
        samples_out[i] = (uint16_t)(value * 65535.0f + 0.5f);
        bad += is_bad(rgb[i]);
    }
    return check_bad(bad, count, "pixel", err);
}

int tile_check_finite(const float *values, int64_t count, const char *what, struct err *err)
{
    int64_t bad = 0;

#pragma omp simd reduction(+ : bad) /* alone, as kernels do with latents */
    for (int64_t i = 0; i < count; i++)
        bad += is_bad(values[i]);
    return check_bad(bad, count, what, err);
}

/* ------------------------------------------------------------------------------- primitives */

int tile_desk_encode(struct tile_desk *desk, struct meter *meter, struct place *place,
                     struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = desk->painter;
    struct px_rect        px = tile_desk_rect(desk, &place->job);
    double                begun = os_seconds();

    upscale_rect(place->job.guide, px.x, px.y, px.w, px.h, desk->rgb);
    TRY(painter->encode(painter->self, desk->rgb, px.w, px.h, place->latent, err));
    TRY(tile_check_finite(place->latent, desk->cells, "latent", err));
    place->spent += desk->request->costs.encode;
    TRY(meter_advance(meter, desk->request->costs.encode, err));
    fill_noise(desk, &place->job, lat_rect_from_px(px));
    painter->start(painter->self, place->latent, desk->noise, desk->cells);
    place->result.encode_seconds = os_seconds() - begun;
out:
    return rc;
}

int tile_desk_decode(struct tile_desk *desk, struct meter *meter, struct place *place,
                     struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = desk->painter;
    struct px_rect        px = tile_desk_rect(desk, &place->job);
    double                begun = os_seconds();
    uint16_t             *samples = desk->samples[desk->free];

    TRY(painter->decode(painter->self, place->latent, px.w, px.h, desk->rgb, err));
    TRY(render_quantise(samples, desk->rgb, desk->pixels, err));
    place->spent += desk->request->costs.decode;
    TRY(meter_step(meter, 0, 0, desk->request->costs.decode, err));
    desk->free ^= 1;
    place->result.samples = samples;
    place->result.decode_seconds = os_seconds() - begun;
out:
    return rc;
}

const uint16_t *tile_copy_guide(struct tile_desk *desk, const struct tile_job *job)
{
    struct px_rect px = tile_desk_rect(desk, job);
    struct err     never;

    upscale_rect(job->guide, px.x, px.y, px.w, px.h, desk->rgb);
    must(render_quantise(desk->samples[desk->free], desk->rgb, desk->pixels, &never) == ERR_OK);
    return desk->samples[desk->free];
}
