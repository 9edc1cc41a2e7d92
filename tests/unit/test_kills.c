/*
 * test_kills.c - a run that is killed at any moment goes on to the same bytes.
 *
 * A small poster is painted once undisturbed; its hash is the reference of every other case.  A
 * kill is played by a table of system calls that all fail from a moment on, clean-up included, so
 * that the disk is left as a dead process leaves it.
 */
#include "fake_painter.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

static struct os_calls working;

static int         dies_at;
static _Atomic int calls_made; /* tiles are read by several threads */
static bool        once;       /* only that one call fails, and life goes on */
static bool        dead(void)
{
    const int call = ++calls_made;

    errno = EIO;
    return dies_at > 0 && (once ? call == dies_at : call >= dies_at);
}
static int64_t dying_pwrite(int fd, const void *x, size_t bytes, int64_t offset)
{
    /* A write that is cut in the middle is the worst of all moments. */
    if (dead()) {
        if (calls_made == dies_at) (void)working.pwrite(fd, x, bytes / 2, offset);
        errno = EIO;
        return -1;
    }
    return working.pwrite(fd, x, bytes, offset);
}
static int dying_open(const char *path, int flags, ...)
{
    va_list  args;
    unsigned mode = 0;

    va_start(args, flags);
    if ((flags & O_CREAT) != 0) mode = va_arg(args, unsigned);
    va_end(args);
    return dead() ? -1 : working.open(path, flags, mode);
}
static int dying_fsync(int fd)
{
    return dead() ? -1 : working.fsync(fd);
}
static int dying_rename(const char *source, const char *target)
{
    return dead() ? -1 : working.rename(source, target);
}
static int dying_unlink(const char *path)
{
    return dead() ? -1 : working.unlink(path);
}
static int dying_mkdir(const char *path, unsigned mode)
{
    return dead() ? -1 : working.mkdir(path, mode);
}
static int dying_rmdir(const char *path)
{
    return dead() ? -1 : working.rmdir(path);
}
static int dying_ftruncate(int fd, int64_t bytes)
{
    return dead() ? -1 : working.ftruncate(fd, bytes);
}

static void *failing_calloc(size_t count, size_t bytes)
{
    return dead() ? NULL : working.calloc(count, bytes);
}
static int64_t failing_pread(int fd, void *out, size_t bytes, int64_t offset)
{
    return dead() ? -1 : working.pread(fd, out, bytes, offset);
}
static int failing_flock(int fd, int operation)
{
    return dead() ? -1 : working.flock(fd, operation);
}

static void kill_at(int moment)
{
    once = false;
    calls_made = 0;
    dies_at = moment;
    os.pwrite = dying_pwrite;
    os.open = dying_open;
    os.fsync = dying_fsync;
    os.rename = dying_rename;
    os.unlink = dying_unlink;
    os.mkdir = dying_mkdir;
    os.rmdir = dying_rmdir;
    os.ftruncate = dying_ftruncate;
}

static void killed_at_every_call_goes_on_to_the_same_bytes(void **state)
{
    int moments = 0;

    (void)state;
    (void)reference();
    for (bool ends = false; !ends; moments++) {
        struct story story;
        struct err   err = {0};

        small_open(&story);
        kill_at(moments + 1);
        ends = render_poster(&story.request, &err) == ERR_OK && calls_made <= moments;
        os = working;
        go_on(&story);
        story_close(&story);
    }
    assert_true(moments > 60); /* at least open, write, sync, sync and a record for every tile */
}

static struct stat holder; /* the folder that holds the output and `<output>.mural` */
static int         holder_syncs;
static int         counting_fsync(int fd)
{
    struct stat about;

    if (fstat(fd, &about) == 0 && about.st_dev == holder.st_dev && about.st_ino == holder.st_ino)
        holder_syncs++;
    return working.fsync(fd);
}

/* Not only what is in the folder, also its own name, before anything in it counts. */
static void the_folder_of_a_stopped_run_is_on_the_disk(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    small_open(&story);
    assert_int_equal(stat(story.folder, &holder), 0);
    holder_syncs = 0;
    stop_after = 12;
    os.fsync = counting_fsync;
    assert_int_equal(render_poster(&story.request, &err), ERR_CANCELLED);
    os = working;
    stop_after = 0;
    assert_true(strstr(err.text, "tiles are safe") != NULL);
    assert_true(holder_syncs > 0);
    story_close(&story);
}

static void every_single_failing_call_is_told_and_mended(void **state)
{
    int moments = 0, failures = 0;

    (void)state;
    (void)reference();
    for (bool ends = false; !ends; moments++) {
        struct story story;
        struct err   err = {0};
        int          rc;

        small_open(&story);
        kill_at(moments + 1);
        once = true;
        os.calloc = failing_calloc;
        os.pread = failing_pread;
        os.flock = failing_flock;
        rc = render_poster(&story.request, &err);
        os = working;
        ends = calls_made <= moments;
        if (rc == ERR_OK)
            assert_true(hash_of(&story) == reference());
        else
            assert_true(err.code == (enum err_code)rc && strlen(err.text) > 10);
        failures += rc != ERR_OK;
        go_on(&story);
        story_close(&story);
    }
    assert_true(failures > 100);
}

/* A run that is killed again and again, always a little later, never paints a tile twice. */
static void killed_again_and_again_loses_nothing(void **state)
{
    struct story story;
    struct err   err = {0};
    int          runs = 0, decoded = 0;

    (void)state;
    small_open(&story);
    for (int rc = 1; rc != ERR_OK; runs++) {
        err = (struct err){0};
        story.fake = (struct fake){0};
        kill_at(12 + runs);
        rc = render_poster(&story.request, &err);
        os = working;
        decoded += story.fake.predictions / 3;
        assert_true(runs < 200);
    }
    assert_true(hash_of(&story) == reference());
    assert_true(decoded <= runs + 5);
    story_close(&story);
}

static void a_retry_that_is_killed_goes_on(void **state)
{
    const uint64_t seed = 44;
    uint64_t       want = 0;

    (void)state;
    (void)reference();
    for (int moment = 0; moment < 400; moment++) {
        struct story story;
        struct err   err = {0};
        int          rc;

        small_open(&story);
        go_on(&story);
        story.request.mode = RENDER_RETRY;
        story.request.again = (struct render_again){.tiles = "2,4", .seed = &seed};
        kill_at(moment); /* 0: never */
        rc = render_poster(&story.request, &err);
        os = working;
        if (moment == 0) want = hash_of(&story);
        err = (struct err){0};
        story.request.mode = RENDER_RESUME; /* whatever stands under the poster's name by now */
        if (moment > 0) ASSERT_OK(render_poster(&story.request, &err));
        /* Killed before all its wish was noted, it has to be asked again. */
        story.request.mode = RENDER_RETRY;
        if (moment > 0 && hash_of(&story) != want) ASSERT_OK(render_poster(&story.request, &err));
        assert_true(hash_of(&story) == want && want != reference());
        story_close(&story);
        if (rc == ERR_OK && moment > 0) break;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_at_every_call_goes_on_to_the_same_bytes),
        cmocka_unit_test(the_folder_of_a_stopped_run_is_on_the_disk),
        cmocka_unit_test(every_single_failing_call_is_told_and_mended),
        cmocka_unit_test(killed_again_and_again_loses_nothing),
        cmocka_unit_test(a_retry_that_is_killed_goes_on),
    };
    working = os;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
