/*
 * image_int.h - what the files of image/ share: decoded drafts, libtiff over our own input and
 * output, packed tiles, and the words stored with a picture.  No other folder includes it.
 */
#ifndef MURAL_IMAGE_INT_H
#define MURAL_IMAGE_INT_H

#include <tiffio.h>

#include "image/image.h"

/* --------------------------------------------------------------------------------- drafts */

/* A draft's file in memory.  `name` is for sentences only. */
struct source {
    const char    *name;
    const uint8_t *data;
    size_t         bytes;
};

/* What png.c and tiff_read.c hand to image_read.c, which then settles colour and alpha. */
struct decoded {
    struct image image; /* colours not premultiplied, still in the colour space of `icc` */
    uint16_t    *alpha; /* [h, w], NULL when the picture is opaque                       */
    bool         grey;  /* the file has one sample, here three equal ones                */
    void        *icc;   /* NULL: taken as sRGB                                           */
    uint32_t     icc_bytes;
};

enum { IMAGE_ICC_BYTES_MAX = 4 * 1024 * 1024 };

/* The sides against the limits of image.h, before any memory is taken. */
int image_read_check_size(const char *name, uint64_t w, uint64_t h, struct err *err);
/* Room for the pixels, and for alpha when asked for.  decoded_close frees what is there. */
int  decoded_open(struct decoded *out, uint32_t w, uint32_t h, bool with_alpha, struct err *err);
void decoded_close(struct decoded *decoded);
/* Keep a copy of an ICC profile of at most IMAGE_ICC_BYTES_MAX. */
int decoded_keep_icc(struct decoded *decoded, const struct source *source, const void *icc,
                     uint32_t bytes, struct err *err);

/* image_read from memory; png_decode and tiff_read_decode are its two halves. */
int image_read_memory(struct image *out, const struct source *source, struct err *err);
int png_decode(struct decoded *out, const struct source *source, struct err *err);
int tiff_read_decode(struct decoded *out, const struct source *source, struct err *err);
int picture_info_memory(struct picture_info *out, const struct source *source, struct err *err);

bool image_read_is_png(const struct source *source);
bool image_read_is_tiff(const struct source *source);

/* -------------------------------------------------------------------------------- tiff_io */

/* libtiff over a buffer or over a file descriptor.  libtiff's void functions lose failures, so the
 * first one is kept in `fault`, after which every read and write fails.  `text` holds libtiff's
 * first complaint.  Address-stable while open: libtiff points back at it. */
struct tiff_io {
    TIFF          *tiff;
    const char    *name; /* for sentences; borrowed */
    const uint8_t *data; /* NULL: use fd            */
    int            fd;   /* borrowed                */
    uint64_t       at, bytes;
    struct err     fault;
    char           text[160];
};

int tiff_io_open_memory(struct tiff_io *io, const struct source *source, struct err *err);
/* Read the first `bytes` of a file. */
int tiff_io_open_file(struct tiff_io *io, const char *name, int fd, uint64_t bytes,
                      struct err *err);
/* Start an empty BigTIFF in a file open for reading and writing. */
int tiff_io_create(struct tiff_io *io, const char *name, int fd, struct err *err);
/* The sentence for a libtiff call that failed: "<what> '<name>': <reason>"; a latched fault of the
 * file goes first.  Returns the code. */
int tiff_io_error(const struct tiff_io *io, enum err_code code, const char *what, struct err *err);
/* Safe on a zeroed struct and twice.  After tiff_io_abandon nothing more is written. */
void tiff_io_abandon(struct tiff_io *io);
void tiff_io_close(struct tiff_io *io);

/* ----------------------------------------------------------------------------- tiff_encode */

/* Packs tiles, one thread each.  The caller fills `pixels`; pack leaves the bytes for the file. */
struct tiff_encoder {
    enum tiff_codec codec;
    int             bits;
    uint8_t        *pixels; /* [512, 512, 3], 8 or 16 bits; pack overwrites it */
    uint8_t        *packed;
    uint64_t        packed_bytes;
    uint64_t        pixel_bytes;
    uint64_t        packed_room;
    void           *state; /* of the codec */
};

int  tiff_encode_open(struct tiff_encoder **out, enum tiff_codec codec, int level, int bits,
                      struct err *err);
void tiff_encode_close(struct tiff_encoder *encoder);
/* Copy a rectangle of at most one tile to the tile's top left and fill the rest with it: the last
 * pixel of each row, then the last row, are repeated. */
void tiff_encode_cut(struct tiff_encoder *encoder, const void *samples, uint64_t stride_bytes,
                     int32_t w, int32_t h);
/* The fill alone, when [0, h) x [0, w) of `pixels` is already there. */
void tiff_encode_pad(struct tiff_encoder *encoder, int32_t w, int32_t h);
/* Predictor and codec.  Returns what to write: packed_bytes from this address. */
int      tiff_encode_pack(struct tiff_encoder *encoder, const void **bytes_out, struct err *err);
uint64_t tiff_encode_pixel_bytes(int bits); /* of a whole tile */
/* Most bytes that a packed tile can need. */
uint64_t tiff_encode_bound(enum tiff_codec codec, int bits);
uint16_t tiff_encode_tag(enum tiff_codec codec);
/* 0 becomes the default level; a level out of the codec's range is an error. */
int tiff_encode_level(int *level_out, enum tiff_codec codec, int level, struct err *err);

/* ---------------------------------------------------------------------------- tiff_pyramid */

/* Where a tile lies in the file, and the hash of its pixels before packing. */
struct tiff_tile {
    uint64_t offset, bytes, hash;
};
/* One resolution of the picture. */
struct tiff_level {
    int32_t           w, h, cols, rows;
    struct tiff_tile *tiles; /* [rows, cols] */
};
enum { TIFF_LEVELS_MAX = 12, TIFF_THREADS_MAX = 16 };

/* Fills levels[0..] with the picture's size and, for a pyramid, its halves down to one tile,
 * without `tiles`; returns their number. */
uint32_t tiff_pyramid_levels(struct tiff_level             levels[TIFF_LEVELS_MAX],
                             const struct bigtiff_request *request);

/* Reads the tiles of a level that is complete in the file, to make tiles of half the size. */
struct tiff_pyramid;
int  tiff_pyramid_open(struct tiff_pyramid **out, int bits, int threads, struct err *err);
void tiff_pyramid_close(struct tiff_pyramid *pyramid);
/* The level to halve next; its directory must be on disk. */
int tiff_pyramid_source(struct tiff_pyramid *pyramid, const char *path, int fd, uint64_t bytes,
                        const struct tiff_level *levels, uint32_t level, struct err *err);
/* Make the pixels of tile (col, row) of the next level. `thread` below the number at open. */
int tiff_pyramid_fill(struct tiff_pyramid *pyramid, int thread, struct tiff_encoder *encoder,
                      int32_t col, int32_t row, struct err *err);

/* Make `level` of the file the current directory (0: the picture, n: its n-th SubIFD). */
int tiff_pyramid_select(struct tiff_io *io, uint32_t level, struct err *err);

/* ----------------------------------------------------------------------------- tiff_verify */

/* Opens the finished file as a stranger would, and checks every level's size and tile places and
 * the picture's profile.  `path` and `levels` are borrowed until close. */
struct tiff_check;
int  tiff_verify_open(struct tiff_check **out, const char *path,
                      const struct bigtiff_request *request, const struct tiff_level *levels,
                      uint32_t level_count, struct err *err);
void tiff_verify_close(struct tiff_check *check); /* NULL is fine */
/* How many tiles are to be decoded, a sample of all. */
uint32_t tiff_verify_tiles(const struct tiff_check *check);
/* Decode number 0.. of them into pixels_out [512, 512, 3], which is `pixel_bytes`, and compare it
 * with its hash.  Several threads may check tiles at once. */
int tiff_verify_tile(const struct tiff_check *check, uint32_t number, void *pixels_out,
                     uint64_t pixel_bytes, struct err *err);

/* -------------------------------------------------------------------------------- metadata */

/* An sRGB profile, always the same bytes for one version of lcms2.  Heap. */
int metadata_srgb_icc(void **icc_out, uint32_t *bytes_out, struct err *err);
/* An XMP packet, and JSON of ASCII only for ImageDescription.  Heap, NUL-terminated. */
int metadata_xmp(char **xmp_out, const struct bigtiff_request *request, struct err *err);
int metadata_description(char **text_out, const struct bigtiff_request *request, struct err *err);
/* The prompt and settings in such a description; both NULL when it is not one of ours. */
int metadata_parse(char **prompt_out, char **settings_out, const char *description,
                   struct err *err);

#endif
