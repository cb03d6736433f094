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
