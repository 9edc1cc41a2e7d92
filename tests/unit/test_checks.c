/* test_checks.c - settings that are good one by one, and not together or not on this machine. */
#include "made_config.h"

static void relations_are_checked(void **state)
{
    static const struct {
        enum config_command command;
        enum err_code       code;
        const char         *words[3], *part;
    } cases[] = {
        {COMMAND_PLAN,
         ERR_USAGE,
         {"tile_px=512", "overlap_px=500"},
         "overlap is 500 px but must be 0..496 px with a tile of 512 px"},
        {COMMAND_PLAN, ERR_USAGE, {"level=15"}, "level is 15 but deflate has 1..12"},
        {COMMAND_PLAN,
         ERR_USAGE,
         {"level=1", "compression=lzw"},
         "compression 'lzw' has no levels; leave the level out"},
        {COMMAND_PLAN, ERR_USAGE, {"quiet=yes", "verbose=yes"}, "quiet and verbose exclude"},
        {COMMAND_PLAN,
         ERR_USAGE,
         {"workers=3", "persistent_workers=no"},
         "workers is 3 but persistent workers are off"},
        {COMMAND_DRAFT,
         ERR_USAGE,
         {"prompt=x", "count=2", "seed=9223372036854775807"},
         "seed 9223372036854775807 leaves no room to count up to 2 drafts"},
        {COMMAND_DRAFT,
         ERR_USAGE,
         {"prompt=x", "count=2", "noise_file=/nowhere"},
         "count is 2, but with a noise file all drafts would be the same"},
        {COMMAND_RENDER, ERR_USAGE, {NULL}, "no prompt"},
        {COMMAND_UPSCALE, ERR_USAGE, {NULL}, "no file given"},
        {COMMAND_SYNTH, ERR_USAGE, {NULL}, "no folder given"},
        {COMMAND_INFO, ERR_FORMAT, {"input=/nowhere.tif"}, "'/nowhere.tif' does not exist"},
        {COMMAND_INFO, ERR_FORMAT, {"input=/"}, "'/' is a folder, not a picture"},
        {COMMAND_INFO, ERR_FORMAT, {"input=/dev/zero"}, "'/dev/zero' is not a regular file"},
        {COMMAND_INFO, ERR_FORMAT, {"input=/dev/zero/a"}, "'/dev/zero/a' Not a directory"},
        {COMMAND_PLAN, ERR_FORMAT, {"model=/nowhere"}, "model folder '/nowhere' does not exist"},
        {COMMAND_RENDER,
         ERR_USAGE,
         {"prompt=x", "output=a.jpg"},
         "'a.jpg' must end in .tif or .tiff: posters are BigTIFF files"},
        {COMMAND_DRAFT,
         ERR_USAGE,
         {"prompt=x", "output=a.tif"},
         "'a.tif' must end in .png: drafts are PNG files"},
        {COMMAND_RENDER, ERR_USAGE, {"prompt=x", "output=.tif"}, "'.tif' must end in .tif"},
        {COMMAND_RENDER,
         ERR_IO,
         {"prompt=x", "output=/nowhere/a.tif"},
         "output folder '/nowhere' does not exist"},
        {COMMAND_RENDER, ERR_USAGE, {"prompt=x", "keep_draft=a.tif"}, "must end in .png"},
        {COMMAND_RENDER,
         ERR_USAGE,
         {"prompt=x", "memory_plot=a.tif"},
         "'a.tif' must end in .png: plots are PNG files"},
        {COMMAND_RENDER,
         ERR_USAGE,
         {"prompt=x", "keep_draft=/tmp/none.png", "memory_plot=/tmp/none.png"},
         "is both the draft to keep and the plot of memory"},
        {COMMAND_SYNTH, ERR_USAGE, {"input=/etc/passwd"}, "'/etc/passwd' is a file"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err     err = {0};
        struct config *config = new_config();
        (void)snprintf(config->model, sizeof config->model, "/");
        (void)snprintf(config->output, sizeof config->output, "/tmp/no-such-file.tif");
        for (size_t j = 0; j < 3 && cases[i].words[j] != NULL; j++) {
            char key[32];
            (void)snprintf(key, sizeof key, "%s", cases[i].words[j]);
            *strchr(key, '=') = '\0';
            ASSERT_OK(config_set(config, key, strchr(cases[i].words[j], '=') + 1, &err));
        }
        ASSERT_REFUSED(cases[i].code, cases[i].part, config_check(config, cases[i].command, &err));
        free(config);
    }
}

static void an_existing_draft_needs_overwrite(void **state)
{
    struct err     err;
    struct config *config = new_config();
    char           folder[64];

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(config->model, sizeof config->model, "/");
    (void)snprintf(config->prompt, sizeof config->prompt, "x");
    (void)snprintf(config->output, sizeof config->output, "%s/a.png", folder);
    ASSERT_OK(config_check(config, COMMAND_DRAFT, &err));
    write_text(config->output, "");
    ASSERT_REFUSED(ERR_USAGE, "a.png' exists; add --overwrite",
                   config_check(config, COMMAND_DRAFT, &err));
    config->overwrite = true;
    ASSERT_OK(config_check(config, COMMAND_DRAFT, &err));
    /* A poster may be the very one that is asked for: render looks. */
    config->overwrite = false;
    (void)snprintf(config->output, sizeof config->output, "%s/a.tif", folder);
    write_text(config->output, "");
    ASSERT_OK(config_check(config, COMMAND_RENDER, &err));
    ASSERT_OK(config_check(config, COMMAND_PLAN, &err));
    (void)snprintf(config->input, sizeof config->input, "%s/a.tif", folder);
    ASSERT_REFUSED(ERR_USAGE, "is both the draft and the output",
                   config_check(config, COMMAND_UPSCALE, &err));
    scratch_remove(folder);
    free(config);
}

static void what_is_read_is_not_written_over(void **state)
{
    struct err     err;
    struct config *config = new_config();
    char           folder[64], link_path[96];

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(config->model, sizeof config->model, "/");
    (void)snprintf(config->prompt, sizeof config->prompt, "x");
    (void)snprintf(config->output, sizeof config->output, "%s/a.tif", folder);
    (void)snprintf(link_path, sizeof link_path, "%s/b.png", folder);
    config->overwrite = true;
    write_text(config->output, "");
    assert_int_equal(link(config->output, link_path), 0);
    (void)snprintf(config->noise_file, sizeof config->noise_file, "%s", link_path);
    ASSERT_REFUSED(ERR_USAGE, "is both the noise file and the output; name another with -o",
                   config_check(config, COMMAND_RENDER, &err));
    config->noise_file[0] = '\0';
    (void)snprintf(config->settings_file, sizeof config->settings_file, "%s", link_path);
    ASSERT_REFUSED(ERR_USAGE, "is both the settings file and the output",
                   config_check(config, COMMAND_RENDER, &err));
    config->settings_file[0] = '\0';
    (void)snprintf(config->draft, sizeof config->draft, "%s", link_path);
    ASSERT_REFUSED(ERR_USAGE, "b.png' is both the draft to keep and the output",
                   config_check(config, COMMAND_RENDER, &err));
    (void)snprintf(config->settings_file, sizeof config->settings_file, "%s", link_path);
    (void)snprintf(config->output, sizeof config->output, "%s/c.tif", folder);
    ASSERT_REFUSED(ERR_USAGE, "both the settings file and the output; name another with --keep",
                   config_check(config, COMMAND_RENDER, &err));
    scratch_remove(folder);
    free(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(relations_are_checked),
        cmocka_unit_test(an_existing_draft_needs_overwrite),
        cmocka_unit_test(what_is_read_is_not_written_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
