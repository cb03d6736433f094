// SPDX-License-Identifier: Apache-2.0
// Scores of the tokens of each frame in three launches: the norm of each token and sums of unit
// tokens, their mean (the frame's anchor), the scores. The second read of the tokens is of a few
// megabytes per frame, which are still in the L2 cache unless many frames are scored at once.
#pragma once

#include "stc/cuda_params.h"
#include "stc/device.cuh"

namespace stc::cuda {

constexpr int kSaliencyTokens = 8;  // of a block, one per warp
constexpr int kSaliencyThreads = kSaliencyTokens * kWarp;

// Norms are at least 1e-12; written so that a NaN norm stays NaN.
STC_DEVICE float inverse_norm(float squares) {
  const float norm = sqrtf(squares);
  return 1.0f / (norm < 1e-12f ? 1e-12f : norm);
}

// Zero in the channels that do not take part.
template <int V>
STC_DEVICE void apply_mask(const SaliencyScoreParams& p, int64_t c, float (&x)[V]) {
  if (p.mask == nullptr) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (p.mask[(c + v) * p.mask_stride] == 0) x[v] = 0.0f;
  }
}

// The token of this warp; `alive` is false beyond the frame's last.
struct Place {
  int64_t frame, part, token;
  bool alive;

  STC_DEVICE explicit Place(const SaliencyScoreParams& p)
      : frame(Position(blockIdx.x, p.parts).frame),
        part(Position(blockIdx.x, p.parts).place),
        token(part * kSaliencyTokens + threadIdx.x / kWarp),
        alive(token < p.tokens_per_frame) {}
};

// Inverse norm of each token, and the sum of a block's unit tokens.
template <typename T, int V>
__global__ void __launch_bounds__(kSaliencyThreads, 2)
    partial_anchors_kernel(const SaliencyScoreParams p) {
  __shared__ float inverse_of[kSaliencyTokens];
  const Place at(p);
  const int64_t stride = p.tokens.channel_stride;
  if (at.alive) {
    const T* row = row_of<T>(p.tokens, at.frame, at.token);
    Pack<T, V> packs[kRowUnroll];
    float squares = 0.0f;
    const auto load = [&](int u, int64_t c) { packs[u] = load_pack<V>(row, c, stride); };
    const auto add = [&](int u, int64_t c) {
      float x[V];
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = to_float(packs[u].lane[v]);
      apply_mask(p, c, x);
#pragma unroll
      for (int v = 0; v < V; ++v) squares += x[v] * x[v];
    };
    sweep_row<V>(p.channels, load, add);
    const float inverse = inverse_norm(warp_sum(squares));
    if (threadIdx.x % kWarp == 0) {
      inverse_of[threadIdx.x / kWarp] = inverse;
      p.inverse_norms[at.frame * p.tokens_per_frame + at.token] = inverse;
    }
  }
  __syncthreads();
  // The same tokens again, from the nearest cache, with a thread for every V channels.
  const int64_t first = at.part * kSaliencyTokens;
  const int64_t left = p.tokens_per_frame - first;
  float* partial = p.partials + (at.frame * p.parts + at.part) * p.channels;
  for (int64_t c = threadIdx.x * V; c < p.channels; c += kSaliencyThreads * V) {
    float total[V] = {};
#pragma unroll
    for (int token = 0; token < kSaliencyTokens; ++token) {
      if (token < left) {
        float x[V];
        unpack<V>(row_of<T>(p.tokens, at.frame, first + token), c, stride, x);
#pragma unroll
        for (int v = 0; v < V; ++v) total[v] += x[v] * inverse_of[token];
      }
    }
    apply_mask(p, c, total);
#pragma unroll
    for (int v = 0; v < V; ++v) partial[c + v] = total[v];
  }
}

// Mean of the unit tokens of each frame: one thread per channel adds the parts in order.
static __global__ void __launch_bounds__(kSaliencyThreads, 2)
    mean_anchors_kernel(const SaliencyScoreParams p) {
  const int64_t blocks_per_frame = (p.channels + kSaliencyThreads - 1) / kSaliencyThreads;
  const Position block(blockIdx.x, blocks_per_frame);
  const int64_t frame = block.frame, c = block.place * kSaliencyThreads + threadIdx.x;
  if (c >= p.channels) return;
  const float* partial = p.partials + frame * p.parts * p.channels + c;
  float total = 0.0f;
#pragma unroll 8
  for (int64_t part = 0; part < p.parts; ++part) total += partial[part * p.channels];
  p.anchors[frame * p.channels + c] = total / static_cast<float>(p.tokens_per_frame);
}

// Sum of five Gaussians of widths 1/8 to 2.
STC_DEVICE float gaussians(float squared) {
  return expf(-4.0f * squared) + expf(-2.0f * squared) + expf(-squared) + expf(-0.5f * squared) +
         expf(-0.25f * squared);
}

// What one anchor says about a token: from the squared distance, or from the cosine.
STC_DEVICE float anchor_score(bool gaussian, float sum) {
  return gaussian ? -2.0f * gaussians(sum) : 1.0f - sum;
}

template <typename T, int V>
__global__ void __launch_bounds__(kSaliencyThreads, 1) score_kernel(const SaliencyScoreParams p) {
  const Place at(p);
  const bool temporal = p.memory.data != nullptr;
  const float* anchor = p.anchors + at.frame * p.channels;
  float anchor_squares = 0.0f, memory_squares = 0.0f;
  for (int64_t c = threadIdx.x * V; c < p.channels; c += kSaliencyThreads * V) {
    float past[V];
    unpack<V>(p.memory, c, 0.0f, past);
    apply_mask(p, c, past);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      anchor_squares += anchor[c + v] * anchor[c + v];
      memory_squares += past[v] * past[v];
    }
  }
  const float memory_inverse = inverse_norm(block_sum<kSaliencyThreads>(memory_squares));
  float anchor_inverse = inverse_norm(block_sum<kSaliencyThreads>(anchor_squares));
  if (p.gaussian) anchor_inverse = 1.0f;  // the mean itself, not its direction
  if (!at.alive) return;

  const T* row = row_of<T>(p.tokens, at.frame, at.token);
  const float inverse = p.inverse_norms[at.frame * p.tokens_per_frame + at.token];
  Pack<T, V> packs[kRowUnroll];
  float to_frame = 0.0f, to_past = 0.0f;
  const auto load = [&](int u, int64_t c) {
    packs[u] = load_pack<V>(row, c, p.tokens.channel_stride);
  };
  const auto compare = [&](int u, int64_t c) {
    float x[V], past[V];
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = to_float(packs[u].lane[v]) * inverse;
    apply_mask(p, c, x);
    if (temporal) {
      unpack<V>(p.memory, c, 0.0f, past);
      apply_mask(p, c, past);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float here = anchor[c + v] * anchor_inverse;
      const float away = x[v] - here;
      to_frame += p.gaussian ? away * away : x[v] * here;
      if (temporal) {
        const float then = past[v] * memory_inverse;
        const float since = x[v] - then;
        to_past += p.gaussian ? since * since : x[v] * then;
      }
    }
  };
  sweep_row<V>(p.channels, load, compare);
  float score = anchor_score(p.gaussian, warp_sum(to_frame));
  to_past = warp_sum(to_past);
  if (temporal) score = p.alpha * anchor_score(p.gaussian, to_past) + (1.0f - p.alpha) * score;
  if (threadIdx.x % kWarp == 0) p.scores[at.frame * p.tokens_per_frame + at.token] = score;
}

}  // namespace stc::cuda
