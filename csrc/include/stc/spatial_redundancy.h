// SPDX-License-Identifier: Apache-2.0
// Cosine of each token with its four neighbours. Every token is multiplied with the one to the
// right and the one below, which the caches still hold: memory sees one read of the tokens.
#pragma once

#include "stc/params.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

template <typename T>
STC_INLINE const T* grid_pointer(const GridView& view, int64_t frame, int64_t row, int64_t column) {
  return static_cast<const T*>(view.data) + frame * view.frame_stride + row * view.row_stride +
         column * view.column_stride;
}

template <bool kUnit, typename T>
void neighbour_dots_range(const NeighbourParams& p, int64_t begin, int64_t end) {
  const int64_t stride = kUnit ? 1 : p.tokens.channel_stride;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t column = at % p.width, row = at / p.width % p.height;
    const int64_t frame = at / (p.width * p.height);
    const T* x = grid_pointer<T>(p.tokens, frame, row, column);
    // At the edge the token itself stands in; its dot product is not used.
    const T* right = column + 1 < p.width ? x + p.tokens.column_stride : x;
    const T* below = row + 1 < p.height ? x + p.tokens.row_stride : x;
    Vec xx[2] = {}, xr[2] = {}, xb[2] = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= p.channels; i += 2 * kLanes) {
      for (int u = 0; u < 2; ++u) {
        const int64_t c = (i + u * kLanes) * stride;
        const Vec v = load<kUnit>(x + c, stride);
        xx[u] += v * v;
        xr[u] += v * load<kUnit>(right + c, stride);
        xb[u] += v * load<kUnit>(below + c, stride);
      }
    }
    for (; i < p.channels; i += kLanes) {
      const int count = p.channels - i < kLanes ? static_cast<int>(p.channels - i) : kLanes;
      const Vec v = load_partial(x + i * stride, stride, count);
      xx[0] += v * v;
      xr[0] += v * load_partial(right + i * stride, stride, count);
      xb[0] += v * load_partial(below + i * stride, stride, count);
    }
    const float norm = __builtin_sqrtf(sum(xx[0] + xx[1]));
    p.norm[at] = norm < 1e-8f ? 1e-8f : norm;
    p.right[at] = sum(xr[0] + xr[1]);
    p.below[at] = sum(xb[0] + xb[1]);
  }
}

inline void neighbour_maximum_range(const NeighbourParams& p, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; ++at) {
    const int64_t column = at % p.width, row = at / p.width % p.height;
    float best = -__builtin_inff();
    const auto look = [&](bool inside, int64_t other, const float* dots, int64_t holder) {
      if (!inside || (p.alive != nullptr && p.alive[other] == 0)) return;
      const float cosine = dots[holder] / (p.norm[at] * p.norm[other]);
      if (cosine > best) best = cosine;  // false for NaN
    };
    look(column > 0, at - 1, p.right, at - 1);
    look(column + 1 < p.width, at + 1, p.right, at);
    look(row > 0, at - p.width, p.below, at - p.width);
    look(row + 1 < p.height, at + p.width, p.below, at);
    p.redundancy[at] = best;
  }
}

}  // namespace stc::STC_ISA
