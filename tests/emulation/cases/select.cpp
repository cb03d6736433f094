// SPDX-License-Identifier: Apache-2.0
// token_cosine, select_changed, select_changed_below.
#include <array>
#include <numeric>

#include "bound.h"
#include "launchers.h"
#include "ops.h"

using namespace stc;

std::vector<int64_t> selection_order(const std::vector<float>& s, int64_t pinned, bool highest) {
  std::vector<int64_t> order(s.size());
  std::iota(order.begin(), order.end(), 0);
  const auto rank = [&](int64_t i) {
    if (i < pinned) return std::pair<int, double>(0, 0.0);
    if (std::isnan(s[static_cast<size_t>(i)])) return std::pair<int, double>(highest ? 3 : 1, 0.0);
    const double x = s[static_cast<size_t>(i)];
    return std::pair<int, double>(2, highest ? -x : x);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return rank(a) < rank(b); });
  return order;
}

void check_cosine(Case& c, const Tensor& x, const Tensor& y, const Tensor& sim) {
  const int64_t B = x.size[0], N = x.size[1], C = x.size[2];
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t n = 0; n < N; ++n) {
      double xy = 0, xx = 0, yy = 0;
      for (int64_t k = 0; k < C; ++k) {
        const double f = x({b, n, k}), g = y.size.size() == 3 ? y({b, n, k}) : y({n, k});
        xy += f * g, xx += f * f, yy += g * g;
      }
      const auto floor = [](double v) { return v < 1e-8 ? 1e-8 : v; };
      c.near("cosine", sim({b, n}), xy / (floor(std::sqrt(xx)) * floor(std::sqrt(yy))), 4e-6, 4e-6);
    }
  }
}

struct SelectCase {
  int64_t B, N, C, k, pinned;
  bool below;
  double threshold;
  Dt dt;
  int lx = -1, ly = -1;
  bool shared_reference = false;
};

static void data(Case& c, const Tensor& x, const Tensor& y, int64_t B, int64_t N, int64_t C) {
  fill(c.rng, x);
  fill(c.rng, y);
  if (B == 0 || N == 0 || C == 0) return;
  const auto copy = [&](const Tensor& t, int64_t b, int64_t from, int64_t to) {
    if (t.size.size() == 2) b = 0;
    for (int64_t k = 0; k < C; ++k) {
      if (t.size.size() == 3)
        t.put({b, to, k}, t({b, from, k}));
      else
        t.put({to, k}, t({from, k}));
    }
  };
  if (N == 0 || C == 0) return;
  for (int i = 0; i < 6 && c.rng.chance(60); ++i) {  // ties
    const int64_t b = c.rng.below(B), from = c.rng.below(N), to = c.rng.below(N);
    copy(x, b, from, to);
    copy(y, b, from, to);
  }
  if (c.rng.chance(30)) {
    for (int64_t n = 0; n < N; ++n) {
      if (c.rng.chance(50)) {
        for (int64_t k = 0; k < C; ++k) {
          const double v = y.size.size() == 3 ? y({0, n, k}) : y({n, k});
          x.put({0, n, k}, v);  // the same: cosine 1, or near it
        }
      }
    }
  }
  if (c.rng.chance(30)) x.put({c.rng.below(B), c.rng.below(N), c.rng.below(C)}, NAN);
  if (c.rng.chance(20)) {
    const int64_t n = c.rng.below(N);
    for (int64_t k = 0; k < C; ++k) x.put({0, n, k}, 0.0);
  }
}

static void select(Case& c, const SelectCase& s) {
  char text[200];
  std::snprintf(text, sizeof text, "B%lld N%lld C%lld k%lld pinned%lld %s %s layouts %d %d%s",
                (long long)s.B, (long long)s.N, (long long)s.C, (long long)s.k, (long long)s.pinned,
                s.below ? "below" : "k", name_of(s.dt), s.lx, s.ly,
                s.shared_reference ? " shared" : "");
  c.what = text;
  const Tensor x = laid_out(c.rng, "current", s.dt, {s.B, s.N, s.C}, emu::Kind::kInput, s.lx);
  const Tensor y =
      s.shared_reference
          ? laid_out(c.rng, "reference", s.dt, {s.N, s.C}, emu::Kind::kInput, s.ly)
          : laid_out(c.rng, "reference", s.dt, {s.B, s.N, s.C}, emu::Kind::kInput, s.ly);
  data(c, x, y, s.B, s.N, s.C);
  Tensor sim = output("similarity", Dt::kF32, {s.B, s.N}),
         indices = output("indices", Dt::kI32, {s.B, s.k}),
         counts = output("counts", Dt::kI32, {s.B});
  CosineParams p = {stc_of(s.dt), x.view(), y.view(), s.B * s.N, s.N, s.C, sim.as<float>()};
  SelectParams q = {};
  q.scores = p.similarity;
  q.tokens = s.N;
  q.capacity = s.k;
  q.pinned = s.pinned;
  q.below = s.below;
  q.threshold = static_cast<float>(s.threshold);
  q.indices = indices.as<int32_t>();
  q.counts = s.below ? counts.as<int32_t>() : nullptr;
  c.outputs = {&sim, &indices};
  if (s.below) c.outputs.push_back(&counts);
  c.run([&](cudaStream_t stream) { return stc::cuda::select_changed(p, q, s.B, stream); });
  if (s.below) {
    check_bound(c, "select_changed_below", bind::select_changed_below, {&indices, &counts, &sim},
                {}, x, y, s.threshold, s.k, s.pinned);
  } else {
    check_bound(c, "select_changed", bind::select_changed, {&indices, &sim}, {}, x, y, s.k,
                s.pinned);
  }
  check_cosine(c, x, y, sim);
  for (int64_t b = 0; b < s.B; ++b) {
    std::vector<float> scores;
    for (int64_t n = 0; n < s.N; ++n) scores.push_back(static_cast<float>(sim({b, n})));
    std::vector<int64_t> order = selection_order(scores, s.pinned, false);
    int64_t listed = std::min<int64_t>(s.k, s.N);
    if (s.below) {
      int64_t changed = 0;
      for (int64_t n = 0; n < s.N; ++n) {
        changed +=
            n < s.pinned || !(scores[static_cast<size_t>(n)] > static_cast<float>(s.threshold));
      }
      c.near("counts", counts({b}), static_cast<double>(changed), 0, 0);
      listed = std::min(listed, changed);
    }
    order.resize(static_cast<size_t>(listed));
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < s.k; ++i) {
      c.near("indices", indices({b, i}),
             i < listed ? static_cast<double>(order[static_cast<size_t>(i)]) : -1.0, 0, 0);
    }
  }
}

static SelectCase any_select(Case& c, int size) {
  Rng& r = c.rng;
  SelectCase s = {};
  s.dt = c.float_type();
  if (size == 0) {
    s.B = r.between(1, 3);
    s.N = r.pick<int64_t>({1, 2, 3, 7, 16, 31, 33, 64, 100});
    s.C = r.pick<int64_t>({1, 3, 8, 16, 24, 33, 64, 136, 130, 300, 1040});
  } else if (size == 1) {
    s.B = r.between(1, 2);
    s.N = r.pick<int64_t>({196, 513, 729, 1025});
    s.C = r.pick<int64_t>({8, 64, 513, 1152});
  } else {
    // In turn more keys than shared memory holds, many frames, just as many keys, many frames.
    s.B = c.seed % 2 == 0 ? r.pick<int64_t>({64, 65}) : 1;
    s.N = s.B > 1           ? r.pick<int64_t>({1, 5, 17})
          : c.seed % 4 == 1 ? r.pick<int64_t>({11265, 11300, 16384})
                            : r.pick<int64_t>({11263, 11264});
    s.C = s.B > 1 ? r.pick<int64_t>({8, 5}) : r.pick<int64_t>({1, 8});
  }
  s.below = r.chance(50);
  s.k = s.below ? r.pick<int64_t>({0, 1, r.below(s.N + 1), s.N})
                : r.pick<int64_t>({0, 1, r.below(s.N + 1), s.N});
  if (!s.below) s.k = std::min(s.k, s.N);
  s.pinned = r.pick<int64_t>({0, 0, 0, 1, r.below(s.N + 1), s.N, s.N + 3});
  s.threshold = r.pick({-2.0, -0.1, 0.0, 0.05, 0.9, 2.0, -1.0 * INFINITY, 1.0 * NAN});
  s.shared_reference = r.chance(25);
  s.lx = r.chance(50) ? 0 : static_cast<int>(r.between(1, 9));
  s.ly = r.chance(50) ? 0 : static_cast<int>(r.pick<int64_t>({1, 2, 3, 4, 5, 6, 8, 9}));
  return s;
}

void test_select_changed(Case& c, int size) { select(c, any_select(c, size)); }

void test_token_cosine(Case& c, int size) {
  const SelectCase s = any_select(c, size);
  const Tensor x = laid_out(c.rng, "current", s.dt, {s.B, s.N, s.C}),
               y = laid_out(c.rng, "reference", s.dt, {s.B, s.N, s.C});
  data(c, x, y, s.B, s.N, s.C);
  c.what = "token_cosine B" + std::to_string(s.B) + " N" + std::to_string(s.N) + " C" +
           std::to_string(s.C) + name_of(s.dt);
  Tensor sim = output("similarity", Dt::kF32, {s.B, s.N});
  const CosineParams p = {stc_of(s.dt), x.view(), y.view(), s.B * s.N, s.N, s.C, sim.as<float>()};
  c.outputs = {&sim};
  c.run([&](cudaStream_t stream) { return stc::cuda::token_cosine(p, stream); });
  check_bound(c, "token_cosine", bind::token_cosine, {&sim}, {}, x, y);
  check_cosine(c, x, y, sim);
}

// Sizes of zero, as the bindings let them through.
void test_empties(Case& c, int) {
  c.schedules = 2;
  for (const Dt dt : {Dt::kF32, Dt::kBf16}) {
    for (const auto& [B, N, C, k] : {std::array<int64_t, 4>{0, 5, 8, 2},
                                     {2, 0, 8, 0},
                                     {2, 0, 8, 3},
                                     {2, 5, 0, 2},
                                     {0, 0, 0, 0},
                                     {65, 0, 8, 2}}) {
      for (const bool below : {false, true}) {
        if (k > N) continue;
        SelectCase s = {};
        s.B = B, s.N = N, s.C = C, s.k = k, s.dt = dt, s.below = below;
        s.lx = s.ly = 0;
        s.threshold = 0.5;
        select(c, s);
      }
    }
  }
}

// Nothing is above NaN, so all tokens are found.
void test_nan_threshold(Case& c, int) {
  for (const int64_t capacity : {3, 9}) {
    SelectCase s = {};
    s.B = 2, s.N = 9, s.C = 8, s.k = capacity, s.pinned = 1, s.dt = Dt::kF32;
    s.below = true;
    s.threshold = NAN;
    s.lx = s.ly = 0;
    select(c, s);
  }
}
