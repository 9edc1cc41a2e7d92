/*
 * test_text_place.c - where text is encoded: beside a machine with memory of its own, the CPU may
 * do it, and then it does what it would do alone.  And what of a prompt is there already when it is
 * asked for: the text of the last one, and what was made in passing for the next stage.
 */
#include "../scratch_model.h"

#include "engine/compute_int.h"

static int make_model(void **state)
{
    (void)state;
    return scratch_model_make(
        (struct synth_request){.spec = "tiny", .dtype = DTYPE_BF16, .seed = 3});
}

struct told {
    struct engine *engine;
    struct prompt *prompt;
};

static struct told told_by(enum engine_machine machine, bool text_on_cpu)
{
    struct err            err = {0};
    struct told           told = {.engine = NULL};
    struct engine_options options = {.model_folder = model,
                                     .machine = machine,
                                     .precision = PRECISION_F32,
                                     .threads = 1,
                                     .text_on_cpu = text_on_cpu};
    struct engine_size    size = {.w_px = 64, .h_px = 64, .tiles = 1, .steps = 2};
    struct schedule       schedule = {.steps = 2, .sigma = {1, 0.4f, 0}};
    struct prompt_request request = {
        .text = "a fox in the snow", .guidance = 2, .schedule = &schedule};

    ASSERT_OK(engine_open(&told.engine, &options, &err));
    ASSERT_OK(engine_reserve(told.engine, &size, 1, &err));
    ASSERT_OK(prompt_open(&told.prompt, told.engine, &request, &err));
    return told;
}

static void forget(struct told *told)
{
    prompt_close(told->prompt);
    engine_close(told->engine);
}

static void the_cpu_encodes_as_if_alone(void **state)
{
    struct told beside = told_by(ENGINE_WALLED, true), alone = told_by(ENGINE_CPU, false);
    size_t      text = alone.engine->facts.text_tokens * (size_t)alone.engine->facts.hidden;
    size_t      modulation = 2 * (size_t)modulation_count(alone.engine->networks.transformer);

    (void)state;
    assert_int_equal(beside.engine->machine.machine, MACHINE_WALLED);
    assert_memory_equal(beside.prompt->text, alone.prompt->text, text * sizeof(float));
    assert_memory_equal(beside.prompt->modulation, alone.prompt->modulation,
                        modulation * sizeof(float));
    forget(&beside);
    forget(&alone);
}

static int reads;
static int (*read_whole)(void *target, const void *source, size_t bytes);

static int read_and_count(void *target, const void *source, size_t bytes)
{
    (void)__atomic_fetch_add(&reads, 1, __ATOMIC_RELAXED);
    return read_whole(target, source, bytes);
}

/* What an engine makes of `text` at noise levels (1, middle); the modulation follows the text. */
static float *values_of(struct engine *engine, const char *text, float middle, int *reads_out)
{
    struct err            err = {0};
    struct schedule       schedule = {.steps = 2, .sigma = {1, middle, 0}};
    struct prompt_request request = {.text = text, .guidance = 2, .schedule = &schedule};
    struct prompt        *prompt = NULL;
    size_t                count = engine->facts.text_tokens * (size_t)engine->facts.hidden;
    size_t                modulation = 2 * (size_t)modulation_count(engine->networks.transformer);
    float                *values = malloc((count + modulation) * sizeof *values);

    reads = 0;
    ASSERT_OK(prompt_open(&prompt, engine, &request, &err));
    *reads_out = reads;
    assert_non_null(values);
    memcpy(values, prompt->text, count * sizeof *values);
    memcpy(values + count, prompt->modulation, modulation * sizeof *values);
    prompt_close(prompt);
    return values;
}

static void the_last_text_is_remembered(void **state)
{
    static const struct {
        const char *text;
        float       middle;
        bool        known;
    } turns[] = {{"a fox", 0.4f, false}, {"a fox", 0.7f, true},  {"a fox", 0.7f, true},
                 {"foxes", 0.7f, false}, {"a fox", 0.4f, false}, {"", 0.4f, false},
                 {"", 0.5f, true}};
    struct told one = told_by(ENGINE_WALLED, false);
    size_t      bytes =
        sizeof(float) * (one.engine->facts.text_tokens * (size_t)one.engine->facts.hidden +
                         2 * (size_t)modulation_count(one.engine->networks.transformer));

    (void)state;
    read_whole = os.map_read;
    os.map_read = read_and_count;
    for (size_t i = 0; i < ARRAY_COUNT(turns); i++) {
        struct told other = told_by(ENGINE_WALLED, false); /* which knows another text */
        int         all = 0, some = 0;
        float      *wanted = values_of(other.engine, turns[i].text, turns[i].middle, &all);
        float      *got = values_of(one.engine, turns[i].text, turns[i].middle, &some);

        assert_memory_equal(got, wanted, bytes);
        assert_true(all > 0 && (some < all) == turns[i].known);
        free(wanted);
        free(got);
        forget(&other);
    }
    os.map_read = read_whole;
    forget(&one);
}

/* ------------------------------------------------------------------------- the next stage */

/* What follows a prompt at (1, 0.4) that foresaw three steps at (1, 0.7, 0.2). */
static const struct turn {
    const char     *name, *text;
    double          guidance;
    struct schedule schedule;
    bool            foreseen, foresees;
} follows[] = {
    {"as foreseen", "a fox", 2, {3, {1, 0.7f, 0.2f, 0}}, true, false},
    {"other text", "foxes", 2, {3, {1, 0.7f, 0.2f, 0}}, false, false},
    {"other guidance", "a fox", 3, {3, {1, 0.7f, 0.2f, 0}}, false, false},
    {"other levels", "a fox", 2, {3, {1, 0.7f, 0.1f, 0}}, false, false},
    {"fewer levels", "a fox", 2, {2, {1, 0.7f, 0}}, false, false},
    {"the first again", "a fox", 2, {2, {1, 0.4f, 0}}, false, true},
    {"as foreseen, and another", "a fox", 2, {3, {1, 0.7f, 0.2f, 0}}, false, true},
};
static const struct schedule FIRST = {2, {1, 0.4f, 0}}, NEXT = {3, {1, 0.7f, 0.2f, 0}};

static struct engine *engine_for_two(enum engine_machine machine)
{
    struct err            err = {0};
    struct engine        *engine = NULL;
    struct engine_options options = {
        .model_folder = model, .machine = machine, .precision = PRECISION_F32, .threads = 1};
    struct engine_size size = {.w_px = 64, .h_px = 64, .tiles = 1, .steps = 3, .steps_next = 3};

    ASSERT_OK(engine_open(&engine, &options, &err));
    ASSERT_OK(engine_reserve(engine, &size, 1, &err));
    return engine;
}

static struct prompt *ask(struct engine *engine, const struct turn *turn,
                          const struct schedule *next, int *reads_out)
{
    struct err            err = {0};
    struct prompt        *prompt = NULL;
    struct prompt_request request = {
        .text = turn->text, .guidance = turn->guidance, .schedule = &turn->schedule, .next = next};

    reads = 0;
    ASSERT_OK(prompt_open(&prompt, engine, &request, &err));
    *reads_out = reads;
    return prompt;
}

static void assert_same_prompts(const struct engine *engine, const struct prompt *one,
                                const struct prompt *other)
{
    size_t text = engine->facts.text_tokens * (size_t)engine->facts.hidden;
    size_t modulation =
        one->conditioning.steps * (size_t)modulation_count(engine->networks.transformer);

    assert_int_equal(one->conditioning.steps, other->conditioning.steps);
    assert_ptr_equal(one->conditioning.modulation, one->modulation);
    assert_memory_equal(one->text, other->text, text * sizeof(float));
    assert_memory_equal(one->modulation, other->modulation, modulation * sizeof(float));
}

/* Nothing is read for it, and its bits are those that it has alone; so are those of anything else
 * that may follow instead. */
static void the_next_stage_is_made_in_passing(void **state)
{
    static const struct turn  first = {"first", "a fox", 2, {2, {1, 0.4f, 0}}, false, true};
    const enum engine_machine machines[] = {ENGINE_WALLED, ENGINE_CPU};

    (void)state;
    read_whole = os.map_read;
    os.map_read = read_and_count;
    for (size_t i = 0; i < ARRAY_COUNT(follows) * ARRAY_COUNT(machines); i++) {
        const struct turn  *turn = &follows[i / ARRAY_COUNT(machines)];
        enum engine_machine machine = machines[i % ARRAY_COUNT(machines)];
        struct engine      *one = engine_for_two(machine), *other = engine_for_two(machine);
        int                 pair, some, single, all;
        struct prompt      *passing = ask(one, &first, &NEXT, &pair);
        struct prompt      *got = ask(one, turn, turn->foresees ? &FIRST : NULL, &some);
        struct prompt      *alone = ask(other, &first, NULL, &single);
        struct prompt      *wanted = ask(other, turn, NULL, &all);

        assert_same_prompts(one, passing, alone);
        assert_same_prompts(one, got, wanted);
        assert_true((one->ahead.table != NULL) == turn->foresees);
        if (machine == ENGINE_WALLED && (some == 0) != turn->foreseen) fail_msg("%s", turn->name);
        if (machine == ENGINE_WALLED && turn->foreseen) /* only the noise levels' own embedder */
            assert_true(all > 0 && pair - single < all / 2);
        prompt_close(passing);
        prompt_close(got);
        prompt_close(alone);
        prompt_close(wanted);
        engine_close(one);
        engine_close(other);
    }
    os.map_read = read_whole;
}

static void its_tables_are_planned(void **state)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = model, .machine = ENGINE_WALLED, .text_on_cpu = true};
    struct engine_size  size = {.w_px = 64, .h_px = 64, .tiles = 1, .steps = 2};
    struct engine_cost  without, with;
    struct engine_facts facts;
    struct told         told = told_by(ENGINE_CPU, false);
    uint64_t table = sizeof(float) * (uint64_t)modulation_count(told.engine->networks.transformer);

    (void)state;
    ASSERT_OK(engine_estimate(&without, &facts, &options, &size, 1, &err));
    size.steps_next = 5;
    ASSERT_OK(engine_estimate(&with, &facts, &options, &size, 1, &err));
    assert_true(with.host_bytes >= without.host_bytes + 5 * table);
    size.steps_next = SCHEDULE_STEPS_MAX + 1;
    ASSERT_REFUSED(ERR_USAGE, "0..1000", engine_estimate(&with, &facts, &options, &size, 1, &err));
    forget(&told);
}

/* Its scratch is then the host's. */
static void it_takes_memory_where_it_is(void **state)
{
    struct err            err = {0};
    struct engine_options options = {.model_folder = model, .machine = ENGINE_WALLED};
    struct engine_size    size = {.w_px = 64, .h_px = 64, .tiles = 1, .steps = 2};
    struct engine_cost    there, here;
    struct engine_facts   facts;

    (void)state;
    ASSERT_OK(engine_estimate(&there, &facts, &options, &size, 1, &err));
    options.text_on_cpu = true;
    ASSERT_OK(engine_estimate(&here, &facts, &options, &size, 1, &err));
    assert_true(here.scratch_bytes < there.scratch_bytes);
    assert_true(here.host_bytes > there.host_bytes);
}

/* A poster that was begun in one way is not gone on with in the other. */
static void the_arithmetic_has_another_name(void **state)
{
    struct engine_options options = {.model_folder = model, .machine = ENGINE_CUDA};
    char                  there[128], here[128];

    (void)state;
    (void)engine_numeric_version(there, &options);
    options.text_on_cpu = true;
    (void)engine_numeric_version(here, &options);
    assert_string_not_equal(there, here);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_cpu_encodes_as_if_alone),
                                       cmocka_unit_test(the_last_text_is_remembered),
                                       cmocka_unit_test(the_next_stage_is_made_in_passing),
                                       cmocka_unit_test(its_tables_are_planned),
                                       cmocka_unit_test(it_takes_memory_where_it_is),
                                       cmocka_unit_test(the_arithmetic_has_another_name)};
    return cmocka_run_group_tests_name("text_place", tests, make_model, scratch_model_remove);
}
