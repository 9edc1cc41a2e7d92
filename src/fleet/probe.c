/*
 * probe.c - what GPU is there, asked by a process that lives for this one question.
 *
 * Asking opens a context in the driver, and whoever did that shares the driver's fate: a process
 * that supervises workers must not.  So the program is run once more, as `program probe GPU`, with
 * one end of a channel as descriptor 3.  It answers with one message, a JSON object of at most
 * 4096 bytes, and ends:
 *
 *     {"name": "NVIDIA H100 80GB HBM3", "total": bytes, "free": bytes, "major": 9, "minor": 0,
 *      "numeric": "what decides the bits of its results", "flops": FLOPs a second, 0: not tried,
 *      "link": bytes a second from pinned memory, 0: it cannot be told}
 *     {"code": number of an err_code, "sys": a library's status, "sentence": "device: ...",
 *      "absent": "no NVIDIA driver"}
 *
 * `program probe GPU HIDDEN HEADS` also tries how fast the GPU is at a model of that width; with
 * " bf16" after it, in bf16.
 *
 * Nothing in an answer is trusted: it may be cut, absurd, or never come.  A driver that hangs holds
 * nobody up for longer than the time limit; and what it takes to close a context is waited for only
 * by who needs the GPU's memory.
 *
 * Read next: child.c; engine/machine.c for who is asked in that process.
 */
#include "fleet/fleet_int.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ANSWER_BYTES_MAX = 4096, LOOK_MS = 100 };

/* ----------------------------------------------------------------------------- the one that asks
 */

static const char ADVICE[] = "see whether nvidia-smi answers, or use --device cpu";

/* A text of the answer that may be shown on a terminal; false: it is none. */
static bool read_text(char *out, size_t capacity, const json_t *answer, const char *key)
{
    const json_t *value = json_object_get(answer, key);
    size_t        length = json_string_length(value);
    const char   *text = json_string_value(value);

    if (text == NULL || length == 0 || length >= capacity || strlen(text) != length) return false;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7F) return false;
    memcpy(out, text, length + 1);
    return true;
}

static bool read_number(int64_t *out, const json_t *answer, const char *key, int64_t least,
                        int64_t most)
{
    const json_t *value = json_object_get(answer, key);

    *out = json_integer_value(value);
    return json_is_integer(value) && *out >= least && *out <= most;
}

static bool read_rate(double *out, const json_t *answer, const char *key)
{
    const json_t *value = json_object_get(answer, key);

    *out = json_number_value(value);
    return json_is_number(value) && *out >= 0 && *out <= 1e21;
}

/* NULL, or the name of what cannot be true. */
static const char *read_device(struct engine_device *out, double *flops_out, const json_t *answer)
{
    int64_t total, available, major, minor;

    if (!read_text(out->name, sizeof out->name, answer, "name")) return "its name";
    if (!read_text(out->numeric, sizeof out->numeric, answer, "numeric")) return "its arithmetic";
    if (!read_number(&total, answer, "total", 1, (int64_t)1 << 50)) return "its memory";
    if (!read_number(&available, answer, "free", 0, total)) return "its free memory";
    if (!read_number(&major, answer, "major", 1, 999)) return "its compute capability";
    if (!read_number(&minor, answer, "minor", 0, 999)) return "its compute capability";
    if (!read_rate(flops_out, answer, "flops")) return "its speed";
    if (!read_rate(&out->link_bytes_per_second, answer, "link")) return "the speed of its link";
    out->bytes_total = (uint64_t)total;
    out->bytes_free = (uint64_t)available;
    out->major = (int32_t)major;
    out->minor = (int32_t)minor;
    return NULL;
}

static const char *read_failure(struct engine_device *out, const json_t *answer, struct err *err)
{
    char    sentence[sizeof err->text];
    int64_t code, sys;

    if (!read_number(&code, answer, "code", ERR_USAGE, ERR_NUMERIC)) return "the kind of a failure";
    if (!read_number(&sys, answer, "sys", INT32_MIN, INT32_MAX)) return "a library's status";
    if (!read_text(sentence, sizeof sentence, answer, "sentence")) return "a failure";
    if (json_object_get(answer, "absent") != NULL &&
        !read_text(out->absent, sizeof out->absent, answer, "absent"))
        return "what is absent";
    (void)err_set(err, (enum err_code)code, (int)sys, ERR_WHERE, "%s", sentence);
    return NULL;
}

static int read_answer(struct engine_device *out, double *flops_out, const char *bytes,
                       size_t count, struct err *err)
{
    int         rc = ERR_OK;
    json_t     *answer = json_loadb(bytes, count, JSON_REJECT_DUPLICATES, NULL);
    const char *wrong = "no JSON object";

    *out = (struct engine_device){.major = 0};
    if (json_is_object(answer))
        wrong = json_object_get(answer, "code") != NULL ? read_failure(out, answer, err)
                                                        : read_device(out, flops_out, answer);
    if (wrong != NULL) {
        *out = (struct engine_device){.major = 0};
        *flops_out = 0;
        RAISE(err, ERR_DEVICE, 0,
              "device: the process that asks the GPU gave an answer that cannot be true (%s); %s",
              wrong, ADVICE);
    }
    rc = (int)err->code;
out:
    json_decref(answer);
    return rc;
}

/* One message into bytes_out [ANSWER_BYTES_MAX + 1]; *count_out 0: it ended without one. */
static int wait_for(int channel, double seconds, char *bytes_out, size_t *count_out,
                    struct err *err)
{
    int     rc = ERR_OK;
    double  until = os_seconds() + seconds;
    int64_t got = -1;

    while (got < 0) {
        int seen = os.poll(channel, POLLIN, LOOK_MS);
        if (seen > 0) got = os.recv(channel, bytes_out, ANSWER_BYTES_MAX + 1, MSG_DONTWAIT);
        if (seen > 0 && got < 0 && errno == ECONNRESET) got = 0;
        if (got < 0 && os_seconds() > until)
            RAISE(err, ERR_DEVICE, 0, "device: the NVIDIA driver did not answer within %.0f s; %s",
                  seconds, ADVICE);
    }
    *count_out = (size_t)got;
out:
    return rc;
}

struct probe {
    struct child child;
};

/* How long one that has answered may take to end by itself. */
static const double ENDING_SECONDS = 1;

void fleet_probe_end(struct probe *probe)
{
    char ending[96];

    if (probe == NULL) return;
    (void)child_end(&probe->child, ENDING_SECONDS, ending, sizeof ending);
    os_free(probe);
}

static int run(struct child *out, const struct probe_request *request, struct err *err)
{
    char                       gpu[16], hidden[24], heads[24];
    const struct engine_facts *trial = request->trial;
    const char                *argv[] = {"mural", "probe", gpu, NULL, NULL, NULL, NULL};

    (void)snprintf(gpu, sizeof gpu, "%d", request->gpu);
    if (trial != NULL) {
        (void)snprintf(hidden, sizeof hidden, "%lld", (long long)trial->hidden);
        (void)snprintf(heads, sizeof heads, "%lld", (long long)trial->heads);
        argv[3] = hidden;
        argv[4] = heads;
        if (trial->bf16) argv[5] = "bf16";
    }
    return child_run(out, request->program, argv, NULL, err);
}

int fleet_probe(struct engine_device *out, double *flops_out, struct probe **left_out,
                const struct probe_request *request, struct err *err)
{
    int           rc = ERR_OK;
    struct probe *probe = NULL;
    char          bytes[ANSWER_BYTES_MAX + 1], ending[96] = "ended";
    size_t        count = 0;

    *out = (struct engine_device){.major = 0};
    *flops_out = 0;
    *left_out = NULL;
    TRY(os_alloc((void **)&probe, 1, sizeof *probe, "a probe", err));
    probe->child = (struct child){.channel = -1};
    TRY(run(&probe->child, request, err));
    rc = wait_for(probe->child.channel, request->timeout_seconds, bytes, &count, err);
    if (rc != ERR_OK || count == 0)
        (void)child_end(&probe->child, rc == ERR_OK ? ENDING_SECONDS : 0, ending, sizeof ending);
    TRY(rc);
    if (count == 0)
        RAISE(err, ERR_DEVICE, 0, "device: the process that asks the GPU %s without an answer; %s",
              ending, ADVICE);
    child_hang_up(&probe->child);
    if (count > ANSWER_BYTES_MAX) count = 0; /* cut: no JSON object */
    TRY(read_answer(out, flops_out, bytes, count, err));
    *left_out = probe;
    probe = NULL;
out:
    fleet_probe_end(probe);
    return rc;
}

/* -------------------------------------------------------------------------- the one that is asked
 */

static json_t *device_json(const struct engine_device *device, double flops)
{
    return json_pack("{s:s, s:I, s:I, s:i, s:i, s:s, s:f, s:f}", "name", device->name, "total",
                     (json_int_t)device->bytes_total, "free", (json_int_t)device->bytes_free,
                     "major", device->major, "minor", device->minor, "numeric", device->numeric,
                     "flops", flops, "link", device->link_bytes_per_second);
}

static json_t *failure_json(const struct engine_device *device, const struct err *failure)
{
    json_t *answer = json_pack("{s:i, s:i, s:s}", "code", (int)failure->code, "sys", failure->sys,
                               "sentence", failure->text);

    if (answer != NULL && device->absent[0] != '\0')
        (void)json_object_set_new(answer, "absent", json_string(device->absent));
    return answer;
}

/* "24" -> 24; false: no number from 0 to `most`. */
static bool read_word(int64_t *out, const char *word, int64_t most)
{
    char *end = NULL;

    errno = 0;
    *out = (int64_t)strtoll(word, &end, 10);
    return errno == 0 && end != word && *end == '\0' && *out >= 0 && *out <= most;
}

static int read_words(struct engine_options *options_out, struct engine_facts *trial_out,
                      const char *const *words, size_t count, struct err *err)
{
    int     rc = ERR_OK;
    int64_t gpu = 0;
    bool    fits = count == 1 || count == 3 || (count == 4 && strcmp(words[3], "bf16") == 0);

    *trial_out = (struct engine_facts){.bf16 = count == 4};
    fits = fits && read_word(&gpu, words[0], INT32_MAX);
    if (fits && count > 1)
        fits = read_word(&trial_out->hidden, words[1], 1 << 20) &&
               read_word(&trial_out->heads, words[2], 1 << 20) && trial_out->heads > 0 &&
               trial_out->hidden % trial_out->heads == 0;
    if (!fits) RAISE(err, ERR_USAGE, 0, "'mural probe' is given GPU [HIDDEN HEADS [bf16]]");
    *options_out = (struct engine_options){.machine = ENGINE_CUDA, .gpu = (int32_t)gpu};
    options_out->precision = trial_out->bf16 ? PRECISION_BF16 : PRECISION_F32;
out:
    return rc;
}

int fleet_probe_run(const char *const *words, size_t word_count, struct err *err)
{
    enum { ALONE_SECONDS = 600 };
    int                   rc = ERR_OK;
    struct engine_options options;
    struct engine_facts   trial;
    struct engine_device  device;
    struct err            failure = {.code = ERR_OK};
    double                flops = 0;
    json_t               *answer = NULL;
    char                 *text = NULL;
    uint8_t               peeked;

    if (os.recv(PROBE_CHANNEL_FD, &peeked, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
        (errno == EBADF || errno == ENOTSOCK))
        RAISE(err, ERR_USAGE, 0, "a probe is started by mural itself, and not by hand");
    TRY(read_words(&options, &trial, words, word_count, err));
    /* Whoever asked may be dead by the time a driver hangs. */
    (void)alarm(ALONE_SECONDS);
    rc = engine_find_device(&device, &options, &failure);
    if (rc == ERR_OK) device.link_bytes_per_second = engine_link_speed(&options);
    if (rc == ERR_OK && trial.hidden > 0) rc = engine_speed(&flops, &options, &trial, &failure);
    answer = rc == ERR_OK ? device_json(&device, flops) : failure_json(&device, &failure);
    rc = ERR_OK;
    text = answer != NULL ? json_dumps(answer, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    if (text == NULL) RAISE(err, ERR_HOST_MEM, 0, "a probe has no memory for its answer");
    if (os.send(PROBE_CHANNEL_FD, text, strlen(text), MSG_NOSIGNAL) < 0)
        RAISE(err, ERR_PEER, errno, "a probe cannot answer: %s", strerror(errno));
out:
    free(text);
    json_decref(answer);
    return rc;
}
