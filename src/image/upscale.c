/*
 * upscale.c - the draft at the size of the poster, as a function from rectangle to pixels.
 *
 * Owns the resampling rule; stores no enlarged pixel.  Along each axis the centre of canvas pixel x
 * lies at the draft's coordinate
 *
 *     ((2 x + 1) draft - canvas) / (2 canvas)
 *
 * which whole numbers split exactly into a base and a fraction.  From these two alone come the
 * taps: 6 of Lanczos-3, or more when the draft is larger than the canvas and the kernel widens to
 * average.  Outside, both the canvas and the draft are mirrored about their edge.
 *
 * Invariant: a pixel is the same bits through whatever rectangle it is asked for.  Its taps depend
 * on its own place only, and its sums run in one order: down the columns first, then along the row.
 *
 * Down first, because a rectangle of a much enlarged draft needs few of the draft's columns.  Work
 * is cut into blocks of columns so that all buffers are small and on the stack: nothing is
 * allocated.
 *
 * Read next: image.h for the contract.
 */
#include <math.h>
#include <string.h>

#include "image/image_int.h"

enum {
    LOBES = 3,
    SHRINK_MAX = 256,                  /* 16384 px to 64: the widest a kernel can get     */
    TAPS_MAX = 2 * LOBES * SHRINK_MAX, /* of one pixel along one axis                     */
    SPAN_MAX = 2048,                   /* draft columns under one block; 24 KiB of stack  */
    BLOCK_MAX = 256,                   /* canvas columns in one block                     */
    BLOCK_WEIGHTS_MAX = 8192,          /* 32 KiB of stack                                 */
    CHUNK_ROWS = 128                   /* rows that share a block's weights               */
};

struct axis {
    int64_t source, canvas;
    int64_t half;    /* taps to either side of the centre       */
    double  stretch; /* of the kernel, in draft pixels, >= 1    */
};

struct upscale {
    const uint16_t *rgb;
    struct axis     x, y;
};

struct block {
    int32_t        x, w;
    const int64_t *starts;  /* [w] draft column of the first tap      */
    const float   *weights; /* [w, 2 * half]                          */
    int64_t        low;     /* draft columns [low, low + span) needed */
    int64_t        span;
};

/* Whole-sample-period mirroring: ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ... */
static int64_t mirror(int64_t at, int64_t size)
{
    const int64_t period = 2 * size;
    int64_t       place = at % period;

    if (place < 0) place += period;
    return place < size ? place : period - 1 - place;
}

static double lanczos(double x)
{
    const double pi = 3.14159265358979323846;

    if (fabs(x) >= LOBES) return 0;
    if (fabs(x) < 1e-9) return 1;
    return LOBES * sin(pi * x) * sin(pi * x / LOBES) / (pi * pi * x * x);
}

static struct axis make_axis(int32_t source, int32_t canvas)
{
    struct axis axis = {.source = source, .canvas = canvas, .stretch = 1};

    if (source > canvas) axis.stretch = (double)source / canvas;
    axis.half = (int64_t)ceil(LOBES * axis.stretch);
    return axis;
}

/* Fills 2 * half weights whose sum is `total` and returns the draft coordinate of the first; it may
 * lie outside the draft. */
static int64_t make_taps(const struct axis *axis, int64_t at, double total, float *weights)
{
    const int64_t place = (2 * mirror(at, axis->canvas) + 1) * axis->source - axis->canvas;
    const int64_t unit = 2 * axis->canvas, count = 2 * axis->half;
    const int64_t base = place >= 0 ? place / unit : -((-place + unit - 1) / unit);
    const double  fraction = (double)(place - base * unit) / (double)unit;
    double        exact[TAPS_MAX], sum = 0;

    for (int64_t i = 0; i < count; i++) {
        exact[i] = lanczos(((double)(i + 1 - axis->half) - fraction) / axis->stretch);
        sum += exact[i];
    }
    for (int64_t i = 0; i < count; i++)
        weights[i] = (float)(exact[i] * (total / sum));
    return base + 1 - axis->half;
}

int upscale_open(struct upscale **out, const struct image *source, int32_t canvas_w_px,
                 int32_t canvas_h_px, struct err *err)
{
    int             rc = ERR_OK;
    void           *memory = NULL;
    struct upscale *upscale;

    must(source->rgb != NULL && source->w > 0 && source->h > 0);
    if (canvas_w_px < 1 || canvas_h_px < 1 || source->w / canvas_w_px >= SHRINK_MAX + 1 ||
        source->h / canvas_h_px >= SHRINK_MAX + 1)
        RAISE(err, ERR_USAGE, 0, "a draft of %d x %d px cannot become a canvas of %d x %d px",
              source->w, source->h, canvas_w_px, canvas_h_px);
    TRY(os_alloc(&memory, 1, sizeof *upscale, "the enlarged draft", err));
    upscale = memory;
    upscale->rgb = source->rgb;
    upscale->x = make_axis(source->w, canvas_w_px);
    upscale->y = make_axis(source->h, canvas_h_px);
    *out = upscale;
out:
    return rc;
}

void upscale_close(struct upscale *upscale)
{
    os_free(upscale);
}

/* Canvas columns in a block, so that its draft columns and its weights fit their buffers. */
static int32_t block_width(const struct axis *axis)
{
    const int64_t taps = 2 * axis->half;
    const int64_t by_span = (int64_t)((double)(SPAN_MAX - taps - 2) / axis->stretch);
    const int64_t by_weights = BLOCK_WEIGHTS_MAX / taps;

    return (int32_t)max_i64(1, min_i64(BLOCK_MAX, min_i64(by_span, by_weights)));
}

/* One row of the draft's columns under a block, filtered down the rows: [span, 3]. */
static void filter_down(const struct upscale *upscale, const struct block *block, int64_t y,
                        float *columns)
{
    float         weights[TAPS_MAX];
    const int64_t start = make_taps(&upscale->y, y, 1.0 / 65535.0, weights);
    const int64_t w = upscale->x.source, inner = max_i64(block->low, 0);
    const int64_t inner_end = min_i64(block->low + block->span, w);

    memset(columns, 0, (size_t)block->span * 3 * sizeof *columns);
    for (int64_t tap = 0; tap < 2 * upscale->y.half; tap++) {
        const uint16_t *row = upscale->rgb + mirror(start + tap, upscale->y.source) * w * 3;
        const float     weight = weights[tap];
        float          *sums = columns + (inner - block->low) * 3;
        const uint16_t *samples = row + inner * 3;
        for (int64_t i = 0; i < (inner_end - inner) * 3; i++)
            sums[i] += weight * (float)samples[i];
    }
    /* Columns beyond the draft's edge are mirror images of columns within. */
    for (int64_t i = 0; i < block->span; i++) {
        const int64_t column = block->low + i;
        if (column >= 0 && column < w) continue;
        float sums[3] = {0, 0, 0};
        for (int64_t tap = 0; tap < 2 * upscale->y.half; tap++) {
            const uint16_t *row = upscale->rgb + mirror(start + tap, upscale->y.source) * w * 3;
            for (int c = 0; c < 3; c++)
                sums[c] += weights[tap] * (float)row[mirror(column, w) * 3 + c];
        }
        memcpy(columns + 3 * i, sums, sizeof sums);
    }
}

static float clamp(float value)
{
    return value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
}

static void filter_along(const struct block *block, int64_t taps, const float *columns, float *row)
{
    for (int32_t x = 0; x < block->w; x++) {
        const float *weights = block->weights + x * taps;
        const float *at = columns + (block->starts[x] - block->low) * 3;
        float        r = 0, g = 0, b = 0;
        for (int64_t tap = 0; tap < taps; tap++) {
            r += weights[tap] * at[3 * tap];
            g += weights[tap] * at[3 * tap + 1];
            b += weights[tap] * at[3 * tap + 2];
        }
        row[3 * x] = clamp(r);
        row[3 * x + 1] = clamp(g);
        row[3 * x + 2] = clamp(b);
    }
}

/* `rgb` is where canvas pixel (x, y) goes, in rows of `stride` floats. */
static void fill_block(const struct upscale *upscale, int32_t x, int32_t w, int32_t y, int32_t rows,
                       float *rgb, size_t stride)
{
    const int64_t taps = 2 * upscale->x.half;
    int64_t       starts[BLOCK_MAX];
    float         weights[BLOCK_WEIGHTS_MAX], columns[SPAN_MAX * 3];
    struct block  block = {.x = x, .w = w, .starts = starts, .weights = weights, .low = INT64_MAX};
    int64_t       high = INT64_MIN;

    must(w <= BLOCK_MAX && w * taps <= BLOCK_WEIGHTS_MAX);
    for (int32_t i = 0; i < w; i++) {
        starts[i] = make_taps(&upscale->x, (int64_t)x + i, 1.0, weights + i * taps);
        block.low = min_i64(block.low, starts[i]);
        high = max_i64(high, starts[i] + taps);
    }
    block.span = high - block.low;
    must(block.span <= SPAN_MAX);
    for (int32_t i = 0; i < rows; i++) {
        filter_down(upscale, &block, (int64_t)y + i, columns);
        filter_along(&block, taps, columns, rgb + (size_t)i * stride);
    }
}

void upscale_rect(const struct upscale *upscale, int32_t x, int32_t y, int32_t w, int32_t h,
                  float *rgb_out)
{
    const int32_t step = block_width(&upscale->x);
    const int32_t blocks = (int32_t)ceil_div_i64(w, step);
    const int32_t chunks = (int32_t)ceil_div_i64(h, CHUNK_ROWS);

    must(w > 0 && h > 0);
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (int32_t chunk = 0; chunk < chunks; chunk++) {
        for (int32_t block = 0; block < blocks; block++) {
            const int32_t left = block * step, top = chunk * CHUNK_ROWS;
            fill_block(upscale, x + left, (int32_t)min_i64(step, w - left), y + top,
                       (int32_t)min_i64(CHUNK_ROWS, h - top),
                       rgb_out + ((size_t)top * (size_t)w + (size_t)left) * 3, 3 * (size_t)w);
        }
    }
}
