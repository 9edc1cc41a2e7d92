/*
 * tile.c - one tile's life: gather the guide, encode, mix in noise, paint, decode, quantise.
 *
 * Owns the buffers of the tile in work, taken once.  Knows the order of the primitives and nothing
 * of how they work.  Decides nothing from pixels: what depends on the picture is settled before.
 *
 * Read next: render.c, which asks for tiles.
 */
#include "render/render_int.h"

#include <string.h>

struct tile_desk {
    const struct render_request *request;
    float                       *rgb;    /* [tile_h, tile_w, 3] */
    float                       *latent; /* [tile_h / 8, tile_w / 8, channels] */
    float                       *velocity, *noise;
    uint16_t                    *samples; /* [tile_h, tile_w, 3] */
    int64_t                      cells, pixels;
};

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

int tile_desk_open(struct tile_desk **out, const struct render_request *request, struct err *err)
{
    int                rc = ERR_OK;
    const struct grid *grid = &request->plan->grid;
    struct tile_desk  *desk = NULL;

    TRY(os_alloc((void **)&desk, 1, sizeof *desk, "the tile in work", err));
    desk->request = request;
    desk->pixels = (int64_t)grid->tile_w_px * grid->tile_h_px * 3;
    desk->cells = latent_count(grid, request->painters[0].channels);
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
    const struct painter *painter = &desk->request->painters[0];
    const struct grid    *grid = &desk->request->plan->grid;

    if (job->noise_map != NULL) {
        cut_noise(desk->noise, job->noise_map, grid->worked_w_px / TILING_PX_PER_LAT, rect,
                  painter->channels);
    } else {
        struct painter_noise request = {
            .seed = desk->request->config->seed, .purpose = 1, .rect = rect};
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

int tile_paint(struct tile_desk *desk, struct meter *meter, const struct tile_job *job,
               const uint16_t **samples_out, struct err *err)
{
    int                        rc = ERR_OK;
    const struct painter      *painter = &desk->request->painters[0];
    const struct render_costs *costs = &desk->request->costs;
    struct px_rect             px = grid_tile(&desk->request->plan->grid, job->col, job->row);
    struct lat_rect            lat = lat_rect_from_px(px);
    struct painter_tile        tile = {
               .w_px = px.w, .h_px = px.h, .latent = desk->latent, .velocity = desk->velocity};

    upscale_rect(job->guide, px.x, px.y, px.w, px.h, desk->rgb);
    TRY(painter->encode(painter->self, desk->rgb, px.w, px.h, desk->latent, err));
    TRY(meter_advance(meter, costs->encode, err));
    fill_noise(desk, job, lat);
    painter->start(painter->self, desk->latent, desk->noise, desk->cells);
    for (uint32_t step = 0; step < job->steps; step++) {
        TRY(painter->predict(painter->self, &tile, 1, step, err));
        painter->advance(painter->self, step, desk->latent, desk->velocity, desk->cells);
        meter->now.step = step + 1;
        TRY(meter_advance(meter, costs->predict, err));
    }
    TRY(painter->decode(painter->self, desk->latent, px.w, px.h, desk->rgb, err));
    render_quantise(desk->samples, desk->rgb, desk->pixels);
    TRY(meter_advance(meter, costs->decode, err));
    *samples_out = desk->samples;
out:
    if (rc != ERR_OK && rc != ERR_CANCELLED) err_context(err, "tile %u,%u", job->col, job->row);
    return rc;
}
