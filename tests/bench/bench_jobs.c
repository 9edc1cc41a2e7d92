/*
 * bench_jobs.c - seeded jobs on cards that are too small, painted in three ways: everything in
 * place and in one piece; with offload; with offload, expandable segments and the ladder.
 *
 * use: bench_jobs [--jobs N]        (200; the same jobs in every mode)
 *                 [--seed N]        (1)
 *                 [--part K/N]      (1/1: every N-th job from the K-th on; for several cards, and
 * to go on where time ran out)
 *                 [--seconds S]     (480; no job is begun that would not end within)
 *                 [--csv FILE]      (jobs.csv: a line for each job and mode)
 *                 [--model FOLDER]  (unless given: blocks of FLUX.1-dev's shapes, one double and
 * six single ones, its VAE, small text encoders; random weights)
 *                 [--side PX --cap GB]  (instead: one tile of that size on a card with that much
 *                                    free, which nobody disturbs, in every mode)
 *                 [--steps N]       (2)
 *                 [--cpu]           (on the CPU behind a wall, with a small model and small tiles)
 *        bench_jobs --needs SPEC    (bytes that a model could do with, and takes with every block
 *                                    in place, by side of a tile)
 *        bench_jobs --report CSV...
 *
 * A job finds as much free memory as its card has: the bench holds the rest of the GPU.  At a
 * moment of its own, in most jobs, another program takes a part of what is free then.  It counts as
 * done when its bytes are those that an engine with all memory paints.
 *
 * What the context and the libraries of CUDA load is in place before the first job, and on no job's
 * card.  In its stead the bench takes of every card what they were seen to take.
 */
#include "jobs_table.h"

/* As the product assumes where it is not told. */
static const double LINK_BYTES_PER_SECOND = 12e9;

struct bench {
    struct jobs_plan plan;
    struct workshop  shop;
    struct table     table;
    uint32_t         jobs, part, parts;
    int32_t          side_px;
    double           seconds;
    bool             cpu;
    const char      *csv, *needs, *model;
    char             folder[128], made[160];
};

static void check(int rc, const char *what, const struct err *err)
{
    if (rc == ERR_OK) return;
    fprintf(stderr, "bench_jobs: %s: %s\n", what, err->text);
    exit(1);
}

/* ------------------------------------------------------------------------------------- model */

static void make_model(struct bench *bench)
{
    struct err           err = {0};
    char                 spec[512];
    struct synth_request request = {.folder = bench->made,
                                    .spec = spec,
                                    .dtype = bench->cpu ? DTYPE_F32 : DTYPE_BF16,
                                    .seed = 1};

    if (bench->model != NULL) return;
    scratch_make(bench->folder, sizeof bench->folder);
    (void)snprintf(bench->made, sizeof bench->made, "%s/model", bench->folder);
    (void)snprintf(spec, sizeof spec, "%s/golden/models/%s.json", test_data(),
                   bench->cpu ? "jobs_small" : "jobs");
    if (bench->needs != NULL) {
        (void)snprintf(spec, sizeof spec, "%s", bench->needs);
        request.hollow = true;
    }
    check(synth_write(&request, &err), "a model", &err);
    bench->model = bench->made;
}

static struct workshop workshop_of(const struct bench *bench)
{
    return (struct workshop){.options = {.model_folder = bench->model,
                                         .machine = bench->cpu ? ENGINE_WALLED : ENGINE_CUDA,
                                         .precision = bench->cpu ? PRECISION_F32 : PRECISION_BF16,
                                         .threads = bench->cpu ? 2 : 0},
                             .link_bytes_per_second = LINK_BYTES_PER_SECOND,
                             .overlap_px = bench->cpu ? 16 : 64};
}

/* A spec as `mural synth` takes it. */
static int print_needs(struct bench *bench)
{
    static const int32_t sides_px[] = {512, 1024, 1536, 2048};
    struct err           err = {0};
    struct jobs_needs    needs;

    make_model(bench);
    bench->shop = workshop_of(bench);
    printf("side_px,least_gb,placed_gb\n");
    for (size_t i = 0; i < ARRAY_COUNT(sides_px); i++) {
        check(workshop_needs(&needs, &bench->shop, sides_px[i], bench->plan.steps, &err), "needs",
              &err);
        printf("%d,%.3f,%.3f\n", sides_px[i], needs.least / 1e9, needs.placed / 1e9);
    }
    scratch_remove(bench->folder);
    return 0;
}

/* -------------------------------------------------------------------------------------- setup */

static void choose_sides(struct bench *bench)
{
    static const int32_t on_gpu[] = {512, 1024, 1536, 2048}, on_cpu[] = {64, 128};
    struct jobs_plan    *plan = &bench->plan;

    plan->side_count = bench->cpu ? ARRAY_COUNT(on_cpu) : ARRAY_COUNT(on_gpu);
    memcpy(plan->sides_px, bench->cpu ? on_cpu : on_gpu, plan->side_count * sizeof *on_gpu);
    plan->tiles_most = 3;
    if (bench->side_px == 0) return;
    plan->sides_px[0] = bench->side_px;
    plan->side_count = plan->tiles_most = 1;
    bench->jobs = 1;
}

static void open_shop(struct bench *bench)
{
    struct err        err = {0};
    struct jobs_plan *plan = &bench->plan;
    struct workshop  *shop = &bench->shop;
    double            begun = os_seconds();

    choose_sides(bench);
    make_model(bench);
    *shop = workshop_of(bench);
    fprintf(stderr, "model: %.0f s\n", os_seconds() - begun);
    for (uint32_t i = 0; i < plan->side_count; i++)
        check(workshop_needs(&plan->needs[i], shop, plan->sides_px[i], plan->steps, &err), "needs",
              &err);
    check(card_open(&shop->card, shop->options.machine, (uint64_t)1 << 33, &err), "card", &err);
    check(workshop_reference(shop, plan, &err), "the reference", &err);
    struct engine_facts facts = studio_facts(shop->reference);
    if (!bench->cpu)
        check(engine_speed(&shop->flop_per_second, &shop->options, &facts, &err), "speed", &err);
    fprintf(stderr, "reference: %.0f s, %.0f TFLOP/s\n", os_seconds() - begun,
            shop->flop_per_second / 1e12);
    for (uint32_t side = 0; side < plan->side_count; side++) {
        fprintf(stderr, "%d px, GB: least %.2f, placed %.2f; cards", plan->sides_px[side],
                plan->needs[side].least / 1e9, plan->needs[side].placed / 1e9);
        for (uint32_t card = 0; card < JOBS_CARDS; card++)
            fprintf(stderr, " %.2f", (double)jobs_card_bytes(plan, side, card) / 1e9);
        fprintf(stderr, "\n");
    }
}

static void close_shop(struct bench *bench)
{
    studio_close(bench->shop.reference);
    card_close(&bench->shop.card);
    if (bench->folder[0] != '\0') scratch_remove(bench->folder);
}

/* --------------------------------------------------------------------------------------- jobs */

/* False: the device is of no use any more. */
static bool run_in_all_modes(struct bench *bench, const struct job *job, FILE *csv)
{
    struct err     err = {0};
    struct outcome out;
    uint64_t       wanted = 0;

    check(run_reference(&wanted, &bench->shop, job, &err), "the reference", &err);
    fprintf(stderr, "job %u: %d px x %u, %.2f GB, %.2f GB at %s %u:", job->number, job->side_px,
            job->tiles, (double)job->cap_bytes / 1e9, (double)job->ballast_bytes / 1e9,
            moment_names[job->moment], job->at);
    for (int mode = 0; mode < MODE_COUNT; mode++) {
        struct row *row = &bench->table.rows[bench->table.count];
        run_job(&out, &bench->shop, job, (enum mode)mode, wanted);
        table_line(csv, job, (enum mode)mode, &out);
        *row = row_of(job, (enum mode)mode, &out);
        bench->table.count++;
        fprintf(stderr, " %s %.1f s%s", cause_names[out.cause], out.seconds,
                mode + 1 < MODE_COUNT ? "," : "\n");
        if (out.why.code != ERR_DEVICE) continue;
        fprintf(stderr, "\nbench_jobs: the GPU failed: %s\n", out.why.text);
        return false;
    }
    card_drop(&bench->shop.card, HOLDER_FILLER);
    return true;
}

static int run_jobs(struct bench *bench)
{
    FILE    *csv = fopen(bench->csv, "w");
    double   begun = os_seconds(), longest = 0;
    uint32_t done = 0;
    bool     well = true;

    if (csv == NULL) {
        fprintf(stderr, "bench_jobs: cannot write %s\n", bench->csv);
        return 1;
    }
    open_shop(bench);
    fprintf(csv, "%s\n", table_head);
    for (uint32_t number = bench->part; number <= bench->jobs && well; number += bench->parts) {
        struct job job = job_make(&bench->plan, number);
        double     before = os_seconds();
        if (before - begun + longest > bench->seconds) {
            fprintf(stderr, "time is up after %u jobs\n", done);
            break;
        }
        well = run_in_all_modes(bench, &job, csv);
        longest = fmax(longest, os_seconds() - before);
        done++;
    }
    (void)fclose(csv);
    table_print(&bench->table);
    close_shop(bench);
    return well ? 0 : 1;
}

static int report(struct bench *bench, char **paths, int count)
{
    char line[1024];

    for (int i = 0; i < count; i++) {
        FILE *file = fopen(paths[i], "r");
        if (file == NULL) {
            fprintf(stderr, "bench_jobs: cannot read %s\n", paths[i]);
            return 1;
        }
        while (fgets(line, sizeof line, file) != NULL)
            (void)table_read(&bench->table, line);
        (void)fclose(file);
    }
    table_print(&bench->table);
    return 0;
}

/* False: it is no option of ours. */
static bool read_option(struct bench *bench, const char *name, const char *value)
{
    if (strcmp(name, "--jobs") == 0)
        bench->jobs = (uint32_t)strtoul(value, NULL, 10);
    else if (strcmp(name, "--seed") == 0)
        bench->plan.seed = strtoull(value, NULL, 10);
    else if (strcmp(name, "--part") == 0)
        return sscanf(value, "%u/%u", &bench->part, &bench->parts) == 2 && bench->part >= 1 &&
               bench->parts >= 1;
    else if (strcmp(name, "--seconds") == 0)
        bench->seconds = strtod(value, NULL);
    else if (strcmp(name, "--csv") == 0)
        bench->csv = value;
    else if (strcmp(name, "--model") == 0)
        bench->model = value;
    else if (strcmp(name, "--side") == 0)
        bench->side_px = (int32_t)strtol(value, NULL, 10);
    else if (strcmp(name, "--cap") == 0)
        bench->plan.cap_bytes = (uint64_t)(1e9 * strtod(value, NULL));
    else if (strcmp(name, "--steps") == 0)
        bench->plan.steps = (uint32_t)strtoul(value, NULL, 10);
    else if (strcmp(name, "--needs") == 0)
        bench->needs = value;
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    static struct bench bench = {.plan = {.seed = 1, .steps = 2},
                                 .jobs = 200,
                                 .part = 1,
                                 .parts = 1,
                                 .seconds = 480,
                                 .csv = "jobs.csv"};

    if (argc > 2 && strcmp(argv[1], "--report") == 0) return report(&bench, argv + 2, argc - 2);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--cpu") == 0) {
            bench.cpu = true;
        } else if (i + 1 == argc || !read_option(&bench, argv[i], argv[i + 1])) {
            fprintf(stderr, "bench_jobs: what is %s?\n", argv[i]);
            return 2;
        } else {
            i++;
        }
    }
    if (bench.jobs > JOBS_MAX || bench.plan.steps == 0 ||
        (bench.side_px > 0) != (bench.plan.cap_bytes > 0)) {
        fprintf(stderr, "bench_jobs: at most %d jobs, some steps, and --side with --cap\n",
                JOBS_MAX);
        return 2;
    }
    log_install(hear, NULL, LOG_INFO);
    return bench.needs != NULL ? print_needs(&bench) : run_jobs(&bench);
}
