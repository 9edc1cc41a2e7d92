/*
 * machine.c - which GPU there is, what this machine computes in, and how fast: asked before
 * anything is loaded.
 *
 * The trial runs one linear layer and one attention of the model's own widths on made-up numbers.
 * An estimate from it is right within a factor: convolutions and memory have rates of their own.
 */
#include "engine/compute_int.h"

#include <stdio.h>

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

int engine_find_device(struct engine_device *out, const struct engine_options *options,
                       struct err *err)
{
    struct backend_device found;
    int                   rc;

    must(options->machine == ENGINE_CUDA);
    if (options->device != NULL) {
        *out = *options->device;
        return ERR_OK;
    }
    rc = backend_find_cuda(&found, options->gpu, err);
    *out = (struct engine_device){.bytes_total = found.bytes_total,
                                  .bytes_free = found.bytes_free,
                                  .major = found.major,
                                  .minor = found.minor};
    (void)snprintf(out->name, sizeof out->name, "%s", found.name);
    (void)snprintf(out->numeric, sizeof out->numeric, "%s", found.numeric);
    (void)snprintf(out->absent, sizeof out->absent, "%s", found.absent);
    return rc;
}

double engine_link_speed(const struct engine_options *options)
{
    struct err err = {.code = ERR_OK};
    double     rate = 0;

    must(options->machine == ENGINE_CUDA);
    if (backend_time_link(&rate, options->gpu, &err) != ERR_OK) log_line(LOG_DEBUG, "%s", err.text);
    return rate;
}

int engine_speed(double *flops_per_second_out, const struct engine_options *options,
                 const struct engine_facts *facts, struct err *err)
{
    int                    rc = ERR_OK;
    struct backend_options machine = {
        .machine = options->machine == ENGINE_CUDA ? MACHINE_CUDA : MACHINE_CPU,
        .device = options->gpu,
        .compute = engine_compute(options->machine, options->precision),
        .threads = options->threads,
        .arena_limit_bytes = (uint64_t)1 << 32};
    struct backend *backend = NULL;
    double          linear = 0, attention = 0, begin, flop;

    TRY(backend_open(&backend, &machine, err));
    int64_t       hidden = facts->hidden;
    int64_t       rows = trial_rows(options->machine, hidden);
    int64_t       tokens = options->machine == ENGINE_CUDA ? 4096 : 1024;
    struct matrix x = filled(backend, rows, hidden), y = filled(backend, rows, 4 * hidden);
    struct matrix w = filled(backend, 4 * hidden, hidden);
    struct matrix qkv = filled(backend, tokens, 3 * hidden);
    struct matrix mixed = filled(backend, tokens, hidden);
    struct attention_request request = {.out = mixed,
                                        .q = matrix_cols(qkv, 0, hidden),
                                        .k = matrix_cols(qkv, hidden, hidden),
                                        .v = matrix_cols(qkv, 2 * hidden, hidden),
                                        .heads = (int32_t)facts->heads,
                                        .dim = (int32_t)(hidden / facts->heads),
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
    return rc;
}
