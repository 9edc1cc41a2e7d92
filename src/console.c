/*
 * console.c - lines on standard error, and under them one that tells how far the work is.
 *
 * Owns that line: it is erased before another is written, and redrawn not too often.  Where nobody
 * can watch it move, it is not drawn at all.
 */
#include "console.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Lines may come from any thread while the progress line is redrawn. */
static pthread_mutex_t console_turn = PTHREAD_MUTEX_INITIALIZER;

void console_erase(struct console *console)
{
    if (console->drawn > 0) (void)fprintf(stderr, "\r%*s\r", console->drawn, "");
    console->drawn = 0;
}

static void on_log(enum log_level level, const char *line, void *user)
{
    (void)pthread_mutex_lock(&console_turn);
    console_erase(user);
    (void)fprintf(stderr, "mural: %s%s\n", level == LOG_WARN ? "warning: " : "", line);
    (void)pthread_mutex_unlock(&console_turn);
}

void console_start(struct console *console, const struct config *config)
{
    const char *terminal = getenv("TERM");

    *console = (struct console){.drawn = 0};
    console->redraws = !config->quiet && isatty(STDERR_FILENO) == 1 && terminal != NULL &&
                       strcmp(terminal, "dumb") != 0;
    log_install(on_log, console, config->quiet ? LOG_ERROR : config->verbose ? LOG_INFO : LOG_NOTE);
}

/* "1:02:03" or "2:03" */
static const char *clock_text(char out[24], double seconds)
{
    long long whole = seconds > 0 && seconds < 1e12 ? (long long)seconds : 0;

    if (whole >= 3600)
        (void)snprintf(out, 24, "%lld:%02d:%02d", whole / 3600, (int)(whole / 60 % 60),
                       (int)(whole % 60));
    else
        (void)snprintf(out, 24, "%d:%02d", (int)(whole / 60), (int)(whole % 60));
    return out;
}

static int progress_text(char *out, size_t capacity, const struct console *console,
                         const struct mural_progress *progress)
{
    char poster[48] = "", step[48] = "", rate[32] = "", elapsed[24], left[24], rest[40] = "";

    if (console->count > 0)
        (void)snprintf(poster, sizeof poster, "poster %u/%u  ", console->number, console->count);
    if (progress->steps > 0)
        (void)snprintf(step, sizeof step, "  step %u/%u", progress->step, progress->steps);
    if (progress->steps_per_second >= 1)
        (void)snprintf(rate, sizeof rate, "  %.1f steps/s", progress->steps_per_second);
    else if (progress->steps_per_second > 0)
        (void)snprintf(rate, sizeof rate, "  %.1f s/step", 1 / progress->steps_per_second);
    if (progress->seconds_left >= 0)
        (void)snprintf(rest, sizeof rest, ", %s left", clock_text(left, progress->seconds_left));
    return snprintf(out, capacity, "%s%s  tile %u/%u%s%s  %s%s", poster, progress->phase,
                    progress->tiles_done, progress->tiles_total, step, rate,
                    clock_text(elapsed, progress->seconds_elapsed), rest);
}

int console_progress(const struct mural_progress *progress, void *user)
{
    enum { REDRAWS_PER_SECOND = 10 };
    struct console *console = user;
    double          now = os_seconds();
    struct winsize  window = {.ws_col = 0};
    char            line[256];
    int             length, room;

    if (!console->redraws ||
        (console->drawn > 0 && (now - console->drawn_at) * REDRAWS_PER_SECOND < 1))
        return 0;
    (void)pthread_mutex_lock(&console_turn);
    length = progress_text(line, sizeof line, console, progress);
    room = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1 ? window.ws_col : 80;
    if (length > room - 1) length = room - 1;
    if (length > (int)sizeof line - 1) length = (int)sizeof line - 1;
    (void)fprintf(stderr, "\r%.*s%*s", length, line,
                  console->drawn > length ? console->drawn - length : 0, "");
    console->drawn = length;
    console->drawn_at = now;
    (void)pthread_mutex_unlock(&console_turn);
    return 0;
}
