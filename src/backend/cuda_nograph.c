/*
 * cuda_nograph.c - stands in for cuda_graph.c in builds that found no cuDNN.
 */
#include "backend/cuda_int.h"

#include <stdio.h>

int graphs_open(struct graphs **out, char *why_out, size_t capacity)
{
    *out = NULL;
    (void)snprintf(why_out, capacity, "there was none when mural was built");
    return 0;
}

size_t graphs_version(void)
{
    return 0;
}

void graphs_close(struct graphs *graphs)
{
    (void)graphs;
}

bool graphs_attention_fits(struct graphs *graphs, const struct attention_request *request)
{
    (void)graphs;
    (void)request;
    return false;
}

int graphs_attention(struct graphs *graphs, const struct attention_request *request,
                     struct workspace workspace, bool rehearsing, cudaStream_t stream)
{
    (void)graphs;
    (void)request;
    (void)workspace;
    (void)rehearsing;
    (void)stream;
    return STATUS_NO_PLAN;
}

bool graphs_conv_fits(struct graphs *graphs, const struct conv_request *request, int32_t out_h,
                      int32_t out_w)
{
    (void)graphs;
    (void)request;
    (void)out_h;
    (void)out_w;
    return false;
}

int graphs_conv(struct graphs *graphs, const struct conv_request *request, struct matrix w,
                struct workspace workspace, bool rehearsing, cudaStream_t stream)
{
    (void)graphs;
    (void)request;
    (void)w;
    (void)workspace;
    (void)rehearsing;
    (void)stream;
    return STATUS_NO_PLAN;
}

const char *graphs_words(const struct graphs *graphs, int status)
{
    (void)graphs;
    (void)status;
    return "cuDNN is not in this build";
}

bool graphs_lack_memory(int status)
{
    (void)status;
    return false;
}
