// SPDX-License-Identifier: Apache-2.0
// Cosine of every token with its reference: one warp per token, both inputs read once.
#pragma once

#include "stc/device.cuh"

namespace stc::cuda {

template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads) token_cosine_kernel(const CosineParams p) {
  const int64_t row = row_of_warp();
  if (row >= p.rows) return;
  const Position at(row, p.tokens);
  const T* x = row_of<T>(p.current, at.frame, at.place);
  const T* y = row_of<T>(p.reference, at.frame, at.place);
  float xy = 0.0f, xx = 0.0f, yy = 0.0f;
  Pack<T, V> a[kRowUnroll], b[kRowUnroll];
  const auto load = [&](int u, int64_t c) {
    a[u] = load_pack<V>(x, c, p.current.channel_stride);
    b[u] = load_pack<V>(y, c, p.reference.channel_stride);
  };
  const auto add = [&](int u, int64_t) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float f = to_float(a[u].lane[v]), g = to_float(b[u].lane[v]);
      xy += f * g;
      xx += f * f;
      yy += g * g;
    }
  };
  sweep_row<V>(p.channels, load, add);
  const float norm_x = at_least(sqrtf(warp_sum(xx)), 1e-8f);
  const float norm_y = at_least(sqrtf(warp_sum(yy)), 1e-8f);
  xy = warp_sum(xy);
  if (threadIdx.x % kWarp == 0) p.similarity[row] = xy / (norm_x * norm_y);
}

}  // namespace stc::cuda
