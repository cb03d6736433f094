// SPDX-License-Identifier: Apache-2.0
// Products of a few rows with many: the core of a matrix product. One side is packed into panels of
// kPanel tokens, channel by channel, so that every result lives in one lane of a register: nothing
// is summed up across lanes, and equal tokens give equal products wherever they stand.
#pragma once

#include "stc/params.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

constexpr int kPanelRows = kLanes == 16 ? 8 : 6;  // with two vectors each, what the registers hold
constexpr int kPanel = 2 * kLanes;

STC_INLINE int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Rows of any type and stride as contiguous floats, times a factor.
template <bool kUnit, typename T>
STC_INLINE void pack_row(const T* from, int64_t stride, int64_t channels, float factor, float* to) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    store(to + c, load<kUnit>(from + c * stride, stride) * factor);
  }
  for (; c < channels; ++c) to[c] = to_float(from[c * stride]) * factor;
}

// One token into its column of a panel (channels, kPanel); null for zeros.
template <bool kUnit, typename T>
STC_INLINE void pack_column(const T* from, int64_t stride, int64_t channels, float* to) {
  if (from == nullptr) {
    for (int64_t c = 0; c < channels; ++c) to[c * kPanel] = 0.0f;
    return;
  }
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const Vec v = load<kUnit>(from + c * stride, stride);
    for (int i = 0; i < kLanes; ++i) to[(c + i) * kPanel] = v[i];
  }
  for (; c < channels; ++c) to[c * kPanel] = to_float(from[c * stride]);
}

// Adds the products of kPanelRows rows, `pitch` apart, with one panel to `total`.
STC_INLINE void panel_product(const float* rows, int64_t pitch, const float* panel,
                              int64_t channels, Vec (*total)[2]) {
  Vec sums[kPanelRows][2];
  for (int r = 0; r < kPanelRows; ++r) sums[r][0] = total[r][0], sums[r][1] = total[r][1];
  for (int64_t c = 0; c < channels; ++c) {
    const Vec low = load(panel + c * kPanel), high = load(panel + c * kPanel + kLanes);
    for (int r = 0; r < kPanelRows; ++r) {
      const Vec x = splat(rows[r * pitch + c]);
      sums[r][0] += x * low;
      sums[r][1] += x * high;
    }
  }
  for (int r = 0; r < kPanelRows; ++r) total[r][0] = sums[r][0], total[r][1] = sums[r][1];
}

}  // namespace stc::STC_ISA
