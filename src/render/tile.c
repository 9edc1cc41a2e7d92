/*
 * tile.c - a tile's life: gather the guide, encode, mix in noise, paint, decode, quantise; and once
 * more when something failed that may pass.
 *
 * Several tiles live it together, as a group: their steps are run in lockstep, so that whoever
 * paints them reads each weight once for all of them; all else is done tile by tile.  No tile sees
 * another, so what it becomes does not depend on its group.
 *
 * Owns the order of the primitives, and the painter's stage: the prompt that it has begun.  Knows
 * nothing of how they work.  Decides nothing from pixels: what depends on the picture is settled
 * before.
 *
 * What fails for one tile costs that tile an attempt, and the others go on; what fails for a whole
 * pass costs each of its tiles one, and when it was a step, their next passes are half as large.
 * Values are looked at between the primitives, whoever painted them: NaN must not reach the store,
 * where it would be black.
 *
 * Read next: tile_desk.c, attempt.c, then crew.c, which asks for tiles.
 */
#include "render/tile_int.h"

#include <stdio.h>
#include <string.h>

/* ------------------------------------------------------------------------------- failures */

/* Its attempt is over.  True: another follows. */
static bool fail_place(struct tile_desk *desk, struct meter *meter, struct place *place,
                       const struct err *err)
{
    struct err ignored = {0};

    (void)meter_advance(meter, -place->spent, &ignored);
    place->result.why = *err;
    place->state = place->result.attempts < attempt_most(desk->request) ? PLACE_WAITS : PLACE_LOST;
    return place->state == PLACE_WAITS;
}

static void wait_for(struct tile_desk *desk, uint32_t attempts, const char *what,
                     const struct err *err)
{
    double wait = attempt_plan(desk->request, attempts, what, err);
    if (wait > desk->pause) desk->pause = wait;
}

/* What befell one tile: the others go on.  Gives back an error that cannot pass. */
static int fail_alone(struct tile_desk *desk, struct meter *meter, struct place *place,
                      struct err *err)
{
    char name[TILE_NAME_BYTES];
    bool yielded;

    if (!attempt_may_pass(desk->painter, err, &yielded)) return (int)err->code;
    if (fail_place(desk, meter, place, err))
        wait_for(desk, place->result.attempts,
                 tile_name(name, &desk->request->plan->grid, place->job.number), err);
    *err = (struct err){.code = ERR_OK};
    return ERR_OK;
}

/* What befell all tiles of the pass.  *yielded_out: the painter does with less memory now. */
static int fail_pass(struct tile_desk *desk, struct meter *meter, bool *yielded_out,
                     struct err *err)
{
    char     name[TILE_NAME_BYTES] = "", what[TILE_NAME_BYTES + 32];
    uint32_t count = 0, attempts = 0;

    if (!attempt_may_pass(desk->painter, err, yielded_out)) return (int)err->code;
    for (uint32_t i = 0; i < desk->count; i++) {
        struct place *place = &desk->places[i];
        if (place->state != PLACE_MOVES) continue;
        if (count++ == 0) (void)tile_name(name, &desk->request->plan->grid, place->job.number);
        if (fail_place(desk, meter, place, err) && place->result.attempts > attempts)
            attempts = place->result.attempts;
    }
    (void)snprintf(what, sizeof what, count > 1 ? "%s and %u more" : "%s", name, count - 1);
    if (attempts > 0) wait_for(desk, attempts, what, err);
    *err = (struct err){.code = ERR_OK};
    return ERR_OK;
}

/* `count` tiles at once were too much: half of them next.  Where memory ran short and the painter
 * has nothing left to give up, later groups are smaller as well. */
static int fail_together(struct tile_desk *desk, struct meter *meter, uint32_t count,
                         struct err *err)
{
    int        rc = ERR_OK;
    bool       yielded;
    struct err why = *err;

    TRY(fail_pass(desk, meter, &yielded, err));
    desk->width = (count + 1) / 2;
    if (count > 1 && attempt_lacks_memory(&why) && !yielded) {
        desk->tiles = desk->width;
        log_line(LOG_WARN, "memory is short: from now on %u instead of %u tiles at a time",
                 desk->tiles, count);
    }
out:
    return rc;
}

static int begin(struct tile_desk *desk, struct meter *meter, const char *prompt, struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = desk->painter;
    struct painter_stage  stage = render_tile_stage(desk->request->config, desk->request->plan);

    if (desk->prompt != NULL && strcmp(desk->prompt, prompt) == 0) goto out;
    if (desk->prompt != NULL) painter->end(painter->self);
    desk->prompt = NULL;
    stage.prompt = prompt;
    TRY(painter->begin(painter->self, &stage, &desk->steps, err));
    desk->prompt = prompt;
    TRY(meter_advance(meter, desk->request->costs.prompt, err));
out:
    return rc;
}

/* ------------------------------------------------------------------------------------ steps */

/* The tiles that move, as the painter sees them; how many. */
static uint32_t list_moving(struct tile_desk *desk)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < desk->count; i++) {
        const struct place *place = &desk->places[i];
        struct px_rect      px = tile_desk_rect(desk, &place->job);
        if (place->state != PLACE_MOVES) continue;
        desk->moving[count++] = (struct painter_tile){
            .w_px = px.w, .h_px = px.h, .latent = place->latent, .velocity = place->velocity};
    }
    return count;
}

/* Tiles with NaN or infinity in their velocity leave the pass; *count_out: how many. */
static int drop_bad(struct tile_desk *desk, struct meter *meter, uint32_t *count_out,
                    struct err *err)
{
    int rc = ERR_OK;

    *count_out = 0;
    for (uint32_t i = 0; i < desk->count; i++) {
        struct place *place = &desk->places[i];
        struct err    why = {0};
        if (place->state != PLACE_MOVES ||
            tile_check_finite(place->velocity, desk->cells, "velocity", &why) == ERR_OK)
            continue;
        ++*count_out;
        *err = why;
        TRY(fail_alone(desk, meter, place, err));
    }
out:
    return rc;
}

/* One step of all tiles that move; each takes an equal part of the time. */
static int step_all(struct tile_desk *desk, struct meter *meter, uint32_t step, struct err *err)
{
    int                   rc = ERR_OK;
    const struct painter *painter = desk->painter;
    double                begun = os_seconds(), cost = desk->request->costs.predict, each;
    uint32_t              count = list_moving(desk), bad = 0;
    struct err            why = {0};
    int                   told = painter->predict(painter->self, desk->moving, count, step, &why);

    if (told == ERR_OK || told == ERR_NUMERIC) TRY(drop_bad(desk, meter, &bad, err));
    if (told != ERR_OK && bad == 0) {
        *err = why;
        return fail_together(desk, meter, count, err);
    }
    if (bad == count) goto out;
    for (uint32_t i = 0; i < desk->count; i++) {
        struct place *place = &desk->places[i];
        if (place->state != PLACE_MOVES) continue;
        painter->advance(painter->self, step, place->latent, place->velocity, desk->cells);
        place->spent += cost;
    }
    each = (os_seconds() - begun) / count;
    for (uint32_t i = 0; i < desk->count; i++)
        if (desk->places[i].state == PLACE_MOVES) desk->places[i].result.step_seconds += each;
    TRY(meter_step(meter, step + 1, count - bad, cost * (count - bad), err));
out:
    return rc;
}

static uint32_t count_in(const struct tile_desk *desk, enum place_state state)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < desk->count; i++)
        count += desk->places[i].state == state;
    return count;
}

/* The next tiles that wait, through encoding and all steps. */
static int run_pass(struct tile_desk *desk, struct meter *meter, struct err *err)
{
    int  rc = ERR_OK;
    bool yielded;

    for (uint32_t i = 0, seated = 0; i < desk->count && seated < desk->width; i++) {
        struct place *place = &desk->places[i];
        if (place->state != PLACE_WAITS) continue;
        place->state = PLACE_MOVES;
        place->spent = 0;
        place->result.attempts++;
        place->result.step_seconds = 0;
        seated++;
    }
    if (begin(desk, meter, desk->places[0].job.prompt, err) != ERR_OK)
        return fail_pass(desk, meter, &yielded, err);
    for (uint32_t i = 0; i < desk->count; i++) {
        struct place *place = &desk->places[i];
        if (place->state == PLACE_MOVES && tile_desk_encode(desk, meter, place, err) != ERR_OK)
            TRY(fail_alone(desk, meter, place, err));
    }
    for (uint32_t step = 0; step < desk->steps && count_in(desk, PLACE_MOVES) > 0; step++)
        TRY(step_all(desk, meter, step, err));
    for (uint32_t i = 0; i < desk->count; i++)
        if (desk->places[i].state == PLACE_MOVES) desk->places[i].state = PLACE_STEPPED;
out:
    return rc;
}

/* ------------------------------------------------------------------------------------ group */

const char *tile_name(char out[TILE_NAME_BYTES], const struct grid *grid, uint32_t number)
{
    (void)snprintf(out, TILE_NAME_BYTES, "tile %u (column %u, row %u)", number,
                   (number - 1) % grid->cols + 1, (number - 1) / grid->cols + 1);
    return out;
}

void tile_take(struct tile_desk *desk, const struct tile_job *jobs, uint32_t count)
{
    must(count >= 1 && count <= desk->tiles);
    desk->count = count;
    desk->width = count;
    desk->pause = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct place *place = &desk->places[i];
        must(strcmp(jobs[i].prompt, jobs[0].prompt) == 0);
        place->state = PLACE_WAITS;
        place->job = jobs[i];
        place->result = (struct tile_result){.number = jobs[i].number};
    }
}

static struct place *first_in(struct tile_desk *desk, enum place_state state)
{
    for (uint32_t i = 0; i < desk->count; i++)
        if (desk->places[i].state == state) return &desk->places[i];
    return NULL;
}

int tile_next(struct tile_desk *desk, struct meter *meter, struct tile_result *result,
              struct err *err)
{
    int           rc = ERR_OK;
    struct place *through = NULL, *place;

    *result = (struct tile_result){.number = 0};
    while ((through = first_in(desk, PLACE_LOST)) == NULL) {
        if ((place = first_in(desk, PLACE_STEPPED)) != NULL) {
            if (tile_desk_decode(desk, meter, place, err) == ERR_OK) {
                through = place;
                break;
            }
            TRY(fail_alone(desk, meter, place, err));
        } else if (first_in(desk, PLACE_WAITS) != NULL) {
            TRY(meter_wait(meter, desk->pause, err));
            desk->pause = 0;
            TRY(run_pass(desk, meter, err));
        } else {
            goto out;
        }
    }
    through->state = PLACE_EMPTY;
    *result = through->result;
out:
    return rc;
}
