/* test_values.c - text into the fields of settings: what is taken, and the sentence if not. */
#include "made_config.h"

static void bad_values_get_their_sentence(void **state)
{
    static const struct {
        const char *key, *value, *sentence;
    } cases[] = {
        {"tile_px", "1000",
         "tile_px is 1000 px but must be 64..4096 and a multiple of 16; nearest is 1008"},
        {"tile_px", "2050",
         "tile_px is 2050 px but must be 64..4096 and a multiple of 16; nearest is 2048"},
        {"tile_px", "12abc",
         "tile_px is '12abc' but must be a whole number, 64..4096 and a multiple of 16"},
        {"width", "0", "width is 0 px but must be 64..1048576"},
        {"width", "-7680", "width is -7680 px but must be 64..1048576"},
        {"width", "99999999999999999999",
         "width is '99999999999999999999' but must be a whole number, 64..1048576"},
        {"width", "", "width is empty but must be a whole number, 64..1048576"},
        {"width", " 640", "width is ' 640' but must be a whole number, 64..1048576"},
        {"width", "0x100", "width is '0x100' but must be a whole number, 64..1048576"},
        {"width", "640.0", "width is '640.0' but must be a whole number, 64..1048576"},
        {"width", "+-5", "width is '+-5' but must be a whole number, 64..1048576"},
        {"steps", "1001", "steps is 1001 but must be 1..1000"},
        {"sigma", "0", "sigma is 0 but must be above 0, up to 1"},
        {"sigma", "1.01", "sigma is 1.01 but must be above 0, up to 1"},
        {"sigma", "nan", "sigma is 'nan' but must be a number, above 0, up to 1"},
        {"guidance", "inf", "guidance is 'inf' but must be a number, 0..100"},
        {"guidance", "1e999", "guidance is '1e999' but must be a number, 0..100"},
        {"guidance", "3,5", "guidance is '3,5' but must be a number, 0..100"},
        {"guidance", ".", "guidance is '.' but must be a number, 0..100"},
        {"seed", "-1", "seed is '-1' but must be a whole number, 0..9223372036854775807"},
        {"seed", "9223372036854775808",
         "seed is '9223372036854775808' but must be a whole number, 0..9223372036854775807"},
        {"bits", "12", "bits is 12 but must be 8 or 16"},
        {"compression", "gzip", "compression is 'gzip' but must be none, lzw, deflate or zstd"},
        {"compression", "none|lzw",
         "compression is 'none|lzw' but must be none, lzw, deflate or zstd"},
        {"compression", "", "compression is empty but must be none, lzw, deflate or zstd"},
        {"pyramid", "maybe", "pyramid is 'maybe' but must be true or false"},
        {"pyramid", "", "pyramid is empty but must be true or false"},
        {"shard_bytes", "5 GB",
         "shard_bytes is '5 GB' but must be a size such as 500MB or 5GB, 1.0 MB to 1.0 TB"},
        {"shard_bytes", "12", "shard_bytes is '12' but must be 1.0 MB to 1.0 TB"},
        {"shard_bytes", "1.2.3GB",
         "shard_bytes is '1.2.3GB' but must be a size such as 500MB or 5GB, 1.0 MB to 1.0 TB"},
        {"size", "8kk", "size is '8kk' but must be like 8k, 7680x4320 or A2@300dpi"},
        {"size", "A2", "size is 'A2', which needs a resolution; for example A2@300dpi"},
        {"size", "60x90cm",
         "size is '60x90cm', which needs a resolution; for example "
         "60x90cm@300dpi"},
        {"size", "32x100", "size is 32 x 100 px but each side must be 64..1048576 px"},
        {"size", "-640x480", "size is '-640x480' but must be like 8k, 7680x4320 or A2@300dpi"},
        {"size", "640.5x480", "size is '640.5x480' but must be like 8k, 7680x4320 or A2@300dpi"},
        {"size", "A2@20000dpi", "size asks for 20000 dpi but it must be 1..10000"},
        {"keep_in_vram", "120%", "keep_in_vram is '120%' but must be a share, 0% to 100%"},
        {"keep_in_vram", "-0.1", "keep_in_vram is '-0.1' but must be a share, 0% to 100%"},
        {"keep_in_vram", "%", "keep_in_vram is '%' but must be a share, 0% to 100%"},
        {"keep_in_vram", "", "keep_in_vram is empty but must be a share, 0% to 100%"},
        {"max_fragmentation", "15 %",
         "max_fragmentation is '15 %' but must be a share, 0% to 100%"},
        {"max_fragmentation", "nan", "max_fragmentation is 'nan' but must be a share, 0% to 100%"},
        {"segment_size", "1MB", "segment_size is '1MB' but must be 2.1 MB to 100 GB"},
        {"batch_size", "17", "batch_size is 17 but must be 0..16"},
        {"promt", "x", "unknown setting 'promt'; did you mean 'prompt'?"},
        {"zebra", "x", "unknown setting 'zebra'; 'mural sample-config' lists them all"},
        {"prompt", "caf\xE9!", "prompt is not UTF-8: byte 4 of 5 is 0xe9"},
        {"compression", "\x1b[31mred\x1b[0m",
         "compression is '?[31mred?[0m' but must be none, lzw, deflate or zstd"},
        {"compression", "a word that is a good deal longer than any sentence can bear",
         "compression is 'a word that is a good deal longer than any s...' but must be none, lzw, "
         "deflate or zstd"},
    };
    struct config *before = new_config(), *config = new_config();

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err err = {0};
        assert_int_equal(config_set(config, cases[i].key, cases[i].value, &err), ERR_USAGE);
        assert_string_equal(err.text, cases[i].sentence);
        assert_true(same(config, before));
    }
    free(config);
    free(before);
}

static void long_text_is_refused_not_cut(void **state)
{
    struct err     err;
    struct config *config = new_config();
    char           text[20000];

    (void)state;
    memset(text, 'a', sizeof text);
    text[16384] = '\0';
    ASSERT_REFUSED(ERR_USAGE, "prompt has 16384 bytes but at most 16383 fit",
                   config_set(config, "prompt", text, &err));
    text[16383] = '\0';
    ASSERT_OK(config_set(config, "prompt", text, &err));
    text[1024] = '\0';
    ASSERT_REFUSED(ERR_USAGE, "output has 1024 bytes", config_set(config, "output", text, &err));
    free(config);
}

static void sizes_are_understood(void **state)
{
    static const struct {
        const char *text;
        int32_t     w, h;
        double      dpi;
    } cases[] = {{"4k", 3840, 2160, 300},
                 {"8K", 7680, 4320, 300},
                 {"16k", 15360, 8640, 300},
                 {"1000x64", 1000, 64, 300},
                 {"1000x64px", 1000, 64, 300},
                 {"640x480@72", 640, 480, 72},
                 {"A2@300dpi", 4961, 7016, 300},
                 {"a2-landscape@300dpi", 7016, 4961, 300},
                 {"60x90cm@200dpi", 4724, 7087, 200},
                 {"24x36in@150dpi", 3600, 5400, 150},
                 {"254x127.0mm@100dpi", 1000, 500, 100}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err     err = {0};
        struct config *config = new_config();
        ASSERT_OK(config_set(config, "size", cases[i].text, &err));
        assert_int_equal(config->width_px, cases[i].w);
        assert_int_equal(config->height_px, cases[i].h);
        assert_true(config->dpi == cases[i].dpi);
        free(config);
    }
}

static void byte_sizes_are_understood(void **state)
{
    static const struct {
        const char *text;
        uint64_t    bytes;
    } cases[] = {{"256MB", 256000000}, {"2GB", 2000000000},       {"1.5gb", 1500000000},
                 {"1MiB", 1048576},    {"1TB", 1000000000000ull}, {"5000000", 5000000}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err     err = {0};
        struct config *config = new_config();
        ASSERT_OK(config_set(config, "shard_bytes", cases[i].text, &err));
        assert_true(config->shard_bytes == cases[i].bytes);
        free(config);
    }
}

static void shares_are_understood(void **state)
{
    static const struct {
        const char *text;
        double      share;
    } cases[] = {{"15%", 0.15}, {"0.15", 0.15}, {"100%", 1}, {"1", 1}, {"0", 0}, {"12.5%", 0.125}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err     err = {0};
        struct config *config = new_config();
        ASSERT_OK(config_set(config, "keep_in_vram", cases[i].text, &err));
        assert_true(config->keep_share == cases[i].share);
        free(config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_values_get_their_sentence),
        cmocka_unit_test(long_text_is_refused_not_cut),
        cmocka_unit_test(sizes_are_understood),
        cmocka_unit_test(byte_sizes_are_understood),
        cmocka_unit_test(shares_are_understood),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
