/*
 * test_copy_cuda.c - copies through pinned buffers on a runtime made of threads: no GPU is needed.
 *
 * Buffers are so small that every matrix takes several, or shares one, and copies so slow that a
 * buffer filled too early shows.
 */
#include "../test.h"

#include <errno.h>

#include "made_cuda.h"

#define cuda_staging_open  made_staging_open
#define cuda_staging_pin   made_staging_pin
#define cuda_staging_unpin made_staging_unpin
#define cuda_staging_close made_staging_close
#define cuda_upload        made_upload
#define cuda_download      made_download
#include "../../src/backend/cuda_copy.c"

enum { COPIES = 60, SMALL_BYTES = 2048, FILE_BYTES = 1 << 16, PAGE = 4096 };

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
    memset(&asked, 0, sizeof asked);
    (void)cudaGetLastError();
    pins_left = INT_MAX;
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
    assert_int_equal(asked.unregisters, asked.registers);
    assert_true(pin_bytes_left == INT64_MAX); /* nothing is pinned any more */
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
    enum { FLOATS = PAGE / 4 };

    (void)state;
    for (int may = 0; may < 2; may++) {
        struct story story;
        char        *pages = aligned_alloc(PAGE, 3 * PAGE), *page = pages + PAGE;

        assert_non_null(pages);
        story_open(&story, 300);
        pins_left = may;
        cuda_staging_pin(&story.staging, (struct pinned_range){page, PAGE, false});
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

/* ------------------------------------------------------------- what uploads come from again */

enum { PAGES = 2 * PINNED_RANGES_MAX + 6 };

static void keep_pinned(struct story *story, void *data, uint64_t bytes)
{
    cuda_staging_pin(&story->staging, (struct pinned_range){data, bytes, .quiet = true});
}

/* One copy, from where the floats lie, which nobody waits for; else from a buffer.  They arrive
 * either way. */
static void upload_floats(struct story *story, char *at, int64_t count, bool straight)
{
    struct matrix m = {at, DTYPE_F32, 1, count, count}, there = room_for(story, m, DTYPE_F32);
    const int     copies = asked.copies, waits = asked.waits;

    asked.source = NULL;
    assert_int_equal(cuda_upload(&story->staging, story->stream, there, m), 0);
    assert_int_equal(asked.source == at, straight);
    if (straight) {
        assert_int_equal(asked.copies, copies + 1);
        assert_int_equal(asked.waits, waits);
    }
    (void)cudaStreamSynchronize(story->stream);
    assert_memory_equal(there.data, at, (size_t)count * sizeof(float));
    free(there.data);
}

/* Pages of numbers; freed by the caller. */
static char *pages_of(struct story *story, size_t count)
{
    char *pages = aligned_alloc(PAGE, count * PAGE);

    assert_non_null(pages);
    for (size_t i = 0; i < count * PAGE; i++)
        pages[i] = (char)(random_u64(&story->random) & 0x3f);
    return pages;
}

static void a_range_has_edges(void **state)
{
    enum { FLOATS = 2 * PAGE / 4 };
    struct story story;
    char        *pages, *range;

    (void)state;
    story_open(&story, 100);
    pages = pages_of(&story, 5);
    range = pages + PAGE;
    keep_pinned(&story, range, 2 * PAGE);
    keep_pinned(&story, range + 2 * PAGE, PAGE); /* a neighbour is another */
    keep_pinned(&story, pages, 0);
    for (int pinned_now = 1; pinned_now >= 0; pinned_now--) {
        upload_floats(&story, range, FLOATS, pinned_now);
        upload_floats(&story, range, 1, pinned_now);
        upload_floats(&story, range + 2 * PAGE - 4, 1, pinned_now);
        upload_floats(&story, range + 4, FLOATS - 1, pinned_now);
        upload_floats(&story, range - 4, 2, false);
        upload_floats(&story, range - 4, FLOATS + 1, false);
        upload_floats(&story, range + 2 * PAGE - 4, 2, false);
        upload_floats(&story, range, FLOATS + 1, false);
        upload_floats(&story, range + 2 * PAGE, PAGE / 4, true);
        upload_floats(&story, range + 3 * PAGE, 1, false);
        upload_floats(&story, pages, PAGE / 4, false);
        cuda_staging_unpin(&story.staging, story.stream, range);
    }
    assert_int_equal(asked.registers, 2);
    assert_int_equal(asked.unregisters, 1);
    story_close(&story);
    free(pages);
}

/* Other types are changed on the host, pinned or not. */
static void what_is_cast_needs_a_buffer(void **state)
{
    struct story  story;
    struct matrix m = {NULL, DTYPE_F32, 4, 200, 200}, there;

    (void)state;
    story_open(&story, 0);
    m.data = pages_of(&story, 1);
    keep_pinned(&story, m.data, PAGE);
    there = room_for(&story, m, DTYPE_BF16);
    assert_int_equal(cuda_upload(&story.staging, story.stream, there, m), 0);
    assert_ptr_not_equal(asked.source, m.data);
    (void)cudaStreamSynchronize(story.stream);
    check(there, m);
    story_close(&story);
    free(there.data);
    free(m.data);
}

/* What is unpinned may be overwritten at once, though copies from there were under way. */
static void unpinning_waits_for_copies(void **state)
{
    struct story  story;
    struct matrix m = {NULL, DTYPE_F32, 1, PAGE / 4, PAGE / 4}, there[8];
    char         *wanted;

    (void)state;
    story_open(&story, 2000);
    m.data = pages_of(&story, 1);
    wanted = malloc(PAGE);
    assert_non_null(wanted);
    memcpy(wanted, m.data, PAGE);
    keep_pinned(&story, m.data, PAGE);
    for (size_t i = 0; i < ARRAY_COUNT(there); i++) {
        there[i] = room_for(&story, m, DTYPE_F32);
        assert_int_equal(cuda_upload(&story.staging, story.stream, there[i], m), 0);
    }
    assert_int_equal(asked.waits, 0);
    cuda_staging_unpin(&story.staging, story.stream, m.data);
    memset(m.data, 0xff, PAGE);
    (void)cudaStreamSynchronize(story.stream);
    for (size_t i = 0; i < ARRAY_COUNT(there); i++) {
        assert_memory_equal(there[i].data, wanted, PAGE);
        free(there[i].data);
    }
    story_close(&story);
    free(m.data);
    free(wanted);
}

/* Which pages are pinned, as they should be. */
struct shelf {
    char *pages;
    bool  pinned[PAGES];
    int   count;
};

/* Pins, unless there are too many, there is no memory for it, or it is pinned. */
static void pin_any(struct story *story, struct shelf *shelf)
{
    const int64_t at = random_between(&story->random, 0, PAGES - 1);
    const int     refused = random_between(&story->random, 0, 3) == 0, before = asked.registers;
    const bool    can = !shelf->pinned[at] && !refused && shelf->count < PINNED_RANGES_MAX;

    if (refused) pins_left = 0;
    keep_pinned(story, shelf->pages + at * PAGE, PAGE);
    pins_left = INT_MAX;
    assert_int_equal(asked.registers, before + can);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    shelf->pinned[at] |= can;
    shelf->count += can;
}

static void unpin_any(struct story *story, struct shelf *shelf)
{
    const int64_t at = random_between(&story->random, 0, PAGES - 1);
    const int     before = asked.unregisters;

    cuda_staging_unpin(&story->staging, story->stream, shelf->pages + at * PAGE);
    assert_int_equal(asked.unregisters, before + shelf->pinned[at]);
    shelf->count -= shelf->pinned[at];
    shelf->pinned[at] = false;
}

/* And the staging is closed with whatever is left. */
static void any_ranges_come_and_go(void **state)
{
    int full = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct story story;
        struct shelf shelf = {.count = 0};

        story_open(&story, 0);
        story.random = seed;
        shelf.pages = pages_of(&story, PAGES);
        for (int turn = 0; turn < 300; turn++) {
            const int64_t what = random_between(&story.random, 0, 9);
            const int64_t at = random_between(&story.random, 0, PAGES - 1);
            const int64_t count = random_between(&story.random, 1, PAGE / 4);

            if (what < 5) pin_any(&story, &shelf);
            if (what == 5) unpin_any(&story, &shelf);
            upload_floats(&story, shelf.pages + (at + 1) * PAGE - 4 * count, count,
                          shelf.pinned[at]);
            full += shelf.count == PINNED_RANGES_MAX;
        }
        story_close(&story);
        free(shelf.pages);
    }
    assert_true(full > 20);
}

/* Where a call fails the operation does, or what cannot be pinned goes through a buffer. */
static void every_call_for_a_range_may_fail(void **state)
{
    int failed = 0;

    (void)state;
    for (int n = 1, left = 0; left <= 0; n++) {
        struct story  story;
        struct matrix m = {NULL, DTYPE_F32, 1, PAGE / 4, PAGE / 4}, there;
        int           status;

        story_open(&story, 0);
        m.data = pages_of(&story, 1);
        there = room_for(&story, m, DTYPE_F32);
        __atomic_store_n(&calls_left, n, __ATOMIC_RELAXED);
        keep_pinned(&story, m.data, PAGE);
        assert_int_equal(cudaGetLastError(), cudaSuccess);
        status = cuda_upload(&story.staging, story.stream, there, m);
        cuda_staging_unpin(&story.staging, story.stream, m.data);
        left = __atomic_exchange_n(&calls_left, INT_MAX, __ATOMIC_RELAXED);
        failed += status != 0;
        if (status != 0) assert_int_equal(cuda_upload(&story.staging, story.stream, there, m), 0);
        (void)cudaStreamSynchronize(story.stream);
        assert_memory_equal(there.data, m.data, PAGE);
        story_close(&story);
        free(there.data);
        free(m.data);
    }
    assert_int_equal(failed, 1); /* the copy; the pin before it may fail, and is done without */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_copy_arrives),
        cmocka_unit_test(a_cut_file_is_told),
        cmocka_unit_test(every_call_may_fail),
        cmocka_unit_test(what_is_pinned_already_needs_no_buffer),
        cmocka_unit_test(a_range_has_edges),
        cmocka_unit_test(what_is_cast_needs_a_buffer),
        cmocka_unit_test(unpinning_waits_for_copies),
        cmocka_unit_test(any_ranges_come_and_go),
        cmocka_unit_test(every_call_for_a_range_may_fail),
    };
    return cmocka_run_group_tests_name("copy_cuda", tests, NULL, NULL);
}
