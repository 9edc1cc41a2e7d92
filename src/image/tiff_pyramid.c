/*
 * tiff_pyramid.c - the halved levels of a poster, made from tiles that are already in its file.
 *
 * Owns the rule of the levels: each is half of the one above, rounded up, until both sides fit one
 * tile; a sample is the rounded mean of the 2 x 2 above it.  One tile of a level needs four tiles
 * of the level above and nothing else, so memory is one decoded tile a thread, whatever the height.
 * Knows how a BigTIFF is read, not how one is written.
 *
 * Threads: each has a libtiff handle of its own over the same descriptor.
 * Read next: bigtiff.c, which asks for the tiles in order.
 */
#include <string.h>

#include "image/image_int.h"

enum { TILE = BIGTIFF_TILE_PX, HALF = TILE / 2 };

struct tiff_pyramid {
    int               bits, threads;
    struct tiff_level source; /* its `tiles` are not used */
    struct tiff_io    readers[TIFF_THREADS_MAX];
    void             *tiles[TIFF_THREADS_MAX]; /* one decoded tile each */
};

uint32_t tiff_pyramid_levels(struct tiff_level             levels[TIFF_LEVELS_MAX],
                             const struct bigtiff_request *request)
{
    int32_t  w = request->w, h = request->h;
    uint32_t count = 0;

    for (;;) {
        must(count < TIFF_LEVELS_MAX);
        levels[count++] = (struct tiff_level){.w = w,
                                              .h = h,
                                              .cols = (int32_t)ceil_div_i64(w, TILE),
                                              .rows = (int32_t)ceil_div_i64(h, TILE)};
        if (!request->pyramid || (w <= TILE && h <= TILE)) return count;
        w = (w + 1) / 2;
        h = (h + 1) / 2;
    }
}

int tiff_pyramid_open(struct tiff_pyramid **out, int bits, int threads, struct err *err)
{
    int                  rc = ERR_OK;
    void                *memory = NULL;
    struct tiff_pyramid *pyramid = NULL;

    must(threads >= 1 && threads <= TIFF_THREADS_MAX);
    TRY(os_alloc(&memory, 1, sizeof *pyramid, "the pyramid", err));
    pyramid = memory;
    pyramid->bits = bits;
    pyramid->threads = threads;
    for (int i = 0; i < threads; i++)
        TRY(os_alloc(&pyramid->tiles[i], (uint64_t)TILE * TILE * 3, (uint64_t)bits / 8,
                     "a decoded tile", err));
    *out = pyramid;
    pyramid = NULL;
out:
    tiff_pyramid_close(pyramid);
    return rc;
}

static void close_readers(struct tiff_pyramid *pyramid)
{
    for (int i = 0; i < pyramid->threads; i++)
        tiff_io_close(&pyramid->readers[i]);
}

void tiff_pyramid_close(struct tiff_pyramid *pyramid)
{
    if (pyramid == NULL) return;
    close_readers(pyramid);
    for (int i = 0; i < pyramid->threads; i++)
        os_free(pyramid->tiles[i]);
    os_free(pyramid);
}

int tiff_pyramid_select(struct tiff_io *io, uint32_t level, struct err *err)
{
    int       rc = ERR_OK;
    uint16_t  count = 0;
    uint64_t *offsets = NULL;

    if (level == 0) return ERR_OK; /* a handle starts there */
    if (!TIFFGetField(io->tiff, TIFFTAG_SUBIFD, &count, &offsets) || level > count)
        RAISE(err, ERR_FORMAT, 0, "'%s' lost the directory of its level %u", io->name, level);
    if (!TIFFSetSubDirectory(io->tiff, offsets[level - 1]))
        TRY(tiff_io_error(io, ERR_FORMAT, "cannot read back a level of", err));
out:
    return rc;
}

int tiff_pyramid_source(struct tiff_pyramid *pyramid, const char *path, int fd, uint64_t bytes,
                        const struct tiff_level *levels, uint32_t level, struct err *err)
{
    int rc = ERR_OK;

    close_readers(pyramid);
    pyramid->source = levels[level];
    for (int i = 0; i < pyramid->threads; i++) {
        TRY(tiff_io_open_file(&pyramid->readers[i], path, fd, bytes, err));
        TRY(tiff_pyramid_select(&pyramid->readers[i], level, err));
    }
out:
    return rc;
}

/* The mean of each 2 x 2 of a whole tile into one quarter of another. */
static void halve_u8(uint8_t *quarter, const uint8_t *tile)
{
    for (int y = 0; y < HALF; y++) {
        const uint8_t *upper = tile + 2 * y * TILE * 3, *lower = upper + TILE * 3;
        uint8_t       *row = quarter + y * TILE * 3;
        for (int x = 0; x < HALF; x++) {
            for (int c = 0; c < 3; c++) {
                const int at = 6 * x + c;
                row[3 * x + c] =
                    (uint8_t)((upper[at] + upper[at + 3] + lower[at] + lower[at + 3] + 2) / 4);
            }
        }
    }
}

static void halve_u16(uint16_t *quarter, const uint16_t *tile)
{
    for (int y = 0; y < HALF; y++) {
        const uint16_t *upper = tile + 2 * y * TILE * 3, *lower = upper + TILE * 3;
        uint16_t       *row = quarter + y * TILE * 3;
        for (int x = 0; x < HALF; x++) {
            for (int c = 0; c < 3; c++) {
                const int at = 6 * x + c;
                row[3 * x + c] =
                    (uint16_t)((upper[at] + upper[at + 3] + lower[at] + lower[at + 3] + 2) / 4);
            }
        }
    }
}

int tiff_pyramid_fill(struct tiff_pyramid *pyramid, int thread, struct tiff_encoder *encoder,
                      int32_t col, int32_t row, struct err *err)
{
    int                      rc = ERR_OK;
    const struct tiff_level *source = &pyramid->source;
    struct tiff_io          *io = &pyramid->readers[thread];
    void                    *tile = pyramid->tiles[thread];

    must(thread < pyramid->threads);
    for (int quarter = 0; quarter < 4; quarter++) {
        const int32_t from_col = 2 * col + quarter % 2, from_row = 2 * row + quarter / 2;
        const size_t  at = ((size_t)(quarter / 2) * HALF * TILE + (size_t)(quarter % 2) * HALF) * 3;
        if (from_col >= source->cols || from_row >= source->rows) continue;
        const uint32_t index = (uint32_t)from_row * (uint32_t)source->cols + (uint32_t)from_col;
        if (TIFFReadEncodedTile(io->tiff, index, tile, (tmsize_t)encoder->pixel_bytes) !=
            (tmsize_t)encoder->pixel_bytes)
            TRY(tiff_io_error(io, ERR_IO, "cannot read back a tile of", err));
        if (pyramid->bits == 8)
            halve_u8(encoder->pixels + at, tile);
        else
            halve_u16((uint16_t *)(void *)encoder->pixels + at, tile);
    }
    /* An odd side ends in half a 2 x 2; its other half is the padding of the source tile, which
     * repeats the last pixel, so the mean is right there too. */
    tiff_encode_pad(encoder, (int32_t)min_i64(TILE, (source->w + 1) / 2 - (int64_t)col * TILE),
                    (int32_t)min_i64(TILE, (source->h + 1) / 2 - (int64_t)row * TILE));
out:
    return rc;
}
