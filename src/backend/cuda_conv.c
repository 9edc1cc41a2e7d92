/*
 * cuda_conv.c - convolutions on a GPU, in one of five ways.
 *
 *   1x1          a product
 *   few outputs  one pass of our own kernel: the last convolution of a decoder, whose result must
 *                be f32
 *   Hopper       our own kernel for sm_90, where map, weights and result are bf16 and the channels
 *                come in eights; of enlarged maps too
 *   fused        cuDNN, where they are so on other cards
 *   patches      everything else, and everything where cuDNN is not: bands of patches, then a
 *                product
 *
 * But for Hopper, a map that is enlarged first is enlarged into scratch, as it stands, and then
 * convolved: nine taps where four sums of weights would do, for a kernel that the library has.
 *
 * Scratch: the enlarged map, the weights tap by tap, then cuDNN's workspace, or a band of patches
 * and what the product needs; on Hopper the weights alone.  A dry run cannot know which way will be
 * taken, so it counts the longest.
 */
#include "backend/cuda_int.h"
#include "kernels/kernels_cuda.h"

/* A band of patches is at most this long. */
#define PATCHES_BYTES ((int64_t)128 << 20)

struct conv {
    int64_t taps, columns; /* of the patches, zeros at the end included */
    int32_t out_h, out_w;
    int64_t band; /* rows of patches at once */
};

static uint64_t enlarged_bytes(const struct conv_request *request)
{
    return (uint64_t)round_up_i64(
        4 * request->x.rows * request->x.cols * dtype_bytes(request->x.dtype), 64);
}

/* The convolution of the enlarged map at `data` that the request means: without the row of pixels
 * that only lends itself, where a pad is -1. */
static struct conv_request plain_of(const struct conv_request *request, void *data)
{
    struct conv_request plain = *request;
    int32_t             above = request->pad_top < 0, below = request->pad_bottom < 0;
    struct matrix       map = request->x;

    map.data = data;
    map.ld = map.cols;
    map.rows = 4 * request->x.rows;
    plain.enlarge = false;
    plain.in_w = 2 * request->in_w;
    plain.in_h = 2 * request->in_h - above - below;
    plain.x = matrix_rows(map, (int64_t)above * plain.in_w, (int64_t)plain.in_h * plain.in_w);
    plain.pad_top = above ? 0 : request->pad_top;
    plain.pad_bottom = below ? 0 : request->pad_bottom;
    return plain;
}

static struct conv conv_of(const struct backend *backend, const struct conv_request *request)
{
    struct conv conv = {.taps = (int64_t)request->size * request->size};
    int64_t     bytes = dtype_bytes(backend->compute);
    int32_t     h = request->in_h + request->pad_top + request->pad_bottom;
    int32_t     w = request->in_w + request->pad_left + request->pad_right;

    conv.out_h = (h - request->size) / request->stride + 1;
    conv.out_w = (w - request->size) / request->stride + 1;
    conv.columns = round_up_i64(request->w.cols, 8); /* rows at 16 bytes */
    conv.band = max_i64(PATCHES_BYTES / (conv.columns * bytes) / 128 * 128, 128);
    conv.band = min_i64(conv.band, request->y.rows);
    return conv;
}

static bool is_product(const struct conv_request *request)
{
    return request->size == 1 && request->stride == 1 && request->pad_top == 0 &&
           request->pad_left == 0 && request->pad_bottom == 0 && request->pad_right == 0;
}

/* The kernel keeps all weights in the 48 KB of shared memory that every card has. */
static bool is_few(const struct conv_request *request)
{
    return request->y.cols <= CONV_FEW_MAX &&
           request->w.rows * request->w.cols * (int64_t)sizeof(float) <= 48 << 10;
}

static struct matrix weights_of(const struct backend *backend, const struct conv_request *request,
                                const struct conv *conv, struct workspace *scratch)
{
    struct matrix w = {.dtype = backend->compute,
                       .rows = request->w.rows,
                       .cols = conv->columns,
                       .ld = conv->columns};

    w.data = scratch_take(scratch, (uint64_t)(w.rows * w.ld) * dtype_bytes(w.dtype));
    return w;
}

static struct matrix patches_of(const struct backend *backend, const struct conv *conv)
{
    return (struct matrix){
        .dtype = backend->compute, .rows = conv->band, .cols = conv->columns, .ld = conv->columns};
}

static uint64_t plain_needs(const struct backend *backend, const struct conv_request *request)
{
    struct conv   conv = conv_of(backend, request);
    struct matrix patches = patches_of(backend, &conv), w = patches;
    uint64_t      bytes = (uint64_t)conv.columns * dtype_bytes(backend->compute), product;

    if (is_product(request))
        return cuda_linear_needs(backend, request->y, request->x, request->w, request->bias,
                                 ACT_NONE);
    if (is_few(request)) return 0;
    w.rows = request->w.rows;
    product = (uint64_t)round_up_i64((int64_t)bytes * conv.band, 64) +
              cuda_linear_needs(backend, request->y, patches, w, request->bias, ACT_NONE);
    return (uint64_t)round_up_i64((int64_t)bytes * w.rows, 64) +
           max_u64(product, GRAPH_SCRATCH_BYTES);
}

static int by_patches(struct cuda *cuda, const struct conv_request *request,
                      const struct conv *conv, struct matrix w, struct workspace scratch)
{
    struct backend *backend = &cuda->base;
    struct matrix   patches = patches_of(backend, conv);
    int             status = 0;

    patches.data =
        scratch_take(&scratch, (uint64_t)(patches.rows * patches.ld) * dtype_bytes(patches.dtype));
    backend->scratch = scratch;
    for (int64_t row = 0; row < request->y.rows && !status; row += conv->band) {
        int64_t       count = min_i64(conv->band, request->y.rows - row);
        struct matrix band = matrix_rows(patches, 0, count);

        if (!backend->rehearsing)
            status = k_im2col_cuda(band, request, row, conv->out_w, cuda->stream);
        if (!status)
            status = cuda_map_linear(backend, matrix_rows(request->y, row, count), band, w,
                                     request->bias);
    }
    return status;
}

static int run_plain(struct backend *backend, const struct conv_request *request)
{
    struct cuda     *cuda = cuda_of(backend);
    struct conv      conv = conv_of(backend, request);
    struct workspace scratch = backend->scratch;
    bool             fused;
    int              status = 0;

    must(request->y.rows == (int64_t)conv.out_h * conv.out_w);
    if (is_product(request))
        return cuda_map_linear(backend, request->y, request->x, request->w, request->bias);
    if (is_few(request))
        return backend->rehearsing ? 0 : k_conv_few_cuda(request, conv.out_w, cuda->stream);
    fused = cuda->graphs != NULL && conv.columns == request->w.cols &&
            graphs_conv_fits(cuda->graphs, request, conv.out_h, conv.out_w);
    struct matrix w = weights_of(backend, request, &conv, &scratch);
    if (!backend->rehearsing)
        status = k_conv_weights_cuda(w, request->w, (int32_t)conv.taps, cuda->stream);
    if (status) return status;
    if (!fused) return by_patches(cuda, request, &conv, w, scratch);
    return graphs_conv(cuda->graphs, request, w, scratch, backend->rehearsing, cuda->stream);
}

/* -------------------------------------------------------------------------------------- Hopper */

/* Weights tap by tap, of an enlarged map those of its four phases. */
static struct matrix hopper_weights(const struct conv_request *request)
{
    int64_t phases = request->enlarge ? 4 : 1, taps = request->enlarge ? 4 : 9;
    int64_t cols = taps * request->x.cols;

    return (struct matrix){
        .dtype = DTYPE_BF16, .rows = phases * request->y.cols, .cols = cols, .ld = cols};
}

static uint64_t hopper_bytes(const struct conv_request *request)
{
    struct matrix w = hopper_weights(request);

    return request->size == 3 ? (uint64_t)round_up_i64(2 * w.rows * w.cols, 64) : 0;
}

static int by_hopper(struct backend *backend, const struct conv_request *request)
{
    struct cuda     *cuda = cuda_of(backend);
    struct workspace scratch = backend->scratch;
    struct matrix    w = hopper_weights(request);
    int              status;

    w.data = scratch_take(&scratch, hopper_bytes(request));
    if (backend->rehearsing) return 0;
    if (request->enlarge)
        status = k_conv_phases_cuda(w, request->w, cuda->stream);
    else
        status = k_conv_weights_cuda(w, request->w, 9, cuda->stream);
    return status ? status : k_conv_hopper_cuda(request, w.data, cuda->stream);
}

/* ------------------------------------------------------------------------------------ all ways */

uint64_t cuda_conv2d_needs(const struct backend *backend, const struct conv_request *request)
{
    struct conv_request plain;
    uint64_t            others;

    if (!request->enlarge) return max_u64(plain_needs(backend, request), hopper_bytes(request));
    plain = plain_of(request, request->x.data);
    others = enlarged_bytes(request) + plain_needs(backend, &plain);
    return max_u64(others, hopper_bytes(request));
}

int cuda_conv2d(struct backend *backend, const struct conv_request *request)
{
    struct workspace    scratch = backend->scratch;
    struct conv_request plain;
    struct matrix       map = request->x;
    int                 status = 0;

    if (k_conv_hopper_fits(request, backend->compute)) return by_hopper(backend, request);
    if (!request->enlarge) return run_plain(backend, request);
    map.data = scratch_take(&scratch, enlarged_bytes(request));
    map.rows = 4 * request->x.rows;
    map.ld = map.cols;
    if (!backend->rehearsing)
        status = k_upsample2_cuda(map, request->x, request->in_h, request->in_w,
                                  cuda_of(backend)->stream);
    plain = plain_of(request, map.data);
    backend->scratch = scratch;
    return status ? status : run_plain(backend, &plain);
}
