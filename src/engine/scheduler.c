/*
 * scheduler.c - noise levels of flow matching, and the Euler step between them.
 *
 * Pure arithmetic, in double, stored as float.  Time s runs from 1 (noise) to 0 (picture); a shift
 * a >= 0 bends it towards noise for larger pictures:
 *
 *     sigma(s) = s / (s + (1 - s) / a)           s(sigma) = sigma / (sigma + (1 - sigma) a)
 *
 * a is the model's static shift, or exp(mu) where mu grows linearly with the number of image tokens
 * and has no upper limit of its own (mu_max gives it one).
 *
 * From sigma_start, `steps` steps: s_0 = s(sigma_start), s_i = s_0 (1 - i / steps).  With
 * sigma_start = 1 this is the reference schedule, whose linspace(1, 1 / N, N) and final 0 are the
 * same numbers.
 *
 * With `strength`, the reference's image-to-image rule: of the full schedule of `steps`, the first
 * trunc(steps - min(steps * strength, steps)) steps are left out.  Truncation favours one step
 * more: 4 steps at strength 0.3 run 2.
 */
#include "engine/engine_int.h"

#include <math.h>

static double shift_of(const struct scheduler_config *config,
                       const struct schedule_request *request)
{
    double slope, mu;

    if (request->mu > 0) return exp(request->mu);
    if (!config->dynamic_shift) return config->shift;
    must(config->max_tokens != config->base_tokens);
    slope = (config->max_shift - config->base_shift) /
            (double)(config->max_tokens - config->base_tokens);
    mu = config->base_shift + slope * (double)(request->tokens - config->base_tokens);
    if (request->mu_max > 0 && mu > request->mu_max) mu = request->mu_max;
    return exp(mu);
}

static double sigma_of(double s, double shift)
{
    return s / (s + (1.0 - s) / shift);
}

static double time_of(double sigma, double shift)
{
    return sigma / (sigma + (1.0 - sigma) * shift);
}

static uint32_t steps_left_out(uint32_t steps, double strength)
{
    double kept = fmin((double)steps * strength, (double)steps);

    return (uint32_t)fmax((double)steps - kept, 0.0);
}

int scheduler_make(struct schedule *out, const struct scheduler_config *config,
                   const struct schedule_request *request, struct err *err)
{
    int      rc = ERR_OK;
    bool     by_strength = request->strength > 0;
    double   start = by_strength ? 1.0 : request->sigma_start, shift, first_time;
    uint32_t first = 0;

    must(request->tokens > 0);
    if (request->steps < 1 || request->steps > SCHEDULE_STEPS_MAX)
        RAISE(err, ERR_USAGE, 0, "a schedule has 1..%d steps, not %u", SCHEDULE_STEPS_MAX,
              request->steps);
    if (!(start > 0 && start <= 1))
        RAISE(err, ERR_USAGE, 0, "sampling starts at a sigma above 0 and at most 1, not at %g",
              start);
    if (!(request->strength >= 0 && request->strength <= 1))
        RAISE(err, ERR_USAGE, 0, "strength is 0 (unused) to 1, not %g", request->strength);
    shift = shift_of(config, request);
    if (!(shift > 0 && isfinite(shift)))
        RAISE(err, ERR_USAGE, 0, "no schedule for %lld tokens: its shift is %g; set mu",
              (long long)request->tokens, shift);
    if (by_strength) first = steps_left_out(request->steps, request->strength);
    if (first >= request->steps)
        RAISE(err, ERR_USAGE, 0, "strength %g of %u steps leaves no step to run; raise one of them",
              request->strength, request->steps);

    first_time = time_of(start, shift);
    out->steps = request->steps - first;
    for (uint32_t i = 0; i < out->steps; i++) {
        double s = first_time * (1.0 - (double)(first + i) / (double)request->steps);
        out->sigma[i] = (float)sigma_of(s, shift);
    }
    if (first == 0) out->sigma[0] = (float)start; /* exactly, whatever rounding did on the way */
    out->sigma[out->steps] = 0;
out:
    return rc;
}

void scheduler_step(const struct schedule *schedule, uint32_t step, float *latent,
                    const float *velocity, int64_t count)
{
    must(step < schedule->steps);
    k_euler_step_cpu(latent, velocity, schedule->sigma[step + 1] - schedule->sigma[step], count);
}
