/* test_backend.c - counting, dry runs and the first failure that is kept. */
#include "../test.h"

#include "backend/backend_int.h"

#include <errno.h>

static struct backend_options options(void)
{
    return (struct backend_options){.compute = DTYPE_F32,
                                    .threads = 1,
                                    .conv_weight_elements_max = 1000,
                                    .arena_limit_bytes = 16u << 20};
}

static void dry_counts_what_the_real_one_counts(void **state)
{
    struct backend_options with = options();
    struct backend        *machines[2] = {0};
    struct err             err = {0};

    (void)state;
    ASSERT_OK(backend_open_dry(&machines[0], &with, &err));
    ASSERT_OK(backend_open(&machines[1], &with, &err));
    for (int i = 0; i < 2; i++) {
        struct backend *machine = machines[i];
        struct matrix   x = backend_take(machine, DTYPE_F32, 5, 8, "x");
        struct matrix   w = backend_take(machine, DTYPE_F32, 6, 8, "w");
        struct matrix   y = backend_take(machine, DTYPE_F32, 5, 6, "y");
        if (i == 1) {
            memset(x.data, 0, 5 * 8 * 4);
            memset(w.data, 0, 6 * 8 * 4);
        }
        backend_linear(machine, y, x, w, NULL, ACT_NONE);
        ASSERT_OK(backend_wait(machine, &err));
        assert_true(backend_flops(machine) == 2.0 * 5 * 8 * 6);
    }
    assert_int_equal(arena_bytes_peak(backend_arena(machines[0])),
                     arena_bytes_peak(backend_arena(machines[1])));
    assert_int_equal(backend_fixed_bytes(machines[0]), backend_fixed_bytes(machines[1]));
    backend_close(machines[0]);
    backend_close(machines[1]);
    backend_close(NULL);
}

static void views_address_rows_and_columns(void **state)
{
    float         numbers[12];
    struct matrix m = {.data = numbers, .dtype = DTYPE_F32, .rows = 3, .cols = 4, .ld = 4};
    struct matrix row = matrix_rows(m, 1, 2), col = matrix_cols(row, 3, 1);

    (void)state;
    assert_ptr_equal(row.data, numbers + 4);
    assert_ptr_equal(col.data, numbers + 7);
    assert_int_equal(col.ld, 4);
    assert_int_equal(row.rows, 2);
    assert_int_equal(col.cols, 1);
}

/* From memory that is to be pinned too, where nobody can or need pin it. */
static void numbers_survive_upload_and_download(void **state)
{
    const enum machine all[] = {MACHINE_CPU, MACHINE_WALLED};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(all); i++) {
        struct backend_options with = options();
        struct backend        *machine = NULL;
        struct err             err = {0};
        float                  source[6] = {0, 1, -2, 0.5f, 65504, 1e-3f}, target[6] = {0};

        with.machine = all[i];
        ASSERT_OK(backend_open(&machine, &with, &err));
        struct matrix m = backend_take(machine, DTYPE_F32, 2, 3, "m");
        backend_pin(machine, source, sizeof source);
        backend_upload(machine, m, source);
        backend_download(machine, target, m);
        ASSERT_OK(backend_wait(machine, &err));
        assert_memory_equal(source, target, sizeof source);
        backend_unpin(machine, source);
        backend_unpin(machine, target);
        backend_close(machine);
        ASSERT_OK(backend_open_dry(&machine, &with, &err));
        backend_pin(machine, source, sizeof source);
        backend_unpin(machine, source);
        backend_close(machine);
    }
}

static int late_status;

static int fail_late(struct backend *backend)
{
    (void)backend;
    return late_status;
}

static bool is_two(int status)
{
    return status == 2;
}

/* Whose memory is short decides what is done about it: the ladder gives up the GPU's only. */
static void each_status_has_its_code(void **state)
{
    static const struct {
        int           status;
        enum err_code code;
        const char   *words;
    } rows[] = {{STATUS_READ + EIO, ERR_IO, "cannot be read any more"},
                {STATUS_HOST, ERR_HOST_MEM, "the host has none left"},
                {2, ERR_DEVICE_MEM, "failed with status 2"},
                {7, ERR_DEVICE, "failed with status 7"}};
    const struct backend_ops ops = {.wait = fail_late, .lacks_memory = is_two};
    struct backend           backend = {.ops = &ops};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct err err = {0};
        late_status = rows[i].status;
        ASSERT_REFUSED(rows[i].code, rows[i].words, backend_wait(&backend, &err));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dry_counts_what_the_real_one_counts),
        cmocka_unit_test(views_address_rows_and_columns),
        cmocka_unit_test(numbers_survive_upload_and_download),
        cmocka_unit_test(each_status_has_its_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
