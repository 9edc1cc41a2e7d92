/*
 * cuda_copy.c - between the host's memory and a GPU's, through pinned buffers.
 *
 * Owns a few buffers, used in turn.  Filling one takes far longer than its copy over the bus: all
 * threads fill, straight from the files where weights are mapped, while what was filled before is
 * copied and used on the stream.  The host waits for the stream only when every buffer is under
 * way. What is small shares a buffer.  Types are changed on the host, on the way into a buffer or
 * out of it, so that only what is needed crosses the bus.
 *
 * What lies in memory that could be pinned itself needs no buffer: pixels and latents, in what
 * another process passes them in, and what uploads come from again and again.
 *
 * Read next: host_read.c.
 */
#include "backend/cuda_int.h"
#include "backend/host_read.h"

/* Large enough that a copy's start costs nothing beside it, small enough to pin in 10 ms. */
#define BUFFER_BYTES ((int64_t)16 << 20)

int cuda_staging_open(struct cuda_staging *staging)
{
    int status = 0;

    staging->buffer_bytes = BUFFER_BYTES;
    for (int i = 0; i < STAGING_BUFFERS && status == 0; i++) {
        status = (int)cudaHostAlloc(&staging->buffer[i], (size_t)BUFFER_BYTES, 0);
        if (status == 0)
            status = (int)cudaEventCreateWithFlags(&staging->used[i], cudaEventDisableTiming);
    }
    return status;
}

void cuda_staging_pin(struct cuda_staging *staging, struct pinned_range range)
{
    char words[32];

    if (range.bytes == 0 || staging->range_count == PINNED_RANGES_MAX) return;
    if (cudaHostRegister(range.data, (size_t)range.bytes, cudaHostRegisterDefault) == cudaSuccess) {
        staging->ranges[staging->range_count++] = range;
        return;
    }
    (void)cudaGetLastError(); /* the next launch would tell it */
    log_line(LOG_DEBUG, "the driver does not pin %s that are copied from again and again",
             text_bytes(words, sizeof words, range.bytes));
}

void cuda_staging_unpin(struct cuda_staging *staging, cudaStream_t stream, const void *data)
{
    unsigned at = 0;

    while (at < staging->range_count && staging->ranges[at].data != data)
        at++;
    if (at == staging->range_count) return;
    /* The runtime does not say that it waits for copies itself. */
    (void)cudaStreamSynchronize(stream);
    if (cudaHostUnregister(staging->ranges[at].data) != cudaSuccess) (void)cudaGetLastError();
    staging->ranges[at] = staging->ranges[--staging->range_count];
}

void cuda_staging_close(struct cuda_staging *staging)
{
    for (unsigned i = 0; i < staging->range_count; i++)
        (void)cudaHostUnregister(staging->ranges[i].data);
    for (int i = 0; i < STAGING_BUFFERS; i++) {
        if (staging->used[i] != NULL) (void)cudaEventDestroy(staging->used[i]);
        if (staging->buffer[i] != NULL) (void)cudaFreeHost(staging->buffer[i]);
    }
    *staging = (struct cuda_staging){.current = 0};
}

/* A block [rows, cols] at (row, col) of m. */
static struct matrix block_of(struct matrix m, int64_t row, int64_t col, int64_t rows, int64_t cols)
{
    return matrix_cols(matrix_rows(m, row, rows), col, cols);
}

/* Room for m in the current buffer, or in the next one when its last copy has ended. */
static int place(struct cuda_staging *staging, struct matrix m, struct matrix *packed_out)
{
    const int64_t bytes = round_up_i64(m.rows * m.cols * dtype_bytes(m.dtype), 64);
    int           status = 0;

    must(bytes <= staging->buffer_bytes);
    if (staging->taken_bytes + bytes > staging->buffer_bytes) {
        double began = os_seconds();

        staging->current = (staging->current + 1) % STAGING_BUFFERS;
        staging->taken_bytes = 0;
        status = (int)cudaEventSynchronize(staging->used[staging->current]);
        staging->uploads.wait_seconds += os_seconds() - began;
    }
    *packed_out = m;
    packed_out->data = (char *)staging->buffer[staging->current] + staging->taken_bytes;
    packed_out->ld = m.cols;
    staging->taken_bytes += bytes;
    return status;
}

/* Called for each block that fits a buffer. */
typedef int (*block_fn)(struct cuda_staging *staging, cudaStream_t stream, struct matrix target,
                        struct matrix source);

static int for_blocks(struct cuda_staging *staging, cudaStream_t stream, block_fn run,
                      struct matrix target, struct matrix source, uint32_t element_bytes)
{
    const int64_t most = staging->buffer_bytes / element_bytes;
    const int64_t cols = min_i64(source.cols, most), rows = max_i64(1, most / max_i64(1, cols));
    int           status = 0;

    for (int64_t row = 0; row < source.rows && status == 0; row += rows)
        for (int64_t col = 0; col < source.cols && status == 0; col += cols) {
            int64_t h = min_i64(rows, source.rows - row), w = min_i64(cols, source.cols - col);

            status = run(staging, stream, block_of(target, row, col, h, w),
                         block_of(source, row, col, h, w));
        }
    return status;
}

/* Without gaps a copy is one run of bytes: pixels are rows of 12 bytes, millions of them. */
static int copy_rows(struct matrix target, struct matrix source, enum cudaMemcpyKind kind,
                     cudaStream_t stream)
{
    const size_t each = dtype_bytes(source.dtype);

    if (source.rows == 1 || (source.ld == source.cols && target.ld == target.cols))
        return (int)cudaMemcpyAsync(target.data, source.data,
                                    (size_t)source.rows * (size_t)source.cols * each, kind, stream);
    return (int)cudaMemcpy2DAsync(target.data, (size_t)target.ld * each, source.data,
                                  (size_t)source.ld * each, (size_t)source.cols * each,
                                  (size_t)source.rows, kind, stream);
}

/* Weights are read with care: their file may be cut. */
static int fill(struct cuda_staging *staging, struct matrix packed, struct matrix source)
{
    double began = os_seconds();
    int    status = 0;

    if (os_map_holds(source.data))
        status = host_read(source, packed.dtype, packed.data, 0);
    else
        k_cast_cpu(packed, source);
    staging->uploads.fill_seconds += os_seconds() - began;
    staging->uploads.bytes += (uint64_t)(packed.rows * packed.cols) * dtype_bytes(packed.dtype);
    return status == 0 ? 0 : STATUS_READ + status;
}

static int upload_block(struct cuda_staging *staging, cudaStream_t stream, struct matrix target,
                        struct matrix source)
{
    struct matrix packed, wanted = source;
    int           status;

    wanted.dtype = target.dtype;
    status = place(staging, wanted, &packed);
    if (status == 0) status = fill(staging, packed, source);
    if (status == 0) status = copy_rows(target, packed, cudaMemcpyHostToDevice, stream);
    return status != 0 ? status : (int)cudaEventRecord(staging->used[staging->current], stream);
}

/* The one that m lies in, with the gaps between its rows; NULL: none. */
static const struct pinned_range *range_of(const struct cuda_staging *staging, struct matrix m)
{
    const uint64_t bytes = (uint64_t)(m.rows * m.ld) * dtype_bytes(m.dtype);

    for (unsigned i = 0; i < staging->range_count; i++) {
        const struct pinned_range *range = &staging->ranges[i];
        const uint64_t             at = (uint64_t)((uintptr_t)m.data - (uintptr_t)range->data);

        if (at < range->bytes && bytes <= range->bytes - at) return range;
    }
    return NULL;
}

/* Waits, as is promised, but for the copy alone: what works with it is asked for after that. */
static int copy_at_once(struct matrix target, struct matrix source, enum cudaMemcpyKind kind,
                        cudaStream_t stream)
{
    int status = copy_rows(target, source, kind, stream);

    return status != 0 ? status : (int)cudaStreamSynchronize(stream);
}

int cuda_upload(struct cuda_staging *staging, cudaStream_t stream, struct matrix target,
                struct matrix source)
{
    const struct pinned_range *range =
        source.dtype == target.dtype ? range_of(staging, source) : NULL;

    if (range != NULL) {
        staging->uploads.bytes += (uint64_t)(source.rows * source.cols) * dtype_bytes(source.dtype);
        return range->quiet ? copy_rows(target, source, cudaMemcpyHostToDevice, stream)
                            : copy_at_once(target, source, cudaMemcpyHostToDevice, stream);
    }
    return for_blocks(staging, stream, upload_block, target, source, dtype_bytes(target.dtype));
}

static int download_block(struct cuda_staging *staging, cudaStream_t stream, struct matrix target,
                          struct matrix source)
{
    struct matrix packed;
    int           status = place(staging, source, &packed);

    if (status == 0) status = copy_rows(packed, source, cudaMemcpyDeviceToHost, stream);
    if (status == 0) status = (int)cudaEventRecord(staging->used[staging->current], stream);
    if (status == 0) status = (int)cudaEventSynchronize(staging->used[staging->current]);
    if (status == 0) k_cast_cpu(target, packed);
    return status;
}

int cuda_download(struct cuda_staging *staging, cudaStream_t stream, struct matrix target,
                  struct matrix source)
{
    if (source.dtype == target.dtype && range_of(staging, target) != NULL)
        return copy_at_once(target, source, cudaMemcpyDeviceToHost, stream);
    return for_blocks(staging, stream, download_block, target, source, dtype_bytes(source.dtype));
}
