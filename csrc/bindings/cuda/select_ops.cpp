// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

namespace {

Tensor cosine(const char* op, const OnDevice& on, const Tensor& current, const Tensor& reference) {
  on.check("reference", reference);
  const auto [p, similarity] = cosine_params(op, current, reference);
  on.launched(stc::cuda::token_cosine(p, on.stream()));
  return similarity;
}

}  // namespace

Tensor token_cosine(const Tensor& current, const Tensor& reference) {
  const OnDevice on("token_cosine", current);
  return cosine("token_cosine", on, current, reference);
}

}  // namespace stc::bindings::cuda
