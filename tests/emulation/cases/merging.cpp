// SPDX-License-Identifier: Apache-2.0
// bipartite_match, merge_tokens.
#include "bound.h"
#include "launchers.h"
#include "ops.h"

using namespace stc;

void test_bipartite_match(Case& c, int size) {
  Rng& r = c.rng;
  const Dt dt = r.pick({Dt::kF32, Dt::kF16, Dt::kBf16});
  const int64_t F = r.between(1, 3),
                N = size == 0   ? r.pick<int64_t>({1, 2, 3, 7, 16, 33, 64})
                    : size == 1 ? r.pick<int64_t>({97, 130, 197})
                                : r.pick<int64_t>({256, 520}),
                C = size == 2 ? 8 : r.pick<int64_t>({1, 5, 8, 40, 64});
  const int64_t safe = r.pick<int64_t>({0, 0, 1, r.below(N + 1), N}), r_most = (N - safe) / 2,
                rr = r.pick<int64_t>({0, r.below(r_most + 1), r_most});
  c.what = "F" + std::to_string(F) + " N" + std::to_string(N) + " C" + std::to_string(C) + " r" +
           std::to_string(rr) + " protected " + std::to_string(safe) + name_of(dt);
  const Tensor x = laid_out(r, "metric", dt, {F, N, C});
  fill(r, x);
  for (int i = 0; i < 10 && N > 1 && r.chance(70); ++i) {
    const int64_t f = r.below(F), from = r.below(N), to = r.below(N);
    for (int64_t k = 0; k < C; ++k) x.put({f, to, k}, x({f, from, k}));
  }
  if (r.chance(25)) x.put({0, r.below(N), 0}, NAN);
  stc::cuda::MatchingParams p = {};
  p.dtype = stc_of(dt);
  p.metric = x.view();
  p.frames = F, p.tokens = N, p.channels = C, p.r = rr;
  p.first_candidate = safe + safe % 2;
  p.first_partner = safe + (safe + 1) % 2;
  p.candidates = std::max<int64_t>(0, (N - p.first_candidate + 1) / 2);
  p.partners = std::max<int64_t>(0, (N - p.first_partner + 1) / 2);
  Tensor map = output("source_map", Dt::kI32, {F, N}), kept = output("kept", Dt::kI32, {F, N - rr}),
         sim = output("similarity", Dt::kF32, {F, N});
  const int64_t candidates = F * p.candidates;
  Tensor match = output("_match", Dt::kI64, {candidates}),
         best = output("_best", Dt::kF32, {candidates}),
         leaves = output("_leaves", Dt::kI32, {F * rr});
  p.match = match.as<unsigned long long>();
  p.best = best.as<float>();
  p.leaves = leaves.as<int32_t>();
  p.source_map = map.as<int32_t>();
  p.kept = kept.as<int32_t>();
  p.similarity = sim.as<float>();
  c.outputs = {&match, &best, &leaves, &map, &kept, &sim};
  c.run([&](cudaStream_t st) { return stc::cuda::bipartite_match(p, st); });
  check_bound(c, "bipartite_match", bind::bipartite_match, {&map, &kept, &sim}, {}, x, rr, safe);
  c.expect(bytes_of_last_call <= static_cast<size_t>(24 * F * N),
           "scratch grows faster than tokens");
  for (int64_t f = 0; f < F; ++f) {
    std::vector<double> norm(static_cast<size_t>(N));
    for (int64_t n = 0; n < N; ++n) {
      double s = 0;
      for (int64_t k = 0; k < C; ++k) s += x({f, n, k}) * x({f, n, k});
      s = std::sqrt(s);
      norm[static_cast<size_t>(n)] = s < 1e-8 ? 1e-8 : s;
    }
    const auto cosine = [&](int64_t a, int64_t b) {
      double s = 0;
      for (int64_t k = 0; k < C; ++k) s += x({f, a, k}) * x({f, b, k});
      return s / (norm[static_cast<size_t>(a)] * norm[static_cast<size_t>(b)]);
    };
    std::vector<float> best;
    std::vector<int64_t> cands;
    for (int64_t n = 0; n < N; ++n) {
      const bool is_cand = n >= p.first_candidate && (n - p.first_candidate) % 2 == 0;
      if (!is_cand) {
        c.near("similarity of others", sim({f, n}), -INFINITY, 0, 0);
        continue;
      }
      double want = -INFINITY;
      for (int64_t m = p.first_partner; m < N; m += 2) {
        const double s = cosine(n, m);
        if (s > want) want = s;
      }
      c.near("similarity", sim({f, n}), want, 4e-6, 4e-6);
      best.push_back(static_cast<float>(sim({f, n})));
      cands.push_back(n);
    }
    auto order = selection_order(best, 0, true);
    order.resize(static_cast<size_t>(rr));
    std::vector<bool> leaves(static_cast<size_t>(N), false);
    for (int64_t o : order) leaves[static_cast<size_t>(cands[static_cast<size_t>(o)])] = true;
    std::vector<int64_t> row(static_cast<size_t>(N), -1);
    int64_t rows = 0;
    for (int64_t n = 0; n < N; ++n) {
      if (leaves[static_cast<size_t>(n)]) continue;
      c.near("kept", kept({f, rows}), static_cast<double>(n), 0, 0);
      c.near("map of survivor", map({f, n}), static_cast<double>(rows), 0, 0);
      row[static_cast<size_t>(n)] = rows++;
    }
    for (int64_t n = 0; n < N; ++n) {
      if (!leaves[static_cast<size_t>(n)]) continue;
      const auto to = static_cast<int64_t>(map({f, n}));
      if (to < 0 || to >= rows) {
        c.fail("map of leaf out of range " + std::to_string(to));
        continue;
      }
      const auto partner = static_cast<int64_t>(kept({f, to}));
      const bool valid = partner >= p.first_partner && (partner - p.first_partner) % 2 == 0;
      c.expect(valid, "a leaf's row is no partner's");
      if (!valid) continue;
      const double mine = sim({f, n});
      if (std::isinf(mine)) {
        c.near("partner without similarity", static_cast<double>(partner),
               static_cast<double>(p.first_partner), 0, 0);
        continue;
      }
      c.near("cosine with the partner", cosine(n, partner), mine, 4e-6, 4e-6);
      for (int64_t m = p.first_partner; m < partner; m += 2) {  // an equal one before it?
        bool same = true;
        for (int64_t k = 0; k < C; ++k) same = same && x({f, m, k}) == x({f, partner, k});
        c.expect(!same, "not the lowest of equal partners");
      }
    }
  }
}

void test_merge_tokens(Case& c, int size) {
  Rng& r = c.rng;
  const Dt dt = r.pick({Dt::kF32, Dt::kF16, Dt::kBf16});
  const int64_t F = r.between(1, 3),
                N = size == 0 ? r.pick<int64_t>({1, 2, 9, 33, 70}) : r.pick<int64_t>({196, 400}),
                C = size == 0   ? r.pick<int64_t>({0, 1, 5, 8, 64, 129})
                    : size == 1 ? r.pick<int64_t>({256, 520, 515})
                                : r.pick<int64_t>({1024, 1160}),
                count = r.pick<int64_t>({1, r.between(1, N), N});
  c.what = "F" + std::to_string(F) + " N" + std::to_string(N) + " C" + std::to_string(C) +
           " rows " + std::to_string(count) + name_of(dt);
  const Tensor x = laid_out(r, "tokens", dt, {F, N, C});
  fill(r, x);
  const Tensor map = make("source_map", Dt::kI32, {F, N}, emu::Kind::kInput);
  for (int64_t i = 0; i < F * N; ++i)
    map.set(i, r.chance(10)  ? -1.0
               : r.chance(3) ? static_cast<double>(count + 5)
                             : static_cast<double>(r.below(count)));
  Tensor sizes;
  if (r.chance(60)) {
    sizes = laid_out(r, "sizes", Dt::kF32, {F, N}, emu::Kind::kInput,
                     static_cast<int>(r.between(0, 6)));
    for (int64_t i = 0; i < F * N; ++i)
      sizes.set(sizes.nth(i), static_cast<double>(r.between(0, 3)));
  }
  Tensor out = output("out", dt, {F, count, C}),
         out_sizes = output("out_sizes", Dt::kF32, {F, count});
  stc::cuda::MergingParams p = {};
  p.dtype = stc_of(dt);
  p.tokens = x.view();
  p.frames = F, p.tokens_per_frame = N, p.channels = C, p.rows = count;
  p.source_map = map.as<int32_t>();
  if (sizes)
    p.sizes = sizes.as<float>(), p.size_frame_stride = sizes.stride[0],
    p.size_token_stride = sizes.stride[1];
  p.out = out.data();
  p.out_sizes = out_sizes.as<float>();
  c.outputs = {&out, &out_sizes};
  c.run([&](cudaStream_t st) { return stc::cuda::merge_tokens(p, st); });
  check_bound(c, "merge_tokens", bind::merge_tokens, {&out, &out_sizes}, {}, x, map, count, sizes);
  const double e = dt == Dt::kF32 ? 1e-5 : dt == Dt::kF16 ? 1.0 / 1024 : 1.0 / 128;
  for (int64_t f = 0; f < F; ++f)
    for (int64_t m = 0; m < count; ++m) {
      double total = 0;
      for (int64_t n = 0; n < N; ++n)
        if (map({f, n}) == static_cast<double>(m)) total += sizes ? sizes({f, n}) : 1.0;
      c.near("out_sizes", out_sizes({f, m}), total, 0, 1e-6);
      for (int64_t i = 0; i < C; ++i) {
        double sum = 0;
        for (int64_t n = 0; n < N; ++n)
          if (map({f, n}) == static_cast<double>(m))
            sum += (sizes ? sizes({f, n}) : 1.0) * x({f, n, i});
        c.near("out", out({f, m, i}), total == 0 ? 0 : sum / total, 1e-5, e);
      }
    }
}
