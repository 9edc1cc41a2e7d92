/*
 * crew.c - all tiles of a poster: one hand for each painter, one queue for all.
 *
 * Owns the threads that paint, and what becomes of a tile that failed; one that was painted goes on
 * the shelf, and its hand paints on.  What a tile becomes depends neither on who paints it nor on
 * its group.
 *
 * A painter that fails a tile for a reason of its own (its device, its memory, its process) hands
 * it over to another; one that finishes no tile of three groups in a row so is not used any more.
 * Numbers that come out wrong are the tile's reason, not the painter's.
 *
 * Threads: with one painter, the render thread paints.  With several, each has a thread with a desk
 * of its own, and the render thread only speaks with the caller.  `turn` guards the queue, `shelf`
 * the store: tiles are stored and noted one at a time.  Threads never hold both.
 *
 * Read next: crew_queue.c, for who takes what; crew_shelf.c, for what is painted; tile.c, for the
 * life of one tile.
 */
#include "render/crew_int.h"

#include <string.h>
#include <time.h>

enum { FAULTS_MAX = 3 };

static const struct painter *painter_of(const struct hand *hand)
{
    return &hand->crew->work->store->request->painters[hand->index];
}

void crew_end_with(struct crew *crew, const struct err *err)
{
    if (crew->fault.code == ERR_OK) crew->fault = *err;
    crew->ended = true;
}

/* ------------------------------------------------------------------------------------ tiles */

static int note_failure(struct crew *crew, const struct task *task, const struct err *why,
                        struct err *err)
{
    int           rc;
    char          name[TILE_NAME_BYTES];
    struct store *store = crew->work->store;

    log_line(LOG_WARN, "%s failed %u times: %s",
             tile_name(name, &store->request->plan->grid, task->number), task->attempts, why->text);
    (void)pthread_mutex_lock(&crew->shelf);
    rc = journal_add_failed(store->journal, task->number, task->attempts, why->text, err);
    (void)pthread_mutex_unlock(&crew->shelf);
    return rc;
}

/* Another may do better with it, or it is noted. */
static int lose_tile(struct hand *hand, const struct task *task, const struct err *why,
                     struct err *err)
{
    struct crew *crew = hand->crew;
    bool         handed;

    (void)pthread_mutex_lock(&crew->turn);
    handed = crew_queue_hand_over(crew, hand, task, why);
    crew->why = *why;
    if (handed) (void)pthread_cond_broadcast(&crew->changed);
    (void)pthread_mutex_unlock(&crew->turn);
    return handed ? ERR_OK : note_failure(crew, task, why, err);
}

/* What came of a group. */
struct outcome {
    uint32_t painted;
    bool     blamed; /* a tile failed for the painter's own reason */
};

static int work_on(struct hand *hand, struct outcome *outcome, struct err *err)
{
    int                rc = ERR_OK;
    struct crew       *crew = hand->crew;
    struct tile_result result;

    gauge_begin(&hand->gauge, painter_of(hand));
    tile_take(hand->desk, hand->jobs, hand->size);
    for (;;) {
        struct task *task = NULL;
        TRY(tile_next(hand->desk, crew->work->meter, &result, err));
        if (result.number == 0) break;
        for (uint32_t i = 0; i < hand->size && task == NULL; i++)
            if (hand->group[i]->number == result.number) task = hand->group[i];
        must(task != NULL);
        task->attempts += result.attempts;
        if (result.samples != NULL) {
            crew_shelf_put(hand, &result, task->attempts);
            outcome->painted++;
        } else {
            outcome->blamed |= result.why.code != ERR_NUMERIC;
            TRY(lose_tile(hand, task, &result.why, err));
        }
    }
out:
    return rc;
}

/* Paint a group and note what came of it. */
static void run_group(struct hand *hand)
{
    struct crew   *crew = hand->crew;
    struct outcome outcome = {.painted = 0};
    struct err     err = {0};
    int            rc = work_on(hand, &outcome, &err);

    (void)pthread_mutex_lock(&crew->turn);
    if (rc != ERR_OK) crew_end_with(crew, &err);
    if (outcome.painted > 0) {
        hand->faults = 0;
        crew->tile_seconds = (os_seconds() - hand->begun) / hand->size;
    } else if (outcome.blamed && ++hand->faults >= FAULTS_MAX) {
        hand->usable = false;
        log_line(LOG_WARN, "painter %d failed %d times in a row and is not used any more",
                 hand->index + 1, FAULTS_MAX);
    }
    hand->size = 0;
    crew->busy--;
    (void)pthread_cond_broadcast(&crew->changed);
    (void)pthread_mutex_unlock(&crew->turn);
}

static void *hand_main(void *argument)
{
    struct hand *hand = argument;
    struct crew *crew = hand->crew;

    for (;;) {
        bool works, ends = meter_ends(crew->work->meter);
        (void)pthread_mutex_lock(&crew->turn);
        crew->ended |= ends;
        works = crew_queue_take(hand);
        if (!works) crew->leaving++;
        (void)pthread_cond_broadcast(&crew->changed);
        (void)pthread_mutex_unlock(&crew->turn);
        if (!works) break;
        run_group(hand);
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------ crew */

/* Speak with the caller until all hands are through. */
static void attend(struct crew *crew, uint32_t started)
{
    const long interval = 100 * 1000 * 1000; /* ns: a progress line moves smoothly enough */

    (void)pthread_mutex_lock(&crew->turn);
    while (crew->leaving < started) {
        struct timespec until;
        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += interval;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        (void)pthread_cond_timedwait(&crew->changed, &crew->turn, &until);
        (void)pthread_mutex_unlock(&crew->turn);
        meter_tell(crew->work->meter);
        (void)pthread_mutex_lock(&crew->turn);
        if (meter_ends(crew->work->meter)) {
            crew->ended = true;
            (void)pthread_cond_broadcast(&crew->changed);
        }
    }
    (void)pthread_mutex_unlock(&crew->turn);
}

static void run_hands(struct crew *crew)
{
    uint32_t started = 0;

    crew->work->meter->crowd = crew->hand_count > 1;
    if (crew->hand_count == 1) {
        (void)hand_main(&crew->hands[0]);
        return;
    }
    for (; started < crew->hand_count; started++) {
        struct err err = {0};
        int        failed =
            os.thread_create(&crew->hands[started].thread, hand_main, &crew->hands[started]);
        if (failed == 0) continue;
        (void)err_set(&err, ERR_HOST_MEM, failed, ERR_WHERE, "cannot start a thread: %s",
                      strerror(failed));
        (void)pthread_mutex_lock(&crew->turn);
        crew_end_with(crew, &err);
        (void)pthread_cond_broadcast(&crew->changed);
        (void)pthread_mutex_unlock(&crew->turn);
        break;
    }
    attend(crew, started);
    for (uint32_t i = 0; i < started; i++)
        (void)pthread_join(crew->hands[i].thread, NULL);
    crew->work->meter->crowd = false;
}

/* Places on the desk of this painter. */
static uint32_t tiles_of(const struct crew *crew, const struct painter *painter)
{
    uint32_t wanted = crew->work->store->request->tiles_per_pass, can = painter->tiles_max;
    int64_t  tiles = min_i64(max_i64(wanted, 1), max_i64(can, 1));

    return (uint32_t)min_i64(min_i64(tiles, crew->task_count), PAINTER_TILES_MAX);
}

uint64_t crew_bytes(const struct grid *grid, int32_t channels, uint32_t painters, uint32_t tiles)
{
    return painters * (sizeof(struct hand) + tile_desk_bytes(grid, channels, tiles));
}

static int open_hands(struct crew *crew, struct err *err)
{
    int                          rc = ERR_OK;
    const struct render_request *request = crew->work->store->request;
    uint32_t                     most = request->painter_count;

    must(request->painter_count >= 1 && request->painter_count <= HANDS_MAX);
    if (most > crew->task_count) most = crew->task_count;
    TRY(os_alloc((void **)&crew->hands, most, sizeof *crew->hands, "the painters", err));
    for (; crew->hand_count < most; crew->hand_count++) {
        const struct painter *painter = &request->painters[crew->hand_count];
        struct hand          *hand = &crew->hands[crew->hand_count];
        *hand = (struct hand){.crew = crew, .index = (int32_t)crew->hand_count, .usable = true};
        TRY(tile_desk_open(&hand->desk, request, painter, tiles_of(crew, painter), err));
    }
out:
    return rc;
}

static int fill_failed(struct crew *crew, struct err *err)
{
    int                         rc = ERR_OK;
    struct store               *store = crew->work->store;
    const struct journal_facts *facts = journal_facts(store->journal);
    uint64_t                    bytes = spool_tile_bytes(&store->request->plan->grid);

    for (uint32_t i = 0; i < facts->tile_count; i++) {
        struct tile_job job = crew_queue_job(crew, i + 1);
        const uint16_t *samples;
        if (facts->tiles[i].status != TILE_FAILED) continue;
        samples = tile_copy_guide(crew->hands[0].desk, &job);
        TRY(spool_put(store->spool, i + 1, samples, err));
        TRY(journal_add_filled(store->journal, i + 1, hash64_pieces(samples, bytes), err));
    }
out:
    return rc;
}

static void crew_init(struct crew *crew)
{
    pthread_condattr_t monotonic;

    must(pthread_mutex_init(&crew->turn, NULL) == 0 && pthread_mutex_init(&crew->shelf, NULL) == 0);
    must(pthread_condattr_init(&monotonic) == 0);
    must(pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC) == 0);
    must(pthread_cond_init(&crew->changed, &monotonic) == 0);
    (void)pthread_condattr_destroy(&monotonic);
}

static void crew_fini(struct crew *crew)
{
    for (uint32_t i = 0; i < crew->hand_count; i++)
        tile_desk_close(crew->hands[i].desk);
    os_free(crew->hands);
    os_free(crew->tasks);
    (void)pthread_cond_destroy(&crew->changed);
    (void)pthread_mutex_destroy(&crew->shelf);
    (void)pthread_mutex_destroy(&crew->turn);
}

int crew_paint(const struct crew_work *work, struct err *why_out, struct err *err)
{
    int                  rc = ERR_OK;
    const struct config *config = work->store->request->config;
    struct crew          crew = {.work = work};
    uint64_t             tiles = journal_facts(work->store->journal)->tile_count;

    crew_init(&crew);
    TRY(os_alloc((void **)&crew.tasks, 2 * tiles, sizeof *crew.tasks, "the list of tiles", err));
    crew_queue_fill(&crew);
    if (crew.task_count == 0) goto out;
    TRY(open_hands(&crew, err));
    TRY(crew_shelf_open(&crew, err));
    run_hands(&crew);
    crew_shelf_close(&crew);
    *why_out = crew.why;
    if (crew.fault.code != ERR_OK) {
        *err = crew.fault;
        rc = (int)err->code;
        goto out;
    }
    if (crew_queue_is_left(&crew) && crew.ended) RAISE(err, ERR_CANCELLED, 0, "stopped on request");
    if (strcmp(config->on_fail, "draft") == 0) TRY(fill_failed(&crew, err));
out:
    crew_fini(&crew);
    return rc;
}
