/*
 * t5_spiece.c - the pieces of a SentencePiece vocabulary: their list, the search in it, and the
 * file spiece.model.
 *
 * Owns the texts and scores of pieces.  Knows nothing of prompts and special tokens.
 *
 * The file is a protobuf message; of its fields these matter:
 *     1, repeated  a piece: 1 text, 2 score (float), 3 kind (2: the unknown piece)
 *     2            training: 3 kind of model (1: Unigram), 35 whether bytes stand in for characters
 *     3            normalisation: 2 charsmap
 *
 * Read next: t5_tokenizer.c, its only user.
 */
#include "engine/tokenizer_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 512 }; /* FLUX.1's longest piece has 20 bytes */

static const double UNKNOWN_PENALTY = 10.0; /* an unknown character costs more than any piece */

/* ---------------------------------------------------------------------------------- the pieces */

int t5_spiece_alloc(struct t5_pieces *pieces, uint64_t count, uint64_t text_bytes, struct err *err)
{
    int   rc = ERR_OK;
    void *memory = NULL;

    if (count == 0 || count > TOKEN_ID_LIMIT)
        RAISE(err, ERR_FORMAT, 0, "'%s' has %llu pieces; 1..%d are supported", pieces->file,
              (unsigned long long)count, TOKEN_ID_LIMIT);
    TRY(os_alloc(&memory, count * sizeof *pieces->list + text_bytes, 1, "T5 pieces", err));
    pieces->list = memory;
    pieces->room = (uint32_t)count;
    pieces->texts = (char *)(pieces->list + count);
    pieces->texts_room = text_bytes;
    pieces->unknown_score = INFINITY;
out:
    return rc;
}

void t5_spiece_free(struct t5_pieces *pieces)
{
    os_free(pieces->list);
    *pieces = (struct t5_pieces){0};
}

int t5_spiece_add(struct t5_pieces *pieces, const char *text, size_t bytes, double score,
                  struct err *err)
{
    int      rc = ERR_OK;
    uint32_t id = pieces->count;
    char    *copy = pieces->texts + pieces->texts_used;

    must(id < pieces->room && bytes <= pieces->texts_room - pieces->texts_used);
    if (bytes == 0 || bytes > PIECE_BYTES || text_utf8_valid_prefix(text, bytes) < bytes)
        RAISE(err, ERR_FORMAT, 0, "'%s': piece %u is not 1..%d bytes of UTF-8", pieces->file, id,
              PIECE_BYTES);
    if (!isfinite(score))
        RAISE(err, ERR_FORMAT, 0, "'%s': piece %u has no finite score", pieces->file, id);
    memcpy(copy, text, bytes);
    pieces->list[id] = (struct t5_piece){copy, (uint32_t)bytes, (int32_t)id, score};
    pieces->texts_used += bytes;
    pieces->count++;
    pieces->unknown_score = fmin(pieces->unknown_score, score - UNKNOWN_PENALTY);
out:
    return rc;
}

/* By text; of the same text, the last id comes first, since the reference takes that one. */
static int compare_pieces(const void *x, const void *y)
{
    const struct t5_piece *a = x, *b = y;
    int order = memcmp(a->text, b->text, a->bytes < b->bytes ? a->bytes : b->bytes);

    if (order != 0) return order;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1;
    return a->id > b->id ? -1 : 1;
}

void t5_spiece_sort(struct t5_pieces *pieces)
{
    qsort(pieces->list, pieces->count, sizeof *pieces->list, compare_pieces);
}

bool t5_spiece_walk(const struct t5_piece **piece_out, struct t5_walk *walk, char byte)
{
    uint32_t bounds[2];

    /* the shortest come first */
    while (walk->first < walk->end && walk->list[walk->first].bytes == walk->depth) walk->first++;
    for (uint32_t side = 0; side < 2; side++) {
        uint32_t first = walk->first, end = walk->end;
        while (first < end) {
            uint32_t middle = first + (end - first) / 2;
            if ((uint8_t)walk->list[middle].text[walk->depth] < (uint8_t)byte + side)
                first = middle + 1;
            else
                end = middle;
        }
        bounds[side] = first;
    }
    *walk = (struct t5_walk){walk->list, bounds[0], bounds[1], walk->depth + 1};
    if (walk->first == walk->end) return false;
    *piece_out = &walk->list[walk->first];
    if ((*piece_out)->bytes != walk->depth) *piece_out = NULL;
    return true;
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
    uint64_t       value; /* WIRE_VARINT; else 0                  */
    struct message inner; /* the bytes of any other wire type     */
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
        RAISE(err, ERR_FORMAT, 0, "'%s' is cut or damaged before byte %zu of a message",
              message->file, message->at);
    out->inner = (struct message){message->data + message->at, (size_t)size, 0, message->file};
    message->at += (size_t)size;
out:
    return rc;
}

static bool field_is(const struct field *field, uint64_t number, uint32_t wire)
{
    return field->number == number && field->wire == wire;
}

static float read_float(const uint8_t *at)
{
    uint32_t bits = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
                    (uint32_t)at[3] << 24;
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static int read_piece(struct t5_pieces *pieces, struct message *message, struct err *err)
{
    enum { TEXT = 1, SCORE = 2, KIND = 3, KIND_UNKNOWN = 2 };
    int            rc = ERR_OK;
    struct field   field;
    struct message text = {.data = (const uint8_t *)""};
    float          score = 0;

    while (message->at < message->bytes) {
        TRY(read_field(&field, message, err));
        if (field_is(&field, TEXT, WIRE_BYTES)) text = field.inner;
        if (field_is(&field, SCORE, WIRE_4)) score = read_float(field.inner.data);
        if (field_is(&field, KIND, WIRE_VARINT) && field.value == KIND_UNKNOWN)
            pieces->unknown_id = (int32_t)pieces->count;
    }
    TRY(t5_spiece_add(pieces, (const char *)text.data, text.bytes, (double)score, err));
out:
    return rc;
}

/* Everything but the pieces. */
static int read_spec(struct t5_charsmap *charsmap, struct field *spec, struct err *err)
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
            TRY(t5_charsmap_open(charsmap, field.inner.data, field.inner.bytes, message->file,
                                 err));
        }
    }
out:
    return rc;
}

int t5_spiece_read(struct t5_pieces *pieces, struct t5_charsmap *charsmap, const uint8_t *data,
                   size_t bytes, uint32_t extra, struct err *err)
{
    enum { PIECE = 1, EXTRA_BYTES = 24 };
    int            rc = ERR_OK;
    struct message message = {.data = data, .bytes = bytes, .file = pieces->file};
    struct field   field;
    uint64_t       count = 0;

    while (message.at < message.bytes) {
        TRY(read_field(&field, &message, err));
        count += field_is(&field, PIECE, WIRE_BYTES);
        TRY(read_spec(charsmap, &field, err));
    }
    if (count == 0) RAISE(err, ERR_FORMAT, 0, "'%s' has no pieces", pieces->file);
    TRY(t5_spiece_alloc(pieces, count + extra, bytes + (uint64_t)extra * EXTRA_BYTES, err));
    for (message.at = 0; message.at < message.bytes;) {
        TRY(read_field(&field, &message, err));
        if (field_is(&field, PIECE, WIRE_BYTES)) TRY(read_piece(pieces, &field.inner, err));
    }
out:
    return rc;
}
