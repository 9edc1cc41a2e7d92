/*
 * test_noise_cuda.c - the GPU's noise is the CPU's noise, bit for bit.  Needs a device; says so.
 */
#include <cuda_runtime_api.h>

#include "kernels/kernels_cuda.h"
#include "tests/kernels/kernel_cases.h"

static void check_same(struct noise_request request)
{
    const size_t bytes =
        (size_t)request.h * (size_t)request.w * (size_t)request.channels * sizeof(float);
    float *host = malloc(bytes), *copy = malloc(bytes), *device = NULL;

    assert_non_null(host);
    assert_non_null(copy);
    assert_int_equal(cudaMalloc((void **)&device, bytes), cudaSuccess);
    k_noise_cpu(host, &request);
    assert_int_equal(k_noise_cuda(device, &request, NULL), 0);
    assert_int_equal(cudaMemcpy(copy, device, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_memory_equal(host, copy, bytes);
    cudaFree(device);
    free(host);
    free(copy);
}

static void test_bits_equal_the_cpu(void **state)
{
    (void)state;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        print_message("skipped: no CUDA device on this machine\n");
        skip();
    }
    check_same((struct noise_request){0, NOISE_DRAFT, 0, 0, 1, 1, 4});
    check_same((struct noise_request){42, NOISE_TILE, 131000, 7, 33, 129, 16});
    check_same((struct noise_request){UINT64_MAX, NOISE_TILE, 0, 131000, 257, 65, 32});
    check_same((struct noise_request){1ull << 40, 1000, -5, -9, 1024, 2048, 16});
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bits_equal_the_cpu)};
    return cmocka_run_group_tests_name("noise_cuda", tests, NULL, NULL);
}
