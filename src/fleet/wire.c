/*
 * wire.c - what the supervisor and a worker say to each other, byte by byte.
 *
 * Owns the format.  Knows nothing of processes; what is done with a message is decided by its
 * reader.  A reader trusts nobody: every length, count and number is checked before it is used, and
 * a message that would not be written this way again is refused.
 *
 * One message is one packet of a SOCK_SEQPACKET pair, so it comes whole or not at all.  Numbers are
 * little-endian; both sides are on one machine.
 *
 *     offset  size  field
 *          0     4  magic "MURW"
 *          4     2  version of this format, 2
 *          6     2  kind
 *          8     4  sequence: questions count up, an answer repeats its question's number
 *         12     4  bytes of the whole message, at most 65,536
 *         16        the fields of its kind, in this order and nothing after them:
 *
 *     OPEN     u32 precision, machine, GPU, threads, text tokens; i32 channels;
 *              u64 bytes of shared memory;
 *              u32 count of sizes, each: i32 w, h, u32 tiles, steps, steps next;
 *              texts: model folder, transformer, VAE (the last two may be empty);
 *              memory of a GPU: u64 bytes, segment, pool; u32 offload, expandable, tiles a pass,
 *              text on the CPU; f64 share kept, share idle, bytes and FLOP per second
 *     BEGIN    noise levels: u32 steps; i64 tokens; f64 sigma start, strength, mu, mu max;
 *              those of the stage to follow: the same, or u32 0 alone for none;
 *              f64 guidance; text prompt
 *     ENCODE, DECODE   i32 w, h
 *     PREDICT  u32 step, u32 count of rectangles, each: i32 w, h
 *     YIELD    nothing
 *     MEMORY   u32 whether counting begins anew
 *     READY    u64 identity of the model
 *     BEGUN    u32 steps, f32 noise levels [steps + 1]
 *     DONE     nothing
 *     FAILED   u32 error code, i32 system's code, text sentence
 *     LOG      u32 level, text line
 *     YIELDED  text what was given up of memory; empty: nothing was left
 *     USED     a GPU's memory, zeros where there is none: u64 highest live, placed, mapped, device
 *              bytes; f64 share idle; u64 calls to create, map, give access, unmap, release and
 *              settle; u64 bytes over the link; f64 seconds stood still; u32 count of samples,
 *              each: f64 seconds; u64 live, placed, mapped, device bytes
 *
 * A text is u32 length, the bytes, and a NUL.  Pixels, latents and velocities never travel: they
 * are in shared memory (shared.c).
 *
 * The supervisor asks, and the worker answers each question once, in order, with READY, BEGUN,
 * DONE, YIELDED, USED or FAILED.  It may send LOG at any time.  A PREDICT that FAILED with the code
 * of bad numbers has written all velocities, the bad ones among them.
 *
 * Read next: shared.c, then supervisor.c and worker.c.
 */
#include "fleet/fleet_int.h"

#include <errno.h>
#include <float.h>
#include <string.h>
#include <sys/socket.h>

enum { HEAD_BYTES = 16, SEQUENCE_AT = 8, VERSION = 2 };
static const char MAGIC[4] = {'M', 'U', 'R', 'W'};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are copied as they lie");
_Static_assert(HEAD_BYTES + 64 + WIRE_SIZES_MAX * 20 + 3 * (WIRE_PATH_MAX + 5) < WIRE_BYTES_MAX,
               "the longest OPEN fits");
_Static_assert(HEAD_BYTES + 128 + WIRE_PROMPT_MAX + 5 < WIRE_BYTES_MAX, "the longest BEGIN fits");
_Static_assert(HEAD_BYTES + 64 + MEMORY_CALLS * 8 + POOL_SAMPLES_MAX * 40 < WIRE_BYTES_MAX,
               "the longest USED fits");

/* ---------------------------------------------------------------------------------- fields */

/* One walk over the fields writes and reads them, so that both know the same format.  A field takes
 * the value to be written, and returns the one that was written or read.  The first one that is
 * read and wrong, and all after it, are zero; `wrong` names it. */
struct walk {
    uint8_t       *out; /* [WIRE_BYTES_MAX]; NULL: reading */
    const uint8_t *in;  /* [count] */
    size_t         count, at;
    const char    *wrong;
};

static void bytes_of(struct walk *w, void *value, size_t bytes, const char *name)
{
    if (w->out != NULL) {
        must(w->at + bytes <= WIRE_BYTES_MAX);
        memcpy(w->out + w->at, value, bytes);
        w->at += bytes;
        return;
    }
    memset(value, 0, bytes);
    if (w->wrong == NULL && w->count - w->at < bytes) w->wrong = name;
    if (w->wrong != NULL) return;
    memcpy(value, w->in + w->at, bytes);
    w->at += bytes;
}

/* Of what was read. */
static void need(struct walk *w, bool holds, const char *name)
{
    if (w->out == NULL && w->wrong == NULL && !holds) w->wrong = name;
}

static uint32_t u32(struct walk *w, uint32_t value, uint32_t least, uint32_t most, const char *name)
{
    bytes_of(w, &value, sizeof value, name);
    need(w, value >= least && value <= most, name);
    return w->wrong == NULL ? value : 0;
}

/* Of entries that follow: nobody may write more than there is room for. */
static uint32_t count_of(struct walk *w, uint32_t count, uint32_t least, uint32_t most,
                         const char *name)
{
    must(w->out == NULL || (count >= least && count <= most));
    return u32(w, count, least, most, name);
}

static bool flag(struct walk *w, bool value, const char *name)
{
    return u32(w, value, 0, 1, name) == 1;
}

static uint64_t u64(struct walk *w, uint64_t value, uint64_t most, const char *name)
{
    bytes_of(w, &value, sizeof value, name);
    need(w, value <= most, name);
    return w->wrong == NULL ? value : 0;
}

static double f64(struct walk *w, double value, double least, double most, const char *name)
{
    bytes_of(w, &value, sizeof value, name);
    need(w, value >= least && value <= most, name); /* NaN is neither */
    return w->wrong == NULL ? value : 0;
}

/* NULL is written as "".  What is read is a view into the bytes. */
static const char *text(struct walk *w, const char *value, uint32_t most, const char *name)
{
    uint32_t length;

    if (value == NULL) value = "";
    length = u32(w, (uint32_t)strlen(value), 0, most, name);
    if (w->out != NULL) {
        must(w->at + length + 1 <= WIRE_BYTES_MAX);
        memcpy(w->out + w->at, value, (size_t)length + 1);
    } else {
        value = (const char *)w->in + w->at;
        need(w, w->count - w->at > length, name);
        if (w->wrong != NULL) return "";
        need(w, value[length] == '\0' && memchr(value, '\0', length) == NULL, name);
        need(w, text_utf8_valid_prefix(value, length) == length, name);
    }
    w->at += (size_t)length + 1;
    return w->wrong == NULL ? value : "";
}

static int32_t side(struct walk *w, int32_t px)
{
    px = (int32_t)u32(w, (uint32_t)px, TILING_PX_PER_TOKEN, TILING_SIDE_MAX_PX, "a side");
    need(w, px % TILING_PX_PER_TOKEN == 0, "a side");
    return px;
}

/* ------------------------------------------------------------------------------- messages */

static void walk_memory(struct walk *w, struct engine_options *options)
{
    const double          rate_max = 1e30;
    struct engine_memory *m = &options->memory;

    m->vram_bytes = u64(w, m->vram_bytes, UINT64_MAX, "the memory of a GPU");
    m->segment_bytes = u64(w, m->segment_bytes, UINT64_MAX, "the size of a segment");
    m->pool_bytes = u64(w, m->pool_bytes, UINT64_MAX, "the size of the pool");
    m->offload = flag(w, m->offload, "the offload");
    m->expandable = flag(w, m->expandable, "the kind of segments");
    m->tiles_per_pass = u32(w, m->tiles_per_pass, 0, WIRE_TILES_MAX, "the tiles of a pass");
    options->text_on_cpu = flag(w, options->text_on_cpu, "the place of the text encoders");
    m->keep_share = f64(w, m->keep_share, 0, 1, "the share that is kept");
    m->fragmentation_max = f64(w, m->fragmentation_max, 0, 1, "the share that may lie idle");
    m->link_bytes_per_second =
        f64(w, m->link_bytes_per_second, 0, rate_max, "the rate of the link");
    m->disk_bytes_per_second =
        f64(w, m->disk_bytes_per_second, 0, rate_max, "the rate of the disk");
    m->flop_per_second = f64(w, m->flop_per_second, 0, rate_max, "the rate of the GPU");
}

static void walk_open(struct walk *w, struct wire_open *open)
{
    enum { THREADS_MAX = 65536, TEXT_TOKENS_MAX = 65536, CHANNELS_MAX = 4096, GPU_MAX = 999 };
    struct engine_options *o = &open->options;

    o->precision = (enum precision)u32(w, o->precision, 0, PRECISION_BF16, "the precision");
    o->machine = (enum engine_machine)u32(w, o->machine, 0, ENGINE_WALLED, "the machine");
    o->gpu = (int32_t)u32(w, (uint32_t)o->gpu, 0, GPU_MAX, "the GPU");
    o->threads = u32(w, o->threads, 0, THREADS_MAX, "the threads");
    o->text_tokens = u32(w, o->text_tokens, 0, TEXT_TOKENS_MAX, "the text tokens");
    open->channels = (int32_t)u32(w, (uint32_t)open->channels, 1, CHANNELS_MAX, "the channels");
    open->shared_bytes = u64(w, open->shared_bytes, UINT64_MAX, "the shared memory");
    open->size_count = count_of(w, open->size_count, 1, WIRE_SIZES_MAX, "the count of sizes");
    for (uint32_t i = 0; i < open->size_count; i++) {
        struct engine_size *size = &open->sizes[i];
        size->w_px = side(w, size->w_px);
        size->h_px = side(w, size->h_px);
        size->tiles = u32(w, size->tiles, 1, WIRE_TILES_MAX, "the tiles of a size");
        size->steps = u32(w, size->steps, 1, SCHEDULE_STEPS_MAX, "the steps of a size");
        size->steps_next =
            u32(w, size->steps_next, 0, SCHEDULE_STEPS_MAX, "the next steps of a size");
    }
    o->model_folder = text(w, o->model_folder, WIRE_PATH_MAX, "the model folder");
    o->transformer = text(w, o->transformer, WIRE_PATH_MAX, "the transformer");
    o->vae = text(w, o->vae, WIRE_PATH_MAX, "the VAE");
    walk_memory(w, o);
    if (o->transformer[0] == '\0') o->transformer = NULL;
    if (o->vae[0] == '\0') o->vae = NULL;
}

static void walk_noise(struct walk *w, struct painter_levels *levels, uint32_t steps_least)
{
    const uint64_t tokens_max = (uint64_t)1 << 40;

    levels->steps = u32(w, levels->steps, steps_least, SCHEDULE_STEPS_MAX, "the steps");
    if (levels->steps == 0) {
        *levels = (struct painter_levels){.steps = 0};
        return;
    }
    levels->tokens = (int64_t)u64(w, (uint64_t)levels->tokens, tokens_max, "the tokens");
    need(w, levels->tokens >= 1, "the tokens");
    levels->sigma_start = f64(w, levels->sigma_start, -DBL_MAX, DBL_MAX, "the first noise level");
    levels->strength = f64(w, levels->strength, -DBL_MAX, DBL_MAX, "the strength");
    levels->mu = f64(w, levels->mu, -DBL_MAX, DBL_MAX, "mu");
    levels->mu_max = f64(w, levels->mu_max, -DBL_MAX, DBL_MAX, "the bound of mu");
}

static void walk_begin(struct walk *w, struct painter_stage *stage)
{
    walk_noise(w, &stage->levels, 1);
    walk_noise(w, &stage->next, 0);
    stage->guidance = f64(w, stage->guidance, -DBL_MAX, DBL_MAX, "the guidance");
    stage->prompt = text(w, stage->prompt, WIRE_PROMPT_MAX, "the prompt");
}

static void walk_work(struct walk *w, enum wire_kind kind, struct wire_work *work)
{
    if (kind == WIRE_PREDICT) {
        work->step = u32(w, work->step, 0, SCHEDULE_STEPS_MAX - 1, "the step");
        work->count = count_of(w, work->count, 1, WIRE_TILES_MAX, "the count of rectangles");
    } else {
        must(w->out == NULL || work->count == 1);
        work->step = 0;
        work->count = 1;
    }
    for (uint32_t i = 0; i < work->count; i++) {
        work->rects[i].w_px = side(w, work->rects[i].w_px);
        work->rects[i].h_px = side(w, work->rects[i].h_px);
    }
}

/* Noise only falls, and ends at 0. */
static void walk_begun(struct walk *w, struct schedule *begun)
{
    begun->steps = count_of(w, begun->steps, 1, SCHEDULE_STEPS_MAX, "the steps");
    bytes_of(w, begun->sigma, (begun->steps + 1) * sizeof begun->sigma[0], "a noise level");
    for (uint32_t i = 0; i <= begun->steps; i++) {
        float level = begun->sigma[i], before = i == 0 ? 1 : begun->sigma[i - 1];
        need(w, level >= 0 && level <= before, "a noise level");
    }
    need(w, begun->sigma[begun->steps] == 0, "the last noise level");
}

/* Each kind of bytes holds the one before it, and none rises above `limits`. */
static void walk_levels(struct walk *w, uint64_t *const levels[4], const uint64_t limits[4])
{
    for (int i = 0; i < 4; i++) {
        *levels[i] = u64(w, *levels[i], limits[i], "a count of bytes");
        need(w, i == 0 || *levels[i - 1] <= *levels[i], "a count of bytes");
    }
}

/* Whole numbers as large as a journal can say them. */
static void walk_used(struct walk *w, struct painter_memory *memory)
{
    const uint64_t     any[4] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
    const double       seconds_max = 1e12;
    struct memory_use *use = &memory->use;
    uint64_t *const    peaks[4] = {&use->peak_live, &use->peak_placed, &use->peak_mapped,
                                   &use->peak_device};

    walk_levels(w, peaks, any);
    use->idle_share = f64(w, use->idle_share, 0, 1, "the share that lies idle");
    for (int call = 0; call < MEMORY_CALLS; call++)
        use->calls[call] = u64(w, use->calls[call], INT64_MAX, "a count of calls");
    use->link_bytes = u64(w, use->link_bytes, INT64_MAX, "the bytes over the link");
    use->stall_seconds = f64(w, use->stall_seconds, 0, seconds_max, "the seconds stood still");
    memory->sample_count =
        count_of(w, memory->sample_count, 0, POOL_SAMPLES_MAX, "the count of samples");
    for (uint32_t i = 0; i < memory->sample_count; i++) {
        struct pool_sample *sample = &memory->samples[i];
        double              least = i == 0 ? 0 : memory->samples[i - 1].seconds;
        sample->seconds = f64(w, sample->seconds, least, seconds_max, "the time of a sample");
        walk_levels(
            w,
            (uint64_t *const[]){&sample->live, &sample->placed, &sample->mapped, &sample->device},
            (const uint64_t[]){*peaks[0], *peaks[1], *peaks[2], *peaks[3]});
    }
}

static void walk_message(struct walk *w, struct wire_message *m)
{
    switch (m->kind) {
    case WIRE_OPEN: walk_open(w, &m->as.open); break;
    case WIRE_BEGIN: walk_begin(w, &m->as.begin); break;
    case WIRE_ENCODE:
    case WIRE_PREDICT:
    case WIRE_DECODE: walk_work(w, m->kind, &m->as.work); break;
    case WIRE_READY:
        m->as.model_identity = u64(w, m->as.model_identity, UINT64_MAX, "the model's identity");
        break;
    case WIRE_BEGUN: walk_begun(w, &m->as.begun); break;
    case WIRE_YIELD:
    case WIRE_DONE: break;
    case WIRE_YIELDED: m->as.yielded = text(w, m->as.yielded, WIRE_WORDS_MAX, "the words"); break;
    case WIRE_MEMORY: m->as.restart = flag(w, m->as.restart, "the restart"); break;
    case WIRE_USED: walk_used(w, &m->as.used); break;
    case WIRE_FAILED:
        m->as.failed.code =
            (enum err_code)u32(w, m->as.failed.code, ERR_USAGE, ERR_NUMERIC, "the error code");
        bytes_of(w, &m->as.failed.sys, sizeof m->as.failed.sys, "the system's code");
        m->as.failed.words = text(w, m->as.failed.words, WIRE_WORDS_MAX, "the sentence");
        break;
    case WIRE_LOG:
        m->as.log.level =
            (enum log_level)u32(w, m->as.log.level, LOG_DEBUG, LOG_ERROR, "the level");
        m->as.log.words = text(w, m->as.log.words, WIRE_WORDS_MAX, "the line");
        break;
    }
}

struct head {
    char     magic[4];
    uint16_t version, kind;
    uint32_t sequence, bytes;
};
_Static_assert(sizeof(struct head) == HEAD_BYTES && offsetof(struct head, sequence) == SEQUENCE_AT,
               "a head is copied as it lies");

size_t wire_pack(uint8_t *bytes_out, const struct wire_message *message)
{
    struct wire_message copy = *message;
    struct walk         w = {.out = bytes_out, .at = HEAD_BYTES};
    struct head         head = {
                .version = VERSION, .kind = (uint16_t)message->kind, .sequence = message->sequence};

    walk_message(&w, &copy);
    memcpy(head.magic, MAGIC, sizeof MAGIC);
    head.bytes = (uint32_t)w.at;
    memcpy(bytes_out, &head, sizeof head);
    return w.at;
}

void wire_number(uint8_t *bytes, uint32_t sequence)
{
    memcpy(bytes + SEQUENCE_AT, &sequence, sizeof sequence);
}

static bool may_send(enum wire_side sender, unsigned kind)
{
    if (sender == WIRE_SUPERVISOR) return kind >= WIRE_OPEN && kind <= WIRE_MEMORY;
    return kind >= WIRE_READY && kind <= WIRE_USED;
}

int wire_unpack(struct wire_message *out, const uint8_t *bytes, size_t count, enum wire_side sender,
                struct err *err)
{
    int         rc = ERR_OK;
    struct walk w = {.in = bytes, .count = count, .at = HEAD_BYTES};
    struct head head = {.version = 0};

    if (count > WIRE_BYTES_MAX)
        RAISE(err, ERR_PEER, 0, "sent a message of %zu bytes (limit %d)", count, WIRE_BYTES_MAX);
    if (count >= sizeof head) memcpy(&head, bytes, sizeof head);
    if (memcmp(head.magic, MAGIC, sizeof MAGIC) != 0)
        RAISE(err, ERR_PEER, 0, "sent %zu bytes that are no message", count);
    if (head.version != VERSION)
        RAISE(err, ERR_PEER, 0, "speaks version %u of the messages, and this program version %d",
              head.version, VERSION);
    if (head.bytes != count)
        RAISE(err, ERR_PEER, 0, "sent %zu bytes of a message that claims %u", count, head.bytes);
    if (!may_send(sender, head.kind))
        RAISE(err, ERR_PEER, 0, "sent a message of kind %u, which is not its to send", head.kind);
    memset(out, 0, sizeof *out); /* the walk looks at what is there before it reads */
    out->kind = (enum wire_kind)head.kind;
    out->sequence = head.sequence;
    walk_message(&w, out);
    need(&w, w.at == count, "its end");
    if (w.wrong != NULL)
        RAISE(err, ERR_PEER, 0, "sent a message of kind %u in which %s is wrong", head.kind,
              w.wrong);
out:
    return rc;
}

/* --------------------------------------------------------------------------------- channel */

int wire_send(int channel, const uint8_t *bytes, size_t count, struct err *err)
{
    int     rc = ERR_OK;
    int64_t sent;

    do
        sent = os.send(channel, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno == ECONNRESET) errno = EPIPE; /* gone, with words of ours unread */
    if (sent < 0) RAISE(err, ERR_PEER, errno, "cannot be written to: %s", strerror(errno));
    if ((size_t)sent != count)
        RAISE(err, ERR_PEER, 0, "took %lld of the %zu bytes of a message", (long long)sent, count);
out:
    return rc;
}

int wire_receive(int channel, bool waits, uint8_t *bytes_out, size_t *count_out, struct err *err)
{
    int     rc = ERR_OK;
    int64_t got;

    /* MSG_TRUNC: the length that was sent, also where less was kept. */
    do
        got = os.recv(channel, bytes_out, WIRE_BYTES_MAX, MSG_TRUNC | (waits ? 0 : MSG_DONTWAIT));
    while (got < 0 && errno == EINTR);
    *count_out = 0;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        *count_out = SIZE_MAX;
        goto out;
    }
    if (got < 0 && errno == ECONNRESET) goto out;
    if (got < 0) RAISE(err, ERR_PEER, errno, "cannot be read from: %s", strerror(errno));
    if (got > WIRE_BYTES_MAX)
        RAISE(err, ERR_PEER, 0, "sent a message of %lld bytes (limit %d)", (long long)got,
              WIRE_BYTES_MAX);
    *count_out = (size_t)got;
out:
    return rc;
}
