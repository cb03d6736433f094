// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

namespace {

// The chosen indices of each frame (frames, capacity), and the similarity that they were chosen by.
std::tuple<Tensor, Tensor> select(const char* op, const OnDevice& on, const Tensor& current,
                                  const Tensor& reference, const Selection& how) {
  on.check("reference", reference);
  const auto [cosine, similarity] = cosine_params(op, current, reference);
  const int64_t frames = current.size(0);
  check_range(op, "capacity", how.capacity, 0, current.size(1));
  const Tensor indices = empty_like_device(current, {frames, how.capacity}, ScalarType::Int);
  SelectParams p = {};
  p.scores = cosine.similarity;
  p.tokens = cosine.tokens;
  p.capacity = how.capacity;
  p.pinned = how.pinned;
  p.highest = how.highest;
  p.below = how.threshold.has_value();
  p.threshold = static_cast<float>(how.threshold.value_or(0.0));
  p.indices = static_cast<int32_t*>(indices.mutable_data_ptr());
  p.counts = how.counts;
  on.launched(stc::cuda::select_changed(cosine, p, frames, on.stream()));
  return {indices, similarity};
}

}  // namespace

std::tuple<Tensor, Tensor> select_changed(const Tensor& current, const Tensor& reference, int64_t k,
                                          int64_t pinned) {
  const OnDevice on("select_changed", current);
  check_dim("select_changed", "current", current, 3);
  STD_TORCH_CHECK(k >= 0 && k <= current.size(1), "`select_changed`: k must be between 0 and ",
                  current.size(1), " (tokens), got ", k);
  Selection how;
  how.capacity = k;
  how.pinned = pinned;
  return select("select_changed", on, current, reference, how);
}

std::tuple<Tensor, Tensor, Tensor> select_changed_below(const Tensor& current,
                                                        const Tensor& reference, double threshold,
                                                        int64_t capacity, int64_t pinned) {
  const OnDevice on("select_changed_below", current);
  check_dim("select_changed_below", "current", current, 3);
  STD_TORCH_CHECK(capacity >= 0, "`select_changed_below`: capacity must be at least 0, got ",
                  capacity);
  const Tensor counts = empty_like_device(current, {current.size(0)}, ScalarType::Int);
  Selection how;
  how.capacity = capacity;
  how.pinned = pinned;
  how.threshold = threshold;
  how.counts = static_cast<int32_t*>(counts.mutable_data_ptr());
  const auto [indices, similarity] = select("select_changed_below", on, current, reference, how);
  return {indices, counts, similarity};
}

}  // namespace stc::bindings::cuda
