/*
 * cpu.c - what this machine is good at, and how much scratch the other files want.
 *
 * Read next: kernels.h.
 */
#include "kernels/kernels_int.h"
#include "kernels/onednn.h"

/* The library's answer rather than the CPU's: it also knows whether the system saves the tile
 * registers, and obeys ONEDNN_MAX_CPU_ISA. */
bool kernels_cpu_has_bf16(void)
{
    unsigned isa = (unsigned)dnnl_get_effective_cpu_isa();
    unsigned wanted = (unsigned)dnnl_cpu_isa_avx512_core_bf16;

    return (isa & wanted) == wanted; /* a set of feature bits: later machines hold all earlier bits */
}

uint64_t kernels_workspace_bytes(uint32_t threads, uint64_t conv_weight_elements_max)
{
    const uint64_t mib = 1024 * 1024;
    /* Two f32 copies of a convolution's weights: in order, and as the library wants them.  Layers of
     * few channels are padded to 16; the extra 16 Ki elements hold one such layer. */
    uint64_t conv = 2 * 4 * (conv_weight_elements_max + 16384) + 48 * mib;
    uint64_t attention = (uint64_t)threads * 2 * mib;
    uint64_t linear = 64 * mib;
    uint64_t most = linear > attention ? linear : attention;

    return most > conv ? most : conv;
}
