// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

Tensor token_cosine(const Tensor& current, const Tensor& reference) {
  const OnDevice on("token_cosine", current);
  on.check("reference", reference);
  const auto [p, similarity] = cosine_params("token_cosine", current, reference);
  on.launched(stc::cuda::token_cosine(p, on.stream()));
  return similarity;
}

}  // namespace stc::bindings::cuda
