/*
 * attempt.c - may what failed pass if it is tried again, and after what pause?
 *
 * The only file here that asks it.  Owns the count of attempts and the length of pauses, as the
 * settings have them, and the line of the log.  What a failure costs is tile.c's and draft.c's.
 *
 * Read next: tile.c.
 */
#include "render/render_int.h"

bool attempt_lacks_memory(const struct err *err)
{
    return err->code == ERR_DEVICE_MEM || err->code == ERR_HOST_MEM;
}

bool attempt_may_pass(const struct painter *painter, const struct err *err, bool *yielded_out)
{
    char words[160];

    *yielded_out = attempt_lacks_memory(err) && painter->yield_memory != NULL &&
                   painter->yield_memory(painter->self, words, sizeof words);
    if (*yielded_out) log_line(LOG_WARN, "memory ran short; %s", words);
    return err_is_retryable(err) || *yielded_out;
}

uint32_t attempt_most(const struct render_request *request)
{
    return (uint32_t)request->config->tile_retries + 1;
}

double attempt_plan(const struct render_request *request, uint32_t attempts, const char *what,
                    const struct err *err)
{
    enum { DOUBLINGS = 4, LONGEST = 30 };
    double wait = request->retry_wait_seconds;

    wait *= attempts > DOUBLINGS + 1 ? LONGEST : 1 << (attempts - 1);
    log_line(LOG_WARN, "%s: %s; attempt %u of %u %s", what, err->text, attempts + 1,
             attempt_most(request), wait >= 1 ? "follows after a pause" : "follows");
    return wait;
}

bool attempt_may_retry(struct meter *meter, const struct painter *painter, uint32_t attempts,
                       const char *what, struct err *err)
{
    const struct render_request *request = meter->request;
    bool                         yielded;
    struct err                   stopped = {0};

    if (attempts >= attempt_most(request) || !attempt_may_pass(painter, err, &yielded))
        return false;
    if (meter_wait(meter, attempt_plan(request, attempts, what, err), &stopped) != ERR_OK) {
        *err = stopped;
        return false;
    }
    *err = (struct err){.code = ERR_OK};
    return true;
}
