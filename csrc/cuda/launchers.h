// SPDX-License-Identifier: Apache-2.0
// Entry points of the CUDA kernels for code that a plain C++ compiler sees. Each launches on the
// stream and returns at once; a size of zero launches nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "stc/attention_params.h"
#include "stc/cuda_params.h"
#include "stc/patch_params.h"
#include "stc/pruning_params.h"

namespace stc::cuda {

cudaError_t token_cosine(const CosineParams& p, cudaStream_t stream);
// One launch for up to kSharedKeys tokens and kTicketFrames frames with a slot for their tickets,
// else two, with the same results to the last bit. `selection.keys` is not used.
cudaError_t select_changed(const CosineParams& cosine, const SelectParams& selection,
                           int64_t frames, cudaStream_t stream);
cudaError_t gather_rows(const GatherParams& p, cudaStream_t stream);
cudaError_t scatter_rows(const ScatterParams& p, cudaStream_t stream);
cudaError_t scatter_key_value(const KeyValueParams& p, cudaStream_t stream);
cudaError_t scatter_residual(const ScatterResidualParams& p, cudaStream_t stream);
cudaError_t gather_layer_norm(const GatherNormParams& p, cudaStream_t stream);
cudaError_t add_layer_norm(const AddNormParams& p, cudaStream_t stream);
cudaError_t bias_gelu(const BiasGeluParams& p, cudaStream_t stream);
// Merges what p.blocks blocks of p.block_rows rows have found.
cudaError_t channel_variance(const VarianceParams& p, cudaStream_t stream);
// `slices` is saliency_slices(p).
cudaError_t saliency_topk(const SaliencyTopkParams& p, cudaStream_t stream);
int64_t saliency_slices(const SaliencyTopkParams& p);
cudaError_t spatial_redundancy(const RedundancyParams& p, cudaStream_t stream);
cudaError_t compact_tokens(const CompactionParams& p, cudaStream_t stream);
cudaError_t bipartite_match(const MatchingParams& p, cudaStream_t stream);
cudaError_t merge_tokens(MergingParams p, cudaStream_t stream);
cudaError_t attention_column_mean(const ColumnMeanKernelParams& p, cudaStream_t stream);
cudaError_t sparse_query_attention(const AttentionParams& p, cudaStream_t stream);
// Scratch is (frames, height, pitch).
cudaError_t frames_to_patches(const PatchParams& p, cudaStream_t stream);
cudaError_t update_patches(const PatchParams& p, cudaStream_t stream);

}  // namespace stc::cuda
