/*
 * spawn.h - starting a process; part of the door base.h, which is what other folders include.
 */
#ifndef MURAL_SPAWN_H
#define MURAL_SPAWN_H

#include "base/base.h"

/* A process whose descriptors are: 0 empty, 1 and 2 our standard error, 3 and up those given. Those
 * signals that a terminal sends to everybody, and SIGUSR1, are blocked in it. */
enum { SPAWN_FDS_MAX = 3 };
struct spawn_request {
    const char        *program;
    const char *const *argv;  /* NULL at the end */
    const char        *extra; /* "NAME=value", added to the environment; or NULL */
    int                fds[SPAWN_FDS_MAX];
};
/* 0, or the errno of what failed; nothing was started then.  Reach it through os.spawn. */
int spawn_process(int *pid_out, const struct spawn_request *request);

#endif
