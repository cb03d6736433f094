// SPDX-License-Identifier: Apache-2.0
// Matching and merging of tokens. The matrix of cosines is never stored: each block of dot products
// leaves only the best partner of its candidates.
#pragma once

#include "stc/panel.h"
#include "stc/rows.h"

namespace stc::STC_ISA {

template <bool kUnit, typename T>
void match_norms_range(const MatchParams& p, int64_t begin, int64_t end) {
  const int64_t stride = kUnit ? 1 : p.metric.channel_stride;
  for (int64_t at = begin; at < end; ++at) {
    const T* x = row_pointer<T>(p.metric, at / p.tokens, at % p.tokens);
    Vec total[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= p.channels; i += 4 * kLanes) {
      for (int u = 0; u < 4; ++u) {
        const Vec v = load<kUnit>(x + (i + u * kLanes) * stride, stride);
        total[u] += v * v;
      }
    }
    for (; i < p.channels; i += kLanes) {
      const int count = p.channels - i < kLanes ? static_cast<int>(p.channels - i) : kLanes;
      const Vec v = load_partial(x + i * stride, stride, count);
      total[0] += v * v;
    }
    const float norm = __builtin_sqrtf(sum((total[0] + total[1]) + (total[2] + total[3])));
    p.inverse[at] = 1.0f / (norm < 1e-8f ? 1e-8f : norm);
  }
}

// A block of candidates against all partners, some partners and channels at a time: what is packed
// of either side stays in the second-level cache.
constexpr int64_t kMatchPartners = 8 * kPanel;
constexpr int64_t kMatchChannels = 256;

inline int64_t match_floats(const MatchParams& p) {
  return rounded_up(p.block, kPanelRows) * (kMatchChannels + kMatchPartners) +
         kMatchPartners * kMatchChannels;
}

template <bool kUnit, typename T>
STC_INLINE void multiply_block(const MatchParams& p, int64_t batch, int64_t candidate, int64_t rows,
                               int64_t partner, int64_t columns, float* packed, float* dots) {
  const int64_t stride = kUnit ? 1 : p.metric.channel_stride;
  const int64_t row_count = rounded_up(rows, kPanelRows), pitch = kMatchPartners;
  float* panels = packed + row_count * kMatchChannels;
  for (int64_t i = 0; i < row_count * pitch; ++i) dots[i] = 0.0f;
  for (int64_t channel = 0; channel < p.channels; channel += kMatchChannels) {
    const int64_t left = p.channels - channel;
    const int64_t channels = left < kMatchChannels ? left : kMatchChannels;
    for (int64_t r = 0; r < row_count; ++r) {
      const int64_t at = candidate + (r < rows ? r : rows - 1);
      const T* x = row_pointer<T>(p.metric, batch, p.first_candidate + 2 * at) + channel * stride;
      pack_row<kUnit>(x, stride, channels, 1.0f, packed + r * kMatchChannels);
    }
    for (int64_t n = 0; n < rounded_up(columns, kPanel); ++n) {
      float* to = panels + n / kPanel * kPanel * kMatchChannels + n % kPanel;
      const T* y = nullptr;
      if (n < columns) {
        const int64_t place = p.first_partner + 2 * (partner + n);
        y = row_pointer<T>(p.metric, batch, place) + channel * stride;
      }
      pack_column<kUnit>(y, stride, channels, to);
    }
    for (int64_t n = 0; n < columns; n += kPanel) {
      for (int64_t r = 0; r < row_count; r += kPanelRows) {
        Vec total[kPanelRows][2] = {};
        panel_product(packed + r * kMatchChannels, kMatchChannels, panels + n * kMatchChannels,
                      channels, total);
        for (int i = 0; i < kPanelRows; ++i) {
          float* out = dots + (r + i) * pitch + n;
          store(out, load(out) + total[i][0]);
          store(out + kLanes, load(out + kLanes) + total[i][1]);
        }
      }
    }
  }
}

template <bool kUnit, typename T>
void match_block(const MatchParams& p, float* scratch, int64_t batch, int64_t first) {
  const int64_t left = p.candidates - first, rows = left < p.block ? left : p.block;
  const float* inverse = p.inverse + batch * p.tokens;
  float* best = p.best + batch * p.candidates + first;
  int32_t* chosen = p.partner + batch * p.candidates + first;
  for (int64_t r = 0; r < rows; ++r) {
    best[r] = -__builtin_inff();
    chosen[r] = static_cast<int32_t>(p.first_partner);
  }
  float* dots = scratch;
  float* packed = dots + rounded_up(p.block, kPanelRows) * kMatchPartners;
  for (int64_t partner = 0; partner < p.partners; partner += kMatchPartners) {
    const int64_t rest = p.partners - partner;
    const int64_t columns = rest < kMatchPartners ? rest : kMatchPartners;
    multiply_block<kUnit, T>(p, batch, first, rows, partner, columns, packed, dots);
    for (int64_t r = 0; r < rows; ++r) {
      const float scale = inverse[p.first_candidate + 2 * (first + r)];
      for (int64_t n = 0; n < columns; ++n) {
        const int64_t place = p.first_partner + 2 * (partner + n);
        const float cosine = dots[r * kMatchPartners + n] * scale * inverse[place];
        if (cosine > best[r]) {  // never for NaN
          best[r] = cosine;
          chosen[r] = static_cast<int32_t>(place);
        }
      }
    }
  }
}

// One read of the tokens, one write of the rows.
template <bool kUnit, typename T>
void merge_rows_range(const MergeParams& p, int64_t begin, int64_t end) {
  const int64_t stride = kUnit ? 1 : p.tokens.channel_stride;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t batch = at / p.rows;
    const int32_t* members = p.members + p.start[at];
    const int64_t count = p.start[at + 1] - p.start[at];
    const float* sizes = p.sizes == nullptr ? nullptr : p.sizes + batch * p.tokens_per_frame;
    T* out = static_cast<T*>(p.out) + at * p.channels;
    float total = 0.0f;
    for (int64_t m = 0; m < count; ++m) total += sizes == nullptr ? 1.0f : sizes[members[m]];
    p.out_sizes[at] = total;
    if (total == 0.0f) {
      zero_row(out, p.channels);
      continue;
    }
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const int lanes = p.channels - c < kLanes ? static_cast<int>(p.channels - c) : kLanes;
      Vec mean = {};
      for (int64_t m = 0; m < count; ++m) {
        const T* x = row_pointer<T>(p.tokens, batch, members[m]) + c * stride;
        const Vec v = lanes == kLanes ? load<kUnit>(x, stride) : load_partial(x, stride, lanes);
        mean += sizes == nullptr ? v : v * sizes[members[m]];
      }
      mean = mean / splat(total);
      if (lanes == kLanes) {
        store(out + c, mean);
      } else {
        store_partial(out + c, mean, lanes);
      }
    }
  }
}

}  // namespace stc::STC_ISA
