/*
 * trace.h - what a dry arena was asked for; private to memory/ and to programs that measure.
 */
#ifndef MURAL_TRACE_H
#define MURAL_TRACE_H

#include "memory/memory.h"

/* Times count takes, rewinds and uses, from 0.  What lives is there in [birth, death). */
struct trace_item {
    uint64_t    bytes, offset; /* with alignment; where the stack had it               */
    uint32_t    birth, death;  /* taken, rewound                                       */
    uint32_t    last_use;      /* of arena_touch; its birth when nobody ever touched it */
    const char *label;         /* the taker's */
};
struct trace;
int  trace_open(struct trace **out, struct err *err);
void trace_close(struct trace *trace);

/* From now on a dry, empty arena tells `trace` what is taken and rewound; NULL: nobody. */
void arena_record(struct arena *arena, struct trace *trace);
/* An operation reads or writes what lies around `data`.  Addresses of others are passed over. */
void arena_touch(struct arena *arena, const void *data);

/* What is still there dies now.  ERR_HOST_MEM when something could not be remembered.  The items,
 * in the order of their births, are the trace's. */
int trace_end(struct trace *trace, const struct trace_item **items_out, uint32_t *count_out,
              struct err *err);

/* For arena.c. */
void trace_take(struct trace *trace, uint64_t offset, uint64_t bytes, const char *label);
void trace_rewind(struct trace *trace, uint64_t offset);
void trace_touch(struct trace *trace, uint64_t offset);

#endif
