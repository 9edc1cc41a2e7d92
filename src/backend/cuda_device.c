/*
 * cuda_device.c - is there a GPU that this program can use, what is it, and how fast is its link?
 *
 * Owns the sentences about drivers and cards, and when a card is full.  Asking touches no device
 * memory but for the context that the free bytes are read in; timing the link takes some for as
 * long as it lasts.
 */
#include "backend/cuda_int.h"

#include <stdio.h>
#include <string.h>

enum { LEAST_MAJOR = 8 }; /* bf16 in hardware */

static void note_absent(struct backend_device *device, const char *why)
{
    (void)snprintf(device->absent, sizeof device->absent, "%s", why);
}

static int no_devices(struct backend_device *out, int status, struct err *err)
{
    int rc = ERR_OK, driver = 0, runtime = 0;

    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (driver == 0) {
        note_absent(out, "there is no NVIDIA driver");
        RAISE(
            err, ERR_DEVICE, status,
            "device: there is no NVIDIA driver on this machine; install one, or use --device cpu");
    }
    if (status == (int)cudaErrorInsufficientDriver)
        RAISE(err, ERR_DEVICE, status,
              "device: the NVIDIA driver knows CUDA %d.%d and this program needs %d.%d; install a "
              "newer driver, or use --device cpu",
              driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (status == (int)cudaErrorNoDevice || status == 0) {
        note_absent(out, "the NVIDIA driver sees no GPU");
        RAISE(err, ERR_DEVICE, status,
              "device: the NVIDIA driver sees no GPU here; check nvidia-smi and "
              "CUDA_VISIBLE_DEVICES, or use --device cpu");
    }
    RAISE(err, ERR_DEVICE, status,
          "device: CUDA does not start: %s; see whether nvidia-smi answers, or use --device cpu",
          cudaGetErrorString((cudaError_t)status));
out:
    return rc;
}

/* Versions of the libraries, asked on a thread of their own: it takes a tenth of a second to load
 * half a gigabyte of products for every card, as long as the driver takes to open a context. */
struct versions {
    pthread_t thread;
    bool      asked;
    size_t    gemm, graphs;
};

static void *find_versions(void *argument)
{
    struct versions *versions = argument;

    versions->gemm = gemm_version();
    versions->graphs = graphs_version();
    return NULL;
}

static void versions_begin(struct versions *versions)
{
    versions->asked = os.thread_create(&versions->thread, find_versions, versions) == 0;
    if (!versions->asked) (void)find_versions(versions);
}

static void versions_end(const struct versions *versions)
{
    if (versions->asked) (void)pthread_join(versions->thread, NULL);
}

int backend_find_cuda(struct backend_device *out, int32_t device, struct err *err)
{
    int                   rc = ERR_OK, count = 0, status = (int)cudaGetDeviceCount(&count);
    struct cudaDeviceProp properties;
    struct versions       versions = {.asked = false};
    size_t                available = 0, total = 0;

    *out = (struct backend_device){.major = 0};
    if (status != 0 || count == 0) TRY(no_devices(out, status, err));
    if (device < 0 || device >= count)
        RAISE(err, ERR_DEVICE, 0, "device: cuda:%d was asked for, but this machine has %d GPU%s",
              device, count, count == 1 ? " (cuda:0)" : "s, counted from 0");
    status = (int)cudaGetDeviceProperties(&properties, device);
    if (status != 0)
        RAISE(
            err, ERR_DEVICE, status,
            "device: GPU %d does not answer: %s; see whether nvidia-smi does, or use --device cpu",
            device, cudaGetErrorString((cudaError_t)status));
    (void)snprintf(out->name, sizeof out->name, "%.127s", properties.name);
    out->major = properties.major;
    out->minor = properties.minor;
    if (out->major < LEAST_MAJOR) {
        (void)snprintf(out->absent, sizeof out->absent,
                       "GPU %d (%.48s) is of compute capability %d.%d", device, out->name,
                       out->major, out->minor);
        RAISE(err, ERR_DEVICE, 0,
              "device: GPU %d (%s) is of compute capability %d.%d and 8.0 is needed (RTX 30, A100 "
              "and newer); use --device cpu",
              device, out->name, out->major, out->minor);
    }
    versions_begin(&versions);
    status = (int)cudaSetDevice(device);
    if (status == 0) status = (int)cudaMemGetInfo(&available, &total);
    versions_end(&versions);
    if (status != 0)
        RAISE(err, status == (int)cudaErrorMemoryAllocation ? ERR_DEVICE_MEM : ERR_DEVICE, status,
              "device: GPU %d (%s) cannot be used: %s; end the program that holds it (nvidia-smi "
              "names it), or use --device cpu",
              device, out->name, cudaGetErrorString((cudaError_t)status));
    /* Libraries may be exchanged between two runs, and then add up in another order. */
    (void)snprintf(out->numeric, sizeof out->numeric, "%.40s sm_%d%d cuda %d blas %zu dnn %zu",
                   out->name, out->major, out->minor, CUDART_VERSION, versions.gemm,
                   versions.graphs);
    out->bytes_free = available;
    out->bytes_total = total;
out:
    return rc;
}

bool cuda_is_full(void)
{
    const size_t most = 32 << 20; /* more than any kernel's code */
    size_t       left = 0, total = 0;

    return cudaMemGetInfo(&left, &total) == cudaSuccess && left < most;
}

/* -------------------------------------------------------------------------------------- link */

/* At 60 GB/s a millisecond: long beside what it takes to begin. */
#define LINK_BYTES ((size_t)64 << 20)
enum { LINK_COPIES = 3 };

int backend_time_link(double *bytes_per_second_out, int32_t device, struct err *err)
{
    int    rc = ERR_OK, status;
    void  *source = NULL, *target = NULL;
    double least = 0;

    *bytes_per_second_out = 0;
    status = (int)cudaSetDevice(device);
    if (status == 0) status = (int)cudaHostAlloc(&source, LINK_BYTES, cudaHostAllocDefault);
    if (status == 0) status = (int)cudaMalloc(&target, LINK_BYTES);
    for (int i = 0; i < LINK_COPIES && status == 0; i++) {
        double begin = os_seconds(), lap;
        status = (int)cudaMemcpy(target, source, LINK_BYTES, cudaMemcpyHostToDevice);
        lap = os_seconds() - begin;
        if (least == 0 || lap < least) least = lap;
    }
    (void)cudaFree(target);
    (void)cudaFreeHost(source);
    if (status != 0)
        RAISE(err, ERR_DEVICE, status, "device: the link to GPU %d cannot be timed: %s", device,
              cudaGetErrorString((cudaError_t)status));
    if (least > 0) *bytes_per_second_out = (double)LINK_BYTES / least;
out:
    return rc;
}
