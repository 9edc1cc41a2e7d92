/*
 * test_link_cuda.c - a pretended GPU is named with what decides its bits, and its link timed;
 * whatever fails leaves nothing behind.
 *
 * The source under test is compiled here, against these functions instead of CUDA's.
 */
#include "../test.h"

#include <time.h>

#include <cuda_runtime_api.h>

/* ----------------------------------------------------------------------------------- a runtime */

static struct {
    double lap_seconds[8]; /* of the copies, in order */
    int    copies, calls, fails_at;
    int    blocks; /* of memory, on either side, that nobody freed */
    size_t bytes;  /* of the last copy */
} made;

static cudaError_t call(void)
{
    return ++made.calls == made.fails_at ? cudaErrorMemoryAllocation : cudaSuccess;
}

static cudaError_t made_set_device(int device)
{
    assert_int_equal(device, 3);
    return call();
}

static cudaError_t made_take(void **out, size_t bytes)
{
    cudaError_t status = call();

    if (status != cudaSuccess) return status;
    *out = malloc(bytes);
    made.blocks++;
    return *out != NULL ? cudaSuccess : cudaErrorMemoryAllocation;
}

static cudaError_t made_take_pinned(void **out, size_t bytes, unsigned flags)
{
    (void)flags;
    return made_take(out, bytes);
}

static cudaError_t made_free(void *memory)
{
    made.blocks -= memory != NULL;
    free(memory);
    return cudaSuccess;
}

static cudaError_t made_copy(void *target, const void *source, size_t bytes,
                             enum cudaMemcpyKind kind)
{
    struct timespec lap = {.tv_nsec = (long)(1e9 * made.lap_seconds[made.copies++])};

    assert_true(target != NULL && source != NULL && kind == cudaMemcpyHostToDevice);
    made.bytes = bytes;
    (void)nanosleep(&lap, NULL);
    return call();
}

static cudaError_t made_count(int *out)
{
    *out = 4;
    return call();
}

static cudaError_t made_properties(struct cudaDeviceProp *out, int device)
{
    assert_int_equal(device, 3);
    memset(out, 0, sizeof *out);
    memset(out->name, 'x', sizeof out->name - 1);
    out->major = 12;
    out->minor = 1;
    return call();
}

static cudaError_t made_free_bytes(size_t *left, size_t *total)
{
    *left = 5;
    *total = 7;
    return call();
}

static size_t made_gemm_version(void)
{
    return 130100;
}

static size_t made_graphs_version(void)
{
    return 91900;
}

#define cudaGetDeviceCount      made_count
#define cudaGetDeviceProperties made_properties
#define cudaMemGetInfo          made_free_bytes
#define gemm_version            made_gemm_version
#define graphs_version          made_graphs_version
#define cuda_is_full            made_is_full
#define cudaSetDevice           made_set_device
#define cudaHostAlloc           made_take_pinned
#define cudaMalloc(p, n)        made_take((p), (n))
#define cudaFree                made_free
#define cudaFreeHost            made_free
#define cudaMemcpy              made_copy
#define backend_find_cuda       made_find_cuda
#define backend_time_link       made_time_link
#include "src/backend/cuda_device.c"

/* --------------------------------------------------------------------------------------- tests */

static int begin(void **state)
{
    (void)state;
    memset(&made, 0, sizeof made);
    for (size_t i = 0; i < ARRAY_COUNT(made.lap_seconds); i++)
        made.lap_seconds[i] = 0.3;
    return 0;
}

/* The first copy of a process is slow, and so may be one that another program disturbs. */
static void the_best_of_the_copies_counts(void **state)
{
    struct err err = {0};
    double     rate = 0;

    (void)state;
    made.lap_seconds[1] = 0.02;
    ASSERT_OK(backend_time_link(&rate, 3, &err));
    assert_true(made.copies >= 3);
    /* A nap is never shorter than it was asked for, and on a busy machine somewhat longer. */
    assert_true(rate <= (double)made.bytes / 0.02 && rate > (double)made.bytes / 0.29);
    assert_int_equal(made.blocks, 0);
}

static void every_call_may_fail(void **state)
{
    int at = 1;

    (void)state;
    for (;; at++) {
        struct err err = {0};
        double     rate = 1;
        (void)begin(NULL);
        for (size_t i = 0; i < ARRAY_COUNT(made.lap_seconds); i++)
            made.lap_seconds[i] = 0.001;
        made.fails_at = at;
        int rc = backend_time_link(&rate, 3, &err);
        assert_int_equal(made.blocks, 0);
        if (made.calls < at) break; /* it was never reached */
        assert_int_equal(rc, ERR_DEVICE);
        assert_non_null(strstr(err.text, "the link to GPU 3 cannot be timed"));
        assert_true(rate == 0);
    }
    assert_int_equal(at, 7); /* device, two of memory, three copies */
}

/* However long the card's name is: pictures that other libraries began are not gone on with. */
static void the_bits_are_the_libraries_too(void **state)
{
    struct err            err = {0};
    struct backend_device device;

    (void)state;
    ASSERT_OK(backend_find_cuda(&device, 3, &err));
    assert_non_null(strstr(device.numeric, "x sm_121 cuda "));
    assert_non_null(strstr(device.numeric, " blas 130100 dnn 91900"));
    assert_true(strlen(device.numeric) + 1 < sizeof device.numeric);
    assert_int_equal(device.bytes_free, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_best_of_the_copies_counts, begin),
        cmocka_unit_test_setup(every_call_may_fail, begin),
        cmocka_unit_test_setup(the_bits_are_the_libraries_too, begin)};
    return cmocka_run_group_tests_name("link", tests, NULL, NULL);
}
