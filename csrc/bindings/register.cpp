// SPDX-License-Identifier: Apache-2.0
// Implementations for the CPU of the ops whose schemas stc_kernels/_schemas.py defines. A boxed
// function checks only the number of its arguments: the C++ types must follow the schema exactly
// (int = int64_t, float = double, str = std::string).
#include "common.h"

STC_LIBRARY_IMPL(STC_OPS_NAMESPACE, CPU, m) {
  using namespace stc::bindings;
  m.impl("token_cosine_native", TORCH_BOX(&token_cosine));
  m.impl("select_changed_native", TORCH_BOX(&select_changed));
  m.impl("select_changed_below_native", TORCH_BOX(&select_changed_below));
  m.impl("gather_rows_native", TORCH_BOX(&gather_rows));
  m.impl("scatter_rows_native", TORCH_BOX(&scatter_rows));
  m.impl("gather_layer_norm_native", TORCH_BOX(&gather_layer_norm));
  m.impl("scatter_residual_native", TORCH_BOX(&scatter_residual));
  m.impl("channel_variance_native", TORCH_BOX(&channel_variance));
  m.impl("saliency_topk_native", TORCH_BOX(&saliency_topk));
  m.impl("spatial_redundancy_native", TORCH_BOX(&spatial_redundancy));
  m.impl("compact_tokens_native", TORCH_BOX(&compact_tokens));
  m.impl("bipartite_match_native", TORCH_BOX(&bipartite_match));
  m.impl("merge_tokens_native", TORCH_BOX(&merge_tokens));
  m.impl("attention_column_mean_native", TORCH_BOX(&attention_column_mean));
  m.impl("frames_to_patches_native", TORCH_BOX(&frames_to_patches));
  m.impl("update_patches_native", TORCH_BOX(&update_patches));
}
