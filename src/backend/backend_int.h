/*
 * backend_int.h - what a machine must provide to stand behind backend.h.
 *
 * Private to backend/.  Every entry is required unless marked (optional).
 */
#ifndef MURAL_BACKEND_INT_H
#define MURAL_BACKEND_INT_H

#include "backend/backend.h"
#include "backend/parcels.h"

/* What a machine takes beside the operands; pure, so that dry backends can ask without one.  Every
 * entry may be NULL: nothing.  Scratch lies on top of the arena during the operation. */
struct backend_needs {
    bool                   distant;
    const struct vmem_ops *vmem; /* its memory; NULL: the host's, or not in this build */
    /* Bytes outside the arenas. */
    uint64_t (*fixed)(const struct backend_options *);
    uint64_t (*linear)(const struct backend *, struct matrix y, struct matrix x, struct matrix w,
                       const float *bias, enum activation act);
    uint64_t (*attention)(const struct backend *, const struct attention_request *);
    uint64_t (*conv2d)(const struct backend *, const struct conv_request *);
};

/* Of READ or more: an errno above it, weights could not be read on their way.  HOST: the host has
 * no memory left that the machine can copy from. */
enum { STATUS_HOST = 3900000, STATUS_READ = 4000000 };

/* Operations return 0 or a status that `describe` turns into words, but for those two.  linear,
 * attention and conv2d are called in a rehearsal too, and then only prepare. */
struct backend_ops {
    int (*linear)(struct backend *, struct matrix y, struct matrix x, struct matrix w,
                  const float *bias, enum activation act);
    int (*attention)(struct backend *, const struct attention_request *);
    int (*conv2d)(struct backend *, const struct conv_request *);
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
    int (*gate_add_layer_norm)(struct backend *, const struct gate_norm_request *);
    int (*gelu_mul)(struct backend *, struct matrix y, struct matrix a, struct matrix b);
    int (*silu)(struct backend *, struct matrix y, struct matrix x);
    int (*gather_rows)(struct backend *, struct matrix y, struct matrix table, const int32_t *ids);
    int (*affine)(struct backend *, struct matrix y, struct matrix x, float mul, float add);
    int (*copy)(struct backend *, struct matrix y, struct matrix x);
    int (*rope_grid)(struct backend *, struct matrix y, const struct matrix axes[3], int32_t h,
                     int32_t w);
    int (*fill)(struct backend *, struct matrix y, uint64_t seed);
    int (*pack_latent)(struct backend *, struct matrix tokens, const float *latent, int32_t h,
                       int32_t w, int32_t channels);
    int (*unpack_latent)(struct backend *, float *latent, struct matrix tokens, int32_t h,
                         int32_t w, int32_t channels);
    /* One side is the host's, of any type; the other ours, f32 or bf16. */
    int (*upload)(struct backend *, struct matrix target, struct matrix source);
    int (*download)(struct backend *, struct matrix target, struct matrix source);
    void (*pin)(struct backend *, const void *data, uint64_t bytes); /* (optional) */
    void (*unpin)(struct backend *, const void *data);               /* with pin   */
    /* Of a distant machine, with parcels: all pieces of one are known; it is used; it was used. */
    int (*settle)(struct backend *, uint32_t parcel);
    int (*arrive)(struct backend *, uint32_t parcel);
    int (*depart)(struct backend *, uint32_t parcel);
    int (*wait)(struct backend *); /* (optional) */
    /* Is it the machine's memory that was short? (optional) */
    bool (*lacks_memory)(int status);
    /* Where and why, after "linear failed: ". (optional) */
    void (*describe)(const struct backend *, int status, char *text_out, size_t capacity);
    void (*close)(struct backend *); /* all but the arenas and the struct */
};

struct backend {
    const struct backend_ops   *ops; /* NULL: dry, nothing is performed */
    const struct backend_needs *needs;
    struct arena               *arena;
    struct arena               *kept_matrices, *kept_vectors; /* NULL unless distant */
    struct parcels             *parcels;                      /* NULL unless distant */
    struct backend_link         link;
    struct backend_uploads      uploads; /* of a machine that counts them */
    enum dtype                  compute;
    uint64_t                    fixed_bytes;
    double                      flops;
    bool                        rehearsing;
    int                         status; /* of the first operation that failed since the last wait */
    const char                 *failed_op;
    uint64_t                   *pulse;     /* see struct backend_options */
    struct workspace            scratch;   /* what needs asked for, during an operation */
    struct workspace            workspace; /* CPU scratch of the kernels */
};

extern const struct backend_needs cpu_needs, cuda_needs, walled_needs;
int cpu_open(struct backend **out, const struct backend_options *options, struct err *err);
int cuda_open(struct backend **out, const struct backend_options *options, struct err *err);
int walled_open(struct backend **out, const struct backend_options *options, struct err *err);

#endif
