// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings {

std::tuple<Tensor, Tensor> select_changed(const Tensor& current, const Tensor& reference, int64_t k,
                                          int64_t pinned) {
  const Tensor similarity = token_cosine_for("select_changed", current, reference);
  check_range("select_changed", "k", k, 0, current.size(1));
  Selection how;
  how.capacity = k;
  how.pinned = pinned;
  return {select_indices(similarity, how), similarity};
}

std::tuple<Tensor, Tensor, Tensor> select_changed_below(const Tensor& current,
                                                        const Tensor& reference, double threshold,
                                                        int64_t capacity, int64_t pinned) {
  const Tensor similarity = token_cosine_for("select_changed_below", current, reference);
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
