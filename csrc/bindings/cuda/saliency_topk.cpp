// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

std::tuple<Tensor, Tensor> saliency_topk(const Tensor& tokens, std::optional<Tensor> memory,
                                         int64_t k, std::string method, double alpha,
                                         std::optional<Tensor> channels) {
  const char* op = "saliency_topk";
  const OnDevice on(op, tokens);
  check_dim(op, "tokens", tokens, 3);
  stc::cuda::SaliencyTopkParams p = {};
  p.dtype = dtype_of(op, "tokens", tokens);
  p.tokens = view_of(tokens);
  p.frames = tokens.size(0);
  p.tokens_per_frame = tokens.size(1);
  p.channels = tokens.size(2);
  p.k = k;
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
  p.scores = floats(scores);
  const Tensor indices = empty_like_device(tokens, {p.frames, k}, ScalarType::Int);
  p.indices = static_cast<int32_t*>(indices.mutable_data_ptr());
  p.slices = stc::cuda::saliency_slices(p);
  const int64_t slices = p.frames * p.slices, rows = scores.numel();
  const Tensor scratch = empty_like_device(
      tokens, {p.frames + rows + 1 + slices + slices * 2 * p.tokens_per_frame}, ScalarType::Float);
  p.arrivals = reinterpret_cast<uint32_t*>(floats(scratch));
  p.inverse_norms = floats(scratch) + p.frames;
  p.anchor_squares = p.inverse_norms + rows + 1;
  p.shares = p.anchor_squares + slices;
  on.launched(stc::cuda::saliency_topk(p, on.stream()));
  return {indices, scores};
}

}  // namespace stc::bindings::cuda
