/*
 * fleet_int.h - what the files of fleet/ share: messages, shared memory, child processes.
 */
#ifndef MURAL_FLEET_INT_H
#define MURAL_FLEET_INT_H

#include "fleet/fleet.h"

/* Where a worker finds what it was started with, and a probe. */
enum { WORKER_CHANNEL_FD = 3, WORKER_SHARED_FD = 4, WORKER_WEIGHTS_FD = 5, PROBE_CHANNEL_FD = 3 };

/* The most tiles of any of `sizes`: what a painter made for them takes at once. */
uint32_t studio_tiles_max(const struct engine_size *sizes, size_t size_count);
/* The noise levels of the stage that has begun; steps 0 before the first. */
const struct schedule *studio_schedule(const struct studio *studio);
uint64_t               studio_model_identity(const struct studio *studio);
struct engine_facts    studio_facts(const struct studio *studio);

/* -------------------------------------------------------------------------------- wire.c */

enum {
    WIRE_BYTES_MAX = 65536, /* of one message, head included */
    WIRE_SIZES_MAX = ENGINE_SIZES_MAX,
    WIRE_TILES_MAX = PAINTER_TILES_MAX,
    WIRE_PATH_MAX = 4096,
    WIRE_PROMPT_MAX = 32768,
    WIRE_WORDS_MAX = 1024
};

enum wire_kind {
    WIRE_OPEN = 1, /* from the supervisor */
    WIRE_BEGIN,
    WIRE_ENCODE,
    WIRE_PREDICT,
    WIRE_DECODE,
    WIRE_YIELD,
    WIRE_MEMORY,
    WIRE_READY = 17, /* from the worker */
    WIRE_BEGUN,
    WIRE_DONE,
    WIRE_FAILED,
    WIRE_LOG,
    WIRE_YIELDED,
    WIRE_USED
};

struct wire_open {
    struct engine_options options; /* what is this process' own does not travel */
    int32_t               channels;
    uint64_t              shared_bytes;
    uint32_t              size_count; /* 1..WIRE_SIZES_MAX */
    struct engine_size    sizes[WIRE_SIZES_MAX];
};
struct wire_rect {
    int32_t w_px, h_px;
};
struct wire_work {
    uint32_t         step, count; /* encode and decode: 0 and 1 */
    struct wire_rect rects[WIRE_TILES_MAX];
};
struct wire_failed {
    enum err_code code; /* ERR_USAGE..ERR_NUMERIC */
    int           sys;
    const char   *words;
};
struct wire_log {
    enum log_level level;
    const char    *words;
};
/* Texts are borrowed: from the caller when a message is packed, from the bytes when unpacked. */
struct wire_message {
    enum wire_kind kind;
    uint32_t       sequence; /* of a question; its answer carries the same */
    union {
        struct wire_open      open;
        struct painter_stage  begin;
        struct wire_work      work;
        uint64_t              model_identity; /* READY */
        struct schedule       begun;
        struct wire_failed    failed;
        struct wire_log       log;
        const char           *yielded; /* "": there was nothing left to give up */
        bool                  restart; /* MEMORY */
        struct painter_memory used;    /* zeros: of no GPU */
    } as;
};

enum wire_side { WIRE_SUPERVISOR, WIRE_WORKER };

/* Bytes of the message in bytes_out [WIRE_BYTES_MAX].  Texts must be within their limits and
 * UTF-8, numbers within theirs: what cannot be unpacked again must not be packed. */
size_t wire_pack(uint8_t *bytes_out, const struct wire_message *message);
/* A message that `sender` may send, every number checked.  ERR_PEER otherwise. */
int wire_unpack(struct wire_message *out, const uint8_t *bytes, size_t count, enum wire_side sender,
                struct err *err);
/* Number a packed message anew. */
void wire_number(uint8_t *bytes, uint32_t sequence);

/* The whole message at once or not at all; never waits.  ERR_PEER when the other side is gone (its
 * sys is then EPIPE) or does not read. */
int wire_send(int channel, const uint8_t *bytes, size_t count, struct err *err);
/* One message into bytes_out [WIRE_BYTES_MAX].  *count_out 0: the other side closed the channel.
 * With `waits` false and nothing there: *count_out is SIZE_MAX. */
int wire_receive(int channel, bool waits, uint8_t *bytes_out, size_t *count_out, struct err *err);

/* ------------------------------------------------------------------------------ shared.c */

/* Memory of two processes: the pulse, then areas whose places follow from the sizes alone. */
struct shared {
    uint64_t *pulse;
    float    *latents;    /* [latent_values]: of all rectangles of a group, one after the other */
    float    *velocities; /* [latent_values] */
    float    *pixels;     /* [pixel_values] of one rectangle */
    int64_t   latent_values, pixel_values;
    uint64_t  bytes;
    void     *base;
    int       fd; /* -1 in a worker */
};
uint64_t shared_bytes(const struct engine_size *sizes, size_t size_count, int32_t channels);
/* Makes the memory, committed to the last byte, of a length that nobody can change. */
int shared_open(struct shared *out, const struct engine_size *sizes, size_t size_count,
                int32_t channels, struct err *err);
/* The same areas in memory that another process made. */
int      shared_attach(struct shared *out, int fd, const struct wire_open *open, struct err *err);
void     shared_close(struct shared *shared); /* a zeroed one is fine */
uint64_t shared_pulse(const struct shared *shared);
/* A file for weights that several workers want in memory: theirs alone, and empty; addresses, and
 * no memory until they write to it.  -1, and a line of the log: there is none. */
int     shared_weights_open(void);
int64_t shared_latent_values(struct wire_rect rect, int32_t channels);

/* ------------------------------------------------------------------------------- child.c */

struct child {
    int pid;     /* 0: none */
    int channel; /* -1: none */
};
/* `program` with one end of a channel as descriptor 3, and as 4 and 5 those of `fds`; -1, or fds
 * NULL: it finds the channel there once more. argv[1] says in sentences what it is. */
enum { CHILD_FDS = 2 };
int child_run(struct child *out, const char *program, const char *const *argv,
              const int fds[CHILD_FDS], struct err *err);
/* `program worker` with the shared memory, and the file for weights, -1 for none. */
int  child_start(struct child *out, const char *program, int shared_fd, int weights_fd,
                 struct err *err);
void child_hang_up(struct child *child); /* closes the channel */
/* Hang up, give it `patience` seconds to end by itself, kill it, and reap it; how it ended goes
 * into `words_out`, as in "was killed by signal 9 (Killed)".  False: it is there yet, and may be
 * waited for again. */
bool child_end(struct child *child, double patience, char *words_out, size_t capacity);

/* -------------------------------------------------------------------------- supervisor.c */

/* A worker's place.  The process in it may change; what it must know to go on is kept here. */
struct seat {
    struct fleet   *fleet;
    uint32_t        number; /* 1.. */
    struct child    child;  /* channel -1: not running */
    struct shared   shared;
    bool            ready;    /* its engine is open */
    bool            begun;    /* the stage has begun in this very process */
    uint32_t        failures; /* since the last success */
    double          ended_at; /* os_seconds of the last failure */
    uint32_t        sequence;
    struct schedule schedule; /* of the stage; steps 0: none */
    size_t          stage_count;
    uint8_t         stage[WIRE_BYTES_MAX]; /* the message that begins the stage */
    uint8_t         in[WIRE_BYTES_MAX], out[WIRE_BYTES_MAX];
};

struct fleet {
    struct fleet_request request;    /* without sizes and options, which are in `open` */
    int                  weights_fd; /* that workers share in memory; -1: none */
    bool                 has_identity;
    uint64_t             model_identity;
    size_t               open_count;
    uint8_t              open[WIRE_BYTES_MAX]; /* the message that opens an engine */
    uint32_t             painter_count;
    struct painter       painters[FLEET_WORKERS_MAX];
    struct seat          seats[]; /* [worker_count] */
};

/* A process that was asked to open its engine, and is not waited for. */
int supervisor_launch(struct seat *seat, struct err *err);
/* A worker with an open engine; what may pass is tried three times.  Waits for the one that was
 * launched, where there is one. */
int supervisor_start(struct seat *seat, struct err *err);
/* The same when it is needed: at once where it runs, and with the stage begun where there is one.
 */
int supervisor_ready(struct seat *seat, struct err *err);
/* One question, `count` packed bytes, and its answer of `kind`.  Any failure leaves the worker
 * buried, but for one that its engine told of and that leaves the engine sound. */
int supervisor_ask(struct seat *seat, uint8_t *question, size_t count, enum wire_kind kind,
                   struct wire_message *answer, struct err *err);
/* What a worker wrote, cut to `out` [capacity] and without control characters: it is shown to
 * people, and the worker may be out of its mind.  Returns out. */
const char *supervisor_plain(char *out, size_t capacity, const char *words);
/* End the process.  Nothing of it is left but when it failed, for the back-off. */
void supervisor_bury(struct seat *seat);

#endif
