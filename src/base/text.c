/*
 * text.c - small questions about words: valid UTF-8, nearest word, copies, readable byte counts.
 */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

/* Length of the UTF-8 sequence that starts at text[0], or 0 when it is not a valid one (RFC 3629:
 * no overlong forms, no surrogates, nothing above U+10FFFF). */
static size_t sequence_length(const uint8_t *text, size_t left)
{
    uint32_t code;
    size_t   length;

    if (text[0] < 0x80) return 1;
    if (text[0] >= 0xC2 && text[0] <= 0xDF) {
        length = 2;
        code = text[0] & 0x1Fu;
    } else if ((text[0] & 0xF0) == 0xE0) {
        length = 3;
        code = text[0] & 0x0Fu;
    } else if (text[0] >= 0xF0 && text[0] <= 0xF4) {
        length = 4;
        code = text[0] & 0x07u;
    } else {
        return 0;
    }
    if (left < length) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xC0) != 0x80) return 0;
        code = code << 6 | (text[i] & 0x3Fu);
    }
    if (length == 3 && (code < 0x800 || (code >= 0xD800 && code <= 0xDFFF))) return 0;
    if (length == 4 && (code < 0x10000 || code > 0x10FFFF)) return 0;
    return length;
}

size_t text_utf8_valid_prefix(const char *text, size_t bytes)
{
    size_t at = 0;

    while (at < bytes) {
        size_t length = sequence_length((const uint8_t *)text + at, bytes - at);
        if (length == 0) return at;
        at += length;
    }
    return bytes;
}

uint32_t text_distance(const char *a, const char *b)
{
    enum { LONGEST = 63 };
    uint32_t row[LONGEST + 1];
    size_t   a_length = strlen(a), b_length = strlen(b);

    if (a_length > LONGEST || b_length > LONGEST) return UINT32_MAX;
    for (size_t j = 0; j <= b_length; j++)
        row[j] = (uint32_t)j;
    for (size_t i = 1; i <= a_length; i++) {
        uint32_t diagonal = row[0];
        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= b_length; j++) {
            uint32_t change = diagonal + (a[i - 1] == b[j - 1] ? 0u : 1u);
            uint32_t least = row[j] + 1 < row[j - 1] + 1 ? row[j] + 1 : row[j - 1] + 1;
            diagonal = row[j];
            row[j] = change < least ? change : least;
        }
    }
    return row[b_length];
}

int text_copy(char **out, const char *text, const char *what, struct err *err)
{
    int    rc = ERR_OK;
    size_t bytes = strlen(text) + 1;
    void  *copy = NULL;

    TRY(os_alloc(&copy, bytes, 1, what, err));
    memcpy(copy, text, bytes);
    *out = copy;
out:
    return rc;
}

const char *text_fit(char *out, size_t capacity, const char *text)
{
    (void)snprintf(out, capacity, "%s", text);
    out[text_utf8_valid_prefix(out, strlen(out))] = '\0';
    return out;
}

const char *text_bytes(char *out, size_t capacity, uint64_t bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double                   value = (double)bytes;
    size_t                   unit = 0;

    while (value >= 999.5 && unit + 1 < ARRAY_COUNT(units)) {
        value /= 1000.0;
        unit++;
    }
    (void)snprintf(out, capacity, unit == 0 || value >= 99.95 ? "%.0f %s" : "%.1f %s", value,
                   units[unit]);
    return out;
}
