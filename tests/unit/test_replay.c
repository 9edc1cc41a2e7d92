/*
 * test_replay.c - traces of allocations: the published ones in our segment, and files that are
 * none.
 */
#include "tests/bench/replay.h"

#include "../test.h"

#define MIB ((uint64_t)1 << 20)

static struct replay on_host(void)
{
    return (struct replay){.ops = &vmem_host, .chunk_bytes = 32 * MIB, .fragmentation_max = 0.15};
}

/* ---------------------------------------------------------------------------------- published */

/* A little below what they reached when they were published; their README has the figures. */
static const struct {
    const char *begin; /* of the file's name */
    double      utilisation_least;
} published[] = {
    {"mural-", 0.985},
    {"diffusers-", 0.95},
};

static double utilisation_least(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(published); i++)
        if (strncmp(name, published[i].begin, strlen(published[i].begin)) == 0)
            return published[i].utilisation_least;
    fail_msg("%s: nobody says what it has to reach", name);
    return 0;
}

/* As a sum over the lines, with no allocator. */
static uint64_t peak_of(const struct replay *replay)
{
    uint64_t live = 0, most = 0;

    for (uint32_t i = 0; i < replay->line_count; i++) {
        const struct replay_line *line = &replay->lines[i];
        live = line->take ? live + line->bytes : live - line->bytes;
        most = max_u64(most, live);
    }
    return most;
}

static void one_published(const char *path, double least)
{
    struct err            err = {0};
    struct replay_outcome outcome;
    struct replay         replay = on_host();

    ASSERT_OK(replay_read(&replay, path, &err));
    ASSERT_OK(replay_run(&outcome, &replay, 64 * 1024 * MIB, &err));
    assert_int_equal(outcome.counts.live, 0);
    assert_int_equal(outcome.counts.peak_live, peak_of(&replay));
    if (replay_utilisation(&outcome) < least)
        fail_msg("%s: utilisation %.4f", path, replay_utilisation(&outcome));
    replay_free(&replay);
}

static void published_traces_waste_little(void **state)
{
    char           folder[4096], path[4096];
    int            count = 0;
    struct dirent *entry;
    DIR           *listing;

    (void)state;
    (void)snprintf(folder, sizeof folder, "%s/bench/traces", test_data());
    listing = opendir(folder);
    assert_non_null(listing);
    while ((entry = readdir(listing)) != NULL) {
        if (strstr(entry->d_name, ".csv.gz") == NULL) continue;
        assert_true(os_join(path, sizeof path, folder, entry->d_name));
        one_published(path, utilisation_least(entry->d_name));
        count++;
    }
    (void)closedir(listing);
    assert_true(count >= 2);
}

/* -------------------------------------------------------------------------------------- files */

struct scratch {
    char folder[128], path[160];
};

static struct scratch open_scratch(const char *name)
{
    struct scratch scratch;

    scratch_make(scratch.folder, sizeof scratch.folder);
    (void)snprintf(scratch.path, sizeof scratch.path, "%s/%s", scratch.folder, name);
    return scratch;
}

static void write_plain(const struct scratch *scratch, const char *text)
{
    scratch_write(scratch->path, text, strlen(text));
}

static void write_packed(const struct scratch *scratch, const char *text)
{
    gzFile file = gzopen(scratch->path, "wb9");

    assert_non_null(file);
    assert_true(gzputs(file, text) >= 0);
    assert_int_equal(gzclose(file), Z_OK);
}

static const char SMALL[] = "# a comment\n"
                            "op,id,bytes\n"
                            "take,0,3000000\n"
                            "take,2,1\n"
                            "# another\n"
                            "give,0,3000000\n"
                            "take,0,5000000"; /* nobody gives it back, and no end of the line */

static void plain_and_packed_are_the_same(void **state)
{
    struct err            err = {0};
    struct scratch        scratch = open_scratch("trace");
    struct replay_outcome outcome;

    (void)state;
    for (int packed = 0; packed < 2; packed++) {
        struct replay replay = on_host();
        replay.chunk_bytes = 2 * MIB;
        if (packed)
            write_packed(&scratch, SMALL);
        else
            write_plain(&scratch, SMALL);
        ASSERT_OK(replay_read(&replay, scratch.path, &err));
        assert_int_equal(replay.line_count, 4);
        assert_int_equal(replay.id_count, 3); /* the highest is 2 */
        assert_int_equal(replay.live_most, 2);
        ASSERT_OK(replay_run(&outcome, &replay, 64 * MIB, &err));
        assert_int_equal(outcome.counts.peak_live, 5000001);
        replay_free(&replay);
    }
    scratch_remove(scratch.folder);
}

/* Eight chunks of 16 MiB, full. Two become free and the others half free, in places of 2 MiB; then
 * four chunks are wanted in one piece.  Without a cap it lies behind all; with the tightest one the
 * two that are wholly free are shown there, and two more are needed. */
static void the_smallest_cap_is_found(void **state)
{
    struct err            err = {0};
    struct scratch        scratch = open_scratch("trace");
    struct replay_outcome outcome;
    struct replay         replay = on_host();
    uint64_t              cap = 0;
    FILE                 *file = fopen(scratch.path, "w");

    (void)state;
    assert_non_null(file);
    (void)fputs("op,id,bytes\n", file);
    for (int i = 0; i < 64; i++)
        (void)fprintf(file, "take,%d,2097152\n", i);
    for (int i = 0; i < 64; i++)
        if (i < 16 || i % 2 == 0) (void)fprintf(file, "give,%d,2097152\n", i);
    (void)fputs("take,64,67108864\n", file);
    assert_int_equal(fclose(file), 0);
    replay.chunk_bytes = 16 * MIB;
    replay.fragmentation_max = 1;
    ASSERT_OK(replay_read(&replay, scratch.path, &err));
    ASSERT_OK(replay_run(&outcome, &replay, 1024 * MIB, &err));
    assert_int_equal(outcome.counts.peak_mapped, 192 * MIB);
    ASSERT_OK(replay_survive(&cap, &outcome, &replay, 1024 * MIB, &err));
    assert_int_equal(cap, 160 * MIB);
    assert_int_equal(outcome.counts.peak_device, cap);
    ASSERT_REFUSED(ERR_DEVICE_MEM, "the cap is", replay_run(&outcome, &replay, cap - MIB, &err));
    replay_free(&replay);
    scratch_remove(scratch.folder);
}

static const struct {
    const char *text, *words;
} refused[] = {
    {"", "nothing is taken"},
    {"op,id,bytes\n", "nothing is taken"},
    {"take,0,5\n", ":1: 'take,0,5' where a trace begins"},
    {"op,id,size\ntake,0,5\n", ":1: 'op,id,size' where a trace begins"},
    {"op,id,bytes\n# none\ntake,0\n", ":3: 'take,0' is not of the form"},
    {"op,id,bytes\ntake,0,5,6\n", "is not of the form"},
    {"op,id,bytes\ntake,-1,5\n", "is not of the form"},
    {"op,id,bytes\ntake,0,5 \n", "is not of the form"},
    {"op,id,bytes\ntake, 0,5\n", "is not of the form"},
    {"op,id,bytes\ntake,0,\n", "is not of the form"},
    {"op,id,bytes\ntake,0,0x5\n", "is not of the form"},
    {"op,id,bytes\ntake,0,99999999999999999999\n", "is not of the form"},
    {"op,id,bytes\nmove,0,5\n", "is not of the form"},
    {"op,id,bytes\ntake\n", "is not of the form"},
    {"op,id,bytes\n\ntake,0,5\n", "is not of the form"},
    {"op,id,bytes\ntake,0,0\n", "takes 0 bytes"},
    {"op,id,bytes\ntake,0,1099511627777\n", "1 to 2^40"},
    {"op,id,bytes\ntake,2,5\n", "id 2 must be below the 2 lines"},
    {"op,id,bytes\ntake,0,5\ntake,0,5\n", ":3: id 0 is taken and is there already"},
    {"op,id,bytes\ngive,0,5\n", "id 0 is given back and is not there"},
    {"op,id,bytes\ntake,0,5\ngive,0,5\ngive,0,5\n", ":4: id 0 is given back and is not there"},
    {"op,id,bytes\ntake,0,5\ngive,0,6\n", "gives 6 bytes back of id 0, which took 5"},
};

static void what_is_no_trace_is_told_with_its_line(void **state)
{
    struct err     err = {0};
    struct scratch scratch = open_scratch("trace");
    char           long_line[REPLAY_TEXT_MAX + 64] = "# ";

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++) {
        struct replay replay = on_host();
        write_plain(&scratch, refused[i].text);
        ASSERT_REFUSED(ERR_FORMAT, refused[i].words, replay_read(&replay, scratch.path, &err));
        replay_free(&replay);
    }
    for (size_t i = 2; i < sizeof long_line - 1; i++)
        long_line[i] = 'x';
    for (int i = 0; i < 2; i++) {
        struct replay replay = on_host();
        write_plain(&scratch, long_line);
        if (i == 0)
            ASSERT_REFUSED(ERR_FORMAT, "longer than", replay_read(&replay, scratch.path, &err));
        else
            ASSERT_REFUSED(ERR_IO, "cannot be opened", replay_read(&replay, "/nowhere/t", &err));
        replay_free(&replay);
    }
    scratch_remove(scratch.folder);
}

/* Cut anywhere, a packed trace is refused: nothing of it is played. */
static void a_packed_trace_that_is_cut_is_refused(void **state)
{
    struct err     err = {0};
    struct scratch scratch = open_scratch("trace");
    char          *packed = NULL;
    size_t         bytes = 0;

    (void)state;
    write_packed(&scratch, SMALL);
    ASSERT_OK(os_read_text(&packed, &bytes, scratch.path, MIB, &err));
    for (size_t length = 0; length < bytes; length++) {
        struct replay replay = on_host();
        scratch_write(scratch.path, packed, length);
        ASSERT_REFUSED(ERR_FORMAT, scratch.path, replay_read(&replay, scratch.path, &err));
        replay_free(&replay);
    }
    os_free(packed);
    scratch_remove(scratch.folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_traces_waste_little),
        cmocka_unit_test(plain_and_packed_are_the_same),
        cmocka_unit_test(the_smallest_cap_is_found),
        cmocka_unit_test(what_is_no_trace_is_told_with_its_line),
        cmocka_unit_test(a_packed_trace_that_is_cut_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
