/*
 * fuzz_model_config.c - any JSON as one of a model's configurations; the first byte says which.
 * Whatever is taken must be fit to compute with.
 */
#include "weights/weights_int.h"

#include <math.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int parse_transformer(const json_t *object, struct err *err)
{
    struct transformer_config c;
    int                       rc = model_config_transformer(&c, object, "fuzz.json", err);

    if (rc != ERR_OK) return rc;
    must(c.heads > 0 && c.head_dim > 0 && c.heads * c.head_dim == c.hidden && c.mlp > 0);
    must(c.doubles >= 0 && c.singles >= 0 && c.in_channels > 0 && c.out_channels == c.in_channels);
    must(c.text_width > 0 && c.pooled_width > 0);
    must(c.rope_axes[0] + c.rope_axes[1] + c.rope_axes[2] == c.head_dim);
    for (int i = 0; i < 3; i++) must(c.rope_axes[i] >= 2 && c.rope_axes[i] % 2 == 0);
    return rc;
}

static int parse_vae(const json_t *object, struct err *err)
{
    struct vae_config c;
    int               rc = model_config_vae(&c, object, "fuzz.json", err);

    if (rc != ERR_OK) return rc;
    must(c.block_count >= 1 && c.block_count <= 8 && c.image_channels == 3 && c.norm_groups > 0);
    for (int64_t i = 0; i < c.block_count; i++)
        must(c.widths[i] > 0 && c.widths[i] % c.norm_groups == 0);
    must(c.layers_per_block > 0 && c.latent_channels > 0);
    must(c.scaling > 0 && isfinite(c.scaling) && isfinite(c.shift));
    return rc;
}

static int parse_clip(const json_t *object, struct err *err)
{
    struct clip_config c;
    int                rc = model_config_clip(&c, object, "fuzz.json", err);

    if (rc != ERR_OK) return rc;
    must(c.hidden > 0 && c.heads > 0 && c.hidden % c.heads == 0 && c.mlp > 0 && c.layers > 0);
    must(c.positions >= 2 && c.vocab >= 3 && c.eps > 0 && c.eps <= 1);
    return rc;
}

static int parse_t5(const json_t *object, struct err *err)
{
    struct t5_config c;
    int              rc = model_config_t5(&c, object, "fuzz.json", err);

    if (rc != ERR_OK) return rc;
    must(c.hidden > 0 && c.mlp > 0 && c.head_dim > 0 && c.heads > 0 && c.layers > 0);
    must(c.vocab >= 3 && c.buckets >= 4 && c.max_distance > c.buckets / 4 && c.eps > 0);
    return rc;
}

static int parse_scheduler(const json_t *object, struct err *err)
{
    struct scheduler_config c;
    int                     rc = model_config_scheduler(&c, object, "fuzz.json", err);

    if (rc != ERR_OK) return rc;
    must(c.shift > 0 && c.base_tokens > 0 && c.base_tokens < c.max_tokens);
    must(isfinite(exp(c.base_shift)) && isfinite(exp(c.max_shift)));
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int (*const parsers[])(const json_t *, struct err *) = {
        parse_transformer, parse_vae, parse_clip, parse_t5, parse_scheduler};
    struct err err = {.code = ERR_OK};
    json_t    *object;

    if (size == 0) return 0;
    object = json_loadb((const char *)data + 1, size - 1, JSON_REJECT_DUPLICATES, NULL);
    if (object == NULL) return 0;
    if (parsers[data[0] % ARRAY_COUNT(parsers)](object, &err) != ERR_OK)
        must(err.code == ERR_FORMAT && strncmp(err.text, "'fuzz.json'", 11) == 0);
    json_decref(object);
    return 0;
}
