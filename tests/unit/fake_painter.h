/*
 * fake_painter.h - a painter that loses nothing, and a small poster to paint with it.
 *
 * The fake painter's latent holds all 192 samples of an 8 x 8 px cell, so a poster must come out as
 * the enlarged draft, to the bit: anything else is a mistake of tiles, blend, store or file.
 */
#ifndef MURAL_FAKE_PAINTER_H
#define MURAL_FAKE_PAINTER_H

#include "../test.h"

#include "render/render_int.h"

#include <math.h>

enum { CHANNELS = 192, WIDTHS_MAX = 512 };

struct fake {
    int begun, ended, noises, predictions;
    int fail_at; /* the n-th prediction fails; 0: none */
    /* Of all calls that may fail: those from number break_at on, break_count of them, give this
     * code; ERR_OK: they give NaN. */
    int           calls, break_at, break_count;
    enum err_code break_code;
    bool          drafting;
    /* Prediction number nan_at gives NaN for one of its tiles, and says so when `tells`. */
    int  nan_at, nan_tile;
    bool tells;
    bool moves; /* tiles are not what they were: noise and every step change them */
    /* Tiles fail with this code until it gave up memory `yields` times; then, if it is not 0, more
     * than `fits` at once. */
    enum err_code lacks_code;
    int           yields, asked;
    uint32_t      fits;
    uint8_t       widths[WIDTHS_MAX]; /* of all predictions so far */
    float         shift; /* of a tile whose seed or prompt is another than the story's */
    float         prompt_shift;
    /* What was told of the stage to follow, and how many stages began that were told of. */
    struct painter_levels next;
    int                   foreseen;
};

/* True: this call is to give NaN; or *rc is an error. */
static inline bool fake_breaks(struct fake *fake, int *rc, struct err *err)
{
    int call = ++fake->calls;

    *rc = ERR_OK;
    if (fake->break_at == 0 || call < fake->break_at || call >= fake->break_at + fake->break_count)
        return false;
    if (fake->break_code == ERR_OK) return true;
    *rc = err_set(err, fake->break_code, 0, ERR_WHERE, "call %d is broken", call);
    return false;
}

static inline bool fake_same_levels(const struct painter_levels *one,
                                    const struct painter_levels *other)
{
    return one->steps == other->steps && one->tokens == other->tokens &&
           one->sigma_start == other->sigma_start && one->strength == other->strength &&
           one->mu == other->mu && one->mu_max == other->mu_max;
}

static inline int fake_begin(void *self, const struct painter_stage *stage, uint32_t *steps_out,
                             struct err *err)
{
    struct fake *fake = self;
    int          rc;

    (void)fake_breaks(fake, &rc, err);
    if (rc != ERR_OK) return rc;
    fake->begun++;
    fake->foreseen += fake_same_levels(&fake->next, &stage->levels);
    fake->next = stage->next;
    fake->drafting = stage->levels.sigma_start >= 1;
    fake->prompt_shift = strcmp(stage->prompt, "a test") == 0 ? 0 : 0.02f;
    *steps_out = stage->levels.steps;
    return ERR_OK;
}
static inline void fake_end(void *self)
{
    ((struct fake *)self)->ended++;
}
/* Noise that is a picture, by its place on the canvas, so that drafts are smooth and known. */
static inline void fake_noise(void *self, const struct painter_noise *request, float *out)
{
    const struct lat_rect *r = &request->rect;

    ((struct fake *)self)->noises++;
    ((struct fake *)self)->shift = 0.01f * (float)(request->seed - 42);
    for (int32_t y = 0; y < r->h; y++)
        for (int32_t x = 0; x < r->w; x++)
            for (int32_t k = 0; k < CHANNELS; k++) {
                int32_t px = (r->x + x) * 8 + k % 24 / 3, py = (r->y + y) * 8 + k / 24;
                out[((size_t)y * (size_t)r->w + (size_t)x) * CHANNELS + (size_t)k] =
                    0.5f + 0.4f * sinf(0.05f * (float)px + 0.03f * (float)py * (float)(1 + k % 3) +
                                       (float)request->seed);
            }
}
static inline void to_latent(const float *rgb, int32_t w, int32_t h, float *latent, bool back)
{
    for (int32_t y = 0; y < h; y++)
        for (int32_t x = 0; x < w; x++)
            for (int32_t c = 0; c < 3; c++) {
                size_t cell = (size_t)(y / 8) * (size_t)(w / 8) + (size_t)(x / 8);
                size_t at = cell * CHANNELS + (size_t)(y % 8 * 24 + x % 8 * 3 + c);
                size_t pixel = ((size_t)y * (size_t)w + (size_t)x) * 3 + (size_t)c;
                if (back)
                    ((float *)(uintptr_t)rgb)[pixel] = latent[at];
                else
                    latent[at] = rgb[pixel];
            }
}
static inline int fake_encode(void *self, const float *rgb, int32_t w, int32_t h, float *latent,
                              struct err *err)
{
    int  rc;
    bool nan = fake_breaks(self, &rc, err);

    to_latent(rgb, w, h, latent, false);
    if (nan) latent[17] = NAN;
    return rc;
}
static inline int fake_decode(void *self, const float *latent, int32_t w, int32_t h, float *rgb,
                              struct err *err)
{
    int  rc;
    bool nan = fake_breaks(self, &rc, err);

    to_latent(rgb, w, h, (float *)(uintptr_t)latent, true);
    if (nan) rgb[5] = INFINITY;
    return rc;
}
/* A draft starts from its noise; a tile keeps its picture. */
static inline void fake_start(void *self, float *latent, const float *noise, int64_t count)
{
    const struct fake *fake = self;
    float              shift = fake->shift + fake->prompt_shift;

    if (fake->drafting) memcpy(latent, noise, (size_t)count * sizeof *latent);
    for (int64_t i = 0; i < count && !fake->drafting && shift > 0; i++)
        latent[i] += shift;
    for (int64_t i = 0; i < count && !fake->drafting && fake->moves; i++)
        latent[i] += 0.01f * noise[i];
}
static inline int fake_predict(void *self, const struct painter_tile *tiles, uint32_t count,
                               uint32_t step, struct err *err)
{
    struct fake *fake = self;
    int          rc = ERR_OK;
    bool         nan = fake_breaks(fake, &rc, err);

    if (fake->predictions < WIDTHS_MAX) fake->widths[fake->predictions] = (uint8_t)count;
    fake->predictions++;
    if (rc != ERR_OK) return rc;
    if (fake->predictions == fake->fail_at) RAISE(err, ERR_NUMERIC, 0, "3 values are NaN");
    if (fake->lacks_code != ERR_OK && !fake->drafting &&
        (fake->asked < fake->yields || (fake->fits > 0 && count > fake->fits)))
        RAISE(err, fake->lacks_code, 0, "no room for %u tiles", count);
    for (uint32_t t = 0; t < count; t++) {
        size_t values = (size_t)(tiles[t].w_px / 8) * (size_t)(tiles[t].h_px / 8) * CHANNELS;
        for (size_t i = 0; i < values; i++)
            tiles[t].velocity[i] =
                fake->moves ? 0.02f * (tiles[t].latent[i] - 0.4f) / (float)(step + 1) : 0;
    }
    if (nan) tiles->velocity[3] = NAN;
    if (fake->predictions == fake->nan_at) {
        tiles[(uint32_t)fake->nan_tile % count].velocity[5] = NAN;
        if (fake->tells) RAISE(err, ERR_NUMERIC, 0, "one value is NaN");
    }
out:
    return rc;
}
static inline void fake_advance(void *self, uint32_t step, float *latent, const float *velocity,
                                int64_t count)
{
    (void)self, (void)step;
    for (int64_t i = 0; i < count; i++)
        latent[i] += velocity[i];
}

static inline bool fake_yield(void *self, char *words_out, size_t capacity)
{
    struct fake *fake = self;

    if (fake->asked >= fake->yields) return false;
    (void)snprintf(words_out, capacity, "blanket %d was given up: 7 MB", ++fake->asked);
    return true;
}

static inline struct painter painter_of(struct fake *fake)
{
    return (struct painter){.self = fake,
                            .channels = CHANNELS,
                            .begin = fake_begin,
                            .end = fake_end,
                            .noise = fake_noise,
                            .encode = fake_encode,
                            .start = fake_start,
                            .predict = fake_predict,
                            .advance = fake_advance,
                            .decode = fake_decode};
}

struct story {
    char                  folder[200];
    struct config         config;
    struct render_plan    plan;
    struct fake           fake;
    struct painter        painter;
    struct render_request request;
};

static int        stop_after;
static inline int count_down(const struct render_progress *progress, void *user)
{
    (void)user;
    assert_true(progress->fraction >= 0 && progress->fraction <= 1);
    return stop_after > 0 && --stop_after == 0;
}

static inline void story_open(struct story *story, const char *fit, int bits)
{
    struct err err = {0};

    memset(story, 0, sizeof *story);
    config_defaults(&story->config);
    scratch_make(story->folder, sizeof story->folder);
    (void)snprintf(story->config.output, sizeof story->config.output, "%s/poster.tif",
                   story->folder);
    (void)snprintf(story->config.prompt, sizeof story->config.prompt, "a test");
    (void)snprintf(story->config.fit, sizeof story->config.fit, "%s", fit);
    story->config.width_px = 713;
    story->config.height_px = 1100;
    story->config.tile_px = 256;
    story->config.overlap_px = 48;
    story->config.draft_px = 128;
    story->config.draft_steps = 2;
    story->config.steps = 3;
    story->config.bits = bits;
    ASSERT_OK(render_plan_make(&story->plan, &story->config, &err));
    story->painter = painter_of(&story->fake);
    story->request = (struct render_request){.config = &story->config,
                                             .plan = &story->plan,
                                             .painters = &story->painter,
                                             .painter_count = 1,
                                             .costs = {1, 1, 1, 1, 1, 1},
                                             .used = &story->config,
                                             .software = "mural test",
                                             .model_identity = 7,
                                             .numeric = "test",
                                             .progress = count_down};
}

static inline void story_close(struct story *story)
{
    scratch_remove(story->folder);
}

/* ------------------------------------------------- a small poster, and what it must always be */

static inline void small_open(struct story *story)
{
    struct err err = {0};

    story_open(story, "even", 8);
    story->config.width_px = 200;
    story->config.height_px = 150;
    story->config.tile_px = 128;
    ASSERT_OK(render_plan_make(&story->plan, &story->config, &err));
    assert_int_equal(grid_count(&story->plan.grid), 4);
}

static inline uint64_t hash_of(const struct story *story)
{
    struct err err = {0};
    uint64_t   hash = 0, bytes = 0;

    ASSERT_OK(hash64_file(&hash, &bytes, story->config.output, &err));
    return hash;
}

static inline uint64_t reference(void)
{
    static uint64_t known;
    struct story    story;
    struct err      err = {0};

    if (known != 0) return known;
    small_open(&story);
    ASSERT_OK(render_poster(&story.request, &err));
    known = hash_of(&story);
    story_close(&story);
    return known;
}

/* Another process with the same settings: nothing but the disk is left of the first. */
static inline void go_on(struct story *story)
{
    struct err err = {0};

    story->fake = (struct fake){0};
    ASSERT_OK(render_poster(&story->request, &err));
    assert_true(hash_of(story) == reference());
}

#endif
