/*
 * test_shared_pins.c - memory that processes share: filled by one, found by the others, whoever
 * dies, whatever stands in the table, whichever call fails.
 *
 * Processes are real ones; time may run faster than it does.
 */
#include "../test.h"

#include "../fault/fault.h"

#include <omp.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

static double hurry = 1;

static double hurried_seconds(void)
{
    return hurry * os_seconds();
}

#define os_seconds        hurried_seconds
#define shared_pins_open  own_shared_pins_open
#define shared_pins_close own_shared_pins_close
#define shared_pins_take  own_shared_pins_take
#define shared_pins_give  own_shared_pins_give
#include "../../src/backend/shared_pins.c"

enum { MIB = 1 << 20 };

/* What all processes count in. */
static struct {
    int fills, finished;
} *counted;

static int file_make(int64_t bytes)
{
    int fd = memfd_create("mural-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd > 0);
    assert_int_equal(ftruncate(fd, bytes), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    return fd;
}

static uint64_t bytes_in_use(int fd)
{
    struct stat now;

    assert_int_equal(fstat(fd, &now), 0);
    return (uint64_t)now.st_blocks * 512;
}

/* ------------------------------------------------------------------------------------ filling */

/* Bytes are a function of their name. */
struct work {
    uint64_t name, bytes;
    int      pause_us; /* after each of some pieces */
    int      status;   /* half-way, instead of going on */
};

static uint8_t byte_at(uint64_t name, uint64_t at)
{
    return (uint8_t)((name * 31 + at) * UINT64_C(0x9E3779B97F4A7C15) >> 56);
}

static int fill_slowly(void *user, void *x_out)
{
    const struct work *work = user;
    const uint64_t     piece = work->bytes / 16 + 1;

    __atomic_add_fetch(&counted->fills, 1, __ATOMIC_SEQ_CST);
    for (uint64_t at = 0; at < work->bytes; at++) {
        ((uint8_t *)x_out)[at] = byte_at(work->name, at);
        if (at % piece == 0 && work->pause_us > 0) (void)usleep((useconds_t)work->pause_us);
        if (work->status != 0 && at >= work->bytes / 2) return work->status;
    }
    __atomic_add_fetch(&counted->finished, 1, __ATOMIC_SEQ_CST);
    return 0;
}

static int take(struct shared_pins *pins, struct work *work, bool may_make, void **memory_out,
                bool *made_out)
{
    struct shared_pins_request request = {.name = work->name,
                                          .bytes = work->bytes,
                                          .may_make = may_make,
                                          .fill = fill_slowly,
                                          .user = work};

    return shared_pins_take(pins, &request, memory_out, made_out);
}

static bool is_right(const struct work *work, const void *memory)
{
    for (uint64_t at = 0; memory != NULL && at < work->bytes; at++)
        if (((const uint8_t *)memory)[at] != byte_at(work->name, at)) return false;
    return memory != NULL;
}

/* ---------------------------------------------------------------------------------- processes */

/* Takes each piece of work, from `first` on and round; ends with 0 when all bytes were right. */
static pid_t start(int fd, struct work *works, int count, int first)
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid > 0) return pid;
    (void)alarm(60);
    struct shared_pins *pins = shared_pins_open(fd);
    for (int i = 0; i < count; i++) {
        struct work *work = &works[(first + i) % count];
        void        *memory = NULL;
        bool         made;
        if (pins == NULL || take(pins, work, true, &memory, &made) != 0) _exit(2);
        if (!is_right(work, memory)) _exit(3);
        shared_pins_give(memory, work->bytes);
    }
    shared_pins_close(pins);
    _exit(0);
}

static int end_of_process(pid_t pid)
{
    int status = 0;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void one_fills_and_all_find(void **state)
{
    enum { PROCESSES = 4, WORKS = 6, ROUNDS = 20 };
    uint64_t random = 1;

    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct work works[WORKS];
        pid_t       pids[PROCESSES];
        int         fd = file_make((int64_t)1 << 40);

        for (int w = 0; w < WORKS; w++)
            works[w] = (struct work){.name = random_u64(&random),
                                     .bytes = (uint64_t)random_between(&random, 1, 5 * MIB / 2),
                                     .pause_us = (int)random_between(&random, 0, 200)};
        counted->fills = 0;
        for (int p = 0; p < PROCESSES; p++) /* in their order, or each from elsewhere on */
            pids[p] = start(fd, works, WORKS, round % 2 * p);
        for (int p = 0; p < PROCESSES; p++)
            assert_int_equal(end_of_process(pids[p]), 0);
        assert_int_equal(counted->fills, WORKS);
        (void)close(fd);
    }
}

/* At a random moment of its work; another one waits for it, and a third comes later. */
static void what_a_killed_one_began_is_filled_again(void **state)
{
    enum { ROUNDS = 100 };
    uint64_t random = 2;
    int      cut = 0;

    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct work work = {.name = random_u64(&random), .bytes = MIB + 7, .pause_us = 300};
        int         fd = file_make((int64_t)1 << 40);
        void       *memory = NULL;
        bool        made;

        counted->fills = counted->finished = 0;
        pid_t first = start(fd, &work, 1, 0);
        (void)usleep((useconds_t)random_between(&random, 0, 12000));
        pid_t second = start(fd, &work, 1, 0);
        (void)usleep((useconds_t)random_between(&random, 0, 3000));
        (void)kill(first, SIGKILL);
        (void)end_of_process(first);
        assert_int_equal(end_of_process(second), 0);
        cut += counted->fills > counted->finished;
        assert_true(counted->fills <= 2 && counted->finished >= 1);
        struct shared_pins *pins = shared_pins_open(fd);
        assert_non_null(pins);
        assert_int_equal(take(pins, &work, false, &memory, &made), 0);
        assert_true(is_right(&work, memory) && !made);
        shared_pins_give(memory, work.bytes);
        shared_pins_close(pins);
        (void)close(fd);
    }
    print_message("# %d of %d were killed half-way\n", cut, ROUNDS);
    assert_true(cut >= ROUNDS / 5);
}

/* One that is stopped has its lock yet. */
static void nobody_waits_for_ever(void **state)
{
    struct work work = {.name = 5, .bytes = MIB, .pause_us = 20000}, other = {6, MIB, 0, 0};
    int         fd = file_make((int64_t)1 << 40);
    void       *memory = &memory;
    bool        made;

    (void)state;
    counted->fills = 0;
    pid_t first = start(fd, &work, 1, 0);
    while (__atomic_load_n(&counted->fills, __ATOMIC_SEQ_CST) == 0)
        (void)usleep(1000);
    assert_int_equal(kill(first, SIGSTOP), 0);
    hurry = 200;
    struct shared_pins *pins = shared_pins_open(fd);
    assert_int_equal(take(pins, &work, true, &memory, &made), 0);
    hurry = 1;
    assert_null(memory);
    assert_int_equal(take(pins, &other, true, &memory, &made), 0); /* it does without from now on */
    assert_null(memory);
    shared_pins_close(pins);
    assert_int_equal(kill(first, SIGCONT), 0);
    assert_int_equal(end_of_process(first), 0);
    (void)close(fd);
}

/* -------------------------------------------------------------------------------------- table */

static void other_names_are_other_bytes(void **state)
{
    struct work         works[] = {{1, MIB, 0, 0}, {2, MIB, 0, 0}, {1, MIB + 1, 0, 0}};
    int                 fd = file_make((int64_t)1 << 40);
    struct shared_pins *pins = shared_pins_open(fd);
    void               *memory[ARRAY_COUNT(works)], *none = &none;
    bool                made;

    (void)state;
    assert_int_equal(take(pins, &works[0], false, &none, &made), 0);
    assert_true(none == NULL && !made); /* nobody has it, and it may not be made */
    for (size_t i = 0; i < ARRAY_COUNT(works); i++) {
        assert_int_equal(take(pins, &works[i], true, &memory[i], &made), 0);
        assert_true(made);
    }
    for (size_t i = 0; i < ARRAY_COUNT(works); i++) {
        void *again;
        assert_int_equal(take(pins, &works[i], false, &again, &made), 0);
        assert_true(!made && is_right(&works[i], memory[i]) && is_right(&works[i], again));
        shared_pins_give(again, works[i].bytes);
        shared_pins_give(memory[i], works[i].bytes);
    }
    shared_pins_close(pins);
    (void)close(fd);
}

static void a_full_file_leaves_its_entries(void **state)
{
    int  fd = file_make(6 * MIB + 100), bad[2];
    bool made;

    (void)state;
    struct work         works[] = {{1, 2 * MIB, 0, 0}, {2, 2 * MIB, 0, 0}, {3, 101, 0, 0}};
    struct shared_pins *pins = shared_pins_open(fd);
    void               *memory;
    for (int w = 0; w < 3; w++) {
        assert_int_equal(take(pins, &works[w], true, &memory, &made), 0);
        assert_true(w < 2 ? is_right(&works[w], memory) : memory == NULL);
        if (memory != NULL) shared_pins_give(memory, works[w].bytes);
    }
    shared_pins_close(pins);
    pins = shared_pins_open(fd);
    assert_int_equal(take(pins, &works[1], false, &memory, &made), 0);
    assert_true(is_right(&works[1], memory));
    shared_pins_give(memory, works[1].bytes);
    shared_pins_close(pins);
    (void)close(fd);
    /* What is no such file. */
    assert_null(shared_pins_open(0));
    assert_null(shared_pins_open(9999));
    assert_int_equal(pipe(bad), 0);
    assert_null(shared_pins_open(bad[0]));
    (void)close(bad[0]);
    (void)close(bad[1]);
    fd = file_make(100);
    assert_null(shared_pins_open(fd));
    (void)close(fd);
}

/* Pages beyond the file's end would be a signal. */
static void no_table_leads_outside(void **state)
{
    enum { ROUNDS = 400 };
    static struct table table;
    uint64_t            random = 3;
    int                 fd = file_make(12 * MIB), taken = 0;

    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        struct work work = {.name = 7, .bytes = (uint64_t)random_between(&random, 1, 7 * MIB)};
        void       *memory;
        bool        made;
        table.count = (uint32_t)(round % 3 == 0 ? random_u64(&random)
                                                : (uint64_t)random_between(&random, 0, 8));
        for (int i = 0; i < 9; i++) {
            uint64_t sizes[] = {work.bytes, MIB, 0, random_u64(&random), UINT64_MAX, 9 * MIB};
            table.entries[i] =
                (struct entry){.name = (uint64_t)random_between(&random, 6, 7),
                               .bytes = sizes[random_between(&random, 0, round % 2 ? 1 : 5)],
                               .full = (uint32_t)random_between(&random, 0, 2)};
        }
        assert_int_equal(pwrite(fd, &table, sizeof table, 0), sizeof table);
        struct shared_pins *pins = shared_pins_open(fd);
        assert_int_equal(take(pins, &work, true, &memory, &made), 0);
        for (uint64_t at = 0; memory != NULL && at < work.bytes; at += 4096)
            ((volatile uint8_t *)memory)[at]++;
        if (memory != NULL) {
            ((volatile uint8_t *)memory)[work.bytes - 1]++;
            shared_pins_give(memory, work.bytes);
        }
        taken += memory != NULL;
        shared_pins_close(pins);
    }
    assert_true(taken > ROUNDS / 20 && taken < ROUNDS);
    (void)close(fd);
}

/* ------------------------------------------------------------------------------------- faults */

static int lines;

static void count_line(enum log_level level, const char *line, void *user)
{
    (void)user;
    assert_int_equal(level, LOG_WARN);
    assert_true(strlen(line) > 20);
    lines++;
}

/* What could not be filled takes no memory, and can be filled later. */
static void a_fill_that_fails_is_told_and_forgotten(void **state)
{
    struct work         work = {.name = 8, .bytes = 3 * MIB, .status = EIO};
    int                 fd = file_make((int64_t)1 << 40);
    struct shared_pins *pins = shared_pins_open(fd);
    void               *memory = &memory;
    bool                made;

    (void)state;
    assert_int_equal(take(pins, &work, true, &memory, &made), EIO);
    assert_true(memory == NULL && !made);
    assert_true(bytes_in_use(fd) < MIB);
    work.status = 0;
    assert_int_equal(take(pins, &work, true, &memory, &made), 0);
    assert_true(is_right(&work, memory) && made);
    assert_true(bytes_in_use(fd) >= 3 * MIB);
    shared_pins_give(memory, work.bytes);
    shared_pins_close(pins);
    (void)close(fd);
}

/* Each use of each call in turn: the bytes, or none and one line; and whoever comes next has them,
 * unless this process cannot let go of a lock. */
static void every_call_may_fail(void **state)
{
    static const char *const names[] = {"seek_end", "mmap", "lock_byte", "populate",
                                        "calloc",   "poll", "fallocate"};

    (void)state;
    log_install(count_line, NULL, LOG_WARN);
    for (size_t n = 0; n < ARRAY_COUNT(names); n++)
        for (int at = 1, fired = 1; fired; at++) {
            struct work works[] = {{1, 9 * MIB, 0, 0}, {2, MIB, 0, 0}};
            int         fd = file_make((int64_t)1 << 40);
            lines = 0;
            fault_arm(names[n], at);
            struct shared_pins *pins = shared_pins_open(fd);
            for (int w = 0; pins != NULL && w < 2; w++) {
                void *memory;
                bool  made;
                assert_int_equal(take(pins, &works[w], true, &memory, &made), 0);
                if (memory == NULL) assert_int_equal(lines, 1);
                if (memory != NULL) assert_true(is_right(&works[w], memory));
                if (memory != NULL) shared_pins_give(memory, works[w].bytes);
            }
            shared_pins_close(pins);
            fired = fault_fired();
            fault_disarm();
            if (lines > 1 || (!fired && lines > 0))
                fail_msg("%s %d: %d lines", names[n], at, lines);
            assert_int_equal(end_of_process(start(fd, works, 2, 0)), 0);
            (void)close(fd);
        }
    log_install(NULL, NULL, LOG_DEBUG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_fills_and_all_find),
        cmocka_unit_test(what_a_killed_one_began_is_filled_again),
        cmocka_unit_test(nobody_waits_for_ever),
        cmocka_unit_test(other_names_are_other_bytes),
        cmocka_unit_test(a_full_file_leaves_its_entries),
        cmocka_unit_test(no_table_leads_outside),
        cmocka_unit_test(a_fill_that_fails_is_told_and_forgotten),
        cmocka_unit_test(every_call_may_fail),
    };

    omp_set_num_threads(1); /* threads of a parent are not there in its children */
    counted =
        mmap(NULL, sizeof *counted, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(counted != MAP_FAILED);
    return cmocka_run_group_tests_name("shared_pins", tests, NULL, NULL);
}
