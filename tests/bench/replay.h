/*
 * replay.h - a trace of allocations from a file, played in a segment over a pool.
 *
 * Owns the format of traces, plain or packed by gzip:
 *
 *     # any number of lines that say where it comes from
 *     op,id,bytes
 *     take,0,4096
 *     give,0,4096
 *
 * An id, below the number of lines, names a take until it is given back with the same bytes; then
 * it may name another.  What nobody gives back lives to the end.  Nothing is believed of a file
 * before it was checked, because a segment stops the program where it is used wrongly.
 *
 * Knows nothing of who made the trace.
 */
#ifndef MURAL_REPLAY_H
#define MURAL_REPLAY_H

#include "tests/bench/segment.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

struct replay_line {
    uint64_t bytes;
    uint32_t id;
    bool     take;
};
struct replay {
    const struct vmem_ops *ops;         /* set by the caller, as are the next two              */
    uint64_t               chunk_bytes; /* by which the segment grows; a multiple of 2 MiB     */
    double                 fragmentation_max;
    struct replay_line    *lines; /* [line_count], as replay_read found them; owned */
    void                 **data;  /* [id_count], where each lies; owned             */
    uint32_t               line_count, id_count, live_most; /* takes alive at one time */
};
struct replay_outcome {
    struct pool_counts    counts;
    struct segment_counts segment;
    double                seconds; /* of takes and gives, without opening and closing */
};

enum { REPLAY_LINES_MAX = 1 << 24, REPLAY_TEXT_MAX = 4096 };

/* ------------------------------------------------------------------------------------ reading */

struct replay_reader {
    const char *path;
    gzFile      file;
    uint64_t    number;                /* of the line in `text`, from 1 */
    char        text[REPLAY_TEXT_MAX]; /* without its end               */
};

static inline int replay_next(bool *more_out, struct replay_reader *reader, struct err *err)
{
    int    rc = ERR_OK, code;
    size_t length;

    *more_out = gzgets(reader->file, reader->text, REPLAY_TEXT_MAX) != NULL;
    if (!*more_out) {
        const char *why = gzerror(reader->file, &code);
        if (code != Z_OK)
            RAISE(err, ERR_FORMAT, 0, "%s: cannot be unpacked after line %llu: %s", reader->path,
                  (unsigned long long)reader->number, why);
        goto out;
    }
    reader->number++;
    length = strlen(reader->text);
    if (length == REPLAY_TEXT_MAX - 1 && reader->text[length - 1] != '\n')
        RAISE(err, ERR_FORMAT, 0, "%s:%llu: longer than the %d characters that a line may have",
              reader->path, (unsigned long long)reader->number, REPLAY_TEXT_MAX - 2);
    reader->text[strcspn(reader->text, "\r\n")] = '\0';
out:
    return rc;
}

/* Digits alone, to the next `end`; moves *at behind it.  UINT64_MAX: that is not what is there. */
static inline uint64_t replay_number(const char **at, char end)
{
    uint64_t value = 0;
    size_t   digits = strspn(*at, "0123456789");

    if (digits == 0 || digits > 18 || (*at)[digits] != end) return UINT64_MAX;
    for (size_t i = 0; i < digits; i++)
        value = 10 * value + (uint64_t)((*at)[i] - '0');
    *at += digits + (end != '\0');
    return value;
}

/* One line after the heading; bytes_of [ids_max] is 0 for what is not there. */
static inline int replay_parse(struct replay *replay, const struct replay_reader *reader,
                               uint64_t *bytes_of, uint64_t ids_max, struct err *err)
{
    int                rc = ERR_OK;
    unsigned long long number = reader->number;
    bool               take = strncmp(reader->text, "take,", 5) == 0;
    const char        *at = reader->text + 5;
    uint64_t           id = UINT64_MAX, bytes = UINT64_MAX;

    if (take || strncmp(reader->text, "give,", 5) == 0) id = replay_number(&at, ',');
    if (id != UINT64_MAX) bytes = replay_number(&at, '\0');
    if (bytes == UINT64_MAX)
        RAISE(err, ERR_FORMAT, 0, "%s:%llu: '%.40s' is not of the form take,7,4096 or give,7,4096",
              reader->path, number, reader->text);
    if (id >= ids_max)
        RAISE(err, ERR_FORMAT, 0, "%s:%llu: id %llu must be below the %llu lines of the trace",
              reader->path, number, (unsigned long long)id, (unsigned long long)ids_max);
    if (take && (bytes == 0 || bytes > (uint64_t)1 << 40))
        RAISE(err, ERR_FORMAT, 0, "%s:%llu: takes %llu bytes, which must be 1 to 2^40",
              reader->path, number, (unsigned long long)bytes);
    if (take && bytes_of[id] != 0)
        RAISE(err, ERR_FORMAT, 0, "%s:%llu: id %llu is taken and is there already", reader->path,
              number, (unsigned long long)id);
    if (!take && bytes_of[id] == 0)
        RAISE(err, ERR_FORMAT, 0, "%s:%llu: id %llu is given back and is not there", reader->path,
              number, (unsigned long long)id);
    if (!take && bytes_of[id] != bytes)
        RAISE(err, ERR_FORMAT, 0, "%s:%llu: gives %llu bytes back of id %llu, which took %llu",
              reader->path, number, (unsigned long long)bytes, (unsigned long long)id,
              (unsigned long long)bytes_of[id]);
    bytes_of[id] = take ? bytes : 0;
    replay->lines[replay->line_count++] =
        (struct replay_line){.bytes = bytes, .id = (uint32_t)id, .take = take};
    if (take && id >= replay->id_count) replay->id_count = (uint32_t)id + 1;
out:
    return rc;
}

static inline void replay_count_live(struct replay *replay)
{
    uint32_t live = 0;

    for (uint32_t i = 0; i < replay->line_count; i++) {
        live = replay->lines[i].take ? live + 1 : live - 1;
        if (live > replay->live_most) replay->live_most = live;
    }
}

/* Fills what the caller did not set; ERR_IO, or ERR_FORMAT for what is no trace.  In every case
 * replay_free has to follow. */
static inline int replay_read(struct replay *replay, const char *path, struct err *err)
{
    int                  rc = ERR_OK;
    uint64_t             room = 0, *bytes_of = NULL;
    bool                 more = true, begun = false;
    struct replay_reader reader = {.path = path};

    reader.file = gzopen(path, "rb");
    if (reader.file == NULL)
        RAISE(err, ERR_IO, 0, "%s: this trace cannot be opened for reading", path);
    for (;;) {
        TRY(replay_next(&more, &reader, err));
        if (!more) break;
        if (++room > REPLAY_LINES_MAX)
            RAISE(err, ERR_FORMAT, 0, "%s: more than %d lines", path, REPLAY_LINES_MAX);
    }
    if (gzrewind(reader.file) != 0)
        RAISE(err, ERR_IO, 0, "%s: cannot be read twice; a trace must be a file", path);
    reader.number = 0;
    TRY(os_alloc((void **)&replay->lines, room + 1, sizeof *replay->lines, "a trace", err));
    TRY(os_alloc((void **)&bytes_of, room + 1, sizeof *bytes_of, "a trace", err));
    for (;;) {
        TRY(replay_next(&more, &reader, err));
        if (!more) break;
        if (reader.text[0] == '#') continue;
        if (begun)
            TRY(replay_parse(replay, &reader, bytes_of, room, err));
        else if (strcmp(reader.text, "op,id,bytes") != 0)
            RAISE(err, ERR_FORMAT, 0, "%s:%llu: '%.40s' where a trace begins with op,id,bytes",
                  path, (unsigned long long)reader.number, reader.text);
        begun = true;
    }
    if (replay->line_count == 0) RAISE(err, ERR_FORMAT, 0, "%s: nothing is taken in it", path);
    replay_count_live(replay);
    TRY(os_alloc((void **)&replay->data, replay->id_count, sizeof *replay->data, "a trace", err));
out:
    if (reader.file != NULL) (void)gzclose(reader.file);
    os_free(bytes_of);
    return rc;
}

static inline void replay_free(struct replay *replay)
{
    os_free(replay->lines);
    os_free(replay->data);
    replay->lines = NULL;
    replay->data = NULL;
}

/* ------------------------------------------------------------------------------------ playing */

/* Plays it once in a fresh pool with that cap; the shortage of replay->ops where it does not do. */
static inline int replay_run(struct replay_outcome *out, const struct replay *replay, uint64_t cap,
                             struct err *err)
{
    int                    rc = ERR_OK;
    struct pool           *pool = NULL;
    struct segment        *segment = NULL;
    struct pool_options    options = {.ops = replay->ops,
                                      .cap_bytes = cap,
                                      .segment_bytes = replay->chunk_bytes,
                                      .idle_share_max = 1,
                                      .expandable = true};
    struct segment_options of_segment = {.limit_bytes = 4 * cap,
                                         .chunk_bytes = replay->chunk_bytes,
                                         .fragmentation_max = replay->fragmentation_max,
                                         .takes_max = replay->live_most};
    double                 begin;

    TRY(pool_open(&pool, &options, err));
    TRY(segment_open(&segment, pool, &of_segment, err));
    begin = os_seconds();
    for (uint32_t i = 0; i < replay->line_count; i++) {
        const struct replay_line *line = &replay->lines[i];
        if (line->take)
            TRY(segment_take(segment, line->bytes, &replay->data[line->id], err));
        else
            segment_give(segment, replay->data[line->id]);
    }
    out->seconds = os_seconds() - begin;
    pool_counts(pool, &out->counts);
    segment_counts(segment, &out->segment);
out:
    segment_close(segment);
    pool_close(pool);
    return rc;
}

/* Survival need not be monotonous in the cap; the bisection is between what failed and what went
 * well, as it is for other allocators.  The smallest cap in steps of 2 MiB, and how it went. */
static inline int replay_survive(uint64_t *cap_out, struct replay_outcome *out,
                                 const struct replay *replay, uint64_t cap, struct err *err)
{
    static const uint64_t STEP = 2u << 20;
    int                   rc = ERR_OK;
    uint64_t              least, most;

    TRY(replay_run(out, replay, cap, err));
    least = out->counts.peak_live / STEP;
    most = out->counts.peak_device / STEP;
    while (least < most) {
        struct err ignored = {0};
        uint64_t   middle = (least + most) / 2;
        if (middle > 0 && replay_run(out, replay, middle * STEP, &ignored) == ERR_OK)
            most = middle;
        else
            least = middle + 1;
    }
    *cap_out = most * STEP;
    TRY(replay_run(out, replay, *cap_out, err));
out:
    return rc;
}

static inline double replay_utilisation(const struct replay_outcome *outcome)
{
    return (double)outcome->counts.peak_live / (double)outcome->counts.peak_mapped;
}

#endif
