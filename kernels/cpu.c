/*
 * cpu.c - what this machine is good at, and how much scratch the other files want.
 *
 * Read next: kernels.h.
 */
#include "kernels/kernels_int.h"
#include "kernels/onednn.h"

#include <stdio.h>

/* The library's answer rather than the CPU's: it obeys ONEDNN_MAX_CPU_ISA. */
bool kernels_cpu_has_bf16(void)
{
    unsigned isa = (unsigned)dnnl_get_effective_cpu_isa();
    unsigned wanted = (unsigned)dnnl_cpu_isa_avx512_core_bf16;

    return (isa & wanted) == wanted; /* feature bits: later machines hold all earlier ones */
}

const char *kernels_cpu_version(char *out, size_t capacity)
{
    const dnnl_version_t *version = dnnl_version();

    (void)snprintf(out, capacity, "oneDNN %d.%d.%d isa %x", version->major, version->minor,
                   version->patch, (unsigned)dnnl_get_effective_cpu_isa());
    return out;
}

uint64_t kernels_workspace_bytes(uint32_t threads, uint64_t conv_weight_elements_max)
{
    const uint64_t mib = 1024 * 1024;
    /* Weights of a convolution twice: in f32, and in the library's order, which pads channels to
     * whole blocks; small layers are padded to 64 x 64 channels.  The rest is for tiles. */
    const uint64_t padded = 2 * conv_weight_elements_max + 64 * 64 * 9;
    const uint64_t conv = 4 * (conv_weight_elements_max + padded) + 32 * mib;
    /* Blocks of 256 queries and 256 keys of 128, or 256 and 128 of 512. */
    const uint64_t attention = threads * 2 * mib;

    return conv > attention ? conv : attention;
}
