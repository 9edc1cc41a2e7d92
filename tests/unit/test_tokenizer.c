/*
 * test_tokenizer.c - both tokenizers against stored ids of the reference, and against every kind of
 * damage that a folder can have.
 */
#include "../test.h"

#include "../fuzz/tiny_tokens.h"
#include "engine/engine_int.h"
#include "engine/tokenizer_int.h"

#include <time.h>

#include <zstd.h>

enum { T5_LENGTH = 512, CLIP_LENGTH = 77, CLIP_END = 49407 };

/* ------------------------------------------------------------------------------------ folders */

/* What is written is at most this long, so paths of files fit too. */
static char folder[512];

static void write_bytes(const char *name, const void *bytes, size_t count)
{
    char  path[1024];
    FILE *file;

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, count, file) != count || fclose(file) != 0)
        fail_msg("cannot write %s", path);
}

static void write_text(const char *name, const char *text)
{
    write_bytes(name, text, strlen(text));
}

static void remove_file(const char *name)
{
    char path[1024];

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    (void)unlink(path);
}

/* Every test starts with an empty folder. */
static int folder_setup(void **state)
{
    (void)state;
    scratch_make(folder, sizeof folder);
    return 0;
}

static int folder_teardown(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

/* The stored file `from`, unpacked into the folder. */
static void unpack(const char *from, const char *name)
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

static struct clip_tokenizer *clip_open(void)
{
    struct clip_tokenizer *tokenizer = NULL;
    struct err             err = {0};

    ASSERT_OK(clip_tokenizer_open(&tokenizer, folder, &err));
    return tokenizer;
}

static struct t5_tokenizer *t5_open(void)
{
    struct t5_tokenizer *tokenizer = NULL;
    struct err           err = {0};

    ASSERT_OK(t5_tokenizer_open(&tokenizer, folder, &err));
    return tokenizer;
}

/* ---------------------------------------------------------------------------------- checking */

/* Numbers of a line with blanks between; how many. */
static uint32_t parse_ids(int32_t *ids, uint32_t room, const char *line)
{
    uint32_t count = 0;

    for (char *end; *line != '\0' && *line != '\n'; line = end) {
        assert_true(count < room);
        ids[count++] = (int32_t)strtol(line, &end, 10);
        assert_true(end > line);
        while (*end == ' ') end++;
    }
    return count;
}

static void assert_ids(const char *prompt, const int32_t *ids, uint32_t count,
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
static void check_clip(const struct clip_tokenizer *tokenizer, const char *prompt,
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
static void check_t5(const struct t5_tokenizer *tokenizer, const char *prompt, const char *expected)
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
        for (uint32_t k = used; k < length; k++) assert_int_equal(ids[k], 0);
        assert_int_equal(ids[length], 0x55555555);
        for (uint32_t k = 0; k < length; k++)
            assert_in_range(ids[k], 0, t5_tokenizer_id_limit(tokenizer) - 1);
    }
}

/* -------------------------------------------------------------------------------- golden ids */

typedef void check_line(const void *tokenizer, const char *prompt, const char *expected);

static void clip_line(const void *tokenizer, const char *prompt, const char *expected)
{
    check_clip(tokenizer, prompt, expected);
}

static void t5_line(const void *tokenizer, const char *prompt, const char *expected)
{
    check_t5(tokenizer, prompt, expected);
}

/* *cut_out: lines that are as long as a row can be. */
static void check_lines(uint32_t *cut_out, const char *name, uint32_t longest,
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

static void clip_gives_the_references_ids(void **state)
{
    struct clip_tokenizer *tokenizer;
    uint32_t               cut = 0;

    (void)state;
    unpack("clip/merges.txt", "merges.txt");
    unpack("clip/tokenizer_config.json", "tokenizer_config.json");
    tokenizer = clip_open();
    assert_int_equal(clip_tokenizer_max(tokenizer), CLIP_LENGTH);
    assert_int_equal(clip_tokenizer_id_limit(tokenizer), CLIP_END + 1);
    check_lines(&cut, "clip_ids.txt", CLIP_LENGTH, tokenizer, clip_line);
    assert_true(cut >= 10);
    clip_tokenizer_close(tokenizer);
}

static void t5_gives_the_references_ids_from_tokenizer_json(void **state)
{
    struct t5_tokenizer *tokenizer;
    uint32_t             cut = 0;

    (void)state;
    unpack("t5/tokenizer.json", "tokenizer.json");
    unpack("t5/tokenizer_config.json", "tokenizer_config.json");
    tokenizer = t5_open();
    assert_int_equal(t5_tokenizer_max(tokenizer), T5_LENGTH);
    assert_int_equal(t5_tokenizer_id_limit(tokenizer), 32100);
    check_lines(&cut, "t5_ids.txt", T5_LENGTH, tokenizer, t5_line);
    assert_true(cut >= 1);
    t5_tokenizer_close(tokenizer);
}

/* With and without the settings beside it. */
static void t5_gives_the_references_ids_from_spiece_model(void **state)
{
    (void)state;
    unpack("t5/spiece.model", "spiece.model");
    for (uint32_t pass = 0; pass < 2; pass++) {
        struct t5_tokenizer *tokenizer = t5_open();
        uint32_t             cut = 0;
        assert_int_equal(t5_tokenizer_max(tokenizer), T5_LENGTH);
        assert_int_equal(t5_tokenizer_id_limit(tokenizer), 32100);
        check_lines(&cut, "t5_ids.txt", T5_LENGTH, tokenizer, t5_line);
        assert_true(cut >= 1);
        t5_tokenizer_close(tokenizer);
        unpack("t5/tokenizer_config.json", "tokenizer_config.json");
    }
}

static const struct {
    const char *prompt, *clip, *t5; /* NULL: not stated */
} published[] = {
    {"", "49406 49407", "1"},
    {"a photo of a cat", "49406 320 1125 539 320 2368 49407", "3 9 1202 13 3 9 1712 1"},
    {"A cat holding a sign that says hello world",
     "49406 320 2368 5050 320 2292 682 1563 3306 1002 49407",
     "71 1712 3609 3 9 1320 24 845 21820 296 1"},
    {"A photo of a forest with mist, 8k!!!  it's 1999",
     "49406 320 1125 539 320 4167 593 11946 267 279 330 995 585 568 272 280 280 280 49407",
     "71 1202 13 3 9 5827 28 1817 17 6 505 157 3158 34 31 7 5247 1"},
    {"Caf\xC3\xA9 \xEF\xAC\x81ne \xE2\x84\xA2 na\xC3\xAFve \xE2\x80\x94 \xE2\x80\x9Cquotes"
     "\xE2\x80\x9D \xC2\xBD",
     "49406 15304 171 105 223 1422 11675 1097 35689 563 2005 728 506 5808 728 507 33613 49407",
     "18131 1399 3 2305 3 29 9 2 162 3 318 105 8270 15 7 153 209 2 357 1"},
    {"\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E \xF0\x9F\x90\xB1",
     "49406 39121 44353 34002 508 22979 49407", "3 2 3 2 1"},
    {" leading", "49406 3833 49407", "1374 1"},
    {"astronaut riding a horse on mars, ultra-detailed",
     "49406 18376 6765 320 4558 525 7496 267 8118 268 12609 49407",
     "30059 7494 3 9 4952 30 8113 6 6173 18 221 17 10990 1"},
    {"translate English to German: The house is wonderful.", NULL,
     "13959 1566 12 2968 10 37 629 19 1627 5 1"},
    {"The  house\tis\nwonderful ", NULL, "37 629 19 1627 1"},
};

static void ids_that_others_published_are_the_same(void **state)
{
    struct clip_tokenizer *clip;
    struct t5_tokenizer   *t5;

    (void)state;
    unpack("clip/merges.txt", "merges.txt");
    clip = clip_open();
    remove_file("merges.txt");
    unpack("t5/tokenizer.json", "tokenizer.json");
    t5 = t5_open();
    for (size_t i = 0; i < ARRAY_COUNT(published); i++) {
        if (published[i].clip != NULL) check_clip(clip, published[i].prompt, published[i].clip);
        check_t5(t5, published[i].prompt, published[i].t5);
    }
    clip_tokenizer_close(clip);
    t5_tokenizer_close(t5);
}

/* 100 kB of every kind that could be slow: one long word, long runs of marks, literals, spaces. */
static void long_prompts_are_quick(void **state)
{
    static const char *const units[] = {"a photo of cats, ", "a", "</s>", " ", "<", "\xCC\x81",
                                        "\xE6\x97\xA5", "<|endoftext|", "\xE2\x96\x81", "8",
                                        "\xF0\x9F\x91\xA9\xE2\x80\x8D", "<extra_id_1"};
    enum { BYTES = 100000 };
    static char            prompt[BYTES + 1];
    struct clip_tokenizer *clip;
    struct t5_tokenizer   *t5;
    int32_t                ids[T5_LENGTH];
    uint32_t               count = 0;
    struct err             err = {0};

    (void)state;
    unpack("clip/merges.txt", "merges.txt");
    clip = clip_open();
    unpack("t5/tokenizer.json", "tokenizer.json");
    t5 = t5_open();
    for (size_t i = 0; i < ARRAY_COUNT(units); i++) {
        size_t  bytes = strlen(units[i]), at = 0;
        clock_t start = clock(); /* of this process: others may keep the machine busy */
        double  seconds;
        for (; at + bytes <= BYTES; at += bytes) memcpy(prompt + at, units[i], bytes);
        prompt[at] = '\0';
        ASSERT_OK(clip_tokenizer_encode(clip, prompt, ids, &count, &err));
        ASSERT_OK(t5_tokenizer_encode(t5, prompt, T5_LENGTH, ids, &count, &err));
        seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (seconds > 1.0) fail_msg("'%s' over and over takes %.1f s", units[i], seconds);
    }
    clip_tokenizer_close(clip);
    t5_tokenizer_close(t5);
}

/* ------------------------------------------------------------------------- small vocabularies */

static void clip_numbers_its_own_symbols(void **state)
{
    struct clip_tokenizer *tokenizer;

    (void)state;
    write_text("merges.txt", tiny_merges);
    tokenizer = clip_open();
    assert_int_equal(clip_tokenizer_max(tokenizer), CLIP_LENGTH);
    assert_int_equal(clip_tokenizer_id_limit(tokenizer), 517);
    check_clip(tokenizer, "", "515 516");
    check_clip(tokenizer, " \t\n\xC2\xA0\xE3\x80\x80 ", "515 516");
    check_clip(tokenizer, "a", "515 320 516");
    check_clip(tokenizer, "abc ABC ab", "515 513 513 64 321 516");
    check_clip(tokenizer, "abcd", "515 512 66 323 516");       /* the first rule goes first */
    check_clip(tokenizer, "ab\xC3\x89", "515 512 127 358 516"); /* lower case: C3 A9 */
    check_clip(tokenizer, "a<|endoftext|>b", "515 320 516");
    check_clip(tokenizer, "a<|startoftext|>b", "515 320 515 321 516");
    clip_tokenizer_close(tokenizer);
}

static void clip_rank_decides_which_merge_goes_first(void **state)
{
    struct clip_tokenizer *tokenizer;

    (void)state;
    write_text("merges.txt", "#version: 0.2\r\nb c\r\na b\r\n");
    tokenizer = clip_open();
    check_clip(tokenizer, "abcd", "514 64 512 323 515");
    clip_tokenizer_close(tokenizer);
    write_text("merges.txt", "a b\nb c"); /* neither a version nor a last line end is needed */
    tokenizer = clip_open();
    check_clip(tokenizer, "abcd", "514 512 66 323 515");
    check_clip(tokenizer, "ababab", "514 512 512 64 321 515");
    clip_tokenizer_close(tokenizer);
}

static void clip_takes_ids_from_vocab_json(void **state)
{
    struct clip_tokenizer *tokenizer;

    (void)state;
    write_text("merges.txt", "a b</w>\n");
    write_text("vocab.json", tiny_vocab);
    write_text("tokenizer_config.json", "{\"model_max_length\": 4}");
    tokenizer = clip_open();
    assert_int_equal(clip_tokenizer_max(tokenizer), 4);
    assert_int_equal(clip_tokenizer_id_limit(tokenizer), 7);
    check_clip(tokenizer, "ab", "5 4 6");
    check_clip(tokenizer, "aab ab ab ab", "5 0 4 6"); /* two fit between start and end */
    check_clip(tokenizer, "ab x ab", "5 4 6");        /* what is unknown is an end */
    clip_tokenizer_close(tokenizer);
    write_text("tokenizer_config.json", "{\"model_max_length\": 2}");
    tokenizer = clip_open();
    check_clip(tokenizer, "ab", "5 6");
    clip_tokenizer_close(tokenizer);
}

static const char clip_json_format[] =
    "{\"added_tokens\":%s,\"pre_tokenizer\":{\"pretokenizers\":[{\"pattern\":{\"Regex\":\"%s\"}}]},"
    "\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":%s,\"merges\":%s}}";
static const char clip_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d|[\\\\p{L}]+|[\\\\p{N}]|[^\\\\s\\\\p{L}\\\\p{N}]+";

static void write_clip_json(const char *added, const char *pattern, const char *vocab,
                            const char *merges)
{
    char text[8192];

    (void)snprintf(text, sizeof text, clip_json_format, added, pattern, vocab, merges);
    write_text("tokenizer.json", text);
}

static void clip_reads_tokenizer_json(void **state)
{
    static const char *const merges[] = {"[\"a b</w>\"]", "[[\"a\",\"b</w>\"]]"};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(merges); i++) {
        struct clip_tokenizer *tokenizer;
        write_clip_json("[{\"id\":9,\"content\":\"b\",\"normalized\":true}]", clip_pattern,
                        tiny_vocab, merges[i]);
        tokenizer = clip_open();
        assert_int_equal(clip_tokenizer_id_limit(tokenizer), 10);
        check_clip(tokenizer, "aaBa", "5 0 2 9 2 6");
        clip_tokenizer_close(tokenizer);
    }
}

static void check_tiny_t5(void)
{
    struct t5_tokenizer *tokenizer = t5_open();

    check_t5(tokenizer, "", "1");
    check_t5(tokenizer, "  \t\xE2\x80\x83 ", "1");
    check_t5(tokenizer, "ab", "7 1");
    check_t5(tokenizer, "  ab   a ", "7 3 4 1");
    check_t5(tokenizer, "ZAb\t\xC3\xA9", "7 3 6 1");
    check_t5(tokenizer, "e\xCC\x81", "3 6 2 1"); /* a cluster of two characters is not in the map */
    check_t5(tokenizer, "a\xE6\x97\xA5\xE6\x9C\xAC" "b", "3 4 2 5 1"); /* unknown ones become one */
    check_t5(tokenizer, "xy", "3 10 1");  /* an unknown x and a good y cost more */
    check_t5(tokenizer, "cd", "3 11 1"); /* of equal scores, the earlier start wins */
    check_t5(tokenizer, "ab</s>ba<pad>b", "7 1 8 0 5 1");
    t5_tokenizer_close(tokenizer);
}

static void t5_files_of_both_kinds_agree(void **state)
{
    struct t5_tokenizer *tokenizer;
    struct tiny          json = {{0}, 0}, spiece = {{0}, 0};

    (void)state;
    tiny_spiece(&spiece);
    write_bytes("spiece.model", spiece.bytes, spiece.count);
    check_tiny_t5();
    tokenizer = t5_open();
    check_t5(tokenizer, "<extra_id_0>a<extra_id_99>", "113 4 14 1");
    t5_tokenizer_close(tokenizer);
    write_text("tokenizer_config.json", "{\"extra_ids\": 0, \"model_max_length\": 128}");
    tokenizer = t5_open();
    assert_int_equal(t5_tokenizer_max(tokenizer), 128);
    assert_int_equal(t5_tokenizer_id_limit(tokenizer), TINY_PIECES);
    t5_tokenizer_close(tokenizer);
    tiny_tokenizer_json(&json, NULL, NULL); /* goes before spiece.model */
    write_bytes("tokenizer.json", json.bytes, json.count);
    check_tiny_t5();
    tokenizer = t5_open();
    check_t5(tokenizer, "ab<n>ba", "7 14 8 1");
    t5_tokenizer_close(tokenizer);
}

/* `pre_tokenizer` is a JSON value. */
static void write_marking_t5(const char *pre_tokenizer, const char *added)
{
    struct tiny json = {{0}, 0};

    tiny_tokenizer_json(&json, NULL, added);
    json.count--; /* the last brace */
    tiny_text(&json, ",\"pre_tokenizer\":");
    tiny_text(&json, pre_tokenizer);
    tiny_text(&json, "}");
    write_bytes("tokenizer.json", json.bytes, json.count);
}

#define METASPACE "{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\""
static const char t5_literals[] =
    "[{\"id\":0,\"content\":\"<pad>\"},{\"id\":1,\"content\":\"</s>\"}]";

/* The words after a literal, and white space that the charsmap keeps, tell the kinds apart. */
static void t5_marks_words_as_the_folder_says(void **state)
{
    static const struct {
        const char *pre_tokenizer, *after_literal, *line_separator;
    } cases[] = {
        {METASPACE ",\"prepend_scheme\":\"first\",\"add_prefix_space\":true,\"split\":true}",
         "7 1 8 1", "3 4 2 8 1"},
        {METASPACE ",\"prepend_scheme\":\"always\"}", "7 1 3 8 1", "3 4 2 8 1"},
        {METASPACE "}", "7 1 3 8 1", "3 4 2 8 1"},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"WhitespaceSplit\"}," METASPACE
         ",\"prepend_scheme\":\"always\"}]}",
         "7 1 3 8 1", "3 4 3 8 1"},
    };
    struct t5_tokenizer *tokenizer;
    struct tiny          spiece = {{0}, 0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_marking_t5(cases[i].pre_tokenizer, t5_literals);
        tokenizer = t5_open();
        check_t5(tokenizer, "ab</s>ba", cases[i].after_literal);
        check_t5(tokenizer, "ab</s> ba", "7 1 3 8 1");
        check_t5(tokenizer, "a\xE2\x80\xA8" "ba", cases[i].line_separator);
        check_t5(tokenizer, " \xE2\x80\xA8 ", "1");
        t5_tokenizer_close(tokenizer);
    }
    remove_file("tokenizer.json");
    tiny_spiece(&spiece);
    write_bytes("spiece.model", spiece.bytes, spiece.count);
    write_text("tokenizer_config.json", "{\"legacy\": true}");
    tokenizer = t5_open();
    check_t5(tokenizer, "ab</s>ba", "7 1 3 8 1");
    t5_tokenizer_close(tokenizer);
}

static void t5_without_a_charsmap_takes_text_as_it_is(void **state)
{
    static const char *const normalizers[] = {
        "null", "{\"type\":\"Sequence\",\"normalizers\":[]}", "{\"type\":\"Strip\"}",
        "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"\"}"};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(normalizers); i++) {
        struct tiny          json = {{0}, 0};
        struct t5_tokenizer *tokenizer;
        tiny_tokenizer_json(&json, normalizers[i], "[]");
        write_bytes("tokenizer.json", json.bytes, json.count);
        tokenizer = t5_open();
        check_t5(tokenizer, "", "1");
        check_t5(tokenizer, "   ", "1");
        check_t5(tokenizer, "ab  a ", "7 3 4 1");
        check_t5(tokenizer, "Ab", "3 2 5 1");
        t5_tokenizer_close(tokenizer);
    }
}

/* ------------------------------------------------------------------------------------ refusals */

static void prompts_that_are_not_utf8_are_refused(void **state)
{
    static const struct {
        const char *prompt, *words;
    } cases[] = {{"\x80", "byte 0 is 0x80"},           {"caf\xE9", "byte 3 is 0xE9"},
                 {"ab \xC0\xAF", "byte 3 is 0xC0"},    {"a\xED\xA0\x80", "byte 1 is 0xED"},
                 {"\xE6\x97\xA5\xFF", "byte 3 is 0xFF"}, {"a\xF4\x90\x80\x80", "byte 1 is 0xF4"}};
    static char            long_prompt[TOKEN_PROMPT_BYTES + 2];
    struct clip_tokenizer *clip;
    struct t5_tokenizer   *t5;
    struct tiny            json = {{0}, 0};
    int32_t                ids[CLIP_LENGTH];
    uint32_t               count = 0;
    struct err             err = {0};

    (void)state;
    write_text("merges.txt", tiny_merges);
    clip = clip_open();
    tiny_tokenizer_json(&json, NULL, NULL);
    write_bytes("tokenizer.json", json.bytes, json.count);
    t5 = t5_open();
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        ASSERT_REFUSED(ERR_USAGE, cases[i].words,
                       clip_tokenizer_encode(clip, cases[i].prompt, ids, &count, &err));
        ASSERT_REFUSED(ERR_USAGE, cases[i].words,
                       t5_tokenizer_encode(t5, cases[i].prompt, CLIP_LENGTH, ids, NULL, &err));
    }
    memset(long_prompt, 'a', TOKEN_PROMPT_BYTES + 1);
    ASSERT_REFUSED(ERR_USAGE, "262145 bytes",
                   clip_tokenizer_encode(clip, long_prompt, ids, &count, &err));
    ASSERT_REFUSED(ERR_USAGE, "262145 bytes",
                   t5_tokenizer_encode(t5, long_prompt, 8, ids, NULL, &err));
    long_prompt[TOKEN_PROMPT_BYTES] = '\0';
    ASSERT_OK(clip_tokenizer_encode(clip, long_prompt, ids, &count, &err));
    ASSERT_OK(t5_tokenizer_encode(t5, long_prompt, 8, ids, NULL, &err));
    clip_tokenizer_close(clip);
    t5_tokenizer_close(t5);
}

static void refused_clip(const char *words)
{
    struct clip_tokenizer *tokenizer = NULL;
    struct err             err = {0};

    ASSERT_REFUSED(ERR_FORMAT, words, clip_tokenizer_open(&tokenizer, folder, &err));
    assert_null(tokenizer);
    assert_memory_equal(err.text, "CLIP tokenizer: ", 16);
}

static void refused_t5(const char *words)
{
    struct t5_tokenizer *tokenizer = NULL;
    struct err           err = {0};

    ASSERT_REFUSED(ERR_FORMAT, words, t5_tokenizer_open(&tokenizer, folder, &err));
    assert_null(tokenizer);
    assert_memory_equal(err.text, "T5 tokenizer: ", 14);
}

static void empty_folders_are_refused(void **state)
{
    struct clip_tokenizer *clip = NULL;
    struct t5_tokenizer   *t5 = NULL;
    static char            long_name[TOKEN_PATH_BYTES + 1];
    struct err             err = {0};

    (void)state;
    memset(long_name, 'a', TOKEN_PATH_BYTES);
    ASSERT_REFUSED(ERR_IO, "merges.txt", clip_tokenizer_open(&clip, folder, &err));
    ASSERT_REFUSED(ERR_IO, "neither tokenizer.json nor spiece.model",
                   t5_tokenizer_open(&t5, folder, &err));
    ASSERT_REFUSED(ERR_USAGE, "is longer than", clip_tokenizer_open(&clip, long_name, &err));
    ASSERT_REFUSED(ERR_USAGE, "is longer than", t5_tokenizer_open(&t5, long_name, &err));
}

static void damaged_merges_are_refused(void **state)
{
    static const struct {
        const char *merges, *words;
    } cases[] = {{"a\n", "merge 1 is not two symbols"},
                 {"a b\nb  c\n", "merge 2 is not two symbols"},
                 {"a b c\n", "not two symbols"},
                 {" b\n", "not two symbols"},
                 {"\n", "not two symbols"},
                 {"a b\na zz\n", "right symbol of merge 2 is not in the vocabulary"},
                 {"zz b\n", "left symbol of merge 1 is not in the vocabulary"},
                 {"a b\na b\n", "merge 2 makes a symbol that exists"},
                 {"a b\nb c\nab c\na bc\n", "merge 4 makes a symbol that exists"},
                 {"a b\n\xFF b\n", "not text in UTF-8 at byte 4"}};
    char symbol[1100];

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_text("merges.txt", cases[i].merges);
        refused_clip(cases[i].words);
    }
    write_bytes("merges.txt", "a b\0\n", 5);
    refused_clip("not text in UTF-8 at byte 3");
    memset(symbol, 'a', sizeof symbol);
    memcpy(symbol + 1090, " b\n", 4);
    write_text("merges.txt", symbol);
    refused_clip("more than 512 bytes");
    write_text("vocab.json", tiny_vocab);
    write_text("merges.txt", "a b</w>\na b</w>\n");
    refused_clip("merge 2 repeats merge 1");
    write_text("merges.txt", "a a\n");
    refused_clip("the product of merge 1 is not in the vocabulary");
}

static void damaged_vocabularies_are_refused(void **state)
{
    static const struct {
        const char *vocab, *words;
    } cases[] = {{"", "not valid JSON"},
                 {"[]", "must be an object"},
                 {"{\"a\":-1}", "symbol 1 has no id"},
                 {"{\"a\":4194304}", "symbol 1 has no id"},
                 {"{\"a\":1e3}", "symbol 1 has no id"},
                 {"{\"a\":99999999999999999999}", "not valid JSON"},
                 {"{\"a\":\"1\"}", "symbol 1 has no id"},
                 {"{\"a\":0,\"a\":1}", "not valid JSON"},
                 {"{\"a\":0,\"b</w>\":1}", "product of merge 1"},
                 {"{\"a\":0,\"b</w>\":1,\"ab</w>\":2}", "no bos_token"},
                 {"{\"a\":0,\"b</w>\":1,\"ab</w>\":2,\"<|startoftext|>\":3}", "no eos_token"}};

    (void)state;
    write_text("merges.txt", "a b</w>\n");
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_text("vocab.json", cases[i].vocab);
        refused_clip(cases[i].words);
    }
    /* the same id twice is strange but harmless */
    write_text("vocab.json", "{\"a\":0,\"b</w>\":0,\"ab</w>\":2,\"<|startoftext|>\":0,"
                             "\"<|endoftext|>\":3}");
    clip_tokenizer_close(clip_open());
}

static void damaged_clip_tokenizer_json_is_refused(void **state)
{
    static const struct {
        const char *added, *pattern, *vocab, *merges, *words;
    } cases[] = {{"{}", clip_pattern, tiny_vocab, "[]", "added_tokens must be a list"},
                 {"[5]", clip_pattern, tiny_vocab, "[]", "no text under 'content'"},
                 {"[]", "\\\\w+", tiny_vocab, "[]", "pattern of pre_tokenizer"},
                 {"[]", clip_pattern, "[]", "[]", "must be an object"},
                 {"[]", clip_pattern, tiny_vocab, "{}", "merges must be a list"},
                 {"[]", clip_pattern, tiny_vocab, "[7]", "not a pair of symbols"},
                 {"[]", clip_pattern, tiny_vocab, "[\"ab\"]", "not a pair of symbols"},
                 {"[]", clip_pattern, tiny_vocab, "[\"a b\\nc\"]", "not a pair of symbols"},
                 {"[]", clip_pattern, tiny_vocab, "[[\"a\",1]]", "not a pair of symbols"},
                 {"[]", clip_pattern, tiny_vocab, "[[\"a\",\"q\"]]", "right symbol of merge 1"},
                 {"[{\"id\":1,\"content\":\"B\",\"normalized\":true}]", clip_pattern, tiny_vocab,
                  "[]", "no text can match it"}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_clip_json(cases[i].added, cases[i].pattern, cases[i].vocab, cases[i].merges);
        refused_clip(cases[i].words);
    }
    write_text("tokenizer.json", "{\"model\":{\"type\":\"WordPiece\"}}");
    refused_clip("type BPE");
}

static void damaged_settings_are_refused(void **state)
{
    static const struct {
        const char *settings, *words;
    } cases[] = {
        {"[]", "one JSON object"},
        {"{\"model_max_length\":1}", "model_max_length"},
        {"{\"model_max_length\":1e30}", "model_max_length"},
        {"{\"model_max_length\":65537}", "model_max_length"},
        {"{\"added_tokens_decoder\":[]}", "must be an object"},
        {"{\"added_tokens_decoder\":{\"x\":{\"content\":\"a\"}}}", "must be an id"},
        {"{\"added_tokens_decoder\":{\"\":{\"content\":\"a\"}}}", "must be an id"},
        {"{\"added_tokens_decoder\":{\"-1\":{\"content\":\"a\"}}}", "must be an id"},
        {"{\"added_tokens_decoder\":{\"4194304\":{\"content\":\"a\"}}}", "must be an id"},
        {"{\"added_tokens_decoder\":{\"9999999999999999999999\":{}}}", "must be an id"},
        {"{\"added_tokens_decoder\":{\"1\":{\"content\":\"\"}}}", "no text"},
        {"{\"added_tokens_decoder\":{\"1\":{\"content\":7}}}", "no text"},
        {"{\"added_tokens_decoder\":{\"1\":{\"content\":\"a\",\"lstrip\":true}}}", "'lstrip' set"},
        {"{\"added_tokens_decoder\":{\"1\":{\"content\":\"a\",\"rstrip\":3}}}", "rstrip"},
    };
    struct tiny spiece = {{0}, 0};

    (void)state;
    tiny_spiece(&spiece);
    write_text("merges.txt", tiny_merges);
    write_bytes("spiece.model", spiece.bytes, spiece.count);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_text("tokenizer_config.json", cases[i].settings);
        refused_clip(cases[i].words);
        refused_t5(cases[i].words);
    }
    write_text("tokenizer_config.json", "{\"extra_ids\":1001}");
    refused_t5("extra_ids");
    write_text("tokenizer_config.json", "{}");
    write_text("special_tokens_map.json", "[]");
    refused_t5("one JSON object");
    write_text("special_tokens_map.json", "{\"eos_token\":\"\"}");
    refused_clip("no eos_token");
}

static void damaged_t5_tokenizer_json_is_refused(void **state)
{
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"[]", "type Unigram"},
        {"{\"model\":{\"type\":\"BPE\"}}", "type Unigram"},
        {"{\"model\":{\"type\":7}}", "type Unigram"},
        {"{\"model\":{\"type\":\"Unigram\",\"byte_fallback\":true}}", "byte_fallback"},
        {"{\"model\":{\"type\":\"Unigram\",\"byte_fallback\":\"no\"}}", "byte_fallback"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":-1}}", "unk_id"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":99999999}}", "unk_id"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":3,\"vocab\":[[\"a\",0],[\"b\",0]]}}",
         "unk_token has id 3 but there are only 2 pieces"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",0]]}}",
         "eos_token has id 1"},
        {"{\"model\":{\"type\":\"Unigram\"}}", "has 0 pieces"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":{\"a\":1}}}", "has 0 pieces"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",0],7]}}", "piece 1 is not a pair"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\"]]}}", "piece 0 is not a pair"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[0,\"a\"]]}}", "piece 0 is not a pair"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"\",0]]}}", "piece 0 is not 1..512"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",1e999]]}}", "not valid JSON"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_text("tokenizer.json", cases[i].text);
        refused_t5(cases[i].words);
    }
}

static void damaged_normalizers_and_tokens_are_refused(void **state)
{
    static const struct {
        const char *normalizer, *added, *words;
    } cases[] = {
        {"{\"type\":\"NFKC\"}", NULL, "step 0 of the normalizer"},
        {"7", NULL, "step 0 of the normalizer"},
        {"{\"type\":\"Precompiled\"}", NULL, "step 0 of the normalizer"},
        {"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AA!A\"}", NULL,
         "not base64 at byte 2"},
        {"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAA\"}", NULL, "not base64"},
        {"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"A===\"}", NULL, "not base64"},
        {"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AA==\"}", NULL, "charsmap of 1 b"},
        {"{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////w==\"}", NULL, "charsmap of 4"},
        {"{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Precompiled\","
         "\"precompiled_charsmap\":\"\"},{\"type\":\"Precompiled\","
         "\"precompiled_charsmap\":\"\"}]}",
         NULL, "step 1 of the normalizer"},
        {"null", "{}", "added_tokens must be a list"},
        {"null", "[{\"id\":0}]", "no text under 'content'"},
        {"null", "[{\"content\":\"a\"}]", "id"},
        {"null", "[{\"content\":\"a\",\"id\":-1}]", "id"},
        {"null", "[{\"content\":\"a\",\"id\":4194304}]", "id"},
        {"null", "[{\"content\":\"a\",\"id\":0.5}]", "id"},
        {"null", "[{\"content\":\"a b\",\"id\":1,\"normalized\":true}]", "has a space"},
        {"null", "[{\"content\":\"a\",\"id\":1,\"single_word\":true}]", "'single_word' set"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct tiny json = {{0}, 0};
        tiny_tokenizer_json(&json, cases[i].normalizer, cases[i].added);
        write_bytes("tokenizer.json", json.bytes, json.count);
        refused_t5(cases[i].words);
    }
}

static void foreign_pre_tokenizers_are_refused(void **state)
{
    static const char *const cases[] = {
        "null",
        "7",
        "{\"type\":\"Whitespace\"}",
        "{\"type\":\"Metaspace\",\"replacement\":\"_\"}",
        "{\"type\":\"Metaspace\"}",
        METASPACE ",\"prepend_scheme\":\"never\"}",
        METASPACE ",\"add_prefix_space\":false}",
        METASPACE ",\"split\":false}",
        "{\"type\":\"Sequence\",\"pretokenizers\":[]}",
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"WhitespaceSplit\"}," METASPACE
        ",\"prepend_scheme\":\"first\"}]}"};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_marking_t5(cases[i], t5_literals);
        refused_t5("pre_tokenizer is not T5's");
    }
    write_marking_t5(METASPACE ",\"split\":1}", t5_literals);
    refused_t5("split");
    write_marking_t5(METASPACE "}", NULL);
    refused_t5("while every word is marked");
}

static void damaged_spiece_models_are_refused(void **state)
{
    static const struct {
        const char *bytes;
        size_t      count;
        const char *words;
    } cases[] = {
        {"", 0, "has no pieces"},
        {"\x12\x02\x18\x02", 4, "not a Unigram model"},
        {"\x12\x03\x98\x02\x01", 5, "byte_fallback"},
        {"\x0A\x00", 2, "piece 0 is not 1..512 bytes"},
        {"\x0A\x03\x0A\x01\xFF", 5, "piece 0 is not 1..512 bytes of UTF-8"},
        {"\x0A\x08\x0A\x01" "a\x15\x00\x00\x80\x7F", 10, "piece 0 has no finite score"},
        {"\x0A\x03\x0A\x01" "a", 5, "has id"},
        {"\x0A\x03\x0A\x05" "a", 5, "cut or damaged before byte 2"},
        {"\x0B", 1, "cut or damaged"},
        {"\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11, "cut or damaged"},
        {"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", 12, "does not end"},
        {"\x1A\x03\x12\x01\x00", 5, "charsmap of 1 bytes"},
    };

    (void)state;
    write_text("tokenizer_config.json", "{\"extra_ids\":0}");
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_bytes("spiece.model", cases[i].bytes, cases[i].count);
        refused_t5(cases[i].words);
    }
}

static void of_equal_pieces_the_last_counts(void **state)
{
    struct t5_tokenizer *tokenizer;

    (void)state;
    write_text("tokenizer.json",
               "{\"added_tokens\":[{\"id\":1,\"content\":\"</s>\"},{\"id\":1,\"content\":\"<e>\"},"
               "{\"id\":4194303,\"content\":\"<x>\"}],\"model\":{\"type\":\"Unigram\",\"vocab\":"
               "[[\"p\",0],[\"e\",0],[\"u\",0],[\"a\",-1],[\"a\",-1],[\"\xE2\x96\x81\",-1]]}}");
    tokenizer = t5_open();
    check_t5(tokenizer, "a<e>a<x>", "5 4 1 4 4194303 1");
    assert_int_equal(t5_tokenizer_id_limit(tokenizer), 4194304);
    t5_tokenizer_close(tokenizer);
}

/* ---------------------------------------------------------------------------------- every cut */

/* Opens what there is; what is opened must encode. */
static bool try_t5(void)
{
    struct t5_tokenizer *tokenizer = NULL;
    int32_t              ids[16];
    struct err           err = {0};
    int                  rc = t5_tokenizer_open(&tokenizer, folder, &err);

    if (rc != ERR_OK) {
        assert_int_equal(rc, ERR_FORMAT);
        assert_true(err.text[0] != '\0' && tokenizer == NULL);
        return false;
    }
    ASSERT_OK(t5_tokenizer_encode(tokenizer, "Ab xy\xC3\xA9 <n></s> cd", 16, ids, NULL, &err));
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++)
        assert_in_range(ids[i], 0, t5_tokenizer_id_limit(tokenizer) - 1);
    t5_tokenizer_close(tokenizer);
    return true;
}

static bool try_clip(void)
{
    struct clip_tokenizer *tokenizer = NULL;
    int32_t                ids[CLIP_LENGTH];
    uint32_t               count = 0;
    struct err             err = {0};
    int                    rc = clip_tokenizer_open(&tokenizer, folder, &err);

    if (rc != ERR_OK) {
        assert_int_equal(rc, ERR_FORMAT);
        assert_true(err.text[0] != '\0' && tokenizer == NULL);
        return false;
    }
    ASSERT_OK(clip_tokenizer_encode(tokenizer, "abc ABCD \xC3\xA9 ab", ids, &count, &err));
    for (uint32_t i = 0; i < count; i++)
        assert_in_range(ids[i], 0, clip_tokenizer_id_limit(tokenizer) - 1);
    clip_tokenizer_close(tokenizer);
    return true;
}

/* How many of all true prefixes are taken. */
static uint32_t count_taken(const char *name, const void *bytes, size_t count,
                            bool (*attempt)(void))
{
    uint32_t taken = 0;

    for (size_t i = 0; i < count; i++) {
        write_bytes(name, bytes, i);
        taken += attempt();
    }
    write_bytes(name, bytes, count);
    assert_true(attempt());
    remove_file(name);
    return taken;
}

static void files_cut_anywhere_are_harmless(void **state)
{
    struct tiny json = {{0}, 0}, spiece = {{0}, 0};

    (void)state;
    tiny_tokenizer_json(&json, "null", NULL); /* a charsmap only makes it long */
    assert_int_equal(count_taken("tokenizer.json", json.bytes, json.count, try_t5), 0);
    tiny_spiece(&spiece);
    write_text("tokenizer_config.json", "{\"extra_ids\":0}");
    /* between messages nothing shows the cut, once pad, end and unknown are there: behind the third
     * and every later piece, and behind the trainer's settings */
    assert_int_equal(count_taken("spiece.model", spiece.bytes, spiece.count, try_t5),
                     TINY_PIECES - 2 + 1);
    (void)count_taken("merges.txt", tiny_merges, sizeof tiny_merges - 1, try_clip);
    write_text("merges.txt", "a b</w>\n");
    assert_int_equal(count_taken("vocab.json", tiny_vocab, sizeof tiny_vocab - 1, try_clip), 0);
}

/* Every bit of the map, one at a time. */
static void charsmaps_with_flipped_bits_are_harmless(void **state)
{
    static const char text[] = "Az Zb \xC3\xA9\xC3\xA8 \t \xF0\x9F\x90\xB1 AAA";
    struct tiny       map = {{0}, 0};
    uint32_t          refused = 0;

    (void)state;
    tiny_charsmap(&map);
    for (size_t bit = 0; bit < 8 * map.count; bit++) {
        struct t5_charsmap charsmap = {0};
        struct err         err = {0};
        char              *normal = NULL;
        size_t             bytes = 0;
        map.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        if (t5_charsmap_open(&charsmap, map.bytes, map.count, "map", &err) != ERR_OK) {
            assert_int_equal(err.code, ERR_FORMAT);
            refused++;
        } else {
            ASSERT_OK(t5_charsmap_normalise(&normal, &bytes, &charsmap, text, strlen(text), &err));
            assert_int_equal(text_utf8_valid_prefix(normal, bytes), bytes);
        }
        os_free(normal);
        t5_charsmap_close(&charsmap);
        map.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_true(refused > 0 && refused < 8 * map.count);
}

/* ------------------------------------------------------------------------------ short of memory */

static int   allocations_left;
static void *scarce_calloc(size_t count, size_t bytes)
{
    return allocations_left-- > 0 ? calloc(count, bytes) : NULL;
}

/* The n-th allocation fails, for every n, until all succeeds. */
static void short_memory_is_reported(void **state)
{
    const struct os_calls usual = os;
    struct tiny           spiece = {{0}, 0};
    int                   failures = 0;

    (void)state;
    tiny_spiece(&spiece);
    write_text("merges.txt", tiny_merges);
    write_bytes("spiece.model", spiece.bytes, spiece.count);
    os.calloc = scarce_calloc;
    for (int n = 0, rc = ERR_HOST_MEM; rc != ERR_OK && n < 1000; n++, failures++) {
        struct clip_tokenizer *clip = NULL;
        struct t5_tokenizer   *t5 = NULL;
        int32_t                ids[CLIP_LENGTH];
        uint32_t               count = 0;
        struct err             err = {0};
        allocations_left = n;
        rc = clip_tokenizer_open(&clip, folder, &err);
        if (rc == ERR_OK) rc = t5_tokenizer_open(&t5, folder, &err);
        if (rc == ERR_OK) rc = clip_tokenizer_encode(clip, "ab c", ids, &count, &err);
        if (rc == ERR_OK) rc = t5_tokenizer_encode(t5, "ab c", 8, ids, &count, &err);
        if (rc != ERR_OK && (rc != ERR_HOST_MEM || strstr(err.text, "memory") == NULL)) break;
        clip_tokenizer_close(clip);
        t5_tokenizer_close(t5);
    }
    os = usual;
    assert_in_range(failures, 20, 900);
}

#define FOLDER_TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(clip_gives_the_references_ids),
        FOLDER_TEST(t5_gives_the_references_ids_from_tokenizer_json),
        FOLDER_TEST(t5_gives_the_references_ids_from_spiece_model),
        FOLDER_TEST(ids_that_others_published_are_the_same),
        FOLDER_TEST(long_prompts_are_quick),
        FOLDER_TEST(clip_numbers_its_own_symbols),
        FOLDER_TEST(clip_rank_decides_which_merge_goes_first),
        FOLDER_TEST(clip_takes_ids_from_vocab_json),
        FOLDER_TEST(clip_reads_tokenizer_json),
        FOLDER_TEST(t5_files_of_both_kinds_agree),
        FOLDER_TEST(t5_marks_words_as_the_folder_says),
        FOLDER_TEST(t5_without_a_charsmap_takes_text_as_it_is),
        FOLDER_TEST(prompts_that_are_not_utf8_are_refused),
        FOLDER_TEST(empty_folders_are_refused),
        FOLDER_TEST(damaged_merges_are_refused),
        FOLDER_TEST(damaged_vocabularies_are_refused),
        FOLDER_TEST(damaged_clip_tokenizer_json_is_refused),
        FOLDER_TEST(damaged_settings_are_refused),
        FOLDER_TEST(damaged_t5_tokenizer_json_is_refused),
        FOLDER_TEST(damaged_normalizers_and_tokens_are_refused),
        FOLDER_TEST(foreign_pre_tokenizers_are_refused),
        FOLDER_TEST(damaged_spiece_models_are_refused),
        FOLDER_TEST(of_equal_pieces_the_last_counts),
        FOLDER_TEST(files_cut_anywhere_are_harmless),
        FOLDER_TEST(charsmaps_with_flipped_bits_are_harmless),
        FOLDER_TEST(short_memory_is_reported),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
