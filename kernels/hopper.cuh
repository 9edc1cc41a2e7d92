/*
 * hopper.cuh - the instructions of sm_90a that attention_hopper.cu and conv_hopper.cu use: barriers
 * that count bytes, boxes of a matrix or a map brought by the copy engine, products of a whole
 * warpgroup; and what the host tells the copy engine beforehand.
 *
 * Knows no operation.  Shared memory is told by its 32-bit address.  Names of instructions and the
 * layout of operands: NVIDIA's PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
 */
#ifndef MURAL_HOPPER_CUH
#define MURAL_HOPPER_CUH

#include <cuda.h>

#include "kernels/device.cuh"

enum {
    PANEL = 64,      /* columns that lie together, 128 bytes a row */
    SWIZZLED = 1024, /* alignment of what the copy engine swizzles */
};

/* ------------------------------------------------------------------------------------ barriers */

/* A phase of a barrier ends when `arrivals` have come and all bytes that were announced. */
DEVICE void barrier_init(uint32_t barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}
/* To the copy engine; other threads see them after __syncthreads(). */
DEVICE void barriers_show()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DEVICE void barrier_arrive_announcing(uint32_t barrier, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
/* Until the phase of that parity has ended; of a new barrier, the phase of parity 1 has. */
DEVICE void barrier_wait(uint32_t barrier, int parity)
{
    asm volatile("{ .reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again; }" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/* All COUNT threads of this block that call it wait for each other; what they wrote is seen. */
template <int COUNT> DEVICE void wait_for_all()
{
    asm volatile("bar.sync 1, %0;" ::"n"(COUNT) : "memory");
}

/* ----------------------------------------------------------------------- copies and registers */

/* The map's box at (col, row), zeros beyond its edges; its bytes count at the barrier. */
DEVICE void box_begin(uint32_t target, const void *map, int col, int row, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(target),
                 "l"(map), "r"(col), "r"(row), "r"(barrier)
                 : "memory");
}
DEVICE void box_begin(uint32_t target, const void *map, int col, int row, int level,
                      uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(target),
                 "l"(map), "r"(col), "r"(row), "r"(level), "r"(barrier)
                 : "memory");
}
/* A warpgroup hands registers back, or takes such as others gave back: COUNT a thread remain. */
template <int COUNT> DEVICE void registers_fewer()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> DEVICE void registers_more()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

/* ------------------------------------------------------------------------------------ products */

/* An operand in shared memory, in rows of 64 elements, 128 bytes, of which eight lie together at a
 * multiple of 1024 bytes, chunk c of row r at c ^ (r % 8).  `across`: bytes to the next 64 columns
 * where columns are the outer dimension of the product; unused where they are summed over.  An
 * operand `bytes` further on is this + (bytes >> 4). */
DEVICE uint64_t operand(uint32_t address, int across)
{
    const uint64_t chunks_swizzled = (uint64_t)1 << 62, eight_rows = (uint64_t)(1024 >> 4) << 32;

    return chunks_swizzled | eight_rows | (uint64_t)(across >> 4) << 16 | address >> 4;
}

/* Products run behind the warpgroup's back.  products_begin() comes before the first that reads or
 * adds to registers which ordinary instructions wrote. */
DEVICE void products_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/* Everything begun since the last call becomes one group. */
DEVICE void products_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* All groups but the latest PENDING have ended; hold() what they wrote or read. */
template <int PENDING> DEVICE void products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
/* The compiler moves no use of x from one side of this to the other. */
template <int COUNT> DEVICE void hold(float (&x)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(x[i])::"memory");
}
template <int COUNT> DEVICE void hold(uint32_t (&x)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+r"(x[i])::"memory");
}

#define EIGHT(x, i)                                                                                \
    "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3]), "+f"(x[i + 4]), "+f"(x[i + 5]),    \
        "+f"(x[i + 6]), "+f"(x[i + 7])

#define SIXTY_FOUR \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " \
    "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
    "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
    "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, " \
    "%60, %61, %62, %63"

/* d[64, 192] = a[64, 16] . b[192, 16]^T, added to what d was where `add`, in bf16 with f32 sums.
 * Lane l of warp w has of each eight columns 2 (l % 4) and the next: two registers of row
 * 16 w + l / 4, then two of the row eight further. */
DEVICE void product_192(float (&d)[96], uint64_t a, uint64_t b, bool add)
{
    asm volatile("{ .reg .pred add;\n"
                 "setp.ne.b32 add, %98, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
                 SIXTY_FOUR ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, "
                 "%76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, "
                 "%90, %91, %92, %93, %94, %95}, "
                 "%96, %97, add, 1, 1, 0, 0; }"
                 : EIGHT(d, 0), EIGHT(d, 8), EIGHT(d, 16), EIGHT(d, 24), EIGHT(d, 32), EIGHT(d, 40),
                   EIGHT(d, 48), EIGHT(d, 56), EIGHT(d, 64), EIGHT(d, 72), EIGHT(d, 80),
                   EIGHT(d, 88)
                 : "l"(a), "l"(b), "r"((int)add));
}
/* d[64, 128] += a[64, 16] . b[16, 128]; a in registers, laid out as multiply_add() has it, and the
 * columns of b its outer dimension. */
DEVICE void product_128(float (&d)[64], const uint32_t *a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 SIXTY_FOUR "}, "
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : EIGHT(d, 0), EIGHT(d, 8), EIGHT(d, 16), EIGHT(d, 24), EIGHT(d, 32), EIGHT(d, 40),
                   EIGHT(d, 48), EIGHT(d, 56)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
/* d[64, 128] = a[64, 16] . b[128, 16]^T, added to what d was where `add`; both in shared memory. */
DEVICE void product_128(float (&d)[64], uint64_t a, uint64_t b, bool add)
{
    asm volatile("{ .reg .pred add;\n"
                 "setp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 SIXTY_FOUR "}, %64, %65, add, 1, 1, 0, 0; }"
                 : EIGHT(d, 0), EIGHT(d, 8), EIGHT(d, 16), EIGHT(d, 24), EIGHT(d, 32), EIGHT(d, 40),
                   EIGHT(d, 48), EIGHT(d, 56)
                 : "l"(a), "l"(b), "r"((int)add));
}
#undef SIXTY_FOUR
#undef EIGHT

/* ---------------------------------------------------------------------------- rings and results */

/* One of COUNT slots that are filled and emptied in turn, and the parity of its phase. */
struct slot {
    int index, parity;
};
template <int COUNT> DEVICE void advance(struct slot &s)
{
    if constexpr (COUNT == 2)
        s.index ^= 1;
    else
        s.index = s.index + 1 == COUNT ? 0 : s.index + 1;
    s.parity ^= s.index == 0;
}

/* This warp has read what the barrier guards. */
DEVICE void release(uint32_t free)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(free);
}

/* Of the two rows that a lane has of a product d, the first or the second (half 0 or 1), to memory,
 * as far as it has columns, a multiple of eight.  Four lanes share a row and have two of every
 * eight columns: they exchange pairs, so that each writes eight side by side. */
template <int COUNT> DEVICE void store_row(struct bf16 *row, const float (&d)[COUNT], int half,
                                           int columns)
{
    const int lane = (int)threadIdx.x % 4;

#pragma unroll
    for (int i = 2 * half; i < COUNT; i += 16) {
        uint32_t pair[4], mine[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
            pair[n] = pack_bf16(d[i + 4 * n], d[i + 4 * n + 1]);
#pragma unroll
        for (int turn = 0; turn < 4; turn++) {
            const int      other = lane ^ turn;
            const uint32_t low = other % 2 ? pair[1] : pair[0],
                           high = other % 2 ? pair[3] : pair[2];
            const uint32_t got = __shfl_xor_sync(0xffffffffu, other / 2 ? high : low, turn);
#pragma unroll
            for (int n = 0; n < 4; n++)
                if (other == n) mine[n] = got;
        }
        if (i / 16 * 32 + lane * 8 < columns)
            *(uint4 *)(row + i / 16 * 32 + lane * 8) =
                make_uint4(mine[0], mine[1], mine[2], mine[3]);
    }
}

/* ---------------------------------------------------------------------------------------- host */

static inline bool is_hopper()
{
    return architecture() == 90;
}

static inline bool is_bf16_at_16(struct matrix m)
{
    return m.dtype == DTYPE_BF16 && rows_at_16(m);
}

/* bf16 in two or three dimensions, the first of neighbours, and the boxes that are brought of it,
 * PANEL wide: of the others every `apart`-th row. */
struct boxes {
    int        dimensions;
    void      *data;
    cuuint64_t size[3], bytes[2]; /* bytes: from a row to the next, from a level to the next */
    cuuint32_t box[3], apart[3];
};

/* The driver's; programs that may start without one do not link it.  Looked up once a launch. */
typedef decltype(&cuTensorMapEncodeTiled) encode_map;

static inline int find_encoder(encode_map *out)
{
    cudaDriverEntryPointQueryResult found;
    void                           *entry = NULL;
    int rc = (int)cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                   cudaEnableDefault, &found);

    if (!rc && found != cudaDriverEntryPointSuccess) rc = (int)cudaErrorNotSupported;
    *out = (encode_map)entry;
    return rc;
}

static inline int map_boxes(encode_map encode, CUtensorMap *map, const struct boxes *b)
{
    const CUresult rc =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)b->dimensions, b->data, b->size,
               b->bytes, b->box, b->apart, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    return rc == CUDA_SUCCESS ? 0 : (int)cudaErrorInvalidValue;
}

/* Blocks of a kernel that takes this much shared memory: one on every multiprocessor, or fewer
 * where there are fewer tiles. */
static inline int prepare_blocks(unsigned *out, const void *kernel, int shared_bytes, int tiles)
{
    int device = 0, processors = 0, rc = (int)cudaGetDevice(&device);

    if (!rc) rc = (int)cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (!rc)
        rc = (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       shared_bytes);
    *out = (unsigned)(tiles < processors ? tiles : processors);
    return rc;
}

#endif
