// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

Tensor gather_rows(const Tensor& x, const Tensor& indices) {
  const char* op = "gather_rows";
  const OnDevice on(op, x);
  check_dim(op, "x", x, 3);
  const Tensor at = on.indices(indices, x.size(0));
  GatherParams p = {};
  p.element_size = size_of(dtype_of(op, "x", x));
  p.source = view_of(x);
  p.indices = int_data(at);
  p.count = at.numel();
  p.tokens = x.size(1);
  p.picked = at.size(1);
  p.channels = x.size(2);
  const Tensor out = empty_like_device(x, {x.size(0), p.picked, p.channels}, x.scalar_type());
  p.out = out.mutable_data_ptr();
  if (out.numel() > 0) on.launched(stc::cuda::gather_rows(p, on.stream()));
  return out;
}

void scatter_rows(Tensor x, const Tensor& indices, const Tensor& rows) {
  const char* op = "scatter_rows_";
  const OnDevice on(op, x);
  check_dim(op, "x", x, 3);
  const Tensor at = on.indices(indices, x.size(0));
  on.check("rows", rows);
  check_rows(op, "rows", rows, x, at);
  ScatterParams p = {};
  p.element_size = size_of(dtype_of(op, "x", x));
  p.target = mutable_view_of(x);
  p.rows = view_of(rows);
  p.indices = int_data(at);
  p.count = at.numel();
  p.tokens = x.size(1);
  p.picked = at.size(1);
  p.channels = x.size(2);
  if (rows.numel() > 0) on.launched(stc::cuda::scatter_rows(p, on.stream()));
  mark_as_written(x);
}

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

Tensor scatter_residual(const Tensor& base, const Tensor& update, const Tensor& indices,
                        const Tensor& rows) {
  const char* op = "scatter_residual";
  const OnDevice on(op, base);
  check_dim(op, "base", base, 3);
  on.check("update", update);
  check_companion(op, "update", update, base);
  const Tensor at = on.indices(indices, base.size(0));
  on.check("rows", rows);
  check_rows(op, "rows", rows, base, at);
  stc::cuda::ScatterResidualParams p = {};
  p.dtype = dtype_of(op, "base", base);
  p.base = view_of(base);
  p.update = view_of(update);
  p.rows = view_of(rows);
  p.indices = int_data(at);
  p.batch = base.size(0);
  p.tokens = base.size(1);
  p.picked = at.size(1);
  p.channels = base.size(2);
  const Tensor out = empty_like_device(base, {p.batch, p.tokens, p.channels}, base.scalar_type());
  p.out = out.mutable_data_ptr();
  if (out.numel() > 0) on.launched(stc::cuda::scatter_residual(p, on.stream()));
  return out;
}

}  // namespace stc::bindings::cuda
