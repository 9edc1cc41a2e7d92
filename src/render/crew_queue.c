/*
 * crew_queue.c - who paints which tile.
 *
 * Owns the queue.  Whoever is free takes a group: tiles that follow each other in the queue and
 * have the same prompt, as many as a painter paints in lockstep, but not so many that another hand
 * would stand idle at the end.  A tile may be handed over once, to any other hand; when there is no
 * other any more, it comes back.  Paints and stores nothing.
 *
 * Read next: crew.c.
 */
#include "render/crew_int.h"

#include <math.h>
#include <string.h>

static uint32_t usable_others(const struct crew *crew, int32_t index)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < crew->hand_count; i++)
        if ((int32_t)i != index && crew->hands[i].usable) count++;
    return count;
}

bool crew_queue_is_left(struct crew *crew)
{
    while (crew->next < crew->task_count && crew->tasks[crew->next].taken)
        crew->next++;
    return crew->next < crew->task_count;
}

/* The first task that is left for this hand, or NULL.  What it handed over comes back to it when
 * nobody else is of use any more. */
static struct task *find_task(struct crew *crew, int32_t index)
{
    bool alone = usable_others(crew, index) == 0;

    if (!crew_queue_is_left(crew)) return NULL;
    for (uint32_t i = crew->next; i < crew->task_count; i++)
        if (!crew->tasks[i].taken && (alone || crew->tasks[i].failed_by != index))
            return &crew->tasks[i];
    return NULL;
}

struct tile_job crew_queue_job(const struct crew *crew, uint32_t number)
{
    const struct crew_work *work = crew->work;
    const struct config    *config = work->store->request->config;
    const struct tile_fact *fact = &journal_facts(work->store->journal)->tiles[number - 1];

    return (struct tile_job){.guide = work->guide,
                             .noise_map = work->noise_map,
                             .number = number,
                             .seed = fact->has_seed ? fact->seed : config->seed,
                             .prompt = fact->prompt != NULL ? fact->prompt : config->prompt};
}

uint32_t crew_share(uint32_t left, uint32_t most, const double *rests, uint32_t others)
{
    double   level = left + 1.0; /* that all hands end at, in tiles from now */
    uint32_t share;

    /* Whoever has more than that to do takes none of these, and does not count. */
    for (double before = level + 1; level < before;) {
        double   sum = left;
        uint32_t hands = 1;
        for (uint32_t i = 0; i < others; i++) {
            if (rests[i] >= level) continue;
            sum += rests[i];
            hands++;
        }
        before = level;
        level = sum / hands;
    }
    share = (uint32_t)ceil(level);
    return share < 1 ? 1 : (uint32_t)min_i64(share, min_i64(left, most));
}

/* How many tiles this hand may take together now. */
static uint32_t group_size(const struct hand *hand)
{
    const struct crew *crew = hand->crew;
    double             rests[HANDS_MAX], now = os_seconds();
    uint32_t           others = 0, left = 0;

    for (uint32_t i = crew->next; i < crew->task_count; i++)
        left += !crew->tasks[i].taken;
    for (uint32_t i = 0; i < crew->hand_count; i++) {
        const struct hand *other = &crew->hands[i];
        double done = crew->tile_seconds > 0 ? (now - other->begun) / crew->tile_seconds : 0;
        if (other == hand || !other->usable) continue;
        rests[others++] = other->size > done ? other->size - done : 0;
    }
    return crew_share(left, tile_desk_tiles(hand->desk), rests, others);
}

/* The first task that is left for this hand, and those behind it that go with it. */
static void fill_group(struct hand *hand, struct task *first)
{
    struct crew *crew = hand->crew;
    uint32_t     most = group_size(hand);
    bool         alone = usable_others(crew, hand->index) == 0;

    for (struct task *task = first; task < crew->tasks + crew->task_count; task++) {
        struct tile_job job = crew_queue_job(crew, task->number);
        if (hand->size == most) break;
        if (task->taken || (!alone && task->failed_by == hand->index)) continue;
        if (hand->size > 0 && strcmp(job.prompt, hand->jobs[0].prompt) != 0) continue;
        task->taken = true;
        hand->jobs[hand->size] = job;
        hand->group[hand->size++] = task;
    }
    hand->begun = os_seconds();
    crew->busy++;
}

bool crew_queue_take(struct hand *hand)
{
    struct crew *crew = hand->crew;

    while (!crew->ended && hand->usable) {
        struct task *task = find_task(crew, hand->index);
        if (task != NULL) {
            fill_group(hand, task);
            return true;
        }
        if (usable_others(crew, hand->index) == 0 || (!crew_queue_is_left(crew) && crew->busy == 0))
            break;
        (void)pthread_cond_wait(&crew->changed, &crew->turn);
    }
    return false;
}

bool crew_queue_hand_over(struct crew *crew, const struct hand *hand, const struct task *task,
                          const struct err *err)
{
    if (err->code == ERR_NUMERIC || task->failed_by >= 0 || usable_others(crew, hand->index) == 0)
        return false;
    must(crew->task_count < 2 * journal_facts(crew->work->store->journal)->tile_count);
    crew->tasks[crew->task_count++] =
        (struct task){.number = task->number, .attempts = task->attempts, .failed_by = hand->index};
    return true;
}

void crew_queue_fill(struct crew *crew)
{
    const struct journal_facts *facts = journal_facts(crew->work->store->journal);
    bool                        retry = crew->work->store->request->mode == RENDER_RETRY;

    for (int own = 0; own < 2; own++)
        for (uint32_t i = 0; i < facts->tile_count; i++) {
            const struct tile_fact *fact = &facts->tiles[i];
            if (fact->status == TILE_DONE || (fact->status == TILE_FILLED && retry)) continue;
            if ((fact->prompt != NULL) != (own == 1)) continue;
            crew->tasks[crew->task_count++] = (struct task){.number = i + 1, .failed_by = -1};
        }
}
