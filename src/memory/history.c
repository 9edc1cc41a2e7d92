/*
 * history.c - a pool's bytes over time, in a fixed number of samples.
 *
 * Owns nothing beyond the struct.  A sample is a lap of time and the highest values in it; when all
 * are used, neighbours become one and laps twice as long: peaks are never lost, only their time is
 * less exact.
 */
#include "memory/memory_int.h"

/* The first laps: shorter than any block of a transformer. */
static const double LAP_SECONDS = 0.001;

void history_restart(struct history *history)
{
    history->count = 0;
    history->lap = LAP_SECONDS;
    history->peak = (struct pool_sample){.live = 0};
}

static void raise_sample(struct pool_sample *sample, const struct pool_sample *other)
{
    sample->live = max_u64(sample->live, other->live);
    sample->placed = max_u64(sample->placed, other->placed);
    sample->mapped = max_u64(sample->mapped, other->mapped);
    sample->device = max_u64(sample->device, other->device);
}

static void halve(struct history *history)
{
    for (uint32_t i = 0; i < POOL_SAMPLES_MAX / 2; i++) {
        history->samples[i] = history->samples[2 * i];
        raise_sample(&history->samples[i], &history->samples[2 * i + 1]);
    }
    history->count = POOL_SAMPLES_MAX / 2;
    history->lap *= 2;
}

void history_note(struct history *history, double seconds, const struct pool_counts *now)
{
    struct pool_sample  sample = {seconds, now->live, now->placed, now->mapped, now->device};
    struct pool_sample *newest = history->count == 0 ? NULL : &history->samples[history->count - 1];

    raise_sample(&history->peak, &sample);
    if (newest != NULL && sample.seconds - newest->seconds < history->lap) {
        raise_sample(newest, &sample);
        return;
    }
    if (history->count == POOL_SAMPLES_MAX) halve(history);
    history->samples[history->count++] = sample;
}
