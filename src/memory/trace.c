/*
 * trace.c - a stack's history: what was taken, used and rewound, and when.
 *
 * Owns a growing list of items and the stack of those that live.  It is recorded while planning,
 * where memory may still be asked for; when that fails the recording goes on without, and trace_end
 * says so.
 *
 * Read next: arena.c.
 */
#include "memory/memory_int.h"
#include "memory/trace.h"

#include <string.h>

struct trace {
    struct trace_item *items;
    uint32_t          *living; /* indexes, by offset and birth alike */
    uint32_t           count, room, living_count, clock;
    bool               is_short;
};

static int make_room(struct trace *trace, struct err *err)
{
    int                rc = ERR_OK;
    uint64_t           room = trace->room == 0 ? 1024 : 2 * (uint64_t)trace->room;
    struct trace_item *items = NULL;
    uint32_t          *living = NULL;

    must(room < UINT32_MAX);
    TRY(os_alloc((void **)&items, room, sizeof *items, "a trace", err));
    TRY(os_alloc((void **)&living, room, sizeof *living, "a trace", err));
    if (trace->count > 0) {
        memcpy(items, trace->items, trace->count * sizeof *items);
        memcpy(living, trace->living, trace->living_count * sizeof *living);
    }
    os_free(trace->items);
    os_free(trace->living);
    trace->items = items;
    trace->living = living;
    trace->room = (uint32_t)room;
    items = NULL;
out:
    os_free(items);
    return rc;
}

int trace_open(struct trace **out, struct err *err)
{
    int           rc = ERR_OK;
    struct trace *trace = NULL;

    TRY(os_alloc((void **)&trace, 1, sizeof *trace, "a trace", err));
    TRY(make_room(trace, err));
    *out = trace;
    trace = NULL;
out:
    os_free(trace);
    return rc;
}

void trace_close(struct trace *trace)
{
    if (trace == NULL) return;
    os_free(trace->items);
    os_free(trace->living);
    os_free(trace);
}

void trace_take(struct trace *trace, uint64_t offset, uint64_t bytes, const char *label)
{
    struct err ignored = {0};
    uint32_t   now = trace->clock++;

    if (bytes == 0) return;
    if (trace->count == trace->room && make_room(trace, &ignored) != ERR_OK) {
        trace->is_short = true;
        return;
    }
    trace->living[trace->living_count++] = trace->count;
    trace->items[trace->count++] = (struct trace_item){
        .bytes = bytes, .offset = offset, .birth = now, .last_use = now, .label = label};
}

void trace_rewind(struct trace *trace, uint64_t offset)
{
    uint32_t now = trace->clock++;

    while (trace->living_count > 0) {
        struct trace_item *item = &trace->items[trace->living[trace->living_count - 1]];
        if (item->offset < offset) break;
        item->death = now;
        trace->living_count--;
    }
}

void trace_touch(struct trace *trace, uint64_t offset)
{
    uint32_t least = 0, most = trace->living_count;

    while (least < most) {
        uint32_t middle = (least + most) / 2;
        if (trace->items[trace->living[middle]].offset <= offset)
            least = middle + 1;
        else
            most = middle;
    }
    if (least == 0) return;
    trace->items[trace->living[least - 1]].last_use = trace->clock++; /* a stack has no gaps */
}

int trace_end(struct trace *trace, const struct trace_item **items_out, uint32_t *count_out,
              struct err *err)
{
    int rc = ERR_OK;

    trace_rewind(trace, 0);
    if (trace->is_short)
        RAISE(err, ERR_HOST_MEM, 0, "memory: a trace was cut after %u items; close other programs",
              trace->count);
    *items_out = trace->items;
    *count_out = trace->count;
out:
    return rc;
}
