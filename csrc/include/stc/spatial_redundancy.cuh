// SPDX-License-Identifier: Apache-2.0
// Largest cosine with one of the four neighbours. Two launches: dot products with the tokens to the
// right and below, tile by tile, so that a token is read little more than once; then the maxima.
#pragma once

#include "stc/device.cuh"
#include "stc/pruning_params.h"

namespace stc::cuda {

//! warps of a block, which share the channels of one tile
constexpr int kGridWarps = 4;
constexpr int kGridThreads = kGridWarps * kWarp;
//! from this many tokens on, tiles of several tokens keep a GPU busy
constexpr int64_t kTiledTokens = 4096;

// The tile of a block: its frame and its upper left corner.
struct TileOrigin {
  int64_t frame, row, column;
};

template <int Rows, int Columns>
STC_DEVICE TileOrigin tile_origin(const RedundancyParams& p) {
  const int64_t across = (p.columns + Columns - 1) / Columns;
  const int64_t down = (p.rows + Rows - 1) / Rows;
  const int64_t tile = blockIdx.x;
  return {tile / (across * down), tile / across % down * Rows, tile % across * Columns};
}

// Block: one tile of Rows x Columns tokens. The tile is loaded with the row below and the column to
// the right; every sum adds the same products in the same order whatever the tile.
template <typename T, int V, int Rows, int Columns>
__global__ void __launch_bounds__(kGridThreads) neighbour_dots_kernel(const RedundancyParams p) {
  constexpr int kTokens = Rows * Columns;
  __shared__ float partial[kGridWarps][3 * kTokens];
  const TileOrigin at = tile_origin<Rows, Columns>(p);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T* corner = static_cast<const T*>(p.tokens.data) + at.frame * p.tokens.frame_stride +
                    at.row * p.tokens.row_stride + at.column * p.tokens.column_stride;
  Pack<T, V> zero;
#pragma unroll
  for (int v = 0; v < V; ++v) zero.lane[v] = from_float<T>(0.0f);
  float square[kTokens] = {}, right[kTokens] = {}, below[kTokens] = {};
  for (int64_t c = threadIdx.x * V; c < p.channels; c += kGridThreads * V) {
    Pack<T, V> upper[Columns + 1];
    const auto load_row = [&](Pack<T, V>(&row)[Columns + 1], int r) {
#pragma unroll
      for (int x = 0; x <= Columns; ++x) {
        const bool inside = at.row + r < p.rows && at.column + x < p.columns;
        row[x] = inside
                     ? load_pack<V>(corner + r * p.tokens.row_stride + x * p.tokens.column_stride,
                                    c, p.tokens.channel_stride)
                     : zero;
      }
    };
    load_row(upper, 0);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      Pack<T, V> lower[Columns + 1];
      load_row(lower, r + 1);
#pragma unroll
      for (int x = 0; x < Columns; ++x) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const float f = to_float(upper[x].lane[v]);
          square[r * Columns + x] += f * f;
          right[r * Columns + x] += f * to_float(upper[x + 1].lane[v]);
          below[r * Columns + x] += f * to_float(lower[x].lane[v]);
        }
      }
#pragma unroll
      for (int x = 0; x <= Columns; ++x) upper[x] = lower[x];
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float sums[3] = {warp_sum(square[t]), warp_sum(right[t]), warp_sum(below[t])};
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < 3; ++i) partial[warp][3 * t + i] = sums[i];
    }
  }
  __syncthreads();
  const int t = threadIdx.x / 3;
  const int64_t row = at.row + t / Columns, column = at.column + t % Columns;
  if (t >= kTokens || row >= p.rows || column >= p.columns) return;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kGridWarps; ++w) sum += partial[w][threadIdx.x];
  const int64_t token = (at.frame * p.rows + row) * p.columns + column;
  switch (threadIdx.x % 3) {
    case 0:
      p.norm[token] = sqrtf(sum) < 1e-8f ? 1e-8f : sqrtf(sum);  // a NaN stays one
      break;
    case 1:
      p.dot_right[token] = sum;
      break;
    default:
      p.dot_below[token] = sum;
  }
}

constexpr int kMaximaThreads = 128;

// Thread: one token.
__global__ void __launch_bounds__(kMaximaThreads)
    neighbour_maxima_kernel(const RedundancyParams p) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kMaximaThreads + threadIdx.x;
  if (token >= p.frames * p.rows * p.columns) return;
  const int64_t column = token % p.columns, row = token / p.columns % p.rows;
  const int64_t frame = token / (p.columns * p.rows);
  const float norm = p.norm[token];
  float best = -INFINITY;
  const auto look = [&](bool exists, int64_t r, int64_t c, int64_t other, float dot) {
    if (!exists) return;
    const GridMask& alive = p.alive;
    if (alive.data != nullptr &&
        !alive.data[frame * alive.frame_stride + r * alive.row_stride + c * alive.column_stride]) {
      return;
    }
    const float cosine = dot / (norm * p.norm[other]);
    if (cosine > best) best = cosine;  // false for NaN, which does not count
  };
  const bool has_right = column + 1 < p.columns, has_left = column > 0;
  const bool has_below = row + 1 < p.rows, has_above = row > 0;
  look(has_right, row, column + 1, token + 1, has_right ? p.dot_right[token] : 0.0f);
  look(has_left, row, column - 1, token - 1, has_left ? p.dot_right[token - 1] : 0.0f);
  look(has_below, row + 1, column, token + p.columns, has_below ? p.dot_below[token] : 0.0f);
  look(has_above, row - 1, column, token - p.columns,
       has_above ? p.dot_below[token - p.columns] : 0.0f);
  p.redundancy[token] = best;
}

}  // namespace stc::cuda
