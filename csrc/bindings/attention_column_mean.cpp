// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings {

Tensor attention_column_mean(const Tensor& query, const Tensor& key, double scale) {
  const char* op = "attention_column_mean";
  check_dim(op, "query", query, 4);
  check_dim(op, "key", key, 4);
  check_same_dtype(op, "key", key, query);
  const int64_t batch = query.size(0), heads = query.size(2);
  check_size(op, "key", key, 0, batch);
  check_size(op, "key", key, 3, query.size(3));
  STD_TORCH_CHECK(key.size(2) > 0 && heads > 0 && heads % key.size(2) == 0, "`", op,
                  "`: the heads of query must be a multiple of those of key");
  STD_TORCH_CHECK(query.size(1) > 0, "`", op, "`: query must hold at least one token");
  ColumnMeanParams p = {};
  p.dtype = dtype_of(op, "query", query);
  p.query = head_view(query);
  p.key = head_view(key);
  p.queries = query.size(1);
  p.keys = key.size(1);
  p.heads = heads;
  p.heads_per_key = heads / key.size(2);
  p.channels = query.size(3);
  p.scale = static_cast<float>(scale);
  const Tensor out = empty_like_device(query, {batch, p.keys}, ScalarType::Float);
  if (out.numel() == 0) return out;
  const Tensor received = empty_like_device(query, {batch, heads, p.keys}, ScalarType::Float);
  p.received = floats(received);
  parallel(batch * heads, work({p.queries, p.keys, p.channels}), [&](int64_t b, int64_t e) {
    float* scratch = scratch_floats(kernels().column_mean_scratch(p));
    for (int64_t i = b; i < e; ++i) kernels().column_mean(p, scratch, i / heads, i % heads);
  });
  const float share = 1.0f / static_cast<float>(heads * p.queries);
  for (int64_t i = 0; i < batch * p.keys; ++i) {
    const float* from = p.received + i / p.keys * heads * p.keys + i % p.keys;
    float total = 0.0f;
    for (int64_t h = 0; h < heads; ++h) total += from[h * p.keys];
    floats(out)[i] = total * share;
  }
  return out;
}

}  // namespace stc::bindings
