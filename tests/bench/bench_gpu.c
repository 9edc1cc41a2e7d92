/*
 * bench_gpu.c - FLUX.1-dev at its real shapes on a GPU, with made-up weights: how long each part
 * takes, and what share that is of the fastest product of the same run.
 *
 * use: bench_gpu [--side PX]...    (sides of square tiles; 2048 and 1024, and the tile of an 8K
 *                                   poster, unless given)
 *                [--stream all|N]  (instead: steps with N blocks that visit the card, against steps
 *                                   with all blocks there, turn by turn, and the same bits of both)
 *                [--tiles T]       (with --stream: tiles in a step)
 *                [--pinned GB]     (with --stream: of the host's memory; the rest through windows)
 *                [--mlp-rows N]    (with --stream: the MLP of the visited sees so many at a time)
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

static void time_whole(struct bench *bench, const struct engine_size *plan, const char *size)
{
    struct picture picture = picture_open(bench, plan);

    report(bench, "step", size, run_predict, &picture);
    report(bench, "VAE encode", size, run_encode, &picture);
    report(bench, "VAE decode", size, run_decode, &picture);
    picture_close(bench, &picture);
}

/* T5, CLIP and the modulation of all steps; the first time also reads the hollow files.  The same
 * text again is its modulation alone. */
static void time_prompt(struct bench *bench)
{
    struct err            err = {0};
    struct schedule       schedule = {.steps = STEPS};
    struct prompt_request request = {
        .text = "a majestic mountain landscape", .guidance = 3.5, .schedule = &schedule};

    for (uint32_t i = 0; i < STEPS; i++)
        schedule.sigma[i] = 1 - (float)i / STEPS;
    for (int turn = 0; turn < 3; turn++) {
        static const char *const names[] = {"first", "another text", "the same text"};
        struct prompt           *prompt = NULL;
        double                   begin = os_seconds();

        if (turn == 1) request.text = "a harbour in fog";
        check(prompt_open(&prompt, bench->engine, &request, &err), "prompt", &err);
        printf("prompt,%s,%.0f,,,\n", names[turn], 1e3 * (os_seconds() - begin));
        backend_unpin(bench->engine->backend, prompt->text);
        backend_unpin(bench->engine->backend, prompt->modulation);
        begin = os_seconds();
        prompt_pin_all(bench->engine);
        printf("prompt,its tables pinned,%.1f,,,\n", 1e3 * (os_seconds() - begin));
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

/* ------------------------------------------------------------------------------ blocks that visit
 */

/* What one weight of the resident engine is, put where the same weight of the other comes from. */
static void give(struct bench *from, struct bench *to, uint32_t parcel, struct matrix there,
                 struct matrix visiting)
{
    struct err      err = {0};
    struct parcels *parcels = to->backend->parcels;
    struct parcel  *home = &parcels->parcel[parcel];
    uint64_t        at = (uint64_t)((char *)visiting.data - parcels->slots[parcel % PARCEL_SLOTS]);
    int64_t         count = there.rows * there.cols;
    float          *values = malloc((size_t)count * sizeof *values);

    if (values == NULL) exit(1);
    backend_download(from->backend, values, there);
    check(backend_wait(from->backend, &err), "weights", &err);
    for (uint32_t i = 0; i < home->piece_count; i++) {
        struct parcel_piece *piece = &home->pieces[i];
        int64_t              n = piece->source.rows * piece->source.cols;
        int64_t              first = ((int64_t)piece->offset - (int64_t)at) / 2;

        if (first < 0 || first >= count) continue;
        /* In windows they come from the file: from memory then, for the file is hollow.  It is
         * needed as long as the program runs. */
        void *target =
            home->host != NULL ? (char *)home->host + piece->offset : malloc(2 * (size_t)n);
        if (target == NULL) exit(1);
        k_cast_cpu((struct matrix){target, DTYPE_BF16, 1, n, n},
                   (struct matrix){values + first, DTYPE_F32, 1, n, n});
        if (home->host == NULL) piece->source.data = target;
    }
    free(values);
}

static void give_linear(struct bench *from, struct bench *to, int32_t parcel,
                        const struct linear *there, const struct linear *other)
{
    struct err err = {0};
    int64_t    count = there->w.rows * there->w.cols;
    float     *values;

    if (parcel >= 0) {
        give(from, to, (uint32_t)parcel, there->w, other->w);
        return;
    }
    values = malloc((size_t)count * sizeof *values);
    if (values == NULL) exit(1);
    backend_download(from->backend, values, there->w);
    check(backend_wait(from->backend, &err), "weights", &err);
    backend_upload(to->backend, other->w, values);
    check(backend_wait(to->backend, &err), "weights", &err);
    free(values);
}

static void give_stream(struct bench *from, struct bench *to, int32_t parcel,
                        const struct stream *there, const struct stream *other)
{
    for (int part = 0; part < there->in.part_count; part++)
        give_linear(from, to, parcel, &there->in.parts[part], &other->in.parts[part]);
    give_linear(from, to, parcel, &there->out, &other->out);
    give_linear(from, to, parcel, &there->mlp_in, &other->mlp_in);
    give_linear(from, to, parcel, &there->mlp_out, &other->mlp_out);
}

/* The transformer's matrices; vectors were made up alike in both. */
static void give_weights(struct bench *from, struct bench *to)
{
    const struct transformer *there = from->engine->painters.transformer;
    const struct transformer *other = to->engine->painters.transformer;
    int64_t                   doubles = there->config.doubles;

    give_linear(from, to, -1, &there->image_in, &other->image_in);
    give_linear(from, to, -1, &there->image_out, &other->image_out);
    for (int64_t i = 0; i < doubles; i++) {
        give_stream(from, to, other->parcels[i], &there->doubles[i].image,
                    &other->doubles[i].image);
        give_stream(from, to, other->parcels[i], &there->doubles[i].text, &other->doubles[i].text);
    }
    for (int64_t i = 0; i < there->config.singles; i++) {
        const struct single_block *a = &there->singles[i], *b = &other->singles[i];
        int32_t                    parcel = other->parcels[doubles + i];
        for (int part = 0; part < a->in.part_count; part++)
            give_linear(from, to, parcel, &a->in.parts[part], &b->in.parts[part]);
        give_linear(from, to, parcel, &a->mlp_in, &b->mlp_in);
        give_linear(from, to, parcel, &a->out, &b->out);
    }
    /* What was copied before is of the hollow model. */
    for (int slot = 0; slot < PARCEL_SLOTS; slot++)
        to->backend->parcels->holds[slot] = -1;
}

static void run_cycle(struct bench *bench, const void *what)
{
    (void)what;
    for (uint32_t i = 0; i < backend_parcels(bench->backend)->count; i++) {
        backend_arrive(bench->backend, i);
        backend_depart(bench->backend, i);
    }
}

/* The link alone, and beside products of the other engine; and those alone and beside the link. */
static void time_link(struct bench *there, struct bench *visited)
{
    struct err     err = {0};
    struct product product = {.x = made_up(there, 4096, 3072), .w = made_up(there, 9216, 3072)};
    uint64_t       before;
    double         seconds, alone, begin, link, all, gigabytes;

    product.y = backend_take(there->backend, DTYPE_BF16, 4096, 9216, "product");
    rehearse(there, run_product, &product);
    backend_fill(there->backend, product.x, 2);
    (void)seconds_of(visited, run_cycle, NULL, 1);
    before = backend_link(visited->backend).bytes;
    seconds = seconds_of(visited, run_cycle, NULL, 3);
    gigabytes = (double)(backend_link(visited->backend).bytes - before) / 3e9;
    printf("link alone,%.2f GB a step,%.1f,,%.1f GB/s,\n", gigabytes, 1e3 * seconds,
           gigabytes / seconds);

    alone = median_seconds(there, run_product, &product);
    int repeats = (int)(seconds / alone) + 1;
    alone = seconds_of(there, run_product, &product, repeats);
    begin = os_seconds();
    for (int i = 0; i < repeats; i++)
        run_product(there, &product);
    run_cycle(visited, NULL);
    check(backend_wait(visited->backend, &err), "copies", &err);
    link = os_seconds() - begin;
    check(backend_wait(there->backend, &err), "products", &err);
    all = os_seconds() - begin;
    printf("link beside products,%.2f GB a step,%.1f,,%.1f GB/s,\n", gigabytes, 1e3 * link,
           gigabytes / link);
    printf("products beside the link,%d of them,%.1f,,,%.3f of their time alone\n", repeats,
           1e3 * all, all / (alone * repeats));
    fflush(stdout);
}

/* Several steps in a row, as a picture has them; seconds of one. */
static double step_seconds(struct bench *bench, const struct picture *picture, float *velocities,
                           uint32_t tiles)
{
    enum { ROW = 3 };
    struct err         err = {0};
    struct engine_tile list[TILES_MAX];
    int64_t            values = (int64_t)picture->w_px * picture->h_px / 4;
    double             begin = 0;

    for (uint32_t t = 0; t < tiles; t++)
        list[t] = (struct engine_tile){.prompt = &picture->prompt,
                                       .w_px = picture->w_px,
                                       .h_px = picture->h_px,
                                       .latent = picture->latent,
                                       .velocity = velocities + t * values};
    for (int i = 0; i <= ROW; i++) { /* one before, to leave what the other engine left */
        if (i == 1) begin = os_seconds();
        check(engine_predict(bench->engine, list, tiles, 0, &err), "step", &err);
    }
    return (os_seconds() - begin) / ROW;
}

static void compare_steps(struct bench *there, struct bench *visited,
                          const struct engine_size *plan)
{
    struct picture      one = picture_open(there, plan), other = picture_open(visited, plan);
    int64_t             values = (int64_t)plan->w_px * plan->h_px / 4 * plan->tiles, apart = 0;
    float              *a = host_numbers(values, 1), *b = host_numbers(values, 2);
    double              stays[SAMPLES], visits[SAMPLES], ratios[SAMPLES];
    struct backend_link before = {.bytes = 0}, after;
    const int           steps = 4 * (SAMPLES - 1);
    char                size[48];

    (void)snprintf(size, sizeof size, "%dx%d x %u", plan->w_px, plan->h_px, plan->tiles);
    for (int i = 0; i < SAMPLES; i++) {
        stays[i] = step_seconds(there, &one, a, plan->tiles);
        visits[i] = step_seconds(visited, &other, b, plan->tiles);
        ratios[i] = visits[i] / stays[i];
        if (i == 0) before = backend_link(visited->backend);
    }
    after = backend_link(visited->backend);
    for (int64_t i = 0; i < values; i++)
        apart += memcmp(&a[i], &b[i], sizeof *a) != 0;
    qsort(stays, SAMPLES, sizeof *stays, by_value);
    qsort(visits, SAMPLES, sizeof *visits, by_value);
    qsort(ratios, SAMPLES, sizeof *ratios, by_value);
    printf("step with all blocks there,%s,%.3f,,,\n", size, 1e3 * stays[SAMPLES / 2]);
    printf("step with %u blocks that visit,%s,%.3f,,,%.4f of the other\n", visited->stream, size,
           1e3 * visits[SAMPLES / 2], ratios[SAMPLES / 2]);
    printf("stood still for copies,%s,%.3f,,,\n", size,
           1e3 * (after.stall_seconds - before.stall_seconds) / steps);
    printf("over the link,%s,,,%.3f GB a step,\n", size,
           (double)(after.bytes - before.bytes) / 1e9 / steps);
    printf("values that differ,%s,,,%lld of %lld,\n", size, (long long)apart, (long long)values);
    fflush(stdout);
    free(a);
    free(b);
    picture_close(there, &one);
    picture_close(visited, &other);
}

static void time_streams(struct bench *there)
{
    struct bench visited = *there;
    double       begin;

    there->stream = 0;
    there->mlp_rows = 0;
    open_engine(there);
    open_engine(&visited);
    begin = os_seconds();
    give_weights(there, &visited);
    printf("# the same weights in both,,%.0f\n", 1e3 * (os_seconds() - begin));
    rehearse_sizes(there);
    rehearse_sizes(&visited);
    time_link(there, &visited);
    for (size_t i = 0; i < there->size_count; i++)
        compare_steps(there, &visited, &there->sizes[i]);
    engine_close(visited.engine);
}

static void add_size(struct bench *bench, int32_t w_px, int32_t h_px)
{
    if (bench->size_count == SIZES_MAX) return;
    bench->sizes[bench->size_count++] =
        (struct engine_size){.w_px = w_px, .h_px = h_px, .tiles = bench->tiles, .steps = STEPS};
}

static void show(enum log_level level, const char *line, void *user)
{
    (void)level;
    (void)user;
    fprintf(stderr, "%s\n", line);
}

/* False: it is no option of ours. */
static bool read_option(struct bench *bench, const char *name, const char *value)
{
    long number = strtol(value, NULL, 10);

    if (strcmp(name, "--side") == 0)
        add_size(bench, (int32_t)number, (int32_t)number);
    else if (strcmp(name, "--stream") == 0)
        bench->stream = strcmp(value, "all") == 0 ? BLOCKS_MAX : (uint32_t)number;
    else if (strcmp(name, "--pinned") == 0)
        bench->pinned = (uint64_t)(1e9 * strtod(value, NULL));
    else if (strcmp(name, "--mlp-rows") == 0)
        bench->mlp_rows = number / TRANSFORMER_MLP_STEP * TRANSFORMER_MLP_STEP;
    else if (strcmp(name, "--tiles") == 0 && number > 0 && number <= TILES_MAX)
        bench->tiles = (uint32_t)number;
    else
        return false;
    return true;
}

static void time_parts(struct bench *bench)
{
    open_engine(bench);
    find_ceiling(bench);
    rehearse_sizes(bench);
    for (size_t i = 0; i < bench->size_count; i++)
        time_size(bench, &bench->sizes[i]);
    time_prompt(bench);
}

int main(int argc, char **argv)
{
    struct bench          bench = {.tiles = 1, .pinned = UINT64_MAX};
    struct err            err = {0};
    struct backend_device before, after;

    for (int i = 1; i < argc; i += 2)
        if (i + 1 == argc || !read_option(&bench, argv[i], argv[i + 1])) {
            fprintf(stderr, "bench_gpu: what is %s?\n", argv[i]);
            return 2;
        }
    if (bench.size_count == 0) {
        add_size(&bench, 2048, 2048);
        if (bench.stream == 0) add_size(&bench, 2016, 1536);
        add_size(&bench, 1024, 1024);
    }
    for (size_t i = 0; i < bench.size_count; i++)
        bench.sizes[i].tiles = bench.tiles;
    log_install(show, NULL, LOG_DEBUG);
    check(backend_find_cuda(&before, 0, &err), "device", &err);
    printf("# %s, %.1f GB\npart,size,ms,tflop,tflops,share\n", before.name,
           (double)before.bytes_total / 1e9);
    write_model(&bench);
    if (bench.stream > 0)
        time_streams(&bench);
    else
        time_parts(&bench);
    check(backend_find_cuda(&after, 0, &err), "device", &err);
    printf("# device memory taken,,,%.2f GB\n",
           (double)(before.bytes_free - after.bytes_free) / 1e9);
    engine_close(bench.engine);
    scratch_remove(bench.folder);
    return 0;
}
