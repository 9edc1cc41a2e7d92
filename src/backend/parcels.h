/*
 * parcels.h - weights that visit: what each parcel is made of, and which slot it goes to.
 *
 * Private to backend/.  Parcel p visits slot p % 2, always: so every weight has one address for as
 * long as the backend is open, whether its bytes are there or not.
 *
 * Read next: parcels.c, then backend_walled.c and cuda_ring.c, which move the bytes.
 */
#ifndef MURAL_PARCELS_H
#define MURAL_PARCELS_H

#include "backend/backend.h"

enum { PARCEL_PIECES_MAX = 32, PARCEL_SLOTS = 2 };

/* One matrix of a parcel: contiguous, at `offset` of the slot. */
struct parcel_piece {
    struct matrix source; /* the host's, of any type and alignment */
    enum dtype    dtype;  /* in the slot                           */
    uint64_t      offset, bytes;
};
struct parcel {
    struct parcel_piece pieces[PARCEL_PIECES_MAX];
    uint32_t            piece_count;
    void *host;   /* the bytes as in the slot, the machine's own; NULL: in pieces only */
    bool  shared; /* `host` is mapped, and other processes have it too                 */
};
struct parcels {
    struct parcel       parcel[PARCELS_MAX];
    struct parcel_sizes sizes;               /* of those that were begun                        */
    bool                open;                /* between begin and end                           */
    char               *slots[PARCEL_SLOTS]; /* addresses of the machine; of a dry one, nobody's */
    uint64_t            slot_bytes[PARCEL_SLOTS];
    int32_t             holds[PARCEL_SLOTS]; /* whose bytes a slot has, or gets next; -1: none  */
    struct shared_pins *pins;                /* shared with other processes; NULL: nothing is   */
};

/* Of the largest parcel that visits this slot. */
uint64_t parcels_slot_bytes(const struct parcel_sizes *sizes, uint32_t slot);

/* Nothing is begun and no slot placed. */
int  parcels_open(struct parcels **out, struct err *err);
void parcels_close(struct parcels *parcels); /* not what `host` points to */

/* From now on, bytes that other processes may want too are looked for in the file `fd`; 0: none. */
void parcels_share(struct parcels *parcels, int fd);
void parcels_share_no_more(struct parcels *parcels); /* what was taken stays */
/* Sets `host` to the parcel's bytes in shared memory; it stays NULL where they are not to be had
 * there.  `may_make`: the host has room for them, if nobody has them yet; *made_out: it took that
 * room.  0 or errno, as parcels_read.  A parcel has the same bytes as another process's when both
 * are made of the same files' bytes in the same way, whichever their indices are. */
int parcels_take_shared(struct parcels *parcels, uint32_t index, bool may_make, bool *made_out);
/* Unmaps it, if it was taken so. */
void parcels_give_shared(struct parcels *parcels, uint32_t index);

/* The next piece of the open parcel; the matrix as it will lie in the slot. */
struct matrix parcels_add(struct parcels *parcels, struct matrix source, enum dtype dtype);
/* Which parcel visits the slot of `index` after it; itself when no other does. */
uint32_t parcels_after(const struct parcels *parcels, uint32_t index);
/* Bytes [first, first + bytes) of the parcel, as in its slot, gaps undefined.  By `threads` threads
 * (0: as many as OpenMP gives).  0 or errno: a file that was cut is EFAULT, and no signal. */
int parcels_read(const struct parcel *parcel, uint64_t first, uint64_t bytes, void *bytes_out,
                 uint32_t threads);

#endif
