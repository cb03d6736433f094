// SPDX-License-Identifier: Apache-2.0
// What the attention kernels are given, and how the host shares the work out.
#pragma once

#include "stc/types.h"

namespace stc {

// (batch, token), or nothing where data is null.
struct KeyBias {
  const void* data;
  DType dtype;
  int64_t batch_stride;
  int64_t token_stride;
};

struct AttentionParams {
  DType dtype;
  HeadView query;
  HeadView key;
  HeadView value;
  KeyBias key_bias;
  int64_t batch;
  int64_t queries;
  int64_t keys;
  int64_t heads;   // of queries
  int64_t groups;  // heads of keys, a divisor of heads
  int64_t width;   // channels of a head
  float scale;
  void* out;  // contiguous (batch, queries, heads, width)
};

//! widest head, in channels
constexpr int64_t kMaxHeadWidth = 256;

// Whether each head of each token can be read by loads of 16 bytes, `vector` elements.
inline bool heads_are_aligned(const HeadView& view, int64_t width, int64_t vector) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.channel_stride == 1 &&
         width % vector == 0 && view.batch_stride % vector == 0 &&
         view.token_stride % vector == 0 && view.head_stride % vector == 0;
}

// Tensor cores take 16-bit types whose heads are aligned; everything else goes the plain way.
inline bool fits_tensor_cores(const AttentionParams& p) {
  return p.dtype != DType::kFloat32 && heads_are_aligned(p.query, p.width, 8) &&
         heads_are_aligned(p.key, p.width, 8) && heads_are_aligned(p.value, p.width, 8);
}

}  // namespace stc
