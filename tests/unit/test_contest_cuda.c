/*
 * test_contest_cuda.c - which proposal a product gets, on a card that only pretends to multiply: no
 * GPU is needed.
 *
 * Its clock is made: each proposal takes one time on a cool card, and another once the card has run
 * for a while.  The source under test is compiled here, against these functions instead of
 * CUDA's and the kernels'; what is kept goes to a folder of the test's own.
 */
#include "../test.h"

#include "backend/choices.h"
#include "backend/cuda_int.h"
#include "kernels/kernels_cuda.h"

/* -------------------------------------------------------------------------------------- a card */

enum { PROPOSALS = 6, HEAT_RUNS = 1500 };

static struct proposal {
    double   cool_us, hot_us;
    uint64_t bits;    /* of the result */
    bool     refused; /* by the library, when it is to multiply */
    int      runs;
} made_proposals[PROPOSALS + 1];

static struct {
    double   clock_us, begin_us, end_us;
    int      since_pause, runs, fills;
    int      calls, fails_at; /* the call with this number; 0: none */
    uint64_t result, weights; /* bits of y; of the weights           */
} made;

static struct gemm made_gemm = {.machine = 1};
static char        memory[64];

static int call(void)
{
    return ++made.calls == made.fails_at ? (int)cudaErrorUnknown : 0;
}

static int made_multiply(const struct gemm *gemm, const struct gemm_plan *plan,
                         const struct gemm_request *request, const cublasLtMatmulAlgo_t *algo,
                         cudaStream_t stream)
{
    struct proposal *proposal = &made_proposals[algo->data[0]];

    (void)stream;
    assert_true(gemm == &made_gemm && plan != NULL && request != NULL);
    assert_true(algo->data[0] <= PROPOSALS);
    if (proposal->refused) return STATUS_CUBLAS + (int)CUBLAS_STATUS_NOT_SUPPORTED;
    made.clock_us += made.since_pause++ < HEAT_RUNS ? proposal->cool_us : proposal->hot_us;
    made.result = proposal->bits;
    made.runs++;
    proposal->runs++;
    return call();
}

/* The gemm's two events are told apart by their addresses. */
static cudaError_t made_record(cudaEvent_t event, cudaStream_t stream)
{
    (void)stream;
    if (event == made_gemm.begin)
        made.begin_us = made.clock_us;
    else
        made.end_us = made.clock_us;
    return (cudaError_t)call();
}

static cudaError_t made_await(cudaEvent_t event)
{
    assert_true(event == made_gemm.end);
    if (made.end_us - made.begin_us < 10000) made.since_pause = 0; /* cools down */
    return (cudaError_t)call();
}

static cudaError_t made_elapsed(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    assert_true(begin == made_gemm.begin && end == made_gemm.end);
    *milliseconds = (float)(1e-3 * (made.end_us - made.begin_us));
    return (cudaError_t)call();
}

static cudaError_t made_set(void *target, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    memset(target, value, bytes);
    return (cudaError_t)call();
}

static cudaError_t made_copy(void *target, const void *source, size_t bytes,
                             enum cudaMemcpyKind kind, cudaStream_t stream)
{
    (void)stream;
    assert_int_equal(kind, cudaMemcpyDeviceToHost);
    memcpy(target, source, bytes);
    return (cudaError_t)call();
}

static cudaError_t made_wait(cudaStream_t stream)
{
    (void)stream;
    return (cudaError_t)call();
}

static int made_fill(struct matrix y, uint64_t seed, struct CUstream_st *stream)
{
    (void)stream;
    assert_true(y.data != NULL && seed > 0);
    made.fills++;
    return call();
}

/* Of the result at its own place, of weights elsewhere. */
static int made_checksum(uint64_t *sum_out, struct matrix y, struct CUstream_st *stream)
{
    (void)stream;
    *sum_out += y.data == memory ? made.result : made.weights;
    return call();
}

#define gemm_multiply         made_multiply
#define contest_is_worth      made_is_worth
#define contest_choose        made_choose
#define k_fill_cuda           made_fill
#define k_checksum_cuda       made_checksum
#define cudaEventRecord       made_record
#define cudaEventSynchronize  made_await
#define cudaEventElapsedTime  made_elapsed
#define cudaMemsetAsync       made_set
#define cudaMemcpyAsync       made_copy
#define cudaStreamSynchronize made_wait
#include "src/backend/cuda_contest.c"

/* --------------------------------------------------------------------------------------- tests */

static char     folder[256];
static uint64_t made_sum;

enum { LARGE = 16384, SMALL = 1024 }; /* rows, of 3072 x 3072 */

/* All alike and 100 us long, with the reference's bits. */
static int begin(void **state)
{
    (void)state;
    scratch_make(folder, sizeof folder);
    memset(&made, 0, sizeof made);
    made_gemm = (struct gemm){.begin = (cudaEvent_t)(void *)&memory[0],
                              .end = (cudaEvent_t)(void *)&memory[1],
                              .sum = &made_sum,
                              .machine = 1};
    for (int i = 0; i <= PROPOSALS; i++)
        made_proposals[i] = (struct proposal){.cool_us = 100, .hot_us = 150, .bits = 7};
    return setenv("XDG_CACHE_HOME", folder, 1);
}

static int end(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

/* The status; the number of the algorithm that was chosen, 0 the reference's, in *chosen_out. */
static int choose_of(int64_t rows, bool kept, int proposals, uint64_t *chosen_out)
{
    static char                     weights[64];
    struct gemm_request             request = {.y = {memory, DTYPE_BF16, rows, 3072, 3072},
                                               .x = {weights, DTYPE_BF16, rows, 3072, 3072},
                                               .w = {weights, DTYPE_BF16, 3072, 3072, 3072},
                                               .bias = weights,
                                               .w_kept = kept,
                                               .bias_kept = kept};
    struct gemm_plan                plan = {.shape = gemm_shape_of(&request)};
    cublasLtMatmulHeuristicResult_t results[GEMM_PROPOSALS_MAX] = {{.state = 0}};
    int                             status;

    assert_true(contest_is_worth(&plan.shape));
    for (int i = 0; i < proposals; i++)
        results[i].algo.data[0] = (uint64_t)i + 1;
    for (int i = 0; i <= PROPOSALS; i++)
        made_proposals[i].runs = 0;
    made.runs = made.fills = made.calls = made.since_pause = 0;
    status = contest_choose(&made_gemm, &plan, &request, results, proposals, NULL);
    *chosen_out = plan.algo.data[0];
    return status;
}

static uint64_t choose(int64_t rows)
{
    uint64_t chosen = 99;

    assert_int_equal(choose_of(rows, true, PROPOSALS, &chosen), 0);
    return chosen;
}

static bool is_recalled(void)
{
    return made.runs == 1 && made.fills == 0;
}

static void forget(void)
{
    char path[320];

    (void)snprintf(path, sizeof path, "%s/mural", folder);
    scratch_remove(path);
}

static void a_short_product_gets_the_fastest_alone(void **state)
{
    (void)state;
    made_proposals[4].cool_us = 90;
    made_proposals[4].hot_us = 1000;
    made_proposals[5].cool_us = 95;
    assert_int_equal(choose(SMALL), 4);
    assert_in_range(made.runs, 1, 4 * (PROPOSALS + 1));
}

static void chance_replaces_no_reference(void **state)
{
    (void)state;
    made_proposals[2].cool_us = 99;
    assert_int_equal(choose(SMALL), 0);
}

/* One that is a little slower alone does more work for the energy. */
static void a_large_product_gets_the_best_that_lasts(void **state)
{
    (void)state;
    made_proposals[1].cool_us = 92;
    made_proposals[3].cool_us = 98;
    made_proposals[3].hot_us = 140;
    made_proposals[6] = (struct proposal){.cool_us = 103, .hot_us = 120, .bits = 7}; /* not close */
    assert_int_equal(choose(LARGE), 3);
    assert_int_equal(made_proposals[6].runs, 4);
    assert_true(made_proposals[3].runs > 500);
}

static void other_bits_are_never_chosen(void **state)
{
    (void)state;
    for (int i = 1; i <= PROPOSALS; i++) {
        made_proposals[i].cool_us = made_proposals[i].hot_us = 10 * i;
        made_proposals[i].bits = i == 5 ? 7 : 8;
    }
    for (int again = 0; again < 2; again++) {
        assert_int_equal(choose(SMALL), 5);
        assert_int_equal(choose(LARGE), 5);
    }
    made_proposals[5].bits = 9;
    forget();
    assert_int_equal(choose(LARGE), 0);
}

static void all_turns_together_are_bounded(void **state)
{
    uint64_t chosen;

    (void)state;
    for (int count = 1; count <= PROPOSALS; count++) {
        double before = made.clock_us;
        forget();
        assert_int_equal(choose_of(LARGE, true, count, &chosen), 0);
        assert_true(made.clock_us - before < 1e6);
    }
}

static void what_is_refused_is_left_out(void **state)
{
    (void)state;
    made_proposals[2] = (struct proposal){.cool_us = 10, .hot_us = 10, .bits = 7, .refused = true};
    assert_int_equal(choose(LARGE), 0);
    made_proposals[2].refused = false;
    forget();
    assert_int_equal(choose(LARGE), 2);
    made_proposals[2].refused = true; /* after it was kept */
    assert_int_equal(choose(LARGE), 0);
}

/* ------------------------------------------------------------------------------------- kept */

static void the_second_start_makes_no_trials(void **state)
{
    (void)state;
    made_proposals[3].hot_us = 140;
    assert_int_equal(choose(LARGE), 3);
    assert_false(is_recalled());
    made_proposals[3].hot_us = made_proposals[3].cool_us = 200; /* what it took is not asked */
    assert_int_equal(choose(LARGE), 3);
    assert_true(is_recalled());
    assert_int_equal(made_proposals[3].runs, 1); /* its code is on the card */
}

static void the_reference_is_kept_too(void **state)
{
    (void)state;
    for (int i = 1; i <= PROPOSALS; i++)
        made_proposals[i].cool_us = 200;
    assert_int_equal(choose(SMALL), 0);
    made_proposals[1].cool_us = 10;
    assert_int_equal(choose(SMALL), 0);
    assert_true(is_recalled());
}

/* The same bits for some weights, zeros at worst, say nothing of others. */
static void what_it_depends_on_is_tried_again(void **state)
{
    uint64_t chosen;

    (void)state;
    made_proposals[3].cool_us = made_proposals[3].hot_us = 50;
    assert_int_equal(choose(LARGE), 3);
    made_proposals[3].bits = 8;

    made.weights = 1;
    assert_int_equal(choose(LARGE), 0);
    made.weights = 0;
    made_gemm.machine = 2;
    assert_int_equal(choose(LARGE), 0);
    made_gemm.machine = 1;
    assert_int_equal(choose(LARGE + 256), 0);
    assert_int_equal(choose_of(LARGE, false, PROPOSALS, &chosen), 0);
    assert_int_equal(chosen, 0);

    assert_int_equal(choose(LARGE), 3); /* nothing of that changed what was kept */
    assert_true(is_recalled());
}

static void what_is_not_proposed_is_not_used(void **state)
{
    uint64_t chosen;

    (void)state;
    made_proposals[6].cool_us = made_proposals[6].hot_us = 50;
    assert_int_equal(choose(LARGE), 6);
    assert_int_equal(choose_of(LARGE, true, 5, &chosen), 0);
    assert_int_equal(chosen, 0);
    assert_false(is_recalled());
}

/* Whatever becomes of the file, it is tried again, and kept again. */
static void a_damaged_file_costs_a_trial(void **state)
{
    char path[320];

    (void)state;
    made_proposals[3].cool_us = made_proposals[3].hot_us = 50;
    assert_int_equal(choose(LARGE), 3);
    (void)snprintf(path, sizeof path, "%s/mural/choices", folder);
    scratch_write(path, "not what was here", 17);
    assert_int_equal(choose(LARGE), 3);
    assert_false(is_recalled());
    assert_int_equal(choose(LARGE), 3);
    assert_true(is_recalled());
    assert_int_equal(setenv("XDG_CACHE_HOME", "/dev/null", 1), 0);
    assert_int_equal(choose(LARGE), 3);
    assert_false(is_recalled());
}

/* A failure is told and nothing of it kept, trial or not. */
static void every_call_may_fail(void **state)
{
    uint64_t chosen;
    int      at, recalled = 0;

    (void)state;
    made_proposals[3].cool_us = made_proposals[3].hot_us = 5000;
    for (at = 1; recalled < 2; at++) {
        int status;
        made.fails_at = at;
        status = choose_of(SMALL, true, PROPOSALS, &chosen);
        if (made.calls < at) { /* it was never reached: all went well */
            assert_int_equal(status, 0);
            recalled++;
            at = 0;
        } else {
            assert_int_equal(status, cudaErrorUnknown);
            assert_int_equal(chosen, 0);
            assert_true(scratch_count(folder) == (recalled > 0));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_short_product_gets_the_fastest_alone, begin, end),
        cmocka_unit_test_setup_teardown(chance_replaces_no_reference, begin, end),
        cmocka_unit_test_setup_teardown(a_large_product_gets_the_best_that_lasts, begin, end),
        cmocka_unit_test_setup_teardown(other_bits_are_never_chosen, begin, end),
        cmocka_unit_test_setup_teardown(all_turns_together_are_bounded, begin, end),
        cmocka_unit_test_setup_teardown(what_is_refused_is_left_out, begin, end),
        cmocka_unit_test_setup_teardown(the_second_start_makes_no_trials, begin, end),
        cmocka_unit_test_setup_teardown(the_reference_is_kept_too, begin, end),
        cmocka_unit_test_setup_teardown(what_it_depends_on_is_tried_again, begin, end),
        cmocka_unit_test_setup_teardown(what_is_not_proposed_is_not_used, begin, end),
        cmocka_unit_test_setup_teardown(a_damaged_file_costs_a_trial, begin, end),
        cmocka_unit_test_setup_teardown(every_call_may_fail, begin, end)};
    return cmocka_run_group_tests_name("contest", tests, NULL, NULL);
}
