/*
 * test_gemm_cuda.c - which algorithm a product gets, from a library of products that only pretends:
 * no GPU is needed.
 *
 * What it proposes is named after the number of rows that it was asked about, so that what is
 * multiplied with tells who was asked.  Every object that it gives out is counted.  The source
 * under test is compiled here, with a contest that only looks at its entrants.
 */
#include "../test.h"

#define gemm_version      made_version
#define gemm_open         made_open
#define gemm_lacks_memory made_lacks_memory
#define gemm_close        made_close
#define gemm_shape_of     made_shape_of
#define gemm_multiply     made_multiply
#define gemm_run          made_run
#define contest_choose    made_contest
#include "src/backend/cuda_gemm.c"

/* ----------------------------------------------------------------------------------- a library */

static struct {
    int                  calls, fails_at; /* the call with this number; 0: none */
    int                  alive, asked;
    bool                 check_refuses;
    uint64_t             check_bytes; /* of workspace                 */
    uint64_t             used;        /* by the last product          */
    int                  entered;     /* for the last contest, 0: none */
    cublasLtMatmulAlgo_t entrants[GEMM_PROPOSALS_MAX];
} made;

struct made_object {
    uint64_t rows, cols;
};

static cublasStatus_t call(void)
{
    return ++made.calls == made.fails_at ? CUBLAS_STATUS_INTERNAL_ERROR : CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t create(void **out, uint64_t rows, uint64_t cols)
{
    struct made_object *object;
    cublasStatus_t      status = call();

    if (status != CUBLAS_STATUS_SUCCESS) return status;
    object = malloc(sizeof *object);
    assert_non_null(object);
    *object = (struct made_object){rows, cols};
    *out = object;
    made.alive++;
    return status;
}

static cublasStatus_t destroy(void *object)
{
    assert_non_null(object);
    free(object);
    made.alive--;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t desc_create(cublasLtMatmulDesc_t *out, cublasComputeType_t compute,
                                  cudaDataType_t scale)
{
    (void)compute;
    (void)scale;
    return create((void **)out, 0, 0);
}

static cublasStatus_t desc_destroy(cublasLtMatmulDesc_t desc)
{
    return destroy(desc);
}

static cublasStatus_t desc_set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name,
                               const void *value, size_t bytes)
{
    (void)name;
    assert_true(desc != NULL && value != NULL && bytes > 0);
    return call();
}

static cublasStatus_t layout_create(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows,
                                    uint64_t cols, int64_t ld)
{
    (void)type;
    assert_true(ld > 0);
    return create((void **)out, rows, cols);
}

static cublasStatus_t layout_destroy(cublasLtMatrixLayout_t layout)
{
    return destroy(layout);
}

static cublasStatus_t wish_create(cublasLtMatmulPreference_t *out)
{
    return create((void **)out, 0, 0);
}

static cublasStatus_t wish_destroy(cublasLtMatmulPreference_t wish)
{
    return destroy(wish);
}

static cublasStatus_t wish_set(cublasLtMatmulPreference_t           wish,
                               cublasLtMatmulPreferenceAttributes_t name, const void *value,
                               size_t bytes)
{
    (void)name;
    assert_true(wish != NULL && value != NULL && bytes > 0);
    return call();
}

static cublasStatus_t library_propose(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                      cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                      cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                      cublasLtMatmulPreference_t wish, int most,
                                      cublasLtMatmulHeuristicResult_t results[], int *count_out)
{
    cublasStatus_t status = call();

    (void)handle;
    assert_true(desc && a && b && c && d && wish && most > 0);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    made.asked++;
    results[0] = (cublasLtMatmulHeuristicResult_t){.state = CUBLAS_STATUS_SUCCESS};
    results[0].algo.data[0] = ((struct made_object *)b)->cols;
    *count_out = 1;
    return status;
}

/* What is set lies behind the name, each setting at its own place. */
static cublasStatus_t vary(cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t name,
                           const void *value, size_t bytes)
{
    assert_true((size_t)name < 15 && bytes <= 4);
    memcpy((uint32_t *)algo->data + 2 + name % 14, value, bytes);
    return call();
}

static cublasStatus_t check(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                            cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                            cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                            const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *out)
{
    (void)handle;
    assert_true(desc && a && b && c && d && algo);
    *out = (cublasLtMatmulHeuristicResult_t){.workspaceSize = made.check_bytes};
    return made.check_refuses ? CUBLAS_STATUS_NOT_SUPPORTED : call();
}

static cublasStatus_t library_multiply(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                       const void *alpha, const void *a,
                                       cublasLtMatrixLayout_t a_layout, const void *b,
                                       cublasLtMatrixLayout_t b_layout, const void *beta,
                                       const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                                       cublasLtMatrixLayout_t      d_layout,
                                       const cublasLtMatmulAlgo_t *algo, void *workspace,
                                       size_t bytes, cudaStream_t stream)
{
    (void)handle;
    (void)a;
    (void)b;
    (void)c;
    (void)d;
    (void)workspace;
    (void)stream;
    assert_true(desc && alpha && beta && a_layout && b_layout && c_layout && d_layout && bytes > 0);
    made.used = algo->data[0];
    return call();
}

int contest_choose(struct gemm *gemm, struct gemm_plan *plan, const struct gemm_request *request,
                   const cublasLtMatmulHeuristicResult_t *results, int count, cudaStream_t stream)
{
    assert_true(gemm != NULL && plan != NULL && request != NULL && stream == NULL);
    assert_in_range(count, 1, GEMM_PROPOSALS_MAX);
    made.entered = count;
    for (int i = 0; i < count; i++)
        made.entrants[i] = results[i].algo;
    return 0;
}

static struct gemm gemm_of_it(void)
{
    struct gemm gemm = {.calls = {.cublasLtMatmul = library_multiply,
                                  .cublasLtMatmulAlgoCheck = check,
                                  .cublasLtMatmulAlgoConfigSetAttribute = vary,
                                  .cublasLtMatmulAlgoGetHeuristic = library_propose,
                                  .cublasLtMatmulDescCreate = desc_create,
                                  .cublasLtMatmulDescDestroy = desc_destroy,
                                  .cublasLtMatmulDescSetAttribute = desc_set,
                                  .cublasLtMatmulPreferenceCreate = wish_create,
                                  .cublasLtMatmulPreferenceDestroy = wish_destroy,
                                  .cublasLtMatmulPreferenceSetAttribute = wish_set,
                                  .cublasLtMatrixLayoutCreate = layout_create,
                                  .cublasLtMatrixLayoutDestroy = layout_destroy}};
    struct err  err = {0};

    memset(&made, 0, sizeof made);
    ASSERT_OK(os_alloc((void **)&gemm.plans, GEMM_PLANS_MAX, sizeof *gemm.plans, "plans", &err));
    return gemm;
}

static int run_rows(struct gemm *gemm, int64_t rows, bool of_map, bool fixed)
{
    static char         nothing[64] __attribute__((aligned(64)));
    struct gemm_request request = {
        .y = {nothing, DTYPE_BF16, rows, 64, 64},
        .x = {nothing, DTYPE_BF16, rows, 32, 32},
        .w = {nothing, DTYPE_BF16, 64, 32, 32},
        .of_map = of_map,
        .fixed_rows = fixed,
        .workspace = {nothing, GEMM_WORKSPACE_BYTES},
    };

    return gemm_run(gemm, &request, false, NULL);
}

static int run(struct gemm *gemm, int64_t rows, bool of_map)
{
    return run_rows(gemm, rows, of_map, false);
}

/* --------------------------------------------------------------------------------------- tests */

/* A map's rows are multiplied in the same way however few come at a time, and so are those of any
 * step of more than BACKEND_ROWS_FEW; a text's few rows are their own, and so is a fixed number. */
static void parts_of_many_rows_are_asked_about_alike(void **state)
{
    static const int64_t rows[] = {1, 2, 63, 511, 512, 513, 4097, 40000};
    struct gemm          gemm = gemm_of_it();
    uint64_t             many;

    (void)state;
    assert_int_equal(run(&gemm, 5000, true), 0);
    many = made.used;
    assert_true(many > BACKEND_ROWS_FEW);
    for (int again = 0; again < 2; again++)
        for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
            assert_int_equal(run(&gemm, rows[i], true), 0);
            assert_int_equal(made.used, many);
            assert_int_equal(run(&gemm, rows[i], false), 0);
            assert_int_equal(made.used, rows[i] > BACKEND_ROWS_FEW ? many : (uint64_t)rows[i]);
            assert_int_equal(run_rows(&gemm, rows[i], false, true), 0);
            assert_int_equal(made.used, rows[i]);
        }
    gemm_close(&gemm);
    assert_int_equal(made.alive, 0);
}

static void what_does_not_fit_is_not_carried_over(void **state)
{
    struct gemm gemm = gemm_of_it();

    (void)state;
    made.check_refuses = true;
    assert_int_equal(run(&gemm, 700, true), 0);
    assert_int_equal(made.used, 700);
    gemm_close(&gemm);
    assert_int_equal(made.alive, 0);
}

/* The last GEMM_PLANS_MAX shapes are remembered, and nothing of those before is left. */
static void a_full_table_forgets_the_oldest(void **state)
{
    enum { SHAPES = 2 * GEMM_PLANS_MAX + 7 };
    struct gemm gemm = gemm_of_it();
    int         each;

    (void)state;
    assert_int_equal(run(&gemm, 600, true), 0);
    each = made.alive;
    for (int64_t i = 0; i < SHAPES; i++) {
        assert_int_equal(run(&gemm, 1000 + i, true), 0);
        assert_true(made.alive <= each * GEMM_PLANS_MAX);
    }
    int asked = made.asked;
    for (int64_t i = SHAPES - GEMM_PLANS_MAX; i < SHAPES; i++)
        assert_int_equal(run(&gemm, 1000 + i, true), 0);
    assert_int_equal(made.asked, asked);
    assert_int_equal(run(&gemm, 600, true), 0);
    assert_true(made.asked > asked);
    gemm_close(&gemm);
    assert_int_equal(made.alive, 0);
}

/* A failure is told, or other rows are asked about; nothing is left behind, and the next goes well.
 */
static void every_call_may_fail(void **state)
{
    bool told = true;

    (void)state;
    for (int at = 1; told || at < 40; at++) {
        struct gemm gemm = gemm_of_it();
        int         status;
        made.fails_at = at;
        status = run(&gemm, 700, true);
        told = made.calls >= at;
        assert_true(status == 0 || status == STATUS_CUBLAS + (int)CUBLAS_STATUS_INTERNAL_ERROR);
        if (!told) assert_int_equal(status, 0);
        made.fails_at = 0;
        assert_int_equal(run(&gemm, 700, true), 0);
        gemm_close(&gemm);
        assert_int_equal(made.alive, 0);
    }
}

/* How many may be chosen from for a product of 16384 rows and 3072 sums; what varies a proposal is
 * refused, or needs so much workspace. */
static int entrants_of(int64_t cols, bool rehearsing, bool refused, uint64_t workspace)
{
    static char         nothing[64] __attribute__((aligned(64)));
    struct gemm         gemm = gemm_of_it();
    struct gemm_request request = {.y = {nothing, DTYPE_BF16, 16384, cols, cols},
                                   .x = {nothing, DTYPE_BF16, 16384, 3072, 3072},
                                   .w = {nothing, DTYPE_BF16, cols, 3072, 3072},
                                   .workspace = {nothing, GEMM_WORKSPACE_BYTES}};

    made.check_refuses = refused;
    made.check_bytes = workspace;
    assert_int_equal(gemm_run(&gemm, &request, rehearsing, NULL), 0);
    gemm_close(&gemm);
    assert_int_equal(made.alive, 0);
    return made.entered;
}

/* Beside the one proposal, others like it, of which no two are the same. */
static void variants_of_a_proposal_may_be_chosen(void **state)
{
    int count = entrants_of(3072, true, false, 0);

    (void)state;
    assert_true(count > 1);
    for (int i = 0; i < count; i++) {
        assert_int_equal(made.entrants[i].data[0], 16384);
        for (int other = 0; other < i; other++)
            assert_memory_not_equal(&made.entrants[i], &made.entrants[other],
                                    sizeof made.entrants[i]);
    }
    assert_int_equal(entrants_of(3072, false, false, 0), 0); /* nothing is tried in work */
    assert_int_equal(entrants_of(64, true, false, 0), 0);    /* nor for what is not felt */
}

static void what_the_library_does_not_have_is_no_variant(void **state)
{
    (void)state;
    assert_int_equal(entrants_of(3072, true, true, 0), 1);
    assert_int_equal(entrants_of(3072, true, false, GEMM_WORKSPACE_BYTES + 1), 1);
    assert_true(entrants_of(3072, true, false, GEMM_WORKSPACE_BYTES) > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_of_many_rows_are_asked_about_alike),
        cmocka_unit_test(what_does_not_fit_is_not_carried_over),
        cmocka_unit_test(a_full_table_forgets_the_oldest),
        cmocka_unit_test(every_call_may_fail),
        cmocka_unit_test(variants_of_a_proposal_may_be_chosen),
        cmocka_unit_test(what_the_library_does_not_have_is_no_variant)};
    return cmocka_run_group_tests_name("gemm_cuda", tests, NULL, NULL);
}
