/*
 * host_read.h - matrices of the host on their way to a machine, as bytes of another type.
 *
 * Private to backend/.  Every byte goes through os.map_read: a file that was cut is a status.
 */
#ifndef MURAL_HOST_READ_H
#define MURAL_HOST_READ_H

#include "base/base.h"
#include "kernels/kernels.h"

/* Elements [first, first + count) of `source`, row after row, packed into out as `dtype` (f32, bf16
 * or f16).  0 or errno. */
int host_read_range(struct matrix source, int64_t first, int64_t count, enum dtype dtype,
                    void *out);
/* All of `source`, packed, by `threads` threads (0: as many as OpenMP gives).  0 or errno. */
int host_read(struct matrix source, enum dtype dtype, void *out, uint32_t threads);

#endif
