// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

std::tuple<Tensor, Tensor, Tensor> bipartite_match(const Tensor& metric, int64_t r,
                                                   int64_t is_protected) {
  const char* op = "bipartite_match";
  const OnDevice on(op, metric);
  check_dim(op, "metric", metric, 3);
  stc::cuda::MatchingParams p = {};
  p.dtype = dtype_of(op, "metric", metric);
  p.metric = view_of(metric);
  p.frames = metric.size(0);
  p.tokens = metric.size(1);
  p.channels = metric.size(2);
  p.r = r;
  check_tokens(op, p.tokens);
  STD_TORCH_CHECK(
      is_protected >= 0 && is_protected <= p.tokens && r >= 0 && r <= (p.tokens - is_protected) / 2,
      "`", op, "`: r must be between 0 and half of the unprotected tokens, got ", r);
  p.first_candidate = is_protected + is_protected % 2;
  p.first_partner = is_protected + (is_protected + 1) % 2;
  p.candidates = std::max<int64_t>(0, (p.tokens - p.first_candidate + 1) / 2);
  p.partners = std::max<int64_t>(0, (p.tokens - p.first_partner + 1) / 2);
  const Tensor source_map = empty_like_device(metric, {p.frames, p.tokens}, ScalarType::Int);
  const Tensor kept = empty_like_device(metric, {p.frames, p.tokens - r}, ScalarType::Int);
  const Tensor similarity = empty_like_device(metric, {p.frames, p.tokens}, ScalarType::Float);
  const int64_t candidates = p.frames * p.candidates;
  const Tensor match = empty_like_device(metric, {candidates}, ScalarType::Long);
  const Tensor best = empty_like_device(metric, {candidates}, ScalarType::Float);
  const Tensor leaves = empty_like_device(metric, {p.frames * r}, ScalarType::Int);
  p.match = static_cast<unsigned long long*>(match.mutable_data_ptr());
  p.best = static_cast<float*>(best.mutable_data_ptr());
  p.leaves = static_cast<int32_t*>(leaves.mutable_data_ptr());
  p.source_map = static_cast<int32_t*>(source_map.mutable_data_ptr());
  p.kept = static_cast<int32_t*>(kept.mutable_data_ptr());
  p.similarity = static_cast<float*>(similarity.mutable_data_ptr());
  on.launched(stc::cuda::bipartite_match(p, on.stream()));
  return {source_map, kept, similarity};
}

std::tuple<Tensor, Tensor> merge_tokens(const Tensor& tokens, const Tensor& source_map,
                                        int64_t count, std::optional<Tensor> sizes) {
  const char* op = "merge_tokens";
  const OnDevice on(op, tokens);
  on.check("source_map", source_map);
  on.check("sizes", sizes);
  check_dim(op, "tokens", tokens, 3);
  check_dim(op, "source_map", source_map, 2);
  stc::cuda::MergingParams p = {};
  p.dtype = dtype_of(op, "tokens", tokens);
  p.tokens = view_of(tokens);
  p.frames = tokens.size(0);
  p.tokens_per_frame = tokens.size(1);
  p.channels = tokens.size(2);
  p.rows = count;
  for (int64_t i = 0; i < 2; ++i) check_size(op, "source_map", source_map, i, tokens.size(i));
  check_tokens(op, p.tokens_per_frame);
  check_range(op, "count", count, 0, p.tokens_per_frame);
  STD_TORCH_CHECK(source_map.scalar_type() == ScalarType::Int, "`", op,
                  "`: source_map must be int32");
  const Tensor map =
      source_map.is_contiguous() ? source_map : torch::stable::contiguous(source_map);
  p.source_map = int_data(map);
  if (sizes.has_value()) {
    check_dim(op, "sizes", *sizes, 2);
    for (int64_t i = 0; i < 2; ++i) check_size(op, "sizes", *sizes, i, tokens.size(i));
    STD_TORCH_CHECK(sizes->scalar_type() == ScalarType::Float, "`", op, "`: sizes must be float32");
    p.sizes = static_cast<const float*>(sizes->const_data_ptr());
    p.size_frame_stride = sizes->stride(0);
    p.size_token_stride = sizes->stride(1);
  }
  const Tensor out = empty_like_device(tokens, {p.frames, count, p.channels}, tokens.scalar_type());
  const Tensor out_sizes = empty_like_device(tokens, {p.frames, count}, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.out_sizes = static_cast<float*>(out_sizes.mutable_data_ptr());
  on.launched(stc::cuda::merge_tokens(p, on.stream()));
  return {out, out_sizes};
}

}  // namespace stc::bindings::cuda
