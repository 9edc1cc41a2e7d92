/*
 * test_disk.c - how fast the files of a model are read, on a disk of a known speed.
 *
 * The model is hollow; its disk is a pretended one behind the table of system calls.
 */
#include "../scratch_model.h"

#include "engine/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>

static struct {
    struct os_calls real;
    double          bytes_per_second; /* of direct reads                             */
    int             refused;          /* errno of a direct open; 0: it works         */
    int             fails_at;         /* this read comes short; 0: none does         */
    uint32_t        reads, kinds;     /* direct ones, and those at places of their own */
    int64_t         last;
} disk;

static bool is_direct[1024];

static int pretended_open(const char *path, int flags, ...)
{
    bool direct = (flags & O_DIRECT) != 0;
    int  fd;

    if (direct && disk.refused != 0) {
        errno = disk.refused;
        return -1;
    }
    fd = disk.real.open(path, flags & ~O_DIRECT, 0600);
    if (fd >= 0 && fd < 1024) is_direct[fd] = direct;
    return fd;
}

static int64_t pretended_pread(int fd, void *buffer, size_t bytes, int64_t offset)
{
    double          seconds = (double)bytes / disk.bytes_per_second;
    struct timespec pause = {.tv_sec = (time_t)seconds,
                             .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};

    if (fd < 0 || fd >= 1024 || !is_direct[fd]) return disk.real.pread(fd, buffer, bytes, offset);
    assert_true((uintptr_t)buffer % 4096 == 0 && bytes % 4096 == 0 && offset % 4096 == 0);
    disk.kinds += offset != disk.last;
    disk.last = offset;
    if (++disk.reads == (uint32_t)disk.fails_at) return (int64_t)bytes / 2;
    (void)nanosleep(&pause, NULL);
    return (int64_t)bytes;
}

static double speed_of(const char *folder_name, double bytes_per_second)
{
    struct engine_options options = {.model_folder = folder_name, .machine = ENGINE_CUDA};
    double                rate;

    disk.real = os;
    disk.bytes_per_second = bytes_per_second;
    disk.reads = disk.kinds = 0;
    disk.last = -1;
    os.open = pretended_open;
    os.pread = pretended_pread;
    rate = engine_disk_speed(&options);
    os = disk.real;
    return rate;
}

static int make_model(void **state)
{
    (void)state;
    return scratch_model_make(
        (struct synth_request){.spec = "flux1-dev", .dtype = DTYPE_BF16, .hollow = true});
}

/* Sleeping takes a little longer than it is asked to, and on a busy machine much longer. */
static void a_known_disk_is_told(void **state)
{
    double rate = 0;

    (void)state;
    for (int attempt = 0; attempt < 5 && rate < 3e8; attempt++)
        rate = speed_of(model, 4e8);
    assert_true(rate >= 3e8 && rate <= 4e8);
    assert_int_equal(disk.reads, 16);
    assert_int_equal(disk.kinds, 16); /* all over the file */
}

/* One that takes a second for each read is not waited for sixteen times. */
static void a_slow_disk_is_not_read_for_long(void **state)
{
    double begin = os_seconds(), rate = speed_of(model, 10e6);

    (void)state;
    assert_true(rate > 1e6 && rate <= 10e6);
    assert_true(disk.reads <= 2 && os_seconds() - begin < 5);
}

/* What the page cache would answer is no measurement; nor is half a read. */
static void no_answer_is_no_rate(void **state)
{
    (void)state;
    disk.refused = EINVAL;
    assert_true(speed_of(model, 4e8) == 0);
    disk.refused = 0;
    for (disk.fails_at = 1; disk.fails_at <= 16; disk.fails_at += 5)
        assert_true(speed_of(model, 4e9) == 0);
    disk.fails_at = 0;
    assert_true(speed_of("/nowhere/at/all", 4e8) == 0);
    assert_int_equal(disk.reads, 0);
}

static void a_small_model_tells_nothing(void **state)
{
    struct err           err = {0};
    char                 tiny[192];
    struct synth_request request = {.folder = tiny, .spec = "tiny", .dtype = DTYPE_BF16};

    (void)state;
    (void)snprintf(tiny, sizeof tiny, "%s/tiny", folder);
    ASSERT_OK(synth_write(&request, &err));
    assert_true(speed_of(tiny, 4e8) == 0);
    assert_int_equal(disk.reads, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_known_disk_is_told), cmocka_unit_test(a_slow_disk_is_not_read_for_long),
        cmocka_unit_test(no_answer_is_no_rate), cmocka_unit_test(a_small_model_tells_nothing)};
    return cmocka_run_group_tests_name("disk", tests, make_model, scratch_model_remove);
}
