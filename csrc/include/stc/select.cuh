// SPDX-License-Identifier: Apache-2.0
// Top-k of each frame as a radix select by one block: four counting passes find the k-th key, one
// more lists the positions in ascending order. Nothing is sorted, nothing depends on the order in
// which threads run, and ties go to the lower index by construction.
#pragma once

#include "stc/device.cuh"
#include "stc/selection_key.h"

namespace stc::cuda {

constexpr int kSelectThreads = 512;
constexpr int kSelectWarps = kSelectThreads / kWarp;
//! keys of a frame are kept in shared memory up to here, and made from the scores again beyond
constexpr int64_t kSharedKeys = 11264;

STC_DEVICE int warp_sum(int x) { return static_cast<int>(__reduce_add_sync(kAllLanes, x)); }

STC_DEVICE int lanes_before(unsigned lanes) {
  return __popc(lanes & ((1u << (threadIdx.x % kWarp)) - 1));
}

template <bool kShared>
struct Keys {
  const float* scores;
  uint32_t* shared;
  int64_t pinned;
  bool highest;

  STC_DEVICE uint32_t make(int64_t token, float score) const {
    return token < pinned ? 0u : selection_key(score, highest);
  }
  STC_DEVICE uint32_t operator[](int64_t token) const {
    if constexpr (kShared) return shared[token];
    return make(token, scores[token]);
  }
  // Each thread makes those that it counts with; a barrier comes before others read them. Not from
  // the L1 cache, which may hold what was there before another block of this launch wrote it.
  STC_DEVICE void share(int64_t tokens) const {
    for (int64_t token = threadIdx.x; token < tokens; token += kSelectThreads) {
      shared[token] = make(token, __ldcg(scores + token));
    }
  }
};

// How many keys do not exceed a limit. The same in all threads.
template <typename K>
STC_DEVICE int64_t count_keys(const K& keys, int64_t tokens, uint32_t limit) {
  __shared__ int counts[kSelectWarps];
  int mine = 0;
  for (int64_t token = threadIdx.x; token < tokens; token += kSelectThreads) {
    mine += keys[token] <= limit;
  }
  mine = warp_sum(mine);
  if (threadIdx.x % kWarp == 0) counts[threadIdx.x / kWarp] = mine;
  __syncthreads();
  int64_t total = 0;
  for (int warp = 0; warp < kSelectWarps; ++warp) total += counts[warp];
  return total;
}

struct Cut {
  uint32_t key;  // all smaller keys are chosen
  int64_t ties;  // so many tokens with this very key are chosen too
};

// Adds one to the bin of every lane in `lanes`, with one addition per bin that occurs in the warp:
// similarities share their highest byte, and so many additions to one bin would queue up.
STC_DEVICE void count_digits(int* histogram, bool open, uint32_t digit) {
  const unsigned same = __match_any_sync(kAllLanes, open ? digit : 256u);
  if (open && lanes_before(same) == 0) atomicAdd(&histogram[digit], __popc(same));
}

// The digit in which the k-th key falls and how many of that bin are wanted; by one warp.
STC_DEVICE void find_digit(const int* histogram, int64_t k, uint32_t* digit, int64_t* missing) {
  constexpr int kBins = 256 / kWarp;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  int64_t own = 0;
  for (int bin = 0; bin < kBins; ++bin) own += histogram[lane * kBins + bin];
  int64_t reached = own;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int64_t other = __shfl_up_sync(kAllLanes, reached, offset);
    if (lane >= offset) reached += other;
  }
  int64_t before = reached - own;
  if (before < k && k <= reached) {  // in exactly one lane
    int bin = lane * kBins;
    while (before + histogram[bin] < k) before += histogram[bin++];
    *digit = static_cast<uint32_t>(bin);
    *missing = k - before;
  }
}

// `k` is at least 1 and at most `tokens`.
template <typename K>
STC_DEVICE Cut find_cut(const K& keys, int64_t tokens, int64_t k) {
  __shared__ int histogram[256];
  __shared__ uint32_t digit;
  __shared__ int64_t missing;
  uint32_t prefix = 0, mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int bin = static_cast<int>(threadIdx.x); bin < 256; bin += kSelectThreads) {
      histogram[bin] = 0;
    }
    __syncthreads();
    // All lanes take part in every round, because they vote.
    for (int64_t start = 0; start < tokens; start += kSelectThreads) {
      const int64_t token = start + threadIdx.x;
      const uint32_t key = token < tokens ? keys[token] : 0u;
      count_digits(histogram, token < tokens && (key & mask) == prefix, (key >> shift) & 0xffu);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) find_digit(histogram, k, &digit, &missing);
    __syncthreads();
    k = missing;
    prefix |= digit << shift;
    mask |= 0xffu << shift;
  }
  return {prefix, k};
}

// Every warp has a run of tokens. A chosen token goes to the place
//   (smaller keys before it) + min(equal keys before it, ties),
// so a warp needs to know of the others only how many of either they have.
template <typename K>
STC_DEVICE void list_chosen(const K& keys, int64_t tokens, const Cut& cut, int32_t* indices) {
  __shared__ int smaller_of[kSelectWarps], equal_of[kSelectWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t run = (tokens + kSelectThreads - 1) / kSelectThreads * kWarp;
  const int64_t first = warp * run;
  const int64_t last = first + run < tokens ? first + run : tokens;
  int smaller_here = 0, equal_here = 0;
  for (int64_t token = first + lane; token < last; token += kWarp) {
    const uint32_t key = keys[token];
    smaller_here += key < cut.key;
    equal_here += key == cut.key;
  }
  smaller_here = warp_sum(smaller_here);
  equal_here = warp_sum(equal_here);
  if (lane == 0) {
    smaller_of[warp] = smaller_here;
    equal_of[warp] = equal_here;
  }
  __syncthreads();
  int64_t smaller = 0, equal = 0;
  for (int other = 0; other < warp; ++other) {
    smaller += smaller_of[other];
    equal += equal_of[other];
  }
  for (int64_t start = first; start < last; start += kWarp) {
    const int64_t token = start + lane;
    const uint32_t key = token < last ? keys[token] : 0xffffffffu;
    const bool is_smaller = token < last && key < cut.key;
    const bool is_equal = token < last && key == cut.key;
    const unsigned smaller_lanes = __ballot_sync(kAllLanes, is_smaller);
    const unsigned equal_lanes = __ballot_sync(kAllLanes, is_equal);
    const int64_t equal_before = equal + lanes_before(equal_lanes);
    if (is_smaller || (is_equal && equal_before < cut.ties)) {
      const int64_t ties_before = equal_before < cut.ties ? equal_before : cut.ties;
      indices[smaller + lanes_before(smaller_lanes) + ties_before] = static_cast<int32_t>(token);
    }
    smaller += __popc(smaller_lanes);
    equal += __popc(equal_lanes);
  }
}

// All threads of the block must call it; the scores of the frame are there.
template <bool kShared>
STC_DEVICE void select_in_frame(const SelectParams& p, int64_t frame, uint32_t* shared_keys) {
  const Keys<kShared> keys = {p.scores + frame * p.tokens, shared_keys, p.pinned, p.highest};
  int32_t* indices = p.indices + frame * p.capacity;
  if constexpr (kShared) keys.share(p.tokens);
  int64_t listed = p.capacity < p.tokens ? p.capacity : p.tokens;
  // Pinned tokens, NaN and what is not above the threshold come first in the order of the keys; of
  // a threshold that is NaN everything is.
  const bool all_below = p.threshold != p.threshold;
  Cut cut = {all_below ? 0xffffffffu : selection_key(p.threshold, p.highest), p.tokens};
  bool all_fit = false;
  if (p.below) {
    const int64_t changed = count_keys(keys, p.tokens, cut.key);
    if (threadIdx.x == 0) p.counts[frame] = static_cast<int32_t>(changed);
    all_fit = changed <= listed;
    if (all_fit) listed = changed;
  }
  if (listed > 0) {  // the same in all threads
    if (!all_fit) cut = find_cut(keys, p.tokens, listed);
    list_chosen(keys, p.tokens, cut, indices);
  }
  for (int64_t i = listed + threadIdx.x; i < p.capacity; i += kSelectThreads) indices[i] = -1;
}

// Block: one frame.
template <bool kShared>
__global__ void __launch_bounds__(kSelectThreads, 1) select_kernel(const SelectParams p) {
  extern __shared__ uint32_t shared_keys[];
  select_in_frame<kShared>(p, blockIdx.x, shared_keys);
}

}  // namespace stc::cuda
