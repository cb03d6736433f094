// SPDX-License-Identifier: Apache-2.0
// Cosine of every token with its reference: one warp per token, both inputs read once.
#pragma once

#include "stc/device.cuh"

namespace stc::cuda {

constexpr int kCosineUnroll = 4;

// Written so that a NaN norm stays NaN.
STC_DEVICE float at_least(float value, float floor) { return value < floor ? floor : value; }

template <typename T, int V>
__global__ void __launch_bounds__(kWarp* kRowWarps) token_cosine_kernel(const CosineParams p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.y;
  if (row >= p.rows) return;
  const T* x = row_of<T>(p.current, row / p.tokens, row % p.tokens);
  const T* y = row_of<T>(p.reference, row / p.tokens, row % p.tokens);
  float xy = 0.0f, xx = 0.0f, yy = 0.0f;
  for (int64_t start = threadIdx.x * V; start < p.channels; start += kWarp * V * kCosineUnroll) {
    Pack<T, V> a[kCosineUnroll], b[kCosineUnroll];
    // All loads are on their way before the first is waited for.
#pragma unroll
    for (int u = 0; u < kCosineUnroll; ++u) {
      const int64_t c = start + u * kWarp * V;
      const bool inside = c < p.channels;
      a[u] = inside ? load_pack<V>(x, c, p.current.channel_stride) : zero_pack<T, V>();
      b[u] = inside ? load_pack<V>(y, c, p.reference.channel_stride) : zero_pack<T, V>();
    }
#pragma unroll
    for (int u = 0; u < kCosineUnroll; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float f = to_float(a[u].lane[v]), g = to_float(b[u].lane[v]);
        xy += f * g;
        xx += f * f;
        yy += g * g;
      }
    }
  }
  const float norm_x = at_least(sqrtf(warp_sum(xx)), 1e-8f);
  const float norm_y = at_least(sqrtf(warp_sum(yy)), 1e-8f);
  xy = warp_sum(xy);
  if (threadIdx.x == 0) p.similarity[row] = xy / (norm_x * norm_y);
}

}  // namespace stc::cuda
