/* test_yaml.c - settings files: what is taken, what is refused, and where the sentence points. */
#include "made_config.h"

static int read_bytes(struct config *config, const char *text, size_t bytes, struct err *err)
{
    struct yaml_source source = {.name = "p.yaml", .text = text, .bytes = bytes};
    return yaml_read(config, &source, err);
}

static void ordinary_files_are_read(void **state)
{
    struct err     err = {0};
    struct config *config = new_config();
    const char    *text = "# a poster\n"
                          "prompt: >\n"
                          "  A harbour in fog,\n"
                          "  at dawn\n"
                          "width: 1920\n"
                          "\"height\": '1080'\n"
                          "pyramid: yes\n"
                          "shard_bytes: 2GB # for synth\n";

    (void)state;
    ASSERT_OK(read_bytes(config, text, strlen(text), &err));
    assert_string_equal(config->prompt, "A harbour in fog, at dawn\n");
    assert_int_equal(config->width_px, 1920);
    assert_int_equal(config->height_px, 1080);
    assert_true(config->pyramid);
    ASSERT_OK(read_bytes(config, "{steps: 3, seed: 9}", 19, &err));
    assert_int_equal(config->steps, 3);
    ASSERT_OK(read_bytes(config, "--- \nsteps: 4\n...\n", 18, &err));
    assert_int_equal(config->steps, 4);
    free(config);
}

static void groups_of_keys_are_read(void **state)
{
    struct err     err = {0};
    struct config *config = new_config();
    const char    *text = "persistent_workers: true\n"
                          "memory_management:\n"
                          "  expandable_segments: false\n"
                          "  segment_size: 128MB\n"
                          "  max_fragmentation: 10%\n"
                          "  memory_pool_size: 2GB\n"
                          "offload: {enabled: no, batch_size: 4, keep_in_vram: 0.5}\n"
                          "warmup_batches: 5\n";

    (void)state;
    ASSERT_OK(read_bytes(config, text, strlen(text), &err));
    assert_false(config->expandable_segments);
    assert_true(config->segment_bytes == 128000000u && config->pool_bytes == 2000000000u);
    assert_true(config->fragmentation_max == 0.1);
    assert_false(config->offload);
    assert_int_equal(config->batch_size, 4);
    assert_true(config->keep_share == 0.5);
    assert_int_equal(config->warmup_batches, 5);
    /* One name for a group and a switch. */
    text = "offload: yes\nmemory_management: {}\n";
    ASSERT_OK(read_bytes(config, text, strlen(text), &err));
    assert_true(config->offload);
    free(config);
}

static void empty_files_change_nothing(void **state)
{
    struct err     err = {0};
    struct config *before = new_config(), *config = new_config();
    const char    *texts[] = {"", "\n\n", "# only words\n", "{}"};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        ASSERT_OK(read_bytes(config, texts[i], strlen(texts[i]), &err));
    assert_memory_equal(config, before, sizeof *config);
    free(config);
    free(before);
}

static void sentences_point_at_line_and_column(void **state)
{
    static const struct {
        const char *text, *sentence;
    } cases[] = {
        {"steps: 3\npromt: x\n", "config: p.yaml:2:1: unknown key 'promt'; did you mean 'prompt'?"},
        {"offload:\n  batchsize: 4\n",
         "config: p.yaml:2:3: unknown key 'batchsize' in 'offload'; it has enabled, batch_size, "
         "keep_in_vram"},
        {"memory_management: 3\n",
         "config: p.yaml:1:20: memory_management must be a group of keys"},
        {"offload: {enabled: yes}\nsteps: 3\noffload: no\n",
         "config: p.yaml:3:1: 'offload' was already set in line 1"},
        {"keep_in_vram: 1%\noffload:\n  keep_in_vram: 2%\n",
         "config: p.yaml:3:3: 'keep_in_vram' was already set in line 1"},
        {"offload: {batch_size: 1}\noffload: {enabled: no}\n",
         "config: p.yaml:2:1: 'offload' was already set in line 1"},
        {"offload: {batch_size: {deep: 1}}\n",
         "config: p.yaml:1:23: batch_size must be a single value, not a group of keys"},
        {"offload: &a {batch_size: 1}\n",
         "config: p.yaml:1:10: offload has an anchor or a tag; remove it"},
        {"offload: [1]\n", "config: p.yaml:1:10: offload must be a single value, not a list"},
        {"offload: {batch_size: 99}\n", "config: p.yaml:1:23: batch_size is 99 but must be 0..16"},
        {"zebra: 1\n",
         "config: p.yaml:1:1: unknown key 'zebra'; 'mural sample-config' lists the keys"},
        {"steps: 3\n\ntile_px:   1000\n",
         "config: p.yaml:3:12: tile_px is 1000 px but must be 64..4096 and a multiple of 16; "
         "nearest is 1008"},
        {"pyramid: 3\n", "config: p.yaml:1:10: pyramid is '3' but must be true or false"},
        {"steps: many\n",
         "config: p.yaml:1:8: steps is 'many' but must be a whole number, 1..1000"},
        {"steps: 3\nseed: 1\nsteps: 4\n", "config: p.yaml:3:1: 'steps' was already set in line 1"},
        {"steps:\n", "config: p.yaml:1:7: steps has no value; give one or remove the line"},
        {"steps: ~\n", "config: p.yaml:1:8: steps has no value; give one or remove the line"},
        {"config: other.yaml\n",
         "config: p.yaml:1:1: 'config' can only be given on the command line"},
        {"- steps\n", "config: p.yaml:1:1: a settings file has lines of the form 'key: value'"},
        {"steps\n", "config: p.yaml:1:1: a settings file has lines of the form 'key: value'"},
        {"steps: [1, 2]\n", "config: p.yaml:1:8: steps must be a single value, not a list"},
        {"tile_px:\n  size: 3\n",
         "config: p.yaml:2:3: tile_px must be a single value, not a group of keys"},
        {"? [a]\n: 1\n", "config: p.yaml:1:3: a key must be a single value, not a list"},
        {"steps: !!int 3\n", "config: p.yaml:1:8: steps has a tag (!name); remove it"},
        {"steps: &a 3\n", "config: p.yaml:1:8: steps has an anchor (&name); remove it"},
        {"&a steps: 3\n", "config: p.yaml:1:1: a key has an anchor (&name); remove it"},
        {"--- &a\nsteps: 3\n",
         "config: p.yaml:1:5: a settings file has an anchor or a tag; remove it"},
        {"steps: *a\n", "config: p.yaml:1:8: steps must be a single value, not an alias (*name)"},
        {"steps: 3\n---\nsteps: 4\n",
         "config: p.yaml:2:1: a second document starts here; a settings file has one"},
        {"steps: 3\n\tseed: 4\n", "config: p.yaml:2:1: there is a tab; YAML indents with spaces"},
        {"prompt: \"a\\0b\"\n", "config: p.yaml:1:9: prompt holds a NUL character"},
        {"prompt: \"open\n",
         "config: p.yaml:2:1: this is not YAML: found unexpected end of stream"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err     err = {0};
        struct config *config = new_config();
        assert_int_equal(read_bytes(config, cases[i].text, strlen(cases[i].text), &err),
                         ERR_CONFIG);
        assert_string_equal(err.text, cases[i].sentence);
        free(config);
    }
}

static void bytes_that_are_not_text_are_refused(void **state)
{
    struct err     err;
    struct config *config = new_config();

    (void)state;
    ASSERT_REFUSED(ERR_CONFIG, "p.yaml:2:9: this is not YAML",
                   read_bytes(config, "steps: 3\nprompt: \xFFx\n", 21, &err));
    ASSERT_REFUSED(ERR_CONFIG, "p.yaml:1:", read_bytes(config, "steps: \0003\n", 10, &err));
    free(config);
}

/* Ten levels of ten aliases each would be ten thousand million values. */
static void alias_bombs_do_not_go_off(void **state)
{
    struct err     err;
    struct config *config = new_config();
    char           text[4096] = "a: &a [x,x,x,x,x,x,x,x,x,x]\n";

    (void)state;
    for (char level = 'b'; level <= 'j'; level++) {
        size_t used = strlen(text);
        (void)snprintf(text + used, sizeof text - used, "%c: &%c [*%c,*%c,*%c,*%c,*%c]\n", level,
                       level, level - 1, level - 1, level - 1, level - 1, level - 1);
    }
    ASSERT_REFUSED(ERR_CONFIG, "p.yaml:1:1: unknown key 'a'",
                   read_bytes(config, text, strlen(text), &err));
    memmove(text + 6, text + 1, strlen(text));
    memcpy(text, "prompt", 6);
    ASSERT_REFUSED(ERR_CONFIG, "p.yaml:1:9: prompt must be a single value, not a list",
                   read_bytes(config, text, strlen(text), &err));
    free(config);
}

static void deep_and_huge_files_end_early(void **state)
{
    enum { HUGE_BYTES = 300 * 1024, DEEP_BYTES = 200 * 1024 };
    struct err     err;
    struct config *config = new_config();
    char          *text = malloc(HUGE_BYTES);

    (void)state;
    assert_non_null(text);
    memset(text, '[', HUGE_BYTES);
    memcpy(text, "prompt: ", 8);
    ASSERT_REFUSED(ERR_CONFIG, "p.yaml:1:9", read_bytes(config, text, DEEP_BYTES, &err));
    ASSERT_REFUSED(ERR_CONFIG, "a settings file has at most 262144",
                   read_bytes(config, text, HUGE_BYTES, &err));
    memset(text, 'a', HUGE_BYTES);
    memcpy(text, "prompt: ", 8);
    ASSERT_REFUSED(ERR_CONFIG, "prompt has", read_bytes(config, text, DEEP_BYTES, &err));
    memset(text, '{', HUGE_BYTES);
    ASSERT_REFUSED(ERR_CONFIG, "p.yaml:1:", read_bytes(config, text, DEEP_BYTES, &err));
    for (size_t i = 0; i + 2 <= DEEP_BYTES; i += 2)
        memcpy(text + i, "? ", 2);
    ASSERT_REFUSED(ERR_CONFIG, "p.yaml:1:", read_bytes(config, text, DEEP_BYTES, &err));
    free(text);
    free(config);
}

static void models_may_set_only_what_is_theirs(void **state)
{
    static const char *const theirs[] = {"tile_px", "overlap_px", "steps",   "draft_steps",
                                         "sigma",   "guidance",   "draft_px"};
    struct config           *config = new_config();
    size_t                   count, allowed = 0;
    const struct setting    *rows = config_rows(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        struct err         err = {0};
        char               text[80];
        struct yaml_source source = {.name = "mural.yaml", .text = text, .from_model = true};
        source.bytes =
            (size_t)snprintf(text, sizeof text, "%s: \"%s\"\n", rows[i].key, rows[i].absent);
        if (yaml_read(config, &source, &err) == ERR_OK) allowed++;
    }
    assert_int_equal(allowed, ARRAY_COUNT(theirs));
    for (size_t i = 0; i < ARRAY_COUNT(theirs); i++)
        assert_true((config_find_key(theirs[i])->marks & MARK_MODEL) != 0);
    free(config);
}

static void files_are_read_from_disk(void **state)
{
    struct err     err;
    struct config *config = new_config();
    char           folder[64], path[96];

    (void)state;
    scratch_make(folder, sizeof folder);
    (void)snprintf(path, sizeof path, "%s/p.yaml", folder);
    ASSERT_REFUSED(ERR_CONFIG, path, config_read_file(config, path, &err));
    ASSERT_REFUSED(ERR_CONFIG, folder, config_read_file(config, folder, &err));
    write_text(path, "steps: 9\n");
    ASSERT_OK(config_read_file(config, path, &err));
    assert_int_equal(config->steps, 9);
    scratch_remove(folder);
    free(config);
}

/* ----------------------------------------------------------------------------------- batches */

static int read_batch(struct config_batch *batch, const char *text, struct err *err)
{
    struct yaml_source source = {.name = "b.yaml", .text = text, .bytes = strlen(text)};

    *batch = (struct config_batch){.count = 0};
    return yaml_read_batch(batch, &source, err);
}

/* "common|common; line: word|word; ..." */
static void assert_batch(const struct config_batch *batch, const char *expected)
{
    char   text[1024] = "";
    size_t used = 0;

    for (size_t i = 0; i <= batch->count; i++) {
        const struct config_words *words = i == 0 ? &batch->common : &batch->jobs[i - 1].words;
        if (i > 0) {
            (void)snprintf(text + used, sizeof text - used, "; %zu: ", batch->jobs[i - 1].line);
            used = strlen(text);
        }
        for (size_t w = 0; w < words->count; w++) {
            (void)snprintf(text + used, sizeof text - used, "%s%s", w > 0 ? "|" : "",
                           words->word[w]);
            used = strlen(text);
        }
    }
    assert_string_equal(text, expected);
}

static void a_batch_is_a_list_of_jobs(void **state)
{
    struct config_batch batch;
    struct config_words laid = {.count = 0};
    struct err          err = {0};
    char                joined[256] = "";

    (void)state;
    ASSERT_OK(read_batch(&batch,
                         "steps: 4\nsize: A4@100dpi\njobs:\n  - prompt: a fox\n    seed: 3\n"
                         "    offload: {batch_size: 2}\n  - {input: d.png, width: 640}\n"
                         "quiet: true\n",
                         &err));
    assert_int_equal(batch.mistakes.count, 0);
    assert_batch(&batch, "steps=4|size=A4@100dpi|quiet=true; 4: prompt=a fox|seed=3|batch_size=2; "
                         "7: input=d.png|width=640");
    ASSERT_OK(config_words_lay(&laid, &batch.common, &err));
    ASSERT_OK(config_words_lay(&laid, &batch.jobs[1].words, &err));
    for (size_t i = 0; i < laid.count; i++)
        (void)snprintf(joined + strlen(joined), sizeof joined - strlen(joined), "%s|",
                       laid.word[i]);
    assert_string_equal(joined,
                        "steps=4|width=827|height=1169|dpi=100|quiet=true|input=d.png|width=640|");
    config_words_close(&laid);
    config_batch_close(&batch);
}

/* What is wrong is left out, and reading goes on behind it, wherever it stands. */
static void every_mistake_of_a_batch_is_named(void **state)
{
    static const struct {
        const char *text, *batch, *mistakes;
    } rows[] = {
        {"jobs:\n  - {steps: x, seed: 1}\n", "; 2: seed=1", "b.yaml:2:13: steps is 'x' "},
        {"jobs:\n  - {steps: [1, {a: b}], seed: 1}\n", "; 2: seed=1",
         "b.yaml:2:13: steps must be a single value, not a list"},
        {"jobs:\n  - {nonsense: {a: [b, c]}, seed: 1}\n", "; 2: seed=1",
         "b.yaml:2:6: unknown key 'nonsense'"},
        {"jobs:\n  - {seed: 1, seed: 2, steps: 3}\n", "; 2: seed=1|steps=3",
         "b.yaml:2:15: 'seed' was already set in line 2"},
        {"jobs:\n  - {offload: {batch_size: x, enabled: no}, seed: 1}\n", "; 2: seed=1",
         "b.yaml:2:28: batch_size is 'x' "},
        {"jobs:\n  - {offload: {sise: 3}, seed: 1}\n", "; 2: seed=1",
         "b.yaml:2:16: unknown key 'sise' in 'offload'"},
        {"jobs:\n  - a fox\n  - [a, b]\n  - {seed: 1}\n", "; 4: seed=1",
         "b.yaml:2:5: a job is a group of keys"},
        {"jobs:\n  - &a {seed: 1}\n  - {seed: 2}\n", "; 3: seed=2",
         "b.yaml:2:5: a job has an anchor or a tag"},
        {"jobs:\n  - {jobs: [{seed: 1}], seed: 2}\n", "; 2: seed=2",
         "b.yaml:2:6: 'jobs' is for 'mural batch', once, and not inside of another job"},
        {"jobs: [{seed: 1}]\njobs: [{seed: 2}]\nsteps: 3\n", "steps=3; 1: seed=1",
         "b.yaml:2:1: 'jobs' was already set in line 1"},
        {"jobs: {seed: 1}\nsteps: 3\n", "steps=3", "b.yaml:1:7: jobs must be a list"},
        {"jobs: [{json: true, seed: 1}]\n", "; 1: seed=1", "b.yaml:1:9: 'json' is not for a job"},
        {"jobs: [{config: a, seed: 1}]\n", "; 1: seed=1",
         "b.yaml:1:9: 'config' can only be given on the command line"},
        {"input: a\njobs: [{seed: 1}]\n", "; 2: seed=1",
         "b.yaml:1:1: 'input' can only be given on the command line"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct config_batch batch;
        struct err          err = {0};
        ASSERT_OK(read_batch(&batch, rows[i].text, &err));
        if (batch.mistakes.count == 0 || strstr(batch.mistakes.word[0], rows[i].mistakes) == NULL)
            fail_msg("row %zu: '%s'", i, batch.mistakes.count > 0 ? batch.mistakes.word[0] : "");
        assert_batch(&batch, rows[i].batch);
        config_batch_close(&batch);
    }
}

static void batches_are_bounded(void **state)
{
    enum { BYTES = 64 * 1024 };
    struct config_batch batch;
    struct err          err = {0};
    char               *text = malloc(BYTES);

    (void)state;
    assert_non_null(text);
    (void)snprintf(text, BYTES, "jobs:\n");
    for (int i = 0; i <= CONFIG_JOBS_MAX; i++)
        (void)snprintf(text + 6 + 14 * i, BYTES - 6 - 14 * (size_t)i, "  - {seed: 1}\n");
    ASSERT_OK(read_batch(&batch, text, &err));
    assert_int_equal(batch.count, CONFIG_JOBS_MAX);
    assert_int_equal(batch.mistakes.count, 1);
    assert_non_null(strstr(batch.mistakes.word[0], "b.yaml:1002:5: a batch has at most 1000 jobs"));
    config_batch_close(&batch);
    for (int i = 0; i <= CONFIG_MISTAKES_MAX; i++)
        (void)snprintf(text + 6 + 14 * i, BYTES - 6 - 14 * (size_t)i, "  - {sead: 1}\n");
    ASSERT_REFUSED(ERR_CONFIG, "b.yaml:52:6: unknown key 'sead'", read_batch(&batch, text, &err));
    assert_int_equal(batch.mistakes.count, CONFIG_MISTAKES_MAX);
    config_batch_close(&batch);
    ASSERT_REFUSED(ERR_CONFIG, "it has no jobs", read_batch(&batch, "steps: 3\n", &err));
    config_batch_close(&batch);
    ASSERT_REFUSED(ERR_CONFIG, "it has no jobs", read_batch(&batch, "jobs: []\n", &err));
    config_batch_close(&batch);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ordinary_files_are_read),
        cmocka_unit_test(groups_of_keys_are_read),
        cmocka_unit_test(empty_files_change_nothing),
        cmocka_unit_test(sentences_point_at_line_and_column),
        cmocka_unit_test(bytes_that_are_not_text_are_refused),
        cmocka_unit_test(alias_bombs_do_not_go_off),
        cmocka_unit_test(deep_and_huge_files_end_early),
        cmocka_unit_test(models_may_set_only_what_is_theirs),
        cmocka_unit_test(files_are_read_from_disk),
        cmocka_unit_test(a_batch_is_a_list_of_jobs),
        cmocka_unit_test(every_mistake_of_a_batch_is_named),
        cmocka_unit_test(batches_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
