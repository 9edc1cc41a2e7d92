/*
 * test_journal.c - a journal says what was put into it, and of a cut one the whole lines.
 */
#include "../test.h"

#include "render/render_int.h"

enum { TILES = 5, RECORDS = 60 };

static char folder[256], path[300];

static json_t *a_plan(void)
{
    return json_pack("{s:{s:i}}", "settings", "steps", 3);
}

/* One random record through the writer; `facts` is what should be known then. */
static void add_random(struct journal *journal, struct journal_facts *facts, uint64_t *state)
{
    struct err        err = {0};
    uint32_t          number = (uint32_t)random_between(state, 1, TILES);
    uint64_t          hash = random_u64(state);
    struct tile_fact *tile = &facts->tiles[number - 1];

    facts->finished = false;
    switch (random_between(state, 0, 7)) {
    case 0: {
        struct journal_guide guide = {.w = 64, .h = 32, .hash = hash % 2};
        if (!facts->has_guide || facts->guide.hash != guide.hash)
            for (int i = 0; i < TILES; i++)
                facts->tiles[i].status = TILE_MISSING;
        facts->has_guide = true;
        facts->guide = guide;
        ASSERT_OK(journal_add_guide(journal, &guide, &err));
        return;
    }
    case 1:
        facts->finished = true;
        facts->output_hash = hash;
        facts->output_bytes = number;
        ASSERT_OK(journal_add_finished(journal, number, hash, &err));
        return;
    case 2:
        tile->status = TILE_FAILED;
        tile->hash = 0;
        ASSERT_OK(journal_add_failed(journal, number, 4, "\"x\\\n\xFF\x01", &err));
        return;
    case 3:
        tile->status = TILE_FILLED;
        tile->hash = hash;
        ASSERT_OK(journal_add_filled(journal, number, hash, &err));
        return;
    case 4: {
        struct journal_again again = {.has_seed = hash % 3 > 0,
                                      .seed = hash >> 1,
                                      .prompt = hash % 2 > 0 ? "f\xC3\xBCr \"dich\"\n" : NULL};
        free(tile->prompt);
        *tile = (struct tile_fact){.has_seed = again.has_seed,
                                   .seed = again.has_seed ? again.seed : 0,
                                   .prompt = again.prompt != NULL ? strdup(again.prompt) : NULL};
        ASSERT_OK(journal_add_again(journal, number, &again, &err));
        return;
    }
    default: {
        struct journal_tile record = {.number = number, .hash = hash, .attempts = 2};
        tile->status = TILE_DONE;
        tile->hash = hash;
        ASSERT_OK(journal_add_tile(journal, &record, &err));
    }
    }
}

static void assert_same(const struct journal_facts *a, const struct journal_facts *b)
{
    assert_int_equal(a->has_guide, b->has_guide);
    assert_int_equal(a->finished, b->finished);
    if (a->has_guide) assert_true(a->guide.hash == b->guide.hash && a->guide.w == b->guide.w);
    if (a->finished)
        assert_true(a->output_hash == b->output_hash && a->output_bytes == b->output_bytes);
    for (int i = 0; i < TILES; i++) {
        const struct tile_fact *x = &a->tiles[i], *y = &b->tiles[i];
        bool                    stored = x->status == TILE_DONE || x->status == TILE_FILLED;
        assert_int_equal(x->status, y->status);
        if (stored) assert_true(x->hash == y->hash);
        assert_int_equal(x->has_seed, y->has_seed);
        if (x->has_seed) assert_true(x->seed == y->seed);
        assert_int_equal(x->prompt == NULL, y->prompt == NULL);
        if (x->prompt != NULL) assert_string_equal(x->prompt, y->prompt);
    }
}

static void copy_facts(struct journal_facts *out, const struct journal_facts *facts)
{
    struct err err = {0};

    ASSERT_OK(journal_facts_init(out, TILES, &err));
    struct tile_fact *tiles = out->tiles;
    *out = *facts;
    out->tiles = tiles;
    for (int i = 0; i < TILES; i++) {
        tiles[i] = facts->tiles[i];
        if (tiles[i].prompt != NULL) tiles[i].prompt = strdup(tiles[i].prompt);
    }
}

/* Every prefix of the file says exactly what its whole lines say; and so does what the writer
 * itself keeps. */
static void every_cut_says_what_its_whole_lines_say(void **state)
{
    struct err           err = {0};
    struct journal      *journal = NULL;
    struct journal_facts known[RECORDS + 1], facts;
    struct journal_text  text = {.path = path};
    struct journal_end   end;
    uint64_t             random = 11;
    json_t              *plan = a_plan();
    char                *data;
    size_t               line = 0;

    (void)state;
    ASSERT_OK(journal_facts_init(&facts, TILES, &err));
    ASSERT_OK(journal_create(&journal, path, TILES, plan, &err));
    json_decref(plan);
    copy_facts(&known[0], &facts);
    for (int i = 1; i <= RECORDS; i++) {
        add_random(journal, &facts, &random);
        assert_same(journal_facts(journal), &facts);
        copy_facts(&known[i], &facts);
    }
    journal_close(journal);
    ASSERT_OK(os_read_text(&data, &text.bytes, path, 1 << 20, &err));
    size_t bytes = text.bytes;
    text.data = data;
    for (size_t cut = 0; cut <= bytes; cut++) {
        struct journal_facts found;
        text.bytes = cut;
        if (cut > 0 && data[cut - 1] == '\n') line++;
        ASSERT_OK(journal_facts_init(&found, TILES, &err));
        ASSERT_OK(journal_parse(&end, &plan, &found, &text, &err));
        assert_int_equal(plan != NULL, line > 0);
        if (line > 0) assert_same(&found, &known[line - 1]);
        json_decref(plan);
        journal_facts_fini(&found);
    }
    assert_int_equal(line, RECORDS + 1);
    for (int i = 0; i <= RECORDS; i++)
        journal_facts_fini(&known[i]);
    journal_facts_fini(&facts);
    os_free(data);
}

/* What follows the last whole line is cut off, and the next record stands in its place. */
static void a_torn_end_is_cut_and_written_over(void **state)
{
    struct err          err = {0};
    struct journal     *journal = NULL;
    struct journal_tile tile = {.number = 2, .hash = 5, .attempts = 1};
    json_t             *plan = a_plan();
    FILE               *file;

    (void)state;
    ASSERT_OK(journal_create(&journal, path, TILES, plan, &err));
    json_decref(plan);
    journal_close(journal);
    file = fopen(path, "ab");
    (void)fputs("0123456789abcdef {\"is\":\"tile\",\"tile\":1", file);
    (void)fclose(file);
    ASSERT_OK(journal_open(&journal, path, TILES, &err));
    assert_int_equal(journal_facts(journal)->tiles[0].status, TILE_MISSING);
    ASSERT_OK(journal_add_tile(journal, &tile, &err));
    journal_close(journal);
    ASSERT_OK(journal_open(&journal, path, TILES, &err));
    assert_int_equal(journal_facts(journal)->tiles[1].status, TILE_DONE);
    journal_close(journal);
}

/* With an account of memory a record says more, and means the same. */
static void a_tile_tells_of_memory_where_it_is_known(void **state)
{
    static const char expected[] =
        "\"memory\":{\"utilisation\":0.9600,\"fragmentation\":0.0400,\"idle\":0.2500,"
        "\"live\":96,\"placed\":100,\"mapped\":100,\"device\":101,"
        "\"calls\":{\"create\":1,\"map\":2,\"access\":3,\"unmap\":4,\"release\":5,"
        "\"settle\":9223372036854775807},\"link\":7,\"stall\":0.125000}}\n";
    struct memory_use   use = {.peak_live = 96,
                               .peak_placed = 100,
                               .peak_mapped = 100,
                               .peak_device = 101,
                               .idle_share = 0.25,
                               .calls = {1, 2, 3, 4, 5, INT64_MAX},
                               .link_bytes = 7,
                               .stall_seconds = 0.125};
    struct journal_tile tile = {.number = 1, .hash = 5, .attempts = 1};
    struct journal     *journal = NULL;
    json_t             *plan = a_plan();
    char               *text = NULL;
    size_t              bytes;
    struct err          err = {0};

    (void)state;
    ASSERT_OK(journal_create(&journal, path, TILES, plan, &err));
    json_decref(plan);
    ASSERT_OK(journal_add_tile(journal, &tile, &err));
    ASSERT_OK(os_read_text(&text, &bytes, path, 1 << 20, &err));
    assert_null(strstr(text, "memory"));
    os_free(text);
    tile.number = 2;
    tile.memory = &use;
    ASSERT_OK(journal_add_tile(journal, &tile, &err));
    ASSERT_OK(os_read_text(&text, &bytes, path, 1 << 20, &err));
    assert_non_null(strstr(text, "\"memory\":"));
    assert_string_equal(strstr(text, "\"memory\":"), expected);
    os_free(text);
    journal_close(journal);
    ASSERT_OK(journal_open(&journal, path, TILES, &err));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(journal_facts(journal)->tiles[i].status, TILE_DONE);
        assert_int_equal(journal_facts(journal)->tiles[i].hash, 5);
    }
    journal_close(journal);
}

static void other_files_are_refused_and_newer_ones_named(void **state)
{
    static const struct {
        const char *json, *words;
    } cases[] = {{"{\"is\":\"plan\",\"format\":2}", "newer mural (format 2"},
                 {"{\"is\":\"guide\"}", "is no journal of mural"},
                 {"{\"is\":\"plan\"}", "is no journal of mural"},
                 {"[1]", "is no journal of mural"}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err err;
        json_t    *plan = NULL;
        FILE      *file = fopen(path, "wb");
        (void)fprintf(file, "%016llx %s\n",
                      (unsigned long long)hash64(cases[i].json, strlen(cases[i].json), 0),
                      cases[i].json);
        (void)fclose(file);
        ASSERT_REFUSED(ERR_FORMAT, cases[i].words, journal_peek(&plan, NULL, path, &err));
        assert_null(plan);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cut_says_what_its_whole_lines_say),
        cmocka_unit_test(a_torn_end_is_cut_and_written_over),
        cmocka_unit_test(a_tile_tells_of_memory_where_it_is_known),
        cmocka_unit_test(other_files_are_refused_and_newer_ones_named),
    };
    int failed;

    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/journal", folder);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(folder);
    return failed;
}
