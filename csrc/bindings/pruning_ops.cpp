// SPDX-License-Identifier: Apache-2.0
// The operators of the pruners but saliency: redundancy, compaction, matching, merging, attention
// received.
#include "common.h"

namespace stc::bindings {

namespace {

// A contiguous bool mask of the given number of elements. Its bytes may be other than 0 and 1,
// which no C++ bool may be: any but 0 counts as true.
Tensor packed_mask(const char* op, const char* name, const Tensor& mask, int64_t elements) {
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "`", op, "`: ", name,
                  " must be a bool mask");
  STD_TORCH_CHECK(mask.numel() == elements, "`", op, "`: ", name, " must have ", elements,
                  " elements, got ", mask.numel());
  check_memory(op, name, mask);
  return mask.is_contiguous() ? mask : torch::stable::contiguous(mask);
}

const uint8_t* bytes(const Tensor& mask) {
  return static_cast<const uint8_t*>(mask.const_data_ptr());
}

HeadView head_view(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }
int32_t* ints(const Tensor& t) { return static_cast<int32_t*>(t.mutable_data_ptr()); }

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

Tensor spatial_redundancy(const Tensor& tokens, std::optional<Tensor> alive) {
  const char* op = "spatial_redundancy";
  check_dim(op, "tokens", tokens, 4);
  const int64_t frames = tokens.size(0), height = tokens.size(1), width = tokens.size(2);
  const int64_t places = frames * height * width;
  NeighbourParams p = {};
  p.dtype = dtype_of(op, "tokens", tokens);
  p.tokens = {tokens.const_data_ptr(), tokens.stride(0), tokens.stride(1), tokens.stride(2),
              tokens.stride(3)};
  p.height = height;
  p.width = width;
  p.channels = tokens.size(3);
  Tensor mask;
  if (alive.has_value()) {
    mask = packed_mask(op, "alive", *alive, places);
    p.alive = bytes(mask);
  }
  const Tensor out = empty_like_device(tokens, {frames, height, width}, ScalarType::Float);
  p.norm = scratch_floats(3 * places);
  p.right = p.norm + places;
  p.below = p.right + places;
  p.redundancy = floats(out);
  parallel(places, 3 * p.channels,
           [&](int64_t b, int64_t e) { kernels().neighbour_dots(p, b, e); });
  parallel(places, 16, [&](int64_t b, int64_t e) { kernels().neighbour_maximum(p, b, e); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> compact_tokens(const Tensor& tokens, const Tensor& keep,
                                                  int64_t capacity) {
  const char* op = "compact_tokens";
  check_dim(op, "tokens", tokens, 3);
  const int64_t frames = tokens.size(0), n = tokens.size(1);
  check_tokens(op, frames * n);
  check_range(op, "capacity", capacity, 0, frames * n);
  const Tensor mask = packed_mask(op, "keep", keep, frames * n);
  const uint8_t* kept = bytes(mask);
  CompactParams p = {};
  p.source = view_of(tokens);
  p.tokens_per_frame = n;
  p.channels = tokens.size(2);
  p.element_size = size_of(dtype_of(op, "tokens", tokens));
  const Tensor out = empty_like_device(tokens, {capacity, p.channels}, tokens.scalar_type());
  const Tensor indices = empty_like_device(tokens, {capacity}, ScalarType::Int);
  const Tensor counts = empty_like_device(tokens, {frames}, ScalarType::Int);
  int32_t* listed = ints(indices);
  int64_t written = 0;
  for (int64_t f = 0; f < frames; ++f) {
    int32_t count = 0;
    for (int64_t i = f * n; i < (f + 1) * n; ++i) {
      if (kept[i] == 0) continue;
      ++count;
      if (written < capacity) listed[written++] = static_cast<int32_t>(i);
    }
    ints(counts)[f] = count;
  }
  std::fill(listed + written, listed + capacity, -1);
  p.indices = listed;
  p.out = out.mutable_data_ptr();
  parallel(capacity, p.channels, [&](int64_t b, int64_t e) { kernels().compact_rows(p, b, e); });
  return {out, indices, counts};
}

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
