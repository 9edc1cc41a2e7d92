/*
 * test_vmem_cuda.c - the pool on a real GPU: contents, neighbours, and what each call of the driver
 * costs.
 */
#include "tests/kernels/cuda_cases.h"
#include "tests/test.h"

#include "memory/memory.h"

#define MIB ((uint64_t)1 << 20)

static void need_device(void)
{
    skip_without_device();
    CUDA_OK(cudaSetDevice(0));
    CUDA_OK(cudaFree(NULL));
}

static struct pool *open_pool(uint64_t cap, bool expandable)
{
    struct err          err = {0};
    struct pool        *pool = NULL;
    struct pool_options options = {.ops = &vmem_cuda,
                                   .cap_bytes = cap,
                                   .segment_bytes = 64 * MIB,
                                   .idle_share_max = 1,
                                   .expandable = expandable};

    ASSERT_OK(pool_open(&pool, &options, &err));
    return pool;
}

static void expect_bytes(const char *device, uint64_t bytes, int value)
{
    unsigned char *host = malloc(bytes);

    assert_non_null(host);
    CUDA_OK(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
    for (uint64_t i = 0; i < bytes; i++)
        if (host[i] != value) fail_msg("byte %zu is %d, not %d", (size_t)i, host[i], value);
    free(host);
}

/* What one arena does not use becomes another's while the GPU is still writing to the first. */
static void idle_tails_move_under_running_work(void **state)
{
    struct pool_counts counts;
    struct err         err = {0};
    struct arena      *a = NULL, *b = NULL;

    (void)state;
    need_device();
    struct pool *pool = open_pool(512 * MIB, true);
    ASSERT_OK(arena_open_in(&a, pool, 512 * MIB, &err));
    ASSERT_OK(arena_open_in(&b, pool, 512 * MIB, &err));
    for (int round = 0; round < 20; round++) {
        struct arena     *one = round % 2 == 0 ? a : b, *other = round % 2 == 0 ? b : a;
        struct arena_mark start = arena_mark(one);
        char             *kept = arena_take(one, 20 * MIB, "kept");
        struct arena_mark mark = arena_mark(one);
        char             *lost = arena_take(one, 400 * MIB, "lost");
        for (int k = 0; k < 8; k++)
            CUDA_OK(cudaMemsetAsync(lost, k, 400 * MIB, NULL));
        CUDA_OK(cudaMemsetAsync(kept, 7, 20 * MIB, NULL));
        arena_rewind(one, mark);
        struct arena_mark others = arena_mark(other);
        char             *taken = arena_take(other, 400 * MIB, "taken");
        CUDA_OK(cudaMemsetAsync(taken, 9, 400 * MIB, NULL));
        expect_bytes(kept, 20 * MIB, 7);
        expect_bytes(taken, 400 * MIB, 9);
        arena_rewind(other, others);
        arena_rewind(one, start);
    }
    pool_counts(pool, &counts);
    print_message("# 20 exchanges: %llu created, %llu mapped, %llu unmapped, %.0f MB robbed\n",
                  (unsigned long long)counts.created, (unsigned long long)counts.mapped_calls,
                  (unsigned long long)counts.unmapped, (double)counts.robbed / 1e6);
    assert_true(counts.peak_device <= 512 * MIB);
    assert_true(counts.robbed > 0);
    arena_close(a);
    arena_close(b);
    pool_close(pool);
}

static void the_card_gets_all_of_it_back(void **state)
{
    size_t before = 0, after = 0, total = 0;

    (void)state;
    need_device();
    CUDA_OK(cudaMemGetInfo(&before, &total));
    for (int expandable = 0; expandable < 2; expandable++) {
        struct err    err = {0};
        struct pool  *pool = open_pool(1024 * MIB, expandable);
        struct arena *arena = NULL;
        ASSERT_OK(arena_open_in(&arena, pool, 900 * MIB, &err));
        ASSERT_OK(arena_seal(arena, 900 * MIB, &err));
        char *data = arena_take(arena, 900 * MIB, "all");
        CUDA_OK(cudaMemset(data, 3, 900 * MIB));
        expect_bytes(data + 890 * MIB, 10 * MIB, 3);
        CUDA_OK(cudaMemGetInfo(&after, &total));
        assert_true(before - after >= 900 * MIB);
        arena_close(arena);
        pool_close(pool);
    }
    CUDA_OK(cudaMemGetInfo(&after, &total));
    assert_true(after + 64 * MIB >= before);
}

/* More than the card has is one sentence, and what was mapped stays. */
static void more_than_the_card_has_is_refused(void **state)
{
    struct err    err = {0};
    struct arena *arena = NULL;
    size_t        available = 0, total = 0;

    (void)state;
    need_device();
    CUDA_OK(cudaMemGetInfo(&available, &total));
    struct pool *pool = open_pool(2 * (uint64_t)total, true);
    ASSERT_OK(arena_open_in(&arena, pool, 2 * (uint64_t)total, &err));
    ASSERT_OK(arena_seal(arena, 64 * MIB, &err));
    char *data = arena_take(arena, 64 * MIB, "first");
    CUDA_OK(cudaMemset(data, 5, 64 * MIB));
    ASSERT_REFUSED(ERR_DEVICE_MEM, "cannot take", arena_seal(arena, (uint64_t)total + MIB, &err));
    assert_int_equal(arena_bytes_mapped(arena), 64 * MIB);
    expect_bytes(data, 64 * MIB, 5);
    assert_true(pool_trim(pool, UINT64_MAX) > 0);
    arena_close(arena);
    pool_close(pool);
}

/* ------------------------------------------------------------------------------------- timing */

enum { PIECES = 16 };

struct lap {
    double create, map, access, unmap, release;
};

/* Microseconds of each call, the mean of PIECES; `busy`: while the card writes elsewhere. */
static struct lap time_calls(uint64_t bytes, char *busy, uint64_t busy_bytes)
{
    struct err  err = {0};
    struct vmem vmem = {.ops = &vmem_cuda};
    char       *base = NULL;
    uint64_t    handles[PIECES];
    double      t[6];

    ASSERT_OK(vmem_cuda.open(&vmem, &err));
    ASSERT_OK(vmem_cuda.reserve(&vmem, &base, PIECES * bytes, &err));
    for (int i = 0; busy != NULL && i < 400; i++)
        CUDA_OK(cudaMemsetAsync(busy, i, busy_bytes, NULL));
    t[0] = os_seconds();
    for (int i = 0; i < PIECES; i++)
        ASSERT_OK(vmem_cuda.create(&vmem, &handles[i], bytes, &err));
    t[1] = os_seconds();
    for (uint64_t i = 0; i < PIECES; i++)
        ASSERT_OK(vmem_cuda.map(&vmem, base + i * bytes, handles[i], bytes, &err));
    t[2] = os_seconds();
    for (uint64_t i = 0; i < PIECES; i++)
        ASSERT_OK(vmem_cuda.access(&vmem, base + i * bytes, bytes, &err));
    t[3] = os_seconds();
    for (uint64_t i = 0; i < PIECES; i++)
        ASSERT_OK(vmem_cuda.unmap(&vmem, base + i * bytes, bytes, &err));
    t[4] = os_seconds();
    bool waited = busy != NULL && cudaStreamQuery(NULL) == cudaSuccess;
    for (int i = 0; i < PIECES; i++)
        vmem_cuda.release(&vmem, handles[i], bytes);
    t[5] = os_seconds();
    if (busy != NULL)
        print_message("#   the card was %s when all was unmapped\n",
                      waited ? "idle" : "still busy");
    ASSERT_OK(vmem_cuda.settle(&vmem, &err));
    vmem_cuda.close_range(&vmem, base, PIECES * bytes);
    vmem_cuda.close(&vmem);
    double each = 1e6 / PIECES;
    return (struct lap){each * (t[1] - t[0]), each * (t[2] - t[1]), each * (t[3] - t[2]),
                        each * (t[4] - t[3]), each * (t[5] - t[4])};
}

static void what_the_calls_cost(void **state)
{
    static const uint64_t sizes[] = {2, 32, 256};
    char                 *busy = NULL;

    (void)state;
    need_device();
    CUDA_OK(cudaMalloc((void **)&busy, 1024 * MIB));
    for (int working = 0; working < 2; working++)
        for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
            struct lap lap = time_calls(sizes[i] * MIB, working ? busy : NULL, 1024 * MIB);
            print_message("# %s, %3d MiB: create %.1f us, map %.1f, access %.1f, unmap %.1f, "
                          "release %.1f\n",
                          working ? "busy" : "idle", (int)sizes[i], lap.create, lap.map, lap.access,
                          lap.unmap, lap.release);
        }
    CUDA_OK(cudaFree(busy));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(idle_tails_move_under_running_work),
        cmocka_unit_test(the_card_gets_all_of_it_back),
        cmocka_unit_test(more_than_the_card_has_is_refused),
        cmocka_unit_test(what_the_calls_cost),
    };
    return cmocka_run_group_tests_name("vmem_cuda", tests, NULL, NULL);
}
