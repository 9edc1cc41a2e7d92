/*
 * conv_hopper.cu - 3x3 convolutions of channels-last maps on sm_90, of enlarged maps too: a product
 * whose rows are the result's pixels, with the copy engine and the warpgroup products.
 *
 * A block stays on its multiprocessor and takes tile after tile of 8 x 32 pixels by 128 channels.
 * Two warpgroups compute, four rows of pixels each; one thread of a third brings what they read, 64
 * channels at a time: the pixels of x that one column of the kernel meets, once for all its rows,
 * and the weights of each tap.
 *
 *     x, 10 rows   ----------  under the kernel's first row: rows 0 to 7
 *                  ==========                    second row: rows 1 to 8
 *                  ==========                    third row:  rows 2 to 9
 *                  ----------
 *
 * A row of 32 pixels takes whole periods of the copy engine's swizzle, so the three begin where
 * products may begin.  What lies outside of x arrives as zeros: that is the padding.
 *
 * Of a kernel with stride 2, every row is brought by itself.  An enlarged map is never made: its
 * four phases are 2x2 convolutions of the source (see conv.c), side by side in one call.
 *
 * The sum of a value runs through channels, columns and rows of the kernel in one order, whatever
 * pixels are computed with it: so the height of a strip changes no bit.
 *
 * Read next: hopper.cuh, src/backend/cuda_conv.c.
 */
#include "kernels/hopper.cuh"

enum {
    TILE_W = 32,
    TILE_H = 8,
    GROUPS = 2,                            /* warpgroups that compute          */
    OUTS = 128,                            /* channels of the result in a tile */
    THREADS = (GROUPS + 1) * 128,
    ROW_BYTES = TILE_W * PANEL * 2,
    X_BYTES = (TILE_H + 2) * ROW_BYTES,
    X_SLOTS = 3,
    W_BYTES = OUTS * PANEL * 2,
    W_SLOTS = 6,
    BARRIERS_BYTES = 16 * (X_SLOTS + W_SLOTS),
    SHARED_BYTES = SWIZZLED + X_SLOTS * X_BYTES + W_SLOTS * W_BYTES + BARRIERS_BYTES,
};

struct work {
    CUtensorMap   x, w; /* of channels, columns, rows; of channels, taps, results */
    struct matrix y;
    const float  *bias; /* or NULL */
    int           first_row, first_col; /* of x, under the first tap of the first result */
    int           stride;
    int           phases;      /* down and right: 2 for an enlarged map, else 1 */
    int           panels;      /* of x's channels */
    int           taps;        /* of the kernel, down and right */
    int           shared_taps; /* down, that one piece of x serves */
    int           x_bytes;     /* of such a piece */
    int           out_h, out_w; /* of a phase */
    int           tiles_right, tiles_out, tiles;
};

/* Addresses in shared memory; `full` and `free`: a barrier for each slot.  Full: the bytes have
 * landed.  Free: all warps that read them have said so. */
struct places {
    uint32_t x, w;
    uint32_t x_full, x_free, w_full, w_free;
};

DEVICE struct places places_of(void *shared)
{
    const uint32_t start = (uint32_t)__cvta_generic_to_shared(shared);
    struct places  p;

    p.x = (start + SWIZZLED - 1) / SWIZZLED * SWIZZLED;
    p.w = p.x + X_SLOTS * X_BYTES;
    p.x_full = p.w + W_SLOTS * W_BYTES;
    p.x_free = p.x_full + 8 * X_SLOTS;
    p.w_full = p.x_free + 8 * X_SLOTS;
    p.w_free = p.w_full + 8 * W_SLOTS;
    return p;
}

/* Where a tile lies, counted in results of its phase, and which channels it has.  Tiles that read
 * the same pixels follow each other. */
struct tile {
    int row, col, down, right, out;
};
DEVICE struct tile tile_at(const struct work &w, int index)
{
    struct tile t;
    const int   channels = index / w.tiles_out, phase = channels % (w.phases * w.phases),
              place = channels / (w.phases * w.phases);

    t.out = index % w.tiles_out * OUTS;
    t.down = phase / w.phases;
    t.right = phase % w.phases;
    t.row = place / w.tiles_right * TILE_H;
    t.col = place % w.tiles_right * TILE_W;
    return t;
}

/* -------------------------------------------------------------------------------------- copies */

template <int SLOTS, int BYTES>
DEVICE void bring(uint32_t ring, uint32_t full, uint32_t free, const CUtensorMap *map, int channel,
                  int at, int level, int bytes, struct slot &s)
{
    barrier_wait(free + 8 * s.index, s.parity ^ 1);
    barrier_arrive_announcing(full + 8 * s.index, bytes);
    box_begin(ring + s.index * BYTES, map, channel, at, level, full + 8 * s.index);
    advance<SLOTS>(s);
}

/* In the order in which they are used. */
DEVICE void bring_all(const struct work &w, const struct places &p)
{
    struct slot x = {0, 0}, weights = {0, 0};

    for (int index = (int)blockIdx.x; index < w.tiles; index += (int)gridDim.x) {
        const struct tile t = tile_at(w, index);
        const int row = w.first_row + t.down + t.row * w.stride;
        const int col = w.first_col + t.right + t.col * w.stride;
        const int out = (t.down * w.phases + t.right) * (int)w.y.cols + t.out;
        for (int channel = 0; channel < w.panels * PANEL; channel += PANEL)
            for (int right = 0; right < w.taps; right++)
                for (int down = 0; down < w.taps; down++) {
                    if (down == 0 || w.shared_taps == 1)
                        bring<X_SLOTS, X_BYTES>(p.x, p.x_full, p.x_free, &w.x, channel, col + right,
                                                row + down, w.x_bytes, x);
                    bring<W_SLOTS, W_BYTES>(p.w, p.w_full, p.w_free, &w.w, channel,
                                            down * w.taps + right, out, W_BYTES, weights);
                }
    }
}

/* ------------------------------------------------------------------------------------- compute */

/* Of a warpgroup's 128 pixels the first and the second 64. */
struct sums {
    float first[OUTS / 2], second[OUTS / 2];
};

/* One tap of one panel: `x` is this group's first pixel under it. */
DEVICE void tap_begin(struct sums &sums, uint32_t x, uint32_t w, bool add)
{
    const uint64_t a = operand(x, 0), b = operand(w, 0);

    products_begin();
#pragma unroll
    for (int i = 0; i < PANEL / 16; i++) {
        product_128(sums.first, a + (i * 32 >> 4), b + (i * 32 >> 4), add || i > 0);
        product_128(sums.second, a + ((64 * PANEL * 2 + i * 32) >> 4), b + (i * 32 >> 4),
                    add || i > 0);
    }
    products_commit();
}

/* All taps.  What a tap read is handed back when the next has begun. */
DEVICE void sum_tile(const struct work &w, const struct places &p, struct sums &sums,
                     uint32_t group, struct slot &x, struct slot &weights)
{
    uint32_t x_read = 0, w_read = 0;

    for (int i = 0; i < w.panels * w.taps * w.taps; i++) {
        const int down = i % w.shared_taps;
        if (down == 0) barrier_wait(p.x_full + 8 * x.index, x.parity);
        barrier_wait(p.w_full + 8 * weights.index, weights.parity);
        tap_begin(sums, p.x + x.index * X_BYTES + group + down * ROW_BYTES,
                  p.w + weights.index * W_BYTES, i > 0);
        products_wait<1>();
        if (w_read != 0) release(w_read);
        if (x_read != 0) release(x_read);
        w_read = p.w_free + 8 * weights.index;
        x_read = down + 1 == w.shared_taps ? p.x_free + 8 * x.index : 0;
        advance<W_SLOTS>(weights);
        if (x_read != 0) advance<X_SLOTS>(x);
    }
    products_wait<0>();
    hold(sums.first), hold(sums.second);
    release(w_read);
    release(x_read);
}

DEVICE void add_bias(struct sums &sums, const float *bias, int channels)
{
#pragma unroll
    for (int i = 0; i < OUTS / 2; i += 4) {
        const int    channel = i * 2 + (int)threadIdx.x % 4 * 2;
        const float2 b = *(const float2 *)(bias + (channel < channels ? channel : 0));
        sums.first[i] += b.x, sums.first[i + 1] += b.y;
        sums.first[i + 2] += b.x, sums.first[i + 3] += b.y;
        sums.second[i] += b.x, sums.second[i + 1] += b.y;
        sums.second[i + 2] += b.x, sums.second[i + 3] += b.y;
    }
}

/* `pixel` is the first of the 64 in the tile. */
DEVICE void store_pixels(const struct work &w, const struct tile &t, const float (&sum)[OUTS / 2],
                         int pixel)
{
    const int thread = (int)threadIdx.x % 128;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int     at = pixel + thread / 32 * 16 + thread % 32 / 4 + half * 8;
        const int     row = t.row + at / TILE_W, col = t.col + at % TILE_W;
        const bool    real = row < w.out_h && col < w.out_w;
        const int64_t place = ((int64_t)row * w.phases + t.down) * w.out_w * w.phases +
                              (int64_t)col * w.phases + t.right;
        store_row(row_at<struct bf16>(w.y, real ? place : 0) + t.out, sum, half,
                  real ? (int)w.y.cols - t.out : 0);
    }
}

DEVICE void compute_all(const struct work &w, const struct places &p, int group)
{
    const int   pixels = TILE_H * TILE_W / GROUPS;
    struct slot x = {0, 0}, weights = {0, 0};
    struct sums sums;

    for (int index = (int)blockIdx.x; index < w.tiles; index += (int)gridDim.x) {
        const struct tile t = tile_at(w, index);
        sum_tile(w, p, sums, group * pixels * PANEL * 2, x, weights);
        if (w.bias != NULL) add_bias(sums, w.bias + t.out, (int)w.y.cols - t.out);
        store_pixels(w, t, sums.first, group * pixels);
        store_pixels(w, t, sums.second, group * pixels + 64);
    }
}

static __global__ void __launch_bounds__(THREADS, 1)
    conv_kernel(const __grid_constant__ struct work w)
{
    extern __shared__ char shared[];
    const struct places    p = places_of(shared);
    const int              group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0);

    if (threadIdx.x == 0) {
        for (int i = 0; i < X_SLOTS; i++) {
            barrier_init(p.x_full + 8 * i, 1);
            barrier_init(p.x_free + 8 * i, GROUPS * 4);
        }
        for (int i = 0; i < W_SLOTS; i++) {
            barrier_init(p.w_full + 8 * i, 1);
            barrier_init(p.w_free + 8 * i, GROUPS * 4);
        }
        barriers_show();
    }
    __syncthreads();
    if (group == GROUPS) {
        registers_fewer<40>();
        if (threadIdx.x == GROUPS * 128) bring_all(w, p);
    } else {
        registers_more<232>();
        compute_all(w, p, group);
    }
}

/* ---------------------------------------------------------------------------------------- host */

extern "C" bool k_conv_hopper_fits(const struct conv_request *r, enum dtype compute)
{
    return r->size == 3 && compute == DTYPE_BF16 && is_bf16_at_16(r->x) && is_bf16_at_16(r->y) &&
           r->x.cols % 8 == 0 && r->y.cols % 8 == 0 && (uintptr_t)r->bias % 8 == 0 && is_hopper();
}

/* Of an enlarged map; a row of x that only lends itself has no results. */
static void plan_phases(struct work *w, const struct conv_request *r)
{
    const int above = r->pad_top < 0, below = r->pad_bottom < 0;

    w->phases = w->taps = 2;
    w->first_row = above - 1;
    w->first_col = -1;
    w->out_h = r->in_h - above - below;
    w->out_w = r->in_w;
}

static void plan_plain(struct work *w, const struct conv_request *r)
{
    w->phases = 1;
    w->taps = 3;
    w->first_row = -r->pad_top;
    w->first_col = -r->pad_left;
    w->out_h = (r->in_h + r->pad_top + r->pad_bottom - 3) / r->stride + 1;
    w->out_w = (r->in_w + r->pad_left + r->pad_right - 3) / r->stride + 1;
}

static int map_x(encode_map encode, struct work *w, const struct conv_request *r)
{
    const cuuint32_t   apart = (cuuint32_t)r->stride;
    const cuuint32_t   rows = (cuuint32_t)(TILE_H + w->shared_taps - 1);
    const struct boxes b = {.dimensions = 3,
                            .data = r->x.data,
                            .size = {(cuuint64_t)r->x.cols, (cuuint64_t)r->in_w,
                                     (cuuint64_t)r->in_h},
                            .bytes = {(cuuint64_t)r->x.ld * 2,
                                      (cuuint64_t)r->x.ld * 2 * (cuuint64_t)r->in_w},
                            .box = {PANEL, TILE_W * apart, rows * apart},
                            .apart = {1, apart, apart}};

    w->x_bytes = (int)rows * ROW_BYTES;
    return map_boxes(encode, &w->x, &b);
}

static int map_weights(encode_map encode, struct work *w, const struct conv_request *r,
                       void *ordered)
{
    const cuuint64_t   channels = (cuuint64_t)r->x.cols, taps = (cuuint64_t)(w->taps * w->taps);
    const struct boxes b = {.dimensions = 3,
                            .data = ordered,
                            .size = {channels, taps,
                                     (cuuint64_t)(r->y.cols * w->phases * w->phases)},
                            .bytes = {channels * 2, channels * 2 * taps},
                            .box = {PANEL, 1, OUTS},
                            .apart = {1, 1, 1}};

    return map_boxes(encode, &w->w, &b);
}

extern "C" int k_conv_hopper_cuda(const struct conv_request *r, void *ordered,
                                  struct CUstream_st *stream)
{
    struct work w = {};
    encode_map  encode;
    unsigned    blocks = 0;

    w.y = r->y;
    w.bias = r->bias;
    w.stride = r->stride;
    w.panels = (int)ceil_div(r->x.cols, PANEL);
    if (r->enlarge)
        plan_phases(&w, r);
    else
        plan_plain(&w, r);
    w.shared_taps = r->stride == 1 ? w.taps : 1;
    w.tiles_right = (int)ceil_div(w.out_w, TILE_W);
    w.tiles_out = (int)ceil_div(r->y.cols, OUTS);
    w.tiles = (int)ceil_div(w.out_h, TILE_H) * w.tiles_right * w.phases * w.phases * w.tiles_out;
    if (w.tiles == 0) return 0;
    int rc = find_encoder(&encode);
    if (!rc) rc = map_x(encode, &w, r);
    if (!rc) rc = map_weights(encode, &w, r, ordered);
    if (!rc) rc = prepare_blocks(&blocks, (const void *)conv_kernel, SHARED_BYTES, w.tiles);
    if (rc) return rc;
    conv_kernel<<<blocks, THREADS, SHARED_BYTES, stream>>>(w);
    return (int)cudaGetLastError();
}
