// SPDX-License-Identifier: Apache-2.0
// LayerNorm of gathered rows. A row is read from memory once and twice more from the first-level
// cache: mean, then the variance as the mean of squared deviations (no cancellation), then the
// result. The traffic is that of gather_rows alone.
#pragma once

#include "stc/rows.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

template <bool kUnit, typename T>
STC_INLINE float row_sum(const T* x, int64_t stride, int64_t n) {
  Vec a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    a += load<kUnit>(x + i * stride, stride);
    b += load<kUnit>(x + (i + kLanes) * stride, stride);
  }
  float rest = 0.0f;
  for (; i < n; ++i) rest += to_float(x[i * stride]);
  return sum(a + b) + rest;
}

template <bool kUnit, typename T>
STC_INLINE float row_squared_deviation(const T* x, int64_t stride, int64_t n, float mean) {
  Vec a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Vec d = load<kUnit>(x + i * stride, stride) - mean;
    const Vec e = load<kUnit>(x + (i + kLanes) * stride, stride) - mean;
    a += d * d;
    b += e * e;
  }
  float rest = 0.0f;
  for (; i < n; ++i) {
    const float d = to_float(x[i * stride]) - mean;
    rest += d * d;
  }
  return sum(a + b) + rest;
}

template <bool kUnit, typename T>
STC_INLINE void normalise_row(const LayerNormParams& p, const T* x, int64_t stride, T* out) {
  const int64_t n = p.channels;
  const float mean = row_sum<kUnit>(x, stride, n) / static_cast<float>(n);
  const float variance = row_squared_deviation<kUnit>(x, stride, n, mean) / static_cast<float>(n);
  const float scale = 1.0f / __builtin_sqrtf(variance + p.eps);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec z = (load<kUnit>(x + i * stride, stride) - mean) * scale;
    store(out + i, z * load(p.weight + i) + load(p.bias + i));
  }
  for (; i < n; ++i) {
    const float z = (to_float(x[i * stride]) - mean) * scale;
    out[i] = from_float<T>(z * p.weight[i] + p.bias[i]);
  }
}

template <typename T>
void gather_layer_norm_range(const LayerNormParams& p, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; ++at) {
    T* out = static_cast<T*>(p.out) + at * p.channels;
    const int32_t token = p.indices[at];
    if (token < 0) {
      zero_row(out, p.channels);
      continue;
    }
    const T* x = row_pointer<T>(p.source, at / p.picked, token);
    if (p.source.channel_stride == 1) {
      normalise_row<true>(p, x, 1, out);
    } else {
      normalise_row<false>(p, x, p.source.channel_stride, out);
    }
  }
}

}  // namespace stc::STC_ISA
