/*
 * report.c - results in words or JSON, on a stream that main.c gives.
 *
 * Owns how a plan and a picture's facts look to people and to programs.  Decides nothing, and opens
 * nothing but the question whether tiles were kept beside a poster.
 *
 * Read next: main.c, which asks for it.
 */
#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Text that somebody else put into a file must not steer the terminal: line ends become blanks, and
 * other control characters, also those of two bytes (U+0080..U+009F), question marks. */
static void put_foreign(FILE *out, const char *text)
{
    for (const unsigned char *at = (const unsigned char *)text; *at != '\0'; at++) {
        bool long_control = at[0] == 0xC2 && at[1] >= 0x80 && at[1] <= 0x9F;
        if (long_control) at++;
        if (*at == '\n')
            (void)fputc(' ', out);
        else
            (void)fputc(long_control || *at < 0x20 || *at == 0x7F ? '?' : *at, out);
    }
}

json_t *report_text(const char *text)
{
    return json_stringn(text, text_utf8_valid_prefix(text, strlen(text)));
}

int report_json(FILE *out, json_t *object, struct err *err)
{
    int   rc = ERR_OK;
    char *text =
        object != NULL ? json_dumps(object, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;

    if (text == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory to print the result as JSON");
    (void)fprintf(out, "%s\n", text);
out:
    free(text);
    json_decref(object);
    return rc;
}

/* What a step takes longest for. */
static const char *bound_by(const struct mural_gpu_plan *gpu)
{
    double visit = gpu->link_seconds > gpu->disk_seconds ? gpu->link_seconds : gpu->disk_seconds;

    if (gpu->flop_per_second <= 0) return "unknown";
    if (visit <= gpu->compute_seconds) return "arithmetic";
    return gpu->disk_seconds > gpu->link_seconds ? "disk" : "link";
}

static double step_seconds(const struct mural_gpu_plan *gpu)
{
    double visit = gpu->link_seconds > gpu->disk_seconds ? gpu->link_seconds : gpu->disk_seconds;

    return visit > gpu->compute_seconds ? visit : gpu->compute_seconds;
}

static const char *source_name(enum mural_source source)
{
    static const char *const names[] = {
        [MURAL_ASSUMED] = "assumed", [MURAL_MEASURED] = "measured", [MURAL_GIVEN] = "given"};

    return names[source];
}

static json_t *gpu_json(const struct mural_gpu_plan *gpu)
{
    return json_pack(
        "{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:i, s:i, s:b, s:f, s:f, "
        "s:f, s:f, s:s, s:f, s:s, s:f, s:s, s:f, s:s, s:b, s:I, s:I, s:f}",
        "here", !gpu->elsewhere, "allowed_bytes", (json_int_t)gpu->bytes_allowed, "needed_bytes",
        (json_int_t)gpu->bytes_planned, "resident_bytes", (json_int_t)gpu->resident_bytes,
        "ring_bytes", (json_int_t)gpu->ring_bytes, "scratch_bytes", (json_int_t)gpu->scratch_bytes,
        "ends_bytes", (json_int_t)gpu->ends_bytes, "library_bytes", (json_int_t)gpu->library_bytes,
        "visiting_bytes", (json_int_t)gpu->visiting_bytes, "pinned_bytes",
        (json_int_t)gpu->pinned_bytes, "blocks", (int)gpu->blocks, "blocks_resident",
        (int)gpu->blocks_resident, "tiles_per_pass", (int)gpu->tiles_per_pass, "strip_level",
        (int)gpu->strip_level, "text_on_cpu", gpu->text_on_cpu, "step_seconds", step_seconds(gpu),
        "compute_seconds", gpu->compute_seconds, "link_seconds", gpu->link_seconds, "disk_seconds",
        gpu->disk_seconds, "bound_by", bound_by(gpu), "link_bytes_per_second",
        gpu->link_bytes_per_second, "link_source", source_name(gpu->link_source),
        "disk_bytes_per_second", gpu->disk_bytes_per_second, "disk_source",
        source_name(gpu->disk_source), "flop_per_second", gpu->flop_per_second, "flop_source",
        gpu->flop_per_second > 0 ? source_name(gpu->flop_source) : "unknown", "expandable_segments",
        gpu->expandable, "segment_bytes", (json_int_t)gpu->segment_bytes, "pool_bytes",
        (json_int_t)gpu->pool_bytes, "idle_share_max", gpu->idle_share_max);
}

int report_plan_json(FILE *out, const struct mural_plan_info *plan, const struct config *config,
                     struct err *err)
{
    json_t *object = json_pack(
        "{s:i, s:{s:i, s:i, s:f}, s:{s:i, s:i, s:i, s:i, s:i, s:i}, s:{s:i, s:i},"
        " s:{s:I, s:I, s:I, s:I}, s:{s:I, s:I, s:I}, s:{s:s, s:s, s:i}, s:f, s:f}",
        "schema", 1, "picture", "width", plan->width_px, "height", plan->height_px, "dpi",
        config->dpi, "tiles", "columns", plan->tile_cols, "rows", plan->tile_rows, "width",
        plan->tile_w_px, "height", plan->tile_h_px, "overlap_x", plan->overlap_x_px, "overlap_y",
        plan->overlap_y_px, "draft", "width", plan->draft_w_px, "height", plan->draft_h_px,
        "memory", "needed_bytes", (json_int_t)plan->host_bytes_peak, "free_bytes",
        (json_int_t)plan->host_bytes_free, "weight_bytes", (json_int_t)plan->weight_bytes,
        "scratch_bytes", (json_int_t)plan->scratch_bytes, "disk", "output_bytes_worst",
        (json_int_t)plan->output_bytes_worst, "spool_bytes", (json_int_t)plan->spool_bytes,
        "free_bytes", (json_int_t)plan->disk_bytes_free, "model", "name", plan->model, "precision",
        plan->precision, "text_tokens", (int)plan->text_tokens, "flop", plan->flop_total, "seconds",
        plan->seconds_estimate);

    if (object != NULL && plan->gpu.bytes_allowed > 0)
        (void)json_object_set_new(object, "gpu", gpu_json(&plan->gpu));
    return report_json(out, object, err);
}

/* "about 40 s", "about 12 min", "about 3 h 20 min", "about 5 days" */
static const char *duration_text(char out[40], double seconds)
{
    if (!(seconds > 0))
        (void)snprintf(out, 40, "not known for this machine");
    else if (seconds < 90)
        (void)snprintf(out, 40, "about %.0f s", ceil(seconds));
    else if (seconds < 90 * 60)
        (void)snprintf(out, 40, "about %.0f min", seconds / 60);
    else if (seconds < 48 * 3600)
        (void)snprintf(out, 40, "about %.0f h %.0f min", floor(seconds / 3600),
                       floor(fmod(seconds, 3600) / 60));
    else
        (void)snprintf(out, 40, "about %.0f days", seconds / 86400);
    return out;
}

static void put_need(FILE *out, const char *title, uint64_t needed, uint64_t available)
{
    char need[32], have[32];

    (void)fprintf(out, "%-9s %s needed, %s free%s\n", title, text_bytes(need, sizeof need, needed),
                  text_bytes(have, sizeof have, available),
                  needed > available ? ": not enough" : "");
}

/* One share of a GPU's memory. */
static void put_share(FILE *out, uint64_t bytes, const char *words)
{
    char amount[32];

    (void)fprintf(out, "          %8s  %s\n", text_bytes(amount, sizeof amount, bytes), words);
}

static const char *strips_text(const struct mural_gpu_plan *gpu)
{
    if (gpu->strip_level == 0) return "the VAE at its fastest";
    return gpu->strip_level + 1 < gpu->strip_levels ? "the VAE in lower strips"
                                                    : "the VAE in its lowest strips";
}

/* How long a step takes, and what it waits for. */
static void put_step(FILE *out, const struct mural_gpu_plan *gpu)
{
    const char *bound = bound_by(gpu);

    if (gpu->flop_per_second <= 0) {
        (void)fprintf(out, "step      time not known; tell the GPU's speed with --card-tflops\n");
        return;
    }
    (void)fprintf(out, "step      %.3g s for %u tile%s", step_seconds(gpu), gpu->tiles_per_pass,
                  gpu->tiles_per_pass == 1 ? "" : "s together");
    if (gpu->visiting_bytes == 0) {
        (void)fprintf(out, ": nothing waits for the link\n");
        return;
    }
    (void)fprintf(out, ": %s%s is the limit\n", strcmp(bound, "arithmetic") == 0 ? "" : "the ",
                  bound);
    (void)fprintf(out, "          arithmetic %.3g s, visits over the link %.3g s",
                  gpu->compute_seconds, gpu->link_seconds);
    if (gpu->disk_seconds > 0) (void)fprintf(out, ", from disk %.3g s", gpu->disk_seconds);
    (void)fprintf(out, "\n");
}

/* What the decision rests on. */
static void put_rates(FILE *out, const struct mural_gpu_plan *gpu)
{
    char link[32], disk[32];

    (void)fprintf(out, "rates     %s/s over the link (%s), %s/s from disk (%s)",
                  text_bytes(link, sizeof link, (uint64_t)gpu->link_bytes_per_second),
                  source_name(gpu->link_source),
                  text_bytes(disk, sizeof disk, (uint64_t)gpu->disk_bytes_per_second),
                  source_name(gpu->disk_source));
    if (gpu->flop_per_second > 0)
        (void)fprintf(out, ", %.0f TFLOP/s (%s)", gpu->flop_per_second / 1e12,
                      source_name(gpu->flop_source));
    (void)fprintf(out, "\n");
}

static void put_gpu(FILE *out, const struct mural_plan_info *plan, double keep_share)
{
    const struct mural_gpu_plan *gpu = &plan->gpu;
    char                         words[128], one[32], two[32];
    uint32_t                     visiting = gpu->blocks - gpu->blocks_resident;
    uint64_t                     workers = plan->gpu_bytes_peak / gpu->bytes_planned;
    double weights = (double)gpu->resident_bytes + (double)gpu->visiting_bytes;
    double share = weights > 0 ? (double)gpu->resident_bytes / weights : 1;

    (void)fprintf(out, "gpu       %s needed, %s allowed%s",
                  text_bytes(one, sizeof one, gpu->bytes_planned),
                  text_bytes(two, sizeof two, gpu->bytes_allowed),
                  gpu->elsewhere ? ", on a GPU that is not in this machine" : "");
    if (workers > 1) (void)fprintf(out, ", for each of %u workers", (unsigned)workers);
    (void)fprintf(out, "\n");
    (void)snprintf(words, sizeof words, "weights that stay: %u of %u blocks, %.0f %%%s",
                   gpu->blocks_resident, gpu->blocks, floor(100 * share),
                   share < keep_share ? ", less than keep_in_vram asks for" : "");
    put_share(out, gpu->resident_bytes, words);
    if (visiting > 0) {
        (void)snprintf(words, sizeof words,
                       "ring of two slots, where the other %u blocks (%s) visit in every step",
                       visiting, text_bytes(one, sizeof one, gpu->visiting_bytes));
        put_share(out, gpu->ring_bytes, words);
    }
    (void)snprintf(words, sizeof words, "scratch for %u tile%s, %s", gpu->tiles_per_pass,
                   gpu->tiles_per_pass == 1 ? "" : "s together", strips_text(gpu));
    put_share(out, gpu->scratch_bytes, words);
    put_share(out, gpu->ends_bytes, "VAE, first and last layers");
    put_share(out, gpu->library_bytes, "CUDA and its libraries");
    if (gpu->text_on_cpu) (void)fprintf(out, "          text is encoded on the CPU\n");
    put_step(out, gpu);
    put_rates(out, gpu);
}

/* What the host's memory holds or lacks of the weights. */
static void put_weights(FILE *out, const struct mural_plan_info *plan)
{
    const struct mural_gpu_plan *gpu = &plan->gpu;
    char                         one[32];

    if (gpu->bytes_allowed == 0) {
        if (plan->weight_bytes + plan->host_bytes_peak > plan->host_bytes_free)
            (void)fprintf(out, "          the weights do not fit beside it and are read from disk "
                               "again and again\n");
        return;
    }
    if (gpu->pinned_bytes > 0)
        (void)fprintf(out, "          of it %s for weights that visit the GPU\n",
                      text_bytes(one, sizeof one, gpu->pinned_bytes));
    if (gpu->pinned_bytes < gpu->visiting_bytes)
        (void)fprintf(out,
                      "          %s of them find no room and are read from disk in every step\n",
                      text_bytes(one, sizeof one, gpu->visiting_bytes - gpu->pinned_bytes));
}

void report_plan(FILE *out, const struct mural_plan_info *plan, const struct config *config)
{
    char one[40], two[40], three[40];

    (void)fprintf(out, "poster    %d x %d px, %.1f x %.1f cm at %g dpi\n", plan->width_px,
                  plan->height_px, plan->width_px / config->dpi * 2.54,
                  plan->height_px / config->dpi * 2.54, config->dpi);
    (void)fprintf(out, "draft     %d x %d px\n", plan->draft_w_px, plan->draft_h_px);
    (void)fprintf(out, "tiles     %u (%u x %u) of %d x %d px, overlapping by %d and %d px\n",
                  plan->tile_cols * plan->tile_rows, plan->tile_cols, plan->tile_rows,
                  plan->tile_w_px, plan->tile_h_px, plan->overlap_x_px, plan->overlap_y_px);
    (void)fprintf(out, "model     ");
    put_foreign(out, plan->model);
    (void)fprintf(out, ", %s of weights, %s, %u text tokens\n",
                  text_bytes(one, sizeof one, plan->weight_bytes), plan->precision,
                  plan->text_tokens);
    if (plan->gpu.bytes_allowed > 0) put_gpu(out, plan, config->keep_share);
    put_need(out, "memory", plan->host_bytes_peak, plan->host_bytes_free);
    put_weights(out, plan);
    put_need(out, "disk", plan->output_bytes_worst + plan->spool_bytes, plan->disk_bytes_free);
    (void)fprintf(out, "          of it the file at most %s, tiles in waiting %s\n",
                  text_bytes(two, sizeof two, plan->output_bytes_worst),
                  text_bytes(three, sizeof three, plan->spool_bytes));
    (void)fprintf(out, "time      %s, %.3g floating-point operations\n",
                  duration_text(one, plan->seconds_estimate), plan->flop_total);
}

int report_info_json(FILE *out, const char *path, const struct picture_info *info, double seconds,
                     struct err *err)
{
    json_t *object =
        json_pack("{s:i, s:o, s:s, s:s, s:i, s:i, s:i, s:f, s:b, s:i}", "schema", 1, "file",
                  report_text(path), "format", info->format, "codec", info->codec, "width", info->w,
                  "height", info->h, "bits", info->bits, "dpi", info->dpi, "profile",
                  (int)info->has_icc, "levels", (int)info->levels);

    if (object != NULL && info->prompt != NULL)
        (void)json_object_set_new(object, "prompt", report_text(info->prompt));
    if (object != NULL && info->settings_json != NULL)
        (void)json_object_set_new(object, "settings", json_loads(info->settings_json, 0, NULL));
    if (object != NULL)
        (void)json_object_set_new(object, "tiles_kept", json_boolean(config_is_begun(path)));
    if (object != NULL && seconds >= 0)
        (void)json_object_set_new(object, "seconds", json_real(seconds));
    return report_json(out, object, err);
}

static void put_settings(FILE *out, const char *settings_json)
{
    json_t     *settings = json_loads(settings_json, 0, NULL);
    const char *key;
    json_t     *value;

    if (!json_is_object(settings)) {
        (void)fprintf(out, "settings  ");
        put_foreign(out, settings_json);
        (void)fprintf(out, "\n");
    } else {
        (void)fprintf(out, "settings\n");
        json_object_foreach(settings, key, value)
        {
            char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9));
            if (strcmp(key, "prompt") != 0 && text != NULL) {
                (void)fprintf(out, "  ");
                put_foreign(out, key);
                (void)fprintf(out, ": ");
                put_foreign(out, text);
                (void)fprintf(out, "\n");
            }
            free(text);
        }
    }
    json_decref(settings);
}

void report_info(FILE *out, const char *path, const struct picture_info *info)
{
    (void)fprintf(out, "file      ");
    put_foreign(out, path);
    (void)fprintf(out, "\npicture   %d x %d px, %d bits per colour\n", info->w, info->h,
                  info->bits);
    (void)fprintf(out, "format    %s, %s%s\n", info->format, info->codec,
                  info->has_icc ? ", colour profile inside" : ", no colour profile");
    if (info->dpi > 0)
        (void)fprintf(out, "print     %.1f x %.1f cm at %g dpi\n", info->w / info->dpi * 2.54,
                      info->h / info->dpi * 2.54, info->dpi);
    (void)fprintf(out, "levels    %u\n", info->levels);
    if (config_is_begun(path))
        (void)fprintf(out, "tiles     kept: 'mural retry' can paint some of them again\n");
    if (info->prompt != NULL) {
        (void)fprintf(out, "prompt    ");
        put_foreign(out, info->prompt);
        (void)fprintf(out, "\n");
    }
    if (info->settings_json != NULL) put_settings(out, info->settings_json);
}

int report_batch_json(FILE *out, const char *path, const struct report_row *rows, size_t count,
                      struct err *err)
{
    static const char *const states[] = {[REPORT_NOT_BEGUN] = "not begun",
                                         [REPORT_PAINTED] = "painted",
                                         [REPORT_FINISHED_BEFORE] = "finished before",
                                         [REPORT_FAILED] = "failed"};
    json_t                  *list = json_array(), *object;
    bool                     good = list != NULL;

    for (size_t i = 0; i < count; i++) {
        const struct report_row *row = &rows[i];
        json_t                  *entry =
            json_pack("{s:o, s:s}", "file", report_text(row->path), "state", states[row->state]);
        if (entry != NULL && row->state != REPORT_NOT_BEGUN)
            (void)json_object_set_new(entry, "seconds", json_real(row->seconds));
        if (entry != NULL && row->state == REPORT_FAILED)
            (void)json_object_set_new(entry, "error", report_text(row->why));
        good = good && json_array_append_new(list, entry) == 0;
    }
    object = good ? json_pack("{s:i, s:o, s:O}", "schema", 1, "batch", report_text(path), "posters",
                              list)
                  : NULL;
    json_decref(list);
    return report_json(out, object, err);
}
