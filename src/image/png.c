/*
 * png.c - small PNG in and out: drafts, previews.
 *
 * Owns everything that includes png.h.  Of libpng only the low-level calls are used and no
 * conversion is asked of it: a row arrives as it lies in the file and is unpacked here, by rules
 * that fit on a page.  Ancillary chunks other than tRNS, sRGB and iCCP are skipped unparsed.
 *
 * libpng reports errors by longjmp.  Everything allocated hangs from a struct whose address the
 * jump cannot disturb, and the function that calls setjmp has no variables that change.
 *
 * Read next: image_read.c, which turns what is decoded here into a draft.
 */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <png.h>

#include "image/image_int.h"

enum { SIGNATURE_BYTES = 8, HEADER_BYTES = 33 };
static const uint8_t signature[SIGNATURE_BYTES] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};

/* --------------------------------------------------------------------------------- reading */

struct png_layout {
    uint32_t w, h, row_bytes;
    int      depth, type, channels;
    bool     interlaced;
};

struct png_reader {
    png_structp          png;
    png_infop            info;
    const struct source *source;
    size_t               at;
    struct png_layout    layout;
    struct decoded      *out;
    uint8_t             *raw; /* one row, or all of them when interlaced */
    png_colorp           palette;
    png_bytep            palette_alpha;
    png_color_16p        clear; /* the one transparent colour, or NULL */
    int                  palette_count, palette_alpha_count;
    char                 text[96];
};

bool image_read_is_png(const struct source *source)
{
    return source->bytes >= SIGNATURE_BYTES &&
           memcmp(source->data, signature, SIGNATURE_BYTES) == 0;
}

static uint32_t big_endian(const uint8_t *x)
{
    return (uint32_t)x[0] << 24 | (uint32_t)x[1] << 16 | (uint32_t)x[2] << 8 | x[3];
}

/* The header chunk, read by hand so that a bomb is refused before libpng takes memory for it. */
static int read_layout(struct png_layout *out, const struct source *source, struct err *err)
{
    static const int channels[] = {1, 0, 3, 1, 2, 0, 4};
    int              rc = ERR_OK;
    const uint8_t   *x = source->data;
    uint64_t         bits, raw_bytes, most;

    if (source->bytes < HEADER_BYTES || big_endian(x + 8) != 13 || memcmp(x + 12, "IHDR", 4) != 0)
        RAISE(err, ERR_FORMAT, 0, "'%s' is cut off or damaged in its PNG header", source->name);
    *out = (struct png_layout){.w = big_endian(x + 16), .h = big_endian(x + 20)};
    out->depth = x[24];
    out->type = x[25];
    out->interlaced = x[28] != 0;
    TRY(image_read_check_size(source->name, out->w, out->h, err));
    if (out->type > 6 || channels[out->type] == 0 || out->depth > 16)
        RAISE(err, ERR_FORMAT, 0, "'%s' has PNG colour type %d with %d bits, which does not exist",
              source->name, out->type, out->depth);
    out->channels = channels[out->type];
    bits = (uint64_t)out->w * (uint64_t)out->channels * (uint64_t)out->depth;
    out->row_bytes = (uint32_t)((bits + 7) / 8);
    /* Deflate cannot shrink anything below 1/1032: a larger promise is a lie. */
    raw_bytes = (uint64_t)out->row_bytes * out->h;
    most = 1032 * (uint64_t)source->bytes;
    if (raw_bytes > most)
        RAISE(err, ERR_FORMAT, 0,
              "'%s' says it is %u x %u px, but its %zu bytes cannot hold that many; it is cut off "
              "or a "
              "decompression bomb",
              source->name, out->w, out->h, source->bytes);
out:
    return rc;
}

static void read_bytes(png_structp png, png_bytep x_out, size_t count)
{
    struct png_reader *reader = png_get_io_ptr(png);

    if (count > reader->source->bytes - reader->at) png_error(png, "the file is cut off");
    memcpy(x_out, reader->source->data + reader->at, count);
    reader->at += count;
}

static void on_read_error(png_structp png, png_const_charp message)
{
    struct png_reader *reader = png_get_error_ptr(png);

    (void)snprintf(reader->text, sizeof reader->text, "%s", message);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message)
{
    (void)png, (void)message;
}

static uint32_t sample(const uint8_t *row, int depth, size_t index)
{
    if (depth == 8) return row[index];
    if (depth == 16) return (uint32_t)row[2 * index] << 8 | row[2 * index + 1];
    const size_t   bit = index * (size_t)depth;
    const unsigned shift = 8u - (unsigned)depth - (unsigned)(bit % 8);
    return ((uint32_t)row[bit / 8] >> shift) & ((1u << depth) - 1u);
}

/* False when the row uses a colour that the palette does not have. */
static bool unpack_palette(const struct png_reader *reader, const uint8_t *row, uint16_t *rgb,
                           uint16_t *alpha)
{
    for (uint32_t x = 0; x < reader->layout.w; x++) {
        const int index = (int)sample(row, reader->layout.depth, x);
        if (index >= reader->palette_count) return false;
        rgb[3 * x] = (uint16_t)(reader->palette[index].red * 257);
        rgb[3 * x + 1] = (uint16_t)(reader->palette[index].green * 257);
        rgb[3 * x + 2] = (uint16_t)(reader->palette[index].blue * 257);
        if (alpha == NULL) continue;
        alpha[x] = index < reader->palette_alpha_count
                       ? (uint16_t)(reader->palette_alpha[index] * 257)
                       : 65535;
    }
    return true;
}

static void unpack_samples(const struct png_reader *reader, const uint8_t *row, uint16_t *rgb,
                           uint16_t *alpha)
{
    const struct png_layout *layout = &reader->layout;
    const size_t             channels = (size_t)layout->channels, colours = channels < 3 ? 1 : 3;
    const uint32_t           scale = 65535u / ((1u << layout->depth) - 1u);

    for (size_t x = 0; x < layout->w; x++) {
        uint32_t v[3];
        for (size_t c = 0; c < 3; c++) {
            v[c] = sample(row, layout->depth, x * channels + (colours == 1 ? 0 : c));
            rgb[3 * x + c] = (uint16_t)(v[c] * scale);
        }
        if (alpha == NULL) continue;
        if (channels > colours) {
            alpha[x] = (uint16_t)(sample(row, layout->depth, x * channels + colours) * scale);
            continue;
        }
        const png_color_16 *clear = reader->clear;
        bool is_clear = v[0] == (colours == 1 ? clear->gray : clear->red);

        if (colours == 3) is_clear = is_clear && v[1] == clear->green && v[2] == clear->blue;
        alpha[x] = is_clear ? 0 : 65535;
    }
}

static int unpack_row(const struct png_reader *reader, const uint8_t *row, uint32_t y,
                      struct err *err)
{
    int             rc = ERR_OK;
    struct decoded *out = reader->out;
    const size_t    at = (size_t)y * reader->layout.w;
    uint16_t       *rgb = out->image.rgb + 3 * at, *alpha = out->alpha ? out->alpha + at : NULL;

    if (reader->layout.type != PNG_COLOR_TYPE_PALETTE)
        unpack_samples(reader, row, rgb, alpha);
    else if (!unpack_palette(reader, row, rgb, alpha))
        RAISE(err, ERR_FORMAT, 0, "'%s' uses colours that its palette does not have",
              reader->source->name);
out:
    return rc;
}

/* Skip unparsed what cannot change a pixel; some of libpng's worst bugs were in these. */
static void restrict_chunks(png_structp png)
{
    static const png_byte skipped[] = "bKGD\0cHRM\0eXIf\0gAMA\0hIST\0iTXt\0oFFs\0pCAL\0pHYs\0"
                                      "sBIT\0sCAL\0sPLT\0tEXt\0tIME\0zTXt";

    png_set_user_limits(png, IMAGE_SIDE_MAX_PX, IMAGE_SIDE_MAX_PX);
    png_set_chunk_malloc_max(png, IMAGE_ICC_BYTES_MAX + 65536);
    png_set_chunk_cache_max(png, 64);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, 0);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, skipped, (int)sizeof skipped / 5);
}

static int open_output(struct png_reader *reader, struct err *err)
{
    int                      rc = ERR_OK;
    const struct png_layout *layout = &reader->layout;
    const bool  has_clear = png_get_tRNS(reader->png, reader->info, &reader->palette_alpha,
                                         &reader->palette_alpha_count, &reader->clear) != 0;
    bool        has_alpha = layout->channels == 2 || layout->channels == 4;
    png_charp   name = NULL;
    png_bytep   icc = NULL;
    png_uint_32 icc_bytes = 0;
    int         method = 0;
    void       *memory = NULL;

    if (has_clear && !has_alpha)
        has_alpha = layout->type == PNG_COLOR_TYPE_PALETTE ? reader->palette_alpha_count > 0
                                                           : reader->clear != NULL;
    (void)png_get_PLTE(reader->png, reader->info, &reader->palette, &reader->palette_count);
    if (layout->type == PNG_COLOR_TYPE_PALETTE && reader->palette_count < 1)
        RAISE(err, ERR_FORMAT, 0, "'%s' has no palette for its colours", reader->source->name);
    TRY(decoded_open(reader->out, layout->w, layout->h, has_alpha, err));
    reader->out->grey = (layout->type & PNG_COLOR_MASK_COLOR) == 0;
    if (png_get_iCCP(reader->png, reader->info, &name, &method, &icc, &icc_bytes) != 0)
        TRY(decoded_keep_icc(reader->out, reader->source, icc, icc_bytes, err));
    TRY(os_alloc(&memory, layout->row_bytes, layout->interlaced ? layout->h : 1, "rows of a draft",
                 err));
    reader->raw = memory;
out:
    return rc;
}

static int read_rows(struct png_reader *reader, struct err *err)
{
    int            rc = ERR_OK;
    const uint32_t h = reader->layout.h, row_bytes = reader->layout.row_bytes;

    if (reader->layout.interlaced) {
        for (int left = png_set_interlace_handling(reader->png); left > 0; left--)
            for (uint32_t y = 0; y < h; y++)
                png_read_row(reader->png, reader->raw + (size_t)y * row_bytes, NULL);
        for (uint32_t y = 0; y < h; y++)
            TRY(unpack_row(reader, reader->raw + (size_t)y * row_bytes, y, err));
    } else {
        for (uint32_t y = 0; y < h; y++) {
            png_read_row(reader->png, reader->raw, NULL);
            TRY(unpack_row(reader, reader->raw, y, err));
        }
    }
    png_read_end(reader->png, NULL);
out:
    return rc;
}

/* May be left by longjmp at any call of libpng. */
static int read_picture(struct png_reader *reader, struct err *err)
{
    int rc = ERR_OK;

    restrict_chunks(reader->png);
    png_set_read_fn(reader->png, reader, read_bytes);
    png_read_info(reader->png, reader->info);
    if (png_get_rowbytes(reader->png, reader->info) != reader->layout.row_bytes)
        png_error(reader->png, "the header changed its mind");
    TRY(open_output(reader, err));
    TRY(read_rows(reader, err));
out:
    return rc;
}

static int read_guarded(struct png_reader *reader, struct err *err)
{
    if (setjmp(png_jmpbuf(reader->png)) != 0)
        return err_set(err, ERR_FORMAT, 0, ERR_WHERE, "'%s' is not a whole PNG: %s",
                       reader->source->name, reader->text);
    return read_picture(reader, err);
}

int png_decode(struct decoded *out, const struct source *source, struct err *err)
{
    int               rc = ERR_OK;
    struct png_reader reader = {.source = source, .out = out};

    *out = (struct decoded){0};
    TRY(read_layout(&reader.layout, source, err));
    reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, on_read_error, on_warning);
    if (reader.png != NULL) reader.info = png_create_info_struct(reader.png);
    if (reader.info == NULL)
        RAISE(err, ERR_HOST_MEM, 0, "memory: none left to read '%s'", source->name);
    TRY(read_guarded(&reader, err));
out:
    if (rc != ERR_OK) decoded_close(out);
    os_free(reader.raw);
    if (reader.png != NULL) png_destroy_read_struct(&reader.png, &reader.info, NULL);
    return rc;
}

/* --------------------------------------------------------------------------------- writing */

struct png_writer {
    png_structp               png;
    png_infop                 info;
    const struct image       *image;
    const struct png_request *request;
    png_text                 *texts;
    uint8_t                  *row;
    char                     *part;
    int                       fd;
    uint64_t                  at;
    struct err               *err; /* where a failed write leaves its sentence */
};

static void write_bytes(png_structp png, png_bytep x, size_t count)
{
    struct png_writer *writer = png_get_io_ptr(png);

    if (os_write_at(writer->fd, writer->at, x, count, writer->part, writer->err) != ERR_OK)
        png_longjmp(png, 1);
    writer->at += count;
}

static void flush_bytes(png_structp png)
{
    (void)png; /* synced once, at the end */
}

static void on_write_error(png_structp png, png_const_charp message)
{
    struct png_writer *writer = png_get_error_ptr(png);

    (void)err_set(writer->err, ERR_USAGE, 0, ERR_WHERE, "cannot write '%s': %s",
                  writer->request->path, message);
    png_longjmp(png, 1);
}

static void pack_row(uint8_t *row, const uint16_t *rgb, size_t samples, int bits)
{
    for (size_t i = 0; i < samples; i++) {
        if (bits == 8) {
            row[i] = (uint8_t)((rgb[i] * 255u + 32767u) / 65535u);
        } else {
            row[2 * i] = (uint8_t)(rgb[i] >> 8);
            row[2 * i + 1] = (uint8_t)rgb[i];
        }
    }
}

static void set_texts(struct png_writer *writer)
{
    const struct png_request *request = writer->request;

    for (size_t i = 0; i < request->text_count; i++) {
        /* libpng's struct is not const, but it only copies what it is given. */
        writer->texts[i] = (png_text){.compression = PNG_ITXT_COMPRESSION_NONE,
                                      .key = (png_charp)(uintptr_t)request->texts[i].key,
                                      .text = (png_charp)(uintptr_t)request->texts[i].value,
                                      .itxt_length = strlen(request->texts[i].value),
                                      .lang = (png_charp)(uintptr_t) "",
                                      .lang_key = (png_charp)(uintptr_t) ""};
    }
    if (request->text_count > 0)
        png_set_text(writer->png, writer->info, writer->texts, (int)request->text_count);
}

/* May be left by longjmp at any call of libpng. */
static void write_picture(struct png_writer *writer)
{
    const struct image *image = writer->image;
    const size_t        samples = 3 * (size_t)image->w;

    png_set_write_fn(writer->png, writer, write_bytes, flush_bytes);
    png_set_user_limits(writer->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_compression_level(writer->png, 1);
    png_set_compression_buffer_size(writer->png, 65536);
    png_set_IHDR(writer->png, writer->info, (png_uint_32)image->w, (png_uint_32)image->h,
                 writer->request->bits, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_set_sRGB(writer->png, writer->info, PNG_sRGB_INTENT_PERCEPTUAL);
    set_texts(writer);
    png_write_info(writer->png, writer->info);
    for (int32_t y = 0; y < image->h; y++) {
        pack_row(writer->row, image->rgb + (size_t)y * samples, samples, writer->request->bits);
        png_write_row(writer->png, writer->row);
    }
    png_write_end(writer->png, NULL);
}

static int write_guarded(struct png_writer *writer)
{
    if (setjmp(png_jmpbuf(writer->png)) != 0) return (int)writer->err->code;
    write_picture(writer);
    return ERR_OK;
}

static int open_writer(struct png_writer *writer, struct err *err)
{
    int          rc = ERR_OK;
    const size_t length = strlen(writer->request->path);
    void        *memory = NULL;

    TRY(os_alloc(&memory, length + sizeof ".part", 1, "a path", err));
    writer->part = memory;
    memcpy(writer->part, writer->request->path, length);
    memcpy(writer->part + length, ".part", sizeof ".part");
    TRY(os_alloc(&memory, (uint64_t)writer->image->w, 6, "a row of a PNG", err));
    writer->row = memory;
    TRY(os_alloc(&memory, writer->request->text_count, sizeof *writer->texts, "texts", err));
    writer->texts = memory;
    writer->png =
        png_create_write_struct(PNG_LIBPNG_VER_STRING, writer, on_write_error, on_warning);
    if (writer->png != NULL) writer->info = png_create_info_struct(writer->png);
    if (writer->info == NULL)
        RAISE(err, ERR_HOST_MEM, 0, "memory: none left to write '%s'", writer->request->path);
out:
    return rc;
}

int png_write(const struct image *image, const struct png_request *request, struct err *err)
{
    int               rc = ERR_OK, fd;
    bool              owns = false; /* the .part file is ours to remove */
    struct err        ignored = {0};
    struct png_writer writer = {.image = image, .request = request, .fd = -1, .err = err};

    must(image->w > 0 && image->h > 0);
    must(request->bits == 8 || request->bits == 16);
    TRY(open_writer(&writer, err));
    TRY(os_open_write(&writer.fd, writer.part, err));
    owns = true;
    TRY(write_guarded(&writer));
    TRY(os_sync(writer.fd, writer.part, err));
    fd = writer.fd;
    writer.fd = -1;
    TRY(os_close(fd, writer.part, err));
    TRY(os_rename(writer.part, request->path, err));
    owns = false;
out:
    if (writer.png != NULL) png_destroy_write_struct(&writer.png, &writer.info);
    if (writer.fd >= 0) (void)os.close(writer.fd);
    if (owns) (void)os_remove(writer.part, &ignored);
    os_free(writer.part);
    os_free(writer.row);
    os_free(writer.texts);
    return rc;
}
