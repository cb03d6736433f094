// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

std::tuple<Tensor, Tensor, Tensor> compact_tokens(const Tensor& tokens, const Tensor& keep,
                                                  int64_t capacity) {
  const char* op = "compact_tokens";
  const OnDevice on(op, tokens);
  on.check("keep", keep);
  check_dim(op, "tokens", tokens, 3);
  check_dim(op, "keep", keep, 2);
  for (int64_t i = 0; i < 2; ++i) check_size(op, "keep", keep, i, tokens.size(i));
  STD_TORCH_CHECK(keep.scalar_type() == ScalarType::Bool, "`", op, "`: keep must be bool");
  CompactionParams p = {};
  p.tokens = view_of(tokens);
  p.keep = static_cast<const bool*>(keep.const_data_ptr());
  p.keep_frame_stride = keep.stride(0);
  p.keep_token_stride = keep.stride(1);
  p.frames = tokens.size(0);
  p.tokens_per_frame = tokens.size(1);
  p.channels = tokens.size(2);
  p.element_size = size_of(dtype_of(op, "tokens", tokens));
  p.capacity = capacity;
  const int64_t total = p.frames * p.tokens_per_frame;
  STD_TORCH_CHECK(total <= INT32_MAX, "`", op, "`: tokens must be fewer than 2**31 in all, got ",
                  total);
  STD_TORCH_CHECK(capacity >= 0 && capacity <= total, "`", op, "`: capacity must be between 0 and ",
                  total, " (tokens of all frames), got ", capacity);
  const auto ints = [&](int64_t size) {
    return empty_like_device(tokens, {size}, ScalarType::Int);
  };
  const Tensor packed = empty_like_device(tokens, {capacity, p.channels}, tokens.scalar_type());
  const Tensor indices = ints(capacity), counts = ints(p.frames);
  const Tensor scratch = ints(p.frames * pieces_per_frame(p.tokens_per_frame));
  p.packed = packed.mutable_data_ptr();
  p.indices = static_cast<int32_t*>(indices.mutable_data_ptr());
  p.counts = static_cast<int32_t*>(counts.mutable_data_ptr());
  p.piece_counts = static_cast<int32_t*>(scratch.mutable_data_ptr());
  on.launched(stc::cuda::compact_tokens(p, on.stream()));
  return {packed, indices, counts};
}

}  // namespace stc::bindings::cuda
