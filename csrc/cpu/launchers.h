// SPDX-License-Identifier: Apache-2.0
// One function per kernel and instruction set; the .cpp files beside this one define them.
#pragma once

#include "stc/params.h"

#ifndef STC_ISA
#define STC_ISA baseline
#endif

namespace stc::STC_ISA {

void token_cosine(const CosineParams& p, int64_t begin, int64_t end);
void select(const SelectParams& p, int64_t begin, int64_t end);
void gather_rows(const GatherParams& p, int64_t begin, int64_t end);
void scatter_rows(const ScatterParams& p, int64_t begin, int64_t end);
void gather_layer_norm(const LayerNormParams& p, int64_t begin, int64_t end);
void scatter_residual(const ResidualParams& p, int64_t begin, int64_t end);
void variance_blocks(const VarianceParams& p, int64_t begin, int64_t end);
void variance_merge(const VarianceParams& p, int64_t begin, int64_t end);
void saliency_blocks(const SaliencyParams& p, const SaliencyFrame& s, int64_t begin, int64_t end);
void saliency_anchor(const SaliencyParams& p, SaliencyFrame* s);
void saliency_scores(const SaliencyParams& p, const SaliencyFrame& s, int64_t begin, int64_t end);
void neighbour_dots(const NeighbourParams& p, int64_t begin, int64_t end);
void neighbour_maximum(const NeighbourParams& p, int64_t begin, int64_t end);
void compact_rows(const CompactParams& p, int64_t begin, int64_t end);
void match_norms(const MatchParams& p, int64_t begin, int64_t end);
int64_t match_scratch(const MatchParams& p);
void match(const MatchParams& p, float* scratch, int64_t batch, int64_t first);
void merge_rows(const MergeParams& p, int64_t begin, int64_t end);
int64_t column_mean_scratch(const ColumnMeanParams& p);
void column_mean(const ColumnMeanParams& p, float* scratch, int64_t batch, int64_t head);

}  // namespace stc::STC_ISA
