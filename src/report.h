/*
 * report.h - what the command line prints: plans, and what is written in pictures.
 *
 * Part of the program, not of the library.
 */
#ifndef MURAL_REPORT_H
#define MURAL_REPORT_H

#include "mural.h"

#include "base/base.h"
#include "config/config.h"
#include "image/image.h"

#include <stdio.h>

/* What became of one poster of a batch. */
enum report_state { REPORT_NOT_BEGUN = 0, REPORT_PAINTED, REPORT_FINISHED_BEFORE, REPORT_FAILED };
struct report_row {
    const char       *path;
    enum report_state state;
    double            seconds;  /* of those that were begun */
    char              why[512]; /* that failed              */
};

/* JSON is UTF-8: a name or text that is not ends where it stops to be.  A new reference. */
json_t *report_text(const char *text);
/* Takes `object`; NULL, as json_pack gives when memory is short, is ERR_HOST_MEM. */
int report_json(FILE *out, json_t *object, struct err *err);

void report_plan(FILE *out, const struct mural_plan_info *plan, const struct config *config);
int  report_plan_json(FILE *out, const struct mural_plan_info *plan, const struct config *config,
                      struct err *err);

void report_info(FILE *out, const char *path, const struct picture_info *info);
/* `seconds` >= 0 adds how long the file took to make. */
int report_info_json(FILE *out, const char *path, const struct picture_info *info, double seconds,
                     struct err *err);

int report_batch_json(FILE *out, const char *path, const struct report_row *rows, size_t count,
                      struct err *err);

#endif
