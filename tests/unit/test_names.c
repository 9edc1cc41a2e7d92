/*
 * test_names.c - tensor names of both layouts against a table made by hand, and how many there are.
 */
#include "../test.h"
#include "model_files.h"

/* FLUX.1's names in both layouts, with the rows of the file's tensor and where the piece begins in
 * it, as the models' own files have them.  h = 3072, m = 12288. */
static const struct {
    enum model_part part;
    const char     *name, *bfl;
    int64_t         rows, rows_file, first_row;
} pairs[] = {
    {PART_TRANSFORMER, "x_embedder.weight", "img_in.weight", 3072, 3072, 0},
    {PART_TRANSFORMER, "x_embedder.bias", "img_in.bias", 3072, 3072, 0},
    {PART_TRANSFORMER, "context_embedder.weight", "txt_in.weight", 3072, 3072, 0},
#define EMBEDDER(name, file)                                                                       \
    {PART_TRANSFORMER, "time_text_embed." name ".linear_1.weight", file ".in_layer.weight", 3072,  \
     3072, 0},                                                                                     \
    {PART_TRANSFORMER, "time_text_embed." name ".linear_2.bias", file ".out_layer.bias", 3072,     \
     3072, 0}
    EMBEDDER("timestep_embedder", "time_in"),
    EMBEDDER("guidance_embedder", "guidance_in"),
    EMBEDDER("text_embedder", "vector_in"),
    {PART_TRANSFORMER, "norm_out.linear.weight", "final_layer.adaLN_modulation.1.weight", 6144,
     6144, 0},
    {PART_TRANSFORMER, "norm_out.linear.bias", "final_layer.adaLN_modulation.1.bias", 6144, 6144,
     0},
    {PART_TRANSFORMER, "proj_out.weight", "final_layer.linear.weight", 64, 64, 0},
#define DOUBLE(name, file, rows, rows_file, first)                                                 \
    {PART_TRANSFORMER, "transformer_blocks.18." name, "double_blocks.18." file, rows, rows_file,   \
     first}
    DOUBLE("norm1.linear.weight", "img_mod.lin.weight", 18432, 18432, 0),
    DOUBLE("norm1_context.linear.bias", "txt_mod.lin.bias", 18432, 18432, 0),
    DOUBLE("attn.to_q.weight", "img_attn.qkv.weight", 3072, 9216, 0),
    DOUBLE("attn.to_k.weight", "img_attn.qkv.weight", 3072, 9216, 3072),
    DOUBLE("attn.to_v.bias", "img_attn.qkv.bias", 3072, 9216, 6144),
    DOUBLE("attn.add_q_proj.bias", "txt_attn.qkv.bias", 3072, 9216, 0),
    DOUBLE("attn.add_k_proj.weight", "txt_attn.qkv.weight", 3072, 9216, 3072),
    DOUBLE("attn.add_v_proj.weight", "txt_attn.qkv.weight", 3072, 9216, 6144),
    DOUBLE("attn.norm_q.weight", "img_attn.norm.query_norm.scale", 128, 128, 0),
    DOUBLE("attn.norm_k.weight", "img_attn.norm.key_norm.scale", 128, 128, 0),
    DOUBLE("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale", 128, 128, 0),
    DOUBLE("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale", 128, 128, 0),
    DOUBLE("attn.to_out.0.weight", "img_attn.proj.weight", 3072, 3072, 0),
    DOUBLE("attn.to_add_out.weight", "txt_attn.proj.weight", 3072, 3072, 0),
    DOUBLE("ff.net.0.proj.weight", "img_mlp.0.weight", 12288, 12288, 0),
    DOUBLE("ff.net.2.weight", "img_mlp.2.weight", 3072, 3072, 0),
    DOUBLE("ff_context.net.0.proj.bias", "txt_mlp.0.bias", 12288, 12288, 0),
    DOUBLE("ff_context.net.2.bias", "txt_mlp.2.bias", 3072, 3072, 0),
#define SINGLE(name, file, rows, rows_file, first)                                                 \
    {PART_TRANSFORMER, "single_transformer_blocks.37." name, "single_blocks.37." file, rows,       \
     rows_file, first}
    SINGLE("norm.linear.weight", "modulation.lin.weight", 9216, 9216, 0),
    SINGLE("attn.to_q.weight", "linear1.weight", 3072, 21504, 0),
    SINGLE("attn.to_k.weight", "linear1.weight", 3072, 21504, 3072),
    SINGLE("attn.to_v.weight", "linear1.weight", 3072, 21504, 6144),
    SINGLE("proj_mlp.weight", "linear1.weight", 12288, 21504, 9216),
    SINGLE("proj_mlp.bias", "linear1.bias", 12288, 21504, 9216),
    SINGLE("proj_out.weight", "linear2.weight", 3072, 3072, 0),
    SINGLE("attn.norm_q.weight", "norm.query_norm.scale", 128, 128, 0),
    SINGLE("attn.norm_k.weight", "norm.key_norm.scale", 128, 128, 0),
#define VAE(name, file, rows) {PART_VAE, name, file, rows, rows, 0}
    VAE("encoder.conv_in.weight", "encoder.conv_in.weight", 128),
    VAE("encoder.down_blocks.0.resnets.1.norm1.weight", "encoder.down.0.block.1.norm1.weight", 128),
    VAE("encoder.down_blocks.2.resnets.0.conv_shortcut.weight",
        "encoder.down.2.block.0.nin_shortcut.weight", 512),
    VAE("encoder.down_blocks.1.downsamplers.0.conv.bias", "encoder.down.1.downsample.conv.bias",
        256),
    VAE("encoder.mid_block.resnets.0.conv1.weight", "encoder.mid.block_1.conv1.weight", 512),
    VAE("encoder.mid_block.resnets.1.conv2.bias", "encoder.mid.block_2.conv2.bias", 512),
    VAE("encoder.mid_block.attentions.0.group_norm.bias", "encoder.mid.attn_1.norm.bias", 512),
    VAE("encoder.mid_block.attentions.0.to_q.weight", "encoder.mid.attn_1.q.weight", 512),
    VAE("decoder.mid_block.attentions.0.to_k.weight", "decoder.mid.attn_1.k.weight", 512),
    VAE("decoder.mid_block.attentions.0.to_v.bias", "decoder.mid.attn_1.v.bias", 512),
    VAE("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight",
        512),
    VAE("encoder.conv_norm_out.weight", "encoder.norm_out.weight", 512),
    VAE("encoder.conv_out.bias", "encoder.conv_out.bias", 32),
    VAE("decoder.conv_in.weight", "decoder.conv_in.weight", 512),
    VAE("decoder.up_blocks.0.resnets.2.conv2.weight", "decoder.up.3.block.2.conv2.weight", 512),
    VAE("decoder.up_blocks.1.upsamplers.0.conv.weight", "decoder.up.2.upsample.conv.weight", 512),
    VAE("decoder.up_blocks.2.resnets.0.conv_shortcut.bias",
        "decoder.up.1.block.0.nin_shortcut.bias", 256),
    VAE("decoder.up_blocks.3.resnets.0.norm2.bias", "decoder.up.0.block.0.norm2.bias", 128),
    VAE("decoder.conv_norm_out.bias", "decoder.norm_out.bias", 128),
    VAE("decoder.conv_out.weight", "decoder.conv_out.weight", 3),
};

static void names_are_those_of_both_layouts(void **state)
{
    static const char *const none[] = {
        "", "x_embedder", "transformer_blocks.0.attn.to_x.weight", "transformer_blocks.x.bias",
        "single_transformer_blocks.0.norm1.linear.weight", "decoder", "decoder.", "nothing.weight",
        "decoder.up_blocks.4.resnets.0.conv1.weight", "decoder.mid_block.resnets.2.conv1.weight",
        "encoder.mid_block.attentions.0.to_x.weight", "encoder.down_blocks.0.attentions.0.to_q",
        "encoder.mid_block.attentions.1.to_q.weight", "encoder.conv_mid.weight"};
    struct err        err = {0};
    struct synth_spec spec;

    (void)state;
    ASSERT_OK(synth_spec_open(&spec, "flux1-dev", &err));
    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
        struct names_place place;
        bool swapped = strncmp(pairs[i].name, "norm_out.linear", 15) == 0;
        bool conv = strstr(pairs[i].name, "attentions.0.to_") != NULL;
        if (!names_to_bfl(&place, &spec.configs, pairs[i].part, pairs[i].name, pairs[i].rows))
            fail_msg("%s is not known", pairs[i].name);
        assert_string_equal(place.name, pairs[i].bfl);
        assert_int_equal(place.rows_file, pairs[i].rows_file);
        assert_int_equal(place.first_row, pairs[i].first_row);
        assert_int_equal(place.halves_swapped, swapped);
        assert_int_equal(place.conv_1x1, conv);
    }
    for (size_t i = 0; i < ARRAY_COUNT(none); i++) {
        struct names_place place;
        for (int part = 0; part < PART_COUNT; part++)
            if (names_to_bfl(&place, &spec.configs, (enum model_part)part, none[i], 1))
                fail_msg("'%s' is taken for '%s'", none[i], place.name);
    }
    assert_true(names_is_scale("scaled_fp8") && names_is_scale("a.b.weight_scale"));
    assert_false(names_is_scale("double_blocks.0.img_attn.norm.key_norm.scale"));
    synth_spec_close(&spec);
}

/* Tensors of the file of one layout; every piece must lie where the last one of its name ended. */
static uint32_t count_files(const struct layout *layout)
{
    uint32_t count = 0;
    uint64_t row = 0;

    for (uint32_t i = 0; i < layout->piece_count; i++) {
        const struct layout_piece *piece = &layout->pieces[i];
        bool follows = i > 0 && strcmp(piece->name, layout->pieces[i - 1].name) == 0;
        if (!follows) row = 0;
        count += !follows;
        assert_int_equal(piece->file_row, row);
        row += piece->rows;
    }
    return count;
}

static void flux1_has_its_tensors_and_bytes(void **state)
{
    static const struct {
        const char     *spec;
        enum model_part part;
        uint32_t        tensors, bfl_tensors;
        uint64_t        bytes;
    } cases[] = {
        {"flux1-dev", PART_TRANSFORMER, 1160, 780, UINT64_C(23802816640)},
        {"flux1-schnell", PART_TRANSFORMER, 1156, 776, UINT64_C(23782357120)},
        {"flux1-dev", PART_T5, 219, 219, UINT64_C(9524621312)},
        {"flux1-dev", PART_CLIP, 196, 196, UINT64_C(246120960)},
        {"flux1-dev", PART_VAE, 244, 244, UINT64_C(167639366)},
    };
    struct err err = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct synth_spec spec;
        struct layout     layout = {0}, bfl = {0};
        ASSERT_OK(synth_spec_open(&spec, cases[i].spec, &err));
        ASSERT_OK(layout_open(&layout, &spec.configs, cases[i].part, false, &err));
        ASSERT_OK(layout_open(&bfl, &spec.configs, cases[i].part, true, &err));
        assert_int_equal(layout.tensor_count, cases[i].tensors);
        assert_int_equal(count_files(&layout), cases[i].tensors);
        assert_int_equal(count_files(&bfl), cases[i].bfl_tensors);
        assert_int_equal(2 * layout_elements(&layout), cases[i].bytes);
        layout_close(&layout);
        layout_close(&bfl);
        synth_spec_close(&spec);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_those_of_both_layouts),
        cmocka_unit_test(flux1_has_its_tensors_and_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
