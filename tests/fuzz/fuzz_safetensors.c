/*
 * fuzz_safetensors.c - any bytes as a container of weights.  What is taken must lie inside them.
 */
#include "weights/weights_int.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_entry(const struct safetensors_entry *entry, const uint8_t *data, size_t size)
{
    const uint8_t *begin = entry->data;
    uint64_t       sum = 0;

    must(entry->rank <= 8 && entry->dtype_name != NULL);
    must(begin >= data + 8 && entry->bytes <= size);
    must((size_t)(begin - data) + entry->bytes <= size);
    for (uint64_t i = 0; i < entry->bytes; i++) sum += begin[i]; /* every byte can be read */
    must(sum <= 255 * entry->bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err          err = {.code = ERR_OK};
    struct safetensors *file = NULL;
    uint64_t            bytes = 0;

    if (safetensors_open_memory(&file, data, size, "fuzz.safetensors", &err) != ERR_OK) {
        must(file == NULL && err.code == ERR_FORMAT);
        must(strncmp(err.text, "weights: 'fuzz.safetensors'", 27) == 0);
        return 0;
    }
    for (uint32_t i = 0; i < safetensors_count(file); i++) {
        const struct safetensors_entry *entry = safetensors_at(file, i);
        check_entry(entry, data, size);
        must(safetensors_find(file, entry->name) == entry);
        bytes += entry->bytes;
    }
    must(bytes < size);
    safetensors_close(file);
    return 0;
}
