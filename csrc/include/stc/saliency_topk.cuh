// SPDX-License-Identifier: Apache-2.0
// Scores of the tokens of each frame and the k highest, in two launches: the norm of each token;
// then anchor, scores and selection. What a frame's blocks need of each other they leave in memory,
// and the last of them to arrive goes on with it, adding in a fixed order.
//
// A block of the second launch owns a slice of the channels, of all tokens: it alone makes the
// anchor's part there, and each token's share of the distance to it. So of a frame of N tokens and
// C channels the last block reads N * C / 64 sums, where parts of the anchor by tokens would have
// made it read N / 8 * C. The limit: the tokens are read three times, twice from the caches, so
// (1, 196, 3584) in 16 bits moves 1.4 MB to and 0.2 MB within the GPU, under a microsecond on an
// H200. What is left is latency: two launches, four dependent reads, an atomic, a radix select.
#pragma once

#include "stc/cuda_params.h"
#include "stc/device.cuh"
#include "stc/last_block.cuh"
#include "stc/select.cuh"

namespace stc::cuda {

//! lanes that share a token's part of a slice, each with V channels
template <int V>
constexpr int kSliceLanes = V == 1 ? kWarp : 8;
template <int V>
constexpr int kSliceChannels = kSliceLanes<V> * V;
//! tokens whose loads are on their way at once, per thread
constexpr int kSaliencyUnroll = 4;

STC_DEVICE float inverse_norm(float squares) { return 1.0f / at_least(sqrtf(squares), 1e-12f); }

// Which of V channels take part, one bit each.
template <int V>
STC_DEVICE unsigned used_channels(const SaliencyTopkParams& p, int64_t c) {
  unsigned used = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const bool inside = c + v < p.channels;
    const bool takes_part = p.mask == nullptr || (inside && p.mask[(c + v) * p.mask_stride] != 0);
    used |= inside && takes_part ? 1u << v : 0u;
  }
  return used;
}

template <int V>
STC_DEVICE float sum_of_squares(const float (&x)[V], unsigned used) {
  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < V; ++v) squares += used >> v & 1u ? x[v] * x[v] : 0.0f;
  return squares;
}

// Warp: inverse norm of a token, and behind the last token of the memory.
template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads) token_norms_kernel(const SaliencyTopkParams p) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (thread < p.frames) p.arrivals[thread] = 0;
  const int64_t row = row_of_warp(), tokens = p.frames * p.tokens_per_frame;
  float squares = 0.0f;
  if (row < tokens) {
    const Position at(row, p.tokens_per_frame);
    const T* x = row_of<T>(p.tokens, at.frame, at.place);
    Pack<T, V> packs[kRowUnroll];
    const auto load = [&](int u, int64_t c) {
      packs[u] = load_pack<V>(x, c, p.tokens.channel_stride);
    };
    const auto add = [&](int u, int64_t c) {
      float values[V];
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = to_float(packs[u].lane[v]);
      squares += sum_of_squares<V>(values, used_channels<V>(p, c));
    };
    sweep_row<V>(p.channels, load, add);
  } else if (row == tokens && p.memory.data != nullptr) {
    for (int64_t c = threadIdx.x % kWarp * V; c < p.channels; c += kWarp * V) {
      float values[V];
      unpack<V>(p.memory, c, 0.0f, values);
      squares += sum_of_squares<V>(values, used_channels<V>(p, c));
    }
  }
  squares = warp_sum(squares);
  if (row <= tokens && threadIdx.x % kWarp == 0) p.inverse_norms[row] = inverse_norm(squares);
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

// The slice of a block, as one of its threads sees it: V channels of every kTokens-th token.
template <typename T, int V>
struct Slice {
  static constexpr int kTokens = kSelectThreads / kSliceLanes<V>;
  const SaliencyTopkParams& p;
  const int64_t frame, place, channel;
  const int lane, first;
  const unsigned used;

  STC_DEVICE Slice(const SaliencyTopkParams& params, const Position& block)
      : p(params),
        frame(block.frame),
        place(block.place),
        channel(place * kSliceChannels<V> + threadIdx.x % kSliceLanes<V> * V),
        lane(static_cast<int>(threadIdx.x) % kSliceLanes<V>),
        first(static_cast<int>(threadIdx.x) / kSliceLanes<V>),
        used(used_channels<V>(params, channel)) {}

  // Calls use(token, alive, unit): `unit` is zero where not alive and in channels not used. All
  // lanes of a warp take part in every call.
  template <typename Use>
  STC_DEVICE void sweep(const Use& use) const {
    const int64_t tokens = p.tokens_per_frame;
    for (int64_t start = first; start - first < tokens; start += kTokens * kSaliencyUnroll) {
      Pack<T, V> packs[kSaliencyUnroll];
      float inverse[kSaliencyUnroll];
#pragma unroll
      for (int u = 0; u < kSaliencyUnroll; ++u) {
        const int64_t token = start + u * kTokens;
        if (token < tokens && used != 0) {
          packs[u] =
              load_pack<V>(row_of<T>(p.tokens, frame, token), channel, p.tokens.channel_stride);
          inverse[u] = p.inverse_norms[frame * tokens + token];
        }
      }
#pragma unroll
      for (int u = 0; u < kSaliencyUnroll; ++u) {
        const int64_t token = start + u * kTokens;
        const bool alive = token < tokens;
        float unit[V];
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const bool counts = alive && (used >> v & 1u);
          unit[v] = counts ? to_float(packs[u].lane[v]) * inverse[u] : 0.0f;
        }
        use(token, alive, unit);
      }
    }
  }
};

// The mean of the frame's unit tokens in this thread's channels. All threads must call it.
template <typename T, int V>
STC_DEVICE void mean_unit_token(const Slice<T, V>& slice, float (&anchor)[V]) {
  __shared__ float of_warp[kSelectWarps][kSliceChannels<V>];
  __shared__ float total[kSliceChannels<V>];
  float sum[V] = {};
  slice.sweep([&](int64_t, bool, const float (&unit)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += unit[v];
  });
#pragma unroll
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int offset = kWarp / 2; offset >= kSliceLanes<V>; offset /= 2) {
      sum[v] += __shfl_xor_sync(kAllLanes, sum[v], offset);
    }
    if (threadIdx.x % kWarp < kSliceLanes<V>) {
      of_warp[threadIdx.x / kWarp][slice.lane * V + v] = sum[v];
    }
  }
  __syncthreads();
  if (threadIdx.x < kSliceChannels<V>) {
    float sums = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kSelectWarps; ++warp) sums += of_warp[warp][threadIdx.x];
    total[threadIdx.x] = sums / static_cast<float>(slice.p.tokens_per_frame);
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < V; ++v) anchor[v] = total[slice.lane * V + v];
}

// Sum over the lanes that share a token.
template <int V>
STC_DEVICE float slice_sum(float x) {
#pragma unroll
  for (int offset = kSliceLanes<V> / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

// What this slice adds to the squared distances to (or dot products with) frame and memory.
template <typename T, int V>
STC_DEVICE void leave_shares(const Slice<T, V>& slice) {
  const SaliencyTopkParams& p = slice.p;
  const int64_t tokens = p.tokens_per_frame, block = slice.frame * p.slices + slice.place;
  const bool temporal = p.memory.data != nullptr;
  float anchor[V], past[V] = {};
  mean_unit_token<T, V>(slice, anchor);
  if (temporal && slice.used != 0) {
    unpack<V>(p.memory, slice.channel, 0.0f, past);
    const float inverse = p.inverse_norms[p.frames * tokens];
#pragma unroll
    for (int v = 0; v < V; ++v) past[v] = slice.used >> v & 1u ? past[v] * inverse : 0.0f;
  }
  const float squares = slice_sum<V>(sum_of_squares<V>(anchor, slice.used));
  if (threadIdx.x == 0) p.anchor_squares[block] = squares;
  float* to_frame = p.shares + block * 2 * tokens;
  slice.sweep([&](int64_t token, bool alive, const float (&unit)[V]) {
    float here = 0.0f, then = 0.0f;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float away = unit[v] - anchor[v], since = unit[v] - past[v];
      here += p.gaussian ? away * away : unit[v] * anchor[v];
      then += p.gaussian ? since * since : unit[v] * past[v];
    }
    here = slice_sum<V>(here);
    if (temporal) then = slice_sum<V>(then);
    if (alive && slice.lane == 0) {
      to_frame[token] = here;
      if (temporal) to_frame[tokens + token] = then;
    }
  });
}

// Scores of a frame from the shares of its slices, added in order.
STC_DEVICE void add_shares(const SaliencyTopkParams& p, int64_t frame) {
  const int64_t tokens = p.tokens_per_frame;
  const bool temporal = p.memory.data != nullptr;
  float anchor_inverse = 1.0f;  // of the mean itself
  if (!p.gaussian) {            // of its direction
    float squares = 0.0f;
    for (int64_t slice = threadIdx.x; slice < p.slices; slice += kSelectThreads) {
      squares += __ldcg(p.anchor_squares + frame * p.slices + slice);
    }
    anchor_inverse = inverse_norm(block_sum<kSelectThreads>(squares));
  }
  for (int64_t token = threadIdx.x; token < tokens; token += kSelectThreads) {
    const float* share = p.shares + frame * p.slices * 2 * tokens + token;
    float here = 0.0f, then = 0.0f;
#pragma unroll 16
    for (int64_t slice = 0; slice < p.slices; ++slice) {
      here += __ldcg(share + slice * 2 * tokens);
      if (temporal) then += __ldcg(share + (slice * 2 + 1) * tokens);
    }
    float score = anchor_score(p.gaussian, here * anchor_inverse);
    if (temporal) score = p.alpha * anchor_score(p.gaussian, then) + (1.0f - p.alpha) * score;
    p.scores[frame * tokens + token] = score;
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kSelectThreads, 1) score_kernel(const SaliencyTopkParams p) {
  const Position block(blockIdx.x, p.slices);
  leave_shares<T, V>(Slice<T, V>(p, block));
  if (!is_last_block(p.arrivals + block.frame, static_cast<uint32_t>(p.slices))) return;
  add_shares(p, block.frame);
  if (p.k == 0) return;
  // Each thread counts with the scores that it has added up; before others read them is a barrier.
  const Keys<false> keys = {p.scores + block.frame * p.tokens_per_frame, nullptr, 0, true};
  const Cut cut = find_cut(keys, p.tokens_per_frame, p.k);
  list_chosen(keys, p.tokens_per_frame, cut, p.indices + block.frame * p.k);
}

}  // namespace stc::cuda
