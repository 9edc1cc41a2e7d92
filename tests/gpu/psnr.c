/*
 * psnr.c - how near two pictures are, in dB: 200 when they are the same.
 *
 * use: psnr A B
 */
#include "image/image.h"

#include <math.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct err   err = {.code = ERR_OK};
    struct image a = {0}, b = {0};
    double       squares = 0;
    int64_t      count;

    if (argc != 3) return 2;
    if (image_read(&a, argv[1], &err) != ERR_OK || image_read(&b, argv[2], &err) != ERR_OK) {
        (void)fprintf(stderr, "psnr: %s\n", err.text);
        return 1;
    }
    if (a.w != b.w || a.h != b.h) {
        (void)fprintf(stderr, "psnr: %d x %d px against %d x %d\n", a.w, a.h, b.w, b.h);
        return 1;
    }
    count = 3 * (int64_t)a.w * a.h;
    for (int64_t i = 0; i < count; i++) {
        double d = (a.rgb[i] - b.rgb[i]) / 65535.0;
        squares += d * d;
    }
    (void)printf("%.1f\n", squares == 0 ? 200 : -10 * log10(squares / (double)count));
    image_close(&a);
    image_close(&b);
    return 0;
}
