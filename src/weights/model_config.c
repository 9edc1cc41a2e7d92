/*
 * model_config.c - from config.json objects to numbers, everything checked.
 *
 * Knows the keys of FLUX.1's five configurations and what this engine can compute; reads no files.
 *
 * Read next: model.c, which finds the files.
 */
#include "weights/weights_int.h"

#include <string.h>

/* A string that must have one of two values; absent is fine. */
static int need_text(const json_t *object, const char *file, const char *key, const char *value,
                     const char *other, struct err *err)
{
    int           rc = ERR_OK;
    const json_t *found = json_object_get(object, key);

    if (found == NULL || json_is_null(found)) goto out;
    if (!json_is_string(found)) RAISE(err, ERR_FORMAT, 0, "'%s': %s must be a string", file, key);
    if (strcmp(json_string_value(found), value) != 0 &&
        (other == NULL || strcmp(json_string_value(found), other) != 0))
        RAISE(err, ERR_FORMAT, 0, "'%s': %s is '%.60s'; FLUX.1 has '%s'", file, key,
              json_string_value(found), value);
out:
    return rc;
}

/* A number that may be absent. */
struct number_rule {
    const char *key;
    double      least, most, absent;
};

static int read_number(double *out, const json_t *object, const char *file,
                       const struct number_rule *rule, struct err *err)
{
    int    rc = ERR_OK;
    double value = 0;

    TRY(json_read_number(&value, object, file, rule->key, rule->absent, err));
    if (value < rule->least || value > rule->most)
        RAISE(err, ERR_FORMAT, 0, "'%s': %s is %g; it must be %g..%g", file, rule->key, value,
              rule->least, rule->most);
    *out = value;
out:
    return rc;
}

/* Switches that turn a known part into another one; FLUX.1 has none of them. */
static int need_false(const json_t *object, const char *file, const char *const *keys,
                      size_t count, struct err *err)
{
    int  rc = ERR_OK;
    bool on = false;

    for (size_t i = 0; i < count; i++) {
        TRY(json_read_bool(&on, object, file, keys[i], false, err));
        if (on)
            RAISE(err, ERR_FORMAT, 0, "'%s': %s is true; FLUX.1 has it false, and mural computes "
                  "only that", file, keys[i]);
    }
out:
    return rc;
}

static int need_object(const json_t *object, const char *file, struct err *err)
{
    int rc = ERR_OK;

    if (!json_is_object(object)) RAISE(err, ERR_FORMAT, 0, "'%s' must hold a JSON object", file);
out:
    return rc;
}

static int read_axes(struct transformer_config *config, const json_t *object, const char *file,
                     struct err *err)
{
    int           rc = ERR_OK;
    const json_t *axes = json_object_get(object, "axes_dims_rope");

    if (axes == NULL || json_is_null(axes)) {
        config->rope_axes[0] = 16;
        config->rope_axes[1] = config->rope_axes[2] = 56;
        goto out;
    }
    if (!json_is_array(axes) || json_array_size(axes) != 3)
        RAISE(err, ERR_FORMAT, 0, "'%s': axes_dims_rope must be a list of 3 whole numbers", file);
    for (size_t i = 0; i < 3; i++) {
        const json_t *axis = json_array_get(axes, i);
        if (!json_is_integer(axis) || json_integer_value(axis) < 2 ||
            json_integer_value(axis) > 512)
            RAISE(err, ERR_FORMAT, 0, "'%s': axes_dims_rope has a value that is not 2..512", file);
        config->rope_axes[i] = json_integer_value(axis);
    }
out:
    return rc;
}

int model_config_transformer(struct transformer_config *out, const json_t *object, const char *file,
                             struct err *err)
{
    int                       rc = ERR_OK;
    struct transformer_config c = {0};
    int64_t                   patch = 0;
    struct json_int_rule      heads = {"num_attention_heads", 1, 256, true, 0};
    struct json_int_rule      head_dim = {"attention_head_dim", 8, 512, true, 0};
    struct json_int_rule      doubles = {"num_layers", 0, 256, true, 0};
    struct json_int_rule      singles = {"num_single_layers", 0, 256, true, 0};
    struct json_int_rule      in = {"in_channels", 4, 4096, true, 0};
    struct json_int_rule      channels = {"out_channels", 4, 4096, false, 0};
    struct json_int_rule      text = {"joint_attention_dim", 1, 65536, true, 0};
    struct json_int_rule      pooled = {"pooled_projection_dim", 1, 65536, true, 0};
    struct json_int_rule      patch_size = {"patch_size", 1, 1, false, 1};

    TRY(need_object(object, file, err));
    TRY(need_text(object, file, "_class_name", "FluxTransformer2DModel", NULL, err));
    TRY(json_read_int(&c.heads, object, file, &heads, err));
    TRY(json_read_int(&c.head_dim, object, file, &head_dim, err));
    TRY(json_read_int(&c.doubles, object, file, &doubles, err));
    TRY(json_read_int(&c.singles, object, file, &singles, err));
    TRY(json_read_int(&c.in_channels, object, file, &in, err));
    channels.absent = c.in_channels;
    TRY(json_read_int(&c.out_channels, object, file, &channels, err));
    TRY(json_read_int(&c.text_width, object, file, &text, err));
    TRY(json_read_int(&c.pooled_width, object, file, &pooled, err));
    TRY(json_read_int(&patch, object, file, &patch_size, err));
    TRY(json_read_bool(&c.guidance, object, file, "guidance_embeds", false, err));
    TRY(read_axes(&c, object, file, err));
    c.hidden = c.heads * c.head_dim;
    c.mlp = 4 * c.hidden;
    TRY(model_config_check_transformer(&c, file, err));
    *out = c;
out:
    return rc;
}

/* What the in_channels of the models beside FLUX.1-dev and FLUX.1-schnell say. */
static const char *sibling(int64_t in_channels)
{
    if (in_channels == 384) return "a Fill";
    if (in_channels == 128) return "a Canny or Depth";
    return "a conditioned";
}

int model_config_check_transformer(const struct transformer_config *c, const char *file,
                                   struct err *err)
{
    int     rc = ERR_OK;
    int64_t sum = c->rope_axes[0] + c->rope_axes[1] + c->rope_axes[2];

    if (sum != c->head_dim)
        RAISE(err, ERR_FORMAT, 0, "'%s': axes_dims_rope sums to %lld; attention_head_dim is %lld",
              file, (long long)sum, (long long)c->head_dim);
    for (int i = 0; i < 3; i++)
        if (c->rope_axes[i] % 2 != 0)
            RAISE(err, ERR_FORMAT, 0, "'%s': axes_dims_rope has the odd value %lld", file,
                  (long long)c->rope_axes[i]);
    if (c->in_channels != c->out_channels)
        RAISE(err, ERR_FORMAT, 0,
              "'%s': in_channels is %lld and out_channels %lld: this is %s sibling of FLUX.1, "
              "which takes more inputs than mural gives; use FLUX.1-dev or FLUX.1-schnell",
              file, (long long)c->in_channels, (long long)c->out_channels, sibling(c->in_channels));
out:
    return rc;
}

/* One kind of block at every level; absent is fine. */
static int need_blocks(const json_t *object, const char *file, const char *key, const char *kind,
                       int64_t count, struct err *err)
{
    int           rc = ERR_OK;
    const json_t *found = json_object_get(object, key);

    if (found == NULL || json_is_null(found)) goto out;
    if (!json_is_array(found) || (int64_t)json_array_size(found) != count)
        RAISE(err, ERR_FORMAT, 0, "'%s': %s must be a list of %lld, as block_out_channels", file,
              key, (long long)count);
    for (size_t i = 0; i < json_array_size(found); i++) {
        const char *text = json_string_value(json_array_get(found, i));
        if (text == NULL || strcmp(text, kind) != 0)
            RAISE(err, ERR_FORMAT, 0, "'%s': %s has '%.60s' at place %zu; FLUX.1 has '%s'", file,
                  key, text == NULL ? "no string" : text, i, kind);
    }
out:
    return rc;
}

static const char *const quant_convs[] = {"use_quant_conv", "use_post_quant_conv"};

int model_config_vae(struct vae_config *out, const json_t *object, const char *file,
                     struct err *err)
{
    int                  rc = ERR_OK;
    struct vae_config    c = {0};
    const json_t        *widths = json_object_get(object, "block_out_channels");
    struct json_int_rule layers = {"layers_per_block", 1, 16, true, 0};
    struct json_int_rule latent = {"latent_channels", 4, 256, true, 0};
    struct json_int_rule image = {"in_channels", 3, 3, false, 3};
    struct json_int_rule groups = {"norm_num_groups", 1, 1024, false, 32};
    struct number_rule   scaling = {"scaling_factor", 1e-6, 1e6, VAE_SCALING};
    struct number_rule   shift = {"shift_factor", -1e6, 1e6, VAE_SHIFT};
    struct json_int_rule made = {"out_channels", 3, 3, false, 3};
    int64_t              out_channels = 0;

    TRY(need_object(object, file, err));
    TRY(need_text(object, file, "_class_name", "AutoencoderKL", NULL, err));
    if (!json_is_array(widths) || json_array_size(widths) < 1 || json_array_size(widths) > 8)
        RAISE(err, ERR_FORMAT, 0, "'%s': block_out_channels must be a list of 1..8 widths", file);
    c.block_count = (int64_t)json_array_size(widths);
    for (size_t i = 0; i < json_array_size(widths); i++) {
        c.widths[i] = json_integer_value(json_array_get(widths, i));
        if (c.widths[i] < 1 || c.widths[i] > 8192)
            RAISE(err, ERR_FORMAT, 0, "'%s': block_out_channels has a value that is not 1..8192",
                  file);
    }
    TRY(json_read_int(&c.layers_per_block, object, file, &layers, err));
    TRY(json_read_int(&c.latent_channels, object, file, &latent, err));
    TRY(json_read_int(&c.image_channels, object, file, &image, err));
    TRY(json_read_int(&out_channels, object, file, &made, err));
    TRY(json_read_int(&c.norm_groups, object, file, &groups, err));
    TRY(read_number(&c.scaling, object, file, &scaling, err));
    TRY(read_number(&c.shift, object, file, &shift, err));
    TRY(json_read_bool(&c.mid_attention, object, file, "mid_block_add_attention", true, err));
    TRY(need_text(object, file, "act_fn", "silu", "swish", err));
    TRY(need_false(object, file, quant_convs, ARRAY_COUNT(quant_convs), err));
    TRY(model_config_check_vae(&c, file, err));
    TRY(need_blocks(object, file, "down_block_types", "DownEncoderBlock2D", c.block_count, err));
    TRY(need_blocks(object, file, "up_block_types", "UpDecoderBlock2D", c.block_count, err));
    *out = c;
out:
    return rc;
}

int model_config_check_vae(const struct vae_config *c, const char *file, struct err *err)
{
    int rc = ERR_OK;

    if (c->image_channels != 3)
        RAISE(err, ERR_FORMAT, 0, "'%s': the VAE takes %lld channels of colour; FLUX.1's takes 3",
              file, (long long)c->image_channels);
    for (int64_t i = 0; i < c->block_count; i++)
        if (c->widths[i] % c->norm_groups != 0)
            RAISE(err, ERR_FORMAT, 0,
                  "'%s': norm_num_groups is %lld, which does not divide the width %lld", file,
                  (long long)c->norm_groups, (long long)c->widths[i]);
out:
    return rc;
}

int model_config_clip(struct clip_config *out, const json_t *object, const char *file,
                      struct err *err)
{
    int                  rc = ERR_OK;
    struct clip_config   c = {0};
    struct json_int_rule hidden = {"hidden_size", 1, 16384, true, 0};
    struct json_int_rule mlp = {"intermediate_size", 1, 65536, true, 0};
    struct json_int_rule layers = {"num_hidden_layers", 1, 256, true, 0};
    struct json_int_rule heads = {"num_attention_heads", 1, 256, true, 0};
    struct json_int_rule positions = {"max_position_embeddings", 2, 4096, false, 77};
    struct json_int_rule vocab = {"vocab_size", 3, 10000000, true, 0};
    struct number_rule   eps = {"layer_norm_eps", 1e-12, 1, 1e-5};

    TRY(need_object(object, file, err));
    TRY(json_read_int(&c.hidden, object, file, &hidden, err));
    TRY(json_read_int(&c.mlp, object, file, &mlp, err));
    TRY(json_read_int(&c.layers, object, file, &layers, err));
    TRY(json_read_int(&c.heads, object, file, &heads, err));
    TRY(json_read_int(&c.positions, object, file, &positions, err));
    TRY(json_read_int(&c.vocab, object, file, &vocab, err));
    TRY(read_number(&c.eps, object, file, &eps, err));
    TRY(need_text(object, file, "hidden_act", "quick_gelu", NULL, err));
    if (c.hidden % c.heads != 0)
        RAISE(err, ERR_FORMAT, 0, "'%s': hidden_size %lld cannot be split over %lld heads", file,
              (long long)c.hidden, (long long)c.heads);
    *out = c;
out:
    return rc;
}

int model_config_t5(struct t5_config *out, const json_t *object, const char *file, struct err *err)
{
    int                  rc = ERR_OK;
    struct t5_config     c = {0};
    struct json_int_rule hidden = {"d_model", 1, 65536, true, 0};
    struct json_int_rule mlp = {"d_ff", 1, 262144, true, 0};
    struct json_int_rule head_dim = {"d_kv", 1, 1024, true, 0};
    struct json_int_rule heads = {"num_heads", 1, 1024, true, 0};
    struct json_int_rule layers = {"num_layers", 1, 256, true, 0};
    struct json_int_rule vocab = {"vocab_size", 3, 10000000, true, 0};
    struct json_int_rule buckets = {"relative_attention_num_buckets", 4, 1024, false, 32};
    struct json_int_rule distance = {"relative_attention_max_distance", 2, 65536, false, 128};
    struct number_rule   eps = {"layer_norm_epsilon", 1e-12, 1, 1e-6};

    TRY(need_object(object, file, err));
    TRY(json_read_int(&c.hidden, object, file, &hidden, err));
    TRY(json_read_int(&c.mlp, object, file, &mlp, err));
    TRY(json_read_int(&c.head_dim, object, file, &head_dim, err));
    TRY(json_read_int(&c.heads, object, file, &heads, err));
    TRY(json_read_int(&c.layers, object, file, &layers, err));
    TRY(json_read_int(&c.vocab, object, file, &vocab, err));
    TRY(json_read_int(&c.buckets, object, file, &buckets, err));
    TRY(json_read_int(&c.max_distance, object, file, &distance, err));
    TRY(read_number(&c.eps, object, file, &eps, err));
    TRY(need_text(object, file, "feed_forward_proj", "gated-gelu", NULL, err));
    /* A quarter of the buckets are exact; the others share what lies beyond by its logarithm. */
    if (c.max_distance <= c.buckets / 4)
        RAISE(err, ERR_FORMAT, 0, "'%s': relative_attention_max_distance is %lld; it must be above "
              "a quarter of the %lld buckets", file, (long long)c.max_distance,
              (long long)c.buckets);
    *out = c;
out:
    return rc;
}

static const char *const other_schedules[] = {"use_karras_sigmas", "use_exponential_sigmas",
                                              "use_beta_sigmas", "invert_sigmas",
                                              "stochastic_sampling"};

int model_config_scheduler(struct scheduler_config *out, const json_t *object, const char *file,
                           struct err *err)
{
    int                     rc = ERR_OK;
    struct scheduler_config c = {0};
    struct json_int_rule    base = {"base_image_seq_len", 1, 1 << 24, false, 256};
    struct json_int_rule    most = {"max_image_seq_len", 1, 1 << 24, false, 4096};
    struct number_rule      shift = {"shift", 0.01, 100, 1};
    struct number_rule      base_shift = {"base_shift", -10, 10, 0.5};
    struct number_rule      max_shift = {"max_shift", -10, 10, 1.15};
    struct json_int_rule    train = {"num_train_timesteps", 1000, 1000, false, 1000};
    int64_t                 train_steps = 0;

    TRY(need_object(object, file, err));
    TRY(need_text(object, file, "_class_name", "FlowMatchEulerDiscreteScheduler", NULL, err));
    TRY(need_text(object, file, "time_shift_type", "exponential", NULL, err));
    TRY(need_false(object, file, other_schedules, ARRAY_COUNT(other_schedules), err));
    TRY(json_read_int(&train_steps, object, file, &train, err));
    if (json_is_number(json_object_get(object, "shift_terminal")))
        RAISE(err, ERR_FORMAT, 0, "'%s': shift_terminal is set; FLUX.1 has none", file);
    TRY(json_read_bool(&c.dynamic_shift, object, file, "use_dynamic_shifting", false, err));
    TRY(read_number(&c.shift, object, file, &shift, err));
    TRY(read_number(&c.base_shift, object, file, &base_shift, err));
    TRY(read_number(&c.max_shift, object, file, &max_shift, err));
    TRY(json_read_int(&c.base_tokens, object, file, &base, err));
    TRY(json_read_int(&c.max_tokens, object, file, &most, err));
    if (c.base_tokens >= c.max_tokens)
        RAISE(err, ERR_FORMAT, 0, "'%s': base_image_seq_len must be below max_image_seq_len", file);
    *out = c;
out:
    return rc;
}

struct scheduler_config model_config_scheduler_default(bool guidance)
{
    return (struct scheduler_config){.dynamic_shift = guidance,
                                     .shift = guidance ? 3.0 : 1.0,
                                     .base_shift = 0.5,
                                     .max_shift = 1.15,
                                     .base_tokens = 256,
                                     .max_tokens = 4096};
}

int model_config_check(const struct model *model, struct err *err)
{
    int                              rc = ERR_OK;
    const struct transformer_config *t = &model->transformer;

    if (t->in_channels != 4 * model->vae.latent_channels)
        RAISE(err, ERR_FORMAT, 0,
              "model: the transformer's in_channels are %lld and the VAE makes 4 x %lld; they do "
              "not belong together%s",
              (long long)t->in_channels, (long long)model->vae.latent_channels,
              t->in_channels == 384 || t->in_channels == 128
                  ? ", and siblings of FLUX.1 such as Fill, Canny and Depth are not for mural"
                  : "");
    if (t->text_width != model->t5.hidden)
        RAISE(err, ERR_FORMAT, 0,
              "model: the transformer takes text of width %lld and T5 makes %lld",
              (long long)t->text_width, (long long)model->t5.hidden);
    if (t->pooled_width != model->clip.hidden)
        RAISE(err, ERR_FORMAT, 0,
              "model: the transformer takes a pooled vector of %lld and CLIP makes %lld",
              (long long)t->pooled_width, (long long)model->clip.hidden);
out:
    return rc;
}
