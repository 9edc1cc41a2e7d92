/*
 * sheet.c - several drafts side by side on one white sheet, in reading order.
 */
#include "render/render_int.h"

#include <string.h>

enum { GAP_PX = 16 };

int sheet_make(struct image *out, const struct image *drafts, uint32_t count, struct err *err)
{
    int          rc = ERR_OK;
    int32_t      cols = 1, rows, w = drafts[0].w, h = drafts[0].h;
    struct image sheet = {0};
    size_t       samples;

    while (cols * cols < (int32_t)count)
        cols++;
    rows = ((int32_t)count + cols - 1) / cols;
    sheet.w = cols * (w + GAP_PX) + GAP_PX;
    sheet.h = rows * (h + GAP_PX) + GAP_PX;
    samples = (size_t)sheet.w * (size_t)sheet.h * 3;
    TRY(os_alloc((void **)&sheet.rgb, samples, sizeof *sheet.rgb, "the contact sheet", err));
    memset(sheet.rgb, 0xFF, samples * sizeof *sheet.rgb);
    for (int32_t i = 0; i < (int32_t)count; i++) {
        int32_t x = GAP_PX + i % cols * (w + GAP_PX), y = GAP_PX + i / cols * (h + GAP_PX);
        must(drafts[i].w == w && drafts[i].h == h);
        for (int32_t line = 0; line < h; line++)
            memcpy(sheet.rgb + ((size_t)(y + line) * (size_t)sheet.w + (size_t)x) * 3,
                   drafts[i].rgb + (size_t)line * (size_t)w * 3, (size_t)w * 3 * sizeof *sheet.rgb);
    }
    *out = sheet;
out:
    return rc;
}
