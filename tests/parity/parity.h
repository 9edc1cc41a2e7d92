/*
 * parity.h - what the parity tests share: a random model folder, the engine on it, and what the
 * reference implementation computed for it (tests/golden/engine, see the README there).
 *
 * A test runs once for each variant: a model in one layout, one precision.  Limits are relative L2
 * errors: 1e-4 in fp32, where the order of sums differs, and 2e-2 in bf16, whose steps are 2^-8.
 */
#ifndef MURAL_PARITY_H
#define MURAL_PARITY_H

#include "../test.h"

#include "engine/compute_int.h"

#include <math.h>

struct variant {
    const char    *model;
    enum precision precision;
    bool           bfl;
};

struct parity {
    const struct variant *variant;
    char                  folder[128]; /* scratch; the model is folder/model */
    json_t               *index;
    const json_t         *spec; /* the model's entry in index */
    struct safetensors   *golden;
    struct engine        *engine;
    struct backend       *exact;    /* fp32, as prompts are computed            */
    struct backend       *backend;  /* as tiles are computed                    */
    struct networks       painters; /* as `backend` reads them                  */
    const char           *missing;  /* why this variant cannot run here         */
};

/* First line of every test. */
static inline struct parity *parity_begin(void **state)
{
    struct parity *p = *state;

    if (p->missing[0] != '\0') {
        print_message("# skipped: %s\n", p->missing);
        skip();
    }
    return p;
}

/* ------------------------------------------------------------------------- expected values */

static inline const float *golden(const struct parity *p, int64_t *count_out, const char *stem,
                                  size_t number)
{
    char                            name[64];
    const struct safetensors_entry *entry;

    (void)snprintf(name, sizeof name, "%s.%zu", stem, number);
    entry = safetensors_find(p->golden, name);
    if (entry == NULL) entry = safetensors_find(p->golden, stem);
    if (entry == NULL || entry->dtype != DTYPE_F32) fail_msg("no golden values '%s'", name);
    *count_out = (int64_t)(entry->bytes / sizeof(float));
    return entry->data;
}

static inline int64_t golden_ids(const struct parity *p, int32_t *ids_out, int64_t capacity,
                                 const char *stem, size_t number)
{
    int64_t      count;
    const float *values = golden(p, &count, stem, number);

    assert_true(count <= capacity);
    for (int64_t i = 0; i < count; i++)
        ids_out[i] = (int32_t)values[i];
    return count;
}

static inline double spec_number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_number(value)) fail_msg("no number '%s' in index.json", key);
    return json_number_value(value);
}

static inline int32_t spec_int(const json_t *object, const char *key)
{
    return (int32_t)spec_number(object, key);
}

static inline const json_t *spec_object(const struct parity *p, const char *key, size_t number)
{
    const json_t *value = json_object_get(p->spec, key);

    if (json_is_array(value)) value = json_array_get(value, number);
    if (!json_is_object(value)) fail_msg("no object '%s' in index.json", key);
    return value;
}

static inline size_t spec_count(const struct parity *p, const char *key)
{
    return json_array_size(json_object_get(p->spec, key));
}

/* ------------------------------------------------------------------- the machine under test */

/* MURAL_TEST_DEVICE: cpu (unless set), walled, or cuda. */
static inline enum engine_machine machine_under_test(void)
{
    const char *name = getenv("MURAL_TEST_DEVICE");

    if (name == NULL || strcmp(name, "cpu") == 0) return ENGINE_CPU;
    if (strcmp(name, "cuda") == 0) return ENGINE_CUDA;
    if (strcmp(name, "walled") != 0) fail_msg("MURAL_TEST_DEVICE is '%s'", name);
    return ENGINE_WALLED;
}

/* Host values as a matrix that a machine can read. */
static inline struct matrix sent(struct backend *backend, const float *values, int64_t rows,
                                 int64_t cols)
{
    struct matrix m = backend_take(backend, DTYPE_F32, rows, cols, "golden values");

    backend_upload(backend, m, values);
    return m;
}

/* A machine's matrix on the host; freed by the caller. */
static inline float *received(struct backend *backend, struct matrix m)
{
    struct err err = {0};
    float     *values = calloc((size_t)(m.rows * m.cols), sizeof *values);

    assert_non_null(values);
    backend_download(backend, values, m);
    ASSERT_OK(backend_wait(backend, &err));
    return values;
}

/* ---------------------------------------------------------------------------- comparison */

/* On the CPU fp32 differs in the order of sums alone; a GPU has other functions too. */
static inline double limit_of(const struct parity *p)
{
    if (p->variant->precision != PRECISION_F32) return 2e-2;
    return machine_under_test() == ENGINE_CUDA ? 1e-3 : 1e-4;
}

static inline double relative_l2(const float *got, const float *wanted, int64_t count)
{
    double difference = 0, size = 0;

    for (int64_t i = 0; i < count; i++) {
        double d = (double)got[i] - (double)wanted[i];
        difference += d * d;
        size += (double)wanted[i] * (double)wanted[i];
    }
    return sqrt(difference / size);
}

static inline void assert_close(const struct parity *p, const float *got, const char *stem,
                                size_t number)
{
    int64_t      count;
    const float *wanted = golden(p, &count, stem, number);
    double       error = relative_l2(got, wanted, count);

    print_message("# %s %s%s %s.%zu: relative error %.2e\n", p->variant->model,
                  p->variant->precision == PRECISION_F32 ? "f32" : "bf16",
                  p->variant->bfl ? " bfl" : "", stem, number, error);
    if (!(error <= limit_of(p))) fail_msg("%s.%zu is off by %.3e", stem, number, error);
}

static inline void assert_matrix_close(const struct parity *p, struct backend *backend,
                                       struct matrix m, const char *stem, size_t number)
{
    float *values = received(backend, m);

    assert_close(p, values, stem, number);
    free(values);
}

/* ------------------------------------------------------------------------------ variants */

static inline enum dtype dtype_named(const char *name)
{
    if (strcmp(name, "f16") == 0) return DTYPE_F16;
    return strcmp(name, "bf16") == 0 ? DTYPE_BF16 : DTYPE_F32;
}

static inline void write_model(struct parity *p, const char *folder)
{
    struct err           err = {0};
    char                 spec[512];
    struct synth_request request = {.folder = folder, .spec = spec, .bfl = p->variant->bfl};

    (void)snprintf(spec, sizeof spec, "%s/golden/models/%s.json", test_data(), p->variant->model);
    request.dtype = dtype_named(json_string_value(json_object_get(p->spec, "dtype")));
    request.seed = (uint64_t)spec_number(p->spec, "seed");
    ASSERT_OK(synth_write(&request, &err));
}

/* Goldens of other weights would fail everywhere and say nothing. */
static inline void check_weights(const struct parity *p)
{
    static const struct weight_request requests[] = {
        {.part = PART_TRANSFORMER, .name = "proj_out.weight"},
        {.part = PART_VAE, .name = "decoder.conv_in.weight"},
        {.part = PART_T5, .name = "encoder.block.0.layer.0.SelfAttention.q.weight"}};
    const struct model *model = p->engine->model;
    int64_t             count, width = model->vae.widths[model->vae.block_count - 1];
    const float        *wanted = golden(p, &count, "weights", 0);

    for (size_t i = 0; i < ARRAY_COUNT(requests); i++) {
        struct err            err = {0};
        struct weight_request request = requests[i];
        struct matrix         w;
        float                 got[4];

        request.rows_all = i == 0   ? model->transformer.out_channels
                           : i == 1 ? width
                                    : model->t5.heads * model->t5.head_dim;
        request.rows = request.rows_all;
        request.cols = i == 0   ? model->transformer.hidden
                       : i == 1 ? 9 * model->vae.latent_channels
                                : model->t5.hidden;
        ASSERT_OK(model_weight(&w, model, &request, &err));
        w.rows = 1;
        w.cols = 4;
        k_cast_cpu((struct matrix){got, DTYPE_F32, 1, 4, 4}, w);
        if (memcmp(got, wanted + 4 * i, sizeof got) != 0)
            fail_msg("goldens are of other weights; run tests/golden/make_goldens.py");
    }
}

static inline void read_spec(struct parity *p)
{
    struct err err = {0};
    char       path[512];
    size_t     i;
    json_t    *entry;

    (void)snprintf(path, sizeof path, "%s/golden/engine/index.json", test_data());
    ASSERT_OK(json_file_open(&p->index, path, 1 << 20, &err));
    json_array_foreach(json_object_get(p->index, "models"), i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (strcmp(name, p->variant->model) == 0) p->spec = entry;
    }
    assert_non_null(p->spec);
    (void)snprintf(path, sizeof path, "%s/golden/engine/%s.safetensors", test_data(),
                   p->variant->model);
    ASSERT_OK(safetensors_open(&p->golden, path, &err));
}

/* Backends with room for networks that are run alone. */
static inline void open_backends(struct parity *p)
{
    struct err             err = {0};
    struct backend_options machine = p->engine->text_machine;
    struct matrix          x, y;

    machine.conv_weight_elements_max = 9 * 64 * 64;
    machine.arena_limit_bytes = 512 << 20;
    machine.kept_matrix_bytes = machine.kept_vector_bytes = 64 << 20;
    ASSERT_OK(backend_open(&p->exact, &machine, &err));
    machine.compute = p->engine->machine.compute;
    ASSERT_OK(backend_open(&p->backend, &machine, &err));
    x = backend_take(p->backend, machine.compute, 64, 64, "trial");
    y = backend_take(p->backend, machine.compute, 64, 64, "trial");
    backend_fill(p->backend, x, 1);
    backend_linear(p->backend, y, x, x, NULL, ACT_NONE);
    if (backend_wait(p->backend, &err) != ERR_OK) {
        assert_true(p->variant->precision == PRECISION_BF16);
        assert_true(machine_under_test() != ENGINE_CUDA);
        p->missing = "the library has no bf16 on this CPU";
        return;
    }
    ASSERT_OK(engine_keep(&p->painters, p->engine, p->backend, &err));
}

/* Why the machine under test is not here; empty when it is. */
static inline const char *missing_device(void)
{
    static struct err           why;
    struct engine_device        device;
    const struct engine_options options = {.machine = machine_under_test()};

    if (options.machine != ENGINE_CUDA) return "";
    why.text[0] = '\0';
    return engine_find_device(&device, &options, &why) == ERR_OK ? "" : why.text;
}

/* cmocka setup: *state is a struct variant before, a struct parity after. */
static inline int parity_open(void **state)
{
    struct err            err = {0};
    struct parity        *p = calloc(1, sizeof *p);
    char                  folder[160];
    struct engine_options options = {.model_folder = folder, .threads = 2};

    assert_non_null(p);
    p->variant = *state;
    p->missing = missing_device();
    *state = p;
    if (p->missing[0] != '\0') return 0;
    options.machine = machine_under_test();
    read_spec(p);
    scratch_make(p->folder, sizeof p->folder);
    (void)snprintf(folder, sizeof folder, "%s/model", p->folder);
    write_model(p, folder);
    options.precision = p->variant->precision;
    options.text_tokens = (uint32_t)spec_int(p->spec, "text_tokens");
    ASSERT_OK(engine_open(&p->engine, &options, &err));
    check_weights(p);
    open_backends(p);
    return 0;
}

static inline int parity_close(void **state)
{
    struct parity *p = *state;

    if (p->engine != NULL) engine_release(&p->painters, p->engine);
    backend_close(p->backend);
    backend_close(p->exact);
    engine_close(p->engine);
    safetensors_close(p->golden);
    json_decref(p->index);
    if (p->folder[0] != '\0') scratch_remove(p->folder);
    free(p);
    return 0;
}

/* fp32 first. */
static const struct variant variants[] = {
    {"dev_small", PRECISION_F32, false},  {"dev_wide", PRECISION_F32, false},
    {"schnell", PRECISION_F32, false},    {"dev_wide", PRECISION_F32, true},
    {"dev_small", PRECISION_BF16, false}, {"dev_wide", PRECISION_BF16, false},
    {"schnell", PRECISION_BF16, false},
};
enum { VARIANTS_F32 = 4, VARIANTS_ALL = ARRAY_COUNT(variants) };

/* Every function for the first `variant_count` variants. */
static inline int parity_run(const struct CMUnitTest *functions, size_t function_count,
                             size_t variant_count)
{
    enum { MOST = 64 };
    static char              names[MOST][128];
    static struct variant    states[VARIANTS_ALL];
    static struct CMUnitTest tests[MOST];
    size_t                   made = 0;

    memcpy(states, variants, sizeof variants);
    assert_true(function_count * variant_count <= MOST);
    for (size_t v = 0; v < variant_count; v++)
        for (size_t f = 0; f < function_count; f++, made++) {
            (void)snprintf(names[made], sizeof names[made], "%s_%s_%s%s", functions[f].name,
                           states[v].model, states[v].precision == PRECISION_F32 ? "f32" : "bf16",
                           states[v].bfl ? "_bfl" : "");
            tests[made] = (struct CMUnitTest){.name = names[made],
                                              .test_func = functions[f].test_func,
                                              .setup_func = parity_open,
                                              .teardown_func = parity_close,
                                              .initial_state = &states[v]};
        }
    return _cmocka_run_group_tests("parity", tests, made, NULL, NULL);
}
#define PARITY_RUN(functions, variants) parity_run((functions), ARRAY_COUNT(functions), (variants))

#endif
