/*
 * parcels.c - what each parcel is made of, and its bytes read from where the weights are.
 *
 * Owns the list of pieces.  Knows no machine: where slots are and when bytes move is theirs.
 *
 * Read next: host_read.c; shared_pins.c.
 */
#include "backend/parcels.h"

#include "backend/host_read.h"
#include "backend/shared_pins.h"

#include <omp.h>

/* As arenas align: neighbours of one size stay neighbours. */
enum { ALIGNMENT = 64 };

/* What one thread reads at a time. */
static const uint64_t CHUNK_BYTES = 1u << 20;

uint64_t parcels_slot_bytes(const struct parcel_sizes *sizes, uint32_t slot)
{
    uint64_t most = 0;

    for (uint32_t i = slot; i < sizes->count; i += PARCEL_SLOTS)
        most = max_u64(most, sizes->bytes[i]);
    return most;
}

uint64_t backend_ring_bytes(const struct parcel_sizes *sizes)
{
    uint64_t sum = 0;

    for (uint32_t slot = 0; slot < PARCEL_SLOTS; slot++)
        sum += parcels_slot_bytes(sizes, slot);
    return sum;
}

int parcels_open(struct parcels **out, struct err *err)
{
    int rc = ERR_OK;

    TRY(os_alloc((void **)out, 1, sizeof **out, "a list of weights", err));
    for (int slot = 0; slot < PARCEL_SLOTS; slot++)
        (*out)->holds[slot] = -1;
out:
    return rc;
}

void parcels_close(struct parcels *parcels)
{
    if (parcels == NULL) return;
    parcels_share_no_more(parcels);
    os_free(parcels);
}

struct matrix parcels_add(struct parcels *parcels, struct matrix source, enum dtype dtype)
{
    uint32_t             index = parcels->sizes.count;
    struct parcel       *parcel = &parcels->parcel[index];
    struct parcel_piece *piece = &parcel->pieces[parcel->piece_count];
    uint64_t             bytes = 0, end = 0;
    struct matrix        target = source;

    must(parcels->open && parcel->piece_count < PARCEL_PIECES_MAX);
    must(source.rows > 0 && source.cols > 0);
    must(mul_u64((uint64_t)source.rows, (uint64_t)source.cols, &bytes));
    must(mul_u64(bytes, dtype_bytes(dtype), &bytes) && bytes < UINT64_MAX / 8);
    *piece = (struct parcel_piece){
        .source = source, .dtype = dtype, .offset = parcels->sizes.bytes[index], .bytes = bytes};
    must(add_u64(piece->offset, (uint64_t)round_up_i64((int64_t)bytes, ALIGNMENT), &end));
    must(end <= parcels->slot_bytes[index % PARCEL_SLOTS]);
    parcel->piece_count++;
    parcels->sizes.bytes[index] = end;
    target.data = parcels->slots[index % PARCEL_SLOTS] + piece->offset;
    target.dtype = dtype;
    target.ld = source.cols;
    return target;
}

uint32_t parcels_after(const struct parcels *parcels, uint32_t index)
{
    uint32_t next = index + PARCEL_SLOTS;

    return next < parcels->sizes.count ? next : index % PARCEL_SLOTS;
}

/* Both ends of the range are multiples of every element's size. */
static int read_range(const struct parcel *parcel, uint64_t first, uint64_t bytes, char *out)
{
    const uint64_t end = first + bytes;
    int            status = 0;

    for (uint32_t i = 0; i < parcel->piece_count && status == 0; i++) {
        const struct parcel_piece *piece = &parcel->pieces[i];
        const uint64_t             each = dtype_bytes(piece->dtype);
        const uint64_t             from = max_u64(first, piece->offset);
        const uint64_t             piece_end = piece->offset + piece->bytes,
                       to = piece_end < end ? piece_end : end;

        if (from >= to) continue;
        status = host_read_range(piece->source, (int64_t)((from - piece->offset) / each),
                                 (int64_t)((to - from) / each), piece->dtype, out + (from - first));
    }
    return status;
}

int parcels_read(const struct parcel *parcel, uint64_t first, uint64_t bytes, void *bytes_out,
                 uint32_t threads)
{
    const int64_t chunks = ceil_div_i64((int64_t)bytes, (int64_t)CHUNK_BYTES);
    const int     team = threads > 0 ? (int)threads : omp_get_max_threads();
    int           status = 0;

    must(first % ALIGNMENT == 0);
#pragma omp parallel for schedule(dynamic) num_threads(team) reduction(max : status)
    for (int64_t i = 0; i < chunks; i++) {
        uint64_t at = (uint64_t)i * CHUNK_BYTES;
        uint64_t count = bytes - at < CHUNK_BYTES ? bytes - at : CHUNK_BYTES;
        int      now = read_range(parcel, first + at, count, (char *)bytes_out + at);

        if (now > status) status = now;
    }
    return status;
}

/* ------------------------------------------------------------------------------------ sharing */

void parcels_share(struct parcels *parcels, int fd)
{
    must(parcels->pins == NULL);
    parcels->pins = shared_pins_open(fd);
}

void parcels_share_no_more(struct parcels *parcels)
{
    shared_pins_close(parcels->pins);
    parcels->pins = NULL;
}

/* Which bytes a piece has, and where in the parcel. */
struct piece_name {
    uint64_t source, rows, cols, ld, dtypes, offset;
};

/* False: some bytes are in no file, so that no other process can know of them. */
static bool name_of(uint64_t *name_out, const struct parcel *parcel)
{
    struct piece_name names[PARCEL_PIECES_MAX];

    for (uint32_t i = 0; i < parcel->piece_count; i++) {
        const struct parcel_piece *piece = &parcel->pieces[i];
        const struct matrix       *source = &piece->source;

        names[i] = (struct piece_name){.rows = (uint64_t)source->rows,
                                       .cols = (uint64_t)source->cols,
                                       .ld = (uint64_t)source->ld,
                                       .dtypes = (uint64_t)source->dtype << 8 | piece->dtype,
                                       .offset = piece->offset};
        if (!os_map_name(&names[i].source, source->data)) return false;
    }
    *name_out = hash64(names, parcel->piece_count * sizeof names[0], 0);
    return true;
}

/* All that a fill needs. */
struct filling {
    const struct parcel *parcel;
    uint64_t             bytes;
};

static int fill(void *user, void *x_out)
{
    const struct filling *filling = user;
    return parcels_read(filling->parcel, 0, filling->bytes, x_out, 0);
}

int parcels_take_shared(struct parcels *parcels, uint32_t index, bool may_make, bool *made_out)
{
    struct parcel             *parcel = &parcels->parcel[index];
    struct filling             filling = {parcel, parcels->sizes.bytes[index]};
    struct shared_pins_request request = {
        .bytes = filling.bytes, .may_make = may_make, .fill = fill, .user = &filling};
    int status;

    *made_out = false;
    if (parcels->pins == NULL || filling.bytes == 0 || !name_of(&request.name, parcel)) return 0;
    status = shared_pins_take(parcels->pins, &request, &parcel->host, made_out);
    parcel->shared = parcel->host != NULL;
    return status;
}

void parcels_give_shared(struct parcels *parcels, uint32_t index)
{
    struct parcel *parcel = &parcels->parcel[index];

    if (!parcel->shared) return;
    shared_pins_give(parcel->host, parcels->sizes.bytes[index]);
    parcel->host = NULL;
    parcel->shared = false;
}
