// SPDX-License-Identifier: Apache-2.0
// Layer norm of one row by one block. A row is read from memory once: what the threads can hold
// stays in registers, and the rest of very wide rows is read again from the nearest cache. Mean
// first, then the variance as the mean of squared deviations (no cancellation), then the result.
#pragma once

#include "stc/cuda_params.h"
#include "stc/device.cuh"
#include "stc/rows.cuh"

namespace stc::cuda {

constexpr int kNormThreads = 128;
constexpr int kNormHeld = 4;  // packs per thread

// first(c, x) and again(c, x) give the V channels from `c` on; store(c, normed) takes them.
template <int V, typename First, typename Again, typename Store>
STC_DEVICE void normalise_row(int64_t channels, const ChannelVector& weight,
                              const ChannelVector& bias, float eps, const First& first,
                              const Again& again, const Store& store) {
  constexpr int64_t kStep = static_cast<int64_t>(kNormThreads) * V;
  const int64_t begin = threadIdx.x * V, rest = begin + kNormHeld * kStep;
  float held[kNormHeld][V];
  // Calls f(c, x) for every pack of this thread; the held ones are x already.
  const auto for_each = [&](const auto& read, const auto& f) {
#pragma unroll
    for (int i = 0; i < kNormHeld; ++i) {
      const int64_t c = begin + i * kStep;
      if (c < channels) f(c, held[i]);
    }
    for (int64_t c = rest; c < channels; c += kStep) {
      float x[V];
      read(c, x);
      f(c, x);
    }
  };
#pragma unroll
  for (int i = 0; i < kNormHeld; ++i) {
    const int64_t c = begin + i * kStep;
    if (c < channels) first(c, held[i]);
  }
  float total = 0.0f;
  for_each(first, [&](int64_t, const float (&x)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) total += x[v];
  });
  const float width = static_cast<float>(channels);
  const float mean = block_sum<kNormThreads>(total) / width;
  float squares = 0.0f;
  for_each(again, [&](int64_t, const float (&x)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) squares += (x[v] - mean) * (x[v] - mean);
  });
  const float variance = block_sum<kNormThreads>(squares) / width;
  const float inverse = 1.0f / sqrtf(variance + eps);
  for_each(again, [&](int64_t c, const float (&x)[V]) {
    float scale[V], shift[V], normed[V];
    unpack<V>(weight, c, 1.0f, scale);
    unpack<V>(bias, c, 0.0f, shift);
#pragma unroll
    for (int v = 0; v < V; ++v) normed[v] = (x[v] - mean) * inverse * scale[v] + shift[v];
    store(c, normed);
  });
}

template <typename T, int V>
__global__ void __launch_bounds__(kNormThreads, 1)
    gather_layer_norm_kernel(const GatherNormParams p) {
  const int64_t at = blockIdx.x;
  T* out = static_cast<T*>(p.out) + at * p.channels;
  const int64_t token = token_at(p.indices, at, p.tokens);
  if (token < 0) {  // the same in all threads
    for (int64_t c = threadIdx.x; c < p.channels; c += kNormThreads) out[c] = T{};
    return;
  }
  const T* row = row_of<T>(p.source, Position(at, p.picked).frame, token);
  const auto load = [&](int64_t c, float (&x)[V]) {
    unpack<V>(row, c, p.source.channel_stride, x);
  };
  const auto store = [&](int64_t c, const float (&x)[V]) {
    store_pack<V>(out, c, 1, pack_floats<T>(x));
  };
  normalise_row<V>(p.channels, p.weight, p.bias, p.eps, load, load, store);
}

template <typename T, int V>
__global__ void __launch_bounds__(kNormThreads, 1) add_layer_norm_kernel(const AddNormParams p) {
  const int64_t at = blockIdx.x;
  const Position row(at, p.tokens);
  const T* base = row_of<T>(p.base, row.frame, row.place);
  const T* update = row_of<T>(p.update, row.frame, row.place);
  T* total = static_cast<T*>(p.total) + at * p.channels;
  T* out = static_cast<T*>(p.out) + at * p.channels;
  const auto add = [&](int64_t c, float (&x)[V]) {
    float delta[V], scale[V];
    unpack<V>(base, c, p.base.channel_stride, x);
    unpack<V>(update, c, p.update.channel_stride, delta);
    unpack<V>(p.scale, c, 1.0f, scale);
    Pack<T, V> sum;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      // Rounded before the norm: the next block reads the sum in this dtype, too.
      sum.lane[v] = from_float<T>(x[v] + delta[v] * scale[v]);
      x[v] = to_float(sum.lane[v]);
    }
    store_pack<V>(total, c, 1, sum);
  };
  // What a thread has written it may read again.
  const auto load = [&](int64_t c, float (&x)[V]) { unpack<V>(total, c, 1, x); };
  const auto store = [&](int64_t c, const float (&x)[V]) {
    store_pack<V>(out, c, 1, pack_floats<T>(x));
  };
  normalise_row<V>(p.channels, p.weight, p.bias, p.eps, add, load, store);
}

}  // namespace stc::cuda
