/*
 * json.c - typed reads from JSON files, with a sentence for everything that is not as it should be.
 *
 * jansson parses; this file adds limits and words.
 */
#include "base/base.h"

#include <math.h>
#include <string.h>

int json_file_open(json_t **out, const char *path, uint64_t limit_bytes, struct err *err)
{
    int          rc = ERR_OK;
    char        *text = NULL;
    size_t       bytes = 0;
    json_error_t where;
    json_t      *parsed;

    TRY(os_read_text(&text, &bytes, path, limit_bytes, err));
    parsed = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &where);
    if (parsed == NULL)
        RAISE(err, ERR_FORMAT, 0, "'%s' line %d column %d: not valid JSON: %s", path, where.line,
              where.column, where.text);
    *out = parsed;
out:
    os_free(text);
    return rc;
}

static const char *kind_name(const json_t *value)
{
    static const char *const names[] = {"an object", "a list", "a string", "a whole number",
                                        "a number",  "a bool", "a bool",   "null"};
    return names[json_typeof(value)];
}

int json_read_int(int64_t *out, const json_t *object, const char *file,
                  const struct json_int_rule *rule, struct err *err)
{
    int           rc = ERR_OK;
    const json_t *value = json_object_get(object, rule->key);

    if (value == NULL || json_is_null(value)) {
        if (rule->required)
            RAISE(err, ERR_FORMAT, 0, "'%s': %s is missing; it must be a whole number", file,
                  rule->key);
        *out = rule->absent;
        goto out;
    }
    if (!json_is_integer(value))
        RAISE(err, ERR_FORMAT, 0, "'%s': %s is %s; it must be a whole number", file, rule->key,
              kind_name(value));
    if (json_integer_value(value) < rule->least || json_integer_value(value) > rule->most)
        RAISE(err, ERR_FORMAT, 0, "'%s': %s is %lld; it must be %lld..%lld", file, rule->key,
              (long long)json_integer_value(value), (long long)rule->least, (long long)rule->most);
    *out = json_integer_value(value);
out:
    return rc;
}

int json_read_number(double *out, const json_t *object, const char *file, const char *key,
                     double absent, struct err *err)
{
    int           rc = ERR_OK;
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value)) {
        *out = absent;
        goto out;
    }
    if (!json_is_number(value) || !isfinite(json_number_value(value)))
        RAISE(err, ERR_FORMAT, 0, "'%s': %s is %s; it must be a number", file, key,
              kind_name(value));
    *out = json_number_value(value);
out:
    return rc;
}

int json_read_bool(bool *out, const json_t *object, const char *file, const char *key, bool absent,
                   struct err *err)
{
    int           rc = ERR_OK;
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value)) {
        *out = absent;
        goto out;
    }
    if (!json_is_boolean(value))
        RAISE(err, ERR_FORMAT, 0, "'%s': %s is %s; it must be true or false", file, key,
              kind_name(value));
    *out = json_is_true(value);
out:
    return rc;
}
