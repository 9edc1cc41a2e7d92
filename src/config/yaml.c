/*
 * yaml.c - config.yaml: settings from a file that somebody else may have written.
 *
 * A settings file is one mapping of known keys to single values.  Settings of the table that name a
 * group may also stand in it, one level deep: offload: {batch_size: 4}.  Everything else YAML can
 * do is refused: other nesting, aliases and anchors, tags, a second document, a key twice.  So
 * nothing in a file can grow, and reading ends at the first thing that is not a setting, with its
 * line and column.
 *
 * In a batch the list `jobs` of such mappings may stand beside the settings.  There a setting that
 * is wrong is noted and left out, so that all of them can be named at once.
 *
 * It reads the events of libyaml, the parser inside libcyaml: libcyaml's own loader does not tell
 * its caller where an unknown key stands.
 *
 * Read next: values.c, which judges the values.
 */
#include "config/config_int.h"

#include <stdio.h>
#include <string.h>
#include <yaml.h>

enum {
    FILE_BYTES_MAX = 256 * 1024, /* a settings file with the longest prompt has 20 kB */
    BATCH_BYTES_MAX = 4 * 1024 * 1024,
    ROWS_MAX = 96,
    GROUP_BYTES = 32
};

struct reader {
    yaml_parser_t             parser;
    yaml_event_t              event; /* the last one; owned */
    const struct yaml_source *source;
    struct config            *config;
    size_t                    seen_line[ROWS_MAX];  /* 0: not seen */
    size_t                    group_line[ROWS_MAX]; /* the same of a group, by its first row */
    struct err               *err;
    uint64_t                  events; /* read so far                          */
    uint32_t                  depth;  /* of lists and groups that are open    */
    struct config_batch      *batch;  /* NULL: a file of settings alone       */
    struct config_words      *words;  /* where settings go as well, in a batch */
    bool                      in_job;
    size_t                    jobs_line; /* 0: not seen */
};

static int complain(struct reader *reader, yaml_mark_t mark, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int complain(struct reader *reader, yaml_mark_t mark, const char *format, ...)
{
    char    sentence[384];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    return err_set(reader->err, ERR_CONFIG, 0, ERR_WHERE, "config: %s:%zu:%zu: %s",
                   reader->source->name, mark.line + 1, mark.column + 1, sentence);
}

/* libyaml gives a byte offset, not a line, for bytes that are not text. */
static yaml_mark_t mark_of_offset(const struct yaml_source *source, size_t offset)
{
    yaml_mark_t mark = {.index = offset, .line = 0, .column = 0};

    for (size_t i = 0; i < offset && i < source->bytes; i++) {
        mark.column = source->text[i] == '\n' ? 0 : mark.column + 1;
        if (source->text[i] == '\n') mark.line++;
    }
    return mark;
}

static bool tab_stands_at(const struct yaml_source *source, yaml_mark_t mark)
{
    size_t line = 0, at = 0;

    while (at < source->bytes && line < mark.line)
        line += source->text[at++] == '\n';
    for (size_t end = at + mark.column; at <= end && at < source->bytes; at++)
        if (source->text[at] == '\t') return true;
    return false;
}

static int complain_of_syntax(struct reader *reader)
{
    const yaml_parser_t *parser = &reader->parser;
    yaml_mark_t          mark = parser->problem_mark;

    if (parser->error == YAML_MEMORY_ERROR)
        return err_set(reader->err, ERR_HOST_MEM, 0, ERR_WHERE, "no memory to read '%s'",
                       reader->source->name);
    if (parser->error == YAML_READER_ERROR)
        mark = mark_of_offset(reader->source, parser->problem_offset);
    else if (tab_stands_at(reader->source, mark))
        return complain(reader, mark, "there is a tab; YAML indents with spaces");
    return complain(reader, mark, "this is not YAML: %s",
                    parser->problem != NULL ? parser->problem : "unreadable");
}

/* The next event replaces the last one. */
static int next(struct reader *reader)
{
    yaml_event_delete(&reader->event);
    if (yaml_parser_parse(&reader->parser, &reader->event) == 0) return complain_of_syntax(reader);
    reader->events++;
    switch (reader->event.type) {
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT: reader->depth++; break;
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT: reader->depth--; break;
    default: break;
    }
    return ERR_OK;
}

/* The last event is a plain single value without YAML's extras. */
static int expect_scalar(struct reader *reader, const char *what)
{
    const yaml_event_t *event = &reader->event;
    const char         *form = NULL;

    if (event->type == YAML_SEQUENCE_START_EVENT) form = "a list";
    if (event->type == YAML_MAPPING_START_EVENT) form = "a group of keys";
    if (event->type == YAML_ALIAS_EVENT) form = "an alias (*name)";
    if (form != NULL)
        return complain(reader, event->start_mark, "%s must be a single value, not %s", what, form);
    must(event->type == YAML_SCALAR_EVENT);
    if (event->data.scalar.anchor != NULL)
        return complain(reader, event->start_mark, "%s has an anchor (&name); remove it", what);
    if (event->data.scalar.tag != NULL)
        return complain(reader, event->start_mark, "%s has a tag (!name); remove it", what);
    if (memchr(event->data.scalar.value, '\0', event->data.scalar.length) != NULL)
        return complain(reader, event->start_mark, "%s holds a NUL character", what);
    return ERR_OK;
}

static int complain_of_key(struct reader *reader, const char *key)
{
    char                  shown[VALUES_QUOTE_BYTES];
    const struct setting *near = config_nearest(key, ~0u, false);

    if (strcmp(key, "jobs") == 0)
        return complain(reader, reader->event.start_mark,
                        "'jobs' is for 'mural batch', once, and not inside of another job");
    if (near == NULL)
        return complain(reader, reader->event.start_mark,
                        "unknown key '%s'; 'mural sample-config' lists the keys",
                        values_quote(shown, key));
    return complain(reader, reader->event.start_mark, "unknown key '%s'; did you mean '%s'?",
                    values_quote(shown, key), near->key);
}

/* One file says the size in one way, or the order of its lines would decide. */
static int check_size_keys(struct reader *reader, const struct setting *row,
                           const struct setting *rows)
{
    static const char *const pairs[][2] = {
        {"size", "width"}, {"size", "height"}, {"width", "size"}, {"height", "size"}};

    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
        size_t line = reader->seen_line[config_find_key(pairs[i][1]) - rows];
        if (strcmp(row->key, pairs[i][0]) != 0 || line == 0) continue;
        return complain(reader, reader->event.start_mark,
                        "'%s' does not go with '%s' in line %zu; give size, or width and height",
                        row->key, pairs[i][1], line);
    }
    return ERR_OK;
}

/* A key of this group that is none: what could be meant. */
static int complain_of_inner(struct reader *reader, const char *group, const char *key)
{
    char                  shown[VALUES_QUOTE_BYTES], names[160] = "";
    size_t                count, used = 0;
    const struct setting *rows = config_rows(&count);

    for (size_t i = 0; i < count; i++) {
        if (rows[i].section == NULL || strcmp(rows[i].section, group) != 0) continue;
        (void)snprintf(names + used, sizeof names - used, "%s%s", used > 0 ? ", " : "",
                       rows[i].inner);
        used = strlen(names);
    }
    return complain(reader, reader->event.start_mark, "unknown key '%s' in '%s'; it has %s",
                    values_quote(shown, key), group, names);
}

/* What makes or keeps a poster, but not how a run talks. */
static bool belongs_to_job(const struct setting *row)
{
    return (row->marks & MARK_JOB) != 0 ||
           (row->group != GROUP_TALK && (row->commands & (COMMAND_RENDER | COMMAND_UPSCALE)) != 0);
}

/* This row is set here, and nowhere else. */
static int note_row(struct reader *reader, const struct setting *row, yaml_mark_t mark)
{
    int                   rc = ERR_OK;
    size_t                count;
    const struct setting *rows = config_rows(&count);
    size_t               *seen = &reader->seen_line[row - rows];

    must(count <= ROWS_MAX);
    if ((row->marks & MARK_FLAG_ONLY) != 0 && !(reader->in_job && (row->marks & MARK_JOB) != 0))
        return complain(reader, mark, "'%s' can only be given on the command line", row->key);
    if (reader->source->from_model && (row->marks & MARK_MODEL) == 0)
        return complain(reader, mark, "'%s' is not for a model to set", row->key);
    if (reader->in_job && !belongs_to_job(row))
        return complain(reader, mark, "'%s' is not for a job to set", row->key);
    TRY(check_size_keys(reader, row, rows));
    if (*seen != 0)
        return complain(reader, mark, "'%s' was already set in line %zu", row->key, *seen);
    *seen = mark.line + 1;
out:
    return rc;
}

static int read_value(struct reader *reader, const struct setting *row)
{
    int         rc = ERR_OK;
    struct err  why = {.code = ERR_OK};
    const char *text;

    TRY(expect_scalar(reader, row->key));
    text = (const char *)reader->event.data.scalar.value;
    if (reader->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
        (text[0] == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0))
        return complain(reader, reader->event.start_mark,
                        "%s has no value; give one or remove the line", row->key);
    if (values_set(reader->config, row, row->key, text, &why) != ERR_OK)
        return complain(reader, reader->event.start_mark, "%s", why.text);
    if (reader->words != NULL) TRY(words_put(reader->words, row->key, text, reader->err));
out:
    return rc;
}

/* The last event began the group that `group` names. */
static int read_group(struct reader *reader, const char *group, yaml_mark_t mark)
{
    int                   rc = ERR_OK;
    size_t                count;
    const struct setting *rows = config_rows(&count), *row;
    size_t               *seen = &reader->group_line[config_find_inner(group, NULL) - rows];

    if (*seen != 0) return complain(reader, mark, "'%s' was already set in line %zu", group, *seen);
    *seen = mark.line + 1;
    if (reader->event.data.mapping_start.anchor != NULL ||
        reader->event.data.mapping_start.tag != NULL)
        return complain(reader, reader->event.start_mark, "%s has an anchor or a tag; remove it",
                        group);
    for (;;) {
        TRY(next(reader));
        if (reader->event.type == YAML_MAPPING_END_EVENT) break;
        TRY(expect_scalar(reader, "a key"));
        row = config_find_inner(group, (const char *)reader->event.data.scalar.value);
        if (row == NULL)
            return complain_of_inner(reader, group, (const char *)reader->event.data.scalar.value);
        TRY(note_row(reader, row, reader->event.start_mark));
        TRY(next(reader));
        TRY(read_value(reader, row));
    }
out:
    return rc;
}

/* The last event is the name of a group, and perhaps of a row as well. */
static int read_group_or_value(struct reader *reader, const struct setting *row)
{
    int         rc = ERR_OK;
    char        group[GROUP_BYTES];
    yaml_mark_t mark = reader->event.start_mark;

    (void)snprintf(group, sizeof group, "%s", (const char *)reader->event.data.scalar.value);
    TRY(next(reader));
    if (reader->event.type == YAML_MAPPING_START_EVENT) return read_group(reader, group, mark);
    if (row == NULL)
        return complain(reader, reader->event.start_mark, "%s must be a group of keys", group);
    TRY(note_row(reader, row, mark));
    TRY(read_value(reader, row));
out:
    return rc;
}

static int read_jobs(struct reader *reader);

/* The last event is a key. */
static int read_entry(struct reader *reader)
{
    int                   rc = ERR_OK;
    const char           *key = (const char *)reader->event.data.scalar.value;
    const struct setting *row = config_find_key(key);

    if (reader->batch != NULL && !reader->in_job && strcmp(key, "jobs") == 0)
        return read_jobs(reader);
    if (config_find_inner(key, NULL) != NULL) return read_group_or_value(reader, row);
    if (row == NULL) return complain_of_key(reader, key);
    TRY(note_row(reader, row, reader->event.start_mark));
    TRY(next(reader));
    TRY(read_value(reader, row));
out:
    return rc;
}

/* In a batch, a complaint becomes a mistake, and reading goes on behind what was complained of: the
 * value of the key that was event number `key`, at `depth`. */
static int forgive(struct reader *reader, uint32_t depth, uint64_t key)
{
    int rc = (int)reader->err->code;

    if (reader->batch == NULL || rc != ERR_CONFIG || reader->parser.error != YAML_NO_ERROR ||
        reader->batch->mistakes.count == CONFIG_MISTAKES_MAX)
        return rc;
    TRY(config_words_add(&reader->batch->mistakes, reader->err->text, reader->err));
    *reader->err = (struct err){.code = ERR_OK};
    rc = ERR_OK;
    if (reader->events == key) TRY(next(reader));
    while (reader->depth > depth)
        TRY(next(reader));
out:
    return rc;
}

static int read_mapping(struct reader *reader)
{
    int      rc = ERR_OK;
    uint32_t depth = reader->depth;

    for (;;) {
        TRY(next(reader));
        if (reader->event.type == YAML_MAPPING_END_EVENT) break;
        TRY(expect_scalar(reader, "a key"));
        uint64_t key = reader->events;
        if (read_entry(reader) != ERR_OK) TRY(forgive(reader, depth, key));
    }
out:
    return rc;
}

/* ------------------------------------------------------------------------------------ batches */

static int add_job(struct reader *reader, struct config_job **out, size_t line)
{
    int                  rc = ERR_OK;
    struct config_batch *batch = reader->batch;

    if (batch->jobs == NULL)
        TRY(os_alloc((void **)&batch->jobs, CONFIG_JOBS_MAX, sizeof *batch->jobs, "a list of jobs",
                     reader->err));
    if (batch->count == CONFIG_JOBS_MAX)
        return complain(reader, reader->event.start_mark, "a batch has at most %d jobs",
                        CONFIG_JOBS_MAX);
    *out = &batch->jobs[batch->count++];
    **out = (struct config_job){.line = line};
out:
    return rc;
}

/* The last event began it.  It is read as a file of its own would be. */
static int read_job(struct reader *reader)
{
    int                rc = ERR_OK;
    struct reader      outer = *reader;
    yaml_mark_t        mark = reader->event.start_mark;
    struct config_job *job = NULL;

    if (reader->event.type != YAML_MAPPING_START_EVENT)
        return complain(reader, mark, "a job is a group of keys, as in '- prompt: A fox'");
    if (reader->event.data.mapping_start.anchor != NULL ||
        reader->event.data.mapping_start.tag != NULL)
        return complain(reader, mark, "a job has an anchor or a tag; remove it");
    TRY(add_job(reader, &job, mark.line + 1));
    memset(reader->seen_line, 0, sizeof reader->seen_line);
    memset(reader->group_line, 0, sizeof reader->group_line);
    reader->in_job = true;
    reader->words = &job->words;
    rc = read_mapping(reader);
    memcpy(reader->seen_line, outer.seen_line, sizeof reader->seen_line);
    memcpy(reader->group_line, outer.group_line, sizeof reader->group_line);
    reader->in_job = false;
    reader->words = outer.words;
out:
    return rc;
}

/* The last event is the key of the list. */
static int read_jobs(struct reader *reader)
{
    int         rc = ERR_OK;
    yaml_mark_t mark = reader->event.start_mark;
    uint32_t    depth = reader->depth + 1;

    if (reader->jobs_line != 0)
        return complain(reader, mark, "'jobs' was already set in line %zu", reader->jobs_line);
    reader->jobs_line = mark.line + 1;
    TRY(next(reader));
    if (reader->event.type != YAML_SEQUENCE_START_EVENT)
        return complain(reader, reader->event.start_mark,
                        "jobs must be a list, with '- prompt: ...' for each poster");
    if (reader->event.data.sequence_start.anchor != NULL ||
        reader->event.data.sequence_start.tag != NULL)
        return complain(reader, reader->event.start_mark, "jobs has an anchor or a tag; remove it");
    for (;;) {
        TRY(next(reader));
        if (reader->event.type == YAML_SEQUENCE_END_EVENT) break;
        if (read_job(reader) != ERR_OK) TRY(forgive(reader, depth, 0));
    }
out:
    return rc;
}

/* ------------------------------------------------------------------------------------- files */

static int read_document(struct reader *reader)
{
    int rc = ERR_OK;

    TRY(next(reader)); /* root of the document */
    if (reader->event.type != YAML_MAPPING_START_EVENT)
        return complain(reader, reader->event.start_mark,
                        "a settings file has lines of the form 'key: value'");
    if (reader->event.data.mapping_start.anchor != NULL ||
        reader->event.data.mapping_start.tag != NULL)
        return complain(reader, reader->event.start_mark,
                        "the settings have an anchor or a tag; remove it");
    TRY(read_mapping(reader));
    TRY(next(reader)); /* end of the document */
out:
    return rc;
}

static int read_stream(struct reader *reader)
{
    int rc = ERR_OK;

    TRY(next(reader)); /* start of the stream */
    TRY(next(reader));
    if (reader->event.type == YAML_DOCUMENT_START_EVENT) {
        TRY(read_document(reader));
        TRY(next(reader));
    }
    if (reader->event.type != YAML_STREAM_END_EVENT)
        return complain(reader, reader->event.start_mark,
                        "a second document starts here; a settings file has one");
out:
    return rc;
}

static int read_source(struct reader *reader, size_t bytes_max)
{
    int                       rc = ERR_OK;
    const struct yaml_source *source = reader->source;

    if (source->bytes > bytes_max)
        return err_set(reader->err, ERR_CONFIG, 0, ERR_WHERE,
                       "config: %s has %zu bytes; a settings file has at most %zu", source->name,
                       source->bytes, bytes_max);
    if (yaml_parser_initialize(&reader->parser) == 0)
        RAISE(reader->err, ERR_HOST_MEM, 0, "no memory to read '%s'", source->name);
    yaml_parser_set_input_string(&reader->parser, (const unsigned char *)source->text,
                                 source->bytes);
    yaml_parser_set_encoding(&reader->parser, YAML_UTF8_ENCODING);
    rc = read_stream(reader);
    yaml_event_delete(&reader->event);
    yaml_parser_delete(&reader->parser);
out:
    return rc;
}

int yaml_read(struct config *config, const struct yaml_source *source, struct err *err)
{
    struct reader reader = {.source = source, .config = config, .err = err};

    return read_source(&reader, FILE_BYTES_MAX);
}

int yaml_read_batch(struct config_batch *out, const struct yaml_source *source, struct err *err)
{
    int            rc = ERR_OK;
    struct config *scratch = NULL;
    struct reader  reader = {.source = source, .err = err, .batch = out, .words = &out->common};

    TRY(os_alloc((void **)&scratch, 1, sizeof *scratch, "settings", err));
    reader.config = scratch; /* takes the values, to have them judged */
    TRY(read_source(&reader, BATCH_BYTES_MAX));
    if (out->count == 0 && out->mistakes.count == 0)
        RAISE(err, ERR_CONFIG, 0, "config: %s: it has no jobs; 'mural help batch' shows a list",
              source->name);
out:
    os_free(scratch);
    return rc;
}

/* The text of a file, freed by os_free, to be pointed at by `source`. */
static int read_text(char **out, struct yaml_source *source, uint64_t bytes_max, struct err *err)
{
    int        rc = ERR_OK;
    struct err why = {.code = ERR_OK};

    if (os_read_text(out, &source->bytes, source->name, bytes_max, &why) != ERR_OK)
        RAISE(err, why.code == ERR_HOST_MEM ? ERR_HOST_MEM : ERR_CONFIG, why.sys, "config: %s",
              why.text);
    source->text = *out;
out:
    return rc;
}

int yaml_read_file(struct config *config, const char *path, bool from_model, struct err *err)
{
    int                rc = ERR_OK;
    char              *text = NULL;
    struct yaml_source source = {.name = path, .from_model = from_model};

    TRY(read_text(&text, &source, FILE_BYTES_MAX, err));
    TRY(yaml_read(config, &source, err));
out:
    os_free(text);
    return rc;
}

int config_batch_read(struct config_batch *out, const char *path, struct err *err)
{
    int                rc = ERR_OK;
    char              *text = NULL;
    struct yaml_source source = {.name = path};

    *out = (struct config_batch){.count = 0};
    TRY(read_text(&text, &source, BATCH_BYTES_MAX, err));
    TRY(yaml_read_batch(out, &source, err));
out:
    os_free(text);
    return rc;
}

void config_batch_close(struct config_batch *batch)
{
    for (size_t i = 0; i < batch->count; i++)
        config_words_close(&batch->jobs[i].words);
    os_free(batch->jobs);
    config_words_close(&batch->common);
    config_words_close(&batch->mistakes);
    *batch = (struct config_batch){.count = 0};
}
