// SPDX-License-Identifier: Apache-2.0
#include "common.h"

#include <memory>

#include "stc/simd.h"

namespace stc::bindings {

std::vector<float> to_floats(const char* op, const char* name, const Tensor& t, int64_t channels) {
  const DType dtype = dtype_of(op, name, t);
  check_dim(op, name, t, 1);
  check_size(op, name, t, 0, channels);
  const int64_t stride = t.stride(0);
  std::vector<float> out(static_cast<size_t>(channels));
  baseline::visit(dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(t.const_data_ptr());
    for (int64_t i = 0; i < channels; ++i) {
      out[static_cast<size_t>(i)] = baseline::to_float(from[i * stride]);
    }
  });
  return out;
}

float* scratch_floats(int64_t count) {
  thread_local std::unique_ptr<float[]> kept;
  thread_local int64_t size = 0;
  constexpr int64_t kKeptFloats = kScratchBytes / 4;
  // Growing, or giving back what an unusually large call needed.
  if (count > size || size > kKeptFloats) {
    kept.reset();
    size = 0;
    kept.reset(new float[static_cast<size_t>(count)]);
    size = count;
  }
  return kept.get();
}

Tensor select_indices(const Tensor& scores, const Selection& how) {
  const int64_t rows = scores.size(0), tokens = scores.size(1);
  const Tensor indices = empty_like_device(scores, {rows, how.capacity}, ScalarType::Int);
  const Tensor keys = empty_like_device(scores, {rows, tokens}, ScalarType::Int);
  SelectParams p = {};
  p.scores = static_cast<const float*>(scores.const_data_ptr());
  p.tokens = tokens;
  p.capacity = how.capacity;
  p.pinned = how.pinned;
  p.highest = how.highest;
  p.below = how.threshold.has_value();
  p.threshold = static_cast<float>(how.threshold.value_or(0.0));
  p.keys = static_cast<uint32_t*>(keys.mutable_data_ptr());
  p.indices = static_cast<int32_t*>(indices.mutable_data_ptr());
  p.counts = how.counts;
  // Ten or so operations per token: worth a thread from a few thousand tokens on.
  parallel(rows, tokens * 8, [&](int64_t b, int64_t e) { kernels().select(p, b, e); });
  return indices;
}

}  // namespace stc::bindings
