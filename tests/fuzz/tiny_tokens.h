/*
 * tiny_tokens.h - vocabularies of a dozen tokens, in memory, for
 * test_*tokenizer.c and fuzz_tokenizer.c.
 */
#ifndef MURAL_TINY_TOKENS_H
#define MURAL_TINY_TOKENS_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"

/* "a" is 64, "a</w>" 320 (65, 321 for "b" and so on), then 512 "ab", 513 "abc</w>", 514 "bc",
 * start 515, end 516. */
static const char tiny_merges[] = "#version: 0.2\na b\nab c</w>\nb c\n";

/* For merges "a b</w>"; bytes other than a and b are unknown, which is the end token. */
static const char tiny_vocab[] =
    "{\"a\":0,\"b\":1,\"a</w>\":2,\"b</w>\":3,\"ab</w>\":4,"
    "\"<|startoftext|>\":5,\"<|endoftext|>\":6}";

struct tiny {
    uint8_t bytes[4096];
    size_t  count;
};

static inline void tiny_put(struct tiny *out, const void *bytes, size_t count)
{
    must(count <= sizeof out->bytes - out->count);
    memcpy(out->bytes + out->count, bytes, count);
    out->count += count;
}

static inline void tiny_text(struct tiny *out, const char *text)
{
    tiny_put(out, text, strlen(text));
}

static inline void tiny_u32(struct tiny *out, uint32_t value)
{
    uint8_t bytes[] = {(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16),
                       (uint8_t)(value >> 24)};
    tiny_put(out, bytes, sizeof bytes);
}

/* Maps "A" to "a", "Z" to nothing, U+00E9 (two bytes) to "e", and tab to space. */
static inline void tiny_charsmap(struct tiny *out)
{
    enum { UNITS = 512, LEAF = 0x100 };
    static const uint32_t VALUE = UINT32_C(1) << 31;
    static const char     replacements[] = "a\0e\0 \0";
    uint32_t              units[UNITS] = {0};

    units['A'] = 1u << 10 | 0x200 | LEAF | 'A'; /* bit 9: the offset counts in steps of 256 */
    units['A' ^ 0x100] = VALUE | 0;
    units['Z'] = 0x20u << 10 | LEAF | 'Z';
    units['Z' ^ 0x20] = VALUE | 1;
    units['\t'] = 0x20u << 10 | LEAF | '\t';
    units['\t' ^ 0x20] = VALUE | 4;
    units[0xC3] = (0xC3u ^ 0xA9 ^ 0x10) << 10 | 0xC3;
    units[0x10] = 0x01u << 10 | LEAF | 0xA9;
    units[0x11] = VALUE | 2;
    tiny_u32(out, sizeof units);
    for (uint32_t i = 0; i < UNITS; i++) tiny_u32(out, units[i]);
    tiny_put(out, replacements, sizeof replacements);
}

/* The pieces of both T5 files; ids are places. */
static const struct {
    const char *text;
    float       score;
} tiny_pieces[] = {
    {"<pad>", 0},  {"</s>", 0},   {"<unk>", 0},  {"\xE2\x96\x81", -2}, {"a", -3},
    {"b", -3.5f},  {"e", -3},     {"\xE2\x96\x81" "ab", -4},           {"ba", -4},
    {"y", 5},      {"xy", -4},    {"cd", -1},    {"c", -0.5f},         {"d", -0.5f},
};
enum { TINY_PIECES = sizeof tiny_pieces / sizeof tiny_pieces[0] };

/* T5's tokenizer.json; `normalizer` and `added` are JSON values, or NULL for the usual ones. */
static inline void tiny_tokenizer_json(struct tiny *out, const char *normalizer, const char *added)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static const char usual[] = "[{\"id\":0,\"content\":\"<pad>\"},{\"id\":1,\"content\":\"</s>\"},"
                                "{\"id\":2,\"content\":\"<unk>\"},"
                                "{\"id\":14,\"content\":\"<n>\",\"normalized\":true}]";
    char        row[64];
    struct tiny map = {{0}, 0};

    tiny_text(out, "{\"added_tokens\":");
    tiny_text(out, added == NULL ? usual : added);
    tiny_text(out, ",\"normalizer\":");
    if (normalizer == NULL) {
        tiny_text(out, "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"");
        tiny_charsmap(&map);
        for (size_t i = 0; i < map.count; i += 3) {
            char     four[5] = "====";
            uint32_t bits = (uint32_t)map.bytes[i] << 16 | (uint32_t)map.bytes[i + 1] << 8 |
                            map.bytes[i + 2]; /* zeros follow the map */
            for (uint32_t k = 0; k < 4 && i + k <= map.count; k++)
                four[k] = digits[bits >> (18 - 6 * k) & 63];
            tiny_text(out, four);
        }
        tiny_text(out, "\"}");
    } else {
        tiny_text(out, normalizer);
    }
    tiny_text(out, ",\"model\":{\"type\":\"Unigram\",\"unk_id\":2,\"vocab\":[");
    for (uint32_t i = 0; i < TINY_PIECES; i++) {
        (void)snprintf(row, sizeof row, "%s[\"%s\",%.1f]", i == 0 ? "" : ",", tiny_pieces[i].text,
                       (double)tiny_pieces[i].score);
        tiny_text(out, row);
    }
    tiny_text(out, "]}}");
}

/* A protobuf field of bytes. */
static inline void tiny_field(struct tiny *out, uint32_t number, const void *bytes, size_t count)
{
    uint8_t head[] = {(uint8_t)(number << 3 | 2), (uint8_t)(0x80 | (count & 0x7F)),
                      (uint8_t)(count >> 7)};
    must(number < 16 && count < 1u << 14);
    tiny_put(out, head, sizeof head);
    tiny_put(out, bytes, count);
}

static inline void tiny_piece(struct tiny *out, const char *text, float score, uint32_t kind)
{
    struct tiny piece = {{0}, 0};
    uint8_t     key = 2 << 3 | 5, last[] = {3 << 3, (uint8_t)kind};
    uint32_t    bits;

    memcpy(&bits, &score, sizeof bits);
    tiny_field(&piece, 1, text, strlen(text));
    tiny_put(&piece, &key, 1);
    tiny_u32(&piece, bits);
    tiny_put(&piece, last, sizeof last);
    tiny_field(out, 1, piece.bytes, piece.count);
}

static inline void tiny_spiece(struct tiny *out)
{
    static const uint8_t trainer[] = {3 << 3, 1};
    struct tiny          map = {{0}, 0}, normalizer = {{0}, 0};

    for (uint32_t i = 0; i < TINY_PIECES; i++)
        tiny_piece(out, tiny_pieces[i].text, tiny_pieces[i].score, i < 2 ? 3 : i == 2 ? 2 : 1);
    tiny_field(out, 2, trainer, sizeof trainer);
    tiny_charsmap(&map);
    tiny_field(&normalizer, 2, map.bytes, map.count);
    tiny_field(out, 3, normalizer.bytes, normalizer.count);
}

#endif
