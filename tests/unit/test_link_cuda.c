/*
 * test_link_cuda.c - a pretended GPU is named with what decides its bits, and its link timed;
 * whatever fails leaves nothing behind.
 *
 * The source under test is compiled here, against these functions instead of CUDA's.
 */
#include "../test.h"

#include <errno.h>
#include <time.h>

#include <cuda_runtime_api.h>

/* ----------------------------------------------------------------------------------- a runtime */

static struct {
    double lap_seconds[8]; /* of the copies, in order */
    int    copies, calls, fails_at;
    int    blocks; /* of memory, on either side, that nobody freed */
    size_t bytes;  /* of the last copy */
    bool   meets;  /* the driver opens its context, and a library is loaded, only at once */
    int    loading, opening, versions_asked; /* atomic */
} made;

/* Each raises its own flag and waits for the other's, though not for ever. */
static void meet(int *mine, int *other)
{
    struct timespec lap = {.tv_nsec = 1000000};

    __atomic_store_n(mine, 1, __ATOMIC_RELEASE);
    for (int i = 0; made.meets && i < 10000 && !__atomic_load_n(other, __ATOMIC_ACQUIRE); i++)
        (void)nanosleep(&lap, NULL);
    if (made.meets) assert_true(__atomic_load_n(other, __ATOMIC_ACQUIRE));
}

static cudaError_t call(void)
{
    return ++made.calls == made.fails_at ? cudaErrorMemoryAllocation : cudaSuccess;
}

static cudaError_t made_set_device(int device)
{
    assert_int_equal(device, 3);
    meet(&made.opening, &made.loading);
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
    meet(&made.loading, &made.opening);
    return 130100;
}

static size_t made_graphs_version(void)
{
    (void)__atomic_add_fetch(&made.versions_asked, 1, __ATOMIC_RELEASE);
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
    made.meets = true;
    ASSERT_OK(backend_find_cuda(&device, 3, &err));
    assert_non_null(strstr(device.numeric, "x sm_121 cuda "));
    assert_non_null(strstr(device.numeric, " blas 130100 dnn 91900"));
    assert_true(strlen(device.numeric) + 1 < sizeof device.numeric);
    assert_int_equal(device.bytes_free, 5);
}

static int no_thread(pthread_t *out, void *(*run)(void *), void *argument)
{
    (void)out;
    (void)run;
    (void)argument;
    return EAGAIN;
}

static void without_a_thread_it_takes_longer(void **state)
{
    struct os_calls       usual = os;
    struct err            err = {0};
    struct backend_device device;

    (void)state;
    os.thread_create = no_thread;
    ASSERT_OK(backend_find_cuda(&device, 3, &err));
    os = usual;
    assert_non_null(strstr(device.numeric, " blas 130100 dnn 91900"));
}

/* Whoever began to load libraries is done when the failure is told. */
static void a_gpu_that_fails_leaves_no_thread(void **state)
{
    (void)state;
    for (int at = 1; at <= 4; at++) { /* count, properties, device, memory */
        struct err            err = {0};
        struct backend_device device;
        (void)begin(NULL);
        made.fails_at = at;
        assert_int_equal(backend_find_cuda(&device, 3, &err), at < 3 ? ERR_DEVICE : ERR_DEVICE_MEM);
        assert_int_equal(__atomic_load_n(&made.versions_asked, __ATOMIC_ACQUIRE), at > 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_best_of_the_copies_counts, begin),
        cmocka_unit_test_setup(every_call_may_fail, begin),
        cmocka_unit_test_setup(the_bits_are_the_libraries_too, begin),
        cmocka_unit_test_setup(without_a_thread_it_takes_longer, begin),
        cmocka_unit_test_setup(a_gpu_that_fails_leaves_no_thread, begin)};
    return cmocka_run_group_tests_name("link", tests, NULL, NULL);
}
