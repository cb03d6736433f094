// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings::cuda {

Tensor sparse_query_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                              double scale, std::optional<Tensor> key_bias) {
  const char* op = "sparse_query_attention";
  const OnDevice on(op, query);
  on.check("key", key);
  on.check("value", value);
  on.check("key_bias", key_bias);
  check_dim(op, "query", query, 4);
  check_dim(op, "key", key, 4);
  check_dim(op, "value", value, 4);
  check_same_dtype(op, "key", key, query);
  check_same_dtype(op, "value", value, query);
  AttentionParams p = {};
  p.dtype = dtype_of(op, "query", query);
  p.query = head_view(query);
  p.key = head_view(key);
  p.value = head_view(value);
  p.batch = query.size(0);
  p.queries = query.size(1);
  p.keys = key.size(1);
  p.heads = query.size(2);
  p.groups = key.size(2);
  p.width = query.size(3);
  p.scale = static_cast<float>(scale);
  check_size(op, "key", key, 0, p.batch);
  check_size(op, "key", key, 3, p.width);
  for (int64_t i = 0; i < 4; ++i) check_size(op, "value", value, i, key.size(i));
  STD_TORCH_CHECK(p.groups > 0 && p.heads % p.groups == 0, "`", op,
                  "`: key must have a number of heads that divides ", p.heads,
                  " (heads of query), got ", p.groups);
  STD_TORCH_CHECK(p.width >= 1 && p.width <= kMaxHeadWidth, "`", op,
                  "`: query must have heads of 1 to ", kMaxHeadWidth, " channels, got ", p.width);
  if (key_bias.has_value()) {
    check_dim(op, "key_bias", *key_bias, 2);
    check_size(op, "key_bias", *key_bias, 0, p.batch);
    check_size(op, "key_bias", *key_bias, 1, p.keys);
    p.key_bias = {key_bias->const_data_ptr(), dtype_of(op, "key_bias", *key_bias),
                  key_bias->stride(0), key_bias->stride(1)};
  }
  const Tensor out =
      empty_like_device(query, {p.batch, p.queries, p.heads, p.width}, query.scalar_type());
  p.out = out.mutable_data_ptr();
  on.launched(stc::cuda::sparse_query_attention(p, on.stream()));
  return out;
}

}  // namespace stc::bindings::cuda
