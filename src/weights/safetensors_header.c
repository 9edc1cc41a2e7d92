/*
 * safetensors_header.c - one file's header: read, checked completely, turned into entries.
 *
 * Owns the table of types and every rule of the format.  Knows nothing of indexes or models: names
 * and shapes mean nothing here.
 *
 *     offset  size  field
 *          0     8  N, little-endian: bytes of the header, at most 100,000,000
 *          8     N  JSON object, UTF-8, first byte '{', spaces may follow it
 *      8 + N        tensor data, little-endian, C order, to the end of the file
 *
 *     header   "<tensor name>": {"dtype": "BF16", "shape": [ints], "data_offsets": [begin, end]}
 *              "__metadata__": {"<key>": "<text>"}           optional, not a tensor
 *
 * Offsets count from the first byte after the header.  Sorted by offset the tensors cover the data
 * without hole or overlap.  Files come from anywhere, so nothing in a header is believed before it
 * is checked; afterwards every entry's [data, data + bytes) lies inside the file.
 *
 * The limits of check_structure bound what the JSON parser may allocate: without them 100 MB of
 * header could ask for many gigabytes.
 *
 * Read next: safetensors.c, which opens files and shards.
 */
#include "weights/weights_int.h"

#include <stdlib.h>
#include <string.h>

enum { RANK_MAX = 8, DEPTH_MAX = 8, LIST_MAX = 64 };

static const struct type {
    const char *name;
    uint32_t    bits;
    bool        usable;
    enum dtype  dtype;
} types[] = {
    {"F32", 32, true, DTYPE_F32},
    {"BF16", 16, true, DTYPE_BF16},
    {"F16", 16, true, DTYPE_F16},
    {"F8_E4M3", 8, true, DTYPE_F8_E4M3},
    {"F8_E5M2", 8, true, DTYPE_F8_E5M2},
    {"BOOL", 8, false, DTYPE_F32},
    {"F4", 4, false, DTYPE_F32},
    {"F6_E2M3", 6, false, DTYPE_F32},
    {"F6_E3M2", 6, false, DTYPE_F32},
    {"U8", 8, false, DTYPE_F32},
    {"I8", 8, false, DTYPE_F32},
    {"F8_E8M0", 8, false, DTYPE_F32},
    {"F8_E4M3FNUZ", 8, false, DTYPE_F32},
    {"F8_E5M2FNUZ", 8, false, DTYPE_F32},
    {"I16", 16, false, DTYPE_F32},
    {"U16", 16, false, DTYPE_F32},
    {"I32", 32, false, DTYPE_F32},
    {"U32", 32, false, DTYPE_F32},
    {"C64", 64, false, DTYPE_F32},
    {"F64", 64, false, DTYPE_F32},
    {"I64", 64, false, DTYPE_F32},
    {"U64", 64, false, DTYPE_F32},
};

static unsigned long long llu(uint64_t value)
{
    return (unsigned long long)value;
}

/* ----------------------------------------------------------------------------- the header */

/* Counts brackets, keys and list elements outside of strings, so that only a header of the
 * format's own shape reaches the parser.  Broken JSON passes: the parser's sentence is better. */
static int check_structure(const char *text, size_t bytes, const char *path, struct err *err)
{
    int      rc = ERR_OK;
    bool     in_string = false, in_list[DEPTH_MAX + 2] = {false};
    uint32_t depth = 0, commas = 0, objects = 0, keys = 0, lists = 0;

    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') i++;
            if (c == '"') in_string = false;
            continue;
        }
        if (c == '"') in_string = true;
        if (c == '[') commas = 0;
        if (c == '{' || c == '[') in_list[++depth] = c == '[';
        if ((c == '}' || c == ']') && depth > 0) depth--;
        if (c == '{') objects++;
        if (c == '[') lists++;
        if (c == ':') keys++;
        if (c == ',' && in_list[depth]) commas++;
        if (depth > DEPTH_MAX)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': the header nests deeper than %d levels at "
                  "byte %zu; this is no safetensors header", path, DEPTH_MAX, i);
        if (objects > SAFETENSORS_TENSORS_MAX + 2 || keys > 5 * SAFETENSORS_TENSORS_MAX ||
            lists > 2 * SAFETENSORS_TENSORS_MAX)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': the header lists more than %d tensors", path,
                  SAFETENSORS_TENSORS_MAX);
        if (commas >= LIST_MAX)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': a list at byte %zu of the header has more "
                  "than %d values; shapes have at most %d", path, i, LIST_MAX, RANK_MAX);
    }
out:
    return rc;
}

static int parse_json(json_t **out, const char *text, size_t bytes, const char *path,
                      struct err *err)
{
    int          rc = ERR_OK;
    json_error_t where;
    json_t      *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &where);

    if (root == NULL && json_error_code(&where) == json_error_duplicate_key)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': the header names something twice (%s)", path,
              where.text);
    if (root == NULL && json_error_code(&where) == json_error_numeric_overflow)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': the header has a number beyond 2^63 - 1 (%s)",
              path, where.text);
    if (root == NULL)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': byte %d of the header is not valid JSON: %s",
              path, where.position, where.text);
    *out = root;
out:
    return rc;
}

/* Length, place and encoding; *text_out points into the file. */
static int locate_header(const char **text_out, size_t *bytes_out, const struct shard *shard,
                         struct err *err)
{
    int         rc = ERR_OK;
    uint64_t    bytes = 0;
    const char *text;
    size_t      valid;

    if (shard->bytes < 8)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' has %llu bytes; a safetensors file has at least "
              "8, download it again", shard->path, llu(shard->bytes));
    for (uint32_t i = 0; i < 8; i++) bytes |= (uint64_t)shard->data[i] << (8 * i);
    if (bytes > SAFETENSORS_HEADER_MAX)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' claims a header of %llu bytes (limit %d); this is "
              "no safetensors file", shard->path, llu(bytes), SAFETENSORS_HEADER_MAX);
    if (bytes > shard->bytes - 8)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' needs a header of %llu bytes, but the file ends "
              "at byte %llu; it is truncated, download it again", shard->path, llu(bytes),
              llu(shard->bytes));
    text = (const char *)shard->data + 8;
    if (bytes == 0 || text[0] != '{')
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': the header does not begin with '{'; this is no "
              "safetensors file", shard->path);
    valid = text_utf8_valid_prefix(text, (size_t)bytes);
    if (valid != (size_t)bytes)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': the header is not UTF-8 at byte %zu", shard->path,
              valid);
    *text_out = text;
    *bytes_out = (size_t)bytes;
out:
    return rc;
}

/* ----------------------------------------------------------------------------- one tensor */

static int parse_shape(struct safetensors_entry *entry, const json_t *shape, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t elements = 1;

    if (!json_is_array(shape))
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s has no shape", entry->file, entry->name);
    entry->rank = (uint32_t)json_array_size(shape);
    if (entry->rank > RANK_MAX)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s has %u dimensions (limit %d)", entry->file,
              entry->name, entry->rank, RANK_MAX);
    for (uint32_t i = 0; i < entry->rank; i++) {
        const json_t *side = json_array_get(shape, i);
        if (!json_is_integer(side) || json_integer_value(side) < 0)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s: dimension %u of the shape is not a "
                  "whole number of at least 0", entry->file, entry->name, i);
        entry->shape[i] = (uint64_t)json_integer_value(side);
        if (!mul_u64(elements, entry->shape[i], &elements))
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s: the shape has more elements than "
                  "2^64", entry->file, entry->name);
    }
    entry->bytes = elements; /* parse_entry makes bytes of it */
out:
    return rc;
}

static int parse_type(struct safetensors_entry *entry, uint32_t *bits_out, const json_t *dtype,
                      struct err *err)
{
    int rc = ERR_OK;

    if (!json_is_string(dtype))
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s has no dtype", entry->file, entry->name);
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        if (strcmp(types[i].name, json_string_value(dtype)) != 0) continue;
        entry->dtype_name = types[i].name;
        entry->dtype = types[i].dtype;
        entry->usable = types[i].usable;
        *bits_out = types[i].bits;
        goto out;
    }
    RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s has the dtype '%.32s', which safetensors does "
          "not know", entry->file, entry->name, json_string_value(dtype));
out:
    return rc;
}

struct span {
    uint64_t begin, end;
    uint32_t entry; /* index into the entries of its shard */
};

static int parse_span(struct span *out, const struct safetensors_entry *entry,
                      const json_t *offsets, struct err *err)
{
    int     rc = ERR_OK;
    int64_t value[2];

    if (!json_is_array(offsets) || json_array_size(offsets) != 2)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s has no data_offsets of two numbers",
              entry->file, entry->name);
    for (uint32_t i = 0; i < 2; i++) {
        const json_t *offset = json_array_get(offsets, i);
        if (!json_is_integer(offset) || json_integer_value(offset) < 0)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s: data_offsets are not whole numbers "
                  "of at least 0", entry->file, entry->name);
        value[i] = json_integer_value(offset);
    }
    if (value[0] > value[1])
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s begins at byte %lld of the data, after "
              "its end at %lld", entry->file, entry->name, (long long)value[0],
              (long long)value[1]);
    out->begin = (uint64_t)value[0];
    out->end = (uint64_t)value[1];
out:
    return rc;
}

/* entry->name and entry->file are set; everything but entry->data is filled. */
static int parse_entry(struct safetensors_entry *entry, struct span *span, const json_t *value,
                       struct err *err)
{
    int      rc = ERR_OK;
    uint32_t bits = 0;
    uint64_t total;

    if (!json_is_object(value))
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s is not described by an object",
              entry->file, entry->name);
    TRY(parse_type(entry, &bits, json_object_get(value, "dtype"), err));
    TRY(parse_shape(entry, json_object_get(value, "shape"), err));
    TRY(parse_span(span, entry, json_object_get(value, "data_offsets"), err));
    if (!mul_u64(entry->bytes, bits, &total))
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s: the shape has more bits than 2^64",
              entry->file, entry->name);
    if (total % 8 != 0)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s: its %llu values of %u bits do not fill "
              "whole bytes", entry->file, entry->name, llu(entry->bytes), bits);
    entry->bytes = total / 8;
    if (span->end - span->begin != entry->bytes)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s has %llu bytes of data, but its shape "
              "needs %llu", entry->file, entry->name, llu(span->end - span->begin),
              llu(entry->bytes));
out:
    return rc;
}

static int check_metadata(const json_t *metadata, const char *path, struct err *err)
{
    int         rc = ERR_OK;
    const char *key;
    json_t     *value;

    if (!json_is_object(metadata))
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': __metadata__ is not an object", path);
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value) {
        if (!json_is_string(value))
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': __metadata__ has a value that is not text "
                  "under '%.80s'", path, key);
    }
out:
    return rc;
}

/* ------------------------------------------------------------------------------ one file */

static int compare_spans(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* No hole, no overlap, nothing left over; afterwards every entry has its data. */
static int place_entries(struct safetensors_entry *entries, struct span *spans, uint32_t count,
                         const struct shard *shard, uint64_t data_begin, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t at = 0, data_bytes = shard->bytes - data_begin;

    qsort(spans, count, sizeof *spans, compare_spans);
    for (uint32_t i = 0; i < count; i++) {
        struct safetensors_entry *entry = &entries[spans[i].entry];
        if (spans[i].begin > at)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': bytes %llu to %llu of the data belong to no "
                  "tensor (before %.160s)", shard->path, llu(at), llu(spans[i].begin), entry->name);
        if (spans[i].begin < at)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s begins at byte %llu of the data, "
                  "inside %.160s which ends at %llu", shard->path, entry->name,
                  llu(spans[i].begin), entries[spans[i - 1].entry].name, llu(at));
        if (spans[i].end > data_bytes)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': %.160s is needed up to byte %llu, but the "
                  "file ends at %llu; it is truncated, download it again", shard->path, entry->name,
                  llu(data_begin + spans[i].end), llu(shard->bytes));
        entry->data = shard->data + data_begin + spans[i].begin;
        at = spans[i].end;
    }
    if (at != data_bytes)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' goes on for %llu bytes after its last tensor; "
              "download it again", shard->path, llu(data_bytes - at));
out:
    return rc;
}

static int parse_entries(struct safetensors *file, struct shard *shard, json_t *root,
                         uint64_t header_bytes, struct err *err)
{
    int                       rc = ERR_OK;
    void                     *spans = NULL, *names = NULL, *grown = NULL;
    struct safetensors_entry *entries;
    size_t                    listed = json_object_size(root), used = 0;
    uint32_t                  count = 0;
    const char               *key;
    json_t                   *value;

    TRY(os_alloc(&spans, listed, sizeof(struct span), "offsets of tensors", err));
    /* In JSON a name takes its own bytes and at least two quotes, so all fit with their NULs. */
    TRY(os_alloc(&names, header_bytes, 1, "names of tensors", err));
    shard->names = names;
    TRY(os_alloc(&grown, file->count + listed, sizeof *entries, "list of tensors", err));
    if (file->count > 0) memcpy(grown, file->entries, file->count * sizeof *entries);
    os_free(file->entries);
    file->entries = grown;
    entries = file->entries + file->count;

    json_object_foreach(root, key, value) {
        size_t length = strlen(key) + 1;
        if (strcmp(key, "__metadata__") == 0) {
            TRY(check_metadata(value, shard->path, err));
            continue;
        }
        must(used + length <= header_bytes);
        memcpy(shard->names + used, key, length);
        entries[count] = (struct safetensors_entry){.file = shard->path};
        entries[count].name = shard->names + used;
        used += length;
        ((struct span *)spans)[count].entry = count;
        TRY(parse_entry(&entries[count], &((struct span *)spans)[count], value, err));
        count++;
    }
    TRY(place_entries(entries, spans, count, shard, 8 + header_bytes, err));
    file->count += count;
    file->bytes += shard->bytes - 8 - header_bytes;
out:
    os_free(spans);
    return rc;
}

int safetensors_header_read(struct safetensors *file, struct shard *shard, struct err *err)
{
    int         rc = ERR_OK;
    const char *text = NULL;
    size_t      bytes = 0;
    json_t     *root = NULL;

    TRY(locate_header(&text, &bytes, shard, err));
    TRY(check_structure(text, bytes, shard->path, err));
    TRY(parse_json(&root, text, bytes, shard->path, err));
    TRY(parse_entries(file, shard, root, bytes, err));
out:
    json_decref(root);
    return rc;
}
