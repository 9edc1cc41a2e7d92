/*
 * gpu_stream.h - steps with blocks that visit the card, against steps with all blocks there, turn
 * by turn, and the same bits of both; the link alone and beside products.
 *
 * Two engines with the same weights: what the resident one was filled with is put where the parcels
 * of the other come from.
 */
#ifndef MURAL_GPU_STREAM_H
#define MURAL_GPU_STREAM_H

#include "gpu_bench.h"

/* What one weight of the resident engine is, put where the same weight of the other comes from. */
static void give(struct bench *from, struct bench *to, uint32_t parcel, struct matrix there,
                 struct matrix visiting)
{
    struct err      err = {0};
    struct parcels *parcels = to->backend->parcels;
    struct parcel  *home = &parcels->parcel[parcel];
    uint64_t        at = (uint64_t)((char *)visiting.data - parcels->slots[parcel % PARCEL_SLOTS]);
    int64_t         count = there.rows * there.cols;
    float          *values = malloc((size_t)count * sizeof *values);

    if (values == NULL) exit(1);
    backend_download(from->backend, values, there);
    check(backend_wait(from->backend, &err), "weights", &err);
    for (uint32_t i = 0; i < home->piece_count; i++) {
        struct parcel_piece *piece = &home->pieces[i];
        int64_t              n = piece->source.rows * piece->source.cols;
        int64_t              first = ((int64_t)piece->offset - (int64_t)at) / 2;

        if (first < 0 || first >= count) continue;
        /* In windows they come from the file: from memory then, for the file is hollow.  It is
         * needed as long as the program runs. */
        void *target =
            home->host != NULL ? (char *)home->host + piece->offset : malloc(2 * (size_t)n);
        if (target == NULL) exit(1);
        k_cast_cpu((struct matrix){target, DTYPE_BF16, 1, n, n},
                   (struct matrix){values + first, DTYPE_F32, 1, n, n});
        if (home->host == NULL) piece->source.data = target;
    }
    free(values);
}

static void give_linear(struct bench *from, struct bench *to, int32_t parcel,
                        const struct linear *there, const struct linear *other)
{
    struct err err = {0};
    int64_t    count = there->w.rows * there->w.cols;
    float     *values;

    if (parcel >= 0) {
        give(from, to, (uint32_t)parcel, there->w, other->w);
        return;
    }
    values = malloc((size_t)count * sizeof *values);
    if (values == NULL) exit(1);
    backend_download(from->backend, values, there->w);
    check(backend_wait(from->backend, &err), "weights", &err);
    backend_upload(to->backend, other->w, values);
    check(backend_wait(to->backend, &err), "weights", &err);
    free(values);
}

static void give_stream(struct bench *from, struct bench *to, int32_t parcel,
                        const struct stream *there, const struct stream *other)
{
    for (int part = 0; part < there->in.part_count; part++)
        give_linear(from, to, parcel, &there->in.parts[part], &other->in.parts[part]);
    give_linear(from, to, parcel, &there->out, &other->out);
    give_linear(from, to, parcel, &there->mlp_in, &other->mlp_in);
    give_linear(from, to, parcel, &there->mlp_out, &other->mlp_out);
}

/* The transformer's matrices; vectors were made up alike in both. */
static void give_weights(struct bench *from, struct bench *to)
{
    const struct transformer *there = from->engine->painters.transformer;
    const struct transformer *other = to->engine->painters.transformer;
    int64_t                   doubles = there->config.doubles;

    give_linear(from, to, -1, &there->image_in, &other->image_in);
    give_linear(from, to, -1, &there->image_out, &other->image_out);
    for (int64_t i = 0; i < doubles; i++) {
        give_stream(from, to, other->parcels[i], &there->doubles[i].image,
                    &other->doubles[i].image);
        give_stream(from, to, other->parcels[i], &there->doubles[i].text, &other->doubles[i].text);
    }
    for (int64_t i = 0; i < there->config.singles; i++) {
        const struct single_block *a = &there->singles[i], *b = &other->singles[i];
        int32_t                    parcel = other->parcels[doubles + i];
        for (int part = 0; part < a->in.part_count; part++)
            give_linear(from, to, parcel, &a->in.parts[part], &b->in.parts[part]);
        give_linear(from, to, parcel, &a->mlp_in, &b->mlp_in);
        give_linear(from, to, parcel, &a->out, &b->out);
    }
    /* What was copied before is of the hollow model. */
    for (int slot = 0; slot < PARCEL_SLOTS; slot++)
        to->backend->parcels->holds[slot] = -1;
}

static void run_cycle(struct bench *bench, const void *what)
{
    (void)what;
    for (uint32_t i = 0; i < backend_parcels(bench->backend)->count; i++) {
        backend_arrive(bench->backend, i);
        backend_depart(bench->backend, i);
    }
}

/* The link alone, and beside products of the other engine; and those alone and beside the link. */
static void time_link(struct bench *there, struct bench *visited)
{
    struct err     err = {0};
    struct product product = {.x = made_up(there, 4096, 3072), .w = made_up(there, 9216, 3072)};
    uint64_t       before;
    double         seconds, alone, begin, link, all, gigabytes;

    product.y = backend_take(there->backend, DTYPE_BF16, 4096, 9216, "product");
    rehearse(there, run_product, &product);
    backend_fill(there->backend, product.x, 2);
    (void)seconds_of(visited, run_cycle, NULL, 1);
    before = backend_link(visited->backend).bytes;
    seconds = seconds_of(visited, run_cycle, NULL, 3);
    gigabytes = (double)(backend_link(visited->backend).bytes - before) / 3e9;
    printf("link alone,%.2f GB a step,%.1f,,%.1f GB/s,\n", gigabytes, 1e3 * seconds,
           gigabytes / seconds);

    alone = median_seconds(there, run_product, &product);
    int repeats = (int)(seconds / alone) + 1;
    alone = seconds_of(there, run_product, &product, repeats);
    begin = os_seconds();
    for (int i = 0; i < repeats; i++)
        run_product(there, &product);
    run_cycle(visited, NULL);
    check(backend_wait(visited->backend, &err), "copies", &err);
    link = os_seconds() - begin;
    check(backend_wait(there->backend, &err), "products", &err);
    all = os_seconds() - begin;
    printf("link beside products,%.2f GB a step,%.1f,,%.1f GB/s,\n", gigabytes, 1e3 * link,
           gigabytes / link);
    printf("products beside the link,%d of them,%.1f,,,%.3f of their time alone\n", repeats,
           1e3 * all, all / (alone * repeats));
    fflush(stdout);
}

/* Several steps in a row, as a picture has them; seconds of one. */
static double step_seconds(struct bench *bench, const struct picture *picture, float *velocities,
                           uint32_t tiles)
{
    enum { ROW = 3 };
    struct err         err = {0};
    struct engine_tile list[TILES_MAX];
    int64_t            values = (int64_t)picture->w_px * picture->h_px / 4;
    double             begin = 0;

    for (uint32_t t = 0; t < tiles; t++)
        list[t] = (struct engine_tile){.prompt = &picture->prompt,
                                       .w_px = picture->w_px,
                                       .h_px = picture->h_px,
                                       .latent = picture->latent,
                                       .velocity = velocities + t * values};
    for (int i = 0; i <= ROW; i++) { /* one before, to leave what the other engine left */
        if (i == 1) begin = os_seconds();
        check(engine_predict(bench->engine, list, tiles, 0, &err), "step", &err);
    }
    return (os_seconds() - begin) / ROW;
}

static void compare_steps(struct bench *there, struct bench *visited,
                          const struct engine_size *plan)
{
    struct picture      one = picture_open(there, plan), other = picture_open(visited, plan);
    int64_t             values = (int64_t)plan->w_px * plan->h_px / 4 * plan->tiles, apart = 0;
    float              *a = host_numbers(values, 1), *b = host_numbers(values, 2);
    double              stays[SAMPLES], visits[SAMPLES], ratios[SAMPLES];
    struct backend_link before = {.bytes = 0}, after;
    const int           steps = 4 * (SAMPLES - 1);
    char                size[48];

    (void)snprintf(size, sizeof size, "%dx%d x %u", plan->w_px, plan->h_px, plan->tiles);
    for (int i = 0; i < SAMPLES; i++) {
        stays[i] = step_seconds(there, &one, a, plan->tiles);
        visits[i] = step_seconds(visited, &other, b, plan->tiles);
        ratios[i] = visits[i] / stays[i];
        if (i == 0) before = backend_link(visited->backend);
    }
    after = backend_link(visited->backend);
    for (int64_t i = 0; i < values; i++)
        apart += memcmp(&a[i], &b[i], sizeof *a) != 0;
    qsort(stays, SAMPLES, sizeof *stays, by_value);
    qsort(visits, SAMPLES, sizeof *visits, by_value);
    qsort(ratios, SAMPLES, sizeof *ratios, by_value);
    printf("step with all blocks there,%s,%.3f,,,\n", size, 1e3 * stays[SAMPLES / 2]);
    printf("step with %u blocks that visit,%s,%.3f,,,%.4f of the other\n", visited->stream, size,
           1e3 * visits[SAMPLES / 2], ratios[SAMPLES / 2]);
    printf("stood still for copies,%s,%.3f,,,\n", size,
           1e3 * (after.stall_seconds - before.stall_seconds) / steps);
    printf("over the link,%s,,,%.3f GB a step,\n", size,
           (double)(after.bytes - before.bytes) / 1e9 / steps);
    printf("values that differ,%s,,,%lld of %lld,\n", size, (long long)apart, (long long)values);
    fflush(stdout);
    free(a);
    free(b);
    picture_close(there, &one);
    picture_close(visited, &other);
}

static void time_streams(struct bench *there)
{
    struct bench visited = *there;
    double       begin;

    there->stream = 0;
    there->mlp_rows = 0;
    open_engine(there);
    open_engine(&visited);
    begin = os_seconds();
    give_weights(there, &visited);
    printf("# the same weights in both,,%.0f\n", 1e3 * (os_seconds() - begin));
    rehearse_sizes(there);
    rehearse_sizes(&visited);
    time_link(there, &visited);
    for (size_t i = 0; i < there->size_count; i++)
        compare_steps(there, &visited, &there->sizes[i]);
    engine_close(visited.engine);
}

#endif
