/* test_base.c - errors, text, files with failures on purpose, JSON. */
#include "../test.h"

#include <errno.h>
#include <fcntl.h>

static int raise_one(struct err *err)
{
    int rc = ERR_OK;
    RAISE(err, ERR_FORMAT, 7, "tensor %d is wrong", 3);
out:
    return rc;
}

static void errors_keep_sentence_and_place(void **state)
{
    struct err err = {0};

    (void)state;
    assert_int_equal(raise_one(&err), ERR_FORMAT);
    assert_int_equal(err.sys, 7);
    assert_string_equal(err.text, "tensor 3 is wrong");
    assert_non_null(strstr(err.where, "test_base.c:"));
    err_context(&err, "shard '%s'", "a");
    assert_string_equal(err.text, "shard 'a': tensor 3 is wrong");
    for (int i = 0; i < 200; i++)
        err_context(&err, "deeper");
    assert_true(strlen(err.text) < sizeof err.text);
    assert_string_equal(err_name(ERR_HOST_MEM), "host memory");
    assert_string_equal(err_name((enum err_code)99), "unknown");
}

static void checked_arithmetic_reports_overflow(void **state)
{
    uint64_t out = 5;

    (void)state;
    assert_true(mul_u64(UINT32_MAX, UINT32_MAX, &out));
    assert_false(mul_u64(UINT64_MAX, 2, &out));
    assert_false(add_u64(UINT64_MAX, 1, &out));
    assert_int_equal(out, (uint64_t)UINT32_MAX * UINT32_MAX);
    assert_int_equal(round_up_i64(17, 16), 32);
    assert_int_equal(round_up_i64(32, 16), 32);
}

static void utf8_is_judged_as_the_standard_says(void **state)
{
    static const struct {
        const char *text;
        size_t      valid;
    } cases[] = {
        {"plain", 5},        {"caf\xC3\xA9", 5},        {"\xF0\x9F\x90\xB1", 4},
        {"a\x80", 1},        {"\xC0\xAF", 0},           {"\xE0\x80\x80", 0},
        {"\xED\xA0\x80", 0}, {"ok\xF4\x90\x80\x80", 2}, {"\xF5\x80\x80\x80", 0},
        {"\xE2\x82", 0},     {"\xF4\x8F\xBF\xBF", 4},   {"", 0},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        assert_int_equal(text_utf8_valid_prefix(cases[i].text, strlen(cases[i].text)),
                         cases[i].valid);
}

static void words_and_bytes_read_well(void **state)
{
    char out[32];

    (void)state;
    assert_int_equal(text_distance("promt", "prompt"), 1);
    assert_int_equal(text_distance("", "abc"), 3);
    assert_int_equal(text_distance("same", "same"), 0);
    assert_string_equal(text_bytes(out, sizeof out, 0), "0 B");
    assert_string_equal(text_bytes(out, sizeof out, 999), "999 B");
    assert_string_equal(text_bytes(out, sizeof out, 1500), "1.5 kB");
    assert_string_equal(text_bytes(out, sizeof out, 22300000000u), "22.3 GB");
    assert_string_equal(text_bytes(out, sizeof out, 999999999u), "1.0 GB");
}

static int     writes_left;
static int64_t scarce_pwrite(int fd, const void *buffer, size_t bytes, int64_t offset)
{
    if (writes_left-- > 0) return pwrite(fd, buffer, bytes > 3 ? 3 : bytes, (off_t)offset);
    errno = ENOSPC;
    return -1;
}

static void short_writes_go_on_and_full_disks_are_told(void **state)
{
    char       folder[256], path[300], *text = NULL;
    size_t     bytes = 0;
    int        fd = -1;
    struct err err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/file", folder);
    ASSERT_OK(os_open_write(&fd, path, &err));
    os.pwrite = scarce_pwrite;
    writes_left = 4;
    int done = os_write_at(fd, 0, "0123456789", 10, path, &err);
    writes_left = 2;
    int full = os_write_at(fd, 0, "0123456789", 10, path, &err);
    os.pwrite = (int64_t(*)(int, const void *, size_t, int64_t))pwrite;
    assert_int_equal(done, ERR_OK);
    assert_int_equal(full, ERR_IO);
    assert_int_equal(err.sys, ENOSPC);
    assert_non_null(strstr(err.text, "at byte 6"));
    ASSERT_OK(os_close(fd, path, &err));
    ASSERT_OK(os_read_text(&text, &bytes, path, 100, &err));
    assert_int_equal(bytes, 10);
    assert_string_equal(text, "0123456789");
    os_free(text);
    ASSERT_REFUSED(ERR_FORMAT, "has 10 bytes", os_read_text(&text, &bytes, path, 9, &err));
    ASSERT_REFUSED(ERR_IO, "No such file", os_open_read(&fd, "/nowhere/at/all", &err));
    scratch_remove(folder);
}

static void maps_renames_and_folders(void **state)
{
    char          folder[256], from[300], to[300];
    int           fd = -1;
    struct os_map map = {0};
    struct err    err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(from, sizeof from, "%s/a.part", folder);
    (void)snprintf(to, sizeof to, "%s/a", folder);
    ASSERT_OK(os_open_write(&fd, from, &err));
    ASSERT_OK(os_close(fd, from, &err));
    ASSERT_OK(os_map_open(&map, from, &err));
    assert_null(map.data);
    os_map_close(&map);
    ASSERT_OK(os_rename(from, to, &err));
    assert_true(os_is_file(to) && !os_is_file(from) && os_is_dir(folder));
    ASSERT_OK(os_make_dir(folder, &err));
    ASSERT_REFUSED(ERR_IO, "cannot make the folder", os_make_dir(to, &err));
    ASSERT_REFUSED(ERR_IO, "cannot rename", os_rename(from, to, &err));
    ASSERT_REFUSED(ERR_IO, "not a file", os_map_open(&map, folder, &err));
    ASSERT_OK(os_remove(from, &err));
    ASSERT_OK(os_remove(to, &err));
    assert_int_equal(scratch_count(folder), 0);
    scratch_remove(folder);
}

static int failing_fsync_code, fsyncs;
static int failing_fsync(int fd)
{
    (void)fd;
    errno = failing_fsync_code;
    return failing_fsync_code == EINTR && ++fsyncs == 3 ? 0 : -1;
}

/* What a share answers for a folder is no fault of the disk's; of a file nothing is forgiven. */
static void folders_that_cannot_be_synced_are_left_alone(void **state)
{
    char            folder[256], from[300], to[300];
    int             fd = -1;
    struct err      err = {0};
    struct os_calls working = os;

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(from, sizeof from, "%s/a.part", folder);
    (void)snprintf(to, sizeof to, "%s/a", folder);
    ASSERT_OK(os_open_write(&fd, from, &err));
    os.fsync = failing_fsync;
    failing_fsync_code = EINVAL;
    ASSERT_REFUSED(ERR_IO, "to the disk", os_sync(fd, from, &err));
    err = (struct err){0};
    ASSERT_OK(os_rename(from, to, &err));
    assert_int_equal(err.code, ERR_OK);
    failing_fsync_code = EINTR;
    ASSERT_OK(os_sync(fd, to, &err));
    assert_int_equal(fsyncs, 3);
    failing_fsync_code = EIO;
    ASSERT_REFUSED(ERR_IO, "to the disk", os_rename(to, from, &err));
    os = working;
    ASSERT_OK(os_close(fd, from, &err));
    scratch_remove(folder);
}

/* More maps than descriptors are kept for; those at the end are read as memory is. */
static void maps_are_read_without_signals(void **state)
{
    enum { MAPS = 70, PAGE = 4096, BYTES = 3 * PAGE };
    static struct os_map map[MAPS];
    char                 folder[256], path[MAPS][300], out[BYTES], text[BYTES], own[4] = "own";
    struct err           err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    for (int i = 0; i < MAPS; i++) {
        int fd = -1;
        (void)snprintf(path[i], sizeof path[i], "%s/%d", folder, i);
        memset(text, i + 1, sizeof text);
        ASSERT_OK(os_open_write(&fd, path[i], &err));
        ASSERT_OK(os_write_at(fd, 0, text, sizeof text, path[i], &err));
        ASSERT_OK(os_close(fd, path[i], &err));
        ASSERT_OK(os_map_open(&map[i], path[i], &err));
    }
    for (int i = 0; i < MAPS; i++) {
        memset(text, i + 1, sizeof text);
        assert_true(os_map_holds(map[i].data) && os_map_holds(map[i].data + BYTES - 1));
        assert_int_equal(os.map_read(out, map[i].data, BYTES), 0);
        assert_memory_equal(out, text, BYTES);
        assert_int_equal(truncate(path[i], PAGE), 0);
        assert_int_equal(os.map_read(out, map[i].data + 2 * PAGE, PAGE), EFAULT);
        assert_int_equal(os.map_read(out, map[i].data + 5, PAGE - 5), 0);
        assert_int_equal(out[PAGE - 6], i + 1);
    }
    assert_int_equal(os.map_read(out, own, sizeof own), 0);
    assert_string_equal(out, "own");
    assert_false(os_map_holds(own));
    for (int i = 0; i < MAPS; i++) {
        const uint8_t *data = map[i].data;
        os_map_close(&map[i]);
        assert_false(os_map_holds(data));
        assert_int_equal(unlink(path[i]), 0);
    }
    scratch_remove(folder);
}

static void paths_have_folders_and_files_have_many_names(void **state)
{
    char       folder[256], name[300], longer[320], out[8];
    int        fd = -1;
    struct err err = {0};

    (void)state;
    assert_true(os_folder(out, sizeof out, "a.tif"));
    assert_string_equal(out, ".");
    assert_true(os_folder(out, sizeof out, "/a.tif"));
    assert_string_equal(out, "/");
    assert_true(os_folder(out, sizeof out, "1234567/a.tif"));
    assert_string_equal(out, "1234567");
    assert_false(os_folder(out, sizeof out, "12345678/a.tif"));
    assert_false(os_folder(out, 1, "a.tif"));

    scratch_make(folder, sizeof folder);
    (void)snprintf(name, sizeof name, "%s/a", folder);
    (void)snprintf(longer, sizeof longer, "%s/./a", folder);
    assert_false(os_same_file(name, name));
    ASSERT_OK(os_open_write(&fd, name, &err));
    ASSERT_OK(os_close(fd, name, &err));
    assert_true(os_same_file(name, longer));
    assert_false(os_same_file(name, folder));
    assert_false(os_same_file(name, ""));
    scratch_remove(folder);
}

static void json_values_are_checked(void **state)
{
    struct err err = {0};
    json_t *object = json_pack("{s:i, s:s, s:f, s:b, s:n}", "layers", 12, "name", "x", "eps", 0.5,
                               "on", 1, "none");
    struct json_int_rule layers = {"layers", 1, 11, true, 0}, absent = {"depth", 1, 9, false, 4};
    struct json_int_rule name = {"name", 0, 1, true, 0}, missing = {"heads", 0, 1, true, 0};
    int64_t              whole = 0;
    double               number = 0;
    bool                 flag = false;

    (void)state;
    ASSERT_REFUSED(ERR_FORMAT, "layers is 12; it must be 1..11",
                   json_read_int(&whole, object, "f", &layers, &err));
    layers.most = 12;
    ASSERT_OK(json_read_int(&whole, object, "f", &layers, &err));
    assert_int_equal(whole, 12);
    ASSERT_OK(json_read_int(&whole, object, "f", &absent, &err));
    assert_int_equal(whole, 4);
    ASSERT_REFUSED(ERR_FORMAT, "name is a string", json_read_int(&whole, object, "f", &name, &err));
    ASSERT_REFUSED(ERR_FORMAT, "heads is missing",
                   json_read_int(&whole, object, "f", &missing, &err));
    ASSERT_OK(json_read_number(&number, object, "f", "layers", 1, &err));
    ASSERT_OK(json_read_number(&number, object, "f", "none", 1.5, &err));
    assert_true(number == 1.5);
    ASSERT_OK(json_read_bool(&flag, object, "f", "on", false, &err));
    assert_true(flag);
    ASSERT_REFUSED(ERR_FORMAT, "eps is a number",
                   json_read_bool(&flag, object, "f", "eps", true, &err));
    json_decref(object);
}

static void json_files_name_the_place(void **state)
{
    char       folder[256], path[300];
    json_t    *object = NULL;
    struct err err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/c.json", folder);
    scratch_write(path, "{\"a\": 1,\n \"a\": 2}", 17);
    ASSERT_REFUSED(ERR_FORMAT, "line 2", json_file_open(&object, path, 100, &err));
    scratch_remove(folder);
}

static char logged[64];
static void keep_line(enum log_level level, const char *line, void *user)
{
    (void)user;
    (void)snprintf(logged, sizeof logged, "%d %s", (int)level, line);
}

static void log_lines_reach_the_sink_from_a_level_on(void **state)
{
    (void)state;
    log_line(LOG_ERROR, "nobody listens");
    log_install(keep_line, NULL, LOG_INFO);
    log_line(LOG_DEBUG, "too fine");
    assert_string_equal(logged, "");
    log_line(LOG_WARN, "tile %d", 3);
    assert_string_equal(logged, "3 tile 3");
    log_install(NULL, NULL, LOG_DEBUG);
}

static void what_fits_stays_text(void **state)
{
    struct err err = {0};
    char       out[6], *copy = NULL;

    (void)state;
    assert_string_equal(text_fit(out, sizeof out, "seal"), "seal");
    assert_string_equal(text_fit(out, sizeof out, "seals ashore"), "seals");
    assert_string_equal(text_fit(out, sizeof out, "se\xC3\xA9\xC3\xA9n"), "se\xC3\xA9");
    assert_string_equal(text_fit(out, sizeof out, "se\xFFls"), "se");
    ASSERT_OK(text_copy(&copy, "seal", "a word", &err));
    assert_string_equal(copy, "seal");
    os_free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_fits_stays_text),
        cmocka_unit_test(errors_keep_sentence_and_place),
        cmocka_unit_test(checked_arithmetic_reports_overflow),
        cmocka_unit_test(utf8_is_judged_as_the_standard_says),
        cmocka_unit_test(words_and_bytes_read_well),
        cmocka_unit_test(short_writes_go_on_and_full_disks_are_told),
        cmocka_unit_test(maps_renames_and_folders),
        cmocka_unit_test(folders_that_cannot_be_synced_are_left_alone),
        cmocka_unit_test(maps_are_read_without_signals),
        cmocka_unit_test(paths_have_folders_and_files_have_many_names),
        cmocka_unit_test(json_values_are_checked),
        cmocka_unit_test(json_files_name_the_place),
        cmocka_unit_test(log_lines_reach_the_sink_from_a_level_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
