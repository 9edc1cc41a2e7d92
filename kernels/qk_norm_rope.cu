/*
 * qk_norm_rope.cu - what is done to q and k before attention, the twin of the end of attention.c:
 * in place, an RMS norm per head, then the rotation of adjacent pairs.
 */
#include "kernels/device.cuh"

/* Pairs of one head: normalised, weighted, turned. */
template <int PAIRS>
DEVICE void turn(float (&value)[2 * PAIRS], float inverse, const float *weight, const float *cos,
                 const float *sin)
{
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const float even = value[2 * i] * inverse * weight[2 * i];
        const float odd = value[2 * i + 1] * inverse * weight[2 * i + 1];
        value[2 * i] = even * cos[i] - odd * sin[i];
        value[2 * i + 1] = odd * cos[i] + even * sin[i];
    }
}

/* Heads that a block loads before it stores the first: no load may pass a store.  Of 24 heads, all
 * q and k in one go. */
enum { HEADS_AT_ONCE = 3 };

/* One block per row; LANES lanes per head, eight elements each. */
template <typename T, int LANES>
static __global__ void __launch_bounds__(256) rope_kernel(const struct qk_rope_request r)
{
    const int part = (int)threadIdx.x % LANES, col = part * 8, apart = 256 / LANES;

    wait_for_last();
    for (int64_t row = blockIdx.x; row < r.q.rows; row += gridDim.x) {
        const bool turns = row >= r.first_rotated;
        const int64_t at = (row - r.first_rotated) * (r.dim / 2) + part * 4;
        float cos[4] = {1.0f, 1.0f, 1.0f, 1.0f}, sin[4] = {0.0f}; /* nothing turns */
        if (turns) {
            const float4 c = *(const float4 *)(r.cos + at), s = *(const float4 *)(r.sin + at);
            cos[0] = c.x, cos[1] = c.y, cos[2] = c.z, cos[3] = c.w;
            sin[0] = s.x, sin[1] = s.y, sin[2] = s.z, sin[3] = s.w;
        }
        /* Whole warps go round together: they share sums. */
        for (int base = 0; base < 2 * r.heads; base += HEADS_AT_ONCE * apart) {
            float value[HEADS_AT_ONCE][8] = {{0.0f}};
            T *x[HEADS_AT_ONCE];
#pragma unroll
            for (int i = 0; i < HEADS_AT_ONCE; i++) {
                const int head = base + i * apart + (int)threadIdx.x / LANES;
                const bool is_q = head < r.heads;
                x[i] = row_at<T>(is_q ? r.q : r.k, row) + (is_q ? head : head - r.heads) * r.dim +
                       col;
                if (head < 2 * r.heads) load_eight(value[i], x[i]);
            }
#pragma unroll
            for (int i = 0; i < HEADS_AT_ONCE; i++) {
                const int head = base + i * apart + (int)threadIdx.x / LANES;
                float weight[8], squares = 0.0f;
                load_eight(weight, (head < r.heads ? r.q_weight : r.k_weight) + col);
#pragma unroll
                for (int n = 0; n < 8; n++)
                    squares += value[i][n] * value[i][n];
                const float inverse =
                    1.0f / sqrtf(sum_lanes(squares, LANES) / (float)r.dim + r.eps);
                turn<4>(value[i], inverse, weight, cos, sin);
                if (head < 2 * r.heads) store_eight(x[i], value[i]);
            }
        }
    }
}

/* Any even dim and any alignment: a warp per head, a pair per lane and turn, read twice. */
template <typename T>
static __global__ void __launch_bounds__(256) rope_any_kernel(const struct qk_rope_request r)
{
    const int lane = (int)threadIdx.x % 32, half = r.dim / 2;

    wait_for_last();
    for (int64_t row = blockIdx.x; row < r.q.rows; row += gridDim.x) {
        const int64_t at = (row - r.first_rotated) * half;
        for (int head = (int)threadIdx.x / 32; head < 2 * r.heads; head += 8) {
            const bool is_q = head < r.heads, turns = row >= r.first_rotated;
            T *const x = row_at<T>(is_q ? r.q : r.k, row) + (is_q ? head : head - r.heads) * r.dim;
            const float *const weight = is_q ? r.q_weight : r.k_weight;
            float squares = 0.0f;
            for (int i = lane; i < half; i += 32)
                squares += to_f32(x[2 * i]) * to_f32(x[2 * i]) +
                           to_f32(x[2 * i + 1]) * to_f32(x[2 * i + 1]);
            const float inverse = 1.0f / sqrtf(sum_lanes(squares, 32) / (float)r.dim + r.eps);
            for (int i = lane; i < half; i += 32) {
                float value[2] = {to_f32(x[2 * i]), to_f32(x[2 * i + 1])};
                const float cos = turns ? r.cos[at + i] : 1.0f, sin = turns ? r.sin[at + i] : 0.0f;
                turn<1>(value, inverse, weight + 2 * i, &cos, &sin);
                store_f32(x + 2 * i, value[0]);
                store_f32(x + 2 * i + 1, value[1]);
            }
        }
    }
}

template <typename T> static int rope(const struct qk_rope_request *r, cudaStream_t stream)
{
    const unsigned grid = (unsigned)(r->q.rows < 1 << 30 ? r->q.rows : 1 << 30);
    const bool vectors = rows_at_16(r->q) && rows_at_16(r->k) && at_16(r->q_weight) &&
                         at_16(r->k_weight) && at_16(r->cos) && at_16(r->sin);

    return launch_early(vectors && r->dim == 64    ? rope_kernel<T, 8>
                        : vectors && r->dim == 128 ? rope_kernel<T, 16>
                                                   : rope_any_kernel<T>,
                        grid, 256, 0, stream, *r);
}

extern "C" int k_qk_norm_rope_cuda(const struct qk_rope_request *request,
                                   struct CUstream_st *stream)
{
    const struct qk_rope_request *r = request;
    const bool legal = same_shape(r->q, r->k) && r->q.cols == (int64_t)r->heads * r->dim &&
                       r->dim > 0 && r->dim % 2 == 0 && is_act(r->q) && r->q.dtype == r->k.dtype;

    if (!legal) return (int)cudaErrorInvalidValue;
    if (r->q.rows == 0 || r->heads == 0) return 0;
    return r->q.dtype == DTYPE_F32 ? rope<float>(r, stream) : rope<struct bf16>(r, stream);
}
