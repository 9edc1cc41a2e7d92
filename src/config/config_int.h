/*
 * config_int.h - what the files of this folder share: the rows of the settings table.
 *
 * Read next: config.c, which holds the rows.
 */
#ifndef MURAL_CONFIG_INT_H
#define MURAL_CONFIG_INT_H

#include "config/config.h"

enum setting_type {
    SETTING_TEXT,   /* UTF-8 into char[] */
    SETTING_PATH,   /* any bytes into char[] */
    SETTING_CHOICE, /* one of `choices` into char[] */
    SETTING_INT,    /* int32_t */
    SETTING_SEED,   /* uint64_t */
    SETTING_BYTES,  /* uint64_t, with units */
    SETTING_NUMBER, /* double */
    SETTING_SHARE,  /* double 0..1, written 15% or 0.15 */
    SETTING_SWITCH, /* bool */
    SETTING_SIZE    /* sets width, height and dpi */
};

/* In the order in which help shows them. */
enum setting_group {
    GROUP_PICTURE,
    GROUP_POSTER,
    GROUP_DRAFT,
    GROUP_TILES,
    GROUP_FILE,
    GROUP_SAFETY,
    GROUP_SYNTH,
    GROUP_MACHINE,
    GROUP_MEMORY,
    GROUP_TALK,
    GROUP_COUNT
};

enum setting_mark {
    MARK_PICTURE = 1 << 0,   /* part of what makes the picture: goes into its metadata */
    MARK_MODEL = 1 << 1,     /* a model's own mural.yaml may set it */
    MARK_FLAG_ONLY = 1 << 2, /* makes no sense in a file */
    MARK_DERIVED = 1 << 3,   /* stands for other settings; not listed with its value */
    MARK_ABOVE = 1 << 4,     /* the least value itself is not allowed */
    MARK_FREE = 1 << 5,      /* may change while a poster is made: it changes no byte of it */
    MARK_JOB = 1 << 6        /* a job of a batch may set it, though no other part of a file may */
};

/* Sets of commands. */
enum {
    ONE = COMMAND_RENDER | COMMAND_DRAFT | COMMAND_UPSCALE, /* picture with settings of its own */
    PAINT = ONE | COMMAND_BATCH,
    POSTER = COMMAND_RENDER | COMMAND_UPSCALE | COMMAND_BATCH,
    /* commands that paint a draft themselves */
    DRAFTED = COMMAND_RENDER | COMMAND_DRAFT | COMMAND_BATCH,
    AGAIN = COMMAND_RESUME | COMMAND_RETRY, /* commands that go on with a poster of ours */
    PLANNED = COMMAND_PLAN,
    RANDOM = COMMAND_SYNTH,
    ALL = PAINT | AGAIN | COMMAND_PLAN | COMMAND_INFO | COMMAND_SYNTH
};

struct setting {
    const char        *key;     /* in YAML files and words                             */
    const char        *section; /* in YAML files it may also stand in a group of keys, */
    const char        *inner;   /* under this name; both or neither                    */
    const char        *flag;    /* after the two dashes */
    char               letter;  /* short flag, or 0 */
    enum setting_type  type;
    enum setting_group group;
    size_t             offset, capacity; /* of the field in struct config */
    double             least, most;
    int32_t            multiple; /* 0: any */
    const char        *choices;  /* "a|b|c:N", N any number; or NULL */
    const char        *unit;     /* " px", or "" */
    const char        *absent;   /* default, as one would write it */
    unsigned           commands; /* enum config_command */
    unsigned           marks;    /* enum setting_mark */
    const char        *value;    /* stand-in for the value in help, such as PX */
    const char        *sentence;
};

const struct setting *config_rows(size_t *count_out);
const struct setting *config_find_key(const char *key);
/* The row that is called `inner` in the group of keys `section`; inner NULL: any of the group. */
const struct setting *config_find_inner(const char *section, const char *inner);

/* The row whose key or flag is nearest to a mistyped name, or NULL when nothing is near.
 * `commands`: only rows of these; `by_flag`: compare flags rather than keys. */
const struct setting *config_nearest(const char *name, unsigned commands, bool by_flag);
/* Would a person have meant `word` when writing `name`?  Smaller *edits is nearer. */
bool config_is_near(const char *name, const char *word, uint32_t *edits);

/* words.c: adds "key=value" at the end. */
int words_put(struct config_words *words, const char *key, const char *value, struct err *err);

/* values.c: text into the field of a row.  `spoken` is how the user named the setting. */
int values_set(struct config *config, const struct setting *row, const char *spoken,
               const char *text, struct err *err);
/* The field as JSON, a new reference.  NULL: a size, which stands for other rows; text that is not
 * UTF-8; or no memory. */
json_t *values_json(const struct config *config, const struct setting *row);
/* What values the row allows: "64..4096 and a multiple of 16", "even or exact". */
void values_rule(char *out, size_t capacity, const struct setting *row);
/* A short printable form of anything a user wrote, for sentences; returns out. */
enum { VALUES_QUOTE_BYTES = 48 };
const char *values_quote(char out[VALUES_QUOTE_BYTES], const char *text);

/* yaml.c: settings in memory.  `name` is the file's name for sentences.  From a model, only rows
 * with MARK_MODEL are allowed. */
struct yaml_source {
    const char *name;
    const char *text;
    size_t      bytes;
    bool        from_model;
};
int yaml_read(struct config *config, const struct yaml_source *source, struct err *err);
/* The same with a list of jobs in it; what is wrong with a setting goes to the mistakes. */
int yaml_read_batch(struct config_batch *out, const struct yaml_source *source, struct err *err);
int yaml_read_file(struct config *config, const char *path, bool from_model, struct err *err);

#endif
