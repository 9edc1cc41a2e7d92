/*
 * fuzz_tiff_read.c - any bytes as a TIFF draft.
 */
#include "image/image_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err          err = {0};
    struct image        image = {0};
    const struct source source = {.name = "fuzz", .data = data, .bytes = size};

    if (image_read_memory(&image, &source, &err) == ERR_OK) {
        must(image.w > 0 && image.h > 0 && image.w <= IMAGE_SIDE_MAX_PX);
    } else {
        must(image.rgb == NULL && err.text[0] != '\0');
    }
    image_close(&image);
    return 0;
}
