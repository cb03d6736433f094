// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings {

std::pair<CosineParams, Tensor> cosine_params(const char* op, const Tensor& current,
                                              const Tensor& reference) {
  check_dim(op, "current", current, 3);
  check_companion(op, "reference", reference, current);
  check_tokens(op, current.size(1));
  CosineParams p = {};
  p.dtype = dtype_of(op, "current", current);
  p.current = view_of(current);
  p.reference = view_of(reference);
  p.tokens = current.size(1);
  p.rows = current.size(0) * p.tokens;
  p.channels = current.size(2);
  const Tensor out = empty_like_device(current, {current.size(0), p.tokens}, ScalarType::Float);
  p.similarity = static_cast<float*>(out.mutable_data_ptr());
  return {p, out};
}

Tensor token_cosine_for(const char* op, const Tensor& current, const Tensor& reference) {
  const auto [p, similarity] = cosine_params(op, current, reference);
  parallel(p.rows, 2 * p.channels,
           [&p = p](int64_t b, int64_t e) { kernels().token_cosine(p, b, e); });
  return similarity;
}

Tensor token_cosine(const Tensor& current, const Tensor& reference) {
  return token_cosine_for("token_cosine", current, reference);
}

}  // namespace stc::bindings
