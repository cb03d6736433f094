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

  // Raises if a launch failed. The runtime is linked statically, so torch would never see it.
  void launched(cudaError_t status) const;

 private:
  const char* op_;
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

Tensor token_cosine(const Tensor& current, const Tensor& reference);
Tensor spatial_redundancy(const Tensor& tokens, std::optional<Tensor> alive);
std::tuple<Tensor, Tensor, Tensor> compact_tokens(const Tensor& tokens, const Tensor& keep,
                                                  int64_t capacity);
Tensor sparse_query_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                              double scale, std::optional<Tensor> key_bias);

}  // namespace stc::bindings::cuda
