/*
 * host_read.c - matrices of the host on their way to a machine, as bytes of another type.
 *
 * Owns nothing.  Knows neither machines nor whose bytes it reads: a file's, mapped, or memory of
 * any kind.
 *
 * Read next: parcels.c, cuda_copy.c.
 */
#include "backend/host_read.h"

#include <omp.h>

/* What one thread reads at a time; what is cast on the way rests in a buffer of its stack. */
static const int64_t CHUNK_BYTES = 1 << 20;
enum { CAST_BYTES = 16384 };

/* `count` neighbours. */
static int read_run(const char *source, enum dtype from, int64_t count, enum dtype to, char *out)
{
    char          buffer[CAST_BYTES] __attribute__((aligned(64)));
    const int64_t from_bytes = dtype_bytes(from), to_bytes = dtype_bytes(to);
    const int64_t most = CAST_BYTES / from_bytes;
    int           status = 0;

    if (from == to) return os.map_read(out, source, (size_t)(count * from_bytes));
    for (int64_t done = 0; done < count && status == 0; done += most) {
        int64_t       now = min_i64(most, count - done);
        struct matrix read = {buffer, from, 1, now, now};
        struct matrix cast = {out + done * to_bytes, to, 1, now, now};

        status = os.map_read(buffer, source + done * from_bytes, (size_t)(now * from_bytes));
        if (status == 0) k_cast_cpu(cast, read);
    }
    return status;
}

int host_read_range(struct matrix source, int64_t first, int64_t count, enum dtype dtype, void *out)
{
    const int64_t from = dtype_bytes(source.dtype), to = dtype_bytes(dtype);
    char         *target = out;
    int           status = 0;

    must(first >= 0 && count >= 0 && first + count <= source.rows * source.cols);
    while (count > 0 && status == 0) {
        int64_t row = first / source.cols, col = first % source.cols;
        int64_t run = source.ld == source.cols ? count : min_i64(count, source.cols - col);

        status = read_run((const char *)source.data + (row * source.ld + col) * from, source.dtype,
                          run, dtype, target);
        first += run;
        count -= run;
        target += run * to;
    }
    return status;
}

int host_read(struct matrix source, enum dtype dtype, void *out, uint32_t threads)
{
    const int64_t each = CHUNK_BYTES / dtype_bytes(dtype), all = source.rows * source.cols;
    const int     team = threads > 0 ? (int)threads : omp_get_max_threads();
    int           status = 0;

#pragma omp parallel for schedule(dynamic) num_threads(team) reduction(max : status) if (all > each)
    for (int64_t first = 0; first < all; first += each) {
        int now = host_read_range(source, first, min_i64(each, all - first), dtype,
                                  (char *)out + first * dtype_bytes(dtype));

        if (now > status) status = now;
    }
    return status;
}
