/*
 * test_plan_cuda.c - what FLUX.1-dev takes on a GPU, measured without one and without its weights.
 *
 * A hollow model has the real headers and no bytes behind them; the plan is a dry run of the code
 * that paints, on the addresses of a GPU that need not exist.
 */
#include "../test.h"

#include "backend/backend.h"
#include "engine/engine.h"
#include "weights/weights.h"

static char folder[128], model[160];

static int make_model(void **state)
{
    struct err           err = {0};
    struct synth_request request = {
        .folder = model, .spec = "flux1-dev", .dtype = DTYPE_BF16, .hollow = true};

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(model, sizeof model, "%s/model", folder);
    return synth_write(&request, &err) == ERR_OK ? 0 : -1;
}

static int remove_model(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

static struct engine_cost cost_with(enum precision precision, int32_t side_px,
                                    struct engine_memory memory)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = model, .machine = ENGINE_CUDA, .precision = precision, .memory = memory};
    struct engine_size  size = {.w_px = side_px, .h_px = side_px, .tiles = 1, .steps = 20};
    struct engine_cost  cost;
    struct engine_facts facts;

    ASSERT_OK(engine_estimate(&cost, &facts, &options, &size, 1, &err));
    assert_true(facts.bf16 == (precision != PRECISION_F32));
    print_message("# %d px: kept %.2f GB, scratch %.2f GB, fixed %.2f GB, host %.2f GB\n", side_px,
                  (double)cost.kept_bytes / 1e9, (double)cost.scratch_bytes / 1e9,
                  (double)cost.fixed_bytes / 1e9, (double)cost.host_bytes / 1e9);
    return cost;
}

static struct engine_cost cost_of(enum precision precision, int32_t side_px)
{
    return cost_with(precision, side_px, (struct engine_memory){.offload = false});
}

/* 11.90 G parameters less the 3.23 G that make modulation and what only a prompt reads, at 2 bytes,
 * and the VAE's 84 M. */
static void the_step_s_weights_stay_and_no_others(void **state)
{
    struct engine_cost cost = cost_of(PRECISION_BF16, 1024);

    (void)state;
    assert_in_range(cost.kept_bytes, 17200000000u, 17650000000u);
}

/* bf16 fits a card of 24 GB with room for what the display takes. */
static void the_largest_tile_fits_24_gb(void **state)
{
    struct engine_cost cost = cost_of(PRECISION_BF16, 2048);

    (void)state;
    assert_in_range(cost.kept_bytes + cost.scratch_bytes + cost.fixed_bytes, 1, 24500000000u);
}

/* Blocks that visit: two slots of the largest, 340 M parameters at 2 bytes each, what one of an odd
 * number of blocks and the ends take, and the rest of the 17 GB pinned on the host. */
static void blocks_that_visit_take_two_slots(void **state)
{
    struct engine_cost stays = cost_of(PRECISION_BF16, 1024);
    struct engine_cost visits =
        cost_with(PRECISION_BF16, 1024, (struct engine_memory){.offload = true});
    struct engine_cost half =
        cost_with(PRECISION_BF16, 1024, (struct engine_memory){.offload = true, .keep_share = 0.5});

    (void)state;
    assert_in_range(visits.kept_bytes, 1360000000u, 2400000000u);
    assert_true(visits.host_bytes - stays.host_bytes > 16000000000u);
    assert_true(visits.kept_bytes + visits.host_bytes > stays.kept_bytes + stays.host_bytes);
    assert_in_range(half.kept_bytes, stays.kept_bytes / 2, stays.kept_bytes * 2 / 3);
    assert_int_equal(visits.scratch_bytes, stays.scratch_bytes);
}

/* Kept in bf16 as they are, multiplied in f32. */
static void fp32_keeps_no_more(void **state)
{
    struct engine_cost narrow = cost_of(PRECISION_BF16, 512), wide = cost_of(PRECISION_F32, 512);

    (void)state;
    assert_int_equal(narrow.kept_bytes, wide.kept_bytes);
    assert_true(wide.scratch_bytes > narrow.scratch_bytes);
}

static void a_missing_gpu_is_one_sentence(void **state)
{
    struct err            err = {0}, again = {0};
    struct engine_options options = {.model_folder = model, .machine = ENGINE_CUDA, .gpu = 999};
    int                   rc = engine_check_device(&options, NULL, &err);

    (void)state;
    assert_int_equal(rc, ERR_DEVICE);
    assert_non_null(strstr(err.text, "device: "));
    if (strstr(err.text, "no NVIDIA driver") != NULL)
        assert_non_null(strstr(err.text, "--device cpu"));
    else
        assert_non_null(strstr(err.text, "cuda:999"));
    options.machine = ENGINE_CPU;
    assert_int_equal(engine_check_device(&options, NULL, &again), ERR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_step_s_weights_stay_and_no_others),
                                       cmocka_unit_test(the_largest_tile_fits_24_gb),
                                       cmocka_unit_test(fp32_keeps_no_more),
                                       cmocka_unit_test(blocks_that_visit_take_two_slots),
                                       cmocka_unit_test(a_missing_gpu_is_one_sentence)};
    return cmocka_run_group_tests_name("plan_cuda", tests, make_model, remove_model);
}
