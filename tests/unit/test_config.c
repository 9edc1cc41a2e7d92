/* test_config.c - the settings table, values, flags, layers, help and metadata. */
#include "../test.h"

#include "config/config_int.h"

#include <sys/stat.h>

enum { EVERY_COMMAND = COMMAND_SYNTH * 2 - 1 };

static struct config *new_config(void)
{
    struct config *config = calloc(1, sizeof *config);

    assert_non_null(config);
    config_defaults(config);
    return config;
}

/* A value of the row that is allowed and is not the default. */
static const char *other_value(const struct setting *row)
{
    static const struct {
        const char *key, *value;
    } values[] = {{"seed", "7"},
                  {"guidance", "2.25"},
                  {"size", "640x480"},
                  {"width", "1000"},
                  {"height", "1000"},
                  {"dpi", "150"},
                  {"draft_px", "256"},
                  {"draft_steps", "9"},
                  {"count", "4"},
                  {"steps", "20"},
                  {"sigma", "0.75"},
                  {"tile_px", "512"},
                  {"overlap_px", "64"},
                  {"fit", "exact"},
                  {"strength", "0.5"},
                  {"mu", "1.15"},
                  {"bits", "8"},
                  {"compression", "zstd"},
                  {"level", "3"},
                  {"metadata", "false"},
                  {"dtype", "f32"},
                  {"device", "cuda:1"},
                  {"threads", "2"},
                  {"workers", "3"},
                  {"worker_timeout", "60"},
                  {"precision", "f32"},
                  {"text_tokens", "64"},
                  {"shard_bytes", "2GB"},
                  {"tile_retries", "7"},
                  {"on_fail", "draft"},
                  {"keep_tiles", "no"},
                  {"tiles", "3,7-9"},
                  {"warmup_batches", "0"},
                  {"vram", "8GB"},
                  {"offload", "false"},
                  {"batch_size", "4"},
                  {"keep_in_vram", "35%"},
                  {"expandable_segments", "no"},
                  {"segment_size", "64MiB"},
                  {"max_fragmentation", "0.3"},
                  {"memory_pool_size", "2GB"},
                  {"on_short", "change"},
                  {"card_tflops", "82.5"},
                  {"link_speed", "25GB"},
                  {"disk_speed", "2GB"}};

    for (size_t i = 0; i < ARRAY_COUNT(values); i++)
        if (strcmp(values[i].key, row->key) == 0) return values[i].value;
    return row->type == SETTING_SWITCH ? "true" : "some/name";
}

static bool same(const struct config *a, const struct config *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

/* ------------------------------------------------------------------------------------- table */

static void every_row_is_whole_and_unique(void **state)
{
    size_t                count;
    const struct setting *rows = config_rows(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        assert_non_null(rows[i].absent);
        assert_non_null(rows[i].sentence);
        assert_true(rows[i].commands != 0 && (rows[i].commands & ~(unsigned)EVERY_COMMAND) == 0);
        assert_true(rows[i].type == SETTING_SWITCH || rows[i].value != NULL);
        assert_true(rows[i].type == SETTING_SIZE || rows[i].capacity > 0);
        if (rows[i].type == SETTING_INT || rows[i].type == SETTING_NUMBER)
            assert_true(rows[i].least < rows[i].most);
        if (rows[i].type == SETTING_INT) assert_int_equal(rows[i].capacity, sizeof(int32_t));
        if (rows[i].type == SETTING_NUMBER || rows[i].type == SETTING_SHARE)
            assert_int_equal(rows[i].capacity, sizeof(double));
        assert_true((rows[i].section == NULL) == (rows[i].inner == NULL));
        if (rows[i].type == SETTING_SWITCH) assert_int_equal(rows[i].capacity, sizeof(bool));
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(rows[i].key, rows[j].key);
            assert_string_not_equal(rows[i].flag, rows[j].flag);
            assert_true(rows[i].letter == 0 || rows[i].letter != rows[j].letter);
            assert_true(rows[i].type == SETTING_SIZE || rows[j].type == SETTING_SIZE ||
                        rows[i].offset != rows[j].offset);
        }
    }
}

static void every_row_is_set_by_key_flag_and_file(void **state)
{
    size_t                count;
    const struct setting *rows = config_rows(&count);
    struct config        *before = new_config(), *by_key = new_config(), *by_flag = new_config(),
                  *by_file = new_config();

    (void)state;
    for (size_t i = 0; i < count; i++) {
        struct err          err = {0};
        struct config_words words;
        const char         *value = other_value(&rows[i]);
        char                flag[80], file[120];
        char               *argv[] = {flag};
        struct yaml_source  source = {.name = "f.yaml", .text = file};
        unsigned            first = rows[i].commands & (0u - rows[i].commands);

        config_defaults(by_key);
        ASSERT_OK(config_set(by_key, rows[i].key, value, &err));
        assert_true(!same(by_key, before) || strcmp(rows[i].absent, value) == 0);

        (void)snprintf(flag, sizeof flag, "--%s=%s", rows[i].flag, value);
        config_defaults(by_flag);
        ASSERT_OK(config_read_flags(&words, (enum config_command)first, 1, argv, &err));
        assert_int_equal(words.count, 1);
        *strchr(words.word[0], '=') = '\0';
        assert_string_equal(words.word[0], rows[i].key);
        ASSERT_OK(config_set(by_flag, words.word[0], strchr(words.word[0], 0) + 1, &err));
        assert_true(same(by_flag, by_key));
        config_words_close(&words);

        if ((rows[i].marks & MARK_FLAG_ONLY) != 0) continue;
        source.bytes = (size_t)snprintf(file, sizeof file, "%s: %s\n", rows[i].key, value);
        config_defaults(by_file);
        ASSERT_OK(yaml_read(by_file, &source, &err));
        assert_true(same(by_file, by_key));
        if (rows[i].section == NULL) continue;
        source.bytes = (size_t)snprintf(file, sizeof file, "%s:\n  %s: %s\n", rows[i].section,
                                        rows[i].inner, value);
        config_defaults(by_file);
        ASSERT_OK(yaml_read(by_file, &source, &err));
        assert_true(same(by_file, by_key));
    }
    free(before);
    free(by_key);
    free(by_flag);
    free(by_file);
}

static void defaults_are_those_of_the_manual(void **state)
{
    struct config *config = new_config();

    (void)state;
    assert_int_equal(config->width_px, 7680);
    assert_int_equal(config->height_px, 4320);
    assert_int_equal(config->tile_px, 2048);
    assert_int_equal(config->overlap_px, 128);
    assert_string_equal(config->fit, "even");
    assert_int_equal(config->draft_px, 512);
    assert_int_equal(config->draft_steps, 28);
    assert_int_equal(config->steps, 12);
    assert_true(config->sigma == 0.4 && config->guidance == 3.5 && config->dpi == 300);
    assert_true(config->strength == 0 && config->mu == 0);
    assert_int_equal(config->seed, 42);
    assert_int_equal(config->bits, 16);
    assert_string_equal(config->compression, "deflate");
    assert_true(config->metadata && !config->pyramid && !config->overwrite);
    assert_int_equal(config->count, 1);
    assert_true(config->shard_bytes == 5000000000u);
    assert_true(config->expandable_segments && config->offload);
    assert_true(config->segment_bytes == 256000000u && config->pool_bytes == 0);
    assert_true(config->fragmentation_max == 0.15 && config->keep_share == 0.2);
    assert_true(config->batch_size == 0 && config->vram_bytes == 0);
    assert_int_equal(config->warmup_batches, 3);
    assert_string_equal(config->on_short, "stop");
    free(config);
}

/* ------------------------------------------------------------------------------------ values */

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

/* ------------------------------------------------------------------------------------- flags */

struct line {
    enum config_command command;
    const char         *argv[6];
    const char         *expected; /* words joined by '|', or the sentence */
};

static void check_line(const struct line *line, bool good)
{
    struct err          err = {0};
    struct config_words words;
    char               *argv[6], joined[256] = "";
    int                 argc = 0, rc;

    for (; argc < 6 && line->argv[argc] != NULL; argc++)
        argv[argc] = strdup(line->argv[argc]);
    rc = config_read_flags(&words, line->command, argc, argv, &err);
    for (size_t i = 0; i < words.count; i++) {
        size_t used = strlen(joined);
        (void)snprintf(joined + used, sizeof joined - used, "%s%s", i > 0 ? "|" : "",
                       words.word[i]);
    }
    assert_string_equal(good && rc == ERR_OK ? joined : err.text, line->expected);
    assert_int_equal(rc, good ? ERR_OK : ERR_USAGE);
    config_words_close(&words);
    for (int i = 0; i < argc; i++)
        free(argv[i]);
}

static void flags_become_words(void **state)
{
    static const struct line lines[] = {
        {COMMAND_RENDER, {"a fox", "-o", "fox.tif"}, "prompt=a fox|output=fox.tif"},
        {COMMAND_RENDER, {"-ofox.tif", "--tile=512"}, "output=fox.tif|tile_px=512"},
        {COMMAND_RENDER, {"--pyramid", "--no-metadata"}, "pyramid=true|metadata=false"},
        {COMMAND_RENDER, {"--pyramid=no", "-q"}, "pyramid=no|quiet=true"},
        {COMMAND_RENDER, {"--prompt=--strange", "--seed", "3"}, "prompt=--strange|seed=3"},
        {COMMAND_RENDER, {"--", "-not a flag-"}, "prompt=-not a flag-"},
        {COMMAND_RENDER, {"-p", "-"}, "prompt=-"},
        {COMMAND_RENDER, {"--prompt", "a=b=c"}, "prompt=a=b=c"},
        {COMMAND_DRAFT, {"x", "--count", "3", "--count", "4"}, "prompt=x|count=3|count=4"},
        {COMMAND_UPSCALE, {"d.png", "-p", "x"}, "input=d.png|prompt=x"},
        {COMMAND_SYNTH,
         {"dir", "--bfl", "--shard-size", "1GB"},
         "input=dir|bfl=true|shard_bytes=1GB"},
        {COMMAND_PLAN, {NULL}, ""},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(lines); i++)
        check_line(&lines[i], true);
}

static void bad_flags_get_their_sentence(void **state)
{
    static const struct line lines[] = {
        {COMMAND_RENDER, {"--tiel", "512"}, "unknown flag '--tiel'; did you mean '--tile'?"},
        {COMMAND_RENDER,
         {"--no-pyramids"},
         "unknown flag '--no-pyramids'; did you mean "
         "'--pyramid'?"},
        {COMMAND_RENDER, {"--noise", "f"}, "unknown flag '--noise'; did you mean '--noise-file'?"},
        {COMMAND_RENDER, {"--zebra"}, "unknown flag '--zebra'; see 'mural help render'"},
        {COMMAND_RENDER, {"--no-tile"}, "unknown flag '--no-tile'; did you mean '--tile'?"},
        {COMMAND_RENDER, {"-z"}, "unknown flag '-z'; see 'mural help render'"},
        {COMMAND_RENDER, {"-qv"}, "unknown flag '-qv'; see 'mural help render'"},
        {COMMAND_RENDER,
         {"--count", "3"},
         "--count does not belong to 'mural render' but to 'mural draft'"},
        {COMMAND_DRAFT,
         {"--tile", "512"},
         "--tile does not belong to 'mural draft' but to 'mural render' or 'mural upscale' or "
         "'mural batch' or 'mural plan'"},
        {COMMAND_RENDER, {"--tile"}, "--tile needs a value"},
        {COMMAND_RENDER,
         {"--model", "--tile", "512"},
         "--model needs a value but '--tile' follows; join them with = if that is the value"},
        {COMMAND_RENDER, {"--overlap", "-5"}, "--overlap is -5 px but must be 0..4080"},
        {COMMAND_RENDER, {"--no-pyramid=yes"}, "--no-pyramid takes no value"},
        {COMMAND_RENDER, {"-o", ""}, "-o is empty; give a name or leave the flag out"},
        {COMMAND_RENDER,
         {"two", "words"},
         "'words' is one word too many; put the whole prompt in quotes"},
        {COMMAND_INFO, {"a.tif", "b.tif"}, "'b.tif' is one word too many"},
        {COMMAND_RENDER, {"x", "-p", "y"}, "the prompt is given twice; keep the words or --prompt"},
        {COMMAND_RENDER, {"ab\xFF"}, "the prompt is not UTF-8: byte 3 of 3 is 0xff"},
        {COMMAND_INFO, {""}, "the file name is empty"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(lines); i++)
        check_line(&lines[i], false);
}

/* ------------------------------------------------------------------------------------ layers */

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void words_beat_file_beats_model_beats_defaults(void **state)
{
    struct err     err = {0};
    struct config *config = new_config();
    char           folder[64], file[128], model[128], own[160], config_word[160], model_line[200];

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(model, sizeof model, "%s/model", folder);
    assert_int_equal(mkdir(model, 0700), 0);
    (void)snprintf(own, sizeof own, "%s/mural.yaml", model);
    (void)snprintf(file, sizeof file, "%s/poster.yaml", folder);
    write_text(own, "tile_px: 512\noverlap_px: 48\nsteps: 5\ndraft_steps: 6\nsigma: 0.5\n"
                    "guidance: 1\ndraft_px: 256\n");
    (void)snprintf(model_line, sizeof model_line, "steps: 7\nsigma: 0.6\nmodel: %s\n", model);
    write_text(file, model_line);
    (void)snprintf(config_word, sizeof config_word, "config=%s", file);
    const char *words[] = {"sigma=0.7", config_word, "prompt=x"};

    /* The model is named only in the file, the file only in a word: all three layers are found. */
    ASSERT_OK(config_load(config, COMMAND_RENDER, words, 3, &err));
    assert_true(config->sigma == 0.7);
    assert_int_equal(config->steps, 7);
    assert_int_equal(config->tile_px, 512);
    assert_int_equal(config->overlap_px, 48);
    assert_int_equal(config->draft_px, 256);
    assert_int_equal(config->width_px, 7680);
    assert_string_equal(config->output, "poster.tif");
    ASSERT_OK(config_load(config, COMMAND_DRAFT, words, 3, &err));
    assert_string_equal(config->output, "draft.png");

    write_text(own, "prompt: buy this\n");
    ASSERT_REFUSED(ERR_CONFIG, "mural.yaml:1:1: 'prompt' is not for a model to set",
                   config_load(config, COMMAND_RENDER, words, 3, &err));
    (void)unlink(file);
    ASSERT_REFUSED(ERR_CONFIG, "poster.yaml", config_load(config, COMMAND_RENDER, words, 3, &err));
    (void)unlink(own);
    (void)rmdir(model);
    scratch_remove(folder);
    free(config);
}

static void words_need_an_equals_sign(void **state)
{
    struct err     err;
    struct config *config = new_config();
    const char    *bad[] = {"steps", "=5", ""};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        ASSERT_REFUSED(ERR_USAGE, "must have the form key=value",
                       config_load(config, COMMAND_RENDER, &bad[i], 1, &err));
    free(config);
}

/* ------------------------------------------------------------------------------------ checks */

static void relations_are_checked(void **state)
{
    static const struct {
        enum config_command command;
        enum err_code       code;
        const char         *words[3], *part;
    } cases[] = {
        {COMMAND_PLAN,
         ERR_USAGE,
         {"tile_px=512", "overlap_px=500"},
         "overlap is 500 px but must be 0..496 px with a tile of 512 px"},
        {COMMAND_PLAN, ERR_USAGE, {"level=15"}, "level is 15 but deflate has 1..12"},
        {COMMAND_PLAN,
         ERR_USAGE,
         {"level=1", "compression=lzw"},
         "compression 'lzw' has no levels; leave the level out"},
        {COMMAND_PLAN, ERR_USAGE, {"quiet=yes", "verbose=yes"}, "quiet and verbose exclude"},
        {COMMAND_DRAFT,
         ERR_USAGE,
         {"prompt=x", "count=2", "seed=9223372036854775807"},
         "seed 9223372036854775807 leaves no room to count up to 2 drafts"},
        {COMMAND_DRAFT,
         ERR_USAGE,
         {"prompt=x", "count=2", "noise_file=/nowhere"},
         "count is 2, but with a noise file all drafts would be the same"},
        {COMMAND_RENDER, ERR_USAGE, {NULL}, "no prompt"},
        {COMMAND_UPSCALE, ERR_USAGE, {NULL}, "no file given"},
        {COMMAND_SYNTH, ERR_USAGE, {NULL}, "no folder given"},
        {COMMAND_INFO, ERR_FORMAT, {"input=/nowhere.tif"}, "'/nowhere.tif' does not exist"},
        {COMMAND_INFO, ERR_FORMAT, {"input=/"}, "'/' is a folder, not a picture"},
        {COMMAND_INFO, ERR_FORMAT, {"input=/dev/zero"}, "'/dev/zero' is not a regular file"},
        {COMMAND_INFO, ERR_FORMAT, {"input=/dev/zero/a"}, "'/dev/zero/a' Not a directory"},
        {COMMAND_PLAN, ERR_FORMAT, {"model=/nowhere"}, "model folder '/nowhere' does not exist"},
        {COMMAND_RENDER,
         ERR_USAGE,
         {"prompt=x", "output=a.jpg"},
         "'a.jpg' must end in .tif or .tiff: posters are BigTIFF files"},
        {COMMAND_DRAFT,
         ERR_USAGE,
         {"prompt=x", "output=a.tif"},
         "'a.tif' must end in .png: drafts are PNG files"},
        {COMMAND_RENDER, ERR_USAGE, {"prompt=x", "output=.tif"}, "'.tif' must end in .tif"},
        {COMMAND_RENDER,
         ERR_IO,
         {"prompt=x", "output=/nowhere/a.tif"},
         "output folder '/nowhere' does not exist"},
        {COMMAND_RENDER, ERR_USAGE, {"prompt=x", "keep_draft=a.tif"}, "must end in .png"},
        {COMMAND_RENDER,
         ERR_USAGE,
         {"prompt=x", "memory_plot=a.tif"},
         "'a.tif' must end in .png: plots are PNG files"},
        {COMMAND_RENDER,
         ERR_USAGE,
         {"prompt=x", "keep_draft=/tmp/none.png", "memory_plot=/tmp/none.png"},
         "is both the draft to keep and the plot of memory"},
        {COMMAND_SYNTH, ERR_USAGE, {"input=/etc/passwd"}, "'/etc/passwd' is a file"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err     err = {0};
        struct config *config = new_config();
        (void)snprintf(config->model, sizeof config->model, "/");
        (void)snprintf(config->output, sizeof config->output, "/tmp/no-such-file.tif");
        for (size_t j = 0; j < 3 && cases[i].words[j] != NULL; j++) {
            char key[32];
            (void)snprintf(key, sizeof key, "%s", cases[i].words[j]);
            *strchr(key, '=') = '\0';
            ASSERT_OK(config_set(config, key, strchr(cases[i].words[j], '=') + 1, &err));
        }
        ASSERT_REFUSED(cases[i].code, cases[i].part, config_check(config, cases[i].command, &err));
        free(config);
    }
}

static void an_existing_draft_needs_overwrite(void **state)
{
    struct err     err;
    struct config *config = new_config();
    char           folder[64];

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(config->model, sizeof config->model, "/");
    (void)snprintf(config->prompt, sizeof config->prompt, "x");
    (void)snprintf(config->output, sizeof config->output, "%s/a.png", folder);
    ASSERT_OK(config_check(config, COMMAND_DRAFT, &err));
    write_text(config->output, "");
    ASSERT_REFUSED(ERR_USAGE, "a.png' exists; add --overwrite",
                   config_check(config, COMMAND_DRAFT, &err));
    config->overwrite = true;
    ASSERT_OK(config_check(config, COMMAND_DRAFT, &err));
    /* A poster may be the very one that is asked for: render looks. */
    config->overwrite = false;
    (void)snprintf(config->output, sizeof config->output, "%s/a.tif", folder);
    write_text(config->output, "");
    ASSERT_OK(config_check(config, COMMAND_RENDER, &err));
    ASSERT_OK(config_check(config, COMMAND_PLAN, &err));
    (void)snprintf(config->input, sizeof config->input, "%s/a.tif", folder);
    ASSERT_REFUSED(ERR_USAGE, "is both the draft and the output",
                   config_check(config, COMMAND_UPSCALE, &err));
    scratch_remove(folder);
    free(config);
}

static void what_is_read_is_not_written_over(void **state)
{
    struct err     err;
    struct config *config = new_config();
    char           folder[64], link_path[96];

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(config->model, sizeof config->model, "/");
    (void)snprintf(config->prompt, sizeof config->prompt, "x");
    (void)snprintf(config->output, sizeof config->output, "%s/a.tif", folder);
    (void)snprintf(link_path, sizeof link_path, "%s/b.png", folder);
    config->overwrite = true;
    write_text(config->output, "");
    assert_int_equal(link(config->output, link_path), 0);
    (void)snprintf(config->noise_file, sizeof config->noise_file, "%s", link_path);
    ASSERT_REFUSED(ERR_USAGE, "is both the noise file and the output; name another with -o",
                   config_check(config, COMMAND_RENDER, &err));
    config->noise_file[0] = '\0';
    (void)snprintf(config->settings_file, sizeof config->settings_file, "%s", link_path);
    ASSERT_REFUSED(ERR_USAGE, "is both the settings file and the output",
                   config_check(config, COMMAND_RENDER, &err));
    config->settings_file[0] = '\0';
    (void)snprintf(config->draft, sizeof config->draft, "%s", link_path);
    ASSERT_REFUSED(ERR_USAGE, "b.png' is both the draft to keep and the output",
                   config_check(config, COMMAND_RENDER, &err));
    (void)snprintf(config->settings_file, sizeof config->settings_file, "%s", link_path);
    (void)snprintf(config->output, sizeof config->output, "%s/c.tif", folder);
    ASSERT_REFUSED(ERR_USAGE, "both the settings file and the output; name another with --keep",
                   config_check(config, COMMAND_RENDER, &err));
    scratch_remove(folder);
    free(config);
}

static void size_is_said_in_one_way_per_layer(void **state)
{
    struct err     err;
    struct config *config = new_config();
    const char    *both[] = {"height=64", "size=4k"};
    const char    *over[] = {"height=64", NULL};
    char           folder[64], file[96], config_word[128];

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(file, sizeof file, "%s/p.yaml", folder);
    (void)snprintf(config_word, sizeof config_word, "config=%s", file);
    over[1] = config_word;
    ASSERT_REFUSED(ERR_USAGE, "size sets width and height",
                   config_load(config, COMMAND_PLAN, both, 2, &err));
    write_text(file, "size: 4k\nwidth: 640\n");
    ASSERT_REFUSED(ERR_CONFIG, "p.yaml:2:1: 'width' does not go with 'size' in line 1",
                   config_read_file(config, file, &err));
    write_text(file, "width: 640\n\nsize: 4k\n");
    ASSERT_REFUSED(ERR_CONFIG, "p.yaml:3:1: 'size' does not go with 'width' in line 1",
                   config_read_file(config, file, &err));
    /* A word may still change one side of what a file says. */
    write_text(file, "size: 4k\n");
    ASSERT_OK(config_load(config, COMMAND_PLAN, over, 2, &err));
    assert_int_equal(config->width_px, 3840);
    assert_int_equal(config->height_px, 64);
    scratch_remove(folder);
    free(config);
}

/* ------------------------------------------------------------------------------------- texts */

static void help_fits_the_page_and_names_every_flag(void **state)
{
    size_t                count;
    const struct setting *rows = config_rows(&count);

    (void)state;
    for (unsigned bit = COMMAND_RENDER; bit <= COMMAND_HELP; bit <<= 1) {
        struct err err = {0};
        char      *text;
        ASSERT_OK(config_help(&text, (enum config_command)bit, &err));
        for (const char *at = text; *at != '\0'; at += strcspn(at, "\n") + 1)
            assert_in_range(strcspn(at, "\n"), 0, 100);
        for (size_t i = 0; i < count; i++) {
            char flag[48];
            bool negative = rows[i].type == SETTING_SWITCH && strcmp(rows[i].absent, "true") == 0;
            (void)snprintf(flag, sizeof flag, "      --%s%s ", negative ? "[no-]" : "",
                           rows[i].flag);
            if (rows[i].letter != 0) flag[2] = '-', flag[3] = rows[i].letter, flag[4] = ',';
            assert_int_equal(strstr(text, flag) != NULL, (rows[i].commands & bit) != 0);
        }
        os_free(text);
    }
}

/* The sample as it is, and with every commented setting brought to life, means the defaults; all
 * but "size", which does not go with "width" and "height". */
static void sample_file_gives_the_defaults(void **state)
{
    struct err         err = {0};
    struct config     *before = new_config(), *config = new_config();
    struct yaml_source source = {.name = "sample.yaml"};
    char              *text;
    size_t             count, lines = 0;

    (void)state;
    ASSERT_OK(config_sample(&text, &err));
    source.text = text;
    source.bytes = strlen(text);
    ASSERT_OK(yaml_read(config, &source, &err));
    assert_true(same(config, before));

    const struct setting *rows = config_rows(&count);
    for (size_t i = 0; i < count; i++) {
        char  commented[48];
        char *at;
        if ((rows[i].marks & MARK_DERIVED) != 0) continue;
        (void)snprintf(commented, sizeof commented, "\n# %s: ", rows[i].key);
        at = strstr(text, commented);
        if (at != NULL) memmove(at + 1, at + 3, strlen(at + 3) + 1);
        (void)snprintf(commented, sizeof commented, "\n%s%s: ", rows[i].section != NULL ? "  " : "",
                       rows[i].section != NULL ? rows[i].inner : rows[i].key);
        lines += strstr(text, commented) != NULL;
    }
    source.bytes = strlen(text);
    ASSERT_OK(yaml_read(config, &source, &err));
    assert_true(same(config, before));
    assert_int_equal(lines, count - 4); /* all but "size", "config", "input" and "tiles" */
    os_free(text);
    free(config);
    free(before);
}

static void metadata_tells_the_picture_not_the_place(void **state)
{
    struct err     err = {0};
    struct config *config = new_config();
    char          *text;
    json_t        *object;

    (void)state;
    ASSERT_OK(config_set(config, "model", "/home/someone/models/FLUX.1-dev/", &err));
    ASSERT_OK(config_set(config, "prompt", "caf\xC3\xA9 \"noir\"\n", &err));
    ASSERT_OK(config_set(config, "output", "/home/someone/secret.tif", &err));
    ASSERT_OK(config_set(config, "seed", "9223372036854775807", &err));
    ASSERT_OK(config_to_json(&text, config, &err));
    assert_null(strstr(text, "someone"));
    object = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_string_equal(json_string_value(json_object_get(object, "model")), "FLUX.1-dev");
    assert_string_equal(json_string_value(json_object_get(object, "prompt")),
                        "caf\xC3\xA9 \"noir\"\n");
    assert_true(json_integer_value(json_object_get(object, "seed")) == INT64_MAX);
    assert_int_equal(json_integer_value(json_object_get(object, "schema")), 1);
    assert_true(json_real_value(json_object_get(object, "sigma")) == 0.4);
    assert_int_equal(json_integer_value(json_object_get(object, "width")), 7680);
    assert_null(json_object_get(object, "vae"));
    json_decref(object);
    os_free(text);
    free(config);
}

static void commands_are_found_or_suggested(void **state)
{
    struct err          err;
    enum config_command command;

    (void)state;
    ASSERT_OK(config_find_command(&command, "sample-config", &err));
    assert_int_equal(command, COMMAND_SAMPLE);
    assert_string_equal(config_command_name(COMMAND_UPSCALE), "upscale");
    ASSERT_REFUSED(ERR_USAGE, "unknown command 'rendr'; did you mean 'render'?",
                   config_find_command(&command, "rendr", &err));
    ASSERT_REFUSED(ERR_USAGE, "unknown command 'x'; 'mural help' lists them",
                   config_find_command(&command, "x", &err));
}

/* -------------------------------------------------------------------------------- no memory */

static int calls_left;

static void *scarce_calloc(size_t count, size_t bytes)
{
    return calls_left-- > 0 ? calloc(count, bytes) : NULL;
}

static int use_everything(const struct config *config, const char *path, struct err *err)
{
    int                 rc = ERR_OK;
    struct config_words words = {.count = 0};
    struct config      *copy = NULL;
    char               *argv[] = {(char[]){"a fox"}, (char[]){"-oa.tif"}, (char[]){"--pyramid"}};
    char               *help = NULL, *sample = NULL, *json = NULL;

    TRY(config_read_flags(&words, COMMAND_RENDER, 3, argv, err));
    TRY(config_help(&help, COMMAND_RENDER, err));
    TRY(config_sample(&sample, err));
    TRY(config_to_json(&json, config, err));
    copy = new_config();
    TRY(config_read_file(copy, path, err));
out:
    config_words_close(&words);
    os_free(help);
    os_free(sample);
    os_free(json);
    free(copy);
    return rc;
}

static void every_short_allocation_is_one_sentence(void **state)
{
    struct config *config = new_config();
    char           folder[64], path[96];
    int            rc = ERR_HOST_MEM, refused = 0;

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/p.yaml", folder);
    write_text(path, "steps: 3\n");
    for (; rc != ERR_OK; refused++) {
        struct err err = {0};
        calls_left = refused;
        os.calloc = scarce_calloc;
        rc = use_everything(config, path, &err);
        os.calloc = calloc;
        assert_true(rc == ERR_OK || (rc == ERR_HOST_MEM && err.text[0] != '\0'));
        assert_in_range(refused, 0, 100);
    }
    assert_in_range(refused, 8, 100);
    scratch_remove(folder);
    free(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_is_whole_and_unique),
        cmocka_unit_test(every_row_is_set_by_key_flag_and_file),
        cmocka_unit_test(defaults_are_those_of_the_manual),
        cmocka_unit_test(bad_values_get_their_sentence),
        cmocka_unit_test(long_text_is_refused_not_cut),
        cmocka_unit_test(sizes_are_understood),
        cmocka_unit_test(byte_sizes_are_understood),
        cmocka_unit_test(shares_are_understood),
        cmocka_unit_test(flags_become_words),
        cmocka_unit_test(bad_flags_get_their_sentence),
        cmocka_unit_test(words_beat_file_beats_model_beats_defaults),
        cmocka_unit_test(words_need_an_equals_sign),
        cmocka_unit_test(relations_are_checked),
        cmocka_unit_test(an_existing_draft_needs_overwrite),
        cmocka_unit_test(what_is_read_is_not_written_over),
        cmocka_unit_test(size_is_said_in_one_way_per_layer),
        cmocka_unit_test(help_fits_the_page_and_names_every_flag),
        cmocka_unit_test(sample_file_gives_the_defaults),
        cmocka_unit_test(metadata_tells_the_picture_not_the_place),
        cmocka_unit_test(commands_are_found_or_suggested),
        cmocka_unit_test(every_short_allocation_is_one_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
