/*
 * image.h - pixels and files of pixels.
 *
 * Rank 1.  Knows nothing of tiles or models.  Samples are sRGB-encoded RGB, interleaved, top row
 * first; only png.c, tiff_read.c and bigtiff.c may know another order.
 */
#ifndef MURAL_IMAGE_H
#define MURAL_IMAGE_H

#include "base/base.h"

/* A whole small picture in memory: a draft. */
struct image {
    int32_t   w, h;
    uint16_t *rgb; /* [h, w, 3], 0..65535 */
};

enum { IMAGE_SIDE_MAX_PX = 16384, IMAGE_PIXELS_MAX = 64 * 1000 * 1000 };

void image_close(struct image *image); /* frees rgb; safe on a zeroed struct */

/* Read a PNG or TIFF draft: RGB, RGBA, grey or palette (PNG), 8 or 16 bits.  Everything else, and
 * anything above the limits above, is refused with one sentence.  Alpha is composited on white.
 * An embedded ICC profile is converted to sRGB. */
int image_read(struct image *out, const char *path, struct err *err);

/* One text stored with a picture. */
struct image_text {
    const char *key;   /* ASCII, 1..79 characters */
    const char *value; /* UTF-8 */
};
/* The keys under which picture_info_read finds the words of a PNG of ours. */
#define IMAGE_TEXT_PROMPT   "Description"
#define IMAGE_TEXT_SETTINGS "mural:settings" /* JSON */
#define IMAGE_TEXT_SOFTWARE "Software"

/* Write `path` through path.part and a rename. bits: 8 or 16.  8 bits are rounded, not dithered. */
struct png_request {
    const char              *path;
    int                      bits;
    const struct image_text *texts; /* iTXt; may be NULL */
    size_t                   text_count;
};
int png_write(const struct image *image, const struct png_request *request, struct err *err);

/* Memory over time, as a PNG of this size: stepped curves, axes in seconds and bytes. */
enum { MEMORY_PLOT_W = 1200, MEMORY_PLOT_H = 600 };
enum memory_plot_curve {
    MEMORY_PLOT_LIVE = 0, /* asked for         */
    MEMORY_PLOT_PLACED,   /* with alignment    */
    MEMORY_PLOT_MAPPED,   /* seen at addresses */
    MEMORY_PLOT_DEVICE,   /* taken from a GPU  */
    MEMORY_PLOT_CURVES
};
struct memory_plot_request {
    const char     *path;                      /* written through path.part and a rename */
    const char     *title;                     /* few words; ASCII */
    size_t          count;                     /* of moments, at least 1 */
    const double   *seconds;                   /* [count], never falling           */
    const uint64_t *bytes[MEMORY_PLOT_CURVES]; /* [count] each; NULL: no such curve */
};
int memory_plot(const struct memory_plot_request *request, struct err *err);

/* ---------------------------------------------------------------------------------- upscale */

/* The picture resampled to (canvas_w, canvas_h) by separable Lanczos-3, as a function from
 * rectangle to pixels: the enlarged picture is never stored, and a pixel is the same bits through
 * whatever rectangle it is asked for.  Outside the canvas the edge is mirrored.  A canvas smaller
 * than the draft (at most 256 times a side) is averaged, not aliased.  The pixels of `source` are
 * borrowed until upscale_close. */
struct upscale;
int  upscale_open(struct upscale **out, const struct image *source, int32_t canvas_w_px,
                  int32_t canvas_h_px, struct err *err);
void upscale_close(struct upscale *upscale);
/* Fill rgb_out [h, w, 3] with values 0..1 (clamped).  Works in parallel, allocates nothing (each
 * thread takes 100 KiB of stack) and may be called from several threads at once. */
void upscale_rect(const struct upscale *upscale, int32_t x, int32_t y, int32_t w, int32_t h,
                  float *rgb_out);

/* ---------------------------------------------------------------------------------- bigtiff */

enum tiff_codec { TIFF_NONE, TIFF_LZW, TIFF_DEFLATE, TIFF_ZSTD };

struct bigtiff_request {
    const char     *path; /* final name; bytes go to path.part until finished */
    int32_t         w, h;
    int             bits; /* 8 or 16 */
    enum tiff_codec codec;
    int             level;         /* of deflate (1..12) or zstd (1..19); 0: default */
    double          dpi;           /* resolution tags, pixels per inch */
    bool            pyramid;       /* halved levels as SubIFDs */
    const char     *prompt;        /* UTF-8 or NULL */
    const char     *settings_json; /* what made the picture, or NULL: no metadata at all */
    const char     *software;      /* "mural 0.1.0" */
};

/* A tiled BigTIFF, written top to bottom in bands.  The same request and samples give the same
 * bytes, whatever the day and the number of threads.  Its own memory is taken at open: 40 bytes per
 * tile of the file, and 3 to 7 MB a thread, at most 16 threads (zstd above level 9: 40 MB).
 * Calls come from one thread at a time, and use as many as OpenMP grants it, at most those that
 * there were at open. */
struct bigtiff;
enum { BIGTIFF_TILE_PX = 512 };

int bigtiff_open(struct bigtiff **out, const struct bigtiff_request *request, struct err *err);
/* Hand over the next `rows` rows: BIGTIFF_TILE_PX, or what is left at the bottom.
 * `samples`: [rows, w, 3], uint8_t or uint16_t as `bits` says.  Tiles are compressed in parallel.
 * After a failure only bigtiff_close is left to call. */
int bigtiff_write_band(struct bigtiff *tiff, const void *samples, int32_t rows, struct err *err);
/* Write directory and pyramid, fsync and read back: directories, every tile's place, the pixels of
 * a sample of tiles.  The file is then whole, and still called path.part.  Its size, and its hash
 * as hash64_file has it. */
int bigtiff_complete(struct bigtiff *tiff, uint64_t *bytes_out, uint64_t *hash_out,
                     struct err *err);
/* Rename a complete file to its final name and fsync its folder. */
int bigtiff_publish(struct bigtiff *tiff, struct err *err);
/* An unpublished .part file is removed.  NULL is fine. */
void bigtiff_close(struct bigtiff *tiff);

/* Bytes on disk that the file may need at worst. */
uint64_t bigtiff_bytes_worst(const struct bigtiff_request *request);

/* What is written in a poster or draft of ours: TIFF or PNG.  A picture of others has size and
 * depth but no words.  Strings are heap, freed by picture_info_close. */
struct picture_info {
    int32_t  w, h;
    int      bits;
    char     format[16]; /* "BigTIFF", "TIFF", "PNG" */
    char     codec[16];
    double   dpi;           /* 0 when the file does not say */
    bool     has_icc;       /* an embedded profile; PNG's sRGB mark is none */
    uint32_t levels;        /* 1 without a pyramid */
    char    *settings_json; /* NULL when absent */
    char    *prompt;        /* NULL when absent */
};
int  picture_info_read(struct picture_info *out, const char *path, struct err *err);
void picture_info_close(struct picture_info *info);

#endif
