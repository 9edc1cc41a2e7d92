/*
 * clip_tokenizer.c - CLIP's byte-level BPE: a prompt in, ids of the text encoder out.
 *
 * Owns the merge table and the way from text to words to ids.  Knows nothing of the encoder.
 *
 * A folder is read in one of three ways:
 *     merges.txt and vocab.json    symbols have the ids of vocab.json
 *     merges.txt alone             ids follow from the order: 256 byte symbols, the same 256 at the
 *                                  end of a word, the merges' products, start, end
 *     tokenizer.json               when there is no merges.txt
 *
 * The order is the reference's fast tokenizer's: literals that are looked for in raw text, normal
 * text, literals that are looked for in normal text, words, symbols, merges.
 *
 * Symbols are written in a printable alphabet: byte 0x20 is the character U+0120 and so on; see
 * byte_character.  The last symbol of a word ends in "</w>".
 *
 * Read next: clip_words.c, which makes the words; clip.c, which takes the ids.
 */
#include "engine/engine_int.h"
#include "engine/tokenizer_int.h"

#include <string.h>

#include <utf8proc.h>

enum { SYMBOL_BYTES = 512, MERGE_LIMIT = 1 << 20, BYTE_SYMBOLS = 256 };

static const char WORD_END[] = "</w>";

struct merge {
    uint64_t pair; /* left id << 32 | right id           */
    uint32_t rank; /* lower ranks are merged first        */
    int32_t  id;   /* of the product; -1: this slot is free */
};

struct clip_tokenizer {
    struct token_rules *rules;
    struct merge       *merges; /* [slots], open addressing; slots is a power of two    */
    uint64_t            slots;
    int32_t             byte_ids[2][BYTE_SYMBOLS]; /* [at the end of its word?][byte]   */
    int32_t             start_id, end_id, id_limit;
    uint32_t            max;
    bool                cuts_specials; /* the pattern knows "<|endoftext|>", see clip_words.c */
};

/* --------------------------------------------------------------------------- the merge table */

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* The slot of this pair, or the free slot where it belongs. */
static struct merge *slot_of(const struct clip_tokenizer *tokenizer, uint64_t pair)
{
    uint64_t at = (pair * UINT64_C(0x9E3779B97F4A7C15)) >> 20;

    for (;; at++) {
        struct merge *slot = &tokenizer->merges[at & (tokenizer->slots - 1)];
        if (slot->id < 0 || slot->pair == pair) return slot;
    }
}

/* Room for `count` merges at half load, so that searches are short and always end. */
static int merges_alloc(struct clip_tokenizer *tokenizer, uint64_t count, const char *file,
                        struct err *err)
{
    int   rc = ERR_OK;
    void *memory = NULL;

    if (count > MERGE_LIMIT)
        RAISE(err, ERR_FORMAT, 0, "'%s' has %llu merges; at most %d are supported", file,
              (unsigned long long)count, MERGE_LIMIT);
    tokenizer->slots = 16;
    while (tokenizer->slots < 2 * count) tokenizer->slots *= 2;
    TRY(os_alloc(&memory, tokenizer->slots, sizeof *tokenizer->merges, "CLIP merges", err));
    tokenizer->merges = memory;
    for (uint64_t i = 0; i < tokenizer->slots; i++) tokenizer->merges[i].id = -1;
out:
    return rc;
}

/* ------------------------------------------------------------------------------- the folder */

/* What is known while a folder is read. */
struct source {
    struct clip_tokenizer *tokenizer;
    json_t                *vocabulary; /* symbol -> id                                    */
    bool                   own_ids;    /* there is no vocab.json: number symbols ourselves */
    const char            *file;       /* of the merges, for sentences                     */
};

/* Id of a symbol; -1 when the vocabulary lacks it. */
static int32_t symbol_id(const json_t *vocabulary, const char *symbol)
{
    const json_t *id = json_object_get(vocabulary, symbol);
    return id == NULL ? -1 : (int32_t)json_integer_value(id);
}

static int append_symbol(struct source *source, const char *symbol, struct err *err)
{
    int     rc = ERR_OK;
    int64_t id = (int64_t)json_object_size(source->vocabulary);

    if (json_object_set_new(source->vocabulary, symbol, json_integer(id)) != 0)
        RAISE(err, ERR_HOST_MEM, 0, "memory: none left for the symbols of '%s'", source->file);
out:
    return rc;
}

/* `left` and `right` are NUL-terminated; `rank` counts from 0. */
static int add_merge(struct source *source, const char *left, const char *right, uint32_t rank,
                     struct err *err)
{
    int           rc = ERR_OK;
    char          product[2 * SYMBOL_BYTES + 1];
    size_t        left_bytes = strlen(left), right_bytes = strlen(right);
    int32_t       left_id = symbol_id(source->vocabulary, left);
    int32_t       right_id = symbol_id(source->vocabulary, right);
    struct merge *slot;

    if (left_bytes > SYMBOL_BYTES || right_bytes > SYMBOL_BYTES)
        RAISE(err, ERR_FORMAT, 0, "'%s': merge %u has a symbol of more than %d bytes", source->file,
              rank + 1, SYMBOL_BYTES);
    memcpy(product, left, left_bytes);
    memcpy(product + left_bytes, right, right_bytes + 1);
    if (left_id < 0 || right_id < 0)
        RAISE(err, ERR_FORMAT, 0, "'%s': the %s symbol of merge %u is not in the vocabulary",
              source->file, left_id < 0 ? "left" : "right", rank + 1);
    if (source->own_ids) {
        if (symbol_id(source->vocabulary, product) >= 0)
            RAISE(err, ERR_FORMAT, 0, "'%s': merge %u makes a symbol that exists; its id is "
                  "unclear without vocab.json", source->file, rank + 1);
        TRY(append_symbol(source, product, err));
    }
    slot = slot_of(source->tokenizer, pair_of(left_id, right_id));
    if (slot->id >= 0)
        RAISE(err, ERR_FORMAT, 0, "'%s': merge %u repeats merge %u", source->file, rank + 1,
              slot->rank + 1);
    slot->id = symbol_id(source->vocabulary, product);
    slot->pair = pair_of(left_id, right_id);
    slot->rank = rank;
    if (slot->id < 0)
        RAISE(err, ERR_FORMAT, 0, "'%s': the product of merge %u is not in the vocabulary",
              source->file, rank + 1);
out:
    return rc;
}

/* The printable character that stands for a byte: itself where it is visible in Latin-1, else the
 * next free one from U+0100 on. */
static int32_t byte_character(uint32_t byte)
{
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)
        return (int32_t)byte;
    if (byte <= 32) return (int32_t)(256 + byte);
    if (byte <= 160) return (int32_t)(256 + 33 + byte - 127);
    return 256 + 67;
}

static void byte_symbol(char *out, uint32_t byte, bool last)
{
    size_t used =
        (size_t)utf8proc_encode_char(byte_character(byte), (utf8proc_uint8_t *)out);

    memcpy(out + used, last ? WORD_END : "", last ? sizeof WORD_END : 1);
}

/* Visible bytes first, then the others; all of them, then all of them with the end mark. */
static int number_bytes(struct source *source, struct err *err)
{
    int  rc = ERR_OK;
    char symbol[16];

    for (uint32_t pass = 0; pass < 4; pass++) {
        for (uint32_t byte = 0; byte < BYTE_SYMBOLS; byte++) {
            bool visible = byte_character(byte) == (int32_t)byte;
            if (visible != (pass % 2 == 0)) continue;
            byte_symbol(symbol, byte, pass >= 2);
            TRY(append_symbol(source, symbol, err));
        }
    }
out:
    return rc;
}

/* Cuts the line at *at into two symbols in place and moves *at behind it.  False when the line is
 * not "left right". */
static bool cut_line(char **at, char **left, char **right)
{
    char *end = strchr(*at, '\n');
    char *space;

    *left = *at;
    *at = end == NULL ? strchr(*at, '\0') : end + 1;
    if (end == NULL) end = *at;
    *end = '\0';
    if (end > *left && end[-1] == '\r') end[-1] = '\0';
    space = strchr(*left, ' ');
    if (space == NULL || space == *left || space[1] == '\0' || strchr(space + 1, ' ') != NULL)
        return false;
    *space = '\0';
    *right = space + 1;
    return true;
}

static int read_merges_text(struct source *source, struct err *err)
{
    static const char mark[] = "#version";
    int               rc = ERR_OK;
    char             *text = NULL, *at, *left = NULL, *right = NULL;
    size_t            bytes = 0, valid;
    uint32_t          rank = 0, lines = 1;

    TRY(os_read_text(&text, &bytes, source->file, TOKEN_FILE_BYTES, err));
    valid = text_utf8_valid_prefix(text, bytes);
    if (valid < bytes || strlen(text) < bytes)
        RAISE(err, ERR_FORMAT, 0, "'%s' is not text in UTF-8 at byte %zu", source->file,
              valid < bytes ? valid : strlen(text));
    for (size_t i = 0; i < bytes; i++) lines += text[i] == '\n';
    TRY(merges_alloc(source->tokenizer, lines, source->file, err));
    at = text;
    if (strncmp(at, mark, sizeof mark - 1) == 0) {
        at += strcspn(at, "\n");
        at += *at == '\n';
    }
    while (*at != '\0') {
        if (!cut_line(&at, &left, &right))
            RAISE(err, ERR_FORMAT, 0, "'%s': merge %u is not two symbols with one space between",
                  source->file, rank + 1);
        TRY(add_merge(source, left, right, rank, err));
        rank++;
    }
out:
    os_free(text);
    return rc;
}

/* One entry of tokenizer.json's merges: "left right" or ["left", "right"]. */
static int add_entry(struct source *source, const json_t *entry, uint32_t rank, struct err *err)
{
    int         rc = ERR_OK;
    const char *left = json_string_value(json_array_get(entry, 0));
    const char *right = json_string_value(json_array_get(entry, 1));
    const char *both = json_string_value(entry);
    char        line[2 * SYMBOL_BYTES + 2];
    char       *at = line, *cut_left, *cut_right;

    if (both != NULL && strlen(both) < sizeof line) {
        memcpy(line, both, strlen(both) + 1);
        if (cut_line(&at, &cut_left, &cut_right) && *at == '\0') {
            left = cut_left;
            right = cut_right;
        }
    }
    if (left == NULL || right == NULL)
        RAISE(err, ERR_FORMAT, 0, "'%s': merge %u is not a pair of symbols of at most %d bytes",
              source->file, rank + 1, SYMBOL_BYTES);
    TRY(add_merge(source, left, right, rank, err));
out:
    return rc;
}

static int read_merges_list(struct source *source, const json_t *list, struct err *err)
{
    int    rc = ERR_OK;
    size_t count = json_array_size(list);

    if (!json_is_array(list))
        RAISE(err, ERR_FORMAT, 0, "'%s': model.merges must be a list", source->file);
    TRY(merges_alloc(source->tokenizer, count, source->file, err));
    for (size_t i = 0; i < count; i++)
        TRY(add_entry(source, json_array_get(list, i), (uint32_t)i, err));
out:
    return rc;
}

/* `vocabulary` becomes the source's; its ids are checked and id_limit is raised above them. */
static int use_vocabulary(struct source *source, json_t *vocabulary, const char *file,
                          struct err *err)
{
    int         rc = ERR_OK;
    uint32_t    count = 0;
    const char *symbol;
    json_t     *id;

    source->vocabulary = json_incref(vocabulary);
    if (!json_is_object(vocabulary))
        RAISE(err, ERR_FORMAT, 0, "'%s': the vocabulary must be an object", file);
    json_object_foreach(vocabulary, symbol, id)
    {
        int64_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= TOKEN_ID_LIMIT)
            RAISE(err, ERR_FORMAT, 0, "'%s': symbol %u has no id in 0..%d", file, count + 1,
                  TOKEN_ID_LIMIT - 1);
        count++;
    }
out:
    return rc;
}

/* The word pattern may be the older one, or the one that also knows the two special tokens. */
static int read_pattern(bool *cuts_specials_out, const json_t *root, const char *file,
                        struct err *err)
{
    static const char specials[] = "<\\|startoftext\\|>|<\\|endoftext\\|>|";
    static const char words[] =
        "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";
    int           rc = ERR_OK;
    const json_t *steps = json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers");
    const json_t *pattern = json_object_get(json_array_get(steps, 0), "pattern");
    const char   *text = json_string_value(json_object_get(pattern, "Regex"));

    *cuts_specials_out = text != NULL && strncmp(text, specials, sizeof specials - 1) == 0;
    if (*cuts_specials_out) text += sizeof specials - 1;
    if (text == NULL || strcmp(text, words) != 0)
        RAISE(err, ERR_FORMAT, 0, "'%s': the pattern of pre_tokenizer is not CLIP's", file);
out:
    return rc;
}

static int read_tokenizer_json(struct source *source, struct err *err)
{
    struct clip_tokenizer *tokenizer = source->tokenizer;
    int                    rc = ERR_OK;
    json_t                *root = NULL, *model;
    const char            *kind, *suffix;

    TRY(json_file_open(&root, source->file, TOKEN_FILE_BYTES, err));
    model = json_object_get(root, "model");
    kind = json_string_value(json_object_get(model, "type"));
    suffix = json_string_value(json_object_get(model, "end_of_word_suffix"));
    if (kind == NULL || strcmp(kind, "BPE") != 0 || suffix == NULL || strcmp(suffix, WORD_END) != 0)
        RAISE(err, ERR_FORMAT, 0, "'%s': model must be of type BPE with the end_of_word_suffix "
              "'%s'", source->file, WORD_END);
    TRY(read_pattern(&tokenizer->cuts_specials, root, source->file, err));
    TRY(token_rules_add_list(tokenizer->rules, json_object_get(root, "added_tokens"), source->file,
                             err));
    TRY(use_vocabulary(source, json_object_get(model, "vocab"), source->file, err));
    TRY(read_merges_list(source, json_object_get(model, "merges"), err));
out:
    json_decref(root);
    return rc;
}

static int read_merges_and_vocab(struct source *source, const char *folder, struct err *err)
{
    int     rc = ERR_OK;
    json_t *vocabulary = NULL;
    char    path[TOKEN_PATH_BYTES];

    TRY(token_rules_path(path, folder, "vocab.json", err));
    source->tokenizer->cuts_specials = true;
    source->own_ids = !os_is_file(path);
    if (source->own_ids) {
        source->vocabulary = json_object();
        if (source->vocabulary == NULL)
            RAISE(err, ERR_HOST_MEM, 0, "memory: none left for symbols");
        TRY(number_bytes(source, err));
    } else {
        TRY(json_file_open(&vocabulary, path, TOKEN_FILE_BYTES, err));
        TRY(use_vocabulary(source, vocabulary, path, err));
    }
    TRY(read_merges_text(source, err));
out:
    json_decref(vocabulary);
    return rc;
}

/* Id of the token with this role: as listed among the literals, as in the vocabulary, or, when we
 * number symbols ourselves, the next free id. */
static int special_id(int32_t *out, struct source *source, const char *role, const char *absent,
                      struct err *err)
{
    struct token_rules         *rules = source->tokenizer->rules;
    int                         rc = ERR_OK;
    const char                 *name = token_rules_name(rules, role, absent);
    const struct token_literal *listed = token_rules_named(rules, name);
    struct token_literal        literal = {.text = (char *)(uintptr_t)name, .bytes = strlen(name)};

    if (listed != NULL) {
        *out = listed->id;
        goto out;
    }
    if (source->own_ids && symbol_id(source->vocabulary, name) < 0)
        TRY(append_symbol(source, name, err));
    literal.id = symbol_id(source->vocabulary, name);
    if (literal.id < 0 || literal.bytes == 0)
        RAISE(err, ERR_FORMAT, 0, "'%s': the vocabulary has no %s", source->file, role);
    TRY(token_rules_add(rules, &literal, err));
    *out = literal.id;
out:
    return rc;
}

/* Ids of the 512 byte symbols; what a small vocabulary lacks becomes the unknown token. */
static int find_bytes(struct source *source, struct err *err)
{
    struct clip_tokenizer *tokenizer = source->tokenizer;
    int                    rc = ERR_OK;
    const char            *end = token_rules_name(tokenizer->rules, "eos_token", "<|endoftext|>");
    int32_t                unknown_id = 0;
    char                   symbol[16];

    TRY(special_id(&unknown_id, source, "unk_token", end, err));
    for (uint32_t last = 0; last < 2; last++) {
        for (uint32_t byte = 0; byte < BYTE_SYMBOLS; byte++) {
            int32_t id;
            byte_symbol(symbol, byte, last != 0);
            id = symbol_id(source->vocabulary, symbol);
            tokenizer->byte_ids[last][byte] = id < 0 ? unknown_id : id;
        }
    }
out:
    return rc;
}

static void find_id_limit(struct source *source)
{
    struct clip_tokenizer *tokenizer = source->tokenizer;
    const char            *symbol;
    json_t                *id;
    int64_t                most = 0;

    json_object_foreach(source->vocabulary, symbol, id)
    {
        most = max_i64(most, json_integer_value(id));
    }
    for (uint32_t i = 0; i < token_rules_count(tokenizer->rules); i++)
        most = max_i64(most, token_rules_at(tokenizer->rules, i)->id);
    tokenizer->id_limit = (int32_t)most + 1;
}

/* Literals of the second kind are compared with normal text, so they must be in that form. */
static int check_literals(const struct clip_tokenizer *tokenizer, const char *file, struct err *err)
{
    int    rc = ERR_OK;
    char  *normal = NULL;
    size_t bytes = 0;

    for (uint32_t i = 0; i < token_rules_count(tokenizer->rules); i++) {
        const struct token_literal *literal = token_rules_at(tokenizer->rules, i);
        if (!literal->normalized) continue;
        os_free(normal);
        normal = NULL;
        TRY(clip_words_normalise(&normal, &bytes, literal->text, literal->bytes, err));
        if (bytes != literal->bytes || memcmp(normal, literal->text, bytes) != 0)
            RAISE(err, ERR_FORMAT, 0, "'%s': special token %u is 'normalized' but not in lower "
                  "case NFC, so no text can match it", file, i);
    }
out:
    os_free(normal);
    return rc;
}

static int read_folder(struct source *source, const char *folder, char *path, struct err *err)
{
    struct clip_tokenizer *tokenizer = source->tokenizer;
    int                    rc = ERR_OK;

    TRY(token_rules_add_decoder(tokenizer->rules, err));
    TRY(token_rules_path(path, folder, "tokenizer.json", err));
    if (os_is_file(path)) {
        char merges[TOKEN_PATH_BYTES];
        TRY(token_rules_path(merges, folder, "merges.txt", err));
        if (!os_is_file(merges)) {
            TRY(read_tokenizer_json(source, err));
            goto out;
        }
    }
    TRY(token_rules_path(path, folder, "merges.txt", err));
    TRY(read_merges_and_vocab(source, folder, err));
out:
    return rc;
}

int clip_tokenizer_open(struct clip_tokenizer **out, const char *folder, struct err *err)
{
    int                    rc = ERR_OK;
    struct clip_tokenizer *tokenizer = NULL;
    struct source          source = {0};
    void                  *memory = NULL;
    char                   path[TOKEN_PATH_BYTES];

    TRY(os_alloc(&memory, 1, sizeof *tokenizer, "the CLIP tokenizer", err));
    source.tokenizer = tokenizer = memory;
    source.file = path;
    TRY(token_rules_open(&tokenizer->rules, folder, err));
    TRY(token_rules_max(&tokenizer->max, tokenizer->rules, 77, err));
    TRY(read_folder(&source, folder, path, err));
    TRY(special_id(&tokenizer->start_id, &source, "bos_token", "<|startoftext|>", err));
    TRY(special_id(&tokenizer->end_id, &source, "eos_token", "<|endoftext|>", err));
    TRY(find_bytes(&source, err));
    TRY(check_literals(tokenizer, path, err));
    find_id_limit(&source);
    *out = tokenizer;
    tokenizer = NULL;
out:
    json_decref(source.vocabulary);
    clip_tokenizer_close(tokenizer);
    if (rc != ERR_OK) err_context(err, "CLIP tokenizer");
    return rc;
}

void clip_tokenizer_close(struct clip_tokenizer *tokenizer)
{
    if (tokenizer == NULL) return;
    token_rules_close(tokenizer->rules);
    os_free(tokenizer->merges);
    os_free(tokenizer);
}

uint32_t clip_tokenizer_max(const struct clip_tokenizer *tokenizer)
{
    return tokenizer->max;
}

int32_t clip_tokenizer_id_limit(const struct clip_tokenizer *tokenizer)
{
    return tokenizer->id_limit;
}

/* ------------------------------------------------------------------------------------ merging */

struct symbol {
    int32_t id;            /* -1: merged into the one before */
    int32_t before, after; /* places of the neighbours; -1: none */
};

/* A merge that was possible when it was noted; it may have expired since. */
struct candidate {
    uint32_t rank;
    int32_t  at; /* place of its left symbol */
    int32_t  id;
};

/* Ids found so far. */
struct output {
    int32_t *ids;
    uint32_t count, room;
    int32_t  end_id;
};

/* False when nothing after this can matter: the room is used up, or this was an end. */
static bool put(struct output *output, int32_t id)
{
    if (id == output->end_id) output->room = output->count;
    if (output->count < output->room) output->ids[output->count++] = id;
    return output->count < output->room;
}

struct work {
    const struct clip_tokenizer *tokenizer;
    struct output                output;
    struct symbol               *symbols; /* [bytes of the longest word]                        */
    struct candidate            *heap;    /* [3 * that]: each pair once, and two per merge      */
    size_t                       heap_count;
};

static bool goes_first(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* Notes the merge of the symbol at `at` with the one after it, if there is such a merge. */
static void heap_add(struct work *work, int32_t at)
{
    const struct symbol *symbol = &work->symbols[at];
    const struct merge  *merge;
    struct candidate     added;
    size_t               place = work->heap_count;

    if (symbol->after < 0) return;
    merge = slot_of(work->tokenizer, pair_of(symbol->id, work->symbols[symbol->after].id));
    if (merge->id < 0) return;
    added = (struct candidate){merge->rank, at, merge->id};
    while (place > 0 && goes_first(&added, &work->heap[(place - 1) / 2])) {
        work->heap[place] = work->heap[(place - 1) / 2];
        place = (place - 1) / 2;
    }
    work->heap[place] = added;
    work->heap_count++;
}

static struct candidate heap_take(struct work *work)
{
    struct candidate first = work->heap[0];
    struct candidate moved = work->heap[--work->heap_count];
    size_t           place = 0;

    for (;;) {
        size_t child = 2 * place + 1;
        if (child >= work->heap_count) break;
        if (child + 1 < work->heap_count && goes_first(&work->heap[child + 1], &work->heap[child]))
            child++;
        if (!goes_first(&work->heap[child], &moved)) break;
        work->heap[place] = work->heap[child];
        place = child;
    }
    work->heap[place] = moved;
    return first;
}

static void apply(struct work *work, const struct candidate *candidate)
{
    struct symbol      *left = &work->symbols[candidate->at];
    struct symbol      *right;
    const struct merge *merge;

    if (left->id < 0 || left->after < 0) return;
    right = &work->symbols[left->after];
    merge = slot_of(work->tokenizer, pair_of(left->id, right->id));
    if (merge->id != candidate->id) return;
    left->id = candidate->id;
    right->id = -1;
    left->after = right->after;
    if (left->after >= 0) work->symbols[left->after].before = candidate->at;
    if (left->before >= 0) heap_add(work, left->before);
    heap_add(work, candidate->at);
}

static bool encode_word(struct work *work, const char *word, size_t bytes)
{
    bool more = true;

    for (size_t i = 0; i < bytes; i++) {
        bool last = i + 1 == bytes;
        work->symbols[i] = (struct symbol){work->tokenizer->byte_ids[last][(uint8_t)word[i]],
                                           (int32_t)i - 1, last ? -1 : (int32_t)i + 1};
    }
    work->heap_count = 0;
    for (size_t i = 0; i + 1 < bytes; i++) heap_add(work, (int32_t)i);
    while (work->heap_count > 0) {
        struct candidate candidate = heap_take(work);
        apply(work, &candidate);
    }
    for (int32_t i = 0; i >= 0 && more; i = work->symbols[i].after)
        more = put(&work->output, work->symbols[i].id);
    return more;
}

/* ------------------------------------------------------------------------------------- encode */

/* Text between two literals of the second kind. */
static bool encode_words(struct work *work, const char *text, size_t bytes)
{
    struct clip_words words = {.text = text,
                               .bytes = bytes,
                               .cuts_specials = work->tokenizer->cuts_specials};
    const char *word = NULL;
    size_t      word_bytes = 0;

    while (clip_words_next(&words, &word, &word_bytes))
        if (!encode_word(work, word, word_bytes)) return false;
    return true;
}

/* Text between two literals of the first kind.  *more_out: whether later text can matter. */
static int encode_span(bool *more_out, struct work *work, const char *text, size_t bytes,
                       struct err *err)
{
    const struct token_rules   *rules = work->tokenizer->rules;
    const struct token_literal *literal;
    int                         rc = ERR_OK;
    char                       *normal = NULL;
    void                       *symbols = NULL, *heap = NULL;
    size_t                      from = 0, start = 0;
    bool                        more = true;

    TRY(clip_words_normalise(&normal, &bytes, text, bytes, err));
    TRY(os_alloc(&symbols, bytes, sizeof *work->symbols, "the prompt", err));
    TRY(os_alloc(&heap, 3 * (uint64_t)bytes, sizeof *work->heap, "the prompt", err));
    work->symbols = symbols;
    work->heap = heap;
    do {
        literal = token_rules_find(&start, rules, normal, bytes, from, true);
        more = encode_words(work, normal + from, start - from);
        if (literal == NULL || !more) break;
        more = put(&work->output, literal->id);
        from = start + literal->bytes;
    } while (more);
    *more_out = more;
out:
    os_free(normal);
    os_free(symbols);
    os_free(heap);
    return rc;
}

int clip_tokenizer_encode(const struct clip_tokenizer *tokenizer, const char *text,
                          int32_t *ids_out, uint32_t *count_out, struct err *err)
{
    const struct token_literal *literal = NULL;
    int                         rc = ERR_OK;
    size_t                      bytes = 0, from = 0, start = 0;
    bool                        more = true;
    struct work                 work = {.tokenizer = tokenizer};

    ids_out[0] = tokenizer->start_id;
    work.output = (struct output){ids_out, 1, tokenizer->max - 1, tokenizer->end_id};
    TRY(token_rules_check_prompt(&bytes, text, err));
    do {
        literal = token_rules_find(&start, tokenizer->rules, text, bytes, from, false);
        TRY(encode_span(&more, &work, text + from, start - from, err));
        if (literal == NULL || !more) break;
        more = put(&work.output, literal->id);
        from = start + literal->bytes;
    } while (more);
    must(work.output.count < tokenizer->max);
    ids_out[work.output.count] = tokenizer->end_id;
    *count_out = work.output.count + 1;
out:
    return rc;
}
