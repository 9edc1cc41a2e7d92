/*
 * render_int.h - what the files of render/ share.
 */
#ifndef MURAL_RENDER_INT_H
#define MURAL_RENDER_INT_H

#include "render/render.h"
#include "render/store_int.h"

#include <pthread.h>

/* -------------------------------------------------------------------------------- meter.c */

/* How far the job is, and whether somebody wants it to stop.  Any thread may advance it.  Alone,
 * the thread that advances it tells the caller; in a crowd, the render thread does (meter_tell), so
 * that the caller hears from one thread only. */
struct meter {
    const struct render_request *request;
    pthread_mutex_t              turn; /* over everything below */
    struct render_progress       now;
    double                       work_done, work_total;
    bool                         crowd;
    enum render_stop             stop;
};
/* What is still to be done. */
struct meter_work {
    uint32_t drafts, tiles, draft_steps, tile_steps;
    uint32_t begins; /* of stages */
};
void meter_open(struct meter *meter, const struct render_request *request);
void meter_close(struct meter *meter);
void meter_plan(struct meter *meter, const struct meter_work *work);
/* Count `work` as done (negative: taken back) and tell; ERR_CANCELLED when the caller wants to stop
 * now. */
int meter_advance(struct meter *meter, double work, struct err *err);
/* The same after step number `step` (1, 2, ..; 0: it is through) of `tiles` rectangles, `work` for
 * all of them. */
int meter_step(struct meter *meter, uint32_t step, uint32_t tiles, double work, struct err *err);
/* A draft is finished, or a tile stored. */
void meter_tile_done(struct meter *meter);
/* From now on all are to stop, for a reason that is told elsewhere. */
void meter_halt(struct meter *meter);
/* In a crowd, from the render thread: tell the caller. */
void meter_tell(struct meter *meter);
/* Does the caller want to stop, now or after what is in work? */
bool meter_ends(struct meter *meter);
/* Wait, but not longer than somebody wants to stop. */
int meter_wait(struct meter *meter, double seconds, struct err *err);

/* ------------------------------------------------------------------------------ render.c */

/* Name, size, depth, codec of the poster's file as the settings ask for. */
int render_file_request(struct bigtiff_request *out, const struct config *config, struct err *err);

/* ------------------------------------------------------------------------------- draft.c */

/* Begin the stage of drafts, with attempts as below. */
int draft_begin(struct meter *meter, bool tiles_follow, uint32_t *steps_out, struct err *err);
/* Paint one draft from pure noise with `seed` (the stage has begun), as often as the settings and
 * its failures allow. */
int draft_paint(struct image *out, struct meter *meter, uint64_t seed, uint32_t steps,
                struct err *err);
/* "a/b.png" -> "a/b-7.png" */
int draft_name(char *out, size_t capacity, const char *path, uint64_t number, struct err *err);

/* ------------------------------------------------------------------------------- sheet.c */

/* All drafts have one size. */
int sheet_make(struct image *out, const struct image *drafts, uint32_t count, struct err *err);

/* -------------------------------------------------------------------- tile.c, tile_desk.c */

/* Tiles are numbered from 1 in reading order. */
enum { TILE_NAME_BYTES = 64 };
/* "tile 7 (column 3, row 2)", for sentences; returns out. */
const char *tile_name(char out[TILE_NAME_BYTES], const struct grid *grid, uint32_t number);

/* Places for `tiles` tiles (1..PAINTER_TILES_MAX) that are painted in lockstep, and the painter
 * that they are painted by; all memory is taken at open. */
struct tile_desk;
int      tile_desk_open(struct tile_desk **out, const struct render_request *request,
                        const struct painter *painter, uint32_t tiles, struct err *err);
void     tile_desk_close(struct tile_desk *desk); /* ends the painter's stage */
uint64_t tile_desk_bytes(const struct grid *grid, int32_t channels, uint32_t tiles);
/* How many it is to be given together: fewer than at open once memory ran short. */
uint32_t tile_desk_tiles(const struct tile_desk *desk);

/* 0..1, clamped, to the nearest of 65,536 levels.  ERR_NUMERIC when a value is NaN or infinite. */
int render_quantise(uint16_t *samples_out, const float *rgb, int64_t count, struct err *err);

struct tile_job {
    const struct upscale *guide;
    const float          *noise_map; /* canvas latents from a file, or NULL: keyed by the seed */
    uint32_t              number;
    uint64_t              seed;
    const char           *prompt;
};
struct tile_result {
    uint32_t        number;  /* 0: no tile of the group is left */
    const uint16_t *samples; /* [tile_h, tile_w, 3], valid while the next tile is painted, until
                                another is asked for after that; NULL: it failed as often as the
                                settings allow */
    uint32_t attempts;
    /* Of the last attempt; a step of several tiles counts for each by an equal part. */
    double     encode_seconds, step_seconds, decode_seconds;
    struct err why; /* the last failure */
};
/* Put a group on the desk, `count` jobs (1..tile_desk_tiles) of one prompt.  The texts are borrowed
 * until the last of them is through. */
void tile_take(struct tile_desk *desk, const struct tile_job *jobs, uint32_t count);
/* The next tile of the group that is through.  Gathers, encodes, paints, checks and decodes what
 * that takes; again after failures that may pass.  What a tile becomes does not depend on the
 * others of its group.  An error is one that cannot pass or a wish to stop: the group is lost. */
int tile_next(struct tile_desk *desk, struct meter *meter, struct tile_result *result,
              struct err *err);
/* The tile's part of the enlarged guide, valid until the desk is used again. */
const uint16_t *tile_copy_guide(struct tile_desk *desk, const struct tile_job *job);

/* ERR_NUMERIC when a value of a latent is NaN or infinite; `what` names the values. */
int tile_check_finite(const float *values, int64_t count, const char *what, struct err *err);

/* ----------------------------------------------------------------------------- attempt.c */

bool attempt_lacks_memory(const struct err *err);
/* How often something is tried at most. */
uint32_t attempt_most(const struct render_request *request);
/* May it pass if this painter tries again?  Where memory ran short, the painter is asked to do with
 * less (*yielded_out: it does); without memory of the host's it may pass only then. */
bool attempt_may_pass(const struct painter *painter, const struct err *err, bool *yielded_out);
/* Tells of another attempt after `attempts`; the seconds to wait before it. */
double attempt_plan(const struct render_request *request, uint32_t attempts, const char *what,
                    const struct err *err);
/* May the caller try again after failure number `attempts` (1, 2, ..) of this painter?  Where
 * memory ran short, the painter is asked to do with less.  Waits before it says yes, each time
 * twice as long.  `what` is named in a log line.  Yes clears err; no leaves it, or makes it
 * ERR_CANCELLED when somebody asked to stop meanwhile. */
bool attempt_may_retry(struct meter *meter, const struct painter *painter, uint32_t attempts,
                       const char *what, struct err *err);

/* ------------------------------------------------------------------------------- gauge.c */

/* A painter's memory over a group of tiles.  Begins as zeros. */
struct gauge {
    struct painter_memory memory; /* as last told                               */
    struct memory_use     told;   /* of it, what was handed out with tiles so far */
};
/* A group begins. */
void gauge_begin(struct gauge *gauge, const struct painter *painter);
/* A tile of it is painted: its account, as the journal has it.  False: nothing is known. */
bool gauge_tile(struct gauge *gauge, const struct painter *painter, struct memory_use *out);
/* The group until that tile as a PNG; a failure is a line in the log. */
void gauge_plot(const struct gauge *gauge, uint32_t number, const char *path);

/* -------------------------------------------------------------------------------- crew.c */

struct assembly;
/* Memory of so many painters' hands and desks, each of `tiles` tiles. */
uint64_t crew_bytes(const struct grid *grid, int32_t channels, uint32_t painters, uint32_t tiles);
struct crew_work {
    struct store         *store;
    struct assembly      *assembly; /* hears of each tile that is stored */
    struct meter         *meter;
    const struct upscale *guide;
    const float          *noise_map;
};
/* Paint all tiles that are neither done nor, in a retry, filled; with every painter.  Tiles that
 * keep failing are noted in the journal (and filled, if the settings say so) and are no error here;
 * *why_out then holds the last sentence.  ERR_CANCELLED also after the tiles in work, when that was
 * asked for. */
int crew_paint(const struct crew_work *work, struct err *why_out, struct err *err);
/* How many of `left` tiles (at least 1) a free hand takes together, at most `most`: as many as lets
 * all hands end at the same time.  `rests` [others] are what the other hands have yet to do, in
 * tiles. */
uint32_t crew_share(uint32_t left, uint32_t most, const double *rests, uint32_t others);

/* -------------------------------------------------------------------------- provenance.c */

/* The settings as they go into the poster, with what is not as they say: tiles filled from the
 * draft, tiles painted again with another seed or prompt.  Freed by os_free. */
int provenance_json(char **text_out, const struct config *used, const struct journal_facts *facts,
                    struct err *err);
/* Is the output a poster that says of itself that it was made with these settings?  Of its model it
 * knows the name.  False also when it cannot be read, or says nothing. */
bool provenance_fits(const struct config *used);

/* ------------------------------------------------------------------------------ mosaic.c */

/* Makes rows of the canvas from stored tiles; all memory is taken at open. */
struct mosaic;
int      mosaic_open(struct mosaic **out, const struct grid *grid, int bits, struct err *err);
void     mosaic_close(struct mosaic *mosaic); /* NULL is fine */
uint64_t mosaic_bytes(const struct grid *grid); /* that open takes at most */
/* Blend canvas rows [top, top + rows) into samples_out [rows, canvas_w, 3] of 8 or 16 bits.  All
 * tiles that touch them must be in the spool.  Works in parallel. */
int mosaic_rows(struct mosaic *mosaic, struct spool *spool, int32_t top, int32_t rows,
                char *samples_out, struct err *err);

/* ---------------------------------------------------------------------------- assemble.c */

/* The poster's file and all that is needed to fill it, opened before anything is painted: what
 * would refuse it refuses it now. */
int  assemble_open(struct assembly **out, const struct render_request *request,
                   struct journal_facts *facts, struct err *err);
void assemble_close(struct assembly *assembly); /* an unfinished file goes; NULL is fine */
/* From now on a thread makes what can be made of the file: of tiles that are done now, and those
 * that assemble_tile, from any thread, says are done.  The spool stays open until assemble_poster
 * or assemble_close. */
int  assemble_early(struct assembly *assembly, const struct store *store, struct err *err);
void assemble_tile(struct assembly *assembly, uint32_t number);
/* All tiles are stored: blend what is left of them into the poster's file and finish it. */
int      assemble_poster(struct assembly *assembly, struct store *store, struct meter *meter,
                         struct err *err);
uint64_t assemble_bytes(const struct grid *grid, int bits);

/* --------------------------------------------------------------------------- noise_map.c */

/* Noise from a file of raw little-endian f32 [h, w, channels]; exactly that many bytes. */
int noise_map_read(float **out, const char *path, int32_t h_lat, int32_t w_lat, int32_t channels,
                   struct err *err);

#endif
