/*
 * fuzz_yaml.c - settings files and batches from anywhere.  Whatever is taken must lie inside the
 * table's ranges, and words of a batch must be settings again.
 */
#include "config/config_int.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_ranges(const struct config *config)
{
    size_t                count;
    const struct setting *rows = config_rows(&count);

    for (size_t i = 0; i < count; i++) {
        const char *field = (const char *)config + rows[i].offset;
        if (rows[i].type == SETTING_INT) {
            int32_t value;
            memcpy(&value, field, sizeof value);
            must(value >= rows[i].least && value <= rows[i].most);
            must(rows[i].multiple == 0 || value % rows[i].multiple == 0);
        } else if (rows[i].type == SETTING_NUMBER) {
            double value;
            memcpy(&value, field, sizeof value);
            must(value >= rows[i].least && value <= rows[i].most);
        } else if (rows[i].type == SETTING_TEXT) {
            size_t length = strlen(field);
            must(length < rows[i].capacity && text_utf8_valid_prefix(field, length) == length);
        }
    }
}

static void check_words(struct config *scratch, const struct config_words *words)
{
    struct config_words laid = {.count = 0};
    struct err          err = {.code = ERR_OK};

    must(config_words_lay(&laid, words, &err) == ERR_OK);
    for (size_t i = 0; i < laid.count; i++) {
        char  key[32];
        char *equals = strchr(laid.word[i], '=');
        must(equals != NULL && (size_t)(equals - laid.word[i]) < sizeof key);
        memcpy(key, laid.word[i], (size_t)(equals - laid.word[i]));
        key[equals - laid.word[i]] = '\0';
        must(config_set(scratch, key, equals + 1, &err) == ERR_OK);
    }
    config_words_close(&laid);
}

static void read_as_batch(const struct yaml_source *source)
{
    static struct config scratch;
    struct config_batch  batch = {.count = 0};
    struct err           err = {.code = ERR_OK};

    if (yaml_read_batch(&batch, source, &err) != ERR_OK)
        must(err.code == ERR_CONFIG && strncmp(err.text, "config: fuzz.yaml", 17) == 0);
    config_defaults(&scratch);
    must(batch.count <= CONFIG_JOBS_MAX && batch.mistakes.count <= CONFIG_MISTAKES_MAX);
    check_words(&scratch, &batch.common);
    for (size_t i = 0; i < batch.count; i++)
        check_words(&scratch, &batch.jobs[i].words);
    check_ranges(&scratch);
    config_batch_close(&batch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct config config;
    struct err           err = {.code = ERR_OK};
    struct yaml_source   source = {.name = "fuzz.yaml", .text = (const char *)data, .bytes = size};

    config_defaults(&config);
    if (yaml_read(&config, &source, &err) != ERR_OK)
        must(err.code == ERR_CONFIG && strncmp(err.text, "config: fuzz.yaml", 17) == 0);
    check_ranges(&config);
    read_as_batch(&source);
    return 0;
}
