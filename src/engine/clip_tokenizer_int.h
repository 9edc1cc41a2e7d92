/*
 * clip_tokenizer_int.h - CLIP's tokenizer as the file that reads it and the one that uses it share
 * it.
 */
#ifndef MURAL_CLIP_TOKENIZER_INT_H
#define MURAL_CLIP_TOKENIZER_INT_H

#include "engine/engine_int.h"
#include "engine/tokenizer_int.h"

enum { CLIP_BYTE_SYMBOLS = 256 };

struct clip_merge {
    uint64_t pair; /* left id << 32 | right id           */
    uint32_t rank; /* lower ranks are merged first        */
    int32_t  id;   /* of the product; -1: this slot is free */
};

struct clip_tokenizer {
    struct token_rules *rules;
    struct clip_merge  *merges; /* [slots], open addressing; slots is a power of two    */
    uint64_t            slots;
    int32_t             byte_ids[2][CLIP_BYTE_SYMBOLS]; /* [at the end of its word?][byte]   */
    int32_t             start_id, end_id, id_limit;
    uint32_t            max;
    bool                cuts_specials; /* the pattern knows "<|endoftext|>", see clip_words.c */
};

/* Two ids as the key of the table. */
uint64_t clip_tokenizer_pair(int32_t left, int32_t right);
/* The slot of this pair, or the free slot where it belongs. */
struct clip_merge *clip_tokenizer_slot(const struct clip_tokenizer *tokenizer, uint64_t pair);

#endif
