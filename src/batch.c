/*
 * batch.c - a list of jobs from a file, made into jobs of one workshop.
 *
 * Owns how the settings of a job are put together: those of all jobs, over them its own, over them
 * the flags.  Every mistake is told with its place, all of them before anything is painted.  What
 * is not the file's fault, such as a GPU that fails, ends it at once.
 *
 * Read next: main.c, which paints the jobs.
 */
#include "batch.h"

#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void tell_mistake(struct batch *batch, size_t line, const char *sentence, struct err *err)
{
    char words[1000];

    (void)snprintf(words, sizeof words, "%.300s:%zu: %.600s", batch->path, line, sentence);
    log_line(LOG_ERROR, "%s", words);
    (void)config_words_add(&batch->file.mistakes, words, err);
}

int batch_read(struct batch *out, const char *path, struct err *err)
{
    int rc;

    *out = (struct batch){.path = path};
    rc = config_batch_read(&out->file, path, err);
    for (size_t i = 0; i < out->file.mistakes.count; i++)
        log_line(LOG_ERROR, "%s", out->file.mistakes.word[i]);
    return rc;
}

/* --------------------------------------------------------------------------------- words of a job
 */

/* The last value of `key` among the words, or NULL. */
static const char *value_of(const struct config_words *words, const char *key)
{
    size_t      length = strlen(key);
    const char *value = NULL;

    for (size_t i = 0; i < words->count; i++)
        if (strncmp(words->word[i], key, length) == 0 && words->word[i][length] == '=')
            value = words->word[i] + length + 1;
    return value;
}

static int lay_flags(struct config_words *out, const struct config_words *flags, struct err *err)
{
    int rc = ERR_OK;

    for (size_t i = 0; i < flags->count; i++) {
        struct config_words one = {.word = &flags->word[i], .count = 1};
        /* The word after the command is the file itself. */
        if (strncmp(flags->word[i], "input=", 6) != 0) TRY(config_words_lay(out, &one, err));
    }
out:
    return rc;
}

static int make_words(struct config_words *out, const struct batch *batch, size_t i,
                      const struct config_words *flags, struct err *err)
{
    int rc = ERR_OK;

    TRY(config_words_lay(out, &batch->file.common, err));
    TRY(config_words_lay(out, &batch->file.jobs[i].words, err));
    TRY(lay_flags(out, flags, err));
out:
    return rc;
}

/* ---------------------------------------------------------------------------- names of the outputs
 */

/* What a name is called wherever one stands: the folder's real name and the last part. */
static void place_of(char *out, size_t capacity, const char *path)
{
    char        folder[1024], whole[4200];
    const char *slash = strrchr(path, '/');

    if (!os_folder(folder, sizeof folder, path) || !os_absolute(whole, sizeof whole, folder))
        whole[0] = '\0';
    (void)snprintf(out, capacity, "%s/%s", whole, slash != NULL ? slash + 1 : path);
}

/* Two jobs that write one file would take turns at it, again and again. */
static void check_name(struct batch *batch, size_t i, const char *name, struct err *err)
{
    static const char *const keys[] = {"output", "keep_draft"};
    char                     mine[4400], other[4400], sentence[600];

    place_of(mine, sizeof mine, name);
    for (size_t before = 0; before < i; before++) {
        for (size_t k = 0; k < ARRAY_COUNT(keys); k++) {
            const char *value = value_of(&batch->words[before], keys[k]);
            if (value == NULL || value[0] == '\0') continue;
            place_of(other, sizeof other, value);
            if (strcmp(mine, other) != 0) continue;
            (void)snprintf(sentence, sizeof sentence,
                           "'%.400s' is written by the job in line %zu too; give each its own name",
                           name, batch->file.jobs[before].line);
            tell_mistake(batch, batch->file.jobs[i].line, sentence, err);
            return;
        }
    }
}

/* ------------------------------------------------------------------------------------------- jobs
 */

static bool is_mistake(int code)
{
    return code == ERR_USAGE || code == ERR_CONFIG || code == ERR_FORMAT || code == ERR_IO;
}

static int open_job(struct batch *batch, size_t i, struct err *err)
{
    int                  rc = ERR_OK, finished = 0;
    struct config_words *words = &batch->words[i];
    const char          *output = value_of(words, "output"), *draft = value_of(words, "keep_draft");
    const char          *input = value_of(words, "input");
    enum mural_task      task = input != NULL && input[0] != '\0' ? MURAL_UPSCALE : MURAL_RENDER;
    struct mural_error   error = {.code = 0};
    size_t               line = batch->file.jobs[i].line;

    if (output == NULL || output[0] == '\0') {
        tell_mistake(batch, line, "no output; name the poster's file", err);
        goto out;
    }
    check_name(batch, i, output, err);
    if (draft != NULL && draft[0] != '\0') check_name(batch, i, draft, err);
    if (mural_workshop_job(&batch->jobs[i], batch->workshop, task, (const char *const *)words->word,
                           words->count, &error) == 0 &&
        mural_job_check(batch->jobs[i], &finished, &error) == 0) {
        batch->finished[i] = finished != 0;
        goto out;
    }
    if (!is_mistake(error.code)) RAISE(err, (enum err_code)error.code, 0, "%s", error.text);
    tell_mistake(batch, line, error.text, err);
out:
    return rc;
}

int batch_open(struct batch *batch, const struct config_words *flags, const char *program,
               struct err *err)
{
    int                rc = ERR_OK;
    size_t             count = batch->file.count, told;
    struct mural_error error;

    TRY(os_alloc((void **)&batch->words, count, sizeof *batch->words, "a list of jobs", err));
    TRY(os_alloc((void **)&batch->jobs, count, sizeof *batch->jobs, "a list of jobs", err));
    TRY(os_alloc((void **)&batch->finished, count, sizeof *batch->finished, "a list of jobs", err));
    if (mural_workshop_open(&batch->workshop, program, &error) != 0)
        RAISE(err, (enum err_code)error.code, 0, "%s", error.text);
    for (size_t i = 0; i < count && batch->file.mistakes.count < CONFIG_MISTAKES_MAX; i++) {
        TRY(make_words(&batch->words[i], batch, i, flags, err));
        TRY(open_job(batch, i, err));
    }
    told = batch->file.mistakes.count;
    if (told > 0)
        RAISE(err, ERR_CONFIG, 0, "%s%zu mistake%s in '%s'; nothing was painted",
              told >= CONFIG_MISTAKES_MAX ? "at least " : "", told, told == 1 ? "" : "s",
              batch->path);
out:
    return rc;
}

int batch_judge(const struct batch *batch, const struct report_row *rows, struct err *err)
{
    int    rc = (int)err->code;
    size_t count = batch->file.count, missing = 0;

    for (size_t i = 0; i < count; i++)
        missing += rows[i].state == REPORT_FAILED || rows[i].state == REPORT_NOT_BEGUN;
    if (rc == ERR_CANCELLED)
        return err_set(err, ERR_CANCELLED, 0, ERR_WHERE,
                       "stopped on request; %zu of %zu posters are finished; go on with: mural "
                       "batch %s",
                       count - missing, count, batch->path);
    if (rc == ERR_OK && missing > 0)
        RAISE(
            err, ERR_PARTIAL, 0,
            "%zu of %zu posters failed; the others are finished, and the same command tries again",
            missing, count);
out:
    return rc;
}

void batch_close(struct batch *batch)
{
    for (size_t i = 0; i < batch->file.count; i++) {
        if (batch->jobs != NULL) mural_job_close(batch->jobs[i]);
        if (batch->words != NULL) config_words_close(&batch->words[i]);
    }
    mural_workshop_close(batch->workshop);
    os_free(batch->jobs);
    os_free(batch->words);
    os_free(batch->finished);
    config_batch_close(&batch->file);
    *batch = (struct batch){.path = NULL};
}
