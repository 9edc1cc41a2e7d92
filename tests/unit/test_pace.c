/* test_pace.c - speed and remaining time, with a clock that the test turns. */
#include "../test.h"

#include "render/render.h"

/* A run of `total` equal steps whose first `slow` take ten seconds each, the others one: what is
 * told after `steps` of them. */
static struct pace told_after(uint32_t warmup_steps, uint32_t slow, uint32_t steps, uint32_t total)
{
    struct pace            pace = {.warmup_steps = warmup_steps};
    struct render_progress now = {.phase = "tiles"};
    double                 clock = 1000;

    pace_note(&pace, &now, clock);
    for (uint32_t i = 0; i < steps; i++) {
        clock += i < slow ? 10 : 1;
        now.steps_run = i + 1;
        now.fraction = (double)(i + 1) / total;
        pace_note(&pace, &now, clock);
    }
    return pace;
}

static void nothing_is_promised_early(void **state)
{
    struct pace pace = told_after(3, 3, 3, 100);

    (void)state;
    assert_true(pace.seconds_left < 0 && pace.steps_per_second == 0);
    pace = told_after(3, 3, 4, 100); /* a single step of a hundred */
    assert_true(pace.seconds_left < 0 && pace.steps_per_second == 1);
}

static void slow_first_steps_count_for_nothing(void **state)
{
    struct pace with = told_after(3, 3, 20, 100), without = told_after(0, 3, 20, 100);

    (void)state;
    assert_true(with.steps_per_second == 1);
    assert_true(with.seconds_left > 79.9 && with.seconds_left < 80.1);
    assert_true(without.steps_per_second < 0.5);
    assert_true(without.seconds_left > 180);
}

/* What was finished by an earlier run is no evidence of this one's speed. */
static void a_resumed_run_judges_itself(void **state)
{
    struct pace            pace = {.warmup_steps = 1};
    struct render_progress now = {.phase = "tiles", .fraction = 0.5};

    (void)state;
    pace_note(&pace, &now, 0);
    for (uint32_t i = 1; i <= 11; i++) {
        now.steps_run = i;
        now.fraction = 0.5 + 0.01 * i;
        pace_note(&pace, &now, 2.0 * i);
    }
    assert_true(pace.steps_per_second > 0.499 && pace.steps_per_second < 0.501);
    assert_true(pace.seconds_left > 77.9 && pace.seconds_left < 78.1);
}

static void a_phase_has_its_own_speed(void **state)
{
    struct pace            pace = {.warmup_steps = 0};
    struct render_progress now = {.phase = "draft"};

    (void)state;
    pace_note(&pace, &now, 0);
    now.steps_run = 10;
    pace_note(&pace, &now, 1);
    assert_true(pace.steps_per_second == 10);
    now.phase = "tiles";
    pace_note(&pace, &now, 2);
    assert_true(pace.steps_per_second == 0);
    now.steps_run = 12;
    pace_note(&pace, &now, 6);
    assert_true(pace.steps_per_second == 0.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_is_promised_early),
                                       cmocka_unit_test(slow_first_steps_count_for_nothing),
                                       cmocka_unit_test(a_resumed_run_judges_itself),
                                       cmocka_unit_test(a_phase_has_its_own_speed)};
    return cmocka_run_group_tests_name("pace", tests, NULL, NULL);
}
