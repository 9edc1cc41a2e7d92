/*
 * fleet_stories.h - what the tests of fleets share: a small model, a group of pictures painted with
 * it, faults to plant in the next worker, and a look at what remains.
 *
 * The worker is tests/fault/worker.c: the real one, with faults from outside.
 */
#ifndef MURAL_FLEET_STORIES_H
#define MURAL_FLEET_STORIES_H

#include "../test.h"
#include "fault.h"

#include "fleet/fleet_int.h"
#include "weights/weights.h"

#include <errno.h>
#include <math.h>
#include <sys/wait.h>

/* A group of two pictures in lockstep. */
enum { SIDE = 64, CHANNELS = 16, CELLS = 8 * 8 * CHANNELS, STEPS = 2, GROUP = 2 };
enum { PIXELS = 3 * SIDE * SIDE, ALL_PIXELS = GROUP * PIXELS };
/* open, begin, encode each, two steps, decode each */
enum { ANSWERS = 4 + 2 * GROUP, ATTEMPTS = 4 };

static const char               WORKER[] = MURAL_FAULT_WORKER;
static const struct engine_size SIZE = {.w_px = SIDE, .h_px = SIDE, .tiles = GROUP, .steps = STEPS};

static char  folder[200], model[256], token[256];
static float expected[ALL_PIXELS];

/* For the supervisor, not for its workers, time runs so many times as fast as it does. */
enum { HURRY = 5 };
static double          hurry = 1;
static struct os_calls unhurried;

/* Under sanitizers a process takes ten times as long to start, so the longest loops take larger
 * strides; ThreadSanitizer sees only the tests with threads. */
static const double HANG_SECONDS = HURRY * (MURAL_SANITIZED ? 2 : 1), LONG_SECONDS = HURRY * 60;

/* -------------------------------------------------------------------------------- painting */

static inline struct fleet_request usual_request(void)
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
                                  .timeout_seconds = LONG_SECONDS,
                                  .backoff_seconds = 0.001};
}

static inline int begin(const struct painter *painter, struct err *err)
{
    uint32_t             steps = 0;
    struct painter_stage stage = {
        .prompt = "a fox in the snow",
        .guidance = 3.5,
        .levels = {.steps = STEPS, .tokens = (SIDE / 16) * (SIDE / 16), .sigma_start = 0.8}};
    int rc = painter->begin(painter->self, &stage, &steps, err);

    if (rc == ERR_OK) assert_int_equal(steps, STEPS);
    return rc;
}

/* `width` pictures of the group in one question, at most; rgb_out [ALL_PIXELS]. */
static inline int paint_in_widths(const struct painter *painter, uint32_t width, float *rgb_out,
                                  struct err *err)
{
    int                  rc = ERR_OK;
    struct painter_noise noise = {.seed = 7, .purpose = 1, .rect = {.w = SIDE / 8, .h = SIDE / 8}};
    static _Thread_local float latents[GROUP][CELLS], velocities[GROUP][CELLS], random[CELLS];
    struct painter_tile        tiles[GROUP];

    for (int32_t i = 0; i < ALL_PIXELS; i++)
        rgb_out[i] = (float)(i % 97) / 97;
    for (int32_t t = 0; t < GROUP; t++) {
        tiles[t] = (struct painter_tile){
            .w_px = SIDE, .h_px = SIDE, .latent = latents[t], .velocity = velocities[t]};
        TRY(painter->encode(painter->self, rgb_out + t * PIXELS, SIDE, SIDE, latents[t], err));
        noise.rect.x = t * SIDE / 8;
        painter->noise(painter->self, &noise, random);
        painter->start(painter->self, latents[t], random, CELLS);
    }
    for (uint32_t step = 0; step < STEPS; step++)
        for (uint32_t t = 0; t < GROUP; t += width) {
            TRY(painter->predict(painter->self, tiles + t, width, step, err));
            for (uint32_t i = t; i < t + width; i++)
                painter->advance(painter->self, step, latents[i], velocities[i], CELLS);
        }
    for (int32_t t = 0; t < GROUP; t++)
        TRY(painter->decode(painter->self, latents[t], SIDE, SIDE, rgb_out + t * PIXELS, err));
out:
    return rc;
}

static inline int paint_in_stage(const struct painter *painter, float *rgb_out, struct err *err)
{
    return paint_in_widths(painter, GROUP, rgb_out, err);
}

static inline int paint_once(const struct painter *painter, float *rgb_out, struct err *err)
{
    int rc = begin(painter, err);

    if (rc == ERR_OK) rc = paint_in_stage(painter, rgb_out, err);
    painter->end(painter->self);
    return rc;
}

/* As render does it. */
static inline int paint(const struct painter *painter, float *rgb_out, struct err *err)
{
    int rc = ERR_OK;

    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        rc = paint_once(painter, rgb_out, err);
        if (rc == ERR_OK || !err_is_retryable(err)) break;
    }
    return rc;
}

static inline int open_and_paint(const struct fleet_request *request, float *rgb_out,
                                 struct err *err)
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

/* A fleet and its painters. */
static inline const struct painter *open_fleet(struct fleet              **out,
                                               const struct fleet_request *request)
{
    uint32_t   count;
    struct err err = {0};

    ASSERT_OK(fleet_open(out, request, &err));
    return fleet_painters(*out, &count);
}

/* ------------------------------------------------------------------------- what workers did */

/* Told by log lines, while note_worker is the log. */
static struct {
    int  pids[64], count;
    char last[600];
} seen;

static inline void note_worker(enum log_level level, const char *line, void *user)
{
    int number, pid;

    (void)user;
    if (sscanf(line, "worker %d is process %d", &number, &pid) == 2 && seen.count < 64)
        seen.pids[seen.count++] = pid;
    if (level >= LOG_WARN) (void)snprintf(seen.last, sizeof seen.last, "%s", line);
}

/* Dead with all its threads, so that its end of the channel is closed; not yet reaped. */
static inline void wait_for_death(int pid)
{
    siginfo_t info;

    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
}

/* ---------------------------------------------------------------------------- what remains */

struct remains {
    int fds, maps;
};

static inline int count_lines(const char *path, const char *with)
{
    char  line[1024];
    int   count = 0;
    FILE *file = fopen(path, "r");

    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        count += strstr(line, with) != NULL;
    if (file != NULL) (void)fclose(file);
    return count;
}

static inline struct remains look(void)
{
    return (struct remains){.fds = scratch_count("/proc/self/fd"),
                            .maps = count_lines("/proc/self/maps", "memfd:mural")};
}

static inline void assert_nothing_remains(struct remains before, const char *story)
{
    struct remains now = look();

    if (now.fds != before.fds)
        fail_msg("%s: %d descriptors, %d before", story, now.fds, before.fds);
    if (now.maps != before.maps)
        fail_msg("%s: %d mappings, %d before", story, now.maps, before.maps);
    if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD)
        fail_msg("%s: a process is left", story);
}

static inline void assert_is_sentence(const struct err *err, const char *story)
{
    size_t length = strlen(err->text);

    if (length < 10 || strchr(err->text, '\n') != NULL || err->text[length - 1] == '.')
        fail_msg("%s: '%s' is no sentence", story, err->text);
}

static inline void assert_expected(const float *rgb, const char *story)
{
    if (memcmp(rgb, expected, sizeof expected) != 0) fail_msg("%s: the picture differs", story);
}

static inline void touch(const char *path)
{
    scratch_write(path, "", 0);
}

/* The next worker has this fault; the one after it has none. */
static inline void plant(const char *kind, int at)
{
    char words[400], fired[300];

    (void)snprintf(fired, sizeof fired, "%s.fired", token);
    (void)unlink(fired);
    (void)snprintf(words, sizeof words, "%s %d %s", kind, at, token);
    (void)setenv("MURAL_FAULT", words, 1);
    touch(token);
}

static inline void clear(void)
{
    (void)unsetenv("MURAL_FAULT");
    (void)unlink(token);
}

static inline bool worker_fault_fired(void)
{
    char fired[300];

    (void)snprintf(fired, sizeof fired, "%s.fired", token);
    return access(fired, F_OK) == 0;
}

static inline double hurried_seconds(void)
{
    return hurry * unhurried.seconds();
}

static inline int hurried_poll(int fd, int events, int milliseconds)
{
    return unhurried.poll(fd, events, (int)ceil(milliseconds / hurry));
}

static inline void be_hurried(void)
{
    if (unhurried.poll == NULL) unhurried = os;
    hurry = HURRY;
    os.seconds = hurried_seconds;
    os.poll = hurried_poll;
}

static inline int setup(void **state)
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
    assert_int_equal(painter.tiles_max, GROUP);
    ASSERT_OK(begin(&painter, &err));
    ASSERT_OK(paint_in_widths(&painter, 1, expected, &err)); /* each picture by itself */
    painter.end(painter.self);
    studio_close(studio);
    be_hurried();
    return 0;
}

static inline int teardown(void **state)
{
    char command[300];

    (void)state;
    (void)snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

/* --------------------------------------------------------------------------------- outcomes */

struct tally {
    int tried, succeeded;
};

static inline void check_outcome(int rc, const float *rgb, const struct err *err, const char *story,
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

/* Open a fleet, paint, and look at what came of it. */
static inline void try_once(const struct fleet_request *request, const char *story,
                            struct tally *tally)
{
    struct remains before = look();
    float          rgb[ALL_PIXELS];
    struct err     err = {0};
    int            rc = open_and_paint(request, rgb, &err);

    fault_disarm();
    clear();
    check_outcome(rc, rgb, &err, story, tally);
    assert_nothing_remains(before, story);
}

/* ---------------------------------------------------------------------------------- posters */

static struct {
    struct config      config;
    struct render_plan plan;
    struct engine_size sizes[2];
} poster;

/* Six tiles and a draft, for groups of up to `tiles`. */
static inline void plan_poster(uint32_t tiles)
{
    struct err err = {0};

    config_defaults(&poster.config);
    (void)snprintf(poster.config.prompt, sizeof poster.config.prompt, "a fox");
    poster.config.width_px = 200;
    poster.config.height_px = 160;
    poster.config.tile_px = 96;
    poster.config.overlap_px = 32;
    poster.config.draft_px = 64;
    poster.config.draft_steps = 2;
    poster.config.steps = 2;
    ASSERT_OK(render_plan_make(&poster.plan, &poster.config, &err));
    poster.sizes[0] = (struct engine_size){.w_px = poster.plan.draft_w_px,
                                           .h_px = poster.plan.draft_h_px,
                                           .tiles = 1,
                                           .steps = STEPS,
                                           .steps_next = STEPS};
    poster.sizes[1] = (struct engine_size){.w_px = poster.plan.grid.tile_w_px,
                                           .h_px = poster.plan.grid.tile_h_px,
                                           .tiles = tiles,
                                           .steps = STEPS};
}

static inline uint64_t render(const char *name, const struct painter *painters, uint32_t count,
                              uint32_t tiles_per_pass)
{
    struct err            err = {0};
    uint64_t              hash = 0, bytes = 0;
    struct render_request request = {.config = &poster.config,
                                     .plan = &poster.plan,
                                     .painters = painters,
                                     .painter_count = count,
                                     .tiles_per_pass = tiles_per_pass,
                                     .costs = {1, 1, 1, 1, 1, 1},
                                     .used = &poster.config,
                                     .software = "mural test",
                                     .model_identity = 7,
                                     .numeric = "test"};

    (void)snprintf(poster.config.output, sizeof poster.config.output, "%s/%s", folder, name);
    assert_false(os_is_file(poster.config.output)); /* each name once, or nothing is painted */
    ASSERT_OK(render_poster(&request, &err));
    ASSERT_OK(hash64_file(&hash, &bytes, poster.config.output, &err));
    return hash;
}

/* Under ThreadSanitizer the tests of threads run alone. */
#ifdef __SANITIZE_THREAD__
#define ONLY_THREADS 1
#else
#define ONLY_THREADS 0
#endif

#endif
