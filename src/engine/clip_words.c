/*
 * clip_words.c - from the text of a prompt to the words that CLIP's merges work on.
 *
 * Normal text is NFC in lower case, character by character, so a final sigma is an ordinary one.  A
 * word is a contraction, a run of letters, one number character, or a run of anything else but
 * spaces.  Knows nothing of symbols and ids.
 *
 * Character kinds are utf8proc's; characters younger than its Unicode version are kind "other".
 *
 * Read next: clip_tokenizer.c, its main user.
 */
#include "engine/tokenizer_int.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

/* ------------------------------------------------------------------------------- normal text */

static int by_value(const void *a, const void *b)
{
    uint64_t x, y;

    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Brings runs of combining marks into canonical order.  A sort key holds class, place and
 * character, so marks of one class stay in place; no run of marks is slow, however long. */
static int sort_marks(utf8proc_int32_t *codes, size_t count, struct err *err)
{
    int       rc = ERR_OK;
    void     *memory = NULL;
    uint64_t *keys;

    TRY(os_alloc(&memory, count, sizeof *keys, "the prompt", err));
    keys = memory;
    for (size_t from = 0, to = 0; from < count; from = to + 1) {
        for (to = from; to < count; to++) {
            uint64_t class = (uint64_t)utf8proc_get_property(codes[to])->combining_class;
            if (class == 0) break;
            keys[to] = class << 56 | (uint64_t)to << 24 | (uint64_t)codes[to];
        }
        if (to - from < 2) continue;
        qsort(keys + from, to - from, sizeof *keys, by_value);
        for (size_t i = from; i < to; i++) codes[i] = (utf8proc_int32_t)(keys[i] & 0xFFFFFF);
    }
out:
    os_free(memory);
    return rc;
}

/* Simple lower case; only U+0130 becomes two characters. */
static size_t put_lower(char *out, utf8proc_int32_t code)
{
    utf8proc_uint8_t *bytes = (utf8proc_uint8_t *)out;
    size_t            used;

    if (code != 0x130) return (size_t)utf8proc_encode_char(utf8proc_tolower(code), bytes);
    used = (size_t)utf8proc_encode_char('i', bytes);
    return used + (size_t)utf8proc_encode_char(0x307, bytes + used);
}

int clip_words_normalise(char **out, size_t *bytes_out, const char *text, size_t bytes,
                         struct err *err)
{
    enum { LONGEST = 4 }; /* characters that one decomposes to (Unicode stability policy) */
    int               rc = ERR_OK, boundary = 0;
    void             *code_memory = NULL, *memory = NULL;
    utf8proc_int32_t *codes;
    size_t            count = 0, used = 0, length = 0;
    utf8proc_ssize_t  composed;

    TRY(os_alloc(&code_memory, LONGEST * (uint64_t)bytes, sizeof *codes, "the prompt", err));
    codes = code_memory;
    for (size_t at = 0; at < bytes; at += length) {
        utf8proc_int32_t code = token_rules_character(&length, text + at, bytes - at);
        utf8proc_ssize_t parts = utf8proc_decompose_char(code, codes + count, LONGEST,
                                                         UTF8PROC_DECOMPOSE, &boundary);
        must(parts > 0 && parts <= LONGEST);
        count += (size_t)parts;
    }
    TRY(sort_marks(codes, count, err));
    composed = utf8proc_normalize_utf32(codes, (utf8proc_ssize_t)count,
                                        UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    must(composed >= 0 && (size_t)composed <= count);
    TRY(os_alloc(&memory, 4 * (uint64_t)composed + 1, 1, "the prompt", err));
    for (utf8proc_ssize_t i = 0; i < composed; i++)
        used += put_lower((char *)memory + used, codes[i]);
    *out = memory;
    *bytes_out = used;
out:
    os_free(code_memory);
    return rc;
}

/* ------------------------------------------------------------------------------------- words */

enum kind { KIND_SPACE, KIND_LETTER, KIND_NUMBER, KIND_OTHER };

static enum kind kind_of(int32_t code)
{
    if (token_rules_is_space(code)) return KIND_SPACE;
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return KIND_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return KIND_NUMBER;
    default:
        return KIND_OTHER;
    }
}

static bool starts_with(const struct clip_words *words, const char *prefix)
{
    size_t length = strlen(prefix);
    return words->bytes - words->at >= length &&
           memcmp(words->text + words->at, prefix, length) == 0;
}

/* Length of a word that needs no look at character kinds; 0 when there is none here. */
static size_t fixed_word(struct clip_words *words)
{
    static const char *const contractions[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    static const char *const specials[] = {"<|startoftext|>", "<|endoftext|>"};

    for (size_t i = 0; i < ARRAY_COUNT(contractions); i++)
        if (starts_with(words, contractions[i])) return strlen(contractions[i]);
    /* The pattern takes a special token as one word; a second pattern then cuts it into "<|",
     * letters and "|>".  So the only trace of it is that "|>" does not join what follows. */
    for (size_t i = 0; words->cuts_specials && i < ARRAY_COUNT(specials); i++) {
        if (!starts_with(words, specials[i])) continue;
        words->cut = words->at + strlen(specials[i]);
        return 2;
    }
    return 0;
}

bool clip_words_next(struct clip_words *words, const char **word_out, size_t *bytes_out)
{
    size_t    length = 0, start;
    enum kind kind = KIND_SPACE;

    while (words->at < words->bytes && kind == KIND_SPACE) {
        kind = kind_of(token_rules_character(&length, words->text + words->at,
                                             words->bytes - words->at));
        if (kind == KIND_SPACE) words->at += length;
    }
    if (words->at == words->bytes) return false;
    start = words->at;
    words->at += fixed_word(words);
    if (words->at == start) {
        size_t limit = words->cut > start ? words->cut : words->bytes;
        do {
            words->at += length;
        } while (kind != KIND_NUMBER && words->at < limit &&
                 kind == kind_of(token_rules_character(&length, words->text + words->at,
                                                       words->bytes - words->at)));
    }
    *word_out = words->text + start;
    *bytes_out = words->at - start;
    return true;
}
