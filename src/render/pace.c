/*
 * pace.c - from progress to speed and remaining time.
 *
 * Pure: the caller brings the time.  The first steps of a run are slower than the rest, for kernels
 * are chosen and caches are cold; so many as the caller says count for nothing.  Rates of one phase
 * say nothing of the next, but arithmetic does: the remaining time is by arithmetic, of all phases.
 */
#include "render/render.h"

static const double TOLD_FROM_FRACTION = 0.02, TOLD_FROM_SECONDS = 2;

void pace_note(struct pace *pace, const struct render_progress *now, double seconds)
{
    bool   rehearsed = !pace->warm; /* everything until now counts for nothing */
    double done, since;

    if (rehearsed) {
        pace->seconds = seconds;
        pace->fraction = now->fraction;
        pace->warm = now->steps_run >= pace->warmup_steps;
    }
    if (rehearsed || pace->phase != now->phase) {
        pace->phase = now->phase;
        pace->phase_seconds = seconds;
        pace->phase_steps = now->steps_run;
    }
    done = now->fraction - pace->fraction;
    since = seconds - pace->seconds;
    pace->seconds_left = -1;
    if (done > TOLD_FROM_FRACTION && since > TOLD_FROM_SECONDS)
        pace->seconds_left = since * (1 - now->fraction) / done;
    if (now->steps_run > pace->phase_steps && seconds > pace->phase_seconds)
        pace->steps_per_second =
            (double)(now->steps_run - pace->phase_steps) / (seconds - pace->phase_seconds);
    else
        pace->steps_per_second = 0;
}
