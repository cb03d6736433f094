// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set. Every function works on a half-open range, so that the caller
// decides how to share it among threads.
#pragma once

#include "stc/params.h"
#include "stc/patch_params.h"

namespace stc {

// Every kernel once: K(result, name, parameters).
#define STC_CPU_KERNELS(K)                                                                       \
  K(void, token_cosine, (const CosineParams& p, int64_t begin, int64_t end))                     \
  K(void, select, (const SelectParams& p, int64_t begin, int64_t end))                           \
  K(void, gather_rows, (const GatherParams& p, int64_t begin, int64_t end))                      \
  K(void, scatter_rows, (const ScatterParams& p, int64_t begin, int64_t end))                    \
  K(void, gather_layer_norm, (const LayerNormParams& p, int64_t begin, int64_t end))             \
  K(void, scatter_residual, (const ResidualParams& p, int64_t begin, int64_t end))               \
  K(void, variance_blocks, (const VarianceParams& p, int64_t begin, int64_t end))                \
  K(void, variance_merge, (const VarianceParams& p, int64_t begin, int64_t end))                 \
  K(void, saliency_blocks,                                                                       \
    (const SaliencyParams& p, const SaliencyFrame& s, int64_t begin, int64_t end))               \
  K(void, saliency_anchor, (const SaliencyParams& p, SaliencyFrame* s))                          \
  K(void, saliency_scores,                                                                       \
    (const SaliencyParams& p, const SaliencyFrame& s, int64_t begin, int64_t end))               \
  K(void, neighbour_dots, (const NeighbourParams& p, int64_t begin, int64_t end))                \
  K(void, neighbour_maximum, (const NeighbourParams& p, int64_t begin, int64_t end))             \
  K(void, compact_rows, (const CompactParams& p, int64_t begin, int64_t end))                    \
  K(void, match_norms, (const MatchParams& p, int64_t begin, int64_t end))                       \
  K(int64_t, match_scratch, (const MatchParams& p))                                              \
  K(void, match, (const MatchParams& p, float* scratch, int64_t batch, int64_t first))           \
  K(void, merge_rows, (const MergeParams& p, int64_t begin, int64_t end))                        \
  K(int64_t, column_mean_scratch, (const ColumnMeanParams& p))                                   \
  K(void, column_mean, (const ColumnMeanParams& p, float* scratch, int64_t batch, int64_t head)) \
  K(void, narrow_rows, (const PatchParams& p, int64_t frame, int64_t begin, int64_t end))        \
  K(void, make_patches, (const PatchParams& p, int64_t frame, int64_t begin, int64_t end))       \
  K(int64_t, update_scratch, (const PatchParams& p))                                             \
  K(void, mark_changed, (const PatchParams& p, int64_t begin, int64_t end))                      \
  K(void, update_patches, (const PatchParams& p, uint32_t* scratch, int64_t row_of_patches))

struct KernelTable {
  const char* name;
#define STC_POINTER(result, name, parameters) result(*name) parameters;
  STC_CPU_KERNELS(STC_POINTER)
#undef STC_POINTER
};

// The best table for this processor, or the one that STC_KERNELS_CPU_CAPABILITY names if this
// processor can run it. Chosen once, when the library is loaded.
const KernelTable& kernels();

// Names of all tables in this build, best last, separated by spaces.
const char* compiled_capabilities();

}  // namespace stc
