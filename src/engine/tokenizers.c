/*
 * tokenizers.c - a model's two tokenizers, read once for several engines.
 *
 * FLUX.1's are five megabytes of JSON and take a tenth of a second to read, longer than all else
 * that a plan reads; and a plan opens an engine for each of its questions.
 *
 * Read next: clip_tokenizer.c, t5_tokenizer.c.
 */
#include "engine/engine_int.h"

int tokenizers_open(struct tokenizers **out, struct err *err)
{
    return os_alloc((void **)out, 1, sizeof **out, "tokenizers", err);
}

int tokenizers_read(struct tokenizers *tokenizers, const char *folder, struct err *err)
{
    int  rc = ERR_OK;
    char path[1024 + 16];

    must(os_join(path, sizeof path, folder, "tokenizer"));
    if (tokenizers->clip == NULL) TRY(clip_tokenizer_open(&tokenizers->clip, path, err));
    must(os_join(path, sizeof path, folder, "tokenizer_2"));
    if (tokenizers->t5 == NULL) TRY(t5_tokenizer_open(&tokenizers->t5, path, err));
out:
    return rc;
}

void tokenizers_close(struct tokenizers *tokenizers)
{
    if (tokenizers == NULL) return;
    clip_tokenizer_close(tokenizers->clip);
    t5_tokenizer_close(tokenizers->t5);
    os_free(tokenizers);
}
