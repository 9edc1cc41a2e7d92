/*
 * job_info.c - the numbers of a plan as mural.h tells them.
 *
 * Owns the sums: arithmetic, seconds, peaks; and which rates they rest on, with where each is from.
 * Decides nothing: what is shared out to whom is job_plan.c's.
 *
 * Read next: mural.h, for what the numbers mean.
 */
#include "job.h"

#include <stdio.h>
#include <string.h>

static double flop_total(const struct mural_job *job)
{
    const struct render_costs *costs = &job->costs;
    double                     drafts =
        job_plan_paints_draft(job) ? (job_plan_paints_tiles(job) ? 1 : job->config.count) : 0;
    double tiles = job_plan_paints_tiles(job) ? (double)grid_count(&job->plan.grid) : 0;
    double draft = costs->draft_predict * job->config.draft_steps + costs->draft_decode;
    double tile = costs->encode + costs->predict * render_tile_steps(&job->config) + costs->decode;

    return costs->prompt + drafts * draft + tiles * tile;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL || slash[1] == '\0' ? path : slash + 1;
}

static uint64_t host_bytes_peak(const struct mural_job *job)
{
    /* Workers share what they pin. */
    return job->scratch_bytes + job->host_bytes + (job->gpu_shares > 0 ? job->gpu.pinned_bytes : 0);
}

/* ----------------------------------------------------------------------------------- rates */

/* Where nothing could be measured: PCIe 3.0 x16, or 4.0 x8, and between a SATA and an NVMe disk. */
static const double LINK_ASSUMED = 12e9, DISK_ASSUMED = 1e9;

static double choose_rate(enum mural_source *source_out, double given, double measured,
                          double assumed)
{
    *source_out = given > 0 ? MURAL_GIVEN : measured > 0 ? MURAL_MEASURED : MURAL_ASSUMED;
    return given > 0 ? given : measured > 0 ? measured : assumed;
}

double job_info_link_rate(const struct mural_job *job, enum mural_source *source_out)
{
    double measured = job->elsewhere ? 0 : job->device.link_bytes_per_second;

    return choose_rate(source_out, (double)job->config.link_bytes_per_second, measured,
                       LINK_ASSUMED);
}

double job_info_disk_rate(const struct mural_job *job, enum mural_source *source_out)
{
    return choose_rate(source_out, (double)job->config.disk_bytes_per_second, job->disk_speed,
                       DISK_ASSUMED);
}

static struct mural_gpu_plan gpu_info(const struct mural_job *job)
{
    const struct engine_outlook *gpu = &job->gpu;

    enum mural_source link, disk;

    if (job->gpu_shares == 0) return (struct mural_gpu_plan){.bytes_allowed = 0};
    return (struct mural_gpu_plan){.bytes_allowed = gpu->cap_bytes,
                                   .bytes_planned = gpu->device_bytes,
                                   .resident_bytes = gpu->resident_bytes,
                                   .ring_bytes = gpu->ring_bytes,
                                   .scratch_bytes = gpu->scratch_bytes,
                                   .ends_bytes = gpu->ends_bytes,
                                   .library_bytes = gpu->fixed_bytes,
                                   .visiting_bytes = gpu->streamed_bytes,
                                   .pinned_bytes = gpu->pinned_bytes,
                                   .blocks = gpu->blocks,
                                   .blocks_resident = gpu->blocks_resident,
                                   .tiles_per_pass = gpu->tiles_per_pass,
                                   .strip_level = gpu->strip_level,
                                   .strip_levels = gpu->strip_levels,
                                   .compute_seconds = gpu->compute_seconds,
                                   .link_seconds = gpu->link_seconds,
                                   .disk_seconds = gpu->disk_seconds,
                                   .link_bytes_per_second = job_info_link_rate(job, &link),
                                   .disk_bytes_per_second = job_info_disk_rate(job, &disk),
                                   .flop_per_second = job->speed,
                                   .link_source = link,
                                   .disk_source = disk,
                                   .flop_source =
                                       job->config.card_tflops > 0 ? MURAL_GIVEN : MURAL_MEASURED,
                                   .text_on_cpu = gpu->text_on_cpu,
                                   .elsewhere = job->elsewhere,
                                   .expandable = job->options.memory.expandable,
                                   .segment_bytes = job->options.memory.segment_bytes,
                                   .pool_bytes = job->options.memory.pool_bytes,
                                   .idle_share_max = job->options.memory.fragmentation_max};
}

/* 0 when the speed is not known.  Steps that wait for link or disk take as long as that does. */
static double seconds_total(const struct mural_job *job)
{
    const struct engine_outlook *gpu = &job->gpu;
    double tiles = job_plan_paints_tiles(job) ? (double)grid_count(&job->plan.grid) : 0;
    double steps = job->costs.predict * render_tile_steps(&job->config) * tiles;
    double visit = gpu->link_seconds > gpu->disk_seconds ? gpu->link_seconds : gpu->disk_seconds;
    double waits = job->gpu_shares > 0 && visit > gpu->compute_seconds && gpu->compute_seconds > 0
                       ? visit / gpu->compute_seconds - 1
                       : 0;

    return job->speed > 0 ? (flop_total(job) + steps * waits) / job->speed : 0;
}

void job_info_fill(struct mural_job *job, uint64_t disk_free)
{
    const struct grid      *grid = &job->plan.grid;
    struct mural_plan_info *info = &job->info;

    *info = (struct mural_plan_info){.width_px = grid->canvas_w_px,
                                     .height_px = grid->canvas_h_px,
                                     .tile_cols = grid->cols,
                                     .tile_rows = grid->rows,
                                     .tile_w_px = grid->tile_w_px,
                                     .tile_h_px = grid->tile_h_px,
                                     .draft_w_px = job->plan.draft_w_px,
                                     .draft_h_px = job->plan.draft_h_px,
                                     .weight_bytes = job->facts.weight_bytes,
                                     .scratch_bytes = job->scratch_bytes,
                                     .gpu_bytes_peak = job->gpu_shares * job->gpu.device_bytes,
                                     .host_bytes_peak = host_bytes_peak(job),
                                     .host_bytes_free = os_host_bytes_free(),
                                     .spool_bytes = job->plan.spool_bytes,
                                     .output_bytes_worst = job->plan.output_bytes_worst,
                                     .disk_bytes_free = disk_free,
                                     .flop_total = flop_total(job),
                                     .text_tokens = job->facts.text_tokens,
                                     .seconds_estimate = seconds_total(job),
                                     .gpu = gpu_info(job)};
    if (grid->cols > 1) info->overlap_x_px = grid->tile_w_px - grid_col_x(grid, 1);
    if (grid->rows > 1) info->overlap_y_px = grid->tile_h_px - grid_row_y(grid, 1);
    (void)snprintf(info->precision, sizeof info->precision, "%s", job->facts.bf16 ? "bf16" : "f32");
    (void)snprintf(info->model, sizeof info->model, "%.255s", last_part(job->config.model));
}
