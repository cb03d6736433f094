// SPDX-License-Identifier: Apache-2.0
#include "common.h"

namespace stc::bindings {

namespace {

// Which tokens go into each row of a merge, as a list sorted by row.
struct Members {
  std::vector<int64_t> start;
  std::vector<int32_t> list;
};

// `row_of` (batch, tokens) are in [-1, rows), and rows are at most as many as the tokens.
Members members_of(const std::vector<int32_t>& row_of, int64_t batch, int64_t tokens,
                   int64_t rows) {
  Members members;
  members.start.assign(static_cast<size_t>(batch * rows + 1), 0);
  members.list.resize(static_cast<size_t>(batch * tokens));
  for (int64_t i = 0; i < batch * tokens; ++i) {
    const int64_t row = row_of[static_cast<size_t>(i)];
    if (row >= 0) ++members.start[static_cast<size_t>(i / tokens * rows + row + 1)];
  }
  for (size_t i = 1; i < members.start.size(); ++i) members.start[i] += members.start[i - 1];
  std::vector<int64_t> next(members.start.begin(), members.start.end() - 1);
  for (int64_t i = 0; i < batch * tokens; ++i) {
    const int64_t row = row_of[static_cast<size_t>(i)];
    if (row < 0) continue;
    int64_t& at = next[static_cast<size_t>(i / tokens * rows + row)];
    members.list[static_cast<size_t>(at++)] = static_cast<int32_t>(i % tokens);
  }
  return members;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> bipartite_match(const Tensor& metric, int64_t r,
                                                   int64_t is_protected) {
  const char* op = "bipartite_match";
  check_dim(op, "metric", metric, 3);
  const int64_t batch = metric.size(0), n = metric.size(1);
  check_tokens(op, n);
  STD_TORCH_CHECK(is_protected >= 0 && is_protected <= n && r >= 0 && r <= (n - is_protected) / 2,
                  "`", op, "`: r must be between 0 and half of the unprotected tokens, got ", r);
  MatchParams p = {};
  p.dtype = dtype_of(op, "metric", metric);
  p.metric = view_of(metric);
  p.tokens = n;
  p.channels = metric.size(2);
  p.first_candidate = is_protected + is_protected % 2;
  p.first_partner = is_protected + (is_protected + 1) % 2;
  p.candidates = std::max<int64_t>(0, (n - p.first_candidate + 1) / 2);
  p.partners = std::max<int64_t>(0, (n - p.first_partner + 1) / 2);
  const Tensor best = empty_like_device(metric, {batch, p.candidates}, ScalarType::Float);
  std::vector<int32_t> partner(static_cast<size_t>(batch * p.candidates));
  std::vector<float> inverse(static_cast<size_t>(batch * n));
  p.inverse = inverse.data();
  p.best = floats(best);
  p.partner = partner.data();
  // Large blocks pack their partners less often; but a few are needed to share them among threads.
  const int64_t pieces =
      std::max((p.candidates + 127) / 128, batch < 4 ? 4 / std::max<int64_t>(1, batch) : 1);
  p.block = std::max<int64_t>(1, (p.candidates + pieces - 1) / pieces);
  const int64_t blocks = (p.candidates + p.block - 1) / p.block;
  parallel(batch * n, p.channels, [&](int64_t b, int64_t e) { kernels().match_norms(p, b, e); });
  parallel(batch * blocks, work({p.block, p.partners, p.channels}), [&](int64_t b, int64_t e) {
    float* scratch = scratch_floats(kernels().match_scratch(p));
    for (int64_t i = b; i < e; ++i) kernels().match(p, scratch, i / blocks, i % blocks * p.block);
  });
  Selection how;
  how.capacity = r;
  how.highest = true;
  const Tensor leaves = select_indices(best, how);

  const Tensor source_map = empty_like_device(metric, {batch, n}, ScalarType::Int);
  const Tensor kept = empty_like_device(metric, {batch, n - r}, ScalarType::Int);
  const Tensor similarity = empty_like_device(metric, {batch, n}, ScalarType::Float);
  std::fill_n(floats(similarity), batch * n, -__builtin_inff());
  for (int64_t b = 0; b < batch && n > 0; ++b) {
    int32_t* row = ints(source_map) + b * n;
    const int32_t* leaf = ints(leaves) + b * r;
    for (int64_t i = 0; i < p.candidates; ++i) {
      floats(similarity)[b * n + p.first_candidate + 2 * i] = p.best[b * p.candidates + i];
    }
    std::fill_n(row, n, 0);
    for (int64_t i = 0; i < r; ++i) row[p.first_candidate + 2 * leaf[i]] = -1;
    int32_t survivors = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (row[i] < 0) continue;
      ints(kept)[b * (n - r) + survivors] = static_cast<int32_t>(i);
      row[i] = survivors++;
    }
    for (int64_t i = 0; i < r; ++i) {
      row[p.first_candidate + 2 * leaf[i]] = row[p.partner[b * p.candidates + leaf[i]]];
    }
  }
  return {source_map, kept, similarity};
}

std::tuple<Tensor, Tensor> merge_tokens(const Tensor& tokens, const Tensor& source_map,
                                        int64_t count, std::optional<Tensor> sizes) {
  const char* op = "merge_tokens";
  check_dim(op, "tokens", tokens, 3);
  check_dim(op, "source_map", source_map, 2);
  const int64_t batch = tokens.size(0), n = tokens.size(1);
  check_size(op, "source_map", source_map, 0, batch);
  check_size(op, "source_map", source_map, 1, n);
  check_tokens(op, n);
  check_range(op, "count", count, 0, n);
  const Members members =
      members_of(checked_indices(op, source_map, batch, count), batch, n, count);
  Tensor weights;
  MergeParams p = {};
  if (sizes.has_value()) {
    STD_TORCH_CHECK(sizes->scalar_type() == ScalarType::Float && sizes->numel() == batch * n, "`",
                    op, "`: sizes must be float32, one per token");
    check_memory(op, "sizes", *sizes);
    weights = sizes->is_contiguous() ? *sizes : torch::stable::contiguous(*sizes);
    p.sizes = static_cast<const float*>(weights.const_data_ptr());
  }
  p.dtype = dtype_of(op, "tokens", tokens);
  p.tokens = view_of(tokens);
  p.rows = count;
  p.channels = tokens.size(2);
  p.tokens_per_frame = n;
  p.start = members.start.data();
  p.members = members.list.data();
  const Tensor out = empty_like_device(tokens, {batch, count, p.channels}, tokens.scalar_type());
  const Tensor out_sizes = empty_like_device(tokens, {batch, count}, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.out_sizes = floats(out_sizes);
  parallel(batch * count, 2 * p.channels,
           [&](int64_t b, int64_t e) { kernels().merge_rows(p, b, e); });
  return {out, out_sizes};
}

}  // namespace stc::bindings
