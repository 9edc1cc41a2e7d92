/*
 * fault_workshop.c - jobs of one workshop: the bytes of jobs alone, one loaded model for as many as
 * can share it, and whatever befalls a worker or a job between them.
 *
 * All of it through mural.h.  The workers are tests/fault/worker.c.
 */
#include "fleet_stories.h"

#include "mural.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ------------------------------------------------------------------------------- what is watched
 */

static void watch(void)
{
    seen.count = 0;
    seen.last[0] = '\0';
    log_install(note_worker, NULL, LOG_DEBUG);
}

/* Of the poster in the folder, which is then gone. */
static uint64_t take_hash(const char *name)
{
    char       path[300], command[700];
    uint64_t   hash = 0, bytes = 0;
    struct err err = {0};

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    ASSERT_OK(hash64_file(&hash, &bytes, path, &err));
    (void)snprintf(command, sizeof command, "rm -rf '%s' '%s.mural'", path, path);
    assert_int_equal(system(command), 0);
    return hash;
}

/* ------------------------------------------------------------------------------------------- jobs
 */

struct picture {
    const char *name, *prompt, *side; /* of the poster, px */
    const char *more;                 /* one more setting, or NULL */
};
static const struct picture fox = {"fox.tif", "prompt=a fox", "160", NULL};
static const struct picture hare = {"hare.tif", "prompt=a hare", "192", "steps=3"};
static const struct picture owl = {"owl.tif", "prompt=an owl", "160", "guidance=2"};

enum { WORDS = 16 };

struct words {
    const char *word[WORDS];
    size_t      count;
    char        text[5][300];
};

static void say(struct words *out, const struct picture *picture)
{
    static const char *const usual[] = {"device=cpu",     "tile_px=96", "overlap_px=32",
                                        "draft_px=64",    "steps=2",    "draft_steps=2",
                                        "text_tokens=16", "threads=1",  "precision=f32"};

    *out = (struct words){.count = 0};
    for (size_t i = 0; i < ARRAY_COUNT(usual); i++)
        out->word[out->count++] = usual[i];
    (void)snprintf(out->text[0], sizeof out->text[0], "model=%s", model);
    (void)snprintf(out->text[1], sizeof out->text[1], "output=%s/%s", folder, picture->name);
    (void)snprintf(out->text[2], sizeof out->text[2], "width=%s", picture->side);
    (void)snprintf(out->text[3], sizeof out->text[3], "height=128");
    for (int i = 0; i < 4; i++)
        out->word[out->count++] = out->text[i];
    out->word[out->count++] = picture->prompt;
    if (picture->more != NULL) out->word[out->count++] = picture->more;
}

static mural_job *open_in(mural_workshop *workshop, const struct picture *picture)
{
    struct words       words;
    struct mural_error error;
    mural_job         *job = NULL;

    say(&words, picture);
    if (mural_workshop_job(&job, workshop, MURAL_RENDER, words.word, words.count, &error) != 0)
        fail_msg("%s: %s", picture->name, error.text);
    return job;
}

static void run(mural_job *job)
{
    struct mural_error error;

    if (mural_job_run(job, NULL, NULL, &error) != 0)
        fail_msg("%s: %s", mural_job_output(job), error.text);
}

static mural_workshop *open_workshop(const char *program)
{
    struct mural_error error;
    mural_workshop    *workshop = NULL;

    assert_int_equal(mural_workshop_open(&workshop, program, &error), 0);
    return workshop;
}

/* Painted by a job of its own, in this process; known for the next time. */
static uint64_t alone(const struct picture *picture)
{
    static struct {
        const struct picture *picture;
        uint64_t              hash;
    } known[8];
    struct words       words;
    struct mural_error error;
    mural_job         *job = NULL;
    size_t             i = 0;

    for (; known[i].picture != NULL; i++)
        if (known[i].picture == picture) return known[i].hash;
    say(&words, picture);
    assert_int_equal(mural_job_open(&job, MURAL_RENDER, words.word, words.count, NULL, &error), 0);
    run(job);
    mural_job_close(job);
    known[i].picture = picture;
    known[i].hash = take_hash(picture->name);
    return known[i].hash;
}

static void assert_as_alone(const struct picture *picture, const char *story)
{
    if (take_hash(picture->name) != alone(picture))
        fail_msg("%s: %s differs", story, picture->name);
}

/* ---------------------------------------------------------------------------------------- stories
 */

/* Of different sizes, steps and prompts; with workers and without. */
static void jobs_share_what_is_loaded(void **state)
{
    struct remains before = look();

    (void)state;
    for (int here = 0; here < 2; here++) {
        mural_workshop *workshop = open_workshop(here ? NULL : WORKER);
        mural_job      *jobs[] = {open_in(workshop, &fox), open_in(workshop, &hare),
                                  open_in(workshop, &owl)};
        watch();
        for (int i = 0; i < 3; i++)
            run(jobs[i]);
        assert_int_equal(seen.count, here ? 0 : 1);
        for (int i = 0; i < 3; i++)
            mural_job_close(jobs[i]);
        mural_workshop_close(workshop);
        assert_as_alone(&fox, "shared");
        assert_as_alone(&hare, "shared");
        assert_as_alone(&owl, "shared");
        assert_nothing_remains(before, "shared");
    }
}

/* What nobody knew of when the model was loaded finds no room, and has it loaded again. */
static void a_job_that_does_not_fit_has_its_own_loaded(void **state)
{
    mural_workshop *workshop = open_workshop(WORKER);
    mural_job      *first = open_in(workshop, &fox), *later;

    (void)state;
    watch();
    run(first);
    mural_job_close(first);
    later = open_in(workshop, &owl); /* as large as the first */
    run(later);
    mural_job_close(later);
    assert_int_equal(seen.count, 1);
    later = open_in(workshop, &hare);
    run(later);
    mural_job_close(later);
    assert_int_equal(seen.count, 2);
    mural_workshop_close(workshop);
    assert_as_alone(&fox, "no room");
    assert_as_alone(&owl, "no room");
    assert_as_alone(&hare, "no room");
}

static void a_worker_that_dies_between_jobs_is_replaced(void **state)
{
    mural_workshop *workshop = open_workshop(WORKER);
    mural_job      *jobs[] = {open_in(workshop, &fox), open_in(workshop, &hare)};

    (void)state;
    watch();
    run(jobs[0]);
    assert_int_equal(seen.count, 1);
    assert_int_equal(kill(seen.pids[0], SIGKILL), 0);
    wait_for_death(seen.pids[0]);
    run(jobs[1]);
    assert_int_equal(seen.count, 2);
    assert_non_null(strstr(seen.last, "was killed by signal 9"));
    for (int i = 0; i < 2; i++)
        mural_job_close(jobs[i]);
    mural_workshop_close(workshop);
    assert_as_alone(&fox, "killed between jobs");
    assert_as_alone(&hare, "killed between jobs");
}

/* At answers of both jobs; each costs a wait before the next attempt. */
static void a_worker_may_fail_in_any_job(void **state)
{
    static const char *const kinds[] = {"exit", "nan", "device", "long"};
    struct remains           before = look();
    char                     story[64];

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k += MURAL_SANITIZED ? 2 : 1)
        for (int at = 3; at <= 33; at += 15) {
            mural_workshop *workshop = open_workshop(WORKER);
            mural_job      *jobs[] = {open_in(workshop, &fox), open_in(workshop, &owl)};
            (void)snprintf(story, sizeof story, "%s at answer %d", kinds[k], at);
            plant(kinds[k], at);
            for (int i = 0; i < 2; i++)
                run(jobs[i]);
            if (access(token, F_OK) == 0) fail_msg("%s: not tried", story);
            clear();
            for (int i = 0; i < 2; i++)
                mural_job_close(jobs[i]);
            mural_workshop_close(workshop);
            assert_as_alone(&fox, story);
            assert_as_alone(&owl, story);
            assert_nothing_remains(before, story);
        }
}

static int stop_at_once(const struct mural_progress *progress, void *user)
{
    (void)user;
    return progress->step > 0;
}

/* One that fails, and one that is stopped, leave a workshop that goes on. */
static void a_job_that_fails_harms_no_other(void **state)
{
    char               bad[300];
    struct picture     broken = {"broken.tif", "prompt=a cat", "160", bad};
    struct mural_error error;
    mural_workshop    *workshop = open_workshop(WORKER);
    mural_job         *jobs[4];

    (void)state;
    (void)snprintf(bad, sizeof bad, "noise_file=%s/noise", folder);
    touch(bad + strlen("noise_file="));
    jobs[0] = open_in(workshop, &fox);
    jobs[1] = open_in(workshop, &broken);
    jobs[2] = open_in(workshop, &owl);
    jobs[3] = open_in(workshop, &hare);
    watch();
    run(jobs[0]);
    assert_int_equal(mural_job_run(jobs[1], NULL, NULL, &error), ERR_FORMAT);
    assert_int_equal(mural_job_run(jobs[2], stop_at_once, NULL, &error), ERR_CANCELLED);
    mural_job_close(jobs[2]);
    jobs[2] = open_in(workshop, &owl);
    run(jobs[2]);
    run(jobs[3]);
    assert_int_equal(seen.count, 1);
    for (int i = 0; i < 4; i++)
        mural_job_close(jobs[i]);
    mural_workshop_close(workshop);
    assert_as_alone(&fox, "beside failures");
    assert_as_alone(&owl, "beside failures");
    assert_as_alone(&hare, "beside failures");
}

static int note_rate(const struct mural_progress *progress, void *user)
{
    bool *rated = user;

    *rated |= strcmp(progress->phase, "draft") == 0 && progress->steps_per_second > 0;
    return 0;
}

/* Four steps tell nothing of the speed, and a draft has two: only that of the second job does. */
static void painters_warm_up_once(void **state)
{
    struct picture     cold = {"cold.tif", "prompt=a fox", "160", "warmup_batches=4"};
    struct picture     warm = {"warm.tif", "prompt=a fox", "160", "warmup_batches=4"};
    mural_workshop    *workshop = open_workshop(WORKER);
    mural_job         *jobs[] = {open_in(workshop, &cold), open_in(workshop, &warm)};
    struct mural_error error;

    (void)state;
    for (int i = 0; i < 2; i++) {
        bool rated = false;
        assert_int_equal(mural_job_run(jobs[i], note_rate, &rated, &error), 0);
        assert_true(rated == (i == 1));
    }
    for (int i = 0; i < 2; i++)
        mural_job_close(jobs[i]);
    mural_workshop_close(workshop);
    assert_true(take_hash("cold.tif") == take_hash("warm.tif"));
}

/* By its journal, and where none was kept, by what the file says of itself. */
static void a_finished_poster_is_known(void **state)
{
    static const struct {
        const char *before, *after;
        int         code, finished;
    } rows[] = {{NULL, NULL, 0, 1},
                {"keep_tiles=false", NULL, 0, 1},
                {"keep_tiles=false", "keep_tiles=false", 0, 1},
                {"keep_tiles=false", "seed=7", ERR_USAGE, 0},
                {"keep_tiles=false", "bits=8", ERR_USAGE, 0},
                {NULL, "seed=7", ERR_USAGE, 0},
                {NULL, "overwrite=true", 0, 0}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct picture     one = {"one.tif", "prompt=a fox", "160", rows[i].before};
        struct picture     again = {"one.tif", "prompt=a fox", "160", rows[i].after};
        mural_workshop    *workshop = open_workshop(WORKER);
        mural_job         *job = open_in(workshop, &one);
        struct mural_error error;
        int                finished = 0, code;

        assert_int_equal(mural_job_check(job, &finished, &error), 0);
        assert_int_equal(finished, 0);
        run(job);
        mural_job_close(job);
        job = open_in(workshop, &again);
        code = mural_job_check(job, &finished, &error);
        if (code != rows[i].code || finished != rows[i].finished)
            fail_msg("row %zu: code %d, finished %d, '%s'", i, code, finished, error.text);
        watch();
        assert_int_equal(mural_job_run(job, NULL, NULL, &error), rows[i].code);
        assert_int_equal(seen.count, 0); /* nothing to paint, or painters that are there */
        mural_job_close(job);
        mural_workshop_close(workshop);
        (void)take_hash("one.tif");
    }
}

/* Each ends in both posters, or in one sentence. */
static void every_call_may_fail_between_jobs(void **state)
{
    static const char *const names[] = {"socketpair", "spawn", "memfd_create", "mmap",
                                        "close",      "send",  "recv",         "calloc"};
    struct remains           before = look();
    int                      tried = 0, succeeded = 0;
    char                     story[64];

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(names); k++) {
        int  stride = strcmp(names[k], "calloc") == 0 ? 197 : MURAL_SANITIZED ? 23 : 7;
        bool fired = true;
        for (int at = 1; fired; at += stride) {
            mural_workshop    *workshop = open_workshop(WORKER);
            mural_job         *jobs[] = {open_in(workshop, &fox), open_in(workshop, &owl)};
            struct mural_error error[2];

            (void)snprintf(story, sizeof story, "%s %d", names[k], at);
            fault_arm(names[k], at);
            for (int i = 0; i < 2; i++)
                (void)mural_job_run(jobs[i], NULL, NULL, &error[i]);
            fired = fault_fired();
            fault_disarm();
            for (int i = 0; i < 2; i++) {
                struct err            err = {.code = (enum err_code)error[i].code};
                const struct picture *picture = i == 0 ? &fox : &owl;
                (void)snprintf(err.text, sizeof err.text, "%.230s", error[i].text);
                mural_job_close(jobs[i]);
                tried++;
                if (error[i].code == 0) {
                    succeeded++;
                    assert_as_alone(picture, story);
                    continue;
                }
                char command[700];
                assert_is_sentence(&err, story);
                (void)snprintf(command, sizeof command, "rm -rf '%s/%s' '%s/%s.mural' '%s/%s.part'",
                               folder, picture->name, folder, picture->name, folder, picture->name);
                assert_int_equal(system(command), 0);
            }
            mural_workshop_close(workshop);
            assert_nothing_remains(before, story);
        }
    }
    print_message("workshop: %d jobs with a fault, %d posters\n", tried, succeeded);
    assert_true(succeeded > tried / 3);
}

/* A program that says there is a GPU, and takes its time to end then; as a worker it only looks
 * whether that end has come. */
static void write_program(const char *path)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    (void)fprintf(file,
                  "#!/bin/sh\ncd '%s' || exit 9\n"
                  "if [ \"$1\" = worker ]; then [ -e ended ] && : >>in-order; exit 1; fi\n"
                  "printf %%s '{\"name\": \"Card\", \"total\": 80000000000, \"free\": "
                  "79000000000, \"major\": 9, \"minor\": 0, \"numeric\": \"Card\", \"flops\": "
                  "1e14, \"link\": 1e10}' >&3\nsleep 0.3\n: >>ended\n",
                  folder);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, 0700), 0);
}

static bool is_there(const char *name)
{
    char path[300];

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

/* What the question opened in the driver is closed when workers want the memory. */
static void who_asked_about_a_gpu_is_gone_before_workers_come(void **state)
{
    static const struct picture on_gpu = {"gpu.tif", "prompt=a fox", "160", "device=cuda:0"};
    char                        program[300];
    mural_workshop             *workshop;
    mural_job                  *job;
    struct words                words;
    struct mural_error          error;

    (void)state;
    hurry = 1; /* a shell keeps no other time */
    (void)snprintf(program, sizeof program, "%s/program", folder);
    write_program(program);
    workshop = open_workshop(program);
    say(&words, &on_gpu);
    int rc = mural_workshop_job(&job, workshop, MURAL_RENDER, words.word, words.count, &error);
    if (rc != 0 && strstr(error.text, "built without CUDA") != NULL) {
        mural_workshop_close(workshop);
        be_hurried();
        skip();
    }
    if (rc != 0) fail_msg("%s", error.text);
    assert_int_not_equal(mural_job_run(job, NULL, NULL, &error), 0);
    assert_true(is_there("ended") && is_there("in-order"));
    mural_job_close(job);
    mural_workshop_close(workshop);

    workshop = open_workshop(program); /* and where nothing is run */
    assert_int_equal(
        mural_workshop_job(&job, workshop, MURAL_RENDER, words.word, words.count, &error), 0);
    mural_job_close(job);
    mural_workshop_close(workshop);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    be_hurried();
}

int main(void)
{
    const struct CMUnitTest threads[] = {
        cmocka_unit_test(jobs_share_what_is_loaded),
        cmocka_unit_test(a_worker_that_dies_between_jobs_is_replaced),
        cmocka_unit_test(a_job_that_fails_harms_no_other),
    };
    const struct CMUnitTest faults[] = {
        cmocka_unit_test(a_job_that_does_not_fit_has_its_own_loaded),
        cmocka_unit_test(a_worker_may_fail_in_any_job),
        cmocka_unit_test(painters_warm_up_once),
        cmocka_unit_test(a_finished_poster_is_known),
        cmocka_unit_test(who_asked_about_a_gpu_is_gone_before_workers_come),
        cmocka_unit_test(every_call_may_fail_between_jobs),
    };
    int failed = cmocka_run_group_tests(threads, setup, teardown);

    return ONLY_THREADS ? failed : failed + cmocka_run_group_tests(faults, setup, teardown);
}
