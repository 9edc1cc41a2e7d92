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

/* A poster of 20 tiles, with steps that show whose latent and noise they took. */
static uint64_t grouped(uint32_t hands, uint32_t tiles_per_pass, int broken)
{
    struct story   story;
    struct err     err = {0};
    struct fake    fakes[4] = {{0}};
    struct painter painters[4];
    uint64_t       hash;

    story_open(&story, "even", 8);
    story.config.width_px = 360;
    story.config.height_px = 280;
    story.config.tile_px = 112;
    story.config.draft_px = 64;
    story.config.tile_retries = 1;
    ASSERT_OK(render_plan_make(&story.plan, &story.config, &err));
    assert_int_equal(grid_count(&story.plan.grid), 20);
    for (uint32_t i = 0; i < hands; i++) {
        fakes[i].moves = true;
        painters[i] = painter_of(&fakes[i]);
        painters[i].tiles_max = tiles_per_pass + i % 2;
    }
    if (broken >= 0) {
        fakes[broken].break_at = broken == 0 ? 9 : 5; /* the first painted the draft */
        fakes[broken].break_count = 1 << 20;
        fakes[broken].break_code = ERR_PEER;
    }
    story.request.painters = painters;
    story.request.painter_count = hands;
    story.request.tiles_per_pass = tiles_per_pass;
    ASSERT_OK(render_poster(&story.request, &err));
    for (uint32_t i = 0; i < hands; i++)
        for (int p = i == 0 ? 2 : 0; p < fakes[i].predictions; p++)
            assert_in_range(fakes[i].widths[p], 1, tiles_per_pass);
    hash = hash_of(&story);
    story_close(&story);
    return hash;
}

static void groups_of_several_hands_give_the_same_bytes(void **state)
{
    uint64_t alone = grouped(1, 1, -1);

    (void)state;
    for (uint32_t hands = 2; hands <= 4; hands++)
        for (uint32_t tiles = 2; tiles <= 20; tiles += 3)
            assert_true(grouped(hands, tiles, -1) == alone);
    for (int broken = 0; broken < 2; broken++) /* its tiles are handed over, and come back */
        assert_true(grouped(2, 4, broken) == alone);
}

/* Hands that take what crew_share says, each tile in one second, whatever they have in work. */
static void shares_let_no_hand_stand_idle(void **state)
{
    uint64_t random = 3;

    (void)state;
    for (int round = 0; round < 20000; round++) {
        uint32_t hands = (uint32_t)random_between(&random, 1, 6), groups = 0, fewest = 0;
        uint32_t most = (uint32_t)random_between(&random, 1, 9);
        uint32_t left = (uint32_t)random_between(&random, 1, 60), all = left;
        double   ends[6] = {0}, last = 0, sum = 0;

        for (uint32_t i = 0; i < hands; i++)
            sum += ends[i] = (double)random_between(&random, 0, 8);
        while (left > 0) {
            uint32_t free = 0, others = 0, share;
            double   rests[5];
            for (uint32_t i = 1; i < hands; i++)
                if (ends[i] < ends[free]) free = i;
            for (uint32_t i = 0; i < hands; i++)
                if (i != free) rests[others++] = ends[i] - ends[free];
            share = crew_share(left, most, rests, others);
            assert_true(share >= 1 && share <= most && share <= left);
            if (hands == 1) assert_int_equal(share, left < most ? left : most);
            ends[free] += share;
            left -= share;
            groups++;
        }
        for (uint32_t i = 0; i < hands; i++)
            last = ends[i] > last ? ends[i] : last;
        /* Nobody ends later than the tiles make inevitable, by more than a part of a tile each. */
        if (last > 8 && last >= (sum + all) / hands + 1) fail_msg("round %d: %g", round, last);
        /* And no more groups than that needs. */
        fewest = (all + most - 1) / most;
        assert_true(groups <= fewest + 2 * hands);
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
    if (stage->levels.sigma_start < 1) {
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
        cmocka_unit_test(groups_of_several_hands_give_the_same_bytes),
        cmocka_unit_test(shares_let_no_hand_stand_idle),
        cmocka_unit_test(a_broken_painter_is_left_out),
        cmocka_unit_test(a_tile_comes_back_when_nobody_else_is_left),
        cmocka_unit_test(a_stop_is_heard_by_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
