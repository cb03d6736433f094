// SPDX-License-Identifier: Apache-2.0
// Cosines and the selection by them in one launch: a frame's blocks write the cosines of their
// tokens, and the last of them to arrive selects.
//
// The least time for (1, 729, 1152) in 16 bits: 3.4 MB are read once, 0.7 us at the 4.8 TB/s of an
// H200; 5 million operations do not count. The rest is latency. Four warps share a token
// (cosine_team), so that no lane has more than two loads of either input, and all are on their way
// at once. A block has 4 tokens, the frame 183 blocks, which the 132 multiprocessors hold all at
// once: none has more than two, and reads 37 KB at most. Then two trips to the L2 cache, to arrive
// and to fetch 2.9 KB of scores, and about 20 barriers of one block, between which a thread looks
// at 2 keys in shared memory. That is some 4 us with the launch by this count, which no measurement
// has confirmed; a second launch would wait for the first to drain, and cost 1 us more.
//
// With many frames a block takes several rounds (frame_blocks), so that all blocks stay on the GPU
// from first to last, and arriving is paid once per block.
#pragma once

#include "stc/cuda_params.h"
#include "stc/last_block.cuh"
#include "stc/select.cuh"
#include "stc/ticket_slots.h"
#include "stc/token_cosine.cuh"

namespace stc::cuda {

static_assert(kSelectThreads == kCosineThreads);
constexpr int kSelectChangedBlocks = 2;  // of a multiprocessor, at least

//! arrivals of the blocks of each frame, zero whenever no launch with that slot runs
static __device__ uint32_t select_tickets[kTicketSlots][kTicketFrames];

template <typename T, int V>
__global__ void __launch_bounds__(kSelectThreads, kSelectChangedBlocks)
    select_changed_kernel(const SelectChangedParams p) {
  extern __shared__ uint32_t shared_keys[];
  const Position block(blockIdx.x, p.share.blocks);
  const int64_t begin = block.frame * p.cosine.tokens, end = begin + p.cosine.tokens;
  const int64_t first = begin + block.place * p.share.tokens, last = first + p.share.tokens;
  write_cosines<T, V>(p.cosine, static_cast<int>(first), static_cast<int>(last < end ? last : end));
  uint32_t* arrivals = &select_tickets[p.slot][block.frame];
  if (!is_last_block(arrivals, static_cast<uint32_t>(p.share.blocks))) return;
  select_in_frame<true>(p.select, block.frame, shared_keys);
}

}  // namespace stc::cuda
