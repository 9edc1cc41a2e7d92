/*
 * pointwise.cu - the twin of pointwise.c, and of the enlargement in conv.c.
 *
 * All of it moves bytes: the arithmetic is free, so every kernel is a loop over vectors of eight
 * elements (device.cuh).  A thread reads its operands before it writes, and only at its own place:
 * in-place calls are fine wherever two operands may be one.
 *
 * Read next: norm.cu.
 */
#include "kernels/device.cuh"

/* ------------------------------------------------------------------ element by element */

enum pointwise { ADD, GATE_ADD, GELU_MUL, SILU, AFFINE };

struct operands {
    struct matrix y, a, b; /* y of type Y, a and b of type X */
    const float  *gate;    /* [cols] */
    float         mul, add;
};

template <int OP, typename Y, typename X, int V>
static __global__ void __launch_bounds__(256) pointwise_kernel(const struct operands o)
{
    EACH_ROW (row, o.y.rows) {
        EACH_COL (col, o.y.cols, V) {
            const int64_t left = o.y.cols - col;
            Y *const target = row_at<Y>(o.y, row) + col;
            float y[V], a[V], b[V];

            load_some<V>(a, row_at<X>(o.a, row) + col, left);
            if (OP == ADD || OP == GATE_ADD) load_some<V>(y, target, left);
            if (OP == GATE_ADD) load_some<V>(b, o.gate + col, left);
            if (OP == GELU_MUL) load_some<V>(b, row_at<X>(o.b, row) + col, left);
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (OP == ADD) y[i] += a[i];
                if (OP == GATE_ADD) y[i] += b[i] * a[i];
                if (OP == GELU_MUL) y[i] = gelu_tanh_f32(a[i]) * b[i];
                if (OP == SILU) y[i] = silu_f32(a[i]);
                if (OP == AFFINE) y[i] = a[i] * o.mul + o.add;
            }
            store_some<V>(target, y, left);
        }
    }
}

template <int OP, typename Y, typename X>
static int pointwise_launch(const struct operands *o, cudaStream_t stream)
{
    const bool vectors = rows_at_16(o->y) && rows_at_16(o->a) && rows_at_16(o->b) && at_16(o->gate);
    const struct spread s = spread_over(o->y.rows, o->y.cols, vectors ? 8 : 1);

    if (vectors)
        pointwise_kernel<OP, Y, X, 8><<<s.grid, s.block, 0, stream>>>(*o);
    else
        pointwise_kernel<OP, Y, X, 1><<<s.grid, s.block, 0, stream>>>(*o);
    return (int)cudaGetLastError();
}

template <int OP> static int pointwise(struct operands o, cudaStream_t stream)
{
    const bool legal = same_shape(o.y, o.a) && same_shape(o.y, o.b) && is_act(o.y) && is_act(o.a) &&
                       o.a.dtype == o.b.dtype;

    if (!legal) return (int)cudaErrorInvalidValue;
    if (o.y.rows == 0 || o.y.cols == 0) return 0;
    if (!o.gate && is_flat(o.y) && is_flat(o.a) && is_flat(o.b)) {
        o.y = as_row(o.y);
        o.a = as_row(o.a);
        o.b = as_row(o.b);
    }
#define LAUNCH(Y, X) return pointwise_launch<OP, Y, X>(&o, stream)
    BY_ELEMENTS(o.y.dtype, o.a.dtype, LAUNCH);
#undef LAUNCH
}

extern "C" int k_add_cuda(struct matrix x, struct matrix y, struct CUstream_st *stream)
{
    return pointwise<ADD>({x, y, y, NULL, 0.0f, 0.0f}, stream);
}

extern "C" int k_gate_add_cuda(struct matrix x, struct matrix y, const float *gate,
                               struct CUstream_st *stream)
{
    return pointwise<GATE_ADD>({x, y, y, gate, 0.0f, 0.0f}, stream);
}

extern "C" int k_gelu_mul_cuda(struct matrix y, struct matrix a, struct matrix b,
                               struct CUstream_st *stream)
{
    return pointwise<GELU_MUL>({y, a, b, NULL, 0.0f, 0.0f}, stream);
}

extern "C" int k_silu_cuda(struct matrix y, struct matrix x, struct CUstream_st *stream)
{
    return pointwise<SILU>({y, x, x, NULL, 0.0f, 0.0f}, stream);
}

extern "C" int k_affine_cuda(struct matrix y, struct matrix x, float mul, float add,
                             struct CUstream_st *stream)
{
    return pointwise<AFFINE>({y, x, x, NULL, mul, add}, stream);
}

/* ------------------------------------------------------------------------- packing, enlarging */

/* One thread moves the four values of a token's channel.  TO_TOKENS: latent -> tokens. */
template <typename T, bool TO_TOKENS>
static __global__ void __launch_bounds__(256)
    pack_kernel(struct matrix tokens, float *latent, int64_t w, int64_t channels)
{
    const int64_t across = w / 2;

    EACH_ROW (token, tokens.rows) {
        EACH_COL (c, channels, 1) {
            T *const line = row_at<T>(tokens, token) + 4 * c;
            const int64_t corner_at = token / across * 2 * w + token % across * 2;
            float *const cell = latent + corner_at * channels + c;
#pragma unroll
            for (int corner = 0; corner < 4; corner++) {
                float *const value = cell + (corner / 2 * w + corner % 2) * channels;
                if (TO_TOKENS)
                    store_f32(line + corner, *value);
                else
                    *value = to_f32(line[corner]);
            }
        }
    }
}

template <bool TO_TOKENS>
static int pack(struct matrix tokens, float *latent, int32_t h, int32_t w, int32_t channels,
                cudaStream_t stream)
{
    const struct spread s = spread_over(tokens.rows, channels, 1);
    const bool legal = h % 2 == 0 && w % 2 == 0 && is_act(tokens) &&
                       tokens.rows == (int64_t)(h / 2) * (w / 2) &&
                       tokens.cols == (int64_t)channels * 4;

    if (!legal) return (int)cudaErrorInvalidValue;
    if (tokens.rows == 0 || channels == 0) return 0;
    if (tokens.dtype == DTYPE_F32)
        pack_kernel<float, TO_TOKENS><<<s.grid, s.block, 0, stream>>>(tokens, latent, w, channels);
    else
        pack_kernel<struct bf16, TO_TOKENS><<<s.grid, s.block, 0, stream>>>(tokens, latent, w,
                                                                            channels);
    return (int)cudaGetLastError();
}

extern "C" int k_pack_latent_cuda(struct matrix tokens, const float *latent, int32_t h, int32_t w,
                                  int32_t channels, struct CUstream_st *stream)
{
    return pack<true>(tokens, (float *)latent, h, w, channels, stream);
}

extern "C" int k_unpack_latent_cuda(float *latent, struct matrix tokens, int32_t h, int32_t w,
                                    int32_t channels, struct CUstream_st *stream)
{
    return pack<false>(tokens, latent, h, w, channels, stream);
}

template <typename Y, typename X, int V>
static __global__ void __launch_bounds__(256)
    upsample2_kernel(struct matrix y, struct matrix x, int64_t w)
{
    EACH_ROW (row, x.rows) {
        const int64_t at = row / w * (4 * w) + row % w * 2;
        EACH_COL (col, x.cols, V) {
            float value[V];
            load_some<V>(value, row_at<X>(x, row) + col, x.cols - col);
            store_some<V>(row_at<Y>(y, at) + col, value, x.cols - col);
            store_some<V>(row_at<Y>(y, at + 1) + col, value, x.cols - col);
            store_some<V>(row_at<Y>(y, at + 2 * w) + col, value, x.cols - col);
            store_some<V>(row_at<Y>(y, at + 2 * w + 1) + col, value, x.cols - col);
        }
    }
}

template <typename Y, typename X>
static int upsample2_launch(struct matrix y, struct matrix x, int64_t w, cudaStream_t stream)
{
    const bool vectors = rows_at_16(y) && rows_at_16(x);
    const struct spread s = spread_over(x.rows, x.cols, vectors ? 8 : 1);

    if (vectors)
        upsample2_kernel<Y, X, 8><<<s.grid, s.block, 0, stream>>>(y, x, w);
    else
        upsample2_kernel<Y, X, 1><<<s.grid, s.block, 0, stream>>>(y, x, w);
    return (int)cudaGetLastError();
}

extern "C" int k_upsample2_cuda(struct matrix y, struct matrix x, int32_t h, int32_t w,
                                struct CUstream_st *stream)
{
    const bool legal = is_act(y) && is_act(x) && y.cols == x.cols &&
                       x.rows == (int64_t)h * w && y.rows == 4 * x.rows;

    if (!legal) return (int)cudaErrorInvalidValue;
    if (x.rows == 0 || x.cols == 0) return 0;
#define LAUNCH(Y, X) return upsample2_launch<Y, X>(y, x, w, stream)
    BY_ELEMENTS(y.dtype, x.dtype, LAUNCH);
#undef LAUNCH
}
