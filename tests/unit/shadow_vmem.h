/*
 * shadow_vmem.h - the host's stand-in for a GPU, watched: a driver's rules are checked at each
 * call, and any call can be made to fail.
 *
 * Rules: only what was created is mapped or released, nothing over another mapping, access over
 * mappings alone, unmapping whole pieces; in the end nothing is left.
 */
#ifndef MURAL_SHADOW_VMEM_H
#define MURAL_SHADOW_VMEM_H

#include "../test.h"

#include "memory/memory.h"

#include <signal.h>
#include <sys/wait.h>

enum { SHADOW_MAX = 4096 };
static struct {
    struct {
        char    *at;
        uint64_t bytes, handle;
        bool     seen;
    } maps[SHADOW_MAX];
    uint64_t handles[SHADOW_MAX];
    size_t   map_count, handle_count, open_count, range_count;
    uint64_t bytes, peak_bytes; /* created */
    uint64_t most_bytes;        /* that can be created at one time; 0: any */
    int64_t  calls, fail_at;    /* the call that fails; 0: none */
    int64_t  fail_more;         /* and as many after it         */
    bool     failed;
    uint64_t driver_calls; /* that were carried out */
} shadow;

static inline bool shadow_fails(void)
{
    shadow.calls++;
    if (shadow.calls < shadow.fail_at || shadow.calls > shadow.fail_at + shadow.fail_more ||
        shadow.fail_at == 0) {
        shadow.driver_calls++;
        return false;
    }
    shadow.failed = true;
    return true;
}

#define SHADOW_FAIL(err, code)                                                                     \
    do {                                                                                           \
        if (shadow_fails()) return err_set((err), (code), 0, ERR_WHERE, "planted failure");        \
    } while (0)

static inline int shadow_open(struct vmem *vmem, struct err *err)
{
    SHADOW_FAIL(err, ERR_DEVICE);
    shadow.open_count++;
    return vmem_host.open(vmem, err);
}

static inline void shadow_close(struct vmem *vmem)
{
    shadow.open_count--;
    vmem_host.close(vmem);
}

static inline int shadow_reserve(struct vmem *vmem, char **base_out, uint64_t bytes,
                                 struct err *err)
{
    SHADOW_FAIL(err, ERR_DEVICE_MEM);
    shadow.range_count++;
    return vmem_host.reserve(vmem, base_out, bytes, err);
}

static inline void shadow_close_range(struct vmem *vmem, char *base, uint64_t bytes)
{
    for (size_t i = shadow.map_count; i-- > 0;) {
        if (shadow.maps[i].at < base || shadow.maps[i].at >= base + bytes) continue;
        if (shadow.fail_more == 0) fail_msg("a range is closed and something is mapped in it");
        shadow.maps[i] = shadow.maps[--shadow.map_count]; /* nothing would unmap it */
    }
    shadow.range_count--;
    vmem_host.close_range(vmem, base, bytes);
}

static inline int shadow_create(struct vmem *vmem, uint64_t *handle_out, uint64_t bytes,
                                struct err *err)
{
    SHADOW_FAIL(err, ERR_DEVICE_MEM);
    if (shadow.most_bytes > 0 && shadow.bytes + bytes > shadow.most_bytes)
        return err_set(err, ERR_DEVICE_MEM, 0, ERR_WHERE, "the driver is short of memory");
    int rc = vmem_host.create(vmem, handle_out, bytes, err);
    assert_true(shadow.handle_count < SHADOW_MAX);
    shadow.handles[shadow.handle_count++] = *handle_out;
    shadow.bytes += bytes;
    shadow.peak_bytes = max_u64(shadow.peak_bytes, shadow.bytes);
    return rc;
}

static inline size_t shadow_handle(uint64_t handle)
{
    for (size_t i = 0; i < shadow.handle_count; i++)
        if (shadow.handles[i] == handle) return i;
    fail_msg("a piece is used that does not exist");
    return 0;
}

static inline int shadow_map(struct vmem *vmem, char *at, uint64_t handle, uint64_t bytes,
                             struct err *err)
{
    SHADOW_FAIL(err, ERR_DEVICE);
    (void)shadow_handle(handle);
    for (size_t i = 0; i < shadow.map_count; i++) {
        if (at < shadow.maps[i].at + shadow.maps[i].bytes && shadow.maps[i].at < at + bytes) {
            if (shadow.fail_more == 0) fail_msg("a mapping over another one");
            return err_set(err, ERR_DEVICE, 0, ERR_WHERE, "something is mapped there");
        }
        if (shadow.maps[i].handle == handle) fail_msg("a piece is mapped twice");
    }
    assert_true(shadow.map_count < SHADOW_MAX);
    shadow.maps[shadow.map_count].at = at;
    shadow.maps[shadow.map_count].handle = handle;
    shadow.maps[shadow.map_count].seen = false;
    shadow.maps[shadow.map_count++].bytes = bytes;
    return vmem_host.map(vmem, at, handle, bytes, err);
}

static inline int shadow_access(struct vmem *vmem, char *at, uint64_t bytes, struct err *err)
{
    uint64_t covered = 0;

    SHADOW_FAIL(err, ERR_DEVICE);
    for (size_t i = 0; i < shadow.map_count; i++)
        if (shadow.maps[i].at >= at && shadow.maps[i].at + shadow.maps[i].bytes <= at + bytes) {
            covered += shadow.maps[i].bytes;
            shadow.maps[i].seen = true;
        }
    assert_int_equal(covered, bytes);
    return vmem_host.access(vmem, at, bytes, err);
}

static inline int shadow_settle(struct vmem *vmem, struct err *err)
{
    SHADOW_FAIL(err, ERR_DEVICE);
    return vmem_host.settle(vmem, err);
}

static inline int shadow_unmap(struct vmem *vmem, char *at, uint64_t bytes, struct err *err)
{
    size_t i = 0;

    SHADOW_FAIL(err, ERR_DEVICE);
    while (i < shadow.map_count && shadow.maps[i].at != at)
        i++;
    if (i == shadow.map_count || shadow.maps[i].bytes != bytes)
        fail_msg("what is unmapped was not mapped so");
    shadow.maps[i] = shadow.maps[--shadow.map_count];
    return vmem_host.unmap(vmem, at, bytes, err);
}

static inline void shadow_release(struct vmem *vmem, uint64_t handle, uint64_t bytes)
{
    size_t i = shadow_handle(handle);

    for (size_t k = 0; k < shadow.map_count; k++)
        if (shadow.maps[k].handle == handle && shadow.fail_more == 0)
            fail_msg("a piece is released while it is mapped");
    shadow.handles[i] = shadow.handles[--shadow.handle_count];
    shadow.bytes -= bytes;
    vmem_host.release(vmem, handle, bytes);
}

static const struct vmem_ops shadow_ops = {.shortage = ERR_DEVICE_MEM,
                                           .open = shadow_open,
                                           .close = shadow_close,
                                           .reserve = shadow_reserve,
                                           .close_range = shadow_close_range,
                                           .create = shadow_create,
                                           .map = shadow_map,
                                           .access = shadow_access,
                                           .settle = shadow_settle,
                                           .unmap = shadow_unmap,
                                           .release = shadow_release};

/* Bytes that are mapped and may be touched. */
static inline uint64_t shadow_seen(void)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < shadow.map_count; i++)
        bytes += shadow.maps[i].seen ? shadow.maps[i].bytes : 0;
    return bytes;
}

static inline int shadow_begin(void **state)
{
    (void)state;
    memset(&shadow, 0, sizeof shadow);
    return 0;
}

/* Nothing is left: no mapping, no piece, no range. */
static inline void shadow_is_clean(void)
{
    assert_int_equal(shadow.map_count, 0);
    assert_int_equal(shadow.handle_count, 0);
    assert_int_equal(shadow.bytes, 0);
    assert_int_equal(shadow.range_count, 0);
    assert_int_equal(shadow.open_count, 0);
}

/* Does touching this byte stop a process? */
static inline bool touching_traps(const char *data)
{
    int   status = 0;
    pid_t child = fork();

    if (child == 0) {
        (void)signal(SIGSEGV, SIG_DFL);
        (void)signal(SIGBUS, SIG_DFL);
        (void)*(const volatile char *)data;
        _exit(0);
    }
    (void)waitpid(child, &status, 0);
    return WIFSIGNALED(status);
}

#endif
