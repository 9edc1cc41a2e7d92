/*
 * words.c - lists of settings as text, "key=value".
 *
 * Owns the lists' memory, and how one layer of words is laid over another.  Judges no value.
 *
 * Read next: precedence.c, where words win over files.
 */
#include "config/config_int.h"

#include <stdio.h>
#include <string.h>

void config_words_close(struct config_words *words)
{
    for (size_t i = 0; i < words->count; i++)
        os_free(words->word[i]);
    os_free(words->word);
    *words = (struct config_words){.count = 0};
}

/* `word` becomes the list's.  There is room for a power of two of them. */
static int append(struct config_words *words, char *word, struct err *err)
{
    int   rc = ERR_OK;
    void *list = NULL;

    if ((words->count & (words->count - 1)) == 0) {
        TRY(os_alloc(&list, words->count == 0 ? 1 : 2 * words->count, sizeof *words->word,
                     "a list of settings", err));
        if (words->count > 0) memcpy(list, words->word, words->count * sizeof *words->word);
        os_free(words->word);
        words->word = list;
    }
    words->word[words->count++] = word;
out:
    return rc;
}

int words_put(struct config_words *words, const char *key, const char *value, struct err *err)
{
    int    rc = ERR_OK;
    size_t bytes = strlen(key) + strlen(value) + 2;
    void  *word = NULL;

    TRY(os_alloc(&word, bytes, 1, "a setting", err));
    (void)snprintf(word, bytes, "%s=%s", key, value);
    TRY(append(words, word, err));
    word = NULL;
out:
    os_free(word);
    return rc;
}

int config_words_add(struct config_words *words, const char *word, struct err *err)
{
    int   rc = ERR_OK;
    char *copy = NULL;

    TRY(text_copy(&copy, word, "a setting", err));
    TRY(append(words, copy, err));
    copy = NULL;
out:
    os_free(copy);
    return rc;
}

/* A size as the sides, and perhaps the resolution, that it stands for. */
static int lay_size(struct config_words *out, const char *text, struct err *err)
{
    int            rc = ERR_OK;
    char           word[64];
    struct config *scratch = NULL;

    TRY(os_alloc((void **)&scratch, 1, sizeof *scratch, "settings", err));
    TRY(values_set(scratch, config_find_key("size"), "size", text, err));
    (void)snprintf(word, sizeof word, "width=%d", scratch->width_px);
    TRY(config_words_add(out, word, err));
    (void)snprintf(word, sizeof word, "height=%d", scratch->height_px);
    TRY(config_words_add(out, word, err));
    (void)snprintf(word, sizeof word, "dpi=%.17g", scratch->dpi);
    if (scratch->dpi > 0) TRY(config_words_add(out, word, err));
out:
    os_free(scratch);
    return rc;
}

int config_words_lay(struct config_words *out, const struct config_words *words, struct err *err)
{
    static const char size[] = "size=";
    int               rc = ERR_OK;

    for (size_t i = 0; i < words->count; i++) {
        const char *word = words->word[i];
        if (strncmp(word, size, sizeof size - 1) == 0)
            TRY(lay_size(out, word + sizeof size - 1, err));
        else
            TRY(config_words_add(out, word, err));
    }
out:
    return rc;
}
