// SPDX-License-Identifier: Apache-2.0
// Cosine of every token with its reference. Each input is read once and nothing else but one float
// per token is written: the traffic is that of one read of both inputs, half of what copying both
// would take.
#pragma once

#include "stc/params.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

struct Dot3 {
  float xy, xx, yy;
};

// Four independent accumulators per sum hide the latency of the fused multiply-add.
template <bool kUnit, typename T>
STC_INLINE Dot3 dot3(const T* x, int64_t x_stride, const T* y, int64_t y_stride, int64_t n) {
  constexpr int kUnroll = 4;
  Vec xy[kUnroll] = {}, xx[kUnroll] = {}, yy[kUnroll] = {};
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = i + u * kLanes;
      const Vec a = load<kUnit>(x + at * x_stride, x_stride);
      const Vec b = load<kUnit>(y + at * y_stride, y_stride);
      xy[u] += a * b;
      xx[u] += a * a;
      yy[u] += b * b;
    }
  }
  for (; i < n; i += kLanes) {
    const int count = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Vec a = load_partial(x + i * x_stride, x_stride, count);
    const Vec b = load_partial(y + i * y_stride, y_stride, count);
    xy[0] += a * b;
    xx[0] += a * a;
    yy[0] += b * b;
  }
  return {sum((xy[0] + xy[1]) + (xy[2] + xy[3])), sum((xx[0] + xx[1]) + (xx[2] + xx[3])),
          sum((yy[0] + yy[1]) + (yy[2] + yy[3]))};
}

// Written so that a NaN norm stays NaN.
STC_INLINE float at_least(float value, float floor) { return value < floor ? floor : value; }

template <bool kUnit, typename T>
void token_cosine_range(const CosineParams& p, int64_t begin, int64_t end) {
  const int64_t x_stride = kUnit ? 1 : p.current.channel_stride;
  const int64_t y_stride = kUnit ? 1 : p.reference.channel_stride;
  int64_t batch = begin / p.tokens, token = begin % p.tokens;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = row_pointer<T>(p.current, batch, token);
    const T* y = row_pointer<T>(p.reference, batch, token);
    const Dot3 d = dot3<kUnit>(x, x_stride, y, y_stride, p.channels);
    const float norm_x = at_least(__builtin_sqrtf(d.xx), 1e-8f);
    const float norm_y = at_least(__builtin_sqrtf(d.yy), 1e-8f);
    p.similarity[row] = d.xy / (norm_x * norm_y);
    if (++token == p.tokens) token = 0, ++batch;
  }
}

}  // namespace stc::STC_ISA
