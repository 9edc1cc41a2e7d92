/*
 * test_synth.c - synthetic models: values that depend on nothing but seed and name, all or nothing.
 */
#include "../test.h"
#include "model_files.h"

#include <errno.h>
#include <math.h>
#include <sys/stat.h>

/* ----------------------------------------------------------------------------------- values */

static void rounded(const struct matrix *f32, const struct matrix *half)
{
    assert_int_equal(f32->dtype, DTYPE_F32);
    assert_true(half->dtype == DTYPE_BF16 || half->dtype == DTYPE_F16);
    for (int64_t i = 0; i < f32->rows * f32->cols; i++) {
        float    value;
        uint16_t bits;
        memcpy(&value, (const char *)f32->data + i * 4, 4);
        memcpy(&bits, (const char *)half->data + i * 2, 2);
        assert_int_equal(bits, cast_from_f32(value, half->dtype));
    }
}

/* The finaliser of splitmix64, once more. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static bool same_file(const char *a, const char *b, const char *name)
{
    char       path[512], *x = NULL, *y = NULL;
    size_t     x_bytes = 0, y_bytes = 0;
    struct err err = {0};

    path_of(path, a, name);
    ASSERT_OK(os_read_text(&x, &x_bytes, path, 10000000, &err));
    path_of(path, b, name);
    ASSERT_OK(os_read_text(&y, &y_bytes, path, 10000000, &err));
    bool same = x_bytes == y_bytes && memcmp(x, y, x_bytes) == 0;
    os_free(x);
    os_free(y);
    return same;
}

/* What each kind of tensor is drawn from: offset + scale * [-1, 1). */
static const struct kind {
    enum model_part part;
    const char     *name;
    int64_t         rows, cols;
    double          offset, variance; /* scale^2 */
} kinds[] = {
    {PART_TRANSFORMER, "x_embedder.weight", 64, 64, 0, 3.0 / 64},
    {PART_TRANSFORMER, "x_embedder.bias", 64, 1, 0, 0.1 * 0.1},
    {PART_TRANSFORMER, "transformer_blocks.1.attn.norm_q.weight", 32, 1, 1, 0.2 * 0.2},
    {PART_VAE, "encoder.conv_in.weight", 16, 27, 0, 3.0 / 27},
    {PART_VAE, "decoder.conv_norm_out.bias", 16, 1, 0, 0.1 * 0.1},
    {PART_CLIP, "text_model.embeddings.token_embedding.weight", 640, 32, 0, 1},
    {PART_CLIP, "text_model.embeddings.position_embedding.weight", 77, 32, 0, 1},
    {PART_T5, "shared.weight", 384, 64, 0, 1},
    {PART_T5, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 32, 2, 0, 1},
    {PART_T5, "encoder.final_layer_norm.weight", 64, 1, 1, 0.2 * 0.2},
    {PART_T5, "encoder.block.1.layer.1.DenseReluDense.wo.weight", 64, 128, 0, 3.0 / 128},
};

static void check_kind(const struct model *model, const struct kind *kind)
{
    struct weight_request request = {kind->part, kind->name, kind->rows, kind->cols, 0, kind->rows};
    const double          scale = sqrt(kind->variance);
    struct matrix         found;
    struct err            err = {0};

    ASSERT_OK(model_weight(&found, model, &request, &err));
    for (uint64_t i = 0; i < (uint64_t)(kind->rows * kind->cols); i++) {
        uint64_t key = 5 ^ hash64(kind->name, strlen(kind->name), 0);
        uint64_t bits = mix(key + i * UINT64_C(0x9e3779b97f4a7c15)) >> 40;
        double   scaled = scale * ((double)bits * 0x1p-23 - 1.0);
        float    wanted = (float)(kind->offset + scaled), got;
        memcpy(&got, (const char *)found.data + 4 * i, 4);
        if (memcmp(&got, &wanted, 4) != 0)
            fail_msg("%s: value %d is %a, needed %a", kind->name, (int)i, got, wanted);
    }
}

static void values_depend_on_seed_and_name_only(void **state)
{
    static const char *const weights[] = {
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors"};
    static const char *const others[] = {"model_index.json", "tokenizer/vocab.json",
                                         "tokenizer_2/tokenizer.json", "transformer/config.json"};
    char                     folder[256], name[5][300];
    struct model            *full, *half;

    (void)state;
    scratch_make(folder, sizeof folder);
    for (int i = 0; i < 5; i++) (void)snprintf(name[i], sizeof name[i], "%s/%d", folder, i);
    make(name[0], DTYPE_F32, 5, false);
    make(name[1], DTYPE_F32, 5, false);
    make(name[2], DTYPE_F32, 6, false);
    make(name[3], DTYPE_BF16, 5, false);
    make(name[4], DTYPE_F16, 5, false);
    for (size_t i = 0; i < ARRAY_COUNT(weights); i++) {
        assert_true(same_file(name[0], name[1], weights[i]));
        assert_false(same_file(name[0], name[2], weights[i]));
        assert_true(same_file(name[0], name[2], others[i]));
    }
    full = open_mapped(name[0]);
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) check_kind(full, &kinds[i]);
    for (int i = 3; i < 5; i++) {
        half = open_mapped(name[i]);
        for_every_weight(full, half, rounded);
        assert_int_not_equal(model_identity(full), model_identity(half));
        model_close(half);
    }
    model_close(full);
    scratch_remove(folder);
}

/* --------------------------------------------------------------------------- nothing or all */

static int             calls_left;
static struct os_calls real;

static int scarce_open(const char *path, int flags, ...)
{
    if (calls_left-- > 0) return real.open(path, flags, 0666);
    errno = EMFILE;
    return -1;
}
static int64_t scarce_pwrite(int fd, const void *buffer, size_t bytes, int64_t offset)
{
    if (calls_left-- > 0) return real.pwrite(fd, buffer, bytes, offset);
    errno = ENOSPC;
    return -1;
}
static int scarce_mkdir(const char *path, unsigned mode)
{
    if (calls_left-- > 0) return real.mkdir(path, mode);
    errno = EACCES;
    return -1;
}
static int scarce_sync(int fd)
{
    (void)fd;
    if (calls_left-- > 0) return 0;
    errno = EIO;
    return -1;
}
static int scarce_rename(const char *source, const char *target)
{
    if (calls_left-- > 0) return real.rename(source, target);
    errno = EIO;
    return -1;
}
static void *scarce_calloc(size_t count, size_t bytes)
{
    if (calls_left-- > 0) return real.calloc(count, bytes);
    errno = ENOMEM;
    return NULL;
}

enum { KINDS = 6 };

static void make_scarce(int kind)
{
    if (kind == 0) os.pwrite = scarce_pwrite;
    if (kind == 1) os.open = scarce_open;
    if (kind == 2) os.mkdir = scarce_mkdir;
    if (kind == 3) os.fsync = scarce_sync;
    if (kind == 4) os.rename = scarce_rename;
    if (kind == 5) os.calloc = scarce_calloc;
}

/* As few tensors as a model can have: each is one more call to fail. */
static void make_smallest(const char *path)
{
    struct synth_spec spec;
    struct err        err = {0};

    ASSERT_OK(synth_spec_open(&spec, "tiny", &err));
    put(json_object_get(spec.root, "transformer"), "num_layers", "0");
    put(json_object_get(spec.root, "transformer"), "num_single_layers", "1");
    put(json_object_get(spec.root, "vae"), "block_out_channels", "[8]");
    put(json_object_get(spec.root, "vae"), "down_block_types", NULL);
    put(json_object_get(spec.root, "vae"), "up_block_types", NULL);
    put(json_object_get(spec.root, "vae"), "mid_block_add_attention", "false");
    put(json_object_get(spec.root, "text_encoder"), "num_hidden_layers", "1");
    put(json_object_get(spec.root, "text_encoder_2"), "num_layers", "1");
    assert_int_equal(json_dump_file(spec.root, path, 0), 0);
    synth_spec_close(&spec);
}

static void failures_leave_the_place_as_it_was(void **state)
{
    char                 folder[256], inside[300], spec_path[512];
    struct synth_request request = {.spec = spec_path, .dtype = DTYPE_BF16, .shard_bytes = 60000};

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(inside, sizeof inside, "%s/model", folder);
    path_of(spec_path, folder, "spec.json");
    make_smallest(spec_path);
    real = os;
    for (int kind = 0; kind < KINDS; kind++) {
        int rc = ERR_IO, failures = 0;
        for (; rc != ERR_OK && failures < 2000; failures++) {
            struct err err = {0};
            bool       exists = failures % 2 == 1; /* an empty folder that must stay */
            if (exists) assert_int_equal(mkdir(inside, 0777), 0);
            request.folder = inside;
            calls_left = failures;
            make_scarce(kind);
            rc = synth_write(&request, &err);
            os = real;
            if (rc == ERR_OK) break;
            assert_int_equal(rc, kind == 5 ? ERR_HOST_MEM : ERR_IO);
            assert_true(err.text[0] != '\0');
            assert_int_equal(scratch_count(folder), exists ? 2 : 1); /* spec.json */
            if (exists) assert_int_equal(scratch_count(inside), 0);
            if (exists) assert_int_equal(rmdir(inside), 0);
        }
        assert_int_equal(rc, ERR_OK);
        assert_true(failures > 5);
        struct err err = {0};
        ASSERT_OK(try_open(inside, &err));
        scratch_remove(inside);
    }
    scratch_remove(folder);
}

static void bad_wishes_are_refused(void **state)
{
    char                 folder[256], inside[512], spec_path[300];
    struct synth_spec    spec;
    struct err           err = {0};
    struct synth_request request = {.folder = inside, .spec = "tiny", .dtype = DTYPE_BF16};

    (void)state;
    scratch_make(folder, sizeof folder);
    path_of(inside, folder, "new");
    (void)snprintf(spec_path, sizeof spec_path, "%s/spec.json", folder);
    ASSERT_OK(synth_spec_open(&spec, "flux1-dev", &err));
    json_t *object = json_object_get(spec.root, "transformer");
    put(object, "num_attention_heads", "256");
    put(object, "attention_head_dim", "512");
    put(object, "axes_dims_rope", "[128,192,192]");
    put(object, "num_layers", "256");
    assert_int_equal(json_dump_file(spec.root, spec_path, 0), 0);
    request.spec = spec_path;
    ASSERT_REFUSED(ERR_IO, "free some or name a folder on another", synth_write(&request, &err));
    assert_int_equal(err.sys, ENOSPC);
    put(object, "num_layers", "257");
    assert_int_equal(json_dump_file(spec.root, spec_path, 0), 0);
    ASSERT_REFUSED(ERR_FORMAT, "spec.json: transformer': num_layers is 257",
                   synth_write(&request, &err));
    put(object, "num_layers", "1");
    put(object, "joint_attention_dim", "4095");
    assert_int_equal(json_dump_file(spec.root, spec_path, 0), 0);
    ASSERT_REFUSED(ERR_FORMAT, "takes text of width 4095 and T5 makes 4096",
                   synth_write(&request, &err));
    put(spec.root, "vae", NULL);
    assert_int_equal(json_dump_file(spec.root, spec_path, 0), 0);
    ASSERT_REFUSED(ERR_FORMAT, "spec.json: vae' must hold", synth_write(&request, &err));
    synth_spec_close(&spec);
    assert_int_equal(scratch_count(folder), 1);
    request.spec = "small";
    ASSERT_REFUSED(ERR_USAGE, "'small' is neither tiny, flux1-dev", synth_write(&request, &err));
    request.spec = "tiny";
    request.dtype = DTYPE_F8_E4M3;
    ASSERT_REFUSED(ERR_USAGE, "f32, bf16 or f16 only", synth_write(&request, &err));
    request.dtype = DTYPE_BF16;
    request.folder = folder; /* spec.json is in it */
    ASSERT_REFUSED(ERR_USAGE, "is not empty ('spec.json' is in it)", synth_write(&request, &err));
    request.folder = spec_path;
    ASSERT_REFUSED(ERR_USAGE, "cannot be used as a folder", synth_write(&request, &err));
    request.folder = "";
    ASSERT_REFUSED(ERR_USAGE, "the folder's name has 0 bytes", synth_write(&request, &err));
    path_of(inside, folder, "none/new");
    request.folder = inside;
    ASSERT_REFUSED(ERR_USAGE, "none' does not exist; make it", synth_write(&request, &err));
    request.shard_bytes = 1; /* every tensor alone */
    path_of(inside, folder, "new//");
    ASSERT_OK(synth_write(&request, &err));
    ASSERT_OK(try_open(inside, &err));
    scratch_remove(folder);
}

static int skip_sync(int fd)
{
    (void)fd;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_depend_on_seed_and_name_only),
        cmocka_unit_test(failures_leave_the_place_as_it_was),
        cmocka_unit_test(bad_wishes_are_refused),
    };
    os.fsync = skip_sync; /* hundreds of small models are written */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
