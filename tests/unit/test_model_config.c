/*
 * test_model_config.c - every key of the five configurations: its range, its kinds, its relations.
 */
#include "../test.h"
#include "model_files.h"

enum { PARSERS = PART_COUNT + 1 /* the scheduler's is the last */ };
static const char *const parts[PARSERS] = {"transformer", "vae", "text_encoder", "text_encoder_2",
                                           "scheduler"};

union config {
    struct transformer_config transformer;
    struct vae_config         vae;
    struct clip_config        clip;
    struct t5_config          t5;
    struct scheduler_config   scheduler;
};

static int parse(union config *out, int parser, const json_t *object, struct err *err)
{
    static const char file[] = "f.json";

    switch (parser) {
    case PART_TRANSFORMER: return model_config_transformer(&out->transformer, object, file, err);
    case PART_VAE: return model_config_vae(&out->vae, object, file, err);
    case PART_CLIP: return model_config_clip(&out->clip, object, file, err);
    case PART_T5: return model_config_t5(&out->t5, object, file, err);
    default: return model_config_scheduler(&out->scheduler, object, file, err);
    }
}

static const struct {
    int         parser;
    const char *key;
    int64_t     least, most;
    bool        required;
} whole_numbers[] = {
    {PART_TRANSFORMER, "num_attention_heads", 1, 256, true},
    {PART_TRANSFORMER, "attention_head_dim", 8, 512, true},
    {PART_TRANSFORMER, "num_layers", 0, 256, true},
    {PART_TRANSFORMER, "num_single_layers", 0, 256, true},
    {PART_TRANSFORMER, "in_channels", 4, 4096, true},
    {PART_TRANSFORMER, "out_channels", 4, 4096, false},
    {PART_TRANSFORMER, "joint_attention_dim", 1, 65536, true},
    {PART_TRANSFORMER, "pooled_projection_dim", 1, 65536, true},
    {PART_TRANSFORMER, "patch_size", 1, 1, false},
    {PART_VAE, "layers_per_block", 1, 16, true},
    {PART_VAE, "latent_channels", 4, 256, true},
    {PART_VAE, "in_channels", 3, 3, false},
    {PART_VAE, "out_channels", 3, 3, false},
    {PART_VAE, "norm_num_groups", 1, 1024, false},
    {PART_CLIP, "hidden_size", 1, 16384, true},
    {PART_CLIP, "intermediate_size", 1, 65536, true},
    {PART_CLIP, "num_hidden_layers", 1, 256, true},
    {PART_CLIP, "num_attention_heads", 1, 256, true},
    {PART_CLIP, "max_position_embeddings", 2, 4096, false},
    {PART_CLIP, "vocab_size", 3, 10000000, true},
    {PART_T5, "d_model", 1, 65536, true},
    {PART_T5, "d_ff", 1, 262144, true},
    {PART_T5, "d_kv", 1, 1024, true},
    {PART_T5, "num_heads", 1, 1024, true},
    {PART_T5, "num_layers", 1, 256, true},
    {PART_T5, "vocab_size", 3, 10000000, true},
    {PART_T5, "relative_attention_num_buckets", 4, 1024, false},
    {PART_T5, "relative_attention_max_distance", 2, 65536, false},
    {PART_COUNT, "num_train_timesteps", 1000, 1000, false},
    {PART_COUNT, "base_image_seq_len", 1, 1 << 24, false},
    {PART_COUNT, "max_image_seq_len", 1, 1 << 24, false},
};

/* One value of FLUX.1-dev's configuration exchanged; what comes of it. */
static int parse_changed(int parser, const char *key, const char *text, struct err *err)
{
    struct synth_spec   spec;
    static union config before, out;
    json_t             *object;
    int                 rc;

    memset(&before, 0x5a, sizeof before);
    out = before;
    assert_int_equal(synth_spec_open(&spec, "flux1-dev", err), ERR_OK);
    *err = (struct err){0};
    object = json_object_get(spec.root, parts[parser]);
    put(object, key, text);
    rc = parse(&out, parser, object, err);
    if (rc != ERR_OK) {
        assert_memory_equal(&out, &before, sizeof out);
        if (strncmp(err->text, "'f.json': ", 10) != 0) fail_msg("%s", err->text);
    }
    synth_spec_close(&spec);
    return rc;
}

static void every_whole_number_has_its_range(void **state)
{
    struct err err = {0};
    char       text[32], range[64];

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(whole_numbers); i++) {
        const int   parser = whole_numbers[i].parser;
        const char *key = whole_numbers[i].key;
        (void)snprintf(range, sizeof range, "; it must be %lld..%lld",
                       (long long)whole_numbers[i].least, (long long)whole_numbers[i].most);
        (void)snprintf(text, sizeof text, "%lld", (long long)whole_numbers[i].least - 1);
        ASSERT_REFUSED(ERR_FORMAT, range, parse_changed(parser, key, text, &err));
        assert_non_null(strstr(err.text, key));
        (void)snprintf(text, sizeof text, "%lld", (long long)whole_numbers[i].most + 1);
        ASSERT_REFUSED(ERR_FORMAT, range, parse_changed(parser, key, text, &err));
        assert_non_null(strstr(err.text, key));
        ASSERT_REFUSED(ERR_FORMAT, key, parse_changed(parser, key, "\"8\"", &err));
        assert_non_null(strstr(err.text, "is a string; it must be a whole number"));
        ASSERT_REFUSED(ERR_FORMAT, key, parse_changed(parser, key, "64.0", &err));
        assert_non_null(strstr(err.text, "is a number; it must be a whole number"));
        if (!whole_numbers[i].required) {
            ASSERT_OK(parse_changed(parser, key, NULL, &err));
            continue;
        }
        ASSERT_REFUSED(ERR_FORMAT, "is missing", parse_changed(parser, key, NULL, &err));
        assert_non_null(strstr(err.text, key));
        ASSERT_REFUSED(ERR_FORMAT, "is missing", parse_changed(parser, key, "null", &err));
    }
}

static const struct {
    int         parser;
    const char *key, *text, *words; /* NULL: taken */
} other_values[] = {
    {PART_TRANSFORMER, "_class_name", "\"SD3Transformer2DModel\"", "FLUX.1 has 'FluxTransformer"},
    {PART_TRANSFORMER, "_class_name", "7", "_class_name must be a string"},
    {PART_TRANSFORMER, "_class_name", NULL, NULL},
    {PART_TRANSFORMER, "guidance_embeds", "1", "guidance_embeds is a whole number; it must"},
    {PART_TRANSFORMER, "guidance_embeds", NULL, NULL},
    {PART_TRANSFORMER, "axes_dims_rope", "[16,56,56]", NULL},
    {PART_TRANSFORMER, "axes_dims_rope", "null", NULL},
    {PART_TRANSFORMER, "axes_dims_rope", "[16,56]", "axes_dims_rope must be a list of 3"},
    {PART_TRANSFORMER, "axes_dims_rope", "128", "axes_dims_rope must be a list of 3"},
    {PART_TRANSFORMER, "axes_dims_rope", "[0,64,64]", "axes_dims_rope has a value that is not 2.."},
    {PART_TRANSFORMER, "axes_dims_rope", "[16.0,56,56]", "axes_dims_rope has a value that is not"},
    {PART_TRANSFORMER, "axes_dims_rope", "[16,56,58]", "axes_dims_rope sums to 130; attention"},
    {PART_TRANSFORMER, "axes_dims_rope", "[15,57,56]", "axes_dims_rope has the odd value 15"},
    {PART_TRANSFORMER, "attention_head_dim", "64", "axes_dims_rope sums to 128"},
    {PART_TRANSFORMER, "out_channels", "32", "a conditioned sibling of FLUX.1"},
    {PART_VAE, "_class_name", "\"AutoencoderTiny\"", "FLUX.1 has 'AutoencoderKL'"},
    {PART_VAE, "act_fn", "\"relu\"", "act_fn is 'relu'; FLUX.1 has 'silu'"},
    {PART_VAE, "act_fn", "\"swish\"", NULL},
    {PART_VAE, "use_quant_conv", "true", "use_quant_conv is true; FLUX.1 has it false"},
    {PART_VAE, "use_post_quant_conv", "true", "use_post_quant_conv is true; FLUX.1 has it false"},
    {PART_VAE, "down_block_types", NULL, NULL},
    {PART_VAE, "down_block_types", "[\"DownEncoderBlock2D\"]", "must be a list of 4, as block_out"},
    {PART_VAE, "up_block_types", "\"UpDecoderBlock2D\"", "up_block_types must be a list of 4"},
    {PART_VAE, "down_block_types",
     "[\"DownEncoderBlock2D\",\"AttnDownEncoderBlock2D\",\"x\",\"y\"]",
     "down_block_types has 'AttnDownEncoderBlock2D' at place 1; FLUX.1 has 'DownEncoderBlock2D'"},
    {PART_VAE, "up_block_types", "[1,2,3,4]", "up_block_types has 'no string' at place 0"},
    {PART_VAE, "use_quant_conv", "\"no\"", "use_quant_conv is a string"},
    {PART_VAE, "use_post_quant_conv", "0", "use_post_quant_conv is a whole number"},
    {PART_VAE, "mid_block_add_attention", "[]", "mid_block_add_attention is a list"},
    {PART_VAE, "mid_block_add_attention", "false", NULL},
    {PART_VAE, "block_out_channels", NULL, "block_out_channels must be a list of 1..8"},
    {PART_VAE, "block_out_channels", "[]", "block_out_channels must be a list of 1..8"},
    {PART_VAE, "block_out_channels", "[32,32,32,32,32,32,32,32,32]", "block_out_channels must be"},
    {PART_VAE, "block_out_channels", "[32,\"a\"]", "block_out_channels has a value that is"},
    {PART_VAE, "block_out_channels", "[32,8224]", "block_out_channels has a value that is not 1.."},
    {PART_VAE, "block_out_channels", "[32,48]", "norm_num_groups is 32, which does not divide the"},
    {PART_VAE, "scaling_factor", "0", "scaling_factor is 0; it must be 1e-06..1e+06"},
    {PART_VAE, "scaling_factor", "-0.3", "scaling_factor is -0.3; it must be"},
    {PART_VAE, "scaling_factor", "\"1\"", "scaling_factor is a string"},
    {PART_VAE, "shift_factor", "1e7", "shift_factor is 1e+07; it must be"},
    {PART_VAE, "shift_factor", NULL, NULL},
    {PART_CLIP, "hidden_act", "\"gelu\"", "hidden_act is 'gelu'; FLUX.1 has 'quick_gelu'"},
    {PART_CLIP, "layer_norm_eps", "0", "layer_norm_eps is 0; it must be 1e-12..1"},
    {PART_CLIP, "num_attention_heads", "5", "hidden_size 768 cannot be split over 5 heads"},
    {PART_T5, "feed_forward_proj", "\"relu\"", "feed_forward_proj is 'relu'; FLUX.1 has 'gated"},
    {PART_T5, "layer_norm_epsilon", "-1e-6", "layer_norm_epsilon is -1e-06; it must be"},
    {PART_T5, "relative_attention_max_distance", "8", "max_distance is 8; it must be above"},
    {PART_T5, "relative_attention_max_distance", "9", NULL},
    {PART_COUNT, "_class_name", "\"DDIMScheduler\"", "FLUX.1 has 'FlowMatchEulerDiscrete"},
    {PART_COUNT, "use_karras_sigmas", "true", "use_karras_sigmas is true; FLUX.1 has it false"},
    {PART_COUNT, "use_exponential_sigmas", "true", "use_exponential_sigmas is true"},
    {PART_COUNT, "use_beta_sigmas", "true", "use_beta_sigmas is true"},
    {PART_COUNT, "invert_sigmas", "true", "invert_sigmas is true"},
    {PART_COUNT, "stochastic_sampling", "true", "stochastic_sampling is true"},
    {PART_COUNT, "use_beta_sigmas", "false", NULL},
    {PART_COUNT, "shift_terminal", "0.1", "shift_terminal is set; FLUX.1 has none"},
    {PART_COUNT, "shift_terminal", "null", NULL},
    {PART_COUNT, "time_shift_type", "\"linear\"", "time_shift_type is 'linear'; FLUX.1 has"},
    {PART_COUNT, "use_dynamic_shifting", "\"yes\"", "use_dynamic_shifting is a string"},
    {PART_COUNT, "shift", "0", "shift is 0; it must be 0.01..100"},
    {PART_COUNT, "base_shift", "99", "base_shift is 99; it must be -10..10"},
    {PART_COUNT, "max_shift", "1e300", "max_shift is 1e+300; it must be -10..10"},
    {PART_COUNT, "base_image_seq_len", "4096", "base_image_seq_len must be below max"},
};

static void every_other_value_has_its_sentence(void **state)
{
    struct err err = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(other_values); i++) {
        const char *words = other_values[i].words, *key = other_values[i].key;
        if (words == NULL)
            ASSERT_OK(parse_changed(other_values[i].parser, key, other_values[i].text, &err));
        else
            ASSERT_REFUSED(ERR_FORMAT, words,
                           parse_changed(other_values[i].parser, key, other_values[i].text, &err));
    }
    for (int parser = 0; parser < PARSERS; parser++) {
        json_t      *list = json_array();
        union config out;
        ASSERT_REFUSED(ERR_FORMAT, "'f.json'", parse(&out, parser, list, &err));
        ASSERT_REFUSED(ERR_FORMAT, "'f.json' must hold a JSON object",
                       parse(&out, parser, NULL, &err));
        json_decref(list);
    }
}

static void siblings_of_flux1_are_told_apart(void **state)
{
    static const struct {
        int         in_channels;
        const char *words;
    } cases[] = {{384, "a Fill sibling"}, {128, "a Canny or Depth sibling"}};
    struct err        err = {0};
    struct synth_spec spec;
    union config      out;

    (void)state;
    ASSERT_OK(synth_spec_open(&spec, "flux1-dev", &err));
    json_t *object = json_object_get(spec.root, "transformer");
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        put(object, "out_channels", "64");
        (void)json_object_set_new(object, "in_channels", json_integer(cases[i].in_channels));
        ASSERT_REFUSED(ERR_FORMAT, cases[i].words, parse(&out, PART_TRANSFORMER, object, &err));
        assert_non_null(strstr(err.text, "use FLUX.1-dev or FLUX.1-schnell"));
        /* Without out_channels only the VAE can tell. */
        put(object, "out_channels", NULL);
        ASSERT_OK(parse(&out, PART_TRANSFORMER, object, &err));
        spec.configs.transformer = out.transformer;
        ASSERT_REFUSED(ERR_FORMAT, "siblings of FLUX.1 such as Fill, Canny and Depth",
                       model_config_check(&spec.configs, &err));
    }
    synth_spec_close(&spec);
}

static void the_models_have_flux1s_sizes(void **state)
{
    struct err        err = {0};
    struct synth_spec dev, schnell;

    (void)state;
    ASSERT_OK(synth_spec_open(&dev, "flux1-dev", &err));
    ASSERT_OK(synth_spec_open(&schnell, "flux1-schnell", &err));
    const struct transformer_config *t = &dev.configs.transformer;
    assert_true(t->hidden == 3072 && t->heads == 24 && t->head_dim == 128 && t->mlp == 12288);
    assert_true(t->doubles == 19 && t->singles == 38 && t->in_channels == 64 &&
                t->out_channels == 64 && t->text_width == 4096 && t->pooled_width == 768);
    assert_true(t->rope_axes[0] == 16 && t->rope_axes[1] == 56 && t->rope_axes[2] == 56);
    assert_true(t->guidance && !schnell.configs.transformer.guidance);
    assert_true(dev.configs.vae.block_count == 4 && dev.configs.vae.widths[3] == 512);
    assert_true(dev.configs.vae.scaling > 0.361 && dev.configs.vae.shift < 0.116);
    assert_true(dev.configs.t5.layers == 24 && dev.configs.clip.vocab == 49408);
    /* Where there is no scheduler's file, what each of the two ships is taken. */
    const struct scheduler_config wanted[2] = {model_config_scheduler_default(true),
                                               model_config_scheduler_default(false)};
    const struct scheduler_config *got[2] = {&dev.configs.scheduler, &schnell.configs.scheduler};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(got[i]->dynamic_shift, wanted[i].dynamic_shift);
        assert_true(got[i]->shift == wanted[i].shift);
        assert_true(got[i]->base_shift == wanted[i].base_shift);
        assert_true(got[i]->max_shift == wanted[i].max_shift);
        assert_int_equal(got[i]->base_tokens, wanted[i].base_tokens);
        assert_int_equal(got[i]->max_tokens, wanted[i].max_tokens);
    }
    synth_spec_close(&dev);
    synth_spec_close(&schnell);
}

/* A single file out of shapes alone: a side of 0 makes every tensor empty. */
static struct safetensors *open_shapes(uint8_t bytes[4096], const char *shapes)
{
    struct safetensors *file = NULL;
    struct err          err = {0};
    size_t              at = 9, length;

    memset(bytes, 0, 4096);
    bytes[8] = '{';
    for (const char *line = shapes; *line != '\0'; line = strchr(line, '\n') + 1) {
        char name[64], shape[32];
        assert_int_equal(sscanf(line, "%63s %31s", name, shape), 2);
        at += (size_t)snprintf((char *)bytes + at, 4096 - at,
                               "%s\"%s\":{\"dtype\":\"F16\",\"shape\":%s,\"data_offsets\":[0,0]}",
                               at == 9 ? "" : ",", name, shape);
    }
    bytes[at++] = '}';
    length = at - 8;
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(length >> (8 * i));
    ASSERT_OK(safetensors_open_memory(&file, bytes, at, "shapes", &err));
    return file;
}

/* Axes of rotation, groups and scaling stand in no tensor; for FLUX.1's shapes its own must come
 * out. */
static void shapes_of_flux1_give_its_sizes(void **state)
{
    static const char transformer[] = "img_in.weight [3072,64,0]\n"
                                      "final_layer.linear.weight [64,0]\n"
                                      "txt_in.weight [3072,4096,0]\n"
                                      "vector_in.in_layer.weight [3072,768,0]\n"
                                      "guidance_in.in_layer.weight [0]\n"
                                      "double_blocks.0.img_attn.qkv.weight [0]\n"
                                      "double_blocks.0.img_attn.norm.key_norm.scale [128,0]\n"
                                      "double_blocks.1.img_attn.qkv.weight [0]\n"
                                      "single_blocks.0.linear1.weight [0]\n";
    static const char vae[] = "encoder.mid.block_1.conv1.weight [0]\n"
                              "encoder.mid.attn_1.q.weight [0]\n"
                              "encoder.down.0.block.0.conv1.weight [128,0]\n"
                              "encoder.down.0.block.1.conv1.weight [128,0]\n"
                              "encoder.down.1.block.0.conv1.weight [256,0]\n"
                              "encoder.down.2.block.0.conv1.weight [512,0]\n"
                              "encoder.down.3.block.0.conv1.weight [512,0]\n"
                              "decoder.conv_in.weight [0,16]\nencoder.conv_in.weight [0,3]\n";
    static uint8_t            bytes[4096];
    struct synth_spec         spec;
    struct transformer_config t;
    struct vae_config         v;
    struct safetensors       *file;
    struct err                err = {0};

    (void)state;
    ASSERT_OK(synth_spec_open(&spec, "flux1-dev", &err));
    file = open_shapes(bytes, transformer);
    ASSERT_OK(model_bfl_transformer(&t, file, &err));
    assert_true(t.doubles == 2 && t.singles == 1 && t.guidance);
    t.doubles = 19;
    t.singles = 38;
    assert_memory_equal(&t, &spec.configs.transformer, sizeof t);
    safetensors_close(file);
    file = open_shapes(bytes, vae);
    ASSERT_OK(model_bfl_vae(&v, file, &err));
    assert_memory_equal(&v, &spec.configs.vae, sizeof v);
    safetensors_close(file);
    synth_spec_close(&spec);
}

static void shapes_of_no_vae_are_refused(void **state)
{
#define MIDDLE "encoder.mid.block_1.conv1.weight [0]\n"
#define LEVEL(i) "encoder.down." #i ".block.0.conv1.weight [32,0]\n"
#define ENDS "decoder.conv_in.weight [0,16]\nencoder.conv_in.weight [0,3]\n"
    static const struct {
        const char *shapes, *words;
    } cases[] = {
        {"a [0]\n", "is not FLUX.1's VAE"},
        {MIDDLE ENDS, "'shapes' has 0 levels; needed 1..8"},
        {MIDDLE ENDS LEVEL(0) LEVEL(1) LEVEL(2) LEVEL(3) LEVEL(4) LEVEL(5) LEVEL(6) LEVEL(7)
         LEVEL(8), "'shapes' has 9 levels; needed 1..8"},
        {MIDDLE LEVEL(0), "has no usable decoder.conv_in.weight"},
        {MIDDLE LEVEL(0) "decoder.conv_in.weight [0,16]\nencoder.conv_in.weight [0,4]\n",
         "the VAE takes 4 channels of colour; FLUX.1's takes 3"},
        {MIDDLE "encoder.down.0.block.0.conv1.weight [0]\n" ENDS, "conv1.weight has a side of 0"},
        {MIDDLE "encoder.down.0.block.0.conv1.weight [16777217,0]\n" ENDS, "a side of 16777217"},
    };
    static uint8_t    bytes[4096];
    struct vae_config v;
    struct err        err;

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct safetensors *file = open_shapes(bytes, cases[i].shapes);
        ASSERT_REFUSED(ERR_FORMAT, cases[i].words, model_bfl_vae(&v, file, &err));
        assert_memory_equal(err.text, "weights: 'shapes'", 17);
        safetensors_close(file);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_whole_number_has_its_range),
        cmocka_unit_test(every_other_value_has_its_sentence),
        cmocka_unit_test(siblings_of_flux1_are_told_apart),
        cmocka_unit_test(the_models_have_flux1s_sizes),
        cmocka_unit_test(shapes_of_flux1_give_its_sizes),
        cmocka_unit_test(shapes_of_no_vae_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
