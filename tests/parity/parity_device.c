/*
 * parity_device.c - whole posters on the GPU: near to the CPU's, and the same bytes twice.
 *
 * A tiny model with random weights paints a poster of several tiles.  Needs a device; says so.
 */
#include "../scratch_model.h"

#include "engine/engine.h"
#include "image/image.h"
#include "mural.h"

#include <math.h>

static int make_model(void **state)
{
    (void)state;
    return scratch_model_make(
        (struct synth_request){.spec = "tiny", .dtype = DTYPE_BF16, .seed = 7});
}

static void skip_without_device(void)
{
    struct err            err = {0};
    struct engine_device  device;
    struct engine_options options = {.machine = ENGINE_CUDA};

    if (engine_find_device(&device, &options, &err) == ERR_OK) return;
    print_message("# skipped: %s\n", err.text);
    skip();
}

/* A poster of 2 x 2 tiles at folder/name. */
static void paint(char path[256], const char *name, const char *device, const char *precision)
{
    struct mural_error error;
    mural_job         *job = NULL;
    char               words[4][300];
    const char        *settings[] = {words[0],
                                     words[1],
                                     words[2],
                                     words[3],
                                     "prompt=a fox in the snow",
                                     "width=208",
                                     "height=144",
                                     "tile_px=128",
                                     "overlap_px=32",
                                     "steps=3",
                                     "draft_steps=3",
                                     "draft_px=64",
                                     "metadata=false"};

    (void)snprintf(path, 256, "%s/%s.tif", folder, name);
    (void)snprintf(words[0], sizeof words[0], "model=%s", model);
    (void)snprintf(words[1], sizeof words[1], "output=%s", path);
    (void)snprintf(words[2], sizeof words[2], "device=%s", device);
    (void)snprintf(words[3], sizeof words[3], "precision=%s", precision);
    if (mural_job_open(&job, MURAL_RENDER, settings, ARRAY_COUNT(settings), NULL, &error) != 0 ||
        mural_job_run(job, NULL, NULL, &error) != 0)
        fail_msg("%s on %s: %s", name, device, error.text);
    mural_job_close(job);
}

static double psnr_of(const char *a_path, const char *b_path)
{
    struct err   err = {0};
    struct image a = {0}, b = {0};
    double       squares = 0;
    int64_t      count;

    ASSERT_OK(image_read(&a, a_path, &err));
    ASSERT_OK(image_read(&b, b_path, &err));
    assert_int_equal(a.w, b.w);
    assert_int_equal(a.h, b.h);
    count = 3 * (int64_t)a.w * a.h;
    for (int64_t i = 0; i < count; i++) {
        double d = (a.rgb[i] - b.rgb[i]) / 65535.0;
        squares += d * d;
    }
    image_close(&a);
    image_close(&b);
    return squares == 0 ? 200 : -10 * log10(squares / (double)count);
}

/* As for the reference pipelines: 50 dB is a mean error of a third of a percent. */
static void posters_are_near_the_cpu_s(void **state)
{
    char   cpu[256], gpu[256];
    double psnr;

    (void)state;
    skip_without_device();
    paint(cpu, "cpu-f32", "cpu", "f32");
    paint(gpu, "gpu-f32", "cuda", "f32");
    psnr = psnr_of(cpu, gpu);
    print_message("# f32: PSNR %.1f dB\n", psnr);
    assert_true(psnr >= 50);
    paint(gpu, "gpu-bf16", "cuda", "bf16");
    psnr = psnr_of(cpu, gpu);
    print_message("# bf16: PSNR %.1f dB\n", psnr);
    assert_true(psnr >= 30);
}

static void the_same_poster_twice_is_the_same_bytes(void **state)
{
    static const char *const precisions[] = {"bf16", "f32"};

    (void)state;
    skip_without_device();
    for (size_t i = 0; i < ARRAY_COUNT(precisions); i++) {
        struct err err = {0};
        char       path[256], *bytes[2];
        size_t     count[2];

        for (int turn = 0; turn < 2; turn++) {
            char name[32];
            (void)snprintf(name, sizeof name, "%s-%d", precisions[i], turn);
            paint(path, name, "cuda", precisions[i]);
            ASSERT_OK(os_read_text(&bytes[turn], &count[turn], path, 1 << 26, &err));
        }
        assert_int_equal(count[0], count[1]);
        assert_memory_equal(bytes[0], bytes[1], count[0]);
        os_free(bytes[0]);
        os_free(bytes[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(posters_are_near_the_cpu_s),
                                       cmocka_unit_test(the_same_poster_twice_is_the_same_bytes)};
    return cmocka_run_group_tests_name("device", tests, make_model, scratch_model_remove);
}
