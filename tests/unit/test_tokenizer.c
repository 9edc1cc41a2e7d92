/*
 * test_tokenizer.c - what both tokenizers do alike: published ids, long prompts, settings, files
 * that are cut, memory that runs out.
 */
#include "token_folder.h"

#include "../fuzz/tiny_tokens.h"
#include "../scarce.h"

#include <time.h>

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
    static const char *const units[] = {"a photo of cats, ",
                                        "a",
                                        "</s>",
                                        " ",
                                        "<",
                                        "\xCC\x81",
                                        "\xE6\x97\xA5",
                                        "<|endoftext|",
                                        "\xE2\x96\x81",
                                        "8",
                                        "\xF0\x9F\x91\xA9\xE2\x80\x8D",
                                        "<extra_id_1"};
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
        for (; at + bytes <= BYTES; at += bytes)
            memcpy(prompt + at, units[i], bytes);
        prompt[at] = '\0';
        ASSERT_OK(clip_tokenizer_encode(clip, prompt, ids, &count, &err));
        ASSERT_OK(t5_tokenizer_encode(t5, prompt, T5_LENGTH, ids, &count, &err));
        seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (seconds > 1.0) fail_msg("'%s' over and over takes %.1f s", units[i], seconds);
    }
    clip_tokenizer_close(clip);
    t5_tokenizer_close(t5);
}

static void prompts_that_are_not_utf8_are_refused(void **state)
{
    static const struct {
        const char *prompt, *words;
    } cases[] = {{"\x80", "byte 0 is 0x80"},
                 {"caf\xE9", "byte 3 is 0xE9"},
                 {"ab \xC0\xAF", "byte 3 is 0xC0"},
                 {"a\xED\xA0\x80", "byte 1 is 0xED"},
                 {"\xE6\x97\xA5\xFF", "byte 3 is 0xFF"},
                 {"a\xF4\x90\x80\x80", "byte 1 is 0xF4"}};
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
        scarce_calls = n;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(ids_that_others_published_are_the_same),
        FOLDER_TEST(long_prompts_are_quick),
        FOLDER_TEST(prompts_that_are_not_utf8_are_refused),
        FOLDER_TEST(empty_folders_are_refused),
        FOLDER_TEST(damaged_settings_are_refused),
        FOLDER_TEST(files_cut_anywhere_are_harmless),
        FOLDER_TEST(short_memory_is_reported),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
