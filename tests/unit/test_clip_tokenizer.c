/*
 * test_clip_tokenizer.c - CLIP's tokenizer: the reference's ids, small vocabularies, damage.
 */
#include "token_folder.h"

#include "../fuzz/tiny_tokens.h"

enum { CLIP_END = 49407 };

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
    check_clip(tokenizer, "abcd", "515 512 66 323 516");        /* the first rule goes first */
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(clip_gives_the_references_ids),
        FOLDER_TEST(clip_numbers_its_own_symbols),
        FOLDER_TEST(clip_rank_decides_which_merge_goes_first),
        FOLDER_TEST(clip_takes_ids_from_vocab_json),
        FOLDER_TEST(clip_reads_tokenizer_json),
        FOLDER_TEST(damaged_merges_are_refused),
        FOLDER_TEST(damaged_vocabularies_are_refused),
        FOLDER_TEST(damaged_clip_tokenizer_json_is_refused),
    };
    return cmocka_run_group_tests_name("CLIP tokenizer", tests, NULL, NULL);
}
