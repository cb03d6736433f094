// SPDX-License-Identifier: Apache-2.0
// Stream compaction without host synchronisation, in three launches: marks counted per piece, kept
// tokens numbered, rows copied. Sums of integers only, so the order of blocks does not matter.
#pragma once

#include "stc/pruning_params.h"
#include "stc/rows.cuh"

namespace stc::cuda {

constexpr int kCompactThreads = 256;
constexpr int kCompactWarps = kCompactThreads / kWarp;
static_assert(kCompactPiece % kCompactThreads == 0);

STC_DEVICE bool is_kept(const CompactionParams& p, int64_t frame, int64_t token) {
  return token < p.tokens_per_frame &&
         p.keep[frame * p.keep_frame_stride + token * p.keep_token_stride];
}

// The same total in all threads. All threads of the block must call it.
STC_DEVICE int64_t compact_block_sum(int64_t x) {
  __shared__ long long partial[kCompactWarps];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, static_cast<long long>(x), offset);
  }
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  int64_t total = 0;
#pragma unroll
  for (int warp = 0; warp < kCompactWarps; ++warp) total += partial[warp];
  return total;
}

// Block: one piece.
__global__ void __launch_bounds__(kCompactThreads) compact_count_kernel(const CompactionParams p) {
  const int64_t pieces = pieces_per_frame(p.tokens_per_frame);
  const int64_t frame = blockIdx.x / pieces;
  const int64_t first = blockIdx.x % pieces * kCompactPiece;
  int64_t kept = 0;
#pragma unroll
  for (int64_t i = 0; i < kCompactPiece; i += kCompactThreads) {
    kept += is_kept(p, frame, first + i + threadIdx.x) ? 1 : 0;
  }
  kept = compact_block_sum(kept);
  if (threadIdx.x == 0) p.piece_counts[blockIdx.x] = static_cast<int32_t>(kept);
}

// Sum of piece_counts[begin, end), the same in all threads.
STC_DEVICE int64_t count_pieces(const CompactionParams& p, int64_t begin, int64_t end) {
  int64_t kept = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kCompactThreads) kept += p.piece_counts[i];
  return compact_block_sum(kept);
}

// Block: one piece, whose kept tokens are numbered from the number kept before it.
__global__ void __launch_bounds__(kCompactThreads) compact_number_kernel(const CompactionParams p) {
  __shared__ int warp_kept[kCompactWarps];
  const int64_t pieces = pieces_per_frame(p.tokens_per_frame);
  const int64_t frame = blockIdx.x / pieces;
  const int64_t piece = blockIdx.x % pieces;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t place = count_pieces(p, 0, blockIdx.x);
  if (piece == 0) {  // the same for the whole block
    const int64_t in_frame = count_pieces(p, blockIdx.x, blockIdx.x + pieces);
    if (threadIdx.x == 0) p.counts[frame] = static_cast<int32_t>(in_frame);
  }
  for (int64_t i = 0; i < kCompactPiece; i += kCompactThreads) {
    const int64_t token = piece * kCompactPiece + i + threadIdx.x;
    const bool kept = is_kept(p, frame, token);
    const unsigned votes = __ballot_sync(kAllLanes, kept);
    if (lane == 0) warp_kept[warp] = __popc(votes);
    __syncthreads();
    int before = __popc(votes & ((1u << lane) - 1u)), round = 0;
#pragma unroll
    for (int w = 0; w < kCompactWarps; ++w) {
      before += w < warp ? warp_kept[w] : 0;
      round += warp_kept[w];
    }
    if (kept && place + before < p.capacity) {
      p.indices[place + before] = static_cast<int32_t>(frame * p.tokens_per_frame + token);
    }
    place += round;
    __syncthreads();  // before the next round overwrites warp_kept
  }
  // The last piece knows how many there are in all, and marks the places that stay free.
  if (blockIdx.x == gridDim.x - 1) {
    for (int64_t i = place + threadIdx.x; i < p.capacity; i += kCompactThreads) p.indices[i] = -1;
  }
}

// Warp: one row of the output. Copies bits, so Unit is uint16_t or uint32_t.
template <typename Unit, int V>
__global__ void __launch_bounds__(kRowThreads) compact_copy_kernel(const CompactionParams p) {
  const int64_t place = row_of_warp();
  if (place >= p.capacity) return;
  const int64_t source = p.indices[place];
  Unit* to = static_cast<Unit*>(p.packed) + place * p.channels;
  if (source < 0) {
    zero_row<V>(to, p.channels);
  } else {
    const Unit* from =
        row_of<Unit>(p.tokens, source / p.tokens_per_frame, source % p.tokens_per_frame);
    copy_row<V>(to, 1, from, p.tokens.channel_stride, p.channels);
  }
}

}  // namespace stc::cuda
