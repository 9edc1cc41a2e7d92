/*
 * test_scheduler.c - noise levels: published schedules, the image-to-image rule, refusals.
 *
 * The tables were computed from the published formula apart from this code; parity_scheduler
 * compares with the reference implementation itself.
 */
#include "../test.h"

#include "engine/engine_int.h"

#include <math.h>

static const struct scheduler_config dev = {.dynamic_shift = true,
                                            .shift = 3.0,
                                            .base_shift = 0.5,
                                            .max_shift = 1.15,
                                            .base_tokens = 256,
                                            .max_tokens = 4096};
static const struct scheduler_config schnell = {
    .shift = 1.0, .base_shift = 0.5, .max_shift = 1.15, .base_tokens = 256, .max_tokens = 4096};

static struct schedule made(const struct scheduler_config *config, struct schedule_request request)
{
    struct err      err = {0};
    struct schedule schedule;

    if (request.tokens == 0) request.tokens = 4096;
    if (request.sigma_start == 0) request.sigma_start = 1;
    ASSERT_OK(scheduler_make(&schedule, config, &request, &err));
    return schedule;
}

/* Tables are printed with five decimals. */
static void assert_sigmas(const struct schedule *schedule, const double *expected, uint32_t steps)
{
    assert_int_equal(schedule->steps, steps);
    for (uint32_t i = 0; i < steps; i++)
        if (fabs((double)schedule->sigma[i] - expected[i]) > 0.6e-5)
            fail_msg("sigma %u is %.7f, expected %.5f", i, (double)schedule->sigma[i], expected[i]);
    assert_true(schedule->sigma[steps] == 0);
}

static void whole_schedules_are_the_published_ones(void **state)
{
    static const double dev_1024[] = {1,      .98841, .97622, .96339, .94987, .93560, .92051,
                                      .90453, .88758, .86958, .85041, .82996, .80810, .78467,
                                      .75951, .73241, .70314, .67143, .63696, .59936, .55816,
                                      .51284, .46275, .40708, .34485, .27483, .19545, .10472};
    static const double dev_512[] = {1,      .97273, .94413, .91409, .88250, .84923, .81416,
                                     .77713, .73797, .69650, .65249, .60571, .55590, .50274,
                                     .44589, .38494, .31945, .24888, .17261, .08993};
    static const double schnell_4[] = {1, .75, .5, .25};
    struct schedule     schedule;

    (void)state;
    schedule = made(&dev, (struct schedule_request){.steps = 28});
    assert_sigmas(&schedule, dev_1024, 28);
    schedule = made(&dev, (struct schedule_request){.steps = 20, .tokens = 1024});
    assert_sigmas(&schedule, dev_512, 20);
    schedule = made(&schnell, (struct schedule_request){.steps = 4});
    assert_sigmas(&schedule, schnell_4, 4);
    schedule = made(&schnell, (struct schedule_request){.steps = 1});
    assert_sigmas(&schedule, schnell_4, 1);
}

static void the_shift_grows_without_limit_unless_given_one(void **state)
{
    static const struct {
        int64_t tokens;
        double  last;
    } rows[] = {{256, .0575},  {1024, .0650}, {2304, .0795},  {4080, .1045},
                {4096, .1047}, {8100, .1872}, {16384, .4835}, {65536, .9997}};
    struct schedule capped, fixed, schedule;

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        schedule = made(&dev, (struct schedule_request){.steps = 28, .tokens = rows[i].tokens});
        if (fabs((double)schedule.sigma[27] - rows[i].last) > 0.6e-4)
            fail_msg("%lld tokens end at %.5f", (long long)rows[i].tokens,
                     (double)schedule.sigma[27]);
    }
    schedule = made(&dev, (struct schedule_request){.steps = 28});
    capped = made(&dev, (struct schedule_request){.steps = 28, .tokens = 65536, .mu_max = 1.15});
    fixed = made(&dev, (struct schedule_request){.steps = 28, .tokens = 65536, .mu = 1.15});
    for (uint32_t i = 0; i <= 28; i++) {
        assert_true(fabsf(capped.sigma[i] - schedule.sigma[i]) < 1e-7f);
        assert_true(fabsf(fixed.sigma[i] - schedule.sigma[i]) < 1e-7f);
    }
    /* A cap above the rule's exponent changes nothing. */
    capped = made(&dev, (struct schedule_request){.steps = 28, .mu_max = 3});
    assert_memory_equal(capped.sigma, schedule.sigma, 29 * sizeof(float));
}

static void a_static_shift_bends_every_sigma(void **state)
{
    struct scheduler_config config = schnell;
    struct schedule         schedule;

    (void)state;
    config.shift = 3;
    schedule = made(&config, (struct schedule_request){.steps = 4});
    for (uint32_t i = 0; i < 4; i++) {
        double s = 1 - i / 4.0;
        assert_true(fabs((double)schedule.sigma[i] - 3 * s / (1 + 2 * s)) < 1e-7);
    }
}

static void strength_leaves_first_steps_out(void **state)
{
    static const struct {
        const struct scheduler_config *config;
        uint32_t                       steps, left;
        double                         strength, first;
    } rows[] = {{&dev, 28, 17, 0.6, .8300},  {&dev, 28, 9, 0.3, .5994}, {&dev, 20, 15, 0.75, .9045},
                {&dev, 28, 27, 0.95, .9884}, {&dev, 28, 28, 1.0, 1.0},  {&schnell, 4, 2, 0.5, 0.5},
                {&schnell, 4, 2, 0.3, 0.5}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct schedule_request request = {.steps = rows[i].steps, .strength = rows[i].strength};
        struct schedule         cut = made(rows[i].config, request), whole;
        request.strength = 0;
        whole = made(rows[i].config, request);
        assert_int_equal(cut.steps, rows[i].left);
        if (fabs((double)cut.sigma[0] - rows[i].first) > 0.6e-4)
            fail_msg("row %zu starts at %.5f", i, (double)cut.sigma[0]);
        assert_memory_equal(cut.sigma, whole.sigma + (whole.steps - cut.steps),
                            (cut.steps + 1) * sizeof(float));
    }
}

static void a_first_sigma_is_met_exactly_and_steps_are_all_run(void **state)
{
    uint64_t random = 1;

    (void)state;
    for (int i = 0; i < 2000; i++) {
        struct schedule_request request = {.steps = (uint32_t)random_between(&random, 1, 60),
                                           .tokens = random_between(&random, 1, 20000),
                                           .sigma_start =
                                               (double)random_between(&random, 1, 10000) / 10000};
        struct schedule         schedule = made(i % 2 ? &dev : &schnell, request);

        assert_int_equal(schedule.steps, request.steps);
        assert_true(schedule.sigma[0] == (float)request.sigma_start);
        assert_true(schedule.sigma[schedule.steps] == 0);
        for (uint32_t k = 0; k < schedule.steps; k++)
            if (!(schedule.sigma[k + 1] < schedule.sigma[k]))
                fail_msg("sigma %u is not below the one before", k + 1);
    }
}

static void steps_from_a_first_sigma_are_even_before_the_shift(void **state)
{
    struct schedule schedule =
        made(&dev, (struct schedule_request){.steps = 5, .tokens = 4096, .sigma_start = 0.3});
    double shift = exp(1.15), first = 0.3 / (0.3 + 0.7 * shift);

    (void)state;
    for (uint32_t i = 0; i < 5; i++) {
        double s = first * (1 - i / 5.0);
        assert_true(fabs((double)schedule.sigma[i] - shift / (shift + 1 / s - 1)) < 1e-7);
    }
}

static void a_step_moves_along_the_velocity(void **state)
{
    struct schedule schedule = {.steps = 2, .sigma = {1, 0.75f, 0}};
    float           latent[3] = {1, -2, 0.5f};
    const float     velocity[3] = {4, 0, -8};

    (void)state;
    scheduler_step(&schedule, 0, latent, velocity, 3);
    assert_true(latent[0] == 0 && latent[1] == -2 && latent[2] == 2.5f);
    scheduler_step(&schedule, 1, latent, velocity, 3);
    assert_true(latent[0] == -3 && latent[1] == -2 && latent[2] == 8.5f);
}

static void impossible_schedules_are_refused(void **state)
{
    struct err              err;
    struct schedule         out;
    struct schedule_request good = {.steps = 28, .tokens = 4096, .sigma_start = 1}, request;

    (void)state;
    request = good;
    request.steps = 0;
    ASSERT_REFUSED(ERR_USAGE, "not 0", scheduler_make(&out, &dev, &request, &err));
    request.steps = SCHEDULE_STEPS_MAX + 1;
    ASSERT_REFUSED(ERR_USAGE, "1..1000", scheduler_make(&out, &dev, &request, &err));
    request = good;
    request.sigma_start = 0;
    ASSERT_REFUSED(ERR_USAGE, "sigma", scheduler_make(&out, &dev, &request, &err));
    request.sigma_start = 1.5;
    ASSERT_REFUSED(ERR_USAGE, "1.5", scheduler_make(&out, &dev, &request, &err));
    request.sigma_start = (double)NAN;
    ASSERT_REFUSED(ERR_USAGE, "sigma", scheduler_make(&out, &dev, &request, &err));
    request = good;
    request.strength = 1.01;
    ASSERT_REFUSED(ERR_USAGE, "strength", scheduler_make(&out, &dev, &request, &err));
    request.strength = 1e-20; /* too small to take a whole step from 28 */
    ASSERT_REFUSED(ERR_USAGE, "no step", scheduler_make(&out, &dev, &request, &err));
    request = good;
    request.tokens = 16000000;
    ASSERT_REFUSED(ERR_USAGE, "mu", scheduler_make(&out, &dev, &request, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_schedules_are_the_published_ones),
        cmocka_unit_test(the_shift_grows_without_limit_unless_given_one),
        cmocka_unit_test(a_static_shift_bends_every_sigma),
        cmocka_unit_test(strength_leaves_first_steps_out),
        cmocka_unit_test(a_first_sigma_is_met_exactly_and_steps_are_all_run),
        cmocka_unit_test(steps_from_a_first_sigma_are_even_before_the_shift),
        cmocka_unit_test(a_step_moves_along_the_velocity),
        cmocka_unit_test(impossible_schedules_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
