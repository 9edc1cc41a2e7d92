/* parity_vae.c - encoding to the posterior mean, and decoding, against the reference. */
#include "parity.h"

/* Pictures as the VAE's functions see them: decoded values are not clamped. */
struct picture {
    int32_t       w_px, h_px;
    struct matrix rgb, latent;
};

static struct picture make_picture(struct parity *p, size_t number)
{
    const json_t              *spec = spec_object(p, "tiles", number);
    const struct engine_facts *facts = &p->engine->facts;
    struct picture             picture;

    picture.w_px = spec_int(spec, "w_tokens") * facts->px_per_token;
    picture.h_px = spec_int(spec, "h_tokens") * facts->px_per_token;
    picture.rgb =
        backend_take(p->backend, DTYPE_F32, (int64_t)picture.w_px * picture.h_px, 3, "rgb");
    picture.latent = backend_take(p->backend, DTYPE_F32,
                                  (int64_t)(picture.w_px / facts->px_per_lat) *
                                      (picture.h_px / facts->px_per_lat),
                                  facts->latent_channels, "latent");
    return picture;
}

static void encoded_means_agree(void **state)
{
    struct err     err = {0};
    struct parity *p = parity_begin(state);

    for (size_t i = 0; i < spec_count(p, "tiles"); i++) {
        struct picture picture = make_picture(p, i);
        int64_t        count;
        backend_upload(p->backend, picture.rgb, golden(p, &count, "vae.rgb", i));
        assert_int_equal(count, picture.rgb.rows * 3);
        vae_encode(p->painters.vae, p->backend, picture.rgb, picture.w_px, picture.h_px,
                   picture.latent);
        ASSERT_OK(backend_wait(p->backend, &err));
        assert_matrix_close(p, p->backend, picture.latent, "vae.latent", i);
    }
}

static void decoded_pictures_agree(void **state)
{
    struct err     err = {0};
    struct parity *p = parity_begin(state);

    for (size_t i = 0; i < spec_count(p, "tiles"); i++) {
        struct picture picture = make_picture(p, i);
        int64_t        count;
        backend_upload(p->backend, picture.latent, golden(p, &count, "vae.source", i));
        assert_int_equal(count, picture.latent.rows * picture.latent.cols);
        vae_decode(p->painters.vae, p->backend, picture.latent, picture.w_px, picture.h_px,
                   picture.rgb);
        ASSERT_OK(backend_wait(p->backend, &err));
        assert_matrix_close(p, p->backend, picture.rgb, "vae.decoded", i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(encoded_means_agree),
                                       cmocka_unit_test(decoded_pictures_agree)};
    return PARITY_RUN(tests, VARIANTS_ALL);
}
