/*
 * crew_int.h - the hands and their queue, for crew*.c only.
 */
#ifndef MURAL_CREW_INT_H
#define MURAL_CREW_INT_H

#include "render/render_int.h"

enum { HANDS_MAX = 256 };

struct task {
    uint32_t number, attempts;
    int32_t  failed_by; /* the hand that handed it over; -1: none did */
    bool     taken;
};

/* A painted tile on its way to the disk. */
struct parcel {
    bool                full; /* under turn */
    bool                gauged;
    const uint16_t     *samples;
    struct journal_tile record;
    struct memory_use   memory;
    struct gauge        gauge;
};

struct hand {
    struct crew      *crew;
    struct tile_desk *desk;
    pthread_t         thread;
    int32_t           index;
    uint32_t          faults; /* groups failed in a row, for the painter's own reasons */
    bool              usable;
    struct tile_job   jobs[PAINTER_TILES_MAX];
    struct gauge      gauge;
    /* under turn */
    struct task  *group[PAINTER_TILES_MAX]; /* in work */
    uint32_t      size;                     /* of it; 0: none */
    double        begun;                    /* os_seconds */
    struct parcel parcel;
};

struct crew {
    const struct crew_work *work;
    struct hand            *hands; /* [hand_count] */
    uint32_t                hand_count;
    pthread_mutex_t         turn, shelf;
    pthread_cond_t          changed;
    bool                    plotless; /* under shelf: it was said that there is nothing to plot */
    pthread_t               storer;
    bool                    stores; /* it runs */
    /* under turn */
    struct task *tasks;            /* [2 * tiles]: each may be handed over once */
    uint32_t     task_count, next; /* all before `next` are taken */
    uint32_t     busy, leaving;    /* hands that paint; hands that are through */
    double       tile_seconds;     /* a tile's part of the last group that ended; 0: none did */
    bool         ended;            /* nobody takes a task any more */
    bool         painted;          /* nothing more will be stored */
    struct err   fault;            /* what ends the run */
    struct err   why;              /* why the last tile failed */
};

/* What is to be painted: tiles with the poster's own prompt first, so that prompts change seldom.
 */
void crew_queue_fill(struct crew *crew);
/* The tile with the seed and the prompt that it is to be painted with. */
struct tile_job crew_queue_job(const struct crew *crew, uint32_t number);

/* These under turn. */
bool crew_queue_is_left(struct crew *crew);
/* A group in hand->group and hand->jobs; false when there is nothing more to do for this hand.
 * Waits while another may still hand something over. */
bool crew_queue_take(struct hand *hand);
/* A task that failed for the painter's own reasons, while another may do better.  False: it stays
 * failed. */
bool crew_queue_hand_over(struct crew *crew, const struct hand *hand, const struct task *task,
                          const struct err *err);

/* What ends the run; the first that is told counts.  Under turn. */
void crew_end_with(struct crew *crew, const struct err *err);

/* ------------------------------------------------------------------------- crew_shelf.c */

/* A thread that stores what is put.  Once the hands are open. */
int crew_shelf_open(struct crew *crew, struct err *err);
/* Waits until all that was put is stored, or failed: crew->fault.  Without effect where it was
 * not opened. */
void crew_shelf_close(struct crew *crew);
/* A tile of this hand, painted in `attempts`.  Its samples are borrowed until this hand puts the
 * next one; waits until the one before it is through. */
void crew_shelf_put(struct hand *hand, const struct tile_result *result, uint32_t attempts);

#endif
