/*
 * names.c - what a tensor is called in a file.
 *
 * The program knows tensors by their diffusers names.  This file owns the way from there to the
 * single files of Black Forest Labs, where q, k, v (and in single blocks the MLP's first layer) are
 * fused into one tensor, the decoder's levels count the other way round, the halves of the final
 * modulation are exchanged, and the VAE's attention is made of 1x1 convolutions.  Reads no bytes of
 * weights.
 *
 * Read next: model.c, which asks.
 */
#include "weights/weights_int.h"

#include <stdio.h>
#include <string.h>

/* Which rows of the fused tensor a piece is: counted in hidden (h) and mlp (m) sizes. */
struct rule {
    const char *diffusers, *bfl;
    int         first_h;        /* first row = first_h * h          */
    int         file_h, file_m; /* rows in the file; 0, 0: the same */
};

static const struct rule whole_rules[] = {
    {"x_embedder", "img_in", 0, 0, 0},
    {"context_embedder", "txt_in", 0, 0, 0},
    {"time_text_embed.timestep_embedder.linear_1", "time_in.in_layer", 0, 0, 0},
    {"time_text_embed.timestep_embedder.linear_2", "time_in.out_layer", 0, 0, 0},
    {"time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer", 0, 0, 0},
    {"time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer", 0, 0, 0},
    {"time_text_embed.text_embedder.linear_1", "vector_in.in_layer", 0, 0, 0},
    {"time_text_embed.text_embedder.linear_2", "vector_in.out_layer", 0, 0, 0},
    {"norm_out.linear", "final_layer.adaLN_modulation.1", 0, 0, 0},
    {"proj_out", "final_layer.linear", 0, 0, 0},
};

static const struct rule double_rules[] = {
    {"norm1.linear", "img_mod.lin", 0, 0, 0},
    {"norm1_context.linear", "txt_mod.lin", 0, 0, 0},
    {"attn.to_q", "img_attn.qkv", 0, 3, 0},
    {"attn.to_k", "img_attn.qkv", 1, 3, 0},
    {"attn.to_v", "img_attn.qkv", 2, 3, 0},
    {"attn.add_q_proj", "txt_attn.qkv", 0, 3, 0},
    {"attn.add_k_proj", "txt_attn.qkv", 1, 3, 0},
    {"attn.add_v_proj", "txt_attn.qkv", 2, 3, 0},
    {"attn.norm_q", "img_attn.norm.query_norm", 0, 0, 0},
    {"attn.norm_k", "img_attn.norm.key_norm", 0, 0, 0},
    {"attn.norm_added_q", "txt_attn.norm.query_norm", 0, 0, 0},
    {"attn.norm_added_k", "txt_attn.norm.key_norm", 0, 0, 0},
    {"attn.to_out.0", "img_attn.proj", 0, 0, 0},
    {"attn.to_add_out", "txt_attn.proj", 0, 0, 0},
    {"ff.net.0.proj", "img_mlp.0", 0, 0, 0},
    {"ff.net.2", "img_mlp.2", 0, 0, 0},
    {"ff_context.net.0.proj", "txt_mlp.0", 0, 0, 0},
    {"ff_context.net.2", "txt_mlp.2", 0, 0, 0},
};

static const struct rule single_rules[] = {
    {"norm.linear", "modulation.lin", 0, 0, 0},
    {"attn.to_q", "linear1", 0, 3, 1},
    {"attn.to_k", "linear1", 1, 3, 1},
    {"attn.to_v", "linear1", 2, 3, 1},
    {"proj_mlp", "linear1", 3, 3, 1},
    {"proj_out", "linear2", 0, 0, 0},
    {"attn.norm_q", "norm.query_norm", 0, 0, 0},
    {"attn.norm_k", "norm.key_norm", 0, 0, 0},
};

/* Splits "stem.weight" or "stem.bias"; the tail keeps its dot. */
static bool split_tail(const char *name, char *stem, size_t capacity, const char **tail)
{
    const char *dot = strrchr(name, '.');

    if (dot == NULL || (size_t)(dot - name) >= capacity) return false;
    memcpy(stem, name, (size_t)(dot - name));
    stem[dot - name] = '\0';
    *tail = dot;
    return true;
}

static bool apply(struct names_place *out, const struct rule *rules, size_t count, const char *stem,
                  const char *tail, const char *head, const struct transformer_config *config,
                  int64_t rows_all)
{
    for (size_t i = 0; i < count; i++) {
        const struct rule *rule = &rules[i];
        bool               gain = strstr(rule->bfl, "y_norm") != NULL; /* of queries or keys */
        if (strcmp(rule->diffusers, stem) != 0) continue;
        (void)snprintf(out->name, sizeof out->name, "%s%s%s", head, rule->bfl,
                       gain ? ".scale" : tail);
        out->first_row = rule->first_h * config->hidden;
        out->rows_file = rule->file_h * config->hidden + rule->file_m * config->mlp;
        if (out->rows_file == 0) out->rows_file = rows_all;
        out->halves_swapped = strcmp(rule->diffusers, "norm_out.linear") == 0;
        return true;
    }
    return false;
}

static bool transformer_place(struct names_place *out, const struct transformer_config *config,
                              const char *name, int64_t rows_all)
{
    char        stem[NAMES_MAX], head[64];
    const char *tail;
    unsigned    index = 0;
    int         used = 0;

    if (!split_tail(name, stem, sizeof stem, &tail)) return false;
    if (sscanf(stem, "transformer_blocks.%u.%n", &index, &used) == 1 && used > 0) {
        (void)snprintf(head, sizeof head, "double_blocks.%u.", index);
        return apply(out, double_rules, ARRAY_COUNT(double_rules), stem + used, tail, head, config,
                     rows_all);
    }
    if (sscanf(stem, "single_transformer_blocks.%u.%n", &index, &used) == 1 && used > 0) {
        (void)snprintf(head, sizeof head, "single_blocks.%u.", index);
        return apply(out, single_rules, ARRAY_COUNT(single_rules), stem + used, tail, head, config,
                     rows_all);
    }
    return apply(out, whole_rules, ARRAY_COUNT(whole_rules), stem, tail, "", config, rows_all);
}

/* ------------------------------------------------------------------------------------- VAE */

/* What stands after a block's number. */
static const char *rename_inside(const char *rest)
{
    static const struct {
        const char *from, *to;
    } words[] = {{"downsamplers.0.conv.", "downsample.conv."},
                 {"upsamplers.0.conv.", "upsample.conv."}};

    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        if (strncmp(rest, words[i].from, strlen(words[i].from)) == 0) return words[i].to;
    return NULL;
}

static void put_resnet(char *out, size_t capacity, const char *head, const char *rest)
{
    static const char shortcut[] = "conv_shortcut.";
    bool              is = strncmp(rest, shortcut, sizeof shortcut - 1) == 0;

    (void)snprintf(out, capacity, "%s%s%s", head, is ? "nin_shortcut." : "",
                   is ? rest + sizeof shortcut - 1 : rest);
}

static bool vae_mid(struct names_place *out, const char *side, const char *rest)
{
    static const struct {
        const char *from, *to;
        bool        conv;
    } parts[] = {{"group_norm.", "norm.", false},
                 {"to_q.", "q.", true},
                 {"to_k.", "k.", true},
                 {"to_v.", "v.", true},
                 {"to_out.0.", "proj_out.", true}};
    char     head[64];
    unsigned block = 0;
    int      used = 0;

    if (sscanf(rest, "resnets.%u.%n", &block, &used) == 1 && used > 0 && block < 2) {
        (void)snprintf(head, sizeof head, "%s.mid.block_%u.", side, block + 1);
        put_resnet(out->name, sizeof out->name, head, rest + used);
        return true;
    }
    if (strncmp(rest, "attentions.0.", 13) != 0) return false;
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++) {
        if (strncmp(rest + 13, parts[i].from, strlen(parts[i].from)) != 0) continue;
        (void)snprintf(out->name, sizeof out->name, "%s.mid.attn_1.%s%s", side, parts[i].to,
                       rest + 13 + strlen(parts[i].from));
        out->conv_1x1 = parts[i].conv;
        return true;
    }
    return false;
}

static bool vae_place(struct names_place *out, const struct vae_config *config, const char *name,
                      int64_t rows_all)
{
    const bool  decoder = strncmp(name, "decoder.", 8) == 0;
    const char *side = decoder ? "decoder" : "encoder", *level = decoder ? "up" : "down";
    const char *rest, *word;
    char        head[64], form[32];
    unsigned    block = 0, layer = 0;
    int         used = 0, inner = 0;

    out->rows_file = rows_all;
    if (!decoder && strncmp(name, "encoder.", 8) != 0) return false;
    rest = name + 8;
    if (strncmp(rest, "mid_block.", 10) == 0) return vae_mid(out, side, rest + 10);
    (void)snprintf(form, sizeof form, "%s_blocks.%%u.%%n", level);
    if (sscanf(rest, form, &block, &used) == 1 && used > 0 &&
        (int64_t)block < config->block_count) {
        if (decoder) block = (unsigned)config->block_count - 1 - block;
        rest += used;
        word = rename_inside(rest);
        if (word != NULL) {
            (void)snprintf(out->name, sizeof out->name, "%s.%s.%u.%s%s", side, level, block, word,
                           strrchr(rest, '.') + 1);
            return true;
        }
        if (sscanf(rest, "resnets.%u.%n", &layer, &inner) != 1 || inner == 0) return false;
        (void)snprintf(head, sizeof head, "%s.%s.%u.block.%u.", side, level, block, layer);
        put_resnet(out->name, sizeof out->name, head, rest + inner);
        return true;
    }
    if (strncmp(rest, "conv_norm_out.", 14) == 0) {
        (void)snprintf(out->name, sizeof out->name, "%s.norm_out.%s", side, rest + 14);
        return true;
    }
    (void)snprintf(out->name, sizeof out->name, "%s", name);
    return strncmp(rest, "conv_in.", 8) == 0 || strncmp(rest, "conv_out.", 9) == 0;
}

bool names_to_bfl(struct names_place *out, const struct model *model, enum model_part part,
                  const char *name, int64_t rows_all)
{
    *out = (struct names_place){.rows_file = rows_all};
    if (part == PART_TRANSFORMER)
        return transformer_place(out, &model->transformer, name, rows_all);
    if (part == PART_VAE) return vae_place(out, &model->vae, name, rows_all);
    return false;
}

/* ----------------------------------------------------------------------------------- files */

const char *names_prefix(const struct safetensors *file, enum model_part part, bool *bfl_out)
{
    static const struct {
        enum model_part part;
        const char     *prefix, *mark;
        bool            bfl;
    } marks[] = {
        {PART_TRANSFORMER, "", "img_in.weight", true},
        {PART_TRANSFORMER, "model.diffusion_model.", "img_in.weight", true},
        {PART_TRANSFORMER, "", "x_embedder.weight", false},
        {PART_VAE, "", "encoder.mid.block_1.conv1.weight", true},
        {PART_VAE, "first_stage_model.", "encoder.mid.block_1.conv1.weight", true},
        {PART_VAE, "vae.", "encoder.mid.block_1.conv1.weight", true},
        {PART_VAE, "", "encoder.mid_block.resnets.0.conv1.weight", false},
        {PART_CLIP, "", "text_model.embeddings.token_embedding.weight", false},
        {PART_CLIP, "", "embeddings.token_embedding.weight", false},
        {PART_T5, "", "shared.weight", false},
        {PART_T5, "", "encoder.embed_tokens.weight", false},
    };
    char whole[NAMES_MAX];

    for (size_t i = 0; i < ARRAY_COUNT(marks); i++) {
        if (marks[i].part != part) continue;
        (void)snprintf(whole, sizeof whole, "%s%s", marks[i].prefix, marks[i].mark);
        if (safetensors_find(file, whole) == NULL) continue;
        *bfl_out = marks[i].bfl;
        return marks[i].prefix;
    }
    return NULL;
}

const struct safetensors_entry *names_find(const struct safetensors *file, enum model_part part,
                                           const char *name)
{
    const struct safetensors_entry *entry = safetensors_find(file, name);

    if (entry != NULL) return entry;
    if (part == PART_CLIP && strncmp(name, "text_model.", 11) == 0)
        return safetensors_find(file, name + 11);
    if (part == PART_T5 && strcmp(name, "shared.weight") == 0)
        return safetensors_find(file, "encoder.embed_tokens.weight");
    return NULL;
}

bool names_is_scale(const char *name)
{
    static const char *const ends[] = {"scaled_fp8",      ".scale_weight", ".weight_scale",
                                       ".weight_scale_2", ".scale_input",  ".input_scale",
                                       ".comfy_quant",    ".absmax",       ".quant_map"};
    size_t                   length = strlen(name);

    for (size_t i = 0; i < ARRAY_COUNT(ends); i++) {
        size_t tail = strlen(ends[i]);
        if (length >= tail && strcmp(name + length - tail, ends[i]) == 0) return true;
    }
    return false;
}
