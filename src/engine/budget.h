/*
 * budget.h - who gets how much of a GPU: decided once, from numbers, before a weight is read.
 *
 * Private to engine/.  Facts come from dry runs (measure.c); the decision is pure (budget.c); what
 * is decided is carried out by reserve.c and by whoever moves weights.
 *
 * Nothing that is decided here changes a pixel, but for one rung that wants consent: text encoders
 * on the CPU round otherwise than on a GPU.
 */
#ifndef MURAL_BUDGET_H
#define MURAL_BUDGET_H

#include "engine/engine.h"

enum {
    BLOCKS_MAX = 128,      /* doubles and singles of a transformer                */
    BUDGET_TILES_MAX = 16, /* tiles that advance together                         */
    BUDGET_CHUNKS_MAX = 4, /* ways to run an MLP: whole, in 2, 4, 8 runs of rows  */
    BUDGET_STRIPS_MAX = 5  /* heights of the VAE's strips: vae_limit's levels     */
};

/* What was decided; all bytes of one device. */
struct budget {
    bool     streamed[BLOCKS_MAX]; /* by block, doubles first, then singles; false: stays */
    uint32_t block_count, streamed_count;
    uint64_t resident_bytes; /* of blocks that stay */
    uint64_t ring_bytes;     /* both slots; 0: nothing streams */
    uint64_t pinned_bytes;   /* host memory for streamed blocks; less than theirs: the rest comes
                                through windows */
    uint32_t tiles_per_pass;
    uint64_t scratch_bytes, fixed_bytes, ends_bytes; /* arena; libraries; VAE, vectors, first and
                                                        last layers */
    uint64_t streamed_bytes;
    uint64_t slot_bytes[2]; /* of the ring: each as large as its own largest visitor.  Block of
                               rank r among the streamed ones visits slot r % 2 */
    uint32_t mlp_level;     /* index of predict_bytes */
    uint32_t strip_level;   /* for vae_limit; 0: highest and fastest */
    bool     text_on_cpu;
};

/* What there is and what things take, of one model, one machine and some sizes of tiles. */
struct budget_facts {
    struct engine_memory allowed; /* vram_bytes: the cap, or what is free; never 0 */
    uint64_t             fixed_bytes, ends_bytes;
    uint32_t             block_count;
    uint64_t             block_bytes[BLOCKS_MAX];
    double               block_flop[BLOCKS_MAX]; /* for one tile, of the largest size */
    uint32_t             tiles_most; /* 1..BUDGET_TILES_MAX: as many can be ready together */
    uint32_t             mlp_levels; /* 1..BUDGET_CHUNKS_MAX */
    uint64_t predict_bytes[BUDGET_CHUNKS_MAX][BUDGET_TILES_MAX + 1]; /* [level][tiles]: scratch */
    uint32_t strip_levels;                                           /* 1..BUDGET_STRIPS_MAX   */
    uint64_t coder_bytes[BUDGET_STRIPS_MAX]; /* scratch to encode and decode */
    uint64_t text_bytes;                     /* scratch of a prompt; beside a tile's only where
                                                allowed.expandable is not set                  */
    bool     text_may_move;                  /* consent: see above                             */
    uint64_t host_bytes, host_free_bytes;    /* RAM; what this process may still take of it    */
    double   link_bytes_per_second;          /* host to GPU; 0: not known                      */
    double   disk_bytes_per_second;          /* files to host; 0: not known                    */
    double   flop_per_second;                /* of the GPU; 0: not known                       */
};

/* The best that these facts allow: the fewest seconds a tile and step, then the fewest tiles
 * together, then the fewest bytes streamed, then the highest strips.  keep_share is what more tiles
 * must leave in place, and what the ladder gives up last.  ERR_DEVICE_MEM in one sentence: what is
 * short by how much, and what would help. */
int budget_make(struct budget *out, const struct budget_facts *facts, struct err *err);

/* All that the device gives: what is mapped in steps of BUDGET_GRANULE_BYTES, and the libraries. */
#define BUDGET_GRANULE_BYTES ((uint64_t)2 << 20)
uint64_t budget_device_bytes(const struct budget *budget, const struct budget_facts *facts);

/* Seconds of one step of tiles_per_pass tiles if nothing but arithmetic, nothing but the link, or
 * nothing but the disk took time, from which comes what is not pinned; 0 where a rate is not known.
 * A step takes the longest of the three. */
double budget_compute_seconds(const struct budget *budget, const struct budget_facts *facts);
double budget_link_seconds(const struct budget *budget, const struct budget_facts *facts);
double budget_disk_seconds(const struct budget *budget, const struct budget_facts *facts);

/* The ladder, for a request that fails after all: in this order. */
enum budget_rung {
    RUNG_REUSE = 0, /* memory that the pool has for nobody: pool_trim's     */
    RUNG_DEMOTE,    /* fewer blocks stay, down to keep_share                */
    RUNG_CHUNK,     /* the MLP in runs of rows                              */
    RUNG_TILES,     /* fewer tiles together                                 */
    RUNG_STRIPS,    /* the VAE in lower strips                              */
    RUNG_KEEP,      /* fewer blocks stay than keep_share asks for           */
    RUNG_ENCODERS,  /* text encoders on the CPU; wants consent              */
    RUNG_COUNT
};
const char *budget_rung_name(enum budget_rung rung); /* "demote resident blocks" */

/* The smallest step down this rung: *next is `now` changed by it, and the bytes that the device
 * gets back are returned.  0: there is none, and *next is `now`. */
uint64_t budget_step(struct budget *next, const struct budget *now,
                     const struct budget_facts *facts, enum budget_rung rung);

/* Steps down the ladder until `bytes` are gained or it ends; gained_out[rung] says by what.
 * Returns the sum, which may be less. */
uint64_t budget_relieve(struct budget *budget, const struct budget_facts *facts, uint64_t bytes,
                        uint64_t gained_out[RUNG_COUNT]);

/* outlook.c: what a card and its host have, for facts of what is needed. */
void budget_allow(struct budget_facts *facts, const struct engine_memory *allowed,
                  const struct engine_card *card);

struct engine;
/* outlook.c: the decision for an engine that is about to be reserved, on its own GPU as it is now;
 * of a machine without a limit of its own, memory->vram_bytes is one.  The engine keeps every block
 * while this measures. */
int engine_decide(struct budget *out, struct budget_facts *facts_out, const struct engine *engine,
                  const struct engine_memory *memory, const struct engine_size *sizes,
                  size_t size_count, struct err *err);

/* measure.c: the facts of an engine, dry or not, for these sizes; `tiles` of a size is the most
 * that can be ready together.  The caller fills in allowed, host_*, rates and consent. */
int measure_budget(struct budget_facts *out, const struct engine *engine,
                   const struct engine_size *sizes, size_t size_count, struct err *err);

/* blocks.c: bytes of a block's matrices as they were kept, and FLOP of one for a tile. */
struct transformer;
struct backend;
uint32_t blocks_count(const struct transformer *transformer);
uint64_t blocks_bytes(const struct transformer *transformer, uint32_t block);
/* flop_out[blocks_count]; `backend` is dry, and gives the arithmetic of one block of each kind. */
void blocks_flop(const struct transformer *transformer, struct backend *backend,
                 const struct engine_size *size, const struct engine_facts *facts,
                 double *flop_out);

#endif
