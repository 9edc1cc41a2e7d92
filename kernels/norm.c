/*
 * norm.c - layer, RMS and group norm.
 *
 * Rows are independent in the first two; each is read by one thread, twice: the second reading
 * comes from cache.  Group norm spans a whole feature map, and comes in three steps for maps that
 * are never whole in memory; its partial sums belong to fixed runs of rows, so that neither threads
 * nor strips change a bit.
 *
 * Read next: pointwise.c.
 */
#include <math.h>

#include "kernels/kernels_int.h"

/* -------------------------------------------------------------------------------- row norms */

struct row_norm {
    const float *scale, *shift; /* [cols] */
    float        one;           /* added to scale */
    float        eps;
};

KERNEL_INLINE void layer_norm_body(enum dtype y_dtype, enum dtype x_dtype, void *y, const void *x,
                                   int64_t cols, const struct row_norm *norm)
{
    const float *scale = norm->scale, *shift = norm->shift;
    const float  one = norm->one;
    float        sum = 0.0f, squares = 0.0f;

#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < cols; i++)
        sum += act_load(x, x_dtype, i);
    const float mean = sum / (float)cols;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < cols; i++) {
        float d = act_load(x, x_dtype, i) - mean;
        squares += d * d;
    }
    const float inverse = 1.0f / sqrtf(squares / (float)cols + norm->eps);
#pragma omp simd
    for (int64_t i = 0; i < cols; i++) {
        float unit = (act_load(x, x_dtype, i) - mean) * inverse;
        act_store(y, y_dtype, i, unit * (one + scale[i]) + shift[i]);
    }
}

KERNEL_CLONES static void layer_norm_row(enum dtype y_dtype, enum dtype x_dtype, void *y,
                                         const void *x, int64_t cols, const struct row_norm *norm)
{
    BY_ACT_DTYPES(layer_norm_body, y_dtype, x_dtype, y, x, cols, norm);
}

void k_layer_norm_cpu(struct matrix y, struct matrix x, const float *scale, const float *shift,
                      bool scale_plus_one, float eps)
{
    must(same_shape(y, x) && is_act(y) && is_act(x) && x.cols > 0);
    const struct row_norm norm = {scale, shift, scale_plus_one ? 1.0f : 0.0f, eps};
#pragma omp parallel for schedule(static) if (x.rows * x.cols > 16384)
    for (int64_t row = 0; row < x.rows; row++)
        layer_norm_row(y.dtype, x.dtype, row_of(y, row), row_of(x, row), x.cols, &norm);
}

/* The row that was just added to is still in the first cache. */
void k_gate_add_layer_norm_cpu(const struct gate_norm_request *request)
{
    const struct gate_norm_request *r = request;
    const struct row_norm           norm = {r->scale, r->shift, 1.0f, r->eps};

    must(same_shape(r->out, r->x) && same_shape(r->y, r->x) && r->x.cols > 0);
    must(is_act(r->out) && is_act(r->y) && r->x.dtype == DTYPE_F32 && r->out.data != r->x.data);
#pragma omp parallel for schedule(static) if (r->x.rows * r->x.cols > 16384)
    for (int64_t row = 0; row < r->x.rows; row++) {
        void *x = row_of(r->x, row), *out = row_of(r->out, row);
        pointwise_gate_add(DTYPE_F32, r->y.dtype, x, row_of(r->y, row), r->gate, r->x.cols);
        layer_norm_row(r->out.dtype, DTYPE_F32, out, x, r->x.cols, &norm);
    }
}

KERNEL_INLINE void rms_norm_body(enum dtype y_dtype, enum dtype x_dtype, void *y, const void *x,
                                 int64_t cols, const float *weight, float eps)
{
    float squares = 0.0f;

#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < cols; i++) {
        float value = act_load(x, x_dtype, i);
        squares += value * value;
    }
    const float inverse = 1.0f / sqrtf(squares / (float)cols + eps);
#pragma omp simd
    for (int64_t i = 0; i < cols; i++)
        act_store(y, y_dtype, i, act_load(x, x_dtype, i) * inverse * weight[i]);
}

KERNEL_CLONES static void rms_norm_row(enum dtype y_dtype, enum dtype x_dtype, void *y,
                                       const void *x, int64_t cols, const float *weight, float eps)
{
    BY_ACT_DTYPES(rms_norm_body, y_dtype, x_dtype, y, x, cols, weight, eps);
}

void k_rms_norm_cpu(struct matrix y, struct matrix x, const float *weight, float eps)
{
    must(same_shape(y, x) && is_act(y) && is_act(x) && x.cols > 0);
#pragma omp parallel for schedule(static) if (x.rows * x.cols > 16384)
    for (int64_t row = 0; row < x.rows; row++)
        rms_norm_row(y.dtype, x.dtype, row_of(y, row), row_of(x, row), x.cols, weight, eps);
}

/* ------------------------------------------------------------------------------- group norm */

/* Statistics are kept for this many channels at a time: a piece of the stack. */
enum { CHANNELS_MAX = 256 };

/* Per channel of a run, about the mean of the rows seen so far. */
struct channel_stats {
    float *mean, *squares; /* [channels] */
};

/* Statistics of `rows` rows in two passes over memory that is still in cache, merged into what the
 * `seen` rows before them left.  Two passes, because a sum of squares minus a squared sum loses the
 * variance of a channel that lies far from zero. */
KERNEL_INLINE void stats_body(enum dtype dtype, enum dtype unused, struct channel_stats stats,
                              struct matrix x, int64_t first, int64_t rows, int64_t seen)
{
    const float weight = (float)rows / (float)(seen + rows);
    const float between = (float)seen * weight;
    float       mean[CHANNELS_MAX] = {0}, squares[CHANNELS_MAX] = {0};
    (void)unused;

    for (int64_t row = first; row < first + rows; row++) {
        const void *line = row_of(x, row);
#pragma omp simd
        for (int64_t i = 0; i < x.cols; i++)
            mean[i] += act_load(line, dtype, i);
    }
    for (int64_t i = 0; i < x.cols; i++)
        mean[i] /= (float)rows;
    for (int64_t row = first; row < first + rows; row++) {
        const void *line = row_of(x, row);
#pragma omp simd
        for (int64_t i = 0; i < x.cols; i++) {
            float d = act_load(line, dtype, i) - mean[i];
            squares[i] += d * d;
        }
    }
    for (int64_t i = 0; i < x.cols; i++) {
        float d = mean[i] - stats.mean[i];
        stats.mean[i] += d * weight;
        stats.squares[i] += squares[i] + d * d * between;
    }
}

KERNEL_CLONES static void stats_rows(struct channel_stats stats, struct matrix x, int64_t first,
                                     int64_t rows, int64_t seen)
{
    BY_ACT_DTYPES(stats_body, x.dtype, x.dtype, stats, x, first, rows, seen);
}

/* `out` [2 * x.cols] from rows [first, first + rows). */
static void run_stats(float *out, struct matrix x, int64_t first, int64_t rows)
{
    const int64_t cols = x.cols;

    memset(out, 0, (size_t)(2 * cols) * sizeof *out);
    for (int64_t col = 0; col < cols; col += CHANNELS_MAX) {
        const struct channel_stats stats = {out + col, out + cols + col};
        struct matrix              part = x;
        part.data = (char *)x.data + (size_t)col * dtype_bytes(x.dtype);
        part.cols = min_i64(CHANNELS_MAX, cols - col);
        /* 32 KiB of rows at a time: small enough to be read a second time from the first cache. */
        const int64_t block = max_i64(1, 32768 / (part.cols * dtype_bytes(x.dtype)));
        for (int64_t done = 0; done < rows; done += block)
            stats_rows(stats, part, first + done, min_i64(block, rows - done), done);
    }
}

void k_group_stats_cpu(struct matrix stats, struct matrix x)
{
    must(is_act(x) && stats.dtype == DTYPE_F32 && stats.cols == 2 * x.cols);
    must(stats.rows > 0 && x.rows >= stats.rows && x.rows % stats.rows == 0);
    const int64_t run_rows = x.rows / stats.rows;

#pragma omp parallel for schedule(static) if (x.rows * x.cols > 16384)
    for (int64_t run = 0; run < stats.rows; run++)
        run_stats(row_of(stats, run), x, run * run_rows, run_rows);
}

/* What the last step does to channel c: (x - center[c]) * factor[c] + bias[c].  The mean is not
 * folded into the bias: far from zero the two would cancel badly. */
struct normalizer {
    float       *center, *factor; /* [cols] */
    const float *bias;
};

/* Channels [first, first + channels). */
static void merge_group(const struct normalizer *n, struct matrix stats, int64_t run_rows,
                        int64_t first, int64_t channels, double eps)
{
    const double rows = (double)run_rows;
    double       mean = 0.0, squares = 0.0, seen = 0.0;

    for (int64_t run = 0; run < stats.rows; run++) {
        const float *run_mean = row_of(stats, run), *run_squares = run_mean + stats.cols / 2;
        for (int64_t i = first; i < first + channels; i++) {
            double d = (double)run_mean[i] - mean;
            double share = d * rows / (seen + rows);
            squares += (double)run_squares[i] + d * share * seen;
            mean += share;
            seen += rows;
        }
    }
    double inverse = 1.0 / sqrt(squares / seen + eps);
    for (int64_t i = first; i < first + channels; i++) {
        n->center[i] = (float)mean;
        n->factor[i] = (float)((double)n->factor[i] * inverse);
    }
}

void k_group_merge_cpu(struct matrix table, struct matrix stats, const float *weight,
                       int64_t run_rows, int32_t groups, float eps)
{
    const int64_t cols = table.cols, channels = cols / groups;
    must(groups > 0 && cols % groups == 0 && stats.cols == 2 * cols && stats.rows > 0);
    must(table.dtype == DTYPE_F32 && table.rows == 2 && table.ld == cols && run_rows > 0);
    const struct normalizer n = {table.data, (float *)table.data + cols, NULL};

    memcpy(n.factor, weight, (size_t)cols * sizeof *weight);
#pragma omp parallel for schedule(static) if (stats.rows * cols > 16384)
    for (int64_t group = 0; group < groups; group++)
        merge_group(&n, stats, run_rows, group * channels, channels, (double)eps);
}

KERNEL_INLINE void normalize_body(enum dtype y_dtype, enum dtype x_dtype, void *y, const void *x,
                                  int64_t cols, const struct normalizer *n, bool silu)
{
    const float *center = n->center, *factor = n->factor, *bias = n->bias;

    if (silu) {
#pragma omp simd
        for (int64_t i = 0; i < cols; i++) {
            float value = (act_load(x, x_dtype, i) - center[i]) * factor[i] + bias[i];
            act_store(y, y_dtype, i, value * fast_sigmoid(value));
        }
    } else {
#pragma omp simd
        for (int64_t i = 0; i < cols; i++)
            act_store(y, y_dtype, i, (act_load(x, x_dtype, i) - center[i]) * factor[i] + bias[i]);
    }
}

KERNEL_CLONES static void normalize_row(enum dtype y_dtype, enum dtype x_dtype, void *y,
                                        const void *x, int64_t cols, const struct normalizer *n,
                                        bool silu)
{
    BY_ACT_DTYPES(normalize_body, y_dtype, x_dtype, y, x, cols, n, silu);
}

void k_group_apply_cpu(struct matrix y, struct matrix x, struct matrix table, const float *bias,
                       bool silu)
{
    must(same_shape(y, x) && is_act(y) && is_act(x) && table.dtype == DTYPE_F32);
    must(table.rows == 2 && table.cols == x.cols && table.ld == x.cols);
    const struct normalizer n = {table.data, (float *)table.data + x.cols, bias};

#pragma omp parallel for schedule(static) if (x.rows * x.cols > 16384)
    for (int64_t row = 0; row < x.rows; row++)
        normalize_row(y.dtype, x.dtype, row_of(y, row), row_of(x, row), x.cols, &n, silu);
}
