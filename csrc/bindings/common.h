// SPDX-License-Identifier: Apache-2.0
// What the bindings share: views of tensors, checks, and threading. Python decides what is refused
// and says so best; here everything that would read or write out of bounds is checked again,
// because the operators can be called without it, and because other threads may write to what is
// read.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "stc/kernel_table.h"

// The namespace is a macro itself, hence the extra level of expansion.
#define STC_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

#ifndef STC_OPS_NAMESPACE
#define STC_OPS_NAMESPACE stc_kernels
#endif

namespace stc::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "`", op, "`: ", name, " must be float32, float16 or bfloat16");
  }
}

inline int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Elements of a tensor: more than any memory holds, and so few that no product of the sizes of one
// tensor overflows, nor such a product times a few thousand. Of an empty one, which needs no memory
// whatever its other sizes are, the sizes of 0 count as 1: so many rows can still be counted
// through.
constexpr int64_t kMostElements = int64_t{1} << 40;
constexpr int64_t kMostOfEmpty = int64_t{1} << 31;

// The product of sizes of different tensors, at most kMostElements.
int64_t product(const char* op, std::initializer_list<int64_t> sizes);

// The same where it only says how much work there is: the largest integer stands for all above.
int64_t work(std::initializer_list<int64_t> sizes);

// Raises unless all that the sizes and strides of a tensor reach lies, aligned, within its storage.
void check_memory(const char* op, const char* name, const Tensor& t);

// Raises unless a tensor has so many dimensions, and memory for what they hold.
inline void check_dim(const char* op, const char* name, const Tensor& t, int64_t dim) {
  STD_TORCH_CHECK(t.dim() == dim, "`", op, "`: ", name, " must have ", dim, " dimensions, got ",
                  t.dim());
  check_memory(op, name, t);
}

// Places of tokens are int32 in every result.
inline void check_tokens(const char* op, int64_t tokens) {
  STD_TORCH_CHECK(tokens <= INT32_MAX, "`", op, "`: tokens must be fewer than 2**31, got ", tokens);
}

// Raises unless `value` is between `low` and `high`.
inline void check_range(const char* op, const char* name, int64_t value, int64_t low,
                        int64_t high) {
  STD_TORCH_CHECK(low <= value && value <= high, "`", op, "`: ", name, " must be between ", low,
                  " and ", high, ", got ", value);
}

inline void check_size(const char* op, const char* name, const Tensor& t, int64_t dim,
                       int64_t size) {
  STD_TORCH_CHECK(t.size(dim) == size, "`", op, "`: dimension ", dim, " of ", name, " must be ",
                  size, ", got ", t.size(dim));
}

inline void check_same_dtype(const char* op, const char* name, const Tensor& t,
                             const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), "`", op, "`: ", name,
                  " must have the dtype of the first argument");
}

// (B, N, C), or (N, C) broadcast over the batch.
inline TokenView view_of(const Tensor& t) {
  const int64_t d = t.dim();
  return {t.const_data_ptr(), d == 3 ? t.stride(0) : 0, t.stride(d - 2), t.stride(d - 1)};
}

inline HeadView head_view(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline MutableTokenView mutable_view_of(const Tensor& t) {
  return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

// A (B, N, C) or (N, C) companion of a (B, N, C) tensor, of the same dtype.
inline void check_companion(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  check_same_dtype(op, name, t, like);
  const int64_t d = t.dim();
  STD_TORCH_CHECK(d == 2 || d == 3, "`", op, "`: ", name, " must have 2 or 3 dimensions, got ", d);
  for (int64_t i = 0; i < d; ++i) check_size(op, name, t, i, like.size(i + 3 - d));
  check_memory(op, name, t);
}

inline Tensor empty_like_device(const Tensor& like, std::initializer_list<int64_t> sizes,
                                ScalarType type) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::new_empty(like, shape, type);
}

// Shares [0, n) among threads, at least ~32k elements each: below that, waking one costs more.
template <typename F>
void parallel(int64_t n, int64_t elements_per_item, const F& f) {
  if (n <= 0) return;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, elements_per_item));
  if (n <= grain) return f(int64_t{0}, n);
  torch::stable::parallel_for(0, n, grain, f);
}

// Scratch of the calling thread, uninitialised, valid until it asks again. Up to kScratchBytes are
// kept for the next call: fresh memory costs a page fault every 4 KiB, which is more than the
// kernels take to fill it.
constexpr int64_t kScratchBytes = int64_t{8} << 20;
float* scratch_floats(int64_t count);

// Checked parameters of the cosine on either kind of device, and the result that they point to.
std::pair<CosineParams, Tensor> cosine_params(const char* op, const Tensor& current,
                                              const Tensor& reference);

// The cosine on the CPU, on behalf of an op.
Tensor token_cosine_for(const char* op, const Tensor& current, const Tensor& reference);

// (batch, picked, channels) rows that go where `indices` (batch, picked) say, as x has them.
void check_rows(const char* op, const char* name, const Tensor& rows, const Tensor& x,
                const Tensor& indices);

// A copy of (batch, picked) indices, int32 or int64, every one in [-1, tokens). What is checked is
// the copy: the caller's tensor may be written to meanwhile, by this very operator or by others.
std::vector<int32_t> checked_indices(const char* op, const Tensor& indices, int64_t batch,
                                     int64_t tokens);

inline const int32_t* int_data(const Tensor& t) {
  return static_cast<const int32_t*>(t.const_data_ptr());
}

inline float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }
inline int32_t* ints(const Tensor& t) { return static_cast<int32_t*>(t.mutable_data_ptr()); }
inline const uint8_t* bytes(const Tensor& mask) {
  return static_cast<const uint8_t*>(mask.const_data_ptr());
}

// A contiguous bool mask of the given number of elements. Its bytes may be other than 0 and 1,
// which no C++ bool may be: any but 0 counts as true.
Tensor packed_mask(const char* op, const char* name, const Tensor& mask, int64_t elements);

// Tells autograd of a mutation.
void mark_as_written(const Tensor& x);

// The ops; register.cpp binds them.
Tensor token_cosine(const Tensor& current, const Tensor& reference);
std::tuple<Tensor, Tensor> select_changed(const Tensor& current, const Tensor& reference, int64_t k,
                                          int64_t pinned);
std::tuple<Tensor, Tensor, Tensor> select_changed_below(const Tensor& current,
                                                        const Tensor& reference, double threshold,
                                                        int64_t capacity, int64_t pinned);
Tensor gather_rows(const Tensor& x, const Tensor& indices);
void scatter_rows(Tensor x, const Tensor& indices, const Tensor& rows);
Tensor gather_layer_norm(const Tensor& x, const Tensor& indices, std::optional<Tensor> weight,
                         std::optional<Tensor> bias, double eps);
Tensor scatter_residual(const Tensor& base, const Tensor& update, const Tensor& indices,
                        const Tensor& rows);
Tensor channel_variance(const Tensor& tokens);
std::tuple<Tensor, Tensor> saliency_topk(const Tensor& tokens, std::optional<Tensor> memory,
                                         int64_t k, std::string method, double alpha,
                                         std::optional<Tensor> channels);
Tensor spatial_redundancy(const Tensor& tokens, std::optional<Tensor> alive);
std::tuple<Tensor, Tensor, Tensor> compact_tokens(const Tensor& tokens, const Tensor& keep,
                                                  int64_t capacity);
std::tuple<Tensor, Tensor, Tensor> bipartite_match(const Tensor& metric, int64_t r,
                                                   int64_t is_protected);
std::tuple<Tensor, Tensor> merge_tokens(const Tensor& tokens, const Tensor& source_map,
                                        int64_t count, std::optional<Tensor> sizes);
Tensor attention_column_mean(const Tensor& query, const Tensor& key, double scale);
Tensor frames_to_patches(const Tensor& pictures, const Tensor& rows, const Tensor& columns,
                         const Tensor& values, int64_t patch_height, int64_t patch_width);
Tensor update_patches(Tensor patches, const Tensor& pictures, const Tensor& previous,
                      const Tensor& rows, const Tensor& columns, const Tensor& values,
                      int64_t patch_height, int64_t patch_width);

// Shared by the selecting ops: the indices of each row of `scores` (rows, tokens).
struct Selection {
  int64_t capacity = 0;
  int64_t pinned = 0;
  bool highest = false;
  std::optional<double> threshold;
  int32_t* counts = nullptr;
};
Tensor select_indices(const Tensor& scores, const Selection& how);

// A (C,) tensor of any supported dtype and stride as float32.
std::vector<float> to_floats(const char* op, const char* name, const Tensor& t, int64_t channels);

}  // namespace stc::bindings
