// SPDX-License-Identifier: Apache-2.0
// Implementations for CUDA; what register.cpp of the CPU says about types holds here too.
#include "common.h"

STC_LIBRARY_IMPL(STC_OPS_NAMESPACE, CUDA, m) {
  namespace cuda = stc::bindings::cuda;
  m.impl("token_cosine_native", TORCH_BOX(&cuda::token_cosine));
}
