/*
 * synth.c - a model folder with random weights: which files there are, and all or none of them.
 *
 * Knows the shape of a model folder; values and containers are synth_file.c's, vocabularies
 * synth_tokenizer.c's.
 *
 * Invariant: after a failure the place looks as it did before.
 *
 * Read next: synth_file.c.
 */
#include "weights/weights_int.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* What small files, headers and blocks of the file system may add to the tensors. */
#define SLACK_BYTES UINT64_C(16000000)

/* ------------------------------------------------------------------------------- the place */

static int check_folder(bool *exists_out, const char *folder, struct err *err)
{
    int            rc = ERR_OK;
    DIR           *open = opendir(folder);
    struct dirent *entry;

    *exists_out = open != NULL;
    if (open == NULL && errno == ENOENT) goto out;
    if (open == NULL)
        RAISE(err, ERR_USAGE, errno, "synth: '%s' cannot be used as a folder: %s", folder,
              strerror(errno));
    while ((entry = readdir(open)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            RAISE(err, ERR_USAGE, 0, "synth: the folder '%s' is not empty ('%.100s' is in it); "
                  "name a new one", folder, entry->d_name);
out:
    if (open != NULL) (void)closedir(open);
    return rc;
}

/* The folder above `folder`, which exists when `folder` can be made. */
static int parent_of(char *out, size_t capacity, const char *folder, struct err *err)
{
    int    rc = ERR_OK;
    size_t length = strlen(folder);

    if (length == 0 || length >= capacity)
        RAISE(err, ERR_USAGE, 0, "synth: the folder's name has %zu bytes; 1 to %zu can be used",
              length, capacity - 1);
    while (length > 1 && folder[length - 1] == '/') length--;
    while (length > 0 && folder[length - 1] != '/') length--;
    while (length > 1 && folder[length - 1] == '/') length--;
    memcpy(out, length == 0 ? "." : folder, length == 0 ? 1 : length);
    out[length == 0 ? 1 : length] = '\0';
    if (!os_is_dir(out))
        RAISE(err, ERR_USAGE, 0, "synth: the folder '%.200s' does not exist; make it first", out);
out:
    return rc;
}

static int check_room(const char *folder, uint64_t bytes, struct err *err)
{
    int      rc = ERR_OK;
    uint64_t room = 0;
    char     needed[32], there[32];

    TRY(os_free_bytes(&room, folder, err));
    if (room < bytes)
        RAISE(err, ERR_IO, ENOSPC, "synth: the model needs %s, but '%s' has %s free; free some or "
              "name a folder on another disk", text_bytes(needed, sizeof needed, bytes), folder,
              text_bytes(there, sizeof there, room));
out:
    return rc;
}

/* ----------------------------------------------------------------------------- small files */

/* The spec's object, with the name of its class when it has none; new reference. */
static json_t *config_object(const json_t *root, const char *key, const char *class_name)
{
    json_t     *copy = json_copy(json_object_get(root, key));
    bool        transformers = strncmp(key, "text_encoder", 12) == 0;
    const char *class_key = transformers ? "architectures" : "_class_name";

    if (copy != NULL && json_object_get(copy, class_key) == NULL)
        (void)json_object_set_new(copy, class_key, transformers ? json_pack("[s]", class_name)
                                                                : json_string(class_name));
    return copy;
}

static int write_json(struct synth_output *output, const char *name, json_t *value,
                      struct err *err)
{
    int rc = synth_file_json(output, name, value, err);
    json_decref(value);
    return rc;
}

static int write_small_files(struct synth_output *output, const struct synth_spec *spec,
                             struct err *err)
{
    int     rc = ERR_OK;
    json_t *index = json_pack(
        "{s:s, s:s, s:[ss], s:[ss], s:[ss], s:[ss], s:[ss], s:[ss], s:[ss]}", "_class_name",
        "FluxPipeline", "_diffusers_version", "0.30.0.dev0", "scheduler", "diffusers",
        "FlowMatchEulerDiscreteScheduler", "text_encoder", "transformers", "CLIPTextModel",
        "text_encoder_2", "transformers", "T5EncoderModel", "tokenizer", "transformers",
        "CLIPTokenizer", "tokenizer_2", "transformers", "T5TokenizerFast", "transformer",
        "diffusers", "FluxTransformer2DModel", "vae", "diffusers", "AutoencoderKL");

    TRY(write_json(output, "model_index.json", index, err));
    TRY(synth_file_folder(output, "scheduler", err));
    TRY(write_json(output, "scheduler/scheduler_config.json",
                   config_object(spec->root, "scheduler", "FlowMatchEulerDiscreteScheduler"),
                   err));
    TRY(synth_tokenizer_clip(output, &spec->configs.clip, err));
    TRY(synth_tokenizer_t5(output, &spec->configs.t5, spec->text_tokens, err));
out:
    return rc;
}

/* -------------------------------------------------------------------------------- the parts */

static int write_part(struct synth_output *output, const struct synth_request *request,
                      const struct synth_spec *spec, enum model_part part,
                      const struct layout *layout, struct err *err)
{
    static const char *const classes[PART_COUNT] = {"FluxTransformer2DModel", "AutoencoderKL",
                                                    "CLIPTextModel", "T5EncoderModel"};
    int               rc = ERR_OK;
    bool              diffusion = part == PART_TRANSFORMER || part == PART_VAE;
    const char       *folder = model_part_name(part);
    char              config[64], name[64];
    struct synth_part file = {.layout = layout, .name = name, .dtype = request->dtype,
                              .seed = request->seed, .shard_bytes = request->shard_bytes,
                              .hollow = request->hollow};

    (void)snprintf(config, sizeof config, "%s/config.json", folder);
    (void)snprintf(name, sizeof name, "%s/%s", folder,
                   diffusion ? "diffusion_pytorch_model" : "model");
    TRY(synth_file_folder(output, folder, err));
    TRY(write_json(output, config, config_object(spec->root, folder, classes[part]), err));
    if (diffusion && request->bfl) {
        file.name = part == PART_VAE                      ? "ae"
                    : spec->configs.transformer.guidance ? "flux1-dev"
                                                         : "flux1-schnell";
        file.shard_bytes = 0; /* that layout knows no shards */
    }
    TRY(synth_file_part(output, &file, err));
out:
    return rc;
}

static int write_all(struct synth_output *output, const struct synth_request *request,
                     const struct synth_spec *spec, const struct layout layouts[PART_COUNT],
                     struct err *err)
{
    int rc = ERR_OK;

    TRY(synth_file_folder(output, "", err));
    TRY(write_small_files(output, spec, err));
    for (int part = 0; part < PART_COUNT; part++)
        TRY(write_part(output, request, spec, (enum model_part)part, &layouts[part], err));
out:
    return rc;
}

int synth_write(const struct synth_request *request, struct err *err)
{
    int                 rc = ERR_OK;
    bool                exists = false;
    uint64_t            bytes = SLACK_BYTES;
    char                parent[4096];
    struct synth_spec  *spec = NULL;
    struct layout       layouts[PART_COUNT] = {0};
    struct synth_output output = {.folder = request->folder};

    if (request->dtype != DTYPE_F32 && request->dtype != DTYPE_BF16 &&
        request->dtype != DTYPE_F16)
        RAISE(err, ERR_USAGE, 0, "synth: weights can be written as f32, bf16 or f16 only");
    TRY(parent_of(parent, sizeof parent, request->folder, err));
    TRY(check_folder(&exists, request->folder, err));
    TRY(os_alloc((void **)&spec, 1, sizeof *spec, "the model's sizes", err));
    TRY(synth_spec_open(spec, request->spec, err));
    for (int part = 0; part < PART_COUNT; part++) {
        TRY(layout_open(&layouts[part], &spec->configs, (enum model_part)part, request->bfl, err));
        bytes += layout_elements(&layouts[part]) * dtype_bytes(request->dtype);
    }
    if (!request->hollow) TRY(check_room(exists ? request->folder : parent, bytes, err));
    rc = write_all(&output, request, spec, layouts, err);
    if (rc != ERR_OK) synth_file_undo(&output);
out:
    synth_file_close(&output);
    for (int part = 0; part < PART_COUNT; part++) layout_close(&layouts[part]);
    if (spec != NULL) synth_spec_close(spec);
    os_free(spec);
    return rc;
}
