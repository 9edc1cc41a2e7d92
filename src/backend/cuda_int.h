/*
 * cuda_int.h - what the files behind backend_cuda.c share.
 *
 * Private to backend/, and only in builds that have CUDA.  Statuses of three libraries travel in
 * one int: CUDA's own as they are, the others above a base.
 */
#ifndef MURAL_CUDA_INT_H
#define MURAL_CUDA_INT_H

#include "backend/backend_int.h"
#include "backend/cuda_gemm.h"
#include "backend/cuda_ring.h"
#include "kernels/kernels.h"

#include <cuda_runtime_api.h>

enum { STATUS_CUBLAS = 1000000, STATUS_CUDNN = 2000000, STATUS_NO_PLAN = 3000000 };

/* What cuBLASLt's workspace must be a multiple of; arenas and pieces of scratch keep to 64. */
enum { WORKSPACE_ALIGNMENT = 256 };

/* Has the GPU no room left for a kernel's code, or for the tables of what is pinned?  A driver that
 * finds none says no more than that it failed.  (cuda_device.c) */
bool cuda_is_full(void);

/* ------------------------------------------------------------------- libraries (cuda_load.c) */

/* One symbol to find; `slot` gets its address. */
struct cuda_symbol {
    const char *name;
    void       *slot;
};
/* The library `soname`, from where the loader looks or where CUDA usually lies, with all symbols;
 * it stays loaded.  ERR_DEVICE: not found, or one symbol is missing. */
int cuda_load(const char *soname, const struct cuda_symbol *symbols, size_t count, struct err *err);
/* What `function` of that library, which takes nothing, says of its version, which decides the
 * order of sums; 0: there is no such library. */
size_t cuda_library_version(const char *soname, const char *function);
/* The soname of a library of this major version, a macro. */
#define CUDA_WORD(text)          #text
#define CUDA_SONAME(name, major) name ".so." CUDA_WORD(major)

/* ---------------------------------------------------------------------- copies (cuda_copy.c) */

enum { STAGING_BUFFERS = 4, PINNED_RANGES_MAX = 16 };

/* Memory of the host's that is another's, and pinned. */
struct pinned_range {
    void    *data;
    uint64_t bytes;
    bool     quiet; /* nobody writes there while a copy may be under way */
};

/* Pinned memory on the way between host and GPU; a buffer is free when its event has come. */
struct cuda_staging {
    void                  *buffer[STAGING_BUFFERS];
    cudaEvent_t            used[STAGING_BUFFERS];
    unsigned               current;
    int64_t                buffer_bytes; /* of each, a multiple of 64 */
    int64_t                taken_bytes;  /* of the current one        */
    struct pinned_range    ranges[PINNED_RANGES_MAX];
    unsigned               range_count;
    struct backend_uploads uploads;
};
int  cuda_staging_open(struct cuda_staging *staging);
void cuda_staging_close(struct cuda_staging *staging);
/* Pins memory on pages of its own, so that floats there are copied without a buffer.  Where it
 * cannot be, or there are too many such ranges, they are copied as all others. */
void cuda_staging_pin(struct cuda_staging *staging, struct pinned_range range);
/* When what `stream` was asked for has ended.  What is not pinned stays as it is. */
void cuda_staging_unpin(struct cuda_staging *staging, cudaStream_t stream, const void *data);
/* Any type on the host, f32 or bf16 on the GPU; returns when `source` may be reused, but for a
 * quiet range: a copy from there may be under way.  A file that was cut is STATUS_READ + EFAULT. */
int cuda_upload(struct cuda_staging *staging, cudaStream_t stream, struct matrix target,
                struct matrix source);
/* Returns when `target` is there. */
int cuda_download(struct cuda_staging *staging, cudaStream_t stream, struct matrix target,
                  struct matrix source);

/* -------------------------------------------------------------- fused graphs (cuda_graph.c) */

struct graphs;
/* As gemm_version. */
size_t graphs_version(void);
/* *out is NULL and `why_out` filled when cuDNN is not there, was not when this was built, or does
 * not start: then its status is returned, else 0. */
int  graphs_open(struct graphs **out, char *why_out, size_t capacity);
void graphs_close(struct graphs *graphs);

/* Is there a plan for this request, found now or before?  Otherwise own kernels must do it.  Also
 * true where a plan could not be made for want of memory: other kernels give other bits. */
bool graphs_attention_fits(struct graphs *graphs, const struct attention_request *request);
/* In a rehearsal a plan runs the first time only, over whatever lies there: the driver puts a
 * kernel's code on the card when it first runs, and later there may be no memory left for it. */
int graphs_attention(struct graphs *graphs, const struct attention_request *request,
                     struct workspace workspace, bool rehearsing, cudaStream_t stream);
/* `w`: [out, size * size * in], tap by tap; x, w, y bf16 and contiguous; bias f32. */
bool graphs_conv_fits(struct graphs *graphs, const struct conv_request *request, int32_t out_h,
                      int32_t out_w);
int  graphs_conv(struct graphs *graphs, const struct conv_request *request, struct matrix w,
                 struct workspace workspace, bool rehearsing, cudaStream_t stream);
const char *graphs_words(const struct graphs *graphs, int status);
bool        graphs_lack_memory(int status);

/* Plans that need more workspace than this are not taken. */
#define GRAPH_WORKSPACE_BYTES ((uint64_t)64 << 20)
#define GRAPH_SCRATCH_BYTES   (GRAPH_WORKSPACE_BYTES + WORKSPACE_ALIGNMENT)

/* --------------------------------------------------------------- the backend (backend_cuda.c) */

struct cuda {
    struct backend        base;
    int32_t               device;
    struct backend_device facts;
    cudaStream_t          stream;
    struct arena         *shadow; /* bf16 copies of the kept vectors, at half their offsets */
    char                 *shadow_base;
    struct ring          *ring; /* NULL: no weights visit */
    struct cuda_staging   staging;
    struct gemm           gemm;
    struct graphs        *graphs; /* NULL: own kernels */
};

static inline struct cuda *cuda_of(struct backend *backend)
{
    return (struct cuda *)backend;
}

/* Pieces of an operation's scratch, in the order that its needs counted them. */
static inline void *scratch_take(struct workspace *scratch, uint64_t bytes)
{
    uint64_t rounded = (uint64_t)round_up_i64((int64_t)bytes, 64);
    void    *piece = scratch->data;

    must(rounded <= scratch->bytes);
    scratch->data = (char *)scratch->data + rounded;
    scratch->bytes -= rounded;
    return piece;
}

/* What is left of an operation's scratch, as a library's workspace. */
static inline struct workspace workspace_of(struct workspace scratch)
{
    uint64_t skipped = -(uint64_t)(uintptr_t)scratch.data % WORKSPACE_ALIGNMENT;

    must(skipped <= scratch.bytes);
    scratch.data = (char *)scratch.data + skipped;
    scratch.bytes -= skipped;
    return scratch;
}

/* Operations in files of their own; needs are the bytes of their scratch. */
uint64_t cuda_linear_needs(const struct backend *backend, struct matrix y, struct matrix x,
                           struct matrix w, const float *bias, enum activation act);
int      cuda_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                     const float *bias, enum activation act);
/* The same for rows of a map, and no activation. */
int      cuda_map_linear(struct backend *backend, struct matrix y, struct matrix x, struct matrix w,
                         const float *bias);
uint64_t cuda_attention_needs(const struct backend           *backend,
                              const struct attention_request *request);
int      cuda_attention(struct backend *backend, const struct attention_request *request);
uint64_t cuda_conv2d_needs(const struct backend *backend, const struct conv_request *request);
int      cuda_conv2d(struct backend *backend, const struct conv_request *request);

#endif
