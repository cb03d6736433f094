// SPDX-License-Identifier: Apache-2.0
// Implementations for CUDA; what register.cpp of the CPU says about types holds here too.
#include "common.h"

STC_LIBRARY_IMPL(STC_OPS_NAMESPACE, CUDA, m) {
  namespace cuda = stc::bindings::cuda;
  m.impl("token_cosine_native", TORCH_BOX(&cuda::token_cosine));
  m.impl("spatial_redundancy_native", TORCH_BOX(&cuda::spatial_redundancy));
  m.impl("compact_tokens_native", TORCH_BOX(&cuda::compact_tokens));
  m.impl("sparse_query_attention_native", TORCH_BOX(&cuda::sparse_query_attention));
}
