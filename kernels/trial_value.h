/*
 * trial_value.h - one made-up number, the same on the CPU and on a GPU.
 *
 * Multiples of 1/1024 in [-1/8, 1/8): exact in bf16, so that both types hold the same.  Private to
 * trial.c and trial.cu.
 */
#ifndef MURAL_TRIAL_VALUE_H
#define MURAL_TRIAL_VALUE_H

#include <stdint.h>

#ifdef __CUDACC__
#define TRIAL_FN static __host__ __device__ inline
#else
#define TRIAL_FN static inline
#endif

TRIAL_FN uint64_t trial_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

TRIAL_FN float trial_value(uint64_t seed, int64_t row, int64_t col)
{
    const uint64_t bits =
        trial_mix(seed * 0xD1342543DE82EF95u + ((uint64_t)row << 32) + (uint64_t)col);

    return (float)((int32_t)(bits >> 56) - 128) * (1.0f / 1024.0f);
}

#endif
