/*
 * cuda_contest.c - which of cuBLASLt's proposals a product gets: tried on this machine, once.
 *
 * Owns the trials and what is kept of them.  cuda_gemm.c says why only a proposal of the
 * reference's bits may take its place; which of those does is a matter of time alone.
 *
 * All are run alone, three times.  What is short then is short on a cool card: one that stands at
 * its limit of power, as in the steps of a large tile, lowers its clocks, and the one that does the
 * product for the least energy wins.  So of large products those that are close are run again on a
 * hot card, for a dozen milliseconds each and in turns, and the slower half leaves after each
 * round.
 *
 * The choice is kept for later starts, under a hash of all that it depends on: shape, card,
 * versions, the reference, and the weights that the bits were compared with, for of zeros all
 * proposals make the same.  It is a hash of the algorithm itself, and is taken only if the library
 * proposes that very algorithm again: no file makes it run one that it would not.
 *
 * Read next: choices.c.
 */
#include "backend/choices.h"
#include "backend/cuda_int.h"
#include "kernels/kernels_cuda.h"

#include <math.h>
#include <stdlib.h>

enum { RUNS_ALONE = 3, ROUNDS = 5 /* 16 entrants, 8, 4, 2, 2 */ };

static const double FLOP_LEAST = 1e10;  /* below, the choice of an algorithm is not felt    */
static const double FLOP_LARGE = 2e11;  /* above the products of a draft, below a tile's    */
static const double MARGIN = 0.02;      /* what runs alone may differ by, by chance         */
static const double CLOSE = 1.1;        /* alone; a card at its limit seldom mends more     */
static const double HEAT_SECONDS = 0.1; /* before the first turn */
static const double TURN_SECONDS = 0.012;

struct entrant {
    const cublasLtMatmulAlgo_t *algo;
    int                         number;    /* of the proposal, from 1; 0: the reference       */
    double                      alone;     /* seconds of the fastest run                      */
    double                      sustained; /* seconds of a run, in the mean of its turns      */
};

struct contest {
    struct gemm               *gemm;
    const struct gemm_plan    *plan; /* its algorithm is the reference */
    const struct gemm_request *request;
    cudaStream_t               stream;
    int                        count;
    struct entrant             entrants[1 + GEMM_PROPOSALS_MAX]; /* all have the same bits */
};

static double flop_of(const struct gemm_shape *shape)
{
    return 2.0 * (double)shape->m * (double)shape->n * (double)shape->k;
}

bool contest_is_worth(const struct gemm_shape *shape)
{
    return shape->in_type == CUDA_R_16BF && flop_of(shape) >= FLOP_LEAST;
}

static uint64_t name_of(const cublasLtMatmulAlgo_t *algo)
{
    return hash64(algo, sizeof *algo, 0);
}

/* ------------------------------------------------------------------------ running and comparing */

static int time_runs(const struct contest *contest, const cublasLtMatmulAlgo_t *algo, int runs,
                     double *seconds_out)
{
    const struct gemm *gemm = contest->gemm;
    float              milliseconds = 0;
    int                status = (int)cudaEventRecord(gemm->begin, contest->stream);

    for (int run = 0; run < runs && !status; run++)
        status = gemm_multiply(gemm, contest->plan, contest->request, algo, contest->stream);
    if (!status) status = (int)cudaEventRecord(gemm->end, contest->stream);
    if (!status) status = (int)cudaEventSynchronize(gemm->end);
    if (!status) status = (int)cudaEventElapsedTime(&milliseconds, gemm->begin, gemm->end);
    *seconds_out = 1e-3 * (double)milliseconds / runs;
    return status;
}

/* Of the bits of these matrices. */
static int sum_bits(const struct contest *contest, const struct matrix *matrices, int count,
                    uint64_t *sum_out)
{
    uint64_t *sum = contest->gemm->sum;
    int       status = (int)cudaMemsetAsync(sum, 0, sizeof *sum, contest->stream);

    for (int i = 0; i < count && !status; i++)
        status = k_checksum_cuda(sum, matrices[i], contest->stream);
    if (!status)
        status = (int)cudaMemcpyAsync(sum_out, sum, sizeof *sum, cudaMemcpyDeviceToHost,
                                      contest->stream);
    return status ? status : (int)cudaStreamSynchronize(contest->stream);
}

static int run_alone(const struct contest *contest, struct entrant *entrant, uint64_t *sum_out)
{
    double seconds;
    int    status = time_runs(contest, entrant->algo, 1, &seconds); /* warms up */

    entrant->alone = INFINITY;
    for (int run = 0; run < RUNS_ALONE && !status; run++) {
        status = time_runs(contest, entrant->algo, 1, &seconds);
        if (seconds < entrant->alone) entrant->alone = seconds;
    }
    return status ? status : sum_bits(contest, &contest->request->y, 1, sum_out);
}

static struct matrix bias_of(const struct gemm_request *request)
{
    return (struct matrix){.data = (void *)(uintptr_t)request->bias,
                           .dtype = request->y.dtype,
                           .rows = 1,
                           .cols = request->y.cols,
                           .ld = request->y.cols};
}

/* Numbers where a rehearsal has none: what lies there by chance, a NaN or zeros, would make all
 * proposals agree. */
static int make_up(const struct gemm_request *request, cudaStream_t stream)
{
    int status = k_fill_cuda(request->x, 1, stream);

    if (!status && !request->w_kept) status = k_fill_cuda(request->w, 2, stream);
    if (!status && request->bias != NULL && !request->bias_kept)
        status = k_fill_cuda(bias_of(request), 3, stream);
    return status;
}

/* --------------------------------------------------------------------------------- choosing */

/* The reference, and others of its bits. */
static int enter(struct contest *contest, const cublasLtMatmulHeuristicResult_t *results, int count)
{
    uint64_t sum, first_sum;
    int      status = make_up(contest->request, contest->stream);

    contest->entrants[0] = (struct entrant){.algo = &contest->plan->algo};
    contest->count = 1;
    if (!status) status = run_alone(contest, &contest->entrants[0], &first_sum);
    for (int i = 0; i < count && !status; i++) {
        struct entrant *next = &contest->entrants[contest->count];
        if (name_of(&results[i].algo) == name_of(&contest->plan->algo)) continue;
        *next = (struct entrant){.algo = &results[i].algo, .number = i + 1};
        status = run_alone(contest, next, &sum);
        if (status >= STATUS_CUBLAS) /* refused after all; the card is well */
            status = 0;
        else if (!status && sum == first_sum)
            contest->count++;
    }
    return status;
}

static int by_sustained(const void *a, const void *b)
{
    const struct entrant *const *one = a, *const *other = b;

    return ((*one)->sustained > (*other)->sustained) - ((*one)->sustained < (*other)->sustained);
}

static int runs_in(double seconds, const struct entrant *entrant)
{
    return 1 + (int)(seconds / fmax(entrant->alone, 1e-5));
}

/* Those that are close, in turns; the best of the last round in *winner_out. */
static int sustain(struct contest *contest, const struct entrant **winner_out)
{
    struct entrant *left[1 + GEMM_PROPOSALS_MAX], *reference = &contest->entrants[0];
    double          least = INFINITY, seconds;
    int             count = 0, status;

    for (int i = 0; i < contest->count; i++)
        least = fmin(least, contest->entrants[i].alone);
    for (int i = 0; i < contest->count; i++)
        if (contest->entrants[i].alone <= CLOSE * least) left[count++] = &contest->entrants[i];
    status = time_runs(contest, reference->algo, runs_in(HEAT_SECONDS, reference), &seconds);
    for (int round = 0; round < ROUNDS && !status; round++) {
        for (int i = 0; i < count && !status; i++) {
            status = time_runs(contest, left[i]->algo, runs_in(TURN_SECONDS, left[i]), &seconds);
            left[i]->sustained = (round * left[i]->sustained + seconds) / (round + 1);
        }
        qsort(left, (size_t)count, sizeof *left, by_sustained);
        if (count > 2) count = (count + 1) / 2;
    }
    *winner_out = left[0];
    return status;
}

/* The fastest alone, if chance does not explain it. */
static const struct entrant *fastest_alone(const struct contest *contest)
{
    const struct entrant *reference = &contest->entrants[0], *best = reference;

    for (const struct entrant *one = reference; one < reference + contest->count; one++)
        if (one->alone < best->alone && one->alone < (1 - MARGIN) * reference->alone) best = one;
    return best;
}

static double microseconds(const struct entrant *entrant)
{
    return 1e6 * (entrant->sustained > 0 ? entrant->sustained : entrant->alone);
}

static int try_all(struct contest *contest, const cublasLtMatmulHeuristicResult_t *results,
                   int count, cublasLtMatmulAlgo_t *algo_out)
{
    const struct gemm_shape *shape = &contest->plan->shape;
    const struct entrant    *winner = NULL;
    const bool               large = flop_of(shape) >= FLOP_LARGE;
    double                   began = os_seconds();
    int                      status = enter(contest, results, count);

    if (!status && large && contest->count > 1)
        status = sustain(contest, &winner);
    else
        winner = fastest_alone(contest);
    if (status) return status;
    *algo_out = *winner->algo;
    log_line(large ? LOG_INFO : LOG_DEBUG,
             "product %lld x %lld x %lld: proposal %d of %d, %d others of the same bits; %.0f us, "
             "the first %.0f us; tried for %.2f s",
             (long long)shape->m, (long long)shape->n, (long long)shape->k, winner->number, count,
             contest->count - 1, microseconds(winner), microseconds(&contest->entrants[0]),
             os_seconds() - began);
    return 0;
}

/* ----------------------------------------------------------------------------------- keeping */

/* A hash of all that the choice depends on; numbers that are made up are always the same. */
static int make_key(const struct contest *contest, uint64_t *key_out)
{
    const struct gemm_request *request = contest->request;
    struct {
        struct gemm_shape shape;
        uint64_t          machine, reference, operands;
    } all = {.shape = contest->plan->shape,
             .machine = contest->gemm->machine,
             .reference = name_of(&contest->plan->algo)};
    struct matrix kept[2];
    int           count = 0, status = 0;

    if (request->w_kept) kept[count++] = request->w;
    if (request->bias != NULL && request->bias_kept) kept[count++] = bias_of(request);
    if (count > 0) status = sum_bits(contest, kept, count, &all.operands);
    *key_out = hash64(&all, sizeof all, (uint64_t)count);
    return status;
}

/* The algorithm that was chosen before, if it is still among those that may be. */
static bool recall(const struct contest *contest, uint64_t key,
                   const cublasLtMatmulHeuristicResult_t *results, int count,
                   cublasLtMatmulAlgo_t *algo_out)
{
    const struct gemm_shape *shape = &contest->plan->shape;
    uint64_t                 choice;
    int                      number = 0;

    if (!choices_find(&choice, key)) return false;
    *algo_out = contest->plan->algo;
    while (name_of(algo_out) != choice) {
        if (number == count) return false;
        *algo_out = results[number++].algo;
    }
    log_line(LOG_DEBUG, "product %lld x %lld x %lld: proposal %d of %d, as tried before",
             (long long)shape->m, (long long)shape->n, (long long)shape->k, number, count);
    return true;
}

int contest_choose(struct gemm *gemm, struct gemm_plan *plan, const struct gemm_request *request,
                   const cublasLtMatmulHeuristicResult_t *results, int count, cudaStream_t stream)
{
    struct contest contest = {.gemm = gemm, .plan = plan, .request = request, .stream = stream};
    cublasLtMatmulAlgo_t algo;
    uint64_t             key = 0;
    int                  status = make_key(&contest, &key);
    bool                 known = !status && recall(&contest, key, results, count, &algo);

    must(count <= GEMM_PROPOSALS_MAX);
    if (known) status = gemm_multiply(gemm, plan, request, &algo, stream);
    if (known && status >= STATUS_CUBLAS) { /* refused today */
        known = false;
        status = 0;
    }
    if (!status && !known) {
        status = try_all(&contest, results, count, &algo);
        if (!status) choices_keep(key, name_of(&algo));
    }
    if (!status) plan->algo = algo;
    return status;
}
