/*
 * yaml_batch.c - a settings file with a list of jobs in it.
 *
 * Owns the list: each job is read as a settings file of its own would be, and kept as words, to be
 * laid over the words of all jobs.  What is wrong with a setting is yaml.c's to find.
 *
 * Read next: yaml.c.
 */
#include "config/yaml_int.h"

#include <string.h>

enum { BATCH_BYTES_MAX = 4 * 1024 * 1024 };

static int add_job(struct yaml_reader *reader, struct config_job **out, size_t line)
{
    int                  rc = ERR_OK;
    struct config_batch *batch = reader->batch;

    if (batch->jobs == NULL)
        TRY(os_alloc((void **)&batch->jobs, CONFIG_JOBS_MAX, sizeof *batch->jobs, "a list of jobs",
                     reader->in.err));
    if (batch->count == CONFIG_JOBS_MAX)
        return yaml_complain(&reader->in, reader->in.event.start_mark,
                             "a batch has at most %d jobs", CONFIG_JOBS_MAX);
    *out = &batch->jobs[batch->count++];
    **out = (struct config_job){.line = line};
out:
    return rc;
}

/* The last event began it.  It is read as a file of its own would be. */
static int read_job(struct yaml_reader *reader)
{
    int                rc = ERR_OK;
    struct yaml_seen   outer = reader->seen;
    yaml_mark_t        mark = reader->in.event.start_mark;
    struct config_job *job = NULL;

    if (reader->in.event.type != YAML_MAPPING_START_EVENT)
        return yaml_complain(&reader->in, mark,
                             "a job is a group of keys, as in '- prompt: A fox'");
    TRY(yaml_expect_bare(&reader->in, "a job"));
    TRY(add_job(reader, &job, mark.line + 1));
    reader->seen = (struct yaml_seen){.row = {0}};
    reader->in_job = true;
    reader->words = &job->words;
    rc = yaml_read_mapping(reader);
    reader->seen = outer;
    reader->in_job = false;
    reader->words = &reader->batch->common;
out:
    return rc;
}

int yaml_read_jobs(struct yaml_reader *reader)
{
    int         rc = ERR_OK;
    yaml_mark_t mark = reader->in.event.start_mark;
    uint32_t    depth = reader->in.depth + 1;

    if (reader->jobs_line != 0)
        return yaml_complain(&reader->in, mark, "'jobs' was already set in line %zu",
                             reader->jobs_line);
    reader->jobs_line = mark.line + 1;
    TRY(yaml_next(&reader->in));
    if (reader->in.event.type != YAML_SEQUENCE_START_EVENT)
        return yaml_complain(&reader->in, reader->in.event.start_mark,
                             "jobs must be a list, with '- prompt: ...' for each poster");
    TRY(yaml_expect_bare(&reader->in, "jobs"));
    for (;;) {
        TRY(yaml_next(&reader->in));
        if (reader->in.event.type == YAML_SEQUENCE_END_EVENT) break;
        if (read_job(reader) != ERR_OK) TRY(yaml_forgive(reader, depth, 0));
    }
out:
    return rc;
}

int yaml_read_batch(struct config_batch *out, const struct yaml_source *source, struct err *err)
{
    int                rc = ERR_OK;
    struct config     *scratch = NULL;
    struct yaml_reader reader = {.batch = out, .words = &out->common};

    TRY(os_alloc((void **)&scratch, 1, sizeof *scratch, "settings", err));
    reader.config = scratch; /* takes the values, to have them judged */
    TRY(yaml_read_source(&reader, source, BATCH_BYTES_MAX, err));
    if (out->count == 0 && out->mistakes.count == 0)
        RAISE(err, ERR_CONFIG, 0, "config: %s: it has no jobs; 'mural help batch' shows a list",
              source->name);
out:
    os_free(scratch);
    return rc;
}

int config_batch_read(struct config_batch *out, const char *path, struct err *err)
{
    int                rc = ERR_OK;
    char              *text = NULL;
    struct yaml_source source = {.name = path};

    *out = (struct config_batch){.count = 0};
    TRY(yaml_read_text(&text, &source, BATCH_BYTES_MAX, err));
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
