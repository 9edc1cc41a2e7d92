/*
 * cuda_cases.h - what the GPU tests share: copies of matrices on the device, comparison of twins, a
 * stop-watch on the stream.
 *
 * A test builds its operands as the CPU tests do, runs the CPU kernel on them, and the CUDA kernel
 * on copies that lie at the same distance from a 16-byte boundary.
 */
#ifndef MURAL_CUDA_CASES_H
#define MURAL_CUDA_CASES_H

#include <cuda_runtime_api.h>

#include "kernels/kernels_cuda.h"
#include "tests/kernels/kernel_cases.h"

#define CUDA_OK(call) assert_int_equal((int)(call), 0)

CASE_UNUSED static bool device_exists(void)
{
    int devices = 0;
    return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

CASE_UNUSED static void skip_without_device(void)
{
    if (device_exists()) return;
    print_message("skipped: no CUDA device on this machine\n");
    skip();
}

/* --------------------------------------------------------------------------------- copies */

/* A matrix on the device with the bytes around it that the grid has. */
struct device_grid {
    struct matrix m;
    char         *block;
    size_t        bytes;
};

CASE_UNUSED static struct device_grid device_copy(const struct grid *host)
{
    struct device_grid d = {host->m, NULL, host->bytes};

    CUDA_OK(cudaMalloc((void **)&d.block, d.bytes));
    CUDA_OK(cudaMemcpy(d.block, host->block, d.bytes, cudaMemcpyHostToDevice));
    d.m.data = d.block + ((char *)host->m.data - host->block);
    return d;
}

/* Back to the host; the gaps come along.  The device's memory is freed. */
CASE_UNUSED static struct grid device_take(struct device_grid *d)
{
    struct grid g = {d->m, malloc(d->bytes), d->bytes};

    assert_non_null(g.block);
    CUDA_OK(cudaMemcpy(g.block, d->block, d->bytes, cudaMemcpyDeviceToHost));
    g.m.data = g.block + ((char *)d->m.data - d->block);
    CUDA_OK(cudaFree(d->block));
    *d = (struct device_grid){0};
    return g;
}

CASE_UNUSED static struct grid grid_copy(const struct grid *source)
{
    struct grid g = {source->m, malloc(source->bytes), source->bytes};

    assert_non_null(g.block);
    memcpy(g.block, source->block, g.bytes);
    g.m.data = g.block + ((char *)source->m.data - source->block);
    return g;
}

CASE_UNUSED static void *device_bytes(const void *host, size_t bytes)
{
    void *device = NULL;

    CUDA_OK(cudaMalloc(&device, bytes));
    CUDA_OK(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
    return device;
}
CASE_UNUSED static float *device_floats(const float *host, int64_t count)
{
    return device_bytes(host, (size_t)count * sizeof *host);
}

/* ----------------------------------------------------------------------------- comparison */

/* Every element within `relative` of the expected one or of 1, whichever is larger; stored as bf16,
 * within one spacing more, because twins may round a value between two to either. */
CASE_UNUSED static void check_twins(const struct grid *got, const struct grid *want,
                                    double relative)
{
    grid_check_gaps(got);
    for (int64_t row = 0; row < want->m.rows; row++)
        for (int64_t col = 0; col < want->m.cols; col++) {
            const double value = get(want->m, row, col);
            const double spacing = want->m.dtype == DTYPE_BF16 ? BF16_EPS : F32_EPS;
            CHECK_NEAR(get(got->m, row, col), value,
                       relative * fmax(fabs(value), 1.0) + spacing * fabs(value) + 1e-37);
        }
}

CASE_UNUSED static void check_same_bytes(const struct grid *got, const struct grid *want)
{
    assert_int_equal(got->bytes, want->bytes);
    assert_memory_equal(got->block, want->block, want->bytes);
}

/* Length of the difference over length of what was expected. */
CASE_UNUSED static double distance(const struct grid *got, const struct grid *want)
{
    double difference = 0.0, length = 0.0;

    for (int64_t row = 0; row < want->m.rows; row++)
        for (int64_t col = 0; col < want->m.cols; col++) {
            const double value = get(want->m, row, col);
            difference += pow(get(got->m, row, col) - value, 2);
            length += value * value;
        }
    return sqrt(difference / fmax(length, 1e-30));
}

/* ---------------------------------------------------------------------------------- bench */

/* Contents do not matter, but must be numbers: the byte 0x3c repeated is 0.0115 in f32 and bf16. */
CASE_UNUSED static struct matrix device_matrix(enum dtype dtype, int64_t rows, int64_t cols)
{
    struct matrix m = {NULL, dtype, rows, cols, cols};
    const size_t  bytes = (size_t)(rows * cols) * dtype_bytes(dtype);

    CUDA_OK(cudaMalloc(&m.data, bytes));
    CUDA_OK(cudaMemset(m.data, 0x3c, bytes));
    return m;
}

/* Best time of several runs, by the device's clock; the first run is not counted. */
CASE_UNUSED static double device_seconds(int (*run)(void *user), void *user, int runs)
{
    cudaEvent_t begin, end;
    double      best = 1e30;

    CUDA_OK(cudaEventCreate(&begin));
    CUDA_OK(cudaEventCreate(&end));
    for (int i = 0; i <= runs; i++) {
        float milliseconds = 0.0f;
        CUDA_OK(cudaEventRecord(begin, NULL));
        CUDA_OK(run(user));
        CUDA_OK(cudaEventRecord(end, NULL));
        CUDA_OK(cudaEventSynchronize(end));
        CUDA_OK(cudaEventElapsedTime(&milliseconds, begin, end));
        if (i > 0) best = fmin(best, 1e-3 * (double)milliseconds);
    }
    CUDA_OK(cudaEventDestroy(begin));
    CUDA_OK(cudaEventDestroy(end));
    return best;
}

CASE_UNUSED static void print_bandwidth(const char *name, double bytes, double best)
{
    printf("%-44s %9.3f ms %8.1f GB/s\n", name, best * 1e3, bytes * 1e-9 / best);
}

CASE_UNUSED static bool bench_without_device(void)
{
    if (device_exists()) return false;
    printf("no CUDA device on this machine: nothing was measured\n");
    return true;
}

#endif
