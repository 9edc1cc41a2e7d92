/*
 * worker.c - a worker that does its work, and once does something terrible instead.
 *
 *     MURAL_FAULT="KIND N TOKEN"
 *
 * At the N-th answer (log lines do not count) the fault KIND happens, if the file TOKEN is there;
 * it is removed first, so that the worker after this one is sound.  KIND "NAME" of a system call
 * makes its N-th use in this process fail instead, and TOKEN.fired then says so.  All of it is done
 * from outside, through the table of system calls: the worker itself is the one that ships.
 */
#include "fault.h"

#include "fleet/fleet_int.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct {
    char             kind[32], token[512];
    int              at, answers;
    struct os_calls  real;
    struct wire_open open;   /* what the supervisor planned */
    struct shared    shared; /* the memory that it sees */
} fault;

static _Noreturn void sleep_forever(void)
{
    for (;;)
        (void)pause();
}

/* Once the worker shares memory with the supervisor, this does too. */
static int64_t note_recv(int socket, void *bytes, size_t count, int flags)
{
    int64_t             got = fault.real.recv(socket, bytes, count, flags);
    struct wire_message message;
    struct err          err = {.code = ERR_OK};

    if (got > 1 && fault.shared.base == NULL &&
        wire_unpack(&message, bytes, (size_t)got, WIRE_SUPERVISOR, &err) == ERR_OK &&
        message.kind == WIRE_OPEN) {
        fault.open = message.as.open;
        (void)shared_attach(&fault.shared, WORKER_SHARED_FD, &fault.open, &err);
    }
    return got;
}

static size_t answer_with(uint8_t *bytes, struct wire_message message)
{
    memcpy(&message.sequence, bytes + 8, sizeof message.sequence);
    return wire_pack(bytes, &message);
}

/* In the velocities of the last of as many tiles as were planned at most. */
static void spoil_a_tile(void)
{
    for (uint32_t i = 0; i < fault.open.size_count; i++) {
        struct wire_rect rect = {fault.open.sizes[i].w_px, fault.open.sizes[i].h_px};
        int64_t          values = shared_latent_values(rect, fault.open.channels);
        if (fault.open.sizes[i].tiles > 1)
            memset(fault.shared.velocities + (fault.open.sizes[i].tiles - 1) * values, 0xFF,
                   (size_t)values * sizeof(float));
    }
}

/* Instead of the answer; 0: the answer may go on its way as it now is. */
static int64_t misbehave(int channel, uint8_t *bytes, size_t *count)
{
    const char *kind = fault.kind;
    uint32_t    number;
    uint16_t    wide;

    if (strcmp(kind, "exit") == 0) _exit(7);
    if (strcmp(kind, "abort") == 0) abort();
    if (strcmp(kind, "hang") == 0) sleep_forever();
    if (strcmp(kind, "stop") == 0) (void)raise(SIGSTOP);
    if (strcmp(kind, "sigkill") == 0) (void)raise(SIGKILL);
    if (strcmp(kind, "hangup") == 0) { /* half a message, then no channel, but a process */
        (void)fault.real.send(channel, bytes, *count / 2, MSG_NOSIGNAL);
        (void)shutdown(channel, SHUT_RDWR);
        (void)close(channel);
        sleep_forever();
    }
    if (strcmp(kind, "babble") == 0) {
        struct wire_message line = {.kind = WIRE_LOG, .as.log = {LOG_DEBUG, "la\033[2J la"}};
        size_t              length = wire_pack(bytes, &line);
        while (fault.real.send(channel, bytes, length, MSG_NOSIGNAL) > 0)
            continue;
        sleep_forever();
    }
    if (strcmp(kind, "device") == 0) /* what a worker says whose device is lost */
        *count = answer_with(
            bytes, (struct wire_message){.kind = WIRE_FAILED,
                                         .as.failed = {ERR_DEVICE, 719, "device: it is lost"}});
    if (strcmp(kind, "memory") == 0)
        *count = answer_with(
            bytes, (struct wire_message){.kind = WIRE_FAILED,
                                         .as.failed = {ERR_DEVICE_MEM, 2, "memory: none left"}});
    if (strcmp(kind, "gain") == 0)
        *count = answer_with(bytes, (struct wire_message){.kind = WIRE_YIELDED,
                                                          .as.yielded = "a curtain\033: 3 MB"});
    if (strcmp(kind, "used") == 0)
        *count = answer_with(
            bytes,
            (struct wire_message){
                .kind = WIRE_USED,
                .as.used = {
                    .use = {.peak_live = 96,
                            .peak_placed = 97,
                            .peak_mapped = 100,
                            .peak_device = 101,
                            .calls = {1, 2, 3},
                            .link_bytes = 9},
                    .sample_count = 1,
                    .samples = {
                        {.seconds = 3, .live = 96, .placed = 97, .mapped = 100, .device = 101}}}});
    if (strcmp(kind, "nan-tile") == 0 || strcmp(kind, "bad-tile") == 0) spoil_a_tile();
    if (strncmp(kind, "bad-", 4) == 0) /* with the truth in "bad-tile" */
        *count = answer_with(
            bytes, (struct wire_message){.kind = WIRE_FAILED,
                                         .as.failed = {ERR_NUMERIC, 0, "numeric: some are NaN"}});
    if (strcmp(kind, "long") == 0) *count = 70000;
    if (strcmp(kind, "short") == 0) *count -= 1;
    if (strcmp(kind, "length") == 0) {
        number = UINT32_MAX;
        memcpy(bytes + 12, &number, sizeof number);
    }
    if (strcmp(kind, "kind") == 0) {
        wide = WIRE_ENCODE;
        memcpy(bytes + 6, &wide, sizeof wide);
    }
    if (strcmp(kind, "sequence") == 0) {
        memcpy(&number, bytes + 8, sizeof number);
        wire_number(bytes, number + 1);
    }
    if (strcmp(kind, "twice") == 0) (void)fault.real.send(channel, bytes, *count, MSG_NOSIGNAL);
    if (strcmp(kind, "nan") == 0 && fault.shared.base != NULL)
        memset((char *)fault.shared.base + 4096, 0xFF, fault.shared.bytes - 4096);
    return 0;
}

static int64_t faulty_send(int socket, const void *bytes, size_t count, int flags)
{
    static uint8_t work[80000];
    uint16_t       kind = 0;
    uint32_t       length;

    memcpy(work, bytes, count);
    memcpy(&kind, work + 6, sizeof kind);
    if (kind == WIRE_LOG) return fault.real.send(socket, bytes, count, flags);
    length = (uint32_t)count;
    if (++fault.answers == fault.at && unlink(fault.token) == 0)
        (void)misbehave(socket, work, &count);
    (void)fault.real.send(socket, work, count, flags);
    return (int64_t)length;
}

int main(int argc, char **argv)
{
    const char *wanted = getenv("MURAL_FAULT");
    struct err  err = {.code = ERR_OK};
    int         rc;

    if (argc != 2 || strcmp(argv[1], "worker") != 0) return 2;
    fault.real = os;
    if (wanted != NULL &&
        sscanf(wanted, "%31s %d %511s", fault.kind, &fault.at, fault.token) == 3) {
        if (fault_find(fault.kind) == NULL) {
            os.send = faulty_send;
            os.recv = note_recv;
        } else if (unlink(fault.token) == 0) {
            (void)snprintf(fault_state.note, sizeof fault_state.note, "%s.fired", fault.token);
            fault_arm(fault.kind, fault.at);
        }
    }
    rc = fleet_worker_run(&err);
    if (rc != ERR_OK) (void)fprintf(stderr, "test worker: %s\n", err.text);
    return rc;
}
