/*
 * wide_model.h - dev_small of the goldens with wider and more blocks, worth more than what the slots
 * of blocks that visit are rounded up to: so that there is memory to save.
 */
#ifndef MURAL_TESTS_WIDE_MODEL_H
#define MURAL_TESTS_WIDE_MODEL_H

#include "test.h"

#include "weights/weights.h"

struct wide_model {
    const char *folder; /* that is made; the sizes go to a file beside it */
    int         doubles, singles;
    int         text_mlp; /* width of T5's MLP; 0: that of dev_small */
    enum dtype  dtype;
};

static inline void wide_model_make(const struct wide_model *wide)
{
    struct err           err = {0};
    char                 spec[300], golden[512];
    struct synth_request request = {
        .folder = wide->folder, .spec = spec, .dtype = wide->dtype, .seed = 5};
    json_t *root, *blocks;

    (void)snprintf(spec, sizeof spec, "%s.json", wide->folder);
    (void)snprintf(golden, sizeof golden, "%s/golden/models/dev_small.json", test_data());
    root = json_load_file(golden, 0, NULL);
    assert_non_null(root);
    blocks = json_pack("{s:i, s:[i,i,i], s:i, s:i, s:i}", "attention_head_dim", 64,
                       "axes_dims_rope", 16, 24, 24, "num_attention_heads", 4, "num_layers",
                       wide->doubles, "num_single_layers", wide->singles);
    assert_int_equal(json_object_update_new(json_object_get(root, "transformer"), blocks), 0);
    if (wide->text_mlp > 0)
        assert_int_equal(json_object_set_new(json_object_get(root, "text_encoder_2"), "d_ff",
                                             json_integer(wide->text_mlp)),
                         0);
    assert_int_equal(json_dump_file(root, spec, 0), 0);
    json_decref(root);
    ASSERT_OK(synth_write(&request, &err));
}

#endif
