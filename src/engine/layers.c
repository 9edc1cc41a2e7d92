/*
 * layers.c - from a weight's name to a view that an operation can use.
 *
 * Owns nothing: matrices are views of mapped files, vectors are fp32 copies in the loader's arena;
 * or both are copies that a distant backend keeps.  Knows no network and no layout of files;
 * model_weight knows both layouts.
 */
#include "engine/engine_int.h"

#include <stdio.h>
#include <string.h>

enum { NAME_BYTES = 256 };

void layer_scope(struct layer_loader *loader, const char *format, ...)
{
    va_list words;
    int     length;

    va_start(words, format);
    length = vsnprintf(loader->scope, sizeof loader->scope, format, words);
    va_end(words);
    must(length >= 0 && (size_t)length < sizeof loader->scope);
}

/* The address of a dry view only has to be one that pointer arithmetic may start from. */
static int find(struct matrix *out, struct layer_loader *loader, struct weight_request request,
                struct err *err)
{
    char full[NAME_BYTES];
    int  length = snprintf(full, sizeof full, "%s%s", loader->scope, request.name);

    must(length > 0 && (size_t)length < sizeof full);
    must(request.first_row >= 0 && request.first_row + request.rows <= request.rows_all);
    request.name = full;
    request.part = loader->part;
    if (!loader->dry) return model_weight(out, loader->model, &request, err);
    *out = (struct matrix){.data = arena_take(loader->vectors, 0, "a weight of a dry run"),
                           .dtype = DTYPE_BF16,
                           .rows = request.rows,
                           .cols = request.cols,
                           .ld = request.cols};
    return ERR_OK;
}

static int copy_vector(const float **out, struct layer_loader *loader,
                       const struct weight_request *request, struct err *err)
{
    int           rc = ERR_OK;
    struct matrix source, target;

    TRY(find(&source, loader, *request, err));
    must(source.cols == 1 && source.ld == 1);
    /* One row instead of one column: casts are fast along rows. */
    source = (struct matrix){source.data, source.dtype, 1, request->rows, request->rows};
    if (loader->keeper != NULL) {
        *out = backend_keep_vector(loader->keeper, source);
        goto out;
    }
    target = source;
    target.dtype = DTYPE_F32;
    target.data = arena_take(loader->vectors, (uint64_t)request->rows * sizeof(float), "a vector");
    if (!loader->dry) k_cast_cpu(target, source);
    *out = target.data;
out:
    return rc;
}

int layer_linear(struct linear *out, struct layer_loader *loader, const char *prefix, int64_t rows,
                 int64_t cols, bool bias, struct err *err)
{
    int  rc = ERR_OK;
    char name[NAME_BYTES];

    must((size_t)snprintf(name, sizeof name, "%s.weight", prefix) < sizeof name);
    *out = (struct linear){.bias = NULL};
    TRY(layer_matrix(&out->w, loader, name, rows, cols, err));
    must((size_t)snprintf(name, sizeof name, "%s.bias", prefix) < sizeof name);
    if (bias) TRY(layer_vector(&out->bias, loader, name, rows, err));
out:
    return rc;
}

int layer_linear_slice(struct linear *out, struct layer_loader *loader, const char *prefix,
                       const struct layer_slice *slice, struct err *err)
{
    int                   rc = ERR_OK;
    char                  name[NAME_BYTES];
    struct weight_request request = {.name = name,
                                     .rows_all = slice->rows_all,
                                     .cols = slice->cols,
                                     .first_row = slice->first,
                                     .rows = slice->rows};

    must((size_t)snprintf(name, sizeof name, "%s.weight", prefix) < sizeof name);
    TRY(find(&out->w, loader, request, err));
    if (loader->keeper != NULL) out->w = backend_keep(loader->keeper, out->w);
    must((size_t)snprintf(name, sizeof name, "%s.bias", prefix) < sizeof name);
    request.cols = 1;
    TRY(copy_vector(&out->bias, loader, &request, err));
out:
    return rc;
}

int layer_vector(const float **out, struct layer_loader *loader, const char *name, int64_t count,
                 struct err *err)
{
    struct weight_request request = {.name = name, .rows_all = count, .cols = 1, .rows = count};

    return copy_vector(out, loader, &request, err);
}

int layer_matrix(struct matrix *out, struct layer_loader *loader, const char *name, int64_t rows,
                 int64_t cols, struct err *err)
{
    int                   rc = ERR_OK;
    struct weight_request request = {.name = name, .rows_all = rows, .cols = cols, .rows = rows};

    TRY(find(out, loader, request, err));
    if (loader->keeper != NULL) *out = backend_keep(loader->keeper, *out);
out:
    return rc;
}

int layer_table(struct matrix *out, struct layer_loader *loader, struct matrix source,
                struct err *err)
{
    int           rc = ERR_OK;
    uint64_t      bytes = (uint64_t)(source.rows * source.cols) * sizeof(float);
    struct matrix line = {source.data, source.dtype, 1, source.rows * source.cols,
                          source.rows * source.cols};

    must(source.dtype == DTYPE_F32 && source.ld == source.cols);
    *out = source;
    if (loader->keeper != NULL) {
        out->data = (void *)(uintptr_t)backend_keep_vector(loader->keeper, line);
        TRY(backend_wait(loader->keeper, err));
        goto out;
    }
    out->data = arena_take(loader->vectors, bytes, "a table");
    if (!loader->dry) memcpy(out->data, source.data, (size_t)bytes);
out:
    return rc;
}

bool layer_merge(struct linear *out, const struct linear *parts, size_t count)
{
    struct linear merged = parts[0];

    for (size_t i = 1; i < count; i++) {
        const struct linear *part = &parts[i];
        uint64_t bytes = (uint64_t)(merged.w.rows * merged.w.ld) * dtype_bytes(merged.w.dtype);

        if (part->w.dtype != merged.w.dtype || part->w.cols != merged.w.cols ||
            part->w.ld != merged.w.ld || (part->bias == NULL) != (merged.bias == NULL) ||
            (const char *)part->w.data != (const char *)merged.w.data + bytes ||
            (part->bias != NULL && part->bias != merged.bias + merged.w.rows))
            return false;
        merged.w.rows += part->w.rows;
    }
    *out = merged;
    return true;
}

void layer_run_each(struct backend *backend, const struct matrix *y, const struct matrix *x,
                    size_t count, const struct linear *linear, enum activation act)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    struct matrix     w = backend_fetch(backend, linear->w);
    const float      *bias = backend_fetch_vector(backend, linear->bias, linear->w.rows);

    for (size_t i = 0; i < count; i++)
        backend_linear(backend, y[i], x[i], w, bias, act);
    arena_rewind(backend_arena(backend), mark);
}

void layer_run(struct backend *backend, struct matrix y, struct matrix x,
               const struct linear *linear, enum activation act)
{
    layer_run_each(backend, &y, &x, 1, linear, act);
}
