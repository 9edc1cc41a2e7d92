/*
 * synth_file.c - the files of a synthetic model: random values, safetensors, taking it all back.
 *
 * Owns the formula of the values and the list of what was made.  Knows no model.
 *
 *     key        seed ^ hash64(diffusers name)
 *     random     top 24 bits of mix(key + index * an odd number), index in the diffusers tensor
 *     u          random / 2^23 - 1, in [-1, 1)
 *     value      scale * u or 1 + 0.2 * u in double, then f32, then the dtype
 *
 * Every step is exact or rounds to nearest even, so the bytes are the same on every machine and for
 * any number of threads, and a tensor has the same values in both layouts.
 *
 * Invariant: a file with its final name is complete; everything else ends in ".part".
 */
#include "weights/weights_int.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK_ELEMENTS = 1 << 21, PATH_CAPACITY = 4096, ENTRY_BYTES = NAMES_MAX + 192 };
enum { PARALLEL_ELEMENTS = 1 << 16 /* below, starting threads costs more than it gains */ };

/* -------------------------------------------------------------------------- what was made */

static int path_of(char out[PATH_CAPACITY], const struct synth_output *output, const char *name,
                   const char *end, struct err *err)
{
    int rc = ERR_OK;
    int wrote = snprintf(out, PATH_CAPACITY, "%s%s%s%s", output->folder,
                         name[0] == '\0' ? "" : "/", name, end);

    if (wrote < 0 || wrote >= PATH_CAPACITY)
        RAISE(err, ERR_USAGE, 0, "synth: the path '%.64s...' is longer than %d bytes",
              output->folder, PATH_CAPACITY - 1);
out:
    return rc;
}

/* Called before the thing exists, so that nothing can be made and forgotten.  Folders are noted
 * with a slash at their end. */
static int note(struct synth_output *output, const char *name, bool folder, struct err *err)
{
    int    rc = ERR_OK;
    char **made = output->made, *copy = NULL;
    size_t bytes = strlen(name) + 2;

    if (output->made_count == output->made_capacity) {
        uint32_t capacity = output->made_capacity * 2 + 32;
        TRY(os_alloc((void **)&made, capacity, sizeof *made, "a list of files", err));
        if (output->made != NULL)
            memcpy(made, output->made, output->made_count * sizeof *made);
        os_free(output->made);
        output->made = made;
        output->made_capacity = capacity;
    }
    TRY(os_alloc((void **)&copy, bytes, 1, "a file's name", err));
    (void)snprintf(copy, bytes, "%s%s", name, folder ? "/" : "");
    output->made[output->made_count++] = copy;
out:
    return rc;
}

int synth_file_folder(struct synth_output *output, const char *name, struct err *err)
{
    int  rc = ERR_OK;
    char path[PATH_CAPACITY];

    TRY(path_of(path, output, name, "", err));
    if (os_is_dir(path)) goto out; /* not ours to remove */
    TRY(note(output, name, true, err));
    TRY(os_make_dir(path, err));
out:
    return rc;
}

void synth_file_undo(struct synth_output *output)
{
    static const char *const ends[] = {"", ".part"};
    struct err               ignored = {0}; /* the first error is the one to tell */
    char                     path[PATH_CAPACITY];

    for (uint32_t i = output->made_count; i-- > 0;) {
        const char *name = output->made[i];
        size_t      length = strlen(name);
        bool        folder = length > 0 && name[length - 1] == '/';
        for (size_t k = 0; k < ARRAY_COUNT(ends); k++) {
            if (path_of(path, output, name, ends[k], &ignored) != ERR_OK) continue;
            if (!folder) (void)os_remove(path, &ignored);
            if (folder && k == 0) (void)rmdir(path);
        }
    }
}

void synth_file_close(struct synth_output *output)
{
    for (uint32_t i = 0; i < output->made_count; i++) os_free(output->made[i]);
    os_free(output->made);
    output->made = NULL;
    output->made_count = output->made_capacity = 0;
}

/* A file that is being written: open under its temporary name. */
struct writing {
    int  fd;
    char part[PATH_CAPACITY], path[PATH_CAPACITY];
};

static int writing_open(struct writing *out, struct synth_output *output, const char *name,
                        struct err *err)
{
    int rc = ERR_OK;

    out->fd = -1;
    TRY(path_of(out->path, output, name, "", err));
    TRY(path_of(out->part, output, name, ".part", err));
    TRY(note(output, name, false, err));
    TRY(os_open_write(&out->fd, out->part, err));
out:
    return rc;
}

static int writing_finish(struct writing *file, struct err *err)
{
    int rc = ERR_OK, fd = file->fd;

    TRY(os_sync(fd, file->part, err));
    file->fd = -1; /* closed even when closing complains */
    TRY(os_close(fd, file->part, err));
    TRY(os_rename(file->part, file->path, err));
out:
    return rc;
}

static void writing_close(struct writing *file)
{
    if (file->fd >= 0) (void)os.close(file->fd);
    file->fd = -1;
}

int synth_file_text(struct synth_output *output, const char *name, const char *text,
                    struct err *err)
{
    int            rc = ERR_OK;
    struct writing file = {.fd = -1};

    TRY(writing_open(&file, output, name, err));
    TRY(os_write_at(file.fd, 0, text, strlen(text), file.part, err));
    TRY(writing_finish(&file, err));
out:
    writing_close(&file);
    return rc;
}

/* NULL is what jansson gives when memory is short. */
int synth_file_json(struct synth_output *output, const char *name, const json_t *value,
                    struct err *err)
{
    int   rc = ERR_OK;
    char *text = value == NULL ? NULL : json_dumps(value, JSON_INDENT(2));

    if (text == NULL) RAISE(err, ERR_HOST_MEM, 0, "memory: none left for '%s'", name);
    TRY(synth_file_text(output, name, text, err));
out:
    free(text);
    return rc;
}

/* ---------------------------------------------------------------------------------- values */

/* The finaliser of splitmix64. */
static inline uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

struct random {
    uint64_t key;
    double   offset, scale;
};

static inline float random_value(const struct random *random, uint64_t index)
{
    uint64_t bits = mix(random->key + index * UINT64_C(0x9e3779b97f4a7c15)) >> 40;
    double   u = (double)bits * 0x1p-23 - 1.0;
    double   scaled = random->scale * u; /* apart, or some compilers fuse it with the addition */
    return (float)(random->offset + scaled);
}

static bool has(const char *name, const char *part)
{
    return strstr(name, part) != NULL;
}

/* Weights keep the variance of what passes through them; norms stay near 1, biases near 0. */
static struct random random_of(const struct layout_tensor *tensor, uint64_t seed)
{
    const char   *name = tensor->name;
    size_t        length = strlen(name);
    uint64_t      fan_in = 1;
    struct random random = {.key = seed ^ hash64(name, length, 0), .scale = 1.0};

    for (uint32_t i = 1; i < tensor->rank; i++) fan_in *= tensor->shape[i];
    if (tensor->rank >= 2) {
        bool embedding = has(name, "token_embedding") || has(name, "position_embedding") ||
                         has(name, "relative_attention_bias") || strcmp(name, "shared.weight") == 0;
        if (!embedding) random.scale = sqrt(3.0 / (double)fan_in);
    } else if (length > 5 && strcmp(name + length - 5, ".bias") == 0) {
        random.scale = 0.1;
    } else {
        random.offset = 1.0;
        random.scale = 0.2;
    }
    return random;
}

/* `count` values from `first` on; no value is NaN, so rounding to bf16 is one addition. */
static void fill(void *out, const struct random *random, uint64_t first, int64_t count,
                 enum dtype dtype)
{
    float    *f32 = out;
    uint16_t *u16 = out;

#pragma omp parallel for schedule(static) if (count >= PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < count; i++) {
        float value = random_value(random, first + (uint64_t)i);
        if (dtype == DTYPE_F32) {
            f32[i] = value;
        } else if (dtype == DTYPE_F16) {
            u16[i] = cast_from_f32(value, dtype);
        } else {
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            u16[i] = (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
        }
    }
}

/* ---------------------------------------------------------------------------- safetensors */

/* A tensor of a file: a run of pieces of one name. */
struct file_tensor {
    uint32_t first_piece, piece_count, shard, rank;
    uint64_t shape[4], row_elements, bytes;
};

struct plan {
    const struct synth_part *part;
    struct file_tensor      *tensors; /* [piece_count]; the first `count` are set */
    uint32_t                 count, shards;
    uint64_t                 bytes;   /* of all tensors */
};

static void plan_tensor(struct file_tensor *out, const struct synth_part *part, uint32_t first)
{
    const struct layout_piece  *pieces = part->layout->pieces;
    const struct layout_tensor *source = &part->layout->tensors[pieces[first].source];
    uint32_t                    end = first;
    uint64_t                    rows = 0;

    out->first_piece = first;
    for (; end < part->layout->piece_count; end++) {
        if (strcmp(pieces[end].name, pieces[first].name) != 0) break;
        must(pieces[end].file_row == rows);
        rows += pieces[end].rows;
    }
    out->piece_count = end - first;
    out->rank = pieces[first].conv_1x1 ? 4 : source->rank;
    out->row_elements = 1;
    for (uint32_t i = 0; i < 4; i++) {
        out->shape[i] = i == 0 ? rows : i < source->rank ? source->shape[i] : 1;
        if (i > 0) out->row_elements *= out->shape[i];
    }
    out->bytes = rows * out->row_elements * dtype_bytes(part->dtype);
}

static int plan_open(struct plan *out, const struct synth_part *part, struct err *err)
{
    int         rc = ERR_OK;
    struct plan plan = {.part = part, .shards = 1};
    uint64_t    in_shard = 0;

    TRY(os_alloc((void **)&plan.tensors, part->layout->piece_count, sizeof *plan.tensors,
                 "the list of tensors", err));
    for (uint32_t piece = 0; piece < part->layout->piece_count;) {
        struct file_tensor *tensor = &plan.tensors[plan.count++];
        plan_tensor(tensor, part, piece);
        if (part->shard_bytes > 0 && in_shard > 0 &&
            in_shard + tensor->bytes > part->shard_bytes) {
            plan.shards++;
            in_shard = 0;
        }
        tensor->shard = plan.shards - 1;
        in_shard += tensor->bytes;
        plan.bytes += tensor->bytes;
        piece += tensor->piece_count;
    }
    if (plan.shards > SAFETENSORS_SHARDS_MAX)
        RAISE(err, ERR_USAGE, 0, "synth: '%s' would have %u shards (limit %d); allow larger ones",
              part->name, plan.shards, SAFETENSORS_SHARDS_MAX);
    *out = plan;
    plan.tensors = NULL;
out:
    os_free(plan.tensors);
    return rc;
}

/* Text of printf at *at, which moves on. */
__attribute__((format(printf, 3, 4))) static void put(char *text, size_t *at, const char *format,
                                                      ...)
{
    va_list list;
    int     wrote;

    va_start(list, format);
    wrote = vsnprintf(text + *at, ENTRY_BYTES, format, list);
    va_end(list);
    must(wrote >= 0 && wrote < ENTRY_BYTES);
    *at += (size_t)wrote;
}

/* Length, JSON and spaces; one dtype for all, so sorted by name is what the reference writes. */
static int write_header(uint64_t *bytes_out, const struct plan *plan, uint32_t shard,
                        const struct writing *file, struct err *err)
{
    static const char *const dtypes[] = {"F32", "BF16", "F16"};
    int                      rc = ERR_OK;
    char                    *text = NULL;
    size_t                   at = 8;
    uint64_t                 offset = 0;

    TRY(os_alloc((void **)&text, plan->count + 2, ENTRY_BYTES, "a header", err));
    put(text, &at, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct file_tensor *tensor = &plan->tensors[i];
        if (tensor->shard != shard) continue;
        put(text, &at, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[",
            plan->part->layout->pieces[tensor->first_piece].name, dtypes[plan->part->dtype]);
        for (uint32_t k = 0; k < tensor->rank; k++)
            put(text, &at, "%s%" PRIu64, k == 0 ? "" : ",", tensor->shape[k]);
        put(text, &at, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", offset,
            offset + tensor->bytes);
        offset += tensor->bytes;
    }
    put(text, &at, "}");
    while (at % 8 != 0) put(text, &at, " ");
    for (uint32_t i = 0; i < 8; i++) text[i] = (char)(unsigned char)((at - 8) >> (8 * i));
    TRY(os_write_at(file->fd, 0, text, at, file->part, err));
    *bytes_out = at;
out:
    os_free(text);
    return rc;
}

/* The values of one tensor of the file from `offset` on, block by block. */
static int write_tensor(const struct plan *plan, const struct file_tensor *tensor, uint64_t offset,
                        void *block, const struct writing *file, struct err *err)
{
    int                  rc = ERR_OK;
    const struct layout *layout = plan->part->layout;
    enum dtype           dtype = plan->part->dtype;

    for (uint32_t i = 0; i < tensor->piece_count; i++) {
        const struct layout_piece *piece = &layout->pieces[tensor->first_piece + i];
        struct random random = random_of(&layout->tensors[piece->source], plan->part->seed);
        uint64_t      first = piece->source_row * tensor->row_elements;
        uint64_t      left = piece->rows * tensor->row_elements;
        while (left > 0) {
            uint64_t count = left < BLOCK_ELEMENTS ? left : BLOCK_ELEMENTS;
            uint64_t bytes = count * dtype_bytes(dtype);
            fill(block, &random, first, (int64_t)count, dtype);
            TRY(os_write_at(file->fd, offset, block, bytes, file->part, err));
            offset += bytes;
            first += count;
            left -= count;
        }
    }
out:
    return rc;
}

static int write_shard(struct synth_output *output, const struct plan *plan, uint32_t shard,
                       const char *name, void *block, struct err *err)
{
    int            rc = ERR_OK;
    uint64_t       offset = 0;
    struct writing file = {.fd = -1};

    TRY(writing_open(&file, output, name, err));
    TRY(write_header(&offset, plan, shard, &file, err));
    for (uint32_t i = 0; i < plan->count; i++) {
        if (plan->tensors[i].shard != shard) continue;
        if (!plan->part->hollow)
            TRY(write_tensor(plan, &plan->tensors[i], offset, block, &file, err));
        offset += plan->tensors[i].bytes;
    }
    if (plan->part->hollow) TRY(os_write_at(file.fd, offset - 1, "", 1, file.part, err));
    TRY(writing_finish(&file, err));
out:
    writing_close(&file);
    return rc;
}

static void shard_name(char out[256], const struct plan *plan, uint32_t shard)
{
    int wrote = plan->shards == 1
                    ? snprintf(out, 256, "%s.safetensors", plan->part->name)
                    : snprintf(out, 256, "%s-%05u-of-%05u.safetensors", plan->part->name, shard + 1,
                               plan->shards);
    must(wrote > 0 && wrote < 256);
}

static int write_index(struct synth_output *output, const struct plan *plan, struct err *err)
{
    int     rc = ERR_OK;
    char    name[256];
    json_t *map = json_object();
    json_t *index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size",
                              (json_int_t)plan->bytes, "weight_map", map);

    for (uint32_t i = 0; i < plan->count; i++) {
        const char *slash;
        shard_name(name, plan, plan->tensors[i].shard);
        slash = strrchr(name, '/');
        if (json_object_set_new(map, plan->part->layout->pieces[plan->tensors[i].first_piece].name,
                                json_string(slash == NULL ? name : slash + 1)) != 0)
            RAISE(err, ERR_HOST_MEM, 0, "memory: none left for the index of '%s'",
                  plan->part->name);
    }
    (void)snprintf(name, sizeof name, "%s.safetensors.index.json", plan->part->name);
    TRY(synth_file_json(output, name, index, err));
out:
    json_decref(index);
    json_decref(map);
    return rc;
}

int synth_file_part(struct synth_output *output, const struct synth_part *part, struct err *err)
{
    int         rc = ERR_OK;
    struct plan plan = {0};
    void       *block = NULL;
    char        name[256], words[32];
    double      start = os_seconds();

    TRY(plan_open(&plan, part, err));
    TRY(os_alloc(&block, BLOCK_ELEMENTS, dtype_bytes(part->dtype), "a block of weights", err));
    for (uint32_t shard = 0; shard < plan.shards; shard++) {
        shard_name(name, &plan, shard);
        TRY(write_shard(output, &plan, shard, name, block, err));
    }
    if (plan.shards > 1) TRY(write_index(output, &plan, err));
    log_line(LOG_INFO, "synth: wrote %s of %s in %.1f s",
             text_bytes(words, sizeof words, plan.bytes), part->name, os_seconds() - start);
out:
    os_free(block);
    os_free(plan.tensors);
    return rc;
}
