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

namespace {

Tensor cosine(const char* op, const Tensor& current, const Tensor& reference) {
  const auto [p, similarity] = cosine_params(op, current, reference);
  parallel(p.rows, 2 * p.channels,
           [&p = p](int64_t b, int64_t e) { kernels().token_cosine(p, b, e); });
  return similarity;
}

}  // namespace

Tensor token_cosine(const Tensor& current, const Tensor& reference) {
  return cosine("token_cosine", current, reference);
}

std::tuple<Tensor, Tensor> select_changed(const Tensor& current, const Tensor& reference, int64_t k,
                                          int64_t pinned) {
  const Tensor similarity = cosine("select_changed", current, reference);
  check_range("select_changed", "k", k, 0, current.size(1));
  Selection how;
  how.capacity = k;
  how.pinned = pinned;
  return {select_indices(similarity, how), similarity};
}

std::tuple<Tensor, Tensor, Tensor> select_changed_below(const Tensor& current,
                                                        const Tensor& reference, double threshold,
                                                        int64_t capacity, int64_t pinned) {
  const Tensor similarity = cosine("select_changed_below", current, reference);
  check_range("select_changed_below", "capacity", capacity, 0, current.size(1));
  const Tensor counts = empty_like_device(current, {current.size(0)}, ScalarType::Int);
  Selection how;
  how.capacity = capacity;
  how.pinned = pinned;
  how.threshold = threshold;
  how.counts = static_cast<int32_t*>(counts.mutable_data_ptr());
  return {select_indices(similarity, how), counts, similarity};
}

}  // namespace stc::bindings
