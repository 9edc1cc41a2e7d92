/*
 * model_files.h - what the tests of models share: making, opening and comparing small folders.
 */
#ifndef MURAL_MODEL_FILES_H
#define MURAL_MODEL_FILES_H

#include "../test.h"
#include "weights/weights_int.h"

/* `text` is a JSON value, or NULL to take the key away. */
static inline void put(json_t *object, const char *key, const char *text)
{
    json_t *value = text == NULL ? NULL : json_loads(text, JSON_DECODE_ANY, NULL);

    if (text == NULL)
        (void)json_object_del(object, key);
    else
        assert_int_equal(json_object_set_new(object, key, value), 0);
}

static inline void path_of(char out[512], const char *folder, const char *name)
{
    (void)snprintf(out, 512, "%s/%s", folder, name);
}

static inline void make(const char *folder, enum dtype dtype, uint64_t seed, bool bfl)
{
    struct err           err = {0};
    struct synth_request request = {
        .folder = folder, .spec = "tiny", .dtype = dtype, .seed = seed, .bfl = bfl};

    ASSERT_OK(synth_write(&request, &err));
}

static inline struct model *open_mapped(const char *folder)
{
    struct err         err = {0};
    struct model      *model = NULL;
    struct model_paths paths = {.folder = folder};

    ASSERT_OK(model_open(&model, &paths, &err));
    ASSERT_OK(model_map(model, &err));
    return model;
}

static inline int try_open(const char *folder, struct err *err)
{
    struct model      *model = NULL;
    struct model_paths paths = {.folder = folder};
    int                rc = model_open(&model, &paths, err);

    assert_int_equal(rc == ERR_OK, model != NULL);
    if (rc == ERR_OK) rc = model_map(model, err);
    model_close(model);
    return rc;
}

/* Every weight of the model `a`, by rows as the engine asks, handed to `visit` with b's. */
static inline void for_every_weight(const struct model *a, const struct model *b,
                             void (*visit)(const struct matrix *, const struct matrix *))
{
    struct err err = {0};

    for (int part = 0; part < PART_COUNT; part++) {
        struct layout layout = {0};
        ASSERT_OK(layout_open(&layout, a, (enum model_part)part, false, &err));
        for (uint32_t i = 0; i < layout.tensor_count; i++) {
            const struct layout_tensor *tensor = &layout.tensors[i];
            struct weight_request       request = {.part = (enum model_part)part,
                                                   .name = tensor->name, .cols = 1};
            request.rows = request.rows_all = (int64_t)tensor->shape[0];
            for (uint32_t k = 1; k < tensor->rank; k++) request.cols *= (int64_t)tensor->shape[k];
            if (strncmp(tensor->name, "norm_out.linear", 15) == 0) request.rows /= 2;
            for (; request.first_row < request.rows_all; request.first_row += request.rows) {
                struct matrix x = {0}, y = {0};
                ASSERT_OK(model_weight(&x, a, &request, &err));
                ASSERT_OK(model_weight(&y, b, &request, &err));
                assert_true(x.rows == request.rows && x.cols == request.cols && x.ld == x.cols);
                assert_true(y.rows == x.rows && y.cols == x.cols && y.ld == y.cols);
                visit(&x, &y);
            }
        }
        layout_close(&layout);
    }
}

static inline void same_bytes(const struct matrix *x, const struct matrix *y)
{
    assert_int_equal(x->dtype, y->dtype);
    assert_memory_equal(x->data, y->data, (size_t)(x->rows * x->cols) * dtype_bytes(x->dtype));
}

#endif
