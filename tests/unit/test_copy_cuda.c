/*
 * test_copy_cuda.c - copies through pinned buffers on a runtime made of threads: no GPU is needed.
 *
 * Buffers are so small that every matrix takes several, or shares one, and copies so slow that a
 * buffer filled too early shows.
 */
#include "../test.h"

#include <errno.h>

#include "made_cuda.h"

#define cuda_staging_open     made_staging_open
#define cuda_staging_exchange made_staging_exchange
#define cuda_staging_close    made_staging_close
#define cuda_upload           made_upload
#define cuda_download         made_download
#include "../../src/backend/cuda_copy.c"

enum { COPIES = 60, SMALL_BYTES = 2048, FILE_BYTES = 1 << 16 };

struct story {
    struct cuda_staging staging;
    cudaStream_t        stream;
    char                folder[256], path[300];
    struct os_map       map;
    uint64_t            random;
};

static void story_open(struct story *story, int speed_us)
{
    struct err err = {0};
    int        fd = -1;
    uint8_t    bytes[FILE_BYTES];

    *story = (struct story){.random = 11};
    copy_us = 0;
    assert_int_equal(cuda_staging_open(&story->staging), 0);
    assert_int_equal(cudaStreamCreateWithFlags(&story->stream, 0), cudaSuccess);
    story->staging.buffer_bytes = SMALL_BYTES;
    copy_us = speed_us;
    for (int i = 0; i < FILE_BYTES; i++)
        bytes[i] = (uint8_t)(random_u64(&story->random) & 0x3f); /* no NaN in any type */
    scratch_make(story->folder, sizeof story->folder);
    (void)snprintf(story->path, sizeof story->path, "%s/weights", story->folder);
    ASSERT_OK(os_open_write(&fd, story->path, &err));
    ASSERT_OK(os_write_at(fd, 0, bytes, sizeof bytes, story->path, &err));
    ASSERT_OK(os_close(fd, story->path, &err));
    ASSERT_OK(os_map_open(&story->map, story->path, &err));
}

static void story_close(struct story *story)
{
    (void)cudaStreamSynchronize(story->stream);
    cuda_staging_close(&story->staging);
    (void)cudaStreamDestroy(story->stream);
    os_map_close(&story->map);
    scratch_remove(story->folder);
}

/* A matrix of up to 40 x 1,000 elements at an odd place of the file. */
static struct matrix any_source(struct story *story)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F8_E4M3};
    struct matrix           m = {.dtype = dtypes[random_between(&story->random, 0, 2)]};
    const int64_t           most = (FILE_BYTES - 8) / dtype_bytes(m.dtype);

    m.cols = random_between(&story->random, 1, random_between(&story->random, 0, 1) ? 9 : 1000);
    m.ld = m.cols + random_between(&story->random, 0, 1) * 3;
    m.rows = random_between(&story->random, 1, min_i64(40, most / m.ld));
    m.data = (void *)(uintptr_t)(story->map.data + random_between(&story->random, 0, 7));
    return m;
}

/* With or without gaps between its rows; zeros. */
static struct matrix room_for(struct story *story, struct matrix source, enum dtype dtype)
{
    struct matrix m = source;

    m.dtype = dtype;
    m.ld = m.cols + random_between(&story->random, 0, 1) * 5;
    m.data = calloc((size_t)(m.rows * m.ld), dtype_bytes(dtype));
    assert_non_null(m.data);
    return m;
}

/* Gaps included: they stay zero. */
static void check(struct matrix got, struct matrix wanted_of)
{
    struct matrix wanted = got;
    const size_t  bytes = (size_t)(got.rows * got.ld) * dtype_bytes(got.dtype);

    wanted.data = calloc(1, bytes);
    assert_non_null(wanted.data);
    k_cast_cpu(wanted, wanted_of);
    assert_memory_equal(got.data, wanted.data, bytes);
    free(wanted.data);
}

/* The source is overwritten as soon as it may be. */
static void upload_memory(struct story *story, struct matrix target, struct matrix source)
{
    struct matrix own = source;

    own.dtype = DTYPE_F32;
    own.ld = own.cols;
    own.data = malloc((size_t)(own.rows * own.cols) * sizeof(float));
    assert_non_null(own.data);
    k_cast_cpu(own, source);
    assert_int_equal(cuda_upload(&story->staging, story->stream, target, own), 0);
    memset(own.data, 0xff, (size_t)(own.rows * own.cols) * sizeof(float));
    free(own.data);
}

static void every_copy_arrives(void **state)
{
    (void)state;
    for (int speed_us = 0; speed_us <= 400; speed_us += 200) {
        struct story  story;
        struct matrix source[COPIES], there[COPIES], back;
        uint64_t      bytes = 0;

        story_open(&story, speed_us);
        for (int i = 0; i < COPIES; i++) {
            source[i] = any_source(&story);
            there[i] = room_for(&story, source[i], i % 2 == 0 ? DTYPE_F32 : DTYPE_BF16);
            bytes += (uint64_t)(there[i].rows * there[i].cols) * dtype_bytes(there[i].dtype);
            if (i % 3 == 0)
                upload_memory(&story, there[i], source[i]);
            else
                assert_int_equal(cuda_upload(&story.staging, story.stream, there[i], source[i]), 0);
            if (i % 5 > 0) continue;
            back = room_for(&story, there[i / 2], i % 2 == 0 ? DTYPE_F32 : DTYPE_BF16);
            assert_int_equal(cuda_download(&story.staging, story.stream, back, there[i / 2]), 0);
            check(back, there[i / 2]);
            free(back.data);
        }
        assert_int_equal(story.staging.uploads.bytes, bytes);
        (void)cudaStreamSynchronize(story.stream);
        for (int i = 0; i < COPIES; i++) {
            check(there[i], source[i]);
            free(there[i].data);
        }
        story_close(&story);
    }
}

/* And the next upload goes well. */
static void a_cut_file_is_told(void **state)
{
    struct story  story;
    struct matrix m = {.dtype = DTYPE_BF16, .rows = 100, .cols = 300, .ld = 300}, target;

    (void)state;
    story_open(&story, 100);
    m.data = (void *)(uintptr_t)story.map.data;
    target = room_for(&story, m, DTYPE_BF16);
    assert_int_equal(truncate(story.path, 50000), 0);
    assert_int_equal(cuda_upload(&story.staging, story.stream, target, m), STATUS_READ + EFAULT);
    m.rows = 50;
    assert_int_equal(cuda_upload(&story.staging, story.stream, matrix_rows(target, 50, 50), m), 0);
    (void)cudaStreamSynchronize(story.stream);
    for (int64_t row = 0; row < 50; row++)
        assert_memory_equal((char *)target.data + 2 * target.ld * (50 + row),
                            (const char *)m.data + 600 * row, 600);
    free(target.data);
    story_close(&story);
}

/* Each call of the runtime in turn; when the stream has ended, the next copies go well. */
static void every_call_may_fail(void **state)
{
    int failed = 0;

    (void)state;
    for (int n = 1, left = 0; left <= 0; n++) {
        struct story  story;
        struct matrix source, there, back;
        int           status;

        story_open(&story, n % 2 * 50);
        source = (struct matrix){(void *)(uintptr_t)story.map.data, DTYPE_BF16, 20, 300, 310};
        there = room_for(&story, source, DTYPE_F32);
        back = room_for(&story, source, DTYPE_F32);
        __atomic_store_n(&calls_left, n, __ATOMIC_RELAXED);
        status = cuda_upload(&story.staging, story.stream, there, source);
        if (status == 0) status = cuda_download(&story.staging, story.stream, back, there);
        left = __atomic_exchange_n(&calls_left, INT_MAX, __ATOMIC_RELAXED);
        assert_int_equal(status != 0, left <= 0);
        failed += status != 0;
        (void)cudaStreamSynchronize(story.stream);
        assert_int_equal(cuda_upload(&story.staging, story.stream, there, source), 0);
        assert_int_equal(cuda_download(&story.staging, story.stream, back, there), 0);
        check(back, source);
        free(there.data);
        free(back.data);
        story_close(&story);
    }
    assert_true(failed > 20);
}

/* Floats on `page`, or just beside it, there and back; whether no buffer was touched. */
static bool passes_at_once(struct story *story, char *page, int64_t at, int64_t count)
{
    struct matrix m = {.data = page + at, .dtype = DTYPE_F32, .rows = 1, .cols = count};
    struct matrix there, wanted;
    bool          at_once = true;

    m.ld = m.cols;
    for (int i = 0; i < STAGING_BUFFERS; i++)
        memset(story->staging.buffer[i], 0x55, SMALL_BYTES);
    there = room_for(story, m, DTYPE_F32);
    wanted = room_for(story, m, DTYPE_F32);
    for (int64_t i = 0; i < count; i++)
        ((float *)m.data)[i] = ((float *)wanted.data)[i] =
            (float)random_between(&story->random, 1, 99);
    assert_int_equal(cuda_upload(&story->staging, story->stream, there, m), 0);
    memset(m.data, 0xff, (size_t)count * sizeof(float)); /* it may be reused */
    assert_int_equal(cuda_download(&story->staging, story->stream, m, there), 0);
    assert_memory_equal(m.data, wanted.data, (size_t)count * sizeof(float));
    for (int i = 0; i < STAGING_BUFFERS * SMALL_BYTES; i++)
        at_once &= ((const char *)story->staging.buffer[i / SMALL_BYTES])[i % SMALL_BYTES] == 0x55;
    free(there.data);
    free(wanted.data);
    return at_once;
}

/* What lies there in part only, or where it could not be pinned, goes through buffers. */
static void what_is_pinned_already_needs_no_buffer(void **state)
{
    enum { PAGE = 4096, FLOATS = PAGE / 4 };

    (void)state;
    for (int may = 0; may < 2; may++) {
        struct story story;
        char        *pages = aligned_alloc(PAGE, 3 * PAGE), *page = pages + PAGE;

        assert_non_null(pages);
        story_open(&story, 300);
        pins_left = may;
        cuda_staging_exchange(&story.staging, page, PAGE);
        pins_left = INT_MAX;
        assert_int_equal(passes_at_once(&story, page, 0, FLOATS), may);
        assert_int_equal(passes_at_once(&story, page, PAGE - 4, 1), may);
        assert_int_equal(passes_at_once(&story, page, 8, FLOATS - 2), may);
        assert_false(passes_at_once(&story, page, 4, FLOATS));
        assert_false(passes_at_once(&story, page, -4, FLOATS));
        assert_false(passes_at_once(&story, page, -PAGE, FLOATS));
        assert_false(passes_at_once(&story, page, PAGE, FLOATS));
        story_close(&story);
        free(pages);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_copy_arrives),
        cmocka_unit_test(a_cut_file_is_told),
        cmocka_unit_test(every_call_may_fail),
        cmocka_unit_test(what_is_pinned_already_needs_no_buffer),
    };
    return cmocka_run_group_tests_name("copy_cuda", tests, NULL, NULL);
}
