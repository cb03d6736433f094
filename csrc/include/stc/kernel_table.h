// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set. Every function works on a half-open range, so that the caller
// decides how to share it among threads.
#pragma once

#include "stc/params.h"

namespace stc {

struct KernelTable {
  const char* name;
  void (*token_cosine)(const CosineParams&, int64_t begin, int64_t end);
  void (*select)(const SelectParams&, int64_t begin, int64_t end);
  void (*gather_rows)(const GatherParams&, int64_t begin, int64_t end);
  void (*scatter_rows)(const ScatterParams&, int64_t begin, int64_t end);
  void (*gather_layer_norm)(const LayerNormParams&, int64_t begin, int64_t end);
  void (*scatter_residual)(const ResidualParams&, int64_t begin, int64_t end);
  void (*variance_blocks)(const VarianceParams&, int64_t begin, int64_t end);
  void (*variance_merge)(const VarianceParams&, int64_t begin, int64_t end);
  void (*saliency_blocks)(const SaliencyParams&, const SaliencyFrame&, int64_t begin, int64_t end);
  void (*saliency_anchor)(const SaliencyParams&, SaliencyFrame*);
  void (*saliency_scores)(const SaliencyParams&, const SaliencyFrame&, int64_t begin, int64_t end);
  void (*neighbour_dots)(const NeighbourParams&, int64_t begin, int64_t end);
  void (*neighbour_maximum)(const NeighbourParams&, int64_t begin, int64_t end);
  void (*compact_rows)(const CompactParams&, int64_t begin, int64_t end);
  void (*match_norms)(const MatchParams&, int64_t begin, int64_t end);
  int64_t (*match_scratch)(const MatchParams&);
  void (*match)(const MatchParams&, float* scratch, int64_t batch, int64_t first);
  void (*merge_rows)(const MergeParams&, int64_t begin, int64_t end);
  int64_t (*column_mean_scratch)(const ColumnMeanParams&);
  void (*column_mean)(const ColumnMeanParams&, float* scratch, int64_t batch, int64_t head);
};

// The best table for this processor, or the one that STC_KERNELS_CPU_CAPABILITY names if this
// processor can run it. Chosen once, when the library is loaded.
const KernelTable& kernels();

// Names of all tables in this build, best last, separated by spaces.
const char* compiled_capabilities();

}  // namespace stc
