/* parity_clip.c - the pooled text vector of CLIP against the reference. */
#include "parity.h"

static void pooled_vectors_agree(void **state)
{
    struct err     err = {0};
    struct parity *p = parity_begin(state);
    int64_t        width = p->engine->model->clip.hidden;
    struct matrix  pooled = backend_take(p->exact, DTYPE_F32, 1, width, "pooled");

    for (size_t i = 0; i < (size_t)spec_int(p->spec, "prompts"); i++) {
        int32_t  ids[128];
        uint32_t count = (uint32_t)golden_ids(p, ids, 128, "clip.ids", i);
        /* The reference pads with the end token and pools at the first of them. */
        while (count > 1 && ids[count - 2] == ids[count - 1])
            count--;
        clip_forward(p->engine->networks.clip, p->exact, ids, count, pooled);
        ASSERT_OK(backend_wait(p->exact, &err));
        assert_matrix_close(p, p->exact, pooled, "clip.pooled", i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(pooled_vectors_agree)};
    return PARITY_RUN(tests, VARIANTS_F32);
}
