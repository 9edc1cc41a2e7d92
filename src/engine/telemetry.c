/*
 * telemetry.c - what an engine did with the memory of a distant machine.
 *
 * Owns nothing but the point in time from which it counts.  The pool counts bytes and the driver's
 * calls, the backend what weights did that visit; here both become one account.  Changes nothing
 * and decides nothing.
 *
 * Read next: memory.h, for what the numbers mean.
 */
#include "engine/compute_int.h"

/* Since the engine was opened, but peaks: those are since the pool's history began. */
static void account(const struct engine *engine, struct memory_use *out)
{
    *out = (struct memory_use){.peak_live = 0};
    if (engine->pool == NULL) return;
    pool_use(engine->pool, out);
    if (engine->backend != NULL) {
        struct backend_link link = backend_link(engine->backend);
        out->link_bytes = link.bytes;
        out->stall_seconds = link.stall_seconds;
    }
}

void engine_memory_restart(struct engine *engine)
{
    account(engine, &engine->told);
    if (engine->pool != NULL) pool_history_restart(engine->pool);
}

void engine_memory_use(const struct engine *engine, struct memory_use *out)
{
    const struct memory_use *told = &engine->told;

    account(engine, out);
    for (int call = 0; call < MEMORY_CALLS; call++)
        out->calls[call] -= told->calls[call];
    if (out->link_bytes < told->link_bytes) return; /* of a backend that was opened after that */
    out->link_bytes -= told->link_bytes;
    out->stall_seconds -= told->stall_seconds;
}

uint32_t engine_memory_history(const struct engine *engine,
                               struct pool_sample   out[POOL_SAMPLES_MAX])
{
    return engine->pool == NULL ? 0 : pool_history(engine->pool, out);
}
