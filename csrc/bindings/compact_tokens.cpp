// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings {

std::tuple<Tensor, Tensor, Tensor> compact_tokens(const Tensor& tokens, const Tensor& keep,
                                                  int64_t capacity) {
  const char* op = "compact_tokens";
  check_dim(op, "tokens", tokens, 3);
  const int64_t frames = tokens.size(0), n = tokens.size(1);
  check_tokens(op, frames * n);
  check_range(op, "capacity", capacity, 0, frames * n);
  const Tensor mask = packed_mask(op, "keep", keep, frames * n);
  const uint8_t* kept = bytes(mask);
  CompactParams p = {};
  p.source = view_of(tokens);
  p.tokens_per_frame = n;
  p.channels = tokens.size(2);
  p.element_size = size_of(dtype_of(op, "tokens", tokens));
  const Tensor out = empty_like_device(tokens, {capacity, p.channels}, tokens.scalar_type());
  const Tensor indices = empty_like_device(tokens, {capacity}, ScalarType::Int);
  const Tensor counts = empty_like_device(tokens, {frames}, ScalarType::Int);
  int32_t* listed = ints(indices);
  int64_t written = 0;
  for (int64_t f = 0; f < frames; ++f) {
    int32_t count = 0;
    for (int64_t i = f * n; i < (f + 1) * n; ++i) {
      if (kept[i] == 0) continue;
      ++count;
      if (written < capacity) listed[written++] = static_cast<int32_t>(i);
    }
    ints(counts)[f] = count;
  }
  std::fill(listed + written, listed + capacity, -1);
  p.indices = listed;
  p.out = out.mutable_data_ptr();
  parallel(capacity, p.channels, [&](int64_t b, int64_t e) { kernels().compact_rows(p, b, e); });
  return {out, indices, counts};
}

}  // namespace stc::bindings
