/*
 * fault_probe.c - a GPU is asked about by a process that may answer anything, or nothing.
 *
 * The process is a shell script written here: what a card says can be told without one.
 */
#include "../test.h"
#include "fault.h"

#include "fleet/fleet_int.h"

#include <sys/stat.h>
#include <sys/wait.h>

static char folder[128], script[160];

static int make_folder(void **state)
{
    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(script, sizeof script, "%s/probe", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

static void write_script(const char *words)
{
    FILE *file = fopen(script, "w");

    assert_non_null(file);
    (void)fprintf(file, "#!/bin/sh\n%s\n", words);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(script, 0700), 0);
}

static const char GOOD[] = "{\"name\": \"Card 9\", \"total\": 80000000000, \"free\": 79000000000, "
                           "\"major\": 9, \"minor\": 0, \"numeric\": \"Card 9 sm_90\", "
                           "\"flops\": 1.5e14, \"link\": 2.5e10}";

static struct engine_device found;
static double               flops;

static int ask(double seconds, const struct engine_facts *trial, struct err *err)
{
    struct probe_request request = {
        .program = script, .gpu = 2, .trial = trial, .timeout_seconds = seconds};

    struct probe *left;
    int           rc;

    *err = (struct err){0};
    rc = fleet_probe(&found, &flops, &left, &request, err);
    assert_true((rc == ERR_OK) == (left != NULL));
    fleet_probe_end(left);
    return rc;
}

/* A process that answers `json` in one message. */
static int ask_one_that_says(const char *json, struct err *err)
{
    char words[6000];

    (void)snprintf(words, sizeof words, "printf %%s '%s' >&3", json);
    write_script(words);
    return ask(20, NULL, err);
}

static void an_answer_is_believed(void **state)
{
    struct err err;

    (void)state;
    ASSERT_OK(ask_one_that_says(GOOD, &err));
    assert_string_equal(found.name, "Card 9");
    assert_string_equal(found.numeric, "Card 9 sm_90");
    assert_true(found.bytes_total == UINT64_C(80000000000));
    assert_true(found.bytes_free == UINT64_C(79000000000));
    assert_int_equal(found.major, 9);
    assert_true(flops == 1.5e14);
    assert_true(found.link_bytes_per_second == 2.5e10);
}

static void the_question_travels_as_words(void **state)
{
    struct err          err;
    struct engine_facts trial = {.hidden = 3072, .heads = 24, .bf16 = true};
    char                words[600];

    (void)state;
    (void)snprintf(words, sizeof words,
                   "[ \"$*\" = 'probe 2 3072 24 bf16' ] || exit 9\nprintf %%s '%s' >&3", GOOD);
    write_script(words);
    ASSERT_OK(ask(20, &trial, &err));
    ASSERT_REFUSED(ERR_DEVICE, "ended with status 9", ask(20, NULL, &err));
}

static void a_failure_is_passed_on(void **state)
{
    struct err err;

    (void)state;
    ASSERT_REFUSED(ERR_DEVICE, "device: it is lost",
                   ask_one_that_says(
                       "{\"code\": 7, \"sys\": 719, \"sentence\": \"device: it is lost\"}", &err));
    assert_int_equal(err.sys, 719);
    assert_string_equal(found.absent, "");
    ASSERT_REFUSED(
        ERR_DEVICE, "device: no driver",
        ask_one_that_says("{\"code\": 7, \"sys\": 35, \"sentence\": \"device: no driver\","
                          " \"absent\": \"there is no driver\"}",
                          &err));
    assert_string_equal(found.absent, "there is no driver");
}

/* None of these may pass for a card, nor for its absence: "auto" would take the CPU. */
static void a_lie_is_one_sentence(void **state)
{
    static const char *const lies[] = {
        "",
        "{",
        "[]",
        "{}",
        "null",
        "{\"name\": \"Card\"}",
        "{\"name\": \"Card\", \"numeric\": \"x\", \"total\": 8, \"free\": 9, \"major\": 9, "
        "\"minor\": 0, \"flops\": 0.0, \"link\": 0.0}",
        "{\"name\": \"Card\", \"numeric\": \"x\", \"total\": -8, \"free\": -9, \"major\": 9, "
        "\"minor\": 0, \"flops\": 0.0, \"link\": 0.0}",
        "{\"name\": \"Card\", \"numeric\": \"x\", \"total\": 8.5, \"free\": 1, \"major\": 9, "
        "\"minor\": 0, \"flops\": 0.0, \"link\": 0.0}",
        "{\"name\": \"Card\\u001b[2J\", \"numeric\": \"x\", \"total\": 8, \"free\": 1, "
        "\"major\": 9, \"minor\": 0, \"flops\": 0.0, \"link\": 0.0}",
        "{\"name\": \"Card\", \"numeric\": \"x\", \"total\": 8, \"free\": 1, \"major\": 9, "
        "\"minor\": 0, \"flops\": -1.0, \"link\": 0.0}",
        "{\"name\": \"Card\", \"numeric\": \"x\", \"total\": 8, \"free\": 1, \"major\": 9, "
        "\"minor\": 0, \"flops\": \"many\", \"link\": 0.0}",
        "{\"name\": \"Card\", \"numeric\": \"x\", \"total\": 8, \"free\": 1, \"major\": 9, "
        "\"minor\": 0, \"flops\": 1.0}",
        "{\"name\": \"Card\", \"numeric\": \"x\", \"total\": 8, \"free\": 1, \"major\": 9, "
        "\"minor\": 0, \"flops\": 1.0, \"link\": 1e30}",
        "{\"name\": \"Card\", \"numeric\": \"\", \"total\": 8, \"free\": 1, \"major\": 9, "
        "\"minor\": 0, \"flops\": 0.0, \"link\": 0.0}",
        "{\"code\": 0, \"sys\": 0, \"sentence\": \"all is well\"}",
        "{\"code\": 10, \"sys\": 0, \"sentence\": \"stopped on request\"}",
        "{\"code\": 7, \"sys\": 0, \"sentence\": \"two\\nlines\"}",
        "{\"code\": 7, \"sys\": 0, \"sentence\": \"no driver\", \"absent\": 1}",
        "{\"code\": 7, \"sys\": 0, \"sentence\": \"no driver\", \"absent\": \"\"}"};
    struct err err;

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(lies); i++) {
        int rc = ask_one_that_says(lies[i], &err);
        if (rc != ERR_DEVICE || strstr(err.text, "--device cpu") == NULL)
            fail_msg("%s: code %d, '%s'", lies[i], rc, err.text);
        assert_string_equal(found.absent, "");
        assert_string_equal(found.name, "");
        assert_true(flops == 0 && found.link_bytes_per_second == 0);
    }
}

static void too_long_an_answer_is_a_lie(void **state)
{
    struct err err;

    (void)state;
    write_script("head -c 5000 /dev/zero | tr '\\0' ' ' >&3; sleep 5");
    ASSERT_REFUSED(ERR_DEVICE, "cannot be true", ask(20, NULL, &err));
}

static void one_that_dies_is_one_sentence(void **state)
{
    struct err err;

    (void)state;
    write_script("kill -SEGV $$");
    ASSERT_REFUSED(ERR_DEVICE, "was killed by signal 11", ask(20, NULL, &err));
    write_script("exit 3");
    ASSERT_REFUSED(ERR_DEVICE, "ended with status 3", ask(20, NULL, &err));
    write_script("exec 3>&- 4>&- 5>&-; sleep 60"); /* hangs up, and lives */
    ASSERT_REFUSED(ERR_DEVICE, "was killed by signal 9", ask(20, NULL, &err));
}

static void one_that_hangs_is_not_waited_for(void **state)
{
    struct err err;
    double     begin = os_seconds();

    (void)state;
    write_script("exec sleep 60");
    ASSERT_REFUSED(ERR_DEVICE, "did not answer", ask(0.3, NULL, &err));
    assert_true(os_seconds() - begin < 10);
}

static void a_program_that_is_not_there(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(unlink(script), 0);
    ASSERT_REFUSED(ERR_PEER, "as a probe", ask(20, NULL, &err));
}

/* Its answer counts at once, its end when the GPU's memory is wanted: of itself, or it is killed.
 */
static void an_end_is_waited_for_later(void **state)
{
    static const char *const endings[] = {"sleep 0.5; touch ended", "exec sleep 60"};
    struct err               err = {0};
    struct probe_request     request = {.program = script, .timeout_seconds = 20};
    struct probe            *left;
    char                     words[700], ended[160];

    (void)state;
    (void)snprintf(ended, sizeof ended, "%s/ended", folder);
    for (size_t i = 0; i < ARRAY_COUNT(endings); i++) {
        (void)snprintf(words, sizeof words, "cd '%s'\nprintf %%s '%s' >&3\n%s", folder, GOOD,
                       endings[i]);
        write_script(words);
        ASSERT_OK(fleet_probe(&found, &flops, &left, &request, &err));
        assert_int_not_equal(access(ended, F_OK), 0);
        double begin = os_seconds();
        fleet_probe_end(left);
        assert_true(os_seconds() - begin < 10);
        assert_int_equal(access(ended, F_OK) == 0, i == 0);
        assert_int_equal(waitpid(-1, NULL, 0), -1);
        (void)unlink(ended);
    }
    fleet_probe_end(NULL);
}

/* The program itself, which finds no GPU where there is none to see. */
static void the_program_answers(void **state)
{
    struct err           err = {0};
    struct probe_request request = {.program = MURAL_PROGRAM, .gpu = 0, .timeout_seconds = 60};
    struct probe        *left;

    (void)state;
    assert_int_equal(setenv("CUDA_VISIBLE_DEVICES", "", 1), 0);
    ASSERT_REFUSED(ERR_DEVICE, "--device cpu", fleet_probe(&found, &flops, &left, &request, &err));
    assert_null(left);
    assert_true(found.absent[0] != '\0');
}

/* Any one call failing ends in an answer or in a sentence, and never in a process left behind. */
static void every_call_may_fail(void **state)
{
    static const char *const calls[] = {"socketpair", "spawn", "poll", "recv", "waitpid", "close"};
    struct err               err;

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(calls); i++)
        for (int at = 1;; at++) {
            char words[600];
            (void)snprintf(words, sizeof words, "printf %%s '%s' >&3", GOOD);
            write_script(words);
            fault_arm(calls[i], at);
            int  rc = ask(20, NULL, &err);
            bool fired = fault_fired();
            fault_disarm();
            assert_true(rc == ERR_OK || err.text[0] != '\0');
            assert_int_equal(waitpid(-1, NULL, 0), -1); /* nobody is left behind */
            if (!fired || at > 50) break;
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_answer_is_believed),
                                       cmocka_unit_test(the_question_travels_as_words),
                                       cmocka_unit_test(a_failure_is_passed_on),
                                       cmocka_unit_test(a_lie_is_one_sentence),
                                       cmocka_unit_test(too_long_an_answer_is_a_lie),
                                       cmocka_unit_test(one_that_dies_is_one_sentence),
                                       cmocka_unit_test(one_that_hangs_is_not_waited_for),
                                       cmocka_unit_test(a_program_that_is_not_there),
                                       cmocka_unit_test(an_end_is_waited_for_later),
                                       cmocka_unit_test(the_program_answers),
                                       cmocka_unit_test(every_call_may_fail)};
    return cmocka_run_group_tests_name("probe", tests, make_folder, remove_folder);
}
