/*
 * hog.c - another program that holds the memory of a GPU.
 *
 * use: hog GPU LEAVE_MB
 *
 * Takes what is free but for LEAVE_MB, says "held N MB" on standard output, and holds it until
 * standard input ends.
 */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    enum { MB = 1 << 20, LEAST = 2 * MB };
    size_t held = 0, available = 0, total = 0;
    int    status;

    if (argc != 3) return 2;
    status = (int)cudaSetDevice(atoi(argv[1]));
    if (status == 0) status = (int)cudaMemGetInfo(&available, &total);
    if (status != 0) {
        (void)fprintf(stderr, "hog: %s\n", cudaGetErrorString((cudaError_t)status));
        return 1;
    }
    size_t leave = (size_t)strtoull(argv[2], NULL, 10) * MB;
    size_t piece = available > leave ? available - leave : 0;
    while (piece >= LEAST) { /* one large piece, then what is between the others */
        void *taken = NULL;
        if (cudaMalloc(&taken, piece) == cudaSuccess)
            held += piece;
        else
            piece /= 2;
        if (cudaMemGetInfo(&available, &total) != cudaSuccess || available <= leave + LEAST) break;
        if (piece > available - leave) piece = available - leave;
    }
    (void)printf("held %zu MB\n", held / MB);
    (void)fflush(stdout);
    while (getchar() != EOF)
        continue;
    return 0;
}
