/*
 * fuzz_wire.c - messages from a worker or a supervisor that is out of its mind.  Whatever is taken
 * is within its limits and packs to the very bytes that came.  The first byte says who sends, and
 * whether the length in the head is put right, so that more messages are read to their end.
 */
#include "fleet/fleet_int.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_text(const char *text, size_t most)
{
    size_t length = strlen(text);
    must(length <= most && text_utf8_valid_prefix(text, length) == length);
}

static void check_open(const struct wire_open *open)
{
    struct shared shared;
    struct err    err;

    must(open->size_count >= 1 && open->size_count <= WIRE_SIZES_MAX && open->channels > 0);
    for (uint32_t i = 0; i < open->size_count; i++)
        must(open->sizes[i].w_px > 0 && open->sizes[i].w_px % TILING_PX_PER_TOKEN == 0 &&
             open->sizes[i].tiles <= WIRE_TILES_MAX &&
             open->sizes[i].steps_next <= SCHEDULE_STEPS_MAX);
    check_text(open->options.model_folder, WIRE_PATH_MAX);
    must(open->options.memory.keep_share >= 0 && open->options.memory.keep_share <= 1);
    must(open->options.memory.fragmentation_max >= 0 &&
         open->options.memory.fragmentation_max <= 1);
    /* No layout may wrap around; no descriptor is there to map. */
    must(shared_attach(&shared, -1, open, &err) == ERR_PEER);
    must(shared_bytes(open->sizes, open->size_count, open->channels) > 4096);
}

static void check_stage(const struct painter_stage *stage)
{
    check_text(stage->prompt, WIRE_PROMPT_MAX);
    must(stage->levels.steps >= 1 && stage->levels.steps <= SCHEDULE_STEPS_MAX);
    must(stage->next.steps <= SCHEDULE_STEPS_MAX);
    must(stage->next.steps == 0 || stage->next.tokens >= 1);
}

/* What render, journal and plot rely on. */
static void check_used(const struct painter_memory *memory)
{
    const struct memory_use *use = &memory->use;

    must(use->peak_live <= use->peak_placed && use->peak_placed <= use->peak_mapped &&
         use->peak_mapped <= use->peak_device && use->peak_device <= INT64_MAX);
    must(use->link_bytes <= INT64_MAX && use->calls[MEMORY_SETTLE] <= INT64_MAX);
    must(use->idle_share >= 0 && use->idle_share <= 1 && use->stall_seconds >= 0);
    must(memory->sample_count <= POOL_SAMPLES_MAX);
    for (uint32_t i = 0; i < memory->sample_count; i++) {
        const struct pool_sample *sample = &memory->samples[i];
        must(sample->seconds >= (i == 0 ? 0 : sample[-1].seconds) && sample->seconds < 1e13);
        must(sample->live <= sample->placed && sample->placed <= sample->mapped &&
             sample->mapped <= sample->device && sample->device <= use->peak_device);
    }
}

static void check_message(const struct wire_message *message)
{
    if (message->kind == WIRE_OPEN) check_open(&message->as.open);
    if (message->kind == WIRE_USED) check_used(&message->as.used);
    if (message->kind == WIRE_BEGIN) check_stage(&message->as.begin);
    if (message->kind == WIRE_YIELDED) check_text(message->as.yielded, WIRE_WORDS_MAX);
    if (message->kind == WIRE_LOG) check_text(message->as.log.words, WIRE_WORDS_MAX);
    if (message->kind == WIRE_FAILED) {
        check_text(message->as.failed.words, WIRE_WORDS_MAX);
        must(message->as.failed.code >= ERR_USAGE && message->as.failed.code <= ERR_NUMERIC);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { LENGTH_AT = 12 };
    static uint8_t again[WIRE_BYTES_MAX];
    uint8_t       *bytes; /* of exactly that length, so that a read past the end is seen */
    static struct wire_message message;
    struct err                 err = {.code = ERR_OK};

    if (size == 0 || size > WIRE_BYTES_MAX) return 0;
    uint32_t count = (uint32_t)size - 1;
    bytes = malloc(count > 0 ? count : 1);
    must(bytes != NULL);
    memcpy(bytes, data + 1, count);
    if (data[0] / 2 % 2 == 1 && count >= LENGTH_AT + sizeof count)
        memcpy(bytes + LENGTH_AT, &count, sizeof count);
    if (wire_unpack(&message, bytes, count, data[0] % 2 == 0 ? WIRE_SUPERVISOR : WIRE_WORKER,
                    &err) == ERR_OK) {
        check_message(&message);
        must(wire_pack(again, &message) == count && memcmp(again, bytes, count) == 0);
    } else {
        must(err.code == ERR_PEER && err.text[0] != '\0');
    }
    free(bytes);
    return 0;
}
