/*
 * vmem_host.c - two kinds of the host's memory behind the calls that a GPU's driver has.
 *
 * vmem_host stands for a GPU where there is none: one file in memory is all that is physical, a
 * handle is an offset in it, and mapping shows that part of the file.  So contents move with their
 * handle, and touching what is not mapped stops the process, as on a GPU.  Offsets are never used
 * twice: a file may have any number of holes.
 *
 * vmem_own is private memory of this process.  It has no physical side: giving access makes it, and
 * unmapping throws it away.
 */
#include "memory/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

/* A huge page, and what a GPU's driver counts in. */
static const uint64_t GRANULARITY = 2u << 20;

enum { NOTHING = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE };

static int reserve(struct vmem *vmem, char **base_out, uint64_t bytes, struct err *err)
{
    int   rc = ERR_OK;
    void *base = os.mmap(NULL, (size_t)bytes, PROT_NONE, NOTHING, -1, 0);
    char  words[32];

    if (base == MAP_FAILED)
        RAISE(err, vmem->ops->shortage, errno, "memory: cannot reserve %s of addresses: %s",
              text_bytes(words, sizeof words, bytes), strerror(errno));
    *base_out = base;
out:
    return rc;
}

static void close_range(struct vmem *vmem, char *base, uint64_t bytes)
{
    (void)vmem;
    (void)os.munmap(base, (size_t)bytes);
}

static int access_range(struct vmem *vmem, char *at, uint64_t bytes, struct err *err)
{
    int  rc = ERR_OK;
    char words[32];

    if (os.mprotect(at, (size_t)bytes, PROT_READ | PROT_WRITE) != 0)
        RAISE(err, vmem->ops->shortage, errno, "memory: cannot use %s: %s",
              text_bytes(words, sizeof words, bytes), strerror(errno));
out:
    return rc;
}

static int unmap(struct vmem *vmem, char *at, uint64_t bytes, struct err *err)
{
    int  rc = ERR_OK;
    char words[32];

    if (os.mmap(at, (size_t)bytes, PROT_NONE, NOTHING | MAP_FIXED, -1, 0) == MAP_FAILED)
        RAISE(err, vmem->ops->shortage, errno, "memory: cannot unmap %s: %s",
              text_bytes(words, sizeof words, bytes), strerror(errno));
out:
    return rc;
}

static int settle(struct vmem *vmem, struct err *err)
{
    (void)vmem, (void)err; /* nothing runs on its own */
    return ERR_OK;
}

/* ---------------------------------------------------------------------------- a file in memory */

static int file_open(struct vmem *vmem, struct err *err)
{
    int rc = ERR_OK;

    vmem->granularity = GRANULARITY;
    vmem->fd = os.memfd_create("mural-device", MFD_CLOEXEC);
    if (vmem->fd < 0)
        RAISE(err, ERR_DEVICE_MEM, errno, "memory: cannot make a file in memory: %s",
              strerror(errno));
out:
    return rc;
}

static void file_close(struct vmem *vmem)
{
    (void)os.close(vmem->fd);
}

static int file_create(struct vmem *vmem, uint64_t *handle_out, uint64_t bytes, struct err *err)
{
    int  rc = ERR_OK;
    char words[32];

    if (os.ftruncate(vmem->fd, (int64_t)(vmem->file_bytes + bytes)) != 0)
        RAISE(err, ERR_DEVICE_MEM, errno, "memory: cannot make %s more: %s",
              text_bytes(words, sizeof words, bytes), strerror(errno));
    *handle_out = vmem->file_bytes;
    vmem->file_bytes += bytes;
out:
    return rc;
}

static int file_map(struct vmem *vmem, char *at, uint64_t handle, uint64_t bytes, struct err *err)
{
    int  rc = ERR_OK;
    char words[32];

    if (os.mmap(at, (size_t)bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, vmem->fd, (int64_t)handle) ==
        MAP_FAILED)
        RAISE(err, ERR_DEVICE_MEM, errno, "memory: cannot map %s: %s",
              text_bytes(words, sizeof words, bytes), strerror(errno));
out:
    return rc;
}

static void file_release(struct vmem *vmem, uint64_t handle, uint64_t bytes)
{
    (void)os.fallocate(vmem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (int64_t)handle,
                       (int64_t)bytes);
}

const struct vmem_ops vmem_host = {.shortage = ERR_DEVICE_MEM,
                                   .open = file_open,
                                   .close = file_close,
                                   .reserve = reserve,
                                   .close_range = close_range,
                                   .create = file_create,
                                   .map = file_map,
                                   .access = access_range,
                                   .settle = settle,
                                   .unmap = unmap,
                                   .release = file_release};

/* ----------------------------------------------------------------------- this process's memory */

static int own_open(struct vmem *vmem, struct err *err)
{
    (void)err;
    vmem->granularity = GRANULARITY;
    return ERR_OK;
}

static void own_close(struct vmem *vmem)
{
    (void)vmem;
}

static int own_create(struct vmem *vmem, uint64_t *handle_out, uint64_t bytes, struct err *err)
{
    (void)vmem, (void)bytes, (void)err;
    *handle_out = 0;
    return ERR_OK;
}

static int own_map(struct vmem *vmem, char *at, uint64_t handle, uint64_t bytes, struct err *err)
{
    (void)vmem, (void)at, (void)handle, (void)bytes, (void)err;
    return ERR_OK;
}

static void own_release(struct vmem *vmem, uint64_t handle, uint64_t bytes)
{
    (void)vmem, (void)handle, (void)bytes;
}

const struct vmem_ops vmem_own = {.shortage = ERR_HOST_MEM,
                                  .open = own_open,
                                  .close = own_close,
                                  .reserve = reserve,
                                  .close_range = close_range,
                                  .create = own_create,
                                  .map = own_map,
                                  .access = access_range,
                                  .settle = settle,
                                  .unmap = unmap,
                                  .release = own_release};
