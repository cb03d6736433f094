// SPDX-License-Identifier: Apache-2.0
// Resizing a picture into patches: along the rows first, then across them, each a weighted sum of
// bytes, a pair at a time. A vector has the same pair of columns of several rows in the first pass,
// and neighbours of a pair of rows in the second, so neither sums across a vector.
#pragma once

#include "stc/patch_params.h"
#include "stc/pixel_tile.h"
#include "stc/simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace stc::STC_ISA {

typedef int32_t VecInts __attribute__((vector_size(kLanes * 4)));
typedef uint64_t VecLongs __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecPairs __attribute__((vector_size(kLanes * 4)));
typedef uint8_t VecBytePairs __attribute__((vector_size(kLanes * 2)));

STC_INLINE VecBits load_words(const uint32_t* p) {
  VecBits v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// The compilers' own conversion takes three times as many instructions.
STC_INLINE VecBits load_byte_pairs(const uint8_t* p) {
#if defined(__AVX512BW__)
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return bit_cast<VecBits>(_mm512_maskz_cvtepu8_epi16(0xffffffff, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return bit_cast<VecBits>(_mm256_cvtepu8_epi16(bytes));
#else
  VecBytePairs bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  return bit_cast<VecBits>(__builtin_convertvector(bytes, VecPairs));
#endif
}

// Of each word the product of the low halves plus that of the high ones, all with a sign.
STC_INLINE VecBits multiply_pairs(VecBits a, VecBits b) {
#if defined(__AVX512BW__)
  return bit_cast<VecBits>(
      _mm512_maskz_madd_epi16(0xffff, bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return bit_cast<VecBits>(_mm256_madd_epi16(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return bit_cast<VecBits>(_mm_madd_epi16(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
#else
  const VecInts x = bit_cast<VecInts>(a), y = bit_cast<VecInts>(b);
  const VecBits low = bit_cast<VecBits>(x << 16 >> 16) * bit_cast<VecBits>(y << 16 >> 16);
  return low + bit_cast<VecBits>(x >> 16) * bit_cast<VecBits>(y >> 16);
#endif
}

STC_INLINE bool any(VecBits mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(bit_cast<__m512i>(mask), bit_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256(bit_cast<__m256i>(mask), bit_cast<__m256i>(mask));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= mask[lane];
  return bits != 0;
#endif
}

STC_INLINE VecBits rounded_byte(VecBits sum) {
  const VecInts whole = bit_cast<VecInts>(sum) >> kFractionBits;
  const VecInts positive = whole > 0 ? whole : VecInts{};
  return bit_cast<VecBits>(positive < 255 ? positive : VecInts{} + 255);
}

// Bytes of a resized picture, kVectors vectors of them. `add` adds products with half-weights to
// sums. The low halves are looked at only where they can change a byte, which is seldom.
template <int kVectors, typename Add>
STC_INLINE void weighted_bytes(const TapPairs& taps, const uint32_t* tap, VecBits* bytes,
                               const Add& add) {
  const uint32_t least = tap[1], room = (uint32_t{1} << kFractionBits) - 1 - tap[2];
  const uint32_t* high = tap + TapPairs::kHead;
  VecBits sums[kVectors] = {}, open = {};
  add(sums, high);
  for (int v = 0; v < kVectors; ++v) {
    sums[v] = (sums[v] << taps.shift) + (kHalfFraction + least);
    const VecBits fraction = sums[v] & ((uint32_t{1} << kFractionBits) - 1);
    open |= bit_cast<VecBits>(bit_cast<VecInts>(fraction) > static_cast<int32_t>(room));
  }
  if (any(open)) {
    VecBits rest[kVectors] = {};
    add(rest, high + taps.count);
    for (int v = 0; v < kVectors; ++v) sums[v] += rest[v] - least;
  }
  for (int v = 0; v < kVectors; ++v) bytes[v] = rounded_byte(sums[v]);
}

// What lies where along one axis: places [first, end).
struct Span {
  int64_t first, end;
};

// From the first to the last of `count` places that windows begin with, to the end of its window.
STC_INLINE Span windows(const uint32_t* starts, int64_t stride, int64_t count, int64_t window) {
  Span span = {starts[0], starts[0]};
  for (int64_t i = 1; i < count; ++i) {
    const int64_t start = starts[i * stride];
    if (start < span.first) span.first = start;
    if (start > span.end) span.end = start;
  }
  return {span.first, span.end + window};
}

// The pixels along one axis that a patch sees.
STC_INLINE Span seen_by(const Taps& taps, int64_t patch, int64_t size) {
  const int64_t stride = 1 + taps.count;
  const int32_t* tap = taps.data + patch * size * stride;
  return windows(reinterpret_cast<const uint32_t*>(tap), stride, size, taps.count);
}

// The same of `count` pixels in pairs.
STC_INLINE Span pairs_of(const TapPairs& taps, int64_t pixel, int64_t count) {
  return windows(taps.of(pixel), taps.of(1) - taps.of(0), count, taps.count);
}

// A part of a picture on its way: pairs of rows of the picture, columns of the resized one.
struct PatchPart {
  int64_t frame;
  Span pairs;
  Span columns;
  uint8_t* narrowed;  // of each pair, column and colour the bytes of both rows
};

STC_INLINE int64_t pitch_bytes(const PatchParams& p) { return 4 * p.pitch; }

// Pairs [begin, end) of rows of a part. Writes up to 2 bytes behind the last column.
inline void narrow_rows_range(const PatchParams& p, const PatchPart& part, int64_t begin,
                              int64_t end) {
  const uint8_t* frame =
      static_cast<const uint8_t*>(p.pictures.data) + part.frame * p.pictures.frame_stride;
  const TapPairs& taps = p.column_pairs;
  const Span needed = pairs_of(taps, part.columns.first, part.columns.end - part.columns.first);
  constexpr int64_t kRowPairs = kLanes / 2;
  PixelTile tile;
  for (int64_t pair = begin; pair < end; pair += kRowPairs) {
    const uint8_t* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {  // the last row again where there is no other
      const int64_t row = 2 * (part.pairs.first + pair) + lane;
      rows[lane] = frame + (row < p.height ? row : p.height - 1) * p.pictures.row_stride;
    }
    uint8_t* to = part.narrowed + pair * pitch_bytes(p);
    const int64_t pairs = end - pair < kRowPairs ? end - pair : kRowPairs;
    tile.first = tile.end = 0;
    for (int64_t column = part.columns.first; column < part.columns.end; ++column) {
      const uint32_t* tap = taps.of(column);
      VecBits bytes[3];
      weighted_bytes<3>(taps, tap, bytes, [&](VecBits* sums, const uint32_t* weights) {
        for (int64_t done = 0; done < taps.count; done += PixelTile::kPairs) {
          const int64_t from = tap[0] + done, left = taps.count - done;
          const int64_t some = left < PixelTile::kPairs ? left : PixelTile::kPairs;
          if (!tile.has(from, from + some)) {
            const int64_t most = from + PixelTile::kPairs;
            tile.fill(p.pictures, rows, from, needed.end < most ? needed.end : most, p.width);
          }
          const uint32_t* words = tile.words + (from - tile.first) * 3 * kLanes;
          VecBits red = sums[0], green = sums[1], blue = sums[2];
          for (int64_t k = 0; k < some; ++k, words += 3 * kLanes) {
            const VecBits weight = VecBits{} + weights[done + k];
            red += multiply_pairs(load_words(words), weight);
            green += multiply_pairs(load_words(words + kLanes), weight);
            blue += multiply_pairs(load_words(words + 2 * kLanes), weight);
          }
          sums[0] = red, sums[1] = green, sums[2] = blue;
        }
      });
      // A long word has two rows: both reds, greens and blues.
      const VecLongs red_green = bit_cast<VecLongs>(bytes[0] | bytes[1] << 16);
      const VecLongs blue = bit_cast<VecLongs>(bytes[2]);
      const VecLongs made = ((red_green | red_green >> 24) & 0xffffffffu) | (blue | blue >> 24)
                                                                                << 32;
      uint64_t words[kRowPairs];
      __builtin_memcpy(words, &made, sizeof(words));
      for (int64_t i = 0; i < pairs; ++i) {
        __builtin_memcpy(to + i * pitch_bytes(p) + 6 * column, &words[i], sizeof(words[i]));
      }
    }
  }
}

// Rows [begin, end) of the resized picture. Reads less than 8 * kLanes bytes behind the last
// column.
template <typename Unit>
void make_patches_range(const PatchParams& p, const PatchPart& part, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = 64;
  constexpr int kVectors = 4;
  const TapPairs& taps = p.row_pairs;
  const Unit* values = static_cast<const Unit*>(p.values);
  const int64_t step = p.patches.channel_stride, plane = p.patch_height * p.patch_width * step;
  for (int64_t row = begin; row < end; ++row) {
    const uint32_t* tap = taps.of(row);
    const uint8_t* from = part.narrowed + (tap[0] - part.pairs.first) * pitch_bytes(p);
    int64_t across = part.columns.first / p.patch_width;
    int64_t place = part.columns.first % p.patch_width;
    Unit* line = static_cast<Unit*>(p.patches.data) + part.frame * p.patches.batch_stride +
                 row / p.patch_height * p.grid_width * p.patches.token_stride +
                 row % p.patch_height * p.patch_width * step;
    for (int64_t column = part.columns.first; column < part.columns.end; column += kColumns) {
      const int64_t left = part.columns.end - column, count = left < kColumns ? left : kColumns;
      uint32_t bytes[3 * kColumns];
      for (int64_t i = 0; i < 3 * count; i += kVectors * kLanes) {
        const uint8_t* at = from + 6 * column + 2 * i;
        VecBits made[kVectors];
        weighted_bytes<kVectors>(taps, tap, made, [&](VecBits* sums, const uint32_t* weights) {
          for (int64_t k = 0; k < taps.count; ++k) {
            const VecBits weight = VecBits{} + weights[k];
            for (int v = 0; v < kVectors; ++v) {
              const uint8_t* pair = at + k * pitch_bytes(p) + 2 * v * kLanes;
              sums[v] += multiply_pairs(load_byte_pairs(pair), weight);
            }
          }
        });
        __builtin_memcpy(bytes + i, made, sizeof(made));
      }
      const uint32_t* byte = bytes;
      for (int64_t i = 0; i < count;) {
        const int64_t rest = p.patch_width - place, run = rest < count - i ? rest : count - i;
        Unit* to = line + across * p.patches.token_stride + place * step;
        for (int64_t j = 0; j < run; ++j, byte += 3, to += step) {
          to[0] = values[byte[0]];
          to[plane] = values[256 + byte[1]];
          to[2 * plane] = values[512 + byte[2]];
        }
        i += run;
        place += run;
        if (place == p.patch_width) place = 0, ++across;
      }
    }
  }
}

STC_INLINE bool pixels_differ(const GridView& x, const uint8_t* a, const GridView& y,
                              const uint8_t* b, Span columns) {
  if (packed(x) && packed(y)) {
    return __builtin_memcmp(a + 3 * columns.first, b + 3 * columns.first,
                            static_cast<unsigned long>(3 * (columns.end - columns.first))) != 0;
  }
  for (int64_t c = columns.first; c < columns.end; ++c) {
    for (int64_t i = 0; i < 3; ++i) {
      if (a[c * x.column_stride + i * x.channel_stride] !=
          b[c * y.column_stride + i * y.channel_stride]) {
        return true;
      }
    }
  }
  return false;
}

// Marks which patches of a row of patches see a pixel that differs.
inline void mark_changed_range(const PatchParams& p, int64_t frame, int64_t down, Span rows) {
  uint8_t* changed = p.changed + (frame * p.grid_height + down) * p.grid_width;
  for (int64_t i = 0; i < p.grid_width; ++i) changed[i] = 0;
  const uint8_t* current =
      static_cast<const uint8_t*>(p.pictures.data) + frame * p.pictures.frame_stride;
  const uint8_t* before =
      static_cast<const uint8_t*>(p.previous.data) + frame * p.previous.frame_stride;
  for (int64_t row = rows.first; row < rows.end; ++row) {
    const uint8_t* a = current + row * p.pictures.row_stride;
    const uint8_t* b = before + row * p.previous.row_stride;
    // Most rows of most pictures are as they were, and then their patches need not be looked at.
    if (!pixels_differ(p.pictures, a, p.previous, b, {0, p.width})) continue;
    for (int64_t across = 0; across < p.grid_width; ++across) {
      if (changed[across]) continue;
      const Span columns = seen_by(p.columns, across, p.patch_width);
      changed[across] = pixels_differ(p.pictures, a, p.previous, b, columns);
    }
  }
}

}  // namespace stc::STC_ISA
