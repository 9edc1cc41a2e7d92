/*
 * cuda_absent.c - what a build without the CUDA toolkit says when it is asked for a GPU.
 *
 * Stands in for backend_cuda.c and all files named cuda_*.
 */
#include "backend/backend_int.h"

static uint64_t no_bytes(const struct backend_options *options)
{
    (void)options;
    return 0;
}

const struct backend_needs cuda_needs = {.distant = true, .fixed = no_bytes};

int backend_find_cuda(struct backend_device *out, int32_t device, struct err *err)
{
    int rc = ERR_OK;

    *out = (struct backend_device){.absent = "this mural was built without CUDA"};
    RAISE(
        err, ERR_DEVICE, 0,
        "device: cuda:%d was asked for, but this mural was built without CUDA; build it where nvcc "
        "is, or use --device cpu",
        device);
out:
    return rc;
}

int backend_time_link(double *bytes_per_second_out, int32_t device, struct err *err)
{
    struct backend_device facts;

    *bytes_per_second_out = 0;
    return backend_find_cuda(&facts, device, err);
}

int cuda_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    struct backend_device facts;

    *out = NULL;
    return backend_find_cuda(&facts, options->device, err);
}
