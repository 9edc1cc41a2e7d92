/*
 * jobs_table.h - what became of jobs, as lines of CSV and as a table.
 *
 * A table is made of lines alone, so that parts of a list that were painted apart come together.
 */
#ifndef MURAL_JOBS_TABLE_H
#define MURAL_JOBS_TABLE_H

#include "jobs_run.h"

enum { JOBS_MAX = 2000 };

struct row {
    uint32_t   number, card_gb;
    enum mode  mode;
    enum cause cause;
    uint32_t   tile_steps; /* steps of all tiles */
    uint64_t   peak_device, peak_mapped, peak_live, peak_card;
    double     step_seconds, seconds;
};

struct table {
    struct row rows[JOBS_MAX * MODE_COUNT];
    uint32_t   count;
};

static const char table_head[] =
    "job,mode,cause,card_gb,tile_steps,peak_device,peak_mapped,peak_live,peak_card,step_seconds,"
    "seconds,"
    "side_px,tiles,steps,cap,free,ballast,taken,moment,at,rungs,link_bytes,stall_seconds,"
    "pixels,why";

static inline void table_line(FILE *file, const struct job *job, enum mode mode,
                              const struct outcome *out)
{
    const struct memory_use *use = &out->use;

    fprintf(file, "%u,%s,%s,%.0f,%u,%llu,%llu,%llu,%llu,%.6f,%.6f,", job->number, mode_names[mode],
            cause_names[out->cause], jobs_cards_gb[job->card], job->steps * job->tiles,
            (unsigned long long)use->peak_device, (unsigned long long)use->peak_mapped,
            (unsigned long long)use->peak_live, (unsigned long long)out->card_bytes,
            out->step_seconds, out->seconds);
    fprintf(file, "%d,%u,%u,%llu,%llu,%llu,%llu,%s,%u,%u,%llu,%.6f,%016llx,\"%s\"\n", job->side_px,
            job->tiles, job->steps, (unsigned long long)job->cap_bytes,
            (unsigned long long)out->free_bytes, (unsigned long long)job->ballast_bytes,
            (unsigned long long)out->taken_bytes, moment_names[job->moment], job->at, out->rungs,
            (unsigned long long)use->link_bytes, use->stall_seconds, (unsigned long long)out->hash,
            out->why.text);
    fflush(file);
}

static inline struct row row_of(const struct job *job, enum mode mode, const struct outcome *out)
{
    return (struct row){.number = job->number,
                        .mode = mode,
                        .cause = out->cause,
                        .card_gb = (uint32_t)jobs_cards_gb[job->card],
                        .tile_steps = job->steps * job->tiles,
                        .peak_device = out->use.peak_device,
                        .peak_mapped = out->use.peak_mapped,
                        .peak_live = out->use.peak_live,
                        .peak_card = out->card_bytes,
                        .step_seconds = out->step_seconds,
                        .seconds = out->seconds};
}

static inline int index_of(const char *name, const char *const *names, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

/* A line that is none of ours is left out; false. */
static inline bool table_read(struct table *table, const char *line)
{
    struct row         row = {0};
    char               mode_name[32], cause_name[32];
    unsigned long long device, mapped, live, card;
    int                mode, cause;

    if (table->count == ARRAY_COUNT(table->rows) ||
        sscanf(line, "%u,%31[^,],%31[^,],%u,%u,%llu,%llu,%llu,%llu,%lf,%lf,", &row.number,
               mode_name, cause_name, &row.card_gb, &row.tile_steps, &device, &mapped, &live, &card,
               &row.step_seconds, &row.seconds) != 11)
        return false;
    mode = index_of(mode_name, mode_names, MODE_COUNT);
    cause = index_of(cause_name, cause_names, CAUSE_COUNT);
    if (mode < 0 || cause < 0 || row.number == 0 || row.number > JOBS_MAX) return false;
    row.mode = (enum mode)mode;
    row.cause = (enum cause)cause;
    row.peak_device = device;
    row.peak_mapped = mapped;
    row.peak_live = live;
    row.peak_card = card;
    table->rows[table->count++] = row;
    return true;
}

/* How a mode did. */
struct summary {
    uint32_t all, done, common, causes[CAUSE_COUNT];
    double   low, high;                      /* of the share that was done                    */
    double   device_median, device_most;     /* bytes of the engine, of jobs that were done   */
    double   card_most;                      /* the same as the card saw it                   */
    double   utilisation, utilisation_least; /* peak live / peak mapped: median, and smallest */
    double   rate, seconds;                  /* of jobs that all modes did: steps a second,
                                                and seconds of a job                          */
};

/* Bit m: mode m did it; 0 too for jobs that are not there. */
static inline void mark_done(uint8_t done[JOBS_MAX + 1], const struct table *table)
{
    memset(done, 0, JOBS_MAX + 1);
    for (uint32_t i = 0; i < table->count; i++)
        if (table->rows[i].cause == CAUSE_NONE)
            done[table->rows[i].number] |= (uint8_t)(1u << table->rows[i].mode);
}

static inline struct summary summarise(const struct table *table, enum mode mode)
{
    static double  device[JOBS_MAX], shares[JOBS_MAX];
    static uint8_t done[JOBS_MAX + 1];
    struct summary sum = {.utilisation_least = 1};
    double         steps = 0, step_seconds = 0, seconds = 0;

    mark_done(done, table);
    for (uint32_t i = 0; i < table->count; i++) {
        const struct row *row = &table->rows[i];
        if (row->mode != mode) continue;
        sum.all++;
        sum.causes[row->cause]++;
        if (row->cause != CAUSE_NONE || sum.done == JOBS_MAX) continue;
        shares[sum.done] =
            row->peak_mapped > 0 ? (double)row->peak_live / (double)row->peak_mapped : 0;
        sum.utilisation_least = fmin(sum.utilisation_least, shares[sum.done]);
        device[sum.done++] = (double)row->peak_device;
        sum.device_most = fmax(sum.device_most, (double)row->peak_device);
        sum.card_most = fmax(sum.card_most, (double)row->peak_card);
        if (done[row->number] != (1u << MODE_COUNT) - 1) continue;
        sum.common++;
        steps += row->tile_steps;
        step_seconds += row->step_seconds;
        seconds += row->seconds;
    }
    if (sum.all > 0) wilson(sum.done, sum.all, &sum.low, &sum.high);
    sum.device_median = median(device, sum.done);
    sum.utilisation = median(shares, sum.done);
    if (sum.done == 0) sum.utilisation_least = 0;
    sum.rate = step_seconds > 0 ? steps / step_seconds : 0;
    sum.seconds = sum.common > 0 ? seconds / sum.common : 0;
    return sum;
}

static inline void print_cards(const struct table *table)
{
    printf("\n| done, by card |");
    for (int card = 0; card < JOBS_CARDS; card++)
        printf(" %.0f GB |", jobs_cards_gb[card]);
    printf("\n|---|---|---|---|---|---|\n");
    for (int mode = 0; mode < MODE_COUNT; mode++) {
        printf("| %s |", mode_names[mode]);
        for (int card = 0; card < JOBS_CARDS; card++) {
            uint32_t all = 0, done = 0;
            for (uint32_t i = 0; i < table->count; i++) {
                const struct row *row = &table->rows[i];
                if ((int)row->mode != mode || row->card_gb != (uint32_t)jobs_cards_gb[card])
                    continue;
                all++;
                done += row->cause == CAUSE_NONE;
            }
            printf(" %u of %u |", done, all);
        }
        printf("\n");
    }
}

static inline void print_causes(const struct table *table)
{
    printf("\n| failures |");
    for (int cause = 1; cause < CAUSE_COUNT; cause++)
        printf(" %s |", cause_names[cause]);
    printf("\n|---|---|---|---|---|---|\n");
    for (int mode = 0; mode < MODE_COUNT; mode++) {
        struct summary sum = summarise(table, (enum mode)mode);
        printf("| %s |", mode_names[mode]);
        for (int cause = 1; cause < CAUSE_COUNT; cause++)
            printf(" %u |", sum.causes[cause]);
        printf("\n");
    }
}

static inline void table_print(const struct table *table)
{
    printf(
        "\n| mode | jobs | done | 95 %% interval | engine's peak, GB: median; most | card's peak, "
        "GB: most | utilisation: median; least | it/s | s a job |\n");
    printf("|---|---|---|---|---|---|---|---|---|\n");
    for (int mode = 0; mode < MODE_COUNT; mode++) {
        struct summary sum = summarise(table, (enum mode)mode);
        double         share = sum.all > 0 ? 100.0 * sum.done / sum.all : 0;
        printf("| %s | %u | %u (%.1f %%) | %.1f to %.1f %% | %.2f; %.2f | %.2f | %.3f; %.3f | %.2f "
               "| %.2f |\n",
               mode_names[mode], sum.all, sum.done, share, 100 * sum.low, 100 * sum.high,
               sum.device_median / 1e9, sum.device_most / 1e9, sum.card_most / 1e9, sum.utilisation,
               sum.utilisation_least, sum.rate, sum.seconds);
    }
    printf("\nit/s and s a job are of the %u jobs that all modes did.\n",
           summarise(table, MODE_PLAIN).common);
    print_cards(table);
    print_causes(table);
    fflush(stdout);
}

#endif
