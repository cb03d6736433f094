// SPDX-License-Identifier: Apache-2.0
// What those CUDA kernels are given that share no structure with the CPU (params.h): there the
// parameters per channel are converted beforehand, here each thread converts what it reads.
// Outputs are contiguous. Indices beyond `tokens` are taken for -1, so nothing is read or written
// out of bounds: checking them would wait for the GPU.
#pragma once

#include "stc/params.h"

namespace stc::cuda {

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

struct SaliencyScoreParams {
  DType dtype;
  TokenView tokens;
  int64_t frames;
  int64_t tokens_per_frame;
  int64_t channels;
  int64_t parts;        // of a frame, whose unit tokens are added up by one block each
  const uint8_t* mask;  // one byte per channel, 0 = does not take part; null = all do
  int64_t mask_stride;
  ChannelVector memory;
  bool gaussian;
  float alpha;
  float* inverse_norms;  // scratch (frames, tokens)
  float* partials;       // scratch (frames, parts, channels)
  float* anchors;        // scratch (frames, channels)
  float* scores;         // (frames, tokens)
};

}  // namespace stc::cuda
