// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

Tensor attention_column_mean(const Tensor& query, const Tensor& key, double scale) {
  const char* op = "attention_column_mean";
  const OnDevice on(op, query);
  on.check("key", key);
  check_dim(op, "query", query, 4);
  check_dim(op, "key", key, 4);
  check_same_dtype(op, "key", key, query);
  stc::cuda::ColumnMeanKernelParams p = {};
  p.dtype = dtype_of(op, "query", query);
  p.query = head_view(query);
  p.key = head_view(key);
  p.batch = query.size(0);
  p.queries = query.size(1);
  p.keys = key.size(1);
  p.heads = query.size(2);
  p.width = query.size(3);
  p.scale = static_cast<float>(scale * 1.4426950408889634);  // log2(e)
  check_size(op, "key", key, 0, p.batch);
  check_size(op, "key", key, 3, p.width);
  STD_TORCH_CHECK(key.size(2) > 0 && p.heads > 0 && p.heads % key.size(2) == 0, "`", op,
                  "`: the heads of query must be a multiple of those of key");
  p.heads_per_key = p.heads / key.size(2);
  const Tensor out = empty_like_device(query, {p.batch, p.keys}, ScalarType::Float);
  const int64_t rows = p.batch * p.heads;
  const int64_t floats = product(op, {rows, 2 * p.queries + p.keys});
  const Tensor scratch = empty_like_device(query, {floats}, ScalarType::Float);
  p.row_sums = static_cast<stc::cuda::RowSum*>(scratch.mutable_data_ptr());
  p.received = static_cast<float*>(scratch.mutable_data_ptr()) + rows * 2 * p.queries;
  p.out = static_cast<float*>(out.mutable_data_ptr());
  on.launched(stc::cuda::attention_column_mean(p, on.stream()));
  return out;
}

}  // namespace stc::bindings::cuda
