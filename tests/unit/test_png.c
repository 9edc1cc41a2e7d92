/*
 * test_png.c - PNG in every layout that the format has, PNG out, and a disk that fails.
 *
 * Pictures to read are made by libpng itself from samples that the test chooses, so that what every
 * sample must become can be said without unpacking anything.
 */
#include "../test.h"

#include <errno.h>
#include <math.h>

#include <lcms2.h>
#include <png.h>

#include "image/image_int.h"

static char folder[256], path[300];

/* --------------------------------------------------------------------- making files to read */

enum { W = 13, H = 9 };

struct layout {
    int            type, depth;
    bool           interlaced, clear; /* clear: with a tRNS chunk */
    const uint8_t *icc;
    uint32_t       icc_bytes;
};

struct buffer {
    uint8_t bytes[1 << 16];
    size_t  count;
};

static void append(png_structp png, png_bytep x, size_t count)
{
    struct buffer *buffer = png_get_io_ptr(png);
    assert_true(buffer->count + count <= sizeof buffer->bytes);
    memcpy(buffer->bytes + buffer->count, x, count);
    buffer->count += count;
}

static void flush(png_structp png)
{
    (void)png;
}

/* The sample of channel c at (x, y), with as many bits as the layout has. */
static uint32_t chosen(const struct layout *layout, uint32_t x, uint32_t y, uint32_t c)
{
    const uint32_t value = (x * 2371 + y * 911 + c * 40503) ^ (x * y << 3);
    return value & ((1u << layout->depth) - 1u);
}

static uint32_t channels_of(int type)
{
    return type == PNG_COLOR_TYPE_RGB    ? 3
           : type == PNG_COLOR_TYPE_RGBA ? 4
           : type == PNG_COLOR_TYPE_GA   ? 2
                                         : 1;
}

static void put_sample(uint8_t *row, int depth, uint32_t index, uint32_t value)
{
    if (depth == 16) {
        row[2 * index] = (uint8_t)(value >> 8);
        row[2 * index + 1] = (uint8_t)value;
    } else {
        const uint32_t bit = index * (uint32_t)depth;
        row[bit / 8] |= (uint8_t)(value << (8u - (uint32_t)depth - bit % 8));
    }
}

static void make_png(struct buffer *buffer, const struct layout *layout)
{
    png_structp    png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop      info = png_create_info_struct(png);
    static uint8_t rows[H][W * 8];
    png_bytep      pointers[H];
    const uint32_t channels = channels_of(layout->type);

    memset(rows, 0, sizeof rows);
    buffer->count = 0;
    assert_int_equal(setjmp(png_jmpbuf(png)), 0);
    png_set_write_fn(png, buffer, append, flush);
    png_set_IHDR(png, info, W, H, layout->depth, layout->type,
                 layout->interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, 0, 0);
    if (layout->type == PNG_COLOR_TYPE_PALETTE) {
        png_color palette[256];
        png_byte  alphas[2] = {0, 128};
        for (int i = 0; i < 256; i++)
            palette[i] = (png_color){(png_byte)i, (png_byte)(255 - i), 7};
        png_set_PLTE(png, info, palette, 1 << layout->depth);
        if (layout->clear) png_set_tRNS(png, info, alphas, 2, NULL);
    } else if (layout->clear) { /* the colour of pixel (2, 1) */
        png_color_16 clear = {0};
        clear.gray = clear.red = (png_uint_16)chosen(layout, 2, 1, 0);
        clear.green = (png_uint_16)chosen(layout, 2, 1, 1);
        clear.blue = (png_uint_16)chosen(layout, 2, 1, 2);
        png_set_tRNS(png, info, NULL, 0, &clear);
    }
    if (layout->icc != NULL) png_set_iCCP(png, info, "test", 0, layout->icc, layout->icc_bytes);
    for (uint32_t y = 0; y < H; y++) {
        pointers[y] = rows[y];
        for (uint32_t x = 0; x < W; x++)
            for (uint32_t c = 0; c < channels; c++)
                put_sample(rows[y], layout->depth, x * channels + c, chosen(layout, x, y, c));
    }
    png_set_rows(png, info, pointers);
    png_write_png(png, info, 0, NULL);
    png_destroy_write_struct(&png, &info);
}

static struct source source_of(const struct buffer *buffer)
{
    return (struct source){.name = "test.png", .data = buffer->bytes, .bytes = buffer->count};
}

/* ---------------------------------------------------------------------------------- reading */

static uint32_t on_white(uint32_t value, uint32_t alpha)
{
    return (uint32_t)((value * (uint64_t)alpha + 65535ull * (65535 - alpha) + 32767) / 65535);
}

static uint32_t expected(const struct layout *layout, uint32_t x, uint32_t y, uint32_t c)
{
    const uint32_t most = (1u << layout->depth) - 1u, channels = channels_of(layout->type);
    const uint32_t value = chosen(layout, x, y, channels < 3 ? 0 : c) * (65535 / most);
    bool           is_clear = layout->clear;

    if (layout->type == PNG_COLOR_TYPE_PALETTE) {
        const uint32_t index = chosen(layout, x, y, 0);
        const uint32_t colour = c == 0 ? index : c == 1 ? 255 - index : 7;
        return on_white(colour * 257, !layout->clear || index > 1 ? 65535
                                      : index == 0                ? 0
                                                                  : 128 * 257);
    }
    if (channels == 2 || channels == 4)
        return on_white(value, chosen(layout, x, y, channels - 1) * (65535 / most));
    for (uint32_t k = 0; k < channels; k++)
        if (chosen(layout, x, y, k) != chosen(layout, 2, 1, k)) is_clear = false;
    return is_clear ? 65535 : value;
}

static void test_every_layout(void **state)
{
    static const struct {
        int type, depths[6];
    } kinds[] = {{PNG_COLOR_TYPE_GRAY, {1, 2, 4, 8, 16}},
                 {PNG_COLOR_TYPE_RGB, {8, 16}},
                 {PNG_COLOR_TYPE_PALETTE, {1, 2, 4, 8}},
                 {PNG_COLOR_TYPE_GA, {8, 16}},
                 {PNG_COLOR_TYPE_RGBA, {8, 16}}};
    static struct buffer buffer;

    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++)
        for (int d = 0; kinds[k].depths[d] != 0; d++)
            for (int variant = 0; variant < 4; variant++) {
                struct layout layout = {.type = kinds[k].type, .depth = kinds[k].depths[d]};
                struct err    err = {0};
                struct image  image = {0};
                layout.interlaced = variant % 2 == 1;
                layout.clear = variant >= 2;
                if (layout.clear && (channels_of(layout.type) & 1) == 0) continue;
                make_png(&buffer, &layout);
                struct source source = source_of(&buffer);
                ASSERT_OK(image_read_memory(&image, &source, &err));
                assert_true(image.w == W && image.h == H);
                for (uint32_t i = 0; i < W * H * 3; i++) {
                    const uint32_t want = expected(&layout, i / 3 % W, i / 3 / W, i % 3);
                    if (image.rgb[i] != want)
                        fail_msg("type %d, %d bits, variant %d: sample %u is %u, not %u",
                                 layout.type, layout.depth, variant, i, image.rgb[i], want);
                }
                image_close(&image);
            }
}

static void test_cut_anywhere_is_refused(void **state)
{
    static struct buffer buffer;
    (void)state;
    for (int variant = 0; variant < 3; variant++) {
        struct layout layout = {.type = variant == 0 ? PNG_COLOR_TYPE_PALETTE : PNG_COLOR_TYPE_RGBA,
                                .depth = variant == 0 ? 4 : 8,
                                .interlaced = variant == 2,
                                .clear = variant == 0};
        make_png(&buffer, &layout);
        for (size_t bytes = 0; bytes < buffer.count; bytes++) {
            struct err    err = {0};
            struct image  image = {0};
            uint8_t      *copy = malloc(bytes + 1); /* of exact size, for the address checker */
            struct source source = {.name = "cut.png", .data = copy, .bytes = bytes};
            memcpy(copy, buffer.bytes, bytes);
            if (image_read_memory(&image, &source, &err) != ERR_FORMAT)
                fail_msg("%zu of %zu bytes were taken for a picture", bytes, buffer.count);
            assert_non_null(strstr(err.text, "cut.png"));
            assert_null(image.rgb);
            free(copy);
        }
    }
}

static void test_damage_is_refused(void **state)
{
    static struct buffer buffer;
    struct layout        layout = {.type = PNG_COLOR_TYPE_RGB, .depth = 8};
    struct image         image = {0};
    struct err           err;

    (void)state;
    make_png(&buffer, &layout);
    struct source source = source_of(&buffer);
    buffer.bytes[buffer.count - 20] ^= 1;
    ASSERT_REFUSED(ERR_FORMAT, "not a whole PNG", image_read_memory(&image, &source, &err));
    make_png(&buffer, &layout);
    buffer.bytes[25] = 1;
    ASSERT_REFUSED(ERR_FORMAT, "colour type 1", image_read_memory(&image, &source, &err));
    buffer.bytes[25] = 2, buffer.bytes[24] = 0;
    ASSERT_REFUSED(ERR_FORMAT, "not a whole PNG", image_read_memory(&image, &source, &err));
    assert_null(image.rgb);
}

/* A profile whose numbers are not sRGB's: the draft must look the same, so its samples change. */
static void test_profiles(void **state)
{
    const cmsCIExyY       white = {0.3127, 0.3290, 1};
    const cmsCIExyYTRIPLE wide = {{0.64, 0.33, 1}, {0.21, 0.71, 1}, {0.15, 0.06, 1}};
    static struct buffer  buffer;
    static uint8_t        icc[65536];

    (void)state;
    for (int grey = 0; grey < 2; grey++) {
        struct layout layout = {.depth = 16};
        struct image  image = {0};
        struct err    err = {0};
        cmsToneCurve *curve = cmsBuildGamma(NULL, 1.8);
        cmsToneCurve *curves[3] = {curve, curve, curve};
        cmsHPROFILE   profile =
            grey ? cmsCreateGrayProfile(&white, curve) : cmsCreateRGBProfile(&white, &wide, curves);
        cmsHPROFILE     srgb = cmsCreate_sRGBProfile();
        cmsUInt32Number bytes = 0;

        assert_true(cmsSaveProfileToMem(profile, NULL, &bytes) && bytes <= sizeof icc);
        assert_true(cmsSaveProfileToMem(profile, icc, &bytes));
        layout.type = grey ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB;
        layout.icc = icc, layout.icc_bytes = bytes;
        make_png(&buffer, &layout);
        struct source source = source_of(&buffer);
        ASSERT_OK(image_read_memory(&image, &source, &err));
        cmsHTRANSFORM transform =
            cmsCreateTransform(profile, grey ? TYPE_GRAY_DBL : TYPE_RGB_DBL, srgb, TYPE_RGB_DBL,
                               INTENT_PERCEPTUAL, cmsFLAGS_NOOPTIMIZE);
        double largest = 0;
        for (uint32_t i = 0; i < W * H; i++) {
            double from[3], to[3];
            for (uint32_t c = 0; c < 3; c++)
                from[c] = chosen(&layout, i % W, i / W, c) / 65535.0;
            cmsDoTransform(transform, from, to, 1);
            for (uint32_t c = 0; c < 3; c++) {
                const double clamped = to[c] < 0 ? 0 : to[c] > 1 ? 1 : to[c];
                const double apart = clamped - image.rgb[3 * i + c] / 65535.0;
                const double moved = fabs(from[grey ? 0 : c] - clamped);
                /* A few units of 16 bits: lcms2 rounds between its stages. */
                if (apart > 1e-4 || apart < -1e-4)
                    fail_msg("sample %u is off by %g", 3 * i + c, apart);
                largest = moved > largest ? moved : largest;
            }
        }
        assert_true(largest > 0.02); /* and the profile did matter */
        cmsDeleteTransform(transform);
        cmsFreeToneCurve(curve);
        (void)cmsCloseProfile(profile);
        (void)cmsCloseProfile(srgb);
        image_close(&image);
    }
}

/* ---------------------------------------------------------------------------------- writing */

static struct image make_image(void)
{
    struct image image = {.w = 21, .h = 17};
    uint64_t     seed = 3;
    image.rgb = malloc(21 * 17 * 3 * sizeof *image.rgb);
    assert_non_null(image.rgb);
    for (int i = 0; i < 21 * 17 * 3; i++)
        image.rgb[i] = (uint16_t)random_u64(&seed);
    return image;
}

static void test_written_and_read_again(void **state)
{
    (void)state;
    for (int bits = 8; bits <= 16; bits += 8) {
        struct err         err = {0};
        struct image       image = make_image(), back = {0};
        struct png_request request = {.path = path, .bits = bits};
        ASSERT_OK(png_write(&image, &request, &err));
        assert_int_equal(scratch_count(folder), 1);
        ASSERT_OK(image_read(&back, path, &err));
        assert_true(back.w == image.w && back.h == image.h);
        for (int i = 0; i < 21 * 17 * 3; i++) {
            const double rounded =
                bits == 8 ? (double)(int)(image.rgb[i] / 257.0 + 0.5) * 257 : (double)image.rgb[i];
            assert_true((double)back.rgb[i] == rounded);
        }
        image_close(&image);
        image_close(&back);
    }
}

static void test_texts_and_srgb_mark(void **state)
{
    static const struct image_text texts[] = {
        {"Software", "mural 0.1.0"}, {"Description", "caf\xC3\xA9\nline \xF0\x9F\xA6\x8A"}};
    struct err         err = {0};
    struct image       image = make_image();
    struct png_request request = {.path = path, .bits = 8, .texts = texts, .text_count = 2};
    int                intent = -1, count = 0;
    png_textp          found = NULL;

    (void)state;
    ASSERT_OK(png_write(&image, &request, &err));
    FILE       *file = fopen(path, "rb");
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop   info = png_create_info_struct(png);
    assert_true(file != NULL && setjmp(png_jmpbuf(png)) == 0);
    png_init_io(png, file);
    png_read_info(png, info);
    assert_true(png_get_sRGB(png, info, &intent) != 0);
    assert_int_equal(png_get_text(png, info, &found, &count), 2);
    for (int i = 0; i < 2; i++) {
        assert_string_equal(found[i].key, texts[i].key);
        assert_string_equal(found[i].text, texts[i].value);
    }
    png_destroy_read_struct(&png, &info, NULL);
    (void)fclose(file);
    image_close(&image);
}

static int             fault_at, calls_made;
static struct os_calls working;

static int64_t faulty_pwrite(int fd, const void *x, size_t bytes, int64_t offset)
{
    if (++calls_made < fault_at) return working.pwrite(fd, x, bytes, offset);
    if (calls_made == fault_at && bytes > 1) return working.pwrite(fd, x, bytes / 2, offset);
    errno = ENOSPC;
    return -1;
}
static int faulty_fsync(int fd)
{
    (void)fd;
    errno = EIO;
    return -1;
}
static int faulty_rename(const char *source, const char *target)
{
    (void)source, (void)target;
    errno = EACCES;
    return -1;
}

static void test_failing_disk(void **state)
{
    struct image       image = make_image();
    struct png_request request = {.path = path, .bits = 16};
    struct err         err = {0};

    (void)state;
    for (fault_at = 0;; fault_at++) {
        calls_made = 0;
        err = (struct err){0};
        os.pwrite = faulty_pwrite;
        int rc = png_write(&image, &request, &err);
        os = working;
        if (calls_made < fault_at) {
            assert_int_equal(rc, ERR_OK);
            break;
        }
        assert_int_equal(rc, ERR_IO);
        assert_int_equal(err.sys, ENOSPC);
        assert_int_equal(scratch_count(folder), 0);
    }
    assert_true(fault_at > 8);
    assert_int_equal(unlink(path), 0);
    os.fsync = faulty_fsync;
    ASSERT_REFUSED(ERR_IO, "disk", png_write(&image, &request, &err));
    os = working;
    os.rename = faulty_rename;
    ASSERT_REFUSED(ERR_IO, "rename", png_write(&image, &request, &err));
    os = working;
    request.path = "/nowhere/at/all.png";
    ASSERT_REFUSED(ERR_IO, "/nowhere/at/all.png", png_write(&image, &request, &err));
    assert_int_equal(scratch_count(folder), 0);
    image_close(&image);
}

static int begin(void **state)
{
    (void)state;
    working = os;
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/p.png", folder);
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
        cmocka_unit_test(test_every_layout),
        cmocka_unit_test(test_cut_anywhere_is_refused),
        cmocka_unit_test(test_damage_is_refused),
        cmocka_unit_test(test_profiles),
        cmocka_unit_test_setup_teardown(test_written_and_read_again, begin, end),
        cmocka_unit_test_setup_teardown(test_texts_and_srgb_mark, begin, end),
        cmocka_unit_test_setup_teardown(test_failing_disk, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
