/*
 * cuda_gemm.c - products on a GPU, by cuBLASLt: one plan for each shape, chosen once.
 *
 * Owns the handle, the plans and which algorithm is the reference.
 *
 * Row-major y[m, n] = x[m, k] . w[n, k]^T is, in the library's column-major eyes, y' [n, m] = w'^T
 * x' with w' [k, n] and x' [k, m]: nothing is transposed in memory, and the bias runs down a column
 * of y', as its epilogue wants.
 *
 * The same poster twice must be the same bytes, and algorithms round differently: so a choice by
 * time alone, which differs from run to run, is not allowed to matter.  Rules:
 *   - where several blocks share a sum, their parts are kept in fp32 and added in the order of k,
 *     never in the order of arrival;
 *   - the library's first proposal is the reference; it depends on shape, card and version only,
 *     and where there are many rows, or they are a map's, not on their number, unless it is fixed:
 *     for those rows must have the same bits in whatever parts or strips they are computed;
 *   - another proposal may replace it when it is faster and its result for made-up numbers times
 *     the layer's own weights, or made-up ones where a rehearsal has none, has the same bits, all
 *     of them.
 * Kernels that multiply in the same order of k agree to the bit whatever their tiles are,
 * so there is something to choose from; one that does not agree is not chosen, however fast.
 *
 * Read next: cuda_contest.c, which chooses; cuda_linear.c.
 */
#include "backend/cuda_int.h"

#include <string.h>

/* The rows that the library is asked about in place of any other number of many. */
enum { ASKED_ROWS = 16384 };

static const char SONAME[] = CUDA_SONAME("libcublasLt", CUBLAS_VER_MAJOR);

size_t gemm_version(void)
{
    return cuda_library_version(SONAME, "cublasLtGetVersion");
}

int gemm_open(struct gemm *gemm, const char *numeric, struct err *err)
{
    int rc = ERR_OK, status, driver = 0;
#define CUBLAS_SYMBOL(name) {#name, &gemm->calls.name},
    const struct cuda_symbol symbols[] = {CUBLAS_CALLS(CUBLAS_SYMBOL)};

    TRY(cuda_load(SONAME, symbols, ARRAY_COUNT(symbols), err));
    TRY(os_alloc((void **)&gemm->plans, GEMM_PLANS_MAX, sizeof *gemm->plans, "plans of products",
                 err));
    status = (int)gemm->calls.cublasLtCreate(&gemm->handle);
    if (status != 0)
        RAISE(err, gemm_lacks_memory(status) ? ERR_DEVICE_MEM : ERR_DEVICE, status,
              "device: cuBLASLt does not start: %s",
              gemm->calls.cublasLtGetStatusString((cublasStatus_t)status));
    status = (int)cudaMalloc((void **)&gemm->sum, sizeof *gemm->sum);
    if (status == 0) status = (int)cudaEventCreate(&gemm->begin);
    if (status == 0) status = (int)cudaEventCreate(&gemm->end);
    if (status == 0) status = (int)cudaDriverGetVersion(&driver);
    gemm->machine = hash64(numeric, strlen(numeric), (uint64_t)driver);
    if (status != 0)
        RAISE(err, status == (int)cudaErrorMemoryAllocation ? ERR_DEVICE_MEM : ERR_DEVICE, status,
              "device: no events or memory for trials: %s",
              cudaGetErrorString((cudaError_t)status));
out:
    return rc;
}

/* Without room for its code, a kernel is only said to have failed. */
bool gemm_lacks_memory(int status)
{
    return status == (int)CUBLAS_STATUS_ALLOC_FAILED ||
           ((status == (int)CUBLAS_STATUS_EXECUTION_FAILED ||
             status == (int)CUBLAS_STATUS_INTERNAL_ERROR ||
             status == (int)CUBLAS_STATUS_NOT_INITIALIZED) &&
            cuda_is_full());
}

static void close_plan(const struct cublas_calls *calls, struct gemm_plan *plan)
{
    if (plan->desc != NULL) (void)calls->cublasLtMatmulDescDestroy(plan->desc);
    if (plan->x != NULL) (void)calls->cublasLtMatrixLayoutDestroy(plan->x);
    if (plan->w != NULL) (void)calls->cublasLtMatrixLayoutDestroy(plan->w);
    if (plan->y != NULL) (void)calls->cublasLtMatrixLayoutDestroy(plan->y);
    *plan = (struct gemm_plan){.desc = NULL};
}

static uint32_t plan_count(const struct gemm *gemm)
{
    return gemm->plans_made < GEMM_PLANS_MAX ? (uint32_t)gemm->plans_made : GEMM_PLANS_MAX;
}

void gemm_close(struct gemm *gemm)
{
    for (uint32_t i = 0; i < plan_count(gemm); i++)
        close_plan(&gemm->calls, &gemm->plans[i]);
    if (gemm->handle != NULL) (void)gemm->calls.cublasLtDestroy(gemm->handle);
    if (gemm->begin != NULL) (void)cudaEventDestroy(gemm->begin);
    if (gemm->end != NULL) (void)cudaEventDestroy(gemm->end);
    if (gemm->sum != NULL) (void)cudaFree(gemm->sum);
    os_free(gemm->plans);
    *gemm = (struct gemm){.plans_made = 0};
}

/* ------------------------------------------------------------------------------------ shapes */

static int32_t type_of(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* What an address and the rows after it are multiples of, up to the 16 bytes that fast kernels ask
 * for; more would make layers that differ in their place alone into different shapes. */
static int32_t alignment_of(const void *data, int64_t ld, enum dtype dtype)
{
    uintptr_t bits = (uintptr_t)data | (uintptr_t)((uint64_t)ld * dtype_bytes(dtype)) | 16u;

    return (int32_t)(bits & (~bits + 1));
}

static int32_t epilogue_of(const struct gemm_request *request)
{
    if (request->bias == NULL) return CUBLASLT_EPILOGUE_DEFAULT;
    return request->act == ACT_GELU_TANH ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
}

struct gemm_shape gemm_shape_of(const struct gemm_request *request)
{
    struct gemm_shape shape;

    must(request->x.dtype == request->w.dtype);
    must(request->act == ACT_NONE || request->bias != NULL);
    memset(&shape, 0, sizeof shape);
    shape.m = request->y.rows;
    shape.n = request->y.cols;
    shape.k = request->x.cols;
    shape.x_ld = request->x.ld;
    shape.w_ld = request->w.ld;
    shape.y_ld = request->y.ld;
    shape.in_type = type_of(request->x.dtype);
    shape.out_type = type_of(request->y.dtype);
    shape.epilogue = epilogue_of(request);
    shape.plain = request->plain;
    shape.many = !request->fixed_rows && (request->of_map || shape.m > BACKEND_ROWS_FEW);
    shape.x_align = alignment_of(request->x.data, request->x.ld, request->x.dtype);
    shape.w_align = alignment_of(request->w.data, request->w.ld, request->w.dtype);
    shape.y_align = alignment_of(request->y.data, request->y.ld, request->y.dtype);
    shape.bias_align = alignment_of(request->bias, 0, request->y.dtype);
    return shape;
}

/* ------------------------------------------------------------------------------------- plans */

static int set(const struct gemm *gemm, cublasLtMatmulDesc_t desc,
               cublasLtMatmulDescAttributes_t name, const void *value, size_t bytes)
{
    return (int)gemm->calls.cublasLtMatmulDescSetAttribute(desc, name, value, bytes);
}

static int describe(const struct gemm *gemm, struct gemm_plan *plan)
{
    const struct cublas_calls *calls = &gemm->calls;
    const struct gemm_shape   *s = &plan->shape;
    const cublasOperation_t    w_op = s->plain ? CUBLAS_OP_N : CUBLAS_OP_T;
    const uint64_t             n = (uint64_t)s->n, m = (uint64_t)s->m, k = (uint64_t)s->k;
    const cudaDataType_t       in = (cudaDataType_t)s->in_type, to = (cudaDataType_t)s->out_type;
    const cublasLtEpilogue_t   epilogue = (cublasLtEpilogue_t)s->epilogue;

    int status = (int)calls->cublasLtMatmulDescCreate(&plan->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status) status = set(gemm, plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, &w_op, sizeof w_op);
    if (!status)
        status = set(gemm, plan->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (!status && epilogue != CUBLASLT_EPILOGUE_DEFAULT)
        status = set(gemm, plan->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &to, sizeof to);
    if (!status)
        status = (int)calls->cublasLtMatrixLayoutCreate(&plan->w, in, s->plain ? n : k,
                                                        s->plain ? k : n, s->w_ld);
    if (!status) status = (int)calls->cublasLtMatrixLayoutCreate(&plan->x, in, k, m, s->x_ld);
    if (!status) status = (int)calls->cublasLtMatrixLayoutCreate(&plan->y, to, n, m, s->y_ld);
    return status;
}

/* Proposals that the library itself takes back are none. */
static int keep_usable(cublasLtMatmulHeuristicResult_t *results, int count)
{
    int kept = 0;

    for (int i = 0; i < count; i++)
        if (results[i].state == CUBLAS_STATUS_SUCCESS) results[kept++] = results[i];
    return kept;
}

static int propose(const struct gemm *gemm, const struct gemm_plan *plan,
                   cublasLtMatmulHeuristicResult_t *results, int *count_out)
{
    const struct cublas_calls *calls = &gemm->calls;
    const uint64_t             workspace = GEMM_WORKSPACE_BYTES;
    const uint32_t             in_order = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t align[3] = {(uint32_t)plan->shape.w_align, (uint32_t)plan->shape.x_align,
                               (uint32_t)plan->shape.y_align};
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void                          *value;
        size_t                               bytes;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &in_order, sizeof in_order},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align[0], sizeof align[0]},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align[1], sizeof align[1]},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align[2], sizeof align[2]},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align[2], sizeof align[2]},
    };
    cublasLtMatmulPreference_t preference = NULL;
    int                        status = (int)calls->cublasLtMatmulPreferenceCreate(&preference);

    for (size_t i = 0; i < ARRAY_COUNT(wishes) && !status; i++)
        status = (int)calls->cublasLtMatmulPreferenceSetAttribute(preference, wishes[i].name,
                                                                  wishes[i].value, wishes[i].bytes);
    if (!status)
        status = (int)calls->cublasLtMatmulAlgoGetHeuristic(gemm->handle, plan->desc, plan->w,
                                                            plan->x, plan->y, plan->y, preference,
                                                            GEMM_ASKED_MAX, results, count_out);
    if (preference != NULL) (void)calls->cublasLtMatmulPreferenceDestroy(preference);
    if (!status) *count_out = keep_usable(results, *count_out);
    return status;
}

/* Describes the plan's shape and asks for proposals. */
static int ask(const struct gemm *gemm, struct gemm_plan *plan, const struct gemm_request *request,
               cublasLtMatmulHeuristicResult_t *results, int *count_out)
{
    int status = describe(gemm, plan);

    if (!status && request->bias != NULL)
        status = set(gemm, plan->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &request->bias,
                     sizeof request->bias);
    return status ? status : propose(gemm, plan, results, count_out);
}

int gemm_multiply(const struct gemm *gemm, const struct gemm_plan *plan,
                  const struct gemm_request *request, const cublasLtMatmulAlgo_t *algo,
                  cudaStream_t stream)
{
    const float one = 1.0f, zero = 0.0f;
    int         status = 0;

    if (request->bias != NULL)
        status = set(gemm, plan->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &request->bias,
                     sizeof request->bias);
    if (!status)
        status = (int)gemm->calls.cublasLtMatmul(
            gemm->handle, plan->desc, &one, request->w.data, plan->w, request->x.data, plan->x,
            &zero, request->y.data, plan->y, request->y.data, plan->y, algo,
            request->workspace.data, GEMM_WORKSPACE_BYTES, stream);
    return status == 0 ? 0 : STATUS_CUBLAS + status;
}

/* ----------------------------------------------------------------------------------- finding */

/* Does an algorithm that was not proposed for this shape do for it? */
static bool suits(const struct gemm *gemm, const struct gemm_plan *plan,
                  const cublasLtMatmulAlgo_t *algo)
{
    cublasLtMatmulHeuristicResult_t checked;

    return gemm->calls.cublasLtMatmulAlgoCheck(gemm->handle, plan->desc, plan->w, plan->x, plan->y,
                                               plan->y, algo, &checked) == CUBLAS_STATUS_SUCCESS &&
           checked.workspaceSize <= GEMM_WORKSPACE_BYTES;
}

/* The first proposal for as many rows as are asked about, if it does for this shape too. */
static bool ask_for_many(const struct gemm *gemm, const struct gemm_plan *plan,
                         const struct gemm_request *request, cublasLtMatmulAlgo_t *algo_out)
{
    cublasLtMatmulHeuristicResult_t results[GEMM_ASKED_MAX] = {{.state = 0}};
    struct gemm_plan                asked = {.shape = plan->shape};
    int                             count = 0, status;

    if (!plan->shape.many) return false;
    asked.shape.m = ASKED_ROWS;
    status = ask(gemm, &asked, request, results, &count);
    close_plan(&gemm->calls, &asked);
    if (status || count == 0) return false;
    *algo_out = results[0].algo;
    return suits(gemm, plan, algo_out);
}

/* What the library has beside its proposals, as far as it lets this shape have it: of the first
 * one, with other tiles, clusters, and orders of tiles, which it calls custom options.  Of all that
 * could be put together, these were the fastest for FLUX.1's products on an H100 at its limit of
 * power, by up to 8 % beside the best proposal. */
static int add_variants(const struct gemm *gemm, const struct gemm_plan *plan,
                        cublasLtMatmulHeuristicResult_t *results, int count)
{
#define VARIANT(tile, cluster, order)                                                              \
    {                                                                                              \
        CUBLASLT_MATMUL_TILE_##tile, CUBLASLT_CLUSTER_SHAPE_##cluster, order                       \
    }
    static const struct {
        uint32_t tile;
        uint16_t cluster;
        uint32_t order;
    } variants[] = {
        VARIANT(128x160, 2x1x1, 1), VARIANT(192x96, 1x2x1, 3),  VARIANT(96x192, 2x1x1, 0),
        VARIANT(192x192, 1x2x1, 5), VARIANT(192x192, 1x2x1, 7), VARIANT(128x128, 1x2x1, 3),
        VARIANT(128x256, 2x1x1, 5), VARIANT(128x256, 2x1x1, 7), VARIANT(256x160, 2x1x1, 5),
        VARIANT(256x160, 1x2x1, 7), VARIANT(256x128, 1x2x1, 5), VARIANT(128x160, 1x2x1, 3),
        VARIANT(128x288, 2x1x1, 5), VARIANT(192x192, 2x1x1, 7)};
#undef VARIANT

    for (size_t i = 0; i < ARRAY_COUNT(variants) && count < GEMM_PROPOSALS_MAX; i++) {
        cublasLtMatmulAlgo_t algo = results[0].algo;
        const struct {
            cublasLtMatmulAlgoConfigAttributes_t name;
            const void                          *value;
            size_t                               bytes;
        } sets[] = {
            {CUBLASLT_ALGO_CONFIG_TILE_ID, &variants[i].tile, sizeof variants[i].tile},
            {CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &variants[i].cluster,
             sizeof variants[i].cluster},
            {CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, &variants[i].order, sizeof variants[i].order},
        };
        int status = 0;
        for (size_t n = 0; n < ARRAY_COUNT(sets) && !status; n++)
            status = (int)gemm->calls.cublasLtMatmulAlgoConfigSetAttribute(
                &algo, sets[n].name, sets[n].value, sets[n].bytes);
        if (!status && suits(gemm, plan, &algo)) results[count++].algo = algo;
    }
    return count;
}

static struct gemm_plan *find(struct gemm *gemm, const struct gemm_shape *shape)
{
    for (uint32_t i = 0; i < plan_count(gemm); i++)
        if (memcmp(&gemm->plans[i].shape, shape, sizeof *shape) == 0) return &gemm->plans[i];
    return NULL;
}

/* The oldest goes when there is no place: nobody has a plan for longer than a call. */
static struct gemm_plan *keep(struct gemm *gemm, struct gemm_plan made)
{
    struct gemm_plan *plan = &gemm->plans[gemm->plans_made++ % GEMM_PLANS_MAX];

    close_plan(&gemm->calls, plan);
    *plan = made;
    return plan;
}

static int make(struct gemm *gemm, const struct gemm_request *request,
                const struct gemm_shape *shape, bool rehearsing, cudaStream_t stream,
                struct gemm_plan **out)
{
    cublasLtMatmulHeuristicResult_t results[GEMM_PROPOSALS_MAX] = {{.state = 0}};
    struct gemm_plan                made = {.shape = *shape};
    int                             count = 0, status = ask(gemm, &made, request, results, &count);

    if (!status && count == 0) status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (status) {
        close_plan(&gemm->calls, &made);
        return STATUS_CUBLAS + status;
    }
    if (!ask_for_many(gemm, &made, request, &made.algo)) made.algo = results[0].algo;
    if (rehearsing && contest_is_worth(shape)) {
        count = add_variants(gemm, &made, results, count);
        status = contest_choose(gemm, &made, request, results, count, stream);
    }
    if (status)
        close_plan(&gemm->calls, &made);
    else
        *out = keep(gemm, made);
    return status;
}

int gemm_run(struct gemm *gemm, const struct gemm_request *request, bool rehearsing,
             cudaStream_t stream)
{
    struct gemm_shape shape = gemm_shape_of(request);
    struct gemm_plan *plan = find(gemm, &shape);
    int               status = 0;

    must(request->workspace.bytes >= GEMM_WORKSPACE_BYTES);
    if (plan == NULL) status = make(gemm, request, &shape, rehearsing, stream, &plan);
    if (status || rehearsing) return status;
    return gemm_multiply(gemm, plan, request, &plan->algo, stream);
}
