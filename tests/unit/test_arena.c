/* test_arena.c - the stack of bytes: order, limits, the seal, and dry runs that agree with real
 * ones. */
#include "../test.h"

#include "memory/memory.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

static void takes_are_aligned_apart_and_rewound(void **state)
{
    struct err    err = {0};
    struct arena *arena = NULL;

    (void)state;
    ASSERT_OK(arena_open(&arena, 8u << 20, &err));
    char *a = arena_take(arena, 1, "a"), *b = arena_take(arena, 100, "b");
    assert_int_equal((uintptr_t)a % 64, 0);
    assert_int_equal(b - a, 64);
    struct arena_mark mark = arena_mark(arena);
    char             *c = arena_take(arena, 5u << 20, "c");
    memset(c, 1, 5u << 20);
    arena_rewind(arena, mark);
    assert_ptr_equal(arena_take(arena, 3, "d"), c);
    assert_int_equal(arena_bytes_peak(arena), 192 + (5u << 20));
    arena_close(arena);
}

static uint64_t random_walk(struct arena *arena, uint64_t seed, bool touch)
{
    struct arena_mark marks[32];
    int               depth = 0;

    for (int i = 0; i < 2000; i++) {
        uint64_t choice = random_u64(&seed) % 4;
        uint64_t bytes = random_u64(&seed) % 50000;
        if (choice == 0 && depth < 32) {
            marks[depth++] = arena_mark(arena);
        } else if (choice == 1 && depth > 0) {
            arena_rewind(arena, marks[--depth]);
        } else if (depth > 0) {
            char *bytes_taken = arena_take(arena, bytes, "walk");
            if (touch && bytes > 0) bytes_taken[bytes - 1] = 1;
        }
    }
    return arena_bytes_peak(arena);
}

static void a_dry_run_measures_exactly_what_the_real_one_takes(void **state)
{
    struct err err = {0};

    (void)state;
    for (uint64_t seed = 1; seed < 20; seed++) {
        struct arena *dry = NULL, *real = NULL;
        ASSERT_OK(arena_open_dry(&dry, &err));
        assert_true(arena_is_dry(dry));
        uint64_t peak = random_walk(dry, seed, false);
        ASSERT_OK(arena_open(&real, peak, &err));
        ASSERT_OK(arena_seal(real, peak, &err));
        assert_int_equal(random_walk(real, seed, true), peak);
        arena_close(dry);
        arena_close(real);
    }
}

/* Runs `action` in a child and tells whether it was stopped by SIGABRT or SIGSEGV. */
static bool stops(void (*action)(void))
{
    int   status = 0;
    pid_t child = fork();

    if (child == 0) {
        (void)freopen("/dev/null", "w", stderr);
        (void)signal(SIGABRT, SIG_DFL);
        (void)signal(SIGSEGV, SIG_DFL);
        action();
        _exit(0);
    }
    (void)waitpid(child, &status, 0);
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void grow_after_seal(void)
{
    struct err    err = {0};
    struct arena *arena = NULL;
    if (arena_open(&arena, 8u << 20, &err) != ERR_OK || arena_seal(arena, 100, &err) != ERR_OK)
        _exit(0);
    (void)arena_take(arena, 3u << 20, "too much");
}
static void grow_beyond_limit(void)
{
    struct err    err = {0};
    struct arena *arena = NULL;
    if (arena_open(&arena, 2u << 20, &err) != ERR_OK) _exit(0);
    (void)arena_take(arena, 3u << 20, "too much");
}
static void rewind_forward(void)
{
    struct err    err = {0};
    struct arena *arena = NULL;
    if (arena_open(&arena, 2u << 20, &err) != ERR_OK) _exit(0);
    arena_rewind(arena, (struct arena_mark){.offset = 64});
}
static void write_dry(void)
{
    struct err    err = {0};
    struct arena *arena = NULL;
    if (arena_open_dry(&arena, &err) != ERR_OK) _exit(0);
    *(volatile char *)arena_take(arena, 64, "dry") = 1;
}

static void broken_promises_stop_the_process(void **state)
{
    (void)state;
    assert_true(stops(grow_after_seal));
    assert_true(stops(grow_beyond_limit));
    assert_true(stops(rewind_forward));
    assert_true(stops(write_dry));
}

static int refusing_mprotect(void *address, size_t bytes, int protection)
{
    (void)address, (void)bytes, (void)protection;
    errno = ENOMEM;
    return -1;
}

static void refusals_are_one_sentence(void **state)
{
    struct err    err = {0};
    struct arena *arena = NULL;

    (void)state;
    ASSERT_OK(arena_open(&arena, 4u << 20, &err));
    ASSERT_REFUSED(ERR_HOST_MEM, "the limit is 4.2 MB", arena_seal(arena, 100u << 20, &err));
    os.mprotect = refusing_mprotect;
    int rc = arena_seal(arena, 1u << 20, &err);
    os.mprotect = mprotect;
    assert_int_equal(rc, ERR_HOST_MEM);
    ASSERT_OK(arena_seal(arena, 1u << 20, &err));
    arena_close(arena);
    arena_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_are_aligned_apart_and_rewound),
        cmocka_unit_test(a_dry_run_measures_exactly_what_the_real_one_takes),
        cmocka_unit_test(broken_promises_stop_the_process),
        cmocka_unit_test(refusals_are_one_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
