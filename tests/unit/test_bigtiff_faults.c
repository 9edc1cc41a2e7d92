/*
 * test_bigtiff_faults.c - every way in which a disk can fail a poster's file.
 */
#include "made_poster.h"

#include <errno.h>
#include <omp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum fault { NO_SPACE, SHORT_THEN_NO_SPACE, SHORT, FLIPPED };

static enum fault  fault_kind;
static int         fault_at;
static _Atomic int calls_made; /* a file is checked by several threads */

static int64_t faulty_pwrite(int fd, const void *x, size_t bytes, int64_t offset)
{
    const bool now = ++calls_made == fault_at;

    if (now && (fault_kind == SHORT || fault_kind == SHORT_THEN_NO_SPACE))
        return working.pwrite(fd, x, bytes > 1 ? bytes / 2 : bytes, offset);
    if (now && fault_kind == FLIPPED) {
        unsigned char *copy = malloc(bytes);
        assert_non_null(copy);
        memcpy(copy, x, bytes);
        copy[bytes / 2] ^= 0x10;
        int64_t put = working.pwrite(fd, copy, bytes, offset);
        free(copy);
        return put;
    }
    if (now || (fault_kind == SHORT_THEN_NO_SPACE && calls_made > fault_at)) {
        errno = ENOSPC;
        return -1;
    }
    return working.pwrite(fd, x, bytes, offset);
}
static int64_t faulty_pread(int fd, void *x, size_t bytes, int64_t offset)
{
    if (++calls_made != fault_at) return working.pread(fd, x, bytes, offset);
    errno = EIO;
    return -1;
}
static int faulty_fsync(int fd)
{
    if (++calls_made != fault_at) return working.fsync(fd);
    errno = EIO;
    return -1;
}
static int faulty_close(int fd)
{
    (void)working.close(fd);
    if (++calls_made != fault_at) return 0;
    errno = EIO;
    return -1;
}
static int faulty_rename(const char *source, const char *target)
{
    if (++calls_made != fault_at) return working.rename(source, target);
    errno = EACCES;
    return -1;
}
static void *faulty_calloc(size_t count, size_t bytes)
{
    if (++calls_made != fault_at) return working.calloc(count, bytes);
    errno = ENOMEM;
    return NULL;
}

static bool is_one_sentence(const char *text)
{
    const size_t length = strlen(text);
    return length > 10 && strchr(text, '\n') == NULL && text[length - 1] != '.';
}

/* Break the n-th call for n = 1, 1 + step, ... until a poster is written undisturbed. */
static void break_each(const struct os_calls *broken, enum err_code code, int step, int least_calls)
{
    struct picture         picture = make_picture(600, 20, 8, RAMP);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    int                    rc;

    request.pyramid = true;
    for (fault_at = 1;; fault_at += step) {
        struct err err = {0};
        calls_made = 0;
        os = *broken;
        rc = write_poster(&request, &picture, &err);
        os = working;
        if (calls_made < fault_at) break;
        if (rc != (int)code || err.code != code || !is_one_sentence(err.text))
            fail_msg("call %d: code %d, '%s'", fault_at, rc, err.text);
        assert_int_equal(scratch_count(folder), 0);
    }
    assert_int_equal(rc, ERR_OK);
    assert_true(fault_at > least_calls);
    assert_int_equal(scratch_count(folder), 1);
    free(picture.samples);
}

static void test_every_failed_write(void **state)
{
    struct os_calls broken = os;
    (void)state;
    broken.pwrite = faulty_pwrite;
    fault_kind = NO_SPACE;
    break_each(&broken, ERR_IO, 1, 10);
    assert_int_equal(unlink(path), 0);
    fault_kind = SHORT_THEN_NO_SPACE;
    break_each(&broken, ERR_IO, 1, 10);
}

static void test_every_other_failed_call(void **state)
{
    struct os_calls broken = os;
    (void)state;
    broken.pread = faulty_pread;
    break_each(&broken, ERR_IO, 7, 50); /* libtiff reads a directory in many small pieces */
    assert_int_equal(unlink(path), 0);
    broken = os, broken.rename = faulty_rename;
    break_each(&broken, ERR_IO, 1, 1);
    assert_int_equal(unlink(path), 0);
    broken = os, broken.calloc = faulty_calloc;
    break_each(&broken, ERR_HOST_MEM, 1, 10);
}

static void test_failed_sync_and_close(void **state)
{
    struct picture         picture = make_picture(8, 8, 8, FLAT);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct err             err = {0};

    (void)state;
    /* The first call of each is for the .part file itself. */
    fault_at = 1, calls_made = 0;
    os.fsync = faulty_fsync;
    int rc = write_poster(&request, &picture, &err);
    os = working;
    assert_int_equal(rc, ERR_IO);
    assert_int_equal(scratch_count(folder), 0);
    fault_at = 3, calls_made = 0; /* before: the verifying reader, and that of the hash */
    os.close = faulty_close;
    rc = write_poster(&request, &picture, &err);
    os = working;
    assert_int_equal(rc, ERR_IO);
    assert_int_equal(scratch_count(folder), 0);
    free(picture.samples);
}

static void test_short_writes_are_continued(void **state)
{
    struct picture         picture = make_picture(40, 30, 16, RAMP);
    struct bigtiff_request request = request_for(&picture, TIFF_DEFLATE);
    struct err             err = {0};

    (void)state;
    fault_kind = SHORT;
    os.pwrite = faulty_pwrite;
    for (fault_at = 1, calls_made = 1; calls_made >= fault_at; fault_at++) {
        calls_made = 0;
        ASSERT_OK(write_poster(&request, &picture, &err));
    }
    os = working;
    TIFF          *tiff = open_poster();
    struct picture back = read_level(tiff);
    check_equal(&back, &picture);
    TIFFClose(tiff);
    free(back.samples);
    free(picture.samples);
}

/* A disk that stores something else than it was given, without a word. */
static void test_lying_disk_is_found_out(void **state)
{
    struct picture         picture = make_picture(600, 20, 8, NOISE);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct err             err;

    (void)state;
    fault_kind = FLIPPED;
    for (fault_at = 2; fault_at <= 3; fault_at++) { /* the two tiles, after the header */
        calls_made = 0;
        os.pwrite = faulty_pwrite;
        err = (struct err){0};
        int rc = write_poster(&request, &picture, &err);
        os = working;
        assert_int_equal(rc, ERR_IO);
        assert_true(is_one_sentence(err.text));
        assert_int_equal(scratch_count(folder), 0);
    }
    free(picture.samples);
}

static void test_abandoned_poster_leaves_nothing(void **state)
{
    struct picture         picture = make_picture(20, 600, 8, FLAT);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct bigtiff        *tiff = NULL;
    struct err             err = {0};

    (void)state;
    ASSERT_OK(bigtiff_open(&tiff, &request, &err));
    ASSERT_OK(bigtiff_write_band(tiff, picture.samples, 512, &err));
    assert_int_equal(access(part, F_OK), 0);
    assert_int_not_equal(access(path, F_OK), 0);
    bigtiff_close(tiff);
    assert_int_equal(scratch_count(folder), 0);
    bigtiff_close(NULL);
    free(picture.samples);
}

/* The kernel's own refusal, not ours: a limit on the size of files. */
static void test_file_size_limit(void **state)
{
    struct picture         picture = make_picture(600, 600, 8, NOISE);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct rlimit          before, tight;
    struct err             err;

    (void)state;
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (rlim_t limit = 100000; limit < 3400000; limit += 1000000) {
        tight = before;
        tight.rlim_cur = limit;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
        err = (struct err){0};
        int rc = write_poster(&request, &picture, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(rc, ERR_IO);
        assert_int_equal(err.sys, EFBIG);
        assert_int_equal(scratch_count(folder), 0);
    }
    free(picture.samples);
}

enum { CHILD_FINE = 0, CHILD_CANNOT_MOUNT = 77 };

/* In a process and a mount namespace of its own, so that nothing of it survives. */
static int fill_small_disk(void)
{
    struct picture         picture = make_picture(600, 600, 8, NOISE);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct err             err = {0};

    omp_set_num_threads(1); /* OpenMP's threads do not survive a fork */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", folder, "tmpfs", 0, "size=1m") != 0)
        return CHILD_CANNOT_MOUNT;
    if (write_poster(&request, &picture, &err) != ERR_IO || err.sys != ENOSPC) return 1;
    if (!is_one_sentence(err.text) || scratch_count(folder) != 0) return 2;
    free(picture.samples);
    return CHILD_FINE;
}

static void test_full_disk(void **state)
{
    int         status = 0;
    const pid_t child = fork();

    (void)state;
    if (child == 0) _exit(fill_small_disk());
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CHILD_CANNOT_MOUNT) {
        print_message(
            "skipped: a tmpfs cannot be mounted here (needs root); see the size limit test\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), CHILD_FINE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        POSTER_TEST(test_every_failed_write),
        POSTER_TEST(test_every_other_failed_call),
        POSTER_TEST(test_failed_sync_and_close),
        POSTER_TEST(test_short_writes_are_continued),
        POSTER_TEST(test_lying_disk_is_found_out),
        POSTER_TEST(test_abandoned_poster_leaves_nothing),
        POSTER_TEST(test_file_size_limit),
        POSTER_TEST(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
