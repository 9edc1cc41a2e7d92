/*
 * prompt.c - from a text to everything that tiles need to know of it.
 *
 * Owns struct prompt: the embedded text and the modulation of every step, in host memory, taken
 * before the first tile.  The text encoders run once here and leave nothing else behind: they have
 * a backend of their own for the time being.  The engine remembers what the last text became, for
 * the next stage of a picture differs in its noise levels only, and the encoders are half of all
 * that a prompt reads.  The other half are the layers that make modulation: where the noise levels
 * of the next stage are known by then, they pass for both stages at once.
 *
 * Tiles read a prompt's tables in every step, so they lie on pages of their own, which the engine's
 * backend pins from when a prompt is made, or the backend opened again, until either is closed.
 *
 * It computes in fp32 whatever tiles are painted in.  A prompt is less than a thousandth of a
 * poster's work, and T5 does not scale its attention scores: a rounding to bf16, 2^-9 of a score of
 * 30, is felt.
 *
 * Read next: t5.c and clip.c, then modulation.c.
 */
#include "engine/compute_int.h"

#include <math.h>
#include <string.h>

enum { PAGE_BYTES = 1 << 16 };

static uint64_t text_values(const struct engine *engine)
{
    return (uint64_t)engine->facts.text_tokens * (uint64_t)engine->facts.hidden;
}

static uint64_t modulation_values(const struct engine *engine, uint32_t steps)
{
    return steps * (uint64_t)modulation_count(engine->networks.transformer);
}

/* Of whole pages, as large as any host's that a GPU is in. */
static uint64_t table_bytes(uint64_t values)
{
    return (uint64_t)round_up_i64((int64_t)(values * sizeof(float)), PAGE_BYTES);
}

uint64_t prompt_bytes(const struct engine *engine, uint32_t steps, uint32_t steps_next)
{
    return table_bytes(text_values(engine)) + table_bytes(modulation_values(engine, steps)) +
           table_bytes(modulation_values(engine, steps_next));
}

static int alloc_table(float **out, uint64_t values, const char *what, struct err *err)
{
    return os_alloc_aligned((void **)out, PAGE_BYTES, table_bytes(values), what, err);
}

/* Where a stage began. */
struct prompt_lap {
    double                 began;
    struct backend_uploads uploads;
};

/* text_out [text_tokens, hidden] */
static void embed_text(const struct engine *engine, struct backend *backend, const int32_t *ids,
                       float *text_out)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    int64_t           rows = engine->facts.text_tokens;
    struct matrix     text = backend_take(backend, DTYPE_F32, rows, engine->facts.hidden, "text");
    struct matrix     states =
        backend_take(backend, backend_act(backend), rows, engine->model->t5.hidden, "T5 states");

    t5_forward(engine->networks.t5, backend, ids, states);
    transformer_embed_text(engine->networks.transformer, backend, states, text);
    backend_download(backend, text_out, text);
    arena_rewind(backend_arena(backend), mark);
}

static void embed_pooled(const struct engine *engine, struct backend *backend,
                         const struct prompt_input *input)
{
    struct arena_mark mark = arena_mark(backend_arena(backend));
    struct matrix     pooled =
        backend_take(backend, DTYPE_F32, 1, engine->model->clip.hidden, "pooled text");

    clip_forward(engine->networks.clip, backend, input->clip_ids, input->clip_count, pooled);
    backend_download(backend, input->pooled, pooled);
    arena_rewind(backend_arena(backend), mark);
}

/* What a stage took, where weights have to be brought to the machine for it. */
static void tell_stage(struct backend *backend, const char *stage, struct prompt_lap *lap)
{
    struct backend_uploads now = backend_uploads(backend), before = lap->uploads;
    double                 seconds = os_seconds() - lap->began;
    char                   words[32];

    if (now.bytes == before.bytes) return;
    log_line(LOG_INFO, "prompt: %s %.2f s: %s of weights, read in %.2f s, waited for %.2f s", stage,
             seconds, text_bytes(words, sizeof words, now.bytes - before.bytes),
             now.fill_seconds - before.fill_seconds, now.wait_seconds - before.wait_seconds);
    *lap = (struct prompt_lap){.began = os_seconds(), .uploads = now};
}

void prompt_compute(const struct engine *engine, struct backend *backend,
                    const struct prompt_input *input, float *text_out)
{
    struct arena_mark         mark = arena_mark(backend_arena(backend));
    struct modulation_request request = {.guidance = input->guidance,
                                         .stage_count = input->stage_count};
    struct prompt_lap         lap = {.began = os_seconds(), .uploads = backend_uploads(backend)};

    if (!input->embedded) {
        embed_text(engine, backend, input->t5_ids, text_out);
        tell_stage(backend, "T5", &lap);
        embed_pooled(engine, backend, input);
        tell_stage(backend, "CLIP", &lap);
    }
    request.pooled = backend_take(backend, DTYPE_F32, 1, engine->model->clip.hidden, "pooled text");
    backend_upload(backend, request.pooled, input->pooled);
    memcpy(request.stages, input->stages, sizeof request.stages);
    modulation_make(engine->networks.transformer, backend, &request);
    tell_stage(backend, "modulation", &lap);
    arena_rewind(backend_arena(backend), mark);
}

static int check_numbers(const float *values, uint64_t count, const char *what, struct err *err)
{
    int     rc = ERR_OK;
    int64_t bad = k_count_bad_cpu(values, (int64_t)count);

    if (bad > 0)
        RAISE(err, ERR_NUMERIC, 0, "numeric: %lld of %llu values of the %s are NaN or infinite",
              (long long)bad, (unsigned long long)count, what);
out:
    return rc;
}

/* ------------------------------------------------------------------------- the last text */

static uint64_t id_count(const struct engine *engine)
{
    return clip_tokenizer_max(engine->clip_tokenizer) + engine->facts.text_tokens;
}

static int make_room(struct engine *engine, struct err *err)
{
    int                   rc = ERR_OK;
    struct embedded_text *last = &engine->embedded;

    if (last->ids == NULL)
        TRY(os_alloc((void **)&last->ids, id_count(engine), sizeof *last->ids, "token ids", err));
    if (last->text == NULL)
        TRY(os_alloc((void **)&last->text, text_values(engine), sizeof(float), "an embedded text",
                     err));
    if (last->pooled == NULL)
        TRY(os_alloc((void **)&last->pooled, (uint64_t)engine->model->clip.hidden, sizeof(float),
                     "a pooled text", err));
out:
    return rc;
}

/* Is it the text of last time? Then text_out is filled. */
static bool recall(struct engine *engine, const struct prompt_input *input, const int32_t *ids,
                   float *text_out)
{
    const struct embedded_text *last = &engine->embedded;

    if (!last->known || last->clip_count != input->clip_count ||
        memcmp(last->ids, ids, id_count(engine) * sizeof *ids) != 0)
        return false;
    memcpy(text_out, last->text, text_values(engine) * sizeof *text_out);
    return true;
}

static void remember(struct engine *engine, const struct prompt_input *input, const int32_t *ids,
                     const float *text)
{
    struct embedded_text *last = &engine->embedded;

    memcpy(last->ids, ids, id_count(engine) * sizeof *ids);
    memcpy(last->text, text, text_values(engine) * sizeof *text);
    last->clip_count = input->clip_count;
    last->known = true;
}

/* ------------------------------------------------------------------------- the next stage */

/* Is it the stage that was expected?  Of the text of last time. */
static bool is_expected(const struct engine *engine, const struct prompt_request *request)
{
    const struct modulation_ahead *ahead = &engine->ahead;
    uint32_t                       steps = request->schedule->steps;

    return ahead->table != NULL && request->next == NULL && ahead->guidance == request->guidance &&
           ahead->schedule.steps == steps &&
           memcmp(ahead->schedule.sigma, request->schedule->sigma,
                  steps * sizeof request->schedule->sigma[0]) == 0;
}

static void drop_ahead(struct engine *engine)
{
    os_free(engine->ahead.table);
    engine->ahead.table = NULL;
}

/* Room for what is made in passing, as the second stage of `input`. */
static int expect(struct engine *engine, const struct prompt_request *request,
                  struct prompt_input *input, struct err *err)
{
    int                      rc = ERR_OK;
    struct modulation_ahead *ahead = &engine->ahead;

    must(request->next->steps > 0 && request->next->steps <= engine->steps_next_max);
    TRY(alloc_table(&ahead->table, modulation_values(engine, request->next->steps),
                    "the next stage's modulation", err));
    ahead->schedule = *request->next;
    ahead->guidance = request->guidance;
    input->stages[input->stage_count++] =
        (struct modulation_stage){ahead->schedule.sigma, ahead->table, ahead->schedule.steps};
out:
    return rc;
}

void prompt_forget(struct engine *engine)
{
    os_free(engine->embedded.ids);
    os_free(engine->embedded.text);
    os_free(engine->embedded.pooled);
    engine->embedded = (struct embedded_text){.known = false};
    drop_ahead(engine);
    for (struct prompt *prompt = engine->prompts; prompt != NULL; prompt = prompt->next)
        prompt->engine = NULL;
    engine->prompts = NULL;
}

/* ------------------------------------------------------------------------------ open prompts */

/* All of it at once, 6 MB and 4 MB a step of FLUX.1-dev, though tiles read one step's at a time: a
 * step's pages are pinned once (bench_gpu says how fast), and each tile that comes to that step
 * then spares the GPU the half a millisecond for which the host would copy as much to where it can
 * travel from.  Step by step would take as long, while the GPU waits. */
static void pin(const struct engine *engine, const struct prompt *prompt)
{
    uint32_t steps = prompt->conditioning.steps;

    backend_pin(engine->backend, prompt->text, table_bytes(text_values(engine)));
    backend_pin(engine->backend, prompt->modulation, table_bytes(modulation_values(engine, steps)));
}

void prompt_pin_all(const struct engine *engine)
{
    for (const struct prompt *prompt = engine->prompts; prompt != NULL; prompt = prompt->next)
        pin(engine, prompt);
}

static void join(struct prompt *prompt, struct engine *engine)
{
    prompt->engine = engine;
    prompt->next = engine->prompts;
    engine->prompts = prompt;
    pin(engine, prompt);
}

/* Before its memory is freed.  An engine that has lost its backend has nothing pinned. */
static void leave(const struct prompt *prompt)
{
    struct engine  *engine = prompt->engine;
    struct prompt **at;

    if (engine == NULL) return;
    for (at = &engine->prompts; *at != prompt; at = &(*at)->next)
        must(*at != NULL);
    *at = prompt->next;
    if (engine->backend == NULL) return;
    backend_unpin(engine->backend, prompt->text);
    backend_unpin(engine->backend, prompt->modulation);
}

/* ---------------------------------------------------------------------------------- a prompt */

/* ids hold clip_tokenizer_max, then text_tokens numbers, and zeros where there are fewer. */
static int tokenize(const struct engine *engine, const char *text, int32_t *ids,
                    struct prompt_input *input, struct err *err)
{
    int      rc = ERR_OK;
    int32_t *t5_ids = ids + clip_tokenizer_max(engine->clip_tokenizer);

    TRY(clip_tokenizer_encode(engine->clip_tokenizer, text, ids, &input->clip_count, err));
    TRY(t5_tokenizer_encode(engine->t5_tokenizer, text, engine->facts.text_tokens, t5_ids, NULL,
                            err));
    input->clip_ids = ids;
    input->t5_ids = t5_ids;
out:
    return rc;
}

static int make_prompt(struct prompt **out, const struct engine *engine, uint32_t steps,
                       struct err *err)
{
    int            rc = ERR_OK;
    struct prompt *prompt = NULL;

    TRY(os_alloc((void **)&prompt, 1, sizeof *prompt, "a prompt", err));
    TRY(alloc_table(&prompt->text, text_values(engine), "a prompt's text", err));
    prompt->conditioning = (struct conditioning){
        .text = prompt->text, .text_tokens = engine->facts.text_tokens, .steps = steps};
    *out = prompt;
    prompt = NULL;
out:
    prompt_close(prompt);
    return rc;
}

/* All of `input`, on a machine of its own that has the memory of tiles meanwhile. */
static int run(struct engine *engine, const struct prompt_input *input, float *text_out,
               struct err *err)
{
    int             rc = ERR_OK;
    struct backend *backend = NULL;
    struct err      ignored = {.code = ERR_OK};

    engine_lend_memory(engine);
    TRY(backend_open(&backend, &engine->text_machine, err));
    TRY(arena_seal(backend_arena(backend), engine->text_machine.arena_limit_bytes, err));
    prompt_compute(engine, backend, input, text_out);
    TRY(backend_wait(backend, err));
    TRY(check_numbers(text_out, text_values(engine), "text's states", err));
    for (uint32_t i = 0; i < input->stage_count; i++)
        TRY(check_numbers(input->stages[i].table_out,
                          modulation_values(engine, input->stages[i].steps), "modulation", err));
out:
    backend_close(backend);
    if (rc == ERR_OK)
        rc = engine_reclaim_memory(engine, err);
    else
        (void)engine_reclaim_memory(engine, &ignored);
    return rc;
}

/* Modulation of the prompt, and of the one to come.  The engine knows nothing while it is made. */
static int make_anew(struct prompt *prompt, struct engine *engine,
                     const struct prompt_request *request, struct prompt_input *input,
                     struct err *err)
{
    int      rc = ERR_OK;
    uint32_t steps = request->schedule->steps;

    drop_ahead(engine);
    TRY(alloc_table(&prompt->modulation, modulation_values(engine, steps), "a prompt's modulation",
                    err));
    input->stages[input->stage_count++] =
        (struct modulation_stage){request->schedule->sigma, prompt->modulation, steps};
    if (request->next != NULL) TRY(expect(engine, request, input, err));
    engine->embedded.known = input->embedded; /* pooled is written to */
    TRY(run(engine, input, prompt->text, err));
out:
    if (rc != ERR_OK) drop_ahead(engine);
    return rc;
}

int prompt_open(struct prompt **out, struct engine *engine, const struct prompt_request *request,
                struct err *err)
{
    int                 rc = ERR_OK;
    uint32_t            steps = request->schedule->steps;
    struct prompt_input input = {.guidance = request->guidance};
    struct prompt      *prompt = NULL;
    int32_t            *ids = NULL;
    const double        began = os_seconds();

    must(engine->size_count > 0 && steps > 0 && steps <= engine->steps_max);
    if (!isfinite(request->guidance))
        RAISE(err, ERR_USAGE, 0, "guidance is %g, but must be a number", request->guidance);
    TRY(os_alloc((void **)&ids, id_count(engine), sizeof *ids, "token ids", err));
    TRY(engine_check_ready(engine, err));
    TRY(tokenize(engine, request->text, ids, &input, err));
    TRY(make_prompt(&prompt, engine, steps, err));
    TRY(make_room(engine, err));
    input.pooled = engine->embedded.pooled;
    input.embedded = recall(engine, &input, ids, prompt->text);
    if (input.embedded && is_expected(engine, request)) {
        prompt->modulation = engine->ahead.table;
        engine->ahead.table = NULL;
    } else {
        TRY(make_anew(prompt, engine, request, &input, err));
        remember(engine, &input, ids, prompt->text);
    }
    prompt->conditioning.modulation = prompt->modulation;
    join(prompt, engine);
    log_line(LOG_INFO, "prompt: %.2f s in all", os_seconds() - began);
    *out = prompt;
    prompt = NULL;
out:
    os_free(ids);
    prompt_close(prompt);
    return rc;
}

void prompt_close(struct prompt *prompt)
{
    if (prompt == NULL) return;
    leave(prompt);
    os_free(prompt->text);
    os_free(prompt->modulation);
    os_free(prompt);
}
