/*
 * kept.c - the settings that a poster keeps from its first tile to its last, and a plan from poster
 * to poster.
 *
 * Owns which rows of the table those are, and how they are written down, read back and compared.
 * Knows nothing of journals.  Rows with MARK_FREE stay out of what a poster keeps: they may change
 * from run to run.
 *
 * Read next: config.c, for the rows.
 */
#include "config/config_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_kept(const struct setting *row)
{
    return (row->commands & (COMMAND_RENDER | COMMAND_UPSCALE)) != 0 &&
           (row->marks & (MARK_FREE | MARK_DERIVED)) == 0;
}

/* A new reference; NULL for a path that is unset or not UTF-8. */
static json_t *value_of(const struct config *config, const struct setting *row)
{
    const char *field = (const char *)config + row->offset;
    char        path[1024];

    if (row->type != SETTING_PATH) return values_json(config, row);
    if (*field == '\0') return NULL;
    /* Too long from the root on: as it was given, which is good from the same folder. */
    return json_string(os_absolute(path, sizeof path, field) ? path : field);
}

int config_kept_json(json_t **out, const struct config *config, struct err *err)
{
    int                   rc = ERR_OK;
    size_t                count;
    const struct setting *rows = config_rows(&count);
    json_t               *object = json_object();

    if (object == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory for the settings of the poster");
    for (size_t i = 0; i < count; i++) {
        json_t *value;
        if (!is_kept(&rows[i])) continue;
        value = value_of(config, &rows[i]);
        if (value == NULL && rows[i].type == SETTING_PATH) continue;
        if (json_object_set_new(object, rows[i].key, value) != 0)
            RAISE(err, ERR_HOST_MEM, 0, "no memory for the settings of the poster");
    }
    *out = object;
    object = NULL;
out:
    json_decref(object);
    return rc;
}

/* A value as one would write it; the caller frees it. */
static char *text_of(const json_t *value)
{
    return json_is_string(value) ? strdup(json_string_value(value))
                                 : json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
}

int config_kept_words(struct config_words *out, const json_t *kept, const char *file,
                      struct err *err)
{
    int            rc = ERR_OK;
    struct config *scratch = NULL;
    char          *text = NULL;
    const char    *key;
    json_t        *value;

    TRY(os_alloc((void **)&scratch, 1, sizeof *scratch, "settings", err));
    json_object_foreach((json_t *)(uintptr_t)kept, key, value)
    {
        const struct setting *row = config_find_key(key);

        text = text_of(value);
        if (text == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory for the settings of the poster");
        if (row == NULL || !is_kept(row) || json_is_object(value) || json_is_array(value) ||
            values_set(scratch, row, row->key, text, err) != ERR_OK)
            RAISE(err, ERR_FORMAT, 0,
                  "'%s': it sets '%.32s' to something that this mural does not "
                  "know; go on with the version that began",
                  file, key);
        TRY(words_put(out, key, text, err));
        free(text);
        text = NULL;
    }
out:
    free(text);
    os_free(scratch);
    return rc;
}

/* "steps is 20 there and 28 here" */
static void describe(char *out, size_t capacity, const char *key, const json_t *there,
                     const json_t *here)
{
    char  shown[2][VALUES_QUOTE_BYTES];
    char *texts[2] = {there != NULL ? text_of(there) : NULL, here != NULL ? text_of(here) : NULL};

    for (int i = 0; i < 2; i++) {
        (void)values_quote(shown[i], texts[i] == NULL      ? "not set"
                                     : texts[i][0] == '\0' ? "empty"
                                                           : texts[i]);
        free(texts[i]);
    }
    (void)snprintf(out, capacity, "%s is %s there and %s here", key, shown[0], shown[1]);
}

uint32_t config_kept_differences(char *out, size_t capacity, const json_t *kept,
                                 const json_t *other)
{
    enum { TOLD = 3 };
    size_t                count, used = 0;
    const struct setting *rows = config_rows(&count);
    uint32_t              differences = 0;

    out[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        const json_t *there = json_object_get(kept, rows[i].key);
        const json_t *here = json_object_get(other, rows[i].key);
        char          line[32 + 2 * VALUES_QUOTE_BYTES + 32];

        if (!is_kept(&rows[i]) || rows[i].type == SETTING_PATH) continue;
        if (there == here || (there != NULL && json_equal(there, here))) continue;
        if (++differences > TOLD) continue;
        describe(line, sizeof line, rows[i].key, there, here);
        (void)snprintf(out + used, capacity - used, "%s%s", used > 0 ? ", " : "", line);
        used = strlen(out);
    }
    if (differences > TOLD)
        (void)snprintf(out + used, capacity - used, " and %u more", differences - TOLD);
    return differences;
}

/* -------------------------------------------------------------------------------------- plans */

/* Is the row's field of `one` and `other` the same, as far as a plan goes? */
static bool plans_alike(const struct setting *row, const struct config *one,
                        const struct config *other)
{
    static const char *const names[] = {"prompt", "seed", "output", "keep_draft", "noise_file"};
    const char *a = (const char *)one + row->offset, *b = (const char *)other + row->offset;
    json_t     *x, *y;
    bool        same;

    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (strcmp(row->key, names[i]) == 0) return true;
    if (strcmp(row->key, "input") == 0) return (*a == '\0') == (*b == '\0');
    if (row->type == SETTING_SIZE) return true; /* stands for other rows */
    if (row->type == SETTING_PATH) return strcmp(a, b) == 0;
    x = values_json(one, row);
    y = values_json(other, row);
    same = x != NULL && y != NULL && json_equal(x, y);
    json_decref(x);
    json_decref(y);
    return same;
}

bool config_plans_alike(const struct config *one, const struct config *other)
{
    bool                  alike = true;
    size_t                count;
    const struct setting *rows = config_rows(&count);

    for (size_t i = 0; i < count && alike; i++)
        alike = plans_alike(&rows[i], one, other);
    return alike;
}
