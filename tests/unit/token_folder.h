/*
 * token_folder.h - a folder with a tokenizer in it, and what its ids are held against.
 */
#ifndef MURAL_TOKEN_FOLDER_H
#define MURAL_TOKEN_FOLDER_H

#include "../test.h"

#include "engine/engine_int.h"
#include "engine/tokenizer_int.h"

#include <zstd.h>

enum { T5_LENGTH = 512, CLIP_LENGTH = 77 };

/* What is written is at most this long, so paths of files fit too. */
static char folder[512];

static inline void write_bytes(const char *name, const void *bytes, size_t count)
{
    char path[1024];

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    scratch_write(path, bytes, count);
}

static inline void write_text(const char *name, const char *text)
{
    write_bytes(name, text, strlen(text));
}

static inline void remove_file(const char *name)
{
    char path[1024];

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    (void)unlink(path);
}

/* Every test starts with an empty folder. */
static inline int folder_setup(void **state)
{
    (void)state;
    scratch_make(folder, sizeof folder);
    return 0;
}

static inline int folder_teardown(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

/* The stored file `from`, unpacked into the folder. */
static inline void unpack(const char *from, const char *name)
{
    static uint8_t packed[1 << 20], plain[4 << 20];
    ZSTD_DCtx     *context = ZSTD_createDCtx();
    char           path[1024];
    FILE          *file;
    ZSTD_inBuffer  in = {packed, 0, 0};
    ZSTD_outBuffer out = {plain, sizeof plain, 0};

    (void)snprintf(path, sizeof path, "%s/golden/tokens/%s.zst", MURAL_TEST_DATA, from);
    file = fopen(path, "rb");
    if (file == NULL) fail_msg("cannot read %s", path);
    in.size = fread(packed, 1, sizeof packed, file);
    (void)fclose(file);
    if (context == NULL || ZSTD_decompressStream(context, &out, &in) != 0 || in.pos != in.size)
        fail_msg("%s is damaged", path);
    (void)ZSTD_freeDCtx(context);
    write_bytes(name, plain, out.pos);
}

static inline struct clip_tokenizer *clip_open(void)
{
    struct clip_tokenizer *tokenizer = NULL;
    struct err             err = {0};

    ASSERT_OK(clip_tokenizer_open(&tokenizer, folder, &err));
    return tokenizer;
}

static inline struct t5_tokenizer *t5_open(void)
{
    struct t5_tokenizer *tokenizer = NULL;
    struct err           err = {0};

    ASSERT_OK(t5_tokenizer_open(&tokenizer, folder, &err));
    return tokenizer;
}

/* Numbers of a line with blanks between; how many. */
static inline uint32_t parse_ids(int32_t *ids, uint32_t room, const char *line)
{
    uint32_t count = 0;

    for (char *end; *line != '\0' && *line != '\n'; line = end) {
        assert_true(count < room);
        ids[count++] = (int32_t)strtol(line, &end, 10);
        assert_true(end > line);
        while (*end == ' ')
            end++;
    }
    return count;
}

static inline void assert_ids(const char *prompt, const int32_t *ids, uint32_t count,
                              const int32_t *expected, uint32_t expected_count)
{
    if (count != expected_count)
        fail_msg("'%.80s': %u ids, expected %u", prompt, count, expected_count);
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] != expected[i])
            fail_msg("'%.80s': id %u is %d, expected %d", prompt, i, ids[i], expected[i]);
}

/* `expected`: "49406 320 49407".  Where it goes on after an end token, which is written out in the
 * prompt then, we stop: nothing behind it is ever looked at. */
static inline void check_clip(const struct clip_tokenizer *tokenizer, const char *prompt,
                              const char *expected)
{
    int32_t    ids[CLIP_LENGTH], numbers[CLIP_LENGTH];
    uint32_t   count = 0, wanted = parse_ids(numbers, CLIP_LENGTH, expected);
    struct err err = {0};

    assert_true(clip_tokenizer_max(tokenizer) <= CLIP_LENGTH);
    ASSERT_OK(clip_tokenizer_encode(tokenizer, prompt, ids, &count, &err));
    for (uint32_t i = 1; i < wanted; i++)
        if (numbers[i] == numbers[wanted - 1]) wanted = i + 1;
    assert_ids(prompt, ids, count, numbers, wanted);
    for (uint32_t i = 0; i < count; i++)
        assert_in_range(ids[i], 0, clip_tokenizer_id_limit(tokenizer) - 1);
}

/* `expected` is what a long enough row holds before the padding; shorter rows keep its start and
 * its end token. */
static inline void check_t5(const struct t5_tokenizer *tokenizer, const char *prompt,
                            const char *expected)
{
    static const uint32_t lengths[] = {T5_LENGTH, 256, 9, 2, 1};
    int32_t               ids[T5_LENGTH + 1], numbers[T5_LENGTH];
    uint32_t              used = 0, wanted = parse_ids(numbers, T5_LENGTH, expected);
    struct err            err = {0};

    for (size_t i = 0; i < ARRAY_COUNT(lengths); i++) {
        uint32_t length = lengths[i], kept = wanted < length ? wanted : length;
        memset(ids, 0x55, sizeof ids);
        ASSERT_OK(t5_tokenizer_encode(tokenizer, prompt, length, ids, &used, &err));
        assert_ids(prompt, ids, used - 1, numbers, kept - 1);
        assert_int_equal(ids[used - 1], numbers[wanted - 1]);
        for (uint32_t k = used; k < length; k++)
            assert_int_equal(ids[k], 0);
        assert_int_equal(ids[length], 0x55555555);
        for (uint32_t k = 0; k < length; k++)
            assert_in_range(ids[k], 0, t5_tokenizer_id_limit(tokenizer) - 1);
    }
}

typedef void check_line(const void *tokenizer, const char *prompt, const char *expected);

static inline void clip_line(const void *tokenizer, const char *prompt, const char *expected)
{
    check_clip(tokenizer, prompt, expected);
}

static inline void t5_line(const void *tokenizer, const char *prompt, const char *expected)
{
    check_t5(tokenizer, prompt, expected);
}

/* *cut_out: lines that are as long as a row can be. */
static inline void check_lines(uint32_t *cut_out, const char *name, uint32_t longest,
                               const void *tokenizer, check_line *check)
{
    char    path[1024], *line = NULL;
    size_t  room = 0, count = 0;
    int32_t ids[T5_LENGTH];
    json_t *prompts = json_load_file(MURAL_TEST_DATA "/golden/tokens/prompts.json", 0, NULL);
    FILE   *file;

    (void)snprintf(path, sizeof path, "%s/golden/tokens/%s", MURAL_TEST_DATA, name);
    file = fopen(path, "r");
    if (file == NULL || prompts == NULL) fail_msg("cannot read %s and the prompts", path);
    *cut_out = 0;
    for (; getline(&line, &room, file) > 0; count++) {
        const char *prompt = json_string_value(json_array_get(prompts, count));
        assert_non_null(prompt);
        *cut_out += parse_ids(ids, T5_LENGTH, line) == longest;
        check(tokenizer, prompt, line);
    }
    assert_int_equal(count, json_array_size(prompts));
    assert_true(count >= 497);
    free(line);
    (void)fclose(file);
    json_decref(prompts);
}

static inline void refused_clip(const char *words)
{
    struct clip_tokenizer *tokenizer = NULL;
    struct err             err = {0};

    ASSERT_REFUSED(ERR_FORMAT, words, clip_tokenizer_open(&tokenizer, folder, &err));
    assert_null(tokenizer);
    assert_memory_equal(err.text, "CLIP tokenizer: ", 16);
}

static inline void refused_t5(const char *words)
{
    struct t5_tokenizer *tokenizer = NULL;
    struct err           err = {0};

    ASSERT_REFUSED(ERR_FORMAT, words, t5_tokenizer_open(&tokenizer, folder, &err));
    assert_null(tokenizer);
    assert_memory_equal(err.text, "T5 tokenizer: ", 14);
}

#define FOLDER_TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)

#endif
