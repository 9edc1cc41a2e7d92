/*
 * crew_shelf.c - finished tiles on their way to the disk, while the next ones are painted.
 *
 * Owns the thread that stores what hands have painted, and what a finished tile costs: its file,
 * its line in the journal, its place in the poster.  Each hand has room for one tile here, and its
 * desk for the one after that.  A tile counts for everybody (journal, poster, progress) only when
 * it is on the disk.
 *
 * What fails here ends the run: nobody takes another tile, and who is painting stops at the next
 * step.  What was put before that is still tried, so that no more is lost than must be.
 *
 * Threads: `turn` guards who has put what; a parcel that is full belongs to the shelf's thread.
 *
 * Read next: crew.c.
 */
#include "render/crew_int.h"

#include <string.h>

/* The tile's memory as a picture, where that was asked for.  Under shelf. */
static void plot_memory(struct crew *crew, const struct parcel *parcel)
{
    const char *path = crew->work->store->request->config->memory_plot;

    if (path[0] == '\0') return;
    if (parcel->gauged)
        gauge_plot(&parcel->gauge, parcel->record.number, path);
    else if (!crew->plotless)
        log_line(LOG_WARN, "nothing to plot in '%s': who painted tile %u tells of no GPU's memory",
                 path, parcel->record.number);
    crew->plotless |= !parcel->gauged;
}

static int store_tile(struct crew *crew, struct parcel *parcel, struct err *err)
{
    int                  rc = ERR_OK;
    struct store        *store = crew->work->store;
    struct journal_tile *record = &parcel->record;
    double               begun = os_seconds();

    record->hash = hash64_pieces(parcel->samples, spool_tile_bytes(&store->request->plan->grid));
    (void)pthread_mutex_lock(&crew->shelf);
    rc = spool_put(store->spool, record->number, parcel->samples, err);
    record->store_seconds = os_seconds() - begun;
    if (rc == ERR_OK) rc = journal_add_tile(store->journal, record, err);
    if (rc == ERR_OK) plot_memory(crew, parcel);
    (void)pthread_mutex_unlock(&crew->shelf);
    if (rc == ERR_OK) {
        assemble_tile(crew->work->assembly, record->number);
        meter_tile_done(crew->work->meter);
    }
    return rc;
}

/* Under turn. */
static struct parcel *find_parcel(struct crew *crew)
{
    for (uint32_t i = 0; i < crew->hand_count; i++)
        if (crew->hands[i].parcel.full) return &crew->hands[i].parcel;
    return NULL;
}

static void *shelf_main(void *argument)
{
    struct crew *crew = argument;

    (void)pthread_mutex_lock(&crew->turn);
    for (;;) {
        struct parcel *parcel = find_parcel(crew);
        struct err     err = {0};
        int            rc;

        if (parcel == NULL && crew->painted) break;
        if (parcel == NULL) {
            (void)pthread_cond_wait(&crew->changed, &crew->turn);
            continue;
        }
        (void)pthread_mutex_unlock(&crew->turn);
        rc = store_tile(crew, parcel, &err);
        (void)pthread_mutex_lock(&crew->turn);
        if (rc != ERR_OK) crew_end_with(crew, &err); /* before they are told to stop, and why */
        parcel->full = false;
        (void)pthread_cond_broadcast(&crew->changed);
        if (rc != ERR_OK) meter_halt(crew->work->meter);
    }
    (void)pthread_mutex_unlock(&crew->turn);
    return NULL;
}

int crew_shelf_open(struct crew *crew, struct err *err)
{
    int rc = ERR_OK, failed = os.thread_create(&crew->storer, shelf_main, crew);

    if (failed != 0)
        RAISE(err, ERR_HOST_MEM, failed, "cannot start a thread: %s", strerror(failed));
    crew->stores = true;
out:
    return rc;
}

void crew_shelf_close(struct crew *crew)
{
    if (!crew->stores) return;
    (void)pthread_mutex_lock(&crew->turn);
    crew->painted = true;
    (void)pthread_cond_broadcast(&crew->changed);
    (void)pthread_mutex_unlock(&crew->turn);
    (void)pthread_join(crew->storer, NULL);
    crew->stores = false;
}

void crew_shelf_put(struct hand *hand, const struct tile_result *result, uint32_t attempts)
{
    struct crew          *crew = hand->crew;
    struct parcel        *parcel = &hand->parcel;
    const struct painter *painter = &crew->work->store->request->painters[hand->index];
    struct memory_use     memory = {.peak_live = 0};
    bool                  gauged = gauge_tile(&hand->gauge, painter, &memory);

    (void)pthread_mutex_lock(&crew->turn);
    while (parcel->full)
        (void)pthread_cond_wait(&crew->changed, &crew->turn);
    parcel->samples = result->samples;
    parcel->memory = memory;
    parcel->gauged = gauged;
    parcel->gauge = hand->gauge;
    parcel->record = (struct journal_tile){.number = result->number,
                                           .attempts = attempts,
                                           .encode_seconds = result->encode_seconds,
                                           .step_seconds = result->step_seconds,
                                           .decode_seconds = result->decode_seconds,
                                           .memory = gauged ? &parcel->memory : NULL};
    parcel->full = true;
    (void)pthread_cond_broadcast(&crew->changed);
    (void)pthread_mutex_unlock(&crew->turn);
}
