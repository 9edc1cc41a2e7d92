/*
 * test_render.c - the whole path from draft to file with a painter that loses nothing.
 *
 * The fake painter's latent holds all 192 samples of an 8 x 8 px cell, so a poster must come out as
 * the enlarged draft, to the bit: anything else is a mistake of tiles, blend, store or file.
 */
#include "fake_painter.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <tiffio.h>

/* All samples of the poster, [h, w, 3], widened to 16 bits. */
static uint16_t *read_poster(const char *path, int32_t w, int32_t h, int bits)
{
    TIFF     *file = TIFFOpen(path, "r");
    uint32_t  tile = BIGTIFF_TILE_PX, file_w = 0, file_h = 0;
    uint16_t *out = malloc((size_t)w * (size_t)h * 6);
    void     *buffer;

    assert_non_null(file);
    assert_non_null(out);
    (void)TIFFGetField(file, TIFFTAG_IMAGEWIDTH, &file_w);
    (void)TIFFGetField(file, TIFFTAG_IMAGELENGTH, &file_h);
    assert_int_equal(file_w, w);
    assert_int_equal(file_h, h);
    buffer = malloc((size_t)TIFFTileSize(file));
    for (uint32_t ty = 0; ty < file_h; ty += tile)
        for (uint32_t tx = 0; tx < file_w; tx += tile) {
            assert_true(TIFFReadTile(file, buffer, tx, ty, 0, 0) > 0);
            for (uint32_t y = ty; y < ty + tile && y < file_h; y++)
                for (uint32_t k = 0; k < 3 * tile && 3 * tx + k < 3 * file_w; k++) {
                    size_t at = (size_t)(y - ty) * 3 * tile + k;
                    out[(size_t)y * 3 * file_w + 3 * tx + k] =
                        bits == 16 ? ((uint16_t *)buffer)[at]
                                   : (uint16_t)(257 * ((uint8_t *)buffer)[at]);
                }
        }
    free(buffer);
    TIFFClose(file);
    return out;
}

/* What the poster must be: the draft enlarged, rounded. */
static uint16_t *expected_poster(const struct image *draft, int32_t w, int32_t h)
{
    struct err      err = {0};
    struct upscale *guide = NULL;
    float          *rgb = malloc((size_t)w * (size_t)h * 12);
    uint16_t       *out = malloc((size_t)w * (size_t)h * 6);

    ASSERT_OK(upscale_open(&guide, draft, w, h, &err));
    upscale_rect(guide, 0, 0, w, h, rgb);
    for (size_t i = 0; i < (size_t)w * (size_t)h * 3; i++)
        out[i] = (uint16_t)(rgb[i] * 65535.0f + 0.5f);
    upscale_close(guide);
    free(rgb);
    return out;
}

static void lossless_painter_gives_back_the_enlarged_draft(const char *fit)
{
    struct story story;
    struct err   err = {0};
    struct image draft = {0};
    char         draft_path[256];

    story_open(&story, fit, 16);
    (void)snprintf(draft_path, sizeof draft_path, "%s/draft.png", story.folder);
    (void)snprintf(story.config.draft, sizeof story.config.draft, "%s", draft_path);
    ASSERT_OK(render_poster(&story.request, &err));
    assert_int_equal(story.fake.begun, 2);
    assert_int_equal(story.fake.foreseen, 1); /* the tiles, when the draft began */
    assert_int_equal(story.fake.predictions, 2 + 3 * (int)grid_count(&story.plan.grid));

    /* The poster again, from the draft's own painter noise at full precision. */
    struct image         known = {.w = story.plan.draft_w_px, .h = story.plan.draft_h_px};
    size_t               samples = (size_t)known.w * (size_t)known.h * 3;
    float               *latent = malloc(samples * 4), *rgb = calloc(samples, 4);
    struct painter_noise noise = {.seed = 42, .rect = {0, 0, known.w / 8, known.h / 8}};
    fake_noise(&story.fake, &noise, latent);
    to_latent(rgb, known.w, known.h, latent, true);
    known.rgb = malloc(samples * 2);
    for (size_t i = 0; i < samples; i++)
        known.rgb[i] = (uint16_t)(rgb[i] * 65535.0f + 0.5f);
    ASSERT_OK(image_read(&draft, draft_path, &err));
    for (size_t i = 0; i < samples; i++)
        if (abs(draft.rgb[i] - known.rgb[i]) > 129)
            fail_msg("the kept draft differs at sample %zu", i);

    uint16_t *want = expected_poster(&known, 713, 1100),
             *got = read_poster(story.config.output, 713, 1100, 16);
    for (size_t i = 0; i < (size_t)713 * 1100 * 3; i++)
        if (want[i] != got[i]) fail_msg("sample %zu is %u, not %u", i, got[i], want[i]);
    assert_int_equal(scratch_count(story.folder), 3); /* poster, draft and the folder of tiles */
    free(want);
    free(got);
    free(latent);
    free(rgb);
    image_close(&known);
    image_close(&draft);
    story_close(&story);
}

static void even_tiles_give_back_the_enlarged_draft(void **state)
{
    (void)state;
    lossless_painter_gives_back_the_enlarged_draft("even");
}
static void exact_tiles_give_back_the_enlarged_draft(void **state)
{
    (void)state;
    lossless_painter_gives_back_the_enlarged_draft("exact");
}

static void eight_bits_stay_within_the_dither(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    story_open(&story, "even", 16);
    ASSERT_OK(render_poster(&story.request, &err));
    uint16_t *fine = read_poster(story.config.output, 713, 1100, 16);
    story_close(&story);
    story_open(&story, "even", 8);
    ASSERT_OK(render_poster(&story.request, &err));
    uint16_t *coarse = read_poster(story.config.output, 713, 1100, 8);
    double    sum = 0;
    for (size_t i = 0; i < (size_t)713 * 1100 * 3; i++) {
        int difference = (int)coarse[i] - (int)fine[i];
        if (abs(difference) > 2 * 257) fail_msg("sample %zu is off by %d", i, difference);
        sum += difference;
    }
    assert_true(fabs(sum / (713.0 * 1100 * 3)) < 2); /* dither adds no light */
    free(fine);
    free(coarse);
    story_close(&story);
}

static void a_given_picture_is_enlarged_without_a_draft(void **state)
{
    struct story story;
    struct err   err = {0};
    uint16_t     pixels[64 * 96 * 3];
    struct image picture = {.w = 64, .h = 96, .rgb = pixels};

    (void)state;
    story_open(&story, "even", 16);
    for (size_t i = 0; i < ARRAY_COUNT(pixels); i++)
        pixels[i] = (uint16_t)(i * 37);
    (void)snprintf(story.config.input, sizeof story.config.input, "%s/in.png", story.folder);
    struct png_request png = {.path = story.config.input, .bits = 16};
    ASSERT_OK(png_write(&picture, &png, &err));
    ASSERT_OK(render_poster(&story.request, &err));
    assert_int_equal(story.fake.predictions, 3 * (int)grid_count(&story.plan.grid));
    uint16_t *want = expected_poster(&picture, 713, 1100),
             *got = read_poster(story.config.output, 713, 1100, 16);
    assert_memory_equal(want, got, (size_t)713 * 1100 * 6);
    free(want);
    free(got);
    story_close(&story);
}

/* What is finished stays, in the folder; nothing else does. */
static void stopping_or_failing_leaves_no_half_file(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    for (int n = 1; n < 16; n += 2) {
        story_open(&story, "even", 16);
        stop_after = n;
        ASSERT_REFUSED(ERR_CANCELLED, "stopped on request", render_poster(&story.request, &err));
        assert_false(os_is_file(story.config.output));
        assert_in_range(scratch_count(story.folder), 0, 1);
        story_close(&story);
    }
    stop_after = 0;
    story_open(&story, "even", 16);
    story.config.tile_retries = 0;
    story.fake.fail_at = 2;
    ASSERT_REFUSED(ERR_NUMERIC, "draft: 3 values", render_poster(&story.request, &err));
    assert_int_equal(scratch_count(story.folder), 0);
    story_close(&story);
    story_open(&story, "even", 16);
    story.config.tile_retries = 0;
    story.fake.fail_at = 7;
    ASSERT_REFUSED(ERR_PARTIAL, "tile 2 (column 2, row 1)", render_poster(&story.request, &err));
    assert_non_null(strstr(err.text, "3 values are NaN"));
    assert_int_equal(scratch_count(story.folder), 1);
    story_close(&story);
}

static int calls_left;
static int64_t (*real_pwrite)(int, const void *, size_t, int64_t);
static int64_t failing_pwrite(int fd, const void *buffer, size_t bytes, int64_t offset)
{
    if (calls_left > 0 && --calls_left == 0) {
        errno = ENOSPC;
        return -1;
    }
    return real_pwrite(fd, buffer, bytes, offset);
}

static void every_failing_write_is_told_and_loses_nothing(void **state)
{
    int failures = 0;

    (void)state;
    real_pwrite = os.pwrite;
    for (int n = 1; n < 500; n++) {
        struct story story;
        struct err   err = {0};

        story_open(&story, "even", 8);
        story.config.width_px = 200;
        story.config.height_px = 150;
        story.config.tile_px = 128;
        ASSERT_OK(render_plan_make(&story.plan, &story.config, &err));
        os.pwrite = failing_pwrite;
        calls_left = n;
        int rc = render_poster(&story.request, &err);
        os.pwrite = real_pwrite;
        if (rc == ERR_OK) {
            story_close(&story);
            break;
        }
        failures++;
        assert_int_equal(rc, ERR_IO);
        assert_non_null(strstr(err.text, "No space left"));
        assert_false(os_is_file(story.config.output));
        err = (struct err){0};
        ASSERT_OK(render_poster(&story.request, &err)); /* with room again */
        story_close(&story);
    }
    assert_true(failures > 4); /* at least one write a tile */
}

static void two_runs_never_share_an_output(void **state)
{
    struct story story;
    struct lock *lock = NULL;
    struct err   err = {0};
    char         folder[256];

    (void)state;
    story_open(&story, "even", 16);
    (void)snprintf(folder, sizeof folder, "%s.mural", story.config.output);
    ASSERT_OK(lock_take(&lock, folder, story.config.output, &err));
    ASSERT_REFUSED(ERR_USAGE, "another mural (process", render_poster(&story.request, &err));
    lock_release(lock, false);
    ASSERT_OK(render_poster(&story.request, &err));
    story_close(&story);
}

static void a_file_that_cannot_be_made_is_told_before_painting(void **state)
{
    struct story story;
    struct err   err = {0};
    char         part[256];

    (void)state;
    story_open(&story, "even", 16);
    (void)snprintf(part, sizeof part, "%s.part", story.config.output);
    assert_int_equal(mkdir(part, 0777), 0);
    ASSERT_REFUSED(ERR_IO, "poster.tif.part", render_poster(&story.request, &err));
    assert_int_equal(story.fake.predictions, 0);
    story_close(&story);
}

static void numbered_drafts_are_not_replaced_unasked(void **state)
{
    struct story story;
    struct err   err = {0};
    char         name[256];

    (void)state;
    story_open(&story, "even", 16);
    (void)snprintf(story.config.output, sizeof story.config.output, "%s/d.png", story.folder);
    story.config.count = 2;
    (void)snprintf(name, sizeof name, "%s/d-43.png", story.folder);
    scratch_write(name, "", 0);
    ASSERT_REFUSED(ERR_USAGE, "d-43.png' exists", render_drafts(&story.request, &err));
    story.config.overwrite = true;
    ASSERT_OK(render_drafts(&story.request, &err));
    assert_int_equal(story.fake.begun, 1);
    assert_int_equal(story.fake.next.steps, 0); /* no tiles follow */
    story_close(&story);
}

static void drafts_are_numbered_and_laid_on_a_sheet(void **state)
{
    struct story story;
    struct err   err = {0};
    struct image sheet = {0}, one = {0};
    char         name[256];

    (void)state;
    story_open(&story, "even", 16);
    (void)snprintf(story.config.output, sizeof story.config.output, "%s/d.png", story.folder);
    story.config.count = 3;
    ASSERT_OK(render_drafts(&story.request, &err));
    assert_int_equal(scratch_count(story.folder), 4);
    (void)snprintf(name, sizeof name, "%s/d-43.png", story.folder);
    ASSERT_OK(image_read(&one, name, &err));
    ASSERT_OK(image_read(&sheet, story.config.output, &err));
    assert_int_equal(sheet.w, 2 * one.w + 48);
    assert_int_equal(sheet.h, 2 * one.h + 48);
    size_t second = (size_t)16 * (size_t)sheet.w * 3 + (size_t)(one.w + 32) * 3;
    assert_memory_equal(sheet.rgb + second, one.rgb, (size_t)one.w * 6);
    image_close(&sheet);
    image_close(&one);
    story_close(&story);
}

static void noise_files_must_fit(void **state)
{
    struct story story;
    struct err   err = {0};

    (void)state;
    story_open(&story, "even", 16);
    (void)snprintf(story.config.noise_file, sizeof story.config.noise_file, "%s/noise",
                   story.folder);
    scratch_write(story.config.noise_file, "1234", 4);
    ASSERT_REFUSED(ERR_FORMAT, "has 4 bytes; raw f32 of", render_poster(&story.request, &err));
    assert_int_equal(scratch_count(story.folder), 1);
    story_close(&story);
}

/* Peak memory in kB of a process of its own that assembles a canvas of constant tiles. */
static long assemble_peak(int32_t w, int32_t h)
{
    struct story     story;
    struct store    *store = NULL;
    struct assembly *assembly = NULL;
    struct err       err = {0};
    struct rusage    usage;
    struct meter     meter;
    int              status = 0;

    story_open(&story, "even", 16);
    story.config.width_px = w;
    story.config.height_px = h;
    story.config.tile_px = 512;
    ASSERT_OK(render_plan_make(&story.plan, &story.config, &err));
    pid_t child = fork();
    if (child == 0) {
        const struct grid *grid = &story.plan.grid;
        uint16_t          *tile = calloc((size_t)grid->tile_w_px * (size_t)grid->tile_h_px * 3, 2);
        int                rc = tile == NULL;
        meter_open(&meter, &story.request);
        if (rc == 0) rc = store_open(&store, &story.request, &meter, &err);
        for (uint32_t i = 0; rc == 0 && i < grid_count(grid); i++)
            rc = spool_put(store->spool, i + 1, tile, &err);
        if (rc == 0)
            rc = assemble_open(&assembly, &story.request, journal_facts(store->journal), &err);
        if (rc == 0) rc = assemble_poster(assembly, store, &meter, &err);
        assemble_close(assembly);
        store_close(store, true);
        _exit(rc);
    }
    assert_int_equal(wait4(child, &status, 0, &usage), child);
    assert_int_equal(status, 0);
    story_close(&story);
    return usage.ru_maxrss;
}

static void memory_does_not_grow_with_the_rows(void **state)
{
    long low, high;

    (void)state;
    if (MURAL_SANITIZED) skip(); /* a sanitizer's own memory grows with every allocation */
    low = assemble_peak(2048, 1024);
    high = assemble_peak(2048, 8192);
    assert_true(low > 0 && high < low + low / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_does_not_grow_with_the_rows),
        cmocka_unit_test(even_tiles_give_back_the_enlarged_draft),
        cmocka_unit_test(exact_tiles_give_back_the_enlarged_draft),
        cmocka_unit_test(eight_bits_stay_within_the_dither),
        cmocka_unit_test(a_given_picture_is_enlarged_without_a_draft),
        cmocka_unit_test(stopping_or_failing_leaves_no_half_file),
        cmocka_unit_test(every_failing_write_is_told_and_loses_nothing),
        cmocka_unit_test(two_runs_never_share_an_output),
        cmocka_unit_test(a_file_that_cannot_be_made_is_told_before_painting),
        cmocka_unit_test(numbered_drafts_are_not_replaced_unasked),
        cmocka_unit_test(drafts_are_numbered_and_laid_on_a_sheet),
        cmocka_unit_test(noise_files_must_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
