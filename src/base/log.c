/*
 * log.c - lines for people who watch.  Never decides anything.
 *
 * The one process-wide state of this folder: where lines go, and the lock that keeps lines of
 * several threads apart.  Until somebody installs a sink, lines vanish, so library users hear
 * nothing.
 */
#include "base/base.h"

#include <stdio.h>

static struct {
    pthread_mutex_t lock; /* held while the sink runs */
    log_sink        sink;
    void           *user;
    enum log_level  least;
} output = {.lock = PTHREAD_MUTEX_INITIALIZER};

void log_install(log_sink sink, void *user, enum log_level least)
{
    (void)pthread_mutex_lock(&output.lock);
    output.sink = sink;
    output.user = user;
    output.least = least;
    (void)pthread_mutex_unlock(&output.lock);
}

void log_line(enum log_level level, const char *format, ...)
{
    char    line[1024];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(line, sizeof line, format, args);
    va_end(args);
    (void)pthread_mutex_lock(&output.lock);
    if (output.sink != NULL && level >= output.least) output.sink(level, line, output.user);
    (void)pthread_mutex_unlock(&output.lock);
}
