/*
 * test_tokenizers.c - engines of one model share its tokenizers, which are then read once.
 */
#include "../scratch_model.h"

#include "engine/engine_int.h"

static int make_model(void **state)
{
    (void)state;
    return scratch_model_make((struct synth_request){.spec = "tiny", .dtype = DTYPE_BF16});
}

static struct os_calls usual;
static int             opened; /* files of tokenizers */

static int count_open(const char *path, int flags, ...)
{
    opened += strstr(path, "/tokenizer") != NULL;
    return usual.open(path, flags, 0666);
}

/* How many files of tokenizers this estimate opened. */
static int estimate(struct tokenizers *tokenizers, enum engine_machine machine,
                    struct engine_cost *cost_out)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = model, .machine = machine, .tokenizers = tokenizers};
    struct engine_size  size = {.w_px = 64, .h_px = 64, .tiles = 1, .steps = 2};
    struct engine_facts facts;

    opened = 0;
    usual = os;
    os.open = count_open;
    int rc = engine_estimate(cost_out, &facts, &options, &size, 1, &err);
    os = usual;
    ASSERT_OK(rc);
    return opened;
}

static void shared_ones_are_read_once(void **state)
{
    struct err         err = {0};
    struct tokenizers *tokenizers;
    struct engine_cost own, shared;
    int                files;

    (void)state;
    ASSERT_OK(tokenizers_open(&tokenizers, &err));
    files = estimate(NULL, ENGINE_WALLED, &own);
    assert_true(files > 0);
    assert_int_equal(estimate(NULL, ENGINE_WALLED, &own), files);
    assert_int_equal(estimate(tokenizers, ENGINE_WALLED, &shared), files);
    assert_memory_equal(&own, &shared, sizeof own);
    assert_int_equal(estimate(tokenizers, ENGINE_WALLED, &shared), 0);
    assert_memory_equal(&own, &shared, sizeof own);
    assert_int_equal(estimate(tokenizers, ENGINE_CPU, &shared), 0);
    tokenizers_close(tokenizers);
    tokenizers_close(NULL);
}

/* What one engine could not read, the next one reads. */
static void a_failure_is_not_shared(void **state)
{
    struct err            err = {0};
    struct tokenizers    *tokenizers;
    struct engine_options options = {.model_folder = model};
    struct engine        *engine;
    char                  path[600], away[620];

    (void)state;
    (void)snprintf(path, sizeof path, "%s/tokenizer_2/tokenizer.json", model);
    (void)snprintf(away, sizeof away, "%s.away", path);
    ASSERT_OK(tokenizers_open(&tokenizers, &err));
    options.tokenizers = tokenizers;
    assert_int_equal(rename(path, away), 0);
    assert_true(engine_open(&engine, &options, &err) != ERR_OK);
    assert_non_null(strstr(err.text, "tokenizer_2"));
    assert_int_equal(rename(away, path), 0);
    err = (struct err){.code = ERR_OK};
    ASSERT_OK(engine_open(&engine, &options, &err));
    engine_close(engine);
    tokenizers_close(tokenizers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(shared_ones_are_read_once),
                                       cmocka_unit_test(a_failure_is_not_shared)};
    return cmocka_run_group_tests_name("tokenizers", tests, make_model, scratch_model_remove);
}
