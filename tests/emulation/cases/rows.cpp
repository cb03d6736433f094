// SPDX-License-Identifier: Apache-2.0
// Rows by index, layer norms, GELU.
#include "bound.h"
#include "launchers.h"
#include "ops.h"

using namespace stc;

namespace {
struct Shape {
  int64_t B, N, K, C;
  Dt dt;
};
Shape any_shape(Case& c, int size) {
  Rng& r = c.rng;
  Shape s;
  s.dt = r.pick({Dt::kF32, Dt::kF16, Dt::kBf16});
  s.B = r.between(1, 3);
  s.N = size == 0 ? r.pick<int64_t>({1, 2, 5, 9, 33}) : r.pick<int64_t>({64, 196, 300});
  s.K = r.pick<int64_t>({1, s.N, r.between(1, s.N), 2 * s.N});
  s.C = size == 0   ? r.pick<int64_t>({1, 3, 8, 16, 40, 65, 128})
        : size == 1 ? r.pick<int64_t>({256, 512, 1000, 1152, 1153})
                    : r.pick<int64_t>({2048, 4096, 4104, 8200, 9000, 513, 2049});
  if (size == 2) s.N = r.between(1, 4), s.K = r.between(1, 4);
  char text[120];
  std::snprintf(text, sizeof text, "B%lld N%lld K%lld C%lld %s", (long long)s.B, (long long)s.N,
                (long long)s.K, (long long)s.C, name_of(s.dt));
  c.what = text;
  return s;
}
// How: 0 any, repeated; 1 each token once. With -1 and what is out of range.
Tensor any_indices(Case& c, int64_t B, int64_t K, int64_t N, bool once, bool beyond = true) {
  const Tensor t = make("indices", Dt::kI32, {B, K}, emu::Kind::kInput);
  for (int64_t b = 0; b < B; ++b) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < std::max(K, N); ++i) order.push_back(i);
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[static_cast<size_t>(c.rng.below(static_cast<int64_t>(i)))]);
    for (int64_t k = 0; k < K; ++k) {
      int64_t v = once ? order[static_cast<size_t>(k)] : c.rng.below(N);
      if (once && v >= N && !beyond) v = -1;
      if (c.rng.chance(15)) v = -1;
      if (beyond && c.rng.chance(5)) v = N + c.rng.below(1000);
      if (beyond && c.rng.chance(2)) v = 2147483647;
      t.put({b, k}, 0);
      int32_t w = static_cast<int32_t>(v);
      std::memcpy(t.data() + t.at({b, k}) * 4, &w, 4);
    }
  }
  return t;
}
double eps_of(Dt d) { return d == Dt::kF32 ? 2e-6 : d == Dt::kF16 ? 1.0 / 2048 : 1.0 / 256; }
int64_t index(const Tensor& t, int64_t b, int64_t k) {
  int32_t v;
  std::memcpy(&v, t.data() + t.at({b, k}) * 4, 4);
  return v;
}
Tensor maybe_vector(Case& c, const char* name, int64_t C) {
  if (c.rng.chance(25)) return {};
  const Dt d = c.rng.pick({Dt::kF32, Dt::kF16, Dt::kBf16});
  Tensor t = c.rng.chance(60) ? make(name, d, {C}, emu::Kind::kInput)
                              : make(name, d, {C}, emu::Kind::kInput, {c.rng.between(1, 2)},
                                     c.rng.pick<int64_t>({0, 1, 8}));
  fill(c.rng, t);
  return t;
}
Tensor companion(Case& c, const char* name, const Shape& s) {
  Tensor t = c.rng.chance(25) ? laid_out(c.rng, name, s.dt, {s.N, s.C})
                              : laid_out(c.rng, name, s.dt, {s.B, s.N, s.C});
  fill(c.rng, t);
  return t;
}
double of(const Tensor& t, int64_t b, int64_t n, int64_t k) {
  return t.size.size() == 3 ? t({b, n, k}) : t({n, k});
}
}  // namespace

void test_gather_rows(Case& c, int size) {
  const Shape s = any_shape(c, size);
  const Tensor x = laid_out(c.rng, "x", s.dt, {s.B, s.N, s.C}),
               at = any_indices(c, s.B, s.K, s.N, false);
  fill(c.rng, x);
  Tensor out = output("out", s.dt, {s.B, s.K, s.C});
  const GatherParams p = {
      x.view(),  at.as<int32_t>(), s.B * s.K, s.N, s.K, s.C, static_cast<int64_t>(size_of(s.dt)),
      out.data()};
  c.outputs = {&out};
  c.run([&](cudaStream_t st) { return stc::cuda::gather_rows(p, st); });
  check_bound(c, "gather_rows", bind::gather_rows, {&out}, {}, x, at);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t k = 0; k < s.K; ++k)
      for (int64_t i = 0; i < s.C; ++i) {
        const int64_t n = index(at, b, k);
        c.near("out", out({b, k, i}), n < 0 || n >= s.N ? 0.0 : x({b, n, i}), 0, 0);
      }
}

void test_scatter_rows(Case& c, int size) {
  const Shape s = any_shape(c, size);
  Tensor x = laid_out(c.rng, "x", s.dt, {s.B, s.N, s.C}, emu::Kind::kInOut);
  const Tensor at = any_indices(c, s.B, s.K, s.N, true),
               rows = laid_out(c.rng, "rows", s.dt, {s.B, s.K, s.C});
  fill(c.rng, x);
  fill(c.rng, rows);
  const std::vector<unsigned char> all(x.base(), x.base() + x.bytes);
  Tensor want = x;
  std::vector<double> expected(static_cast<size_t>(x.numel()));
  for (int64_t i = 0; i < x.numel(); ++i) expected[static_cast<size_t>(i)] = x.get(x.nth(i));
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t k = 0; k < s.K; ++k) {
      const int64_t n = index(at, b, k);
      if (n < 0 || n >= s.N) continue;
      for (int64_t i = 0; i < s.C; ++i)
        expected[static_cast<size_t>((b * s.N + n) * s.C + i)] = rows({b, k, i});
    }
  const ScatterParams p = {x.mutable_view(),
                           rows.view(),
                           at.as<int32_t>(),
                           s.B * s.K,
                           s.N,
                           s.K,
                           s.C,
                           static_cast<int64_t>(size_of(s.dt))};
  c.outputs = {&x};
  c.run([&](cudaStream_t st) { return stc::cuda::scatter_rows(p, st); });
  check_bound(c, "scatter_rows_", bind::scatter_rows, {}, {&x}, x, at, rows);
  for (int64_t i = 0; i < x.numel(); ++i)
    c.near("x", x.get(x.nth(i)), expected[static_cast<size_t>(i)], 0, 0);
}

void test_scatter_key_value(Case& c, int size) {
  const Shape s = any_shape(c, size);
  Tensor kc = laid_out(c.rng, "key_cache", s.dt, {s.B, s.N, s.C}, emu::Kind::kInOut),
         vc = laid_out(c.rng, "value_cache", s.dt, {s.B, s.N, s.C}, emu::Kind::kInOut);
  const Tensor at = any_indices(c, s.B, s.K, s.N, true),
               k = laid_out(c.rng, "key", s.dt, {s.B, s.K, s.C}),
               v = laid_out(c.rng, "value", s.dt, {s.B, s.K, s.C});
  const Tensor kb = maybe_vector(c, "key_bias", s.C), vb = maybe_vector(c, "value_bias", s.C);
  for (const Tensor* t : {&kc, &vc}) fill(c.rng, *t);
  fill(c.rng, k);
  fill(c.rng, v);
  std::vector<double> want[2];
  const Tensor* caches[2] = {&kc, &vc};
  const Tensor* rows[2] = {&k, &v};
  const Tensor* biases[2] = {&kb, &vb};
  for (int w = 0; w < 2; ++w) {
    for (int64_t i = 0; i < kc.numel(); ++i) want[w].push_back(caches[w]->get(caches[w]->nth(i)));
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t j = 0; j < s.K; ++j) {
        const int64_t n = index(at, b, j);
        if (n < 0 || n >= s.N) continue;
        for (int64_t i = 0; i < s.C; ++i) {
          const double x = (*rows[w])({b, j, i});
          want[w][static_cast<size_t>((b * s.N + n) * s.C + i)] =
              *biases[w]
                  ? round_to(s.dt, static_cast<double>(static_cast<float>(x) +
                                                       static_cast<float>((*biases[w])({i}))))
                  : x;
        }
      }
  }
  stc::cuda::KeyValueParams p = {};
  p.dtype = stc_of(s.dt);
  p.key_cache = kc.mutable_view(), p.value_cache = vc.mutable_view();
  p.key = k.view(), p.value = v.view();
  p.indices = at.as<int32_t>();
  p.count = s.B * s.K, p.tokens = s.N, p.picked = s.K, p.channels = s.C;
  p.key_bias = kb.channels(), p.value_bias = vb.channels();
  c.outputs = {&kc, &vc};
  c.run([&](cudaStream_t st) { return stc::cuda::scatter_key_value(p, st); });
  check_bound(c, "scatter_key_value_", bind::scatter_key_value, {}, {&kc, &vc}, kc, vc, at, k, v,
              kb, vb);
  for (int w = 0; w < 2; ++w)
    for (int64_t i = 0; i < kc.numel(); ++i)
      c.near("cache", caches[w]->get(caches[w]->nth(i)), want[w][static_cast<size_t>(i)], 0, 0);
}

void test_scatter_residual(Case& c, int size) {
  const Shape s = any_shape(c, size);
  Tensor base = laid_out(c.rng, "base", s.dt, {s.B, s.N, s.C}),
         rows = laid_out(c.rng, "rows", s.dt, {s.B, s.K, s.C});
  fill(c.rng, base);
  fill(c.rng, rows);
  const Tensor update = companion(c, "update", s),
               at = any_indices(c, s.B, s.K, s.N, c.rng.chance(50));
  Tensor out = output("out", s.dt, {s.B, s.N, s.C});
  stc::cuda::ScatterResidualParams p = {};
  p.dtype = stc_of(s.dt);
  p.base = base.view(), p.update = update.view(), p.rows = rows.view();
  p.indices = at.as<int32_t>();
  p.batch = s.B, p.tokens = s.N, p.picked = s.K, p.channels = s.C;
  p.out = out.data();
  c.outputs = {&out};
  c.run([&](cudaStream_t st) { return stc::cuda::scatter_residual(p, st); });
  check_bound(c, "scatter_residual", bind::scatter_residual, {&out}, {}, base, update, at, rows);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t n = 0; n < s.N; ++n) {
      int64_t place = -1;
      for (int64_t k = 0; k < s.K; ++k)
        if (index(at, b, k) == n) place = k;
      for (int64_t i = 0; i < s.C; ++i) {
        const double y = place < 0 ? of(update, b, n, i) : rows({b, place, i});
        c.near("out", out({b, n, i}),
               round_to(s.dt, static_cast<float>(base({b, n, i})) + static_cast<float>(y)), 0, 0);
      }
    }
}

namespace {
void norm_row(std::vector<double>& x, const Tensor& w, const Tensor& b, double eps) {
  double mean = 0, var = 0;
  for (double v : x) mean += v;
  mean /= static_cast<double>(x.size());
  for (double v : x) var += (v - mean) * (v - mean);
  var /= static_cast<double>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = (x[i] - mean) / std::sqrt(var + eps);
    if (w) x[i] *= w({static_cast<int64_t>(i)});
    if (b) x[i] += b({static_cast<int64_t>(i)});
  }
}
}  // namespace

void test_gather_layer_norm(Case& c, int size) {
  const Shape s = any_shape(c, size);
  const Tensor x = laid_out(c.rng, "x", s.dt, {s.B, s.N, s.C}),
               at = any_indices(c, s.B, s.K, s.N, false);
  fill(c.rng, x, 1.0, c.rng.pick({0.0, 3.0}));
  const Tensor w = maybe_vector(c, "weight", s.C), bias = maybe_vector(c, "bias", s.C);
  Tensor out = output("out", s.dt, {s.B, s.K, s.C});
  stc::cuda::GatherNormParams p = {stc_of(s.dt), x.view(), at.as<int32_t>(), s.B * s.K,       s.N,
                                   s.K,          s.C,      w.channels(),     bias.channels(), 1e-5f,
                                   out.data()};
  c.outputs = {&out};
  c.run([&](cudaStream_t st) { return stc::cuda::gather_layer_norm(p, st); });
  check_bound(c, "gather_layer_norm", bind::gather_layer_norm, {&out}, {}, x, at, w, bias, 1e-5);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t k = 0; k < s.K; ++k) {
      const int64_t n = index(at, b, k);
      std::vector<double> row(static_cast<size_t>(s.C), 0.0);
      if (n >= 0 && n < s.N) {
        for (int64_t i = 0; i < s.C; ++i) row[static_cast<size_t>(i)] = x({b, n, i});
        norm_row(row, w, bias, 1e-5);
      }
      for (int64_t i = 0; i < s.C; ++i)
        c.near("normed", out({b, k, i}), row[static_cast<size_t>(i)], 1e-4 + eps_of(s.dt) * 0.01,
               2 * eps_of(s.dt) + 1e-5);
    }
}

void test_add_layer_norm(Case& c, int size) {
  const Shape s = any_shape(c, size);
  const Tensor base = laid_out(c.rng, "base", s.dt, {s.B, s.N, s.C});
  fill(c.rng, base);
  // Of the shape of base, or one frame's for all.
  const Tensor update = c.rng.chance(25)
                            ? make("update", s.dt, {s.B, s.N, s.C}, emu::Kind::kInput, {0, s.C, 1})
                            : laid_out(c.rng, "update", s.dt, {s.B, s.N, s.C});
  fill(c.rng, update);
  const Tensor w = maybe_vector(c, "weight", s.C), bias = maybe_vector(c, "bias", s.C),
               scale = maybe_vector(c, "scale", s.C);
  Tensor total = output("total", s.dt, {s.B, s.N, s.C}), out = output("out", s.dt, {s.B, s.N, s.C});
  stc::cuda::AddNormParams p = {
      stc_of(s.dt),     base.view(),  update.view(),   s.B * s.N, s.N,          s.C,
      scale.channels(), w.channels(), bias.channels(), 1e-6f,     total.data(), out.data()};
  c.outputs = {&total, &out};
  c.run([&](cudaStream_t st) { return stc::cuda::add_layer_norm(p, st); });
  check_bound(c, "add_layer_norm", bind::add_layer_norm, {&total, &out}, {}, base, update, w, bias,
              1e-6, scale);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t n = 0; n < s.N; ++n) {
      std::vector<double> row;
      for (int64_t i = 0; i < s.C; ++i) {
        const double want = base({b, n, i}) + of(update, b, n, i) * (scale ? scale({i}) : 1.0);
        c.near("total", total({b, n, i}), want, 1e-6, eps_of(s.dt));
        row.push_back(total({b, n, i}));
      }
      norm_row(row, w, bias, 1e-6);
      if (s.C == 1) continue;  // 0 / sqrt(eps): the numbers are noise
      for (int64_t i = 0; i < s.C; ++i)
        c.near("normed", out({b, n, i}), row[static_cast<size_t>(i)], 2e-4,
               2 * eps_of(s.dt) + 1e-4);
    }
}

void test_bias_gelu(Case& c, int size) {
  const Shape s = any_shape(c, size);
  const Tensor x = laid_out(c.rng, "x", s.dt, {s.B, s.N, s.C});
  fill(c.rng, x, c.rng.pick({1.0, 4.0, 40.0}));
  const Tensor bias = maybe_vector(c, "bias", s.C);
  Tensor out = output("out", s.dt, {s.B, s.N, s.C});
  const int how = static_cast<int>(c.rng.below(3));
  stc::cuda::BiasGeluParams p = {stc_of(s.dt),
                                 x.view(),
                                 s.B * s.N,
                                 s.N,
                                 s.C,
                                 bias.channels(),
                                 static_cast<stc::cuda::Gelu>(how),
                                 out.data()};
  c.outputs = {&out};
  c.run([&](cudaStream_t st) { return stc::cuda::bias_gelu(p, st); });
  check_bound(c, "bias_gelu", bind::bias_gelu, {&out}, {}, x, bias,
              how == 0   ? "none"
              : how == 1 ? "tanh"
                         : "quick");
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t n = 0; n < s.N; ++n)
      for (int64_t i = 0; i < s.C; ++i) {
        const double y = x({b, n, i}) + (bias ? bias({i}) : 0.0);
        const double want =
            how == 0   ? 0.5 * y * std::erfc(-y / std::sqrt(2.0))
            : how == 1 ? 0.5 * y * (1 + std::tanh(std::sqrt(2 / M_PI) * (y + 0.044715 * y * y * y)))
                       : y / (1 + std::exp(-1.702 * y));
        c.near("gelu", out({b, n, i}), want, 2e-6, 2 * eps_of(s.dt));
      }
}
