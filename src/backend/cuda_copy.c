/*
 * cuda_copy.c - between the host's memory and a GPU's, through pinned buffers.
 *
 * Owns two buffers: while one travels, the next is filled.  Types are changed on the host, by all
 * threads, on the way into the buffer or out of it, so that only what is needed crosses the bus.
 */
#include "backend/cuda_int.h"

/* Large enough that a copy's start costs nothing beside it, small enough to pin in 20 ms. */
#define STAGING_BYTES ((int64_t)32 << 20)

int cuda_staging_open(struct cuda_staging *staging)
{
    int status = 0;

    for (int i = 0; i < STAGING_BUFFERS && status == 0; i++) {
        status = (int)cudaHostAlloc(&staging->buffer[i], (size_t)STAGING_BYTES, 0);
        if (status == 0)
            status = (int)cudaEventCreateWithFlags(&staging->used[i], cudaEventDisableTiming);
    }
    return status;
}

void cuda_staging_close(struct cuda_staging *staging)
{
    for (int i = 0; i < STAGING_BUFFERS; i++) {
        if (staging->used[i] != NULL) (void)cudaEventDestroy(staging->used[i]);
        if (staging->buffer[i] != NULL) (void)cudaFreeHost(staging->buffer[i]);
    }
    *staging = (struct cuda_staging){.next = 0};
}

/* A block [rows, cols] at (row, col) of m. */
static struct matrix block_of(struct matrix m, int64_t row, int64_t col, int64_t rows, int64_t cols)
{
    return matrix_cols(matrix_rows(m, row, rows), col, cols);
}

/* Called for each block that fits a buffer; `packed` is the block in the buffer. */
typedef int (*block_fn)(struct cuda_staging *staging, cudaStream_t stream, unsigned buffer,
                        struct matrix target, struct matrix source);

static int for_blocks(struct cuda_staging *staging, cudaStream_t stream, block_fn run,
                      struct matrix target, struct matrix source, uint32_t element_bytes)
{
    const int64_t most = STAGING_BYTES / element_bytes;
    const int64_t cols = min_i64(source.cols, most), rows = max_i64(1, most / max_i64(1, cols));
    int           status = 0;

    for (int64_t row = 0; row < source.rows && status == 0; row += rows)
        for (int64_t col = 0; col < source.cols && status == 0; col += cols) {
            int64_t  h = min_i64(rows, source.rows - row), w = min_i64(cols, source.cols - col);
            unsigned buffer = staging->next++ % STAGING_BUFFERS;

            status = (int)cudaEventSynchronize(staging->used[buffer]);
            if (status == 0)
                status = run(staging, stream, buffer, block_of(target, row, col, h, w),
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

static int upload_block(struct cuda_staging *staging, cudaStream_t stream, unsigned buffer,
                        struct matrix target, struct matrix source)
{
    struct matrix packed = {staging->buffer[buffer], target.dtype, source.rows, source.cols,
                            source.cols};
    int           status;

    k_cast_cpu(packed, source);
    status = copy_rows(target, packed, cudaMemcpyHostToDevice, stream);
    return status != 0 ? status : (int)cudaEventRecord(staging->used[buffer], stream);
}

int cuda_upload(struct cuda_staging *staging, cudaStream_t stream, struct matrix target,
                struct matrix source)
{
    return for_blocks(staging, stream, upload_block, target, source, dtype_bytes(target.dtype));
}

static int download_block(struct cuda_staging *staging, cudaStream_t stream, unsigned buffer,
                          struct matrix target, struct matrix source)
{
    struct matrix packed = {staging->buffer[buffer], source.dtype, source.rows, source.cols,
                            source.cols};
    int           status = copy_rows(packed, source, cudaMemcpyDeviceToHost, stream);

    if (status == 0) status = (int)cudaEventRecord(staging->used[buffer], stream);
    if (status == 0) status = (int)cudaEventSynchronize(staging->used[buffer]);
    if (status == 0) k_cast_cpu(target, packed);
    return status;
}

int cuda_download(struct cuda_staging *staging, cudaStream_t stream, struct matrix target,
                  struct matrix source)
{
    return for_blocks(staging, stream, download_block, target, source, dtype_bytes(source.dtype));
}
