/*
 * rope.c - the rotations of a grid of tokens, put together from those of its axes.
 *
 * The oracle of rope.cu.  Knows nothing of frequencies: tables come from the caller.
 */
#include "kernels/kernels_int.h"

void k_rope_grid_cpu(struct matrix y, const struct matrix axes[3], int32_t h, int32_t w)
{
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < (int64_t)h * w; token++) {
        char *out = row_of(y, token);
        for (int axis = 0; axis < 3; axis++) {
            const size_t bytes = (size_t)axes[axis].cols * sizeof(float);
            memcpy(out, row_of(axes[axis], axis == 1 ? token / w : token % w), bytes);
            out += bytes;
        }
    }
}
