/*
 * vae_maps.c - where the VAE's whole maps lie.
 *
 * Owns the plan of `main`, the one region for them.  Must not know what is computed.
 *
 * One map is whole at any time: x, at the end of `main`.  The result y of a layer takes its place
 * while x is read row by row:
 *
 *     as many bytes     |              y y y y x x x x x x|    over x
 *
 *     more              |              . . . . x x x x x x|    both end at the same place, and so
 *                       |  y y y y y y y . . . x x x x x x|    y never overtakes x
 *
 *     fewer             |              y y . . x x x x x x|    from x's begin,
 *                       |                        y y y y y|    and to the end when it is whole
 *
 * What is free in front of x and y holds the middle's maps, or what a resnet has between its
 * convolutions.
 *
 * Read next: vae_strips.c.
 */
#include "engine/vae_int.h"

uint64_t vae_maps_bytes(enum dtype act, int64_t rows, int64_t channels)
{
    return (uint64_t)round_up_i64(rows * channels * dtype_bytes(act), 64);
}

/* Needed: the result of every layer, and the middle's maps.  Better whole: enlarged maps, and what
 * a resnet has between its convolutions, up to the budget. */
uint64_t vae_maps_total(const struct vae *vae, enum dtype act, const struct vae_coder *coder,
                        int64_t rows)
{
    uint64_t need = vae_maps_bytes(act, rows, coder->conv_in.w.rows), wish = need;

    for (int64_t i = 0; i < coder->stage_count; i++) {
        const struct vae_stage *stage = &coder->stages[i];

        for (int64_t n = 0; n < stage->resnet_count; n++) {
            uint64_t from = vae_maps_bytes(act, rows, stage->resnets[n].from);
            uint64_t to = vae_maps_bytes(act, rows, stage->resnets[n].to);
            uint64_t middle = stage->attends ? VAE_MAPS_ATTENTION * to : 0;
            uint64_t both = to + (from > to ? from : to);

            if (need < to + middle) need = to + middle;
            if (wish < both) wish = both;
        }
        if (stage->resize == VAE_HALVE) rows /= 4;
        if (stage->resize == VAE_DOUBLE) rows *= 4;
    }
    if (wish > vae->budget.keep_bytes) wish = vae->budget.keep_bytes / 64 * 64;
    return need > wish ? need : wish;
}

struct matrix vae_maps_at_end(const struct vae_pass *pass, int64_t rows, int64_t channels)
{
    /* Not rounded: a few bytes more in front of x than of y, and y would overtake. */
    uint64_t bytes = (uint64_t)(rows * channels) * dtype_bytes(pass->act);

    must(bytes <= pass->main_bytes);
    return (struct matrix){pass->main + (pass->main_bytes - bytes), pass->act, rows, channels,
                           channels};
}

const char *vae_maps_data_end(struct matrix m)
{
    must(m.ld == m.cols);
    return (const char *)m.data + (size_t)m.rows * (size_t)m.cols * dtype_bytes(m.dtype);
}

struct matrix vae_maps_over_x(const struct vae_pass *pass, int64_t rows, int64_t channels)
{
    struct matrix y = vae_maps_at_end(pass, rows, channels);

    if ((char *)y.data > (char *)pass->x.data) y.data = pass->x.data;
    return y;
}

void vae_maps_check_order(const struct vae_pass *pass, struct matrix written, int32_t next_row)
{
    struct matrix unread = matrix_rows(pass->x, (int64_t)next_row * pass->w, 0);

    must(next_row >= pass->h || vae_maps_data_end(written) <= (const char *)unread.data);
}

/* From the last row on, through `bounce`, because places may overlap. */
void vae_maps_settle(struct vae_pass *pass, struct matrix y, int32_t h, int32_t w,
                     struct matrix bounce)
{
    int64_t       rows = bounce.rows;
    struct matrix target = vae_maps_at_end(pass, y.rows, y.cols);

    must(bounce.cols == y.cols && rows > 0);
    for (int64_t end = y.rows; target.data != y.data && end > 0; end -= rows) {
        int64_t       first = max_i64(0, end - rows);
        struct matrix part = matrix_rows(bounce, 0, end - first);

        backend_copy(pass->backend, part, matrix_rows(y, first, end - first));
        backend_copy(pass->backend, matrix_rows(target, first, end - first), part);
    }
    pass->x = target;
    pass->h = h;
    pass->w = w;
}
