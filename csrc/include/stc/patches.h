// SPDX-License-Identifier: Apache-2.0
// Resizing a picture into patches: along the rows first, then across them, each a weighted sum of
// words that hold the three bytes of a pixel. A vector has the same column of several rows in the
// first pass, and neighbours in a row in the second, so both are the same few operations a weight,
// without a shuffle.
#pragma once

#include "stc/patch_params.h"
#include "stc/simd.h"

namespace stc::STC_ISA {

typedef int32_t VecInts __attribute__((vector_size(kLanes * 4)));

STC_INLINE VecBits load_words(const uint32_t* p) {
  VecBits v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// kLanes pixels in the making.
struct PixelSums {
  VecBits red = VecBits{} + kHalfFraction;
  VecBits green = VecBits{} + kHalfFraction;
  VecBits blue = VecBits{} + kHalfFraction;

  STC_INLINE void add(VecBits words, int32_t weight) {
    const VecBits w = VecBits{} + static_cast<uint32_t>(weight);
    red += (words & 255u) * w;
    green += ((words >> 8) & 255u) * w;
    blue += (words >> 16) * w;
  }

  static STC_INLINE VecBits byte(VecBits sum) {
    const VecInts whole = bit_cast<VecInts>(sum) >> kFractionBits;
    const VecInts positive = whole & (whole > 0);
    const VecInts large = positive > 255;
    return bit_cast<VecBits>((positive & ~large) | (large & 255));
  }

  STC_INLINE VecBits words() const { return byte(red) | (byte(green) << 8) | (byte(blue) << 16); }
};

// A pixel of any layout as a word.
template <bool kPacked>
STC_INLINE uint32_t pixel_word(const uint8_t* p, int64_t channel_stride) {
  if constexpr (kPacked) {  // two loads, and nothing behind the pixel is read
    uint16_t low;
    __builtin_memcpy(&low, p, sizeof(low));
    return low | static_cast<uint32_t>(p[2]) << 16;
  }
  return p[0] | static_cast<uint32_t>(p[channel_stride]) << 8 |
         static_cast<uint32_t>(p[2 * channel_stride]) << 16;
}

// Some columns of kLanes rows of a picture, the same column of all rows side by side.
struct PixelTile {
  static constexpr int64_t kColumns = 256;  // 16 KiB at most, which stay in the nearest cache
  int64_t first = 0, end = 0;
  uint32_t words[kColumns * kLanes];

  template <bool kPacked>
  void fill(const GridView& view, const uint8_t* const* rows, int64_t from, int64_t width) {
    first = from;
    end = width - from < kColumns ? width : from + kColumns;
    const int64_t step = kPacked ? 3 : view.column_stride;
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint8_t* pixel = rows[lane] + from * step;
      for (int64_t c = 0; c < end - from; ++c, pixel += step) {
        words[c * kLanes + lane] = pixel_word<kPacked>(pixel, view.channel_stride);
      }
    }
  }

  STC_INLINE bool has(int64_t from, int64_t to) const { return first <= from && to <= end; }
};

// A part of a picture on its way: rows [first_row, first_row + rows) of the picture and columns
// [first_column, end_column) of the resized one. Scratch row 0 is picture row first_row.
struct PatchPart {
  int64_t frame;
  int64_t first_row;
  int64_t rows;
  int64_t first_column;
  int64_t end_column;
  uint32_t* narrowed;
};

template <bool kPacked>
void narrow_rows_range(const PatchParams& p, const PatchPart& part, int64_t begin, int64_t end) {
  const uint8_t* frame =
      static_cast<const uint8_t*>(p.pictures.data) + part.frame * p.pictures.frame_stride;
  const Taps& taps = p.columns;
  PixelTile tile;
  for (int64_t row = begin; row < end; row += kLanes) {
    const int lanes = end - row < kLanes ? static_cast<int>(end - row) : kLanes;
    const uint8_t* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {  // the last row again where there is no other
      const int64_t at = part.first_row + row + (lane < lanes ? lane : lanes - 1);
      rows[lane] = frame + at * p.pictures.row_stride;
    }
    tile.first = tile.end = 0;
    for (int64_t column = part.first_column; column < part.end_column; ++column) {
      const int32_t* tap = taps.data + column * (1 + taps.count);
      PixelSums sums;
      for (int64_t done = 0; done < taps.count;) {
        const int64_t left = taps.count - done;
        const int64_t some = left < PixelTile::kColumns ? left : PixelTile::kColumns;
        const int64_t from = tap[0] + done;
        if (!tile.has(from, from + some)) tile.fill<kPacked>(p.pictures, rows, from, p.width);
        const uint32_t* words = tile.words + (from - tile.first) * kLanes;
        for (int64_t k = 0; k < some; ++k) {
          sums.add(load_words(words + k * kLanes), tap[1 + done + k]);
        }
        done += some;
      }
      uint32_t words[kLanes];
      const VecBits made = sums.words();
      __builtin_memcpy(words, &made, sizeof(words));
      uint32_t* to = part.narrowed + row * p.pitch + column;
      for (int lane = 0; lane < lanes; ++lane) to[lane * p.pitch] = words[lane];
    }
  }
}

// Rows [begin, end) of the resized picture. Reads up to kLanes - 1 words behind the last column.
template <typename Unit>
void make_patches_range(const PatchParams& p, const PatchPart& part, int64_t begin, int64_t end) {
  const Taps& taps = p.rows;
  const Unit* values = static_cast<const Unit*>(p.values);
  const int64_t step = p.patches.channel_stride, plane = p.patch_height * p.patch_width * step;
  for (int64_t row = begin; row < end; ++row) {
    const int32_t* tap = taps.data + row * (1 + taps.count);
    const uint32_t* from = part.narrowed + (tap[0] - part.first_row) * p.pitch;
    int64_t across = part.first_column / p.patch_width, place = part.first_column % p.patch_width;
    Unit* line = static_cast<Unit*>(p.patches.data) + part.frame * p.patches.batch_stride +
                 row / p.patch_height * p.grid_width * p.patches.token_stride +
                 row % p.patch_height * p.patch_width * step;
    for (int64_t column = part.first_column; column < part.end_column; column += kLanes) {
      PixelSums sums;
      for (int64_t k = 0; k < taps.count; ++k) {
        sums.add(load_words(from + k * p.pitch + column), tap[1 + k]);
      }
      uint32_t words[kLanes];
      const VecBits made = sums.words();
      __builtin_memcpy(words, &made, sizeof(words));
      const int64_t left = part.end_column - column;
      for (int lane = 0; lane < (left < kLanes ? left : kLanes); ++lane) {
        Unit* to = line + across * p.patches.token_stride + place * step;
        to[0] = values[words[lane] & 255u];
        to[plane] = values[256 + (words[lane] >> 8 & 255u)];
        to[2 * plane] = values[512 + (words[lane] >> 16)];
        if (++place == p.patch_width) place = 0, ++across;
      }
    }
  }
}

// The pixels along one axis that a patch sees.
struct Seen {
  int64_t first, end;
};
STC_INLINE Seen seen_by(const Taps& taps, int64_t patch, int64_t size) {
  const int32_t* tap = taps.data + patch * size * (1 + taps.count);
  Seen seen = {tap[0], tap[0]};
  for (int64_t i = 1; i < size; ++i) {
    const int64_t start = tap[i * (1 + taps.count)];
    if (start < seen.first) seen.first = start;
    if (start > seen.end) seen.end = start;
  }
  return {seen.first, seen.end + taps.count};
}

STC_INLINE bool packed(const GridView& view) {
  return view.column_stride == 3 && view.channel_stride == 1;
}

template <bool kPacked>
STC_INLINE bool pixels_differ(const GridView& x, const uint8_t* a, const GridView& y,
                              const uint8_t* b, Seen columns) {
  if constexpr (kPacked) {
    return __builtin_memcmp(a + 3 * columns.first, b + 3 * columns.first,
                            static_cast<unsigned long>(3 * (columns.end - columns.first))) != 0;
  }
  for (int64_t c = columns.first; c < columns.end; ++c) {
    if (pixel_word<false>(a + c * x.column_stride, x.channel_stride) !=
        pixel_word<false>(b + c * y.column_stride, y.channel_stride)) {
      return true;
    }
  }
  return false;
}

// Marks which patches of a row of patches see a pixel that differs; false if none does.
template <bool kPacked>
bool mark_changed(const PatchParams& p, int64_t frame, int64_t down, Seen rows) {
  uint8_t* changed = p.changed + (frame * p.grid_height + down) * p.grid_width;
  for (int64_t i = 0; i < p.grid_width; ++i) changed[i] = 0;
  const uint8_t* current =
      static_cast<const uint8_t*>(p.pictures.data) + frame * p.pictures.frame_stride;
  const uint8_t* before =
      static_cast<const uint8_t*>(p.previous.data) + frame * p.previous.frame_stride;
  bool any = false;
  for (int64_t row = rows.first; row < rows.end; ++row) {
    const uint8_t* a = current + row * p.pictures.row_stride;
    const uint8_t* b = before + row * p.previous.row_stride;
    // Most rows of most pictures are as they were, and then their patches need not be looked at.
    if (!pixels_differ<kPacked>(p.pictures, a, p.previous, b, {0, p.width})) continue;
    for (int64_t across = 0; across < p.grid_width; ++across) {
      if (changed[across]) continue;
      const Seen columns = seen_by(p.columns, across, p.patch_width);
      changed[across] = pixels_differ<kPacked>(p.pictures, a, p.previous, b, columns);
      any |= changed[across] != 0;
    }
  }
  return any;
}

}  // namespace stc::STC_ISA
