/*
 * fuzz_picture_info.c - any bytes as a picture whose words are asked for.
 */
#include "image/image_int.h"
#include "png_checksums.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err          err = {0};
    struct picture_info info;
    uint8_t            *copy = copy_with_checksums(data, size);
    const struct source source = {.name = "fuzz", .data = copy, .bytes = size};

    if (copy == NULL) return 0;
    if (picture_info_memory(&info, &source, &err) == ERR_OK) {
        must(info.w > 0 && info.h > 0 && info.levels >= 1);
        if (info.prompt != NULL)
            must(text_utf8_valid_prefix(info.prompt, strlen(info.prompt)) == strlen(info.prompt));
    } else {
        must(info.prompt == NULL && info.settings_json == NULL && err.text[0] != '\0');
    }
    picture_info_close(&info);
    free(copy);
    return 0;
}
