/*
 * spawn.c - starts a program as a process of its own, with nothing of ours in it but what it needs.
 *
 * Owns the order in which descriptors are moved: one that is moved must not land on one that is
 * still to be moved.  Knows nothing of what the program is for.
 *
 * posix_spawn, not fork: the parent may be large and have many threads.
 */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

enum { FIRST_FD = STDERR_FILENO + 1 };

/* The descriptors go to numbers above all of them first, and from there to their places. */
static int move_fds(posix_spawn_file_actions_t *actions, const int fds[SPAWN_FDS_MAX])
{
    int failed = 0, above = FIRST_FD + SPAWN_FDS_MAX;

    for (int i = 0; i < SPAWN_FDS_MAX; i++)
        if (fds[i] >= above) above = fds[i] + 1;
    for (int i = 0; i < SPAWN_FDS_MAX && failed == 0; i++)
        failed = posix_spawn_file_actions_adddup2(actions, fds[i], above + i);
    for (int i = 0; i < SPAWN_FDS_MAX && failed == 0; i++)
        failed = posix_spawn_file_actions_adddup2(actions, above + i, FIRST_FD + i);
    if (failed == 0)
        failed = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (failed == 0)
        failed = posix_spawn_file_actions_adddup2(actions, STDERR_FILENO, STDOUT_FILENO);
    if (failed == 0)
        failed = posix_spawn_file_actions_addclosefrom_np(actions, FIRST_FD + SPAWN_FDS_MAX);
    return failed;
}

/* Blocked before the program's first instruction, so there is no moment at which Ctrl-C ends it. */
static int block_signals(posix_spawnattr_t *attributes)
{
    static const int kinds[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
    sigset_t         blocked, usual;
    int              failed;

    (void)sigemptyset(&blocked);
    (void)sigemptyset(&usual);
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++)
        (void)sigaddset(&blocked, kinds[i]);
    (void)sigaddset(&usual, SIGPIPE);
    (void)sigaddset(&usual, SIGXFSZ);
    failed = posix_spawnattr_setsigmask(attributes, &blocked);
    if (failed == 0) failed = posix_spawnattr_setsigdefault(attributes, &usual);
    if (failed == 0)
        failed =
            posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    return failed;
}

/* Our environment and `extra`, in *out, which the caller frees; NULL when `extra` is. */
static int extend_environment(char ***out, const char *extra)
{
    size_t count = 0;

    *out = NULL;
    if (extra == NULL) return 0;
    while (environ != NULL && environ[count] != NULL)
        count++;
    *out = os.calloc(count + 2, sizeof **out);
    if (*out == NULL) return ENOMEM;
    if (count > 0) memcpy(*out, environ, count * sizeof **out);
    (*out)[count] = (char *)(uintptr_t)extra;
    return 0;
}

int spawn_process(int *pid_out, const struct spawn_request *request)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t          attributes;
    pid_t                      pid = 0;
    char                     **extended = NULL;
    int                        failed = posix_spawn_file_actions_init(&actions);

    if (failed != 0) return failed;
    failed = posix_spawnattr_init(&attributes);
    if (failed == 0) {
        failed = move_fds(&actions, request->fds);
        if (failed == 0) failed = block_signals(&attributes);
        if (failed == 0) failed = extend_environment(&extended, request->extra);
        /* The elements are not written to; the type is older than const. */
        if (failed == 0)
            failed = posix_spawn(&pid, request->program, &actions, &attributes,
                                 (char *const *)(uintptr_t)request->argv,
                                 extended != NULL ? extended : environ);
        (void)posix_spawnattr_destroy(&attributes);
    }
    (void)posix_spawn_file_actions_destroy(&actions);
    os_free(extended);
    if (failed == 0) *pid_out = (int)pid;
    return failed;
}
