/*
 * trial_value.h - one made-up number, the same on the CPU and on a GPU.
 *
 * Eight bits of mantissa, so that bf16 and f32 hold the same, and twelve exponents: sums of such
 * products do not fit f32, so that they show in which order they were added.  With one exponent
 * they would fit, and every order would look the same.  In (-1/4, 1/4), never 0.  Private to
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

    const int32_t  mantissa = 128 + (int32_t)(bits >> 57);
    const uint32_t halvings = (uint32_t)(bits >> 32 & 0xffff) * 12 >> 16;
    const float    size = (float)mantissa / (float)(UINT32_C(1024) << halvings);

    return (bits & 1) != 0 ? -size : size;
}

#endif
