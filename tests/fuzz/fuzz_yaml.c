/*
 * fuzz_yaml.c - settings files from anywhere.  Whatever is taken must lie inside the table's
 * ranges.
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct config config;
    struct err           err = {.code = ERR_OK};
    struct yaml_source   source = {.name = "fuzz.yaml", .text = (const char *)data, .bytes = size};

    config_defaults(&config);
    if (yaml_read(&config, &source, &err) != ERR_OK)
        must(err.code == ERR_CONFIG && strncmp(err.text, "config: fuzz.yaml", 17) == 0);
    check_ranges(&config);
    return 0;
}
