// SPDX-License-Identifier: Apache-2.0
// sparse_query_attention, attention_column_mean.
#include "bound.h"
#include "launchers.h"
#include "ops.h"

using namespace stc;

namespace {
Tensor heads(Case& c, const char* name, Dt dt, std::vector<int64_t> size, int how) {
  std::vector<int64_t> stride;
  int64_t offset = 0;
  const int64_t B = size[0], N = size[1], H = size[2], W = size[3];
  if (how == 1) stride = {N * H * (W + 8), H * (W + 8), W + 8, 1};
  if (how == 2) stride = {N * H * (W + 1), H * (W + 1), W + 1, 1};
  if (how == 3) offset = 1;
  if (how == 4) offset = 8;
  if (how == 5) stride = {H * N * W, W, N * W, 1};  // (B, H, N, W) transposed
  if (how == 6) stride = {N * H * W * 2, H * W * 2, W * 2, 2};
  if (how == 7) stride = {(int64_t{1} << 31) + 8, H * W, W, 1};  // beyond 32 bits
  if (how == 8 && N <= 70) stride = {N * ((int64_t{1} << 31) + 8), (int64_t{1} << 31) + 8, W, 1};
  (void)B;
  Tensor t = make(name, dt, size, emu::Kind::kInput, stride, offset);
  fill(c.rng, t);
  return t;
}
int how(Case& c) {
  return c.rng.chance(60) ? static_cast<int>(c.rng.pick<int64_t>({0, 0, 1, 4, 5, 7, 8}))
                          : static_cast<int>(c.rng.between(0, 8));
}

// Sizes of queries, keys and heads, and the layouts of the tensors.
struct Heads {
  Dt dt;
  int64_t B, K, N, H, G, W;
  int query = 0, key = 0, value = 0;

  std::string text() const {
    char text[160];
    std::snprintf(text, sizeof text, "B%lld K%lld N%lld H%lld/%lld W%lld %s",
                  static_cast<long long>(B), static_cast<long long>(K), static_cast<long long>(N),
                  static_cast<long long>(H), static_cast<long long>(G), static_cast<long long>(W),
                  name_of(dt));
    return text;
  }
};

void attend(Case& c, const Heads& s) {
  Rng& r = c.rng;
  const auto& [dt, B, K, N, H, G, W, query, key, value] = s;
  c.what = s.text();
  const Tensor q = heads(c, "query", dt, {B, K, H, W}, query),
               k = heads(c, "key", dt, {B, N, G, W}, key),
               v = heads(c, "value", dt, {B, N, G, W}, value);
  Tensor bias;
  const int64_t masked = r.pick<int64_t>({0, 1, 2, 3});
  if (masked > 0) {
    bias = laid_out(r, "key_bias", r.pick({Dt::kF32, Dt::kF16, Dt::kBf16}), {B, N},
                    emu::Kind::kInput, static_cast<int>(r.between(0, 6)));
    for (int64_t i = 0; i < B * N; ++i)
      bias.set(bias.nth(i), r.chance(masked == 1 ? 0 : 50) ? -INFINITY : r.normal());
    if (masked == 3)
      for (int64_t n = 0; n < N; ++n) bias.put({B - 1, n}, -INFINITY);
    if (r.chance(30) && N > 64)
      for (int64_t n = 0; n < 64; ++n) bias.put({0, n}, -INFINITY);  // the first tile whole
  }
  const float scale =
      1.0f / std::sqrt(static_cast<float>(W)) * static_cast<float>(r.pick({1.0, 1.0, 4.0}));
  Tensor out = output("out", dt, {B, K, H, W});
  AttentionParams p = {};
  p.dtype = stc_of(dt);
  p.query = q.heads(), p.key = k.heads(), p.value = v.heads();
  if (bias) p.key_bias = {bias.data(), stc_of(bias.dt), bias.stride[0], bias.stride[1]};
  p.batch = B, p.queries = K, p.keys = N, p.heads = H, p.groups = G, p.width = W;
  p.scale = scale;
  p.out = out.data();
  c.outputs = {&out};
  c.run([&](cudaStream_t st) { return stc::cuda::sparse_query_attention(p, st); });
  check_bound(c, "sparse_query_attention", bind::sparse_query_attention, {&out}, {}, q, k, v, scale,
              bias);
  const double e = dt == Dt::kF32 ? 3e-5 : dt == Dt::kF16 ? 3e-3 : 2.4e-2;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < K; ++i)
      for (int64_t hd = 0; hd < H; ++hd) {
        std::vector<double> logit;
        double most = -INFINITY, sum = 0;
        for (int64_t n = 0; n < N; ++n) {
          double s = 0;
          for (int64_t w = 0; w < W; ++w) s += q({b, i, hd, w}) * k({b, n, hd / (H / G), w});
          s = s * scale + (bias ? bias({b, n}) : 0.0);
          logit.push_back(s);
          most = std::max(most, s);
        }
        for (double& s : logit) s = std::isinf(most) ? 0.0 : std::exp(s - most), sum += s;
        for (int64_t w = 0; w < W; ++w) {
          double o = 0;
          for (int64_t n = 0; n < N; ++n)
            if (sum > 0) o += logit[static_cast<size_t>(n)] / sum * v({b, n, hd / (H / G), w});
          c.near("out", out({b, i, hd, w}), o, e, e);
        }
      }
}

void receive(Case& c, const Heads& s) {
  Rng& r = c.rng;
  const auto& [dt, B, K, N, H, G, W, query, key, value] = s;
  c.what = s.text();
  const Tensor q = heads(c, "query", dt, {B, K, H, W}, query),
               k = heads(c, "key", dt, {B, N, G, W}, key);
  const double scale = 1.0 / std::sqrt(static_cast<double>(W)) * r.pick({1.0, 3.0});
  Tensor out = output("out", Dt::kF32, {B, N}),
         scratch = output("_scratch", Dt::kF32, {B * H * (2 * K + N)});
  stc::cuda::ColumnMeanKernelParams p = {};
  p.dtype = stc_of(dt);
  p.query = q.heads(), p.key = k.heads();
  p.batch = B, p.queries = K, p.keys = N, p.heads = H, p.heads_per_key = H / G, p.width = W;
  p.scale = static_cast<float>(scale * 1.4426950408889634);
  p.row_sums = scratch.as<stc::cuda::RowSum>();
  p.received = scratch.as<float>() + B * H * 2 * K;
  p.out = out.as<float>();
  c.outputs = {&scratch, &out};
  c.run([&](cudaStream_t st) { return stc::cuda::attention_column_mean(p, st); });
  check_bound(c, "attention_column_mean", bind::attention_column_mean, {&out}, {}, q, k, scale);
  std::vector<double> want(static_cast<size_t>(B * N), 0.0);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < K; ++i)
      for (int64_t hd = 0; hd < H; ++hd) {
        std::vector<double> logit;
        double most = -INFINITY, sum = 0;
        for (int64_t n = 0; n < N; ++n) {
          double s = 0;
          for (int64_t w = 0; w < W; ++w) s += q({b, i, hd, w}) * k({b, n, hd / (H / G), w});
          logit.push_back(s * scale);
          most = std::max(most, s * scale);
        }
        for (double& s : logit) s = std::exp(s - most), sum += s;
        for (int64_t n = 0; n < N; ++n)
          want[static_cast<size_t>(b * N + n)] +=
              logit[static_cast<size_t>(n)] / sum / static_cast<double>(H * K);
      }
  for (int64_t b = 0; b < B; ++b)
    for (int64_t n = 0; n < N; ++n)
      c.near("mean", out({b, n}), K == 0 ? NAN : want[static_cast<size_t>(b * N + n)], 1e-7, 3e-5);
}
}  // namespace

void test_sparse_query_attention(Case& c, int size) {
  Rng& r = c.rng;
  // Of 16-bit types 128 blocks of 64 queries and more have four warps each instead of two.
  const bool many = size != 2 && c.seed % 8 == 7;
  const Dt dt = many ? r.pick({Dt::kF16, Dt::kBf16})
                     : r.pick({Dt::kF32, Dt::kF16, Dt::kBf16, Dt::kF16, Dt::kBf16});
  const int64_t B = many ? 8 : r.between(1, 2), G = many ? 8 : r.between(1, 2),
                H = many ? 16 : G * r.between(1, 3),
                K = many        ? r.pick<int64_t>({1, 17, 64})
                    : size == 0 ? r.pick<int64_t>({1, 3, 16, 17, 33})
                    : size == 1 ? r.pick<int64_t>({64, 65, 130})
                                : r.pick<int64_t>({33, 64, 700}),
                N = many        ? r.pick<int64_t>({0, 5, 64, 70})
                    : size == 0 ? r.pick<int64_t>({0, 1, 5, 32, 33, 63, 64, 65})
                    : size == 1 ? r.pick<int64_t>({128, 129, 200})
                                : r.pick<int64_t>({257, 400}),
                W = many ? r.pick<int64_t>({8, 64, 72, 128, 136})
                    : size == 2
                        ? r.pick<int64_t>({72, 80, 128, 256, 96})
                        : r.pick<int64_t>({1, 8, 16, 33, 64, 72, 80, 88, 128, 136, 200, 256});
  const int h = many ? 0 : how(c);
  attend(c, {dt, B, K, N, H, G, W, many ? 0 : how(c), h, many || c.rng.chance(70) ? h : how(c)});
}

void test_attention_column_mean(Case& c, int size) {
  Rng& r = c.rng;
  const Dt dt = r.pick({Dt::kF32, Dt::kF16, Dt::kBf16, Dt::kF16, Dt::kBf16});
  const int64_t B = r.between(1, 2), G = r.between(1, 2), H = G * r.between(1, 3),
                K = size == 0   ? r.pick<int64_t>({0, 1, 3, 16, 17, 33, 64, 65})
                    : size == 1 ? r.pick<int64_t>({64, 65, 130})
                                : r.pick<int64_t>({200, 257}),
                N = size == 0   ? r.pick<int64_t>({1, 5, 32, 33, 63, 64, 65})
                    : size == 1 ? r.pick<int64_t>({128, 129, 200})
                                : r.pick<int64_t>({257, 400}),
                W = size == 2 ? r.pick<int64_t>({72, 80, 128, 256})
                              : r.pick<int64_t>({1, 8, 16, 33, 64, 72, 80, 88, 128, 136, 256, 264});
  receive(c, {dt, B, K, N, H, G, W, how(c), how(c)});
}

// Every kernel there is for a width, a type and a number of warps.
void test_head_widths(Case& c, int) {
  c.schedules = 1;
  for (const Dt dt : {Dt::kF32, Dt::kF16, Dt::kBf16}) {
    for (const int64_t W : {33, 64, 72, 99, 128, 136, 201, 256}) {
      attend(c, {dt, 1, 3, 5, 2, 1, W});
      receive(c, {dt, 1, 3, 5, 2, 1, W});
    }
    if (dt == Dt::kF32) continue;
    for (const int64_t W : {64, 72, 128, 256}) attend(c, {dt, 8, 1, 5, 16, 8, W});
  }
}

// What a key with an infinite channel receives of queries that are all opposite to it: nothing.
void test_infinite_key(Case& c, int) {
  for (const Dt dt : {Dt::kF32, Dt::kF16, Dt::kBf16}) {
    const int64_t K = 3, N = 5, W = 8;
    const Tensor q = heads(c, "query", dt, {1, K, 1, W}, 0),
                 k = heads(c, "key", dt, {1, N, 1, W}, 0);
    for (int64_t i = 0; i < K; ++i) q.put({0, i, 0, 0}, -1.0);
    k.put({0, 2, 0, 0}, INFINITY);
    Tensor out = output("out", Dt::kF32, {1, N}),
           scratch = output("_scratch", Dt::kF32, {2 * K + N});
    stc::cuda::ColumnMeanKernelParams p = {};
    p.dtype = stc_of(dt);
    p.query = q.heads(), p.key = k.heads();
    p.batch = 1, p.queries = K, p.keys = N, p.heads = 1, p.heads_per_key = 1, p.width = W;
    p.scale = 1.0f;
    p.row_sums = scratch.as<stc::cuda::RowSum>();
    p.received = scratch.as<float>() + 2 * K;
    p.out = out.as<float>();
    c.outputs = {&scratch, &out};
    c.what = std::string("infinite key ") + name_of(dt);
    c.run([&](cudaStream_t st) { return stc::cuda::attention_column_mean(p, st); });
    c.near(name_of(dt), out({0, 2}), 0.0, 0, 0);
  }
}

// What cannot be launched is no fault of an argument, so its message is not that of one, which
// stc_kernels/ops/_register.py turns into a ValueError.
void test_failed_launch(Case& c, int) {
  c.what = "attention that gets no shared memory";
  const Tensor q = heads(c, "query", Dt::kF16, {1, 3, 1, 256}, 0);
  const size_t before = emu::config.max_shared;
  emu::config.max_shared = 0;
  std::string message;
  try {
    bind::sparse_query_attention(bound(q), bound(q), bound(q), 1.0, std::nullopt);
  } catch (const std::exception& error) {
    message = error.what();
  }
  emu::config.max_shared = before;
  emu::synchronize();
  c.expect(message.starts_with("the CUDA kernel of `sparse_query_attention` was not launched"),
           "message: " + message);
  c.expect(message.find("`sparse_query_attention`: ") == std::string::npos, message);
}
