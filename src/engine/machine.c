/*
 * machine.c - what this machine computes in, and how fast, asked before anything is loaded.
 *
 * The trial runs one linear layer and one attention of the model's own widths on made-up numbers.
 * An estimate from it is right within a factor: convolutions and memory have rates of their own.
 */
#include "engine/compute_int.h"

/* Enough arithmetic to be measured, little enough not to be noticed. */
static const double TRIAL_FLOP = 2e9;

enum dtype engine_compute(enum engine_machine machine, enum precision precision)
{
    if (precision == PRECISION_AUTO && machine == ENGINE_CUDA) return DTYPE_BF16;
    if (precision == PRECISION_AUTO) return kernels_cpu_has_bf16() ? DTYPE_BF16 : DTYPE_F32;
    return precision == PRECISION_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

static struct matrix filled(struct backend *backend, int64_t rows, int64_t cols)
{
    struct matrix m = backend_take(backend, backend_act(backend), rows, cols, "trial");
    backend_fill(backend, m, (uint64_t)rows);
    return m;
}

static double rate(double flop_before, double flop_after, double seconds)
{
    return seconds > 0 ? (flop_after - flop_before) / seconds : 0;
}

/* Rows of the trial's linear layer, hidden -> 4 * hidden.  A GPU is not busy with few. */
static int64_t trial_rows(enum engine_machine machine, int64_t hidden)
{
    if (machine == ENGINE_CUDA) return 4096;
    double rows = TRIAL_FLOP / (8.0 * (double)hidden * (double)hidden);
    return max_i64(32, min_i64(4096, (int64_t)rows));
}

int engine_speed(double *flops_per_second_out, const struct engine_options *options,
                 struct err *err)
{
    int                rc = ERR_OK;
    struct model_paths paths = {
        .folder = options->model_folder, .transformer = options->transformer, .vae = options->vae};
    struct backend_options machine = {
        .machine = options->machine == ENGINE_CUDA ? MACHINE_CUDA : MACHINE_CPU,
        .device = options->gpu,
        .compute = engine_compute(options->machine, options->precision),
        .threads = options->threads,
        .arena_limit_bytes = (uint64_t)1 << 32};
    struct model   *model = NULL;
    struct backend *backend = NULL;
    double          linear = 0, attention = 0, begin, flop;

    TRY(model_open(&model, &paths, err));
    TRY(backend_open(&backend, &machine, err));
    const struct transformer_config *config = &model->transformer;
    int64_t                          hidden = config->hidden;
    int64_t                          rows = trial_rows(options->machine, hidden);
    int64_t                          tokens = options->machine == ENGINE_CUDA ? 4096 : 1024;
    struct matrix x = filled(backend, rows, hidden), y = filled(backend, rows, 4 * hidden);
    struct matrix w = filled(backend, 4 * hidden, hidden);
    struct matrix qkv = filled(backend, tokens, 3 * hidden);
    struct matrix mixed = filled(backend, tokens, hidden);
    struct attention_request request = {.out = mixed,
                                        .q = matrix_cols(qkv, 0, hidden),
                                        .k = matrix_cols(qkv, hidden, hidden),
                                        .v = matrix_cols(qkv, 2 * hidden, hidden),
                                        .heads = (int32_t)config->heads,
                                        .dim = (int32_t)config->head_dim,
                                        .scale = 1};

    for (int pass = 0; pass < 2; pass++) { /* the first one warms up */
        begin = os_seconds();
        flop = backend_flops(backend);
        backend_linear(backend, y, x, w, NULL, ACT_NONE);
        TRY(backend_wait(backend, err));
        linear = rate(flop, backend_flops(backend), os_seconds() - begin);
        begin = os_seconds();
        flop = backend_flops(backend);
        backend_attention(backend, &request);
        TRY(backend_wait(backend, err));
        attention = rate(flop, backend_flops(backend), os_seconds() - begin);
    }
    *flops_per_second_out = linear > 0 && attention > 0 ? 2 / (1 / linear + 1 / attention) : 0;
out:
    backend_close(backend);
    model_close(model);
    return rc;
}
