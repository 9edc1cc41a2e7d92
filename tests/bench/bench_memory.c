/*
 * bench_memory.c - traces of memory, for comparing allocators.
 *
 * use: bench_memory trace [--model SPEC] [--side PX] [--steps N] [--tiles N] [--by rewind]
 *          what the engine takes for square tiles, one after the other, each given back after its
 *          last use, or as the engine's stack does it; SPEC: flux1-dev (default) or tiny
 *      bench_memory replay [--cuda] [--cap BYTES] [--chunk MIB] [--fragmentation PERCENT] TRACE
 *          the trace in a segment; one line of CSV
 *      bench_memory survive [the same] TRACE
 *          the smallest cap, in 2 MiB, under which the trace runs to its end
 *
 * The format of a trace is told in replay.h.  Published ones: traces/.
 */
#include "tests/bench/engine_trace.h"
#include "tests/bench/replay.h"

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

static int read_number(uint64_t *out, const char *flag, const char *text, uint64_t least,
                       uint64_t most, struct err *err)
{
    const char *at = text;

    *out = replay_number(&at, '\0');
    if (*out >= least && *out <= most) return ERR_OK;
    return err_set(err, ERR_USAGE, 0, ERR_WHERE, "%s is '%s' and must be %llu to %llu", flag, text,
                   (unsigned long long)least, (unsigned long long)most);
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

/* One tile after the other: encode, so many steps, decode. */
static int trace_tiles(const char *spec, int32_t side, uint64_t steps, uint64_t tiles, bool by_use,
                       struct err *err)
{
    int                rc = ERR_OK;
    struct traced      t = {.engine = NULL};
    struct solve_item *items = NULL;
    uint32_t           count = 0;

    TRY(traced_open(&t, spec, ENGINE_CUDA, err));
    for (uint64_t tile = 0; tile < tiles; tile++) {
        traced_run(&t, STAGE_ENCODE, side);
        for (uint64_t step = 0; step < steps; step++)
            traced_run(&t, STAGE_PREDICT, side);
        traced_run(&t, STAGE_DECODE, side);
    }
    TRY(traced_items(&items, &count, &t, by_use, err));
    printf("# mural: %s in bf16 on a GPU, %llu tiles of %d px: encode, %llu steps, decode\n"
           "# scratch alone, no weights; %s\n",
           spec, (unsigned long long)tiles, side, (unsigned long long)steps,
           by_use ? "each given back after its last use" : "given back as the engine does it");
    TRY(print_trace(items, count, err));
out:
    os_free(items);
    traced_close(&t);
    return rc;
}

static int trace_command(int argc, char **argv)
{
    struct err  err = {0};
    const char *spec = "flux1-dev";
    uint64_t    side = 2048, steps = 1, tiles = 1;
    int         rc = ERR_OK;
    bool        by_use = true;

    for (int i = 0; rc == ERR_OK && i < argc; i += 2) {
        const char *word = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--model") == 0)
            spec = word;
        else if (strcmp(argv[i], "--side") == 0)
            rc = read_number(&side, argv[i], word, 64, 8192, &err);
        else if (strcmp(argv[i], "--steps") == 0)
            rc = read_number(&steps, argv[i], word, 1, 100, &err);
        else if (strcmp(argv[i], "--tiles") == 0)
            rc = read_number(&tiles, argv[i], word, 1, 100, &err);
        else if (strcmp(argv[i], "--by") == 0)
            by_use = strcmp(word, "rewind") != 0;
        else
            rc = err_set(&err, ERR_USAGE, 0, ERR_WHERE, "'%s' is not known here", argv[i]);
    }
    if (rc == ERR_OK && side % 16 != 0)
        rc = err_set(&err, ERR_USAGE, 0, ERR_WHERE, "--side is %llu and must be a multiple of 16",
                     (unsigned long long)side);
    if (rc == ERR_OK) rc = trace_tiles(spec, (int32_t)side, steps, tiles, by_use, &err);
    return rc == ERR_OK ? 0 : stop(&err);
}

/* ------------------------------------------------------------------------------------- replay */

static void print_outcome(const struct replay_outcome *o)
{
    const struct pool_counts *c = &o->counts;

    puts("peak_live,peak_placed,peak_mapped,utilisation,created,mapped,access,unmapped,settled,"
         "moved_bytes,seconds");
    printf("%llu,%llu,%llu,%.4f,%llu,%llu,%llu,%llu,%llu,%llu,%.6f\n",
           (unsigned long long)c->peak_live, (unsigned long long)c->peak_placed,
           (unsigned long long)c->peak_mapped, replay_utilisation(o),
           (unsigned long long)c->created, (unsigned long long)c->mapped_calls,
           (unsigned long long)c->access, (unsigned long long)c->unmapped,
           (unsigned long long)c->settled, (unsigned long long)o->segment.moved_bytes, o->seconds);
}

static int replay_command(int argc, char **argv, bool bisect)
{
    struct err            err = {0};
    struct backend_device device;
    struct replay_outcome outcome;
    struct replay replay = {.ops = &vmem_host, .chunk_bytes = 32 * MIB, .fragmentation_max = 0.15};
    uint64_t      cap = 64 * 1024 * MIB, number;
    int           i = 0, rc = ERR_OK;

    for (; rc == ERR_OK && i + 1 < argc; i++) {
        if (strcmp(argv[i], "--cuda") == 0) {
            replay.ops = &vmem_cuda;
        } else if (strcmp(argv[i], "--cap") == 0) {
            rc = read_number(&cap, argv[i], argv[i + 1], 1, 1ULL << 44, &err);
            i++;
        } else if (strcmp(argv[i], "--chunk") == 0) {
            rc = read_number(&number, argv[i], argv[i + 1], 1, 1024, &err);
            if (rc == ERR_OK && number % 2 != 0)
                rc = err_set(&err, ERR_USAGE, 0, ERR_WHERE, "--chunk must be even");
            replay.chunk_bytes = number * MIB;
            i++;
        } else if (strcmp(argv[i], "--fragmentation") == 0) {
            rc = read_number(&number, argv[i], argv[i + 1], 0, 100, &err);
            replay.fragmentation_max = (double)number / 100;
            i++;
        } else {
            rc = err_set(&err, ERR_USAGE, 0, ERR_WHERE, "'%s' is not known here", argv[i]);
        }
    }
    if (rc == ERR_OK && replay.ops != &vmem_host) rc = backend_find_cuda(&device, 0, &err);
    if (rc == ERR_OK)
        rc = i < argc ? replay_read(&replay, argv[i], &err)
                      : err_set(&err, ERR_USAGE, 0, ERR_WHERE, "a trace is needed");
    if (rc == ERR_OK && bisect) rc = replay_survive(&cap, &outcome, &replay, cap, &err);
    if (rc == ERR_OK && !bisect) rc = replay_run(&outcome, &replay, cap, &err);
    if (rc == ERR_OK && bisect) printf("# survives in %llu bytes\n", (unsigned long long)cap);
    if (rc == ERR_OK) print_outcome(&outcome);
    replay_free(&replay);
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
