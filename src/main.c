/*
 * main.c - the command line: what was asked, to whom it goes, what is printed, how it ends.
 *
 * The only file that reads argv, prints, catches signals or exits.  Results go to standard output:
 * the name of the file that was made, or one JSON document.  All else goes to standard error.
 *
 * A first SIGINT, SIGTERM or SIGHUP lets the job stop cleanly at its next step; a second one ends
 * it.  SIGUSR1, which schedulers send before time is up, lets it finish the tile in work.
 *
 * Knows the settings only as words; what they mean is decided behind mural.h.
 *
 * Read next: mural.h; batch.c for lists of jobs; report.c and console.c for what is printed.
 */
#include "mural.h"

#include "base/base.h"
#include "batch.h"
#include "config/config.h"
#include "console.h"
#include "image/image.h"
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------- exit status */

enum { EXIT_TEMPORARY = 75 }; /* EX_TEMPFAIL of sysexits.h: do the same again later */

static volatile sig_atomic_t stop_signal; /* 0 until one came */
static mural_job *volatile running;       /* the job that signals are for */

/* `mural help exit-codes` prints these rows.  Farms repeat a job after 33 with more memory. */
static const struct {
    int         status;
    unsigned    codes; /* bit 1 << err_code */
    const char *sentence;
} exit_rows[] = {
    {0, 1u << ERR_OK, "done: the file is complete and was checked"},
    {1, 1u << ERR_IO | 1u << ERR_DEVICE | 1u << ERR_NUMERIC | 1u << ERR_PEER | 1u << ERR_CANCELLED,
     "failed for another reason, such as a full disk"},
    {2, 1u << ERR_USAGE | 1u << ERR_CONFIG,
     "the command line or a settings file is wrong, or another run has the poster"},
    {3, 1u << ERR_PARTIAL,
     "some tiles are missing, or posters of a batch; the others are safe; 'mural resume', or the "
     "batch again, tries again"},
    {4, 1u << ERR_FORMAT, "a picture or a model was refused; trying again will not help"},
    {33, 1u << ERR_HOST_MEM | 1u << ERR_DEVICE_MEM, "not enough memory"},
    {EXIT_TEMPORARY, 0, "stopped by SIGUSR1 after a tile; 'mural resume' goes on"},
    {128 + SIGHUP, 0, "stopped by SIGHUP, cleanly"},
    {128 + SIGINT, 0, "stopped by SIGINT (Ctrl-C), cleanly"},
    {128 + SIGTERM, 0, "stopped by SIGTERM, cleanly"},
};

static int exit_status(int code)
{
    if (code == ERR_CANCELLED && stop_signal == SIGUSR1) return EXIT_TEMPORARY;
    if (code == ERR_CANCELLED && stop_signal != 0) return 128 + (int)stop_signal;
    for (size_t i = 0; i < ARRAY_COUNT(exit_rows); i++)
        if ((exit_rows[i].codes & 1u << code) != 0) return exit_rows[i].status;
    return 1;
}

static void pass_on(int number)
{
    if (running != NULL)
        mural_job_stop(running, number == SIGUSR1 ? MURAL_STOP_AFTER_TILE : MURAL_STOP_NOW);
}

/* A second one ends the process, unless it is the same wish: timeout(1) sends two at once. */
static void on_signal(int number)
{
    static volatile double stopped_at;

    if (number == SIGUSR1 && stop_signal != 0) return;
    if (stop_signal == 0 || stop_signal == SIGUSR1) {
        stopped_at = os_seconds();
        stop_signal = number;
        pass_on(number);
    } else if (os_seconds() - stopped_at > 0.5) {
        (void)signal(number, SIG_DFL);
        (void)raise(number); /* delivered when this function is left */
    }
}

/* For jobs, which hear of them; what paints nothing is ended by them at once. */
static void catch_signals(void)
{
    static const int kinds[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, old;

    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        /* What the caller ignores, as nohup does with SIGHUP, stays ignored. */
        if (sigaction(kinds[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            (void)sigaction(kinds[i], &action, NULL);
    }
}

/* --------------------------------------------------------------------------------- commands */

struct session {
    enum config_command command;
    struct config_words words;
    struct config       config;
    struct console      console;
};

static const char *const *session_words(const struct session *session)
{
    return (const char *const *)session->words.word;
}

static int take_error(const struct mural_error *error, struct err *err)
{
    return err_set(err, (enum err_code)error->code, 0, ERR_WHERE, "%s", error->text);
}

/* The program itself, as it was started, even if its file has been replaced since. */
static const char itself[] = "/proc/self/exe";

static int open_job(mural_job **out, const struct session *session, enum mural_task task,
                    struct err *err)
{
    struct mural_error error;

    if (mural_job_open(out, task, session_words(session), session->words.count, itself, &error) !=
        0)
        return take_error(&error, err);
    return ERR_OK;
}

/* The file that was made: its name, or with --json what it holds. */
static int print_result(const struct session *session, const char *path, double seconds,
                        struct err *err)
{
    int                 rc = ERR_OK;
    struct picture_info info = {.w = 0};

    if (session->config.json) {
        TRY(picture_info_read(&info, path, err));
        TRY(report_info_json(stdout, path, &info, seconds, err));
    } else if (!session->config.quiet) {
        (void)printf("%s\n", path);
    }
out:
    picture_info_close(&info);
    return rc;
}

static int run_job(mural_job *job, struct console *console, struct err *err)
{
    struct mural_error error;
    int                rc;

    running = job;
    if (stop_signal != 0) pass_on((int)stop_signal); /* it came before there was a job */
    rc = mural_job_run(job, console_progress, console, &error);
    running = NULL;
    console_erase(console);
    return rc != 0 ? take_error(&error, err) : ERR_OK;
}

static int paint(struct session *session, enum mural_task task, struct err *err)
{
    int        rc = ERR_OK;
    double     started = os_seconds();
    mural_job *job = NULL;

    catch_signals();
    TRY(open_job(&job, session, task, err));
    TRY(run_job(job, &session->console, err));
    TRY(print_result(session, mural_job_output(job), os_seconds() - started, err));
out:
    mural_job_close(job);
    return rc;
}

/* One of a batch: what becomes of it is in the row, and an error only what ends all of it. */
static int paint_of_batch(struct session *session, struct batch *batch, size_t i,
                          struct report_row *row, struct err *err)
{
    struct err why = {.code = ERR_OK};
    double     started = os_seconds();

    if (stop_signal != 0) return err_set(err, ERR_CANCELLED, 0, ERR_WHERE, "stopped on request");
    session->console.number = (uint32_t)i + 1;
    if (run_job(batch->jobs[i], &session->console, &why) == ERR_CANCELLED) {
        *err = why;
        return ERR_CANCELLED;
    }
    row->seconds = os_seconds() - started;
    row->state = why.code != ERR_OK   ? REPORT_FAILED
                 : batch->finished[i] ? REPORT_FINISHED_BEFORE
                                      : REPORT_PAINTED;
    (void)snprintf(row->why, sizeof row->why, "%s", why.text);
    if (why.code != ERR_OK)
        log_line(LOG_ERROR, "%s:%zu: '%s': %s", batch->path, batch->file.jobs[i].line, row->path,
                 why.text);
    else if (!session->config.json && !session->config.quiet)
        (void)printf("%s\n", row->path);
    (void)fflush(stdout);
    return ERR_OK;
}

static int paint_all(struct session *session, struct batch *batch, struct err *err)
{
    int                rc = ERR_OK;
    size_t             count = batch->file.count;
    struct report_row *rows = NULL;
    struct err         printing = {.code = ERR_OK};

    TRY(os_alloc((void **)&rows, count, sizeof *rows, "a list of jobs", err));
    session->console.count = (uint32_t)count;
    for (size_t i = 0; i < count; i++)
        rows[i].path = mural_job_output(batch->jobs[i]);
    for (size_t i = 0; i < count && rc == ERR_OK; i++)
        rc = paint_of_batch(session, batch, i, &rows[i], err);
    rc = batch_judge(batch, rows, err);
    if (session->config.json &&
        report_batch_json(stdout, batch->path, rows, count, &printing) != ERR_OK && rc == ERR_OK) {
        *err = printing;
        rc = (int)printing.code;
    }
out:
    os_free(rows);
    return rc;
}

/* How it talks may be said in the file too. */
static int paint_batch(struct session *session, struct err *err)
{
    int                 rc = ERR_OK;
    struct batch        batch = {.path = NULL};
    struct config_words all = {.count = 0};
    char                path[sizeof session->config.input];

    catch_signals();
    TRY(config_check_named(&session->config, COMMAND_BATCH, err));
    (void)snprintf(path, sizeof path, "%s", session->config.input);
    TRY(batch_read(&batch, path, err));
    TRY(config_words_lay(&all, &batch.file.common, err));
    TRY(config_words_lay(&all, &session->words, err));
    TRY(config_load(&session->config, COMMAND_BATCH, (const char *const *)all.word, all.count,
                    err));
    console_start(&session->console, &session->config);
    TRY(batch_open(&batch, &session->words, itself, err));
    TRY(paint_all(session, &batch, err));
out:
    batch_close(&batch);
    config_words_close(&all);
    return rc;
}

static int plan(struct session *session, struct err *err)
{
    int                    rc = ERR_OK;
    mural_job             *job = NULL;
    struct mural_plan_info info;

    TRY(open_job(&job, session, MURAL_PLAN, err));
    mural_job_plan(job, &info);
    if (session->config.json)
        rc = report_plan_json(stdout, &info, &session->config, err);
    else if (!session->config.quiet)
        report_plan(stdout, &info, &session->config);
out:
    mural_job_close(job);
    return rc;
}

static int show_info(struct session *session, struct err *err)
{
    int                 rc = ERR_OK;
    struct picture_info info = {.w = 0};

    TRY(config_check(&session->config, COMMAND_INFO, err));
    TRY(picture_info_read(&info, session->config.input, err));
    if (session->config.json)
        TRY(report_info_json(stdout, session->config.input, &info, -1, err));
    else
        report_info(stdout, session->config.input, &info);
out:
    picture_info_close(&info);
    return rc;
}

static int synth(struct session *session, struct err *err)
{
    struct mural_error error;
    const char        *folder = session->config.input;

    if (mural_synth_model(folder, session_words(session), session->words.count, &error) != 0)
        return take_error(&error, err);
    if (session->config.json)
        return report_json(
            stdout, json_pack("{s:i, s:o}", "schema", 1, "folder", report_text(folder)), err);
    if (!session->config.quiet) (void)printf("%s\n", folder);
    return ERR_OK;
}

/* --------------------------------------------------------------------------------- sessions */

static int read_prompt_from_stdin(char **word_out, struct err *err)
{
    /* The longest prompt, its line end, and one byte more that tells of a longer one. */
    enum { LIMIT = sizeof((struct config *)0)->prompt - 1, READ = LIMIT + 2 + 1 };
    static const char key[] = "prompt=";
    const size_t      start = sizeof key - 1;
    int               rc = ERR_OK;
    size_t            length;
    void             *room = NULL;
    char             *text;

    TRY(os_alloc(&room, start + READ + 1, 1, "the prompt", err));
    memcpy(room, key, start);
    text = (char *)room + start;
    length = fread(text, 1, READ, stdin);
    if (ferror(stdin)) RAISE(err, ERR_IO, errno, "cannot read the prompt from standard input");
    if (memchr(text, '\0', length) != NULL)
        RAISE(err, ERR_USAGE, 0, "the prompt on standard input holds a NUL byte; it must be text");
    while (length > 0 && length < READ && (text[length - 1] == '\n' || text[length - 1] == '\r'))
        length--;
    if (length > LIMIT)
        RAISE(err, ERR_USAGE, 0, "the prompt on standard input has more than %d bytes", LIMIT);
    text[length] = '\0';
    *word_out = room;
    room = NULL;
out:
    os_free(room);
    return rc;
}

static int replace_stdin_prompt(struct config_words *words, struct err *err)
{
    int rc = ERR_OK;

    for (size_t i = 0; i < words->count; i++) {
        char *word = NULL;
        if (strcmp(words->word[i], "prompt=-") != 0) continue;
        TRY(read_prompt_from_stdin(&word, err));
        os_free(words->word[i]);
        words->word[i] = word;
    }
out:
    return rc;
}

static int run_command(struct session *session, int argc, char **argv, struct err *err)
{
    int rc = ERR_OK;

    TRY(config_read_flags(&session->words, session->command, argc, argv, err));
    TRY(replace_stdin_prompt(&session->words, err));
    TRY(config_load(&session->config, session->command, session_words(session),
                    session->words.count, err));
    console_start(&session->console, &session->config);
    switch (session->command) {
    case COMMAND_RENDER: rc = paint(session, MURAL_RENDER, err); break;
    case COMMAND_DRAFT: rc = paint(session, MURAL_DRAFT, err); break;
    case COMMAND_UPSCALE: rc = paint(session, MURAL_UPSCALE, err); break;
    case COMMAND_BATCH: rc = paint_batch(session, err); break;
    case COMMAND_RESUME: rc = paint(session, MURAL_RESUME, err); break;
    case COMMAND_RETRY: rc = paint(session, MURAL_RETRY, err); break;
    case COMMAND_PLAN: rc = plan(session, err); break;
    case COMMAND_INFO: rc = show_info(session, err); break;
    case COMMAND_SYNTH: rc = synth(session, err); break;
    case COMMAND_SAMPLE:
    case COMMAND_HELP: must_fail("commands without settings are answered before", ERR_WHERE);
    }
out:
    config_words_close(&session->words);
    return rc;
}

/* --------------------------------------------------------------------------------- help texts */

static int print_help(enum config_command command, struct err *err)
{
    char *text = NULL;
    int   rc = config_help(&text, command, err);

    if (rc == ERR_OK) (void)fputs(text, stdout);
    os_free(text);
    return rc;
}

static int print_sample(int argc, struct err *err)
{
    int   rc = ERR_OK;
    char *text = NULL;

    if (argc > 0) RAISE(err, ERR_USAGE, 0, "'mural sample-config' takes no arguments");
    TRY(config_sample(&text, err));
    (void)fputs(text, stdout);
out:
    os_free(text);
    return rc;
}

static int help(int argc, char **argv, struct err *err)
{
    int                 rc = ERR_OK;
    enum config_command command = COMMAND_HELP;

    if (argc > 0 && strcmp(argv[0], "exit-codes") == 0) {
        for (size_t i = 0; i < ARRAY_COUNT(exit_rows); i++)
            (void)printf("%3d  %s\n", exit_rows[i].status, exit_rows[i].sentence);
        return ERR_OK;
    }
    if (argc > 0) TRY(config_find_command(&command, argv[0], err));
    TRY(print_help(command, err));
out:
    return rc;
}

static bool asks_for_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}

/* The hidden commands: how this program starts itself to paint, and to ask about a GPU. */
static int work(int argc, struct err *err)
{
    struct mural_error error;

    if (argc > 0) return err_set(err, ERR_USAGE, 0, ERR_WHERE, "'mural worker' takes no arguments");
    return mural_worker_run(&error) == 0 ? ERR_OK : take_error(&error, err);
}

static int probe(int argc, char **argv, struct err *err)
{
    struct mural_error error;

    /* The elements are not written to. */
    if (mural_probe_run((const char *const *)argv, (size_t)argc, &error) == 0) return ERR_OK;
    return take_error(&error, err);
}

static int run(int argc, char **argv, struct err *err)
{
    int            rc = ERR_OK;
    struct session session = {.command = COMMAND_HELP};

    if (argc < 2) RAISE(err, ERR_USAGE, 0, "no command given; 'mural help' lists them");
    if (strcmp(argv[1], "--version") == 0) {
        (void)printf("mural %s\n", mural_version());
        return ERR_OK;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return help(argc - 2, argv + 2, err);
    if (strcmp(argv[1], "worker") == 0) return work(argc - 2, err);
    if (strcmp(argv[1], "probe") == 0) return probe(argc - 2, argv + 2, err);
    TRY(config_find_command(&session.command, argv[1], err));
    if (asks_for_help(argc - 2, argv + 2))
        TRY(print_help(session.command, err));
    else if (session.command == COMMAND_HELP)
        TRY(help(argc - 2, argv + 2, err));
    else if (session.command == COMMAND_SAMPLE)
        TRY(print_sample(argc - 2, err));
    else
        TRY(run_command(&session, argc - 2, argv + 2, err));
out:
    return rc;
}

/* A file opened while standard output is closed would get its number, and then our words. */
static void fill_standard_files(void)
{
    int fd;

    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO)
        continue;
    if (fd >= 0) (void)close(fd);
}

int main(int argc, char **argv)
{
    struct err err = {.code = ERR_OK};
    int        rc;

    fill_standard_files();
    /* Writing then fails with EPIPE or EFBIG, which is checked, instead of ending the process. */
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGXFSZ, SIG_IGN);
    rc = run(argc, argv, &err);
    if (rc != ERR_OK) (void)fprintf(stderr, "mural: %s\n", err.text);
    if ((fflush(stdout) != 0 || ferror(stdout)) && rc == ERR_OK) {
        (void)fprintf(stderr, "mural: cannot write the result to standard output: %s\n",
                      strerror(errno));
        rc = ERR_IO;
    }
    return exit_status(rc);
}
