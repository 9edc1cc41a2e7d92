/*
 * device.cuh - what the CUDA files of this folder share: element types, vectors of eight elements,
 * reductions, how a matrix is spread over a grid, and the few instructions C cannot say.
 *
 * Owns every line of assembly but sm_90a's, in hopper.cuh.  Knows no operation.  Two rules hold in
 * all files that use it:
 *
 *   order   sums run in a fixed order: no float atomics
 *   vectors V = 8 elements per access where every operand starts at a 16-byte boundary in every
 *           row, V = 1 elsewhere; an end of fewer than V elements is done one by one
 *
 * Read next: pointwise.cu, the smallest user.
 */
#ifndef MURAL_DEVICE_CUH
#define MURAL_DEVICE_CUH

#include <cuda_runtime.h>

#include "kernels/kernels_cuda.h"

#define DEVICE static __device__ __forceinline__

#define LOG2_E 1.44269504089f

/* ------------------------------------------------------------------------------ element types */

struct bf16 {
    uint16_t bits;
};

DEVICE float to_f32(float value)
{
    return value;
}
DEVICE float to_f32(struct bf16 value)
{
    return __uint_as_float((uint32_t)value.bits << 16);
}

/* Two values to nearest even, the first in the low half.  A NaN stays a NaN. */
DEVICE uint32_t pack_bf16(float low, float high)
{
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

DEVICE void store_f32(float *target, float value)
{
    *target = value;
}
DEVICE void store_f32(struct bf16 *target, float value)
{
    target->bits = (uint16_t)pack_bf16(value, 0.0f);
}

/* Eight elements at a 16-byte boundary. */
DEVICE void load_eight(float *out, const float *p)
{
    const float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}
DEVICE void load_eight(float *out, const struct bf16 *p)
{
    const uint4 a = *(const uint4 *)p;
    out[0] = __uint_as_float(a.x << 16), out[1] = __uint_as_float(a.x & 0xffff0000u);
    out[2] = __uint_as_float(a.y << 16), out[3] = __uint_as_float(a.y & 0xffff0000u);
    out[4] = __uint_as_float(a.z << 16), out[5] = __uint_as_float(a.z & 0xffff0000u);
    out[6] = __uint_as_float(a.w << 16), out[7] = __uint_as_float(a.w & 0xffff0000u);
}
DEVICE void store_eight(float *p, const float *value)
{
    ((float4 *)p)[0] = make_float4(value[0], value[1], value[2], value[3]);
    ((float4 *)p)[1] = make_float4(value[4], value[5], value[6], value[7]);
}
DEVICE void store_eight(struct bf16 *p, const float *value)
{
    *(uint4 *)p = make_uint4(pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3]),
                             pack_bf16(value[4], value[5]), pack_bf16(value[6], value[7]));
}

/* The next V elements of a row of which `left` > 0 remain; missing ones read as 0. */
template <int V, typename T> DEVICE void load_some(float (&out)[V], const T *p, int64_t left)
{
    if (V == 8 && left >= 8) {
        load_eight(out, p);
        return;
    }
#pragma unroll
    for (int i = 0; i < V; i++)
        out[i] = i < left ? to_f32(p[i]) : 0.0f;
}
template <int V, typename T> DEVICE void store_some(T *p, const float (&value)[V], int64_t left)
{
    if (V == 8 && left >= 8) {
        store_eight(p, value);
        return;
    }
#pragma unroll
    for (int i = 0; i < V; i++)
        if (i < left) store_f32(p + i, value[i]);
}

template <typename T> DEVICE T *row_at(struct matrix m, int64_t row)
{
    return (T *)m.data + row * m.ld;
}

/* A kernel for the element types of two matrices that are f32 or bf16: body(type, type). */
#define BY_ELEMENTS(first, second, body)                                                           \
    do {                                                                                           \
        if ((first) == DTYPE_F32 && (second) == DTYPE_F32) {                                       \
            body(float, float);                                                                    \
        } else if ((first) == DTYPE_F32) {                                                         \
            body(float, struct bf16);                                                              \
        } else if ((second) == DTYPE_F32) {                                                        \
            body(struct bf16, float);                                                              \
        } else {                                                                                   \
            body(struct bf16, struct bf16);                                                        \
        }                                                                                          \
    } while (0)

/* ------------------------------------------------------------------------------- host side */

static inline bool is_act(struct matrix m)
{
    return m.dtype == DTYPE_F32 || m.dtype == DTYPE_BF16;
}
static inline bool same_shape(struct matrix a, struct matrix b)
{
    return a.rows == b.rows && a.cols == b.cols;
}
static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}
static inline bool at_16(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}
/* Every row starts at a 16-byte boundary. */
static inline bool rows_at_16(struct matrix m)
{
    return at_16(m.data) && (m.rows <= 1 || m.ld * (int64_t)dtype_bytes(m.dtype) % 16 == 0);
}
static inline bool is_flat(struct matrix m)
{
    return m.rows <= 1 || m.ld == m.cols;
}
/* Without gaps between its rows a matrix is one long row: fewer ends. */
static inline struct matrix as_row(struct matrix m)
{
    m.cols *= m.rows;
    m.rows = 1;
    m.ld = m.cols;
    return m;
}

/* Of the current device, 90 for sm_90; 0 where it cannot be asked. */
static inline int architecture()
{
    int device = 0, major = 0, minor = 0;

    if (cudaGetDevice(&device) ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device))
        return 0;
    return 10 * major + minor;
}

/* Starts a kernel that calls wait_for_last() before it looks at memory: from sm_90 on its blocks are
 * made ready while the last kernel on the stream comes to its end.  That saves a microsecond or two:
 * 0.3 % of a step of 1024 px, half of whose 480 kernels start so. */
template <typename... PARAMETERS, typename... ARGUMENTS>
static int launch_early(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, size_t shared_bytes,
                        cudaStream_t stream, const ARGUMENTS &...arguments)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute early = {};

    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = architecture() >= 90 ? 1 : 0;
    return (int)cudaLaunchKernelEx(&config, kernel, arguments...);
}
DEVICE void wait_for_last()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* How rows x cols are spread: threads of a block stand side by side along a row, V elements each,
 * and the rest of the block takes further rows.  Kernels go on with strides of the whole grid. */
struct spread {
    dim3 grid, block;
};
static inline struct spread spread_over(int64_t rows, int64_t cols, int vector)
{
    const int64_t pieces = ceil_div(cols, vector);
    int64_t across = 1;

    while (across < 256 && across < pieces)
        across *= 2;
    while (across > 32 && ceil_div(pieces, across) * across - pieces > pieces / 8)
        across /= 2;
    const int64_t down = 256 / across;
    const int64_t grid_x = ceil_div(pieces, across), grid_y = ceil_div(rows, down);
    struct spread s = {
        dim3((unsigned)(grid_x < 1 << 30 ? grid_x : 1 << 30),
             (unsigned)(grid_y < 65535 ? grid_y : 65535)),
        dim3((unsigned)across, (unsigned)down),
    };
    return s;
}

/* Loops of a kernel that was started with a spread. */
#define EACH_ROW(row, rows)                                                                        \
    for (int64_t row = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; row < (rows);               \
         row += (int64_t)gridDim.y * blockDim.y)
#define EACH_COL(col, cols, V)                                                                     \
    for (int64_t col = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * (V); col < (cols);       \
         col += (int64_t)gridDim.x * blockDim.x * (V))

/* ---------------------------------------------------------------------------------- numbers */

/* 2^x within 2 spacings; results below 2^-126 are 0. */
DEVICE float exp2_quick(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* x / (1 + e^-x): within 1e-6 of exact, 0 far below zero; NaN stays. */
DEVICE float silu_f32(float x)
{
    return __fdividef(x, 1.0f + exp2_quick(-x * LOG2_E));
}
DEVICE float gelu_tanh_f32(float x)
{
    /* 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
    const float twice_u = 1.59576912161f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.0f + exp2_quick(-twice_u * LOG2_E));
}
/* Sum over aligned groups of `width` lanes, the same bits in each of them. */
DEVICE float sum_lanes(float value, int width)
{
    for (int step = width / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}
DEVICE float max_lanes(float value, int width)
{
    for (int step = width / 2; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

/* ------------------------------------------------------------------- tensor cores and copies */

/* 16 bytes to shared memory behind the thread's back; zeros when not `real` (source unread). */
DEVICE void copy16_begin(void *target_shared, const void *source, bool real)
{
    const uint32_t target = (uint32_t)__cvta_generic_to_shared(target_shared);
    const int bytes = real ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
                 "r"(bytes)
                 : "memory");
}
/* Everything begun since the last call becomes one group. */
DEVICE void copies_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* This thread's copies have landed, the latest `PENDING` groups excepted; a barrier shows them to
 * other threads. */
template <int PENDING> DEVICE void copies_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* What follows from x is computed where it is used and not kept in registers from before a loop. */
DEVICE void forget(int &x)
{
    asm volatile("" : "+r"(x));
}

/* Four 8 x 8 matrices of 16-bit elements; lane 8 m + r gives the address of row r of matrix m.
 * Lane l receives of each: row l / 4, columns 2 (l % 4) and the next. */
DEVICE void load_matrices(uint32_t (&out)[4], const void *row_shared)
{
    const uint32_t row = (uint32_t)__cvta_generic_to_shared(row_shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}
/* The same, each matrix transposed. */
DEVICE void load_matrices_transposed(uint32_t (&out)[4], const void *row_shared)
{
    const uint32_t row = (uint32_t)__cvta_generic_to_shared(row_shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}

/* c[16, 8] += a[16, 16] . b[16, 8] in bf16 with f32 sums.  With g = lane / 4, t = 2 (lane % 4):
 *   a  rows g, g + 8, g, g + 8; columns t and t + 1, the last two registers 8 further
 *   b  rows t and t + 1, the second register 8 further; column g
 *   c  row g columns t, t + 1; row g + 8 columns t, t + 1 */
DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
