/*
 * tiff_encode.c - one tile of samples to the bytes that a TIFF stores for it.
 *
 * Owns the horizontal predictor and the four codecs.  Knows nothing of files.  One encoder belongs
 * to one thread; all its memory is taken at open, and the same tile always gives the same bytes.
 *
 * Predictor 2 stores each sample's difference from the one three places before it (the same colour
 * of the pixel to the left), modulo the sample's width; 16-bit differences are taken on whole
 * words, not on bytes.  Without it 16-bit LZW grows by a third.
 *
 * LZW as TIFF has it: codes of 9 to 12 bits, highest bit first; 256 clears the table, 257 ends; the
 * width grows one code earlier than the table strictly needs ("early change").
 *
 * Read next: bigtiff.c, which owns the encoders.
 */
#include <string.h>

#include <libdeflate.h>
#include <zstd.h>

#include "image/image_int.h"

enum { TILE = BIGTIFF_TILE_PX, TILE_SAMPLES = TILE * TILE * 3, ROW_SAMPLES = TILE * 3 };

/* ------------------------------------------------------------------------------------- lzw */

enum {
    LZW_CLEAR = 256,
    LZW_END = 257,
    LZW_FIRST = 258,
    LZW_FULL = 4094, /* clear before the last codes: some readers never learnt to use them */
    LZW_SLOTS = 8192
};

struct lzw {
    uint32_t slots[LZW_SLOTS]; /* (prefix code << 8 | byte) << 12 | code; 0: empty */
};

struct bit_writer {
    uint8_t *at;
    uint64_t held;
    unsigned held_bits;
};

static void put_bits(struct bit_writer *out, uint32_t code, unsigned width)
{
    out->held = out->held << width | code;
    out->held_bits += width;
    while (out->held_bits >= 8) {
        out->held_bits -= 8;
        *out->at++ = (uint8_t)(out->held >> out->held_bits);
    }
}

static void put_end(struct bit_writer *out)
{
    if (out->held_bits > 0) put_bits(out, 0, 8 - out->held_bits);
}

/* The slot that holds `key`, or the empty one where it belongs. */
static uint32_t *find_slot(struct lzw *lzw, uint32_t key)
{
    uint32_t at = (key * 2654435761u) >> 19; /* Knuth's multiplicative hash, top 13 bits */

    while (lzw->slots[at] != 0 && lzw->slots[at] >> 12 != key)
        at = (at + 1) % LZW_SLOTS;
    return &lzw->slots[at];
}

/* A code was used, so the reader now knows one more string. */
static void table_grew(struct lzw *lzw, struct bit_writer *out, uint32_t *next, unsigned *width)
{
    (*next)++;
    if (*next == LZW_FULL) {
        put_bits(out, LZW_CLEAR, *width);
        memset(lzw->slots, 0, sizeof lzw->slots);
        *next = LZW_FIRST;
        *width = 9;
    } else if (*next == 1u << *width) {
        (*width)++;
    }
}

static uint64_t lzw_pack(struct lzw *lzw, uint8_t *x_out, const uint8_t *x, uint64_t count)
{
    struct bit_writer out = {.at = x_out};
    uint32_t          next = LZW_FIRST, prefix = x[0];
    unsigned          width = 9;

    memset(lzw->slots, 0, sizeof lzw->slots);
    put_bits(&out, LZW_CLEAR, width);
    for (uint64_t i = 1; i < count; i++) {
        uint32_t  key = prefix << 8 | x[i];
        uint32_t *slot = find_slot(lzw, key);
        if (*slot != 0) {
            prefix = *slot & 0xFFF;
            continue;
        }
        put_bits(&out, prefix, width);
        *slot = key << 12 | next;
        table_grew(lzw, &out, &next, &width);
        prefix = x[i];
    }
    put_bits(&out, prefix, width);
    table_grew(lzw, &out, &next, &width);
    put_bits(&out, LZW_END, width);
    put_end(&out);
    return (uint64_t)(out.at - x_out);
}

/* ------------------------------------------------------------------------------- predictor */

static void difference_u8(uint8_t *row)
{
    for (int i = ROW_SAMPLES - 1; i >= 3; i--)
        row[i] = (uint8_t)(row[i] - row[i - 3]);
}

static void difference_u16(uint16_t *row)
{
    for (int i = ROW_SAMPLES - 1; i >= 3; i--)
        row[i] = (uint16_t)(row[i] - row[i - 3]);
}

static void predict(struct tiff_encoder *encoder)
{
    const size_t row_bytes = (size_t)ROW_SAMPLES * (size_t)encoder->bits / 8;

    for (size_t y = 0; y < TILE; y++) {
        uint8_t *row = encoder->pixels + y * row_bytes;
        if (encoder->bits == 8)
            difference_u8(row);
        else
            difference_u16((uint16_t *)(void *)row);
    }
}

/* --------------------------------------------------------------------------------- opening */

uint64_t tiff_encode_pixel_bytes(int bits)
{
    return (uint64_t)TILE_SAMPLES * (uint64_t)bits / 8;
}

uint64_t tiff_encode_bound(enum tiff_codec codec, int bits)
{
    const uint64_t pixel_bytes = tiff_encode_pixel_bytes(bits);

    if (codec == TIFF_NONE) return pixel_bytes;
    /* At worst every byte is a code of its own; the widths between two clears average 11.27 bits,
     * the clear included. */
    if (codec == TIFF_LZW) return pixel_bytes + pixel_bytes / 100 * 41 + 1024;
    if (codec == TIFF_DEFLATE) return libdeflate_zlib_compress_bound(NULL, (size_t)pixel_bytes);
    return ZSTD_compressBound((size_t)pixel_bytes);
}

uint16_t tiff_encode_tag(enum tiff_codec codec)
{
    static const uint16_t tags[] = {[TIFF_NONE] = COMPRESSION_NONE,
                                    [TIFF_LZW] = COMPRESSION_LZW,
                                    [TIFF_DEFLATE] = COMPRESSION_ADOBE_DEFLATE,
                                    [TIFF_ZSTD] = COMPRESSION_ZSTD};

    must((size_t)codec < ARRAY_COUNT(tags));
    return tags[codec];
}

int tiff_encode_level(int *level_out, enum tiff_codec codec, int level, struct err *err)
{
    int       rc = ERR_OK;
    const int most = codec == TIFF_DEFLATE ? 12 : codec == TIFF_ZSTD ? 19 : 0;

    if (most > 0 && (level < 0 || level > most))
        RAISE(err, ERR_USAGE, 0, "compression level is %d but %s has levels 1..%d", level,
              codec == TIFF_DEFLATE ? "deflate" : "zstd", most);
    /* Past level 1 pictures shrink by 2 to 4 points for 4 to 20 times the time. */
    *level_out = level == 0 ? 1 : level;
out:
    return rc;
}

static int open_state(struct tiff_encoder *encoder, int level, struct err *err)
{
    int rc = ERR_OK;

    switch (encoder->codec) {
    case TIFF_NONE: break;
    case TIFF_LZW:
        TRY(os_alloc(&encoder->state, 1, sizeof(struct lzw), "the LZW table", err));
        break;
    case TIFF_DEFLATE:
        encoder->state = libdeflate_alloc_compressor(level);
        if (encoder->state == NULL) RAISE(err, ERR_HOST_MEM, 0, "memory: none left for deflate");
        break;
    case TIFF_ZSTD: {
        ZSTD_CCtx *context = ZSTD_createCCtx();
        encoder->state = context;
        if (context == NULL ||
            ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level)))
            RAISE(err, ERR_HOST_MEM, 0, "memory: none left for zstd");
        /* zstd takes its workspace at first use; use it now, so that packing takes none. */
        if (ZSTD_isError(ZSTD_compress2(context, encoder->packed, (size_t)encoder->packed_room,
                                        encoder->pixels, (size_t)encoder->pixel_bytes)))
            RAISE(err, ERR_HOST_MEM, 0, "memory: none left for zstd at level %d", level);
        break;
    }
    }
out:
    return rc;
}

int tiff_encode_open(struct tiff_encoder **out, enum tiff_codec codec, int level, int bits,
                     struct err *err)
{
    int                  rc = ERR_OK;
    void                *memory = NULL;
    struct tiff_encoder *encoder = NULL;

    must(bits == 8 || bits == 16);
    TRY(tiff_encode_level(&level, codec, level, err));
    TRY(os_alloc(&memory, 1, sizeof *encoder, "a tile encoder", err));
    encoder = memory;
    encoder->codec = codec;
    encoder->bits = bits;
    encoder->pixel_bytes = tiff_encode_pixel_bytes(bits);
    encoder->packed_room = tiff_encode_bound(codec, bits);
    TRY(os_alloc(&memory, encoder->pixel_bytes, 1, "a tile", err));
    encoder->pixels = memory;
    if (codec != TIFF_NONE) {
        TRY(os_alloc(&memory, encoder->packed_room, 1, "a packed tile", err));
        encoder->packed = memory;
    }
    TRY(open_state(encoder, level, err));
    *out = encoder;
    encoder = NULL;
out:
    tiff_encode_close(encoder);
    return rc;
}

void tiff_encode_close(struct tiff_encoder *encoder)
{
    if (encoder == NULL) return;
    if (encoder->codec == TIFF_ZSTD)
        (void)ZSTD_freeCCtx(encoder->state);
    else if (encoder->codec != TIFF_DEFLATE)
        os_free(encoder->state);
    else if (encoder->state != NULL)
        libdeflate_free_compressor(encoder->state);
    os_free(encoder->packed);
    os_free(encoder->pixels);
    os_free(encoder);
}

/* ---------------------------------------------------------------------------------- a tile */

void tiff_encode_cut(struct tiff_encoder *encoder, const void *samples, uint64_t stride_bytes,
                     int32_t w, int32_t h)
{
    const size_t pixel = 3 * (size_t)encoder->bits / 8, row_bytes = TILE * pixel;

    must(w > 0 && w <= TILE && h > 0 && h <= TILE);
    for (size_t y = 0; y < (size_t)h; y++)
        memcpy(encoder->pixels + y * row_bytes, (const uint8_t *)samples + y * stride_bytes,
               (size_t)w * pixel);
    tiff_encode_pad(encoder, w, h);
}

void tiff_encode_pad(struct tiff_encoder *encoder, int32_t w, int32_t h)
{
    const size_t pixel = 3 * (size_t)encoder->bits / 8, row_bytes = TILE * pixel;

    for (size_t y = 0; y < (size_t)h; y++) {
        uint8_t *row = encoder->pixels + y * row_bytes;
        for (size_t x = (size_t)w; x < TILE; x++)
            memcpy(row + x * pixel, row + ((size_t)w - 1) * pixel, pixel);
    }
    for (size_t y = (size_t)h; y < TILE; y++)
        memcpy(encoder->pixels + y * row_bytes, encoder->pixels + ((size_t)h - 1) * row_bytes,
               row_bytes);
}

int tiff_encode_pack(struct tiff_encoder *encoder, const void **bytes_out, struct err *err)
{
    const size_t count = (size_t)encoder->pixel_bytes, room = (size_t)encoder->packed_room;
    size_t       packed = 0;

    *bytes_out = encoder->packed;
    if (encoder->codec != TIFF_NONE) predict(encoder);
    switch (encoder->codec) {
    case TIFF_NONE:
        *bytes_out = encoder->pixels;
        packed = count;
        break;
    case TIFF_LZW:
        packed = (size_t)lzw_pack(encoder->state, encoder->packed, encoder->pixels, count);
        break;
    case TIFF_DEFLATE:
        packed =
            libdeflate_zlib_compress(encoder->state, encoder->pixels, count, encoder->packed, room);
        break;
    case TIFF_ZSTD:
        packed = ZSTD_compress2(encoder->state, encoder->packed, room, encoder->pixels, count);
        if (ZSTD_isError(packed))
            return err_set(err, ERR_HOST_MEM, 0, ERR_WHERE, "cannot pack a tile with zstd: %s",
                           ZSTD_getErrorName(packed));
        break;
    }
    must(packed > 0 && packed <= room);
    encoder->packed_bytes = packed;
    return ERR_OK;
}
