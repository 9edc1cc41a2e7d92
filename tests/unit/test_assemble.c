/*
 * test_assemble.c - bands that are made while tiles are painted: the same bytes, whatever happens
 * to them meanwhile.
 *
 * Posters of three bands, uncompressed and one file tile wide, so that the size of the file says
 * how many bands are in it.  Short, so that it can run under ThreadSanitizer as well.
 */
#include "fake_painter.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>

enum { BAND_BYTES = 512 * 512 * 3, EARLY_BANDS = 2, DRAFT_STEPS = 2, STEPS = 3 };

static struct story   *watched;
static struct os_calls working;
static int64_t early_bytes; /* of the file before the last tile; negative: it is gone; 0: not yet */
static enum render_stop answer; /* before the last tile */
static _Atomic bool     paints, broken;
static _Atomic int      warnings;

static int64_t part_bytes(void)
{
    char        path[300];
    struct stat about;

    (void)snprintf(path, sizeof path, "%s.part", watched->config.output);
    return stat(path, &about) == 0 ? about.st_size : -1;
}

/* In the middle of the last tile, wait for what can be made of the file.  Of several painters'
 * tiles, the last is any. */
static int wait_for_bands(const struct render_progress *now, void *user)
{
    const struct timespec slice = {.tv_nsec = 5 * 1000 * 1000};
    const int64_t         wanted = EARLY_BANDS * BAND_BYTES;
    const uint64_t        others = DRAFT_STEPS + (now->tiles_total - 1) * STEPS;

    (void)user;
    paints = strcmp(now->phase, "tiles") == 0;
    if (!paints || watched->request.painter_count > 1) return RENDER_GO_ON;
    if (early_bytes != 0 || now->step == 0 || now->steps_run <= others) return RENDER_GO_ON;
    for (int i = 0; i < 2000; i++) {
        early_bytes = part_bytes();
        if (broken ? early_bytes < 0 : early_bytes >= wanted) break;
        (void)nanosleep(&slice, NULL);
    }
    broken = false;
    return answer;
}

/* Nothing but the poster's file is written in pieces of this size. */
static int64_t breaking_pwrite(int fd, const void *x, size_t bytes, int64_t offset)
{
    if (!paints || !broken || bytes < BAND_BYTES) return working.pwrite(fd, x, bytes, offset);
    errno = ENOSPC;
    return -1;
}

static void count_warnings(enum log_level level, const char *line, void *user)
{
    (void)user;
    if (level == LOG_WARN && strstr(line, "is begun again: ") != NULL) warnings++;
}

static void tall_open(struct story *story)
{
    struct err err = {0};

    story_open(story, "even", 8);
    story->config.width_px = 100;
    story->config.height_px = 1200;
    story->config.tile_px = 128;
    (void)snprintf(story->config.compression, sizeof story->config.compression, "none");
    ASSERT_OK(render_plan_make(&story->plan, &story->config, &err));
    story->request.progress = wait_for_bands;
    watched = story;
    working = os;
    answer = RENDER_GO_ON;
    broken = paints = false;
    early_bytes = 0;
    warnings = 0;
    log_install(count_warnings, NULL, LOG_WARN);
}

static void tall_close(struct story *story)
{
    os = working;
    log_install(NULL, NULL, LOG_ERROR);
    story_close(story);
}

/* The poster is the one that is made at once out of the tiles that the story has stored. */
static void check_against_one_made_at_once(struct story *story)
{
    struct err err = {0};
    uint64_t   hash = hash_of(story);

    assert_int_equal(unlink(story->config.output), 0);
    story->fake = (struct fake){0};
    ASSERT_OK(render_poster(&story->request, &err));
    assert_int_equal(story->fake.predictions, 0);
    assert_true(hash_of(story) == hash);
}

static void bands_are_made_before_the_last_tile(void **state)
{
    (void)state;
    for (uint32_t hands = 1; hands <= 3; hands++) {
        struct story   story;
        struct err     err = {0};
        struct fake    fakes[3] = {{0}};
        struct painter painters[3];

        tall_open(&story);
        for (uint32_t i = 0; i < hands; i++)
            painters[i] = painter_of(&fakes[i]);
        story.request.painters = painters;
        story.request.painter_count = hands;
        ASSERT_OK(render_poster(&story.request, &err));
        if (hands == 1) assert_in_range(early_bytes, EARLY_BANDS * BAND_BYTES, 3 * BAND_BYTES - 1);
        check_against_one_made_at_once(&story);
        assert_int_equal(warnings, 0);
        tall_close(&story);
    }
}

static void a_file_that_fails_early_is_begun_again(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    tall_open(&story);
    broken = true;
    os.pwrite = breaking_pwrite;
    ASSERT_OK(render_poster(&story.request, &err));
    assert_true(early_bytes < 0); /* its room on the disk was the tiles' */
    assert_int_equal(warnings, 1);
    check_against_one_made_at_once(&story);
    tall_close(&story);
}

static void a_stopped_run_leaves_no_part_of_the_file(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    tall_open(&story);
    answer = RENDER_STOP_NOW;
    ASSERT_REFUSED(ERR_CANCELLED, "tiles are safe", render_poster(&story.request, &err));
    assert_true(early_bytes >= EARLY_BANDS * BAND_BYTES);
    assert_int_equal(scratch_count(story.folder), 1); /* the folder of tiles */
    answer = RENDER_GO_ON;
    err = (struct err){0};
    ASSERT_OK(render_poster(&story.request, &err));
    check_against_one_made_at_once(&story);
    tall_close(&story);
}

/* The words before the bands must say so, and no other words are there when they are made. */
static void a_tile_that_is_filled_is_named_in_the_file(void **state)
{
    struct story        story;
    struct err          err = {0};
    struct picture_info info;
    char                words[64];

    (void)state;
    tall_open(&story);
    (void)snprintf(story.config.on_fail, sizeof story.config.on_fail, "draft");
    story.config.tile_retries = 0;
    /* A draft is begun, two steps and a decoding; a stage is begun; a tile is an encoding, three
     * steps and a decoding; and this is the second step of the last tile. */
    story.fake.break_at = 4 + 1 + 5 * ((int)grid_count(&story.plan.grid) - 1) + 3;
    story.fake.break_count = 1;
    story.fake.break_code = ERR_NUMERIC;
    ASSERT_OK(render_poster(&story.request, &err));
    assert_true(early_bytes >= EARLY_BANDS * BAND_BYTES);
    ASSERT_OK(picture_info_read(&info, story.config.output, &err));
    (void)snprintf(words, sizeof words, "\"tiles_from_draft\":[%d]",
                   (int)grid_count(&story.plan.grid));
    if (strstr(info.settings_json, words) == NULL)
        fail_msg("no %s in %s", words, info.settings_json);
    picture_info_close(&info);
    tall_close(&story);
}

static int no_thread(pthread_t *out, void *(*run)(void *), void *argument)
{
    (void)out, (void)run, (void)argument;
    return EAGAIN;
}

static void a_thread_that_cannot_start_is_told(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    tall_open(&story);
    os.thread_create = no_thread;
    ASSERT_REFUSED(ERR_HOST_MEM, "cannot start a thread", render_poster(&story.request, &err));
    assert_int_equal(scratch_count(story.folder), 1);
    tall_close(&story);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bands_are_made_before_the_last_tile),
        cmocka_unit_test(a_file_that_fails_early_is_begun_again),
        cmocka_unit_test(a_stopped_run_leaves_no_part_of_the_file),
        cmocka_unit_test(a_tile_that_is_filled_is_named_in_the_file),
        cmocka_unit_test(a_thread_that_cannot_start_is_told),
    };
    return cmocka_run_group_tests_name("assemble", tests, NULL, NULL);
}
