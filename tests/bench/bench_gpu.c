/*
 * bench_gpu.c - FLUX.1-dev at its real shapes on a GPU, with made-up weights: how long each part
 * takes, and what share that is of the fastest product of the same run.
 *
 * use: bench_gpu [--side PX]...    (sides of square tiles; 2048 and 1024, and the tile of an 8K
 *                                   poster, unless given)
 *
 * Lines of CSV: part, size, milliseconds (median), TFLOP, TFLOP/s, share of the ceiling.  The model
 * is hollow: no file of weights is read.  What the card multiplies is never zero, for zeros flatter
 * it; the numbers of a prompt are zeros, and its time is that of the bus.
 */
#include "backend/backend_int.h"
#include "engine/compute_int.h"
#include "engine/transformer_int.h"

#include "../test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SAMPLES = 9, SIZES_MAX = 8, STEPS = 20 };

struct bench {
    char               folder[128], model[160];
    struct engine     *engine;
    struct backend    *backend;
    struct engine_size sizes[SIZES_MAX];
    size_t             size_count;
    double             ceiling; /* TFLOP/s */
};

static void stop(const char *what, const struct err *err)
{
    fprintf(stderr, "bench_gpu: %s: %s\n", what, err->text);
    exit(1);
}

static void check(int rc, const char *what, const struct err *err)
{
    if (rc != ERR_OK) stop(what, err);
}

/* ----------------------------------------------------------------------------------- opening */

/* Every kept weight and vector is made up: numbers in [-1/8, 1/8). */
static void fill_arena(struct bench *bench, struct arena *arena, const void *inside,
                       enum dtype dtype)
{
    uint64_t      bytes = arena_bytes_peak(arena);
    struct matrix all = {(char *)(uintptr_t)inside - arena_offset(arena, inside), dtype, 0, 4096,
                         4096};

    all.rows = (int64_t)(bytes / (4096u * dtype_bytes(dtype)));
    backend_fill(bench->backend, all, 1);
}

static void open_engine(struct bench *bench)
{
    struct err           err = {0};
    struct synth_request hollow = {
        .folder = bench->model, .spec = "flux1-dev", .dtype = DTYPE_BF16, .hollow = true};
    struct engine_options options = {
        .model_folder = bench->model, .machine = ENGINE_CUDA, .precision = PRECISION_BF16};
    struct engine  *engine;
    struct measured measured;
    double          begin = os_seconds();

    check(synth_write(&hollow, &err), "a hollow model", &err);
    check(engine_open(&engine, &options, &err), "open", &err);
    bench->engine = engine;
    check(measure_sizes(&measured, engine, bench->sizes, bench->size_count, &err), "plan", &err);
    check(engine_check_device(&options, &measured.cost, &err), "device", &err);
    engine->machine.arena_limit_bytes = measured.tile_bytes;
    engine->machine.kept_matrix_bytes = measured.kept_matrix_bytes;
    engine->machine.kept_vector_bytes = measured.kept_vector_bytes;
    engine->text_machine.arena_limit_bytes = measured.text_bytes;
    engine->tiles_max = 1;
    engine->steps_max = STEPS;
    check(os_alloc((void **)&engine->tiles, 1, sizeof *engine->tiles, "tiles", &err), "tiles",
          &err);
    check(backend_open(&engine->backend, &engine->machine, &err), "backend", &err);
    bench->backend = engine->backend;
    check(arena_seal(backend_arena(engine->backend), measured.tile_bytes, &err), "scratch", &err);
    printf("# open,,%.0f\n", 1e3 * (os_seconds() - begin));
    begin = os_seconds();
    check(engine_keep(&engine->painters, engine, engine->backend, &err), "weights", &err);
    printf("# upload of %.2f GB,,%.0f\n", (double)measured.kept_matrix_bytes / 1e9,
           1e3 * (os_seconds() - begin));
}

/* --------------------------------------------------------------------------------- stop-watch */

typedef void (*work_fn)(struct bench *bench, const void *what);

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double seconds_of(struct bench *bench, work_fn work, const void *what, int repeats)
{
    struct err err = {0};
    double     begin = os_seconds();

    for (int i = 0; i < repeats; i++)
        work(bench, what);
    check(backend_wait(bench->backend, &err), "work", &err);
    return (os_seconds() - begin) / repeats;
}

/* Median of samples of at least 30 ms each, after a warm-up. */
static double median_seconds(struct bench *bench, work_fn work, const void *what)
{
    double samples[SAMPLES], once;
    int    repeats;

    (void)seconds_of(bench, work, what, 1);
    once = seconds_of(bench, work, what, 1);
    repeats = once > 0.03 ? 1 : (int)(0.03 / once) + 1;
    for (int i = 0; i < SAMPLES; i++)
        samples[i] = seconds_of(bench, work, what, repeats);
    qsort(samples, SAMPLES, sizeof *samples, by_value);
    return samples[SAMPLES / 2];
}

static void report(struct bench *bench, const char *part, const char *size, work_fn work,
                   const void *what)
{
    double before = backend_flops(bench->backend), tflop, seconds;

    work(bench, what);
    tflop = (backend_flops(bench->backend) - before) / 1e12;
    seconds = median_seconds(bench, work, what);
    printf("%s,%s,%.3f,%.3f,%.1f,%.3f\n", part, size, 1e3 * seconds, tflop, tflop / seconds,
           bench->ceiling > 0 ? tflop / seconds / bench->ceiling : 0);
    fflush(stdout);
}

/* -------------------------------------------------------------------------------------- parts */

struct product {
    const char     *name;
    struct matrix   x, w, y;
    const float    *bias;
    enum activation act;
};

static void run_product(struct bench *bench, const void *what)
{
    const struct product *product = what;

    backend_linear(bench->backend, product->y, product->x, product->w, product->bias, product->act);
}

static struct matrix made_up(struct bench *bench, int64_t rows, int64_t cols)
{
    struct matrix m = backend_take(bench->backend, DTYPE_BF16, rows, cols, "made-up numbers");

    backend_fill(bench->backend, m, (uint64_t)cols);
    return m;
}

static void rehearse(struct bench *bench, work_fn work, const void *what)
{
    struct err err = {0};

    backend_rehearse(bench->backend, true);
    work(bench, what);
    check(backend_wait(bench->backend, &err), "rehearsal", &err);
    backend_rehearse(bench->backend, false);
}

/* One product with everything made up; returns TFLOP/s. */
static double time_product(struct bench *bench, const char *name, int64_t m, int64_t n, int64_t k,
                           enum activation act)
{
    struct arena_mark mark = arena_mark(backend_arena(bench->backend));
    struct product    product = {.x = made_up(bench, m, k), .act = act};
    struct matrix     bias = {NULL, DTYPE_F32, 1, n, n};
    char              size[64];
    double            seconds;

    product.w = made_up(bench, n, k);
    product.y = backend_take(bench->backend, DTYPE_BF16, m, n, "product");
    bias.data = backend_take(bench->backend, DTYPE_F32, 1, n, "bias").data;
    backend_fill(bench->backend, bias, 3);
    product.bias = bias.data;
    rehearse(bench, run_product, &product);
    backend_fill(bench->backend, product.x, 2);
    seconds = median_seconds(bench, run_product, &product);
    (void)snprintf(size, sizeof size, "%lldx%lldx%lld", (long long)m, (long long)n, (long long)k);
    double tflop = 2e-12 * (double)m * (double)n * (double)k;
    printf("%s,%s,%.3f,%.3f,%.1f,%.3f\n", name, size, 1e3 * seconds, tflop, tflop / seconds,
           bench->ceiling > 0 ? tflop / seconds / bench->ceiling : 0);
    fflush(stdout);
    arena_rewind(backend_arena(bench->backend), mark);
    return tflop / seconds;
}

static void find_ceiling(struct bench *bench)
{
    static const int64_t shapes[][3] = {
        {8192, 8192, 8192}, {16384, 9216, 3072}, {8192, 8192, 4096}};

    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        double rate =
            time_product(bench, "ceiling", shapes[i][0], shapes[i][1], shapes[i][2], ACT_NONE);
        if (rate > bench->ceiling) bench->ceiling = rate;
    }
}

static void run_attention(struct bench *bench, const void *what)
{
    backend_attention(bench->backend, what);
}

static void run_rope(struct bench *bench, const void *what)
{
    backend_qk_norm_rope(bench->backend, what);
}

static void run_gate_norm(struct bench *bench, const void *what)
{
    backend_gate_add_layer_norm(bench->backend, what);
}

/* What lies between the products of a block, at `rows` tokens. */
static void time_rest(struct bench *bench, int64_t rows, const char *size)
{
    const struct transformer_config *config = &bench->engine->model->transformer;
    struct arena_mark                mark = arena_mark(backend_arena(bench->backend));
    int64_t                          h = config->hidden;
    struct matrix            qkv = made_up(bench, rows, 3 * h), wide = made_up(bench, rows, 5 * h);
    struct matrix            stream = backend_take(bench->backend, DTYPE_F32, rows, h, "stream");
    struct matrix            angles = backend_take(bench->backend, DTYPE_F32, rows, 64, "angles");
    struct matrix            vectors = backend_take(bench->backend, DTYPE_F32, 4, h, "vectors");
    const float             *vector = vectors.data;
    struct attention_request attention = {.out = matrix_cols(wide, 0, h),
                                          .q = matrix_cols(qkv, 0, h),
                                          .k = matrix_cols(qkv, h, h),
                                          .v = matrix_cols(qkv, 2 * h, h),
                                          .heads = (int32_t)config->heads,
                                          .dim = (int32_t)config->head_dim,
                                          .scale = 0.0883883f};
    struct qk_rope_request   rope = {.q = attention.q,
                                     .k = attention.k,
                                     .heads = attention.heads,
                                     .dim = attention.dim,
                                     .q_weight = vector,
                                     .k_weight = vector,
                                     .eps = 1e-6f,
                                     .cos = angles.data,
                                     .sin = angles.data};
    struct gate_norm_request norm = {.out = matrix_cols(qkv, 0, h),
                                     .x = stream,
                                     .y = matrix_cols(wide, 0, h),
                                     .gate = vector,
                                     .scale = vector + h,
                                     .shift = vector + 2 * h,
                                     .eps = 1e-6f};

    norm.out.ld = norm.out.cols; /* contiguous, as in a block */
    backend_fill(bench->backend, stream, 1);
    backend_fill(bench->backend, angles, 2);
    backend_fill(bench->backend, vectors, 3);
    rehearse(bench, run_attention, &attention);
    report(bench, "attention", size, run_attention, &attention);
    report(bench, "q/k norm and rotation", size, run_rope, &rope);
    report(bench, "gate, sum, norm, modulate", size, run_gate_norm, &norm);
    arena_rewind(backend_arena(bench->backend), mark);
}

/* -------------------------------------------------------------------------------------- whole */

struct picture {
    struct prompt prompt;
    int32_t       w_px, h_px;
    float        *latent, *velocity, *rgb;
};

static void run_predict(struct bench *bench, const void *what)
{
    const struct picture *picture = what;
    struct err            err = {0};
    struct engine_tile    tile = {.prompt = &picture->prompt,
                                  .w_px = picture->w_px,
                                  .h_px = picture->h_px,
                                  .latent = picture->latent,
                                  .velocity = picture->velocity};

    check(engine_predict(bench->engine, &tile, 1, 0, &err), "step", &err);
}

static void run_encode(struct bench *bench, const void *what)
{
    const struct picture *picture = what;
    struct err            err = {0};

    check(engine_encode(bench->engine, picture->rgb, picture->w_px, picture->h_px, picture->latent,
                        &err),
          "encode", &err);
}

static void run_decode(struct bench *bench, const void *what)
{
    const struct picture *picture = what;
    struct err            err = {0};

    check(engine_decode(bench->engine, picture->latent, picture->w_px, picture->h_px, picture->rgb,
                        &err),
          "decode", &err);
}

static float *host_numbers(int64_t count, float scale)
{
    float *values = calloc((size_t)count, sizeof *values);

    if (values == NULL) exit(1);
    for (int64_t i = 0; i < count; i++)
        values[i] = scale * (float)((i * 2654435761u >> 8) % 2001 - 1000) / 1000.0f;
    return values;
}

static void time_whole(struct bench *bench, const struct engine_size *plan, const char *size)
{
    const struct engine *engine = bench->engine;
    int64_t              count = modulation_count(engine->networks.transformer);
    int64_t        pixels = (int64_t)plan->w_px * plan->h_px, tokens = engine->facts.text_tokens;
    struct picture picture = {.w_px = plan->w_px,
                              .h_px = plan->h_px,
                              .latent = host_numbers(pixels / 4, 1),
                              .velocity = host_numbers(pixels / 4, 1),
                              .rgb = host_numbers(3 * pixels, 1)};

    picture.prompt.text = host_numbers(tokens * engine->facts.hidden, 1);
    picture.prompt.modulation = host_numbers(count, 0.25f);
    picture.prompt.conditioning = (struct conditioning){.text = picture.prompt.text,
                                                        .modulation = picture.prompt.modulation,
                                                        .text_tokens = tokens,
                                                        .steps = 1};
    report(bench, "step", size, run_predict, &picture);
    report(bench, "VAE encode", size, run_encode, &picture);
    report(bench, "VAE decode", size, run_decode, &picture);
    free(picture.latent);
    free(picture.velocity);
    free(picture.rgb);
    free(picture.prompt.text);
    free(picture.prompt.modulation);
}

/* T5, CLIP and the modulation of all steps; the first time also reads the hollow files. */
static void time_prompt(struct bench *bench)
{
    struct err            err = {0};
    struct schedule       schedule = {.steps = STEPS};
    struct prompt_request request = {
        .text = "a majestic mountain landscape", .guidance = 3.5, .schedule = &schedule};

    for (uint32_t i = 0; i < STEPS; i++)
        schedule.sigma[i] = 1 - (float)i / STEPS;
    for (int turn = 0; turn < 3; turn++) {
        struct prompt *prompt = NULL;
        double         begin = os_seconds();
        check(prompt_open(&prompt, bench->engine, &request, &err), "prompt", &err);
        printf("prompt,%s,%.0f,,,\n", turn == 0 ? "first" : "again", 1e3 * (os_seconds() - begin));
        prompt_close(prompt);
    }
}

static void time_size(struct bench *bench, const struct engine_size *plan)
{
    const struct transformer_config *config = &bench->engine->model->transformer;
    int64_t image = (int64_t)(plan->w_px / 16) * (plan->h_px / 16), h = config->hidden;
    int64_t rows = image + bench->engine->facts.text_tokens;
    char    size[32];

    (void)snprintf(size, sizeof size, "%dx%d", plan->w_px, plan->h_px);
    (void)time_product(bench, "qkv of a single block", rows, 3 * h, h, ACT_NONE);
    (void)time_product(bench, "mlp in of a single block", rows, config->mlp, h, ACT_GELU_TANH);
    (void)time_product(bench, "out of a single block", rows, h, h + config->mlp, ACT_NONE);
    (void)time_product(bench, "qkv of a double block", image, 3 * h, h, ACT_NONE);
    (void)time_product(bench, "out of a double block", image, h, h, ACT_NONE);
    (void)time_product(bench, "mlp in of a double block", image, config->mlp, h, ACT_GELU_TANH);
    (void)time_product(bench, "mlp out of a double block", image, h, config->mlp, ACT_NONE);
    time_rest(bench, rows, size);
    time_whole(bench, plan, size);
}

static void add_size(struct bench *bench, int32_t w_px, int32_t h_px)
{
    if (bench->size_count == SIZES_MAX) return;
    bench->sizes[bench->size_count++] =
        (struct engine_size){.w_px = w_px, .h_px = h_px, .tiles = 1, .steps = STEPS};
}

static void show(enum log_level level, const char *line, void *user)
{
    (void)level;
    (void)user;
    fprintf(stderr, "%s\n", line);
}

int main(int argc, char **argv)
{
    struct bench          bench = {.ceiling = 0};
    struct err            err = {0};
    struct backend_device before, after;

    for (int i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], "--side") == 0)
            add_size(&bench, (int32_t)strtol(argv[i + 1], NULL, 10),
                     (int32_t)strtol(argv[i + 1], NULL, 10));
    if (bench.size_count == 0) {
        add_size(&bench, 2048, 2048);
        add_size(&bench, 2016, 1536);
        add_size(&bench, 1024, 1024);
    }
    log_install(show, NULL, LOG_DEBUG);
    check(backend_find_cuda(&before, 0, &err), "device", &err);
    printf("# %s, %.1f GB\npart,size,ms,tflop,tflops,share\n", before.name,
           (double)before.bytes_total / 1e9);
    scratch_make(bench.folder, sizeof bench.folder);
    (void)snprintf(bench.model, sizeof bench.model, "%s/model", bench.folder);
    open_engine(&bench);
    const struct linear *inside = &bench.engine->painters.transformer->image_in;
    fill_arena(&bench, bench.backend->kept_matrices, inside->w.data, DTYPE_BF16);
    fill_arena(&bench, bench.backend->kept_vectors, inside->bias, DTYPE_F32);
    find_ceiling(&bench);
    check(measure_rehearse(bench.engine, bench.sizes, bench.size_count, &err), "rehearsal", &err);
    for (size_t i = 0; i < bench.size_count; i++)
        time_size(&bench, &bench.sizes[i]);
    time_prompt(&bench);
    check(backend_find_cuda(&after, 0, &err), "device", &err);
    printf("# device memory taken,,,%.2f GB\n",
           (double)(before.bytes_free - after.bytes_free) / 1e9);
    engine_close(bench.engine);
    scratch_remove(bench.folder);
    return 0;
}
