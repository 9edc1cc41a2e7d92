/*
 * vae_strips.c - the VAE's layers, a strip of rows at a time.
 *
 * Owns the order in which rows are computed, where they lie meanwhile, and what is computed twice.
 * Must not know which layers a coder has.
 *
 * One map is whole at any time, x (vae_maps.c); all else comes in strips.  A group norm wants the
 * statistics of a whole map before its first row, so a resnet reads x three times:
 *
 *     statistics 1     x
 *     statistics 2     x -> norm 1, SiLU -> conv 1 = inner
 *     result           x -> norm 1, SiLU -> conv 1 = inner -> norm 2, SiLU -> conv 2, + skip -> y
 *
 *     rows of  x       ======================######     done, and this strip
 *              normed                      ==######     == two rows carried over: a 3x3 kernel
 *              inner                     ==######          wants the row below
 *              y       ==================######         so two rows later than x
 *
 * `inner` is computed twice unless there is room in front of x and y to keep it whole.  Carried
 * rows are not computed again, so the arithmetic does not grow as the strips get lower.
 *
 * A map that is enlarged is four times its source.  Where it does not fit into `main`, it is never
 * whole: the source stays, and the resnet that follows enlarges strip by strip, three times.  That
 * costs 3 * 4 taps where an enlarged map as it stands would cost 9 (see conv.c).
 *
 * Statistics are those of single rows of the map, merged in order, and a row of a convolution does
 * not depend on the rows that are computed with it: so the height of the strips changes no bit.
 *
 * Read next: vae_maps.c, vae_load.c.
 */
#include "engine/vae_int.h"

static const float NORM_EPS = 1e-6f;

/* Rows [first, end) of a map, in a buffer that may be lower than the map. */
struct strip {
    struct matrix buffer;
    int32_t       w, first, end;
};

/* ------------------------------------------------------------------------------------ strips */

static struct strip strip_take(const struct vae_pass *pass, enum dtype dtype, int32_t rows,
                               int32_t w, int64_t channels)
{
    return (struct strip){
        .buffer = backend_take(pass->backend, dtype, (int64_t)rows * w, channels, "VAE strip"),
        .w = w};
}

static struct matrix strip_view(const struct strip *strip, int32_t first, int32_t end)
{
    must(first >= strip->first && end <= strip->end && first <= end);
    return matrix_rows(strip->buffer, (int64_t)(first - strip->first) * strip->w,
                       (int64_t)(end - first) * strip->w);
}

/* The place of the next `count` rows. */
static struct matrix strip_append(struct strip *strip, int32_t count)
{
    int32_t first = strip->end;

    strip->end += count;
    must((int64_t)(strip->end - strip->first) * strip->w <= strip->buffer.rows);
    return strip_view(strip, first, strip->end);
}

/* Rows above `first` are not wanted any more.  Row by row, because places may overlap. */
static void strip_forget(struct strip *strip, struct backend *backend, int32_t first)
{
    struct strip moved = *strip;

    if (first <= strip->first) return;
    must(first <= strip->end);
    moved.first = moved.end = first;
    for (int32_t row = first; row < strip->end; row++)
        backend_copy(backend, strip_append(&moved, 1), strip_view(strip, row, row + 1));
    *strip = moved;
}

/* Rows of a strip of `channels` in the budget: at least one, or the two of an enlarged row. */
static int32_t strip_height(const struct vae_pass *pass, int32_t h, int32_t w, int64_t channels)
{
    uint64_t row_bytes = (uint64_t)w * (uint64_t)channels * dtype_bytes(pass->act);
    uint64_t rows = pass->vae->budget.strip_bytes / row_bytes;
    int32_t  step = pass->enlarging != NULL ? 2 : 1;
    int32_t  height = rows < (uint64_t)h ? (int32_t)rows : h;

    return height < step ? step : height - height % step;
}

static int32_t strip_end(int32_t first, int32_t step, int32_t h)
{
    return h - first < step ? h : first + step;
}

/* Rows of a 3x3 convolution that its input's rows [0, end) suffice for. */
static int32_t ready_rows(int32_t end, int32_t h)
{
    return end == h ? h : end > 0 ? end - 1 : 0;
}

/* A 3x3 convolution of rows of width w; without padding yet. */
static struct conv_request conv_of(struct matrix y, struct matrix x, int32_t w,
                                   const struct linear *conv)
{
    return (struct conv_request){.y = y,
                                 .x = x,
                                 .w = conv->w,
                                 .bias = conv->bias,
                                 .in_h = (int32_t)(x.rows / w),
                                 .in_w = w,
                                 .size = 3,
                                 .stride = 1};
}

/* Rows [first, end) of the 3x3 convolution of a map of h rows, of which x has those around. */
static void convolve(const struct vae_pass *pass, struct matrix y, const struct strip *x,
                     int32_t first, int32_t end, int32_t h, const struct linear *conv)
{
    int32_t             top = first > 0 ? first - 1 : 0, bottom = end < h ? end + 1 : h;
    struct conv_request request = conv_of(y, strip_view(x, top, bottom), x->w, conv);

    request.pad_top = first == 0;
    request.pad_bottom = end == h;
    request.pad_left = request.pad_right = 1;
    backend_conv2d(pass->backend, &request);
}

/* -------------------------------------------------------------------------- reading the map */

/* Rows [2 * first, 2 * end) of x enlarged. */
static void enlarge_rows(const struct vae_pass *pass, struct matrix y, int32_t first, int32_t end,
                         const struct linear *conv)
{
    int32_t       top = first > 0 ? first - 1 : 0, bottom = end < pass->h ? end + 1 : end;
    struct matrix x =
        matrix_rows(pass->x, (int64_t)top * pass->w, (int64_t)(bottom - top) * pass->w);
    struct conv_request request = conv_of(y, x, pass->w, conv);

    request.pad_top = top == first ? 1 : -1;
    request.pad_bottom = bottom == end ? 1 : -1;
    request.pad_left = request.pad_right = 1;
    request.enlarge = true;
    backend_conv2d(pass->backend, &request);
}

/* Height or width of the map that x stands for. */
static int32_t seen(const struct vae_pass *pass, int32_t side)
{
    return pass->enlarging != NULL ? 2 * side : side;
}

/* Rows [first, end) of the map that x stands for: where they lie, or made in `place`. */
static struct matrix map_rows(const struct vae_pass *pass, int32_t first, int32_t end,
                              struct matrix place)
{
    if (pass->enlarging == NULL)
        return matrix_rows(pass->x, (int64_t)first * pass->w, (int64_t)(end - first) * pass->w);
    enlarge_rows(pass, place, first / 2, end / 2, pass->enlarging);
    return place;
}

/* -------------------------------------------------------------------------------- statistics */

/* Room for the statistics of every row of a map. */
static struct matrix take_stats(const struct vae_pass *pass, int32_t h, int64_t channels)
{
    return backend_take(pass->backend, DTYPE_F32, h, 2 * channels, "VAE statistics");
}

static struct matrix take_table(const struct vae_pass *pass, int64_t channels)
{
    return backend_take(pass->backend, DTYPE_F32, 2, channels, "VAE norm");
}

static void merge(const struct vae_pass *pass, struct matrix table, struct matrix stats,
                  const struct vae_norm *norm, int32_t w)
{
    backend_group_merge(pass->backend, table, stats, norm->weight, w,
                        (int32_t)pass->vae->config.norm_groups, NORM_EPS);
}

/* Statistics of the map that x stands for; rows that must be made are made in `place`. */
static void survey_map(const struct vae_pass *pass, struct matrix table,
                       const struct vae_norm *norm, struct strip place, int32_t step)
{
    int32_t           h = seen(pass, pass->h), w = seen(pass, pass->w);
    struct arena_mark mark = arena_mark(backend_arena(pass->backend));
    struct matrix     stats = take_stats(pass, h, pass->x.cols);

    for (int32_t first = 0; first < h; first += step) {
        int32_t       end = strip_end(first, step, h);
        struct matrix rows;

        place.first = place.end = first;
        rows = map_rows(pass, first, end, strip_append(&place, end - first));
        backend_group_stats(pass->backend, matrix_rows(stats, first, end - first), rows);
    }
    merge(pass, table, stats, norm, w);
    arena_rewind(backend_arena(pass->backend), mark);
}

/* ------------------------------------------------------------------------------------ resnet */

struct resnet_run {
    struct vae_pass         *pass;
    const struct vae_resnet *resnet;
    int32_t                  h, w, step;
    struct matrix            table1, table2;
    struct strip             normed, inner;
    struct strip             skip; /* x or its 1x1 convolution, until y's row is there */
    struct matrix            sum;  /* rows of conv 2 */
    struct matrix            y;
    int32_t                  y_end;    /* rows of y that are done */
    bool                     in_place; /* x is y: its own skip */
    bool                     kept;     /* `inner` is whole */
};

static struct resnet_run resnet_begin(struct vae_pass *pass, const struct vae_resnet *resnet)
{
    int32_t           h = seen(pass, pass->h), w = seen(pass, pass->w);
    int64_t           rows = (int64_t)h * w, from = resnet->from, to = resnet->to;
    int32_t           step = strip_height(pass, h, w, max_i64(from, to));
    struct resnet_run run = {.pass = pass, .resnet = resnet, .h = h, .w = w, .step = step};
    struct matrix     whole = {pass->main, pass->act, rows, to, to};

    must(pass->x.cols == from);
    run.y = vae_maps_over_x(pass, rows, to);
    run.in_place = pass->enlarging == NULL && from == to;
    /* While x is enlarged, y follows it by the two rows that an inner window lags behind. */
    run.kept = pass->enlarging == NULL && vae_maps_data_end(whole) <= (const char *)run.y.data;
    run.table1 = take_table(pass, from);
    run.table2 = take_table(pass, to);
    run.normed = strip_take(pass, pass->act, step + 2, w, from);
    run.sum = backend_take(pass->backend, pass->act, (int64_t)(step + 2) * w, to, "VAE strip");
    if (!run.in_place) run.skip = strip_take(pass, pass->act, step + 2, w, to);
    if (run.kept)
        run.inner = (struct strip){.buffer = whole, .w = w};
    else
        run.inner = strip_take(pass, pass->act, step + 3, w, to);
    return run;
}

static void take_skip(struct resnet_run *run, struct matrix rows, int32_t count)
{
    struct matrix       y = strip_append(&run->skip, count);
    struct conv_request request = conv_of(y, rows, run->w, &run->resnet->shortcut);

    request.size = 1;
    if (run->resnet->from == run->resnet->to)
        backend_copy(run->pass->backend, y, rows);
    else
        backend_conv2d(run->pass->backend, &request);
}

/* The next rows of `inner`, from those of x up to `end`; none if x is not far enough. */
static struct matrix inner_rows(struct resnet_run *run, struct matrix place, struct matrix rows,
                                int32_t end)
{
    const struct vae_pass *pass = run->pass;
    int32_t                first = run->inner.end, ready = ready_rows(end, run->h);
    struct matrix          y;

    backend_group_apply(pass->backend, place, rows, run->table1, run->resnet->norm1.bias, true);
    y = strip_append(&run->inner, ready - first);
    if (ready > first) convolve(pass, y, &run->normed, first, ready, run->h, &run->resnet->conv1);
    strip_forget(&run->normed, pass->backend, ready - 1);
    return y;
}

/* Statistics 2; leaves `inner` whole and ready for conv 2 if it is kept, else empty. */
static void survey_inner(struct resnet_run *run)
{
    struct vae_pass       *pass = run->pass;
    const struct vae_norm *norm = &run->resnet->norm2;
    struct arena_mark      mark = arena_mark(backend_arena(pass->backend));
    struct matrix          stats = take_stats(pass, run->h, run->resnet->to);

    run->normed.first = run->normed.end = 0;
    for (int32_t first = 0; first < run->h; first += run->step) {
        int32_t       end = strip_end(first, run->step, run->h), done = run->inner.end;
        struct matrix place = strip_append(&run->normed, end - first);
        struct matrix rows = map_rows(pass, first, end, place);
        struct matrix y = inner_rows(run, place, rows, end);

        if (y.rows > 0)
            backend_group_stats(pass->backend, matrix_rows(stats, done, run->inner.end - done), y);
        if (!run->kept) run->inner.first = run->inner.end;
    }
    merge(pass, run->table2, stats, norm, run->w);
    arena_rewind(backend_arena(pass->backend), mark);
    if (run->kept)
        backend_group_apply(pass->backend, run->inner.buffer, run->inner.buffer, run->table2,
                            norm->bias, true);
    else
        run->inner.first = run->inner.end = 0;
}

/* The first row of x that is still wanted when the map has been read up to `end`. */
static int32_t next_row(const struct resnet_run *run, int32_t end)
{
    if (end == run->h) return run->pass->h;
    return run->pass->enlarging == NULL ? end : end / 2 - 1;
}

/* Rows of y, as far as `inner` and x (up to `end`) reach. */
static void finish_rows(struct resnet_run *run, int32_t end)
{
    struct vae_pass *pass = run->pass;
    struct backend  *backend = pass->backend;
    int32_t          first = run->y_end, ready = ready_rows(run->inner.end, run->h);
    struct matrix    sum, y;

    if (ready > end) ready = end;
    if (ready == first) return;
    sum = matrix_rows(run->sum, 0, (int64_t)(ready - first) * run->w);
    y = matrix_rows(run->y, (int64_t)first * run->w, sum.rows);
    convolve(pass, sum, &run->inner, first, ready, run->h, &run->resnet->conv2);
    if (run->in_place) {
        backend_add(backend, y, sum);
    } else {
        struct matrix skip = strip_view(&run->skip, first, ready);

        vae_maps_check_order(pass, y, next_row(run, end));
        backend_add(backend, skip, sum);
        backend_copy(backend, y, skip);
        strip_forget(&run->skip, backend, ready);
    }
    if (!run->kept) strip_forget(&run->inner, backend, ready - 1);
    run->y_end = ready;
}

/* y = skip(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))) */
void vae_strips_resnet(struct vae_pass *pass, const struct vae_resnet *resnet)
{
    struct arena_mark mark = arena_mark(backend_arena(pass->backend));
    struct resnet_run run = resnet_begin(pass, resnet);

    survey_map(pass, run.table1, &resnet->norm1, run.normed, run.step);
    survey_inner(&run);
    run.normed.first = run.normed.end = 0;
    for (int32_t first = 0; first < run.h; first += run.step) {
        int32_t       end = strip_end(first, run.step, run.h);
        struct matrix place = run.normed.buffer, rows;

        if (!run.kept) place = strip_append(&run.normed, end - first);
        rows = map_rows(pass, first, end, place);
        if (!run.in_place) take_skip(&run, rows, end - first);
        if (!run.kept) {
            struct matrix y = inner_rows(&run, place, rows, end);

            if (y.rows > 0)
                backend_group_apply(pass->backend, y, y, run.table2, resnet->norm2.bias, true);
        }
        finish_rows(&run, end);
    }
    must(run.y_end == run.h);
    pass->enlarging = NULL;
    vae_maps_settle(pass, run.y, run.h, run.w, run.sum);
    arena_rewind(backend_arena(pass->backend), mark);
}

/* ---------------------------------------------------------------------------- other layers */

void vae_strips_first(struct vae_pass *pass, struct matrix source, struct vae_strips_scale scale,
                      const struct linear *conv)
{
    struct arena_mark mark = arena_mark(backend_arena(pass->backend));
    int32_t           h = pass->h, w = pass->w, done = 0;
    int32_t           step = strip_height(pass, h, w, conv->w.rows);
    struct strip      scaled = strip_take(pass, DTYPE_F32, step + 2, w, source.cols);

    must(source.rows == (int64_t)h * w);
    pass->x = vae_maps_at_end(pass, source.rows, conv->w.rows);
    for (int32_t first = 0; first < h; first += step) {
        int32_t end = strip_end(first, step, h), ready = ready_rows(end, h);
        int64_t count = (int64_t)(end - first) * w;

        backend_affine(pass->backend, strip_append(&scaled, end - first),
                       matrix_rows(source, (int64_t)first * w, count), scale.mul, scale.add);
        if (ready > done)
            convolve(pass, matrix_rows(pass->x, (int64_t)done * w, (int64_t)(ready - done) * w),
                     &scaled, done, ready, h, conv);
        strip_forget(&scaled, pass->backend, ready - 1);
        done = ready;
    }
    arena_rewind(backend_arena(pass->backend), mark);
}

void vae_strips_halve(struct vae_pass *pass, const struct linear *conv)
{
    struct arena_mark mark = arena_mark(backend_arena(pass->backend));
    int32_t           h = pass->h / 2, w = pass->w / 2;
    int64_t           channels = pass->x.cols;
    int32_t           step = strip_height(pass, h, w, channels);
    struct matrix     y = vae_maps_over_x(pass, (int64_t)h * w, channels);
    struct matrix     half =
        backend_take(pass->backend, pass->act, (int64_t)step * w, channels, "VAE strip");

    for (int32_t first = 0; first < h; first += step) {
        int32_t             end = strip_end(first, step, h);
        int32_t             bottom = end < h ? 2 * end + 1 : 2 * end;
        int64_t             count = (int64_t)(end - first) * w;
        struct matrix       part = matrix_rows(half, 0, count);
        struct matrix       target = matrix_rows(y, (int64_t)first * w, count);
        struct matrix       x = matrix_rows(pass->x, (int64_t)2 * first * pass->w,
                                            (int64_t)(bottom - 2 * first) * pass->w);
        struct conv_request request = conv_of(part, x, pass->w, conv);

        request.stride = 2;
        request.pad_bottom = end == h;
        request.pad_right = 1;
        backend_conv2d(pass->backend, &request);
        vae_maps_check_order(pass, target, 2 * end);
        backend_copy(pass->backend, target, part);
    }
    vae_maps_settle(pass, y, h, w, half);
    arena_rewind(backend_arena(pass->backend), mark);
}

void vae_strips_enlarge(struct vae_pass *pass, const struct linear *conv)
{
    struct arena_mark mark = arena_mark(backend_arena(pass->backend));
    int64_t           rows = 4 * pass->x.rows, channels = pass->x.cols;
    int32_t           w = 2 * pass->w, step;
    struct matrix     y, large;

    pass->enlarging = conv;
    if (vae_maps_bytes(pass->act, rows, channels) > pass->main_bytes) return;
    step = strip_height(pass, 2 * pass->h, w, channels) / 2; /* rows of x */
    y = vae_maps_over_x(pass, rows, channels);
    large = backend_take(pass->backend, pass->act, (int64_t)2 * step * w, channels, "VAE strip");
    for (int32_t first = 0; first < pass->h; first += step) {
        int32_t       end = strip_end(first, step, pass->h);
        int64_t       count = (int64_t)2 * (end - first) * w;
        struct matrix part = matrix_rows(large, 0, count);
        struct matrix target = matrix_rows(y, (int64_t)2 * first * w, count);

        enlarge_rows(pass, part, first, end, conv);
        vae_maps_check_order(pass, target, end < pass->h ? end - 1 : end);
        backend_copy(pass->backend, target, part);
    }
    pass->enlarging = NULL;
    vae_maps_settle(pass, y, 2 * pass->h, w, large);
    arena_rewind(backend_arena(pass->backend), mark);
}

void vae_strips_normalise(struct vae_pass *pass, struct matrix y, const struct vae_norm *norm)
{
    struct arena_mark mark = arena_mark(backend_arena(pass->backend));
    struct matrix     table = take_table(pass, pass->x.cols);
    struct strip      nowhere = {.buffer = pass->x, .w = pass->w};

    must(pass->enlarging == NULL);
    survey_map(pass, table, norm, nowhere, pass->h);
    backend_group_apply(pass->backend, y, pass->x, table, norm->bias, false);
    arena_rewind(backend_arena(pass->backend), mark);
}

void vae_strips_final(struct vae_pass *pass, const struct vae_norm *norm, const struct linear *conv,
                      struct vae_strips_scale scale, struct matrix target)
{
    struct arena_mark mark = arena_mark(backend_arena(pass->backend));
    int32_t           h = pass->h, w = pass->w, done = 0;
    int32_t           step = strip_height(pass, h, w, pass->x.cols);
    struct matrix     table = take_table(pass, pass->x.cols);
    struct strip      normed = strip_take(pass, pass->act, step + 2, w, pass->x.cols);
    struct matrix     raw =
        backend_take(pass->backend, DTYPE_F32, (int64_t)(step + 1) * w, target.cols, "VAE strip");

    must(pass->enlarging == NULL && target.rows == pass->x.rows);
    survey_map(pass, table, norm, normed, step);
    for (int32_t first = 0; first < h; first += step) {
        int32_t       end = strip_end(first, step, h), ready = ready_rows(end, h);
        struct matrix place = strip_append(&normed, end - first);
        struct matrix part = matrix_rows(raw, 0, (int64_t)(ready - done) * w);

        backend_group_apply(pass->backend, place, map_rows(pass, first, end, place), table,
                            norm->bias, true);
        if (ready > done) {
            convolve(pass, part, &normed, done, ready, h, conv);
            backend_affine(pass->backend, matrix_rows(target, (int64_t)done * w, part.rows), part,
                           scale.mul, scale.add);
        }
        strip_forget(&normed, pass->backend, ready - 1);
        done = ready;
    }
    arena_rewind(backend_arena(pass->backend), mark);
}
