/*
 * synth_tokenizer.c - two small vocabularies of our own in the formats of FLUX.1's tokenizers.
 *
 * Both can spell any prompt: CLIP's has every byte, T5's every printable ASCII character.  Ids stay
 * below the rows of the models' embeddings.  Knows nothing of weights.
 */
#include "weights/weights_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CLIP_BYTES = 256, CLIP_SPECIALS = 2, CLIP_LENGTH = 77 };
enum { T5_SPECIALS = 3, PRINTABLE_FIRST = 0x21, PRINTABLE_LAST = 0x7e };
#define WORD_END   "</w>"
#define CLIP_START "<|startoftext|>"
#define CLIP_END   "<|endoftext|>"
#define T5_SPACE   "\xe2\x96\x81" /* U+2581, which stands for a space */

/* In order of rank; both sides of each are bytes or products of earlier ones. */
static const char *const merges[] = {
    "i n",        "t h",      "a n",       "r e",        "a r",      "e r",      "th e</w>",
    "in g</w>",   "o n",      "s t",       "o r",        "e n",      "a l",      "a t",
    "i t",        "r o",      "an d</w>",  "o f</w>",    "i n</w>",  "o n</w>",  "l e",
    "c o",        "l i",      "o u",       "c h",        "e r</w>",  "e s</w>",  "e d</w>",
    "t o</w>",    "s h",      "w h",       "i s</w>",    "i t</w>",  "o w",      "p h",
    "a t</w>",    "c at</w>", "o g</w>",   "d og</w>",   "e e</w>",  "t r",      "tr ee</w>",
    "re d</w>",   "b l",      "u e</w>",   "bl ue</w>",  "e n</w>",  "g re",     "gre en</w>",
    "s k",        "sk y</w>", "w i",       "t h</w>",    "wi th</w>", "ou n",    "a in</w>",
    "l a",        "k e</w>",  "la ke</w>", "ou s",       "h ous",    "hous e</w>", "s e",
    "se a</w>"};

/* By falling score. */
static const char *const words[] = {
    "the",  "a",    "and",      "of",    "to",   "in",    "is",     "on",    "with",  "for",
    "at",   "by",   "an",       "from",  "one",  "two",   "cat",    "dog",   "tree",  "house",
    "red",  "blue", "green",    "white", "black", "sky",  "sea",    "lake",  "light", "night",
    "city", "road", "mountain", "photo", "small", "large", "very",  "old",   "new",   "long"};
static const char *const endings[] = {"s", "ed", "ing", "er", "ly", "es", "en", "al", "tion", "ty"};

/* ----------------------------------------------------------------------------------- CLIP */

/* The character that stands for byte `place` of the vocabulary's order: the printable ones of
 * Latin-1 first, as themselves, then the others as U+0100 and up. */
static void byte_symbol(char out[3], uint32_t place)
{
    uint32_t code = 0x21 + place;

    if (place >= 94) code = 0xa1 + (place - 94);
    if (place >= 94 + 12) code = 0xae + (place - 94 - 12);
    if (place >= 188) code = 0x100 + (place - 188);
    if (code < 0x80) {
        out[0] = (char)code;
        out[1] = '\0';
        return;
    }
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3f));
    out[2] = '\0';
}

static bool add_symbol(json_t *vocabulary, const char *symbol)
{
    json_int_t id = (json_int_t)json_object_size(vocabulary);
    return json_object_set_new(vocabulary, symbol, json_integer(id)) == 0;
}

/* False when memory is short. */
static bool add_bytes(json_t *vocabulary)
{
    bool added = true;

    for (uint32_t i = 0; i < 2 * CLIP_BYTES; i++) {
        char byte[3], symbol[8];
        byte_symbol(byte, i % CLIP_BYTES);
        (void)snprintf(symbol, sizeof symbol, "%s%s", byte, i < CLIP_BYTES ? "" : WORD_END);
        added = added && add_symbol(vocabulary, symbol);
    }
    return added;
}

/* The product of "a b" is "ab". */
static bool add_merge(json_t *vocabulary, const char *merge)
{
    const char *space = strchr(merge, ' ');
    char        left[32], product[32];
    int         length = (int)(space - merge);

    (void)snprintf(left, sizeof left, "%.*s", length, merge);
    (void)snprintf(product, sizeof product, "%s%s", left, space + 1);
    must(json_object_get(vocabulary, left) != NULL);
    must(json_object_get(vocabulary, space + 1) != NULL);
    must(json_object_get(vocabulary, product) == NULL);
    return add_symbol(vocabulary, product);
}

static int write_vocabulary(struct synth_output *output, int64_t merge_count, struct err *err)
{
    int     rc = ERR_OK;
    json_t *vocabulary = json_object();
    bool    added = add_bytes(vocabulary);
    char    text[ARRAY_COUNT(merges) * 32] = "#version: 0.2\n";
    size_t  at = strlen(text);

    for (int64_t i = 0; i < merge_count && added; i++) {
        added = add_merge(vocabulary, merges[i]);
        at += (size_t)snprintf(text + at, sizeof text - at, "%s\n", merges[i]);
        must(at < sizeof text);
    }
    added = added && add_symbol(vocabulary, CLIP_START) && add_symbol(vocabulary, CLIP_END);
    if (!added) RAISE(err, ERR_HOST_MEM, 0, "memory: none left for a vocabulary");
    TRY(synth_file_json(output, "tokenizer/vocab.json", vocabulary, err));
    TRY(synth_file_text(output, "tokenizer/merges.txt", text, err));
out:
    json_decref(vocabulary);
    return rc;
}

/* How a special token is treated; lists of tokens (`listed`) say also that it is special. */
static json_t *special(const char *content, bool normalized, bool listed)
{
    json_t *token = json_pack("{s:s, s:b, s:b, s:b, s:b}", "content", content, "lstrip", 0,
                              "normalized", normalized, "rstrip", 0, "single_word", 0);
    if (token != NULL && listed) (void)json_object_set_new(token, "special", json_true());
    return token;
}

static int write_clip_settings(struct synth_output *output, int64_t start, int64_t length,
                               struct err *err)
{
    int     rc = ERR_OK;
    char    first[24], second[24];
    json_t *config, *map;

    (void)snprintf(first, sizeof first, "%lld", (long long)start);
    (void)snprintf(second, sizeof second, "%lld", (long long)start + 1);
    config = json_pack("{s:b, s:{s:o, s:o}, s:s, s:b, s:b, s:s, s:s, s:I, s:s, s:s, s:s}",
                       "add_prefix_space", 0, "added_tokens_decoder", first,
                       special(CLIP_START, true, true), second, special(CLIP_END, false, true),
                       "bos_token", CLIP_START, "clean_up_tokenization_spaces", 1, "do_lower_case",
                       1, "eos_token", CLIP_END, "errors", "replace", "model_max_length",
                       (json_int_t)length, "pad_token", CLIP_END, "tokenizer_class",
                       "CLIPTokenizer", "unk_token", CLIP_END);
    map = json_pack("{s:o, s:o, s:o, s:o}", "bos_token", special(CLIP_START, true, false),
                    "eos_token", special(CLIP_END, false, false), "pad_token",
                    special(CLIP_END, false, false), "unk_token", special(CLIP_END, false, false));
    TRY(synth_file_json(output, "tokenizer/tokenizer_config.json", config, err));
    TRY(synth_file_json(output, "tokenizer/special_tokens_map.json", map, err));
out:
    json_decref(config);
    json_decref(map);
    return rc;
}

int synth_tokenizer_clip(struct synth_output *output, const struct clip_config *config,
                         struct err *err)
{
    int     rc = ERR_OK;
    int64_t least = 2 * CLIP_BYTES + CLIP_SPECIALS;
    int64_t merge_count = min_i64((int64_t)ARRAY_COUNT(merges), config->vocab - least);

    if (merge_count < 0)
        RAISE(err, ERR_FORMAT, 0, "synth: vocab_size of text_encoder is %lld; its tokenizer needs "
              "at least %lld", (long long)config->vocab, (long long)least);
    TRY(synth_file_folder(output, "tokenizer", err));
    TRY(write_vocabulary(output, merge_count, err));
    TRY(write_clip_settings(output, 2 * CLIP_BYTES + merge_count,
                            min_i64(CLIP_LENGTH, config->positions), err));
out:
    return rc;
}

/* -------------------------------------------------------------------------------------- T5 */

static const char *const t5_specials[T5_SPECIALS] = {"<pad>", "</s>", "<unk>"};

/* Nothing happens when the vocabulary is full. */
static void add_piece(json_t *pieces, int64_t limit, const char *start, const char *piece,
                      double score)
{
    char text[64];

    if ((int64_t)json_array_size(pieces) >= limit) return;
    (void)snprintf(text, sizeof text, "%s%s", start, piece);
    (void)json_array_append_new(pieces, json_pack("[s, f]", text, score));
}

/* NULL when memory is short. */
static json_t *t5_pieces(int64_t limit)
{
    json_t *pieces = json_array();
    int64_t all = T5_SPECIALS + 1 + PRINTABLE_LAST - PRINTABLE_FIRST + 1 +
                  (int64_t)(ARRAY_COUNT(words) + ARRAY_COUNT(endings));

    for (uint32_t i = 0; i < T5_SPECIALS; i++) add_piece(pieces, limit, "", t5_specials[i], 0.0);
    add_piece(pieces, limit, T5_SPACE, "", -2.0);
    for (int code = PRINTABLE_FIRST; code <= PRINTABLE_LAST; code++) {
        char character[2] = {(char)code, '\0'};
        add_piece(pieces, limit, "", character, -8.0 - 0.03125 * (code - PRINTABLE_FIRST));
    }
    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        add_piece(pieces, limit, T5_SPACE, words[i], -4.0 - 0.0625 * (double)i);
    for (size_t i = 0; i < ARRAY_COUNT(endings); i++)
        add_piece(pieces, limit, "", endings[i], -5.5 - 0.0625 * (double)i);
    if ((int64_t)json_array_size(pieces) == min_i64(all, limit)) return pieces;
    json_decref(pieces);
    return NULL;
}

/* As the real file: a text, then </s>; or two texts, each followed by </s>. */
static json_t *t5_template(void)
{
    return json_loads(
        "{\"type\": \"TemplateProcessing\","
        "\"single\": [{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}},"
        "{\"SpecialToken\": {\"id\": \"</s>\", \"type_id\": 0}}],"
        "\"pair\": [{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}},"
        "{\"SpecialToken\": {\"id\": \"</s>\", \"type_id\": 0}},"
        "{\"Sequence\": {\"id\": \"B\", \"type_id\": 0}},"
        "{\"SpecialToken\": {\"id\": \"</s>\", \"type_id\": 0}}],"
        "\"special_tokens\": {\"</s>\": {\"id\": \"</s>\", \"ids\": [1], \"tokens\": [\"</s>\"]}}}",
        0, NULL);
}

static json_t *t5_metaspace(const char *scheme)
{
    return json_pack("{s:s, s:s, s:b, s:s}", "type", "Metaspace", "replacement", T5_SPACE,
                     "add_prefix_space", 1, "prepend_scheme", scheme);
}

static json_t *t5_normalizer(void)
{
    return json_pack("{s:s, s:[{s:s, s:b, s:b}, {s:s, s:{s:s}, s:s}]}", "type", "Sequence",
                     "normalizers", "type", "Strip", "strip_left", 0, "strip_right", 1, "type",
                     "Replace", "pattern", "Regex", " {2,}", "content", T5_SPACE);
}

static int write_t5_tokenizer(struct synth_output *output, int64_t limit, struct err *err)
{
    int     rc = ERR_OK;
    json_t *added = json_array();
    json_t *file = NULL;

    for (uint32_t i = 0; i < T5_SPECIALS; i++) {
        json_t *token = special(t5_specials[i], false, true);
        (void)json_object_set_new(token, "id", json_integer((json_int_t)i));
        (void)json_array_append_new(added, token);
    }
    file = json_pack("{s:s, s:n, s:n, s:O, s:o, s:o, s:o, s:o, s:{s:s, s:i, s:o, s:b}}", "version",
                     "1.0", "truncation", "padding", "added_tokens", added, "normalizer",
                     t5_normalizer(), "pre_tokenizer", t5_metaspace("first"), "post_processor",
                     t5_template(), "decoder", t5_metaspace("always"), "model", "type", "Unigram",
                     "unk_id", 2, "vocab", t5_pieces(limit), "byte_fallback", 0);
    TRY(synth_file_json(output, "tokenizer_2/tokenizer.json", file, err));
out:
    json_decref(added);
    json_decref(file);
    return rc;
}

static int write_t5_settings(struct synth_output *output, int64_t text_tokens, struct err *err)
{
    int     rc = ERR_OK;
    json_t *config = json_pack(
        "{s:{s:o, s:o, s:o}, s:b, s:s, s:i, s:b, s:I, s:s, s:s, s:s}", "added_tokens_decoder", "0",
        special(t5_specials[0], false, true), "1", special(t5_specials[1], false, true), "2",
        special(t5_specials[2], false, true), "clean_up_tokenization_spaces", 1, "eos_token",
        t5_specials[1], "extra_ids", 0, "legacy", 0, "model_max_length", (json_int_t)text_tokens,
        "pad_token", t5_specials[0], "tokenizer_class", "T5Tokenizer", "unk_token",
        t5_specials[2]);
    json_t *map = json_pack("{s:o, s:o, s:o}", "eos_token", special(t5_specials[1], false, false),
                            "pad_token", special(t5_specials[0], false, false), "unk_token",
                            special(t5_specials[2], false, false));

    TRY(synth_file_json(output, "tokenizer_2/tokenizer_config.json", config, err));
    TRY(synth_file_json(output, "tokenizer_2/special_tokens_map.json", map, err));
out:
    json_decref(config);
    json_decref(map);
    return rc;
}

int synth_tokenizer_t5(struct synth_output *output, const struct t5_config *config,
                       int64_t text_tokens, struct err *err)
{
    int           rc = ERR_OK;
    const int64_t least = T5_SPECIALS + 1 + PRINTABLE_LAST - PRINTABLE_FIRST + 1;

    if (config->vocab < least)
        RAISE(err, ERR_FORMAT, 0, "synth: vocab_size of text_encoder_2 is %lld; its tokenizer "
              "needs at least %lld", (long long)config->vocab, (long long)least);
    TRY(synth_file_folder(output, "tokenizer_2", err));
    TRY(write_t5_tokenizer(output, config->vocab, err));
    TRY(write_t5_settings(output, text_tokens, err));
out:
    return rc;
}
