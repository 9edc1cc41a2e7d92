/*
 * fault_group.c - workers that paint several tiles in lockstep: the same posters as from an engine
 * here, one tile at a time; a tile that fails alone; and questions that were not planned.
 */
#include "fleet_stories.h"

#include <jansson.h>
#include <signal.h>

static uint64_t lonely_hash(void)
{
    static uint64_t      known;
    struct fleet_request request = usual_request();
    struct studio       *studio = NULL;
    struct err           err = {0};

    if (known != 0) return known;
    plan_poster(1);
    ASSERT_OK(studio_open(&studio, &request.options, poster.sizes, 2, &err));
    struct painter painter = studio_painter(studio);
    known = render("here.tif", &painter, 1, 1);
    studio_close(studio);
    return known;
}

/* An engine's bytes do not depend on how many tiles it is given. */
static void an_engine_paints_groups_to_the_same_bytes(void **state)
{
    struct fleet_request request = usual_request();
    struct err           err = {0};

    (void)state;
    for (uint32_t tiles = 2; tiles <= 6; tiles += 2) {
        struct studio *studio = NULL;
        uint64_t       lonely = lonely_hash();
        char           name[32];

        plan_poster(tiles);
        (void)snprintf(name, sizeof name, "group%u.tif", tiles);
        ASSERT_OK(studio_open(&studio, &request.options, poster.sizes, 2, &err));
        struct painter painter = studio_painter(studio);
        assert_int_equal(painter.tiles_max, tiles);
        assert_true(render(name, &painter, 1, tiles) == lonely);
        studio_close(studio);
    }
}

/* A whole poster by several threads and workers, one of which fails: the bytes of an engine here.
 */
static void a_poster_survives_its_workers(void **state)
{
    static const struct {
        const char *kind;
        int         at; /* 8: past the draft */
        uint32_t    workers, tiles;
    } rows[] = {{"exit", 9, 3, 1},      {"exit", 11, 2, 3},     {"exit", 10, 1, 6},
                {"nan-tile", 12, 1, 3}, {"bad-tile", 12, 1, 3}, {"bad-none", 12, 1, 3},
                {"memory", 12, 1, 3},   {"device", 13, 2, 2},   {"nan", 14, 1, 6}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct fleet_request request = usual_request();
        uint64_t             lonely = lonely_hash();
        struct remains       before = look();
        struct fleet        *fleet = NULL;
        char                 name[32];

        plan_poster(rows[i].tiles);
        (void)snprintf(name, sizeof name, "workers%zu.tif", i);
        request.sizes = poster.sizes;
        request.size_count = 2;
        request.worker_count = rows[i].workers;
        plant(rows[i].kind, rows[i].at);
        const struct painter *painters = open_fleet(&fleet, &request);
        assert_int_equal(painters[0].tiles_max, rows[i].tiles);
        if (render(name, painters, rows[i].workers, rows[i].tiles) != lonely)
            fail_msg("row %zu, %s: the poster differs", i, rows[i].kind);
        fleet_close(fleet);
        if (access(token, F_OK) == 0) fail_msg("row %zu, %s: not tried", i, rows[i].kind);
        clear();
        assert_nothing_remains(before, rows[i].kind);
    }
}

/* One question for the group, and a worker that tells the truth about one of its tiles: the other
 * one's velocity counts, and the worker lives.  One that lies does not. */
static void sound_tiles_of_a_bad_pass_count(void **state)
{
    static const struct {
        const char *kind;
        bool        lives;
        int         bad;
    } rows[] = {{"bad-tile", true, 1}, {"nan-tile", false, 1}, {"bad-none", true, 0}};
    static float         latents[GROUP][CELLS], velocities[GROUP][CELLS], known[GROUP][CELLS];
    struct fleet_request request = usual_request();
    struct err           err = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct fleet       *fleet = NULL;
        struct painter_tile tiles[GROUP];
        int                 bad = 0, pid;

        for (int t = 0; t < GROUP; t++) {
            for (int c = 0; c < CELLS; c++)
                latents[t][c] = 0.01f * (float)((c + 7 * t) % 61);
            tiles[t] = (struct painter_tile){SIDE, SIDE, latents[t], velocities[t]};
        }
        plant(rows[i].kind, 4); /* open, begin, one step, and this one */
        const struct painter *painter = open_fleet(&fleet, &request);
        const struct seat    *seat = painter->self;
        pid = seat->child.pid;
        ASSERT_OK(begin(painter, &err));
        ASSERT_OK(painter->predict(painter->self, tiles, GROUP, 0, &err));
        memcpy(known, velocities, sizeof known);
        memset(velocities, 0, sizeof velocities);
        assert_int_equal(painter->predict(painter->self, tiles, GROUP, 0, &err), ERR_NUMERIC);
        for (int t = 0; t < GROUP; t++)
            if (memcmp(velocities[t], known[t], sizeof known[t]) != 0)
                bad += t == GROUP - 1 ? 1 : 9;
        assert_int_equal(bad, rows[i].bad);
        assert_true((seat->child.pid == pid) == rows[i].lives);
        ASSERT_OK(painter->predict(painter->self, tiles, GROUP, 0, &err));
        assert_memory_equal(velocities, known, sizeof known);
        painter->end(painter->self);
        fleet_close(fleet);
        clear();
    }
}

/* ------------------------------------------------------------------------------------ memory */

static void a_worker_is_asked_to_do_with_less(void **state)
{
    static const struct {
        const char *kind;
        const char *words; /* NULL: it gives up nothing */
    } rows[] = {{"gain", "worker 1: a curtain?: 3 MB"},
                {"none", NULL},
                {"exit", NULL},
                {"kind", NULL},
                {"long", NULL},
                {"device", NULL}};
    struct fleet_request request = usual_request();
    struct remains       before = look();

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct fleet *fleet = NULL;
        struct err    err = {0};
        char          words[160] = "";
        float         rgb[ALL_PIXELS];

        plant(rows[i].kind, 3); /* open, begin, and this */
        const struct painter *painter = open_fleet(&fleet, &request);
        ASSERT_OK(begin(painter, &err));
        bool yields = painter->yield_memory(painter->self, words, sizeof words);
        if (yields != (rows[i].words != NULL)) fail_msg("%s: %d", rows[i].kind, (int)yields);
        if (yields) assert_string_equal(words, rows[i].words);
        ASSERT_OK(paint_in_stage(painter, rgb, &err));
        assert_expected(rgb, rows[i].kind);
        painter->end(painter->self);
        fleet_close(fleet);
        clear();
        assert_nothing_remains(before, rows[i].kind);
    }
}

/* No account is worth a picture: whatever becomes of the question, the painter goes on. */
static void a_worker_is_asked_about_its_memory(void **state)
{
    static const char *const kinds[] = {"none", "used",   "exit",   "sigkill", "kind",    "long",
                                        "gain", "device", "memory", "hangup",  "sequence"};
    static struct painter_memory memory;
    struct fleet_request         request = usual_request();
    struct remains               before = look();

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        struct fleet *fleet = NULL;
        struct err    err = {0};
        float         rgb[ALL_PIXELS];
        bool          used = strcmp(kinds[i], "used") == 0;

        plant(kinds[i], 4); /* open, begin, a question with a restart, and this */
        const struct painter *painter = open_fleet(&fleet, &request);
        ASSERT_OK(begin(painter, &err));
        assert_false(painter->memory(painter->self, true, &memory)); /* a CPU has none */
        if (painter->memory(painter->self, false, &memory) != used)
            fail_msg("%s: it is asked in vain, or not", kinds[i]);
        if (used) {
            assert_int_equal(memory.use.peak_live, 96);
            assert_int_equal(memory.use.calls[MEMORY_ACCESS], 3);
            assert_int_equal(memory.use.link_bytes, 9);
            assert_int_equal(memory.sample_count, 1);
            assert_int_equal(memory.samples[0].device, 101);
        }
        ASSERT_OK(paint_in_stage(painter, rgb, &err));
        assert_expected(rgb, kinds[i]);
        painter->end(painter->self);
        fleet_close(fleet);
        clear();
        assert_nothing_remains(before, kinds[i]);
    }
}

/* Of the journal's tiles: how many tell of memory, and the driver's calls of those after the first
 * group, which are in `settled`. */
struct told {
    int    tiles, known, settled_calls;
    double utilisation; /* the least */
};

static struct told told_of(uint32_t group)
{
    static const char *const calls[] = {"create", "map", "access", "unmap", "release", "settle"};
    struct told              told = {.utilisation = 1};
    struct err               err = {0};
    char                     path[300];
    char                    *text = NULL, *rest = NULL;
    size_t                   bytes;

    (void)snprintf(path, sizeof path, "%s.mural/journal", poster.config.output);
    ASSERT_OK(os_read_text(&text, &bytes, path, 1 << 20, &err));
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char   *at = strchr(line, '{');
        json_t *record = json_loads(at, 0, NULL), *memory = json_object_get(record, "memory");
        if (strstr(line, "{\"is\":\"tile\"") != NULL) {
            told.tiles++;
            told.known += memory != NULL;
        }
        if (memory != NULL) {
            double utilisation = json_real_value(json_object_get(memory, "utilisation"));
            if (utilisation < told.utilisation) told.utilisation = utilisation;
            for (size_t i = 0; i < ARRAY_COUNT(calls) && told.known > (int)group; i++)
                told.settled_calls += (int)json_integer_value(
                    json_object_get(json_object_get(memory, "calls"), calls[i]));
            assert_true(json_integer_value(json_object_get(memory, "mapped")) <=
                        json_integer_value(json_object_get(memory, "device")));
        }
        json_decref(record);
    }
    os_free(text);
    return told;
}

/* Here and in a worker, on a machine with memory of its own: each tile's account is in the journal,
 * and the last one is drawn. */
static void memory_of_a_machine_is_told_and_drawn(void **state)
{
    enum { TOGETHER = 3, ALL = 6 };
    struct fleet_request request = usual_request();
    struct remains       before = look();

    (void)state;
    request.options.machine = ENGINE_WALLED;
    request.options.memory = (struct engine_memory){.vram_bytes = (uint64_t)1 << 30,
                                                    .offload = true,
                                                    .expandable = true,
                                                    .segment_bytes = (uint64_t)8 << 20,
                                                    .fragmentation_max = 0.15};
    for (int here = 0; here < 2; here++) {
        struct fleet  *fleet = NULL;
        struct studio *studio = NULL;
        struct painter own;
        struct image   plot = {.w = 0};
        uint32_t       count = 1;
        struct err     err = {0};

        plan_poster(TOGETHER);
        (void)snprintf(poster.config.memory_plot, sizeof poster.config.memory_plot,
                       "%s/memory%d.png", folder, here);
        request.sizes = poster.sizes;
        request.size_count = 2;
        if (here)
            ASSERT_OK(studio_open(&studio, &request.options, poster.sizes, 2, &err));
        else
            ASSERT_OK(fleet_open(&fleet, &request, &err));
        if (here) own = studio_painter(studio);
        (void)render(here ? "walled1.tif" : "walled0.tif",
                     here ? &own : fleet_painters(fleet, &count), count, TOGETHER);
        struct told told = told_of(TOGETHER);
        assert_int_equal(told.tiles, ALL);
        assert_int_equal(told.known, ALL);
        assert_true(told.utilisation > 0 && told.utilisation <= 1);
        assert_int_equal(told.settled_calls, 0); /* once a group was painted, nothing is mapped */
        ASSERT_OK(image_read(&plot, poster.config.memory_plot, &err));
        assert_int_equal(plot.w, MEMORY_PLOT_W);
        os_free(plot.rgb);
        studio_close(studio);
        fleet_close(fleet);
    }
    assert_nothing_remains(before, "told and drawn");
}

/* -------------------------------------------------------------------- a supervisor that lies */

/* Sends a message and waits for the answer or the end of the channel: its kind, or 0. */
static int ask(const struct child *child, const struct wire_message *message)
{
    static uint8_t      bytes[WIRE_BYTES_MAX];
    struct wire_message answer = {.kind = WIRE_LOG};
    struct err          err = {0};
    size_t              count;

    ASSERT_OK(wire_send(child->channel, bytes, wire_pack(bytes, message), &err));
    while (answer.kind == WIRE_LOG) {
        if (wire_receive(child->channel, true, bytes, &count, &err) != ERR_OK || count == 0)
            return 0;
        ASSERT_OK(wire_unpack(&answer, bytes, count, WIRE_WORKER, &err));
    }
    return (int)answer.kind;
}

static struct wire_message question(enum wire_kind kind, uint32_t count, uint32_t step, int32_t w)
{
    struct wire_message message = {.kind = kind, .as.work = {.count = count, .step = step}};

    for (uint32_t i = 0; i < count; i++)
        message.as.work.rects[i] = (struct wire_rect){w, SIDE};
    return message;
}

/* What was not planned would not fit its memory: the worker ends, and answers nothing. */
static void a_worker_does_only_what_was_planned(void **state)
{
    const struct painter_levels noise = {.steps = STEPS, .tokens = 16, .sigma_start = 0.8};
    const struct painter_levels more = {.steps = STEPS + 1, .tokens = 16, .sigma_start = 0.8};
    const struct wire_message   rows[] = {question(WIRE_PREDICT, GROUP + 1, 0, SIDE),
                                          question(WIRE_PREDICT, WIRE_TILES_MAX, 0, SIDE),
                                          question(WIRE_PREDICT, GROUP, 0, SIDE + 16),
                                          question(WIRE_PREDICT, 1, 0, SIDE - 16),
                                          question(WIRE_PREDICT, GROUP, STEPS, SIDE),
                                          question(WIRE_ENCODE, 1, 0, 2 * SIDE),
                                          question(WIRE_DECODE, 1, 0, SIDE / 2),
                                          {.kind = WIRE_BEGIN, .as.begin = {"a", 2, more, {0}}},
                                          {.kind = WIRE_BEGIN, .as.begin = {"a", 2, noise, noise}},
                                          {.kind = WIRE_OPEN}};
    struct fleet_request        request = usual_request();
    struct wire_message         open = {.kind = WIRE_OPEN}, stage = {.kind = WIRE_BEGIN};
    struct remains              before = look();

    (void)state;
    open.as.open = (struct wire_open){.options = request.options,
                                      .channels = CHANNELS,
                                      .shared_bytes = shared_bytes(&SIZE, 1, CHANNELS),
                                      .size_count = 1,
                                      .sizes = {SIZE}};
    stage.as.begin = (struct painter_stage){.prompt = "a fox", .guidance = 3.5, .levels = noise};
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct child        child = {.channel = -1};
        struct shared       shared = {.fd = -1};
        struct err          err = {0};
        char                fate[96];
        struct wire_message good = question(WIRE_PREDICT, GROUP, 0, SIDE);

        ASSERT_OK(shared_open(&shared, &SIZE, 1, CHANNELS, &err));
        ASSERT_OK(child_start(&child, WORKER, shared.fd, -1, &err));
        assert_int_equal(ask(&child, &open), WIRE_READY);
        assert_int_equal(ask(&child, &stage), WIRE_BEGUN);
        assert_int_equal(ask(&child, &good), WIRE_DONE);
        if (ask(&child, rows[i].kind == WIRE_OPEN ? &open : &rows[i]) != 0)
            fail_msg("question %zu was answered", i);
        assert_true(child_end(&child, 10, fate, sizeof fate));
        assert_string_equal(fate, "ended with status 9"); /* ERR_PEER */
        shared_close(&shared);
        assert_nothing_remains(before, "not planned");
    }
}

int main(void)
{
    const struct CMUnitTest threads[] = {
        cmocka_unit_test(a_poster_survives_its_workers),
    };
    const struct CMUnitTest faults[] = {
        cmocka_unit_test(an_engine_paints_groups_to_the_same_bytes),
        cmocka_unit_test(sound_tiles_of_a_bad_pass_count),
        cmocka_unit_test(a_worker_is_asked_to_do_with_less),
        cmocka_unit_test(a_worker_is_asked_about_its_memory),
        cmocka_unit_test(memory_of_a_machine_is_told_and_drawn),
        cmocka_unit_test(a_worker_does_only_what_was_planned),
    };
    int failed = cmocka_run_group_tests(threads, setup, teardown);

    return ONLY_THREADS ? failed : failed + cmocka_run_group_tests(faults, setup, teardown);
}
