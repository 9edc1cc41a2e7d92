/*
 * journal_read.c - what the lines of a journal say, all of them together.
 *
 * Owns the reading of lines, up to the first that is no line of ours, and the facts: which tiles
 * are done, and what is told of the others.  The format is told in journal.c.  Writes nothing.
 *
 * Read next: journal.c.
 */
#include "render/journal_int.h"

#include <string.h>

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

void journal_set_guide(struct journal_facts *facts, const struct journal_guide *guide)
{
    bool same = facts->has_guide && facts->guide.hash == guide->hash;

    for (uint32_t i = 0; i < facts->tile_count && !same; i++)
        facts->tiles[i].status = TILE_MISSING;
    facts->has_guide = true;
    facts->guide = *guide;
    facts->finished = false;
}

void journal_set_tile(struct journal_facts *facts, uint32_t number, enum tile_status status,
                      uint64_t hash)
{
    facts->tiles[number - 1].status = status;
    facts->tiles[number - 1].hash = hash;
    facts->finished = false;
}

void journal_set_finished(struct journal_facts *facts, uint64_t bytes, uint64_t hash)
{
    facts->finished = true;
    if (bytes == facts->output_bytes && hash == facts->output_hash) return;
    facts->earlier_bytes = facts->output_bytes;
    facts->earlier_hash = facts->output_hash;
    facts->output_bytes = bytes;
    facts->output_hash = hash;
}

int journal_set_again(struct journal_facts *facts, uint32_t number,
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
    journal_set_tile(facts, number, TILE_MISSING, 0);
out:
    return rc;
}

/* --------------------------------------------------------------------------------- reading */

static bool read_hex(uint64_t *out, const char *text, size_t length)
{
    uint64_t value = 0;

    if (length != JOURNAL_HASH_DIGITS) return false;
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
    journal_set_guide(facts, &guide);
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
    return journal_set_again(facts, number, &again, err) == ERR_OK;
}

static bool take_finished(struct journal_facts *facts, const json_t *record)
{
    int64_t  bytes;
    uint64_t hash;

    if (!get_whole(&bytes, record, "bytes", 0, INT64_MAX) ||
        !journal_get_hash(&hash, record, "hash"))
        return false;
    journal_set_finished(facts, (uint64_t)bytes, hash);
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
    journal_set_tile(facts, (uint32_t)number,
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
    const char *end =
        memchr(text, '\n', bytes < JOURNAL_LINE_MAX_BYTES ? bytes : JOURNAL_LINE_MAX_BYTES);
    size_t json_bytes;

    if (end == NULL || end - text < JOURNAL_HASH_DIGITS + 2 || text[JOURNAL_HASH_DIGITS] != ' ')
        return NULL;
    json_bytes = (size_t)(end - text) - JOURNAL_HASH_DIGITS - 1;
    if (!read_hex(hash_out, text, JOURNAL_HASH_DIGITS) ||
        *hash_out != hash64(text + JOURNAL_HASH_DIGITS + 1, json_bytes, seed))
        return NULL;
    *length_out = (size_t)(end - text) + 1;
    return json_loadb(text + JOURNAL_HASH_DIGITS + 1, json_bytes, JSON_REJECT_DUPLICATES, NULL);
}

static int check_plan(const json_t *plan, const char *path, struct err *err)
{
    int           rc = ERR_OK;
    const json_t *is = json_object_get(plan, "is"), *format = json_object_get(plan, "format");

    if (!json_is_string(is) || strcmp(json_string_value(is), "plan") != 0 ||
        !json_is_integer(format) || json_integer_value(format) < 1)
        RAISE(err, ERR_FORMAT, 0, "'%s' is no journal of mural; remove its folder to start over",
              path);
    if (json_integer_value(format) > JOURNAL_FORMAT)
        RAISE(err, ERR_FORMAT, 0,
              "'%s' was written by a newer mural (format %lld, this one knows %d); go on with that "
              "one",
              path, (long long)json_integer_value(format), JOURNAL_FORMAT);
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
    TRY(os_read_text(&data, &text.bytes, path, JOURNAL_FILE_MAX_BYTES, err));
    text.data = data;
    TRY(journal_parse(&end, plan_out, facts, &text, err));
out:
    os_free(data);
    return rc;
}
