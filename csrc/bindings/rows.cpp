// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings {

namespace {

std::vector<float> affine(const char* name, const std::optional<Tensor>& t, int64_t channels,
                          float otherwise) {
  if (t.has_value()) return to_floats("gather_layer_norm", name, *t, channels);
  return std::vector<float>(static_cast<size_t>(channels), otherwise);
}

}  // namespace

void check_rows(const char* op, const char* name, const Tensor& rows, const Tensor& x,
                const Tensor& indices) {
  check_same_dtype(op, name, rows, x);
  check_dim(op, name, rows, 3);
  check_size(op, name, rows, 0, x.size(0));
  check_size(op, name, rows, 1, indices.size(1));
  check_size(op, name, rows, 2, x.size(2));
}

// The stable ABI has no way to raise the version counter but an in-place operator: one on an empty
// view costs least and shares the counter.
void mark_as_written(const Tensor& x) {
  Tensor nothing = torch::stable::narrow(const_cast<Tensor&>(x), 0, 0, 0);
  torch::stable::zero_(nothing);
}

Tensor gather_rows(const Tensor& x, const Tensor& indices) {
  check_dim("gather_rows", "x", x, 3);
  const std::vector<int32_t> at = checked_indices("gather_rows", indices, x.size(0), x.size(1));
  GatherParams p = {};
  p.element_size = size_of(dtype_of("gather_rows", "x", x));
  p.source = view_of(x);
  p.indices = at.data();
  p.picked = indices.size(1);
  p.channels = x.size(2);
  const Tensor out = empty_like_device(x, {x.size(0), p.picked, p.channels}, x.scalar_type());
  p.out = out.mutable_data_ptr();
  parallel(static_cast<int64_t>(at.size()), p.channels,
           [&](int64_t b, int64_t e) { kernels().gather_rows(p, b, e); });
  return out;
}

void scatter_rows(Tensor x, const Tensor& indices, const Tensor& rows) {
  check_dim("scatter_rows_", "x", x, 3);
  const std::vector<int32_t> at = checked_indices("scatter_rows_", indices, x.size(0), x.size(1));
  check_rows("scatter_rows_", "rows", rows, x, indices);
  ScatterParams p = {};
  p.element_size = size_of(dtype_of("scatter_rows_", "x", x));
  p.target = mutable_view_of(x);
  p.rows = view_of(rows);
  p.indices = at.data();
  p.picked = indices.size(1);
  p.channels = x.size(2);
  parallel(static_cast<int64_t>(at.size()), p.channels,
           [&](int64_t b, int64_t e) { kernels().scatter_rows(p, b, e); });
  mark_as_written(x);
}

Tensor gather_layer_norm(const Tensor& x, const Tensor& indices, std::optional<Tensor> weight,
                         std::optional<Tensor> bias, double eps) {
  check_dim("gather_layer_norm", "x", x, 3);
  const std::vector<int32_t> at =
      checked_indices("gather_layer_norm", indices, x.size(0), x.size(1));
  LayerNormParams p = {};
  p.dtype = dtype_of("gather_layer_norm", "x", x);
  p.source = view_of(x);
  p.indices = at.data();
  p.picked = indices.size(1);
  p.channels = x.size(2);
  const std::vector<float> scale = affine("weight", weight, p.channels, 1.0f);
  const std::vector<float> shift = affine("bias", bias, p.channels, 0.0f);
  p.weight = scale.data();
  p.bias = shift.data();
  p.eps = static_cast<float>(eps);
  const Tensor out = empty_like_device(x, {x.size(0), p.picked, p.channels}, x.scalar_type());
  p.out = out.mutable_data_ptr();
  parallel(static_cast<int64_t>(at.size()), 3 * p.channels,
           [&](int64_t b, int64_t e) { kernels().gather_layer_norm(p, b, e); });
  return out;
}

Tensor scatter_residual(const Tensor& base, const Tensor& update, const Tensor& indices,
                        const Tensor& rows) {
  const char* op = "scatter_residual";
  check_dim(op, "base", base, 3);
  check_companion(op, "update", update, base);
  const int64_t batch = base.size(0), tokens = base.size(1), channels = base.size(2);
  const std::vector<int32_t> at = checked_indices(op, indices, batch, tokens);
  check_rows(op, "rows", rows, base, indices);
  // Turned round, so that one sweep over the tokens knows what to add to each.
  std::vector<int32_t> row_of_token(static_cast<size_t>(batch * tokens), -1);
  const int32_t* token = at.data();
  const int64_t picked = indices.size(1);
  for (int64_t i = 0; i < batch * picked; ++i) {
    if (token[i] < 0) continue;
    row_of_token[static_cast<size_t>(i / picked * tokens + token[i])] =
        static_cast<int32_t>(i % picked);
  }
  ResidualParams p = {};
  p.dtype = dtype_of(op, "base", base);
  p.base = view_of(base);
  p.update = view_of(update);
  p.rows = view_of(rows);
  p.row_of_token = row_of_token.data();
  p.tokens = tokens;
  p.channels = channels;
  const Tensor out = empty_like_device(base, {batch, tokens, channels}, base.scalar_type());
  p.out = out.mutable_data_ptr();
  parallel(batch * tokens, 2 * channels,
           [&](int64_t b, int64_t e) { kernels().scatter_residual(p, b, e); });
  return out;
}

}  // namespace stc::bindings
