/*
 * blocks.c - what each block of the transformer weighs and how much it computes.
 *
 * Owns nothing.  Weights are counted as they were kept; arithmetic is that of a dry run of a
 * transformer that has the block, less one that does not.
 *
 * Read next: measure.c.
 */
#include "engine/compute_int.h"
#include "engine/transformer_int.h"

#include "engine/budget.h"

static uint64_t matrix_bytes(struct matrix m)
{
    return (uint64_t)(m.rows * m.cols) * dtype_bytes(m.dtype);
}

static uint64_t projection_bytes(const struct projection *in)
{
    uint64_t sum = 0;

    for (int i = 0; i < in->part_count; i++)
        sum += matrix_bytes(in->parts[i].w);
    return sum;
}

static uint64_t stream_bytes(const struct stream *stream)
{
    return projection_bytes(&stream->in) + matrix_bytes(stream->out.w) +
           matrix_bytes(stream->mlp_in.w) + matrix_bytes(stream->mlp_out.w);
}

uint32_t blocks_count(const struct transformer *transformer)
{
    return (uint32_t)(transformer->config.doubles + transformer->config.singles);
}

uint64_t blocks_bytes(const struct transformer *transformer, uint32_t block)
{
    const struct single_block *single;

    must(block < blocks_count(transformer));
    if (block < transformer->config.doubles)
        return stream_bytes(&transformer->doubles[block].image) +
               stream_bytes(&transformer->doubles[block].text);
    single = &transformer->singles[block - transformer->config.doubles];
    return projection_bytes(&single->in) + matrix_bytes(single->mlp_in.w) +
           matrix_bytes(single->out.w);
}

/* FLOP of one tile through a transformer that has only its first blocks. */
static double flop_of(const struct transformer *transformer, struct backend *backend,
                      const struct engine_size *size, const struct engine_facts *facts,
                      int64_t doubles, int64_t singles)
{
    struct arena_mark   mark = arena_mark(backend_arena(backend));
    struct transformer  part = *transformer;
    float              *nowhere = arena_take(backend_arena(backend), 0, "nowhere");
    struct conditioning conditioning = {
        .text = nowhere, .modulation = nowhere, .text_tokens = facts->text_tokens, .steps = 1};
    struct transformer_tile tile = {.conditioning = &conditioning,
                                    .h_tokens = size->h_px / facts->px_per_token,
                                    .w_tokens = size->w_px / facts->px_per_token};
    int64_t                 rows = (int64_t)tile.h_tokens * tile.w_tokens;
    double                  before = backend_flops(backend);

    part.config.doubles = doubles;
    part.config.singles = singles;
    tile.tokens = backend_take(backend, DTYPE_F32, rows, part.image_in.w.cols, "tokens");
    tile.velocity = backend_take(backend, DTYPE_F32, rows, part.image_out.w.rows, "velocity");
    transformer_forward(&part, backend, &tile, 1, 0);
    arena_rewind(backend_arena(backend), mark);
    return backend_flops(backend) - before;
}

void blocks_flop(const struct transformer *transformer, struct backend *backend,
                 const struct engine_size *size, const struct engine_facts *facts, double *flop_out)
{
    const struct transformer_config *config = &transformer->config;
    int64_t doubles = config->doubles, singles = config->singles;
    double  none = flop_of(transformer, backend, size, facts, 0, 0);
    double  of_double = 0, of_single = 0, of_last = 0; /* the last leaves text out */

    if (doubles > 0) of_double = flop_of(transformer, backend, size, facts, 1, 0) - none;
    if (singles > 0) of_last = flop_of(transformer, backend, size, facts, 0, 1) - none;
    if (singles > 1)
        of_single = flop_of(transformer, backend, size, facts, 0, 2) - none - of_last;
    for (int64_t i = 0; i < doubles + singles; i++)
        flop_out[i] = i < doubles ? of_double : i < doubles + singles - 1 ? of_single : of_last;
}
