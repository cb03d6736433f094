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

// A resized picture of three bytes a pixel is kept as one word a pixel: red in the low byte.
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
};

}  // namespace stc
