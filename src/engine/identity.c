/*
 * identity.c - which model, and which arithmetic: what a picture that is gone on with must share.
 *
 * Owns the number of our own arithmetic.  It is raised with every change that moves a bit of any
 * picture: an order of sums, a polynomial, a schedule, the noise.
 */
#include "engine/compute_int.h"

#include <stdio.h>

enum { ARITHMETIC_VERSION = 6 };

const char *engine_numeric_version(char out[128], const struct engine_options *options)
{
    const char *compute =
        engine_compute(options->machine, options->precision) == DTYPE_BF16 ? "bf16" : "f32";
    struct engine_device device = {.major = 0};
    struct err           ignored = {.code = ERR_OK};
    char                 library[96];

    if (options->machine == ENGINE_CUDA) {
        (void)engine_find_device(&device, options, &ignored);
        (void)snprintf(out, 128, "%d %s cuda %.95s%s", ARITHMETIC_VERSION, compute, device.numeric,
                       options->text_on_cpu ? " text cpu" : "");
    } else {
        (void)snprintf(out, 128, "%d %s cpu %s", ARITHMETIC_VERSION, compute,
                       kernels_cpu_version(library, sizeof library));
    }
    return out;
}

int engine_identify(struct engine_identity *out, const struct engine_options *options,
                    struct err *err)
{
    int                rc = ERR_OK;
    struct model      *model = NULL;
    struct model_paths paths = {
        .folder = options->model_folder, .transformer = options->transformer, .vae = options->vae};

    TRY(model_open(&model, &paths, err));
    TRY(model_map(model, err));
    out->model = model_identity(model);
    (void)engine_numeric_version(out->numeric, options);
out:
    model_close(model);
    return rc;
}
