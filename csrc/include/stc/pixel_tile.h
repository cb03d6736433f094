// SPDX-License-Identifier: Apache-2.0
// Some columns of kLanes rows of a picture, as the first pass of a resize reads them.
#pragma once

#include "stc/patch_params.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

STC_INLINE bool packed(const GridView& view) {
  return view.column_stride == 3 && view.channel_stride == 1;
}

#if defined(__AVX2__)
// The bytes of four pixels, from `at` on, of eight rows, as two pairs of each colour.
STC_INLINE void split_pixels(const uint8_t* const* rows, int64_t at, uint32_t* to) {
  const auto bytes = [&](int row) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + at));
  };
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11, -1, -1, -1, -1));
  __m256i quads[4];  // a word has one colour of four pixels
  for (int i = 0; i < 4; ++i) {
    quads[i] = _mm256_shuffle_epi8(_mm256_set_m128i(bytes(i + 4), bytes(i)), order);
  }
  const __m256i low_01 = _mm256_unpacklo_epi32(quads[0], quads[1]);
  const __m256i low_23 = _mm256_unpacklo_epi32(quads[2], quads[3]);
  const __m256i high_01 = _mm256_unpackhi_epi32(quads[0], quads[1]);
  const __m256i high_23 = _mm256_unpackhi_epi32(quads[2], quads[3]);
  const __m256i colours[3] = {_mm256_unpacklo_epi64(low_01, low_23),
                              _mm256_unpackhi_epi64(low_01, low_23),
                              _mm256_unpacklo_epi64(high_01, high_23)};
  const __m256i pairs = _mm256_set1_epi32(0x00ff00ff);
  for (int c = 0; c < 3; ++c) {
    const auto place = [&](int i) { return reinterpret_cast<__m256i*>(to + (3 * i + c) * kLanes); };
    _mm256_storeu_si256(place(0), _mm256_and_si256(colours[c], pairs));
    _mm256_storeu_si256(place(1), _mm256_and_si256(_mm256_srli_epi16(colours[c], 8), pairs));
  }
}
#endif

struct PixelTile {
  static constexpr int64_t kPairs = 128;  // 24 KiB at most, which stay in the nearest cache
  int64_t first = 0, end = 0;             // pairs of columns
  uint32_t
      words[kPairs * 3 * kLanes];  // (pair, colour, row): the bytes of two columns, 16 bits each

  STC_INLINE bool has(int64_t from, int64_t to) const { return first <= from && to <= end; }

  __attribute__((noinline)) void fill(const GridView& view, const uint8_t* const* rows,
                                      int64_t from, int64_t to, int64_t width) {
    first = from;
    end = to;
    int64_t pair = from;
    uint32_t* place = words;
#if defined(__AVX2__)
    for (; packed(view) && pair + 2 <= to && 6 * pair + 16 <= 3 * width; pair += 2) {
      for (int lane = 0; lane < kLanes; lane += 8) {
        split_pixels(rows + lane, 6 * pair, place + lane);
      }
      place += 2 * 3 * kLanes;
    }
#endif
    for (; pair < to; ++pair, place += 3 * kLanes) {
      const int64_t left = 2 * pair * view.column_stride;
      const int64_t right = 2 * pair + 1 < width ? left + view.column_stride : left;
      for (int64_t c = 0; c < 3; ++c) {
        for (int lane = 0; lane < kLanes; ++lane) {
          const uint8_t* byte = rows[lane] + c * view.channel_stride;
          place[c * kLanes + lane] = byte[left] | static_cast<uint32_t>(byte[right]) << 16;
        }
      }
    }
  }
};

}  // namespace stc::STC_ISA
