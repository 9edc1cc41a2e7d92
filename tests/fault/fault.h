/*
 * fault.h - makes the n-th use of one system call fail, by its name in the table.
 *
 * A call that failed once works again after it, as a call that was interrupted does.
 */
#ifndef MURAL_FAULT_H
#define MURAL_FAULT_H

#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct {
    const char     *name;
    int             at, uses; /* atomic: a worker has two threads */
    bool            fired;
    char            note[600]; /* a file that is made then; "": none */
    struct os_calls real;
} fault_state;

static inline bool fault_now(const char *name)
{
    if (strcmp(fault_state.name, name) != 0) return false;
    if (__atomic_add_fetch(&fault_state.uses, 1, __ATOMIC_SEQ_CST) != fault_state.at) return false;
    __atomic_store_n(&fault_state.fired, true, __ATOMIC_SEQ_CST);
    if (fault_state.note[0] != '\0') (void)close(creat(fault_state.note, 0600));
    return true;
}

/* fault_X(...): the real X, or its way to fail with errno `code`. */
#define FAULT(type, name, code, failure, parameters, arguments)                                    \
    static type fault_##name parameters                                                            \
    {                                                                                              \
        if (fault_now(#name)) {                                                                    \
            errno = (code);                                                                        \
            return failure;                                                                        \
        }                                                                                          \
        return fault_state.real.name arguments;                                                    \
    }
FAULT(int, close, EIO, (fault_state.real.close(fd), -1), (int fd), (fd))
FAULT(void *, mmap, ENOMEM, MAP_FAILED,
      (void *address, size_t bytes, int protection, int flags, int fd, int64_t offset),
      (address, bytes, protection, flags, fd, offset))
FAULT(int, mprotect, ENOMEM, -1, (void *address, size_t bytes, int protection),
      (address, bytes, protection))
FAULT(int, ftruncate, EFBIG, -1, (int fd, int64_t bytes), (fd, bytes))
FAULT(int, lock_byte, ENOLCK, -1, (int fd, int64_t at, bool on), (fd, at, on))
FAULT(int, populate, ENOMEM, -1, (void *address, size_t bytes), (address, bytes))
FAULT(void *, calloc, ENOMEM, NULL, (size_t count, size_t bytes), (count, bytes))
FAULT(void *, aligned_alloc, ENOMEM, NULL, (size_t alignment, size_t bytes), (alignment, bytes))
FAULT(int64_t, pread, EIO, -1, (int fd, void *buffer, size_t bytes, int64_t offset),
      (fd, buffer, bytes, offset))
FAULT(int, socketpair, EMFILE, -1, (int domain, int type, int protocol, int fds[2]),
      (domain, type, protocol, fds))
FAULT(int64_t, send, ENOBUFS, -1, (int socket, const void *bytes, size_t count, int flags),
      (socket, bytes, count, flags))
FAULT(int64_t, recv, ENOMEM, -1, (int socket, void *bytes, size_t count, int flags),
      (socket, bytes, count, flags))
FAULT(int, shutdown, ENOTCONN, -1, (int socket, int how), (socket, how))
FAULT(int, poll, ENOMEM, -1, (int fd, int events, int milliseconds), (fd, events, milliseconds))
FAULT(int, memfd_create, EMFILE, -1, (const char *name, unsigned flags), (name, flags))
FAULT(int, fallocate, ENOSPC, -1, (int fd, int mode, int64_t offset, int64_t bytes),
      (fd, mode, offset, bytes))
FAULT(int, add_seals, EPERM, -1, (int fd, int seals), (fd, seals))
FAULT(int64_t, seek_end, ESPIPE, -1, (int fd), (fd))
FAULT(int, spawn, EAGAIN, EAGAIN, (int *pid, const struct spawn_request *request), (pid, request))
FAULT(int, waitpid, EINTR, -1, (int pid, int *status, int flags), (pid, status, flags))
FAULT(int, kill, EPERM, -1, (int pid, int number), (pid, number))
FAULT(int, thread_create, EAGAIN, EAGAIN,
      (pthread_t * thread, void *(*run)(void *), void *argument), (thread, run, argument))
#undef FAULT

struct fault_row {
    const char *name;
    size_t      offset;
    void (*call)(void);
};
#define ROW(name)                                                                                  \
    {                                                                                              \
#name, offsetof(struct os_calls, name), (void (*)(void))fault_##name                       \
    }
static const struct fault_row fault_rows[] = {
    ROW(socketpair),   ROW(send),      ROW(recv),          ROW(shutdown),      ROW(poll),
    ROW(memfd_create), ROW(fallocate), ROW(add_seals),     ROW(seek_end),      ROW(spawn),
    ROW(waitpid),      ROW(kill),      ROW(thread_create), ROW(close),         ROW(mmap),
    ROW(mprotect),     ROW(pread),     ROW(calloc),        ROW(aligned_alloc), ROW(ftruncate),
    ROW(lock_byte),    ROW(populate)};
#undef ROW

static inline const struct fault_row *fault_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(fault_rows); i++)
        if (strcmp(fault_rows[i].name, name) == 0) return &fault_rows[i];
    return NULL;
}

static inline void fault_arm(const char *name, int at)
{
    const struct fault_row *row = fault_find(name);

    must(row != NULL);
    if (fault_state.real.close == NULL) fault_state.real = os;
    fault_state.name = row->name;
    fault_state.at = at;
    fault_state.uses = 0;
    fault_state.fired = false;
    memcpy((char *)&os + row->offset, &row->call, sizeof row->call);
}

static inline void fault_disarm(void)
{
    if (fault_state.real.close != NULL) os = fault_state.real;
    fault_state.name = "";
}

static inline bool fault_fired(void)
{
    return __atomic_load_n(&fault_state.fired, __ATOMIC_SEQ_CST);
}

#endif
