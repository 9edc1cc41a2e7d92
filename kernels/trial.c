/*
 * trial.c - made-up numbers for trials of speed.
 *
 * The oracle of trial.cu.  Zeros would flatter a GPU, whose clock depends on how many bits flip.
 *
 * Read next: trial_value.h, the function itself.
 */
#include "kernels/kernels_int.h"
#include "kernels/trial_value.h"

void k_fill_cpu(struct matrix y, uint64_t seed)
{
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < y.rows; row++)
        for (int64_t col = 0; col < y.cols; col++)
            act_store(row_of(y, row), y.dtype, col, trial_value(seed, row, col));
}
