/*
 * console.h - what a person at a terminal sees while the program works: lines, and one that moves.
 *
 * Part of the program, not of the library.
 */
#ifndef MURAL_CONSOLE_H
#define MURAL_CONSOLE_H

#include "mural.h"

#include "config/config.h"

struct console {
    bool     redraws;  /* standard error is a terminal that can return to the start of a line */
    int      drawn;    /* characters of the progress line that stand there now                */
    double   drawn_at; /* os_seconds of the last redraw                                       */
    uint32_t number, count; /* of the poster in work, in a batch; 0 of 0: there is only one */
};

/* Log lines go to standard error from now on, as many as the settings ask for. */
void console_start(struct console *console, const struct config *config);
void console_erase(struct console *console); /* the progress line, where one stands */
/* A mural_progress_fn; `user` is a console. */
int console_progress(const struct mural_progress *progress, void *user);

#endif
