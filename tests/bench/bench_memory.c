/*
 * bench_memory.c - traces of memory, for comparing allocators.
 *
 * use: bench_memory trace [--model SPEC] [--side PX] [--steps N] [--by rewind] >trace.csv
 *          what the engine takes for one tile (encode, N steps, decode), each given back after its
 *          last use, or as the engine's stack does it; SPEC: flux1-dev (default) or tiny
 *      bench_memory replay [--cuda] [--cap BYTES] [--chunk MIB] [--fragmentation SHARE] trace.csv
 *          the trace in a segment; one line of CSV
 *      bench_memory survive [the same] trace.csv
 *          the smallest cap, in 2 MiB, under which the trace runs to its end
 *
 * A trace is lines of op,id,bytes: take,7,4096 and later give,7,4096.
 */
#include "tests/bench/engine_trace.h"
#include "tests/bench/segment.h"

#include <stdio.h>
#include <stdlib.h>

static const uint64_t MIB = 1u << 20;

/* Not there in a build without CUDA, which refuses --cuda before it is looked at. */
extern const struct vmem_ops vmem_cuda __attribute__((weak));

static int stop(const struct err *err)
{
    fprintf(stderr, "bench_memory: %s\n", err->text);
    return 1;
}

/* -------------------------------------------------------------------------------------- trace */

struct event {
    uint32_t time, id;
    bool     take;
};

static int by_time(const void *a, const void *b)
{
    const struct event *x = a, *y = b;

    if (x->time != y->time) return x->time < y->time ? -1 : 1;
    if (x->take != y->take) return x->take ? 1 : -1; /* what dies makes room first */
    return x->id < y->id ? -1 : x->id > y->id;
}

static int print_trace(const struct solve_item *items, uint32_t count, struct err *err)
{
    int           rc = ERR_OK;
    struct event *events = NULL;

    TRY(os_alloc((void **)&events, 2 * (uint64_t)count + 1, sizeof *events, "events", err));
    for (uint32_t i = 0; i < count; i++) {
        events[2 * i] = (struct event){items[i].birth, i, true};
        events[2 * i + 1] = (struct event){items[i].death, i, false};
    }
    qsort(events, 2 * (size_t)count, sizeof *events, by_time);
    puts("op,id,bytes");
    for (uint32_t i = 0; i < 2 * count; i++)
        printf("%s,%u,%llu\n", events[i].take ? "take" : "give", events[i].id,
               (unsigned long long)items[events[i].id].bytes);
out:
    os_free(events);
    return rc;
}

static int trace_command(int argc, char **argv)
{
    struct err         err = {0};
    struct traced      t = {.engine = NULL};
    struct solve_item *items = NULL;
    const char        *spec = "flux1-dev";
    int32_t            side = 2048;
    int                steps = 1, rc;
    uint32_t           count = 0;
    bool               by_use = true;

    for (int i = 0; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--model") == 0) spec = argv[i + 1];
        if (strcmp(argv[i], "--side") == 0) side = (int32_t)strtol(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--steps") == 0) steps = (int)strtol(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--by") == 0) by_use = strcmp(argv[i + 1], "rewind") != 0;
    }
    rc = traced_open(&t, spec, ENGINE_CUDA, &err);
    if (rc == ERR_OK) {
        traced_run(&t, STAGE_ENCODE, side);
        for (int i = 0; i < steps; i++)
            traced_run(&t, STAGE_PREDICT, side);
        traced_run(&t, STAGE_DECODE, side);
        rc = traced_items(&items, &count, &t, by_use, &err);
    }
    if (rc == ERR_OK) rc = print_trace(items, count, &err);
    os_free(items);
    traced_close(&t);
    return rc == ERR_OK ? 0 : stop(&err);
}

/* ------------------------------------------------------------------------------------- replay */

struct line {
    uint64_t id, bytes;
    bool     take;
};

struct replay {
    const struct vmem_ops *ops;
    uint64_t               cap_bytes, chunk_bytes;
    double                 fragmentation_max;
    struct line           *lines;
    uint64_t               line_count, id_count, live_most; /* takes alive at one time */
    void                 **data;                            /* [id_count] */
};

static int read_lines(struct replay *replay, const char *path, struct err *err)
{
    int      rc = ERR_OK;
    char    *text = NULL, op[8];
    size_t   bytes = 0;
    uint64_t live = 0, room = 0;

    TRY(os_read_text(&text, &bytes, path, 256 * MIB, err));
    for (size_t i = 0; i < bytes; i++)
        room += text[i] == '\n';
    TRY(os_alloc((void **)&replay->lines, room + 1, sizeof *replay->lines, "a trace", err));
    for (char *at = text; at != NULL && *at != '\0'; at = strchr(at, '\n')) {
        struct line        line;
        unsigned long long id, size;
        at += *at == '\n';
        if (sscanf(at, "%7[^,],%llu,%llu", op, &id, &size) != 3) continue;
        line = (struct line){.id = id, .bytes = size, .take = strcmp(op, "take") == 0};
        if (id >= UINT32_MAX / 2 || (line.take && size == 0) || (!line.take && strcmp(op, "give")))
            RAISE(err, ERR_FORMAT, 0, "%s: '%.40s' is no line of a trace", path, op);
        live = line.take ? live + 1 : live - 1;
        replay->live_most = max_u64(replay->live_most, live);
        replay->id_count = max_u64(replay->id_count, id + 1);
        replay->lines[replay->line_count++] = line;
    }
    TRY(os_alloc((void **)&replay->data, replay->id_count + 1, sizeof *replay->data, "a trace",
                 err));
out:
    os_free(text);
    return rc;
}

struct outcome {
    struct pool_counts    counts;
    struct segment_counts segment;
    double                seconds;
};

static int run(struct outcome *out, const struct replay *replay, uint64_t cap, struct err *err)
{
    int                    rc = ERR_OK;
    struct pool           *pool = NULL;
    struct segment        *segment = NULL;
    struct pool_options    options = {.ops = replay->ops,
                                      .cap_bytes = cap,
                                      .segment_bytes = replay->chunk_bytes,
                                      .idle_share_max = 1,
                                      .expandable = true};
    struct segment_options of_segment = {.limit_bytes = 4 * cap,
                                         .chunk_bytes = replay->chunk_bytes,
                                         .fragmentation_max = replay->fragmentation_max,
                                         .takes_max = (uint32_t)replay->live_most};
    double                 begin;

    TRY(pool_open(&pool, &options, err));
    TRY(segment_open(&segment, pool, &of_segment, err));
    begin = os_seconds();
    for (uint64_t i = 0; i < replay->line_count; i++) {
        const struct line *line = &replay->lines[i];
        if (line->take)
            TRY(segment_take(segment, line->bytes, &replay->data[line->id], err));
        else
            segment_give(segment, replay->data[line->id]);
    }
    out->seconds = os_seconds() - begin;
    pool_counts(pool, &out->counts);
    segment_counts(segment, &out->segment);
out:
    segment_close(segment);
    pool_close(pool);
    return rc;
}

static void print_outcome(const struct outcome *o)
{
    const struct pool_counts *c = &o->counts;

    puts("peak_live,peak_placed,peak_mapped,utilisation,created,mapped,access,unmapped,settled,"
         "moved_bytes,seconds");
    printf("%llu,%llu,%llu,%.4f,%llu,%llu,%llu,%llu,%llu,%llu,%.6f\n",
           (unsigned long long)c->peak_live, (unsigned long long)c->peak_placed,
           (unsigned long long)c->peak_mapped, (double)c->peak_live / (double)c->peak_mapped,
           (unsigned long long)c->created, (unsigned long long)c->mapped_calls,
           (unsigned long long)c->access, (unsigned long long)c->unmapped,
           (unsigned long long)c->settled, (unsigned long long)o->segment.moved_bytes, o->seconds);
}

/* Survival need not be monotonous in the cap; the bisection is between what failed and what went
 * well, as it is for other allocators. */
static int survive(const struct replay *replay, struct err *err)
{
    int            rc = ERR_OK;
    struct outcome outcome;
    uint64_t       least, most;

    TRY(run(&outcome, replay, replay->cap_bytes, err));
    least = outcome.counts.peak_live / (2 * MIB);
    most = outcome.counts.peak_device / (2 * MIB);
    while (least < most) {
        struct err ignored = {0};
        uint64_t   middle = (least + most) / 2;
        if (middle > 0 && run(&outcome, replay, middle * 2 * MIB, &ignored) == ERR_OK)
            most = middle;
        else
            least = middle + 1;
    }
    TRY(run(&outcome, replay, most * 2 * MIB, err));
    printf("# survives in %llu bytes\n", (unsigned long long)(most * 2 * MIB));
    print_outcome(&outcome);
out:
    return rc;
}

static int replay_command(int argc, char **argv, bool bisect)
{
    struct err            err = {0};
    struct backend_device device;
    struct outcome        outcome;
    struct replay         replay = {.ops = &vmem_host,
                                    .cap_bytes = 1024 * 64 * MIB,
                                    .chunk_bytes = 32 * MIB,
                                    .fragmentation_max = 0.15};
    int                   i = 0, rc;

    for (; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--cap") == 0) replay.cap_bytes = strtoull(argv[++i], NULL, 10);
        if (strcmp(argv[i], "--chunk") == 0)
            replay.chunk_bytes = MIB * strtoull(argv[++i], NULL, 10);
        if (strcmp(argv[i], "--fragmentation") == 0)
            replay.fragmentation_max = strtod(argv[++i], NULL);
        if (strcmp(argv[i], "--cuda") == 0) replay.ops = &vmem_cuda;
    }
    rc = replay.ops == &vmem_host ? ERR_OK : backend_find_cuda(&device, 0, &err);
    if (rc != ERR_OK) return stop(&err);
    rc = i < argc ? read_lines(&replay, argv[i], &err)
                  : err_set(&err, ERR_USAGE, 0, ERR_WHERE, "a trace is needed");
    if (rc == ERR_OK && bisect) rc = survive(&replay, &err);
    if (rc == ERR_OK && !bisect) rc = run(&outcome, &replay, replay.cap_bytes, &err);
    if (rc == ERR_OK && !bisect) print_outcome(&outcome);
    os_free(replay.lines);
    os_free(replay.data);
    return rc == ERR_OK ? 0 : stop(&err);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "trace") == 0) return trace_command(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "replay") == 0)
        return replay_command(argc - 2, argv + 2, false);
    if (argc > 1 && strcmp(argv[1], "survive") == 0)
        return replay_command(argc - 2, argv + 2, true);
    fputs("use: bench_memory trace|replay|survive ...; see the top of bench_memory.c\n", stderr);
    return 2;
}
