/*
 * tokenizer_int.h - what the files of the two tokenizers share; nothing else in engine/ needs it.
 *
 * token_rules.c serves both; clip_words.c belongs to clip_tokenizer*.c; t5_charsmap.c and
 * t5_spiece.c belong to t5_tokenizer.c.
 */
#ifndef MURAL_TOKENIZER_INT_H
#define MURAL_TOKENIZER_INT_H

#include "base/base.h"

enum {
    TOKEN_PATH_BYTES = 4096,
    TOKEN_ID_LIMIT = 1 << 22,    /* ids at or above it are damage; FLUX.1 has 49,408 and 32,100 */
    TOKEN_FILE_BYTES = 64 << 20, /* FLUX.1's largest tokenizer file has 2.4 MB                  */
    TOKEN_PROMPT_BYTES = 256 << 10
};

/* ----------------------------------------------------------------------------- token_rules.c */

/* A token that stands for itself wherever its text occurs, such as "</s>". */
struct token_literal {
    char   *text;
    size_t  bytes;
    int32_t id;
    bool    normalized; /* looked for after the text was normalised, not before */
};

struct token_rules;

/* Reads tokenizer_config.json and special_tokens_map.json where `folder` has them.  The list of
 * literals starts empty. */
int  token_rules_open(struct token_rules **out, const char *folder, struct err *err);
void token_rules_close(struct token_rules *rules);

/* "<folder>/<name>" into out, of TOKEN_PATH_BYTES. */
int token_rules_path(char *out, const char *folder, const char *name, struct err *err);

/* The text of the token with this role ("eos_token", ...), or `absent`.  Borrowed from rules. */
const char *token_rules_name(const struct token_rules *rules, const char *role, const char *absent);
/* model_max_length, or `absent`. */
int token_rules_max(uint32_t *out, const struct token_rules *rules, uint32_t absent,
                    struct err *err);
/* tokenizer_config.json as an object (empty when there is no such file), and its path. */
const json_t *token_rules_config(const struct token_rules *rules);
const char   *token_rules_config_path(const struct token_rules *rules);

/* Copies `text`.  A text that is listed already keeps its first entry. */
int token_rules_add(struct token_rules *rules, const struct token_literal *literal,
                    struct err *err);
/* All of tokenizer_config.json's added_tokens_decoder, when it has one. */
int token_rules_add_decoder(struct token_rules *rules, struct err *err);
/* All of tokenizer.json's added_tokens. */
int token_rules_add_list(struct token_rules *rules, const json_t *list, const char *file,
                         struct err *err);
/* Literals in order of addition. */
uint32_t                    token_rules_count(const struct token_rules *rules);
const struct token_literal *token_rules_at(const struct token_rules *rules, uint32_t index);
/* NULL when no literal has this text. */
const struct token_literal *token_rules_named(const struct token_rules *rules, const char *text);
/* The first literal of this kind at or after `from`; of several there, the longest.  Its place goes
 * to *start_out, which is `bytes` when there is none (result NULL). */
const struct token_literal *token_rules_find(size_t *start_out, const struct token_rules *rules,
                                             const char *text, size_t bytes, size_t from,
                                             bool normalized);

/* ERR_USAGE unless `text` is valid UTF-8 of at most TOKEN_PROMPT_BYTES. */
int token_rules_check_prompt(size_t *bytes_out, const char *text, struct err *err);

/* Unicode's White_Space property. */
bool token_rules_is_space(int32_t code);
/* The character at text[0], which is valid UTF-8, and its length. */
int32_t token_rules_character(size_t *bytes_out, const char *text, size_t bytes);

/* ------------------------------------------------------------------------------ clip_words.c */

/* NFC, then lower case.  *out is new memory of *bytes_out bytes, freed by os_free.  Runs of spaces
 * stay: they only separate words. */
int clip_words_normalise(char **out, size_t *bytes_out, const char *text, size_t bytes,
                         struct err *err);

/* Walks over the words of normal text. */
struct clip_words {
    const char *text;
    size_t      bytes, at;
    size_t      cut;           /* a run goes beyond this place only if it starts there or later */
    bool        cuts_specials; /* the pattern knows "<|startoftext|>" and "<|endoftext|>"       */
};
/* The next word; false at the end of the text. */
bool clip_words_next(struct clip_words *words, const char **word_out, size_t *bytes_out);

/* ----------------------------------------------------------------------------- t5_charsmap.c */

#define T5_MARK "\xE2\x96\x81" /* U+2581, which stands for spaces */
enum { T5_MARK_BYTES = sizeof T5_MARK - 1 };

/* Zero means that text is taken as it is. */
struct t5_charsmap {
    uint8_t    *data;    /* owned; the rest points here                                   */
    uint32_t    count;   /* units in the array                                            */
    const char *strings; /* [bytes], valid UTF-8, each ends in NUL, and so does the last  */
    size_t      bytes;
    bool        any_space; /* every white space separates words, not only U+0020          */
};
/* Copies and checks `data`; a second call is an error.  Closed also after a failure. */
int  t5_charsmap_open(struct t5_charsmap *map, const uint8_t *data, size_t bytes, const char *file,
                      struct err *err);
void t5_charsmap_close(struct t5_charsmap *map);
/* T5_MARK, then `text` after the charsmap, without white space at its end, T5_MARK for every run of
 * spaces.  *out is new memory of *bytes_out bytes, freed by os_free. */
int t5_charsmap_normalise(char **out, size_t *bytes_out, const struct t5_charsmap *map,
                          const char *text, size_t bytes, struct err *err);

/* ------------------------------------------------------------------------------- t5_spiece.c */

struct t5_piece {
    const char *text; /* not NUL-terminated */
    uint32_t    bytes;
    int32_t     id;
    double      score;
};

struct t5_pieces {
    struct t5_piece *list;  /* [room], owned; the first `count` are set */
    char            *texts; /* [texts_room], in the same block          */
    uint32_t         count, room;
    uint64_t         texts_used, texts_room;
    double           unknown_score; /* of a character that is no piece */
    int32_t          unknown_id;
    const char      *file; /* that is being read, for sentences */
};
/* Once, before the first piece. */
int t5_spiece_alloc(struct t5_pieces *pieces, uint64_t count, uint64_t text_bytes, struct err *err);
void t5_spiece_free(struct t5_pieces *pieces);
/* Copies the next piece; its id is its place.  Room for it must have been allocated. */
int t5_spiece_add(struct t5_pieces *pieces, const char *text, size_t bytes, double score,
                  struct err *err);
/* A spiece.model: allocates, with room for `extra` more pieces "<extra_id_n>", and adds its own. */
int t5_spiece_read(struct t5_pieces *pieces, struct t5_charsmap *charsmap, const uint8_t *data,
                   size_t bytes, uint32_t extra, struct err *err);
/* By text, as walks need it. */
void t5_spiece_sort(struct t5_pieces *pieces);

/* The pieces that begin with the bytes walked so far: [first, end).  They share `depth` bytes. */
struct t5_walk {
    const struct t5_piece *list; /* sorted */
    uint32_t               first, end, depth;
};
/* Goes on by one byte; false when no piece is left.  *piece_out is the piece that is exactly the
 * walked bytes, or NULL. */
bool t5_spiece_walk(const struct t5_piece **piece_out, struct t5_walk *walk, char byte);

#endif
