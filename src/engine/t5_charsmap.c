/*
 * t5_charsmap.c - how T5 normalises text: a precompiled map, spaces, and MARK.
 *
 * Owns the bytes of the map, which SentencePiece compiles into vocabularies (NFKC and a little
 * more) and which may be damaged.  Knows nothing of files, pieces and ids.
 *
 *     offset  size  field
 *          0     4  bytes of the array, little-endian
 *          4     n  a double-array trie of u32 units, little-endian
 *      4 + n     *  replacements in UTF-8, each ends in NUL
 *
 * Read next: t5_tokenizer.c, its only user.
 */
#include "engine/tokenizer_int.h"

#include <string.h>

#include <utf8proc.h>

enum {
    CLUSTER_BYTES = 6, /* clusters of fewer bytes are normalised as a whole        */
    NORMAL_BYTES = 16 * TOKEN_PROMPT_BYTES /* NFKC needs 11 bytes per byte at most */
};

/* -------------------------------------------------------------------------------- the charsmap */

/* A unit with bit 31 holds a value in its other bits.  Any other unit is a node: bits 0-7 are the
 * byte that leads to it, bit 8 says that a string ends here, the rest leads to its children. */
static const uint32_t UNIT_IS_VALUE = UINT32_C(1) << 31, UNIT_HAS_LEAF = 1 << 8;

static uint32_t unit_offset(uint32_t unit)
{
    return (unit >> 10) << ((unit & 0x200) >> 6);
}

static uint32_t read_u32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint32_t unit_at(const struct t5_charsmap *map, uint32_t index)
{
    return read_u32(map->data + 4 + 4 * (size_t)index);
}

/* After this, a leaf always has a replacement that is valid UTF-8. */
int t5_charsmap_open(struct t5_charsmap *map, const uint8_t *data, size_t bytes,
                     const char *file, struct err *err)
{
    int      rc = ERR_OK;
    void    *memory = NULL;
    uint64_t array = bytes < 4 ? 0 : read_u32(data);

    if (map->data != NULL) RAISE(err, ERR_FORMAT, 0, "'%s' has more than one charsmap", file);
    if (array == 0 || array % 4 != 0 || array >= bytes - 4 || data[bytes - 1] != 0)
        RAISE(err, ERR_FORMAT, 0, "'%s': the charsmap of %zu bytes does not hold an array of %llu "
              "bytes and replacements that end", file, bytes, (unsigned long long)array);
    TRY(os_alloc(&memory, bytes, 1, "the T5 charsmap", err));
    memcpy(memory, data, bytes);
    map->data = memory;
    map->count = (uint32_t)(array / 4);
    map->strings = (const char *)map->data + 4 + array;
    map->bytes = bytes - 4 - (size_t)array;
    if (text_utf8_valid_prefix(map->strings, map->bytes) < map->bytes)
        RAISE(err, ERR_FORMAT, 0, "'%s': the replacements of the charsmap are not UTF-8", file);
    for (uint32_t i = 0; i < map->count; i++) {
        uint32_t unit = unit_at(map, i), leaf = i ^ unit_offset(unit), value = UINT32_MAX;
        if ((unit & (UNIT_IS_VALUE | UNIT_HAS_LEAF)) != UNIT_HAS_LEAF) continue;
        if (leaf < map->count) value = unit_at(map, leaf) ^ UNIT_IS_VALUE;
        if (value >= map->bytes || (map->strings[value] & 0xC0) == 0x80)
            RAISE(err, ERR_FORMAT, 0, "'%s': unit %u of the charsmap is damaged", file, i);
    }
out:
    return rc;
}

void t5_charsmap_close(struct t5_charsmap *map)
{
    os_free(map->data);
    *map = (struct t5_charsmap){0};
}

/* What `text` becomes; NULL when it stays.  As in the reference, the shortest prefix that has a
 * replacement decides, and what follows it in `text` is dropped. */
static const char *charsmap_find(const struct t5_charsmap *map, const char *text, size_t bytes)
{
    uint32_t at;

    if (map->count == 0) return NULL;
    at = unit_offset(unit_at(map, 0));
    for (size_t i = 0; i < bytes; i++) {
        uint32_t unit;
        at ^= (uint8_t)text[i];
        if (at >= map->count) return NULL;
        unit = unit_at(map, at);
        if ((unit & (UNIT_IS_VALUE | 0xFF)) != (uint8_t)text[i]) return NULL;
        at ^= unit_offset(unit);
        if ((unit & UNIT_HAS_LEAF) != 0) return map->strings + (unit_at(map, at) ^ UNIT_IS_VALUE);
    }
    return NULL;
}

/* --------------------------------------------------------------------------------- normal text */

struct text {
    char  *data;
    size_t bytes, room;
};

static int text_add(struct text *text, const char *data, size_t bytes, struct err *err)
{
    int    rc = ERR_OK;
    size_t room = text->room == 0 ? 256 : text->room;
    void  *memory = NULL;

    /* only a hostile charsmap gets here: it could make terabytes of a long prompt */
    if (bytes > NORMAL_BYTES - text->bytes)
        RAISE(err, ERR_FORMAT, 0, "the T5 charsmap makes more than %d bytes of the prompt",
              NORMAL_BYTES);
    while (room < text->bytes + bytes) room *= 2;
    if (room > text->room) {
        TRY(os_alloc(&memory, room, 1, "the prompt", err));
        if (text->bytes > 0) memcpy(memory, text->data, text->bytes);
        os_free(text->data);
        text->data = memory;
        text->room = room;
    }
    memcpy(text->data + text->bytes, data, bytes);
    text->bytes += bytes;
out:
    return rc;
}

/* Bytes of the grapheme cluster at text[0].  *state is utf8proc's, 0 at the start of a text. */
static size_t cluster_bytes(const char *text, size_t bytes, utf8proc_int32_t *state)
{
    size_t  used = 0, length = 0;
    int32_t before = token_rules_character(&used, text, bytes);

    while (used < bytes) {
        int32_t after = token_rules_character(&length, text + used, bytes - used);
        if (utf8proc_grapheme_break_stateful(before, after, state)) break;
        before = after;
        used += length;
    }
    return used;
}

/* Clusters rather than longest matches: this is how the reference walks. */
static int apply_charsmap(struct text *out, const struct t5_charsmap *map, const char *text,
                          size_t bytes, struct err *err)
{
    int              rc = ERR_OK;
    utf8proc_int32_t state = 0;
    size_t           end = 0, step = 0; /* of this cluster; to the next place */

    for (size_t at = 0; at < bytes; at += step) {
        const char *replacement = NULL;
        if (at == end) {
            step = cluster_bytes(text + at, bytes - at, &state);
            end += step;
            if (step < CLUSTER_BYTES) replacement = charsmap_find(map, text + at, step);
        }
        if (replacement == NULL) {
            (void)token_rules_character(&step, text + at, bytes - at);
            replacement = charsmap_find(map, text + at, step);
        }
        if (replacement != NULL)
            TRY(text_add(out, replacement, strlen(replacement), err));
        else
            TRY(text_add(out, text + at, step, err));
    }
out:
    return rc;
}

int t5_charsmap_normalise(char **out, size_t *bytes_out, const struct t5_charsmap *map,
                          const char *text, size_t bytes, struct err *err)
{
    int         rc = ERR_OK;
    struct text mapped = {0}, normal = {0};
    size_t      end = 0, length = 0;

    TRY(apply_charsmap(&mapped, map, text, bytes, err));
    for (size_t at = 0; at < mapped.bytes; at += length) {
        int32_t code = token_rules_character(&length, mapped.data + at, mapped.bytes - at);
        if (!token_rules_is_space(code))
            end = at + length;
        else if (map->any_space)
            memset(mapped.data + at, ' ', length);
    }
    TRY(text_add(&normal, T5_MARK, T5_MARK_BYTES, err));
    for (size_t at = 0; at < end; at++) {
        if (mapped.data[at] != ' ')
            TRY(text_add(&normal, mapped.data + at, 1, err));
        else if (at == 0 || mapped.data[at - 1] != ' ')
            TRY(text_add(&normal, T5_MARK, T5_MARK_BYTES, err));
    }
    *out = normal.data;
    *bytes_out = normal.bytes;
    normal.data = NULL;
out:
    os_free(mapped.data);
    os_free(normal.data);
    return rc;
}
