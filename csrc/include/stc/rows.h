// SPDX-License-Identifier: Apache-2.0
// Moving rows by index. Indices are checked by the caller; -1 means "no row".
#pragma once

#include "stc/params.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

// The element type matters only by its size; Unit is uint16_t or uint32_t. Rows without channels
// may have no memory, and nothing may be copied from or to a null pointer, not even nothing. The
// two may overlap where somebody calls the operator without the checks of Python.
template <typename Unit>
STC_INLINE void copy_row(Unit* to, int64_t to_stride, const Unit* from, int64_t from_stride,
                         int64_t n) {
  if (to_stride == 1 && from_stride == 1) {
    if (n > 0) __builtin_memmove(to, from, static_cast<uint64_t>(n) * sizeof(Unit));
    return;
  }
  for (int64_t i = 0; i < n; ++i) to[i * to_stride] = from[i * from_stride];
}

template <typename Unit>
STC_INLINE void zero_row(Unit* to, int64_t n) {
  if (n > 0) __builtin_memset(to, 0, static_cast<uint64_t>(n) * sizeof(Unit));
}

// One read and one write of the rows: a copy of the output.
template <typename Unit>
void gather_rows_range(const GatherParams& p, int64_t begin, int64_t end) {
  Unit* out = static_cast<Unit*>(p.out);
  for (int64_t at = begin; at < end; ++at) {
    Unit* to = out + at * p.channels;
    const int32_t token = p.indices[at];
    if (token < 0) {
      zero_row(to, p.channels);
    } else {
      const Unit* from = row_pointer<Unit>(p.source, at / p.picked, token);
      copy_row(to, 1, from, p.source.channel_stride, p.channels);
    }
  }
}

// The same from all frames into one row; indices count tokens over the frames.
template <typename Unit>
void compact_rows_range(const CompactParams& p, int64_t begin, int64_t end) {
  Unit* out = static_cast<Unit*>(p.out);
  for (int64_t at = begin; at < end; ++at) {
    Unit* to = out + at * p.channels;
    const int64_t token = p.indices[at];
    if (token < 0) {
      zero_row(to, p.channels);
    } else {
      const Unit* from =
          row_pointer<Unit>(p.source, token / p.tokens_per_frame, token % p.tokens_per_frame);
      copy_row(to, 1, from, p.source.channel_stride, p.channels);
    }
  }
}

template <typename Unit>
void scatter_rows_range(const ScatterParams& p, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; ++at) {
    const int32_t token = p.indices[at];
    if (token < 0) continue;
    const int64_t batch = at / p.picked;
    const MutableTokenView& t = p.target;
    Unit* to = static_cast<Unit*>(t.data) + batch * t.batch_stride + token * t.token_stride;
    const Unit* from = row_pointer<Unit>(p.rows, batch, at % p.picked);
    copy_row(to, t.channel_stride, from, p.rows.channel_stride, p.channels);
  }
}

// out = base + chosen in float32 with one rounding. One read of base, one of either the update or
// the replacing row, one write: what a plain addition takes.
template <bool kUnit, typename T>
STC_INLINE void add_row(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t n,
                        T* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(out + i,
          load<kUnit>(a + i * a_stride, a_stride) + load<kUnit>(b + i * b_stride, b_stride));
  }
  for (; i < n; ++i) {
    out[i] = from_float<T>(to_float(a[i * a_stride]) + to_float(b[i * b_stride]));
  }
}

template <typename T>
void scatter_residual_range(const ResidualParams& p, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(p.out);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t batch = at / p.tokens, token = at % p.tokens;
    const int32_t row = p.row_of_token[at];
    const TokenView& chosen = row < 0 ? p.update : p.rows;
    const T* a = row_pointer<T>(p.base, batch, token);
    const T* b = row_pointer<T>(chosen, batch, row < 0 ? token : row);
    T* to = out + at * p.channels;
    if (p.base.channel_stride == 1 && chosen.channel_stride == 1) {
      add_row<true>(a, 1, b, 1, p.channels, to);
    } else {
      add_row<false>(a, p.base.channel_stride, b, chosen.channel_stride, p.channels, to);
    }
  }
}

}  // namespace stc::STC_ISA
