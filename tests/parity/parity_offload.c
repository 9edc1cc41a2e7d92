/*
 * parity_offload.c - blocks that only visit the machine paint the same bits as blocks that stay.
 *
 * No golden values: an engine with everything in place is the reference, on whichever machine is
 * under test.
 */
#include "parity.h"

#include <errno.h>
#include <limits.h>

enum { TILES = 3, STEPS = 2 };

/* How an engine is to hold its blocks; bit i of `streamed`: block i visits. */
struct holding {
    uint32_t streamed;
    uint64_t pinned_bytes;
    int64_t  mlp_rows;
    int32_t  side_tokens; /* 0: 8 */
};

static struct engine *engine_with(const struct parity *p, const struct holding *holding)
{
    struct err            err = {0};
    struct engine        *engine = NULL;
    int32_t               side = holding->side_tokens > 0 ? holding->side_tokens : 8;
    int32_t               px = side * p->engine->facts.px_per_token;
    struct engine_size    size = {.w_px = px, .h_px = px, .tiles = TILES, .steps = STEPS};
    char                  folder[160];
    struct engine_options options = {.model_folder = folder,
                                     .precision = p->variant->precision,
                                     .machine = machine_under_test(),
                                     .threads = 2,
                                     .text_tokens = p->engine->facts.text_tokens};

    (void)snprintf(folder, sizeof folder, "%s/model", p->folder);
    ASSERT_OK(engine_open(&engine, &options, &err));
    for (uint32_t i = 0; i < 32; i++)
        engine->budget.streamed[i] = (holding->streamed >> i & 1) != 0;
    engine->budget.pinned_bytes = holding->pinned_bytes;
    engine->mlp_rows = holding->mlp_rows;
    ASSERT_OK(engine_reserve(engine, &size, 1, &err));
    return engine;
}

static uint32_t block_count(const struct parity *p)
{
    return (uint32_t)(p->engine->facts.doubles + p->engine->facts.singles);
}

static uint32_t all_blocks(const struct parity *p)
{
    return (1u << block_count(p)) - 1;
}

/* ------------------------------------------------------------------------------------- a story */

/* Everything that was painted, in one line. */
struct painted {
    float  *values;
    int64_t count;
};

static float *room(struct painted *out, int64_t count)
{
    out->values = realloc(out->values, (size_t)(out->count + count) * sizeof(float));
    assert_non_null(out->values);
    out->count += count;
    return out->values + out->count - count;
}

static float *drawn(int64_t count, uint64_t seed, float low)
{
    float *values = calloc((size_t)count, sizeof *values);

    assert_non_null(values);
    for (int64_t i = 0; i < count; i++)
        values[i] = low + (1 - low) * (float)random_between(&seed, 0, 1000) / 1000;
    return values;
}

/* One noise level of the first `count` tiles. */
static int step_of(struct engine *engine, struct prompt *const prompts[2], uint32_t count,
                   uint32_t step, struct painted *out, struct err *err)
{
    static const int32_t tokens[TILES][2] = {{7, 5}, {8, 8}, {4, 6}};
    struct engine_tile   tiles[TILES];
    float               *velocities[TILES];
    int32_t              px = engine->facts.px_per_token;
    int                  rc;

    for (uint32_t t = 0; t < count; t++) {
        int64_t values = 4 * tokens[t][0] * tokens[t][1] * engine->facts.latent_channels;
        velocities[t] = calloc((size_t)values, sizeof(float));
        assert_non_null(velocities[t]);
        tiles[t] = (struct engine_tile){.prompt = prompts[t % 2],
                                        .h_px = tokens[t][0] * px,
                                        .w_px = tokens[t][1] * px,
                                        .latent = drawn(values, t + 1, -1),
                                        .velocity = velocities[t]};
    }
    rc = engine_predict(engine, tiles, count, step, err);
    for (uint32_t t = 0; t < count; t++) {
        int64_t values = 4 * tokens[t][0] * tokens[t][1] * engine->facts.latent_channels;
        if (rc == ERR_OK) memcpy(room(out, values), velocities[t], (size_t)values * sizeof(float));
        free(velocities[t]);
        free((void *)(uintptr_t)tiles[t].latent);
    }
    return rc;
}

static void prompts_open(struct prompt *prompts[2], struct engine *engine)
{
    static const struct schedule schedule = {.steps = STEPS, .sigma = {1, 0.4f, 0}};
    struct err                   err = {0};
    struct prompt_request        request = {.text = "north", .guidance = 2, .schedule = &schedule};

    ASSERT_OK(prompt_open(&prompts[0], engine, &request, &err));
    request.text = "south and a little west";
    ASSERT_OK(prompt_open(&prompts[1], engine, &request, &err));
}

/* Two prompts, steps of one to three tiles, and between them what else an engine does. */
static struct painted story(struct engine *engine)
{
    struct err     err = {0};
    struct painted out = {NULL, 0};
    struct prompt *prompts[2];
    int32_t        px = engine->facts.px_per_token, side = 4 * px;
    int64_t        values = 64 * engine->facts.latent_channels;
    float         *rgb = drawn(3 * (int64_t)side * side, 9, 0);

    prompts_open(prompts, engine);
    for (uint32_t step = 0; step < STEPS; step++)
        for (uint32_t count = 1; count <= TILES; count++)
            ASSERT_OK(step_of(engine, prompts, count, step, &out, &err));
    float *latent = room(&out, values);
    ASSERT_OK(engine_encode(engine, rgb, side, side, latent, &err));
    ASSERT_OK(step_of(engine, prompts, 2, 0, &out, &err));
    ASSERT_OK(engine_decode(engine, out.values + out.count - values, side, side, rgb, &err));
    memcpy(room(&out, 3 * (int64_t)side * side), rgb, (size_t)(3 * side * side) * sizeof(float));
    ASSERT_OK(step_of(engine, prompts, 1, 1, &out, &err));
    prompt_close(prompts[0]);
    prompt_close(prompts[1]);
    free(rgb);
    return out;
}

static struct painted reference(const struct parity *p)
{
    struct engine *engine = engine_with(p, &(struct holding){.streamed = 0});
    struct painted painted = story(engine);

    engine_close(engine);
    return painted;
}

/* Frees `got`. */
static void assert_same(struct painted *got, const struct painted *wanted, uint32_t streamed)
{
    int64_t i = 0;

    assert_int_equal(got->count, wanted->count);
    while (i < got->count && memcmp(&got->values[i], &wanted->values[i], sizeof(float)) == 0)
        i++;
    if (i < got->count)
        fail_msg("with blocks %#x visiting, value %lld of %lld is %.9g and not %.9g", streamed,
                 (long long)i, (long long)got->count, (double)got->values[i],
                 (double)wanted->values[i]);
    free(got->values);
}

/* --------------------------------------------------------------------------------------- tests */

/* Every set of few blocks, and of more a third: among them one block, all, odd and even numbers. */
static void any_blocks_may_visit(void **state)
{
    /* From pinned memory, from where the weights are, and from both. */
    static const uint64_t pinned[] = {UINT64_MAX, 0, 100000};
    struct parity        *p = parity_begin(state);
    struct painted        wanted = reference(p);
    uint32_t              stride = block_count(p) > 4 ? 3 : 1, turn = 0;

    for (uint32_t streamed = 1; streamed <= all_blocks(p); streamed += stride, turn++) {
        struct holding holding = {.streamed = streamed,
                                  .pinned_bytes = pinned[turn % ARRAY_COUNT(pinned)]};
        struct engine *engine = engine_with(p, &holding);
        struct painted got = story(engine);

        assert_same(&got, &wanted, streamed);
        engine_close(engine);
    }
    free(wanted.values);
}

static void every_tier_holds_all_blocks(void **state)
{
    static const uint64_t pinned[] = {UINT64_MAX, 200000, 0};
    struct parity        *p = parity_begin(state);
    struct painted        wanted = reference(p);

    for (size_t i = 0; i < ARRAY_COUNT(pinned); i++) {
        struct holding holding = {.streamed = all_blocks(p), .pinned_bytes = pinned[i]};
        struct engine *engine = engine_with(p, &holding);
        struct painted got = story(engine);

        assert_same(&got, &wanted, holding.streamed);
        engine_close(engine);
    }
    free(wanted.values);
}

static void what_visits_takes_two_slots_and_no_more(void **state)
{
    struct parity *p = parity_begin(state);
    struct engine *stays = engine_with(p, &(struct holding){.streamed = 0});
    struct engine *visits =
        engine_with(p, &(struct holding){.streamed = all_blocks(p), .pinned_bytes = UINT64_MAX});
    const struct parcel_sizes *sizes = backend_parcels(visits->backend);
    uint64_t                   sum = 0, most = 0;
    struct painted             got;

    if (machine_under_test() == ENGINE_CPU) {
        assert_int_equal(sizes->count, 0);
    } else {
        assert_int_equal(sizes->count, block_count(p));
        assert_memory_equal(sizes, &visits->machine.parcels, sizeof *sizes);
        for (uint32_t i = 0; i < sizes->count; i++) {
            sum += sizes->bytes[i];
            most = max_u64(most, sizes->bytes[i]);
        }
        assert_true(backend_ring_bytes(sizes) > most && backend_ring_bytes(sizes) <= 2 * most);
        assert_int_equal(backend_kept_matrix_bytes(visits->backend) + sum,
                         backend_kept_matrix_bytes(stays->backend));
        assert_int_equal(backend_kept_vector_bytes(visits->backend),
                         backend_kept_vector_bytes(stays->backend));
        got = story(visits);
        free(got.values);
        assert_true(backend_link(visits->backend).bytes > 0);
        assert_true(backend_link(visits->backend).arrivals > 0);
    }
    engine_close(stays);
    engine_close(visits);
}

static void an_engine_may_close_while_a_block_travels(void **state)
{
    static const uint64_t pinned[] = {UINT64_MAX, 0};
    struct err            err = {0};
    struct parity        *p = parity_begin(state);

    for (size_t i = 0; i < 2 * ARRAY_COUNT(pinned); i++) {
        struct holding holding = {.streamed = all_blocks(p), .pinned_bytes = pinned[i / 2]};
        struct engine *engine = engine_with(p, &holding);
        struct painted out = {NULL, 0};

        if (i % 2 == 1) { /* the next step's first blocks are on their way when this one ends */
            struct prompt *prompts[2];
            prompts_open(prompts, engine);
            ASSERT_OK(step_of(engine, prompts, 1, 0, &out, &err));
            prompt_close(prompts[0]);
            prompt_close(prompts[1]);
        }
        free(out.values);
        engine_close(engine);
    }
}

static int reads_left = INT_MAX;
static int (*read_whole)(void *target, const void *source, size_t bytes);

static int read_that_ends(void *target, const void *source, size_t bytes)
{
    if (__atomic_fetch_sub(&reads_left, 1, __ATOMIC_RELAXED) <= 0) return EIO;
    return read_whole(target, source, bytes);
}

/* Many a read of a step in turn; afterwards the engine goes on as if nothing had been. */
static void a_block_that_cannot_be_read_fails_its_step(void **state)
{
    struct err     err = {0};
    struct parity *p = parity_begin(state);
    struct holding holding = {.streamed = all_blocks(p), .pinned_bytes = 0};
    struct engine *engine;
    struct painted wanted = {NULL, 0};
    struct prompt *prompts[2];
    int            n = 0, rc = ERR_IO;

    if (machine_under_test() == ENGINE_CPU) rc = ERR_OK;
    read_whole = os.map_read;
    os.map_read = read_that_ends;
    engine = engine_with(p, &holding);
    prompts_open(prompts, engine);
    ASSERT_OK(step_of(engine, prompts, 1, 0, &wanted, &err));
    for (; rc != ERR_OK && n < 1000; n += 1 + n / 8) {
        struct painted got = {NULL, 0};
        err = (struct err){0};
        __atomic_store_n(&reads_left, n, __ATOMIC_RELAXED);
        rc = step_of(engine, prompts, 1, 0, &got, &err);
        __atomic_store_n(&reads_left, INT_MAX, __ATOMIC_RELAXED);
        if (rc == ERR_OK) {
            assert_same(&got, &wanted, holding.streamed);
            break;
        }
        assert_int_equal(rc, ERR_IO);
        assert_int_equal(err.sys, EIO);
        assert_non_null(strstr(err.text, "cannot be read"));
        assert_int_equal(got.count, 0);
        err = (struct err){0};
        ASSERT_OK(step_of(engine, prompts, 1, 0, &got, &err));
        assert_same(&got, &wanted, holding.streamed);
    }
    assert_true(n < 1000);
    prompt_close(prompts[0]);
    prompt_close(prompts[1]);
    free(wanted.values);
    engine_close(engine);
    os.map_read = read_whole;
}

static void a_file_that_was_cut_is_no_signal(void **state)
{
    struct err            err = {0};
    struct parity        *p = parity_begin(state);
    struct holding        holding = {.streamed = all_blocks(p), .pinned_bytes = 0};
    struct engine        *engine;
    struct painted        out = {NULL, 0};
    struct prompt        *prompts[2], *another = NULL;
    const char           *path;
    struct schedule       schedule = {.steps = STEPS, .sigma = {1, 0.4f, 0}};
    struct prompt_request request = {.text = "east", .guidance = 2, .schedule = &schedule};

    if (machine_under_test() == ENGINE_CPU) return;
    engine = engine_with(p, &holding);
    prompts_open(prompts, engine);
    ASSERT_OK(step_of(engine, prompts, 1, 0, &out, &err));
    path = safetensors_path(engine->model->tensors[PART_TRANSFORMER]);
    assert_int_equal(truncate(path, 100), 0);
    /* What was on its way already may still be whole. */
    ASSERT_REFUSED(ERR_IO, "was its file cut", step_of(engine, prompts, 1, 0, &out, &err));
    ASSERT_REFUSED(ERR_IO, "was its file cut", prompt_open(&another, engine, &request, &err));
    prompt_close(prompts[0]);
    prompt_close(prompts[1]);
    free(out.values);
    engine_close(engine);
}

/* A tile of h x w tokens with at most so many rows at a time paints what it does with all at once:
 * to the bit, or `nearly` so. */
static void paint_in_parts(const struct parity *p, int32_t h, int32_t w, int64_t most, bool nearly)
{
    int64_t count = 4 * h * (int64_t)w * p->engine->facts.latent_channels;
    int32_t px = p->engine->facts.px_per_token;
    float  *latent = drawn(count, 5, -1), *wanted = drawn(count, 6, 0);

    for (int i = 0; i < 2; i++) {
        struct err         err = {0};
        struct holding     holding = {.mlp_rows = i * most, .side_tokens = w};
        struct engine     *engine = engine_with(p, &holding);
        struct painted     got = {drawn(count, 7, 0), count};
        struct prompt     *prompts[2];
        struct engine_tile tile = {
            .w_px = w * px, .h_px = h * px, .latent = latent, .velocity = got.values};

        prompts_open(prompts, engine);
        tile.prompt = prompts[0];
        ASSERT_OK(engine_predict(engine, &tile, 1, 0, &err));
        if (i == 0) memcpy(wanted, got.values, (size_t)count * sizeof *wanted);
        if (!nearly) {
            assert_same(&got, &(struct painted){wanted, count}, 0);
        } else {
            double error = relative_l2(got.values, wanted, count);
            print_message("# the MLP in parts of %lld rows: %.2e off\n", (long long)most, error);
            assert_true(error <= limit_of(p));
            free(got.values);
        }
        prompt_close(prompts[0]);
        prompt_close(prompts[1]);
        engine_close(engine);
    }
    free(latent);
    free(wanted);
}

/* The CPU cuts products by their shape alone, so parts of rows must not show.  A GPU's library may
 * choose other products for few rows, and no budget asks for such parts. */
static void an_mlp_in_parts_is_the_same(void **state)
{
    struct parity *p = parity_begin(state);

    for (int64_t rows = 256; rows <= 512; rows += 256)
        paint_in_parts(p, 20, 27, rows, machine_under_test() == ENGINE_CUDA);
    paint_in_parts(p, 30, 53, TRANSFORMER_MLP_LEAST, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_blocks_may_visit),
        cmocka_unit_test(every_tier_holds_all_blocks),
        cmocka_unit_test(what_visits_takes_two_slots_and_no_more),
        cmocka_unit_test(an_engine_may_close_while_a_block_travels),
        cmocka_unit_test(a_block_that_cannot_be_read_fails_its_step),
        cmocka_unit_test(a_file_that_was_cut_is_no_signal),
        cmocka_unit_test(an_mlp_in_parts_is_the_same),
    };
    return PARITY_RUN(tests, VARIANTS_ALL);
}
