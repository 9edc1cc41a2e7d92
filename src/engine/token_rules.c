/*
 * token_rules.c - what the two tokenizers share: the settings of a tokenizer folder, tokens that
 * are written out in a prompt, and which prompts are accepted.
 *
 * Owns the parsed settings and the list of literal tokens.  Knows nothing of vocabularies or of how
 * ordinary text is cut: that is what the two tokenizers are for.
 *
 * Sentences name files and positions, never strings from the files: those may hold anything.
 *
 * Read next: clip_tokenizer.c, t5_tokenizer.c.
 */
#include "engine/tokenizer_int.h"

#include <string.h>

#include <utf8proc.h>

enum { LITERAL_LIMIT = 1024, LITERAL_BYTES = 512 };

struct token_rules {
    char                  config_path[TOKEN_PATH_BYTES];
    json_t               *config;   /* tokenizer_config.json, or an empty object    */
    json_t               *names;    /* special_tokens_map.json, or an empty object  */
    struct token_literal *literals; /* [room]; the first `count` are set            */
    uint32_t              count, room;
    bool                  starts[256]; /* some literal starts with this byte        */
};

int token_rules_path(char *out, const char *folder, const char *name, struct err *err)
{
    int rc = ERR_OK;

    if (!os_join(out, TOKEN_PATH_BYTES, folder, name))
        RAISE(err, ERR_USAGE, 0, "the path '%.64s...' is longer than %d bytes", folder,
              TOKEN_PATH_BYTES - 1);
out:
    return rc;
}

/* The object in a file, or an empty one when the file does not exist. */
static int read_object(json_t **out, char *path, const char *folder, const char *name,
                       struct err *err)
{
    int     rc = ERR_OK;
    json_t *object = NULL;

    TRY(token_rules_path(path, folder, name, err));
    if (os_is_file(path))
        TRY(json_file_open(&object, path, TOKEN_FILE_BYTES, err));
    else
        object = json_object();
    if (object == NULL) RAISE(err, ERR_HOST_MEM, 0, "memory: none left for '%s'", path);
    if (!json_is_object(object)) RAISE(err, ERR_FORMAT, 0, "'%s' must hold one JSON object", path);
    *out = object;
    object = NULL;
out:
    json_decref(object);
    return rc;
}

int token_rules_open(struct token_rules **out, const char *folder, struct err *err)
{
    int                 rc = ERR_OK;
    struct token_rules *rules = NULL;
    void               *memory = NULL;
    char                path[TOKEN_PATH_BYTES];

    TRY(os_alloc(&memory, 1, sizeof *rules, "tokenizer settings", err));
    rules = memory;
    TRY(read_object(&rules->names, path, folder, "special_tokens_map.json", err));
    TRY(read_object(&rules->config, rules->config_path, folder, "tokenizer_config.json", err));
    *out = rules;
    rules = NULL;
out:
    token_rules_close(rules);
    return rc;
}

void token_rules_close(struct token_rules *rules)
{
    if (rules == NULL) return;
    for (uint32_t i = 0; i < rules->count; i++) os_free(rules->literals[i].text);
    os_free(rules->literals);
    json_decref(rules->config);
    json_decref(rules->names);
    os_free(rules);
}

const json_t *token_rules_config(const struct token_rules *rules)
{
    return rules->config;
}

const char *token_rules_config_path(const struct token_rules *rules)
{
    return rules->config_path;
}

/* A token is written as its text or as an object with its text under "content". */
static const char *token_text(const json_t *value)
{
    if (json_is_object(value)) value = json_object_get(value, "content");
    return json_string_value(value);
}

const char *token_rules_name(const struct token_rules *rules, const char *role, const char *absent)
{
    const char *text = token_text(json_object_get(rules->config, role));

    if (text == NULL) text = token_text(json_object_get(rules->names, role));
    return text == NULL ? absent : text;
}

int token_rules_max(uint32_t *out, const struct token_rules *rules, uint32_t absent,
                    struct err *err)
{
    int                        rc = ERR_OK;
    int64_t                    value = 0;
    const struct json_int_rule rule = {"model_max_length", 2, 1 << 16, false, absent};

    TRY(json_read_int(&value, rules->config, rules->config_path, &rule, err));
    *out = (uint32_t)value;
out:
    return rc;
}

/* -------------------------------------------------------------------------------- literals */

uint32_t token_rules_count(const struct token_rules *rules)
{
    return rules->count;
}

const struct token_literal *token_rules_at(const struct token_rules *rules, uint32_t index)
{
    must(index < rules->count);
    return &rules->literals[index];
}

const struct token_literal *token_rules_named(const struct token_rules *rules, const char *text)
{
    for (uint32_t i = 0; i < rules->count; i++)
        if (strcmp(rules->literals[i].text, text) == 0) return &rules->literals[i];
    return NULL;
}

static int grow(struct token_rules *rules, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t room = rules->room == 0 ? 128 : 2 * rules->room;
    void    *memory = NULL;

    if (rules->count < rules->room) goto out;
    TRY(os_alloc(&memory, room, sizeof *rules->literals, "special tokens", err));
    if (rules->count > 0)
        memcpy(memory, rules->literals, rules->count * sizeof *rules->literals);
    os_free(rules->literals);
    rules->literals = memory;
    rules->room = room;
out:
    return rc;
}

int token_rules_add(struct token_rules *rules, const struct token_literal *literal, struct err *err)
{
    int   rc = ERR_OK;
    void *memory = NULL;

    must(literal->bytes > 0 && literal->id >= 0 && literal->id < TOKEN_ID_LIMIT);
    if (token_rules_named(rules, literal->text) != NULL) goto out;
    TRY(grow(rules, err));
    TRY(os_alloc(&memory, literal->bytes + 1, 1, "a special token", err));
    memcpy(memory, literal->text, literal->bytes);
    rules->literals[rules->count] = *literal;
    rules->literals[rules->count].text = memory;
    rules->count++;
    rules->starts[(uint8_t)literal->text[0]] = true;
out:
    return rc;
}

/* `id` is -1 where the entry itself holds it. */
static int add_entry(struct token_rules *rules, const json_t *entry, int64_t id, const char *file,
                     struct err *err)
{
    static const char *const   unsupported[] = {"single_word", "lstrip", "rstrip"};
    const struct json_int_rule rule = {"id", 0, TOKEN_ID_LIMIT - 1, true, 0};
    int                        rc = ERR_OK;
    const char                *text = token_text(entry);
    struct token_literal       literal = {0};
    bool                       flag = false;

    if (!json_is_object(entry) || text == NULL || text[0] == '\0')
        RAISE(err, ERR_FORMAT, 0, "'%s': special token %u has no text under 'content'", file,
              rules->count);
    literal.text = (char *)(uintptr_t)text;
    literal.bytes = strlen(text);
    if (literal.bytes > LITERAL_BYTES || rules->count == LITERAL_LIMIT)
        RAISE(err, ERR_FORMAT, 0, "'%s': special token %u has %zu bytes; at most %d tokens of %d "
              "bytes are supported", file, rules->count, literal.bytes, LITERAL_LIMIT,
              LITERAL_BYTES);
    for (size_t i = 0; i < ARRAY_COUNT(unsupported); i++) {
        TRY(json_read_bool(&flag, entry, file, unsupported[i], false, err));
        if (flag)
            RAISE(err, ERR_FORMAT, 0, "'%s': special token %u has '%s' set, which is not supported",
                  file, rules->count, unsupported[i]);
    }
    TRY(json_read_bool(&literal.normalized, entry, file, "normalized", false, err));
    if (id < 0) TRY(json_read_int(&id, entry, file, &rule, err));
    literal.id = (int32_t)id;
    TRY(token_rules_add(rules, &literal, err));
out:
    return rc;
}

/* Decimal digits only, below TOKEN_ID_LIMIT; -1 otherwise. */
static int64_t key_id(const char *key)
{
    int64_t id = 0;

    if (key[0] == '\0') return -1;
    for (; *key != '\0'; key++) {
        if (*key < '0' || *key > '9') return -1;
        id = id * 10 + (*key - '0');
        if (id >= TOKEN_ID_LIMIT) return -1;
    }
    return id;
}

int token_rules_add_decoder(struct token_rules *rules, struct err *err)
{
    int         rc = ERR_OK;
    json_t     *decoder = json_object_get(rules->config, "added_tokens_decoder");
    const char *key;
    json_t     *entry;

    if (decoder == NULL || json_is_null(decoder)) goto out;
    if (!json_is_object(decoder))
        RAISE(err, ERR_FORMAT, 0, "'%s': added_tokens_decoder must be an object",
              rules->config_path);
    json_object_foreach(decoder, key, entry)
    {
        if (key_id(key) < 0)
            RAISE(err, ERR_FORMAT, 0, "'%s': key %u of added_tokens_decoder must be an id below %d",
                  rules->config_path, rules->count, TOKEN_ID_LIMIT);
        TRY(add_entry(rules, entry, key_id(key), rules->config_path, err));
    }
out:
    return rc;
}

int token_rules_add_list(struct token_rules *rules, const json_t *list, const char *file,
                         struct err *err)
{
    int    rc = ERR_OK;
    size_t count = json_array_size(list);

    if (list != NULL && !json_is_array(list))
        RAISE(err, ERR_FORMAT, 0, "'%s': added_tokens must be a list", file);
    for (size_t i = 0; i < count; i++)
        TRY(add_entry(rules, json_array_get(list, i), -1, file, err));
out:
    return rc;
}

const struct token_literal *token_rules_find(size_t *start_out, const struct token_rules *rules,
                                             const char *text, size_t bytes, size_t from,
                                             bool normalized)
{
    const struct token_literal *best = NULL;

    must(from <= bytes);
    for (size_t at = from; at < bytes; at++) {
        if (!rules->starts[(uint8_t)text[at]]) continue;
        for (uint32_t i = 0; i < rules->count; i++) {
            const struct token_literal *literal = &rules->literals[i];
            if (literal->normalized != normalized || literal->bytes > bytes - at) continue;
            if (best != NULL && best->bytes >= literal->bytes) continue;
            if (memcmp(text + at, literal->text, literal->bytes) == 0) best = literal;
        }
        if (best == NULL) continue;
        *start_out = at;
        return best;
    }
    *start_out = bytes;
    return NULL;
}

/* ------------------------------------------------------------------------------------ text */

int token_rules_check_prompt(size_t *bytes_out, const char *text, struct err *err)
{
    int    rc = ERR_OK;
    size_t bytes = strlen(text), valid;

    if (bytes > TOKEN_PROMPT_BYTES)
        RAISE(err, ERR_USAGE, 0, "the prompt has %zu bytes; at most %d are taken, and the model "
              "reads only the first few thousand", bytes, TOKEN_PROMPT_BYTES);
    valid = text_utf8_valid_prefix(text, bytes);
    if (valid < bytes)
        RAISE(err, ERR_USAGE, 0, "the prompt is not valid UTF-8: byte %zu is 0x%02X; save or type "
              "it in UTF-8", valid, (unsigned)(uint8_t)text[valid]);
    *bytes_out = bytes;
out:
    return rc;
}

bool token_rules_is_space(int32_t code)
{
    if (code < 0x80) return code == ' ' || (code >= '\t' && code <= '\r');
    if (code == 0x85) return true;
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return true;
    default:
        return false;
    }
}

int32_t token_rules_character(size_t *bytes_out, const char *text, size_t bytes)
{
    utf8proc_int32_t code = -1;
    utf8proc_ssize_t length =
        utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)bytes, &code);

    must(length > 0 && code >= 0);
    *bytes_out = (size_t)length;
    return code;
}
