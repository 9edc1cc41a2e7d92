/*
 * test_choices.c - what is kept between starts is found again as it was, or not at all, whatever
 * becomes of the file.
 */
#include "../test.h"

#include "backend/choices.h"

#include <errno.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char folder[256], file[320];

static int begin(void **state)
{
    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(file, sizeof file, "%s/mural/choices", folder);
    return setenv("XDG_CACHE_HOME", folder, 1);
}

static int end(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

/* A choice tells whose it is. */
static uint64_t choice_of(uint64_t key)
{
    return hash64(&key, sizeof key, 5);
}

static void keep(uint64_t key)
{
    choices_keep(key, choice_of(key));
}

/* Found as it was kept, or not found; never otherwise. */
static bool is_kept(uint64_t key)
{
    uint64_t choice = 99;

    if (choices_find(&choice, key)) {
        assert_int_equal(choice, choice_of(key));
        return true;
    }
    assert_int_equal(choice, 99);
    return false;
}

static uint64_t file_bytes(void)
{
    struct stat about;

    return stat(file, &about) == 0 ? (uint64_t)about.st_size : 0;
}

/* ----------------------------------------------------------------------------- in good order */

static void what_was_kept_is_found(void **state)
{
    (void)state;
    assert_false(is_kept(7));
    assert_int_equal(scratch_count(folder), 0); /* to ask makes nothing */
    keep(7);
    keep(0);
    keep(7 + ((uint64_t)1 << 40));
    assert_true(is_kept(7) && is_kept(0) && is_kept(7 + ((uint64_t)1 << 40)));
    assert_false(is_kept(8));
    for (uint64_t i = 0, choice; i < 20; i++) { /* the last one counts */
        choices_keep(7 + 2048, i);
        assert_true(choices_find(&choice, 7 + 2048));
        assert_int_equal(choice, i);
    }
}

static uint64_t keep_400(uint64_t *random)
{
    uint64_t keys[400], found = 0;

    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        keep(keys[i] = random_u64(random));
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        found += is_kept(keys[i]);
    return found;
}

/* As many as the shapes of twenty sizes are all there; in a full file the last one always is, and
 * most of the last. */
static void the_file_stays_small(void **state)
{
    uint64_t random = 3;

    (void)state;
    assert_int_equal(keep_400(&random), 400);
    for (int i = 0; i < 8000; i++) {
        uint64_t key = random_u64(&random);
        keep(key);
        assert_true(is_kept(key));
        assert_true(file_bytes() <= 98304);
    }
    assert_in_range(keep_400(&random), 360, 400);
}

static void the_environment_names_the_place(void **state)
{
    char path[400];

    (void)state;
    assert_int_equal(setenv("HOME", folder, 1), 0);
    assert_int_equal(setenv("XDG_CACHE_HOME", "relative", 1), 0);
    keep(1);
    (void)snprintf(path, sizeof path, "%s/.cache/mural/choices", folder);
    assert_true(os_is_file(path) && is_kept(1));
    assert_int_equal(unlink(path), 0);
    (void)snprintf(path, sizeof path, "%s/.cache/mural", folder);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(unsetenv("HOME") + unsetenv("XDG_CACHE_HOME"), 0);
    keep(2);
    assert_false(is_kept(1) || is_kept(2));
    assert_false(os_is_dir("relative"));
}

/* ------------------------------------------------------------------------------ in bad order */

/* Five keys of two buckets, and one far from them; the file's bytes. */
static const uint64_t KEYS[] = {3, 3 + 1024, 3 + 2048, 4, 4 + 1024, 700};

static size_t keep_some(char *bytes_out, size_t capacity)
{
    FILE  *stream;
    size_t count;

    for (size_t i = 0; i < ARRAY_COUNT(KEYS); i++)
        keep(KEYS[i]);
    stream = fopen(file, "rb");
    assert_non_null(stream);
    count = fread(bytes_out, 1, capacity, stream);
    assert_int_equal(fclose(stream), 0);
    assert_in_range(count, 1, capacity - 1);
    return count;
}

static size_t count_kept(void)
{
    size_t found = 0;

    for (size_t i = 0; i < ARRAY_COUNT(KEYS); i++)
        found += is_kept(KEYS[i]);
    return found;
}

/* And what was lost can be kept again. */
static void expect_repair(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(KEYS); i++)
        keep(KEYS[i]);
    assert_int_equal(count_kept(), ARRAY_COUNT(KEYS));
}

static void a_changed_byte_costs_one_choice(void **state)
{
    static char bytes[100000];
    size_t      count = keep_some(bytes, sizeof bytes), used = 0;

    (void)state;
    for (size_t at = 0; at < count; at++) {
        if (at % 24 == 0) used = 0;
        if (bytes[at] == 0 && used == 0 && at > 600 && at < count - 100) continue; /* a hole */
        used = 1;
        bytes[at] ^= (char)(1u << at % 8);
        scratch_write(file, bytes, count);
        assert_true(count_kept() >= ARRAY_COUNT(KEYS) - 1);
        bytes[at] ^= (char)(1u << at % 8);
    }
    scratch_write(file, bytes, count);
    assert_int_equal(count_kept(), ARRAY_COUNT(KEYS));
}

static void a_cut_file_keeps_what_is_left(void **state)
{
    static char bytes[100000];
    size_t      count = keep_some(bytes, sizeof bytes), before = 0;

    (void)state;
    for (size_t left = 0; left <= count; left += left < 1000 || left + 200 > count ? 1 : 100) {
        size_t found;
        scratch_write(file, bytes, left);
        found = count_kept();
        assert_true(found >= before);
        before = found;
    }
    assert_int_equal(before, ARRAY_COUNT(KEYS));
    scratch_write(file, bytes, 300);
    expect_repair();
}

/* A record of a place at another one: what was copied there is not this place's. */
static void a_moved_record_is_none(void **state)
{
    static char bytes[100000];
    size_t      count = keep_some(bytes, sizeof bytes);

    (void)state;
    memmove(bytes + 96, bytes, count - 96);
    scratch_write(file, bytes, count);
    (void)count_kept();
    expect_repair();
}

static void a_foreign_file_is_written_over(void **state)
{
    static char bytes[1 << 20];
    uint64_t    random = 11;

    (void)state;
    keep(1);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)random_u64(&random);
    for (size_t count = 1; count <= sizeof bytes; count *= 4) {
        scratch_write(file, bytes, count);
        assert_int_equal(count_kept(), 0);
        expect_repair();
    }
    memset(bytes, 0, sizeof bytes);
    scratch_write(file, bytes, sizeof bytes);
    assert_int_equal(count_kept(), 0);
    expect_repair();
}

/* Nobody waits and nothing fails where no file can be. */
static void what_is_no_file_keeps_nothing(void **state)
{
    char target[320];

    (void)state;
    keep(1);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(mkdir(file, 0777), 0);
    keep(1);
    assert_false(is_kept(1));
    assert_int_equal(rmdir(file), 0);

    assert_int_equal(mkfifo(file, 0666), 0);
    keep(1);
    assert_false(is_kept(1));
    assert_int_equal(unlink(file), 0);

    (void)snprintf(target, sizeof target, "%s/elsewhere", folder);
    scratch_write(target, "mine", 4);
    assert_int_equal(symlink(target, file), 0);
    keep(1);
    assert_false(is_kept(1));
    assert_int_equal(unlink(file), 0);

    assert_int_equal(setenv("XDG_CACHE_HOME", "/dev/null", 1), 0);
    keep(1);
    assert_false(is_kept(1));
}

static struct os_calls usual;
static int             calls, fails_at;

static bool fails(void)
{
    errno = EIO;
    return ++calls == fails_at;
}

static int broken_open(const char *path, int flags, ...)
{
    return fails() ? -1 : usual.open(path, flags, 0666);
}

static int64_t broken_pread(int fd, void *buffer, size_t bytes, int64_t offset)
{
    return fails() ? -1 : usual.pread(fd, buffer, bytes, offset);
}

/* Half of it, and then the disk is full. */
static int64_t broken_pwrite(int fd, const void *buffer, size_t bytes, int64_t offset)
{
    if (!fails()) return usual.pwrite(fd, buffer, bytes, offset);
    fails_at++;
    errno = ENOSPC;
    return bytes > 12 ? usual.pwrite(fd, buffer, 12, offset) : -1;
}

static int broken_mkdir(const char *path, unsigned mode)
{
    return fails() ? -1 : usual.mkdir(path, mode);
}

static void every_call_may_fail(void **state)
{
    bool     reached = true;
    uint64_t choice;

    (void)state;
    usual = os;
    for (int at = 1; reached; at++) {
        os.open = broken_open;
        os.pread = broken_pread;
        os.pwrite = broken_pwrite;
        os.mkdir = broken_mkdir;
        calls = 0;
        fails_at = at;
        choices_keep(3, 17); /* another choice, over what was there */
        keep(3);
        if (choices_find(&choice, 3)) assert_true(choice == choice_of(3) || choice == 17);
        reached = calls >= at;
        os = usual;
        keep(3);
        assert_true(is_kept(3));
    }
}

static void processes_write_at_once(void **state)
{
    enum { WRITERS = 4, EACH = 200, ROUNDS = 5 };
    pid_t writer[WRITERS];

    (void)state;
    for (uint64_t w = 0; w < WRITERS; w++) {
        writer[w] = fork();
        assert_true(writer[w] >= 0);
        if (writer[w] > 0) continue;
        for (int round = 0; round < ROUNDS; round++)
            for (uint64_t i = 0; i < EACH; i++) {
                keep(w * EACH + i);    /* of a bucket that is this process's alone, */
                keep(1024 * w + 900);  /* of one that all write to,                 */
                keep(2048 * 1024 + i); /* and the same as the others do             */
            }
        _exit(0);
    }
    for (int w = 0; w < WRITERS; w++) {
        int status = -1;
        while (waitpid(writer[w], &status, WNOHANG) == 0)
            for (uint64_t i = 0; i < EACH; i++)
                (void)is_kept(2048 * 1024 + i); /* right, or not there, at any moment */
        assert_int_equal(status, 0);
    }
    for (uint64_t i = EACH; i < WRITERS * EACH; i++)
        assert_true(is_kept(i));
    for (uint64_t i = 0; i < EACH; i++)
        assert_true(is_kept(2048 * 1024 + i));
    assert_true(is_kept(900));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_was_kept_is_found, begin, end),
        cmocka_unit_test_setup_teardown(the_file_stays_small, begin, end),
        cmocka_unit_test_setup_teardown(the_environment_names_the_place, begin, end),
        cmocka_unit_test_setup_teardown(a_changed_byte_costs_one_choice, begin, end),
        cmocka_unit_test_setup_teardown(a_cut_file_keeps_what_is_left, begin, end),
        cmocka_unit_test_setup_teardown(a_moved_record_is_none, begin, end),
        cmocka_unit_test_setup_teardown(a_foreign_file_is_written_over, begin, end),
        cmocka_unit_test_setup_teardown(what_is_no_file_keeps_nothing, begin, end),
        cmocka_unit_test_setup_teardown(every_call_may_fail, begin, end),
        cmocka_unit_test_setup_teardown(processes_write_at_once, begin, end)};
    return cmocka_run_group_tests_name("choices", tests, NULL, NULL);
}
