/*
 * test_graph_cuda.c - what cuDNN says to our graphs, for cards that are not here.
 *
 * The library makes proposals for a card that is only described, without a device or a driver: so a
 * graph that is put together wrongly is found on any machine with the library.
 */
#include "../test.h"

#include "backend/cuda_graph.h"

#include <dlfcn.h>

/* The library wants a driver to be there, but asks it nothing: the one to link against will do. */
static const char STUB[] = "/usr/local/cuda/lib64/stubs/libcuda.so";

struct card {
    const char *name;
    int         version, processors, shared, l2_kb;
};

static const struct card cards[] = {{"NVIDIA A100-SXM4-80GB", 800, 108, 166912, 40960},
                                    {"NVIDIA GeForce RTX 3090", 860, 82, 101376, 6144},
                                    {"NVIDIA GeForce RTX 4090", 890, 128, 101376, 73728},
                                    {"NVIDIA H200", 900, 132, 232448, 51200},
                                    {"NVIDIA B200", 1000, 148, 232448, 129024},
                                    {"NVIDIA GeForce RTX 5090", 1200, 170, 101376, 98304}};

/* What differs comes first; the rest is as on every card, or does not matter to a proposal. */
static const char FACTS[] =
    "{\"deviceVer\":%d,\"multiProcessorCount\":%d,\"maxSharedMemoryPerBlockOptin\":%d,"
    "\"l2CacheSize\":%d,\"deviceName\":\"%s\",\"warpSize\":32,"
    "\"maxSharedMemoryPerBlock\":49152,\"reservedSharedMemoryPerBlock\":1024,"
    "\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,"
    "\"maxThreadsPerSM\":2048,\"regsPerBlock\":65536,\"totalGlobalMem\":25769803776,"
    "\"smClockRateKHz\":1980000,\"memClockRateKHz\":3201000,"
    "\"maxBlockSize\":[1024,1024,64],\"maxGridSize\":[2147483647,65535,65535],"
    "\"supportCoopLaunch\":1,\"pciDeviceId\":0,\"isTccDriver\":0,\"cudaDeviceId\":0,"
    "\"driverVer\":13000}";

static cudnnBackendDescriptor_t describe(const struct graph_library *library,
                                         const struct card          *card)
{
    cudnnBackendDescriptor_t d = NULL;
    char                     json[1024];
    int length = snprintf(json, sizeof json, FACTS, card->version, card->processors, card->shared,
                          card->l2_kb * 1024, card->name);

    assert_in_range(length, 1, (int)sizeof json - 1);
    assert_int_equal(library->cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d),
                     0);
    assert_int_equal(library->cudnnBackendSetAttribute(d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                                                       CUDNN_TYPE_CHAR, length + 1, json),
                     0);
    assert_int_equal(library->cudnnBackendFinalize(d), 0);
    return d;
}

static struct graph_library *open_library(void)
{
    static struct graph_library library;
    struct err                  err = {0};

    if (library.cudnnCreate != NULL) return &library;
    if (dlopen("libcuda.so.1", RTLD_NOW) == NULL && dlopen(STUB, RTLD_NOW) == NULL) {
        print_message("# skipped: neither a driver nor the toolkit's stand-in for one\n");
        skip();
    }
    if (graph_library_open(&library, &err) != ERR_OK) {
        print_message("# skipped: %s\n", err.text);
        skip();
    }
    return &library;
}

static void expect(const char *what, const struct graph_shape *shape, bool wanted)
{
    const struct graph_library *library = open_library();

    for (size_t i = 0; i < ARRAY_COUNT(cards); i++) {
        cudnnBackendDescriptor_t card = describe(library, &cards[i]);
        struct graph_answer      answer;
        int                      first;

        graph_ask(&answer, library, shape, NULL, card);
        first = graph_first_proposal(library, shape, &answer, card);
        print_message("# %s, %s: proposal %d\n", what, cards[i].name, first);
        (void)library->cudnnBackendDestroyDescriptor(card);
        if (wanted && first < 1) fail_msg("%s is refused for %s: %d", what, cards[i].name, first);
        if (!wanted && first > 0) fail_msg("%s is accepted for %s", what, cards[i].name);
    }
}

/* Rows of q, k, v in one packed matrix, result beside an MLP, as the transformer has them. */
static struct attention_request attention(int64_t rows, int64_t ld)
{
    struct matrix m = {NULL, DTYPE_BF16, rows, 3072, ld};

    return (struct attention_request){.q = m,
                                      .k = m,
                                      .v = m,
                                      .out = {NULL, DTYPE_BF16, rows, 3072, 15360},
                                      .heads = 24,
                                      .dim = 128};
}

static void attention_is_accepted(void **state)
{
    static const int64_t rows[] = {1, 16, 1536, 4608, 12800, 16896, 16900};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct attention_request request = attention(rows[i], 9216);
        struct graph_shape       shape = graph_attention_shape(&request);
        char                     what[64];
        (void)snprintf(what, sizeof what, "attention over %lld rows", (long long)rows[i]);
        expect(what, &shape, true);
    }
}

static struct graph_shape conv(int32_t side, int64_t in, int64_t out, int32_t stride)
{
    struct conv_request request = {.x = {NULL, DTYPE_BF16, (int64_t)side * side, in, in},
                                   .y = {NULL, DTYPE_BF16, 0, out, out},
                                   .bias = (const float *)(uintptr_t)64,
                                   .in_h = side,
                                   .in_w = side,
                                   .size = 3,
                                   .stride = stride,
                                   .pad_top = stride == 1,
                                   .pad_left = stride == 1,
                                   .pad_bottom = 1,
                                   .pad_right = 1};

    return graph_conv_shape(&request, side / stride, side / stride);
}

/* The convolution of some rows of the map's: the first ones, some in the middle, the last. */
enum place { FIRST, MIDDLE, LAST };
static struct graph_shape strip_of(struct graph_shape shape, int64_t rows, enum place place)
{
    const int64_t stride = shape.strides[0];

    shape.dims[4] = rows;
    shape.strides[1] = stride == 1 && place == FIRST;
    shape.strides[3] = place == LAST;
    shape.dims[0] = (rows - 1) * stride + 3 - shape.strides[1] - shape.strides[3];
    return shape;
}

/* A row has the same bits in a strip of any height only if the same proposal makes it; and the
 * library is not asked again. */
static void strips_get_what_their_map_gets(void **state)
{
    static const struct {
        int32_t side;
        int64_t in, out;
        int32_t stride;
    } cases[] = {{2048, 128, 128, 1}, {1024, 512, 256, 1}, {256, 16, 512, 1}, {1024, 256, 256, 2}};
    static const int64_t        rows[] = {1, 33};
    const struct graph_library *library = open_library();

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cards); i++) {
        cudnnBackendDescriptor_t card = describe(library, &cards[i]);
        for (size_t c = 0; c < ARRAY_COUNT(cases); c++) {
            struct graph_shape map =
                conv(cases[c].side, cases[c].in, cases[c].out, cases[c].stride);
            struct graph_answer answer;
            int                 first;

            graph_ask(&answer, library, &map, NULL, card);
            first = graph_first_proposal(library, &map, &answer, card);
            assert_true(first > 0);
            for (size_t r = 0; r < ARRAY_COUNT(rows); r++)
                for (enum place place = FIRST; place <= LAST; place++) {
                    struct graph_shape strip = strip_of(map, rows[r], place);
                    int                got;

                    assert_true(graph_answers(&answer, &strip));
                    got = graph_first_proposal(library, &strip, &answer, card);
                    if (got != first)
                        fail_msg("%s, case %zu, %lld rows, place %d: proposal %d, not %d",
                                 cards[i].name, c, (long long)rows[r], (int)place, got, first);
                }
        }
        (void)library->cudnnBackendDestroyDescriptor(card);
    }
}

/* Maps of another width, of other channels or of another stride are another question. */
static void other_maps_have_other_answers(void **state)
{
    const struct graph_library *library = open_library();
    cudnnBackendDescriptor_t    card = describe(library, &cards[0]);
    const struct graph_shape    map = conv(512, 256, 128, 1);
    const struct graph_shape    others[] = {conv(528, 256, 128, 1), conv(512, 128, 128, 1),
                                            conv(512, 256, 256, 1), conv(512, 256, 128, 2)};
    struct graph_answer         answer;

    (void)state;
    graph_ask(&answer, library, &map, NULL, card);
    assert_true(graph_answers(&answer, &map));
    for (size_t i = 0; i < ARRAY_COUNT(others); i++)
        assert_false(graph_answers(&answer, &others[i]));
    (void)library->cudnnBackendDestroyDescriptor(card);
}

static void convolutions_are_accepted(void **state)
{
    static const struct {
        int32_t side;
        int64_t in, out;
        int32_t stride;
    } cases[] = {{2048, 128, 128, 1}, {2048, 256, 128, 1}, {1024, 512, 512, 1},
                 {256, 512, 512, 1},  {256, 16, 512, 1},   {2048, 128, 128, 2}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct graph_shape shape = conv(cases[i].side, cases[i].in, cases[i].out, cases[i].stride);
        char               what[64];
        (void)snprintf(what, sizeof what, "convolution %lld -> %lld at %d px, stride %d",
                       (long long)cases[i].in, (long long)cases[i].out, cases[i].side,
                       cases[i].stride);
        expect(what, &shape, true);
    }
}

/* A result that is smaller than its picture: the test must be able to fail. */
static void nonsense_is_refused(void **state)
{
    struct graph_shape shape = conv(256, 512, 512, 1);

    (void)state;
    shape.dims[4] = 255;
    expect("a convolution that loses a row", &shape, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_accepted), cmocka_unit_test(convolutions_are_accepted),

        cmocka_unit_test(strips_get_what_their_map_gets),
        cmocka_unit_test(other_maps_have_other_answers), cmocka_unit_test(nonsense_is_refused)};
    return cmocka_run_group_tests_name("graph_cuda", tests, NULL, NULL);
}
