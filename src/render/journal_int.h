/*
 * journal_int.h - what the reader and the writer of journals share.
 */
#ifndef MURAL_JOURNAL_INT_H
#define MURAL_JOURNAL_INT_H

#include "render/render_int.h"

enum {
    JOURNAL_FORMAT = 1,
    JOURNAL_HASH_DIGITS = 16,
    /* The longest is a plan: a prompt whose bytes all need escapes, and some paths. */
    JOURNAL_LINE_MAX_BYTES = 256 * 1024
};
static const uint64_t JOURNAL_FILE_MAX_BYTES = UINT64_C(1) << 32;

/* What a good record makes of the facts. */
void journal_set_guide(struct journal_facts *facts, const struct journal_guide *guide);
void journal_set_tile(struct journal_facts *facts, uint32_t number, enum tile_status status,
                      uint64_t hash);
void journal_set_finished(struct journal_facts *facts, uint64_t bytes, uint64_t hash);
int  journal_set_again(struct journal_facts *facts, uint32_t number,
                       const struct journal_again *again, struct err *err);

#endif
