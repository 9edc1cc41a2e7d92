/*
 * noise_cell.h - the arithmetic of one noise cell, the same words for the CPU and for a GPU.
 *
 * Counter-based: four normal values are a pure function of (seed, purpose, x, y, channel / 4).
 *
 *     key      seed low, seed high
 *     counter  x, y, channel / 4, purpose
 *     words    Philox4x32-10 of the two
 *     normals  Box-Muller on (word 0, word 1) and (word 2, word 3)
 *
 * Bit-equality rests on IEEE 754: + - * / and sqrt of doubles are correctly rounded everywhere, so
 * logarithm, sine and cosine are spelled out in them.  A compiler may not fuse a product and a sum:
 * on a GPU the operations below are the intrinsics that forbid it, elsewhere noise.c is compiled
 * without contraction.  Never replace one by a library function.
 */
#ifndef MURAL_NOISE_CELL_H
#define MURAL_NOISE_CELL_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define NOISE_FN static __host__ __device__ __forceinline__
#else
#define NOISE_FN static inline
#endif

NOISE_FN double noise_add(double a, double b)
{
#ifdef __CUDA_ARCH__
    return __dadd_rn(a, b);
#else
    return a + b;
#endif
}
NOISE_FN double noise_mul(double a, double b)
{
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}
NOISE_FN double noise_div(double a, double b)
{
#ifdef __CUDA_ARCH__
    return __ddiv_rn(a, b);
#else
    return a / b;
#endif
}
NOISE_FN double noise_sqrt(double a)
{
#ifdef __CUDA_ARCH__
    return __dsqrt_rn(a);
#else
    return sqrt(a);
#endif
}

/* Ten rounds of Philox4x32 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2,
 * 3", SC 2011); the constants are theirs. */
NOISE_FN void noise_philox(uint32_t words[4], const uint32_t counter[4], uint64_t key)
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

/* -2 ln u of u = (word + 1/2) / 2^32.  u = 2^e m with m in [sqrt 1/2, sqrt 2); ln m is the series
 * of 2 artanh f, f = (m - 1) / (m + 1), |f| <= 0.1716, cut where terms fall below 1e-14. */
NOISE_FN double noise_minus_two_ln(uint32_t word)
{
    const double u = noise_mul(noise_add((double)word, 0.5), 0x1p-32);
    uint64_t bits;
    memcpy(&bits, &u, sizeof bits);
    int64_t exponent = (int64_t)(bits >> 52) - 1022;
    uint64_t mantissa = (bits & 0xfffffffffffffu) | (uint64_t)1022 << 52; /* m in [1/2, 1) */
    double m;
    memcpy(&m, &mantissa, sizeof m);
    if (m < 0.70710678118654752440) {
        m = noise_mul(m, 2.0);
        exponent -= 1;
    }
    const double f = noise_div(noise_add(m, -1.0), noise_add(m, 1.0));
    const double z = noise_mul(f, f);
    double series = 1.0 / 17.0;
    for (int n = 15; n >= 1; n -= 2)
        series = noise_add(noise_mul(series, z), noise_div(1.0, (double)n));
    const double ln_m = noise_mul(noise_mul(2.0, f), series);
    const double ln_u = noise_add(noise_mul((double)exponent, 0.69314718055994530942), ln_m);
    return noise_mul(-2.0, ln_u);
}

/* Cosine and sine of 2 pi (word + 1/2) / 2^32.  The top three bits choose the octant, so that the
 * series below see angles under pi / 4 only and end below 1e-16. */
NOISE_FN void noise_cos_sin(double *cosine, double *sine, uint32_t word)
{
    const uint32_t quadrant = word >> 30, within = word & 0x3fffffffu;
    const int upper = (int)(within >> 29);
    const uint32_t steps = upper ? 0x3fffffffu - within : within;
    const double a = noise_mul(noise_add((double)steps, 0.5), 1.57079632679489661923 * 0x1p-30);
    const double z = noise_mul(a, a);
    double s = 1.0, c = 1.0;

    /* sin a = a (1 - z/(2*3) (1 - z/(4*5) (...))), cos a = 1 - z/(1*2) (1 - z/(3*4) (...)) */
    for (int n = 14; n >= 2; n -= 2) {
        s = noise_add(1.0, -noise_mul(noise_div(z, (double)(n * (n + 1))), s));
        c = noise_add(1.0, -noise_mul(noise_div(z, (double)((n - 1) * n)), c));
    }
    s = noise_mul(a, s);
    const double x = upper ? s : c, y = upper ? c : s;
    *cosine = quadrant == 0 ? x : quadrant == 1 ? -y : quadrant == 2 ? -x : y;
    *sine = quadrant == 0 ? y : quadrant == 1 ? x : quadrant == 2 ? -y : -x;
}

/* The four channels 4 * group .. 4 * group + 3 of the cell (x, y). */
NOISE_FN void noise_cell(float normals[4], uint64_t seed, uint32_t purpose, int32_t x, int32_t y,
                         uint32_t group)
{
    const uint32_t counter[4] = {(uint32_t)x, (uint32_t)y, group, purpose};
    uint32_t words[4];

    noise_philox(words, counter, seed);
    for (int pair = 0; pair < 4; pair += 2) {
        const double radius = noise_sqrt(noise_minus_two_ln(words[pair]));
        double cosine, sine;
        noise_cos_sin(&cosine, &sine, words[pair + 1]);
        normals[pair] = (float)noise_mul(radius, cosine);
        normals[pair + 1] = (float)noise_mul(radius, sine);
    }
}

#endif
