/*
 * test_gauge.c - memory of tiles in the journal and as a plot: what adds up adds up, whatever the
 * groups, and no failure here is a tile's.
 */
#include "fake_painter.h"

enum { TILES = 4, TILE_STEPS = 3, DRAFT_STEPS = 2, LINK = 1000 };

/* A fake painter on a machine where each prediction makes one call and moves some bytes. */
struct rememberer {
    struct fake fake; /* first: the fake's own functions know nothing of the rest */
    int         since, asked, silent_at, died_at;
};

static bool remember(void *self, bool restart, struct painter_memory *out)
{
    struct rememberer *self_known = self;
    int                steps;

    if (++self_known->asked == self_known->silent_at) return false;
    if (self_known->asked == self_known->died_at) self_known->since = self_known->fake.predictions;
    steps = self_known->fake.predictions - self_known->since;
    out->use = (struct memory_use){.peak_live = 96,
                                   .peak_placed = 98,
                                   .peak_mapped = 100,
                                   .peak_device = 120,
                                   .calls = {[MEMORY_MAP] = (uint64_t)steps},
                                   .link_bytes = LINK * (uint64_t)steps,
                                   .stall_seconds = 0.25 * steps};
    out->sample_count = 0;
    for (uint32_t i = 0; i < 40; i++)
        out->samples[out->sample_count++] = (struct pool_sample){.seconds = 100 + 0.1 * i,
                                                                 .live = 40 + i,
                                                                 .placed = 50 + i,
                                                                 .mapped = 100,
                                                                 .device = 120};
    if (restart) self_known->since = self_known->fake.predictions;
    return true;
}

static void gauge_open(struct story *story, struct rememberer *painter, uint32_t tiles_per_pass)
{
    small_open(story);
    *painter = (struct rememberer){.since = 0};
    story->painter = painter_of(&painter->fake);
    story->painter.self = painter;
    story->painter.memory = remember;
    story->painter.tiles_max = PAINTER_TILES_MAX;
    story->request.tiles_per_pass = tiles_per_pass;
}

/* Sums of the journal's numbers; how many tiles have such an account. */
struct sums {
    int    tiles, known;
    double map, link, stall, utilisation;
};

static double number_after(const char *text, const char *name)
{
    const char *at = strstr(text, name);

    assert_non_null(at);
    return strtod(at + strlen(name), NULL);
}

static struct sums sums_of(const struct story *story)
{
    struct err  err = {0};
    struct sums sums = {0};
    char        path[300];
    char       *text = NULL, *rest = NULL;
    size_t      bytes;

    (void)snprintf(path, sizeof path, "%s.mural/journal", story->config.output);
    ASSERT_OK(os_read_text(&text, &bytes, path, 1 << 20, &err));
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        const char *memory = strstr(line, "\"memory\":{");
        if (strstr(line, "{\"is\":\"tile\"") == NULL) continue;
        sums.tiles++;
        if (memory == NULL) continue;
        sums.known++;
        sums.map += number_after(memory, "\"map\":");
        sums.link += number_after(memory, "\"link\":");
        sums.stall += number_after(memory, "\"stall\":");
        sums.utilisation += number_after(memory, "\"utilisation\":");
    }
    os_free(text);
    return sums;
}

static void what_adds_up_adds_up(void **state)
{
    (void)state;
    for (uint32_t size = 1; size <= TILES; size++) {
        struct story      story;
        struct rememberer painter;
        struct err        err = {0};

        gauge_open(&story, &painter, size);
        ASSERT_OK(render_poster(&story.request, &err));
        assert_true(hash_of(&story) == reference());
        struct sums sums = sums_of(&story);
        int         passes = (painter.fake.predictions - DRAFT_STEPS);
        assert_int_equal(passes, TILE_STEPS * (int)((TILES + size - 1) / size));
        assert_int_equal(sums.tiles, TILES);
        assert_int_equal(sums.known, TILES);
        assert_true(sums.map == passes);
        assert_true(sums.link == LINK * passes);
        assert_true(fabs(sums.stall - 0.25 * passes) < 1e-9);
        assert_true(fabs(sums.utilisation - 0.96 * TILES) < 1e-9);
        story_close(&story);
    }
}

/* Silent at any question, or another process at any: the poster is the same, and nothing is told
 * twice or below zero. */
static void a_painter_may_be_silent_or_begin_anew(void **state)
{
    (void)state;
    for (int at = 1; at <= 2 * TILES; at++)
        for (int dies = 0; dies < 2; dies++) {
            struct story      story;
            struct rememberer painter;
            struct err        err = {0};

            gauge_open(&story, &painter, 2);
            *(dies ? &painter.died_at : &painter.silent_at) = at;
            ASSERT_OK(render_poster(&story.request, &err));
            assert_true(hash_of(&story) == reference());
            struct sums sums = sums_of(&story);
            assert_int_equal(sums.tiles, TILES);
            assert_in_range(sums.known, dies ? TILES : TILES - 1, TILES);
            /* Silent at the first restart: the draft's steps are told of as well. */
            assert_true(sums.map >= 0 && sums.map <= painter.fake.predictions -
                                                         (at == 1 && !dies ? 0 : DRAFT_STEPS));
            assert_true(sums.link == LINK * sums.map);
            story_close(&story);
        }
}

/* ------------------------------------------------------------------------------------- plots */

static struct {
    int  count;
    char last[300];
} warned;
static void note_warning(enum log_level level, const char *line, void *user)
{
    (void)user;
    if (level < LOG_WARN) return;
    warned.count++;
    (void)snprintf(warned.last, sizeof warned.last, "%s", line);
}

static void paint_and_listen(struct story *story)
{
    struct err err = {0};

    warned.count = 0;
    log_install(note_warning, NULL, LOG_DEBUG);
    ASSERT_OK(render_poster(&story->request, &err));
    log_install(NULL, NULL, LOG_DEBUG);
    assert_true(hash_of(story) == reference());
}

static void the_last_tile_is_plotted(void **state)
{
    struct story      story;
    struct rememberer painter;
    struct image      plot = {0};
    struct err        err = {0};
    char              part[300];

    (void)state;
    gauge_open(&story, &painter, 2);
    (void)snprintf(story.config.memory_plot, sizeof story.config.memory_plot, "%s/memory.png",
                   story.folder);
    (void)snprintf(part, sizeof part, "%s.part", story.config.memory_plot);
    paint_and_listen(&story);
    assert_int_equal(warned.count, 0);
    ASSERT_OK(image_read(&plot, story.config.memory_plot, &err));
    assert_int_equal(plot.w, MEMORY_PLOT_W);
    assert_int_equal(plot.h, MEMORY_PLOT_H);
    os_free(plot.rgb);
    assert_false(os_is_file(part));
    story_close(&story);
}

/* Each counts for itself, and they take turns at the file. */
static void several_painters_share_one_plot(void **state)
{
    enum { COUNT = 3 };
    struct story      story;
    struct rememberer rememberers[COUNT], first;
    struct painter    painters[COUNT];
    struct image      plot = {0};
    struct err        err = {0};
    int               predictions = -DRAFT_STEPS;

    (void)state;
    gauge_open(&story, &first, 1);
    (void)snprintf(story.config.memory_plot, sizeof story.config.memory_plot, "%s/memory.png",
                   story.folder);
    for (int i = 0; i < COUNT; i++) {
        rememberers[i] = (struct rememberer){.since = 0};
        painters[i] = story.painter;
        painters[i].self = &rememberers[i];
    }
    story.request.painters = painters;
    story.request.painter_count = COUNT;
    paint_and_listen(&story);
    assert_int_equal(warned.count, 0);
    for (int i = 0; i < COUNT; i++)
        predictions += rememberers[i].fake.predictions;
    assert_int_equal(predictions, TILES * TILE_STEPS);
    assert_true(sums_of(&story).map == predictions);
    ASSERT_OK(image_read(&plot, story.config.memory_plot, &err));
    os_free(plot.rgb);
    story_close(&story);
}

static void a_plot_that_cannot_be_written_is_a_warning(void **state)
{
    struct story      story;
    struct rememberer painter;

    (void)state;
    gauge_open(&story, &painter, 2);
    (void)snprintf(story.config.memory_plot, sizeof story.config.memory_plot, "%s/none/memory.png",
                   story.folder);
    paint_and_listen(&story);
    assert_int_equal(warned.count, TILES);
    assert_non_null(strstr(warned.last, "of tile 4 is not plotted: "));
    assert_non_null(strstr(warned.last, "none/memory.png"));
    assert_int_equal(sums_of(&story).known, TILES);
    story_close(&story);
}

static void without_a_gpu_one_sentence_says_so(void **state)
{
    struct story story;

    (void)state;
    small_open(&story);
    (void)snprintf(story.config.memory_plot, sizeof story.config.memory_plot, "%s/memory.png",
                   story.folder);
    paint_and_listen(&story);
    assert_int_equal(warned.count, 1);
    assert_non_null(strstr(warned.last, "tells of no GPU's memory"));
    assert_false(os_is_file(story.config.memory_plot));
    assert_int_equal(sums_of(&story).known, 0);
    story_close(&story);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_adds_up_adds_up),
        cmocka_unit_test(a_painter_may_be_silent_or_begin_anew),
        cmocka_unit_test(the_last_tile_is_plotted),
        cmocka_unit_test(several_painters_share_one_plot),
        cmocka_unit_test(a_plot_that_cannot_be_written_is_a_warning),
        cmocka_unit_test(without_a_gpu_one_sentence_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
