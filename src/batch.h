/*
 * batch.h - a list of jobs from a file: read, checked before the first is painted, judged at the
 * end.
 *
 * Part of the program, not of the library.
 */
#ifndef MURAL_BATCH_H
#define MURAL_BATCH_H

#include "mural.h"

#include "config/config.h"
#include "report.h"

struct batch {
    const char          *path;
    struct config_batch  file;
    mural_workshop      *workshop;
    mural_job          **jobs; /* [file.count] */
    struct config_words *words;
    bool                *finished; /* of each: its poster is there already */
};

/* The file alone.  Mistakes in it are told as lines of the log; those are no error yet.  `path` is
 * borrowed until batch_close, which is due also after an error; a zeroed struct is fine for it. */
int batch_read(struct batch *out, const char *path, struct err *err);
/* All of its jobs, in one workshop, with `flags` over their settings.  ERR_CONFIG when anything is
 * wrong in the file or with any of the jobs: each mistake is a line of the log.  `program` as for
 * mural_job_open. */
int batch_open(struct batch *batch, const struct config_words *flags, const char *program,
               struct err *err);
/* How it ended: `rows` [file.count] say what became of each, and `err` what ended all of it, if
 * anything did.  ERR_CANCELLED, ERR_PARTIAL, or what it was. */
int  batch_judge(const struct batch *batch, const struct report_row *rows, struct err *err);
void batch_close(struct batch *batch);

#endif
