// SPDX-License-Identifier: Apache-2.0
// What the CUDA bindings share. Only functions that every torch exports are used: see stream_of.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "../../cuda/launchers.h"
#include "../common.h"

namespace stc::bindings::cuda {

// Where an op runs: the GPU of its first argument, current while this lives, and torch's stream.
class OnDevice {
 public:
  OnDevice(const char* op, const Tensor& first);
  cudaStream_t stream() const { return stream_; }

  // Raises if another argument is elsewhere.
  void check(const char* name, const Tensor& t) const;
  void check(const char* name, const std::optional<Tensor>& t) const {
    if (t.has_value()) check(name, *t);
  }

  // An optional (C,) parameter of any dtype.
  ChannelVector channels(const char* name, const std::optional<Tensor>& t, int64_t channels) const;

  // Contiguous (batch, picked) int32. Their values are not looked at: that would wait for the GPU.
  Tensor indices(const Tensor& t, int64_t batch) const;

  // Raises if a launch failed. The runtime is linked statically, so torch would never see it.
  void launched(cudaError_t status) const;

 private:
  const char* op_;
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

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
std::tuple<Tensor, Tensor> add_layer_norm(const Tensor& base, const Tensor& update,
                                          std::optional<Tensor> weight, std::optional<Tensor> bias,
                                          double eps, std::optional<Tensor> scale);
Tensor bias_gelu(const Tensor& x, std::optional<Tensor> bias, std::string approximate);
void scatter_key_value(Tensor key_cache, Tensor value_cache, const Tensor& indices,
                       const Tensor& key, const Tensor& value, std::optional<Tensor> key_bias,
                       std::optional<Tensor> value_bias);
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
Tensor sparse_query_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                              double scale, std::optional<Tensor> key_bias);

}  // namespace stc::bindings::cuda
