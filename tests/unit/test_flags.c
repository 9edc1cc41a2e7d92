/* test_flags.c - the command line into words, and the sentences for what is none. */
#include "made_config.h"

struct line {
    enum config_command command;
    const char         *argv[6];
    const char         *expected; /* words joined by '|', or the sentence */
};

static void check_line(const struct line *line, bool good)
{
    struct err          err = {0};
    struct config_words words;
    char               *argv[6], joined[256] = "";
    int                 argc = 0, rc;

    for (; argc < 6 && line->argv[argc] != NULL; argc++)
        argv[argc] = strdup(line->argv[argc]);
    rc = config_read_flags(&words, line->command, argc, argv, &err);
    for (size_t i = 0; i < words.count; i++) {
        size_t used = strlen(joined);
        (void)snprintf(joined + used, sizeof joined - used, "%s%s", i > 0 ? "|" : "",
                       words.word[i]);
    }
    assert_string_equal(good && rc == ERR_OK ? joined : err.text, line->expected);
    assert_int_equal(rc, good ? ERR_OK : ERR_USAGE);
    config_words_close(&words);
    for (int i = 0; i < argc; i++)
        free(argv[i]);
}

static void flags_become_words(void **state)
{
    static const struct line lines[] = {
        {COMMAND_RENDER, {"a fox", "-o", "fox.tif"}, "prompt=a fox|output=fox.tif"},
        {COMMAND_RENDER, {"-ofox.tif", "--tile=512"}, "output=fox.tif|tile_px=512"},
        {COMMAND_RENDER, {"--pyramid", "--no-metadata"}, "pyramid=true|metadata=false"},
        {COMMAND_RENDER, {"--pyramid=no", "-q"}, "pyramid=no|quiet=true"},
        {COMMAND_RENDER, {"--prompt=--strange", "--seed", "3"}, "prompt=--strange|seed=3"},
        {COMMAND_RENDER, {"--", "-not a flag-"}, "prompt=-not a flag-"},
        {COMMAND_RENDER, {"-p", "-"}, "prompt=-"},
        {COMMAND_RENDER, {"--prompt", "a=b=c"}, "prompt=a=b=c"},
        {COMMAND_DRAFT, {"x", "--count", "3", "--count", "4"}, "prompt=x|count=3|count=4"},
        {COMMAND_UPSCALE, {"d.png", "-p", "x"}, "input=d.png|prompt=x"},
        {COMMAND_SYNTH,
         {"dir", "--bfl", "--shard-size", "1GB"},
         "input=dir|bfl=true|shard_bytes=1GB"},
        {COMMAND_PLAN, {NULL}, ""},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(lines); i++)
        check_line(&lines[i], true);
}

static void bad_flags_get_their_sentence(void **state)
{
    static const struct line lines[] = {
        {COMMAND_RENDER, {"--tiel", "512"}, "unknown flag '--tiel'; did you mean '--tile'?"},
        {COMMAND_RENDER,
         {"--no-pyramids"},
         "unknown flag '--no-pyramids'; did you mean "
         "'--pyramid'?"},
        {COMMAND_RENDER, {"--noise", "f"}, "unknown flag '--noise'; did you mean '--noise-file'?"},
        {COMMAND_RENDER, {"--zebra"}, "unknown flag '--zebra'; see 'mural help render'"},
        {COMMAND_RENDER, {"--no-tile"}, "unknown flag '--no-tile'; did you mean '--tile'?"},
        {COMMAND_RENDER, {"-z"}, "unknown flag '-z'; see 'mural help render'"},
        {COMMAND_RENDER, {"-qv"}, "unknown flag '-qv'; see 'mural help render'"},
        {COMMAND_RENDER,
         {"--count", "3"},
         "--count does not belong to 'mural render' but to 'mural draft'"},
        {COMMAND_DRAFT,
         {"--tile", "512"},
         "--tile does not belong to 'mural draft' but to 'mural render' or 'mural upscale' or "
         "'mural batch' or 'mural plan'"},
        {COMMAND_RENDER, {"--tile"}, "--tile needs a value"},
        {COMMAND_RENDER,
         {"--model", "--tile", "512"},
         "--model needs a value but '--tile' follows; join them with = if that is the value"},
        {COMMAND_RENDER, {"--overlap", "-5"}, "--overlap is -5 px but must be 0..4080"},
        {COMMAND_RENDER, {"--no-pyramid=yes"}, "--no-pyramid takes no value"},
        {COMMAND_RENDER, {"-o", ""}, "-o is empty; give a name or leave the flag out"},
        {COMMAND_RENDER,
         {"two", "words"},
         "'words' is one word too many; put the whole prompt in quotes"},
        {COMMAND_INFO, {"a.tif", "b.tif"}, "'b.tif' is one word too many"},
        {COMMAND_RENDER, {"x", "-p", "y"}, "the prompt is given twice; keep the words or --prompt"},
        {COMMAND_RENDER, {"ab\xFF"}, "the prompt is not UTF-8: byte 3 of 3 is 0xff"},
        {COMMAND_INFO, {""}, "the file name is empty"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(lines); i++)
        check_line(&lines[i], false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flags_become_words),
        cmocka_unit_test(bad_flags_get_their_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
