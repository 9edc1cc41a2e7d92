/*
 * config.h - words into numbers: one table of settings behind flags, YAML keys, --help and samples.
 *
 * Rank 1.  A setting exists once, as a row of the table in config.c: name, type, range, default,
 * sentence.  Precedence: words, then the file named by "config", then the model's own mural.yaml,
 * then defaults.
 *
 * A word is "key=value" with the key of the YAML files.  The command line becomes words
 * (config_read_flags), and mural.h is spoken to in words, so that both know the same settings.
 */
#ifndef MURAL_CONFIG_H
#define MURAL_CONFIG_H

#include "base/base.h"

enum config_command {
    COMMAND_RENDER = 1 << 0,
    COMMAND_DRAFT = 1 << 1,
    COMMAND_UPSCALE = 1 << 2,
    COMMAND_BATCH = 1 << 3,
    COMMAND_RESUME = 1 << 4,
    COMMAND_RETRY = 1 << 5,
    COMMAND_PLAN = 1 << 6,
    COMMAND_INFO = 1 << 7,
    COMMAND_SYNTH = 1 << 8,
    COMMAND_SAMPLE = 1 << 9, /* sample-config */
    COMMAND_HELP = 1 << 10
};

struct config {
    /* what */
    char     prompt[16384];
    char     settings_file[1024]; /* the YAML file given by "config"; empty: none */
    char     model[1024];         /* folder */
    char     transformer[1024], vae[1024];
    uint64_t seed;         /* at most INT64_MAX */
    char     output[1024]; /* never empty after config_load */
    /* canvas and tiles */
    int32_t width_px, height_px;
    int32_t tile_px, overlap_px;
    char    fit[16]; /* even | exact */
    /* draft */
    int32_t draft_px; /* longest side of the draft */
    int32_t draft_steps;
    int32_t count;       /* drafts to make, seeds seed..seed+n-1 */
    char    draft[1024]; /* where render keeps its draft; empty: not kept */
    /* tiles */
    int32_t steps;
    double  sigma;    /* noise level where a tile starts */
    double  strength; /* > 0: reference img2img rule instead */
    double  mu;       /* > 0: fixed shift exponent */
    double  guidance;
    int32_t text_tokens;      /* 0: the model's */
    char    noise_file[1024]; /* raw f32 noise [h/8, w/8, 16] instead of the seed's */
    /* machine */
    char    device[16]; /* auto | cpu | cuda | cuda:N */
    int32_t threads;
    char    precision[16];      /* auto | f32 | bf16 */
    bool    persistent_workers; /* paint in processes of their own */
    int32_t workers;            /* how many */
    int32_t worker_timeout;     /* seconds without a sign of life */
    int32_t warmup_batches;     /* predictions that no estimate of time counts */
    /* memory of a GPU */
    uint64_t vram_bytes; /* hard cap, 0: what is free */
    bool     expandable_segments;
    uint64_t segment_bytes;
    double   fragmentation_max; /* 0..1 */
    uint64_t pool_bytes;        /* 0: none */
    bool     offload;
    int32_t  batch_size;   /* most tiles that share a copy of weights, 0: the planner's choice */
    double   keep_share;   /* 0..1 */
    char     on_short[16]; /* stop | change */
    double   card_tflops;  /* of the GPU that a plan is for, 0: measure it */
    uint64_t link_bytes_per_second, disk_bytes_per_second; /* 0: measure them */
    char     memory_plot[1024]; /* PNG of it over time, empty: none */
    /* when things go wrong */
    int32_t tile_retries; /* attempts at a tile after the first */
    char    on_fail[16];  /* keep | draft */
    char    tiles[1024];  /* to paint again: "3,7-9" */
    bool    keep_tiles;
    /* file */
    int32_t bits;            /* 8 | 16 */
    char    compression[16]; /* none | lzw | deflate | zstd */
    int32_t level;
    double  dpi;
    bool    pyramid, metadata, overwrite;
    /* talking */
    bool json, quiet, verbose;
    /* synth */
    char     spec[1024]; /* tiny | flux1-dev | flux1-schnell | file.json */
    char     dtype[16];
    bool     bfl;
    uint64_t shard_bytes;
    /* positional argument of upscale, batch, info, synth; of resume and retry it is the output, and
     * of render, draft and plan the prompt */
    char input[1024];
};

void config_defaults(struct config *out);

/* One setting by its YAML key.  ERR_USAGE: unknown key (with the nearest one), or a value that is
 * not what the row allows; `config` is then unchanged. */
int config_set(struct config *config, const char *key, const char *value, struct err *err);

/* Settings from a YAML file, over what `config` holds.  Unknown key, wrong type, value out of
 * range: ERR_CONFIG, one sentence with file, line and column. */
int config_read_file(struct config *config, const char *path, struct err *err);

/* All layers in their order: defaults, the model's mural.yaml when there is one, the file named by
 * a "config" word, the words.  An empty output then gets the usual name for `command`.  Relations
 * between settings are left to config_check. */
int config_load(struct config *out, enum config_command command, const char *const *words,
                size_t word_count, struct err *err);

/* Relations between settings: overlap below tile, needed settings present, files that must exist or
 * must not, an output folder that can be written.  A poster that exists is none of its business: it
 * may be the very one that is asked for, and render knows. */
int config_check(const struct config *config, enum config_command command, struct err *err);
/* Of these, whether a poster to go on with, tiles to paint again, or a list of jobs are named. */
int config_check_named(const struct config *config, enum config_command command, struct err *err);
/* Is there a journal beside the output of this name: a poster to go on with, or to retouch? */
bool config_is_begun(const char *output);
/* Do the two differ in nothing but words, seed, and names of files other than a model's? */
bool config_plans_alike(const struct config *one, const struct config *other);

/* ------------------------------------------------------------------------------ command line */

/* Words made of flags; each is a heap string.  Closing a zeroed struct is fine. */
struct config_words {
    char **word;
    size_t count;
};
/* Adds copies of `words` as one layer over those of `out`: a size as its sides, so that a lower
 * layer's size and a higher one's width do not contradict each other. */
int config_words_lay(struct config_words *out, const struct config_words *words, struct err *err);

/* Flags of one command into words; argv[0] is the first argument after the command.  The positional
 * argument becomes "prompt=", "input=" or "output=".  Values are judged here, so that sentences
 * name flags. */
int config_read_flags(struct config_words *out, enum config_command command, int argc, char **argv,
                      struct err *err);
/* Adds a copy of `word` at the end. */
int  config_words_add(struct config_words *words, const char *word, struct err *err);
void config_words_close(struct config_words *words);

/* "render" -> COMMAND_RENDER; ERR_USAGE with the nearest command otherwise. */
int         config_find_command(enum config_command *out, const char *name, struct err *err);
const char *config_command_name(enum config_command command);

/* ------------------------------------------------------------------------------------ batches */

enum { CONFIG_JOBS_MAX = 1000, CONFIG_MISTAKES_MAX = 50 };

/* A settings file with a list of jobs in it; all memory is freed by config_batch_close, for which a
 * zeroed struct is fine. */
struct config_batch {
    struct config_words common; /* settings of all jobs */
    struct config_job {
        struct config_words words; /* of this one alone, to be laid over those */
        size_t              line;  /* where it starts in the file, from 1      */
    }     *jobs; /* [count], at most CONFIG_JOBS_MAX */
    size_t count;
    /* Sentences with file, line and column: settings that are unknown or wrong, and were left out;
     * at most CONFIG_MISTAKES_MAX. */
    struct config_words mistakes;
};
/* ERR_CONFIG: the file cannot be read, is no YAML, names no job, or has too many mistakes; what was
 * found before is in *out all the same. */
int  config_batch_read(struct config_batch *out, const char *path, struct err *err);
void config_batch_close(struct config_batch *batch);

/* ------------------------------------------------------------- what a poster keeps to the end */

/* The settings that a poster has from its first tile to its last, whoever goes on with it: one JSON
 * object with YAML keys and full paths.  A path that is not UTF-8 is left out.  Freed by
 * json_decref. */
int config_kept_json(json_t **out, const struct config *config, struct err *err);
/* Such an object as words, added to `out`; `file` is named when it is not one (ERR_FORMAT). */
int config_kept_words(struct config_words *out, const json_t *kept, const char *file,
                      struct err *err);
/* In how many settings the two differ, and the first of them as "steps is 20 there and 28 here,
 * ...". Paths are not compared: what counts is what the files hold. */
uint32_t config_kept_differences(char *out, size_t capacity, const json_t *kept,
                                 const json_t *other);

/* --------------------------------------------------------------------- text, freed by os_free */

/* Text of `mural help COMMAND`; COMMAND_HELP gives the overview of all commands. */
int config_help(char **text_out, enum config_command command, struct err *err);
/* A complete, annotated sample file with the defaults. */
int config_sample(char **text_out, struct err *err);
/* The settings that make a picture (not where it goes), as one JSON object with YAML keys; for the
 * poster's metadata.  Folders are left out of names.  "auto", and 0 for "the model's", are written
 * as they stand: fill in the values that were used first. */
int config_to_json(char **text_out, const struct config *config, struct err *err);

#endif
