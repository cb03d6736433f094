// SPDX-License-Identifier: Apache-2.0
// Moving rows by index, one warp per row.
#pragma once

#include "stc/cuda_params.h"
#include "stc/device.cuh"

namespace stc::cuda {

// The token that an entry of a list names, or -1 where there is none.
STC_DEVICE int64_t token_at(const int32_t* indices, int64_t at, int64_t tokens) {
  const int64_t token = indices[at];
  return token < tokens ? token : -1;
}

template <int V, typename T>
STC_DEVICE void copy_row(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t n) {
  Pack<T, V> packs[kRowUnroll];
  sweep_row<V>(
      n, [&](int u, int64_t c) { packs[u] = load_pack<V>(from, c, from_stride); },
      [&](int u, int64_t c) { store_pack<V>(to, c, to_stride, packs[u]); });
}

template <int V, typename T>
STC_DEVICE void zero_row(T* to, int64_t n) {
  Pack<T, V> zero;
#pragma unroll
  for (int v = 0; v < V; ++v) zero.lane[v] = T{};
  for (int64_t c = threadIdx.x % kWarp * V; c < n; c += kWarp * V) store_pack<V>(to, c, 1, zero);
}

// The element type matters only by its size: Unit is uint16_t or uint32_t.
template <typename Unit, int V>
__global__ void __launch_bounds__(kRowThreads) gather_rows_kernel(const GatherParams p) {
  const int64_t at = row_of_warp();
  if (at >= p.count) return;
  Unit* to = static_cast<Unit*>(p.out) + at * p.channels;
  const int64_t token = token_at(p.indices, at, p.tokens);
  if (token < 0) {
    zero_row<V>(to, p.channels);
  } else {
    const Unit* from = row_of<Unit>(p.source, Position(at, p.picked).frame, token);
    copy_row<V>(to, 1, from, p.source.channel_stride, p.channels);
  }
}

template <typename Unit, int V>
__global__ void __launch_bounds__(kRowThreads) scatter_rows_kernel(const ScatterParams p) {
  const int64_t at = row_of_warp();
  if (at >= p.count) return;
  const int64_t token = token_at(p.indices, at, p.tokens);
  if (token < 0) return;
  const Position row(at, p.picked);
  copy_row<V>(row_of<Unit>(p.target, row.frame, token), p.target.channel_stride,
              row_of<Unit>(p.rows, row.frame, row.place), p.rows.channel_stride, p.channels);
}

// Rounded once, after the bias; copied bit by bit without one.
template <int V, typename T>
STC_DEVICE void copy_biased(const MutableTokenView& cache, const TokenView& rows,
                            const ChannelVector& bias, const Position& row, int64_t token,
                            int64_t channels) {
  T* to = row_of<T>(cache, row.frame, token);
  const T* from = row_of<T>(rows, row.frame, row.place);
  if (bias.data == nullptr) {
    copy_row<V>(to, cache.channel_stride, from, rows.channel_stride, channels);
    return;
  }
  Pack<T, V> packs[kRowUnroll];
  const auto load = [&](int u, int64_t c) {
    packs[u] = load_pack<V>(from, c, rows.channel_stride);
  };
  const auto store = [&](int u, int64_t c) {
    float sum[V];
    unpack<V>(bias, c, 0.0f, sum);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += to_float(packs[u].lane[v]);
    store_pack<V>(to, c, cache.channel_stride, pack_floats<T>(sum));
  };
  sweep_row<V>(channels, load, store);
}

template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads) scatter_key_value_kernel(const KeyValueParams p) {
  const int64_t at = row_of_warp();
  if (at >= p.count) return;
  const int64_t token = token_at(p.indices, at, p.tokens);
  if (token < 0) return;
  const Position row(at, p.picked);
  copy_biased<V, T>(p.key_cache, p.key, p.key_bias, row, token, p.channels);
  copy_biased<V, T>(p.value_cache, p.value, p.value_bias, row, token, p.channels);
}

// out = base + chosen in float32 with one rounding. A block has kRowWarps tokens of one frame; all
// its threads look for them in the list, which is short beside the rows and so needs no map in
// memory.
template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads)
    scatter_residual_kernel(const ScatterResidualParams p) {
  __shared__ int place_of[kRowWarps];
  const int64_t blocks_per_frame = (p.tokens + kRowWarps - 1) / kRowWarps;
  const Position block(blockIdx.x, blocks_per_frame);
  const int64_t batch = block.frame, first = block.place * kRowWarps;
  if (threadIdx.x < kRowWarps) place_of[threadIdx.x] = -1;
  __syncthreads();
  const int32_t* indices = p.indices + batch * p.picked;
  for (int64_t place = threadIdx.x; place < p.picked; place += kRowThreads) {
    const int64_t ahead = indices[place] - first;
    // The last place wins, whichever thread comes first.
    if (ahead >= 0 && ahead < kRowWarps) atomicMax(&place_of[ahead], static_cast<int>(place));
  }
  __syncthreads();
  const int64_t token = first + threadIdx.x / kWarp;
  if (token >= p.tokens) return;
  const int place = place_of[threadIdx.x / kWarp];
  const TokenView& chosen = place < 0 ? p.update : p.rows;
  const T* a = row_of<T>(p.base, batch, token);
  const T* b = row_of<T>(chosen, batch, place < 0 ? token : place);
  T* out = static_cast<T*>(p.out) + (batch * p.tokens + token) * p.channels;
  Pack<T, V> x[kRowUnroll], y[kRowUnroll];
  const auto load = [&](int u, int64_t c) {
    x[u] = load_pack<V>(a, c, p.base.channel_stride);
    y[u] = load_pack<V>(b, c, chosen.channel_stride);
  };
  const auto store = [&](int u, int64_t c) {
    float sum[V];
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = to_float(x[u].lane[v]) + to_float(y[u].lane[v]);
    store_pack<V>(out, c, 1, pack_floats<T>(sum));
  };
  sweep_row<V>(p.channels, load, store);
}

}  // namespace stc::cuda
