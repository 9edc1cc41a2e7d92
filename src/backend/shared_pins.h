/*
 * shared_pins.h - bytes that several processes want in the host's memory, there once.
 *
 * Private to backend/.  Workers that paint with one model each want the same weights pinned; here
 * the first one reads them, and the others find them read.  Knows neither CUDA nor weights: bytes
 * have a name and a length, and whoever comes first fills them.
 *
 * Read next: shared_pins.c; parcels.c, which names and fills.
 */
#ifndef MURAL_SHARED_PINS_H
#define MURAL_SHARED_PINS_H

#include "base/base.h"

struct shared_pins;

/* On a file without a name that every process of the job has as `fd`: all zeros at first, of a
 * length that nobody can change, far longer than what it will hold.  The descriptor is borrowed.
 * NULL when it is 0, is no such file or cannot be mapped, of which a line of the log tells: the
 * process is then on its own. */
struct shared_pins *shared_pins_open(int fd);
void                shared_pins_close(struct shared_pins *pins); /* not what was taken */

struct shared_pins_request {
    uint64_t name; /* whoever names the same fills in the same bytes */
    uint64_t bytes;
    bool     may_make; /* the host has room for them; false: only if somebody asked before */
    /* Fills x_out [bytes]; 0 or a status. */
    int (*fill)(void *user, void *x_out);
    void *user;
};

/* The bytes, mapped, in *memory_out; while another process fills them it is waited for, and when
 * that dies this one fills them.  *made_out: this process did.  Returns what `fill` returned; then,
 * and when they are not to be had here, *memory_out is NULL. */
int  shared_pins_take(struct shared_pins *pins, const struct shared_pins_request *request,
                      void **memory_out, bool *made_out);
void shared_pins_give(void *memory, uint64_t bytes); /* unmaps; others still find them */

#endif
