/* parity_t5.c - the text states of T5 against the reference. */
#include "parity.h"

static void states_agree(void **state)
{
    struct err     err = {0};
    struct parity *p = parity_begin(state);
    int64_t        tokens = p->engine->facts.text_tokens, width = p->engine->model->t5.hidden;
    struct matrix  states = backend_take(p->exact, DTYPE_F32, tokens, width, "states");

    for (size_t i = 0; i < (size_t)spec_int(p->spec, "prompts"); i++) {
        int32_t ids[512];
        assert_int_equal(golden_ids(p, ids, 512, "t5.ids", i), tokens);
        t5_forward(p->engine->networks.t5, p->exact, ids, states);
        ASSERT_OK(backend_wait(p->exact, &err));
        assert_matrix_close(p, p->exact, states, "t5.states", i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(states_agree)};
    return PARITY_RUN(tests, VARIANTS_F32);
}
