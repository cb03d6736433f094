// SPDX-License-Identifier: Apache-2.0
// What those CUDA kernels are given that share no structure with the CPU (params.h): there the
// parameters per channel are converted beforehand, here each thread converts what it reads.
// Outputs are contiguous. Indices beyond `tokens` are taken for -1, so nothing is read or written
// out of bounds: checking them would wait for the GPU.
#pragma once

#include "stc/cosine_plan.h"
#include "stc/params.h"

namespace stc::cuda {

struct SelectChangedParams {
  CosineParams cosine;
  SelectParams select;  // by the similarity that `cosine` writes
  FrameBlocks share;    // of a frame's tokens among blocks; set when launched
  int32_t slot;         // of the tickets; set when launched
};

struct GatherNormParams {
  DType dtype;
  TokenView source;
  const int32_t* indices;  // contiguous (batch, picked)
  int64_t count;           // batch * picked
  int64_t tokens;
  int64_t picked;
  int64_t channels;
  ChannelVector weight;
  ChannelVector bias;
  float eps;
  void* out;  // (batch, picked, channels)
};

struct AddNormParams {
  DType dtype;
  TokenView base;
  TokenView update;
  int64_t count;  // batch * tokens
  int64_t tokens;
  int64_t channels;
  ChannelVector scale;
  ChannelVector weight;
  ChannelVector bias;
  float eps;
  void* total;  // (batch, tokens, channels)
  void* out;    // (batch, tokens, channels)
};

enum class Gelu : int32_t { kNone, kTanh, kQuick };

struct BiasGeluParams {
  DType dtype;
  TokenView x;
  int64_t count;  // batch * tokens
  int64_t tokens;
  int64_t channels;
  ChannelVector bias;
  Gelu approximate;
  void* out;  // (batch, tokens, channels)
};

struct KeyValueParams {
  DType dtype;
  MutableTokenView key_cache;
  MutableTokenView value_cache;
  TokenView key;
  TokenView value;
  const int32_t* indices;  // contiguous (batch, picked)
  int64_t count;           // batch * picked
  int64_t tokens;
  int64_t picked;
  int64_t channels;
  ChannelVector key_bias;
  ChannelVector value_bias;
};

struct ScatterResidualParams {
  DType dtype;
  TokenView base;
  TokenView update;
  TokenView rows;
  const int32_t* indices;  // contiguous (batch, picked)
  int64_t batch;
  int64_t tokens;
  int64_t picked;
  int64_t channels;
  void* out;  // (batch, tokens, channels)
};

struct SaliencyTopkParams {
  DType dtype;
  TokenView tokens;
  int64_t frames;
  int64_t tokens_per_frame;
  int64_t channels;
  int64_t k;
  int64_t slices;       // of the channels, one per block of a frame
  const uint8_t* mask;  // one byte per channel, 0 = does not take part; null = all do
  int64_t mask_stride;
  ChannelVector memory;
  bool gaussian;
  float alpha;
  uint32_t* arrivals;     // scratch (frames)
  float* inverse_norms;   // scratch (frames, tokens), and one more for the memory
  float* anchor_squares;  // scratch (frames, slices)
  float* shares;          // scratch (frames, slices, 2, tokens)
  float* scores;          // (frames, tokens)
  int32_t* indices;       // (frames, k)
};

// Candidates are the tokens first_candidate, first_candidate + 2, ...; partners likewise.
struct MatchingParams {
  DType dtype;
  TokenView metric;
  int64_t frames;
  int64_t tokens;  // of a frame
  int64_t channels;
  int64_t first_candidate;
  int64_t candidates;
  int64_t first_partner;
  int64_t partners;
  int64_t r;                  // pairs to merge
  unsigned long long* match;  // scratch (frames, candidates), see match_of
  float* best;                // scratch (frames, candidates)
  int32_t* leaves;            // scratch (frames, r), numbers of candidates
  int32_t* source_map;        // (frames, tokens)
  int32_t* kept;              // (frames, tokens - r)
  float* similarity;          // (frames, tokens)
};

struct MergingParams {
  DType dtype;
  TokenView tokens;
  int64_t frames;
  int64_t tokens_per_frame;
  int64_t channels;
  int64_t rows;               // of the result
  int64_t parts;              // of a row, whose channels are shared among warps; set when launched
  const int32_t* source_map;  // contiguous (frames, tokens)
  const float* sizes;         // null: 1
  int64_t size_frame_stride;
  int64_t size_token_stride;
  void* out;         // (frames, rows, channels)
  float* out_sizes;  // (frames, rows)
};

// Of a query: its highest logit, in units of log 2, and its sum of powers relative to that. They
// are not put together into one logarithm, which would cost digits where logits are large.
struct RowSum {
  float highest, sum;
};

struct ColumnMeanKernelParams {
  DType dtype;
  HeadView query;
  HeadView key;
  int64_t batch;
  int64_t queries;
  int64_t keys;
  int64_t heads;  // of queries
  int64_t heads_per_key;
  int64_t width;     // channels of a head
  float scale;       // of the dot products, for powers of 2
  RowSum* row_sums;  // scratch (batch, heads, queries)
  float* received;   // scratch (batch, heads, keys)
  float* out;        // (batch, keys)
};

}  // namespace stc::cuda
