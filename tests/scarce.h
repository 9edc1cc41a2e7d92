/*
 * scarce.h - memory that runs out: os.calloc = scarce_calloc, for tests that fail every allocation
 * in turn.
 */
#ifndef MURAL_SCARCE_H
#define MURAL_SCARCE_H

#include <stdlib.h>

static int scarce_calls; /* that succeed yet */

static void *scarce_calloc(size_t count, size_t bytes)
{
    return scarce_calls-- > 0 ? calloc(count, bytes) : NULL;
}

#endif
