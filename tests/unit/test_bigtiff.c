/*
 * test_bigtiff.c - the poster's file: every codec and edge, the pyramid, the words, and every way
 * in which a disk can fail.
 *
 * Files are read back with libtiff's plain calls and not with our own reader, so that both would
 * have to be wrong in the same way.
 */
#include "../test.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <tiffio.h>

#include "image/image_int.h"

enum texture { FLAT, RAMP, NOISE };

struct picture {
    int32_t        w, h;
    int            bits;
    unsigned char *samples; /* [h, w, 3] */
};

static char folder[256], path[300], part[320];

static uint16_t texture_at(enum texture texture, int32_t x, int32_t y, int32_t c)
{
    uint64_t place = ((uint64_t)y << 32 | (uint32_t)x) * 4 + (uint64_t)c;

    if (texture == FLAT) return 40000;
    if (texture == RAMP) return (uint16_t)(x * 37 + y * 91 + c * 5000);
    return (uint16_t)random_u64(&place);
}

static struct picture make_picture(int32_t w, int32_t h, int bits, enum texture texture)
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

static struct bigtiff_request request_for(const struct picture *picture, enum tiff_codec codec)
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

static int write_poster(const struct bigtiff_request *request, const struct picture *picture,
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

static TIFF *open_poster(void)
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
static struct picture read_level(TIFF *tiff)
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

static void check_equal(const struct picture *a, const struct picture *b)
{
    assert_int_equal(a->w, b->w);
    assert_int_equal(a->h, b->h);
    assert_int_equal(a->bits, b->bits);
    assert_memory_equal(a->samples, b->samples,
                        (size_t)a->w * (size_t)a->h * 3 * (size_t)a->bits / 8);
}

static unsigned char *read_file(size_t *bytes_out)
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

/* --------------------------------------------------------------------------------- content */

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

/* ---------------------------------------------------------------------------------- faults */

enum fault { NO_SPACE, SHORT_THEN_NO_SPACE, SHORT, FLIPPED };

static enum fault      fault_kind;
static int             fault_at, calls_made;
static struct os_calls working;

static int64_t faulty_pwrite(int fd, const void *x, size_t bytes, int64_t offset)
{
    const bool now = ++calls_made == fault_at;

    if (now && (fault_kind == SHORT || fault_kind == SHORT_THEN_NO_SPACE))
        return working.pwrite(fd, x, bytes > 1 ? bytes / 2 : bytes, offset);
    if (now && fault_kind == FLIPPED) {
        unsigned char *copy = malloc(bytes);
        assert_non_null(copy);
        memcpy(copy, x, bytes);
        copy[bytes / 2] ^= 0x10;
        int64_t put = working.pwrite(fd, copy, bytes, offset);
        free(copy);
        return put;
    }
    if (now || (fault_kind == SHORT_THEN_NO_SPACE && calls_made > fault_at)) {
        errno = ENOSPC;
        return -1;
    }
    return working.pwrite(fd, x, bytes, offset);
}
static int64_t faulty_pread(int fd, void *x, size_t bytes, int64_t offset)
{
    if (++calls_made != fault_at) return working.pread(fd, x, bytes, offset);
    errno = EIO;
    return -1;
}
static int faulty_fsync(int fd)
{
    if (++calls_made != fault_at) return working.fsync(fd);
    errno = EIO;
    return -1;
}
static int faulty_close(int fd)
{
    (void)working.close(fd);
    if (++calls_made != fault_at) return 0;
    errno = EIO;
    return -1;
}
static int faulty_rename(const char *source, const char *target)
{
    if (++calls_made != fault_at) return working.rename(source, target);
    errno = EACCES;
    return -1;
}
static void *faulty_calloc(size_t count, size_t bytes)
{
    if (++calls_made != fault_at) return working.calloc(count, bytes);
    errno = ENOMEM;
    return NULL;
}

static bool is_one_sentence(const char *text)
{
    const size_t length = strlen(text);
    return length > 10 && strchr(text, '\n') == NULL && text[length - 1] != '.';
}

/* Break the n-th call for n = 1, 1 + step, ... until a poster is written undisturbed. */
static void break_each(const struct os_calls *broken, enum err_code code, int step, int least_calls)
{
    struct picture         picture = make_picture(600, 20, 8, RAMP);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    int                    rc;

    request.pyramid = true;
    for (fault_at = 1;; fault_at += step) {
        struct err err = {0};
        calls_made = 0;
        os = *broken;
        rc = write_poster(&request, &picture, &err);
        os = working;
        if (calls_made < fault_at) break;
        if (rc != (int)code || err.code != code || !is_one_sentence(err.text))
            fail_msg("call %d: code %d, '%s'", fault_at, rc, err.text);
        assert_int_equal(scratch_count(folder), 0);
    }
    assert_int_equal(rc, ERR_OK);
    assert_true(fault_at > least_calls);
    assert_int_equal(scratch_count(folder), 1);
    free(picture.samples);
}

static void test_every_failed_write(void **state)
{
    struct os_calls broken = os;
    (void)state;
    broken.pwrite = faulty_pwrite;
    fault_kind = NO_SPACE;
    break_each(&broken, ERR_IO, 1, 10);
    assert_int_equal(unlink(path), 0);
    fault_kind = SHORT_THEN_NO_SPACE;
    break_each(&broken, ERR_IO, 1, 10);
}

static void test_every_other_failed_call(void **state)
{
    struct os_calls broken = os;
    (void)state;
    broken.pread = faulty_pread;
    break_each(&broken, ERR_IO, 7, 50); /* libtiff reads a directory in many small pieces */
    assert_int_equal(unlink(path), 0);
    broken = os, broken.rename = faulty_rename;
    break_each(&broken, ERR_IO, 1, 1);
    assert_int_equal(unlink(path), 0);
    broken = os, broken.calloc = faulty_calloc;
    break_each(&broken, ERR_HOST_MEM, 1, 10);
}

static void test_failed_sync_and_close(void **state)
{
    struct picture         picture = make_picture(8, 8, 8, FLAT);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct err             err = {0};

    (void)state;
    /* The first call of each is for the .part file itself. */
    fault_at = 1, calls_made = 0;
    os.fsync = faulty_fsync;
    int rc = write_poster(&request, &picture, &err);
    os = working;
    assert_int_equal(rc, ERR_IO);
    assert_int_equal(scratch_count(folder), 0);
    fault_at = 3, calls_made = 0; /* before: the verifying reader, and that of the hash */
    os.close = faulty_close;
    rc = write_poster(&request, &picture, &err);
    os = working;
    assert_int_equal(rc, ERR_IO);
    assert_int_equal(scratch_count(folder), 0);
    free(picture.samples);
}

static void test_short_writes_are_continued(void **state)
{
    struct picture         picture = make_picture(40, 30, 16, RAMP);
    struct bigtiff_request request = request_for(&picture, TIFF_DEFLATE);
    struct err             err = {0};

    (void)state;
    fault_kind = SHORT;
    os.pwrite = faulty_pwrite;
    for (fault_at = 1, calls_made = 1; calls_made >= fault_at; fault_at++) {
        calls_made = 0;
        ASSERT_OK(write_poster(&request, &picture, &err));
    }
    os = working;
    TIFF          *tiff = open_poster();
    struct picture back = read_level(tiff);
    check_equal(&back, &picture);
    TIFFClose(tiff);
    free(back.samples);
    free(picture.samples);
}

/* A disk that stores something else than it was given, without a word. */
static void test_lying_disk_is_found_out(void **state)
{
    struct picture         picture = make_picture(600, 20, 8, NOISE);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct err             err;

    (void)state;
    fault_kind = FLIPPED;
    for (fault_at = 2; fault_at <= 3; fault_at++) { /* the two tiles, after the header */
        calls_made = 0;
        os.pwrite = faulty_pwrite;
        err = (struct err){0};
        int rc = write_poster(&request, &picture, &err);
        os = working;
        assert_int_equal(rc, ERR_IO);
        assert_true(is_one_sentence(err.text));
        assert_int_equal(scratch_count(folder), 0);
    }
    free(picture.samples);
}

static void test_abandoned_poster_leaves_nothing(void **state)
{
    struct picture         picture = make_picture(20, 600, 8, FLAT);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct bigtiff        *tiff = NULL;
    struct err             err = {0};

    (void)state;
    ASSERT_OK(bigtiff_open(&tiff, &request, &err));
    ASSERT_OK(bigtiff_write_band(tiff, picture.samples, 512, &err));
    assert_int_equal(access(part, F_OK), 0);
    assert_int_not_equal(access(path, F_OK), 0);
    bigtiff_close(tiff);
    assert_int_equal(scratch_count(folder), 0);
    bigtiff_close(NULL);
    free(picture.samples);
}

/* The kernel's own refusal, not ours: a limit on the size of files. */
static void test_file_size_limit(void **state)
{
    struct picture         picture = make_picture(600, 600, 8, NOISE);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct rlimit          before, tight;
    struct err             err;

    (void)state;
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (rlim_t limit = 100000; limit < 3400000; limit += 1000000) {
        tight = before;
        tight.rlim_cur = limit;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
        err = (struct err){0};
        int rc = write_poster(&request, &picture, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(rc, ERR_IO);
        assert_int_equal(err.sys, EFBIG);
        assert_int_equal(scratch_count(folder), 0);
    }
    free(picture.samples);
}

enum { CHILD_FINE = 0, CHILD_CANNOT_MOUNT = 77 };

/* In a process and a mount namespace of its own, so that nothing of it survives. */
static int fill_small_disk(void)
{
    struct picture         picture = make_picture(600, 600, 8, NOISE);
    struct bigtiff_request request = request_for(&picture, TIFF_NONE);
    struct err             err = {0};

    omp_set_num_threads(1); /* OpenMP's threads do not survive a fork */
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", folder, "tmpfs", 0, "size=1m") != 0)
        return CHILD_CANNOT_MOUNT;
    if (write_poster(&request, &picture, &err) != ERR_IO || err.sys != ENOSPC) return 1;
    if (!is_one_sentence(err.text) || scratch_count(folder) != 0) return 2;
    free(picture.samples);
    return CHILD_FINE;
}

static void test_full_disk(void **state)
{
    int         status = 0;
    const pid_t child = fork();

    (void)state;
    if (child == 0) _exit(fill_small_disk());
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CHILD_CANNOT_MOUNT) {
        print_message(
            "skipped: a tmpfs cannot be mounted here (needs root); see the size limit test\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), CHILD_FINE);
}

/* ------------------------------------------------------------------------------------------ */

static int begin(void **state)
{
    (void)state;
    working = os;
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/p.tif", folder);
    (void)snprintf(part, sizeof part, "%s.part", path);
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
        cmocka_unit_test_setup_teardown(test_every_codec_and_edge, begin, end),
        cmocka_unit_test_setup_teardown(test_same_bytes_whatever_the_threads, begin, end),
        cmocka_unit_test_setup_teardown(test_pyramid, begin, end),
        cmocka_unit_test_setup_teardown(test_tags, begin, end),
        cmocka_unit_test_setup_teardown(test_worst_case_is_not_exceeded, begin, end),
        cmocka_unit_test_setup_teardown(test_refused_requests, begin, end),
        cmocka_unit_test_setup_teardown(test_every_failed_write, begin, end),
        cmocka_unit_test_setup_teardown(test_every_other_failed_call, begin, end),
        cmocka_unit_test_setup_teardown(test_failed_sync_and_close, begin, end),
        cmocka_unit_test_setup_teardown(test_short_writes_are_continued, begin, end),
        cmocka_unit_test_setup_teardown(test_lying_disk_is_found_out, begin, end),
        cmocka_unit_test_setup_teardown(test_abandoned_poster_leaves_nothing, begin, end),
        cmocka_unit_test_setup_teardown(test_file_size_limit, begin, end),
        cmocka_unit_test_setup_teardown(test_full_disk, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
