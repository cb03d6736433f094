// SPDX-License-Identifier: Apache-2.0
// What the kernels from pictures to patches are given, on either kind of device.
#pragma once

#include "stc/types.h"

namespace stc {

// Weights are whole numbers that stand for fractions of 2^22, as Pillow has them. Sums of products
// with bytes wrap around, so they are the same in any order.
constexpr int kFractionBits = 22;
constexpr uint32_t kHalfFraction = uint32_t{1} << (kFractionBits - 1);

// Of each pixel along one axis of the resized picture: the first pixel of the picture that it is a
// mixture of, and the weights of that one and those that follow.
struct Taps {
  const int32_t* data;  // contiguous (pixels, 1 + count)
  int64_t count;        // weights of each
};

// The same for instructions that multiply pairs of 16 bits and add the two products: the weights of
// pixels 2 i and 2 i + 1 share a word, and each is high * 2^shift + low, modulo 2^32. With the high
// parts alone a sum is known but for what the low ones add, which is little.
struct TapPairs {
  const uint32_t* data;  // contiguous (pixels, kHead + 2 * count): see below
  int64_t count;         // pairs of each
  int shift;

  // First pair, least sum of the low parts, how much more than that it can be; then all high parts
  // and all low parts.
  static constexpr int64_t kHead = 3;
  const uint32_t* of(int64_t pixel) const { return data + pixel * (kHead + 2 * count); }
};

struct PatchParams {
  GridView pictures;  // (frames, height, width, 3) bytes
  GridView previous;  // the same, of an update
  int64_t frames;
  int64_t height;
  int64_t width;
  Taps rows;
  Taps columns;
  const void* values;  // contiguous (3, 256), of the type of the patches
  int64_t element_size;
  int64_t grid_height;
  int64_t grid_width;
  int64_t patch_height;
  int64_t patch_width;
  int64_t resized_height;  // of the whole patches: grid times patch
  int64_t resized_width;
  MutableTokenView patches;  // (frames, grid, 3 * patch)
  uint8_t* changed;          // (frames, grid): of an update, else null
  uint32_t* narrowed;        // scratch: rows of pictures, resized along the row; see the users
  int64_t pitch;             // words from one scratch row to the next
  TapPairs row_pairs;        // of the CPU alone
  TapPairs column_pairs;
};

}  // namespace stc
