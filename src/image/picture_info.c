/*
 * picture_info.c - what a picture of ours says about itself, without decoding a pixel.
 *
 * Owns the reading of headers, resolution and words of TIFF and PNG files.  TIFF goes through
 * libtiff; PNG is a chain of chunks and is walked here, up to the first that holds pixels, because
 * a poster's words stand before them:
 *
 *     length u32, kind 4 bytes, data, crc u32 over kind and data; numbers big-endian
 *     iTXt data: key \0, packed? u8, method u8, language \0, translated key \0, text
 *
 * Pictures of others are answered too: size and depth, without words.
 * Read next: metadata.c, which writes the words of a TIFF.
 */
#include <stdio.h>
#include <string.h>

#include <libdeflate.h>

#include "image/image_int.h"

/* ------------------------------------------------------------------------------------ tiff */

static const char *codec_name(uint16_t codec)
{
    switch (codec) {
    case COMPRESSION_NONE: return "none";
    case COMPRESSION_LZW: return "lzw";
    case COMPRESSION_ADOBE_DEFLATE:
    case COMPRESSION_DEFLATE: return "deflate";
    case COMPRESSION_ZSTD: return "zstd";
    case COMPRESSION_JPEG: return "jpeg";
    default: return "other";
    }
}

static double tiff_dpi(TIFF *tiff)
{
    float    x = 0;
    uint16_t unit = RESUNIT_NONE;

    (void)TIFFGetFieldDefaulted(tiff, TIFFTAG_RESOLUTIONUNIT, &unit);
    if (!TIFFGetField(tiff, TIFFTAG_XRESOLUTION, &x) || !(x > 0)) return 0;
    if (unit == RESUNIT_INCH) return (double)x;
    return unit == RESUNIT_CENTIMETER ? (double)x * 2.54 : 0;
}

static int read_tiff(struct picture_info *out, const struct source *source, struct err *err)
{
    int            rc = ERR_OK;
    struct tiff_io io = {0};
    uint32_t       w = 0, h = 0, icc_bytes = 0;
    uint16_t       bits = 0, codec = 0, subs = 0;
    uint64_t      *offsets = NULL;
    void          *icc = NULL;
    const char    *description = NULL;

    TRY(tiff_io_open_memory(&io, source, err));
    (void)TIFFGetField(io.tiff, TIFFTAG_IMAGEWIDTH, &w);
    (void)TIFFGetField(io.tiff, TIFFTAG_IMAGELENGTH, &h);
    (void)TIFFGetFieldDefaulted(io.tiff, TIFFTAG_BITSPERSAMPLE, &bits);
    (void)TIFFGetFieldDefaulted(io.tiff, TIFFTAG_COMPRESSION, &codec);
    (void)TIFFGetField(io.tiff, TIFFTAG_SUBIFD, &subs, &offsets);
    if (w < 1 || h < 1 || w > INT32_MAX || h > INT32_MAX)
        RAISE(err, ERR_FORMAT, 0, "'%s' says it is %u x %u px", source->name, w, h);
    out->w = (int32_t)w;
    out->h = (int32_t)h;
    out->bits = bits;
    out->dpi = tiff_dpi(io.tiff);
    out->has_icc = TIFFGetField(io.tiff, TIFFTAG_ICCPROFILE, &icc_bytes, &icc) && icc_bytes > 0;
    out->levels = 1u + subs;
    (void)snprintf(out->format, sizeof out->format, "%s",
                   TIFFIsBigTIFF(io.tiff) ? "BigTIFF" : "TIFF");
    (void)snprintf(out->codec, sizeof out->codec, "%s", codec_name(codec));
    if (TIFFGetField(io.tiff, TIFFTAG_IMAGEDESCRIPTION, &description))
        TRY(metadata_parse(&out->prompt, &out->settings_json, description, err));
out:
    tiff_io_close(&io);
    return rc;
}

/* ------------------------------------------------------------------------------------- png */

struct chunk {
    char           kind[5];
    const uint8_t *data;
    uint32_t       bytes;
};

static uint32_t big_endian(const uint8_t *x)
{
    return (uint32_t)x[0] << 24 | (uint32_t)x[1] << 16 | (uint32_t)x[2] << 8 | x[3];
}

static int next_chunk(struct chunk *out, size_t *at, const struct source *source, struct err *err)
{
    int            rc = ERR_OK;
    const uint8_t *x = source->data + *at;
    const size_t   left = source->bytes - *at;

    if (left < 12 || big_endian(x) > left - 12)
        RAISE(err, ERR_FORMAT, 0, "'%s' is cut off at byte %zu", source->name, source->bytes);
    out->bytes = big_endian(x);
    memcpy(out->kind, x + 4, 4);
    out->kind[4] = '\0';
    out->data = x + 8;
    if (libdeflate_crc32(0, x + 4, 4 + (size_t)out->bytes) != big_endian(out->data + out->bytes))
        RAISE(err, ERR_FORMAT, 0, "'%s' is damaged at byte %zu: a chunk's checksum is wrong",
              source->name, *at);
    *at += 12 + (size_t)out->bytes;
out:
    return rc;
}

/* The text of an iTXt chunk of this key, copied; other chunks, and text that is compressed or not
 * UTF-8, leave *out alone. */
static int take_text(char **out, const struct chunk *chunk, const char *key, struct err *err)
{
    int            rc = ERR_OK;
    const size_t   key_bytes = strlen(key) + 1;
    const uint8_t *at = chunk->data, *end = chunk->data + chunk->bytes;
    void          *memory = NULL;

    if (*out != NULL || chunk->bytes < key_bytes + 2 || memcmp(at, key, key_bytes) != 0) goto out;
    at += key_bytes;
    if (at[0] != 0) goto out;
    at += 2;
    for (int strings = 0; strings < 2; strings++) {
        const uint8_t *zero = memchr(at, 0, (size_t)(end - at));
        if (zero == NULL) goto out;
        at = zero + 1;
    }
    const size_t bytes = (size_t)(end - at);
    if (memchr(at, 0, bytes) != NULL || text_utf8_valid_prefix((const char *)at, bytes) != bytes)
        goto out;
    TRY(os_alloc(&memory, (uint64_t)bytes + 1, 1, "a picture's text", err));
    memcpy(memory, at, bytes);
    *out = memory;
out:
    return rc;
}

static int take_chunk(struct picture_info *out, const struct chunk *chunk, struct err *err)
{
    int rc = ERR_OK;

    if (strcmp(chunk->kind, "pHYs") == 0 && chunk->bytes == 9 && chunk->data[8] == 1)
        out->dpi = big_endian(chunk->data) * 0.0254;
    else if (strcmp(chunk->kind, "iCCP") == 0)
        out->has_icc = true;
    else if (strcmp(chunk->kind, "iTXt") == 0) {
        TRY(take_text(&out->prompt, chunk, IMAGE_TEXT_PROMPT, err));
        TRY(take_text(&out->settings_json, chunk, IMAGE_TEXT_SETTINGS, err));
    }
out:
    return rc;
}

static int read_png(struct picture_info *out, const struct source *source, struct err *err)
{
    int          rc = ERR_OK;
    size_t       at = 8;
    struct chunk chunk;

    TRY(next_chunk(&chunk, &at, source, err));
    if (strcmp(chunk.kind, "IHDR") != 0 || chunk.bytes != 13)
        RAISE(err, ERR_FORMAT, 0, "'%s' does not begin with a PNG header", source->name);
    const uint32_t w = big_endian(chunk.data), h = big_endian(chunk.data + 4);
    if (w < 1 || h < 1 || w > INT32_MAX || h > INT32_MAX)
        RAISE(err, ERR_FORMAT, 0, "'%s' says it is %u x %u px", source->name, w, h);
    out->w = (int32_t)w;
    out->h = (int32_t)h;
    out->bits = chunk.data[8];
    out->levels = 1;
    (void)snprintf(out->format, sizeof out->format, "PNG");
    (void)snprintf(out->codec, sizeof out->codec, "deflate");
    for (;;) {
        TRY(next_chunk(&chunk, &at, source, err));
        if (strcmp(chunk.kind, "IDAT") == 0 || strcmp(chunk.kind, "IEND") == 0) break;
        TRY(take_chunk(out, &chunk, err));
    }
out:
    return rc;
}

/* ----------------------------------------------------------------------------------- both */

int picture_info_memory(struct picture_info *out, const struct source *source, struct err *err)
{
    int rc = ERR_OK;

    *out = (struct picture_info){0};
    if (image_read_is_png(source))
        TRY(read_png(out, source, err));
    else if (image_read_is_tiff(source))
        TRY(read_tiff(out, source, err));
    else
        RAISE(err, ERR_FORMAT, 0, "'%s' is neither a PNG nor a TIFF file", source->name);
out:
    if (rc != ERR_OK) picture_info_close(out);
    return rc;
}

int picture_info_read(struct picture_info *out, const char *path, struct err *err)
{
    int           rc = ERR_OK;
    struct os_map map = {0};

    TRY(os_map_open(&map, path, err));
    const struct source source = {.name = path, .data = map.data, .bytes = (size_t)map.bytes};
    TRY(picture_info_memory(out, &source, err));
out:
    os_map_close(&map);
    return rc;
}

void picture_info_close(struct picture_info *info)
{
    os_free(info->settings_json);
    os_free(info->prompt);
    info->settings_json = info->prompt = NULL;
}
