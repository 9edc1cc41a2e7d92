/*
 * tile_int.h - a group of tiles in work, for tile*.c only.
 */
#ifndef MURAL_TILE_INT_H
#define MURAL_TILE_INT_H

#include "render/render_int.h"

enum place_state {
    PLACE_WAITS = 0, /* for its first attempt, or for another */
    PLACE_MOVES,     /* through the steps of the pass in work */
    PLACE_STEPPED,   /* has only to be decoded */
    PLACE_LOST,      /* all attempts failed */
    PLACE_EMPTY      /* its tile was handed out */
};

/* One tile of the group on the desk. */
struct place {
    enum place_state   state;
    struct tile_job    job;
    struct tile_result result;
    double             spent;  /* work counted for the attempt in progress */
    float             *latent; /* [tile_h / 8, tile_w / 8, channels] */
    float             *velocity;
};

struct tile_desk {
    const struct render_request *request;
    const struct painter        *painter;
    const char                  *prompt; /* of the stage that has begun; NULL: none has */
    uint32_t                     steps;  /* of that stage */
    uint32_t                     tiles;  /* of a group, at most */
    uint32_t                     count;  /* of the group on the desk */
    uint32_t                     width;  /* of its next pass, at most */
    double                       pause;  /* seconds to wait before that */
    float                       *rgb;    /* [tile_h, tile_w, 3], of one tile after the other */
    float                       *noise;  /* as a latent, of one tile after the other */
    float                       *latents, *velocities; /* [tiles] */
    uint16_t                    *samples[2];           /* [tile_h, tile_w, 3], used in turn */
    uint32_t                     free; /* which of them the next tile is decoded to */
    int64_t                      cells, pixels;
    struct place                 places[PAINTER_TILES_MAX];
    struct painter_tile          moving[PAINTER_TILES_MAX];
};

/* Where on the canvas the tile lies. */
struct px_rect tile_desk_rect(const struct tile_desk *desk, const struct tile_job *job);
/* From the guide to the latent that the first step begins with; and from a latent to samples, in
 * place->result.  Values that are NaN or infinite are ERR_NUMERIC. */
int tile_desk_encode(struct tile_desk *desk, struct meter *meter, struct place *place,
                     struct err *err);
int tile_desk_decode(struct tile_desk *desk, struct meter *meter, struct place *place,
                     struct err *err);

#endif
