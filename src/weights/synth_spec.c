/*
 * synth_spec.c - what a synthetic model shall be: one of three built-in ones, or a JSON file.
 *
 * Owns the built-in configurations and the parsed objects; the meaning of their keys, and which
 * parts fit together, is model_config.c's.
 *
 * Read next: synth.c.
 */
#include "weights/weights_int.h"

#include <stdio.h>
#include <string.h>

enum { SPEC_BYTES_MAX = 1 << 20, TEXT_TOKENS = 512 };

#define VAE_BLOCKS(kind) "[\"" kind "\", \"" kind "\", \"" kind "\", \"" kind "\"]"

/* The keys in which the built-in models do not differ. */
#define VAE_REST                                                                                   \
    "\"_class_name\": \"AutoencoderKL\", \"act_fn\": \"silu\","                                    \
    "\"down_block_types\": " VAE_BLOCKS("DownEncoderBlock2D") ","                                  \
    "\"up_block_types\": " VAE_BLOCKS("UpDecoderBlock2D") ","                                      \
    "\"force_upcast\": true, \"in_channels\": 3, \"out_channels\": 3, \"latent_channels\": 16,"    \
    "\"latents_mean\": null, \"latents_std\": null, \"mid_block_add_attention\": true,"            \
    "\"scaling_factor\": 0.3611, \"shift_factor\": 0.1159,"                                        \
    "\"use_post_quant_conv\": false, \"use_quant_conv\": false"
#define CLIP_REST /* the three ids are wrong, as they are in FLUX.1's own folders */               \
    "\"architectures\": [\"CLIPTextModel\"], \"model_type\": \"clip_text_model\","                 \
    "\"bos_token_id\": 0, \"eos_token_id\": 2, \"pad_token_id\": 1, \"attention_dropout\": 0.0,"   \
    "\"dropout\": 0.0, \"hidden_act\": \"quick_gelu\", \"initializer_factor\": 1.0,"               \
    "\"initializer_range\": 0.02, \"layer_norm_eps\": 1e-05, \"max_position_embeddings\": 77"
#define T5_REST                                                                                    \
    "\"architectures\": [\"T5EncoderModel\"], \"model_type\": \"t5\", \"dropout_rate\": 0.1,"      \
    "\"classifier_dropout\": 0.0, \"decoder_start_token_id\": 0, \"eos_token_id\": 1,"             \
    "\"pad_token_id\": 0, \"dense_act_fn\": \"gelu_new\", \"is_gated_act\": true,"                 \
    "\"feed_forward_proj\": \"gated-gelu\", \"is_encoder_decoder\": true,"                         \
    "\"initializer_factor\": 1.0, \"layer_norm_epsilon\": 1e-06, \"output_past\": true,"           \
    "\"relative_attention_max_distance\": 128, \"relative_attention_num_buckets\": 32,"            \
    "\"tie_word_embeddings\": false, \"use_cache\": true"
#define SCHEDULER                                                                                  \
    "\"scheduler\": {\"_class_name\": \"FlowMatchEulerDiscreteScheduler\","                        \
    "\"base_image_seq_len\": 256, \"base_shift\": 0.5, \"max_image_seq_len\": 4096,"               \
    "\"max_shift\": 1.15, \"num_train_timesteps\": 1000, \"shift\": 3.0,"                          \
    "\"use_dynamic_shifting\": true}"

static const char spec_tiny[] =
    "{\"transformer\": {\"_class_name\": \"FluxTransformer2DModel\", \"attention_head_dim\": 32,"
    "\"axes_dims_rope\": [8, 12, 12], \"guidance_embeds\": true, \"in_channels\": 64,"
    "\"joint_attention_dim\": 64, \"num_attention_heads\": 2, \"num_layers\": 2,"
    "\"num_single_layers\": 2, \"patch_size\": 1, \"pooled_projection_dim\": 32},"
    "\"vae\": {" VAE_REST ", \"block_out_channels\": [16, 16, 32, 32],"
    "\"layers_per_block\": 1, \"norm_num_groups\": 4, \"sample_size\": 64},"
    "\"text_encoder\": {" CLIP_REST ", \"hidden_size\": 32, \"intermediate_size\": 64,"
    "\"num_attention_heads\": 2, \"num_hidden_layers\": 2, \"projection_dim\": 32,"
    "\"vocab_size\": 640},"
    "\"text_encoder_2\": {" T5_REST ", \"d_ff\": 128, \"d_kv\": 32, \"d_model\": 64,"
    "\"num_heads\": 2, \"num_layers\": 2, \"num_decoder_layers\": 2, \"vocab_size\": 384},"
    "\"tokenizer_2\": {\"model_max_length\": 32}," SCHEDULER "}";

static const char spec_flux1[] =
    "{\"transformer\": {\"_class_name\": \"FluxTransformer2DModel\", \"attention_head_dim\": 128,"
    "\"guidance_embeds\": true, \"in_channels\": 64, \"joint_attention_dim\": 4096,"
    "\"num_attention_heads\": 24, \"num_layers\": 19, \"num_single_layers\": 38,"
    "\"patch_size\": 1, \"pooled_projection_dim\": 768},"
    "\"vae\": {" VAE_REST ", \"block_out_channels\": [128, 256, 512, 512],"
    "\"layers_per_block\": 2, \"norm_num_groups\": 32, \"sample_size\": 1024},"
    "\"text_encoder\": {" CLIP_REST ", \"hidden_size\": 768, \"intermediate_size\": 3072,"
    "\"num_attention_heads\": 12, \"num_hidden_layers\": 12, \"projection_dim\": 768,"
    "\"vocab_size\": 49408},"
    "\"text_encoder_2\": {" T5_REST ", \"d_ff\": 10240, \"d_kv\": 64, \"d_model\": 4096,"
    "\"num_heads\": 64, \"num_layers\": 24, \"num_decoder_layers\": 24, \"vocab_size\": 32128},"
    "\"tokenizer_2\": {\"model_max_length\": 512}," SCHEDULER "}";

/* schnell differs from dev in three values. */
static void make_schnell(json_t *root)
{
    json_t *scheduler = json_object_get(root, "scheduler");

    (void)json_object_set_new(json_object_get(root, "transformer"), "guidance_embeds",
                              json_false());
    (void)json_object_set_new(scheduler, "use_dynamic_shifting", json_false());
    (void)json_object_set_new(scheduler, "shift", json_real(1.0));
}

static int open_root(json_t **out, const char *spec, struct err *err)
{
    int         rc = ERR_OK;
    bool        schnell = strcmp(spec, "flux1-schnell") == 0;
    const char *text = schnell || strcmp(spec, "flux1-dev") == 0 ? spec_flux1 : NULL;

    if (strcmp(spec, "tiny") == 0) text = spec_tiny;
    if (text == NULL) {
        if (!os_is_file(spec))
            RAISE(err, ERR_USAGE, 0, "synth: '%s' is neither tiny, flux1-dev or flux1-schnell, nor "
                  "a JSON file", spec);
        TRY(json_file_open(out, spec, SPEC_BYTES_MAX, err));
        goto out;
    }
    *out = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (*out == NULL) RAISE(err, ERR_HOST_MEM, 0, "memory: none left for the model '%s'", spec);
    if (schnell) make_schnell(*out);
out:
    return rc;
}

/* The object under `key`; `file` becomes what sentences call it. */
static const json_t *part_of(char file[512], const json_t *root, const char *spec, const char *key)
{
    /* The end of a long path says more than its beginning. */
    size_t length = strlen(spec);
    (void)snprintf(file, 512, "%s: %s", length > 400 ? spec + length - 400 : spec, key);
    return json_object_get(root, key);
}

static int read_text_tokens(int64_t *out, const json_t *object, const char *file, struct err *err)
{
    int                        rc = ERR_OK;
    const struct json_int_rule rule = {"model_max_length", 2, 1 << 16, false, TEXT_TOKENS};

    if (object != NULL && !json_is_object(object))
        RAISE(err, ERR_FORMAT, 0, "'%s' must be a JSON object", file);
    TRY(json_read_int(out, object, file, &rule, err));
out:
    return rc;
}

int synth_spec_open(struct synth_spec *out, const char *spec, struct err *err)
{
    int           rc = ERR_OK;
    char          file[512];
    json_t       *root = NULL;
    struct model *configs = &out->configs;
    const json_t *object;

    memset(out, 0, sizeof *out);
    TRY(open_root(&root, spec, err));
    if (!json_is_object(root)) RAISE(err, ERR_FORMAT, 0, "'%s' must hold a JSON object", spec);
    object = part_of(file, root, spec, "transformer");
    TRY(model_config_transformer(&configs->transformer, object, file, err));
    object = part_of(file, root, spec, "vae");
    TRY(model_config_vae(&configs->vae, object, file, err));
    object = part_of(file, root, spec, "text_encoder");
    TRY(model_config_clip(&configs->clip, object, file, err));
    object = part_of(file, root, spec, "text_encoder_2");
    TRY(model_config_t5(&configs->t5, object, file, err));
    object = part_of(file, root, spec, "scheduler");
    TRY(model_config_scheduler(&configs->scheduler, object, file, err));
    object = part_of(file, root, spec, "tokenizer_2");
    TRY(read_text_tokens(&out->text_tokens, object, file, err));
    TRY(model_config_check(configs, err));
    out->root = root;
    root = NULL;
out:
    json_decref(root);
    return rc;
}

void synth_spec_close(struct synth_spec *spec)
{
    json_decref(spec->root);
    spec->root = NULL;
}
