/*
 * attention.c - softmax(q k^T) v in blocks; and what is done to q and k before.
 *
 * The N x N scores never exist.  One work item is a head and a block of queries; it walks the keys
 * block by block and keeps, per query, the largest score so far, the sum of exponentials and the
 * weighted sum of values.  When a larger score appears, both sums shrink by the same factor:
 *
 *     for each block of keys
 *         scores = q . k^T                     [queries, keys]   oneDNN, in this thread
 *         top'   = max(top, scores); p = exp(scores - top'); keep = exp(top - top')
 *         sum    = sum * keep + row sums of p
 *         o      = o * keep + p . v            [queries, dim]    oneDNN, in this thread
 *     out = o / sum
 *
 * Items share nothing, so the result does not depend on the number of threads.  The products run
 * inside the parallel region, one team of one thread each; the primitives are made there too, or
 * they would be planned for a team.
 *
 * Read next: gemm.c.
 */
#include <math.h>
#include <omp.h>

#include "kernels/kernels_int.h"
#include "kernels/onednn.h"

/* --------------------------------------------------------------------------------- one block */

struct plan {
    const struct attention_request *request;
    enum dtype                      compute;
    int64_t                         queries, keys; /* block sizes */
    uint64_t                        thread_bytes;
};

/* Scratch of one thread. */
struct scratch {
    struct onednn onednn;
    void  *q, *k, *v, *p; /* [queries, dim], [keys, dim] x 2, [queries, keys]; compute type */
    float *scores;        /* [queries, keys]; the same memory as p in f32               */
    float *o;             /* [queries, dim]                                             */
    float *top, *sum;     /* [queries]                                                  */
    /* Primitives for the shape of the block before; almost every block has it. */
    int64_t                queries_ready, keys_ready;
    dnnl_primitive_t       qk, pv;
    struct onednn_operands qk_operands, pv_operands;
};

static void products_close(struct scratch *s)
{
    onednn_operands_close(&s->qk_operands);
    onednn_operands_close(&s->pv_operands);
    if (s->qk) dnnl_primitive_destroy(s->qk);
    if (s->pv) dnnl_primitive_destroy(s->pv);
    s->qk = s->pv = NULL;
    s->queries_ready = s->keys_ready = 0;
}

static int product_open(dnnl_primitive_t *primitive, struct onednn_operands *operands,
                        const struct onednn *onednn, const struct onednn_product *job, void *src,
                        void *weights, void *dst)
{
    int rc = onednn_product_open(primitive, onednn, job);
    if (!rc) rc = onednn_memory(&operands->src, onednn, &job->src, src);
    if (!rc) rc = onednn_memory(&operands->weights, onednn, &job->weights, weights);
    if (!rc) rc = onednn_memory(&operands->dst, onednn, &job->dst, dst);
    return rc;
}

/* Both products for `queries` x `keys`; kept until the shape changes.  Scores lie without gaps:
 * oneDNN 3.7 goes wrong on a matrix of one column whose rows lie apart, as a last block of one key
 * was. */
static int products_ready(struct scratch *s, const struct plan *plan, int64_t queries, int64_t keys)
{
    const int64_t               dim = plan->request->dim;
    const struct onednn_product qk = {
        .src = onednn_plane(plan->compute, queries, dim, dim, 1),
        .weights = onednn_plane(plan->compute, dim, keys, 1, dim),
        .dst = onednn_plane(DTYPE_F32, queries, keys, keys, 1),
        .after = ONEDNN_PLAIN,
    };
    const struct onednn_product pv = {
        .src = onednn_plane(plan->compute, queries, keys, keys, 1),
        .weights = onednn_plane(plan->compute, keys, dim, dim, 1),
        .dst = onednn_plane(DTYPE_F32, queries, dim, dim, 1),
        .after = ONEDNN_SUM,
    };

    if (s->queries_ready == queries && s->keys_ready == keys) return 0;
    products_close(s);
    int rc = product_open(&s->qk, &s->qk_operands, &s->onednn, &qk, s->q, s->k, s->scores);
    if (!rc) rc = product_open(&s->pv, &s->pv_operands, &s->onednn, &pv, s->p, s->v, s->o);
    s->queries_ready = queries;
    s->keys_ready = keys;
    return rc;
}

/* Rows [first, first + rows) of one head, converted and side by side. */
static void gather_head(void *target, enum dtype dtype, struct matrix source, int64_t first,
                        int64_t rows, int64_t head, int64_t dim)
{
    const size_t column = (size_t)(head * dim) * dtype_bytes(source.dtype);
    const size_t target_row = (size_t)dim * dtype_bytes(dtype);

    for (int64_t row = 0; row < rows; row++)
        cast_elements((char *)target + (size_t)row * target_row, dtype,
                      (char *)row_of(source, first + row) + column, source.dtype, dim);
}

/* ----------------------------------------------------------------------------------- softmax */

struct softmax_row {
    const float *scores;  /* [keys] */
    const float *bias;    /* [keys] or NULL */
    void        *p;       /* [keys]; may be scores */
    int64_t      visible; /* keys that this query may see, the first ones of the block */
    int64_t      keys;
    float        scale; /* log2(e) included */
    float       *top, *sum;
};

/* A score times log2(e): powers of two are cheaper than powers of e, and softmax cannot tell. */
KERNEL_INLINE float scaled(const struct softmax_row *row, bool has_bias, int64_t i)
{
    float score = row->scores[i] * row->scale;
    return has_bias ? score + row->bias[i] * LOG2_E : score;
}

KERNEL_INLINE float softmax_body(const struct softmax_row *row, enum dtype p_dtype, bool has_bias)
{
    const struct softmax_row r = *row;
    float                    top = *r.top, sum = 0.0f;

#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < r.visible; i++) {
        float score = scaled(&r, has_bias, i);
        top = score > top ? score : top;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < r.visible; i++) {
        float e = fast_exp2(scaled(&r, has_bias, i) - top);
        act_store(r.p, p_dtype, i, e);
        sum += e;
    }
    for (int64_t i = r.visible; i < r.keys; i++)
        act_store(r.p, p_dtype, i, 0.0f);
    float keep = fast_exp2(*r.top - top);
    *r.sum = *r.sum * keep + sum;
    *r.top = top;
    return keep;
}

/* One query against one block of keys: scores become exponentials; returns what the sums so far are
 * to be multiplied by. */
KERNEL_CLONES static float softmax_block(const struct softmax_row *row, enum dtype p_dtype)
{
    if (p_dtype == DTYPE_F32)
        return row->bias ? softmax_body(row, DTYPE_F32, true) : softmax_body(row, DTYPE_F32, false);
    return row->bias ? softmax_body(row, DTYPE_BF16, true) : softmax_body(row, DTYPE_BF16, false);
}

KERNEL_CLONES static void scale_row(float *x, float factor, int64_t count)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        x[i] *= factor;
}

/* -------------------------------------------------------------------------------------- item */

/* Keys [key, key + keys) for all queries of the item. */
static int attend_block(struct scratch *s, const struct plan *plan, int64_t head, int64_t query,
                        int64_t queries, int64_t key, int64_t keys)
{
    const struct attention_request *r = plan->request;
    const int64_t                   dim = r->dim, span = r->k.rows;

    gather_head(s->k, plan->compute, r->k, key, keys, head, dim);
    gather_head(s->v, plan->compute, r->v, key, keys, head, dim);
    int rc = products_ready(s, plan, queries, keys);
    if (!rc) rc = onednn_execute(&s->onednn, s->qk, &s->qk_operands);
    for (int64_t i = 0; i < queries && !rc; i++) {
        const int64_t      at = query + i;
        struct softmax_row row = {
            .scores = s->scores + i * keys,
            .p = (char *)s->p + (size_t)(i * keys) * dtype_bytes(plan->compute),
            .visible = r->causal ? max_i64(0, min_i64(keys, at + 1 - key)) : keys,
            .keys = keys,
            .scale = r->scale * LOG2_E,
            .top = s->top + i,
            .sum = s->sum + i,
        };
        if (r->bias) row.bias = r->bias + head * (2 * span - 1) + (key - at) + span - 1;
        float keep = softmax_block(&row, plan->compute);
        if (keep != 1.0f) scale_row(s->o + i * dim, keep, dim);
    }
    if (!rc) rc = onednn_execute(&s->onednn, s->pv, &s->pv_operands);
    return rc;
}

static int attend_item(struct scratch *s, const struct plan *plan, int64_t head, int64_t query,
                       int64_t queries)
{
    const struct attention_request *r = plan->request;
    const int64_t                   dim = r->dim;
    /* Later keys are invisible to every query of the block. */
    const int64_t keys_end = r->causal ? min_i64(r->k.rows, query + queries) : r->k.rows;
    int           rc = 0;

    gather_head(s->q, plan->compute, r->q, query, queries, head, dim);
    memset(s->o, 0, (size_t)(queries * dim) * sizeof *s->o);
    for (int64_t i = 0; i < queries; i++) {
        s->top[i] = -3e38f;
        s->sum[i] = 0.0f;
    }
    for (int64_t key = 0; key < keys_end && !rc; key += plan->keys)
        rc = attend_block(s, plan, head, query, queries, key, min_i64(plan->keys, keys_end - key));
    for (int64_t i = 0; i < queries && !rc; i++) {
        char *out = row_of(r->out, query + i);
        scale_row(s->o + i * dim, 1.0f / s->sum[i], dim);
        cast_elements(out + (size_t)(head * dim) * dtype_bytes(r->out.dtype), r->out.dtype,
                      s->o + i * dim, DTYPE_F32, dim);
    }
    return rc;
}

/* ----------------------------------------------------------------------------- the whole call */

static uint64_t scratch_bytes(const struct plan *plan)
{
    const uint64_t element = dtype_bytes(plan->compute), dim = (uint64_t)plan->request->dim;
    const uint64_t queries = (uint64_t)plan->queries, keys = (uint64_t)plan->keys;
    const uint64_t gathered = (queries + 2 * keys) * dim * element;
    const uint64_t scores = queries * keys * (plan->compute == DTYPE_F32 ? 4 : 4 + element);

    return gathered + scores + queries * dim * 4 + queries * 8 + 8 * 64; /* 8 pieces, aligned */
}

/* Below this many items the blocks of queries shrink. */
enum { ITEMS_MIN = 32 };

static struct plan plan_blocks(const struct attention_request *request, enum dtype compute,
                               uint64_t thread_bytes)
{
    /* Many queries share the cost of gathering a block of keys; more than 256 push the scores out
     * of the second cache.  Measured in test_attention --bench. */
    struct plan plan = {request, compute, 256, request->dim > 128 ? 128 : 256, thread_bytes};
    /* Enough items for every team, decided from the shape alone: the number of threads must not
     * change a bit. */
    while (plan.queries > 64 && request->heads * request->q.rows / plan.queries < ITEMS_MIN)
        plan.queries /= 2;
    plan.queries = min_i64(plan.queries, request->q.rows);
    plan.keys = min_i64(plan.keys, request->k.rows);
    while (scratch_bytes(&plan) > thread_bytes && plan.queries + plan.keys > 2) {
        plan.queries = (plan.queries + 1) / 2;
        plan.keys = (plan.keys + 1) / 2;
    }
    must(scratch_bytes(&plan) <= thread_bytes);
    return plan;
}

static void scratch_place(struct scratch *s, const struct plan *plan, void *data)
{
    struct workspace w = {data, plan->thread_bytes};
    const uint64_t   element = dtype_bytes(plan->compute), dim = (uint64_t)plan->request->dim;
    const uint64_t   queries = (uint64_t)plan->queries, keys = (uint64_t)plan->keys;

    s->q = workspace_take(&w, queries * dim * element);
    s->k = workspace_take(&w, keys * dim * element);
    s->v = workspace_take(&w, keys * dim * element);
    s->scores = workspace_take(&w, queries * keys * 4);
    s->p = plan->compute == DTYPE_F32 ? s->scores : workspace_take(&w, queries * keys * element);
    s->o = workspace_take(&w, queries * dim * 4);
    s->top = workspace_take(&w, queries * 4);
    s->sum = workspace_take(&w, queries * 4);
}

int k_attention_cpu(const struct attention_request *request, enum dtype compute,
                    struct workspace workspace)
{
    const struct attention_request *r = request;
    const int64_t                   width = (int64_t)r->heads * r->dim;

    must(r->q.cols == width && r->k.cols == width && r->v.cols == width && r->out.cols == width);
    must(r->out.rows == r->q.rows && r->k.rows == r->v.rows && r->k.rows > 0);
    must(is_act(r->q) && is_act(r->k) && is_act(r->v) && is_act(r->out));
    must(!(r->causal || r->bias) || r->q.rows <= r->k.rows);
    if (r->q.rows == 0) return 0;

    const uint64_t    threads = (uint64_t)omp_get_max_threads();
    const struct plan plan = plan_blocks(r, compute, workspace.bytes / threads & ~(uint64_t)63);
    const int64_t     blocks = ceil_div_i64(r->q.rows, plan.queries);
    int               rc_first = 0;

#pragma omp parallel
    {
        struct scratch s = {0};
        omp_set_num_threads(1); /* of this thread's own regions: the library plans for one */
        scratch_place(&s, &plan,
                      (char *)workspace.data + (uint64_t)omp_get_thread_num() * plan.thread_bytes);
        int rc = onednn_open(&s.onednn);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < r->heads * blocks; item++) {
            int64_t query = item % blocks * plan.queries;
            if (!rc)
                rc = attend_item(&s, &plan, item / blocks, query,
                                 min_i64(plan.queries, r->q.rows - query));
        }
        products_close(&s);
        onednn_close(&s.onednn);
        if (rc) {
#pragma omp critical(attention_status)
            rc_first = rc;
        }
    }
    return rc_first;
}

/* -------------------------------------------------------------------------- q/k norm and RoPE */

struct rope_row {
    const float *weight;    /* [dim] */
    const float *cos, *sin; /* [dim / 2], or NULL: not rotated */
    int64_t      dim;
    float        eps;
};

KERNEL_INLINE void rope_body(enum dtype dtype, void *x, const struct rope_row *row)
{
    const struct rope_row r = *row;
    float                 squares = 0.0f;

#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < r.dim; i++) {
        float value = act_load(x, dtype, i);
        squares += value * value;
    }
    const float inverse = 1.0f / sqrtf(squares / (float)r.dim + r.eps);
    if (!r.cos) {
#pragma omp simd
        for (int64_t i = 0; i < r.dim; i++)
            act_store(x, dtype, i, act_load(x, dtype, i) * inverse * r.weight[i]);
        return;
    }
#pragma omp simd
    for (int64_t i = 0; i < r.dim / 2; i++) {
        float even = act_load(x, dtype, 2 * i) * inverse * r.weight[2 * i];
        float odd = act_load(x, dtype, 2 * i + 1) * inverse * r.weight[2 * i + 1];
        act_store(x, dtype, 2 * i, even * r.cos[i] - odd * r.sin[i]);
        act_store(x, dtype, 2 * i + 1, odd * r.cos[i] + even * r.sin[i]);
    }
}

/* All heads of one row. */
KERNEL_CLONES static void rope_heads(void *x, enum dtype dtype, int64_t heads,
                                     const struct rope_row *row)
{
    for (int64_t head = 0; head < heads; head++) {
        if (dtype == DTYPE_F32)
            rope_body(DTYPE_F32, (float *)x + head * row->dim, row);
        else
            rope_body(DTYPE_BF16, (uint16_t *)x + head * row->dim, row);
    }
}

void k_qk_norm_rope_cpu(const struct qk_rope_request *request)
{
    const struct qk_rope_request *r = request;
    const int64_t                 half = r->dim / 2;

    must(same_shape(r->q, r->k) && r->q.cols == (int64_t)r->heads * r->dim && r->dim % 2 == 0);
    must(is_act(r->q) && is_act(r->k));
#pragma omp parallel for schedule(static) if (r->q.rows * r->q.cols > 16384)
    for (int64_t row = 0; row < r->q.rows; row++) {
        const bool      rotated = row >= r->first_rotated;
        const int64_t   at = (row - r->first_rotated) * half;
        struct rope_row line = {r->q_weight, rotated ? r->cos + at : NULL,
                                rotated ? r->sin + at : NULL, r->dim, r->eps};
        rope_heads(row_of(r->q, row), r->q.dtype, r->heads, &line);
        line.weight = r->k_weight;
        rope_heads(row_of(r->k, row), r->k.dtype, r->heads, &line);
    }
}
