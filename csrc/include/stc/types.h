// SPDX-License-Identifier: Apache-2.0
// Plain data shared by the kernels and the bindings. Nothing here depends on torch or on the
// instruction set, so one definition serves every translation unit.
#pragma once

#include <cstdint>

namespace stc {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };

// Storage-only types: the kernels convert on load and on store and compute in float32.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// A (batch, token, channel) tensor of any layout. Strides count elements; a batch stride of 0
// broadcasts one reference over the batch.
struct TokenView {
  const void* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t channel_stride;
};

// A (C,) tensor of any dtype and stride; null data stands for one that is not given.
struct ChannelVector {
  DType dtype;
  const void* data;
  int64_t channel_stride;
};

struct MutableTokenView {
  void* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t channel_stride;
};

// A (frame, row, column, channel) tensor of any layout.
struct GridView {
  const void* data;
  int64_t frame_stride;
  int64_t row_stride;
  int64_t column_stride;
  int64_t channel_stride;
};

// A (batch, token, head, channel) tensor of any layout.
struct HeadView {
  const void* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t head_stride;
  int64_t channel_stride;
};

}  // namespace stc
