/*
 * bigtiff.c - the poster's file: a tiled BigTIFF that grows from top to bottom.
 *
 * Owns `<path>.part` from open to finish, the order of everything in it, and its tags.  Knows
 * nothing of how the samples were made.
 *
 *     offset  content
 *          0  header, 16 bytes: byte order, 43, 8, 0, offset of the picture's directory
 *         16  tiles of 512 x 512 px, row after row, each one codec stream
 *          .  the picture's directory (IFD), then the values that do not fit into it:
 *             tile offsets and byte counts, 324 and 325
 *             sRGB profile, 34675; resolution in pixels per inch, 282, 283, 296
 *             with metadata: ImageDescription 270 (JSON, ASCII), Software 305, XMP 700
 *             with a pyramid: SubIFDs 330, the offsets of the directories below
 *          .  for each level of a pyramid: its tiles, then its directory
 *
 * The file is a pure function of the request and the samples: it carries no date, and tiles are
 * written in order whatever thread packed them first.  Tiles at the right and bottom edge are
 * filled up by repeating the last pixel.  Levels hang from tag 330 and not from the chain of pages,
 * so every reader sees one picture.
 *
 * Nothing is trusted until it was synced and read back: only then is `.part` renamed.  The disk is
 * asked to begin with each row of tiles as soon as it is written, so that little is left to sync.
 *
 * Threads: the caller's, plus OpenMP's while a row of tiles is packed, when only the thread whose
 * turn it is touches libtiff, and while the finished file is checked.
 *
 * Read next: tiff_encode.c for a tile, tiff_pyramid.c for the levels, tiff_verify.c for the check.
 */
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "image/image_int.h"

enum { TILE = BIGTIFF_TILE_PX };

struct bigtiff {
    struct bigtiff_request request; /* its strings are gone after open */
    char                  *path, *part;
    int                    fd;   /* of part; -1 when closed */
    bool                   owns; /* part exists and is ours to remove */
    bool                   complete;
    struct tiff_io         io;
    struct tiff_level      levels[TIFF_LEVELS_MAX];
    uint32_t               level_count;
    int32_t                rows_done;
    int                    threads;
    struct tiff_encoder   *encoders[TIFF_THREADS_MAX];
    struct tiff_pyramid   *pyramid;
};

/* Where a row of tiles comes from: puts the pixels of (col, row) into the encoder. */
struct tile_origin {
    int (*fill)(void *self, int thread, struct tiff_encoder *encoder, int32_t col, int32_t row,
                struct err *err);
    void *self;
};

/* ------------------------------------------------------------------------------------ tags */

static bool set_shape(TIFF *tiff, const struct bigtiff_request *request,
                      const struct tiff_level *level)
{
    bool ok = TIFFSetField(tiff, TIFFTAG_IMAGEWIDTH, (uint32_t)level->w) &&
              TIFFSetField(tiff, TIFFTAG_IMAGELENGTH, (uint32_t)level->h) &&
              TIFFSetField(tiff, TIFFTAG_TILEWIDTH, (uint32_t)TILE) &&
              TIFFSetField(tiff, TIFFTAG_TILELENGTH, (uint32_t)TILE) &&
              TIFFSetField(tiff, TIFFTAG_BITSPERSAMPLE, request->bits) &&
              TIFFSetField(tiff, TIFFTAG_SAMPLESPERPIXEL, 3) &&
              TIFFSetField(tiff, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_RGB) &&
              TIFFSetField(tiff, TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG) &&
              TIFFSetField(tiff, TIFFTAG_ORIENTATION, ORIENTATION_TOPLEFT) &&
              TIFFSetField(tiff, TIFFTAG_COMPRESSION, tiff_encode_tag(request->codec));

    /* The predictor is a field of the codec: it exists only after the line above. */
    if (ok && request->codec != TIFF_NONE)
        ok = TIFFSetField(tiff, TIFFTAG_PREDICTOR, PREDICTOR_HORIZONTAL) != 0;
    return ok;
}

static int set_words(struct tiff_io *io, const struct bigtiff_request *request, struct err *err)
{
    int   rc = ERR_OK;
    char *xmp = NULL, *description = NULL;

    if (request->settings_json == NULL) return ERR_OK;
    TRY(metadata_xmp(&xmp, request, err));
    TRY(metadata_description(&description, request, err));
    if (!TIFFSetField(io->tiff, TIFFTAG_XMLPACKET, (uint32_t)strlen(xmp), xmp) ||
        !TIFFSetField(io->tiff, TIFFTAG_IMAGEDESCRIPTION, description) ||
        (request->software != NULL && !TIFFSetField(io->tiff, TIFFTAG_SOFTWARE, request->software)))
        TRY(tiff_io_error(io, ERR_IO, "cannot describe", err));
out:
    os_free(xmp);
    os_free(description);
    return rc;
}

static int set_main_tags(struct bigtiff *tiff, const struct bigtiff_request *request,
                         struct err *err)
{
    int             rc = ERR_OK;
    TIFF           *handle = tiff->io.tiff;
    void           *icc = NULL;
    uint32_t        icc_bytes = 0;
    const uint16_t  subs = (uint16_t)(tiff->level_count - 1);
    static uint64_t no_offsets[TIFF_LEVELS_MAX]; /* libtiff fills them in as levels are written */

    TRY(metadata_srgb_icc(&icc, &icc_bytes, err));
    if (!set_shape(handle, request, &tiff->levels[0]) ||
        !TIFFSetField(handle, TIFFTAG_RESOLUTIONUNIT, RESUNIT_INCH) ||
        !TIFFSetField(handle, TIFFTAG_XRESOLUTION, request->dpi) ||
        !TIFFSetField(handle, TIFFTAG_YRESOLUTION, request->dpi) ||
        !TIFFSetField(handle, TIFFTAG_ICCPROFILE, icc_bytes, icc) ||
        (subs > 0 && !TIFFSetField(handle, TIFFTAG_SUBIFD, subs, no_offsets)))
        TRY(tiff_io_error(&tiff->io, ERR_IO, "cannot describe", err));
    TRY(set_words(&tiff->io, request, err));
    /* Makes libtiff take its tile tables now rather than at the first tile. */
    if (!TIFFWriteCheck(handle, 1, "mural"))
        TRY(tiff_io_error(&tiff->io, ERR_IO, "cannot describe", err));
out:
    os_free(icc);
    return rc;
}

/* --------------------------------------------------------------------------------- opening */

static int check_request(const struct bigtiff_request *request, struct err *err)
{
    int       rc = ERR_OK, level;
    const int side_max = 1 << 20;

    if (request->w < 1 || request->h < 1 || request->w > side_max || request->h > side_max)
        RAISE(err, ERR_USAGE, 0, "poster is %d x %d px but a side must be 1..%d", request->w,
              request->h, side_max);
    if (request->bits != 8 && request->bits != 16)
        RAISE(err, ERR_USAGE, 0, "poster has %d bits per sample but must have 8 or 16",
              request->bits);
    if (!(request->dpi >= 1.0 && request->dpi <= 100000.0))
        RAISE(err, ERR_USAGE, 0, "poster has %g dpi but must have 1..100000", request->dpi);
    TRY(tiff_encode_level(&level, request->codec, request->level, err));
    if (!TIFFIsCODECConfigured(tiff_encode_tag(request->codec)))
        RAISE(err, ERR_USAGE, 0, "this libtiff was built without %s; choose another compression",
              request->codec == TIFF_ZSTD ? "zstd" : "that codec");
out:
    return rc;
}

static int open_memory(struct bigtiff *tiff, const struct bigtiff_request *request, struct err *err)
{
    int          rc = ERR_OK;
    const size_t length = strlen(request->path);
    void        *memory;

    TRY(os_alloc(&memory, length + 1, 1, "a path", err));
    tiff->path = memory;
    memcpy(tiff->path, request->path, length);
    TRY(os_alloc(&memory, length + sizeof ".part", 1, "a path", err));
    tiff->part = memory;
    memcpy(tiff->part, request->path, length);
    memcpy(tiff->part + length, ".part", sizeof ".part");
    for (uint32_t i = 0; i < tiff->level_count; i++) {
        struct tiff_level *level = &tiff->levels[i];
        TRY(os_alloc(&memory, (uint64_t)level->cols * (uint64_t)level->rows, sizeof *level->tiles,
                     "the table of tiles", err));
        level->tiles = memory;
    }
    tiff->threads =
        (int)min_i64(min_i64(omp_get_max_threads(), TIFF_THREADS_MAX), tiff->levels[0].cols);
    for (int i = 0; i < tiff->threads; i++)
        TRY(tiff_encode_open(&tiff->encoders[i], request->codec, request->level, request->bits,
                             err));
    if (request->pyramid) TRY(tiff_pyramid_open(&tiff->pyramid, request->bits, tiff->threads, err));
out:
    return rc;
}

int bigtiff_open(struct bigtiff **out, const struct bigtiff_request *request, struct err *err)
{
    int             rc = ERR_OK;
    void           *memory = NULL;
    struct bigtiff *tiff = NULL;

    must(request->path != NULL);
    TRY(check_request(request, err));
    TRY(os_alloc(&memory, 1, sizeof *tiff, "the poster's file", err));
    tiff = memory;
    tiff->fd = -1;
    tiff->request = *request;
    tiff->request.path = tiff->request.prompt = NULL;
    tiff->request.settings_json = tiff->request.software = NULL;
    tiff->level_count = tiff_pyramid_levels(tiff->levels, request);
    TRY(open_memory(tiff, request, err));
    TRY(os_open_write(&tiff->fd, tiff->part, err));
    tiff->owns = true;
    TRY(tiff_io_create(&tiff->io, tiff->part, tiff->fd, err));
    TRY(set_main_tags(tiff, request, err));
    *out = tiff;
    tiff = NULL;
out:
    bigtiff_close(tiff);
    return rc;
}

void bigtiff_close(struct bigtiff *tiff)
{
    struct err ignored = {0}; /* what brought us here is worth more than a failed clean-up */

    if (tiff == NULL) return;
    tiff_io_abandon(&tiff->io);
    tiff_pyramid_close(tiff->pyramid);
    if (tiff->fd >= 0) (void)os.close(tiff->fd);
    if (tiff->owns) (void)os_remove(tiff->part, &ignored);
    for (int i = 0; i < TIFF_THREADS_MAX; i++)
        tiff_encode_close(tiff->encoders[i]);
    for (uint32_t i = 0; i < TIFF_LEVELS_MAX; i++)
        os_free(tiff->levels[i].tiles);
    os_free(tiff->part);
    os_free(tiff->path);
    os_free(tiff);
}

/* ----------------------------------------------------------------------------------- tiles */

static int write_tile(struct bigtiff *tiff, struct tiff_tile *tile, uint32_t index,
                      const void *bytes, uint64_t count, struct err *err)
{
    tile->offset = tiff->io.bytes; /* libtiff appends; tiff_verify checks that it did */
    tile->bytes = count;
    if (TIFFWriteRawTile(tiff->io.tiff, index, (void *)(uintptr_t)bytes, (tmsize_t)count) !=
        (tmsize_t)count)
        return tiff_io_error(&tiff->io, ERR_IO, "cannot write a tile of", err);
    return ERR_OK;
}

/* Pack a row of tiles in parallel and write them from left to right.  A thread waits for its turn
 * with its packed tile in hand, so memory is one tile a thread and needs no queue. */
/* Threads of a team: as many as OpenMP grants the caller, and as have an encoder. */
static int team_of(const struct bigtiff *tiff)
{
    return (int)min_i64(omp_get_max_threads(), tiff->threads);
}

static int write_tile_row(struct bigtiff *tiff, struct tiff_level *level, int32_t row,
                          const struct tile_origin *origin, struct err *err)
{
    int rc = ERR_OK;

#pragma omp parallel for ordered schedule(dynamic, 1) num_threads(team_of(tiff))
    for (int32_t col = 0; col < level->cols; col++) {
        const int            thread = omp_get_thread_num();
        const uint32_t       index = (uint32_t)row * (uint32_t)level->cols + (uint32_t)col;
        struct tiff_encoder *encoder = tiff->encoders[thread];
        struct tiff_tile    *tile = &level->tiles[index];
        struct err           mine = {0};
        const void          *bytes = NULL;
        int                  code = origin->fill(origin->self, thread, encoder, col, row, &mine);

        if (code == ERR_OK) {
            tile->hash = hash64(encoder->pixels, (size_t)encoder->pixel_bytes, index);
            code = tiff_encode_pack(encoder, &bytes, &mine);
        }
#pragma omp ordered
        {
            if (rc == ERR_OK && code == ERR_OK)
                code = write_tile(tiff, tile, index, bytes, encoder->packed_bytes, &mine);
            if (rc == ERR_OK && code != ERR_OK) {
                *err = mine;
                rc = code;
            }
        }
    }
    return rc;
}

struct band {
    const struct bigtiff *tiff;
    const uint8_t        *samples;
    int32_t               rows;
};

static int fill_from_band(void *self, int thread, struct tiff_encoder *encoder, int32_t col,
                          int32_t row, struct err *err)
{
    const struct band *band = self;
    const int32_t      w = band->tiff->request.w, left = col * TILE;
    const uint64_t     pixel = 3 * (uint64_t)encoder->bits / 8;

    (void)thread, (void)row, (void)err;
    tiff_encode_cut(encoder, band->samples + (uint64_t)left * pixel, (uint64_t)w * pixel,
                    (int32_t)min_i64(TILE, w - left), band->rows);
    return ERR_OK;
}

int bigtiff_write_band(struct bigtiff *tiff, const void *samples, int32_t rows, struct err *err)
{
    int                      rc = ERR_OK;
    struct band              band = {.tiff = tiff, .samples = samples, .rows = rows};
    const struct tile_origin origin = {.fill = fill_from_band, .self = &band};
    const uint64_t           begin = tiff->io.bytes;

    must(rows > 0 && rows == min_i64(TILE, tiff->request.h - tiff->rows_done));
    TRY(write_tile_row(tiff, &tiff->levels[0], tiff->rows_done / TILE, &origin, err));
    tiff->rows_done += rows;
    os_start_sync(tiff->fd, begin, tiff->io.bytes - begin);
out:
    return rc;
}

/* --------------------------------------------------------------------------------- the end */

static int fill_from_pyramid(void *self, int thread, struct tiff_encoder *encoder, int32_t col,
                             int32_t row, struct err *err)
{
    return tiff_pyramid_fill(self, thread, encoder, col, row, err);
}

static int write_level(struct bigtiff *tiff, uint32_t index, struct err *err)
{
    int                      rc = ERR_OK;
    struct tiff_level       *level = &tiff->levels[index];
    const struct tile_origin origin = {.fill = fill_from_pyramid, .self = tiff->pyramid};

    TRY(tiff_pyramid_source(tiff->pyramid, tiff->part, tiff->fd, tiff->io.bytes, tiff->levels,
                            index - 1, err));
    if (!TIFFSetField(tiff->io.tiff, TIFFTAG_SUBFILETYPE, FILETYPE_REDUCEDIMAGE) ||
        !set_shape(tiff->io.tiff, &tiff->request, level))
        TRY(tiff_io_error(&tiff->io, ERR_IO, "cannot describe a level of", err));
    for (int32_t row = 0; row < level->rows; row++)
        TRY(write_tile_row(tiff, level, row, &origin, err));
    if (!TIFFWriteDirectory(tiff->io.tiff))
        TRY(tiff_io_error(&tiff->io, ERR_IO, "cannot write a directory of", err));
out:
    return rc;
}

/* A thread's encoder is done with its pixels, so they are room for those that come back. */
static int check_tile(const struct bigtiff *tiff, const struct tiff_check *check, uint32_t number,
                      struct err *err)
{
    struct tiff_encoder *encoder = tiff->encoders[omp_get_thread_num()];

    return tiff_verify_tile(check, number, encoder->pixels, encoder->pixel_bytes, err);
}

/* Everything that the file has to stand before it is trusted.  The disk, the hash and the decoding
 * take about as long as each other, and none needs what another finds. */
static int check_file(struct bigtiff *tiff, uint64_t *bytes_out, uint64_t *hash_out,
                      struct err *err)
{
    int                rc = ERR_OK;
    struct tiff_check *check = NULL;
    uint32_t           tiles = 0, failed = UINT32_MAX;

    TRY(tiff_verify_open(&check, tiff->part, &tiff->request, tiff->levels, tiff->level_count, err));
    tiles = tiff_verify_tiles(check);
#pragma omp parallel for schedule(dynamic, 1) num_threads(team_of(tiff))
    for (uint32_t i = 0; i < tiles + 2; i++) {
        struct err mine = {0};
        int        code;
        if (i == 0)
            code = os_sync(tiff->fd, tiff->part, &mine);
        else if (i == 1)
            code = hash64_file(hash_out, bytes_out, tiff->part, &mine);
        else
            code = check_tile(tiff, check, i - 2, &mine);
        if (code == ERR_OK) continue;
#pragma omp critical(bigtiff_check)
        if (i < failed) { /* of several failures, always the same one is told */
            failed = i;
            *err = mine;
            rc = code;
        }
    }
out:
    tiff_verify_close(check);
    return rc;
}

int bigtiff_complete(struct bigtiff *tiff, uint64_t *bytes_out, uint64_t *hash_out, struct err *err)
{
    int rc = ERR_OK;

    must(tiff->owns && tiff->rows_done == tiff->request.h);
    if (!TIFFWriteDirectory(tiff->io.tiff))
        TRY(tiff_io_error(&tiff->io, ERR_IO, "cannot write the directory of", err));
    for (uint32_t i = 1; i < tiff->level_count; i++)
        TRY(write_level(tiff, i, err));
    tiff_io_close(&tiff->io);
    if (tiff->io.fault.code != ERR_OK) TRY(tiff_io_error(&tiff->io, ERR_IO, "cannot end", err));
    TRY(check_file(tiff, bytes_out, hash_out, err));
    tiff->complete = true;
out:
    return rc;
}

int bigtiff_publish(struct bigtiff *tiff, struct err *err)
{
    int rc = ERR_OK, fd = tiff->fd;

    must(tiff->complete);
    tiff->fd = -1;
    TRY(os_close(fd, tiff->part, err));
    TRY(os_rename(tiff->part, tiff->path, err));
    tiff->owns = false;
out:
    return rc;
}

uint64_t bigtiff_bytes_worst(const struct bigtiff_request *request)
{
    struct tiff_level levels[TIFF_LEVELS_MAX];
    const uint32_t    count = tiff_pyramid_levels(levels, request);
    const uint64_t    tile = tiff_encode_bound(request->codec, request->bits);
    /* Profile, tags, and metadata that escaping makes at most six times as long, twice. */
    uint64_t bytes = 64 * 1024;

    if (request->settings_json != NULL) bytes += 12 * (uint64_t)strlen(request->settings_json);
    if (request->prompt != NULL) bytes += 12 * (uint64_t)strlen(request->prompt);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t tiles = (uint64_t)levels[i].cols * (uint64_t)levels[i].rows;
        bytes += tiles * (tile + 16) + 1024; /* 16: a tile's offset and byte count */
    }
    return bytes;
}
