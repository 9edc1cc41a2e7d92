/*
 * test_image_read.c - drafts from anywhere: what is read, what is refused and by which sentence,
 * and that nothing large is taken for a small lie.
 */
#include "../test.h"

#include <tiffio.h>

#include "image/image_int.h"

enum { W = 40, H = 37 };

static char folder[256], path[300];

struct layout {
    const char *mode; /* of TIFFOpen */
    uint32_t    tile; /* side; 0: strips of 8 rows */
    uint16_t    bits, samples, codec, photometric, planar, orientation, format, extra;
};

static const struct layout plain = {.mode = "w",
                                    .bits = 8,
                                    .samples = 3,
                                    .codec = COMPRESSION_NONE,
                                    .photometric = PHOTOMETRIC_RGB,
                                    .planar = PLANARCONFIG_CONTIG,
                                    .orientation = ORIENTATION_TOPLEFT,
                                    .format = SAMPLEFORMAT_UINT,
                                    .extra = EXTRASAMPLE_UNASSALPHA};

/* Sample c of pixel (x, y), 16 bits that are also exact in 8. */
static uint32_t chosen(uint32_t x, uint32_t y, uint32_t c)
{
    return ((x * 31 + y * 57 + c * 101 + x * y) & 255) * 257;
}

static void set_tags(TIFF *tiff, const struct layout *layout)
{
    TIFFSetField(tiff, TIFFTAG_IMAGEWIDTH, W);
    TIFFSetField(tiff, TIFFTAG_IMAGELENGTH, H);
    TIFFSetField(tiff, TIFFTAG_BITSPERSAMPLE, layout->bits);
    TIFFSetField(tiff, TIFFTAG_SAMPLESPERPIXEL, layout->samples);
    TIFFSetField(tiff, TIFFTAG_PHOTOMETRIC, layout->photometric);
    TIFFSetField(tiff, TIFFTAG_PLANARCONFIG, layout->planar);
    TIFFSetField(tiff, TIFFTAG_ORIENTATION, layout->orientation);
    TIFFSetField(tiff, TIFFTAG_SAMPLEFORMAT, layout->format);
    TIFFSetField(tiff, TIFFTAG_COMPRESSION, layout->codec);
    if (layout->codec != COMPRESSION_NONE && layout->codec != COMPRESSION_PACKBITS)
        TIFFSetField(tiff, TIFFTAG_PREDICTOR, PREDICTOR_HORIZONTAL);
    if (layout->samples == 4 || layout->samples == 2)
        TIFFSetField(tiff, TIFFTAG_EXTRASAMPLES, 1, &layout->extra);
}

static void put_sample(uint8_t *at, uint16_t bits, uint32_t value)
{
    const uint16_t word = (uint16_t)value;
    if (bits == 16)
        memcpy(at, &word, 2);
    else
        *at = (uint8_t)(value >> 8);
}

/* A block of pixels whose top left is (x, y); beyond the picture it goes on the same way. */
static void fill(uint8_t *block, const struct layout *layout, uint32_t x, uint32_t y, uint32_t w,
                 uint32_t h)
{
    const size_t bytes = layout->bits / 8;
    for (uint32_t i = 0; i < w * h * layout->samples; i++)
        put_sample(
            block + i * bytes, layout->bits,
            chosen(x + i / layout->samples % w, y + i / layout->samples / w, i % layout->samples));
}

static void make_tiff(const struct layout *layout)
{
    static uint8_t block[64 * 64 * 4 * 4];
    TIFF          *tiff = TIFFOpen(path, layout->mode);

    assert_non_null(tiff);
    set_tags(tiff, layout);
    if (layout->tile != 0) {
        TIFFSetField(tiff, TIFFTAG_TILEWIDTH, layout->tile);
        TIFFSetField(tiff, TIFFTAG_TILELENGTH, layout->tile);
        for (uint32_t y = 0; y < H; y += layout->tile)
            for (uint32_t x = 0; x < W; x += layout->tile) {
                fill(block, layout, x, y, layout->tile, layout->tile);
                assert_true(TIFFWriteTile(tiff, block, x, y, 0, 0) > 0);
            }
    } else {
        TIFFSetField(tiff, TIFFTAG_ROWSPERSTRIP, 8);
        for (uint32_t y = 0; y < H; y++) {
            fill(block, layout, 0, y, W, 1);
            for (uint16_t s = 0; s < (layout->planar == PLANARCONFIG_CONTIG ? 1 : layout->samples);
                 s++)
                assert_int_equal(TIFFWriteScanline(tiff, block, y, s), 1);
        }
    }
    TIFFClose(tiff);
}

static uint32_t expected(const struct layout *layout, uint32_t x, uint32_t y, uint32_t c)
{
    uint64_t       value = chosen(x, y, layout->samples < 3 ? 0 : c);
    const uint64_t alpha = chosen(x, y, 3);

    if (layout->samples != 4 || layout->extra == EXTRASAMPLE_UNSPECIFIED) return (uint32_t)value;
    if (layout->extra == EXTRASAMPLE_ASSOCALPHA && alpha > 0)
        value = value >= alpha ? 65535 : (value * 65535 + alpha / 2) / alpha;
    return (uint32_t)((value * alpha + 65535 * (65535 - alpha) + 32767) / 65535);
}

static void check_read(const struct layout *layout)
{
    struct err   err = {0};
    struct image image = {0};

    make_tiff(layout);
    ASSERT_OK(image_read(&image, path, &err));
    assert_true(image.w == W && image.h == H);
    for (uint32_t i = 0; i < W * H * 3; i++) {
        const uint32_t want = expected(layout, i / 3 % W, i / 3 / W, i % 3);
        if (image.rgb[i] != want)
            fail_msg("mode %s, codec %u, %u x %u bits, tile %u: sample %u is %u, not %u",
                     layout->mode, layout->codec, layout->samples, layout->bits, layout->tile, i,
                     image.rgb[i], want);
    }
    image_close(&image);
}

static void test_every_tiff_layout(void **state)
{
    static const char *const modes[] = {"w", "wb", "w8", "w8b"};
    static const uint16_t codecs[] = {COMPRESSION_NONE, COMPRESSION_LZW, COMPRESSION_ADOBE_DEFLATE,
                                      COMPRESSION_ZSTD};
    static const uint16_t samples[] = {1, 3, 4};

    (void)state;
    for (size_t m = 0; m < ARRAY_COUNT(modes); m++)
        for (size_t k = 0; k < ARRAY_COUNT(codecs); k++)
            for (size_t s = 0; s < ARRAY_COUNT(samples); s++)
                for (int variant = 0; variant < 4; variant++) {
                    struct layout layout = plain;
                    layout.mode = modes[m];
                    layout.codec = codecs[k];
                    layout.samples = samples[s];
                    layout.photometric = samples[s] == 1 ? PHOTOMETRIC_MINISBLACK : PHOTOMETRIC_RGB;
                    layout.bits = variant % 2 == 0 ? 8 : 16;
                    layout.tile = variant < 2 ? 0 : 32;
                    check_read(&layout);
                }
}

static void test_kinds_of_alpha(void **state)
{
    static const uint16_t kinds[] = {EXTRASAMPLE_UNASSALPHA, EXTRASAMPLE_ASSOCALPHA,
                                     EXTRASAMPLE_UNSPECIFIED};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        struct layout layout = plain;
        layout.samples = 4;
        layout.bits = 16;
        layout.extra = kinds[i];
        check_read(&layout);
    }
}

static void refuse_tiff(struct layout layout, const char *words)
{
    struct err   err;
    struct image image = {0};

    make_tiff(&layout);
    ASSERT_REFUSED(ERR_FORMAT, words, image_read(&image, path, &err));
    assert_null(image.rgb);
}

static void test_refused_tiff_layouts(void **state)
{
    struct layout layout;

    (void)state;
    layout = plain, layout.planar = PLANARCONFIG_SEPARATE;
    refuse_tiff(layout, "separate planes");
    layout = plain, layout.orientation = ORIENTATION_BOTRIGHT;
    refuse_tiff(layout, "orientation 3");
    layout = plain, layout.codec = COMPRESSION_PACKBITS;
    refuse_tiff(layout, "codec 32773");
    layout = plain, layout.samples = 2, layout.photometric = PHOTOMETRIC_MINISBLACK;
    refuse_tiff(layout, "2 samples");
    layout = plain, layout.samples = 1, layout.photometric = PHOTOMETRIC_MINISWHITE;
    refuse_tiff(layout, "colour kind 0");
    layout = plain, layout.samples = 4, layout.photometric = PHOTOMETRIC_SEPARATED;
    refuse_tiff(layout, "colour kind 5");
    layout = plain, layout.bits = 32;
    refuse_tiff(layout, "32-bit samples");
    layout = plain, layout.bits = 16, layout.format = SAMPLEFORMAT_INT;
    refuse_tiff(layout, "format 2");
}

/* ------------------------------------------------------------------------------ our own files */

static void test_our_own_poster_comes_back_to_the_bit(void **state)
{
    static uint16_t        samples[600 * 20 * 3];
    uint64_t bytes = 0, hash = 0;
    uint64_t               seed = 5;
    struct err             err = {0};
    struct image           image = {0};
    struct bigtiff        *tiff = NULL;
    struct bigtiff_request request = {.path = path,
                                      .w = 600,
                                      .h = 20,
                                      .bits = 16,
                                      .codec = TIFF_ZSTD,
                                      .dpi = 300,
                                      .pyramid = true};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(samples); i++)
        samples[i] = (uint16_t)random_u64(&seed);
    ASSERT_OK(bigtiff_open(&tiff, &request, &err));
    ASSERT_OK(bigtiff_write_band(tiff, samples, 20, &err));
    ASSERT_OK(bigtiff_complete(tiff, &bytes, &hash, &err));
    ASSERT_OK(bigtiff_publish(tiff, &err));
    bigtiff_close(tiff);
    ASSERT_OK(image_read(&image, path, &err));
    assert_memory_equal(image.rgb, samples, sizeof samples);
    image_close(&image);
}

/* ------------------------------------------------------------------------------ bad intentions */

static size_t          largest_block;
static struct os_calls working;

static void *watched_calloc(size_t count, size_t bytes)
{
    if (count * bytes > largest_block) largest_block = count * bytes;
    return working.calloc(count, bytes);
}

static void refuse_bytes(const void *bytes, size_t count, const char *words)
{
    struct err    err;
    struct image  image = {0};
    struct source source = {.name = "draft", .data = bytes, .bytes = count};

    largest_block = 0;
    os.calloc = watched_calloc;
    ASSERT_REFUSED(ERR_FORMAT, words, image_read_memory(&image, &source, &err));
    os = working;
    assert_null(image.rgb);
    assert_true(largest_block < 1 << 20);
}

static void put_u32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static void test_png_bombs(void **state)
{
    uint8_t png[64] = "\x89PNG\r\n\x1A\n\0\0\0\rIHDR";

    (void)state;
    png[24] = 16, png[25] = 6;
    put_u32(png + 16, 60000), put_u32(png + 20, 60000);
    refuse_bytes(png, sizeof png, "60000 x 60000 px, but a draft may have 16384 px a side");
    put_u32(png + 16, 16384), put_u32(png + 20, 16384);
    refuse_bytes(png, sizeof png, "64 megapixels");
    put_u32(png + 16, 0x7FFFFFFF), put_u32(png + 20, 1);
    refuse_bytes(png, sizeof png, "2147483647");
    put_u32(png + 16, 8000), put_u32(png + 20, 8000);
    refuse_bytes(png, sizeof png, "cannot hold that many");
    put_u32(png + 16, 0), put_u32(png + 20, 8000);
    refuse_bytes(png, sizeof png, "no pixels");
}

/* A TIFF with a header that says whatever is asked, and no pixels. */
static size_t lying_tiff(uint8_t *out, uint32_t w, uint32_t h, uint16_t codec)
{
    uint8_t *at = out;

    memcpy(at, "II*\0\x08\0\0\0\x09\0", 10);
    at += 10;
    const struct {
        uint16_t tag, type;
        uint32_t count, value;
    } entries[] = {{256, 4, 1, w},     {257, 4, 1, h}, {258, 3, 1, 8},
                   {259, 3, 1, codec}, {262, 3, 1, 1}, {273, 4, 1, 8},
                   {277, 3, 1, 1},     {278, 4, 1, h}, {279, 4, 1, 60}};
    for (size_t i = 0; i < ARRAY_COUNT(entries); i++) {
        memcpy(at, &entries[i].tag, 2), memcpy(at + 2, &entries[i].type, 2);
        memcpy(at + 4, &entries[i].count, 4), memcpy(at + 8, &entries[i].value, 4);
        at += 12;
    }
    memset(at, 0, 4);
    return (size_t)(at + 4 - out);
}

static void test_tiff_bombs(void **state)
{
    uint8_t tiff[256];

    (void)state;
    refuse_bytes(tiff, lying_tiff(tiff, 60000, 60000, 1), "60000 x 60000 px");
    refuse_bytes(tiff, lying_tiff(tiff, 8000, 8000, 1), "cannot hold that many");
    refuse_bytes(tiff, lying_tiff(tiff, 8000, 8000, 5), "cannot hold that many");
    refuse_bytes(tiff, lying_tiff(tiff, 8000, 8000, 8), "cannot hold that many");
    refuse_bytes(tiff, lying_tiff(tiff, 8000, 8000, 50000), "cannot hold that many");
    refuse_bytes(tiff, lying_tiff(tiff, 0, 8, 1), "zero");
}

static void test_other_files(void **state)
{
    struct err   err;
    struct image image = {0};

    (void)state;
    refuse_bytes("", 0, "neither a PNG nor a TIFF");
    refuse_bytes("hello, world", 12, "neither a PNG nor a TIFF");
    refuse_bytes("\xFF\xD8\xFF\xE0\0\x10JFIF", 10, "is a JPEG file");
    refuse_bytes("RIFF\x10\0\0\0WEBPVP8 ", 16, "is a WebP file");
    refuse_bytes("GIF89a", 6, "is a GIF file");
    refuse_bytes("\0\0\0\x1C"
                 "ftypavif",
                 12, "AVIF");
    refuse_bytes("\x89PNG\r\n\x1A\n", 8, "cut off");
    refuse_bytes("II*\0", 4, "cannot read");
    ASSERT_REFUSED(ERR_IO, "/nowhere.png", image_read(&image, "/nowhere.png", &err));
    ASSERT_REFUSED(ERR_IO, "not a file", image_read(&image, folder, &err));
}

static uint8_t *read_file(size_t *bytes_out)
{
    char      *text = NULL;
    struct err err = {0};
    ASSERT_OK(os_read_text(&text, bytes_out, path, 1 << 20, &err));
    return (uint8_t *)text;
}

static void test_tiff_cut_anywhere(void **state)
{
    static const char *const modes[] = {"w", "w8"};

    (void)state;
    for (size_t k = 0; k < 4; k++) {
        struct layout layout = plain;
        struct image  whole = {0};
        struct err    err = {0};
        size_t        count;
        layout.mode = modes[k % 2];
        layout.codec = k < 2 ? COMPRESSION_ZSTD : COMPRESSION_LZW;
        layout.tile = k == 1 ? 16 : 0;
        make_tiff(&layout);
        uint8_t *bytes = read_file(&count);
        ASSERT_OK(image_read(&whole, path, &err));
        for (size_t cut = 0; cut < count; cut++) {
            uint8_t      *copy = malloc(cut + 1); /* of exact size, for the address checker */
            struct source source = {.name = "cut.tif", .data = copy, .bytes = cut};
            struct image  image = {0};
            err = (struct err){0};
            memcpy(copy, bytes, cut);
            /* Only what is no part of the pixels may be missing without being missed. */
            if (image_read_memory(&image, &source, &err) == ERR_OK)
                assert_memory_equal(image.rgb, whole.rgb, W * H * 3 * sizeof *image.rgb);
            else
                assert_true(err.code == ERR_FORMAT && strstr(err.text, "cut.tif") != NULL);
            image_close(&image);
            free(copy);
        }
        image_close(&whole);
        os_free(bytes);
    }
}

static void test_sizes_of_profiles(void **state)
{
    static const uint8_t icc[IMAGE_ICC_BYTES_MAX + 1];
    const struct source  source = {.name = "draft"};
    struct decoded       decoded = {0};
    struct err           err = {0};

    (void)state;
    ASSERT_OK(decoded_keep_icc(&decoded, &source, NULL, 0, &err));
    assert_null(decoded.icc);
    ASSERT_REFUSED(ERR_FORMAT, "colour profile of 4194305 bytes",
                   decoded_keep_icc(&decoded, &source, icc, sizeof icc, &err));
    assert_null(decoded.icc);
}

static int fail_at, calls_made;

static void *faulty_calloc(size_t count, size_t bytes)
{
    return ++calls_made == fail_at ? NULL : working.calloc(count, bytes);
}

static void test_short_of_memory(void **state)
{
    struct layout layout = plain;
    struct image  image = {0};
    int           rc;

    (void)state;
    layout.samples = 4;
    make_tiff(&layout);
    for (fail_at = 1;; fail_at++) {
        struct err err = {0};
        calls_made = 0;
        os.calloc = faulty_calloc;
        rc = image_read(&image, path, &err);
        os = working;
        if (calls_made < fail_at) break;
        assert_int_equal(rc, ERR_HOST_MEM);
        assert_null(image.rgb);
    }
    assert_int_equal(rc, ERR_OK);
    assert_true(fail_at > 3); /* pixels, alpha, one row */
    image_close(&image);
}

static int begin(void **state)
{
    (void)state;
    working = os;
    (void)TIFFSetErrorHandler(NULL);
    (void)TIFFSetWarningHandler(NULL);
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/draft.tif", folder);
    return 0;
}

static int end(void **state)
{
    (void)state;
    os = working;
    scratch_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_tiff_layout),
        cmocka_unit_test(test_kinds_of_alpha),
        cmocka_unit_test(test_refused_tiff_layouts),
        cmocka_unit_test(test_our_own_poster_comes_back_to_the_bit),
        cmocka_unit_test(test_png_bombs),
        cmocka_unit_test(test_tiff_bombs),
        cmocka_unit_test(test_other_files),
        cmocka_unit_test(test_tiff_cut_anywhere),
        cmocka_unit_test(test_sizes_of_profiles),
        cmocka_unit_test(test_short_of_memory),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
