/*
 * render.c - the order of things: plan, draft, tiles, file.
 *
 * The only file that knows the order.  Owns a job's progress.  A job that ends early leaves no
 * half-written output, and what it finished in the folder beside it.
 *
 * Read next: store.c, tile.c, then assemble.c.
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
    plan.spool_bytes = grid_count(&plan.grid) * spool_tile_bytes(&plan.grid);
    plan.output_bytes_worst = bigtiff_bytes_worst(&file);
    *out = plan;
out:
    return rc;
}

uint64_t render_host_bytes(const struct config *config, const struct render_plan *plan,
                           int32_t channels, uint32_t painters, uint32_t tiles_per_pass)
{
    uint64_t draft = (uint64_t)plan->draft_w_px * (uint64_t)plan->draft_h_px;
    uint64_t picture = draft * 3 * sizeof(uint16_t);
    uint64_t plot = (uint64_t)MEMORY_PLOT_W * MEMORY_PLOT_H * 3 * sizeof(uint16_t);
    uint64_t easel = draft * 3 * sizeof(float) + 3 * draft /
                                                     (TILING_PX_PER_LAT * TILING_PX_PER_LAT) *
                                                     (uint64_t)channels * sizeof(float);

    if (painters == 0) return easel + (uint64_t)config->count * 2 * picture;
    return max_u64(easel, crew_bytes(&plan->grid, channels, painters, tiles_per_pass)) +
           assemble_bytes(&plan->grid, config->bits) + picture +
           (config->memory_plot[0] != '\0' ? plot : 0);
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

struct painter_stage render_tile_stage(const struct config *config, const struct render_plan *plan)
{
    const struct grid *grid = &plan->grid;

    return (struct painter_stage){.prompt = config->prompt,
                                  .guidance = config->guidance,
                                  .levels = {.steps = (uint32_t)config->steps,
                                             .tokens = tokens_of(grid->tile_w_px, grid->tile_h_px),
                                             .sigma_start = config->sigma,
                                             .strength = config->strength,
                                             .mu = config->mu,
                                             .mu_max = config->strength > 0 ? 0 : TILE_MU_MAX}};
}

struct painter_stage render_draft_stage(const struct config *config, const struct render_plan *plan,
                                        bool tiles_follow)
{
    struct painter_stage stage = {
        .prompt = config->prompt,
        .guidance = config->guidance,
        .levels = {.steps = (uint32_t)config->draft_steps,
                   .tokens = tokens_of(plan->draft_w_px, plan->draft_h_px),
                   .sigma_start = 1,
                   .mu = config->mu}};

    if (tiles_follow) stage.next = render_tile_stage(config, plan).levels;
    return stage;
}

/* ------------------------------------------------------------------------------------ disk */

int render_disk_free(uint64_t *bytes_out, const char *output, struct err *err)
{
    char folder[1100];

    must(os_folder(folder, sizeof folder, output));
    return os_free_bytes(bytes_out, folder, err);
}

/* Tiles that are stored already need no room again. */
static int check_room(const struct store *store, struct err *err)
{
    int                       rc = ERR_OK;
    const struct render_plan *plan = store->request->plan;
    const char               *output = store->request->config->output;
    uint64_t stored = store_count(store, TILE_DONE) + store_count(store, TILE_FILLED);
    uint64_t need = plan->spool_bytes - stored * spool_tile_bytes(&plan->grid), have = 0;
    char     need_words[32], have_words[32];

    need += plan->output_bytes_worst;
    TRY(render_disk_free(&have, output, err));
    if (have < need)
        RAISE(err, ERR_IO, ENOSPC,
              "output: '%s' and its tiles need %s of disk and %s is free; free some or name "
              "another disk",
              output, text_bytes(need_words, sizeof need_words, need),
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
    uint32_t              count = (uint32_t)config->count, steps = 0;
    struct meter_work     work = {
            .drafts = count, .draft_steps = (uint32_t)config->draft_steps, .begins = 1};
    struct image *drafts = NULL;
    struct image  sheet = {0};
    struct meter  meter;
    char          name[1100];

    meter_open(&meter, request);
    meter_plan(&meter, &work);
    meter.now.tiles_total = count;
    TRY(check_numbered(config, err));
    TRY(os_alloc((void **)&drafts, count, sizeof *drafts, "the drafts", err));
    TRY(draft_begin(&meter, false, &steps, err));
    for (uint32_t i = 0; i < count; i++) {
        TRY(draft_paint(&drafts[i], &meter, config->seed + i, steps, err));
        meter_tile_done(&meter);
        if (count == 1) continue;
        TRY(draft_name(name, sizeof name, config->output, config->seed + i, err));
        TRY(save_png(request, &drafts[i], name, config->seed + i, err));
        if (i + 1 < count && meter_ends(&meter))
            RAISE(err, ERR_CANCELLED, 0,
                  "stopped on request after draft %u of %u; '%s' was not "
                  "written",
                  i + 1, count, config->output);
    }
    if (count > 1) TRY(sheet_make(&sheet, drafts, count, err));
    TRY(save_png(request, count > 1 ? &sheet : &drafts[0], config->output, config->seed, err));
out:
    painter->end(painter->self);
    for (uint32_t i = 0; drafts != NULL && i < count; i++)
        image_close(&drafts[i]);
    os_free(drafts);
    image_close(&sheet);
    meter_close(&meter);
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

static int make_guide(struct image *out, const struct render_request *request, struct meter *meter,
                      struct err *err)
{
    int                   rc = ERR_OK;
    const struct config  *config = request->config;
    const struct painter *painter = &request->painters[0];
    uint32_t              steps = 0;

    if (config->input[0] != '\0') return image_read(out, config->input, err);
    rc = draft_begin(meter, true, &steps, err);
    if (rc == ERR_OK) rc = draft_paint(out, meter, config->seed, steps, err);
    painter->end(painter->self);
    return rc;
}

static uint64_t guide_hash(const struct image *guide)
{
    return hash64_pieces(guide->rgb,
                         (uint64_t)guide->w * (uint64_t)guide->h * 3 * sizeof *guide->rgb);
}

/* A given picture that changed since the poster was begun is another poster. */
static int check_given(const struct store *store, const struct image *guide, struct err *err)
{
    int                         rc = ERR_OK;
    const struct config        *config = store->request->config;
    const struct journal_facts *facts = journal_facts(store->journal);
    struct image                given = {0};

    if (store->request->mode != RENDER_BEGIN || config->input[0] == '\0') goto out;
    TRY(image_read(&given, config->input, err));
    if (given.w != guide->w || given.h != guide->h || guide_hash(&given) != facts->guide.hash)
        RAISE(err, ERR_USAGE, 0,
              "'%s' holds tiles of another poster: the picture was another than "
              "'%s' is now; use what was used there, or start over with --overwrite",
              store->folder, config->input);
out:
    image_close(&given);
    return rc;
}

/* The guide: as stored by an earlier run; or else the picture that was given, or a draft of our
 * own, stored before any tile relies on it. */
static int take_guide(struct image *out, struct store *store, struct meter *meter, struct err *err)
{
    int                          rc = ERR_OK;
    const struct render_request *request = store->request;
    const struct config         *config = request->config;
    const struct journal_facts  *facts = journal_facts(store->journal);
    struct err                   damage = {0};
    bool                         keep = config->input[0] == '\0' && config->draft[0] != '\0';

    if (facts->has_guide && spool_get_guide(out, store->spool, &facts->guide, &damage) == ERR_OK) {
        TRY(check_given(store, out, err));
        if (keep && !os_is_file(config->draft))
            TRY(save_png(request, out, config->draft, config->seed, err));
        goto out;
    }
    if (facts->has_guide)
        log_line(LOG_WARN, "the draft is not on the disk as it was and is made again: %s",
                 damage.text);
    TRY(make_guide(out, request, meter, err));
    if (keep) TRY(save_png(request, out, config->draft, config->seed, err));
    TRY(spool_put_guide(store->spool, out, err));
    TRY(journal_add_guide(
        store->journal, &(struct journal_guide){.w = out->w, .h = out->h, .hash = guide_hash(out)},
        err));
    if (meter_ends(meter)) RAISE(err, ERR_CANCELLED, 0, "stopped on request");
out:
    return rc;
}

static int read_noise(float **out, const struct render_request *request, struct err *err)
{
    const struct config *config = request->config;
    const struct grid   *grid = &request->plan->grid;

    if (config->noise_file[0] == '\0' || config->input[0] == '\0') return ERR_OK;
    return noise_map_read(out, config->noise_file, grid->worked_h_px / TILING_PX_PER_LAT,
                          grid->worked_w_px / TILING_PX_PER_LAT, request->painters[0].channels,
                          err);
}

static void plan_work(struct meter *meter, const struct store *store)
{
    const struct render_request *request = store->request;
    const struct journal_facts  *facts = journal_facts(store->journal);
    uint32_t                     done = store_count(store, TILE_DONE);
    struct meter_work            work = {.tiles = facts->tile_count - done,
                                         .draft_steps = (uint32_t)request->config->draft_steps,
                                         .tile_steps = render_tile_steps(request->config)};

    work.drafts = request->config->input[0] == '\0' && !facts->has_guide ? 1 : 0;
    work.begins = work.drafts + (uint32_t)min_i64(request->painter_count, work.tiles);
    meter_plan(meter, &work);
    meter->now.tiles_total = facts->tile_count;
    meter->now.tiles_done = done;
}

/* "2 of 12 tiles are missing: 7 (column 3, row 2), 9 (column 1, row 3) and 4 more; ..." */
static int tell_missing(const struct store *store, const struct err *why, struct err *err)
{
    enum { TOLD = 4 };
    int                         rc = ERR_OK;
    const struct journal_facts *facts = journal_facts(store->journal);
    const struct grid          *grid = &store->request->plan->grid;
    char                        list[TOLD * TILE_NAME_BYTES + 32] = "", name[TILE_NAME_BYTES];
    uint32_t                    missing = 0;
    size_t                      used = 0;

    for (uint32_t i = 0; i < facts->tile_count; i++) {
        if (facts->tiles[i].status == TILE_DONE || facts->tiles[i].status == TILE_FILLED) continue;
        if (++missing > TOLD) continue;
        (void)snprintf(list + used, sizeof list - used, "%s%s", used > 0 ? ", " : "",
                       tile_name(name, grid, i + 1));
        used = strlen(list);
    }
    if (missing == 0) goto out;
    if (missing > TOLD)
        (void)snprintf(list + used, sizeof list - used, " and %u more", missing - TOLD);
    RAISE(err, ERR_PARTIAL, why->sys,
          "%u of %u tiles are missing: %s; the last failure was: %.160s; the others are safe, and "
          "'mural resume' tries again",
          missing, facts->tile_count, list, why->text);
out:
    return rc;
}

static int paint_and_assemble(struct store *store, struct meter *meter, struct err *err)
{
    int                          rc = ERR_OK;
    const struct render_request *request = store->request;
    struct image                 draft = {0};
    struct assembly             *assembly = NULL;
    struct crew_work             crew = {.store = store, .meter = meter};
    struct err                   why = {0};
    struct upscale              *guide = NULL;
    float                       *noise_map = NULL;

    TRY(check_room(store, err));
    TRY(assemble_open(&assembly, request, journal_facts(store->journal), err));
    plan_work(meter, store);
    TRY(meter_advance(meter, 0, err));
    TRY(read_noise(&noise_map, request, err));
    TRY(take_guide(&draft, store, meter, err));
    warn_of_stretch(&draft, request->config);
    TRY(upscale_open(&guide, &draft, request->config->width_px, request->config->height_px, err));
    TRY(assemble_early(assembly, store, err));
    crew.assembly = assembly;
    crew.guide = guide;
    crew.noise_map = noise_map;
    meter->now.phase = "tiles";
    meter->now.steps = render_tile_steps(request->config);
    TRY(crew_paint(&crew, &why, err));
    TRY(tell_missing(store, &why, err));
    TRY(assemble_poster(assembly, store, meter, err));
out:
    assemble_close(assembly);
    upscale_close(guide);
    os_free(noise_map);
    image_close(&draft);
    return rc;
}

/* A job that ends early says what is safe, and how to go on. */
static void tell_safe(const struct store *store, struct err *err)
{
    const char *output = store->request->config->output;
    uint32_t    safe = store_count(store, TILE_DONE);
    uint32_t    tiles = journal_facts(store->journal)->tile_count;

    if (!journal_facts(store->journal)->has_guide || err->code == ERR_PARTIAL) return;
    if (err->code == ERR_CANCELLED)
        (void)err_set(err, ERR_CANCELLED, 0, ERR_WHERE,
                      "stopped on request; %u of %u tiles are safe; go on with: mural resume %s",
                      safe, tiles, output);
    else
        log_line(LOG_WARN, "%u of %u tiles are safe; go on with: mural resume %s", safe, tiles,
                 output);
}

int render_poster(const struct render_request *request, struct err *err)
{
    int           rc = ERR_OK;
    struct store *store = NULL;
    struct meter  meter;

    meter_open(&meter, request);
    TRY(store_open(&store, request, &meter, err));
    if (store->complete) {
        log_line(LOG_INFO, "'%s' is finished already", request->config->output);
        goto out;
    }
    if (request->mode == RENDER_RETRY) TRY(store_forget(store, err));
    rc = paint_and_assemble(store, &meter, err);
    if (rc != ERR_OK) tell_safe(store, err);
out:
    store_close(store, rc == ERR_OK && !request->config->keep_tiles);
    meter_close(&meter);
    return rc;
}
