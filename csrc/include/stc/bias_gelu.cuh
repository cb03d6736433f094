// SPDX-License-Identifier: Apache-2.0
// GELU of rows plus a bias, one warp per row: one read and one write.
#pragma once

#include "stc/cuda_params.h"
#include "stc/device.cuh"

namespace stc::cuda {

STC_DEVICE float gelu(float y, Gelu approximate) {
  if (approximate == Gelu::kNone) return 0.5f * y * (1.0f + erff(y * 0.7071067811865476f));
  if (approximate == Gelu::kQuick) return y / (1.0f + expf(-1.702f * y));
  // (1 + tanh(u)) / 2 is the sigmoid of 2 u, and 2 sqrt(2 / pi) is 1.5957691216.
  return y / (1.0f + expf(-1.5957691216057308f * (y + 0.044715f * y * y * y)));
}

template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads) bias_gelu_kernel(const BiasGeluParams p) {
  const int64_t at = row_of_warp();
  if (at >= p.count) return;
  const Position position(at, p.tokens);
  const T* row = row_of<T>(p.x, position.frame, position.place);
  T* out = static_cast<T*>(p.out) + at * p.channels;
  Pack<T, V> packs[kRowUnroll];
  const auto load = [&](int u, int64_t c) { packs[u] = load_pack<V>(row, c, p.x.channel_stride); };
  const auto store = [&](int u, int64_t c) {
    float y[V];
    unpack<V>(p.bias, c, 0.0f, y);
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = gelu(to_float(packs[u].lane[v]) + y[v], p.approximate);
    store_pack<V>(out, c, 1, pack_floats<T>(y));
  };
  sweep_row<V>(p.channels, load, store);
}

}  // namespace stc::cuda
