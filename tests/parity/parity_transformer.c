/* parity_transformer.c - velocities of single tiles against the reference. */
#include "parity.h"

/* What a prompt would hold for one step at the golden sigma, from golden text.  Both tables are the
 * caller's to free. */
static struct conditioning make_conditioning(struct parity *p, double sigma)
{
    const struct transformer *transformer = p->engine->networks.transformer;
    int64_t                   tokens = p->engine->facts.text_tokens, count;
    float                     first = (float)sigma;
    float *modulation = calloc((size_t)modulation_count(transformer), sizeof *modulation);
    struct modulation_request request = {
        .stage_count = 1, .stages = {{.sigmas = &first, .table_out = modulation, .steps = 1}}};
    struct matrix text;
    const float  *states = golden(p, &count, "t5.states", 1), *pooled;

    assert_int_equal(count, tokens * p->engine->model->t5.hidden);
    text = backend_take(p->exact, DTYPE_F32, tokens, p->engine->facts.hidden, "text");
    transformer_embed_text(transformer, p->exact,
                           sent(p->exact, states, tokens, p->engine->model->t5.hidden), text);
    pooled = golden(p, &count, "clip.pooled", 1);
    request.pooled = sent(p->exact, pooled, 1, count);
    request.guidance = spec_number(p->spec, "guidance");
    assert_non_null(modulation);
    modulation_make(transformer, p->exact, &request);
    return (struct conditioning){.text = received(p->exact, text),
                                 .modulation = modulation,
                                 .text_tokens = tokens,
                                 .steps = 1};
}

static void velocities_agree(void **state)
{
    struct err     err = {0};
    struct parity *p = parity_begin(state);

    for (size_t i = 0; i < spec_count(p, "tiles"); i++) {
        const json_t           *spec = spec_object(p, "tiles", i);
        struct conditioning     conditioning = make_conditioning(p, spec_number(spec, "sigma"));
        struct transformer_tile tile = {.conditioning = &conditioning,
                                        .h_tokens = spec_int(spec, "h_tokens"),
                                        .w_tokens = spec_int(spec, "w_tokens")};
        int64_t                 rows = (int64_t)tile.h_tokens * tile.w_tokens, count;
        int64_t                 channels = p->engine->model->transformer.in_channels;

        tile.tokens = sent(p->backend, golden(p, &count, "transformer.tokens", i), rows, channels);
        assert_int_equal(count, rows * channels);
        tile.velocity = backend_take(p->backend, DTYPE_F32, rows, channels, "velocity");
        transformer_forward(p->painters.transformer, p->backend, &tile, 1, 0);
        ASSERT_OK(backend_wait(p->backend, &err));
        assert_matrix_close(p, p->backend, tile.velocity, "transformer.velocity", i);
        free((void *)(uintptr_t)conditioning.text);
        free((void *)(uintptr_t)conditioning.modulation);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(velocities_agree)};
    return PARITY_RUN(tests, VARIANTS_ALL);
}
