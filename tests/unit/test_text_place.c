/*
 * test_text_place.c - where text is encoded: beside a machine with memory of its own, the CPU may
 * do it, and then it does what it would do alone.
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
                                       cmocka_unit_test(it_takes_memory_where_it_is),
                                       cmocka_unit_test(the_arithmetic_has_another_name)};
    return cmocka_run_group_tests_name("text_place", tests, make_model, scratch_model_remove);
}
