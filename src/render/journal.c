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
 *                                                those of all tiles add up to the painters' time,
 *                                                but for "store", which is beside it.
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
 * Read next: journal_read.c, which reads the lines; store.c, which decides what to do with the
 * facts.
 */
#include "render/journal_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct journal {
    char                 path[1200];
    int                  fd;
    uint64_t             bytes; /* of good lines; the next one goes there */
    uint64_t             hash;  /* of the last good line */
    struct journal_facts facts;
    char                 line[JOURNAL_LINE_MAX_BYTES];
};

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
    TRY(os_read_text(&data, &text.bytes, path, JOURNAL_FILE_MAX_BYTES, err));
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

/* Add the line whose JSON text stands at line + JOURNAL_HASH_DIGITS + 1, and bring it to the disk.
 * A line that failed half-way is written over by the next one. */
static int append(struct journal *journal, struct err *err)
{
    int      rc = ERR_OK;
    char    *json = journal->line + JOURNAL_HASH_DIGITS + 1, digits[JOURNAL_HASH_DIGITS + 1];
    size_t   bytes = strlen(json);
    uint64_t hash = hash64(json, bytes, journal->hash);

    must(bytes + JOURNAL_HASH_DIGITS + 2 < sizeof journal->line);
    (void)snprintf(digits, sizeof digits, "%016llx", (unsigned long long)hash);
    memcpy(journal->line, digits, JOURNAL_HASH_DIGITS);
    journal->line[JOURNAL_HASH_DIGITS] = ' ';
    json[bytes] = '\n';
    bytes += JOURNAL_HASH_DIGITS + 2;
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
    const size_t room = sizeof journal->line - JOURNAL_HASH_DIGITS - 3;
    va_list      args;
    int          wrote;

    va_start(args, format);
    wrote = vsnprintf(journal->line + JOURNAL_HASH_DIGITS + 1, room, format, args);
    va_end(args);
    must(wrote > 0 && (size_t)wrote < room);
}

static int say_json(struct journal *journal, const json_t *record, struct err *err)
{
    int   rc = ERR_OK;
    char *text = json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(17));

    if (text == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory for a record of the journal");
    if (strlen(text) + JOURNAL_HASH_DIGITS + 3 >= sizeof journal->line)
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
        json_object_set_new(plan, "format", json_integer(JOURNAL_FORMAT)) != 0)
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
    journal_set_guide(&journal->facts, guide);
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
    journal_set_tile(&journal->facts, tile->number, TILE_DONE, tile->hash);
out:
    return rc;
}

int journal_add_filled(struct journal *journal, uint32_t number, uint64_t hash, struct err *err)
{
    int rc = ERR_OK;

    say(journal, "{\"is\":\"filled\",\"tile\":%u,\"hash\":\"%016llx\"}", number,
        (unsigned long long)hash);
    TRY(append(journal, err));
    journal_set_tile(&journal->facts, number, TILE_FILLED, hash);
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
    journal_set_tile(&journal->facts, number, TILE_FAILED, 0);
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
    TRY(journal_set_again(&journal->facts, number, again, err));
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
    journal_set_finished(&journal->facts, bytes, hash);
out:
    return rc;
}
