/*
 * config.c - the table of settings.
 *
 * Owns every setting: one row each below.  The YAML key, the flag, `mural help`, the sample file
 * and the metadata of a poster all come from that row; a new setting is a field of struct config, a
 * row here, and its reader.
 *
 * Knows nothing of values, files and relations between settings.
 *
 * Read next: values.c, which turns text into the field of a row, then precedence.c.
 */
#include "config/config_int.h"

#include <string.h>

#define FIELD(name)                                                                                \
    .offset = offsetof(struct config, name), .capacity = sizeof((struct config *)0)->name
#define RANGE(low, high) .least = (low), .most = (high)

/* clang-format off */
static const struct setting rows[] = {
    /* ---- the picture */
    {.key = "prompt", .flag = "prompt", .letter = 'p', .type = SETTING_TEXT, FIELD(prompt),
     .absent = "", .value = "TEXT", .group = GROUP_PICTURE,
     .commands = PAINT | PLANNED | COMMAND_RETRY, .marks = MARK_PICTURE,
     .sentence = "what to paint; - reads it from standard input"},
    {.key = "input", .flag = "input", .type = SETTING_PATH, FIELD(input),
     .absent = "", .value = "PATH", .group = GROUP_TALK,
     .commands = COMMAND_UPSCALE | COMMAND_BATCH | COMMAND_INFO | RANDOM,
     .marks = MARK_FLAG_ONLY | MARK_JOB, .sentence = "the word after the command, as a flag"},
    {.key = "model", .flag = "model", .letter = 'm', .type = SETTING_PATH, FIELD(model),
     .absent = "samples/model", .value = "DIR", .group = GROUP_PICTURE,
     .commands = PAINT | PLANNED | AGAIN, .marks = MARK_PICTURE,
     .sentence = "folder of a FLUX.1 model"},
    {.key = "seed", .flag = "seed", .type = SETTING_SEED, FIELD(seed),
     .absent = "42", .value = "N", .group = GROUP_PICTURE,
     .commands = PAINT | PLANNED | RANDOM | COMMAND_RETRY, .marks = MARK_PICTURE,
     .sentence = "another number, another picture"},
    {.key = "guidance", .flag = "guidance", .type = SETTING_NUMBER, FIELD(guidance), RANGE(0, 100),
     .absent = "3.5", .value = "X", .group = GROUP_PICTURE, .commands = PAINT | PLANNED,
     .marks = MARK_PICTURE | MARK_MODEL, .sentence = "how closely to follow the prompt"},
    /* ---- size of the poster */
    {.key = "size", .flag = "size", .type = SETTING_SIZE, .absent = "8k",
     .value = "SIZE", .group = GROUP_POSTER, .commands = PAINT | PLANNED, .marks = MARK_DERIVED,
     .sentence = "8k, 7680x4320, A2@300dpi, A2-landscape@300dpi, 60x90cm@200dpi"},
    {.key = "width", .flag = "width", .type = SETTING_INT, FIELD(width_px), RANGE(64, 1048576),
     .unit = " px", .absent = "7680", .value = "PX", .group = GROUP_POSTER,
     .commands = PAINT | PLANNED, .marks = MARK_PICTURE, .sentence = "width of the poster"},
    {.key = "height", .flag = "height", .type = SETTING_INT, FIELD(height_px), RANGE(64, 1048576),
     .unit = " px", .absent = "4320", .value = "PX", .group = GROUP_POSTER,
     .commands = PAINT | PLANNED, .marks = MARK_PICTURE, .sentence = "height of the poster"},
    {.key = "dpi", .flag = "dpi", .type = SETTING_NUMBER, FIELD(dpi), RANGE(1, 10000),
     .absent = "300", .value = "N", .group = GROUP_POSTER, .commands = POSTER | PLANNED,
     .sentence = "pixels per inch in print; changes no pixel"},
    /* ---- the draft */
    {.key = "draft_px", .flag = "draft-size", .type = SETTING_INT, FIELD(draft_px), RANGE(64, 4096),
     .multiple = 16, .unit = " px", .absent = "512", .value = "PX", .group = GROUP_DRAFT,
     .commands = DRAFTED | PLANNED, .marks = MARK_PICTURE | MARK_MODEL,
     .sentence = "longest side of the draft"},
    {.key = "draft_steps", .flag = "draft-steps", .type = SETTING_INT, FIELD(draft_steps),
     RANGE(1, 1000), .absent = "28", .value = "N", .group = GROUP_DRAFT,
     .commands = DRAFTED | PLANNED, .marks = MARK_PICTURE | MARK_MODEL,
     .sentence = "steps for the draft"},
    {.key = "count", .flag = "count", .type = SETTING_INT, FIELD(count), RANGE(1, 100),
     .absent = "1", .value = "N", .group = GROUP_DRAFT, .commands = COMMAND_DRAFT,
     .marks = MARK_FREE, .sentence = "drafts, seeds counting up, and a sheet of them all"},
    {.key = "keep_draft", .flag = "keep-draft", .type = SETTING_PATH, FIELD(draft),
     .absent = "", .value = "FILE", .group = GROUP_DRAFT, .commands = COMMAND_RENDER,
     .marks = MARK_FREE, .sentence = "also write the draft, as a PNG"},
    /* ---- tiles */
    {.key = "steps", .flag = "steps", .type = SETTING_INT, FIELD(steps), RANGE(1, 1000),
     .absent = "12", .value = "N", .group = GROUP_TILES, .commands = POSTER | PLANNED,
     .marks = MARK_PICTURE | MARK_MODEL, .sentence = "steps for each tile"},
    {.key = "sigma", .flag = "sigma", .type = SETTING_NUMBER, FIELD(sigma), RANGE(0, 1),
     .absent = "0.4", .value = "X", .group = GROUP_TILES, .commands = POSTER | PLANNED,
     .marks = MARK_PICTURE | MARK_MODEL | MARK_ABOVE,
     .sentence = "how much a tile may invent"},
    {.key = "tile_px", .flag = "tile", .type = SETTING_INT, FIELD(tile_px), RANGE(64, 4096),
     .multiple = 16, .unit = " px", .absent = "2048", .value = "PX", .group = GROUP_TILES,
     .commands = POSTER | PLANNED, .marks = MARK_PICTURE | MARK_MODEL,
     .sentence = "largest side of a tile"},
    {.key = "overlap_px", .flag = "overlap", .type = SETTING_INT, FIELD(overlap_px), RANGE(0, 4080),
     .unit = " px", .absent = "128", .value = "PX", .group = GROUP_TILES,
     .commands = POSTER | PLANNED, .marks = MARK_PICTURE | MARK_MODEL,
     .sentence = "least overlap, 16 px or more below the tile"},
    {.key = "fit", .flag = "fit", .type = SETTING_CHOICE, FIELD(fit), .choices = "even|exact",
     .absent = "even", .value = "WAY", .group = GROUP_TILES, .commands = POSTER | PLANNED,
     .marks = MARK_PICTURE, .sentence = "equal tiles, or all of the largest side"},
    {.key = "strength", .flag = "strength", .type = SETTING_NUMBER, FIELD(strength), RANGE(0, 1),
     .absent = "0", .value = "X", .group = GROUP_TILES, .commands = POSTER | PLANNED,
     .marks = MARK_PICTURE, .sentence = "image-to-image strength in place of sigma, 0 for off"},
    {.key = "mu", .flag = "mu", .type = SETTING_NUMBER, FIELD(mu), RANGE(0, 10),
     .absent = "0", .value = "X", .group = GROUP_TILES, .commands = PAINT | PLANNED,
     .marks = MARK_PICTURE, .sentence = "fixed shift of the schedule, 0 for the model's"},
    /* ---- the file */
    {.key = "output", .flag = "output", .letter = 'o', .type = SETTING_PATH, FIELD(output),
     .absent = "", .value = "FILE", .group = GROUP_FILE, .commands = ONE | PLANNED | AGAIN,
     .marks = MARK_FREE,
     .sentence = "where to write; poster.tif, or draft.png for a draft, unless given"},
    {.key = "overwrite", .flag = "overwrite", .type = SETTING_SWITCH, FIELD(overwrite),
     .absent = "false", .group = GROUP_FILE, .commands = PAINT | COMMAND_RESUME,
     .marks = MARK_FREE, .sentence = "replace an output that exists"},
    {.key = "bits", .flag = "bits", .type = SETTING_INT, FIELD(bits), RANGE(8, 16),
     .choices = "8|16", .absent = "16", .value = "N", .group = GROUP_FILE,
     .commands = POSTER | PLANNED, .sentence = "bits per colour; many print shops ask for 8"},
    {.key = "compression", .flag = "compression", .type = SETTING_CHOICE, FIELD(compression),
     .choices = "none|lzw|deflate|zstd", .absent = "deflate", .value = "WAY", .group = GROUP_FILE,
     .commands = POSTER | PLANNED, .sentence = "all lossless"},
    {.key = "level", .flag = "level", .type = SETTING_INT, FIELD(level), RANGE(0, 19),
     .absent = "0", .value = "N", .group = GROUP_FILE, .commands = POSTER,
     .sentence = "effort: deflate to 12, zstd to 19, 0 for the usual"},
    {.key = "pyramid", .flag = "pyramid", .type = SETTING_SWITCH, FIELD(pyramid),
     .absent = "false", .group = GROUP_FILE, .commands = POSTER | PLANNED,
     .sentence = "add halved copies for quick viewing"},
    {.key = "metadata", .flag = "metadata", .type = SETTING_SWITCH, FIELD(metadata),
     .absent = "true", .group = GROUP_FILE, .commands = PAINT,
     .sentence = "store prompt and settings in the file"},
    /* ---- a random model */
    {.key = "spec", .flag = "spec", .type = SETTING_PATH, FIELD(spec),
     .absent = "tiny", .value = "SPEC", .group = GROUP_SYNTH, .commands = RANDOM,
     .sentence = "tiny, flux1-dev, flux1-schnell, or a JSON file of sizes"},
    {.key = "dtype", .flag = "dtype", .type = SETTING_CHOICE, FIELD(dtype),
     .choices = "bf16|f16|f32", .absent = "bf16", .value = "TYPE", .group = GROUP_SYNTH,
     .commands = RANDOM, .sentence = "number type of the weights"},
    {.key = "bfl", .flag = "bfl", .type = SETTING_SWITCH, FIELD(bfl),
     .absent = "false", .group = GROUP_SYNTH, .commands = RANDOM,
     .sentence = "single files as Black Forest Labs has them, not diffusers folders"},
    {.key = "shard_bytes", .flag = "shard-size", .type = SETTING_BYTES, FIELD(shard_bytes),
     RANGE(1e6, 1e12), .absent = "5GB", .value = "SIZE", .group = GROUP_SYNTH, .commands = RANDOM,
     .sentence = "largest weight file"},
    /* ---- when things go wrong */
    {.key = "tile_retries", .flag = "tile-retries", .type = SETTING_INT, FIELD(tile_retries),
     RANGE(0, 100), .absent = "3", .value = "N", .group = GROUP_SAFETY, .commands = POSTER | AGAIN,
     .marks = MARK_FREE, .sentence = "more attempts at a tile that failed"},
    {.key = "on_fail", .flag = "on-fail", .type = SETTING_CHOICE, FIELD(on_fail),
     .choices = "keep|draft", .absent = "keep", .value = "WAY", .group = GROUP_SAFETY,
     .commands = POSTER | AGAIN, .marks = MARK_FREE,
     .sentence = "what to do about tiles that keep failing"},
    {.key = "keep_tiles", .flag = "keep-tiles", .type = SETTING_SWITCH, FIELD(keep_tiles),
     .absent = "true", .group = GROUP_SAFETY, .commands = POSTER | AGAIN, .marks = MARK_FREE,
     .sentence = "keep OUTPUT.mural after the end, for 'mural retry'"},
    {.key = "tiles", .flag = "tiles", .type = SETTING_TEXT, FIELD(tiles),
     .absent = "", .value = "LIST", .group = GROUP_SAFETY, .commands = COMMAND_RETRY,
     .marks = MARK_FREE | MARK_FLAG_ONLY,
     .sentence = "tiles to paint again, such as 3,7-9; they count in reading order"},
    /* ---- the machine */
    {.key = "device", .flag = "device", .type = SETTING_CHOICE, FIELD(device),
     .choices = "auto|cpu|cuda|cuda:N", .absent = "auto", .value = "NAME", .group = GROUP_MACHINE,
     .commands = PAINT | PLANNED,
     .sentence = "who paints; auto: a GPU if any"},
    {.key = "threads", .flag = "threads", .type = SETTING_INT, FIELD(threads), RANGE(0, 1024),
     .absent = "0", .value = "N", .group = GROUP_MACHINE, .commands = PAINT | PLANNED | AGAIN,
     .marks = MARK_FREE, .sentence = "CPU threads, 0 for all"},
    {.key = "precision", .flag = "precision", .type = SETTING_CHOICE, FIELD(precision),
     .choices = "auto|f32|bf16", .absent = "auto", .value = "TYPE", .group = GROUP_MACHINE,
     .commands = PAINT | PLANNED, .marks = MARK_PICTURE,
     .sentence = "auto: bf16 where it is fast"},
    {.key = "text_tokens", .flag = "text-tokens", .type = SETTING_INT, FIELD(text_tokens),
     RANGE(0, 512), .absent = "0", .value = "N", .group = GROUP_MACHINE,
     .commands = PAINT | PLANNED, .marks = MARK_PICTURE,
     .sentence = "tokens of prompt, 0 for the model's"},
    {.key = "transformer", .flag = "transformer", .type = SETTING_PATH, FIELD(transformer),
     .absent = "", .value = "PATH", .group = GROUP_MACHINE, .commands = PAINT | PLANNED | AGAIN,
     .marks = MARK_PICTURE, .sentence = "another transformer than the model folder's"},
    {.key = "vae", .flag = "vae", .type = SETTING_PATH, FIELD(vae),
     .absent = "", .value = "PATH", .group = GROUP_MACHINE, .commands = PAINT | PLANNED | AGAIN,
     .marks = MARK_PICTURE, .sentence = "another VAE than the model folder's"},
    {.key = "noise_file", .flag = "noise-file", .type = SETTING_PATH, FIELD(noise_file),
     .absent = "", .value = "FILE", .group = GROUP_MACHINE, .commands = ONE,
     .marks = MARK_PICTURE,
     .sentence = "raw f32 noise [h/8, w/8, 16]; for the draft, in upscale for the tiles"},
    {.key = "persistent_workers", .flag = "persistent-workers", .type = SETTING_SWITCH,
     FIELD(persistent_workers), .absent = "true", .group = GROUP_MACHINE,
     .commands = PAINT | PLANNED | AGAIN, .marks = MARK_FREE,
     .sentence = "paint in processes that may die without harm"},
    {.key = "workers", .flag = "workers", .type = SETTING_INT, FIELD(workers), RANGE(1, 64),
     .absent = "1", .value = "N", .group = GROUP_MACHINE, .commands = PAINT | PLANNED | AGAIN,
     .marks = MARK_FREE, .sentence = "worker processes; each needs scratch memory"},
    {.key = "worker_timeout", .flag = "worker-timeout", .type = SETTING_INT, FIELD(worker_timeout),
     RANGE(1, 86400), .unit = " s", .absent = "600", .value = "S", .group = GROUP_MACHINE,
     .commands = PAINT | AGAIN, .marks = MARK_FREE,
     .sentence = "a worker silent for so long is replaced"},
    {.key = "warmup_batches", .flag = "warmup-batches", .type = SETTING_INT, FIELD(warmup_batches),
     RANGE(0, 1000), .absent = "3", .value = "N", .group = GROUP_MACHINE, .commands = PAINT | AGAIN,
     .marks = MARK_FREE, .sentence = "first steps that count for no speed"},
    /* ---- memory of a GPU */
    {.key = "vram", .flag = "vram", .type = SETTING_BYTES, FIELD(vram_bytes), RANGE(0, 1e13),
     .absent = "0", .value = "SIZE", .group = GROUP_MEMORY, .commands = PAINT | PLANNED | AGAIN,
     .marks = MARK_FREE, .sentence = "hard cap on a GPU's memory, 0 for all free"},
    {.key = "offload", .flag = "offload", .section = "offload", .inner = "enabled",
     .type = SETTING_SWITCH, FIELD(offload), .absent = "true", .group = GROUP_MEMORY,
     .commands = PAINT | PLANNED | AGAIN, .marks = MARK_FREE,
     .sentence = "weights that do not fit on a GPU visit it in turn"},
    {.key = "batch_size", .flag = "batch-size", .section = "offload", .inner = "batch_size",
     .type = SETTING_INT, FIELD(batch_size), RANGE(0, 16), .absent = "0", .value = "N",
     .group = GROUP_MEMORY, .commands = PAINT | PLANNED | AGAIN, .marks = MARK_FREE,
     .sentence = "most tiles that share a visit, 0 for free choice"},
    {.key = "keep_in_vram", .flag = "keep-in-vram", .section = "offload", .inner = "keep_in_vram",
     .type = SETTING_SHARE, FIELD(keep_share), RANGE(0, 1), .absent = "20%", .value = "SHARE",
     .group = GROUP_MEMORY, .commands = PAINT | PLANNED | AGAIN, .marks = MARK_FREE,
     .sentence = "share of weights that is the last to leave"},
    {.key = "expandable_segments", .flag = "expandable-segments", .section = "memory_management",
     .inner = "expandable_segments", .type = SETTING_SWITCH, FIELD(expandable_segments),
     .absent = "true", .group = GROUP_MEMORY, .commands = PAINT | PLANNED | AGAIN,
     .marks = MARK_FREE, .sentence = "scratch grows and shrinks by segments"},
    {.key = "segment_size", .flag = "segment-size", .section = "memory_management",
     .inner = "segment_size", .type = SETTING_BYTES, FIELD(segment_bytes), RANGE(2097152, 1e11),
     .absent = "256MB", .value = "SIZE", .group = GROUP_MEMORY, .commands = PAINT | PLANNED | AGAIN,
     .marks = MARK_FREE, .sentence = "how much it grows by"},
    {.key = "max_fragmentation", .flag = "max-fragmentation", .section = "memory_management",
     .inner = "max_fragmentation", .type = SETTING_SHARE, FIELD(fragmentation_max), RANGE(0, 1),
     .absent = "15%", .value = "SHARE", .group = GROUP_MEMORY, .commands = PAINT | PLANNED | AGAIN,
     .marks = MARK_FREE, .sentence = "idle share of it that makes it move"},
    {.key = "memory_pool_size", .flag = "memory-pool-size", .section = "memory_management",
     .inner = "memory_pool_size", .type = SETTING_BYTES, FIELD(pool_bytes), RANGE(0, 1e13),
     .absent = "0", .value = "SIZE", .group = GROUP_MEMORY, .commands = PAINT | PLANNED | AGAIN,
     .marks = MARK_FREE, .sentence = "taken at the start and never given back"},
    {.key = "on_short", .flag = "on-short", .type = SETTING_CHOICE, FIELD(on_short),
     .choices = "stop|change", .absent = "stop", .value = "WAY", .group = GROUP_MEMORY,
     .commands = PAINT | PLANNED, .marks = MARK_FREE,
     .sentence = "change: smaller tiles, another picture"},
    {.key = "card_tflops", .flag = "card-tflops", .type = SETTING_NUMBER, FIELD(card_tflops),
     RANGE(0, 100000), .absent = "0", .value = "X", .group = GROUP_MEMORY,
     .commands = PAINT | PLANNED | AGAIN, .marks = MARK_FREE,
     .sentence = "a GPU's TFLOP/s for plans, 0 to measure"},
    {.key = "link_speed", .flag = "link-speed", .type = SETTING_BYTES,
     FIELD(link_bytes_per_second), RANGE(0, 1e13), .absent = "0", .value = "SIZE",
     .group = GROUP_MEMORY, .commands = PAINT | PLANNED | AGAIN, .marks = MARK_FREE,
     .sentence = "bytes a second to a GPU, 0 to measure"},
    {.key = "disk_speed", .flag = "disk-speed", .type = SETTING_BYTES,
     FIELD(disk_bytes_per_second), RANGE(0, 1e13), .absent = "0", .value = "SIZE",
     .group = GROUP_MEMORY, .commands = PAINT | PLANNED | AGAIN, .marks = MARK_FREE,
     .sentence = "bytes a second from disk, 0 to measure"},
    {.key = "memory_plot", .flag = "memory-plot", .type = SETTING_PATH, FIELD(memory_plot),
     .absent = "", .value = "FILE", .group = GROUP_MEMORY,
     .commands = (POSTER & ~COMMAND_BATCH) | AGAIN, .marks = MARK_FREE,
     .sentence = "draw the last tile's GPU memory, as a PNG"},
    /* ---- running */
    {.key = "config", .flag = "config", .type = SETTING_PATH, FIELD(settings_file),
     .absent = "", .value = "FILE", .group = GROUP_TALK, .commands = ONE | PLANNED | RANDOM,
     .marks = MARK_FREE | MARK_FLAG_ONLY,
     .sentence = "settings from a YAML file; flags win over it"},
    {.key = "json", .flag = "json", .type = SETTING_SWITCH, FIELD(json),
     .absent = "false", .group = GROUP_TALK, .commands = ALL,
     .marks = MARK_FREE, .sentence = "print the result as one JSON document"},
    {.key = "quiet", .flag = "quiet", .letter = 'q', .type = SETTING_SWITCH, FIELD(quiet),
     .absent = "false", .group = GROUP_TALK, .commands = ALL, .marks = MARK_FREE,
     .sentence = "say nothing but errors"},
    {.key = "verbose", .flag = "verbose", .letter = 'v', .type = SETTING_SWITCH, FIELD(verbose),
     .absent = "false", .group = GROUP_TALK, .commands = ALL,
     .marks = MARK_FREE, .sentence = "tell what is being done"},
};
/* clang-format on */

const struct setting *config_rows(size_t *count_out)
{
    *count_out = ARRAY_COUNT(rows);
    return rows;
}

const struct setting *config_find_key(const char *key)
{
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++)
        if (strcmp(rows[i].key, key) == 0) return &rows[i];
    return NULL;
}

const struct setting *config_find_inner(const char *section, const char *inner)
{
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++)
        if (rows[i].section != NULL && strcmp(rows[i].section, section) == 0 &&
            (inner == NULL || strcmp(rows[i].inner, inner) == 0))
            return &rows[i];
    return NULL;
}

/* "tiel" for "tile": two neighbours changed places. */
static bool is_swapped(const char *name, const char *word)
{
    size_t at = 0;

    while (name[at] != '\0' && name[at] == word[at])
        at++;
    return name[at] != '\0' && word[at] != '\0' && name[at] == word[at + 1] &&
           name[at + 1] == word[at] && strcmp(name + at + 2, word + at + 2) == 0;
}

bool config_is_near(const char *name, const char *word, uint32_t *edits)
{
    /* One slip in a short word, up to one in three letters of a long one; or a start of it. */
    uint32_t allowed = (uint32_t)strlen(word) / 3;
    size_t   length = strlen(name);

    if ((length >= 3 && strncmp(name, word, length) == 0) || is_swapped(name, word))
        *edits = 1;
    else
        *edits = text_distance(name, word);
    return *edits <= (allowed > 1 ? allowed : 1);
}

const struct setting *config_nearest(const char *name, unsigned commands, bool by_flag)
{
    const struct setting *best = NULL;
    uint32_t              best_edits = UINT32_MAX;

    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        uint32_t edits;
        if ((rows[i].commands & commands) == 0) continue;
        if (!by_flag && (rows[i].marks & MARK_FLAG_ONLY) != 0) continue;
        if (!config_is_near(name, by_flag ? rows[i].flag : rows[i].key, &edits)) continue;
        if (edits >= best_edits) continue;
        best_edits = edits;
        best = &rows[i];
    }
    return best;
}
