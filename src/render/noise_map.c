/*
 * noise_map.c - noise read from a file instead of drawn, so that another program's picture can be
 * repeated cell by cell.
 */
#include "render/render_int.h"

#include <math.h>

int noise_map_read(float **out, const char *path, int32_t h_lat, int32_t w_lat, int32_t channels,
                   struct err *err)
{
    int           rc = ERR_OK;
    struct os_map map = {0};
    float        *noise = NULL;
    uint64_t      count = 0;

    must(mul_u64((uint64_t)h_lat * (uint64_t)w_lat, (uint64_t)channels, &count));
    TRY(os_map_open(&map, path, err));
    if (map.bytes != count * sizeof *noise)
        RAISE(err, ERR_FORMAT, 0,
              "noise: '%s' has %llu bytes; raw f32 of %d x %d cells x %d channels has %llu", path,
              (unsigned long long)map.bytes, w_lat, h_lat, channels,
              (unsigned long long)(count * sizeof *noise));
    TRY(os_alloc((void **)&noise, count, sizeof *noise, "the noise file", err));
    for (uint64_t i = 0; i < count; i++) {
        noise[i] = ((const float *)(const void *)map.data)[i]; /* a mapping starts on a page */
        if (!isfinite(noise[i]))
            RAISE(err, ERR_FORMAT, 0, "noise: '%s' value %llu is not a finite number", path,
                  (unsigned long long)i);
    }
    *out = noise;
    noise = NULL;
out:
    os_free(noise);
    os_map_close(&map);
    return rc;
}
