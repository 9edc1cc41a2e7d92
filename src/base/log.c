/*
 * log.c - lines for people who watch.  Never decides anything.
 *
 * The one process-wide state of this folder: where lines go.  Until somebody installs a sink, lines
 * vanish, so library users hear nothing.
 */
#include "base/base.h"

#include <stdio.h>

static struct {
    log_sink       sink;
    void          *user;
    enum log_level least;
} output;

void log_install(log_sink sink, void *user, enum log_level least)
{
    output.sink = sink;
    output.user = user;
    output.least = least;
}

void log_line(enum log_level level, const char *format, ...)
{
    char    line[1024];
    va_list args;

    if (output.sink == NULL || level < output.least) return;
    va_start(args, format);
    (void)vsnprintf(line, sizeof line, format, args);
    va_end(args);
    output.sink(level, line, output.user);
}
