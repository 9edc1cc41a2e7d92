/*
 * t5_tokenizer.c - T5's Unigram tokenizer: a prompt in, ids of the text encoder out.
 *
 * Owns the pieces with their scores, the charsmap that normalises text, and the way from text to
 * ids.  Knows nothing of the encoder.
 *
 * A folder is read in one of two ways, and both give the same ids:
 *     tokenizer.json    pieces, charsmap (in base64) and special tokens
 *     spiece.model      pieces and charsmap in a protobuf message, when there is no tokenizer.json;
 *                       "<extra_id_99>" to "<extra_id_0>" follow the pieces
 *
 * The order is the reference's fast tokenizer's: literals that are looked for in raw text, normal
 * text, literals that are looked for in normal text, words, pieces.
 *
 * A word begins with U+2581 (MARK), which stands for spaces; only the first word of a prompt gets
 * one that the prompt does not have.
 *
 * Read next: token_rules.c, which finds literals; t5.c.
 */
#include "engine/engine_int.h"
#include "engine/tokenizer_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

enum {
    MARK_BYTES = 3,
    PIECE_BYTES = 512, /* FLUX.1's longest piece has 20 bytes                                    */
    EXTRA_IDS = 100,   /* what T5 was trained with, when tokenizer_config.json does not say      */
    EXTRA_IDS_MOST = 1000,
    CLUSTER_BYTES = 6, /* clusters of fewer bytes are normalised as a whole                      */
    NORMAL_BYTES = 16 * TOKEN_PROMPT_BYTES /* NFKC needs 11 bytes per byte at most               */
};

static const char   MARK[MARK_BYTES + 1] = "\xE2\x96\x81";
static const double UNKNOWN_PENALTY = 10.0; /* an unknown character costs more than any piece */

struct piece {
    const char *text; /* in t5_tokenizer.texts, not NUL-terminated */
    uint32_t    bytes;
    int32_t     id;
    double      score;
};

/* A double-array trie from byte strings to replacements. */
struct charsmap {
    uint8_t    *data;    /* u32 bytes of the array, the array, replacements; the rest points here */
    uint32_t    count;   /* units in the array; 0 when text is taken as it is                     */
    const char *strings; /* [bytes], valid UTF-8, each ends in NUL, and so does the last          */
    size_t      bytes;
};

struct t5_tokenizer {
    struct token_rules *rules;
    struct charsmap     charsmap;
    struct piece       *pieces; /* [room]; the first `count` are set, in the end sorted by text */
    char               *texts;  /* [texts_room], in the same block of memory                    */
    uint32_t            count, room;
    uint64_t            texts_used, texts_room;
    double              unknown_score;
    int32_t             pad_id, end_id, unknown_id, id_limit;
    uint32_t            max;
    const char         *file; /* that is being read, for sentences; NULL once open */
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

static uint32_t unit_at(const struct charsmap *map, uint32_t index)
{
    return read_u32(map->data + 4 + 4 * (size_t)index);
}

/* After this, a leaf always has a replacement that is valid UTF-8. */
static int charsmap_open(struct charsmap *map, const uint8_t *data, size_t bytes, const char *file,
                         struct err *err)
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

/* What `text` becomes; NULL when it stays.  As in the reference, the shortest prefix that has a
 * replacement decides, and what follows it in `text` is dropped. */
static const char *charsmap_find(const struct charsmap *map, const char *text, size_t bytes)
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

/* ---------------------------------------------------------------------------------- the pieces */

static int pieces_alloc(struct t5_tokenizer *tokenizer, uint64_t count, uint64_t text_bytes,
                        struct err *err)
{
    int   rc = ERR_OK;
    void *memory = NULL;

    if (count == 0 || count > TOKEN_ID_LIMIT)
        RAISE(err, ERR_FORMAT, 0, "'%s' has %llu pieces; 1..%d are supported", tokenizer->file,
              (unsigned long long)count, TOKEN_ID_LIMIT);
    TRY(os_alloc(&memory, count * sizeof *tokenizer->pieces + text_bytes, 1, "T5 pieces", err));
    tokenizer->pieces = memory;
    tokenizer->room = (uint32_t)count;
    tokenizer->texts = (char *)(tokenizer->pieces + count);
    tokenizer->texts_room = text_bytes;
out:
    return rc;
}

/* The next piece; its id is its place. */
static int pieces_add(struct t5_tokenizer *tokenizer, const char *text, size_t bytes, double score,
                      struct err *err)
{
    int           rc = ERR_OK;
    uint32_t      id = tokenizer->count;
    struct piece *piece = &tokenizer->pieces[id];

    must(id < tokenizer->room && bytes <= tokenizer->texts_room - tokenizer->texts_used);
    if (bytes == 0 || bytes > PIECE_BYTES || text_utf8_valid_prefix(text, bytes) < bytes)
        RAISE(err, ERR_FORMAT, 0, "'%s': piece %u is not 1..%d bytes of UTF-8", tokenizer->file, id,
              PIECE_BYTES);
    if (!isfinite(score))
        RAISE(err, ERR_FORMAT, 0, "'%s': piece %u has no finite score", tokenizer->file, id);
    *piece = (struct piece){tokenizer->texts + tokenizer->texts_used, (uint32_t)bytes, (int32_t)id,
                            score};
    memcpy(tokenizer->texts + tokenizer->texts_used, text, bytes);
    tokenizer->texts_used += bytes;
    tokenizer->count++;
    tokenizer->unknown_score = fmin(tokenizer->unknown_score, score - UNKNOWN_PENALTY);
out:
    return rc;
}

/* By text; of the same text, the last id comes first, since the reference takes that one. */
static int compare_pieces(const void *x, const void *y)
{
    const struct piece *a = x, *b = y;
    int order = memcmp(a->text, b->text, a->bytes < b->bytes ? a->bytes : b->bytes);

    if (order != 0) return order;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1;
    return a->id > b->id ? -1 : 1;
}

/* The pieces that begin with the bytes walked so far: [first, end).  They share `depth` bytes. */
struct walk {
    const struct piece *pieces;
    uint32_t            first, end, depth;
};

/* Goes on by one byte; false when no piece is left.  *piece_out is the piece that is exactly the
 * walked bytes, or NULL. */
static bool walk_byte(const struct piece **piece_out, struct walk *walk, char byte)
{
    uint32_t bounds[2];

    /* the shortest come first */
    while (walk->first < walk->end && walk->pieces[walk->first].bytes == walk->depth) walk->first++;
    for (uint32_t side = 0; side < 2; side++) {
        uint32_t first = walk->first, end = walk->end;
        while (first < end) {
            uint32_t middle = first + (end - first) / 2;
            if ((uint8_t)walk->pieces[middle].text[walk->depth] < (uint8_t)byte + side)
                first = middle + 1;
            else
                end = middle;
        }
        bounds[side] = first;
    }
    *walk = (struct walk){walk->pieces, bounds[0], bounds[1], walk->depth + 1};
    if (walk->first == walk->end) return false;
    *piece_out = &walk->pieces[walk->first];
    if ((*piece_out)->bytes != walk->depth) *piece_out = NULL;
    return true;
}

/* ------------------------------------------------------------------------------ tokenizer.json */

/* *out is new memory, freed by os_free. */
static int base64_decode(uint8_t **out, size_t *bytes_out, const char *text, const char *file,
                         struct err *err)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    int               rc = ERR_OK;
    size_t            length = strlen(text), used = 0, count = length;
    uint32_t          bits = 0;
    void             *memory = NULL;

    TRY(os_alloc(&memory, length + 1, 1, "the T5 charsmap", err));
    while (count > 0 && length - count < 2 && text[count - 1] == '=') count--;
    for (size_t i = 0; i < count; i++) {
        const char *digit = strchr(digits, text[i]);
        if (length % 4 != 0 || digit == NULL)
            RAISE(err, ERR_FORMAT, 0, "'%s': precompiled_charsmap is not base64 at byte %zu of %zu",
                  file, i, length);
        bits = bits << 6 | (uint32_t)(digit - digits);
        if (i % 4 != 0) ((uint8_t *)memory)[used++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
    }
    *out = memory;
    *bytes_out = used;
    memory = NULL;
out:
    os_free(memory);
    return rc;
}

static bool has_type(const json_t *object, const char *type)
{
    const char *text = json_string_value(json_object_get(object, "type"));
    return text != NULL && strcmp(text, type) == 0;
}

/* Strip and Replace are T5's own, which normalise() does anyway. */
static int read_normalizer(struct t5_tokenizer *tokenizer, const json_t *normalizer,
                           struct err *err)
{
    int           rc = ERR_OK;
    bool          many = has_type(normalizer, "Sequence");
    const json_t *steps = json_object_get(normalizer, "normalizers");
    size_t        bytes = 0, count = many ? json_array_size(steps) : 1;
    uint8_t      *data = NULL;

    if (normalizer == NULL || json_is_null(normalizer)) goto out;
    for (size_t i = 0; i < count; i++) {
        const json_t *step = many ? json_array_get(steps, i) : normalizer;
        const char   *text = json_string_value(json_object_get(step, "precompiled_charsmap"));
        if (has_type(step, "Strip") || has_type(step, "Replace")) continue;
        if (!has_type(step, "Precompiled") || text == NULL || data != NULL)
            RAISE(err, ERR_FORMAT, 0, "'%s': step %zu of the normalizer is not one of T5's: "
                  "Precompiled (once), Strip and Replace", tokenizer->file, i);
        TRY(base64_decode(&data, &bytes, text, tokenizer->file, err));
        if (bytes == 0) continue;
        TRY(charsmap_open(&tokenizer->charsmap, data, bytes, tokenizer->file, err));
    }
out:
    os_free(data);
    return rc;
}

static int read_vocab(struct t5_tokenizer *tokenizer, const json_t *list, struct err *err)
{
    int      rc = ERR_OK;
    size_t   count = json_array_size(list); /* 0 when it is no list */
    uint64_t text_bytes = 0;

    for (size_t i = 0; i < count; i++)
        text_bytes += json_string_length(json_array_get(json_array_get(list, i), 0));
    TRY(pieces_alloc(tokenizer, count, text_bytes, err));
    for (size_t i = 0; i < count; i++) {
        const json_t *entry = json_array_get(list, i);
        const json_t *text = json_array_get(entry, 0), *score = json_array_get(entry, 1);
        if (!json_is_string(text) || !json_is_number(score))
            RAISE(err, ERR_FORMAT, 0, "'%s': piece %zu is not a pair of text and score",
                  tokenizer->file, i);
        TRY(pieces_add(tokenizer, json_string_value(text), json_string_length(text),
                       json_number_value(score), err));
    }
out:
    return rc;
}

static int read_tokenizer_json(struct t5_tokenizer *tokenizer, struct err *err)
{
    const struct json_int_rule unknown_rule = {"unk_id", 0, TOKEN_ID_LIMIT - 1, false, 2};
    int                        rc = ERR_OK;
    const char                *file = tokenizer->file;
    json_t                    *root = NULL;
    const json_t              *model;
    int64_t                    unknown = 0;
    bool                       bytes = false;

    TRY(json_file_open(&root, file, TOKEN_FILE_BYTES, err));
    model = json_object_get(root, "model");
    if (!has_type(model, "Unigram"))
        RAISE(err, ERR_FORMAT, 0, "'%s': model must be of type Unigram", file);
    TRY(json_read_bool(&bytes, model, file, "byte_fallback", false, err));
    if (bytes) RAISE(err, ERR_FORMAT, 0, "'%s': byte_fallback is not supported", file);
    TRY(json_read_int(&unknown, model, file, &unknown_rule, err));
    tokenizer->unknown_id = (int32_t)unknown;
    TRY(read_normalizer(tokenizer, json_object_get(root, "normalizer"), err));
    TRY(token_rules_add_list(tokenizer->rules, json_object_get(root, "added_tokens"), file, err));
    TRY(read_vocab(tokenizer, json_object_get(model, "vocab"), err));
out:
    json_decref(root);
    return rc;
}

/* -------------------------------------------------------------------------------- spiece.model */

/* A protobuf message: fields, each a key (number << 3 | wire) and what the wire type says. */
struct message {
    const uint8_t *data;
    size_t         bytes, at;
    const char    *file;
};

enum { WIRE_VARINT = 0, WIRE_8 = 1, WIRE_BYTES = 2, WIRE_4 = 5 };

struct field {
    uint64_t       number;
    uint32_t       wire;
    uint64_t       value; /* WIRE_VARINT, WIRE_4     */
    struct message inner; /* WIRE_BYTES; else unused */
};

static int read_varint(uint64_t *out, struct message *message, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t value = 0;

    for (uint32_t shift = 0; shift < 64 && message->at < message->bytes; shift += 7) {
        uint8_t byte = message->data[message->at++];
        value |= (uint64_t)(byte & 0x7F) << shift;
        *out = value;
        if (byte < 0x80) goto out;
    }
    RAISE(err, ERR_FORMAT, 0, "'%s' is cut or damaged: a number does not end", message->file);
out:
    return rc;
}

/* The next field; message->at < message->bytes. */
static int read_field(struct field *out, struct message *message, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t key = 0, size = 0;

    *out = (struct field){0};
    TRY(read_varint(&key, message, err));
    out->number = key >> 3;
    out->wire = key & 7;
    if (out->wire == WIRE_VARINT)
        TRY(read_varint(&out->value, message, err));
    else if (out->wire == WIRE_BYTES)
        TRY(read_varint(&size, message, err));
    else
        size = out->wire == WIRE_4 ? 4 : out->wire == WIRE_8 ? 8 : UINT64_MAX;
    if (size > message->bytes - message->at)
        RAISE(err, ERR_FORMAT, 0, "'%s' is cut or damaged before byte %zu of a message", message->file,
              message->at);
    if (out->wire == WIRE_4) out->value = read_u32(message->data + message->at);
    out->inner = (struct message){message->data + message->at, (size_t)size, 0, message->file};
    message->at += (size_t)size;
out:
    return rc;
}

static bool field_is(const struct field *field, uint64_t number, uint32_t wire)
{
    return field->number == number && field->wire == wire;
}

static int read_piece(struct t5_tokenizer *tokenizer, struct message *message, struct err *err)
{
    enum { TEXT = 1, SCORE = 2, KIND = 3, KIND_UNKNOWN = 2 };
    int            rc = ERR_OK;
    struct field   field;
    struct message text = {.data = (const uint8_t *)""};
    float          score = 0;

    while (message->at < message->bytes) {
        TRY(read_field(&field, message, err));
        if (field_is(&field, TEXT, WIRE_BYTES)) text = field.inner;
        if (field_is(&field, SCORE, WIRE_4)) {
            uint32_t bits = (uint32_t)field.value;
            memcpy(&score, &bits, sizeof score);
        }
        if (field_is(&field, KIND, WIRE_VARINT) && field.value == KIND_UNKNOWN)
            tokenizer->unknown_id = (int32_t)tokenizer->count;
    }
    TRY(pieces_add(tokenizer, (const char *)text.data, text.bytes, (double)score, err));
out:
    return rc;
}

/* Everything but the pieces. */
static int read_spec(struct t5_tokenizer *tokenizer, struct field *spec, struct err *err)
{
    enum { TRAINER = 2, TRAINER_KIND = 3, KIND_UNIGRAM = 1, TRAINER_BYTES = 35,
           NORMALIZER = 3, NORMALIZER_CHARSMAP = 2 };
    int             rc = ERR_OK;
    struct message *message = &spec->inner;
    struct field    field;

    if (!field_is(spec, TRAINER, WIRE_BYTES) && !field_is(spec, NORMALIZER, WIRE_BYTES)) goto out;
    while (message->at < message->bytes) {
        TRY(read_field(&field, message, err));
        if (spec->number == TRAINER) {
            if (field_is(&field, TRAINER_KIND, WIRE_VARINT) && field.value != KIND_UNIGRAM)
                RAISE(err, ERR_FORMAT, 0, "'%s' is not a Unigram model", message->file);
            if (field_is(&field, TRAINER_BYTES, WIRE_VARINT) && field.value != 0)
                RAISE(err, ERR_FORMAT, 0, "'%s': byte_fallback is not supported", message->file);
        } else if (field_is(&field, NORMALIZER_CHARSMAP, WIRE_BYTES) && field.inner.bytes > 0) {
            TRY(charsmap_open(&tokenizer->charsmap, field.inner.data, field.inner.bytes,
                              message->file, err));
        }
    }
out:
    return rc;
}

static int read_spiece(struct t5_tokenizer *tokenizer, struct err *err)
{
    enum { PIECE = 1 };
    const struct json_int_rule extra_rule = {"extra_ids", 0, EXTRA_IDS_MOST, false, EXTRA_IDS};
    const struct token_rules  *rules = tokenizer->rules;
    int                        rc = ERR_OK;
    char                      *data = NULL, name[24];
    struct message             message = {.file = tokenizer->file};
    struct field               field;
    int64_t                    extra = 0;
    uint64_t                   count = 0;

    TRY(token_rules_add_decoder(tokenizer->rules, err));
    TRY(json_read_int(&extra, token_rules_config(rules), token_rules_config_path(rules),
                      &extra_rule, err));
    TRY(os_read_text(&data, &message.bytes, message.file, TOKEN_FILE_BYTES, err));
    message.data = (const uint8_t *)data;
    while (message.at < message.bytes) {
        TRY(read_field(&field, &message, err));
        count += field_is(&field, PIECE, WIRE_BYTES);
        TRY(read_spec(tokenizer, &field, err));
    }
    TRY(pieces_alloc(tokenizer, count + (uint64_t)extra,
                     message.bytes + (uint64_t)extra * sizeof "<extra_id_999>", err));
    for (message.at = 0; message.at < message.bytes;) {
        TRY(read_field(&field, &message, err));
        if (field_is(&field, PIECE, WIRE_BYTES)) TRY(read_piece(tokenizer, &field.inner, err));
    }
    while (extra-- > 0) {
        int                  bytes = snprintf(name, sizeof name, "<extra_id_%d>", (int)extra);
        struct token_literal literal = {name, (size_t)bytes, (int32_t)tokenizer->count, false};
        TRY(pieces_add(tokenizer, name, (size_t)bytes, 0.0, err));
        TRY(token_rules_add(tokenizer->rules, &literal, err));
    }
out:
    os_free(data);
    return rc;
}

/* ---------------------------------------------------------------------------------- the folder */

/* Pad and end are as listed, or T5's, which open has set.  spiece.model lists no literals, so there
 * (`add`) these three become ones. */
static int find_specials(struct t5_tokenizer *tokenizer, bool add, struct err *err)
{
    static const char *const roles[] = {"unk_token", "pad_token", "eos_token"};
    static const char *const names[] = {"<unk>", "<pad>", "</s>"};
    int32_t *ids[] = {&tokenizer->unknown_id, &tokenizer->pad_id, &tokenizer->end_id};
    int      rc = ERR_OK;

    for (uint32_t i = 0; i < ARRAY_COUNT(roles); i++) {
        const char                 *name = token_rules_name(tokenizer->rules, roles[i], names[i]);
        const struct token_literal *listed = token_rules_named(tokenizer->rules, name);
        struct token_literal        literal = {(char *)(uintptr_t)name, strlen(name), 0, false};
        if (i > 0 && listed != NULL)
            *ids[i] = listed->id;
        else if (*ids[i] >= tokenizer->id_limit)
            RAISE(err, ERR_FORMAT, 0, "'%s': %s has id %d but there are only %d pieces",
                  tokenizer->file, roles[i], *ids[i], tokenizer->id_limit);
        literal.id = *ids[i];
        if (add && literal.bytes > 0) TRY(token_rules_add(tokenizer->rules, &literal, err));
    }
    for (uint32_t i = 0; i < token_rules_count(tokenizer->rules); i++) {
        const struct token_literal *literal = token_rules_at(tokenizer->rules, i);
        if (literal->normalized && memchr(literal->text, ' ', literal->bytes) != NULL)
            RAISE(err, ERR_FORMAT, 0, "'%s': special token %u is 'normalized' and has a space, "
                  "which is not supported", tokenizer->file, i);
        tokenizer->id_limit = (int32_t)max_i64(tokenizer->id_limit, literal->id + 1);
    }
out:
    return rc;
}

int t5_tokenizer_open(struct t5_tokenizer **out, const char *folder, struct err *err)
{
    int                  rc = ERR_OK;
    struct t5_tokenizer *tokenizer = NULL;
    void                *memory = NULL;
    char                 path[TOKEN_PATH_BYTES];
    bool                 json;

    TRY(os_alloc(&memory, 1, sizeof *tokenizer, "the T5 tokenizer", err));
    tokenizer = memory;
    tokenizer->unknown_score = INFINITY;
    tokenizer->file = path;
    tokenizer->end_id = 1;
    tokenizer->unknown_id = 2;
    TRY(token_rules_open(&tokenizer->rules, folder, err));
    TRY(token_rules_max(&tokenizer->max, tokenizer->rules, 512, err));
    TRY(token_rules_path(path, folder, "tokenizer.json", err));
    json = os_is_file(path);
    if (json) {
        TRY(read_tokenizer_json(tokenizer, err));
    } else {
        TRY(token_rules_path(path, folder, "spiece.model", err));
        if (!os_is_file(path))
            RAISE(err, ERR_IO, 0, "'%s' has neither tokenizer.json nor spiece.model", folder);
        TRY(read_spiece(tokenizer, err));
    }
    tokenizer->id_limit = (int32_t)tokenizer->count;
    qsort(tokenizer->pieces, tokenizer->count, sizeof *tokenizer->pieces, compare_pieces);
    TRY(find_specials(tokenizer, !json, err));
    tokenizer->file = NULL;
    *out = tokenizer;
    tokenizer = NULL;
out:
    t5_tokenizer_close(tokenizer);
    if (rc != ERR_OK) err_context(err, "T5 tokenizer");
    return rc;
}

void t5_tokenizer_close(struct t5_tokenizer *tokenizer)
{
    if (tokenizer == NULL) return;
    token_rules_close(tokenizer->rules);
    os_free(tokenizer->charsmap.data);
    os_free(tokenizer->pieces);
    os_free(tokenizer);
}

uint32_t t5_tokenizer_max(const struct t5_tokenizer *tokenizer)
{
    return tokenizer->max;
}

int32_t t5_tokenizer_id_limit(const struct t5_tokenizer *tokenizer)
{
    return tokenizer->id_limit;
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
static int apply_charsmap(struct text *out, const struct charsmap *map, const char *text,
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

/* Adds to `out`: `text` after the charsmap, without white space at its end, MARK for every run of
 * spaces. */
static int normalise(struct text *out, const struct charsmap *map, const char *text, size_t bytes,
                     struct err *err)
{
    int         rc = ERR_OK;
    struct text mapped = {0};
    size_t      end = 0, length = 0;

    TRY(apply_charsmap(&mapped, map, text, bytes, err));
    for (size_t at = 0; at < mapped.bytes; at += length) {
        int32_t code = token_rules_character(&length, mapped.data + at, mapped.bytes - at);
        if (!token_rules_is_space(code)) end = at + length;
    }
    for (size_t at = 0; at < end; at++) {
        if (mapped.data[at] != ' ')
            TRY(text_add(out, mapped.data + at, 1, err));
        else if (at == 0 || mapped.data[at - 1] != ' ')
            TRY(text_add(out, MARK, MARK_BYTES, err));
    }
out:
    os_free(mapped.data);
    return rc;
}

/* -------------------------------------------------------------------------------------- pieces */

/* The best way to cut a word up to a place: its score and its last piece. */
struct cut {
    double   score;
    int32_t  id;
    uint32_t start; /* of the last piece; CUT_NONE: no way leads here yet */
};

static const uint32_t CUT_NONE = UINT32_MAX;

struct work {
    const struct t5_tokenizer *tokenizer;
    int32_t                   *ids; /* [room] */
    uint32_t                   count, room;
    struct cut                *cuts; /* for one span: one per byte, and one */
};

/* Only a strictly better way replaces an older one: equal scores must fall as in the reference. */
static void offer(struct cut *cut, double score, int32_t id, size_t start)
{
    if (cut->start != CUT_NONE && !(score > cut->score)) return;
    *cut = (struct cut){score, id, (uint32_t)start};
}

/* cuts [bytes + 1] */
static void find_cuts(const struct t5_tokenizer *tokenizer, struct cut *cuts, const char *word,
                      size_t bytes)
{
    size_t length = 0;

    for (size_t i = 0; i <= bytes; i++) cuts[i] = (struct cut){0.0, 0, CUT_NONE};
    for (size_t at = 0; at < bytes; at += length) {
        struct walk         walk = {tokenizer->pieces, 0, tokenizer->count, 0};
        const struct piece *piece = NULL;
        double              score = cuts[at].score;
        bool                known = false; /* this character is a piece */

        (void)token_rules_character(&length, word + at, bytes - at);
        for (size_t end = at; end < bytes && walk_byte(&piece, &walk, word[end]);) {
            end++;
            if (piece == NULL) continue;
            offer(&cuts[end], score + piece->score, piece->id, at);
            known = known || end - at == length;
        }
        if (!known)
            offer(&cuts[at + length], score + tokenizer->unknown_score, tokenizer->unknown_id, at);
    }
}

/* Cuts a word; its ids are then in work->cuts from the place returned up to `bytes`.  Unknown
 * characters in a row become one id. */
static size_t cut_word(struct work *work, const char *word, size_t bytes)
{
    const int32_t unknown_id = work->tokenizer->unknown_id;
    struct cut   *cuts = work->cuts;
    size_t        first = bytes + 1;

    find_cuts(work->tokenizer, cuts, word, bytes);
    /* an id takes at least a byte, so it is never written to a place that is still to be read */
    for (size_t end = bytes; end > 0; end = cuts[end].start) {
        int32_t id = cuts[end].id;
        if (id == unknown_id && first <= bytes && cuts[first].id == unknown_id) continue;
        cuts[--first].id = id;
    }
    return first;
}

/* -------------------------------------------------------------------------------------- encode */

/* False when nothing more fits. */
static bool put(struct work *work, int32_t id)
{
    must(work->count < work->room);
    work->ids[work->count++] = id;
    return work->count < work->room;
}

/* Normal text between two literals, word by word. */
static bool encode_words(struct work *work, const char *text, size_t bytes)
{
    bool more = true;

    for (size_t at = 0, end; at < bytes && more; at = end) {
        const char *mark = memmem(text + at + 1, bytes - at - 1, MARK, MARK_BYTES);
        end = mark == NULL ? bytes : (size_t)(mark - text);
        for (size_t i = cut_word(work, text + at, end - at); i <= end - at && more; i++)
            more = put(work, work->cuts[i].id);
    }
    return more;
}

/* Raw text between two literals; `first`: it is the start of the prompt.  *more_out: whether later
 * text can matter. */
static int encode_span(bool *more_out, struct work *work, const char *text, size_t bytes,
                       bool first, struct err *err)
{
    const struct token_rules   *rules = work->tokenizer->rules;
    const struct token_literal *literal;
    int                         rc = ERR_OK;
    struct text                 normal = {0};
    void                       *cuts = NULL;
    size_t                      from = MARK_BYTES, start = 0;

    /* the MARK of the first word lies ready before the text and may stay unused */
    TRY(text_add(&normal, MARK, MARK_BYTES, err));
    TRY(normalise(&normal, &work->tokenizer->charsmap, text, bytes, err));
    TRY(os_alloc(&cuts, normal.bytes + 1, sizeof *work->cuts, "the prompt", err));
    work->cuts = cuts;
    while (from < normal.bytes && *more_out) {
        literal = token_rules_find(&start, rules, normal.data, normal.bytes, from, true);
        if (first && from == MARK_BYTES && start > from &&
            (normal.bytes < 2 * MARK_BYTES || memcmp(normal.data + from, MARK, MARK_BYTES) != 0))
            from = 0;
        *more_out = encode_words(work, normal.data + from, start - from);
        from = start;
        if (literal == NULL || !*more_out) continue;
        *more_out = put(work, literal->id);
        from += literal->bytes;
    }
out:
    os_free(normal.data);
    os_free(cuts);
    return rc;
}

int t5_tokenizer_encode(const struct t5_tokenizer *tokenizer, const char *text, uint32_t length,
                        int32_t *ids_out, uint32_t *used_out, struct err *err)
{
    const struct token_literal *literal = NULL;
    int                         rc = ERR_OK;
    size_t                      bytes = 0, from = 0, start = 0;
    struct work                 work = {tokenizer, ids_out, 0, length - 1, NULL};
    bool                        more = length > 1;

    must(length > 0);
    TRY(token_rules_check_prompt(&bytes, text, err));
    while (from < bytes && more) {
        literal = token_rules_find(&start, tokenizer->rules, text, bytes, from, false);
        TRY(encode_span(&more, &work, text + from, start - from, from == 0, err));
        from = start;
        if (literal == NULL || !more) continue;
        more = put(&work, literal->id);
        from += literal->bytes;
    }
    ids_out[work.count] = tokenizer->end_id;
    if (used_out != NULL) *used_out = work.count + 1;
    for (uint32_t i = work.count + 1; i < length; i++) ids_out[i] = tokenizer->pad_id;
out:
    return rc;
}
