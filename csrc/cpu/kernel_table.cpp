// SPDX-License-Identifier: Apache-2.0
#include "stc/kernel_table.h"

#include "launchers.h"

namespace stc::STC_ISA {

#define STC_STRING_(x) #x
#define STC_STRING(x) STC_STRING_(x)

extern const KernelTable kTable;
const KernelTable kTable = {
    STC_STRING(STC_ISA), token_cosine,     select,          gather_rows,       scatter_rows,
    gather_layer_norm,   scatter_residual, variance_blocks, variance_merge,    saliency_blocks,
    saliency_anchor,     saliency_scores,  neighbour_dots,  neighbour_maximum, compact_rows,
    match_norms,         match_scratch,    match,           merge_rows,        column_mean_scratch,
    column_mean,
};

}  // namespace stc::STC_ISA
