/*
 * gpu_bench.h - an engine with made-up weights of FLUX.1-dev's shapes on a GPU, a stop-watch, and
 * what is timed in more than one way: a product, a step.
 *
 * The model is hollow: no file of weights is read.
 */
#ifndef MURAL_GPU_BENCH_H
#define MURAL_GPU_BENCH_H

#include "backend/backend_int.h"
#include "engine/compute_int.h"
#include "engine/transformer_int.h"

#include "../test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SAMPLES = 9, SIZES_MAX = 8, STEPS = 20, TILES_MAX = 8 };

struct bench {
    char               folder[128], model[160];
    struct engine     *engine;
    struct backend    *backend;
    struct engine_size sizes[SIZES_MAX];
    size_t             size_count;
    uint32_t           tiles;   /* in a step */
    double             ceiling; /* TFLOP/s */
    uint32_t           stream;  /* blocks that visit              */
    uint64_t           pinned;  /* bytes of the host, for those   */
    int64_t            mlp_rows;
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

/* Every kept weight and vector is made up: numbers in (-1/4, 1/4). */
static void fill_arena(struct bench *bench, struct arena *arena, const void *inside,
                       enum dtype dtype)
{
    uint64_t      bytes = arena_bytes_peak(arena);
    struct matrix all = {(char *)(uintptr_t)inside - arena_offset(arena, inside), dtype, 0, 4096,
                         4096};

    all.rows = (int64_t)(bytes / (4096u * dtype_bytes(dtype)));
    backend_fill(bench->backend, all, 1);
}

static void write_model(struct bench *bench)
{
    struct err           err = {0};
    struct synth_request hollow = {
        .folder = bench->model, .spec = "flux1-dev", .dtype = DTYPE_BF16, .hollow = true};

    scratch_make(bench->folder, sizeof bench->folder);
    (void)snprintf(bench->model, sizeof bench->model, "%s/model", bench->folder);
    check(synth_write(&hollow, &err), "a hollow model", &err);
}

/* The blocks that visit lie evenly among the others. */
static void choose_blocks(struct bench *bench)
{
    struct budget *budget = &bench->engine->budget;
    uint32_t       blocks = (uint32_t)(bench->engine->facts.doubles + bench->engine->facts.singles);

    if (bench->stream > blocks) bench->stream = blocks;
    if (bench->stream > 1) bench->stream -= bench->stream % 2; /* two slots take turns */
    for (uint32_t i = 0, error = 0; i < blocks; i++) {
        error += bench->stream;
        budget->streamed[i] = error >= blocks;
        if (budget->streamed[i]) error -= blocks;
    }
    budget->pinned_bytes = bench->pinned;
    bench->engine->mlp_rows = bench->mlp_rows;
}

static void open_engine(struct bench *bench)
{
    struct err            err = {0};
    struct engine_options options = {
        .model_folder = bench->model, .machine = ENGINE_CUDA, .precision = PRECISION_BF16};
    struct engine  *engine;
    struct measured measured;
    double          begin = os_seconds();

    check(engine_open(&engine, &options, &err), "open", &err);
    bench->engine = engine;
    choose_blocks(bench);
    check(measure_sizes(&measured, engine, bench->sizes, bench->size_count, &err), "plan", &err);
    engine->machine.arena_limit_bytes = measured.tile_bytes;
    engine->machine.kept_matrix_bytes = measured.kept_matrix_bytes;
    engine->machine.kept_vector_bytes = measured.kept_vector_bytes;
    engine->text_machine.arena_limit_bytes = measured.text_bytes;
    engine->machine.parcels = measured.parcels;
    engine->machine.pinned_bytes = bench->pinned;
    engine->size_count = bench->size_count;
    memcpy(engine->sizes, bench->sizes, bench->size_count * sizeof *bench->sizes);
    engine->tiles_max = TILES_MAX;
    engine->steps_max = STEPS;
    check(os_alloc((void **)&engine->tiles, TILES_MAX, sizeof *engine->tiles, "tiles", &err),
          "tiles", &err);
    check(backend_open(&engine->backend, &engine->machine, &err), "backend", &err);
    bench->backend = engine->backend;
    check(arena_seal(backend_arena(engine->backend), measured.tile_bytes, &err), "scratch", &err);
    printf("# open,,%.0f\n", 1e3 * (os_seconds() - begin));
    begin = os_seconds();
    check(engine_keep(&engine->painters, engine, engine->backend, &err), "weights", &err);
    printf("# upload of %.2f GB,,%.0f\n", (double)measured.kept_matrix_bytes / 1e9,
           1e3 * (os_seconds() - begin));
    fill_arena(bench, bench->backend->kept_matrices, engine->painters.transformer->image_in.w.data,
               DTYPE_BF16);
    fill_arena(bench, bench->backend->kept_vectors, engine->painters.transformer->image_in.bias,
               DTYPE_F32);
}

static void rehearse_sizes(struct bench *bench)
{
    struct err err = {0};

    check(measure_rehearse(bench->engine, bench->sizes, bench->size_count, &err), "rehearsal",
          &err);
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

/* -------------------------------------------------------------------------------- a product */

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

/* ----------------------------------------------------------------------------------- a step */

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

/* On pages of their own, as a prompt's are. */
static float *host_numbers(int64_t count, float scale)
{
    float *values = aligned_alloc(1 << 16, (size_t)round_up_i64(4 * count, 1 << 16));

    if (values == NULL) exit(1);
    for (int64_t i = 0; i < count; i++)
        values[i] = scale * (float)((i * 2654435761u >> 8) % 2001 - 1000) / 1000.0f;
    return values;
}

static struct picture picture_open(const struct bench *bench, const struct engine_size *plan)
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
    backend_pin(engine->backend, picture.prompt.text,
                sizeof(float) * (uint64_t)(tokens * engine->facts.hidden));
    backend_pin(engine->backend, picture.prompt.modulation, sizeof(float) * (uint64_t)count);
    return picture;
}

static void picture_close(const struct bench *bench, struct picture *picture)
{
    backend_unpin(bench->engine->backend, picture->prompt.text);
    backend_unpin(bench->engine->backend, picture->prompt.modulation);
    free(picture->latent);
    free(picture->velocity);
    free(picture->rgb);
    free(picture->prompt.text);
    free(picture->prompt.modulation);
}

#endif
