/*
 * cuda_graph.h - cuDNN's graphs as cuda_graph.c and its builder see them.
 *
 * Private to backend/, and only in builds that found cuDNN.  One attention or one convolution with
 * its bias is one graph; from a graph comes a plan, and a plan runs with any pointers.
 */
#ifndef MURAL_CUDA_GRAPH_H
#define MURAL_CUDA_GRAPH_H

#include "backend/cuda_int.h"

#include <cudnn_graph.h>

#define CUDNN_CALLS(X)                                                                             \
    X(cudnnCreate)                                                                                 \
    X(cudnnDestroy)                                                                                \
    X(cudnnSetStream)                                                                              \
    X(cudnnGetErrorString)                                                                         \
    X(cudnnBackendCreateDescriptor)                                                                \
    X(cudnnBackendDestroyDescriptor)                                                               \
    X(cudnnBackendFinalize)                                                                        \
    X(cudnnBackendSetAttribute)                                                                    \
    X(cudnnBackendGetAttribute)                                                                    \
    X(cudnnBackendExecute)

struct graph_library {
#define CUDNN_FIELD(name) __typeof__(&name) name;
    CUDNN_CALLS(CUDNN_FIELD)
#undef CUDNN_FIELD
};
int graph_library_open(struct graph_library *library, struct err *err);

/* Compared as bytes, so made from zeros.
 *   attention: dims = queries, keys, heads, head's width; strides = rows of q, k, v, out
 *   convolution: dims = in h, in w, in channels, out channels, out h, out w, size;
 *                strides = stride, padding at the top, left, bottom, right */
struct graph_shape {
    int64_t dims[7], strides[5];
    int32_t attention, biased;
};
/* Pure. */
struct graph_shape graph_attention_shape(const struct attention_request *request);
struct graph_shape graph_conv_shape(const struct conv_request *request, int32_t out_h,
                                    int32_t out_w);

struct graph_plan {
    struct graph_shape       shape;
    cudnnBackendDescriptor_t plan; /* NULL: refused, for the reason that follows */
    int                      refusal;
    bool                     lacked_memory; /* when it was refused */
    uint64_t                 workspace_bytes;
    bool                     has_run; /* so its code is on the card */
};
/* For the card of `handle`. */
void graph_plan_open(struct graph_plan *plan, const struct graph_library *library,
                     const struct graph_shape *shape, cudnnHandle_t handle);
void graph_plan_close(const struct graph_library *library, struct graph_plan *plan);

/* Pointers of attention: q, k, v, out, host's float scale; of a convolution: x, w, y, bias. */
struct graph_data {
    int   count;
    void *pointers[5];
};
int graph_plan_run(const struct graph_plan *plan, const struct graph_library *library,
                   cudnnHandle_t handle, const struct graph_data *data, void *workspace);

/* Which of the library's proposals graph_plan_open would begin with for a shape, on a card that
 * need not be here: the first that holds and adds in one order, counted from 1.  0: none;
 * negative: minus the status of what it refused.  `card`: a finalised descriptor of a device's
 * properties. */
int graph_first_proposal(const struct graph_library *library, const struct graph_shape *shape,
                         cudnnBackendDescriptor_t card);

#endif
