// SPDX-License-Identifier: Apache-2.0
// Matching and merging of tokens. The matrix of cosines is never stored: each tile of dot products
// leaves only the best partner of its candidates.
#pragma once

#include "stc/params.h"
#include "stc/simd.h"

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

// kMatchRows x kColumns dot products at once: each loaded vector is used that often. At the edge
// rows repeat, so that equal tokens go through the same arithmetic wherever they stand.
template <bool kUnit, int kColumns, typename T>
STC_INLINE void dot_tile(const T* const* a, const T* const* b, int64_t stride, int64_t channels,
                         float (*out)[kColumns]) {
  Vec dot[kMatchRows][kColumns] = {};
  int64_t i = 0;
  for (; i + kLanes <= channels; i += kLanes) {
    Vec y[kColumns];
    for (int c = 0; c < kColumns; ++c) y[c] = load<kUnit>(b[c] + i * stride, stride);
    for (int r = 0; r < kMatchRows; ++r) {
      const Vec x = load<kUnit>(a[r] + i * stride, stride);
      for (int c = 0; c < kColumns; ++c) dot[r][c] += x * y[c];
    }
  }
  if (i < channels) {
    const int count = static_cast<int>(channels - i);
    Vec y[kColumns];
    for (int c = 0; c < kColumns; ++c) y[c] = load_partial(b[c] + i * stride, stride, count);
    for (int r = 0; r < kMatchRows; ++r) {
      const Vec x = load_partial(a[r] + i * stride, stride, count);
      for (int c = 0; c < kColumns; ++c) dot[r][c] += x * y[c];
    }
  }
  for (int r = 0; r < kMatchRows; ++r) {
    for (int c = 0; c < kColumns; ++c) out[r][c] = sum(dot[r][c]);
  }
}

template <bool kUnit, typename T>
void match_tiles_range(const MatchParams& p, int64_t begin, int64_t end) {
  constexpr int kColumns = kLanes == 16 ? 6 : 2;  // as many accumulators as registers allow
  const int64_t stride = kUnit ? 1 : p.metric.channel_stride;
  const int64_t tiles = (p.candidates + kMatchRows - 1) / kMatchRows;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t batch = at / tiles, first = at % tiles * kMatchRows;
    const float* inverse = p.inverse + batch * p.tokens;
    const T* a[kMatchRows];
    float scale[kMatchRows], best[kMatchRows];
    int64_t partner[kMatchRows];
    for (int64_t r = 0; r < kMatchRows; ++r) {
      const int64_t last = p.candidates - 1;
      const int64_t token = p.first_candidate + 2 * (first + r < last ? first + r : last);
      a[r] = row_pointer<T>(p.metric, batch, token);
      scale[r] = inverse[token];
      best[r] = -__builtin_inff();
      partner[r] = p.first_partner;
    }
    for (int64_t column = 0; column < p.partners; column += kColumns) {
      const T* b[kColumns];
      int64_t place[kColumns];
      for (int64_t c = 0; c < kColumns; ++c) {
        const int64_t last = p.partners - 1;
        place[c] = p.first_partner + 2 * (column + c < last ? column + c : last);
        b[c] = row_pointer<T>(p.metric, batch, place[c]);
      }
      float dot[kMatchRows][kColumns];
      dot_tile<kUnit, kColumns, T>(a, b, stride, p.channels, dot);
      for (int r = 0; r < kMatchRows; ++r) {
        for (int c = 0; c < kColumns; ++c) {
          const float cosine = dot[r][c] * scale[r] * inverse[place[c]];
          if (cosine > best[r]) best[r] = cosine, partner[r] = place[c];  // never for NaN
        }
      }
    }
    for (int64_t r = 0; r < kMatchRows && first + r < p.candidates; ++r) {
      p.best[batch * p.candidates + first + r] = best[r];
      p.partner[batch * p.candidates + first + r] = static_cast<int32_t>(partner[r]);
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
      __builtin_memset(out, 0, static_cast<uint64_t>(p.channels) * sizeof(T));
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
