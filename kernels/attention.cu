/*
 * attention.cu - the twin of attention.c: softmax(q k^T) v in tiles of bf16, in tensor cores; and
 * which kernel a call is for.
 *
 * What tensor cores cannot take is for attention_plain.cu, FLUX's heads on sm_90 are for
 * attention_hopper.cu.  All walk the keys tile by tile as attention.c explains; the N x N scores
 * never exist.
 *
 * A warp owns TILES x 16 queries.  Its scores and its output stay in registers, and scores become
 * the left operand of the second product without leaving them.  K and V have one buffer each: V of
 * a tile arrives while its scores are formed, K of the next while V is used.
 *
 *     wait K | scores = q k^T   | wait V | softmax, o += p v  | wait K ...
 *            | V arrives ------>         | next K arrives --->
 *
 * Rows in shared memory are swizzled: 16-byte chunk c of row r lies at c ^ (r % 8), so that the
 * eight rows of a matrix load fall into different banks.  Heads narrower than D end in zeros there.
 * For D = 512 two warps share the queries: each forms the scores over one half of the head's
 * columns, they add the halves, and each keeps the output of its half.
 *
 * Read next: device.cuh for the instructions; attention_plain.cu, qk_norm_rope.cu.
 */
#include "kernels/attention.cuh"

/* ------------------------------------------------------------------------------ tensor cores */

/* Compile-time shape of the kernel. */
template <int D_, int SPLIT_, int TILES_, int KEYS_, int WARPS_> struct shape {
    static constexpr int D = D_;         /* columns of a head in shared memory            */
    static constexpr int SPLIT = SPLIT_; /* warps that share the columns of a head        */
    static constexpr int TILES = TILES_; /* 16-query tiles of a warp                      */
    static constexpr int KEYS = KEYS_;   /* keys at a time                                */
    static constexpr int WARPS = WARPS_;
    static constexpr int DW = D / SPLIT; /* columns of a warp                             */
    static constexpr int QUERIES = WARPS / SPLIT * TILES * 16;
    static constexpr int CHUNKS = D / 8; /* of 16 bytes in a row                          */
    /* One tile of queries fits in registers; then its shared memory becomes K's and V's. */
    static constexpr bool Q_KEPT = TILES == 1;
    static constexpr int KV_ELEMENTS = 2 * KEYS * D;
    static constexpr int Q_ELEMENTS = QUERIES * D;
    static constexpr int PARTS_BYTES = SPLIT > 1 ? WARPS * 32 * (KEYS / 8) * 4 * 4 : 0;
    static constexpr int LARGER = Q_ELEMENTS > KV_ELEMENTS ? Q_ELEMENTS : KV_ELEMENTS;
    static constexpr int ELEMENTS = Q_KEPT ? LARGER : Q_ELEMENTS + KV_ELEMENTS;
    static constexpr int SHARED_BYTES = 2 * ELEMENTS + PARTS_BYTES;
};

/* Begin to copy ROWS rows of a head from row `first`; zeros beyond the matrix and the head.  All
 * addresses are made anew each time: registers are dearer than a few additions. */
template <typename S, int ROWS>
DEVICE void tile_begin(struct bf16 *tile, const struct matrix &m, int first, int dim)
{
    constexpr int DOWN = S::WARPS * 32 / S::CHUNKS;
    int thread = (int)threadIdx.x;
    forget(thread);
    const int row = thread / S::CHUNKS, chunk = thread % S::CHUNKS;
    const int left = chunk * 8 < dim ? (int)m.rows - first - row : 0;
    const struct bf16 *source =
        row_at<struct bf16>(m, first + row) + (int)blockIdx.y * dim + chunk * 8;

#pragma unroll
    for (int i = 0; i < ROWS / DOWN; i++) {
        const int at = row + i * DOWN;
        copy16_begin(tile + at * S::D + (chunk ^ (at % 8)) * 8, source, i * DOWN < left);
        source += DOWN * m.ld;
    }
}

/* Registers of a warp.  A tile of 16 x 8 results lies as multiply_add says: a lane has two columns
 * of row lane / 4 and the same of the row 8 further. */
template <typename S> struct state {
    float o[S::TILES][S::DW / 8][4];
    float s[S::TILES][S::KEYS / 8][4];
    float top[S::TILES][2], sum[S::TILES][2]; /* sum: of this lane's columns only */
};

template <typename S> DEVICE void scores_clear(struct state<S> &w)
{
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
            w.s[t][n][0] = w.s[t][n][1] = w.s[t][n][2] = w.s[t][n][3] = 0.0f;
}
template <typename S> DEVICE void state_clear(struct state<S> &w)
{
#pragma unroll
    for (int t = 0; t < S::TILES; t++) {
        w.top[t][0] = w.top[t][1] = -INFINITY;
        w.sum[t][0] = w.sum[t][1] = 0.0f;
#pragma unroll
        for (int n = 0; n < S::DW / 8; n++)
            w.o[t][n][0] = w.o[t][n][1] = w.o[t][n][2] = w.o[t][n][3] = 0.0f;
    }
}

DEVICE int lane_id()
{
    return (int)threadIdx.x % 32;
}

/* A lane's part in matrix loads is an offset in bytes from the first row of a tile: its row of the
 * matrices and, of a pair of chunks, its half.  Further pairs are reached by exclusive or, which is
 * what the swizzle wants; further rows, a multiple of 8, by addition. */
template <typename S> DEVICE int lane_offset(int row, int half)
{
    return (row * S::D + (half ^ (row % 8)) * 8) * 2;
}
DEVICE const void *matrix_row(const struct bf16 *tile, int offset, int pair, int bytes_down)
{
    return (const char *)tile + (offset ^ (pair * 32)) + bytes_down;
}

/* Queries of all tiles of the warp, 16 columns. */
template <typename S>
DEVICE void load_queries(uint32_t (&q)[S::TILES][4], const struct bf16 *q_tile, int offset,
                         int pair)
{
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
        load_matrices(q[t], matrix_row(q_tile, offset, pair, t * 16 * S::D * 2));
}

/* Those 16 columns of the first product, for all keys of the tile. */
template <typename S>
DEVICE void scores_step(struct state<S> &w, const uint32_t (&q)[S::TILES][4],
                        const struct bf16 *k_tile, int offset, int pair)
{
#pragma unroll
    for (int n = 0; n < S::KEYS / 16; n++) {
        uint32_t k[4];
        load_matrices(k, matrix_row(k_tile, offset, pair, n * 16 * S::D * 2));
#pragma unroll
        for (int t = 0; t < S::TILES; t++) {
            multiply_add(w.s[t][2 * n], q[t], k[0], k[1]);
            multiply_add(w.s[t][2 * n + 1], q[t], k[2], k[3]);
        }
    }
}

/* Scores of the tile that begins at `key`: bias, and minus infinity for keys out of sight. */
template <typename S, bool BIAS>
DEVICE void mask_scores(struct state<S> &w, const struct attention_request &r, int query, int key)
{
    const int keys = (int)r.k.rows, first_key = key + lane_id() % 4 * 2;

    if (!BIAS && key + S::KEYS <= keys && !(r.causal && key + S::KEYS > query + 1)) return;
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int at = query + t * 16 + h * 8 + lane_id() / 4;
            const int seen = (r.causal && at + 1 < keys ? at + 1 : keys) - first_key;
            const float *const bias = BIAS ? bias_of(r, blockIdx.y) + (first_key - at) : NULL;
#pragma unroll
            for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &score = w.s[t][n][2 * h + i];
                    if (BIAS && at < (int)r.q.rows && n * 8 + i < seen)
                        score = score * (r.scale * LOG2_E) + bias[n * 8 + i] * LOG2_E;
                    if (n * 8 + i >= seen) score = -INFINITY;
                }
        }
}

/* The largest score so far takes in this tile; where it grew, what was summed before shrinks.
 * After a few tiles it hardly ever grows: a warp whose rows all keep theirs skips the products. */
template <typename S> DEVICE void raise_top(struct state<S> &w, float factor)
{
    float keep[S::TILES][2];
    bool grew = false;

#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = w.top[t][h];
#pragma unroll
            for (int n = 0; n < S::KEYS / 8; n++)
                top = fmaxf(top, fmaxf(w.s[t][n][2 * h], w.s[t][n][2 * h + 1]));
            top = max_lanes(top, 4);
            keep[t][h] = exp2_quick((w.top[t][h] - top) * factor);
            grew = grew || keep[t][h] != 1.0f;
            w.top[t][h] = top;
        }
    if (!__any_sync(0xffffffffu, grew)) return;
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            w.sum[t][h] *= keep[t][h];
#pragma unroll
            for (int n = 0; n < S::DW / 8; n++) {
                w.o[t][n][2 * h] *= keep[t][h];
                w.o[t][n][2 * h + 1] *= keep[t][h];
            }
        }
}

/* Scores become exponentials.  `factor` > 0 is what a score is to be multiplied by. */
template <typename S> DEVICE void softmax_tile(struct state<S> &w, float factor)
{
    raise_top(w, factor);
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float base = w.top[t][h] * factor;
#pragma unroll
            for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++) {
                    w.s[t][n][i] = exp2_quick(w.s[t][n][i] * factor - base);
                    w.sum[t][h] += w.s[t][n][i];
                }
        }
}

/* o += p v; p is rounded to bf16.  `pair` is the first double chunk of this warp's columns. */
template <typename S>
DEVICE void values_tile(struct state<S> &w, const struct bf16 *v_tile, int offset, int pair)
{
#pragma unroll
    for (int j = 0; j < S::KEYS / 16; j++) {
        uint32_t p[S::TILES][4];
#pragma unroll
        for (int t = 0; t < S::TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[t][i] = pack_bf16(w.s[t][2 * j + i / 2][i % 2 * 2],
                                    w.s[t][2 * j + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < S::DW / 16; n++) {
            uint32_t v[4];
            load_matrices_transposed(v, matrix_row(v_tile, offset, pair + n, j * 16 * S::D * 2));
#pragma unroll
            for (int t = 0; t < S::TILES; t++) {
                multiply_add(w.o[t][2 * n], p[t], v[0], v[1]);
                multiply_add(w.o[t][2 * n + 1], p[t], v[2], v[3]);
            }
        }
    }
}

/* The two halves of every score, added: own + other is the same sum in both warps. */
template <typename S> DEVICE void parts_write(const struct state<S> &w, float *parts)
{
    float *const own = parts + (threadIdx.x / 32 * (S::KEYS / 8) * 4) * 32 + lane_id();
#pragma unroll
    for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            own[(n * 4 + i) * 32] = w.s[0][n][i];
}
template <typename S> DEVICE void parts_add(struct state<S> &w, const float *parts)
{
    const float *const other =
        parts + ((threadIdx.x / 32 ^ 1) * (S::KEYS / 8) * 4) * 32 + lane_id();
#pragma unroll
    for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            w.s[0][n][i] += other[(n * 4 + i) * 32];
}

/* `query` is the warp's first; `column` its first in the head. */
template <typename S>
DEVICE void store_output(const struct state<S> &w, const struct attention_request &r, int query,
                         int column)
{
#pragma unroll
    for (int t = 0; t < S::TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float inverse = 1.0f / sum_lanes(w.sum[t][h], 4);
            const int row = query + t * 16 + lane_id() / 4 + h * 8;
            if (row >= r.q.rows) continue;
#pragma unroll
            for (int n = 0; n < S::DW / 8; n++) {
                const int at = column + n * 8 + lane_id() % 4 * 2;
                const float even = w.o[t][n][2 * h] * inverse, odd = w.o[t][n][2 * h + 1] * inverse;
                const int64_t place = row * r.out.ld + (int64_t)blockIdx.y * r.dim + at;
                if (at >= r.dim) continue;
                if (r.out.dtype == DTYPE_F32) {
                    ((float *)r.out.data)[place] = even;
                    ((float *)r.out.data)[place + 1] = odd;
                } else {
                    *(uint32_t *)((struct bf16 *)r.out.data + place) = pack_bf16(even, odd);
                }
            }
        }
}

template <typename S, bool BIAS>
static __global__ void __launch_bounds__(S::WARPS * 32)
    tensor_kernel(const struct attention_request r)
{
    extern __shared__ __align__(128) char shared_bytes[];
    struct bf16 *const q_tile = (struct bf16 *)shared_bytes;
    struct bf16 *const k_tile = q_tile + (S::Q_KEPT ? 0 : S::Q_ELEMENTS);
    struct bf16 *const v_tile = k_tile + S::KEYS * S::D;
    float *const parts = (float *)(shared_bytes + S::SHARED_BYTES - S::PARTS_BYTES);
    const int lane = lane_id(), warp = (int)threadIdx.x / 32;
    const int first_row = warp / S::SPLIT * S::TILES * 16;
    const int first_pair = warp % S::SPLIT * (S::DW / 16);
    const int keys = (int)r.k.rows, block_query = (int)blockIdx.x * S::QUERIES;
    /* Later keys are invisible to every query of the block. */
    const int keys_end = r.causal && block_query + S::QUERIES < keys ? block_query + S::QUERIES
                                                                     : keys;
    int q_offset = lane_offset<S>(first_row + lane % 16, lane / 16);
    int k_offset = lane_offset<S>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    int v_offset = lane_offset<S>(lane % 16, lane / 16);
    uint32_t kept[S::Q_KEPT ? S::DW / 16 : 1][S::TILES][4];
    struct state<S> w;

    state_clear(w);
    tile_begin<S, S::QUERIES>(q_tile, r.q, block_query, r.dim);
    if (S::Q_KEPT) {
        copies_commit();
        copies_wait<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < S::DW / 16; i++)
            load_queries<S>(kept[S::Q_KEPT ? i : 0], q_tile, q_offset, first_pair + i);
        __syncthreads();
    }
    tile_begin<S, S::KEYS>(k_tile, r.k, 0, r.dim);
    copies_commit();
    for (int key = 0; key < keys_end; key += S::KEYS) {
        forget(q_offset);
        forget(k_offset);
        forget(v_offset);
        scores_clear(w);
        copies_wait<0>();
        __syncthreads(); /* K is here; V and the halves of the tile before have been read */
        tile_begin<S, S::KEYS>(v_tile, r.v, key, r.dim);
        copies_commit();
#pragma unroll
        for (int i = 0; i < S::DW / 16; i++) {
            if (!S::Q_KEPT) load_queries<S>(kept[0], q_tile, q_offset, first_pair + i);
            scores_step<S>(w, kept[S::Q_KEPT ? i : 0], k_tile, k_offset, first_pair + i);
        }
        if (S::SPLIT > 1) parts_write<S>(w, parts);
        copies_wait<0>();
        __syncthreads(); /* V and the halves are here; K has been read */
        if (key + S::KEYS < keys_end) tile_begin<S, S::KEYS>(k_tile, r.k, key + S::KEYS, r.dim);
        copies_commit();
        if (S::SPLIT > 1) parts_add<S>(w, parts);
        mask_scores<S, BIAS>(w, r, block_query + first_row, key);
        softmax_tile<S>(w, BIAS ? 1.0f : r.scale * LOG2_E);
        values_tile<S>(w, v_tile, v_offset, first_pair);
    }
    store_output<S>(w, r, block_query + first_row, first_pair * 16);
}

template <typename S, bool BIAS>
static int tensor_launch(const struct attention_request *r, cudaStream_t stream)
{
    const dim3 grid((unsigned)ceil_div(r->q.rows, S::QUERIES), (unsigned)r->heads);
    const int rc = (int)cudaFuncSetAttribute(tensor_kernel<S, BIAS>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             S::SHARED_BYTES);
    if (rc) return rc;
    tensor_kernel<S, BIAS><<<grid, S::WARPS * 32, S::SHARED_BYTES, stream>>>(*r);
    return (int)cudaGetLastError();
}

template <typename S>
static int tensor_attention(const struct attention_request *r, cudaStream_t stream)
{
    return r->bias ? tensor_launch<S, true>(r, stream) : tensor_launch<S, false>(r, stream);
}

/* A multiprocessor has shared memory for two blocks: with one it would idle at every barrier. */
static bool two_blocks_of(int bytes)
{
    int device = 0, room = 0;

    if (cudaGetDevice(&device)) return false;
    if (cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device))
        return false;
    return room >= 2 * (bytes + 1024); /* the system takes 1 KiB of each block */
}

static bool fits_tensor_cores(const struct attention_request *r, enum dtype compute)
{
    /* Two results are stored as one word. */
    const bool pairs = (uintptr_t)r->out.data % 4 == 0 && r->out.ld % 2 == 0;
    const bool typed = r->q.dtype == DTYPE_BF16 && r->k.dtype == DTYPE_BF16 &&
                       r->v.dtype == DTYPE_BF16 && compute == DTYPE_BF16;

    return typed && (pairs || r->out.dtype == DTYPE_F32) && rows_at_16(r->q) && rows_at_16(r->k) &&
           rows_at_16(r->v) && r->dim % 8 == 0 && r->scale > 0.0f;
}

/* ------------------------------------------------------------------------------ the whole call */

static bool attention_legal(const struct attention_request *r)
{
    const int64_t width = (int64_t)r->heads * r->dim;

    return r->q.cols == width && r->k.cols == width && r->v.cols == width && r->out.cols == width &&
           r->out.rows == r->q.rows && r->k.rows == r->v.rows && r->k.rows > 0 && is_act(r->q) &&
           is_act(r->k) && is_act(r->v) && is_act(r->out) && r->dim > 0 && r->dim <= 512 &&
           r->heads > 0 && r->heads < 65536 && r->k.rows < 1 << 30 && r->q.rows < 1 << 30 &&
           !((r->causal || r->bias) && r->q.rows > r->k.rows);
}

extern "C" int k_attention_cuda(const struct attention_request *request, enum dtype compute,
                                struct CUstream_st *stream)
{
    const struct attention_request *r = request;

    if (!attention_legal(r)) return (int)cudaErrorInvalidValue;
    if (r->q.rows == 0) return 0;
    if (k_attention_hopper_fits(r, compute)) return k_attention_hopper_cuda(r, stream);
    if (fits_tensor_cores(r, compute)) {
        const bool roomy = two_blocks_of(shape<128, 1, 2, 64, 4>::SHARED_BYTES);
        if (r->dim <= 64) return tensor_attention<shape<64, 1, 2, 64, 4>>(r, stream);
        if (r->dim <= 128 && roomy) return tensor_attention<shape<128, 1, 2, 64, 4>>(r, stream);
        if (r->dim <= 128) return tensor_attention<shape<128, 1, 2, 32, 4>>(r, stream);
        if (r->dim <= 256) return tensor_attention<shape<256, 1, 1, 32, 4>>(r, stream);
        return tensor_attention<shape<512, 2, 1, 32, 8>>(r, stream);
    }
    return k_attention_plain_cuda(r, stream);
}
