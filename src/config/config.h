/*
 * config.h - words into numbers: one table of settings behind flags, YAML keys, --help and samples.
 *
 * Rank 1.  A setting exists once, as a row of the table in config.c: name, type, range, default,
 * sentence.  Precedence: flags > the file given by --config > the model's own mural.yaml > defaults.
 */
#ifndef MURAL_CONFIG_H
#define MURAL_CONFIG_H

#include "base/base.h"

enum config_command {
    COMMAND_RENDER = 1 << 0,
    COMMAND_DRAFT = 1 << 1,
    COMMAND_UPSCALE = 1 << 2,
    COMMAND_PLAN = 1 << 3,
    COMMAND_INFO = 1 << 4,
    COMMAND_SYNTH = 1 << 5
};

struct config {
    /* what */
    char     prompt[16384];
    char     model[1024];        /* folder; empty: the sample model        */
    char     transformer[1024], vae[1024];
    uint64_t seed;
    char     output[1024];
    /* canvas and tiles */
    int32_t  width_px, height_px;
    int32_t  tile_px, overlap_px;
    char     fit[16];            /* even | exact */
    /* draft */
    int32_t  draft_px;           /* longest side of the draft              */
    int32_t  draft_steps;
    int32_t  count;              /* drafts to make, seeds seed..seed+n-1   */
    char     draft[1024];        /* where render keeps its draft; empty: not kept */
    /* tiles */
    int32_t  steps;
    double   sigma;              /* noise level where a tile starts        */
    double   strength;           /* > 0: reference img2img rule instead    */
    double   mu;                 /* > 0: fixed shift exponent              */
    double   guidance;
    int32_t  text_tokens;        /* 0: the model's                         */
    char     noise_file[1024];   /* raw f32 noise [h/8, w/8, 16] instead of the seed's */
    /* machine */
    int32_t  threads;
    char     precision[16];      /* auto | f32 | bf16 */
    /* file */
    int32_t  bits;               /* 8 | 16 */
    char     compression[16];    /* none | lzw | deflate | zstd */
    int32_t  level;
    double   dpi;
    bool     pyramid, metadata, overwrite;
    /* talking */
    bool     json, quiet, verbose;
    /* synth */
    char     spec[1024];         /* tiny | flux1-dev | flux1-schnell | file.json */
    char     dtype[16];
    bool     bfl;
    uint64_t shard_bytes;
    /* positional argument of upscale, info, synth; prompt is positional for render, draft, plan */
    char     input[1024];
};

void config_defaults(struct config *out);
/* Settings from a YAML file, over what `config` holds.  Unknown key, wrong type, value out of range:
 * one sentence with file, line and column. */
int config_read_file(struct config *config, const char *path, struct err *err);
/* Flags of one command; argv[0] is the first word after the command. */
int config_read_flags(struct config *config, enum config_command command, int argc, char **argv,
                      struct err *err);
/* --config FILE and --model DIR among the arguments, found before anything else is read; NULL when
 * absent. */
const char *config_find_flag(int argc, char **argv, const char *name);
/* Relations between settings (overlap below tile, sizes, names of files); after all layers. */
int config_check(const struct config *config, enum config_command command, struct err *err);

/* Text of `mural help COMMAND`, into a heap string freed by os_free. */
int config_help(char **text_out, enum config_command command, struct err *err);
/* A complete, annotated sample file with the defaults. */
int config_sample(char **text_out, struct err *err);
/* The settings that make a picture (not where it goes), as one JSON object; for the poster's
 * metadata. */
int config_to_json(char **text_out, const struct config *config, struct err *err);

#endif
