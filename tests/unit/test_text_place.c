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
                                       cmocka_unit_test(it_takes_memory_where_it_is),
                                       cmocka_unit_test(the_arithmetic_has_another_name)};
    return cmocka_run_group_tests_name("text_place", tests, make_model, scratch_model_remove);
}
