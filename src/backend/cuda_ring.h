/*
 * cuda_ring.h - parcels on a GPU: two slots, one stream that copies into them, and where the bytes
 * come from.
 *
 * Private to backend/, and only in builds that have CUDA.  One thread uses a ring; a second one,
 * the reader, exists when some parcels have no pinned memory of their own.
 *
 * Read next: cuda_ring.c, cuda_windows.c.
 */
#ifndef MURAL_CUDA_RING_H
#define MURAL_CUDA_RING_H

#include "backend/backend_int.h"

#include <cuda_runtime_api.h>

/* What a copy into a slot needs to know. */
struct ring_track {
    struct parcels *parcels;
    int32_t         device;
    uint64_t        window_bytes; /* a multiple of 64 */
    cudaStream_t    copies;
    cudaEvent_t     ready[PARCEL_SLOTS]; /* what was copied last is there       */
    cudaEvent_t     freed[PARCEL_SLOTS]; /* what was used last is used no more  */
};

/* One parcel from its pinned memory into its slot, when the slot is free.  0 or a status. */
int ring_copy(const struct ring_track *track, uint32_t index);

struct ring;
/* Takes two slots on the device; *out is NULL when options name no parcels. */
int  ring_open(struct ring **out, struct parcels *parcels, const struct backend_options *options,
               struct err *err);
void ring_close(struct ring *ring);
bool ring_holds(const struct ring *ring, const void *data);
/* See struct backend_ops; statuses of CUDA, STATUS_HOST or those of STATUS_READ. */
int ring_settle(struct ring *ring, uint32_t index);
int ring_arrive(struct ring *ring, uint32_t index, cudaStream_t stream);
int ring_depart(struct ring *ring, uint32_t index, cudaStream_t stream);
/* After the stream has come to its end: adds what was copied and waited for to `link`, starts the
 * first copies when everything is loaded, and says what went wrong with copies. */
int ring_wait(struct ring *ring, struct backend_link *link);

/* ------------------------------------------------------------------ windows (cuda_windows.c) */

struct windows;
/* Pins the windows and starts the reader.  0 or a status, STATUS_HOST where the host is short of
 * memory; *out is then as it was. */
int  windows_open(struct windows **out, const struct ring_track *track);
void windows_close(struct windows *windows);
/* Copy parcel `index` when all that was asked before is copied.  Returns a ticket. */
uint64_t windows_order(struct windows *windows, uint32_t index);
/* Returns when the copies of the ticket are on the stream, or with the reader's failure: all orders
 * are then forgotten, and the reader ready for others. */
int windows_await(struct windows *windows, uint64_t ticket);

#endif
