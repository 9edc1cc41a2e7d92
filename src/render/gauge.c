/*
 * gauge.c - what a painter did with a GPU's memory while a tile was painted.
 *
 * Owns the account of one group of tiles: a painter counts from the group's beginning, and what
 * adds up is told of each tile since the one before.  Also draws the picture of it.  Whatever goes
 * wrong here is a line in the log and never a tile's failure.
 *
 * Read next: memory_plot.c, which draws.
 */
#include "render/render_int.h"

#include <stdio.h>

void gauge_begin(struct gauge *gauge, const struct painter *painter)
{
    /* Where it was not heard it goes on counting. */
    if (painter->memory != NULL && painter->memory(painter->self, true, &gauge->memory))
        gauge->told = (struct memory_use){.peak_live = 0};
}

/* As when a worker took the place of another: then all that it tells is new. */
static bool began_anew(const struct memory_use *now, const struct memory_use *told)
{
    bool less = now->link_bytes < told->link_bytes || now->stall_seconds < told->stall_seconds;

    for (int call = 0; call < MEMORY_CALLS; call++)
        less |= now->calls[call] < told->calls[call];
    return less;
}

bool gauge_tile(struct gauge *gauge, const struct painter *painter, struct memory_use *out)
{
    const struct memory_use *now = &gauge->memory.use, *told = &gauge->told;

    if (painter->memory == NULL || !painter->memory(painter->self, false, &gauge->memory))
        return false;
    if (began_anew(now, told)) gauge->told = (struct memory_use){.peak_live = 0};
    *out = *now;
    for (int call = 0; call < MEMORY_CALLS; call++)
        out->calls[call] -= told->calls[call];
    out->link_bytes -= told->link_bytes;
    out->stall_seconds -= told->stall_seconds;
    gauge->told = *now;
    return true;
}

void gauge_plot(const struct gauge *gauge, uint32_t number, const char *path)
{
    const struct painter_memory *memory = &gauge->memory;
    double                       seconds[POOL_SAMPLES_MAX];
    uint64_t                     bytes[MEMORY_PLOT_CURVES][POOL_SAMPLES_MAX];
    char                         title[128], live[32], mapped[32];
    struct memory_plot_request   plot = {
          .path = path, .title = title, .count = memory->sample_count, .seconds = seconds};
    struct err err = {.code = ERR_OK};

    if (memory->sample_count == 0) return;
    for (uint32_t i = 0; i < memory->sample_count; i++) {
        const struct pool_sample *sample = &memory->samples[i];
        seconds[i] = sample->seconds;
        bytes[MEMORY_PLOT_LIVE][i] = sample->live;
        bytes[MEMORY_PLOT_PLACED][i] = sample->placed;
        bytes[MEMORY_PLOT_MAPPED][i] = sample->mapped;
        bytes[MEMORY_PLOT_DEVICE][i] = sample->device;
    }
    for (int curve = 0; curve < MEMORY_PLOT_CURVES; curve++)
        plot.bytes[curve] = bytes[curve];
    (void)snprintf(title, sizeof title, "tile %u: %s live of %s mapped, %.1f %%", number,
                   text_bytes(live, sizeof live, memory->use.peak_live),
                   text_bytes(mapped, sizeof mapped, memory->use.peak_mapped),
                   100 * memory_utilisation(&memory->use));
    if (memory_plot(&plot, &err) != ERR_OK)
        log_line(LOG_WARN, "memory of tile %u is not plotted: %s", number, err.text);
}
