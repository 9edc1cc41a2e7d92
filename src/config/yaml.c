/*
 * yaml.c - config.yaml: settings from a file that somebody else may have written.
 *
 * A settings file is one mapping of known keys to single values.  Settings of the table that name a
 * group may also stand in it, one level deep: offload: {batch_size: 4}.  Everything else YAML can
 * do is refused: other nesting, aliases and anchors, tags, a second document, a key twice.  So
 * nothing in a file can grow, and reading ends at the first thing that is not a setting, with its
 * line and column.
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

/* This row is set here, and nowhere else. */
static int note_row(struct reader *reader, const struct setting *row, yaml_mark_t mark)
{
    int                   rc = ERR_OK;
    size_t                count;
    const struct setting *rows = config_rows(&count);
    size_t               *seen = &reader->seen_line[row - rows];

    must(count <= ROWS_MAX);
    if ((row->marks & MARK_FLAG_ONLY) != 0)
        return complain(reader, mark, "'%s' can only be given on the command line", row->key);
    if (reader->source->from_model && (row->marks & MARK_MODEL) == 0)
        return complain(reader, mark, "'%s' is not for a model to set", row->key);
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

static int read_mapping(struct reader *reader)
{
    int rc = ERR_OK;

    for (;;) {
        const struct setting *row;
        const char           *key;

        TRY(next(reader));
        if (reader->event.type == YAML_MAPPING_END_EVENT) break;
        TRY(expect_scalar(reader, "a key"));
        key = (const char *)reader->event.data.scalar.value;
        row = config_find_key(key);
        if (config_find_inner(key, NULL) != NULL) {
            TRY(read_group_or_value(reader, row));
            continue;
        }
        if (row == NULL) return complain_of_key(reader, key);
        TRY(note_row(reader, row, reader->event.start_mark));
        TRY(next(reader));
        TRY(read_value(reader, row));
    }
out:
    return rc;
}

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

int yaml_read(struct config *config, const struct yaml_source *source, struct err *err)
{
    int           rc = ERR_OK;
    struct reader reader = {.source = source, .config = config, .err = err};

    if (source->bytes > FILE_BYTES_MAX)
        return err_set(err, ERR_CONFIG, 0, ERR_WHERE,
                       "config: %s has %zu bytes; a settings file has at most %d", source->name,
                       source->bytes, FILE_BYTES_MAX);
    if (yaml_parser_initialize(&reader.parser) == 0)
        RAISE(err, ERR_HOST_MEM, 0, "no memory to read '%s'", source->name);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)source->text,
                                 source->bytes);
    yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
    rc = read_stream(&reader);
    yaml_event_delete(&reader.event);
    yaml_parser_delete(&reader.parser);
out:
    return rc;
}

int yaml_read_file(struct config *config, const char *path, bool from_model, struct err *err)
{
    int                rc = ERR_OK;
    char              *text = NULL;
    struct err         why = {.code = ERR_OK};
    struct yaml_source source = {.name = path, .from_model = from_model};

    if (os_read_text(&text, &source.bytes, path, FILE_BYTES_MAX, &why) != ERR_OK)
        RAISE(err, why.code == ERR_HOST_MEM ? ERR_HOST_MEM : ERR_CONFIG, why.sys, "config: %s",
              why.text);
    source.text = text;
    TRY(yaml_read(config, &source, err));
out:
    os_free(text);
    return rc;
}
