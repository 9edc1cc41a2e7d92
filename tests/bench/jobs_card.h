/*
 * jobs_card.h - a card that is smaller than it is, and another program that takes memory of it.
 *
 * Both hold real memory of the machine under test, through the calls that its driver has.  What a
 * job is refused it is refused by the driver, and nobody but the driver knows how much there is.
 *
 * Without a GPU the driver is vmem_host: a file in memory for each pool, and no end to it.  While a
 * card is open, what all such files hold together is counted here, and one that would grow beyond
 * the card is told that there is no more (through the table of calls that tests may change).
 */
#ifndef MURAL_JOBS_CARD_H
#define MURAL_JOBS_CARD_H

#include "backend/backend.h"
#include "engine/engine.h"

#include <errno.h>
#include <string.h>

enum { CARD_PIECES_MAX = 256, CARD_FILES_MAX = 4096 };
#define CARD_GRANULE ((uint64_t)2 << 20)

/* Who holds a piece. */
enum holder { HOLDER_FILLER = 0, HOLDER_LIBRARIES, HOLDER_BALLAST, HOLDER_COUNT };

struct card {
    enum engine_machine machine;
    struct vmem         vmem;
    uint64_t            handles[CARD_PIECES_MAX], bytes[CARD_PIECES_MAX];
    enum holder         holders[CARD_PIECES_MAX];
    uint32_t            count;
    uint64_t            held[HOLDER_COUNT];
};

/* ------------------------------------------------------------------------- without a GPU */

static struct {
    struct os_calls real;
    uint64_t        total, used;
    bool            is_ours[CARD_FILES_MAX];
    uint64_t        of_file[CARD_FILES_MAX], grown[CARD_FILES_MAX];
} stand_in;

static inline bool stand_in_knows(int fd)
{
    return fd >= 0 && fd < CARD_FILES_MAX && stand_in.is_ours[fd];
}

static inline int stand_in_memfd(const char *name, unsigned flags)
{
    int fd = stand_in.real.memfd_create(name, flags);

    if (fd < 0 || fd >= CARD_FILES_MAX || strcmp(name, "mural-device") != 0) return fd;
    stand_in.is_ours[fd] = true;
    stand_in.of_file[fd] = stand_in.grown[fd] = 0;
    return fd;
}

static inline int stand_in_truncate(int fd, int64_t bytes)
{
    uint64_t more = stand_in_knows(fd) ? (uint64_t)bytes - stand_in.grown[fd] : 0;
    int      rc;

    if (more > stand_in.total - stand_in.used) {
        errno = ENOMEM;
        return -1;
    }
    rc = stand_in.real.ftruncate(fd, bytes);
    if (rc != 0 || !stand_in_knows(fd)) return rc;
    stand_in.grown[fd] += more;
    stand_in.of_file[fd] += more;
    stand_in.used += more;
    return rc;
}

static inline int stand_in_allocate(int fd, int mode, int64_t offset, int64_t bytes)
{
    if (stand_in_knows(fd)) { /* the only use of it is to give back */
        stand_in.of_file[fd] -= (uint64_t)bytes;
        stand_in.used -= (uint64_t)bytes;
    }
    return stand_in.real.fallocate(fd, mode, offset, bytes);
}

static inline int stand_in_close(int fd)
{
    if (stand_in_knows(fd)) {
        stand_in.used -= stand_in.of_file[fd];
        stand_in.is_ours[fd] = false;
    }
    return stand_in.real.close(fd);
}

static inline void stand_in_open(uint64_t bytes)
{
    memset(&stand_in, 0, sizeof stand_in);
    stand_in.real = os;
    stand_in.total = bytes;
    os.memfd_create = stand_in_memfd;
    os.ftruncate = stand_in_truncate;
    os.fallocate = stand_in_allocate;
    os.close = stand_in_close;
}

/* -------------------------------------------------------------------------------- the card */

/* `bytes`: how large it is where there is no GPU. */
static inline int card_open(struct card *card, enum engine_machine machine, uint64_t bytes,
                            struct err *err)
{
    int                   rc = ERR_OK;
    struct backend_device device;

    *card = (struct card){.machine = machine};
    card->vmem.ops = backend_vmem(machine == ENGINE_CUDA ? MACHINE_CUDA : MACHINE_WALLED);
    if (machine != ENGINE_CUDA) stand_in_open(bytes);
    if (machine == ENGINE_CUDA) TRY(backend_find_cuda(&device, 0, err)); /* and makes it current */
    TRY(card->vmem.ops->open(&card->vmem, err));
out:
    return rc;
}

static inline void card_drop(struct card *card, enum holder holder)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < card->count; i++) {
        if (card->holders[i] == holder) {
            card->vmem.ops->release(&card->vmem, card->handles[i], card->bytes[i]);
            continue;
        }
        card->handles[kept] = card->handles[i];
        card->bytes[kept] = card->bytes[i];
        card->holders[kept++] = card->holders[i];
    }
    card->count = kept;
    card->held[holder] = 0;
}

static inline void card_close(struct card *card)
{
    for (int holder = 0; holder < HOLDER_COUNT; holder++)
        card_drop(card, (enum holder)holder);
    card->vmem.ops->close(&card->vmem);
    if (card->machine != ENGINE_CUDA) os = stand_in.real;
}

/* As the driver tells everybody. */
static inline uint64_t card_free(const struct card *card)
{
    struct backend_device device;
    struct err            err = {0};

    if (card->machine != ENGINE_CUDA) return stand_in.total - stand_in.used;
    return backend_find_cuda(&device, 0, &err) == ERR_OK ? device.bytes_free : 0;
}

/* Takes `bytes`, or as much of them as there is: one large piece, then what lies between others. */
static inline void card_take(struct card *card, enum holder holder, uint64_t bytes)
{
    uint64_t   left = bytes / CARD_GRANULE * CARD_GRANULE, piece = left;
    struct err err = {0};

    while (left > 0 && piece >= CARD_GRANULE && card->count < CARD_PIECES_MAX) {
        uint64_t *handle = &card->handles[card->count];
        if (piece > left) piece = left;
        if (card->vmem.ops->create(&card->vmem, handle, piece, &err) != ERR_OK) {
            piece = piece / 2 / CARD_GRANULE * CARD_GRANULE;
            continue;
        }
        card->bytes[card->count] = piece;
        card->holders[card->count++] = holder;
        card->held[holder] += piece;
        left -= piece;
    }
}

/* All but `bytes`: a driver keeps something for itself with every piece. */
static inline void card_leave(struct card *card, uint64_t bytes)
{
    for (int pass = 0; pass < 4 && card_free(card) >= bytes + CARD_GRANULE; pass++)
        card_take(card, HOLDER_FILLER, card_free(card) - bytes);
}

#endif
