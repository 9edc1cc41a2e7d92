/*
 * checks.c - settings that are good one by one, and not together or not on this machine.
 *
 * Owns relations between settings that the settings alone decide, and those to files: what must be
 * there, what must not, what can be written.  Knows nothing of models, tiles or pixels.
 *
 * Read next: config.c, for the rows.
 */
#include "config/config_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

static int check_numbers(const struct config *config, struct err *err)
{
    int  rc = ERR_OK;
    bool deflate = strcmp(config->compression, "deflate") == 0;
    bool zstd = strcmp(config->compression, "zstd") == 0;

    if (config->overlap_px > config->tile_px - 16)
        RAISE(err, ERR_USAGE, 0, "overlap is %d px but must be 0..%d px with a tile of %d px",
              config->overlap_px, config->tile_px - 16, config->tile_px);
    if (config->level > 0 && !deflate && !zstd)
        RAISE(err, ERR_USAGE, 0, "compression '%s' has no levels; leave the level out",
              config->compression);
    if (config->level > 12 && deflate)
        RAISE(err, ERR_USAGE, 0, "level is %d but deflate has 1..12; only zstd goes to 19",
              config->level);
    if (config->seed > (uint64_t)INT64_MAX - (uint64_t)config->count + 1)
        RAISE(err, ERR_USAGE, 0, "seed %llu leaves no room to count up to %d drafts",
              (unsigned long long)config->seed, config->count);
    if (config->quiet && config->verbose)
        RAISE(err, ERR_USAGE, 0, "quiet and verbose exclude each other; choose one");
    if (config->workers > 1 && !config->persistent_workers)
        RAISE(err, ERR_USAGE, 0,
              "workers is %d but persistent workers are off, and then none is run; set workers to "
              "1 or leave --no-persistent-workers out",
              config->workers);
out:
    return rc;
}

/* What keeps `path` from being read as a picture. */
static const char *why_no_picture(const char *path)
{
    if (os_is_dir(path)) return "is a folder, not a picture";
    if (config_is_begun(path)) return "is begun and not finished; 'mural resume' goes on with it";
    if (access(path, F_OK) == 0) return "is not a regular file";
    return errno == ENOENT ? "does not exist" : strerror(errno);
}

int config_check_named(const struct config *config, enum config_command command, struct err *err)
{
    int rc = ERR_OK;

    if ((command & AGAIN) != 0 && config->output[0] == '\0')
        RAISE(err, ERR_USAGE, 0, "no poster given; write its name after 'mural %s'",
              config_command_name(command));
    if (command == COMMAND_BATCH && config->input[0] == '\0')
        RAISE(err, ERR_USAGE, 0, "no list of jobs given; write its name after 'mural batch'");
    if (command == COMMAND_RETRY && config->tiles[0] == '\0')
        RAISE(err, ERR_USAGE, 0, "no tiles given; name those to paint again with --tiles 3,7-9");
out:
    return rc;
}

static int check_inputs(const struct config *config, enum config_command command, struct err *err)
{
    int rc = ERR_OK;

    if ((command & DRAFTED) != 0 && config->prompt[0] == '\0')
        RAISE(err, ERR_USAGE, 0, "no prompt; write what to paint in quotes after 'mural %s'",
              config_command_name(command));
    if ((command & (COMMAND_UPSCALE | COMMAND_INFO | COMMAND_SYNTH)) != 0 &&
        config->input[0] == '\0')
        RAISE(err, ERR_USAGE, 0, "no %s given; write its name after 'mural %s'",
              command == COMMAND_SYNTH ? "folder" : "file", config_command_name(command));
    if ((command & (COMMAND_UPSCALE | COMMAND_INFO)) != 0 && !os_is_file(config->input))
        RAISE(err, ERR_FORMAT, 0, "'%s' %s", config->input, why_no_picture(config->input));
    TRY(config_check_named(config, command, err));
    if ((command & (PAINT | AGAIN | PLANNED)) != 0 && !os_is_dir(config->model))
        RAISE(err, ERR_FORMAT, 0,
              "model folder '%s' does not exist; name one with --model, or make a random one with "
              "'mural synth'",
              config->model);
    if (command == COMMAND_DRAFT && config->count > 1 && config->noise_file[0] != '\0')
        RAISE(err, ERR_USAGE, 0,
              "count is %d, but with a noise file all drafts would be the same; leave one out",
              config->count);
out:
    return rc;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length > tail && strcasecmp(text + length - tail, end) == 0;
}

static int check_target(const char *path, bool png, bool overwrite, const char *flag,
                        struct err *err)
{
    int  rc = ERR_OK;
    char folder[1024];

    must(os_folder(folder, sizeof folder, path));
    if (png && !ends_with(path, ".png"))
        RAISE(err, ERR_USAGE, 0, "'%s' must end in .png: drafts are PNG files", path);
    if (!png && !ends_with(path, ".tif") && !ends_with(path, ".tiff"))
        RAISE(err, ERR_USAGE, 0, "'%s' must end in .tif or .tiff: posters are BigTIFF files", path);
    if (os_is_dir(path)) RAISE(err, ERR_USAGE, 0, "'%s' is a folder; name a file in it", path);
    if (os_is_file(path) && !overwrite)
        RAISE(err, ERR_USAGE, 0, "'%s' exists; add --overwrite, or name another file with %s", path,
              flag);
    if (!os_is_dir(folder))
        RAISE(err, ERR_IO, ENOENT, "output folder '%s' does not exist; make it first", folder);
    if (access(folder, W_OK | X_OK) != 0)
        RAISE(err, ERR_IO, errno, "output folder '%s' cannot be written: %s", folder,
              strerror(errno));
out:
    return rc;
}

/* What is read must not be written over, by whatever name it goes. */
static int check_kept(const struct config *config, const char *target, const char *flag,
                      struct err *err)
{
    int rc = ERR_OK;
    const struct {
        const char *path, *what;
    } kept[] = {{config->input, "draft"},
                {config->noise_file, "noise file"},
                {config->settings_file, "settings file"}};

    for (size_t i = 0; i < ARRAY_COUNT(kept); i++)
        if (os_same_file(kept[i].path, target))
            RAISE(err, ERR_USAGE, 0, "'%s' is both the %s and the output; name another with %s",
                  target, kept[i].what, flag);
out:
    return rc;
}

/* It may replace an older plot, and nothing else. */
static int check_plot(const struct config *config, struct err *err)
{
    int         rc = ERR_OK;
    const char *plot = config->memory_plot;

    if (!ends_with(plot, ".png"))
        RAISE(err, ERR_USAGE, 0, "'%s' must end in .png: plots are PNG files", plot);
    TRY(check_kept(config, plot, "--memory-plot", err));
    if (strcmp(config->draft, plot) == 0 || os_same_file(config->draft, plot))
        RAISE(err, ERR_USAGE, 0, "'%s' is both the draft to keep and the plot of memory", plot);
out:
    return rc;
}

bool config_is_begun(const char *output)
{
    char journal[4200];
    int  wrote = snprintf(journal, sizeof journal, "%s.mural/journal", output);

    return wrote > 0 && (size_t)wrote < sizeof journal && os_is_file(journal);
}

/* An output that cannot be written is found out now, not after hours of painting. */
static int check_outputs(const struct config *config, enum config_command command, struct err *err)
{
    int rc = ERR_OK;

    /* A poster that exists is not replaced unasked, but it may be this one, and finished. */
    if (command == COMMAND_DRAFT)
        TRY(check_target(config->output, true, config->overwrite, "-o", err));
    if ((command & (POSTER | AGAIN)) != 0)
        TRY(check_target(config->output, false, true, "-o", err));
    if ((command & PAINT) != 0) TRY(check_kept(config, config->output, "-o", err));
    if (command == COMMAND_RENDER && config->draft[0] != '\0') {
        /* A poster that was begun comes with its draft, which is only written again; with one that
         * is there it is not written at all. */
        bool again = config_is_begun(config->output) || os_is_file(config->output);
        TRY(check_target(config->draft, true, config->overwrite || again, "--keep-draft", err));
        TRY(check_kept(config, config->draft, "--keep-draft", err));
        if (os_same_file(config->draft, config->output))
            RAISE(err, ERR_USAGE, 0, "'%s' is both the draft to keep and the output",
                  config->draft);
    }
    if ((command & (POSTER | AGAIN)) != 0 && config->memory_plot[0] != '\0')
        TRY(check_plot(config, err));
    if (command == COMMAND_SYNTH && os_is_file(config->input))
        RAISE(err, ERR_USAGE, 0, "'%s' is a file; a model needs a folder", config->input);
out:
    return rc;
}

int config_check(const struct config *config, enum config_command command, struct err *err)
{
    int rc = ERR_OK;

    TRY(check_numbers(config, err));
    TRY(check_inputs(config, command, err));
    TRY(check_outputs(config, command, err));
out:
    return rc;
}
