/*
 * model.c - a model's folder: its configurations, the places of its files, its weights by name.
 *
 * Owns struct model.  Opening reads configurations and headers only; mapping checks every header
 * and still touches no weights; a weight is a view of the mapping.
 *
 *     folder/transformer/  config.json and weights; or the weights in folder/flux1-dev.safetensors,
 *                          flux1-schnell.safetensors or the only flux1-*.safetensors, and
 *                          config.json may then be missing
 *     folder/vae/          the same with folder/ae.safetensors
 *     folder/text_encoder/, text_encoder_2/, and scheduler/ (may be missing)
 *
 * Read next: names.c.
 */
#include "weights/weights_int.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

static const char *const folders[PART_COUNT] = {"transformer", "vae", "text_encoder",
                                                "text_encoder_2"};
enum { CONFIG_BYTES_MAX = 1 << 20 };

const char *model_part_name(enum model_part part)
{
    must((int)part >= 0 && part < PART_COUNT);
    return folders[part];
}

static int join(char *out, size_t capacity, const char *folder, const char *name, struct err *err)
{
    int rc = ERR_OK;

    if (!os_join(out, capacity, folder, name))
        RAISE(err, ERR_USAGE, 0, "model: the path '%.80s...' is too long", folder);
out:
    return rc;
}

/* ------------------------------------------------------------------------------- finding files */

/* A file that safetensors_open takes by itself: an index or one file, but no shard. */
static bool is_whole(const char *name)
{
    static const char end[] = ".safetensors", json[] = ".json";
    size_t            length = strlen(name);

    if (strstr(name, ".safetensors.index.") != NULL)
        return strcmp(name + length - (sizeof json - 1), json) == 0;
    return length >= sizeof end && strcmp(name + length - (sizeof end - 1), end) == 0 &&
           strstr(name, "-of-") == NULL;
}

/* The one file of `folder` whose name begins with `start` ("model." for model.fp16.safetensors);
 * `out` is empty when there is none.  Two would leave the choice to chance. */
static int find_only(char *out, size_t capacity, const char *folder, const char *start,
                     struct err *err)
{
    int            rc = ERR_OK;
    char           found[256] = "";
    DIR           *listing = opendir(folder);
    struct dirent *entry;

    out[0] = '\0';
    while (listing != NULL && (entry = readdir(listing)) != NULL) {
        if (strncmp(entry->d_name, start, strlen(start)) != 0 || !is_whole(entry->d_name)) continue;
        if (found[0] != '\0')
            RAISE(err, ERR_FORMAT, 0, "model: '%s' holds '%.100s' and '%.100s'; keep one of them, "
                  "or name it", folder, found, entry->d_name);
        (void)snprintf(found, sizeof found, "%s", entry->d_name);
    }
    if (found[0] != '\0') TRY(join(out, capacity, folder, found, err));
out:
    if (listing != NULL) (void)closedir(listing);
    return rc;
}

/* `names` in order of preference (the second may be NULL), then the only other one that begins with
 * `start`. */
static int find_file(char *out, size_t capacity, const char *folder, const char *const names[2],
                     const char *start, struct err *err)
{
    for (size_t i = 0; i < 2 && names[i] != NULL; i++)
        if (os_join(out, capacity, folder, names[i]) && os_is_file(out)) return ERR_OK;
    return find_only(out, capacity, folder, start, err);
}

/* The weights of one component's folder; `out` is empty when there are none. */
static int find_in_folder(char *out, size_t capacity, const char *folder, enum model_part part,
                          struct err *err)
{
    static const char *const diffusion[] = {"diffusion_pytorch_model.safetensors.index.json",
                                            "diffusion_pytorch_model.safetensors"};
    static const char *const text[] = {"model.safetensors.index.json", "model.safetensors"};

    if (part <= PART_VAE)
        return find_file(out, capacity, folder, diffusion, "diffusion_pytorch_model.", err);
    return find_file(out, capacity, folder, text, "model.", err);
}

/* The single file of a part in the model's folder; `out` is empty when there is none. */
static int find_single(char *out, size_t capacity, const char *root, enum model_part part,
                       struct err *err)
{
    static const char *const flux1[] = {"flux1-dev.safetensors", "flux1-schnell.safetensors"};
    static const char *const ae[] = {"ae.safetensors", NULL};

    if (part == PART_TRANSFORMER) return find_file(out, capacity, root, flux1, "flux1-", err);
    if (part == PART_VAE) return find_file(out, capacity, root, ae, "ae.", err);
    out[0] = '\0';
    return ERR_OK;
}

/* Finds the weights of a part, and the folder of its config.json: beside the weights, or the part's
 * own folder even when the weights are a single file. */
static int locate(struct model *model, enum model_part part, const char *given, char *folder_out,
                  size_t capacity, struct err *err)
{
    int    rc = ERR_OK;
    char  *file = model->file[part];
    size_t file_bytes = sizeof model->file[part];

    if (given != NULL) {
        if (strlen(given) >= capacity)
            RAISE(err, ERR_USAGE, 0, "model: the path '%.80s...' is too long", given);
        memcpy(folder_out, given, strlen(given) + 1);
        if (os_is_file(given)) {
            const char *slash = strrchr(given, '/');
            memcpy(file, given, strlen(given) + 1);
            (void)snprintf(folder_out, capacity, "%.*s", slash == NULL ? 1 : (int)(slash - given),
                           slash == NULL ? "." : given);
            goto out;
        }
        TRY(find_in_folder(file, file_bytes, given, part, err));
        if (file[0] == '\0') TRY(find_single(file, file_bytes, given, part, err));
        if (file[0] == '\0')
            RAISE(err, ERR_FORMAT, 0, "model: '%s' is no file and no folder with the %s", given,
                  folders[part]);
        goto out;
    }
    TRY(join(folder_out, capacity, model->folder, folders[part], err));
    TRY(find_in_folder(file, file_bytes, folder_out, part, err));
    if (file[0] == '\0') TRY(find_single(file, file_bytes, model->folder, part, err));
    if (file[0] != '\0') goto out;
    RAISE(err, ERR_FORMAT, 0,
          "model: '%s' has no weights in %s/%s%s; give --model the folder of FLUX.1-dev or "
          "FLUX.1-schnell",
          model->folder, folders[part], part <= PART_VAE ? " and no " : "",
          part == PART_TRANSFORMER ? "flux1-*.safetensors"
          : part == PART_VAE       ? "ae.safetensors"
                                   : "");
out:
    return rc;
}

/* ----------------------------------------------------------------------------- configurations */

/* Sentences about a JSON file begin with its path; this says whose it is. */
static int in_model(int rc, struct err *err)
{
    if (rc != ERR_OK) err_context(err, "model");
    return rc;
}

static int open_config(json_t **out, const char *path, struct err *err)
{
    return in_model(json_file_open(out, path, CONFIG_BYTES_MAX, err), err);
}

static int part_from_json(struct model *model, enum model_part part, const json_t *object,
                          const char *file, struct err *err)
{
    switch (part) {
    case PART_TRANSFORMER: return model_config_transformer(&model->transformer, object, file, err);
    case PART_VAE: return model_config_vae(&model->vae, object, file, err);
    case PART_CLIP: return model_config_clip(&model->clip, object, file, err);
    default: return model_config_t5(&model->t5, object, file, err);
    }
}

/* A file without a config.json says its sizes by its shapes. */
static int part_from_shapes(struct model *model, enum model_part part, const char *config,
                            struct err *err)
{
    int  rc = ERR_OK;
    bool bfl = false;

    if (part > PART_VAE) RAISE(err, ERR_FORMAT, 0, "model: '%s' does not exist", config);
    TRY(safetensors_open(&model->tensors[part], model->file[part], err));
    if (names_prefix(model->tensors[part], part, &bfl) != NULL && !bfl)
        RAISE(err, ERR_FORMAT, 0, "model: '%s' does not exist, and '%s' cannot do without it",
              config, model->file[part]);
    if (part == PART_TRANSFORMER)
        TRY(model_bfl_transformer(&model->transformer, model->tensors[part], err));
    else
        TRY(model_bfl_vae(&model->vae, model->tensors[part], err));
out:
    return rc;
}

static int open_part(struct model *model, enum model_part part, const char *given, struct err *err)
{
    int     rc = ERR_OK;
    char    folder[1024], config[1100];
    json_t *object = NULL;

    TRY(locate(model, part, given, folder, sizeof folder, err));
    TRY(join(config, sizeof config, folder, "config.json", err));
    if (os_is_file(config)) {
        TRY(open_config(&object, config, err));
        TRY(in_model(part_from_json(model, part, object, config, err), err));
    } else {
        TRY(part_from_shapes(model, part, config, err));
    }
    TRY(safetensors_file_bytes(&model->bytes[part], model->file[part], err));
out:
    json_decref(object);
    return rc;
}

static int open_scheduler(struct model *model, struct err *err)
{
    int     rc = ERR_OK;
    char    path[1100];
    json_t *object = NULL;

    TRY(join(path, sizeof path, model->folder, "scheduler/scheduler_config.json", err));
    if (!os_is_file(path)) {
        model->scheduler = model_config_scheduler_default(model->transformer.guidance);
        goto out;
    }
    TRY(open_config(&object, path, err));
    TRY(in_model(model_config_scheduler(&model->scheduler, object, path, err), err));
out:
    json_decref(object);
    return rc;
}

/* Another pipeline's folder has the same parts and means something else by them. */
static int check_index(const struct model *model, struct err *err)
{
    int         rc = ERR_OK;
    char        path[1100];
    json_t     *object = NULL;
    const char *name;

    TRY(join(path, sizeof path, model->folder, "model_index.json", err));
    if (!os_is_file(path)) goto out;
    TRY(open_config(&object, path, err));
    name = json_string_value(json_object_get(object, "_class_name"));
    if (name != NULL && strcmp(name, "FluxPipeline") != 0 &&
        strcmp(name, "FluxImg2ImgPipeline") != 0)
        RAISE(err, ERR_FORMAT, 0, "model: '%s' is a %.60s; mural paints with a FluxPipeline", path,
              name);
out:
    json_decref(object);
    return rc;
}

int model_open(struct model **out, const struct model_paths *paths, struct err *err)
{
    int           rc = ERR_OK;
    struct model *model = NULL;

    TRY(os_alloc((void **)&model, 1, sizeof *model, "a model", err));
    if (strlen(paths->folder) >= sizeof model->folder)
        RAISE(err, ERR_USAGE, 0, "model: the path '%.80s...' is too long", paths->folder);
    memcpy(model->folder, paths->folder, strlen(paths->folder) + 1);
    if (!os_is_dir(model->folder))
        RAISE(err, ERR_FORMAT, 0, "model: the folder '%s' does not exist", model->folder);
    TRY(check_index(model, err));
    TRY(open_part(model, PART_TRANSFORMER, paths->transformer, err));
    TRY(open_part(model, PART_VAE, paths->vae, err));
    TRY(open_part(model, PART_CLIP, NULL, err));
    TRY(open_part(model, PART_T5, NULL, err));
    TRY(open_scheduler(model, err));
    TRY(model_config_check(model, err));
    *out = model;
    model = NULL;
out:
    model_close(model);
    return rc;
}

/* ------------------------------------------------------------------------------------ weights */

static int map_part(struct model *model, enum model_part part, struct err *err)
{
    int  rc = ERR_OK;
    bool bfl = false;

    if (model->tensors[part] == NULL)
        TRY(safetensors_open(&model->tensors[part], model->file[part], err));
    model->prefix[part] = names_prefix(model->tensors[part], part, &bfl);
    if (model->prefix[part] == NULL)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' holds no %s of FLUX.1", model->file[part],
              folders[part]);
    model->bfl[part] = bfl;
    for (uint32_t i = 0; i < safetensors_count(model->tensors[part]); i++) {
        const struct safetensors_entry *entry = safetensors_at(model->tensors[part], i);
        if (names_is_scale(entry->name))
            RAISE(err, ERR_FORMAT, 0,
                  "weights: '%s' holds scaled or packed weights (%.160s); use a bf16, fp16 or "
                  "plain fp8 file",
                  entry->file, entry->name);
    }
out:
    return rc;
}

int model_map(struct model *model, struct err *err)
{
    int rc = ERR_OK;

    for (int part = 0; part < PART_COUNT; part++)
        TRY(map_part(model, (enum model_part)part, err));
out:
    return rc;
}

void model_close(struct model *model)
{
    if (model == NULL) return;
    for (int part = 0; part < PART_COUNT; part++)
        safetensors_close(model->tensors[part]);
    os_free(model);
}

static void describe_shape(char *out, size_t capacity, const struct safetensors_entry *entry)
{
    int used = snprintf(out, capacity, "%.16s [", entry->dtype_name);

    for (uint32_t i = 0; i < entry->rank; i++)
        used += snprintf(out + used, capacity - (size_t)used, "%s%llu", i == 0 ? "" : ", ",
                         (unsigned long long)entry->shape[i]);
    (void)snprintf(out + used, capacity - (size_t)used, "]");
}

/* Rows and columns of a tensor: everything after the first side is one row.  Kernels of
 * convolutions are square; one that is not has its sides in another order. */
static int check_shape(const struct safetensors_entry *entry, int64_t rows, int64_t cols,
                       struct err *err)
{
    int      rc = ERR_OK;
    uint64_t got_cols = 1;
    bool     square = entry->rank < 4 || entry->shape[2] == entry->shape[3];
    char     got[256];

    for (uint32_t i = 1; i < entry->rank; i++)
        got_cols *= entry->shape[i];
    if (!entry->usable || entry->rank == 0 || entry->shape[0] != (uint64_t)rows ||
        got_cols != (uint64_t)cols || !square) {
        describe_shape(got, sizeof got, entry);
        RAISE(err, ERR_FORMAT, 0,
              "weights: '%s': %.160s is %s; needed %lld x %lld values of BF16, F16, F32 or F8",
              entry->file, entry->name, got, (long long)rows, (long long)cols);
    }
out:
    return rc;
}

int model_weight(struct matrix *out, const struct model *model,
                 const struct weight_request *request, struct err *err)
{
    int                             rc = ERR_OK;
    struct names_place              place = {.rows_file = request->rows_all};
    const struct safetensors       *file = model->tensors[request->part];
    const struct safetensors_entry *entry;
    char                            whole[2 * NAMES_MAX];
    int64_t                         first = request->first_row;

    must(file != NULL && first >= 0 && request->rows > 0 &&
         first + request->rows <= request->rows_all && request->cols > 0);
    if (model->bfl[request->part]) {
        must(names_to_bfl(&place, model, request->part, request->name, request->rows_all));
        (void)snprintf(whole, sizeof whole, "%s%s", model->prefix[request->part], place.name);
        entry = safetensors_find(file, whole);
    } else {
        (void)snprintf(whole, sizeof whole, "%s", request->name);
        entry = names_find(file, request->part, whole);
    }
    if (entry == NULL)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' has no tensor %s; needed %lld x %lld values",
              safetensors_path(file), whole, (long long)place.rows_file, (long long)request->cols);
    TRY(check_shape(entry, place.rows_file, request->cols, err));
    if (place.halves_swapped) {
        int64_t half = request->rows_all / 2;
        must((first == 0 || first == half) && request->rows == half);
        first = half - first;
    }
    first += place.first_row;
    *out =
        (struct matrix){.data = (char *)(uintptr_t)entry->data +
                                (size_t)first * (size_t)request->cols * dtype_bytes(entry->dtype),
                        .dtype = entry->dtype,
                        .rows = request->rows,
                        .cols = request->cols,
                        .ld = request->cols};
out:
    return rc;
}

/* ----------------------------------------------------------------------------------- identity */

/* Both ends of a tensor, and 8 places between: around each a cold disk reads some 100 kB more. */
static uint64_t sample_bytes(const struct safetensors_entry *entry, uint64_t seed)
{
    enum { END = 65536, PLACES = 8, PIECE = 64 };
    const uint8_t *data = entry->data;

    if (entry->bytes <= 2 * END) return hash64(data, (size_t)entry->bytes, seed);
    seed = hash64(data, END, seed);
    for (uint64_t i = 0; i < PLACES; i++) {
        uint64_t at = END + (entry->bytes - 2 * END) / PLACES * i;
        if (at + PIECE <= entry->bytes) seed = hash64(data + at, PIECE, seed);
    }
    return hash64(data + entry->bytes - END, END, seed);
}

uint64_t model_identity(const struct model *model)
{
    uint64_t hash = 0;

    for (int part = 0; part < PART_COUNT; part++) {
        must(model->tensors[part] != NULL);
        for (uint32_t i = 0; i < safetensors_count(model->tensors[part]); i++) {
            const struct safetensors_entry *entry = safetensors_at(model->tensors[part], i);
            hash = hash64(entry->name, strlen(entry->name), hash);
            hash = hash64(entry->dtype_name, strlen(entry->dtype_name), hash);
            hash = hash64(entry->shape, entry->rank * sizeof entry->shape[0], hash);
            hash = sample_bytes(entry, hash);
        }
    }
    return hash;
}
