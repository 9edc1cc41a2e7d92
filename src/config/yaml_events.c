/*
 * yaml_events.c - what YAML may say in a file of ours, event by event, and where it said it.
 *
 * Owns the parser, and sentences with file, line and column.  Of what YAML can do, values, lists
 * and groups of keys pass; aliases, anchors and tags are refused here.  Knows no setting.
 *
 * It reads the events of libyaml, the parser inside libcyaml: libcyaml's own loader does not tell
 * its caller where an unknown key stands.
 *
 * Read next: yaml.c, which makes settings of them.
 */
#include "config/yaml_int.h"

#include <stdio.h>
#include <string.h>

/* ------------------------------------------------------------------------------- complaints */

int yaml_complain(struct yaml_events *in, yaml_mark_t mark, const char *format, ...)
{
    char    sentence[384];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    return err_set(in->err, ERR_CONFIG, 0, ERR_WHERE, "config: %s:%zu:%zu: %s", in->source->name,
                   mark.line + 1, mark.column + 1, sentence);
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

static int complain_of_syntax(struct yaml_events *in)
{
    const yaml_parser_t *parser = &in->parser;
    yaml_mark_t          mark = parser->problem_mark;

    if (parser->error == YAML_MEMORY_ERROR)
        return err_set(in->err, ERR_HOST_MEM, 0, ERR_WHERE, "no memory to read '%s'",
                       in->source->name);
    if (parser->error == YAML_READER_ERROR)
        mark = mark_of_offset(in->source, parser->problem_offset);
    else if (tab_stands_at(in->source, mark))
        return yaml_complain(in, mark, "there is a tab; YAML indents with spaces");
    return yaml_complain(in, mark, "this is not YAML: %s",
                         parser->problem != NULL ? parser->problem : "unreadable");
}

/* ----------------------------------------------------------------------------------- events */

int yaml_events_open(struct yaml_events *out, const struct yaml_source *source, struct err *err)
{
    int rc = ERR_OK;

    *out = (struct yaml_events){.source = source, .err = err};
    if (yaml_parser_initialize(&out->parser) == 0)
        RAISE(err, ERR_HOST_MEM, 0, "no memory to read '%s'", source->name);
    yaml_parser_set_input_string(&out->parser, (const unsigned char *)source->text, source->bytes);
    yaml_parser_set_encoding(&out->parser, YAML_UTF8_ENCODING);
out:
    return rc;
}

void yaml_events_close(struct yaml_events *in)
{
    yaml_event_delete(&in->event);
    yaml_parser_delete(&in->parser);
}

int yaml_next(struct yaml_events *in)
{
    yaml_event_delete(&in->event);
    if (yaml_parser_parse(&in->parser, &in->event) == 0) return complain_of_syntax(in);
    in->count++;
    switch (in->event.type) {
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT: in->depth++; break;
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT: in->depth--; break;
    default: break;
    }
    return ERR_OK;
}

int yaml_expect_scalar(struct yaml_events *in, const char *what)
{
    const yaml_event_t *event = &in->event;
    const char         *form = NULL;

    if (event->type == YAML_SEQUENCE_START_EVENT) form = "a list";
    if (event->type == YAML_MAPPING_START_EVENT) form = "a group of keys";
    if (event->type == YAML_ALIAS_EVENT) form = "an alias (*name)";
    if (form != NULL)
        return yaml_complain(in, event->start_mark, "%s must be a single value, not %s", what,
                             form);
    must(event->type == YAML_SCALAR_EVENT);
    if (event->data.scalar.anchor != NULL)
        return yaml_complain(in, event->start_mark, "%s has an anchor (&name); remove it", what);
    if (event->data.scalar.tag != NULL)
        return yaml_complain(in, event->start_mark, "%s has a tag (!name); remove it", what);
    if (memchr(event->data.scalar.value, '\0', event->data.scalar.length) != NULL)
        return yaml_complain(in, event->start_mark, "%s holds a NUL character", what);
    return ERR_OK;
}

int yaml_expect_bare(struct yaml_events *in, const char *what)
{
    const yaml_event_t *event = &in->event;
    bool                list = event->type == YAML_SEQUENCE_START_EVENT;

    must(list || event->type == YAML_MAPPING_START_EVENT);
    if ((list ? event->data.sequence_start.anchor : event->data.mapping_start.anchor) == NULL &&
        (list ? event->data.sequence_start.tag : event->data.mapping_start.tag) == NULL)
        return ERR_OK;
    return yaml_complain(in, event->start_mark, "%s has an anchor or a tag; remove it", what);
}
