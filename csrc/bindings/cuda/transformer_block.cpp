// SPDX-License-Identifier: Apache-2.0
// What a transformer block does to rows between its matrix products.
#include "common.h"

namespace stc::bindings::cuda {

namespace {

stc::cuda::Gelu gelu_of(const std::string& name) {
  if (name == "none") return stc::cuda::Gelu::kNone;
  if (name == "tanh") return stc::cuda::Gelu::kTanh;
  STD_TORCH_CHECK(name == "quick", "`bias_gelu`: approximate must be none, tanh or quick, got ",
                  name);
  return stc::cuda::Gelu::kQuick;
}

}  // namespace

std::tuple<Tensor, Tensor> add_layer_norm(const Tensor& base, const Tensor& update,
                                          std::optional<Tensor> weight, std::optional<Tensor> bias,
                                          double eps, std::optional<Tensor> scale) {
  const char* op = "add_layer_norm";
  const OnDevice on(op, base);
  check_dim(op, "base", base, 3);
  check_dim(op, "update", update, 3);
  on.check("update", update);
  check_companion(op, "update", update, base);
  stc::cuda::AddNormParams p = {};
  p.dtype = dtype_of(op, "base", base);
  p.base = view_of(base);
  p.update = view_of(update);
  p.tokens = base.size(1);
  p.count = base.size(0) * p.tokens;
  p.channels = base.size(2);
  p.weight = on.channels("weight", weight, p.channels);
  p.bias = on.channels("bias", bias, p.channels);
  p.scale = on.channels("scale", scale, p.channels);
  p.eps = static_cast<float>(eps);
  const auto shape = {base.size(0), p.tokens, p.channels};
  const Tensor total = empty_like_device(base, shape, base.scalar_type());
  const Tensor out = empty_like_device(base, shape, base.scalar_type());
  p.total = total.mutable_data_ptr();
  p.out = out.mutable_data_ptr();
  if (out.numel() > 0) on.launched(stc::cuda::add_layer_norm(p, on.stream()));
  return {total, out};
}

Tensor bias_gelu(const Tensor& x, std::optional<Tensor> bias, std::string approximate) {
  const char* op = "bias_gelu";
  const OnDevice on(op, x);
  check_dim(op, "x", x, 3);
  stc::cuda::BiasGeluParams p = {};
  p.dtype = dtype_of(op, "x", x);
  p.x = view_of(x);
  p.tokens = x.size(1);
  p.count = x.size(0) * p.tokens;
  p.channels = x.size(2);
  p.bias = on.channels("bias", bias, p.channels);
  p.approximate = gelu_of(approximate);
  const Tensor out = empty_like_device(x, {x.size(0), p.tokens, p.channels}, x.scalar_type());
  p.out = out.mutable_data_ptr();
  if (out.numel() > 0) on.launched(stc::cuda::bias_gelu(p, on.stream()));
  return out;
}

void scatter_key_value(Tensor key_cache, Tensor value_cache, const Tensor& indices,
                       const Tensor& key, const Tensor& value, std::optional<Tensor> key_bias,
                       std::optional<Tensor> value_bias) {
  const char* op = "scatter_key_value_";
  const OnDevice on(op, key_cache);
  check_dim(op, "key_cache", key_cache, 3);
  check_dim(op, "value_cache", value_cache, 3);
  on.check("value_cache", value_cache);
  check_companion(op, "value_cache", value_cache, key_cache);
  const Tensor at = on.indices(indices, key_cache.size(0));
  on.check("key", key);
  on.check("value", value);
  check_rows(op, "key", key, key_cache, at);
  check_rows(op, "value", value, key_cache, at);
  stc::cuda::KeyValueParams p = {};
  p.dtype = dtype_of(op, "key_cache", key_cache);
  p.key_cache = mutable_view_of(key_cache);
  p.value_cache = mutable_view_of(value_cache);
  p.key = view_of(key);
  p.value = view_of(value);
  p.indices = int_data(at);
  p.count = at.numel();
  p.tokens = key_cache.size(1);
  p.picked = at.size(1);
  p.channels = key_cache.size(2);
  p.key_bias = on.channels("key_bias", key_bias, p.channels);
  p.value_bias = on.channels("value_bias", value_bias, p.channels);
  if (key.numel() > 0) on.launched(stc::cuda::scatter_key_value(p, on.stream()));
  mark_as_written(key_cache);
  mark_as_written(value_cache);
}

}  // namespace stc::bindings::cuda
