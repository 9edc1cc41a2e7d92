/*
 * render.c - the order of things: plan, draft, tiles, file.
 *
 * The only file that knows the order.  Owns a job's progress and cleans up behind it: a job that
 * fails leaves no half-written output and no stray folder.
 *
 * Read next: tile.c, then assemble.c.
 */
#include "render/render_int.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* The tiles' schedule is that of a picture of the size the model was trained at: above it the rule
 * for mu grows without bound and would erase the guide (1.15 is its value at 4096 tokens). */
static const double TILE_MU_MAX = 1.15;

/* ------------------------------------------------------------------------------------ plan */

/* The draft has the poster's aspect, its longest side close to `longest`, sides multiples of 16. */
static void draft_size(const struct config *config, int32_t *w_out, int32_t *h_out)
{
    double  longest = (double)max_i64(config->width_px, config->height_px);
    double  scale = config->draft_px / longest;
    int32_t w =
        (int32_t)lround(config->width_px * scale / TILING_PX_PER_TOKEN) * TILING_PX_PER_TOKEN;
    int32_t h =
        (int32_t)lround(config->height_px * scale / TILING_PX_PER_TOKEN) * TILING_PX_PER_TOKEN;

    *w_out = (int32_t)max_i64(w, TILING_SIDE_MIN_PX);
    *h_out = (int32_t)max_i64(h, TILING_SIDE_MIN_PX);
}

int render_file_request(struct bigtiff_request *out, const struct config *config, struct err *err)
{
    static const struct {
        const char     *name;
        enum tiff_codec codec;
    } codecs[] = {
        {"none", TIFF_NONE}, {"lzw", TIFF_LZW}, {"deflate", TIFF_DEFLATE}, {"zstd", TIFF_ZSTD}};
    int rc = ERR_OK;

    *out = (struct bigtiff_request){.path = config->output,
                                    .w = config->width_px,
                                    .h = config->height_px,
                                    .bits = config->bits,
                                    .level = config->level,
                                    .dpi = config->dpi,
                                    .pyramid = config->pyramid};
    for (size_t i = 0; i < ARRAY_COUNT(codecs); i++) {
        if (strcmp(config->compression, codecs[i].name) == 0) {
            out->codec = codecs[i].codec;
            goto out;
        }
    }
    RAISE(err, ERR_USAGE, 0, "compression is '%s'; it must be none, lzw, deflate or zstd",
          config->compression);
out:
    return rc;
}

int render_plan_make(struct render_plan *out, const struct config *config, struct err *err)
{
    int                    rc = ERR_OK;
    struct render_plan     plan = {0};
    bool                   exact = strcmp(config->fit, "exact") == 0;
    struct grid_request    grid = {.canvas_w_px = config->width_px,
                                   .canvas_h_px = config->height_px,
                                   .tile_max_px = config->tile_px,
                                   .overlap_px = config->overlap_px,
                                   .fit = exact ? GRID_EXACT : GRID_EVEN};
    struct bigtiff_request file;

    TRY(grid_make(&plan.grid, &grid, err));
    TRY(render_file_request(&file, config, err));
    draft_size(config, &plan.draft_w_px, &plan.draft_h_px);
    plan.spool_bytes = grid_count(&plan.grid) * (uint64_t)plan.grid.tile_w_px *
                       (uint64_t)plan.grid.tile_h_px * 3 * sizeof(uint16_t);
    plan.output_bytes_worst = bigtiff_bytes_worst(&file);
    *out = plan;
out:
    return rc;
}

uint64_t render_host_bytes(const struct config *config, const struct render_plan *plan,
                           int32_t channels, bool drafts_only)
{
    uint64_t draft = (uint64_t)plan->draft_w_px * (uint64_t)plan->draft_h_px;
    uint64_t picture = draft * 3 * sizeof(uint16_t);
    uint64_t easel = draft * 3 * sizeof(float) + 3 * draft /
                                                     (TILING_PX_PER_LAT * TILING_PX_PER_LAT) *
                                                     (uint64_t)channels * sizeof(float);

    if (drafts_only) return easel + (uint64_t)config->count * 2 * picture;
    return max_u64(easel, tile_desk_bytes(&plan->grid, channels) +
                              assemble_bytes(&plan->grid, config->bits)) +
           picture;
}

uint32_t render_tile_steps(const struct config *config)
{
    double steps = config->steps, kept = steps * config->strength;

    if (config->strength <= 0) return (uint32_t)config->steps;
    return (uint32_t)(steps - floor(kept < steps ? steps - kept : 0));
}

static int64_t tokens_of(int32_t w_px, int32_t h_px)
{
    return (int64_t)(w_px / TILING_PX_PER_TOKEN) * (h_px / TILING_PX_PER_TOKEN);
}

struct painter_stage render_draft_stage(const struct config *config, const struct render_plan *plan)
{
    return (struct painter_stage){.prompt = config->prompt,
                                  .guidance = config->guidance,
                                  .steps = (uint32_t)config->draft_steps,
                                  .tokens = tokens_of(plan->draft_w_px, plan->draft_h_px),
                                  .sigma_start = 1,
                                  .mu = config->mu};
}

struct painter_stage render_tile_stage(const struct config *config, const struct render_plan *plan)
{
    return (struct painter_stage){.prompt = config->prompt,
                                  .guidance = config->guidance,
                                  .steps = (uint32_t)config->steps,
                                  .tokens = tokens_of(plan->grid.tile_w_px, plan->grid.tile_h_px),
                                  .sigma_start = config->sigma,
                                  .strength = config->strength,
                                  .mu = config->mu,
                                  .mu_max = config->strength > 0 ? 0 : TILE_MU_MAX};
}

/* ------------------------------------------------------------------------------------ disk */

int render_disk_free(uint64_t *bytes_out, const char *output, struct err *err)
{
    char folder[1100];

    must(os_folder(folder, sizeof folder, output));
    return os_free_bytes(bytes_out, folder, err);
}

static int check_room(const struct config *config, const struct render_plan *plan, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t need = plan->spool_bytes + plan->output_bytes_worst, have = 0;
    char     need_words[32], have_words[32];

    TRY(render_disk_free(&have, config->output, err));
    if (have < need)
        RAISE(err, ERR_IO, ENOSPC,
              "output: '%s' and its tiles need %s of disk and %s is free; free some or name "
              "another disk",
              config->output, text_bytes(need_words, sizeof need_words, need),
              text_bytes(have_words, sizeof have_words, have));
out:
    return rc;
}

/* --------------------------------------------------------------------------------- drafts */

/* A draft carries the seed that made it, which with several drafts is not the one asked for. */
static int save_png(const struct render_request *request, const struct image *image,
                    const char *path, uint64_t seed, struct err *err)
{
    int                rc = ERR_OK;
    struct config     *used = NULL;
    char              *settings = NULL;
    struct image_text  texts[] = {{IMAGE_TEXT_PROMPT, request->config->prompt},
                                  {IMAGE_TEXT_SOFTWARE, request->software},
                                  {IMAGE_TEXT_SETTINGS, NULL}};
    struct png_request png = {.path = path,
                              .bits = 8,
                              .texts = texts,
                              .text_count = request->config->metadata ? ARRAY_COUNT(texts) : 0};

    TRY(os_alloc((void **)&used, 1, sizeof *used, "settings", err));
    *used = *request->used;
    used->seed = seed;
    TRY(config_to_json(&settings, used, err));
    texts[2].value = settings;
    TRY(png_write(image, &png, err));
out:
    os_free(settings);
    os_free(used);
    return rc;
}

/* The numbered drafts are outputs too: none of them is replaced unasked. */
static int check_numbered(const struct config *config, struct err *err)
{
    int  rc = ERR_OK;
    char name[1100];

    for (uint32_t i = 0; config->count > 1 && i < (uint32_t)config->count; i++) {
        TRY(draft_name(name, sizeof name, config->output, config->seed + i, err));
        if (!config->overwrite && os_is_file(name))
            RAISE(err, ERR_USAGE, 0, "'%s' exists; add --overwrite, or name another file with -o",
                  name);
    }
out:
    return rc;
}

int render_drafts(const struct render_request *request, struct err *err)
{
    int                   rc = ERR_OK;
    const struct config  *config = request->config;
    const struct painter *painter = &request->painters[0];
    struct painter_stage  stage = render_draft_stage(config, request->plan);
    uint32_t              count = (uint32_t)config->count, steps = 0;
    struct image         *drafts = NULL;
    struct image          sheet = {0};
    struct meter          meter;
    char                  name[1100];

    TRY(check_numbered(config, err));
    TRY(os_alloc((void **)&drafts, count, sizeof *drafts, "the drafts", err));
    TRY(painter->begin(painter->self, &stage, &steps, err));
    meter_init(&meter, request, count, 0, steps, 0);
    TRY(meter_advance(&meter, request->costs.prompt, err));
    for (uint32_t i = 0; i < count; i++) {
        TRY(draft_paint(&drafts[i], &meter, config->seed + i, steps, err));
        if (count == 1) continue;
        TRY(draft_name(name, sizeof name, config->output, config->seed + i, err));
        TRY(save_png(request, &drafts[i], name, config->seed + i, err));
    }
    if (count > 1) TRY(sheet_make(&sheet, drafts, count, err));
    TRY(save_png(request, count > 1 ? &sheet : &drafts[0], config->output, config->seed, err));
out:
    painter->end(painter->self);
    for (uint32_t i = 0; drafts != NULL && i < count; i++)
        image_close(&drafts[i]);
    os_free(drafts);
    image_close(&sheet);
    return rc;
}

/* --------------------------------------------------------------------------------- poster */

/* A picture from outside is stretched only by mistake.  Our own drafts have the poster's aspect,
 * but for rounding to whole tokens and for sides that would be too small to paint. */
static const double STRETCH_MAX_GIVEN = 1.02, STRETCH_MAX_OWN = 2.5;

static void warn_of_stretch(const struct image *draft, const struct config *config)
{
    double stretch = ((double)config->width_px / config->height_px) / ((double)draft->w / draft->h);

    if (stretch < 1) stretch = 1 / stretch;
    if (stretch > (config->input[0] != '\0' ? STRETCH_MAX_GIVEN : STRETCH_MAX_OWN))
        log_line(LOG_WARN,
                 "the draft is %d x %d px and the poster %d x %d: it is stretched by %.2f to fit",
                 draft->w, draft->h, config->width_px, config->height_px, stretch);
}

/* The guide: the picture that was given, or a draft of our own. */
static int take_guide(struct image *out, const struct render_request *request, struct meter *meter,
                      struct err *err)
{
    int                   rc = ERR_OK;
    const struct config  *config = request->config;
    const struct painter *painter = &request->painters[0];
    struct painter_stage  stage = render_draft_stage(config, request->plan);
    uint32_t              steps = 0;

    if (config->input[0] != '\0') {
        TRY(image_read(out, config->input, err));
        goto out;
    }
    TRY(painter->begin(painter->self, &stage, &steps, err));
    rc = draft_paint(out, meter, config->seed, steps, err);
    painter->end(painter->self);
    TRY(rc);
    if (config->draft[0] != '\0') TRY(save_png(request, out, config->draft, config->seed, err));
out:
    return rc;
}

static int paint_tiles(const struct render_request *request, struct meter *meter,
                       const struct upscale *guide, struct spool *spool, uint32_t steps,
                       struct err *err)
{
    int                rc = ERR_OK;
    const struct grid *grid = &request->plan->grid;
    struct tile_desk  *desk = NULL;
    float             *noise_map = NULL;
    const uint16_t    *samples;

    TRY(tile_desk_open(&desk, request, err));
    if (request->config->noise_file[0] != '\0' && request->config->input[0] != '\0')
        TRY(noise_map_read(
            &noise_map, request->config->noise_file, grid->worked_h_px / TILING_PX_PER_LAT,
            grid->worked_w_px / TILING_PX_PER_LAT, request->painters[0].channels, err));
    meter->now.phase = "tiles";
    meter->now.steps = steps;
    for (uint32_t row = 0; row < grid->rows; row++) {
        for (uint32_t col = 0; col < grid->cols; col++) {
            struct tile_job job = {
                .guide = guide, .noise_map = noise_map, .col = col, .row = row, .steps = steps};
            meter->now.step = 0;
            TRY(tile_paint(desk, meter, &job, &samples, err));
            TRY(spool_put(spool, col, row, samples, err));
            meter->now.tiles_done++;
        }
    }
out:
    os_free(noise_map);
    tile_desk_close(desk);
    return rc;
}

int render_poster(const struct render_request *request, struct err *err)
{
    int                       rc = ERR_OK;
    const struct config      *config = request->config;
    const struct render_plan *plan = request->plan;
    const struct painter     *painter = &request->painters[0];
    struct painter_stage      stage = render_tile_stage(config, plan);
    struct image              draft = {0};
    struct upscale           *guide = NULL;
    struct spool             *spool = NULL;
    struct bigtiff           *file = NULL;
    struct meter              meter;
    uint32_t                  steps = 0;
    uint32_t                  drafts = config->input[0] == '\0' ? 1 : 0;

    TRY(check_room(config, plan, err));
    TRY(spool_open(&spool, config->output, &plan->grid, err));
    TRY(assemble_open_file(&file, request, err));
    meter_init(&meter, request, drafts, (uint32_t)grid_count(&plan->grid),
               (uint32_t)config->draft_steps, render_tile_steps(config));
    TRY(meter_advance(&meter, 0, err));
    TRY(take_guide(&draft, request, &meter, err));
    warn_of_stretch(&draft, config);
    TRY(upscale_open(&guide, &draft, config->width_px, config->height_px, err));
    TRY(painter->begin(painter->self, &stage, &steps, err));
    TRY(meter_advance(&meter, request->costs.prompt, err));
    TRY(paint_tiles(request, &meter, guide, spool, steps, err));
    TRY(assemble_poster(request, spool, file, &meter, err));
out:
    painter->end(painter->self);
    bigtiff_close(file);
    spool_close(spool);
    upscale_close(guide);
    image_close(&draft);
    return rc;
}
