/*
 * err.c - one sentence per failure, written where it is detected.
 *
 * Owns the text of struct err and the stop on broken promises.  Never prints anything else and
 * never decides what happens next: that is the caller's.
 *
 * Read next: os.c, the first user.
 */
#include "base/base.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int err_set(struct err *err, enum err_code code, int sys, const char *where, const char *format,
            ...)
{
    va_list args;

    must(err != NULL);
    must(code != ERR_OK);
    err->code = code;
    err->sys = sys;
    err->where = where;
    va_start(args, format);
    (void)vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    return (int)code;
}

void err_context(struct err *err, const char *format, ...)
{
    char    joined[2 * sizeof err->text + 2];
    va_list args;
    int     wrote;

    va_start(args, format);
    wrote = vsnprintf(joined, sizeof err->text, format, args);
    va_end(args);
    if (wrote < 0) return;

    size_t used = strlen(joined);
    (void)snprintf(joined + used, sizeof joined - used, ": %s", err->text);
    memcpy(err->text, joined, sizeof err->text);
    err->text[sizeof err->text - 1] = '\0';
}

bool err_is_retryable(const struct err *err)
{
    switch (err->code) {
    case ERR_DEVICE:
    case ERR_DEVICE_MEM:
    case ERR_NUMERIC:
    case ERR_PEER: return true;
    case ERR_IO: return err->sys == EINTR || err->sys == EAGAIN;
    default: return false;
    }
}

const char *err_name(enum err_code code)
{
    static const char *const names[] = {
        [ERR_OK] = "ok",
        [ERR_USAGE] = "usage",
        [ERR_CONFIG] = "config",
        [ERR_FORMAT] = "format",
        [ERR_IO] = "io",
        [ERR_HOST_MEM] = "host memory",
        [ERR_DEVICE] = "device",
        [ERR_DEVICE_MEM] = "device memory",
        [ERR_NUMERIC] = "numeric",
        [ERR_PEER] = "peer",
        [ERR_CANCELLED] = "cancelled",
        [ERR_PARTIAL] = "partial",
    };
    if ((size_t)code >= ARRAY_COUNT(names)) return "unknown";
    return names[code];
}

_Noreturn void must_fail(const char *condition, const char *where)
{
    (void)fprintf(stderr, "mural: broken promise at %s: %s\n", where, condition);
    abort();
}
