/*
 * conv.cu - the twin of conv.c in pieces: patches, weights in the order of patches, and a direct
 * convolution for few output channels.
 *
 * Patches times weights is a product, and products belong to cuBLASLt; the backend walks over the
 * picture in bands, so that patches never fill more than its scratch.  Patches and weights are
 * ordered tap by tap, channels inside, because neighbours in memory are then neighbours in a map.
 *
 * Read next: src/backend/cuda_conv.c.
 */
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "kernels/kernels_cuda.h"

static __device__ float element(struct matrix m, int64_t at)
{
    return m.dtype == DTYPE_F32 ? ((const float *)m.data)[at]
                                : __bfloat162float(((const __nv_bfloat16 *)m.data)[at]);
}

static __device__ void put_element(struct matrix m, int64_t at, float value)
{
    if (m.dtype == DTYPE_F32)
        ((float *)m.data)[at] = value;
    else
        ((__nv_bfloat16 *)m.data)[at] = __float2bfloat16_rn(value);
}

static unsigned blocks_for(int64_t count, int64_t threads, int64_t most)
{
    const int64_t blocks = (count + threads - 1) / threads;

    return (unsigned)(blocks < most ? blocks : most);
}

static bool is_whole(struct matrix m, int64_t each)
{
    return m.cols % each == 0 && m.ld % each == 0 && (uintptr_t)m.data % 16 == 0;
}

/* ----------------------------------------------------------------------------------- patches */

struct patches {
    struct matrix y, x;
    int64_t first;
    int32_t in_h, in_w, out_w, size, stride, pad_top, pad_left;
};

/* Each thread copies `EACH` neighbouring channels; T holds them. */
template <typename T, int EACH> static __global__ void im2col_kernel(struct patches p)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    const int64_t words = p.y.cols / EACH, channels = p.x.cols / EACH;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < p.y.rows * words;
         i += step) {
        const int64_t position = p.first + i / words, word = i % words;
        const int32_t tap = (int32_t)(word / channels);
        const int32_t row = (int32_t)(position / p.out_w) * p.stride - p.pad_top + tap / p.size;
        const int32_t col = (int32_t)(position % p.out_w) * p.stride - p.pad_left + tap % p.size;
        const int64_t at = i / words * p.y.ld + word * EACH;
        const bool inside = tap < p.size * p.size && row >= 0 && row < p.in_h && col >= 0 &&
                            col < p.in_w;
        const int64_t from = ((int64_t)row * p.in_w + col) * p.x.ld + word % channels * EACH;
        if constexpr (EACH == 1)
            put_element(p.y, at, inside ? element(p.x, from) : 0.0f);
        else {
            const char *source = (const char *)p.x.data + from * (int64_t)(sizeof(T) / EACH);
            char *target = (char *)p.y.data + at * (int64_t)(sizeof(T) / EACH);
            *(T *)target = inside ? *(const T *)source : T{};
        }
    }
}

extern "C" int k_im2col_cuda(struct matrix y, const struct conv_request *request, int64_t first,
                             int32_t out_w, struct CUstream_st *stream)
{
    const struct patches p = {y,     request->x,    first,           request->in_h,   request->in_w,
                              out_w, request->size, request->stride, request->pad_top,
                              request->pad_left};
    const bool same = y.dtype == request->x.dtype;

    if (y.rows * y.cols == 0) return 0;
    if (same && y.dtype == DTYPE_BF16 && is_whole(y, 8) && is_whole(request->x, 8))
        im2col_kernel<uint4, 8><<<blocks_for(y.rows * y.cols / 8, 256, 65536), 256, 0, stream>>>(p);
    else if (same && y.dtype == DTYPE_F32 && is_whole(y, 4) && is_whole(request->x, 4))
        im2col_kernel<uint4, 4><<<blocks_for(y.rows * y.cols / 4, 256, 65536), 256, 0, stream>>>(p);
    else
        im2col_kernel<float, 1><<<blocks_for(y.rows * y.cols, 256, 65536), 256, 0, stream>>>(p);
    return (int)cudaGetLastError();
}

static __global__ void conv_weights_kernel(struct matrix y, struct matrix w, int32_t taps)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x, channels = w.cols / taps;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < y.rows * y.cols;
         i += step) {
        const int64_t out = i / y.cols, col = i % y.cols;
        const int64_t from = out * w.ld + col % channels * taps + col / channels;
        put_element(y, out * y.ld + col, col < w.cols ? element(w, from) : 0.0f);
    }
}

extern "C" int k_conv_weights_cuda(struct matrix y, struct matrix w, int32_t taps,
                                   struct CUstream_st *stream)
{
    if (y.rows * y.cols == 0) return 0;
    conv_weights_kernel<<<blocks_for(y.rows * y.cols, 256, 8192), 256, 0, stream>>>(y, w, taps);
    return (int)cudaGetLastError();
}

/* Rows (or columns) of a 3x3 kernel that row `tap` of a phase's 2x2 kernel stands for. */
static __device__ void merged(int32_t *first, int32_t *end, int32_t odd, int32_t tap)
{
    *first = tap == 0 ? 0 : odd + 1;
    *end = tap == 0 ? odd + 1 : 3;
}

static __global__ void conv_phases_kernel(struct matrix y, struct matrix w)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x, channels = w.cols / 9;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < y.rows * y.cols;
         i += step) {
        const int64_t row = i / y.cols, col = i % y.cols, phase = row / w.rows;
        const int32_t tap = (int32_t)(col / channels);
        const int64_t from = row % w.rows * w.ld + col % channels * 9;
        int32_t top, bottom, left, right;
        float sum = 0.0f;
        merged(&top, &bottom, (int32_t)(phase / 2), tap / 2);
        merged(&left, &right, (int32_t)(phase % 2), tap % 2);
        for (int32_t down = top; down < bottom; down++)
            for (int32_t across = left; across < right; across++)
                sum += element(w, from + 3 * down + across);
        put_element(y, row * y.ld + col, sum);
    }
}

extern "C" int k_conv_phases_cuda(struct matrix y, struct matrix w, struct CUstream_st *stream)
{
    if (y.rows * y.cols == 0) return 0;
    conv_phases_kernel<<<blocks_for(y.rows * y.cols, 256, 8192), 256, 0, stream>>>(y, w);
    return (int)cudaGetLastError();
}

/* --------------------------------------------------------------------------- few out channels */

struct few {
    struct matrix y, x, w;
    const float *bias;
    int32_t in_h, in_w, out_w, size, stride, pad_top, pad_left;
};

enum { FEW_THREADS = 128 };

/* EACH neighbouring channels of a map as floats; 8 come from one load of 16 bytes. */
template <int EACH> static __device__ void load(float values[EACH], struct matrix x, int64_t at)
{
    if constexpr (EACH == 1)
        values[0] = element(x, at);
    else {
        const uint4 bits = *(const uint4 *)((const __nv_bfloat16 *)x.data + at);
        const __nv_bfloat162 *pairs = (const __nv_bfloat162 *)&bits;
#pragma unroll
        for (int i = 0; i < EACH / 2; i++) {
            const float2 pair = __bfloat1622float2(pairs[i]);
            values[2 * i] = pair.x;
            values[2 * i + 1] = pair.y;
        }
    }
}

/* One thread makes all channels of one pixel.  Weights lie in shared memory as [tap][in][out],
 * where all threads read the same address at a time. */
template <int EACH> static __global__ void conv_few_kernel(struct few f)
{
    extern __shared__ float weights[];
    const int32_t taps = f.size * f.size, outs = (int32_t)f.y.cols;
    const int64_t channels = f.x.cols, count = taps * channels * outs;

    for (int64_t i = threadIdx.x; i < count; i += FEW_THREADS) {
        const int64_t out = i % outs, channel = i / outs % channels, tap = i / outs / channels;
        weights[i] = element(f.w, out * f.w.ld + channel * taps + tap);
    }
    __syncthreads();
    const int64_t pixel = (int64_t)blockIdx.x * FEW_THREADS + threadIdx.x;
    if (pixel >= f.y.rows) return;
    float sum[CONV_FEW_MAX] = {0.0f};
    for (int32_t tap = 0; tap < taps; tap++) {
        const int32_t row = (int32_t)(pixel / f.out_w) * f.stride - f.pad_top + tap / f.size;
        const int32_t col = (int32_t)(pixel % f.out_w) * f.stride - f.pad_left + tap % f.size;
        if (row < 0 || row >= f.in_h || col < 0 || col >= f.in_w) continue;
        const int64_t from = ((int64_t)row * f.in_w + col) * f.x.ld;
        const float *w = weights + tap * channels * outs;
        for (int64_t channel = 0; channel < channels; channel += EACH) {
            float values[EACH];
            load<EACH>(values, f.x, from + channel);
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int out = 0; out < CONV_FEW_MAX; out++)
                    if (out < outs) sum[out] += values[i] * w[(channel + i) * outs + out];
        }
    }
    for (int out = 0; out < outs; out++)
        put_element(f.y, pixel * f.y.ld + out, sum[out] + (f.bias == NULL ? 0.0f : f.bias[out]));
}

extern "C" int k_conv_few_cuda(const struct conv_request *request, int32_t out_w,
                               struct CUstream_st *stream)
{
    const struct few f = {request->y,       request->x,    request->w,      request->bias,
                          request->in_h,    request->in_w, out_w,           request->size,
                          request->stride,  request->pad_top, request->pad_left};
    const size_t shared = (size_t)(request->w.rows * request->w.cols) * sizeof(float);
    const int64_t blocks = (request->y.rows + FEW_THREADS - 1) / FEW_THREADS;

    if (blocks == 0) return 0;
    if (f.x.dtype == DTYPE_BF16 && is_whole(f.x, 8))
        conv_few_kernel<8><<<(unsigned)blocks, FEW_THREADS, shared, stream>>>(f);
    else
        conv_few_kernel<1><<<(unsigned)blocks, FEW_THREADS, shared, stream>>>(f);
    return (int)cudaGetLastError();
}
