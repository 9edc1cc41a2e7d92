/*
 * tiff_read.c - a draft from a TIFF, by a short list of layouts.
 *
 * Owns the list: first directory; strips or tiles; 1, 3 or 4 samples side by side; 8 or 16 bits,
 * unsigned; grey from black or RGB; top row first; none, LZW, deflate or zstd.  Anything else is
 * refused by name.  libtiff's readers that convert on the way (TIFFReadRGBA...) are not used: most
 * of its holes of recent years were in them.
 *
 * Every size is worked out here from the header and compared with libtiff's before memory is taken,
 * and a header that promises more than its bytes could ever unpack to is refused.
 *
 * Read next: image_read.c, which turns what is decoded here into a draft.
 */
#include <string.h>

#include "image/image_int.h"

enum { TILE_SIDE_MAX = 16384, TILE_BYTES_MAX = 64 * 1024 * 1024 };

struct tiff_layout {
    uint32_t w, h, tile_w, tile_h;
    uint16_t bits, samples, compression, alpha; /* alpha: an EXTRASAMPLE_ value                */
    bool     tiled;
    uint64_t pixel_bytes;
};

bool image_read_is_tiff(const struct source *source)
{
    static const char *const magics[] = {"II*\0", "MM\0*", "II+\0", "MM\0+"};

    for (size_t i = 0; i < ARRAY_COUNT(magics); i++)
        if (source->bytes >= 4 && memcmp(source->data, magics[i], 4) == 0) return true;
    return false;
}

/* A 16-bit tag, or its default, or 0. */
static uint16_t tag_u16(TIFF *tiff, uint32_t tag)
{
    uint16_t value = 0;
    return TIFFGetFieldDefaulted(tiff, tag, &value) ? value : 0;
}

/* The most bytes that one byte of the codec can stand for, rounded up; 0 when it is not read. */
static uint64_t codec_ratio(uint16_t compression)
{
    switch (compression) {
    case COMPRESSION_NONE: return 1;
    case COMPRESSION_LZW: return 4096;
    case COMPRESSION_ADOBE_DEFLATE:
    case COMPRESSION_DEFLATE: return 1032;
    case COMPRESSION_ZSTD: return 65536;
    default: return 0;
    }
}

static int check_samples(TIFF *tiff, struct tiff_layout *layout, const char *name, struct err *err)
{
    int            rc = ERR_OK;
    const uint16_t photometric = tag_u16(tiff, TIFFTAG_PHOTOMETRIC);
    const uint16_t format = tag_u16(tiff, TIFFTAG_SAMPLEFORMAT);
    const uint16_t planar = tag_u16(tiff, TIFFTAG_PLANARCONFIG);
    const uint16_t orientation = tag_u16(tiff, TIFFTAG_ORIENTATION);
    uint16_t       extra_count = 0, *extras = NULL;

    layout->bits = tag_u16(tiff, TIFFTAG_BITSPERSAMPLE);
    layout->samples = tag_u16(tiff, TIFFTAG_SAMPLESPERPIXEL);
    layout->compression = tag_u16(tiff, TIFFTAG_COMPRESSION);
    if ((layout->bits != 8 && layout->bits != 16) || format != SAMPLEFORMAT_UINT)
        RAISE(err, ERR_FORMAT, 0,
              "'%s' has %u-bit samples of format %u; save it with 8 or 16 bits, unsigned", name,
              layout->bits, format);
    if (planar != PLANARCONFIG_CONTIG)
        RAISE(err, ERR_FORMAT, 0, "'%s' keeps its colours in separate planes; save it interleaved",
              name);
    if (!((layout->samples == 1 && photometric == PHOTOMETRIC_MINISBLACK) ||
          ((layout->samples == 3 || layout->samples == 4) && photometric == PHOTOMETRIC_RGB)))
        RAISE(err, ERR_FORMAT, 0,
              "'%s' has %u samples per pixel of TIFF colour kind %u; save it as grey, RGB or RGBA",
              name, layout->samples, photometric);
    if (orientation != ORIENTATION_TOPLEFT)
        RAISE(err, ERR_FORMAT, 0,
              "'%s' is stored turned or mirrored (orientation %u); save it upright", name,
              orientation);
    if (codec_ratio(layout->compression) == 0 || !TIFFIsCODECConfigured(layout->compression))
        RAISE(err, ERR_FORMAT, 0,
              "'%s' is compressed with TIFF codec %u; save it with none, LZW, deflate or zstd",
              name, layout->compression);
    if (layout->samples == 4 && TIFFGetField(tiff, TIFFTAG_EXTRASAMPLES, &extra_count, &extras) &&
        extra_count == 1)
        layout->alpha = extras[0]; /* EXTRASAMPLE_UNSPECIFIED is not alpha, so it is left out */
out:
    return rc;
}

/* Tile or strip sizes: ours against libtiff's, and both against common sense. */
static int check_blocks(TIFF *tiff, struct tiff_layout *layout, const char *name, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t bytes = layout->pixel_bytes * layout->w;

    layout->tiled = TIFFIsTiled(tiff) != 0;
    if (layout->tiled) {
        (void)TIFFGetField(tiff, TIFFTAG_TILEWIDTH, &layout->tile_w);
        (void)TIFFGetField(tiff, TIFFTAG_TILELENGTH, &layout->tile_h);
        if (layout->tile_w < 1 || layout->tile_h < 1 || layout->tile_w > TILE_SIDE_MAX ||
            layout->tile_h > TILE_SIDE_MAX)
            RAISE(err, ERR_FORMAT, 0, "'%s' has tiles of %u x %u px; at most %d a side are read",
                  name, layout->tile_w, layout->tile_h, TILE_SIDE_MAX);
        bytes = layout->pixel_bytes * layout->tile_w * layout->tile_h;
        if (bytes > TILE_BYTES_MAX)
            RAISE(err, ERR_FORMAT, 0, "'%s' has tiles of %llu bytes; at most %d are read", name,
                  (unsigned long long)bytes, TILE_BYTES_MAX);
    }
    if (bytes != (layout->tiled ? TIFFTileSize64(tiff) : TIFFScanlineSize64(tiff)))
        RAISE(err, ERR_FORMAT, 0, "'%s' contradicts itself about the size of its %s", name,
              layout->tiled ? "tiles" : "rows");
out:
    return rc;
}

static int read_layout(struct tiff_layout *out, struct tiff_io *io, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t raw_bytes;

    *out = (struct tiff_layout){.alpha = EXTRASAMPLE_UNSPECIFIED};
    (void)TIFFGetField(io->tiff, TIFFTAG_IMAGEWIDTH, &out->w);
    (void)TIFFGetField(io->tiff, TIFFTAG_IMAGELENGTH, &out->h);
    TRY(image_read_check_size(io->name, out->w, out->h, err));
    TRY(check_samples(io->tiff, out, io->name, err));
    out->pixel_bytes = (uint64_t)out->samples * out->bits / 8;
    TRY(check_blocks(io->tiff, out, io->name, err));
    raw_bytes = out->pixel_bytes * out->w * out->h;
    if (raw_bytes / codec_ratio(out->compression) > io->bytes)
        RAISE(err, ERR_FORMAT, 0,
              "'%s' says it is %u x %u px, but its %llu bytes cannot hold that many; it is cut off "
              "or "
              "a decompression bomb",
              io->name, out->w, out->h, (unsigned long long)io->bytes);
out:
    return rc;
}

static uint16_t sample(const struct tiff_layout *layout, const void *row, size_t index)
{
    return layout->bits == 8 ? (uint16_t)(((const uint8_t *)row)[index] * 257)
                             : ((const uint16_t *)row)[index];
}

/* Colours stored already multiplied by alpha, divided again: what follows expects them so. */
static uint16_t divide_by_alpha(uint32_t value, uint32_t alpha)
{
    if (value >= alpha) return 65535;
    return (uint16_t)((value * 65535ull + alpha / 2) / alpha);
}

static void unpack(const struct tiff_layout *layout, struct decoded *out, const void *row,
                   size_t at, size_t count)
{
    const size_t samples = layout->samples;
    uint16_t    *rgb = out->image.rgb + 3 * at;

    for (size_t x = 0; x < count; x++) {
        for (size_t c = 0; c < 3; c++)
            rgb[3 * x + c] = sample(layout, row, x * samples + (samples == 1 ? 0 : c));
        if (out->alpha == NULL) continue;
        const uint16_t alpha = sample(layout, row, x * samples + 3);
        out->alpha[at + x] = alpha;
        if (layout->alpha != EXTRASAMPLE_ASSOCALPHA || alpha == 0) continue;
        for (size_t c = 0; c < 3; c++)
            rgb[3 * x + c] = divide_by_alpha(rgb[3 * x + c], alpha);
    }
}

static int read_strips(struct tiff_io *io, const struct tiff_layout *layout, struct decoded *out,
                       struct err *err)
{
    int   rc = ERR_OK;
    void *row = NULL;

    TRY(os_alloc(&row, layout->w, layout->pixel_bytes, "a row of a draft", err));
    for (uint32_t y = 0; y < layout->h; y++) {
        if (TIFFReadScanline(io->tiff, row, y, 0) != 1)
            TRY(tiff_io_error(io, ERR_FORMAT, "cannot read a row of", err));
        unpack(layout, out, row, (size_t)y * layout->w, layout->w);
    }
out:
    os_free(row);
    return rc;
}

static int read_tiles(struct tiff_io *io, const struct tiff_layout *layout, struct decoded *out,
                      struct err *err)
{
    int            rc = ERR_OK;
    const uint64_t row_bytes = layout->pixel_bytes * layout->tile_w;
    const tmsize_t tile_bytes = (tmsize_t)(row_bytes * layout->tile_h);
    void          *tile = NULL;

    TRY(os_alloc(&tile, row_bytes, layout->tile_h, "a tile of a draft", err));
    for (uint32_t top = 0; top < layout->h; top += layout->tile_h) {
        for (uint32_t left = 0; left < layout->w; left += layout->tile_w) {
            const uint32_t index = TIFFComputeTile(io->tiff, left, top, 0, 0);
            const uint32_t rows = (uint32_t)min_i64(layout->tile_h, layout->h - top);
            const uint32_t cols = (uint32_t)min_i64(layout->tile_w, layout->w - left);
            if (TIFFReadEncodedTile(io->tiff, index, tile, tile_bytes) != tile_bytes)
                TRY(tiff_io_error(io, ERR_FORMAT, "cannot read a tile of", err));
            for (uint32_t y = 0; y < rows; y++)
                unpack(layout, out, (const uint8_t *)tile + y * row_bytes,
                       (size_t)(top + y) * layout->w + left, cols);
        }
    }
out:
    os_free(tile);
    return rc;
}

int tiff_read_decode(struct decoded *out, const struct source *source, struct err *err)
{
    int                rc = ERR_OK;
    struct tiff_io     io = {0};
    struct tiff_layout layout;
    uint32_t           icc_bytes = 0;
    void              *icc = NULL;

    *out = (struct decoded){0};
    TRY(tiff_io_open_memory(&io, source, err));
    TRY(read_layout(&layout, &io, err));
    if (TIFFGetField(io.tiff, TIFFTAG_ICCPROFILE, &icc_bytes, &icc))
        TRY(decoded_keep_icc(out, source, icc, icc_bytes, err));
    TRY(decoded_open(out, layout.w, layout.h, layout.alpha != EXTRASAMPLE_UNSPECIFIED, err));
    out->grey = layout.samples == 1;
    if (layout.tiled)
        TRY(read_tiles(&io, &layout, out, err));
    else
        TRY(read_strips(&io, &layout, out, err));
out:
    if (rc != ERR_OK) decoded_close(out);
    tiff_io_close(&io);
    return rc;
}
