/*
 * clip_tokenizer.c - CLIP's byte-level BPE: a prompt in, ids of the text encoder out.
 *
 * Owns the way from text to words to symbols to ids.  Knows nothing of the encoder, and of files
 * only that clip_tokenizer_load.c has read them.
 *
 * The order is the reference's fast tokenizer's: literals that are looked for in raw text, normal
 * text, literals that are looked for in normal text, words, symbols, merges.
 *
 * Read next: clip_words.c, which makes the words; clip.c, which takes the ids.
 */
#include "engine/clip_tokenizer_int.h"

/* -------------------------------------------------------------------------------- the table */

uint64_t clip_tokenizer_pair(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

struct clip_merge *clip_tokenizer_slot(const struct clip_tokenizer *tokenizer, uint64_t pair)
{
    uint64_t at = (pair * UINT64_C(0x9E3779B97F4A7C15)) >> 20;

    for (;; at++) {
        struct clip_merge *slot = &tokenizer->merges[at & (tokenizer->slots - 1)];
        if (slot->id < 0 || slot->pair == pair) return slot;
    }
}

void clip_tokenizer_close(struct clip_tokenizer *tokenizer)
{
    if (tokenizer == NULL) return;
    token_rules_close(tokenizer->rules);
    os_free(tokenizer->merges);
    os_free(tokenizer);
}

uint32_t clip_tokenizer_max(const struct clip_tokenizer *tokenizer)
{
    return tokenizer->max;
}

int32_t clip_tokenizer_id_limit(const struct clip_tokenizer *tokenizer)
{
    return tokenizer->id_limit;
}

/* ------------------------------------------------------------------------------------ merging */

struct symbol {
    int32_t id;            /* -1: merged into the one before */
    int32_t before, after; /* places of the neighbours; -1: none */
};

/* A merge that was possible when it was noted; it may have expired since. */
struct candidate {
    uint32_t rank;
    int32_t  at; /* place of its left symbol */
    int32_t  id;
};

/* Ids found so far. */
struct output {
    int32_t *ids;
    uint32_t count, room;
    int32_t  end_id;
};

/* False when nothing after this can matter: the room is used up, or this was an end. */
static bool put(struct output *output, int32_t id)
{
    if (id == output->end_id) output->room = output->count;
    if (output->count < output->room) output->ids[output->count++] = id;
    return output->count < output->room;
}

struct work {
    const struct clip_tokenizer *tokenizer;
    struct output                output;
    struct symbol               *symbols; /* [bytes of the longest word]                        */
    struct candidate            *heap;    /* [3 * that]: each pair once, and two per merge      */
    size_t                       heap_count;
};

static bool goes_first(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* Notes the merge of the symbol at `at` with the one after it, if there is such a merge. */
static void heap_add(struct work *work, int32_t at)
{
    const struct symbol     *symbol = &work->symbols[at];
    const struct clip_merge *merge;
    struct candidate         added;
    size_t                   place = work->heap_count;

    if (symbol->after < 0) return;
    merge = clip_tokenizer_slot(work->tokenizer,
                                clip_tokenizer_pair(symbol->id, work->symbols[symbol->after].id));
    if (merge->id < 0) return;
    added = (struct candidate){merge->rank, at, merge->id};
    while (place > 0 && goes_first(&added, &work->heap[(place - 1) / 2])) {
        work->heap[place] = work->heap[(place - 1) / 2];
        place = (place - 1) / 2;
    }
    work->heap[place] = added;
    work->heap_count++;
}

static struct candidate heap_take(struct work *work)
{
    struct candidate first = work->heap[0];
    struct candidate moved = work->heap[--work->heap_count];
    size_t           place = 0;

    for (;;) {
        size_t child = 2 * place + 1;
        if (child >= work->heap_count) break;
        if (child + 1 < work->heap_count && goes_first(&work->heap[child + 1], &work->heap[child]))
            child++;
        if (!goes_first(&work->heap[child], &moved)) break;
        work->heap[place] = work->heap[child];
        place = child;
    }
    work->heap[place] = moved;
    return first;
}

static void apply(struct work *work, const struct candidate *candidate)
{
    struct symbol           *left = &work->symbols[candidate->at];
    struct symbol           *right;
    const struct clip_merge *merge;

    if (left->id < 0 || left->after < 0) return;
    right = &work->symbols[left->after];
    merge = clip_tokenizer_slot(work->tokenizer, clip_tokenizer_pair(left->id, right->id));
    if (merge->id != candidate->id) return;
    left->id = candidate->id;
    right->id = -1;
    left->after = right->after;
    if (left->after >= 0) work->symbols[left->after].before = candidate->at;
    if (left->before >= 0) heap_add(work, left->before);
    heap_add(work, candidate->at);
}

static bool encode_word(struct work *work, const char *word, size_t bytes)
{
    bool more = true;

    for (size_t i = 0; i < bytes; i++) {
        bool last = i + 1 == bytes;
        work->symbols[i] = (struct symbol){work->tokenizer->byte_ids[last][(uint8_t)word[i]],
                                           (int32_t)i - 1, last ? -1 : (int32_t)i + 1};
    }
    work->heap_count = 0;
    for (size_t i = 0; i + 1 < bytes; i++)
        heap_add(work, (int32_t)i);
    while (work->heap_count > 0) {
        struct candidate candidate = heap_take(work);
        apply(work, &candidate);
    }
    for (int32_t i = 0; i >= 0 && more; i = work->symbols[i].after)
        more = put(&work->output, work->symbols[i].id);
    return more;
}

/* ------------------------------------------------------------------------------------- encode */

/* Text between two literals of the second kind. */
static bool encode_words(struct work *work, const char *text, size_t bytes)
{
    struct clip_words words = {
        .text = text, .bytes = bytes, .cuts_specials = work->tokenizer->cuts_specials};
    const char *word = NULL;
    size_t      word_bytes = 0;

    while (clip_words_next(&words, &word, &word_bytes))
        if (!encode_word(work, word, word_bytes)) return false;
    return true;
}

/* Text between two literals of the first kind.  *more_out: whether later text can matter. */
static int encode_span(bool *more_out, struct work *work, const char *text, size_t bytes,
                       struct err *err)
{
    const struct token_rules   *rules = work->tokenizer->rules;
    const struct token_literal *literal;
    int                         rc = ERR_OK;
    char                       *normal = NULL;
    void                       *symbols = NULL, *heap = NULL;
    size_t                      from = 0, start = 0;
    bool                        more = true;

    TRY(clip_words_normalise(&normal, &bytes, text, bytes, err));
    TRY(os_alloc(&symbols, bytes, sizeof *work->symbols, "the prompt", err));
    TRY(os_alloc(&heap, 3 * (uint64_t)bytes, sizeof *work->heap, "the prompt", err));
    work->symbols = symbols;
    work->heap = heap;
    do {
        literal = token_rules_find(&start, rules, normal, bytes, from, true);
        more = encode_words(work, normal + from, start - from);
        if (literal == NULL || !more) break;
        more = put(&work->output, literal->id);
        from = start + literal->bytes;
    } while (more);
    *more_out = more;
out:
    os_free(normal);
    os_free(symbols);
    os_free(heap);
    return rc;
}

int clip_tokenizer_encode(const struct clip_tokenizer *tokenizer, const char *text,
                          int32_t *ids_out, uint32_t *count_out, struct err *err)
{
    const struct token_literal *literal = NULL;
    int                         rc = ERR_OK;
    size_t                      bytes = 0, from = 0, start = 0;
    bool                        more = true;
    struct work                 work = {.tokenizer = tokenizer};

    ids_out[0] = tokenizer->start_id;
    work.output = (struct output){ids_out, 1, tokenizer->max - 1, tokenizer->end_id};
    TRY(token_rules_check_prompt(&bytes, text, err));
    do {
        literal = token_rules_find(&start, tokenizer->rules, text, bytes, from, false);
        TRY(encode_span(&more, &work, text + from, start - from, err));
        if (literal == NULL || !more) break;
        more = put(&work.output, literal->id);
        from = start + literal->bytes;
    } while (more);
    must(work.output.count < tokenizer->max);
    ids_out[work.output.count] = tokenizer->end_id;
    *count_out = work.output.count + 1;
out:
    return rc;
}
