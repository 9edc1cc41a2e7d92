/*
 * test_wire.c - messages between supervisor and worker: what is packed comes back, whatever else
 * comes is refused, and what is accepted is the one way to write it.
 */
#include "../test.h"

#include "fleet/fleet_int.h"

#include <errno.h>
#include <math.h>
#include <sys/socket.h>

static const char *const texts[] = {"", "a fox", "Füchse im Schnee", "/models/FLUX.1-dev"};

static int32_t any_side(uint64_t *state)
{
    return 16 * (int32_t)random_between(state, 1, 65536);
}

static void any_open(struct wire_open *open, uint64_t *state)
{
    open->options = (struct engine_options){
        .model_folder = texts[random_between(state, 1, 3)],
        .transformer = random_u64(state) % 2 == 0 ? NULL : texts[3],
        .vae = random_u64(state) % 2 == 0 ? NULL : texts[2],
        .precision = (enum precision)random_between(state, 0, PRECISION_BF16),
        .machine = (enum engine_machine)random_between(state, 0, ENGINE_WALLED),
        .gpu = (int32_t)random_between(state, 0, 999),
        .threads = (uint32_t)random_between(state, 0, 256),
        .text_tokens = (uint32_t)random_between(state, 0, 512),
        .memory = {.vram_bytes = random_u64(state),
                   .segment_bytes = random_u64(state),
                   .pool_bytes = random_u64(state),
                   .offload = random_u64(state) % 2 == 0,
                   .expandable = random_u64(state) % 2 == 0,
                   .tiles_per_pass = (uint32_t)random_between(state, 0, WIRE_TILES_MAX),
                   .keep_share = 0.01 * (double)random_between(state, 0, 100),
                   .fragmentation_max = 0.01 * (double)random_between(state, 0, 100),
                   .link_bytes_per_second = (double)random_between(state, 0, INT64_MAX - 1),
                   .disk_bytes_per_second = (double)random_between(state, 0, INT64_MAX - 1),
                   .flop_per_second = (double)random_between(state, 0, INT64_MAX - 1)},
        .text_on_cpu = random_u64(state) % 2 == 0};
    open->channels = (int32_t)random_between(state, 1, 4096);
    open->shared_bytes = random_u64(state);
    open->size_count = (uint32_t)random_between(state, 1, WIRE_SIZES_MAX);
    for (uint32_t i = 0; i < open->size_count; i++)
        open->sizes[i] = (struct engine_size){
            .w_px = any_side(state),
            .h_px = any_side(state),
            .tiles = (uint32_t)random_between(state, 1, WIRE_TILES_MAX),
            .steps = (uint32_t)random_between(state, 1, SCHEDULE_STEPS_MAX),
            .steps_next = (uint32_t)random_between(state, 0, SCHEDULE_STEPS_MAX)};
}

static struct painter_levels any_noise(uint64_t *state)
{
    return (struct painter_levels){.steps = (uint32_t)random_between(state, 1, SCHEDULE_STEPS_MAX),
                                   .tokens = random_between(state, 1, 1 << 30),
                                   .sigma_start = 0.1 * (double)random_between(state, 0, 10),
                                   .strength = 0.1 * (double)random_between(state, 0, 10),
                                   .mu = 0.5 * (double)random_between(state, 0, 5),
                                   .mu_max = 0.25 * (double)random_between(state, 0, 9)};
}

static void any_schedule(struct schedule *schedule, uint64_t *state)
{
    schedule->steps = (uint32_t)random_between(state, 1, SCHEDULE_STEPS_MAX);
    for (uint32_t i = 0; i <= schedule->steps; i++)
        schedule->sigma[i] = (float)(schedule->steps - i) / (float)schedule->steps;
}

/* Four kinds of bytes, none below the one before it, none above its limit. */
static void any_levels(uint64_t levels[4], const uint64_t limits[4], uint64_t *state)
{
    for (int i = 0; i < 4; i++) {
        uint64_t least = i == 0 ? 0 : levels[i - 1];
        levels[i] = (uint64_t)random_between(state, (int64_t)least, (int64_t)limits[i]);
    }
}

static void any_memory(struct painter_memory *memory, uint64_t *state)
{
    const uint64_t most[4] = {1 << 20, 1 << 21, 1 << 22, 1 << 23};
    uint64_t       peaks[4], levels[4];

    any_levels(peaks, most, state);
    memory->use = (struct memory_use){.peak_live = peaks[0],
                                      .peak_placed = peaks[1],
                                      .peak_mapped = peaks[2],
                                      .peak_device = peaks[3],
                                      .idle_share = 0.01 * (double)random_between(state, 0, 100),
                                      .link_bytes = random_u64(state) >> 1,
                                      .stall_seconds = 0.1 * (double)random_between(state, 0, 9)};
    for (int call = 0; call < MEMORY_CALLS; call++)
        memory->use.calls[call] = random_u64(state) >> 1;
    memory->sample_count = (uint32_t)random_between(state, 0, 9);
    if (random_u64(state) % 8 == 0) memory->sample_count = POOL_SAMPLES_MAX;
    for (uint32_t i = 0; i < memory->sample_count; i++) {
        any_levels(levels, peaks, state);
        memory->samples[i] =
            (struct pool_sample){0.5 * (double)i, levels[0], levels[1], levels[2], levels[3]};
    }
}

static void any_message(struct wire_message *message, enum wire_kind kind, uint64_t *state)
{
    memset(message, 0, sizeof *message);
    message->kind = kind;
    message->sequence = (uint32_t)random_u64(state);
    switch (kind) {
    case WIRE_OPEN: any_open(&message->as.open, state); break;
    case WIRE_BEGIN:
        message->as.begin =
            (struct painter_stage){.prompt = texts[random_between(state, 0, 3)],
                                   .guidance = 0.25 * (double)random_between(state, 0, 100),
                                   .levels = any_noise(state)};
        if (random_u64(state) % 2 == 0) message->as.begin.next = any_noise(state);
        break;
    case WIRE_ENCODE:
    case WIRE_PREDICT:
    case WIRE_DECODE:
        message->as.work.count =
            kind == WIRE_PREDICT ? (uint32_t)random_between(state, 1, WIRE_TILES_MAX) : 1;
        if (kind == WIRE_PREDICT)
            message->as.work.step = (uint32_t)random_between(state, 0, SCHEDULE_STEPS_MAX - 1);
        for (uint32_t i = 0; i < message->as.work.count; i++)
            message->as.work.rects[i] = (struct wire_rect){any_side(state), any_side(state)};
        break;
    case WIRE_READY: message->as.model_identity = random_u64(state); break;
    case WIRE_BEGUN: any_schedule(&message->as.begun, state); break;
    case WIRE_YIELD:
    case WIRE_DONE: break;
    case WIRE_MEMORY: message->as.restart = random_u64(state) % 2 == 0; break;
    case WIRE_USED: any_memory(&message->as.used, state); break;
    case WIRE_YIELDED: message->as.yielded = texts[random_between(state, 0, 3)]; break;
    case WIRE_FAILED:
        message->as.failed.code = (enum err_code)random_between(state, ERR_USAGE, ERR_NUMERIC);
        message->as.failed.sys = (int)random_u64(state);
        message->as.failed.words = texts[random_between(state, 0, 3)];
        break;
    case WIRE_LOG:
        message->as.log.level = (enum log_level)random_between(state, LOG_DEBUG, LOG_ERROR);
        message->as.log.words = texts[random_between(state, 0, 3)];
        break;
    }
}

static const enum wire_kind kinds[] = {
    WIRE_OPEN, WIRE_BEGIN,  WIRE_ENCODE, WIRE_PREDICT, WIRE_DECODE,  WIRE_READY,  WIRE_BEGUN,
    WIRE_DONE, WIRE_FAILED, WIRE_LOG,    WIRE_YIELD,   WIRE_YIELDED, WIRE_MEMORY, WIRE_USED};

static enum wire_side sender_of(enum wire_kind kind)
{
    return kind <= WIRE_MEMORY ? WIRE_SUPERVISOR : WIRE_WORKER;
}

static void assert_same_text(const char *a, const char *b)
{
    assert_true((a == NULL) == (b == NULL));
    if (a != NULL) assert_string_equal(a, b);
}

/* Of fields without gaps and pointers in them. */
#define SAME(field) assert_memory_equal(&a->field, &b->field, sizeof a->field)

static void assert_same_open(const struct wire_open *a, const struct wire_open *b)
{
    SAME(options.precision);
    SAME(options.machine);
    SAME(options.gpu);
    SAME(options.threads);
    SAME(options.text_tokens);
    SAME(options.text_on_cpu);
    SAME(options.memory.vram_bytes);
    SAME(options.memory.segment_bytes);
    SAME(options.memory.pool_bytes);
    SAME(options.memory.offload);
    SAME(options.memory.expandable);
    SAME(options.memory.tiles_per_pass);
    SAME(options.memory.keep_share);
    SAME(options.memory.fragmentation_max);
    SAME(options.memory.link_bytes_per_second);
    SAME(options.memory.disk_bytes_per_second);
    SAME(options.memory.flop_per_second);
    SAME(channels);
    SAME(shared_bytes);
    SAME(size_count);
    assert_memory_equal(a->sizes, b->sizes, a->size_count * sizeof a->sizes[0]);
    assert_same_text(a->options.model_folder, b->options.model_folder);
    assert_same_text(a->options.transformer, b->options.transformer);
    assert_same_text(a->options.vae, b->options.vae);
}

static void assert_same_noise(const struct painter_levels *a, const struct painter_levels *b)
{
    SAME(steps);
    SAME(tokens);
    SAME(sigma_start);
    SAME(strength);
    SAME(mu);
    SAME(mu_max);
}

static void assert_same_stage(const struct painter_stage *a, const struct painter_stage *b)
{
    assert_same_text(a->prompt, b->prompt);
    SAME(guidance);
    assert_same_noise(&a->levels, &b->levels);
    assert_same_noise(&a->next, &b->next);
}

static void assert_same_memory(const struct painter_memory *a, const struct painter_memory *b)
{
    SAME(use);
    SAME(sample_count);
    assert_memory_equal(a->samples, b->samples, a->sample_count * sizeof a->samples[0]);
}

static void assert_same(const struct wire_message *a, const struct wire_message *b)
{
    SAME(kind);
    SAME(sequence);
    switch (a->kind) {
    case WIRE_OPEN: assert_same_open(&a->as.open, &b->as.open); break;
    case WIRE_BEGIN: assert_same_stage(&a->as.begin, &b->as.begin); break;
    case WIRE_ENCODE:
    case WIRE_PREDICT:
    case WIRE_DECODE:
        SAME(as.work.step);
        SAME(as.work.count);
        assert_memory_equal(a->as.work.rects, b->as.work.rects,
                            a->as.work.count * sizeof a->as.work.rects[0]);
        break;
    case WIRE_READY: SAME(as.model_identity); break;
    case WIRE_BEGUN: SAME(as.begun); break;
    case WIRE_YIELD:
    case WIRE_DONE: break;
    case WIRE_MEMORY: SAME(as.restart); break;
    case WIRE_USED: assert_same_memory(&a->as.used, &b->as.used); break;
    case WIRE_YIELDED: assert_same_text(a->as.yielded, b->as.yielded); break;
    case WIRE_FAILED:
        SAME(as.failed.code);
        SAME(as.failed.sys);
        assert_same_text(a->as.failed.words, b->as.failed.words);
        break;
    case WIRE_LOG:
        SAME(as.log.level);
        assert_same_text(a->as.log.words, b->as.log.words);
        break;
    }
}

static void what_is_packed_comes_back(void **state)
{
    static uint8_t      bytes[WIRE_BYTES_MAX], again[WIRE_BYTES_MAX];
    struct wire_message message, read;
    uint64_t            random = 1;
    struct err          err = {0};

    (void)state;
    for (int round = 0; round < 300; round++)
        for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
            any_message(&message, kinds[k], &random);
            size_t count = wire_pack(bytes, &message);
            ASSERT_OK(wire_unpack(&read, bytes, count, sender_of(kinds[k]), &err));
            assert_same(&message, &read);
            assert_int_equal(wire_pack(again, &read), count);
            assert_memory_equal(bytes, again, count);
        }
}

static void fields_keep_their_places(void **state)
{
    static uint8_t      bytes[WIRE_BYTES_MAX];
    struct wire_message message = {.kind = WIRE_PREDICT,
                                   .sequence = 7,
                                   .as.work = {.step = 3, .count = 1, .rects = {{64, 128}}}};
    static const char   expected[] =
        "MURW\2\0\4\0\7\0\0\0\x20\0\0\0\3\0\0\0\1\0\0\0\x40\0\0\0\x80\0\0";

    (void)state;
    assert_int_equal(wire_pack(bytes, &message), 32);
    assert_memory_equal(bytes, expected, 32);
    wire_number(bytes, 0x01020304);
    assert_memory_equal(bytes + 8, "\4\3\2\1", 4);
}

/* Every cut, every byte more, every other sender. */
static void nothing_else_is_accepted(void **state)
{
    static uint8_t      bytes[WIRE_BYTES_MAX + 1];
    struct wire_message message, read;
    uint64_t            random = 2;
    struct err          err = {0};

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        any_message(&message, kinds[k], &random);
        size_t         count = wire_pack(bytes, &message);
        enum wire_side sender = sender_of(kinds[k]);
        enum wire_side other = sender == WIRE_WORKER ? WIRE_SUPERVISOR : WIRE_WORKER;
        ASSERT_REFUSED(ERR_PEER, "not its to send", wire_unpack(&read, bytes, count, other, &err));
        for (size_t cut = 0; cut < count; cut++)
            ASSERT_REFUSED(ERR_PEER, "sent", wire_unpack(&read, bytes, cut, sender, &err));
        bytes[count] = 0;
        ASSERT_REFUSED(ERR_PEER, "claims", wire_unpack(&read, bytes, count + 1, sender, &err));
        uint32_t length = (uint32_t)count + 1;
        memcpy(bytes + 12, &length, sizeof length);
        ASSERT_REFUSED(ERR_PEER, "its end is wrong",
                       wire_unpack(&read, bytes, count + 1, sender, &err));
    }
    ASSERT_REFUSED(ERR_PEER, "limit 65536",
                   wire_unpack(&read, bytes, WIRE_BYTES_MAX + 1, WIRE_WORKER, &err));
}

/* A byte set to anything: refused, or read as what packs to these very bytes. */
static void changed_messages_are_refused_or_mean_what_they_say(void **state)
{
    static uint8_t      bytes[WIRE_BYTES_MAX], again[WIRE_BYTES_MAX];
    struct wire_message message, read;
    uint64_t            random = 3;
    struct err          err = {0};
    int                 accepted = 0;

    (void)state;
    for (int round = 0; round < 20000; round++) {
        enum wire_kind kind = kinds[random_u64(&random) % ARRAY_COUNT(kinds)];
        any_message(&message, kind, &random);
        size_t count = wire_pack(bytes, &message);
        bytes[random_u64(&random) % count] = (uint8_t)random_u64(&random);
        if (wire_unpack(&read, bytes, count, sender_of(kind), &err) != ERR_OK) {
            assert_int_equal(err.code, ERR_PEER);
            continue;
        }
        accepted++;
        assert_int_equal(wire_pack(again, &read), count);
        assert_memory_equal(bytes, again, count);
    }
    assert_true(accepted > 1000);
}

static void noise_levels_must_fall_to_zero(void **state)
{
    static uint8_t      bytes[WIRE_BYTES_MAX];
    struct wire_message message, read;
    static const float  wrong[] = {1.5f, -0.5f, 0.9f, NAN, INFINITY};
    struct err          err = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        message = (struct wire_message){.kind = WIRE_BEGUN,
                                        .as.begun = {.steps = 2, .sigma = {0.8f, wrong[i], 0}}};
        ASSERT_REFUSED(ERR_PEER, "a noise level is wrong",
                       wire_unpack(&read, bytes, wire_pack(bytes, &message), WIRE_WORKER, &err));
    }
    message = (struct wire_message){.kind = WIRE_BEGUN,
                                    .as.begun = {.steps = 2, .sigma = {0.8f, 0.5f, 0.1f}}};
    ASSERT_REFUSED(ERR_PEER, "the last noise level",
                   wire_unpack(&read, bytes, wire_pack(bytes, &message), WIRE_WORKER, &err));
}

/* What a plot or a journal could not show. */
static void an_account_of_memory_must_be_possible(void **state)
{
    static uint8_t             bytes[WIRE_BYTES_MAX];
    static struct wire_message message, read;
    const struct memory_use    use = {
           .peak_live = 4, .peak_placed = 5, .peak_mapped = 6, .peak_device = 7};
    struct painter_memory *memory = &message.as.used;
    struct err             err = {0};

    (void)state;
    for (int story = 0; story < 16; story++) {
        message = (struct wire_message){.kind = WIRE_USED};
        memory->use = use;
        memory->sample_count = 2;
        memory->samples[0] = (struct pool_sample){1, 1, 2, 3, 4};
        memory->samples[1] = (struct pool_sample){1, 4, 5, 6, 7};
        if (story == 1) memory->use.peak_live = 6;
        if (story == 2) memory->use.peak_device = 5;
        if (story == 3) memory->use.idle_share = 1.01;
        if (story == 4) memory->use.stall_seconds = -1;
        if (story == 5) memory->use.stall_seconds = NAN;
        if (story == 6) memory->samples[1].seconds = 0.9;
        if (story == 7) memory->samples[0].seconds = -1;
        if (story == 8) memory->samples[1].seconds = 1e300;
        if (story == 9) memory->samples[1].device = 8;
        if (story == 10) memory->samples[1].placed = 3;
        if (story == 11) memory->samples[0].seconds = INFINITY;
        if (story == 12) memory->use.calls[MEMORY_SETTLE] = (uint64_t)INT64_MAX + 1;
        if (story == 13) memory->use.link_bytes = UINT64_MAX;
        if (story == 14) memory->use.peak_device = UINT64_MAX;
        if (story == 15) memory->use.stall_seconds = 1e300;
        size_t count = wire_pack(bytes, &message);
        if (story == 0)
            ASSERT_OK(wire_unpack(&read, bytes, count, WIRE_WORKER, &err));
        else
            ASSERT_REFUSED(ERR_PEER, "is wrong",
                           wire_unpack(&read, bytes, count, WIRE_WORKER, &err));
    }
    uint32_t many = POOL_SAMPLES_MAX + 1;
    message = (struct wire_message){.kind = WIRE_USED};
    size_t count = wire_pack(bytes, &message);
    memcpy(bytes + count - sizeof many, &many, sizeof many);
    ASSERT_REFUSED(ERR_PEER, "the count of samples is wrong",
                   wire_unpack(&read, bytes, count, WIRE_WORKER, &err));
}

static void a_packet_comes_whole(void **state)
{
    static uint8_t bytes[WIRE_BYTES_MAX], got[WIRE_BYTES_MAX], large[WIRE_BYTES_MAX + 5000];
    int            pair[2];
    size_t         count;
    struct err     err = {0};

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    ASSERT_OK(wire_receive(pair[1], false, got, &count, &err));
    assert_true(count == SIZE_MAX);
    memset(bytes, 7, sizeof bytes);
    ASSERT_OK(wire_send(pair[0], bytes, sizeof bytes, &err));
    ASSERT_OK(wire_send(pair[0], bytes, 20, &err));
    ASSERT_OK(wire_receive(pair[1], false, got, &count, &err));
    assert_int_equal(count, sizeof bytes);
    assert_memory_equal(bytes, got, sizeof bytes);
    ASSERT_OK(wire_receive(pair[1], true, got, &count, &err));
    assert_int_equal(count, 20);
    assert_int_equal(send(pair[0], large, sizeof large, 0), (int)sizeof large);
    ASSERT_REFUSED(ERR_PEER, "70536 bytes (limit 65536)",
                   wire_receive(pair[1], false, got, &count, &err));
    (void)close(pair[0]);
    ASSERT_OK(wire_receive(pair[1], true, got, &count, &err));
    assert_int_equal(count, 0);
    ASSERT_REFUSED(ERR_PEER, "cannot be written to", wire_send(pair[1], bytes, 20, &err));
    assert_int_equal(err.sys, EPIPE);
    (void)close(pair[1]);
}

/* Both sides must find the same places, and nothing may lie over anything else. */
static void shared_areas_are_apart(void **state)
{
    struct engine_size sizes[] = {{.w_px = 64, .h_px = 128, .tiles = 3, .steps = 1},
                                  {.w_px = 96, .h_px = 96, .tiles = 1, .steps = 1}};
    struct wire_open   open = {.channels = 16, .size_count = 2};
    struct shared      one, other;
    struct err         err = {0};

    (void)state;
    ASSERT_OK(shared_open(&one, sizes, 2, 16, &err));
    assert_int_equal(one.latent_values, 3 * 8 * 16 * 16);
    assert_int_equal(one.pixel_values, 96 * 96 * 3);
    assert_true((char *)one.latents >= (char *)one.pulse + 8);
    assert_true(one.velocities >= one.latents + one.latent_values);
    assert_true(one.pixels >= one.velocities + one.latent_values);
    assert_true((char *)(one.pixels + one.pixel_values) <= (char *)one.base + one.bytes);
    assert_int_not_equal(ftruncate(one.fd, 1), 0);
    assert_int_not_equal(ftruncate(one.fd, (off_t)one.bytes + 4096), 0);

    memcpy(open.sizes, sizes, sizeof sizes);
    open.shared_bytes = one.bytes;
    ASSERT_OK(shared_attach(&other, one.fd, &open, &err));
    one.pixels[5] = 3;
    assert_true(other.pixels[5] == 3);
    shared_close(&other);
    open.shared_bytes++;
    ASSERT_REFUSED(ERR_PEER, "speaks of", shared_attach(&other, one.fd, &open, &err));
    open.shared_bytes--;
    open.sizes[1].w_px = 4096;
    ASSERT_REFUSED(ERR_PEER, "its sizes need", shared_attach(&other, one.fd, &open, &err));
    shared_close(&one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_packed_comes_back),
        cmocka_unit_test(fields_keep_their_places),
        cmocka_unit_test(nothing_else_is_accepted),
        cmocka_unit_test(changed_messages_are_refused_or_mean_what_they_say),
        cmocka_unit_test(noise_levels_must_fall_to_zero),
        cmocka_unit_test(an_account_of_memory_must_be_possible),
        cmocka_unit_test(a_packet_comes_whole),
        cmocka_unit_test(shared_areas_are_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
