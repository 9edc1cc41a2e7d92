/*
 * test_bigtiff.c - the poster's file: every codec and edge, the pyramid, the words.
 */
#include "made_poster.h"

#include <omp.h>

static void round_trip(int32_t w, int32_t h, int bits, enum tiff_codec codec, enum texture texture)
{
    struct err             err = {0};
    struct picture         picture = make_picture(w, h, bits, texture);
    struct bigtiff_request request = request_for(&picture, codec);

    ASSERT_OK(write_poster(&request, &picture, &err));
    assert_int_equal(scratch_count(folder), 1);
    TIFF          *tiff = open_poster();
    struct picture back = read_level(tiff);
    check_equal(&back, &picture);
    assert_int_equal(TIFFNumberOfDirectories(tiff), 1);
    assert_int_equal(complaints, 0);
    TIFFClose(tiff);
    free(back.samples);
    free(picture.samples);
}

static void test_every_codec_and_edge(void **state)
{
    (void)state;
    for (int codec = TIFF_NONE; codec <= TIFF_ZSTD; codec++) {
        round_trip(1, 1, 16, (enum tiff_codec)codec, RAMP);
        round_trip(20, 20, 8, (enum tiff_codec)codec, FLAT);
        round_trip(513, 5, 16, (enum tiff_codec)codec, RAMP);
        round_trip(7, 513, 8, (enum tiff_codec)codec, RAMP);
        round_trip(512, 40, 16, (enum tiff_codec)codec, NOISE);
        round_trip(40, 40, 8, (enum tiff_codec)codec, NOISE);
    }
}

static void test_same_bytes_whatever_the_threads(void **state)
{
    const int threads = omp_get_max_threads();
    (void)state;
    for (int codec = TIFF_NONE; codec <= TIFF_ZSTD; codec++) {
        struct err             err = {0};
        struct picture         picture = make_picture(1030, 20, 8, RAMP);
        struct bigtiff_request request = request_for(&picture, (enum tiff_codec)codec);
        unsigned char         *files[2];
        size_t                 bytes[2];

        request.pyramid = codec == TIFF_LZW;
        for (int i = 0; i < 2; i++) {
            omp_set_num_threads(i == 0 ? 1 : 4);
            ASSERT_OK(write_poster(&request, &picture, &err));
            files[i] = read_file(&bytes[i]);
        }
        omp_set_num_threads(threads);
        assert_int_equal(bytes[0], bytes[1]);
        assert_memory_equal(files[0], files[1], bytes[0]);
        free(files[0]);
        free(files[1]);
        free(picture.samples);
    }
}

static uint32_t sample_at(const struct picture *picture, int32_t x, int32_t y, int32_t c)
{
    /* An odd side ends in half a 2 x 2, whose other half repeats the edge. */
    const int64_t sx = min_i64(x, picture->w - 1), sy = min_i64(y, picture->h - 1);
    const size_t  at = (size_t)((sy * picture->w + sx) * 3 + c);
    uint16_t      value;

    if (picture->bits == 8) return picture->samples[at];
    memcpy(&value, picture->samples + 2 * at, 2);
    return value;
}

static void check_halved(const struct picture *half, const struct picture *whole)
{
    assert_int_equal(half->w, (whole->w + 1) / 2);
    assert_int_equal(half->h, (whole->h + 1) / 2);
    for (int32_t y = 0; y < half->h; y++)
        for (int32_t x = 0; x < half->w; x++)
            for (int32_t c = 0; c < 3; c++) {
                const uint32_t sum = sample_at(whole, 2 * x, 2 * y, c) +
                                     sample_at(whole, 2 * x + 1, 2 * y, c) +
                                     sample_at(whole, 2 * x, 2 * y + 1, c) +
                                     sample_at(whole, 2 * x + 1, 2 * y + 1, c);
                if (sample_at(half, x, y, c) != (sum + 2) / 4)
                    fail_msg("level of %d x %d: sample %d,%d,%d is %u, not %u", half->w, half->h, x,
                             y, c, sample_at(half, x, y, c), (sum + 2) / 4);
            }
}

static void test_pyramid(void **state)
{
    static const struct {
        int32_t  w, h;
        int      bits;
        uint16_t levels;
    } cases[] = {{1101, 30, 16, 3}, {21, 1539, 8, 3}, {1025, 513, 16, 3}, {512, 512, 8, 1}};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err             err = {0};
        struct picture         picture = make_picture(cases[i].w, cases[i].h, cases[i].bits, NOISE);
        struct bigtiff_request request = request_for(&picture, i == 1 ? TIFF_LZW : TIFF_ZSTD);
        uint16_t               count = 0;
        uint64_t              *offsets = NULL, places[8];

        request.pyramid = true;
        ASSERT_OK(write_poster(&request, &picture, &err));
        TIFF *tiff = open_poster();
        assert_int_equal(TIFFNumberOfDirectories(tiff), 1); /* one visible page */
        (void)TIFFGetField(tiff, TIFFTAG_SUBIFD, &count, &offsets);
        assert_int_equal(count, cases[i].levels - 1);
        for (uint16_t k = 0; k < count; k++)
            places[k] = offsets[k];
        struct picture above = read_level(tiff);
        check_equal(&above, &picture);
        for (uint16_t k = 0; k < count; k++) {
            uint32_t kind = 0;
            assert_true(TIFFSetSubDirectory(tiff, places[k]));
            assert_true(TIFFGetField(tiff, TIFFTAG_SUBFILETYPE, &kind) &&
                        kind == FILETYPE_REDUCEDIMAGE);
            struct picture level = read_level(tiff);
            check_halved(&level, &above);
            free(above.samples);
            above = level;
        }
        assert_true(above.w <= 512 && above.h <= 512);
        assert_int_equal(complaints, 0);
        TIFFClose(tiff);
        free(above.samples);
        free(picture.samples);
    }
}

static void test_tags(void **state)
{
    struct err             err = {0};
    struct picture         picture = make_picture(30, 20, 16, RAMP);
    struct bigtiff_request request = request_for(&picture, TIFF_DEFLATE);
    float                  dpi = 0;
    uint16_t               unit = 0;
    uint32_t               bytes = 0;
    char                  *text = NULL;
    void                  *data = NULL;

    (void)state;
    request.prompt = "caf\xC3\xA9 <b> & \x01 \xF0\x9F\xA6\x8A \"q\"";
    ASSERT_OK(write_poster(&request, &picture, &err));
    TIFF *tiff = open_poster();
    assert_true(TIFFGetField(tiff, TIFFTAG_XRESOLUTION, &dpi) && dpi == 300.0f);
    assert_true(TIFFGetField(tiff, TIFFTAG_RESOLUTIONUNIT, &unit) && unit == RESUNIT_INCH);
    assert_true(TIFFGetField(tiff, TIFFTAG_ICCPROFILE, &bytes, &data) && bytes > 128);
    assert_true(TIFFGetField(tiff, TIFFTAG_SOFTWARE, &text));
    assert_string_equal(text, "mural 0.1.0");
    assert_true(TIFFGetField(tiff, TIFFTAG_IMAGEDESCRIPTION, &text));
    assert_string_equal(text, "{\"software\":\"mural 0.1.0\",\"prompt\":\"caf\\u00e9 <b> & \\u0001 "
                              "\\ud83e\\udd8a \\\"q\\\"\",\"settings\":{\"seed\":7}}");
    assert_true(TIFFGetField(tiff, TIFFTAG_XMLPACKET, &bytes, &data));
    char *xmp = strndup(data, bytes);
    assert_non_null(
        strstr(xmp, ">caf\xC3\xA9 &lt;b&gt; &amp; \xEF\xBF\xBD \xF0\x9F\xA6\x8A \"q\"<"));
    assert_non_null(strstr(xmp, "/trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>"));
    assert_non_null(strstr(xmp, "<xmp:CreatorTool>mural 0.1.0</xmp:CreatorTool>"));
    assert_non_null(strstr(xmp, "<mural:settings>{\"seed\":7}</mural:settings>"));
    free(xmp);
    assert_false(TIFFGetField(tiff, TIFFTAG_DATETIME, &text));
    TIFFClose(tiff);

    request.settings_json = NULL;
    ASSERT_OK(write_poster(&request, &picture, &err));
    tiff = open_poster();
    assert_false(TIFFGetField(tiff, TIFFTAG_IMAGEDESCRIPTION, &text));
    assert_false(TIFFGetField(tiff, TIFFTAG_SOFTWARE, &text));
    assert_false(TIFFGetField(tiff, TIFFTAG_XMLPACKET, &bytes, &data));
    assert_true(TIFFGetField(tiff, TIFFTAG_ICCPROFILE, &bytes, &data));
    TIFFClose(tiff);
    free(picture.samples);
}

static void test_worst_case_is_not_exceeded(void **state)
{
    (void)state;
    for (int codec = TIFF_NONE; codec <= TIFF_ZSTD; codec++) {
        struct err             err = {0};
        struct picture         picture = make_picture(600, 10, 16, NOISE);
        struct bigtiff_request request = request_for(&picture, (enum tiff_codec)codec);
        size_t                 bytes;

        request.pyramid = true;
        ASSERT_OK(write_poster(&request, &picture, &err));
        free(read_file(&bytes));
        assert_true(bytes <= bigtiff_bytes_worst(&request));
        /* Nor is it idle talk: uncompressed, only the room for tags is left over. */
        if (codec == TIFF_NONE) assert_true(bytes + 128 * 1024 > bigtiff_bytes_worst(&request));
        free(picture.samples);
    }
}

static void test_refused_requests(void **state)
{
    struct err             err;
    struct picture         picture = make_picture(8, 8, 8, FLAT);
    struct bigtiff_request good = request_for(&picture, TIFF_ZSTD), bad;
    struct bigtiff        *tiff = NULL;

    (void)state;
    bad = good, bad.w = 0;
    ASSERT_REFUSED(ERR_USAGE, "0 x 8 px", bigtiff_open(&tiff, &bad, &err));
    bad = good, bad.h = (1 << 20) + 1;
    ASSERT_REFUSED(ERR_USAGE, "1048577", bigtiff_open(&tiff, &bad, &err));
    bad = good, bad.bits = 12;
    ASSERT_REFUSED(ERR_USAGE, "12 bits", bigtiff_open(&tiff, &bad, &err));
    bad = good, bad.level = 20;
    ASSERT_REFUSED(ERR_USAGE, "zstd has levels 1..19", bigtiff_open(&tiff, &bad, &err));
    bad = good, bad.codec = TIFF_DEFLATE, bad.level = 13;
    ASSERT_REFUSED(ERR_USAGE, "deflate has levels 1..12", bigtiff_open(&tiff, &bad, &err));
    bad = good, bad.dpi = 0;
    ASSERT_REFUSED(ERR_USAGE, "0 dpi", bigtiff_open(&tiff, &bad, &err));
    bad = good, bad.prompt = "bad \xFF byte";
    ASSERT_REFUSED(ERR_USAGE, "byte 4 is 0xFF", bigtiff_open(&tiff, &bad, &err));
    bad = good, bad.path = "/nowhere/at/all.tif";
    ASSERT_REFUSED(ERR_IO, "/nowhere/at/all.tif.part", bigtiff_open(&tiff, &bad, &err));
    assert_null(tiff);
    assert_int_equal(scratch_count(folder), 0);
    free(picture.samples);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        POSTER_TEST(test_every_codec_and_edge),
        POSTER_TEST(test_same_bytes_whatever_the_threads),
        POSTER_TEST(test_pyramid),
        POSTER_TEST(test_tags),
        POSTER_TEST(test_worst_case_is_not_exceeded),
        POSTER_TEST(test_refused_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
