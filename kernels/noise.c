/*
 * noise.c - standard normal noise that belongs to the canvas, not to a tile.
 *
 * Two tiles that overlap must start from the same noise in the cells they share, and a tile painted
 * again must start from what it had.  So a value depends on its place and the seed only; noise.cu
 * gives the same bits.  No clones here: AVX2 brings fused multiply-add, and with it other bits.
 *
 * Read next: noise_cell.h, the arithmetic.
 */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* gcc does not know it, and with -std=c11 does not contract */
#endif
#include "kernels/kernels_int.h"
#include "kernels/noise_cell.h"

void k_noise_cpu(float *out, const struct noise_request *request)
{
    const int32_t w = request->w, channels = request->channels;

    must(request->h >= 0 && w >= 0 && channels > 0 && channels % 4 == 0);
#pragma omp parallel for schedule(static)
    for (int32_t row = 0; row < request->h; row++) {
        float *cell = out + (int64_t)row * w * channels;
        for (int32_t col = 0; col < w; col++)
            for (int32_t channel = 0; channel < channels; channel += 4, cell += 4)
                noise_cell(cell, request->seed, request->purpose, request->x + col,
                           request->y + row, (uint32_t)channel / 4);
    }
}
