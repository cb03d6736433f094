// SPDX-License-Identifier: Apache-2.0
// Implementations for CUDA; what register.cpp of the CPU says about types holds here too.
#include "common.h"

STC_LIBRARY_IMPL(STC_OPS_NAMESPACE, CUDA, m) {
  namespace cuda = stc::bindings::cuda;
  m.impl("token_cosine_native", TORCH_BOX(&cuda::token_cosine));
  m.impl("select_changed_native", TORCH_BOX(&cuda::select_changed));
  m.impl("select_changed_below_native", TORCH_BOX(&cuda::select_changed_below));
  m.impl("gather_rows_native", TORCH_BOX(&cuda::gather_rows));
  m.impl("scatter_rows_native", TORCH_BOX(&cuda::scatter_rows));
  m.impl("gather_layer_norm_native", TORCH_BOX(&cuda::gather_layer_norm));
  m.impl("scatter_residual_native", TORCH_BOX(&cuda::scatter_residual));
  m.impl("add_layer_norm_native", TORCH_BOX(&cuda::add_layer_norm));
  m.impl("bias_gelu_native", TORCH_BOX(&cuda::bias_gelu));
  m.impl("scatter_key_value_native", TORCH_BOX(&cuda::scatter_key_value));
  m.impl("channel_variance_native", TORCH_BOX(&cuda::channel_variance));
  m.impl("saliency_topk_native", TORCH_BOX(&cuda::saliency_topk));
  m.impl("spatial_redundancy_native", TORCH_BOX(&cuda::spatial_redundancy));
  m.impl("compact_tokens_native", TORCH_BOX(&cuda::compact_tokens));
  m.impl("bipartite_match_native", TORCH_BOX(&cuda::bipartite_match));
  m.impl("merge_tokens_native", TORCH_BOX(&cuda::merge_tokens));
  m.impl("attention_column_mean_native", TORCH_BOX(&cuda::attention_column_mean));
  m.impl("frames_to_patches_native", TORCH_BOX(&cuda::frames_to_patches));
  m.impl("update_patches_native", TORCH_BOX(&cuda::update_patches));
  m.impl("sparse_query_attention_native", TORCH_BOX(&cuda::sparse_query_attention));
}
