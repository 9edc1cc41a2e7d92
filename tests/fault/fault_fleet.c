/*
 * fault_fleet.c - whatever a worker does and whichever system call fails, a small picture comes out
 * with the same bytes after some attempts, or there is one clear sentence; and nothing is left
 * behind: no process, no descriptor, no mapping.
 *
 * The worker is tests/fault/worker.c: the real one, with faults from outside.
 */
#include "../test.h"
#include "fault.h"

#include "fleet/fleet_int.h"
#include "weights/weights.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { SIDE = 64, CHANNELS = 16, CELLS = 8 * 8 * CHANNELS, PIXELS = 3 * SIDE * SIDE, STEPS = 2 };
enum { ANSWERS = 6, ATTEMPTS = 4 }; /* open, begin, encode, two steps, decode */

static const char               WORKER[] = MURAL_FAULT_WORKER;
static const struct engine_size SIZE = {.w_px = SIDE, .h_px = SIDE, .tiles = 1, .steps = STEPS};

static char  folder[200], model[256], token[256];
static float expected[PIXELS];
/* Under sanitizers all is slower, and the longest loops take larger strides. */
static const double HANG_SECONDS = MURAL_SANITIZED ? 4 : 0.5;

/* -------------------------------------------------------------------------------- painting */

static struct fleet_request usual_request(void)
{
    return (struct fleet_request){.program = WORKER,
                                  .worker_count = 1,
                                  .options = {.model_folder = model,
                                              .precision = PRECISION_F32,
                                              .threads = 1,
                                              .text_tokens = 16},
                                  .sizes = &SIZE,
                                  .size_count = 1,
                                  .channels = CHANNELS,
                                  .timeout_seconds = 60,
                                  .backoff_seconds = 0.001};
}

static int paint_once(const struct painter *painter, float *rgb_out, struct err *err)
{
    int                  rc = ERR_OK;
    uint32_t             steps = 0;
    struct painter_stage stage = {.prompt = "a fox in the snow",
                                  .guidance = 3.5,
                                  .steps = STEPS,
                                  .tokens = (SIDE / 16) * (SIDE / 16),
                                  .sigma_start = 0.8};
    struct painter_noise noise = {.seed = 7, .purpose = 1, .rect = {.w = SIDE / 8, .h = SIDE / 8}};
    float                latent[CELLS], velocity[CELLS], random[CELLS];
    struct painter_tile  tile = {.w_px = SIDE, .h_px = SIDE, .latent = latent, velocity};

    for (int32_t i = 0; i < PIXELS; i++)
        rgb_out[i] = (float)(i % 97) / 97;
    TRY(painter->begin(painter->self, &stage, &steps, err));
    assert_int_equal(steps, STEPS);
    TRY(painter->encode(painter->self, rgb_out, SIDE, SIDE, latent, err));
    painter->noise(painter->self, &noise, random);
    painter->start(painter->self, latent, random, CELLS);
    for (uint32_t step = 0; step < steps; step++) {
        TRY(painter->predict(painter->self, &tile, 1, step, err));
        painter->advance(painter->self, step, latent, velocity, CELLS);
    }
    TRY(painter->decode(painter->self, latent, SIDE, SIDE, rgb_out, err));
out:
    painter->end(painter->self);
    return rc;
}

/* As render does it. */
static int paint(const struct painter *painter, float *rgb_out, struct err *err)
{
    int rc = ERR_OK;

    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        rc = paint_once(painter, rgb_out, err);
        if (rc == ERR_OK || !err_is_retryable(err)) break;
    }
    return rc;
}

static int open_and_paint(const struct fleet_request *request, float *rgb_out, struct err *err)
{
    int           rc = ERR_OK;
    struct fleet *fleet = NULL;
    uint32_t      count = 0;

    TRY(fleet_open(&fleet, request, err));
    TRY(paint(fleet_painters(fleet, &count), rgb_out, err));
out:
    fleet_close(fleet);
    return rc;
}

/* ---------------------------------------------------------------------------- what remains */

struct remains {
    int fds, maps;
};

static int count_lines(const char *path, const char *with)
{
    char  line[1024];
    int   count = 0;
    FILE *file = fopen(path, "r");

    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        count += strstr(line, with) != NULL;
    if (file != NULL) (void)fclose(file);
    return count;
}

static struct remains look(void)
{
    return (struct remains){.fds = scratch_count("/proc/self/fd"),
                            .maps = count_lines("/proc/self/maps", "memfd:mural")};
}

static void assert_nothing_remains(struct remains before, const char *story)
{
    struct remains now = look();

    if (now.fds != before.fds)
        fail_msg("%s: %d descriptors, %d before", story, now.fds, before.fds);
    if (now.maps != before.maps)
        fail_msg("%s: %d mappings, %d before", story, now.maps, before.maps);
    if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
        fail_msg("%s: a process is left", story);
}

static void assert_is_sentence(const struct err *err, const char *story)
{
    size_t length = strlen(err->text);

    if (length < 10 || strchr(err->text, '\n') != NULL || err->text[length - 1] == '.')
        fail_msg("%s: '%s' is no sentence", story, err->text);
}

static void assert_expected(const float *rgb, const char *story)
{
    if (memcmp(rgb, expected, sizeof expected) != 0) fail_msg("%s: the picture differs", story);
}

static void touch(const char *path)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    (void)fclose(file);
}

/* The next worker has this fault; the one after it has none. */
static void plant(const char *kind, int at)
{
    char words[400], fired[300];

    (void)snprintf(fired, sizeof fired, "%s.fired", token);
    (void)unlink(fired);
    (void)snprintf(words, sizeof words, "%s %d %s", kind, at, token);
    (void)setenv("MURAL_FAULT", words, 1);
    touch(token);
}

static void clear(void)
{
    (void)unsetenv("MURAL_FAULT");
    (void)unlink(token);
}

static bool worker_fault_fired(void)
{
    char fired[300];

    (void)snprintf(fired, sizeof fired, "%s.fired", token);
    return access(fired, F_OK) == 0;
}

static int setup(void **state)
{
    struct err           err = {0};
    struct synth_request request = {.folder = model, .spec = "tiny", .dtype = DTYPE_F32, .seed = 1};
    struct fleet_request usual = usual_request();
    struct studio       *studio = NULL;

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(model, sizeof model, "%s/model", folder);
    (void)snprintf(token, sizeof token, "%s/token", folder);
    ASSERT_OK(synth_write(&request, &err));
    ASSERT_OK(studio_open(&studio, &usual.options, &SIZE, 1, &err));
    struct painter painter = studio_painter(studio);
    ASSERT_OK(paint_once(&painter, expected, &err));
    studio_close(studio);
    return 0;
}

static int teardown(void **state)
{
    char command[300];

    (void)state;
    (void)snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

/* ---------------------------------------------------------------------------------- stories */

static void workers_paint_the_same_bytes(void **state)
{
    struct fleet_request request = usual_request();
    struct remains       before = look();
    float                rgb[PIXELS];
    struct err           err = {0};

    (void)state;
    ASSERT_OK(open_and_paint(&request, rgb, &err));
    assert_expected(rgb, "undisturbed");
    assert_nothing_remains(before, "undisturbed");
}

/* Each kind of fault at each answer, and one beyond, which never comes. */
static void a_worker_may_do_anything(void **state)
{
    static const char *const kinds[] = {"exit",  "abort", "sigkill", "hangup", "device",
                                        "long",  "short", "length",  "kind",   "sequence",
                                        "twice", "nan",   "babble",  "hang",   "stop"};
    struct fleet_request     request = usual_request();
    struct remains           before = look();
    char                     story[64];
    float                    rgb[PIXELS];
    struct err               err = {0};

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        bool silent = strcmp(kinds[k], "hang") == 0 || strcmp(kinds[k], "stop") == 0;
        request.timeout_seconds = silent ? HANG_SECONDS : 60;
        for (int at = 1; at <= ANSWERS + 1; at += MURAL_SANITIZED && silent ? 3 : 1) {
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
    float                rgb[PIXELS];
    struct err           err = {0};

    (void)state;
    request.timeout_seconds = HANG_SECONDS;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct fleet *fleet = NULL;
        uint32_t      count;
        plant(rows[i].kind, 3); /* when it encodes */
        ASSERT_OK(fleet_open(&fleet, &request, &err));
        const struct painter *painter = fleet_painters(fleet, &count);
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

/* A worker that dies between two questions costs nobody an attempt. */
static struct {
    int  pids[64], count;
    char last[200];
} seen;
static void note_worker(enum log_level level, const char *line, void *user)
{
    int number, pid;

    (void)user;
    if (sscanf(line, "worker %d is process %d", &number, &pid) == 2 && seen.count < 64)
        seen.pids[seen.count++] = pid;
    if (level >= LOG_WARN) (void)snprintf(seen.last, sizeof seen.last, "%s", line);
}

/* Dead, and not yet reaped. */
static void wait_for_death(int pid)
{
    char path[64];

    (void)snprintf(path, sizeof path, "/proc/%d/status", pid);
    while (count_lines(path, "Z (zombie)") == 0)
        (void)os.poll(-1, 0, 5);
}

static void a_death_between_questions_is_not_felt(void **state)
{
    struct fleet_request request = usual_request();
    struct fleet        *fleet = NULL;
    float                rgb[PIXELS];
    uint32_t             count;
    struct err           err = {0};

    (void)state;
    seen.count = 0;
    log_install(note_worker, NULL, LOG_DEBUG);
    ASSERT_OK(fleet_open(&fleet, &request, &err));
    for (int round = 1; round <= 3; round++) {
        assert_int_equal(seen.count, round);
        assert_int_equal(kill(seen.pids[round - 1], SIGKILL), 0);
        wait_for_death(seen.pids[round - 1]);
        ASSERT_OK(paint_once(fleet_painters(fleet, &count), rgb, &err));
        assert_expected(rgb, "killed while idle");
        assert_non_null(strstr(seen.last, "was killed by signal 9"));
    }
    fleet_close(fleet);
    log_install(NULL, NULL, LOG_DEBUG);
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
    double               due = os_seconds() + 1000;
    float                rgb[PIXELS];
    uint32_t             count;
    struct err           err = {0};

    (void)state;
    request.stop_wanted = stops;
    request.user = &due;
    for (int story = 0; story < 2; story++) {
        struct fleet *fleet = NULL;
        due = os_seconds() + 1000;
        plant(story == 0 ? "hang" : "exit", 3);
        request.backoff_seconds = 1000;
        ASSERT_OK(fleet_open(&fleet, &request, &err));
        const struct painter *painter = fleet_painters(fleet, &count);
        if (story == 1) assert_int_equal(paint_once(painter, rgb, &err), ERR_PEER);
        due = os_seconds() + 0.2;
        ASSERT_REFUSED(ERR_CANCELLED, "stopped", paint_once(painter, rgb, &err));
        assert_true(os_seconds() < due + (MURAL_SANITIZED ? 5 : 1));
        fleet_close(fleet);
        clear();
    }
    assert_nothing_remains(before, "stopped");
}

struct sitting {
    const struct painter *painter;
    float                 rgb[PIXELS];
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
        float         rgb[PIXELS];
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
        (void)os.poll(-1, 0, 10);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    file = fopen(note, "r");
    assert_non_null(file);
    assert_non_null(fgets(text, sizeof text, file));
    (void)fclose(file);
    worker = atoi(text);
    for (int i = 0; i < 1000 && (pid = waitpid(worker, &status, WNOHANG)) == 0; i++)
        (void)os.poll(-1, 0, 10);
    assert_int_equal(pid, worker); /* ours since its parent died: it has ended, and is reaped */
    assert_true(WIFSIGNALED(status));
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
    clear();
}

/* ------------------------------------------------------------------------ every system call */

struct tally {
    int tried, succeeded;
};

static void check_outcome(int rc, const float *rgb, const struct err *err, const char *story,
                          struct tally *tally)
{
    tally->tried++;
    if (rc == ERR_OK) {
        assert_expected(rgb, story);
        tally->succeeded++;
    } else {
        assert_is_sentence(err, story);
    }
}

static void every_call_of_the_supervisor_may_fail(void **state)
{
    static const char *const names[] = {
        "socketpair", "send",    "recv", "poll",  "memfd_create", "fallocate", "add_seals",
        "spawn",      "waitpid", "kill", "close", "mmap",         "calloc"};
    struct fleet_request request = usual_request();
    struct remains       before = look();
    struct tally         tally = {0};
    float                rgb[PIXELS];
    char                 story[64];

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(names); k++) {
        bool fired = true;
        for (int at = 1; fired; at++) {
            struct err err = {0};
            (void)snprintf(story, sizeof story, "%s %d of the supervisor", names[k], at);
            /* So that there is something to kill, and more than one start. */
            if (at % 2 == 1 && strcmp(names[k], "kill") != 0)
                clear();
            else
                plant("long", 3);
            fault_arm(names[k], at);
            int rc = open_and_paint(&request, rgb, &err);
            fired = fault_fired();
            fault_disarm();
            check_outcome(rc, rgb, &err, story, &tally);
            assert_nothing_remains(before, story);
            /* As long as a loop runs, its polls never end; the first dozen stand for them. */
            if (strcmp(names[k], "poll") == 0 && at >= 24) break;
        }
    }
    clear();
    print_message("supervisor: %d faults, %d pictures\n", tally.tried, tally.succeeded);
    assert_true(tally.succeeded > tally.tried / 3);
}

static void every_call_of_a_worker_may_fail(void **state)
{
    static const char *const names[] = {"recv",          "send",     "poll",          "seek_end",
                                        "thread_create", "shutdown", "close",         "mmap",
                                        "mprotect",      "pread",    "aligned_alloc", "calloc"};
    struct fleet_request     request = usual_request();
    struct remains           before = look();
    struct tally             tally = {0};
    float                    rgb[PIXELS];
    char                     story[64];

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(names); k++) {
        bool many = strcmp(names[k], "calloc") == 0 || strcmp(names[k], "pread") == 0;
        int  stride = many && MURAL_SANITIZED ? 11 : 1;
        bool fired = true;
        for (int at = 1; fired; at += stride) {
            struct err err = {0};
            (void)snprintf(story, sizeof story, "%s %d of a worker", names[k], at);
            plant(names[k], at);
            int rc = open_and_paint(&request, rgb, &err);
            fired = worker_fault_fired();
            clear();
            check_outcome(rc, rgb, &err, story, &tally);
            assert_nothing_remains(before, story);
        }
    }
    print_message("worker: %d faults, %d pictures\n", tally.tried, tally.succeeded);
    assert_true(tally.succeeded > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(workers_paint_the_same_bytes),
        cmocka_unit_test(a_worker_may_do_anything),
        cmocka_unit_test(each_end_has_its_sentence),
        cmocka_unit_test(a_death_between_questions_is_not_felt),
        cmocka_unit_test(what_cannot_start_says_why),
        cmocka_unit_test(a_wish_to_stop_is_heard),
        cmocka_unit_test(several_paint_at_once),
        cmocka_unit_test(workers_die_with_their_supervisor),
        cmocka_unit_test(every_call_of_the_supervisor_may_fail),
        cmocka_unit_test(every_call_of_a_worker_may_fail),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
