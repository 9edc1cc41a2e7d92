/*
 * made_poster.h - small posters: made, written, and read back with libtiff's plain calls and not
 * with our own reader, so that both would have to be wrong in the same way.
 */
#ifndef MURAL_MADE_POSTER_H
#define MURAL_MADE_POSTER_H

#include "../test.h"

#include <tiffio.h>

#include "image/image_int.h"

enum texture { FLAT, RAMP, NOISE };

struct picture {
    int32_t        w, h;
    int            bits;
    unsigned char *samples; /* [h, w, 3] */
};

static struct os_calls working; /* before a test changed them */
static char            folder[256], path[300], part[320];

static inline uint16_t texture_at(enum texture texture, int32_t x, int32_t y, int32_t c)
{
    uint64_t place = ((uint64_t)y << 32 | (uint32_t)x) * 4 + (uint64_t)c;

    if (texture == FLAT) return 40000;
    if (texture == RAMP) return (uint16_t)(x * 37 + y * 91 + c * 5000);
    return (uint16_t)random_u64(&place);
}

static inline struct picture make_picture(int32_t w, int32_t h, int bits, enum texture texture)
{
    struct picture picture = {.w = w, .h = h, .bits = bits};
    const size_t   row = (size_t)w * 3;

    picture.samples = malloc((size_t)h * row * (size_t)bits / 8);
    assert_non_null(picture.samples);
    for (int32_t y = 0; y < h; y++)
        for (int32_t x = 0; x < w; x++)
            for (int32_t c = 0; c < 3; c++) {
                const uint16_t value = texture_at(texture, x, y, c);
                const size_t   at = (size_t)y * row + (size_t)x * 3 + (size_t)c;
                if (bits == 8)
                    picture.samples[at] = (unsigned char)(value >> 8);
                else
                    memcpy(picture.samples + 2 * at, &value, 2);
            }
    return picture;
}

static inline struct bigtiff_request request_for(const struct picture *picture,
                                                 enum tiff_codec       codec)
{
    return (struct bigtiff_request){.path = path,
                                    .w = picture->w,
                                    .h = picture->h,
                                    .bits = picture->bits,
                                    .codec = codec,
                                    .dpi = 300,
                                    .prompt = "a fox",
                                    .settings_json = "{\"seed\":7}",
                                    .software = "mural 0.1.0"};
}

static inline int write_poster(const struct bigtiff_request *request, const struct picture *picture,
                               struct err *err)
{
    struct bigtiff *tiff = NULL;
    uint64_t        bytes = 0, hash = 0;
    const size_t    row = (size_t)picture->w * 3 * (size_t)picture->bits / 8;
    int             rc = bigtiff_open(&tiff, request, err);

    for (int32_t y = 0; rc == ERR_OK && y < picture->h; y += BIGTIFF_TILE_PX)
        rc = bigtiff_write_band(tiff, picture->samples + (size_t)y * row,
                                (int32_t)min_i64(BIGTIFF_TILE_PX, picture->h - y), err);
    if (rc == ERR_OK) rc = bigtiff_complete(tiff, &bytes, &hash, err);
    if (rc == ERR_OK) rc = bigtiff_publish(tiff, err);
    bigtiff_close(tiff);
    return rc;
}

/* ------------------------------------------------------------------------- reading it back */

static int complaints;

__attribute__((format(printf, 2, 0))) static void on_complaint(const char *module,
                                                               const char *format, va_list args)
{
    (void)module;
    complaints++;
    (void)vfprintf(stderr, format, args);
}

static inline TIFF *open_poster(void)
{
    complaints = 0;
    (void)TIFFSetErrorHandler(on_complaint);
    (void)TIFFSetWarningHandler(on_complaint);
    TIFF *tiff = TIFFOpen(path, "r");
    assert_non_null(tiff);
    assert_true(TIFFIsBigTIFF(tiff));
    return tiff;
}

/* The current directory's pixels, tiles cut to the picture; the padding of edge tiles must repeat.
 */
static inline struct picture read_level(TIFF *tiff)
{
    struct picture picture = {0};
    uint32_t       w = 0, h = 0, tile_w = 0, tile_h = 0;
    uint16_t       bits = 0;

    assert_true(TIFFGetField(tiff, TIFFTAG_IMAGEWIDTH, &w) &&
                TIFFGetField(tiff, TIFFTAG_IMAGELENGTH, &h));
    assert_true(TIFFGetField(tiff, TIFFTAG_TILEWIDTH, &tile_w) && tile_w == 512);
    assert_true(TIFFGetField(tiff, TIFFTAG_TILELENGTH, &tile_h) && tile_h == 512);
    assert_true(TIFFGetField(tiff, TIFFTAG_BITSPERSAMPLE, &bits));
    const size_t   pixel = 3 * (size_t)bits / 8;
    unsigned char *tile = malloc(512 * 512 * pixel);
    picture = (struct picture){.w = (int32_t)w, .h = (int32_t)h, .bits = bits};
    picture.samples = malloc((size_t)w * h * pixel);
    assert_true(tile != NULL && picture.samples != NULL);
    for (uint32_t top = 0; top < h; top += 512)
        for (uint32_t left = 0; left < w; left += 512) {
            const size_t cols = w - left < 512 ? w - left : 512,
                         rows = h - top < 512 ? h - top : 512;
            assert_true(TIFFReadTile(tiff, tile, left, top, 0, 0) == (tmsize_t)(512 * 512 * pixel));
            for (size_t y = 0; y < rows; y++)
                memcpy(picture.samples + ((top + y) * w + left) * pixel, tile + y * 512 * pixel,
                       cols * pixel);
            assert_memory_equal(tile + 511 * pixel, tile + (cols - 1) * pixel, pixel);
            assert_memory_equal(tile + 511 * 512 * pixel, tile + (rows - 1) * 512 * pixel,
                                512 * pixel);
        }
    free(tile);
    return picture;
}

static inline void check_equal(const struct picture *a, const struct picture *b)
{
    assert_int_equal(a->w, b->w);
    assert_int_equal(a->h, b->h);
    assert_int_equal(a->bits, b->bits);
    assert_memory_equal(a->samples, b->samples,
                        (size_t)a->w * (size_t)a->h * 3 * (size_t)a->bits / 8);
}

static inline unsigned char *read_file(size_t *bytes_out)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *bytes_out = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*bytes_out);
    assert_true(bytes != NULL && fread(bytes, 1, *bytes_out, file) == *bytes_out);
    (void)fclose(file);
    return bytes;
}

/* --------------------------------------------------------------------------- a folder each */

static inline int begin(void **state)
{
    (void)state;
    working = os;
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/p.tif", folder);
    (void)snprintf(part, sizeof part, "%s.part", path);
    return 0;
}

static inline int end(void **state)
{
    (void)state;
    os = working;
    scratch_remove(folder);
    return 0;
}

#define POSTER_TEST(test) cmocka_unit_test_setup_teardown(test, begin, end)

#endif
