// SPDX-License-Identifier: Apache-2.0
// Matching of tokens in two launches: cosines of tiles of candidates and partners, of which each
// candidate's best partner is all that is kept; then, one block per frame, the pairs to merge and
// the rows of the result. Merging is one launch more, in which a row collects its tokens in order.
// Nothing is added atomically, and a maximum does not depend on the order, so the result is the
// same bit for bit.
#pragma once

#include "stc/cuda_params.h"
#include "stc/device.cuh"
#include "stc/select.cuh"

namespace stc::cuda {

//! candidates, and partners, of a warp: each load serves that many products
constexpr int kMatchSide = 4;
//! warps of a block in either direction, which find each other's rows in the L1 cache
constexpr int kMatchWarps = 2;
constexpr int kMatchThreads = kMatchWarps * kMatchWarps * kWarp;

STC_DEVICE int64_t tiles_of(int64_t tokens) { return (tokens + kMatchSide - 1) / kMatchSide; }
STC_DEVICE int64_t candidate_of(const MatchingParams& p, int64_t number) {
  return p.first_candidate + 2 * number;
}
STC_DEVICE int64_t partner_of(const MatchingParams& p, int64_t number) {
  return p.first_partner + 2 * number;
}

// A cosine and a partner as one number, more than 0: of several the largest is that of the highest
// cosine and, among equals, of the first partner.
STC_DEVICE unsigned long long match_of(float cosine, int64_t partner) {
  return static_cast<unsigned long long>(ordered_bits(cosine)) << 32 |
         ~static_cast<uint32_t>(partner);
}

// Warp: one tile. Rows beyond the last repeat it, so that equal tokens go through the same
// arithmetic wherever they stand, and lose every tie.
template <typename T, int V>
__global__ void __launch_bounds__(kMatchThreads) match_tiles_kernel(const MatchingParams p) {
  constexpr int S = kMatchSide;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t across = (tiles_of(p.partners) + kMatchWarps - 1) / kMatchWarps;
  const int64_t down = (tiles_of(p.candidates) + kMatchWarps - 1) / kMatchWarps;
  const Position in_frame(blockIdx.x, across * down), block(in_frame.place, across);
  const int64_t left = (block.frame * kMatchWarps + warp / kMatchWarps) * S;
  const int64_t right_tile = block.place * kMatchWarps + warp % kMatchWarps;
  if (left >= p.candidates || right_tile * S >= p.partners) return;
  const auto clamped = [](int64_t number, int64_t count) {
    return number < count ? number : count - 1;
  };
  const T *x[S], *y[S];
#pragma unroll
  for (int64_t i = 0; i < S; ++i) {
    x[i] = row_of<T>(p.metric, in_frame.frame, candidate_of(p, clamped(left + i, p.candidates)));
    y[i] =
        row_of<T>(p.metric, in_frame.frame, partner_of(p, clamped(right_tile * S + i, p.partners)));
  }
  float xx[S] = {}, yy[S] = {}, xy[S][S] = {};
  for (int64_t c = threadIdx.x % kWarp * V; c < p.channels; c += kWarp * V) {
    Pack<T, V> a[S], b[S];
#pragma unroll
    for (int i = 0; i < S; ++i) {
      a[i] = load_pack<V>(x[i], c, p.metric.channel_stride);
      b[i] = load_pack<V>(y[i], c, p.metric.channel_stride);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float f[S], g[S];
#pragma unroll
      for (int i = 0; i < S; ++i) {
        f[i] = to_float(a[i].lane[v]);
        g[i] = to_float(b[i].lane[v]);
        xx[i] += f[i] * f[i];
        yy[i] += g[i] * g[i];
      }
#pragma unroll
      for (int i = 0; i < S; ++i) {
#pragma unroll
        for (int j = 0; j < S; ++j) xy[i][j] += f[i] * g[j];
      }
    }
  }
  float norm_y[S];
#pragma unroll
  for (int j = 0; j < S; ++j) norm_y[j] = at_least(sqrtf(warp_sum(yy[j])), 1e-8f);
#pragma unroll
  for (int i = 0; i < S; ++i) {
    const float norm_x = at_least(sqrtf(warp_sum(xx[i])), 1e-8f);
    float best = -INFINITY;
    int64_t partner = partner_of(p, right_tile * S);
#pragma unroll
    for (int j = 0; j < S; ++j) {
      const float cosine = warp_sum(xy[i][j]) / (norm_x * norm_y[j]);
      if (cosine > best) {  // false for NaN, which does not count
        best = cosine;
        partner = partner_of(p, right_tile * S + j);
      }
    }
    if (left + i < p.candidates && best > -INFINITY && threadIdx.x % kWarp == 0) {
      atomicMax(&p.match[in_frame.frame * p.candidates + left + i], match_of(best, partner));
    }
  }
}

STC_DEVICE int64_t partner_in(const MatchingParams& p, unsigned long long match) {
  return match == 0 ? p.first_partner : static_cast<int64_t>(~static_cast<uint32_t>(match));
}

// The similarity of each candidate to its best partner; 0 in `match` is a candidate without.
STC_DEVICE void best_cosines(const MatchingParams& p, int64_t frame) {
  float* similarity = p.similarity + frame * p.tokens;
  for (int64_t token = threadIdx.x; token < p.tokens; token += kSelectThreads) {
    similarity[token] = -INFINITY;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p.candidates; i += kSelectThreads) {
    const unsigned long long match = p.match[frame * p.candidates + i];
    const float best = match == 0 ? -INFINITY : ordered_float(static_cast<uint32_t>(match >> 32));
    p.best[frame * p.candidates + i] = best;
    similarity[candidate_of(p, i)] = best;
  }
}

// Numbers the tokens whose map is not -1; the others keep it.
STC_DEVICE void number_survivors(const MatchingParams& p, int32_t* map, int32_t* kept) {
  __shared__ int of_warp[kSelectWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  int before = 0;
  for (int64_t start = 0; start < p.tokens; start += kSelectThreads) {
    const int64_t token = start + threadIdx.x;
    const bool stays = token < p.tokens && map[token] >= 0;
    const unsigned lanes = __ballot_sync(kAllLanes, stays);
    if (threadIdx.x % kWarp == 0) of_warp[warp] = __popc(lanes);
    __syncthreads();
    int row = before + lanes_before(lanes);
    for (int other = 0; other < kSelectWarps; ++other) {
      row += other < warp ? of_warp[other] : 0;
      before += of_warp[other];
    }
    if (stays) {
      map[token] = row;
      kept[row] = static_cast<int32_t>(token);
    }
    __syncthreads();  // before the next round overwrites of_warp
  }
}

// Block: one frame.
static __global__ void __launch_bounds__(kSelectThreads, 1)
    match_pairs_kernel(const MatchingParams p) {
  const int64_t frame = blockIdx.x;
  int32_t* map = p.source_map + frame * p.tokens;
  int32_t* leaves = p.leaves + frame * p.r;
  best_cosines(p, frame);
  for (int64_t token = threadIdx.x; token < p.tokens; token += kSelectThreads) map[token] = 0;
  __syncthreads();
  if (p.r > 0) {
    const Keys<false> keys = {p.best + frame * p.candidates, nullptr, 0, true};
    list_chosen(keys, p.candidates, find_cut(keys, p.candidates, p.r), leaves);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < p.r; i += kSelectThreads) {
      map[candidate_of(p, leaves[i])] = -1;
    }
    __syncthreads();
  }
  number_survivors(p, map, p.kept + frame * (p.tokens - p.r));
  // Partners never leave, so theirs are rows.
  for (int64_t i = threadIdx.x; i < p.r; i += kSelectThreads) {
    const unsigned long long match = p.match[frame * p.candidates + leaves[i]];
    map[candidate_of(p, leaves[i])] = map[partner_in(p, match)];
  }
}

//! packs of a row that a lane of merge_rows adds up
constexpr int kMergeUnroll = 2;
template <int V>
constexpr int kMergeChannels = kWarp * V * kMergeUnroll;

// Warp: some channels of one row of the result, for which it looks through the map.
template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads) merge_rows_kernel(const MergingParams p) {
  const int64_t number = row_of_warp();
  if (number >= p.frames * p.rows * p.parts) return;
  const Position of_part(number, p.parts), at(of_part.frame, p.rows);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = of_part.place * kMergeChannels<V> + lane * V;
  const int32_t* map = p.source_map + at.frame * p.tokens_per_frame;
  float total = 0.0f, sum[kMergeUnroll][V] = {};
  for (int64_t start = 0; start < p.tokens_per_frame; start += kWarp) {
    const int64_t here = start + lane;
    const bool ours = here < p.tokens_per_frame && map[here] == at.place;
    for (unsigned lanes = __ballot_sync(kAllLanes, ours); lanes != 0; lanes &= lanes - 1) {
      const int64_t token = start + __ffs(static_cast<int>(lanes)) - 1;
      const float size =
          p.sizes == nullptr
              ? 1.0f
              : p.sizes[at.frame * p.size_frame_stride + token * p.size_token_stride];
      const T* row = row_of<T>(p.tokens, at.frame, token);
      total += size;
#pragma unroll
      for (int u = 0; u < kMergeUnroll; ++u) {
        const int64_t c = first + u * kWarp * V;
        if (c < p.channels) {
          float x[V];
          unpack<V>(row, c, p.tokens.channel_stride, x);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[u][v] += size * x[v];
        }
      }
    }
  }
  if (of_part.place == 0 && lane == 0) p.out_sizes[of_part.frame] = total;
  T* out = static_cast<T*>(p.out) + of_part.frame * p.channels;
#pragma unroll
  for (int u = 0; u < kMergeUnroll; ++u) {
    const int64_t c = first + u * kWarp * V;
    if (c < p.channels) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[u][v] = total == 0.0f ? 0.0f : sum[u][v] / total;
      store_pack<V>(out, c, 1, pack_floats<T>(sum[u]));
    }
  }
}

}  // namespace stc::cuda
