// SPDX-License-Identifier: Apache-2.0
// Population variance of every channel over all rows. Eight rows at a time are held in registers,
// their mean and squared deviations come from two passes over registers, and such groups are merged
// by Chan's formula. The first row is subtracted from all, which keeps the running means as small
// as the deviations: a mean a thousand times the deviation costs no accuracy. The input is read
// once and little is written: half the traffic of a copy.
#pragma once

#include "stc/params.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

constexpr int kVarianceGroup = 8;

template <bool kUnit, bool kPartial, typename T>
STC_INLINE Vec load_some(const T* p, int64_t stride, int count) {
  if constexpr (kPartial) return load_partial(p, stride, count);
  return load<kUnit>(p, stride);
}

STC_INLINE Vec load_floats(const float* p, int count) {
  return count == kLanes ? load(p) : load_partial(p, 1, count);
}

STC_INLINE void store_floats(float* p, Vec v, int count) {
  if (count == kLanes) return store(p, v);
  store_partial(p, v, count);
}

// Adds `rows` <= kVarianceGroup rows of one vector of channels to a block that has `before` rows.
template <int kRows, bool kUnit, bool kPartial, typename T>
STC_INLINE void merge_rows(const T* shift, const T* const* row, int64_t offset, int64_t stride,
                           int count, float before, float* mean, float* m2) {
  const Vec origin = load_some<kUnit, kPartial>(shift + offset, stride, count);
  Vec x[kRows], total = {};
  for (int r = 0; r < kRows; ++r) {
    x[r] = load_some<kUnit, kPartial>(row[r] + offset, stride, count) - origin;
    total += x[r];
  }
  const Vec group_mean = total * (1.0f / kRows);
  Vec group_m2 = {};
  for (int r = 0; r < kRows; ++r) group_m2 += (x[r] - group_mean) * (x[r] - group_mean);
  const float share = kRows / (before + kRows);
  const Vec old_mean = load_floats(mean, count);
  const Vec delta = group_mean - old_mean;
  store_floats(mean, old_mean + delta * share, count);
  store_floats(m2, load_floats(m2, count) + group_m2 + delta * delta * (before * share), count);
}

template <int kRows, bool kUnit, typename T>
STC_INLINE void merge_group(const VarianceParams& p, const T* const* row, float before, float* mean,
                            float* m2) {
  const int64_t stride = kUnit ? 1 : p.tokens.channel_stride;
  const T* shift = row_pointer<T>(p.tokens, 0, 0);
  int64_t c = 0;
  for (; c + kLanes <= p.channels; c += kLanes) {
    merge_rows<kRows, kUnit, false>(shift, row, c * stride, stride, kLanes, before, mean + c,
                                    m2 + c);
  }
  if (c < p.channels) {
    const int count = static_cast<int>(p.channels - c);
    merge_rows<kRows, kUnit, true>(shift, row, c * stride, stride, count, before, mean + c, m2 + c);
  }
}

template <bool kUnit, typename T>
void variance_blocks_range(const VarianceParams& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    float* mean = p.block_mean + block * p.channels;
    float* m2 = p.block_m2 + block * p.channels;
    for (int64_t c = 0; c < p.channels; ++c) mean[c] = m2[c] = 0.0f;
    const int64_t first = block * p.block_rows;
    const int64_t last = first + p.block_rows < p.rows ? first + p.block_rows : p.rows;
    for (int64_t at = first; at < last;) {
      const T* row[kVarianceGroup];
      const int count = last - at < kVarianceGroup ? 1 : kVarianceGroup;
      for (int r = 0; r < count; ++r) {
        const int64_t frame = (at + r) / p.tokens_per_frame, token = (at + r) % p.tokens_per_frame;
        row[r] = row_pointer<T>(p.tokens, frame, token);
      }
      const float before = static_cast<float>(at - first);
      if (count == 1) {
        merge_group<1, kUnit>(p, row, before, mean, m2);
      } else {
        merge_group<kVarianceGroup, kUnit>(p, row, before, mean, m2);
      }
      at += count;
    }
  }
}

// Merges the blocks in order. Range: channels.
inline void variance_merge_range(const VarianceParams& p, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += kLanes) {
    const int count = end - c < kLanes ? static_cast<int>(end - c) : kLanes;
    Vec mean = {}, m2 = {};
    for (int64_t block = 0; block < p.blocks; ++block) {
      const int64_t before = block * p.block_rows;
      const int64_t rows = p.rows - before < p.block_rows ? p.rows - before : p.block_rows;
      const float share = static_cast<float>(rows) / static_cast<float>(before + rows);
      const int64_t at = block * p.channels + c;
      const Vec delta = load_floats(p.block_mean + at, count) - mean;
      mean += delta * share;
      m2 += load_floats(p.block_m2 + at, count) +
            delta * delta * (share * static_cast<float>(before));
    }
    store_floats(p.variance + c, m2 / static_cast<float>(p.rows), count);
  }
}

}  // namespace stc::STC_ISA
