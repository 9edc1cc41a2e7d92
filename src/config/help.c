/*
 * help.c - the table of settings as text: help of each command, sample file, metadata of posters.
 *
 * Owns the commands' names, summaries and examples.  Prints nothing: texts go back to main.c.
 *
 * Read next: config.c, whose rows are shown here.
 */
#include "config/config_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct command_help {
    enum config_command command;
    const char         *name, *arguments, *summary, *story;
    const char         *examples[3];
};

static const struct command_help commands[] = {
    {COMMAND_RENDER,
     "render",
     "\"PROMPT\" [flags]",
     "words to poster",
     "Paints a small draft of the prompt, then the poster over it, tile by tile.",
     {"mural render \"A harbour in fog at dawn\" -o harbour.tif",
      "mural render \"A harbour in fog at dawn\" --size A2@300dpi --seed 7 -o a2.tif",
      "mural render --config poster.yaml"}},
    {COMMAND_DRAFT,
     "draft",
     "\"PROMPT\" [flags]",
     "words to a small picture, to choose from",
     "Paints small pictures with the shape of the poster, quickly, so that you can choose a seed.",
     {"mural draft \"A harbour in fog at dawn\" -o draft.png",
      "mural draft \"A harbour in fog at dawn\" --count 6 -o sheet.png"}},
    {COMMAND_UPSCALE,
     "upscale",
     "PICTURE [flags]",
     "a draft, from anywhere, to poster",
     "Takes a draft, PNG or TIFF, and paints the poster over it, tile by tile.",
     {"mural upscale draft.png -o harbour.tif",
      "mural upscale photo.tif --prompt \"A harbour in fog\" --sigma 0.3 --size 16k -o big.tif"}},
    {COMMAND_BATCH,
     "batch",
     "FILE [flags]",
     "many posters, one after the other, from a list",
     "Paints a list of posters with one loaded model.  FILE is a settings file with a list in it:\n"
     "\n"
     "  steps: 16             # settings of all jobs, as for --config\n"
     "  jobs:\n"
     "    - prompt: A harbour in fog at dawn\n"
     "      output: harbour.tif\n"
     "    - prompt: A pine forest in snow\n"
     "      output: forest.tif\n"
     "      seed: 7           # settings of this job alone\n"
     "    - input: draft.png  # a draft to paint over, as for 'mural upscale'\n"
     "      output: wall.tif\n"
     "\n"
     "All jobs are checked before the first is painted.  One that fails does not stop the others,\n"
     "and the same command again paints what is missing.  A flag holds for every job.",
     {"mural batch posters.yaml", "mural batch posters.yaml --workers 2 --json"}},
    {COMMAND_RESUME,
     "resume",
     "POSTER [flags]",
     "go on with a poster that was stopped",
     "Paints what is missing of a poster that was stopped, failed or lost its power, with the\n"
     "settings it was begun with, which POSTER.mural remembers.",
     {"mural resume harbour.tif", "mural resume harbour.tif --tile-retries 10"}},
    {COMMAND_RETRY,
     "retry",
     "POSTER --tiles LIST [flags]",
     "paint some tiles of a poster again",
     "Paints tiles of a poster again, with another seed or prompt, and blends them in.  Its other\n"
     "tiles come from POSTER.mural.",
     {"mural retry harbour.tif --tiles 3,7-9 --seed 5",
      "mural retry harbour.tif --tiles 12 --prompt \"A harbour in fog, a small red boat\""}},
    {COMMAND_PLAN,
     "plan",
     "[\"PROMPT\"] [flags]",
     "what a poster would take: tiles, memory, disk, time",
     "Tells what 'mural render' with the same flags would need.  Reads no weights, writes nothing.",
     {"mural plan --size 16k --model FLUX.1-dev", "mural plan --config poster.yaml --json"}},
    {COMMAND_INFO,
     "info",
     "FILE [flags]",
     "what is written in a poster or draft",
     "Prints size, depth, profile, prompt and settings of a picture.",
     {"mural info harbour.tif", "mural info harbour.tif --json"}},
    {COMMAND_SYNTH,
     "synth",
     "DIR [flags]",
     "a model with random weights, to try sizes and speed",
     "Writes a model with random weights: it paints noise, but takes a real one's memory and time.",
     {"mural synth tiny-model", "mural synth big-model --spec flux1-dev"}},
    {COMMAND_SAMPLE,
     "sample-config",
     "",
     "print a settings file with every key explained",
     "Prints a YAML file with all settings at their defaults; edit it and pass it with --config.",
     {"mural sample-config > poster.yaml"}},
    {COMMAND_HELP,
     "help",
     "[COMMAND]",
     "flags of a command, with ranges and defaults",
     "Explains a command; 'mural help exit-codes' explains the exit status.",
     {"mural help render"}},
};

static const char *const group_titles[GROUP_COUNT] = {
    [GROUP_PICTURE] = "The picture",
    [GROUP_POSTER] = "Size",
    [GROUP_DRAFT] = "Draft",
    [GROUP_TILES] = "Tiles and detail",
    [GROUP_FILE] = "File",
    [GROUP_SAFETY] = "When things go wrong",
    [GROUP_SYNTH] = "Random model",
    [GROUP_MACHINE] = "Machine",
    [GROUP_MEMORY] = "Memory of a GPU",
    [GROUP_TALK] = "Running",
};

/* ---------------------------------------------------------------------------------- commands */

static const struct command_help *find_help(enum config_command command)
{
    for (size_t i = 0; i < ARRAY_COUNT(commands); i++)
        if (commands[i].command == command) return &commands[i];
    must_fail("every command has its help", ERR_WHERE);
}

const char *config_command_name(enum config_command command)
{
    return find_help(command)->name;
}

int config_find_command(enum config_command *out, const char *name, struct err *err)
{
    const char *near = NULL;
    uint32_t    near_edits = UINT32_MAX;
    char        shown[VALUES_QUOTE_BYTES];

    for (size_t i = 0; i < ARRAY_COUNT(commands); i++) {
        uint32_t edits;
        if (strcmp(name, commands[i].name) == 0) {
            *out = commands[i].command;
            return ERR_OK;
        }
        if (!config_is_near(name, commands[i].name, &edits) || edits >= near_edits) continue;
        near = commands[i].name;
        near_edits = edits;
    }
    if (near != NULL)
        return err_set(err, ERR_USAGE, 0, ERR_WHERE, "unknown command '%s'; did you mean '%s'?",
                       values_quote(shown, name), near);
    return err_set(err, ERR_USAGE, 0, ERR_WHERE, "unknown command '%s'; 'mural help' lists them",
                   values_quote(shown, name));
}

/* -------------------------------------------------------------------------------------- text */

enum { TEXT_BYTES = 32 * 1024 }; /* the longest text here has about 6 kB */

struct text {
    char  *data;
    size_t used;
};

static int text_open(struct text *out, struct err *err)
{
    void *room = NULL;
    int   rc = os_alloc(&room, TEXT_BYTES, 1, "help text", err);

    *out = (struct text){.data = room};
    return rc;
}

static void add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(struct text *text, const char *format, ...)
{
    va_list args;
    int     wrote;

    va_start(args, format);
    wrote = vsnprintf(text->data + text->used, TEXT_BYTES - text->used, format, args);
    va_end(args);
    must(wrote >= 0 && (size_t)wrote < TEXT_BYTES - text->used);
    text->used += (size_t)wrote;
}

/* -------------------------------------------------------------------------------------- help */

static void add_flag(struct text *text, const struct setting *row)
{
    bool negative = row->type == SETTING_SWITCH && strcmp(row->absent, "true") == 0;
    char left[40], rule[96];

    (void)snprintf(left, sizeof left, "--%s%s%s%s", negative ? "[no-]" : "", row->flag,
                   row->value != NULL ? " " : "", row->value != NULL ? row->value : "");
    add(text, "  %c%c%c %-20s  %s", row->letter != 0 ? '-' : ' ',
        row->letter != 0 ? row->letter : ' ', row->letter != 0 ? ',' : ' ', left, row->sentence);
    values_rule(rule, sizeof rule, row);
    if (row->type == SETTING_SWITCH) {
        add(text, "%s\n", negative ? " (default on)" : "");
        return;
    }
    if (rule[0] != '\0') add(text, "; %s", rule);
    if (row->absent[0] != '\0' && (row->marks & MARK_DERIVED) == 0)
        add(text, " (default %s%s)", row->absent, (row->marks & MARK_MODEL) != 0 ? "*" : "");
    add(text, "\n");
}

static void add_group(struct text *text, enum setting_group group, enum config_command command)
{
    size_t                count;
    const struct setting *rows = config_rows(&count);
    bool                  titled = false;

    for (size_t i = 0; i < count; i++) {
        if (rows[i].group != group || (rows[i].commands & (unsigned)command) == 0) continue;
        if (!titled) add(text, "\n%s:\n", group_titles[group]);
        titled = true;
        add_flag(text, &rows[i]);
    }
}

static void add_examples(struct text *text, const struct command_help *help)
{
    for (size_t i = 0; i < ARRAY_COUNT(help->examples) && help->examples[i] != NULL; i++)
        add(text, "  %s\n", help->examples[i]);
}

static void add_overview(struct text *text)
{
    add(text, "mural paints posters of 8K and more with FLUX.1, tile by tile.\n\nExamples:\n"
              "  mural draft \"A harbour in fog at dawn\" --count 6 -o sheet.png\n"
              "  mural render \"A harbour in fog at dawn\" --seed 44 -o harbour.tif\n"
              "  mural upscale photo.png --size 60x90cm@200dpi -o wall.tif\n\nCommands:\n");
    for (size_t i = 0; i < ARRAY_COUNT(commands); i++)
        add(text, "  %-14s  %s\n", commands[i].name, commands[i].summary);
    add(text, "\n'mural help COMMAND' lists the flags of a command, 'mural help exit-codes' the "
              "exit codes.\n");
}

int config_help(char **text_out, enum config_command command, struct err *err)
{
    int                        rc = ERR_OK;
    struct text                text;
    const struct command_help *help = find_help(command);

    TRY(text_open(&text, err));
    if (command == COMMAND_HELP) {
        add_overview(&text);
    } else {
        add(&text, "mural %s%s%s\n\n%s\n\nExamples:\n", help->name,
            help->arguments[0] != '\0' ? " " : "", help->arguments, help->story);
        add_examples(&text, help);
        for (int group = 0; group < GROUP_COUNT; group++)
            add_group(&text, (enum setting_group)group, command);
        if (strchr(text.data, '*') != NULL)
            add(&text, "\n* unless the model has its own choice, in mural.yaml in its folder\n");
    }
    *text_out = text.data;
out:
    return rc;
}

/* ------------------------------------------------------------------------------- sample file */

/* One setting with what is to be known of it; `group` is the group of keys that is open. */
static void add_sample(struct text *text, const struct setting *row, const char **group)
{
    bool quoted = row->type == SETTING_TEXT || row->type == SETTING_PATH;
    bool opens = row->section != NULL && (*group == NULL || strcmp(row->section, *group) != 0);
    const char *indent = row->section != NULL ? "  " : "";
    char        rule[96];

    if (opens) add(text, "\n%s:", row->section);
    *group = row->section;
    values_rule(rule, sizeof rule, row);
    add(text, "\n%s# %s%s%s\n", indent, row->sentence, rule[0] != '\0' ? "; " : "", rule);
    if ((row->marks & MARK_DERIVED) != 0) add(text, "# instead of width and height\n# ");
    if ((row->marks & MARK_MODEL) != 0) add(text, "# unless the model has its own choice\n# ");
    add(text, quoted ? "%s%s: \"%s\"\n" : "%s%s: %s\n", indent,
        row->section != NULL ? row->inner : row->key, row->absent);
}

int config_sample(char **text_out, struct err *err)
{
    int                   rc = ERR_OK;
    size_t                count;
    const struct setting *rows = config_rows(&count);
    struct text           text;
    const char           *open = NULL;
    int                   group = -1;

    TRY(text_open(&text, err));
    add(&text, "# Settings of mural at their defaults.  Use: mural render --config FILE\n"
               "# Flags win over this file; this file wins over the model's own mural.yaml.\n"
               "# Remove what you do not want to fix.\n");
    for (size_t i = 0; i < count; i++) {
        if ((rows[i].marks & MARK_FLAG_ONLY) != 0) continue;
        if ((int)rows[i].group != group) add(&text, "\n# ---- %s\n", group_titles[rows[i].group]);
        group = (int)rows[i].group;
        add_sample(&text, &rows[i], &open);
    }
    *text_out = text.data;
out:
    return rc;
}

/* ---------------------------------------------------------------------------------- metadata */

static json_t *json_of(const struct config *config, const struct setting *row)
{
    const char *field = (const char *)config + row->offset;
    const char *slash;
    char        folder[1024];

    if (row->type != SETTING_PATH) return values_json(config, row);
    /* A path tells where the author keeps files; its last part tells which model it was. */
    (void)snprintf(folder, sizeof folder, "%s", field);
    for (size_t n = strlen(folder); n > 1 && folder[n - 1] == '/'; n--)
        folder[n - 1] = '\0';
    if (folder[0] == '\0') return NULL;
    slash = strrchr(folder, '/');
    return json_string(slash != NULL ? slash + 1 : folder);
}

int config_to_json(char **text_out, const struct config *config, struct err *err)
{
    int                   rc = ERR_OK;
    size_t                count;
    const struct setting *rows = config_rows(&count);
    json_t               *object = json_object();
    char                 *dumped = NULL;

    if (object == NULL || json_object_set_new(object, "schema", json_integer(1)) != 0)
        RAISE(err, ERR_HOST_MEM, 0, "no memory for the settings of the picture");
    for (size_t i = 0; i < count; i++) {
        json_t *value;
        if ((rows[i].marks & MARK_PICTURE) == 0) continue;
        value = json_of(config, &rows[i]);
        /* A path that is unset or not UTF-8 is left out. */
        if (value != NULL && json_object_set_new(object, rows[i].key, value) != 0)
            RAISE(err, ERR_HOST_MEM, 0, "no memory for the settings of the picture");
    }
    dumped = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
    if (dumped == NULL) RAISE(err, ERR_HOST_MEM, 0, "no memory for the settings of the picture");
    TRY(text_copy(text_out, dumped, "the settings of the picture", err));
out:
    free(dumped);
    json_decref(object);
    return rc;
}
