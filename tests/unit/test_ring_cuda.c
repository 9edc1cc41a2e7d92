/*
 * test_ring_cuda.c - the ring of visiting weights on a runtime made of threads: no GPU is needed,
 * and every order of events that a GPU could bring may come.
 *
 * A use looks at its parcel's bytes when it begins and again when it ends: a copy that came too
 * late or too early shows.
 */
#include "../test.h"

#include <errno.h>
#include <limits.h>
#include <sys/mman.h>

#include "memory/memory.h"

#include "made_cuda.h"

#define vmem_cuda     vmem_host
#define ring_open     made_ring_open
#define ring_close    made_ring_close
#define ring_holds    made_ring_holds
#define ring_settle   made_ring_settle
#define ring_copy     made_ring_copy
#define ring_arrive   made_ring_arrive
#define ring_depart   made_ring_depart
#define ring_wait     made_ring_wait
#define windows_open  made_windows_open
#define windows_close made_windows_close
#define windows_order made_windows_order
#define windows_await made_windows_await
#include "../../src/backend/cuda_ring.c"
#include "../../src/backend/cuda_windows.c"

/* --------------------------------------------------------------------------------------- tests */

enum { STEPS = 5, MOST = 7, EACH = 50000, LONGEST = EACH + MOST * 4096, WINDOW = 65536 };

static int visit_us;
/* A file with every parcel's values, mapped, and one that processes share; 0: no sharing. */
static const float *mapped_values;
static int          shared_fd;

struct story {
    struct ring        *ring;
    struct parcels     *parcels;
    struct backend_link link;
    cudaStream_t        stream;
    float              *source[MOST];
    struct matrix       slot[MOST];
    int                 bad;
};

/* Not one of the calls that may fail. */
static cudaStream_t new_stream(void)
{
    const int    left = __atomic_exchange_n(&calls_left, INT_MAX, __ATOMIC_RELAXED);
    cudaStream_t stream = NULL;

    (void)cudaStreamCreateWithFlags(&stream, 0);
    __atomic_store_n(&calls_left, left, __ATOMIC_RELAXED);
    return stream;
}

static float value_of(uint32_t p, int64_t i)
{
    return (float)(p * 10000 + i % 4096);
}

/* 0, or what failed; to be closed in any case. */
static int story_try(struct story *story, uint32_t count, uint64_t pinned_bytes, int pins)
{
    struct err             err = {0};
    int                    status = 0;
    struct backend_options options = {
        .pinned_bytes = pinned_bytes, .parcels = {.count = count}, .shared_fd = shared_fd};

    *story = (struct story){.stream = new_stream()};
    pins_left = pins;
    for (uint32_t p = 0; p < count; p++)
        options.parcels.bytes[p] = (EACH + p * 4096) * sizeof(float);
    must(story->stream != NULL);
    ASSERT_OK(parcels_open(&story->parcels, &err));
    if (ring_open(&story->ring, story->parcels, &options, &err) != ERR_OK) return err.sys;
    story->ring->track.window_bytes = WINDOW;
    for (uint32_t p = 0; p < count && status == 0; p++) {
        int64_t n = (int64_t)(options.parcels.bytes[p] / sizeof(float));
        story->source[p] = calloc((size_t)n, sizeof(float));
        assert_non_null(story->source[p]);
        for (int64_t i = 0; i < n; i++)
            story->source[p][i] = value_of(p, i);
        const float *source = story->source[p];
        if (shared_fd > 0) source = mapped_values + p * LONGEST;
        story->parcels->open = true;
        story->slot[p] =
            parcels_add(story->parcels,
                        (struct matrix){(void *)(uintptr_t)source, DTYPE_F32, 1, n, n}, DTYPE_F32);
        story->parcels->open = false;
        story->parcels->sizes.count++;
        status = ring_settle(story->ring, p);
    }
    if (status == 0) status = ring_wait(story->ring, &story->link);
    if (status != 0) (void)cudaGetLastError(); /* as backend_wait does */
    return status;
}

/* Kernels ask what failed last: nothing that was got over may be left for them. */
static void story_open(struct story *story, uint32_t count, uint64_t pinned_bytes, int pins)
{
    assert_int_equal(story_try(story, count, pinned_bytes, pins), 0);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
}

static int visit(struct story *story, uint32_t p)
{
    struct use use = {.values = story->slot[p].data,
                      .count = story->slot[p].cols,
                      .first = (float)(p * 10000),
                      .bad = &story->bad};
    int        status = ring_arrive(story->ring, p, story->stream);

    for (int tile = 0; tile < 2 && !status; tile++)
        (void)push(story->stream, (struct job){.kind = KIND_USE, .use = use});
    if (visit_us > 0) (void)usleep((useconds_t)visit_us);
    return status ? status : ring_depart(story->ring, p, story->stream);
}

/* All parcels, in their order or jumping about; ends as backend_wait does: 0, or the first failure.
 */
static int step(struct story *story, bool in_order)
{
    uint32_t count = story->parcels->sizes.count;
    int      status = 0, late, told_last;

    for (uint32_t p = 0; p < count && !status; p++)
        status = visit(story, in_order ? p : (3 * p + 1) % count);
    (void)cudaStreamSynchronize(story->stream);
    late = ring_wait(story->ring, &story->link);
    told_last = cudaGetLastError();
    if (status == 0 && late == 0) assert_int_equal(told_last, cudaSuccess);
    if (status != 0) assert_int_equal(late, 0); /* not twice */
    return status != 0 ? status : late;
}

/* Copies may be under way when this begins. */
static void story_close(struct story *story)
{
    ring_close(story->ring);
    (void)cudaStreamDestroy(story->stream);
    parcels_close(story->parcels);
    for (int p = 0; p < MOST; p++)
        free(story->source[p]);
    assert_int_equal(story->bad, 0);
    (void)cudaGetLastError();
    for (int i = 0; i < PINNED_MAX; i++)
        assert_null(pinned[i].memory);
}

/* All pinned; none; as far as the budget goes; as far as the host gives it. */
static const struct tier {
    uint64_t pinned_bytes;
    int      pins;
} tiers[] = {{UINT64_MAX, INT_MAX}, {0, INT_MAX}, {700000, INT_MAX}, {UINT64_MAX, 2}};

/* Neither slow, then copies, then uses. */
static void set_speed(int speed)
{
    copy_us = speed == 1 ? 1000 : 0;
    use_us = speed == 2 ? 1000 : 0;
}

static void every_use_finds_its_parcel(void **state)
{
    (void)state;
    for (uint32_t count = 1; count <= MOST; count++)
        for (size_t t = 0; t < ARRAY_COUNT(tiers); t++)
            for (int speed = 0; speed < 3; speed++) {
                struct story story;
                set_speed(speed);
                story_open(&story, count, tiers[t].pinned_bytes, tiers[t].pins);
                for (int i = 0; i < STEPS; i++)
                    assert_int_equal(step(&story, i != 3), 0);
                story_close(&story);
            }
}

/* What has a slot to itself travels once. */
static void few_parcels_stay(void **state)
{
    (void)state;
    for (uint32_t count = 1; count <= 3; count++) {
        struct story story;
        story_open(&story, count, UINT64_MAX, INT_MAX);
        for (int i = 0; i < STEPS; i++)
            assert_int_equal(step(&story, true), 0);
        const uint64_t *bytes = story.parcels->sizes.bytes;
        uint64_t        first = bytes[0] + bytes[1]; /* [1] is 0 when there is but one */
        /* The first and the third share a slot, the second has one. */
        assert_int_equal(story.link.bytes,
                         count < 3 ? first : first + STEPS * (bytes[0] + bytes[2]));
        story_close(&story);
    }
}

static int reads_left = INT_MAX;
static int (*read_whole)(void *target, const void *source, size_t bytes);

static int read_that_ends(void *target, const void *source, size_t bytes)
{
    if (__atomic_fetch_sub(&reads_left, 1, __ATOMIC_RELAXED) <= 0) {
        (void)usleep(2000); /* a disk takes its time to fail */
        return EIO;
    }
    return read_whole(target, source, bytes);
}

/* Each read of two steps in turn.  What is read ahead for a step fails that step. */
static void a_read_that_fails_is_told_once(void **state)
{
    (void)state;
    read_whole = os.map_read;
    os.map_read = read_that_ends;
    for (int n = 0; n < 40; n++) {
        struct story story;
        int          failed = 0;
        set_speed(n % 3);
        visit_us = n % 4 == 1 ? 5000 : 0; /* the reader may fail before the next order comes */
        story_open(&story, 5, n % 2 == 0 ? 0 : 500000, INT_MAX);
        __atomic_store_n(&reads_left, n, __ATOMIC_RELAXED);
        for (int i = 0; i < 2 && failed == 0; i++)
            failed = step(&story, true);
        __atomic_store_n(&reads_left, INT_MAX, __ATOMIC_RELAXED);
        if (failed != 0) assert_int_equal(failed, STATUS_READ + EIO);
        /* Two steps read more than these; then all is well again. */
        if (n < 20) assert_int_not_equal(failed, 0);
        if (failed == 0) (void)step(&story, true);
        assert_int_equal(step(&story, true), 0);
        assert_int_equal(step(&story, true), 0);
        story_close(&story);
    }
    os.map_read = read_whole;
    visit_us = 0;
}

/* What one ring has read, the next finds, whatever it may pin for itself; a driver that pins no
 * shared memory, or a table that cannot be true, costs the sharing and nothing else. */
static void rings_share_what_they_pin(void **state)
{
    static const struct {
        uint64_t pinned_bytes;
        int      pins;
        bool     spoiled;
        uint64_t found;                      /* parcels */
    } rows[] = {{600000, INT_MAX, false, 0}, /* the first two */
                {UINT64_MAX, INT_MAX, false, 2}, {UINT64_MAX, INT_MAX, false, MOST},
                {0, INT_MAX, false, MOST},       {UINT64_MAX, 0, false, 0},
                {UINT64_MAX, 3, false, 3},       {UINT64_MAX, INT_MAX, true, 0}};
    char          path[200], scratch[160];
    struct os_map map;
    struct err    err = {0};
    int           fd = -1;

    (void)state;
    scratch_make(scratch, sizeof scratch);
    (void)snprintf(path, sizeof path, "%s/weights", scratch);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (uint32_t p = 0; p < MOST; p++)
        for (int64_t i = 0; i < LONGEST; i++) {
            float value = value_of(p, i);
            assert_int_equal(fwrite(&value, sizeof value, 1, file), 1);
        }
    assert_int_equal(fclose(file), 0);
    ASSERT_OK(os_map_open(&map, path, &err));
    mapped_values = (const float *)(const void *)map.data;
    shared_fd = memfd_create("mural-test", MFD_CLOEXEC);
    fd = shared_fd;
    assert_int_equal(ftruncate(fd, (off_t)1 << 40), 0);
    set_speed(0);
    for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
        struct story story;
        if (rows[r].spoiled) assert_int_equal(pwrite(fd, &(uint32_t){9999}, 4, 0), 4);
        story_open(&story, MOST, rows[r].pinned_bytes, rows[r].pins);
        for (int i = 0; i < STEPS; i++)
            assert_int_equal(step(&story, i != 3), 0);
        uint64_t found = 0;
        for (uint32_t p = 0; p < rows[r].found; p++)
            found += story.parcels->sizes.bytes[p];
        if (story.ring->found_bytes != found) fail_msg("row %zu", r);
        story_close(&story);
    }
    (void)close(fd);
    shared_fd = 0;
    os_map_close(&map);
    scratch_remove(scratch);
}

/* From a host that pins nothing to one that pins all: where the windows fit, the rest is found. */
static void any_host_will_do_that_pins_the_windows(void **state)
{
    const int64_t windows = WINDOWS * (int64_t)WINDOW;
    int           refused = 0, all = 0;

    (void)state;
    set_speed(0);
    for (int64_t bytes = 0; all == 0; bytes += WINDOW / 2) {
        struct story story;
        int          status;
        pin_bytes_left = bytes;
        status = story_try(&story, MOST, UINT64_MAX, INT_MAX);
        if (bytes < windows) assert_int_equal(status, STATUS_HOST);
        if (bytes >= windows) assert_int_equal(status, 0);
        if (bytes >= windows) assert_int_equal(cudaGetLastError(), cudaSuccess);
        for (int i = 0; i < 2 && status == 0; i++)
            assert_int_equal(step(&story, i == 0), 0);
        refused += status != 0;
        all += status == 0 && story.ring->windows == NULL;
        story_close(&story);
        assert_int_equal(pin_bytes_left, bytes);
    }
    assert_true(refused > 0);
    pin_bytes_left = INT64_MAX;
}

/* Each call of the runtime in turn, of an opening, of a step with all pinned, and of one with
 * windows.  It is told, nothing is left behind, and where the ring is open all is well afterwards.
 */
static void every_call_may_fail(void **state)
{
    int told_of = 0;

    (void)state;
    for (int tier = 0; tier < 3; tier++)
        for (int n = 1, left = 0; left <= 0; n += n < 250 ? 37 : 2) {
            struct story story;
            int          status;
            set_speed(n % 3);
            __atomic_store_n(&calls_left, n, __ATOMIC_RELAXED);
            status = story_try(&story, 5, tiers[tier].pinned_bytes, tiers[tier].pins);
            for (int i = 0; i < 2 && status == 0; i++)
                status = step(&story, true);
            left = __atomic_exchange_n(&calls_left, INT_MAX, __ATOMIC_RELAXED);
            told_of += status != 0;
            if (left > 0) assert_int_equal(status, 0);
            if (story.ring != NULL && story.ring->started)
                for (int i = 0; i < 3; i++) {
                    status = step(&story, i != 1);
                    if (i > 0) assert_int_equal(status, 0);
                }
            story_close(&story);
        }
    assert_true(told_of > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_use_finds_its_parcel),
                                       cmocka_unit_test(few_parcels_stay),
                                       cmocka_unit_test(rings_share_what_they_pin),
                                       cmocka_unit_test(a_read_that_fails_is_told_once),
                                       cmocka_unit_test(any_host_will_do_that_pins_the_windows),
                                       cmocka_unit_test(every_call_may_fail)};
    return cmocka_run_group_tests_name("ring_cuda", tests, NULL, NULL);
}
