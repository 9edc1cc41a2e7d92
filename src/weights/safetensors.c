/*
 * safetensors.c - the container of the weights: files and shards opened, tensors found by name.
 *
 * Owns the mappings of one file, or of all shards of an index.
 *
 *     index    {"metadata": {"total_size": bytes}, "weight_map": {"<tensor name>": "<file name>"}}
 *
 * The shards of an index lie beside it; what it says of tensors, shards and sizes must be what they
 * hold.  Invariant after open: entries are sorted by name, and no two have the same.
 *
 * Read next: safetensors_header.c, which reads one file's header.
 */
#include "weights/weights_int.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PATH_CAPACITY = 4096, INDEX_BYTES_MAX = 16000000 /* FLUX.1's longest has 121 kB */ };

static unsigned long long llu(uint64_t value)
{
    return (unsigned long long)value;
}

/* ------------------------------------------------------------------------ all the tensors */

static int compare_entries(const void *a, const void *b)
{
    const struct safetensors_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int sort_entries(struct safetensors *file, struct err *err)
{
    int rc = ERR_OK;

    if (file->count > 0)
        qsort(file->entries, file->count, sizeof *file->entries, compare_entries);
    for (uint32_t i = 1; i < file->count; i++) {
        const struct safetensors_entry *pair = &file->entries[i - 1];
        if (strcmp(pair[0].name, pair[1].name) == 0)
            RAISE(err, ERR_FORMAT, 0, "weights: %.120s stands in two shards, '%s' and '%s'",
                  pair[0].name, pair[0].file, pair[1].file);
    }
out:
    return rc;
}

/* ----------------------------------------------------------------------------- the index */

/* The shard called `name`, beside the index; added when it is new. */
static int find_shard(uint32_t *out, struct safetensors *file, const char *name, struct err *err)
{
    int         rc = ERR_OK;
    char        path[PATH_CAPACITY];
    const char *slash = strrchr(file->path, '/');
    size_t      folder = slash == NULL ? 0 : (size_t)(slash + 1 - file->path);

    if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': '%.120s' is not a plain file name; shards lie "
              "beside their index", file->path, name);
    if (folder + strlen(name) + 1 > sizeof path)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': the shard name '%.120s' is too long", file->path,
              name);
    memcpy(path, file->path, folder);
    memcpy(path + folder, name, strlen(name) + 1);
    for (uint32_t i = file->shard_count; i > 0; i--) {
        *out = i - 1;
        if (strcmp(file->shards[i - 1].path, path) == 0) goto out;
    }
    if (file->shard_count == SAFETENSORS_SHARDS_MAX)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' lists more than %d shards", file->path,
              SAFETENSORS_SHARDS_MAX);
    TRY(text_copy(&file->shards[file->shard_count].path, path, "a path", err));
    *out = file->shard_count++;
out:
    return rc;
}

/* Reads the index at file->path and lists its shards. */
static int read_index(struct safetensors *file, json_t **root_out, struct err *err)
{
    int         rc = ERR_OK;
    json_t     *root = NULL, *map, *value;
    const char *key;
    uint32_t    shard;

    rc = json_file_open(&root, file->path, INDEX_BYTES_MAX, err);
    if (rc != ERR_OK) {
        err_context(err, "weights");
        goto out;
    }
    map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' has no weight_map; this is no index of shards",
              file->path);
    json_object_foreach(map, key, value) {
        if (!json_is_string(value))
            RAISE(err, ERR_FORMAT, 0, "weights: '%s': weight_map does not name a file for %.120s",
                  file->path, key);
        TRY(find_shard(&shard, file, json_string_value(value), err));
    }
    *root_out = root;
    root = NULL;
out:
    json_decref(root);
    return rc;
}

/* What the index says of tensors, shards and sizes must be what the shards hold. */
static int check_index(const struct safetensors *file, const json_t *root, struct err *err)
{
    int           rc = ERR_OK;
    json_t       *map = json_object_get(root, "weight_map"), *value;
    const json_t *total = json_object_get(json_object_get(root, "metadata"), "total_size");
    const char   *key;

    json_object_foreach(map, key, value) {
        const struct safetensors_entry *entry = safetensors_find(file, key);
        const char *name = entry == NULL ? "" : strrchr(entry->file, '/');
        if (entry != NULL) name = name == NULL ? entry->file : name + 1;
        if (strcmp(name, json_string_value(value)) != 0)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s' says that %.120s is in '%.120s', but it is "
                  "%s%s; download the folder again", file->path, key, json_string_value(value),
                  entry == NULL ? "in no shard" : "in ", name);
    }
    for (uint32_t i = 0; i < file->count; i++) {
        if (json_object_get(map, file->entries[i].name) == NULL)
            RAISE(err, ERR_FORMAT, 0, "weights: '%s' does not list %.120s, which '%s' holds",
                  file->path, file->entries[i].name, file->entries[i].file);
    }
    if (json_is_number(total) && json_number_value(total) != (double)file->bytes)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' says total_size %.0f, but the shards hold %llu "
              "bytes of tensors", file->path, json_number_value(total), llu(file->bytes));
out:
    return rc;
}

/* ------------------------------------------------------------------------------ the door */

static bool is_index(const char *path)
{
    size_t length = strlen(path);
    return length > 5 && strcmp(path + length - 5, ".json") == 0;
}

/* A reader of `path` with room for shards, and the shards listed but not opened. */
static int open_list(struct safetensors **out, json_t **index_out, const char *path,
                     struct err *err)
{
    int                 rc = ERR_OK;
    void               *memory = NULL, *shards = NULL;
    struct safetensors *file = NULL;

    TRY(os_alloc(&memory, 1, sizeof *file, "a reader of weights", err));
    file = memory;
    TRY(text_copy(&file->path, path, "a path", err));
    TRY(os_alloc(&shards, is_index(path) ? SAFETENSORS_SHARDS_MAX : 1, sizeof *file->shards,
                 "a list of shards", err));
    file->shards = shards;
    if (is_index(path)) {
        TRY(read_index(file, index_out, err));
    } else {
        TRY(text_copy(&file->shards[0].path, path, "a path", err));
        file->shard_count = 1;
    }
    *out = file;
    file = NULL;
out:
    safetensors_close(file);
    return rc;
}

int safetensors_open(struct safetensors **out, const char *path, struct err *err)
{
    int                 rc = ERR_OK;
    struct safetensors *file = NULL;
    json_t             *index = NULL;

    TRY(open_list(&file, &index, path, err));
    for (uint32_t i = 0; i < file->shard_count; i++) {
        struct shard *shard = &file->shards[i];
        rc = os_map_open(&shard->map, shard->path, err);
        if (rc != ERR_OK) {
            err_context(err, "weights");
            goto out;
        }
        shard->data = shard->map.data;
        shard->bytes = shard->map.bytes;
        TRY(safetensors_header_read(file, shard, err));
    }
    TRY(sort_entries(file, err));
    if (index != NULL) TRY(check_index(file, index, err));
    *out = file;
    file = NULL;
out:
    json_decref(index);
    safetensors_close(file);
    return rc;
}

int safetensors_open_memory(struct safetensors **out, const uint8_t *data, uint64_t bytes,
                            const char *path, struct err *err)
{
    int                 rc = ERR_OK;
    struct safetensors *file = NULL;

    must(!is_index(path));
    TRY(open_list(&file, NULL, path, err));
    file->shards[0].data = data;
    file->shards[0].bytes = bytes;
    TRY(safetensors_header_read(file, &file->shards[0], err));
    TRY(sort_entries(file, err));
    *out = file;
    file = NULL;
out:
    safetensors_close(file);
    return rc;
}

int safetensors_file_bytes(uint64_t *bytes_out, const char *path, struct err *err)
{
    int                 rc = ERR_OK;
    struct safetensors *file = NULL;
    json_t             *index = NULL;
    uint64_t            bytes = 0;

    TRY(open_list(&file, &index, path, err));
    for (uint32_t i = 0; i < file->shard_count; i++) {
        struct stat about;
        if (stat(file->shards[i].path, &about) != 0 || !S_ISREG(about.st_mode))
            RAISE(err, ERR_FORMAT, 0, "weights: '%s' is missing%s%s%s; download the folder again",
                  file->shards[i].path, index == NULL ? "" : ", which '",
                  index == NULL ? "" : path, index == NULL ? "" : "' lists");
        bytes += (uint64_t)about.st_size;
    }
    *bytes_out = bytes;
out:
    json_decref(index);
    safetensors_close(file);
    return rc;
}

void safetensors_close(struct safetensors *file)
{
    if (file == NULL) return;
    for (uint32_t i = 0; i < file->shard_count; i++) {
        os_map_close(&file->shards[i].map);
        os_free(file->shards[i].names);
        os_free(file->shards[i].path);
    }
    os_free(file->shards);
    os_free(file->entries);
    os_free(file->path);
    os_free(file);
}

const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name)
{
    const struct safetensors_entry wanted = {.name = name};

    if (file->count == 0) return NULL;
    return bsearch(&wanted, file->entries, file->count, sizeof wanted, compare_entries);
}

uint32_t safetensors_count(const struct safetensors *file)
{
    return file->count;
}

const struct safetensors_entry *safetensors_at(const struct safetensors *file, uint32_t index)
{
    must(index < file->count);
    return &file->entries[index];
}

const char *safetensors_path(const struct safetensors *file)
{
    return file->path;
}
