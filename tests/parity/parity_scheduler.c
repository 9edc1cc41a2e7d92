/* parity_scheduler.c - sigma lists against the reference pipelines' own. */
#include "parity.h"

static void sigmas_agree(void **state)
{
    struct parity *p = parity_begin(state);

    for (size_t i = 0; i < spec_count(p, "schedules"); i++) {
        const json_t           *spec = spec_object(p, "schedules", i);
        struct err              err = {0};
        struct schedule         schedule;
        struct schedule_request request = {.steps = (uint32_t)spec_int(spec, "steps"),
                                           .tokens = spec_int(spec, "tokens"),
                                           .sigma_start = 1,
                                           .strength = spec_number(spec, "strength")};
        int64_t                 count;
        const float            *wanted = golden(p, &count, "sigmas", i);

        ASSERT_OK(schedule_make(&schedule, p->engine, &request, &err));
        assert_int_equal(schedule.steps + 1, count);
        for (int64_t k = 0; k < count; k++) /* the reference computes in fp32 */
            if (fabsf(schedule.sigma[k] - wanted[k]) > 1e-6f)
                fail_msg("schedule %zu, sigma %lld: %.8f, reference %.8f", i, (long long)k,
                         (double)schedule.sigma[k], (double)wanted[k]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sigmas_agree)};
    return PARITY_RUN(tests, VARIANTS_F32);
}
