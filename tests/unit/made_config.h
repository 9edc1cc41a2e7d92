/*
 * made_config.h - settings on the heap, as the tests of config/ want them.
 */
#ifndef MURAL_MADE_CONFIG_H
#define MURAL_MADE_CONFIG_H

#include "../test.h"

#include "config/config_int.h"

/* The defaults, to be freed. */
static inline struct config *new_config(void)
{
    struct config *config = calloc(1, sizeof *config);

    assert_non_null(config);
    config_defaults(config);
    return config;
}

/* Made by new_config, both of them: what lies between the fields is zeros. */
static inline bool same(const struct config *a, const struct config *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static inline void write_text(const char *path, const char *text)
{
    scratch_write(path, text, strlen(text));
}

#endif
