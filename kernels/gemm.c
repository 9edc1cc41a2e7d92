/*
 * gemm.c - linear layers: y = act(x w^T + bias).
 *
 * Weights are views of mapped files in whatever type and at whatever address the file has.  They
 * are converted a block of output columns at a time into the workspace, multiplied by oneDNN and
 * forgotten: memory stays bounded by the workspace, not by the layer.
 *
 *     for each block of w's rows (= columns of y)     converted once
 *         for each block of x's rows                  converted only when x has another type
 *             y block = x block . w block^T           in pieces of one thread each, bias and
 *                                                     activation fused
 *
 * A few rows of x (modulation, pooled vectors) are another matter: there the reading of w is all
 * the work, so w is converted in small pieces and never leaves the first cache.
 *
 * Read next: onednn.h.
 */
#include <omp.h>

#include "kernels/kernels_int.h"
#include "kernels/onednn.h"

/* --------------------------------------------------------------------------------- a few rows */

/* Up to this many rows of x the reading of w is the cost; fewer when w needs no conversion, since
 * then the library reads it only once as well.  Measured in test_gemm --bench. */
enum { FEW_ROWS = 16, FEW_ROWS_READY = 4 };
/* Weight rows are converted in pieces of this many columns, which stay in the first cache. */
enum { PIECE_COLS = 1024 };

KERNEL_CLONES static float dot(const float *x, const float *w, int64_t count)
{
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * w[i];
    return sum;
}

/* sums[m] += x[m] . w for four rows of x: one reading of w, four independent sums. */
KERNEL_CLONES static void dot_four(float sums[4], const float *x, int64_t ld,
                                   const float *w, int64_t count)
{
    const float *x0 = x, *x1 = x + ld, *x2 = x + 2 * ld, *x3 = x + 3 * ld;
    float        s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;

#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < count; i++) {
        s0 += x0[i] * w[i];
        s1 += x1[i] * w[i];
        s2 += x2[i] * w[i];
        s3 += x3[i] * w[i];
    }
    sums[0] += s0;
    sums[1] += s1;
    sums[2] += s2;
    sums[3] += s3;
}

static float act_apply(float value, enum activation act)
{
    switch (act) {
    case ACT_GELU_TANH:
        return fast_gelu_tanh(value);
    case ACT_QUICK_GELU:
        return value * fast_sigmoid(1.702f * value);
    case ACT_SILU:
        return value * fast_sigmoid(value);
    case ACT_NONE:
        break;
    }
    return value;
}

/* Column `n` of y.  `x` is f32 and dense. */
static void few_rows_column(struct matrix y, const float *x, struct matrix w, const float *bias,
                            enum activation act, int64_t n)
{
    float piece[PIECE_COLS], sums[FEW_ROWS] = {0};

    for (int64_t first = 0; first < w.cols; first += PIECE_COLS) {
        int64_t count = min_i64(PIECE_COLS, w.cols - first), m = 0;
        char   *row = (char *)row_of(w, n) + (size_t)first * dtype_bytes(w.dtype);
        cast_elements(piece, DTYPE_F32, row, w.dtype, count);
        for (; m + 4 <= y.rows; m += 4)
            dot_four(sums + m, x + m * w.cols + first, w.cols, piece, count);
        for (; m < y.rows; m++)
            sums[m] += dot(x + m * w.cols + first, piece, count);
    }
    for (int64_t m = 0; m < y.rows; m++)
        act_store(row_of(y, m), y.dtype, n, act_apply(sums[m] + (bias ? bias[n] : 0.0f), act));
}

static void few_rows(struct matrix y, struct matrix x, struct matrix w, const float *bias,
                     enum activation act, struct workspace workspace)
{
    const uint64_t bytes = (uint64_t)(x.rows * x.cols) * sizeof(float);
    struct matrix copy = {workspace_take(&workspace, bytes), DTYPE_F32, x.rows, x.cols, x.cols};

    k_cast_cpu(copy, x);
#pragma omp parallel for schedule(static) if (w.rows * w.cols > 16384)
    for (int64_t n = 0; n < w.rows; n++)
        few_rows_column(y, copy.data, w, bias, act, n);
}

/* ---------------------------------------------------------------------------------- many rows */

/* One product with operands in the types and places that oneDNN takes. */
struct product {
    struct matrix   y, x, w;
    const float    *bias;
    enum activation act;
    int64_t         rows, cols; /* of one piece of y */
};

/* The library shares a long sum among its threads where a product has few results, so that the
 * number of threads would show in the last bits.  So it gets pieces that it computes with one
 * thread, and their shape comes from the product's alone.  A piece is wide enough that packing its
 * operands is little beside the arithmetic, and small enough that there is one for every core. */
enum { PIECE_ROWS_MAX = 256, PIECE_WIDTH_MAX = 1024, PIECE_WIDTH_MIN = 128, PIECES_MIN = 32 };

static int64_t piece_count(const struct product *p)
{
    return ceil_div_i64(p->y.rows, p->rows) * ceil_div_i64(p->y.cols, p->cols);
}

static void plan_pieces(struct product *p)
{
    p->rows = PIECE_ROWS_MAX;
    p->cols = PIECE_WIDTH_MAX;
    while (p->cols > PIECE_WIDTH_MIN && piece_count(p) < PIECES_MIN)
        p->cols /= 2;
}

/* `rows` rows of `m` from `first`. */
static struct matrix slice_rows(struct matrix m, int64_t first, int64_t rows)
{
    m.data = row_of(m, first);
    m.rows = rows;
    return m;
}

static struct matrix slice_cols(struct matrix m, int64_t first, int64_t cols)
{
    m.data = (char *)m.data + (size_t)first * dtype_bytes(m.dtype);
    m.cols = cols;
    return m;
}

/* Piece `index` of the product, in this thread. */
static int product_piece(const struct onednn *onednn, const struct product *p, int64_t index)
{
    const int64_t across = ceil_div_i64(p->y.cols, p->cols);
    const int64_t row = index / across * p->rows, col = index % across * p->cols;
    const int64_t rows = min_i64(p->rows, p->y.rows - row);
    const int64_t cols = min_i64(p->cols, p->y.cols - col);
    const struct matrix x = slice_rows(p->x, row, rows), w = slice_rows(p->w, col, cols);
    const struct matrix y = slice_cols(slice_rows(p->y, row, rows), col, cols);
    struct onednn_product job = {
        .src = onednn_plane(x.dtype, x.rows, x.cols, x.ld, 1),
        .weights = onednn_plane(w.dtype, w.cols, w.rows, 1, w.ld),
        .dst = onednn_plane(y.dtype, y.rows, y.cols, y.ld, 1),
        .after = p->act == ACT_NONE ? ONEDNN_PLAIN : ONEDNN_ACT,
        .act = p->act,
    };
    struct onednn_operands operands = {0};
    dnnl_primitive_t       primitive = NULL;
    float                 *bias = p->bias ? (float *)(uintptr_t)p->bias + col : NULL;

    if (bias) job.bias = onednn_plane(DTYPE_F32, 1, cols, cols, 1);
    int rc = onednn_product_open(&primitive, onednn, &job);
    if (!rc) rc = onednn_memory(&operands.src, onednn, &job.src, x.data);
    if (!rc) rc = onednn_memory(&operands.weights, onednn, &job.weights, w.data);
    if (!rc) rc = onednn_memory(&operands.dst, onednn, &job.dst, y.data);
    if (!rc && bias) rc = onednn_memory(&operands.bias, onednn, &job.bias, bias);
    if (!rc) rc = onednn_execute(onednn, primitive, &operands);
    onednn_operands_close(&operands);
    if (primitive) dnnl_primitive_destroy(primitive);
    return rc;
}

static int product_run(struct product *p)
{
    int rc_first = 0;

    plan_pieces(p);
#pragma omp parallel
    {
        struct onednn onednn;
        omp_set_num_threads(1); /* of this thread's own regions: the library plans for one */
        int rc = onednn_open(&onednn);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < piece_count(p); index++)
            if (!rc) rc = product_piece(&onednn, p, index);
        onednn_close(&onednn);
        if (rc) {
#pragma omp critical(gemm_status)
            rc_first = rc;
        }
    }
    return rc_first;
}

/* Where blocks are converted.  A buffer that is not needed has capacity 0. */
struct staging {
    void    *w, *x, *y;
    int64_t  w_rows, x_rows; /* block sizes */
    enum dtype compute;
    bool     stage_w, stage_x, stage_y;
};

static struct matrix staged(void *data, enum dtype dtype, struct matrix like)
{
    return (struct matrix){data, dtype, like.rows, like.cols, like.cols};
}

/* All rows of x against one block of w; `y` holds the block's columns. */
static int linear_block(const struct staging *staging, struct matrix y, struct matrix x,
                        struct matrix w, const float *bias, enum activation act)
{
    int rc = 0;

    if (staging->stage_w) {
        struct matrix block = staged(staging->w, staging->compute, w);
        k_cast_cpu(block, w);
        w = block;
    }
    for (int64_t first = 0; first < x.rows && !rc; first += staging->x_rows) {
        int64_t       rows = min_i64(staging->x_rows, x.rows - first);
        struct matrix x_block = slice_rows(x, first, rows), y_block = slice_rows(y, first, rows);
        struct matrix result = y_block;
        if (staging->stage_x) {
            struct matrix block = staged(staging->x, staging->compute, x_block);
            k_cast_cpu(block, x_block);
            x_block = block;
        }
        if (staging->stage_y) result = staged(staging->y, DTYPE_F32, y_block);
        struct product product = {.y = result, .x = x_block, .w = w, .bias = bias, .act = act};
        rc = product_run(&product);
        if (!rc && staging->stage_y) k_cast_cpu(y_block, result);
    }
    return rc;
}

static int64_t rows_that_fit(uint64_t bytes, int64_t cols, uint32_t element_bytes, int64_t most)
{
    int64_t rows = (int64_t)(bytes / ((uint64_t)cols * element_bytes));
    /* Whole multiples of 64 rows, so that only the last block has a ragged edge. */
    if (rows > 64) rows -= rows % 64;
    must(rows > 0);
    return min_i64(rows, most);
}

/* A workspace grows with the threads; blocks that did so would let their number show. */
static const uint64_t STAGING_BYTES_MAX = 32 << 20;

/* Half of the workspace for w, a quarter each for x and y. */
static struct staging plan_staging(struct matrix y, struct matrix x, struct matrix w,
                                   enum dtype compute, struct workspace workspace)
{
    const uint32_t bytes = dtype_bytes(compute);
    const uint64_t usable =
        workspace.bytes < STAGING_BYTES_MAX ? workspace.bytes : STAGING_BYTES_MAX;
    const uint64_t quarter = usable / 4 & ~(uint64_t)63;
    struct staging staging = {
        .w_rows = w.rows,
        .x_rows = x.rows,
        .compute = compute,
        .stage_w = w.dtype != compute || (uintptr_t)w.data % bytes != 0,
        .stage_x = x.dtype != compute,
        .stage_y = compute == DTYPE_F32 && y.dtype != DTYPE_F32,
    };

    staging.w = workspace_take(&workspace, 2 * quarter);
    staging.x = workspace_take(&workspace, quarter);
    staging.y = workspace.data;
    if (staging.stage_w) staging.w_rows = rows_that_fit(2 * quarter, w.cols, bytes, w.rows);
    if (staging.stage_x) staging.x_rows = rows_that_fit(quarter, x.cols, bytes, x.rows);
    if (staging.stage_y) {
        int64_t rows = rows_that_fit(quarter, staging.w_rows, 4, x.rows);
        staging.x_rows = min_i64(staging.x_rows, rows);
    }
    return staging;
}

int k_linear_cpu(struct matrix y, struct matrix x, struct matrix w, const float *bias,
                 enum activation act, enum dtype compute, struct workspace workspace)
{
    must(x.cols == w.cols && y.cols == w.rows && y.rows == x.rows && is_act(y) && is_act(x));
    must(compute == DTYPE_F32 || compute == DTYPE_BF16);
    must(x.cols > 0 && w.rows > 0);
    int rc = 0;

    const struct staging staging = plan_staging(y, x, w, compute, workspace);
    if (x.rows <= (staging.stage_w ? FEW_ROWS : FEW_ROWS_READY)) {
        few_rows(y, x, w, bias, act, workspace);
        return 0;
    }
    for (int64_t first = 0; first < w.rows && !rc; first += staging.w_rows) {
        int64_t rows = min_i64(staging.w_rows, w.rows - first);
        rc = linear_block(&staging, slice_cols(y, first, rows), x, slice_rows(w, first, rows),
                          bias ? bias + first : NULL, act);
    }
    return rc;
}
