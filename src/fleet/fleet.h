/*
 * fleet.h - painters for render: made of an engine in this process, or of worker processes.
 *
 * Rank 6.  Knows render's struct painter and the engine; render knows neither this folder nor the
 * engine.
 */
#ifndef MURAL_FLEET_H
#define MURAL_FLEET_H

#include "engine/engine.h"
#include "render/render.h"

struct studio;
/* An engine with scratch for the largest of `sizes`, ready to paint. */
int  studio_open(struct studio **out, const struct engine_options *options,
                 const struct engine_size *sizes, size_t size_count, struct err *err);
void studio_close(struct studio *studio); /* NULL is fine */
/* A painter that lives as long as the studio. */
struct painter studio_painter(struct studio *studio);

#endif
