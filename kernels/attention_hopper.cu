/*
 * attention_hopper.cu - softmax(q k^T) v for heads of 128 columns on sm_90: what attention.cu's
 * tensor cores do, with the copy engine and the warpgroup products of that architecture.
 *
 * A block stays on its multiprocessor and takes tile after tile of 128 queries of one head.  Two
 * warpgroups compute, 64 queries each; one thread of a third brings K and V, 192 keys at a time,
 * into two slots for each:
 *
 *     one group     scores 1 | output 0          scores 2 | output 1
 *                            | softmax 1                  | softmax 2
 *     the other               scores 1 | output 0          scores 2 | output 1
 *                                      | softmax 1                  | softmax 2
 *
 * The product for the next scores and that of the last weights with V are begun together, and the
 * softmax runs while the second of them and the other group's do, a quarter of the keys at a time.
 * V's slot is handed back after three of them: at the end, the next V would come late.  Of the
 * orders tried, and what the compiler makes of them, this one is the fastest for the tiles of
 * posters, by up to 20 %: look at its timing after every change, and after a new compiler.
 *
 * Weights are powers of two below or above the highest of a row's first scores, and not of all so
 * far: any number would do that lets none of them, nor their sums, leave the range of f32, which
 * bf16 has as well.  Then no step looks for a maximum, nor multiplies what was summed before: a
 * third of a softmax's instructions and 9 % of the time.  Where a later score is so much higher, by
 * 80 or so, that something overflows, the row's result is infinite or NaN.  It is marked by NaN,
 * and the block goes through its tiles once more, carefully, with the highest score so far as
 * everybody does it, and writes the rows that are marked.
 *
 * The last keys come first, for they alone may be fewer than 192.  No sum crosses rows, so a row's
 * bits, and whether care is taken of it, follow from the keys and not from what other rows the call
 * is for.
 *
 * Read next: hopper.cuh for the instructions.
 */
#include "kernels/hopper.cuh"

enum {
    DIM = 128,
    GROUPS = 2,            /* warpgroups that compute                                    */
    QUERIES = GROUPS * 64, /* of a tile                                                  */
    KEYS = 192,            /* at a time; Q and all slots take 224 KiB of 227             */
    QUARTER = KEYS / 8,    /* of a lane's KEYS / 2 scores                                */
    THREADS = (GROUPS + 1) * 128,
    Q_PANEL = QUERIES * PANEL * 2,
    KV_PANEL = KEYS * PANEL * 2,
    Q_BYTES = 2 * Q_PANEL,
    KV_BYTES = 2 * KV_PANEL,
    BARRIERS_BYTES = 128,
    SHARED_BYTES = SWIZZLED + Q_BYTES + 4 * KV_BYTES + BARRIERS_BYTES,
};

struct work {
    CUtensorMap   q, k, v; /* boxes of PANEL columns by QUERIES or KEYS rows            */
    struct matrix out;
    float         scale;       /* times log2 e                                              */
    int           keys, steps; /* steps: of KEYS keys                                       */
    int           tiles_down;  /* of a head                                                 */
    int           tiles;       /* of all heads                                              */
};

/* Addresses in shared memory; K and V have two slots, `full` and `free` a barrier for each.  Full:
 * the bytes have landed.  Free: all warps that read them have said so. */
struct places {
    uint32_t q, k, v;
    uint32_t q_full, q_free, k_full, k_free, v_full, v_free;
};

DEVICE struct places places_of(void *shared)
{
    const uint32_t start = (uint32_t)__cvta_generic_to_shared(shared);
    struct places  p;

    p.q = (start + SWIZZLED - 1) / SWIZZLED * SWIZZLED;
    p.k = p.q + Q_BYTES;
    p.v = p.k + 2 * KV_BYTES;
    p.q_full = p.v + 2 * KV_BYTES;
    p.q_free = p.q_full + 8;
    p.k_full = p.q_free + 8;
    p.k_free = p.k_full + 16;
    p.v_full = p.k_free + 16;
    p.v_free = p.v_full + 16;
    return p;
}

/* -------------------------------------------------------------------------------------- copies */

DEVICE void fill(uint32_t ring, uint32_t full, uint32_t free, const CUtensorMap *map, int col,
                 int row, struct slot &s)
{
    const uint32_t target = ring + s.index * KV_BYTES, barrier = full + 8 * s.index;

    barrier_wait(free + 8 * s.index, s.parity ^ 1);
    barrier_arrive_announcing(barrier, KV_BYTES);
    box_begin(target, map, col, row, barrier);
    box_begin(target + KV_PANEL, map, col + PANEL, row, barrier);
    advance<2>(s);
}

/* Where a thread is in the order of all copies. */
struct turn {
    struct slot k, v;
    int         q_parity;
};

/* In the order in which they are used. */
DEVICE void bring_all(const struct work &w, const struct places &p, struct turn &t)
{
    for (int tile = (int)blockIdx.x; tile < w.tiles; tile += (int)gridDim.x, t.q_parity ^= 1) {
        const int col = tile / w.tiles_down * DIM, row = tile % w.tiles_down * QUERIES;
        int       key = (w.steps - 1) * KEYS;
        barrier_wait(p.q_free, t.q_parity ^ 1);
        barrier_arrive_announcing(p.q_full, Q_BYTES);
        box_begin(p.q, &w.q, col, row, p.q_full);
        box_begin(p.q + Q_PANEL, &w.q, col + PANEL, row, p.q_full);
        fill(p.k, p.k_full, p.k_free, &w.k, col, key, t.k);
        for (; key > 0; key -= KEYS) {
            fill(p.k, p.k_full, p.k_free, &w.k, col, key - KEYS, t.k);
            fill(p.v, p.v_full, p.v_free, &w.v, col, key, t.v);
        }
        fill(p.v, p.v_full, p.v_free, &w.v, col, 0, t.v);
    }
}

/* ------------------------------------------------------------------------------------- compute */

/* Of a warpgroup's 64 queries a lane has two rows, eight apart: the halves of what follows. */
struct state {
    float    o[DIM / 2], s[KEYS / 2];
    uint32_t weights[KEYS / 4];  /* of the last step, bf16                             */
    float    top[2], sum[2];     /* sum: of this lane's columns only                   */
    float    base[2], shrink[2]; /* top in powers of two; what the last top takes away */
};

DEVICE void scores_begin(struct state &w, uint32_t q, uint32_t k)
{
    const uint64_t a = operand(q, 0), b = operand(k, 0);

#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
        const int panel = i / 4, bytes = i % 4 * 32;
        product_192(w.s, a + ((panel * Q_PANEL + bytes) >> 4),
                    b + ((panel * KV_PANEL + bytes) >> 4), i > 0);
    }
    products_commit();
}
DEVICE void output_begin(struct state &w, uint32_t v)
{
    const uint64_t b = operand(v, KV_PANEL);

#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        product_128(w.o, w.weights + 4 * i, b + ((i * 16 * PANEL * 2) >> 4));
    products_commit();
}

/* Keys from `count` on do not exist. */
DEVICE void mask_scores(struct state &w, int count)
{
    const int col = (int)threadIdx.x % 4 * 2;

#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        if (i / 4 * 8 + col + i % 2 >= count) w.s[i] = -INFINITY;
}

DEVICE void raise_tops(struct state &w, float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = w.top[half];
#pragma unroll
        for (int i = 2 * half; i < KEYS / 2; i += 4)
            top = fmaxf(top, fmaxf(w.s[i], w.s[i + 1]));
        top = max_lanes(top, 4);
        w.shrink[half] = exp2_quick((w.top[half] - top) * scale);
        w.top[half] = top;
        w.base[half] = top * scale;
        w.sum[half] *= w.shrink[half];
    }
}
/* Scores of the keys from one quarter to another become weights. */
template <int FROM, int TO> DEVICE void raise_powers(struct state &w, float scale)
{
    float sum[2] = {0.0f, 0.0f};

#pragma unroll
    for (int i = FROM * QUARTER; i < TO * QUARTER; i += 2) {
        const int half = i / 2 % 2;
        w.s[i] = exp2_quick(w.s[i] * scale - w.base[half]);
        w.s[i + 1] = exp2_quick(w.s[i + 1] * scale - w.base[half]);
        sum[half] += w.s[i] + w.s[i + 1];
    }
    w.sum[0] += sum[0];
    w.sum[1] += sum[1];
}
template <int FROM, int TO> DEVICE void round_weights(struct state &w)
{
#pragma unroll
    for (int i = FROM * QUARTER / 2; i < TO * QUARTER / 2; i++)
        w.weights[i] = pack_bf16(w.s[2 * i], w.s[2 * i + 1]);
}
DEVICE void shrink_output(struct state &w)
{
#pragma unroll
    for (int i = 0; i < DIM / 2; i++)
        w.o[i] *= w.shrink[i / 2 % 2];
}

/* The first column of a row is NaN where care must be taken of it. */
DEVICE bool is_marked(const struct bf16 *row)
{
    return (row->bits & 0x7fff) > 0x7f80;
}

/* Whether a row of this warp must be computed carefully. */
template <bool CAREFUL>
DEVICE bool store_tile(const struct work &w, struct state &state, int tile)
{
    const int     thread = (int)threadIdx.x, col = tile / w.tiles_down * DIM;
    const int64_t first =
        (int64_t)(tile % w.tiles_down) * QUERIES + thread / 32 * 16 + thread % 32 / 4;
    bool marked = false;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int64_t row = first + half * 8;
        struct bf16  *out = row_at<struct bf16>(w.out, row) + col;
        const float   sum = sum_lanes(state.sum[half], 4), inverse = 1.0f / sum;
        float         nothing = sum * 0.0f; /* NaN if something is infinite or NaN */
        bool          real = row < w.out.rows;
#pragma unroll
        for (int i = 2 * half; i < DIM / 2; i += 4) {
            state.o[i] *= inverse, state.o[i + 1] *= inverse;
            nothing += state.o[i] * 0.0f + state.o[i + 1] * 0.0f;
        }
        nothing = sum_lanes(nothing, 4);
        if (CAREFUL) {
            real = real && is_marked(out);
        } else if (nothing != 0.0f) {
            marked = true;
#pragma unroll
            for (int i = 2 * half; i < DIM / 2; i += 4)
                state.o[i] = state.o[i + 1] = nothing;
        }
        __syncwarp(); /* all have read the mark */
        store_row(out, state.o, half, real ? DIM : 0);
    }
    return marked;
}

DEVICE void state_clear(struct state &state)
{
#pragma unroll
    for (int i = 0; i < DIM / 2; i++)
        state.o[i] = 0.0f;
    state.top[0] = state.top[1] = -INFINITY;
    state.sum[0] = state.sum[1] = 0.0f;
}

DEVICE void first_weights(const struct work &w, const struct places &p, struct state &state,
                          uint32_t q, struct slot &k)
{
    const int keys = w.keys - (w.steps - 1) * KEYS;

    barrier_wait(p.k_full + 8 * k.index, k.parity);
    products_begin();
    scores_begin(state, q, p.k + k.index * KV_BYTES);
    products_wait<0>();
    hold(state.s);
    release(p.k_free + 8 * k.index);
    advance<2>(k);
    if (keys < KEYS) mask_scores(state, keys);
    raise_tops(state, w.scale);
    raise_powers<0, 4>(state, w.scale);
    round_weights<0, 4>(state);
}

/* Output of the last weights, and the next weights.  V is there, and the next V at the end. */
template <bool CAREFUL>
DEVICE void next_step(const struct work &w, const struct places &p, struct state &state, uint32_t q,
                      struct slot &k, struct slot &v)
{
    const uint32_t v_now = p.v + v.index * KV_BYTES, v_free = p.v_free + 8 * v.index;

    barrier_wait(p.k_full + 8 * k.index, k.parity);
    hold(state.s), hold(state.o), hold(state.weights);
    products_begin();
    scores_begin(state, q, p.k + k.index * KV_BYTES);
    output_begin(state, v_now);
    products_wait<1>();
    hold(state.s);
    release(p.k_free + 8 * k.index);
    advance<2>(k);
    if (CAREFUL) raise_tops(state, w.scale);
    raise_powers<0, 1>(state, w.scale);
    raise_powers<1, 2>(state, w.scale);
    raise_powers<2, 3>(state, w.scale);
    advance<2>(v);
    barrier_wait(p.v_full + 8 * v.index, v.parity);
    products_wait<0>();
    hold(state.o), hold(state.weights);
    release(v_free);
    if (CAREFUL) shrink_output(state);
    round_weights<0, 1>(state);
    round_weights<1, 2>(state);
    round_weights<2, 3>(state);
    raise_powers<3, 4>(state, w.scale);
    round_weights<3, 4>(state);
}

DEVICE void last_output(const struct places &p, struct state &state, struct slot &v)
{
    hold(state.o), hold(state.weights);
    products_begin();
    output_begin(state, p.v + v.index * KV_BYTES);
    products_wait<0>();
    hold(state.o);
    release(p.v_free + 8 * v.index);
    advance<2>(v);
}

/* Whether a row must be computed carefully. */
template <bool CAREFUL>
DEVICE bool compute_all(const struct work &w, const struct places &p, int group, struct turn &t)
{
    const uint32_t q = p.q + group * 64 * PANEL * 2;
    bool           marked = false;

    for (int tile = (int)blockIdx.x; tile < w.tiles; tile += (int)gridDim.x, t.q_parity ^= 1) {
        struct state state;
        state_clear(state);
        barrier_wait(p.q_full, t.q_parity);
        first_weights(w, p, state, q, t.k);
        barrier_wait(p.v_full + 8 * t.v.index, t.v.parity);
        for (int step = 1; step < w.steps; step++)
            next_step<CAREFUL>(w, p, state, q, t.k, t.v);
        release(p.q_free);
        last_output(p, state, t.v);
        marked |= store_tile<CAREFUL>(w, state, tile);
    }
    return marked;
}

static __global__ void __launch_bounds__(THREADS, 1)
    hopper_kernel(const __grid_constant__ struct work w)
{
    extern __shared__ char shared[];
    __shared__ bool        marked; /* by any thread */
    const struct places    p = places_of(shared);
    const int              group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0);
    struct turn            t = {{0, 0}, {0, 0}, 0};

    if (threadIdx.x == 0) {
        marked = false;
        barrier_init(p.q_full, 1);
        barrier_init(p.q_free, GROUPS * 4);
        for (int i = 0; i < 2; i++) {
            barrier_init(p.k_full + 8 * i, 1);
            barrier_init(p.v_full + 8 * i, 1);
            barrier_init(p.k_free + 8 * i, GROUPS * 4);
            barrier_init(p.v_free + 8 * i, GROUPS * 4);
        }
        barriers_show();
    }
    __syncthreads();
    wait_for_last();
    if (group == GROUPS) {
        registers_fewer<24>();
        if (threadIdx.x == GROUPS * 128) bring_all(w, p, t);
        wait_for_all<THREADS>();
        if (marked && threadIdx.x == GROUPS * 128) bring_all(w, p, t);
    } else {
        registers_more<240>();
        if (compute_all<false>(w, p, group, t)) marked = true;
        wait_for_all<THREADS>();
        if (marked) (void)compute_all<true>(w, p, group, t);
    }
}

/* ---------------------------------------------------------------------------------------- host */

extern "C" bool k_attention_hopper_fits(const struct attention_request *r, enum dtype compute)
{
    return r->dim == DIM && !r->causal && r->bias == NULL && r->scale > 0.0f &&
           compute == DTYPE_BF16 && is_bf16_at_16(r->q) && is_bf16_at_16(r->k) &&
           is_bf16_at_16(r->v) && is_bf16_at_16(r->out) && is_hopper();
}

static int map_rows(encode_map encode, CUtensorMap *map, struct matrix m, int rows)
{
    const struct boxes b = {.dimensions = 2,
                            .data = m.data,
                            .size = {(cuuint64_t)m.cols, (cuuint64_t)m.rows},
                            .bytes = {(cuuint64_t)(m.rows > 1 ? m.ld : m.cols) * 2},
                            .box = {PANEL, (cuuint32_t)rows},
                            .apart = {1, 1}};

    return map_boxes(encode, map, &b);
}

extern "C" int k_attention_hopper_cuda(const struct attention_request *r,
                                       struct CUstream_st             *stream)
{
    struct work w;
    encode_map  encode;
    unsigned    blocks = 0;

    w.out = r->out;
    w.scale = r->scale * LOG2_E;
    w.keys = (int)r->k.rows;
    w.steps = (int)ceil_div(r->k.rows, KEYS);
    w.tiles_down = (int)ceil_div(r->q.rows, QUERIES);
    w.tiles = w.tiles_down * r->heads;
    int rc = find_encoder(&encode);
    if (!rc) rc = map_rows(encode, &w.q, r->q, QUERIES);
    if (!rc) rc = map_rows(encode, &w.k, r->k, KEYS);
    if (!rc) rc = map_rows(encode, &w.v, r->v, KEYS);
    if (!rc) rc = prepare_blocks(&blocks, (const void *)hopper_kernel, SHARED_BYTES, w.tiles);
    if (rc) return rc;
    return launch_early(hopper_kernel, blocks, THREADS, SHARED_BYTES, stream, w);
}
