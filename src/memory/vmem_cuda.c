/*
 * vmem_cuda.c - a GPU's memory through the driver's virtual memory calls.
 *
 * Owns the calls that were found, and nothing else: which piece is where is pool.c's to know.  The
 * driver is found through the runtime, so that nothing here links to it and a program with this
 * file starts where there is none.
 *
 * A piece is unmapped as it was mapped, whole.  Unmapping does not wait for kernels that still
 * read: `settle` does, and pool.c calls it before.
 *
 * The caller has made the device's primary context current (cudaSetDevice).
 */
#include "memory/memory.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

/* The oldest driver interface that has all of these. */
enum { DRIVER_VERSION = 11020 };

#define DRIVER_CALLS(X)                                                                            \
    X(cuMemGetAllocationGranularity)                                                               \
    X(cuMemAddressReserve)                                                                         \
    X(cuMemAddressFree)                                                                            \
    X(cuMemCreate)                                                                                 \
    X(cuMemRelease)                                                                                \
    X(cuMemMap)                                                                                    \
    X(cuMemUnmap)                                                                                  \
    X(cuMemSetAccess)                                                                              \
    X(cuGetErrorString)

struct driver {
#define FIELD(name) __typeof__(&name) name;
    DRIVER_CALLS(FIELD)
#undef FIELD
};

static const struct driver *driver_of(const struct vmem *vmem)
{
    return vmem->driver;
}

static int find(struct driver *driver, struct err *err)
{
    int                                  rc = ERR_OK;
    enum cudaDriverEntryPointQueryResult found;

#define FIND(call)                                                                                 \
    if (cudaGetDriverEntryPointByVersion(#call, (void **)&driver->call, DRIVER_VERSION,            \
                                         cudaEnableDefault, &found) != cudaSuccess ||              \
        found != cudaDriverEntryPointSuccess)                                                      \
        RAISE(err, ERR_DEVICE, 0, "device: the NVIDIA driver has no %s; install a newer one",      \
              #call);
    DRIVER_CALLS(FIND)
#undef FIND
out:
    return rc;
}

static CUdeviceptr address(const char *at)
{
    return (CUdeviceptr)(uintptr_t)at;
}

static CUmemAllocationProp properties(const struct vmem *vmem)
{
    return (CUmemAllocationProp){
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = vmem->device}};
}

/* "device: cannot <do> <bytes> on GPU <n>, where <bytes> is free: <why>" */
static int raise_result(const struct vmem *vmem, CUresult result, const char *what, uint64_t bytes,
                        struct err *err)
{
    int         rc = ERR_OK;
    const char *why = NULL;
    size_t      available = 0, total = 0;
    char        amount[32], have[32];

    if (driver_of(vmem)->cuGetErrorString(result, &why) != CUDA_SUCCESS || why == NULL) why = "?";
    (void)cudaMemGetInfo(&available, &total);
    RAISE(err, result == CUDA_ERROR_OUT_OF_MEMORY ? ERR_DEVICE_MEM : ERR_DEVICE, (int)result,
          "device: cannot %s %s on GPU %d, where %s is free: %s", what,
          text_bytes(amount, sizeof amount, bytes), vmem->device,
          text_bytes(have, sizeof have, available), why);
out:
    return rc;
}

/* ------------------------------------------------------------------------------ open and close */

static void close_driver(struct vmem *vmem)
{
    os_free(vmem->driver);
    vmem->driver = NULL;
}

static int open_driver(struct vmem *vmem, struct err *err)
{
    int                 rc = ERR_OK;
    CUmemAllocationProp wanted = properties(vmem);
    size_t              granularity = 0;
    CUresult            result;

    TRY(os_alloc(&vmem->driver, 1, sizeof(struct driver), "calls of a driver", err));
    TRY(find(vmem->driver, err));
    result = driver_of(vmem)->cuMemGetAllocationGranularity(&granularity, &wanted,
                                                            CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (result != CUDA_SUCCESS || granularity == 0)
        RAISE(err, ERR_DEVICE, (int)result,
              "device: GPU %d cannot map memory by pages (status %d); its driver is too old or a "
              "virtual machine hides this",
              vmem->device, (int)result);
    vmem->granularity = granularity;
out:
    if (rc != ERR_OK) close_driver(vmem);
    return rc;
}

/* ---------------------------------------------------------------------------------- the calls */

static int reserve(struct vmem *vmem, char **base_out, uint64_t bytes, struct err *err)
{
    CUdeviceptr base = 0;
    CUresult    result = driver_of(vmem)->cuMemAddressReserve(&base, (size_t)bytes, 0, 0, 0);

    if (result != CUDA_SUCCESS)
        return raise_result(vmem, result, "reserve addresses for", bytes, err);
    *base_out = (char *)(uintptr_t)base;
    return ERR_OK;
}

static void close_range(struct vmem *vmem, char *base, uint64_t bytes)
{
    (void)driver_of(vmem)->cuMemAddressFree(address(base), (size_t)bytes);
}

static int create(struct vmem *vmem, uint64_t *handle_out, uint64_t bytes, struct err *err)
{
    CUmemAllocationProp          wanted = properties(vmem);
    CUmemGenericAllocationHandle handle = 0;
    CUresult result = driver_of(vmem)->cuMemCreate(&handle, (size_t)bytes, &wanted, 0);

    if (result != CUDA_SUCCESS) return raise_result(vmem, result, "take", bytes, err);
    *handle_out = handle;
    return ERR_OK;
}

static int map(struct vmem *vmem, char *at, uint64_t handle, uint64_t bytes, struct err *err)
{
    CUresult result = driver_of(vmem)->cuMemMap(address(at), (size_t)bytes, 0, handle, 0);

    return result == CUDA_SUCCESS ? ERR_OK : raise_result(vmem, result, "map", bytes, err);
}

static int access_range(struct vmem *vmem, char *at, uint64_t bytes, struct err *err)
{
    CUmemAccessDesc access = {.location = properties(vmem).location,
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUresult result = driver_of(vmem)->cuMemSetAccess(address(at), (size_t)bytes, &access, 1);

    return result == CUDA_SUCCESS ? ERR_OK : raise_result(vmem, result, "use", bytes, err);
}

static int settle(struct vmem *vmem, struct err *err)
{
    int         rc = ERR_OK;
    cudaError_t status = cudaDeviceSynchronize();

    if (status != cudaSuccess)
        RAISE(err, ERR_DEVICE, (int)status, "device: work on GPU %d failed: %s", vmem->device,
              cudaGetErrorString(status));
out:
    return rc;
}

static int unmap(struct vmem *vmem, char *at, uint64_t bytes, struct err *err)
{
    CUresult result = driver_of(vmem)->cuMemUnmap(address(at), (size_t)bytes);

    return result == CUDA_SUCCESS ? ERR_OK : raise_result(vmem, result, "unmap", bytes, err);
}

static void release(struct vmem *vmem, uint64_t handle, uint64_t bytes)
{
    (void)bytes;
    (void)driver_of(vmem)->cuMemRelease(handle);
}

const struct vmem_ops vmem_cuda = {.shortage = ERR_DEVICE_MEM,
                                   .open = open_driver,
                                   .close = close_driver,
                                   .reserve = reserve,
                                   .close_range = close_range,
                                   .create = create,
                                   .map = map,
                                   .access = access_range,
                                   .settle = settle,
                                   .unmap = unmap,
                                   .release = release};
