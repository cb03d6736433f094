// SPDX-License-Identifier: Apache-2.0
// What the kernels of the pruners are given, and the arithmetic on it that the host shares.
#pragma once

#include "stc/types.h"

#if defined(__CUDACC__)
#define STC_HOST_DEVICE __host__ __device__
#else
#define STC_HOST_DEVICE
#endif

namespace stc {

// A (frame, row, column) mask of any layout; data is null where there is none.
struct GridMask {
  const bool* data;
  int64_t frame_stride;
  int64_t row_stride;
  int64_t column_stride;
};

struct RedundancyParams {
  DType dtype;
  GridView tokens;
  GridMask alive;
  int64_t frames;
  int64_t rows;
  int64_t columns;
  int64_t channels;
  float* norm;        // scratch (frames, rows, columns)
  float* dot_right;   // scratch, with the token to the right; undefined in the last column
  float* dot_below;   // scratch, with the token below; undefined in the last row
  float* redundancy;  // (frames, rows, columns)
};

// Tokens whose marks one block of compact_tokens looks at.
constexpr int64_t kCompactPiece = 1024;

struct CompactionParams {
  TokenView tokens;  // (frames, tokens_per_frame, channels)
  const bool* keep;
  int64_t keep_frame_stride;
  int64_t keep_token_stride;
  int64_t frames;
  int64_t tokens_per_frame;
  int64_t channels;
  int64_t element_size;
  int64_t capacity;
  int32_t* piece_counts;  // scratch (frames, pieces per frame)
  void* packed;           // contiguous (capacity, channels)
  int32_t* indices;       // (capacity)
  int32_t* counts;        // (frames)
};

// Pieces never straddle two frames, so that a frame's count is the sum of its pieces.
STC_HOST_DEVICE inline int64_t pieces_per_frame(int64_t tokens_per_frame) {
  return (tokens_per_frame + kCompactPiece - 1) / kCompactPiece;
}

}  // namespace stc
