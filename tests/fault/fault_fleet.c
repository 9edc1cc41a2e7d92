/*
 * fault_fleet.c - whatever a worker does and whichever system call fails, a small picture comes out
 * with the same bytes after some attempts, or there is one clear sentence; and nothing is left
 * behind: no process, no descriptor, no mapping.
 *
 * Read also fault_group.c, for groups of tiles and for posters.
 */
#include "fleet_stories.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

/* ---------------------------------------------------------------------------------- stories */

static void workers_paint_the_same_bytes(void **state)
{
    struct fleet_request request = usual_request();
    struct remains       before = look();
    float                rgb[ALL_PIXELS];
    struct err           err = {0};

    (void)state;
    ASSERT_OK(open_and_paint(&request, rgb, &err));
    assert_expected(rgb, "undisturbed");
    assert_nothing_remains(before, "undisturbed");
}

/* Each kind of fault at each answer, and one beyond, which never comes. */
static void a_worker_may_do_anything(void **state)
{
    static const char *const kinds[] = {"exit",     "abort",    "sigkill",  "hangup", "device",
                                        "long",     "short",    "length",   "kind",   "sequence",
                                        "twice",    "nan",      "babble",   "hang",   "stop",
                                        "nan-tile", "bad-tile", "bad-none", "gain"};
    struct fleet_request     request = usual_request();
    struct remains           before = look();
    char                     story[64];
    float                    rgb[ALL_PIXELS];
    struct err               err = {0};

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        bool silent = strcmp(kinds[k], "hang") == 0 || strcmp(kinds[k], "stop") == 0;
        request.timeout_seconds = silent ? HANG_SECONDS : LONG_SECONDS;
        for (int at = 1; at <= ANSWERS + 1; at += !MURAL_SANITIZED ? 1 : silent ? 6 : 2) {
            (void)snprintf(story, sizeof story, "%s at answer %d", kinds[k], at);
            plant(kinds[k], at);
            if (open_and_paint(&request, rgb, &err) != ERR_OK) fail_msg("%s: %s", story, err.text);
            assert_expected(rgb, story);
            assert_nothing_remains(before, story);
            if ((access(token, F_OK) != 0) != (at <= ANSWERS)) fail_msg("%s: not tried", story);
            clear();
        }
    }
}

/* What its first user is told of it: nothing is tried again here. */
static void each_end_has_its_sentence(void **state)
{
    static const struct {
        const char *kind;
        int         code;
        const char *words;
    } rows[] = {{"exit", ERR_PEER, "ended with status 7"},
                {"abort", ERR_PEER, "was killed by signal 6"},
                {"sigkill", ERR_PEER, "was killed by signal 9"},
                {"hangup", ERR_PEER, "sent 8 bytes that are no message"},
                {"long", ERR_PEER, "sent a message of 70000 bytes (limit 65536)"},
                {"short", ERR_PEER, "sent 15 bytes that are no message"},
                {"length", ERR_PEER, "sent 16 bytes of a message that claims 4294967295"},
                {"kind", ERR_PEER, "sent a message of kind 3, which is not its to send"},
                {"sequence", ERR_PEER, "answered question 3 with kind 19 of question 4"},
                {"babble", ERR_PEER, "log lines without end"},
                {"device", ERR_DEVICE, "device: it is lost"},
                {"nan", ERR_NUMERIC, "values of the latent from worker 1 are NaN or infinite"},
                {"hang", ERR_PEER, "gave no sign of life for"}};
    struct fleet_request request = usual_request();
    float                rgb[ALL_PIXELS];
    struct err           err = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct fleet *fleet = NULL;

        request.timeout_seconds = strcmp(rows[i].kind, "hang") == 0 ? HANG_SECONDS : LONG_SECONDS;
        plant(rows[i].kind, 3); /* when it encodes */
        const struct painter *painter = open_fleet(&fleet, &request);
        err = (struct err){.code = ERR_OK};
        int rc = paint_once(painter, rgb, &err);
        if (rc != rows[i].code || strstr(err.text, rows[i].words) == NULL)
            fail_msg("%s: code %d, '%s' does not speak of '%s'", rows[i].kind, rc, err.text,
                     rows[i].words);
        clear();
        ASSERT_OK(paint_once(painter, rgb, &err));
        assert_expected(rgb, rows[i].kind);
        fleet_close(fleet);
    }
}

/* As lists of processes show it. */
static void assert_named_worker(int pid)
{
    char path[64];

    (void)snprintf(path, sizeof path, "/proc/%d/comm", pid);
    assert_int_equal(count_lines(path, "mural-worker"), 1);
}

/* A worker that dies between two questions costs nobody an attempt. */
static void a_death_between_questions_is_not_felt(void **state)
{
    struct fleet_request request = usual_request();
    struct fleet        *fleet = NULL;
    float                rgb[ALL_PIXELS];
    uint32_t             count;
    struct err           err = {0};

    (void)state;
    seen.count = 0;
    log_install(note_worker, NULL, LOG_DEBUG);
    ASSERT_OK(fleet_open(&fleet, &request, &err));
    for (int round = 1; round <= 3; round++) {
        assert_int_equal(seen.count, round);
        assert_named_worker(seen.pids[round - 1]);
        assert_int_equal(kill(seen.pids[round - 1], SIGKILL), 0);
        wait_for_death(seen.pids[round - 1]);
        ASSERT_OK(paint_once(fleet_painters(fleet, &count), rgb, &err));
        assert_expected(rgb, "killed while idle");
        assert_non_null(strstr(seen.last, "was killed by signal 9"));
    }
    fleet_close(fleet);
    log_install(NULL, NULL, LOG_DEBUG);
}

/* Whoever began a stage need not know that its worker is another one now. */
static void a_stage_outlives_its_worker(void **state)
{
    struct fleet_request request = usual_request();
    float                rgb[ALL_PIXELS];
    struct err           err = {0};

    (void)state;
    for (int at = 2; at <= ANSWERS; at++) {
        struct fleet *fleet = NULL;
        plant("exit", at);
        const struct painter *painter = open_fleet(&fleet, &request);
        int                   rc = begin(painter, &err);
        assert_int_equal(rc, at == 2 ? ERR_PEER : ERR_OK);
        if (rc != ERR_OK) ASSERT_OK(begin(painter, &err));
        rc = paint_in_stage(painter, rgb, &err);
        assert_int_equal(rc, at == 2 ? ERR_OK : ERR_PEER);
        if (rc != ERR_OK) ASSERT_OK(paint_in_stage(painter, rgb, &err));
        assert_expected(rgb, "the second worker");
        painter->end(painter->self);
        fleet_close(fleet);
    }
    clear();
}

static void what_cannot_start_says_why(void **state)
{
    struct fleet_request request = usual_request();
    struct fleet        *fleet = NULL;
    struct remains       before = look();
    char                 none[300];
    struct err           err = {0};

    (void)state;
    (void)snprintf(none, sizeof none, "%s/none", folder);
    request.program = none;
    ASSERT_REFUSED(ERR_PEER, "as a worker: No such file", fleet_open(&fleet, &request, &err));
    request.program = "/bin/false";
    ASSERT_REFUSED(ERR_PEER, "ended with status 1", fleet_open(&fleet, &request, &err));
    request = usual_request();
    request.options.model_folder = none;
    ASSERT_REFUSED(ERR_FORMAT, "none' does not exist", fleet_open(&fleet, &request, &err));
    /* The driver is woken meanwhile, and what it says comes after what the model says. */
    request.options.machine = ENGINE_CUDA;
    request.options.gpu = 999;
    ASSERT_REFUSED(ERR_FORMAT, "none' does not exist", fleet_open(&fleet, &request, &err));
    request.options.model_folder = model;
    ASSERT_REFUSED(ERR_DEVICE, "device: ", fleet_open(&fleet, &request, &err));
    request = usual_request();
    request.channels = 4;
    ASSERT_REFUSED(ERR_FORMAT, "16 latent channels", fleet_open(&fleet, &request, &err));
    request = usual_request();
    request.model_identity = 1;
    ASSERT_REFUSED(ERR_FORMAT, "changed while it was in use", fleet_open(&fleet, &request, &err));
    request = usual_request();
    request.worker_count = FLEET_WORKERS_MAX + 1;
    ASSERT_REFUSED(ERR_USAGE, "1 to 64", fleet_open(&fleet, &request, &err));
    assert_nothing_remains(before, "not started");
}

static bool stops(void *user)
{
    return os_seconds() > *(double *)user;
}

/* Within a second, whether a worker hangs or the back-off is long. */
static void a_wish_to_stop_is_heard(void **state)
{
    struct fleet_request request = usual_request();
    struct remains       before = look();
    double               due = 0;
    float                rgb[ALL_PIXELS];
    struct err           err = {0};

    (void)state;
    hurry = 1;
    request.stop_wanted = stops;
    request.user = &due;
    for (int story = 0; story < 2; story++) {
        struct fleet *fleet = NULL;
        due = os_seconds() + 1000;
        plant(story == 0 ? "hang" : "exit", 3);
        request.backoff_seconds = 1000;
        const struct painter *painter = open_fleet(&fleet, &request);
        if (story == 1) assert_int_equal(paint_once(painter, rgb, &err), ERR_PEER);
        due = os_seconds() + 0.2;
        ASSERT_REFUSED(ERR_CANCELLED, "stopped", paint_once(painter, rgb, &err));
        assert_true(os_seconds() < due + (MURAL_SANITIZED ? 5 : 1));
        fleet_close(fleet);
        clear();
    }
    hurry = HURRY;
    assert_nothing_remains(before, "stopped");
}

struct sitting {
    const struct painter *painter;
    float                 rgb[ALL_PIXELS];
    struct err            err;
    int                   rc;
};
static void *sit(void *argument)
{
    struct sitting *sitting = argument;

    for (int round = 0; round < 3; round++)
        sitting->rc = paint(sitting->painter, sitting->rgb, &sitting->err);
    return NULL;
}

/* Each painter in a thread of its own, while one of the workers dies. */
static void several_paint_at_once(void **state)
{
    enum { COUNT = 3 };
    static struct sitting sittings[COUNT];
    struct fleet_request  request = usual_request();
    struct remains        before = look();
    struct fleet         *fleet = NULL;
    pthread_t             threads[COUNT];
    uint32_t              count;
    struct err            err = {0};

    (void)state;
    request.worker_count = COUNT;
    plant("exit", 4);
    ASSERT_OK(fleet_open(&fleet, &request, &err));
    for (uint32_t i = 0; i < COUNT; i++) {
        sittings[i].painter = &fleet_painters(fleet, &count)[i];
        assert_int_equal(pthread_create(&threads[i], NULL, sit, &sittings[i]), 0);
    }
    assert_int_equal(count, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        if (sittings[i].rc != ERR_OK) fail_msg("painter %u: %s", i, sittings[i].err.text);
        assert_expected(sittings[i].rgb, "several");
    }
    assert_true(access(token, F_OK) != 0);
    fleet_close(fleet);
    clear();
    assert_nothing_remains(before, "several");
}

/* The supervisor is killed while its worker is busy for ever. */
static void workers_die_with_their_supervisor(void **state)
{
    struct fleet_request request = usual_request();
    int                  status, pid, worker;
    char                 note[300], text[32] = "";
    FILE                *file;

    (void)state;
    (void)snprintf(note, sizeof note, "%s/pid", folder);
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    plant("hang", 2);
    pid = fork();
    if (pid == 0) {
        struct fleet *fleet = NULL;
        float         rgb[ALL_PIXELS];
        uint32_t      count;
        struct err    err = {0};
        seen.count = 0;
        log_install(note_worker, NULL, LOG_DEBUG);
        if (fleet_open(&fleet, &request, &err) != ERR_OK || seen.count != 1) _exit(1);
        file = fopen(note, "w");
        (void)fprintf(file, "%d\n", seen.pids[0]);
        (void)fclose(file);
        (void)paint_once(fleet_painters(fleet, &count), rgb, &err);
        _exit(1);
    }
    for (int i = 0; i < 3000 && access(token, F_OK) == 0; i++) /* gone: it hangs */
        (void)usleep(10000);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    file = fopen(note, "r");
    assert_non_null(file);
    assert_non_null(fgets(text, sizeof text, file));
    (void)fclose(file);
    worker = atoi(text);
    for (int i = 0; i < 1000 && (pid = waitpid(worker, &status, WNOHANG)) == 0; i++)
        (void)usleep(10000);
    assert_int_equal(pid, worker); /* ours since its parent died: it has ended, and is reaped */
    assert_true(WIFSIGNALED(status));
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
    clear();
}

static int interruptions;
static int interrupted_fallocate(int fd, int mode, int64_t offset, int64_t bytes)
{
    if (interruptions-- <= 0) return fallocate(fd, mode, (off_t)offset, (off_t)bytes);
    errno = EINTR;
    return -1;
}

static void a_signal_while_memory_is_made_is_no_lack_of_it(void **state)
{
    struct engine_size size = {.w_px = 64, .h_px = 64, .tiles = 1, .steps = 1};
    struct shared      shared;
    struct err         err = {.code = ERR_OK};
    struct os_calls    working = os;

    (void)state;
    interruptions = 2;
    os.fallocate = interrupted_fallocate;
    ASSERT_OK(shared_open(&shared, &size, 1, 16, &err));
    os = working;
    assert_int_equal(interruptions, -1);
    shared_close(&shared);
}

/* ------------------------------------------------------------------------ every system call */

static void every_call_of_the_supervisor_may_fail(void **state)
{
    static const char *const names[] = {
        "socketpair", "send",    "recv", "poll",  "memfd_create", "fallocate", "add_seals",
        "spawn",      "waitpid", "kill", "close", "mmap",         "calloc"};
    struct fleet_request request = usual_request();
    struct tally         tally = {0};
    char                 story[64];

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(names); k++) {
        bool fired = true;
        for (int at = 1; fired; at++) {
            (void)snprintf(story, sizeof story, "%s %d of the supervisor", names[k], at);
            /* So that there is something to kill, and more than one start. */
            if (at % 2 == 1 && strcmp(names[k], "kill") != 0)
                clear();
            else
                plant("long", 3);
            fault_arm(names[k], at);
            try_once(&request, story, &tally);
            fired = fault_fired();
            /* As long as a loop runs, its polls never end; the first dozen stand for them. */
            if (strcmp(names[k], "poll") == 0 && at >= 24) break;
        }
    }
    print_message("supervisor: %d faults, %d pictures\n", tally.tried, tally.succeeded);
    assert_true(tally.succeeded > tally.tried / 3);
}

static void every_call_of_a_worker_may_fail(void **state)
{
    static const char *const names[] = {"recv",          "send",     "poll",          "seek_end",
                                        "thread_create", "shutdown", "close",         "mmap",
                                        "mprotect",      "pread",    "aligned_alloc", "calloc"};
    struct fleet_request     request = usual_request();
    struct tally             tally = {0};
    char                     story[64];

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(names); k++) {
        bool many = strcmp(names[k], "calloc") == 0 || strcmp(names[k], "pread") == 0;
        int  stride = many && MURAL_SANITIZED ? 23 : 1;
        bool fired = true;
        for (int at = 1; fired; at += stride) {
            (void)snprintf(story, sizeof story, "%s %d of a worker", names[k], at);
            plant(names[k], at);
            try_once(&request, story, &tally);
            fired = worker_fault_fired();
        }
    }
    print_message("worker: %d faults, %d pictures\n", tally.tried, tally.succeeded);
    assert_true(tally.succeeded > 5);
}

int main(void)
{
    const struct CMUnitTest threads[] = {
        cmocka_unit_test(workers_paint_the_same_bytes),
        cmocka_unit_test(a_death_between_questions_is_not_felt),
        cmocka_unit_test(a_stage_outlives_its_worker),
        cmocka_unit_test(a_wish_to_stop_is_heard),
        cmocka_unit_test(several_paint_at_once),
    };
    const struct CMUnitTest faults[] = {
        cmocka_unit_test(a_worker_may_do_anything),
        cmocka_unit_test(each_end_has_its_sentence),
        cmocka_unit_test(what_cannot_start_says_why),
        cmocka_unit_test(workers_die_with_their_supervisor),
        cmocka_unit_test(a_signal_while_memory_is_made_is_no_lack_of_it),
        cmocka_unit_test(every_call_of_the_supervisor_may_fail),
        cmocka_unit_test(every_call_of_a_worker_may_fail),
    };
    int failed = cmocka_run_group_tests(threads, setup, teardown);

    return ONLY_THREADS ? failed : failed + cmocka_run_group_tests(faults, setup, teardown);
}
