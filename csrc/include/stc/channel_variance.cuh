// SPDX-License-Identifier: Apache-2.0
// Population variance of every channel over all rows, read once. A block takes some rows of one
// warp's width of channels; each of its warps keeps mean and squared deviations, and those of warps
// and blocks are merged in order by Chan's formula, so the result is the same bit for bit. The
// first row is subtracted from all, which keeps a mean far larger than the deviation from costing
// digits.
#pragma once

#include "stc/device.cuh"

namespace stc::cuda {

constexpr int kVarianceWarps = 8;
constexpr int kVarianceThreads = kVarianceWarps * kWarp;
constexpr int kVarianceGroup = 4;  // rows in registers

struct Moments {
  float mean, squares;
};

// Adds `more` over `count` > 0 rows to `sum` over `before`.
STC_DEVICE void merge(Moments& sum, float before, const Moments& more, float count) {
  const float share = count / (before + count);
  const float delta = more.mean - sum.mean;
  sum.mean += delta * share;
  sum.squares += more.squares + delta * delta * before * share;
}

template <typename T, int V>
__global__ void __launch_bounds__(kVarianceThreads) variance_blocks_kernel(const VarianceParams p) {
  __shared__ Moments of_warp[kVarianceWarps][kWarp * V];
  __shared__ float rows_of_warp[kVarianceWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Position block(blockIdx.x, p.blocks);
  const int64_t part = block.place, first_channel = block.frame * kWarp * V;
  const int64_t c = first_channel + lane * V;
  const int64_t begin = part * p.block_rows;
  const int64_t end = begin + p.block_rows < p.rows ? begin + p.block_rows : p.rows;
  const int64_t stride = p.tokens.channel_stride;
  const bool inside = c < p.channels;
  float origin[V] = {};
  if (inside) unpack<V>(row_of<T>(p.tokens, 0, 0), c, stride, origin);
  Moments seen[V] = {};
  float before = 0.0f;
  for (int64_t start = begin + warp * kVarianceGroup; start < end;
       start += kVarianceWarps * kVarianceGroup) {
    const int count = end - start < kVarianceGroup ? static_cast<int>(end - start) : kVarianceGroup;
    float x[kVarianceGroup][V] = {};
#pragma unroll
    for (int r = 0; r < kVarianceGroup; ++r) {
      const int64_t at = start + r;
      if (inside && r < count) {
        const Position row(at, p.tokens_per_frame);
        unpack<V>(row_of<T>(p.tokens, row.frame, row.place), c, stride, x[r]);
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      Moments group = {};
#pragma unroll
      for (int r = 0; r < kVarianceGroup; ++r) {
        if (r < count) group.mean += x[r][v] - origin[v];
      }
      group.mean /= static_cast<float>(count);
#pragma unroll
      for (int r = 0; r < kVarianceGroup; ++r) {
        const float d = x[r][v] - origin[v] - group.mean;
        if (r < count) group.squares += d * d;
      }
      merge(seen[v], before, group, static_cast<float>(count));
    }
    before += static_cast<float>(count);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) of_warp[warp][lane * V + v] = seen[v];
  if (lane == 0) rows_of_warp[warp] = before;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kWarp * V; i += kVarianceThreads) {
    const int64_t channel = first_channel + i;
    if (channel >= p.channels) break;
    Moments sum = of_warp[0][i];
    float rows = rows_of_warp[0];
    for (int other = 1; other < kVarianceWarps; ++other) {
      if (rows_of_warp[other] == 0.0f) continue;
      merge(sum, rows, of_warp[other][i], rows_of_warp[other]);
      rows += rows_of_warp[other];
    }
    p.block_mean[part * p.channels + channel] = sum.mean;
    p.block_m2[part * p.channels + channel] = sum.squares;
  }
}

// One thread per channel merges the blocks in order.
static __global__ void __launch_bounds__(kVarianceThreads)
    variance_merge_kernel(const VarianceParams p) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kVarianceThreads + threadIdx.x;
  if (c >= p.channels) return;
  Moments sum = {};
  for (int64_t part = 0; part < p.blocks; ++part) {
    const int64_t before = part * p.block_rows;
    const int64_t rows = p.rows - before < p.block_rows ? p.rows - before : p.block_rows;
    const int64_t at = part * p.channels + c;
    merge(sum, static_cast<float>(before), {p.block_mean[at], p.block_m2[at]},
          static_cast<float>(rows));
  }
  p.variance[c] = sum.squares / static_cast<float>(p.rows);
}

}  // namespace stc::cuda
