/*
 * vmem_host.c - address ranges of this process, committed by mprotect.
 *
 * Knows nothing of what lies in them.  Committing is a change of protection; the system gives pages
 * when they are first touched.
 */
#include "memory/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static const uint64_t STEP = 2u << 20; /* a huge page */

static int reserve(struct vmem *vmem, uint64_t bytes, struct err *err)
{
    int   rc = ERR_OK;
    void *base;
    char  words[32];

    vmem->step = STEP;
    vmem->bytes = (uint64_t)round_up_i64((int64_t)bytes, (int64_t)STEP);
    base = os.mmap(NULL, (size_t)vmem->bytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        RAISE(err, ERR_HOST_MEM, errno, "memory: cannot reserve %s of addresses: %s",
              text_bytes(words, sizeof words, vmem->bytes), strerror(errno));
    vmem->base = base;
out:
    return rc;
}

static int commit(struct vmem *vmem, uint64_t bytes, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t target = (uint64_t)round_up_i64((int64_t)bytes, (int64_t)STEP);
    char     words[32];

    must(target <= vmem->bytes);
    if (target <= vmem->committed) goto out;
    if (os.mprotect(vmem->base + vmem->committed, (size_t)(target - vmem->committed),
                    PROT_READ | PROT_WRITE) != 0)
        RAISE(err, ERR_HOST_MEM, errno, "memory: cannot commit %s: %s",
              text_bytes(words, sizeof words, target), strerror(errno));
    vmem->committed = target;
out:
    return rc;
}

static void release(struct vmem *vmem)
{
    (void)os.munmap(vmem->base, (size_t)vmem->bytes);
    vmem->base = NULL;
}

const struct vmem_ops vmem_host = {.reserve = reserve, .commit = commit, .release = release};
