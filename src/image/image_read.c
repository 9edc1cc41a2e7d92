/*
 * image_read.c - a draft from anywhere, as sRGB in memory.
 *
 * Owns the order of suspicion: what kind of file by its first bytes, whatever its name says; sizes
 * against the limits before memory is taken; then pixels; then colour through the embedded profile;
 * then alpha on white.  The last two in that order, because white is white in sRGB.
 *
 * Read next: png.c and tiff_read.c for the pixels.
 */
#include <string.h>

#include <lcms2.h>

#include "image/image_int.h"

/* ---------------------------------------------------------------------------------- decoded */

int image_read_check_size(const char *name, uint64_t w, uint64_t h, struct err *err)
{
    int rc = ERR_OK;

    if (w < 1 || h < 1) RAISE(err, ERR_FORMAT, 0, "'%s' has no pixels", name);
    if (w > IMAGE_SIDE_MAX_PX || h > IMAGE_SIDE_MAX_PX || w * h > IMAGE_PIXELS_MAX)
        RAISE(
            err, ERR_FORMAT, 0,
            "'%s' is %llu x %llu px, but a draft may have %d px a side and %d megapixels; make it "
            "smaller first",
            name, (unsigned long long)w, (unsigned long long)h, IMAGE_SIDE_MAX_PX,
            IMAGE_PIXELS_MAX / 1000000);
out:
    return rc;
}

int decoded_open(struct decoded *out, uint32_t w, uint32_t h, bool with_alpha, struct err *err)
{
    int            rc = ERR_OK;
    const uint64_t pixels = (uint64_t)w * h;
    void          *memory = NULL;

    must(pixels > 0 && pixels <= IMAGE_PIXELS_MAX);
    TRY(os_alloc(&memory, pixels, 3 * sizeof(uint16_t), "a draft", err));
    out->image = (struct image){.w = (int32_t)w, .h = (int32_t)h, .rgb = memory};
    if (with_alpha) {
        TRY(os_alloc(&memory, pixels, sizeof(uint16_t), "a draft's alpha", err));
        out->alpha = memory;
    }
out:
    return rc;
}

void decoded_close(struct decoded *decoded)
{
    image_close(&decoded->image);
    os_free(decoded->alpha);
    os_free(decoded->icc);
    *decoded = (struct decoded){0};
}

int decoded_keep_icc(struct decoded *decoded, const struct source *source, const void *icc,
                     uint32_t bytes, struct err *err)
{
    int rc = ERR_OK;

    if (bytes > IMAGE_ICC_BYTES_MAX)
        RAISE(err, ERR_FORMAT, 0,
              "'%s' has a colour profile of %u bytes, but at most %d are read; save it without",
              source->name, bytes, IMAGE_ICC_BYTES_MAX);
    if (bytes == 0) goto out; /* an empty profile says nothing */
    TRY(os_alloc(&decoded->icc, bytes, 1, "a colour profile", err));
    memcpy(decoded->icc, icc, bytes);
    decoded->icc_bytes = bytes;
out:
    return rc;
}

void image_close(struct image *image)
{
    os_free(image->rgb);
    image->rgb = NULL;
}

/* ----------------------------------------------------------------------------------- colour */

/* Our own profile is recognised by its bytes: what we wrote comes back to the bit. */
static bool is_our_profile(const struct decoded *decoded)
{
    struct err ignored = {0}; /* without a profile to compare, lcms2 below says why */
    void      *ours = NULL;
    uint32_t   bytes = 0;
    bool       same;

    if (metadata_srgb_icc(&ours, &bytes, &ignored) != ERR_OK) return false;
    same = bytes == decoded->icc_bytes && memcmp(ours, decoded->icc, bytes) == 0;
    os_free(ours);
    return same;
}

static int to_srgb(struct decoded *decoded, const char *name, struct err *err)
{
    int           rc = ERR_OK;
    const size_t  w = (size_t)decoded->image.w;
    cmsContext    context = cmsCreateContext(NULL, NULL);
    cmsHPROFILE   from = NULL, to = NULL;
    cmsHTRANSFORM transform = NULL;
    /* Without optimisation: lcms2 would interpolate in a table of 33 steps and lose the low bits.
     * Without cache: one transform serves all threads. */
    const cmsUInt32Number flags = cmsFLAGS_NOOPTIMIZE | cmsFLAGS_NOCACHE;

    if (context == NULL) RAISE(err, ERR_HOST_MEM, 0, "memory: none left for colours of '%s'", name);
    from = cmsOpenProfileFromMemTHR(context, decoded->icc, decoded->icc_bytes);
    to = cmsCreate_sRGBProfileTHR(context);
    if (from != NULL && to != NULL) {
        /* A grey profile reads the first of the three equal samples and skips the other two. */
        const cmsUInt32Number grey =
            COLORSPACE_SH(PT_GRAY) | EXTRA_SH(2) | CHANNELS_SH(1) | BYTES_SH(2);
        const bool is_grey = cmsGetColorSpace(from) == cmsSigGrayData;
        if (!is_grey || decoded->grey)
            transform = cmsCreateTransformTHR(context, from, is_grey ? grey : TYPE_RGB_16, to,
                                              TYPE_RGB_16, INTENT_PERCEPTUAL, flags);
    }
    if (transform == NULL)
        RAISE(
            err, ERR_FORMAT, 0,
            "'%s' has a colour profile that does not fit its pixels or is damaged; save it as sRGB",
            name);
#pragma omp parallel for schedule(static)
    for (int32_t y = 0; y < decoded->image.h; y++) {
        uint16_t *row = decoded->image.rgb + 3 * w * (size_t)y;
        cmsDoTransform(transform, row, row, (cmsUInt32Number)w);
    }
out:
    if (transform != NULL) cmsDeleteTransform(transform);
    if (to != NULL) (void)cmsCloseProfile(to);
    if (from != NULL) (void)cmsCloseProfile(from);
    if (context != NULL) cmsDeleteContext(context);
    return rc;
}

static void put_on_white(struct decoded *decoded)
{
    const size_t pixels = (size_t)decoded->image.w * (size_t)decoded->image.h;

    for (size_t i = 0; i < pixels; i++) {
        const uint32_t alpha = decoded->alpha[i];
        for (size_t c = 0; c < 3; c++) {
            uint16_t *value = &decoded->image.rgb[3 * i + c];
            /* 65535 is at most what the sum of both products can divide to: no overflow. */
            *value = (uint16_t)((*value * alpha + 65535u * (65535u - alpha) + 32767u) / 65535u);
        }
    }
}

/* ------------------------------------------------------------------------------------- kinds */

/* The name of a picture format that people try and we do not read, or NULL. */
static const char *other_format(const struct source *source)
{
    static const struct {
        size_t      at, count;
        const char *bytes, *name;
    } formats[] = {{0, 3, "\xFF\xD8\xFF", "JPEG"},
                   {8, 4, "WEBP", "WebP"},
                   {0, 4, "GIF8", "GIF"},
                   {4, 4, "ftyp", "HEIF or AVIF"},
                   {0, 2, "\xFF\x0A", "JPEG XL"},
                   {4, 4, "JXL ", "JPEG XL"},
                   {0, 4, "\x76\x2F\x31\x01", "EXR"},
                   {0, 2, "BM", "BMP"}};

    for (size_t i = 0; i < ARRAY_COUNT(formats); i++)
        if (source->bytes >= formats[i].at + formats[i].count &&
            memcmp(source->data + formats[i].at, formats[i].bytes, formats[i].count) == 0)
            return formats[i].name;
    return NULL;
}

int image_read_memory(struct image *out, const struct source *source, struct err *err)
{
    int            rc = ERR_OK;
    struct decoded decoded = {0};
    const char    *other = other_format(source);

    if (image_read_is_png(source))
        TRY(png_decode(&decoded, source, err));
    else if (image_read_is_tiff(source))
        TRY(tiff_read_decode(&decoded, source, err));
    else if (other != NULL)
        RAISE(err, ERR_FORMAT, 0,
              "'%s' is a %s file, but drafts are read from PNG or TIFF; convert it first",
              source->name, other);
    else
        RAISE(err, ERR_FORMAT, 0, "'%s' is neither a PNG nor a TIFF file", source->name);
    if (decoded.icc != NULL && !is_our_profile(&decoded)) TRY(to_srgb(&decoded, source->name, err));
    if (decoded.alpha != NULL) put_on_white(&decoded);
    *out = decoded.image;
    decoded.image = (struct image){0};
out:
    decoded_close(&decoded);
    return rc;
}

int image_read(struct image *out, const char *path, struct err *err)
{
    int           rc = ERR_OK;
    struct os_map map = {0};

    TRY(os_map_open(&map, path, err));
    const struct source source = {.name = path, .data = map.data, .bytes = (size_t)map.bytes};
    TRY(image_read_memory(out, &source, err));
out:
    os_map_close(&map);
    return rc;
}
