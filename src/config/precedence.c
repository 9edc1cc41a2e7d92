/*
 * precedence.c - the order in which words, files and defaults win.
 *
 * Owns the laying of one over the other.  What a word or a line of a file may say is judged by
 * values.c, how all of them go together by checks.c.
 *
 * Read next: yaml.c, for the files.
 */
#include "config/config_int.h"

#include <stdio.h>
#include <string.h>

void config_defaults(struct config *out)
{
    struct err            err = {.code = ERR_OK};
    size_t                count;
    const struct setting *rows = config_rows(&count);

    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < count; i++)
        must(values_set(out, &rows[i], rows[i].key, rows[i].absent, &err) == ERR_OK);
}

int config_set(struct config *config, const char *key, const char *value, struct err *err)
{
    int                   rc = ERR_OK;
    char                  shown[VALUES_QUOTE_BYTES];
    const struct setting *row = config_find_key(key);

    if (row == NULL) {
        const struct setting *near = config_nearest(key, ALL, false);
        RAISE(err, ERR_USAGE, 0, "unknown setting '%s'%s%s%s", values_quote(shown, key),
              near != NULL ? "; did you mean '" : "", near != NULL ? near->key : "",
              near != NULL ? "'?" : "; 'mural sample-config' lists them all");
    }
    TRY(values_set(config, row, row->key, value, err));
out:
    return rc;
}

static int set_word(struct config *config, const char *word, struct err *err)
{
    int         rc = ERR_OK;
    char        key[32], shown[VALUES_QUOTE_BYTES];
    const char *equals = strchr(word, '=');

    if (equals == NULL || equals == word || (size_t)(equals - word) >= sizeof key)
        RAISE(err, ERR_USAGE, 0, "setting '%s' must have the form key=value",
              values_quote(shown, word));
    memcpy(key, word, (size_t)(equals - word));
    key[equals - word] = '\0';
    TRY(config_set(config, key, equals + 1, err));
out:
    return rc;
}

int config_read_file(struct config *config, const char *path, struct err *err)
{
    return yaml_read_file(config, path, false, err);
}

/* What is known before and after files are found: file names may be "". */
struct layers {
    char               model_file[1088], settings_file[1024];
    const char *const *words;
    size_t             word_count;
};

static int apply(struct config *out, const struct layers *layers, struct err *err)
{
    int rc = ERR_OK;

    config_defaults(out);
    if (layers->model_file[0] != '\0') TRY(yaml_read_file(out, layers->model_file, true, err));
    if (layers->settings_file[0] != '\0')
        TRY(yaml_read_file(out, layers->settings_file, false, err));
    for (size_t i = 0; i < layers->word_count; i++)
        TRY(set_word(out, layers->words[i], err));
out:
    return rc;
}

/* One layer says the size in one way, or the order of its words would decide. */
static int check_size_words(const struct layers *layers, struct err *err)
{
    int  rc = ERR_OK;
    bool size = false, side = false;

    for (size_t i = 0; i < layers->word_count; i++) {
        const char *word = layers->words[i];
        size |= strncmp(word, "size=", 5) == 0;
        side |= strncmp(word, "width=", 6) == 0 || strncmp(word, "height=", 7) == 0;
    }
    if (size && side)
        RAISE(err, ERR_USAGE, 0, "size sets width and height; give size, or width and height");
out:
    return rc;
}

/* The name of one layer's file is itself a setting of a higher layer, so the layers are laid again
 * each time that one more file becomes known. */
int config_load(struct config *out, enum config_command command, const char *const *words,
                size_t word_count, struct err *err)
{
    int           rc = ERR_OK;
    struct layers layers = {.words = words, .word_count = word_count};

    TRY(check_size_words(&layers, err));
    TRY(apply(out, &layers, err));
    if (out->settings_file[0] != '\0') {
        (void)snprintf(layers.settings_file, sizeof layers.settings_file, "%s", out->settings_file);
        TRY(apply(out, &layers, err));
    }
    must(os_join(layers.model_file, sizeof layers.model_file, out->model, "mural.yaml"));
    if ((command & (PAINT | AGAIN | PLANNED)) != 0 && os_is_file(layers.model_file))
        TRY(apply(out, &layers, err));
    if (out->output[0] == '\0' && (command & AGAIN) == 0)
        (void)snprintf(out->output, sizeof out->output, "%s",
                       command == COMMAND_DRAFT ? "draft.png" : "poster.tif");
out:
    return rc;
}
