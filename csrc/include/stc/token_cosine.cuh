// SPDX-License-Identifier: Apache-2.0
// Cosine of every token with its reference: some warps per token, both inputs read once.
#pragma once

#include "stc/cosine_plan.h"
#include "stc/device.cuh"

namespace stc::cuda {

static_assert(kCosineWarps % kLargestTeam == 0);

struct Dots {
  float xy, xx, yy;
};

// The part of a row that this lane of a team has.
template <typename T, int V>
STC_DEVICE Dots lane_dots(const CosineParams& p, int row, int lane, int lanes) {
  const Position at(row, p.tokens);
  const T* x = row_of<T>(p.current, at.frame, at.place);
  const T* y = row_of<T>(p.reference, at.frame, at.place);
  Dots sums = {};
  Pack<T, V> a[kCosineUnroll], b[kCosineUnroll];
  const auto load = [&](int u, int64_t c) {
    a[u] = load_pack<V>(x, c, p.current.channel_stride);
    b[u] = load_pack<V>(y, c, p.reference.channel_stride);
  };
  const auto add = [&](int u, int64_t) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float f = to_float(a[u].lane[v]), g = to_float(b[u].lane[v]);
      sums.xy += f * g;
      sums.xx += f * f;
      sums.yy += g * g;
    }
  };
  sweep_lanes<V, kCosineUnroll>(p.channels, lane, lanes, load, add);
  return sums;
}

// Writes the cosines of rows [first, last) of all frames. All threads of the block must call it.
// Numbers of rows fit into 32 bits (see Position), and registers are scarce here.
template <typename T, int V>
STC_DEVICE void write_cosines(const CosineParams& p, int first, int last) {
  __shared__ Dots of_warp[kCosineWarps];
  const int team = cosine_team(p.channels, V);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) & (team * kWarp - 1);
  for (int start = first; start < last; start += kCosineWarps / team) {
    const int row = start + warp / team;
    Dots sums = {};
    if (row < last) sums = lane_dots<T, V>(p, row, lane, team * kWarp);
    sums = {warp_sum(sums.xy), warp_sum(sums.xx), warp_sum(sums.yy)};
    if (lane % kWarp == 0) of_warp[warp] = sums;
    __syncthreads();
    if (row < last && lane == 0) {
      for (int other = 1; other < team; ++other) {
        sums.xy += of_warp[warp + other].xy;
        sums.xx += of_warp[warp + other].xx;
        sums.yy += of_warp[warp + other].yy;
      }
      const float norm_x = at_least(sqrtf(sums.xx), 1e-8f);
      const float norm_y = at_least(sqrtf(sums.yy), 1e-8f);
      p.similarity[row] = sums.xy / (norm_x * norm_y);
    }
    __syncthreads();  // before the next round overwrites of_warp
  }
}

// Block: as many rows as its warps take at once.
template <typename T, int V>
__global__ void __launch_bounds__(kCosineThreads) token_cosine_kernel(const CosineParams p) {
  const int64_t at_once = kCosineWarps / cosine_team(p.channels, V);
  const int64_t first = blockIdx.x * at_once;
  const int64_t last = first + at_once < p.rows ? first + at_once : p.rows;
  write_cosines<T, V>(p, static_cast<int>(first), static_cast<int>(last));
}

// Whether both inputs can be read `vector` elements at a time.
inline bool is_wide(const CosineParams& p, int64_t vector) {
  return vectorises(p.current, p.channels, vector) && vectorises(p.reference, p.channels, vector);
}

}  // namespace stc::cuda
