/*
 * flags.c - the command line of one command into words "key=value".
 *
 * Owns how flags are written: --flag VALUE, --flag=VALUE, -x VALUE, -xVALUE, --switch,
 * --no-switch, and -- before words that start with a dash.  Which flags exist, and what they mean,
 * is in the rows of config.c.  Values are judged here as well, only so that a sentence can say
 * "--tile" where a file would say "tile_px".
 *
 * Read next: config.c.
 */
#include "config/config_int.h"

#include <stdio.h>
#include <string.h>

struct flags {
    struct config_words *words;
    enum config_command  command;
    int                  argc, at; /* argv[at] is looked at */
    char               **argv;
    struct config       *scratch; /* takes the values, to have them judged */
    bool                 prompt_flag, positional;
    struct err          *err;
};

static const struct setting *find_flag(const char *name, char letter)
{
    size_t                count;
    const struct setting *rows = config_rows(&count);

    for (size_t i = 0; i < count; i++)
        if (letter != 0 ? rows[i].letter == letter : strcmp(rows[i].flag, name) == 0)
            return &rows[i];
    return NULL;
}

/* "'mural draft' or 'mural render'" */
static void list_commands(char *out, size_t capacity, unsigned commands)
{
    size_t used = 0;

    out[0] = '\0';
    for (unsigned bit = COMMAND_RENDER; bit <= COMMAND_SYNTH; bit <<= 1) {
        if ((commands & bit) == 0) continue;
        bool more = (commands & ~(2 * bit - 1)) != 0;
        int  wrote = snprintf(out + used, capacity - used, "'mural %s'%s",
                              config_command_name((enum config_command)bit), more ? " or " : "");
        must(wrote > 0 && (size_t)wrote < capacity - used);
        used += (size_t)wrote;
    }
}

static int refuse_flag(const struct flags *flags, const char *written, const char *name)
{
    char                  shown[VALUES_QUOTE_BYTES];
    const struct setting *near = config_nearest(name, (unsigned)flags->command, true);

    if (near == NULL)
        return err_set(flags->err, ERR_USAGE, 0, ERR_WHERE,
                       "unknown flag '%s'; see 'mural help %s'", values_quote(shown, written),
                       config_command_name(flags->command));
    return err_set(flags->err, ERR_USAGE, 0, ERR_WHERE, "unknown flag '%s'; did you mean '--%s'?",
                   values_quote(shown, written), near->flag);
}

static int check_belongs(const struct flags *flags, const struct setting *row)
{
    char owners[256];

    if ((row->commands & (unsigned)flags->command) != 0) return ERR_OK;
    list_commands(owners, sizeof owners, row->commands);
    return err_set(flags->err, ERR_USAGE, 0, ERR_WHERE,
                   "--%s does not belong to 'mural %s' but to %s", row->flag,
                   config_command_name(flags->command), owners);
}

/* The value of a flag: after '=', glued to a letter, or the next argument.  A next argument that
 * looks like a flag is more likely a forgotten value; a negative number is not. */
static int take_value(struct flags *flags, const char *spoken, const char *attached,
                      const char **value_out)
{
    int         rc = ERR_OK;
    char        shown[VALUES_QUOTE_BYTES];
    const char *following;

    *value_out = attached;
    if (attached != NULL) goto out;
    if (flags->at + 1 >= flags->argc) RAISE(flags->err, ERR_USAGE, 0, "%s needs a value", spoken);
    following = flags->argv[++flags->at];
    if (following[0] == '-' && following[1] == '-' && following[2] != '\0')
        RAISE(flags->err, ERR_USAGE, 0,
              "%s needs a value but '%s' follows; join them with = if that is the value", spoken,
              values_quote(shown, following));
    *value_out = following;
out:
    return rc;
}

static int set_flag(struct flags *flags, const struct setting *row, const char *spoken,
                    const char *value)
{
    int rc = ERR_OK;

    if (row->type == SETTING_PATH && value[0] == '\0')
        RAISE(flags->err, ERR_USAGE, 0, "%s is empty; give a name or leave the flag out", spoken);
    TRY(values_set(flags->scratch, row, spoken, value, flags->err));
    TRY(words_put(flags->words, row->key, value, flags->err));
    if (strcmp(row->key, "prompt") == 0) flags->prompt_flag = true;
out:
    return rc;
}

/* --name, --name=value, --no-name */
static int read_long(struct flags *flags, const char *written)
{
    int                   rc = ERR_OK;
    const char           *equals = strchr(written, '='), *value = equals ? equals + 1 : NULL;
    char                  name[64], spoken[66];
    size_t                length = equals ? (size_t)(equals - written) : strlen(written);
    const struct setting *row;
    bool                  negated;

    (void)snprintf(name, sizeof name, "%.*s", length < sizeof name ? (int)length - 2 : 0,
                   written + 2);
    (void)snprintf(spoken, sizeof spoken, "--%s", name);
    row = find_flag(name, 0);
    negated = row == NULL && strncmp(name, "no-", 3) == 0;
    if (negated) row = find_flag(name + 3, 0);
    if (row == NULL || (negated && row->type != SETTING_SWITCH))
        return refuse_flag(flags, written, negated ? name + 3 : name);
    TRY(check_belongs(flags, row));
    if (negated && value != NULL) RAISE(flags->err, ERR_USAGE, 0, "%s takes no value", spoken);
    if (row->type == SETTING_SWITCH && value == NULL) value = negated ? "false" : "true";
    TRY(take_value(flags, spoken, value, &value));
    TRY(set_flag(flags, row, spoken, value));
out:
    return rc;
}

/* -x value, -xvalue, -x */
static int read_short(struct flags *flags, const char *written)
{
    int                   rc = ERR_OK;
    const struct setting *row = find_flag("", written[1]);
    char                  spoken[3] = {'-', written[1], '\0'};
    const char           *value = written[2] != '\0' ? written + 2 : NULL;

    if (row == NULL) return refuse_flag(flags, written, written + 1);
    TRY(check_belongs(flags, row));
    if (row->type == SETTING_SWITCH) {
        if (value != NULL) return refuse_flag(flags, written, written + 1);
        value = "true";
    }
    TRY(take_value(flags, spoken, value, &value));
    TRY(set_flag(flags, row, spoken, value));
out:
    return rc;
}

static int read_positional(struct flags *flags, const char *word)
{
    int         rc = ERR_OK;
    char        shown[VALUES_QUOTE_BYTES];
    bool        prompt = (flags->command & (COMMAND_RENDER | COMMAND_DRAFT | COMMAND_PLAN)) != 0;
    bool        poster = (flags->command & (COMMAND_RESUME | COMMAND_RETRY)) != 0;
    const char *key = prompt ? "prompt" : poster ? "output" : "input";

    if (flags->positional)
        RAISE(flags->err, ERR_USAGE, 0, "'%s' is one word too many%s", values_quote(shown, word),
              prompt ? "; put the whole prompt in quotes" : "");
    if (!prompt && word[0] == '\0') RAISE(flags->err, ERR_USAGE, 0, "the file name is empty");
    flags->positional = true;
    TRY(values_set(flags->scratch, config_find_key(key), prompt ? "the prompt" : "the file name",
                   word, flags->err));
    TRY(words_put(flags->words, key, word, flags->err));
out:
    return rc;
}

static int read_all(struct flags *flags)
{
    int  rc = ERR_OK;
    bool only_words = false;

    for (flags->at = 0; flags->at < flags->argc; flags->at++) {
        const char *written = flags->argv[flags->at];
        if (only_words || written[0] != '-' || written[1] == '\0')
            TRY(read_positional(flags, written));
        else if (strcmp(written, "--") == 0)
            only_words = true;
        else if (written[1] == '-')
            TRY(read_long(flags, written));
        else
            TRY(read_short(flags, written));
    }
    if (flags->prompt_flag && flags->positional &&
        (flags->command & (COMMAND_UPSCALE | COMMAND_BATCH | COMMAND_RETRY)) == 0)
        RAISE(flags->err, ERR_USAGE, 0, "the prompt is given twice; keep the words or --prompt");
out:
    return rc;
}

int config_read_flags(struct config_words *out, enum config_command command, int argc, char **argv,
                      struct err *err)
{
    int          rc = ERR_OK;
    void        *scratch = NULL;
    struct flags flags = {.words = out, .command = command, .argc = argc, .argv = argv, .err = err};

    *out = (struct config_words){.count = 0};
    TRY(os_alloc(&scratch, 1, sizeof *flags.scratch, "the settings", err));
    flags.scratch = scratch;
    TRY(read_all(&flags));
out:
    os_free(scratch);
    if (rc != ERR_OK) config_words_close(out);
    return rc;
}
