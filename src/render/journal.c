/*
 * journal.c - what is finished of a poster, in a form that survives power loss.
 *
 * Owns the file `<output>.mural/journal`: lines that are only ever added,
 *
 *     16 hex digits   XXH3 of the JSON text, seeded with the hash of the line before (first: 0)
 *     one space
 *     JSON text       one object, ASCII or UTF-8, no newline in it
 *     newline
 *
 * "is" tells what a record speaks of; numbers of tiles count from 1 in reading order; hashes are 16
 * hex digits; what a reader does not know it skips:
 *
 *     {"is":"plan","format":1,"program":..,"settings":{..},"overwrite":..,"model":..,"numeric":..,
 *      "grid":{..},"noise":..}                   the first record, and no other is a plan
 *     {"is":"guide","width":..,"height":..,"hash":..}   guide.rgb16 is on the disk; with another
 *                                                hash than before, all tiles are forgotten
 *     {"is":"tile","tile":7,"hash":..,"attempts":1,"seconds":{..}}
 *                                                tile-7.rgb16 is on the disk; seconds are of its
 *                                                last attempt, and a step that several tiles took
 *                                                together counts for each by an equal part, so that
 *                                                those of all tiles add up to the painters' time.
 *                                                Where a GPU's memory was used it has also
 *       "memory":{"utilisation":..,"fragmentation":..,"idle":..,"live":..,"placed":..,"mapped":..,
 *       "device":..,"calls":{"create":..,"map":..,"access":..,"unmap":..,"release":..,"settle":..},
 *       "link":..,"stall":..}                     shares and highest bytes from the beginning of
 * its group of tiles to its own end, as memory.h has them; the driver's calls, bytes over the link
 * and seconds that the GPU waited for those, since the tile of that group before, so that they add
 * up
 *     {"is":"filled","tile":7,"hash":..}         the same, but cut from the enlarged guide
 *     {"is":"failed","tile":7,"attempts":4,"why":".."}
 *     {"is":"again","tile":7,"seed":..,"prompt":".."}
 *                                                to be painted again; seed, prompt: optional
 *     {"is":"finished","bytes":..,"hash":..}     the output, complete, is about to appear
 *
 * The hash of each line is seeded by the one before, so the first bad line ends the log: what
 * follows was never promised.  A line is added, and brought to the disk, only after the bytes it
 * speaks of were.  Hence a run that goes on may trust every good line, and must redo all else.
 *
 * Knows nothing of pixels or painters.  Belongs to one thread at a time.  Adding a line allocates
 * nothing, but for `again`.
 *
 * Read next: store.c, which decides what to do with the facts.
 */
#include "render/render_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FORMAT = 1,
    HASH_DIGITS = 16,
    /* The longest is a plan: a prompt whose bytes all need escapes, and some paths. */
    LINE_MAX_BYTES = 256 * 1024
};
static const uint64_t FILE_MAX_BYTES = UINT64_C(1) << 32;

struct journal {
    char                 path[1200];
    int                  fd;
    uint64_t             bytes; /* of good lines; the next one goes there */
    uint64_t             hash;  /* of the last good line */
    struct journal_facts facts;
    char                 line[LINE_MAX_BYTES];
};

/* ----------------------------------------------------------------------------------- facts */

int journal_facts_init(struct journal_facts *facts, uint32_t tile_count, struct err *err)
{
    *facts = (struct journal_facts){.tile_count = tile_count};
    return os_alloc((void **)&facts->tiles, tile_count, sizeof *facts->tiles, "the list of tiles",
                    err);
}

void journal_facts_fini(struct journal_facts *facts)
{
    for (uint32_t i = 0; facts->tiles != NULL && i < facts->tile_count; i++)
        os_free(facts->tiles[i].prompt);
    os_free(facts->tiles);
    *facts = (struct journal_facts){.tile_count = 0};
}

static void set_guide(struct journal_facts *facts, const struct journal_guide *guide)
{
    bool same = facts->has_guide && facts->guide.hash == guide->hash;

    for (uint32_t i = 0; i < facts->tile_count && !same; i++)
        facts->tiles[i].status = TILE_MISSING;
    facts->has_guide = true;
    facts->guide = *guide;
    facts->finished = false;
}

static void set_tile(struct journal_facts *facts, uint32_t number, enum tile_status status,
                     uint64_t hash)
{
    facts->tiles[number - 1].status = status;
    facts->tiles[number - 1].hash = hash;
    facts->finished = false;
}

static int set_again(struct journal_facts *facts, uint32_t number,
                     const struct journal_again *again, struct err *err)
{
    int               rc = ERR_OK;
    struct tile_fact *tile = &facts->tiles[number - 1];
    char             *copy = NULL;

    if (again->prompt != NULL) TRY(text_copy(&copy, again->prompt, "a prompt", err));
    os_free(tile->prompt);
    tile->prompt = copy;
    tile->has_seed = again->has_seed;
    tile->seed = again->seed;
    set_tile(facts, number, TILE_MISSING, 0);
out:
    return rc;
}

/* --------------------------------------------------------------------------------- reading */

static bool read_hex(uint64_t *out, const char *text, size_t length)
{
    uint64_t value = 0;

    if (length != HASH_DIGITS) return false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        int  digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) return false;
        value = value << 4 | (uint64_t)digit;
    }
    *out = value;
    return true;
}

bool journal_get_hash(uint64_t *out, const json_t *record, const char *key)
{
    const json_t *value = json_object_get(record, key);

    return json_is_string(value) &&
           read_hex(out, json_string_value(value), json_string_length(value));
}

static bool get_whole(int64_t *out, const json_t *record, const char *key, int64_t least,
                      int64_t most)
{
    const json_t *value = json_object_get(record, key);

    if (!json_is_integer(value)) return false;
    *out = json_integer_value(value);
    return *out >= least && *out <= most;
}

static bool take_guide(struct journal_facts *facts, const json_t *record)
{
    struct journal_guide guide;
    int64_t              w, h;

    if (!get_whole(&w, record, "width", 1, IMAGE_SIDE_MAX_PX) ||
        !get_whole(&h, record, "height", 1, IMAGE_SIDE_MAX_PX) || w * h > IMAGE_PIXELS_MAX ||
        !journal_get_hash(&guide.hash, record, "hash"))
        return false;
    guide.w = (int32_t)w;
    guide.h = (int32_t)h;
    set_guide(facts, &guide);
    return true;
}

static bool take_again(struct journal_facts *facts, const json_t *record, uint32_t number,
                       struct err *err)
{
    const json_t        *prompt = json_object_get(record, "prompt");
    struct journal_again again = {.has_seed = json_object_get(record, "seed") != NULL};
    int64_t              seed = 0;

    if (again.has_seed && !get_whole(&seed, record, "seed", 0, INT64_MAX)) return false;
    if (prompt != NULL && !json_is_string(prompt)) return false;
    again.seed = (uint64_t)seed;
    again.prompt = json_string_value(prompt);
    return set_again(facts, number, &again, err) == ERR_OK;
}

static bool take_finished(struct journal_facts *facts, const json_t *record)
{
    int64_t bytes;

    if (!get_whole(&bytes, record, "bytes", 0, INT64_MAX) ||
        !journal_get_hash(&facts->output_hash, record, "hash"))
        return false;
    facts->output_bytes = (uint64_t)bytes;
    facts->finished = true;
    return true;
}

/* False: a record that no writer of ours would have written, or (err set) no memory. */
static bool take_record(struct journal_facts *facts, const json_t *record, struct err *err)
{
    const char *is = json_string_value(json_object_get(record, "is"));
    int64_t     number = 0;
    uint64_t    hash = 0;

    if (is == NULL || strcmp(is, "plan") == 0) return false;
    if (strcmp(is, "guide") == 0) return take_guide(facts, record);
    if (strcmp(is, "finished") == 0) return take_finished(facts, record);
    if (strcmp(is, "tile") != 0 && strcmp(is, "filled") != 0 && strcmp(is, "failed") != 0 &&
        strcmp(is, "again") != 0)
        return true;
    if (!get_whole(&number, record, "tile", 1, facts->tile_count)) return false;
    if (strcmp(is, "again") == 0) return take_again(facts, record, (uint32_t)number, err);
    if (strcmp(is, "failed") != 0 && !journal_get_hash(&hash, record, "hash")) return false;
    set_tile(facts, (uint32_t)number,
             strcmp(is, "tile") == 0     ? TILE_DONE
             : strcmp(is, "filled") == 0 ? TILE_FILLED
                                         : TILE_FAILED,
             hash);
    return true;
}

/* The JSON of the good line at text[0..bytes), or NULL; its length and hash. */
static json_t *take_line(const char *text, size_t bytes, uint64_t seed, size_t *length_out,
                         uint64_t *hash_out)
{
    const char *end = memchr(text, '\n', bytes < LINE_MAX_BYTES ? bytes : LINE_MAX_BYTES);
    size_t      json_bytes;

    if (end == NULL || end - text < HASH_DIGITS + 2 || text[HASH_DIGITS] != ' ') return NULL;
    json_bytes = (size_t)(end - text) - HASH_DIGITS - 1;
    if (!read_hex(hash_out, text, HASH_DIGITS) ||
        *hash_out != hash64(text + HASH_DIGITS + 1, json_bytes, seed))
        return NULL;
    *length_out = (size_t)(end - text) + 1;
    return json_loadb(text + HASH_DIGITS + 1, json_bytes, JSON_REJECT_DUPLICATES, NULL);
}

static int check_plan(const json_t *plan, const char *path, struct err *err)
{
    int           rc = ERR_OK;
    const json_t *is = json_object_get(plan, "is"), *format = json_object_get(plan, "format");

    if (!json_is_string(is) || strcmp(json_string_value(is), "plan") != 0 ||
        !json_is_integer(format) || json_integer_value(format) < 1)
        RAISE(err, ERR_FORMAT, 0, "'%s' is no journal of mural; remove its folder to start over",
              path);
    if (json_integer_value(format) > FORMAT)
        RAISE(err, ERR_FORMAT, 0,
              "'%s' was written by a newer mural (format %lld, this one knows %d); go on with that "
              "one",
              path, (long long)json_integer_value(format), FORMAT);
out:
    return rc;
}

int journal_parse(struct journal_end *end_out, json_t **plan_out, struct journal_facts *facts,
                  const struct journal_text *text, struct err *err)
{
    int     rc = ERR_OK;
    size_t  length = 0;
    json_t *record = NULL;

    *end_out = (struct journal_end){.bytes = 0};
    *plan_out = take_line(text->data, text->bytes, 0, &length, &end_out->hash);
    if (*plan_out == NULL) goto out;
    TRY(check_plan(*plan_out, text->path, err));
    for (end_out->bytes = length; facts != NULL; end_out->bytes += length) {
        struct err shortage = {.code = ERR_OK};
        uint64_t   hash;
        bool       good;
        record = take_line(text->data + end_out->bytes, text->bytes - end_out->bytes, end_out->hash,
                           &length, &hash);
        good = record != NULL && take_record(facts, record, &shortage);
        json_decref(record);
        if (shortage.code != ERR_OK) {
            *err = shortage;
            rc = (int)shortage.code;
            goto out;
        }
        if (!good) break;
        end_out->hash = hash;
    }
out:
    if (rc != ERR_OK) {
        json_decref(*plan_out);
        *plan_out = NULL;
    }
    return rc;
}

int journal_peek(json_t **plan_out, struct journal_facts *facts, const char *path, struct err *err)
{
    int                 rc = ERR_OK;
    char               *data = NULL;
    struct journal_text text = {.path = path};
    struct journal_end  end;

    *plan_out = NULL;
    if (!os_is_file(path)) goto out;
    TRY(os_read_text(&data, &text.bytes, path, FILE_MAX_BYTES, err));
    text.data = data;
    TRY(journal_parse(&end, plan_out, facts, &text, err));
out:
    os_free(data);
    return rc;
}

/* --------------------------------------------------------------------------------- opening */

static int open_file(struct journal **out, const char *path, uint32_t tile_count, struct err *err)
{
    int             rc = ERR_OK, wrote;
    struct journal *journal = NULL;

    TRY(os_alloc((void **)&journal, 1, sizeof *journal, "the journal", err));
    journal->fd = -1;
    wrote = snprintf(journal->path, sizeof journal->path, "%s", path);
    must(wrote > 0 && (size_t)wrote < sizeof journal->path);
    TRY(journal_facts_init(&journal->facts, tile_count, err));
    TRY(os_open_update(&journal->fd, path, err));
    *out = journal;
    journal = NULL;
out:
    journal_close(journal);
    return rc;
}

int journal_open(struct journal **out, const char *path, uint32_t tile_count, struct err *err)
{
    int                 rc = ERR_OK;
    struct journal     *journal = NULL;
    char               *data = NULL;
    struct journal_text text = {.path = path};
    struct journal_end  end;
    json_t             *plan = NULL;

    TRY(open_file(&journal, path, tile_count, err));
    TRY(os_read_text(&data, &text.bytes, path, FILE_MAX_BYTES, err));
    text.data = data;
    TRY(journal_parse(&end, &plan, &journal->facts, &text, err));
    if (end.bytes < text.bytes) {
        log_line(LOG_WARN, "'%s': the last %llu bytes are no whole records and are dropped", path,
                 (unsigned long long)(text.bytes - end.bytes));
        TRY(os_truncate(journal->fd, end.bytes, path, err));
        TRY(os_sync(journal->fd, path, err));
    }
    journal->bytes = end.bytes;
    journal->hash = end.hash;
    *out = journal;
    journal = NULL;
out:
    json_decref(plan);
    os_free(data);
    journal_close(journal);
    return rc;
}

void journal_close(struct journal *journal)
{
    if (journal == NULL) return;
    if (journal->fd >= 0) (void)os.close(journal->fd);
    journal_facts_fini(&journal->facts);
    os_free(journal);
}

struct journal_facts *journal_facts(struct journal *journal)
{
    return &journal->facts;
}

/* --------------------------------------------------------------------------------- writing */

/* Add the line whose JSON text stands at line + HASH_DIGITS + 1, and bring it to the disk.  A line
 * that failed half-way is written over by the next one. */
static int append(struct journal *journal, struct err *err)
{
    int      rc = ERR_OK;
    char    *json = journal->line + HASH_DIGITS + 1, digits[HASH_DIGITS + 1];
    size_t   bytes = strlen(json);
    uint64_t hash = hash64(json, bytes, journal->hash);

    must(bytes + HASH_DIGITS + 2 < sizeof journal->line);
    (void)snprintf(digits, sizeof digits, "%016llx", (unsigned long long)hash);
    memcpy(journal->line, digits, HASH_DIGITS);
    journal->line[HASH_DIGITS] = ' ';
    json[bytes] = '\n';
    bytes += HASH_DIGITS + 2;
    TRY(os_write_at(journal->fd, journal->bytes, journal->line, bytes, journal->path, err));
    TRY(os_sync(journal->fd, journal->path, err));
    journal->bytes += bytes;
    journal->hash = hash;
out:
    return rc;
}

static void say(struct journal *journal, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void say(struct journal *journal, const char *format, ...)
{
    const size_t room = sizeof journal->line - HASH_DIGITS - 3;
    va_list      args;
    int          wrote;

    va_start(args, format);
    wrote = vsnprintf(journal->line + HASH_DIGITS + 1, room, format, args);
    va_end(args);
    must(wrote > 0 && (size_t)wrote < room);
}

static int say_json(struct journal *journal, const json_t *record, struct err *err)
{
    int   rc = ERR_OK;
    char *text = json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(17));

    if (text == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory for a record of the journal");
    if (strlen(text) + HASH_DIGITS + 3 >= sizeof journal->line)
        RAISE(err, ERR_USAGE, 0, "'%s': a record of %zu bytes is too long; use shorter settings",
              journal->path, strlen(text));
    say(journal, "%s", text);
out:
    free(text);
    return rc;
}

/* The inside of a JSON string, without allocating: what is not plain ASCII becomes '?'. */
static const char *plain(char *out, size_t capacity, const char *text)
{
    size_t used = 0;

    for (; *text != '\0' && used + 3 < capacity; text++) {
        if (*text == '"' || *text == '\\') out[used++] = '\\';
        out[used++] = *text >= 0x20 && *text < 0x7F ? *text : '?';
    }
    out[used] = '\0';
    return out;
}

int journal_create(struct journal **out, const char *path, uint32_t tile_count, json_t *plan,
                   struct err *err)
{
    int             rc = ERR_OK;
    struct journal *journal = NULL;

    TRY(open_file(&journal, path, tile_count, err));
    TRY(os_truncate(journal->fd, 0, path, err));
    if (json_object_set_new(plan, "is", json_string("plan")) != 0 ||
        json_object_set_new(plan, "format", json_integer(FORMAT)) != 0)
        RAISE(err, ERR_HOST_MEM, 0, "no memory for the journal");
    TRY(say_json(journal, plan, err));
    TRY(append(journal, err));
    TRY(os_sync_folder(path, err));
    *out = journal;
    journal = NULL;
out:
    journal_close(journal);
    return rc;
}

int journal_add_guide(struct journal *journal, const struct journal_guide *guide, struct err *err)
{
    int rc = ERR_OK;

    say(journal, "{\"is\":\"guide\",\"width\":%d,\"height\":%d,\"hash\":\"%016llx\"}", guide->w,
        guide->h, (unsigned long long)guide->hash);
    TRY(append(journal, err));
    set_guide(&journal->facts, guide);
out:
    return rc;
}

/* As a member of a record, with the comma before it. */
static const char *memory_words(char *out, size_t capacity, const struct memory_use *use)
{
    static const char *const names[MEMORY_CALLS] = {
        [MEMORY_CREATE] = "create", [MEMORY_MAP] = "map",         [MEMORY_ACCESS] = "access",
        [MEMORY_UNMAP] = "unmap",   [MEMORY_RELEASE] = "release", [MEMORY_SETTLE] = "settle"};
    char   calls[MEMORY_CALLS * 40] = "";
    size_t used = 0;
    int    wrote;

    out[0] = '\0';
    if (use == NULL) return out;
    for (int call = 0; call < MEMORY_CALLS; call++)
        used += (size_t)snprintf(calls + used, sizeof calls - used, "%s\"%s\":%llu",
                                 call == 0 ? "" : ",", names[call],
                                 (unsigned long long)use->calls[call]);
    wrote = snprintf(out, capacity,
                     ",\"memory\":{\"utilisation\":%.4f,\"fragmentation\":%.4f,\"idle\":%.4f,"
                     "\"live\":%llu,\"placed\":%llu,\"mapped\":%llu,\"device\":%llu,"
                     "\"calls\":{%s},\"link\":%llu,\"stall\":%.6f}",
                     memory_utilisation(use), memory_internal_fragmentation(use), use->idle_share,
                     (unsigned long long)use->peak_live, (unsigned long long)use->peak_placed,
                     (unsigned long long)use->peak_mapped, (unsigned long long)use->peak_device,
                     calls, (unsigned long long)use->link_bytes, use->stall_seconds);
    must(wrote > 0 && (size_t)wrote < capacity);
    return out;
}

int journal_add_tile(struct journal *journal, const struct journal_tile *tile, struct err *err)
{
    int  rc = ERR_OK;
    char memory[1024];

    say(journal,
        "{\"is\":\"tile\",\"tile\":%u,\"hash\":\"%016llx\",\"attempts\":%u,\"seconds\":"
        "{\"encode\":%.3f,\"steps\":%.3f,\"decode\":%.3f,\"store\":%.3f}%s}",
        tile->number, (unsigned long long)tile->hash, tile->attempts, tile->encode_seconds,
        tile->step_seconds, tile->decode_seconds, tile->store_seconds,
        memory_words(memory, sizeof memory, tile->memory));
    TRY(append(journal, err));
    set_tile(&journal->facts, tile->number, TILE_DONE, tile->hash);
out:
    return rc;
}

int journal_add_filled(struct journal *journal, uint32_t number, uint64_t hash, struct err *err)
{
    int rc = ERR_OK;

    say(journal, "{\"is\":\"filled\",\"tile\":%u,\"hash\":\"%016llx\"}", number,
        (unsigned long long)hash);
    TRY(append(journal, err));
    set_tile(&journal->facts, number, TILE_FILLED, hash);
out:
    return rc;
}

int journal_add_failed(struct journal *journal, uint32_t number, uint32_t attempts, const char *why,
                       struct err *err)
{
    int  rc = ERR_OK;
    char text[1200];

    say(journal, "{\"is\":\"failed\",\"tile\":%u,\"attempts\":%u,\"why\":\"%s\"}", number, attempts,
        plain(text, sizeof text, why));
    TRY(append(journal, err));
    set_tile(&journal->facts, number, TILE_FAILED, 0);
out:
    return rc;
}

int journal_add_again(struct journal *journal, uint32_t number, const struct journal_again *again,
                      struct err *err)
{
    int     rc = ERR_OK;
    json_t *record = json_pack("{s:s, s:I}", "is", "again", "tile", (json_int_t)number);

    if (record == NULL ||
        (again->has_seed &&
         json_object_set_new(record, "seed", json_integer((json_int_t)again->seed)) != 0) ||
        (again->prompt != NULL &&
         json_object_set_new(record, "prompt", json_string(again->prompt)) != 0))
        RAISE(err, ERR_HOST_MEM, 0, "no memory for a record of the journal");
    TRY(say_json(journal, record, err));
    TRY(append(journal, err));
    TRY(set_again(&journal->facts, number, again, err));
out:
    json_decref(record);
    return rc;
}

int journal_add_finished(struct journal *journal, uint64_t bytes, uint64_t hash, struct err *err)
{
    int rc = ERR_OK;

    say(journal, "{\"is\":\"finished\",\"bytes\":%llu,\"hash\":\"%016llx\"}",
        (unsigned long long)bytes, (unsigned long long)hash);
    TRY(append(journal, err));
    journal->facts.finished = true;
    journal->facts.output_bytes = bytes;
    journal->facts.output_hash = hash;
out:
    return rc;
}
