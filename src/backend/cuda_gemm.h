/*
 * cuda_gemm.h - products on a GPU, and what cuda_gemm.c shares with the trials of cuda_contest.c.
 *
 * Private to backend/, and only in builds that have CUDA.
 */
#ifndef MURAL_CUDA_GEMM_H
#define MURAL_CUDA_GEMM_H

#include "backend/backend_int.h"
#include "kernels/kernels.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#define CUBLAS_CALLS(X)                                                                            \
    X(cublasLtCreate)                                                                              \
    X(cublasLtDestroy)                                                                             \
    X(cublasLtMatmul)                                                                              \
    X(cublasLtMatmulAlgoCheck)                                                                     \
    X(cublasLtMatmulAlgoGetHeuristic)                                                              \
    X(cublasLtMatmulDescCreate)                                                                    \
    X(cublasLtMatmulDescDestroy)                                                                   \
    X(cublasLtMatmulDescSetAttribute)                                                              \
    X(cublasLtMatmulPreferenceCreate)                                                              \
    X(cublasLtMatmulPreferenceDestroy)                                                             \
    X(cublasLtMatmulPreferenceSetAttribute)                                                        \
    X(cublasLtMatrixLayoutCreate)                                                                  \
    X(cublasLtMatrixLayoutDestroy)                                                                 \
    X(cublasLtGetStatusString)

struct cublas_calls {
#define CUBLAS_FIELD(name) __typeof__(&name) name;
    CUBLAS_CALLS(CUBLAS_FIELD)
#undef CUBLAS_FIELD
};

/* One product y[m, n] = x[m, k] . w, w as [n, k], or as [k, n] when `plain`; all that the choice of
 * an algorithm depends on.  Compared as bytes, so made from zeros. */
struct gemm_shape {
    int64_t m, n, k, x_ld, w_ld, y_ld;
    int32_t in_type, out_type; /* cudaDataType_t; x and w are of one type */
    int32_t epilogue;
    int16_t plain, many; /* many: the algorithm is that of many rows, whatever m */
    int32_t x_align, w_align, y_align, bias_align;
};

struct gemm_plan {
    struct gemm_shape      shape;
    cublasLtMatmulDesc_t   desc;
    cublasLtMatrixLayout_t x, w, y;
    cublasLtMatmulAlgo_t   algo;
};

/* More than the shapes of any model at two sizes of picture; and as many algorithms as are asked
 * for. */
enum { GEMM_PLANS_MAX = 512, GEMM_PROPOSALS_MAX = 12 };
#define GEMM_WORKSPACE_BYTES ((uint64_t)32 << 20)
#define GEMM_SCRATCH_BYTES   (GEMM_WORKSPACE_BYTES + WORKSPACE_ALIGNMENT)

struct gemm {
    struct cublas_calls calls;
    cublasLtHandle_t    handle;
    struct gemm_plan   *plans;      /* [GEMM_PLANS_MAX], used in turn */
    uint64_t            plans_made; /* ever */
    cudaEvent_t         begin, end;
    uint64_t           *sum;     /* device memory, one number */
    uint64_t            machine; /* a hash of the card and of all versions */
};

struct gemm_request {
    struct matrix    y, x, w; /* x and w of one type, f32 or bf16 */
    const void      *bias;    /* of y's type, for the epilogue; NULL: none */
    enum activation  act;     /* ACT_NONE, or ACT_GELU_TANH with a bias and bf16 */
    bool             plain;   /* w is [k, n] */
    bool             of_map; /* x and y are rows of a map, which may come in strips of any height */
    bool             w_kept, bias_kept; /* they hold their numbers in a rehearsal too */
    struct workspace workspace;
};
/* As cuda_library_version. */
size_t gemm_version(void);
/* `numeric`: the card and the versions of libraries, as in struct backend_device. */
int  gemm_open(struct gemm *gemm, const char *numeric, struct err *err);
void gemm_close(struct gemm *gemm);
/* Is it the card's memory that a status of cuBLASLt is about? */
bool gemm_lacks_memory(int status);
/* In a rehearsal proposals are tried: x, and of w and bias what is not kept, are filled with
 * made-up numbers and y overwritten; nothing else is computed. */
int gemm_run(struct gemm *gemm, const struct gemm_request *request, bool rehearsing,
             cudaStream_t stream);
/* Pure: the shape of a request. */
struct gemm_shape gemm_shape_of(const struct gemm_request *request);

/* ------------------------------------------- between cuda_gemm.c and its trials (cuda_contest.c)
 */

/* With any algorithm that is of the plan's shape. */
int gemm_multiply(const struct gemm *gemm, const struct gemm_plan *plan,
                  const struct gemm_request *request, const cublasLtMatmulAlgo_t *algo,
                  cudaStream_t stream);
/* Is a choice felt? */
bool contest_is_worth(const struct gemm_shape *shape);
/* Puts the fastest of the proposals in the place of the plan's algorithm, which is the reference,
 * or leaves that: only one whose result has the same bits.  Overwrites the request's operands as a
 * rehearsal does, and has the algorithm run once at least, so that its code is on the card. */
int contest_choose(struct gemm *gemm, struct gemm_plan *plan, const struct gemm_request *request,
                   const cublasLtMatmulHeuristicResult_t *results, int count, cudaStream_t stream);

#endif
