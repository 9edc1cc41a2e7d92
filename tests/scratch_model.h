/*
 * scratch_model.h - a model with random weights in a folder of its own, for one group of tests.
 *
 * A group's setup calls scratch_model_make with what it wants (the folder is filled in); its
 * teardown is scratch_model_remove.  Other files may stand in `folder` too.
 */
#ifndef MURAL_TESTS_SCRATCH_MODEL_H
#define MURAL_TESTS_SCRATCH_MODEL_H

#include "test.h"

#include "weights/weights.h"

static char folder[128], model[160];

static inline int scratch_model_make(struct synth_request request)
{
    struct err err = {0};

    scratch_make(folder, sizeof folder);
    (void)snprintf(model, sizeof model, "%s/model", folder);
    request.folder = model;
    return synth_write(&request, &err) == ERR_OK ? 0 : -1;
}

static inline int scratch_model_remove(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

#endif
