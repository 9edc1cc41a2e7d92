/*
 * tiff_verify.c - a finished poster, looked at as a stranger would.
 *
 * Owns the decision that a file is whole: its directories read back with the right size, depth and
 * profile; every tile lies inside the file, at the place and with the length noted while writing;
 * and tiles taken at even distances decode to the pixels that were handed in.  Changes nothing.
 *
 * Threads: once open, tiles are checked from any number of threads, each with a libtiff of its own.
 * Read next: bigtiff.c, which renames the file only after this.
 */
#include "image/image_int.h"

/* Tiles decoded per level: at 8K that is 15 of 135, a tenth of a second of one processor. */
enum { SAMPLES_MAX = 16 };

struct tiff_check {
    const char              *path; /* borrowed, as the levels are */
    int                      fd;
    uint64_t                 bytes;
    const struct tiff_level *levels;
    uint32_t                 level_count;
};

static int check_tags(struct tiff_io *io, const struct bigtiff_request *request,
                      const struct tiff_level *level, bool is_main, struct err *err)
{
    int      rc = ERR_OK;
    uint32_t w = 0, h = 0, icc_bytes = 0;
    uint16_t bits = 0, samples = 0, codec = 0;
    void    *icc = NULL;

    (void)TIFFGetField(io->tiff, TIFFTAG_IMAGEWIDTH, &w);
    (void)TIFFGetField(io->tiff, TIFFTAG_IMAGELENGTH, &h);
    (void)TIFFGetField(io->tiff, TIFFTAG_BITSPERSAMPLE, &bits);
    (void)TIFFGetField(io->tiff, TIFFTAG_SAMPLESPERPIXEL, &samples);
    (void)TIFFGetField(io->tiff, TIFFTAG_COMPRESSION, &codec);
    if (w != (uint32_t)level->w || h != (uint32_t)level->h || bits != request->bits ||
        samples != 3 || codec != tiff_encode_tag(request->codec) || !TIFFIsTiled(io->tiff))
        RAISE(
            err, ERR_IO, 0,
            "'%s' reads back as %u x %u px with %u samples of %u bits, not as %d x %d px with 3 of "
            "%d; the disk or its cache may be failing",
            io->name, w, h, samples, bits, level->w, level->h, request->bits);
    if (is_main &&
        (!TIFFGetField(io->tiff, TIFFTAG_ICCPROFILE, &icc_bytes, &icc) || icc_bytes == 0))
        RAISE(err, ERR_IO, 0, "'%s' lost its colour profile; the disk or its cache may be failing",
              io->name);
out:
    return rc;
}

static int check_places(const struct tiff_io *io, const struct tiff_level *level, struct err *err)
{
    int            rc = ERR_OK;
    const uint32_t count = (uint32_t)level->cols * (uint32_t)level->rows;

    for (uint32_t i = 0; i < count; i++) {
        const struct tiff_tile *tile = &level->tiles[i];
        uint64_t                offset = TIFFGetStrileOffset(io->tiff, i), end;
        uint64_t                bytes = TIFFGetStrileByteCount(io->tiff, i);
        if (bytes == 0 || offset != tile->offset || bytes != tile->bytes ||
            !add_u64(offset, bytes, &end) || end > io->bytes)
            RAISE(
                err, ERR_IO, 0,
                "'%s' says that tile %u has %llu bytes at %llu, but %llu were written at %llu; the "
                "disk or its cache may be failing",
                io->name, i, (unsigned long long)bytes, (unsigned long long)offset,
                (unsigned long long)tile->bytes, (unsigned long long)tile->offset);
    }
out:
    return rc;
}

/* Which tiles of a level are decoded: every n-th. */
static uint32_t sample_step(const struct tiff_level *level)
{
    return (uint32_t)level->cols * (uint32_t)level->rows / SAMPLES_MAX + 1;
}

static uint32_t sample_count(const struct tiff_level *level)
{
    return (uint32_t)ceil_div_i64((int64_t)level->cols * level->rows, sample_step(level));
}

/* `io` begins to read a level of the file; closed by tiff_io_close, also after a failure. */
static int open_level(const struct tiff_check *check, struct tiff_io *io, uint32_t level,
                      struct err *err)
{
    int rc = ERR_OK;

    TRY(tiff_io_open_file(io, check->path, check->fd, check->bytes, err));
    TRY(tiff_pyramid_select(io, level, err));
out:
    return rc;
}

int tiff_verify_open(struct tiff_check **out, const char *path,
                     const struct bigtiff_request *request, const struct tiff_level *levels,
                     uint32_t level_count, struct err *err)
{
    int                rc = ERR_OK;
    struct tiff_io     io = {0};
    struct tiff_check *check = NULL;

    TRY(os_alloc((void **)&check, 1, sizeof *check, "the check of the poster", err));
    *check =
        (struct tiff_check){.path = path, .fd = -1, .levels = levels, .level_count = level_count};
    TRY(os_open_read(&check->fd, path, err));
    TRY(os_size(&check->bytes, check->fd, path, err));
    for (uint32_t i = 0; i < level_count; i++) {
        TRY(open_level(check, &io, i, err));
        TRY(check_tags(&io, request, &levels[i], i == 0, err));
        TRY(check_places(&io, &levels[i], err));
        tiff_io_close(&io);
    }
    *out = check;
    check = NULL;
out:
    tiff_io_close(&io);
    tiff_verify_close(check);
    return rc;
}

void tiff_verify_close(struct tiff_check *check)
{
    if (check == NULL) return;
    if (check->fd >= 0) (void)os.close(check->fd);
    os_free(check);
}

uint32_t tiff_verify_tiles(const struct tiff_check *check)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < check->level_count; i++)
        count += sample_count(&check->levels[i]);
    return count;
}

int tiff_verify_tile(const struct tiff_check *check, uint32_t number, void *pixels_out,
                     uint64_t pixel_bytes, struct err *err)
{
    int            rc = ERR_OK;
    uint32_t       level = 0, index;
    struct tiff_io io = {0};

    for (; number >= sample_count(&check->levels[level]); level++) {
        number -= sample_count(&check->levels[level]);
        must(level + 1 < check->level_count);
    }
    index = number * sample_step(&check->levels[level]);
    TRY(open_level(check, &io, level, err));
    if (TIFFReadEncodedTile(io.tiff, index, pixels_out, (tmsize_t)pixel_bytes) !=
        (tmsize_t)pixel_bytes)
        TRY(tiff_io_error(&io, ERR_IO, "cannot read back a tile of", err));
    if (hash64(pixels_out, (size_t)pixel_bytes, index) != check->levels[level].tiles[index].hash)
        RAISE(err, ERR_IO, 0,
              "tile %u of '%s' reads back with other pixels than were written; the disk or its "
              "cache may be failing",
              index, io.name);
out:
    tiff_io_close(&io);
    return rc;
}
