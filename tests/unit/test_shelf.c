/*
 * test_shelf.c - tiles that are stored while others are painted: none counts before it is on the
 * disk, and whatever befalls the storing, nothing that was told is lost.
 *
 * The disk is watched through the table of system calls, and slowed down or broken at will.  Short,
 * so that it can run under ThreadSanitizer as well.
 */
#include "fake_painter.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>

enum { TILES = 4, STEPS = 3, DRAFT_STEPS = 2, HANDS_MOST = 3, FDS = 1024, JOURNAL = -1 };

static struct os_calls working;
static _Atomic int     file_of[FDS];         /* tile number, or JOURNAL; 0: another file */
static _Atomic bool    synced[TILES + 1];    /* the file of the tile is on the disk */
static _Atomic int     pending, noted;       /* tiles in the journal: written; on the disk */
static _Atomic int     encoded, decoded;     /* tiles that painters have begun to */
static _Atomic int     early_lines, hurried; /* promises that were broken */
static _Atomic int     stepped;
static int             slow_ms, breaks_at; /* of each sync of a tile; the tile whose write fails */
static int             ahead; /* a sync of tile n waits until n + ahead tiles were begun; 0: no */

static int watching_open(const char *path, int flags, ...)
{
    va_list     args;
    unsigned    mode = 0;
    const char *name = strrchr(path, '/');
    int         fd, number = 0;

    va_start(args, flags);
    if ((flags & O_CREAT) != 0) mode = va_arg(args, unsigned);
    va_end(args);
    fd = working.open(path, flags, mode);
    if (fd < 0 || fd >= FDS || (flags & O_CREAT) == 0 || name == NULL) return fd;
    if (strcmp(name, "/journal") == 0) number = JOURNAL;
    if (strncmp(name, "/tile-", 6) == 0) number = (int)strtol(name + 6, NULL, 10);
    file_of[fd] = number;
    return fd;
}

static int watching_close(int fd)
{
    if (fd >= 0 && fd < FDS) file_of[fd] = 0;
    return working.close(fd);
}

static void wait_for(_Atomic int *count, int least)
{
    for (int i = 0; i < 5000 && *count < least; i++)
        (void)working.poll(-1, 0, 1);
}

static int64_t watching_pwrite(int fd, const void *x, size_t bytes, int64_t offset)
{
    const char *at = file_of[fd] == JOURNAL ? memmem(x, bytes, "\"tile\",\"tile\":", 14) : NULL;

    if (at != NULL) {
        early_lines += !synced[strtol(at + 14, NULL, 10)];
        pending++;
    }
    if (breaks_at > 0 && file_of[fd] == breaks_at) {
        wait_for(&encoded, breaks_at + 1);
        errno = ENOSPC;
        return -1;
    }
    return working.pwrite(fd, x, bytes, offset);
}

static int watching_fsync(int fd)
{
    const int number = file_of[fd];
    int       failed;

    if (number > 0 && slow_ms > 0) (void)working.poll(-1, 0, slow_ms);
    if (number > 0 && ahead > 0 && number + ahead <= TILES) wait_for(&encoded, number + ahead);
    failed = working.fsync(fd);
    if (number > 0) synced[number] = failed == 0;
    if (number == JOURNAL && failed == 0) noted += atomic_exchange(&pending, 0);
    return failed;
}

static int watched_encode(void *self, const float *rgb, int32_t w, int32_t h, float *latent,
                          struct err *err)
{
    encoded++;
    return fake_encode(self, rgb, w, h, latent, err);
}

/* One painter: two tiles before this one, the first is on the disk, for its place is needed. */
static int watched_decode(void *self, const float *latent, int32_t w, int32_t h, float *rgb,
                          struct err *err)
{
    if (encoded > 0) hurried += noted < ++decoded - 2;
    return fake_decode(self, latent, w, h, rgb, err);
}

static int slow_predict(void *self, const struct painter_tile *tiles, uint32_t count, uint32_t step,
                        struct err *err)
{
    if (encoded > 0) stepped++;
    if (encoded > 1) (void)working.poll(-1, 0, 1);
    return fake_predict(self, tiles, count, step, err);
}

static int told_early;
static int compare_told(const struct render_progress *progress, void *user)
{
    (void)user;
    told_early += (int)progress->tiles_done > noted;
    return RENDER_GO_ON;
}

struct watched {
    struct story   story;
    struct fake    fakes[HANDS_MOST];
    struct painter painters[HANDS_MOST];
};

static void watched_open(struct watched *watched, uint32_t hands)
{
    memset(watched, 0, sizeof *watched);
    small_open(&watched->story);
    for (uint32_t i = 0; i < hands; i++) {
        watched->painters[i] = painter_of(&watched->fakes[i]);
        watched->painters[i].encode = watched_encode;
        watched->painters[i].decode = watched_decode;
    }
    watched->story.request.painters = watched->painters;
    watched->story.request.painter_count = hands;
    watched->story.request.progress = compare_told;
    for (int i = 0; i < FDS; i++)
        file_of[i] = 0;
    for (int i = 0; i <= TILES; i++)
        synced[i] = false;
    pending = noted = encoded = decoded = early_lines = hurried = stepped = 0;
    slow_ms = breaks_at = ahead = told_early = 0;
    os.open = watching_open;
    os.close = watching_close;
    os.pwrite = watching_pwrite;
    os.fsync = watching_fsync;
}

/* Undisturbed, another run ends with the bytes that it always ends with. */
static void watched_end(struct watched *watched)
{
    os = working;
    watched->story.request.painters = &watched->story.painter;
    watched->story.request.painter_count = 1;
    watched->story.request.progress = NULL;
    go_on(&watched->story);
    story_close(&watched->story);
}

static void the_next_tile_is_painted_meanwhile(void **state)
{
    struct watched watched;
    struct err     err = {0};
    double         begun = os_seconds();

    (void)state;
    watched_open(&watched, 1);
    ahead = 1;
    ASSERT_OK(render_poster(&watched.story.request, &err));
    assert_true(os_seconds() - begun < 5); /* nobody waited in vain */
    assert_int_equal(watched.fakes[0].predictions, DRAFT_STEPS + TILES * STEPS);
    assert_int_equal(hurried, 0);
    watched_end(&watched);
}

static void a_tile_counts_when_it_is_on_the_disk(void **state)
{
    (void)state;
    for (uint32_t hands = 1; hands <= HANDS_MOST; hands++) {
        struct watched watched;
        struct err     err = {0};

        watched_open(&watched, hands);
        slow_ms = 10;
        ASSERT_OK(render_poster(&watched.story.request, &err));
        assert_true(hash_of(&watched.story) == reference());
        assert_int_equal(noted, TILES);
        assert_int_equal(early_lines, 0);
        assert_int_equal(told_early, 0);
        if (hands == 1) assert_int_equal(hurried, 0);
        watched_end(&watched);
    }
}

/* The others stop at their next step, and the sentence is that of the disk. */
static void a_tile_that_cannot_be_stored_ends_the_run(void **state)
{
    (void)state;
    for (uint32_t hands = 1; hands <= HANDS_MOST; hands++)
        for (int broken = 1; broken <= TILES; broken++) {
            struct watched watched;
            struct err     err = {0};
            char           name[32];

            watched_open(&watched, hands);
            if (broken == TILES) encoded = 1; /* nothing follows that could be waited for */
            breaks_at = broken;
            (void)snprintf(name, sizeof name, "tile-%d.rgb16", broken);
            ASSERT_REFUSED(ERR_IO, name, render_poster(&watched.story.request, &err));
            assert_non_null(strstr(err.text, strerror(ENOSPC)));
            assert_true(noted < TILES);
            if (hands == 1) assert_in_range(noted, broken - 1, broken); /* and one put meanwhile */
            watched_end(&watched);
        }
}

/* A tile may take hours. */
static void who_paints_stops_at_the_next_step(void **state)
{
    enum { MANY = 500 };
    struct watched watched;
    struct err     err = {0};

    (void)state;
    watched_open(&watched, 1);
    watched.story.config.steps = MANY;
    watched.painters[0].predict = slow_predict;
    breaks_at = 1;
    ASSERT_REFUSED(ERR_IO, "tile-1.rgb16", render_poster(&watched.story.request, &err));
    assert_true(stepped < 2 * MANY);
    os = working;
    story_close(&watched.story);
}

static int stop_in_second(const struct render_progress *progress, void *user)
{
    const int answer = *(const int *)user;
    return progress->steps_run > DRAFT_STEPS + STEPS ? answer : RENDER_GO_ON;
}

/* In the step of a tile, while the one before it is on its way to the disk. */
static void a_stop_waits_for_what_was_painted(void **state)
{
    (void)state;
    for (int how = RENDER_STOP_NOW; how <= RENDER_STOP_AFTER_TILE; how++) {
        struct watched watched;
        struct err     err = {0};

        watched_open(&watched, 1);
        watched.story.request.progress = stop_in_second;
        watched.story.request.user = &how;
        slow_ms = 30;
        ASSERT_REFUSED(ERR_CANCELLED,
                       how == RENDER_STOP_NOW ? "1 of 4 tiles are safe" : "2 of 4 tiles are safe",
                       render_poster(&watched.story.request, &err));
        assert_int_equal(noted, how == RENDER_STOP_NOW ? 1 : 2);
        watched_end(&watched);
    }
}

static int threads_made, thread_fails;
static int failing_thread(pthread_t *out, void *(*run)(void *), void *argument)
{
    return ++threads_made == thread_fails ? EAGAIN : working.thread_create(out, run, argument);
}

static void a_thread_that_cannot_start_is_told(void **state)
{
    (void)state;
    for (uint32_t hands = 1; hands <= HANDS_MOST; hands++) {
        int rc = ERR_HOST_MEM;

        for (thread_fails = 1; rc != ERR_OK; thread_fails++) {
            struct watched watched;
            struct err     err = {0};

            watched_open(&watched, hands);
            threads_made = 0;
            os.thread_create = failing_thread;
            rc = render_poster(&watched.story.request, &err);
            if (rc != ERR_OK) assert_non_null(strstr(err.text, "cannot start a thread"));
            watched_end(&watched);
        }
        /* The shelf's, and those of several hands; then one run that lacked none. */
        assert_int_equal(thread_fails - 1, 1 + 1 + (hands == 1 ? 0 : (int)hands));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_next_tile_is_painted_meanwhile),
        cmocka_unit_test(a_tile_counts_when_it_is_on_the_disk),
        cmocka_unit_test(a_tile_that_cannot_be_stored_ends_the_run),
        cmocka_unit_test(who_paints_stops_at_the_next_step),
        cmocka_unit_test(a_stop_waits_for_what_was_painted),
        cmocka_unit_test(a_thread_that_cannot_start_is_told),
    };
    working = os;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
