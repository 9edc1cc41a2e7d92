/*
 * fuzz_tokenizer.c - vocabularies from anywhere and prompts of any bytes.
 *
 * The first byte chooses what the rest is.  A folder is opened or refused with a sentence; whatever
 * is opened gives ids inside its own limit, never more than asked for, and the same ones again.
 */
#include "engine/engine_int.h"
#include "engine/tokenizer_int.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tiny_tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CLIP_FILES, T5_FILES, PROMPT }; /* what is tried with an input */

static const struct {
    const char *name; /* the file that the input becomes */
    int         what;
} kinds[] = {
    {"merges.txt", CLIP_FILES},   {"vocab.json", CLIP_FILES},
    {"tokenizer.json", T5_FILES}, {"spiece.model", T5_FILES},
    {"", PROMPT},                 {"tokenizer.json", CLIP_FILES},
    {"tokenizer_config.json", CLIP_FILES},
};

static char scratch[64]; /* made once, of this process alone */

static void write_file(const char *name, const void *bytes, size_t count)
{
    char       path[128];
    struct err err = {.code = ERR_OK};
    int        fd = -1;

    must(os_join(path, sizeof path, scratch, name));
    must(os_open_write(&fd, path, &err) == ERR_OK);
    must(os_write_at(fd, 0, bytes, count, path, &err) == ERR_OK);
    must(os_close(fd, path, &err) == ERR_OK);
}

static void remove_file(const char *name)
{
    char       path[128];
    struct err err = {.code = ERR_OK};

    must(os_join(path, sizeof path, scratch, name));
    must(os_remove(path, &err) == ERR_OK);
}

static void remove_scratch(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++)
        if (kinds[i].name[0] != '\0') remove_file(kinds[i].name);
    (void)rmdir(scratch);
}

static void check_ids(const int32_t *ids, uint32_t count, int32_t limit)
{
    for (uint32_t i = 0; i < count; i++) must(ids[i] >= 0 && ids[i] < limit);
}

/* Only a prompt that is no UTF-8 may be refused, unless the vocabulary is at fault. */
static void check_refusal(const struct err *err, const char *text)
{
    size_t bytes = strlen(text);

    must(err->text[0] != '\0');
    if (text_utf8_valid_prefix(text, bytes) == bytes && bytes <= TOKEN_PROMPT_BYTES)
        must(err->code == ERR_FORMAT);
    else
        must(err->code == ERR_USAGE);
}

static void try_clip(const struct clip_tokenizer *tokenizer, const char *text)
{
    uint32_t   most = clip_tokenizer_max(tokenizer), count = 0, again = 0;
    int32_t   *ids = calloc(2 * (size_t)most, sizeof *ids);
    struct err err = {.code = ERR_OK};

    must(ids != NULL);
    if (clip_tokenizer_encode(tokenizer, text, ids, &count, &err) != ERR_OK) {
        check_refusal(&err, text);
    } else {
        must(count >= 2 && count <= most);
        check_ids(ids, count, clip_tokenizer_id_limit(tokenizer));
        must(clip_tokenizer_encode(tokenizer, text, ids + most, &again, &err) == ERR_OK);
        must(again == count && memcmp(ids, ids + most, count * sizeof *ids) == 0);
    }
    free(ids);
}

static void try_t5(const struct t5_tokenizer *tokenizer, const char *text)
{
    enum { LONG = 64, SHORT = 5 };
    int32_t   *ids = calloc(LONG + SHORT, sizeof *ids), *cut = ids + LONG;
    uint32_t   used = 0, cut_used = 0;
    struct err err = {.code = ERR_OK};

    must(ids != NULL);
    if (t5_tokenizer_encode(tokenizer, text, LONG, ids, &used, &err) != ERR_OK) {
        check_refusal(&err, text);
    } else {
        must(used >= 1 && used <= LONG);
        check_ids(ids, LONG, t5_tokenizer_id_limit(tokenizer));
        must(t5_tokenizer_encode(tokenizer, text, SHORT, cut, &cut_used, &err) == ERR_OK);
        must(cut_used == (used < SHORT ? used : SHORT));
        must(memcmp(ids, cut, (cut_used - 1) * sizeof *ids) == 0);
        must(cut[cut_used - 1] == ids[used - 1]);
    }
    free(ids);
}

static const char *const prompts[] = {
    "", "  ", "ab abc Az \xC3\xA9 xyz cdcd</s>ab\t<n> <|endoftext|>a", "\xE2\x96\x81\xE2\x96\x81 a",
    "the photo of a cat, 8k, it's 1999"};

static void try_clip_folder(const char *given)
{
    struct clip_tokenizer *tokenizer = NULL;
    struct err             err = {.code = ERR_OK};
    bool                   merges = strcmp(given, "tokenizer.json") != 0;

    if (merges && strcmp(given, "merges.txt") != 0)
        write_file("merges.txt", "#version: 0.2\na b</w>\n", 22);
    if (clip_tokenizer_open(&tokenizer, scratch, &err) != ERR_OK)
        must(err.code == ERR_FORMAT && strncmp(err.text, "CLIP tokenizer: ", 16) == 0);
    for (size_t i = 0; i < ARRAY_COUNT(prompts) && tokenizer != NULL; i++)
        try_clip(tokenizer, prompts[i]);
    clip_tokenizer_close(tokenizer);
    remove_file("merges.txt");
}

static void try_t5_folder(void)
{
    struct t5_tokenizer *tokenizer = NULL;
    struct err           err = {.code = ERR_OK};

    if (t5_tokenizer_open(&tokenizer, scratch, &err) != ERR_OK)
        must(err.code == ERR_FORMAT && strncmp(err.text, "T5 tokenizer: ", 14) == 0);
    for (size_t i = 0; i < ARRAY_COUNT(prompts) && tokenizer != NULL; i++)
        try_t5(tokenizer, prompts[i]);
    t5_tokenizer_close(tokenizer);
}

static struct clip_tokenizer *clip;
static struct t5_tokenizer   *t5;

static void open_tiny(void)
{
    struct err  err = {.code = ERR_OK};
    struct tiny json = {{0}, 0};

    (void)snprintf(scratch, sizeof scratch, "/tmp/mural-fuzz-tokenizer-%ld", (long)getpid());
    must(os_make_dir(scratch, &err) == ERR_OK && atexit(remove_scratch) == 0);
    write_file("merges.txt", tiny_merges, sizeof tiny_merges - 1);
    must(clip_tokenizer_open(&clip, scratch, &err) == ERR_OK);
    remove_file("merges.txt");
    tiny_tokenizer_json(&json, NULL, NULL);
    write_file("tokenizer.json", json.bytes, json.count);
    must(t5_tokenizer_open(&t5, scratch, &err) == ERR_OK);
    remove_file("tokenizer.json");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t kind;
    char  *text;

    if (clip == NULL) open_tiny();
    if (size == 0) return 0;
    kind = data[0] % ARRAY_COUNT(kinds);
    if (kinds[kind].what == PROMPT) {
        text = calloc(1, size);
        must(text != NULL);
        memcpy(text, data + 1, size - 1);
        try_clip(clip, text);
        try_t5(t5, text);
        free(text);
        return 0;
    }
    write_file(kinds[kind].name, data + 1, size - 1);
    if (kinds[kind].what == CLIP_FILES)
        try_clip_folder(kinds[kind].name);
    else
        try_t5_folder();
    remove_file(kinds[kind].name);
    return 0;
}
