/*
 * test_model.c - folders of both layouts: what is found, what is refused, and their weights.
 */
#include "../test.h"
#include "model_files.h"

#include <sys/stat.h>

static int skip_sync(int fd)
{
    (void)fd;
    return 0;
}

/* Change one key of a JSON file. */
static void edit(const char *folder, const char *name, const char *key, const char *text)
{
    char    path[512];
    json_t *object;

    path_of(path, folder, name);
    object = json_load_file(path, 0, NULL);
    assert_non_null(object);
    put(object, key, text);
    assert_int_equal(json_dump_file(object, path, 0), 0);
    json_decref(object);
}

static void move(const char *folder, const char *from, const char *to)
{
    char source[512], target[512];

    path_of(source, folder, from);
    path_of(target, folder, to);
    assert_int_equal(rename(source, target), 0);
}

/* The header and the data of a safetensors file, changed by `change`, written again. */
static void rewrite(const char *folder, const char *name, json_t *(*change)(json_t *, const char *),
                    const char *word)
{
    char       path[512], *text;
    struct err err = {0};
    size_t     bytes = 0;
    uint64_t   length = 0;
    json_t    *header;
    FILE      *file;

    path_of(path, folder, name);
    ASSERT_OK(os_read_text(&text, &bytes, path, 10000000, &err));
    memcpy(&length, text, 8);
    header = change(json_loadb(text + 8, length, 0, NULL), word);
    assert_non_null(header);
    char    *dumped = json_dumps(header, 0);
    uint64_t dumped_length = strlen(dumped);
    file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(&dumped_length, 8, 1, file), 1);
    assert_int_equal(fwrite(dumped, dumped_length, 1, file), 1);
    assert_int_equal(fwrite(text + 8 + length, bytes - 8 - length, 1, file), 1);
    (void)fclose(file);
    free(dumped);
    json_decref(header);
    os_free(text);
}

/* `word`: "old new". */
static json_t *rename_tensor(json_t *header, const char *word)
{
    char    from[128];
    json_t *entry;

    assert_int_equal(sscanf(word, "%127s", from), 1);
    entry = json_object_get(header, from);
    assert_non_null(entry);
    assert_int_equal(json_object_set(header, word + strlen(from) + 1, entry), 0);
    assert_int_equal(json_object_del(header, from), 0);
    return header;
}

static json_t *prefix_all(json_t *header, const char *word)
{
    json_t     *out = json_object(), *value;
    const char *key;

    json_object_foreach(header, key, value) {
        char name[256];
        (void)snprintf(name, sizeof name, "%s%s", key[0] == '_' ? "" : word, key);
        (void)json_object_set(out, name, value);
    }
    json_decref(header);
    return out;
}

/* `word`: "tensor key value". */
static json_t *change_tensor(json_t *header, const char *word)
{
    char name[128], key[32], value[64];

    assert_int_equal(sscanf(word, "%127s %31s %63s", name, key, value), 3);
    put(json_object_get(header, name), key, value);
    return header;
}

/* ---------------------------------------------------------------------------------- weights */

static void every_layout_has_the_same_values(void **state)
{
    char          folder[256], plain[300], other[300], sharded[300], path[512];
    struct err    err = {0};
    struct model *a, *b;
    struct stat   about;

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(plain, sizeof plain, "%s/plain", folder);
    (void)snprintf(other, sizeof other, "%s/bfl", folder);
    (void)snprintf(sharded, sizeof sharded, "%s/sharded", folder);
    make(plain, DTYPE_BF16, 3, false);
    make(other, DTYPE_BF16, 3, true);
    const struct synth_request request = {
        .folder = sharded, .spec = "tiny", .dtype = DTYPE_BF16, .seed = 3, .shard_bytes = 60000};
    ASSERT_OK(synth_write(&request, &err));
    a = open_mapped(plain);
    b = open_mapped(other);
    assert_true(b->bfl[PART_TRANSFORMER] && b->bfl[PART_VAE] && !b->bfl[PART_T5]);
    assert_false(a->bfl[PART_TRANSFORMER]);
    assert_non_null(strstr(b->file[PART_TRANSFORMER], "/flux1-dev.safetensors"));
    path_of(path, plain, "vae/diffusion_pytorch_model.safetensors");
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(a->bytes[PART_VAE], about.st_size);
    for_every_weight(a, b, same_bytes);
    model_close(b);
    b = open_mapped(sharded);
    assert_non_null(strstr(b->file[PART_T5], "model.safetensors.index.json"));
    for_every_weight(a, b, same_bytes);
    assert_int_equal(model_identity(a), model_identity(b));
    model_close(b);
    /* Files that hold everything put a word before every name. */
    rewrite(other, "flux1-dev.safetensors", prefix_all, "model.diffusion_model.");
    rewrite(other, "ae.safetensors", prefix_all, "first_stage_model.");
    rewrite(other, "text_encoder_2/model.safetensors", rename_tensor,
            "shared.weight encoder.embed_tokens.weight");
    b = open_mapped(other);
    for_every_weight(a, b, same_bytes);
    model_close(b);
    model_close(a);
    scratch_remove(folder);
}

/* ---------------------------------------------------------------------------------- folders */

static void folders_say_what_they_lack(void **state)
{
    static const struct {
        const char *from, *to, *words; /* NULL: a folder like this is fine */
    } moves[] = {
        {"transformer", "x", "has no weights in transformer/ and no flux1-*.safetensors; give"},
        {"vae", "x", "has no weights in vae/ and no ae.safetensors; give --model"},
        {"text_encoder", "x", "has no weights in text_encoder/; give --model"},
        {"text_encoder_2", "x", "has no weights in text_encoder_2/; give --model"},
        {"transformer/config.json", "x", "transformer/config.json' does not exist, and '"},
        {"vae/config.json", "x", "vae/config.json' does not exist, and '"},
        {"text_encoder/config.json", "x", "text_encoder/config.json' does not exist"},
        {"text_encoder_2/config.json", "x", "text_encoder_2/config.json' does not exist"},
        {"transformer/diffusion_pytorch_model.safetensors", "x", "has no weights in transformer"},
        {"text_encoder/model.safetensors", "ae.safetensors", "has no weights in text_encoder/;"},
        {"scheduler", "x", NULL},
        {"model_index.json", "x", NULL},
        {"transformer/diffusion_pytorch_model.safetensors",
         "transformer/diffusion_pytorch_model.fp16.safetensors", NULL},
        {"text_encoder_2/model.safetensors", "text_encoder_2/model.fp16.safetensors", NULL},
        {"vae/diffusion_pytorch_model.safetensors",
         "vae/diffusion_pytorch_model.bf16.safetensors", NULL},
        {"vae/diffusion_pytorch_model.safetensors",
         "vae/diffusion_pytorch_model.fp16-00001-of-00001.safetensors", "has no weights in vae"},
        {"vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin",
         "has no weights in vae"},
    };
    char       folder[256], inside[300], longer[1100];
    struct err err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    ASSERT_REFUSED(ERR_FORMAT, "has no weights in transformer/ and no", try_open(folder, &err));
    (void)snprintf(inside, sizeof inside, "%s/none", folder);
    ASSERT_REFUSED(ERR_FORMAT, "/none' does not exist", try_open(inside, &err));
    memset(longer, 'a', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    ASSERT_REFUSED(ERR_USAGE, "is too long", try_open(longer, &err));
    make(folder, DTYPE_BF16, 1, false);
    for (size_t i = 0; i < ARRAY_COUNT(moves); i++) {
        move(folder, moves[i].from, moves[i].to);
        if (moves[i].words == NULL)
            ASSERT_OK(try_open(folder, &err));
        else
            ASSERT_REFUSED(ERR_FORMAT, moves[i].words, try_open(folder, &err));
        move(folder, moves[i].to, moves[i].from);
    }
    ASSERT_OK(try_open(folder, &err));
    scratch_remove(folder);
}

static void copy(const char *folder, const char *from, const char *to)
{
    char       path[512], *text = NULL;
    size_t     bytes = 0;
    struct err err = {0};

    path_of(path, folder, from);
    ASSERT_OK(os_read_text(&text, &bytes, path, 10000000, &err));
    path_of(path, folder, to);
    scratch_write(path, text, bytes);
    os_free(text);
}

static void one_of_several_files_is_not_guessed(void **state)
{
    static const char plain[] = "vae/diffusion_pytorch_model.safetensors";
    static const char fp16[] = "vae/diffusion_pytorch_model.fp16.safetensors";
    static const char bf16[] = "vae/diffusion_pytorch_model.bf16.safetensors";
    char              folder[256], path[512];
    struct model     *model;
    struct err        err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    make(folder, DTYPE_BF16, 1, true);
    move(folder, "flux1-dev.safetensors", "flux1-mine.safetensors");
    model = open_mapped(folder);
    path_of(path, folder, "flux1-mine.safetensors");
    assert_string_equal(model->file[PART_TRANSFORMER], path);
    model_close(model);
    copy(folder, "flux1-mine.safetensors", "flux1-other.safetensors");
    ASSERT_REFUSED(ERR_FORMAT, "flux1-mine.safetensors'", try_open(folder, &err));
    assert_non_null(strstr(err.text, "flux1-other.safetensors'"));
    assert_non_null(strstr(err.text, "keep one of them, or name it"));
    move(folder, "flux1-other.safetensors", "flux1-schnell.safetensors"); /* a name of its own */
    ASSERT_OK(try_open(folder, &err));
    scratch_remove(folder);

    scratch_make(folder, sizeof folder);
    make(folder, DTYPE_BF16, 1, false);
    copy(folder, plain, fp16);
    ASSERT_OK(try_open(folder, &err));
    move(folder, plain, bf16);
    ASSERT_REFUSED(ERR_FORMAT, "keep one of them", try_open(folder, &err));
    scratch_remove(folder);
}

/* An index of a variant has the variant's name before ".json". */
static void indexes_have_variants_too(void **state)
{
    static const char    index[] = "text_encoder_2/model.safetensors.index.json";
    static const char    variant[] = "text_encoder_2/model.safetensors.index.fp16.json";
    struct synth_request request = {.spec = "tiny", .dtype = DTYPE_F16, .shard_bytes = 60000};
    char                 folder[256], path[512];
    struct model        *model;
    struct err           err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    request.folder = folder;
    ASSERT_OK(synth_write(&request, &err));
    move(folder, index, variant);
    model = open_mapped(folder);
    path_of(path, folder, variant);
    assert_string_equal(model->file[PART_T5], path);
    model_close(model);
    scratch_remove(folder);
}

static void parts_must_belong_together(void **state)
{
    static const struct {
        const char *file, *key, *text, *undo, *words;
    } cases[] = {
        {"model_index.json", "_class_name", "\"StableDiffusion3Pipeline\"", "\"FluxPipeline\"",
         "model_index.json' is a StableDiffusion3Pipeline; mural paints with a FluxPipeline"},
        {"transformer/config.json", "in_channels", "32", "64",
         "the transformer's in_channels are 32 and the VAE makes 4 x 16"},
        {"transformer/config.json", "joint_attention_dim", "65", "64",
         "takes text of width 65 and T5 makes 64"},
        {"transformer/config.json", "pooled_projection_dim", "33", "32",
         "takes a pooled vector of 33 and CLIP makes 32"},
        {"scheduler/scheduler_config.json", "shift", "\"3\"", "3.0",
         "scheduler/scheduler_config.json': shift is a string"},
        {"vae/config.json", "latent_channels", "1", "16", "vae/config.json': latent_channels is 1"},
        {"text_encoder/config.json", "hidden_size", "31", "32", "text_encoder/config.json': hi"},
        {"text_encoder_2/config.json", "d_kv", "0", "32", "text_encoder_2/config.json': d_kv is 0"},
    };
    char       folder[256];
    struct err err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    make(folder, DTYPE_BF16, 1, false);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        edit(folder, cases[i].file, cases[i].key, cases[i].text);
        ASSERT_REFUSED(ERR_FORMAT, cases[i].words, try_open(folder, &err));
        assert_memory_equal(err.text, "model: ", 7);
        edit(folder, cases[i].file, cases[i].key, cases[i].undo);
    }
    ASSERT_OK(try_open(folder, &err));
    scratch_remove(folder);
}

static void single_files_say_their_own_sizes(void **state)
{
    char          folder[256];
    struct model *with, *without;
    struct err    err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    make(folder, DTYPE_BF16, 1, true);
    with = open_mapped(folder);
    move(folder, "transformer/config.json", "x");
    move(folder, "vae/config.json", "y");
    move(folder, "flux1-dev.safetensors", "flux1-schnell.safetensors");
    without = open_mapped(folder);
    /* Only the axes of rotation cannot be seen in a file; for heads of 32 these are guessed. */
    assert_true(without->transformer.rope_axes[0] == 4 && without->transformer.rope_axes[1] == 14 &&
                without->transformer.rope_axes[2] == 14);
    memcpy(without->transformer.rope_axes, with->transformer.rope_axes,
           sizeof with->transformer.rope_axes);
    assert_memory_equal(&without->transformer, &with->transformer, sizeof with->transformer);
    assert_memory_equal(&without->vae, &with->vae, sizeof with->vae);
    for_every_weight(with, without, same_bytes);
    model_close(with);
    model_close(without);
    rewrite(folder, "flux1-schnell.safetensors", rename_tensor, "txt_in.weight text.weight");
    ASSERT_REFUSED(ERR_FORMAT, "has no usable txt_in.weight", try_open(folder, &err));
    rewrite(folder, "ae.safetensors", rename_tensor, "encoder.conv_in.weight nothing");
    rewrite(folder, "flux1-schnell.safetensors", rename_tensor, "text.weight txt_in.weight");
    ASSERT_REFUSED(ERR_FORMAT, "has no usable encoder.conv_in.weight", try_open(folder, &err));
    rewrite(folder, "flux1-schnell.safetensors", rename_tensor, "img_in.weight image.weight");
    ASSERT_REFUSED(ERR_FORMAT, "is not a FLUX.1 transformer", try_open(folder, &err));
    scratch_remove(folder);
}

static void parts_may_lie_elsewhere(void **state)
{
    char               folder[256], a[300], b[300], given[512], other[512];
    struct model      *model = NULL;
    struct model_paths paths = {.folder = a, .transformer = given, .vae = other};
    struct err         err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(a, sizeof a, "%s/a", folder);
    (void)snprintf(b, sizeof b, "%s/b", folder);
    make(a, DTYPE_BF16, 1, false);
    make(b, DTYPE_BF16, 2, true);
    path_of(given, a, "transformer");
    path_of(other, b, "ae.safetensors");
    ASSERT_OK(model_open(&model, &paths, &err));
    ASSERT_OK(model_map(model, &err));
    assert_string_equal(model->file[PART_VAE], other);
    assert_true(model->bfl[PART_VAE] && !model->bfl[PART_TRANSFORMER]);
    model_close(model);
    model = NULL;
    path_of(given, a, "transformer/diffusion_pytorch_model.safetensors");
    paths.vae = NULL;
    ASSERT_OK(model_open(&model, &paths, &err));
    assert_string_equal(model->file[PART_TRANSFORMER], given);
    assert_int_equal(model->transformer.rope_axes[0], 8);
    model_close(model);
    model = NULL;
    path_of(given, a, "nowhere");
    ASSERT_REFUSED(ERR_FORMAT, "is no file and no folder with the transformer",
                   model_open(&model, &paths, &err));
    path_of(given, a, "vae/config.json");
    ASSERT_REFUSED(ERR_FORMAT, "config.json", model_open(&model, &paths, &err));
    assert_null(model);
    scratch_remove(folder);
}

static void wrong_tensors_are_told(void **state)
{
    static const char file[] = "transformer/diffusion_pytorch_model.safetensors";
    static const struct {
        const char *change, *undo, *words;
        bool        rename;
    } cases[] = {
        {"proj_out.bias proj_out.offset", "proj_out.offset proj_out.bias",
         "has no tensor proj_out.bias; needed 64 x 1 values", true},
        {"proj_out.bias shape [8,8]", "proj_out.bias shape [64]",
         "proj_out.bias is BF16 [8, 8]; needed 64 x 1 values of BF16, F16, F32 or F8", false},
        {"proj_out.bias dtype \"I16\"", "proj_out.bias dtype \"BF16\"",
         "proj_out.bias is I16 [64]; needed 64 x 1 values", false},
    };
    static const char *const scales[] = {"scaled_fp8", "proj_out.weight_scale", "a.scale_weight",
                                         "proj_out.weight.absmax", "x.comfy_quant"};
    struct weight_request    request = {PART_TRANSFORMER, "proj_out.bias", 64, 1, 0, 64};
    char                     folder[256], word[128];
    struct matrix            out;
    struct err               err = {0};

    (void)state;
    scratch_make(folder, sizeof folder);
    make(folder, DTYPE_BF16, 1, false);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        json_t *(*change)(json_t *, const char *) =
            cases[i].rename ? rename_tensor : change_tensor;
        struct model *model;
        rewrite(folder, file, change, cases[i].change);
        model = open_mapped(folder);
        ASSERT_REFUSED(ERR_FORMAT, cases[i].words, model_weight(&out, model, &request, &err));
        assert_non_null(strstr(err.text, file));
        model_close(model);
        rewrite(folder, file, change, cases[i].undo);
    }
    for (size_t i = 0; i < ARRAY_COUNT(scales); i++) {
        (void)snprintf(word, sizeof word, "proj_out.bias %s", scales[i]);
        rewrite(folder, file, rename_tensor, word);
        ASSERT_REFUSED(ERR_FORMAT, "holds scaled or packed weights", try_open(folder, &err));
        assert_non_null(strstr(err.text, scales[i]));
        (void)snprintf(word, sizeof word, "%s proj_out.bias", scales[i]);
        rewrite(folder, file, rename_tensor, word);
    }
    /* As many values, but the sides of the kernel elsewhere. */
    struct weight_request kernel = {PART_VAE, "decoder.conv_out.weight", 3, 144, 0, 3};
    struct model         *model = open_mapped(folder);
    ASSERT_OK(model_weight(&out, model, &kernel, &err));
    model_close(model);
    rewrite(folder, "vae/diffusion_pytorch_model.safetensors", change_tensor,
            "decoder.conv_out.weight shape [3,3,3,16]");
    model = open_mapped(folder);
    ASSERT_REFUSED(ERR_FORMAT, "decoder.conv_out.weight is BF16 [3, 3, 3, 16]; needed 3 x 144",
                   model_weight(&out, model, &kernel, &err));
    model_close(model);
    rewrite(folder, file, rename_tensor, "x_embedder.weight y_embedder.weight");
    ASSERT_REFUSED(ERR_FORMAT, "holds no transformer of FLUX.1", try_open(folder, &err));
    scratch_remove(folder);
}

/* --------------------------------------------------------------------------------- identity */

static uint64_t identity_of(const char *folder)
{
    struct model *model = open_mapped(folder);
    uint64_t      identity = model_identity(model);
    model_close(model);
    return identity;
}

static void flip(const char *path, uint64_t at)
{
    FILE *file = fopen(path, "r+b");
    int   byte;

    assert_non_null(file);
    assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
    byte = fgetc(file);
    assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
    assert_int_equal(fputc(byte ^ 1, file), byte ^ 1);
    (void)fclose(file);
}

static void identity_sees_single_bytes(void **state)
{
    char                 folder[256], spec_path[300], a[300], b[300], path[512];
    uint64_t             identity;
    struct synth_spec    spec;
    struct err           err = {0};
    struct synth_request request = {.spec = spec_path, .dtype = DTYPE_F32, .seed = 1};

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(spec_path, sizeof spec_path, "%s/spec.json", folder);
    (void)snprintf(a, sizeof a, "%s/a", folder);
    (void)snprintf(b, sizeof b, "%s/b", folder);
    ASSERT_OK(synth_spec_open(&spec, "tiny", &err));
    put(json_object_get(spec.root, "text_encoder_2"), "vocab_size", "2000"); /* 512,000 bytes */
    assert_int_equal(json_dump_file(spec.root, spec_path, 0), 0);
    synth_spec_close(&spec);
    request.folder = a;
    ASSERT_OK(synth_write(&request, &err));
    request.folder = b;
    ASSERT_OK(synth_write(&request, &err));
    identity = identity_of(a);
    assert_int_equal(identity_of(b), identity);
    path_of(path, b, "text_encoder_2/model.safetensors");
    struct stat about;
    assert_int_equal(stat(path, &about), 0);
    /* shared.weight is the last tensor: its end, its beginning, places between as sampled */
    const uint64_t end = (uint64_t)about.st_size, begin = end - 512000;
    const uint64_t places[] = {end - 1, end - 65536, begin, begin + 65535, begin + 65536,
                               begin + 65536 + (512000 - 131072) / 8 * 5 + 63};
    for (size_t i = 0; i < ARRAY_COUNT(places); i++) {
        flip(path, places[i]);
        assert_int_not_equal(identity_of(b), identity);
        flip(path, places[i]);
    }
    path_of(path, b, "transformer/diffusion_pytorch_model.safetensors");
    assert_int_equal(stat(path, &about), 0);
    flip(path, (uint64_t)about.st_size / 2);
    assert_int_not_equal(identity_of(b), identity);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_has_the_same_values),
        cmocka_unit_test(folders_say_what_they_lack),
        cmocka_unit_test(one_of_several_files_is_not_guessed),
        cmocka_unit_test(indexes_have_variants_too),
        cmocka_unit_test(parts_must_belong_together),
        cmocka_unit_test(single_files_say_their_own_sizes),
        cmocka_unit_test(parts_may_lie_elsewhere),
        cmocka_unit_test(wrong_tensors_are_told),
        cmocka_unit_test(identity_sees_single_bytes),
    };
    os.fsync = skip_sync; /* hundreds of small models are written */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
