/*
 * test_vae_strips.c - strips of any height, maps kept or computed again, threads: the same bits;
 * and what a pass takes at FLUX.1's widths.
 */
#include "model_files.h"

#include "engine/compute_int.h"
#include "engine/vae_int.h"

#include <math.h>

/* ------------------------------------------------------------------------------- small coders */

struct kind {
    const char *widths, *downs, *ups; /* JSON */
    int32_t     levels, layers, groups;
    int32_t     w_lat, h_lat;
};

#define DOWN  "\"DownEncoderBlock2D\""
#define UP    "\"UpDecoderBlock2D\""
#define DOWN3 "[" DOWN "," DOWN "," DOWN "]"
#define UP3   "[" UP "," UP "," UP "]"

/* One level; groups of one channel; widths that grow and shrink; maps of a single row or column.
 * With three levels and no budget the last enlarged map is never whole, and its source is smaller
 * than what follows, as large, or larger. */
static const struct kind kinds[] = {
    {"[12]", "[" DOWN "]", "[" UP "]", 1, 1, 3, 5, 7},
    {"[8, 8]", "[" DOWN "," DOWN "]", "[" UP "," UP "]", 2, 1, 8, 3, 5},
    {"[4, 8]", "[" DOWN "," DOWN "]", "[" UP "," UP "]", 2, 1, 2, 1, 9},
    {"[3, 4]", "[" DOWN "," DOWN "]", "[" UP "," UP "]", 2, 1, 1, 1, 5},
    {"[4, 24]", "[" DOWN "," DOWN "]", "[" UP "," UP "]", 2, 2, 2, 2, 3},
    {"[24, 4]", "[" DOWN "," DOWN "]", "[" UP "," UP "]", 2, 1, 4, 7, 3},
    {"[4, 8, 12]", DOWN3, UP3, 3, 1, 2, 1, 1},
    {"[8, 16, 16]", DOWN3, UP3, 3, 2, 4, 3, 3},
    {"[4, 24, 24]", DOWN3, UP3, 3, 1, 4, 2, 3},
    {"[16, 20, 20]", DOWN3, UP3, 3, 1, 4, 3, 2},
};

struct coder {
    const struct kind *kind;
    char               folder[128];
    struct engine     *engine;
    struct vae        *vae;
    int32_t            w_px, h_px;
    int64_t            latents, values; /* floats of both sides */
    float             *latent, *rgb;    /* what goes in */
};

static void write_spec(const char *path, const struct kind *kind)
{
    struct err err = {0};
    char       base[512], number[16];
    json_t    *root = NULL, *vae;

    (void)snprintf(base, sizeof base, "%s/golden/models/dev_small.json", MURAL_TEST_DATA);
    ASSERT_OK(json_file_open(&root, base, 1 << 20, &err));
    vae = json_object_get(root, "vae");
    put(vae, "block_out_channels", kind->widths);
    put(vae, "down_block_types", kind->downs);
    put(vae, "up_block_types", kind->ups);
    (void)snprintf(number, sizeof number, "%d", kind->groups);
    put(vae, "norm_num_groups", number);
    (void)snprintf(number, sizeof number, "%d", kind->layers);
    put(vae, "layers_per_block", number);
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
}

static float *drawn(int64_t count, float low, float high)
{
    float   *values = malloc((size_t)count * sizeof *values);
    uint32_t state = 1;

    assert_non_null(values);
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = low + (high - low) * (float)(state >> 8) * 0x1p-24f;
    }
    return values;
}

static struct coder coder_open(const struct kind *kind)
{
    struct err            err = {0};
    struct coder          coder = {.kind = kind};
    char                  spec[160], folder[160];
    struct synth_request  request = {.folder = folder, .spec = spec, .seed = 9};
    struct engine_options options = {
        .model_folder = folder, .precision = PRECISION_F32, .threads = 1};

    scratch_make(coder.folder, sizeof coder.folder);
    (void)snprintf(spec, sizeof spec, "%s/spec.json", coder.folder);
    (void)snprintf(folder, sizeof folder, "%s/model", coder.folder);
    write_spec(spec, kind);
    ASSERT_OK(synth_write(&request, &err));
    ASSERT_OK(engine_open(&coder.engine, &options, &err));
    coder.vae = coder.engine->networks.vae;
    coder.w_px = kind->w_lat << (kind->levels - 1);
    coder.h_px = kind->h_lat << (kind->levels - 1);
    coder.latents = (int64_t)kind->w_lat * kind->h_lat * coder.vae->config.latent_channels;
    coder.values = (int64_t)coder.w_px * coder.h_px * 3;
    coder.latent = drawn(coder.latents, -2, 2);
    coder.rgb = drawn(coder.values, 0, 1);
    return coder;
}

static void coder_close(struct coder *coder)
{
    free(coder->latent);
    free(coder->rgb);
    engine_close(coder->engine);
    scratch_remove(coder->folder);
}

/* Both directions on one backend: pixels, then latents. */
struct result {
    float   *floats;
    int64_t  count;
    uint64_t bytes; /* taken from the arena */
};

static struct backend *open_backend(enum dtype compute, uint32_t threads, bool dry)
{
    struct err             err = {0};
    struct backend        *backend = NULL;
    struct backend_options machine = {.compute = compute,
                                      .threads = threads,
                                      .conv_weight_elements_max = 9 * 64 * 64,
                                      .arena_limit_bytes = 64 << 20};

    if (dry)
        ASSERT_OK(backend_open_dry(&backend, &machine, &err));
    else
        ASSERT_OK(backend_open(&backend, &machine, &err));
    return backend;
}

static struct compute on_host(const struct engine *engine, struct backend *backend)
{
    return (struct compute){.engine = engine, .painters = &engine->networks, .backend = backend};
}

static struct result run(const struct coder *coder, struct backend *backend)
{
    struct err     err = {0};
    struct compute compute = on_host(coder->engine, backend);
    struct result  result = {.count = coder->values + coder->latents};

    result.floats = malloc((size_t)result.count * sizeof(float));
    assert_non_null(result.floats);
    compute_decode(&compute, coder->latent, coder->w_px, coder->h_px, result.floats);
    compute_encode(&compute, coder->rgb, coder->w_px, coder->h_px, result.floats + coder->values);
    ASSERT_OK(backend_wait(backend, &err));
    result.bytes = arena_bytes_peak(backend_arena(backend));
    return result;
}

static struct result run_whole(const struct coder *coder, enum dtype compute)
{
    struct backend *backend = open_backend(compute, 1, false);
    struct result   result;

    coder->vae->budget = (struct vae_budget){UINT64_MAX, UINT64_MAX};
    result = run(coder, backend);
    backend_close(backend);
    return result;
}

/* A dry run takes the same bytes. */
static void check_dry(const struct coder *coder, const struct result *result)
{
    struct backend *backend = open_backend(DTYPE_F32, 1, true);
    struct result   dry = run(coder, backend);

    assert_true(dry.bytes == result->bytes);
    free(dry.floats);
    backend_close(backend);
}

/* ------------------------------------------------------------------------------------ the same */

static uint64_t widest_row_bytes(const struct coder *coder)
{
    int64_t widest = 0;

    for (int64_t i = 0; i < coder->vae->config.block_count; i++)
        widest = max_i64(widest, coder->vae->config.widths[i]);
    return (uint64_t)(coder->w_px * widest) * sizeof(float);
}

static void check_kind(const struct kind *kind)
{
    struct coder   coder = coder_open(kind);
    struct result  whole = run_whole(&coder, DTYPE_F32);
    const uint64_t row = widest_row_bytes(&coder);
    const uint64_t keeps[] = {0, row * (uint64_t)coder.h_px * 3 / 2, UINT64_MAX};

    for (size_t k = 0; k < ARRAY_COUNT(keeps); k++)
        for (int32_t rows = 0; rows <= coder.h_px; rows++) {
            struct backend *backend = open_backend(DTYPE_F32, 1, false);
            struct result   strips;

            coder.vae->budget = (struct vae_budget){keeps[k], rows == 0 ? 1 : row * (uint64_t)rows};
            strips = run(&coder, backend);
            for (int64_t i = 0; i < whole.count; i++)
                if (memcmp(&whole.floats[i], &strips.floats[i], sizeof(float)) != 0)
                    fail_msg("widths %s, strips of %d rows, budget %zu: value %lld is %.9g, not "
                             "%.9g",
                             kind->widths, rows, k, (long long)i, (double)strips.floats[i],
                             (double)whole.floats[i]);
            check_dry(&coder, &strips);
            free(strips.floats);
            backend_close(backend);
        }
    free(whole.floats);
    coder_close(&coder);
}

static void strips_of_any_height_give_the_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++)
        check_kind(&kinds[i]);
}

static void threads_change_no_bit(void **state)
{
    (void)state;
    struct coder  coder = coder_open(&kinds[ARRAY_COUNT(kinds) - 1]);
    struct result whole = run_whole(&coder, DTYPE_F32);

    coder.vae->budget = (struct vae_budget){0, 3 * widest_row_bytes(&coder)};
    for (uint32_t threads = 1; threads <= 5; threads++) {
        struct backend *backend = open_backend(DTYPE_F32, threads, false);
        struct result   strips = run(&coder, backend);

        assert_memory_equal(whole.floats, strips.floats, (size_t)whole.count * sizeof(float));
        free(strips.floats);
        backend_close(backend);
    }
    free(whole.floats);
    coder_close(&coder);
}

static bool has_bf16(void)
{
    struct err      err = {0};
    struct backend *backend = open_backend(DTYPE_BF16, 1, false);
    struct matrix   x = backend_take(backend, DTYPE_BF16, 64, 64, "trial");
    bool            possible;

    memset(x.data, 0, 64 * 64 * 2);
    backend_linear(backend, x, x, x, NULL, ACT_NONE);
    possible = backend_wait(backend, &err) == ERR_OK;
    backend_close(backend);
    return possible;
}

static void bf16_agrees_too(void **state)
{
    (void)state;
    if (!has_bf16()) {
        print_message("# skipped: the library has no bf16 on this CPU\n");
        skip();
    }
    for (size_t n = 0; n < ARRAY_COUNT(kinds); n++) {
        struct coder    coder = coder_open(&kinds[n]);
        struct result   whole = run_whole(&coder, DTYPE_BF16), strips;
        struct backend *backend = open_backend(DTYPE_BF16, 1, false);

        coder.vae->budget = (struct vae_budget){0, 1};
        strips = run(&coder, backend);
        for (int64_t i = 0; i < whole.count; i++)
            if (!(fabsf(whole.floats[i] - strips.floats[i]) <= 0.25f / 255))
                fail_msg("widths %s: value %lld is %.9g, not %.9g", kinds[n].widths, (long long)i,
                         (double)strips.floats[i], (double)whole.floats[i]);
        free(whole.floats);
        free(strips.floats);
        backend_close(backend);
        coder_close(&coder);
    }
}

/* ------------------------------------------------------------------------------------ the cost */

/* FLUX.1's VAE as shapes: no file, no weight. */
static struct vae *open_flux1(struct arena *vectors)
{
    struct err          err = {0};
    struct vae         *vae = NULL;
    struct model        model = {.folder = "none"};
    struct layer_loader loader = {.model = &model, .vectors = vectors, .dry = true};

    model.vae = (struct vae_config){.block_count = 4,
                                    .widths = {128, 256, 512, 512},
                                    .layers_per_block = 2,
                                    .norm_groups = 32,
                                    .latent_channels = 16,
                                    .image_channels = 3,
                                    .scaling = 0.3611,
                                    .shift = 0.1159,
                                    .mid_attention = true};
    ASSERT_OK(vae_load(&vae, &loader, &err));
    return vae;
}

static double conv_flop(const struct linear *conv, double rows)
{
    return 2 * rows * (double)conv->w.rows * (double)conv->w.cols;
}

/* Layer by layer, every layer once, nine taps for each value of an enlarged map. */
static double plain_flop(const struct vae_coder *coder, double rows)
{
    double flop = conv_flop(&coder->conv_in, rows);

    for (int64_t i = 0; i < coder->stage_count; i++) {
        const struct vae_stage *stage = &coder->stages[i];

        for (int64_t n = 0; n < stage->resnet_count; n++) {
            const struct vae_resnet *r = &stage->resnets[n];
            flop += conv_flop(&r->conv1, rows) + conv_flop(&r->conv2, rows);
            if (r->from != r->to) flop += conv_flop(&r->shortcut, rows);
        }
        if (stage->attends)
            flop += 4 * conv_flop(&stage->attention.q, rows) +
                    4 * rows * rows * (double)stage->attention.q.w.rows;
        if (stage->resize != VAE_KEEP) rows *= stage->resize == VAE_HALVE ? 0.25 : 4;
        if (stage->resize != VAE_KEEP) flop += conv_flop(&stage->resampler, rows);
    }
    return flop + conv_flop(&coder->conv_out, rows);
}

static void check_cost(struct engine *engine, enum dtype dtype, int32_t side, double most_bytes)
{
    struct vae *vae = engine->networks.vae;
    double      cells = (double)(side / 8) * (side / 8);
    const char *name = dtype == DTYPE_F32 ? "f32" : "bf16";

    for (int decodes = 0; decodes < 2; decodes++) {
        struct backend *backend = open_backend(dtype, 1, true);
        struct compute  compute = on_host(engine, backend);
        double          bytes, ratio = decodes ? plain_flop(&vae->decoder, cells)
                                               : plain_flop(&vae->encoder, 64 * cells);

        if (decodes)
            compute_decode(&compute, NULL, side, side, NULL);
        else
            compute_encode(&compute, NULL, side, side, NULL);
        ratio = backend_flops(backend) / ratio;
        bytes = (double)arena_bytes_peak(backend_arena(backend));
        print_message("# %s %d x %d %s: %.3f GB, %.3f of the plain arithmetic\n",
                      decodes ? "decode" : "encode", side, side, name, bytes / 1e9, ratio);
        if (bytes > most_bytes || ratio > 1.3) fail_msg("too much: at most %.3g bytes", most_bytes);
        backend_close(backend);
    }
}

static void flux1_stays_in_its_limits(void **state)
{
    (void)state;
    struct err    err = {0};
    struct arena *vectors = NULL;
    struct engine engine = {.facts = {.px_per_lat = 8, .latent_channels = 16}};

    ASSERT_OK(arena_open_dry(&vectors, &err));
    engine.networks.vae = open_flux1(vectors);
    check_cost(&engine, DTYPE_BF16, 2048, 1.5e9);
    check_cost(&engine, DTYPE_F32, 2048, 2.8e9);
    check_cost(&engine, DTYPE_BF16, 1024, 1.5e9);
    check_cost(&engine, DTYPE_F32, 1024, 1.5e9);
    check_cost(&engine, DTYPE_BF16, 512, 0.5e9);
    vae_free(engine.networks.vae);
    arena_close(vectors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strips_of_any_height_give_the_same_bits),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(bf16_agrees_too),
        cmocka_unit_test(flux1_stays_in_its_limits),
    };
    return cmocka_run_group_tests_name("vae_strips", tests, NULL, NULL);
}
