/*
 * fuzz_png.c - any bytes as a PNG draft.
 */
#include "image/image_int.h"
#include "png_checksums.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err          err = {0};
    struct image        image = {0};
    uint8_t            *copy = copy_with_checksums(data, size);
    const struct source source = {.name = "fuzz", .data = copy, .bytes = size};

    if (copy == NULL) return 0;
    if (image_read_memory(&image, &source, &err) == ERR_OK) {
        must(image.w > 0 && image.h > 0 && image.w <= IMAGE_SIDE_MAX_PX);
    } else {
        must(image.rgb == NULL && err.text[0] != '\0');
    }
    image_close(&image);
    free(copy);
    return 0;
}
