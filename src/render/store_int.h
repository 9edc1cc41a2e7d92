/*
 * store_int.h - what is kept beside an output: the journal, its lock, raw samples; for the files of
 * render/ only.
 */
#ifndef MURAL_STORE_INT_H
#define MURAL_STORE_INT_H

#include "render/render.h"

struct meter;

/* -------------------------------------------------------------- journal.c, journal_read.c */

enum tile_status { TILE_MISSING = 0, TILE_DONE, TILE_FILLED, TILE_FAILED };

struct tile_fact {
    enum tile_status status;
    uint64_t         hash;     /* of the samples of a tile that is done or filled */
    bool             has_seed; /* painted, or to be painted, with `seed` */
    uint64_t         seed;
    char            *prompt; /* the same, owned; NULL: the poster's */
};
struct journal_guide {
    int32_t  w, h;
    uint64_t hash;
};
/* What all good records together say. */
struct journal_facts {
    bool                 has_guide, finished;
    struct journal_guide guide;
    uint64_t             output_hash, output_bytes; /* as last told, also where tiles were forgotten
                                                       since; bytes 0: it never was */
    uint64_t          earlier_hash, earlier_bytes;  /* the same of another file, told before it */
    struct tile_fact *tiles;                        /* [tile_count], by number - 1 */
    uint32_t          tile_count;
};
int  journal_facts_init(struct journal_facts *facts, uint32_t tile_count, struct err *err);
void journal_facts_fini(struct journal_facts *facts);

struct journal_text {
    const char *data;
    size_t      bytes;
    const char *path; /* for sentences */
};
struct journal_end {
    size_t   bytes; /* of good lines */
    uint64_t hash;  /* of the last one */
};
/* Everything up to the first bad line.  *plan_out (json_decref) is NULL when not even the first
 * line is good.  facts == NULL: read no further than that.  ERR_FORMAT: a good line of another kind
 * of file, or of a newer format. */
int journal_parse(struct journal_end *end_out, json_t **plan_out, struct journal_facts *facts,
                  const struct journal_text *text, struct err *err);
/* The first record of a file, which stays as it is; NULL when there is none.  `facts`, initialised
 * and maybe NULL, get what the others say. */
int journal_peek(json_t **plan_out, struct journal_facts *facts, const char *path, struct err *err);
/* A hash of 16 hex digits out of a record. */
bool journal_get_hash(uint64_t *out, const json_t *record, const char *key);

struct journal;
/* Go on with a file whose first record is good; what follows the last good line is cut off. */
int journal_open(struct journal **out, const char *path, uint32_t tile_count, struct err *err);
/* Begin a file with `plan`, which gets "is" and "format". */
int  journal_create(struct journal **out, const char *path, uint32_t tile_count, json_t *plan,
                    struct err *err);
void journal_close(struct journal *journal);
/* Kept up to date by what is added.  A tile whose file is damaged may be set to missing. */
struct journal_facts *journal_facts(struct journal *journal);

struct journal_tile {
    uint32_t                 number, attempts;
    uint64_t                 hash;
    double                   encode_seconds, step_seconds, decode_seconds, store_seconds;
    const struct memory_use *memory; /* NULL: not known */
};
struct journal_again {
    bool        has_seed;
    uint64_t    seed;
    const char *prompt; /* NULL: the poster's */
};
/* Each is on the disk when it returns.  The bytes that it speaks of must be before. */
int journal_add_guide(struct journal *journal, const struct journal_guide *guide, struct err *err);
int journal_add_tile(struct journal *journal, const struct journal_tile *tile, struct err *err);
int journal_add_filled(struct journal *journal, uint32_t number, uint64_t hash, struct err *err);
int journal_add_failed(struct journal *journal, uint32_t number, uint32_t attempts, const char *why,
                       struct err *err);
int journal_add_again(struct journal *journal, uint32_t number, const struct journal_again *again,
                      struct err *err);
int journal_add_finished(struct journal *journal, uint64_t bytes, uint64_t hash, struct err *err);

/* ------------------------------------------------------------------------------- lock.c */

/* ERR_USAGE: another run has it.  Makes the folder when there is none. */
struct lock;
int  lock_take(struct lock **out, const char *folder, const char *output, struct err *err);
void lock_release(struct lock *lock, bool remove); /* NULL is fine; remove: the file goes too */

/* ------------------------------------------------------------------------------- spool.c */

/* Raw samples: the guide, and finished tiles, one file each. */
struct spool;
int  spool_open(struct spool **out, const char *folder, const struct grid *grid, struct err *err);
void spool_close(struct spool *spool);
void spool_clear(const struct spool *spool); /* removes all of them */
uint64_t spool_tile_bytes(const struct grid *grid);
int      spool_put(struct spool *spool, uint32_t number, const uint16_t *samples, struct err *err);
/* Rows [first, first + count) of a tile. */
int spool_get(struct spool *spool, uint32_t number, int32_t first, int32_t count,
              uint16_t *samples_out, struct err *err);
/* Is the tile there, with this content? */
bool spool_holds(struct spool *spool, uint32_t number, uint64_t hash);
int  spool_put_guide(struct spool *spool, const struct image *guide, struct err *err);
/* ERR_FORMAT: it is not what the journal says. */
int spool_get_guide(struct image *out, struct spool *spool, const struct journal_guide *guide,
                    struct err *err);

/* ------------------------------------------------------------------------------- store.c */

/* The folder beside the output.  Owned by the render thread; a crew takes turns. */
struct store {
    const struct render_request *request;
    struct lock                 *lock;
    struct spool                *spool;
    struct journal              *journal;
    bool                         fresh;    /* begun by this run */
    bool                         complete; /* the output is there, as the journal says */
    bool                         replaces; /* a file under the output's name may be replaced */
    char                         folder[1100], journal_path[1200];
};
int store_open(struct store **out, const struct render_request *request, struct meter *meter,
               struct err *err);
/* remove: the folder goes.  NULL is fine. */
void     store_close(struct store *store, bool remove);
uint32_t store_count(const struct store *store, enum tile_status status);
/* Note the tiles that are to be painted again (request->again). */
int store_forget(struct store *store, struct err *err);

#endif
