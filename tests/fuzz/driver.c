/*
 * driver.c - runs a fuzz target without a fuzzer: every file of a corpus, then mutations of them.
 *
 *     fuzz_x CORPUS_FOLDER [MUTATIONS [SEED]]
 *
 * The mutations are crude (bytes set, flipped, cut, repeated, numbers made huge) but the same for
 * the same seed, so a finding can be repeated.  The same target links with libFuzzer instead of
 * this file.
 */
#include <dirent.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_MAX = 1 << 20, FILES_MAX = 1024 };

struct input {
    uint8_t *bytes;
    size_t   count;
};

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static struct input read_file(const char *path)
{
    struct input input = {.bytes = malloc(INPUT_MAX), .count = 0};
    FILE        *file = fopen(path, "rb");

    if (file == NULL || input.bytes == NULL) {
        (void)fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    input.count = fread(input.bytes, 1, INPUT_MAX, file);
    (void)fclose(file);
    return input;
}

static size_t read_corpus(struct input *inputs, const char *folder)
{
    size_t         count = 0;
    DIR           *listing = opendir(folder);
    struct dirent *entry;

    if (listing == NULL) return 0;
    while (count < FILES_MAX && (entry = readdir(listing)) != NULL) {
        char path[4096];
        if (entry->d_name[0] == '.') continue;
        (void)snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        inputs[count++] = read_file(path);
    }
    (void)closedir(listing);
    return count;
}

/* One small change in place; returns the new length. */
static size_t mutate(uint8_t *bytes, size_t count, uint64_t *state)
{
    static const uint64_t tempting[] = {0,          1,          0x7F,      0x80,
                                        0xFF,       0x7FFF,     0xFFFF,    0x7FFFFFFF,
                                        0x80000000, 0xFFFFFFFF, INT64_MAX, UINT64_MAX};
    size_t                at = count == 0 ? 0 : (size_t)(random_next(state) % count);
    size_t                span = 1 + (size_t)(random_next(state) % 16);

    switch (random_next(state) % 7) {
    case 0:
        if (count > 0) bytes[at] ^= (uint8_t)(1u << (random_next(state) % 8));
        return count;
    case 1:
        if (count > 0) bytes[at] = (uint8_t)random_next(state);
        return count;
    case 2: return at;
    case 3:
        if (at + span > count) return count;
        memmove(bytes + at, bytes + at + span, count - at - span);
        return count - span;
    case 4:
        if (at + span > count || count + span > INPUT_MAX) return count;
        memmove(bytes + at + span, bytes + at, count - at);
        return count + span;
    case 5: {
        uint64_t value = tempting[random_next(state) % (sizeof tempting / sizeof tempting[0])];
        size_t   width = (size_t)1 << (random_next(state) % 4);
        if (at + width <= count) memcpy(bytes + at, &value, width);
        return count;
    }
    default:
        if (count < INPUT_MAX) bytes[count++] = (uint8_t)random_next(state);
        return count;
    }
}

int main(int argc, char **argv)
{
    static struct input inputs[FILES_MAX];
    uint64_t            mutations = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    uint64_t            state = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    uint8_t            *work = malloc(INPUT_MAX);
    size_t              count;

    if (argc < 2 || work == NULL) {
        (void)fprintf(stderr, "use: %s CORPUS_FOLDER [MUTATIONS [SEED]]\n", argv[0]);
        return 2;
    }
    count = read_corpus(inputs, argv[1]);
    if (count == 0) inputs[count++] = (struct input){.bytes = calloc(1, 1), .count = 0};
    for (size_t i = 0; i < count; i++)
        (void)LLVMFuzzerTestOneInput(inputs[i].bytes, inputs[i].count);
    for (uint64_t i = 0; i < mutations; i++) {
        const struct input *source = &inputs[random_next(&state) % count];
        size_t              length = source->count;
        uint64_t            changes = 1 + random_next(&state) % 6;

        if (length > 0) memcpy(work, source->bytes, length);
        while (changes-- > 0)
            length = mutate(work, length, &state);
        /* An exact heap copy, so that a read past the end is seen. */
        uint8_t *exact = malloc(length == 0 ? 1 : length);
        if (exact == NULL) return 2;
        memcpy(exact, work, length);
        (void)LLVMFuzzerTestOneInput(exact, length);
        free(exact);
    }
    (void)printf("%s: %zu corpus files, %" PRIu64 " mutations, no finding\n", argv[0], count,
                 mutations);
    for (size_t i = 0; i < count; i++)
        free(inputs[i].bytes);
    free(work);
    return 0;
}
