/*
 * memory_plot.c - memory over time as a picture: curves, axes, words, 1200 x 600 pixels.
 *
 * Owns the drawing and a font of 5 x 7 dots.  Knows nothing of arenas: numbers come in, a PNG goes
 * out.  Curves are steps: a number holds from its time on, until the next.
 *
 * Read next: png.c, which writes it.
 */
#include "image/image.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    LEFT = 110, /* of the plot's inside */
    RIGHT = MEMORY_PLOT_W - 30,
    TOP = 60,
    BOTTOM = MEMORY_PLOT_H - 60,
    GLYPH_W = 5,
    GLYPH_H = 7,
    SCALE = 2, /* pixels a dot */
    ADVANCE = (GLYPH_W + 1) * SCALE
};

struct colour {
    uint8_t r, g, b;
};
static const struct colour WHITE = {255, 255, 255}, INK = {40, 40, 40}, GRID = {225, 225, 225};
/* Told apart also by those who see red and green alike. */
static const struct colour curve_colours[MEMORY_PLOT_CURVES] = {
    [MEMORY_PLOT_LIVE] = {0, 114, 178},
    [MEMORY_PLOT_PLACED] = {230, 159, 0},
    [MEMORY_PLOT_MAPPED] = {0, 158, 115},
    [MEMORY_PLOT_DEVICE] = {120, 120, 120}};
static const char *const curve_names[MEMORY_PLOT_CURVES] = {[MEMORY_PLOT_LIVE] = "live",
                                                            [MEMORY_PLOT_PLACED] = "placed",
                                                            [MEMORY_PLOT_MAPPED] = "mapped",
                                                            [MEMORY_PLOT_DEVICE] = "device"};

/* -------------------------------------------------------------------------------------- font */

/* Columns of dots, the lowest bit on top; all that labels and usual titles need. */
static const struct {
    char    letter;
    uint8_t columns[GLYPH_W];
} glyphs[] = {{'0', {0x3E, 0x51, 0x49, 0x45, 0x3E}}, {'1', {0x00, 0x42, 0x7F, 0x40, 0x00}},
              {'2', {0x42, 0x61, 0x51, 0x49, 0x46}}, {'3', {0x21, 0x41, 0x45, 0x4B, 0x31}},
              {'4', {0x18, 0x14, 0x12, 0x7F, 0x10}}, {'5', {0x27, 0x45, 0x45, 0x45, 0x39}},
              {'6', {0x3C, 0x4A, 0x49, 0x49, 0x30}}, {'7', {0x01, 0x71, 0x09, 0x05, 0x03}},
              {'8', {0x36, 0x49, 0x49, 0x49, 0x36}}, {'9', {0x06, 0x49, 0x49, 0x29, 0x1E}},
              {'a', {0x20, 0x54, 0x54, 0x54, 0x78}}, {'b', {0x7F, 0x48, 0x44, 0x44, 0x38}},
              {'c', {0x38, 0x44, 0x44, 0x44, 0x20}}, {'d', {0x38, 0x44, 0x44, 0x48, 0x7F}},
              {'e', {0x38, 0x54, 0x54, 0x54, 0x18}}, {'f', {0x08, 0x7E, 0x09, 0x01, 0x02}},
              {'g', {0x0C, 0x52, 0x52, 0x52, 0x3E}}, {'h', {0x7F, 0x08, 0x04, 0x04, 0x78}},
              {'i', {0x00, 0x44, 0x7D, 0x40, 0x00}}, {'j', {0x20, 0x40, 0x44, 0x3D, 0x00}},
              {'k', {0x7F, 0x10, 0x28, 0x44, 0x00}}, {'l', {0x00, 0x41, 0x7F, 0x40, 0x00}},
              {'m', {0x7C, 0x04, 0x18, 0x04, 0x78}}, {'n', {0x7C, 0x08, 0x04, 0x04, 0x78}},
              {'o', {0x38, 0x44, 0x44, 0x44, 0x38}}, {'p', {0x7C, 0x14, 0x14, 0x14, 0x08}},
              {'q', {0x08, 0x14, 0x14, 0x18, 0x7C}}, {'r', {0x7C, 0x08, 0x04, 0x04, 0x08}},
              {'s', {0x48, 0x54, 0x54, 0x54, 0x20}}, {'t', {0x04, 0x3F, 0x44, 0x40, 0x20}},
              {'u', {0x3C, 0x40, 0x40, 0x20, 0x7C}}, {'v', {0x1C, 0x20, 0x40, 0x20, 0x1C}},
              {'w', {0x3C, 0x40, 0x30, 0x40, 0x3C}}, {'x', {0x44, 0x28, 0x10, 0x28, 0x44}},
              {'y', {0x0C, 0x50, 0x50, 0x50, 0x3C}}, {'z', {0x44, 0x64, 0x54, 0x4C, 0x44}},
              {'B', {0x7F, 0x49, 0x49, 0x49, 0x36}}, {'G', {0x3E, 0x41, 0x49, 0x49, 0x7A}},
              {'K', {0x7F, 0x08, 0x14, 0x22, 0x41}}, {'M', {0x7F, 0x02, 0x0C, 0x02, 0x7F}},
              {'P', {0x7F, 0x09, 0x09, 0x09, 0x06}}, {'T', {0x01, 0x01, 0x7F, 0x01, 0x01}},
              {'A', {0x7E, 0x11, 0x11, 0x11, 0x7E}}, {'E', {0x7F, 0x49, 0x49, 0x49, 0x41}},
              {'V', {0x1F, 0x20, 0x40, 0x20, 0x1F}}, {'.', {0x00, 0x60, 0x60, 0x00, 0x00}},
              {',', {0x00, 0x50, 0x30, 0x00, 0x00}}, {':', {0x00, 0x36, 0x36, 0x00, 0x00}},
              {'-', {0x08, 0x08, 0x08, 0x08, 0x08}}, {'%', {0x23, 0x13, 0x08, 0x64, 0x62}},
              {'/', {0x20, 0x10, 0x08, 0x04, 0x02}}, {'(', {0x00, 0x1C, 0x22, 0x41, 0x00}},
              {')', {0x00, 0x41, 0x22, 0x1C, 0x00}}, {' ', {0x00, 0x00, 0x00, 0x00, 0x00}}};

/* A letter without dots of its own: a frame, as typesetters do. */
static const uint8_t *columns_of(char letter)
{
    static const uint8_t unknown[GLYPH_W] = {0x7F, 0x41, 0x41, 0x41, 0x7F};

    for (size_t i = 0; i < ARRAY_COUNT(glyphs); i++)
        if (glyphs[i].letter == letter) return glyphs[i].columns;
    return unknown;
}

/* ----------------------------------------------------------------------------------- drawing */

static void fill(struct image *image, int32_t x0, int32_t y0, int32_t x1, int32_t y1,
                 struct colour colour)
{
    for (int32_t y = y0 < 0 ? 0 : y0; y < y1 && y < image->h; y++) {
        for (int32_t x = x0 < 0 ? 0 : x0; x < x1 && x < image->w; x++) {
            uint16_t *pixel = image->rgb + 3 * ((size_t)y * (size_t)image->w + (size_t)x);
            pixel[0] = (uint16_t)(colour.r * 257);
            pixel[1] = (uint16_t)(colour.g * 257);
            pixel[2] = (uint16_t)(colour.b * 257);
        }
    }
}

static void put_text(struct image *image, int32_t x, int32_t y, const char *text)
{
    for (; *text != '\0' && x + ADVANCE <= image->w; text++, x += ADVANCE) {
        const uint8_t *columns = columns_of(*text);
        for (int32_t dot = 0; dot < GLYPH_W * GLYPH_H; dot++) {
            int32_t column = dot / GLYPH_H, row = dot % GLYPH_H;
            if ((columns[column] >> row & 1) == 0) continue;
            fill(image, x + column * SCALE, y + row * SCALE, x + (column + 1) * SCALE,
                 y + (row + 1) * SCALE, INK);
        }
    }
}

static int32_t text_width(const char *text)
{
    return (int32_t)strlen(text) * ADVANCE;
}

/* The greatest of 1, 2 and 5 times a power of ten that gives at least three marks up to `most`:
 * they are then seven at most. */
static double tick_of(double most)
{
    double              power = pow(10, floor(log10(most))), tick = power / 10;
    static const double factors[] = {0.2, 0.5, 1, 2, 5};

    for (size_t i = 0; i < ARRAY_COUNT(factors); i++)
        if (most / (factors[i] * power) >= 3) tick = factors[i] * power;
    return tick;
}

/* ------------------------------------------------------------------------------------- scales */

struct scales {
    double seconds, bytes; /* of the whole inside, from zero */
};

static int32_t x_of(const struct scales *scales, double seconds)
{
    return LEFT + (int32_t)lround((RIGHT - LEFT) * seconds / scales->seconds);
}

static int32_t y_of(const struct scales *scales, double bytes)
{
    return BOTTOM - (int32_t)lround((BOTTOM - TOP) * bytes / scales->bytes);
}

static struct scales scales_of(const struct memory_plot_request *request)
{
    double   first = request->seconds[0];
    uint64_t most = 1;

    for (int curve = 0; curve < MEMORY_PLOT_CURVES; curve++)
        for (size_t i = 0; request->bytes[curve] != NULL && i < request->count; i++)
            most = max_u64(most, request->bytes[curve][i]);
    double span = request->seconds[request->count - 1] - first;
    return (struct scales){.seconds = span > 1e-6 ? span : 1, .bytes = 1.05 * (double)most};
}

static void draw_axes(struct image *image, const struct scales *scales)
{
    double tick = tick_of(scales->bytes);
    char   label[32];

    for (double at = 0; at <= scales->bytes; at += tick) {
        int32_t y = y_of(scales, at);
        fill(image, LEFT, y, RIGHT, y + 1, GRID);
        (void)text_bytes(label, sizeof label, (uint64_t)at);
        put_text(image, LEFT - 8 - text_width(label), y - GLYPH_H * SCALE / 2, label);
    }
    tick = tick_of(scales->seconds);
    for (double at = 0; at <= scales->seconds; at += tick) {
        int32_t x = x_of(scales, at);
        fill(image, x, TOP, x + 1, BOTTOM, GRID);
        (void)snprintf(label, sizeof label, "%g s", at);
        put_text(image, x - text_width(label) / 2, BOTTOM + 10, label);
    }
    fill(image, LEFT - 1, TOP, LEFT + 1, BOTTOM + 1, INK);
    fill(image, LEFT - 1, BOTTOM - 1, RIGHT, BOTTOM + 1, INK);
}

static void draw_curve(struct image *image, const struct scales *scales,
                       const struct memory_plot_request *request, int curve)
{
    const uint64_t *bytes = request->bytes[curve];
    double          first = request->seconds[0];

    for (size_t i = 0; i < request->count; i++) {
        int32_t x = x_of(scales, request->seconds[i] - first), y = y_of(scales, (double)bytes[i]);
        bool    final = i + 1 == request->count;
        int32_t end = final ? x : x_of(scales, request->seconds[i + 1] - first);
        int32_t next = final ? y : y_of(scales, (double)bytes[i + 1]);

        fill(image, x - 1, y - 1, end + 1, y + 1, curve_colours[curve]);
        fill(image, end - 1, (y < next ? y : next) - 1, end + 1, (y < next ? next : y) + 1,
             curve_colours[curve]);
    }
}

/* Title on the left, names of the curves on the right. */
static void draw_words(struct image *image, const struct memory_plot_request *request)
{
    int32_t x = RIGHT;

    for (int curve = MEMORY_PLOT_CURVES - 1; curve >= 0; curve--) {
        if (request->bytes[curve] == NULL) continue;
        x -= text_width(curve_names[curve]);
        put_text(image, x, 22, curve_names[curve]);
        fill(image, x - 26, 26, x - 6, 32, curve_colours[curve]);
        x -= 46;
    }
    put_text(image, LEFT, 22, request->title);
}

int memory_plot(const struct memory_plot_request *request, struct err *err)
{
    int                rc = ERR_OK;
    struct image       image = {.w = MEMORY_PLOT_W, .h = MEMORY_PLOT_H};
    struct png_request png = {.path = request->path, .bits = 8};
    struct scales      scales;

    must(request->count > 0 && request->title != NULL);
    for (size_t i = 1; i < request->count; i++)
        must(request->seconds[i] >= request->seconds[i - 1]);
    TRY(os_alloc((void **)&image.rgb, (uint64_t)MEMORY_PLOT_W * MEMORY_PLOT_H,
                 3 * sizeof *image.rgb, "a plot", err));
    fill(&image, 0, 0, image.w, image.h, WHITE);
    scales = scales_of(request);
    draw_axes(&image, &scales);
    /* What lies below hides what lies above it: the largest first. */
    for (int curve = MEMORY_PLOT_CURVES - 1; curve >= 0; curve--)
        if (request->bytes[curve] != NULL) draw_curve(&image, &scales, request, curve);
    draw_words(&image, request);
    TRY(png_write(&image, &png, err));
out:
    os_free(image.rgb);
    return rc;
}
