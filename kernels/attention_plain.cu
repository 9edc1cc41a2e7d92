/*
 * attention_plain.cu - softmax(q k^T) v in f32 and plain arithmetic, for any type and alignment and
 * heads of up to 512 columns: what tensor cores cannot take.
 *
 * Read next: attention.cu, which says when.
 */
#include "kernels/attention.cuh"

DEVICE float act_at(struct matrix m, int64_t row, int64_t col)
{
    return m.dtype == DTYPE_F32 ? row_at<float>(m, row)[col]
                                : to_f32(row_at<struct bf16>(m, row)[col]);
}

/* A thread of 16 x 16 has R rows of queries and R of keys, 16 apart, and WIDTH columns of the
 * output, 16 apart.  Rows in shared memory are padded by one vector of 4. */
template <int R, int WIDTH> struct plain {
    static constexpr int ROWS = 16 * R;
    static constexpr int PITCH = 16 * WIDTH + 4;
    static constexpr int P_PITCH = ROWS + 1;
    static constexpr int SHARED_BYTES = (2 * ROWS * PITCH + ROWS * P_PITCH) * 4;
};

template <typename S>
DEVICE void plain_load(float *tile, struct matrix m, int64_t first, int64_t column, int dim)
{
    for (int i = (int)threadIdx.x; i < S::ROWS * S::PITCH; i += 256) {
        const int row = i / S::PITCH, col = i % S::PITCH;
        const bool real = first + row < m.rows && col < dim;
        tile[i] = real ? act_at(m, first + row, column + col) : 0.0f;
    }
}

/* Registers of a thread. */
template <int R, int WIDTH> struct plain_state {
    float o[R][WIDTH], s[R][R], top[R], sum[R];
};

template <int R, int WIDTH>
DEVICE void plain_scores(struct plain_state<R, WIDTH> &w, const float *q, const float *k, int dim)
{
    typedef struct plain<R, WIDTH> S;
    const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;

#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < R; j++)
            w.s[i][j] = 0.0f;
    for (int d = 0; d < dim; d += 4)
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int j = 0; j < R; j++) {
                const float4 a = *(const float4 *)(q + (ty + 16 * i) * S::PITCH + d);
                const float4 b = *(const float4 *)(k + (tx + 16 * j) * S::PITCH + d);
                w.s[i][j] += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
            }
}

/* Scores of the tile that begins at `key` become exponentials in p. */
template <int R, int WIDTH>
DEVICE void plain_softmax(struct plain_state<R, WIDTH> &w, float *p,
                          const struct attention_request &r, int query, int key)
{
    typedef struct plain<R, WIDTH> S;
    const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;

#pragma unroll
    for (int i = 0; i < R; i++) {
        const int at = query + ty + 16 * i;
        float larger = w.top[i], added = 0.0f;
#pragma unroll
        for (int j = 0; j < R; j++) {
            const int to = key + tx + 16 * j;
            w.s[i][j] *= r.scale * LOG2_E;
            if (r.bias && at < r.q.rows && to < r.k.rows)
                w.s[i][j] += bias_of(r, blockIdx.y)[to - at] * LOG2_E;
            if (to >= r.k.rows || (r.causal && to > at)) w.s[i][j] = -INFINITY;
            larger = fmaxf(larger, w.s[i][j]);
        }
        larger = max_lanes(larger, 16);
        const float keep = exp2f(w.top[i] - larger);
        w.top[i] = larger;
#pragma unroll
        for (int j = 0; j < R; j++) {
            const float e = exp2f(w.s[i][j] - larger);
            p[(ty + 16 * i) * S::P_PITCH + tx + 16 * j] = e;
            added += e;
        }
        w.sum[i] = w.sum[i] * keep + sum_lanes(added, 16);
#pragma unroll
        for (int c = 0; c < WIDTH; c++)
            w.o[i][c] *= keep;
    }
}

template <int R, int WIDTH>
DEVICE void plain_values(struct plain_state<R, WIDTH> &w, const float *p, const float *v)
{
    typedef struct plain<R, WIDTH> S;
    const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;

    for (int k = 0; k < S::ROWS; k++)
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int c = 0; c < WIDTH; c++)
                w.o[i][c] += p[(ty + 16 * i) * S::P_PITCH + k] * v[k * S::PITCH + tx + 16 * c];
}

template <int R, int WIDTH>
DEVICE void plain_store(const struct plain_state<R, WIDTH> &w, const struct attention_request &r,
                        int query)
{
    const int tx = (int)threadIdx.x % 16, ty = (int)threadIdx.x / 16;

#pragma unroll
    for (int i = 0; i < R; i++) {
        const int at = query + ty + 16 * i;
        const float inverse = 1.0f / w.sum[i];
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {
            const int col = tx + 16 * c;
            const int64_t place = at * r.out.ld + (int64_t)blockIdx.y * r.dim + col;
            if (at >= r.q.rows || col >= r.dim) continue;
            if (r.out.dtype == DTYPE_F32)
                ((float *)r.out.data)[place] = w.o[i][c] * inverse;
            else
                store_f32((struct bf16 *)r.out.data + place, w.o[i][c] * inverse);
        }
    }
}

template <int R, int WIDTH>
static __global__ void __launch_bounds__(256) plain_kernel(const struct attention_request r)
{
    typedef struct plain<R, WIDTH> S;
    extern __shared__ __align__(128) char shared_bytes[];
    float *const q = (float *)shared_bytes, *const kv = q + S::ROWS * S::PITCH;
    float *const p = kv + S::ROWS * S::PITCH;
    const int64_t column = (int64_t)blockIdx.y * r.dim;
    const int keys = (int)r.k.rows, query = (int)blockIdx.x * S::ROWS;
    const int keys_end = r.causal && query + S::ROWS < keys ? query + S::ROWS : keys;
    struct plain_state<R, WIDTH> w;

#pragma unroll
    for (int i = 0; i < R; i++) {
        w.top[i] = -INFINITY;
        w.sum[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < WIDTH; c++)
            w.o[i][c] = 0.0f;
    }
    plain_load<S>(q, r.q, query, column, r.dim);
    for (int key = 0; key < keys_end; key += S::ROWS) {
        __syncthreads(); /* V of the tile before has been read */
        plain_load<S>(kv, r.k, key, column, r.dim);
        __syncthreads();
        plain_scores(w, q, kv, r.dim);
        plain_softmax(w, p, r, query, key);
        __syncthreads(); /* K has been read, and p is complete */
        plain_load<S>(kv, r.v, key, column, r.dim);
        __syncthreads();
        plain_values(w, p, kv);
    }
    plain_store(w, r, query);
}

template <int R, int WIDTH>
static int plain_attention(const struct attention_request *r, cudaStream_t stream)
{
    typedef struct plain<R, WIDTH> S;
    const dim3 grid((unsigned)ceil_div(r->q.rows, S::ROWS), (unsigned)r->heads);
    const int rc = (int)cudaFuncSetAttribute(plain_kernel<R, WIDTH>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             S::SHARED_BYTES);
    if (rc) return rc;
    plain_kernel<R, WIDTH><<<grid, 256, S::SHARED_BYTES, stream>>>(*r);
    return (int)cudaGetLastError();
}

int k_attention_plain_cuda(const struct attention_request *r, cudaStream_t stream)
{
    if (r->dim <= 64) return plain_attention<2, 4>(r, stream);
    if (r->dim <= 128) return plain_attention<2, 8>(r, stream);
    return plain_attention<1, 32>(r, stream);
}
