/*
 * test_crew.c - several painters: the same bytes, whoever paints what, and whoever fails.
 *
 * Short, so that it can run under ThreadSanitizer as well.
 */
#include "fake_painter.h"

static void any_number_of_painters_gives_the_same_bytes(void **state)
{
    (void)state;
    for (uint32_t count = 2; count <= 5; count++) {
        struct story   story;
        struct err     err = {0};
        struct fake    fakes[5] = {{0}};
        struct painter painters[5];
        int            predictions = 0;

        small_open(&story);
        for (uint32_t i = 0; i < count; i++)
            painters[i] = painter_of(&fakes[i]);
        story.request.painters = painters;
        story.request.painter_count = count;
        ASSERT_OK(render_poster(&story.request, &err));
        assert_true(hash_of(&story) == reference());
        for (uint32_t i = 0; i < count; i++) {
            predictions += fakes[i].predictions;
            assert_int_equal(fakes[i].begun, fakes[i].ended);
        }
        assert_int_equal(predictions, 2 + 4 * 3);
        story_close(&story);
    }
}

static void a_broken_painter_is_left_out(void **state)
{
    (void)state;
    for (int broken = 0; broken < 3; broken++) {
        struct story   story;
        struct err     err = {0};
        struct fake    fakes[2] = {{0}};
        struct painter painters[2] = {painter_of(&fakes[0]), painter_of(&fakes[1])};

        small_open(&story);
        story.config.tile_retries = 1;
        for (int i = 0; i < 2; i++) {
            if (i != broken && broken != 2) continue;
            fakes[i].break_at = i == 0 ? 5 : 1; /* the draft is painted by the first */
            fakes[i].break_count = 1 << 20;
            fakes[i].break_code = ERR_PEER;
        }
        story.request.painters = painters;
        story.request.painter_count = 2;
        if (broken < 2) {
            ASSERT_OK(render_poster(&story.request, &err));
            assert_true(hash_of(&story) == reference());
        } else {
            ASSERT_REFUSED(ERR_PARTIAL, "4 of 4 tiles are missing",
                           render_poster(&story.request, &err));
        }
        story.request.painter_count = 1;
        story.request.painters = &story.painter;
        (void)unlink(story.config.output);
        err = (struct err){0};
        go_on(&story);
        story_close(&story);
    }
}

/* The first painter fails its first tile once, and goes on when the second is of no use any more,
 * which is after three failures: the tile was handed over, and must come back. */
static int  first_began, second_failed;
static void wait_until(const int *count, int least)
{
    while (__atomic_load_n(count, __ATOMIC_ACQUIRE) < least)
        (void)os.poll(-1, 0, 1);
}
static int begin_first(void *self, const struct painter_stage *stage, uint32_t *steps_out,
                       struct err *err)
{
    if (stage->sigma_start < 1) {
        if (__atomic_add_fetch(&first_began, 1, __ATOMIC_ACQ_REL) == 1)
            return err_set(err, ERR_PEER, 0, ERR_WHERE, "it died");
        wait_until(&second_failed, 3);
    }
    return fake_begin(self, stage, steps_out, err);
}
static int begin_second(void *self, const struct painter_stage *stage, uint32_t *steps_out,
                        struct err *err)
{
    (void)self, (void)stage, (void)steps_out;
    wait_until(&first_began, 2);
    (void)__atomic_add_fetch(&second_failed, 1, __ATOMIC_ACQ_REL);
    return err_set(err, ERR_PEER, 0, ERR_WHERE, "it dies");
}

static void a_tile_comes_back_when_nobody_else_is_left(void **state)
{
    struct story   story;
    struct err     err = {0};
    struct fake    fakes[2] = {{0}};
    struct painter painters[2] = {painter_of(&fakes[0]), painter_of(&fakes[1])};

    (void)state;
    story_open(&story, "even", 8);
    assert_true(grid_count(&story.plan.grid) > 6);
    painters[0].begin = begin_first;
    painters[1].begin = begin_second;
    story.config.tile_retries = 0;
    story.request.painters = painters;
    story.request.painter_count = 2;
    ASSERT_OK(render_poster(&story.request, &err));
    assert_int_equal(second_failed, 3);
    story_close(&story);
}

static int stop_when;
static int stop_after_one(const struct render_progress *progress, void *user)
{
    (void)user;
    return progress->tiles_done > 0 ? stop_when : RENDER_GO_ON;
}

static void a_stop_is_heard_by_all(void **state)
{
    (void)state;
    for (stop_when = RENDER_STOP_NOW; stop_when <= RENDER_STOP_AFTER_TILE; stop_when++) {
        struct story   story;
        struct err     err = {0};
        struct fake    fakes[3] = {{0}};
        struct painter painters[3];

        small_open(&story);
        for (int i = 0; i < 3; i++)
            painters[i] = painter_of(&fakes[i]);
        story.request.painters = painters;
        story.request.painter_count = 3;
        story.request.progress = stop_after_one;
        int rc = render_poster(&story.request, &err);
        assert_true(rc == ERR_CANCELLED || rc == ERR_OK); /* all may be done before it is heard */
        story.request.painters = &story.painter;
        story.request.painter_count = 1;
        story.request.progress = count_down;
        go_on(&story);
        story_close(&story);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_painters_gives_the_same_bytes),
        cmocka_unit_test(a_broken_painter_is_left_out),
        cmocka_unit_test(a_tile_comes_back_when_nobody_else_is_left),
        cmocka_unit_test(a_stop_is_heard_by_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
