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
#include "gpu_stream.h"

/* -------------------------------------------------------------------------------------- parts */

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

/* ------------------------------------------------------------------------------------ options */

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
