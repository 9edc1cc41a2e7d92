/*
 * test_host_read.c - what is read on the way to a machine is what a cast of the whole would be, in
 * whatever pieces, from files and from other memory; and a file that was cut is told.
 */
#include "../test.h"

#include <errno.h>

#include "backend/host_read.h"

enum { ROWS = 301, COLS = 997, LD = 1003 }; /* more than one thread's share, and no round number */

static const enum dtype sources[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_F8_E4M3,
                                     DTYPE_F8_E5M2};
static const enum dtype targets[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

struct source {
    char          folder[256], path[300];
    struct os_map map;
};

/* Whole numbers of each type, behind a header of odd length, as in files of weights. */
static void source_open(struct source *out, uint64_t bytes)
{
    struct err err = {0};
    int        fd = -1;
    uint64_t   state = 7;
    char      *data = malloc(bytes);

    assert_non_null(data);
    for (uint64_t i = 0; i < bytes; i++)
        data[i] = (char)(random_u64(&state) & 0x3f); /* no NaN in any type */
    scratch_make(out->folder, sizeof out->folder);
    (void)snprintf(out->path, sizeof out->path, "%s/weights", out->folder);
    ASSERT_OK(os_open_write(&fd, out->path, &err));
    ASSERT_OK(os_write_at(fd, 0, data, bytes, out->path, &err));
    ASSERT_OK(os_close(fd, out->path, &err));
    ASSERT_OK(os_map_open(&out->map, out->path, &err));
    free(data);
}

static void source_close(struct source *source)
{
    os_map_close(&source->map);
    scratch_remove(source->folder);
}

/* What k_cast_cpu makes of a copy. */
static void *cast_whole(struct matrix m, enum dtype dtype)
{
    struct matrix target = {.dtype = dtype, .rows = m.rows, .cols = m.cols, .ld = m.cols};

    target.data = malloc((size_t)(m.rows * m.cols) * dtype_bytes(dtype));
    assert_non_null(target.data);
    k_cast_cpu(target, m);
    return target.data;
}

static void check_matrix(struct matrix m, enum dtype dtype, uint64_t *state)
{
    const int64_t all = m.rows * m.cols, each = dtype_bytes(dtype);
    char         *wanted = cast_whole(m, dtype), *got = malloc((size_t)(all * each));

    assert_non_null(got);
    for (uint32_t threads = 0; threads <= 3; threads++) {
        memset(got, 0xee, (size_t)(all * each));
        assert_int_equal(host_read(m, dtype, got, threads), 0);
        assert_memory_equal(got, wanted, (size_t)(all * each));
    }
    for (int i = 0; i < 20; i++) {
        int64_t first = random_between(state, 0, all),
                count = random_between(state, 0, all - first);
        memset(got, 0xee, (size_t)(all * each));
        assert_int_equal(host_read_range(m, first, count, dtype, got), 0);
        assert_memory_equal(got, wanted + first * each, (size_t)(count * each));
        if (count < all) assert_int_equal(got[count * each], (char)0xee);
    }
    free(wanted);
    free(got);
}

static void any_piece_is_as_cast_whole(void **state)
{
    struct source source;
    uint64_t      random = 3;

    (void)state;
    source_open(&source, 8 + 4 * ROWS * LD);
    for (size_t s = 0; s < ARRAY_COUNT(sources); s++)
        for (size_t t = 0; t < ARRAY_COUNT(targets); t++) {
            struct matrix m = {(void *)(uintptr_t)(source.map.data + 5), sources[s], ROWS, COLS,
                               LD};
            check_matrix(m, targets[t], &random);
            m.ld = COLS;
            check_matrix(m, targets[t], &random);
            m.rows = 1;
            check_matrix(m, targets[t], &random);
            m.data = cast_whole(m, DTYPE_F32); /* not a file */
            m.dtype = DTYPE_F32;
            check_matrix(m, targets[t], &random);
            free(m.data);
        }
    source_close(&source);
}

/* Every length of what is left: what is there is read, what is not is no signal. */
static void a_cut_file_is_told(void **state)
{
    struct source source;
    char          out[64];
    struct matrix m = {.dtype = DTYPE_BF16, .rows = 1, .cols = 32, .ld = 32};

    (void)state;
    source_open(&source, 64);
    m.data = (void *)(uintptr_t)source.map.data;
    assert_int_equal(host_read(m, DTYPE_BF16, out, 1), 0);
    for (int left = 63; left >= 0; left--) {
        assert_int_equal(truncate(source.path, left), 0);
        assert_int_equal(host_read(m, DTYPE_BF16, out, 1), EFAULT);
        assert_int_equal(host_read(m, DTYPE_F32, (float[32]){0}, 1), EFAULT);
        assert_int_equal(host_read_range(m, 0, left / 2, DTYPE_BF16, out), 0);
    }
    source_close(&source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_piece_is_as_cast_whole),
        cmocka_unit_test(a_cut_file_is_told),
    };
    return cmocka_run_group_tests_name("host_read", tests, NULL, NULL);
}
