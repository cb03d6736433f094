// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings {

Tensor channel_variance(const Tensor& tokens) {
  check_dim("channel_variance", "tokens", tokens, 3);
  VarianceParams p = {};
  p.dtype = dtype_of("channel_variance", "tokens", tokens);
  p.tokens = view_of(tokens);
  p.tokens_per_frame = tokens.size(1);
  p.rows = tokens.size(0) * tokens.size(1);
  p.channels = tokens.size(2);
  STD_TORCH_CHECK(p.rows > 0, "`channel_variance`: tokens must hold at least one token");
  // At least 32 rows and at most 64 blocks, in whole groups of 8: a rule of the shape alone.
  p.block_rows = std::max<int64_t>(32, (p.rows / 64 + 8) / 8 * 8);
  p.blocks = (p.rows + p.block_rows - 1) / p.block_rows;
  const Tensor out = empty_like_device(tokens, {p.channels}, ScalarType::Float);
  p.block_mean = scratch_floats(2 * p.blocks * p.channels);
  p.block_m2 = p.block_mean + p.blocks * p.channels;
  p.variance = static_cast<float*>(out.mutable_data_ptr());
  parallel(p.blocks, p.block_rows * p.channels,
           [&](int64_t b, int64_t e) { kernels().variance_blocks(p, b, e); });
  parallel(p.channels, p.blocks, [&](int64_t b, int64_t e) { kernels().variance_merge(p, b, e); });
  return out;
}

}  // namespace stc::bindings
