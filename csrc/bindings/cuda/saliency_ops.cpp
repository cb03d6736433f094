// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

namespace {

float* float_data(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

}  // namespace

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
  p.block_mean = float_data(moments);
  p.block_m2 = p.block_mean + p.blocks * p.channels;
  p.variance = float_data(variance);
  if (p.channels > 0) on.launched(stc::cuda::channel_variance(p, on.stream()));
  return variance;
}

std::tuple<Tensor, Tensor> saliency_topk(const Tensor& tokens, std::optional<Tensor> memory,
                                         int64_t k, std::string method, double alpha,
                                         std::optional<Tensor> channels) {
  const char* op = "saliency_topk";
  const OnDevice on(op, tokens);
  check_dim(op, "tokens", tokens, 3);
  stc::cuda::SaliencyScoreParams p = {};
  p.dtype = dtype_of(op, "tokens", tokens);
  p.tokens = view_of(tokens);
  p.frames = tokens.size(0);
  p.tokens_per_frame = tokens.size(1);
  p.channels = tokens.size(2);
  p.parts = stc::cuda::saliency_parts(p.tokens_per_frame);
  STD_TORCH_CHECK(k >= 0 && k <= p.tokens_per_frame, "`", op, "`: k must be between 0 and ",
                  p.tokens_per_frame, " (tokens), got ", k);
  STD_TORCH_CHECK(method == "gaussian" || method == "dual_anchor", "`", op,
                  "`: method must be gaussian or dual_anchor, got ", method);
  p.memory = on.channels("memory", memory, p.channels);
  if (channels.has_value()) {
    on.check("channels", channels);
    check_dim(op, "channels", *channels, 1);
    check_size(op, "channels", *channels, 0, p.channels);
    STD_TORCH_CHECK(channels->scalar_type() == ScalarType::Bool, "`", op,
                    "`: channels must be a bool mask");
    p.mask = static_cast<const uint8_t*>(channels->const_data_ptr());
    p.mask_stride = channels->stride(0);
  }
  p.gaussian = method == "gaussian";
  p.alpha = static_cast<float>(alpha);
  const Tensor scores =
      empty_like_device(tokens, {p.frames, p.tokens_per_frame}, ScalarType::Float);
  p.scores = float_data(scores);
  Selection how;
  how.capacity = k;
  how.highest = true;
  if (scores.numel() == 0) return {select_indices(on, scores, how), scores};
  const int64_t anchors = p.frames * p.channels;
  const Tensor scratch =
      empty_like_device(tokens, {p.parts * anchors + anchors + scores.numel()}, ScalarType::Float);
  p.partials = float_data(scratch);
  p.anchors = p.partials + p.parts * anchors;
  p.inverse_norms = p.anchors + anchors;
  on.launched(stc::cuda::saliency_scores(p, on.stream()));
  return {select_indices(on, scores, how), scores};
}

}  // namespace stc::bindings::cuda
