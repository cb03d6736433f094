// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

Tensor spatial_redundancy(const Tensor& tokens, std::optional<Tensor> alive) {
  const char* op = "spatial_redundancy";
  const OnDevice on(op, tokens);
  check_dim(op, "tokens", tokens, 4);
  RedundancyParams p = {};
  p.dtype = dtype_of(op, "tokens", tokens);
  p.tokens = {tokens.const_data_ptr(), tokens.stride(0), tokens.stride(1), tokens.stride(2),
              tokens.stride(3)};
  p.frames = tokens.size(0);
  p.rows = tokens.size(1);
  p.columns = tokens.size(2);
  p.channels = tokens.size(3);
  if (alive.has_value()) {
    on.check("alive", *alive);
    check_dim(op, "alive", *alive, 3);
    for (int64_t i = 0; i < 3; ++i) check_size(op, "alive", *alive, i, tokens.size(i));
    STD_TORCH_CHECK(alive->scalar_type() == ScalarType::Bool, "`", op, "`: alive must be bool");
    p.alive = {static_cast<const bool*>(alive->const_data_ptr()), alive->stride(0),
               alive->stride(1), alive->stride(2)};
  }
  const auto floats = [&](std::initializer_list<int64_t> sizes) {
    return empty_like_device(tokens, sizes, ScalarType::Float);
  };
  const Tensor out = floats({p.frames, p.rows, p.columns});
  const Tensor scratch = floats({3, p.frames * p.rows * p.columns});
  p.redundancy = static_cast<float*>(out.mutable_data_ptr());
  p.norm = static_cast<float*>(scratch.mutable_data_ptr());
  p.dot_right = p.norm + scratch.size(1);
  p.dot_below = p.dot_right + scratch.size(1);
  on.launched(stc::cuda::spatial_redundancy(p, on.stream()));
  return out;
}

}  // namespace stc::bindings::cuda
