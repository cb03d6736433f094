// SPDX-License-Identifier: Apache-2.0
// Attention that each key receives, in three launches: highest logit and sum of powers of every
// query; what each key gets of every head; the mean over heads. The logits are computed twice and
// never stored. Both passes are one kernel, in which the keys change places with the queries: its
// rows are what it makes sums for, and it goes through the others in tiles. Nothing is added
// atomically, so the result is the same bit for bit.
#pragma once

#include "stc/attention_mma.cuh"
#include "stc/cuda_params.h"

namespace stc::cuda {

//! what a kernel makes of its rows: of queries their RowSum, of keys what they receive
enum class ColumnMeanPass { kQueries, kKeys };

struct ColumnTile {
  HeadView rows, others;
  int64_t row_count, other_count;
  int64_t batch, head, row_head, other_head, first;

  STC_DEVICE ColumnTile(const ColumnMeanKernelParams& p, ColumnMeanPass pass,
                        int64_t rows_of_block) {
    const bool queries = pass == ColumnMeanPass::kQueries;
    rows = queries ? p.query : p.key;
    others = queries ? p.key : p.query;
    row_count = queries ? p.queries : p.keys;
    other_count = queries ? p.keys : p.queries;
    const int64_t tiles = (row_count + rows_of_block - 1) / rows_of_block;
    const Position block(blockIdx.x, tiles), place(block.frame, p.heads);
    batch = place.frame;
    head = place.place;
    const int64_t group = Position(head, p.heads_per_key).frame;
    row_head = queries ? head : group;
    other_head = queries ? group : head;
    first = block.place * rows_of_block;
  }
};

// The sums of one row, over the columns that one lane sees.
struct RowTotal {
  float highest = -INFINITY, sum = 0.0f;

  // First pass: more logits of this query, which are replaced by powers.
  template <int N>
  STC_DEVICE void add_logits(const float (&logit)[N]) {
    float higher = highest;
#pragma unroll
    for (int i = 0; i < N; ++i) higher = fmaxf(higher, logit[i]);
    const float shift = finite_maximum(higher);
    sum *= exp2f(highest - shift);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += exp2f(logit[i] - shift);
    highest = higher;
  }
  // Joins what the lanes have whose numbers differ in the bits of `lanes`.
  STC_DEVICE void join(int lanes) {
    for (int offset = 1; offset <= lanes; offset *= 2) {
      const float other = __shfl_xor_sync(kAllLanes, highest, offset);
      const float more = __shfl_xor_sync(kAllLanes, sum, offset);
      const float higher = fmaxf(highest, other), shift = finite_maximum(higher);
      sum = sum * exp2f(highest - shift) + more * exp2f(other - shift);
      highest = higher;
    }
  }
};

// Second pass: what a query that sums up to `of_query` gives to a key.
STC_DEVICE float received(float logit, const RowSum& of_query) {
  return exp2f(logit - of_query.highest) / of_query.sum;
}
// Not of the zeros behind the last query: with an infinite key they make a NaN.
STC_DEVICE RowSum row_sum_of(const ColumnMeanKernelParams& p, const ColumnTile& at, int64_t query) {
  const int64_t first = (at.batch * p.heads + at.head) * p.queries;
  return query < p.queries ? p.row_sums[first + query] : RowSum{};
}

template <ColumnMeanPass kPass>
STC_DEVICE void store_total(const ColumnMeanKernelParams& p, const ColumnTile& at, int64_t row,
                            const RowTotal& total) {
  if (row >= at.row_count) return;
  const int64_t place = (at.batch * p.heads + at.head) * at.row_count + row;
  if constexpr (kPass == ColumnMeanPass::kQueries) {
    p.row_sums[place] = {finite_maximum(total.highest), total.sum};
  } else {
    p.received[place] = total.sum;
  }
}

// Block: Shape::kQueries rows of one head, on tensor cores; the layout is that of mma_attention.
template <typename T, int Width, ColumnMeanPass kPass>
__global__ void __launch_bounds__(4 * kWarp) mma_sums_kernel(const ColumnMeanKernelParams p) {
  using Shape = MmaShape<Width, 4>;
  constexpr int kTile = Shape::kKeys, kPitch = Shape::kPitch;
  extern __shared__ __align__(16) unsigned char shared[];
  T* rows = reinterpret_cast<T*>(shared);
  T* tiles = rows + Shape::kQueries * kPitch;                               // two, used in turn
  RowSum* of_tile = reinterpret_cast<RowSum*>(tiles + 2 * kTile * kPitch);  // likewise
  const ColumnTile at(p, kPass, Shape::kQueries);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T* row_at = rows + (warp * 16 + lane % 16) * kPitch + lane / 16 * 8;
  const int tile_at = (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;

  const auto load_tile = [&](int64_t first, int turn) {
    load_heads<Shape>(tiles + turn * kTile * kPitch, at.others, at.batch, at.other_head, first,
                      at.other_count, kTile, p.width);
    if constexpr (kPass == ColumnMeanPass::kKeys) {
      for (int i = threadIdx.x; i < kTile; i += Shape::kThreads) {
        of_tile[turn * kTile + i] = row_sum_of(p, at, first + i);
      }
    }
  };
  load_heads<Shape>(rows, at.rows, at.batch, at.row_head, at.first, at.row_count, Shape::kQueries,
                    p.width);
  load_tile(0, 0);
  RowTotal total[2];
  int turn = 0;
  for (int64_t first = 0; first < at.other_count; first += kTile, turn ^= 1) {
    wait_for_copies();
    __syncthreads();  // this tile is there, and nobody reads the one before any more
    if (first + kTile < at.other_count) load_tile(first + kTile, turn ^ 1);
    float logit[kTile / 8][4] = {};
#pragma unroll
    for (int c = 0; c < Width; c += 16) {
      uint32_t a[4];
      load_matrices(a, row_at + c);
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, tiles + (turn * kTile + n * 16) * kPitch + tile_at + c);
        multiply_add<T>(logit[2 * n], a, b[0], b[1]);
        multiply_add<T>(logit[2 * n + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // row lane / 4, then row lane / 4 + 8
      float of_row[kTile / 4];
#pragma unroll
      for (int i = 0; i < kTile / 4; ++i) {
        const int column = i / 2 * 8 + lane % 4 * 2 + i % 2;
        const float scaled = logit[i / 2][2 * half + i % 2] * p.scale;
        if constexpr (kPass == ColumnMeanPass::kQueries) {
          of_row[i] = first + column < at.other_count ? scaled : -INFINITY;
        } else if (first + column < at.other_count) {
          total[half].sum += received(scaled, of_tile[turn * kTile + column]);
        }
      }
      if constexpr (kPass == ColumnMeanPass::kQueries) total[half].add_logits(of_row);
    }
  }
  wait_for_copies();  // where there is no tile nobody has waited for the rows
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if constexpr (kPass == ColumnMeanPass::kKeys) total[half].highest = 0.0f;
    total[half].join(2);
    if (lane % 4 == 0) {
      store_total<kPass>(p, at, at.first + warp * 16 + half * 8 + lane / 4, total[half]);
    }
  }
}

constexpr int kPlainRows = 4;       // of a warp
constexpr int kPlainChannels = 32;  // of a tile

// Block: kPlainWarps * kPlainRows rows of one head of any width. Lane: one column of each tile.
template <typename T, ColumnMeanPass kPass>
__global__ void __launch_bounds__(kPlainThreads, 1)
    plain_sums_kernel(const ColumnMeanKernelParams p) {
  constexpr int kRows = kPlainWarps * kPlainRows;
  __shared__ float rows[kRows][kPlainChannels];
  __shared__ float others[kPlainChannels][kWarp + 1];  // odd pitch: no conflicts in writing
  const ColumnTile at(p, kPass, kRows);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T* own = head_of<T>(at.rows, at.batch, 0, at.row_head);
  const T* other = head_of<T>(at.others, at.batch, 0, at.other_head);
  const auto value = [&](const T* head, const HeadView& view, int64_t token, int64_t count,
                         int64_t c) {
    const bool inside = token < count && c < p.width;
    return inside ? to_float(head[token * view.token_stride + c * view.channel_stride]) : 0.0f;
  };
  RowTotal total[kPlainRows];
  for (int64_t first = 0; first < at.other_count; first += kWarp) {
    float logit[kPlainRows] = {};
    for (int64_t c = 0; c < p.width; c += kPlainChannels) {
      __syncthreads();  // the channels before are still being read
#pragma unroll
      for (int r = 0; r < kPlainRows; ++r) {
        const int i = r * kPlainWarps + warp;
        rows[i][lane] = value(own, at.rows, at.first + i, at.row_count, c + lane);
      }
#pragma unroll
      for (int r = 0; r < kWarp / kPlainWarps; ++r) {
        const int i = r * kPlainWarps + warp;
        others[lane][i] = value(other, at.others, first + i, at.other_count, c + lane);
      }
      __syncthreads();
#pragma unroll 8
      for (int i = 0; i < kPlainChannels; ++i) {
        const float theirs = others[i][lane];
#pragma unroll
        for (int r = 0; r < kPlainRows; ++r) logit[r] += rows[warp * kPlainRows + r][i] * theirs;
      }
    }
    const bool inside = first + lane < at.other_count;
    RowSum of_query = {};
    if constexpr (kPass == ColumnMeanPass::kKeys) of_query = row_sum_of(p, at, first + lane);
#pragma unroll
    for (int r = 0; r < kPlainRows; ++r) {
      const float scaled = logit[r] * p.scale;
      if constexpr (kPass == ColumnMeanPass::kKeys) {
        if (inside) total[r].sum += received(scaled, of_query);
      } else {
        const float of_row[1] = {inside ? scaled : -INFINITY};
        total[r].add_logits(of_row);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kPlainRows; ++r) {
    if constexpr (kPass == ColumnMeanPass::kKeys) total[r].highest = 0.0f;
    total[r].join(kWarp / 2);
    if (lane == 0) store_total<kPass>(p, at, at.first + warp * kPlainRows + r, total[r]);
  }
}

// Thread: one key. The heads in order.
static __global__ void __launch_bounds__(kRowThreads)
    mean_over_heads_kernel(const ColumnMeanKernelParams p) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (number >= p.batch * p.keys) return;
  const Position at(number, p.keys);
  const float* received = p.received + at.frame * p.heads * p.keys + at.place;
  float total = 0.0f;
#pragma unroll 8
  for (int64_t head = 0; head < p.heads; ++head) total += received[head * p.keys];
  p.out[number] = total / static_cast<float>(p.heads * p.queries);
}

}  // namespace stc::cuda
