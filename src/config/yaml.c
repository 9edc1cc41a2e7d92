/*
 * yaml.c - config.yaml: settings from a file that somebody else may have written.
 *
 * A settings file is one mapping of known keys to single values.  Settings of the table that name a
 * group may also stand in it, one level deep: offload: {batch_size: 4}.  Everything else YAML can
 * do is refused: other nesting, aliases and anchors, tags, a second document, a key twice.  So
 * nothing in a file can grow, and reading ends at the first thing that is not a setting, with its
 * line and column.
 *
 * In a batch the list `jobs` of such mappings may stand beside the settings (yaml_batch.c).  There
 * a setting that is wrong is noted and left out, so that all of them can be named at once.
 *
 * Read next: yaml_events.c, for what is left of YAML; values.c, which judges the values.
 */
#include "config/yaml_int.h"

#include <stdio.h>
#include <string.h>

enum {
    FILE_BYTES_MAX = 256 * 1024, /* a settings file with the longest prompt has 20 kB */
    GROUP_BYTES = 32
};

static int complain_of_key(struct yaml_reader *reader, const char *key)
{
    char                  shown[VALUES_QUOTE_BYTES];
    const struct setting *near = config_nearest(key, ~0u, false);

    if (strcmp(key, "jobs") == 0)
        return yaml_complain(&reader->in, reader->in.event.start_mark,
                             "'jobs' is for 'mural batch', once, and not inside of another job");
    if (near == NULL)
        return yaml_complain(&reader->in, reader->in.event.start_mark,
                             "unknown key '%s'; 'mural sample-config' lists the keys",
                             values_quote(shown, key));
    return yaml_complain(&reader->in, reader->in.event.start_mark,
                         "unknown key '%s'; did you mean '%s'?", values_quote(shown, key),
                         near->key);
}

/* One file says the size in one way, or the order of its lines would decide. */
static int check_size_keys(struct yaml_reader *reader, const struct setting *row,
                           const struct setting *rows)
{
    static const char *const pairs[][2] = {
        {"size", "width"}, {"size", "height"}, {"width", "size"}, {"height", "size"}};

    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
        size_t line = reader->seen.row[config_find_key(pairs[i][1]) - rows];
        if (strcmp(row->key, pairs[i][0]) != 0 || line == 0) continue;
        return yaml_complain(
            &reader->in, reader->in.event.start_mark,
            "'%s' does not go with '%s' in line %zu; give size, or width and height", row->key,
            pairs[i][1], line);
    }
    return ERR_OK;
}

/* A key of this group that is none: what could be meant. */
static int complain_of_inner(struct yaml_reader *reader, const char *group, const char *key)
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
    return yaml_complain(&reader->in, reader->in.event.start_mark,
                         "unknown key '%s' in '%s'; it has %s", values_quote(shown, key), group,
                         names);
}

/* What makes or keeps a poster, but not how a run talks. */
static bool belongs_to_job(const struct setting *row)
{
    return (row->marks & MARK_JOB) != 0 ||
           (row->group != GROUP_TALK && (row->commands & (COMMAND_RENDER | COMMAND_UPSCALE)) != 0);
}

/* This row is set here, and nowhere else. */
static int note_row(struct yaml_reader *reader, const struct setting *row, yaml_mark_t mark)
{
    int                   rc = ERR_OK;
    size_t                count;
    const struct setting *rows = config_rows(&count);
    size_t               *seen = &reader->seen.row[row - rows];

    must(count <= YAML_ROWS_MAX);
    if ((row->marks & MARK_FLAG_ONLY) != 0 && !(reader->in_job && (row->marks & MARK_JOB) != 0))
        return yaml_complain(&reader->in, mark, "'%s' can only be given on the command line",
                             row->key);
    if (reader->in.source->from_model && (row->marks & MARK_MODEL) == 0)
        return yaml_complain(&reader->in, mark, "'%s' is not for a model to set", row->key);
    if (reader->in_job && !belongs_to_job(row))
        return yaml_complain(&reader->in, mark, "'%s' is not for a job to set", row->key);
    TRY(check_size_keys(reader, row, rows));
    if (*seen != 0)
        return yaml_complain(&reader->in, mark, "'%s' was already set in line %zu", row->key,
                             *seen);
    *seen = mark.line + 1;
out:
    return rc;
}

static int read_value(struct yaml_reader *reader, const struct setting *row)
{
    int         rc = ERR_OK;
    struct err  why = {.code = ERR_OK};
    const char *text;

    TRY(yaml_expect_scalar(&reader->in, row->key));
    text = (const char *)reader->in.event.data.scalar.value;
    if (reader->in.event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
        (text[0] == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0))
        return yaml_complain(&reader->in, reader->in.event.start_mark,
                             "%s has no value; give one or remove the line", row->key);
    if (values_set(reader->config, row, row->key, text, &why) != ERR_OK)
        return yaml_complain(&reader->in, reader->in.event.start_mark, "%s", why.text);
    if (reader->words != NULL) TRY(words_put(reader->words, row->key, text, reader->in.err));
out:
    return rc;
}

/* The last event began the group that `group` names. */
static int read_group(struct yaml_reader *reader, const char *group, yaml_mark_t mark)
{
    int                   rc = ERR_OK;
    size_t                count;
    const struct setting *rows = config_rows(&count), *row;
    size_t               *seen = &reader->seen.group[config_find_inner(group, NULL) - rows];

    if (*seen != 0)
        return yaml_complain(&reader->in, mark, "'%s' was already set in line %zu", group, *seen);
    *seen = mark.line + 1;
    TRY(yaml_expect_bare(&reader->in, group));
    for (;;) {
        TRY(yaml_next(&reader->in));
        if (reader->in.event.type == YAML_MAPPING_END_EVENT) break;
        TRY(yaml_expect_scalar(&reader->in, "a key"));
        row = config_find_inner(group, (const char *)reader->in.event.data.scalar.value);
        if (row == NULL)
            return complain_of_inner(reader, group,
                                     (const char *)reader->in.event.data.scalar.value);
        TRY(note_row(reader, row, reader->in.event.start_mark));
        TRY(yaml_next(&reader->in));
        TRY(read_value(reader, row));
    }
out:
    return rc;
}

/* The last event is the name of a group, and perhaps of a row as well. */
static int read_group_or_value(struct yaml_reader *reader, const struct setting *row)
{
    int         rc = ERR_OK;
    char        group[GROUP_BYTES];
    yaml_mark_t mark = reader->in.event.start_mark;

    (void)snprintf(group, sizeof group, "%s", (const char *)reader->in.event.data.scalar.value);
    TRY(yaml_next(&reader->in));
    if (reader->in.event.type == YAML_MAPPING_START_EVENT) return read_group(reader, group, mark);
    if (row == NULL)
        return yaml_complain(&reader->in, reader->in.event.start_mark, "%s must be a group of keys",
                             group);
    TRY(note_row(reader, row, mark));
    TRY(read_value(reader, row));
out:
    return rc;
}

/* The last event is a key. */
static int read_entry(struct yaml_reader *reader)
{
    int                   rc = ERR_OK;
    const char           *key = (const char *)reader->in.event.data.scalar.value;
    const struct setting *row = config_find_key(key);

    if (reader->batch != NULL && !reader->in_job && strcmp(key, "jobs") == 0)
        return yaml_read_jobs(reader);
    if (config_find_inner(key, NULL) != NULL) return read_group_or_value(reader, row);
    if (row == NULL) return complain_of_key(reader, key);
    TRY(note_row(reader, row, reader->in.event.start_mark));
    TRY(yaml_next(&reader->in));
    TRY(read_value(reader, row));
out:
    return rc;
}

int yaml_forgive(struct yaml_reader *reader, uint32_t depth, uint64_t key)
{
    int rc = (int)reader->in.err->code;

    if (reader->batch == NULL || rc != ERR_CONFIG || reader->in.parser.error != YAML_NO_ERROR ||
        reader->batch->mistakes.count == CONFIG_MISTAKES_MAX)
        return rc;
    TRY(config_words_add(&reader->batch->mistakes, reader->in.err->text, reader->in.err));
    *reader->in.err = (struct err){.code = ERR_OK};
    rc = ERR_OK;
    if (reader->in.count == key) TRY(yaml_next(&reader->in));
    while (reader->in.depth > depth)
        TRY(yaml_next(&reader->in));
out:
    return rc;
}

int yaml_read_mapping(struct yaml_reader *reader)
{
    int      rc = ERR_OK;
    uint32_t depth = reader->in.depth;

    for (;;) {
        TRY(yaml_next(&reader->in));
        if (reader->in.event.type == YAML_MAPPING_END_EVENT) break;
        TRY(yaml_expect_scalar(&reader->in, "a key"));
        uint64_t key = reader->in.count;
        if (read_entry(reader) != ERR_OK) TRY(yaml_forgive(reader, depth, key));
    }
out:
    return rc;
}

/* ------------------------------------------------------------------------------------- files */

static int read_document(struct yaml_reader *reader)
{
    int rc = ERR_OK;

    TRY(yaml_next(&reader->in)); /* root of the document */
    if (reader->in.event.type != YAML_MAPPING_START_EVENT)
        return yaml_complain(&reader->in, reader->in.event.start_mark,
                             "a settings file has lines of the form 'key: value'");
    TRY(yaml_expect_bare(&reader->in, "a settings file"));
    TRY(yaml_read_mapping(reader));
    TRY(yaml_next(&reader->in)); /* end of the document */
out:
    return rc;
}

static int read_stream(struct yaml_reader *reader)
{
    int rc = ERR_OK;

    TRY(yaml_next(&reader->in)); /* start of the stream */
    TRY(yaml_next(&reader->in));
    if (reader->in.event.type == YAML_DOCUMENT_START_EVENT) {
        TRY(read_document(reader));
        TRY(yaml_next(&reader->in));
    }
    if (reader->in.event.type != YAML_STREAM_END_EVENT)
        return yaml_complain(&reader->in, reader->in.event.start_mark,
                             "a second document starts here; a settings file has one");
out:
    return rc;
}

int yaml_read_source(struct yaml_reader *reader, const struct yaml_source *source, size_t bytes_max,
                     struct err *err)
{
    int rc = ERR_OK;

    if (source->bytes > bytes_max)
        return err_set(err, ERR_CONFIG, 0, ERR_WHERE,
                       "config: %s has %zu bytes; a settings file has at most %zu", source->name,
                       source->bytes, bytes_max);
    TRY(yaml_events_open(&reader->in, source, err));
    rc = read_stream(reader);
    yaml_events_close(&reader->in);
out:
    return rc;
}

int yaml_read(struct config *config, const struct yaml_source *source, struct err *err)
{
    struct yaml_reader reader = {.config = config};

    return yaml_read_source(&reader, source, FILE_BYTES_MAX, err);
}

int yaml_read_text(char **out, struct yaml_source *source, uint64_t bytes_max, struct err *err)
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

    TRY(yaml_read_text(&text, &source, FILE_BYTES_MAX, err));
    TRY(yaml_read(config, &source, err));
out:
    os_free(text);
    return rc;
}
