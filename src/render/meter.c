/*
 * meter.c - progress measured in arithmetic, so that half of the bar is half of the time.
 *
 * Owns the running sum; asks the caller at every step whether to go on.
 */
#include "render/render_int.h"

void meter_init(struct meter *meter, const struct render_request *request, uint32_t drafts,
                uint32_t tiles, uint32_t draft_steps, uint32_t tile_steps)
{
    const struct render_costs *costs = &request->costs;
    double                     draft = costs->draft_predict * draft_steps + costs->draft_decode;
    double                     tile = costs->encode + costs->predict * tile_steps + costs->decode;

    *meter = (struct meter){.request = request};
    meter->now.tiles_total = tiles;
    meter->now.phase = drafts > 0 ? "draft" : "tiles";
    meter->work_total = costs->prompt + draft * drafts + tile * tiles;
}

int meter_advance(struct meter *meter, double work, struct err *err)
{
    int rc = ERR_OK;

    meter->work_done += work;
    meter->now.fraction = meter->work_total > 0 ? meter->work_done / meter->work_total : 0;
    if (meter->now.fraction > 1) meter->now.fraction = 1;
    if (meter->request->progress == NULL) goto out;
    if (meter->request->progress(&meter->now, meter->request->user) != 0)
        RAISE(err, ERR_CANCELLED, 0, "stopped on request; '%s' was not written",
              meter->request->config->output);
out:
    return rc;
}
