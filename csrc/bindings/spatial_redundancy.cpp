// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings {

Tensor spatial_redundancy(const Tensor& tokens, std::optional<Tensor> alive) {
  const char* op = "spatial_redundancy";
  check_dim(op, "tokens", tokens, 4);
  const int64_t frames = tokens.size(0), height = tokens.size(1), width = tokens.size(2);
  const int64_t places = frames * height * width;
  NeighbourParams p = {};
  p.dtype = dtype_of(op, "tokens", tokens);
  p.tokens = {tokens.const_data_ptr(), tokens.stride(0), tokens.stride(1), tokens.stride(2),
              tokens.stride(3)};
  p.height = height;
  p.width = width;
  p.channels = tokens.size(3);
  Tensor mask;
  if (alive.has_value()) {
    mask = packed_mask(op, "alive", *alive, places);
    p.alive = bytes(mask);
  }
  const Tensor out = empty_like_device(tokens, {frames, height, width}, ScalarType::Float);
  p.norm = scratch_floats(3 * places);
  p.right = p.norm + places;
  p.below = p.right + places;
  p.redundancy = floats(out);
  parallel(places, 3 * p.channels,
           [&](int64_t b, int64_t e) { kernels().neighbour_dots(p, b, e); });
  parallel(places, 16, [&](int64_t b, int64_t e) { kernels().neighbour_maximum(p, b, e); });
  return out;
}

}  // namespace stc::bindings
