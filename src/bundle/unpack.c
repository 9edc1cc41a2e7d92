/*
 * unpack.c - oneDNN as `make bundle` carries it: packed, and unpacked at the first call.
 *
 * oneDNN is larger than all else in a bundle together, and packs to a fifth.  This file makes a
 * small library of its soname with the packed one inside.  It stands where the program expects
 * oneDNN, and gives it nothing but the functions that the program calls.  The first call unpacks
 * the library into memory that has no name in any file system, loads it from there, and goes on in
 * the function that was meant; later ones jump there at once.  So the arithmetic is the library's
 * own, to the bit, and a process that never computes on the CPU (one that paints on a GPU, or
 * prints help) never unpacks.  One that does pays a tenth of a second and the library's size in
 * memory of its own.
 *
 * It knows nothing of oneDNN: no function's type, no version.  It is part of no other program of
 * ours, and includes nothing of theirs.  x86-64 only, like the bundle.
 *
 * From the Makefile come UNPACK_CALLS, which is X(name) for each function, and UNPACK_FILE, the
 * packed library: one frame of zstd that states its size and ends with a checksum.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#ifndef MFD_EXEC /* Linux 6.3; without it a machine may be set to refuse code in such memory */
#define MFD_EXEC 0x0010U
#endif

__asm__(".pushsection .rodata, \"a\"\n"
        ".balign 16\n"
        ".globl unpack_begin, unpack_end\n"
        ".hidden unpack_begin, unpack_end\n"
        "unpack_begin: .incbin \"" UNPACK_FILE "\"\n"
        "unpack_end:\n"
        ".popsection\n");
extern const unsigned char unpack_begin[], unpack_end[];

/* ------------------------------------------------------------------------------- the functions */

/* Every function has a place that says where it goes on: first to its `first`, later to itself. */
#define X(name)                                                                                    \
    __attribute__((visibility("hidden"))) extern const char unpack_first_##name[];                 \
    __attribute__((visibility("hidden"))) void *unpack_place_##name = (void *)unpack_first_##name; \
    __asm__(".pushsection .text\n"                                                                 \
            ".globl " #name "\n"                                                                   \
            ".type " #name ", @function\n" #name ": endbr64\n"                                     \
            "jmp *unpack_place_" #name "(%rip)\n"                                                  \
            ".size " #name ", . - " #name "\n"                                                     \
            ".globl unpack_first_" #name "\n"                                                      \
            ".hidden unpack_first_" #name "\n"                                                     \
            "unpack_first_" #name ": endbr64\n"                                                    \
            "call unpack_at_first_call\n"                                                          \
            "jmp *unpack_place_" #name "(%rip)\n"                                                  \
            ".popsection\n");
UNPACK_CALLS
#undef X

/* Calls unpack_once and keeps what a function's arguments may be in: rax counts vectors for those
 * with `...`, r10 is for languages that nest functions.  The caller's call and ours leave the stack
 * aligned to 16 bytes, and so do 8 + 16 words. */
__asm__(".pushsection .text\n"
        ".hidden unpack_once\n"
        ".type unpack_at_first_call, @function\n"
        "unpack_at_first_call:\n"
        "push %rax; push %rdi; push %rsi; push %rdx; push %rcx; push %r8; push %r9; push %r10\n"
        "sub $128, %rsp\n"
        "movups %xmm0, (%rsp); movups %xmm1, 16(%rsp)\n"
        "movups %xmm2, 32(%rsp); movups %xmm3, 48(%rsp)\n"
        "movups %xmm4, 64(%rsp); movups %xmm5, 80(%rsp)\n"
        "movups %xmm6, 96(%rsp); movups %xmm7, 112(%rsp)\n"
        "call unpack_once\n"
        "movups (%rsp), %xmm0; movups 16(%rsp), %xmm1\n"
        "movups 32(%rsp), %xmm2; movups 48(%rsp), %xmm3\n"
        "movups 64(%rsp), %xmm4; movups 80(%rsp), %xmm5\n"
        "movups 96(%rsp), %xmm6; movups 112(%rsp), %xmm7\n"
        "add $128, %rsp\n"
        "pop %r10; pop %r9; pop %r8; pop %rcx; pop %rdx; pop %rsi; pop %rdi; pop %rax\n"
        "ret\n"
        ".size unpack_at_first_call, . - unpack_at_first_call\n"
        ".popsection\n");

/* --------------------------------------------------------------------------------- the library */

/* The caller waits for a function of a library that is not there, and expects no error of this
 * kind: the process ends, as it would have at its start were the library not packed. */
static _Noreturn void give_up(const char *what, const char *why)
{
    (void)fprintf(stderr, "mural: oneDNN, packed in this bundle, could not be %s: %s\n", what, why);
    abort();
}

/* The descriptor of an unnamed file that holds the library. */
static int unpack(void)
{
    const size_t       packed = (size_t)(unpack_end - unpack_begin);
    unsigned long long bytes = ZSTD_getFrameContentSize(unpack_begin, packed);

    if (bytes == ZSTD_CONTENTSIZE_ERROR || bytes == ZSTD_CONTENTSIZE_UNKNOWN)
        give_up("unpacked", "the bundle is damaged, copy it again");

    int fd = memfd_create("oneDNN", MFD_CLOEXEC | MFD_EXEC);
    if (fd < 0 && errno == EINVAL) fd = memfd_create("oneDNN", MFD_CLOEXEC);
    if (fd < 0) give_up("given memory", strerror(errno));
    /* Taken, not only promised: where memory is short this says so, and a write would be killed. */
    int rc = posix_fallocate(fd, 0, (off_t)bytes);
    if (rc == EFBIG) give_up("given memory", "ulimit -f is below its size, raise it");
    if (rc != 0) give_up("given memory", strerror(rc));
    void *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (room == MAP_FAILED) give_up("given memory", strerror(errno));

    size_t done = ZSTD_decompress(room, bytes, unpack_begin, packed);
    if (ZSTD_isError(done) || done != bytes)
        give_up("unpacked", "the bundle is damaged, copy it again");
    (void)munmap(room, bytes);
    return fd;
}

static void load(void)
{
    const int fd = unpack();
    char      path[64];

    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    /* Deep: its calls of its own functions must not come back to those of the same names here. */
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    if (library == NULL) give_up("loaded", dlerror());
    (void)close(fd);

#define X(name)                                                                                    \
    if ((unpack_place_##name = dlsym(library, #name)) == NULL) give_up("used", dlerror());
    UNPACK_CALLS
#undef X
}

/* Any thread may be the first; the others wait for it. */
__attribute__((visibility("hidden"))) void unpack_once(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, load);
}
