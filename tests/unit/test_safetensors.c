/*
 * test_safetensors.c - weights' containers: good ones of every odd kind, and every way to be wrong.
 *
 * Files are made from a header's text and a number of data bytes; the data are 0, 1, 2, ...
 */
#include "../test.h"
#include "weights/weights_int.h"

#include <errno.h>

#define A(text) "{\"a.weight\":" text "}"
#define TENSOR(dtype, shape, begin, end)                                                           \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

/* ------------------------------------------------------------------------------ making files */

struct bytes {
    uint8_t *data;
    size_t   count;
};

static struct bytes make_bytes(const char *header, size_t data_bytes)
{
    const size_t length = strlen(header);
    struct bytes out = {.count = 8 + length + data_bytes};

    out.data = malloc(out.count);
    assert_non_null(out.data);
    for (size_t i = 0; i < 8; i++) out.data[i] = (uint8_t)((uint64_t)length >> (8 * i));
    memcpy(out.data + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++) out.data[8 + length + i] = (uint8_t)i;
    return out;
}

static void write_bytes(const char *folder, const char *name, const void *data, size_t count)
{
    char path[512];

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    scratch_write(path, data, count);
}

static void write_shard(const char *folder, const char *name, const char *header, size_t data_bytes)
{
    struct bytes bytes = make_bytes(header, data_bytes);
    write_bytes(folder, name, bytes.data, bytes.count);
    free(bytes.data);
}

/* The code of opening these bytes, which must be ERR_OK or ERR_FORMAT; nothing stays open. */
static int try_bytes(const uint8_t *data, size_t count, struct err *err)
{
    struct safetensors *file = NULL;
    uint8_t            *exact = malloc(count == 0 ? 1 : count); /* so that reading on is seen */
    int                 rc;

    assert_non_null(exact);
    if (count > 0) memcpy(exact, data, count);
    *err = (struct err){0};
    rc = safetensors_open_memory(&file, exact, count, "some/bad.safetensors", err);
    assert_true(rc == ERR_OK ? file != NULL : file == NULL && rc == ERR_FORMAT);
    safetensors_close(file);
    free(exact);
    return rc;
}

/* ------------------------------------------------------------------------------- properties */

static void every_truncation_is_refused(void **state)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"a.weight\":" TENSOR("BF16", "[2,3]", 0, 12)
        ",\"b\":" TENSOR("F32", "[]", 12, 16) ",\"c\":" TENSOR("U8", "[3]", 16, 19) "}   ";
    struct bytes whole = make_bytes(header, 19);
    struct err   err;

    (void)state;
    for (size_t count = 0; count < whole.count; count++) {
        assert_int_equal(try_bytes(whole.data, count, &err), ERR_FORMAT);
        if (strncmp(err.text, "weights: 'some/bad.safetensors'", 31) != 0) fail_msg("%s", err.text);
        assert_non_null(strstr(err.text, count < 8 ? "has at least 8" : "truncated, download it"));
    }
    assert_int_equal(try_bytes(whole.data, whole.count, &err), ERR_OK);
    free(whole.data);
}

/* Tensors of random sizes at random places of the file, named in yet another order. */
static size_t random_header(char *out, size_t capacity, uint64_t *seed, uint64_t ends[12])
{
    uint32_t order[12];
    size_t   used = 0;
    uint64_t at = 0;

    for (uint32_t i = 0; i < 12; i++) {
        uint32_t other = (uint32_t)random_between(seed, 0, i);
        order[i] = order[other];
        order[other] = i;
        ends[i] = at += (uint64_t)random_between(seed, 0, 5);
    }
    for (uint32_t i = 0; i < 12; i++) {
        uint64_t begin = order[i] == 0 ? 0 : ends[order[i] - 1], end = ends[order[i]];
        used += (size_t)snprintf(out + used, capacity - used,
                                 "%s\"t%u\":{\"dtype\":\"U8\",\"shape\":[%d,1],"
                                 "\"data_offsets\":[%d,%d]}",
                                 i == 0 ? "{" : ",", order[i], (int)(end - begin), (int)begin,
                                 (int)end);
    }
    (void)snprintf(out + used, capacity - used, "}");
    return (size_t)at;
}

static void any_order_of_tensors_gives_their_bytes(void **state)
{
    uint64_t seed = 7;

    (void)state;
    for (int round = 0; round < 200; round++) {
        char                header[2048], name[16];
        uint64_t            ends[12], begin = 0;
        size_t              count = random_header(header, sizeof header, &seed, ends);
        struct bytes        bytes = make_bytes(header, count);
        struct safetensors *file = NULL;
        struct err          err = {0};

        ASSERT_OK(safetensors_open_memory(&file, bytes.data, bytes.count, "x", &err));
        assert_int_equal(safetensors_count(file), 12);
        for (uint32_t i = 0; i < 12; i++) {
            const struct safetensors_entry *entry;
            (void)snprintf(name, sizeof name, "t%u", i);
            entry = safetensors_find(file, name);
            assert_non_null(entry);
            assert_int_equal(entry->bytes, ends[i] - begin);
            if (entry->bytes > 0) assert_int_equal(*(const uint8_t *)entry->data, (uint8_t)begin);
            begin = ends[i];
            if (i > 0)
                assert_true(strcmp(safetensors_at(file, i - 1)->name,
                                   safetensors_at(file, i)->name) < 0);
        }
        assert_null(safetensors_find(file, "t12"));
        safetensors_close(file);
        bytes.data[bytes.count - 1] = 0; /* one byte more or less is refused */
        if (count > 0) assert_int_equal(try_bytes(bytes.data, bytes.count - 1, &err), ERR_FORMAT);
        free(bytes.data);
    }
}

/* --------------------------------------------------------------------------- what is refused */

struct corruption {
    const char *header;
    size_t      data_bytes;
    const char *words;
    bool        names_tensor;
};

static const struct corruption corruptions[] = {
    {"{\"b\":" TENSOR("U8", "[2]", 0, 2) ",\"a.weight\":" TENSOR("U8", "[2]", 4, 6) "}", 6,
     "bytes 2 to 4 of the data belong to no tensor", true},
    {"{\"b\":" TENSOR("U8", "[4]", 0, 4) ",\"a.weight\":" TENSOR("U8", "[4]", 2, 6) "}", 6,
     "begins at byte 2 of the data, inside b which ends at 4", true},
    {A(TENSOR("U8", "[2]", 4, 2)), 4, "begins at byte 4 of the data, after its end at 2", true},
    {A(TENSOR("bf16", "[2]", 0, 4)), 4, "has the dtype 'bf16', which safetensors does not", true},
    {A(TENSOR("U8", "[4294967296,4294967296]", 0, 4)), 4, "more elements than 2^64", true},
    {A(TENSOR("F32", "[4611686018427387904]", 0, 4)), 4, "more bits than 2^64", true},
    {A(TENSOR("F4", "[3]", 0, 2)), 2, "its 3 values of 4 bits do not fill whole bytes", true},
    {A(TENSOR("U8", "[2]", 9223372036854775808, 9223372036854775810)), 2,
     "a number beyond 2^63 - 1", false},
    {A(TENSOR("U8", "[2]", 9223372036854775805, 9223372036854775807)), 2,
     "bytes 0 to 9223372036854775805 of the data belong to no", true},
    {A(TENSOR("U8", "[9223372036854775807]", 0, 9223372036854775807)), 2, "more bits than", true},
    {A(TENSOR("U8", "[2,-1]", 0, 2)), 2, "dimension 1 of the shape is not a whole number", true},
    {A(TENSOR("U8", "[2.0]", 0, 2)), 2, "dimension 0 of the shape is not a whole number", true},
    {A(TENSOR("U8", "[\"2\"]", 0, 2)), 2, "dimension 0 of the shape is not a whole number", true},
    {A(TENSOR("U8", "2", 0, 2)), 2, "has no shape", true},
    {A(TENSOR("U8", "[1,1,1,1,1,1,1,1,2]", 0, 2)), 2, "has 9 dimensions (limit 8)", true},
    {A(TENSOR("U8", "[2]", -2, 0)), 2, "data_offsets are not whole numbers of at least 0", true},
    {A(TENSOR("U8", "[2]", 0, 2.0)), 2, "data_offsets are not whole numbers of at least 0", true},
    {A("{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2,4]}"), 2,
     "has no data_offsets of two numbers", true},
    {A("{\"dtype\":\"U8\",\"shape\":[2]}"), 2, "has no data_offsets of two numbers", true},
    {A("{\"dtype\":8,\"shape\":[2],\"data_offsets\":[0,2]}"), 2, "has no dtype", true},
    {A(TENSOR("U8", "[3]", 0, 2)), 2, "has 2 bytes of data, but its shape needs 3", true},
    {A(TENSOR("BF16", "[1]", 0, 3)), 3, "has 3 bytes of data, but its shape needs 2", true},
    {A(TENSOR("U8", "[8]", 0, 8)), 5, "but the file ends at", true},
    {A(TENSOR("U8", "[2]", 0, 2)), 5, "goes on for 3 bytes after its last tensor", false},
    {"{}", 1, "goes on for 1 bytes after its last tensor", false},
    {A("[1,2]"), 0, "is not described by an object", true},
    {A("null"), 0, "is not described by an object", true},
    {"{\"a.weight\":" TENSOR("U8", "[1]", 0, 1) ",\"a.weight\":" TENSOR("U8", "[1]", 1, 2) "}", 2,
     "the header names something twice", true},
    {"{\"a.weight\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "the header names something twice", false},
    {"{\"a\xff\":1}", 0, "the header is not UTF-8 at byte 3", false},
    {"{\"a\":\"\xed\xa0\x80\"}", 0, "the header is not UTF-8 at byte 6", false},
    {"{\"a\\u0000b\":1}", 0, "is not valid JSON", false},
    {"{\"a\":[[[[[[[[1]]]]]]]]}", 0, "nests deeper than 8 levels at byte 12", false},
    {"[1]", 0, "does not begin with '{'", false},
    {" {}", 0, "does not begin with '{'", false},
    {"", 4, "does not begin with '{'", false},
    {"{\"a\":1", 0, "is not valid JSON", false},
    {"{}x", 0, "is not valid JSON", false},
    {"{} {}", 0, "is not valid JSON", false},
    {"{\"__metadata__\":[1]}", 0, "__metadata__ is not an object", false},
    {"{\"__metadata__\":{\"key\":1}}", 0, "not text under 'key'", false},
};

static void every_corruption_has_its_sentence(void **state)
{
    char       texts[ARRAY_COUNT(corruptions)][512];
    struct err err;

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(corruptions); i++) {
        const struct corruption *c = &corruptions[i];
        struct bytes             bytes = make_bytes(c->header, c->data_bytes);
        int                      rc = try_bytes(bytes.data, bytes.count, &err);

        if (rc != ERR_FORMAT) fail_msg("%s was taken", c->header);
        if (strstr(err.text, c->words) == NULL) fail_msg("%s: '%s'", c->header, err.text);
        if (strncmp(err.text, "weights: 'some/bad.safetensors'", 31) != 0) fail_msg("%s", err.text);
        if (c->names_tensor && strstr(err.text, "a.weight") == NULL) fail_msg("%s", err.text);
        memcpy(texts[i], err.text, sizeof texts[i]);
        free(bytes.data);
    }
    for (size_t i = 0; i < ARRAY_COUNT(corruptions); i++)
        for (size_t k = 0; k < ARRAY_COUNT(corruptions); k++)
            if (strstr(texts[k], corruptions[i].words) != NULL &&
                strstr(texts[i], corruptions[k].words) == NULL)
                fail_msg("'%s' is also told of '%s'", texts[k], corruptions[i].header);
}

static void lengths_of_headers_are_limited(void **state)
{
    uint8_t    bytes[16] = {0};
    struct err err;

    (void)state;
    bytes[0] = 9; /* one more than there are */
    assert_int_equal(try_bytes(bytes, sizeof bytes, &err), ERR_FORMAT);
    assert_non_null(strstr(err.text, "needs a header of 9 bytes, but the file ends at byte 16"));
    memcpy(bytes, "\x01\xe1\xf5\x05\0\0\0\0", 8);
    assert_int_equal(try_bytes(bytes, sizeof bytes, &err), ERR_FORMAT);
    assert_non_null(strstr(err.text, "claims a header of 100000001 bytes (limit 100000000)"));
    memset(bytes, 0xff, 8);
    assert_int_equal(try_bytes(bytes, sizeof bytes, &err), ERR_FORMAT);
    assert_non_null(strstr(err.text, "claims a header of 18446744073709551615 bytes"));
}

/* `{"a":` + piece, many times + `]}`: small pieces of text that would cost the parser much more. */
static void check_bomb(const char *start, const char *piece, size_t times, const char *words)
{
    const size_t length = strlen(piece);
    char        *header = malloc(strlen(start) + length * times + 3);
    struct bytes bytes;
    struct err   err;
    size_t       at = strlen(start);

    assert_non_null(header);
    memcpy(header, start, at);
    for (size_t i = 0; i < times; i++, at += length) memcpy(header + at, piece, length);
    memcpy(header + at, "]}", 3);
    bytes = make_bytes(header, 0);
    assert_int_equal(try_bytes(bytes.data, bytes.count, &err), ERR_FORMAT);
    if (strstr(err.text, words) == NULL) fail_msg("%s...: %s", start, err.text);
    free(bytes.data);
    free(header);
}

static void bombs_do_not_reach_the_parser(void **state)
{
    (void)state;
    check_bomb("{\"a\":", "[", 100, "nests deeper than 8 levels");
    check_bomb("{\"a\":{\"shape\":[1", ",1", 100, "a list at byte");
    check_bomb("{\"a\":[[]", ",[]", 200001, "lists more than 100000 tensors");
    check_bomb("{\"a\":[1", ",1", 100, "a list at byte");
    check_bomb("{\"a\":[{}", ",{}", 100, "a list at byte");
    check_bomb("{\"a\":[{}", ",[{}]", 100002, "lists more than 100000 tensors");
    check_bomb("{\"a\":1", ",\"a\":1", 500001, "lists more than 100000 tensors");
    check_bomb("{\"\\\"[[[[[[[[[[[[\":[", "", 1, "is not described by an object");
}

/* ----------------------------------------------------------------------------- what is taken */

static void scalars_empty_tensors_and_odd_places_are_legal(void **state)
{
    static const char header[] =
        "{\"flag\":" TENSOR("BOOL", "[1]", 0, 1) ",\"none\":" TENSOR("F32", "[0,7]", 1, 1)
        ",\"odd\":" TENSOR("F32", "[1,2]", 1, 9) ",\"scalar\":" TENSOR("BF16", "[]", 9, 11)
        ",\"void\":" TENSOR("I64", "[3,0,9223372036854775807]", 11, 11)
        ",\"deep\":" TENSOR("F8_E4M3", "[1,1,1,1,1,1,1,2]", 11, 13) "}  \n";
    struct bytes                    bytes = make_bytes(header, 13);
    struct safetensors             *file = NULL;
    const struct safetensors_entry *entry;
    struct err                      err = {0};

    (void)state;
    ASSERT_OK(safetensors_open_memory(&file, bytes.data, bytes.count, "x", &err));
    assert_int_equal(safetensors_count(file), 6);
    assert_string_equal(safetensors_path(file), "x");
    entry = safetensors_find(file, "scalar");
    assert_int_equal(entry->rank, 0);
    assert_int_equal(entry->bytes, 2);
    assert_true(entry->usable && entry->dtype == DTYPE_BF16);
    entry = safetensors_find(file, "odd");
    assert_memory_equal(entry->data, "\1\2\3\4\5\6\7\10", 8);
    assert_true(entry->rank == 2 && entry->shape[0] == 1 && entry->shape[1] == 2);
    entry = safetensors_find(file, "none");
    assert_true(entry->bytes == 0 && entry->shape[1] == 7);
    entry = safetensors_find(file, "flag");
    assert_false(entry->usable);
    assert_string_equal(entry->dtype_name, "BOOL");
    assert_int_equal(safetensors_find(file, "deep")->rank, 8);
    assert_int_equal(safetensors_find(file, "deep")->dtype, DTYPE_F8_E4M3);
    assert_int_equal(safetensors_find(file, "void")->bytes, 0);
    assert_null(safetensors_find(file, ""));
    safetensors_close(file);
    free(bytes.data);
    bytes = make_bytes("{}", 0);
    ASSERT_OK(safetensors_open_memory(&file, bytes.data, bytes.count, "x", &err));
    assert_int_equal(safetensors_count(file), 0);
    assert_null(safetensors_find(file, "a"));
    safetensors_close(file);
    free(bytes.data);
}

/* The format's list, each with the bits of one value. */
static void every_type_has_its_size(void **state)
{
    static const struct {
        const char *name;
        int         bits;
        bool        usable;
    } types[] = {
        {"BOOL", 8, false},        {"F4", 4, false},          {"F6_E2M3", 6, false},
        {"F6_E3M2", 6, false},     {"U8", 8, false},          {"I8", 8, false},
        {"F8_E5M2", 8, true},      {"F8_E4M3", 8, true},      {"F8_E8M0", 8, false},
        {"F8_E4M3FNUZ", 8, false}, {"F8_E5M2FNUZ", 8, false}, {"I16", 16, false},
        {"U16", 16, false},        {"F16", 16, true},         {"BF16", 16, true},
        {"I32", 32, false},        {"U32", 32, false},        {"F32", 32, true},
        {"C64", 64, false},        {"F64", 64, false},        {"I64", 64, false},
        {"U64", 64, false},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        char                            header[128];
        struct bytes                    bytes;
        struct safetensors             *file = NULL;
        const struct safetensors_entry *entry;
        struct err                      err = {0};

        (void)snprintf(header, sizeof header,
                       "{\"t\":{\"dtype\":\"%s\",\"shape\":[4],\"data_offsets\":[0,%d]}}",
                       types[i].name, types[i].bits / 2);
        bytes = make_bytes(header, (size_t)types[i].bits / 2);
        ASSERT_OK(safetensors_open_memory(&file, bytes.data, bytes.count, "x", &err));
        entry = safetensors_find(file, "t");
        assert_string_equal(entry->dtype_name, types[i].name);
        assert_int_equal(entry->usable, types[i].usable);
        if (entry->usable) assert_int_equal(entry->bytes, 4 * dtype_bytes(entry->dtype));
        safetensors_close(file);
        free(bytes.data);
    }
}

/* ----------------------------------------------------------------------------------- shards */

#define ONE "{\"a.weight\":" TENSOR("U8", "[2]", 0, 2) ",\"b\":" TENSOR("U8", "[1]", 2, 3) "}"
#define TWO "{\"c\":" TENSOR("BF16", "[2]", 0, 4) "}"
#define MAP "\"weight_map\":{\"a.weight\":\"one.st\",\"b\":\"one.st\",\"c\":\"two.st\"}"

static void shards_make(char folder[256], char path[300])
{
    scratch_make(folder, 256);
    write_shard(folder, "one.st", ONE, 3);
    write_shard(folder, "two.st", TWO, 4);
    (void)snprintf(path, 300, "%s/m.index.json", folder);
}

static void shards_are_one_list(void **state)
{
    static const char *const indexes[] = {"{\"metadata\":{\"total_size\":7}," MAP "}", "{" MAP "}",
                                          "{\"metadata\":{}," MAP "}"};
    char                     folder[256], path[300];
    struct err               err = {0};

    (void)state;
    shards_make(folder, path);
    for (size_t i = 0; i < ARRAY_COUNT(indexes); i++) {
        struct safetensors *file = NULL;
        uint64_t            bytes = 0, length = 2 * 8 + strlen(ONE) + 3 + strlen(TWO) + 4;

        write_bytes(folder, "m.index.json", indexes[i], strlen(indexes[i]));
        ASSERT_OK(safetensors_open(&file, path, &err));
        assert_int_equal(safetensors_count(file), 3);
        assert_memory_equal(safetensors_find(file, "b")->data, "\2", 1);
        assert_memory_equal(safetensors_find(file, "c")->data, "\0\1\2\3", 4);
        assert_non_null(strstr(safetensors_find(file, "c")->file, "/two.st"));
        assert_non_null(strstr(safetensors_find(file, "b")->file, "/one.st"));
        assert_string_equal(safetensors_path(file), path);
        safetensors_close(file);
        ASSERT_OK(safetensors_file_bytes(&bytes, path, &err));
        assert_int_equal(bytes, length);
    }
    scratch_remove(folder);
}

static void indexes_must_tell_the_truth(void **state)
{
    static const struct {
        const char *index, *words;
    } cases[] = {
        {"{\"weight_map\":{\"a.weight\":\"one.st\",\"b\":\"one.st\",\"c\":\"three.st\"}}",
         "three.st'"},
        {"{\"weight_map\":{\"a.weight\":\"../one.st\"}}", "'../one.st' is not a plain file name"},
        {"{\"weight_map\":{\"a.weight\":\"..\"}}", "'..' is not a plain file name"},
        {"{\"weight_map\":{\"a.weight\":\"sub/one.st\"}}", "is not a plain file name"},
        {"{\"weight_map\":{\"a.weight\":\"/etc/passwd\"}}", "is not a plain file name"},
        {"{\"weight_map\":{\"a.weight\":\"\"}}", "'' is not a plain file name"},
        {"{\"weight_map\":{\"a.weight\":\"two.st\",\"b\":\"one.st\",\"c\":\"two.st\"}}",
         "says that a.weight is in 'two.st', but it is in one.st"},
        {"{\"weight_map\":{\"a.weight\":\"one.st\",\"b\":\"one.st\",\"c\":\"two.st\","
         "\"d\":\"two.st\"}}",
         "says that d is in 'two.st', but it is in no shard"},
        {"{\"weight_map\":{\"a.weight\":\"one.st\",\"c\":\"two.st\"}}", "does not list b, which"},
        {"{\"metadata\":{\"total_size\":8}," MAP "}",
         "says total_size 8, but the shards hold 7 bytes of tensors"},
        {"{\"metadata\":{\"total_size\":-1}," MAP "}", "says total_size -1"},
        {"{\"weight_map\":{\"a.weight\":1}}", "does not name a file for a.weight"},
        {"{\"weight_map\":{}}", "has no weight_map"},
        {"{\"weight_map\":[]}", "has no weight_map"},
        {"{}", "has no weight_map"},
        {"[]", "has no weight_map"},
        {"{", "not valid JSON"},
        {"{\"weight_map\":{\"a.weight\":\"one.st\",\"a.weight\":\"two.st\"}}", "not valid JSON"},
    };
    char                folder[256], path[300];
    struct safetensors *file = NULL;
    struct err          err;

    (void)state;
    shards_make(folder, path);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        write_bytes(folder, "m.index.json", cases[i].index, strlen(cases[i].index));
        ASSERT_REFUSED(i == 0 ? ERR_IO : ERR_FORMAT, cases[i].words,
                       safetensors_open(&file, path, &err));
        assert_non_null(strstr(err.text, folder));
        assert_memory_equal(err.text, "weights: ", 9);
        assert_null(file);
    }
    write_bytes(folder, "m.index.json", cases[0].index, strlen(cases[0].index));
    uint64_t bytes = 9;
    ASSERT_REFUSED(ERR_FORMAT, "three.st' is missing, which '",
                   safetensors_file_bytes(&bytes, path, &err));
    assert_int_equal(bytes, 9);
    scratch_remove(folder);
}

static void shards_are_checked_like_files(void **state)
{
    static const char   map[] = "{" MAP "}";
    char                folder[256], path[300];
    struct safetensors *file = NULL;
    struct err          err;

    (void)state;
    shards_make(folder, path);
    write_bytes(folder, "m.index.json", map, strlen(map));
    write_shard(folder, "two.st", TWO, 3);
    ASSERT_REFUSED(ERR_FORMAT, "two.st': c is needed up to", safetensors_open(&file, path, &err));
    write_bytes(folder, "two.st", "", 0);
    ASSERT_REFUSED(ERR_FORMAT, "two.st' has 0 bytes", safetensors_open(&file, path, &err));
    write_shard(folder, "two.st", "{\"b\":" TENSOR("U8", "[1]", 0, 1) "}", 1);
    ASSERT_REFUSED(ERR_FORMAT, "b stands in two shards", safetensors_open(&file, path, &err));
    assert_non_null(strstr(err.text, "one.st'"));
    assert_non_null(strstr(err.text, "two.st'"));
    (void)snprintf(path, sizeof path, "%s/none.safetensors", folder);
    ASSERT_REFUSED(ERR_IO, "No such file", safetensors_open(&file, path, &err));
    ASSERT_REFUSED(ERR_IO, "is not a file", safetensors_open(&file, folder, &err));
    scratch_remove(folder);
}

/* ------------------------------------------------------------------------- a short machine */

static int    calls_left;
static void *(*real_calloc)(size_t, size_t);
static void *(*real_mmap)(void *, size_t, int, int, int, int64_t);

static void *scarce_calloc(size_t count, size_t bytes)
{
    if (calls_left-- > 0) return real_calloc(count, bytes);
    errno = ENOMEM;
    return NULL;
}

static void *scarce_mmap(void *address, size_t bytes, int protection, int flags, int fd,
                         int64_t offset)
{
    if (calls_left-- > 0) return real_mmap(address, bytes, protection, flags, fd, offset);
    errno = ENOMEM;
    return (void *)-1; /* MAP_FAILED */
}

static void memory_may_end_at_any_call(void **state)
{
    static const char   map[] = "{" MAP "}";
    char                folder[256], path[300];
    struct safetensors *file = NULL;
    struct err          err;

    (void)state;
    shards_make(folder, path);
    write_bytes(folder, "m.index.json", map, strlen(map));
    real_calloc = os.calloc;
    real_mmap = os.mmap;
    for (int kind = 0; kind < 2; kind++) {
        int rc = ERR_IO, failures = 0;
        for (; rc != ERR_OK && failures < 100; failures++) {
            err = (struct err){0};
            calls_left = failures;
            if (kind == 0) os.calloc = scarce_calloc;
            if (kind == 1) os.mmap = scarce_mmap;
            rc = safetensors_open(&file, path, &err);
            os.calloc = real_calloc;
            os.mmap = real_mmap;
            if (rc != ERR_OK) assert_int_equal(rc, kind == 0 ? ERR_HOST_MEM : ERR_IO);
            assert_int_equal(rc == ERR_OK, file != NULL);
        }
        assert_true(rc == ERR_OK && failures > 2);
        safetensors_close(file);
        file = NULL;
    }
    safetensors_close(NULL);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(any_order_of_tensors_gives_their_bytes),
        cmocka_unit_test(every_corruption_has_its_sentence),
        cmocka_unit_test(lengths_of_headers_are_limited),
        cmocka_unit_test(bombs_do_not_reach_the_parser),
        cmocka_unit_test(scalars_empty_tensors_and_odd_places_are_legal),
        cmocka_unit_test(every_type_has_its_size),
        cmocka_unit_test(shards_are_one_list),
        cmocka_unit_test(indexes_must_tell_the_truth),
        cmocka_unit_test(shards_are_checked_like_files),
        cmocka_unit_test(memory_may_end_at_any_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
