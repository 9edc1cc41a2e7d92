/*
 * clip_tokenizer_load.c - CLIP's tokenizer out of a folder: symbols, merges, special tokens.
 *
 * Owns the filling of the merge table.  Trusts no file: every id, pair and length is checked.
 *
 * A folder is read in one of three ways:
 *     merges.txt and vocab.json    symbols have the ids of vocab.json
 *     merges.txt alone             ids follow from the order: 256 byte symbols, the same 256 at the
 *                                  end of a word, the merges' products, start, end
 *     tokenizer.json               when there is no merges.txt
 *
 * Symbols are written in a printable alphabet: byte 0x20 is the character U+0120 and so on; see
 * byte_character.  The last symbol of a word ends in "</w>".
 *
 * Read next: clip_tokenizer.c.
 */
#include "engine/clip_tokenizer_int.h"

#include <string.h>

#include <utf8proc.h>

enum { SYMBOL_BYTES = 512, MERGE_LIMIT = 1 << 20 };

static const char WORD_END[] = "</w>";

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
    while (tokenizer->slots < 2 * count)
        tokenizer->slots *= 2;
    TRY(os_alloc(&memory, tokenizer->slots, sizeof *tokenizer->merges, "CLIP merges", err));
    tokenizer->merges = memory;
    for (uint64_t i = 0; i < tokenizer->slots; i++)
        tokenizer->merges[i].id = -1;
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
    int                rc = ERR_OK;
    char               product[2 * SYMBOL_BYTES + 1];
    size_t             left_bytes = strlen(left), right_bytes = strlen(right);
    int32_t            left_id = symbol_id(source->vocabulary, left);
    int32_t            right_id = symbol_id(source->vocabulary, right);
    struct clip_merge *slot;

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
            RAISE(err, ERR_FORMAT, 0,
                  "'%s': merge %u makes a symbol that exists; its id is "
                  "unclear without vocab.json",
                  source->file, rank + 1);
        TRY(append_symbol(source, product, err));
    }
    slot = clip_tokenizer_slot(source->tokenizer, clip_tokenizer_pair(left_id, right_id));
    if (slot->id >= 0)
        RAISE(err, ERR_FORMAT, 0, "'%s': merge %u repeats merge %u", source->file, rank + 1,
              slot->rank + 1);
    slot->id = symbol_id(source->vocabulary, product);
    slot->pair = clip_tokenizer_pair(left_id, right_id);
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
    size_t used = (size_t)utf8proc_encode_char(byte_character(byte), (utf8proc_uint8_t *)out);

    memcpy(out + used, last ? WORD_END : "", last ? sizeof WORD_END : 1);
}

/* Visible bytes first, then the others; all of them, then all of them with the end mark. */
static int number_bytes(struct source *source, struct err *err)
{
    int  rc = ERR_OK;
    char symbol[16];

    for (uint32_t pass = 0; pass < 4; pass++) {
        for (uint32_t byte = 0; byte < CLIP_BYTE_SYMBOLS; byte++) {
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
    for (size_t i = 0; i < bytes; i++)
        lines += text[i] == '\n';
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
    static const char words[] = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";
    int               rc = ERR_OK;
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
        RAISE(err, ERR_FORMAT, 0,
              "'%s': model must be of type BPE with the end_of_word_suffix "
              "'%s'",
              source->file, WORD_END);
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
        for (uint32_t byte = 0; byte < CLIP_BYTE_SYMBOLS; byte++) {
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
            RAISE(err, ERR_FORMAT, 0,
                  "'%s': special token %u is 'normalized' but not in lower "
                  "case NFC, so no text can match it",
                  file, i);
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
