/*
 * test_resume.c - whatever happens to a run or to what it left, going on ends with the same bytes.
 *
 * A small poster is painted once undisturbed; its hash is the reference of every other case.
 * test_kills.c has the runs that die.
 */
#include "fake_painter.h"

static struct os_calls working;

static void path_of(char out[300], const struct story *story, const char *name)
{
    (void)snprintf(out, 300, "%s.mural/%s", story->config.output, name);
}

/* ------------------------------------------------------------------------------------ journal */

static char  *text;
static size_t text_bytes_count;

static void read_journal(const struct story *story)
{
    struct err err = {0};
    char       path[300];

    path_of(path, story, "journal");
    ASSERT_OK(os_read_text(&text, &text_bytes_count, path, 1 << 20, &err));
}

static void write_journal(const struct story *story, const char *bytes, size_t count)
{
    char path[300];

    path_of(path, story, "journal");
    scratch_write(path, bytes, count);
}

static void every_truncation_and_damage_is_mended(void **state)
{
    struct story story;
    uint64_t     random = 6;

    (void)state;
    small_open(&story);
    go_on(&story);
    read_journal(&story);
    for (size_t cut = 0; cut <= text_bytes_count; cut++) {
        bool at_end =
            cut == text_bytes_count || (cut > 0 && text[cut - 1] == '\n') || text[cut] == '\n';
        if (!at_end && cut % 151 != 0) continue;
        (void)unlink(story.config.output);
        write_journal(&story, text, cut);
        go_on(&story);
    }
    for (int i = 0; i < 25; i++) {
        char  *copy = malloc(text_bytes_count);
        size_t at = (size_t)random_between(&random, 0, (int64_t)text_bytes_count - 1);
        memcpy(copy, text, text_bytes_count);
        copy[at] = (char)(copy[at] ^ (1 << random_between(&random, 0, 7)));
        (void)unlink(story.config.output);
        write_journal(&story, copy, text_bytes_count);
        free(copy);
        go_on(&story);
    }
    os_free(text);
    story_close(&story);
}

/* A journal without its tiles, and tiles that are not what it says. */
static void stored_tiles_are_not_trusted_unseen(void **state)
{
    static const char *const names[] = {"tile-1.rgb16", "tile-4.rgb16", "guide.rgb16"};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        for (int way = 0; way < 3; way++) {
            struct story story;
            char         path[300];
            FILE        *file;

            small_open(&story);
            go_on(&story);
            (void)unlink(story.config.output);
            path_of(path, &story, names[i]);
            if (way == 0) {
                assert_int_equal(unlink(path), 0);
            } else if (way == 1) {
                assert_int_equal(truncate(path, 1000), 0);
            } else {
                file = fopen(path, "r+b");
                assert_int_equal(fseek(file, 2000, SEEK_SET), 0);
                (void)fputc(1, file), (void)fputc(2, file);
                (void)fclose(file);
            }
            story.fake = (struct fake){0};
            go_on(&story);
            assert_int_equal(story.fake.predictions, i < 2 ? 3 : 2);
            story_close(&story);
        }
}

static void what_differs_is_named(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    small_open(&story);
    go_on(&story);
    (void)unlink(story.config.output);
    story.config.steps = 5;
    ASSERT_REFUSED(ERR_USAGE, "steps is 3 there and 5 here", render_poster(&story.request, &err));
    story.config.steps = 3;
    story.request.model_identity = 8;
    ASSERT_REFUSED(ERR_USAGE,
                   "the content of the model is 0000000000000007 there and 0000000000000008 here",
                   render_poster(&story.request, &err));
    story.request.model_identity = 7;
    story.request.numeric = "other";
    ASSERT_REFUSED(ERR_USAGE, "the arithmetic is test there and other here",
                   render_poster(&story.request, &err));
    story.request.numeric = "test";
    story.config.threads = 3; /* changes no byte */
    story.config.tile_retries = 9;
    go_on(&story);
    assert_int_equal(story.fake.predictions, 0);
    /* --overwrite is the way out, for a run of new settings and not for one that goes on. */
    story.config.steps = 5;
    story.config.overwrite = true;
    story.request.mode = RENDER_RESUME;
    ASSERT_REFUSED(ERR_USAGE, "steps is 3 there and 5 here", render_poster(&story.request, &err));
    story.request.mode = RENDER_BEGIN;
    ASSERT_OK(render_poster(&story.request, &err));
    assert_true(hash_of(&story) != reference());
    story_close(&story);
}

static void settings_come_back_as_words(void **state)
{
    struct story        story;
    struct err          err = {0};
    struct config_words words = {.count = 0};
    struct config      *back = calloc(1, sizeof *back);

    (void)state;
    small_open(&story);
    (void)snprintf(story.config.prompt, sizeof story.config.prompt, "a \"t\xC3\xA9st\"\n= b");
    story.config.sigma = 0.1;
    story.config.pyramid = true;
    ASSERT_REFUSED(ERR_USAGE, "nothing is known of",
                   render_recall(&words, story.config.output, &err));
    err = (struct err){0};
    ASSERT_OK(render_poster(&story.request, &err));
    ASSERT_OK(render_recall(&words, story.config.output, &err));
    ASSERT_OK(
        config_load(back, COMMAND_RESUME, (const char *const *)words.word, words.count, &err));
    assert_string_equal(back->prompt, story.config.prompt);
    assert_true(back->sigma == 0.1 && back->pyramid && back->width_px == 200);
    config_words_close(&words);
    free(back);
    story_close(&story);
}

/* ------------------------------------------------------------------------------------- faults */

static const enum err_code passing[] = {ERR_DEVICE, ERR_DEVICE_MEM, ERR_NUMERIC, ERR_PEER, ERR_OK};

static void every_failing_primitive_is_tried_again(void **state)
{
    (void)state;
    for (size_t kind = 0; kind < ARRAY_COUNT(passing); kind++)
        for (int n = 1;; n++) {
            struct story story;
            struct err   err = {0};
            int          calls;

            small_open(&story);
            story.fake.break_at = n;
            story.fake.break_count = 1 + n % 3;
            story.fake.break_code = passing[kind];
            ASSERT_OK(render_poster(&story.request, &err));
            assert_true(hash_of(&story) == reference());
            calls = story.fake.calls;
            story_close(&story);
            if (calls < n) break;
        }
}

static void without_retries_a_failure_costs_one_tile(void **state)
{
    int partial = 0;

    (void)state;
    (void)reference();
    for (int n = 1;; n++) {
        struct story story;
        struct err   err = {0};
        int          rc, calls;

        small_open(&story);
        story.config.tile_retries = 0;
        story.fake.break_at = n;
        story.fake.break_count = 1;
        story.fake.break_code = ERR_DEVICE;
        rc = render_poster(&story.request, &err);
        calls = story.fake.calls;
        if (rc != ERR_OK) {
            assert_true(rc == ERR_PARTIAL || rc == ERR_DEVICE);
            assert_false(os_is_file(story.config.output));
            if (rc == ERR_PARTIAL) {
                partial++;
                assert_non_null(strstr(err.text, "1 of 4 tiles are missing: tile "));
                assert_non_null(strstr(err.text, "is broken"));
            }
            go_on(&story);
            if (rc == ERR_PARTIAL) assert_int_equal(story.fake.predictions, 3);
        }
        story_close(&story);
        if (calls < n) break;
    }
    assert_true(partial >= 4 * 5);
}

static void what_cannot_pass_ends_the_run_at_once(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    small_open(&story);
    story.fake.break_at = 12;
    story.fake.break_count = 1;
    story.fake.break_code = ERR_HOST_MEM;
    ASSERT_REFUSED(ERR_HOST_MEM, "call 12", render_poster(&story.request, &err));
    assert_int_equal(story.fake.calls, 12);
    go_on(&story);
    story_close(&story);
}

static char *settings_of(const struct story *story)
{
    struct err          err = {0};
    struct picture_info info;
    char               *copy;

    ASSERT_OK(picture_info_read(&info, story->config.output, &err));
    copy = strdup(info.settings_json);
    picture_info_close(&info);
    return copy;
}

static void a_lost_tile_is_filled_from_the_draft_on_request(void **state)
{
    struct story story;
    struct err   err = {0};
    char        *settings;

    (void)state;
    small_open(&story);
    (void)snprintf(story.config.on_fail, sizeof story.config.on_fail, "draft");
    story.config.tile_retries = 1;
    story.fake.break_at = 5; /* the first tile's encoding */
    story.fake.break_count = 2;
    story.fake.break_code = ERR_NUMERIC;
    ASSERT_OK(render_poster(&story.request, &err));
    settings = settings_of(&story);
    assert_non_null(strstr(settings, "\"tiles_from_draft\":[1]"));
    free(settings);
    story.fake = (struct fake){0};
    story.request.mode = RENDER_RETRY;
    story.request.again.tiles = "1";
    ASSERT_OK(render_poster(&story.request, &err));
    assert_int_equal(story.fake.predictions, 3);
    assert_true(hash_of(&story) == reference());
    story_close(&story);
}

static void a_retry_changes_its_tiles_and_says_so(void **state)
{
    struct story   story;
    struct err     err = {0};
    const uint64_t seed = 45;
    char          *settings;
    const char *bad[] = {"0", "5", "2-", "-2", "3-2", "1,,2", "1,", "a", "99999999999", "1 2", ""};

    (void)state;
    small_open(&story);
    go_on(&story);
    story.request.mode = RENDER_RETRY;
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        story.request.again.tiles = bad[i];
        ASSERT_REFUSED(ERR_USAGE, "must be a list such as 3,7-9 of numbers 1..4",
                       render_poster(&story.request, &err));
    }
    err = (struct err){0};
    story.fake = (struct fake){0};
    story.request.again =
        (struct render_again){.tiles = "2,3-4", .seed = &seed, .prompt = "an \"other\""};
    ASSERT_OK(render_poster(&story.request, &err));
    assert_int_equal(story.fake.predictions, 9);
    assert_int_equal(story.fake.begun, 1);
    assert_true(hash_of(&story) != reference());
    settings = settings_of(&story);
    assert_non_null(strstr(settings, "{\"tile\":4,\"seed\":45,\"prompt\":\"an \\\"other\\\"\"}]"));
    assert_null(strstr(settings, "\"tile\":1,"));
    free(settings);
    story.request.again = (struct render_again){.tiles = "1-4"};
    ASSERT_OK(render_poster(&story.request, &err));
    assert_true(hash_of(&story) == reference());
    story_close(&story);
}

static void a_retry_that_failed_is_gone_on_with(void **state)
{
    static const enum render_mode modes[] = {RENDER_RESUME, RENDER_BEGIN};
    const uint64_t                seed = 45;

    (void)state;
    for (size_t i = 0; i < 2 * ARRAY_COUNT(modes); i++) {
        struct story story;
        struct err   err = {0};
        bool         finished = true, foreign = i >= ARRAY_COUNT(modes);

        small_open(&story);
        go_on(&story);
        story.fake = (struct fake){.break_at = 1, .break_count = 1, .break_code = ERR_FORMAT};
        story.request.mode = RENDER_RETRY;
        story.request.again = (struct render_again){.tiles = "2", .seed = &seed};
        assert_int_equal(render_poster(&story.request, &err), ERR_FORMAT);
        story.fake = (struct fake){0};
        story.request.mode = modes[i % ARRAY_COUNT(modes)];
        err = (struct err){0};
        if (foreign) {
            scratch_write(story.config.output, "theirs", 6);
            ASSERT_REFUSED(ERR_USAGE, "exists", render_check(&story.request, &finished, &err));
            ASSERT_REFUSED(ERR_USAGE, "exists", render_poster(&story.request, &err));
        } else {
            ASSERT_OK(render_check(&story.request, &finished, &err));
            assert_false(finished);
            ASSERT_OK(render_poster(&story.request, &err));
            assert_int_equal(story.fake.predictions, 3);
            assert_true(hash_of(&story) != reference());
        }
        story_close(&story);
    }
}

static const char *intruder;
static int         intrude(const struct render_progress *progress, void *user)
{
    (void)user;
    if (strcmp(progress->phase, "tiles") == 0) scratch_write(intruder, "theirs", 6);
    return RENDER_GO_ON;
}

static void what_came_meanwhile_is_not_replaced(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    small_open(&story);
    intruder = story.config.output;
    story.request.progress = intrude;
    ASSERT_REFUSED(ERR_USAGE, "is not replaced", render_poster(&story.request, &err));
    story.request.progress = NULL;
    story.request.mode = RENDER_RESUME;
    ASSERT_REFUSED(ERR_USAGE, "exists", render_poster(&story.request, &err));
    assert_int_equal(unlink(story.config.output), 0);
    err = (struct err){0};
    story.fake = (struct fake){0};
    ASSERT_OK(render_poster(&story.request, &err));
    assert_int_equal(story.fake.predictions, 0);
    assert_true(hash_of(&story) == reference());
    story_close(&story);
    small_open(&story);
    story.config.overwrite = true;
    intruder = story.config.output;
    story.request.progress = intrude;
    ASSERT_OK(render_poster(&story.request, &err));
    assert_true(hash_of(&story) == reference());
    story_close(&story);
}

/* -------------------------------------------------------------------------------------- stops */

static int stops_in_tiles;
static int stop_after_first(const struct render_progress *progress, void *user)
{
    (void)user;
    if (strcmp(progress->phase, "tiles") != 0) return RENDER_GO_ON;
    return stops_in_tiles == RENDER_STOP_AFTER_TILE || progress->steps_run > 2 + 3 ? stops_in_tiles
                                                                                   : RENDER_GO_ON;
}

static void a_stop_after_the_tile_finishes_the_tile(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    for (stops_in_tiles = 1; stops_in_tiles <= 2; stops_in_tiles++) {
        small_open(&story);
        story.request.progress = stop_after_first;
        ASSERT_REFUSED(ERR_CANCELLED, "of 4 tiles are safe; go on with: mural resume ",
                       render_poster(&story.request, &err));
        if (stops_in_tiles == RENDER_STOP_AFTER_TILE)
            assert_int_equal(story.fake.predictions % 3, 2); /* two of the draft; whole tiles */
        story.request.progress = count_down;
        go_on(&story);
        story_close(&story);
    }
}

/* ------------------------------------------------------------------------------------- memory */

static int   allocations, allocations_at_first_tile, allocations_at_last_tile;
static void *counting_calloc(size_t count, size_t bytes)
{
    allocations++;
    return working.calloc(count, bytes);
}
static int watch_tiles(const struct render_progress *progress, void *user)
{
    (void)user;
    if (strcmp(progress->phase, "tiles") != 0 || progress->step == 0) return 0;
    if (allocations_at_first_tile == 0) allocations_at_first_tile = allocations;
    allocations_at_last_tile = allocations;
    return 0;
}

static void nothing_is_allocated_from_the_first_tile_to_the_last(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    small_open(&story);
    story.request.progress = watch_tiles;
    os.calloc = counting_calloc;
    int rc = render_poster(&story.request, &err);
    os = working;
    assert_int_equal(rc, ERR_OK);
    assert_true(allocations_at_first_tile > 5);
    assert_int_equal(allocations_at_first_tile, allocations_at_last_tile);
    story_close(&story);
}

/* --------------------------------------------------------------------------------------- lock */

static void write_lock(const struct story *story, const char *words)
{
    char path[300];

    path_of(path, story, "lock");
    scratch_write(path, words, strlen(words));
}

static void words_of_the_dead_are_void_and_of_other_hosts_believed(void **state)
{
    struct story story;
    struct err   err = {0};
    char         host[128], words[300];

    (void)state;
    assert_int_equal(gethostname(host, sizeof host), 0);
    small_open(&story);
    go_on(&story);
    (void)unlink(story.config.output);
    write_lock(&story, "{\"host\":\"elsewhere\",\"pid\":77,\"boot\":\"0-0\"}");
    ASSERT_REFUSED(ERR_USAGE, "process 77 on host 'elsewhere' is painting it",
                   render_poster(&story.request, &err));
    (void)snprintf(words, sizeof words, "{\"host\":\"%s\",\"pid\":77,\"boot\":\"0-0\"}", host);
    write_lock(&story, words); /* before a restart of this machine */
    go_on(&story);
    (void)unlink(story.config.output);
    write_lock(&story, "{\"host\":\"else"); /* died while it wrote them */
    go_on(&story);
    story_close(&story);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_truncation_and_damage_is_mended),
        cmocka_unit_test(stored_tiles_are_not_trusted_unseen),
        cmocka_unit_test(what_differs_is_named),
        cmocka_unit_test(settings_come_back_as_words),
        cmocka_unit_test(every_failing_primitive_is_tried_again),
        cmocka_unit_test(without_retries_a_failure_costs_one_tile),
        cmocka_unit_test(what_cannot_pass_ends_the_run_at_once),
        cmocka_unit_test(a_lost_tile_is_filled_from_the_draft_on_request),
        cmocka_unit_test(a_retry_changes_its_tiles_and_says_so),
        cmocka_unit_test(a_retry_that_failed_is_gone_on_with),
        cmocka_unit_test(what_came_meanwhile_is_not_replaced),
        cmocka_unit_test(a_stop_after_the_tile_finishes_the_tile),
        cmocka_unit_test(nothing_is_allocated_from_the_first_tile_to_the_last),
        cmocka_unit_test(words_of_the_dead_are_void_and_of_other_hosts_believed),
    };
    working = os;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
