/*
 * test_plan_cuda.c - what FLUX.1-dev takes on a GPU, measured without one and without its weights.
 *
 * A hollow model has the real headers and no bytes behind them; the plan is a dry run of the code
 * that paints, on the addresses of a GPU that need not exist.
 */
#include "../scratch_model.h"

#include "backend/backend.h"
#include "engine/budget.h"
#include "engine/compute_int.h"

static int make_model(void **state)
{
    (void)state;
    return scratch_model_make(
        (struct synth_request){.spec = "flux1-dev", .dtype = DTYPE_BF16, .hollow = true});
}

static struct engine_cost cost_of(enum precision precision, int32_t side_px)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = model, .machine = ENGINE_CUDA, .precision = precision};
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

/* 11.90 G parameters less the 3.23 G that make modulation and what only a prompt reads, at 2 bytes,
 * and the VAE's 84 M. */
static void the_step_s_weights_stay_and_no_others(void **state)
{
    struct engine_cost cost = cost_of(PRECISION_BF16, 1024);

    (void)state;
    assert_in_range(cost.kept_bytes, 17200000000u, 17650000000u);
}

/* Of two backends in one process the context and the libraries are there once, as the budget counts
 * them. */
static void libraries_are_counted_once(void **state)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = model, .machine = ENGINE_CUDA, .precision = PRECISION_BF16};
    struct engine_size  size = {.w_px = 512, .h_px = 512, .tiles = 1, .steps = 20};
    struct engine      *engine;
    struct budget_facts facts;

    (void)state;
    ASSERT_OK(engine_open(&engine, &options, &err));
    ASSERT_OK(measure_budget(&facts, engine, &size, 1, &err));
    assert_int_equal(cost_of(PRECISION_BF16, 512).fixed_bytes, facts.fixed_bytes);
    engine_close(engine);
}

/* Both ways through the VAE, pixels and weights of a band of attention included. */
static void the_vae_passes_2048_px_in_1_5_gb(void **state)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = model, .machine = ENGINE_CUDA, .precision = PRECISION_BF16};
    struct engine_size  size = {.w_px = 2048, .h_px = 2048, .tiles = 1, .steps = 20};
    struct engine      *engine;
    struct budget_facts facts;

    (void)state;
    ASSERT_OK(engine_open(&engine, &options, &err));
    ASSERT_OK(measure_budget(&facts, engine, &size, 1, &err));
    assert_true(facts.coder_bytes[facts.strip_levels - 1] < 1400000000);
    engine_close(engine);
}

/* At any size, of drafts and of tiles: what a budget begins with is the least there is. */
static void the_lowest_strips_take_the_least(void **state)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = model, .machine = ENGINE_CUDA, .precision = PRECISION_BF16};
    struct engine *engine;

    (void)state;
    ASSERT_OK(engine_open(&engine, &options, &err));
    for (int32_t px = 256; px <= 2048; px += px / 2) {
        struct engine_size  size = {.w_px = px / 16 * 16, .h_px = px / 16 * 16, 1, 20};
        struct budget_facts facts;
        ASSERT_OK(measure_budget(&facts, engine, &size, 1, &err));
        for (uint32_t level = 1; level < facts.strip_levels; level++)
            assert_true(facts.coder_bytes[facts.strip_levels - 1] <= facts.coder_bytes[level - 1]);
    }
    engine_close(engine);
}

/* bf16 fits a card of 24 GB with room for what the display takes. */
static void the_largest_tile_fits_24_gb(void **state)
{
    struct engine_cost cost = cost_of(PRECISION_BF16, 2048);

    (void)state;
    assert_in_range(cost.kept_bytes + cost.scratch_bytes + cost.fixed_bytes, 1, 24500000000u);
}

/* Kept in bf16 as they are, multiplied in f32. */
static void fp32_keeps_no_more(void **state)
{
    struct engine_cost narrow = cost_of(PRECISION_BF16, 512), wide = cost_of(PRECISION_F32, 512);

    (void)state;
    assert_int_equal(narrow.kept_bytes, wide.kept_bytes);
    assert_true(wide.scratch_bytes > narrow.scratch_bytes);
}

/* ------------------------------------------------------------------------------ shared memory */

static int outlook_of(struct engine_outlook *out, double gigabytes, int32_t side_px, uint32_t tiles,
                      struct err *err)
{
    struct engine_options options = {
        .model_folder = model,
        .machine = ENGINE_CUDA,
        .precision = PRECISION_BF16,
        .memory = {.offload = true, .keep_share = 0.2, .expandable = true}};
    struct engine_card card = {.vram_bytes = (uint64_t)(gigabytes * 1e9),
                               .host_bytes = (uint64_t)64e9,
                               .host_free_bytes = (uint64_t)60e9,
                               .link_bytes_per_second = 12e9,
                               .flop_per_second = 120e12};
    struct engine_size size = {.w_px = side_px, .h_px = side_px, .tiles = tiles, .steps = 12};

    return engine_plan_memory(out, &options, &card, false, &size, 1, err);
}

/* FLUX.1-dev's largest tiles on cards of five sizes.  Megabytes may move a little with the scratch
 * of operations; blocks may not.  The weights of a step are 17.21 GB in 57 blocks. */
static void flux_fits_cards_of_five_sizes(void **state)
{
    static const struct {
        double   gigabytes;
        uint32_t blocks_resident, tiles, strip_level;
        uint64_t resident_mb, scratch_mb; /* of 10^6 */
    } cards[] = {{24, 57, 1, 0, 17213, 3049},
                 {16, 43, 1, 4, 12910, 1370},
                 {12, 29, 1, 4, 8833, 1370},
                 {8, 15, 1, 3, 4529, 1546},
                 {6, 9, 1, 3, 2717, 1546}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cards); i++) {
        struct err            err = {0};
        struct engine_outlook gpu;
        ASSERT_OK(outlook_of(&gpu, cards[i].gigabytes, 2048, 8, &err));
        print_message(
            "# %g GB: %u of %u blocks, %.2f GB stay, %.2f visit, scratch %.2f, all %.2f\n",
            cards[i].gigabytes, gpu.blocks_resident, gpu.blocks, (double)gpu.resident_bytes / 1e9,
            (double)gpu.streamed_bytes / 1e9, (double)gpu.scratch_bytes / 1e9,
            (double)gpu.device_bytes / 1e9);
        assert_int_equal(gpu.blocks, 57);
        assert_int_equal(gpu.blocks_resident, cards[i].blocks_resident);
        assert_int_equal(gpu.tiles_per_pass, cards[i].tiles);
        assert_int_equal(gpu.strip_level, cards[i].strip_level);
        assert_int_equal(gpu.resident_bytes / 1000000, cards[i].resident_mb);
        assert_in_range(gpu.scratch_bytes / 1000000, cards[i].scratch_mb - 20,
                        cards[i].scratch_mb + 20);
        assert_int_equal((gpu.resident_bytes + gpu.streamed_bytes) / 1000000, 17213);
        assert_true(gpu.device_bytes <= gpu.cap_bytes);
        assert_in_range(1e3 * gpu.compute_seconds, 3482, 3486);
        assert_true(gpu.link_seconds < gpu.compute_seconds);
    }
}

/* What the decision rests on: more tiles never want less, lower strips never more, several sizes as
 * much as each alone, and the sum of the blocks is the transformer. */
static void facts_are_in_order(void **state)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = model, .machine = ENGINE_CUDA, .precision = PRECISION_BF16};
    const struct engine_size sizes[] = {{512, 288, 1, 28, 12}, {1536, 1024, 5, 12, 0}};
    struct engine           *engine;
    struct budget_facts      facts, tile;
    const double             rows = 512 + 1536 / 16 * 1024 / 16;
    double                   flop = 0;
    uint64_t                 bytes = 0;

    (void)state;
    ASSERT_OK(engine_open(&engine, &options, &err));
    ASSERT_OK(measure_budget(&facts, engine, sizes, 2, &err));
    ASSERT_OK(measure_budget(&tile, engine, &sizes[1], 1, &err));
    assert_int_equal(facts.tiles_most, 5);
    for (uint32_t t = 2; t <= BUDGET_TILES_MAX; t++)
        assert_true(facts.predict_bytes[0][t] >= facts.predict_bytes[0][t - 1]);
    assert_true(facts.predict_bytes[0][2] > facts.predict_bytes[0][1]);
    for (uint32_t level = 1; level < facts.strip_levels; level++)
        assert_true(facts.coder_bytes[level] <= facts.coder_bytes[level - 1]);
    assert_memory_equal(facts.predict_bytes, tile.predict_bytes, sizeof facts.predict_bytes);
    assert_memory_equal(facts.block_flop, tile.block_flop, sizeof facts.block_flop);
    for (uint32_t i = 0; i < facts.block_count; i++) {
        flop += facts.block_flop[i];
        bytes += facts.block_bytes[i];
    }
    /* 12 H^2 numbers a single, 24 H^2 a double, at 2 bytes */
    assert_int_equal(bytes, (uint64_t)(19 * 24 + 38 * 12) * 3072 * 3072 * 2);
    assert_in_range(flop / 1e9, 116780, 116880);
    /* the last leaves 512 rows of text out of its MLP and its result, and lets none of them look */
    const double last_lacks = 2.0 * 512 * 3072 * (12288 + 15360) + 4.0 * 512 * rows * 3072;
    assert_true(facts.block_flop[55] - facts.block_flop[56] == last_lacks);
    assert_in_range(facts.ends_bytes, 150000000, 250000000);

    /* Text on the CPU takes nothing of the GPU. */
    assert_true(facts.text_bytes > 0);
    engine_close(engine);
    options.text_on_cpu = true;
    ASSERT_OK(engine_open(&engine, &options, &err));
    ASSERT_OK(measure_budget(&facts, engine, sizes, 2, &err));
    assert_int_equal(facts.text_bytes, 0);
    engine_close(engine);
}

/* 418 TFLOP for a tile of 2048 px hide what 74 for one of 1024 px do not: two of those do. */
static void small_tiles_share_a_visit(void **state)
{
    struct err            err = {0};
    struct engine_outlook gpu;

    (void)state;
    ASSERT_OK(outlook_of(&gpu, 8, 1024, 8, &err));
    assert_int_equal(gpu.tiles_per_pass, 2);
    assert_true(gpu.link_seconds <= gpu.compute_seconds);
    ASSERT_OK(outlook_of(&gpu, 8, 1024, 1, &err));
    assert_int_equal(gpu.tiles_per_pass, 1);
    assert_true(gpu.link_seconds > gpu.compute_seconds);
    assert_in_range(1e3 * gpu.compute_seconds, 618, 622);
}

/* From the same numbers an engine decides the same as the plan. */
static void an_engine_decides_as_the_plan_did(void **state)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = model, .machine = ENGINE_WALLED, .precision = PRECISION_BF16};
    struct engine_memory memory = {.vram_bytes = 8000000000,
                                   .offload = true,
                                   .expandable = true,
                                   .keep_share = 0.2,
                                   .link_bytes_per_second = 12e9,
                                   .flop_per_second = 120e12};
    struct engine_size   sizes[] = {{512, 512, 1, 12, 12}, {1024, 1024, 3, 12, 0}};
    struct engine       *engine;
    struct budget_facts  facts;
    struct budget        budget;

    (void)state;
    ASSERT_OK(engine_open(&engine, &options, &err));
    ASSERT_OK(engine_decide(&budget, &facts, engine, &memory, sizes, 2, &err));
    assert_int_equal(budget.tiles_per_pass, 2);
    assert_true(budget.streamed_count > 0 && budget.streamed_count % 2 == 0);
    assert_true(budget.resident_bytes + budget.ring_bytes + budget.scratch_bytes <= 8000000000);
    memory.vram_bytes = 0;
    ASSERT_OK(engine_decide(&budget, &facts, engine, &memory, sizes, 2, &err));
    assert_int_equal(budget.streamed_count, 0);
    memory.vram_bytes = 2000000000;
    memory.offload = false;
    ASSERT_REFUSED(ERR_DEVICE_MEM, "allow offload",
                   engine_decide(&budget, &facts, engine, &memory, sizes, 2, &err));
    engine_close(engine);
}

/* A GPU's library may add up otherwise for few rows: so no part of a larger step is of few, and
 * what a cap makes of the MLP stays the same to the bit. */
static void parts_of_a_step_are_never_few(void **state)
{
    struct engine engine = {.facts = {.px_per_token = 16, .text_tokens = 512}};

    (void)state;
    for (int32_t w = 16; w <= 2048; w += 80)
        for (int32_t h = 16; h <= 2048; h += 16)
            for (uint32_t level = 1; level < BUDGET_CHUNKS_MAX; level++) {
                struct engine_size size = {.w_px = w, .h_px = h};
                const int64_t      image = (int64_t)(w / 16) * (h / 16), all = 512 + image;
                const int64_t      most = engine_mlp_rows(&engine, &size, 1, level);

                for (int64_t left = all, part; left > 0; left -= part) {
                    part = transformer_part_rows(left, most);
                    assert_in_range(part, all > most ? BACKEND_ROWS_FEW + 1 : 1, most);
                    assert_true(part == left || part % TRANSFORMER_MLP_STEP == 0);
                }
                for (int64_t left = image, part; left > 0; left -= part) {
                    part = transformer_part_rows(left, most);
                    assert_in_range(part, image > most ? BACKEND_ROWS_FEW + 1 : 1, most);
                }
            }
}

static void too_small_a_card_is_one_sentence(void **state)
{
    struct err            err = {0};
    struct engine_outlook gpu;

    (void)state;
    ASSERT_REFUSED(ERR_DEVICE_MEM, "short by", outlook_of(&gpu, 3, 2048, 1, &err));
    ASSERT_OK(outlook_of(&gpu, 3, 1024, 1, &err));
}

static void a_missing_gpu_is_one_sentence(void **state)
{
    struct err            err = {0};
    struct engine_device  device;
    struct engine_options options = {.model_folder = model, .machine = ENGINE_CUDA, .gpu = 999};
    int                   rc = engine_find_device(&device, &options, &err);

    (void)state;
    assert_int_equal(rc, ERR_DEVICE);
    assert_non_null(strstr(err.text, "device: "));
    if (strstr(err.text, "no NVIDIA driver") != NULL)
        assert_non_null(strstr(err.text, "--device cpu"));
    else
        assert_non_null(strstr(err.text, "cuda:999"));
}

/* Between PCIe 2.0 x4 and any link of today; where there is no GPU, no rate. */
static void a_link_is_timed_where_there_is_one(void **state)
{
    struct err            err = {0};
    struct engine_device  device;
    struct engine_options options = {.machine = ENGINE_CUDA};
    double                rate = engine_link_speed(&options);

    (void)state;
    if (engine_find_device(&device, &options, &err) != ERR_OK) {
        assert_true(rate == 0);
        return;
    }
    print_message("# link: %.1f GB/s\n", rate / 1e9);
    assert_true(rate > 1e9 && rate < 1e12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_step_s_weights_stay_and_no_others),
                                       cmocka_unit_test(libraries_are_counted_once),
                                       cmocka_unit_test(the_lowest_strips_take_the_least),
                                       cmocka_unit_test(the_vae_passes_2048_px_in_1_5_gb),
                                       cmocka_unit_test(the_largest_tile_fits_24_gb),
                                       cmocka_unit_test(fp32_keeps_no_more),
                                       cmocka_unit_test(flux_fits_cards_of_five_sizes),
                                       cmocka_unit_test(facts_are_in_order),
                                       cmocka_unit_test(small_tiles_share_a_visit),
                                       cmocka_unit_test(an_engine_decides_as_the_plan_did),
                                       cmocka_unit_test(parts_of_a_step_are_never_few),
                                       cmocka_unit_test(too_small_a_card_is_one_sentence),
                                       cmocka_unit_test(a_missing_gpu_is_one_sentence),
                                       cmocka_unit_test(a_link_is_timed_where_there_is_one)};
    return cmocka_run_group_tests_name("plan_cuda", tests, make_model, scratch_model_remove);
}
