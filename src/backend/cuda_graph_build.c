/*
 * cuda_graph_build.c - from a shape to a plan that cuDNN can run.
 *
 * Owns the order of calls of the library's C interface: tensors, operations, graph, proposals,
 * plan.  Every descriptor but the plan is thrown away when the plan stands.
 *
 * A convolution's rows must have the same bits whatever rows are computed with them, and the
 * library proposes kernels that add up in other orders for other heights.  So it is asked about a
 * map of ASKED_ROWS, and what it proposes, an engine and its settings, is carried over to the map
 * at hand.
 *
 * Tensors have their dimensions in the order that the library thinks in (batch, heads, rows,
 * channels; batch, channels, h, w); where they lie is in the strides.
 *
 * Read next: cuda_graph.c.
 */
#include "backend/cuda_graph.h"

#include <stdio.h>
#include <string.h>

/* Parts: of a plan, with every setting. */
enum { PARTS_MAX = GRAPH_SETTINGS_MAX + 32 };

/* Rows of the map that the library is asked about in place of any other: between those of a small
 * map and of a large one's strips. */
enum { ASKED_ROWS = 256 };

typedef cudnnBackendDescriptor_t descriptor;

static const char SONAME[] = CUDA_SONAME("libcudnn", CUDNN_MAJOR);

size_t graphs_version(void)
{
    return cuda_library_version(SONAME, "cudnnGetVersion");
}

int graph_library_open(struct graph_library *library, struct err *err)
{
    char soname[32];
#define CUDNN_SYMBOL(name) {#name, &library->name},
    const struct cuda_symbol symbols[] = {CUDNN_CALLS(CUDNN_SYMBOL)};
    struct err               ignored = {.code = ERR_OK};

    /* cuDNN compiles some kernels when they are first asked for and looks for the compiler by name
     * only; once loaded from where we look, it is found.  Without it, plans are refused one by one.
     */
    (void)snprintf(soname, sizeof soname, "libnvrtc.so.%d", CUDART_VERSION / 1000);
    (void)cuda_load(soname, NULL, 0, &ignored);
    return cuda_load(SONAME, symbols, ARRAY_COUNT(symbols), err);
}

/* -------------------------------------------------------------------------------- descriptors */

/* A graph while it is put together; the first failure is kept and the rest does nothing. */
struct builder {
    const struct graph_library *library;
    cudnnHandle_t               handle; /* of the card that is here, or NULL and */
    descriptor                  card;   /* the properties of one that is not     */
    int                         status;
    descriptor                  parts[PARTS_MAX]; /* owned */
    int                         part_count;
};

static descriptor make(struct builder *b, cudnnBackendDescriptorType_t type)
{
    descriptor made = NULL;

    must(b->part_count < PARTS_MAX);
    if (b->status) return NULL;
    b->status = (int)b->library->cudnnBackendCreateDescriptor(type, &made);
    if (b->status == 0) b->parts[b->part_count++] = made;
    return made;
}

static void set(struct builder *b, descriptor d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    if (b->status == 0)
        b->status = (int)b->library->cudnnBackendSetAttribute(d, name, type, count, values);
}

static void set_int(struct builder *b, descriptor d, cudnnBackendAttributeName_t name,
                    int64_t value)
{
    set(b, d, name, CUDNN_TYPE_INT64, 1, &value);
}

static void set_part(struct builder *b, descriptor d, cudnnBackendAttributeName_t name,
                     descriptor part)
{
    set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}

/* The header calls both attributes deprecated; versions that want them are still in use. */
static void set_handle(struct builder *b, descriptor d, cudnnBackendAttributeName_t name)
{
    if (b->handle != NULL) set(b, d, name, CUDNN_TYPE_HANDLE, 1, &b->handle);
}

static void finish(struct builder *b, descriptor d)
{
    if (b->status == 0) b->status = (int)b->library->cudnnBackendFinalize(d);
}

static void builder_close(struct builder *b)
{
    while (b->part_count > 0)
        if (b->parts[--b->part_count] != NULL)
            (void)b->library->cudnnBackendDestroyDescriptor(b->parts[b->part_count]);
}

struct tensor {
    int64_t         id, dims[4], strides[4];
    cudnnDataType_t type;
    bool            by_value, is_virtual;
};

static descriptor make_tensor(struct builder *b, const struct tensor *tensor)
{
    descriptor d = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);

    set(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &tensor->type);
    set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, tensor->dims);
    set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, tensor->strides);
    set_int(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, tensor->id);
    set_int(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 16);
    if (tensor->by_value)
        set(b, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &tensor->by_value);
    if (tensor->is_virtual)
        set(b, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &tensor->is_virtual);
    finish(b, d);
    return d;
}

/* ----------------------------------------------------------------------------------- attention */

/* Ids of the operands, counted as graph_data has them. */
enum { FIRST_ID = 1, VIRTUAL_ID = 100 };

static descriptor make_rows(struct builder *b, const struct graph_shape *shape, int operand)
{
    bool          queries = operand == 0 || operand == 3;
    int64_t       rows = shape->dims[queries ? 0 : 1], heads = shape->dims[2], dim = shape->dims[3];
    int64_t       ld = shape->strides[operand];
    struct tensor tensor = {.id = FIRST_ID + operand,
                            .dims = {1, heads, rows, dim},
                            .strides = {rows * ld, dim, ld, 1},
                            .type = CUDNN_DATA_BFLOAT16};

    return make_tensor(b, &tensor);
}

static int build_attention(struct builder *b, const struct graph_shape *shape, descriptor ops[2])
{
    struct tensor scale = {.id = FIRST_ID + 4,
                           .dims = {1, 1, 1, 1},
                           .strides = {1, 1, 1, 1},
                           .type = CUDNN_DATA_FLOAT,
                           .by_value = true};
    descriptor    q = make_rows(b, shape, 0), k = make_rows(b, shape, 1);
    descriptor    v = make_rows(b, shape, 2), out = make_rows(b, shape, 3);
    descriptor    factor = make_tensor(b, &scale);

    ops[0] = make(b, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    set_part(b, ops[0], CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q);
    set_part(b, ops[0], CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, k);
    set_part(b, ops[0], CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v);
    set_part(b, ops[0], CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, out);
    set_part(b, ops[0], CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, factor);
    finish(b, ops[0]);
    return 1;
}

/* --------------------------------------------------------------------------------- convolution */

/* Channels-last memory under the library's order of dimensions. */
static descriptor make_map(struct builder *b, int64_t id, int64_t n, int64_t c, int64_t h,
                           int64_t w)
{
    struct tensor tensor = {.id = id,
                            .dims = {n, c, h, w},
                            .strides = {c * h * w, 1, c * w, c},
                            .type = CUDNN_DATA_BFLOAT16};

    return make_tensor(b, &tensor);
}

static descriptor make_sum(struct builder *b, const struct graph_shape *shape)
{
    int64_t       c = shape->dims[3], h = shape->dims[4], w = shape->dims[5];
    struct tensor tensor = {.id = VIRTUAL_ID,
                            .dims = {1, c, h, w},
                            .strides = {c * h * w, 1, c * w, c},
                            .type = CUDNN_DATA_FLOAT,
                            .is_virtual = true};

    return make_tensor(b, &tensor);
}

static descriptor make_way(struct builder *b, const struct graph_shape *shape)
{
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const cudnnDataType_t        type = CUDNN_DATA_FLOAT;
    const int64_t ones[2] = {1, 1}, strides[2] = {shape->strides[0], shape->strides[0]};
    const int64_t before[2] = {shape->strides[1], shape->strides[2]};
    const int64_t after[2] = {shape->strides[3], shape->strides[4]};
    descriptor    d = make(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);

    set(b, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(b, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set_int(b, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, 2);
    set(b, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, ones);
    set(b, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, strides);
    set(b, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, before);
    set(b, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, after);
    finish(b, d);
    return d;
}

static descriptor make_add(struct builder *b, descriptor x, descriptor bias, descriptor y)
{
    const cudnnPointwiseMode_t mode = CUDNN_POINTWISE_ADD;
    const cudnnDataType_t      type = CUDNN_DATA_FLOAT;
    descriptor                 way = make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR), d;

    set(b, way, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(b, way, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &type);
    finish(b, way);
    d = make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_part(b, d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, way);
    set_part(b, d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    set_part(b, d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, bias);
    set_part(b, d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    finish(b, d);
    return d;
}

static int build_conv(struct builder *b, const struct graph_shape *shape, descriptor ops[2])
{
    const float   one = 1.0f, zero = 0.0f;
    const int64_t in = shape->dims[2], out = shape->dims[3], size = shape->dims[6];
    struct tensor bias = {.id = FIRST_ID + 3,
                          .dims = {1, out, 1, 1},
                          .strides = {out, 1, out, out},
                          .type = CUDNN_DATA_FLOAT};
    descriptor    x = make_map(b, FIRST_ID, 1, in, shape->dims[0], shape->dims[1]);
    descriptor    w = make_map(b, FIRST_ID + 1, out, in, size, size);
    descriptor    y = make_map(b, FIRST_ID + 2, 1, out, shape->dims[4], shape->dims[5]);
    descriptor    sum = shape->biased ? make_sum(b, shape) : y, way = make_way(b, shape);

    ops[0] = make(b, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    set_part(b, ops[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, way);
    set_part(b, ops[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    set_part(b, ops[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    set_part(b, ops[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, sum);
    set(b, ops[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
    set(b, ops[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
    finish(b, ops[0]);
    if (!shape->biased) return 1;
    ops[1] = make_add(b, sum, make_tensor(b, &bias), y);
    return 2;
}

/* --------------------------------------------------------------------------------------- plans */

/* The shape that stands for all with the same rows. */
static struct graph_shape asked_for(const struct graph_shape *shape)
{
    struct graph_shape asked = *shape;
    const int64_t      size = shape->dims[6], step = shape->strides[0];

    if (shape->attention) return asked;
    asked.dims[0] = ASKED_ROWS;
    asked.strides[1] = step == 1 ? size / 2 : 0;
    asked.strides[3] = size / 2;
    asked.dims[4] = (ASKED_ROWS + asked.strides[1] + asked.strides[3] - size) / step + 1;
    return asked;
}

static descriptor make_graph(struct builder *b, const struct graph_shape *shape)
{
    descriptor ops[2] = {NULL}, graph;
    int count = shape->attention ? build_attention(b, shape, ops) : build_conv(b, shape, ops);

    graph = make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set_handle(b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE);
    set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, ops);
    finish(b, graph);
    return graph;
}

static void get(struct builder *b, descriptor d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t most, int64_t *count_out, void *values)
{
    *count_out = 0;
    if (b->status == 0)
        b->status =
            (int)b->library->cudnnBackendGetAttribute(d, name, type, most, count_out, values);
}

static void get_one(struct builder *b, descriptor d, cudnnBackendAttributeName_t name,
                    cudnnBackendAttributeType_t type, void *value_out)
{
    int64_t count;

    get(b, d, name, type, 1, &count, value_out);
}

/* May this engine add up in another order from run to run? */
static bool varies(struct builder *b, descriptor engine)
{
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t                     count;
    bool                        found = false;

    get(b, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
        CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes);
    for (int64_t i = 0; i < count; i++)
        found |= notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
    return found;
}

/* In numbers, which hold for other graphs too. */
static struct graph_proposal read_config(struct builder *b, descriptor config)
{
    descriptor engine = make(b, CUDNN_BACKEND_ENGINE_DESCRIPTOR), settings[GRAPH_SETTINGS_MAX];
    struct graph_proposal out = {.engine = -1};

    get_one(b, config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, &engine);
    get_one(b, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, &out.engine);
    out.varies = varies(b, engine);
    for (int i = 0; i < GRAPH_SETTINGS_MAX; i++)
        settings[i] = make(b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    get(b, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
        GRAPH_SETTINGS_MAX, &out.setting_count, settings);
    out.setting_count = min_i64(out.setting_count, GRAPH_SETTINGS_MAX);
    for (int64_t i = 0; i < out.setting_count; i++) {
        get_one(b, settings[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE,
                &out.settings[i].type);
        get_one(b, settings[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64,
                &out.settings[i].value);
    }
    return out;
}

static void read_configs(struct graph_answer *out, struct builder *b, descriptor heuristics)
{
    descriptor configs[GRAPH_PROPOSALS_MAX];
    int64_t    count;

    for (int i = 0; i < GRAPH_PROPOSALS_MAX; i++)
        configs[i] = make(b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    get(b, heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
        GRAPH_PROPOSALS_MAX, &count, configs);
    for (int64_t i = 0; i < min_i64(count, GRAPH_PROPOSALS_MAX); i++) {
        struct builder one = {.library = b->library}; /* one that cannot be read is none */
        out->proposals[out->count] = read_config(&one, configs[i]);
        out->count += one.status == 0;
        builder_close(&one);
    }
}

void graph_ask(struct graph_answer *out, const struct graph_library *library,
               const struct graph_shape *shape, cudnnHandle_t handle, cudnnBackendDescriptor_t card)
{
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    struct builder               b = {.library = library, .handle = handle, .card = card};
    descriptor                   graph, heuristics;

    *out = (struct graph_answer){.asked = asked_for(shape)};
    graph = make_graph(&b, &out->asked);
    heuristics = make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_part(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (card != NULL) set_part(&b, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, card);
    finish(&b, heuristics);
    read_configs(out, &b, heuristics);
    out->status = b.status;
    out->lacked_memory = graphs_lack_memory(b.status);
    builder_close(&b);
}

bool graph_answers(const struct graph_answer *answer, const struct graph_shape *shape)
{
    const struct graph_shape asked = asked_for(shape);

    return memcmp(&asked, &answer->asked, sizeof asked) == 0;
}

/* What was proposed for the shape that was asked about, for this shape. */
static descriptor carry_over(struct builder *b, const struct graph_shape *shape,
                             const struct graph_proposal *proposal)
{
    descriptor graph = make_graph(b, shape), settings[GRAPH_SETTINGS_MAX];
    descriptor engine = make(b, CUDNN_BACKEND_ENGINE_DESCRIPTOR), carried;

    set_part(b, engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph);
    set_int(b, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, proposal->engine);
    if (b->card != NULL) set_part(b, engine, CUDNN_ATTR_ENGINE_DEVICEPROP, b->card);
    finish(b, engine);
    for (int64_t i = 0; i < proposal->setting_count; i++) {
        settings[i] = make(b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
        set(b, settings[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1,
            &proposal->settings[i].type);
        set_int(b, settings[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, proposal->settings[i].value);
        finish(b, settings[i]);
    }
    carried = make(b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    set_part(b, carried, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
    if (proposal->setting_count > 0)
        set(b, carried, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
            proposal->setting_count, settings);
    finish(b, carried);
    return carried;
}

/* The plan of one proposal; 0 when it stands. */
static int plan_of(struct graph_plan *out, const struct graph_library *library,
                   const struct graph_proposal *proposal, cudnnHandle_t handle)
{
    struct builder b = {.library = library, .handle = handle};
    descriptor     plan = make(&b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    descriptor     carried = carry_over(&b, &out->shape, proposal);
    int64_t        bytes = 0;

    set_part(&b, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, carried);
    set_handle(&b, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE);
    finish(&b, plan);
    get_one(&b, plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, &bytes);
    if (b.status == 0 && (uint64_t)bytes > GRAPH_WORKSPACE_BYTES)
        b.status = (int)CUDNN_STATUS_NOT_SUPPORTED;
    if (b.status == 0) {
        out->plan = plan;
        out->workspace_bytes = (uint64_t)bytes;
        b.parts[0] = NULL; /* it is the caller's now */
    }
    builder_close(&b);
    return b.status;
}

void graph_plan_open(struct graph_plan *plan, const struct graph_library *library,
                     const struct graph_shape *shape, const struct graph_answer *answer,
                     cudnnHandle_t handle)
{
    must(graph_answers(answer, shape));
    *plan = (struct graph_plan){
        .shape = *shape, .refusal = answer->status, .lacked_memory = answer->lacked_memory};
    if (answer->status == 0) plan->refusal = (int)CUDNN_STATUS_NOT_SUPPORTED;
    /* Where one lacks memory the next is not taken, for it may round otherwise. */
    for (int i = 0; i < answer->count && plan->plan == NULL && !plan->lacked_memory; i++) {
        if (answer->proposals[i].varies) continue;
        plan->refusal = plan_of(plan, library, &answer->proposals[i], handle);
        plan->lacked_memory = graphs_lack_memory(plan->refusal);
    }
}

void graph_plan_close(const struct graph_library *library, struct graph_plan *plan)
{
    if (plan->plan != NULL) (void)library->cudnnBackendDestroyDescriptor(plan->plan);
    plan->plan = NULL;
}

int graph_first_proposal(const struct graph_library *library, const struct graph_shape *shape,
                         const struct graph_answer *answer, cudnnBackendDescriptor_t card)
{
    int first = 0;

    must(graph_answers(answer, shape));
    for (int i = 0; i < answer->count && first == 0; i++) {
        struct builder b = {.library = library, .card = card};
        if (answer->proposals[i].varies) continue;
        (void)carry_over(&b, shape, &answer->proposals[i]);
        if (b.status == 0) first = i + 1;
        builder_close(&b);
    }
    return answer->status == 0 ? first : -answer->status;
}

int graph_plan_run(const struct graph_plan *plan, const struct graph_library *library,
                   cudnnHandle_t handle, const struct graph_data *data, void *workspace)
{
    const int64_t  ids[5] = {FIRST_ID, FIRST_ID + 1, FIRST_ID + 2, FIRST_ID + 3, FIRST_ID + 4};
    struct builder b = {.library = library};
    descriptor     pack = make(&b, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);

    set(&b, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, data->count, ids);
    set(&b, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, data->count,
        data->pointers);
    set(&b, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    finish(&b, pack);
    if (b.status == 0) b.status = (int)library->cudnnBackendExecute(handle, plan->plan, pack);
    builder_close(&b);
    return b.status;
}
