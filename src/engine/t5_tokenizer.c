/*
 * t5_tokenizer.c - T5's Unigram tokenizer: a prompt in, ids of the text encoder out.
 *
 * Owns the folder's settings and the way from normal text to words to ids.  Knows nothing of the
 * encoder.
 *
 * A folder is read in one of two ways, and both give the same ids:
 *     tokenizer.json    pieces, charsmap (in base64) and special tokens
 *     spiece.model      pieces and charsmap in a protobuf message, when there is no tokenizer.json;
 *                       "<extra_id_99>" to "<extra_id_0>" follow the pieces
 *
 * The order is the reference's fast tokenizer's: literals that are looked for in raw text, normal
 * text, literals that are looked for in normal text, words, pieces.
 *
 * A word begins with U+2581 (T5_MARK), which stands for spaces.  The first word of a prompt gets
 * one that the prompt does not have; where the folder says so, the first after a literal does too.
 *
 * Read next: t5_charsmap.c, which makes normal text; t5_spiece.c, which keeps the pieces; t5.c.
 */
#include "engine/engine_int.h"
#include "engine/tokenizer_int.h"

#include <stdio.h>
#include <string.h>

enum {
    EXTRA_IDS = 100, /* what T5 was trained with, when tokenizer_config.json does not say */
    EXTRA_IDS_MOST = 1000
};

struct t5_tokenizer {
    struct token_rules *rules;
    struct t5_charsmap  charsmap;
    struct t5_pieces    pieces;
    int32_t             pad_id, end_id, id_limit;
    uint32_t            max;
    bool                marks_all; /* also a word right after a literal gets a mark */
};

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

/* Strip and Replace are T5's own, which t5_charsmap_normalise does anyway. */
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
                  "Precompiled (once), Strip and Replace", tokenizer->pieces.file, i);
        TRY(base64_decode(&data, &bytes, text, tokenizer->pieces.file, err));
        if (bytes == 0) continue;
        TRY(t5_charsmap_open(&tokenizer->charsmap, data, bytes, tokenizer->pieces.file, err));
    }
out:
    os_free(data);
    return rc;
}

/* Metaspace, alone or after WhitespaceSplit: transformers 5 writes the latter into the files it
 * saves.  A file without the key is taken as T5's own. */
static int read_pre_tokenizer(struct t5_tokenizer *tokenizer, const json_t *steps, struct err *err)
{
    int           rc = ERR_OK;
    const char   *file = tokenizer->pieces.file, *mark, *scheme;
    const json_t *list = json_object_get(steps, "pretokenizers"), *marks = steps;
    bool          cuts = true;

    if (steps == NULL) goto out;
    if (has_type(steps, "Sequence") && json_array_size(list) == 2 &&
        has_type(json_array_get(list, 0), "WhitespaceSplit")) {
        tokenizer->charsmap.any_space = true;
        marks = json_array_get(list, 1);
    }
    TRY(json_read_bool(&tokenizer->marks_all, marks, file, "add_prefix_space", true, err));
    TRY(json_read_bool(&cuts, marks, file, "split", true, err));
    mark = json_string_value(json_object_get(marks, "replacement"));
    scheme = json_string_value(json_object_get(marks, "prepend_scheme"));
    if (scheme == NULL) scheme = tokenizer->marks_all ? "always" : "never";
    tokenizer->marks_all = strcmp(scheme, "always") == 0;
    if (!has_type(marks, "Metaspace") || mark == NULL || strcmp(mark, T5_MARK) != 0 || !cuts ||
        (!tokenizer->marks_all && (tokenizer->charsmap.any_space || strcmp(scheme, "first") != 0)))
        RAISE(err, ERR_FORMAT, 0, "'%s': pre_tokenizer is not T5's: Metaspace that cuts at U+2581, "
              "or WhitespaceSplit and a Metaspace that marks every word", file);
out:
    return rc;
}

static int read_vocab(struct t5_tokenizer *tokenizer, const json_t *list, struct err *err)
{
    int      rc = ERR_OK;
    size_t   count = json_array_size(list); /* 0 when it is no list */
    uint64_t text_bytes = 0;

    for (size_t i = 0; i < count; i++)
        text_bytes += json_string_length(json_array_get(json_array_get(list, i), 0));
    TRY(t5_spiece_alloc(&tokenizer->pieces, count, text_bytes, err));
    for (size_t i = 0; i < count; i++) {
        const json_t *entry = json_array_get(list, i);
        const json_t *text = json_array_get(entry, 0), *score = json_array_get(entry, 1);
        if (!json_is_string(text) || !json_is_number(score))
            RAISE(err, ERR_FORMAT, 0, "'%s': piece %zu is not a pair of text and score",
                  tokenizer->pieces.file, i);
        TRY(t5_spiece_add(&tokenizer->pieces, json_string_value(text), json_string_length(text),
                          json_number_value(score), err));
    }
out:
    return rc;
}

static int read_tokenizer_json(struct t5_tokenizer *tokenizer, struct err *err)
{
    const struct json_int_rule unknown_rule = {"unk_id", 0, TOKEN_ID_LIMIT - 1, false, 2};
    int                        rc = ERR_OK;
    const char                *file = tokenizer->pieces.file;
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
    tokenizer->pieces.unknown_id = (int32_t)unknown;
    TRY(read_normalizer(tokenizer, json_object_get(root, "normalizer"), err));
    TRY(read_pre_tokenizer(tokenizer, json_object_get(root, "pre_tokenizer"), err));
    TRY(token_rules_add_list(tokenizer->rules, json_object_get(root, "added_tokens"), file, err));
    TRY(read_vocab(tokenizer, json_object_get(model, "vocab"), err));
out:
    json_decref(root);
    return rc;
}

/* -------------------------------------------------------------------------------- spiece.model */

static int read_spiece(struct t5_tokenizer *tokenizer, struct err *err)
{
    const struct json_int_rule extra_rule = {"extra_ids", 0, EXTRA_IDS_MOST, false, EXTRA_IDS};
    const struct token_rules  *rules = tokenizer->rules;
    struct t5_pieces          *pieces = &tokenizer->pieces;
    int                        rc = ERR_OK;
    char                      *data = NULL, name[24];
    size_t                     bytes = 0;
    int64_t                    extra = 0;

    TRY(token_rules_add_decoder(tokenizer->rules, err));
    TRY(json_read_int(&extra, token_rules_config(rules), token_rules_config_path(rules),
                      &extra_rule, err));
    TRY(json_read_bool(&tokenizer->marks_all, token_rules_config(rules),
                       token_rules_config_path(rules), "legacy", false, err));
    TRY(os_read_text(&data, &bytes, pieces->file, TOKEN_FILE_BYTES, err));
    TRY(t5_spiece_read(pieces, &tokenizer->charsmap, (const uint8_t *)data, bytes, (uint32_t)extra,
                       err));
    while (extra-- > 0) {
        int                  length = snprintf(name, sizeof name, "<extra_id_%d>", (int)extra);
        struct token_literal literal = {name, (size_t)length, (int32_t)pieces->count, false};
        TRY(t5_spiece_add(pieces, name, (size_t)length, 0.0, err));
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
    int32_t *ids[] = {&tokenizer->pieces.unknown_id, &tokenizer->pad_id, &tokenizer->end_id};
    int      rc = ERR_OK;

    for (uint32_t i = 0; i < ARRAY_COUNT(roles); i++) {
        const char                 *name = token_rules_name(tokenizer->rules, roles[i], names[i]);
        const struct token_literal *listed = token_rules_named(tokenizer->rules, name);
        struct token_literal        literal = {(char *)(uintptr_t)name, strlen(name), 0, false};
        if (i > 0 && listed != NULL)
            *ids[i] = listed->id;
        else if (*ids[i] >= tokenizer->id_limit)
            RAISE(err, ERR_FORMAT, 0, "'%s': %s has id %d but there are only %d pieces",
                  tokenizer->pieces.file, roles[i], *ids[i], tokenizer->id_limit);
        literal.id = *ids[i];
        if (add && literal.bytes > 0) TRY(token_rules_add(tokenizer->rules, &literal, err));
    }
    for (uint32_t i = 0; i < token_rules_count(tokenizer->rules); i++) {
        const struct token_literal *literal = token_rules_at(tokenizer->rules, i);
        if (literal->normalized && memchr(literal->text, ' ', literal->bytes) != NULL)
            RAISE(err, ERR_FORMAT, 0, "'%s': special token %u is 'normalized' and has a space, "
                  "which is not supported", tokenizer->pieces.file, i);
        if (literal->normalized && tokenizer->marks_all)
            RAISE(err, ERR_FORMAT, 0, "'%s': special token %u is 'normalized' while every word is "
                  "marked, which is not supported", tokenizer->pieces.file, i);
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
    tokenizer->pieces.file = path;
    tokenizer->end_id = 1;
    tokenizer->pieces.unknown_id = 2;
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
    tokenizer->id_limit = (int32_t)tokenizer->pieces.count;
    t5_spiece_sort(&tokenizer->pieces);
    TRY(find_specials(tokenizer, !json, err));
    tokenizer->pieces.file = NULL;
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
    t5_charsmap_close(&tokenizer->charsmap);
    t5_spiece_free(&tokenizer->pieces);
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
static void find_cuts(const struct t5_pieces *pieces, struct cut *cuts, const char *word,
                      size_t bytes)
{
    size_t length = 0;

    for (size_t i = 0; i <= bytes; i++) cuts[i] = (struct cut){0.0, 0, CUT_NONE};
    for (size_t at = 0; at < bytes; at += length) {
        struct t5_walk         walk = {pieces->list, 0, pieces->count, 0};
        const struct t5_piece *piece = NULL;
        double                 score = cuts[at].score;
        bool                   known = false; /* this character is a piece */

        (void)token_rules_character(&length, word + at, bytes - at);
        for (size_t end = at; end < bytes && t5_spiece_walk(&piece, &walk, word[end]);) {
            end++;
            if (piece == NULL) continue;
            offer(&cuts[end], score + piece->score, piece->id, at);
            known = known || end - at == length;
        }
        if (!known)
            offer(&cuts[at + length], score + pieces->unknown_score, pieces->unknown_id, at);
    }
}

/* Cuts a word; its ids are then in work->cuts from the place returned up to `bytes`.  Unknown
 * characters in a row become one id. */
static size_t cut_word(struct work *work, const char *word, size_t bytes)
{
    const int32_t unknown_id = work->tokenizer->pieces.unknown_id;
    struct cut   *cuts = work->cuts;
    size_t        first = bytes + 1;

    find_cuts(&work->tokenizer->pieces, cuts, word, bytes);
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
        const char *mark = memmem(text + at + 1, bytes - at - 1, T5_MARK, T5_MARK_BYTES);
        end = mark == NULL ? bytes : (size_t)(mark - text);
        for (size_t i = cut_word(work, text + at, end - at); i <= end - at && more; i++)
            more = put(work, work->cuts[i].id);
    }
    return more;
}

/* Raw text between two literals; `marked`: its first word gets a mark.  *more_out: whether later
 * text can matter. */
static int encode_span(bool *more_out, struct work *work, const char *text, size_t bytes,
                       bool marked, struct err *err)
{
    const struct token_rules   *rules = work->tokenizer->rules;
    const struct token_literal *literal;
    int                         rc = ERR_OK;
    char                       *normal = NULL;
    void                       *cuts = NULL;
    size_t                      from = T5_MARK_BYTES, start = 0;

    /* the mark of the first word lies ready before the text and may stay unused */
    TRY(t5_charsmap_normalise(&normal, &bytes, &work->tokenizer->charsmap, text, bytes, err));
    TRY(os_alloc(&cuts, bytes + 1, sizeof *work->cuts, "the prompt", err));
    work->cuts = cuts;
    while (from < bytes && *more_out) {
        literal = token_rules_find(&start, rules, normal, bytes, from, true);
        if (marked && from == T5_MARK_BYTES && start > from &&
            (bytes < 2 * T5_MARK_BYTES || memcmp(normal + from, T5_MARK, T5_MARK_BYTES) != 0))
            from = 0;
        *more_out = encode_words(work, normal + from, start - from);
        from = start;
        if (literal == NULL || !*more_out) continue;
        *more_out = put(work, literal->id);
        from += literal->bytes;
    }
out:
    os_free(normal);
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
        TRY(encode_span(&more, &work, text + from, start - from,
                        from == 0 || tokenizer->marks_all, err));
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
