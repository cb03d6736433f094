// SPDX-License-Identifier: Apache-2.0
// Attention that each key receives. A few rows of the attention matrix exist at a time: products,
// softmax and column sums happen while they are in the cache.
#pragma once

#include "stc/panel.h"

namespace stc::STC_ISA {

// exp(x) for x <= 0, to about two units in the last place; NaN stays NaN.
STC_INLINE Vec exp_negative(Vec x) {
  const Vec low = splat(-87.0f);
  const VecBits tiny = bit_cast<VecBits>(x < low);
  const Vec clamped =
      bit_cast<Vec>((tiny & bit_cast<VecBits>(low)) | (~tiny & bit_cast<VecBits>(x)));
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = clamped * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec poly = splat(1.9875691500e-4f);
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  poly = poly * r * r + r + 1.0f;
  const VecBits exponent = (bit_cast<VecBits>(shifted) + 127u) << 23;
  return bit_cast<Vec>(bit_cast<VecBits>(poly * bit_cast<Vec>(exponent)) & ~tiny);
}

inline int64_t column_mean_floats(const ColumnMeanParams& p) {
  const int64_t padded = rounded_up(p.keys, kPanel);
  return padded * (p.channels + kPanelRows + 1) + kPanelRows * p.channels;
}

// Keys as panels, zeros behind the last one.
template <bool kUnit, typename T>
STC_INLINE void pack_keys(const ColumnMeanParams& p, const T* key, float* out) {
  for (int64_t n = 0; n < rounded_up(p.keys, kPanel); ++n) {
    const T* from = n < p.keys ? key + n * p.key.token_stride : nullptr;
    float* to = out + n / kPanel * kPanel * p.channels + n % kPanel;
    pack_column<kUnit>(from, p.key.channel_stride, p.channels, to);
  }
}

// Replaces a row of logits by exponentials and returns one over their sum.
STC_INLINE float exponentiate(float* row, int64_t keys, int64_t padded) {
  for (int64_t n = keys; n < padded; ++n) row[n] = -__builtin_inff();
  Vec high = splat(-__builtin_inff());
  for (int64_t n = 0; n < padded; n += kLanes) {
    const Vec v = load(row + n);
    const VecBits above = bit_cast<VecBits>(v > high);
    high = bit_cast<Vec>((above & bit_cast<VecBits>(v)) | (~above & bit_cast<VecBits>(high)));
  }
  float maximum = high[0];
  for (int i = 1; i < kLanes; ++i) maximum = high[i] > maximum ? high[i] : maximum;
  Vec total = {};
  for (int64_t n = 0; n < padded; n += kLanes) {
    const Vec e = exp_negative(load(row + n) - maximum);
    store(row + n, e);
    total += e;
  }
  return 1.0f / sum(total);
}

template <bool kUnit, typename T>
void column_mean_head(const ColumnMeanParams& p, float* scratch, int64_t batch, int64_t head) {
  const int64_t padded = rounded_up(p.keys, kPanel);
  float* keys = scratch;
  float* logits = keys + padded * p.channels;
  float* received = logits + padded * kPanelRows;
  float* query = received + padded;
  const T* key = static_cast<const T*>(p.key.data) + batch * p.key.batch_stride +
                 head / p.heads_per_key * p.key.head_stride;
  const T* first = static_cast<const T*>(p.query.data) + batch * p.query.batch_stride +
                   head * p.query.head_stride;
  pack_keys<kUnit>(p, key, keys);
  for (int64_t n = 0; n < padded; ++n) received[n] = 0.0f;
  for (int64_t row = 0; row < p.queries; row += kPanelRows) {
    const int64_t left = p.queries - row;
    const int count = static_cast<int>(left < kPanelRows ? left : kPanelRows);
    for (int64_t r = 0; r < kPanelRows; ++r) {
      // Behind the last query it is repeated; what comes of that is not looked at.
      const T* at = first + (row + (r < count ? r : count - 1)) * p.query.token_stride;
      pack_row<kUnit>(at, p.query.channel_stride, p.channels, p.scale, query + r * p.channels);
    }
    for (int64_t n = 0; n < padded; n += kPanel) {
      Vec total[kPanelRows][2] = {};
      panel_product(query, p.channels, keys + n * p.channels, p.channels, total);
      for (int r = 0; r < kPanelRows; ++r) {
        store(logits + r * padded + n, total[r][0]);
        store(logits + r * padded + n + kLanes, total[r][1]);
      }
    }
    for (int r = 0; r < count; ++r) {
      float* attention = logits + r * padded;
      const float share = exponentiate(attention, p.keys, padded);
      for (int64_t n = 0; n < padded; n += kLanes) {
        store(received + n, load(received + n) + load(attention + n) * share);
      }
    }
  }
  float* out = p.received + (batch * p.heads + head) * p.keys;
  __builtin_memcpy(out, received, static_cast<uint64_t>(p.keys) * sizeof(float));
}

}  // namespace stc::STC_ISA
