/*
 * vmem_cuda.c - address ranges of a GPU, committed by the driver's virtual memory calls.
 *
 * Owns the mappings.  A piece's handle is given back as soon as it is mapped: the memory then lives
 * exactly as long as its mapping.  Pieces are remembered by their ends, because the driver unmaps
 * what it mapped and nothing less.  The driver is found through the runtime, so that nothing here
 * links to it and a program with this file starts where there is none.
 *
 * The caller has made the device's primary context current (cudaSetDevice).
 */
#include "memory/memory.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

/* Growth below this many bytes is not worth a call: each costs a fifth of a millisecond. */
static const uint64_t STEP = 32u << 20;

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

static const char *words_of(const struct driver *driver, CUresult result)
{
    const char *words = NULL;

    return driver->cuGetErrorString(result, &words) == CUDA_SUCCESS && words != NULL ? words : "?";
}

static CUmemAllocationProp properties(const struct vmem *vmem)
{
    return (CUmemAllocationProp){
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = vmem->device}};
}

static int reserve(struct vmem *vmem, uint64_t bytes, struct err *err)
{
    int                 rc = ERR_OK;
    struct driver       driver;
    CUmemAllocationProp properties_of_device = properties(vmem);
    size_t              granularity = 0;
    CUdeviceptr         base = 0;
    CUresult            result;
    char                words[32];

    TRY(find(&driver, err));
    result = driver.cuMemGetAllocationGranularity(&granularity, &properties_of_device,
                                                  CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (result != CUDA_SUCCESS || granularity == 0)
        RAISE(err, ERR_DEVICE, (int)result,
              "device: GPU %d cannot map memory by pages (%s); its driver is too old or a virtual "
              "machine hides this",
              vmem->device, words_of(&driver, result));
    vmem->step = (uint64_t)round_up_i64((int64_t)STEP, (int64_t)granularity);
    vmem->bytes = (uint64_t)round_up_i64((int64_t)bytes, (int64_t)vmem->step);
    result = driver.cuMemAddressReserve(&base, (size_t)vmem->bytes, 0, 0, 0);
    if (result != CUDA_SUCCESS)
        RAISE(err, ERR_DEVICE_MEM, (int)result,
              "device: cannot reserve %s of addresses on GPU %d: %s",
              text_bytes(words, sizeof words, vmem->bytes), vmem->device,
              words_of(&driver, result));
    vmem->base = (char *)(uintptr_t)base;
out:
    return rc;
}

static CUresult map_piece(const struct driver *driver, const struct vmem *vmem, uint64_t bytes)
{
    CUmemAllocationProp          properties_of_device = properties(vmem);
    CUmemAccessDesc              access = {.location = properties_of_device.location,
                                           .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle handle;
    CUdeviceptr                  at = (CUdeviceptr)(uintptr_t)(vmem->base + vmem->committed);
    CUresult result = driver->cuMemCreate(&handle, (size_t)bytes, &properties_of_device, 0);

    if (result != CUDA_SUCCESS) return result;
    result = driver->cuMemMap(at, (size_t)bytes, 0, handle, 0);
    (void)driver->cuMemRelease(handle);
    if (result != CUDA_SUCCESS) return result;
    result = driver->cuMemSetAccess(at, (size_t)bytes, &access, 1);
    if (result != CUDA_SUCCESS) (void)driver->cuMemUnmap(at, (size_t)bytes);
    return result;
}

static int commit(struct vmem *vmem, uint64_t bytes, struct err *err)
{
    int           rc = ERR_OK;
    struct driver driver;
    uint64_t      target = (uint64_t)round_up_i64((int64_t)bytes, (int64_t)vmem->step);
    CUresult      result;
    size_t        available = 0, total = 0;
    char          need[32], have[32];

    must(target <= vmem->bytes);
    if (target <= vmem->committed) goto out;
    if (vmem->piece_count == ARRAY_COUNT(vmem->pieces))
        RAISE(err, ERR_DEVICE_MEM, 0, "memory: an arena of GPU %d grew %u times; reserve it whole",
              vmem->device, vmem->piece_count);
    TRY(find(&driver, err));
    result = map_piece(&driver, vmem, target - vmem->committed);
    if (result != CUDA_SUCCESS) {
        (void)cudaMemGetInfo(&available, &total);
        RAISE(err, result == CUDA_ERROR_OUT_OF_MEMORY ? ERR_DEVICE_MEM : ERR_DEVICE, (int)result,
              "device: cannot take %s more on GPU %d, where %s is free: %s",
              text_bytes(need, sizeof need, target - vmem->committed), vmem->device,
              text_bytes(have, sizeof have, available), words_of(&driver, result));
    }
    vmem->committed = target;
    vmem->pieces[vmem->piece_count++] = target;
out:
    return rc;
}

static void release(struct vmem *vmem)
{
    struct err    err = {.code = ERR_OK};
    struct driver driver;
    uint64_t      start = 0;

    if (find(&driver, &err) != ERR_OK) return;
    for (uint32_t i = 0; i < vmem->piece_count; i++) {
        (void)driver.cuMemUnmap((CUdeviceptr)(uintptr_t)(vmem->base + start),
                                (size_t)(vmem->pieces[i] - start));
        start = vmem->pieces[i];
    }
    (void)driver.cuMemAddressFree((CUdeviceptr)(uintptr_t)vmem->base, (size_t)vmem->bytes);
    vmem->base = NULL;
    vmem->committed = 0;
    vmem->piece_count = 0;
}

const struct vmem_ops vmem_cuda = {.reserve = reserve, .commit = commit, .release = release};
