// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

Tensor channel_variance(const Tensor& tokens) {
  const char* op = "channel_variance";
  const OnDevice on(op, tokens);
  check_dim(op, "tokens", tokens, 3);
  VarianceParams p = {};
  p.dtype = dtype_of(op, "tokens", tokens);
  p.tokens = view_of(tokens);
  p.tokens_per_frame = tokens.size(1);
  p.rows = tokens.size(0) * tokens.size(1);
  p.channels = tokens.size(2);
  STD_TORCH_CHECK(p.rows > 0, "`channel_variance`: tokens must hold at least one token");
  // At least 32 rows and at most 128 blocks: a rule of the shape alone, so that the result is, too.
  p.block_rows = std::max<int64_t>(32, (p.rows + 127) / 128);
  p.blocks = (p.rows + p.block_rows - 1) / p.block_rows;
  const Tensor moments = empty_like_device(tokens, {2, p.blocks, p.channels}, ScalarType::Float);
  const Tensor variance = empty_like_device(tokens, {p.channels}, ScalarType::Float);
  p.block_mean = floats(moments);
  p.block_m2 = p.block_mean + p.blocks * p.channels;
  p.variance = floats(variance);
  if (p.channels > 0) on.launched(stc::cuda::channel_variance(p, on.stream()));
  return variance;
}

}  // namespace stc::bindings::cuda
