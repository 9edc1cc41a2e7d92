/*
 * test_jobs.c - the comparison of ways to use a GPU's memory: its list of jobs, its arithmetic, and
 * jobs on a card that is stood in for, in each way.
 */
#include "../bench/jobs_table.h"

#include "../scratch_model.h"

#include <unistd.h>

enum { JOBS = 8, SIDE_PX = 64 };

static struct workshop  shop;
static struct jobs_plan plan = {
    .seed = 3, .sides_px = {SIDE_PX}, .side_count = 1, .tiles_most = 2, .steps = 2};

static int open_shop(void **state)
{
    struct err  err = {0};
    static char spec[512];

    (void)state;
    log_install(hear, NULL, LOG_INFO);
    (void)snprintf(spec, sizeof spec, "%s/golden/models/jobs_small.json", test_data());
    if (scratch_model_make((struct synth_request){.spec = spec, .dtype = DTYPE_F32, .seed = 1}) !=
        0)
        return -1;
    shop = (struct workshop){.options = {.model_folder = model,
                                         .machine = ENGINE_WALLED,
                                         .precision = PRECISION_F32,
                                         .threads = 2},
                             .overlap_px = 16};
    ASSERT_OK(workshop_needs(&plan.needs[0], &shop, SIDE_PX, plan.steps, &err));
    ASSERT_OK(card_open(&shop.card, ENGINE_WALLED, (uint64_t)1 << 32, &err));
    ASSERT_OK(workshop_reference(&shop, &plan, &err));
    return 0;
}

static int close_shop(void **state)
{
    studio_close(shop.reference);
    card_close(&shop.card);
    return scratch_model_remove(state);
}

/* ----------------------------------------------------------------------------------- figures */

static void assert_near(double got, double wanted)
{
    if (fabs(got - wanted) > 5e-5) fail_msg("%.6f is not %.6f", got, wanted);
}

/* Of two hundred, ten and one; by hand from the formula, and as tables have them. */
static void wilson_is_as_published(void **state)
{
    static const struct {
        uint32_t good, all;
        double   low, high;
    } cases[] = {{200, 200, 0.981155, 1},
                 {0, 200, 0, 0.018845},
                 {184, 200, 0.874011, 0.950159},
                 {130, 200, 0.581635, 0.712712},
                 {5, 10, 0.236593, 0.763407},
                 {0, 10, 0, 0.277533},
                 {1, 1, 0.206549, 1}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        double low, high;
        wilson(cases[i].good, cases[i].all, &low, &high);
        assert_near(low, cases[i].low);
        assert_near(high, cases[i].high);
    }
}

static void median_is_of_the_middle(void **state)
{
    double values[] = {5, 1, 4, 2, 3, 9};

    (void)state;
    assert_near(median(values, 0), 0);
    assert_near(median(values, 1), 5);
    assert_near(median(values, 5), 3);
    assert_near(median(values, 6), 3.5);
}

/* ----------------------------------------------------------------------------------- the list */

static void a_job_depends_on_its_number_alone(void **state)
{
    struct jobs_plan wide = plan;
    struct job       once[200];
    uint32_t         cards[JOBS_CARDS] = {0}, moments[MOMENT_COUNT] = {0};

    (void)state;
    wide.sides_px[1] = 2 * SIDE_PX;
    wide.needs[1] = wide.needs[0];
    wide.side_count = 2;
    for (uint32_t i = 0; i < 200; i++)
        once[i] = job_make(&wide, i + 1);
    for (uint32_t i = 200; i-- > 0;) {
        struct job again = job_make(&wide, i + 1);
        assert_int_equal(again.seed, once[i].seed);
        assert_int_equal(again.cap_bytes, once[i].cap_bytes);
        assert_int_equal(again.ballast_bytes, once[i].ballast_bytes);
        assert_true(again.side_px == once[i].side_px && again.tiles == once[i].tiles);
        assert_true(again.moment == once[i].moment && again.at == once[i].at);
        assert_true((again.ballast_bytes == 0) == (again.moment == MOMENT_NEVER));
        assert_true(again.ballast_bytes < again.cap_bytes);
        cards[again.card]++;
        moments[again.moment]++;
    }
    for (int card = 0; card < JOBS_CARDS; card++)
        assert_true(cards[card] >= 15);
    for (int moment = 0; moment < MOMENT_COUNT; moment++)
        assert_true(moments[moment] >= 15);
}

/* A card that holds FLUX.1-dev holds the model that stands for it, and none that does not. */
static void cards_are_to_the_model_what_they_are_to_flux(void **state)
{
    (void)state;
    for (uint32_t card = 0; card < JOBS_CARDS; card++) {
        double bytes = (double)jobs_card_bytes(&plan, 0, card);
        assert_true(bytes > plan.needs[0].least);
        assert_int_equal(bytes > plan.needs[0].placed, jobs_cards_gb[card] > 18.5);
    }
}

/* ----------------------------------------------------------------------------------- painting */

static struct outcome paint(const struct job *job, enum mode mode)
{
    struct err     err = {0};
    struct outcome out;
    uint64_t       wanted = 0, before = card_free(&shop.card);

    ASSERT_OK(run_reference(&wanted, &shop, job, &err));
    run_job(&out, &shop, job, mode, wanted);
    card_drop(&shop.card, HOLDER_FILLER);
    assert_int_equal(card_free(&shop.card), before); /* nobody keeps anything */
    return out;
}

static struct job quiet_job(uint64_t cap_bytes)
{
    return (struct job){
        .number = 1, .seed = 7, .side_px = SIDE_PX, .tiles = 2, .steps = 2, .cap_bytes = cap_bytes};
}

/* With room for all blocks each way paints the reference; with less, plain is told so. */
static void only_offload_does_with_less(void **state)
{
    struct job     ample = quiet_job((uint64_t)plan.needs[0].placed * 2);
    struct job     tight = quiet_job((uint64_t)plan.needs[0].least + 2 * CARD_GRANULE);
    struct outcome out;

    (void)state;
    for (int mode = 0; mode < MODE_COUNT; mode++)
        assert_int_equal(paint(&ample, (enum mode)mode).cause, CAUSE_NONE);
    out = paint(&tight, MODE_PLAIN);
    assert_int_equal(out.cause, CAUSE_REFUSED);
    assert_non_null(strstr(out.why.text, "without offload"));
    out = paint(&tight, MODE_SEGMENTS);
    assert_int_equal(out.cause, CAUSE_NONE);
    assert_true(out.use.link_bytes > 0);
    assert_true(out.card_bytes > 0 && out.use.peak_device <= tight.cap_bytes);
}

/* Another program takes what a plan counted on: the driver refuses, and only the ladder helps. */
static void memory_that_goes_meanwhile_is_felt(void **state)
{
    struct job     job = quiet_job((uint64_t)plan.needs[0].placed + 4 * CARD_GRANULE);
    struct outcome out;

    (void)state;
    job.moment = MOMENT_RESERVE;
    job.at = 5;
    job.ballast_bytes = 10 * CARD_GRANULE;
    out = paint(&job, MODE_PLAIN);
    assert_int_equal(out.cause, CAUSE_OPENING);
    assert_int_equal(out.taken_bytes, job.ballast_bytes);
    out = paint(&job, MODE_SEGMENTS);
    assert_int_equal(out.cause, CAUSE_NONE);
    assert_true(out.rungs > 0);

    job.moment = MOMENT_PROMPT; /* an arena in one piece has another beside it for a prompt */
    job.at = 0;
    job.ballast_bytes = (uint64_t)1 << 30;
    assert_int_equal(paint(&job, MODE_OFFLOAD).cause, CAUSE_PAINTING);
    assert_int_equal(paint(&job, MODE_SEGMENTS).cause, CAUSE_NONE);
}

static void other_bytes_are_no_success(void **state)
{
    struct job     job = quiet_job((uint64_t)plan.needs[0].placed * 2), other = job;
    struct err     err = {0};
    struct outcome out;
    uint64_t       wanted = 0;

    (void)state;
    other.seed++;
    ASSERT_OK(run_reference(&wanted, &shop, &other, &err));
    run_job(&out, &shop, &job, MODE_SEGMENTS, wanted);
    card_drop(&shop.card, HOLDER_FILLER);
    assert_int_equal(out.cause, CAUSE_PIXELS);
}

/* A small table: what it says comes back from its lines. */
static void a_list_of_jobs_becomes_a_table(void **state)
{
    static struct table table, again;
    char                path[200], line[1024];
    uint32_t            done[MODE_COUNT] = {0};
    uint64_t            hashes[JOBS];
    FILE               *file;

    (void)state;
    (void)snprintf(path, sizeof path, "%s/jobs.csv", folder);
    file = fopen(path, "w");
    assert_non_null(file);
    (void)fprintf(file, "%s\n", table_head);
    for (uint32_t i = 0; i < JOBS; i++) {
        struct job job = job_make(&plan, i + 1);
        for (int mode = 0; mode < MODE_COUNT; mode++) {
            struct outcome out = paint(&job, (enum mode)mode);
            assert_true(out.cause != CAUSE_PIXELS && out.cause != CAUSE_OTHER);
            done[mode] += out.cause == CAUSE_NONE;
            if (out.cause == CAUSE_NONE) hashes[i] = out.hash;
            if (mode == MODE_SEGMENTS) assert_int_equal(out.cause, CAUSE_NONE);
            table_line(file, &job, (enum mode)mode, &out);
            table.rows[table.count++] = row_of(&job, (enum mode)mode, &out);
        }
        for (uint32_t other = 0; other < i; other++)
            assert_true(hashes[other] != hashes[i]);
    }
    (void)fclose(file);
    assert_true(done[MODE_PLAIN] > 0 && done[MODE_PLAIN] < done[MODE_OFFLOAD]);
    assert_int_equal(done[MODE_SEGMENTS], JOBS);

    file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL)
        (void)table_read(&again, line);
    (void)fclose(file);
    assert_int_equal(again.count, table.count);
    for (int mode = 0; mode < MODE_COUNT; mode++) {
        struct summary a = summarise(&table, (enum mode)mode);
        struct summary b = summarise(&again, (enum mode)mode);
        assert_int_equal(a.all, JOBS);
        assert_int_equal(a.done, done[mode]);
        assert_int_equal(a.common, done[MODE_PLAIN]);
        assert_memory_equal(a.causes, b.causes, sizeof a.causes);
        assert_near(a.low, b.low);
        assert_near(a.device_median / 1e9, b.device_median / 1e9);
        assert_near(a.utilisation, b.utilisation);
        assert_true(a.utilisation > 0.5 && a.utilisation <= 1 && a.rate > 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wilson_is_as_published),
        cmocka_unit_test(median_is_of_the_middle),
        cmocka_unit_test(a_job_depends_on_its_number_alone),
        cmocka_unit_test(cards_are_to_the_model_what_they_are_to_flux),
        cmocka_unit_test(only_offload_does_with_less),
        cmocka_unit_test(memory_that_goes_meanwhile_is_felt),
        cmocka_unit_test(other_bytes_are_no_success),
        cmocka_unit_test(a_list_of_jobs_becomes_a_table)};

    return cmocka_run_group_tests_name("jobs", tests, open_shop, close_shop);
}
