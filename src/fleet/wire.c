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
 *          4     2  version of this format, 1
 *          6     2  kind
 *          8     4  sequence: questions count up, an answer repeats its question's number
 *         12     4  bytes of the whole message, at most 65,536
 *         16        the fields of its kind, in this order and nothing after them:
 *
 *     OPEN     u32 precision, machine, GPU, threads, text tokens; i32 channels;
 *              u64 bytes of shared memory;
 *              u32 count of sizes, each: i32 w, h, u32 tiles, steps;
 *              texts: model folder, transformer, VAE (the last two may be empty);
 *              memory of a GPU: u64 bytes, segment, pool; u32 offload, expandable, tiles a pass,
 *              text on the CPU; f64 share kept, share idle, bytes and FLOP per second
 *     BEGIN    u32 steps; i64 tokens; f64 guidance, sigma start, strength, mu, mu max; text prompt
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
#include <math.h>
#include <string.h>
#include <sys/socket.h>

enum { HEAD_BYTES = 16, BYTES_AT = 12, SEQUENCE_AT = 8, VERSION = 1 };
static const char MAGIC[4] = {'M', 'U', 'R', 'W'};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are copied as they lie");
_Static_assert(HEAD_BYTES + 64 + WIRE_SIZES_MAX * 16 + 3 * (WIRE_PATH_MAX + 5) < WIRE_BYTES_MAX,
               "the longest OPEN fits");
_Static_assert(HEAD_BYTES + 64 + WIRE_PROMPT_MAX + 5 < WIRE_BYTES_MAX, "the longest BEGIN fits");
_Static_assert(HEAD_BYTES + 64 + MEMORY_CALLS * 8 + POOL_SAMPLES_MAX * 40 < WIRE_BYTES_MAX,
               "the longest USED fits");

/* --------------------------------------------------------------------------------- writing */

struct writer {
    uint8_t *bytes;
    size_t   count;
};

static void put(struct writer *w, const void *value, size_t bytes)
{
    must(w->count + bytes <= WIRE_BYTES_MAX);
    if (bytes > 0) memcpy(w->bytes + w->count, value, bytes);
    w->count += bytes;
}

static void put_u16(struct writer *w, uint32_t value)
{
    uint16_t narrow = (uint16_t)value;
    put(w, &narrow, sizeof narrow);
}

static void put_u32(struct writer *w, uint32_t value)
{
    put(w, &value, sizeof value);
}

static void put_i32(struct writer *w, int32_t value)
{
    put(w, &value, sizeof value);
}

static void put_u64(struct writer *w, uint64_t value)
{
    put(w, &value, sizeof value);
}

static void put_f64(struct writer *w, double value)
{
    put(w, &value, sizeof value);
}

static void put_text(struct writer *w, const char *text)
{
    size_t length = text == NULL ? 0 : strlen(text);

    put_u32(w, (uint32_t)length);
    put(w, text, length);
    put(w, "", 1);
}

static void put_memory(struct writer *w, const struct engine_options *options)
{
    const struct engine_memory *memory = &options->memory;

    put_u64(w, memory->vram_bytes);
    put_u64(w, memory->segment_bytes);
    put_u64(w, memory->pool_bytes);
    put_u32(w, memory->offload);
    put_u32(w, memory->expandable);
    put_u32(w, memory->tiles_per_pass);
    put_u32(w, options->text_on_cpu);
    put_f64(w, memory->keep_share);
    put_f64(w, memory->fragmentation_max);
    put_f64(w, memory->link_bytes_per_second);
    put_f64(w, memory->disk_bytes_per_second);
    put_f64(w, memory->flop_per_second);
}

static void put_open(struct writer *w, const struct wire_open *open)
{
    must(open->size_count > 0 && open->size_count <= WIRE_SIZES_MAX);
    put_u32(w, (uint32_t)open->options.precision);
    put_u32(w, (uint32_t)open->options.machine);
    put_u32(w, (uint32_t)open->options.gpu);
    put_u32(w, open->options.threads);
    put_u32(w, open->options.text_tokens);
    put_i32(w, open->channels);
    put_u64(w, open->shared_bytes);
    put_u32(w, open->size_count);
    for (uint32_t i = 0; i < open->size_count; i++) {
        put_i32(w, open->sizes[i].w_px);
        put_i32(w, open->sizes[i].h_px);
        put_u32(w, open->sizes[i].tiles);
        put_u32(w, open->sizes[i].steps);
    }
    put_text(w, open->options.model_folder);
    put_text(w, open->options.transformer);
    put_text(w, open->options.vae);
    put_memory(w, &open->options);
}

static void put_begin(struct writer *w, const struct painter_stage *stage)
{
    put_u32(w, stage->steps);
    put_u64(w, (uint64_t)stage->tokens);
    put_f64(w, stage->guidance);
    put_f64(w, stage->sigma_start);
    put_f64(w, stage->strength);
    put_f64(w, stage->mu);
    put_f64(w, stage->mu_max);
    put_text(w, stage->prompt);
}

static void put_work(struct writer *w, enum wire_kind kind, const struct wire_work *work)
{
    must(work->count > 0 && work->count <= WIRE_TILES_MAX);
    must(kind == WIRE_PREDICT || work->count == 1);
    if (kind == WIRE_PREDICT) {
        put_u32(w, work->step);
        put_u32(w, work->count);
    }
    for (uint32_t i = 0; i < work->count; i++) {
        put_i32(w, work->rects[i].w_px);
        put_i32(w, work->rects[i].h_px);
    }
}

static void put_levels(struct writer *w, const uint64_t levels[4])
{
    for (int i = 0; i < 4; i++)
        put_u64(w, levels[i]);
}

static void put_used(struct writer *w, const struct painter_memory *memory)
{
    const struct memory_use *use = &memory->use;

    must(memory->sample_count <= POOL_SAMPLES_MAX);
    put_levels(w, (const uint64_t[]){use->peak_live, use->peak_placed, use->peak_mapped,
                                     use->peak_device});
    put_f64(w, use->idle_share);
    for (int call = 0; call < MEMORY_CALLS; call++)
        put_u64(w, use->calls[call]);
    put_u64(w, use->link_bytes);
    put_f64(w, use->stall_seconds);
    put_u32(w, memory->sample_count);
    for (uint32_t i = 0; i < memory->sample_count; i++) {
        const struct pool_sample *sample = &memory->samples[i];
        put_f64(w, sample->seconds);
        put_levels(
            w, (const uint64_t[]){sample->live, sample->placed, sample->mapped, sample->device});
    }
}

size_t wire_pack(uint8_t *bytes_out, const struct wire_message *message)
{
    struct writer   w = {.bytes = bytes_out};
    struct schedule begun;
    uint32_t        count;

    put(&w, MAGIC, sizeof MAGIC);
    put_u16(&w, VERSION);
    put_u16(&w, (uint32_t)message->kind);
    put_u32(&w, message->sequence);
    put_u32(&w, 0);
    switch (message->kind) {
    case WIRE_OPEN: put_open(&w, &message->as.open); break;
    case WIRE_BEGIN: put_begin(&w, &message->as.begin); break;
    case WIRE_ENCODE:
    case WIRE_PREDICT:
    case WIRE_DECODE: put_work(&w, message->kind, &message->as.work); break;
    case WIRE_READY: put_u64(&w, message->as.model_identity); break;
    case WIRE_BEGUN:
        begun = message->as.begun;
        must(begun.steps > 0 && begun.steps <= SCHEDULE_STEPS_MAX);
        put_u32(&w, begun.steps);
        put(&w, begun.sigma, (begun.steps + 1) * sizeof begun.sigma[0]);
        break;
    case WIRE_YIELD:
    case WIRE_DONE: break;
    case WIRE_YIELDED: put_text(&w, message->as.yielded); break;
    case WIRE_MEMORY: put_u32(&w, message->as.restart); break;
    case WIRE_USED: put_used(&w, &message->as.used); break;
    case WIRE_FAILED:
        put_u32(&w, (uint32_t)message->as.failed.code);
        put_i32(&w, message->as.failed.sys);
        put_text(&w, message->as.failed.words);
        break;
    case WIRE_LOG:
        put_u32(&w, (uint32_t)message->as.log.level);
        put_text(&w, message->as.log.words);
        break;
    }
    count = (uint32_t)w.count;
    memcpy(bytes_out + BYTES_AT, &count, sizeof count);
    return w.count;
}

void wire_number(uint8_t *bytes, uint32_t sequence)
{
    memcpy(bytes + SEQUENCE_AT, &sequence, sizeof sequence);
}

/* --------------------------------------------------------------------------------- reading */

/* The first field that is wrong, and all after it, read as zero; `wrong` names it. */
struct reader {
    const uint8_t *bytes;
    size_t         count, at;
    const char    *wrong;
};

static void take(struct reader *r, void *value_out, size_t bytes, const char *name)
{
    memset(value_out, 0, bytes);
    if (r->wrong != NULL) return;
    if (r->count - r->at < bytes) {
        r->wrong = name;
        return;
    }
    memcpy(value_out, r->bytes + r->at, bytes);
    r->at += bytes;
}

static void need(struct reader *r, bool holds, const char *name)
{
    if (r->wrong == NULL && !holds) r->wrong = name;
}

static uint32_t take_u32(struct reader *r, uint32_t least, uint32_t most, const char *name)
{
    uint32_t value;

    take(r, &value, sizeof value, name);
    need(r, value >= least && value <= most, name);
    return r->wrong == NULL ? value : 0;
}

static uint64_t take_u64(struct reader *r, const char *name)
{
    uint64_t value;

    take(r, &value, sizeof value, name);
    return value;
}

static double take_f64(struct reader *r, const char *name)
{
    double value;

    take(r, &value, sizeof value, name);
    need(r, isfinite(value), name);
    return r->wrong == NULL ? value : 0;
}

/* A view into the bytes; "" when wrong. */
static const char *take_text(struct reader *r, uint32_t most, const char *name)
{
    uint32_t    length = take_u32(r, 0, most, name);
    const char *text = (const char *)r->bytes + r->at;

    need(r, r->count - r->at > length, name);
    if (r->wrong != NULL) return "";
    need(r, text[length] == '\0' && memchr(text, '\0', length) == NULL, name);
    need(r, text_utf8_valid_prefix(text, length) == length, name);
    r->at += (size_t)length + 1;
    return r->wrong == NULL ? text : "";
}

static int32_t take_side(struct reader *r)
{
    uint32_t side = take_u32(r, TILING_PX_PER_TOKEN, TILING_SIDE_MAX_PX, "a side");

    need(r, side % TILING_PX_PER_TOKEN == 0, "a side");
    return (int32_t)side;
}

static double take_share(struct reader *r, const char *name)
{
    double share = take_f64(r, name);

    need(r, share >= 0 && share <= 1, name);
    return r->wrong == NULL ? share : 0;
}

static double take_rate(struct reader *r, const char *name)
{
    double rate = take_f64(r, name);

    need(r, rate >= 0 && rate <= 1e30, name);
    return r->wrong == NULL ? rate : 0;
}

static void take_memory(struct reader *r, struct engine_options *options)
{
    struct engine_memory *memory = &options->memory;

    memory->vram_bytes = take_u64(r, "the memory of a GPU");
    memory->segment_bytes = take_u64(r, "the size of a segment");
    memory->pool_bytes = take_u64(r, "the size of the pool");
    memory->offload = take_u32(r, 0, 1, "the offload") == 1;
    memory->expandable = take_u32(r, 0, 1, "the kind of segments") == 1;
    memory->tiles_per_pass = take_u32(r, 0, WIRE_TILES_MAX, "the tiles of a pass");
    options->text_on_cpu = take_u32(r, 0, 1, "the place of the text encoders") == 1;
    memory->keep_share = take_share(r, "the share that is kept");
    memory->fragmentation_max = take_share(r, "the share that may lie idle");
    memory->link_bytes_per_second = take_rate(r, "the rate of the link");
    memory->disk_bytes_per_second = take_rate(r, "the rate of the disk");
    memory->flop_per_second = take_rate(r, "the rate of the GPU");
}

static void take_open(struct reader *r, struct wire_open *open)
{
    enum { THREADS_MAX = 65536, TEXT_TOKENS_MAX = 65536, CHANNELS_MAX = 4096, GPU_MAX = 999 };
    uint32_t precision = take_u32(r, 0, PRECISION_BF16, "the precision");

    open->options = (struct engine_options){.precision = (enum precision)precision};
    open->options.machine = (enum engine_machine)take_u32(r, 0, ENGINE_WALLED, "the machine");
    open->options.gpu = (int32_t)take_u32(r, 0, GPU_MAX, "the GPU");
    open->options.threads = take_u32(r, 0, THREADS_MAX, "the threads");
    open->options.text_tokens = take_u32(r, 0, TEXT_TOKENS_MAX, "the text tokens");
    open->channels = (int32_t)take_u32(r, 1, CHANNELS_MAX, "the channels");
    open->shared_bytes = take_u64(r, "the shared memory");
    open->size_count = take_u32(r, 1, WIRE_SIZES_MAX, "the count of sizes");
    for (uint32_t i = 0; i < open->size_count; i++) {
        open->sizes[i].w_px = take_side(r);
        open->sizes[i].h_px = take_side(r);
        open->sizes[i].tiles = take_u32(r, 1, WIRE_TILES_MAX, "the tiles of a size");
        open->sizes[i].steps = take_u32(r, 1, SCHEDULE_STEPS_MAX, "the steps of a size");
    }
    open->options.model_folder = take_text(r, WIRE_PATH_MAX, "the model folder");
    open->options.transformer = take_text(r, WIRE_PATH_MAX, "the transformer");
    open->options.vae = take_text(r, WIRE_PATH_MAX, "the VAE");
    take_memory(r, &open->options);
    if (open->options.transformer[0] == '\0') open->options.transformer = NULL;
    if (open->options.vae[0] == '\0') open->options.vae = NULL;
}

static void take_begin(struct reader *r, struct painter_stage *stage)
{
    const uint64_t tokens_max = (uint64_t)1 << 40;
    uint64_t       tokens;

    stage->steps = take_u32(r, 1, SCHEDULE_STEPS_MAX, "the steps");
    tokens = take_u64(r, "the tokens");
    need(r, tokens >= 1 && tokens <= tokens_max, "the tokens");
    stage->tokens = (int64_t)tokens;
    stage->guidance = take_f64(r, "the guidance");
    stage->sigma_start = take_f64(r, "the first noise level");
    stage->strength = take_f64(r, "the strength");
    stage->mu = take_f64(r, "mu");
    stage->mu_max = take_f64(r, "the bound of mu");
    stage->prompt = take_text(r, WIRE_PROMPT_MAX, "the prompt");
}

static void take_work(struct reader *r, enum wire_kind kind, struct wire_work *work)
{
    work->step = 0;
    work->count = 1;
    if (kind == WIRE_PREDICT) {
        work->step = take_u32(r, 0, SCHEDULE_STEPS_MAX - 1, "the step");
        work->count = take_u32(r, 1, WIRE_TILES_MAX, "the count of rectangles");
    }
    for (uint32_t i = 0; i < work->count; i++) {
        work->rects[i].w_px = take_side(r);
        work->rects[i].h_px = take_side(r);
    }
}

/* Noise only falls, and ends at 0. */
static void take_begun(struct reader *r, struct schedule *schedule)
{
    schedule->steps = take_u32(r, 1, SCHEDULE_STEPS_MAX, "the steps");
    take(r, schedule->sigma, (schedule->steps + 1) * sizeof schedule->sigma[0], "a noise level");
    for (uint32_t i = 0; i <= schedule->steps; i++) {
        float level = schedule->sigma[i], before = i == 0 ? 1 : schedule->sigma[i - 1];
        need(r, level >= 0 && level <= before, "a noise level");
    }
    need(r, schedule->sigma[schedule->steps] == 0, "the last noise level");
}

/* As large as a journal can say it. */
static uint64_t take_i63(struct reader *r, const char *name)
{
    uint64_t value = take_u64(r, name);

    need(r, value <= INT64_MAX, name);
    return value;
}

/* Each kind of bytes holds the one before it, and none rises above `limits`. */
static void take_levels(struct reader *r, uint64_t levels_out[4], const uint64_t limits[4])
{
    for (int i = 0; i < 4; i++) {
        levels_out[i] = take_u64(r, "a count of bytes");
        need(r, levels_out[i] <= limits[i] && (i == 0 || levels_out[i - 1] <= levels_out[i]),
             "a count of bytes");
    }
}

static void take_used(struct reader *r, struct painter_memory *memory)
{
    const uint64_t     any[4] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
    const double       seconds_max = 1e12;
    uint64_t           peaks[4], levels[4];
    struct memory_use *use = &memory->use;

    take_levels(r, peaks, any);
    use->peak_live = peaks[0];
    use->peak_placed = peaks[1];
    use->peak_mapped = peaks[2];
    use->peak_device = peaks[3];
    use->idle_share = take_share(r, "the share that lies idle");
    for (int call = 0; call < MEMORY_CALLS; call++)
        use->calls[call] = take_i63(r, "a count of calls");
    use->link_bytes = take_i63(r, "the bytes over the link");
    use->stall_seconds = take_f64(r, "the seconds stood still");
    need(r, use->stall_seconds >= 0 && use->stall_seconds <= seconds_max,
         "the seconds stood still");
    memory->sample_count = take_u32(r, 0, POOL_SAMPLES_MAX, "the count of samples");
    for (uint32_t i = 0; i < memory->sample_count; i++) {
        struct pool_sample *sample = &memory->samples[i];
        double              least = i == 0 ? 0 : memory->samples[i - 1].seconds;
        sample->seconds = take_f64(r, "the time of a sample");
        need(r, sample->seconds >= least && sample->seconds <= seconds_max, "the time of a sample");
        take_levels(r, levels, peaks);
        sample->live = levels[0];
        sample->placed = levels[1];
        sample->mapped = levels[2];
        sample->device = levels[3];
    }
}

static void take_fields(struct reader *r, struct wire_message *out)
{
    switch (out->kind) {
    case WIRE_OPEN: take_open(r, &out->as.open); break;
    case WIRE_BEGIN: take_begin(r, &out->as.begin); break;
    case WIRE_ENCODE:
    case WIRE_PREDICT:
    case WIRE_DECODE: take_work(r, out->kind, &out->as.work); break;
    case WIRE_READY: out->as.model_identity = take_u64(r, "the model's identity"); break;
    case WIRE_BEGUN: take_begun(r, &out->as.begun); break;
    case WIRE_YIELD:
    case WIRE_DONE: break;
    case WIRE_YIELDED: out->as.yielded = take_text(r, WIRE_WORDS_MAX, "the words"); break;
    case WIRE_MEMORY: out->as.restart = take_u32(r, 0, 1, "the restart") == 1; break;
    case WIRE_USED: take_used(r, &out->as.used); break;
    case WIRE_FAILED:
        out->as.failed.code = (enum err_code)take_u32(r, ERR_USAGE, ERR_NUMERIC, "the error code");
        take(r, &out->as.failed.sys, sizeof out->as.failed.sys, "the system's code");
        out->as.failed.words = take_text(r, WIRE_WORDS_MAX, "the sentence");
        break;
    case WIRE_LOG:
        out->as.log.level = (enum log_level)take_u32(r, LOG_DEBUG, LOG_ERROR, "the level");
        out->as.log.words = take_text(r, WIRE_WORDS_MAX, "the line");
        break;
    }
    need(r, r->at == r->count, "its end");
}

static bool may_send(enum wire_side sender, unsigned kind)
{
    if (sender == WIRE_SUPERVISOR) return kind >= WIRE_OPEN && kind <= WIRE_MEMORY;
    return kind >= WIRE_READY && kind <= WIRE_USED;
}

int wire_unpack(struct wire_message *out, const uint8_t *bytes, size_t count, enum wire_side sender,
                struct err *err)
{
    int           rc = ERR_OK;
    struct reader r = {.bytes = bytes, .count = count};
    uint16_t      version, kind;
    uint32_t      length;
    char          magic[sizeof MAGIC];

    if (count > WIRE_BYTES_MAX)
        RAISE(err, ERR_PEER, 0, "sent a message of %zu bytes (limit %d)", count, WIRE_BYTES_MAX);
    take(&r, magic, sizeof magic, "its head");
    take(&r, &version, sizeof version, "its head");
    take(&r, &kind, sizeof kind, "its head");
    take(&r, &out->sequence, sizeof out->sequence, "its head");
    take(&r, &length, sizeof length, "its head");
    if (r.wrong != NULL || memcmp(magic, MAGIC, sizeof magic) != 0)
        RAISE(err, ERR_PEER, 0, "sent %zu bytes that are no message", count);
    if (version != VERSION)
        RAISE(err, ERR_PEER, 0, "speaks version %u of the messages, and this program version %d",
              version, VERSION);
    if (length != count)
        RAISE(err, ERR_PEER, 0, "sent %zu bytes of a message that claims %u", count, length);
    if (!may_send(sender, kind))
        RAISE(err, ERR_PEER, 0, "sent a message of kind %u, which is not its to send", kind);
    out->kind = (enum wire_kind)kind;
    take_fields(&r, out);
    if (r.wrong != NULL)
        RAISE(err, ERR_PEER, 0, "sent a message of kind %u in which %s is wrong", kind, r.wrong);
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
