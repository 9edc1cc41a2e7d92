/*
 * choices.h - what trials on this machine chose, kept on disk for later starts.
 *
 * Private to backend/.  Neither call can fail: where nothing can be kept, nothing is found.
 */
#ifndef MURAL_CHOICES_H
#define MURAL_CHOICES_H

#include "base/base.h"

/* What was last kept for `key`, a hash of all that the choice depends on; false, and *choice_out
 * untouched, when nothing is, or what is there was damaged. */
bool choices_find(uint64_t *choice_out, uint64_t key);
/* For this and other processes; another choice of the same key is forgotten, and some day, when
 * there is no place, one of other keys. */
void choices_keep(uint64_t key, uint64_t choice);

#endif
