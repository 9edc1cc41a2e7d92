/*
 * json.h - typed reads from JSON; part of the door base.h, which is what other folders include.
 */
#ifndef MURAL_JSON_H
#define MURAL_JSON_H

#include "base/base.h"

/* Parse a JSON file of at most `limit_bytes` (depth limited by jansson, duplicate keys refused).
 * Free with json_decref. */
int json_file_open(json_t **out, const char *path, uint64_t limit_bytes, struct err *err);

/* Typed reads from an object; `file` names the file in the sentence.  A key that is absent or null
 * gives `absent` (when `required` is false) or an error.  Values outside [least, most] are errors.
 */
struct json_int_rule {
    const char *key;
    int64_t     least, most;
    bool        required;
    int64_t     absent;
};
int json_read_int(int64_t *out, const json_t *object, const char *file,
                  const struct json_int_rule *rule, struct err *err);
int json_read_number(double *out, const json_t *object, const char *file, const char *key,
                     double absent, struct err *err);
int json_read_bool(bool *out, const json_t *object, const char *file, const char *key, bool absent,
                   struct err *err);

#endif
