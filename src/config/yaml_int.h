/*
 * yaml_int.h - what the readers of settings files share; private to yaml*.c.
 */
#ifndef MURAL_YAML_INT_H
#define MURAL_YAML_INT_H

#include "config/config_int.h"

#include <yaml.h>

/* ----------------------------------------------------------------------------- yaml_events.c */

struct yaml_events {
    yaml_parser_t             parser;
    yaml_event_t              event; /* the last one; owned */
    const struct yaml_source *source;
    struct err               *err;   /* where complaints go                */
    uint64_t                  count; /* of events read so far              */
    uint32_t                  depth; /* of lists and groups that are open  */
};
/* `source` and `err` are borrowed until the close. */
int  yaml_events_open(struct yaml_events *out, const struct yaml_source *source, struct err *err);
void yaml_events_close(struct yaml_events *in);
/* The next event replaces the last one. */
int yaml_next(struct yaml_events *in);
/* ERR_CONFIG with the name of the file, the place, and this sentence. */
int yaml_complain(struct yaml_events *in, yaml_mark_t mark, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The last event is a plain single value without YAML's extras. */
int yaml_expect_scalar(struct yaml_events *in, const char *what);
/* It began a list or a group, without extras. */
int yaml_expect_bare(struct yaml_events *in, const char *what);

/* ------------------------------------------------------------------------------------ yaml.c */

enum { YAML_ROWS_MAX = 96 };
struct yaml_seen { /* line of a row, and of a group by its first row; 0: not seen */
    size_t row[YAML_ROWS_MAX], group[YAML_ROWS_MAX];
};
struct yaml_reader {
    struct yaml_events   in;
    struct config       *config; /* takes the values */
    struct yaml_seen     seen;
    struct config_batch *batch; /* NULL: a file of settings alone        */
    struct config_words *words; /* where settings go as well, in a batch */
    bool                 in_job;
    size_t               jobs_line; /* 0: not seen */
};
/* A whole file, of at most `bytes_max`, with the rest of `reader` as the caller set it. */
int yaml_read_source(struct yaml_reader *reader, const struct yaml_source *source, size_t bytes_max,
                     struct err *err);
/* Keys and values up to the end of the group that the last event began. */
int yaml_read_mapping(struct yaml_reader *reader);
/* In a batch, a complaint becomes a mistake, and reading goes on behind what was complained of: the
 * value of the key that was event number `key`, at `depth`. */
int yaml_forgive(struct yaml_reader *reader, uint32_t depth, uint64_t key);
/* The text of a file, freed by os_free, to be pointed at by `source`. */
int yaml_read_text(char **out, struct yaml_source *source, uint64_t bytes_max, struct err *err);

/* ------------------------------------------------------------------------------ yaml_batch.c */

/* The list of jobs, of which the last event is the key. */
int yaml_read_jobs(struct yaml_reader *reader);

#endif
