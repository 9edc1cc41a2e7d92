/*
 * cuda_graph.c - fused attention and convolutions on a GPU, by cuDNN's graphs.
 *
 * Owns the handle and one plan for each shape and strides.  cuda_graph_build.c makes plans; this
 * file decides what cuDNN is asked for, remembers the answers, refusals too, and runs them.
 *
 * Attention reads q, k and v where they lie, side by side in one packed matrix, and writes beside
 * the MLP: rows may have any stride, channels of a head must be neighbours.
 *
 * The same plan gives the same bits, and the same shape gets the same plan on one card and version:
 * the first proposal that is not marked as one whose order of sums varies.
 */
#include "backend/cuda_graph.h"

#include <stdio.h>
#include <string.h>

enum { PLANS_MAX = 512, ANSWERS_MAX = 64 };

struct graphs {
    struct graph_library library;
    cudnnHandle_t        handle;
    struct graph_plan    plans[PLANS_MAX];     /* used in turn */
    uint64_t             plans_made;           /* ever */
    struct graph_answer  answers[ANSWERS_MAX]; /* used in turn */
    uint64_t             answers_kept;         /* ever */
};

static uint32_t plan_count(const struct graphs *graphs)
{
    return graphs->plans_made < PLANS_MAX ? (uint32_t)graphs->plans_made : PLANS_MAX;
}

int graphs_open(struct graphs **out, char *why_out, size_t capacity)
{
    struct err     err = {.code = ERR_OK};
    struct graphs *graphs = NULL;
    int            status;

    *out = NULL;
    if (os_alloc((void **)&graphs, 1, sizeof *graphs, "plans of cuDNN", &err) != ERR_OK ||
        graph_library_open(&graphs->library, &err) != ERR_OK) {
        (void)snprintf(why_out, capacity, "%s", err.text);
        os_free(graphs);
        return 0;
    }
    status = (int)graphs->library.cudnnCreate(&graphs->handle);
    if (status != 0) {
        (void)snprintf(why_out, capacity, "it does not start: %s", graphs_words(graphs, status));
        graphs_close(graphs);
        return status;
    }
    *out = graphs;
    return 0;
}

void graphs_close(struct graphs *graphs)
{
    if (graphs == NULL) return;
    for (uint32_t i = 0; i < plan_count(graphs); i++)
        graph_plan_close(&graphs->library, &graphs->plans[i]);
    if (graphs->handle != NULL) (void)graphs->library.cudnnDestroy(graphs->handle);
    os_free(graphs);
}

const char *graphs_words(const struct graphs *graphs, int status)
{
    return graphs->library.cudnnGetErrorString((cudnnStatus_t)status);
}

bool graphs_lack_memory(int status)
{
    return status == (int)CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ||
           (status == (int)CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER && cuda_is_full());
}

/* What was proposed for shapes like this, asked for once.  Want of memory is no answer to keep. */
static const struct graph_answer *answer_for(struct graphs *graphs, const struct graph_shape *shape)
{
    struct graph_answer *place = &graphs->answers[graphs->answers_kept % ANSWERS_MAX];

    for (uint64_t i = 0; i < ANSWERS_MAX && i < graphs->answers_kept; i++)
        if (graph_answers(&graphs->answers[i], shape)) return &graphs->answers[i];
    graph_ask(place, &graphs->library, shape, graphs->handle, NULL);
    if (!place->lacked_memory) graphs->answers_kept++;
    return place;
}

/* The plan for a shape; one whose `plan` is NULL stands for a refusal.  Where there was no memory
 * for it, *out is NULL, the library's status is returned, and it is asked for again the next time.
 * The oldest goes when there is no place. */
static int plan_for(struct graphs *graphs, const struct graph_shape *shape, struct graph_plan **out)
{
    struct graph_plan made;

    *out = NULL;
    for (uint32_t i = 0; i < plan_count(graphs) && *out == NULL; i++)
        if (memcmp(&graphs->plans[i].shape, shape, sizeof *shape) == 0) *out = &graphs->plans[i];
    if (*out != NULL) return 0;
    graph_plan_open(&made, &graphs->library, shape, answer_for(graphs, shape), graphs->handle);
    if (made.lacked_memory) return made.refusal;
    if (made.plan == NULL)
        log_line(LOG_DEBUG, "cuDNN refuses %s of %lld x %lld: %s; mural's own kernel does it",
                 shape->attention ? "attention" : "a convolution", (long long)shape->dims[0],
                 (long long)shape->dims[1], graphs_words(graphs, made.refusal));
    *out = &graphs->plans[graphs->plans_made++ % PLANS_MAX];
    graph_plan_close(&graphs->library, *out);
    **out = made;
    return 0;
}

/* To say no for want of memory would be to paint other bits. */
static bool is_taken(struct graphs *graphs, const struct graph_shape *shape)
{
    struct graph_plan *plan;

    return plan_for(graphs, shape, &plan) != 0 || plan->plan != NULL;
}

/* ---------------------------------------------------------------------------------- attention */

static bool is_plain(struct matrix m)
{
    return m.dtype == DTYPE_BF16 && m.ld % 8 == 0 && (uintptr_t)m.data % 16 == 0;
}

/* Heads up to 256 wide, as NVIDIA's documents say of forward attention. */
static bool attention_is_fit(const struct attention_request *request)
{
    return is_plain(request->q) && is_plain(request->k) && is_plain(request->v) &&
           is_plain(request->out) && request->bias == NULL && !request->causal &&
           request->dim % 8 == 0 && request->dim <= 256;
}

struct graph_shape graph_attention_shape(const struct attention_request *request)
{
    struct graph_shape shape;

    memset(&shape, 0, sizeof shape);
    shape.attention = true;
    shape.dims[0] = request->q.rows;
    shape.dims[1] = request->k.rows;
    shape.dims[2] = request->heads;
    shape.dims[3] = request->dim;
    shape.strides[0] = request->q.ld;
    shape.strides[1] = request->k.ld;
    shape.strides[2] = request->v.ld;
    shape.strides[3] = request->out.ld;
    return shape;
}

bool graphs_attention_fits(struct graphs *graphs, const struct attention_request *request)
{
    struct graph_shape shape = graph_attention_shape(request);

    return attention_is_fit(request) && is_taken(graphs, &shape);
}

static int run(struct graphs *graphs, const struct graph_shape *shape,
               const struct graph_data *data, struct workspace workspace, bool rehearsing,
               cudaStream_t stream)
{
    struct graph_plan *plan;
    int                status = plan_for(graphs, shape, &plan);

    if (status) return STATUS_CUDNN + status;
    if (rehearsing && plan->has_run) return 0;
    workspace = workspace_of(workspace);
    if (plan->plan == NULL || plan->workspace_bytes > workspace.bytes) return STATUS_NO_PLAN;
    status = (int)graphs->library.cudnnSetStream(graphs->handle, stream);
    if (!status)
        status = graph_plan_run(plan, &graphs->library, graphs->handle, data, workspace.data);
    if (!status) plan->has_run = true;
    return status == 0 ? 0 : STATUS_CUDNN + status;
}

int graphs_attention(struct graphs *graphs, const struct attention_request *request,
                     struct workspace workspace, bool rehearsing, cudaStream_t stream)
{
    struct graph_shape shape = graph_attention_shape(request);
    float              scale = request->scale;
    struct graph_data  data = {
         .count = 5,
         .pointers = {request->q.data, request->k.data, request->v.data, request->out.data,
                      &scale}};

    return run(graphs, &shape, &data, workspace, rehearsing, stream);
}

/* --------------------------------------------------------------------------------- convolution */

struct graph_shape graph_conv_shape(const struct conv_request *request, int32_t out_h,
                                    int32_t out_w)
{
    struct graph_shape shape;

    memset(&shape, 0, sizeof shape);
    shape.dims[0] = request->in_h;
    shape.dims[1] = request->in_w;
    shape.dims[2] = request->x.cols;
    shape.dims[3] = request->y.cols;
    shape.dims[4] = out_h;
    shape.dims[5] = out_w;
    shape.dims[6] = request->size;
    shape.strides[0] = request->stride;
    shape.strides[1] = request->pad_top;
    shape.strides[2] = request->pad_left;
    shape.strides[3] = request->pad_bottom;
    shape.strides[4] = request->pad_right;
    shape.biased = request->bias != NULL;
    return shape;
}

bool graphs_conv_fits(struct graphs *graphs, const struct conv_request *request, int32_t out_h,
                      int32_t out_w)
{
    struct graph_shape shape = graph_conv_shape(request, out_h, out_w);

    if (!is_plain(request->x) || !is_plain(request->y) || request->x.ld != request->x.cols ||
        request->y.ld != request->y.cols || request->x.cols % 8 != 0)
        return false;
    return is_taken(graphs, &shape);
}

int graphs_conv(struct graphs *graphs, const struct conv_request *request, struct matrix w,
                struct workspace workspace, bool rehearsing, cudaStream_t stream)
{
    int32_t            h = request->in_h + request->pad_top + request->pad_bottom;
    int32_t            wide = request->in_w + request->pad_left + request->pad_right;
    struct graph_shape shape = graph_conv_shape(request, (h - request->size) / request->stride + 1,
                                                (wide - request->size) / request->stride + 1);
    struct graph_data  data = {
         .count = request->bias == NULL ? 3 : 4,
         .pointers = {request->x.data, w.data, request->y.data, (void *)(uintptr_t)request->bias}};

    return run(graphs, &shape, &data, workspace, rehearsing, stream);
}
