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

Tensor gather_layer_norm(const Tensor& x, const Tensor& indices, std::optional<Tensor> weight,
                         std::optional<Tensor> bias, double eps) {
  const char* op = "gather_layer_norm";
  const OnDevice on(op, x);
  check_dim(op, "x", x, 3);
  const Tensor at = on.indices(indices, x.size(0));
  stc::cuda::GatherNormParams p = {};
  p.dtype = dtype_of(op, "x", x);
  p.source = view_of(x);
  p.indices = int_data(at);
  p.count = at.numel();
  p.tokens = x.size(1);
  p.picked = at.size(1);
  p.channels = x.size(2);
  p.weight = on.channels("weight", weight, p.channels);
  p.bias = on.channels("bias", bias, p.channels);
  p.eps = static_cast<float>(eps);
  const Tensor out = empty_like_device(x, {x.size(0), p.picked, p.channels}, x.scalar_type());
  p.out = out.mutable_data_ptr();
  if (out.numel() > 0) on.launched(stc::cuda::gather_layer_norm(p, on.stream()));
  return out;
}

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

}  // namespace stc::bindings::cuda
