/*
 * child.c - one worker process: started, hung up on, killed, reaped.
 *
 * Owns its process number and our end of the channel.  Knows nothing of messages.  A process that
 * was started is always reaped; until it is, it stays on record, and nothing takes its place.
 *
 * A worker dies with us because the kernel closes our end of the channel, which it watches
 * (worker.c).  PR_SET_PDEATHSIG would not do: it tells of the end of the thread that started the
 * worker, and threads that paint end before the job does.
 */
#include "fleet/fleet_int.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* How long a killed process may take to be gone: its memory is given back, and a driver may want to
 * finish what it does. */
static const double KILL_SECONDS = 5;

/* Threads that wait for each other spin by default, for milliseconds.  Where somebody else wants
 * the CPUs, they then take them from the very threads that they wait for: a worker was three times
 * as slow on a busy machine.  Whoever set it otherwise is obeyed. */
static const char *worker_environment(void)
{
    bool chosen = getenv("OMP_WAIT_POLICY") != NULL || getenv("GOMP_SPINCOUNT") != NULL;

    return chosen ? NULL : "GOMP_SPINCOUNT=1000";
}

int child_run(struct child *out, const char *program, const char *const *argv,
              const int fds[CHILD_FDS], struct err *err)
{
    int                  rc = ERR_OK, pair[2] = {-1, -1}, failed;
    struct spawn_request request = {
        .program = program, .argv = argv, .extra = worker_environment()};

    must(out->pid == 0 && out->channel == -1);
    if (os.socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        RAISE(err, ERR_PEER, errno, "cannot make a channel to a %s: %s", argv[1], strerror(errno));
    request.fds[0] = pair[1];
    for (int i = 0; i < CHILD_FDS; i++)
        request.fds[1 + i] = fds != NULL && fds[i] >= 0 ? fds[i] : pair[1];
    failed = os.spawn(&out->pid, &request);
    if (failed != 0)
        RAISE(err, ERR_PEER, failed, "cannot start '%s' as a %s: %s", program, argv[1],
              strerror(failed));
    out->channel = pair[0];
    pair[0] = -1;
out:
    if (pair[0] >= 0) (void)os.close(pair[0]);
    if (pair[1] >= 0) (void)os.close(pair[1]);
    return rc;
}

int child_start(struct child *out, const char *program, int shared_fd, int weights_fd,
                struct err *err)
{
    const char *const argv[] = {"mural", "worker", NULL};
    int               fds[CHILD_FDS];

    fds[WORKER_SHARED_FD - WORKER_CHANNEL_FD - 1] = shared_fd;
    fds[WORKER_WEIGHTS_FD - WORKER_CHANNEL_FD - 1] = weights_fd;
    return child_run(out, program, argv, fds, err);
}

void child_hang_up(struct child *child)
{
    if (child->channel >= 0) (void)os.close(child->channel);
    child->channel = -1;
}

static void describe(int status, char *words_out, size_t capacity)
{
    const char *name = WIFSIGNALED(status) ? sigdescr_np(WTERMSIG(status)) : NULL;

    if (WIFSIGNALED(status))
        (void)snprintf(words_out, capacity, "was killed by signal %d (%s)", WTERMSIG(status),
                       name != NULL ? name : "unknown");
    else
        (void)snprintf(words_out, capacity, "ended with status %d", WEXITSTATUS(status));
}

/* Looks for its end during `seconds`.  A process that somebody else reaped counts as gone. */
static bool reap(struct child *child, double seconds, char *words_out, size_t capacity)
{
    enum { LOOK_MS = 5 };
    double until = os_seconds() + seconds;

    for (;;) {
        int status = 0, got = os.waitpid(child->pid, &status, WNOHANG);
        if (got == child->pid) {
            describe(status, words_out, capacity);
        } else if (got < 0 && errno == ECHILD) {
            (void)snprintf(words_out, capacity, "ended");
        } else {
            if (os_seconds() >= until) return false;
            (void)os.poll(-1, 0, LOOK_MS);
            continue;
        }
        child->pid = 0;
        return true;
    }
}

bool child_end(struct child *child, double patience, char *words_out, size_t capacity)
{
    child_hang_up(child);
    if (child->pid == 0) return true;
    if (reap(child, patience, words_out, capacity)) return true;
    (void)os.kill(child->pid, SIGKILL);
    return reap(child, KILL_SECONDS, words_out, capacity);
}
