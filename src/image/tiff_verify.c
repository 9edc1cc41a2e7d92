/*
 * tiff_verify.c - a finished poster, looked at as a stranger would.
 *
 * Owns the decision that a file is whole: its directories read back with the right size, depth and
 * profile; every tile lies inside the file, at the place and with the length noted while writing;
 * and tiles taken at even distances decode to the pixels that were handed in.  Changes nothing.
 *
 * Read next: bigtiff.c, which renames the file only after this.
 */
#include <sys/stat.h>

#include "image/image_int.h"

/* Tiles decoded per level: at 8K that is 17 of 135, a tenth of a second. */
enum { SAMPLES_MAX = 16 };

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

static int check_pixels(const struct tiff_io *io, const struct tiff_level *level, void *pixels,
                        uint64_t pixel_bytes, struct err *err)
{
    int            rc = ERR_OK;
    const uint32_t count = (uint32_t)level->cols * (uint32_t)level->rows;
    const uint32_t step = count / SAMPLES_MAX + 1;

    for (uint32_t i = 0; i < count; i += step) {
        if (TIFFReadEncodedTile(io->tiff, i, pixels, (tmsize_t)pixel_bytes) !=
            (tmsize_t)pixel_bytes)
            TRY(tiff_io_error(io, ERR_IO, "cannot read back a tile of", err));
        if (hash64(pixels, (size_t)pixel_bytes, i) != level->tiles[i].hash)
            RAISE(err, ERR_IO, 0,
                  "tile %u of '%s' reads back with other pixels than were written; the disk or its "
                  "cache may be failing",
                  i, io->name);
    }
out:
    return rc;
}

int tiff_verify(const char *path, const struct bigtiff_request *request,
                const struct tiff_level *levels, uint32_t level_count, struct err *err)
{
    int            rc = ERR_OK, fd = -1;
    const uint64_t pixel_bytes = tiff_encode_pixel_bytes(request->bits);
    struct tiff_io io = {0};
    struct stat    about;
    void          *pixels = NULL;

    TRY(os_alloc(&pixels, pixel_bytes, 1, "a decoded tile", err));
    TRY(os_open_read(&fd, path, err));
    if (fstat(fd, &about) != 0) RAISE(err, ERR_IO, 0, "cannot ask for the size of '%s'", path);
    for (uint32_t i = 0; i < level_count; i++) {
        TRY(tiff_io_open_file(&io, path, fd, (uint64_t)about.st_size, err));
        TRY(tiff_pyramid_select(&io, i, err));
        TRY(check_tags(&io, request, &levels[i], i == 0, err));
        TRY(check_places(&io, &levels[i], err));
        TRY(check_pixels(&io, &levels[i], pixels, pixel_bytes, err));
        tiff_io_close(&io);
    }
out:
    tiff_io_close(&io);
    if (fd >= 0) (void)os.close(fd);
    os_free(pixels);
    return rc;
}
