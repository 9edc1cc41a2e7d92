/* test_config.c - the settings table, the order of layers, help and metadata. */
#include "made_config.h"

#include "../scarce.h"

#include <sys/stat.h>

enum { EVERY_COMMAND = COMMAND_SYNTH * 2 - 1 };

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

/* -------------------------------------------------------------------------------------- table */

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

/* ------------------------------------------------------------------------------------- layers */

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

/* -------------------------------------------------------------------------------------- texts */

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

/* ---------------------------------------------------------------------------------- no memory */

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
        scarce_calls = refused;
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
        cmocka_unit_test(words_beat_file_beats_model_beats_defaults),
        cmocka_unit_test(words_need_an_equals_sign),
        cmocka_unit_test(size_is_said_in_one_way_per_layer),
        cmocka_unit_test(help_fits_the_page_and_names_every_flag),
        cmocka_unit_test(sample_file_gives_the_defaults),
        cmocka_unit_test(metadata_tells_the_picture_not_the_place),
        cmocka_unit_test(commands_are_found_or_suggested),
        cmocka_unit_test(every_short_allocation_is_one_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
