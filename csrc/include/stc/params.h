// SPDX-License-Identifier: Apache-2.0
// What each kernel is given. All buffers, scratch included, belong to the caller: the kernels never
// allocate, so they cannot throw inside a parallel region.
#pragma once

#include "stc/types.h"

namespace stc {

// Range: flattened (batch, token).
struct CosineParams {
  DType dtype;
  TokenView current;
  TokenView reference;
  int64_t rows;  // batch * tokens
  int64_t tokens;
  int64_t channels;
  float* similarity;  // (batch, tokens)
};

// Range: rows of `scores`.
struct SelectParams {
  const float* scores;  // (rows, tokens)
  int64_t tokens;
  int64_t capacity;  // entries per row of `indices`
  int64_t pinned;    // the first `pinned` tokens win over everything
  bool highest;      // true: the highest scores, NaN last; false: the lowest, NaN first
  bool below;        // list only scores <= threshold (and NaN, and pinned), pad with -1
  float threshold;
  uint32_t* keys;    // scratch (rows, tokens)
  int32_t* indices;  // (rows, capacity)
  int32_t* counts;   // (rows) where `below`, else null
};

// Range: flattened (batch, index). `indices` is contiguous (batch, picked).
struct GatherParams {
  TokenView source;
  const int32_t* indices;
  int64_t count;   // batch * picked
  int64_t tokens;  // of source
  int64_t picked;
  int64_t channels;
  int64_t element_size;
  void* out;  // contiguous (batch, picked, channels)
};

// Range: flattened (batch, index).
struct ScatterParams {
  MutableTokenView target;
  TokenView rows;
  const int32_t* indices;
  int64_t count;   // batch * picked
  int64_t tokens;  // of target
  int64_t picked;
  int64_t channels;
  int64_t element_size;
};

// Range: flattened (batch, index).
struct LayerNormParams {
  DType dtype;
  TokenView source;
  const int32_t* indices;
  int64_t picked;
  int64_t channels;
  const float* weight;  // (channels), ones where the caller has none
  const float* bias;    // (channels), zeros where the caller has none
  float eps;
  void* out;  // contiguous (batch, picked, channels)
};

// Range: flattened (batch, token).
struct ResidualParams {
  DType dtype;
  TokenView base;
  TokenView update;
  TokenView rows;
  const int32_t* row_of_token;  // (batch, tokens): position in `rows`, or -1 for `update`
  int64_t tokens;
  int64_t channels;
  void* out;  // contiguous (batch, tokens, channels)
};

// Blocks of rows are summed up separately and merged in order, so the result does not depend on
// how many threads share the blocks.
struct VarianceParams {
  DType dtype;
  TokenView tokens;
  int64_t tokens_per_frame;
  int64_t rows;  // frames * tokens_per_frame
  int64_t channels;
  int64_t block_rows;
  int64_t blocks;
  float* block_mean;  // scratch (blocks, channels)
  float* block_m2;    // scratch (blocks, channels): sum of squared deviations
  float* variance;    // (channels)
};

struct SaliencyParams {
  DType dtype;
  TokenView tokens;
  int64_t tokens_per_frame;
  int64_t channels;
  const int32_t* channel_index;  // the selected channels, ascending; null = all
  const uint16_t* lane_masks;    // the same as bits, 16 channels a word; null = all
  int64_t selected;              // how many channels take part
  int64_t row_pitch;             // floats from one scratch row to the next
  const float* temporal;         // temporal anchor, restricted and normalised; null = none
  float temporal_norm2;
  bool gaussian;
  float alpha;
  float* scores;  // (frames, tokens_per_frame)
};

// Scratch of one frame in flight. Tokens come in blocks of kSaliencyBlock.
constexpr int64_t kSaliencyBlock = 16;
struct SaliencyFrame {
  int64_t frame;
  bool keep_rows;       // rows holds all tokens; otherwise kSaliencyGroup rows per block, repacked
  float* rows;          // packed float32 rows; null: the input can be read in place
  float* partial;       // (blocks, row_pitch) sums of unit vectors
  float* anchor;        // (row_pitch)
  float* inverse;       // (tokens) 1 / norm
  float* temporal_dot;  // (tokens)
  float* norm2;         // (tokens) squared length of the normalised token: 1, or 0 for a zero token
  float anchor_norm2;
};
constexpr int64_t kSaliencyGroup = 4;

// Range of both passes: flattened (frame, row, column).
struct NeighbourParams {
  DType dtype;
  GridView tokens;
  int64_t height;
  int64_t width;
  int64_t channels;
  const uint8_t* alive;  // contiguous (frames, height, width), not 0 where alive; or null
  float* norm;           // scratch (frames, height, width)
  float* right;          // scratch, dot product with the token to the right
  float* below;          // scratch, dot product with the token below
  float* redundancy;     // (frames, height, width)
};

// Range: entries of `indices`, which count tokens over all frames.
struct CompactParams {
  TokenView source;
  int64_t tokens_per_frame;
  const int32_t* indices;
  int64_t channels;
  int64_t element_size;
  void* out;  // contiguous (capacity, channels)
};

// Candidates are the tokens first_candidate, first_candidate + 2, ...; partners likewise. Range of
// `norms`: flattened (batch, token); `match` takes `block` candidates from one on.
struct MatchParams {
  DType dtype;
  TokenView metric;
  int64_t tokens;
  int64_t channels;
  int64_t first_candidate;
  int64_t candidates;
  int64_t first_partner;
  int64_t partners;
  int64_t block;
  float* inverse;    // scratch (batch, tokens), 1 / norm
  float* best;       // (batch, candidates), cosine with the best partner
  int32_t* partner;  // (batch, candidates), the place of that partner
};

// Range: flattened (batch, row of the result). `members` lists the tokens of each frame by row;
// those of row i are members[start[i]] to members[start[i + 1]], with start counted over the batch.
struct MergeParams {
  DType dtype;
  TokenView tokens;
  int64_t rows;
  int64_t channels;
  int64_t tokens_per_frame;
  const int64_t* start;
  const int32_t* members;
  const float* sizes;  // contiguous (batch, tokens), or null for 1
  void* out;           // contiguous (batch, rows, channels)
  float* out_sizes;    // (batch, rows)
};

// Range: one (batch, head) at a time, with scratch of column_mean_scratch() floats.
struct ColumnMeanParams {
  DType dtype;
  HeadView query;
  HeadView key;
  int64_t queries;
  int64_t keys;
  int64_t heads;
  int64_t heads_per_key;
  int64_t channels;
  float scale;
  float* received;  // (batch, heads, keys), sums over the queries
};

}  // namespace stc
