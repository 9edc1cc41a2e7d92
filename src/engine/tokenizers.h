/*
 * tokenizers.h - a model's two tokenizers, read once for several engines; part of the door
 * engine.h, which is what other folders include.
 */
#ifndef MURAL_TOKENIZERS_H
#define MURAL_TOKENIZERS_H

#include "base/base.h"

struct tokenizers;

/* None yet: the first engine that is opened with them reads them, for itself and for later ones of
 * the same folder.  One thread's, as those engines are; closed after them all. */
int  tokenizers_open(struct tokenizers **out, struct err *err);
void tokenizers_close(struct tokenizers *tokenizers); /* NULL is fine */

#endif
