/*
 * draft.c - the small whole picture that guides every tile.
 *
 * Owns nothing between calls.  A draft is painted from pure noise in one piece, so composition is
 * settled at a size that the model knows.
 */
#include "render/render_int.h"

#include <stdio.h>
#include <string.h>

struct easel {
    float  *latent, *velocity, *noise, *rgb;
    int64_t cells;
    double  spent; /* work counted for the attempt in progress */
};

static int easel_init(struct easel *easel, int32_t w_px, int32_t h_px, int32_t channels,
                      struct err *err)
{
    int      rc = ERR_OK;
    uint64_t pixels = (uint64_t)w_px * (uint64_t)h_px * 3;

    easel->cells = (int64_t)(w_px / TILING_PX_PER_LAT) * (h_px / TILING_PX_PER_LAT) * channels;
    TRY(os_alloc((void **)&easel->latent, (uint64_t)easel->cells, sizeof(float), "a latent", err));
    TRY(os_alloc((void **)&easel->velocity, (uint64_t)easel->cells, sizeof(float), "a latent",
                 err));
    TRY(os_alloc((void **)&easel->rgb, pixels, sizeof(float), "the draft", err));
out:
    return rc;
}

static void easel_fini(struct easel *easel)
{
    os_free(easel->latent);
    os_free(easel->velocity);
    os_free(easel->noise);
    os_free(easel->rgb);
}

static int take_noise(struct easel *easel, const struct render_request *request, uint64_t seed,
                      struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = &request->painters[0];
    struct lat_rect       rect = {.w = request->plan->draft_w_px / TILING_PX_PER_LAT,
                                  .h = request->plan->draft_h_px / TILING_PX_PER_LAT};
    struct painter_noise  noise = {.seed = seed, .purpose = 0, .rect = rect};

    if (request->config->noise_file[0] != '\0') {
        TRY(noise_map_read(&easel->noise, request->config->noise_file, rect.h, rect.w,
                           painter->channels, err));
    } else {
        TRY(os_alloc((void **)&easel->noise, (uint64_t)easel->cells, sizeof(float), "noise", err));
        painter->noise(painter->self, &noise, easel->noise);
    }
out:
    return rc;
}

static int paint_once(struct easel *easel, struct meter *meter, uint32_t steps,
                      uint16_t *samples_out, struct err *err)
{
    int                          rc = ERR_OK;
    const struct render_request *request = meter->request;
    const struct painter        *painter = &request->painters[0];
    struct painter_tile          tile = {.w_px = request->plan->draft_w_px,
                                         .h_px = request->plan->draft_h_px,
                                         .latent = easel->latent,
                                         .velocity = easel->velocity};

    painter->start(painter->self, easel->latent, easel->noise, easel->cells);
    for (uint32_t step = 0; step < steps; step++) {
        TRY(painter->predict(painter->self, &tile, 1, step, err));
        painter->advance(painter->self, step, easel->latent, easel->velocity, easel->cells);
        easel->spent += request->costs.draft_predict;
        TRY(meter_step(meter, step + 1, 1, request->costs.draft_predict, err));
    }
    TRY(painter->decode(painter->self, easel->latent, tile.w_px, tile.h_px, easel->rgb, err));
    TRY(render_quantise(samples_out, easel->rgb, (int64_t)tile.w_px * tile.h_px * 3, err));
out:
    return rc;
}

int draft_begin(struct meter *meter, bool tiles_follow, uint32_t *steps_out, struct err *err)
{
    const struct render_request *request = meter->request;
    const struct painter        *painter = &request->painters[0];
    struct painter_stage stage = render_draft_stage(request->config, request->plan, tiles_follow);
    uint32_t             attempts = 0;

    while (painter->begin(painter->self, &stage, steps_out, err) != ERR_OK)
        if (!attempt_may_retry(meter, painter, ++attempts, "the draft's prompt", err))
            return (int)err->code;
    return meter_advance(meter, request->costs.prompt, err);
}

int draft_paint(struct image *out, struct meter *meter, uint64_t seed, uint32_t steps,
                struct err *err)
{
    int                          rc = ERR_OK;
    const struct render_request *request = meter->request;
    int32_t                      w = request->plan->draft_w_px, h = request->plan->draft_h_px;
    struct image                 image = {.w = w, .h = h};
    struct easel                 easel = {0};
    struct err                   ignored = {0};
    uint32_t                     attempts = 0;

    TRY(easel_init(&easel, w, h, request->painters[0].channels, err));
    TRY(take_noise(&easel, request, seed, err));
    TRY(os_alloc((void **)&image.rgb, (uint64_t)w * (uint64_t)h * 3, sizeof(uint16_t), "the draft",
                 err));
    meter->now.steps = steps;
    do {
        easel.spent = 0;
        rc = paint_once(&easel, meter, steps, image.rgb, err);
        if (rc == ERR_OK) break;
        (void)meter_advance(meter, -easel.spent, &ignored);
        rc = attempt_may_retry(meter, &request->painters[0], ++attempts, "the draft", err)
                 ? ERR_OK
                 : (int)err->code;
        TRY(rc);
    } while (true);
    TRY(meter_step(meter, 0, 0, request->costs.draft_decode, err));
    *out = image;
    image.rgb = NULL;
out:
    if (rc != ERR_OK && rc != ERR_CANCELLED) err_context(err, "draft");
    image_close(&image);
    easel_fini(&easel);
    return rc;
}

int draft_name(char *out, size_t capacity, const char *path, uint64_t number, struct err *err)
{
    int         rc = ERR_OK;
    const char *slash = strrchr(path, '/');
    const char *dot = strrchr(slash == NULL ? path : slash, '.');
    int         stem = (int)(dot == NULL ? strlen(path) : (size_t)(dot - path));
    int wrote = snprintf(out, capacity, "%.*s-%llu%s", stem, path, (unsigned long long)number,
                         dot == NULL ? "" : dot);

    if (wrote < 0 || (size_t)wrote >= capacity)
        RAISE(err, ERR_USAGE, 0, "the output name '%.64s...' is too long to number", path);
out:
    return rc;
}
