/*
 * render_int.h - what the files of render/ share.
 */
#ifndef MURAL_RENDER_INT_H
#define MURAL_RENDER_INT_H

#include "render/render.h"

/* How far the job is.  Owned by the render thread. */
struct meter {
    const struct render_request *request;
    struct render_progress       now;
    double                       work_done, work_total;
};
void meter_init(struct meter *meter, const struct render_request *request, uint32_t drafts,
                uint32_t tiles, uint32_t draft_steps, uint32_t tile_steps);
/* Count `work` as done and tell; ERR_CANCELLED when the caller wants to stop. */
int meter_advance(struct meter *meter, double work, struct err *err);

/* ------------------------------------------------------------------------------ render.c */

/* Name, size, depth, codec of the poster's file as the settings ask for. */
int render_file_request(struct bigtiff_request *out, const struct config *config, struct err *err);

/* ------------------------------------------------------------------------------- draft.c */

/* Paint one draft from pure noise with `seed` (the stage has begun). */
int draft_paint(struct image *out, struct meter *meter, uint64_t seed, uint32_t steps,
                struct err *err);
/* "a/b.png" -> "a/b-7.png" */
int draft_name(char *out, size_t capacity, const char *path, uint64_t number, struct err *err);

/* ------------------------------------------------------------------------------- sheet.c */

/* All drafts have one size. */
int sheet_make(struct image *out, const struct image *drafts, uint32_t count, struct err *err);

/* -------------------------------------------------------------------------------- tile.c */

/* Buffers for one tile; all memory is taken at open. */
struct tile_desk;
int  tile_desk_open(struct tile_desk **out, const struct render_request *request, struct err *err);
void tile_desk_close(struct tile_desk *desk);
uint64_t tile_desk_bytes(const struct grid *grid, int32_t channels);

/* 0..1, clamped, to the nearest of 65,536 levels. */
void render_quantise(uint16_t *samples_out, const float *rgb, int64_t count);

struct tile_job {
    const struct upscale *guide;
    const float          *noise_map; /* canvas latents from a file, or NULL: keyed by the seed */
    uint32_t              col, row, steps;
};
/* Gather, encode, paint, check, decode.  *samples_out: [tile_h, tile_w, 3], valid until the next.
 */
int tile_paint(struct tile_desk *desk, struct meter *meter, const struct tile_job *job,
               const uint16_t **samples_out, struct err *err);

/* ------------------------------------------------------------------------------- spool.c */

/* Finished tiles, exactly as painted, one file each in the folder `<output>.mural`. */
struct spool;
int spool_open(struct spool **out, const char *output, const struct grid *grid, struct err *err);
int spool_put(struct spool *spool, uint32_t col, uint32_t row, const uint16_t *samples,
              struct err *err);
/* Rows [first, first + count) of a tile. */
int  spool_get(struct spool *spool, uint32_t col, uint32_t row, int32_t first, int32_t count,
               uint16_t *samples_out, struct err *err);
void spool_close(struct spool *spool); /* removes files and folder */

/* ---------------------------------------------------------------------------- assemble.c */

/* The poster's file, opened before anything is painted: what would refuse it refuses it now. */
int assemble_open_file(struct bigtiff **out, const struct render_request *request, struct err *err);
/* Blend the spooled tiles band by band into the poster's file and finish it. */
int assemble_poster(const struct render_request *request, struct spool *spool, struct bigtiff *file,
                    struct meter *meter, struct err *err);
uint64_t assemble_bytes(const struct grid *grid, int bits);

/* --------------------------------------------------------------------------- noise_map.c */

/* Noise from a file of raw little-endian f32 [h, w, channels]; exactly that many bytes. */
int noise_map_read(float **out, const char *path, int32_t h_lat, int32_t w_lat, int32_t channels,
                   struct err *err);

#endif
