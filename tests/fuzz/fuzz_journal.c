/*
 * fuzz_journal.c - any bytes as a journal.
 *
 * Bytes as they are hardly ever pass the hash of a line.  So the same bytes are also taken as JSON
 * texts, a line each, and given the hashes that they should have: then the records themselves are
 * tried.
 */
#include "render/render_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TILES = 12, PREFIX = 17 };

static void read_all(const char *text, size_t bytes)
{
    struct journal_facts facts;
    struct journal_end   end;
    struct journal_text  whole = {.data = text, .bytes = bytes, .path = "fuzz"};
    struct err           err = {.code = ERR_OK};
    json_t              *plan = NULL;
    int                  rc;

    must(journal_facts_init(&facts, TILES, &err) == ERR_OK);
    rc = journal_parse(&end, &plan, &facts, &whole, &err);
    must(rc == ERR_OK || rc == ERR_FORMAT);
    must(end.bytes <= bytes && (plan != NULL || end.bytes == 0));
    if (end.bytes > 0) must(text[end.bytes - 1] == '\n');
    if (plan != NULL) {
        struct config_words words = {.count = 0};
        (void)config_kept_words(&words, json_object_get(plan, "settings"), "fuzz", &err);
        config_words_close(&words);
    }
    for (uint32_t i = 0; i < TILES; i++)
        must(facts.tiles[i].status <= TILE_FAILED && facts.tiles[i].seed <= INT64_MAX);
    if (facts.has_guide) must(facts.guide.w > 0 && facts.guide.h > 0);
    json_decref(plan);
    journal_facts_fini(&facts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* A line of `length` bytes grows by PREFIX; every line has at least its newline. */
    char    *signed_text = malloc((PREFIX + 1) * size + PREFIX + 2);
    size_t   used = 0;
    uint64_t hash = 0;

    must(signed_text != NULL);
    read_all((const char *)data, size);
    for (size_t at = 0; at < size;) {
        const char *line = (const char *)data + at;
        const char *end = memchr(line, '\n', size - at);
        size_t      length = end == NULL ? size - at : (size_t)(end - line);
        if (length > PREFIX && line[PREFIX - 1] == ' ') { /* a corpus file has its own hashes */
            line += PREFIX;
            length -= PREFIX;
            at += PREFIX;
        }
        hash = hash64(line, length, hash);
        (void)snprintf(signed_text + used, PREFIX + 1, "%016llx ", (unsigned long long)hash);
        used += PREFIX;
        memcpy(signed_text + used, line, length);
        used += length;
        signed_text[used++] = '\n';
        at += length + 1;
    }
    read_all(signed_text, used);
    free(signed_text);
    return 0;
}
