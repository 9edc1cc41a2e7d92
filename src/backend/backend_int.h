/*
 * backend_int.h - what a machine must provide to stand behind backend.h.
 *
 * Private to backend/.  Every entry is required unless marked (optional).
 */
#ifndef MURAL_BACKEND_INT_H
#define MURAL_BACKEND_INT_H

#include "backend/backend.h"

/* Operations return 0 or a status that `describe` turns into words. */
struct backend_ops {
    int (*linear)(struct backend *, struct matrix y, struct matrix x, struct matrix w,
                  const float *bias, enum activation act);
    int (*attention)(struct backend *, const struct attention_request *);
    int (*qk_norm_rope)(struct backend *, const struct qk_rope_request *);
    int (*layer_norm)(struct backend *, struct matrix y, struct matrix x, const float *scale,
                      const float *shift, bool scale_plus_one, float eps);
    int (*rms_norm)(struct backend *, struct matrix y, struct matrix x, const float *weight,
                    float eps);
    int (*group_stats)(struct backend *, struct matrix stats, struct matrix x);
    int (*group_merge)(struct backend *, struct matrix table, struct matrix stats,
                       const float *weight, int64_t run_rows, int32_t groups, float eps);
    int (*group_apply)(struct backend *, struct matrix y, struct matrix x, struct matrix table,
                       const float *bias, bool silu);
    int (*add)(struct backend *, struct matrix x, struct matrix y);
    int (*gate_add)(struct backend *, struct matrix x, struct matrix y, const float *gate);
    int (*gelu_mul)(struct backend *, struct matrix y, struct matrix a, struct matrix b);
    int (*silu)(struct backend *, struct matrix y, struct matrix x);
    int (*gather_rows)(struct backend *, struct matrix y, struct matrix table, const int32_t *ids);
    int (*affine)(struct backend *, struct matrix y, struct matrix x, float mul, float add);
    int (*copy)(struct backend *, struct matrix y, struct matrix x);
    int (*conv2d)(struct backend *, const struct conv_request *);
    int (*pack_latent)(struct backend *, struct matrix tokens, const float *latent, int32_t h,
                       int32_t w, int32_t channels);
    int (*unpack_latent)(struct backend *, float *latent, struct matrix tokens, int32_t h,
                         int32_t w, int32_t channels);
    void (*describe)(int status, char *text_out, size_t capacity); /* (optional) */
    void (*close)(struct backend *);
};

struct backend {
    const struct backend_ops *ops; /* NULL: dry, nothing is performed */
    struct arena             *arena;
    enum dtype                compute;
    uint64_t                  fixed_bytes;
    double                    flops;
    int                       status; /* of the first operation that failed since the last wait */
    const char               *failed_op;
    uint64_t                 *pulse; /* see struct backend_options */
    struct workspace          workspace; /* CPU scratch of the kernels */
};

#endif
