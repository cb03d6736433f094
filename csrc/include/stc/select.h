// SPDX-License-Identifier: Apache-2.0
// Top-k as a radix select: four counting passes find the k-th key, one more lists the indices in
// ascending order, so nothing is ever sorted and ties go to the lower index by construction.
#pragma once

#include "stc/params.h"
#include "stc/selection_key.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

struct Cut {
  uint32_t key;  // all smaller keys are chosen
  int64_t ties;  // so many tokens with this very key are chosen too
};

STC_INLINE Cut find_cut(const uint32_t* keys, int64_t n, int64_t k) {
  uint32_t prefix = 0, mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t histogram[256] = {};
    for (int64_t i = 0; i < n; ++i) {
      if ((keys[i] & mask) == prefix) ++histogram[(keys[i] >> shift) & 0xff];
    }
    uint32_t digit = 0;
    while (k > histogram[digit]) k -= histogram[digit++];
    prefix |= digit << shift;
    mask |= 0xffu << shift;
  }
  return {prefix, k};
}

// Writes min(k, n) ascending indices.
STC_INLINE void list_smallest(const uint32_t* keys, int64_t n, int64_t k, int32_t* out) {
  if (k <= 0) return;
  if (k >= n) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int32_t>(i);
    return;
  }
  Cut cut = find_cut(keys, n, k);
  int64_t written = 0;
  for (int64_t i = 0; i < n && written < k; ++i) {
    const bool tie = keys[i] == cut.key && cut.ties > 0;
    if (keys[i] < cut.key || tie) out[written++] = static_cast<int32_t>(i);
    cut.ties -= tie;
  }
}

inline void select_range(const SelectParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* scores = p.scores + row * p.tokens;
    uint32_t* keys = p.keys + row * p.tokens;
    int32_t* indices = p.indices + row * p.capacity;
    int64_t listed = p.capacity, within = 0;
    for (int64_t i = 0; i < p.tokens; ++i) {
      const bool pinned = i < p.pinned;
      keys[i] = pinned ? 0u : selection_key(scores[i], p.highest);
      within += pinned || !(scores[i] > p.threshold);
    }
    if (p.below) {
      // What lies below the threshold comes first in the order of the keys, so listing the smallest
      // keys is right whether or not they all fit.
      p.counts[row] = static_cast<int32_t>(within);
      if (within < listed) listed = within;
    }
    list_smallest(keys, p.tokens, listed, indices);
    if (listed > p.tokens) listed = p.tokens;
    for (int64_t i = listed; i < p.capacity; ++i) indices[i] = -1;
  }
}

}  // namespace stc::STC_ISA
