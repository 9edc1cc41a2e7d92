/*
 * attention.cu - the twin of attention.c: softmax(q k^T) v in tiles, and what is done to q and k
 * before.
 *
 * Two kernels.  One multiplies bf16 in tensor cores, the other f32 in plain arithmetic and takes
 * any type, alignment and head dimension up to 512.  Both walk the keys tile by tile as attention.c
 * explains; the N x N scores never exist.  FLUX's heads on sm_90 have a third, in
 * attention_hopper.cu.
 *
 * Tensor cores: a warp owns TILES x 16 queries.  Its scores and its output stay in registers, and
 * scores become the left operand of the second product without leaving them.  K and V have one
 * buffer each: V of a tile arrives while its scores are formed, K of the next while V is used.
 *
 *     wait K | scores = q k^T   | wait V | softmax, o += p v  | wait K ...
 *            | V arrives ------>         | next K arrives --->
 *
 * Rows in shared memory are swizzled: 16-byte chunk c of row r lies at c ^ (r % 8), so that the
 * eight rows of a matrix load fall into different banks.  Heads narrower than D end in zeros there.
 * For D = 512 two warps share the queries: each forms the scores over one half of the head's
 * columns, they add the halves, and each keeps the output of its half.
 *
 * Read next: device.cuh for the instructions.
 */
#include "kernels/device.cuh"

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

/* The bias of a head, such that bias[key - query] is a score's. */
DEVICE const float *bias_of(const struct attention_request &r, int64_t head)
{
    return r.bias + head * (2 * r.k.rows - 1) + r.k.rows - 1;
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

/* ---------------------------------------------------------------------------------- plain f32 */

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
    if (r->dim <= 64) return plain_attention<2, 4>(r, stream);
    if (r->dim <= 128) return plain_attention<2, 8>(r, stream);
    return plain_attention<1, 32>(r, stream);
}

/* -------------------------------------------------------------------------- q/k norm and RoPE */

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
