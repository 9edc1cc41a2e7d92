/*
 * store.c - the folder beside an output: begun, gone on with, or started over.
 *
 * Owns the folder `<output>.mural` and who may use it, and what of it may be trusted:
 *
 *     journal        what is finished (journal.c)
 *     lock           which run has the folder (lock.c)
 *     guide.rgb16    the draft, or the given picture (spool.c)
 *     tile-<n>.rgb16 finished tiles
 *
 * A run goes on only with what it would have painted itself: the same settings, model, arithmetic
 * and grid; otherwise each difference is named.  Tiles of the journal are hashed again before they
 * are trusted; a damaged one is painted again.
 *
 * Read next: journal.c for the format, crew.c for who paints what is missing.
 */
#include "render/render_int.h"

#include <stdio.h>
#include <string.h>

static void path_in(char *out, size_t capacity, const char *output, const char *name)
{
    int wrote = snprintf(out, capacity, "%s.mural%s%s", output, name[0] != '\0' ? "/" : "", name);
    must(wrote > 0 && (size_t)wrote < capacity);
}

/* ------------------------------------------------------------------------------------ plan */

static void hex(char out[17], uint64_t hash)
{
    (void)snprintf(out, 17, "%016llx", (unsigned long long)hash);
}

static json_t *grid_json(const struct grid *grid)
{
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i}", "columns", (int)grid->cols, "rows",
                     (int)grid->rows, "tile_width", grid->tile_w_px, "tile_height", grid->tile_h_px,
                     "width", grid->canvas_w_px, "height", grid->canvas_h_px);
}

/* What this run would write as the first record. */
static int make_plan(json_t **out, const struct render_request *request, struct err *err)
{
    int     rc = ERR_OK;
    char    model[17], noise[17];
    json_t *settings = NULL, *plan = NULL;

    TRY(config_kept_json(&settings, request->used, err));
    hex(model, request->model_identity);
    plan = json_pack("{s:s, s:O, s:b, s:s, s:s, s:o}", "program", request->software, "settings",
                     settings, "overwrite", request->config->overwrite, "model", model, "numeric",
                     request->numeric, "grid", grid_json(&request->plan->grid));
    if (plan == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory for the journal");
    if (request->config->noise_file[0] != '\0') {
        uint64_t hash, bytes;
        TRY(hash64_file(&hash, &bytes, request->config->noise_file, err));
        hex(noise, hash);
        if (json_object_set_new(plan, "noise", json_string(noise)) != 0)
            RAISE(err, ERR_HOST_MEM, 0, "no memory for the journal");
    }
    *out = plan;
    plan = NULL;
out:
    json_decref(settings);
    json_decref(plan);
    return rc;
}

struct differences {
    char   text[384];
    size_t used;
};

static void add_difference(struct differences *all, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void add_difference(struct differences *all, const char *format, ...)
{
    va_list args;
    char    one[sizeof all->text];

    va_start(args, format);
    (void)vsnprintf(one, sizeof one, format, args);
    va_end(args);
    (void)snprintf(all->text + all->used, sizeof all->text - all->used, "%s%s",
                   all->used > 0 ? ", " : "", one);
    all->used = strlen(all->text);
}

static const char *word_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "none";
}

/* What keeps the tiles of `there` from being tiles of `here`; empty: nothing. */
static void compare(struct differences *out, const json_t *there, const json_t *here)
{
    static const struct {
        const char *key, *name;
    } words[] = {{"model", "the content of the model"},
                 {"numeric", "the arithmetic"},
                 {"noise", "the content of the noise file"}};
    char settings[sizeof out->text];

    *out = (struct differences){.used = 0};
    if (config_kept_differences(settings, sizeof settings, json_object_get(there, "settings"),
                                json_object_get(here, "settings")) > 0)
        add_difference(out, "%s", settings);
    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        const char *one = word_of(there, words[i].key), *other = word_of(here, words[i].key);
        if (strcmp(one, other) != 0)
            add_difference(out, "%s is %s there and %s here", words[i].name, one, other);
    }
    if (out->used == 0 &&
        !json_equal(json_object_get(there, "grid"), json_object_get(here, "grid")))
        add_difference(out, "the canvas is cut into other tiles");
}

/* ----------------------------------------------------------------------------------- recall */

int render_recall(struct config_words *out, const char *output, struct err *err)
{
    int     rc = ERR_OK;
    char    path[1200];
    json_t *plan = NULL;

    path_in(path, sizeof path, output, "journal");
    TRY(journal_peek(&plan, NULL, path, err));
    if (plan == NULL)
        RAISE(err, ERR_USAGE, 0, "nothing is known of '%s': '%s' %s; use 'mural render'", output,
              path, os_is_file(path) ? "is damaged from its first line on" : "does not exist");
    TRY(config_kept_words(out, json_object_get(plan, "settings"), path, err));
    if (json_is_true(json_object_get(plan, "overwrite")))
        TRY(config_words_add(out, "overwrite=true", err));
out:
    json_decref(plan);
    return rc;
}

/* ----------------------------------------------------------------------------------- tiles */

/* A number of up to nine digits at *at, which moves behind it; 0 when there is none. */
static uint32_t take_number(const char **at)
{
    size_t   digits = strspn(*at, "0123456789");
    uint32_t value = 0;

    for (size_t i = 0; i < digits && digits < 10; i++)
        value = value * 10 + (uint32_t)((*at)[i] - '0');
    *at += digits;
    return value;
}

/* "3,7-9" as one bool for each tile, freed by os_free. */
static int choose_tiles(bool **out, const char *list, const struct grid *grid, struct err *err)
{
    int         rc = ERR_OK;
    uint32_t    count = (uint32_t)grid_count(grid);
    const char *at = list;
    bool       *chosen = NULL;

    TRY(os_alloc((void **)&chosen, count, sizeof *chosen, "a list of tiles", err));
    do {
        uint32_t first = take_number(&at), last = first;
        if (*at == '-') {
            at++;
            last = take_number(&at);
        }
        if ((*at != '\0' && *at != ',') || first < 1 || last < first || last > count)
            RAISE(err, ERR_USAGE, 0,
                  "tiles is '%.64s' but must be a list such as 3,7-9 of numbers 1..%u", list,
                  count);
        memset(chosen + first - 1, true, (last - first + 1) * sizeof *chosen);
    } while (*at++ == ',');
    *out = chosen;
    chosen = NULL;
out:
    os_free(chosen);
    return rc;
}

/* --------------------------------------------------------------------------------- opening */

/* What stands under the output's name. */
enum standing {
    STANDS_OTHER = 0, /* nothing, or a file that the journal does not know               */
    STANDS_BEFORE,    /* this poster, from before some of its tiles were to be another's */
    STANDS_FINISHED   /* what the journal's last record says                             */
};

static enum standing find_standing(const struct journal_facts *facts, const char *output)
{
    struct err ignored = {0};
    uint64_t   hash, bytes;

    if (facts->output_bytes == 0 || !os_is_file(output) ||
        hash64_file(&hash, &bytes, output, &ignored) != ERR_OK)
        return STANDS_OTHER;
    if (bytes == facts->output_bytes && hash == facts->output_hash)
        return facts->finished ? STANDS_FINISHED : STANDS_BEFORE;
    return bytes == facts->earlier_bytes && hash == facts->earlier_hash ? STANDS_BEFORE
                                                                        : STANDS_OTHER;
}

static int start_over(struct store *store, json_t *plan, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t tiles = (uint32_t)grid_count(&store->request->plan->grid);

    journal_close(store->journal);
    store->journal = NULL;
    TRY(os_remove(store->journal_path, err)); /* before the files that it vouches for */
    spool_clear(store->spool);
    store->fresh = true;
    TRY(os_sync_folder(store->folder, err)); /* its own name, without which all in it is lost */
    TRY(journal_create(&store->journal, store->journal_path, tiles, plan, err));
out:
    return rc;
}

/* Hash again what the journal vouches for, so that a disk's mistake is repaired and not printed. */
static int verify_tiles(struct store *store, struct meter *meter, struct err *err)
{
    int                   rc = ERR_OK;
    struct journal_facts *facts = journal_facts(store->journal);

    meter->now.phase = "checking";
    for (uint32_t i = 0; i < facts->tile_count; i++) {
        struct tile_fact *tile = &facts->tiles[i];
        char              name[TILE_NAME_BYTES];
        TRY(meter_advance(meter, 0, err));
        if (tile->status != TILE_DONE && tile->status != TILE_FILLED) continue;
        if (spool_holds(store->spool, i + 1, tile->hash)) continue;
        log_line(LOG_WARN, "%s is not on the disk as it was painted and is painted again",
                 tile_name(name, &store->request->plan->grid, i + 1));
        tile->status = TILE_MISSING;
    }
out:
    return rc;
}

static bool may_start_over(const struct render_request *request)
{
    return request->mode == RENDER_BEGIN && request->config->overwrite;
}

/* ERR_USAGE, with every difference, when the run `here` must not go on with what `there` began. */
static int check_same(const struct render_request *request, const json_t *there, const json_t *here,
                      struct err *err)
{
    int                rc = ERR_OK;
    struct differences found;

    compare(&found, there, here);
    if (found.used > 0)
        RAISE(err, ERR_USAGE, 0,
              "'%s.mural' holds tiles of another poster: %s; use what was used there, or %s",
              request->config->output, found.text,
              request->mode == RENDER_BEGIN ? "start over with --overwrite"
                                            : "remove it and render anew");
out:
    return rc;
}

/* What is there in place of the poster is replaced only when that was asked for. */
static int check_free(const struct config *config, struct err *err)
{
    int rc = ERR_OK;

    if (!config->overwrite && os_is_file(config->output))
        RAISE(err, ERR_USAGE, 0, "'%s' exists; add --overwrite, or name another file with -o",
              config->output);
out:
    return rc;
}

static int go_on(struct store *store, const json_t *there, json_t *here, struct err *err)
{
    int                  rc = ERR_OK;
    const struct config *config = store->request->config;
    uint32_t             tiles = (uint32_t)grid_count(&store->request->plan->grid);
    struct err           difference = {0};
    enum standing        standing;

    if (check_same(store->request, there, here, &difference) != ERR_OK) {
        if (may_start_over(store->request)) return start_over(store, here, err);
        *err = difference;
        return (int)err->code;
    }
    TRY(journal_open(&store->journal, store->journal_path, tiles, err));
    standing = find_standing(journal_facts(store->journal), config->output);
    store->complete = standing == STANDS_FINISHED;
    if (store->complete && may_start_over(store->request)) {
        store->complete = false;
        return start_over(store, here, err);
    }
    if (store->request->mode == RENDER_RETRY) {
        if (standing == STANDS_OTHER && journal_facts(store->journal)->finished)
            log_line(LOG_WARN, "'%s' is not the file that '%s' speaks of; it will be replaced",
                     config->output, store->folder);
        store->complete = false;
    } else if (standing == STANDS_OTHER) {
        TRY(check_free(config, err));
    }
out:
    return rc;
}

static int open_parts(struct store *store, struct err *err)
{
    int     rc = ERR_OK;
    json_t *there = NULL, *here = NULL;

    TRY(spool_open(&store->spool, store->folder, &store->request->plan->grid, err));
    TRY(make_plan(&here, store->request, err));
    TRY(journal_peek(&there, NULL, store->journal_path, err));
    if (there == NULL && os_is_file(store->journal_path))
        log_line(LOG_WARN,
                 "'%s' is damaged from its first line on: nothing that it spoke of can be trusted, "
                 "and all of it is painted again",
                 store->journal_path);
    if (there != NULL)
        TRY(go_on(store, there, here, err));
    else
        TRY(start_over(store, here, err));
out:
    json_decref(there);
    json_decref(here);
    return rc;
}

int store_open(struct store **out, const struct render_request *request, struct meter *meter,
               struct err *err)
{
    int           rc = ERR_OK;
    const char   *output = request->config->output;
    struct store *store = NULL;

    TRY(os_alloc((void **)&store, 1, sizeof *store, "the tile store", err));
    store->request = request;
    path_in(store->folder, sizeof store->folder, output, "");
    path_in(store->journal_path, sizeof store->journal_path, output, "journal");
    TRY(lock_take(&store->lock, store->folder, output, err));
    TRY(open_parts(store, err));
    /* What is there now was looked at; what comes later is somebody's. */
    store->replaces = request->config->overwrite || os_is_file(output);
    if (!store->fresh && !store->complete) TRY(verify_tiles(store, meter, err));
    *out = store;
    store = NULL;
out:
    store_close(store, false);
    return rc;
}

int render_check(const struct render_request *request, bool *finished_out, struct err *err)
{
    int                  rc = ERR_OK;
    char                 path[1200];
    json_t              *there = NULL, *here = NULL;
    bool                *chosen = NULL;
    const struct config *config = request->config;
    struct journal_facts facts = {.tile_count = 0};
    enum standing        standing;

    *finished_out = false;
    path_in(path, sizeof path, config->output, "journal");
    TRY(make_plan(&here, request, err));
    TRY(journal_facts_init(&facts, (uint32_t)grid_count(&request->plan->grid), err));
    TRY(journal_peek(&there, &facts, path, err));
    if (request->mode == RENDER_RETRY)
        TRY(choose_tiles(&chosen, request->again.tiles, &request->plan->grid, err));
    if (may_start_over(request)) goto out;
    if (there != NULL) TRY(check_same(request, there, here, err));
    if (request->mode == RENDER_RETRY) goto out;
    standing = find_standing(&facts, config->output);
    *finished_out = there != NULL ? standing == STANDS_FINISHED : provenance_fits(request->used);
    if (!*finished_out && standing == STANDS_OTHER) TRY(check_free(config, err));
out:
    journal_facts_fini(&facts);
    json_decref(there);
    json_decref(here);
    os_free(chosen);
    return rc;
}

/* --------------------------------------------------------------------------------- closing */

static void remove_all(struct store *store)
{
    struct err ignored = {0};

    (void)os_remove(store->journal_path, &ignored); /* before the files that it vouches for */
    spool_clear(store->spool);
    lock_release(store->lock, true);
    store->lock = NULL;
    if (os.rmdir(store->folder) != 0)
        log_line(LOG_WARN, "the folder '%s' stays: something else is in it", store->folder);
}

void store_close(struct store *store, bool remove)
{
    if (store == NULL) return;
    /* A run that ended before anything was finished leaves nothing to go on with. */
    if (remove ||
        (store->fresh && (store->journal == NULL || !journal_facts(store->journal)->has_guide)))
        remove_all(store);
    journal_close(store->journal);
    spool_close(store->spool);
    lock_release(store->lock, false);
    os_free(store);
}

/* --------------------------------------------------------------------------------- questions */

uint32_t store_count(const struct store *store, enum tile_status status)
{
    const struct journal_facts *facts = journal_facts(store->journal);
    uint32_t                    count = 0;

    for (uint32_t i = 0; i < facts->tile_count; i++)
        if (facts->tiles[i].status == status) count++;
    return count;
}

/* ----------------------------------------------------------------------------------- retry */

int store_forget(struct store *store, struct err *err)
{
    int                        rc = ERR_OK;
    const struct render_again *again = &store->request->again;
    uint32_t                   count = journal_facts(store->journal)->tile_count;
    bool                      *chosen = NULL;
    struct journal_again       record = {.has_seed = again->seed != NULL,
                                         .seed = again->seed != NULL ? *again->seed : 0,
                                         .prompt = again->prompt};

    TRY(choose_tiles(&chosen, again->tiles, &store->request->plan->grid, err));
    for (uint32_t i = 0; i < count; i++)
        if (chosen[i]) TRY(journal_add_again(store->journal, i + 1, &record, err));
out:
    os_free(chosen);
    return rc;
}
