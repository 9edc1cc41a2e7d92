/*
 * test_group.c - tiles painted in lockstep: the bytes of tiles painted alone, whatever the size of
 * the group, wherever a run stopped, whichever of them failed.
 *
 * The painter's steps depend on the latent, its noise and the number of the step, so that tiles
 * that were mixed up, or steps that were, show.
 */
#include "fake_painter.h"

enum { TILES = 12, STEPS = 3, DRAFT_STEPS = 2 };
enum { DRAFT_CALLS = 4 }; /* begin, two steps, decode */

static void group_open(struct story *story, uint32_t tiles_per_pass)
{
    struct err err = {0};

    story_open(story, "even", 8);
    story->config.width_px = 280;
    story->config.height_px = 200;
    story->config.tile_px = 112;
    story->config.draft_px = 64;
    story->config.keep_tiles = true;
    ASSERT_OK(render_plan_make(&story->plan, &story->config, &err));
    assert_int_equal(grid_count(&story->plan.grid), TILES);
    story->fake.moves = true;
    story->painter.tiles_max = PAINTER_TILES_MAX;
    story->request.tiles_per_pass = tiles_per_pass;
}

/* What tiles painted one by one come to. */
static uint64_t alone(void)
{
    static uint64_t known;
    struct story    story;
    struct err      err = {0};

    if (known != 0) return known;
    group_open(&story, 1);
    ASSERT_OK(render_poster(&story.request, &err));
    assert_int_equal(story.fake.predictions, DRAFT_STEPS + TILES * STEPS);
    known = hash_of(&story);
    story_close(&story);
    return known;
}

/* Another process, with groups of another size. */
static void finish(struct story *story, uint32_t tiles_per_pass)
{
    struct err err = {0};

    story->fake = (struct fake){.moves = true};
    story->request.tiles_per_pass = tiles_per_pass;
    ASSERT_OK(render_poster(&story->request, &err));
    assert_true(hash_of(story) == alone());
}

/* The width of each pass over the tiles; a pass is told by its first step's prediction. */
static void assert_passes(const struct fake *fake, const char *expected)
{
    char   got[400] = "";
    size_t used = 0;

    for (int i = DRAFT_STEPS; i < fake->predictions && used < sizeof got - 8; i++)
        used += (size_t)snprintf(got + used, sizeof got - used, "%d ", fake->widths[i]);
    assert_string_equal(got, expected);
}

/* The journal's number `key` of a tile's last record, or -1. */
static double noted(const struct story *story, uint32_t tile, const char *key)
{
    struct err err = {0};
    char       path[300], record[64], name[32];
    char      *text = NULL;
    size_t     count;
    double     value = -1;

    (void)snprintf(path, sizeof path, "%s.mural/journal", story->config.output);
    (void)snprintf(record, sizeof record, "{\"is\":\"tile\",\"tile\":%u,", tile);
    (void)snprintf(name, sizeof name, "\"%s\":", key);
    ASSERT_OK(os_read_text(&text, &count, path, 1 << 20, &err));
    for (char *at = text; (at = strstr(at, record)) != NULL; at++)
        value = strtod(strstr(at, name) + strlen(name), NULL);
    os_free(text);
    return value;
}

/* --------------------------------------------------------------------------------- the bytes */

static void any_size_of_group_gives_the_same_bytes(void **state)
{
    static const uint32_t sizes[] = {0, 1, 2, 3, 5, TILES, PAINTER_TILES_MAX};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
        for (uint32_t can = 0; can <= 4; can += 4) { /* 0: all of them */
            struct story story;
            struct err   err = {0};
            uint32_t     size = sizes[i] == 0 ? 1 : sizes[i];

            group_open(&story, sizes[i]);
            if (can > 0) story.painter.tiles_max = can;
            if (can > 0 && size > can) size = can;
            if (size > TILES) size = TILES;
            ASSERT_OK(render_poster(&story.request, &err));
            assert_true(hash_of(&story) == alone());
            assert_int_equal(story.fake.predictions,
                             DRAFT_STEPS + STEPS * (int)((TILES + size - 1) / size));
            assert_int_equal(story.fake.widths[DRAFT_STEPS], size);
            assert_int_equal(story.fake.begun, 2);
            assert_int_equal(story.fake.ended, 2);
            for (uint32_t tile = 1; tile <= TILES; tile++)
                assert_true(noted(&story, tile, "attempts") == 1);
            story_close(&story);
        }
}

static void a_painter_that_says_nothing_gets_one_at_a_time(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    group_open(&story, 5);
    story.painter.tiles_max = 0;
    ASSERT_OK(render_poster(&story.request, &err));
    assert_int_equal(story.fake.predictions, DRAFT_STEPS + TILES * STEPS);
    story_close(&story);
}

static int stop_how, stop_at_call, calls_heard;
static int stop_at(const struct render_progress *progress, void *user)
{
    (void)user;
    assert_true(progress->tiles_done <= progress->tiles_total);
    return ++calls_heard == stop_at_call ? stop_how : RENDER_GO_ON;
}

/* At every moment that the caller is asked, in both ways; then on, with groups of another size. */
static void stopped_in_the_middle_it_goes_on_to_the_same_bytes(void **state)
{
    (void)state;
    for (stop_how = RENDER_STOP_NOW; stop_how <= RENDER_STOP_AFTER_TILE; stop_how++) {
        int rc = ERR_CANCELLED;
        for (stop_at_call = 4; rc != ERR_OK; stop_at_call += 5) {
            struct story story;
            struct err   err = {0};

            group_open(&story, 5);
            story.request.progress = stop_at;
            calls_heard = 0;
            rc = render_poster(&story.request, &err);
            if (rc != ERR_OK) {
                assert_int_equal(rc, ERR_CANCELLED);
                if (stop_how == RENDER_STOP_AFTER_TILE && strstr(err.text, "0 of") == NULL) {
                    /* The group in work was finished. */
                    assert_true(strstr(err.text, " 5 of 12") != NULL ||
                                strstr(err.text, "10 of 12") != NULL);
                }
                story.request.progress = NULL;
                finish(&story, 1 + (uint32_t)stop_at_call % 4);
            }
            assert_true(hash_of(&story) == alone());
            story_close(&story);
        }
        assert_true(stop_at_call > 15);
    }
}

static void retried_tiles_are_grouped_and_the_same(void **state)
{
    const uint64_t seed = 44;
    uint64_t       want = 0;

    (void)state;
    for (uint32_t size = 1; size <= 3; size++) {
        struct story story;
        struct err   err = {0};

        group_open(&story, size);
        finish(&story, size);
        story.request.mode = RENDER_RETRY;
        story.request.again.tiles = "2,5,9-12";
        story.fake = (struct fake){.moves = true};
        ASSERT_OK(render_poster(&story.request, &err));
        assert_true(hash_of(&story) == alone());
        assert_int_equal(story.fake.predictions, STEPS * (int)((6 + size - 1) / size));
        story.request.again.seed = &seed;
        ASSERT_OK(render_poster(&story.request, &err));
        if (size == 1) want = hash_of(&story);
        assert_true(hash_of(&story) == want && want != alone());
        story_close(&story);
    }
}

static int stop_at_once(const struct render_progress *progress, void *user)
{
    (void)user;
    return strcmp(progress->phase, "checking") == 0 ? RENDER_GO_ON : RENDER_STOP_NOW;
}

/* Tiles of two prompts are to be painted: each prompt has groups of its own. */
static void tiles_of_another_prompt_are_no_neighbours(void **state)
{
    uint64_t want = 0;

    (void)state;
    for (uint32_t size = 1; size <= 4; size += 3) {
        struct story story;
        struct err   err = {0};

        group_open(&story, size);
        finish(&story, size);
        story.request.mode = RENDER_RETRY;
        story.request.progress = stop_at_once;
        story.request.again = (struct render_again){.tiles = "2-7", .prompt = "another"};
        ASSERT_REFUSED(ERR_CANCELLED, "6 of 12", render_poster(&story.request, &err));
        story.request.progress = NULL;
        story.request.again = (struct render_again){.tiles = "1,4,8"};
        story.fake = (struct fake){.moves = true};
        err = (struct err){0};
        ASSERT_OK(render_poster(&story.request, &err));
        assert_int_equal(story.fake.begun, 2);
        if (size == 1)
            want = hash_of(&story);
        else /* 1, 4 and 8; 2, 3, 5 and 6; 7 */
            assert_int_equal(story.fake.predictions, 3 * STEPS);
        assert_true(hash_of(&story) == want && want != alone());
        story_close(&story);
    }
}

/* ---------------------------------------------------------------------------------- failures */

/* Any tile of a group, in any step, told by the painter or not. */
static void a_tile_with_nan_fails_alone(void **state)
{
    (void)state;
    for (int at = DRAFT_STEPS + 1; at <= DRAFT_STEPS + 2 * STEPS; at++)
        for (int tile = 0; tile < 4; tile++) {
            struct story story;
            struct err   err = {0};
            int          pass = (at - DRAFT_STEPS - 1) / STEPS;

            group_open(&story, 4);
            story.fake.nan_at = at;
            story.fake.nan_tile = tile;
            story.fake.tells = tile % 2 == 0;
            ASSERT_OK(render_poster(&story.request, &err));
            assert_true(hash_of(&story) == alone());
            assert_int_equal(story.fake.predictions, DRAFT_STEPS + STEPS * (TILES / 4 + 1));
            assert_int_equal(story.fake.widths[DRAFT_STEPS + (pass + 1) * STEPS - 1],
                             (at - DRAFT_STEPS) % STEPS == 0 ? 4 : 3);
            assert_int_equal(story.fake.widths[DRAFT_STEPS + (pass + 1) * STEPS], 1);
            for (uint32_t i = 0; i < TILES; i++)
                assert_true(noted(&story, i + 1, "attempts") ==
                            ((int)i == 4 * pass + tile ? 2 : 1));
            story_close(&story);
        }
}

/* What befalls a pass costs each of its tiles an attempt, and halves what is tried next. */
static void a_pass_that_fails_is_tried_in_halves(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    group_open(&story, 5);
    story.fake.break_at = DRAFT_CALLS + 1 + 5 + 2; /* the second step of the first group */
    story.fake.break_count = 2;                    /* and the next encoding */
    story.fake.break_code = ERR_DEVICE;
    ASSERT_OK(render_poster(&story.request, &err));
    assert_true(hash_of(&story) == alone());
    assert_passes(&story.fake, "5 5 2 2 2 3 3 3 5 5 5 2 2 2 ");
    assert_true(noted(&story, 1, "attempts") == 3 && noted(&story, 2, "attempts") == 2);
    assert_true(noted(&story, 5, "attempts") == 2 && noted(&story, 6, "attempts") == 1);
    story_close(&story);
}

/* A prompt is not made easier by fewer tiles. */
static void a_prompt_that_fails_leaves_the_group_whole(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    group_open(&story, 5);
    story.fake.break_at = DRAFT_CALLS + 1;
    story.fake.break_count = 1;
    story.fake.break_code = ERR_DEVICE_MEM;
    ASSERT_OK(render_poster(&story.request, &err));
    assert_true(hash_of(&story) == alone());
    assert_passes(&story.fake, "5 5 5 5 5 5 2 2 2 ");
    assert_true(noted(&story, 5, "attempts") == 2 && noted(&story, 6, "attempts") == 1);
    story_close(&story);
}

static void without_retries_what_failed_is_missing_and_no_more(void **state)
{
    (void)state;
    for (int whole = 0; whole < 2; whole++) {
        struct story story;
        struct err   err = {0};

        group_open(&story, 4);
        story.config.tile_retries = 0;
        if (whole == 1) {
            story.fake.break_at = DRAFT_CALLS + 1 + 4 + 1; /* the first step of the first group */
            story.fake.break_count = 1;
            story.fake.break_code = ERR_DEVICE;
        } else {
            story.fake.nan_at = DRAFT_STEPS + 2;
            story.fake.nan_tile = 2;
        }
        ASSERT_REFUSED(ERR_PARTIAL,
                       whole == 1 ? "4 of 12 tiles are missing: tile 1"
                                  : "1 of 12 tiles are missing: tile 3",
                       render_poster(&story.request, &err));
        finish(&story, 3);
        assert_int_equal(story.fake.predictions, whole == 1 ? 2 * STEPS : STEPS);
        story_close(&story);
    }
}

/* Each call of each kind, once, twice and three times in a row. */
static void every_failing_primitive_of_a_group_is_tried_again(void **state)
{
    static const enum err_code codes[] = {ERR_DEVICE, ERR_NUMERIC, ERR_PEER, ERR_OK};

    (void)state;
    for (size_t kind = 0; kind < ARRAY_COUNT(codes); kind++)
        for (int n = DRAFT_CALLS + 1, calls = n; n <= calls; n += MURAL_SANITIZED ? 11 : 3) {
            struct story story;
            struct err   err = {0};

            group_open(&story, 5);
            story.fake.break_at = n;
            story.fake.break_count = 1 + n % 3;
            story.fake.break_code = codes[kind];
            ASSERT_OK(render_poster(&story.request, &err));
            assert_true(hash_of(&story) == alone());
            calls = story.fake.calls;
            story_close(&story);
        }
}

/* ------------------------------------------------------------------------------------ memory */

static int  blankets;
static void count_blankets(enum log_level level, const char *line, void *user)
{
    (void)level, (void)user;
    if (strstr(line, "blanket") != NULL && strstr(line, "7 MB") != NULL) blankets++;
}

static void a_painter_gives_up_memory_before_the_next_attempt(void **state)
{
    static const enum err_code codes[] = {ERR_DEVICE_MEM, ERR_HOST_MEM};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(codes); i++) {
        struct story story;
        struct err   err = {0};

        group_open(&story, 6);
        story.painter.yield_memory = fake_yield;
        story.fake.lacks_code = codes[i];
        story.fake.yields = 2;
        blankets = 0;
        log_install(count_blankets, NULL, LOG_DEBUG);
        ASSERT_OK(render_poster(&story.request, &err));
        log_install(NULL, NULL, LOG_DEBUG);
        assert_int_equal(blankets, 2);
        assert_true(hash_of(&story) == alone());
        /* Smaller after each failure; full again for the next group, since memory was found. */
        assert_passes(&story.fake, "6 3 2 2 2 2 2 2 2 2 2 6 6 6 ");
        story_close(&story);
    }
}

static void a_draft_is_tried_again_with_less_memory(void **state)
{
    (void)state;
    for (int call = 1; call <= DRAFT_CALLS; call++) {
        struct story story;
        struct err   err = {0};

        group_open(&story, 12);
        story.painter.yield_memory = fake_yield;
        story.fake.break_at = call;
        story.fake.break_count = 1;
        story.fake.break_code = ERR_HOST_MEM; /* passes only where some is given up */
        story.fake.yields = 1;
        ASSERT_OK(render_poster(&story.request, &err));
        assert_int_equal(story.fake.asked, 1);
        assert_true(hash_of(&story) == alone());
        story_close(&story);
    }
}

/* Nothing is left to give up: fewer tiles at a time fit, now and later. */
static void where_memory_stays_short_groups_stay_small(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    group_open(&story, 6);
    story.painter.yield_memory = fake_yield;
    story.fake.lacks_code = ERR_DEVICE_MEM;
    story.fake.yields = 1;
    story.fake.fits = 2;
    ASSERT_OK(render_poster(&story.request, &err));
    assert_true(hash_of(&story) == alone());
    assert_passes(&story.fake, "6 3 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 ");
    story_close(&story);
    /* The host's memory does not come back by itself. */
    group_open(&story, 6);
    story.painter.yield_memory = fake_yield;
    story.fake.lacks_code = ERR_HOST_MEM;
    story.fake.fits = 1;
    ASSERT_REFUSED(ERR_HOST_MEM, "no room for 6 tiles", render_poster(&story.request, &err));
    finish(&story, 2);
    story_close(&story);
}

static void *(*real_calloc)(size_t, size_t);
static int   allocations, at_first_step, at_last_step;
static void *counting_calloc(size_t count, size_t bytes)
{
    allocations++;
    return real_calloc(count, bytes);
}
static int watch_tiles(const struct render_progress *progress, void *user)
{
    (void)user;
    if (strcmp(progress->phase, "tiles") != 0 || progress->step == 0) return RENDER_GO_ON;
    if (at_first_step == 0) at_first_step = allocations;
    at_last_step = allocations;
    return RENDER_GO_ON;
}

static void nothing_is_allocated_from_the_first_group_to_the_last(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    group_open(&story, 5);
    story.request.progress = watch_tiles;
    story.fake.nan_at = DRAFT_STEPS + 2;
    real_calloc = os.calloc;
    os.calloc = counting_calloc;
    int rc = render_poster(&story.request, &err);
    os.calloc = real_calloc;
    assert_int_equal(rc, ERR_OK);
    assert_true(at_first_step > 5);
    assert_int_equal(at_first_step, at_last_step);
    story_close(&story);
}

/* ---------------------------------------------------------------------------------- counting */

static int slow_predict(void *self, const struct painter_tile *tiles, uint32_t count, uint32_t step,
                        struct err *err)
{
    (void)os.poll(-1, 0, 12);
    return fake_predict(self, tiles, count, step, err);
}

static uint64_t steps_seen;
static double   fraction_seen;
static int      see_progress(const struct render_progress *progress, void *user)
{
    (void)user;
    assert_true(progress->fraction >= fraction_seen);
    fraction_seen = progress->fraction;
    steps_seen = progress->steps_run;
    return RENDER_GO_ON;
}

/* Steps count for every tile; seconds are shared out, and add up. */
static void steps_and_seconds_are_counted_for_each_tile(void **state)
{
    struct story story;
    struct err   err = {0};
    double       sum = 0, begun = os_seconds(), passed;

    (void)state;
    group_open(&story, 5);
    story.painter.predict = slow_predict;
    story.request.progress = see_progress;
    ASSERT_OK(render_poster(&story.request, &err));
    passed = os_seconds() - begun;
    assert_int_equal(steps_seen, DRAFT_STEPS + TILES * STEPS);
    assert_true(fraction_seen > 0.99);
    for (uint32_t tile = 1; tile <= TILES; tile++) {
        double seconds = noted(&story, tile, "steps");
        assert_true(seconds == noted(&story, (tile - 1) / 5 * 5 + 1, "steps"));
        sum += seconds;
    }
    assert_true(sum > 3 * STEPS * 0.012 - TILES * 0.0005 && sum < passed);
    story_close(&story);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_size_of_group_gives_the_same_bytes),
        cmocka_unit_test(a_painter_that_says_nothing_gets_one_at_a_time),
        cmocka_unit_test(stopped_in_the_middle_it_goes_on_to_the_same_bytes),
        cmocka_unit_test(retried_tiles_are_grouped_and_the_same),
        cmocka_unit_test(tiles_of_another_prompt_are_no_neighbours),
        cmocka_unit_test(a_tile_with_nan_fails_alone),
        cmocka_unit_test(a_pass_that_fails_is_tried_in_halves),
        cmocka_unit_test(a_prompt_that_fails_leaves_the_group_whole),
        cmocka_unit_test(without_retries_what_failed_is_missing_and_no_more),
        cmocka_unit_test(every_failing_primitive_of_a_group_is_tried_again),
        cmocka_unit_test(a_painter_gives_up_memory_before_the_next_attempt),
        cmocka_unit_test(a_draft_is_tried_again_with_less_memory),
        cmocka_unit_test(where_memory_stays_short_groups_stay_small),
        cmocka_unit_test(nothing_is_allocated_from_the_first_group_to_the_last),
        cmocka_unit_test(steps_and_seconds_are_counted_for_each_tile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
