/*
 * attention.cuh - what attention.cu and attention_plain.cu share.
 */
#ifndef MURAL_ATTENTION_CUH
#define MURAL_ATTENTION_CUH

#include "kernels/device.cuh"

/* The bias of a head, such that bias[key - query] is a score's. */
DEVICE const float *bias_of(const struct attention_request &r, int64_t head)
{
    return r.bias + head * (2 * r.k.rows - 1) + r.k.rows - 1;
}

/* A call that was found legal, whatever its types, scale and alignment: multiplied in f32. */
int k_attention_plain_cuda(const struct attention_request *r, cudaStream_t stream);

#endif
