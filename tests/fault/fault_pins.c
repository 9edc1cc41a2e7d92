/*
 * fault_pins.c - workers that share the weights which visit their machine: the same bytes as an
 * engine alone, the weights in memory once, whoever is killed while they are read and whichever
 * call fails.
 *
 * The machine is the walled one, under a cap so low that blocks visit.
 */
#include "fleet_stories.h"

#include "../wide_model.h"

#include "engine/compute_int.h"

#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>

enum { WORKERS = 2 };

static uint64_t streamed_bytes;
static uint32_t streamed_count;
static uint64_t least_cap;

static void make_model(void)
{
    scratch_make(folder, sizeof folder);
    (void)snprintf(model, sizeof model, "%s/model", folder);
    (void)snprintf(token, sizeof token, "%s/token", folder);
    wide_model_make(&(struct wide_model){model, 2, 8, .dtype = DTYPE_BF16});
}

static struct fleet_request sharing_request(void)
{
    struct fleet_request request = usual_request();

    request.worker_count = WORKERS;
    request.options.machine = ENGINE_WALLED;
    request.options.memory = (struct engine_memory){.vram_bytes = least_cap,
                                                    .offload = true,
                                                    .expandable = true,
                                                    .segment_bytes = (uint64_t)8 << 20,
                                                    .fragmentation_max = 0.15};
    return request;
}

/* Is there room, and what visits then? */
static bool fits(uint64_t cap)
{
    struct err           err = {0};
    struct engine       *engine = NULL;
    struct fleet_request request = sharing_request();
    bool                 fit;

    request.options.memory.vram_bytes = cap;
    ASSERT_OK(engine_open(&engine, &request.options, &err));
    fit = engine_reserve(engine, &SIZE, 1, &err) == ERR_OK;
    if (fit) {
        streamed_bytes = engine->budget.streamed_bytes;
        streamed_count = engine->budget.streamed_count;
        least_cap = cap;
    }
    engine_close(engine);
    return fit;
}

static int setup_sharing(void **state)
{
    const uint64_t       step = (uint64_t)4 << 20;
    uint64_t             enough = 64, too_few = 0; /* steps */
    struct err           err = {0};
    struct studio       *studio = NULL;
    struct fleet_request request;

    (void)state;
    make_model();
    assert_true(fits(enough * step));
    while (enough - too_few > 1) {
        uint64_t middle = (enough + too_few) / 2;
        if (fits(middle * step))
            enough = middle;
        else
            too_few = middle;
    }
    assert_true(streamed_count >= 6);
    request = sharing_request();
    ASSERT_OK(studio_open(&studio, &request.options, &SIZE, 1, &err));
    struct painter painter = studio_painter(studio);
    ASSERT_OK(begin(&painter, &err));
    ASSERT_OK(paint_in_widths(&painter, GROUP, expected, &err));
    painter.end(painter.self);
    studio_close(studio);
    return 0;
}

static uint64_t shared_in_use(const struct fleet *fleet)
{
    struct stat now = {.st_size = 0};

    if (fleet->weights_fd >= 0) assert_int_equal(fstat(fleet->weights_fd, &now), 0);
    return (uint64_t)now.st_blocks * 512;
}

/* Every worker paints. */
static void assert_all_paint(struct fleet *fleet, const char *story)
{
    float      rgb[ALL_PIXELS];
    uint32_t   count;
    struct err err = {0};

    for (uint32_t i = 0; i < WORKERS; i++) {
        err = (struct err){.code = ERR_OK};
        if (paint(&fleet_painters(fleet, &count)[i], rgb, &err) != ERR_OK)
            fail_msg("%s: %s", story, err.text);
        assert_expected(rgb, story);
    }
}

/* As many mappings of the shared file as there are blocks that visit, and the table's. */
static void assert_shares(const struct fleet *fleet, uint32_t worker)
{
    char path[64];

    (void)snprintf(path, sizeof path, "/proc/%d/maps", fleet->seats[worker].child.pid);
    assert_int_equal(count_lines(path, "memfd:mural-weights"), streamed_count + 1);
}

/* Once, and a little for each block's last page and for the table. */
static void assert_there_once(const struct fleet *fleet)
{
    uint64_t used = shared_in_use(fleet);

    assert_true(used >= streamed_bytes);
    assert_true(used <= streamed_bytes + (streamed_count + 4) * 4096);
}

/* ---------------------------------------------------------------------------------- stories */

static void weights_are_there_once(void **state)
{
    struct fleet_request request = sharing_request();
    struct remains       before = look();
    struct fleet        *fleet = NULL;
    struct err           err = {0};

    (void)state;
    ASSERT_OK(fleet_open(&fleet, &request, &err));
    assert_all_paint(fleet, "two workers");
    for (uint32_t i = 0; i < WORKERS; i++)
        assert_shares(fleet, i);
    assert_there_once(fleet);
    assert_int_equal(kill(fleet->seats[0].child.pid, SIGKILL), 0);
    assert_all_paint(fleet, "one of them anew");
    assert_shares(fleet, 0);
    assert_there_once(fleet);
    fleet_close(fleet);
    assert_nothing_remains(before, "two workers");
}

/* One alone, and one on the CPU's own memory, have nothing to share. */
static void who_is_alone_shares_nothing(void **state)
{
    (void)state;
    for (int cpu = 0; cpu < 2; cpu++) {
        struct fleet_request request = sharing_request();
        struct fleet        *fleet = NULL;
        struct err           err = {0};

        request.worker_count = cpu ? WORKERS : 1;
        if (cpu) request.options.machine = ENGINE_CPU;
        ASSERT_OK(fleet_open(&fleet, &request, &err));
        assert_int_equal(fleet->weights_fd, -1);
        fleet_close(fleet);
    }
}

/* One that is asked for memory has more blocks that visit, of other indices; those that visited
 * before are found, and so are the new ones by whoever is asked next. */
static void workers_may_differ_in_what_visits(void **state)
{
    struct fleet_request request = sharing_request();
    struct fleet        *fleet = NULL;
    struct err           err = {0};
    char                 words[300] = "";
    uint64_t             used[3];

    (void)state;
    request.options.memory.vram_bytes += (uint64_t)6 << 20;
    ASSERT_OK(fleet_open(&fleet, &request, &err));
    used[0] = shared_in_use(fleet);
    assert_true(used[0] > 0 && used[0] < streamed_bytes);
    for (uint32_t i = 0; i < WORKERS; i++) {
        const struct painter *painter = &fleet->painters[i];
        for (int tries = 0; tries < 5 && strstr(words, "demote") == NULL; tries++)
            assert_true(painter->yield_memory(painter->self, words, sizeof words));
        words[0] = '\0';
        assert_all_paint(fleet, "workers that differ");
        used[1 + i] = shared_in_use(fleet);
    }
    assert_true(used[1] > used[0]);
    assert_int_equal(used[2], used[1]);
    fleet_close(fleet);
}

/* Kills one of the two when its time has come. */
static struct {
    pthread_mutex_t lock;
    int             pids[WORKERS];
} started = {.lock = PTHREAD_MUTEX_INITIALIZER};
static void note_start(enum log_level level, const char *line, void *user)
{
    int number = 0, pid = 0;

    (void)level;
    (void)user;
    if (sscanf(line, "worker %d is process %d", &number, &pid) != 2) return;
    if (number < 1 || number > WORKERS) return;
    (void)pthread_mutex_lock(&started.lock);
    if (started.pids[number - 1] == 0) started.pids[number - 1] = pid;
    (void)pthread_mutex_unlock(&started.lock);
}

struct killing {
    int victim, wait_us;
};
static void *kill_later(void *argument)
{
    const struct killing *killing = argument;

    (void)usleep((useconds_t)killing->wait_us);
    (void)pthread_mutex_lock(&started.lock);
    if (started.pids[killing->victim] != 0) (void)kill(started.pids[killing->victim], SIGKILL);
    (void)pthread_mutex_unlock(&started.lock);
    return NULL;
}

static void one_may_be_killed_while_it_reads(void **state)
{
    const int            rounds = MURAL_SANITIZED ? 5 : 16;
    struct fleet_request request = sharing_request();
    struct remains       before = look();
    uint64_t             random = 11;
    double               opening = os_seconds();
    struct fleet        *fleet = NULL;
    struct err           err = {0};

    (void)state;
    ASSERT_OK(fleet_open(&fleet, &request, &err));
    fleet_close(fleet);
    opening = os_seconds() - opening;
    for (int round = 0; round < rounds; round++) {
        struct killing killing = {round % WORKERS,
                                  (int)random_between(&random, 0, (int64_t)(1e6 * opening))};
        char           story[64];
        pthread_t      thread;

        (void)snprintf(story, sizeof story, "worker %d killed after %d us", killing.victim + 1,
                       killing.wait_us);
        memset(started.pids, 0, sizeof started.pids);
        log_install(note_start, NULL, LOG_DEBUG);
        assert_int_equal(pthread_create(&thread, NULL, kill_later, &killing), 0);
        err = (struct err){.code = ERR_OK};
        if (fleet_open(&fleet, &request, &err) != ERR_OK) fail_msg("%s: %s", story, err.text);
        (void)pthread_join(thread, NULL);
        log_install(NULL, NULL, LOG_DEBUG);
        assert_all_paint(fleet, story);
        assert_there_once(fleet);
        fleet_close(fleet);
        assert_nothing_remains(before, story);
    }
}

/* ----------------------------------------------------------------------------------- faults */

/* Of the supervisor: then each worker has its own, and the picture is the same. */
static void no_file_is_no_failure(void **state)
{
    static const char *const names[] = {"memfd_create", "ftruncate", "add_seals"};
    struct fleet_request     request = sharing_request();

    (void)state;
    for (size_t n = 0; n < ARRAY_COUNT(names); n++) {
        struct fleet *fleet = NULL;
        struct err    err = {0};

        fault_arm(names[n], 1); /* the first thing that a fleet asks for */
        ASSERT_OK(fleet_open(&fleet, &request, &err));
        assert_true(fault_fired());
        fault_disarm();
        assert_int_equal(fleet->weights_fd, -1);
        assert_all_paint(fleet, names[n]);
        fleet_close(fleet);
    }
}

/* Of a worker, where it shares: each use in turn. */
static void a_workers_calls_may_fail(void **state)
{
    static const char *const names[] = {"lock_byte", "populate", "fallocate"};
    struct fleet_request     request = sharing_request();

    (void)state;
    for (size_t n = 0; n < ARRAY_COUNT(names); n++) {
        bool fired = true;
        for (int at = 1; fired; at += MURAL_SANITIZED ? 17 : 9) {
            struct fleet *fleet = NULL;
            struct err    err = {0};
            char          story[64];

            (void)snprintf(story, sizeof story, "%s %d", names[n], at);
            plant(names[n], at);
            if (fleet_open(&fleet, &request, &err) != ERR_OK) fail_msg("%s: %s", story, err.text);
            assert_all_paint(fleet, story);
            fleet_close(fleet);
            fired = worker_fault_fired();
            clear();
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_there_once),
        cmocka_unit_test(who_is_alone_shares_nothing),
        cmocka_unit_test(workers_may_differ_in_what_visits),
        cmocka_unit_test(one_may_be_killed_while_it_reads),
        cmocka_unit_test(no_file_is_no_failure),
        cmocka_unit_test(a_workers_calls_may_fail),
    };

    return cmocka_run_group_tests_name("fault_pins", tests, setup_sharing, teardown);
}
