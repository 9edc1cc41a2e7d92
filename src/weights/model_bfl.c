/*
 * model_bfl.c - sizes out of the shapes of a single file in the layout of Black Forest Labs.
 *
 * Such a file carries no configuration.  What stands in no tensor (rotation axes, groups of norms,
 * scaling of latents, the schedule) is FLUX.1's own, scaled where the widths differ.
 *
 * Read next: model_config.c, which checks what comes out of here.
 */
#include "weights/weights_int.h"

#include <stdio.h>
#include <string.h>

/* Sentences about relations begin with a path; this says whose it is. */
static int in_weights(int rc, struct err *err)
{
    if (rc != ERR_OK) err_context(err, "weights");
    return rc;
}

/* One dimension of a tensor that must exist. */
static int dimension(int64_t *out, const struct safetensors *file, const char *prefix,
                     const char *name, uint32_t axis, struct err *err)
{
    int                             rc = ERR_OK;
    char                            whole[NAMES_MAX];
    const struct safetensors_entry *entry;

    (void)snprintf(whole, sizeof whole, "%s%s", prefix, name);
    entry = safetensors_find(file, whole);
    if (entry == NULL || entry->rank <= axis)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' has no usable %s; it is not a whole FLUX.1 file",
              safetensors_path(file), whole);
    if (entry->shape[axis] < 1 || entry->shape[axis] > 1u << 24)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s': %s has a side of %llu", safetensors_path(file),
              whole, (unsigned long long)entry->shape[axis]);
    *out = (int64_t)entry->shape[axis];
out:
    return rc;
}

/* How many of form % 0, 1, 2 ... exist. */
__attribute__((format(printf, 3, 0))) static int64_t
count_blocks(const struct safetensors *file, const char *prefix, const char *form)
{
    int64_t count = 0;

    for (; count < 256; count++) {
        char name[NAMES_MAX], whole[NAMES_MAX];
        (void)snprintf(name, sizeof name, form, (int)count);
        (void)snprintf(whole, sizeof whole, "%s%.150s", prefix, name);
        if (safetensors_find(file, whole) == NULL) break;
    }
    return count;
}

/* 16, 56, 56 for FLUX.1's heads of 128. */
static void guess_axes(int64_t axes_out[3], int64_t head_dim)
{
    axes_out[0] = head_dim / 8 / 2 * 2;
    axes_out[1] = (head_dim - axes_out[0]) / 4 * 2;
    axes_out[2] = head_dim - axes_out[0] - axes_out[1];
}

int model_bfl_transformer(struct transformer_config *out, const struct safetensors *file,
                          struct err *err)
{
    int                       rc = ERR_OK;
    bool                      bfl = false;
    const char               *prefix = names_prefix(file, PART_TRANSFORMER, &bfl);
    struct transformer_config c = {0};
    char                      guidance[NAMES_MAX];

    if (prefix == NULL || !bfl)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' is not a FLUX.1 transformer",
              safetensors_path(file));
    TRY(dimension(&c.hidden, file, prefix, "img_in.weight", 0, err));
    TRY(dimension(&c.in_channels, file, prefix, "img_in.weight", 1, err));
    TRY(dimension(&c.out_channels, file, prefix, "final_layer.linear.weight", 0, err));
    TRY(dimension(&c.text_width, file, prefix, "txt_in.weight", 1, err));
    TRY(dimension(&c.pooled_width, file, prefix, "vector_in.in_layer.weight", 1, err));
    c.doubles = count_blocks(file, prefix, "double_blocks.%d.img_attn.qkv.weight");
    c.singles = count_blocks(file, prefix, "single_blocks.%d.linear1.weight");
    if (c.doubles > 0)
        TRY(dimension(&c.head_dim, file, prefix, "double_blocks.0.img_attn.norm.key_norm.scale", 0,
                      err));
    else
        TRY(dimension(&c.head_dim, file, prefix, "single_blocks.0.norm.key_norm.scale", 0, err));
    if (c.head_dim < 16 || c.head_dim % 2 != 0 || c.hidden % c.head_dim != 0)
        RAISE(err, ERR_FORMAT, 0,
              "weights: '%s': a width of %lld cannot be split into heads of %lld",
              safetensors_path(file), (long long)c.hidden, (long long)c.head_dim);
    c.heads = c.hidden / c.head_dim;
    c.mlp = 4 * c.hidden;
    (void)snprintf(guidance, sizeof guidance, "%sguidance_in.in_layer.weight", prefix);
    c.guidance = safetensors_find(file, guidance) != NULL;
    guess_axes(c.rope_axes, c.head_dim);
    TRY(in_weights(model_config_check_transformer(&c, safetensors_path(file), err), err));
    *out = c;
out:
    return rc;
}

/* 32 in FLUX.1; a smaller VAE has as many as its narrowest level can share out evenly. */
static int64_t guess_norm_groups(const struct vae_config *config)
{
    for (int64_t groups = 32; groups > 1; groups /= 2) {
        bool divides = true;
        for (int64_t i = 0; i < config->block_count; i++)
            divides = divides && config->widths[i] % groups == 0 && config->widths[i] / groups >= 4;
        if (divides) return groups;
    }
    return 1;
}

int model_bfl_vae(struct vae_config *out, const struct safetensors *file, struct err *err)
{
    int               rc = ERR_OK;
    bool              bfl = false;
    const char       *prefix = names_prefix(file, PART_VAE, &bfl);
    struct vae_config c = {
        .scaling = VAE_SCALING, .shift = VAE_SHIFT, .mid_attention = true};
    char name[NAMES_MAX], mid[NAMES_MAX];

    if (prefix == NULL || !bfl)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' is not FLUX.1's VAE", safetensors_path(file));
    c.block_count = count_blocks(file, prefix, "encoder.down.%d.block.0.conv1.weight");
    if (c.block_count < 1 || c.block_count > 8)
        RAISE(err, ERR_FORMAT, 0, "weights: '%s' has %lld levels; needed 1..8",
              safetensors_path(file), (long long)c.block_count);
    for (int64_t i = 0; i < c.block_count; i++) {
        (void)snprintf(name, sizeof name, "encoder.down.%d.block.0.conv1.weight", (int)i);
        TRY(dimension(&c.widths[i], file, prefix, name, 0, err));
    }
    c.layers_per_block = count_blocks(file, prefix, "encoder.down.0.block.%d.conv1.weight");
    TRY(dimension(&c.latent_channels, file, prefix, "decoder.conv_in.weight", 1, err));
    TRY(dimension(&c.image_channels, file, prefix, "encoder.conv_in.weight", 1, err));
    (void)snprintf(mid, sizeof mid, "%sencoder.mid.attn_1.q.weight", prefix);
    c.mid_attention = safetensors_find(file, mid) != NULL;
    c.norm_groups = guess_norm_groups(&c);
    TRY(in_weights(model_config_check_vae(&c, safetensors_path(file), err), err));
    *out = c;
out:
    return rc;
}
