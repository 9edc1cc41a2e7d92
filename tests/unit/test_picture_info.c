/*
 * test_picture_info.c - the words of our own files come back; files of others are answered;
 * nonsense is refused.
 */
#include "../test.h"

#include <tiffio.h>

#include "image/image_int.h"

static char folder[256], path[300];

static void write_poster(const struct bigtiff_request *request)
{
    static const uint16_t samples[600 * 5 * 3];
    struct bigtiff       *tiff = NULL;
    uint64_t bytes = 0, hash = 0;
    struct err            err = {0};

    assert_true(request->w <= 600 && request->h <= 5);
    ASSERT_OK(bigtiff_open(&tiff, request, &err));
    ASSERT_OK(bigtiff_write_band(tiff, samples, request->h, &err));
    ASSERT_OK(bigtiff_complete(tiff, &bytes, &hash, &err));
    ASSERT_OK(bigtiff_publish(tiff, &err));
    bigtiff_close(tiff);
}

static void test_poster(void **state)
{
    static const char *const codecs[] = {"none", "lzw", "deflate", "zstd"};

    (void)state;
    for (int codec = TIFF_NONE; codec <= TIFF_ZSTD; codec++) {
        struct err             err = {0};
        struct picture_info    info;
        struct bigtiff_request request = {.path = path,
                                          .w = 600,
                                          .h = 5,
                                          .bits = codec % 2 == 0 ? 16 : 8,
                                          .codec = (enum tiff_codec)codec,
                                          .dpi = 240,
                                          .pyramid = codec == TIFF_LZW,
                                          .prompt = "a fox",
                                          .settings_json = "{\"seed\":7,\"scale\":0.1}",
                                          .software = "mural 0.1.0"};
        write_poster(&request);
        ASSERT_OK(picture_info_read(&info, path, &err));
        assert_true(info.w == 600 && info.h == 5 && info.bits == request.bits);
        assert_string_equal(info.format, "BigTIFF");
        assert_string_equal(info.codec, codecs[codec]);
        assert_true(info.dpi == 240 && info.has_icc);
        assert_int_equal(info.levels, request.pyramid ? 2 : 1);
        assert_string_equal(info.prompt, "a fox");
        assert_string_equal(info.settings_json, request.settings_json);
        picture_info_close(&info);
    }
}

/* What people type, and what breaks careless formats. */
static const char *const prompts[] = {
    "",
    "caf\xC3\xA9, \xE4\xB8\xAD\xE6\x96\x87, \xF0\x9F\xA6\x8A",
    "\"quoted\" \\ back\\slash / <tag> & 'single'",
    "line one\nline two\ttab\r\n\x01\x1F\x7F",
    "\",\"settings\":{\"seed\":666}}",
    "\xEF\xBF\xBF \xEF\xBF\xBE \xC2\x80 \xED\x9F\xBF \xF4\x8F\xBF\xBF",
};

static void test_every_prompt_comes_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(prompts); i++) {
        const struct image_text  texts[] = {{IMAGE_TEXT_PROMPT, prompts[i]},
                                            {IMAGE_TEXT_SOFTWARE, "mural 0.1.0"},
                                            {IMAGE_TEXT_SETTINGS, "{\n \"seed\": 7\n}"}};
        uint16_t                 pixel[3] = {1, 2, 3};
        const struct image       image = {.w = 1, .h = 1, .rgb = pixel};
        struct err               err = {0};
        struct picture_info      info;
        struct bigtiff_request   request = {.path = path,
                                            .w = 2,
                                            .h = 2,
                                            .bits = 8,
                                            .dpi = 72,
                                            .prompt = prompts[i],
                                            .settings_json = "{\n \"seed\": 7\n}"};
        const struct png_request png = {.path = path, .bits = 8, .texts = texts, .text_count = 3};

        write_poster(&request);
        ASSERT_OK(picture_info_read(&info, path, &err));
        assert_string_equal(info.prompt, prompts[i]);
        assert_string_equal(info.settings_json, request.settings_json);
        picture_info_close(&info);
        ASSERT_OK(png_write(&image, &png, &err));
        ASSERT_OK(picture_info_read(&info, path, &err));
        assert_string_equal(info.format, "PNG");
        assert_string_equal(info.prompt, prompts[i]);
        assert_string_equal(info.settings_json, request.settings_json);
        assert_true(info.w == 1 && info.h == 1 && info.bits == 8 && info.levels == 1);
        picture_info_close(&info);
    }
}

static void test_settings_beyond_ascii_mean_the_same(void **state)
{
    struct err             err = {0};
    struct picture_info    info;
    struct bigtiff_request request = {.path = path,
                                      .w = 2,
                                      .h = 2,
                                      .bits = 8,
                                      .dpi = 72,
                                      .settings_json = "{\"style\":\"\xC3\xA9\xF0\x9F\xA6\x8A\"}"};

    (void)state;
    write_poster(&request);
    ASSERT_OK(picture_info_read(&info, path, &err));
    assert_null(info.prompt);
    assert_string_equal(info.settings_json, "{\"style\":\"\\u00e9\\ud83e\\udd8a\"}");
    json_t *before = json_loads(request.settings_json, 0, NULL);
    json_t *after = json_loads(info.settings_json, 0, NULL);
    assert_true(before != NULL && json_equal(before, after));
    json_decref(before);
    json_decref(after);
    picture_info_close(&info);
}

static void test_without_words(void **state)
{
    struct err             err = {0};
    struct picture_info    info;
    struct bigtiff_request request = {
        .path = path, .w = 2, .h = 2, .bits = 8, .dpi = 72, .prompt = "kept to ourselves"};

    (void)state;
    write_poster(&request);
    ASSERT_OK(picture_info_read(&info, path, &err));
    assert_null(info.prompt);
    assert_null(info.settings_json);
    picture_info_close(&info);
}

static void test_a_tiff_of_others(void **state)
{
    static const char *const descriptions[] = {
        "holiday 2019", "{\"seed\":7}", "{\"a\":1,\"settings\":", "[1,\"settings\":2]", "{}"};
    static uint8_t row[8];

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(descriptions); i++) {
        struct err          err = {0};
        struct picture_info info;
        TIFF               *tiff = TIFFOpen(path, "w");
        TIFFSetField(tiff, TIFFTAG_IMAGEWIDTH, 8);
        TIFFSetField(tiff, TIFFTAG_IMAGELENGTH, 1);
        TIFFSetField(tiff, TIFFTAG_BITSPERSAMPLE, 8);
        TIFFSetField(tiff, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_MINISBLACK);
        TIFFSetField(tiff, TIFFTAG_RESOLUTIONUNIT, RESUNIT_CENTIMETER);
        TIFFSetField(tiff, TIFFTAG_XRESOLUTION, 100.0);
        TIFFSetField(tiff, TIFFTAG_IMAGEDESCRIPTION, descriptions[i]);
        assert_int_equal(TIFFWriteScanline(tiff, row, 0, 0), 1);
        TIFFClose(tiff);
        ASSERT_OK(picture_info_read(&info, path, &err));
        assert_string_equal(info.format, "TIFF");
        assert_true(info.dpi > 253.99 && info.dpi < 254.01 && !info.has_icc && info.levels == 1);
        assert_null(info.prompt);
        assert_null(info.settings_json);
        picture_info_close(&info);
    }
}

static void test_nonsense_is_refused(void **state)
{
    static const char *const files[] = {"", "hello", "II*\0", "\x89PNG\r\n\x1A\n\0\0\0\x0DIHDR"};
    static const size_t      sizes[] = {0, 5, 4, 16};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        struct err          err;
        struct picture_info info;
        struct source source = {.name = "x", .data = (const uint8_t *)files[i], .bytes = sizes[i]};
        ASSERT_REFUSED(ERR_FORMAT, "'x'", picture_info_memory(&info, &source, &err));
        assert_null(info.prompt);
    }
}

static void test_png_cut_anywhere(void **state)
{
    const struct image_text  texts[] = {{IMAGE_TEXT_PROMPT, "a fox"}, {IMAGE_TEXT_SETTINGS, "{}"}};
    const struct png_request png = {.path = path, .bits = 16, .texts = texts, .text_count = 2};
    uint16_t                 pixel[3] = {1, 2, 3};
    const struct image       image = {.w = 1, .h = 1, .rgb = pixel};
    struct err               err = {0};
    char                    *bytes = NULL;
    size_t                   count, read = 0;

    (void)state;
    ASSERT_OK(png_write(&image, &png, &err));
    ASSERT_OK(os_read_text(&bytes, &count, path, 1 << 20, &err));
    for (size_t cut = 0; cut <= count; cut++) {
        uint8_t            *copy = malloc(cut + 1);
        struct picture_info info;
        struct source       source = {.name = "x", .data = copy, .bytes = cut};
        memcpy(copy, bytes, cut);
        err = (struct err){0};
        if (picture_info_memory(&info, &source, &err) == ERR_OK) {
            assert_string_equal(info.prompt, "a fox");
            assert_string_equal(info.settings_json, "{}");
            read++;
        }
        picture_info_close(&info);
        free(copy);
    }
    assert_true(read >= 1 &&
                read < 20); /* whole, or cut after the pixels: they are not looked at */
    os_free(bytes);
}

static int begin(void **state)
{
    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/picture", folder);
    return 0;
}

static int end(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_poster),
        cmocka_unit_test(test_every_prompt_comes_back),
        cmocka_unit_test(test_settings_beyond_ascii_mean_the_same),
        cmocka_unit_test(test_without_words),
        cmocka_unit_test(test_a_tiff_of_others),
        cmocka_unit_test(test_nonsense_is_refused),
        cmocka_unit_test(test_png_cut_anywhere),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
