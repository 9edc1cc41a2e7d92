/*
 * outlook.c - what a GPU, here or elsewhere, would be used for.
 *
 * Brings together the facts of the model (measure.c), of the card and of the host, has them decided
 * (budget.c), and tells the decision in numbers that callers understand.
 */
#include "engine/compute_int.h"

#include "engine/budget.h"

int engine_card_here(struct engine_card *card, const struct engine_options *options,
                     struct err *err)
{
    int                  rc = ERR_OK;
    struct engine_device device;

    TRY(engine_find_device(&device, options, err));
    card->vram_bytes = device.bytes_free;
    card->host_bytes = os_host_bytes_total();
    card->host_free_bytes = os_host_bytes_free();
out:
    return rc;
}

static void tell(struct engine_outlook *out, const struct budget *budget,
                 const struct budget_facts *facts)
{
    *out = (struct engine_outlook){.cap_bytes = facts->allowed.vram_bytes,
                                   .device_bytes = budget_device_bytes(budget, facts),
                                   .resident_bytes = budget->resident_bytes,
                                   .ring_bytes = budget->ring_bytes,
                                   .scratch_bytes = budget->scratch_bytes,
                                   .ends_bytes = budget->ends_bytes,
                                   .fixed_bytes = budget->fixed_bytes,
                                   .streamed_bytes = budget->streamed_bytes,
                                   .pinned_bytes = budget->pinned_bytes,
                                   .blocks = budget->block_count,
                                   .blocks_resident = budget->block_count - budget->streamed_count,
                                   .tiles_per_pass = budget->tiles_per_pass,
                                   .strip_level = budget->strip_level,
                                   .strip_levels = facts->strip_levels,
                                   .compute_seconds = budget_compute_seconds(budget, facts),
                                   .link_seconds = budget_link_seconds(budget, facts),
                                   .disk_seconds = budget_disk_seconds(budget, facts),
                                   .text_on_cpu = budget->text_on_cpu};
}

void budget_allow(struct budget_facts *facts, const struct engine_memory *allowed,
                  const struct engine_card *card)
{
    facts->allowed = *allowed;
    if (facts->allowed.vram_bytes == 0 || facts->allowed.vram_bytes > card->vram_bytes)
        facts->allowed.vram_bytes = card->vram_bytes;
    facts->host_bytes = card->host_bytes;
    facts->host_free_bytes = card->host_free_bytes;
    facts->link_bytes_per_second = card->link_bytes_per_second;
    facts->disk_bytes_per_second = card->disk_bytes_per_second;
    facts->flop_per_second = card->flop_per_second;
}

int engine_plan_memory(struct engine_outlook *out, const struct engine_options *options,
                       const struct engine_card *card, bool text_may_move,
                       const struct engine_size *sizes, size_t size_count, struct err *err)
{
    int                 rc = ERR_OK;
    struct engine      *engine = NULL;
    struct budget_facts facts;
    struct budget       budget;
    /* Measured with everything in place; what may visit is decided below. */
    struct engine_options whole = *options;

    must(options->machine != ENGINE_CPU && card->vram_bytes > 0);
    whole.memory = (struct engine_memory){.offload = false};
    TRY(engine_open(&engine, &whole, err)); /* the types of weights decide what they take */
    TRY(measure_budget(&facts, engine, sizes, size_count, err));
    if (options->machine == ENGINE_CUDA && facts.fixed_bytes == 0)
        RAISE(err, ERR_DEVICE, 0,
              "plan: this mural was built without CUDA and cannot tell what a GPU would take");
    budget_allow(&facts, &options->memory, card);
    facts.text_may_move = text_may_move && !options->text_on_cpu;
    TRY(budget_make(&budget, &facts, err));
    tell(out, &budget, &facts);
    out->text_on_cpu |= options->text_on_cpu;
out:
    engine_close(engine);
    return rc;
}

int engine_decide(struct budget *out, struct budget_facts *facts_out, const struct engine *engine,
                  const struct engine_memory *memory, const struct engine_size *sizes,
                  size_t size_count, struct err *err)
{
    int                   rc = ERR_OK;
    struct engine_options here = {.machine = ENGINE_CUDA, .gpu = engine->machine.device};
    struct engine_card    card = {.vram_bytes = UINT64_MAX / 4,
                                  .host_bytes = os_host_bytes_total(),
                                  .host_free_bytes = os_host_bytes_free()};

    if (engine->machine.machine == MACHINE_CUDA) TRY(engine_card_here(&card, &here, err));
    card.link_bytes_per_second = memory->link_bytes_per_second;
    card.disk_bytes_per_second = memory->disk_bytes_per_second;
    card.flop_per_second = memory->flop_per_second;
    TRY(measure_budget(facts_out, engine, sizes, size_count, err));
    budget_allow(facts_out, memory, &card);
    TRY(budget_make(out, facts_out, err));
out:
    return rc;
}
