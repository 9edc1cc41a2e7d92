/*
 * test_t5_tokenizer.c - T5's tokenizer: the reference's ids from both kinds of files, small
 * vocabularies, damage.
 */
#include "token_folder.h"

#include "../fuzz/tiny_tokens.h"

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

static void check_tiny_t5(void)
{
    struct t5_tokenizer *tokenizer = t5_open();

    check_t5(tokenizer, "", "1");
    check_t5(tokenizer, "  \t\xE2\x80\x83 ", "1");
    check_t5(tokenizer, "ab", "7 1");
    check_t5(tokenizer, "  ab   a ", "7 3 4 1");
    check_t5(tokenizer, "ZAb\t\xC3\xA9", "7 3 6 1");
    check_t5(tokenizer, "e\xCC\x81", "3 6 2 1"); /* a cluster of two characters is not in the map */
    check_t5(tokenizer,
             "a\xE6\x97\xA5\xE6\x9C\xAC"
             "b",
             "3 4 2 5 1");               /* unknown ones become one */
    check_t5(tokenizer, "xy", "3 10 1"); /* an unknown x and a good y cost more */
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
        check_t5(tokenizer,
                 "a\xE2\x80\xA8"
                 "ba",
                 cases[i].line_separator);
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
        {"\x0A\x08\x0A\x01"
         "a\x15\x00\x00\x80\x7F",
         10, "piece 0 has no finite score"},
        {"\x0A\x03\x0A\x01"
         "a",
         5, "has id"},
        {"\x0A\x03\x0A\x05"
         "a",
         5, "cut or damaged before byte 2"},
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(t5_gives_the_references_ids_from_tokenizer_json),
        FOLDER_TEST(t5_gives_the_references_ids_from_spiece_model),
        FOLDER_TEST(t5_files_of_both_kinds_agree),
        FOLDER_TEST(t5_marks_words_as_the_folder_says),
        FOLDER_TEST(t5_without_a_charsmap_takes_text_as_it_is),
        FOLDER_TEST(of_equal_pieces_the_last_counts),
        FOLDER_TEST(damaged_t5_tokenizer_json_is_refused),
        FOLDER_TEST(damaged_normalizers_and_tokens_are_refused),
        FOLDER_TEST(foreign_pre_tokenizers_are_refused),
        FOLDER_TEST(damaged_spiece_models_are_refused),
        FOLDER_TEST(charsmaps_with_flipped_bits_are_harmless),
    };
    return cmocka_run_group_tests_name("T5 tokenizer", tests, NULL, NULL);
}
