/*
 * values.c - the text of one setting into its field, and back into text.
 *
 * Owns how numbers, sizes and switches are written and what is said when they are wrong.  A value
 * is either taken whole or refused: no junk after a number, no overflow, no infinity, nothing
 * clamped.  A refused value leaves the field as it was.
 *
 * Read next: yaml.c, one of the places that text comes from.
 */
#include "config/config_int.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static void *field(struct config *config, const struct setting *row)
{
    return (char *)config + row->offset;
}

const char *values_quote(char out[VALUES_QUOTE_BYTES], const char *text)
{
    enum { ROOM = VALUES_QUOTE_BYTES - 4 };
    size_t length = strlen(text);
    size_t kept = length <= ROOM ? length : ROOM;
    size_t valid = text_utf8_valid_prefix(text, kept);

    /* A cut inside a character is not an error of the user's: step back to its start. */
    if (length > kept && kept - valid < 4) kept = valid;
    for (size_t i = 0; i < kept; i++) {
        unsigned char byte = (unsigned char)text[i];
        out[i] = byte < 0x20 || byte == 0x7F || (i >= valid && byte >= 0x80) ? '?' : text[i];
    }
    memcpy(out + kept, length > kept ? "..." : "", length > kept ? 4 : 1);
    return out;
}

/* ------------------------------------------------------------------------------------- rules */

/* "a|b|c" -> "a, b or c" */
static void list_choices(char *out, size_t capacity, const char *choices)
{
    size_t used = 0;

    for (const char *at = choices; *at != '\0';) {
        size_t      length = strcspn(at, "|");
        bool        final = at[length] == '\0';
        bool        next_is_final = !final && strchr(at + length + 1, '|') == NULL;
        const char *joint = final ? "" : next_is_final ? " or " : ", ";
        int         wrote = snprintf(out + used, capacity - used, "%.*s%s", (int)length, at, joint);
        must(wrote > 0 && (size_t)wrote < capacity - used);
        used += (size_t)wrote;
        at += length + (final ? 0 : 1);
    }
}

void values_rule(char *out, size_t capacity, const struct setting *row)
{
    char low[32], high[32];

    out[0] = '\0';
    if (row->choices != NULL) {
        list_choices(out, capacity, row->choices);
    } else if (row->type == SETTING_SWITCH) {
        (void)snprintf(out, capacity, "true or false");
    } else if (row->type == SETTING_SEED) {
        (void)snprintf(out, capacity, "0..%lld", (long long)INT64_MAX);
    } else if (row->type == SETTING_BYTES) {
        (void)snprintf(out, capacity, "%s to %s", text_bytes(low, sizeof low, (uint64_t)row->least),
                       text_bytes(high, sizeof high, (uint64_t)row->most));
    } else if (row->type == SETTING_SHARE) {
        (void)snprintf(out, capacity, "%.0f%% to %.0f%%", 100 * row->least, 100 * row->most);
    } else if ((row->marks & MARK_ABOVE) != 0) {
        (void)snprintf(out, capacity, "above %g, up to %g", row->least, row->most);
    } else if (row->type == SETTING_INT || row->type == SETTING_NUMBER) {
        (void)snprintf(out, capacity, "%.0f..%.0f", row->least, row->most);
        if (row->multiple > 0) {
            size_t used = strlen(out);
            (void)snprintf(out + used, capacity - used, " and a multiple of %d", row->multiple);
        }
    }
}

/* "<spoken> is '<text>' but must be <kind><rule>" */
static int refuse(const struct setting *row, const char *spoken, const char *text, const char *kind,
                  struct err *err)
{
    char rule[96], shown[VALUES_QUOTE_BYTES];

    values_rule(rule, sizeof rule, row);
    if (text[0] == '\0')
        return err_set(err, ERR_USAGE, 0, ERR_WHERE, "%s is empty but must be %s%s", spoken, kind,
                       rule);
    return err_set(err, ERR_USAGE, 0, ERR_WHERE, "%s is '%s' but must be %s%s", spoken,
                   values_quote(shown, text), kind, rule);
}

/* A choice that ends in ":N" stands for any number there. */
static bool is_choice(const char *choice, size_t length, const char *text)
{
    size_t fixed = length - 1, digits;

    if (length < 2 || strncmp(choice + length - 2, ":N", 2) != 0)
        return strlen(text) == length && strncmp(choice, text, length) == 0;
    if (strncmp(choice, text, fixed) != 0) return false;
    digits = strspn(text + fixed, "0123456789");
    return digits > 0 && digits <= 3 && text[fixed + digits] == '\0';
}

static bool has_choice(const struct setting *row, const char *text)
{
    for (const char *at = row->choices; at != NULL; at = strchr(at, '|')) {
        if (*at == '|') at++;
        if (is_choice(at, strcspn(at, "|"), text)) return true;
    }
    return false;
}

/* ----------------------------------------------------------------------------------- numbers */

/* Only what strtoll and strtod would take without white space, hexadecimals, "inf" or "nan". */
static bool looks_numeric(const char *text, const char *others)
{
    size_t start = text[0] == '-' || text[0] == '+' ? 1 : 0;
    bool   digit = text[start] >= '0' && text[start] <= '9';

    if (!digit && text[start] != '.') return false;
    for (const char *at = text + start; *at != '\0'; at++)
        if ((*at < '0' || *at > '9') && strchr(others, *at) == NULL) return false;
    return true;
}

static bool parse_whole(long long *out, const char *text)
{
    char *end;

    if (!looks_numeric(text, "")) return false;
    errno = 0;
    *out = strtoll(text, &end, 10);
    return errno == 0 && *end == '\0';
}

static bool parse_real(double *out, const char *text)
{
    char *end;

    if (!looks_numeric(text, ".eE+-")) return false;
    *out = strtod(text, &end);
    return *end == '\0' && end != text && isfinite(*out);
}

static int set_int(struct config *config, const struct setting *row, const char *spoken,
                   const char *text, struct err *err)
{
    int       rc = ERR_OK;
    long long value;
    char      rule[96];

    if (!parse_whole(&value, text)) return refuse(row, spoken, text, "a whole number, ", err);
    values_rule(rule, sizeof rule, row);
    if ((double)value < row->least || (double)value > row->most ||
        (row->choices != NULL && !has_choice(row, text)))
        RAISE(err, ERR_USAGE, 0, "%s is %lld%s but must be %s", spoken, value,
              row->unit != NULL ? row->unit : "", rule);
    if (row->multiple > 0 && value % row->multiple != 0)
        RAISE(err, ERR_USAGE, 0, "%s is %lld%s but must be %s; nearest is %lld", spoken, value,
              row->unit != NULL ? row->unit : "", rule,
              (value + row->multiple / 2) / row->multiple * row->multiple);
    *(int32_t *)field(config, row) = (int32_t)value;
out:
    return rc;
}

static int set_seed(struct config *config, const struct setting *row, const char *spoken,
                    const char *text, struct err *err)
{
    long long value;

    if (!parse_whole(&value, text) || value < 0)
        return refuse(row, spoken, text, "a whole number, ", err);
    *(uint64_t *)field(config, row) = (uint64_t)value;
    return ERR_OK;
}

static int set_number(struct config *config, const struct setting *row, const char *spoken,
                      const char *text, struct err *err)
{
    int    rc = ERR_OK;
    double value;
    char   rule[96];

    if (!parse_real(&value, text)) return refuse(row, spoken, text, "a number, ", err);
    values_rule(rule, sizeof rule, row);
    if (value < row->least || value > row->most ||
        ((row->marks & MARK_ABOVE) != 0 && value <= row->least))
        RAISE(err, ERR_USAGE, 0, "%s is %g but must be %s", spoken, value, rule);
    *(double *)field(config, row) = value;
out:
    return rc;
}

/* "15%" or "0.15" */
static int set_share(struct config *config, const struct setting *row, const char *spoken,
                     const char *text, struct err *err)
{
    size_t length = strlen(text);
    bool   percent = length > 0 && text[length - 1] == '%';
    char   number[32];
    double value;

    if (length >= sizeof number) return refuse(row, spoken, text, "a share, ", err);
    (void)snprintf(number, sizeof number, "%.*s", (int)(percent ? length - 1 : length), text);
    if (!parse_real(&value, number)) return refuse(row, spoken, text, "a share, ", err);
    if (percent) value /= 100;
    if (value < row->least || value > row->most) return refuse(row, spoken, text, "a share, ", err);
    *(double *)field(config, row) = value;
    return ERR_OK;
}

static int set_bytes(struct config *config, const struct setting *row, const char *spoken,
                     const char *text, struct err *err)
{
    static const struct {
        const char *name;
        double      bytes;
    } units[] = {{"", 1},
                 {"B", 1},
                 {"kB", 1e3},
                 {"MB", 1e6},
                 {"GB", 1e9},
                 {"TB", 1e12},
                 {"KiB", 1024.0},
                 {"MiB", 1048576.0},
                 {"GiB", 1073741824.0},
                 {"TiB", 1099511627776.0}};
    size_t digits = strspn(text, "0123456789.");
    char   number[32];
    double value, unit = 0;

    for (size_t i = 0; i < ARRAY_COUNT(units); i++)
        if (strcasecmp(text + digits, units[i].name) == 0) unit = units[i].bytes;
    if (digits >= sizeof number || unit <= 0)
        return refuse(row, spoken, text, "a size such as 500MB or 5GB, ", err);
    memcpy(number, text, digits);
    number[digits] = '\0';
    if (!parse_real(&value, number))
        return refuse(row, spoken, text, "a size such as 500MB or 5GB, ", err);
    if (value * unit < row->least || value * unit > row->most)
        return refuse(row, spoken, text, "", err);
    *(uint64_t *)field(config, row) = (uint64_t)(value * unit);
    return ERR_OK;
}

static int set_switch(struct config *config, const struct setting *row, const char *spoken,
                      const char *text, struct err *err)
{
    static const char *const yes[] = {"true", "yes", "on"};
    static const char *const no[] = {"false", "no", "off"};

    for (size_t i = 0; i < ARRAY_COUNT(yes); i++) {
        if (strcasecmp(text, yes[i]) != 0 && strcasecmp(text, no[i]) != 0) continue;
        *(bool *)field(config, row) = strcasecmp(text, yes[i]) == 0;
        return ERR_OK;
    }
    return refuse(row, spoken, text, "", err);
}

/* ------------------------------------------------------------------------------------- words */

static int set_text(struct config *config, const struct setting *row, const char *spoken,
                    const char *text, struct err *err)
{
    int    rc = ERR_OK;
    size_t length = strlen(text);
    size_t valid = text_utf8_valid_prefix(text, length);

    if (row->type == SETTING_TEXT && valid < length)
        RAISE(err, ERR_USAGE, 0, "%s is not UTF-8: byte %zu of %zu is 0x%02x", spoken, valid + 1,
              length, (unsigned char)text[valid]);
    if (length >= row->capacity)
        RAISE(err, ERR_USAGE, 0, "%s has %zu bytes but at most %zu fit", spoken, length,
              row->capacity - 1);
    memcpy(field(config, row), text, length + 1);
out:
    return rc;
}

static int set_choice(struct config *config, const struct setting *row, const char *spoken,
                      const char *text, struct err *err)
{
    if (text[0] == '\0' || !has_choice(row, text)) return refuse(row, spoken, text, "", err);
    must(strlen(text) < row->capacity);
    memcpy(field(config, row), text, strlen(text) + 1);
    return ERR_OK;
}

/* -------------------------------------------------------------------------------------- size */

struct size_parse {
    double w, h;     /* in pixels, or in inches when `dpi` counts */
    double dpi;      /* 0: none given */
    bool   physical; /* w and h are inches */
};

/* "8k", "A2", "A2-landscape": a name, to its size.  Paper is upright unless it says otherwise. */
static bool named_size(struct size_parse *out, const char *name)
{
    static const struct {
        const char *name;
        double      w, h;
    } screens[] = {{"4k", 3840, 2160}, {"8k", 7680, 4320}, {"16k", 15360, 8640}},
      papers[] = {{"A0", 841, 1189}, {"A1", 594, 841}, {"A2", 420, 594}, {"A3", 297, 420},
                  {"A4", 210, 297},  {"A5", 148, 210}, {"A6", 105, 148}};

    for (size_t i = 0; i < ARRAY_COUNT(screens); i++) {
        if (strcasecmp(name, screens[i].name) != 0) continue;
        out->w = screens[i].w;
        out->h = screens[i].h;
        return true;
    }
    for (size_t i = 0; i < ARRAY_COUNT(papers); i++) {
        if (strncasecmp(name, papers[i].name, 2) != 0) continue;
        bool landscape = strcasecmp(name + 2, "-landscape") == 0;
        if (name[2] != '\0' && !landscape) return false;
        out->w = (landscape ? papers[i].h : papers[i].w) / 25.4;
        out->h = (landscape ? papers[i].w : papers[i].h) / 25.4;
        out->physical = true;
        return true;
    }
    return false;
}

/* "7680x4320", "60x90cm", "24x36in" */
static bool measured_size(struct size_parse *out, const char *text)
{
    static const struct {
        const char *name;
        double      inches; /* 0: pixels */
    } units[] = {{"", 0}, {"px", 0}, {"mm", 1 / 25.4}, {"cm", 1 / 2.54}, {"in", 1}};
    size_t w_length = strspn(text, "0123456789.");
    size_t h_length;
    char   number[2][24];

    if (text[w_length] != 'x' && text[w_length] != 'X') return false;
    h_length = strspn(text + w_length + 1, "0123456789.");
    if (w_length >= sizeof number[0] || h_length >= sizeof number[1]) return false;
    (void)snprintf(number[0], sizeof number[0], "%.*s", (int)w_length, text);
    (void)snprintf(number[1], sizeof number[1], "%.*s", (int)h_length, text + w_length + 1);
    if (!parse_real(&out->w, number[0]) || !parse_real(&out->h, number[1])) return false;
    for (size_t i = 0; i < ARRAY_COUNT(units); i++) {
        if (strcasecmp(text + w_length + 1 + h_length, units[i].name) != 0) continue;
        out->physical = units[i].inches > 0;
        if (!out->physical) return strchr(number[0], '.') == NULL && strchr(number[1], '.') == NULL;
        out->w *= units[i].inches;
        out->h *= units[i].inches;
        return true;
    }
    return false;
}

/* "300dpi" or "300" */
static bool resolution(double *out, const char *text)
{
    size_t digits = strspn(text, "0123456789.");
    char   number[24];

    if (digits >= sizeof number) return false;
    if (text[digits] != '\0' && strcasecmp(text + digits, "dpi") != 0) return false;
    (void)snprintf(number, sizeof number, "%.*s", (int)digits, text);
    return parse_real(out, number);
}

static int set_size(struct config *config, const char *spoken, const char *text, struct err *err)
{
    int                   rc = ERR_OK;
    struct size_parse     size = {.dpi = 0};
    char                  shown[VALUES_QUOTE_BYTES], name[48];
    const char           *at = strchr(text, '@');
    const struct setting *width = config_find_key("width"), *dpi = config_find_key("dpi");
    size_t                length = at != NULL ? (size_t)(at - text) : strlen(text);

    (void)snprintf(name, sizeof name, "%.*s", length < sizeof name ? (int)length : 0, text);
    if ((!named_size(&size, name) && !measured_size(&size, name)) ||
        (at != NULL && !resolution(&size.dpi, at + 1)))
        RAISE(err, ERR_USAGE, 0, "%s is '%s' but must be like 8k, 7680x4320 or A2@300dpi", spoken,
              values_quote(shown, text));
    if (size.physical && at == NULL)
        RAISE(err, ERR_USAGE, 0, "%s is '%s', which needs a resolution; for example %s@300dpi",
              spoken, values_quote(shown, text), name);
    if (at != NULL && (size.dpi < dpi->least || size.dpi > dpi->most))
        RAISE(err, ERR_USAGE, 0, "%s asks for %g dpi but it must be %.0f..%.0f", spoken, size.dpi,
              dpi->least, dpi->most);
    if (size.physical) {
        size.w = round(size.w * size.dpi);
        size.h = round(size.h * size.dpi);
    }
    if (size.w < width->least || size.h < width->least || size.w > width->most ||
        size.h > width->most)
        RAISE(err, ERR_USAGE, 0, "%s is %.0f x %.0f px but each side must be %.0f..%.0f px", spoken,
              size.w, size.h, width->least, width->most);
    config->width_px = (int32_t)size.w;
    config->height_px = (int32_t)size.h;
    if (at != NULL) config->dpi = size.dpi;
out:
    return rc;
}

/* ------------------------------------------------------------------------------------- doors */

int values_set(struct config *config, const struct setting *row, const char *spoken,
               const char *text, struct err *err)
{
    switch (row->type) {
    case SETTING_TEXT:
    case SETTING_PATH: return set_text(config, row, spoken, text, err);
    case SETTING_CHOICE: return set_choice(config, row, spoken, text, err);
    case SETTING_INT: return set_int(config, row, spoken, text, err);
    case SETTING_SEED: return set_seed(config, row, spoken, text, err);
    case SETTING_BYTES: return set_bytes(config, row, spoken, text, err);
    case SETTING_NUMBER: return set_number(config, row, spoken, text, err);
    case SETTING_SHARE: return set_share(config, row, spoken, text, err);
    case SETTING_SWITCH: return set_switch(config, row, spoken, text, err);
    case SETTING_SIZE: return set_size(config, spoken, text, err);
    }
    must_fail("a setting has a type", ERR_WHERE);
}

json_t *values_json(const struct config *config, const struct setting *row)
{
    const void *field = (const char *)config + row->offset;

    switch (row->type) {
    case SETTING_TEXT:
    case SETTING_CHOICE:
    case SETTING_PATH: return json_string(field);
    case SETTING_INT: return json_integer(*(const int32_t *)field);
    case SETTING_SEED:
    case SETTING_BYTES: return json_integer((json_int_t) * (const uint64_t *)field);
    case SETTING_SHARE:
    case SETTING_NUMBER: return json_real(*(const double *)field);
    case SETTING_SWITCH: return json_boolean(*(const bool *)field);
    case SETTING_SIZE: return NULL;
    }
    must_fail("a setting has a type", ERR_WHERE);
}
