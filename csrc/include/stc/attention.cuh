// SPDX-License-Identifier: Apache-2.0
// What both attention kernels share, and the plain one: any dtype, any strides, any width, products
// in float32. Softmax is computed online: a running maximum, a running sum, rescaled accumulators.
#pragma once

#include <cmath>

#include "stc/attention_params.h"
#include "stc/device.cuh"

namespace stc::cuda {

template <typename T>
STC_DEVICE const T* head_of(const HeadView& view, int64_t batch, int64_t token, int64_t head) {
  return static_cast<const T*>(view.data) + batch * view.batch_stride + token * view.token_stride +
         head * view.head_stride;
}

// What is added to the logits of a key; -inf behind the last key.
STC_DEVICE float bias_of(const AttentionParams& p, int64_t batch, int64_t key) {
  if (key >= p.keys) return -INFINITY;
  const KeyBias& bias = p.key_bias;
  if (bias.data == nullptr) return 0.0f;
  const int64_t at = batch * bias.batch_stride + key * bias.token_stride;
  switch (bias.dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(bias.data)[at];
    case DType::kFloat16:
      return to_float(static_cast<const __half*>(bias.data)[at]);
    default:
      return to_float(static_cast<const __nv_bfloat16*>(bias.data)[at]);
  }
}

// Which queries a block takes, and whose keys they meet.
struct QueryTile {
  int64_t batch, head, group, first;
};

STC_DEVICE QueryTile query_tile(const AttentionParams& p, int64_t per_block) {
  const int64_t tiles = (p.queries + per_block - 1) / per_block;
  const int64_t row = blockIdx.x / tiles;
  const int64_t head = row % p.heads;
  return {row / p.heads, head, head / (p.heads / p.groups), blockIdx.x % tiles * per_block};
}

// While all logits are -inf the weights are zeros, not NaN.
STC_DEVICE float finite_maximum(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }
// No weight at all, not even NaN, means zeros.
STC_DEVICE float inverse_of_sum(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

constexpr int kPlainWarps = 4;
constexpr int kPlainThreads = kPlainWarps * kWarp;
constexpr int kPlainKeys = kWarp;  // keys of a tile: one per lane

// How many queries one warp takes at a time: a row of keys is read once for all of them.
template <int Width>
constexpr int kPlainQueries = Width <= 128 ? 4 : 2;

// Block: kPlainWarps * kPlainQueries queries of one head of width <= Width.
template <typename T, int Width>
__global__ void __launch_bounds__(kPlainThreads) plain_attention_kernel(const AttentionParams p) {
  constexpr int R = kPlainQueries<Width>;
  constexpr int kSlices = Width / kWarp;
  __shared__ float tile[kPlainKeys][Width + 1];  // odd pitch: lanes reading a column do not collide
  __shared__ float query[kPlainWarps][Width][R];
  const QueryTile at = query_tile(p, kPlainWarps * R);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int width = static_cast<int>(p.width);

  for (int i = lane; i < R * Width; i += kWarp) {
    const int r = i / Width, c = i % Width;
    const int64_t token = at.first + warp * R + r;
    const bool inside = c < width && token < p.queries;
    query[warp][c][r] = inside ? p.scale * to_float(head_of<T>(p.query, at.batch, token,
                                                               at.head)[c * p.query.channel_stride])
                               : 0.0f;
  }
  const auto load_tile = [&](const HeadView& view, int64_t first) {
    for (int i = threadIdx.x; i < kPlainKeys * Width; i += kPlainThreads) {
      const int k = i / Width, c = i % Width;
      const bool inside = c < width && first + k < p.keys;
      tile[k][c] =
          inside
              ? to_float(head_of<T>(view, at.batch, first + k, at.group)[c * view.channel_stride])
              : 0.0f;
    }
  };

  float maximum[R], sum[R], out[R][kSlices];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    maximum[r] = -INFINITY;
    sum[r] = 0.0f;
#pragma unroll
    for (int s = 0; s < kSlices; ++s) out[r][s] = 0.0f;
  }
  for (int64_t first = 0; first < p.keys; first += kPlainKeys) {
    __syncthreads();  // the values of the tile before are still being read
    load_tile(p.key, first);
    __syncthreads();
    float weight[R] = {};
    for (int c = 0; c < width; ++c) {
      const float k = tile[lane][c];
#pragma unroll
      for (int r = 0; r < R; ++r) weight[r] += query[warp][c][r] * k;
    }
    const float bias = bias_of(p, at.batch, first + lane);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float logit = weight[r] + bias;
      float highest = logit;
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, offset));
      }
      const float before = maximum[r];
      maximum[r] = fmaxf(before, highest);
      const float shift = finite_maximum(maximum[r]);
      const float shrink = expf(before - shift);
      weight[r] = expf(logit - shift);
      sum[r] = sum[r] * shrink + warp_sum(weight[r]);
#pragma unroll
      for (int s = 0; s < kSlices; ++s) out[r][s] *= shrink;
    }
    __syncthreads();
    load_tile(p.value, first);
    __syncthreads();
    for (int k = 0; k < kPlainKeys; ++k) {
      float w[R];
#pragma unroll
      for (int r = 0; r < R; ++r) w[r] = __shfl_sync(kAllLanes, weight[r], k);
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
        const float v = tile[k][s * kWarp + lane];
#pragma unroll
        for (int r = 0; r < R; ++r) out[r][s] += w[r] * v;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int64_t token = at.first + warp * R + r;
    if (token >= p.queries) continue;
    T* row =
        static_cast<T*>(p.out) + ((at.batch * p.queries + token) * p.heads + at.head) * p.width;
    const float inverse = inverse_of_sum(sum[r]);
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      const int c = s * kWarp + lane;
      if (c < width) row[c] = from_float<T>(out[r][s] * inverse);
    }
  }
}

}  // namespace stc::cuda
