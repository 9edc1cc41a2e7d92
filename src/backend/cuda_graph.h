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

/* An engine of the library and its settings: the same for every graph that the engine can run. */
enum { GRAPH_PROPOSALS_MAX = 16, GRAPH_SETTINGS_MAX = 32 };
struct graph_proposal {
    int64_t engine;
    bool    varies; /* it may add up in another order from run to run */
    int64_t setting_count;
    struct {
        cudnnBackendKnobType_t type;
        int64_t                value;
    } settings[GRAPH_SETTINGS_MAX];
};

/* What the library proposes for a shape, and for all that differ from it in their rows alone: it is
 * asked about one of those.  Pure numbers; to ask takes up to a third of a second. */
struct graph_answer {
    struct graph_shape    asked;
    int                   status;        /* 0, or why there are no proposals */
    bool                  lacked_memory; /* that is why */
    int                   count;
    struct graph_proposal proposals[GRAPH_PROPOSALS_MAX]; /* best first */
};
/* For the card of `handle`, or for one that need not be here: `card`, a finalised descriptor of a
 * device's properties.  The other is NULL. */
void graph_ask(struct graph_answer *out, const struct graph_library *library,
               const struct graph_shape *shape, cudnnHandle_t handle,
               cudnnBackendDescriptor_t card);
bool graph_answers(const struct graph_answer *answer, const struct graph_shape *shape);

struct graph_plan {
    struct graph_shape       shape;
    cudnnBackendDescriptor_t plan; /* NULL: refused, for the reason that follows */
    int                      refusal;
    bool                     lacked_memory; /* when it was refused */
    uint64_t                 workspace_bytes;
    bool                     has_run; /* so its code is on the card */
};
/* For the card of `handle`, from an answer that answers for `shape`. */
void graph_plan_open(struct graph_plan *plan, const struct graph_library *library,
                     const struct graph_shape *shape, const struct graph_answer *answer,
                     cudnnHandle_t handle);
void graph_plan_close(const struct graph_library *library, struct graph_plan *plan);

/* Pointers of attention: q, k, v, out, host's float scale; of a convolution: x, w, y, bias. */
struct graph_data {
    int   count;
    void *pointers[5];
};
int graph_plan_run(const struct graph_plan *plan, const struct graph_library *library,
                   cudnnHandle_t handle, const struct graph_data *data, void *workspace);

/* Which of the proposals graph_plan_open would begin with for a shape, on a card that need not be
 * here: the first that holds and adds in one order, counted from 1.  0: none; negative: minus the
 * status of what was refused. */
int graph_first_proposal(const struct graph_library *library, const struct graph_shape *shape,
                         const struct graph_answer *answer, cudnnBackendDescriptor_t card);

#endif
