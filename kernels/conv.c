/*
 * conv.c - 3x3 and 1x1 convolutions of channels-last maps, of enlarged maps too.
 *
 * A map is convolved in tiles.  The input of each tile is copied into the workspace with its halo:
 * the copy adds the padding (so the library sees none, and only a few shapes), converts the type,
 * and fills few channels up to a multiple of 16, which keeps the library on its fast code for every
 * processor.  Against nine multiplications per value and output channel one copy is small
 * (test_conv --bench).
 *
 *     tile of x, halo and padding included  -> workspace, dense, compute type
 *     weights                               -> workspace, in the order the primitive asked for
 *     convolution                           -> y directly when full rows of it are dense, else
 *                                              workspace, then y
 *
 * What a row of y becomes does not depend on how many rows are asked for in one call: whoever
 * convolves a map in strips relies on it.  So even 1x1 convolutions stay here: gemm.c chooses its
 * sums by the number of rows.
 *
 * Enlarging.  Behind pixels that were repeated, the three taps of a kernel's row meet two pixels of
 * the source only, and which two depends on whether the result's row is even or odd:
 *
 *     source    ... r-1   r-1 |  r     r  |  r+1   r+1 ...
 *     even row         [ t0     t1    t2 ]                    t0 on r-1,      t1 + t2 on r
 *     odd row                 [ t0    t1     t2 ]             t0 + t1 on r,   t2 on r+1
 *
 * Columns alike.  So the result's four phases are four 2x2 convolutions of the source, with 16 taps
 * for every 36, and the enlarged map is never made.
 *
 * Read next: onednn.h.
 */
#include <stdlib.h>

#include "kernels/kernels_int.h"
#include "kernels/onednn.h"

enum { CHANNEL_STEP = 16 };

struct plan {
    const struct conv_request *request;
    enum dtype compute;
    int64_t    in_channels, out_channels; /* padded */
    int64_t    size;                      /* of the kernel that is run: 2 for a phase */
    int64_t    top, left;                 /* where in x it lies for the first result */
    int64_t    out_h, out_w;              /* results; of a phase its own only */
    int64_t    step, shift_h, shift_w;    /* result (r, c) is y's (step r + shift_h, ...) */
    int64_t    tile_h, tile_w;            /* of output */
    bool       y_direct;
    void      *x, *y, *w, *bias;          /* workspace */
    void      *ordered;                   /* w as the primitive wants it */
    int64_t    ready_h, ready_w;          /* tile size that it was ordered for */
};

static int64_t in_span(const struct plan *plan, int64_t out_span)
{
    return (out_span - 1) * plan->request->stride + plan->size;
}

/* The library pads its own orders of weights to blocks of up to 64 channels. */
static uint64_t ordered_bytes(const struct plan *plan)
{
    return (uint64_t)(round_up_i64(plan->in_channels, 64) * round_up_i64(plan->out_channels, 64)) *
           (uint64_t)(plan->size * plan->size) * dtype_bytes(plan->compute);
}

/* ------------------------------------------------------------------------------------ copies */

/* One row of a tile's input: columns [first, first + cols) of map row `row`, zero outside. */
static void stage_row(void *target, const struct plan *plan, int64_t row, int64_t first,
                      int64_t cols)
{
    const struct conv_request *r = plan->request;
    const size_t  cell = (size_t)plan->in_channels * dtype_bytes(plan->compute);
    const size_t  used = (size_t)r->x.cols * dtype_bytes(plan->compute);
    const int64_t left = min_i64(cols, max_i64(0, -first));
    const bool    inside = row >= 0 && row < r->in_h;
    const int64_t end = inside ? max_i64(left, min_i64(cols, r->in_w - first)) : left;

    memset(target, 0, (size_t)left * cell);
    if (r->x.cols == plan->in_channels && r->x.ld == r->x.cols && end > left) {
        cast_elements((char *)target + (size_t)left * cell, plan->compute,
                      row_of(r->x, row * r->in_w + first + left), r->x.dtype,
                      (end - left) * r->x.cols);
    } else {
        for (int64_t col = left; col < end; col++) {
            char *at = (char *)target + (size_t)col * cell;
            cast_elements(at, plan->compute, row_of(r->x, row * r->in_w + first + col), r->x.dtype,
                          r->x.cols);
            memset(at + used, 0, cell - used);
        }
    }
    memset((char *)target + (size_t)end * cell, 0, (size_t)(cols - end) * cell);
}

static void stage_tile(const struct plan *plan, int64_t top, int64_t left, int64_t rows,
                       int64_t cols)
{
    const size_t row_bytes = (size_t)(cols * plan->in_channels) * dtype_bytes(plan->compute);

#pragma omp parallel for schedule(static) if (rows * cols * plan->in_channels > 16384)
    for (int64_t row = 0; row < rows; row++)
        stage_row((char *)plan->x + (size_t)row * row_bytes, plan, top + row, left, cols);
}

/* Results of a tile from the workspace to their place in y. */
static void unstage_tile(const struct plan *plan, int64_t top, int64_t left, int64_t rows,
                         int64_t cols)
{
    const struct matrix y = plan->request->y;
    const int64_t       step = plan->step, y_w = plan->out_w * step;

#pragma omp parallel for schedule(static) if (rows * cols * y.cols > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const float  *source = (const float *)plan->y + row * cols * plan->out_channels;
        const int64_t first =
            (step * (top + row) + plan->shift_h) * y_w + step * left + plan->shift_w;
        for (int64_t col = 0; col < cols; col++)
            cast_elements(row_of(y, first + step * col), y.dtype,
                          source + col * plan->out_channels, DTYPE_F32, y.cols);
    }
}

/* Kernels of one phase, 2x2, from 3x3 ones: taps that meet the same pixel are added, in f32. */
static void merge_taps(const struct plan *plan, void *target, const void *source,
                       enum dtype source_dtype, int64_t kernels)
{
    enum { BATCH = 64 };
    const uint32_t bytes = dtype_bytes(plan->compute), source_bytes = dtype_bytes(source_dtype);
    float          nine[9 * BATCH], four[4 * BATCH];

    for (int64_t first = 0; first < kernels; first += BATCH) {
        const int64_t count = min_i64(BATCH, kernels - first);
        cast_elements(nine, DTYPE_F32, (const char *)source + (size_t)(first * 9) * source_bytes,
                      source_dtype, count * 9);
        for (int64_t k = 0; k < count; k++) {
            float wide[3][2]; /* columns merged */
            for (int64_t row = 0; row < 3; row++) {
                const float *t = nine + 9 * k + 3 * row;
                wide[row][0] = plan->shift_w ? t[0] + t[1] : t[0];
                wide[row][1] = plan->shift_w ? t[2] : t[1] + t[2];
            }
            for (int64_t col = 0; col < 2; col++) {
                const float upper = wide[0][col], middle = wide[1][col], lower = wide[2][col];
                four[4 * k + col] = plan->shift_h ? upper + middle : upper;
                four[4 * k + 2 + col] = plan->shift_h ? lower : middle + lower;
            }
        }
        cast_elements((char *)target + (size_t)(first * 4) * bytes, plan->compute, four, DTYPE_F32,
                      count * 4);
    }
}

/* Weights in the compute type with padded channels, [out, in, size, size]. */
static void stage_weights(const struct plan *plan, void *target)
{
    const struct matrix w = plan->request->w;
    const int64_t       in = plan->request->x.cols, area = plan->size * plan->size;
    const size_t        row_bytes =
        (size_t)(area * plan->in_channels) * dtype_bytes(plan->compute);
    const size_t used = (size_t)(area * in) * dtype_bytes(plan->compute);

#pragma omp parallel for schedule(static) if (w.rows * w.cols > 16384)
    for (int64_t row = 0; row < plan->out_channels; row++) {
        char  *at = (char *)target + (size_t)row * row_bytes;
        size_t filled = row < w.rows ? used : 0;
        if (filled && plan->request->enlarge)
            merge_taps(plan, at, row_of(w, row), w.dtype, in);
        else if (filled)
            cast_elements(at, plan->compute, row_of(w, row), w.dtype, w.cols);
        memset(at + filled, 0, row_bytes - filled);
    }
}

/* ------------------------------------------------------------------------------------- tiles */

static struct onednn_shape map_shape(enum dtype dtype, int64_t channels, int64_t h, int64_t w,
                                     int64_t ld)
{
    return (struct onednn_shape){4, {1, channels, h, w}, {h * w * ld, 1, w * ld, ld}, dtype, false};
}

static struct onednn_product tile_product(const struct plan *plan, int64_t h, int64_t w)
{
    const struct conv_request *r = plan->request;
    const int64_t out = plan->out_channels, in = plan->in_channels, size = plan->size;
    const enum dtype y_dtype = plan->y_direct ? r->y.dtype : DTYPE_F32;
    struct onednn_product job = {
        .src = map_shape(plan->compute, in, in_span(plan, h), in_span(plan, w), in),
        .weights = {4, {out, in, size, size}, {0}, plan->compute, true},
        .dst = map_shape(y_dtype, out, h, w, out),
        .bias = {1, {out}, {1}, DTYPE_F32, false},
        .after = ONEDNN_PLAIN,
        .strides = {r->stride, r->stride},
    };
    return job;
}

/* Put the weights in the order that `primitive` wants, unless they are. */
static int order_weights(struct plan *plan, const struct onednn *onednn, dnnl_memory_t target,
                         onednn_desc_view target_desc)
{
    const int64_t out = plan->out_channels, in = plan->in_channels, size = plan->size;
    const struct onednn_shape plain = {4,
                                       {out, in, size, size},
                                       {in * size * size, size * size, size, 1},
                                       plan->compute,
                                       false};
    dnnl_memory_t source = NULL;
    onednn_desc   source_desc = {0};

    int rc = onednn_desc_open(&source_desc, &plain);
    if (!rc) rc = onednn_memory(&source, onednn, &plain, plan->w);
    if (!rc) rc = onednn_reorder(onednn, target, target_desc, source, ONEDNN_VIEW(source_desc));
    if (source) dnnl_memory_destroy(source);
    onednn_desc_close(&source_desc);
    return rc;
}

static int conv_tile(struct plan *plan, const struct onednn *onednn, int64_t top, int64_t left,
                     int64_t h, int64_t w)
{
    const struct conv_request  *r = plan->request;
    const struct onednn_product job = tile_product(plan, h, w);
    struct onednn_operands      operands = {0};
    dnnl_primitive_t            primitive = NULL;
    void *y = plan->y_direct ? row_of(r->y, top * plan->out_w) : plan->y;

    stage_tile(plan, plan->top + top * r->stride, plan->left + left * r->stride, in_span(plan, h),
               in_span(plan, w));
    int rc = onednn_product_open(&primitive, onednn, &job);
    if (rc) return rc;
    onednn_desc_view wanted = onednn_weights_desc(primitive);
    must(dnnl_memory_desc_get_size(wanted) <= ordered_bytes(plan));
    rc = (int)dnnl_memory_create(&operands.weights, wanted, onednn->engine, plan->ordered);
    if (!rc && (plan->ready_h != h || plan->ready_w != w)) {
        rc = order_weights(plan, onednn, operands.weights, wanted);
        plan->ready_h = h;
        plan->ready_w = w;
    }
    if (!rc) rc = onednn_memory(&operands.src, onednn, &job.src, plan->x);
    if (!rc) rc = onednn_memory(&operands.dst, onednn, &job.dst, y);
    if (!rc) rc = onednn_memory(&operands.bias, onednn, &job.bias, plan->bias);
    if (!rc) rc = onednn_execute(onednn, primitive, &operands);
    if (!rc && !plan->y_direct) unstage_tile(plan, top, left, h, w);
    onednn_operands_close(&operands);
    dnnl_primitive_destroy(primitive);
    return rc;
}

/* ----------------------------------------------------------------------------- the whole call */

static uint64_t tile_x_bytes(const struct plan *plan)
{
    return (uint64_t)(in_span(plan, plan->tile_h) * in_span(plan, plan->tile_w)) *
           (uint64_t)plan->in_channels * dtype_bytes(plan->compute);
}

/* The largest tile whose input and output fit: full rows when one fits, else part of one. */
static void plan_tiles(struct plan *plan, uint64_t bytes)
{
    const struct conv_request *r = plan->request;
    const uint64_t y_cell = (uint64_t)plan->out_channels * sizeof(float);

    plan->y_direct = r->y.cols == plan->out_channels && r->y.ld == r->y.cols && plan->step == 1 &&
                     (r->y.dtype == plan->compute || r->y.dtype == DTYPE_F32);
    plan->tile_h = plan->out_h;
    plan->tile_w = plan->out_w;
    for (;;) {
        uint64_t y_bytes = plan->y_direct ? 0 : (uint64_t)(plan->tile_h * plan->tile_w) * y_cell;
        if (tile_x_bytes(plan) + y_bytes + 128 <= bytes) break; /* 128: two alignments */
        must(plan->tile_h > 1 || plan->tile_w > 1);
        if (plan->tile_h > 1) {
            plan->tile_h = (plan->tile_h + 1) / 2;
        } else {
            plan->tile_w = (plan->tile_w + 1) / 2;
            plan->y_direct = false;
        }
    }
}

/* Weights and bias into the workspace, the rest of it to tiles. */
static void plan_workspace(struct plan *plan, struct workspace workspace)
{
    const struct conv_request *r = plan->request;
    const size_t   bias_bytes = (size_t)plan->out_channels * sizeof(float);
    const uint64_t w_elements = (uint64_t)(plan->in_channels * plan->out_channels) *
                                (uint64_t)(plan->size * plan->size);

    plan->w = workspace_take(&workspace, w_elements * dtype_bytes(plan->compute));
    plan->ordered = workspace_take(&workspace, ordered_bytes(plan));
    plan->bias = workspace_take(&workspace, bias_bytes);
    memset(plan->bias, 0, bias_bytes);
    if (r->bias) memcpy(plan->bias, r->bias, (size_t)r->y.cols * sizeof(float));
    stage_weights(plan, plan->w);
    plan_tiles(plan, workspace.bytes);
    plan->x = workspace_take(&workspace, tile_x_bytes(plan));
    plan->y = workspace.data;
}

static int conv_map(struct plan *plan, const struct onednn *onednn, struct workspace workspace)
{
    int rc = 0;

    plan_workspace(plan, workspace);
    for (int64_t top = 0; top < plan->out_h && !rc; top += plan->tile_h)
        for (int64_t left = 0; left < plan->out_w && !rc; left += plan->tile_w)
            rc = conv_tile(plan, onednn, top, left, min_i64(plan->tile_h, plan->out_h - top),
                           min_i64(plan->tile_w, plan->out_w - left));
    return rc;
}

static struct plan plain_plan(const struct conv_request *r)
{
    return (struct plan){
        .size = r->size,
        .top = -r->pad_top,
        .left = -r->pad_left,
        .out_h = (r->in_h + r->pad_top + r->pad_bottom - r->size) / r->stride + 1,
        .out_w = (r->in_w + r->pad_left + r->pad_right - r->size) / r->stride + 1,
        .step = 1,
    };
}

/* The results at odd (1) or even (0) rows and columns. */
static struct plan phase_plan(const struct conv_request *r, int64_t shift_h, int64_t shift_w)
{
    /* Rows of x that only lend their pixels to the rows beside them. */
    const int64_t above = r->pad_top < 0, below = r->pad_bottom < 0;

    return (struct plan){
        .size = 2,
        .top = above - 1 + shift_h,
        .left = shift_w - 1,
        .out_h = r->in_h - above - below,
        .out_w = r->in_w,
        .step = 2,
        .shift_h = shift_h,
        .shift_w = shift_w,
    };
}

int k_conv2d_cpu(const struct conv_request *request, enum dtype compute,
                 struct workspace workspace)
{
    const struct conv_request *r = request;
    const int     phases = r->enlarge ? 4 : 1;
    struct onednn onednn;

    must(is_act(r->x) && is_act(r->y) && (r->size == 1 || r->size == 3) && r->stride >= 1);
    must(r->x.rows == (int64_t)r->in_h * r->in_w && r->w.rows == r->y.cols);
    must(r->w.cols == r->x.cols * r->size * r->size);
    must(!r->enlarge || (r->size == 3 && r->stride == 1 && abs(r->pad_top) == 1 &&
                         abs(r->pad_bottom) == 1 && r->pad_left == 1 && r->pad_right == 1));

    int rc = onednn_open(&onednn);
    for (int phase = 0; phase < phases && !rc; phase++) {
        struct plan plan = r->enlarge ? phase_plan(r, phase / 2, phase % 2) : plain_plan(r);
        must(r->y.rows == plan.step * plan.step * plan.out_h * plan.out_w);
        plan.request = r;
        plan.compute = compute;
        plan.in_channels = round_up_i64(r->x.cols, CHANNEL_STEP);
        plan.out_channels = round_up_i64(r->y.cols, CHANNEL_STEP);
        rc = conv_map(&plan, &onednn, workspace);
    }
    onednn_close(&onednn);
    return rc;
}
