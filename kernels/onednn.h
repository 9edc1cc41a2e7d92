/*
 * onednn.h - the few oneDNN calls we need, in one spelling for the C APIs of 2.x and 3.x.
 *
 * Private.  The APIs differ in three things: 2.x describes memory by value and 3.x by handle; 2.x
 * makes an operation descriptor first; post-operations lost their scale argument.  Functions return
 * a dnnl_status_t, 0 when fine.
 *
 * Primitives are made where they are used and thrown away after: the library keeps what it compiled
 * in a cache of its own, keyed by shape.  Even a product of 64 x 256 x 256 (66 us on one core)
 * keeps nine tenths of the speed of a large one (test_gemm --bench, Ice Lake).
 */
#ifndef MURAL_ONEDNN_H
#define MURAL_ONEDNN_H

#include <dnnl.h>

#include "kernels/kernels.h"

struct onednn { /* one engine (this CPU) and one stream (this thread); both are small */
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

static inline void onednn_close(struct onednn *onednn)
{
    if (onednn->stream) dnnl_stream_destroy(onednn->stream);
    if (onednn->engine) dnnl_engine_destroy(onednn->engine);
    *onednn = (struct onednn){0};
}

static inline int onednn_open(struct onednn *onednn)
{
    *onednn = (struct onednn){0};
    int rc = (int)dnnl_engine_create(&onednn->engine, dnnl_cpu, 0);
    if (!rc)
        rc = (int)dnnl_stream_create(&onednn->stream, onednn->engine, dnnl_stream_default_flags);
    if (rc) onednn_close(onednn);
    return rc;
}

static inline dnnl_data_type_t onednn_type(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* ---------------------------------------------------------------------------------- layouts */

struct onednn_shape {
    int         ndims;
    dnnl_dims_t dims, strides;
    enum dtype  dtype;
    bool        any; /* strides do not count: the order that the primitive likes best */
};

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t       onednn_desc;
typedef const_dnnl_memory_desc_t onednn_desc_view;
#define ONEDNN_VIEW(desc) (desc)

static inline int onednn_desc_open(onednn_desc *desc, const struct onednn_shape *shape)
{
    dnnl_data_type_t type = onednn_type(shape->dtype);
    return (int)(shape->any ? dnnl_memory_desc_create_with_tag(desc, shape->ndims, shape->dims,
                                                               type, dnnl_format_tag_any)
                            : dnnl_memory_desc_create_with_strides(desc, shape->ndims, shape->dims,
                                                                   type, shape->strides));
}
static inline void onednn_desc_close(onednn_desc *desc)
{
    if (*desc) dnnl_memory_desc_destroy(*desc);
}
#else
typedef dnnl_memory_desc_t        onednn_desc;
typedef const dnnl_memory_desc_t *onednn_desc_view;
#define ONEDNN_VIEW(desc) (&(desc))

static inline int onednn_desc_open(onednn_desc *desc, const struct onednn_shape *shape)
{
    dnnl_data_type_t type = onednn_type(shape->dtype);
    return (int)(shape->any ? dnnl_memory_desc_init_by_tag(desc, shape->ndims, shape->dims, type,
                                                           dnnl_format_tag_any)
                            : dnnl_memory_desc_init_by_strides(desc, shape->ndims, shape->dims,
                                                               type, shape->strides));
}
static inline void onednn_desc_close(onednn_desc *desc)
{
    (void)desc;
}
#endif

static inline int onednn_memory(dnnl_memory_t *out, const struct onednn *onednn,
                                const struct onednn_shape *shape, void *data)
{
    onednn_desc desc = {0};
    int         rc = onednn_desc_open(&desc, shape);
    if (!rc) rc = (int)dnnl_memory_create(out, ONEDNN_VIEW(desc), onednn->engine, data);
    onednn_desc_close(&desc);
    return rc;
}

/* rows x cols, `step` elements from row to row and `pace` from column to column */
static inline struct onednn_shape onednn_plane(enum dtype dtype, int64_t rows, int64_t cols,
                                               int64_t step, int64_t pace)
{
    return (struct onednn_shape){2, {rows, cols}, {step, pace}, dtype, false};
}

/* -------------------------------------------------------------------------------- primitives */

/* What follows the product: nothing, `dst += product`, or an activation. */
enum onednn_after { ONEDNN_PLAIN, ONEDNN_SUM, ONEDNN_ACT };

static inline int onednn_append(dnnl_post_ops_t ops, enum onednn_after after, enum activation act)
{
    dnnl_alg_kind_t kind = act == ACT_GELU_TANH ? dnnl_eltwise_gelu_tanh : dnnl_eltwise_swish;
    float           alpha = act == ACT_QUICK_GELU ? 1.702f : act == ACT_SILU ? 1.0f : 0.0f;

    if (after == ONEDNN_PLAIN) return 0;
#if DNNL_VERSION_MAJOR >= 3
    return (int)(after == ONEDNN_SUM ? dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef)
                                     : dnnl_post_ops_append_eltwise(ops, kind, alpha, 0.0f));
#else
    return (int)(after == ONEDNN_SUM ? dnnl_post_ops_append_sum(ops, 1.0f)
                                     : dnnl_post_ops_append_eltwise(ops, 1.0f, kind, alpha, 0.0f));
#endif
}

static inline int onednn_attr_open(dnnl_primitive_attr_t *attr, enum onednn_after after,
                                   enum activation act)
{
    dnnl_post_ops_t ops = NULL;
    int             rc = (int)dnnl_primitive_attr_create(attr);
    if (!rc) rc = (int)dnnl_post_ops_create(&ops);
    if (!rc) rc = onednn_append(ops, after, act);
    if (!rc) rc = (int)dnnl_primitive_attr_set_post_ops(*attr, ops);
    if (ops) dnnl_post_ops_destroy(ops);
    return rc;
}

struct onednn_product {
    struct onednn_shape src, weights, dst, bias; /* bias.ndims 0: none */
    enum onednn_after   after;
    enum activation     act;
    dnnl_dims_t         strides; /* convolution only */
};

static inline int onednn_product_pd(dnnl_primitive_desc_t *out, const struct onednn *onednn,
                                    const struct onednn_product *product, onednn_desc desc[4],
                                    dnnl_primitive_attr_t attr)
{
    const bool biased = product->bias.ndims > 0;
    onednn_desc_view src = ONEDNN_VIEW(desc[0]), weights = ONEDNN_VIEW(desc[1]),
                     dst = ONEDNN_VIEW(desc[2]), bias = biased ? ONEDNN_VIEW(desc[3]) : NULL;
    const dnnl_dims_t none = {0};

#if DNNL_VERSION_MAJOR >= 3
    if (product->src.ndims == 2)
        return (int)dnnl_matmul_primitive_desc_create(out, onednn->engine, src, weights, bias, dst,
                                                      attr);
    return (int)dnnl_convolution_forward_primitive_desc_create(
        out, onednn->engine, dnnl_forward_inference, dnnl_convolution_direct, src, weights, bias,
        dst, product->strides, none, none, none, attr);
#else
    dnnl_matmul_desc_t      matmul;
    dnnl_convolution_desc_t conv;
    const bool              is_matmul = product->src.ndims == 2;
    int rc = (int)(is_matmul ? dnnl_matmul_desc_init(&matmul, src, weights, bias, dst)
                             : dnnl_convolution_forward_desc_init(
                                   &conv, dnnl_forward_inference, dnnl_convolution_direct, src,
                                   weights, bias, dst, product->strides, none, none));
    if (rc) return rc;
    return (int)dnnl_primitive_desc_create(out, is_matmul ? (const void *)&matmul : &conv, attr,
                                           onednn->engine, NULL);
#endif
}

/* A matmul (2 dimensions) or a convolution (4). */
static inline int onednn_product_open(dnnl_primitive_t *out, const struct onednn *onednn,
                                      const struct onednn_product *product)
{
    onednn_desc           desc[4] = {0};
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;

    int rc = onednn_attr_open(&attr, product->after, product->act);
    if (!rc) rc = onednn_desc_open(&desc[0], &product->src);
    if (!rc) rc = onednn_desc_open(&desc[1], &product->weights);
    if (!rc) rc = onednn_desc_open(&desc[2], &product->dst);
    if (!rc && product->bias.ndims > 0) rc = onednn_desc_open(&desc[3], &product->bias);
    if (!rc) rc = onednn_product_pd(&pd, onednn, product, desc, attr);
    if (!rc) rc = (int)dnnl_primitive_create(out, pd);
    if (pd) dnnl_primitive_desc_destroy(pd);
    for (int i = 0; i < 4; i++)
        onednn_desc_close(&desc[i]);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return rc;
}

/* The layout that a primitive chose for its weights; owned by the primitive. */
static inline onednn_desc_view onednn_weights_desc(dnnl_primitive_t primitive)
{
    const_dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_get_primitive_desc(primitive, &pd);
    return dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
}

struct onednn_operands {
    dnnl_memory_t src, weights, dst, bias; /* bias NULL: none */
};

static inline void onednn_operands_close(struct onednn_operands *operands)
{
    if (operands->src) dnnl_memory_destroy(operands->src);
    if (operands->weights) dnnl_memory_destroy(operands->weights);
    if (operands->dst) dnnl_memory_destroy(operands->dst);
    if (operands->bias) dnnl_memory_destroy(operands->bias);
    *operands = (struct onednn_operands){0};
}

/* Returns when the work is done: a CPU stream runs in the calling thread and its team. */
static inline int onednn_execute(const struct onednn *onednn, dnnl_primitive_t primitive,
                                 const struct onednn_operands *operands)
{
    const dnnl_exec_arg_t args[4] = {{DNNL_ARG_SRC, operands->src},
                                     {DNNL_ARG_WEIGHTS, operands->weights},
                                     {DNNL_ARG_DST, operands->dst},
                                     {DNNL_ARG_BIAS, operands->bias}};
    int rc = (int)dnnl_primitive_execute(primitive, onednn->stream, operands->bias ? 4 : 3, args);
    return rc ? rc : (int)dnnl_stream_wait(onednn->stream);
}

static inline int onednn_reorder(const struct onednn *onednn, dnnl_memory_t target,
                                 onednn_desc_view target_desc, dnnl_memory_t source,
                                 onednn_desc_view source_desc)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t      primitive = NULL;
    const dnnl_exec_arg_t args[2] = {{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, target}};

    int rc = (int)dnnl_reorder_primitive_desc_create(&pd, source_desc, onednn->engine, target_desc,
                                                     onednn->engine, NULL);
    if (!rc) rc = (int)dnnl_primitive_create(&primitive, pd);
    if (!rc) rc = (int)dnnl_primitive_execute(primitive, onednn->stream, 2, args);
    if (!rc) rc = (int)dnnl_stream_wait(onednn->stream);
    if (primitive) dnnl_primitive_destroy(primitive);
    if (pd) dnnl_primitive_desc_destroy(pd);
    return rc;
}

#endif
